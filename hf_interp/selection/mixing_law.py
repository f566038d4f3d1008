"""How much domain data: losses of a few constant mixtures, the law through them, and the α that it chooses. No torch.

The data-mixing law (Ye et al. 2024, arXiv 2403.16952) says of a loss after training on a constant mixture
L(α) = c + k·exp(t·α). It is fitted for each side on its own. For how sure it is, its residuals are resampled (a
residual bootstrap, Efron & Tibshirani 1993, chapter 9), for the law and what is chosen by it.

The law never turns, but losses do: few domain examples that are repeated too often are learned by heart. Where runs
that share an α show that the law misses the losses by more than chance (the F test for lack of fit, Draper & Smith
1998, chapter 2), the lines between the means take its place.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import f as f_distribution

from hf_interp.reporting.curve import FloatArray, short_alpha
from hf_interp.utils.errors import did_you_mean

MixtureObjective = Literal["domain", "constrained", "mean"]
OBJECTIVES: tuple[MixtureObjective, ...] = get_args(MixtureObjective)
SIDES = ("domain", "general")
NUM_PARAMETERS = 3
STEEPEST = 20.0
"""Largest |t| that is tried: e^20 is a law that falls to nothing within a twentieth of the way."""
FLATTEST = 1e-3
"""Smallest |t|: a straight line, as far as anybody could see."""
RATES = np.concatenate([sign * np.geomspace(FLATTEST, STEEPEST, 120) for sign in (-1, 1)])
"""What is tried for t: all that the bootstrap looks at, and where a fit begins."""
SIGNIFICANCE = 0.05
"""A law that misses the losses so much or more by chance less often than this is given up."""
GRID = 101
"""How many α a choice is made from."""


@dataclass(frozen=True, kw_only=True)
class MixingLaw:
    """L(α) = offset + scale·exp(rate·α), a loss in nats after training on a constant mixture with domain share α."""

    offset: float
    scale: float
    rate: float

    def __call__(self, alphas: FloatArray | Sequence[float]) -> FloatArray:
        """The losses at some α."""
        return np.asarray(self.offset + self.scale * np.exp(self.rate * np.asarray(alphas, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True)
class MeasuredLosses:
    """Straight lines between the mean losses at the α of the runs, for losses that no law describes.

    Args:
        alphas: rising.
        means: the mean loss at each.
    """

    alphas: tuple[float, ...]
    means: tuple[float, ...]

    def __call__(self, alphas: FloatArray | Sequence[float]) -> FloatArray:
        """The losses at some α; beyond the runs those of the nearest."""
        return np.interp(np.asarray(alphas, dtype=np.float64), self.alphas, self.means)


LossCurve = MixingLaw | MeasuredLosses


def curve_of(values: Mapping[str, Any]) -> LossCurve:
    """The curve of a written choice."""
    return MeasuredLosses(**values) if "means" in values else MixingLaw(**values)


@dataclass(kw_only=True)
class MixtureChoice:
    """The α of a constant mixture that was chosen.

    Args:
        alpha: the α.
        interval: 95% bootstrap interval of it.
        predicted: the loss of each side at it, by its curve.
        predicted_intervals: 95% bootstrap intervals of these.
        curves: of each side its law, or the measured losses where no law describes them.
        bands: of each side the ends of the 95% band of its curve over `grid`.
        grid: the α that were considered.
        feasible: whether the constraint can be kept anywhere.
        reason: one sentence with the numbers.
        warnings: what a reader must know.
    """

    alpha: float
    interval: tuple[float, float]
    predicted: dict[str, float]
    predicted_intervals: dict[str, tuple[float, float]]
    curves: dict[str, LossCurve]
    bands: dict[str, tuple[list[float], list[float]]]
    grid: list[float]
    feasible: bool
    reason: str
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for results."""
        return asdict(self)


