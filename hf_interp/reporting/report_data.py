"""The data of a report: runs and comparisons, read from their folders; runs of one recipe go together. No torch."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.special import stdtrit

from hf_interp.reporting.curve import AlphaCurve, find_curve
from hf_interp.reporting.results import SPEED_METRICS, Comparison, RunResults, load_results
from hf_interp.utils.redaction import redact_paths, without_tokens
from hf_interp.utils.run_folder import RESULTS_NAME

OWN_FIELDS = ("seed", "data_seed", "output_dir", "run_name", "logging_dir", "hub_model_id")
"""In which runs of one recipe may differ."""

Point = tuple[float, float]


@dataclass(kw_only=True)
class Estimate:
    """A mean, and half of its 95% interval, which is `None` where nothing is known of it."""

    value: float
    half: float | None = None

    @property
    def low(self) -> float:
        """Return the lower end of the interval."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Return the upper end of the interval."""
        return self.value + (self.half or 0.0)


@dataclass(kw_only=True)
class Run:
    """What a run's folder has: its results, and M_α over α, if that was searched."""

    name: str
    results: RunResults
    curve: AlphaCurve | None = None

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        return int(self.results.config.get("seed", self.results.plan.get("seed", 0)))


@dataclass(kw_only=True)
class Member:
    """One seed of a method.

    Args:
        seed: the seed.
        base, final: metrics of M₀ and of the model, by evaluation set.
        lost: what was forgotten of each metric, by evaluation set; known of the general side alone.
        evaluations: (set, metric) → its values over steps.
        shares: the domain's realised share over steps.
        alphas: α over steps, as logged.
        chosen: α of the weights, if these are those of M_α.
        run: the run's folder, if there is one.
    """

    seed: int
    base: Mapping[str, Mapping[str, float | None]]
    final: Mapping[str, Mapping[str, float | None]]
    lost: Mapping[str, Mapping[str, float | None]]
    evaluations: dict[tuple[str, str], list[Point]] = field(default_factory=dict)
    shares: list[Point] = field(default_factory=list)
    alphas: list[Point] = field(default_factory=list)
    chosen: float | None = None
    run: Run | None = None


@dataclass(kw_only=True)
class Method:
    """A recipe, or a method of a comparison, over its seeds."""

    name: str
    members: list[Member]

    @property
    def runs(self) -> list[Run]:
        """Return the runs whose folders are there."""
        return [member.run for member in self.members if member.run is not None]

    def evaluations(self, name: str, metric: str) -> list[list[Point]]:
        """Return a metric of an evaluation set over steps, of each member."""
        return [member.evaluations.get((name, metric), []) for member in self.members]

    def estimate(self, part: Literal["base", "final", "lost"], name: str, metric: str) -> Estimate | None:
        """Return the mean and interval over seeds of a metric of an evaluation set."""
        return estimate([getattr(member, part).get(name, {}).get(metric) for member in self.members])


@dataclass(kw_only=True)
class Study:
    """Methods that are shown side by side; those of a comparison come with it."""

    title: str
    methods: list[Method]
    comparison: Comparison | None = None
    warnings: list[str] = field(default_factory=list)


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Return mean and half of the 95% interval of Student's t over seeds: t(0.975, n − 1)·s/√n.

    A single value has no interval; `None` without values.

    >>> found = estimate([1.0, 2.0, 3.0])
    >>> found.value, round(found.half, 3)
    (2.0, 2.484)
    >>> estimate([1.0]), estimate([None])
    (Estimate(value=1.0, half=None), None)
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return Estimate(value=known[0])
    quantile = float(stdtrit(len(known) - 1, 0.975))
    return Estimate(value=fmean(known), half=quantile * stdev(known) / math.sqrt(len(known)))


def load_studies(folders: Sequence[str | os.PathLike[str]]) -> list[Study]:
    """Read folders: every comparison is a study of its own, and all runs are one, seeds of one recipe together.

    A folder that is given twice counts once.
    """
    if not folders:
        raise ValueError("`folders` must name at least one folder of a run or comparison, got none.")
    runs, studies = [], []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        found = _load(folder)
        if isinstance(found, Comparison):
            studies.append(Study(title=folder.name, methods=compared_methods(found, folder), comparison=found))
        else:
            runs.append(found)
    if runs:
        methods = group_runs(runs)
        title = "Runs" if studies or len(methods) > 1 else methods[0].name
        studies.insert(0, Study(title=title, methods=methods, warnings=_repeated_seeds(methods)))
    return studies


def compared_methods(comparison: Comparison, folder: Path | None = None) -> list[Method]:
    """Return the methods of a comparison, with the folders of its runs where they are still there."""
    methods = []
    for name in comparison.methods():
        rows = [row for row in comparison.rows if row["method"] == name]
        members = [_member_of_row(row, None if folder is None else _run_of_row(row, folder)) for row in rows]
        methods.append(Method(name=name, members=members))
    return methods


