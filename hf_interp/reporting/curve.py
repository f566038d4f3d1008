"""Metrics of M_α = α·M_θ + (1 − α)·M₀ as functions of α: their shape, and what a search over them found. No torch.

Functions take what has been evaluated: α, and for each α the metric or its units. Units are values with one place for
each example, the same examples at every α, whose mean is the metric: the values of the examples for a metric that is a
mean, pseudo-values for one that is not, or a single number where nothing is known of its spread.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hf_interp.reporting.results import greater_is_better, load_results
from hf_interp.utils.console import format_table
from hf_interp.utils.environment import describe_machine, installed_versions
from hf_interp.utils.errors import check_choice
from hf_interp.utils.run_folder import CURVE_NAME

FloatArray = npt.NDArray[np.float64]

SLACK = 1e-9  # what differs by less, relative to its size, is taken as equal: 0.9 − 0.88 is not 0.02 to the last bit


@dataclass(kw_only=True)
class AlphaCurve:
    """Results of a search over α. `results.save_results` writes them and `load_curve` reads them.

    Args:
        alphas: the evaluated α, rising; 0 is the base model M₀, 1 the fine-tuned model M_θ.
        selection: metrics on the examples by which α was chosen: dataset ("domain", "general") → metric →
            `{"values": [...], "std_errors": [...]}`, one entry an α; an unknown standard error is `None`.
        report: the same on examples that the choice has not seen.
        metric: the metric that was optimised.
        objective: one of `OBJECTIVES`.
        settings: how it was optimised: `max_forgetting`, `domain_weight`, `tolerance`, `seed`, ...
        method: how the α were found: a grid, golden section, ...
        alpha, best_alpha, reason, confidence_interval: see `Choice`.
        knee: see `find_knee`.
        barrier: dataset → `{"height": ..., "alpha": ...}`, see `loss_barrier`.
        num_evaluations: how often a model was evaluated.
        num_examples: dataset → `{"selection": ..., "report": ...}`.
        warnings: what a reader should know before trusting it.
        base, finetuned: names or folders of M₀ and M_θ.
        groups: set → an account by group of the report examples at every α (see `hf_interp.reporting.audits`).
        pairs: set → at every α, how often the first text of a pair is likelier, likewise.
        leakage: at every α, how well two attacks tell training rows from others, where `max_leakage` limits it.
        weights: fingerprints of the weights' files: of M_θ (`finetuned`), and of M_α (`interpolated`) if it is saved.
    """

    alphas: list[float]
    selection: dict[str, dict[str, dict[str, list[float | None]]]]
    report: dict[str, dict[str, dict[str, list[float | None]]]]
    metric: str
    objective: str
    method: str
    alpha: float
    best_alpha: float
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)
    confidence_interval: list[float] | None = None
    knee: float | None = None
    barrier: dict[str, dict[str, float]] = field(default_factory=dict)
    num_evaluations: int = 0
    num_examples: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    base: str | None = None
    finetuned: str | None = None
    groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pairs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    leakage: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, str | None] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())

    @property
    def greater_is_better(self) -> bool | None:
        """Whether more of the metric is better, if it is known."""
        said: bool | None = self.settings.get("greater_is_better")
        return greater_is_better(self.metric) if said is None else said

    def at(self, alpha: float, dataset: str, metric: str) -> float | None:
        """Return a metric at an evaluated α, on the report examples.

        Raises:
            ValueError: for an α that was not evaluated, or an unknown dataset or metric; what there is is listed.
        """
        near = [index for index, known in enumerate(self.alphas) if math.isclose(known, alpha, abs_tol=SLACK)]
        if not near:
            raise ValueError(f"`alpha` must be one of those evaluated ({list_alphas(self.alphas)}), got {alpha}.")
        check_choice("dataset", dataset, self.report)
        check_choice("metric", metric, self.report[dataset])
        return self.report[dataset][metric]["values"][near[0]]


def load_curve(path: str | os.PathLike[str]) -> AlphaCurve:
    """Read what `results.save_results` wrote for a curve; see `results.load_results`."""
    found: AlphaCurve = load_results(path, **{"search over α": AlphaCurve})
    return found


def find_curve(folder: str | os.PathLike[str]) -> AlphaCurve | None:
    """Read the curve in the folder of a run, if it has one."""
    path = Path(folder) / CURVE_NAME
    return load_curve(path) if path.is_file() else None


def pareto_front(domain: npt.ArrayLike, general: npt.ArrayLike) -> list[int]:
    """Return indices of points that no other dominates: none is at least as good on both and better on one.

    Args:
        domain, general: the metrics, of equal length; more is better on both.

    >>> pareto_front([0.5, 0.8, 0.7, 0.9], [0.9, 0.8, 0.7, 0.6])
    [0, 1, 3]
    """
    first, second = np.asarray(domain, dtype=np.float64), np.asarray(general, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"`domain` and `general` must be lists of one length, got shapes {first.shape} and {second.shape}."
        )
    no_worse = (first[:, None] >= first) & (second[:, None] >= second)
    better = (first[:, None] > first) | (second[:, None] > second)
    return np.flatnonzero(~(no_worse & better).any(axis=0)).tolist()


def short_alpha(alpha: float) -> str:
    """Return α as it stands in texts.

    >>> short_alpha(0.61803), short_alpha(1.0)
    ('0.618', '1')
    """
    return f"{alpha:.3g}"


def list_alphas(alphas: npt.ArrayLike) -> str:
    """Return several α, rising, as they stand in messages.

    >>> list_alphas([1.0, 0.0, 0.25])
    '0, 0.25, 1'
    """
    return ", ".join(map(short_alpha, np.sort(alphas)))


def curve_table(curve: AlphaCurve) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the report examples' metrics by α, ± one standard error where it is known."""
    datasets = sorted(curve.report, key=lambda name: ("domain", "general", name).index(name))
    columns = [
        (dataset, metric)
        for metric in dict.fromkeys((curve.metric, "loss"))
        for dataset in datasets
        if metric in curve.report[dataset]
    ]
    rows = []
    for index, alpha in enumerate(curve.alphas):
        found = [curve.report[dataset][metric] for dataset, metric in columns]
        names = [name for end, name in ((0, "M₀"), (1, "M_θ"), (curve.alpha, "chosen")) if alpha == end]
        label = f"{short_alpha(alpha)} ({', '.join(names)})" if names else short_alpha(alpha)
        rows.append([label, *(with_error(entry["values"][index], entry["std_errors"][index]) for entry in found)])
    return ["α", *(f"{dataset} {metric}" for dataset, metric in columns)], rows