def fit_mixing_law(alphas: Sequence[float], losses: Sequence[float]) -> MixingLaw:
    """The law with the least squares, by α and losses of runs; several runs may share an α.

    For a given rate the other two are linear, so that only the rate is searched (variable projection).

    Args:
        alphas: the domain's share in each run, of which at least three differ.
        losses: the loss of each run.

    Raises:
        ValueError: for fewer than three different α, or losses that are not finite.

    >>> law = fit_mixing_law([0.0, 0.5, 1.0], [2.0, 1.5, 1.25])
    >>> [round(float(loss), 6) for loss in law([0.0, 0.5, 1.0])], round(law.offset, 3)
    ([2.0, 1.5, 1.25], 1.0)
    """
    x, y = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(np.unique(x)) < NUM_PARAMETERS:
        raise ValueError(f"A law needs runs at three or more different α, got {sorted(set(x.tolist()))}. Add some.")
    if not np.isfinite(y).all():
        raise ValueError(f"Losses must be finite, got {y.tolist()}. A run may have diverged: lower the learning rate.")
    if np.ptp(y) == 0:
        return MixingLaw(offset=float(y[0]), scale=0.0, rate=FLATTEST)

    def misfit(log_rate: float, sign: float) -> float:
        return float(_at_rate(x, y, sign * math.exp(log_rate))[1])

    starts = np.log(RATES[RATES > 0])
    found = []
    for sign in (-1.0, 1.0):
        values = [misfit(start, sign) for start in starts]
        best = int(np.argmin(values))
        bounds = (starts[max(best - 1, 0)], starts[min(best + 1, len(starts) - 1)])
        refined = minimize_scalar(misfit, bounds=bounds, args=(sign,), method="bounded", options={"xatol": 1e-10})
        found += [(values[best], sign * math.exp(starts[best])), (float(refined.fun), sign * math.exp(refined.x))]
    rate = min(found)[1]
    (offset, scale), _ = _at_rate(x, y, rate)
    return MixingLaw(offset=float(offset), scale=float(scale), rate=float(rate))


def measure_losses(alphas: Sequence[float], losses: Sequence[float]) -> MeasuredLosses:
    """The mean loss at each α.

    >>> measure_losses([0.5, 0.0, 0.5], [1.0, 2.0, 1.5])
    MeasuredLosses(alphas=(0.0, 0.5), means=(2.0, 1.25))
    """
    shares = sorted(set(map(float, alphas)))
    by_share = {share: [loss for alpha, loss in zip(alphas, losses, strict=True) if alpha == share] for share in shares}
    return MeasuredLosses(alphas=tuple(shares), means=tuple(float(np.mean(found)) for found in by_share.values()))


def lack_of_fit(alphas: Sequence[float], losses: Sequence[float], law: MixingLaw) -> float | None:
    """How likely a law that is true misses the mean losses at the α of the runs as much as this one, or more.

    The misfit is measured against the spread of runs that share an α.

    Returns:
        the p-value of the F test; `None` if no runs share an α, or there are no more α than a law has parameters.

    >>> law = MixingLaw(offset=1.0, scale=1.0, rate=-1.0)
    >>> lack_of_fit([0.0, 0.25, 0.5, 1.0], [1.0] * 4, law) is None
    True
    """
    means = measure_losses(alphas, losses)
    freedom = len(means.alphas) - NUM_PARAMETERS, len(losses) - len(means.alphas)
    if min(freedom) < 1:
        return None
    missed = float(((means(alphas) - law(alphas)) ** 2).sum())
    spread = float(((np.asarray(losses) - means(alphas)) ** 2).sum())
    if missed <= 1e-12 * max(float(np.square(losses).sum()), spread):  # rounding
        return 1.0
    return float(f_distribution.sf(missed / freedom[0] / (spread / freedom[1]), *freedom)) if spread > 0 else 0.0


