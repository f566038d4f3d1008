"""The pull towards M₀: which parameters, to which values, and by how much."""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hf_interp.losses.ref_model import check_base_is_frozen, plain_name
from hf_interp.weights.adapters import scaled_parameters

Pair = tuple[str, nn.Parameter, torch.Tensor]
"""A parameter's name, the parameter, and what it is pulled to."""


def pull(parameter: nn.Parameter, target: torch.Tensor, share: float) -> None:
    """Pull θ ← θ + share·(θ₀ − θ), in place; the rows that θ₀ has.

    >>> parameter = nn.Parameter(torch.tensor([4.0, 0.0]))
    >>> pull(parameter, torch.tensor([0.0, 2.0]), 0.5)
    >>> parameter.tolist()
    [2.0, 1.0]
    """
    if share > 0:
        with torch.no_grad():
            _rows(parameter, target).lerp_(target, share)


def implicit_share(strength: float) -> float:
    """Return strength / (1 + strength): the share of the way to M₀ of an implicit step of l2sp."""
    return 1 / (1 + 1 / strength) if strength > 0 else 0.0


def square_distance(parameter: nn.Parameter, target: torch.Tensor) -> float:
    """Return ‖θ − θ₀‖² over the rows that θ₀ has."""
    return float((_rows(parameter, target).detach() - target).square().sum())


def adapter_pairs(model: Any, excluded: Collection[str] = ()) -> list[Pair]:
    """Return the parameters of a `PeftModel` whose way to a neutral value scales what the adapter adds to the
    pretrained weights, each with that value.
    """
    remedy = 'use `anchor="distill"` with the pretrained model as `ref_model`'
    check_base_is_frozen(model, remedy)
    try:
        pairs = scaled_parameters(model)
    except ValueError as error:
        raise ValueError(f"An anchor pulls adapters that can be scaled. {error} Or {remedy}.") from error
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(pair.parameter)], pair.parameter, pair.neutral) for pair in pairs]
    return [
        (name, parameter, torch.as_tensor(neutral).to(parameter))
        for name, parameter, neutral in found
        if parameter.requires_grad and name not in excluded
    ]


def paired_weights(model: Any, weights: Mapping[str, torch.Tensor], excluded: Collection[str] = ()) -> list[Pair]:
    """Return each parameter that is trained and that M₀ has too; of a resized vocabulary, the rows that both have."""
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name not in weights or name in excluded:
            continue
        target = weights[name].detach()
        if target.shape != parameter.shape:
            if target.shape[1:] != parameter.shape[1:] or not _is_of_vocabulary(model, parameter):
                raise ValueError(
                    f"An anchor needs weights of one shape, got {tuple(parameter.shape)} for {name!r} and "
                    f"{tuple(target.shape)} in M₀. Name it in `anchor_exclude`."
                )
            target = target[: len(parameter)]
        found.append((name, parameter, target))
    return found


def matching_names(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Return the parameters that any pattern names, with or without what PEFT puts around a name."""
    names = [name for name, _ in model.named_parameters()]
    found = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(plain_name(name), pattern)}
        if not matched:
            last = ", ".join(plain_name(name) for name in names[-4:])
            raise ValueError(
                f"`anchor_exclude` must name parameters of the model, got {pattern!r}, which names none. The last of "
                f"them are {last}; `*` stands for any text."
            )
        found |= matched
    return found


def _is_of_vocabulary(model: Any, parameter: nn.Parameter) -> bool:
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return any(parameter is other for layer in layers if layer is not None for other in layer.parameters())


def _rows(parameter: nn.Parameter, target: torch.Tensor) -> torch.Tensor:
    """Return the rows of a parameter that M₀ has too: all, unless its vocabulary has grown."""
    return parameter[: len(target)] if target.dim() else parameter
