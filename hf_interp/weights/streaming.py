"""M_α block by block: a few threads read M₀ and M_θ, interpolate and write, each in the memory of its own block."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import torch

from hf_interp.weights.matching import TensorDecision, is_float
from hf_interp.weights.merge_methods import TensorMethod, merged_blocks
from hf_interp.weights.tensor_files import Stored, read_piece, run_in_threads, write_piece
from hf_interp.weights.tensors import is_finite, lerp, mean_of, refuse_diverged, write_one

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Elements of M₀ and of M_θ that are read, interpolated and written at a time; fewer of each of several runs."""


class Inputs(NamedTuple):
    """Tensors of M₀ by its names, and of the runs whose mean is M_θ by M_θ's names."""

    base: dict[str, Stored]
    runs: list[dict[str, Stored]]


class _Job(NamedTuple):
    """A block of a tensor, flat."""

    decision: TensorDecision
    begin: int
    end: int
    is_common: bool
    """Whether M₀ has it too."""


def write_result(
    inputs: Inputs,
    places: Mapping[str, Stored],
    decisions: Sequence[TensorDecision],
    methods: Mapping[str, TensorMethod] | None = None,
) -> list[TensorDecision]:
    """Write all tensors; returns the decisions, of which some depend on values.

    Args:
        methods: those of the interpolated tensors; without any, M_θ is the plain mean of the runs.
    """
    do = _Interpolation(inputs, places, methods or {})
    # in the order of the files
    order = sorted(
        (decision for decision in decisions if decision.action != "dropped"),
        key=lambda decision: (places[decision.name].path, places[decision.name].begin),
    )
    run_in_threads((job for decision in order for job in _jobs(decision, inputs, methods)), do)
    if not do.differ:
        logger.warning("All interpolated tensors are the same in M₀ and M_θ: the curve over α is flat.")
    again = {
        decision.name: replace(decision, action="copied", reason="holds infinities, as masks do", alpha=None)
        for decision in decisions
        if decision.name in do.infinite
    }
    run_in_threads((job for decision in again.values() for job in _jobs(decision, inputs)), do)
    return [again.get(decision.name, decision) for decision in decisions]


def _jobs(
    decision: TensorDecision, inputs: Inputs, methods: Mapping[str, TensorMethod] | None = None
) -> Iterator[_Job]:
    """Yield a tensor in blocks; of a vocabulary that has grown the common rows first. A method has them in one job."""
    stored = inputs.runs[0][decision.name]
    common = stored.numel
    if decision.vocabulary_axis is not None and decision.action == "interpolated":
        assert decision.base_name is not None
        if decision.vocabulary_axis != 0:
            yield _Job(decision, 0, stored.numel, True)
            return
        common = min(common, inputs.base[decision.base_name].numel)
    size = 2 * BLOCK // (1 + len(inputs.runs))
    for is_common, (first, last) in ((True, (0, common)), (False, (common, stored.numel))):
        is_whole = is_common and _is_method(decision, methods)
        for begin, end in _blocks(first, last, max(last, 1) if is_whole else size):
            yield _Job(decision, begin, end, is_common)


def _is_method(decision: TensorDecision, methods: Mapping[str, TensorMethod] | None) -> bool:
    """Whether a tensor is more than a mean."""
    how = (methods or {}).get(decision.name)
    return how is not None and how.method.name != "linear" and decision.action == "interpolated"


