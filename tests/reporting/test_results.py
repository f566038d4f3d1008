"""Results: files, forgetting, metrics out of logs, tables over seeds."""

import getpass
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_interp.reporting.results import (
    Comparison,
    RunResults,
    evaluations,
    forgetting,
    less_is_better,
    load_comparison,
    load_run_results,
    read_emissions,
    save_results,
    spread,
)
from hf_interp.utils.environment import describe_machine, installed_versions

LOG: list[dict[str, Any]] = [
    {"eval_general_loss": 1.0, "eval_general_accuracy": 0.75, "eval_general_runtime": 0.5, "step": 0},
    {"eval_domain_loss": 2.0, "eval_domain_accuracy": 0.5, "eval_domain_runtime": 0.5, "step": 0},
    {"loss": 0.7, "alpha": 0.5, "loss_domain": 0.9, "step": 5},
    {"eval_general_loss": 1.5, "eval_general_accuracy": 0.5, "eval_general_runtime": 0.5, "step": 5},
    {"eval_domain_loss": 1.0, "eval_domain_accuracy": 0.75, "eval_domain_runtime": 0.5, "step": 5},
    {"eval_domain_loss": 0.5, "eval_domain_accuracy": 1.0, "eval_domain_runtime": 0.5, "step": 10},
    {"train_runtime": 3.0, "train_loss": 0.6, "step": 10},
]


def run_results(**kwargs: Any) -> RunResults:
    return RunResults.from_log(**{"config": {"seed": 1}, "plan": {"max_steps": 10}, "log_history": LOG, **kwargs})


def comparison() -> Comparison:
    rows = []
    for method, seed, general, domain in (
        ("mixed", 1, 0.5, 1.0),
        ("mixed", 2, 0.75, 0.5),
        ("domain_only", 1, 0.25, 1.0),
    ):
        metrics = {"general": {"accuracy": general}, "domain": {"accuracy": domain}}
        rows.append({"method": method, "seed": seed, "metrics": metrics, "forgetting": {"accuracy": 1 - general}})
    return Comparison(rows=rows, settings={"max_steps": 10})


def test_base_and_final_metrics_come_from_the_log() -> None:
    found = run_results()
    assert found.base_metrics == {
        "general": {"loss": 1.0, "accuracy": 0.75},
        "domain": {"loss": 2.0, "accuracy": 0.5},
    }
    assert found.final_metrics == {
        "general": {"loss": 1.5, "accuracy": 0.5},
        "domain": {"loss": 0.5, "accuracy": 1.0},
    }
    assert found.forgetting == {"loss": 0.5, "accuracy": 0.25}
    assert found.log_history == LOG


