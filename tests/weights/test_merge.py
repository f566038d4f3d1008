"""Interpolated checkpoints, from folder to folder: the same numbers as in memory, or nothing at all."""

import copy
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import CONFIGS
from safetensors.torch import load_file, save_file
from toys import move, same_weights
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
    pipeline,
    set_seed,
)

from hf_interp.utils.files import unfinished_folders
from hf_interp.weights import checkpoint_names
from hf_interp.weights import merge as merging
from hf_interp.weights import streaming as blocks
from hf_interp.weights.adapters import scaled_parameters
from hf_interp.weights.alpha_spec import Alpha, AlphaByDepth
from hf_interp.weights.interpolate import interpolate_weights, open_interpolation
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.model_folder import find_lacking, open_base

BERT, GPT2, LLAMA, T5 = (CONFIGS[kind]() for kind in ("bert", "gpt2", "llama", "t5"))
TIED_LLAMA = CONFIGS["llama"](tie_word_embeddings=True)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MIXTRAL = MixtralConfig(vocab_size=50, num_key_value_heads=2, num_local_experts=3, **SMALL)

Tensors = dict[str, torch.Tensor]


def model_of(model_class: type[PreTrainedModel], config: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """A model with weights of its own, biases and norms too."""
    set_seed(seed)
    return move(model_class(copy.deepcopy(config)), 0.1, seed).to(dtype)


def save(model: Any, folder: Path, max_shard_size: int | str = "50GB", **kwargs: Any) -> Path:
    """Save a model; returns the folder."""
    model.save_pretrained(folder, max_shard_size=max_shard_size, **kwargs)
    return folder


def save_tensors(tensors: Tensors, folder: Path) -> Path:
    """A folder with weights alone."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load_tensors(folder: Path) -> Tensors:
    """All tensors of a checkpoint."""
    return {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}


def merge(tmp_path: Path, base: Tensors, finetuned: Tensors, alpha: Alpha, **kwargs: Any) -> Tensors:
    """Interpolate two state dicts on disk."""
    folders = save_tensors(base, tmp_path / "base"), save_tensors(finetuned, tmp_path / "tuned")
    interpolate_checkpoints(*folders, tmp_path / "out", alpha, **kwargs)
    return load_tensors(tmp_path / "out")


def assert_nothing_left(tmp_path: Path) -> None:
    assert not (tmp_path / "out").exists()
    assert unfinished_folders(tmp_path / "out") == []


PAIRS = {
    "classifiers": (BertForSequenceClassification, BERT, BertForSequenceClassification, BERT),
    "backbone and classifier": (BertModel, BERT, BertForSequenceClassification, BERT),
    "masked model and classifier": (BertForMaskedLM, BERT, BertForSequenceClassification, BERT),
    "masked model and backbone": (BertForMaskedLM, BERT, BertModel, BERT),
    "tied masked models": (BertForMaskedLM, BERT, BertForMaskedLM, BERT),
    "tied GPT-2": (GPT2LMHeadModel, GPT2, GPT2LMHeadModel, GPT2),
    "backbone and tied GPT-2": (GPT2Model, GPT2, GPT2LMHeadModel, GPT2),
    "untied Llama": (LlamaForCausalLM, LLAMA, LlamaForCausalLM, LLAMA),
    "tied Llama": (LlamaForCausalLM, TIED_LLAMA, LlamaForCausalLM, TIED_LLAMA),
    "tied and untied Llama": (LlamaForCausalLM, TIED_LLAMA, LlamaForCausalLM, LLAMA),
    "T5": (T5ForConditionalGeneration, T5, T5ForConditionalGeneration, T5),
    "experts": (MixtralForCausalLM, MIXTRAL, MixtralForCausalLM, MIXTRAL),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("alpha", [0.3, 1])
def test_folders_give_the_same_model_as_memory(tmp_path: Path, pair: str, alpha: float) -> None:
    base_class, base_config, finetuned_class, finetuned_config = PAIRS[pair]
    base, finetuned = model_of(base_class, base_config, 0), model_of(finetuned_class, finetuned_config, 1)
    save(base, tmp_path / "base"), save(finetuned, tmp_path / "tuned")
    interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", alpha)
    found, loading = finetuned_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = interpolate_weights(base, finetuned, alpha).result
    assert same_weights(found.state_dict(), expected.state_dict())
    assert load_tensors(tmp_path / "out").keys() == load_tensors(tmp_path / "tuned").keys()


@pytest.mark.parametrize(
    ("base_type", "finetuned_type", "dtype"),
    [
        (torch.float32, torch.float32, None),
        (torch.bfloat16, torch.bfloat16, None),
        (torch.float16, torch.float16, None),
        (torch.float64, torch.float64, None),
        (torch.float32, torch.bfloat16, None),
        (torch.bfloat16, torch.float32, None),
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("alpha", [0, 0.3, 0.7, 1.0])
def test_all_types_give_the_same_numbers_as_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base_type: torch.dtype,
    finetuned_type: torch.dtype,
    dtype: torch.dtype | None,
    alpha: float,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1021)
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (101, 97), "b.weight": (1,), "c.weight": (0, 5), "d.weight": (), "e.weight": (2000,)}
    base = {name: torch.randn(shape, generator=generator).to(base_type) for name, shape in shapes.items()}
    tuned = {name: torch.randn(shape, generator=generator).to(finetuned_type) for name, shape in shapes.items()}
    base["steps"], tuned["steps"] = torch.tensor([1, 2]), torch.tensor([3, 4])
    found = merge(tmp_path, base, tuned, alpha, dtype=dtype)
    assert same_weights(found, interpolate_weights(base, tuned, alpha, dtype=dtype).result)
    assert {tensor.dtype for tensor in found.values()} == {dtype or finetuned_type, torch.int64}


@pytest.mark.parametrize("base_size", [300, "50GB"])
@pytest.mark.parametrize("finetuned_size", [1, 5000])
@pytest.mark.parametrize("max_shard_size", [1, 1000, "5KB", "50GB"])
def test_shards_do_not_matter(
    tmp_path: Path, base_size: int | str, finetuned_size: int | str, max_shard_size: int | str
) -> None:
    base, finetuned = (model_of(LlamaForCausalLM, LLAMA, seed) for seed in (0, 1))
    save(base, tmp_path / "base", base_size), save(finetuned, tmp_path / "tuned", finetuned_size)
    interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3, max_shard_size=max_shard_size)
    expected = interpolate_weights(base, finetuned, 0.3).result
    assert same_weights(LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict(), expected.state_dict())
    save(expected, tmp_path / "host", max_shard_size)
    files = {path.name: path.read_bytes() for path in (tmp_path / "host").glob("model*")}
    assert sorted(path.name for path in (tmp_path / "out").glob("model*")) == sorted(files)
    index = "model.safetensors.index.json"
    if index in files:
        assert json.loads((tmp_path / "out" / index).read_bytes())["metadata"] == json.loads(files[index])["metadata"]


def test_alpha_by_name_and_by_depth(tmp_path: Path) -> None:
    base, finetuned = (model_of(LlamaForCausalLM, LLAMA, seed) for seed in (0, 1))
    save(base, tmp_path / "base"), save(finetuned, tmp_path / "tuned")
    for number, alpha in enumerate(({"*embed*": 0.2, "*": 0.9}, AlphaByDepth(0.1, 0.8))):
        out = tmp_path / f"out{number}"
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", out, alpha)
        expected = interpolate_weights(base, finetuned, alpha).result
        assert same_weights(LlamaForCausalLM.from_pretrained(out).state_dict(), expected.state_dict())
    account = json.loads((tmp_path / "out1" / "interpolation.json").read_text())
    assert account["alpha"] == {"shallow": 0.1, "deep": 0.8}


def test_extrapolation_goes_beyond(tmp_path: Path) -> None:
    base, tuned = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}
    assert merge(tmp_path, base, tuned, 1.5, extrapolate=True)["w"].tolist() == [1.5, 4.0]


@pytest.fixture
def classifiers(tmp_path: Path, tiny_model_dir: Path) -> tuple[Path, Path]:
    """Folders of M₀ and M_θ, two classifiers with a tokenizer."""
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    save(move(AutoModelForSequenceClassification.from_pretrained(tiny_model_dir), 0.1), tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def test_the_result_works_in_a_pipeline(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    report = interpolate_checkpoints(*classifiers, tmp_path / "out", 0.5)
    assert report.notes == []
    classify = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    assert 0 <= classify("a text of some words")[0]["score"] <= 1


def test_what_goes_with_the_weights_is_copied(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    base, tuned = classifiers
    kept = [
        "generation_config.json",
        "chat_template.jinja",
        "modeling_x.py",
        "LICENSE",
        "additional_chat_templates/a.jinja",
    ]
    left = [
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "results.json",
        "curve.json",
        "checksums.json",
        "trainer_state.json",
        "README.md",
    ]
    left += ["eval_results.json", "mixture_state_0.json", "checkpoint-2/config.json", "runs/events", "old.safetensors"]
    for name in [*kept, *left]:
        (tuned / name).parent.mkdir(exist_ok=True)
        (tuned / name).write_text("{}")
    interpolate_checkpoints(base, tuned, tmp_path / "out", 0.5)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    tokenizer = {path.name for path in tuned.iterdir() if "token" in path.name}
    assert found == {*kept, *tokenizer, "config.json", "model.safetensors", "interpolation.json", "README.md"}
    assert (tmp_path / "out" / "README.md").read_text() != "{}", "a card of its own"


def test_further_modules_of_a_sentence_encoder_are_copied(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    base, tuned = classifiers
    (tuned / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Dense"}, {"path": "../base"}]))
    save_tensors({"linear.weight": torch.ones(2)}, tuned / "1_Dense")
    report = interpolate_checkpoints(base, tuned, tmp_path / "out", 0.5)
    assert (tmp_path / "out" / "1_Dense" / "model.safetensors").is_file()
    assert report.notes == ["1_Dense: copied from M_θ with its weights"]


def test_an_account_is_left_without_names_of_other_folders(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    report = interpolate_checkpoints(*classifiers, tmp_path / "out", 0.25, finetuned_only=["classifier.*"])
    text = (tmp_path / "out" / "interpolation.json").read_text()
    account = json.loads(text)
    assert (account["alpha"], account["base"], account["finetuned"]) == (0.25, "base", ["tuned"])
    assert account["decisions"] == report.to_dict()["decisions"]
    assert account["counts"]["finetuned"] == 2
    assert str(tmp_path) not in text


def test_the_configuration_names_a_new_type(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    interpolate_checkpoints(*classifiers, tmp_path / "out", 0.5, dtype=torch.bfloat16)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_old_names_and_wrappers_match(tmp_path: Path) -> None:
    base, finetuned = model_of(BertForMaskedLM, BERT, 0), model_of(BertForSequenceClassification, BERT, 1)
    save(base, tmp_path / "base"), save(finetuned, tmp_path / "tuned")
    old = {
        "module."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_tensors(tmp_path / "base").items()
    }
    save_file(old, tmp_path / "base" / "model.safetensors")
    new = {f"_orig_mod.{name}": tensor for name, tensor in load_tensors(tmp_path / "tuned").items()}
    save_file(new, tmp_path / "tuned" / "model.safetensors")
    report = interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    expected = interpolate_weights(base, finetuned, 0.3)
    assert same_weights(load_tensors(tmp_path / "out"), expected.result.state_dict())
    assert len(report.names("interpolated")) == len(expected.report.names("interpolated"))


def test_without_a_class_names_match_by_themselves(tmp_path: Path) -> None:
    base = {"encoder.layer.0.weight": torch.zeros(3), "only.weight": torch.zeros(1)}
    tuned = {"own.encoder.layer.0.weight": torch.ones(3), "score.weight": torch.ones(2)}
    folders = save_tensors(base, tmp_path / "base"), save_tensors(tuned, tmp_path / "tuned")
    report = interpolate_checkpoints(*folders, tmp_path / "out", 0.5)
    assert load_tensors(tmp_path / "out")["own.encoder.layer.0.weight"].tolist() == [0.5] * 3
    assert any(note.startswith("names were matched by themselves: the class of the model") for note in report.notes)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_what_wrappers_add_to_names_is_not_written(tmp_path: Path, wrapper: str) -> None:
    base, finetuned = (model_of(LlamaForCausalLM, LLAMA, seed) for seed in (0, 1))
    for model, name in ((base, "base"), (finetuned, "tuned")):
        tensors = load_tensors(save(model, tmp_path / name))
        wrapped = {wrapper + key: tensor for key, tensor in tensors.items()}
        save_file(wrapped, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    found, loading = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    before, after = base.state_dict(), finetuned.state_dict()
    assert same_weights(found.state_dict(), {name: torch.lerp(before[name], after[name], 0.3) for name in before})


def rename_head(tensors: Tensors) -> Tensors:
    return {name.replace("lm_head", "own_head"): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_head, "but 'lm_head.weight' would be missing"),
        (lambda tensors: tensors | {"own.weight": torch.ones(1)}, "but 'own.weight' has no place in it"),
        (
            lambda tensors: tensors | {"lm_head.weight": torch.ones(61, 16)},
            r"but 'lm_head.weight' is \(61, 16\) and not \(60, 16\)",
        ),
    ],
    ids=["missing", "unexpected", "of another shape"],
)
def test_a_result_that_would_not_load_is_not_written(
    tmp_path: Path, damage: Callable[[Tensors], Tensors], message: str
) -> None:
    for seed, name in enumerate(("base", "tuned")):
        folder = save(model_of(LlamaForCausalLM, LLAMA, seed), tmp_path / name)
        save_file(damage(load_tensors(folder)), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"`finetuned_dir` must hold the tensors of a LlamaForCausalLM.*{message}"):
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("stored", ["equal names", "M_θ under both names", "M₀ under both names", "files of torch"])
def test_a_tied_tensor_that_is_stored_twice_is_one(tmp_path: Path, stored: str) -> None:
    base, finetuned = (model_of(GPT2LMHeadModel, GPT2, seed) for seed in (0, 1))
    for model, name in ((base, "base"), (finetuned, "tuned")):
        folder = save(model, tmp_path / name)
        tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        if stored == "files of torch":
            (folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        elif stored == "equal names" or (stored.startswith("M₀") == (name == "base")):
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    expected = interpolate_weights(base, finetuned, 0.3).result
    found = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert same_weights(found.state_dict(), expected.state_dict())
    assert "lm_head.weight" not in load_tensors(tmp_path / "out")
    assert report.names("dropped") == []
    assert report.names("tied") == ([] if stored.startswith("M₀") else ["lm_head.weight"])


def test_what_is_tied_in_the_finetuned_model_alone_is_refused(tmp_path: Path) -> None:
    save(model_of(LlamaForCausalLM, LLAMA, 0), tmp_path / "base")
    save(model_of(LlamaForCausalLM, TIED_LLAMA, 1), tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"'lm_head.weight' differ in M₀, so that M_α cannot be tied. Untie M_θ"):
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    assert_nothing_left(tmp_path)


def test_fused_and_single_experts_are_interpolated_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, finetuned = (model_of(MixtralForCausalLM, MIXTRAL, seed) for seed in (0, 1))
    save(base, tmp_path / "base", save_original_format=False), save(finetuned, tmp_path / "tuned")
    report = interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    expected = interpolate_weights(base, finetuned, 0.3).result
    found = MixtralForCausalLM.from_pretrained(tmp_path / "out")
    assert same_weights(found.state_dict(), expected.state_dict())
    assert "different layouts (such as fused and single experts)" in caplog.text
    assert "interpolated in memory" in report.notes[0]
    with pytest.raises(ValueError, match="must be one folder if M₀'s checkpoint has other tensors"):
        interpolate_checkpoints(tmp_path / "base", [tmp_path / "tuned"] * 2, tmp_path / "out2", 0.3)


def test_a_base_with_single_experts_is_known_by_the_names_of_the_model(tmp_path: Path) -> None:
    base, finetuned = (model_of(MixtralForCausalLM, MIXTRAL, seed) for seed in (0, 1))
    assert any(".experts.0." in name for name in load_tensors(save(base, tmp_path / "base")))
    before = {name: tensor.clone() for name, tensor in finetuned.state_dict().items()}
    with open_interpolation(open_base(tmp_path / "base", finetuned), finetuned) as live:
        live.set_alpha(0.3)
        expected = {name: torch.lerp(tensor, before[name], 0.3) for name, tensor in base.state_dict().items()}
        assert same_weights(finetuned.state_dict(), expected)


def test_an_adapter_on_fused_experts_finds_them_in_a_base_with_single_ones(tmp_path: Path) -> None:
    base = model_of(MixtralForCausalLM, MIXTRAL, 0)
    save(base, tmp_path / "base")
    config = peft.LoraConfig(target_modules=["v_proj"], target_parameters=["mlp.experts.gate_up_proj"], r=2)
    model = peft.get_peft_model(base, config)
    names = [pair.name for pair in scaled_parameters(model)]
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    assert find_lacking(tmp_path / "base", model, [*names, "score.weight"]) == ["score.weight"]


@pytest.mark.parametrize("size", [55, 67])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_a_resized_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    base, finetuned = (model_of(LlamaForCausalLM, LLAMA, seed) for seed in (0, 1))
    finetuned.resize_token_embeddings(size)
    save(base, tmp_path / "base"), save(finetuned, tmp_path / "tuned")
    report = interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    expected = interpolate_weights(base, finetuned, 0.3)
    found = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert same_weights(found.state_dict(), expected.result.state_dict())
    rows = {decision.name: decision.reason for decision in report.decisions if decision.vocabulary_axis == 0}
    assert rows.keys() == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_vocabulary_along_another_axis(tmp_path: Path) -> None:
    base = {"wte.weight": torch.randn(4, 3), "out.kernel": torch.randn(3, 4)}
    tuned = {"wte.weight": torch.randn(6, 3), "out.kernel": torch.randn(3, 6)}
    assert same_weights(merge(tmp_path, base, tuned, 0.3), interpolate_weights(base, tuned, 0.3).result)


def swap_tokens(folder: Path, first: str, second: str) -> None:
    """Exchange two tokens of a tokenizer."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))


def test_tokens_that_differ_are_refused(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    base, tuned = classifiers
    vocabulary = AutoTokenizer.from_pretrained(base).get_vocab()
    swap_tokens(tuned, *sorted(vocabulary, key=vocabulary.__getitem__)[-2:])
    with pytest.raises(
        ValueError, match=r"same token behind every common id, but id \d+ is '.+' in M₀ and '.+' in M_θ"
    ):
        interpolate_checkpoints(base, tuned, tmp_path / "out", 0.5)
    assert_nothing_left(tmp_path)
    report = interpolate_checkpoints(base, tuned, tmp_path / "out", 0.5, finetuned_only=["*word_embeddings*"])
    assert report.names("finetuned") == ["bert.embeddings.word_embeddings.weight"]


def test_tokens_that_are_added_are_welcome(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    base, tuned = classifiers
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    tokenizer.add_tokens(["newone", "newtwo"])
    tokenizer.save_pretrained(tuned)
    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    model.resize_token_embeddings(len(tokenizer))
    save(model, tuned)
    report = interpolate_checkpoints(base, tuned, tmp_path / "out", 0.5)
    assert [decision.name for decision in report.decisions if decision.vocabulary_axis == 0]


def test_a_folder_without_a_tokenizer_is_noted(tmp_path: Path, classifiers: tuple[Path, Path]) -> None:
    base, tuned = classifiers
    for path in base.glob("*token*"):
        path.unlink()
    report = interpolate_checkpoints(base, tuned, tmp_path / "out", 0.5)
    assert report.notes == ["tokens were not compared: M₀ has no tokenizer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_a_uniform_soup_is_the_plain_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, alpha: float
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 100)
    models = [model_of(BertForSequenceClassification, BERT, seed, dtype) for seed in range(4)]
    folders = [save(model, tmp_path / str(seed), 1000 + seed) for seed, model in enumerate(models)]
    report = interpolate_checkpoints(folders[0], folders[1:], tmp_path / "out", alpha, finetuned_only=["classifier.*"])
    tensors = [load_tensors(folder) for folder in folders]
    mean = {name: sum(run[name].float() for run in tensors[1:]) / 3 for name in tensors[0]}
    expected = {
        name: (mean[name] if "classifier" in name else torch.lerp(tensors[0][name].float(), mean[name], alpha)).to(
            dtype
        )
        for name in mean
    }
    assert same_weights(load_tensors(tmp_path / "out"), expected)
    assert len(report.names("finetuned")) == 2
    account = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    assert account["finetuned"] == ["1", "2", "3"]


def test_a_soup_of_other_models_is_refused(tmp_path: Path) -> None:
    base = save_tensors({"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}, tmp_path / "base")
    runs = [
        save_tensors({"a.weight": torch.ones(2), "b.weight": torch.ones(2)}, tmp_path / "one"),
        save_tensors({"a.weight": torch.ones(2), "b.weight": torch.ones(3)}, tmp_path / "two"),
        save_tensors({"a.weight": torch.ones(2)}, tmp_path / "three"),
    ]
    for other, message in ((1, r"has \(3,\) in 'two'"), (2, "is not in 'three'")):
        with pytest.raises(
            ValueError, match=rf"runs of one model, but 'b.weight' has shape \(2,\) in 'one' and {message}"
        ):
            interpolate_checkpoints(base, [runs[0], runs[other]], tmp_path / "out", 0.5)
    with pytest.raises(ValueError, match="at least one folder, got none"):
        interpolate_checkpoints(base, [], tmp_path / "out", 0.5)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_masks_with_infinities_are_copied(tmp_path: Path, alpha: float) -> None:
    mask = torch.zeros(3000).masked_fill(torch.arange(3000) > 5, -torch.inf)
    base = {"w": torch.zeros(2), "mask": mask}
    tuned = {"w": torch.ones(2), "mask": torch.cat([torch.tensor([7.0]), mask[1:]])}
    assert same_weights(
        merge(tmp_path, base, tuned, alpha), {"w": torch.full((2,), float(alpha)), "mask": tuned["mask"]}
    )
    account = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    assert {row["name"]: row["action"] for row in account["decisions"]} == {"w": "interpolated", "mask": "copied"}


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("whose", ["M₀", "M_θ", "M_θ, in new rows"])
def test_nan_is_refused(tmp_path: Path, alpha: float, whose: str) -> None:
    base, tuned = torch.ones(3000, 1), torch.ones(3000 + ("rows" in whose), 1)
    (base if whose == "M₀" else tuned)[-1] = torch.nan
    name = "wte.weight"
    with pytest.raises(ValueError, match=f"'{name}' of {whose.partition(',')[0]} holds NaN"):
        merge(tmp_path, {name: base, "v": torch.zeros(1)}, {name: tuned, "v": torch.ones(1)}, alpha)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("whose", ["M₀", "M_θ"])
def test_infinities_that_are_not_those_of_a_mask_are_refused(tmp_path: Path, alpha: float, whose: str) -> None:
    base, tuned = torch.zeros(3000), torch.zeros(3000)
    (base if whose == "M₀" else tuned)[7] = torch.inf
    with pytest.raises(ValueError, match=f"'w' of {whose} holds infinities: its training has diverged"):
        merge(tmp_path, {"w": base, "v": torch.zeros(1)}, {"w": tuned, "v": torch.ones(1)}, alpha)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("value", "what"), [(torch.nan, "NaN"), (torch.inf, "infinities")])
def test_a_new_head_that_diverged_is_refused(tmp_path: Path, value: float, what: str) -> None:
    base, tuned = {"w": torch.zeros(2)}, {"w": torch.ones(2), "score.weight": torch.tensor([1.0, value])}
    with pytest.raises(ValueError, match=f"'score.weight' of M_θ holds {what}"):
        interpolate_weights(base, tuned, 0.5)
    with pytest.raises(ValueError, match=f"'score.weight' of M_θ holds {what}"):
        merge(tmp_path, base, tuned, 0.5)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("alpha", "dtype"), [(3, None), (0.5, torch.float16)])
def test_numbers_beyond_the_range_of_a_type_are_refused(
    tmp_path: Path, alpha: float, dtype: torch.dtype | None
) -> None:
    kind = torch.float16 if dtype is None else torch.float32
    scale = 4e4 if dtype is None else 1e5
    base, tuned = {"w": -torch.ones(2, dtype=kind) * scale}, {"w": torch.ones(2, dtype=kind) * scale * 1.5}
    with pytest.raises(ValueError, match=r"takes 'w' beyond the range of torch.float16. Give a `dtype`"):
        merge(tmp_path, base, {"w": tuned["w"] * (10 if dtype else 1)}, alpha, dtype=dtype, extrapolate=True)
    assert_nothing_left(tmp_path)


STATISTICS = {"bn.weight": torch.ones(2), "bn.running_mean": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(3)}
OTHER = {"bn.weight": torch.zeros(2), "bn.running_mean": torch.ones(2), "bn.num_batches_tracked": torch.tensor(5)}


@pytest.mark.parametrize(("alpha", "mean", "found"), [(0, 1.0, 0.0), (1, 1.0, 1.0), (0.5, 0.0, 0.0)])
def test_statistics_of_the_ends_and_those_that_are_the_same_are_kept(
    tmp_path: Path, alpha: float, mean: float, found: float
) -> None:
    tuned = {**OTHER, "bn.running_mean": torch.full((2,), mean)}
    assert merge(tmp_path, STATISTICS, tuned, alpha)["bn.running_mean"].tolist() == [found, found]


def test_statistics_between_the_ends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'bn.running_mean' is a statistic of a batch norm.*recalibrate=batches"):
        merge(tmp_path, STATISTICS, OTHER, 0.5)
    assert_nothing_left(tmp_path)


def test_statistics_of_a_soup_are_refused(tmp_path: Path) -> None:
    base = save_tensors(STATISTICS, tmp_path / "base")
    runs = [save_tensors(STATISTICS, tmp_path / "one"), save_tensors(OTHER, tmp_path / "two")]
    with pytest.raises(ValueError, match="is a statistic of a batch norm"):
        interpolate_checkpoints(base, runs, tmp_path / "out", 1)


@pytest.mark.parametrize("differ", [False, True])
def test_a_flat_curve_alone_is_warned_of(tmp_path: Path, differ: bool, caplog: pytest.LogCaptureFixture) -> None:
    merge(tmp_path, {"w": torch.ones(2)}, {"w": torch.zeros(2) if differ else torch.ones(2)}, 0.5)
    message = "All interpolated tensors are the same in M₀ and M_θ: the curve over α is flat."
    warned = ("hf_interp.weights.streaming", logging.WARNING, message)
    assert caplog.record_tuples == ([] if differ else [warned])


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "have no tensor's name in common: a in M₀, b in M_θ"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(4, 5)}, r"differ in shape: a \(2, 3\) in M₀, \(4, 5\) in M_θ"),
        (
            {"h.0.w": torch.ones(1), "h.1.w": torch.ones(1)},
            {"h.0.w": torch.ones(1)},
            r"M₀ has layers' tensors that M_θ lacks: h.1.w \(1,\)",
        ),
        ({"a.qweight": torch.ones(1)}, {"a.qweight": torch.ones(1)}, "'a.qweight'.*is packed and quantised"),
    ],
)
def test_other_architectures_are_refused(tmp_path: Path, base: Tensors, tuned: Tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(tmp_path, base, tuned, 0.5)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("alpha", "kwargs", "error", "message"),
    [
        ("half", {}, TypeError, "`alpha` must be a number, got 'half'"),
        (None, {}, TypeError, "`alpha` must be a number"),
        (1.5, {}, ValueError, r"`alpha` must lie in \[0, 1\], got 1.5"),
        (float("nan"), {}, ValueError, "`alpha` must be finite"),
        ({"x*": 0.5}, {}, ValueError, "`alpha` has no pattern for 'w'"),
        (0.5, {"finetuned_only": ["x*"]}, ValueError, r"`finetuned_only` has a pattern that no tensor matches: 'x\*'"),
        (0.5, {"dtype": "bfloat16"}, TypeError, "`dtype` must be a floating-point type of torch, got 'bfloat16'"),
        (0.5, {"dtype": torch.int8}, TypeError, "`dtype` must be a floating-point type"),
        (0.5, {"max_shard_size": "5 apples"}, ValueError, "not supported"),
    ],
)
def test_wrong_arguments_leave_nothing(
    tmp_path: Path, alpha: Any, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        merge(tmp_path, {"w": torch.ones(1)}, {"w": torch.zeros(1)}, alpha, **kwargs)
    assert_nothing_left(tmp_path)


def break_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_file, "'model.safetensors' is not a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "`{}` must hold weights"),
        (shutil.rmtree, "`{}` must be a folder or the name of a model on the Hub"),
        (replace_by_file, "`{}` must be a folder, got the file"),
    ],
)
@pytest.mark.parametrize("which", ["base_dir", "finetuned_dir"])
def test_wrong_folders_leave_nothing(tmp_path: Path, damage: Callable[[Path], None], message: str, which: str) -> None:
    folders = {name: save_tensors({"w": torch.rand(3)}, tmp_path / name) for name in ("base_dir", "finetuned_dir")}
    damage(folders[which])
    with pytest.raises(ValueError, match=message.format(which)):
        interpolate_checkpoints(**folders, output_dir=tmp_path / "out", alpha=0.5)
    assert_nothing_left(tmp_path)


