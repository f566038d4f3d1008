"""The mixture as a dataset: plan + corpora → examples.

`SlotDataset` is map-style, its index is the slot; the trainer uses it, because samplers, sharding over processes and
skipping on resume are then arithmetic on integers. `InterpolatedDataset` is the same reading order as a torch
`IterableDataset`, for other training loops.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from hf_interp.corpora import Corpus, as_corpora
from hf_interp.permutations import IntArray
from hf_interp.plan import MixturePlan
from hf_interp.readers import StreamReader, open_reader, reads_plainly
from hf_interp.schedules import AlphaSchedule, linear

CORPUS_KEY = "corpus_index"
"""Under this key a batch tells which corpus each of its examples is from (an index into `plan.corpora`)."""

READ_AHEAD = 512  # examples that `InterpolatedDataset` reads at a time


class SlotBatch(list):  # type: ignore[type-arg]
    """A list of examples that knows its first slot and the corpus of each example."""

    def __init__(self, examples: Sequence[Any], first_slot: int, corpus: IntArray) -> None:
        super().__init__(examples)
        self.first_slot = first_slot
        self.corpus = corpus


class SlotDataset(Dataset[Any]):
    """Example number s is what the plan puts into slot s.

    Args:
        plan: the reading order.
        corpora: the corpora of the plan, in its order.
    """

    def __init__(self, plan: MixturePlan, corpora: Sequence[Corpus]) -> None:
        self.plan = plan
        self.corpora = list(corpora)
        self._readers: dict[int, Any] = {}  # opened when first read, in the process that reads
        # Setting and restoring random states takes some 0.1 ms a batch: only for datasets that may augment at random.
        self._may_draw = not all(reads_plainly(corpus.dataset) for corpus in corpora)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, slot: int) -> Any:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: range | Sequence[int]) -> SlotBatch:
        draw = self.plan.locate(slots)
        examples: list[Any] = [None] * len(slots)
        with random_state_of_slot(self.plan.seed, slots[0]) if self._may_draw else nullcontext():
            for index in np.unique(draw.corpus).tolist():
                places = np.flatnonzero(draw.corpus == index)
                found = self._read(index, draw.example[places], slots[0])
                for place, example in zip(places.tolist(), found, strict=True):
                    examples[place] = example
        return SlotBatch(examples, slots[0], draw.corpus)

    def _read(self, index: int, wanted: IntArray, first_slot: int) -> list[Any]:
        corpus = self.corpora[index]
        if index not in self._readers:
            self._readers[index] = StreamReader(corpus) if corpus.is_stream else open_reader(corpus.dataset)
        if not corpus.is_stream:
            return self._readers[index].read(wanted)
        oldest = self.plan.drawn_before(first_slot // self.plan.batch_size)[index]
        return self._readers[index].read(wanted.tolist(), int(oldest))


class SlotSampler(Sampler[Any]):
    """All slots in order, a batch at a time. A batch is a `range`, so that passing over a million costs little."""

    drop_last = True  # read by accelerate; batches are never short

    def __init__(self, num_slots: int, batch_size: int) -> None:
        self.num_slots = num_slots
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[range]:
        return (range(first, first + self.batch_size) for first in range(0, self.num_slots, self.batch_size))

    def __len__(self) -> int:
        return self.num_slots // self.batch_size


class SlotCollator:
    """A collator that also tells the corpus of each example, and whose random choices depend on the slot alone.

    A collator that masks or augments at random draws from the generators of whatever process runs it, and on resume
    from another point of their stream. Here they are set from (seed, first slot) for the duration of the call. That
    takes some 0.1 ms; `may_draw=False` spares it for a collator that draws nothing.
    """

    def __init__(self, collator: Any, seed: int, *, may_draw: bool = True) -> None:
        self.collator = collator
        self.seed = seed
        self.may_draw = may_draw

    def __call__(self, batch: Any) -> Any:
        """Collate a `SlotBatch`."""
        with random_state_of_slot(self.seed, batch.first_slot) if self.may_draw else nullcontext():
            collated = self.collator(list(batch))
        if isinstance(collated, Mapping):
            collated[CORPUS_KEY] = torch.from_numpy(batch.corpus.copy())  # type: ignore[index]
        return collated


class InterpolatedDataset(IterableDataset[Any]):
    """A mixture whose share of domain examples follows α, as an `IterableDataset` for any training loop.

    Yields the examples of optimizer step 0, then those of step 1, and so on. The order is that of the trainer for the
    same settings, and the same for any number of `DataLoader` workers, if the loader's batch size is
    `batch_size / (num_processes · gradient_accumulation_steps)`.

    Args:
        corpora: a mixture in any form that the trainer takes as `train_dataset`.
        batch_size: the global batch: examples per optimizer step over all processes and accumulation steps.
        max_steps: optimizer steps of the run.
        alpha_schedule: α over progress; linear from 0 to 1 by default.
        seed: another seed, another order.
        gradient_accumulation_steps, num_processes, process_index: how a global batch is split; this process gets its
            part only.

    Raises:
        ValueError: if the mixture cannot be planned (see `MixturePlan`) or the batch size does not divide.

    >>> from hf_interp.schedules import linear
    >>> mixture = InterpolatedDataset({"general": range(100), "domain": range(1000, 1100)}, batch_size=4, max_steps=3)
    >>> [sum(example >= 1000 for example in list(mixture)[step : step + 4]) for step in (0, 4, 8)]
    [0, 2, 4]
    """

    def __init__(
        self,
        corpora: Mapping[str, Any] | Sequence[Corpus],
        *,
        batch_size: int,
        max_steps: int,
        alpha_schedule: AlphaSchedule | None = None,
        seed: int = 0,
        gradient_accumulation_steps: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
    ) -> None:
        parts = as_corpora(corpora)
        plan = MixturePlan(
            [corpus.planned() for corpus in parts],
            alpha_schedule=linear() if alpha_schedule is None else alpha_schedule,
            batch_size=batch_size,
            max_steps=max_steps,
            seed=seed,
        )
        if batch_size % (num_processes * gradient_accumulation_steps):
            raise ValueError(
                f"`batch_size` must be a multiple of num_processes · gradient_accumulation_steps "
                f"({num_processes} · {gradient_accumulation_steps}), got {batch_size}."
            )
        if not 0 <= process_index < num_processes:
            raise ValueError(f"`process_index` must lie in [0, {num_processes}), got {process_index}.")
        self.slots = SlotDataset(plan, parts)
        self.num_processes, self.process_index = num_processes, process_index
        self.local_batch_size = batch_size // (num_processes * gradient_accumulation_steps)
        self._num_yielded, self._start_at = 0, 0

    @property
    def plan(self) -> MixturePlan:
        """The reading order."""
        return self.slots.plan

    @property
    def corpora(self) -> list[Corpus]:
        """What is mixed."""
        return self.slots.corpora

    def __len__(self) -> int:
        return len(self.plan) // self.num_processes

    def __iter__(self) -> Iterator[Any]:
        slots = self._own_slots()
        self._num_yielded, self._start_at = self._start_at, 0
        for first in range(self._num_yielded, len(slots), READ_AHEAD):
            for example in self.slots.__getitems__(slots[first : first + READ_AHEAD].tolist()):
                self._num_yielded += 1
                yield example

    def state_dict(self) -> dict[str, Any]:
        """The position of this (process, worker), for `load_state_dict`; `torchdata.StatefulDataLoader` calls it."""
        return {"num_yielded": self._num_yielded, "fingerprint": self.plan.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken; nothing is read again.

        Raises:
            ValueError: if the state belongs to another mixture.
        """
        if state["fingerprint"] != self.plan.fingerprint():
            raise ValueError(
                f"The state belongs to another mixture: its fingerprint is {state['fingerprint']}, this one's "
                f"{self.plan.fingerprint()}. Build the dataset from the same corpora and settings."
            )
        self._start_at = int(state["num_yielded"])

    def _own_slots(self) -> IntArray:
        """The slots of this process and worker: a `DataLoader` takes local batch b from worker b mod num_workers."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        local = np.arange(first, len(self) // self.local_batch_size, stride, dtype=np.int64)
        begins = (local * self.num_processes + self.process_index) * self.local_batch_size
        return (begins[:, None] + np.arange(self.local_batch_size)).reshape(-1)


@contextmanager
def random_state_of_slot(seed: int, slot: int) -> Iterator[None]:
    """Set the CPU generators of random, NumPy and torch from (seed, slot), and put them back at the end."""
    value = (seed * 1_000_003 + slot) % (1 << 63)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(value)
        np.random.seed(value % (1 << 32))
        torch.default_generator.manual_seed(value)  # the CPU's alone: `torch.manual_seed` would reseed GPUs too
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
