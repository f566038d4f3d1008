"""α of every step of a run, in whole units of 2⁻³⁰, with its sums, in little memory and no time before it is asked for.

The built-in schedules are worked out for all steps at once, where they are first needed. A run of more than 2²⁰ steps
holds α for a power of two of them at a time, so that no table has more entries than that. As text, in a checkpoint, a
table is cut into blocks of compressed second differences, most of which are 0 or ±1.
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_interp.mixture.apportionment import ALPHA_BITS
from hf_interp.mixture.permutations import IntArray
from hf_interp.mixture.schedules import AlphaSchedule, Constant, Curve, progress_of

Units = IntArray | npt.NDArray[np.int32]

MOST_CELLS = 1 << 20
BLOCK_CELLS = 1 << 16
NEAR = 1e-3
"""Units by which libraries may differ on a function: α so near to a half unit is asked for as a single number."""


class AlphaTable:
    """α of every step; of `stride` steps at a time in a long run, which are a cell.

    Args:
        units: α of every cell, or what gives it when it is first needed.
        num_steps: of the run.
        weigh: turns α into what is summed up; by default that is α itself.
        stride: steps of a cell.
    """

    def __init__(
        self,
        units: Units | Callable[[], Units],
        num_steps: int,
        weigh: Callable[[IntArray], IntArray] | None = None,
        stride: int = 1,
    ) -> None:
        self._given, self.num_steps, self.weigh, self.stride = units, num_steps, weigh, stride
        self._opened = -1, np.zeros(1, np.int64)  # the running sums of one block

    @classmethod
    def tabulate(
        cls,
        schedule: AlphaSchedule,
        max_steps: int,
        weigh: Callable[[IntArray], IntArray] | None = None,
        most: int | None = MOST_CELLS,
    ) -> "AlphaTable":
        """Return the table of a schedule, of so many cells at the `most`."""
        stride = 1
        while most is not None and -(-max_steps // stride) > most:
            stride *= 2
        if isinstance(schedule, Curve | Constant):
            return cls(lambda: _evaluate(schedule, max_steps, stride), max_steps, weigh, stride)
        progress = (np.arange(0, max_steps, stride) / max(max_steps - 1, 1)).tolist()  # `progress_of`, rounded alike
        return cls(to_units(list(map(schedule, progress)), 0, max_steps, stride), max_steps, weigh, stride)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        max_steps: int,
        weigh: Callable[[IntArray], IntArray] | None = None,
        stride: int = 1,
    ) -> "AlphaTable":
        """Return the table that `texts` of another one describe."""
        known = {text: _unpack(text) for text in set(texts)}
        return cls(np.concatenate([known[text] for text in texts]), max_steps, weigh, stride)

    @cached_property
    def units(self) -> npt.NDArray[np.int32]:
        """α of every cell."""
        return np.asarray(self._given() if callable(self._given) else self._given, np.int32)

    @cached_property
    def texts(self) -> list[str]:
        """The table as text, a block of cells each."""
        return [_pack(self.units[first : first + BLOCK_CELLS]) for first in range(0, len(self.units), BLOCK_CELLS)]

    @cached_property
    def sha256(self) -> str:
        """A hash of all α."""
        digest = hashlib.sha256()
        for first in range(0, len(self.units), BLOCK_CELLS):
            digest.update(self.units[first : first + BLOCK_CELLS].astype("<i8").tobytes())
        if self.stride > 1:
            digest.update(f"{self.stride} {self.num_steps}".encode())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": self.units}  # a schedule need not be picklable

    def __getitem__(self, step: int) -> int:
        return int(self.units[step // self.stride])

    def cells(self, first: int = 0) -> tuple[IntArray, IntArray]:
        """Return the steps from `first` on at which a cell begins, or is entered, and their α."""
        begin = first // self.stride
        steps = np.arange(begin, len(self.units)) * self.stride
        steps[:1] = first
        return steps, self.units[begin:].astype(np.int64)

    def replaced(self, first: int, units: Units) -> "AlphaTable":
        """Return a table with other α from step `first` on, which has a cell for every step."""
        changed = self.units.copy()
        changed[first : first + len(units)] = units
        return AlphaTable(changed, self.num_steps, self.weigh)

    def sums_before(self, steps: IntArray) -> IntArray:
        """Return Σ over all steps before each of `steps`."""
        if self.stride == 1 and len(self.units) <= BLOCK_CELLS:  # the usual case
            return self._running_sums(0)[steps]
        cell, inside = np.divmod(steps, self.stride)
        block = np.minimum(cell, len(self.units) - 1) // BLOCK_CELLS
        found = self._sums[block]
        for index in set(block.tolist()):
            here = block == index
            place, sums = cell[here] - index * BLOCK_CELLS, self._running_sums(index)
            of_cell = sums[np.minimum(place + 1, len(sums) - 1)] - sums[place]
            found[here] += sums[place] * self.stride + of_cell * inside[here]
        return found

    def extremes(self, first: int) -> tuple[int, int]:
        """Return the least and the most that is summed up for a step from `first` on."""
        units = self.units[first // self.stride :]
        both = np.array([units.min(), units.max()], np.int64)
        least, most = (both if self.weigh is None else self.weigh(both)).tolist()  # which rises with α
        return least, most

    def landmarks(self, first: int, few: int) -> list[int]:
        """Return the steps from `first` on that tell the schedule: both ends, the borders of phases, points between.

        Up to `few` jumps are told one by one.
        """
        units = self.units[first // self.stride :]
        moved = np.flatnonzero(units[1:] != units[:-1])
        few_moves = moved if len(moved) <= few else moved[[0, -1]]
        moves = ((first // self.stride + few_moves + 1) * self.stride - 1).tolist()  # α changes after these steps
        marks = {first, self.num_steps - 1}
        if len(moved) <= few:
            marks |= {step + offset for step in moves for offset in (0, 1)}
        else:
            marks |= {int(step) for step in np.linspace(moves[0], moves[-1] + 1, 5).round()}
        return sorted(marks)

    @cached_property
    def _sums(self) -> IntArray:
        """Σ over the steps before each block."""
        blocks = range(-(-len(self.units) // BLOCK_CELLS))
        return np.cumsum([0, *(int(self._running_sums(index)[-1]) * self.stride for index in blocks)])

    def _running_sums(self, index: int) -> IntArray:
        """Return the sums before each cell of a block, and that of all; the last block asked for is remembered."""
        if self._opened[0] != index:
            units = self.units[index * BLOCK_CELLS : (index + 1) * BLOCK_CELLS].astype(np.int64)
            weighed = units if self.weigh is None else self.weigh(units)
            self._opened = index, np.append(0, np.cumsum(weighed))
        return self._opened[1]


def _evaluate(schedule: Curve | Constant, num_steps: int, stride: int) -> Units:
    """Return α of every cell in units, each as if the schedule had been asked for it alone."""
    found = np.empty(-(-num_steps // stride), np.int32)
    for first in range(0, len(found), BLOCK_CELLS):
        progress = np.arange(first, min(first + BLOCK_CELLS, len(found))) * stride / max(num_steps - 1, 1)
        exact = schedule.function(progress) * (1 << ALPHA_BITS)
        units = np.rint(exact)
        near = np.flatnonzero(np.abs(exact - units) > 0.5 - NEAR)
        units[near] = to_units(list(map(schedule, progress[near].tolist())), 0, num_steps)
        found[first : first + len(units)] = units
    return found


def to_units(alphas: Sequence[Any], first: int, max_steps: int, stride: int = 1) -> IntArray:
    """Return α of the steps from `first` on, or every so many of them, in units of 2⁻³⁰."""
    values = _as_floats(alphas, first, stride)
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))  # NaN compares false
    if wrong.size:
        step = first + int(wrong[0]) * stride
        raise ValueError(
            f"The α schedule must stay in [0, 1], got {values[wrong[0]]} at step {step} of {max_steps} "
            f"(progress {progress_of(step, max_steps):.4g})."
        )
    return np.rint(values * (1 << ALPHA_BITS)).astype(np.int64)


def _as_floats(alphas: Sequence[Any], first: int, stride: int) -> npt.NDArray[np.float64]:
    if set(map(type, alphas)) == {float}:  # which is fast, and the usual case
        return np.array(alphas, np.float64)
    values = np.empty(len(alphas), np.float64)
    for index, alpha in enumerate(alphas):
        try:
            if isinstance(alpha, str):  # which float() would read
                raise TypeError
            values[index] = float(alpha)
        except (TypeError, ValueError):
            raise ValueError(
                f"The α schedule must return a number, got {alpha!r} at step {first + index * stride}."
            ) from None
    return values


def _pack(units: npt.NDArray[np.int32]) -> str:
    bends = np.diff(units.astype(np.int64), n=2, prepend=[0, 0])
    small = bends.astype(np.min_scalar_type(-1 - int(np.abs(bends).max())).newbyteorder("<"))
    return f"{small.dtype.str}:{base64.b85encode(zlib.compress(small.tobytes())).decode()}"


def _unpack(text: str) -> IntArray:
    kind, _, packed = text.partition(":")
    bends = np.frombuffer(zlib.decompress(base64.b85decode(packed)), kind).astype(np.int64)
    return np.cumsum(np.cumsum(bends))
