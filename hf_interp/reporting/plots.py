"""Pictures; they read plans and results only."""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from hf_interp.mixture.plan import MixturePlan
from hf_interp.reporting.curve import AlphaCurve, FloatArray, pareto_front, short_alpha
from hf_interp.reporting.results import Comparison, RunResults, less_is_better, main_metric, spread

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
ENDS: dict[float, str] = {0: "$M_0$", 1: "$M_\\theta$"}
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


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str], metric: str | None = None) -> None:
    """α and realised share of every method; a metric on both sides over steps, mean and range over seeds.

    Without a `metric` it is the main one of each side.
    """
    of_domain, of_general = (metric or comparison.metric(side) for side in ("domain", "general"))
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    alpha, domain, general = figure.subplots(1, 3)
    trained = [method for method in comparison.methods() if any(row["curve"] for row in _rows(comparison, method))]
    for index, method in enumerate(trained):
        _alpha_of(alpha, comparison, method, _colour(index))
        _band(domain, comparison, method, "domain", of_domain, _colour(index))
        _band(general, comparison, method, "general", of_general, _colour(index))
    _finish(alpha, "α (line) and realised domain share (dots)", "share of the batch")
    alpha.set_ylim(-0.03, 1.03)
    _finish(domain, "domain test set", of_domain)
    _finish(general, "general test set", of_general)
    _save(figure, path)


def plot_curve(curve: AlphaCurve, path: str | os.PathLike[str]) -> None:
    """The metric of both sides over α, with 95% intervals; and the sides against each other, with the Pareto frontier.

    Both show the examples that the choice of α has not seen.
    """
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _over_alpha(left, curve)
    _trade_off(right, curve)
    _save(figure, path)


def plot_tuning(
    trials: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    best: Mapping[str, Any],
    base: Sequence[float | None],
    metric: str,
) -> None:
    """The objective of a search's trials in their order; and its metric on both sides, if there are two.

    Args:
        trials: `objective`, `feasible`, `own`, `domain` and `general` of each (see `hf_interp.commands.tune.Tuning`).
        path: the picture.
        best: one of them.
        base: M₀'s metric on the domain's set and on the general one.
        metric: its name.
    """
    two_sides = base[1] is not None
    figure = Figure(figsize=(12 if two_sides else 6, 4.5), layout="constrained")
    axes = figure.subplots(1, 2 if two_sides else 1, squeeze=False)[0]
    objectives = [_or_nan(row["objective"]) for row in trials]
    _trials(axes[0], trials, range(len(trials)), objectives, best)
    reached = np.fmax.accumulate(
        [value if row["feasible"] else math.nan for row, value in zip(trials, objectives, strict=True)]
    )
    axes[0].step(range(len(trials)), reached, where="post", color="grey", label="best so far")
    _finish(axes[0], "objective of the trials", "objective (more is better)", "trial")
    if two_sides:
        general, domain = ([_or_nan(row[side]) for row in trials] for side in ("general", "domain"))
        _trials(axes[1], trials, general, domain, best)
        axes[1].plot(base[1], base[0], color="black", marker="s", linestyle="", label="$M_0$")
        _finish(axes[1], "domain against general: the upper right is better", f"domain {metric}", f"general {metric}")
        if less_is_better(metric):
            axes[1].invert_xaxis()
            axes[1].invert_yaxis()
    _save(figure, path)


def _trials(
    axes: Axes,
    trials: Sequence[Mapping[str, Any]],
    across: Sequence[float],
    up: Sequence[float],
    best: Mapping[str, Any],
) -> None:
    """Points of trials: those that keep the constraint, those that do not, the recipe's own, and the best."""
    kinds: list[tuple[str, dict[str, Any], list[bool]]] = [
        ("trials", {"marker": "o", "color": COLOURS[0]}, [row["feasible"] for row in trials]),
        ("not feasible", {"marker": "x", "color": "grey"}, [not row["feasible"] for row in trials]),
        ("the recipe's own", {"marker": "D", "color": COLOURS[2], "markersize": 8}, [row["own"] for row in trials]),
        ("best", {"marker": "*", "color": COLOURS[1], "markersize": 16, "zorder": 4}, [row is best for row in trials]),
    ]
    for label, style, chosen in kinds:
        points = [(x, y) for x, y, is_chosen in zip(across, up, chosen, strict=True) if is_chosen]
        if points:
            axes.plot(*zip(*points, strict=True), linestyle="", label=label, **style)


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


def _or_nan(value: float | None) -> float:
    """A number for the picture; what is unknown is left out of it."""
    return math.nan if value is None else value


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


