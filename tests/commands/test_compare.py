"""A comparison against the runs it is made of."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_interp import cli
from hf_interp.commands.compare import METHODS, compare, format_comparison
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.results import Comparison, load_comparison
from hf_interp.selection.choice import AlphaSearch
from hf_interp.tasks.recipe import with_alpha
from hf_interp.train import run_recipe

SEEDS = (0, 1)
RUN_FOLDERS = ("domain-only", "general-domain", "constant-0-5", "scheduled-α")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A recipe whose linear α ends at 0.5, with dropout and steps enough for seeds to differ."""
    recipe = make_recipe(tmp_path_factory.mktemp("comparison") / "out")
    return {**recipe, "alpha_end": 0.5, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def compared(settings: dict[str, Any]) -> Comparison:
    return compare(settings, seeds=SEEDS)


def rows(comparison: Comparison, method: str) -> list[dict[str, Any]]:
    return [row for row in comparison.rows if row["method"] == method]


def test_there_is_a_row_for_every_method_and_seed(compared: Comparison) -> None:
    base, runs = compared.rows[:2], compared.rows[2:]
    assert [(row["method"], row["seed"]) for row in base] == [("M₀", 0), ("M₀", 1)]
    assert [(row["method"], row["seed"]) for row in runs] == [
        (f"{method}{plus}", seed) for method in METHODS for seed in SEEDS for plus in ("", " + M_α")
    ]
    for row in compared.rows:
        assert set(row["metrics"]) == {"general", "domain"}
        assert set(row["forgetting"]) == {"loss", "accuracy", "f1", "matthews_correlation", "roc_auc"}


def test_methods_differ_in_what_they_draw_alone(compared: Comparison) -> None:
    drawn = {method: rows(compared, method)[0]["drawn"] for method in METHODS}
    assert drawn == {
        "domain only": {"general": 0, "domain": 16},
        "general → domain": {"general": 8, "domain": 8},
        "constant 0.5": {"general": 8, "domain": 8},
        "scheduled α": {"general": 12, "domain": 4},
    }
    alphas = {
        method: [point["alpha"] for point in rows(compared, method)[1]["curve"] if "alpha" in point]
        for method in METHODS
    }
    assert alphas == {
        "domain only": [1, 1, 1, 1],
        "general → domain": [0, 0, 1, 1],
        "constant 0.5": [0.5, 0.5, 0.5, 0.5],
        "scheduled α": pytest.approx([0, 1 / 6, 1 / 3, 1 / 2], abs=1e-8),
    }


def test_a_curve_holds_both_metrics_and_the_share(compared: Comparison) -> None:
    row = rows(compared, "domain only")[0]
    base = rows(compared, "M₀")[0]
    for name in ("domain", "general"):
        points = [point for point in row["curve"] if f"{name}_accuracy" in point]
        assert [point["step"] for point in points] == [0, 4]
        assert points[0][f"{name}_accuracy"] == base["metrics"][name]["accuracy"]
        assert points[1][f"{name}_accuracy"] == row["metrics"][name]["accuracy"]
    assert [point["domain_share"] for point in row["curve"] if "alpha" in point] == [1, 1, 1, 1]


@pytest.mark.parametrize("method", ["domain only", "scheduled α"])  # the first of the runs, and the last
def test_a_row_is_the_run_of_its_recipe(
    compared: Comparison, settings: dict[str, Any], tmp_path: Path, method: str
) -> None:
    own = {**METHODS[method], "seed": 1, "output_dir": str(tmp_path / "alone")}
    alone = run_recipe(with_alpha(settings, own))
    row = rows(compared, method)[1]
    assert row["metrics"] == alone.final_metrics
    assert row["forgetting"] == alone.forgetting
    assert rows(compared, "M₀")[1]["metrics"] == alone.base_metrics


def test_the_pretrained_model_is_the_same_for_all(compared: Comparison) -> None:
    first, second = rows(compared, "M₀")
    assert first["metrics"] == second["metrics"]  # its head is not new
    assert set(first["forgetting"].values()) == set(second["forgetting"].values()) == {0.0}
    assert first["curve"] == second["curve"] == []


def test_seeds_give_other_runs(compared: Comparison) -> None:
    first, second = rows(compared, "constant 0.5")
    assert first["metrics"] != second["metrics"]


def test_the_table_holds_mean_and_deviation_over_seeds(compared: Comparison) -> None:
    table = {row["method"]: row for row in compared.table("loss")}
    base = rows(compared, "M₀")[0]["metrics"]["general"]["loss"]
    assert list(table) == ["M₀", *(f"{method}{plus}" for method in METHODS for plus in ("", " + M_α"))]
    for method in METHODS:
        for side in ("domain", "general"):
            values = [row["metrics"][side]["loss"] for row in rows(compared, method)]
            assert table[method][side] == pytest.approx({"mean": mean(values), "std": stdev(values), "num": 2})
        lost = [row["metrics"]["general"]["loss"] - base for row in rows(compared, method)]
        assert table[method]["forgetting"] == pytest.approx({"mean": mean(lost), "std": stdev(lost), "num": 2})


def test_the_text_tells_the_table(compared: Comparison) -> None:
    lines = format_comparison(compared).splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert cells[0] == ["method", "α of weights", "domain accuracy", "general accuracy", "forgetting"]
    for row, shown in zip(compared.table("accuracy"), cells[2:], strict=True):
        values = [row[name] for name in ("domain", "general", "forgetting")]
        alphas = [one["alpha"] for one in rows(compared, row["method"]) if "alpha" in one]
        alpha = f"{mean(alphas):.2f} ± {stdev(alphas):.2f}" if alphas else ""
        assert shown == [row["method"], alpha, *(f"{value['mean']:.3f} ± {value['std']:.3f}" for value in values)]


def test_one_seed_has_no_spread(compared: Comparison) -> None:
    alone = replace(compared, rows=[row for row in compared.rows if row["seed"] == 0])
    assert "±" in format_comparison(compared)
    assert "±" not in format_comparison(alone)
    assert f"{rows(alone, 'domain only')[0]['metrics']['domain']['accuracy']:.3f} |" in format_comparison(alone)


def test_interpolated_weights_are_those_of_the_curve(compared: Comparison, settings: dict[str, Any]) -> None:
    for method, folder in zip(METHODS, RUN_FOLDERS, strict=True):
        row = rows(compared, f"{method} + M_α")[1]
        curve = load_curve(Path(settings["output_dir"]) / folder / "seed-1" / "curve.json")
        assert row["alpha"] == curve.alpha
        assert (curve.base, curve.num_examples["domain"]) == (
            settings["model_name_or_path"],
            {"selection": 6, "report": 6},
        )
        if curve.alpha in (0.0, 1.0):  # the ends are M₀ and the trained model
            end = rows(compared, "M₀" if curve.alpha == 0 else method)[1]["metrics"]
            assert row["metrics"]["domain"]["loss"] == end["domain"]["loss"]


@pytest.mark.slow
def test_without_validation_sets_the_evaluation_sets_are_halved(toy_recipe: dict[str, Any]) -> None:
    del toy_recipe["validation_corpora"]
    found = compare(toy_recipe, seeds=[0], methods=["constant 0.5"])
    curve = load_curve(Path(toy_recipe["output_dir"]) / "constant-0-5" / "seed-0" / "curve.json")
    assert found.settings["halved_eval_sets"]
    assert curve.num_examples == {side: {"selection": 4, "report": 4} for side in ("domain", "general")}
    assert {row["metrics"]["general"]["accuracy"] * 8 % 1 for row in found.rows} == {0.0}


def test_results_and_picture_are_written(compared: Comparison, settings: dict[str, Any]) -> None:
    folder = Path(settings["output_dir"])
    written = load_comparison(folder / "results.json")
    assert written == compared
    assert written.settings == {
        "recipe": settings,
        "seeds": list(SEEDS),
        "steps": 4,
        "alpha_search": asdict(AlphaSearch()),
        "halved_eval_sets": False,
    }
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    runs = {str(path.parent.relative_to(folder)) for path in folder.rglob("results.json")} - {"."}
    assert runs == {f"{name}/seed-{seed}" for seed in SEEDS for name in RUN_FOLDERS}
    assert list(folder.rglob("*.safetensors")) == []
    run = json.loads((folder / "domain-only" / "seed-1" / "results.json").read_text())
    assert run["config"]["seed"] == 1


def test_the_command_prints_the_table(
    settings: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(write_recipe({**settings, "output_dir": str(tmp_path / "out")}))
    argv = ["compare", path, "--methods", "scheduled α", "--seeds", "5", "--max_steps", "1", "--eval_strategy", "no"]
    assert cli.main([*argv, "--alpha_schedule_type", "constant"]) == 0
    found = load_comparison(tmp_path / "out" / "results.json")
    assert [(row["method"], row["seed"]) for row in found.rows] == [
        ("M₀", 5),
        ("scheduled α", 5),
        ("scheduled α + M_α", 5),
    ]
    assert found.rows[1]["drawn"] == {"general": 2, "domain": 2}
    out = capsys.readouterr().out
    assert out.startswith(format_comparison(found))
    assert out.splitlines()[-1] == f"results.json and comparison.png are in {tmp_path / 'out'}."


@pytest.mark.slow
def test_a_comparison_goes_on_and_keeps_its_models(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    general = Path(shutil.copy(settings["corpora"]["general"]["path"], tmp_path / "general.jsonl"))
    corpora = {**settings["corpora"], "general": {"path": str(general)}}
    recipe = {**settings, "corpora": corpora, "output_dir": str(tmp_path / "out"), "alpha_search": {"alphas": 3}}
    methods = ["domain only"]

    def told() -> list[str]:
        return [line.split(":")[0] + line[-14:] * line.endswith("(from before)") for line in errors().splitlines()]

    def errors() -> str:
        return capsys.readouterr().err

    first = compare(recipe, seeds=[5], methods=methods, keep=True)
    line = errors()
    trained, moved = (row["metrics"]["domain"]["accuracy"] for row in first.rows[1:])
    assert line.startswith(f"1 of 1: domain only, seed 5: accuracy domain {trained:.3f}, general ")
    assert f"; M_α at {first.rows[2]['alpha']:g} domain {moved:.3f}, general " in line
    place = tmp_path / "out" / "domain-only" / "seed-5"
    base, tuned, kept = (
        load_file(folder / "model.safetensors")
        for folder in (Path(recipe["model_name_or_path"]), place, place / "interpolated")
    )
    alpha = first.rows[2]["alpha"]
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, alpha * tuned[name] + (1 - alpha) * base[name])
    both = compare(recipe, seeds=[5, 6], methods=methods, keep=True, resume=True)
    assert told() == ["1 of 2 (from before)", "2 of 2"]
    assert [row for row in both.rows if row["seed"] == 5] == first.rows
    fresh = compare(recipe, seeds=[5, 6], methods=methods)
    for found in (both, fresh):
        for row in found.rows:
            del row["curve"]  # which also has the seconds of evaluations
    assert both.rows == fresh.rows
    assert told() == ["1 of 2", "2 of 2"]
    general.write_text("".join(reversed(general.read_text("utf-8").splitlines(keepends=True))), "utf-8")
    compare(recipe, seeds=[5], methods=methods, resume=True)
    assert told() == ["1 of 1"], "other data is trained on anew"


def test_an_unknown_method_is_refused(toy_recipe: dict[str, Any]) -> None:
    message = r"`methods` must be of domain only, .*scheduled α, got 'domain onyl'\. Did you mean 'domain only'\?"
    with pytest.raises(ValueError, match=message):
        compare(toy_recipe, methods=["scheduled α", "domain onyl"])
    assert not Path(toy_recipe["output_dir"]).exists()


@pytest.mark.parametrize("missing", ["general", "domain"])
def test_both_evaluation_sets_are_needed(toy_recipe: dict[str, Any], missing: str) -> None:
    del toy_recipe["eval_corpora"][missing]
    left = "domain" if missing == "general" else "general"
    with pytest.raises(
        ValueError, match=rf"needs the evaluation sets general and domain, got \['{left}'\]\. Name them"
    ):
        compare(toy_recipe)
    del toy_recipe["eval_corpora"]
    with pytest.raises(ValueError, match=r"needs the evaluation sets general and domain, got \[\]"):
        compare(toy_recipe)


def test_a_method_that_cannot_be_planned_stops_all_before_the_first(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["corpora"]["domain"]["max_passes"] = 1  # 12 examples; the scheduled α draws 8 of them
    with pytest.raises(ValueError, match=r"Corpus 'domain' would be read 1\.33 times, but its `max_passes` is 1\."):
        compare(toy_recipe, methods=["scheduled α", "domain only"])
    assert not Path(toy_recipe["output_dir"]).exists()


@pytest.mark.parametrize("seeds", [[0, 0], [-1], [1, 2**32]])
def test_seeds_that_are_none_are_refused_before_anything_runs(toy_recipe: dict[str, Any], seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=r"`seeds` must be whole numbers from 0 to 2\*\*32 - 1, each once, got"):
        compare(toy_recipe, seeds=seeds)
    assert not Path(toy_recipe["output_dir"]).exists()


@pytest.mark.parametrize("nothing", [{"seeds": []}, {"methods": []}])
def test_a_comparison_of_nothing_is_refused(toy_recipe: dict[str, Any], nothing: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        compare(toy_recipe, **nothing)


@pytest.mark.slow
def test_baselines_know_no_controller_and_all_methods_take_the_steps_of_the_recipes_epochs(
    toy_recipe: dict[str, Any],
) -> None:
    toy_recipe |= {"alpha_controller": "guard", "alpha_update_steps": 2, "alpha_update_lag": 1, "max_steps": None}
    toy_recipe |= {"alpha_controller_kwargs": {"baseline": 0.001}, "num_train_epochs": 1}  # α goes back at once
    found = compare(toy_recipe, seeds=[0], methods=["domain only", "constant 0.5", "scheduled α"])
    assert found.settings["steps"] == 6
    drawn = {method: rows(found, method)[0]["drawn"] for method in ("domain only", "constant 0.5", "scheduled α")}
    assert drawn["domain only"] == {"general": 0, "domain": 24}
    assert drawn["constant 0.5"] == {"general": 12, "domain": 12}
    assert drawn["scheduled α"]["domain"] < 12
