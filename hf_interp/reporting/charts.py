"""The chart engine: what a chart shows, drawn by Matplotlib as a picture or as a part of a page. No torch."""

import io
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_interp.reporting.colours import NEUTRAL
from hf_interp.utils.files import new_file

if TYPE_CHECKING:  # who writes or reads results without drawing them does not wait for Matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_SIZE = (5.2, 4.4)
"""Of a chart in a picture, in inches."""
IN_A_ROW = 4
"""Of a picture's charts, so that they can be read in a card."""
PAGE_SIZE = (4.3, 2.9)
"""Of a chart in a page: small, so that letters are not when a telephone shows it."""
FEW = 30  # points that are told apart by markers

Point = tuple[float, float]


@dataclass(kw_only=True)
class Series:
    """Points with one entry in the legend.

    Args:
        label: its name.
        points: (x, y), in the order in which they are joined.
        style: properties of Matplotlib's line; without `marker` points are not marked, without `linestyle` not joined.
        low, high: ends of an interval at each point.
        x_errors: half an interval of x at each point.
        names: a name for each point in the table.
        in_legend: whether the legend of a picture names it.
    """

    label: str
    points: Sequence[Point]
    style: dict[str, Any]
    low: list[float] | None = None
    high: list[float] | None = None
    x_errors: list[float] | None = None
    names: list[str] | None = None
    in_legend: bool = True

    @property
    def is_joined(self) -> bool:
        """Whether there is a line."""
        return bool(self.style.get("linestyle"))


@dataclass(kw_only=True)
class Chart:
    """One chart.

    Args:
        title: what it shows.
        x_name, y_name: quantities along the axes.
        series: what is drawn.
        y_limits: ends of the y axis, if not those of the points.
        lines: vertical lines: (name, x, line style).
        spans: ranges of x: (name, low, high).
        notes: texts beside points: (point, text).
        spare_notes: the same, shown where there is room for them.
        x_ticks: the ticks of the x axis with their texts, if it has some of its own.
        turned: whether the x axis and the y axis run downwards, so that the upper right is better where less is.
        logarithmic: whether the x axis and the y axis are.
        remark: what a reader must know besides.
    """

    title: str
    x_name: str
    y_name: str
    series: list[Series] = field(default_factory=list)
    y_limits: tuple[float, float] | None = None
    lines: list[tuple[str, float, str]] = field(default_factory=list)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    notes: list[tuple[Point, str]] = field(default_factory=list)
    spare_notes: list[tuple[Point, str]] = field(default_factory=list)
    x_ticks: dict[float, str] = field(default_factory=dict)
    turned: tuple[bool, bool] = (False, False)
    logarithmic: tuple[bool, bool] = (False, False)
    remark: str = ""

    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(series.points for series in self.series)


def spread_over(count: int, most: int) -> list[int]:
    """Return at most so many of the first `count` numbers, evenly spread, the first and the last among them.

    >>> spread_over(5, 3), spread_over(2, 3)
    ([0, 2, 4], [0, 1])
    """
    kept = min(count, most)
    return sorted({round(place * (count - 1) / max(kept - 1, 1)) for place in range(kept)})


def draw_panels(charts: Sequence[Chart]) -> "Figure":
    """Draw those charts that show something, at most `IN_A_ROW` side by side, with titles and legends."""
    from matplotlib.figure import Figure

    shown = [chart for chart in charts if not chart.is_empty()]
    width, height = PANEL_SIZE
    rows = math.ceil(max(len(shown), 1) / IN_A_ROW)
    columns = math.ceil(max(len(shown), 1) / rows)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[max(len(shown), 1) :]:
        axes.remove()
    for axes, chart in zip(panels, shown, strict=False):
        _draw(axes, chart)
        axes.set_title(chart.title, parse_math=False)
        if axes.get_legend_handles_labels()[0]:
            for text in axes.legend(fontsize="small", framealpha=0.9, markerscale=0.8).get_texts():
                text.set_parse_math(False)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a picture, whole or not at all, in the format that its name's ending tells; without one, as PNG."""
    path = Path(path)
    with new_file(path, "wb") as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=120)