def _over_alpha(axes: Axes, curve: AlphaCurve) -> None:
    """Metrics over α with what was chosen."""
    if _is_wide(np.concatenate([_reported(curve, side, "values") for side in ("domain", "general")]), curve.metric):
        _make_logarithmic(axes, "y")
    lines: list[Any] = []
    for index, dataset in enumerate(("domain", "general")):
        values, errors = _reported(curve, dataset, "values"), 1.96 * _reported(curve, dataset, "std_errors")
        style: dict[str, Any] = {"color": _colour(index), "label": f"{dataset}, with 95% intervals"}
        lines += axes.plot(curve.alphas, values, marker="o", markersize=4, **style)
        axes.fill_between(curve.alphas, values - errors, values + errors, color=_colour(index), alpha=0.15, linewidth=0)
        if curve.alpha in curve.alphas:
            chosen = values[curve.alphas.index(curve.alpha)]
            axes.plot(curve.alpha, chosen, color=_colour(index), marker="*", markersize=15, zorder=4)
    if curve.confidence_interval:
        low, high = curve.confidence_interval
        label = f"95% interval of the best α: {short_alpha(low)} to {short_alpha(high)}"
        lines.append(axes.axvspan(low, high, color="grey", alpha=0.15, linewidth=0, label=label))
    label = f"chosen{' (the knee)' if curve.knee == curve.alpha else ''}: α = {short_alpha(curve.alpha)}"
    lines.append(axes.axvline(curve.alpha, color="black", linewidth=1, label=label))
    if curve.knee is not None and curve.knee != curve.alpha:
        label = f"knee: α = {short_alpha(curve.knee)}"
        lines.append(axes.axvline(curve.knee, color="black", linewidth=1.5, linestyle=":", label=label))
    _finish(axes, f"{curve.metric} over α", curve.metric, "α")
    fifths = range(math.ceil(5 * curve.alphas[0]), math.floor(5 * curve.alphas[-1]) + 1)
    axes.set_xticks([fifth / 5 for fifth in fifths], [f"{fifth / 5:g}\n{ENDS.get(fifth / 5, '')}" for fifth in fifths])
    axes.legend(handles=lines, fontsize="small", framealpha=0.95)


def _trade_off(axes: Axes, curve: AlphaCurve) -> None:
    """The general metric against the domain metric along α; the axes are turned so that the upper right is better."""
    metric = curve.metric
    general, domain = (_reported(curve, side, "values") for side in ("general", "domain"))
    sign = -1 if less_is_better(metric) else 1
    front = sorted(pareto_front(sign * domain, sign * general), key=lambda index: general[index])
    axes.plot(
        general, domain, color="grey", marker="o", markersize=4, markerfacecolor="white", label="$M_\\alpha$ along α"
    )
    axes.plot(general[front], domain[front], color=COLOURS[2], marker="o", linewidth=2.5, label="Pareto frontier")
    names = {index: ENDS[alpha] for index, alpha in enumerate(curve.alphas) if alpha in ENDS}
    for index in names:
        axes.plot(general[index], domain[index], color="black", marker="s", linestyle="", zorder=3)
    if curve.alpha in curve.alphas:
        chosen = curve.alphas.index(curve.alpha)
        style: dict[str, Any] = {"marker": "*", "markersize": 17, "color": COLOURS[1], "linestyle": "", "zorder": 4}
        axes.plot(general[chosen], domain[chosen], label=f"chosen: α = {short_alpha(curve.alpha)}", **style)
        names.setdefault(chosen, f"α = {short_alpha(curve.alpha)}")
    for name, values in (("x", general), ("y", domain)):
        if _is_wide(values, metric):
            _make_logarithmic(axes, name)
    for index in _apart(_scaled(general, metric), _scaled(domain, metric), list(names)):
        text = names.get(index) or short_alpha(curve.alphas[index])
        style = (
            {"color": "black", "fontsize": "medium"} if index in names else {"color": "dimgrey", "fontsize": "small"}
        )
        style["bbox"] = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        axes.annotate(text, (general[index], domain[index]), xytext=(7, 7), textcoords="offset points", **style)
    axes.margins(0.12)
    _finish(axes, "domain against general: the upper right is better", f"domain {metric}", f"general {metric}")
    axes.legend(fontsize="small", framealpha=0.95, markerscale=0.6)
    if sign < 0:
        axes.invert_xaxis()
        axes.invert_yaxis()


def _reported(curve: AlphaCurve, dataset: str, name: str) -> FloatArray:
    """Values or standard errors of the curve's metric; NaN for unknown ones."""
    return np.array(curve.report[dataset][curve.metric][name], dtype=np.float64)


def _is_wide(values: FloatArray, metric: str) -> bool:
    """Whether losses, or the like, need a logarithmic axis."""
    return less_is_better(metric) and bool(np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values))


def _make_logarithmic(axes: Axes, name: str) -> None:
    """Make the x or y axis logarithmic, with plain numbers that keep apart."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _scaled(values: FloatArray, metric: str) -> FloatArray:
    """Values as they lie along their axis, which is 1 long."""
    places = np.log(values) if _is_wide(values, metric) else values
    return (places - np.nanmin(places)) / (np.nanmax(places) - np.nanmin(places) or 1)


def _apart(across: FloatArray, up: FloatArray, first: list[int]) -> list[int]:
    """Indices of points to label: the first ones, then those that are a tenth of the picture from all labelled ones."""
    labelled = list(first)
    for index in range(len(across)):
        if all(np.hypot(across[index] - across[other], up[index] - up[other]) > 0.1 for other in labelled):
            labelled.append(index)
    return labelled


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


def _finish(axes: Axes, title: str, unit: str, over: str = "optimizer step") -> None:
    axes.set_title(title)
    axes.set_xlabel(over)
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
