"""α schedules: closures from progress in [0, 1] to α in [0, 1].

Progress is the share of training that lies behind: `step / (max_steps - 1)`. α = 0 is the general side (the pretrained
model and its general corpora), α = 1 the domain side. A schedule holds no state, so the α of any step can be asked for
at any time, in any process. Simple schedules are joined into larger ones: `phased` puts a schedule between an initial
phase, in which α is held at its start, and a target phase, in which it is held at its end.
"""

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_interp.utils.errors import check_choice, did_you_mean

AlphaSchedule = Callable[[float], float]
"""A function from progress in [0, 1] to α in [0, 1]."""
DEFAULT_ALPHA = 0.5
"""The constant α of a mixture for which nothing is chosen; docs/evidence.md, "How much domain data", is why."""


@dataclass(frozen=True)
class Curve:
    """A schedule whose function also takes an array: a plan asks it for many steps at once, and only when it must."""

    function: Callable[[Any], Any]

    def __call__(self, progress: float) -> float:
        return float(self.function(progress))


@dataclass(frozen=True)
class Constant:
    """A schedule whose α is known without asking."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value

    def function(self, progress: Any) -> Any:
        """Return α of a number or of an array."""
        return self.value + 0 * progress


def constant(value: float) -> Constant:
    """Return a fixed mixture: α stays at `value`.

    >>> constant(0.5)(0.9)
    0.5
    """
    _check_alpha("value", value)
    return Constant(value)


def linear(start: float = 0.0, end: float = 1.0) -> AlphaSchedule:
    """Return the schedule α = start + (end − start)·progress.

    >>> [linear(0.2, 1.0)(p) for p in (0.0, 0.5, 1.0)]
    [0.2, 0.6, 1.0]
    """
    return _between(start, end, lambda progress: progress)


def exponential(start: float = 0.0, end: float = 1.0, *, rate: float = 5.0) -> AlphaSchedule:
    """Return the schedule α = start + (end − start)·(exp(rate·progress) − 1) / (exp(rate) − 1).

    A positive `rate` keeps α near its start and moves it late; a negative one moves it early; near 0 it is linear.

    >>> [round(exponential(rate=2.0)(p), 3) for p in (0.0, 0.5, 1.0)]
    [0.0, 0.269, 1.0]
    """
    _check_finite("rate", rate)
    if abs(rate) < 1e-9:  # the limit; the quotient below would be 0 / 0
        return linear(start, end)
    if abs(rate) > 500:
        raise ValueError(f"`rate` must lie in [-500, 500], got {rate}. Beyond that α is a jump: use `steps`.")
    return _between(start, end, lambda progress: _call("expm1", rate * progress) / math.expm1(rate))


def cosine(start: float = 0.0, end: float = 1.0) -> AlphaSchedule:
    """Return the schedule α = start + (end − start)·(1 − cos(π·progress)) / 2: slow, fast, slow.

    >>> [round(cosine()(p), 3) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.146, 0.5, 1.0]
    """
    return _between(start, end, lambda progress: (1 - _call("cos", math.pi * progress)) / 2)


def sigmoid(start: float = 0.0, end: float = 1.0, *, steepness: float = 10.0, midpoint: float = 0.5) -> AlphaSchedule:
    """Return a logistic curve in progress, scaled so that it starts at `start` and ends at `end` exactly.

    With σ(x) = 1 / (1 + exp(−x)) and z(p) = σ(steepness·(p − midpoint)):
    α = start + (end − start)·(z(p) − z(0)) / (z(1) − z(0)). RecAdam (arXiv 2004.12651) anneals its λ(t) so.

    >>> [round(sigmoid(steepness=10.0)(p), 3) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.07, 0.5, 1.0]
    """
    _check_finite("midpoint", midpoint)
    if not 0 < steepness <= 500:
        raise ValueError(f"`steepness` must lie in (0, 500], got {steepness}.")

    def logistic(progress: Any) -> Any:
        return (1 + _call("tanh", steepness * (progress - midpoint) / 2)) / 2

    low, high = logistic(0.0), logistic(1.0)
    if high - low < 1e-9:
        raise ValueError(
            f"With `steepness` {steepness} and `midpoint` {midpoint} the curve is flat between progress 0 and 1. Move "
            "`midpoint` towards [0, 1] or change `steepness`."
        )
    curve = _between(start, end, lambda progress: (logistic(progress) - low) / (high - low))
    # where the quotient makes the last digit of the logistic a great one, each step is asked for itself
    return curve if high - low > 0.01 else curve.__call__


def polynomial(start: float = 0.0, end: float = 1.0, *, power: float = 2.0) -> AlphaSchedule:
    """Return the schedule α = start + (end − start)·progress**power; power 1 is linear, above 1 late, below 1 early.

    >>> polynomial(power=2.0)(0.5)
    0.25
    """
    if not 0 < power < math.inf:
        raise ValueError(f"`power` must be positive and finite, got {power}.")
    return _between(start, end, lambda progress: progress**power)


def steps(
    values: Sequence[float] = (0.0, 0.2, 0.5, 0.8, 1.0), *, boundaries: Sequence[float] | None = None
) -> AlphaSchedule:
    """Return a schedule whose α takes each of `values` in turn, as in Gradual Fine-Tuning (arXiv 2103.02205).

    `boundaries` are the len(values) − 1 points of progress at which the next value takes over, rising within (0, 1);
    without them the stages are equally long.

    >>> [steps([0.0, 0.5, 1.0])(p) for p in (0.0, 0.3, 0.4, 0.7, 1.0)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    values = list(values)
    if not values:
        raise ValueError("`values` must name at least one α, got an empty list.")
    for value in values:
        _check_alpha("values", value)
    if boundaries is None:
        boundaries = [stage / len(values) for stage in range(1, len(values))]
    edges = list(boundaries)
    if len(edges) != len(values) - 1:
        raise ValueError(
            f"`boundaries` must hold one entry fewer than `values` ({len(values) - 1}), got {len(edges)}: {edges}."
        )
    if any(not 0 < edge < 1 for edge in edges) or edges != sorted(set(edges)):
        raise ValueError(f"`boundaries` must rise within (0, 1), got {edges}.")

    def schedule(progress: Any) -> Any:
        if isinstance(progress, np.ndarray):
            return np.take(values, np.searchsorted(edges, progress, side="right"))
        return values[bisect_right(edges, progress)]

    return Curve(schedule)


def piecewise(points: Iterable[Sequence[float]]) -> AlphaSchedule:
    """Return straight lines through (progress, α) points; before the first and after the last point α is held.

    >>> [piecewise([(0.0, 0.1), (0.5, 0.9), (1.0, 0.9)])(p) for p in (0.0, 0.25, 0.75)]
    [0.1, 0.5, 0.9]
    """
    knots = list(points)
    if not knots or any(not isinstance(knot, Sequence) or len(knot) != 2 for knot in knots):
        raise ValueError(f"`points` must be a list of (progress, α) pairs, got {knots}.")
    places, values = [knot[0] for knot in knots], [knot[1] for knot in knots]
    for place, value in knots:
        _check_alpha("points", value)
        if not 0 <= place <= 1:
            raise ValueError(f"`points` must have progress in [0, 1], got {place}.")
    if places != sorted(set(places)):
        raise ValueError(f"`points` must rise in progress, got {places}.")

    if len(knots) == 1:
        return constant(values[0])
    x, y = np.array(places, np.float64), np.array(values, np.float64)

    def schedule(progress: Any) -> Any:
        right = np.clip(np.searchsorted(x, progress, side="right"), 1, len(x) - 1)
        share = _clip((progress - x[right - 1]) / (x[right] - x[right - 1]))
        return (1 - share) * y[right - 1] + share * y[right]

    return Curve(schedule)


def phased(transition: AlphaSchedule, *, begin: float = 0.0, end: float = 1.0) -> AlphaSchedule:
    """Return a schedule of three phases: α held at the transition's start up to `begin`, the transition, held at its
    end from `end` on.

    `begin` and `end` are points of progress. Use `phase_borders` to get them from lengths in steps. A point outside
    [0, 1] leaves a phase out: with `begin` below 0 even the first step has left the start behind.

    >>> three = phased(linear(0.0, 1.0), begin=0.25, end=0.75)
    >>> [three(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if not begin < end:
        raise ValueError(f"`begin` must be less than `end`, got {begin} and {end}.")

    inner = transition.function if isinstance(transition, Curve | Constant) else transition

    def schedule(progress: Any) -> Any:
        return inner(_clip((progress - begin) / (end - begin)))

    return Curve(schedule) if isinstance(transition, Curve | Constant) else schedule


def phase_borders(max_steps: int, initial_steps: float = 0, target_steps: float = 0) -> tuple[int, int]:
    """Return the last step of the initial and the first step of the target phase, between which α moves.

    Lengths are numbers of steps, or shares of `max_steps` where they are below 1 (rounded up), as transformers reads
    `warmup_steps`. α sits at its start for exactly the first `initial_steps` and at its end for exactly the last
    `target_steps`; with a length of 0 the first (last) step alone has that value, so that α spans the whole run.

    >>> phase_borders(100, 0.2, 10)
    (19, 90)
    >>> phase_borders(100)
    (0, 99)
    """
    initial = _phase_length("initial_steps", initial_steps, max_steps)
    target = _phase_length("target_steps", target_steps, max_steps)
    if initial + target > max_steps:
        raise ValueError(
            f"The initial phase ({initial} steps) and the target phase ({target} steps) must fit into max_steps="
            f"{max_steps}. Shorten a phase or raise max_steps."
        )
    last_initial = initial - 1 if initial or target == max_steps else 0
    first_target = max_steps - target if target or initial == max_steps else max_steps - 1
    return last_initial, first_target


SCHEDULES: dict[str, Callable[..., AlphaSchedule]] = {
    "constant": constant,
    "linear": linear,
    "exponential": exponential,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "polynomial": polynomial,
    "steps": steps,
    "piecewise": piecewise,
}


def default_schedule(mixture_path: Any = None) -> AlphaSchedule:
    """Return the schedule where nothing of α is set: constant, or along the whole of a path of mixtures."""
    return constant(DEFAULT_ALPHA) if mixture_path is None else linear()


def get_alpha_schedule(
    alpha_schedule_type: str,
    *,
    start: float = 0.0,
    end: float = 1.0,
    max_steps: int | None = None,
    initial_steps: float = 0,
    target_steps: float = 0,
    **kwargs: Any,
) -> AlphaSchedule:
    """Build a schedule by name.

    Args:
        alpha_schedule_type: one of `SCHEDULES`.
        start, end: α at the ends of the transition. `constant` takes `value` instead (default: `end`); `steps` and
            `piecewise` carry their own values.
        max_steps: optimizer steps of the run; needed with phases.
        initial_steps, target_steps: lengths of the phases in which α is held (see `phase_borders`).
        kwargs: passed to the schedule: `rate`, `power`, `steepness`, `values`, `points`, ...

    Raises:
        ValueError: for an unknown name or argument (the nearest one is named), or a value out of range.

    >>> get_alpha_schedule("linear", start=0.2, end=0.6)(0.5)
    0.4
    """
    check_choice("alpha_schedule_type", alpha_schedule_type, SCHEDULES)
    factory = SCHEDULES[alpha_schedule_type]
    accepted = inspect.signature(factory).parameters
    for name in kwargs:
        if name not in accepted:
            options = [option for option in accepted if option not in ("start", "end")]
            raise ValueError(
                f"The {alpha_schedule_type} schedule takes {', '.join(options) or 'no arguments'}, got {name!r}."
                + did_you_mean(name, options)
            )
    if "start" in accepted:
        kwargs = {"start": start, "end": end, **kwargs}
    elif alpha_schedule_type == "constant":
        kwargs = {"value": end, **kwargs}
    try:
        schedule = factory(**kwargs)
    except TypeError as error:  # a missing `points`, a text where a number belongs
        raise ValueError(f"The {alpha_schedule_type} schedule cannot be built from {kwargs}: {error}.") from error
    if not initial_steps and not target_steps:
        return schedule
    if max_steps is None:
        raise ValueError("`max_steps` must be given to turn phase lengths into points of progress, got None.")
    first, last = phase_borders(max_steps, initial_steps, target_steps)
    return phased(schedule, begin=progress_of(first, max_steps), end=progress_of(last, max_steps))


def progress_of(step: int, max_steps: int) -> float:
    """Return step / (max_steps − 1), the argument of a schedule at a 0-based optimizer step; 0 for a run of one step.

    >>> progress_of(99, 100)
    1.0
    """
    return step / max(max_steps - 1, 1)


def _between(start: float, end: float, shape: Callable[[Any], Any]) -> Curve:
    """Return (1 − s)·start + s·end with s = shape(progress): exact at both ends, unlike start + s·(end − start)."""
    _check_alpha("start", start)
    _check_alpha("end", end)

    def schedule(progress: Any) -> Any:
        share = shape(progress)
        return (1 - share) * start + share * end

    return Curve(schedule)


def _call(name: str, value: Any) -> Any:
    """Return a function of `math`, of a number or of each of an array."""
    return getattr(np if isinstance(value, np.ndarray) else math, name)(value)


def _clip(value: Any) -> Any:
    return np.clip(value, 0.0, 1.0) if isinstance(value, np.ndarray) else float(min(max(value, 0.0), 1.0))


def _check_alpha(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be an α in [0, 1], got {value!r}.")


def _check_finite(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")


def _phase_length(name: str, length: float, max_steps: int) -> int:
    if not isinstance(length, (int, float)) or not 0 <= length < math.inf or (length > 1 and length != int(length)):
        raise ValueError(f"`{name}` must be a whole number of steps or a share below 1, got {length!r}.")
    return int(length) if length >= 1 else math.ceil(length * max_steps)
