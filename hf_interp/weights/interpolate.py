"""Interpolated weights M_α = α·M_θ + (1 − α)·M₀ (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903), in memory."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.adapters import AdapterInterpolation, interpolate_adapter
from hf_interp.weights.alpha_spec import Alpha
from hf_interp.weights.live import Interpolation, LiveInterpolation, recalibrate_batch_norm
from hf_interp.weights.matching import InterpolationReport, match_names
from hf_interp.weights.tensors import ANEW, Interpolated, Tensors, Weights, decide_tensors, named_tensors, write_tensors


def interpolate_weights(
    base: Weights | None,
    finetuned: Weights,
    alpha: Alpha,
    *,
    into: nn.Module | None = None,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
    dtype: torch.dtype | None = None,
    recalibrate: Iterable[Any] | None = None,
) -> Interpolated:
    """Compute M_α = α·M_θ + (1 − α)·M₀.

    What cannot be interpolated is not: integer and boolean buffers, tables and masks with infinities are copied from
    M_θ; a new head and new rows of the vocabulary come from M_θ; tensors that M₀ alone has are dropped. The report
    says so of each. Tied weights are interpolated once and stay tied.

    Args:
        base: M₀, a state dict or a model. `None` if `finetuned` is a `PeftModel`, whose M₀ is the model without the
            adapter.
        finetuned: M_θ, a state dict or a model. A `PeftModel` whose adapter can be scaled is interpolated in place, and
            the result is an `AdapterInterpolation`: as a context manager it puts M_θ back. Other adapters are merged
            into a new model.
        alpha: a number; a mapping from name patterns to numbers, of which the first that matches counts; or an
            `AlphaByDepth`.
        into: a model to write M_α into; it may be `base` or `finetuned` itself. By default a new one is made.
        finetuned_only: patterns of names to take from M_θ whole, such as a head that M₀ was given at random.
        extrapolate: allow α outside [0, 1].
        dtype: type of the result's floating-point tensors; by default M_θ's.
        recalibrate: batches (mappings of a model's inputs) on which the statistics of batch norms are measured anew.

    Returns:
        M_α, of M_θ's kind and sharing no storage with it, and a report.

    Raises:
        TypeError: if `alpha` is not a number, or `base` is missing.
        ValueError: for an α out of range, different architectures or shapes, packed quantised weights, NaN, or
            statistics of batch norms without `recalibrate`.

    >>> interpolate_weights({"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}, 0.5).result
    {'w': tensor([0.5000, 3.0000])}
    """
    if is_peft_model(finetuned):
        if dtype is not None or recalibrate is not None:
            raise ValueError("`dtype` and `recalibrate` must be left out for a `PeftModel`. Merge its adapter first.")
        return interpolate_adapter(
            base, finetuned, alpha, into=into, finetuned_only=finetuned_only, extrapolate=extrapolate
        )
    if into is None and isinstance(finetuned, nn.Module):
        into = copy.deepcopy(finetuned)
    if into is not None and dtype is not None:
        into.to(dtype)
    if recalibrate is not None and into is None:
        raise ValueError("`recalibrate` needs a model to run, got state dicts. Give `into`.")
    source, target = named_tensors(base), named_tensors(finetuned)
    decisions = decide_tensors(
        source,
        target,
        alpha,
        finetuned_only=finetuned_only,
        extrapolate=extrapolate,
        keeps_statistics=recalibrate is not None,
    )
    if into is None:
        places = {
            name: torch.empty_like(tensor, dtype=dtype if tensor.is_floating_point() else None)
            for name, tensor in target.unique.items()
        }
        result: Any = {name: places[target.first[name]] for name in target.first}
    else:
        places, result = _places(into, target), into
    write_tensors(decisions, source.unique, target.unique, places)
    report = InterpolationReport(decisions=decisions + target.ties(), notes=[])
    if recalibrate is not None and into is not None and any(decision.reason == ANEW for decision in decisions):
        report.notes.append(recalibrate_batch_norm(into, recalibrate))
    return Interpolated(result, report)


def open_interpolation(
    base: Weights | None,
    model: nn.Module,
    *,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
    recalibrate: Iterable[Any] | None = None,
) -> Interpolation:
    """Put M_α into a live model, of whichever kind it is, for any α and as often as asked; arguments as there.

    Raises:
        TypeError, ValueError: as `interpolate_weights`; for an adapter that cannot be scaled: it is to be merged first.
    """
    if is_peft_model(model):
        if recalibrate is not None:
            raise ValueError("`recalibrate` must be left out for a `PeftModel`. Merge its adapter first.")
        return AdapterInterpolation(model, base, finetuned_only=finetuned_only, extrapolate=extrapolate)
    return LiveInterpolation(
        base, model, finetuned_only=finetuned_only, extrapolate=extrapolate, recalibrate=recalibrate
    )


def _places(into: nn.Module, finetuned: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors of a model to be written, by M_θ's names."""
    live = named_tensors(into)
    names = match_names(live.first, finetuned.first)
    places = {}
    for name, tensor in finetuned.unique.items():
        place = live.unique[live.first[names[name]]] if name in names else None
        if place is None or place.shape != tensor.shape:
            found = "nothing" if place is None else str(tuple(place.shape))
            raise ValueError(
                f"`into` must have the tensors of M_θ, but has {found} for {name!r} {tuple(tensor.shape)}."
            )
        places[name] = place
    return places
