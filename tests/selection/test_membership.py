"""Membership inference from scores."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from hf_interp.selection.membership import RATES, attack

DRAW = np.random.default_rng(3)


def test_the_area_is_that_of_scikit_learn() -> None:
    members, others = np.round(DRAW.normal(0.5, 1, 300), 1), np.round(DRAW.normal(0, 1, 200), 1)  # with ties
    labels = [1] * 300 + [0] * 200
    found = attack(members, others)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(labels, [*members, *others]))


@pytest.mark.parametrize("size", [1000, 4321])
def test_true_positives_are_those_of_the_curve(size: int) -> None:
    members, others = DRAW.normal(1, 1, 700), DRAW.normal(0, 1, size)
    labels = [1] * 700 + [0] * size
    false, true, _ = roc_curve(labels, [*members, *others], drop_intermediate=False)
    for name, rate in RATES.items():
        assert attack(members, others)[name]["value"] == pytest.approx(true[false <= rate].max())


def test_equal_scores_tell_nothing() -> None:
    found = attack(np.zeros(100), np.zeros(150))
    assert found["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert all(found[name]["value"] == 0.0 for name in RATES)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of two normal variables one deviation apart the area is Φ(1/√2)."""
    kept = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        found = attack(draw.normal(1, 1, 200), draw.normal(0, 1, 200), seed)["auc"]
        kept += found["low"] <= 0.7602 <= found["high"]
    assert 17 <= kept <= 20
