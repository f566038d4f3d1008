"""Search by golden section, barriers, knees, and which numbers a curve takes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_interp.selection.curve_shape import (
    check_alphas,
    check_units,
    find_knee,
    golden_section,
    is_unimodal,
    loss_barrier,
)

ALPHAS = [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("function", "minimum"),
    [
        (lambda x: (x - 0.3) ** 2, 0.3),
        (lambda x: abs(x - 0.618), 0.618),
        (lambda x: -math.exp(-30 * (x - 0.81) ** 2), 0.81),
        (lambda x: math.cosh(5 * (x - 0.5)), 0.5),
        (lambda x: x, 0.0),
        (lambda x: -x, 1.0),
        (lambda x: (x - 0.001) ** 2, 0.001),
        (lambda x: (x - 0.999) ** 2, 0.999),
    ],
)
@pytest.mark.parametrize(("tolerance", "num_points"), [(0.1, 7), (0.02, 10), (0.001, 16)])
def test_golden_section_finds_the_minimum(
    function: Callable[[float], float], minimum: float, tolerance: float, num_points: int
) -> None:
    asked: list[float] = []

    def evaluate(point: float) -> float:
        asked.append(point)
        return function(point)

    points = golden_section(evaluate, tolerance=tolerance)
    assert abs(min(points, key=function) - minimum) <= 2 * tolerance
    assert points == asked
    assert points[:2] == [0.0, 1.0]
    assert len(set(points)) == len(points) == num_points


def test_golden_section_narrows_to_twice_its_tolerance() -> None:
    points = sorted(golden_section(lambda x: (x - 0.3) ** 2, tolerance=0.02))
    place = min(range(len(points)), key=lambda index: abs(points[index] - 0.3))
    assert points[place + 1] - points[place - 1] <= 0.04
    assert points[place - 1] < 0.3 < points[place + 1]


@given(st.floats(-2, 3), st.floats(0.5, 2), st.floats(0.001, 0.5))
def test_golden_section_is_within_its_bracket_of_any_minimum(minimum: float, width: float, tolerance: float) -> None:
    points = golden_section(lambda x: abs(x - minimum), low=-0.5, high=-0.5 + width, tolerance=tolerance)
    within = min(max(minimum, -0.5), -0.5 + width)
    assert min(abs(point - within) for point in points) <= 2 * tolerance
    assert all(-0.5 <= point <= -0.5 + width for point in points)


def test_golden_section_keeps_the_left_of_a_plain() -> None:
    points = golden_section(lambda x: 1.0, tolerance=0.1)
    assert points[2] < points[3]
    assert points[2] > points[4] == max(points[4:])


@pytest.mark.parametrize("tolerance", [0.5, 1.0, math.inf])
def test_a_wide_tolerance_asks_for_the_ends_alone(tolerance: float) -> None:
    assert golden_section(lambda x: x, tolerance=tolerance) == [0.0, 1.0]


def test_the_finest_tolerance_comes_to_an_end() -> None:
    assert len(golden_section(lambda x: (x - 0.3) ** 2, tolerance=1e-300)) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 1.0}, "`low` must be less than `high` and both finite, got 1.0 and 1.0"),
        ({"high": math.inf}, "`low` must be less than"),
        ({"tolerance": 0.0}, r"`tolerance` must be positive, got 0\.0"),
        ({"tolerance": math.nan}, "`tolerance` must be positive, got nan"),
    ],
)
def test_golden_section_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden_section(lambda x: x, **settings)


def test_golden_section_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"`evaluate` must give a number, got NaN at 1\.0"):
        golden_section(lambda x: math.nan if x == 1 else x)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.0], True),
        ([1.0, 2.0, 3.0], True),
        ([2.0, 1.0, 2.0], True),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 2.0, 2.0], True),
        ([1.0, 2.0, 1.0], False),
        ([1.0, 2.0, 1.5], False),
        ([1.0, 1.0 + 1e-12, 1.0], True),
        ([1.0, 1.0 + 1e-6, 1.0], False),
        ([1.0], True),
        ([1.0, 2.0], True),
    ],
)
def test_unimodality_of_single_numbers(losses: list[float], expected: bool) -> None:
    assert is_unimodal(range(len(losses)), losses) is expected
    assert is_unimodal(range(len(losses)), [[loss] for loss in losses]) is expected


def test_a_rise_and_a_fall_may_lie_apart() -> None:
    assert not is_unimodal(range(5), [1.0, 2.0, 2.0, 2.0, 1.5])
    assert is_unimodal([1.0, 0.0, 0.5], [2.0, 2.0, 1.0])  # unsorted
    assert not is_unimodal([0.0, 1.0, 0.5], [1.0, 1.0, 2.0])


@pytest.mark.parametrize(("rise", "expected"), [(1.9, True), (2.0, True), (2.1, False)])
def test_noise_is_two_paired_standard_errors(rise: float, expected: bool) -> None:
    flat = np.array([10.0, -20.0, 30.0, 40.0])  # the spread that all α share is no noise
    noise = np.array([1.0, -1.0, 1.0, -1.0]) / math.sqrt(4 / 3)  # standard deviation 1, so its standard error is 0.5
    assert is_unimodal(ALPHAS, [flat, flat + noise + rise * 0.5, flat]) is expected


def test_noise_hides_neither_minimum_nor_bump() -> None:
    generator = np.random.default_rng(0)
    alphas = np.linspace(0, 1, 11)
    noise = generator.normal(size=(1, 400)) + 0.01 * generator.normal(size=(11, 400))
    assert is_unimodal(alphas, (alphas[:, None] - 0.6) ** 2 + noise)
    assert not is_unimodal(alphas, -((alphas[:, None] - 0.6) ** 2) + noise)


@pytest.mark.parametrize(
    ("alphas", "losses", "expected"),
    [
        ([0.0, 0.5, 1.0], [1.0, 2.5, 2.0], (1.0, 0.5)),
        ([1.0, 0.5, 0.0], [2.0, 2.5, 1.0], (1.0, 0.5)),
        ([0.0, 0.5, 1.0], [1.0, 1.5, 2.0], (0.0, 0.0)),
        ([0.0, 0.5, 1.0], [1.0, 0.5, 2.0], (0.0, 0.0)),
        ([0.0, 0.25, 0.75, 1.0], [0.0, 1.0, 1.0, 0.0], (1.0, 0.25)),
        ([-1.0, 0.0, 0.5, 1.0, 2.0], [99.0, 1.0, 1.5, 1.0, 99.0], (0.5, 0.5)),
        ([0.0, 1.0], [1.0, 2.0], (0.0, 0.0)),
        ([0.0, 0.1, 1.0], [0.7, 0.7 * 0.9 + 0.3 * 0.1, 0.3], (0.0, 0.0)),
    ],
)
def test_the_barrier_stands_above_the_straight_line(
    alphas: list[float], losses: list[float], expected: tuple[float, float]
) -> None:
    assert loss_barrier(alphas, losses) == expected


@pytest.mark.parametrize("alphas", [[0.0, 0.5], [0.5, 1.0], [0.2, 0.5]])
def test_a_barrier_needs_both_ends(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"`alphas` must hold 0 and 1, got .*0\.5.* Evaluate M₀ and M_θ too\."):
        loss_barrier(alphas, [1.0, 1.0])


@pytest.mark.parametrize(
    ("domain", "general", "expected"),
    [
        ([0.0, 0.9, 1.0], [1.0, 0.9, 0.0], 0.5),
        ([1.0, 0.9, 0.0], [0.0, 0.9, 1.0], 0.5),  # fine-tuning turned out the other way round
        ([0.0, 0.5, 1.0], [1.0, 0.5, 0.0], None),  # on the chord
        ([0.0, 0.1, 1.0], [1.0, 0.1, 0.0], None),  # below the chord
        ([0.0, 0.9, 1.0], [0.5, 0.5, 0.5], None),  # nothing forgotten
        ([0.5, 0.5, 0.5], [1.0, 0.9, 0.0], None),  # nothing learnt
        ([0.0, 0.9, 1.0], [0.0, 0.9, 1.0], None),  # better on both
        ([0.0, 0.9, 1.0], [1.0, 0.9, 1.0], None),  # better on one at no price
    ],
)
def test_the_knee(domain: list[float], general: list[float], expected: float | None) -> None:
    assert find_knee(ALPHAS, domain, general) == expected


def test_the_knee_does_not_depend_on_units_order_or_extrapolation() -> None:
    alphas = [0.0, 0.2, 0.4, 0.6, 1.0]
    domain, general = np.array([0.0, 0.6, 0.8, 0.9, 1.0]), np.array([1.0, 0.98, 0.9, 0.6, 0.0])
    assert find_knee(alphas, domain, general) == 0.4
    assert find_knee(alphas[::-1], domain[::-1], general[::-1]) == 0.4
    assert find_knee(alphas, 100 * domain - 7, general / 9 + 5) == 0.4
    assert find_knee([-1.0, *alphas, 2.0], [-9.0, *domain, 3.0], [3.0, *general, -9.0]) == 0.4


def test_of_equal_knees_the_smallest_is_taken_and_two_points_have_none() -> None:
    assert find_knee([0.0, 0.7, 0.3, 1.0], [0.0, 1.0, 0.5, 1.0], [1.0, 0.5, 1.0, 0.0]) == 0.3
    assert find_knee([0.0, 1.0], [0.0, 1.0], [1.0, 0.0]) is None


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([], "list of finite numbers"),
        ([0.0, math.nan], "list of finite numbers"),
        ([[0.0]], "list of finite numbers"),
        ([0.0, 1.0, 0.0], "hold each α once, got 0, 0, 1"),
    ],
)
def test_alphas_are_checked(alphas: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_alphas(alphas)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([1.0, 2.0], r"for each of the 3 α, got an array of shape \(2,\)"),
        (np.ones((3, 0)), r"got an array of shape \(3, 0\)"),
        (np.ones((3, 1, 1)), r"got an array of shape \(3, 1, 1\)"),
        ([[1, 2], [1, math.nan], [1, 2]], r"`domain` must hold finite numbers, got nan at α = 0\.5\. Leave that α out"),
        ([1, 2, math.inf], "got inf at α = 1"),
    ],
)
def test_units_are_checked(units: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_units("domain", units, np.array(ALPHAS))


def test_metrics_are_one_number_an_alpha() -> None:
    with pytest.raises(ValueError, match=r"`losses` must hold one number for each α, got an array of shape \(3, 2\)"):
        loss_barrier(ALPHAS, np.ones((3, 2)))
