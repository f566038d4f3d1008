"""The search space of the settings of α: a range or a list of values for each field, and how a trial draws them."""

import math
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_interp.utils.errors import did_you_mean

POSSIBLE_TYPES = ("linear", "exponential", "cosine", "sigmoid", "constant", "polynomial")
"""Schedules whose ends can be searched, those that are tried by default first; steps and piecewise hold values of their
own."""
ALPHA_FIELDS = ("alpha_schedule_type", "alpha_start", "alpha_end", "alpha_initial_steps", "alpha_target_steps")
CONSTANT = "constant_alpha"
"""The name of a constant schedule's value among a trial's parameters: it is no end of anything."""
LONGEST = 0.95
"""Share of a run that both phases together may take."""
LIMITS = {
    "alpha_start": (0.0, 1.0, "an α in [0, 1]"),
    "alpha_end": (0.0, 1.0, "an α in [0, 1]"),
    "alpha_initial_steps": (0.0, LONGEST, f"a share of the run in [0, {LONGEST:g}]"),
    "alpha_target_steps": (0.0, LONGEST, f"a share of the run in [0, {LONGEST:g}]"),
    "learning_rate": (math.ulp(0.0), sys.float_info.max, "above 0 and finite"),
}
"""The least and the greatest value of a field, and the same in words."""
FIELDS = ("alpha_schedule_type", *LIMITS)


@dataclass(frozen=True)
class Range:
    """All values from `low` to `high`; with `log`, drawn by their logarithm."""

    low: float
    high: float
    log: bool = False


Choices = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Space:
    """Settings that may be tried (see `make_space`).

    Args:
        alpha_schedule_type: names of schedules.
        alpha_start, alpha_end: α at the ends of the transition; `alpha_end` also holds the values of a constant
            schedule.
        alpha_initial_steps, alpha_target_steps: lengths of the phases, as shares of the run.
        learning_rate: learning rates; `None` leaves the recipe's.
        falling: whether α may start above its end.

    Raises:
        ValueError: for ranges that do not go together.
    """

    alpha_schedule_type: Choices
    alpha_start: Range | Choices
    alpha_end: Range | Choices
    alpha_initial_steps: Range | Choices
    alpha_target_steps: Range | Choices
    learning_rate: Range | Choices | None = None
    falling: bool = False

    def __post_init__(self) -> None:
        if set(self.alpha_schedule_type) == {"constant"}:
            return
        start, end = min(_ends(self.alpha_start)), max(_ends(self.alpha_end))
        if start > end and not self.falling:
            raise ValueError(
                f"`space` lets α start at {start:g} or above and end at {end:g} or below, so that it falls. Allow that "
                "with `falling` (--falling), or change the ranges."
            )
        shortest = sum(min(_ends(phase)) for phase in (self.alpha_initial_steps, self.alpha_target_steps))
        if shortest > LONGEST:
            raise ValueError(
                f"`space` needs phases that together take at most {LONGEST:g} of the run, got at least {shortest:g}. "
                "Shorten one."
            )

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Draw the settings of an optuna trial: `ALPHA_FIELDS`, and `learning_rate` if it is searched.

        A constant schedule has one value, which both ends get, and no phases. α, and shares of the run, are rounded to
        three decimals, learning rates to three digits.
        """
        kind = trial.suggest_categorical("alpha_schedule_type", self.alpha_schedule_type)
        if kind == "constant":
            start = end = _draw(trial, CONSTANT, self.alpha_end)
            initial = target = 0.0
        else:
            ends = self.alpha_end
            if isinstance(ends, Range) and not self.falling:  # those below every start are left out
                ends = Range(max(ends.low, min(_ends(self.alpha_start))), ends.high)
            end = _draw(trial, "alpha_end", ends)
            start = _draw(trial, "alpha_start", self.alpha_start, at_most=1.0 if self.falling else end)
            initial = _draw(trial, "alpha_initial_steps", self.alpha_initial_steps, at_most=LONGEST)
            target = _draw(trial, "alpha_target_steps", self.alpha_target_steps, at_most=round(LONGEST - initial, 3))
        settings = dict(zip(ALPHA_FIELDS, (kind, start, end, initial, target), strict=True))
        if self.learning_rate is not None:
            settings["learning_rate"] = _draw(trial, "learning_rate", self.learning_rate)
        return settings

    def parameters(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a trial must draw to get the settings; `None` if they lie outside.

        >>> make_space().parameters(dict(alpha_schedule_type="constant", alpha_end=0.5))
        {'alpha_schedule_type': 'constant', 'constant_alpha': 0.5}
        """
        from optuna.trial import FixedTrial

        trial = FixedTrial({**settings, CONSTANT: settings["alpha_end"]})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # optuna only warns of a number outside its range
                self.suggest(trial)
        except (ValueError, UserWarning):
            return None
        return dict(trial.params)


