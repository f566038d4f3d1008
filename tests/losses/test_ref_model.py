"""M₀ beside the model that is trained: its predictions, its mark, and what it cannot be."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn
from toys import corpus, tiny_model

from hf_interp.losses.l2sp import adapter_pairs, implicit_share, matching_names, paired_weights, pull, square_distance
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


# The pull towards M₀: by how much, and of which parameters.


@pytest.mark.parametrize(("strength", "share"), [(0.0, 0.0), (-1.0, 0.0), (1.0, 0.5), (3.0, 0.75), (float("inf"), 1.0)])
def test_the_share_of_an_implicit_step(strength: float, share: float) -> None:
    assert implicit_share(strength) == share


def test_rows_that_m0_has_not_are_left_alone() -> None:
    parameter, target = nn.Parameter(torch.tensor([[4.0], [2.0], [9.0]])), torch.tensor([[0.0], [4.0]])
    assert square_distance(parameter, target) == 16 + 4
    pull(parameter, target, 0.25)
    assert parameter.flatten().tolist() == [3.0, 2.5, 9.0]
    pull(parameter, target, 0.0)
    assert parameter.flatten().tolist() == [3.0, 2.5, 9.0]
    single = nn.Parameter(torch.tensor(4.0))
    pull(single, torch.tensor(0.0), 0.5)
    assert (single.item(), square_distance(single, torch.tensor(0.0))) == (2.0, 4.0)


def test_what_is_trained_and_not_excluded_has_a_pair() -> None:
    model, weights = tiny_model(), tiny_model().state_dict()
    model.bert.pooler.requires_grad_(False)
    del weights["classifier.bias"]
    names = {name for name, _, _ in paired_weights(model, weights, {"classifier.weight"})}
    left = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert names == {name for name, _ in model.named_parameters()} - left


def test_weights_of_another_shape_are_refused_but_for_a_vocabulary() -> None:
    model, weights = tiny_model(), tiny_model().state_dict()
    table = "bert.embeddings.word_embeddings.weight"
    pairs = paired_weights(model, {table: weights[table][:90]})
    assert [(name, len(target)) for name, _, target in pairs] == [(table, 90)]
    with pytest.raises(ValueError, match=r"weights of one shape, got \(2, 16\) for 'classifier.weight' and \(3, 16\)"):
        paired_weights(model, {"classifier.weight": torch.zeros(3, 16)})


def test_names_are_matched_with_and_without_what_peft_puts_around_them() -> None:
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    head = {f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")}
    assert head <= matching_names(model, ["classifier.*"])
    assert matching_names(model, []) == set()
    with pytest.raises(ValueError, match=r"must name parameters of the model, got 'clasifier.*', which names none"):
        matching_names(model, ["classifier.*", "clasifier.*"])


def test_one_factor_of_an_adapter_is_pulled_to_where_it_adds_nothing() -> None:
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    pairs = adapter_pairs(model)
    factors = [target for name, _, target in pairs if "lora_" in name]
    assert len(factors) == len([name for name, _ in model.named_parameters() if "lora_B" in name])
    assert not any(target.any() for target in factors)
    heads = {name: target for name, _, target in pairs if "lora_" not in name}
    for name, target in heads.items():
        assert torch.equal(target, tiny_model().get_parameter(f"classifier.{name.rpartition('.')[2]}")), name
