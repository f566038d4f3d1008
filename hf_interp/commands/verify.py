"""`hf-interp verify`: whether two runs read the same, where they part, and whether a run read what its plan says.

Each run has logged hashes of all it had read up to some steps (`order_fingerprint`), and keeps its plan. The hashes say
between which steps two runs part; the plans say at which slot, and why.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_interp.mixture.continuation import plan_changes
from hf_interp.mixture.plan import MixturePlan
from hf_interp.training.checkpoints import STATE_NAME, find_checkpoint, find_fault, read_mixture
from hf_interp.utils.files import read_json
from hf_interp.utils.model_files import weights_fingerprint
from hf_interp.utils.run_folder import RESULTS_NAME

LOGGED = "order_fingerprint"
NOT_WHOLE = (AttributeError, LookupError, TypeError, ArithmeticError, MemoryError, zlib.error)
"""Errors that a plan, a log or results raise where one of their values is of another kind."""


@dataclass(frozen=True)
class RunOrder:
    """The order in which a run read: its plan, with the chain before it, and by step the hash of all read before."""

    source: str
    plan: MixturePlan
    fingerprints: dict[int, str]

    @property
    def has_streams(self) -> bool:
        """Whether a plan cannot tell the examples, because a corpus is a stream."""
        plan: MixturePlan | None = self.plan
        while plan is not None:
            if any(corpus.num_examples is None for corpus in plan.corpora):
                return True
            plan = plan.previous
        return False


@dataclass(frozen=True)
class Verdict:
    """Whether runs agree as far as the records reach, which is up to the step `until`; and the same in words."""

    agrees: bool
    until: int
    text: str


def load_order(path: str | Path) -> RunOrder:
    """Load the order of a run.

    Args:
        path: the folder of a run, one of its checkpoints, or its `results.json`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {str(path)!r}.")
    found = []
    file = path / RESULTS_NAME if path.is_dir() else path
    results = read_json(file)
    checkpoint = path if (path / STATE_NAME).is_file() else find_checkpoint(path, weights_only=True).path
    is_whole = checkpoint is not None and find_fault(checkpoint, weights_only=True) is None
    try:
        if isinstance(results, dict) and results.get("order"):
            found.append((file, results["order"]["plan"], results["log_history"]))
        if checkpoint is not None and is_whole and (mixture := read_mixture(checkpoint)):
            found.append((checkpoint, mixture["plan"], read_json(checkpoint / STATE_NAME)["log_history"]))
        orders = [
            RunOrder(str(source), MixturePlan.from_dict(plan), {int(e["step"]): e[LOGGED] for e in log if LOGGED in e})
            for source, plan, log in found
        ]
    except NOT_WHOLE as error:
        raise _not_whole(str(path), error) from error
    if not orders:
        raise ValueError(
            f"{str(path)!r} does not tell in which order a run read: it holds neither a {RESULTS_NAME} nor a whole "
            "checkpoint of a run over a mixture."
        )
    return max(orders, key=lambda order: max(order.fingerprints, default=-1))


def compare_runs(first: RunOrder, second: RunOrder) -> Verdict:
    """Compare whether two runs read the same examples in the same order, as far as both have records."""
    common = sorted(set(first.fingerprints) & set(second.fingerprints))
    if not common:
        steps = (
            f"{', '.join(map(str, sorted(run.fingerprints))) or 'none'} in {run.source}" for run in (first, second)
        )
        raise ValueError(
            f"The runs have no step on record in common: {', '.join(steps)}. Log or save at the same steps."
        )
    parted = next((step for step in common if first.fingerprints[step] != second.fingerprints[step]), None)
    agreed = max((step for step in common if parted is None or step < parted), default=0)
    if parted is None:
        ends = " and ".join(str(end) for end in dict.fromkeys(max(run.fingerprints) for run in (first, second)))
        return Verdict(
            True, agreed, f"The runs read the same examples in the same order up to step {agreed} (of {ends})."
        )
    changes = plan_changes(first.plan, second.plan)
    why = f" Their settings differ: {'; '.join(changes)}." if changes else " Their settings are the same."
    where = _first_difference(first, second, agreed, parted)
    return Verdict(
        False, agreed, f"The runs read the same up to step {agreed} and part before step {parted}. {where}{why}"
    )


def check_run(run: RunOrder) -> Verdict:
    """Check whether a run read what its plan says, at every step on record."""
    if run.has_streams:
        raise ValueError(
            f"{run.source} read streams, whose examples its plan does not know. Compare it with a second run."
        )
    total, before = 0, 0
    for step, found in sorted(run.fingerprints.items()):
        total = (total + run.plan.read_hash(before, step)) % (1 << 64)
        if f"{total:016x}" != found:
            text = f"and something else before step {step}: {found} on record, {total:016x} by the plan."
            return Verdict(False, before, f"The run read what its plan says up to step {before}, {text}")
        before = step
    text = f"The run read what its plan says up to step {before} ({len(run.fingerprints)} records)."
    return Verdict(True, before, text)


def verify(first: str | Path, second: str | Path | None = None) -> Verdict:
    """Compare two runs, or check one against its plan, and the weights in its folder against its results."""
    orders = [load_order(path) for path in (first, second) if path is not None]
    try:
        return compare_runs(*orders) if len(orders) > 1 else _check_with_weights(orders[0], Path(first))
    except NOT_WHOLE as error:
        raise _not_whole(" or ".join(order.source for order in orders), error) from error


def _not_whole(sources: str, error: BaseException) -> ValueError:
    return ValueError(f"{sources!r} holds a plan or a log that is not whole: {error!r}. Take another.")


def _check_with_weights(order: RunOrder, first: Path) -> Verdict:
    """Check a run, and whether the weights beside its results are those that it wrote."""
    verdict = check_run(order)
    folder = first if first.is_dir() else first.parent
    written = ((read_json(folder / RESULTS_NAME) or {}).get("model") or {}).get("weights")
    if not verdict.agrees or written is None or written == weights_fingerprint(folder):
        return verdict
    text = f"{verdict.text} But the weights beside its results are not those that it wrote: another run has been there."
    return Verdict(False, verdict.until, text)


def _first_difference(first: RunOrder, second: RunOrder, begin: int, end: int) -> str:
    """Say where, between two steps, the plans of two runs put something else into a slot."""
    for step in range(begin, end):
        plans = first.plan.plan_of(step), second.plan.plan_of(step)
        if any(plan.order.window for plan in plans):
            return "Their plans share out examples by lengths, which they do not hold, so that they tell no slot."
        sizes = [plan.batch_size for plan in plans]
        names, examples = zip(*(_contents(plan, step) for plan in plans), strict=True)
        both = slice(min(sizes))
        differs = np.flatnonzero((names[0][both] != names[1][both]) | (examples[0][both] != examples[1][both]))
        if differs.size:
            place = int(differs[0])
            reads = " and ".join(f"{names[run][place]}[{examples[run][place]}]" for run in (0, 1))
            return f"By their plans it is at step {step}, slot {place} of the batch: {reads}."
        if sizes[0] != sizes[1]:
            return f"By their plans it is at step {step}, whose batches have {sizes[0]} and {sizes[1]} examples."
    if first.has_streams or second.has_streams:
        return "Their plans are the same there: streams were divided among other readers, or gave other examples."
    return "Their plans are the same there, so one of them did not read what its plan says: check each of them alone."


def _contents(plan: MixturePlan, step: int) -> tuple[Any, Any]:
    draw = plan.locate(range(step * plan.batch_size, (step + 1) * plan.batch_size))
    return np.array([corpus.name for corpus in plan.corpora])[draw.corpus], draw.example
