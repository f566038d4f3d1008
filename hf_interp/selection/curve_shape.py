"""The shape of a metric over α: minimum, barrier, knee. NumPy only."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hf_interp.reporting.curve import SLACK, FloatArray, list_alphas, short_alpha

NOISE = 2.0  # standard errors that a rise or fall must exceed to be one


def golden_section(
    evaluate: Callable[[float], float],
    *,
    low: float = 0.0,
    high: float = 1.0,
    tolerance: float = 0.02,
) -> list[float]:
    """Find the minimum of a function by golden-section search (Kiefer 1953), and return the points evaluated.

    A bracket around the minimum holds two inner points, which cut it by the golden ratio; the part beyond the worse one
    is dropped until the bracket is at most 2·tolerance wide, so that the minimum of a unimodal function lies within
    `tolerance` of its middle. Of equal points the left one is kept. Each point is evaluated once, both ends among them:
    10 evaluations on [0, 1] at a tolerance of 0.02.

    Args:
        evaluate: the function; less is better.
        low, high: the ends.
        tolerance: how near to come to the minimum.

    Returns:
        the points that were evaluated, in this order: the ends, then the inner points.

    >>> points = golden_section(lambda alpha: (alpha - 0.3) ** 2)
    >>> len(points), points[:2]
    (10, [0.0, 1.0])
    >>> abs(min(points, key=lambda alpha: (alpha - 0.3) ** 2) - 0.3) < 0.02
    True
    """
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"`low` must be less than `high` and both finite, got {low} and {high}.")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}.")
    known: dict[float, float] = {}

    def value(point: float) -> float:
        if point not in known:
            known[point] = evaluate(point)
        if math.isnan(known[point]):
            raise ValueError(f"`evaluate` must give a number, got NaN at {point}.")
        return known[point]

    value(low)
    value(high)
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    # the second condition ends the search where floats are no finer
    while high - low > 2 * tolerance and low < left < right < high:
        if value(left) <= value(right):
            high, right = right, left
            left = high - ratio * (high - low)
        else:
            low, left = left, right
            right = low + ratio * (high - low)
    return list(known)


def is_unimodal(alphas: npt.ArrayLike, units: npt.ArrayLike) -> bool:
    """Whether a metric of which less is better falls and then rises over α, apart from noise.

    It does not if somewhere it rises and later falls, each by more than 2 standard errors of the paired difference over
    units; with one unit, by anything. Golden-section search may miss the minimum of such a curve.

    Args:
        alphas: the evaluated α, in any order.
        units: shape (num_alphas, num_units), or (num_alphas,) for one unit.

    >>> is_unimodal([0.0, 0.5, 1.0], [2.0, 1.0, 3.0]), is_unimodal([0.0, 0.5, 1.0], [1.0, 2.0, 1.5])
    (True, False)
    >>> is_unimodal([0.0, 0.5, 1.0], [[1.0, 3.0], [3.0, 2.0], [1.0, 2.0]])  # rises by 0.5 with a standard error of 1.5
    True
    """
    places = check_alphas(alphas)
    values = check_units("units", units, places)[np.argsort(places)]
    for middle in range(1, len(values) - 1):
        above = _is_more(values[middle], values)
        if above[:middle].any() and above[middle + 1 :].any():
            return False
    return True


def loss_barrier(alphas: npt.ArrayLike, losses: npt.ArrayLike) -> tuple[float, float]:
    """Return the height of the loss barrier between M₀ and M_θ, and the α at which it stands.

    B = max over α in [0, 1] of f(α) − ((1 − α)·f(0) + α·f(1)), as in linear mode connectivity (Frankle et al. 2020,
    arXiv 1912.05671). It is 0, at α = 0, if the loss never lies above the straight line between its ends.

    Args:
        alphas: the evaluated α, in any order, with 0 and 1; those outside [0, 1] are left out.
        losses: shape (num_alphas,); less is better.

    >>> loss_barrier([0.0, 0.5, 1.0], [1.0, 2.5, 2.0])
    (1.0, 0.5)
    >>> loss_barrier([0.0, 0.5, 1.0], [1.0, 1.25, 2.0])
    (0.0, 0.0)
    """
    places = check_alphas(alphas)
    values = check_units("losses", losses, places, single=True)[:, 0]
    if not {0.0, 1.0} <= set(places.tolist()):
        raise ValueError(f"`alphas` must hold 0 and 1, got {list_alphas(places)}. Evaluate M₀ and M_θ too.")
    start, end = values[places == 0][0], values[places == 1][0]
    inside = np.flatnonzero((places >= 0) & (places <= 1))
    inside = inside[np.argsort(places[inside])]
    heights = values[inside] - ((1 - places[inside]) * start + places[inside] * end)
    top = int(np.argmax(heights))
    noise = SLACK * max(abs(start), abs(end))
    return (float(heights[top]), float(places[inside[top]])) if heights[top] > noise else (0.0, 0.0)


def find_knee(alphas: npt.ArrayLike, domain: npt.ArrayLike, general: npt.ArrayLike) -> float | None:
    """Return the α at which the curve of domain against general metric bends most: more α costs more than it gains.

    Both metrics are scaled to [0, 1] over the curve; the knee is the point farthest from the chord between the ends, on
    its better side (Kneedle, Satopää et al. 2011). Only α in [0, 1] count, and the ends are the least and the greatest
    of them. Of equal points the smallest α is taken.

    Args:
        alphas: the evaluated α, in any order.
        domain, general: the metrics, shape (num_alphas,); more is better on both.

    Returns:
        The knee, or `None` if there is none: a metric is flat, neither end is better on one metric and worse on the
        other, or no point lies above the chord.

    >>> find_knee([0.0, 0.25, 0.5, 1.0], [0.5, 0.7, 0.8, 0.9], [0.9, 0.89, 0.88, 0.6])
    0.5
    >>> find_knee([0.0, 0.5, 1.0], [0.5, 0.7, 0.9], [0.9, 0.9, 0.9]) is None
    True
    """
    places = check_alphas(alphas)
    order = np.argsort(places)
    sides = (check_units(name, one, places, single=True) for name, one in (("domain", domain), ("general", general)))
    heights, bends = knee_heights(places[order], *(one[order, 0] for one in sides))
    return float(places[order][first_best(heights)]) if bends else None


def knee_heights(
    alphas: FloatArray, domain: FloatArray, general: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return the heights of the scaled points above the chord (see `find_knee`), and whether there is a knee.

    Metrics have the shape (..., num_alphas); heights are minus infinity outside [0, 1].
    """
    inside = np.flatnonzero((alphas >= 0) & (alphas <= 1))
    heights = np.full(domain.shape, -np.inf)
    if len(inside) < 3:
        return heights, np.zeros(domain.shape[:-1], dtype=bool)
    inside = inside[np.argsort(alphas[inside])]
    (domain, flat), (general, level) = _scaled(domain[..., inside]), _scaled(general[..., inside])
    rise, fall = domain[..., -1:] - domain[..., :1], general[..., -1:] - general[..., :1]
    cross = fall * (domain - domain[..., :1]) - rise * (general - general[..., :1])
    length = np.hypot(rise, fall)
    heights[..., inside] = np.sign(fall) * cross / np.where(length > 0, length, 1)
    trades = (rise * fall)[..., 0] < 0
    return heights, trades & ~flat & ~level & (heights.max(axis=-1) > SLACK)


