"""The preview of a recipe against the trainer that follows it."""

import json
import math
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile
from toys import byte_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_interp import InterpolationTrainer, cli
from hf_interp.commands.plan import format_plan, plan_recipe
from hf_interp.tasks.build import build_trainer, check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe


def trainer_of(recipe: dict[str, Any]) -> InterpolationTrainer:
    parsed, args = parse_recipe(recipe)
    task = check_recipe(parsed, args)
    return build_trainer(parsed, task, args, load_data(parsed, task))


def two_domains(recipe: dict[str, Any]) -> dict[str, Any]:
    """The corpora of a recipe with the domain's test file for a second domain corpus."""
    law, acts = recipe["corpora"]["domain"], recipe["eval_corpora"]["domain"]
    domain = {"law": {**law, "side": "domain", "share": 0.75}, "acts": {**acts, "side": "domain", "share": 0.25}}
    return {"general": recipe["corpora"]["general"], **domain}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "seed": 5},
        {"data_seed": 11, "seed": 5, "alpha_schedule_type": "cosine", "alpha_initial_steps": 1},
        {"alpha_schedule_type": "constant", "alpha_end": 0.5, "max_steps": 9},
        {"corpora": two_domains},
    ],
)
def test_the_plan_is_the_trainers(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], changes: dict[str, Any]
) -> None:
    recipe = {**toy_recipe, **{key: value(toy_recipe) if callable(value) else value for key, value in changes.items()}}
    plan, *_ = plan_recipe(str(write_recipe(recipe)))
    trained = trainer_of(recipe).plan
    assert trained is not None
    assert plan.fingerprint() == trained.fingerprint()
    assert plan.summary() == trained.summary()


