"""How well the losses of a model tell the rows that it was trained on from others."""

import numpy as np

from hf_interp.selection.scoring import Units, wilson_interval

RATES = {"tpr_at_1_percent": 0.01, "tpr_at_0.1_percent": 0.001}
"""Rates of false positives at which the true positives are counted: what matters is who is found for sure."""
RESAMPLES = 500


def attack(members: Units, others: Units, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return how well scores, greater for members, tell these from others: AUC and true positive rates.

    The true positives at a rate of false positives are the members that score above all but that share of the others.
    Intervals are of 95%, by a bootstrap of the rows of both. Those of rates are at least as wide as Wilson's, because
    no resample finds a member where the sample has found none.

    Args:
        members: a score for each row that the model was trained on.
        others: the same of rows of the same kind that it was not trained on.
        seed: of the bootstrap.
    """
    draws = np.random.default_rng(seed)
    again = [_rates(draws.choice(members, len(members)), draws.choice(others, len(others))) for _ in range(RESAMPLES)]
    ends = np.quantile(again, (0.025, 0.975), axis=0).T.tolist()
    found = {}
    for name, value, (low, high) in zip(("auc", *RATES), _rates(members, others), ends, strict=True):
        least, most = wilson_interval(value, len(members)) if name in RATES else (low, high)
        found[name] = {"value": value, "low": min(low, least), "high": max(high, most)}
    return found


def _rates(members: Units, others: Units) -> list[float]:
    ranked = np.sort(others)
    below = (np.searchsorted(ranked, members, "left") + np.searchsorted(ranked, members, "right")) / 2
    cuts = [ranked[len(ranked) - 1 - int(rate * len(ranked))] for rate in RATES.values()]
    return [float(below.mean() / len(ranked)), *(float((members > cut).mean()) for cut in cuts)]
