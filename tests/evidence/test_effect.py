"""The comparison of methods: statistics, the order of runs, what is kept of a run, and runs from data to a table."""

import argparse
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effect import (
    cells,
    figures,
    methods,
    noise,
    pairs,
    run,
    schedule,
    side_weights,
    stats,
    summary,
    table,
    training,
)
from effect.stats import Interval
from effect.store import Entry, Outcomes, Store, counts_of, outcomes_of, pack, unpack
from matplotlib.figure import Figure
from transformers import EvalPrediction

from hf_interp.selection.scoring import Predictions
from hf_interp.tasks.parsing import parse_recipe

# Statistics.


def test_a_resample_is_the_mean_over_its_seeds_of_weighted_ratios() -> None:
    draws = stats.Resamples(np.array([[0, 0], [1, 0]]), np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))
    numerators = np.array([[1.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    denominators = np.array([[1.0, 2.0, 1.0], [1.0, 2.0, 2.0]])
    # first: seed 0 alone, (1 + 2) / (1 + 2); second: seed 1 is 12 / 6 and seed 0 is 0 / 6
    assert stats.resampled(numerators, denominators, draws).tolist() == [1.0, 1.0]


def test_a_resample_with_nothing_to_divide_by_is_zero() -> None:
    draws = stats.Resamples(np.array([[0]]), np.array([[2.0, 0.0]]))
    assert stats.resampled(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]), draws).tolist() == [0.0]


def test_draws_hold_as_many_seeds_and_examples_as_there_are() -> None:
    draws = stats.draw(3, 50, 200, np.random.default_rng(0))
    assert draws.seeds.shape == (200, 3)
    assert set(np.unique(draws.seeds)) == {0, 1, 2}
    assert draws.weights.shape == (200, 50)
    assert (draws.weights.sum(axis=1) == 50).all()
    assert draws.weights.mean(axis=0) == pytest.approx(np.ones(50), abs=0.3)


@pytest.mark.parametrize(("seeds", "examples"), [(0, 1), (1, 0)])
def test_nothing_cannot_be_resampled(seeds: int, examples: int) -> None:
    with pytest.raises(ValueError, match=f"needs a seed and an example, got {seeds} and {examples}"):
        stats.draw(seeds, examples, 1, np.random.default_rng(0))


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    hits = (np.arange(400) % 2).astype(float)[None]
    samples = stats.resampled(hits, np.ones_like(hits), stats.draw(1, 400, 4000, np.random.default_rng(1)))
    found = stats.interval(0.5, samples)
    half_width = 1.96 * 0.5 / 20
    assert (found.low, found.high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.005)


def test_few_seeds_are_stretched_by_students_quantile() -> None:
    ratios = np.array([0.5, 0.6, 0.7])
    numerators, draws = np.tile(ratios[:, None], 4), stats.draw(3, 4, 5, np.random.default_rng(0))
    plain = ratios[draws.seeds].mean(axis=1)
    stretch = math.sqrt(3 / 2) * 4.302653 / 1.959964
    found = stats.resampled(numerators, np.ones((3, 4)), draws, stats.seed_stretch(3))
    assert found == pytest.approx(0.6 + stretch * (plain - 0.6), rel=1e-6)


@pytest.mark.parametrize(("num_seeds", "deviation"), [(3, 0.02), (5, 0.02), (5, 0.04)])
def test_equal_methods_are_seldom_surely_unequal(num_seeds: int, deviation: float) -> None:
    generator = np.random.default_rng(0)
    whole, wrong = np.ones((num_seeds, 300)), 0
    for _ in range(100):
        draws = stats.draw(num_seeds, 300, 200, generator)
        easy = generator.random(300)
        runs = [
            (easy < 0.8 + deviation * generator.normal(size=(num_seeds, 1))).astype(float) for _ in ("ours", "others")
        ]
        stretch = stats.seed_stretch(num_seeds)
        ours, others = (stats.resampled(run, whole, draws, stretch) for run in runs)
        found = stats.interval(runs[0].mean() - runs[1].mean(), ours - others)
        wrong += found.low > 0 or found.high < 0
    assert wrong <= 6


def test_equal_values_share_their_rank() -> None:
    assert stats.ranks([3.0, 1.0, 3.0, 2.0, 3.0]) == [2.0, 5.0, 2.0, 4.0, 2.0]
    assert stats.ranks([7.0]) == [1.0]


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.5, 0.5)], 0.25),
        ([(0.5, 0.5), (0.5, 0.5)], 0.25),
        ([(1.0, 0.2), (0.2, 1.0)], 0.2 + 0.2 - 0.04),
        ([(1.0, 0.2), (0.2, 1.0), (0.1, 0.9)], 0.36),
        ([(1.0, 0.5), (1.0, 0.75)], 0.75),
        ([(1.0, 0.0), (0.0, 1.0), (-1.0, 5.0)], 0.0),
    ],
)
def test_the_hypervolume_counts_what_is_dominated_once(points: list[tuple[float, float]], area: float) -> None:
    assert stats.hypervolume(points, (0.0, 0.0)) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize(
    ("domain", "general", "verdict"),
    [
        ((0.01, 0.1), (-0.1, 0.1), "win"),
        ((0.0, 0.1), (-0.1, 0.0), "tie"),
        ((-0.1, -0.01), (-0.1, 0.1), "loss"),
        ((0.01, 0.1), (-0.1, -0.01), "trade"),
    ],
)
def test_a_win_is_sure_on_one_side_at_no_sure_cost(
    domain: tuple[float, float], general: tuple[float, float], verdict: str
) -> None:
    assert stats.judge({"domain": Interval(0.0, *domain), "general": Interval(0.0, *general)}) == verdict