def _blocks(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(first, last, size):
        yield begin, min(begin + size, last)


class _Interpolation:
    """Does jobs, and keeps what it finds in the values."""

    def __init__(self, inputs: Inputs, places: Mapping[str, Stored], methods: Mapping[str, TensorMethod]) -> None:
        self.inputs, self.places, self.methods = inputs, places, methods
        self.infinite: set[str] = set()
        self.differ = False

    def __call__(self, job: _Job) -> None:
        decision, place = job.decision, self.places[job.decision.name]
        if job.is_common and _is_method(decision, self.methods):
            self.merge(job)
            return
        finetuned = self.read_finetuned(job)
        if decision.action == "interpolated" and job.is_common:
            result = self.interpolate(job, finetuned)
        else:
            if decision.action != "copied" and not is_finite(finetuned):
                refuse_diverged(decision.name, finetuned[:0], finetuned)
            result = finetuned.to(place.info.dtype)
        write_piece(place, job.begin, result)

    def interpolate(self, job: _Job, finetuned: torch.Tensor) -> torch.Tensor:
        """Return a block of M_α."""
        decision, info = job.decision, self.places[job.decision.name].info
        assert decision.base_name is not None
        assert decision.alpha is not None
        stored = self.inputs.base[decision.base_name]
        result = torch.empty(finetuned.numel(), dtype=info.dtype)
        if decision.vocabulary_axis in (None, 0):
            base = read_piece(stored, job.begin, job.end)
            lerp(base, finetuned, decision.alpha, result)
        else:
            base = read_piece(stored)
            parts = base.view(stored.info.shape), finetuned.view(info.shape), result.view(info.shape)
            write_one(decision.alpha, decision.vocabulary_axis, *parts)
        self.inspect(decision, base, finetuned, result)
        return result

    def merge(self, job: _Job) -> None:
        """Write what M₀ has too of a tensor, by its method."""
        decision, place = job.decision, self.places[job.decision.name]
        assert decision.base_name is not None
        assert decision.alpha is not None
        base, runs = self.inputs.base[decision.base_name], [run[decision.name] for run in self.inputs.runs]
        exact = reduce(torch.promote_types, (stored.info.dtype for stored in (base, *runs)), torch.float32)
        blocks = [*_blocks(0, job.end, BLOCK // 4)]

        def read(indices: Sequence[int]) -> Iterator[list[torch.Tensor]]:
            for block in blocks:
                yield [read_piece(stored, *block).to(exact) for stored in (base, *(runs[index] for index in indices))]

        merged = merged_blocks(self.methods[decision.name], decision.alpha, job.end, read)
        for (begin, end), values in zip(blocks, merged, strict=True):
            result = values.to(place.info.dtype)
            if not self.differ or not is_finite(result):
                mean = mean_of(read_piece(stored, begin, end) for stored in runs)
                self.inspect(decision, read_piece(base, begin, end), mean, result)
            write_piece(place, begin, result)

    def read_finetuned(self, job: _Job) -> torch.Tensor:
        """Return a block of M_θ; of a soup the mean, but the first's of what is copied."""
        first, *others = (run[job.decision.name] for run in self.inputs.runs)
        if not others or job.decision.action == "copied" or not is_float(first.info.dtype):
            return read_piece(first, job.begin, job.end)
        how = self.methods.get(job.decision.name)
        weights = how.weights if how is not None and how.method.name == "linear" else None
        return mean_of((read_piece(stored, job.begin, job.end) for stored in (first, *others)), weights)

    def inspect(
        self, decision: TensorDecision, base: torch.Tensor, finetuned: torch.Tensor, result: torch.Tensor
    ) -> None:
        """Look for values that no interpolation has, and for a first difference."""
        if not self.differ:
            self.differ = base.shape != finetuned.shape or not torch.equal(base.to(finetuned.dtype), finetuned)
        # between the ends, what is not finite in M₀ or M_θ is not in M_α
        is_end = decision.alpha in (0.0, 1.0)
        if is_finite(result) and (not is_end or (is_finite(base) and is_finite(finetuned))):
            return
        refuse_diverged(decision.name, base, finetuned)
        if is_finite(base) and is_finite(finetuned):
            raise ValueError(
                f"`alpha` {decision.alpha:g} takes {decision.name!r} beyond the range of {result.dtype}. Give a "
                "`dtype` of a wider range, such as bfloat16, or an α nearer to [0, 1]."
            )
        self.infinite.add(decision.name)


def are_equal(first: Stored, second: Stored) -> bool:
    """Whether two tensors have the same values; read block by block, up to the first difference."""
    return first.info.shape == second.info.shape and all(
        torch.equal(read_piece(first, *block).to(second.info.dtype), read_piece(second, *block))
        for block in _blocks(0, first.numel, BLOCK)
    )