def choose_mixture(
    alphas: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    base_losses: Mapping[str, float],
    *,
    objective: str = "constrained",
    max_forgetting: float = 0.01,
    domain_weight: float = 0.5,
    num_resamples: int = 500,
    seed: int = 0,
) -> MixtureChoice:
    """The α of a constant mixture by the laws of both sides, or by the measured losses of a side that has no law.

    With D and G these curves and G₀ the general loss of M₀ it is for the objective
    - "domain": where D is least, by the measured losses always, as the least of a law is at an end;
    - "constrained": where D is least among the α with G ≤ G₀ + `max_forgetting`; where there are none, because training
      alone costs more, among those with G ≤ min G + `max_forgetting`;
    - "mean": where w·D + (1 − w)·G is least, w = `domain_weight`.

    Args:
        alphas: the domain's share in each run.
        losses: of "domain" and "general" the loss of each run, in nats.
        base_losses: those of M₀.
        objective: see above.
        max_forgetting: in nats.
        domain_weight: for "mean".
        num_resamples: of the bootstrap.
        seed: of it.

    Raises:
        ValueError: for an unknown objective, a value out of range, or runs through which no law goes.
    """
    if objective not in OBJECTIVES:
        raise ValueError(
            f"`objective` must be one of {', '.join(OBJECTIVES)} for a mixture, got {objective!r}."
            + did_you_mean(objective, OBJECTIVES)
        )
    if not 0 <= domain_weight <= 1:
        raise ValueError(f"`domain_weight` must lie in [0, 1], got {domain_weight}.")
    if max_forgetting < 0:
        raise ValueError(f"`max_forgetting` must be at least 0, got {max_forgetting}.")
    grid = np.linspace(0.0, 1.0, GRID)
    limit = base_losses["general"] + max_forgetting

    def choose(domain: FloatArray, general: FloatArray) -> tuple[int, bool]:
        if objective == "mean":
            return int(np.argmin(domain_weight * domain + (1 - domain_weight) * general)), True
        allowed = general <= limit if objective == "constrained" else np.full(GRID, True)
        feasible = bool(allowed.any())
        if not feasible:
            allowed = general <= general.min() + max_forgetting
        return int(np.argmin(np.where(allowed, domain, np.inf))), feasible

    fitted = {side: fit_curve(alphas, losses[side]) for side in SIDES}
    found = dict(fitted)
    if objective == "domain":  # a law never turns: its least loss is always at an end
        found["domain"] = measure_losses(alphas, losses["domain"])
    curves = {side: found[side](grid) for side in SIDES}
    chosen, feasible = choose(curves["domain"], curves["general"])
    resampled = {
        side: _resampled(alphas, losses[side], found[side], grid, num_resamples, seed + place)
        for place, side in enumerate(SIDES)
    }
    picks = [choose(*pair)[0] for pair in zip(resampled["domain"], resampled["general"], strict=True)]
    low, high = np.quantile(grid[picks], [0.025, 0.975])
    bands = {side: np.quantile(resampled[side], [0.025, 0.975], axis=0) for side in SIDES}
    alpha = float(grid[chosen])
    return MixtureChoice(
        alpha=alpha,
        interval=(float(low), float(high)),
        predicted={side: float(curves[side][chosen]) for side in SIDES},
        predicted_intervals={side: (float(bands[side][0, chosen]), float(bands[side][1, chosen])) for side in SIDES},
        curves=found,
        bands={side: (bands[side][0].tolist(), bands[side][1].tolist()) for side in SIDES},
        grid=grid.tolist(),
        feasible=feasible,
        reason=_explain(alpha, curves, chosen, objective, limit, domain_weight, feasible),
        warnings=_warnings(alphas, alpha, (float(low), float(high)), fitted),
    )


def _at_rate(x: FloatArray, y: FloatArray, rate: float) -> tuple[FloatArray, float]:
    """Offset and scale with the least squares at a rate, and the sum of these squares."""
    columns = _columns(x, rate)
    solution = np.linalg.lstsq(columns, y, rcond=None)[0]
    scale = solution[1] / rate
    return np.array([solution[0] - scale, scale]), float(((columns @ solution - y) ** 2).sum())


def _columns(x: FloatArray, rate: float) -> FloatArray:
    """What a law with this rate is a sum of: (len(x), 2)."""
    # centred and divided by the rate, or the columns of a flat law are one up to rounding
    return np.stack([np.ones_like(x), np.expm1(rate * x) / rate], axis=1)


