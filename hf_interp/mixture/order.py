"""The order in which a mixture is read, where it is not the plan's own: at random, in sequence, or by length.

At random it is the order of `datasets.interleave_datasets`. That draws the source of every example with one random
number, from `numpy.random.default_rng(seed)`, and reads each source in its own order. A generator can be moved to any
number at once, so the source of a slot is known without those before it. How many examples of each corpus come before
it is counted once, and kept for every 2¹³ draws.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hf_interp.mixture.apportionment import ALPHA_BITS, CorpusSpec, Unit, check_corpora, share_units
from hf_interp.mixture.permutations import IntArray, batch_orders
from hf_interp.mixture.schedules import AlphaSchedule, Constant
from hf_interp.utils.errors import check_choice

Sampling = Literal["exact", "random", "sequential"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)

DEFAULT_WINDOW = 50
"""Steps that share out their examples by length: as many batches as transformers sorts together."""

STOPPING_STRATEGIES = ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement")


@dataclass(frozen=True)
class Order:
    """How the slots of a run are filled.

    Args:
        sampling: "exact" has counts that follow α, and shuffles every pass over a corpus. "sequential" has the same
            counts, and reads each corpus in its own order. "random" draws the corpus of every example, as
            `datasets.interleave_datasets` does, and reads each in its own order.
        probabilities: of "random" at a constant α; `None` for those that α and the shares give at each step.
        stopping_strategy: of "random", where it and not a number of steps ends the run.
        window: steps that share out their examples by length; 0 for none.
        lengths_sha256: hash of all lengths.
        lengths: of the examples of every corpus, which no file keeps.
    """

    sampling: Sampling = "exact"
    probabilities: tuple[float, ...] | None = None
    stopping_strategy: str | None = None
    window: int = 0
    lengths_sha256: str | None = None
    lengths: tuple[IntArray, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"The sampling of a mixture must be one of {', '.join(SAMPLINGS)}, got {self.sampling!r}.")
        if self.stopping_strategy is not None:
            check_choice("stopping_strategy", self.stopping_strategy, STOPPING_STRATEGIES)
        if self.stopping_strategy is not None and self.sampling != "random":
            raise ValueError(
                f"`stopping_strategy` ({self.stopping_strategy}) needs random sampling, got {self.sampling!r}: exact "
                "counts end with `max_steps` or after passes."
            )
        if self.window and self.sampling == "random":
            raise ValueError("Random sampling reads each corpus in its own order, which grouping by length does not.")
        if self.window < 0:
            raise ValueError(f"`length_window` must be at least 1, got {self.window}.")

    @classmethod
    def by_length(cls, window: int, lengths: Sequence[IntArray], sampling: Sampling = "exact") -> "Order":
        """Return the order in which every `window` steps share out their examples by these lengths."""
        digest = hashlib.sha256()
        for of_corpus in lengths:
            digest.update(of_corpus.astype("<i8").tobytes())
        return cls(sampling, window=window, lengths_sha256=digest.hexdigest(), lengths=tuple(lengths))

    def identity(self) -> dict[str, Any]:
        """Return what a plan is known by, as plain values; nothing for a plan's own order."""
        values = {name: value for name, value in asdict(replace(self, lengths=None)).items() if value}
        return {} if self == Order() else {"order": values}

    def __str__(self) -> str:
        by_length = f", by length in windows of {self.window} steps" if self.window else ""
        return f"{self.sampling}{by_length}" + (f" until {self.stopping_strategy}" if self.stopping_strategy else "")

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Order":
        """Return the order in the identity of a plan, without lengths."""
        values = dict(state.get("order", {}))
        if "probabilities" in values:
            values["probabilities"] = tuple(values["probabilities"])
        return cls(**values)


def chances_at(alpha: float, corpora: Sequence[CorpusSpec]) -> tuple[float, ...]:
    """Return the probability of each corpus at a constant α, without rounding where shares are given."""
    sides, units = {"domain": alpha, "general": 1 - alpha}, share_units(corpora, "examples")
    return tuple(
        sides[corpus.side] * (corpus.share if isinstance(corpus.share, float | int) else unit / (1 << ALPHA_BITS))
        for corpus, unit in zip(corpora, units, strict=True)
    )


