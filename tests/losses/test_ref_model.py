"""M₀ beside the model that is trained: its predictions, its mark, and what it cannot be."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from toys import corpus, tiny_model

from hf_interp.losses.ref_model import (
    check_adapters_off,
    fingerprint,
    freeze,
    logits_of,
    plain_name,
    predict,
    unwrap_peft,
)


def adapted(**kwargs: Any) -> Any:
    return peft.get_peft_model(
        tiny_model(0.3), peft.LoraConfig(**{"task_type": "SEQ_CLS", "target_modules": ["query"], **kwargs})
    )


def test_m0_gives_predictions_only() -> None:
    model = freeze(tiny_model(0.3))
    assert not model.training
    assert not model.config.use_cache
    assert not any(parameter.requires_grad for parameter in model.parameters())
    rows = corpus(0, 3)
    inputs = {"input_ids": torch.tensor(rows["input_ids"]), "labels": torch.tensor(rows["labels"])}
    found = predict(model, inputs, without_adapters=False, autocast=nullcontext())
    assert torch.equal(found, model(input_ids=inputs["input_ids"]).logits)
    assert found.grad_fn is None


def test_a_model_is_looked_up_inside_its_adapter() -> None:
    model = adapted()
    assert unwrap_peft(model) is model.get_base_model()
    assert unwrap_peft(unwrap_peft(model)) is model.get_base_model()


@pytest.mark.parametrize("outputs", [(torch.zeros(1),), {"loss": torch.zeros(1)}, {"logits": None}])
def test_outputs_without_logits_are_refused(outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"outputs have `logits`, got \w+ without"):
        logits_of(outputs)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classifier.weight", "classifier.weight"),
        ("base_model.model.bert.pooler.dense.bias", "bert.pooler.dense.bias"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
    ],
)
def test_names_without_what_peft_puts_around_them(name: str, expected: str) -> None:
    assert plain_name(name) == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bias": "all"}, r"'.*bias' is trained in place\. Train the adapter alone .* `ref_model`"),
        ({"init_lora_weights": "pissa"}, r"`init_lora_weights='pissa'` changes the pretrained weights"),
    ],
)
def test_an_adapter_that_changes_the_base_is_refused(kwargs: dict[str, Any], message: str) -> None:
    check_adapters_off(adapted())
    with pytest.raises(ValueError, match=message):
        check_adapters_off(adapted(**kwargs))


def test_adapters_that_put_tokens_before_the_input_are_refused() -> None:
    config = SimpleNamespace(is_prompt_learning=True, peft_type=SimpleNamespace(value="PREFIX_TUNING"))
    with pytest.raises(ValueError, match="PREFIX_TUNING cannot be turned off here"):
        check_adapters_off(SimpleNamespace(peft_config={"default": config}))


def test_a_mark_changes_with_names_shapes_and_numbers() -> None:
    tensor = torch.arange(16.0)
    marks = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.reshape(4, 4)},
        {"a": tensor + 1},
        {"a": tensor, "b": tensor},
        {},
    ]
    assert len({fingerprint(each) for each in marks}) == len(marks)
    assert fingerprint({"a": tensor.clone()}) == fingerprint({"a": tensor.double()})