def test_a_name_without_a_network_says_how_to_download(tmp_path: Path) -> None:
    folder = save_tensors({"w": torch.ones(1)}, tmp_path / "tuned")
    with pytest.raises(
        ValueError, match=r"`base_dir`.*got 'someone/model'.*Download it where.*`hf download someone/model`"
    ):
        interpolate_checkpoints("someone/model", folder, tmp_path / "out", 0.5)


def test_an_adapter_is_interpolated_as_such(tmp_path: Path) -> None:
    save(model_of(LlamaForCausalLM, LLAMA, 0), tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj"])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(tmp_path / "tuned")
    interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.3)
    found = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out").merge_and_unload().state_dict()
    expected = interpolate_weights(base, model.merge_and_unload(), 0.3).result.state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    with pytest.raises(ValueError, match="`dtype` must be left out for an adapter"):
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out2", 0.3, dtype=torch.bfloat16)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        save_tensors({"w": torch.ones(1)}, tmp_path / name)
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="`base_dir` must be a whole model, got the adapter"):
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.5)
    with pytest.raises(ValueError, match="must be one folder if it is an adapter's, got several"):
        interpolate_checkpoints(tmp_path / "tuned", [tmp_path / "base"] * 2, tmp_path / "out", 0.5)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("base", "neither an input nor inside one"),
        ("tuned", "neither an input nor inside one"),
        ("tuned/deep/er", "neither an input nor inside one"),
        ("link/new", "neither an input nor inside one"),
        ("taken", "must be new or empty, got .*taken', which holds files"),
        ("file", "must be a folder, got the file"),
    ],
)
def test_an_output_must_be_new(tmp_path: Path, output: str, message: str) -> None:
    for name in ("base", "tuned"):
        save_tensors({"w": torch.rand(1)}, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"`output_dir`.*{message}"):
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / output, 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "file", "link", "taken", "tuned"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Dense", "1_Dense/model.safetensors"])
@pytest.mark.parametrize("whose", ["base", "tuned"])
def test_links_out_of_a_folder_are_not_merged(tmp_path: Path, whose: str, name: str) -> None:
    for folder in ("base", "tuned"):
        save_tensors({"w": torch.rand(1)}, tmp_path / folder)
        (tmp_path / folder / "modules.json").write_text(json.dumps([{"path": "1_Dense"}]))
        save_tensors({"linear.weight": torch.ones(2)}, tmp_path / folder / "1_Dense")
    place, secret = tmp_path / whose / name, tmp_path / "secret"
    if place.exists():
        place.rename(secret)
    else:
        secret.write_text("{}")
    place.symlink_to(secret)
    with pytest.raises(
        ValueError, match=f"'{place.name}' in '{whose}' must be a file of its own, got a link that leads"
    ):
        interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 0.5)
    assert_nothing_left(tmp_path)


