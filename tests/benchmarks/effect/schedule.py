"""Which runs there are, in which order, and the search for the learning rate of each."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effect.methods import BASE, METHODS, Method
from effect.pairs import FULL, PAIRS, SIDES, SIZES, Pair
from effect.store import Entry, Key
from effect.training import Run
from hf_interp.reporting.results import less_is_better

FIRST_SIZE = 300
"""The number of domain examples that comes first, with all methods."""
RATE_SEED = 0
"""The seed with which learning rates are chosen, for every pair, number of domain examples and method."""
MOST_BEYOND = 2
"""How often at most a grid goes on beyond an end, while the best of its rates lies there."""
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Planned:
    """A run to come. Without a learning rate it waits until that has been chosen by the validation sets of `sides`;
    with the seed that chooses it stands for the rates beyond the grid."""

    pair: str
    size: int | str
    method: str
    seed: int
    learning_rate: float | None = None
    sides: tuple[str, ...] = SIDES


def plan(
    pairs: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int | str],
    seeds: Sequence[int],
    sides: tuple[str, ...] = SIDES,
) -> Iterator[Planned]:
    """All runs in order, size by size; those that choose the learning rates are among them, whatever the seeds are.

    Within a size seed 0 comes first, of every method on every pair, where learning rates are chosen at every one of
    them, then the other seeds.
    """
    pairs = [pair for pair in pairs if not PAIRS[pair].is_closed]
    yield from (Planned(pair, FULL, BASE, 0, 0.0) for pair in pairs)
    for size in (size for size in SIZES if size in sizes):
        having_size = [PAIRS[pair] for pair in pairs if size in PAIRS[pair].sizes]
        chosen = [METHODS[method] for method in methods]
        for seed in (RATE_SEED, *(seed for seed in seeds if seed != RATE_SEED)):
            for method in chosen:
                for pair in having_size:
                    for rate in (*(grid(pair, method) if seed == RATE_SEED else ()), None):
                        yield Planned(pair.name, size, method.key, seed, rate, sides)


def grid(pair: Pair, method: Method) -> list[float]:
    """The learning rates among which one is chosen, before the grid goes on beyond an end."""
    return [float(f"{rate * method.rate_factor:g}") for rate in pair.learning_rates]


@dataclass(frozen=True)
class Search:
    """How far the search for a learning rate is.

    Args:
        tried: the rates so far, rising.
        best: of them; `None` while rates of the grid are missing.
        following: the rate to try next; `None` if the search is over.
    """

    tried: tuple[float, ...]
    best: float | None
    following: float | None


def search(rates: Sequence[float], score: Callable[[float], float | None]) -> Search:
    """Choose a learning rate: the best of a grid, which goes on beyond an end while the best rate lies there.

    Args:
        rates: the grid, rising. It goes on by the ratio of its last two rates at that end, `MOST_BEYOND` times at most.
        score: of a rate, more is better; `None` if it has not been tried. Of equal ones the lowest rate is the best.
    """
    scores: dict[float, float] = {}
    waiting = list(rates)
    while waiting:
        rate = waiting.pop(0)
        value = score(rate)
        if value is None:
            return Search(tuple(sorted(scores)), _best(scores) if set(rates) <= set(scores) else None, rate)
        scores[rate] = value
        if not waiting:
            waiting = _beyond(rates, scores)
    return Search(tuple(sorted(scores)), _best(scores), None)


def _best(scores: Mapping[float, float]) -> float:
    return max(scores, key=lambda rate: (scores[rate], -rate))


def _beyond(rates: Sequence[float], scores: Mapping[float, float]) -> list[float]:
    """The rate beyond that end of the rates tried which is the best of them, if there is to be one."""
    best = _best(scores)
    if len(rates) > 1 and best == min(scores):
        count, ratio = sum(rate < rates[0] for rate in scores), rates[0] / rates[1]
    elif len(rates) > 1 and best == max(scores):
        count, ratio = sum(rate > rates[-1] for rate in scores), rates[-1] / rates[-2]
    else:
        return []
    return [float(f"{best * ratio:.2g}")] if count < MOST_BEYOND else []


def settle(planned: Planned, done: Mapping[Key, Entry]) -> Run | None:
    """The run with its learning rate; `None` while that cannot be chosen yet."""
    rate = planned.learning_rate
    if rate is None:
        found = search_results(planned, done)
        is_search = planned.seed == RATE_SEED
        rate = found.best if found.following is None else found.following if is_search and found.best else None
    if rate is None:
        return None
    return Run(pair=planned.pair, size=planned.size, method=planned.method, learning_rate=rate, seed=planned.seed)


def search_results(planned: Planned, done: Mapping[Key, Entry]) -> Search:
    """Return how far the search for a run's learning rate is, from the runs that are done."""

    def score(rate: float) -> float | None:
        run = Run(pair=planned.pair, size=planned.size, method=planned.method, learning_rate=rate, seed=RATE_SEED)
        found = done.get(run.key)
        return None if found is None else validation_score(found, planned.sides)

    return search(grid(PAIRS[planned.pair], METHODS[planned.method]), score)


def validation_score(entry: Mapping[str, Any], sides: Sequence[str] = SIDES) -> float:
    """The mean over sides on validation, turned so that more is better; where training broke down, the least."""
    sign = -1 if less_is_better(PAIRS[entry["pair"]].metric) else 1
    mean = sum(entry["validation"][side] for side in sides) / len(sides)
    return sign * mean if math.isfinite(mean) else -math.inf
