"""The choice of α for M_α = α·M_θ + (1 − α)·M₀ by the metrics of both sides and how sure they are. NumPy only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hf_interp.reporting.curve import SLACK, FloatArray, list_alphas, short_alpha
from hf_interp.reporting.results import less_is_better
from hf_interp.selection.curve_shape import check_alphas, check_units, find_knee, first_best, knee_heights
from hf_interp.utils.errors import check_choice
from hf_interp.weights.alpha_spec import check_alpha

OBJECTIVES = ("domain", "constrained", "mean", "harmonic", "knee")
METHODS = ("auto", "grid", "golden")
SMOOTH_OBJECTIVES = ("domain", "mean")
"""Objectives that are smooth in α if the metric is a loss."""

LIMITS = {"max_group_gap": "group gap", "max_leakage": "leakage"}
"""Limits on what is measured beside the sides → its name in a reason."""

MAX_ALPHAS = 1000  # each of them is an evaluation of both sides
CHUNK = 2**22  # resampled units that are held in memory at once


@dataclass(frozen=True, kw_only=True)
class AlphaSearch:
    """A search for the α of M_α: the settings under `alpha_search` of a recipe.

    Args:
        objective: domain (the best domain metric), constrained (the best domain metric that keeps `max_forgetting`),
            mean or harmonic (of both sides, weighted by `domain_weight`), or knee (of the curve of both sides).
        metric: the metric that is compared. By default accuracy, else the first that is no loss, else the loss.
        greater_is_better: whether more of `metric` is better, where its name does not tell, as that of a known metric
            does.
        method: grid evaluates `alphas`; golden does golden section on the loss, and a grid where that is not unimodal;
            auto is golden section where the metric is a loss and the objective domain or mean, and else a grid.
        alphas: the grid: a list of α, or how many at equal distances in [0, 1], at least 2. 0 and 1 are always
            evaluated.
        max_forgetting: by how much the general metric may be worse than M₀'s, for constrained.
        max_group_gap: how far the metric of the worst group may be from that of the best, for constrained: in every
            column of `group_columns` of the sets by which α is chosen. By default there is no such limit.
        max_leakage: how well M_α may tell rows that it was trained on from others, for constrained: the AUC of the
            better of the two attacks of `hf-interp audit`, where 0.5 is guessing, so in [0.5, 1]. By default there is
            no such limit.
        domain_weight: weight of the domain in mean and harmonic, in [0, 1].
        prefer_trained: take M_θ where the examples do not tell it from the best: where the 95% interval of the best α
            holds 1, and M_θ keeps the constraint, if there is one.
        one_standard_error: take the smallest α within one standard error of the best, if not M_θ.
        tolerance: width of the interval at which golden section ends, in (0, 1).
        extrapolate: allow α outside [0, 1].
        domain: name of the domain's evaluation set.
        general: name of the general evaluation set; another than `domain`.
        seed: seed of the halves and of the bootstrap.

    Raises:
        ValueError: for an unknown name, or a value out of range.
    """

    objective: str = "domain"
    metric: str | None = None
    greater_is_better: bool | None = None
    method: str = "auto"
    alphas: int | list[float] = 11
    max_forgetting: float = 0.01
    max_group_gap: float | None = None
    max_leakage: float | None = None
    domain_weight: float = 0.5
    prefer_trained: bool = True
    one_standard_error: bool = True
    tolerance: float = 0.02
    extrapolate: bool = False
    domain: str = "domain"
    general: str = "general"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("method", self.method, METHODS)
        for name in ("max_forgetting", "max_group_gap"):
            if (limit := getattr(self, name)) is not None and not 0 <= limit < math.inf:
                raise ValueError(f"`{name}` must be at least 0 and finite, got {limit}.")
        if self.max_leakage is not None and not 0.5 <= self.max_leakage <= 1:
            raise ValueError(f"`max_leakage` must lie in [0.5, 1], where 0.5 is guessing, got {self.max_leakage}.")
        for name in LIMITS:
            if getattr(self, name) is not None and self.objective != "constrained":
                raise ValueError(f"`{name}` needs the objective 'constrained', got {self.objective!r}.")
        if not 0 <= self.domain_weight <= 1:
            raise ValueError(f"`domain_weight` must lie in [0, 1], got {self.domain_weight}.")
        if self.metric is not None:
            less_is_better(self.metric, self.greater_is_better)
        if self.method == "golden" and self.objective not in SMOOTH_OBJECTIVES:
            raise ValueError(
                f"`method` 'golden' minimises a loss and needs the objective 'domain' or 'mean', got "
                f"{self.objective!r}. Take 'grid'."
            )
        if not 0 < self.tolerance < 1:
            raise ValueError(f"`tolerance` must lie in (0, 1), got {self.tolerance}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {self.seed}.")
        if self.domain == self.general:
            raise ValueError(f"`domain` and `general` must be two sets, got {self.domain!r} for both.")
        self.grid()

    def grid(self) -> list[float]:
        """Return the α of a grid.

        >>> AlphaSearch(alphas=3).grid(), AlphaSearch(alphas=[0.4]).grid()
        ([0.0, 0.5, 1.0], [0.4])
        """
        if isinstance(self.alphas, Sequence):
            for alpha in self.alphas:
                check_alpha(alpha, extrapolate=self.extrapolate)
            return [float(alpha) for alpha in self.alphas]
        if isinstance(self.alphas, bool) or not isinstance(self.alphas, int) or not 2 <= self.alphas <= MAX_ALPHAS:
            raise ValueError(
                f"`alphas` must be at least 2 α, or a list of them, and at most {MAX_ALPHAS}, got {self.alphas}."
            )
        return [index / (self.alphas - 1) for index in range(self.alphas)]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The α that was chosen, and why.

    Args:
        alpha: the chosen α.
        best_alpha: the α with the best objective; `alpha` differs where M_θ or one standard error decides.
        objective_values: the objective at every α, in the order in which the α were given. More is better: a metric of
            which less is better has its sign changed. Minus infinity where the constraint is broken; for a knee the
            height above the chord.
        std_errors: standard errors of the differences of these values from that of `best_alpha`; `None` if the spread
            is not known, and for a knee.
        confidence_interval: 95% interval of `best_alpha`; `None` if the spread is not known.
        reason: one sentence with the numbers.
    """

    alpha: float
    best_alpha: float
    objective_values: tuple[float, ...]
    std_errors: tuple[float, ...] | None
    confidence_interval: tuple[float, float] | None
    reason: str