def first_best(values: FloatArray) -> npt.NDArray[np.intp]:
    """Return the index of the first of the greatest values along the last axis."""
    top = values.max(axis=-1, keepdims=True)
    return np.asarray(np.argmax(values >= top - SLACK * np.abs(top), axis=-1))


def check_alphas(alphas: npt.ArrayLike) -> FloatArray:
    """Return α as an array; an error if they are not finite or not distinct."""
    places = np.asarray(alphas, dtype=np.float64)
    if places.ndim != 1 or not places.size or not np.isfinite(places).all():
        raise ValueError(f"`alphas` must be a list of finite numbers, got {alphas!r}.")
    if len(np.unique(places)) != len(places):
        raise ValueError(f"`alphas` must hold each α once, got {list_alphas(places)}.")
    return places


def check_units(name: str, units: npt.ArrayLike, alphas: FloatArray, *, single: bool = False) -> FloatArray:
    """Return units as an array of shape (num_alphas, num_units); raise if they do not fit the α or are not finite."""
    if single and np.ndim(units) != 1:
        raise ValueError(f"`{name}` must hold one number for each α, got an array of shape {np.shape(units)}.")
    values = np.asarray(units, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != len(alphas) or not values.shape[1]:
        raise ValueError(
            f"`{name}` must hold one number or one row of numbers for each of the {len(alphas)} α, got an array of "
            f"shape {np.shape(units)}."
        )
    for alpha, row in zip(alphas, values, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(
                f"`{name}` must hold finite numbers, got {row[~np.isfinite(row)][0]} at α = {short_alpha(alpha)}. "
                "Leave that α out, or evaluate in float32."
            )
    return values


def _is_more(units: FloatArray, others: FloatArray) -> npt.NDArray[np.bool_]:
    """Return where the mean of the units is above that of others by more than noise."""
    differences = units - others
    slack = SLACK * np.maximum(np.abs(units.mean()), np.abs(others.mean(axis=1)))
    size = differences.shape[1]
    errors = differences.std(axis=1, ddof=1) / math.sqrt(size) if size > 1 else 0.0
    return np.asarray(differences.mean(axis=1) > NOISE * errors + slack)


def _scaled(values: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return values scaled to [0, 1] along the last axis, and where they are flat."""
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    flat = high - low <= SLACK * np.maximum(np.abs(low), np.abs(high))
    return (values - low) / np.where(flat, 1, high - low), flat[..., 0]
