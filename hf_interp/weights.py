"""Interpolated weights M_α = α·M_θ + (1 − α)·M₀ (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903), in memory."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hf_interp.adapter_kinds import is_peft_model
from hf_interp.adapter_weights import AdapterInterpolation, interpolate_adapter
from hf_interp.alphas import Alpha, resolve_alpha
from hf_interp.matching import BATCH_NORM, InterpolationReport, match_names
from hf_interp.tensors import (
    ANEW,
    Interpolated,
    Tensors,
    Weights,
    decide_tensors,
    named_tensors,
    write_one,
    write_tensors,
)


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
    """M_α = α·M_θ + (1 − α)·M₀.

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
    if base is None:
        raise TypeError("`base` must be given: only for a `PeftModel` M₀ is the model without its adapter.")
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
        places = {name: torch.empty_like(tensor, dtype=_cast(tensor, dtype)) for name, tensor in target.unique.items()}
        result: Any = {name: places[target.first[name]] for name in target.first}
    else:
        places, result = _places(into, target), into
    write_tensors(decisions, source.unique, target.unique, places)
    report = InterpolationReport(decisions=decisions + target.ties(), notes=[])
    if recalibrate is not None and into is not None and any(decision.reason == ANEW for decision in decisions):
        report.notes.append(recalibrate_batch_norm(into, recalibrate))
    return Interpolated(result, report)


