"""M_α block by block: a few threads read M₀ and M_θ, interpolate and write, each in the memory of its own blocks."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import torch

from hf_interp.weights.matching import TensorDecision, is_float
from hf_interp.weights.tensor_files import Reader, Stored, Writer, run_in_threads
from hf_interp.weights.tensors import is_finite, lerp, mean_of, refuse_nan, write_one

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Elements of M₀ and of M_θ that are read, interpolated and written at a time; fewer of each of several runs."""


class Inputs(NamedTuple):
    """Tensors of M₀ by its names, and of the runs whose mean is M_θ by M_θ's names."""

    base: dict[str, Stored]
    runs: list[dict[str, Stored]]


@dataclass
class _Findings:
    """Findings of the threads in values."""

    infinite: set[str] = field(default_factory=set)
    differ: bool = False


class _Job(NamedTuple):
    """A block of a tensor, flat."""

    decision: TensorDecision
    begin: int
    end: int
    is_common: bool
    """Whether M₀ has it too."""


def write_result(
    inputs: Inputs, places: Mapping[str, Stored], decisions: Sequence[TensorDecision]
) -> list[TensorDecision]:
    """Write all tensors; returns the decisions, of which some depend on values."""
    findings = _Findings()

    def run(jobs: Iterable[_Job]) -> None:
        run_in_threads(jobs, lambda: _Worker(inputs, places, findings))

    # in the order of the files
    order = sorted(
        (decision for decision in decisions if decision.action != "dropped"),
        key=lambda decision: (places[decision.name].path, places[decision.name].begin),
    )
    run(job for decision in order for job in _jobs(decision, inputs))
    if not findings.differ:
        logger.warning("All interpolated tensors are the same in M₀ and M_θ: the curve over α is flat.")
    decisions = [
        replace(decision, action="copied", reason="holds infinities, as masks do", alpha=None)
        if decision.name in findings.infinite
        else decision
        for decision in decisions
    ]
    again = (decision for decision in decisions if decision.name in findings.infinite)
    run(job for decision in again for job in _jobs(decision, inputs))
    return decisions


def _jobs(decision: TensorDecision, inputs: Inputs) -> Iterator[_Job]:
    """Yield a tensor in blocks; of a vocabulary that has grown the common rows first."""
    stored = inputs.runs[0][decision.name]
    common = stored.numel
    if decision.vocabulary_axis is not None and decision.action == "interpolated":
        assert decision.base_name is not None
        if decision.vocabulary_axis != 0:
            yield _Job(decision, 0, stored.numel, True)
            return
        common = min(common, inputs.base[decision.base_name].numel)
    for is_common, (first, last) in ((True, (0, common)), (False, (common, stored.numel))):
        for begin, end in _blocks(first, last, 2 * BLOCK // (1 + len(inputs.runs))):
            yield _Job(decision, begin, end, is_common)


def _blocks(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(first, last, size):
        yield begin, min(begin + size, last)


class _Worker:
    """Does jobs, with files and buffers of its own."""

    def __init__(self, inputs: Inputs, places: Mapping[str, Stored], findings: _Findings) -> None:
        self.inputs, self.places, self.findings = inputs, places, findings
        self.base, self.runs, self.writer = Reader(), [Reader() for _ in inputs.runs], Writer()
        self.result = torch.empty(0)

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *error: object) -> None:
        for reader in (self.base, *self.runs):
            reader.close()
        self.writer.close()

    def __call__(self, job: _Job) -> None:
        decision, place = job.decision, self.places[job.decision.name]
        finetuned = self.read_finetuned(job)
        if decision.action == "interpolated" and job.is_common:
            result = self.interpolate(job, finetuned)
        else:
            if decision.action == "interpolated" and not is_finite(finetuned):
                refuse_nan(decision.name, finetuned[:0], finetuned)
                self.findings.infinite.add(decision.name)
            result = finetuned.to(place.info.dtype)
        self.writer.write(place, job.begin, result)

    def interpolate(self, job: _Job, finetuned: torch.Tensor) -> torch.Tensor:
        """Return a block of M_α, in a buffer that is used again."""
        decision, info = job.decision, self.places[job.decision.name].info
        assert decision.base_name is not None
        assert decision.alpha is not None
        stored = self.inputs.base[decision.base_name]
        if self.result.dtype != info.dtype or self.result.numel() < finetuned.numel():
            self.result = torch.empty(finetuned.numel(), dtype=info.dtype)
        result = self.result[: finetuned.numel()]
        if decision.vocabulary_axis in (None, 0):
            base = self.base.read(stored, job.begin, job.end)
            lerp(base, finetuned, decision.alpha, result)
        else:
            base = self.base.read(stored)
            parts = base.view(stored.info.shape), finetuned.view(info.shape), result.view(info.shape)
            write_one(decision.alpha, decision.vocabulary_axis, *parts)
        _inspect(decision, base, finetuned, result, self.findings)
        return result

    def read_finetuned(self, job: _Job) -> torch.Tensor:
        """Return a block of M_θ; of a soup the mean, but the first's of what is copied."""
        blocks = (
            reader.read(run[job.decision.name], job.begin, job.end)
            for reader, run in zip(self.runs, self.inputs.runs, strict=True)
        )
        first = next(blocks)
        if len(self.runs) == 1 or job.decision.action == "copied" or not is_float(first.dtype):
            return first
        return mean_of(chain([first], blocks))


def _inspect(
    decision: TensorDecision, base: torch.Tensor, finetuned: torch.Tensor, result: torch.Tensor, findings: _Findings
) -> None:
    """Look for values that no interpolation has, and for a first difference."""
    if not findings.differ:
        findings.differ = base.shape != finetuned.shape or not torch.equal(base.to(finetuned.dtype), finetuned)
    # between the ends, what is not finite in M₀ or M_θ is not in M_α
    is_end = decision.alpha in (0.0, 1.0)
    if is_finite(result) and (not is_end or (is_finite(base) and is_finite(finetuned))):
        return
    refuse_nan(decision.name, base, finetuned)
    if is_finite(base) and is_finite(finetuned):
        raise ValueError(
            f"`alpha` {decision.alpha:g} takes {decision.name!r} beyond the range of {result.dtype}. Give a `dtype` of "
            "a wider range, such as bfloat16, or an α nearer to [0, 1]."
        )
    findings.infinite.add(decision.name)


def are_equal(first: Stored, second: Stored) -> bool:
    """Whether two tensors have the same values; read block by block, up to the first difference."""
    if first.info.shape != second.info.shape:
        return False
    with _closing(Reader(), Reader()) as (one, other):
        return all(
            torch.equal(one.read(first, *block).to(second.info.dtype), other.read(second, *block))
            for block in _blocks(0, first.numel, BLOCK)
        )


@contextmanager
def _closing(*files: Any) -> Iterator[tuple[Any, ...]]:
    try:
        yield files
    finally:
        for file in files:
            file.close()
