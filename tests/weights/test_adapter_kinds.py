"""Which adapters can be scaled, and which leave M₀ in the model."""

from typing import Any

import peft
import pytest
from architectures import make_model
from torch import nn

from hf_interp.weights.adapter_kinds import FACTORS, KEEPING_INITS, adapter_capabilities, is_peft_model, refuse_prompts


def adapted(config: Any) -> Any:
    return peft.get_peft_model(make_model("llama", "CAUSAL_LM"), config)


def lora(**options: Any) -> Any:
    return peft.LoraConfig(target_modules=["v_proj"], r=2, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (lora(), ("LORA", True, True)),
        (lora(bias="lora_only"), ("LORA", True, False)),
        (lora(use_dora=True), ("DoRA", False, True)),
        (lora(use_dora=True, bias="all"), ("DoRA", False, False)),
        (lora(init_lora_weights="pissa"), ("LORA with init_lora_weights='pissa'", False, False)),
        (peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]), ("IA3", True, True)),
        (peft.OFTConfig(target_modules=["v_proj"], oft_block_size=4, r=0), ("OFT", False, True)),
        (peft.HRAConfig(target_modules=["v_proj"], r=2), ("HRA", False, False)),
    ],
)
def test_capabilities_go_by_kind_beginning_and_biases(config: Any, expected: tuple[str, bool, bool]) -> None:
    assert tuple(adapter_capabilities(adapted(config))) == expected


@pytest.mark.parametrize("init", [init for init in KEEPING_INITS if isinstance(init, bool | str) and init != "eva"])
def test_beginnings_that_keep_the_base_leave_it_as_it_was(init: Any) -> None:
    before = make_model("llama", "CAUSAL_LM").model.layers[0].self_attn.v_proj.weight
    model = adapted(lora(init_lora_weights=init))
    after = model.get_base_model().model.layers[0].self_attn.v_proj.base_layer.weight
    assert before.equal(after)
    assert adapter_capabilities(model).is_scalable


def test_every_kind_that_is_scaled_is_one_of_peft() -> None:
    assert FACTORS.keys() <= {kind.value for kind in peft.PeftType}


def test_plain_models_and_prompts_are_told_apart() -> None:
    assert not is_peft_model(nn.Linear(1, 1))
    assert is_peft_model(adapted(lora()))
    with pytest.raises(TypeError, match="must be a PeftModel, got Linear"):
        adapter_capabilities(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="must change weights, got PREFIX_TUNING"):
        refuse_prompts(peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
