"""Results of runs on disk: a table with a row a run, and beside it what every test example came to.

Every metric here is Σ numerator / Σ denominator over the examples: accuracy (hits / 1), the loss a token (summed loss /
tokens) and F1 of entities (2·found / (predicted + true)). So all of them can be resampled alike.

`effect.tsv` has a column for every number. `effect.jsonl.gz` has what the intervals are computed from, a line a run.
Both are sorted and written whole under a lock, so that processes can add to them at the same time.
"""

import base64
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from effect.methods import BASE
from effect.stats import Array
from hf_interp.selection.scoring import Predictions

Entry = dict[str, Any]
Key = tuple[Any, ...]
KEYS = ("pair", "size", "method", "share", "learning_rate", "seed")
"""What tells a run from the others of its table; of M₀, which no run trains, it is the pair and the method alone."""
PACKED = ("counts", "test", "test_interpolated")
"""Fields with something of every test example."""
FIRST = (
    *KEYS,
    "alpha",
    *("validation/domain", "validation/general"),
    *("num_domain", "drawn/domain", "drawn/general", "flipped"),
    *("seconds", "processor_seconds", "precision", "machine"),
)
"""The first columns; the others follow by name."""


def key_of(entry: Mapping[str, Any]) -> Key:
    """Return what tells a run from others.

    >>> key_of({"pair": "lm-law", "method": "base", "machine": "M"})
    ('lm-law', None, 'base', None, None, None)
    """
    names = ("pair", "method") if entry["method"] == BASE else KEYS
    return tuple(entry.get(name) if name in names else None for name in KEYS)


