"""The check of the search for a mixture: its scores, its ways and its page, on curves with known answers."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from mixtures import run, schedule, scores, table, ways
from mixtures.schedule import ALPHAS, SEEDS, SHORT_ALPHAS, Run
from mixtures.scores import SIDES

from hf_interp.selection.mixing_law import MixingLaw
from hf_interp.utils.files import write_json

LAWS = {
    "domain": MixingLaw(offset=2.0, scale=1.0, rate=-3.0),
    "general": MixingLaw(offset=3.0, scale=0.1, rate=2.0),
}
"""In their mean e^(-3α) / 2 + e^(2α) / 20, which is least where 3e^(-3α) = 0.2e^(2α): at α = ln(15) / 5 = 0.54."""
BEST = float(np.log(15) / 5)
PAIR = "lm-medicine"
STEPS = 200

# Scores.


def test_a_constant_is_no_error_of_the_shape() -> None:
    true = np.array([3.0, 2.0, 2.5])
    assert scores.error(true + 0.5, true, shifted=True) == pytest.approx(0.0)
    assert scores.error(true + 0.5, true, shifted=False) == pytest.approx(0.5)


def test_one_wrong_point_does_not_move_the_others() -> None:
    true = np.array([3.0, 2.0, 2.5])
    assert scores.error(true + np.array([0.0, 0.0, 0.9]), true, shifted=True) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("predicted", "correlation"),
    [([1.0, 2.0, 3.0], 1.0), ([9.0, 2.0, 1.0], -1.0), ([1.0, 3.0, 2.0], 0.5), ([4.0, 4.0, 4.0], 0.0)],
)
def test_ranks_alone_count(predicted: list[float], correlation: float) -> None:
    found = scores.rank_correlation(np.array(predicted), np.array([10.0, 100.0, 1000.0]))
    assert found == pytest.approx(correlation)


def test_tied_losses_share_their_rank() -> None:
    # ranks 1.5, 1.5, 3 and 1, 2, 3: 1.5 / sqrt(1.5 · 2)
    found = scores.rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx(np.sqrt(3) / 2)


def test_each_objective_has_its_best() -> None:
    curves = {"domain": np.array([5.0, 3.0, 2.9, 2.8]), "general": np.array([1.0, 1.1, 1.3, 1.6])}
    assert scores.choose(curves, "domain", 0.0) == 3
    assert scores.choose(curves, "mean", 0.0) == 1
    assert scores.choose(curves, "constrained", 1.291) == 2
    assert scores.choose(curves, "constrained", 1.289) == 1


def test_where_nothing_keeps_the_limit_the_least_general_loss_sets_it() -> None:
    curves = {"domain": np.array([5.0, 3.0, 2.0]), "general": np.array([1.0, 1.009, 1.011])}
    assert scores.choose(curves, "constrained", 0.5) == 1
    assert scores.choose(curves, "constrained", 0.995) == 0  # 1.005


def test_the_regret_of_the_best_is_nothing_and_between_points_on_the_line() -> None:
    curve = np.array([3.0, 1.0, 2.0])
    assert scores.regret([0.0, 0.5, 1.0], curve, 0.5) == 0.0
    assert scores.regret([0.0, 0.5, 1.0], curve, 0.125) == pytest.approx(1.5)


def test_a_broken_limit_and_a_lost_gain_are_told_apart() -> None:
    curves = {"domain": np.array([3.0, 2.0, 1.0]), "general": np.array([1.0, 1.0, 2.0])}
    places = [0.0, 0.5, 1.0]
    assert scores.constrained_regret(places, curves, 1.0, 0.5) == (0.0, 0.0)
    assert scores.constrained_regret(places, curves, 1.0, 0.0) == (0.0, 1.0)
    assert scores.constrained_regret(places, curves, 1.0, 1.0) == pytest.approx((0.99, -1.0))
    assert scores.constrained_regret(places, curves, 0.5, 0.5) == (0.0, 0.0)


def test_whole_shifts_are_no_noise_and_single_points_are() -> None:
    curve = np.array([3.0, 2.0, 2.5, 2.0])
    assert scores.seed_error([curve]) is None
    assert scores.seed_error([curve, curve + 1]) == pytest.approx(0.0)
    wiggle = np.array([0.1, -0.1, 0.1, -0.1])
    # points differ by 0.2 between two seeds: SD 0.2 / √2, of a mean of two 0.1
    assert scores.seed_error([curve + wiggle, curve - wiggle]) == pytest.approx(0.1)


# Ways.


def write(results: Path, key: Run, losses: dict[str, Any], **fields: Any) -> None:
    seconds = {"training": 0.1 * key.steps, "validation": 1.0, "test": 50.0}
    write_json(
        key.path(results),
        {**asdict(key), **fields, "losses": losses, "processor_seconds": seconds, "machine": "a machine"},
    )


def write_pair(results: Path, *, seeds: tuple[int, ...] = SEEDS) -> None:
    """All runs of a pair, by the laws: short runs 0.3 higher, adapters 0.1, fine-tunings the other way round."""
    base = {"domain": 3.5, "general": float(LAWS["general"](0.5))}
    for key in schedule.plan([PAIR], seeds):
        if key.kind == "base":
            write(results, key, {"validation": base, "test": base})
        elif key.kind in ("mixture", "matched"):
            here = {side: float(LAWS[side](key.alpha)) + 0.3 * (key.steps < STEPS) for side in SIDES}
            write(results, key, {"validation": here, "test": here})
        else:
            places = ALPHAS if key.kind == "adapters" else ALPHAS[::-1]
            between = {side: (LAWS[side](places) + 0.1).tolist() for side in SIDES}
            write(results, key, {"validation": between}, alphas=list(ALPHAS))


def load(results: Path) -> ways.Found:
    found = ways.load(PAIR, results)
    assert found is not None
    return found


def test_exact_runs_give_the_laws_back(tmp_path: Path) -> None:
    write_pair(tmp_path)
    found = load(tmp_path)
    for key in ("law-3", "law-5"):
        said = ways.WAYS[key].predict(found)
        assert said is not None
        assert said.curves is not None
        for side in SIDES:
            assert np.allclose(said.curves[side], found.curves("test")[side], atol=1e-6)
        assert said.alphas == {"domain": 1.0, "mean": round(BEST, 2), "constrained": 0.51}  # e^(2α) ≤ e + 0.1


def test_short_runs_miss_by_a_constant_alone(tmp_path: Path) -> None:
    write_pair(tmp_path)
    found = load(tmp_path)
    said = ways.WAYS["law-4"].predict(found)
    assert said is not None
    assert said.curves is not None
    true = found.curves("test")["domain"]
    assert scores.error(said.curves["domain"], true, shifted=False) == pytest.approx(0.3, abs=1e-6)
    assert scores.error(said.curves["domain"], true, shifted=True) == pytest.approx(0.0, abs=1e-6)
    assert said.alphas["mean"] == round(BEST, 2)
    assert said.alphas["constrained"] == 0.04  # no short run keeps the limit: 0.1·e^(2α) ≤ 0.1 + 0.01


def test_means_alone_choose_among_their_own_alphas(tmp_path: Path) -> None:
    write_pair(tmp_path)
    said = ways.by_means(load(tmp_path), 4, SHORT_ALPHAS, "matched")
    assert said is not None
    assert said.curves is not None
    assert said.alphas == {"domain": 1.0, "mean": 0.5, "constrained": 0.0}
    at_a_tenth = 0.6 * LAWS["domain"]([0.0]) + 0.4 * LAWS["domain"]([0.25])
    assert said.curves["domain"][1] == pytest.approx(at_a_tenth[0] + 0.3)


def test_what_lies_between_the_ends_is_taken_as_it_was_measured(tmp_path: Path) -> None:
    write_pair(tmp_path)
    found = load(tmp_path)
    adapters, weights = (ways.by_ends(found, kind) for kind in ("adapters", "weights"))
    assert adapters is not None
    assert weights is not None
    assert adapters.curves is not None
    assert np.allclose(adapters.curves["domain"], LAWS["domain"](ALPHAS) + 0.1)
    assert (adapters.alphas["mean"], weights.alphas["mean"]) == (0.5, 0.5)
    assert (adapters.alphas["domain"], weights.alphas["domain"]) == (1.0, 0.0)


def test_costs_are_those_of_training_and_validation_a_seed(tmp_path: Path) -> None:
    write_pair(tmp_path)
    said = table.predictions(load(tmp_path))
    assert (said["sweep"].seeds, said["sweep"].steps) == (2, 9 * STEPS)
    assert said["sweep"].seconds == pytest.approx(9 * (20 + 1))
    assert said["law-4"].steps == 5 * STEPS / 4
    assert said["adapters"].steps == 2 * STEPS
    assert said["half"].seeds == said["half"].steps == 0


def test_a_way_without_its_runs_says_nothing(tmp_path: Path) -> None:
    write_pair(tmp_path)
    for seed in SEEDS:
        Run(pair=PAIR, kind="mixture", steps=STEPS // 4, alpha=0.25, seed=seed).path(tmp_path).unlink()
        Run(pair=PAIR, kind="adapters", steps=STEPS, seed=seed).path(tmp_path).unlink()
    assert set(ways.WAYS) - set(table.predictions(load(tmp_path))) == {"law-4", "adapters"}


def test_a_seed_that_lacks_an_alpha_does_not_count(tmp_path: Path) -> None:
    write_pair(tmp_path)
    Run(pair=PAIR, kind="mixture", steps=STEPS, alpha=0.9, seed=1).path(tmp_path).unlink()
    found = load(tmp_path)
    assert {run["seed"] for run in found.sweep} == {0}
    assert {run["seed"] for run in found.of("mixture", STEPS, SHORT_ALPHAS)} == {0, 1}


def test_without_a_whole_sweep_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    assert ways.load(PAIR, tmp_path) is None
    write_pair(tmp_path, seeds=(0,))
    Run(pair=PAIR, kind="mixture", steps=STEPS, alpha=0.9).path(tmp_path).unlink()
    assert ways.load(PAIR, tmp_path) is None


# The runs and the page.


def test_a_pair_has_as_many_runs_as_its_files(tmp_path: Path) -> None:
    runs = list(schedule.plan([PAIR], SEEDS))
    assert len(runs) == len({key.path(tmp_path) for key in runs}) == 1 + 2 * (3 * 5 + 2 + 9 + 1)
    assert {key.steps for key in runs if key.kind == "mixture"} == {50, 100, 200}


def test_the_list_leaves_out_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path)
    Run(pair=PAIR, kind="mixture", steps=STEPS, alpha=0.9, seed=1).path(tmp_path).unlink()
    assert run.main(["--results", str(tmp_path), "--pairs", PAIR, "--list"]) == 0
    assert capsys.readouterr().out == f"{PAIR} mixture α = 0.9, 200 steps, seed 1\n1 runs to do\n"


def test_the_page_has_a_table_and_the_figure_of_every_pair(tmp_path: Path) -> None:
    write_pair(tmp_path)
    output, figure = tmp_path / "page.md", tmp_path / "curves.png"
    assert table.main(["--results", str(tmp_path), "--output", str(output), "--figure", str(figure)]) == 0
    text = output.read_text()
    assert "## language: Wikipedia → medicine" in text
    assert "![predicted against swept losses](curves.png)" in text
    assert "Machine: a machine." in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    summary, curves, choices = (row for row in rows if row[0] == "law, 5 α, a fourth of the steps")
    # 5 of 9 α with a fourth of the steps; 5 + 1 of 20 + 1 seconds a run
    assert summary[1:6] == ["14%", "16%", "0.0000", "+1.00", "+1.00"]
    assert curves[1:5] == ["0.0000", "0.0000", "0.3000", "0.3000"]
    assert choices[1:5] == ["2", "14%", "16%", "0.54"]


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no pair with a whole sweep\. Run tests/benchmarks/mixtures/run\.py"):
        table.main(["--results", str(tmp_path)])
