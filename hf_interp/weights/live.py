"""M_α in a live model, for any α and as often as asked, with the statistics of its batch norms measured anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn

from hf_interp.weights.alpha_spec import Alpha, resolve_alpha
from hf_interp.weights.matching import BATCH_NORM, InterpolationReport, TensorDecision
from hf_interp.weights.tensors import ANEW, Weights, decide_tensors, named_tensors, write_one


class Interpolation:
    """M_α in a live model, for any α and as often as asked; as a context manager it puts M_θ back at the end."""

    def __init__(self, model: Any, decisions: Sequence[TensorDecision], extrapolate: bool) -> None:
        self.model, self.decisions, self.extrapolate = model, decisions, extrapolate
        self.names = list(dict.fromkeys(one.name for one in decisions if one.action == "interpolated"))
        self.notes: list[str] = []
        self._alphas = dict.fromkeys(self.names, 1.0)

    @property
    def report(self) -> InterpolationReport:
        """The decision on each tensor at the present α."""
        decisions = [replace(decision, alpha=self._alphas.get(decision.name)) for decision in self.decisions]
        return InterpolationReport(decisions=decisions, notes=list(self.notes))

    def set_alpha(self, alpha: Alpha) -> None:
        """Bring the model to M_α; what is not interpolated stays as it is in M_θ."""
        raise NotImplementedError

    def restore(self) -> None:
        """Bring the model back to M_θ, bit for bit."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()


class LiveInterpolation(Interpolation):
    """M_α of a plain model. Of M_θ one copy is kept on the CPU; M₀ is read where it is. Every α is computed from both.

    The statistics of batch norms are measured anew at every α, but for α = 0 and 1, where they are those of the ends.

    Arguments and errors are those of `interpolate_weights`; `recalibrate` must be the same in every process.
    """

    def __init__(
        self,
        base: Weights | None,
        model: nn.Module,
        *,
        finetuned_only: Sequence[str] = (),
        extrapolate: bool = False,
        recalibrate: Iterable[Any] | None = None,
    ) -> None:
        self.batches = None if recalibrate is None else check_batches(model, recalibrate)
        self.base, self.live = named_tensors(base), named_tensors(model)
        # not at an end, where even the statistics of batch norms are defined
        decisions = decide_tensors(
            self.base, self.live, 0.5, finetuned_only=finetuned_only, keeps_statistics=self.batches is not None
        )
        super().__init__(model, decisions + self.live.ties(), extrapolate)
        self.finetuned = {
            name: tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
            for name, tensor in self.live.unique.items()
        }
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._parameters = {name: parameters[name] for name in self.live.unique if name in parameters}

    def set_alpha(self, alpha: Alpha) -> None:
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
        self.notes = []
        self._alphas = dict.fromkeys(self.names, 1.0)
        self._find_again()
        with torch.no_grad():
            for name, tensor in self.live.unique.items():
                tensor.copy_(self.finetuned[name])

    def _find_again(self) -> None:
        """Look the tensors up again if the model has been moved, to another device or other memory, since."""
        unique = self.live.unique
        if any(unique[name].data_ptr() != parameter.data_ptr() for name, parameter in self._parameters.items()):
            self.live = named_tensors(self.model)

    def _write_statistics(self, *, of_base: bool) -> None:
        """Write the statistics of batch norms that M₀ or M_θ has."""
        with torch.no_grad():
            for decision in self.decisions:
                if decision.action == "tied" or not BATCH_NORM.search(decision.name):
                    continue
                source = self.finetuned[decision.name]
                if of_base and decision.reason == ANEW and decision.base_name is not None:
                    source = self.base.unique[decision.base_name]
                self.live.unique[decision.name].copy_(source)


# The statistics of batch norms, measured anew.


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> str:
    """Measure the statistics of a model's batch norms anew, as plain means over batches; returns what was done.

    Interpolated statistics are not those of the interpolated weights (REPAIR, Jordan et al. 2023, arXiv 2211.08403).

    Args:
        model: left in the modes it was in.
        batches: mappings of the model's inputs, or what it takes as its one input; moved to the model's device.
    """
    batches, norms = check_batches(model, batches), batch_norms(model)
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


def check_batches(model: nn.Module, batches: Iterable[Any]) -> list[Any]:
    """Batches, so that they can be read again; an error if there are none, or no batch norms."""
    if not batch_norms(model):
        raise ValueError("`recalibrate` needs a model with batch norms, got one without. Leave it out.")
    found = list(batches)
    if not found:
        raise ValueError("`recalibrate` must hold at least one batch, got none.")
    return found


def batch_norms(model: nn.Module) -> list[Any]:
    """Return the batch norms that keep statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.track_running_stats]


@contextmanager
def _measuring(model: nn.Module, norms: Sequence[Any]) -> Iterator[None]:
    """Put a model into evaluation mode but for its batch norms, which take plain means over batches, and back."""
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(model):
        for norm in norms:
            norm.training, norm.momentum = True, None
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module of it back into its own at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