class LiveInterpolation:
    """M_α in a live model, for any α and as often as asked: what a search over α needs.

    Of M_θ one copy is kept on the CPU; M₀ is read where it is. Every α is computed from these two. As a context
    manager it puts M_θ back at the end.

    The statistics of batch norms are measured anew at every α, but for α = 0 and 1, where they are those of the ends.

    Args:
        base: M₀, a model or a state dict; left as it is.
        model: M_θ; its weights are overwritten.
        finetuned_only: see `interpolate_weights`.
        extrapolate: allow α outside [0, 1].
        recalibrate: batches on which to measure the statistics of batch norms; the same in every process.

    Raises:
        ValueError: as `interpolate_weights` does.
    """

    def __init__(
        self,
        base: Weights,
        model: nn.Module,
        *,
        finetuned_only: Sequence[str] = (),
        extrapolate: bool = False,
        recalibrate: Iterable[Any] | None = None,
    ) -> None:
        self.model = model
        self.batches = None if recalibrate is None else _check_batches(model, recalibrate)
        self.notes: list[str] = []
        self.base, self.live = named_tensors(base), named_tensors(model)
        self.extrapolate = extrapolate
        self.finetuned = {
            name: tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
            for name, tensor in self.live.unique.items()
        }
        # not at an end, where even the statistics of batch norms are defined
        self.decisions = decide_tensors(
            self.base, self.live, 0.5, finetuned_only=finetuned_only, keeps_statistics=self.batches is not None
        )
        self.names = [decision.name for decision in self.decisions if decision.action == "interpolated"]
        self._alphas = dict.fromkeys(self.names, 1.0)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._parameters = {name: parameters[name] for name in self.live.unique if name in parameters}

    @property
    def report(self) -> InterpolationReport:
        """What is interpolated at the present α, and what is not and why."""
        decisions = [replace(decision, alpha=self._alphas.get(decision.name)) for decision in self.decisions]
        return InterpolationReport(decisions=decisions + self.live.ties(), notes=list(self.notes))

    def set_alpha(self, alpha: Alpha) -> None:
        """Bring the model to M_α; what is not interpolated stays as it is in M_θ."""
        self._alphas = resolve_alpha(alpha, self.names, extrapolate=self.extrapolate)
        self._find_again()
        with torch.no_grad():
            for decision in self.decisions:
                if decision.action == "interpolated" and decision.base_name is not None:
                    place, finetuned = self.live.unique[decision.name], self.finetuned[decision.name]
                    number = self._alphas[decision.name]
                    write_one(number, decision.vocabulary_axis, self.base.unique[decision.base_name], finetuned, place)
        if self.batches is not None:
            ends = {end for end in (0.0, 1.0) if set(self._alphas.values()) == {end}}
            self._write_statistics(of_base=0.0 in ends)
            self.notes = [] if ends else [recalibrate_batch_norm(self.model, self.batches)]

    def restore(self) -> None:
        """Bring the model back to M_θ, bit for bit."""
        self.notes = []
        self._alphas = dict.fromkeys(self.names, 1.0)
        self._find_again()
        with torch.no_grad():
            for name, tensor in self.live.unique.items():
                tensor.copy_(self.finetuned[name])

    def directions(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """What is interpolated: name, live parameter (or buffer), and Δ = M_θ − M₀ in float32, one at a time."""
        self._find_again()
        for decision in self.decisions:
            if decision.action == "interpolated" and decision.base_name is not None:
                place = self.live.unique[decision.name]
                full = torch.zeros(place.shape, dtype=torch.float32, device=place.device)
                theirs, mine = self.base.unique[decision.base_name], self.finetuned[decision.name]
                axis = decision.vocabulary_axis
                if axis is None:
                    full.copy_(mine).sub_(theirs.to(place.device, torch.float32))
                else:
                    rows = min(theirs.shape[axis], mine.shape[axis])
                    part = full.narrow(axis, 0, rows)
                    part.copy_(mine.narrow(axis, 0, rows))
                    part.sub_(theirs.narrow(axis, 0, rows).to(place.device, torch.float32))
                yield decision.name, self._parameters.get(decision.name, place), full

    def _find_again(self) -> None:
        """Look the tensors up again if the model has been moved, to another device or other memory, since."""
        unique = self.live.unique
        if any(unique[name].data_ptr() != parameter.data_ptr() for name, parameter in self._parameters.items()):
            self.live = named_tensors(self.model)

    def _write_statistics(self, *, of_base: bool) -> None:
        """Write the statistics of batch norms that M₀ or M_θ has."""
        with torch.no_grad():
            for decision in self.decisions:
                if not BATCH_NORM.search(decision.name):
                    continue
                source = self.finetuned[decision.name]
                if of_base and decision.reason == ANEW and decision.base_name is not None:
                    source = self.base.unique[decision.base_name]
                self.live.unique[decision.name].copy_(source)

    def __enter__(self) -> "LiveInterpolation":
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()


def open_interpolation(
    base: Weights | None,
    model: nn.Module,
    *,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
    recalibrate: Iterable[Any] | None = None,
) -> LiveInterpolation | AdapterInterpolation:
    """M_α in a live model, of whichever kind it is, for any α and as often as asked.

    Args:
        base: M₀, a model or a state dict; `None` if `model` is a `PeftModel`, whose M₀ is the model without
            its adapter.
        model: M_θ; its weights are overwritten until they are restored.
        finetuned_only: see `interpolate_weights`.
        extrapolate: allow α outside [0, 1].
        recalibrate: batches on which to measure the statistics of batch norms; not for a `PeftModel`.

    Raises:
        TypeError: if M₀ is missing.
        ValueError: as `interpolate_weights` does; for an adapter that cannot be scaled, which is to be merged first.
    """
    if is_peft_model(model):
        if recalibrate is not None:
            raise ValueError("`recalibrate` must be left out for a `PeftModel`. Merge its adapter first.")
        return AdapterInterpolation(model, base, finetuned_only=finetuned_only, extrapolate=extrapolate)
    if base is None:
        raise TypeError("`base` must be given: only for a `PeftModel` M₀ is the model without its adapter.")
    return LiveInterpolation(
        base, model, finetuned_only=finetuned_only, extrapolate=extrapolate, recalibrate=recalibrate
    )


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> str:
    """Measure the statistics of a model's batch norms anew, as plain means over batches; returns what was done.

    Interpolated statistics are not those of the interpolated weights (REPAIR, Jordan et al. 2023, arXiv 2211.08403).

    Args:
        model: left in the modes it was in.
        batches: mappings of the model's inputs, or what it takes as its one input; moved to the model's device.

    Raises:
        ValueError: if there are no batches, or no batch norms.
    """
    batches, norms = _check_batches(model, batches), _batch_norms(model)
    device = next(model.parameters()).device
    with _measuring(model, norms), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
        for batch in batches:
            if isinstance(batch, Mapping):
                model(**{key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)})
            else:
                model(batch.to(device))
    return f"statistics of {len(norms)} batch norms measured on {len(batches)} batches"


def _check_batches(model: nn.Module, batches: Iterable[Any]) -> list[Any]:
    """Batches, so that they can be read again; an error if there are none, or no batch norms."""
    if not _batch_norms(model):
        raise ValueError("`recalibrate` needs a model with batch norms, got one without. Leave it out.")
    found = list(batches)
    if not found:
        raise ValueError("`recalibrate` must hold at least one batch, got none.")
    return found


def _batch_norms(model: nn.Module) -> list[Any]:
    """Batch norms that keep statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.track_running_stats]


@contextmanager
def _measuring(model: nn.Module, norms: Sequence[Any]) -> Iterator[None]:
    """A model in evaluation mode but for its batch norms, which take plain means over batches; modes are put back."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.training, norm.momentum = True, None
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _places(into: nn.Module, finetuned: Tensors) -> dict[str, torch.Tensor]:
    """The tensors of a model to be written, by M_θ's names."""
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


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
