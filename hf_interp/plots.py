"""Pictures; they read plans and results only."""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_interp.plan import MixturePlan
from hf_interp.results import SPEED_METRICS, Comparison, RunResults, spread

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MAX_POINTS = 400


def plot_plan(plan: MixturePlan, path: str | os.PathLike[str]) -> None:
    """α over the steps, and the passes over each corpus."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = _spread_over(plan.max_steps)
    left.plot(steps, [plan.alpha(step) for step in steps], color="black", label="α (planned)")
    _shares(left, plan, _spread_over(plan.max_steps, 60))  # wide enough apart to see more than whole examples
    ends = [step + 1 for step in steps]
    drawn = plan.drawn_before(ends)
    for index, corpus in enumerate(plan.corpora):
        size = corpus.num_examples
        label = f"{corpus.name} ({corpus.side})"
        right.plot(ends, drawn[:, index] / size if size else drawn[:, index], label=label, color=_colour(index))
    unit = (
        "passes over the corpus"
        if all(corpus.num_examples for corpus in plan.corpora)
        else "passes (streams: examples)"
    )
    _finish(right, "what is read", unit)
    _save(figure, path)


def plot_run(results: RunResults, path: str | os.PathLike[str]) -> None:
    """α and realised shares over steps; training loss by corpus; evaluation metrics over steps."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    logs = [entry for entry in results.log_history if "alpha" in entry]
    names = [corpus["name"] for corpus in results.plan["corpora"]]
    _line(left, logs, "alpha", "α", "black")
    for index, name in enumerate(names):
        _line(left, _centred(logs), f"share_{name}", f"share of {name}", _colour(index), marker=".", linestyle="")
        _line(middle, logs, f"loss_{name}", name, _colour(index))
    _finish(left, "data", "share of the batch")
    left.set_ylim(-0.03, 1.03)
    _finish(middle, "training loss by corpus", "loss")
    metric = main_metric(results.final_metrics)
    for index, name in enumerate(results.final_metrics):
        key = f"eval_{name}_{metric}" if name else f"eval_{metric}"
        _line(right, results.log_history, key, name or "evaluation set", _colour(index), marker="o")
    _finish(right, "evaluation", metric or "")
    _save(figure, path)


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str], metric: str) -> None:
    """α and realised share of the last method; the metric on both sides over steps, mean and range over seeds."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    alpha, domain, general = figure.subplots(1, 3)
    trained = [method for method in comparison.methods() if any(row["curve"] for row in _rows(comparison, method))]
    for index, method in enumerate(trained):
        _alpha_of(alpha, comparison, method, _colour(index))
        _band(domain, comparison, method, "domain", metric, _colour(index))
        _band(general, comparison, method, "general", metric, _colour(index))
    _finish(alpha, "α (line) and realised domain share (dots)", "share of the batch")
    alpha.set_ylim(-0.03, 1.03)
    _finish(domain, "domain test set", metric)
    _finish(general, "general test set", metric)
    _save(figure, path)


def main_metric(metrics: Mapping[str, Mapping[str, float]]) -> str | None:
    """The metric to draw: accuracy if there is one, else the first that is no loss, else the loss."""
    names = [name for found in metrics.values() for name in found if name not in SPEED_METRICS]
    for choice in ("accuracy", *(name for name in names if not name.endswith("loss")), *names):
        if choice in names:
            return choice
    return None


def _rows(comparison: Comparison, method: str) -> list[dict[str, Any]]:
    return [row for row in comparison.rows if row["method"] == method]


def _alpha_of(axes: Axes, comparison: Comparison, method: str, colour: str) -> None:
    entries = [entry for entry in _rows(comparison, method)[0]["curve"] if "alpha" in entry]
    _line(axes, entries, "alpha", method, colour)
    _line(axes, _centred(entries), "domain_share", None, colour, marker=".", linestyle="")


def _band(axes: Axes, comparison: Comparison, method: str, dataset: str, metric: str, colour: str) -> None:
    found: dict[int, list[float]] = {}
    for row in _rows(comparison, method):
        for entry in row["curve"]:
            if f"{dataset}_{metric}" in entry:
                found.setdefault(entry["step"], []).append(entry[f"{dataset}_{metric}"])
    steps = sorted(found)
    means = [(spread(found[step]) or {})["mean"] for step in steps]
    axes.plot(steps, means, color=colour, marker="o", markersize=3, label=method)
    axes.fill_between(
        steps, [min(found[step]) for step in steps], [max(found[step]) for step in steps], color=colour, alpha=0.15
    )


def _line(
    axes: Axes, entries: Sequence[Mapping[str, Any]], key: str, label: str | None, colour: str, **style: Any
) -> None:
    points = [(entry["step"], entry[key]) for entry in entries if key in entry]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)


def _centred(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Logs moved to the middle of the steps since the log before, where the share of those steps belongs."""
    befores = [0, *(entry["step"] for entry in entries)]
    return [{**entry, "step": (entry["step"] + before) / 2} for entry, before in zip(entries, befores, strict=False)]


def _shares(axes: Axes, plan: MixturePlan, steps: Sequence[int]) -> None:
    """Realised share of the domain between neighbouring points."""
    borders = [0, *(step + 1 for step in steps[1:])]
    middles = [(first + last) / 2 for first, last in pairwise(borders)]
    drawn = [plan.sides_before(step) for step in borders]
    shares = [
        (after["domain"] - before["domain"]) / (sum(after.values()) - sum(before.values()))
        for before, after in pairwise(drawn)
    ]
    axes.plot(middles, shares, color=COLOURS[1], linestyle="", marker=".", label="domain share (drawn)")
    _finish(axes, "α and what it draws", "share of the batch")
    axes.set_ylim(-0.03, 1.03)


def _spread_over(max_steps: int, most: int = MAX_POINTS) -> list[int]:
    count = min(max_steps, most)
    return sorted({round(point * (max_steps - 1) / max(count - 1, 1)) for point in range(count)})


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write beside and rename, so that no half a picture is ever seen."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)
    os.replace(temporary, path)
