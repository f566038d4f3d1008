"""Tensors of M₀ and M_θ in memory: named, each storage once; what becomes of each; and the one formula for numbers.

M_α = α·M_θ + (1 − α)·M₀ is always computed from both in float32 (float64 where they are), and cast once: a model that
is walked from one α to the next in bfloat16 does not arrive.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_interp.weights.alpha_spec import Alpha
from hf_interp.weights.matching import BATCH_NORM, InterpolationReport, TensorDecision, TensorInfo, decide, match_names

BLOCK = 1 << 18
"""Elements that are converted at a time where types differ: small enough to stay in the processor's cache."""

ANEW = "to be measured anew"
"""Why statistics of batch norms are only copied; at the ends they are those of the ends."""

Weights = Mapping[str, torch.Tensor] | nn.Module


class Interpolated(NamedTuple):
    """The outcome of `interpolate_weights`."""

    result: Any
    """M_α: a state dict, or a model."""
    report: InterpolationReport
    """The decision on each tensor."""


class Tensors(NamedTuple):
    """The tensors of a model or state dict."""

    unique: dict[str, torch.Tensor]
    """Each storage once, under the first of its names."""
    first: dict[str, str]
    """Every name → the first name of the same storage."""

    def ties(self) -> list[TensorDecision]:
        """Return decisions on the further names."""
        return [
            TensorDecision(name=name, action="tied", reason=f"to {first}")
            for name, first in self.first.items()
            if name != first
        ]


def named_tensors(weights: Weights | None) -> Tensors:
    """Return parameters and persistent buffers, detached, each storage once."""
    if weights is None:
        raise TypeError("`base` must be given: only for a `PeftModel` M₀ is the model without its adapter.")
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    unique: dict[str, torch.Tensor] = {}
    first: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"Weights must be tensors, got {type(tensor).__name__} for {name!r}.")
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            raise ValueError(
                f"{name!r} is a {type(tensor).__name__}, which is not a plain tensor. Gather or dequantise it first."
            )
        tensor = tensor.detach()
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        first[name] = seen.setdefault(key, name)
        if first[name] == name:
            unique[name] = tensor
    return Tensors(unique, first)


def decide_tensors(
    base: Tensors,
    finetuned: Tensors,
    alpha: Alpha,
    *,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
    keeps_statistics: bool = False,
) -> list[TensorDecision]:
    """Run `decide` for tensors in memory, whose values can be looked at.

    With `keeps_statistics`, those of batch norms are copied, because they will be measured anew.
    """
    names = match_names(base.first, finetuned.first)
    for name, first in finetuned.first.items():
        one, other = names.get(name), names.get(first)
        if one is None or other is None or base.first[one] == base.first[other]:
            continue
        if not torch.equal(base.unique[base.first[one]], base.unique[base.first[other]]):
            raise ValueError(
                f"{name!r} and {first!r} are tied in M_θ, but differ in M₀, so that M_α cannot be tied. Untie M_θ "
                "(`tie_word_embeddings=False` in its configuration, and a tensor of its own)."
            )
    # where M₀ lacks one of two tied names, the other stands for both
    base_names = {first: base.first[names[name]] for name, first in reversed(finetuned.first.items()) if name in names}
    decisions = decide(
        infos(base.unique),
        infos(finetuned.unique),
        alpha,
        base_names=base_names,
        finetuned_only=finetuned_only,
        extrapolate=extrapolate,
    )
    for decision in decisions:
        if decision.action == "finetuned" and not is_finite(own := finetuned.unique[decision.name]):
            refuse_diverged(decision.name, own.new_empty(0), own)
    return [
        _settle(decision, base.unique[decision.base_name], finetuned.unique[decision.name], keeps_statistics)
        if decision.action == "interpolated" and decision.base_name is not None
        else decision
        for decision in decisions
        if decision.action != "dropped" or decision.name not in names.values()  # else its twin stands for it
    ]