# What is kept of a run.


@pytest.mark.parametrize(
    ("metric", "outcomes", "same"),
    [
        ("accuracy", Outcomes(np.array([1.0, 0, 0, 1, 1, 0, 1, 0, 1]), np.ones(9)), True),
        ("f1", Outcomes(np.array([2.0, 0.0, 4.0]), np.array([2.0, 3.0, 5.0])), True),
        ("loss", Outcomes(np.array([3.0, 8.0]), np.array([2.0, 4.0])), True),
        ("loss", Outcomes(np.array([4.0004]), np.array([1.0])), False),
    ],
)
def test_outcomes_come_out_as_they_went_in(metric: str, outcomes: Outcomes, same: bool) -> None:
    counts = counts_of(metric, {"domain": outcomes})["domain"]
    found = unpack(metric, pack(metric, outcomes), counts)
    assert found.denominators.tolist() == outcomes.denominators.tolist()
    assert (found.numerators.tolist() == outcomes.numerators.tolist()) is same
    assert found.value == pytest.approx(outcomes.value, abs=0.0005)


def predictions(logits: Any, labels: Any, losses: Any = (0.0,), counts: Any = (1.0,)) -> Predictions:
    return Predictions(np.array(losses), np.array(counts), EvalPrediction(np.array(logits), np.array(labels)))


def test_accuracy_is_the_share_of_hits() -> None:
    found = outcomes_of("accuracy", predictions([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]], [1, 1, 1]), None)
    assert found.numerators.tolist() == [1.0, 0.0, 1.0]
    assert found.value == 2 / 3


def test_the_loss_is_a_mean_over_tokens() -> None:
    found = outcomes_of("loss", predictions([], [], [2.0, 6.0], [1.0, 3.0]), None)
    assert found.value == 2.0


def test_f1_of_sentences_adds_up_to_that_of_the_package() -> None:
    from hf_interp.tasks.metrics import token_metrics

    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]
    labels = np.array([[-100, 1, 2, 0, -100], [-100, 3, 0, 1, 0], [-100, 0, 0, 0, -100]])
    chosen = np.array([[0, 1, 2, 0, 3], [0, 1, 0, 1, 0], [0, 3, 4, 0, 0]])
    found = outcomes_of("f1", predictions(np.eye(5)[chosen], labels), names)
    assert found.numerators.tolist() == [2.0, 2.0, 0.0]
    assert found.denominators.tolist() == [2.0, 4.0, 1.0]
    package = token_metrics(names)(EvalPrediction(np.eye(5)[chosen], labels))
    assert found.value == pytest.approx(package["f1"], abs=1e-12)


def test_a_larger_size_has_the_rows_of_a_smaller_one() -> None:
    import datasets

    dataset = datasets.Dataset.from_dict({"number": list(range(50))})
    small, large = (training.pick(dataset, size, seed=3)["number"] for size in (10, 30))
    assert len(small) == 10
    assert len(large) == 30
    assert set(small) < set(large)
    assert training.pick(dataset, 10, seed=4)["number"] != small
    assert len(training.pick(dataset, 50)) == len(training.pick(dataset, pairs.FULL)) == 50


# Methods.


@pytest.mark.parametrize("key", methods.METHODS)
def test_every_method_is_a_recipe(key: str) -> None:
    fields = methods.METHODS[key].recipe_fields(900, 100, 200)
    recipe = {"model_name_or_path": "x", "corpora": {"domain": {"path": "x"}}, "max_steps": 200, "use_cpu": True}
    _, args = parse_recipe({**recipe, "output_dir": "unused", **fields})
    assert 0 <= methods.mean_alpha(fields, 200) <= 1
    assert args.lr_scheduler_type.value in ("linear", "cosine", "warmup_stable_decay", "constant_with_warmup")


