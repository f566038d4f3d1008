"""Charts inside a page: SVG that takes its colours from the page, with a legend and a table of the same numbers."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from hf_interp.reporting.report_page import NUM_COLOURS, Html, Writer

MAX_POINTS = 200
"""Of a series; of more, so many are drawn, evenly spread."""

INK, GRID = "#010101", "#020202"
COLOURS = tuple(f"#0300{index:02x}" for index in range(NUM_COLOURS))
"""Stand-ins, for which the page's own colours are put in."""

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 2),
    (2, 1.5),
    (6, 2, 1.5, 2),
    (9, 2),
    (4, 1.5, 1.5, 1.5, 1.5, 1.5),
    (1, 1),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHAPES = (
    "M15 2.5a3.5 3.5 0 1 0 .01 0z",
    "M12 3h6v6h-6z",
    "M15 2l4 7h-8z",
    "M15 2l4 4-4 4-4-4z",
    "M15 10l4-7h-8z",
    "M13.5 2h3v2.5H19v3h-2.5V10h-3V7.5H11v-3h2.5z",
    "M12 2l3 2.5L18 2l1.5 1.5L17 6l2.5 2.5L18 10l-3-2.5L12 10l-1.5-1.5L13 6l-2.5-2.5z",
)
"""The markers as the legend draws them."""
SIZE = (4.3, 2.9)  # inches: small, so that letters are not when a telephone shows it
NAMESPACES = re.compile(r"\{[^}]*\}")

Point = tuple[float, float]


@dataclass(kw_only=True)
class Series:
    """What one entry of the legend names.

    Args:
        label: its name.
        points: (x, y), in the order in which they are joined.
        low, high: ends of an interval at each point.
        x_errors: half an interval of x at each point.
        joined: whether there is a line.
        marked: whether there are markers.
        look: number of its colour, dashes and marker.
        labels: a name for each point in the table.
    """

    label: str
    points: list[Point]
    low: list[float] | None = None
    high: list[float] | None = None
    x_errors: list[float] | None = None
    joined: bool = True
    marked: bool = False
    look: int = 0
    labels: list[str] | None = None


@dataclass(kw_only=True)
class Chart:
    """One picture.

    Args:
        title: what it shows.
        x_name, y_name: quantities along the axes.
        series: what is drawn.
        y_limits: ends of the y axis, if not those of the points.
        lines: x of vertical lines, by their name.
        turned: whether the x axis and the y axis run downwards, so that the upper right is better where less is.
        logarithmic: whether the x axis and the y axis are.
        note: what a reader must know besides.
    """

    title: str
    x_name: str
    y_name: str
    series: list[Series] = field(default_factory=list)
    y_limits: tuple[float, float] | None = None
    lines: list[tuple[str, float]] = field(default_factory=list)
    turned: tuple[bool, bool] = (False, False)
    logarithmic: tuple[bool, bool] = (False, False)
    note: str = ""

    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(series.points for series in self.series)


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most so many of the points, evenly spread, the first and the last among them.

    >>> thinned([(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)], 3)
    [(0, 0), (2, 4), (4, 16)]
    """
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def number(value: float | None) -> str:
    """A number in a table.

    >>> number(0.51239), number(1234.5), number(0.00002), number(12), number(None)
    ('0.512', '1234', '2.0e-05', '12', '–')
    """
    if value is None:
        return "–"
    if float(value).is_integer():
        return f"{value:.0f}"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1e}"


def figure(writer: Writer, chart: Chart, key: str) -> Html:
    """A chart with its title, legend and table.

    Args:
        writer: of the page.
        chart: what to draw.
        key: tells its parts from those of the page's other charts.
    """
    names = [series.label for series in chart.series if series.points]
    alternative = (
        f"{chart.title}: {chart.y_name} against {chart.x_name}, of {', '.join(names)}. The table has the numbers."
    )
    return writer.tag(
        "figure",
        writer.tag("figcaption", chart.title),
        _svg(chart, key, writer.text(alternative), writer),
        _legend(writer, chart),
        writer.tag("p", chart.note, class_="note") if chart.note else Html(),
        writer.details("Numbers", _table(writer, chart)),
    )


def _table(writer: Writer, chart: Chart) -> Html:
    rows = []
    has_interval = any(series.low is not None for series in chart.series)
    has_x_errors = any(series.x_errors is not None for series in chart.series)
    for series in chart.series:
        for index, (x, y) in enumerate(series.points):
            name = series.label if series.labels is None else f"{series.label}: {series.labels[index]}"
            row = [name, number(x), number(y)]
            if has_interval:
                ends = None if series.low is None or series.high is None else (series.low[index], series.high[index])
                row.append("–" if ends is None else f"{number(ends[0])} to {number(ends[1])}")
            if has_x_errors:
                row.append("–" if series.x_errors is None else number(series.x_errors[index]))
            rows.append(row)
    rows += [[name, number(x), "–", *["–"] * (has_interval + has_x_errors)] for name, x in chart.lines]
    header = ["series", chart.x_name, chart.y_name]
    header += [f"interval of {chart.y_name}"] * has_interval + [f"± of {chart.x_name}"] * has_x_errors
    return writer.table(header, rows, label=f"Numbers of the chart {chart.title}")


def _legend(writer: Writer, chart: Chart) -> Html:
    entries = [
        Html(writer.tag("span", _sample(series)) + writer.tag("span", series.label))
        for series in chart.series
        if series.points
    ]
    if chart.lines:
        line = Html('<svg viewBox="0 0 30 12" aria-hidden="true"><path d="M15 0V12" stroke="currentColor"/></svg>')
        shown = ", ".join(dict.fromkeys(name for name, _ in chart.lines))
        entries.append(Html(line + writer.tag("span", shown)))
    return writer.list(entries, class_="legend")


def _sample(series: Series) -> Html:
    """A piece of a series' line with its marker."""
    look = series.look % NUM_COLOURS
    dashes = " ".join(str(length * 1.6) for length in DASHES[look]) or "none"
    line = f'<path d="M0 6H30" stroke-width="2" stroke-dasharray="{dashes}" fill="none"/>' if series.joined else ""
    marker = f'<path d="{SHAPES[look]}" fill="var(--c{look})" stroke="none"/>' if series.marked else ""
    return Html(f'<svg viewBox="0 0 30 12" aria-hidden="true" stroke="var(--c{look})">{line}{marker}</svg>')


