"""How examples are read from a corpus: by index, by index through Arrow, or in order from a stream."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.distributed import split_dataset_by_node

from hf_interp.corpora import Corpus
from hf_interp.permutations import IntArray

HELD_IN_MEMORY = 32 * 2**20  # bytes of corpora that share a reader, at the most
HELD_AFTER = 1024  # rows; a short look at a corpus does not copy it


class MapReader:
    """Reads any map-style dataset, in one call where it can read several examples at once."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def read(self, indices: IntArray) -> list[Any]:
        """The examples at `indices`."""
        dataset = self.corpus.dataset
        try:
            if hasattr(dataset, "__getitems__"):
                return list(dataset.__getitems__(indices.tolist()))
            return [dataset[index] for index in indices.tolist()]
        except Exception as error:
            raise RuntimeError(
                f"Corpus {self.corpus.name!r} failed at the examples {indices.tolist()}: {type(error).__name__}: "
                f"{error}"
            ) from error


class ArrowReader:
    """Reads rows of numbers, texts and lists of numbers from one or more `datasets.Dataset`s of the same columns.

    The rows are those of the datasets themselves, as Python objects, NumPy arrays or tensors. They are made from whole
    columns by NumPy, where a dataset makes one object a value, which is most of the time that reading tokenised rows
    takes. Once some rows have been read, small corpora are held in memory in one piece, from which Arrow picks rows
    several times faster than from a large one's many.

    Args:
        parts: the datasets; an index counts through all of them.
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
        """The rows at `indices`."""
        if self.held is None and self._may_hold and self._num_read >= HELD_AFTER:
            self.held = pa.concat_tables([table[:] for table in self._tables]).combine_chunks()
        self._num_read += len(indices)
        # in one piece, as what it is taken from
        table = self._gather(indices) if self.held is None else self.held.take(pa.array(indices))
        columns = [_values(column.chunk(0), self.form) for column in table.columns]
        if any(values is None for values in columns):
            return self._read_singly(indices)
        names = table.column_names
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _gather(self, indices: IntArray) -> pa.Table:
        part_of = np.searchsorted(self.borders, indices, side="right") - 1
        tables, places = [], []
        for part in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == part)
            tables.append(self._tables[part][(indices[here] - self.borders[part]).tolist()])
            places.append(here)
        table = pa.concat_tables(tables).combine_chunks()
        return table if len(tables) == 1 else table.take(pa.array(np.argsort(np.concatenate(places))))

    def _read_singly(self, indices: IntArray) -> list[dict[str, Any]]:
        part_of = np.searchsorted(self.borders, indices, side="right") - 1
        return [self.parts[part][index - self.borders[part]] for part, index in zip(part_of, indices, strict=True)]


class Readers:
    """Readers for the corpora of a mixture that have random access; small ones that are alike share one.

    Args:
        corpora: the corpora; streams among them are left out.
    """

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._readers: list[MapReader | ArrowReader] = []
        self._reader_of = np.full(len(corpora), -1)
        self._offset = np.zeros(len(corpora), np.int64)
        alike: dict[str, list[int]] = {}
        for index, corpus in enumerate(corpora):
            if corpus.is_stream:
                continue
            if ArrowReader.suits(corpus.dataset) and _size(corpus.dataset) <= HELD_IN_MEMORY / len(corpora):
                key = f"{corpus.dataset.format['type']} {corpus.dataset.features.arrow_schema}"
                alike.setdefault(key, []).append(index)
            else:
                self._add(open_reader(corpus), [index], [0])
        for members in alike.values():
            reader = ArrowReader(*(corpora[index].dataset for index in members))
            self._add(reader, members, reader.borders[:-1])

    def read(self, corpus: IntArray, example: IntArray) -> list[Any]:
        """Example number `example[i]` of corpus number `corpus[i]`, for all i; nothing for streams."""
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

    def _add(self, reader: MapReader | ArrowReader, members: Sequence[int], offsets: Sequence[int] | IntArray) -> None:
        self._readers.append(reader)
        self._reader_of[members] = len(self._readers) - 1
        self._offset[members] = offsets


def open_reader(corpus: Corpus) -> MapReader | ArrowReader:
    """The fastest reader for a corpus with random access."""
    return ArrowReader(corpus.dataset) if ArrowReader.suits(corpus.dataset) else MapReader(corpus)


def reads_plainly(dataset: Any) -> bool:
    """Whether reading surely draws no random numbers: a `datasets.Dataset` without a transform of the user's."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


