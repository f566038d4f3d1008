"""α schedules: values, ends, phases, names, bad input."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from hf_interp.mixture.schedules import (
    SCHEDULES,
    AlphaSchedule,
    constant,
    cosine,
    exponential,
    get_alpha_schedule,
    linear,
    phase_borders,
    phased,
    piecewise,
    polynomial,
    progress_of,
    sigmoid,
    steps,
)
from hf_interp.utils.errors import did_you_mean

ENDS = [(0.0, 1.0), (1.0, 0.0), (0.2, 0.6), (0.7, 0.1), (0.1, 0.7), (1 / 3, 2 / 3), (0.3, 0.3)]
SHAPES: list[Callable[[float, float], AlphaSchedule]] = [
    linear,
    cosine,
    exponential,
    lambda start, end: exponential(start, end, rate=-3.0),
    lambda start, end: exponential(start, end, rate=500),
    lambda start, end: exponential(start, end, rate=-500),
    lambda start, end: exponential(start, end, rate=1e-10),
    sigmoid,
    lambda start, end: sigmoid(start, end, steepness=500),
    lambda start, end: sigmoid(start, end, steepness=3.0, midpoint=-0.5),
    polynomial,
    lambda start, end: polynomial(start, end, power=0.3),
    lambda start, end: polynomial(start, end, power=7),
]
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(max_steps: int, **kwargs: Any) -> list[float]:
    """α of every step of a linear run."""
    schedule = get_alpha_schedule("linear", max_steps=max_steps, **kwargs)
    return [schedule(progress_of(step, max_steps)) for step in range(max_steps)]


@pytest.mark.parametrize(("start", "end"), ENDS)
@pytest.mark.parametrize(
    ("make", "shares"),
    [
        (linear, [0, 1 / 4, 1 / 2, 3 / 4, 1]),
        (lambda start, end: exponential(start, end, rate=4 * math.log(2)), [0, 1 / 15, 3 / 15, 7 / 15, 1]),
        (lambda start, end: exponential(start, end, rate=-4 * math.log(2)), [0, 8 / 15, 12 / 15, 14 / 15, 1]),
        (cosine, [0, 0.5 - math.sqrt(1 / 8), 1 / 2, 0.5 + math.sqrt(1 / 8), 1]),
        (lambda start, end: sigmoid(start, end, steepness=4 * math.log(3)), [0, 3 / 16, 1 / 2, 13 / 16, 1]),
        (
            lambda start, end: sigmoid(start, end, steepness=4 * math.log(3), midpoint=0.25),
            [0, 0.35, 0.7, 0.91, 1],
        ),
        (polynomial, [0, 1 / 16, 1 / 4, 9 / 16, 1]),
        (lambda start, end: polynomial(start, end, power=0.5), [0, 1 / 2, math.sqrt(1 / 2), math.sqrt(3 / 4), 1]),
    ],
)
def test_values(make: Callable[[float, float], AlphaSchedule], shares: list[float], start: float, end: float) -> None:
    found = [make(start, end)(progress) for progress in QUARTERS]
    assert found == pytest.approx([start + (end - start) * share for share in shares], abs=1e-12)


@pytest.mark.parametrize(("start", "end"), ENDS)
@pytest.mark.parametrize("make", SHAPES)
def test_ends_are_exact_and_the_way_is_monotone(
    make: Callable[[float, float], AlphaSchedule], start: float, end: float
) -> None:
    schedule = make(start, end)
    assert (schedule(0.0), schedule(1.0)) == (start, end)
    values = [schedule(index / 500) for index in range(501)]
    rising = 1 if end >= start else -1
    rounding = 1e-15
    assert all((after - before) * rising >= -rounding for before, after in pairwise(values))
    assert min(start, end) - rounding <= min(values)
    assert max(values) <= max(start, end) + rounding
    assert all(0 <= value <= 1 for value in values)


def test_an_exponential_is_linear_as_its_rate_goes_to_0() -> None:
    for rate in (1.0, 1e-3, 1e-6, 1e-8, -1e-8, -1e-3, -1.0):  # (eʳ⸍² − 1) / (eʳ − 1) = 1 / (eʳ⸍² + 1)
        assert exponential(rate=rate)(0.5) == pytest.approx(1 / (math.exp(rate / 2) + 1), rel=1e-12)
    for rate in (0.9e-9, 0, 0.0, -0.9e-9):
        found = [exponential(0.2, 0.6, rate=rate)(progress) for progress in QUARTERS]
        assert found == [linear(0.2, 0.6)(progress) for progress in QUARTERS]


def test_a_rate_says_when_alpha_moves() -> None:
    middles = [exponential(rate=rate)(0.5) for rate in (500, 5, 1, 0, -1, -5, -500)]
    assert middles == sorted(middles)
    assert middles[0] < 1e-100
    assert middles[3] == 0.5
    assert 1 - middles[-1] < 1e-15


def test_a_sigmoid_is_a_jump_when_steep_and_a_line_when_flat() -> None:
    steep = [sigmoid(steepness=500)(progress) for progress in (0.45, 0.5, 0.55)]
    assert steep == pytest.approx([0, 0.5, 1], abs=1e-10)
    flat = [sigmoid(steepness=1e-3)(progress) for progress in QUARTERS]
    assert flat == pytest.approx(QUARTERS, abs=1e-7)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(0.3), [0.3, 0.3, 0.3, 0.3, 0.3]),
        (constant(0), [0, 0, 0, 0, 0]),
        (steps(), [0.0, 0.2, 0.5, 0.8, 1.0]),
        (steps([0.4]), [0.4, 0.4, 0.4, 0.4, 0.4]),
        (steps([0.9, 0.1]), [0.9, 0.9, 0.1, 0.1, 0.1]),
        (piecewise([(0.5, 0.2)]), [0.2, 0.2, 0.2, 0.2, 0.2]),
        (piecewise([(0.0, 1.0), (0.5, 0.0), (1.0, 0.5)]), [1.0, 0.5, 0.0, 0.25, 0.5]),
        (piecewise([(0.25, 0.2), (0.75, 0.8)]), [0.2, 0.2, 0.5, 0.8, 0.8]),
        (phased(linear(0.0, 0.5), begin=0.25, end=0.75), [0.0, 0.0, 0.25, 0.5, 0.5]),
        (phased(steps([0.0, 1.0]), begin=0.5, end=1.5), [0.0, 0.0, 0.0, 0.0, 1.0]),
        (phased(linear(), begin=-1.0, end=0.0), [1.0, 1.0, 1.0, 1.0, 1.0]),
        (phased(linear(), begin=1.0, end=2.0), [0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_values_of_their_own(schedule: AlphaSchedule, expected: list[float]) -> None:
    assert [schedule(progress) for progress in QUARTERS] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("boundaries", [None, [1 / 5, 2 / 5, 3 / 5, 4 / 5], [0.01, 0.5, 0.51, 0.99]])
def test_a_stage_begins_at_its_boundary(boundaries: list[float] | None) -> None:
    values = [0.1, 0.9, 0.3, 0.7, 0.5]
    schedule = steps(values, boundaries=boundaries)
    for stage, edge in enumerate(boundaries or [0.2, 0.4, 0.6, 0.8]):
        assert schedule(math.nextafter(edge, 0)) == values[stage]
        assert schedule(edge) == values[stage + 1]
        assert schedule(math.nextafter(edge, 1)) == values[stage + 1]


def test_equal_stages_have_equally_many_steps() -> None:
    for stages, max_steps in ((2, 10), (3, 30), (5, 100), (7, 70)):
        schedule = steps([stage / 10 for stage in range(stages)])
        values = [schedule(progress_of(step, max_steps)) for step in range(max_steps)]
        assert [values.count(stage / 10) for stage in range(stages)] == [max_steps // stages] * stages


def test_piecewise_meets_its_points_exactly() -> None:
    points = [(0.1, 0.7), (1 / 3, 0.1), (0.5, 0.3), (0.9, 1.0)]
    schedule = piecewise(points)
    assert [schedule(place) for place, _ in points] == [value for _, value in points]
    outside = (0.0, math.nextafter(0.1, 0), math.nextafter(0.9, 1), 1.0)
    assert [schedule(place) for place in outside] == [0.7, 0.7, 1.0, 1.0]
    assert schedule(0.7) == pytest.approx(0.65)


@pytest.mark.parametrize("max_steps", [2, 3, 7, 12])
def test_alpha_is_held_for_exactly_the_steps_of_each_phase(max_steps: int) -> None:
    for initial in range(max_steps + 1):
        for target in range(max_steps + 1 - initial):
            alphas = run(max_steps, initial_steps=initial, target_steps=target)
            at_start = initial or int(target < max_steps)  # without a phase, the first step alone
            at_end = target or int(initial < max_steps)
            between = max_steps - at_start - at_end
            assert alphas[:at_start] == [0.0] * at_start
            assert alphas[max_steps - at_end :] == [1.0] * at_end
            assert alphas[at_start : at_start + between] == pytest.approx(
                [(index + 1) / (between + 1) for index in range(between)]
            )


@pytest.mark.parametrize(
    ("initial", "target", "expected"), [(0, 0, 0.0), (1, 0, 0.0), (0, 1, 1.0), (0.5, 0, 0.0), (0, 0.5, 1.0)]
)
def test_a_run_of_one_step(initial: float, target: float, expected: float) -> None:
    assert run(1, initial_steps=initial, target_steps=target) == [expected]


@pytest.mark.parametrize(
    ("max_steps", "length", "held"),
    [
        (10, 0.1, 1),
        (10, 0.11, 2),
        (10, 0.5, 5),
        (10, 1, 1),
        (10, 1.0, 1),
        (10, 2.0, 2),
        (7, 0.99, 7),
        (3, 0.5, 2),
        (100, 1e-6, 1),
    ],
)
def test_a_length_below_1_is_a_share_rounded_up(max_steps: int, length: float, held: int) -> None:
    assert run(max_steps, initial_steps=length).count(0.0) == held
    assert run(max_steps, target_steps=length).count(1.0) == held


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((100, 20, 10), (19, 90)),
        ((100, 0, 0), (0, 99)),
        ((100, 1, 1), (0, 99)),
        ((100, 100, 0), (99, 100)),
        ((100, 0, 100), (-1, 0)),
        ((100, 60, 40), (59, 60)),
    ],
)
def test_phase_borders(arguments: tuple[int, float, float], expected: tuple[int, int]) -> None:
    assert phase_borders(*arguments) == expected


@pytest.mark.parametrize(("initial", "target", "read"), [(6, 5, (6, 5)), (11, 0, (11, 0)), (0.55, 0.5, (6, 5))])
def test_phases_longer_than_the_run_are_refused(initial: float, target: float, read: tuple[int, int]) -> None:
    message = rf"initial phase \({read[0]} steps\).*target phase \({read[1]} steps\).*max_steps=10.*Shorten a phase"
    with pytest.raises(ValueError, match=message):
        get_alpha_schedule("linear", max_steps=10, initial_steps=initial, target_steps=target)
    assert run(10, initial_steps=5, target_steps=5) == [0.0] * 5 + [1.0] * 5


@pytest.mark.parametrize("length", [-1, -0.1, 1.5, math.nan, math.inf, "3", None])
@pytest.mark.parametrize("name", ["initial_steps", "target_steps"])
def test_what_is_no_phase_length_is_refused(name: str, length: Any) -> None:
    message = f"`{name}` must be a whole number of steps or a share below 1, got {length!r}"
    with pytest.raises(ValueError, match=message):
        phase_borders(10, **{name: length})


def test_phases_need_the_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"`max_steps` must be given.*got None"):
        get_alpha_schedule("linear", initial_steps=1)
    with pytest.raises(ValueError, match=r"`max_steps` must be given.*got None"):
        get_alpha_schedule("linear", target_steps=1)
    assert get_alpha_schedule("linear")(0.25) == 0.25


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("constant", {}, constant(0.6)),  # its default is the end
        ("constant", {"value": 0.4}, constant(0.4)),
        ("linear", {}, linear(0.2, 0.6)),
        ("exponential", {}, exponential(0.2, 0.6)),
        ("exponential", {"rate": -2.0}, exponential(0.2, 0.6, rate=-2.0)),
        ("cosine", {}, cosine(0.2, 0.6)),
        ("sigmoid", {"steepness": 3.0, "midpoint": 0.2}, sigmoid(0.2, 0.6, steepness=3.0, midpoint=0.2)),
        ("polynomial", {"power": 3}, polynomial(0.2, 0.6, power=3)),
        ("steps", {}, steps()),
        ("steps", {"values": [0.1, 0.9], "boundaries": [0.8]}, steps([0.1, 0.9], boundaries=[0.8])),
        ("piecewise", {"points": [[0.2, 0.3], [0.6, 0.9]]}, piecewise([(0.2, 0.3), (0.6, 0.9)])),
    ],
)
def test_schedules_by_name(name: str, kwargs: dict[str, Any], expected: AlphaSchedule) -> None:
    assert name in SCHEDULES
    found = get_alpha_schedule(name, start=0.2, end=0.6, **kwargs)
    assert [found(index / 20) for index in range(21)] == [expected(index / 20) for index in range(21)]


@pytest.mark.parametrize(
    ("name", "nearest"), [("lineer", "linear"), ("cosin", "cosine"), ("step", "steps"), ("Sigmoid", "sigmoid")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    message = rf"`alpha_schedule_type` must be one of constant, linear, .*, piecewise, got '{name}'\. Did you mean "
    with pytest.raises(ValueError, match=message + f"'{nearest}'"):
        get_alpha_schedule(name)


def test_nothing_is_suggested_for_a_name_unlike_any() -> None:
    with pytest.raises(ValueError, match=r"got 'warmup'\.$"):
        get_alpha_schedule("warmup")
    assert did_you_mean("warmup", SCHEDULES) == ""


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("linear", {"rate": 2.0}, r"linear schedule takes no arguments, got 'rate'\.$"),
        ("polynomial", {"powr": 2.0}, r"takes power, got 'powr'\. Did you mean 'power'\?"),
        ("sigmoid", {"mid_point": 0.4}, r"takes steepness, midpoint, got 'mid_point'\. Did you mean 'midpoint'\?"),
        ("steps", {"boundary": []}, r"takes values, boundaries, got 'boundary'"),
        ("piecewise", {}, r"piecewise schedule cannot be built from {}: .*points"),
        ("piecewise", {"points": [0.5]}, r"`points` must be a list of .*got \[0\.5\]"),
        ("polynomial", {"power": "two"}, r"cannot be built from .*'two'"),
        ("steps", {"values": 0.5}, r"cannot be built from .*0\.5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_alpha_schedule(name, **kwargs)


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf, "0.5", None, True])
def test_a_value_that_is_no_alpha_is_refused(value: Any) -> None:
    builders: dict[str, list[Callable[[], AlphaSchedule]]] = {
        "value": [lambda: constant(value)],
        "start": [lambda: linear(value), lambda: cosine(value), lambda: sigmoid(value), lambda: polynomial(value)],
        "end": [lambda: linear(0.0, value), lambda: exponential(0.0, value), lambda: exponential(0, value, rate=0)],
        "values": [lambda: steps([0.0, value])],
        "points": [lambda: piecewise([(0.0, value)])],
    }
    for name, makers in builders.items():
        for make in makers:
            with pytest.raises(ValueError, match=rf"`{name}` must be an α in \[0, 1\], got {value!r}"):
                make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exponential(rate=500.1), r"`rate` must lie in \[-500, 500\], got 500\.1\..*use `steps`"),
        (lambda: exponential(rate=-501), r"`rate` must lie in \[-500, 500\], got -501"),
        (lambda: exponential(rate=math.nan), "`rate` must be a finite number, got nan"),
        (lambda: exponential(rate="fast"), "`rate` must be a finite number, got 'fast'"),
        (lambda: sigmoid(steepness=0), r"`steepness` must lie in \(0, 500\], got 0"),
        (lambda: sigmoid(steepness=500.1), r"`steepness` must lie in \(0, 500\], got 500\.1"),
        (lambda: sigmoid(steepness=math.nan), r"`steepness` must lie in \(0, 500\], got nan"),
        (lambda: sigmoid(midpoint=math.inf), "`midpoint` must be a finite number, got inf"),
        (lambda: sigmoid(midpoint=9), r"`midpoint` 9 the curve is flat .*Move `midpoint` towards \[0, 1\]"),
        (lambda: sigmoid(steepness=1e-9), r"`steepness` 1e-09 .* the curve is flat .*change `steepness`"),
        (lambda: polynomial(power=0), "`power` must be positive and finite, got 0"),
        (lambda: polynomial(power=-1.0), r"`power` must be positive and finite, got -1\.0"),
        (lambda: polynomial(power=math.inf), "`power` must be positive and finite, got inf"),
        (lambda: polynomial(power=math.nan), "`power` must be positive and finite, got nan"),
        (lambda: steps([]), "`values` must name at least one α, got an empty list"),
        (lambda: steps([0, 1], boundaries=[]), r"`boundaries` must hold one entry fewer than `values` \(1\), got 0"),
        (lambda: steps([0, 1], boundaries=[0.2, 0.4]), r"one entry fewer than `values` \(1\), got 2: \[0\.2, 0\.4\]"),
        (lambda: steps([0, 1], boundaries=[0.0]), r"`boundaries` must rise within \(0, 1\), got \[0\.0\]"),
        (lambda: steps([0, 1], boundaries=[1.0]), r"`boundaries` must rise within \(0, 1\), got \[1\.0\]"),
        (lambda: steps([0, 1], boundaries=[math.nan]), r"`boundaries` must rise within \(0, 1\), got \[nan\]"),
        (
            lambda: steps([0, 1, 0], boundaries=[0.5, 0.5]),
            r"`boundaries` must rise within \(0, 1\), got \[0\.5, 0\.5\]",
        ),
        (
            lambda: steps([0, 1, 0], boundaries=[0.6, 0.5]),
            r"`boundaries` must rise within \(0, 1\), got \[0\.6, 0\.5\]",
        ),
        (lambda: piecewise([]), r"`points` must be a list of \(progress, α\) pairs, got \[\]"),
        (lambda: piecewise([(0.1, 0.2, 0.3)]), r"`points` must be a list of \(progress, α\) pairs, got .*0\.3"),
        (lambda: piecewise([(-0.1, 0.2)]), r"`points` must have progress in \[0, 1\], got -0\.1"),
        (lambda: piecewise([(1.1, 0.2)]), r"`points` must have progress in \[0, 1\], got 1\.1"),
        (lambda: piecewise([(math.nan, 0.2)]), r"`points` must have progress in \[0, 1\], got nan"),
        (lambda: piecewise([(0.5, 0.2), (0.5, 0.4)]), r"`points` must rise in progress, got \[0\.5, 0\.5\]"),
        (lambda: piecewise([(0.5, 0.2), (0.4, 0.4)]), r"`points` must rise in progress, got \[0\.5, 0\.4\]"),
        (lambda: phased(linear(), begin=0.5, end=0.5), r"`begin` must be less than `end`, got 0\.5 and 0\.5"),
        (lambda: phased(linear(), begin=0.6, end=0.5), r"`begin` must be less than `end`, got 0\.6 and 0\.5"),
    ],
)
def test_bad_values_are_refused(make: Callable[[], AlphaSchedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("max_steps", [1, 2, 3, 11, 1000])
def test_progress_rises_from_0_to_1(max_steps: int) -> None:
    found = [progress_of(step, max_steps) for step in range(max_steps)]
    assert found[0] == 0.0
    assert found[-1] == (1.0 if max_steps > 1 else 0.0)
    assert all(before < after for before, after in pairwise(found))
