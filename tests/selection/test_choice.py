"""The choice of α: objectives, one standard error, intervals, reasons."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_interp.selection import choice as choices
from hf_interp.selection.choice import OBJECTIVES, AlphaSearch, Choice

ALPHAS = [0.0, 0.5, 1.0]
DOMAIN = [0.5, 0.8, 0.9]
GENERAL = [0.9, 0.88, 0.6]
METRICS = st.lists(st.integers(0, 5), min_size=4, max_size=4)
FloatArray = npt.NDArray[np.float64]


def choose_alpha(alphas: Any, domain: Any, general: Any, **settings: Any) -> Choice:
    """A choice with settings of `choose_alpha` and of its search, by default without a preference for M_θ."""
    names = AlphaSearch.__dataclass_fields__.keys() - {"metric", "greater_is_better"}
    search = AlphaSearch(**{"prefer_trained": False} | {name: settings.pop(name) for name in names & settings.keys()})
    return choices.choose_alpha(alphas, domain, general, search, **settings)


def units(metrics: list[float], noise: list[float], num_units: int = 4) -> FloatArray:
    """Units with these means; with noise n the standard error of the difference from noise 0 is n."""
    signs = np.resize([1.0, -1.0], num_units)
    signs *= math.sqrt(num_units) / signs.std(ddof=1)
    return np.array(metrics)[:, None] + np.array(noise)[:, None] * signs


def correct(accuracies: list[float], num_units: int, seed: int = 0) -> FloatArray:
    """Whether examples are answered, the easy ones at all α."""
    hardness = np.random.default_rng(seed).random(num_units)
    return (hardness < np.array(accuracies)[:, None]).astype(np.float64)


@pytest.mark.parametrize(
    ("settings", "alpha", "values"),
    [
        ({"objective": "domain"}, 1.0, (0.5, 0.8, 0.9)),
        ({"objective": "constrained", "max_forgetting": 0.02}, 0.5, (0.5, 0.8, -math.inf)),
        ({"objective": "constrained", "max_forgetting": 0.0199}, 0.0, (0.5, -math.inf, -math.inf)),
        ({"objective": "constrained", "max_forgetting": 0.3}, 1.0, (0.5, 0.8, 0.9)),
        ({"objective": "constrained", "max_forgetting": 0}, 0.0, (0.5, -math.inf, -math.inf)),
        ({"objective": "mean"}, 0.5, (0.7, 0.84, 0.75)),
        ({"objective": "mean", "domain_weight": 0.0}, 0.0, (0.9, 0.88, 0.6)),
        ({"objective": "mean", "domain_weight": 0.75}, 1.0, (0.6, 0.82, 0.825)),
        ({"objective": "harmonic"}, 0.5, (0.9 / 1.4, 1.408 / 1.68, 1.08 / 1.5)),
        ({"objective": "harmonic", "domain_weight": 1.0}, 1.0, (0.5, 0.8, 0.9)),
        ({"objective": "knee"}, 0.5, (0.0, (0.75 + 0.28 / 0.3 - 1) / math.sqrt(2), 0.0)),
    ],
)
def test_objectives(settings: dict[str, Any], alpha: float, values: tuple[float, ...]) -> None:
    choice = choose_alpha(ALPHAS, DOMAIN, GENERAL, **settings)
    assert (choice.alpha, choice.best_alpha) == (alpha, alpha)
    assert choice.objective_values == pytest.approx(values)
    assert (choice.std_errors, choice.confidence_interval) == (None, None)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_alphas_does_not_matter(objective: str) -> None:
    order = [2, 0, 1]
    forward = choose_alpha(ALPHAS, DOMAIN, GENERAL, objective=objective)
    turned = choose_alpha(*(np.array(one)[order] for one in (ALPHAS, DOMAIN, GENERAL)), objective=objective)
    assert (turned.alpha, turned.reason) == (forward.alpha, forward.reason)
    assert turned.objective_values == tuple(forward.objective_values[index] for index in order)


@pytest.mark.parametrize("objective", [one for one in OBJECTIVES if one != "harmonic"])
def test_a_metric_of_which_less_is_better_is_turned(objective: str) -> None:
    settings: dict[str, Any] = {"objective": objective, "max_forgetting": 0.02}
    expected = choose_alpha(ALPHAS, DOMAIN, GENERAL, **settings)
    choice = choose_alpha(ALPHAS, -np.array(DOMAIN), -np.array(GENERAL), greater_is_better=False, **settings)
    assert (choice.alpha, choice.objective_values) == (expected.alpha, expected.objective_values)


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [([0.0, 0.5, 1.0], 0.0), ([1.0, 0.5, 0.25], 0.25), ([-0.5, 0.25, 1.0], 0.25), ([-0.5, 0.5, 1.0], -0.5)],
)
def test_of_equals_the_one_nearest_to_the_base_is_taken(alphas: list[float], expected: float) -> None:
    assert choose_alpha(alphas, [0.3, 0.1 + 0.2, 0.3], [1, 1, 1], objective="domain").alpha == expected


def test_a_loss_that_is_exactly_allowed_is_allowed_in_floats() -> None:
    assert 0.9 - 0.88 > 0.02  # by rounding alone
    for bound, alpha in ((0.02, 1.0), (0.02 - 1e-6, 0.0)):
        choice = choose_alpha([0.0, 1.0], [0.5, 0.6], [0.9, 0.88], objective="constrained", max_forgetting=bound)
        assert choice.alpha == alpha


@pytest.mark.parametrize(("objective", "expected"), [("domain", 0.5), ("constrained", 0.5), ("mean", 0.5)])
def test_a_general_metric_that_rises_is_no_loss(objective: str, expected: float) -> None:
    choice = choose_alpha(ALPHAS, [0.5, 0.9, 0.8], [0.6, 0.7, 0.65], objective=objective, max_forgetting=0)
    assert choice.alpha == expected


@pytest.mark.parametrize(
    ("domain", "general", "alpha"),
    [([0.5, 0.8, 0.9], [0.7, 0.7, 0.7], 1.0), ([0.5, 0.5, 0.5], GENERAL, 0.0), ([0.5, 0.51, 0.9], [0.9, 0.61, 0.6], 1)],
)
def test_without_a_knee_the_best_domain_metric_decides(domain: list[float], general: list[float], alpha: float) -> None:
    choice = choose_alpha(ALPHAS, domain, general, objective="knee")
    assert (choice.alpha, choice.objective_values) == (alpha, tuple(domain))
    assert choice.reason.endswith("and is taken because the curve has no knee.")


@pytest.mark.parametrize(("noise", "expected"), [(0.099, 1.0), (0.1, 0.5), (0.101, 0.5)])
def test_one_standard_error(noise: float, expected: float) -> None:
    domain = units(DOMAIN, [0.0, noise, 0.0])
    choice = choose_alpha(ALPHAS, domain, [1.0] * 3, objective="domain")
    assert (choice.alpha, choice.best_alpha) == (expected, 1.0)
    assert choice.std_errors == pytest.approx((0.0, noise, 0.0))
    assert choose_alpha(ALPHAS, domain, [1.0] * 3, objective="domain", one_standard_error=False).alpha == 1.0


def test_what_all_alphas_share_is_no_error() -> None:
    shared = np.array([5.0, -3.0, 8.0, 0.5])
    choice = choose_alpha(ALPHAS, units(DOMAIN, [0.0, 0.05, 0.0]) + shared, [1.0] * 3, objective="domain")
    assert choice.std_errors == pytest.approx((0.0, 0.05, 0.0))


def test_one_standard_error_is_counted_among_the_feasible() -> None:
    domain = units([0.5, 0.7, 0.75, 0.9], [0.0, 0.06, 0.0, 0.0])
    general = [0.9, 0.8, 0.9, 0.2]
    for bound, expected in ((0.05, (0.75, 0.75)), (0.15, (0.25, 0.75)), (0.8, (1.0, 1.0))):
        choice = choose_alpha([0.0, 0.25, 0.75, 1.0], domain, general, objective="constrained", max_forgetting=bound)
        assert (choice.alpha, choice.best_alpha) == expected


@pytest.mark.parametrize(
    ("weight", "expected"), [(1.0, (0.03, 0.0)), (0.0, (0.0, 0.08)), (0.5, (0.015, 0.04)), (0.25, (0.0075, 0.06))]
)
def test_variances_of_the_two_datasets_add(weight: float, expected: tuple[float, float]) -> None:
    domain, general = units(DOMAIN, [0.03, 0.0, 0.0]), units(GENERAL, [0.08, 0.0, 0.0], num_units=6)
    choice = choose_alpha([0.0, 0.5, 1.0], domain, general, objective="mean", domain_weight=weight)
    if choice.best_alpha == 0:  # then all others differ from it by its noise
        assert choice.std_errors == pytest.approx((0.0, math.hypot(*expected), math.hypot(*expected)))
    else:
        assert choice.std_errors == pytest.approx((math.hypot(*expected), 0.0, 0.0))


@pytest.mark.parametrize("weight", [0.3, 0.5])
def test_the_delta_method_agrees_with_resampling(weight: float) -> None:
    generator = np.random.default_rng(0)
    domain, general = correct([0.3, 0.6, 0.8], 500), correct([0.9, 0.8, 0.4], 300, seed=1)
    choice = choose_alpha(ALPHAS, domain, general, objective="harmonic", domain_weight=weight)
    means = [choices._resampled_means(one, 4000, generator) for one in (domain, general)]
    values = 1 / (weight / means[0] + (1 - weight) / means[1])
    differences = values - values[:, [ALPHAS.index(choice.best_alpha)]]
    assert choice.std_errors == pytest.approx(tuple(differences.std(axis=0)), rel=0.1)


def test_the_harmonic_mean_is_0_where_a_metric_is() -> None:
    domain, general = correct([0.0, 0.5, 1.0], 50), correct([1.0, 0.5, 0.0], 50)
    choice = choose_alpha(ALPHAS, domain, general, objective="harmonic")
    assert (choice.objective_values[0], choice.objective_values[2]) == (0.0, 0.0)
    assert choice.alpha == 0.5
    assert np.isfinite(choice.std_errors or [math.nan]).all()
    assert choose_alpha([0.0, 1.0], np.zeros((2, 3)), np.zeros((2, 3)), objective="harmonic").alpha == 0.0


@pytest.mark.parametrize(
    ("objective", "domain_known", "general_known", "rule", "interval"),
    [
        ("domain", True, False, True, True),
        ("domain", False, True, False, False),
        ("constrained", True, False, True, False),
        ("constrained", False, True, False, False),
        ("mean", True, False, False, False),
        ("mean", True, True, True, True),
        ("harmonic", False, True, False, False),
        ("knee", True, True, False, True),
        ("knee", True, False, False, False),
    ],
)
def test_without_spread_there_is_neither_rule_nor_interval(
    objective: str, domain_known: bool, general_known: bool, rule: bool, interval: bool
) -> None:
    domain = correct(DOMAIN, 50) if domain_known else DOMAIN
    general = correct(GENERAL, 40, seed=1) if general_known else GENERAL
    choice = choose_alpha(ALPHAS, domain, general, objective=objective, max_forgetting=0.1)
    assert (choice.std_errors is not None, choice.confidence_interval is not None) == (rule, interval)


def test_an_interval_holds_evaluated_alphas_and_repeats() -> None:
    alphas = [0.0, 0.3, 0.6, 0.7, 1.0]
    domain = correct([0.5, 0.8, 0.83, 0.835, 0.8], 200)

    def choose(**settings: Any) -> Choice:
        return choose_alpha(alphas, domain, [1.0] * 5, objective="domain", **settings)

    interval = choose().confidence_interval
    assert interval is not None
    assert set(interval) <= set(alphas)
    assert interval[0] <= choose().best_alpha <= interval[1]
    assert choose() == choose(seed=0)
    assert choose(num_resamples=0).confidence_interval is None
    assert choose(one_standard_error=False).confidence_interval == interval


def test_resampled_means_are_those_of_drawn_units(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(12.0).reshape(2, 6) ** 2
    whole = choices._resampled_means(values, 50, np.random.default_rng(3))
    draws = np.random.default_rng(3).integers(6, size=(50, 6))
    assert whole == pytest.approx(values[:, draws].mean(axis=2).T)
    monkeypatch.setattr(choices, "CHUNK", 6 * 7)
    assert choices._resampled_means(values, 50, np.random.default_rng(3)).shape == (50, 2)
    monkeypatch.setattr(choices, "CHUNK", 1)
    assert choices._resampled_means(values, 3, np.random.default_rng(3)).shape == (3, 2)


GRID = np.linspace(0, 1, 11)
SHAPES = {  # metrics of the domain and of the general side over α
    "peaked": (0.9 - 0.5 * (GRID - 0.72) ** 2, 0.85 - 0.3 * GRID**2),
    "level": (0.9 - 0.02 * (GRID - 0.7) ** 2, 0.85 - 0.3 * GRID**2),
    "saturating": (0.5 + 0.4 * (1 - np.exp(-6 * GRID)), 0.9 - 0.3 * GRID**3),
    "straight": (0.8 + 0.01 * GRID, 0.8 - 0.011 * GRID),
    "step": (np.where(GRID < 0.3, 0.6, 0.85 + 0.001 * GRID), 0.9 - 0.05 * GRID),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("kind", "num_units"), [("loss", 30), ("loss", 250), ("answers", 30), ("answers", 100)])
def test_intervals_cover_the_true_best_alpha(shape: str, objective: str, kind: str, num_units: int) -> None:
    sides = SHAPES[shape]
    settings: dict[str, Any] = {"objective": objective, "max_forgetting": 0.06}
    truth = choose_alpha(GRID, *sides, **settings).best_alpha
    generator = np.random.default_rng(0)
    noise = 0.3 * generator.normal(size=200_000) + generator.random(200_000)
    borders = [np.quantile(noise, side) for side in sides]  # so many are answered at each α
    covered = 0
    for seed in range(50):
        own = 0.1 * generator.normal(size=(2, 11, num_units))
        drawn = [
            side[:, None] + 0.3 * generator.normal(size=num_units) + one for side, one in zip(sides, own, strict=True)
        ]
        if kind == "answers":
            hardness = generator.random((2, 1, num_units)) + 3 * own
            drawn = [(each < border[:, None]).astype(float) for each, border in zip(hardness, borders, strict=True)]
        interval = choose_alpha(GRID, *drawn, num_resamples=200, seed=seed, **settings).confidence_interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 45


def test_an_interval_narrows_with_the_examples() -> None:
    widths = []
    for size in (100, 1000, 10_000):
        noise = 0.1 * np.random.default_rng(0).normal(size=(11, size))
        interval = choose_alpha(GRID, SHAPES["peaked"][0][:, None] + noise, [1.0] * 11, objective="domain")
        assert interval.confidence_interval is not None
        widths.append(interval.confidence_interval[1] - interval.confidence_interval[0])
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] <= 0.2


# The trained model, where nothing speaks against it.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_trained_model_is_taken_where_few_examples_do_not_exclude_it(objective: str) -> None:
    domain, general = correct([0.8, 0.82, 0.8], 30), correct([0.8, 0.8, 0.79], 30, seed=1)
    settings: dict[str, Any] = {"objective": objective, "max_forgetting": 0.2}
    plain = choose_alpha(ALPHAS, domain, general, **settings)
    choice = choose_alpha(
        ALPHAS, domain, general, prefer_trained=True, num_examples={"domain": 30, "general": 30}, **settings
    )
    assert choice.confidence_interval == plain.confidence_interval == (0.0, 1.0)
    assert (choice.alpha, choice.best_alpha) == (1.0, plain.best_alpha)
    assert plain.alpha < 1
    best = choose_alpha(ALPHAS, domain, general, one_standard_error=False, **settings)
    assert choice.reason == (
        "α = 1 is taken, because 30 domain and 30 general examples do not tell M_θ from the best, whose α has the 95% "
        f"interval 0 to 1: {best.reason}"
    )


def test_the_trained_model_is_not_taken_where_it_is_excluded_or_breaks_the_constraint() -> None:
    domain, general = correct([0.5, 0.9, 0.5], 400), correct([0.9, 0.9, 0.89], 400, seed=1)
    assert choose_alpha(ALPHAS, domain, general, objective="domain", prefer_trained=True).alpha == 0.5
    few = correct([0.9, 0.9, 0.8], 20, seed=1)
    settings: dict[str, Any] = {"objective": "constrained", "max_forgetting": 0.0, "prefer_trained": True}
    choice = choose_alpha(ALPHAS, domain[:, :20], few, **settings)
    assert few[2].mean() < few[0].mean()
    assert choice.alpha != 1
    assert choose_alpha(ALPHAS, DOMAIN, GENERAL, objective="mean", prefer_trained=True).alpha == 0.5  # no spread


def test_the_trained_model_that_is_the_best_has_its_plain_reason() -> None:
    domain = correct([0.1, 0.5, 0.9], 200)
    choice = choose_alpha(ALPHAS, domain, [1, 1, 1], objective="domain", prefer_trained=True, metric="accuracy")
    assert (choice.alpha, choice.reason) == (1.0, f"α = 1 has the best domain accuracy ({domain[2].mean():.4g}).")


def test_the_trained_model_that_is_the_best_is_left_for_no_standard_error() -> None:
    domain = correct([0.5, 0.5, 0.6], 16)
    choice = choose_alpha(ALPHAS, domain, [1, 1, 1], objective="domain", prefer_trained=True, metric="accuracy")
    assert choice.confidence_interval == (0.0, 1.0)
    assert (choice.alpha, choice.reason) == (1.0, f"α = 1 has the best domain accuracy ({domain[2].mean():.4g}).")
    assert choose_alpha(ALPHAS, domain, [1, 1, 1], objective="domain").alpha == 0.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"objective": "domain"}, "α = 1 has the best domain accuracy (0.9)."),
        (
            {"objective": "constrained", "max_forgetting": 0.02},
            "α = 0.5 has the best domain accuracy (0.8) of the 2 α whose general accuracy falls by at most 0.02 from "
            "0.9 at α = 0.",
        ),
        (
            {"objective": "constrained", "max_forgetting": 0.01},
            "α = 0 is the only α whose general accuracy falls by at most 0.01 from 0.9 at α = 0.",
        ),
        (
            {"objective": "mean", "domain_weight": 0.6},
            "α = 0.5 has the best mean of domain and general accuracy at domain weight 0.6 (0.832).",
        ),
        (
            {"objective": "harmonic"},
            "α = 0.5 has the best harmonic mean of domain and general accuracy at domain weight 0.5 (0.8381).",
        ),
        (
            {"objective": "knee"},
            "α = 0.5 is the knee of the curve: its point (domain accuracy 0.8, general accuracy 0.88) lies farthest "
            "from the chord between the ends.",
        ),
    ],
)
def test_the_reason_is_one_sentence_with_the_numbers(settings: dict[str, Any], reason: str) -> None:
    assert choose_alpha(ALPHAS, DOMAIN, GENERAL, metric="accuracy", **settings).reason == reason


@pytest.mark.parametrize(("alphas", "first"), [([0.0, 0.6, 0.7], "smallest α"), ([-1.0, 0.6, 0.7], "α nearest to 0")])
def test_the_reason_of_one_standard_error(alphas: list[float], first: str) -> None:
    domain = units([0.5, 0.912, 0.914], [0.0, 0.004, 0.0])
    assert choose_alpha(alphas, domain, [1, 1, 1], objective="domain", metric="accuracy").reason == (
        f"α = 0.6 is the {first} whose domain accuracy (0.912) lies within one standard error (0.004) of the best "
        "(0.914 at α = 0.7)."
    )


def test_reasons_give_losses_as_they_are() -> None:
    settings: dict[str, Any] = {"greater_is_better": False, "metric": "loss"}
    losses = ([2.0, 1.5, 1.75], [1.0, 1.25, 3.0])
    reason = choose_alpha(ALPHAS, *losses, objective="mean", **settings).reason
    assert reason == "α = 0.5 has the best mean of domain and general loss at domain weight 0.5 (1.375)."
    reason = choose_alpha(ALPHAS, *losses, objective="constrained", max_forgetting=0.25, **settings).reason
    assert reason == (
        "α = 0.5 has the best domain loss (1.5) of the 2 α whose general loss rises by at most 0.25 from 1 at α = 0."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "means"}, r"`objective` must be one of domain, .*, got 'means'\. Did you mean 'mean'\?"),
        ({"max_forgetting": -0.1}, r"`max_forgetting` must be at least 0 and finite, got -0\.1"),
        ({"max_forgetting": math.nan}, "`max_forgetting` must be at least 0 and finite, got nan"),
        ({"domain_weight": 1.1}, r"`domain_weight` must lie in \[0, 1\], got 1\.1"),
        ({"domain": [0.5, math.nan, 0.5]}, r"`domain` must hold finite numbers, got nan at α = 0\.5"),
        ({"general": [[1, 2], [1, 2], [1, math.nan]]}, "`general` must hold finite numbers, got nan at α = 1"),
        ({"general": [1.0]}, "`general` must hold one number or one row"),
        (
            {"objective": "constrained", "alphas": [0.1, 0.5, 1.0]},
            r"must hold 0 .*, got 0\.1, 0\.5, 1\. Evaluate M₀ too",
        ),
        ({"objective": "harmonic", "greater_is_better": False}, "`objective` must not be 'harmonic' where less"),
        (
            {"objective": "harmonic", "general": [0.5, -0.25, 0.5]},
            r"`general` must not be negative for the objective 'harmonic', got -0\.25 at α = 0\.5\. Take the objective",
        ),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"alphas": ALPHAS, "domain": DOMAIN, "general": GENERAL, "objective": "domain"}
    with pytest.raises(ValueError, match=message):
        choose_alpha(**arguments | settings)


@given(METRICS, METRICS, st.sampled_from(OBJECTIVES), st.integers(0, 5))
def test_a_choice_is_never_worse_than_what_it_promises(
    domain: list[int], general: list[int], objective: str, max_forgetting: int
) -> None:
    alphas = [0.0, 0.25, 0.5, 1.0]
    choice = choose_alpha(alphas, domain, general, objective=objective, max_forgetting=max_forgetting)
    chosen = alphas.index(choice.alpha)
    assert choice.objective_values[chosen] == pytest.approx(max(choice.objective_values))
    assert all(value < choice.objective_values[chosen] for value in choice.objective_values[:chosen])
    if objective == "constrained":
        assert general[0] - general[chosen] <= max_forgetting
