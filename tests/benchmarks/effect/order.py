"""Does the order matter: mixtures that move, against the constant mixture that reads as many domain examples.

Two comparisons. At the learning rates that validation chose for each, as a user would have them; and at equal learning
rates, over all rates that both have run with: there the rate's choice, which is noisy, is taken out as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from effect.cells import spread_counts
from effect.methods import BASE
from effect.outcomes import unpack
from effect.pairs import PAIRS, SIDES
from hf_interp.reporting.results import less_is_better

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
