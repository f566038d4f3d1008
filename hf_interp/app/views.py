"""What the page of the slider shows, as HTML: answers of three models side by side, and the curve with a marker.

Every text, label and name is escaped where it is put in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_interp.app.html import Html, Writer
from hf_interp.app.predictions import Outcome, best_choices
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.results import less_is_better

MOST_LABELS, MOST_TOKENS = 8, 5
MOST_PLACES = 6
"""Masks that are shown."""
NAMES = (Html("M₀"), Html("M<sub>α</sub>"), Html("M<sub>θ</sub>"))
KINDS = ("base", "alpha", "finetuned")

STYLE = """
.hfi { --m0: #0072b2; --ma: #5b5bd6; --mt: #c04a00; --ink: #1b1f23; --muted: #4d5660; --line: #d0d7de; --box: #f1f3f5;
  color: var(--ink); font-size: .95rem; line-height: 1.4; overflow-wrap: anywhere; }
.dark .hfi { --m0: #56b4e9; --ma: #b0b8ff; --mt: #ff9b5e; --ink: #e6e8ea; --muted: #aab2ba; --line: #3a424a;
  --box: #2a3037; }
.hfi .base { --c: var(--m0); } .hfi .alpha { --c: var(--ma); } .hfi .finetuned { --c: var(--mt); }
.hfi-cards { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; margin-bottom: .9rem; }
.hfi-card { border: 1px solid var(--line); border-top: .3rem solid var(--c); border-radius: .4rem;
  padding: .4rem .55rem; min-width: 0; }
.hfi-card.alpha { background: var(--box); }
.hfi-who { color: var(--muted); font-size: .8rem; } .hfi-who b { color: var(--c); font-size: .95rem; }
.hfi-best { font-weight: 650; font-size: clamp(.85rem, 3.7vw, 1.05rem); hyphens: auto; }
.hfi sub { font-size: .75em; line-height: 0; }
.hfi-place { font-weight: 650; margin: .9rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
.hfi-choice { margin: 0 0 .7rem; } .hfi-name { font-weight: 550; margin-bottom: .15rem; }
.hfi-bar { display: grid; grid-template-columns: 2.2rem minmax(0, 1fr) 3.9rem; align-items: center; gap: .5rem; }
.hfi-bar > :first-child { color: var(--c); font-size: .8rem; font-weight: 600; }
.hfi-track { background: var(--box); border-radius: .25rem; height: .6rem; overflow: hidden; }
.hfi-fill { display: block; background: var(--c); height: 100%; border-radius: .25rem; }
.hfi-num { text-align: right; font-variant-numeric: tabular-nums; font-size: .85rem; }
.hfi-said { border-left: .3rem solid var(--c); padding: .1rem .7rem; margin: 0 0 .8rem; }
.hfi-words { line-height: 2; }
.hfi-word { margin-right: .3rem; }
.hfi-tagged { border: 1px solid var(--c); border-radius: .3rem; padding: .1rem .3rem; }
.hfi-tagged small { color: var(--c); font-weight: 650; font-size: .75rem; margin-left: .3rem; }
.hfi-note { color: var(--muted); font-size: .85rem; margin: .4rem 0; }
.hfi-problem { border-left: .3rem solid var(--mt); padding: .4rem .7rem; background: var(--box); }
.hfi svg { margin-top: .2rem; display: block; width: 100%; height: auto; max-width: 34rem; }
.hfi svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.hfi svg .muted { fill: var(--muted); }
.hfi-legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .2rem 0; font-size: .85rem; }
.hfi-legend b { color: var(--c); }
"""
"""Colours are those of the report; 4.5 to 1 on the page in both themes."""

_WRITE = Writer()


def answers_html(
    places: Sequence[str],
    outcomes: Sequence[Outcome],
    choice: Callable[[int], str],
    *,
    alpha: str,
    has_labels: bool = True,
    is_number: bool = False,
    is_tagged: bool = False,
) -> Html:
    """Answers of M₀, M_α and M_θ.

    Args:
        places: what is decided on.
        outcomes: of the three models.
        choice: the name of a choice by its index.
        alpha: the α, in words.
        has_labels: whether choices are labels, not tokens.
        is_number: whether the answer is the one number of a regression.
        is_tagged: whether places are words with tags.
    """
    parts: list[Html] = []
    if is_number:
        parts.append(_cards([f"{outcome.probabilities[0, 0]:.3f}" for outcome in outcomes], alpha))
    elif is_tagged:
        parts += [
            _said(kind, name, alpha, _tagged(places, outcome, choice))
            for kind, name, outcome in zip(KINDS, NAMES, outcomes, strict=True)
        ]
    else:
        parts += _texts(outcomes, alpha)
        if len(places) == 1 and has_labels:
            parts.append(_cards([_best(outcome, choice) for outcome in outcomes], alpha))
        most = MOST_LABELS if has_labels else MOST_TOKENS
        for place, name in list(enumerate(places))[:MOST_PLACES]:
            if name:
                parts.append(_WRITE.tag("div", name, class_="hfi-place"))
            parts += [_bars(place, index, outcomes, choice) for index in best_choices(outcomes, place, most)]
        if len(places) > MOST_PLACES:
            parts.append(_WRITE.tag("p", f"{len(places) - MOST_PLACES} more are not shown.", class_="hfi-note"))
    return _WRITE.tag("div", *parts, class_="hfi")


def problem_html(message: str) -> Html:
    """What is wrong with a question."""
    return _WRITE.tag("div", _WRITE.tag("div", message, class_="hfi-problem", role="alert"), class_="hfi")


def notes_html(notes: Sequence[str]) -> Html:
    """Remarks in small letters."""
    return _WRITE.tag("div", *(_WRITE.tag("p", note, class_="hfi-note") for note in notes), class_="hfi")


def curve_html(curve: AlphaCurve, alpha: float | None) -> Html:
    """The metric of both sides over α, with a marker.

    Args:
        curve: of the run.
        alpha: where the marker is; `None` where the model is not on the curve, as with an α by group.
    """
    metric = curve.metric
    lines = {side: _points(curve, side) for side in ("general", "domain") if metric in curve.report.get(side, {})}
    heights = [height for points in lines.values() for _, height in points]
    if not heights:
        return _WRITE.tag("div", class_="hfi")
    frame = _Frame(curve.alphas, heights)
    drawn: list[Html] = [*frame.axes(metric)]
    for side, points in lines.items():
        drawn.append(frame.line(points, KINDS[2 if side == "domain" else 0]))
    drawn += frame.chosen(curve.alpha)
    legend = []
    if alpha is not None:
        drawn.append(frame.marker(alpha))
    for side, points in lines.items():
        kind = KINDS[2 if side == "domain" else 0]
        value = None if alpha is None else height_at(points, alpha)
        if alpha is not None and value is not None:
            drawn.append(frame.dot(alpha, value, kind))
        shown = f" {_number(value)}" if value is not None else ""
        legend.append(_WRITE.tag("span", _WRITE.tag("b", "●"), f" {side}: {metric}{shown}", class_=kind))
    better = "less is better" if less_is_better(metric) else "more is better"
    if alpha is None:
        note = "With an α for each group the model is not on this curve."
    else:
        is_measured = any(math.isclose(known, alpha, abs_tol=1e-6) for known in curve.alphas)
        note = f"At α = {alpha:.2f}, {'as measured' if is_measured else 'between measured points'}; {better}."
    picture = Html(
        f'<svg viewBox="0 0 {frame.WIDTH} {frame.HEIGHT}" role="img" '
        f'aria-label="{_WRITE.text(f"{metric} of both sides over α")}">{"".join(drawn)}</svg>'
    )
    return _WRITE.tag(
        "div",
        _WRITE.tag("div", "Both sides over α", class_="hfi-place"),
        picture,
        _WRITE.tag("div", *legend, class_="hfi-legend"),
        _WRITE.tag("p", note, class_="hfi-note"),
        class_="hfi",
    )


def height_at(points: Sequence[tuple[float, float]], alpha: float) -> float | None:
    """The value at an α, on straight lines between points; `None` beyond the first and the last.

    >>> height_at([(0.0, 0.5), (1.0, 0.75)], 0.5), height_at([(0.0, 0.5), (0.5, 0.75)], 0.75)
    (0.625, None)
    """
    alphas = [place for place, _ in points]
    if not points or not alphas[0] <= alpha <= alphas[-1]:
        return None
    return float(np.interp(alpha, alphas, [height for _, height in points]))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most so many, 1, 2 or 5 of a power of ten apart.

    >>> ticks(0.0, 1.0), ticks(0.46, 0.92), ticks(11.5, 98.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.5, 0.6, 0.7, 0.8, 0.9], [20.0, 40.0, 60.0, 80.0])
    """
    power = math.floor(math.log10((high - low) / most))
    steps = [factor * 10.0**exponent for exponent in (power, power + 1) for factor in (1, 2, 5)]
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(index * step, 10) for index in range(first, last + 1)]


