"""Which example of which corpus sits in which slot of which optimizer step: a pure function of integers.

A run of `max_steps` steps with a global batch of `batch_size` has `max_steps * batch_size` slots. Step s owns the slots
s·B … s·B + B − 1, and a share α(s) of them belongs to the domain side. `MixturePlan` answers for any slot, at once and
in any process, which example it holds; nothing is drawn at random while training, so workers, ranks, accumulation and
restarts cannot change the order.

How it is exact:

- α(s) is rounded once to a multiple of 2⁻³⁰; everything after that is integer arithmetic.
- Counts: up to step s the domain side has had round(B·Σα) slots and the general side the rest. Inside a side the slots
  go down a Huffman tree of the corpora's shares: at a node with N slots the left child gets round(N·w) and the right
  one the rest. Each rounding errs by ½ at the most and is damped by the shares below it, and in a Huffman tree every
  second level halves the share, so each corpus stays within 2 slots of its target at every step (within 1 for two
  corpora).
- Order inside a global batch: a permutation keyed by (seed, step).
- Order inside a pass over a corpus: a permutation keyed by (seed, corpus, pass).

Only NumPy is imported here.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from hf_interp.permutations import IntArray, batch_orders, key_of, mix, permute
from hf_interp.schedules import AlphaSchedule, progress_of

Side = Literal["general", "domain"]
SIDES: tuple[Side, Side] = ("general", "domain")

ORDER_VERSION = 1  # raise it with any change of this module that makes the same settings read in another order
ALPHA_BITS = 30  # α is counted in units of 2⁻³⁰; Σα of 2³³ steps still fits 64 bits
MANY_PASSES = 4  # repeating data up to about four times costs little (Muennighoff et al. 2023, arXiv 2305.16264)
BLOCK_SLOTS = 512  # slots laid out at a time: enough to hide the overhead of NumPy calls, few enough to seek fast


@dataclass(frozen=True, kw_only=True)
class PlannedCorpus:
    """What the plan must know of a corpus.

    Args:
        name: how it is called in logs and files; unique.
        side: "general" (α = 0) or "domain" (α = 1).
        num_examples: its length; `None` for a stream, which is read in its own order.
        share: its share of the slots of its side. The shares of a side sum to 1. `None` on all corpora of a side stands
            for shares in proportion to their lengths, so that all are passed through at the same pace.
        max_passes: refuse a plan that reads the corpus more often than this; `None` for as often as it takes.
    """

    name: str
    side: Side
    num_examples: int | None
    share: float | None = None
    max_passes: float | None = None


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
        corpora: what is mixed (see `PlannedCorpus`).
        alpha_schedule: a function from progress in [0, 1] to α in [0, 1]. It is asked once for every step, here.
        batch_size: the global batch: examples per optimizer step over all processes and accumulation steps.
        max_steps: optimizer steps of the run.
        seed: another seed, another order; counts stay the same.

    Raises:
        ValueError: for an empty corpus, shares that do not sum to 1, an α that is not in [0, 1] at some step, a side
            that α asks for but that has no corpus, a corpus read more often than its `max_passes`.

    >>> from hf_interp.schedules import linear
    >>> corpora = [PlannedCorpus(name="web", side="general", num_examples=100),
    ...            PlannedCorpus(name="law", side="domain", num_examples=10)]
    >>> plan = MixturePlan(corpora, alpha_schedule=linear(0, 1), batch_size=4, max_steps=5)
    >>> [plan.alpha(step) for step in range(5)]
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> plan.drawn_before([0, 1, 2, 3, 4, 5]).tolist()
    [[0, 0], [4, 0], [7, 1], [9, 3], [10, 6], [10, 10]]
    >>> plan.locate(range(8)).corpus.tolist().count(1)
    1
    """

    def __init__(
        self,
        corpora: Sequence[PlannedCorpus],
        *,
        alpha_schedule: AlphaSchedule,
        batch_size: int,
        max_steps: int,
        seed: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.corpora = _check_corpora(corpora)
        self.batch_size = int(batch_size)
        self.max_steps = int(max_steps)
        self.seed = int(seed)
        self._alpha_units = _tabulate(alpha_schedule, self.max_steps)
        self._alpha_sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._alpha_units)])
        self._check_sides_asked_for()
        self._share_units = _share_units(self.corpora)
        self._trees = {side: _huffman(self._share_units, self._side(side)) for side in SIDES}
        self._corpus_keys = np.array([key_of(self.seed, corpus.name) for corpus in self.corpora], np.uint64)
        # 0 for a stream, which is read in its own order
        self._sizes = np.array([corpus.num_examples or 0 for corpus in self.corpora], np.int64)
        self._order_key = key_of(self.seed, "order of a batch")
        self._block_steps = max(1, BLOCK_SLOTS // self.batch_size)
        self._blocks: dict[int, Draw] = {}
        self._check_max_passes()

    def __len__(self) -> int:
        """Number of slots in the run."""
        return self.max_steps * self.batch_size

    def alpha(self, step: int) -> float:
        """α of a 0-based optimizer step; the last step's from there on."""
        return int(self._alpha_units[min(max(step, 0), self.max_steps - 1)]) / (1 << ALPHA_BITS)

    def drawn_before(self, steps: int | Iterable[int]) -> IntArray:
        """Examples of each corpus in all steps before each of `steps` (0 … max_steps): shape (…, num_corpora)."""
        steps = np.asarray(steps, np.int64)
        flat = steps.reshape(-1)
        counts = np.zeros((flat.size, len(self.corpora)), np.int64)
        units = self._alpha_sums[flat]
        # round(B·Σα / 2³⁰), with the whole units taken out first so that nothing overflows
        whole, rest = units >> ALPHA_BITS, units & ((1 << ALPHA_BITS) - 1)
        domain = self.batch_size * whole + ((2 * self.batch_size * rest + (1 << ALPHA_BITS)) >> (ALPHA_BITS + 1))
        totals = {"general": flat * self.batch_size - domain, "domain": domain}
        for side in SIDES:
            tree = self._trees[side]
            if tree is not None:
                tree.deal(totals[side], counts)
        return counts.reshape(*steps.shape, len(self.corpora))

    def locate(self, slots: range | Sequence[int] | IntArray) -> Draw:
        """What the given slots hold."""
        slots = np.asarray(slots, np.int64)
        if slots.size and not (slots.min() >= 0 and slots.max() < len(self)):
            raise IndexError(f"Slots must lie in [0, {len(self)}), got {slots.min()} … {slots.max()}.")
        block_of, offset = np.divmod(slots, self._block_steps * self.batch_size)
        if slots.size and block_of.min() == block_of.max():  # the usual case, a batch of one step
            return Draw(*(source[offset] for source in self._lay_out(int(block_of[0]))))
        found = Draw(np.empty_like(slots), np.empty_like(slots), np.empty_like(slots))
        for block in np.unique(block_of):
            here = block_of == block
            for target, source in zip(found, self._lay_out(int(block)), strict=True):
                target[here] = source[offset[here]]
        return found

    def passes(self, step: int) -> list[float | None]:
        """How often each corpus has been read through before `step`; `None` for a stream."""
        drawn = self.drawn_before(step).tolist()
        return [
            count / corpus.num_examples if corpus.num_examples else None
            for count, corpus in zip(drawn, self.corpora, strict=True)
        ]

    def exhausted_at(self, index: int) -> int | None:
        """The step that draws the last unread example of corpus `index`; `None` if that never happens."""
        size = self.corpora[index].num_examples
        if size is None or self.drawn_before(self.max_steps)[index] < size:
            return None
        low, high = 0, self.max_steps  # the smallest number of steps after which `size` examples are drawn
        while low < high:
            middle = (low + high) // 2
            if self.drawn_before(middle)[index] >= size:
                high = middle
            else:
                low = middle + 1
        return low - 1

    def warnings(self) -> list[str]:
        """What a user should know before the run; empty if all is well."""
        found = []
        drawn = self.drawn_before(self.max_steps).tolist()
        for index, corpus in enumerate(self.corpora):
            passes = drawn[index] / corpus.num_examples if corpus.num_examples else 0.0
            if drawn[index] == 0:
                found.append(f"Corpus {corpus.name!r} is never drawn. Raise its share, or move α, or leave it out.")
            if passes > MANY_PASSES:
                found.append(
                    f"Corpus {corpus.name!r} is read {passes:.1f} times; beyond about {MANY_PASSES} passes a model "
                    "gains little and begins to memorise. Lower its share of the run, or take fewer steps."
                )
            most = self._largest_expected_count(index)
            if 0 < most < 0.999:  # not 1, which a rounded share or α may miss
                found.append(
                    f"A global batch of {self.batch_size} holds {most:.2g} examples of corpus {corpus.name!r} at the "
                    "most, so that many steps hold none. Raise the batch size or accumulate gradients to have it in "
                    "every step."
                )
        return found

    def identity(self) -> dict[str, Any]:
        """All that decides the reading order, as plain values."""
        return {
            "corpora": [
                {
                    "name": corpus.name,
                    "side": corpus.side,
                    "num_examples": corpus.num_examples,
                    "share": units / (1 << ALPHA_BITS),
                }
                for corpus, units in zip(self.corpora, self._share_units, strict=True)
            ],
            "batch_size": self.batch_size,
            "max_steps": self.max_steps,
            "seed": self.seed,
            "order_version": ORDER_VERSION,
            "alpha_sha256": hashlib.sha256(self._alpha_units.astype("<i8").tobytes()).hexdigest(),
        }

    def fingerprint(self) -> str:
        """16 hexadecimal digits; equal exactly when two runs read the same examples in the same order."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """The plan in numbers, ready for JSON: α along the run, and what is drawn from each corpus."""
        drawn = self.drawn_before(self.max_steps).tolist()
        return {
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "num_examples": len(self),
            "seed": self.seed,
            "alpha": [{"step": step, "alpha": self.alpha(step)} for step in self.alpha_landmarks()],
            "corpora": [
                {
                    "name": corpus.name,
                    "side": corpus.side,
                    "num_examples": corpus.num_examples,
                    "share": units / (1 << ALPHA_BITS),
                    "drawn": count,
                    "passes": count / corpus.num_examples if corpus.num_examples else None,
                    "exhausted_at": self.exhausted_at(index),
                }
                for index, (corpus, units, count) in enumerate(zip(self.corpora, self._share_units, drawn, strict=True))
            ],
            "domain_share": sum(
                count for corpus, count in zip(self.corpora, drawn, strict=True) if corpus.side == "domain"
            )
            / len(self),
            "warnings": self.warnings(),
            "fingerprint": self.fingerprint(),
        }

    def alpha_landmarks(self, most: int = 12) -> list[int]:
        """The steps that tell the schedule: both ends, the borders of phases, even points between."""
        units = self._alpha_units
        moves = np.flatnonzero(np.diff(units))
        marks = {0, self.max_steps - 1}
        if moves.size:
            marks |= {int(moves[0]), int(moves[-1]) + 1}
            jumps = {int(step) + offset for step in moves for offset in (0, 1)} if moves.size <= most // 2 else set()
            marks |= jumps or {int(step) for step in np.linspace(moves[0], moves[-1] + 1, 5).round()}
        return sorted(marks)

    def _side(self, side: Side) -> list[int]:
        return [index for index, corpus in enumerate(self.corpora) if corpus.side == side]

    def _check_sides_asked_for(self) -> None:
        full = 1 << ALPHA_BITS
        for side, asks in (("general", self._alpha_units < full), ("domain", self._alpha_units > 0)):
            if asks.any() and not any(corpus.side == side for corpus in self.corpora):
                step = int(np.argmax(asks))
                raise ValueError(
                    f"α is {self.alpha(step):g} at step {step}, which asks for {side} examples, but no corpus has side "
                    f"{side!r} (got {[corpus.name for corpus in self.corpora]}). Add one, or use a constant α of "
                    f"{1 if side == 'general' else 0}."
                )

    def _check_max_passes(self) -> None:
        for corpus, passes in zip(self.corpora, self.passes(self.max_steps), strict=True):
            if passes is not None and corpus.max_passes is not None and passes > corpus.max_passes:
                raise ValueError(
                    f"Corpus {corpus.name!r} would be read {passes:.2f} times, but its `max_passes` is "
                    f"{corpus.max_passes:g}. Take fewer steps, lower its share, or raise `max_passes`."
                )

    def _largest_expected_count(self, index: int) -> float:
        units = self._alpha_units if self.corpora[index].side == "domain" else (1 << ALPHA_BITS) - self._alpha_units
        return float(units.max()) / (1 << ALPHA_BITS) * self._share_units[index] / (1 << ALPHA_BITS) * self.batch_size

    def _lay_out(self, block: int) -> Draw:
        """The contents of a block of steps; the last two blocks are remembered."""
        if block not in self._blocks:
            while len(self._blocks) >= 2:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[block] = self._lay_out_anew(block)
        return self._blocks[block]

    def _lay_out_anew(self, block: int) -> Draw:
        steps = np.arange(block * self._block_steps, min((block + 1) * self._block_steps, self.max_steps))
        before = self.drawn_before(np.append(steps, steps[-1] + 1))
        counts = np.diff(before, axis=0).reshape(-1)
        # In rank order a step holds its corpora one after another; `rank` then scatters them over the batch.
        corpus = np.repeat(np.tile(np.arange(len(self.corpora)), len(steps)), counts)
        first_rank = np.cumsum(counts) - counts
        ordinal = np.arange(counts.sum()) + np.repeat(before[:-1].reshape(-1) - first_rank, counts)
        rank = batch_orders(self._order_key, steps, self.batch_size)
        flat = (rank + (np.arange(len(steps)) * self.batch_size)[:, None]).reshape(-1)
        corpus, ordinal = corpus[flat], ordinal[flat]
        return Draw(corpus, ordinal, self._examples(corpus, ordinal))

    def _examples(self, corpus: IntArray, ordinal: IntArray) -> IntArray:
        example = ordinal.copy()
        shuffled = np.flatnonzero(self._sizes[corpus])
        size = self._sizes[corpus[shuffled]]
        passes, position = np.divmod(ordinal[shuffled], size)
        example[shuffled] = permute(position, size, mix(passes, self._corpus_keys[corpus[shuffled]]))
        return example


@dataclass(frozen=True)
class _Tree:
    """A node of a side's Huffman tree; a leaf names its corpus."""

    units: int
    corpus: int = -1
    left: "_Tree | None" = None
    right: "_Tree | None" = None

    def deal(self, totals: IntArray, counts: IntArray) -> None:
        """Write the number of slots of every corpus below this node into `counts`, given the node's own `totals`."""
        if self.left is None or self.right is None:
            counts[:, self.corpus] = totals
            return
        # round(N·w) with w = left.units / units, whole multiples first so that nothing overflows
        whole, rest = np.divmod(totals, self.units)
        lefts = whole * self.left.units + (2 * rest * self.left.units + self.units) // (2 * self.units)
        self.left.deal(lefts, counts)
        self.right.deal(totals - lefts, counts)


def _huffman(share_units: Sequence[int], corpora: Sequence[int]) -> _Tree | None:
    heap = [(share_units[index], index, _Tree(share_units[index], index)) for index in corpora]
    heapq.heapify(heap)
    order = len(share_units)  # breaks ties, so that trees are never compared
    while len(heap) > 1:
        (lighter, _, right), (heavier, _, left) = heapq.heappop(heap), heapq.heappop(heap)
        units = lighter + heavier
        # two corpora without a share get an empty node; dividing by 1 instead of 0 leaves both at 0
        heapq.heappush(heap, (units, order, _Tree(max(units, 1), -1, left, right)))
        order += 1
    return heap[0][2] if heap else None


def _check_corpora(corpora: Sequence[PlannedCorpus]) -> tuple[PlannedCorpus, ...]:
    names = [corpus.name for corpus in corpora]
    if not names:
        raise ValueError("A mixture needs at least one corpus, got none.")
    if len(set(names)) < len(names):
        raise ValueError(f"Corpora must have different names, got {names}.")
    for corpus in corpora:
        if corpus.side not in SIDES:
            raise ValueError(f"Corpus {corpus.name!r} must have side 'general' or 'domain', got {corpus.side!r}.")
        if corpus.num_examples == 0:
            raise ValueError(f"Corpus {corpus.name!r} is empty. Check its path, split and filters.")
        if corpus.max_passes is not None and not corpus.max_passes > 0:
            raise ValueError(f"`max_passes` of corpus {corpus.name!r} must be positive, got {corpus.max_passes}.")
    return tuple(corpora)


def _share_units(corpora: Sequence[PlannedCorpus]) -> list[int]:
    """Each corpus' share of its side in units of 2⁻³⁰; a positive share never rounds to nothing."""
    shares = [0.0] * len(corpora)
    for side in SIDES:
        for index, share in _side_shares(side, corpora):
            shares[index] = share
    return [max(round(share * (1 << ALPHA_BITS)), 1 if share > 0 else 0) for share in shares]


def _side_shares(side: Side, corpora: Sequence[PlannedCorpus]) -> list[tuple[int, float]]:
    members = [(index, corpus) for index, corpus in enumerate(corpora) if corpus.side == side]
    given = {corpus.name: corpus.share for _, corpus in members}
    shares = [share for share in given.values() if share is not None]
    if shares and len(shares) < len(members):
        missing = [name for name, share in given.items() if share is None]
        raise ValueError(f"Give a share to every {side} corpus or to none: {missing} have none, the others {given}.")
    if shares:
        if any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"The shares of the {side} corpora must lie in [0, 1] and sum to 1, got {given}.")
        return [(index, given[corpus.name] or 0.0) for index, corpus in members]
    if len(members) == 1:
        return [(members[0][0], 1.0)]
    streams = [corpus.name for _, corpus in members if corpus.num_examples is None]
    if streams:
        raise ValueError(
            f"The {side} corpora need shares, because {streams} are streams without a length. Give each a `share`."
        )
    total = sum(corpus.num_examples or 0 for _, corpus in members)
    return [(index, (corpus.num_examples or 0) / total) for index, corpus in members]


def _tabulate(alpha_schedule: AlphaSchedule, max_steps: int) -> IntArray:
    """α of every step in units of 2⁻³⁰."""
    alphas = np.empty(max_steps, np.float64)
    for step in range(max_steps):
        alpha = alpha_schedule(progress_of(step, max_steps))
        try:
            if isinstance(alpha, str):  # which float() would read
                raise TypeError
            alphas[step] = float(alpha)
        except (TypeError, ValueError):
            raise ValueError(f"The α schedule must return a number, got {alpha!r} at step {step}.") from None
    wrong = np.flatnonzero(~((alphas >= 0) & (alphas <= 1)))  # NaN compares false
    if wrong.size:
        step = int(wrong[0])
        raise ValueError(
            f"The α schedule must stay in [0, 1], got {alphas[step]} at step {step} of {max_steps} "
            f"(progress {progress_of(step, max_steps):.4g})."
        )
    return np.rint(alphas * (1 << ALPHA_BITS)).astype(np.int64)