@pytest.mark.parametrize(("method", "control"), summary.CONTROLS.items())
def test_a_control_reads_as_many_domain_examples(method: str, control: str) -> None:
    found, wanted = (
        methods.mean_alpha(methods.METHODS[key].recipe_fields(900, 100, 200), 200) for key in (control, method)
    )
    assert found == pytest.approx(wanted, abs=1e-9)


def test_proportional_is_the_share_of_the_domain() -> None:
    assert methods.mean_alpha(methods.METHODS["proportional"].recipe_fields(900, 100, 200), 200) == pytest.approx(0.1)


# The order of the runs.


OPEN = [name for name, pair in pairs.PAIRS.items() if not pair.is_closed]


def all_runs(**chosen: Any) -> list[schedule.Planned]:
    given = {
        "pairs": list(pairs.PAIRS),
        "methods": list(methods.METHODS),
        "sizes": pairs.SIZES,
        "seeds": schedule.SEEDS,
    }
    return list(schedule.plan(**{**given, **chosen}))


def test_every_pair_method_and_size_gets_every_seed_once() -> None:
    found = all_runs()
    trained = [planned for planned in found if planned.method != methods.BASE]
    assert len(set(trained)) == len(trained)
    rows = len(methods.METHODS) * sum(len(pairs.PAIRS[name].sizes) for name in OPEN)
    assert {planned.pair for planned in found} == set(OPEN) == pairs.PAIRS.keys() - {"ner-finance", "ner-tweets"}
    at_chosen_rates = [planned for planned in trained if planned.learning_rate is None and planned.seed != 0]
    beyond_the_grid = [planned for planned in trained if planned.learning_rate is None and planned.seed == 0]
    assert len(at_chosen_rates) == rows * 4  # more seeds than that of the rates
    assert len(beyond_the_grid) == rows
    assert len(trained) - len(at_chosen_rates) - len(beyond_the_grid) == rows * 3
    assert all(planned.size in pairs.PAIRS[planned.pair].sizes for planned in trained)
    assert all(planned.seed == 0 for planned in trained if planned.learning_rate is not None)


def test_seed_0_of_all_methods_and_pairs_comes_before_seed_1() -> None:
    first = [planned for planned in all_runs() if planned.method != methods.BASE]
    count = len(OPEN) * len(methods.METHODS) * 4  # three rates and those beyond
    assert {(planned.seed, planned.size) for planned in first[:count]} == {(0, 300)}
    assert {planned.pair for planned in first[:count]} == set(OPEN)
    assert {planned.method for planned in first[:count]} == set(methods.METHODS)
    assert {planned.seed for planned in first[count : count + len(OPEN) * len(methods.METHODS)]} == {1}


def test_learning_rates_are_chosen_first_for_every_size_whatever_the_seeds() -> None:
    found = all_runs(pairs=["lm-law"], methods=["domain"], sizes=[100], seeds=[4])
    assert [(planned.size, planned.seed, planned.learning_rate) for planned in found if planned.method == "domain"] == [
        *((100, 0, rate) for rate in (1.5e-4, 5e-4, 1.5e-3)),
        (100, 0, None),
        (100, 4, None),
    ]


def searched(scores: dict[float, float]) -> tuple[tuple[float, ...], float | None, float | None]:
    found = schedule.search([0.1, 0.2, 0.4], scores.get)
    return found.tried, found.best, found.following


def test_a_grid_goes_on_beyond_the_end_at_which_its_best_rate_lies() -> None:
    assert searched({}) == ((), None, 0.1)
    assert searched({0.1: 1.0, 0.4: 2.0}) == ((0.1,), None, 0.2)
    inside = {0.1: 1.0, 0.2: 2.0, 0.4: 1.0}
    assert searched(inside) == ((0.1, 0.2, 0.4), 0.2, None)
    rising = {0.1: 1.0, 0.2: 2.0, 0.4: 3.0}
    assert searched(rising) == ((0.1, 0.2, 0.4), 0.4, 0.8)
    assert searched({**rising, 0.8: 2.5}) == ((0.1, 0.2, 0.4, 0.8), 0.4, None)
    assert searched({**rising, 0.8: 4.0}) == ((0.1, 0.2, 0.4, 0.8), 0.8, 1.6)
    assert searched({**rising, 0.8: 4.0, 1.6: 5.0}) == ((0.1, 0.2, 0.4, 0.8, 1.6), 1.6, None)  # twice at most
    falling = {0.1: 3.0, 0.2: 2.0, 0.4: 1.0}
    assert searched(falling) == ((0.1, 0.2, 0.4), 0.1, 0.05)
    assert searched({**falling, 0.05: 3.0}) == ((0.05, 0.1, 0.2, 0.4), 0.05, 0.025)  # the lowest of equal ones
    assert searched({**falling, 0.05: 2.5}) == ((0.05, 0.1, 0.2, 0.4), 0.1, None)


