"""Trained runs, looked at again by command."""

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_interp import cli
from hf_interp.commands.curve import curve_run
from hf_interp.commands.demo import write_demo
from hf_interp.commands.merge import merge_runs
from hf_interp.reporting.curve import load_curve
from hf_interp.tasks.parsing import load_recipe
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.runs import (
    READ_IN_EVALUATION,
    load_run_recipe,
    open_run,
    parse_run,
    scored_sets,
    search_run,
)
from hf_interp.train import run_recipe
from hf_interp.training.config import InterpolationConfig

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml"))
    if "\ncorpora:" in path.read_text("utf-8")
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> list[str]:
    """Folders of three runs of one recipe with other seeds."""
    folder = tmp_path_factory.mktemp("revisit")
    for seed in range(3):
        recipe = make_recipe(folder / f"seed-{seed}")
        run_recipe({**recipe, "seed": seed, "learning_rate": 1e-2, "alpha_search": {"alphas": 3}})
    return [str(folder / f"seed-{seed}") for seed in range(3)]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


# Curves.


def test_the_curve_of_a_run_is_that_of_its_training(runs: list[str]) -> None:
    before = load_curve(Path(runs[0]) / "curve.json")
    curve, folder = curve_run(runs[0], ["--corpora.general.path", "gone.jsonl"])  # which is not read again
    assert str(folder) == runs[0]
    assert (curve.alphas, curve.alpha, curve.reason) == (before.alphas, before.alpha, before.reason)
    for part in ("selection", "report"):
        for side, metrics in getattr(curve, part).items():
            for metric, found in metrics.items():
                assert found["values"] == pytest.approx(getattr(before, part)[side][metric]["values"], abs=1e-6)


@pytest.mark.slow
def test_the_commands_on_the_demos_own_run_work_as_a_user_types_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_demo("hf_interp_demo", max_steps=2)["eval_strategy"] == "steps"
    here = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    for line in (
        "train hf_interp_demo/recipe.yaml --output_dir mine --alpha_search.alphas 2",
        "curve mine --save_model",
        "merge hf_interp_demo/base mine merged --recipe mine",
    ):
        command = [commands / "hf-interp", *line.split()]
        found = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
        assert (found.returncode, found.stderr.count("hf-interp: error")) == (0, 0), found.stderr
    assert load_curve("mine/curve.json").alphas == load_curve("merged/curve.json").alphas == [0.0, 1.0]
    assert weights("mine/interpolated").keys() == weights("merged").keys() == weights("mine").keys()