def choose_alpha(
    alphas: npt.ArrayLike,
    domain: npt.ArrayLike,
    general: npt.ArrayLike,
    search: AlphaSearch,
    *,
    greater_is_better: bool = True,
    metric: str = "metric",
    group_gaps: npt.ArrayLike | None = None,
    leakage: npt.ArrayLike | None = None,
    num_examples: Mapping[str, int] | None = None,
    num_resamples: int = 1000,
) -> Choice:
    """Choose the α of M_α from what was evaluated.

    With d(α) and g(α) the metrics of the two sides, turned so that more is better, the objective is
    - "domain": d;
    - "constrained": d where g ≥ g(0) − max_forgetting, which α = 0 itself always meets, and where the gap between
      groups is at most `max_group_gap`, and the leakage at most `max_leakage`, if given; where no α keeps all, that
      which is least above these limits of those that keep the former;
    - "mean": w·d + (1 − w)·g with w = `domain_weight`;
    - "harmonic": 1 / (w/d + (1 − w)/g), and 0 where d or g is 0;
    - "knee": see `find_knee`; where there is no knee, d.

    The best α is the one with the greatest objective, and of equal ones that nearest to 0. The one-standard-error rule
    (Breiman et al. 1984) then takes the α nearest to 0 whose objective is within one standard error of the best: less
    is forgotten at no loss that could be measured. The standard error is that of the difference between the two α,
    paired over units. The two datasets are independent of each other, so that their variances add; for the harmonic
    mean by the delta method.

    The confidence interval is that of the best α, without this rule, which may thus choose an α below it. It reaches
    from the least to the greatest of the evaluated α that are not significantly worse than any other (multiple
    comparisons with the best, Hsu 1984): the greatest of an α's studentised differences from the others is compared
    with what it is in bootstrap resamples about their mean, of which units of each dataset are drawn with replacement,
    the same at all α. For "constrained" half of the 5% goes to the question which α keep the constraint.

    Args:
        alphas: the evaluated α, in any order, also outside [0, 1].
        domain, general: units of the metric, shape (num_alphas, num_units of that dataset), or (num_alphas,) for a
            single number each, of whose spread nothing is known: then there is neither interval nor rule.
        search: the settings.
        greater_is_better: whether more of the metric is better.
        metric: what the metric is called in the reason.
        group_gaps, leakage: the gap between groups, and the leakage, at each α, if they are limited: (num_alphas,).
        num_examples: how many examples of each side the reason speaks of, if any.
        num_resamples: bootstrap resamples; 0 for no interval.

    Raises:
        ValueError: for shapes that do not fit, repeated α, values that are not finite, a constraint without α = 0, or a
            harmonic mean of what is negative or better if less.

    >>> search = AlphaSearch(objective="constrained", max_forgetting=0.02)
    >>> choice = choose_alpha([0.0, 0.5, 1.0], [0.5, 0.8, 0.9], [0.9, 0.88, 0.7], search, metric="recall")
    >>> choice.alpha, choice.objective_values
    (0.5, (0.5, 0.8, -inf))
    >>> print(choice.reason)
    α = 0.5 has the best domain recall (0.8) of the 2 α whose general recall falls by at most 0.02 from 0.9 at α = 0.
    """
    places = check_alphas(alphas)
    order = np.lexsort((places, np.abs(places)))  # nearest to 0 first, so that the first of equals is the one to take
    sign = 1 if greater_is_better else -1
    found = _Objective(
        search=search,
        alphas=places[order],
        domain=sign * check_units("domain", domain, places)[order],
        general=sign * check_units("general", general, places)[order],
        limited=[
            (LIMITS[name], np.asarray(values, dtype=np.float64)[order], getattr(search, name))
            for name, values in zip(LIMITS, (group_gaps, leakage), strict=True)
            if values is not None and getattr(search, name) is not None
        ],
    )
    if search.objective == "constrained" and 0 not in places:
        raise ValueError(
            f"`alphas` must hold 0 for the objective 'constrained', got {list_alphas(places)}. Evaluate M₀ too."
        )
    if search.objective == "harmonic":
        _check_harmonic(found, greater_is_better)

    values = found.values(found.domain.mean(axis=1), found.general.mean(axis=1))
    best = chosen = int(first_best(values))
    errors = found.std_errors(best)
    low, high = interval = found.confidence_interval(num_resamples) or (math.nan, math.nan)
    trained = np.flatnonzero((found.alphas == 1) & (values > -np.inf))
    prefers = search.prefer_trained and trained.size == 1 and low <= 1 <= high
    if search.one_standard_error and errors is not None and not prefers:
        # the best itself is within 0 of itself; rounding must not count against an α that is one standard error off
        chosen = int(np.argmax(values + errors >= values[best] - SLACK * abs(values[best])))
    reason = _explain(found, values, errors, best, chosen, metric, sign)
    if prefers and best != trained[0]:
        chosen = int(trained[0])
        sizes = " and ".join(f"{size:,} {side}" for side, size in (num_examples or {}).items())
        reason = (
            f"α = 1 is taken, because {sizes or 'the'} examples do not tell M_θ from the best, whose α has the 95% "
            f"interval {short_alpha(low)} to {short_alpha(high)}: {reason}"
        )
    places_in_order = np.argsort(order)
    return Choice(
        alpha=float(found.alphas[chosen]),
        best_alpha=float(found.alphas[best]),
        objective_values=tuple(values[places_in_order].tolist()),
        std_errors=None if errors is None else tuple(errors[places_in_order].tolist()),
        confidence_interval=None if math.isnan(low) else interval,
        reason=reason,
    )


