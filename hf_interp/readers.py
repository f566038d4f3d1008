"""How examples are read from a corpus: by index, by index through Arrow, or in order from a stream."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import datasets
import pyarrow as pa
from datasets.distributed import split_dataset_by_node

from hf_interp.corpora import Corpus
from hf_interp.permutations import IntArray

HELD_IN_MEMORY = 32 * 2**20  # bytes of a corpus, at the most


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
    """What a user should know of the streams of a run that is read by `num_readers` readers."""
    found = []
    for corpus in corpora:
        stream = corpus.dataset
        if isinstance(stream, datasets.IterableDataset):
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
