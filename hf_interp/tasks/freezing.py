"""A part of a model's own parameters is trained, and no adapter is needed: biases, the last layers, the head."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hf_interp.weights.alpha_spec import find_layer, last_layers

if TYPE_CHECKING:  # a plan loads no model
    from transformers import PreTrainedModel


def freeze_except(
    model: "PreTrainedModel", part: str, *, new_names: Sequence[str] = (), **options: Any
) -> "PreTrainedModel":
    """Freeze all but a part of a model, one of `PARTS`, and what the checkpoint lacks; the model is returned.

    A head that is tied to the embeddings, as those of most language models are, is not trained. `options` are
    arguments of the part, such as `n` of `last_layers`.
    """
    trained = {*PARTS[part](model, **options), *new_names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def head_names(model: "PreTrainedModel") -> list[str]:
    """Return the parameters outside the backbone, but for those that are tied to something in it."""
    backbone = model.base_model
    if backbone is not model:
        inside = {id(parameter) for parameter in backbone.parameters()}
    else:  # T5 for generation has no backbone apart
        output = model.get_output_embeddings()
        if output is None:  # nor has CLIP, which is nothing else
            return []
        inside = {id(parameter) for parameter in model.parameters()} - {id(each) for each in output.parameters()}
        inside |= {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in inside]


def _head(model: "PreTrainedModel") -> list[str]:
    """Choose the head alone (a linear probe, if it is one layer)."""
    found = head_names(model)
    if not found:
        raise ValueError(
            f"`peft: head` needs a head with weights of its own, got {type(model).__name__}, which has none beside its "
            "embeddings. Use another preset, such as last_layers or lora."
        )
    return found


def _biases(model: "PreTrainedModel") -> list[str]:
    """Choose all biases, those of norms too, and the head (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199)."""
    head = head_names(model)
    biases = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias" and name not in head]
    if not biases:
        raise ValueError(
            f"`peft: bitfit` needs a model with biases, got {type(model).__name__}, which has none outside its head. "
            "Use another preset, such as ia3 or lora."
        )
    return biases + head


def _last_layers(model: "PreTrainedModel", n: int = 2) -> list[str]:
    """Choose the last n layers of every stack (of encoder and decoder, where there are both), and the head."""
    places = {name: find_layer(name) for name, _ in model.named_parameters()}
    last = last_layers(places.values())
    if not last:
        raise ValueError(
            f"`peft: last_layers` needs a model with numbered layers, got {type(model).__name__}, whose parameters' "
            "names show none. Use another preset, such as lora."
        )
    depth = min(last.values()) + 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= depth:
        raise ValueError(
            f"`n` of last_layers must be an integer from 1 to {depth}, the layers of the model, got {n!r}."
        )
    layers = [name for name, place in places.items() if place is not None and place[1] > last[place[0]] - n]
    return list(dict.fromkeys([*layers, *head_names(model)]))


PARTS: dict[str, Callable[..., list[str]]] = {"bitfit": _biases, "last_layers": _last_layers, "head": _head}
"""Name of a part → the names of its parameters in a model."""