def draw_svg(chart: Chart, key: str) -> str:
    """Draw a chart as an SVG element for a page, without title and legend.

    Names of its parts hold the `key`, and texts have no colour, so that they take that of the page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9.5}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # the browser, not the font that is measured here, shows names in other scripts
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=PAGE_SIZE, layout="constrained", facecolor="none")
        _draw(figure.subplots(), chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    # a part of a page has no name spaces and no styles for all of it; names that hold no `key` would be those of others
    text = re.sub(r' (xmlns(:\w+)?|id)="(https?:[^"]*|[\w.]+_\d+)"', "", text[text.index("<svg") :])
    return re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)


def _draw(axes: "Axes", chart: Chart) -> None:
    shown = [series for series in chart.series if series.points]
    axes.set(xscale="log" if chart.logarithmic[0] else "linear", yscale="log" if chart.logarithmic[1] else "linear")
    for series in shown:
        _draw_line(axes, series)
    for name, low, high in chart.spans:
        axes.axvspan(low, high, color=NEUTRAL, alpha=0.18, linewidth=0, label=name)
    for name, x, style in chart.lines:
        axes.axvline(x, color=NEUTRAL, linewidth=1.3, linestyle=style, label=name)
    # the axes hold all points and bands, but not all bars, which hide the rest where there are few seeds
    axes.margins(0.08)
    axes.autoscale_view()
    axes.autoscale(False)
    if chart.y_limits is not None:
        axes.set_ylim(*chart.y_limits)
    for series in shown:
        _draw_bars(axes, series)
    axes.xaxis.set_inverted(chart.turned[0])
    axes.yaxis.set_inverted(chart.turned[1])
    _set_ticks(axes, chart)
    # names may hold a $, which is no mathematics
    axes.set_xlabel(chart.x_name, parse_math=False)
    axes.set_ylabel(chart.y_name, parse_math=False)
    axes.set_facecolor("none")
    axes.grid(color=NEUTRAL, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=NEUTRAL, which="both")
    axes.spines[:].set_color(NEUTRAL)
    axes.spines[["top", "right"]].set_visible(False)
    _write_notes(axes, chart)


def _draw_line(axes: "Axes", series: Series) -> None:
    style: dict[str, Any] = {"linestyle": "", "linewidth": 1.6, "markersize": 5, "markeredgewidth": 0} | series.style
    if series.is_joined and len(series.points) > FEW:
        style["marker"] = ""
    x, y = zip(*series.points, strict=True)
    axes.plot(x, y, label=series.label if series.in_legend else "_", **style)
    if series.is_joined and series.low is not None and series.high is not None:
        axes.fill_between(x, series.low, series.high, alpha=0.18, linewidth=0, color=style["color"], label="_")


def _draw_bars(axes: "Axes", series: Series) -> None:
    x, y = zip(*series.points, strict=True)
    look: dict[str, Any] = {"color": series.style["color"], "linewidth": 1.2, "label": "_"}
    if not series.is_joined and series.low is not None and series.high is not None:
        axes.vlines(x, series.low, series.high, **look)
    if series.x_errors is not None:
        errors = np.array(series.x_errors)
        axes.hlines(y, x - errors, x + errors, **look)


def _set_ticks(axes: "Axes", chart: Chart) -> None:
    """Give the axes plain numbers that keep apart."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for axis, is_logarithmic in zip((axes.xaxis, axes.yaxis), chart.logarithmic, strict=True):
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0)) if is_logarithmic else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
        )
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    if chart.x_ticks:
        axes.set_xticks(list(chart.x_ticks), list(chart.x_ticks.values()))


def _write_notes(axes: "Axes", chart: Chart) -> None:
    """Write the notes, and the spare ones that are a tenth of the chart from all before."""
    shown: list[Any] = []
    for index, (point, text) in enumerate([*chart.notes, *chart.spare_notes]):
        place = axes.transAxes.inverted().transform(axes.transData.transform(point))
        if index < len(chart.notes) or all(np.hypot(*(place - other)) > 0.1 for other in shown):
            shown.append(place)
            axes.annotate(text, point, xytext=(6, 6), textcoords="offset points", parse_math=False)
