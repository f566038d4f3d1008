"""Has the share of negative texts jumped? A one-sided Bernoulli CUSUM in whole numbers, and rolling shares.

Page (1954, "Continuous inspection schemes", Biometrika 41) adds up the log-likelihood ratio of "the rate is p1" against
"the rate is p0", never below 0, and raises an alarm when the sum reaches a threshold. For a stream of yes and no it
adds ln(p1/p0) for a yes and ln((1 − p1)/(1 − p0)) for a no: up to a factor, 1 − γ for a yes and −γ for a no, where

    γ = ln((1 − p0)/(1 − p1)) / ln(p1(1 − p0)/(p0(1 − p1))),   p0 < γ < p1.

Reynolds and Stoumbos (1999, "A CUSUM chart for monitoring a proportion when inspecting continuously", Journal of
Quality Technology 31) round γ to a fraction a/b: then the sum moves in whole steps (+(b − a) and −a), its states are a
Markov chain, and the mean number of texts to an alarm is the solution of a linear system rather than an approximation.

A usual rate p0 that is learned from a few texts is off by chance, and where it is too low, false alarms come several
times as often as planned (Lee, Wang, Xu, Schuh and Woodall 2013, "The effect of parameter estimation on upper-sided
Bernoulli cumulative sum charts", Quality and Reliability Engineering International 29). The chart is therefore made for
an upper confidence limit of p0 (Wilson 1927): later alarms, but as rarely false as asked for, at that confidence.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import comb, log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from hf_interp.utils.console import format_table

RATES = (0.01, 0.9)
"""A learned rate is held within these: below, hardly any alarm could be told from chance; above, no jump is left."""
_DENOMINATORS = (20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Chart:
    """Whole numbers by which a CUSUM runs: `up` for a yes, −`down` for a no, an alarm at `threshold`."""

    up: int
    down: int
    threshold: int


def raised_rate(base_rate: float, odds_ratio: float) -> float:
    """The rate whose odds are `odds_ratio` times those of `base_rate`.

    >>> raised_rate(0.25, 3.0)
    0.5
    """
    odds = odds_ratio * base_rate / (1 - base_rate)
    return odds / (1 + odds)


def upper_limit(yeses: int, texts: int, confidence: float) -> float:
    """An upper confidence limit of a rate (Wilson 1927, Journal of the American Statistical Association 22).

    >>> round(upper_limit(10, 100, 0.9), 4), upper_limit(10, 100, 0.5)
    (0.1451, 0.1)
    """
    rate, z = yeses / texts, NormalDist().inv_cdf(confidence)
    half = z * sqrt(rate * (1 - rate) / texts + (z / (2 * texts)) ** 2)
    return (rate + z**2 / (2 * texts) + half) / (1 + z**2 / texts)


def reference_value(base_rate: float, odds_ratio: float) -> Fraction:
    """γ as the nearest fraction with a small denominator that lies between the two rates.

    >>> reference_value(0.1, 3.0)
    Fraction(1, 6)
    """
    raised = raised_rate(base_rate, odds_ratio)
    exact = log((1 - base_rate) / (1 - raised)) / log(odds_ratio)
    for denominator in _DENOMINATORS:
        fraction = Fraction(exact).limit_denominator(denominator)
        if base_rate < fraction < raised:
            return fraction
    raise ValueError(
        f"The rates {base_rate:g} and {raised:g} lie too close together to be told apart; raise `odds_ratio` "
        f"({odds_ratio:g})."
    )


def mean_run_length(chart: Chart, rate: float) -> float:
    """Mean number of texts from a sum of 0 to the alarm if each is a yes with probability `rate`; exact.

    The mean L(s) from a sum of s solves L(s) = 1 + rate·L(s + up) + (1 − rate)·L(max(0, s − down)), with L = 0 from the
    threshold on.

    >>> round(mean_run_length(Chart(up=1, down=1, threshold=2), 0.5), 6)  # two yeses in a row, or 1 out of a walk
    6.0
    """
    states = np.arange(chart.threshold)
    moves = np.eye(chart.threshold)
    on = states + chart.up < chart.threshold
    moves[states[on], states[on] + chart.up] -= rate
    np.add.at(moves, (states, np.maximum(states - chart.down, 0)), rate - 1)
    return float(np.linalg.solve(moves, np.ones(chart.threshold))[0])


def design_chart(base_rate: float, *, odds_ratio: float, run_length: float) -> Chart:
    """The chart with the lowest threshold that lets at least `run_length` texts pass between false alarms, on average.

    >>> design_chart(0.1, odds_ratio=3.0, run_length=1000.0)
    Chart(up=5, down=1, threshold=22)
    """
    gamma = reference_value(base_rate, odds_ratio)
    up, down = gamma.denominator - gamma.numerator, gamma.numerator

    def holds(threshold: int) -> bool:
        return mean_run_length(Chart(up, down, threshold), base_rate) >= run_length

    high = 1
    while not holds(high):
        high *= 2
    low = high // 2  # does not hold, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Chart(up, down, high)


class JumpDetector:
    """Raises an alarm when the share of yeses has jumped; constant time and memory per text.

    The first `reference` texts give the usual rate; no alarm is raised over them. From then on a CUSUM looks for a rate
    with `odds_ratio` times the odds of the usual rate's upper confidence limit, held within `RATES`. After an alarm it
    starts from 0 again, so that a share that stays high raises further alarms.

    Args:
        reference: texts to learn the usual rate from.
        odds_ratio: the jump to be found soonest, as a factor of the odds; at least 1.5.
        run_length: mean number of texts between false alarms, or more, with probability `confidence`; more than 1.
        confidence: of the upper limit of a usual rate that is learned; ½ takes the rate as it was found.
        base_rate: the usual rate, if it is known; then nothing is learned.
        relearn: learn the usual rate anew after each alarm, so that only a further jump raises another.

    Raises:
        ValueError: for settings outside these ranges.

    >>> detector = JumpDetector(base_rate=0.1, run_length=1000.0)
    >>> [detector.update(negative) for negative in [True] * 5]
    [False, False, False, False, True]
    """

    def __init__(
        self,
        *,
        reference: int = 200,
        odds_ratio: float = 3.0,
        run_length: float = 1000.0,
        confidence: float = 0.9,
        base_rate: float | None = None,
        relearn: bool = False,
    ) -> None:
        if reference < 1:
            raise ValueError(f"`reference` must be at least 1 text, got {reference}.")
        if not 1.5 <= odds_ratio <= 100:
            raise ValueError(f"`odds_ratio` must lie in [1.5, 100], got {odds_ratio}; 3 is a jump from 10% to 25%.")
        if not 1 < run_length <= 1e8:
            raise ValueError(f"`run_length` must be more than 1 text and at most 1e8, got {run_length}.")
        if not 0.5 <= confidence <= 0.999:
            raise ValueError(f"`confidence` must lie in [0.5, 0.999], got {confidence}.")
        if base_rate is not None and not RATES[0] <= base_rate <= RATES[1]:
            raise ValueError(f"`base_rate` must lie in [{RATES[0]}, {RATES[1]}], got {base_rate}.")
        self.reference = reference
        self.odds_ratio = odds_ratio
        self.run_length = run_length
        self.confidence = confidence
        self.relearn = relearn
        self.base_rate = base_rate
        self.chart = None if base_rate is None else self._design(base_rate)
        self.statistic = 0
        self._seen = 0
        self._negatives = 0

    @property
    def usual_share(self) -> float | None:
        """The share that was found in the reference, or `base_rate`; `None` before the end of the reference."""
        return None if self.chart is None else self._negatives / self._seen if self._seen else self.base_rate

    def update(self, negative: bool) -> bool:
        """Take one text; whether it raises an alarm."""
        if self.chart is None:
            self._learn(negative)
            return False
        step = self.chart.up if negative else -self.chart.down
        self.statistic = max(0, self.statistic + step)
        if self.statistic < self.chart.threshold:
            return False
        self.statistic = 0
        if self.relearn:
            self.base_rate, self.chart, self._seen, self._negatives = None, None, 0, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in kinds that JSON knows."""
        return {
            "base_rate": self.base_rate,
            "chart": None if self.chart is None else asdict(self.chart),
            "statistic": self.statistic,
            "seen": self._seen,
            "negatives": self._negatives,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the detector with this state stood; the settings are the caller's to keep."""
        self.base_rate = state["base_rate"]
        self.chart = None if state["chart"] is None else Chart(**state["chart"])
        self.statistic = state["statistic"]
        self._seen = state["seen"]
        self._negatives = state["negatives"]

    def _learn(self, negative: bool) -> None:
        self._seen += 1
        self._negatives += negative
        if self._seen == self.reference:
            limit = upper_limit(self._negatives, self._seen, self.confidence)
            self.base_rate = min(max(limit, RATES[0]), RATES[1])
            self.chart = self._design(self.base_rate)

    def _design(self, base_rate: float) -> Chart:
        return design_chart(base_rate, odds_ratio=self.odds_ratio, run_length=self.run_length)


class RollingShares:
    """Shares of the labels among the last `window` texts; constant time per text.

    >>> shares = RollingShares(["negative", "positive"], window=2)
    >>> for label in ["negative", "negative", "positive"]:
    ...     shares.update(label)
    >>> shares["negative"]
    0.5
    """

    def __init__(self, labels: Sequence[str], *, window: int = 100) -> None:
        if window < 1:
            raise ValueError(f"`window` must be at least 1 text, got {window}.")
        self._counts = dict.fromkeys(labels, 0)
        self._last: deque[str] = deque(maxlen=window)

    def update(self, label: str) -> None:
        """Take the label of one text."""
        if len(self._last) == self._last.maxlen:
            self._counts[self._last[0]] -= 1
        self._counts[label] += 1
        self._last.append(label)

    def __getitem__(self, label: str) -> float:
        """The share of a label, in [0, 1]; 0 before the first text."""
        return self._counts[label] / max(len(self._last), 1)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in kinds that JSON knows."""
        return {"last": list(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the shares with this state stood."""
        self._last.clear()
        self._counts = dict.fromkeys(self._counts, 0)
        for label in state["last"]:
            self.update(label)


def expect(rate: float, later: Sequence[float], detector: JumpDetector) -> tuple[float, list[float]]:
    """What a detector that learns from texts with a usual rate will do; exact, up to 1e-6 of the probability.

    Args:
        rate: the true usual rate.
        later: rates after a jump.
        detector: its settings count, not its state.

    Returns:
        the probability that false alarms are at least `run_length` texts apart, on average; and for each later rate the
        mean number of texts to the alarm.
    """
    texts = detector.reference
    kept, total, delays = 0.0, 0.0, np.zeros(len(later))
    for yeses in range(texts + 1):
        weight = comb(texts, yeses) * rate**yeses * (1 - rate) ** (texts - yeses)
        if weight < 1e-6 / texts:
            continue
        limit = upper_limit(yeses, texts, detector.confidence)
        base = min(max(limit, RATES[0]), RATES[1])
        chart = design_chart(base, odds_ratio=detector.odds_ratio, run_length=detector.run_length)
        total += weight
        kept += weight * (mean_run_length(chart, rate) >= detector.run_length)
        delays += weight * np.array([mean_run_length(chart, other) for other in later])
    return kept / total, list(delays / total)


def main() -> None:
    """Print what the detector with its default settings does."""
    rows = []
    for rate in (0.05, 0.1, 0.2, 0.4):
        later = [raised_rate(rate, odds_ratio) for odds_ratio in (3.0, 6.0)]
        kept, delays = expect(rate, later, JumpDetector())
        ends = [f"{delay:.0f} (to {other:.0%})" for delay, other in zip(delays, later, strict=True)]
        rows.append([f"{rate:.0%}", f"{kept:.2f}", *ends])
    print(format_table(["usual share", "as rarely false as asked", "texts to an alarm, odds × 3", "odds × 6"], rows))


if __name__ == "__main__":
    main()