@dataclass(frozen=True, kw_only=True)
class _Objective:
    """An objective over α, both sides turned so that more is better, and α nearest to 0 first."""

    search: AlphaSearch
    alphas: FloatArray
    domain: FloatArray
    general: FloatArray
    limited: Sequence[tuple[str, FloatArray, float]] = ()
    """Names of what else is limited, its values, and the limit."""

    def within(self) -> npt.NDArray[np.bool_]:
        """Return which α keep the other limits; where none that may be chosen does, those least above them."""
        above = sum((np.maximum(values - most, 0) for _, values, most in self.limited), np.zeros(len(self.alphas)))
        return np.asarray(above <= above[self._keeps(self.general.mean(axis=1))].min() + SLACK)

    def _keeps(self, general: FloatArray) -> npt.NDArray[np.bool_]:
        """Return whether the general metric, (..., num_alphas), is as good as it must be."""
        base = general[..., self.alphas == 0]
        slack = SLACK * np.maximum(np.abs(base), np.abs(general))
        return general >= base - self.search.max_forgetting - slack

    def values(self, domain: FloatArray, general: FloatArray) -> FloatArray:
        """Return the objective from metrics of shape (..., num_alphas)."""
        weight = self.search.domain_weight
        if self.search.objective == "constrained":
            return np.where(self._keeps(general) & self.within(), domain, -np.inf)
        if self.search.objective == "mean":
            return weight * domain + (1 - weight) * general
        if self.search.objective == "harmonic":
            # a resample of pseudo-values may go below 0; no harmonic mean is worse than 0
            return np.maximum(domain, 0) * self._to_mean(domain, general)
        if self.search.objective == "knee":
            heights, bends = knee_heights(self.alphas, domain, general)
            return np.where(bends[..., None], heights, domain)
        return domain

    def _to_mean(self, domain: FloatArray, general: FloatArray) -> FloatArray:
        """Return harmonic mean / domain metric = g / (w·g + (1 − w)·d); 1 where both are 0."""
        domain, general = np.maximum(domain, 0), np.maximum(general, 0)
        below = self.search.domain_weight * general + (1 - self.search.domain_weight) * domain
        return np.divide(general, below, out=np.ones_like(below), where=below > 0)

    def slopes(self) -> tuple[FloatArray, FloatArray]:
        """Return ∂objective/∂d and ∂objective/∂g at each α."""
        one, zero, weight = np.ones(len(self.alphas)), np.zeros(len(self.alphas)), self.search.domain_weight
        if self.search.objective == "mean":
            return weight * one, (1 - weight) * one
        if self.search.objective == "harmonic":
            domain, general = self.domain.mean(axis=1), self.general.mean(axis=1)
            ratio = self._to_mean(domain, general)  # h/d; and h/g = (1 − w·h/d) / (1 − w), which also holds at g = 0
            other = (1 - weight * ratio) / (1 - weight) if weight < 1 else zero
            return weight * ratio**2, (1 - weight) * other**2
        return one, zero

    def std_errors(self, best: int) -> FloatArray | None:
        """Return the standard error of the difference of the objective at each α from that at the best."""
        if self.search.objective == "knee":
            return None
        variance = np.zeros(len(self.alphas))
        for units, slope in zip((self.domain, self.general), self.slopes(), strict=True):
            if not slope.any():
                continue
            if units.shape[1] == 1:
                return None
            linear = slope[:, None] * units
            variance += (linear - linear[best]).var(axis=1, ddof=1) / units.shape[1]
        return np.sqrt(variance)

    def confidence_interval(self, num_resamples: int) -> tuple[float, float] | None:
        """Return the ends of the α that are not significantly worse than another (see `choose_alpha`)."""
        objective, weight = self.search.objective, self.search.domain_weight
        domain_counts = objective != "mean" or weight > 0
        general_counts = weight < 1 if objective == "mean" else objective != "domain"
        sides = ((self.domain, domain_counts), (self.general, general_counts))
        fewest = min(units.shape[1] for units, counts in sides if counts)
        if not num_resamples or fewest == 1:
            return None
        generator = np.random.default_rng(self.search.seed)
        points = self.domain.mean(axis=1), self.general.mean(axis=1)
        domain, general = (
            _resampled_means(units, num_resamples, generator) if counts else units.mean(axis=1)
            for units, counts in sides
        )
        heavier = 1 + 1.21 / (fewest - 1)  # Student's quantile by the normal one, to the first order
        level, possible, rivals = 0.95, np.isfinite(self.alphas), np.isfinite(self.alphas)
        values = [(self.values(*points), self.values(domain, general))]
        if objective == "knee":
            heights = knee_heights(self.alphas, *points)[0]
            again, bends = knee_heights(self.alphas, domain, general)
            kinds = (((heights, again), bends.mean()), ((points[0], domain), 1 - bends.mean()))
            values = [kind for kind, share in kinds if share > 0.05]  # where there may be no knee, the domain decides
            possible = rivals = np.isfinite(heights)
        if objective == "constrained":
            level, values = 0.975, [(points[0], domain)]
            lost = points[1][self.alphas == 0] - points[1]
            spread = general[:, self.alphas == 0] - general - lost
            bound = heavier * _quantile_of_worst(np.abs(spread), spread.std(axis=0), level) * spread.std(axis=0)
            excess = lost - self.search.max_forgetting - SLACK * np.abs(points[1])
            possible, rivals = (excess <= bound) & self.within(), (excess <= -bound) & self.within()
        kept = [
            self.alphas[place]
            for point, drawn in values
            for place in np.flatnonzero(possible)
            if not _is_worse(point[rivals] - point[place], drawn[:, rivals] - drawn[:, [place]], level, heavier)
        ]
        return float(min(kept)), float(max(kept))