@dataclass(frozen=True)
class Store:
    """The results of a comparison.

    Args:
        table: the file of tab-separated values; the compressed fields lie beside it.
    """

    table: Path

    def rows(self) -> dict[Key, Entry]:
        """Return all runs without the fields of `PACKED`."""
        if not self.table.exists():
            return {}
        with open(self.table, encoding="utf-8", newline="") as file:
            entries = [_nested(row) for row in csv.DictReader(file, dialect="excel-tab")]
        return {key_of(entry): entry for entry in entries}

    def load(self) -> dict[str, list[Entry]]:
        """Return all runs with all of their fields, by pair."""
        found: dict[str, list[Entry]] = {}
        packed = self.packed()
        for key, row in self.rows().items():
            found.setdefault(row["pair"], []).append(row | packed[key])
        return found

    def packed(self) -> dict[Key, Entry]:
        """Return the fields of `PACKED` of all runs."""
        if not self.predictions.exists():
            return {}
        with gzip.open(self.predictions, "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return {key_of(line): _only(line, PACKED) for line in lines}

    def add(self, entry: Entry) -> None:
        """Add a run, or replace it. The table, which says that it is done, is written last."""
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.table}.lock"):
            self.write_packed({**self.packed(), key_of(entry): _only(entry, PACKED)})
            own = {name: value for name, value in entry.items() if name not in PACKED}
            self.write_rows({**self.rows(), key_of(entry): own}.values())

    @property
    def predictions(self) -> Path:
        """The file of the compressed fields."""
        return self.table.with_suffix(".jsonl.gz")

    def write_rows(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write the table anew."""
        rows = [dict(_flat(entry)) for entry in sorted(entries, key=lambda entry: _order(key_of(entry)))]
        names = {name for row in rows for name in row}
        header = [name for name in FIRST if name in names] + sorted(names.difference(FIRST))
        text = io.StringIO()
        writer = csv.DictWriter(text, header, dialect="excel-tab", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _replace(self.table, text.getvalue().encode())

    def write_packed(self, packed: Mapping[Key, Mapping[str, Any]]) -> None:
        """Write the compressed fields anew; equal ones make equal files."""
        lines = []
        for key in sorted(packed, key=_order):
            known = {name: value for name, value in zip(KEYS, key, strict=True) if value is not None}
            lines.append(json.dumps({**known, **packed[key]}) + "\n")
        _replace(self.predictions, gzip.compress("".join(lines).encode(), mtime=0))


def _only(entry: Mapping[str, Any], names: Iterable[str]) -> Entry:
    return {name: entry[name] for name in names if name in entry}


def _order(key: Key) -> list[tuple[bool, bool, Any]]:
    """Return a key to sort by: nothing before numbers, numbers before texts."""
    return [(value is not None, isinstance(value, str), value or 0) for value in key]


def _flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a column and a value for every number and text: `validation/domain` for `{"validation": {"domain": …}}`."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif value is not None:
            yield prefix + name, value


def _nested(row: Mapping[str, str]) -> Entry:
    """Return the entry of a row; an empty cell says nothing."""
    entry: Entry = {}
    for column, text in row.items():
        if text:
            *path, name = column.split("/")
            place = entry
            for part in path:
                place = place.setdefault(part, {})
            place[name] = _parsed(text)
    return entry


def _parsed(text: str) -> Any:
    for kind in (int, float):  # which reads the nan and inf of a training that broke down, too
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its lock is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# What a model made of every test example, and short texts that hold it.

MILLI = 1000.0  # losses are kept in thousandths of a nat


@dataclass(frozen=True)
class Outcomes:
    """Numerator and denominator of a metric for every example."""

    numerators: Array
    denominators: Array

    @property
    def value(self) -> float:
        """The metric; 0 where there is nothing to divide by."""
        total = self.denominators.sum()
        return float(self.numerators.sum() / total) if total else 0.0


def outcomes_of(metric: str, found: Predictions, label_names: Sequence[str] | None) -> Outcomes:
    """What a metric needs of predictions.

    Args:
        metric: accuracy, f1 or loss.
        found: what `hf_interp.selection.scoring.predict` returns.
        label_names: the tags, for f1.
    """
    if metric == "loss":
        return Outcomes(found.losses, found.counts)
    predicted: Any = found.whole.predictions
    predicted = predicted[0] if isinstance(predicted, tuple) else predicted
    labels: Any = found.whole.label_ids
    if metric == "accuracy":
        return Outcomes((predicted.argmax(-1) == labels).astype(np.float64), np.ones(len(labels)))
    counts = [
        _entity_counts(row[keep], truth[keep], label_names or [])
        for row, truth, keep in zip(predicted.argmax(-1), labels, labels != -100, strict=True)
    ]
    return Outcomes(*np.array(counts, dtype=np.float64).reshape(-1, 2).T)


def _entity_counts(predicted: Any, truth: Any, names: Sequence[str]) -> tuple[int, int]:
    from seqeval.metrics.sequence_labeling import get_entities

    found, wanted = (set(get_entities([names[index] for index in row])) for row in (predicted, truth))
    return 2 * len(found & wanted), len(found) + len(wanted)


def pack(metric: str, outcomes: Outcomes) -> str:
    """Outcomes as a text: bits in hexadecimal digits, counts of entities or mean losses as compressed bytes."""
    if metric == "accuracy":
        return np.packbits(outcomes.numerators.astype(bool)).tobytes().hex()
    if metric == "f1":
        counts = np.stack([outcomes.numerators, outcomes.denominators])
        return _compress(counts.clip(0, 255).astype(np.uint8))
    means = outcomes.numerators / np.maximum(outcomes.denominators, 1)
    return _compress(np.rint(MILLI * means).clip(0, 65535).astype("<u2"))


def unpack(metric: str, text: str, counts: Sequence[int]) -> Outcomes:
    """What `pack` has packed, up to the rounding of losses.

    Args:
        metric: as it was packed.
        text: of `pack`.
        counts: the denominators of accuracy and loss; of f1 only how many examples there are.
    """
    weights = np.asarray(counts, dtype=np.float64)
    if metric == "accuracy":
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=len(weights))
        return Outcomes(bits.astype(np.float64), weights)
    data = zlib.decompress(base64.b64decode(text))
    if metric == "f1":
        numerators, denominators = np.frombuffer(data, dtype=np.uint8).reshape(2, len(weights)).astype(np.float64)
        return Outcomes(numerators, denominators)
    return Outcomes(np.frombuffer(data, dtype="<u2").astype(np.float64) / MILLI * weights, weights)


def counts_of(metric: str, outcomes: Mapping[str, Outcomes]) -> dict[str, list[int]]:
    """What `unpack` must be told of each side, which is the same for every run."""
    return {side: found.denominators.astype(int).tolist() for side, found in outcomes.items()}


def _compress(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
