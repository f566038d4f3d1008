"""Tasks of lm-eval on M₀, M_α and M_θ: the scores by another way, what is told of them, and what is refused."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from toy_recipes import ENGLISH, write_toy_models
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from hf_interp import cli
from hf_interp.commands.curve import curve_run
from hf_interp.reporting.results import load_run_results
from hf_interp.tasks.corpora.dialogues import CHATML
from hf_interp.tasks.harness import Harness, check_harness
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.train import run_recipe

TASK = {
    "task": "toy_cloze",
    "dataset_path": "json",
    "test_split": "test",
    "training_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
    ],
}
COUNT = 40

Scores = dict[str, dict[float, tuple[float, float | None]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, texts of both sides, and a task in lm-eval's format: which of three continuations follows."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install hf_interp[harness]")
    folder, draw = tmp_path_factory.mktemp("harness"), random.Random(5)
    write_toy_models(folder)

    def words(count: int) -> str:
        return " ".join(draw.choices(ENGLISH, k=count))

    rows = {
        "docs": [
            {"context": words(4), "choices": [words(2) for _ in range(3)], "answer": draw.randrange(3)}
            for _ in range(COUNT)
        ],
        **{side: [{"text": words(20)} for _ in range(20)] for side in ("general", "domain")},
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
    (folder / "cloze.yaml").write_text(yaml.safe_dump(task), "utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> dict[str, Any]:
    """A recipe that measures the task."""
    corpora = {side: {"path": str(folder / f"{side}.jsonl")} for side in ("general", "domain")}
    return {
        "task": "causal-lm",
        "model_name_or_path": str(folder / "decoder"),
        "max_length": 16,
        "corpora": corpora,
        "eval_corpora": corpora,
        "alpha_search": {"alphas": [0.5], "objective": "constrained", "max_forgetting": 100.0, "metric": "perplexity"},
        "eval_harness": {"tasks": [str(folder / "cloze.yaml")]},
        "output_dir": str(folder / "out"),
        "max_steps": 8,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def scores(entries: list[dict[str, Any]]) -> Scores:
    """Metric → α → value and standard error."""
    return {
        entry["metric"]: {point["alpha"]: (point["value"], point["std_error"]) for point in entry["points"]}
        for entry in entries
    }


@pytest.fixture(scope="module")
def trained(recipe: dict[str, Any]) -> Scores:
    """What a training run found."""
    run_recipe(recipe)
    return scores(load_run_results(Path(recipe["output_dir"]) / "results.json").harness)


@pytest.fixture(scope="module")
def along(trained: Scores, recipe: dict[str, Any]) -> Scores:
    """What `curve` found, which has written M_α at its chosen α."""
    assert cli.main(["curve", recipe["output_dir"], "--eval_harness", "--save_model"]) == 0
    return scores(load_run_results(Path(recipe["output_dir"]) / "results.json").harness)


def by_hand(folder: Path, model: Any, template: str | None = None) -> tuple[float, float]:
    """Accuracy and Brier score of a model, from the log-likelihood of every continuation."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
    right, squares = 0, 0.0
    for line in (folder / "docs.jsonl").read_text("utf-8").splitlines():
        doc, sums = json.loads(line), []
        for choice in doc["choices"]:
            begin = tokenizer(doc["context"])["input_ids"]
            if template is not None:
                turns = [{"role": "user", "content": doc["context"]}]
                told = tokenizer.apply_chat_template(
                    turns, chat_template=template, tokenize=False, add_generation_prompt=True
                )
                begin = tokenizer(told, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([begin + tokenizer(choice, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                chances = model.eval()(input_ids=ids).logits[0, :-1].log_softmax(-1)
            found = chances.gather(1, ids[0, 1:, None])[:, 0]
            sums.append(float(found[len(begin) - 1 :].sum()))
        right += max(range(3), key=lambda place: sums[place]) == doc["answer"]
        chance = torch.tensor(sums, dtype=torch.float64).softmax(0)
        squares += float((chance - torch.eye(3)[doc["answer"]]).square().sum())
    return right / COUNT, squares / COUNT


def test_the_scores_are_those_of_a_loop_over_log_likelihoods(
    folder: Path, trained: Scores, recipe: dict[str, Any]
) -> None:
    ends = {0.0: folder / "decoder", 1.0: Path(recipe["output_dir"])}
    for alpha, place in ends.items():
        accuracy, brier = by_hand(folder, AutoModelForCausalLM.from_pretrained(place))
        found, error = trained["acc"][alpha]
        assert found == pytest.approx(accuracy)
        assert error == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / (COUNT - 1)))
        assert trained["brier_score"][alpha][0] == pytest.approx(brier, rel=1e-5)
    assert trained["brier_score"][0.0] != trained["brier_score"][1.0]


def test_a_curve_has_every_alpha_and_the_same_ends(
    folder: Path, along: Scores, trained: Scores, recipe: dict[str, Any]
) -> None:
    assert list(along["acc"]) == [0.0, 0.5, 1.0]
    for metric, found in trained.items():
        for alpha in (0.0, 1.0):
            assert along[metric][alpha] == pytest.approx(found[alpha], nan_ok=True)
    ends = [AutoModelForCausalLM.from_pretrained(place) for place in (folder / "decoder", recipe["output_dir"])]
    with torch.no_grad():
        for base, own in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
            own.copy_((base + own) / 2)
    accuracy, brier = by_hand(folder, ends[1])
    assert along["acc"][0.5][0] == pytest.approx(accuracy)
    assert along["brier_score"][0.5][0] == pytest.approx(brier, rel=1e-5)


def test_card_report_and_picture_tell_it(along: Scores, recipe: dict[str, Any]) -> None:
    out = Path(recipe["output_dir"])
    chosen = json.loads((out / "curve.json").read_text("utf-8"))["alpha"]
    entries = ModelCard.load(out / "README.md").data.eval_results or []
    told = {entry.metric_type: entry.metric_value for entry in entries if entry.dataset_type == "toy_cloze"}
    assert told == {metric: found[chosen][0] for metric, found in along.items()}
    assert cli.main(["report", str(out)]) == 0
    value, error = along["acc"][0.5]
    for page in ("README.md", "report.html"):
        text = (out / page).read_text("utf-8")
        assert f"{value:.4f} ± {error:.4f}" in text
        assert "toy_cloze (0-shot)" in text
    assert "acc of lm-eval over α" in (out / "report.html").read_text("utf-8")
    assert (out / "harness.png").read_bytes().startswith(b"\x89PNG")


def measured(
    recipe: dict[str, Any], model: Any, template: str | None = None, **settings: Any
) -> tuple[Scores, Trainer]:
    """What is found of a model whose tokenizer has a chat template, or none, and the trainer that it was in."""
    tokenizer = AutoTokenizer.from_pretrained(recipe["model_name_or_path"])
    tokenizer.chat_template = template
    arguments = TrainingArguments(f"{recipe['output_dir']}-args", use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments, processing_class=tokenizer)
    given = {**recipe, "eval_harness": {**recipe["eval_harness"], **settings}}
    harness = Harness(parse_recipe(given)[0])
    states = torch.get_rng_state(), random.getstate()
    harness.measure(trainer, 0.5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    return scores(harness.entries), trainer


def test_an_adapter_is_measured_and_nothing_is_left_changed(folder: Path, recipe: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install hf_interp[peft]")
    base = AutoModelForCausalLM.from_pretrained(folder / "decoder")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(base, settings).train()
    model.base_model.model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, trainer = measured(recipe, model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert trainer.processing_class.padding_side == "right"
    accuracy, brier = by_hand(folder, model.merge_and_unload())
    assert found["acc"][0.5][0] == pytest.approx(accuracy)
    assert found["brier_score"][0.5][0] == pytest.approx(brier, rel=1e-4)


def test_a_chat_model_is_asked_by_its_template(folder: Path, recipe: dict[str, Any]) -> None:
    template = "{% for turn in messages %}{{ turn['role'] }} {{ turn['content'] }} {% endfor %}assistant "
    dialogues = {"domain": {"path": "x.jsonl", "messages_column": "messages"}}
    assert parse_recipe({**recipe, "corpora": dialogues})[0].applies_chat_template()
    model = AutoModelForCausalLM.from_pretrained(folder / "decoder")
    found, _ = measured({**recipe, "task": "chat", "corpora": dialogues}, model, template)
    accuracy, brier = by_hand(folder, model, template)
    assert found["acc"][0.5][0] == pytest.approx(accuracy)
    assert found["brier_score"][0.5][0] == pytest.approx(brier, rel=1e-5)
    assert brier != pytest.approx(by_hand(folder, model)[1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_harness": []}, "must name at least one task"),
        ({"eval_harness": True}, "`tasks` in `eval_harness` must be list"),
        ({"eval_harness": {"task": ["hellaswag"]}}, "Unknown field 'task' in `eval_harness`. Did you mean 'tasks'?"),
        ({"eval_harness": {"tasks": ["hellaswag"], "limit": 0}}, "a `limit` above 0"),
        ({"eval_harness": {"tasks": ["hellaswag"], "num_fewshot": -1}}, "a `num_fewshot` of at least 0"),
        ({"eval_harness": ["lost.yaml"]}, "There is no 'lost.yaml' (`eval_harness`)."),
        ({"eval_harness": {"tasks": ["a"], "include_path": "lost"}}, "There is no 'lost' (`eval_harness`)."),
        (
            {"task": "masked-lm"},
            "needs the task causal-lm or chat, because lm-eval measures language models, got masked-lm.",
        ),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str, recipe: dict[str, Any]) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_harness(parse_recipe({**recipe, **changes})[0])
    assert message in str(error.value)


def test_without_lm_eval_the_extra_is_named(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"`eval_harness` needs lm-eval. Install it with `pip install hf_interp\[har"):
        check_harness(parse_recipe(recipe)[0])


def test_data_that_is_not_there_is_refused_before_training(
    folder: Path, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {**TASK, "task": "lost", "dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump(task), "utf-8")
    given = {**recipe, "eval_harness": {"tasks": ["lost"], "include_path": str(tmp_path)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given | {"output_dir": str(tmp_path / "out")}), "utf-8")
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert "`eval_harness` (lost) cannot be read:" in error
    assert "nowhere.jsonl" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_curve_without_tasks_says_how_to_name_them(trained: Scores, recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "eval_harness": None}), "utf-8")
    with pytest.raises(ValueError, match="Say which tasks of lm-eval: --eval_harness hellaswag"):
        curve_run(tmp_path / "recipe.yaml", with_harness=True)


@pytest.mark.slow
def test_a_task_that_is_not_there_is_refused_and_the_nearest_named(recipe: dict[str, Any]) -> None:
    given = parse_recipe({**recipe, "eval_harness": ["helaswag"]})[0]
    with pytest.raises(ValueError, match=r"got 'helaswag'. Did you mean 'hellaswag'\? `lm-eval ls tasks` lists them."):
        check_harness(given)


@pytest.mark.slow
def test_the_command_of_lm_eval_finds_the_same(
    folder: Path, recipe: dict[str, Any], trained: Scores, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recipe["output_dir"])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "chat")
    model = AutoModelForCausalLM.from_pretrained(recipe["output_dir"])
    model.save_pretrained(tmp_path / "chat")
    found = {"out": trained}
    found["chat"], _ = measured(recipe, model, CHATML, apply_chat_template=True, num_fewshot=2)
    for name, place, flags in (
        ("out", recipe["output_dir"], []),
        ("chat", str(tmp_path / "chat"), ["--apply_chat_template", "--num_fewshot", "2"]),
    ):
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={place}"]
        command += ["--tasks", str(folder / "cloze.yaml"), "--device", "cpu", "--output_path", str(tmp_path / name)]
        subprocess.run([*command, *flags], check=True, capture_output=True, timeout=200)
        (path,) = (tmp_path / name).rglob("results_*.json")
        told = json.loads(path.read_text("utf-8"))["results"]["toy_cloze"]
        (alpha,) = set(found[name]["acc"]) - {0.0, 0.5} if name == "out" else found[name]["acc"]
        for metric in ("acc", "brier_score"):
            assert told[f"{metric},none"] == pytest.approx(found[name][metric][alpha][0], rel=1e-5)
        assert told["acc_stderr,none"] == pytest.approx(found[name]["acc"][alpha][1])


@pytest.mark.slow
def test_one_of_two_processes_measures_for_both(folder: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    given = {**recipe, "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given), "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, "-m", "hf_interp.train", str(tmp_path / "recipe.yaml")], check=True, capture_output=True, timeout=200
    )
    results = load_run_results(tmp_path / "out" / "results.json")
    assert results.plan["batch_size"] == 2 * 4
    found = scores(results.harness)
    for alpha, place in ((0.0, folder / "decoder"), (1.0, tmp_path / "out")):
        accuracy, brier = by_hand(folder, AutoModelForCausalLM.from_pretrained(place))
        assert found["acc"][alpha][0] == pytest.approx(accuracy)
        assert found["brier_score"][alpha][0] == pytest.approx(brier, rel=1e-5)