def test_a_run_knows_its_files_from_another_folder(
    make_recipe: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, home, away = make_recipe(Path("mine")), tmp_path / "home", tmp_path / "away"
    shutil.copytree(recipe["model_name_or_path"], home / "base")
    away.mkdir()
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        for side, corpus in recipe[group].items():
            shutil.copyfile(corpus["path"], home / f"{group}-{side}.jsonl")
            corpus["path"] = f"{group}-{side}.jsonl"
    monkeypatch.chdir(home)
    run_recipe({**recipe, "model_name_or_path": "base", "alpha_search": {"alphas": 2}})
    before = load_curve("mine/curve.json")
    assert json.loads(Path("mine/results.json").read_text())["recipe"]["model_name_or_path"] == "base"
    monkeypatch.chdir(away)
    curve, _ = curve_run(home / "mine")
    assert (curve.alphas, curve.reason) == (before.alphas, before.reason)
    assert curve.base == str(home / "base")


CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification

Path({marker!r}).touch()


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("command", ["curve", "merge"])
def test_the_code_of_a_folder_is_run_only_when_this_call_says_so(
    runs: list[str], tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = tmp_path / "theirs", tmp_path / "was_run"
    shutil.copytree(runs[2], folder)
    (folder / "modeling_own.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    results = json.loads((folder / "results.json").read_text())
    results["recipe"]["trust_remote_code"] = True
    (folder / "results.json").write_text(json.dumps(results))
    base = results["recipe"]["model_name_or_path"]
    argv = {
        "curve": ["curve", str(folder)],
        "merge": ["merge", base, str(folder), str(tmp_path / "out"), "--recipe", str(folder)],
    }[command]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert "trust_remote_code" in err
    assert err.count("\n") == 1
    assert not marker.exists()
    assert cli.main([*argv, "--trust_remote_code", "true"]) == 0
    assert marker.exists()


NEEDS_OF_TRAINING = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_on_start": True,
    "load_best_model_at_end": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "anchor": "distill",
    "anchor_on": "general",
    "alpha_controller": "guard",
    "log_loss_gap": True,
    "push_to_hub": True,
    "hub_model_id": "user/name",
    "report_to": "a tracker that is not here",
    "deepspeed": "gone.json",
    "alpha_end": 7.0,
    "max_steps": None,
}


@pytest.mark.parametrize("name", [*NEEDS_OF_TRAINING, None])
def test_what_only_training_needs_is_not_asked_for(runs: list[str], name: str | None) -> None:
    names = NEEDS_OF_TRAINING if name is None else [name]
    parsed, args = parse_run({**load_run_recipe(runs[0]), **{each: NEEDS_OF_TRAINING[each] for each in names}})
    trainer, data = open_run(parsed, args, Path(runs[0]))
    assert data.corpora == []
    assert data.eval_sets == {}  # as there are validation sets
    if name is None:
        assert search_run(trainer, parsed, data).alphas == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_run_with_the_settings_of_a_shipped_recipe_is_opened(runs: list[str], path: Path) -> None:
    own = {entry.name for entry in dataclasses.fields(Recipe)} | {"output_dir"}
    settings = {name: value for name, value in load_recipe(path).items() if name not in own}
    assert settings["max_steps"] > 0
    recipe, args = parse_run({**load_run_recipe(runs[0]), **settings})
    trainer, data = open_run(recipe, args, Path(runs[0]))
    assert scored_sets(data).keys() == {"general", "domain"}
    assert trainer.args.per_device_eval_batch_size == settings.get("per_device_eval_batch_size", 16)


def test_what_an_evaluation_reads_are_training_arguments() -> None:
    assert {*READ_IN_EVALUATION} <= {entry.name for entry in dataclasses.fields(InterpolationConfig)}
    assert len(READ_IN_EVALUATION) == len({*READ_IN_EVALUATION})


def test_a_field_that_is_none_is_refused_when_a_run_is_opened(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["curve", runs[0], "--learning_rat", "1"]) == 2
    assert "Unknown field 'learning_rat' in the recipe. Did you mean 'learning_rate'?" in capsys.readouterr().err


def test_flags_change_the_search(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--alpha_search.objective", "mean", "--alpha_search.metric", "loss", "--alpha_search.method", "golden"]
    assert cli.main(["curve", runs[1], *flags, "--save_model"]) == 0
    curve = load_curve(Path(runs[1]) / "curve.json")
    assert (curve.objective, curve.metric) == ("mean", "loss")
    assert len(curve.alphas) > 3
    out = capsys.readouterr().out
    assert curve.reason in out
    assert f"M_α is in {runs[1]}/interpolated." in out
    found, trained = weights(Path(runs[1]) / "interpolated"), weights(runs[1])
    base = weights(load_run_recipe(runs[1])["model_name_or_path"])
    assert all(torch.equal(found[name], torch.lerp(base[name], trained[name], curve.alpha)) for name in found)


def test_card_curve_and_weights_of_a_run_are_of_one_alpha(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[2], folder)
    account = folder / "interpolated" / "interpolation.json"
    account.write_text(json.dumps({**json.loads(account.read_text()), "alpha": 0.123}))  # as another search has left it
    before = weights(folder / "interpolated")
    stale = f"{folder}/interpolated holds M_α at another α. --save_model writes it anew."
    argv = ["curve", str(folder), "--alpha_search.prefer_trained", "false"]
    assert cli.main(argv) == 0
    assert stale in capsys.readouterr().out
    assert "interpolated" not in load_curve(folder / "curve.json").weights
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder / "interpolated").items())
    assert cli.main([*argv, "--save_model"]) == 0
    assert stale not in capsys.readouterr().out
    curve = load_curve(folder / "curve.json")
    assert {"finetuned", "interpolated"} <= curve.weights.keys()
    base, trained = weights(load_run_recipe(runs[2])["model_name_or_path"]), weights(folder)
    for name, tensor in weights(folder / "interpolated").items():
        assert torch.equal(tensor, torch.lerp(base[name], trained[name], curve.alpha))
    assert curve.reason in (folder / "README.md").read_text("utf-8").replace("\\", "")


def test_a_curve_by_its_recipe_and_as_json(
    runs: list[str], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(load_run_recipe(runs[2]))
    assert cli.main(["curve", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alphas"] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("results", ["missing", "{}", "[1]", "null", '{"recipe": 3}', None])
def test_what_is_no_run_is_told(tmp_path: Path, results: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    if results is not None:
        folder.mkdir()
    if results not in (None, "missing"):
        (folder / "results.json").write_text(results)
    assert cli.main(["curve", str(folder)]) == 2
    err = capsys.readouterr().err
    assert ("There is no recipe" if results is None else "does not tell its recipe") in err
    assert err.count("\n") == 1


def test_a_recipe_that_was_not_trained_is_told(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["curve", str(write_recipe(toy_recipe))]) == 2
    assert "There is no run in" in capsys.readouterr().err


# Merges.


def test_two_checkpoints_are_merged(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = load_run_recipe(runs[0])["model_name_or_path"], tmp_path / "out"
    assert cli.main(["merge", base, runs[0], str(out), "--alpha", "0.25"]) == 0
    first, second, found = weights(base), weights(runs[0]), weights(out)
    assert all(torch.equal(found[name], torch.lerp(first[name], second[name], 0.25)) for name in found)
    text = capsys.readouterr().out
    assert text.startswith(f"interpolated: {len(found)} tensors, α 0.25")
    assert text.splitlines()[-1] == f"The model is in {out}."
    assert AutoModelForSequenceClassification.from_pretrained(out).config.id2label[0] == "negative"


@pytest.mark.parametrize(
    ("alpha", "layer", "embedding"), [("0.5..1", 1.0, 0.5), ("{'*.embeddings.*': 0, '*': 1}", 1.0, 0.0)]
)
def test_alpha_by_depth_and_by_name(
    runs: list[str], tmp_path: Path, alpha: str, layer: float, embedding: float, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_run_recipe(runs[0])["model_name_or_path"]
    argv = ["merge", base, runs[0], str(tmp_path / "out"), "--alpha", alpha, "--json"]
    assert cli.main([*argv, "--finetuned_only", "classifier.*"]) == 0
    decisions = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["decisions"]}
    assert decisions["bert.encoder.layer.1.output.dense.weight"]["alpha"] == layer
    assert decisions["bert.embeddings.word_embeddings.weight"]["alpha"] == embedding
    assert decisions["classifier.weight"]["action"] == "finetuned"


@pytest.mark.parametrize("soup", ["uniform", "greedy"])
def test_a_soup_is_mixed_and_its_alpha_chosen(
    runs: list[str], tmp_path: Path, soup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = load_run_recipe(runs[0])["model_name_or_path"], tmp_path / "out"
    argv = ["merge", base, *runs, str(out), "--soup", soup, "--recipe", runs[0], "--alpha_search.metric", "loss"]
    assert cli.main([*argv, "--alpha_search.method", "grid"]) == 0
    curve = load_curve(out / "curve.json")
    assert (out / "curve.png").is_file()
    assert curve.base == base
    members = str(curve.finetuned).split(", ")
    assert members == runs if soup == "uniform" else set(members) <= set(runs)
    mean = torch.stack([weights(run)["classifier.weight"] for run in members]).mean(0)
    expected = torch.lerp(weights(base)["classifier.weight"], mean, curve.alpha)
    assert torch.allclose(weights(out)["classifier.weight"], expected, atol=1e-7)
    printed = capsys.readouterr().out
    assert f"{soup} soup of {', '.join(members)}" in printed
    told = [line.partition(": ") for line in printed.splitlines() if line.startswith("soup with ")]
    assert {line[0].removeprefix("soup with ") for line in told} == (set(runs) if soup == "greedy" else set())
    assert all(line[2].startswith("domain loss ") for line in told)
    kept = [line[0].removeprefix("soup with ") for line in told if not line[2].endswith("left out")]
    assert soup == "uniform" or kept == members


def test_a_uniform_soup_needs_no_recipe(runs: list[str], tmp_path: Path) -> None:
    base = load_run_recipe(runs[0])["model_name_or_path"]
    merged = merge_runs(base, runs, str(tmp_path / "out"), alpha=1.0)
    assert merged.members == runs
    mean = torch.stack([weights(run)["classifier.bias"] for run in runs]).mean(0)
    assert torch.allclose(weights(tmp_path / "out")["classifier.bias"], mean, atol=1e-7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "`alpha` needs a recipe"),
        (["--alpha", "0.5", "--soup", "greedy"], "`soup` greedy needs a recipe"),
        (["--alpha", "half"], "`alpha` must be a number such as 0.6"),
        (["--alpha", "1.5"], "`alpha` must lie in [0, 1], got 1.5"),
        (["--alpha", "0.5", "--dtype", "int8"], "`dtype` must be a floating-point type"),
        (["--alpha", "0.5", "--learning_rate", "1"], "Fields of a recipe need --recipe"),
        (["--alpha", "0.5", "--finetuned_only", "score.*"], "no tensor matches: 'score.*'"),
    ],
)
def test_merges_that_cannot_be_are_refused_in_one_line(
    runs: list[str], tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_run_recipe(runs[0])["model_name_or_path"]
    assert cli.main(["merge", base, runs[0], str(tmp_path / "out"), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
