"""Whether a method's point lies beyond those that constant mixtures reach: the amount taken out, the method left.

A method with more domain data is better on the domain and worse on the general side, which alone says nothing for or
against it. Constant mixtures of different α trace a curve of such points. What counts is the domain score at a general
score that a constant mixture, of whatever α, keeps as well.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from effect.cells import Cell
from effect.stats import Array, Interval, interval

CONSTANTS = ("constant-0.25", "constant-0.5", "constant-0.75", "domain")
"""By rising α; domain only is the constant mixture with α = 1."""
BETWEEN = 20
"""Points that are looked at between two neighbours."""


def frontier_gain(cell: Cell, method: str, is_interpolated: bool = False) -> Interval | None:
    """By how much a method's domain score exceeds that of the best constant mixture at its general score.

    Args:
        cell: has the constant mixtures.
        method: key of the method.
        is_interpolated: compare M_α of the method with M_α of the constant mixtures.

    Returns:
        the gain, above 0 better, with its interval paired over seeds and examples; `None` if the cell lacks a row or
        they have no seed in common.
    """
    keys = [(name, is_interpolated) for name in (*CONSTANTS, method)]
    if any(key not in cell.rows for key in keys):
        return None
    rows = [cell.rows[key] for key in keys]
    seeds = sorted(set.intersection(*(set(row.seeds) for row in rows)))
    if not seeds:
        return None
    rows = [row.of_seeds(seeds) for row in rows]
    points = np.array([[[cell.score(row, side)] for side in ("domain", "general")] for row in rows])
    samples = np.array([[cell.sign * cell.resample(row, side) for side in ("domain", "general")] for row in rows])
    (value,) = domain_gain(points[:-1], points[-1])
    return interval(float(value), domain_gain(samples[:-1], samples[-1]))


def domain_gain(constants: Array, point: Array) -> Array:
    """The domain score of a point less the best on the line through others that has at least its general score.

    Where none has, it is less the domain score of that place on the line with the best general score.

    Args:
        constants: scores (num_constants, 2, num_samples) in their order: domain, general; more is better.
        point: scores (2, num_samples).

    Returns:
        (num_samples,).

    >>> line = np.array([[[0.0], [1.0]], [[1.0], [0.0]]])  # domain 0 and general 1, domain 1 and general 0
    >>> [domain_gain(line, np.array([[domain], [general]])).tolist() for domain, general in [(0.75, 0.5), (0.5, 1.5)]]
    [[0.25], [0.5]]
    """
    domain, general = (_line(constants[:, side]) for side in (0, 1))
    kept = np.where(general >= point[1], domain, -np.inf).max(axis=0)
    most = np.take_along_axis(domain, general.argmax(axis=0)[None], axis=0)[0]
    return np.asarray(point[0] - np.where(np.isneginf(kept), most, kept))


def _line(values: Array) -> Array:
    """Points between neighbours: (num_points, num_samples)."""
    shares = np.linspace(0.0, 1.0, BETWEEN + 1)[:, None]
    parts = [(1 - shares) * first + shares * second for first, second in pairwise(values)]
    return np.concatenate(parts)


def gains(cells: Sequence[Cell], method: str, is_interpolated: bool) -> list[tuple[Cell, Interval]]:
    """The gains of all cells that have one."""
    found = [(cell, frontier_gain(cell, method, is_interpolated)) for cell in cells]
    return [(cell, gain) for cell, gain in found if gain is not None]
