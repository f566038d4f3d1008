"""The capabilities of an adapter: whether M_α is such an adapter too, and whether M₀ is in the model.

PEFT has more kinds of adapters than are known here, and more with every version: of those that are not known, nothing
is taken for granted.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from torch import nn

FACTORS: dict[str, dict[str, float]] = {
    "LORA": {"lora_B": 0.0, "lora_embedding_A": 0.0},
    "ADALORA": {"lora_E": 0.0},
    "LOHA": {"hada_w2_b": 0.0},
    "LOKR": {"lokr_w1": 0.0, "lokr_w1_a": 0.0},
    "VERA": {"vera_lambda_b": 0.0},
    "FOURIERFT": {"fourierft_spectrum": 0.0},
    "IA3": {"ia3_l": 1.0},
    "LN_TUNING": {},
    "TRAINABLE_TOKENS": {},
}
"""Kinds that can be scaled → the one factor that is, in the forms it may have, with its value in M₀.

It is the factor that PEFT starts at this value where there is one. Of a LoRA on embeddings that is A, which a tied
output layer has as its B: of two layers that share both factors one factor is scaled, not both.
"""

KEEPING_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""`init_lora_weights` that leave the base weights as they are; all others change them when the adapter is made."""

LINEAR_VARIANTS = ("VeloraLinearVariant", "MiCALinearVariant", "MiCAEmbeddingVariant", "BdLoraLinearVariant")
"""Variants of LoRA that are linear in the factor as plain LoRA is."""

KEEPS_BASE = ("BOFT", "OFT")
"""Kinds that cannot be scaled and leave the base weights as they are, so that M₀ is in the model."""


@contextmanager
def no_former_names() -> Iterator[None]:
    """Keep quiet that peft asks a model by a name that transformers has given up: no user can change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


class AdapterCapabilities(NamedTuple):
    """The capabilities of an adapter."""

    label: str
    is_scalable: bool
    """Whether M_α is itself such an adapter."""
    keeps_base: bool
    """Whether M₀ is in the model: the adapter changed none of its weights in place."""


def is_peft_model(model: Any) -> bool:
    """Whether it is a PEFT model; without importing PEFT where it has not been."""
    kind: Any = type(model)
    return _is_of_peft(kind)


@cache  # asked several times a step
def _is_of_peft(kind: type) -> bool:
    names = ("PeftModel", "PeftMixedModel")
    return any(cls.__module__.startswith("peft.") and cls.__name__ in names for cls in kind.__mro__)


def adapter_capabilities(model: Any) -> AdapterCapabilities:
    """Return what can be done with the active adapter of a PEFT model."""
    _check_model(model)
    config = model.active_peft_config
    kind = config.peft_type.value
    # which kinds have this field differs from one version of PEFT to the next
    keeps_biases = vars(config).get("bias", "none") == "none"
    if kind == "LORA":
        init = config.init_lora_weights
        if init not in KEEPING_INITS:
            return AdapterCapabilities(f"LORA with init_lora_weights={init!r}", is_scalable=False, keeps_base=False)
        others = sorted(_variants(model) - set(LINEAR_VARIANTS))
        if others:
            is_dora = "Dora" in others[0]
            label = "DoRA" if is_dora else f"LORA ({others[0]})"
            return AdapterCapabilities(label, is_scalable=False, keeps_base=is_dora and keeps_biases)
    if kind in FACTORS:
        return AdapterCapabilities(kind, is_scalable=True, keeps_base=keeps_biases)
    return AdapterCapabilities(kind, is_scalable=False, keeps_base=kind in KEEPS_BASE and keeps_biases)


def refuse_prompts(config: Any) -> None:
    """Refuse an adapter's configuration whose adapter changes no weights."""
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter must change weights, got {config.peft_type.value}: it adds virtual tokens, and M₀ has none "
            "to interpolate them with."
        )


def _check_model(model: Any) -> None:
    """Refuse what has no one adapter that is in force."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if not is_peft_model(model):
        raise TypeError(f"`model` must be a PeftModel, got {type(model).__name__}.")
    if not isinstance(model, PeftModel):
        raise ValueError("`model` must have an adapter of one kind, got a PeftMixedModel. Merge it first.")
    if len(model.active_adapters) != 1:
        raise ValueError(
            f"`model` must have one active adapter, got {model.active_adapters}. Set one with `model.set_adapter`."
        )
    refuse_prompts(model.active_peft_config)
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(
                f"`model` must have its adapter unmerged, got {name!r} merged. Call `model.unmerge_adapter()` first."
            )
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)) and module.disable_adapters:
            raise ValueError(
                f"`model` must have its adapter enabled, got {name!r} disabled. Leave `model.disable_adapter()`, or "
                "call `model.base_model.enable_adapter_layers()`."
            )


def _variants(model: nn.Module) -> set[str]:
    """Return the classes of the variants of LoRA in a model, for its active adapter."""
    from peft.tuners.lora import LoraLayer

    return {
        type(module.lora_variant[adapter]).__name__
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for adapter in module.active_adapters
        if adapter in module.lora_variant
    }
