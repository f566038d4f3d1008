"""How well predicted curves agree with those of a full sweep, and what a choice of α by them costs. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[np.float64]
Curves = Mapping[str, Array]
"""Losses by α of "domain" and "general"."""
SIDES = ("domain", "general")
MAX_FORGETTING = 0.01
"""In nats, for "constrained": the package's default."""


def both(curves: Curves) -> Array:
    """The mean of both sides.

    >>> both({"domain": np.array([1.0, 2.0]), "general": np.array([3.0, 2.0])}).tolist()
    [2.0, 2.0]
    """
    return (curves["domain"] + curves["general"]) / 2


def error(predicted: Array, true: Array, *, shifted: bool) -> float:
    """Mean absolute error; of the shapes alone if a constant may be added to what was predicted.

    The constant is the median of the differences, for which this error is least.

    >>> error(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.5]), shifted=True)
    0.16666666666666666
    """
    differences = predicted - true
    return float(np.abs(differences - (np.median(differences) if shifted else 0.0)).mean())


def rank_correlation(predicted: Array, true: Array) -> float:
    """Spearman's, with mean ranks for ties; 0 where one side is constant.

    >>> rank_correlation(np.array([1.0, 5.0, 9.0]), np.array([3.0, 2.0, 1.0]))
    -1.0
    """
    one, other = (rank - rank.mean() for rank in map(rankdata, (predicted, true)))
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale else 0.0


def limit_of(general: Array, base: float) -> float:
    """Most general loss for "constrained", by M₀'s: nearly the least where no α keeps that."""
    least = float(general.min())
    return (base if least <= base + MAX_FORGETTING else least) + MAX_FORGETTING


def choose(curves: Curves, objective: str, base: float) -> int:
    """The place of the best α of some curves, for the objectives of `hf_interp.selection.mixing_law.choose_mixture`.

    Args:
        curves: losses by α.
        objective: domain, constrained or mean.
        base: general loss of M₀, for "constrained".
    """
    if objective == "mean":
        return int(np.argmin(both(curves)))
    if objective == "domain":
        return int(np.argmin(curves["domain"]))
    allowed = curves["general"] <= limit_of(curves["general"], base)
    return int(np.argmin(np.where(allowed, curves["domain"], np.inf)))


def at(alphas: Sequence[float], curve: Array, alpha: float) -> float:
    """The swept loss at an α, between neighbours on a straight line."""
    return float(np.interp(alpha, alphas, curve))


def regret(alphas: Sequence[float], curve: Array, alpha: float) -> float:
    """How much more the swept loss is at an α than at the best.

    >>> regret([0.0, 0.5, 1.0], np.array([3.0, 1.0, 2.0]), 0.75)
    0.5
    """
    return at(alphas, curve, alpha) - float(curve.min())


def constrained_regret(alphas: Sequence[float], curves: Curves, base: float, alpha: float) -> tuple[float, float]:
    """How far the general loss at an α is above the limit, and the domain loss above the best that keeps it.

    The first is 0 where the limit is kept; the second is below 0 where it is broken for the domain's good.

    >>> curves = {"domain": np.array([3.0, 2.0, 1.0]), "general": np.array([1.0, 1.0, 2.0])}
    >>> constrained_regret([0.0, 0.5, 1.0], curves, 1.0, 0.75)
    (0.49, -0.5)
    """
    limit = limit_of(curves["general"], base)
    best = float(curves["domain"][choose(curves, "constrained", base)])
    return max(at(alphas, curves["general"], alpha) - limit, 0.0), at(alphas, curves["domain"], alpha) - best


def seed_error(curves: Sequence[Array]) -> float | None:
    """Standard error of the points of a mean curve, beside a shift of whole curves; `None` for one seed.

    >>> round(seed_error([np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])]), 6)
    0.0
    """
    if len(curves) < 2:
        return None
    stacked = np.stack(curves)
    rest = stacked - stacked.mean(axis=1, keepdims=True)
    variances = rest.var(axis=0, ddof=1)
    return float(np.sqrt(variances.mean() / len(curves)))