def test_without_a_first_evaluation_nothing_is_known_to_be_forgotten() -> None:
    found = run_results(log_history=[*LOG[2:], {"eval_general_loss": 3.0, "eval_general_runtime": 0.5}])
    assert found.base_metrics == {}
    assert found.forgetting == {}
    assert found.final_metrics["general"] == {"loss": 3.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("base", "final", "expected"),
    [
        ({"accuracy": 0.75}, {"accuracy": 0.5}, {"accuracy": 0.25}),  # lost: above 0
        ({"accuracy": 0.5}, {"accuracy": 0.75}, {"accuracy": -0.25}),
        ({"loss": 1.0}, {"loss": 1.5}, {"loss": 0.5}),
        ({"loss": 1.5}, {"loss": 1.0}, {"loss": -0.5}),
        ({"token_loss": 1.0}, {"token_loss": 3.0}, {"token_loss": 2.0}),
        ({"f1": 0.5, "loss": 1.0}, {"f1": 0.5, "recall": 1.0}, {"f1": 0.0}),
        ({}, {"accuracy": 0.5}, {}),
    ],
)
def test_what_is_lost_is_above_0(base: dict[str, float], final: dict[str, float], expected: dict[str, float]) -> None:
    assert forgetting(base, final) == expected


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ([], {}),
        ([{"loss": 0.5, "step": 1}, {"train_loss": 0.5, "train_runtime": 2.0}], {}),
        (
            [{"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_runtime": 2.0, "epoch": 1.0, "step": 3}],
            {"": {"loss": 0.5, "accuracy": 0.75}},
        ),
        (
            [{"eval_law_texts_loss": 0.5, "eval_law_texts_macro_f1": 0.25, "eval_law_texts_runtime": 2.0}],
            {"law_texts": {"loss": 0.5, "macro_f1": 0.25}},
        ),
        (
            [
                {"eval_law_loss": 1.0, "eval_law_runtime": 2.0},
                {"eval_law_texts_loss": 0.5, "eval_law_texts_runtime": 2.0},
            ],
            {"law": {"loss": 1.0}, "law_texts": {"loss": 0.5}},
        ),
        (
            [
                {"eval_a_runtime": 1.0, "eval_a_samples_per_second": 2.0, "eval_a_steps_per_second": 3.0},
                {"eval_a_model_preparation_time": 1.0, "eval_a_f1": 0.5, "eval_a_runtime": 1.0},
            ],
            {"a": {"f1": 0.5}},
        ),
        (
            [{"eval_a_f1": 0.5, "eval_a_loss": 2.0, "eval_a_runtime": 1}, {"eval_a_f1": 0.75, "eval_a_runtime": 1}],
            {"a": {"f1": 0.75, "loss": 2.0}},  # the last value of each
        ),
        ([{"eval_domain_loss": 0.5, "eval_domain_f1": 0.25}], {"domain": {"loss": 0.5, "f1": 0.25}}),
        (
            [{"eval_a_loss": 0.5, "eval_b_loss": 0.25, "eval_b_f1": 1.0, "step": 0}],
            {"a": {"loss": 0.5}, "b": {"loss": 0.25, "f1": 1.0}},
        ),
        ([{"eval_loss": 0.5, "eval_f1": 0.25}], {"": {"loss": 0.5, "f1": 0.25}}),
    ],
)
def test_metrics_by_evaluation_set(log: list[dict[str, Any]], expected: dict[str, dict[str, float]]) -> None:
    assert evaluations(log) == expected
    assert evaluations(iter(log)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.5], {"mean": 0.5, "std": 0.0, "num": 1}),
        ([2.0, 4.0, 9.0], {"mean": 5.0, "std": math.sqrt(13), "num": 3}),
        ([0.25, 0.25, 0.25], {"mean": 0.25, "std": 0.0, "num": 3}),
    ],
)
def test_spread(values: list[float], expected: dict[str, float] | None) -> None:
    assert spread(values) == expected


def test_a_table_has_mean_and_deviation_of_every_method_in_order() -> None:
    found = comparison()
    assert found.methods() == ["mixed", "domain_only"]
    assert found.values("mixed", "domain", "accuracy") == [1.0, 0.5]
    mixed, alone = found.table("accuracy")
    assert mixed["method"] == "mixed"
    assert mixed["general"] == {"mean": 0.625, "std": pytest.approx(0.125 * math.sqrt(2)), "num": 2}
    assert mixed["domain"] == {"mean": 0.75, "std": pytest.approx(0.25 * math.sqrt(2)), "num": 2}
    assert mixed["forgetting"] == {"mean": 0.375, "std": pytest.approx(0.125 * math.sqrt(2)), "num": 2}
    assert alone == {
        "method": "domain_only",
        "general": {"mean": 0.25, "std": 0.0, "num": 1},
        "domain": {"mean": 1.0, "std": 0.0, "num": 1},
        "forgetting": {"mean": 0.75, "std": 0.0, "num": 1},
    }


def test_sides_with_other_objectives_have_metrics_of_their_own() -> None:
    rows = [
        {
            "method": "mixed",
            "metrics": {"domain": {"loss": 0.5, "accuracy": 0.75}, "general": {"loss": 2.0, "perplexity": 8.0}},
            "forgetting": {"loss": -1.0, "perplexity": -2.0},
        }
    ]
    found = Comparison(rows=rows, settings={})
    assert (found.metric("domain"), found.metric("general")) == ("accuracy", "perplexity")
    (row,) = found.table()
    assert [row[name]["mean"] for name in ("domain", "general", "forgetting")] == [0.75, 8.0, -2.0]
    (row,) = found.table("loss")
    assert [row[name]["mean"] for name in ("domain", "general", "forgetting")] == [0.5, 2.0, -1.0]


