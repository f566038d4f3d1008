"""Adapters on disk: what is written loads as an adapter, or as a model, and is M_α."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from toys import move
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    set_seed,
)

from hf_interp.weights.adapters import AdapterInterpolation
from hf_interp.weights.interpolate import interpolate_weights
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint

IDS = torch.tensor([[3, 5, 7, 11, 2, 1], [4, 1, 6, 8, 9, 30]])
LINEARS = ["query", "dense"]


@pytest.fixture
def base_dir(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A classifier with its tokenizer, of weights that are not close to 0."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model_dir, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    move(model, 0.1)
    model.save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, config: Any, **options: Any) -> Any:
    """An adapter as a run leaves it, with the tokenizer beside."""
    set_seed(8)
    plain = AutoModelForSequenceClassification.from_pretrained(base, **options)
    model = peft.get_peft_model(plain, config).eval()
    move(model, 0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}")
    return model


def load(base: Path, adapter: Path, **options: Any) -> Any:
    plain = AutoModelForSequenceClassification.from_pretrained(base, **options)
    return peft.PeftModel.from_pretrained(plain, adapter).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


CONFIGS: dict[str, Callable[[], Any]] = {
    "LORA": lambda: peft.LoraConfig(target_modules=LINEARS, task_type="SEQ_CLS"),
    "biases": lambda: peft.LoraConfig(target_modules=LINEARS, task_type="SEQ_CLS", bias="all"),
    "IA3": lambda: peft.IA3Config(target_modules=LINEARS, feedforward_modules=["dense"], task_type="SEQ_CLS"),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("names_base", [False, True])
def test_a_scaled_adapter_is_an_adapter(case: str, names_base: bool, tmp_path: Path, base_dir: Path) -> None:
    model = write_adapter(base_dir, tmp_path / "adapter", CONFIGS[case]())
    base = AutoModelForSequenceClassification.from_pretrained(base_dir)
    output = tmp_path / "new" / "scaled"
    report = interpolate_adapter_checkpoint(
        base_dir if names_base else None, tmp_path / "adapter", output, {"*.query.*": 0.2, "*": 0.3}
    )
    scaled = load(base_dir, output)
    with AdapterInterpolation(model, base) as live:
        live.set_alpha({"*.query.*": 0.2, "*": 0.3})
        assert distance(logits(scaled), logits(model)) < 1e-6
        assert report.alphas() == live.report.alphas()
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_dir)
    assert len(AutoTokenizer.from_pretrained(output)) == len(AutoTokenizer.from_pretrained(base_dir))
    assert not (output / "trainer_state.json").exists()
    assert not list(output.parent.glob(".*"))
    account = json.loads((output / "interpolation.json").read_text())
    assert account["alpha"] == {"*.query.*": 0.2, "*": 0.3}
    assert (account["base"], account["finetuned"]) == ("base", ["adapter"])
    assert len(account["decisions"]) == len(report.decisions)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_merged_adapter_is_a_model(case: str, tmp_path: Path, base_dir: Path) -> None:
    model = write_adapter(base_dir, tmp_path / "adapter", CONFIGS[case]())
    output = tmp_path / "merged"
    interpolate_adapter_checkpoint(None, tmp_path / "adapter", output, 0.3, merge=True)
    found = AutoModelForSequenceClassification.from_pretrained(output)
    with AdapterInterpolation(model, AutoModelForSequenceClassification.from_pretrained(base_dir)) as live:
        live.set_alpha(0.3)
        assert distance(logits(found), logits(model)) < 1e-6
    assert not (output / "adapter_config.json").exists()
    names = set(load_file(output / "model.safetensors"))
    assert names == set(load_file(base_dir / "model.safetensors"))
    assert len(AutoTokenizer.from_pretrained(output)) == len(AutoTokenizer.from_pretrained(base_dir))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa", "r": 4}], ids=["DoRA", "PiSSA"])
def test_what_cannot_be_scaled_is_merged(options: dict[str, Any], tmp_path: Path, base_dir: Path) -> None:
    config = peft.LoraConfig(target_modules=LINEARS, task_type="SEQ_CLS", **options)
    model = write_adapter(base_dir, tmp_path / "adapter", config)
    for alpha in (0.0, 0.3, 1.0):
        output = tmp_path / f"merged_{alpha}"
        report = interpolate_adapter_checkpoint(None, tmp_path / "adapter", output, alpha)
        found = AutoModelForSequenceClassification.from_pretrained(output)
        base = AutoModelForSequenceClassification.from_pretrained(base_dir)
        assert distance(logits(found), logits(interpolate_weights(base, model, alpha).result)) < 1e-5
        if alpha == 0.0:
            assert distance(logits(found), logits(base)) < 1e-6
        if alpha == 1.0:
            assert distance(logits(found), logits(model)) < 1e-5
        assert report.notes[0].startswith("merged, because")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_head_that_the_base_lacks_is_kept_whole(dora: bool, num_labels: int, tmp_path: Path, base_dir: Path) -> None:
    plain = BertForMaskedLM(BertConfig.from_pretrained(base_dir))
    plain.save_pretrained(base_dir)
    config = peft.LoraConfig(target_modules=LINEARS, task_type="SEQ_CLS", use_dora=dora)
    model = write_adapter(base_dir, tmp_path / "adapter", config, num_labels=num_labels)
    report = interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.0)
    head = {name for name in report.names("finetuned") if name.startswith("classifier.")}
    assert head == {"classifier.weight", "classifier.bias"}
    assert {decision.reason for decision in report.decisions if decision.action == "finetuned"} == {
        "M₀ has no such tensor"
    }
    if dora:
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        weight = found.classifier.weight
    else:
        found = load(base_dir, tmp_path / "out", num_labels=num_labels)
        weight = found.get_base_model().classifier.modules_to_save["default"].weight
    assert torch.equal(weight, model.get_base_model().classifier.modules_to_save["default"].weight)


def test_an_adapter_without_a_task_says_its_class(tmp_path: Path, base_dir: Path) -> None:
    model = write_adapter(base_dir, tmp_path / "adapter", peft.LoraConfig(target_modules=LINEARS))
    interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.5)
    scaled = peft.PeftModel.from_pretrained(
        BertForSequenceClassification.from_pretrained(base_dir), tmp_path / "out"
    ).eval()
    with interpolate_weights(None, model, 0.5).result:
        assert distance(logits(scaled), logits(model)) < 1e-6


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_folders_that_are_not_what_they_must_be_are_refused(tmp_path: Path, base_dir: Path) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(base_dir, adapter, CONFIGS["LORA"]())

    def refused(message: str, output: Path = tmp_path / "out", source: Path = adapter, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            interpolate_adapter_checkpoint(options.pop("base", None), source, output, options.pop("alpha", 0.5))
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))

    refused(r"`adapter_dir` must hold an adapter, got .* without adapter_config\.json", source=base_dir)
    refused("`output_dir` must be neither an input nor inside one", output=adapter / "inside")
    refused("`output_dir` must be new or empty", output=tmp_path)
    refused("`alpha` must lie in", alpha=2)
    refused("`base` must be a folder or the name of a model", base=tmp_path / "nowhere")
    edit_config(adapter, base_model_name_or_path=None)
    refused(r"`base` must be given: adapter_config\.json in .* names no base model")
    edit_config(adapter, task_type=None, auto_mapping=None)
    refused("must say what class of model the adapter is for, got task_type=None. Set `task_type` to", base=base_dir)
    edit_config(adapter, auto_mapping={"parent_library": "os", "base_model_class": "system"})
    refused("must say what class of model the adapter is for", base=base_dir)
    prompts = tmp_path / "prompts"
    plain = AutoModelForSequenceClassification.from_pretrained(base_dir)
    peft.get_peft_model(plain, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS")).save_pretrained(
        prompts
    )
    refused("must change weights, got PROMPT_TUNING", source=prompts)


def test_a_base_that_is_quantised_or_another_is_named(tmp_path: Path, base_dir: Path) -> None:
    config = peft.LoraConfig(target_modules=LINEARS, task_type="SEQ_CLS", modules_to_save=["position_embeddings"])
    write_adapter(base_dir, tmp_path / "adapter", config)
    path = base_dir / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(
        ValueError, match=r"`base` must have plain weights, got 'base', which is quantised \(bitsandbytes\)"
    ):
        interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.5)
    positions = settings["max_position_embeddings"] + 1
    BertForSequenceClassification(BertConfig(**{**settings, "max_position_embeddings": positions})).save_pretrained(
        base_dir
    )
    with pytest.raises(ValueError, match=r"`base` must be the model that the adapter in 'adapter' is for: .*position"):
        interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.5)


def test_an_empty_folder_is_filled(tmp_path: Path, base_dir: Path) -> None:
    write_adapter(base_dir, tmp_path / "adapter", CONFIGS["LORA"]())
    (tmp_path / "out").mkdir()
    interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.5)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_rows_for_new_tokens_are_made(tmp_path: Path, base_dir: Path) -> None:
    adapter = tmp_path / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    plain = AutoModelForSequenceClassification.from_pretrained(base_dir)
    size = plain.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"new{index}" for index in range(size + 3 - len(tokenizer))])
    set_seed(8)
    plain.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(target_modules=LINEARS, task_type="SEQ_CLS", modules_to_save=["word_embeddings"])
    model = peft.get_peft_model(plain, config).eval()
    move(model, 0.1)
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    interpolate_adapter_checkpoint(None, adapter, tmp_path / "out", 1.0, merge=True)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert found.get_input_embeddings().num_embeddings == len(tokenizer)
    assert distance(logits(found), logits(model)) < 1e-5
