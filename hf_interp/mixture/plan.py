"""Which example of which corpus sits in which slot of which optimizer step: a pure function of integers.

A run of `max_steps` steps with a global batch of `batch_size` has `max_steps * batch_size` slots. Step s owns the slots
s·B … s·B + B − 1, and a share α(s) of them belongs to the domain side. `MixturePlan` answers for any slot, at once and
in any process, which example it holds; nothing is drawn at random while training, so workers, ranks, accumulation and
restarts cannot change the order.

How it is exact:

- α(s) is rounded once to a multiple of 2⁻³⁰; everything after that is integer arithmetic.
- Counts: up to step s the domain side has had round(B·Σα) slots and the general side the rest;
  `hf_interp.mixture.apportionment` deals them to the corpora of a side, each within 2 slots of its target at every step
  (within 1 for two corpora). Where shares move along a path of mixtures, `hf_interp.mixture.paths` counts.
- Order inside a global batch: a permutation keyed by (seed, step).
- Order inside a pass over a corpus: a permutation keyed by (seed, corpus, pass).
- `hf_interp.mixture.order` has other orders: corpora in sequence, windows of steps by length, draws at random.

A run whose settings change in the middle is a chain of plans: each begins at a step, at the counts that the one before
it has consumed. An adaptive α is fixed a few steps at a time (`commit`); what is fixed never changes.

Only NumPy is imported here.
"""

import copy
import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_interp.mixture.alpha_table import MOST_CELLS, AlphaTable, to_units
from hf_interp.mixture.apportionment import (
    SIDES,
    CorpusSpec,
    Side,
    Unit,
    check_corpora,
    domain_slots,
    share_tree,
    share_units,
    weigher,
)
from hf_interp.mixture.order import Order, RandomDraws, chances_at, in_sequence, share_out_by_length, steps_until
from hf_interp.mixture.paths import FULL, MixturePath, PathCounts, path_of
from hf_interp.mixture.permutations import IntArray, batch_orders, derive_key, permute, splitmix64
from hf_interp.mixture.schedules import AlphaSchedule, Constant

ORDER_VERSION = 1  # raise it with any change of this module that makes the same settings read in another order
MANY_PASSES = 4  # repeating data up to about four times costs little (Muennighoff et al. 2023, arXiv 2305.16264)
BLOCK_SLOTS = 512  # slots laid out at a time: enough to hide the overhead of NumPy calls, few enough to seek fast


class Draw(NamedTuple):
    """The contents of some slots, one entry a slot."""

    corpus: IntArray
    """Index into `MixturePlan.corpora`."""
    ordinal: IntArray
    """How many examples of that corpus come before this one in the whole run."""
    example: IntArray
    """Index into the corpus (for a stream: the ordinal)."""