def _svg(chart: Chart, key: str, alternative: str, writer: Writer) -> Html:
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "hf_interp",  # the same chart gives the same text
        "font.size": 9.5,
        "path.simplify": True,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # the browser, not the font that is measured here, shows names in other scripts
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        picture = Figure(figsize=SIZE, layout="constrained", facecolor="none")
        axes = picture.subplots()
        _draw(axes, chart, writer)
        buffer = io.StringIO()
        picture.savefig(buffer, format="svg", metadata={"Date": None})
    return _themed(buffer.getvalue(), key, alternative)


def _draw(axes: Axes, chart: Chart, writer: Writer) -> None:
    axes.set_facecolor("none")
    for series in chart.series:
        if series.points:
            _draw_series(axes, series)
    for _, x in chart.lines:
        axes.axvline(x, color=INK, linewidth=1)
    _set_limits(axes, chart)
    # names may hold a $, which is no mathematics
    axes.set_xlabel(writer.plain(chart.x_name), parse_math=False)
    axes.set_ylabel(writer.plain(chart.y_name), parse_math=False)
    for axis, is_logarithmic in zip((axes.xaxis, axes.yaxis), chart.logarithmic, strict=True):
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0)) if is_logarithmic else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
        )
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_inverted(chart.turned[0])
    axes.yaxis.set_inverted(chart.turned[1])


def _draw_series(axes: Axes, series: Series) -> None:
    look = series.look % NUM_COLOURS
    style: dict[str, Any] = {"color": COLOURS[look], "linewidth": 1.6, "markeredgewidth": 0}
    style["linestyle"] = (0, DASHES[look]) if series.joined and DASHES[look] else "-" if series.joined else ""
    if series.marked:
        style["marker"] = MARKERS[look]
        style["markersize"] = 8.5 if len(series.points) == 1 else 5.5  # one point must be seen among others
    x, y = zip(*series.points, strict=True)
    axes.plot(x, y, **style)
    if series.low is not None and series.high is not None:
        if series.joined:
            axes.fill_between(x, series.low, series.high, color=COLOURS[look], alpha=0.18, linewidth=0)
        else:
            axes.vlines(x, series.low, series.high, color=COLOURS[look], linewidth=1.2)
    if series.x_errors is not None:
        starts = [place - error for place, error in zip(x, series.x_errors, strict=True)]
        ends = [place + error for place, error in zip(x, series.x_errors, strict=True)]
        axes.hlines(y, starts, ends, color=COLOURS[look], linewidth=1.2)


def _set_limits(axes: Axes, chart: Chart) -> None:
    """The axes hold all points and bands, but not all bars, which hide the rest where there are few seeds."""
    points = [point for series in chart.series for point in series.points]
    heights = [y for _, y in points]
    for series in chart.series:
        if series.joined:
            heights += [*(series.low or []), *(series.high or [])]
    wide_x, wide_y = chart.logarithmic
    axes.set(xscale="log" if wide_x else "linear", yscale="log" if wide_y else "linear")
    axes.set_xlim(*_padded([x for x, _ in points] + [x for _, x in chart.lines], wide_x))
    axes.set_ylim(*(chart.y_limits or _padded(heights, wide_y)))


def _padded(values: Sequence[float], is_logarithmic: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if is_logarithmic:
        margin = (high / low) ** 0.06
        return low / margin, high * margin
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _themed(text: str, key: str, alternative: str) -> Html:
    """Matplotlib's SVG as a part of a page: without its styles, names and sizes, in the page's colours and font."""
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    for parent in root.iter():
        for child in [child for child in parent if NAMESPACES.sub("", child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = NAMESPACES.sub("", element.tag)
        element.attrib = {
            NAMESPACES.sub("", name): _recoloured(value, key)
            for name, value in element.attrib.items()
            if name != "id" or value in used
        }
        if "id" in element.attrib:
            element.set("id", f"{key}-{element.attrib['id']}")
        if element.tag == "use":
            element.set("href", f"#{key}-{element.attrib['href'][1:]}")
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "chart", "role": "img"}
    found = ElementTree.tostring(root, encoding="unicode")
    return Html(found.replace("<svg ", f'<svg aria-label="{alternative}" ', 1))


def _recoloured(value: str, key: str) -> str:
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    value = re.sub(r"font-family: [^;]*", "font-family: system-ui, sans-serif", value)
    value = re.sub(r"(font: [\d. a-z]*px) [^;]*", r"\1 system-ui, sans-serif", value)  # earlier releases of Matplotlib
    value = value.replace(INK, "currentColor").replace(GRID, "var(--line)")
    for index, colour in enumerate(COLOURS):
        value = value.replace(colour, f"var(--c{index})")
    return value
