"""How the slots of a side are dealt to its corpora: shares, and counts that follow them.

Inside a side the slots go down a Huffman tree of the corpora's shares: at a node with N slots the left child gets
round(N·w) and the right one the rest. Each rounding errs by ½ at the most and is damped by the shares below it, and in
a Huffman tree every second level halves the share, so each corpus stays within 2 slots of its target at any N (within
1 for two corpora). Only NumPy is imported here.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from hf_interp.mixture.permutations import IntArray
from hf_interp.utils.errors import check_known

Side = Literal["general", "domain"]
SIDES: tuple[Side, Side] = ("general", "domain")

Unit = Literal["examples", "tokens"]
UNITS: tuple[Unit, Unit] = ("examples", "tokens")

ALPHA_BITS = 30  # shares and α are counted in units of 2⁻³⁰; Σα of 2³³ steps still fits 64 bits


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """A corpus as the plan must know it.

    Args:
        name: how it is called in logs and files; unique.
        side: "general" (α = 0) or "domain" (α = 1).
        num_examples: its length; `None` for a stream, which is read in its own order.
        share: its share of its side, in examples or tokens as the plan counts. The shares of a side sum to 1. `None` on
            all corpora of a side stands for shares in proportion to their lengths, so that all are passed through at
            the same pace. A mapping gives it a share on each side: then `side` only says where it is counted.
        max_passes: refuse a plan that reads the corpus more often than this; `None` for as often as it takes.
        mean_tokens: mean number of tokens of an example; needed if the plan counts tokens.
        content: a fingerprint of what is in it, by which a run that is resumed knows it again; `None` if unknown.
    """

    name: str
    side: Side
    num_examples: int | None
    share: float | Mapping[str, float] | None = None
    max_passes: float | None = None
    mean_tokens: float | None = None
    content: str | None = None


@dataclass(frozen=True)
class ShareTree:
    """A node of a side's Huffman tree; a leaf names its corpus."""

    units: int
    corpus: int = -1
    left: "ShareTree | None" = None
    right: "ShareTree | None" = None

    def apportion(self, totals: IntArray, counts: IntArray) -> None:
        """Write the number of slots of every corpus below this node into `counts`, given the node's own `totals`."""
        if self.left is None or self.right is None:
            counts[:, self.corpus] = totals
            return
        # round(N·w) with w = left.units / units, whole multiples first so that nothing overflows
        whole, rest = np.divmod(totals, self.units)
        lefts = whole * self.left.units + (2 * rest * self.left.units + self.units) // (2 * self.units)
        self.left.apportion(lefts, counts)
        self.right.apportion(totals - lefts, counts)


def share_tree(share_units: Sequence[int], corpora: Sequence[int]) -> ShareTree | None:
    """Return the Huffman tree over the shares of some corpora; `None` if there are none."""
    heap = [(share_units[index], index, ShareTree(share_units[index], index)) for index in corpora]
    heapq.heapify(heap)
    order = len(share_units)  # breaks ties, so that trees are never compared
    while len(heap) > 1:
        (lighter, _, right), (heavier, _, left) = heapq.heappop(heap), heapq.heappop(heap)
        units = lighter + heavier
        # two corpora without a share get an empty node; dividing by 1 instead of 0 leaves both at 0
        heapq.heappush(heap, (units, order, ShareTree(max(units, 1), -1, left, right)))
        order += 1
    return heap[0][2] if heap else None


