"""What the slider's page shows is what was answered, escaped, and where it is drawn is where it belongs."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hf_interp.app.predictions import Outcome
from hf_interp.app.views import MOST_LABELS, MOST_PLACES, answers_html, curve_html, notes_html, problem_html
from hf_interp.reporting.curve import AlphaCurve

HOSTILE = "</div><img src=x onerror=alert(1)>\"'&"


def outcomes(*rows: list[list[float]], texts: tuple[str | None, ...] = (None, None, None)) -> list[Outcome]:
    return [Outcome(probabilities=np.array(row, np.float32), text=text) for row, text in zip(rows, texts, strict=True)]


def parsed(text: str) -> ElementTree.Element:
    """The elements of a piece of a page; it must be whole."""
    return ElementTree.fromstring(text)


def found(root: ElementTree.Element, name: str) -> list[str]:
    """Texts of the elements of a class."""
    return ["".join(one.itertext()) for one in root.iter() if name in one.get("class", "").split()]


def curve(metric: str = "accuracy", general: tuple[float | None, ...] = (0.75, 0.875, 0.25)) -> AlphaCurve:
    values = {"domain": [0.5, 0.75, 0.625], "general": list(general)}
    report = {side: {metric: {"values": each, "std_errors": [None] * 3}} for side, each in values.items()}
    return AlphaCurve(
        alphas=[0.0, 0.5, 1.0],
        selection=report,
        report=report,
        metric=metric,
        objective="best",
        method="grid",
        alpha=0.5,
        best_alpha=0.5,
        reason="It is the best.",
    )


def test_labels_have_a_bar_for_each_model() -> None:
    rows = outcomes([[0.75, 0.25]], [[0.5, 0.5]], [[0.125, 0.875]])
    root = parsed(answers_html([""], rows, ["no", "yes"].__getitem__, alpha="α = 0.40"))
    assert found(root, "hfi-best") == ["no", "no", "yes"]
    assert found(root, "hfi-who") == ["M₀ pretrained", "Mα α = 0.40", "Mθ fine-tuned"]
    assert found(root, "hfi-name") == ["yes", "no"]
    assert found(root, "hfi-num") == ["25.0%", "50.0%", "87.5%", "75.0%", "50.0%", "12.5%"]
    widths = [one.get("style") for one in root.iter() if one.get("class") == "hfi-fill"]
    assert widths == [f"width: {share}%" for share in ("25.00", "50.00", "87.50", "75.00", "50.00", "12.50")]


def test_of_many_labels_and_places_some_are_shown() -> None:
    rows = outcomes(*[[[1 / 50] * 50]] * 3)
    assert len(found(parsed(answers_html([""], rows, str, alpha="")), "hfi-name")) == MOST_LABELS
    rows = outcomes(*[[[0.5, 0.5]] * (MOST_PLACES + 2)] * 3)
    names = [f"[MASK] {number}" for number in range(MOST_PLACES + 2)]
    root = parsed(answers_html(names, rows, str, alpha="", has_labels=False))
    assert found(root, "hfi-place") == names[:MOST_PLACES]
    assert found(root, "hfi-note") == ["2 more are not shown."]


def test_tags_stand_behind_their_words() -> None:
    rows = outcomes([[0.9, 0.1], [0.25, 0.75]], [[0.9, 0.1], [0.9, 0.1]], [[0.0, 1.0], [0.9, 0.1]])
    root = parsed(answers_html(["The", "UN"], rows, ["O", "B-ORG"].__getitem__, alpha="", is_tagged=True))
    assert found(root, "hfi-words") == ["The UNB-ORG 75%", "The UN", "TheB-ORG 100% UN"]


def test_texts_and_numbers_are_shown() -> None:
    empty = [[0.0]][:0]
    root = parsed(answers_html([], outcomes(empty, empty, empty, texts=("eins", "", "drei")), str, alpha="α = 0.50"))
    assert found(root, "hfi-said") == ["M₀ pretrainedeins", "Mα α = 0.50(nothing)", "Mθ fine-tuneddrei"]
    root = parsed(answers_html([""], outcomes([[1.25]], [[-2.0]], [[3.0]]), str, alpha="", is_number=True))
    assert found(root, "hfi-best") == ["1.250", "-2.000", "3.000"]


def test_everything_is_escaped() -> None:
    rows = outcomes(*[[[0.25, 0.75]]] * 3, texts=(HOSTILE,) * 3)
    pieces = [
        answers_html([HOSTILE], rows, lambda index: HOSTILE, alpha=HOSTILE),
        answers_html([HOSTILE], rows, lambda index: HOSTILE, alpha=HOSTILE, is_tagged=True),
        problem_html(HOSTILE),
        notes_html([HOSTILE]),
        curve_html(curve(HOSTILE), 0.25),
    ]
    for piece in pieces:
        root = parsed(piece)  # all that was opened is closed
        assert "img" not in {one.tag for one in root.iter()}
        assert HOSTILE in "".join(root.itertext())


@pytest.mark.parametrize(
    ("alpha", "x", "general"), [(0.0, 46.0, "0.750"), (0.25, 116.5, "0.812"), (1.0, 328.0, "0.250")]
)
def test_the_marker_stands_at_alpha(alpha: float, x: float, general: str) -> None:
    root = parsed(curve_html(curve(), alpha))
    (group,) = [one for one in root.iter() if one.get("class") == "hfi-marker"]
    assert [float(line.get("x1", "")) for line in group] == [x]
    dots = [one for one in root.iter("circle") if one.get("r") == "5"]
    assert [float(dot.get("cx", "")) for dot in dots] == [x, x]
    (legend,) = found(root, "hfi-legend")
    assert f"general: accuracy {general}" in legend
    assert ("as measured" in found(root, "hfi-note")[0]) == (alpha != 0.25)


def test_a_curve_goes_through_its_points() -> None:
    root = parsed(curve_html(curve(), None))
    lines = [[float(one) for one in re.split("[ ,]", line.get("points", ""))] for line in root.iter("polyline")]
    assert [line[0::2] for line in lines] == [[46.0, 187.0, 328.0]] * 2
    general, domain = (line[1::2] for line in lines)
    assert general[0] == domain[1]  # both 0.75
    assert general[1] < general[0] < domain[0] < general[2]  # higher values are higher up
    assert not [one for one in root.iter() if one.get("class") == "hfi-marker"]
    assert found(root, "hfi-note") == ["With an α for each group the model is not on this curve."]


def test_a_curve_with_gaps_or_without_values_is_drawn() -> None:
    root = parsed(curve_html(curve("loss", (None, 0.5, 0.25)), 0.25))
    assert found(root, "hfi-note") == ["At α = 0.25, between measured points; less is better."]
    assert "general: loss" in found(root, "hfi-legend")[0]
    assert len([one for one in root.iter("circle") if one.get("r") == "5"]) == 1  # general begins at 0.5
    empty = curve()
    empty.report = {}
    assert list(parsed(curve_html(empty, 0.5))) == []