def count_examples(curve: AlphaCurve, part: Literal["selection", "report"]) -> str:
    """Return in words how many examples of each dataset a part of the search had."""
    return " and ".join(f"{counts[part]} {dataset}" for dataset, counts in curve.num_examples.items())


def format_curve(curve: AlphaCurve) -> str:
    """Return the report examples' metrics by α as a Markdown table, and what was chosen and why."""
    names = [f"{model} is {name}" for model, name in (("M₀", curve.base), ("M_θ", curve.finetuned)) if name]
    lines = [format_table(*curve_table(curve)), "", curve.reason, *([f"{', '.join(names)}."] if names else [])]
    if curve.confidence_interval:
        low, high = map(short_alpha, curve.confidence_interval)
        lines.append(f"95% confidence interval of the best α: {low} to {high}.")
    if curve.barrier:
        walls = (
            f"{dataset} {entry['height']:.4g} at α = {short_alpha(entry['alpha'])}"
            if entry["height"] > 0
            else f"{dataset} none"
            for dataset, entry in curve.barrier.items()
        )
        lines.append(f"Loss barrier between M₀ and M_θ: {', '.join(walls)}.")
    lines.append("Knee: none." if curve.knee is None else f"Knee: α = {short_alpha(curve.knee)}.")
    if curve.num_examples:
        lines.append(
            f"Chosen on {count_examples(curve, 'selection')} examples ({curve.method}, {curve.num_evaluations} "
            f"evaluations); the table is of {count_examples(curve, 'report')} others, ± one standard error."
        )
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in curve.warnings)])


def number(value: Any) -> str:
    """Return a metric as tables show it; nothing for what is no number.

    >>> number(0.51239), number(12.345), number(None)
    ('0.5124', '12.35', '')
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return ""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def with_error(value: float | None, error: float | None) -> str:
    """Return a metric ± its standard error, where that is known, as tables show it."""
    if value is None or error is None:
        return number(value)
    return f"{number(value)} ± {error:.{4 if abs(value) < 10 else 2}f}"