def fit_curve(alphas: Sequence[float], losses: Sequence[float]) -> LossCurve:
    """The law through the losses, or the measured losses where it misses them by more than chance.

    Raises:
        ValueError: as `fit_mixing_law`.
    """
    law = fit_mixing_law(alphas, losses)
    chance = lack_of_fit(alphas, losses, law)
    return law if chance is None or chance >= SIGNIFICANCE else measure_losses(alphas, losses)


def _resampled(
    alphas: Sequence[float], losses: Sequence[float], curve: LossCurve, grid: FloatArray, count: int, seed: int
) -> FloatArray:
    """Curves over the grid through losses whose residuals were drawn anew: (count, len(grid))."""
    x, fitted = np.asarray(alphas, dtype=np.float64), curve(alphas)
    freedom = len(x) - (len(curve.alphas) if isinstance(curve, MeasuredLosses) else NUM_PARAMETERS)
    # residuals of a fit are too small by the parameters that were fitted
    residuals = (np.asarray(losses) - fitted) * math.sqrt(len(x) / freedom) if freedom else np.zeros(len(x))
    residuals = residuals - residuals.mean()
    drawn = fitted + np.random.default_rng(seed).choice(residuals, (count, len(x)))
    if isinstance(curve, MeasuredLosses):
        return np.stack([measure_losses(alphas, row.tolist())(grid) for row in drawn])
    return _laws_through(x, drawn, grid)


def _laws_through(x: FloatArray, losses: FloatArray, grid: FloatArray) -> FloatArray:
    """The laws with the least squares through rows of losses, over the grid: (len(losses), len(grid))."""
    explained = np.full((len(RATES), len(losses)), -np.inf)
    curves = np.empty((len(RATES), len(grid), 2))
    bases = []
    for place, rate in enumerate(RATES):
        basis, triangle = np.linalg.qr(_columns(x, rate))
        bases.append(basis)
        explained[place] = ((losses @ basis) ** 2).sum(axis=1)
        curves[place] = _columns(grid, rate) @ np.linalg.inv(triangle)
    best = explained.argmax(axis=0)
    return np.stack([curves[place] @ (row @ bases[place]) for place, row in zip(best, losses, strict=True)])


def _explain(
    alpha: float,
    curves: Mapping[str, FloatArray],
    chosen: int,
    objective: str,
    limit: float,
    domain_weight: float,
    feasible: bool,
) -> str:
    domain, general = (float(curves[side][chosen]) for side in SIDES)
    told = (
        f"α = {short_alpha(alpha)}: the domain loss is predicted as {domain:.4f} and the general loss as {general:.4f}"
    )
    if objective == "domain":
        return f"{told}; no other α has a smaller domain loss."
    if objective == "mean":
        return f"{told}; no other α has a smaller mean of both, with the weight {domain_weight:g} for the domain."
    if feasible:
        return f"{told}; it has the smallest domain loss of all α whose general loss is at most {limit:.4f}."
    return (
        f"{told}, above the limit of {limit:.4f} as that of every α; it has the smallest domain loss of all α that "
        "forget hardly more than the least."
    )


def _warnings(
    alphas: Sequence[float], alpha: float, interval: tuple[float, float], curves: Mapping[str, LossCurve]
) -> list[str]:
    found = []
    if len(alphas) <= NUM_PARAMETERS:
        found.append("The law goes through every run, so that nothing is known of how sure it is. Add α or seeds.")
    for side, curve in curves.items():
        if isinstance(curve, MeasuredLosses):
            found.append(
                f"The {side} losses do not follow the law, so that the lines between their means are used. "
                "What lies between the α of the runs is a guess; add α there."
            )
    if interval[1] - interval[0] > 0.5:
        low, high = map(short_alpha, interval)
        found.append(f"The interval of α, {low} to {high}, is wide: these runs cannot tell. Add seeds or steps.")
    ends = curves["domain"]([min(alphas), max(alphas)])
    if ends[1] > ends[0]:
        found.append("The domain loss rises with the domain's share. Its data may be repeated too often.")
    if not min(alphas) <= alpha <= max(alphas):
        found.append(f"α = {short_alpha(alpha)} lies outside the runs, where its curve is a guess. Add α there.")
    return found
