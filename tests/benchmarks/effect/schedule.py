"""Which runs there are, and in which order, so that whatever has been done at any time makes a balanced table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effect.methods import BASE, METHODS, Method
from effect.pairs import FULL, PAIRS, SIDES, SIZES, Pair
from effect.training import Run
from hf_interp.files import read_json
from hf_interp.results import less_is_better

FIRST_SIZE = 300
"""The number of domain examples that comes first, with all methods."""
RATE_SEEDS = (0,)
"""Seeds with which learning rates are chosen, for every pair, number of domain examples and method."""
SEEDS = (0, 1, 2, 3, 4)
OTHER_SIZES = tuple(size for size in SIZES if size != FIRST_SIZE)
PHASES: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int | str, ...], tuple[int, ...]], ...] = (
    ((1,), (1,), (FIRST_SIZE,), (0, 1, 2)),
    ((2,), (1,), (FIRST_SIZE,), (0, 1, 2)),
    ((1,), (1,), OTHER_SIZES, (0, 1, 2)),
    ((1,), (2,), (FIRST_SIZE,), (0, 1, 2)),
    ((1, 2), (1,), (FIRST_SIZE,), (3, 4)),
    ((2,), (2,), (FIRST_SIZE,), (0, 1, 2)),
    ((1,), (2,), OTHER_SIZES, (0, 1, 2)),
    ((2,), (1, 2), OTHER_SIZES, (0, 1, 2)),
    ((1, 2), (2,), (FIRST_SIZE,), (3, 4)),
    ((1, 2), (1, 2), OTHER_SIZES, (3, 4)),
    ((1, 2), (3,), SIZES, SEEDS),
    ((3,), (1, 2, 3), SIZES, SEEDS),
)
"""Tiers of methods, groups of pairs, sizes and seeds, one phase after the other."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run to come. Without a learning rate it waits until that has been chosen."""

    pair: str
    size: int | str
    method: str
    seed: int
    learning_rate: float | None = None


def plan(
    pairs: Sequence[str], methods: Sequence[str], sizes: Sequence[int | str], seeds: Sequence[int]
) -> Iterator[Planned]:
    """All runs in order; those that choose the learning rates are among them, whatever the seeds are.

    Within a phase and a size seed 0 comes first, of every method on every pair, where learning rates are chosen at
    every one of them, then the other seeds.
    """
    for tiers, groups, phase_sizes, phase_seeds in PHASES:
        chosen_pairs = [PAIRS[pair] for pair in pairs if PAIRS[pair].group in groups]
        chosen_methods = [METHODS[method] for method in methods if METHODS[method].tier in tiers]
        if not chosen_methods:
            continue
        yield from (Planned(pair=pair.name, size=FULL, method=BASE, seed=0, learning_rate=0.0) for pair in chosen_pairs)
        for size in (size for size in phase_sizes if size in sizes):
            having_size = [pair for pair in chosen_pairs if size in pair.sizes]
            if set(RATE_SEEDS) <= set(phase_seeds):
                yield from _search_rates(having_size, chosen_methods, size)
            for seed in (seed for seed in phase_seeds if seed in seeds and seed not in RATE_SEEDS):
                for method in chosen_methods:
                    for pair in having_size:
                        yield Planned(pair=pair.name, size=size, method=method.key, seed=seed)


def _search_rates(pairs: Sequence[Pair], methods: Sequence[Method], size: int | str) -> Iterator[Planned]:
    for seed in RATE_SEEDS:
        for method in methods:
            for place in range(max(len(pair.learning_rates) for pair in pairs) if pairs else 0):
                for pair in pairs:
                    if place < len(pair.learning_rates):
                        rate = grid(pair, method)[place]
                        yield Planned(pair=pair.name, size=size, method=method.key, seed=seed, learning_rate=rate)


def grid(pair: Pair, method: Method) -> list[float]:
    """The learning rates among which one is chosen."""
    return [float(f"{rate * method.rate_factor:g}") for rate in pair.learning_rates]


def settle(planned: Planned, results: Path) -> Run | None:
    """The run with its learning rate; `None` while that cannot be chosen yet."""
    rate = planned.learning_rate
    if rate is None:
        rate = chosen_rate(planned.pair, planned.size, planned.method, results)
    if rate is None:
        return None
    return Run(pair=planned.pair, size=planned.size, method=planned.method, learning_rate=rate, seed=planned.seed)


def chosen_rate(pair: str, size: int | str, method: str, results: Path) -> float | None:
    """The learning rate that validation chooses; `None` while runs are missing."""
    rates = grid(PAIRS[pair], METHODS[method])
    scores: dict[tuple[float, int], float] = {}
    for rate in rates:
        for seed in RATE_SEEDS:
            found = read_json(Run(pair=pair, size=size, method=method, learning_rate=rate, seed=seed).path(results))
            if found is None:
                return None
            scores[rate, seed] = validation_score(found)
    return best_rate(rates, scores, RATE_SEEDS)


def validation_score(entry: Mapping[str, Any], sides: Sequence[str] = SIDES) -> float:
    """The mean over sides on validation, turned so that more is better."""
    sign = -1 if less_is_better(PAIRS[entry["pair"]].metric) else 1
    return sign * sum(entry["validation"][side] for side in sides) / len(sides)


def best_rate(rates: Sequence[float], scores: Mapping[tuple[float, int], float], seeds: Sequence[int]) -> float | None:
    """The rate with the best mean score over those seeds that have all rates, of equal ones the lowest.

    Returns:
        the rate; `None` if no seed has all rates.

    >>> best_rate([0.1, 0.2, 0.3], {(0.1, 0): 0.5, (0.2, 0): 0.7, (0.3, 0): 0.7, (0.3, 1): 0.9}, [0, 1])
    0.2
    """
    whole = [seed for seed in seeds if all((rate, seed) in scores for rate in rates)]
    if not whole:
        return None
    return max(rates, key=lambda rate: (sum(scores[rate, seed] for seed in whole), -rate))


def load(results: Path) -> dict[str, list[dict[str, Any]]]:
    """All results that there are, by pair."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*/*.json")):
        entry: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(entry["pair"], []).append(dict(entry))
    return found
