"""The audit of a run: what M_α tells of its training rows."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_interp import cli
from hf_interp.commands.audit import RATES, attack, rows_read
from hf_interp.commands.demo import LABEL_NAMES, ToyShift
from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import linear
from hf_interp.reporting.results import load_run_results
from hf_interp.train import run_recipe

COUNT = 120


def write_rows(path: Path, shift: ToyShift, split: str) -> dict[str, str]:
    """Write texts with labels by chance, which a model can only know by heart."""
    draw = random.Random(split)
    rows = [
        row | {"label": draw.choice(LABEL_NAMES)} for row in shift.sentences("domain", COUNT, split=split, noisy=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"path": str(path)}


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]], toy_shift: ToyShift
) -> dict[str, Any]:
    """A recipe of a run that has learned its domain by heart, with what it and an audit wrote in its `output_dir`."""
    folder = tmp_path_factory.mktemp("audit")
    found = make_recipe(folder / "out")
    found["corpora"]["domain"] = write_rows(folder / "train.jsonl", toy_shift, "train")
    found["eval_corpora"]["domain"] = write_rows(folder / "test.jsonl", toy_shift, "test")
    found |= {"max_steps": 120, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "validation_corpora": {}}
    found |= {"alpha_schedule_type": "constant", "alpha_end": 1.0, "logging_steps": 60}
    run_recipe(found)
    assert cli.main(["audit", found["output_dir"], "--alpha_search.alphas", "3"]) == 0
    return found


@pytest.fixture(scope="module")
def points(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    audit = load_run_results(Path(recipe["output_dir"]) / "results.json").audit
    assert audit["num_examples"]["members"] == COUNT
    assert audit["num_examples"]["others"] + audit["num_examples"]["left_out"] == COUNT
    assert [point["alpha"] for point in audit["points"]] == [0.0, 0.5, 1.0]
    return list(audit["points"])


def test_a_model_that_never_saw_the_rows_does_not_tell_them(points: list[dict[str, Any]]) -> None:
    area = points[0]["loss"]["auc"]
    assert area["low"] <= 0.5 <= area["high"]
    assert points[0]["calibrated"]["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_what_was_learned_by_heart_is_found(points: list[dict[str, Any]]) -> None:
    assert points[-1]["loss"]["auc"]["low"] > 0.6
    assert points[-1]["calibrated"]["auc"]["low"] > 0.6


def test_the_losses_are_those_of_the_model(recipe: dict[str, Any], points: list[dict[str, Any]]) -> None:
    folder = recipe["output_dir"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses = []
    for part in (recipe["corpora"], recipe["eval_corpora"]):
        rows = [json.loads(line) for line in Path(part["domain"]["path"]).read_text("utf-8").splitlines()]
        with torch.no_grad():
            logits = model.eval()(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
        labels = torch.tensor([LABEL_NAMES.index(row["label"]) for row in rows])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    wins = (losses[0][:, None] < losses[1]).double() + 0.5 * (losses[0][:, None] == losses[1]).double()
    assert points[-1]["loss"]["auc"]["value"] == pytest.approx(float(wins.mean()), abs=1e-3)


@pytest.mark.slow
def test_card_report_and_command_tell_it(recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(recipe["output_dir"])
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
    for command in (["card", str(folder)], ["report", str(folder)]):
        assert cli.main(command) == 0
    audit = load_run_results(folder / "results.json").audit
    area = f"{audit['points'][-1]['loss']['auc']['value']:.4f} ("
    assert area in (folder / "README.md").read_text("utf-8")
    page = (folder / "report.html").read_text("utf-8")
    assert area in page
    assert "What M_α tells of its training rows" in page


def test_only_rows_that_were_read_are_members() -> None:
    corpora = [
        CorpusSpec(name="web", side="general", num_examples=100),
        CorpusSpec(name="law", side="domain", num_examples=30),
    ]
    plan = MixturePlan(corpora, alpha_schedule=linear(0, 1), batch_size=4, max_steps=10)
    draws = plan.locate(range(40))
    for index, corpus in enumerate(corpora):
        expected = sorted(set(draws.example[draws.corpus == index].tolist()))
        assert rows_read(plan, corpus.name).tolist() == expected
        assert 0 < len(expected) < (corpus.num_examples or 0)
    assert rows_read(plan, "news").tolist() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--corpus", "domian"],
            "must be a training corpus of the task, no stream, without `balance_by` (domain), got 'domian'.",
        ),
        (["--corpus", "general"], "at least 10 rows of 'general' that were read"),
        (["--examples", "5"], "An audit needs at least 10 rows of 'domain'"),
    ],
)
def test_bad_input_is_refused(
    recipe: dict[str, Any], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", recipe["output_dir"], *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(tmp_path)]) == 2
    assert "does not tell its recipe" in capsys.readouterr().err


# Membership inference from scores.


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
