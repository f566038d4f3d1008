"""Reading streams, which have no random access, in their own order."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.utils.errors import EndError, ReadError

MOST_READ = 10_000
"""Examples that are read of a stream to see whether it has them; a stream that must have more is not looked at."""

_END = object()


class StreamReader:
    """Reads one reader's part of a stream in the stream's own order, from pass to pass.

    The examples are divided among the readers of a run: a `datasets.IterableDataset` by its shards, and inside a shard,
    where there are fewer shards than readers, by turns; any other stream by turns.

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

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last example read, as plain values."""
        if self._loaded is not None:
            return dict(self._loaded)
        keeps_state = hasattr(self._source, "state_dict") and self._passes
        return {
            "num_read": self.num_read,
            "passes": self._passes,
            "in_pass": self._in_pass,
            "stream": self._source.state_dict() if keeps_state else None,
        }

    def read(self, count: int) -> list[Any]:
        """Return the next examples."""
        found = []
        for _ in range(count):
            example = self._next()
            if example is _END:
                self._begin_pass()
                example = self._next()
            if example is _END:
                raise EndError(
                    f"Corpus {self.corpus.name!r} is an empty stream for reader {self.reader + 1} of "
                    f"{self.num_readers}. Check its path, split and filters, and that it has at least as many examples "
                    "as there are readers (processes times workers)."
                )
            found.append(example)
            self.num_read, self._in_pass, self._loaded = self.num_read + 1, self._in_pass + 1, None
        return found

    def _next(self) -> Any:
        try:
            return next(self._iterator, _END)
        except Exception as error:
            raise ReadError(
                f"The stream of corpus {self.corpus.name!r} failed after {self._in_pass} examples of pass "
                f"{self._passes} (reader {self.reader + 1} of {self.num_readers}): {type(error).__name__}: {error}"
            ) from error

    def _begin_pass(self) -> None:
        limit = self.corpus.max_passes
        if limit is not None and self._passes >= limit:
            raise EndError(
                f"Corpus {self.corpus.name!r} has ended after {self._passes} passes and its `max_passes` is {limit:g}. "
                "Take fewer steps, lower its share, or raise `max_passes`."
            )
        self._passes, self._in_pass = self._passes + 1, 0
        self._iterator = self._open(None)

    def _open(self, state: Any) -> Iterator[Any]:
        """Iterate over the pass in progress, from its beginning or from a saved state."""
        source = self._source
        if isinstance(source, datasets.IterableDataset):
            source.set_epoch(self._passes - 1)  # a stream with a shuffle buffer gets a new order
        if state is not None:
            source.load_state_dict(state)
        if isinstance(source, datasets.IterableDataset):
            # Not `iter(source)`, which in a worker process would divide the shards once more.
            return ({key: values[0] for key, values in batch.items()} for batch in source.iter(batch_size=1))
        if state is not None and self._in_pass:
            skip = self.num_readers - 1  # the turns of the others
        else:  # without a state of its own the stream is read again up to its place
            skip = self.reader + self._in_pass * self.num_readers
        return islice(iter(source), skip, None, self.num_readers)


def stream_warnings(corpora: Sequence[Corpus], num_readers: int) -> list[str]:
    """Return what a user should know of the streams of a run; raise `ValueError` for one that is divided already."""
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
            if _has_shuffle_buffer(getattr(stream, "_ex_iterable", None)):
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


def _has_shuffle_buffer(node: Any) -> bool:
    # datasets does not say so in public; where its insides look otherwise there is no warning.
    inner = [*getattr(node, "ex_iterables", []), getattr(node, "ex_iterable", None)]
    return "BufferShuffled" in type(node).__name__ or any(
        _has_shuffle_buffer(each) for each in inner if each is not None
    )


def _part(stream: Any, reader: int, num_readers: int) -> Any:
    """Return what of a stream belongs to a reader."""
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


def check_stream_ends(corpora: Sequence[Corpus], plan: MixturePlan, num_readers: int = 1) -> None:
    """Refuse streams that are empty for a reader, or that `max_passes` ends before the last step.

    What a plan must find in a stream is read, if it is little; of streams that are not of `datasets` the length counts.

    Raises:
        ValueError: naming the corpus, what it has and what the plan reads.
        ReadError: where a stream cannot be read.
    """
    for corpus, drawn in zip(corpora, plan.drawn_before(plan.max_steps).tolist(), strict=True):
        if not corpus.is_stream or not drawn:
            continue
        needed = max(math.ceil(drawn / (corpus.max_passes or math.inf)), min(num_readers, drawn))
        found = _count(corpus, needed)
        if found < needed:
            limit = "" if corpus.max_passes is None else f", at most {corpus.max_passes:g} times (`max_passes`)"
            raise ValueError(
                f"Corpus {corpus.name!r} is a stream that ends after {found} examples, but {num_readers} readers take "
                f"{drawn} of it{limit}. Take fewer steps or readers, lower its share, or raise `max_passes`."
            )


def _count(corpus: Corpus, needed: int) -> float:
    """Return how many examples a stream has, at least if it has fewer than are needed; infinity if that is unknown."""
    if not isinstance(corpus.dataset, datasets.IterableDataset):
        return len(corpus.dataset) if hasattr(corpus.dataset, "__len__") else math.inf
    if needed > MOST_READ:
        return math.inf
    reader = StreamReader(replace(corpus, max_passes=1))
    while reader.num_read < needed:
        try:
            reader.read(1)
        except EndError:  # at the end of the first pass
            break
    return reader.num_read
