"""The law of mixtures: exact data give it back, and choices follow from it."""

import math
from typing import Any

import numpy as np
import pytest

from hf_interp.selection.mixing_law import (
    GRID,
    MeasuredLosses,
    MixingLaw,
    MixtureChoice,
    choose_mixture,
    curve_of,
    fit_curve,
    fit_mixing_law,
    lack_of_fit,
)

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]
FALLING = MixingLaw(offset=2.0, scale=1.0, rate=-3.0)
RISING = MixingLaw(offset=3.0, scale=0.25, rate=2.0)


@pytest.mark.parametrize(
    "law",
    [
        FALLING,
        RISING,
        MixingLaw(offset=1.0, scale=-0.5, rate=-4.0),
        MixingLaw(offset=-5.0, scale=7.0, rate=0.1),
        MixingLaw(offset=4.0, scale=2.0, rate=-12.0),
    ],
)
def test_exact_losses_give_their_law_back(law: MixingLaw) -> None:
    found = fit_mixing_law(ALPHAS, law(ALPHAS).tolist())
    assert found.rate == pytest.approx(law.rate, rel=1e-4)
    assert found.offset == pytest.approx(law.offset, rel=1e-3)
    assert found.scale == pytest.approx(law.scale, rel=1e-3)
    grid = np.linspace(0, 1, 11)
    assert np.allclose(found(grid), law(grid), atol=1e-7)


def test_a_straight_line_is_a_flat_law() -> None:
    found = fit_mixing_law(ALPHAS, [3.0, 2.75, 2.5, 2.25, 2.0])
    assert np.allclose(found([0.0, 0.1, 0.9, 1.0]), [3.0, 2.9, 2.1, 2.0], atol=2e-4)


def test_equal_losses_are_a_constant() -> None:
    found = fit_mixing_law(ALPHAS, [1.5] * 5)
    assert found([0.0, 0.3, 1.0]).tolist() == [1.5, 1.5, 1.5]


def test_of_several_runs_at_an_alpha_the_mean_counts() -> None:
    apart = fit_mixing_law([*ALPHAS, *ALPHAS], [*(FALLING(ALPHAS) + 0.1), *(FALLING(ALPHAS) - 0.1)])
    together = fit_mixing_law(ALPHAS, FALLING(ALPHAS).tolist())
    assert np.allclose(apart(ALPHAS), together(ALPHAS), atol=1e-6)


