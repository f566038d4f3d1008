"""Pure functions: paired bootstrap over seeds and examples, ranks, hypervolume, wins and losses. No torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

Array = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Resamples(NamedTuple):
    """Draws of a bootstrap, the same for all methods that are compared.

    Args:
        seeds: numbers of the seeds drawn: (num_resamples, num_seeds).
        weights: how often each example was drawn: (num_resamples, num_examples).
    """

    seeds: npt.NDArray[np.intp]
    weights: Array


def draw(num_seeds: int, num_examples: int, num_resamples: int, generator: np.random.Generator) -> Resamples:
    """Draw seeds and examples with replacement.

    Raises:
        ValueError: if there is no seed or no example.
    """
    if num_seeds < 1 or num_examples < 1:
        raise ValueError(f"A bootstrap needs a seed and an example, got {num_seeds} and {num_examples}.")
    seeds = generator.integers(num_seeds, size=(num_resamples, num_seeds))
    draws = generator.integers(num_examples, size=(num_resamples, num_examples))
    places = draws + num_examples * np.arange(num_resamples)[:, None]
    weights = np.bincount(places.ravel(), minlength=num_resamples * num_examples)
    return Resamples(seeds, weights.reshape(num_resamples, num_examples).astype(np.float64))


def seed_stretch(num_seeds: int) -> float:
    """By how much the deviation of a bootstrap over few seeds is too small.

    √(k / (k − 1)), as that of a sample, times Student's quantile at k − 1 degrees of freedom over the normal one; 1 for
    one seed, of whose spread nothing is known.

    >>> round(seed_stretch(5), 3), seed_stretch(1)
    (1.584, 1.0)
    """
    if num_seeds == 1:
        return 1.0
    return float(np.sqrt(num_seeds / (num_seeds - 1)) * t.ppf(0.975, num_seeds - 1) / norm.ppf(0.975))


def resampled(numerators: Array, denominators: Array, draws: Resamples, stretch: float = 1.0) -> Array:
    """The mean over seeds of Σ numerators / Σ denominators, for every resample.

    Args:
        numerators, denominators: (num_seeds, num_examples).
        draws: of `draw`.
        stretch: of a resample's deviation by its choice of seeds (see `seed_stretch`).
    """
    below = draws.weights @ denominators.T
    ratios = np.divide(draws.weights @ numerators.T, below, out=np.zeros_like(below), where=below > 0)
    chosen = np.take_along_axis(ratios, draws.seeds, axis=1).mean(axis=1)
    return chosen + (stretch - 1) * (chosen - ratios.mean(axis=1))


def interval(value: float, samples: Array) -> Interval:
    """A value with the middle 95% of its resamples.

    >>> interval(0.5, np.arange(101) / 100)
    Interval(value=0.5, low=0.025, high=0.975)
    """
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def signed(found: Interval | None) -> str:
    """A difference with its interval as tables show it; what is sure is bold.

    >>> signed(Interval(0.1, 0.05, 0.15)), signed(Interval(0.0, -0.1, 0.1)), signed(None)
    ('**+0.100 (+0.050 to +0.150)**', '+0.000 (-0.100 to +0.100)', '')
    """
    if found is None:
        return ""
    text = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def span(counts: Sequence[int]) -> str:
    """The least and the greatest of some numbers, or the one that all are.

    >>> span([5, 3, 5]), span([2, 2])
    ('3–5', '2')
    """
    return "–".join(str(count) for count in dict.fromkeys((min(counts), max(counts))))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the greatest; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=np.float64)
    above = (array[None, :] > array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    return [float(rank) for rank in above + (equal + 1) / 2]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that is dominated by points of which more is better, above a reference point."""
    area, height = 0.0, reference[1]
    for first, second in sorted(points, reverse=True):
        if first > reference[0] and second > height:
            area += (first - reference[0]) * (second - height)
            height = second
    return area


def judge(differences: Mapping[str, Interval]) -> str:
    """A method against another by its differences on both sides, of which more is better.

    Returns:
        "win" if it is surely better (the interval lies above 0) on a side and surely worse on none, "loss" the other
        way round, "trade" if surely better on one and surely worse on the other, and else "tie".
    """
    better = any(found.low > 0 for found in differences.values())
    worse = any(found.high < 0 for found in differences.values())
    return {(True, False): "win", (False, True): "loss", (True, True): "trade", (False, False): "tie"}[better, worse]
