"""Reading streams, which have no random access, in their own order."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import datasets
from datasets.distributed import split_dataset_by_node

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.utils.errors import EndError, ReadError

MOST_READ = 10_000
"""Examples that are read of a stream to see whether it has them; a stream that must have more is not looked at."""

_END = object()
SHARD_BY_SHARD = ("RebatchedArrow", "SelectColumns", "Mapped", "Filtered", "Formatted")
"""Beginnings of the names of what `datasets` puts around a stream and what does not look beyond a shard."""


class Part(NamedTuple):
    """What one reader reads in a pass at a stretch: a shard or several, and of their examples those of one turn."""

    in_pass: int
    """Number of the pass, from 1 on."""
    num_shards: int
    """Into so many the stream is divided, by its shards."""
    shard: int
    """Which of these this is."""
    num_turns: int
    """So many readers take turns in it."""
    turn: int
    """Which of these this is."""
    num_read: int = 0
    """Examples of it that have been read."""
    state: Any = None
    """The state of the stream after them, if it keeps one."""


class StreamReader:
    """Reads one reader's part of a stream in the stream's own order, from pass to pass.

    The examples are divided among the readers of a run: a `datasets.IterableDataset` by its shards, and inside a shard,
    where there are fewer shards than readers, by turns; any other stream by turns.

    Args:
        corpus: the corpus.
        reader, num_readers: which of how many readers this is.
        state: where to begin, from `state_dict` of the same reader, or from `divide_anew`.

    Attributes:
        num_read (`int`): examples read so far, over all passes.
    """

    def __init__(
        self, corpus: Corpus, reader: int = 0, num_readers: int = 1, state: Mapping[str, Any] | None = None
    ) -> None:
        self.corpus, self.reader, self.num_readers = corpus, reader, num_readers
        self.num_read, self._passes, self._in_pass = 0, 0, 0
        self._parts: list[Part] = []  # what is left of the pass, the one that is being read first
        self._is_left = False  # whether they are what other readers have left
        self._done = self._in_part = 0  # parts of the pass that are done, and examples of the one in hand
        self._source: Any = None
        self._iterator: Iterator[Any] = iter(())
        self._loaded = state  # until something is read, as a stream that has not begun cannot tell its place
        if state is not None:
            self.num_read, self._passes, self._in_pass = state["num_read"], state["passes"], state["in_pass"]
            self._parts, self._is_left = parts_left(corpus.dataset, reader, num_readers, state), "left" in state
            self._done = state.get("part", 0)
            self._open()

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last example read, as plain values."""
        if self._loaded is not None:
            return dict(self._loaded)
        kept = self._source.state_dict() if hasattr(self._source, "state_dict") else None
        place = {"num_read": self.num_read, "passes": self._passes, "in_pass": self._in_pass, "stream": kept}
        if self._is_left:
            first = self._parts[0]._replace(num_read=self._in_part, state=kept)
            return {**place, "stream": None, "left": [list(first), *map(list, self._parts[1:])]}
        return {**place, "part": self._done} if self._done + len(self._parts) > 1 else place

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
            self.num_read, self._in_pass, self._in_part = self.num_read + 1, self._in_pass + 1, self._in_part + 1
            self._loaded = None
        return found

    def _next(self) -> Any:
        """Return the next example of the parts in hand, or `_END`."""
        while True:
            try:
                example = next(self._iterator, _END)
            except Exception as error:
                raise ReadError(
                    f"The stream of corpus {self.corpus.name!r} failed after {self._in_pass} examples of pass "
                    f"{self._passes} (reader {self.reader + 1} of {self.num_readers}): {type(error).__name__}: {error}"
                ) from error
            if example is not _END or len(self._parts) < 2:
                return example
            del self._parts[0]
            self._done += 1
            self._open()

    def _begin_pass(self) -> None:
        limit = self.corpus.max_passes
        if limit is not None and self._passes >= limit:
            raise EndError(
                f"Corpus {self.corpus.name!r} has ended after {self._passes} passes and its `max_passes` is {limit:g}. "
                "Take fewer steps, lower its share, or raise `max_passes`."
            )
        self._passes, self._in_pass, self._done, self._is_left = self._passes + 1, 0, 0, False
        self._parts = parts_of_pass(self.corpus.dataset, self.reader, self.num_readers, self._passes)
        self._open()

    def _open(self) -> None:
        """Iterate over the first of the parts in hand, from its beginning or from where it was left."""
        if not self._parts:
            return
        part = self._parts[0]
        source, self._in_part = _divided(self.corpus.dataset, part), part.num_read
        self._source = source
        if isinstance(source, datasets.IterableDataset):
            source.set_epoch(part.in_pass - 1)  # a stream with a shuffle buffer gets a new order
        if part.state is not None:
            source.load_state_dict(part.state)
        if isinstance(source, datasets.IterableDataset):
            # Not `iter(source)`, which in a worker process would divide the shards once more.
            self._iterator = ({key: values[0] for key, values in batch.items()} for batch in source.iter(batch_size=1))
            return
        if part.state is not None and part.num_read:
            skip = part.num_turns - 1  # the turns of the others
        else:  # without a state of its own the stream is read again up to its place
            skip = part.turn + part.num_read * part.num_turns
        self._iterator = islice(iter(source), skip, None, part.num_turns)