def make_space(
    restrictions: Mapping[str, Any] | None = None,
    *,
    learning_rate: float | None = None,
    falling: bool = False,
) -> Space:
    """Build the space: all that makes sense, or less.

    By default: linear, exponential, cosine, sigmoid and constant schedules, whose α moves between any two values of
    [0, 1] without falling, with phases of at most 0.4 of the run each.

    Args:
        restrictions: by field of `FIELDS`, a pair (low, high) for a range, a list of values, or one value.
        learning_rate: search the learning rate too, from a quarter of this to four times as much, unless restricted.
        falling: allow α to start above its end.

    >>> make_space({"alpha_end": (0.5, 1.0), "alpha_schedule_type": "linear"}).alpha_end
    Range(low=0.5, high=1.0, log=False)
    """
    given: dict[str, Any] = {"alpha_schedule_type": POSSIBLE_TYPES[:-1]}
    given |= {"alpha_start": (0.0, 1.0), "alpha_end": (0.0, 1.0)}
    given |= {"alpha_initial_steps": (0.0, 0.4), "alpha_target_steps": (0.0, 0.4)}
    if learning_rate is not None:
        given["learning_rate"] = (learning_rate / 4, learning_rate * 4)
    for name, value in (restrictions or {}).items():
        if name not in FIELDS:
            raise ValueError(f"`space` can restrict {', '.join(FIELDS)}, got {name!r}." + did_you_mean(name, FIELDS))
        given[name] = value
    fields: dict[str, Any] = {name: _values(name, value) for name, value in given.items()}
    return Space(falling=falling, **fields)


def read_space(texts: Sequence[str]) -> dict[str, Any]:
    """Read restrictions from texts: a range `field=low..high`, a list `field=a,b,c`, or `field=value`.

    >>> read_space(["alpha_end=0.5..1", "alpha_schedule_type=linear,cosine", "alpha_start=0"])
    {'alpha_end': (0.5, 1.0), 'alpha_schedule_type': ['linear', 'cosine'], 'alpha_start': [0.0]}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"`space` must be such as alpha_end=0.5..1.0, alpha_start=0,0.1 or alpha_schedule_type=linear, got "
                f"{text!r}."
            )
        if name in found:
            raise ValueError(f"`space` restricts {name!r} twice. Give all of its values at once, such as {name}=a,b.")
        if name == "alpha_schedule_type":
            found[name] = value.split(",")
        elif ends := re.fullmatch(r"(.+?)\.\.(.+)", value):
            found[name] = (_number(name, ends[1]), _number(name, ends[2]))
        else:
            found[name] = [_number(name, part) for part in value.split(",")]
    return found


def _draw(trial: Any, name: str, values: Range | Choices, *, at_most: float | None = None) -> float:
    """Draw a value of a range that ends at `at_most`, or one of a list, which is refused above it."""
    if not isinstance(values, Range):
        value = float(trial.suggest_categorical(name, values))
        if at_most is not None and value > at_most:
            raise ValueError(f"`{name}` {value:g} exceeds {at_most:g}")
        return value
    high = values.high if at_most is None else min(values.high, at_most)
    if high < values.low:
        raise ValueError(f"`{name}` would have to lie between {values.low:g} and {high:g}")
    value = trial.suggest_float(name, values.low, high, log=values.log)
    value = float(f"{value:.3g}") if values.log else round(value, 3)
    return min(max(value, values.low), high)


def _values(name: str, value: Any) -> Range | Choices:
    """Return the range or the choices that a restriction stands for, once they are checked."""
    if not (choices := tuple(value) if isinstance(value, (list, tuple)) else (value,)):
        raise ValueError(f"`space` must leave a value for `{name}`, got none.")
    if name == "alpha_schedule_type":
        for kind in choices:
            if kind not in POSSIBLE_TYPES:
                raise ValueError(
                    f"`space` can take the schedules {', '.join(POSSIBLE_TYPES)}, got {kind!r}."
                    + did_you_mean(str(kind), POSSIBLE_TYPES)
                )
        return choices
    choices = tuple(_number(name, one) for one in choices)
    least, greatest, words = LIMITS[name]
    for number in choices:
        if not least <= number <= greatest:
            raise ValueError(f"`space` needs `{name}` to be {words}, got {number:g}.")
    if not isinstance(value, tuple):
        return choices
    if len(choices) != 2:
        raise ValueError(f"`space` needs a pair (low, high) or a list for `{name}`, got {value}.")
    low, high = choices
    if low > high:
        raise ValueError(f"`space` needs a range of `{name}` that rises, got {low:g}..{high:g}.")
    return Range(low, high, log=name == "learning_rate")


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`space` needs numbers for `{name}`, got {value!r}.") from None


def _ends(values: Range | Choices) -> tuple[float, ...]:
    """Return the two ends of a range, or the values of a list."""
    return (values.low, values.high) if isinstance(values, Range) else values
