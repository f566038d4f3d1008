"""Slots: the part of a plan that a process reads, and its examples, batches and collator."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import fsspec.asyn
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from hf_interp.mixture.collators import ObjectiveCollator, collate, random_state_of_slot
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.permutations import IntArray
from hf_interp.mixture.plan import BLOCK_SLOTS, MixturePlan, hash_of_reads, hashes_of_reads
from hf_interp.mixture.readers import CorpusReaders, Picked, reads_plainly, unpack
from hf_interp.mixture.streams import StreamReader

CORPUS_KEY = "corpus_index"
"""Under this key a batch tells which corpus each of its examples is from (an index into `plan.corpora`)."""

ORDER_KEY = "order_hash"
"""Under this key a batch holds the hash of what was read for it, as two halves of 32 bits."""

TOKENS_KEY = "num_tokens"
"""Under this key a batch holds the number of tokens of each of its examples, where a mixture counts them."""

STREAMS_KEY = "stream_states"
"""Under this key a batch holds the states of the streams after it, as JSON; absent without streams."""

BATCH_KEY = "batch"
"""Under this key is what a collator returns that is no mapping."""


@dataclass(frozen=True)
class BatchShard:
    """How the examples of a global batch are divided.

    Args:
        batch_size: examples of a micro-batch of one process.
        num_processes, process_index: of how many processes this is which.
        num_workers: worker processes of its loader; they take micro-batches in turns.
    """

    batch_size: int
    num_processes: int = 1
    process_index: int = 0
    num_workers: int = 0

    @property
    def num_readers(self) -> int:
        """Readers over all processes; each reads its own part of a stream."""
        return self.num_processes * max(self.num_workers, 1)

    @property
    def own_readers(self) -> range:
        """Readers of this process."""
        workers = max(self.num_workers, 1)
        return range(self.process_index * workers, (self.process_index + 1) * workers)

    def first_slot(self, batch: int) -> int:
        """Return the first slot of micro-batch number `batch` of this process."""
        return (batch * self.num_processes + self.process_index) * self.batch_size

    def reader_of(self, first_slot: int) -> int:
        """Return the reader, 0 … num_readers − 1, of the micro-batch of this process that begins at `first_slot`."""
        readers = self.own_readers
        # by the number of the batch, not by the worker that happens to read it, which is another one after a restart
        batch = first_slot // (self.batch_size * self.num_processes)
        return readers[batch % len(readers)]


class SlotRequest(NamedTuple):
    """A request for the examples of some consecutive slots."""

    first_slot: int
    corpus: IntArray
    example: IntArray
    epoch: int = 0
    order_hash: int | None = None
    """`hash_of_reads`, if it is known without reading a stream."""


class SlotBatch(list):  # type: ignore[type-arg]
    """A list of examples that knows its first slot, the corpus of each example, the `hash_of_reads` of what was read,
    and the states of its reader's streams as JSON (`None` without streams).
    """

    def __init__(
        self, examples: Sequence[Any], first_slot: int, corpus: IntArray, order_hash: int, streams: str | None
    ) -> None:
        super().__init__(examples)
        self.first_slot, self.corpus, self.order_hash, self.streams = first_slot, corpus, order_hash, streams


class SlotDataset(Dataset[Any]):
    """Example number s is what the plan puts into slot s.

    Args:
        plan: the reading order.
        corpora: the corpora of the plan, in its order.
        shard: who reads which part of the streams; one reader reads all by default.
        streams: states of the streams to begin with, by reader and corpus name, from `SlotBatch.streams`.
    """

    def __init__(
        self,
        plan: MixturePlan,
        corpora: Sequence[Corpus],
        shard: BatchShard | None = None,
        streams: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.plan = plan
        self.corpora = list(corpora)
        self.shard = shard or BatchShard(plan.batch_size)
        self.has_streams = any(corpus.is_stream for corpus in corpora)
        self._streams = {int(reader): dict(states) for reader, states in (streams or {}).items()}
        # opened when first read, in the process that reads; streams by (reader, corpus)
        self._readers: CorpusReaders | None = None
        self._stream_readers: dict[tuple[int, int], StreamReader] = {}
        self._epoch: int | None = None
        # Setting and restoring random states takes some 0.1 ms a batch: only for datasets that may augment at random.
        self._may_draw = not all(reads_plainly(corpus.dataset) for corpus in corpora)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, slot: int) -> Any:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: SlotRequest | Sequence[int]) -> SlotBatch:
        order_hash = None
        if isinstance(slots, SlotRequest):
            first_slot, corpus, example, epoch, order_hash = slots
            self._set_epoch(epoch)
            slots = range(first_slot, first_slot + len(corpus))
        else:
            first_slot, (corpus, _, example) = slots[0], self.plan.locate(slots)
        reader = self.shard.reader_of(first_slot)
        if self.has_streams:
            example = example.copy()  # the plan's own; what a stream gives is numbered below
        with random_state_of_slot(self.plan.seed, first_slot) if self._may_draw else nullcontext():
            examples = self._open().read(corpus, example)
            for index in np.unique(corpus).tolist() if self.has_streams else ():
                if not self.corpora[index].is_stream:
                    continue
                places = np.flatnonzero(corpus == index)
                found, example[places] = self._read_stream(reader, index, len(places))
                for place, one in zip(places.tolist(), found, strict=True):
                    examples[place] = one
        if order_hash is None or self.has_streams:
            order_hash = hash_of_reads(np.asarray(slots), self.plan.name_keys[corpus], example)
        streams = json.dumps({reader: self.stream_states(reader)}) if self.has_streams else None
        return SlotBatch(examples, first_slot, corpus, order_hash, streams)

    def pick(self, request: SlotRequest) -> Picked:
        """Return what is read for a request as it is sent from process to process; there must be no streams."""
        with random_state_of_slot(self.plan.seed, request.first_slot) if self._may_draw else nullcontext():
            return self._open().pick(request.corpus, request.example)

    def hold(self) -> None:
        """Hold small corpora in memory (see `CorpusReaders.hold`)."""
        self._open().hold()

    def _open(self) -> CorpusReaders:
        if self._readers is None:
            self._readers = CorpusReaders(self.corpora)
        return self._readers

    def stream_states(self, reader: int) -> dict[str, Any]:
        """Return where the streams of a reader in this process are: corpus name → state."""
        states = self._streams.setdefault(reader, {})
        for (owner, index), stream in self._stream_readers.items():
            if owner == reader:
                states[self.corpora[index].name] = stream.state_dict()
        return dict(states)

    def _set_epoch(self, epoch: int) -> None:
        """Tell datasets with a `set_epoch`, in the process that reads them; streams go by their own passes."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        for corpus in self.corpora:
            if not corpus.is_stream and hasattr(corpus.dataset, "set_epoch"):
                corpus.dataset.set_epoch(epoch)

    def _read_stream(self, reader: int, index: int, count: int) -> tuple[list[Any], IntArray]:
        """Return the next examples of a stream for a reader, and numbers for them that no other reader gives."""
        if (reader, index) not in self._stream_readers:
            if get_worker_info() is not None:
                fsspec.asyn.reset_lock()  # or a fork of a process with open remote files may hang
            corpus = self.corpora[index]
            state = self._streams.get(reader, {}).get(corpus.name)
            self._stream_readers[reader, index] = StreamReader(corpus, reader, self.shard.num_readers, state)
        stream = self._stream_readers[reader, index]
        numbers = (stream.num_read + np.arange(count)) * self.shard.num_readers + reader
        return stream.read(count), numbers


