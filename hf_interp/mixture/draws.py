"""Corpora drawn at random, slot by slot, in the order of `datasets.interleave_datasets`.

That draws the source of every example with one random number, from `numpy.random.default_rng(seed)`, and reads each
source in its own order. A generator can be moved to any number at once, so the source of a slot is known without those
before it. How many examples of each corpus come before it is counted once, and kept for every 2¹³ draws. Only NumPy is
imported here.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hf_interp.mixture.permutations import IntArray

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