def steps_until(
    order: Order, corpora: Sequence[CorpusSpec], schedule: AlphaSchedule, *, batch_size: int, seed: int, unit: Unit
) -> int:
    """Return after how many whole steps the stopping strategy of an order ends a run."""
    strategy, corpora = order.stopping_strategy or "", check_corpora(corpora, unit)
    if not isinstance(schedule, Constant) or unit == "tokens":
        raise ValueError(
            f"`stopping_strategy` ({strategy}) needs a constant α that counts examples: one that moves must know the "
            "number of steps. Set `alpha`, or give `max_steps` instead."
        )
    chances = np.array(order.probabilities or chances_at(schedule.value, corpora))
    names, sizes = [corpus.name for corpus in corpora], [corpus.num_examples for corpus in corpora]
    slots = slots_until(strategy, names, sizes, chances, seed)
    if slots < batch_size:
        raise ValueError(
            f"`stopping_strategy` ({strategy}) ends after {slots} examples, fewer than a batch ({batch_size}). Take a "
            "smaller batch or another strategy."
        )
    return slots // batch_size


def in_sequence(corpus: IntArray, ordinal: IntArray) -> IntArray:
    """Return the ordinals of some slots with those of each corpus in ascending order."""
    found = np.empty_like(ordinal)
    found[np.argsort(corpus, kind="stable")] = ordinal[np.lexsort((ordinal, corpus))]
    return found


def share_out_by_length(
    corpus: IntArray, ordinal: IntArray, passes: IntArray, lengths: IntArray, step: IntArray, key: int
) -> tuple[IntArray, IntArray]:
    """Return corpus and ordinal of the slots of a window, so that examples of like length meet.

    Each step keeps how many it has of each corpus, and each pass its examples. Inside these the shortest examples of
    every corpus go to one step, the next ones to another, in an order of steps that `key` and the first step pick.
    Inside a step the slots are in order of length, so that any part of it holds like ones.

    Args:
        corpus, ordinal, passes, lengths, step: of each slot: its corpus, its example's number, the pass to which that
            belongs and its length, and the step of the slot.
        key: of the order of the steps.
    """
    turn = batch_orders(key, step[:1], int(step[-1] - step[0]) + 1)[0][step - step[0]]
    places, sources = np.lexsort((turn, passes, corpus)), np.lexsort((lengths, passes, corpus))
    found, found_lengths = np.empty_like(ordinal), np.empty_like(lengths)
    found[places], found_lengths[places] = ordinal[sources], lengths[sources]
    arranged = np.lexsort((found_lengths, step))
    return corpus[arranged], found[arranged]


# Corpora drawn at random, slot by slot.

BLOCK_DRAWS = 1 << 13
MOST_DRAWS = 1 << 31
"""Draws after which a corpus is taken never to end."""

FloatArray = npt.NDArray[np.float64]


