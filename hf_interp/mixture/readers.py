"""How examples are read from a corpus: by index, by index through Arrow, or in order from a stream."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.permutations import IntArray
from hf_interp.utils.errors import ReadError

HELD_IN_MEMORY = 32 * 2**20  # bytes of corpora that share a reader, at the most
HELD_AFTER = 128  # rows; a short look at a corpus does not copy it

Values = np.ndarray[Any, Any]


class Column(NamedTuple):
    """The numbers of some rows in one array: one a row, equally many a row, or as many as `borders` divide off."""

    numbers: Values
    borders: IntArray | None = None

    def take(self, places: IntArray) -> "Column":
        """Return some of the rows."""
        if self.borders is None:
            return Column(self.numbers[places])
        begins = self.borders[places]
        lengths = self.borders[places + 1] - begins
        borders = np.append(0, np.cumsum(lengths))
        return Column(self.numbers[np.repeat(begins - borders[:-1], lengths) + np.arange(borders[-1])], borders)

    def values(self, form: str | None) -> Sequence[Any]:
        """Return what a dataset of a format gives for each row."""
        found = _to_form(self.numbers, form, is_scalar=self.borders is None and self.numbers.ndim == 1)
        if self.borders is not None:
            return [found[begin:end] for begin, end in pairwise(self.borders.tolist())]
        return found  # type: ignore[no-any-return]  # its rows, when it is gone through


class Columns(NamedTuple):
    """Some rows, column by column; texts and what has gaps are Arrow's. It is small, and fast to send to a process."""

    names: list[str]
    columns: list[Column | pa.Array]
    form: str | None

    @classmethod
    def of(cls, table: pa.Table, form: str | None) -> "Columns | None":
        """Return the columns of a table in one piece; `None` where only a dataset of the format can tell its rows."""
        found = [_column(column.chunk(0)) for column in table.columns]
        is_told = form is None or all(isinstance(column, Column) for column in found)
        return cls(table.column_names, found, form) if is_told else None

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        first = self.columns[0]
        return (
            len(first.numbers if first.borders is None else first.borders[1:])
            if isinstance(first, Column)
            else len(first)
        )

    def take(self, places: IntArray) -> "Columns":
        """Return some of the rows."""
        found = [each.take(places if isinstance(each, Column) else pa.array(places)) for each in self.columns]
        return self._replace(columns=found)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as a dataset gives them."""
        columns = [each.values(self.form) if isinstance(each, Column) else each.to_pylist() for each in self.columns]
        return [dict(zip(self.names, values, strict=True)) for values in zip(*columns, strict=True)]


class MapReader:
    """Reads any map-style dataset, in one call where it can read several examples at once."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def pick(self, indices: IntArray) -> list[Any]:
        """Return the examples at `indices`; how they are to be sent to a process is not known."""
        return self.read(indices)

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
    memory in one piece, from which NumPy picks rows many times faster. An index counts through all datasets.
    """

    def __init__(self, *parts: datasets.Dataset) -> None:
        self.parts = parts
        self.form = parts[0].format["type"]
        self.borders = np.cumsum([0, *map(len, parts)])
        self.held: Columns | None = None
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
        return unpack([(None, self.pick(indices))])

    def pick(self, indices: IntArray) -> Columns | list[dict[str, Any]]:
        """Return the rows at `indices` in columns, or as they are where only the dataset can tell them."""
        if self._num_read >= HELD_AFTER:
            self.hold()
        self._num_read += len(indices)
        found = Columns.of(self._gather(indices), self.form) if self.held is None else self.held.take(indices)
        if found is not None:
            return found
        parts = self._part_of(indices).tolist()
        return [self.parts[part][int(row - self.borders[part])] for part, row in zip(parts, indices, strict=True)]

    def hold(self) -> None:
        """Hold the rows in memory from now on, if they are few."""
        if self._may_hold:
            whole = pa.concat_tables([table[:] for table in self._tables]).combine_chunks()
            self.held, self._may_hold = Columns.of(whole, self.form), False

    def __getstate__(self) -> dict[str, Any]:  # a process that does not inherit what is held gets it sooner by itself
        return {**self.__dict__, "held": None, "_may_hold": self._may_hold or self.held is not None}

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


Picked = list[tuple[IntArray | None, Columns | list[Any]]]
"""Rows of one reader after the other, with their places among all; the first may have all."""


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
        return unpack(self.pick(corpus, example))

    def pick(self, corpus: IntArray, example: IntArray) -> Picked:
        """Return the same as it is sent from process to process: in columns, as far as they are known."""
        reader_of = self._reader_of[corpus]
        position = example + self._offset[corpus]
        first = int(reader_of[0])
        if first >= 0 and (reader_of == first).all():  # the usual case
            return [(None, self._readers[first].pick(position))]
        found: Picked = [(None, [None] * len(corpus))]
        for reader in np.unique(reader_of).tolist():
            if reader >= 0:
                places = np.flatnonzero(reader_of == reader)
                found.append((places, self._readers[reader].pick(position[places])))
        return found

    def hold(self) -> None:
        """Hold small corpora in memory from now on, before processes are forked, which share it."""
        for reader in self._readers:
            if isinstance(reader, ArrowReader):
                reader.hold()


def unpack(picked: Picked) -> list[Any]:
    """Return the examples of what was picked."""
    rows: list[Any] = []
    for places, some in picked:
        found = some.rows() if isinstance(some, Columns) else some
        if places is None:
            rows = found
            continue
        for place, one in zip(places.tolist(), found, strict=True):
            rows[place] = one
    return rows


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


def _column(column: pa.Array) -> Column | pa.Array:
    """Return a column as an array of NumPy, without a copy, or as it is where it holds texts or has gaps."""
    is_list = _is_list(column.type)
    values = column.flatten() if is_list else column
    if column.null_count or values.null_count or pa.types.is_string(column.type):
        return column
    numbers = values.to_numpy(zero_copy_only=False)
    if not is_list:
        return Column(numbers)
    borders = column.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(borders)
    if (lengths == lengths[:1]).all():
        return Column(numbers.reshape(len(column), *lengths[:1]))
    return Column(numbers, borders - borders[0])


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