def alpha_words(alpha: float | Mapping[str, float]) -> str:
    """An α as the page writes it.

    >>> alpha_words(0.4), alpha_words({"embeddings": 0.0, "rest": 1.0})
    ('α = 0.40', 'α by group')
    """
    return "α by group" if isinstance(alpha, Mapping) else f"α = {alpha:.2f}"


def _points(curve: AlphaCurve, side: str) -> list[tuple[float, float]]:
    values = curve.report[side][curve.metric]["values"]
    return [(alpha, value) for alpha, value in zip(curve.alphas, values, strict=True) if value is not None]


def _who(kind: str, name: Html, alpha: str) -> Html:
    what = {"base": "pretrained", "alpha": alpha, "finetuned": "fine-tuned"}[kind]
    return _WRITE.tag("div", _WRITE.tag("b", name), f" {what}", class_="hfi-who")


def _cards(answers: Sequence[Any], alpha: str) -> Html:
    cards = [
        _WRITE.tag(
            "div", _who(kind, name, alpha), _WRITE.tag("div", answer, class_="hfi-best"), class_=f"hfi-card {kind}"
        )
        for kind, name, answer in zip(KINDS, NAMES, answers, strict=True)
    ]
    return _WRITE.tag("div", *cards, class_="hfi-cards")