def test_a_rate_with_which_training_broke_down_is_never_the_best() -> None:
    entry = {"pair": "lm-law", "validation": {"domain": math.nan, "general": 3.0}}
    assert schedule.validation_score(entry) == -math.inf
    assert schedule.validation_score(entry, ["general"]) == -3.0


INTENTS = ["--pairs", "intent-banking", "--methods", "domain", "--sizes", "100"]


def results_flags(folder: Path) -> list[str]:
    return ["--results", str(folder / "effect.tsv")]


def write_scores(table: Path, scores: dict[float, tuple[float, float]], *, seed: int = 0) -> None:
    for rate, (domain, general) in scores.items():
        key = training.Run(pair="intent-banking", size=100, method="domain", learning_rate=rate, seed=seed)
        Store(table).add({**vars(key), "validation": {"domain": domain, "general": general}})


def test_a_search_goes_on_with_what_has_been_found(tmp_path: Path) -> None:
    queue = run.runs_to_do(run.parse([*results_flags(tmp_path), *INTENTS, "--seeds", "0", "1"]))
    assert [(found.method, found.learning_rate) for found in islice(queue, 4)] == [
        ("base", 0.0),
        ("domain", 2e-4),
        ("domain", 5e-4),
        ("domain", 1.2e-3),
    ]
    write_scores(tmp_path / "effect.tsv", {2e-4: (0.5, 0.5), 5e-4: (0.5, 0.25), 1.2e-3: (0.75, 0.0)})
    lower = next(queue)
    assert (lower.learning_rate, lower.seed) == (8e-5, 0)
    write_scores(tmp_path / "effect.tsv", {8e-5: (0.25, 0.5)})
    chosen = next(queue)
    assert (chosen.learning_rate, chosen.seed) == (2e-4, 1)
    write_scores(tmp_path / "effect.tsv", {2e-4: (0.5, 0.5)}, seed=1)
    assert list(queue) == []
    again = run.runs_to_do(run.parse([*results_flags(tmp_path), *INTENTS, "--seeds", "0", "1"]))
    assert [found.method for found in again] == ["base"]  # which was handed out, and has no results


def test_what_hangs_on_a_run_that_failed_is_passed_over(tmp_path: Path) -> None:
    queue = run.runs_to_do(run.parse([*results_flags(tmp_path), *INTENTS, "--seeds", "0", "1"]))
    assert [(found.method, found.learning_rate, found.seed) for found in queue] == [
        ("base", 0.0, 0),
        *(("domain", rate, 0) for rate in (2e-4, 5e-4, 1.2e-3)),
    ]


def test_a_rate_for_the_domain_is_chosen_by_its_validation_set_alone(tmp_path: Path) -> None:
    write_scores(tmp_path / "effect.tsv", {2e-4: (0.5, 0.5), 5e-4: (0.625, 0.25), 1.2e-3: (0.5, 0.0)})
    queue = run.runs_to_do(run.parse([*results_flags(tmp_path), *INTENTS, "--seeds", "1", "--sides", "domain"]))
    _, chosen = queue
    assert (chosen.learning_rate, chosen.seed) == (5e-4, 1)


# From runs to tables.


def fake_results(path: Path, pair: str) -> None:
    """Results as runs would write them: domain only learns and forgets, constant 0.5 learns and forgets nothing."""
    counts = {"domain": [1, 40], "general": [1, 40]}
    hits = {"base": (20, 30), "domain": (30, 20), "constant-0.5": (30, 30), "linear": (30, 30)}

    def packed(domain: int, general: int) -> dict[str, str]:
        values = {"domain": domain, "general": general}
        return {
            side: pack("accuracy", Outcomes((np.arange(40) < value).astype(float), np.ones(40)))
            for side, value in values.items()
        }

    base = {"pair": pair, "method": "base", "counts": counts, "machine": "M", "test": packed(*hits["base"])}
    entries: list[dict[str, Any]] = [base]
    for method in ("domain", "constant-0.5", "linear"):
        for rate in schedule.grid(pairs.PAIRS[pair], methods.METHODS[method]):
            for seed in (0, 1):
                key = training.Run(pair=pair, size=300, method=method, learning_rate=rate, seed=seed)
                found = {
                    **vars(key),
                    "processor_seconds": 10.0 if method == "domain" else 12.0,
                    "machine": "M",
                    "validation": {"domain": rate, "general": rate},
                    "alpha": 0.5,
                    "curve": {
                        side: {"0.5": 0.625, "1": value / 40}
                        for side, value in zip(("domain", "general"), hits[method], strict=True)
                    },
                    "test": packed(*hits[method]),
                    "test_interpolated": packed(25, 25) if method == "domain" else None,
                }
                entries.append(found)
    for entry in entries:
        Store(path).add(entry)