class MixturePlan:
    """The complete reading order of a run.

    Args:
        corpora: what is mixed (see `CorpusSpec`).
        alpha_schedule: a function from progress in [0, 1] to α in [0, 1]. It is asked once for every step, here.
        batch_size: the global batch: examples per optimizer step over all processes and accumulation steps.
        max_steps: optimizer steps of the run; `None` where the order has a stopping strategy.
        seed: another seed, another order; counts stay the same.
        unit: what α and the shares count: "examples", or "tokens", for which the counts of examples are corrected by
            the corpora's mean lengths.
        mixture_path: shares of all corpora over α, as points `{"at": 0.5, "web": 0.8, "law": 0.2}` (see
            `hf_interp.mixture.paths`); the corpora then have none of their own.
        num_committed: steps whose α is fixed from the beginning; all of them by default. The others follow the schedule
            in forecasts only, and cannot be read before `commit` has fixed their α.
        order: how the slots are filled, if not in the plan's own order.

    Attributes:
        num_committed (`int`): how many steps have an α that is fixed.
        is_adaptive (`bool`): whether some had none when the plan was made.
        start_step (`int`): the first step of this plan; 0, unless it goes on where another ended (`after`).
        previous (`MixturePlan` or `None`): the plan of the steps before `start_step`.

    Raises:
        ValueError: for an empty corpus, shares that do not sum to 1, an α that is not in [0, 1] at some step, a side
            that α asks for but that has no corpus, a corpus read more often than its `max_passes`.

    >>> from hf_interp.mixture.schedules import linear
    >>> corpora = [CorpusSpec(name="web", side="general", num_examples=100),
    ...            CorpusSpec(name="law", side="domain", num_examples=10)]
    >>> plan = MixturePlan(corpora, alpha_schedule=linear(0, 1), batch_size=4, max_steps=5)
    >>> [plan.alpha(step) for step in range(5)]
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> plan.drawn_before([0, 1, 2, 3, 4, 5]).tolist()
    [[0, 0], [4, 0], [7, 1], [9, 3], [10, 6], [10, 10]]
    >>> plan.locate(range(8)).corpus.tolist().count(1)
    1
    """

    corpora: tuple[CorpusSpec, ...]
    batch_size: int
    max_steps: int
    seed: int
    unit: Unit
    num_committed: int
    is_adaptive: bool
    start_step: int = 0
    previous: "MixturePlan | None" = None
    order: Order
    _path: MixturePath | None = None
    _share_units: list[int]
    _alphas: AlphaTable
    _schedule: AlphaTable

    def __init__(
        self,
        corpora: Sequence[CorpusSpec],
        *,
        alpha_schedule: AlphaSchedule,
        batch_size: int,
        max_steps: int | None,
        seed: int = 0,
        unit: Unit = "examples",
        mixture_path: Sequence[Mapping[str, Any]] | None = None,
        num_committed: int | None = None,
        order: Order | None = None,
    ) -> None:
        order = order or Order()
        if (max_steps is None) == (order.stopping_strategy is None):
            raise ValueError(
                f"Either `max_steps` or a `stopping_strategy` ends a mixture, got {max_steps} and "
                f"{order.stopping_strategy}."
            )
        self.corpora = check_corpora(corpora, unit)
        self._path = path_of(self.corpora, mixture_path, unit)
        if self._path is not None and (order.stopping_strategy is not None or order.probabilities is not None):
            raise ValueError("A path of mixtures needs `max_steps`, and no `stopping_strategy` or `probabilities`.")
        if max_steps is None:
            max_steps = steps_until(order, corpora, alpha_schedule, batch_size=batch_size, seed=seed, unit=unit)
        for name, value in (("batch_size", batch_size), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.batch_size, self.max_steps, self.seed, self.unit = int(batch_size), int(max_steps), int(seed), unit
        self.num_committed = self.max_steps if num_committed is None else min(int(num_committed), self.max_steps)
        self.is_adaptive = self.num_committed < self.max_steps
        if self._path is not None and self.is_adaptive:
            raise ValueError(
                "A controller cannot move α along a path of mixtures: what a corpus gives in a step depends on α of "
                "later ones. Leave `alpha_controller` out, or give each corpus one side."
            )
        self._share_units = share_units(self.corpora, unit) if self._path is None else []
        weigh = weigher(self.corpora, self._share_units, unit) if self._path is None else None
        # a controller decides on single steps, and a path keeps a sum for every corpus
        most = None if self.is_adaptive else MOST_CELLS // (1 if self._path is None else 4 * len(self.corpora))
        self._alphas = self._schedule = AlphaTable.tabulate(alpha_schedule, self.max_steps, weigh, most)
        self.order = self._settle(order, alpha_schedule)
        self._work_out()
        self._check_sides_asked_for(0)
        self._check_max_passes(self.max_steps)

    @property
    def is_path(self) -> bool:
        """Whether shares move along a path of mixtures."""
        return self._path is not None

    def __len__(self) -> int:
        """Return the number of slots in the run."""
        return self.max_steps * self.batch_size

    def alpha(self, step: int) -> float:
        """Return α of a 0-based optimizer step; the last step's from there on."""
        if self.previous is not None and step < self.start_step:
            return self.previous.alpha(step)
        return self._alphas[min(max(step, 0), self.max_steps - 1)] / FULL

    def scheduled_alpha(self, step: int) -> float:
        """Return α that the schedule has for a step, whatever has been fixed."""
        return self._schedule[min(max(step, 0), self.max_steps - 1)] / FULL

    def commit(self, alphas: Sequence[float]) -> None:
        """Fix α of the next steps that have none fixed yet, each at the nearest value that keeps to all `max_passes`.

        Raises:
            ValueError: for an α outside [0, 1], a side without a corpus, or more steps than the run has left.
        """
        first, last = self.num_committed, self.num_committed + len(alphas)
        if last > self.max_steps:
            raise ValueError(f"α of steps {first} … {last - 1} cannot be fixed: the run has {self.max_steps} steps.")
        fixed = self._within_passes(to_units(alphas, first, self.max_steps), first)
        self._check_sides_asked_for(first, fixed)
        self._alphas, self.num_committed = self._alphas.replaced(first, fixed), last

    def after(self, previous: "MixturePlan | None", step: int) -> "MixturePlan":
        """Return this plan from `step` on, and `previous` before: what that has consumed is not read again in a pass.

        Without a previous plan nothing has been read before `step`. What a previous plan has fixed of an adaptive α
        stays in force.
        """
        if self.order.stopping_strategy is not None:
            raise ValueError(
                f"`stopping_strategy` ({self.order.stopping_strategy}) ends a run that keeps its settings, and they "
                "have changed. Give `max_steps`."
            )
        plan = copy.copy(self)
        plan.start_step, plan.previous = step, previous
        if self.is_adaptive:
            plan.num_committed = min(step + self.num_committed, self.max_steps)
            if previous is not None and previous.is_adaptive and previous.num_committed > step:
                plan.num_committed = min(previous.num_committed, self.max_steps)
                fixed = previous._alphas.units[step : plan.num_committed]
                plan._alphas = plan._alphas.replaced(step, fixed)
        plan._work_out()
        plan._check_sides_asked_for(step)
        plan._check_max_passes(plan.num_committed)
        return plan

    def with_seed(self, seed: int) -> "MixturePlan":
        """Return the plan of the same mixture with another seed."""
        if self.order.stopping_strategy is not None:  # whose end the seed decides
            settings: dict[str, Any] = {"alpha_schedule": Constant(self.alpha(0)), "batch_size": self.batch_size}
            return MixturePlan(self.corpora, max_steps=None, seed=seed, unit=self.unit, order=self.order, **settings)
        plan = copy.copy(self)
        plan.seed = seed
        plan._work_out()
        plan._check_max_passes(plan.max_steps)
        return plan

    def plan_of(self, step: int) -> "MixturePlan":
        """Return the plan in the chain that rules a step."""
        return self if self.previous is None or step >= self.start_step else self.previous.plan_of(step)

    def drawn_before(self, steps: int | Iterable[int]) -> IntArray:
        """Count the examples of each corpus before each of `steps` (0 … max_steps): shape (…, num_corpora)."""
        steps = np.asarray(steps, np.int64)
        flat = steps.reshape(-1)
        counts = self._start_drawn + self._drawn_since_start(np.maximum(flat, self.start_step))
        if self.previous is not None:
            for row in np.flatnonzero(flat < self.start_step):
                consumed = self.previous.consumed(int(flat[row]))
                counts[row] = [consumed.get(corpus.name, 0) for corpus in self.corpora]
        return counts.reshape(*steps.shape, len(self.corpora))

    def consumed(self, step: int) -> dict[str, int]:
        """Count the examples drawn before `step` by name, also of corpora that only earlier plans of the chain had."""
        earlier = self.previous.consumed(min(step, self.start_step)) if self.previous is not None else {}
        names = [corpus.name for corpus in self.corpora]
        return {**earlier, **dict(zip(names, self.drawn_before(step).tolist(), strict=True))}

    def sides_before(self, step: int) -> dict[Side, int]:
        """Count the examples of each side in all steps before `step`, each counted to the side it was drawn for."""
        return {side: int(counts[0]) for side, counts in self.sides_before_all(range(step, step + 1)).items()}

    def sides_before_all(self, steps: range) -> dict[Side, IntArray]:
        """Count the same before each of some consecutive steps."""
        early = range(steps.start, min(steps.stop, self.start_step)) if self.previous is not None else range(0)
        found = self._side_totals(np.maximum(np.arange(steps.start, steps.stop), self.start_step))
        if self.previous is None:
            return found
        at_start = self.previous.sides_before(self.start_step)
        found = {side: counts + at_start[side] for side, counts in found.items()}
        for side, counts in self.previous.sides_before_all(early).items() if early else ():
            found[side][: len(early)] = counts
        return found

    def locate(self, slots: range | Sequence[int] | IntArray) -> Draw:
        """Return what the given slots hold."""
        if isinstance(slots, range) and slots.step == 1 and len(slots):  # the usual case, a batch of one step
            self._check_slots(slots[0], slots[-1])
            block, offset = divmod(slots[0] - self._first_slot, self._block_steps * self.batch_size)
            if offset + len(slots) <= self._block_steps * self.batch_size:
                return self._draw(block, slice(offset, offset + len(slots)))
        slots = np.asarray(slots, np.int64)
        if slots.size:
            self._check_slots(int(slots.min()), int(slots.max()))
        block_of, offsets = np.divmod(slots - self._first_slot, self._block_steps * self.batch_size)
        found = Draw(np.empty_like(slots), np.empty_like(slots), np.empty_like(slots))
        for block in np.unique(block_of):
            here = block_of == block
            for target, source in zip(found, self._draw(int(block), offsets[here]), strict=True):
                target[here] = source
        return found

    def read_hash(self, first_step: int, last_step: int) -> int:
        """Return `hash_of_reads` of all slots of the steps from `first_step` to before `last_step`."""
        total = 0
        for step in range(first_step, last_step):
            plan = self.plan_of(step)
            slots = range(step * plan.batch_size, (step + 1) * plan.batch_size)
            draw = plan.locate(slots)
            total += hash_of_reads(np.arange(slots.start, slots.stop), plan.name_keys[draw.corpus], draw.example)
        return total % (1 << 64)

    def passes(self, step: int) -> list[float | None]:
        """Return how often each corpus has been read through before `step`; `None` for a stream."""
        drawn = self.drawn_before(step).tolist()
        return [
            count / corpus.num_examples if corpus.num_examples else None
            for count, corpus in zip(drawn, self.corpora, strict=True)
        ]

    def exhausted_at(self, index: int) -> int | None:
        """Return the step that draws the last unread example of corpus `index`; `None` if that never happens."""
        size = self.corpora[index].num_examples
        if size is None or self.drawn_before(self.max_steps)[index] < size:
            return None
        steps = range(self.max_steps + 1)
        return bisect_left(steps, size, key=lambda step: int(self.drawn_before(step)[index])) - 1

    def warnings(self) -> list[str]:
        """Return what a user should know before the run; empty if all is well."""
        found = []
        drawn, passes = self.drawn_before(self.max_steps).tolist(), self.passes(self.max_steps)
        for corpus, largest, count, times in zip(self.corpora, self._largest_shares(), drawn, passes, strict=True):
            name, in_batch = repr(corpus.name), largest * self.batch_size
            if count == 0:
                found.append(f"Corpus {name} is never drawn. Raise its share, or move α, or leave it out.")
            if times is not None and times > MANY_PASSES:
                found.append(
                    f"Corpus {name} is read {times:.1f} times; beyond about {MANY_PASSES} passes a model gains "
                    "little and begins to memorise. Lower its share of the run, or take fewer steps."
                )
            if 0 < in_batch < 0.999 and self._draws is None:  # not 1, which a rounded share or α may miss
                found.append(
                    f"A global batch of {self.batch_size} holds {in_batch:.2g} examples of corpus {name} at the most, "
                    "so that many steps hold none. Raise the batch size or accumulate gradients to have it in every "
                    "step."
                )
        return found

    def shares(self, step: int) -> list[float]:
        """Return the share that a path of mixtures has for each corpus in the examples of a step."""
        assert self._path is not None
        units = self._path.shares(np.array([self._alphas[step]]))[0]
        return [unit / FULL for unit in units.tolist()]

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the reading order, as plain values, without what came before `start_step`."""
        path = {} if self._path is None else {"path": [list(point) for point in self._path.points]}
        return {
            **path,
            "corpora": [
                {**_as_planned(corpus, share), "content": corpus.content}
                for corpus, share in zip(self.corpora, self._shares_of_sides(), strict=True)
            ],
            "unit": self.unit,
            "mean_tokens": [corpus.mean_tokens for corpus in self.corpora] if self.unit == "tokens" else None,
            "batch_size": self.batch_size,
            "max_steps": self.max_steps,
            "seed": self.seed,
            "adaptive": self.is_adaptive,
            "order_version": ORDER_VERSION,
            "alpha_sha256": self._schedule.sha256,
            **self.order.identity(),
        }

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits; equal exactly when two runs read the same examples in the same order.

        For an adaptive α it covers what is fixed so far and the schedule from there on.
        """
        state = {
            **self.identity(),
            "alpha": self._alphas.sha256,
            "schedule": None,
            "num_committed": None,
            "start_step": self.start_step,
            "previous": None if self.previous is None else self.previous.fingerprint(),
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole plan, with the chain before it, as plain values for JSON."""
        return {
            **self.identity(),
            "alpha": self._alphas.texts,
            "schedule": self._schedule.texts if self.is_adaptive else None,
            "stride": self._alphas.stride,
            "num_committed": self.num_committed,
            "start_step": self.start_step,
            "previous": self.previous.to_dict() if self.previous is not None else None,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "MixturePlan":
        """Return the plan that `to_dict` has described.

        Raises:
            ValueError: if it was written by a version that reads in another order.
        """
        if state["order_version"] != ORDER_VERSION:
            raise ValueError(
                f"The plan was made by a version of hf_interp that reads in order {state['order_version']}; this one "
                f"reads in order {ORDER_VERSION}. Go on with the version that the run was begun with."
            )
        plan = cls.__new__(cls)
        for name in ("batch_size", "max_steps", "seed", "unit", "num_committed", "start_step"):
            setattr(plan, name, state[name])
        lengths = state["mean_tokens"] or [None] * len(state["corpora"])
        plan.corpora = tuple(
            CorpusSpec(**corpus, mean_tokens=length) for corpus, length in zip(state["corpora"], lengths, strict=True)
        )
        for corpus in plan.corpora:
            has_size = corpus.num_examples is None or 0 < corpus.num_examples < 1 << 62
            has_share = isinstance(corpus.share, float | int | None) and 0 <= (corpus.share or 0) <= 1
            if not (has_size and has_share):
                raise ValueError(f"The plan has a corpus that cannot be: {corpus}.")
        plan.is_adaptive, plan.order, weigh = state["adaptive"], Order.from_dict(state), None
        if "path" in state:
            plan._path, plan._share_units = MixturePath(state["path"], state["mean_tokens"]), []
        else:
            plan._share_units = [round(corpus["share"] * FULL) for corpus in state["corpora"]]
            weigh = weigher(plan.corpora, plan._share_units, plan.unit)
        stride = state.get("stride", 1)  # which earlier versions did not write
        plan._alphas = plan._schedule = AlphaTable.from_texts(state["alpha"], plan.max_steps, weigh, stride)
        if plan.is_adaptive:
            plan._schedule = AlphaTable.from_texts(state["schedule"], plan.max_steps)
        plan.previous = None if state["previous"] is None else cls.from_dict(state["previous"])
        plan._work_out()
        return plan

    def summary(self) -> dict[str, Any]:
        """Return the plan in numbers, ready for JSON: α along the run, and what is drawn from each corpus."""
        end = self.max_steps
        sides = {side: max(int(total[0]), 1) for side, total in self._side_totals(np.array([end])).items()}
        drawn = self._drawn_since_start(np.array([end]))[0].tolist()
        shares = [  # over all steps, where they move
            count / sides[corpus.side] if share is None else share
            for share, count, corpus in zip(self._shares_of_sides(), drawn, self.corpora, strict=True)
        ]
        counts = self._start_drawn.tolist(), self.drawn_before(end).tolist(), self.passes(end)
        corpora = [
            {
                **_as_planned(corpus, share),
                "drawn_at_start": at_start,
                "drawn": count,
                "passes": passes,
                "exhausted_at": self.exhausted_at(index),
            }
            for index, (corpus, share, at_start, count, passes) in enumerate(
                zip(self.corpora, shares, *counts, strict=True)
            )
        ]
        domain = self._side_totals(np.array([end]))["domain"][0]
        return {
            "max_steps": end,
            "batch_size": self.batch_size,
            "num_examples": sum(self.consumed(end).values()),
            "seed": self.seed,
            "unit": self.unit,
            "start_step": self.start_step,
            "alpha": [{"step": step, "alpha": self.alpha(step)} for step in self.alpha_landmarks()],
            **({} if self._path is None else {"shares": [self.shares(step) for step in self.alpha_landmarks()]}),
            "corpora": corpora,
            "domain_share": float(domain) / ((end - self.start_step) * self.batch_size),
            "warnings": self.warnings(),
            "fingerprint": self.fingerprint(),
            **({} if self.order == Order() else {"order": str(self.order)}),
        }

    def alpha_landmarks(self) -> list[int]:
        """Return the steps that tell the schedule: both ends, the borders of phases, even points between."""
        return self._alphas.landmarks(self.start_step, 6)

    def _work_out(self) -> None:
        """Work out what follows from the state of the plan."""
        if self._path is None:
            self._trees = {side: share_tree(self._share_units, self._side(side)) for side in SIDES}
        self._path_counts: PathCounts | None = None
        self._corpus_keys = np.array([derive_key(self.seed, corpus.name) for corpus in self.corpora], np.uint64)
        self.name_keys = np.array([derive_key(0, corpus.name) for corpus in self.corpora], np.uint64)
        # 0 for a stream, which is read in its own order
        self._sizes = np.array([corpus.num_examples or 0 for corpus in self.corpora], np.int64)
        self._order_key = derive_key(self.seed, "order of a batch")
        self._turn_key = derive_key(self.seed, "order of the steps of a window")
        # An adaptive α is fixed step by step, and a block must be fixed as a whole.
        self._block_steps = 1 if self.is_adaptive else self.order.window or max(1, BLOCK_SLOTS // self.batch_size)
        self._blocks: dict[int, tuple[IntArray, IntArray, IntArray | None]] = {}
        self._first_slot = self.start_step * self.batch_size
        before = self.previous.consumed(self.start_step) if self.previous is not None else {}
        self._start_drawn = np.array([before.get(corpus.name, 0) for corpus in self.corpora], np.int64)
        self._draws = self._draw_corpora() if self.order.sampling == "random" else None

    def _settle(self, order: Order, schedule: AlphaSchedule) -> Order:
        """Return the order with the probabilities of a constant α, unrounded; refuse what needs an α beforehand."""
        if self.is_adaptive and (order.sampling == "random" or order.window > 1):
            raise ValueError(
                "A controller decides α a few steps ahead, which neither random sampling nor a `length_window` of more "
                "than one step knows. Leave the controller out, or set `length_window: 1`."
            )
        if order.sampling != "random" or self.unit == "tokens" or self._path is not None:
            return order
        if order.probabilities is not None:
            return order
        if not isinstance(schedule, Constant):
            return order
        return replace(order, probabilities=chances_at(schedule.value, self.corpora))

    def _draw_corpora(self) -> RandomDraws:
        limits = None
        if self.order.stopping_strategy == "all_exhausted_without_replacement":
            limits = self._sizes
        num_slots = len(self) - self._first_slot
        return RandomDraws(
            self.seed, self._chances, self.batch_size, num_slots, first_draw=self._first_slot, limits=limits
        )

    def _chances(self, steps: IntArray) -> npt.NDArray[np.float64]:
        """Return the probability of each corpus at each of some consecutive steps, or one row for all."""
        if self.order.probabilities is not None:
            return np.array([self.order.probabilities])
        if self._path is not None:
            cells = np.minimum(steps, self.max_steps - 1) // self._alphas.stride
            return self._path.shares(self._alphas.units[cells]) / FULL
        borders = np.minimum(np.append(steps, steps[-1] + 1), self.max_steps)  # a block may go beyond the run
        alphas = np.diff(self._alphas.sums_before(borders))[:, None] / FULL
        is_domain = np.array([corpus.side == "domain" for corpus in self.corpora])
        found: npt.NDArray[np.float64] = np.where(is_domain, alphas, 1 - alphas) * self._share_units
        return found

    def _side_totals(self, steps: IntArray) -> dict[Side, IntArray]:
        """Return the slots of each side from `start_step` to before each of `steps`."""
        if self._path is not None or self._draws is not None:
            counts = self._drawn_since_start(steps)
            return {side: counts[:, self._side(side)].sum(axis=1) for side in SIDES}
        sums = self._alphas.sums_before(np.append(steps, self.start_step))
        domain = domain_slots(sums[:-1] - sums[-1], self.batch_size)
        return {"general": (steps - self.start_step) * self.batch_size - domain, "domain": domain}

    def _drawn_since_start(self, steps: IntArray) -> IntArray:
        if self._draws is not None:
            return self._draws.counts_before((steps - self.start_step) * self.batch_size)
        if self._path is not None:
            return self._counts_on(self._path).before(steps)
        counts = np.zeros((steps.size, len(self.corpora)), np.int64)
        for side, totals in self._side_totals(steps).items():
            tree = self._trees[side]
            if tree is not None:
                tree.apportion(totals, counts)
        return counts

    def _counts_on(self, path: MixturePath) -> PathCounts:
        """Return the counts on a path from `start_step` on, which are worked out when they are first needed."""
        if self._path_counts is None:
            steps, units = self._alphas.cells(self.start_step)
            borders = np.append(steps, self.max_steps)
            self._path_counts = PathCounts(borders, path.shares(units), self.batch_size)
        return self._path_counts

    def _largest_shares(self) -> list[float]:
        """Return the largest share of each corpus in the examples of a step from `start_step` on."""
        if self._path is not None:
            return self._counts_on(self._path).largest.tolist()
        least, most = self._alphas.extremes(self.start_step)
        largest = {"domain": most / FULL, "general": 1 - least / FULL}
        return [
            largest[corpus.side] * units / FULL for corpus, units in zip(self.corpora, self._share_units, strict=True)
        ]

    def _shares_of_sides(self) -> list[float | None]:
        """Return the share of each corpus in its side; `None` where it moves."""
        return [None] * len(self.corpora) if self._path is not None else [units / FULL for units in self._share_units]

    def _side(self, side: Side) -> list[int]:
        return [index for index, corpus in enumerate(self.corpora) if corpus.side == side]

    def _check_slots(self, first: int, last: int) -> None:
        if not (first >= self._first_slot and last < len(self)):
            raise IndexError(f"Slots must lie in [{self._first_slot}, {len(self)}), got {first} … {last}.")
        if last >= self.num_committed * self.batch_size:
            raise IndexError(
                f"α is fixed for the first {self.num_committed} steps, so slots must lie below "
                f"{self.num_committed * self.batch_size}, got {first} … {last}. Decide further ahead of the loader."
            )

    def _check_sides_asked_for(self, first: int, fixed: IntArray | None = None) -> None:
        """Refuse a side without a corpus that some α from step `first` on asks for; by default those of the plan."""
        missing = [side for side in SIDES if not self._side(side)]
        if not missing or self._path is not None:
            return
        steps, units = self._alphas.cells(first) if fixed is None else (np.arange(first, first + len(fixed)), fixed)
        asks = np.flatnonzero(units < FULL if missing == ["general"] else units > 0)
        if asks.size:
            raise ValueError(
                f"α is {units[asks[0]] / FULL:g} at step {steps[asks[0]]}, which asks for "
                f"{missing[0]} examples, but no corpus has side {missing[0]!r} (got "
                f"{[corpus.name for corpus in self.corpora]}). Add one, or use a constant α of "
                f"{1 if missing == ['general'] else 0}."
            )

    def _check_max_passes(self, step: int) -> None:
        """Refuse what is read too often before a step; where α adapts, `commit` holds it from there on."""
        if all(corpus.max_passes is None for corpus in self.corpora):
            return  # before α of all steps is worked out
        for corpus, passes in zip(self.corpora, self.passes(step), strict=True):
            if passes is not None and corpus.max_passes is not None and passes > corpus.max_passes:
                raise ValueError(
                    f"Corpus {corpus.name!r} would be read {passes:.2f} times, but its `max_passes` is "
                    f"{corpus.max_passes:g}. Take fewer steps, lower its share, or raise `max_passes`."
                )

    def _within_passes(self, units: IntArray, first: int) -> IntArray:
        """Return the α nearest to those given for the steps from `first` on that keep to every `max_passes`."""
        if all(corpus.max_passes is None for corpus in self.corpora):
            return units
        weigh, full, found = self._alphas.weigh or np.asarray, FULL, units.copy()
        sums = self._alphas.sums_before(np.array([self.start_step, first]))
        total, (most_general, most_domain) = int(sums[1] - sums[0]), (self._most_slots(side) for side in SIDES)
        for index in range(len(units)):
            slots = (first + index + 1 - self.start_step) * self.batch_size
            least = -((most_general - slots) * full // self.batch_size)  # Σα after the step, rounded towards fewer
            least, most = least - total, most_domain * full // self.batch_size - total
            weighed = int(weigh(units[index : index + 1])[0])
            if weighed > most:
                found[index] = bisect_right(range(full + 1), most, key=lambda unit: int(weigh(np.array([unit]))[0])) - 1
            elif weighed < least:
                found[index] = bisect_left(range(full), least, key=lambda unit: int(weigh(np.array([unit]))[0]))
            total += int(weigh(found[index : index + 1])[0])
        return found

    def _most_slots(self, side: Side) -> int:
        """Return how many slots a side may have from `start_step` on before a corpus exceeds its `max_passes`."""
        limits = [(each.max_passes or math.inf) * (each.num_examples or math.inf) + 1e-9 for each in self.corpora]
        tree, counts = self._trees[side], np.zeros((1, len(self.corpora)), np.int64)

        def exceeds(total: int) -> bool:
            if tree is not None:
                tree.apportion(np.array([total]), counts)
            return bool((counts[0] + self._start_drawn > limits).any())

        return bisect_left(range(len(self) + 1), True, key=exceeds) - 1

    def _draw(self, block: int, places: slice | IntArray) -> Draw:
        """Return what some places of a block hold."""
        corpus, ordinal, example = self._lay_out(block)
        if example is not None:
            return Draw(corpus[places], ordinal[places], example[places])
        return Draw(corpus[places], ordinal[places], self._examples(corpus[places], ordinal[places]))

    def _lay_out(self, block: int) -> tuple[IntArray, IntArray, IntArray | None]:
        """Return the contents of a block of steps; the last two blocks are remembered.

        Without the examples where a batch is large: one process of many needs a few of them only.
        """
        if block in self._blocks:
            return self._blocks[block]
        first = self.start_step + block * self._block_steps
        steps = np.arange(first, min(first + self._block_steps, self.max_steps))
        if self._draws is not None:
            slots = steps[[0, -1]] * self.batch_size - self._first_slot
            corpus, ordinal = self._draws.between(int(slots[0]), int(slots[1]) + self.batch_size)
            ordinal = ordinal + self._start_drawn[corpus]
        else:
            corpus, ordinal = self._apportion(steps)
        if self.order.sampling == "sequential":
            ordinal = in_sequence(corpus, ordinal)
        if self.order.window:
            corpus, ordinal = self._share_out(steps, corpus, ordinal)
        found = corpus, ordinal, self._examples(corpus, ordinal) if len(corpus) <= BLOCK_SLOTS else None
        self._blocks = {**dict(list(self._blocks.items())[-1:]), block: found}
        return found

    def _apportion(self, steps: IntArray) -> tuple[IntArray, IntArray]:
        """Return corpus and ordinal of the slots of consecutive steps."""
        before = self.drawn_before(np.append(steps, steps[-1] + 1))
        counts = np.diff(before, axis=0).reshape(-1)
        # In rank order a step holds its corpora one after another; `rank` then scatters them over the batch.
        corpus = np.repeat(np.tile(np.arange(len(self.corpora)), len(steps)), counts)
        first_rank = np.cumsum(counts) - counts
        ordinal = np.arange(counts.sum()) + np.repeat(before[:-1].reshape(-1) - first_rank, counts)
        rank = batch_orders(self._order_key, steps, self.batch_size)
        flat = (rank + (np.arange(len(steps)) * self.batch_size)[:, None]).reshape(-1)
        return corpus[flat], ordinal[flat]

    def _share_out(self, steps: IntArray, corpus: IntArray, ordinal: IntArray) -> tuple[IntArray, IntArray]:
        """Return corpus and ordinal of the slots of a window, shared out by length."""
        if self.order.lengths is None:
            raise ValueError(
                "The plan shares out examples by their lengths, which are not saved with it: without the corpora it "
                "does not tell the examples of a step."
            )
        example, lengths = self._examples(corpus, ordinal), np.empty_like(ordinal)
        for index, known in enumerate(self.order.lengths):
            here = corpus == index
            lengths[here] = known[example[here]]
        return share_out_by_length(
            corpus, ordinal, ordinal // self._sizes[corpus], lengths, np.repeat(steps, self.batch_size), self._turn_key
        )

    def _examples(self, corpus: IntArray, ordinal: IntArray) -> IntArray:
        example = ordinal.copy()
        shuffled = np.flatnonzero(self._sizes[corpus])
        size = self._sizes[corpus[shuffled]]
        passes, position = np.divmod(ordinal[shuffled], size)
        if self.order.sampling != "exact":
            example[shuffled] = position
            return example
        example[shuffled] = permute(position, size, splitmix64(passes, self._corpus_keys[corpus[shuffled]]))
        return example


def hash_of_reads(slots: IntArray, name_keys: npt.NDArray[np.uint64], examples: IntArray) -> int:
    """Return a 64-bit hash of which example of which corpus was read into which slot.

    The hash of many slots is the sum of theirs modulo 2⁶⁴, so that it does not matter which process read which of them,
    or when.
    """
    return int(hashes_of_reads(slots, name_keys, examples).sum(dtype=np.uint64))


def hashes_of_reads(slots: IntArray, name_keys: npt.NDArray[np.uint64], examples: IntArray) -> npt.NDArray[np.uint64]:
    """Return the hash of each slot."""
    return splitmix64(slots, splitmix64(examples, name_keys))


def _as_planned(corpus: CorpusSpec, share: float | None) -> dict[str, Any]:
    return {"name": corpus.name, "side": corpus.side, "num_examples": corpus.num_examples, "share": share}