def _best(outcome: Outcome, choice: Callable[[int], str]) -> str:
    return choice(int(outcome.probabilities[0].argmax()))


def _texts(outcomes: Sequence[Outcome], alpha: str) -> list[Html]:
    return [
        _said(kind, name, alpha, _WRITE.text(outcome.text or "(nothing)"))
        for kind, name, outcome in zip(KINDS, NAMES, outcomes, strict=True)
        if outcome.text is not None
    ]


def _said(kind: str, name: Html, alpha: str, what: Html) -> Html:
    return _WRITE.tag("div", _who(kind, name, alpha), _WRITE.tag("div", what), class_=f"hfi-said {kind}")


def _tagged(words: Sequence[str], outcome: Outcome, choice: Callable[[int], str]) -> Html:
    found = []
    for place, word in enumerate(words):
        best = int(outcome.probabilities[place].argmax())
        tag, share = choice(best), f"{outcome.probabilities[place, best]:.0%}"
        if tag == "O":
            found.append(_WRITE.tag("span", word, class_="hfi-word"))
        else:
            small = _WRITE.tag("small", f"{tag} {share}")
            found.append(_WRITE.tag("span", word, small, class_="hfi-word hfi-tagged"))
    return _WRITE.tag("div", Html(" ".join(found)), class_="hfi-words")