def infos(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """Return shapes and types."""
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write_tensors(
    decisions: Iterable[TensorDecision],
    base: Mapping[str, torch.Tensor],
    finetuned: Mapping[str, torch.Tensor],
    places: Mapping[str, torch.Tensor],
) -> None:
    """Write M_α into `places`, by M_θ's names; they may be M₀'s or M_θ's own tensors, on any device."""
    with torch.no_grad():
        for decision in decisions:
            if decision.action == "interpolated":
                assert decision.base_name is not None
                assert decision.alpha is not None
                source, target, place = base[decision.base_name], finetuned[decision.name], places[decision.name]
                write_one(decision.alpha, decision.vocabulary_axis, source, target, place)
            elif decision.action != "dropped":
                places[decision.name].copy_(finetuned[decision.name])


def write_one(alpha: float, axis: int | None, base: torch.Tensor, finetuned: torch.Tensor, place: torch.Tensor) -> None:
    """Write one interpolated tensor; of two vocabularies, along `axis`, the common rows, with further rows from M_θ."""
    if axis is None:
        lerp(base, finetuned, alpha, place)
        return
    size = finetuned.shape[axis]
    rows = min(base.shape[axis], size)
    common = [tensor.narrow(axis, 0, rows) for tensor in (base, finetuned, place)]
    lerp(common[0], common[1], alpha, common[2])
    place.narrow(axis, rows, size - rows).copy_(finetuned.narrow(axis, rows, size - rows))


def lerp(base: torch.Tensor, finetuned: torch.Tensor, alpha: float, out: torch.Tensor) -> None:
    """out ← (1 − α)·base + α·finetuned, in float32 or more, cast once; exact at α = 0 and 1.

    `torch.lerp` of 16-bit tensors computes in float32. Where types or devices differ, blocks are converted.
    """
    if alpha in (0.0, 1.0):
        out.copy_(finetuned if alpha else base)
        return
    if base.dtype == finetuned.dtype == out.dtype and base.device == finetuned.device == out.device:
        torch.lerp(base, finetuned, alpha, out=out)
        return
    exact = torch.promote_types(torch.promote_types(base.dtype, finetuned.dtype), torch.float32)
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    first, second = base.reshape(-1), finetuned.reshape(-1)
    size = BLOCK if out.device.type == "cpu" else max(out.numel(), 1)
    for begin in range(0, out.numel(), size):
        block = slice(begin, begin + size)
        one, other = (part[block].to(out.device, exact) for part in (first, second))
        flat[block] = torch.lerp(one, other, alpha)
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def mean_of(tensors: Iterable[torch.Tensor], weights: Sequence[float] | None = None) -> torch.Tensor:
    """Mean of floating-point tensors in float32 or more, added up in their order; holds two of them at a time.

    >>> mean_of(torch.tensor(number, dtype=torch.bfloat16) for number in (1.0, 2.0))
    tensor(1.5000)
    >>> mean_of([torch.tensor(1.0), torch.tensor(2.0)], weights=[3, 1])
    tensor(1.2500)
    """
    rest = iter(tensors)
    first = next(rest)
    total, count = first.to(torch.promote_types(first.dtype, torch.float32), copy=True), 1
    if weights is not None:
        total *= weights[0]
    for tensor in rest:
        total.add_(tensor, alpha=1 if weights is None else weights[count])
        count += 1
    return total / (count if weights is None else sum(weights))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is infinite or NaN; in one pass without a mask in memory."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def refuse_diverged(name: str, base: torch.Tensor, finetuned: torch.Tensor) -> None:
    """Refuse NaN, and infinities that are not the same on both sides, as those of masks are.

    Where M_θ alone has a tensor, or rows of it, `base` is empty.
    """
    faults = [("holds NaN", torch.isnan(base), torch.isnan(finetuned))]
    infinite = torch.isinf(base), torch.isinf(finetuned)
    if not torch.equal(*infinite) or not torch.equal(base[infinite[0]], finetuned[infinite[1]].to(base.dtype)):
        faults.append(("holds infinities", *infinite))
    for fault, ours, theirs in faults:
        if ours.any() or theirs.any():
            whose = "M_θ" if theirs.sum() > ours.sum() or not ours.any() else "M₀"
            raise ValueError(f"{name!r} of {whose} {fault}: its training has diverged. Take an earlier checkpoint.")


def _settle(
    decision: TensorDecision, base: torch.Tensor, finetuned: torch.Tensor, keeps_statistics: bool
) -> TensorDecision:
    """Copy after all what has no value between its two: masks with infinities, statistics of batch norms."""
    reason = ""
    if not is_finite(base) or not is_finite(finetuned):
        refuse_diverged(decision.name, base, finetuned)
        reason = "holds infinities, as masks do"
    elif BATCH_NORM.search(decision.name) and decision.alpha not in (0.0, 1.0):  # which have their own
        if not keeps_statistics and not torch.equal(base, finetuned):
            raise ValueError(
                f"{decision.name!r} is a statistic of a batch norm, and those of M₀ and M_θ say nothing about M_α. "
                "Give `recalibrate`: batches on which to measure them anew."
            )
        reason = ANEW if keeps_statistics else "a statistic that is the same in M₀"
    return replace(decision, action="copied", reason=reason, alpha=None) if reason else decision
