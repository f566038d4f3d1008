"""The mixture as a dataset: plan + corpora → examples.

The trainer uses `SlotSampler`, which asks the plan in the main process what the next batch of this process holds, and
`SlotDataset`, which reads that, in whatever process the loader asks it to. `InterpolatedDataset` is the same reading
order as a torch `IterableDataset`, for other training loops.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Never

import numpy as np
import torch.distributed
from accelerate.data_loader import DataLoaderDispatcher, IterableDatasetShard
from accelerate.state import GradientState, PartialState
from torch.utils.data import IterableDataset, get_worker_info

from hf_interp.mixture.apportionment import SIDES, Unit
from hf_interp.mixture.corpus import Corpus, as_corpora, check_columns
from hf_interp.mixture.order import Order, Sampling
from hf_interp.mixture.packing import token_lengths
from hf_interp.mixture.permutations import IntArray, derive_key
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, constant, default_schedule
from hf_interp.mixture.slots import BatchShard, SlotDataset, SlotRequest, read_in_workers
from hf_interp.mixture.streams import check_stream_ends, stream_warnings

logger = logging.getLogger(__name__)

READ_AHEAD = 128  # examples that `InterpolatedDataset` reads at a time, at the most; more make Python collect garbage


class InterpolatedDataset(IterableDataset[Any]):
    """A mixture whose share of domain examples follows α, as an `IterableDataset` for any training loop.

    Yields the examples of optimizer step 0, then those of step 1, and so on. The order is that of the trainer for the
    same settings, and the same for any number of `DataLoader` workers, if the loader's batch size is
    `batch_size / (num_processes · gradient_accumulation_steps)`. A process gets its own part of each global batch; or
    all of it where the loader was prepared by accelerate, which divides what it is given.

    Args:
        corpora: a mixture in any form that the trainer takes as `train_dataset`.
        batch_size: the global batch: examples per optimizer step over all processes and accumulation steps.
        max_steps: optimizer steps of the run, unless a `stopping_strategy` ends it.
        alpha_schedule: α over progress; constant at 0.5 by default, or from 0 to 1 with a `mixture_path`.
        probabilities: in place of a constant α and of shares, the probability of each corpus.
        sampling: "exact" counts that follow α, each pass shuffled; the same with each corpus in its own order
            ("sequential"); or "random", which at constant probabilities is exactly the order of
            `datasets.interleave_datasets` with the same seed.
        stopping_strategy: of random sampling: "first_exhausted", "all_exhausted" or
            "all_exhausted_without_replacement". A last batch that is not whole is left out.
        length_window: steps that share out their examples by length, so that like ones meet; by default none do.
        seed: another seed, another order.
        unit: whether α and the shares count examples or tokens.
        mixture_path: shares of all corpora over α (see `hf_interp.mixture.paths`).
        gradient_accumulation_steps: how many micro-batches a process makes of its part.
        num_processes, process_index: of how many processes this is which; by default what torch.distributed or
            accelerate say when it is read.

    Raises:
        ValueError: if the mixture cannot be planned (see `MixturePlan`), the corpora do not fit together (see
            `check_columns` and `stream_warnings`), the batch size does not divide, or arguments contradict each other.

    >>> from hf_interp.mixture.schedules import linear
    >>> corpora = {"general": range(100), "domain": range(1000, 1100)}
    >>> mixture = InterpolatedDataset(corpora, batch_size=4, max_steps=3, alpha_schedule=linear())
    >>> [sum(example >= 1000 for example in list(mixture)[step : step + 4]) for step in (0, 4, 8)]
    [0, 2, 4]
    """

    def __init__(
        self,
        corpora: Mapping[str, Any] | Sequence[Corpus],
        *,
        batch_size: int,
        max_steps: int | None = None,
        alpha_schedule: AlphaSchedule | None = None,
        probabilities: Sequence[float] | None = None,
        sampling: Sampling = "exact",
        stopping_strategy: str | None = None,
        length_window: int | None = None,
        seed: int = 0,
        unit: Unit = "examples",
        mixture_path: Sequence[Mapping[str, Any]] | None = None,
        gradient_accumulation_steps: int = 1,
        num_processes: int | None = None,
        process_index: int | None = None,
    ) -> None:
        parts = as_corpora(corpora)
        check_columns(parts)
        order = reading_order(parts, sampling, stopping_strategy, length_window)
        if probabilities is not None:
            parts, order, alpha_schedule = share_out(parts, probabilities, order, alpha_schedule)
        schedule = default_schedule(mixture_path) if alpha_schedule is None else alpha_schedule
        specs = [corpus.spec(unit) for corpus in parts]
        settings: dict[str, Any] = {"batch_size": batch_size, "max_steps": max_steps, "seed": seed, "unit": unit}
        plan = MixturePlan(specs, alpha_schedule=schedule, mixture_path=mixture_path, order=order, **settings)
        if (num_processes is None) != (process_index is None):
            raise ValueError(
                f"`num_processes` and `process_index` go together, got {num_processes} and {process_index}. Give both, "
                "or none to have them found."
            )
        self._given_process = None if num_processes is None or process_index is None else (num_processes, process_index)
        self._accumulation = gradient_accumulation_steps
        self._handed: BatchShard | None = None  # to a worker that does not inherit what its process knows
        self._seed, self._epoch, self._planned = seed, _shared_zero(), 0
        self.slots, self._fingerprint = SlotDataset(plan, parts), plan.fingerprint()
        self.slots.shard = self.shard
        for warning in plan.warnings() + stream_warnings(parts, self.shard.num_readers):
            logger.warning(warning)
        check_stream_ends(parts, plan, self.shard.num_readers)
        self._num_yielded, self._start_at, self._start_epoch = 0, 0, 0
        self._split: list[int] | None = None  # processes, and examples that each reads at a time
        self._streams: dict[str, Any] = {}  # at the border before the position, by reader

    @property
    def plan(self) -> MixturePlan:
        """The reading order of the epoch that `set_epoch` has set."""
        self._plan_epoch()
        return self.slots.plan

    def _plan_epoch(self) -> None:
        if (epoch := int(self._epoch)) != self._planned:
            self._read(self.slots.plan.with_seed(derive_key(self._seed, f"epoch {epoch}") if epoch else self._seed))
            self._planned = epoch

    def _read(self, plan: MixturePlan) -> None:
        self.slots, self._fingerprint = SlotDataset(plan, self.corpora, self.slots.shard), plan.fingerprint()

    @property
    def corpora(self) -> list[Corpus]:
        """Corpora that are mixed."""
        return self.slots.corpora

    @property
    def shard(self) -> BatchShard:
        """The part of this process in every global batch."""
        if self._handed is not None and get_worker_info() is not None:
            return self._handed
        if (sizes := _sizes_for_accelerate(self)) is not None:
            size, together = sizes
            if together * self._accumulation != self.plan.batch_size:
                raise ValueError(
                    f"The loader's `batch_size` must make batches of batch_size / gradient_accumulation_steps "
                    f"({self.plan.batch_size} / {self._accumulation}) over all processes, got {together}."
                )
            return BatchShard(size)
        num_processes, process_index = self._given_process or find_process()
        batch_size, parts = self.plan.batch_size, num_processes * self._accumulation
        if batch_size % parts:
            raise ValueError(
                f"`batch_size` must be a multiple of num_processes · gradient_accumulation_steps "
                f"({num_processes} · {self._accumulation}), got {batch_size}."
            )
        if not 0 <= process_index < num_processes:
            raise ValueError(f"`process_index` must lie in [0, {num_processes}), got {process_index}.")
        return BatchShard(batch_size // parts, num_processes, process_index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handed": self.shard}

    def __len__(self) -> int:
        is_started = bool(PartialState._shared_state)  # or a look at accelerate's state would start something
        if self._given_process is None and is_started and PartialState().num_processes > 1:
            raise TypeError(
                "The length of an `InterpolatedDataset` under several processes of accelerate is another before and "
                "after `prepare`. Count max_steps · gradient_accumulation_steps micro-batches, or give "
                "`num_processes` and `process_index`."
            )
        return len(self.plan) // self.shard.num_processes

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration read in another order; processes that load in the background are told too.

        Epoch 0 is that of the seed, and every other one has a seed of its own, made of both.
        """
        self._epoch.fill_(epoch)

    def shuffle(
        self, seed: int | None = None, generator: np.random.Generator | None = None, **kwargs: Any
    ) -> "InterpolatedDataset":
        """Return the same mixture in another order; a `buffer_size` is not needed, for every pass is shuffled whole.

        Raises:
            ValueError: where corpora are read in their own order.
        """
        if (sampling := self.plan.order.sampling) != "exact":
            raise ValueError(
                f"With sampling={sampling!r} each corpus is read in its own order, and examples that are shuffled "
                "after mixing would leave their steps. Shuffle the corpora beforehand, or leave `sampling` out."
            )
        drawn = generator if generator is not None else np.random.default_rng(seed)
        other = copy.copy(self)
        other._seed = int(drawn.integers(1 << 62)) if seed is None else seed
        other._epoch, other._planned, other._num_yielded, other._start_at = _shared_zero(), 0, 0, 0
        other._read(self.plan.with_seed(other._seed))
        return other

    @property
    def _distributed(self) -> Never:
        # for which `datasets.distributed.split_dataset_by_node` asks first
        raise AttributeError(
            "An `InterpolatedDataset` is not split by node: it finds its process by itself, or is told of it by "
            "`num_processes=` and `process_index=`, and gives its part of every global batch."
        )

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        shard, begin = self._begin(1 if worker is None else worker.num_workers)
        for slots in self._chunks(shard, self._num_yielded, 0 if worker is None else worker.id):
            self._note_streams(shard)
            for example in self.slots.__getitems__(slots.tolist()):
                self._num_yielded += 1
                if self._num_yielded % shard.batch_size == 0:
                    self._note_streams(shard)
                if self._num_yielded > begin:
                    yield example

    def batches(
        self, collate_fn: Callable[[list[Any]], Any] = list, *, num_workers: int = 0, **of_workers: Any
    ) -> Iterator[Any]:
        """Yield the micro-batches of this process, each as `collate_fn` makes it of its examples, in this process.

        With worker processes this is faster than a `DataLoader`: they are told what to read, and send numbers in arrays
        instead of objects. `state_dict` of this dataset tells the place, with any number of workers.

        Args:
            collate_fn: makes a batch of examples.
            num_workers: processes that read.
            of_workers: further arguments of `DataLoader`, such as `prefetch_factor`.

        Raises:
            ValueError: for worker processes with a stream, of which each has its own part.
        """
        examples = self._from_workers(num_workers, of_workers) if num_workers else iter(self)
        while batch := list(islice(examples, self.shard.batch_size)):
            yield collate_fn(batch)

    def _from_workers(self, num_workers: int, of_workers: Mapping[str, Any]) -> Iterator[Any]:
        if self.slots.has_streams:
            raise ValueError(
                f"`batches` with worker processes ({num_workers}) needs corpora with random access, and one is a "
                "stream. Take a `DataLoader`, or no workers."
            )
        shard, _ = self._begin(1)
        plan, chunks = self.plan, self._chunks(shard, self._num_yielded)
        draws = ((int(slots[0]), plan.locate(slots)) for slots in chunks)
        requests = (SlotRequest(first, draw.corpus, draw.example) for first, draw in draws)
        for example in read_in_workers(self.slots, requests, num_workers=num_workers, **of_workers):
            self._num_yielded += 1
            yield example

    def _begin(self, workers: int) -> tuple[BatchShard, int]:
        """Go to where reading begins; return how this process and so many workers divide it, and the position."""
        self._plan_epoch()
        shard = self.slots.shard = replace(self.shard, num_workers=workers)
        begin, self._start_at = self._start_at, 0
        if begin and self._start_epoch != self._planned:
            raise ValueError(
                f"The state was taken in epoch {self._start_epoch}, and `set_epoch` has said {self._planned} since, so "
                "that its place is another one. Set the epoch that the state has, or begin anew."
            )
        split = [shard.num_processes, shard.batch_size]
        if begin and self._split != split:
            raise ValueError(
                f"The state was taken with [processes, examples at a time] of {self._split}, now they are {split}, so "
                "that its place is another one. Go on with the same split of the batch, or begin anew."
            )
        self._split = split
        if self.slots.has_streams:
            self.slots = SlotDataset(self.plan, self.corpora, shard, self._streams if begin else None)
        self._num_yielded = begin - begin % shard.batch_size if self.slots.has_streams else begin
        return shard, begin

    def _chunks(self, shard: BatchShard, first: int, own: int = 0) -> Iterator[IntArray]:
        """Yield slots that worker number `own` of this process reads at a time, from its example number `first` on."""
        num_batches = len(self.plan) // (shard.num_processes * shard.batch_size)
        num_examples = len(range(own, num_batches, shard.num_workers)) * shard.batch_size
        count = shard.batch_size  # the first examples soon, then many at a time
        while first < num_examples:
            position = np.arange(first, min(first + count, num_examples))
            batch, offset = np.divmod(position, shard.batch_size)
            process = (own + batch * shard.num_workers) * shard.num_processes + shard.process_index
            yield process * shard.batch_size + offset
            first += count
            if not self.slots.has_streams:  # which keep their place only between micro-batches
                count = min(2 * count, max(READ_AHEAD, shard.batch_size))

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this (process, worker) for `load_state_dict`, as torchdata's loaders ask for it."""
        state = {"num_yielded": self._num_yielded, "fingerprint": self._fingerprint, "split": self._split}
        state |= {"epoch": self._planned} if self._planned else {}
        return {**state, "streams": dict(self._streams)} if self.slots.has_streams else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Nothing is read again, but for streams what lies between the border of the micro-batch and the position.

        Raises:
            ValueError: if the state belongs to another mixture.
        """
        self.set_epoch(state.get("epoch", 0))
        self._plan_epoch()
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"The state belongs to another mixture: its fingerprint is {state['fingerprint']}, this one's "
                f"{self._fingerprint}. Build the dataset from the same corpora and settings."
            )
        self._start_at = self._num_yielded = int(state["num_yielded"])
        self._start_epoch = self._planned
        self._streams, self._split = dict(state.get("streams", {})), state["split"]

    def _note_streams(self, shard: BatchShard) -> None:
        if self.slots.has_streams:
            self._streams = {str(reader): self.slots.stream_states(reader) for reader in shard.own_readers}


def reading_order(
    corpora: Sequence[Corpus], sampling: Sampling, stopping_strategy: str | None, length_window: int | None
) -> Order:
    """Return how the slots of a mixture are to be filled."""
    order = Order(sampling, None, stopping_strategy, length_window or 0)
    if not length_window:
        return order
    return Order.by_length(length_window, [token_lengths(corpus.dataset) for corpus in corpora], sampling)


def share_out(
    corpora: Sequence[Corpus], probabilities: Sequence[float], order: Order, alpha_schedule: AlphaSchedule | None
) -> tuple[list[Corpus], Order, AlphaSchedule]:
    """Return the corpora with the shares of their sides, the order, and α, that give each corpus its probability."""
    if len(probabilities) != len(corpora) or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-8:
        raise ValueError(
            f"`probabilities` must be one for each corpus ({[corpus.name for corpus in corpora]}), in [0, 1], and sum "
            f"to 1, got {list(probabilities)}."
        )
    if alpha_schedule is not None or any(corpus.share is not None for corpus in corpora):
        raise ValueError("`probabilities` stand for a constant α and for shares. Give one or the other.")
    pairs = list(zip(corpora, probabilities, strict=True))
    totals = {side: sum(chance for corpus, chance in pairs if corpus.side == side) for side in SIDES}
    if order.sampling == "random":
        order = replace(order, probabilities=tuple(probabilities))
    shared = [
        replace(corpus, share=chance / totals[corpus.side] if totals[corpus.side] else None) for corpus, chance in pairs
    ]
    return shared, order, constant(min(totals["domain"], 1.0))


def _shared_zero() -> torch.Tensor:
    """Return a number that processes share, which load in the background."""
    return torch.tensor(0).share_memory_()  # type: ignore[no-untyped-call, no-any-return]


def find_process() -> tuple[int, int]:
    """Return of how many processes this is which, by torch.distributed or accelerate; (1, 0) without them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    if PartialState._shared_state:  # or the next line would start something
        state = PartialState()
        return state.num_processes, state.process_index
    return 1, 0


def _sizes_for_accelerate(dataset: Any) -> tuple[int, int] | None:
    """Return how many examples accelerate takes at a time of a dataset that it divides itself, and for all processes.

    The loader that accelerate has prepared is the one that is being iterated over; there is none if it does not divide.
    """
    loader: Any = GradientState().active_dataloader
    inner = getattr(loader, "dataset", None)
    if isinstance(loader, DataLoaderDispatcher) and inner is dataset:
        size = int(loader.base_dataloader.batch_size)
        return size, size * (1 if loader.split_batches else PartialState().num_processes)
    if isinstance(inner, IterableDatasetShard) and inner.dataset is dataset:
        size = int(inner.batch_size) * (1 if inner.split_batches else int(inner.num_processes))
        return size, size
    return None