def test_a_table_counts_the_seeds_that_measured_forgetting() -> None:
    found = comparison()
    for row in found.rows[1:]:
        row["forgetting"] = {}
    assert [entry["forgetting"] for entry in found.table("accuracy")] == [{"mean": 0.5, "std": 0.0, "num": 1}, None]
    assert [entry["domain"]["num"] for entry in found.table("accuracy")] == [2, 1]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (("loss", "next_token_loss", "wer", "perplexity", "mse"), True),
        (("accuracy", "f1", "rougeL", "roc_auc", "exact_match", "token_accuracy"), False),
    ],
)
def test_the_name_tells_whether_less_is_better(metrics: Sequence[str], expected: bool) -> None:
    for metric in metrics:
        assert less_is_better(metric) is expected
        with pytest.raises(ValueError, match=f"`greater_is_better` must be .* of the metric {metric!r}, got"):
            less_is_better(metric, expected)


@pytest.mark.parametrize("metric", ["f1_answer", "exact_answer", "recall_after", "hits_center", "generated_tokens"])
def test_a_metric_that_is_not_known_is_never_guessed(metric: str) -> None:
    with pytest.raises(ValueError, match=rf"not known whether more of the metric {metric!r} is better\. Set `greater"):
        less_is_better(metric)
    assert (less_is_better(metric, True), less_is_better(metric, False)) == (False, True)
    assert forgetting({metric: 1.0, "f1": 0.5}, {metric: 2.0, "f1": 0.25}) == {"f1": 0.25}


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "results.json"
    results = run_results()
    results.recipe = {"label_names": ["gut", "schlecht", "größer"]}
    save_results(results, path)
    assert load_run_results(path) == results
    assert "größer" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_results(comparison(), str(tmp_path / "comparison.json"))
    assert load_comparison(str(tmp_path / "comparison.json")) == comparison()


def test_versions_are_those_installed() -> None:
    found = installed_versions()
    assert found["python"] == platform.python_version()
    assert {"hf_interp", "transformers", "torch", "numpy"} <= set(found)
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())
    assert run_results().versions == found


def test_results_name_neither_host_nor_user() -> None:
    machine = describe_machine()
    assert set(machine) == {"processor", "cores", "system", "architecture"}
    assert 1 <= machine["cores"] <= (os.cpu_count() or 1)
    text = json.dumps([*machine.values(), *installed_versions().values()])
    assert str(Path.home()) not in text
    words = set(re.split(r"[\s\"/,:]+", text))
    assert platform.machine() in words
    assert words.isdisjoint({platform.node(), platform.node().split(".")[0], getpass.getuser()} - {""})
    assert run_results().machine == machine


EMISSIONS = """timestamp,emissions,energy_consumed,country_name,codecarbon_version
2026-01-01T00:00:00,0.5,2.0,Canada,3.3.2
2026-01-02T00:00:00,1e-08,2.5e-06,France,3.3.2
"""


def test_emissions_are_those_of_the_last_run(tmp_path: Path) -> None:
    assert read_emissions(tmp_path) == {}
    (tmp_path / "emissions.csv").write_text(EMISSIONS, encoding="utf-8")
    assert read_emissions(str(tmp_path)) == {
        "emissions": 1e-08,
        "energy": 2.5e-06,
        "country": "France",
        "source": "codecarbon 3.3.2",
    }


@pytest.mark.parametrize(
    "text",
    ["", EMISSIONS.splitlines()[0], EMISSIONS.replace("energy_consumed", "energy"), EMISSIONS.rpartition("2.5e-06")[0]],
    ids=["empty", "no run", "another version", "half a line"],
)
def test_emissions_that_cannot_be_read_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "emissions.csv").write_text(text, encoding="utf-8")
    assert read_emissions(tmp_path) == {}


def test_results_tell_emissions_where_codecarbon_was_on(tmp_path: Path) -> None:
    from toys import config, mixture, tiny_model

    from hf_interp import InterpolationTrainer

    (tmp_path / "emissions.csv").write_text(EMISSIONS, encoding="utf-8")  # may be an earlier run's
    trainer = InterpolationTrainer(tiny_model(), config(tmp_path), train_dataset=mixture())
    assert trainer.results().emissions == {}
    trainer.args.report_to = ["codecarbon"]
    assert trainer.results().emissions["emissions"] == 1e-08
