"""Corpora: the parts of a mixture, where they come from, and how their examples are read."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import datasets
import torch

from hf_interp.mixture.apportionment import SIDES, CorpusSpec, Side, Unit
from hf_interp.mixture.packing import mean_tokens
from hf_interp.utils.errors import did_you_mean

CONTENT_ROWS = 64  # rows by which a corpus is known again


@dataclass(frozen=True)
class Corpus:
    """A named part of a mixture.

    Args:
        name: how it is called in logs and files; unique.
        dataset: a `datasets.Dataset`, any map-style torch dataset, or a stream (a `datasets.IterableDataset` or another
            torch `IterableDataset`), which is read in its own order.
        side: "general" (drawn with share 1 − α) or "domain" (drawn with share α).
        share: share of the side; give it to all corpora of a side or to none (then in proportion to their lengths). Or
            a share on each side, as `{"general": 0.7, "domain": 0.2}`; `side` then says where it is counted.
        max_passes: refuse to read the corpus more often than this; `None` for as often as it takes.
        mean_tokens: mean number of tokens of an example, for a mixture by tokens; measured where it is not given and
            the corpus has a length and a column `input_ids`.
        objective: what the corpus trains, by a name in the trainer's `objectives`; `None` for the model's own task.
    """

    name: str
    dataset: Any
    side: Side = "domain"
    share: float | Mapping[str, float] | None = None
    max_passes: float | None = None
    mean_tokens: float | None = None
    objective: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the corpus can only be read from its beginning on."""
        return isinstance(self.dataset, (datasets.IterableDataset, torch.utils.data.IterableDataset))

    def spec(self, unit: Unit = "examples") -> CorpusSpec:
        """Return what a plan that counts `unit` must know of it."""
        length = self.mean_tokens
        if unit == "tokens" and length is None and not self.is_stream:
            length = mean_tokens(self.dataset)
        return CorpusSpec(
            name=self.name,
            side=self.side,
            num_examples=None if self.is_stream else len(self.dataset),
            share=self.share,
            max_passes=self.max_passes,
            mean_tokens=length,
            content=self._content,
        )

    @cached_property
    def _content(self) -> str | None:
        return content_fingerprint(self.dataset)


def content_fingerprint(dataset: Any) -> str | None:
    """Return 12 hexadecimal digits over up to 64 evenly spaced rows of a `datasets.Dataset`; `None` for others.

    Token ids and labels decide, or all columns if there are no token ids.
    """
    if not isinstance(dataset, datasets.Dataset) or len(dataset) == 0:
        return None
    columns = [name for name in ("input_ids", "labels", "label") if name in dataset.column_names]
    if "input_ids" not in columns:
        columns = sorted(dataset.column_names)
    count = min(len(dataset), CONTENT_ROWS)
    rows = [index * (len(dataset) - 1) // max(count - 1, 1) for index in range(count)]
    sample = dataset.with_format(None).select_columns(columns).with_format("arrow")[rows]
    text = repr((len(dataset), [[name, sample[name].to_pylist()] for name in columns]))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_mixture(train_dataset: Any) -> bool:
    """Whether a `train_dataset` is of a form that `as_corpora` takes; anything else is left to `Trainer`."""
    is_list = isinstance(train_dataset, (list, tuple)) and len(train_dataset) > 0
    return isinstance(train_dataset, Mapping) or (is_list and all(isinstance(part, Corpus) for part in train_dataset))


def as_corpora(train_dataset: Mapping[str, Any] | Sequence[Corpus]) -> list[Corpus]:
    """Return the corpora of a mixture: a list of them, or datasets by side, as one each or several by name."""
    if not isinstance(train_dataset, Mapping):
        return [_check_dataset(corpus) for corpus in train_dataset]
    corpora = []
    for side, part in train_dataset.items():
        if side not in SIDES:
            raise ValueError(
                f"A mixture must have the keys 'general' and 'domain', got {list(train_dataset)}."
                + did_you_mean(side, SIDES)
            )
        if isinstance(part, datasets.DatasetDict):
            raise TypeError(
                f"The {side} side must be a dataset, got a DatasetDict with the splits {list(part)}. Choose one."
            )
        parts = part if isinstance(part, Mapping) else {side: part}
        corpora += [_check_dataset(Corpus(name, dataset, side)) for name, dataset in parts.items()]
    return corpora


def check_columns(corpora: Sequence[Corpus]) -> None:
    """Raise `ValueError` where corpora of one objective differ in their columns or the names of their classes."""
    known = [corpus for corpus in corpora if _columns(corpus.dataset) is not None]
    for one, other in permutations(known, 2):
        if one.objective != other.objective:
            continue
        columns, others = _columns(one.dataset) or [], _columns(other.dataset) or []
        if missing := sorted(set(others) - set(columns)):
            raise ValueError(
                f"Corpus {one.name!r} lacks the columns {missing} that corpus {other.name!r} has; it has {columns}. "
                f"Give all corpora the same columns, or remove those from {other.name!r}."
            )
        for column, feature in (one.dataset.features or {}).items():
            kinds = feature, (other.dataset.features or {}).get(column)
            named = [kind.names for kind in kinds if isinstance(kind, datasets.ClassLabel)]
            if len(named) == 2 and named[0] != named[1]:
                raise ValueError(
                    f"The labels of corpora {one.name!r} and {other.name!r} differ in column {column!r}: {named[0]} "
                    f"and {named[1]}. Map both to one list of labels."
                )


def check_labels(corpora: Sequence[Corpus], num_labels: int) -> None:
    """Raise `ValueError` for class labels that a model with `num_labels` classes does not have."""
    for corpus in corpora:
        columns = _columns(corpus.dataset) or []
        column = next((name for name in ("labels", "label") if name in columns), None)
        if column is None or corpus.is_stream:
            continue
        if getattr(corpus.dataset.features[column], "dtype", None) not in ("int64", "int32"):
            continue  # a list of labels, or no classes at all
        labels = corpus.dataset.unique(column)
        if wrong := [label for label in labels if label is None or not 0 <= label < num_labels]:
            below = any(label is None or label < 0 for label in wrong)  # which no number of classes would help
            remedy = "" if below else f", or load the model with num_labels={max(wrong) + 1}"
            raise ValueError(
                f"Corpus {corpus.name!r} has the label {wrong[0]} in column {column!r}, but the model has {num_labels} "
                f"labels (0 … {num_labels - 1}). Map the labels{remedy}."
            )


def _check_dataset(corpus: Corpus) -> Corpus:
    if not corpus.is_stream and not (hasattr(corpus.dataset, "__getitem__") and hasattr(corpus.dataset, "__len__")):
        raise TypeError(
            f"Corpus {corpus.name!r} must be a dataset with a length and random access, or an IterableDataset, got "
            f"{type(corpus.dataset).__name__}."
        )
    return corpus


def _columns(dataset: Any) -> list[str] | None:
    """Return the column names where a dataset knows them."""
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)) and dataset.column_names is not None:
        return list(dataset.column_names)
    return None