def check_corpora(corpora: Sequence[CorpusSpec], unit: Unit) -> tuple[CorpusSpec, ...]:
    """Refuse corpora that cannot be planned."""
    if unit not in UNITS:
        raise ValueError(f"The unit of a mixture must be 'examples' or 'tokens', got {unit!r}.")
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
        if isinstance(corpus.share, Mapping):
            check_known(corpus.share, SIDES, f"in the `share` of corpus {corpus.name!r}")
            if not corpus.share or not all(type(share) in (int, float) for share in corpus.share.values()):
                raise ValueError(
                    f"The `share` of corpus {corpus.name!r} must be a number for each side, got {corpus.share}."
                )
        for name, value in (("max_passes", corpus.max_passes), ("mean_tokens", corpus.mean_tokens)):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` of corpus {corpus.name!r} must be positive, got {value}.")
        if unit == "tokens" and corpus.mean_tokens is None:
            raise ValueError(
                f"A mixture by tokens must know the mean length of corpus {corpus.name!r}. Give its `mean_tokens`, or "
                "use a dataset with a length and a column `input_ids`."
            )
    return tuple(corpora)


def share_units(corpora: Sequence[CorpusSpec], unit: Unit) -> list[int]:
    """Return each corpus' share of the examples of its side in units of 2⁻³⁰; none that is positive becomes 0."""
    shares = [0.0] * len(corpora)
    for side in SIDES:
        members = [(index, corpus) for index, corpus in enumerate(corpora) if corpus.side == side]
        targets = side_shares(side, [corpus for _, corpus in members], unit)
        # a corpus whose examples are twice as long gives the same tokens with half the examples
        weights = [
            target / (corpus.mean_tokens or 1.0) if unit == "tokens" else target
            for target, (_, corpus) in zip(targets, members, strict=True)
        ]
        total = sum(weights) if unit == "tokens" else 1.0
        for (index, _), weight in zip(members, weights, strict=True):
            shares[index] = weight / (total or 1.0)
    return [max(round(share * (1 << ALPHA_BITS)), 1 if share > 0 else 0) for share in shares]


def domain_slots(units: IntArray, batch_size: int) -> IntArray:
    """Return round(B·Σα) for sums of α in units of 2⁻³⁰: the slots of the domain side."""
    # with the whole units taken out first so that nothing overflows
    whole, rest = units >> ALPHA_BITS, units & ((1 << ALPHA_BITS) - 1)
    return batch_size * whole + ((2 * batch_size * rest + (1 << ALPHA_BITS)) >> (ALPHA_BITS + 1))


def weigher(corpora: Sequence[CorpusSpec], units: Sequence[int], unit: Unit) -> Callable[[IntArray], IntArray] | None:
    """Return the function that makes a share α of what is counted one of examples; `None` where that is the same."""
    return None if unit == "examples" else partial(example_alpha, corpora=corpora, units=units)


def example_alpha(alpha: IntArray, corpora: Sequence[CorpusSpec], units: Sequence[int]) -> IntArray:
    """Return the share of domain examples, in units of 2⁻³⁰, that gives a share α of domain tokens.

    With mean lengths L_d and L_g of the two sides it is (α / L_d) / (α / L_d + (1 − α) / L_g).
    """
    length = {}
    for side in SIDES:
        members = [index for index, corpus in enumerate(corpora) if corpus.side == side]
        weight = sum(units[index] for index in members)
        tokens = sum(units[index] * (corpora[index].mean_tokens or 1.0) for index in members)
        length[side] = tokens / weight if weight else 1.0
    share = alpha / (1 << ALPHA_BITS)
    domain, general = share / length["domain"], (1 - share) / length["general"]
    return np.rint(domain / (domain + general) * (1 << ALPHA_BITS)).astype(np.int64)


def side_shares(side: Side, members: Sequence[CorpusSpec], unit: Unit) -> list[float]:
    """Return the shares of the corpora of a side, which are in proportion to their lengths where none has one."""
    given: dict[str, Any] = {corpus.name: corpus.share for corpus in members}
    shares = [share for share in given.values() if share is not None]
    if shares and len(shares) < len(members):
        missing = [name for name, share in given.items() if share is None]
        raise ValueError(f"Give a share to every {side} corpus or to none: {missing} have none, the others {given}.")
    if shares:
        if any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"The shares of the {side} corpora must lie in [0, 1] and sum to 1, got {given}.")
        return shares
    if len(members) == 1:
        return [1.0]
    streams = [corpus.name for corpus in members if corpus.num_examples is None]
    if streams:
        raise ValueError(
            f"The {side} corpora need shares, because {streams} are streams without a length. Give each a `share`."
        )
    sizes = [
        (corpus.num_examples or 0) * ((corpus.mean_tokens or 1.0) if unit == "tokens" else 1) for corpus in members
    ]
    return [size / sum(sizes) for size in sizes]