class SlotSampler(Sampler[Any]):
    """Sampler of what this process reads, a micro-batch at a time, from micro-batch number `first_batch` on.

    It runs in the main process: worker processes are told what to read, and need not know α. `epoch_of` gives the
    number of the epoch to which a step belongs.
    """

    drop_last = True  # read by accelerate; batches are never short

    def __init__(
        self,
        plan: MixturePlan,
        shard: BatchShard,
        first_batch: int = 0,
        epoch_of: Callable[[int], int] = lambda step: 0,
    ) -> None:
        self.epoch_of = epoch_of
        self.plan, self.shard, self.first_batch, self.batch_size = plan, shard, first_batch, shard.batch_size

    def __iter__(self) -> Iterator[SlotRequest]:
        # many at a time, which takes little longer than one, if their α is fixed
        count = 1 if self.plan.is_adaptive else max(BLOCK_SLOTS // self.batch_size, 1)
        for begin in range(self.first_batch, len(self), count):
            firsts = [self.shard.first_slot(batch) for batch in range(begin, min(begin + count, len(self)))]
            slots = np.add.outer(firsts, np.arange(self.batch_size))
            corpus, _, example = (each.reshape(slots.shape) for each in self.plan.locate(slots.reshape(-1)))
            hashes = hashes_of_reads(slots, self.plan.name_keys[corpus], example).sum(axis=1, dtype=np.uint64).tolist()
            for row, first in enumerate(firsts):
                epoch = self.epoch_of(first // self.plan.batch_size)
                yield SlotRequest(first, corpus[row], example[row], epoch, hashes[row])

    def __len__(self) -> int:
        """Return the number of micro-batches of this process in the whole run."""
        return len(self.plan) // (self.shard.num_processes * self.shard.batch_size)


def read_in_workers(slots: SlotDataset, requests: Iterable[SlotRequest], **of_workers: Any) -> Iterator[Any]:
    """Yield the examples of requests, which worker processes read in turns and send in columns; rows are made here.

    `of_workers` are arguments of a `DataLoader`. There must be no streams.
    """
    slots.hold()
    settings: dict[str, Any] = {"sampler": requests, "collate_fn": unchanged, "generator": torch.Generator()}
    for picked in DataLoader(_Picks(slots), batch_size=None, **settings, **of_workers):
        yield from unpack(picked)


class _Picks(Dataset[Picked]):
    def __init__(self, slots: SlotDataset) -> None:
        self.slots = slots

    def __getitem__(self, request: SlotRequest) -> Picked:
        return self.slots.pick(request)


def unchanged(value: Any) -> Any:
    """Return what is given."""
    return value


class SlotCollator:
    """A collator that also tells what a batch is made of, and whose random choices depend on the slot alone.

    A collator that masks or augments at random draws from the generators of whatever process runs it, and on resume
    from another point of their stream. Here they are set from (seed, first slot) for the duration of the call, or for
    each example of its own (see `hf_interp.mixture.collators`).
    """

    def __init__(self, collator: Any, seed: int, *, may_draw: bool = True, counts_tokens: bool = False) -> None:
        self.collator, self.seed, self.may_draw, self.counts_tokens = collator, seed, may_draw, counts_tokens

    def __call__(self, batch: Any) -> Any:
        """Collate a `SlotBatch`."""
        numbers = range(batch.first_slot, batch.first_slot + len(batch))
        if isinstance(self.collator, ObjectiveCollator):
            collated: Any = self.collator.collate(batch, numbers, self.seed, batch.corpus.tolist())
        else:
            collated = collate(self.collator, batch, numbers, self.seed, may_draw=self.may_draw)
        if not isinstance(collated, MutableMapping):
            collated = dict(collated) if isinstance(collated, Mapping) else {BATCH_KEY: collated}
        collated[CORPUS_KEY] = torch.from_numpy(batch.corpus.copy())
        collated[ORDER_KEY] = _halves(batch.order_hash)
        if self.counts_tokens:
            collated[TOKENS_KEY] = torch.tensor([_num_tokens(example) for example in batch])
        if batch.streams is not None:
            collated[STREAMS_KEY] = batch.streams
        return collated


def _num_tokens(example: Any) -> int:
    """Return how many tokens an example has, without those that its own mask hides."""
    mask = example.get("attention_mask") if isinstance(example, Mapping) else None
    return int(np.sum(mask)) if mask is not None else len(example["input_ids"])


def _halves(order_hash: int) -> torch.Tensor:
    """Return two numbers whose sums over many batches do not overflow."""
    return torch.tensor([order_hash >> 32, order_hash & 0xFFFFFFFF])


def whole_hash(halves: Sequence[int]) -> int:
    """Return the hash of many batches, from the sums of their halves."""
    return ((int(halves[0]) << 32) + int(halves[1])) % (1 << 64)
