"""Pictures of the comparison."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effect.cells import Cell, Row
from effect.methods import BASE, METHODS
from effect.pairs import DOMAIN, FULL, GENERAL, PAIRS, SIDES, SIZES, size_text
from effect.schedule import FIRST_SIZE
from hf_interp.reporting import colours

SHOWN = {
    "domain": ("#000000", "s"),
    "sequential": ("#CC79A7", "P"),
    "constant-0.25": ("#56B4E9", "<"),
    "constant-0.5": ("#56B4E9", "D"),
    "constant-0.75": ("#56B4E9", ">"),
    "linear": ("#009E73", "^"),
    "falling": ("#E69F00", "v"),
    "kl-0.25-mean": ("#D55E00", "o"),
}
"""The methods that pictures show, with colour and marker. The colours are those of Okabe and Ito, which colour-blind
readers can tell apart."""
SIDE_COLOURS = {GENERAL: colours.GENERAL, DOMAIN: colours.DOMAIN}
FOLLOWED = {"constant-0.5": "-", "linear": "--"}
"""The methods that are followed over the number of domain examples, with their lines."""


def draw_pairs(cells: Sequence[Cell], path: Path) -> bool:
    """The point (general, domain) of every method at 300 domain examples, with M_α of each."""
    shown = [cell for cell in cells if cell.size == FIRST_SIZE]
    if not shown:
        return False
    figure, places = _grid(len(shown))
    for cell, axes in zip(shown, places, strict=False):
        for key in SHOWN:
            if (key, False) in cell.rows:
                _point(axes, cell, cell.rows[key, False])
                _arrow(axes, cell.rows[key, False], cell.rows[key, True])
        base = cell.rows[BASE, False]
        axes.plot(base.value("general"), base.value("domain"), "*", color="grey", markersize=12, label="M₀")
        if cell.sign < 0:
            axes.invert_xaxis()
            axes.invert_yaxis()
        _name(axes, PAIRS[cell.pair].title, f"general {PAIRS[cell.pair].metric}", f"domain {PAIRS[cell.pair].metric}")
    _legend(figure, places)
    figure.suptitle("up and to the right is better; hollow: M_α of the same run; bars: 95% intervals")
    figure.savefig(path, dpi=80)
    return True


def draw_order(cells: Sequence[Cell], path: Path) -> bool:
    """The gain of the rising, the falling and the sequential mixture over constant 0.5, by cell and side."""
    moving = ("linear", "sequential", "falling")
    shown = [cell for cell in cells if ("constant-0.5", False) in cell.rows]
    shown = [cell for cell in shown if any((key, False) in cell.rows for key in moving)]
    if not shown:
        return False
    figure = Figure(figsize=(11, 1.5 + 0.4 * len(shown)), layout="constrained")
    places = figure.subplots(1, 2, sharey=True)
    for axes, side in zip(places, SIDES, strict=True):
        for offset, key in enumerate(moving):
            for place, cell in enumerate(shown):
                row = cell.rows.get((key, False))
                gain = row and cell.gain(row, cell.rows["constant-0.5", False], side)
                colour, marker = SHOWN[key]
                if gain:
                    axes.errorbar(
                        gain.value,
                        place + 0.22 * (offset - 1),
                        xerr=[[gain.value - gain.low], [gain.high - gain.value]],
                        fmt=marker,
                        markersize=4,
                        color=colour,
                        label=METHODS[key].title,
                    )
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(
            range(len(shown)),
            [f"{PAIRS[cell.pair].title}, {size_text(cell.size)}" for cell in shown],
        )
        _name(axes, f"{side} side: gain over constant 0.5", "accuracy, F1 or nats; above 0 is better", "")
    axes.margins(y=0.02)
    axes.invert_yaxis()
    _legend(figure, places)
    figure.savefig(path, dpi=80)
    return True


def draw_sizes(cells: Sequence[Cell], path: Path) -> bool:
    """The gain over domain only by the number of domain examples, for pairs that have several."""
    order = sorted(SIZES, key=lambda size: (size == FULL, size))
    pairs = [pair for pair in PAIRS if len([cell for cell in cells if cell.pair == pair]) > 1]
    if not pairs:
        return False
    figure, places = _grid(len(pairs))
    for pair, axes in zip(pairs, places, strict=False):
        own = sorted((cell for cell in cells if cell.pair == pair), key=lambda cell: order.index(cell.size))
        for key in FOLLOWED:
            for side, colour in SIDE_COLOURS.items():
                gains = [
                    (order.index(cell.size), gain.value)
                    for cell in own
                    if (key, False) in cell.rows
                    and ("domain", False) in cell.rows
                    and (gain := cell.gain(cell.rows[key, False], cell.rows["domain", False], side))
                ]
                if gains:
                    axes.plot(
                        *zip(*gains, strict=True),
                        FOLLOWED[key],
                        marker=SHOWN[key][1],
                        color=colour,
                        label=f"{METHODS[key].title}, {side}",
                    )
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xticks(range(len(order)), [size_text(size) for size in order])
        _name(axes, PAIRS[pair].title, "domain examples", "gain over domain only")
    _legend(figure, places)
    figure.suptitle("above 0 is better; in accuracy, F1 or nats")
    figure.savefig(path, dpi=80)
    return True


FIGURES: dict[str, Callable[[Sequence[Cell], Path], bool]] = {
    "pairs.png": draw_pairs,
    "order.png": draw_order,
    "sizes.png": draw_sizes,
}
"""Name of the file → what draws it, and says whether there was anything to draw."""


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, 3.8 * lines + 0.8), layout="constrained")
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in places[count:]:
        axes.set_axis_off()
    return figure, places


def _point(axes: Axes, cell: Cell, row: Row) -> None:
    colour, marker = SHOWN[row.method]
    x, y = cell.interval(row, "general"), cell.interval(row, "domain")
    axes.errorbar(
        x.value,
        y.value,
        xerr=[[x.value - x.low], [x.high - x.value]],
        yerr=[[y.value - y.low], [y.high - y.value]],
        fmt=marker,
        color=colour,
        elinewidth=0.6,
        alpha=0.9,
        label=row.title,
    )


def _arrow(axes: Axes, row: Row, interpolated: Row) -> None:
    colour, marker = SHOWN[row.method]
    xs, ys = ([one.value(side) for one in (row, interpolated)] for side in ("general", "domain"))
    axes.plot(xs, ys, ":", color=colour, linewidth=0.8)
    axes.plot(xs[1], ys[1], marker, markerfacecolor="none", color=colour)


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, places: Iterable[Axes]) -> None:
    """One legend of all that any of the places shows; long handles tell dashed from solid lines."""
    entries = {
        label: handle for axes in places for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False, handlelength=4)
