"""M_α of PEFT models: α·M_θ + (1 − α)·M₀, where M₀ is the model without its adapter.

What most adapters add to a weight is linear in one of their factors, so that scaling this factor by α alone gives M_α
exactly: it is an adapter itself, is saved and merged as any other, and no weight of the model is copied or touched.
What is no such factor is interpolated against its neutral value: IA3's vectors against 1, trained copies of modules,
rows and biases against the originals. Adapters of other kinds (DoRA, OFT, ...) and those that changed M₀ when they
were made (PiSSA, OLoRA, ...) are merged, and the merged weights interpolated.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_interp.weights.adapter_kinds import FACTORS, AdapterCapabilities, adapter_capabilities
from hf_interp.weights.alpha_spec import Alpha, resolve_alpha
from hf_interp.weights.live import Interpolation
from hf_interp.weights.matching import Action, InterpolationReport, TensorDecision, match_names
from hf_interp.weights.tensors import (
    Interpolated,
    Weights,
    decide_tensors,
    is_finite,
    lerp,
    named_tensors,
    refuse_diverged,
    write_tensors,
)

_MERGE_FIRST = "Merge it first: `model.merge_and_unload()`, and give the base model as M₀."

# model → where a factor lies → the state in which it was left, and its trained value
_scaled: WeakKeyDictionary[nn.Module, dict[int, tuple[int, torch.Tensor]]] = WeakKeyDictionary()


class ScaledParameter(NamedTuple):
    """A parameter that takes the model from M₀ to M_θ."""

    name: str
    """The parameter that it changes, by its name in the base model."""
    parameter: nn.Parameter
    """As trained."""
    neutral: torch.Tensor | float
    """Its value in M₀."""
    reason: str
    """The kind of the parameter, in words."""


def scaled_parameters(model: Any, base: Weights | None = None) -> list[ScaledParameter]:
    """Return the parameters of a PEFT model whose values in M₀ are known, and between which M_α is linear."""
    return _unique(_list_pairs(model, base))[0]


class AdapterInterpolation(Interpolation):
    """M_α of a PEFT model with one active adapter, in place; what `save_pretrained` and `merge_and_unload` see is M_α.

    Every α is computed from the trained values, of which a copy is kept; weights of the base model are not copied. A
    model that is at some α already, and was not touched since, is known by what it was trained to.

    Names are those of the base model. `base` (M₀) is needed only where biases of the base model itself were trained.

    Raises:
        TypeError: if it is no `PeftModel`.
        ValueError: if the adapter is not of a kind that can be scaled, if it is merged, disabled or not the only
            active one, or if `base` is needed.

    ```python
    with AdapterInterpolation(peft_model) as live:
        for alpha in (0.0, 0.5, 1.0):
            live.set_alpha(alpha)
            print(alpha, trainer.evaluate())
    ```
    """

    def __init__(
        self,
        model: Any,
        base: Weights | None = None,
        *,
        finetuned_only: Sequence[str] = (),
        extrapolate: bool = False,
    ) -> None:
        pairs, ties = _unique(_list_pairs(model, base))
        for pattern in finetuned_only:
            if not any(fnmatchcase(pair.name, pattern) for pair in pairs):
                raise ValueError(f"`finetuned_only` has a pattern that no changed weight matches: {pattern!r}.")
        kept = {pair.name for pair in pairs if any(fnmatchcase(pair.name, pattern) for pattern in finetuned_only)}
        self._pairs = [pair for pair in pairs if pair.name not in kept]
        if not self._pairs:
            raise ValueError("Nothing is left to interpolate: all that the adapter changes is from M_θ alone.")
        self._trained = [_trained_value(model, pair) for pair in self._pairs]
        verdicts: list[tuple[str, Action, str]] = [
            *((pair.name, "interpolated", pair.reason) for pair in self._pairs),
            *((pair.name, "finetuned", "as asked for") for pair in pairs if pair.name in kept),
            *((name, "tied", f"to {first}") for name, first in ties.items()),
        ]
        decisions = [
            TensorDecision(name=name, action=action, reason=reason, base_name=name) for name, action, reason in verdicts
        ]
        super().__init__(model, decisions, extrapolate)

    def set_alpha(self, alpha: Alpha) -> None:
        self._alphas = resolve_alpha(alpha, self.names, extrapolate=self.extrapolate)
        left = _scaled.setdefault(self.model, {})
        for pair, trained in zip(self._pairs, self._trained, strict=True):
            place = pair.parameter.detach()
            with torch.no_grad():
                lerp(_neutral_value(pair, trained), trained, self._alphas[pair.name], place)
            left[place.data_ptr()] = (place._version, trained)

    def restore(self) -> None:
        with torch.no_grad():
            for pair, trained in zip(self._pairs, self._trained, strict=True):
                pair.parameter.detach().copy_(trained)
        _scaled.pop(self.model, None)
        self._alphas = dict.fromkeys(self.names, 1.0)


def interpolate_adapter(
    base: Weights | None,
    model: Any,
    alpha: Alpha,
    *,
    into: nn.Module | None = None,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
    kind: AdapterCapabilities | None = None,
) -> Interpolated:
    """Return M_α of a PEFT model: an [`AdapterInterpolation`] where the adapter can be scaled, else a new plain model.

    Arguments and errors are those of `interpolate_weights`; `kind` is given by who knows more than the model shows.
    """
    kind = kind or adapter_capabilities(model)
    if kind.is_scalable:
        if into is not None and into is not model:
            raise ValueError("`into` must be the PEFT model itself: it is interpolated in place. Leave it out.")
        live = AdapterInterpolation(model, base, finetuned_only=finetuned_only, extrapolate=extrapolate)
        live.set_alpha(alpha)
        return Interpolated(live, live.report)
    if into is not None:
        raise ValueError("`into` must be left out: this adapter is merged into a new model.")
    return _interpolate_merged(base, model, alpha, finetuned_only, extrapolate, kind)


def _list_pairs(model: Any, base: Weights | None) -> list[ScaledParameter]:
    """Return all pairs, the further ones of the same storage too."""
    kind = adapter_capabilities(model)
    if not kind.is_scalable:
        raise ValueError(f"`model` must have an adapter that can be scaled, got {kind.label}. {_MERGE_FIRST}")
    root = model.get_base_model()
    pairs = list(_walk(root, model.active_adapters[0], FACTORS[model.active_peft_config.peft_type.value]))
    if not kind.keeps_base:
        pairs += _trained_biases(root, model.active_peft_config.bias, base)
    return pairs


def _walk(root: nn.Module, adapter: str, factors: dict[str, float]) -> Iterator[ScaledParameter]:
    """Yield what an adapter has in each module."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for path, module in root.named_modules():
        name = _plain_name(path)
        if isinstance(module, ModulesToSaveWrapper):
            if adapter in module.modules_to_save:
                yield from _against_original(name, module.modules_to_save[adapter], module.original_module)
        elif isinstance(module, LNTuningLayer):
            if adapter in module.ln_tuning_layers:
                yield from _against_original(name, module.ln_tuning_layers[adapter], module.base_layer)
        elif isinstance(module, TrainableTokensLayer):
            if adapter in module.trainable_tokens_delta:
                trained, original = module.trainable_tokens_delta[adapter], module.trainable_tokens_original[adapter]
                yield ScaledParameter(
                    f"{name}.weight", trained, original, f"{len(trained)} rows, against the original ones"
                )
        elif isinstance(module, BaseTunerLayer):
            yield from _factors_of(name, module, adapter, factors)


