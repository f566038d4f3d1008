"""M₀ beside the model that is trained: a frozen model of its own, or the trained one with its adapters off."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_interp.losses.per_example import head_shifts_labels
from hf_interp.weights.adapter_kinds import KEEPING_INITS, is_peft_model
from hf_interp.weights.live import evaluation_mode

if TYPE_CHECKING:  # a plan trains nothing
    from transformers import Trainer

TRAINED_APART = (".modules_to_save.", ".trainable_tokens_delta.")
"""Parts of the names of parameters that adapters train instead of pretrained ones."""


def unwrap_peft(model: Any) -> Any:
    """Return a model without the adapter around it."""
    return model.get_base_model() if is_peft_model(model) else model


def shifts_labels(trainer: "Trainer") -> bool:
    """Whether position i of a trainer's model predicts label i + 1, which `Trainer` does not know of all models."""
    return trainer._loss_shifts_labels or head_shifts_labels(unwrap_peft(trainer.model))


def freeze(model: nn.Module) -> nn.Module:
    """Make a model give predictions only; it is returned."""
    if (config := getattr(model, "config", None)) is not None:
        config.use_cache = False  # nothing is generated
    return model.requires_grad_(False).eval()


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model that gives predictions only, and none of which is the model's own.

    A patched forward method that calls the model's own one (as of TRL) would do so in a copy too, and predict with
    whatever the model has become; the copy gets that of its class.
    """
    copied = copy.deepcopy(model)
    for own, other in zip(model.modules(), copied.modules(), strict=True):
        patched = other.__dict__.get("forward")
        cells = getattr(getattr(patched, "__func__", patched), "__closure__", None) or ()
        if any(getattr(cell.cell_contents, "__self__", None) is own for cell in cells):
            del other.forward
    copied.zero_grad(set_to_none=True)
    return freeze(copied)


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Turn a `PeftModel` into its base model in evaluation mode, and back into exactly what it was."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        # the latter sets `requires_grad` of whatever belongs to an adapter
        with evaluation_mode(model), model.disable_adapter():
            yield
    finally:
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)


def predict(
    model: nn.Module, inputs: Mapping[str, Any], *, without_adapters: bool, autocast: AbstractContextManager[Any]
) -> torch.Tensor:
    """Return the logits of M₀, without gradients; no random number is drawn.

    Args:
        model: M₀, or the model whose adapters are to be turned off.
        inputs: what the trained model gets. Labels are left out, except where an encoder-decoder makes its inputs
            from them.
        without_adapters: whether to turn the adapters off.
        autocast: the precision to run in.
    """
    config = getattr(model, "config", None)
    needs_labels = getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs
    dropped = ("shift_labels",) if needs_labels else ("labels", "shift_labels")
    inputs = {name: value for name, value in inputs.items() if name not in dropped}
    with torch.no_grad(), adapters_off(model) if without_adapters else nullcontext(), autocast:
        return logits_of(model(**inputs))


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits among a model's outputs."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, torch.Tensor):
        raise ValueError(
            f"Predictions can be compared of models whose outputs have `logits`, got {type(outputs).__name__} without. "
            'Use a model with a head and `return_dict=True`, or `anchor="l2sp"` without `log_loss_gap`.'
        )
    return logits


def check_adapters_off(model: Any) -> None:
    """Refuse a `PeftModel` that with its adapters off is not, or does not stay, the pretrained model."""
    remedy = "pass the pretrained model as `ref_model`"
    for config in model.peft_config.values():
        init = getattr(config, "init_lora_weights", True)
        if init not in KEEPING_INITS:  # which move a part of the pretrained weights into the adapter
            raise ValueError(
                f"`init_lora_weights={init!r}` changes the pretrained weights, so the model without its adapter is not "
                f"the pretrained one. Use `init_lora_weights=True`, or {remedy}."
            )
        if config.is_prompt_learning:
            raise ValueError(
                f"Adapters of the type {config.peft_type.value} cannot be turned off here, because they put tokens "
                f"before the input. Use another type, such as LORA, or {remedy}."
            )
    check_base_is_frozen(model, remedy)


def check_base_is_frozen(model: Any, remedy: str) -> None:
    """Refuse a `PeftModel` of which training changes pretrained weights in place."""
    for name, parameter in model.named_parameters():
        is_own = model.base_model.prefix in name or any(mark in name for mark in TRAINED_APART)
        if parameter.requires_grad and not is_own:
            raise ValueError(
                f"The pretrained model is not there any more once its {plain_name(name)!r} is trained in place. Train "
                f'the adapter alone (`bias="none"`), or {remedy}.'
            )


def plain_name(name: str) -> str:
    """Return a parameter's name without what PEFT puts around it.

    >>> plain_name("base_model.model.classifier.modules_to_save.default.weight")
    'classifier.weight'
    """
    before, mark, after = name.removeprefix("base_model.model.").partition(".modules_to_save.")
    return f"{before}.{after.partition('.')[2]}" if mark else before


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of the names, shapes and a few numbers of each tensor.

    >>> fingerprint({"a": torch.zeros(20)}) == fingerprint({"a": torch.zeros(20)})
    True
    >>> fingerprint({"a": torch.zeros(20)}) == fingerprint({"a": torch.ones(20)})
    False
    """
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        few = tensor.detach().flatten()[:: max(1, tensor.numel() // 8)].cpu().double()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + few.numpy().tobytes())
    return digest.hexdigest()[:16]
