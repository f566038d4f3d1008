"""Methods over all cells, and mixtures that move against those that do not.

Every method: ranks, hypervolume, and how often it wins and loses against the references.

Does the order matter? Mixtures that move, against the constant mixture that reads as many domain examples. Two
comparisons: at the learning rates that validation chose for each, as a user would have them; and at equal learning
rates, over all rates that both have run with: there the rate's choice, which is noisy, is taken out as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from effect.cells import Cell, spread_counts
from effect.methods import BASE, METHODS, REFERENCES
from effect.pairs import DOMAIN, GENERAL, PAIRS, SIDES
from effect.stats import hypervolume, judge, ranks
from effect.store import unpack
from hf_interp.reporting.results import less_is_better

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


# The order.

CONTROLS = {
    "linear": "constant-0.5",
    "cosine": "constant-0.5",
    "three-phase": "constant-0.5",
    "sequential": "constant-0.5",
    "falling": "constant-0.5",
    "linear-wsd": "constant-0.5-wsd",
    "late-wsd": "constant-0.2-wsd",
    "linear-averaged": "constant-0.5-averaged",
    "linear-flat": "constant-0.5-flat",
    "linear-0.75": "linear-0.75-matched",
    "linear-0.9": "linear-0.9-matched",
    "exponential": "exponential-matched",
    "gradual": "gradual-matched",
}
"""Methods whose order is of interest → the constant mixture that reads as many domain examples."""


class Gain(NamedTuple):
    """A mean over pairs of corpora.

    Args:
        value: above 0 better.
        error: its standard error over pairs; `None` of a single one.
        num_pairs, num_runs: compared.
    """

    value: float
    error: float | None
    num_pairs: int
    num_runs: int


def equal_rate_gains(
    results: Mapping[str, Sequence[Mapping[str, Any]]], method: str, control: str, *, is_loss: bool
) -> dict[str, Gain] | None:
    """The mean gain of a method over its control by side, both with the same size, learning rate and seed.

    Args:
        results: entries by pair.
        method, control: keys of methods.
        is_loss: of pairs that are measured by loss (nats); else of those measured by accuracy or F1.

    Returns:
        by side, the mean over pairs of each pair's mean over runs; `None` if there is no run of both.
    """
    by_pair: dict[str, list[dict[str, float]]] = {}
    for pair, entries in results.items():
        if pair in PAIRS and less_is_better(PAIRS[pair].metric) == is_loss:
            found = _run_gains(entries, method, control)
            if found:
                by_pair[pair] = found
    if not by_pair:
        return None
    num_runs = sum(len(found) for found in by_pair.values())
    means = {side: [fmean(gain[side] for gain in found) for found in by_pair.values()] for side in SIDES}
    return {
        side: Gain(fmean(each), stdev(each) / len(each) ** 0.5 if len(each) > 1 else None, len(each), num_runs)
        for side, each in means.items()
    }


def _run_gains(entries: Iterable[Mapping[str, Any]], method: str, control: str) -> list[dict[str, float]]:
    entries = list(entries)
    base = next((entry for entry in entries if entry["method"] == BASE), None)
    if base is None:
        return []
    counts = {side: spread_counts(found) for side, found in base["counts"].items()}
    keyed: dict[str, dict[tuple[Any, float, int], Mapping[str, Any]]] = {method: {}, control: {}}
    for entry in entries:
        if entry["method"] in keyed:
            keyed[entry["method"]][entry["size"], entry["learning_rate"], entry["seed"]] = entry
    return [
        {side: _score(entry, side, counts[side]) - _score(keyed[control][key], side, counts[side]) for side in SIDES}
        for key, entry in keyed[method].items()
        if key in keyed[control]
    ]


def _score(entry: Mapping[str, Any], side: str, counts: Sequence[int]) -> float:
    metric = PAIRS[entry["pair"]].metric
    found = unpack(metric, entry["test"][side], counts)
    value = float(np.sum(found.numerators) / np.sum(found.denominators))
    return -value if less_is_better(metric) else value
