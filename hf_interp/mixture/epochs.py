"""Epochs of a mixture: passes of one of its sides, or of both, under the plan."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from hf_interp.mixture.apportionment import CorpusSpec, Unit
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule

EpochSide = Literal["domain", "general", "all"]
EPOCH_SIDES: tuple[EpochSide, ...] = get_args(EpochSide)
FIRST_TRY = 1 << 12
"""Steps after which a side that has given nothing is taken to give nothing at all."""
MOST_STEPS = 1 << 27
AHEAD = 64
"""Steps that are looked ahead, whose sums take no longer than that of one."""


class Epochs:
    """The epochs of a plan.

    An epoch ends with the step in which the side has given as many examples as its corpora have, and with the run. A
    side that is a stream, or is not read, has one epoch: the run.
    """

    def __init__(self, plan: MixturePlan, side: EpochSide = "domain") -> None:
        self.plan, self.side = plan, side
        self._known = 0, [0]  # what has been drawn before some consecutive steps, from the first of them on
        size = examples_of_epoch(plan.corpora, side)
        self.num_examples = size if size and self._drawn(plan.max_steps) else None

    def passed(self, step: int) -> tuple[float, bool]:
        """Return how many epochs lie before a step, and whether one (or the run) ends there: then they are whole."""
        is_last = step >= self.plan.max_steps
        if self.num_examples is None:
            return step / self.plan.max_steps, is_last
        before, drawn = self._drawn(max(step - 1, 0)), self._drawn(step)
        if drawn // self.num_examples > before // self.num_examples:
            return float(drawn // self.num_examples), True
        return drawn / self.num_examples, is_last

    def number(self, step: int) -> int:
        """Return the number of the epoch, from 0 on, to which a step belongs."""
        return 0 if self.num_examples is None else self._drawn(step) // self.num_examples

    def count(self) -> int:
        """Return how many epochs there are, the last of which may be cut short."""
        return max(math.ceil(self.passed(self.plan.max_steps)[0]), 1)

    def borders(self, most: int) -> list[int]:
        """Return after how many steps each of the first `most` epochs ends."""
        steps, whole = range(self.plan.max_steps + 1), self.num_examples
        ends = {} if whole is None else {bisect_left(steps, n * whole, key=self._drawn) for n in range(1, most + 1)}
        return sorted({min(end, self.plan.max_steps) for end in ends or {self.plan.max_steps}})

    def _drawn(self, step: int) -> int:
        first, known = self._known
        if not first <= step < first + len(known):
            # a few at a time, as that takes no longer; a controller decides the α of those beyond what is committed
            last = min(step + AHEAD, self.plan.num_committed)
            sides = self.plan.sides_before_all(range(step, max(last, step) + 1))
            found = sides["general"] + sides["domain"] if self.side == "all" else sides[self.side]
            first, known = self._known = step, found.tolist()
        return known[step - first]


def examples_of_epoch(corpora: Sequence[CorpusSpec], side: EpochSide) -> int | None:
    """Return how many examples the corpora of a side have that are read; `None` for none, or a stream."""
    sizes = [corpus.num_examples for corpus in corpora if side in (corpus.side, "all") and corpus.share != 0]
    return sum(size or 0 for size in sizes) if sizes and None not in sizes else None


def steps_of_epochs(
    num_epochs: float,
    corpora: Sequence[CorpusSpec],
    schedule_of: Callable[[int], AlphaSchedule],
    *,
    batch_size: int,
    unit: Unit = "examples",
    side: EpochSide = "domain",
    mixture_path: Sequence[Mapping[str, Any]] | None = None,
) -> int:
    """Return the fewest steps in which a side gives `num_epochs` times as many examples as its corpora have.

    `schedule_of` gives α over progress for a number of steps.
    """
    remedy = "Set `max_steps`, or another `mixture_epoch`."
    size = examples_of_epoch(corpora, side)
    if size is None or not num_epochs > 0:
        raise ValueError(
            f"`num_train_epochs` ({num_epochs:g}) must be positive and count passes of corpora with a length, but the "
            f"side {side!r} of the mixture has a stream or no corpus. {remedy}"
        )
    wanted = math.ceil(num_epochs * size)
    settings: dict[str, Any] = {"batch_size": batch_size, "unit": unit, "mixture_path": mixture_path}
    without_limits = [replace(corpus, max_passes=None) for corpus in corpora]

    def drawn(steps: int) -> int:
        try:
            plan = MixturePlan(without_limits, alpha_schedule=schedule_of(steps), max_steps=steps, **settings)
        except ValueError:  # phases that do not fit into so few steps
            return -1
        sides = plan.sides_before(steps)
        return sum(sides.values()) if side == "all" else sides[side]

    steps = max(wanted // batch_size, 1)
    while drawn(steps) < wanted:
        steps *= 2
        if steps > MOST_STEPS or (steps > FIRST_TRY and drawn(steps) <= 0):
            # which says what is wrong with the schedule
            MixturePlan(without_limits, alpha_schedule=schedule_of(FIRST_TRY), max_steps=FIRST_TRY, **settings)
            raise ValueError(f"α asks for too few {side} examples: {num_epochs:g} passes of them do not end. {remedy}")
    guess = steps * wanted // drawn(steps)
    low, high = max(guess - 8, 1), guess + 8
    if not drawn(low) < wanted <= drawn(high):
        low, high = max(steps // 2, 1), steps
    return bisect_left(range(high), wanted, lo=low, key=drawn)