def _factors_of(name: str, layer: Any, adapter: str, factors: dict[str, float]) -> Iterator[ScaledParameter]:
    """Yield the factor by which a layer is scaled."""
    from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper

    weight = "weight"
    if isinstance(layer, ParamWrapper):
        weight = layer.parameter_name
    elif isinstance(layer, MultiheadAttention):
        weight = "in_proj_weight"
    if "lora_B" in factors and adapter in layer.lora_variant and "MiCA" in type(layer.lora_variant[adapter]).__name__:
        factors = {"lora_A": 0.0, "lora_embedding_A": 0.0}  # B is frozen
    for factor, neutral in factors.items():
        holder = getattr(layer, factor)
        if adapter not in holder:
            continue
        found = holder[adapter]
        reason = f"scaled {factor}" if neutral == 0 else f"{factor}, against {neutral:g}"
        if isinstance(found, nn.Parameter):
            if factor == "ia3_l" and not layer.is_feedforward and layer.get_base_layer().bias is not None:
                reason += "; the bias with it"
            yield ScaledParameter(f"{name}.{weight}", found, neutral, reason)
        else:
            for part, parameter in found.named_parameters():
                yield ScaledParameter(f"{name}.{weight if part == 'weight' else part}", parameter, neutral, reason)


def _against_original(name: str, trained: nn.Module, original: nn.Module) -> Iterator[ScaledParameter]:
    """Yield a module that was trained whole, as a copy."""
    for part, buffer in trained.named_buffers():
        if buffer.is_floating_point() and not torch.equal(buffer, original.get_buffer(part).to(buffer)):
            raise ValueError(
                f"`{name}.{part}` is a buffer that training changed, and only weights are interpolated. {_MERGE_FIRST}"
            )
    for part, parameter in trained.named_parameters():
        yield ScaledParameter(
            f"{name}.{part}" if name else part, parameter, original.get_parameter(part), "against its original"
        )