def parts_of_pass(stream: Any, reader: int, num_readers: int, in_pass: int) -> list[Part]:
    """Return what a reader reads in a pass."""
    if not isinstance(stream, datasets.IterableDataset):
        return [Part(in_pass, 1, 0, num_readers, reader)]
    shards = stream.num_shards
    if num_readers >= shards:
        shard = reader % shards
        sharing = range(shard, num_readers, shards)  # the readers of this shard
        return [Part(in_pass, shards, shard, len(sharing), sharing.index(reader))]
    if not _reads_shards_in_turn(getattr(stream, "_ex_iterable", None)):
        return [Part(in_pass, num_readers, reader, 1, 0)]
    return [Part(in_pass, shards, shard, 1, 0) for shard in range(reader, shards, num_readers)]


def parts_left(stream: Any, reader: int, num_readers: int, state: Mapping[str, Any]) -> list[Part]:
    """Return what a reader has left of the pass in progress in a state of its own."""
    if "left" in state:
        return [Part(*each) for each in state["left"]]
    if not state["passes"]:
        return []
    first, *others = parts_of_pass(stream, reader, num_readers, state["passes"])[state.get("part", 0) :]
    if others and "part" not in state:
        raise ValueError("The checkpoint keeps a stream as an earlier version read it. Start a run from its weights.")
    return [first._replace(num_read=state["in_pass"], state=state["stream"]), *others]


def divide_anew(
    stream: Any, states: Mapping[int, Mapping[str, Any]], num_before: int, num_readers: int
) -> list[dict[str, Any]]:
    """Return the states with which other readers go on in a stream where `num_before` readers have left it.

    What is left of the passes that have begun is dealt out, the parts that were being read first, each from its place.
    A reader that gets none, or is through with its own, begins the next pass.
    """
    fresh: dict[str, Any] = {"num_read": 0, "passes": 0, "in_pass": 0, "stream": None}
    before = [states.get(reader, fresh) for reader in range(num_before)]
    latest = max(state["passes"] for state in before)
    left = [part for reader, state in enumerate(before) for part in parts_left(stream, reader, num_before, state)]
    for reader, state in enumerate(before):
        for in_pass in range(state["passes"] + 1, latest + 1):
            left += parts_of_pass(stream, reader, num_before, in_pass)
    left.sort(key=lambda part: (part.in_pass, not part.num_read, part.shard))
    # examples are numbered by it, each with a number that it alone has
    num_read = -(-max(state["num_read"] for state in before) * num_before // num_readers)
    return [
        {**fresh, "num_read": num_read, "passes": latest, "left": [list(part) for part in left[reader::num_readers]]}
        for reader in range(num_readers)
    ]


def divide_streams(
    corpora: Sequence[Corpus], states: Mapping[str, Mapping[str, Any]], num_before: int, num_readers: int
) -> dict[str, dict[str, Any]]:
    """Return states by reader and name of a corpus for other readers than those that `states` are of."""
    found: dict[str, dict[str, Any]] = {str(reader): {} for reader in range(num_readers)}
    for corpus in corpora:
        own = {int(reader): each[corpus.name] for reader, each in states.items() if corpus.name in each}
        if own:
            for reader, state in enumerate(divide_anew(corpus.dataset, own, num_before, num_readers)):
                found[str(reader)][corpus.name] = state
    return found


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


def _reads_shards_in_turn(node: Any) -> bool:
    """Whether a stream reads its shards one after the other, and from each what it reads from it alone."""
    while type(node).__name__.removesuffix("ExamplesIterable").removesuffix("Iterable") in SHARD_BY_SHARD:
        node = node.ex_iterable
    return type(node).__name__ in ("ExamplesIterable", "ArrowExamplesIterable")


def _divided(stream: Any, part: Part) -> Any:
    """Return what of a stream belongs to a part."""
    if not isinstance(stream, datasets.IterableDataset):
        return stream
    # A fork of the process shares the stream's epoch with the others; what `shard` returns has its own.
    found = stream.shard(num_shards=part.num_shards, index=part.shard, contiguous=False)
    if part.num_turns > 1:
        found = split_dataset_by_node(found, rank=part.turn, world_size=part.num_turns)
    return found


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
