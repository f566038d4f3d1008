"""How much domain data to suggest before anything is trained, by what was best on other pairs of corpora.

An amount is the mean of α over a run. The amounts that were best are regressed on a few features that are known before
training, and how far to trust that is told by pairs that were left out of the fit. `advice.json` holds the fit; the
program that makes it is tests/benchmarks/effect/advice.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from hf_interp.utils.files import read_json

Array = npt.NDArray[np.float64]

ADVICE_PATH = Path(__file__).with_name("advice.json")
DISTANCE, LOSS_RATIO, LOG_PASSES = "distance", "loss_ratio", "log_passes"
FEATURES = {
    DISTANCE: "the distance d_A",
    LOSS_RATIO: "ln(domain loss / general loss) of M₀",
    LOG_PASSES: "ln(examples of the run / examples of the domain)",
}
PENALTY = 1.0
"""On squared coefficients of standardised features; a pair of corpora counts 1 too. With it the few pairs must agree
before a feature matters much."""
FEWEST_PAIRS = 3
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Case:
    """What was best where it is known.

    Args:
        pair: of corpora; a pair may have several cases, which count as much as one together.
        amount: the best mean of α.
        features: by the names in `FEATURES`.
    """

    pair: str
    amount: float
    features: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """What a feature does in the regression.

    Args:
        mean, scale: by which the feature is standardised.
        coefficient: what the amount gains where the standardised feature gains 1.
        low, high: the range of the feature in the fit.
    """

    mean: float
    scale: float
    coefficient: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What to try.

    Args:
        amount: mean of α over the run; a constant α of this size reads as much of the domain.
        interval: 95% interval of the best amount of a further pair.
        alpha_end, alpha_initial_steps, alpha_target_steps: of a linear rise from 0 with this mean.
        uses_features: whether the regression was used, or the mean over pairs alone.
        notes: what a reader must know.
    """

    amount: float
    interval: tuple[float, float]
    alpha_end: float
    alpha_initial_steps: int
    alpha_target_steps: int
    uses_features: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "interval": list(self.interval), "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The regression of best amounts on features.

    Args:
        mean: of the best amounts over pairs.
        slopes: by feature.
        error: root mean square error on pairs left out of the fit, each pair counting once.
        error_of_mean: that of the other pairs' mean on the same. The smaller of both is what a suggestion is trusted
            by; as the choice between the two was made on the same pairs, it is a little too small.
        num_pairs, num_cases: in the fit.
        low, high: the range of the best amounts.
    """

    mean: float
    slopes: Mapping[str, Slope]
    error: float
    error_of_mean: float
    num_pairs: int
    num_cases: int
    low: float
    high: float

    @property
    def helps(self) -> bool:
        """Whether the features predicted pairs that were left out better than the mean of the others did."""
        return self.error < self.error_of_mean

    def predict(self, features: Mapping[str, float | None]) -> float:
        """The amount by the regression. A feature that is not known counts as its mean, one out of range as its end."""
        total = self.mean
        for name, slope in self.slopes.items():
            value = features.get(name)
            if value is not None:
                total += slope.coefficient * (min(max(value, slope.low), slope.high) - slope.mean) / slope.scale
        return min(max(total, self.low), self.high)

    def suggest(self, features: Mapping[str, float | None], max_steps: int) -> Suggestion:
        """The amount to try and the schedule that has it.

        Args:
            features: by the names in `FEATURES`, `None` for what is not known.
            max_steps: optimizer steps of the run.

        Raises:
            ValueError: if there are no steps.
        """
        amount = self.predict(features) if self.helps else self.mean
        # the errors on left-out pairs are as many as there are pairs, hence Student's distribution
        margin = float(stdtrit(self.num_pairs - 1, (1 + LEVEL) / 2)) * min(self.error, self.error_of_mean)
        return Suggestion(
            amount=amount,
            interval=(max(0.0, amount - margin), min(1.0, amount + margin)),
            **rise_to_mean(amount, max_steps),
            uses_features=self.helps,
            notes=tuple(self._notes(features)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded, for `advice.json`."""
        return _rounded(asdict(self))

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Advice":
        """What `to_dict` made."""
        slopes = {name: Slope(**slope) for name, slope in found["slopes"].items()}
        return cls(**{**found, "slopes": slopes})

    def _notes(self, features: Mapping[str, float | None]) -> list[str]:
        errors = f"{self.error:.2f} against {self.error_of_mean:.2f}, of {self.num_pairs} pairs"
        if not self.helps:
            return [
                "On pairs left out of the fit the distance predicted the best amount no better than the mean of the "
                f"other pairs (root mean square error {errors}). The suggestion is that mean: the distance did not "
                "help."
            ]
        found = [
            "On pairs left out of the fit the regression was better than the mean of the other pairs (root mean square "
            f"error {errors})."
        ]
        for name, slope in self.slopes.items():
            value = features.get(name)
            if value is None:
                found.append(f"{_title(name)} is not known here and was taken as its mean, {slope.mean:.2f}.")
            elif not slope.low <= value <= slope.high:
                nearest = min(max(value, slope.low), slope.high)
                found.append(
                    f"{_title(name)} is {value:.2f}, outside the {slope.low:.2f} to {slope.high:.2f} of the pairs in "
                    f"the fit, and was taken as {nearest:.2f}."
                )
        return found