def _trained_biases(root: nn.Module, bias: str, base: Weights | None) -> Iterator[ScaledParameter]:
    """Yield biases of the base model that were trained in place: M₀'s are in `base` alone."""
    if base is None:
        raise ValueError(
            f"`base` must be given, a state dict or a model: the adapter was trained with bias={bias!r}, which changes "
            "biases of the base model itself, so that those of M₀ are no longer in the model."
        )
    suffix = ".bias" if bias == "all" else ".base_layer.bias"
    trained = {
        _plain_name(name): parameter
        for name, parameter in root.named_parameters()
        if f".{name}".endswith(suffix) and not re.search(r"\.(lora_\w+|modules_to_save|original_module)\.", f".{name}")
    }
    originals = named_tensors(base)
    names = match_names(originals.first, list(trained))
    for name, parameter in trained.items():
        if name not in names:
            raise ValueError(f"`base` must have the biases that were trained, but has no {name!r}.")
        original = originals.unique[originals.first[names[name]]]
        if original.shape != parameter.shape:
            raise ValueError(
                f"`base` must be of the model's architecture, but {name!r} is {tuple(original.shape)} there and "
                f"{tuple(parameter.shape)} in the model."
            )
        yield ScaledParameter(name, parameter, original, "a trained bias, against M₀'s")


def _unique(pairs: Sequence[ScaledParameter]) -> tuple[list[ScaledParameter], dict[str, str]]:
    """Return each storage once, and the further names → the first one's."""
    seen: dict[Any, str] = {}
    unique: list[ScaledParameter] = []
    ties: dict[str, str] = {}
    for pair in pairs:
        place = pair.parameter.detach()
        key = (place.device, place.data_ptr(), place.numel()) if place.numel() else id(pair.parameter)
        if key in seen:
            ties[pair.name] = seen[key]
        else:
            seen[key] = pair.name
            unique.append(pair)
    return unique, ties


def _trained_value(model: nn.Module, pair: ScaledParameter) -> torch.Tensor:
    """Return a copy of what a parameter was trained to, even if it is at some α now and was not touched since."""
    place = pair.parameter.detach()
    version, trained = _scaled.get(model, {}).get(place.data_ptr(), (None, place))
    if version == place._version and trained.shape == place.shape:
        return trained
    if not is_finite(place):
        neutral = _neutral_value(pair, place)
        refuse_diverged(pair.name, neutral, place)
        raise ValueError(
            f"{pair.name!r} of M_θ holds infinities: its training has diverged. Take an earlier checkpoint."
        )
    return place.clone()


def _neutral_value(pair: ScaledParameter, trained: torch.Tensor) -> torch.Tensor:
    if isinstance(pair.neutral, torch.Tensor):
        return pair.neutral.detach()
    return torch.full((), pair.neutral, dtype=trained.dtype, device=trained.device).expand(trained.shape)


