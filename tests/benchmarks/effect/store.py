"""Results of runs on disk: a table with a row a run, and beside it what every test example came to.

`effect.tsv` has a column for every number. `effect.jsonl.gz` has what the intervals are computed from, a line a run.
Both are sorted and written whole under a lock, so that processes can add to them at the same time.
"""

import csv
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from effect.methods import BASE

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
