"""Paths through the mixtures of some corpora: every corpus' share as a function of α, and counts that follow it.

A path is a list of points, each with a position in [0, 1] and a share of every corpus; between two points the shares
move on a straight line, before the first and after the last they are held. α is the position. Corpora with a share on
both sides are the path of two points: the general mixture at 0, the domain mixture at 1.

The slots go down a binary tree of the corpora. T(s) is the number of slots that is due to a node before step s, a sum
of exact integers. A node that has N slots gives round(T_left(T⁻¹(N))) of them to its left child: as many as are due to
that when N are due to the node. This grows with N by 0 or 1 a slot, so no count ever falls; and a node that is e slots
from its target makes an error of at most |e| + ½ in each child, because T_left∘T⁻¹ has slopes in [0, 1]. The root is
exact. So each of n corpora stays within ⌈log₂ n⌉ / 2 slots of its target at every step: within 1 for four corpora, 2
for sixteen. Only NumPy is imported here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_interp.mixture.apportionment import ALPHA_BITS, SIDES, CorpusSpec, Unit, side_shares
from hf_interp.mixture.permutations import IntArray
from hf_interp.utils.errors import check_known

FULL = 1 << ALPHA_BITS
EXAMPLE = "{at: 0.5, web: 0.8, code: 0.2}"


class MixturePath:
    """Shares of some corpora over α.

    Args:
        points: (position, share of each corpus), by rising position.
        lengths: by which the shares of a mixture by tokens are divided to give shares of examples.
    """

    def __init__(self, points: Sequence[tuple[float, Sequence[float]]], lengths: Sequence[float] | None = None) -> None:
        self.points = [(float(place), [float(share) for share in shares]) for place, shares in points]
        self.lengths = None if lengths is None else np.array(lengths, np.float64)

    def shares(self, units: IntArray) -> IntArray:
        """Return the share of every corpus in the examples where α is so many units: (num_alphas, num_corpora) units.

        Each row sums to 2³⁰.
        """
        places, shares = np.array([place for place, _ in self.points]), np.array([row for _, row in self.points])
        alpha = np.clip(units / FULL, places[0], places[-1])
        right = np.clip(np.searchsorted(places, alpha, side="right"), min(1, len(places) - 1), len(places) - 1)
        left = np.maximum(right - 1, 0)
        way = ((alpha - places[left]) / np.maximum(places[right] - places[left], 1e-300))[:, None]
        weights = (1 - way) * shares[left] + way * shares[right]
        if self.lengths is not None:
            weights = weights / self.lengths
        ends = np.cumsum(weights, axis=1)
        borders = np.rint(ends / ends[:, -1:] * FULL).astype(np.int64)  # rounded so, each row has the right sum
        return np.diff(borders, axis=1, prepend=0)


def path_of(
    corpora: Sequence[CorpusSpec], points: Sequence[Mapping[str, Any]] | None, unit: Unit
) -> MixturePath | None:
    """Return the path that some points or shares on both sides describe; `None` where every corpus has one side."""
    if points is None and not any(isinstance(corpus.share, Mapping) for corpus in corpora):
        return None
    found = _of_sides(corpora, unit) if points is None else _of_points(corpora, points)
    return MixturePath(found, [corpus.mean_tokens or 1.0 for corpus in corpora] if unit == "tokens" else None)


def _of_points(corpora: Sequence[CorpusSpec], points: Sequence[Mapping[str, Any]]) -> list[tuple[float, list[float]]]:
    names = [corpus.name for corpus in corpora]
    if shared := [corpus.name for corpus in corpora if corpus.share is not None]:
        raise ValueError(f"`mixture_path` gives all shares, so no corpus may have a `share` of its own, got {shared}.")
    check_points(points)
    if "at" in names:
        raise ValueError("In a `mixture_path`, `at` is the position, so no corpus may be called so. Rename it.")
    for point in points:
        check_known(point, ["at", *names], f"in the point of `mixture_path` at {point['at']:g}")
    if missing := [name for name in names if not any(name in point for point in points)]:
        raise ValueError(f"Every corpus must be in a point of `mixture_path`, but {missing} are in none.")
    return [(point["at"], [point.get(name, 0.0) for name in names]) for point in points]


def check_points(points: Any) -> None:
    """Raise `ValueError` for what is no list of points with rising positions and shares that sum to 1."""
    if not isinstance(points, list | tuple) or not points:
        raise ValueError(f"`mixture_path` must be a list of points such as {EXAMPLE}, got {points!r}.")
    for point in points:
        if not isinstance(point, Mapping) or "at" not in point or any(map(_is_no_share, point.values())):
            raise ValueError(
                f"A point of `mixture_path` must have a position `at` and shares, all in [0, 1], as {EXAMPLE} has, got "
                f"{point!r}."
            )
        total = sum(value for name, value in point.items() if name != "at")
        if abs(total - 1) > 1e-6:
            raise ValueError(f"The shares of a point of `mixture_path` must sum to 1, not {total:g}, got {point}.")
    places = [point["at"] for point in points]
    if places != sorted(set(places)):
        raise ValueError(f"The positions `at` of `mixture_path` must rise, got {places}.")


def _is_no_share(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1


def _of_sides(corpora: Sequence[CorpusSpec], unit: Unit) -> list[tuple[float, list[float]]]:
    """Return the mixtures of the two sides as points of a path."""
    by_side = [corpus.share if isinstance(corpus.share, Mapping) else {corpus.side: corpus.share} for corpus in corpora]
    points = []
    for place, side in enumerate(SIDES):
        members = {
            index: replace(corpora[index], side=side, share=shares[side])
            for index, shares in enumerate(by_side)
            if side in shares
        }
        if not members:
            raise ValueError(f"No corpus has a share on the {side} side, got {[dict(shares) for shares in by_side]}.")
        shares = dict(zip(members, side_shares(side, list(members.values()), unit), strict=True))
        points.append((float(place), [shares.get(index, 0.0) for index in range(len(corpora))]))
    return points


class PathCounts:
    """Counts of the corpora of a path from a step on.

    Args:
        borders: steps between which shares are constant, from the first step to the last.
        shares: (num_borders − 1, num_corpora) units of 2⁻³⁰, from `MixturePath.shares`.
        batch_size: the global batch.
    """

    def __init__(self, borders: IntArray, shares: IntArray, batch_size: int) -> None:
        self.first_step, self.batch_size, self.num_corpora = int(borders[0]), batch_size, shares.shape[1]
        self.largest = shares.max(axis=0) / FULL
        due = np.cumsum(shares * np.diff(borders)[:, None], axis=0)
        self._due: dict[tuple[int, int], IntArray] = {}  # to the corpora of a node, in units of a batch
        self._add_node(0, self.num_corpora, np.concatenate([np.zeros_like(due[:1]), due]))

    def before(self, steps: IntArray) -> IntArray:
        """Count the examples of each corpus from the first step to before each of `steps`."""
        counts = np.zeros((len(steps), self.num_corpora), np.int64)
        self._deal(0, self.num_corpora, (steps - self.first_step).astype(object) * self.batch_size, counts)
        return counts

    def _add_node(self, first: int, last: int, due: IntArray) -> None:
        self._due[first, last] = due[:, first:last].sum(axis=1)
        if last - first > 1:
            middle = (first + last) // 2
            self._add_node(first, middle, due)
            self._add_node(middle, last, due)

    def _deal(self, first: int, last: int, totals: Any, counts: IntArray) -> None:
        """Write the slots of the corpora of a node into `counts`, given its own; Python's integers do not overflow."""
        if last - first == 1:
            counts[:, first] = totals
            return
        middle, whole = (first + last) // 2, self._due[first, last]
        part = self._due[first, middle]
        cell = np.searchsorted(whole, (totals * FULL // self.batch_size).astype(np.int64), side="right") - 1
        after = np.minimum(cell + 1, len(whole) - 1)  # at the end nothing is due any more, and all goes right
        of_whole, of_part = (np.subtract(due[after], due[cell]).astype(object) for due in (whole, part))
        of_whole = np.maximum(of_whole, 1)
        over = totals * FULL - self.batch_size * whole[cell].astype(object)
        exact = self.batch_size * part[cell].astype(object) * of_whole + over * of_part
        lefts = (2 * exact + FULL * of_whole) // (2 * FULL * of_whole)
        self._deal(first, middle, lefts, counts)
        self._deal(middle, last, totals - lefts, counts)
