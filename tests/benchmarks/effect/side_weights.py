"""One number for a trade-off: the score with the domain at a weight of 0.3, 0.5 and 0.7, the mean of the three.

At each weight and seed the better of M_θ and M_α by validation is taken, and scored on the test examples. So a run is
not punished for lying elsewhere on the same trade-off. This score was fixed before the methods that it judges were run.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import numpy as np

from effect.cells import Cell, Row
from effect.methods import CONSTANTS
from effect.pairs import DOMAIN, GENERAL, SIDES
from effect.stats import Array, Interval, interval

WEIGHTS = (0.3, 0.5, 0.7)
MIXTURES = CONSTANTS[:-1]
Contender = Callable[[Cell, Sequence[int]], list[Row]]
"""Of a cell and some seeds, the rows that stand for each of `WEIGHTS`."""


def run_of(method: str, cell: Cell, seeds: Sequence[int]) -> list[Row]:
    """Return a method's M_θ or M_α, seed by seed, whichever validation prefers."""
    trained, interpolated = (cell.rows[method, key].of_seeds(seeds) for key in (False, True))
    rows = []
    for weight in WEIGHTS:
        prefers = validated(cell, interpolated, weight) > validated(cell, trained, weight)
        rows.append(_picked(trained, interpolated, prefers))
    return rows


def best_mixture(cell: Cell, seeds: Sequence[int]) -> list[Row]:
    """Return that constant mixture, M_θ or M_α, which is best on validation over all weights: three runs, one kept."""
    found = [run_of(method, cell, seeds) for method in MIXTURES]
    return max(
        found,
        key=lambda rows: fmean(validated(cell, row, weight).mean() for row, weight in zip(rows, WEIGHTS, strict=True)),
    )


def four_runs(cell: Cell, seeds: Sequence[int]) -> list[Row]:
    """Return for every weight that constant mixture or domain only, without M_α, which is best on validation."""
    rows = [cell.rows[method, False].of_seeds(seeds) for method in CONSTANTS]
    return [max(rows, key=lambda row: float(validated(cell, row, weight).mean())) for weight in WEIGHTS]


REFERENCES: dict[str, Contender] = {
    "the best constant + M_α": best_mixture,
    "constant 0.5 + M_α": partial(run_of, "constant-0.5"),
    "four constants, no M_α": four_runs,
}
"""What methods are held against, as tables call it."""


def validated(cell: Cell, row: Row, weight: float) -> Array:
    """Return a row's score on validation, by seed, with the domain at a weight."""
    domain, general = (cell.sign * np.array(row.validation[side]) for side in (DOMAIN, GENERAL))
    return np.asarray(weight * domain + (1 - weight) * general)


def common_seeds(cell: Cell, method: str) -> list[int]:
    """Return the seeds that a method and all constant mixtures have in a cell; none where it lacks one of them."""
    needed = (method, *CONSTANTS)
    if any((key, False) not in cell.rows for key in needed):
        return []
    return sorted(set.intersection(*(set(cell.rows[key, False].seeds) for key in needed)))


def gain(cell: Cell, method: str, reference: Contender) -> Interval | None:
    """Return by how much a method's score exceeds a reference's, paired; `None` where the cell lacks one of them."""
    seeds = common_seeds(cell, method)
    if not seeds:
        return None
    ours, others = run_of(method, cell, seeds), reference(cell, seeds)
    return interval(
        score(cell, ours, cell.score) - score(cell, others, cell.score),
        score(cell, ours, partial(_resample, cell)) - score(cell, others, partial(_resample, cell)),
    )


def score(cell: Cell, rows: Sequence[Row], measure: Callable[[Row, str], Array | float]) -> Array | float:
    """Return the mean over weights of w·domain + (1 − w)·general."""
    parts = [
        weight * measure(row, DOMAIN) + (1 - weight) * measure(row, GENERAL)
        for row, weight in zip(rows, WEIGHTS, strict=True)
    ]
    return sum(parts) / len(parts)


def _resample(cell: Cell, row: Row, side: str) -> Array:
    return np.asarray(cell.sign * cell.resample(row, side))


def _picked(trained: Row, interpolated: Row, prefers: Array) -> Row:
    """Return the row that has M_α of the seeds that prefer it."""
    places = np.where(prefers, 1, 0)
    seeds = range(len(places))
    both = (trained, interpolated)
    return replace(
        trained,
        numerators={side: np.stack([both[places[seed]].numerators[side][seed] for seed in seeds]) for side in SIDES},
        denominators={
            side: np.stack([both[places[seed]].denominators[side][seed] for seed in seeds]) for side in SIDES
        },
        validation={side: tuple(both[places[seed]].validation[side][seed] for seed in seeds) for side in SIDES},
    )