def test_tables_say_what_the_results_hold(tmp_path: Path) -> None:
    fake_results(tmp_path / "effect.tsv", "sentiment-finance")
    (cell,) = cells.cells_of(Store(tmp_path / "effect.tsv").load())
    row = cell.rows["domain", False]
    assert row.rate == 8e-4  # the best on validation
    assert row.seeds == (0, 1)
    assert (row.value("domain"), row.value("general")) == (0.75, 0.5)
    assert cell.rows["domain", True].value("general") == 0.625
    assert cell.rows["linear", True].value("general") == 0.75  # α is 1 where there is nothing else
    gain = cell.gain(cell.rows["constant-0.5", False], row, "general")
    assert gain is not None
    assert gain.value == 0.25
    assert 0 < gain.low < 0.25 < gain.high < 0.5
    by_title = {found.title: found for found in summary.summarise([cell])}
    assert by_title["constant 0.5"].verdicts["domain"] == {"win": 1, "trade": 0, "tie": 0, "loss": 0}
    assert by_title["constant 0.5"].verdicts["constant-0.5"] == {"win": 0, "trade": 0, "tie": 0, "loss": 0}
    assert by_title["domain only"].verdicts["constant-0.5"]["loss"] == 1
    assert by_title["M₀"].verdicts["domain"]["trade"] == 1
    assert by_title["constant 0.5"].volume == 1.0
    assert by_title["domain only"].volume == 0.0
    assert by_title["domain only + M_α"].volume == 0.25
    # M₀ has 50 hits, domain only 50, its M_α 50, the other four rows 60
    assert by_title["constant 0.5"].rank == (2.5, 3.0, 3.0)
    assert by_title["domain only"].rank == (6.0, 3.0, 7.0)


def row(method: str, domain: float, general: float) -> cells.Row:
    """Two seeds of four test examples with the same score."""
    values = {"domain": np.full((2, 4), domain), "general": np.full((2, 4), general)}
    return cells.Row(method, False, (0, 1), values, {side: np.ones((2, 4)) for side in values})


def test_less_loss_is_a_gain() -> None:
    gain = cells.Cell("lm-law", 300, {}).gain(row("linear", 1.0, 1.0), row("domain", 3.0, 3.0), "domain")
    assert gain == Interval(2.0, 2.0, 2.0)


def with_m_alpha(cell: cells.Cell, method: str, trained: Any, interpolated: Any, validation: Any) -> None:
    """Put both rows of a method into a cell.

    Args:
        trained, interpolated: the point (domain, general) of M_θ and of M_α on the test examples.
        validation: by seed, the points of both on validation.
    """
    for is_interpolated, point in ((False, trained), (True, interpolated)):
        own = row(method, *point)
        found = {
            side: tuple(seed[is_interpolated][place] for seed in validation)
            for place, side in enumerate(("domain", "general"))
        }
        cell.rows[method, is_interpolated] = replace(own, is_interpolated=is_interpolated, validation=found)


def test_a_trade_off_is_scored_by_what_validation_prefers_at_each_weight_and_seed() -> None:
    cell = cells.Cell("sentiment-finance", 300, {})
    # Seed 0: of M_θ .55 .65 .75 on validation at the three weights, of M_α .74 .70 .66. Seed 1 is level.
    with_m_alpha(cell, "linear", (0.9, 0.4), (0.6, 0.8), [((0.9, 0.4), (0.6, 0.8)), ((0.5, 0.5), (0.5, 0.5))])
    for method, point, validated in (
        ("constant-0.25", (0.5, 0.9), (0.5, 0.9)),  # .78 .70 .62
        ("constant-0.5", (0.7, 0.7), (0.6, 0.7)),  # .67 .65 .63
        ("constant-0.75", (0.6, 0.8), (0.8, 0.58)),  # .646 .69 .734
        ("domain", (0.9, 0.2), (0.95, 0.1)),  # .355 .525 .695
    ):
        with_m_alpha(cell, method, point, point, [(validated, validated)] * 2)
    rows = side_weights.run_of("linear", cell, (0, 1))
    assert [found.numerators["domain"][:, 0].tolist() for found in rows] == [[0.6, 0.9], [0.6, 0.9], [0.9, 0.9]]
    own = (0.3 * 0.75 + 0.7 * 0.6 + 0.5 * 0.75 + 0.5 * 0.6 + 0.7 * 0.9 + 0.3 * 0.4) / 3
    gain = side_weights.gain(cell, "linear", side_weights.REFERENCES["constant 0.5 + M_α"])
    assert gain is not None
    assert gain.value == pytest.approx(own - 0.7)
    assert side_weights.best_mixture(cell, (0, 1))[0].method == "constant-0.25"
    chosen = [found.method for found in side_weights.four_runs(cell, (0, 1))]
    assert chosen == ["constant-0.25", "constant-0.25", "constant-0.75"]