def group_runs(runs: Sequence[Run]) -> list[Method]:
    """Group runs of one recipe, but for seeds and folders, as one method each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_recipe_key(run.results), []).append(run)
    methods: list[Method] = []
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        name = _common_name([run.name for run in group]) or f"recipe {len(methods) + 1}"
        is_taken = name in [method.name for method in methods]
        name = f"{name} ({len(methods) + 1})" if is_taken else name
        methods.append(Method(name=name, members=[_member(run) for run in group]))
    # runs whose folders have one name get that of their recipe too
    names = [run.name for run in runs]
    for method in methods:
        for run in method.runs:
            if names.count(run.name) > 1:
                run.name = f"{method.name} ({run.name})"
    return methods


def settings_of(results: RunResults) -> dict[str, Any]:
    """Return what distinguishes a run's recipe, by dotted names, without local paths, tokens, seeds and folders."""
    told = {**results.config, **(results.recipe or {})}
    if results.recipe is None:  # the corpora then stand in the plan alone
        told["corpora"] = {corpus.pop("name"): corpus for corpus in _corpora_of(results)}
        told |= {key: results.plan.get(key) for key in ("max_steps", "batch_size", "unit")}
    kept = {key: value for key, value in without_tokens(told).items() if key not in OWN_FIELDS}
    return _flat(redact_paths(kept))


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return names of the fields that are not the same in all settings.

    >>> differences([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}])
    ['b', 'c']
    """
    names = dict.fromkeys(name for found in settings for name in found)
    return [name for name in names if len({json.dumps(found.get(name), default=str) for found in settings}) > 1]


def logged(entries: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """Return a number over steps; entries that lack it are left out."""
    return [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None and "step" in entry]


def centred(points: Sequence[Point]) -> list[Point]:
    """Return points moved to the middle of the steps since the point before, where the share of those steps belongs."""
    befores = [0.0, *(step for step, _ in points)]
    return [((step + before) / 2, share) for (step, share), before in zip(points, befores, strict=False)]


def _load(folder: Path) -> Run | Comparison:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Name the folder of a run or comparison.")
    if not (folder / RESULTS_NAME).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {RESULTS_NAME}, which a run writes when it ends. Name the `output_dir` of a run "
            "or comparison that has ended."
        )
    found: RunResults | Comparison = load_results(folder / RESULTS_NAME, run=RunResults, comparison=Comparison)
    if isinstance(found, Comparison):
        return found
    return Run(name=folder.name, results=found, curve=find_curve(folder))


def _run_of_row(row: Mapping[str, Any], folder: Path) -> Run | None:
    """Return the run of a method and a seed; a row of M_α, or M₀, has none of its own."""
    place = folder / re.sub(r"\W+", "-", row["method"]) / f"seed-{row['seed']}"
    run = _load(place) if row["curve"] and (place / RESULTS_NAME).is_file() else None
    if not isinstance(run, Run):
        return None
    run.name = f"{row['method']} (seed {row['seed']})"
    return run


def _member_of_row(row: Mapping[str, Any], run: Run | None) -> Member:
    entries = row["curve"]
    evaluations = {
        (name, metric): logged(entries, f"{name}_{metric}")
        for name, metrics in row["metrics"].items()
        for metric in metrics
    }
    base: dict[str, dict[str, float | None]] = {}
    for (name, metric), points in evaluations.items():
        if points and points[0][0] == 0:
            base.setdefault(name, {})[metric] = points[0][1]
    return Member(
        seed=row["seed"],
        base=base,
        final=row["metrics"],
        lost={"general": row["forgetting"]},
        evaluations=evaluations,
        shares=centred(logged(entries, "domain_share")),
        alphas=logged(entries, "alpha"),
        chosen=row.get("alpha"),
        run=run,
    )


def _member(run: Run) -> Member:
    results = run.results
    entries = results.log_history
    domain = [corpus["name"] for corpus in results.plan["corpora"] if corpus["side"] == "domain"]
    shares = [
        (entry["step"], sum(entry.get(f"share_{name}") or 0.0 for name in domain))
        for entry in entries
        if "alpha" in entry
    ]
    return Member(
        seed=run.seed,
        base=results.base_metrics,
        final=results.final_metrics,
        lost={"general": results.forgetting},
        evaluations={
            (name, metric): logged(entries, f"eval_{name}_{metric}" if name else f"eval_{metric}")
            for name, metrics in results.final_metrics.items()
            for metric in metrics
            if metric not in SPEED_METRICS
        },
        shares=centred(shares),
        alphas=logged(entries, "alpha"),
        run=run,
    )


def _recipe_key(results: RunResults) -> str:
    """Return a key that is equal for runs of one recipe, and differs for folders of the same name."""
    kept = {key: value for key, value in (results.recipe or results.config).items() if key not in OWN_FIELDS}
    size = [results.plan.get("max_steps"), results.plan.get("batch_size")]
    return json.dumps([kept, _corpora_of(results), *size], sort_keys=True)


def _corpora_of(results: RunResults) -> list[dict[str, Any]]:
    """Return what distinguishes the corpora of a run."""
    contents = {corpus["name"]: corpus for corpus in results.order.get("plan", {}).get("corpora", [])}
    known = [contents.get(corpus["name"], {}) | corpus for corpus in results.plan["corpora"]]
    return [{key: corpus.get(key) for key in ("name", "side", "num_examples", "share", "content")} for corpus in known]


def _common_name(names: Sequence[str]) -> str:
    """Return what names of one recipe's folders begin with, without the beginning of a seed.

    >>> _common_name(["linear-seed-0", "linear-seed-1"]), _common_name(["seed-0", "seed-1"]), _common_name(["mine"])
    ('linear', '', 'mine')
    """
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return re.sub(r"[-_. ]*(?:seed|s)?[-_. ]*\d*$", "", "".join(letters[0] for letters in alike))


def _repeated_seeds(methods: Sequence[Method]) -> list[str]:
    found = []
    for method in methods:
        seeds = [member.seed for member in method.members]
        repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if repeated:
            found.append(
                f"{method.name}: several runs have the seed {', '.join(map(str, repeated))}. They are not independent, "
                "so the intervals are too narrow."
            )
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
