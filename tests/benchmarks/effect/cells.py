"""What the results say: cells of a pair and a size, in them rows of methods, and their differences from a reference."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from effect.methods import BASE, METHODS
from effect.pairs import PAIRS, SIDES
from effect.schedule import RATE_SEED, Search, grid, search, validation_score
from effect.stats import Array, Interval, Resamples, draw, interval, resampled, seed_stretch
from effect.store import unpack
from hf_interp.commands.compare import BASE as BASE_TITLE
from hf_interp.commands.compare import INTERPOLATED_SUFFIX
from hf_interp.reporting.results import less_is_better

NUM_RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Row:
    """A method in a cell.

    Args:
        method: its key.
        is_interpolated: whether this is its M_α.
        seeds: of its runs, rising.
        numerators, denominators: by side, (num_seeds, num_examples).
        rate: the chosen learning rate; 0 of M₀.
        alphas: the chosen α of the weights, by seed.
        seconds: of the processor, in training, by seed.
        validation: the metric on the validation set, by side and seed, where it was noted.
    """

    method: str
    is_interpolated: bool
    seeds: tuple[int, ...]
    numerators: Mapping[str, Array]
    denominators: Mapping[str, Array]
    rate: float = 0.0
    alphas: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    validation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As tables call it."""
        name = BASE_TITLE if self.method == BASE else METHODS[self.method].title
        return name + (INTERPOLATED_SUFFIX if self.is_interpolated else "")

    def value(self, side: str) -> float:
        """The metric: the mean over seeds."""
        return float((self.numerators[side].sum(axis=1) / self.denominators[side].sum(axis=1)).mean())

    def of_seeds(self, seeds: Sequence[int]) -> "Row":
        """The row with some of its seeds; M₀, which has none, is the same for all."""
        places = [0] * len(seeds) if self.method == BASE else [self.seeds.index(seed) for seed in seeds]
        return Row(
            self.method,
            self.is_interpolated,
            tuple(seeds),
            {side: array[places] for side, array in self.numerators.items()},
            {side: array[places] for side, array in self.denominators.items()},
            validation={side: tuple(found[place] for place in places) for side, found in self.validation.items()},
        )


@dataclass
class Cell:
    """A pair at a number of domain examples.

    Args:
        pair: its name.
        size: training examples of the domain.
        rows: by method and whether it is M_α; M₀ is among them.
        machines: where its runs were.
        searches: for the learning rates, by method.
    """

    pair: str
    size: int | str
    rows: dict[tuple[str, bool], Row]
    machines: set[str] = field(default_factory=set)
    searches: dict[str, Search] = field(default_factory=dict)
    _draws: dict[tuple[int, str], Resamples] = field(default_factory=dict)

    @cached_property
    def sign(self) -> int:
        """−1 where less of the metric is better."""
        return -1 if less_is_better(PAIRS[self.pair].metric) else 1

    def interval(self, row: Row, side: str) -> Interval:
        """A row's metric."""
        return interval(row.value(side), self.resample(row, side))

    def gain(self, row: Row, reference: Row, side: str) -> Interval | None:
        """By how much a row is better than another, paired over seeds and examples; `None` without common seeds."""
        if BASE in (row.method, reference.method):  # M₀ has no seeds and stands beside all of the other's
            seeds = list(reference.seeds if row.method == BASE else row.seeds)
        else:
            seeds = sorted(set(row.seeds) & set(reference.seeds))
        if not seeds:
            return None
        ours, others = row.of_seeds(seeds), reference.of_seeds(seeds)
        value = self.sign * (ours.value(side) - others.value(side))
        return interval(value, self.sign * (self.resample(ours, side) - self.resample(others, side)))

    def score(self, row: Row, side: str) -> float:
        """A row's metric, turned so that more is better."""
        return self.sign * row.value(side)

    def resample(self, row: Row, side: str) -> Array:
        """A row's metric in every resample, which draws the same seeds and examples for all rows of a cell."""
        num_seeds, num_examples = row.numerators[side].shape
        key = num_seeds, side
        if key not in self._draws:  # with the same generator, so that both sides draw the same seeds
            self._draws[key] = draw(num_seeds, num_examples, NUM_RESAMPLES, np.random.default_rng(SEED))
        stretch = seed_stretch(num_seeds)
        return resampled(row.numerators[side], row.denominators[side], self._draws[key], stretch)


