"""Adapters: what they let train, and what is said about those that cannot be built."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoModelForSequenceClassification

from hf_interp.adapters import PRESETS, get_peft_config


def test_the_lora_preset_is_a_lora_configuration() -> None:
    config = get_peft_config("lora", "SEQ_CLS")
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (8, 16, 0.05, "SEQ_CLS")
    assert config.target_modules == "all-linear"


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
    parts = {"query", "key", "value"}
    assert layers == {f"attention.self.{part}" for part in parts} | {
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    }
    assert not any("classifier" in name for name in reached)


def test_a_mapping_is_a_configuration_of_its_type() -> None:
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["query"], "task_type": "TOKEN_CLS"}
    config = get_peft_config(adapter, "SEQ_CLS")
    assert (config.r, config.target_modules, config.task_type) == (4, {"query"}, "TOKEN_CLS")
    assert adapter["peft_type"] == "LORA"  # left as it was


def test_presets_are_left_as_they_are() -> None:
    before = {name: dict(fields) for name, fields in PRESETS.items()}
    get_peft_config("lora", "SEQ_CLS")
    assert before == PRESETS


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("lorra", r"`peft` must be one of lora or a mapping with `peft_type`, got 'lorra'\. Did you mean 'lora'\?"),
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


def test_without_peft_the_remedy_is_told() -> None:
    script = (
        "import sys; sys.modules['peft'] = None; from hf_interp.adapters import get_peft_config; "
        "get_peft_config('lora', 'SEQ_CLS')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: `peft` is set, but PEFT is not installed. Install it with `pip install hf_interp[peft]`."
    )