def test_flags_change_the_plan(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    plan, *_ = plan_recipe(str(write_recipe(toy_recipe)), ["--max_steps", "7", "--alpha_end", "0.5", "--seed=3"])
    assert (plan.max_steps, plan.alpha(6), plan.seed) == (7, 0.5, 3)


def test_tokens_are_those_of_the_examples(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    preview = plan_recipe(str(write_recipe({**toy_recipe, "max_length": 8})))
    mean_tokens = preview.mean_tokens
    tokenizer = AutoTokenizer.from_pretrained(toy_recipe["model_name_or_path"])
    for side in ("general", "domain"):
        rows = [json.loads(line) for line in Path(toy_recipe["corpora"][side]["path"]).read_text().splitlines()]
        lengths = [min(len(tokenizer(row["text"])["input_ids"]), 8) for row in rows]
        assert mean_tokens[side] == pytest.approx(sum(lengths) / len(lengths))
    summary = preview.summary
    assert [corpus["tokens"] for corpus in summary["corpora"]] == [
        round(8 * mean_tokens[side]) for side in ("general", "domain")
    ]


def test_tokens_of_a_large_corpus_are_estimated_from_a_spread_sample(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    lengths = [1] * 1500 + [3] * 1500  # sorted, as a corpus may be
    rows = [json.dumps({"text": "word1 " * length, "label": "negative"}) for length in lengths]
    (tmp_path / "large.jsonl").write_text("\n".join(rows))
    toy_recipe["corpora"]["general"] = {"path": str(tmp_path / "large.jsonl")}
    assert plan_recipe(str(write_recipe(toy_recipe)))[1]["general"] == 2.0


def test_streams_have_no_tokens_and_no_passes(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    toy_recipe["corpora"]["domain"]["streaming"] = True
    summary = plan_recipe(str(write_recipe(toy_recipe))).summary
    general, domain = summary["corpora"]
    assert (domain["num_examples"], domain["tokens"], domain["passes"], domain["exhausted_at"]) == (None,) * 4
    assert general["tokens"] > 0
    text = format_plan(summary)
    assert "tokens," not in text
    assert "about" not in text
    assert "stream" in text


def test_the_text_tells_every_number(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    found = plan_recipe(str(write_recipe({**toy_recipe, "max_steps": 1000, "warmup_steps": 0})))
    plan, summary = found.plan, found.summary
    general, domain = summary["corpora"]
    lines = format_plan(summary).splitlines()
    total = general["tokens"] + domain["tokens"]
    assert lines[0] == f"1,000 steps of 4 examples: 4,000 examples, about {total:,} tokens"
    assert lines[1] == "domain share over all steps: 50.0%; α weighted by the learning rate: 33.3%"
    assert lines[2] == f"fingerprint: {plan.fingerprint()}"
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert ["step", "0", "250", "500", "749", "999"] in cells
    assert next(row for row in cells if row[0] == "α")[1::4] == ["0.000", "1.000"]
    exhausted = [f"{plan.exhausted_at(index):,}" for index in (0, 1)]
    assert ["general", "general", "40", "100.0%", "2,000", f"{general['tokens']:,}", "50.00", exhausted[0]] in cells
    assert ["domain", "domain", "12", "100.0%", "2,000", f"{domain['tokens']:,}", "166.67", exhausted[1]] in cells
    assert lines[-3].startswith("Warning: Corpus 'general' is read 50.0 times")
    assert lines[-2].startswith("Warning: Corpus 'domain' is read 166.7 times")
    assert lines[-1].startswith("Warning: Few rows to measure by: ")


def test_the_borders_of_epochs_are_told(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    epochs = {"max_steps": None, "num_train_epochs": 2, "alpha_schedule_type": "constant", "alpha_end": 0.5}
    found = plan_recipe(str(write_recipe({**toy_recipe, **epochs}))).summary
    assert (found["max_steps"], found["epochs"]) == (12, {"side": "domain", "count": 2.0, "ends": [6, 12]})
    assert "epochs (passes of domain): 2, which end at step 6, 12" in format_plan(found)
    both = {**toy_recipe, **epochs, "mixture_epoch": "all", "num_train_epochs": 30}
    text = format_plan(plan_recipe(str(write_recipe(both))).summary)
    assert "epochs (passes of both sides): 30, which end at step 13, 26, 39, 52, 65, 78, 91, 104, …" in text


def test_a_plan_without_warnings_has_none(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    few = format_plan(plan_recipe(str(write_recipe(toy_recipe))).summary).rpartition("Warning: ")[2]
    groups = {"eval_corpora": 16, "validation_corpora": 12}
    counts = ", ".join(f"`{group}.{side}` {count}" for group, count in groups.items() for side in ("general", "domain"))
    off, enough = (196 * math.sqrt(0.25 / count) for count in (12, 400))
    assert few.startswith(f"Few rows to measure by: {counts}. Metrics may be off by {off:.0f} points by chance (95%)")
    assert few.endswith(f"with 400 rows it is {enough:.0f}.")
    for group, count in groups.items():
        sets = {side: {"path": [entry["path"]] * (100 // count + 1)} for side, entry in toy_recipe[group].items()}
        toy_recipe[group] = sets
    text = format_plan(plan_recipe(str(write_recipe(toy_recipe))).summary)
    assert "Warning" not in text
    assert text.count("never") == 2  # neither corpus is read through


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
        ({"label_names": None}, "A recipe for sequence-classification must list `label_names`"),
        ({"label_names": []}, "must list `label_names`"),
        ({"peft": "lorra"}, "Did you mean 'lora'"),
        ({"output_dir": " "}, "`output_dir` must name a folder, got ' '"),
        ({"torch_compile_backend": "inducter"}, "`torch_compile_backend` must be one of .*Did you mean 'inductor'"),
        ({"torch_compile_mode": "max-autotun"}, "`torch_compile_mode` must be .* Did you mean 'max-autotune'"),
        ({"mixture_path": [{"at": 0, "general": 0.5}]}, "must sum to 1, not 0.5"),
        ({"mixture_path": [{"at": 0, "general": 1.0}]}, r"\['domain'\] are in none"),
        ({"mixture_path": "half"}, "`mixture_path` must be a list of points"),
        (
            {"mixture_path": [{"at": 0, "general": 0.5, "domain": 0.5}], "alpha_controller": "guard"},
            "cannot move α along a",
        ),
    ],
)
def test_a_recipe_that_cannot_be_trained_cannot_be_planned(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_recipe(str(write_recipe({**toy_recipe, **changes})))


@pytest.mark.parametrize(("flag", "least"), [("--num_processes", 1), ("--samples", 0)])
def test_a_number_below_the_least_is_refused(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    flag: str,
    least: int,
) -> None:
    assert cli.main(["plan", str(write_recipe(toy_recipe)), f"{flag}={least - 1}"]) == 2
    assert f"`{flag[2:]}` must be at least {least}, got {least - 1}." in capsys.readouterr().err


class Measuring(TrainerCallback):
    """Measures the bytes that the third step holds at the most: what was there, and what torch's profiler saw come."""

    peak = 0

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 2:
            return
        model, moments = kwargs["model"], kwargs["optimizer"].state.values()
        held = [*model.parameters(), *model.buffers(), *(each for state in moments for each in state.values())]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in held}
        self.held = sum(storages.values())
        self.profiler.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.profiler.__exit__(None, None, None)
            found = self.profiler.profiler.kineto_results.events()
            changes = sorted((event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]")
            self.peak = self.held + max(accumulate(change for _, change in changes))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "bf16": True},
        {"gradient_checkpointing": True},
        {"peft": "lora", "average_from": 0.5, "corpora.general.objective": "distill"},
    ],
    ids=["full", "accumulation", "checkpoints", "lora"],
)
def test_memory_is_estimated_within_15_percent_of_the_peak(changes: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    words = byte_tokenizer(trims=False)
    words.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<pad>"})
    words.save_pretrained(tmp_path / "model")
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=512, num_key_value_heads=2)).save_pretrained(tmp_path / "model")
    for side in ("general", "domain"):
        (tmp_path / f"{side}.txt").write_text(f"{side} " * 2000, "utf-8")
    recipe = {
        "task": "causal-lm",
        "model_name_or_path": str(tmp_path / "model"),
        "max_length": 128,
        "corpora": {side: {"path": str(tmp_path / f"{side}.txt")} for side in ("general", "domain")},
        **{"output_dir": str(tmp_path / "run"), "max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True},
    }
    if "corpora.general.objective" in changes:
        recipe["corpora"]["general"]["objective"] = changes["corpora.general.objective"]
    recipe |= {name: value for name, value in changes.items() if "." not in name}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    preview = plan_recipe(str(tmp_path / "recipe.yaml"), estimates_memory=True)
    assert "memory of a process, about: " in format_plan(preview.summary)
    trainer, measuring = trainer_of(recipe), Measuring()
    trainer.add_callback(measuring)
    trainer.train()
    weights = sum(each.numel() * each.element_size() for each in trainer.model.parameters())
    assert preview.summary["memory"]["parameters"] == pytest.approx(weights, rel=1e-3)  # and some buffers
    assert preview.summary["memory"]["peak"] == pytest.approx(measuring.peak, rel=0.15)


def test_memory_of_a_classifier_is_estimated(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    memory = plan_recipe(str(write_recipe(toy_recipe)), estimates_memory=True).summary["memory"]
    model = trainer_of(toy_recipe).model
    trained = sum(each.numel() * 4 for each in model.parameters())
    assert (memory["gradients"], memory["optimizer"]) == (trained, 2 * trained)
    assert memory["peak"] > 3 * trained


def test_a_plan_makes_no_folder(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    plan_recipe(str(write_recipe(toy_recipe)))
    assert not Path(toy_recipe["output_dir"]).exists()


def test_what_is_cut_and_what_the_model_sees(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe({**toy_recipe, "max_length": 2}))
    assert cli.main(["plan", path, "--samples", "1"]) == 0
    out = capsys.readouterr().out
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        for name, corpus in toy_recipe[group].items():
            rows = [json.loads(line) for line in Path(corpus["path"]).read_text().splitlines()]
            count = sum(len(row["text"].split()) > 2 for row in rows)
            assert f"Warning: {count} of {len(rows)} rows of `{group}.{name}` are cut to `max_length`" in out
            if group == "corpora":
                first = " ".join(rows[0]["text"].split()[:2])
                assert f"{name}, as the model will see it:\n- 2 tokens: {first} → {rows[0]['label']}\n" in f"{out}\n"
    assert cli.main(["plan", path, "--samples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(samples) for samples in found["samples"].values()] == [2, 2]
    assert found["cut"]["corpora.domain"] == [count_of(toy_recipe), found["corpora"][1]["num_examples"]]


def count_of(recipe: dict[str, Any]) -> int:
    lines = Path(recipe["corpora"]["domain"]["path"]).read_text().splitlines()
    return sum(len(json.loads(line)["text"].split()) > 2 for line in lines)


def test_labels_and_rows_that_are_trained_on_are_told(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    trained, tested = toy_recipe["corpora"]["domain"], toy_recipe["eval_corpora"]["domain"]
    count = len(read_rows(tested))
    found = plan_recipe(str(write_recipe(toy_recipe))).summary
    labels = [row["label"] for row in read_rows(trained)]
    assert found["labels"]["domain"] == {name: labels.count(name) for name in toy_recipe["label_names"]}
    both = {**toy_recipe["corpora"], "domain": {**tested, "side": "domain"}}
    same = plan_recipe(str(write_recipe({**toy_recipe, "corpora": both}))).summary
    assert same["shared"]["eval_corpora.domain"] == [count, count]
    assert f"Warning: {count} of {count} rows of `eval_corpora.domain` (100.0%)" in format_plan(same)


def test_a_measured_plan_tells_time_and_memory_and_keeps_nothing(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(toy_recipe["model_name_or_path"])
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    path = str(write_recipe({**toy_recipe, "max_steps": 90_000, "eval_strategy": "steps", "save_steps": 1}))
    found = plan_recipe(path, measure=True)
    assert capsys.readouterr() == ("", "")
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
    assert not Path(toy_recipe["output_dir"]).exists()
    summary = found.summary
    seconds, peak = summary["measured"]["seconds"], summary["measured"]["peak_memory"]
    assert summary["measured"]["steps"] == 3
    assert 0 < seconds < 60
    assert 1e8 < peak < 1e11
    whole = timedelta(seconds=round(90_000 * seconds))
    text = f"measured on 3 steps: {seconds:.3g} s a step, so about {whole} for 90,000 steps"
    size = f"{peak / 2**30:.2f} GiB" if peak >= 2**30 else f"{peak / 2**20:.2f} MiB"
    assert f"{text}, evaluations not counted; peak memory {size}" in format_plan(summary)
    assert found.plan.fingerprint() == plan_recipe(path).plan.fingerprint()


def read_rows(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(entry["path"]).read_text("utf-8").splitlines()]


def test_a_path_is_planned_trained_and_drawn(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web, law, acts = (
        toy_recipe["corpora"]["general"],
        toy_recipe["corpora"]["domain"],
        toy_recipe["eval_corpora"]["domain"],
    )
    path = [{"at": 0, "web": 1}, {"at": 0.5, "web": 0.5, "acts": 0.5}, {"at": 1.0, "acts": 0.25, "law": 0.75}]
    own = {key: value for key, value in toy_recipe.items() if not key.startswith("alpha")}
    recipe = {**own, "corpora": {"web": web, "law": law, "acts": acts}, "mixture_path": path, "max_steps": 5}
    assert cli.main(["plan", str(write_recipe(recipe)), "--plot", str(tmp_path / "plan.png")]) == 0
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert ["web", "100.0%", "75.0%", "50.0%", "25.0%", "0.0%"] in cells
    assert ["law", "0.0%", "0.0%", "0.0%", "37.5%", "75.0%"] in cells
    assert {row[0]: row[1] for row in cells if len(row) > 6 and row[0].isalpha()} == {
        "corpus": "side",
        "web": "general",
        "law": "domain",
        "acts": "domain",
    }
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    trainer = trainer_of(recipe)
    trainer.train()
    assert trainer.plan is not None
    assert trainer.plan.fingerprint() == plan_recipe(str(write_recipe(recipe)))[0].fingerprint()
    assert trainer.plan.drawn_before(5).tolist() == [10, 5, 5]  # 10, 4.5 and 5.5 are due
    assert trainer.results().plan["shares"][2] == [0.5, 0.0, 0.5]


def test_a_corpus_may_have_a_share_on_both_sides(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    corpora = {name: dict(config) for name, config in toy_recipe["corpora"].items()}
    corpora["web"] = {**corpora.pop("general"), "share": {"general": 1, "domain": 0.25}}
    corpora["domain"]["share"] = 0.75
    recipe = {**toy_recipe, "corpora": corpora, "alpha_schedule_type": "linear", "max_steps": 3}
    plan = plan_recipe(str(write_recipe(recipe))).plan
    assert [plan.shares(step) for step in range(3)] == [[0.0, 1.0], [0.375, 0.625], [0.75, 0.25]]
    assert [corpus.side for corpus in plan.corpora] == ["domain", "general"]