class RandomDraws:
    """The corpora of slots that are drawn at random.

    Args:
        seed: of the generator.
        chances: the probability of each corpus at each of some consecutive steps, or one row that holds for all.
        batch_size: draws of a step.
        num_slots: slots that are asked for, at the most.
        first_draw: draws of the generator that are left out at the beginning.
        limits: examples of each corpus after which its draws do not count.
    """

    def __init__(
        self,
        seed: int,
        chances: Callable[[IntArray], FloatArray],
        batch_size: int,
        num_slots: int,
        *,
        first_draw: int = 0,
        limits: IntArray | None = None,
    ) -> None:
        self.seed, self.chances, self.batch_size, self.first_draw = seed, chances, batch_size, first_draw
        self.limits = limits
        starts = [np.zeros(chances(np.zeros(1, np.int64)).shape[1], np.int64)]
        while starts[-1].sum() < num_slots:
            starts.append(
                self._within(starts[-1] + np.bincount(self._sources(len(starts) - 1), minlength=len(starts[0])))
            )
        self._starts = np.array(starts)  # of each block: examples of each corpus before it
        self._first_slots = self._starts.sum(axis=1)
        self._opened: tuple[int, tuple[IntArray, IntArray, IntArray]] | None = None

    def counts_before(self, slots: IntArray) -> IntArray:
        """Return how many slots of each corpus come before each of `slots`: shape (num_slots, num_corpora)."""
        block_of = np.searchsorted(self._first_slots, slots, side="right") - 1
        found = np.empty((len(slots), self._starts.shape[1]), np.int64)
        for block in set(block_of.tolist()):
            here = block_of == block
            running = np.concatenate([self._starts[block : block + 1], self._open(block)[2]])
            found[here] = running[slots[here] - self._first_slots[block]]
        return found

    def between(self, first: int, last: int) -> tuple[IntArray, IntArray]:
        """Return the corpus of the slots from `first` to before `last`, and how many of that corpus come before."""
        begin, end = np.searchsorted(self._first_slots, [first, last - 1], side="right").tolist()
        corpora, ordinals, _ = zip(*map(self._open, range(begin - 1, end)), strict=True)
        inside = slice(first - self._first_slots[begin - 1], last - self._first_slots[begin - 1])
        return np.concatenate(corpora)[inside], np.concatenate(ordinals)[inside]

    def _open(self, block: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return corpus and ordinal of the slots of a block, and the counts after each; the last one is remembered."""
        if self._opened is None or self._opened[0] != block:
            corpus = self._sources(block)
            running = running_counts(corpus, self._starts[block])
            ordinal = running[np.arange(len(corpus)), corpus] - 1
            kept = slice(None) if self.limits is None else ordinal < self.limits[corpus]
            self._opened = block, (corpus[kept], ordinal[kept], self._within(running[kept]))
        return self._opened[1]

    def _sources(self, block: int) -> IntArray:
        """Return the corpora that the draws of a block name, as `Generator.choice` computes them."""
        first = self.first_draw + block * BLOCK_DRAWS
        numbers = np.random.Generator(np.random.PCG64(self.seed).advance(first)).random(BLOCK_DRAWS)
        steps = np.arange(first, first + BLOCK_DRAWS) // self.batch_size
        borders = np.cumsum(self.chances(np.arange(steps[0], steps[-1] + 1)), axis=1)
        borders /= borders[:, -1:]
        if len(borders) == 1:
            return borders[0].searchsorted(numbers, side="right")
        return np.asarray((numbers[:, None] >= borders[steps - steps[0]]).sum(axis=1))

    def _within(self, counts: IntArray) -> IntArray:
        return counts if self.limits is None else np.minimum(counts, self.limits)


def running_counts(corpus: IntArray, start: IntArray) -> IntArray:
    """Return how often each corpus has come after each entry: shape (num_entries, num_corpora)."""
    found: IntArray = start + np.cumsum(corpus[:, None] == np.arange(len(start)), axis=0)
    return found


def slots_until(
    strategy: str, names: Sequence[str], sizes: Sequence[int | None], chances: FloatArray, seed: int
) -> int:
    """Return after how many slots a `stopping_strategy` of `interleave_datasets` ends.

    Args:
        strategy: "first_exhausted", "all_exhausted" or "all_exhausted_without_replacement".
        names, sizes: of the corpora.
        chances: the probability of each.
        seed: of the draws.
    """
    is_drawn = chances > 0
    for name, size, chance in zip(names, sizes, chances.tolist(), strict=True):
        if size is None:
            raise ValueError(
                f"`stopping_strategy` ({strategy}) must know the length of corpus {name!r}, which is a stream. Give "
                "`max_steps`."
            )
        if strategy != "first_exhausted" and size > chance * MOST_DRAWS:
            raise ValueError(
                f"`stopping_strategy` ({strategy}) does not end, because corpus {name!r} is drawn with probability "
                f"{chance:g}. Leave it out, or give `max_steps`."
            )
    limits = np.array(sizes, np.int64)
    if strategy == "all_exhausted_without_replacement":
        return int(limits.sum())
    ends = np.any if strategy == "first_exhausted" else np.all
    draws, counts, block = RandomDraws(seed, lambda steps: chances[None], 1, 0), np.zeros_like(limits), 0
    while True:
        running = running_counts(draws._sources(block), counts)
        ended = ends((running >= limits)[:, is_drawn], axis=1)
        if ended[-1]:
            return block * BLOCK_DRAWS + int(np.argmax(ended)) + 1
        counts, block = running[-1], block + 1
