"""Recipes from their file to a model that can be used."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_interp import train
from hf_interp.commands.plan import plan_recipe
from hf_interp.reporting.results import RunResults, load_run_results
from hf_interp.tasks.build import check_recipe, load_data
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.train import format_results, read_resume, run_recipe

METRICS = {"loss", "accuracy", "f1", "matthews_correlation", "roc_auc"}


def accuracy(classify: Any, data: str) -> float:
    """Share of the rows of a file whose label a text-classification pipeline finds."""
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    found = classify([row["text"] for row in rows])
    return sum(row["label"] == guess["label"] for row, guess in zip(rows, found, strict=True)) / len(rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The recipe of a run that was started from the command line, with flags for `max_steps` and `learning_rate`."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = {**make_recipe(folder / "out"), "save_strategy": "steps", "save_steps": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "max_steps": 2}, sort_keys=False))
    assert train.main([str(folder / "recipe.yaml"), "--max_steps", "4", "--learning_rate=1e-2"]) == 0
    return {**recipe, "learning_rate": "1e-2"}  # which YAML takes for a text


# What a run leaves behind.


def test_a_run_leaves_model_tokenizer_results_and_picture(trained: dict[str, Any]) -> None:
    folder = Path(trained["output_dir"])
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_args.bin",
        "results.json",
        "progress.json",
        "run.png",
        "README.md",
        "checkpoint-2",
        "checkpoint-4",
    }
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")


def test_results_tell_settings_plan_and_versions(trained: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    results = load_run_results(Path(trained["output_dir"]) / "results.json")
    assert results.recipe == trained
    assert (results.config["max_steps"], results.config["learning_rate"], results.config["alpha_end"]) == (4, 0.01, 1.0)
    plan, *_ = plan_recipe(str(write_recipe(trained)))
    assert results.plan == json.loads(json.dumps(plan.summary()))
    assert results.plan["fingerprint"] == plan.fingerprint()
    assert {"python", "hf_interp", "transformers", "datasets", "torch"} <= set(results.versions)
    assert {"processor", "cores"} <= set(results.machine)


def test_results_hold_alpha_and_losses_of_every_step(trained: dict[str, Any]) -> None:
    results = load_run_results(Path(trained["output_dir"]) / "results.json")
    steps = [entry for entry in results.log_history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert [entry["alpha"] for entry in steps] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-8)
    assert [entry["share_domain"] for entry in steps] == [0, 0.25, 0.75, 1]
    assert ["loss_domain" in entry for entry in steps] == [False, True, True, True]
    assert ["loss_general" in entry for entry in steps] == [True, True, True, False]


def test_metrics_before_and_after_are_those_of_the_models(trained: dict[str, Any]) -> None:
    results = load_run_results(Path(trained["output_dir"]) / "results.json")
    for found, folder in (
        (results.base_metrics, trained["model_name_or_path"]),
        (results.final_metrics, trained["output_dir"]),
    ):
        classify = pipeline("text-classification", model=folder, device=-1)
        classify.model.config.id2label = {0: "negative", 1: "positive"}  # the pretrained model has no names for them
        assert set(found) == {"general", "domain"}
        for side, metrics in found.items():
            assert set(metrics) == METRICS
            assert metrics["accuracy"] == accuracy(classify, trained["eval_corpora"][side]["path"])
    base, final = results.base_metrics["general"], results.final_metrics["general"]
    assert results.forgetting == pytest.approx(
        {"loss": final["loss"] - base["loss"], **{name: base[name] - final[name] for name in METRICS - {"loss"}}}
    )


def test_the_saved_model_answers_with_label_names(trained: dict[str, Any]) -> None:
    classify = pipeline("text-classification", model=trained["output_dir"], device=-1)
    answers = classify(["good1 word2 word3", "bad1 word2 word3"], top_k=None)
    assert [{guess["label"] for guess in answer} for answer in answers] == [{"negative", "positive"}] * 2
    assert classify.model.config.label2id == {"negative": 0, "positive": 1}


def test_the_report_sets_the_model_beside_the_pretrained(
    trained: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = {**trained, "max_steps": 1, "output_dir": str(tmp_path / "other"), "save_strategy": "no"}
    assert train.main([str(write_recipe(recipe))]) == 0
    results = load_run_results(tmp_path / "other" / "results.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"The model, results.json and run.png are in {tmp_path / 'other'}."
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[-18:-1]]
    assert table[0] == ["metric", "M₀", "trained"]
    rows = {row[0]: row[1:] for row in table[2:]}
    for side in ("general", "domain"):
        base, final = results.base_metrics[side], results.final_metrics[side]
        assert rows[f"{side} accuracy"] == [f"{base['accuracy']:.4f}", f"{final['accuracy']:.4f}"]
    assert rows["forgetting (general accuracy)"] == ["", f"{results.forgetting['accuracy']:.4f}"]
    assert len(rows) == 15


def test_a_run_whose_reader_leaves_ends_with_all_that_it_saves(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    path = str(write_recipe(toy_recipe))
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed, redirect_stdout(closed), redirect_stderr(closed):
        assert train.main([path]) == 0
    saved = {file.name for file in Path(toy_recipe["output_dir"]).iterdir()}
    assert {"model.safetensors", "results.json", "README.md"} <= saved


def test_a_run_says_where_it_failed_and_returns_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.startswith("hf-interp: error: There is no recipe")


# Evaluation.


def evaluated_steps(results: RunResults) -> list[int]:
    return [entry["step"] for entry in results.log_history if "eval_domain_accuracy" in entry]


@pytest.mark.parametrize(("eval_steps", "expected"), [(2, [0, 2, 4]), (3, [0, 3, 4])])
def test_the_last_model_is_evaluated_once(toy_recipe: dict[str, Any], eval_steps: int, expected: list[int]) -> None:
    results = run_recipe({**toy_recipe, "eval_strategy": "steps", "eval_steps": eval_steps})
    assert evaluated_steps(results) == expected


def test_the_best_model_is_evaluated_again(toy_recipe: dict[str, Any]) -> None:
    best = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,  # by the domain's loss
        "learning_rate": 1.0,  # so that the first evaluation is the better one
        "max_grad_norm": 1e9,
        "save_only_model": True,
    }
    results = run_recipe({**toy_recipe, **best})
    entries = [entry for entry in results.log_history if "eval_domain_loss" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4, 4]
    assert results.final_metrics["domain"]["loss"] == min(entry["eval_domain_loss"] for entry in entries[1:])


def test_the_best_checkpoint_is_that_of_the_domains_loss_unless_another_metric_is_named(
    toy_recipe: dict[str, Any],
) -> None:
    def settled(**fields: Any) -> tuple[str | None, bool | None]:
        args = parse_recipe({**toy_recipe, **fields})[1]
        return args.metric_for_best_model, args.greater_is_better

    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {**every, "load_best_model_at_end": True}
    assert settled(**every) == (None, None)
    assert settled(**best) == ("eval_domain_loss", False)
    assert settled(**best, metric_for_best_model="general_accuracy") == ("eval_general_accuracy", True)
    assert settled(**best, metric_for_best_model="eval_domain_perplexity") == ("eval_domain_perplexity", False)
    assert settled(**best, metric_for_best_model="domain_hits", greater_is_better=False) == ("eval_domain_hits", False)
    with pytest.raises(
        ValueError, match=r"whether more of the metric 'hits' is better\. Set `greater_is_better` beside"
    ):
        settled(**best, metric_for_best_model="domain_hits")


def test_a_run_without_evaluation_sets(toy_recipe: dict[str, Any]) -> None:
    del toy_recipe["eval_corpora"]
    results = run_recipe({**toy_recipe, "max_steps": 1, "alpha_schedule_type": "constant", "alpha_end": 0.5})
    assert (results.base_metrics, results.final_metrics, results.forgetting) == ({}, {}, {})
    assert (Path(toy_recipe["output_dir"]) / "run.png").exists()
    assert format_results(results).splitlines()[0] == "| metric | M₀ | trained |"


# Adapters.


def test_a_run_with_an_adapter_saves_the_adapter(toy_recipe: dict[str, Any]) -> None:
    results = run_recipe({**toy_recipe, "peft": "lora", "learning_rate": 0.05})
    folder = toy_recipe["output_dir"]
    assert {"adapter_model.safetensors", "adapter_config.json", "results.json"} <= set(os.listdir(folder))
    assert "model.safetensors" not in os.listdir(folder)
    names = load_file(Path(folder) / "adapter_model.safetensors").keys()
    assert all("lora_" in name or "classifier" in name for name in names)
    assert any("classifier" in name for name in names)
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder)
    model.config.id2label = {0: "negative", 1: "positive"}
    merged = model.merge_and_unload()
    classify = pipeline("text-classification", model=merged, tokenizer=AutoTokenizer.from_pretrained(folder), device=-1)
    for side, metrics in results.final_metrics.items():
        assert metrics["accuracy"] == accuracy(classify, toy_recipe["eval_corpora"][side]["path"])


# Anchors.


@pytest.mark.parametrize("peft_preset", [None, "lora"])
@pytest.mark.parametrize("anchor", ["distill", "l2sp"])
def test_a_recipe_sets_the_dial_of_the_loss(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], anchor: str, peft_preset: str | None
) -> None:
    path = write_recipe({**toy_recipe, "anchor": anchor, "peft": peft_preset, "log_loss_gap": True})
    flags = ["--anchor_strength", "3.0", "--anchor_alpha_schedule", "{type: constant, value: 0.5}"]
    results = run_recipe(load_recipe(path, flags))
    entries = [entry for entry in results.log_history if "loss" in entry]
    assert [entry["anchor_weight"] for entry in entries] == [1.5] * 4
    assert all({"anchor_loss", "loss_gap"} <= set(entry) for entry in entries)
    assert results.config["anchor"] == anchor


def headless(tiny_model_dir: Path, folder: Path) -> str:
    AutoModel.from_pretrained(tiny_model_dir).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("is_labelled", [True, False])
def test_a_recipe_distills_a_corpus_whose_labels_it_does_not_read(
    toy_recipe: dict[str, Any], tmp_path: Path, is_labelled: bool
) -> None:
    general = toy_recipe["corpora"]["general"]
    rows = [json.loads(line) for line in Path(general["path"]).read_text().splitlines()]
    if not is_labelled:
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
        general["path"] = str(tmp_path / "texts.jsonl")
    general["objective"] = "distill"
    results = run_recipe({**toy_recipe, "average_from": 0.5})
    assert [corpus.get("objective") for corpus in results.plan["corpora"]] == ["distill", None]
    text = (Path(toy_recipe["output_dir"]) / "README.md").read_text("utf-8").partition("## Training\n\n")[2]
    assert text.startswith(
        "The predictions of M₀ were the targets of general (objective distill).\n"
        "M_θ is the mean of the weights after each step from 50% of the run on (average_from).\n\n| setting"
    )
    first = next(entry for entry in results.log_history if "loss" in entry)
    assert 0 < first["objective_loss_distill"] < 1e-3  # of dropout alone
    end = [entry for entry in results.log_history if "loss" in entry][-1]
    assert end["loss_domain"] == pytest.approx(end["objective_loss_task"])
    last, mean = [entry["eval_domain_loss"] for entry in results.log_history if "eval_domain_loss" in entry][-2:]
    assert results.final_metrics["domain"]["loss"] == mean != last


@pytest.mark.parametrize("settings", [{"anchor": "distill"}, {"log_loss_gap": True}, {"distilled": "general"}])
def test_a_new_head_has_no_predictions_to_keep(
    toy_recipe: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    toy_recipe["model_name_or_path"] = headless(tiny_model_dir, tmp_path / "headless")
    if corpus := settings.pop("distilled", None):
        toy_recipe["corpora"][corpus]["objective"] = "distill"
    with pytest.raises(
        ValueError, match=r"lacks classifier\.bias, classifier\.weight\. Start from a model with a head"
    ):
        run_recipe({**toy_recipe, **settings})


def test_no_evaluation_set_is_distilled(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["eval_corpora"]["domain"]["objective"] = "distill"
    with pytest.raises(ValueError, match="The set 'domain' cannot have the objective 'distill'"):
        run_recipe(toy_recipe)


@pytest.mark.parametrize("peft_preset", [None, "lora"])
def test_a_new_head_is_not_pulled(
    toy_recipe: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, peft_preset: str | None
) -> None:
    toy_recipe["model_name_or_path"] = headless(tiny_model_dir, tmp_path / "headless")
    settings = {"anchor": "l2sp", "anchor_strength": 1e9, "anchor_alpha_schedule": {"type": "constant", "value": 0.0}}
    results = run_recipe({**toy_recipe, **settings, "peft": peft_preset, "learning_rate": 0.05})
    assert results.config["anchor_exclude"] == ["classifier.bias", "classifier.weight"]
    assert [entry["anchor_loss"] for entry in results.log_history if "loss" in entry] == pytest.approx([0.0] * 4)
    folder = Path(toy_recipe["output_dir"])
    trained = load_file(folder / ("model.safetensors" if peft_preset is None else "adapter_model.safetensors"))
    (head,) = (tensor for name, tensor in trained.items() if name.endswith("classifier.weight"))
    assert head.abs().max() > 0.1  # a new head begins at 0.02 times a normal number


# Resuming.


@pytest.mark.parametrize("named", [True, False])
def test_a_resumed_run_ends_as_one_without_interruption(trained: dict[str, Any], tmp_path: Path, named: bool) -> None:
    whole, folder = Path(trained["output_dir"]), tmp_path / "out"
    shutil.copytree(whole / "checkpoint-2", folder / "checkpoint-2")
    resume = str(folder / "checkpoint-2") if named else True
    resumed = run_recipe({**trained, "output_dir": str(folder), "resume_from_checkpoint": resume})
    assert (folder / "checkpoint-4").is_dir()
    weights, expected = (load_file(each / "model.safetensors") for each in (folder, whole))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())
    before = load_run_results(whole / "results.json")
    assert resumed.base_metrics == before.base_metrics
    assert resumed.final_metrics == before.final_metrics
    assert [entry["loss"] for entry in resumed.log_history if "loss" in entry] == [
        entry["loss"] for entry in before.log_history if "loss" in entry
    ]


def test_a_checkpoint_that_is_not_there_is_refused(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(write_recipe(toy_recipe)), "--resume_from_checkpoint"]) == 2
    assert "No valid checkpoint found in output directory" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("True", True), ("true", True), ("False", None), ("false", None), ("out/checkpoint-2",) * 2],
)
def test_how_a_checkpoint_is_named(value: str | None, expected: str | bool | None) -> None:
    assert read_resume(value) == expected


# Data.


def loaded(recipe: dict[str, Any]) -> Any:
    parsed, args = parse_recipe(recipe)
    return load_data(parsed, check_recipe(parsed, args))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("pair", [None, "more"])
def test_examples_hold_model_inputs_and_labels_only(
    toy_recipe: dict[str, Any], tmp_path: Path, streaming: bool, pair: str | None
) -> None:
    path = tmp_path / "law.jsonl"
    path.write_text(json.dumps({"text": "good1", "more": "word1", "label": "positive", "id": 7}))
    toy_recipe["corpora"]["domain"] = {"path": str(path), "streaming": streaming, "text_pair_column": pair}
    data = loaded(toy_recipe)
    inputs = set(data.tokenizer.model_input_names)
    for corpus in data.corpora:
        example = next(iter(corpus.dataset))
        assert set(example) - {"labels"} <= inputs
        assert {"input_ids", "attention_mask", "labels"} <= set(example)
    assert len(example["input_ids"]) == (1 if pair is None else 2)
    assert [corpus.is_stream for corpus in data.corpora] == [False, streaming]
    assert {name: len(dataset) for name, dataset in data.eval_sets.items()} == {"general": 16, "domain": 16}


def test_corpora_bring_their_settings(toy_recipe: dict[str, Any]) -> None:
    path = toy_recipe["corpora"]["domain"]["path"]
    toy_recipe["corpora"] = {
        "general": toy_recipe["corpora"]["general"],
        "law": {"path": path, "side": "domain", "share": 0.25, "max_passes": 3},
        "acts": {"path": path, "side": "domain", "share": 0.75},
    }
    found = [(corpus.name, corpus.side, corpus.share, corpus.max_passes) for corpus in loaded(toy_recipe).corpora]
    assert found == [("general", "general", None, None), ("law", "domain", 0.25, 3.0), ("acts", "domain", 0.75, None)]


def test_a_stream_trains(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["corpora"]["domain"]["streaming"] = True
    results = run_recipe({**toy_recipe, "alpha_schedule_type": "constant", "alpha_end": 0.5, "eval_corpora": {}})
    assert [corpus["drawn"] for corpus in results.plan["corpora"]] == [8, 8]


@pytest.mark.parametrize("kind", ["the model of the recipe", "a model of somebody", "a link to the model"])
def test_a_run_is_not_written_over_a_model(toy_recipe: dict[str, Any], tmp_path: Path, kind: str) -> None:
    folder, base = tmp_path / "model", toy_recipe["model_name_or_path"]
    shutil.copytree(base, folder)
    recipe = {**toy_recipe, "output_dir": str(folder)}
    if kind != "a model of somebody":
        recipe["model_name_or_path"] = str(folder)
    if kind == "a link to the model":
        (tmp_path / "link").symlink_to(folder)
        recipe["output_dir"] = str(tmp_path / "link")
    with pytest.raises(
        ValueError, match=r"`output_dir` must not be the folder of .*, which would be written over, got"
    ):
        run_recipe(recipe)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in Path(base).iterdir()
    }


def test_an_objective_is_a_name_and_no_path(toy_recipe: dict[str, Any]) -> None:
    name = "../../evil"
    general = {**toy_recipe["corpora"]["general"], "objective": name}
    objectives = {name: {"task": "sequence-classification", "label_names": toy_recipe["label_names"]}}
    corpora = {**toy_recipe["corpora"], "general": general}
    with pytest.raises(
        ValueError, match="name of an objective must be of letters, digits, _ and -, and not distill, got"
    ):
        run_recipe({**toy_recipe, "corpora": corpora, "objectives": objectives})


@pytest.mark.slow
def test_under_accelerate_launch(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], commands: Path) -> None:
    words = "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no -m hf_interp.train"
    launch = [commands / "python", "-m", "accelerate.commands.launch", *words.split()]
    path = str(write_recipe(toy_recipe))
    done = subprocess.run([*launch, path, "--seed", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"The model, results.json and run.png are in {toy_recipe['output_dir']}."
    assert load_run_results(Path(toy_recipe["output_dir"]) / "results.json").config["seed"] == 3
    failed = subprocess.run([*launch, path, "--alpha_end", "2"], capture_output=True, text=True, check=False)
    assert "hf-interp: error: `alpha_end` must be an α in [0, 1], got 2.0." in failed.stderr
    assert failed.returncode != 0


# A trained model where it is to run: as docs/training.md exports it to ONNX.


TRAINING_PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_classifier_gives_the_same_logits_in_onnx(
    tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run_recipe({**make_recipe(tmp_path / "run"), "alpha_search": {"alphas": 2}})
    monkeypatch.chdir(tmp_path)
    (snippet,) = (
        block for block in re.findall(r"```python\n(.*?)```", TRAINING_PAGE, flags=re.DOTALL) if "onnx" in block
    )
    for folder in (tmp_path / "run", tmp_path / "run" / "interpolated"):
        exec(snippet, {"folder": str(folder)})
        session = onnxruntime.InferenceSession("model.onnx")
        texts = ["good0 word1", "bad1 word2 word3 word4 good2", "word0"]  # another shape than the export has seen
        inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        (found,) = session.run(None, {each.name: inputs[each.name].numpy() for each in session.get_inputs()})
        with torch.no_grad():
            expected = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
