"""M_α in a live model, for any α and as often as asked."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn

from hf_interp.weights.alpha_spec import Alpha, resolve_alpha
from hf_interp.weights.batch_norm import check_batches, recalibrate_batch_norm
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
