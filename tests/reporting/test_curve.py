"""Curves over α: the front of two sides, what was found as a file and as a table."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import alpha_curve, measured

from hf_interp.reporting.curve import AlphaCurve, format_curve, load_curve, pareto_front
from hf_interp.reporting.results import save_results


def curve(**changes: Any) -> AlphaCurve:
    domain = {"accuracy": measured([0.5, 0.8, 0.9], [0.02, 0.01, 0.01]), "loss": [2.0, 1.0, 12.5]}
    general = {"accuracy": measured([0.9, 0.88, 0.7], [0.01, 0.01, 0.02]), "loss": [1.0, 1.1, 1.5]}
    return alpha_curve(domain, general, **{"best_alpha": 1.0, "reason": "α = 0.5 is good.", **changes})


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
        "others, ± one standard error.",
        "Warning: It is noisy.",
    ):
        assert line in text.split("\n")


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({"metric": "loss"}, "| α            | domain loss | general loss |"),
        ({"report": {"domain": {"accuracy": measured([0.5, 0.8, None])}}}, "| α            | domain accuracy |"),
    ],
)
def test_a_table_shows_what_there_is(changes: dict[str, Any], header: str) -> None:
    assert format_curve(curve(**changes)).split("\n")[0] == header