def features_of(
    distance: float, losses: Mapping[str, float] | None, num_examples: int, num_domain: int | None
) -> dict[str, float | None]:
    """The features of a pair.

    Args:
        distance: d_A, in [0, 2].
        losses: of M₀ on "general" and "domain", above 0; `None` if they are not known.
        num_examples: that a run reads, steps times global batch size.
        num_domain: training examples of the domain; `None` for a stream.

    >>> features_of(1.5, {"general": 1.0, "domain": 2.0}, 800, 100)["log_passes"] == math.log(8)
    True
    """
    return {
        DISTANCE: distance,
        LOSS_RATIO: None if losses is None else math.log(losses["domain"] / losses["general"]),
        LOG_PASSES: None if num_domain is None else math.log(num_examples / num_domain),
    }


def rise_to_mean(amount: float, max_steps: int) -> dict[str, Any]:
    """The linear rise of α from 0 that has a mean over the steps, up to the rounding of a phase to whole steps.

    A rise from 0 to e has the mean e/2. Up to a half, e is twice the amount. Above, e is 1, and α is held there for a
    share 2·amount − 1 of the steps. There is no initial phase: it would only move reading of the general side forward.

    Args:
        amount: the mean, in [0, 1].
        max_steps: optimizer steps of the run.

    Raises:
        ValueError: for an amount outside [0, 1], or no steps.

    >>> rise_to_mean(0.375, 100)
    {'alpha_end': 0.75, 'alpha_initial_steps': 0, 'alpha_target_steps': 0}
    >>> rise_to_mean(0.75, 100)
    {'alpha_end': 1.0, 'alpha_initial_steps': 0, 'alpha_target_steps': 50}
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"`amount` must be a mean of α in [0, 1], got {amount}.")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    return {
        "alpha_end": min(1.0, 2 * amount),
        "alpha_initial_steps": 0,
        "alpha_target_steps": round(max(0.0, 2 * amount - 1) * max_steps),
    }


def fit_advice(cases: Sequence[Case]) -> Advice:
    """Regress the best amounts on the features, by ridge regression with standardised features.

    Args:
        cases: of at least three pairs.

    Raises:
        ValueError: for too few pairs.
    """
    predictions = leave_pairs_out(cases)
    amounts, weights = _amounts(cases), _weights(cases)
    mean, slopes = _fit(cases)

    def error(column: int) -> float:
        return float(np.sqrt(np.average((predictions[:, column] - amounts) ** 2, weights=weights)))

    return Advice(
        mean=mean,
        slopes=slopes,
        error=error(0),
        error_of_mean=error(1),
        num_pairs=len({case.pair for case in cases}),
        num_cases=len(cases),
        low=float(amounts.min()),
        high=float(amounts.max()),
    )


def leave_pairs_out(cases: Sequence[Case]) -> Array:
    """What the other pairs say of each case.

    Returns:
        (len(cases), 2): the prediction of the regression, and the mean of the other pairs.

    Raises:
        ValueError: for fewer than three pairs.
    """
    pairs = sorted({case.pair for case in cases})
    if len(pairs) < FEWEST_PAIRS:
        raise ValueError(f"A fit needs cases of at least {FEWEST_PAIRS} pairs of corpora, got {pairs}.")
    predictions = np.empty((len(cases), 2))
    for pair in pairs:
        others = [case for case in cases if case.pair != pair]
        mean, slopes = _fit(others)
        amounts = _amounts(others)
        fitted = Advice(
            mean=mean,
            slopes=slopes,
            error=0.0,
            error_of_mean=0.0,
            num_pairs=len(pairs) - 1,
            num_cases=len(others),
            low=float(amounts.min()),
            high=float(amounts.max()),
        )
        for place, case in enumerate(cases):
            if case.pair == pair:
                predictions[place] = fitted.predict(case.features), mean
    return predictions


def load_advice(path: Path = ADVICE_PATH) -> Advice | None:
    """The fit that the package has; `None` if it has none."""
    found = read_json(path)
    return None if found is None else Advice.from_dict(found)


def _fit(cases: Sequence[Case]) -> tuple[float, dict[str, Slope]]:
    """The mean amount, and what the features add to it."""
    amounts, weights = _amounts(cases), _weights(cases)
    table = np.array([[case.features[name] for name in FEATURES] for case in cases], dtype=np.float64)
    means = np.average(table, axis=0, weights=weights)
    scales = np.sqrt(np.average((table - means) ** 2, axis=0, weights=weights))
    scales = np.where(scales > 0, scales, 1.0)
    standardised = (table - means) / scales
    mean = float(np.average(amounts, weights=weights))
    weighted = standardised * weights[:, None]
    squares = weighted.T @ standardised + PENALTY * np.eye(len(FEATURES))
    coefficients = np.linalg.solve(squares, weighted.T @ (amounts - mean))
    return mean, {
        name: Slope(
            mean=float(means[place]),
            scale=float(scales[place]),
            coefficient=float(coefficients[place]),
            low=float(table[:, place].min()),
            high=float(table[:, place].max()),
        )
        for place, name in enumerate(FEATURES)
    }


def _amounts(cases: Sequence[Case]) -> Array:
    return np.array([case.amount for case in cases], dtype=np.float64)


def _weights(cases: Sequence[Case]) -> Array:
    """So that the cases of a pair count as one."""
    pairs = [case.pair for case in cases]
    return np.array([1 / pairs.count(pair) for pair in pairs])


def _title(name: str) -> str:
    title = FEATURES[name]
    return title[0].upper() + title[1:]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 6) if isinstance(value, float) else value
