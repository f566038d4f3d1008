"""The components of the slider's page get what was answered, and the line on the curve stands where it belongs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toys import alpha_curve

from hf_interp.app.answers import MOST_LABELS, MOST_PLACES, AnswerView, CurveView
from hf_interp.app.models import Answers
from hf_interp.app.predictions import Outcome
from hf_interp.reporting.curve import AlphaCurve


def outcomes(*rows: list[list[float]], texts: tuple[str | None, ...] = (None, None, None)) -> list[Outcome]:
    return [Outcome(probabilities=np.array(row, np.float32), text=text) for row, text in zip(rows, texts, strict=True)]


def view(
    gradio: Any, kind: str, labels: list[str] | None = None, problem_type: str = "single_label_classification"
) -> AnswerView:
    slider: Any = SimpleNamespace(
        answer_kind=kind,
        labels=labels,
        choice=labels.__getitem__ if labels else str,
        settings=SimpleNamespace(problem_type=problem_type),
    )
    with gradio.Blocks():
        return AnswerView(gradio, slider)


def shown(view: AnswerView, places: list[str], found: list[Outcome], alpha: float = 0.4) -> list[dict[str, Any]]:
    """The updates; every component can take its value."""
    updates = view.show(Answers(places, *found), alpha)
    for component, update in zip(view.components, updates, strict=True):
        component.postprocess(update["value"])
    return updates


def curve(metric: str = "accuracy", general: tuple[float | None, ...] = (0.75, 0.875, 0.25)) -> AlphaCurve:
    return alpha_curve({metric: [0.5, 0.75, 0.625]}, {metric: general})


def test_every_model_has_its_labels(gradio: Any) -> None:
    rows = outcomes([[0.75, 0.25]], [[0.5, 0.5]], [[0.125, 0.875]])
    found = shown(view(gradio, "label", ["no", "yes"]), [""], rows)
    assert [update["value"] for update in found] == [
        {"no": 0.75, "yes": 0.25},
        {"no": 0.5, "yes": 0.5},
        {"no": 0.125, "yes": 0.875},
    ]
    assert [update["label"] for update in found] == ["M₀, pretrained", "M_α at α = 0.40", "M_θ, fine-tuned"]


def test_of_many_labels_and_places_some_are_shown(gradio: Any) -> None:
    labels = [f"label {number}" for number in range(50)]
    found = shown(view(gradio, "label", labels), [""], outcomes(*[[[1 / 50] * 50]] * 3))
    assert [len(update["value"]) for update in found] == [MOST_LABELS] * 3
    masks = view(gradio, "masks")
    names = [f"[MASK] {number}" for number in range(MOST_PLACES + 2)]
    rows = outcomes(*[[[0.5, 0.5]] * (MOST_PLACES + 2)] * 3)
    found = shown(masks, names, rows)
    assert [update["label"] for update in found[::3]] == [f"{name}: M₀, pretrained" for name in names[:MOST_PLACES]]
    assert masks.remark(Answers(names, *rows)) == "2 more are not shown."
    found = shown(masks, names[:1], outcomes(*[[[0.5, 0.5]]] * 3))
    assert [update["visible"] for update in found] == [True] * 3 + [False] * (3 * MOST_PLACES - 3)


def test_tags_stand_behind_their_words(gradio: Any) -> None:
    rows = outcomes([[0.9, 0.1], [0.25, 0.75]], [[0.9, 0.1], [0.9, 0.1]], [[0.0, 1.0], [0.9, 0.1]])
    found = shown(view(gradio, "tags", ["O", "B-ORG"]), ["The", "UN"], rows)
    assert [update["value"] for update in found] == [
        [("The ", None), ("UN ", "B-ORG 75%")],
        [("The ", None), ("UN ", None)],
        [("The ", "B-ORG 100%"), ("UN ", None)],
    ]


def test_texts_and_numbers_are_shown(gradio: Any) -> None:
    empty = [[0.0]][:0]
    found = shown(view(gradio, "text"), [], outcomes(empty, empty, empty, texts=("eins", "", "drei")))
    assert [update["value"] for update in found] == ["eins", "(nothing)", "drei"]
    rows = outcomes([[0.9, 0.1]], [[0.5, 0.5]], [[0.1, 0.9]], texts=("a", "b", "c"))
    found = shown(view(gradio, "continuation"), ["next token"], rows)
    assert [update["value"] for update in found[:3]] == ["a", "b", "c"]
    assert found[3]["value"] == {"0": pytest.approx(0.9), "1": pytest.approx(0.1)}
    assert found[3]["label"] == "next token: M₀, pretrained"
    found = shown(view(gradio, "label", ["LABEL_0"], "regression"), [""], outcomes([[1.25]], [[-2.0]], [[3.0]]))
    assert [update["value"] for update in found] == ["1.250", "-2.000", "3.000"]


@pytest.mark.parametrize("kind", ["label", "tags", "masks", "continuation", "text"])
def test_what_was_shown_is_cleared(gradio: Any, kind: str) -> None:
    found = view(gradio, kind, ["O", "B-ORG"] if kind in ("label", "tags") else None)
    assert [update["value"] for update in found.clear()] == [None] * len(found.components)


def lines(frame: Any) -> dict[str, list[tuple[float, float]]]:
    columns = frame.itertuples(index=False)
    found: dict[str, list[tuple[float, float]]] = {}
    for alpha, height, name in columns:
        found.setdefault(name, []).append((alpha, height))
    return found


def chart(gradio: Any, given: AlphaCurve | None) -> CurveView:
    with gradio.Blocks():
        return CurveView(gradio, given)


@pytest.mark.parametrize(("alpha", "general"), [(0.0, "0.750"), (0.25, "0.812"), (1.0, "0.250")])
def test_the_line_stands_at_alpha_and_the_curves_go_through_their_points(
    gradio: Any, alpha: float, general: str
) -> None:
    found = chart(gradio, curve())
    frame, caption = found.show(alpha)
    found.components[0].postprocess(frame)
    assert lines(frame) == {
        "general": [(0.0, 0.75), (0.5, 0.875), (1.0, 0.25)],
        "domain": [(0.0, 0.5), (0.5, 0.75), (1.0, 0.625)],
        "α": [(alpha, 0.25), (alpha, 0.875)],
    }
    assert f"general: accuracy {general}" in caption
    assert ("as measured" in caption) == (alpha != 0.25)


def test_a_curve_with_gaps_or_without_values_is_drawn(gradio: Any) -> None:
    frame, caption = chart(gradio, curve("loss", (None, 0.5, 0.25))).show(0.25)
    assert lines(frame)["general"] == [(0.5, 0.5), (1.0, 0.25)]
    assert caption.startswith("At α = 0.25, between measured points, domain: loss 0.625; less is better.")
    empty = curve()
    empty.report = {}
    for given in (empty, None):
        assert (chart(gradio, given).components, chart(gradio, given).show(0.5)) == ([], [])


def test_names_are_escaped(gradio: Any) -> None:
    assert "<img" not in chart(gradio, curve("<img src=x onerror=alert(1)>")).show(0.25)[1]