def cells_of(results: Mapping[str, Sequence[Mapping[str, Any]]], rate_sides: Sequence[str] = SIDES) -> list[Cell]:
    """All cells that have runs, in the order of pairs and sizes.

    A method is in a cell once all learning rates of its grid have been run.

    Args:
        results: entries by pair.
        rate_sides: whose mean on validation chooses the learning rates.
    """
    cells = []
    for pair in (pair for pair in PAIRS if pair in results):
        entries = results[pair]
        base = next((entry for entry in entries if entry["method"] == BASE), None)
        if base is None:
            continue
        counts = {side: spread_counts(found) for side, found in base["counts"].items()}
        for size in sorted(PAIRS[pair].sizes, key=lambda size: (isinstance(size, str), size)):
            cell = Cell(pair, size, {(BASE, False): row_of(BASE, False, [base], counts, "test")}, {base["machine"]})
            for method in METHODS:
                found = search_so_far(entries, pair, size, method, rate_sides)
                chosen = [
                    entry
                    for entry in entries
                    if (entry["method"], entry.get("size"), entry.get("learning_rate")) == (method, size, found.best)
                ]
                if chosen:
                    chosen.sort(key=lambda entry: entry["seed"])
                    cell.rows[method, False] = row_of(method, False, chosen, counts, "test")
                    cell.rows[method, True] = row_of(method, True, chosen, counts, "test_interpolated")
                    cell.searches[method] = found
                    cell.machines |= {entry["machine"] for entry in chosen}
            if len(cell.rows) > 1:
                cells.append(cell)
    return cells


def spread_counts(found: Sequence[int]) -> list[int]:
    """Counts of all examples; two numbers say that all have the first, and how many they are.

    >>> spread_counts([63, 3])
    [63, 63, 63]
    """
    return [found[0]] * found[1] if len(found) == 2 else list(found)


def search_so_far(
    entries: Iterable[Mapping[str, Any]], pair: str, size: int | str, method: str, sides: Sequence[str] = SIDES
) -> Search:
    """How far the search for a learning rate is; its best is `None` while rates of the grid are missing."""
    scores = {
        entry["learning_rate"]: validation_score(entry, sides)
        for entry in entries
        if (entry["method"], entry.get("size"), entry.get("seed")) == (method, size, RATE_SEED)
    }
    return search(grid(PAIRS[pair], METHODS[method]), scores.get)


def row_of(
    method: str,
    is_interpolated: bool,
    entries: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Sequence[int]],
    key: str,
) -> Row:
    """A row from results of its runs, a seed each.

    Args:
        method: its key.
        is_interpolated: whether it is to be M_α's.
        entries: the results.
        counts: of every test example, by side (see `store.counts_of`).
        key: where the entries have the row's outcomes; where they have none there, those of M_θ are taken.
    """
    metric = PAIRS[entries[0]["pair"]].metric
    found = {
        side: [unpack(metric, (entry.get(key) or entry["test"])[side], counts[side]) for entry in entries]
        for side in SIDES
    }
    return Row(
        method,
        is_interpolated,
        tuple(entry.get("seed", 0) for entry in entries),
        {side: np.stack([one.numerators for one in each]) for side, each in found.items()},
        {side: np.stack([one.denominators for one in each]) for side, each in found.items()},
        entries[0].get("learning_rate", 0.0),
        tuple(entry["alpha"] for entry in entries if is_interpolated),
        tuple(entry["processor_seconds"] for entry in entries if "processor_seconds" in entry),
        {}
        if not all("curve" in entry for entry in entries)
        else {side: tuple(_validated(entry, side, is_interpolated) for entry in entries) for side in SIDES},
    )


def _validated(entry: Mapping[str, Any], side: str, is_interpolated: bool) -> float:
    """Return the metric of M_α or M_θ on a validation set."""
    return float(entry["curve"][side][f"{entry['alpha'] if is_interpolated else 1:g}"])