class StreamReader:
    """Reads a stream in its own order: one reader's part of it, from pass to pass.

    Streams have no random access. Their examples are divided among the readers of a run: a `datasets.IterableDataset`
    by its shards, and inside a shard, where there are fewer shards than readers, by turns; any other stream by turns.

    Args:
        corpus: the corpus.
        reader, num_readers: which of how many readers this is.
        state: where to begin, from `state_dict` of the same reader.

    Attributes:
        num_read (`int`): examples read so far, over all passes.
    """

    def __init__(
        self, corpus: Corpus, reader: int = 0, num_readers: int = 1, state: Mapping[str, Any] | None = None
    ) -> None:
        self.corpus, self.reader, self.num_readers = corpus, reader, num_readers
        self.num_read, self._passes, self._in_pass = 0, 0, 0
        self._source = _part(corpus.dataset, reader, num_readers)
        self._iterator: Iterator[Any] = iter(())
        self._loaded = state  # until something is read, as a stream that has not begun cannot tell its place
        if state is not None:
            self.num_read, self._passes, self._in_pass = state["num_read"], state["passes"], state["in_pass"]
            if self._passes:
                self._iterator = self._open(state["stream"])

    def read(self, count: int) -> list[Any]:
        """The next examples."""
        return [self._advance() for _ in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """The place after the last example read, as plain values."""
        if self._loaded is not None:
            return dict(self._loaded)
        keeps_state = hasattr(self._source, "state_dict") and self._passes
        return {
            "num_read": self.num_read,
            "passes": self._passes,
            "in_pass": self._in_pass,
            "stream": self._source.state_dict() if keeps_state else None,
        }

    def _advance(self) -> Any:
        example = self._next()
        if example is _END:
            self._begin_pass()
            example = self._next()
        if example is _END:
            raise ValueError(
                f"Corpus {self.corpus.name!r} is an empty stream for reader {self.reader + 1} of {self.num_readers}. "
                "Check its path, split and filters, and that it has at least as many examples as there are readers "
                "(processes times workers)."
            )
        self.num_read += 1
        self._in_pass += 1
        self._loaded = None
        return example

    def _next(self) -> Any:
        try:
            return next(self._iterator, _END)
        except Exception as error:
            raise RuntimeError(
                f"The stream of corpus {self.corpus.name!r} failed after {self._in_pass} examples of pass "
                f"{self._passes} (reader {self.reader + 1} of {self.num_readers}): {type(error).__name__}: {error}"
            ) from error

    def _begin_pass(self) -> None:
        limit = self.corpus.max_passes
        if limit is not None and self._passes >= limit:
            raise ValueError(
                f"Corpus {self.corpus.name!r} has ended after {self._passes} passes and its `max_passes` is {limit:g}. "
                "Take fewer steps, lower its share, or raise `max_passes`."
            )
        self._passes += 1
        self._in_pass = 0
        self._iterator = self._open(None)

    def _open(self, state: Any) -> Iterator[Any]:
        """Iterate over the pass in progress, from its beginning or from a saved state."""
        source = self._source
        if isinstance(source, datasets.IterableDataset):
            source.set_epoch(self._passes - 1)  # a stream with a shuffle buffer gets a new order
            if state is not None:
                source.load_state_dict(state)
            # Not `iter(source)`, which in a worker process would divide the shards once more.
            return ({key: values[0] for key, values in batch.items()} for batch in source.iter(batch_size=1))
        if state is not None:
            source.load_state_dict(state)
            skip = self.num_readers - 1 if self._in_pass else self.reader  # the turns of the others
        else:  # without a state of its own the stream is read again up to its place
            skip = self.reader + self._in_pass * self.num_readers
        return islice(iter(source), skip, None, self.num_readers)


_END = object()


def stream_warnings(corpora: Sequence[Corpus], num_readers: int) -> list[str]:
    """What a user should know of the streams of a run that is read by `num_readers` readers.

    Raises:
        ValueError: for a stream that is divided among processes already, which would be divided once more.
    """
    found = []
    for corpus in corpora:
        stream = corpus.dataset
        if isinstance(stream, datasets.IterableDataset):
            if getattr(stream, "_distributed", None) is not None:
                raise ValueError(
                    f"Corpus {corpus.name!r} has been divided by `split_dataset_by_node`. Give the whole stream: its "
                    "examples are divided among processes and workers here, and a part would be divided once more."
                )
            if stream.num_shards < num_readers:
                found.append(
                    f"Corpus {corpus.name!r} has {stream.num_shards} shards for {num_readers} readers (processes times "
                    "workers): readers of one shard each pass over what is the others'. Split the data into at least "
                    f"{num_readers} files, try `dataset.reshard()`, or use fewer workers."
                )
            if _has_shuffle_buffer(stream):
                found.append(
                    f"Corpus {corpus.name!r} is shuffled in a buffer, whose contents no checkpoint holds. A run that "
                    "is resumed keeps the shares, but in this pass it leaves out or repeats as many examples as a "
                    "buffer holds, for each reader. For an exact resumption shuffle the files beforehand, without a "
                    "buffer."
                )
        elif corpus.is_stream and not (hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")):
            found.append(
                f"Corpus {corpus.name!r} is a stream without `state_dict` and `load_state_dict`: a run that is resumed "
                "reads it again from the beginning of the pass up to its place, which is exact but takes time."
            )
    return found


def _has_shuffle_buffer(stream: datasets.IterableDataset) -> bool:
    # datasets does not say so in public; where its insides look otherwise there is no warning.
    pending = [getattr(stream, "_ex_iterable", None)]
    while pending:
        node = pending.pop()
        if "BufferShuffled" in type(node).__name__:
            return True
        pending += [inner for inner in [getattr(node, "ex_iterable", None)] if inner is not None]
        pending += getattr(node, "ex_iterables", [])
    return False


def _part(stream: Any, reader: int, num_readers: int) -> Any:
    """What of a stream belongs to a reader."""
    if not isinstance(stream, datasets.IterableDataset):
        return stream
    # A fork of the process shares the stream's epoch with the others; what `shard` returns has its own.
    num_shards = min(stream.num_shards, num_readers)
    shard = reader % num_shards
    part = stream.shard(num_shards=num_shards, index=shard, contiguous=False)
    sharing = range(shard, num_readers, num_shards)  # the readers of this shard
    if len(sharing) > 1:
        part = split_dataset_by_node(part, rank=sharing.index(reader), world_size=len(sharing))
    return part


def _is_plain(kind: pa.DataType) -> bool:
    return _is_number(kind) or pa.types.is_string(kind) or (_is_list(kind) and _is_number(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _size(dataset: datasets.Dataset) -> float:
    """Bytes of a dataset's rows; of what it stands on, some may be selected away."""
    return dataset.data.nbytes * len(dataset) / max(dataset.data.num_rows, 1)


def _values(column: pa.Array, form: str | None) -> Sequence[Any] | None:
    """The values of a column as a dataset of this format gives them; `None` where only the dataset can tell."""
    if form is None:
        return _to_python(column)
    if column.null_count:
        return None
    if not _is_list(column.type):
        return _to_form(column.to_numpy(zero_copy_only=False), form, is_scalar=True)
    offsets = column.offsets.to_numpy()
    values = column.values[int(offsets[0]) : int(offsets[-1])]
    if values.null_count:
        return None
    flat, borders = _to_form(values.to_numpy(), form), (offsets - offsets[0]).tolist()
    return [flat[begin:end] for begin, end in pairwise(borders)]


def _to_form(values: np.ndarray[Any, Any], form: str, *, is_scalar: bool = False) -> Any:
    """Numbers as `datasets` gives them: whole numbers of 64 bits, others of 32, but NumPy's scalars as they are."""
    if form == "numpy" and is_scalar:
        return list(values)
    values = values.astype(
        np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32
    )  # a copy: Arrow's is fixed
    if form == "numpy":
        return values
    tensor = torch.from_numpy(values)
    return tensor.unbind() if is_scalar else tensor


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