def test_order_is_compared_at_equal_rates_and_seeds(tmp_path: Path) -> None:
    for pair in ("sentiment-finance", "sentiment-airlines"):
        fake_results(tmp_path / "effect.tsv", pair)
    results = Store(tmp_path / "effect.tsv").load()
    found = summary.equal_rate_gains(results, "linear", "domain", is_loss=False)
    assert found is not None
    assert found["domain"] == summary.Gain(0.0, 0.0, 2, 12)  # 2 pairs × 3 rates × 2 seeds
    assert found["general"] == summary.Gain(0.25, 0.0, 2, 12)
    assert summary.equal_rate_gains(results, "linear", "domain", is_loss=True) is None
    assert summary.equal_rate_gains(results, "linear", "falling", is_loss=False) is None


def test_the_tables_are_printed_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_results(tmp_path / "effect.tsv", "sentiment-finance")
    results = results_flags(tmp_path)
    assert table.main(results) == 0
    page = capsys.readouterr().out
    assert [line for line in page.splitlines() if line[:3] == "## "] == [
        f"## {title}" for title, _ in table.TABLES.values()
    ]
    assert "Of 3 chosen learning rates 0 are the lowest and 3 the highest of those tried." in page
    assert "18 runs, 18 of them with bfloat16 autocast" in page  # which those that do not say were
    assert table.main([*results, "--table", "all"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows[2:4]] == ["M₀", "domain only"]
    assert ["constant 0.5", "1", "1–0–0–0", "", "1.000", "2.5", "3.0", "3.0"] in rows


def test_a_cell_is_shown_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_results(tmp_path / "effect.tsv", "sentiment-finance")
    results = results_flags(tmp_path)
    assert table.main([*results, "--cell", "sentiment-finance/300"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("## sentiment: tweets → financial news, 300 domain examples\n")
    assert "150 steps of 16; metric: accuracy." in page
    assert sum(line.startswith("| domain only") for line in page.splitlines()) == 2  # M_θ and M_α
    with pytest.raises(SystemExit, match=r"no runs of lm-law/300\. Choose from sentiment-finance/300\."):
        table.main([*results, "--cell", "lm-law/300"])


def test_figures_are_drawn_of_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_results(tmp_path / "effect.tsv", "sentiment-finance")
    assert table.main([*results_flags(tmp_path), "--figures", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Drawn in {tmp_path}: pairs.png, order.png.\n"  # sizes.png needs two sizes
    assert (tmp_path / "pairs.png").stat().st_size > 0
    assert (tmp_path / "order.png").stat().st_size > 0
    assert not (tmp_path / "sizes.png").exists()


# From end to end.


def test_two_runs_from_data_to_a_table(toy_pair: str, tmp_path: Path) -> None:
    args = argparse.Namespace(
        results=tmp_path / "results" / "effect.tsv",
        pairs=[toy_pair],
        methods=["domain", "linear-averaged"],
        sizes=[300],
        seeds=[0],
        sides=pairs.SIDES,
    )
    done = []
    for todo in run.runs_to_do(args):
        done.append(todo)
        run.work(todo, args.results, tmp_path / "cache", "cpu")
    # the toy has one learning rate
    assert [(todo.method, todo.size, todo.seed) for todo in done] == [
        ("base", "full", 0),
        ("domain", 300, 0),
        ("linear-averaged", 300, 0),
    ]
    assert list(run.runs_to_do(args)) == []  # all are there
    results = Store(args.results).load()
    (cell,) = cells.cells_of(results)
    assert list(cell.rows) == [
        ("base", False),
        ("domain", False),
        ("domain", True),
        ("linear-averaged", False),
        ("linear-averaged", True),
    ]
    assert cell.rows["domain", False].numerators["domain"].shape == (1, 12)
    entry = next(entry for entry in results["toy"] if entry["method"] == "linear-averaged")
    assert entry["drawn"] == {"general": 8, "domain": 8}
    assert entry["num_domain"] == 12
    assert list(entry["curve"]["domain"]) == ["0", "0.25", "0.5", "0.75", "1"]
    files = [args.results, Store(args.results).predictions]
    assert sum(path.stat().st_size for path in files) <= 3072 * len(done)


def test_a_list_of_runs_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run.main([*results_flags(tmp_path), *["--list", "--pairs", "lm-law", "--methods", "domain", "--sizes", "300"]])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lm-law base"
    assert lines[-2:] == ["lm-law 300 domain rate to be chosen seed 4", "8 runs to do"]


def test_a_legend_names_what_any_of_the_places_shows_once() -> None:
    figure = Figure()
    places = figure.subplots(1, 2)
    for axes, titles in zip(places, (["rising"], ["rising", "falling"]), strict=True):
        for title in titles:
            axes.plot([0, 1], label=title)
    figures._legend(figure, places)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rising", "falling"]


def test_figures_need_something_to_draw(tmp_path: Path) -> None:
    for name, draw in figures.FIGURES.items():
        assert draw([], tmp_path / name) is False
    assert list(tmp_path.iterdir()) == []


# The comparison under wrong labels: what is flipped, which runs there are, and runs from data to a page.

LEAST = {"output_dir": "unused", "max_steps": 50, "use_cpu": True}


def test_flipped_labels_are_as_many_as_asked_and_always_other_classes() -> None:
    labels = np.arange(300) % 3
    before = np.zeros(300, dtype=bool)
    for share in sorted(noise.SHARES):
        found = noise.flip(labels, share, 3, seed=5)
        changed = found != labels
        assert changed.sum() == round(300 * share)
        assert set(found) <= {0, 1, 2}
        assert (changed >= before).all()  # what is flipped at a smaller share stays so
        before = changed
    assert labels.tolist() == (np.arange(300) % 3).tolist()


def test_flips_are_the_seeds_and_go_to_each_other_class_alike() -> None:
    labels = np.zeros(3000, dtype=np.int64)
    first, same, other = (noise.flip(labels, 0.5, 3, seed) for seed in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()
    counts = np.bincount(first, minlength=3)
    assert counts[0] == 1500
    assert counts[1] == pytest.approx(750, abs=4 * np.sqrt(1500 / 4))


@pytest.mark.parametrize("key", noise.NOISE_METHODS)
def test_every_method_under_noise_is_a_recipe(key: str) -> None:
    fields = noise.NOISE_METHODS[key].recipe_fields(100, 20, 50)
    _, args = parse_recipe({"model_name_or_path": "m", "corpora": {"domain": {"path": "p"}}, **fields, **LEAST})
    assert (args.label_smoothing_factor == 0.1) == key.endswith("-smooth")
    assert (args.anchor == "distill") == (key == "distill")


def test_every_run_under_noise_has_a_row_of_its_own() -> None:
    runs = list(noise.plan(noise.PAIRS, noise.SHARES, noise.SEEDS))
    assert len({one.key for one in runs}) == len(runs) == 2 * (1 + 3 * 4 * 5)
    assert [one.method for one in runs[:2]] == ["base", "domain"]
    assert {one.seed for one in runs[: 1 + 4 * 5]} == {0}  # a seed is whole before the next


def test_runs_under_noise_from_data_to_tables(
    toy_pair: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(noise, "SIZE", 10)
    table = tmp_path / "results" / "noise.tsv"
    trained: list[list[int]] = []
    train = training.train_method

    def noting(setup: Any, method: Any, corpora: Any, *args: Any) -> Any:
        trained.append([list(corpus.dataset["labels"]) for corpus in corpora])
        return train(setup, method, corpora, *args)

    monkeypatch.setattr(training, "train_method", noting)
    for method, share in (("base", 0.0), ("domain", 0.0), ("domain", 0.4), ("domain-smooth", 0.4)):
        key = noise.NoiseRun(pair=toy_pair, method=method, share=share)
        noise.work(key, table, tmp_path / "cache", "cpu")
        assert key.key in Store(table).rows()
    clean, noisy, smooth = trained
    assert noisy == smooth
    assert noisy[0] == clean[0]  # the general corpus
    assert len(clean[1]) == 10
    assert sum(one != other for one, other in zip(noisy[1], clean[1], strict=True)) == 4
    found = Store(table).load()
    assert sorted(entry["flipped"] for entry in found["toy"] if entry["method"] != "base") == [0, 4, 4]
    levels = noise.levels_of(found["toy"])
    assert list(levels) == [0.0, 0.4]
    assert list(levels[0.4].rows) == [
        ("base", False),
        ("domain", False),
        ("domain", True),
        ("domain-smooth", False),
        ("domain-smooth", True),
    ]
    monkeypatch.setattr(noise, "PAIRS", ("toy",))
    assert noise.main(["--table", "--results", str(table)]) == 0
    page = capsys.readouterr().out
    assert "| domain only, label smoothing 0.1 + M_α |" in page


def fake_noise(path: Path) -> Store:
    """Results of two seeds: with wrong labels domain only falls by half, and the robust loss by nothing."""
    store = Store(path / "noise.tsv")

    def packed(domain: int, general: int) -> dict[str, str]:
        hits = {"domain": domain, "general": general}
        return {
            side: pack("accuracy", Outcomes((np.arange(40) < value).astype(float), np.ones(40)))
            for side, value in hits.items()
        }

    pair = "sentiment-finance"
    base = {"pair": pair, "method": "base", "machine": "M", "test": packed(20, 30)}
    store.add({**base, "counts": {side: [1, 40] for side in pairs.SIDES}})
    for method, hits in {"domain": {0.0: 36, 0.4: 18}, "domain-gce": {0.0: 36, 0.4: 36}}.items():
        for share, domain in hits.items():
            for seed in (0, 1):
                key = noise.NoiseRun(pair=pair, method=method, share=share, seed=seed)
                own = {**vars(key), "size": noise.SIZE, "learning_rate": noise.LEARNING_RATE, "alpha": 0.5}
                store.add({**base, **own, "test": packed(domain, 30), "test_interpolated": None})
    return store


def one_of(store: Store, method: str, share: float, seed: int) -> Entry:
    """A run with all of its fields."""
    key = noise.NoiseRun(pair="sentiment-finance", method=method, share=share, seed=seed).key
    return {**store.rows()[key], **store.packed()[key]}


def cells_in(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_gains_are_shown_by_share_and_over_all(tmp_path: Path) -> None:
    levels = noise.levels_of(fake_noise(tmp_path).load()["sentiment-finance"])
    assert levels[0.4].rows["domain", False].seeds == (0, 1)
    gains = {row[0]: row[1:] for row in cells_in(noise.gain_table(levels, "domain"))}
    robust, plain = "domain only, generalised cross entropy", "domain only"
    assert plain not in gains  # which the others are held against
    assert gains[robust][0] == "+0.000 (+0.000 to +0.000)"
    assert gains[robust][1].startswith("**+0.450 (")
    assert gains[f"{robust} + M_α"][1].startswith("**+0.450 (")
    assert gains[f"{plain} + M_α"] == ["+0.000 (+0.000 to +0.000)"] * 2
    rows = cells_in(noise.summary_table({"sentiment-finance": levels}))
    assert [robust, "+45.0", "+0.0", "1–0–0–0"] in rows
    assert [plain, "", "", ""] in rows


def test_the_rise_is_held_against_the_constant_mixture(tmp_path: Path) -> None:
    store = fake_noise(tmp_path)
    levels = noise.levels_of(store.load()["sentiment-finance"])
    assert noise.order_table(levels) == "One of both has not been run yet."
    for method, hits in {"linear": 30, "constant-0.5": 20}.items():
        for seed in (0, 1):
            entry = one_of(store, "domain", 0.4, seed)
            entry["method"] = method
            entry["test"]["domain"] = pack("accuracy", Outcomes((np.arange(40) < hits).astype(float), np.ones(40)))
            store.add(entry)
    levels = noise.levels_of(store.load()["sentiment-finance"])
    rows = cells_in(noise.order_table(levels))
    assert rows[0] == ["side", "40%"]  # 0% has neither
    assert rows[2][0] == "domain"
    assert rows[2][1].startswith("**+0.250 (")
    assert rows[3] == ["general", "+0.000 (+0.000 to +0.000)"]


def test_m0_is_held_against_all_seeds(tmp_path: Path) -> None:
    store = fake_noise(tmp_path)
    entry = one_of(store, "domain", 0.4, 1)
    entry["test"]["domain"] = pack("accuracy", Outcomes((np.arange(40) < 10).astype(float), np.ones(40)))
    store.add(entry)
    cell = noise.levels_of(store.load()["sentiment-finance"])[0.4]
    base, plain = cell.rows["base", False], cell.rows["domain", False]
    for row, other, sign in ((base, plain, 1), (plain, base, -1)):
        gain = cell.gain(row, other, "domain")
        assert gain is not None
        assert gain.value == pytest.approx(sign * (20 - (18 + 10) / 2) / 40)


def test_all_runs_are_done_and_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    # 1 / 0 fails; what comes after it is still done
    assert run.do_all([0, 1], (1).__floordiv__, "run {}".format, minutes=1) == 1
    out = capsys.readouterr().out
    assert "FAILED run 0" in out
    assert "\nrun 1; " in out
    assert "1 runs done, 1 failed." in out


def test_no_run_is_begun_when_time_is_up() -> None:
    taken: list[int] = []
    assert run.do_all([1], taken.append, str, minutes=0.0) == 0
    assert taken == []


def test_a_list_of_runs_under_noise_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_noise(tmp_path)
    flags = ["--list", "--pairs", "sentiment-finance", "--shares", "0.4", "--seeds", "1"]
    assert noise.main([*flags, "--results", str(tmp_path / "noise.tsv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sentiment-finance domain-smooth 40% seed 1"
    assert lines[-1] == "4 runs to do"