def _is_worse(gaps: FloatArray, resampled: FloatArray, level: float, heavier: float) -> bool:
    """Whether any of the gaps, (num_rivals,), is above 0 by more than resampled ones, (num_resamples, num_rivals)."""
    spread = resampled - gaps
    errors = spread.std(axis=0)
    return bool((gaps > heavier * _quantile_of_worst(spread, errors, level) * errors + SLACK).any())


def _quantile_of_worst(spread: FloatArray, errors: FloatArray, level: float) -> float:
    """Return a quantile over resamples of the greatest of several spreads, each in units of its standard error."""
    return float(np.quantile((spread / np.where(errors > 0, errors, np.inf)).max(axis=1, initial=0.0), level))


def _resampled_means(units: FloatArray, num_resamples: int, generator: np.random.Generator) -> FloatArray:
    """Return means over units drawn with replacement, the same at all α: shape (num_resamples, num_alphas)."""
    size = units.shape[1]
    rows = max(CHUNK // size, 1)
    means = []
    for begin in range(0, num_resamples, rows):
        count = min(rows, num_resamples - begin)
        # counts of draws are multinomial; counting draws is many times faster than `Generator.multinomial`
        draws = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        weights = np.bincount(draws.ravel(), minlength=count * size).reshape(count, size)
        means.append(weights.astype(np.float64) @ units.T / size)
    return np.concatenate(means)


def _explain(
    found: _Objective,
    values: FloatArray,
    errors: FloatArray | None,
    best: int,
    chosen: int,
    metric: str,
    sign: int,
) -> str:
    """Return the reason of a choice."""
    search, alpha = found.search, f"α = {short_alpha(found.alphas[chosen])}"
    domain, general = sign * found.domain.mean(axis=1), sign * found.general.mean(axis=1)
    name, among = f"domain {metric}", ""
    if search.objective == "knee":
        if find_knee(found.alphas, found.domain.mean(axis=1), found.general.mean(axis=1)) is not None:
            point = f"domain {metric} {domain[chosen]:.4g}, general {metric} {general[chosen]:.4g}"
            return (
                f"{alpha} is the knee of the curve: its point ({point}) lies farthest from the chord between the ends."
            )
        among = ", and is taken because the curve has no knee"
    elif search.objective in ("mean", "harmonic"):
        mean = "mean" if search.objective == "mean" else "harmonic mean"
        name = f"{mean} of domain and general {metric} at domain weight {search.domain_weight:.4g}"
    elif search.objective == "constrained":
        bound = f"{'falls' if sign > 0 else 'rises'} by at most {search.max_forgetting:.4g}"
        bound = f"whose general {metric} {bound} from {general[found.alphas == 0][0]:.4g} at α = 0"
        for what, measured, most in found.limited:
            is_kept = measured[best] <= most + SLACK
            bound += f" and whose {what} is "
            bound += f"at most {most:.4g}" if is_kept else f"least ({measured[best]:.4g}, above {most:.4g})"
        num_feasible = int(np.isfinite(values).sum())
        if num_feasible == 1:
            return f"{alpha} is the only α {bound}."
        among = f" of the {num_feasible} α {bound}"
    reached, top = sign * values[chosen], sign * values[best]
    if chosen == best:
        return f"{alpha} has the best {name} ({reached:.4g}){among}."
    assert errors is not None
    first = "smallest α" if found.alphas.min() >= 0 else "α nearest to 0"
    return (
        f"{alpha} is the {first} whose {name} ({reached:.4g}) lies within one standard error ({errors[chosen]:.2g}) of "
        f"the best ({top:.4g} at α = {short_alpha(found.alphas[best])}){among}."
    )


def check_no_limits(search: AlphaSearch, where: str) -> None:
    """Refuse limits on what is measured beside the sides where it is not measured."""
    for name in LIMITS:
        if getattr(search, name) is not None:
            raise ValueError(f"`alpha_search.{name}` is not known to {where}. Leave it out; `train` knows it.")


def _check_harmonic(found: _Objective, greater_is_better: bool) -> None:
    remedy = "Take the objective 'mean', or a metric such as accuracy."
    if not greater_is_better:
        raise ValueError(
            "`objective` must not be 'harmonic' where less of a metric is better: the harmonic mean would favour the "
            f"worse side. {remedy}"
        )
    for name, units in (("domain", found.domain), ("general", found.general)):
        means = units.mean(axis=1)
        if (means < 0).any():
            worst = int(means.argmin())
            raise ValueError(
                f"`{name}` must not be negative for the objective 'harmonic', got {means[worst]:.4g} at α = "
                f"{short_alpha(found.alphas[worst])}. {remedy}"
            )
