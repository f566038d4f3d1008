"""Adapters: what they let train, and what is said about those that cannot be built."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import make_batch, make_model
from transformers import AutoModelForSequenceClassification, set_seed

from hf_interp.commands.curve import curve_run
from hf_interp.reporting.curve import load_curve
from hf_interp.tasks import presets
from hf_interp.tasks.adalora import AdaLoraCallback
from hf_interp.tasks.freezing import PARTS, head_names
from hf_interp.tasks.presets import IA3_TARGETS, PRESETS, adapt, adapter_callbacks, check_adapter, load_adapter
from hf_interp.train import run_recipe
from hf_interp.training.model_info import ParameterCount, count_parameters


def get_peft_config(adapter: Any, task_type: str | None, max_steps: int | None = None) -> Any:
    """Build the PEFT configuration of a preset or mapping, as `adapt` does."""
    return presets._build_config(presets._resolve(adapter)[1], task_type, max_steps)


KINDS = {
    "SEQ_CLS": ("bert", "distilbert", "roberta", "gpt2", "llama", "t5", "bart"),
    "TOKEN_CLS": ("bert", "distilbert", "roberta", "gpt2", "llama", "t5"),
    "CAUSAL_LM": ("gpt2", "llama"),
    "SEQ_2_SEQ_LM": ("t5", "bart"),
    None: ("bert", "distilbert", "roberta"),
}
REFUSED = {
    "bitfit": {"llama", "t5"},
    "head": {("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"), ("bart", "SEQ_2_SEQ_LM")},
    "prompt_tuning": {"TOKEN_CLS", None, ("t5", "SEQ_CLS"), ("bart", "SEQ_CLS")},
}
"""Presets → models, tasks or both for which there is nothing to train, or PEFT cannot do it."""
ONE_LAYER = {"last_layers": {"preset": "last_layers", "n": 1}}
"""For the toy model, which has no more."""
FAST = (("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"))


def combinations() -> list[Any]:
    """Model, task and preset; those of most models are slow together."""
    return [
        pytest.param(kind, task, preset, marks=() if (kind, task) in FAST else pytest.mark.slow)
        for task, kinds in KINDS.items()
        for kind in kinds
        for preset in PRESETS
        if not REFUSED.get(preset, set()) & {kind, task, (kind, task)}
    ]


def few(*fast: str, but: Sequence[str] = ()) -> list[Any]:
    """Presets, of which but a few are slow together."""
    return [
        pytest.param(preset, marks=() if preset in fast else pytest.mark.slow)
        for preset in PRESETS
        if preset not in but
    ]


def plain(name: str, prefix: str = "base_model.model.") -> str:
    """The name of a parameter in the model without its adapter."""
    for part in ("base_layer.", "original_module."):
        name = name.replace(part, "")
    return name.removeprefix(prefix)


def read(folder: Path, kind: str, task: str | None, preset: str) -> Any:
    """A saved model, or a saved adapter on its model."""
    if preset in PARTS:
        return type(make_model(kind, task)).from_pretrained(folder)
    return load_adapter(make_model(kind, task), folder)


@pytest.mark.filterwarnings("error:`is_gradient_checkpointing`:FutureWarning")
def test_names_that_peft_has_of_former_transformers_are_not_told(tmp_path: Path) -> None:
    adapt(make_model("bert", "SEQ_CLS"), "lora", task_type="SEQ_CLS", max_steps=1).save_pretrained(tmp_path)
    load_adapter(make_model("bert", "SEQ_CLS"), tmp_path)


@pytest.mark.parametrize(("kind", "task", "preset"), combinations())
def test_a_preset_trains_is_saved_and_leaves_the_rest_as_it_was(
    kind: str, task: str | None, preset: str, tmp_path: Path
) -> None:
    model = make_model(kind, task)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    heads = head_names(model) if task in ("SEQ_CLS", "TOKEN_CLS") else []
    adapted = adapt(model, preset, task_type=task, max_steps=4)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    # prompts are around the model itself
    prefix = {"prompt_tuning": "base_model."}.get(preset, "" if preset in PARTS else "base_model.model.")
    assert {plain(name, prefix).replace("modules_to_save.default.", "") for name in trained} >= set(heads)
    batch = make_batch(kind, task)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    adapted.train()
    losses = []
    for _ in range(5):
        set_seed(1)
        loss = adapted(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    rest = {plain(name, prefix): parameter for name, parameter in adapted.named_parameters() if name not in trained}
    untouched = [name for name in before if name in rest]
    assert untouched
    assert all(torch.equal(before[name], rest[name]) for name in untouched)
    if preset not in PARTS:
        assert set(before) - set(heads) <= set(untouched)  # prompts have no second copy of the head
    adapted.save_pretrained(tmp_path)
    loaded = read(tmp_path, kind, task, preset).eval()
    adapted.eval()
    with torch.no_grad():
        expected, found = adapted(**batch), loaded(**batch)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize(
    ("preset", "kind", "task"),
    [
        ("bitfit", "llama", "SEQ_CLS"),
        ("head", "gpt2", "CAUSAL_LM"),
        ("prompt_tuning", "bert", "TOKEN_CLS"),
        ("prompt_tuning", "bert", None),
        ("prompt_tuning", "t5", "SEQ_CLS"),
    ],
)
def test_a_preset_that_does_not_fit_the_model_is_refused(preset: str, kind: str, task: str | None) -> None:
    with pytest.raises(ValueError, match=r"Use another preset, such as"):
        adapt(make_model(kind, task), preset, task_type=task, max_steps=4)


# What the presets are.


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("lora", {"r": 8, "lora_alpha": 16, "use_rslora": False, "use_dora": False, "lora_dropout": 0.05}),
        ("lora", {"peft_type": "LORA", "task_type": "SEQ_CLS", "target_modules": "all-linear"}),
        ("rslora", {"r": 32, "lora_alpha": 16, "use_rslora": True, "use_dora": False}),
        ("dora", {"r": 8, "lora_alpha": 16, "use_rslora": False, "use_dora": True}),
        ("adalora", {"init_r": 12, "target_r": 8, "total_step": 100, "tinit": 10, "tfinal": 50, "deltaT": 1}),
        ("prompt_tuning", {"num_virtual_tokens": 20, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    ],
)
def test_presets_of_peft(preset: str, expected: dict[str, Any]) -> None:
    before = {name: dict(fields) for name, fields in PRESETS.items()}
    config = get_peft_config(preset, "SEQ_CLS", max_steps=100)
    assert {name: getattr(config, name) for name in expected} == expected
    assert before == PRESETS


def test_fields_are_laid_over_a_preset() -> None:
    config = get_peft_config({"preset": "lora", "r": 16, "target_modules": ["query"]}, "SEQ_CLS")
    assert (config.r, config.lora_alpha, config.target_modules) == (16, 16, {"query"})
    model = adapt(make_model("bert", "SEQ_CLS"), {"preset": "last_layers", "n": 1}, task_type="SEQ_CLS", max_steps=1)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and ".layer." in name]
    assert {name.split(".")[3] for name in trained} == {"2"}


@pytest.mark.parametrize(
    ("kind", "expected", "inner"),
    [
        ("bert", {"key", "value", "output.dense"}, {"output.dense"}),
        ("distilbert", {"k_lin", "v_lin", "lin2"}, {"lin2"}),  # which PEFT does not know
        ("llama", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
        ("t5", {"k", "v", "wo"}, {"wo"}),
    ],
)
def test_targets_of_ia3(kind: str, expected: set[str], inner: set[str]) -> None:
    task = "SEQ_CLS"
    config = adapt(make_model(kind, task), "ia3", task_type=task, max_steps=1).peft_config["default"]
    assert (config.target_modules, config.feedforward_modules) == (expected, inner)


def test_ia3_without_targets_is_refused() -> None:
    assert not any("ffn_output" in targets for targets in IA3_TARGETS)
    with pytest.raises(ValueError, match="`peft: ia3` has no targets for AlbertForSequenceClassification"):
        adapt(make_model("albert", "SEQ_CLS"), "ia3", task_type="SEQ_CLS", max_steps=1)
    adapter = {"preset": "ia3", "target_modules": ["key", "value", "ffn_output"], "feedforward_modules": ["ffn_output"]}
    model = adapt(make_model("albert", "SEQ_CLS"), adapter, task_type="SEQ_CLS", max_steps=1)
    assert sum(".ia3_l." in name for name, _ in model.named_parameters()) == 3  # ALBERT's layers are one


@pytest.mark.parametrize("preset", ["lora", "ia3", "dora"])
def test_what_the_checkpoint_lacks_is_trained_in_full(preset: str) -> None:
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    model = adapt(make_model("bert", "SEQ_CLS"), preset, task_type="SEQ_CLS", max_steps=1, new_names=new)
    trained = {plain(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.replace("modules_to_save.default.", "") for name in trained if "modules_to_save" in name} == set(new)
    assert not any("pooler" in name for name in trained if "modules_to_save" not in name)


def test_new_parameters_that_are_tied_are_not_copied() -> None:
    new = ["cls.predictions.bias", "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias"]
    model = adapt(make_model("bert", None), "ia3", task_type=None, max_steps=1, new_names=new)
    assert model.peft_config["default"].modules_to_save == ["cls.predictions.transform.dense"]


def test_a_head_that_peft_would_leave_as_it_is_is_refused() -> None:
    model = make_model("bart", "SEQ_CLS")
    with pytest.raises(ValueError, match=r"would leave the head untrained \('classification_head.dense.bias'"):
        adapt(model, {"preset": "lora", "modules_to_save": ["shared"]}, task_type="SEQ_CLS", max_steps=1)


# Counting.


def test_parameters_are_counted_once() -> None:
    model = make_model("bert", "SEQ_CLS")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model) == ParameterCount(total, total)
    adapted = adapt(model, {"preset": "lora", "r": 1, "target_modules": ["query"]}, task_type="SEQ_CLS", max_steps=1)
    # three layers with A (1 × 16) and B (16 × 1), and a head of 2 · 16 + 2
    assert count_parameters(adapted) == ParameterCount(3 * 32 + 34, total + 3 * 32)
    tied = make_model("gpt2", "CAUSAL_LM")
    assert count_parameters(tied).total == tied.num_parameters()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (ParameterCount(73_728, 22_713_216), "73,728 of 22,713,216 parameters are trained (0.32%)."),
        (ParameterCount(5, 5), "5 of 5 parameters are trained (100%)."),
        (ParameterCount(1, 1_000_000), "1 of 1,000,000 parameters are trained (0.0001%)."),
    ],
)
def test_a_count_as_a_text(count: ParameterCount, expected: str) -> None:
    assert str(count) == expected


# In a recipe.


@pytest.mark.parametrize("preset", few("adalora", "prompt_tuning", "last_layers"))
def test_recipes_train_with_every_preset(
    preset: str, toy_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = run_recipe({**toy_recipe, "peft": ONE_LAYER.get(preset, preset), "max_steps": 2})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("%).")]
    folder, base = (
        tmp_path / "out",
        AutoModelForSequenceClassification.from_pretrained(toy_recipe["model_name_or_path"]),
    )
    model = type(base).from_pretrained(folder) if preset in PARTS else load_adapter(base, folder)
    assert len(lines) == 1
    assert f" of {count_parameters(model).total:,} parameters are trained (" in lines[0]
    assert results.final_metrics["domain"]["loss"] != results.base_metrics["domain"]["loss"]


def test_only_adalora_needs_a_callback() -> None:
    for adapter in [None, *(preset for preset in PRESETS if preset != "adalora"), {"peft_type": "LORA"}]:
        assert adapter_callbacks(adapter) == []
    for adapter in ("adalora", {"preset": "adalora", "init_r": 20}, {"peft_type": "adalora"}):
        assert [type(callback) for callback in adapter_callbacks(adapter)] == [AdaLoraCallback]


@pytest.mark.parametrize("adapter", ["dora", "prompt_tuning", {"peft_type": "OFT"}, {"preset": "lora", "bias": "all"}])
def test_what_cannot_be_interpolated_is_refused_before_training(adapter: Any, toy_recipe: dict[str, Any]) -> None:
    check_adapter(adapter, "SEQ_CLS", max_steps=4)
    with pytest.raises(ValueError, match="`alpha_search` needs an adapter that is linear in one of its factors"):
        run_recipe({**toy_recipe, "peft": adapter, "alpha_search": True})


@pytest.mark.parametrize("adapter", ["lora", "rslora", "adalora", "ia3", "bitfit", "last_layers", "head"])
def test_what_can_be_interpolated_is_not_refused(adapter: str) -> None:
    check_adapter(adapter, "SEQ_CLS", max_steps=4, is_interpolated=True)


@pytest.mark.slow
@pytest.mark.parametrize("preset", few("adalora", but=("dora", "prompt_tuning")))
def test_the_curve_of_a_preset_is_found(preset: str, toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    run_recipe({**toy_recipe, "peft": ONE_LAYER.get(preset, preset), "max_steps": 2, "alpha_search": {"alphas": 2}})
    curve, folder = curve_run(tmp_path / "out", ["--alpha_search.alphas", "2"])  # of the saved adapter
    assert curve.alphas == load_curve(folder / "curve.json").alphas == [0.0, 1.0]


@pytest.mark.parametrize(
    ("adapter", "mark"),
    [("lora", "lora_"), ({"peft_type": "IA3"}, "ia3_"), ({"peft_type": "lora", "target_modules": ["query"]}, "lora_")],
)
def test_the_adapter_and_the_head_train_and_nothing_else(tiny_model_dir: Path, adapter: Any, mark: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir)
    model = peft.get_peft_model(model, get_peft_config(adapter, "SEQ_CLS"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {name for name in trained if "classifier.modules_to_save" in name}
    assert {name.rpartition(".")[2] for name in head} == {"weight", "bias"}
    assert trained - head
    assert all(mark in name for name in trained - head)


def test_lora_reaches_every_linear_layer_but_the_head(tiny_model_dir: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir)
    model = peft.get_peft_model(model, get_peft_config("lora", "SEQ_CLS"))
    reached = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    layers = {name.rpartition("layer.")[2].partition(".")[2] for name in reached if ".encoder." in name}
    attention = {f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")}
    assert layers == {*attention, "intermediate.dense", "output.dense"}
    assert not any("classifier" in name for name in reached)


def test_a_mapping_is_a_configuration_of_its_type() -> None:
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["query"], "task_type": "TOKEN_CLS"}
    config = get_peft_config(adapter, "SEQ_CLS")
    assert (config.r, config.target_modules, config.task_type) == (4, {"query"}, "TOKEN_CLS")
    assert adapter["peft_type"] == "LORA"  # left as it was


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("lorra", r"`peft` must be one of lora, .*head or a mapping .*, got 'lorra'\. Did you mean 'lora'\?"),
        ({"preset": "adalorra"}, r"got 'adalorra'\. Did you mean 'adalora'\?"),
        ({"preset": "last_layers", "m": 2}, r"Unknown field 'm' for the preset last_layers\."),
        ({"preset": "head", "n": 2}, r"Unknown field 'n' for the preset head\."),
        ({"preset": "lora", "alpha": 2}, r"Unknown field 'alpha' for PEFT type LORA\."),
        ("adalora", "AdaLoRA needs the number of steps of the run"),
        ({"preset": "adalora", "total_step": 9, "target_r": 12}, "`init_r` > `target_r` > 0, got 12 and 12"),
        ({"preset": "adalora", "total_step": 9, "target_r": 0}, "`init_r` > `target_r` > 0, got 12 and 0"),
        ("zzz", r"got 'zzz'\.$"),
        ({"r": 8}, "`peft_type` must be one of .*LORA.*, got 'NONE'"),
        ({"peft_type": "LORRA"}, r"`peft_type` must be one of .*, got 'LORRA'\. Did you mean 'LORA'\?"),
        ({"peft_type": "LORA", "rr": 8}, r"Unknown field 'rr' for PEFT type LORA\. Did you mean 'r'\?"),
        (
            {"peft_type": "IA3", "target_module": "q"},
            r"Unknown field 'target_module' for PEFT type IA3.*'target_modules'",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(adapter: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_config(adapter, "SEQ_CLS")


def test_a_schedule_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="`total_step` must be the number of steps of the run, 8, got 9"):
        check_adapter({"preset": "adalora", "total_step": 9}, "SEQ_CLS", max_steps=8)


@pytest.mark.slow
def test_without_peft_the_remedy_is_told() -> None:
    script = (
        "import sys; sys.modules['peft'] = None; from hf_interp.tasks.presets import check_adapter; "
        "check_adapter('lora', 'SEQ_CLS', max_steps=8)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: `peft` is set, but PEFT is not installed. Install it with `pip install hf_interp[peft]`."
    )