def test_links_of_the_cache_of_the_hub_are_merged(tmp_path: Path) -> None:
    tuned, blobs, base = (tmp_path / name for name in ("tuned", "models--a--b/blobs", "models--a--b/snapshots/1"))
    save_tensors({"w": torch.zeros(1)}, tuned)
    blobs.mkdir(parents=True), base.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, blobs / "0a1b")
    (base / "model.safetensors").symlink_to("../../blobs/0a1b")
    interpolate_checkpoints(base, tuned, tmp_path / "out", 0.25)
    assert load_tensors(tmp_path / "out")["w"].tolist() == [0.75]


@pytest.mark.parametrize("output", ["empty", "deep/new", "link"])
def test_an_empty_folder_or_one_in_new_folders_will_do(tmp_path: Path, output: str) -> None:
    for name in ("base", "tuned"):
        save_tensors({"w": torch.rand(1)}, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    interpolate_checkpoints(tmp_path / "base", tmp_path / "tuned", tmp_path / output, 0.5)
    names = sorted(path.name for path in (tmp_path / output).iterdir())
    assert names == ["README.md", "interpolation.json", "model.safetensors"]


def test_a_small_disk_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [save_tensors({"w": torch.rand(1000)}, tmp_path / name) for name in ("base", "tuned")]
    (tmp_path / f".out.{'0' * 32}").mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=3999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=r"`output_dir` needs 4,000 bytes, and its disk has 3,999 free. Unfinished.*\.out\.0+"
    ):
        interpolate_checkpoints(*folders, tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("at", ["write", "copy", "account", "rename", "interrupt"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, exists: bool) -> None:
    names = [f"h.{index}.w" for index in range(30)]
    folders = [save_tensors({name: torch.rand(9) for name in names}, tmp_path / folder) for folder in ("base", "tuned")]
    if exists:
        (tmp_path / "out").mkdir()
    written = []
    original = blocks.write_piece

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt if at == "interrupt" else OSError(28, "No space left on device")

    def write(*args: Any) -> None:
        written.append(args)
        if len(written) == 15:
            fail()
        original(*args)

    if at in ("write", "interrupt"):
        monkeypatch.setattr(blocks, "write_piece", write)
    elif at == "copy":
        monkeypatch.setattr(merging, "copy_small_files", fail)
    elif at == "account":
        monkeypatch.setattr(merging, "write_account", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt if at == "interrupt" else OSError):
        interpolate_checkpoints(*folders, tmp_path / "out", 0.5)
    monkeypatch.undo()
    assert unfinished_folders(tmp_path / "out") == []
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    interpolate_checkpoints(*folders, tmp_path / "out", 0.5)
    assert load_tensors(tmp_path / "out").keys() == set(names)


def run_python(code: str, *args: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        check=check,
    )


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        save_tensors({f"h.{index}.w": torch.rand(1000) for index in range(30)}, tmp_path / name)
    code = """
        import resource, sys
        from hf_interp.weights.merge import interpolate_checkpoints
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            interpolate_checkpoints(*sys.argv[1:], 0.5)
        except OSError as error:
            print(error.errno, error.filename)
    """
    found = run_python(code, tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    assert found.stdout.startswith("27 ")
    assert found.stdout.endswith("model.safetensors\n")
    assert_nothing_left(tmp_path)


@pytest.mark.slow
def test_a_killed_merge_leaves_a_temporary_name_alone(tmp_path: Path) -> None:
    folders = [
        save_tensors({f"h.{index}.w": torch.rand(9) for index in range(30)}, tmp_path / name)
        for name in ("base", "tuned")
    ]
    code = """
        import os, signal, sys
        from hf_interp.weights import streaming as blocks
        from hf_interp.weights.merge import interpolate_checkpoints
        blocks.write_piece = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        interpolate_checkpoints(*sys.argv[1:], 0.5)
    """
    found = run_python(code, *folders, tmp_path / "out", check=False)
    assert found.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(unfinished_folders(tmp_path / "out")) == 1
    interpolate_checkpoints(*folders, tmp_path / "out", 0.5)
    assert len(load_tensors(tmp_path / "out")) == 30


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    big = {f"h.{index}.w": torch.zeros(75_000_000, dtype=torch.bfloat16) for index in range(2)}
    for seed, name in enumerate(("base", "tuned")):
        save_tensors({key: tensor + seed for key, tensor in big.items()}, tmp_path / name)
    code = """
        import sys, threading
        from hf_interp.weights.merge import interpolate_checkpoints

        def anonymous():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) // 1024

        peak, stop = [anonymous()], threading.Event()

        def sample():
            while not stop.wait(0.002):
                peak.append(anonymous())

        thread = threading.Thread(target=sample)
        thread.start()
        interpolate_checkpoints(*sys.argv[1:], 0.5)
        stop.set()
        thread.join()
        print(max(peak) - peak[0])
    """
    found = run_python(code, tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    assert int(found.stdout) < 100  # MiB; two tensors of 150 MB


def test_others_may_read_the_result(tmp_path: Path) -> None:
    merge(tmp_path, {"w": torch.ones(2)}, {"w": torch.zeros(2)}, 0.5)
    before = os.umask(0)
    os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~before


CUSTOM_CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("trust", [False, True])
def test_code_that_comes_with_a_model_runs_only_if_asked_for(tmp_path: Path, trust: bool) -> None:
    save(model_of(BertForMaskedLM, BERT, 0), tmp_path / "base")
    folder = save(model_of(BertForSequenceClassification, BERT, 1), tmp_path / "tuned")
    (folder / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{CUSTOM_CODE}")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-bert", "architectures": ["OwnModel"]}
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForSequenceClassification": "own_code.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    report = interpolate_checkpoints(tmp_path / "base", folder, tmp_path / "out", 0.5, trust_remote_code=trust)
    assert (tmp_path / "ran").exists() == trust
    assert any("matched by themselves" in note for note in report.notes) != trust
    assert len(report.names("interpolated")) == 53


def test_a_class_that_cannot_be_built_is_explained(tmp_path: Path) -> None:
    for config, reason in (
        (None, "ValueError: Unrecognized model in"),
        ({"model_type": "nonsense"}, "ValueError"),
        ({"model_type": "bert"}, "its configuration has no `architectures`"),
        ({"model_type": "bert", "architectures": ["Nonsense"]}, "transformers has no Nonsense"),
    ):
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"the class of the model cannot be built.*{reason}") as error:
            checkpoint_names.empty_model(tmp_path, trust_remote_code=False)
        assert str(tmp_path) not in str(error.value)
