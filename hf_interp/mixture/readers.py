"""How examples are read from a corpus: by index, by index through Arrow, or in order from a stream."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.permutations import IntArray
from hf_interp.utils.errors import ReadError

HELD_IN_MEMORY = 32 * 2**20  # bytes of corpora that share a reader, at the most
HELD_AFTER = 128  # rows; a short look at a corpus does not copy it


class MapReader:
    """Reads any map-style dataset, in one call where it can read several examples at once."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def read(self, indices: IntArray) -> list[Any]:
        """Return the examples at `indices`."""
        dataset = self.corpus.dataset
        try:
            if hasattr(dataset, "__getitems__"):
                return list(dataset.__getitems__(indices.tolist()))
            return [dataset[index] for index in indices.tolist()]
        except Exception as error:
            raise ReadError(
                f"Corpus {self.corpus.name!r} failed at the examples {indices.tolist()}: {type(error).__name__}: "
                f"{error}"
            ) from error


class ArrowReader:
    """Reads rows of numbers, texts and lists of numbers from one or more `datasets.Dataset`s of the same columns.

    The rows are those of the datasets themselves, as Python objects, NumPy arrays or tensors, but made from whole
    columns by NumPy, where a dataset makes one object a value. Once some rows have been read, small corpora are held in
    memory in one piece, from which Arrow picks rows several times faster. An index counts through all datasets.
    """

    def __init__(self, *parts: datasets.Dataset) -> None:
        self.parts = parts
        self.form = parts[0].format["type"]
        self.borders = np.cumsum([0, *map(len, parts)])
        self.held: pa.Table | None = None
        self._tables = [part.with_format("arrow") for part in parts]
        self._may_hold = sum(map(_size, parts)) <= HELD_IN_MEMORY
        self._num_read = 0

    @staticmethod
    def suits(dataset: Any) -> bool:
        """Whether the rows of a dataset can be read so."""
        if not isinstance(dataset, datasets.Dataset) or list(dataset.format["columns"]) != dataset.column_names:
            return False
        kinds = dataset.features.arrow_schema.types
        if dataset.format["type"] is None:
            return all(_is_plain(kind) for kind in kinds)
        by_default = dataset.format["type"] in ("numpy", "torch") and not dataset.format["format_kwargs"]
        return by_default and all(_is_plain(kind) and not pa.types.is_string(kind) for kind in kinds)

    def read(self, indices: IntArray) -> list[dict[str, Any]]:
        """Return the rows at `indices`."""
        if self.held is None and self._may_hold and self._num_read >= HELD_AFTER:
            self.held = pa.concat_tables([table[:] for table in self._tables]).combine_chunks()
        self._num_read += len(indices)
        # in one piece, as what it is taken from
        table = self._gather(indices) if self.held is None else self.held.take(pa.array(indices))
        columns = [_values(column.chunk(0), self.form) for column in table.columns]
        if any(values is None for values in columns):
            parts = self._part_of(indices).tolist()
            return [self.parts[part][int(row - self.borders[part])] for part, row in zip(parts, indices, strict=True)]
        names = table.column_names
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _gather(self, indices: IntArray) -> pa.Table:
        part_of = self._part_of(indices)
        tables, places = [], []
        for part in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == part)
            tables.append(self._tables[part][(indices[here] - self.borders[part]).tolist()])
            places.append(here)
        table = pa.concat_tables(tables).combine_chunks()
        return table if len(tables) == 1 else table.take(pa.array(np.argsort(np.concatenate(places))))

    def _part_of(self, indices: IntArray) -> IntArray:
        return np.searchsorted(self.borders, indices, side="right") - 1


class CorpusReaders:
    """Readers for the corpora of a mixture but its streams; small ones that are alike share one."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._readers: list[MapReader | ArrowReader] = []
        self._reader_of = np.full(len(corpora), -1)
        self._offset = np.zeros(len(corpora), np.int64)
        alike: dict[str, list[int]] = {}
        for index, corpus in enumerate(corpora):
            key = f"alone {index}"
            if ArrowReader.suits(corpus.dataset) and _size(corpus.dataset) <= HELD_IN_MEMORY / len(corpora):
                key = f"{corpus.dataset.format['type']} {corpus.dataset.features.arrow_schema}"
            if not corpus.is_stream:
                alike.setdefault(key, []).append(index)
        for number, members in enumerate(alike.values()):
            parts = [corpora[index] for index in members]
            self._readers.append(
                open_reader(parts[0]) if len(parts) == 1 else ArrowReader(*(part.dataset for part in parts))
            )
            self._reader_of[members] = number
            self._offset[members] = np.cumsum([0, *(len(part.dataset) for part in parts[:-1])])

    def read(self, corpus: IntArray, example: IntArray) -> list[Any]:
        """Return example number `example[i]` of corpus number `corpus[i]`, for all i; nothing for streams."""
        reader_of = self._reader_of[corpus]
        position = example + self._offset[corpus]
        first = int(reader_of[0])
        if first >= 0 and (reader_of == first).all():  # the usual case
            return self._readers[first].read(position)
        found: list[Any] = [None] * len(corpus)
        for reader in np.unique(reader_of).tolist():
            if reader >= 0:
                places = np.flatnonzero(reader_of == reader)
                for place, one in zip(places.tolist(), self._readers[reader].read(position[places]), strict=True):
                    found[place] = one
        return found


def open_reader(corpus: Corpus) -> MapReader | ArrowReader:
    """Return the fastest reader for a corpus with random access."""
    return ArrowReader(corpus.dataset) if ArrowReader.suits(corpus.dataset) else MapReader(corpus)


def reads_plainly(dataset: Any) -> bool:
    """Whether reading surely draws no random numbers: a `datasets.Dataset` without a transform of the user's."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def _is_plain(kind: pa.DataType) -> bool:
    if _is_list(kind):
        kind = kind.value_type
    elif pa.types.is_string(kind):
        return True
    return pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _size(dataset: datasets.Dataset) -> float:
    """Return the bytes of a dataset's rows; of what it stands on, some may be selected away."""
    return dataset.data.nbytes * len(dataset) / max(dataset.data.num_rows, 1)


def _values(column: pa.Array, form: str | None) -> Sequence[Any] | None:
    """Return the values of a column as a dataset of this format gives them; `None` where only the dataset can tell."""
    if column.null_count or pa.types.is_string(column.type):
        return column.to_pylist() if form is None else None
    if not _is_list(column.type):
        return _to_form(column.to_numpy(zero_copy_only=False), form, is_scalar=True)
    offsets = column.offsets.to_numpy()
    values = column.values[int(offsets[0]) : int(offsets[-1])]
    if values.null_count:
        return column.to_pylist() if form is None else None
    lengths = np.diff(offsets)
    if form is None and (lengths == lengths[0]).all():
        return values.to_numpy().reshape(len(lengths), lengths[0]).tolist()
    flat, borders = _to_form(values.to_numpy(), form), (offsets - offsets[0]).tolist()
    return [flat[begin:end] for begin, end in pairwise(borders)]


def _to_form(values: np.ndarray[Any, Any], form: str | None, *, is_scalar: bool = False) -> Any:
    """Return numbers as `datasets` gives them: integers of 64 bits, others of 32, NumPy's scalars as they are."""
    if form is None:
        return values.tolist()
    if form == "numpy" and is_scalar:
        return list(values)
    is_whole = np.issubdtype(values.dtype, np.integer)
    values = values.astype(np.int64 if is_whole else np.float32)  # a copy: Arrow's is fixed
    if form == "numpy":
        return values
    tensor = torch.from_numpy(values)
    return tensor.unbind() if is_scalar else tensor