def _bars(place: int, index: int, outcomes: Sequence[Outcome], choice: Callable[[int], str]) -> Html:
    bars = []
    for kind, name, outcome in zip(KINDS, NAMES, outcomes, strict=True):
        share = float(outcome.probabilities[place, index])
        fill = _WRITE.tag("span", class_="hfi-fill", style=f"width: {100 * share:.2f}%")
        track = _WRITE.tag("span", fill, class_="hfi-track", aria_hidden="true")
        number = _WRITE.tag("span", f"{share:.1%}", class_="hfi-num")
        bars.append(_WRITE.tag("div", _WRITE.tag("span", name), track, number, class_=f"hfi-bar {kind}"))
    shown = choice(index)
    name = _WRITE.tag("div", shown if shown.strip() else repr(shown), class_="hfi-name")
    return _WRITE.tag("div", name, *bars, class_="hfi-choice")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


class _Frame:
    """Axes of a curve: from α and values to places in the picture."""

    WIDTH, HEIGHT = 340, 230
    LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 34

    def __init__(self, alphas: Sequence[float], heights: Sequence[float]) -> None:
        self.first, self.last = min(0.0, *alphas), max(1.0, *alphas)
        low, high = min(heights), max(heights)
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin

    def x(self, alpha: float) -> float:
        share = (alpha - self.first) / (self.last - self.first)
        return round(self.LEFT + share * (self.WIDTH - self.LEFT - self.RIGHT), 2)

    def y(self, height: float) -> float:
        share = (self.high - height) / (self.high - self.low)
        return round(self.TOP + share * (self.HEIGHT - self.TOP - self.BOTTOM), 2)

    def axes(self, metric: str) -> list[Html]:
        bottom, right = self.HEIGHT - self.BOTTOM, self.WIDTH - self.RIGHT
        found = []
        for height in ticks(self.low, self.high):
            y = self.y(height)
            found.append(_line(self.LEFT, y, right, y, "var(--line)"))
            found.append(_text(self.LEFT - 5, y + 4, f"{height:g}", "end", "muted"))
        for alpha in ticks(self.first, self.last):
            found.append(_text(self.x(alpha), bottom + 15, f"{alpha:g}", "middle", "muted"))
        found.append(_text((self.LEFT + right) / 2, self.HEIGHT - 4, "α", "middle"))
        found.append(_text(4, 12, metric, "start"))
        return found

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> Html:
        path = " ".join(f"{self.x(alpha)},{self.y(height)}" for alpha, height in points)
        dots = "".join(
            f'<circle cx="{self.x(alpha)}" cy="{self.y(height)}" r="2" fill="var(--c)"/>' for alpha, height in points
        )
        line = f'<polyline points="{path}" fill="none" stroke="var(--c)" stroke-width="2"/>'
        return Html(f'<g class="{kind}">{line}{dots}</g>')

    def chosen(self, alpha: float) -> list[Html]:
        x = self.x(alpha)
        line = _line(x, self.TOP, x, self.HEIGHT - self.BOTTOM, "var(--muted)", dashes="3 3")
        anchor = "end" if alpha > (self.first + self.last) / 2 else "start"
        return [line, _text(x, self.TOP - 4, f"chosen: {alpha:.2f}", anchor, "muted")]

    def marker(self, alpha: float) -> Html:
        x = self.x(alpha)
        line = _line(x, self.TOP, x, self.HEIGHT - self.BOTTOM, "var(--ma)", width=2)
        return Html(f'<g class="hfi-marker">{line}</g>')

    def dot(self, alpha: float, height: float, kind: str) -> Html:
        place = f'cx="{self.x(alpha)}" cy="{self.y(height)}" r="5"'
        return Html(f'<g class="{kind}"><circle {place} fill="var(--c)" stroke="var(--ma)" stroke-width="2"/></g>')


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashes: str = "none") -> Html:
    return Html(
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Html:
    return Html(f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{_WRITE.text(text)}</text>')