def _interpolate_merged(
    base: Weights | None,
    model: Any,
    alpha: Alpha,
    finetuned_only: Sequence[str],
    extrapolate: bool,
    kind: AdapterCapabilities,
) -> Interpolated:
    """Return M_α of an adapter that cannot be scaled, as a new plain model."""
    if base is None and not kind.keeps_base:
        raise ValueError(
            f"`base` must be given, a state dict or a model: an adapter of kind {kind.label} may have changed weights "
            "of the base model itself, so that M₀ is no longer in the model."
        )
    merged = merge_adapter(copy.deepcopy(model), kind)
    if base is None:
        apart = copy.deepcopy(model)
        _unwrap_modules(apart, trained=False)
        base = apart.unload()
    source, target = named_tensors(base), named_tensors(merged)
    decisions = decide_tensors(source, target, alpha, finetuned_only=finetuned_only, extrapolate=extrapolate)
    write_tensors(decisions, source.unique, target.unique, target.unique)
    notes = [f"merged, because an adapter of kind {kind.label} cannot be scaled"]
    return Interpolated(merged, InterpolationReport(decisions=decisions + target.ties(), notes=notes))


def merge_adapter(model: Any, kind: AdapterCapabilities) -> Any:
    """Return a plain model with an adapter merged into it; the PEFT model is taken apart.

    What the adapter changes in one of several layers that share a weight is no longer shared, nor tied by the
    configuration.

    Raises:
        ValueError: if PEFT cannot merge it.
    """
    root = model.get_base_model()
    own = getattr(root, "config", None)
    configs = [own, own.get_text_config()] if isinstance(own, PretrainedConfig) else []
    ties = [getattr(config, "tie_word_embeddings", False) for config in configs]
    _separate_changed(root)
    _unwrap_modules(model, trained=True)
    try:
        merged = model.merge_and_unload()
        is_tied = _tie_again(merged)
        for config, was_tied in zip(configs, ties, strict=True):  # which PEFT unties
            config.tie_word_embeddings = is_tied and was_tied
        return merged
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`model` must have an adapter that can be scaled or merged, got {kind.label}, which PEFT does not merge "
            f"here: {error}"
        ) from error


def _separate_changed(root: nn.Module) -> None:
    """Give layers that share a weight one each, where an adapter changes one of them or has made one of another."""
    ties = getattr(root, "all_tied_weights_keys", {})
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    for parameter, names in places.items():
        if any(_plain_name(name) != name or name not in {*ties, *ties.values()} for name in names):
            for name in names[1:]:
                _set_parameter(root, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


def _tie_again(merged: Any) -> bool:
    """Tie what the configuration ties if all of it is still the same, else nothing; whether it is tied."""
    ties = getattr(merged, "all_tied_weights_keys", {})
    pairs = {name: (merged.get_parameter(name), merged.get_parameter(first)) for name, first in ties.items()}
    is_tied = all(torch.equal(own, first) for own, first in pairs.values())
    for name, (own, first) in pairs.items():
        if is_tied or own is first:
            _set_parameter(merged, name, first if is_tied else nn.Parameter(first.detach().clone()))
    if not is_tied:
        merged.all_tied_weights_keys = {}
    return is_tied


def _set_parameter(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, part = name.rpartition(".")
    setattr(root.get_submodule(path), part, parameter)


def _unwrap_modules(model: Any, *, trained: bool) -> None:
    """Put what was trained whole, or its original, in its place; not all kinds of adapters do so when they merge."""
    from peft.utils import ModulesToSaveWrapper

    root, adapter = model.get_base_model(), model.active_adapters[0]
    for path, module in list(root.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            takes_trained = trained and adapter in module.modules_to_save
            parent, _, name = path.rpartition(".")
            setattr(
                root.get_submodule(parent),
                name,
                module.modules_to_save[adapter] if takes_trained else module.original_module,
            )


def _plain_name(path: str) -> str:
    """Return a module's or parameter's name without what PEFT puts in between.

    >>> _plain_name("encoder.query.base_layer.bias"), _plain_name("embed_tokens.token_adapter")
    ('encoder.query.bias', 'embed_tokens')
    """
    return re.sub(r"\.(base_layer|token_adapter)(?=\.|$)", "", path)
