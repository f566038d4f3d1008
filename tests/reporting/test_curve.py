"""Curves over α: search for a minimum, their shape, what was found as a file and as a table."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_interp.reporting.curve import AlphaCurve, format_curve, load_curve, pareto_front
from hf_interp.reporting.results import save_results
from hf_interp.selection.curve_shape import (
    check_alphas,
    check_units,
    find_knee,
    golden_section,
    is_unimodal,
    loss_barrier,
)

ALPHAS = [0.0, 0.5, 1.0]


def metrics(values: list[Any], errors: list[float | None] | None = None) -> dict[str, list[Any]]:
    return {"values": values, "std_errors": errors or [None] * len(values)}


def curve(**changes: Any) -> AlphaCurve:
    report = {
        "domain": {"accuracy": metrics([0.5, 0.8, 0.9], [0.02, 0.01, 0.01]), "loss": metrics([2.0, 1.0, 12.5])},
        "general": {"accuracy": metrics([0.9, 0.88, 0.7], [0.01, 0.01, 0.02]), "loss": metrics([1.0, 1.1, 1.5])},
    }
    found: dict[str, Any] = {
        "alphas": [0.0, 0.5, 1.0],
        "selection": {"domain": {"accuracy": metrics([0.4, 0.7, 0.8])}, "general": {"accuracy": metrics([0.9] * 3)}},
        "report": report,
        "metric": "accuracy",
        "objective": "mean",
        "method": "grid",
        "alpha": 0.5,
        "best_alpha": 1.0,
        "reason": "α = 0.5 is good.",
    }
    return AlphaCurve(**found | changes)


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


def test_golden_section_does_not_ask_for_what_is_known() -> None:
    points = golden_section(lambda x: (x - 0.3) ** 2, initial={0.0: 0.09, 1.0: 0.49})
    assert points == golden_section(lambda x: (x - 0.3) ** 2)[2:]


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
        ({"initial": {1.0: math.nan}}, r"`evaluate` must give a number, got NaN at 1\.0"),
    ],
)
def test_golden_section_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden_section(lambda x: x, **settings)


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
    ("domain", "general", "expected"),
    [
        ([1, 2, 3], [3, 2, 1], [0, 1, 2]),
        ([1, 2, 3], [1, 2, 3], [2]),
        ([1, 1, 2], [1, 1, 1], [2]),
        ([2, 2], [1, 1], [0, 1]),  # alike: neither is better
        ([2, 2], [1, 2], [1]),
        ([1], [1], [0]),
        ([], [], []),
    ],
)
def test_the_pareto_front(domain: list[int], general: list[int], expected: list[int]) -> None:
    assert pareto_front(domain, general) == expected


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_each_point_is_on_the_front_or_below_one_that_is(points: list[tuple[int, int]]) -> None:
    front = pareto_front(*zip(*points, strict=True))
    for index, (domain, general) in enumerate(points):
        above = [other for other in front if points[other][0] >= domain and points[other][1] >= general]
        assert above
        assert (index in front) == all(points[other] == points[index] for other in above)


def test_the_front_needs_lists_of_one_length() -> None:
    with pytest.raises(ValueError, match=r"lists of one length, got shapes \(2,\) and \(1,\)"):
        pareto_front([1, 2], [1])


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


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 0.5), (0.5, 0.8), (0.5 + 1e-12, 0.8), (1, 0.9)])
def test_a_curve_tells_the_reported_metric(alpha: float, expected: float) -> None:
    assert curve().at(alpha, "domain", "accuracy") == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((0.4, "domain", "accuracy"), r"`alpha` must be one of those evaluated \(0, 0\.5, 1\), got 0\.4"),
        ((0.5, "web", "accuracy"), "`dataset` must be one of domain, general, got 'web'"),
        ((0.5, "domain", "f1"), "`metric` must be one of accuracy, loss, got 'f1'"),
    ],
)
def test_a_curve_tells_what_it_has(where: tuple[float, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve().at(*where)


def test_a_curve_lists_all_that_was_measured() -> None:
    rows = curve().table()
    assert len(rows) == 3 * 2 + 3 * 4
    expected = {"alpha": 0.5, "part": "report", "dataset": "general", "metric": "accuracy"}
    assert [row for row in rows if row | expected == row] == [expected | {"value": 0.88, "std_error": 0.01}]
    assert {row["part"] for row in rows} == {"selection", "report"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"confidence_interval": [0.5, 1.0], "knee": 0.5, "barrier": {"domain": {"height": 0.1, "alpha": 0.5}}},
        {"settings": {"max_forgetting": 0.02}, "num_examples": {"domain": {"selection": 1, "report": 2}}},
        {"warnings": ["größer"], "base": "bert", "finetuned": "out"},
    ],
)
def test_a_curve_is_read_as_it_was_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_results(curve(**changes), tmp_path / "curve.json")
    assert load_curve(tmp_path / "curve.json") == curve(**changes)
    assert load_curve(str(tmp_path / "curve.json")).table() == curve(**changes).table()


def test_a_curve_of_an_earlier_version_is_read_without_what_there_is_no_more(tmp_path: Path) -> None:
    found = dataclasses.asdict(curve()) | {"group_alphas": {"head": 0.1}, "group_metrics": None}
    (tmp_path / "curve.json").write_text(json.dumps(found), encoding="utf-8")
    assert load_curve(tmp_path / "curve.json") == curve()


def test_a_curve_as_a_table() -> None:
    lines = format_curve(curve()).split("\n")
    assert lines == [
        "| α            | domain accuracy | general accuracy | domain loss | general loss |",
        "| :----------- | --------------: | ---------------: | ----------: | -----------: |",
        "| 0 (M₀)       | 0.5000 ± 0.0200 |  0.9000 ± 0.0100 |      2.0000 |       1.0000 |",
        "| 0.5 (chosen) | 0.8000 ± 0.0100 |  0.8800 ± 0.0100 |      1.0000 |       1.1000 |",
        "| 1 (M_θ)      | 0.9000 ± 0.0100 |  0.7000 ± 0.0200 |       12.50 |       1.5000 |",
        "",
        "α = 0.5 is good.",
        "Knee: none.",
    ]


def test_a_table_of_all_that_was_found() -> None:
    sizes = {"selection": 10, "report": 12}
    text = format_curve(
        curve(
            alpha=1.0,
            confidence_interval=[0.5, 1.0],
            knee=0.5,
            barrier={"domain": {"height": 0.125, "alpha": 0.5}, "general": {"height": 0.0, "alpha": 0.0}},
            num_evaluations=3,
            num_examples={"domain": sizes, "general": sizes},
            warnings=["It is noisy."],
            base="bert",
            finetuned="out",
        )
    )
    for line in (
        "| 1 (M_θ, chosen) | 0.9000 ± 0.0100 |  0.7000 ± 0.0200 |       12.50 |       1.5000 |",
        "M₀ is bert, M_θ is out.",
        "95% confidence interval of the best α: 0.5 to 1.",
        "Loss barrier between M₀ and M_θ: domain 0.125 at α = 0.5, general none.",
        "Knee: α = 0.5.",
        "Chosen on 10 domain and 10 general examples (grid, 3 evaluations); the table is of 12 domain and 12 general "
        "others.",
        "Warning: It is noisy.",
    ):
        assert line in text.split("\n")


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({"metric": "loss"}, "| α            | domain loss | general loss |"),
        ({"report": {"domain": {"accuracy": metrics([0.5, 0.8, None])}}}, "| α            | domain accuracy |"),
    ],
)
def test_a_table_shows_what_there_is(changes: dict[str, Any], header: str) -> None:
    assert format_curve(curve(**changes)).split("\n")[0] == header
