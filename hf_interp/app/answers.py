"""Gradio components for the answers of M₀, M_α and M_θ side by side, and for the run's curve with the slider's α."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_interp.app.models import AlphaSlider, Answers
from hf_interp.app.predictions import Outcome, best_choices
from hf_interp.reporting.card import escape
from hf_interp.reporting.colours import ALPHA, SIDE_COLOURS
from hf_interp.reporting.curve import AlphaCurve

MOST_LABELS, MOST_TOKENS = 8, 5
MOST_PLACES = 6
"""Masks that are shown."""
SIDES = ("general", "domain")
TAG_COLOURS = ("#00664B", "#8C3A6B", "#5E4B00", "#3C5566", "#5B3FB0")
"""Dark enough for the white letters on them."""
NAMES = ("M₀, pretrained", "M_α", "M_θ, fine-tuned")


class AnswerView:
    """Components that show the answers of three models; they are put where they are made, in a page under way."""

    def __init__(self, gradio: Any, slider: AlphaSlider) -> None:
        self._gradio, self._slider = gradio, slider
        kind = slider.answer_kind
        is_number = slider.settings.problem_type == "regression" and kind == "label"
        num_places = {"label": 1, "continuation": 1, "masks": MOST_PLACES}.get(kind, 0)
        self._whole: list[Any] = []  # a component a model, for an answer that is one text
        if kind == "tags":
            self._whole = self._row(gradio.HighlightedText, min_width=640)
        elif is_number or kind in ("continuation", "text"):
            self._whole = self._row(gradio.Textbox, lines=1)
        self._places = [] if is_number else [self._row(gradio.Label) for _ in range(num_places)]
        self.components = [*self._whole, *(label for row in self._places for label in row)]

    def _row(self, component: Callable[..., Any], **options: Any) -> list[Any]:
        """Make one component a model."""
        with self._gradio.Row():
            return [component(label=name, **{"min_width": 180, "elem_classes": "answer", **options}) for name in NAMES]

    def show(self, answers: Answers, alpha: float) -> list[Any]:
        """Return the updates that show the answers, one a component."""
        outcomes, names = answers[1:], (NAMES[0], f"M_α at α = {alpha:.2f}", NAMES[2])
        has_tags = self._slider.answer_kind == "tags"
        values: list[dict[str, Any]] = [
            {**(self._tagged(answers.places, outcome) if has_tags else {"value": _text(outcome)}), "label": name}
            for outcome, name in zip(outcomes, names[: len(self._whole)], strict=False)
        ]
        for place in range(len(self._places)):
            is_there = place < len(answers.places)
            scores = self._scores(outcomes, place) if is_there else [None] * len(names)
            before = f"{answers.places[place]}: " if is_there and answers.places[place] else ""
            values += [
                {"value": score, "label": before + name, "visible": is_there}
                for score, name in zip(scores, names, strict=True)
            ]
        return [self._gradio.update(**value) for value in values]

    def clear(self) -> list[Any]:
        """Return the updates that show no answer."""
        return [self._gradio.update(value=None) for _ in self.components]

    def remark(self, answers: Answers) -> str:
        """Return how many masks are not shown, in words."""
        more = len(answers.places) - len(self._places)
        return f"{more} more are not shown." if self._places and more > 0 else ""

    def _scores(self, outcomes: Sequence[Outcome], place: int) -> list[dict[str, float]]:
        """Return the probabilities of each model at a place, of the choices that any of them finds likeliest."""
        most = MOST_TOKENS if self._slider.labels is None else MOST_LABELS
        best = best_choices(outcomes, place, most)
        names = {index: self._slider.choice(index) for index in best}
        shown = {name if name.strip() else repr(name): best[index] for index, name in names.items()}
        return [{name: shares[model] for name, shares in shown.items()} for model in range(len(outcomes))]

    def _tagged(self, words: Sequence[str], outcome: Outcome) -> dict[str, Any]:
        """Return words with their likeliest tags, and the colours of these; O is no tag."""
        found: list[tuple[str, str | None]] = []
        colours: dict[str, str] = {}
        for word, probabilities in zip(words, outcome.probabilities, strict=True):
            best = int(probabilities.argmax())
            tag = self._slider.choice(best)
            shown = None if tag == "O" else f"{tag} {probabilities[best]:.0%}"
            found.append((f"{word} ", shown))
            if shown is not None:
                colours[shown] = TAG_COLOURS[best % len(TAG_COLOURS)]
        return {"value": found, "color_map": colours}


def _text(outcome: Outcome) -> str:
    """Return the text of a model, or the number of a regression."""
    return f"{outcome.probabilities[0, 0]:.3f}" if outcome.text is None else outcome.text or "(nothing)"


class CurveView:
    """A chart of the metric of both sides over α, with a line at the slider's α; nothing without values of it."""

    def __init__(self, gradio: Any, curve: AlphaCurve | None) -> None:
        self._gradio = gradio
        self._points = {} if curve is None else {side: _points(curve, side) for side in SIDES}
        self._points = {side: points for side, points in self._points.items() if points}
        self.components: list[Any] = []
        if curve is not None and self._points:
            self._curve = curve
            with gradio.Column(elem_id="curve"):
                chart = gradio.LinePlot(
                    x="α",
                    y=curve.metric,
                    color="side",
                    color_map={**SIDE_COLOURS, "α": ALPHA},
                    color_title=" ",
                    x_lim=[min(0.0, *curve.alphas), max(1.0, *curve.alphas)],
                    height=300,
                )
                self.components = [chart, gradio.Markdown()]

    def show(self, alpha: float) -> list[Any]:
        """Return the values that move the line and tell the metrics there, if there is a chart."""
        if not self.components:
            return []
        import pandas

        heights = [height for points in self._points.values() for _, height in points]
        marker = [(alpha, end) for end in (min(heights), max(heights))]
        rows = [(*point, side) for side, points in {**self._points, "α": marker}.items() for point in points]
        frame = pandas.DataFrame(rows, columns=["α", self._curve.metric, "side"])
        return [frame, self._caption(alpha)]

    def _caption(self, alpha: float) -> str:
        """Return the metrics at an α in words."""
        curve = self._curve
        is_measured = any(math.isclose(known, alpha, abs_tol=1e-6) for known in curve.alphas)
        values = []
        for side, points in self._points.items():
            alphas, metrics = zip(*points, strict=True)
            height = float(np.interp(alpha, alphas, metrics, left=math.nan, right=math.nan))
            if math.isfinite(height):  # beyond the first and the last point nothing is known
                values.append(f"{side}: {curve.metric} {height:.{3 if abs(height) < 100 else 0}f}")
        better = {True: "; more is better", False: "; less is better", None: ""}[curve.greater_is_better]
        where = "as measured" if is_measured else "between measured points"
        return escape(f"At α = {alpha:.2f}, {where}, {' and '.join(values)}{better}. α = {curve.alpha:.2f} was chosen.")


def _points(curve: AlphaCurve, side: str) -> list[tuple[float, float]]:
    """Return the evaluated points of a side."""
    values = curve.report.get(side, {}).get(curve.metric, {}).get("values", [])
    return [(alpha, value) for alpha, value in zip(curve.alphas, values, strict=False) if value is not None]
