"""How examples are read from a corpus: by index, by index through Arrow, or in order from a stream."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import datasets
import pyarrow as pa

from hf_interp.corpora import Corpus
from hf_interp.permutations import IntArray

HELD_IN_MEMORY = 32 * 2**20  # bytes of a corpus, at the most


class MapReader:
    """Reads any map-style dataset, in one call where it can read several examples at once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def read(self, indices: IntArray) -> list[Any]:
        """The examples at `indices`."""
        if hasattr(self.dataset, "__getitems__"):
            return list(self.dataset.__getitems__(indices.tolist()))
        return [self.dataset[index] for index in indices.tolist()]


class ArrowReader:
    """Reads rows of plain numbers, texts and lists of numbers from a `datasets.Dataset` in its default format.

    The rows are those of the dataset itself. They are made from whole columns by NumPy, where the dataset asks Arrow
    for one Python object a value, which is most of the time that reading tokenised rows takes. A small corpus is held
    in memory in one piece, from which Arrow picks rows several times faster than from a large one's many.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.tables = dataset.with_format("arrow")
        size = dataset.data.nbytes * len(dataset) / max(dataset.data.num_rows, 1)  # the rest may be selected away
        self.held = self.tables[:].combine_chunks() if size <= HELD_IN_MEMORY else None

    @staticmethod
    def suits(dataset: Any) -> bool:
        """Whether the rows of a dataset can be read so."""
        return (
            isinstance(dataset, datasets.Dataset)
            and dataset.format["type"] is None
            and list(dataset.format["columns"]) == dataset.column_names
            and all(_is_plain(kind) for kind in dataset.features.arrow_schema.types)
        )

    def read(self, indices: IntArray) -> list[dict[str, Any]]:
        """The rows at `indices`."""
        if self.held is None:
            table = self.tables[indices.tolist()].combine_chunks()
        else:
            table = self.held.take(pa.array(indices))  # in one piece, as what it is taken from
        names = table.column_names
        columns = [_to_python(column.chunk(0)) for column in table.columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def open_reader(dataset: Any) -> MapReader | ArrowReader:
    """The fastest reader for a map-style dataset."""
    return ArrowReader(dataset) if ArrowReader.suits(dataset) else MapReader(dataset)


def reads_plainly(dataset: Any) -> bool:
    """Whether reading surely draws no random numbers: a `datasets.Dataset` without a transform of the user's."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


class StreamReader:
    """Random access, forwards, to a stream that begins anew at its end.

    An ordinal counts examples from the first of the first pass on. The slots of a batch are shuffled, so examples are
    asked for slightly out of order: what is passed over is kept until it is asked for or falls behind.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._next, self._passes = 0, 0
        self._kept: dict[int, Any] = {}
        self._iterator: Iterator[Any] = iter(())

    def read(self, ordinals: Sequence[int], oldest: int) -> list[Any]:
        """The examples with these ordinals; none below `oldest` will be asked for again."""
        if any(ordinal < self._next and ordinal not in self._kept for ordinal in ordinals):
            self._rewind()  # a new run over the data
        self._kept = {ordinal: example for ordinal, example in self._kept.items() if ordinal >= oldest}
        for ordinal in range(self._next, max(ordinals) + 1):
            example = self._advance()
            if ordinal >= oldest:
                self._kept[ordinal] = example
        self._next = max(self._next, max(ordinals) + 1)
        return [self._kept[ordinal] for ordinal in ordinals]

    def _rewind(self) -> None:
        self._next, self._passes, self._kept, self._iterator = 0, 0, {}, iter(())

    def _advance(self) -> Any:
        for example in self._iterator:
            return example
        self._begin_pass()
        for example in self._iterator:
            return example
        raise ValueError(f"Corpus {self.corpus.name!r} is an empty stream. Check its path, split and filters.")

    def _begin_pass(self) -> None:
        limit = self.corpus.max_passes
        if limit is not None and self._passes >= limit:
            raise ValueError(
                f"Corpus {self.corpus.name!r} has ended after {self._passes} passes and its `max_passes` is {limit:g}. "
                "Take fewer steps, lower its share, or raise `max_passes`."
            )
        if isinstance(self.corpus.dataset, datasets.IterableDataset):
            self.corpus.dataset.set_epoch(self._passes)  # a stream with a shuffle buffer gets a new order
        self._passes += 1
        self._iterator = iter(self.corpus.dataset)


def _is_plain(kind: pa.DataType) -> bool:
    return _is_number(kind) or pa.types.is_string(kind) or (_is_list(kind) and _is_number(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _to_python(column: pa.Array) -> list[Any]:
    if column.null_count or pa.types.is_string(column.type):
        return column.to_pylist()
    if not _is_list(column.type):
        return column.to_numpy().tolist()
    offsets = column.offsets.to_numpy()
    values = column.values[int(offsets[0]) : int(offsets[-1])]
    if values.null_count:
        return column.to_pylist()
    lengths = offsets[1:] - offsets[:-1]
    if (lengths == lengths[0]).all():
        return values.to_numpy().reshape(len(lengths), lengths[0]).tolist()
    flat, borders = values.to_numpy().tolist(), (offsets - offsets[0]).tolist()
    return [flat[begin:end] for begin, end in pairwise(borders)]
