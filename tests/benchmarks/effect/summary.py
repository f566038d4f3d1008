"""Every method over all cells: ranks, hypervolume, and how often it wins and loses against the references."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from effect.cells import Cell
from effect.methods import BASE, METHODS, REFERENCES
from effect.pairs import DOMAIN, GENERAL
from effect.stats import hypervolume, judge, ranks

VERDICTS = ("win", "trade", "tie", "loss")


@dataclass(frozen=True)
class Summary:
    """A method over all cells that have it.

    Args:
        key: the method, and whether this is its M_α.
        title: of the row.
        num_cells: cells in which it is.
        rank: mean rank of the mean of both sides, of the domain and of the general side; `None` if it is not in every
            cell.
        volume: mean hypervolume; `None` if it is not in every cell.
        verdicts: by reference, how often it is a win, a trade, a tie and a loss.
    """

    key: tuple[str, bool]
    title: str
    num_cells: int
    rank: tuple[float, ...] | None
    volume: float | None
    verdicts: Mapping[str, Mapping[str, int]]


def summarise(cells: Sequence[Cell]) -> list[Summary]:
    """Every method over cells that have both references; ranks are among the rows that all of these cells have."""
    cells = [cell for cell in cells if all((key, False) in cell.rows for key in REFERENCES)]
    if not cells:
        return []
    keys = list(dict.fromkeys(key for cell in cells for key in cell.rows))
    keys.sort(key=lambda key: ([BASE, *METHODS].index(key[0]), key[1]))
    everywhere = [key for key in keys if all(key in cell.rows for cell in cells)]
    places: dict[tuple[str, bool], list[tuple[float, float, float]]] = {key: [] for key in everywhere}
    volumes: dict[tuple[str, bool], list[float]] = {key: [] for key in everywhere}
    for cell in cells:
        rows = [cell.rows[key] for key in everywhere]
        points = {
            key: (cell.score(row, DOMAIN), cell.score(row, GENERAL)) for key, row in zip(everywhere, rows, strict=True)
        }
        domain, general = zip(*points.values(), strict=True)
        found = [ranks([one + other for one, other in points.values()]), ranks(domain), ranks(general)]
        for key, place in zip(everywhere, zip(*found, strict=True), strict=True):
            places[key].append(place)
        scaled = {key: (_share(point[0], domain), _share(point[1], general)) for key, point in points.items()}
        for key in everywhere:
            method, is_interpolated = key
            own = [scaled[method, False], scaled[key]] if is_interpolated else [scaled[key]]
            volumes[key].append(hypervolume(own, (0.0, 0.0)))
    return [
        Summary(
            key=key,
            title=next(cell.rows[key].title for cell in cells if key in cell.rows),
            num_cells=sum(key in cell.rows for cell in cells),
            rank=tuple(map(fmean, zip(*places[key], strict=True))) if key in places else None,
            volume=fmean(volumes[key]) if key in volumes else None,
            verdicts={reference: verdicts(cells, key, (reference, False)) for reference in REFERENCES},
        )
        for key in keys
    ]


def verdicts(cells: Iterable[Cell], key: tuple[str, bool], reference: tuple[str, bool]) -> dict[str, int]:
    """How often a row wins, trades, ties and loses against another (see `stats.judge`)."""
    counts = dict.fromkeys(VERDICTS, 0)
    for cell in cells:
        if key in cell.rows and reference in cell.rows and key != reference:
            gains = {side: cell.gain(cell.rows[key], cell.rows[reference], side) for side in (DOMAIN, GENERAL)}
            known = {side: gain for side, gain in gains.items() if gain is not None}
            if len(known) == len(gains):
                counts[judge(known)] += 1
    return counts


def _share(value: float, values: Sequence[float]) -> float:
    """A value on a scale on which the worst is 0 and the best 1."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 1.0