def test_what_no_law_goes_through_is_refused() -> None:
    with pytest.raises(ValueError, match=r"three or more different α, got \[0\.0, 1\.0\]\. Add some\."):
        fit_mixing_law([0.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"Losses must be finite, got \[1\.0, nan, 2\.0\]\. A run may have diverged"):
        fit_mixing_law([0.0, 0.5, 1.0], [1.0, math.nan, 2.0])


def choose(**settings: Any) -> MixtureChoice:
    losses = {"domain": FALLING(ALPHAS).tolist(), "general": RISING(ALPHAS).tolist()}
    base = {"domain": 4.0, "general": 3.4}
    return choose_mixture(ALPHAS, losses, base, num_resamples=20, **settings)


def test_the_domain_alone_takes_all_of_it() -> None:
    found = choose(objective="domain")
    assert found.alpha == 1.0
    assert found.interval == (1.0, 1.0)
    assert found.feasible


@pytest.mark.parametrize(("max_forgetting", "alpha"), [(0.0, 0.23), (0.25, 0.47), (10.0, 1.0)])
def test_a_constraint_takes_as_much_of_the_domain_as_it_allows(max_forgetting: float, alpha: float) -> None:
    found = choose(objective="constrained", max_forgetting=max_forgetting)
    assert found.alpha == pytest.approx(alpha)
    # 3.4 + δ = 3 + e^(2α)/4, rounded down to the grid
    assert alpha == pytest.approx(min(math.floor(math.log(4 * (0.4 + max_forgetting)) / 2 * 100) / 100, 1.0))
    assert found.predicted["general"] <= 3.4 + max_forgetting


@pytest.mark.parametrize(("max_forgetting", "alpha"), [(0.0, 0.0), (0.01, 0.01), (0.1, 0.16), (0.24, 0.33)])
def test_a_constraint_that_cannot_be_kept_counts_from_the_least_forgetting(max_forgetting: float, alpha: float) -> None:
    losses = {"domain": FALLING(ALPHAS).tolist(), "general": RISING(ALPHAS).tolist()}
    base = {"domain": 4.0, "general": 3.0}
    found = choose_mixture(ALPHAS, losses, base, max_forgetting=max_forgetting, num_resamples=5)
    # 3.25 + δ = 3 + e^(2α)/4, rounded down to the grid
    assert math.floor(math.log(4 * (0.25 + max_forgetting)) / 2 * 100) / 100 == alpha
    assert (found.alpha, found.feasible) == (alpha, False)
    assert f"above the limit of {3 + max_forgetting:.4f} as that of every α" in found.reason


def test_a_constraint_that_can_just_be_kept_is_kept() -> None:
    losses = {"domain": FALLING(ALPHAS).tolist(), "general": RISING(ALPHAS).tolist()}
    found = choose_mixture(ALPHAS, losses, {"domain": 4.0, "general": 3.0}, max_forgetting=0.2501, num_resamples=5)
    assert (found.alpha, found.feasible) == (0.0, True)


def test_a_mean_lies_where_the_slopes_meet() -> None:
    # -3 e^(-3α)·w + (1-w)·0.5 e^(2α) = 0
    for weight in (0.3, 0.5, 0.8):
        alpha = min(math.log(6 * weight / (1 - weight)) / 5, 1.0)
        assert choose(objective="mean", domain_weight=weight).alpha == pytest.approx(alpha, abs=0.0051)


def test_the_bootstrap_covers_the_truth_and_narrows_with_more_runs() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for repeats in (2, 20):
        alphas = ALPHAS * repeats
        losses = {
            "domain": (FALLING(alphas) + generator.normal(0, 0.03, len(alphas))).tolist(),
            "general": (RISING(alphas) + generator.normal(0, 0.03, len(alphas))).tolist(),
        }
        found = choose_mixture(alphas, losses, {"domain": 4.0, "general": 3.4}, objective="mean", num_resamples=100)
        truth = math.log(6) / 5
        assert found.interval[0] - 0.05 <= truth <= found.interval[1] + 0.05
        assert found.interval[0] <= found.alpha <= found.interval[1]
        low, high = found.bands["domain"]
        assert len(low) == len(high) == GRID
        widths.append(np.mean(np.subtract(high, low)))
    assert widths[1] < widths[0] / 1.5


def test_the_same_seed_resamples_the_same() -> None:
    assert choose(seed=3).to_dict() == choose(seed=3).to_dict()


def test_doubts_are_told() -> None:
    three = [0.0, 0.5, 1.0]
    losses = {"domain": [1.0, 1.2, 1.5], "general": [1.0, 1.1, 1.3]}
    found = choose_mixture(three, losses, {"domain": 1.0, "general": 1.0}, num_resamples=5)
    assert [warning.split(".")[0] for warning in found.warnings] == [
        "The law goes through every run, so that nothing is known of how sure it is",
        "The domain loss rises with the domain's share",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "knee"}, "`objective` must be one of domain, constrained, mean for a mixture, got 'knee'"),
        ({"objective": "maen"}, "Did you mean 'mean'"),
        ({"domain_weight": 1.5}, r"`domain_weight` must lie in \[0, 1\], got 1.5"),
        ({"max_forgetting": -0.1}, "`max_forgetting` must be at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(**settings)


def test_losses_that_turn_are_taken_as_measured() -> None:
    alphas = [*ALPHAS, *ALPHAS]
    domain = [1.07, 0.70, 0.67, 0.79, 1.33, 1.15, 0.77, 0.72, 0.80, 1.47]  # learned by heart at α = 1
    general = [0.13, 0.21, 0.33, 0.75, 2.34, 0.14, 0.22, 0.39, 0.74, 2.49]
    found = choose_mixture(
        alphas,
        {"domain": domain, "general": general},
        {"domain": 0.7, "general": 0.7},
        objective="domain",
        num_resamples=50,
    )
    assert found.curves["domain"] == MeasuredLosses(
        alphas=(0.0, 0.25, 0.5, 0.75, 1.0), means=pytest.approx((1.11, 0.735, 0.695, 0.795, 1.4))
    )
    assert isinstance(found.curves["general"], MixingLaw)
    assert found.alpha == 0.5
    assert found.interval[0] >= 0.25
    assert found.interval[1] <= 0.75
    assert found.predicted["domain"] == pytest.approx(0.695)
    assert found.warnings[0].startswith("The domain losses do not follow the law")
    assert "repeated too often" in found.warnings[-1]
    assert curve_of(found.to_dict()["curves"]["domain"]) == found.curves["domain"]
    assert curve_of(found.to_dict()["curves"]["general"]) == found.curves["general"]


def test_the_domain_alone_is_best_where_it_was_measured_so() -> None:
    domain = [1.1, 0.9, 0.8, 0.79, 0.8, 1.3, 0.86, 0.8, 0.78, 0.87]  # no more than seeds differ from a law
    losses = {"domain": domain, "general": [1.0] * 10}
    found = choose_mixture([*ALPHAS, *ALPHAS], losses, {"domain": 2.0, "general": 1.0}, objective="domain")
    assert isinstance(fit_curve([*ALPHAS, *ALPHAS], domain), MixingLaw)
    assert found.alpha == 0.75
    assert found.predicted["domain"] == pytest.approx(0.785)
    assert not any("do not follow the law" in warning for warning in found.warnings)
    mean = choose_mixture([*ALPHAS, *ALPHAS], losses, {"domain": 2.0, "general": 1.0}, objective="mean")
    assert mean.alpha == 1.0
    assert mean.curves["domain"] == fit_curve([*ALPHAS, *ALPHAS], domain)


def test_lack_of_fit_is_the_textbooks_test() -> None:
    law = MixingLaw(offset=0.0, scale=1.0, rate=1e-3)  # nearly 1 everywhere
    alphas, losses = [0.0, 0.0, 0.25, 0.25, 0.5, 0.75, 1.0], [0.9, 1.1, 0.8, 1.0, 1.2, 1.0, 1.0]
    # misfit of the means (2·0² + 2·0.1² + 0.2²)/(5 − 3) = 0.03, spread (2·0.1² + 2·0.1²)/(7 − 5) = 0.02
    found = lack_of_fit(alphas, losses, law)
    assert found == pytest.approx(0.4, abs=2e-3)  # P(F(2, 2) ≥ x) = 1/(1 + x)
    assert lack_of_fit(ALPHAS, losses[:5], law) is None  # no two runs share an α
    assert lack_of_fit([0.0, 0.0, 0.5, 1.0], losses[:4], law) is None  # three α, three parameters
    exact = FALLING([*ALPHAS, *ALPHAS]).tolist()
    assert lack_of_fit([*ALPHAS, *ALPHAS], exact, FALLING) == 1.0
    turned = [*exact[:2], exact[2] + 1.0, *exact[3:7], exact[7] + 1.0, *exact[8:]]
    assert lack_of_fit([*ALPHAS, *ALPHAS], turned, FALLING) == 0.0  # runs agree, and the law is off


def test_a_law_that_is_true_is_seldom_given_up() -> None:
    generator = np.random.default_rng(1)
    alphas = [*ALPHAS, *ALPHAS]
    kept = [fit_curve(alphas, (FALLING(alphas) + generator.normal(0, 0.05, 10)).tolist()) for _ in range(60)]
    assert sum(isinstance(curve, MixingLaw) for curve in kept) >= 52
