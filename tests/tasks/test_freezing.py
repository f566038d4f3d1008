"""Parts of a model: which parameters belong to them."""

from typing import Any

import pytest
import torch
from architectures import make_model

from hf_interp.tasks.freezing import PARTS, freeze_except, head_names

BOTH = ("weight", "bias")


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_in(name: str, *parts: str) -> bool:
    return any(f".{part}." in f".{name}." for part in parts)


@pytest.mark.parametrize(
    ("kind", "task", "expected"),
    [
        ("bert", "SEQ_CLS", {"classifier.weight", "classifier.bias"}),
        ("distilbert", "SEQ_CLS", {f"{layer}.{part}" for layer in ("pre_classifier", "classifier") for part in BOTH}),
        (
            "bart",
            "SEQ_CLS",
            {f"classification_head.{layer}.{part}" for layer in ("dense", "out_proj") for part in BOTH},
        ),
        ("llama", "SEQ_CLS", {"score.weight"}),
        ("llama", "CAUSAL_LM", {"lm_head.weight"}),
        ("gpt2", "CAUSAL_LM", set()),  # tied to the embeddings
        ("t5", "SEQ_2_SEQ_LM", set()),
        ("bart", "SEQ_2_SEQ_LM", set()),
        (
            "bert",
            None,
            {
                f"cls.predictions.{name}"
                for name in ("bias", *(f"transform.{x}.{y}" for x in ("dense", "LayerNorm") for y in BOTH))
            },
        ),
    ],
)
def test_a_head_is_what_lies_outside_the_backbone(kind: str, task: str | None, expected: set[str]) -> None:
    assert set(head_names(make_model(kind, task))) == expected


def test_a_head_without_a_backbone_apart_is_the_output_layer() -> None:
    model = make_model("t5", "SEQ_2_SEQ_LM")
    assert model.base_model is model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # as in T5 1.1
    assert head_names(model) == ["lm_head.weight"]
    assert trained(freeze_except(model, "head")) == {"lm_head.weight"}


@pytest.mark.parametrize("was_trained", [True, False])
def test_head_trains_the_head_alone(was_trained: bool) -> None:
    model = make_model("bert", "SEQ_CLS").requires_grad_(was_trained)
    assert freeze_except(model, "head") is model
    assert trained(model) == {"classifier.weight", "classifier.bias"}


def test_bitfit_trains_all_biases_and_the_head() -> None:
    model = freeze_except(make_model("bert", "SEQ_CLS"), "bitfit")
    expected = {name for name, _ in model.named_parameters() if name.endswith(".bias")} | {"classifier.weight"}
    assert trained(model) == expected
    assert "bert.encoder.layer.0.attention.output.LayerNorm.bias" in expected


def test_bitfit_trains_biases_alone_where_the_head_is_tied() -> None:
    model = freeze_except(make_model("gpt2", "CAUSAL_LM"), "bitfit")
    assert trained(model) == {name for name, _ in model.named_parameters() if name.endswith(".bias")}


def test_last_layers_trains_two_layers_and_the_head() -> None:
    found = trained(freeze_except(make_model("bert", "SEQ_CLS"), "last_layers"))
    assert {name.split(".")[3] for name in found if ".layer." in name} == {"1", "2"}
    assert all(is_in(name, "encoder.layer", "classifier") for name in found)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("kind", "stacks"), [("t5", ("encoder.block", "decoder.block")), ("bart", ("layers",))])
def test_last_layers_are_those_of_encoder_and_decoder(kind: str, stacks: tuple[str, ...], n: int) -> None:
    model = freeze_except(make_model(kind, "SEQ_2_SEQ_LM"), "last_layers", n=n)
    layers = range(3 - n, 3)
    expected = {
        name
        for name, _ in model.named_parameters()
        if is_in(name, *(f"{stack}.{index}" for stack in stacks for index in layers))
    }
    assert trained(model) == expected
    assert {side for name in expected for side in ("encoder", "decoder") if is_in(name, side)} == {"encoder", "decoder"}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_new_is_trained_with_every_part(part: str) -> None:
    model = freeze_except(make_model("bert", "SEQ_CLS"), part, new_names=["bert.pooler.dense.weight"])
    assert "bert.pooler.dense.weight" in trained(model)
    assert "bert.embeddings.word_embeddings.weight" not in trained(model)


@pytest.mark.parametrize(
    ("kind", "task", "part", "options", "message"),
    [
        ("gpt2", "CAUSAL_LM", "head", {}, "`peft: head` needs a head with weights of its own, got GPT2LMHeadModel"),
        ("llama", "SEQ_CLS", "bitfit", {}, "`peft: bitfit` needs a model with biases, got LlamaForSequenceClass"),
        ("bert", "SEQ_CLS", "last_layers", {"n": 4}, "`n` of last_layers must be an integer from 1 to 3, .*, got 4"),
        ("bert", "SEQ_CLS", "last_layers", {"n": 0}, "from 1 to 3, .*, got 0"),
        ("bert", "SEQ_CLS", "last_layers", {"n": 1.0}, "from 1 to 3, .*, got 1.0"),
        ("bert", "SEQ_CLS", "last_layers", {"n": True}, "from 1 to 3, .*, got True"),
    ],
)
def test_what_a_model_does_not_have_is_refused(
    kind: str, task: str, part: str, options: dict[str, Any], message: str
) -> None:
    model = make_model(kind, task)
    with pytest.raises(ValueError, match=message):
        freeze_except(model, part, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_must_be_numbered() -> None:
    model = make_model("albert", "SEQ_CLS")
    with pytest.raises(ValueError, match="`peft: last_layers` needs a model with numbered layers, got AlbertFor"):
        freeze_except(model, "last_layers")
    assert isinstance(model.albert.pooler.weight, torch.Tensor)
