"""α of every step of a run, in whole units of 2⁻³⁰, with its sums, in little memory.

A table is cut into blocks of 2¹⁶ steps. A block is kept as compressed second differences, most of which are 0 or ±1: a
constant takes no room to speak of, a curve some two bits a step. A sum up to any step opens one block.
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_interp.mixture.apportionment import ALPHA_BITS
from hf_interp.mixture.permutations import IntArray
from hf_interp.mixture.schedules import AlphaSchedule, Constant, progress_of

BLOCK_STEPS = 1 << 16


class AlphaTable:
    """α of every step.

    Args:
        texts: the blocks, from `texts` of another table.
        weigh: turns α into what is summed up; by default that is α itself.
    """

    def __init__(self, texts: Sequence[str], weigh: Callable[[IntArray], IntArray] | None = None) -> None:
        self.texts, self.weigh = list(texts), weigh
        self._opened = -1, np.zeros(1, np.int64)  # the running sums of one block
        self._sums = np.cumsum([0, *(int(self._running_sums(index)[-1]) for index in range(len(self.texts)))])

    @classmethod
    def tabulate(
        cls, schedule: AlphaSchedule, max_steps: int, weigh: Callable[[IntArray], IntArray] | None = None
    ) -> "AlphaTable":
        """Return the table of a schedule.

        Raises:
            ValueError: for what is not a number in [0, 1], with its step.
        """
        texts: list[str] = []
        for first in range(0, max_steps, BLOCK_STEPS):
            steps = np.arange(first, min(first + BLOCK_STEPS, max_steps))
            if isinstance(schedule, Constant) and len(steps) == BLOCK_STEPS and texts:
                texts.append(texts[0])
                continue
            progress = (steps / max(max_steps - 1, 1)).tolist()  # `progress_of`, rounded alike
            texts.append(_pack(to_units(list(map(schedule, progress)), first, max_steps)))
        return cls(texts, weigh)

    def __getitem__(self, step: int) -> int:
        return int(_unpack(self.texts[step // BLOCK_STEPS])[step % BLOCK_STEPS])

    def blocks(self, first: int = 0) -> Iterator[tuple[int, IntArray]]:
        """Give the steps from `first` on, a block at a time: the first of them, and their α."""
        for index in range(first // BLOCK_STEPS, len(self.texts)):
            begin = max(first - index * BLOCK_STEPS, 0)
            yield index * BLOCK_STEPS + begin, _unpack(self.texts[index])[begin:]

    def replaced(self, first: int, units: IntArray) -> "AlphaTable":
        """Return a table with other α from step `first` on."""
        texts = list(self.texts)
        for start in range(first - first % BLOCK_STEPS, first + len(units), BLOCK_STEPS):
            block = _unpack(texts[start // BLOCK_STEPS]).copy()
            begin, end = max(first, start), min(first + len(units), start + BLOCK_STEPS)
            block[begin - start : end - start] = units[begin - first : end - first]
            texts[start // BLOCK_STEPS] = _pack(block)
        return AlphaTable(texts, self.weigh)

    def sums_before(self, steps: IntArray) -> IntArray:
        """Return Σ over all steps before each of `steps`."""
        block = np.minimum(steps // BLOCK_STEPS, len(self.texts) - 1)
        found = self._sums[block]
        for index in set(block.tolist()):
            here = block == index
            found[here] += self._running_sums(index)[steps[here] - index * BLOCK_STEPS]
        return found

    def extremes(self, first: int) -> tuple[int, int]:
        """Return the least and the most that is summed up for a step from `first` on."""
        ends = [end for _, units in self.blocks(first) for end in (units.min(), units.max())]
        both = np.array([min(ends), max(ends)])
        least, most = (both if self.weigh is None else self.weigh(both)).tolist()  # which rises with α
        return least, most

    def landmarks(self, first: int, few: int) -> list[int]:
        """Return the steps from `first` on that tell the schedule: both ends, the borders of phases, points between.

        Up to `few` jumps are told one by one.
        """
        moves: list[int] = []  # the steps after which α changes; of many the first ones and the last
        before: IntArray = np.zeros(0, np.int64)
        for start, units in self.blocks(first):
            moved = np.flatnonzero(np.diff(np.append(before, units))) + start - len(before)
            moves = [*moves, *moved[: few + 1].tolist(), *moved[-1:].tolist()]
            moves, before = sorted({*moves[: few + 1], *moves[-1:]}), units[-1:]
        marks = {first, start + len(units) - 1}
        if 0 < len(moves) <= few:
            marks |= {step + offset for step in moves for offset in (0, 1)}
        elif moves:
            marks |= {int(step) for step in np.linspace(moves[0], moves[-1] + 1, 5).round()}
        return sorted(marks)

    def sha256(self) -> str:
        """Return a hash of all α."""
        digest = hashlib.sha256()
        for _, units in self.blocks():
            digest.update(units.astype("<i8").tobytes())
        return digest.hexdigest()

    def _running_sums(self, index: int) -> IntArray:
        """Return the sums before each step of a block, and that of all; the last block asked for is remembered."""
        if self._opened[0] != index:
            units = _unpack(self.texts[index])
            weighed = units if self.weigh is None else self.weigh(units)
            self._opened = index, np.append(0, np.cumsum(weighed))
        return self._opened[1]


def to_units(alphas: Sequence[Any], first: int, max_steps: int) -> IntArray:
    """Return α of the steps from `first` on in units of 2⁻³⁰.

    Raises:
        ValueError: for what is not a number in [0, 1], with its step.
    """
    values = _as_floats(alphas, first)
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))  # NaN compares false
    if wrong.size:
        step = first + int(wrong[0])
        raise ValueError(
            f"The α schedule must stay in [0, 1], got {values[wrong[0]]} at step {step} of {max_steps} "
            f"(progress {progress_of(step, max_steps):.4g})."
        )
    return np.rint(values * (1 << ALPHA_BITS)).astype(np.int64)


def _as_floats(alphas: Sequence[Any], first: int) -> npt.NDArray[np.float64]:
    if set(map(type, alphas)) == {float}:  # which is fast, and the usual case
        return np.array(alphas, np.float64)
    values = np.empty(len(alphas), np.float64)
    for index, alpha in enumerate(alphas):
        try:
            if isinstance(alpha, str):  # which float() would read
                raise TypeError
            values[index] = float(alpha)
        except (TypeError, ValueError):
            raise ValueError(f"The α schedule must return a number, got {alpha!r} at step {first + index}.") from None
    return values


def _pack(units: IntArray) -> str:
    bends = np.diff(units, n=2, prepend=[0, 0])
    small = bends.astype(np.min_scalar_type(-1 - int(np.abs(bends).max())).newbyteorder("<"))
    return f"{small.dtype.str}:{base64.b85encode(zlib.compress(small.tobytes())).decode()}"


@lru_cache(maxsize=8)
def _unpack(text: str) -> IntArray:
    kind, _, packed = text.partition(":")
    bends = np.frombuffer(zlib.decompress(base64.b85decode(packed)), kind).astype(np.int64)
    units = np.cumsum(np.cumsum(bends))
    units.flags.writeable = False  # it is shared
    return units
