"""The charts of plans, runs, comparisons, curves and searches: which numbers each shows. No torch.

Charts of one kind are the same in pictures (`plot_...`) and in reports.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hf_interp.mixture.plan import MixturePlan
from hf_interp.reporting.audits import gaps_over_alpha, harness_charts, leak_charts, pairs_over_alpha
from hf_interp.reporting.charts import Chart, Point, Series, draw_panels, save_figure, spread_over
from hf_interp.reporting.colours import ALPHA, DOMAIN, NEUTRAL, OTHERS, other_style, set_style, side_style
from hf_interp.reporting.curve import AlphaCurve, pareto_front, short_alpha
from hf_interp.reporting.report_data import Estimate, Method, Run, centred, compared_methods, group_runs, logged
from hf_interp.reporting.results import Comparison, RunResults, greater_is_better, main_metric

DOMAIN_FIRST = ("domain", "general")
ENDS = {0.0: "M₀", 1.0: "M_θ"}
MAX_PLANNED, MAX_POINTS, MAX_SHARES = 400, 200, 60
"""Points of a series; realised shares are wide enough apart to see more than whole examples."""
RANGE = "The band goes from the least to the greatest seed."
SHARE_LIMITS = (-0.04, 1.04)
STEP = "optimizer step"
TRADE_OFF = "domain against general: the upper right is better"
UNNAMED_SET = "evaluation set"


def plot_plan(plan: MixturePlan, path: str | os.PathLike[str]) -> None:
    """Write a picture of α over the steps, or of the shares along a path, and of the passes over each corpus."""
    save_figure(draw_panels([_stacked_shares(plan) if plan.is_path else _planned_shares(plan), _passes(plan)]), path)


def plot_run(results: RunResults, path: str | os.PathLike[str]) -> None:
    """Write a picture of α and realised shares, the training loss by corpus and the evaluation metrics over steps."""
    (method,) = group_runs([Run(name="", results=results)])
    charts = [_realised_shares(results), corpus_losses(method.runs), *metrics_over_steps(method)]
    save_figure(draw_panels(charts), path)


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str], metric: str | None = None) -> None:
    """Write a picture of α and realised share of every method, and of a metric on both sides over steps.

    Without a `metric` it is the main one of each side.
    """
    methods = compared_methods(comparison)
    charts = [alphas_of_methods(methods)]
    charts += [methods_over_steps(methods, side, metric or comparison.metric(side)) for side in DOMAIN_FIRST]
    save_figure(draw_panels(charts), path)


def plot_curve(curve: AlphaCurve, path: str | os.PathLike[str]) -> None:
    """Write a picture of the metric over α with 95% intervals, and of the sides against each other.

    Both show the examples that the choice of α has not seen, as do the gaps between groups, if there are some. Of
    pairs of texts all are shown.
    """
    save_figure(draw_panels([metrics_over_alpha([curve]), frontier(curve), *_beside(curve)]), path)


def plot_tuning(
    trials: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    best: Mapping[str, Any],
    base: Sequence[float | None],
    metric: str,
) -> None:
    """Write a picture of a search's trials in their order, and of its metric on both sides, if there are two.

    Args:
        trials: `objective`, `feasible`, `own`, `domain` and `general` of each (see `hf_interp.commands.tune.Tuning`).
        path: the picture.
        best: one of them.
        base: M₀'s metric on the domain's set and on the general one.
        metric: its name.
    """
    charts = [_objectives_of_trials(trials, best)]
    if base[1] is not None:
        charts.append(_sides_of_trials(trials, best, base, metric))
    save_figure(draw_panels(charts), path)


def side_by_side(methods: Sequence[Method]) -> list[Chart]:
    """Return the charts of methods beside each other."""
    metrics = main_metrics(methods)
    charts = [trade_off(methods, metrics)] if set(DOMAIN_FIRST) <= set(metrics) else []
    charts += [methods_over_steps(methods, name, metric) for name, metric in metrics.items()]
    return [*charts, alphas_of_methods(methods)]


def of_one(method: Method) -> list[Chart]:
    """Return the charts of one recipe: what was read, losses, metrics."""
    runs = method.runs
    more = [chart for run in runs if run.results.audit for chart in leak_charts(run.results.audit)]
    more += [chart for run in runs if run.results.harness for chart in harness_charts(run.results.harness)]
    return [mixture(method), corpus_losses(runs), objective_losses(runs), *metrics_over_steps(method), *more]


def of_curves(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts of the searches over α among runs of one recipe."""
    curves = [(run.seed, run.curve) for run in runs if run.curve is not None]
    charts = [frontier(curve, f"Seed {seed}: " if len(runs) > 1 else "") for seed, curve in curves]
    beside = [chart for _, curve in curves for chart in _beside(curve)]
    return [metrics_over_alpha([curve for _, curve in curves]), *charts, *beside]


def _beside(curve: AlphaCurve) -> list[Chart]:
    """Return the charts of what is measured beside the sides."""
    return [*gaps_over_alpha(curve), *pairs_over_alpha(curve)]


def trade_off(methods: Sequence[Method], metrics: Mapping[str, str]) -> Chart:
    """Return the domain's metric against the general one, with intervals over seeds."""
    chart = _against(metrics["domain"], metrics["general"])
    chart.remark = "Lines are 95% intervals over seeds; they may leave the picture."
    for index, method in enumerate(methods):
        domain, general = (method.estimate("final", side, metrics[side]) for side in DOMAIN_FIRST)
        if general is None or domain is None:
            continue
        has_interval = domain.half is not None and general.half is not None
        chart.series.append(
            Series(
                label=method.name,
                points=[(general.value, domain.value)],
                low=[domain.low] if has_interval else None,
                high=[domain.high] if has_interval else None,
                x_errors=[general.half or 0.0] if has_interval else None,
                style=other_style(index) | {"linestyle": "", "markersize": 8},
            )
        )
    return chart


def methods_over_steps(methods: Sequence[Method], name: str, metric: str) -> Chart:
    """Return a metric of an evaluation set over steps, by method."""
    series = [
        _over_seeds(method.name, method.evaluations(name, metric), other_style(index))
        for index, method in enumerate(methods)
    ]
    return _metric_over_steps(f"{in_words(name, metric)} over steps", metric, series)


def alphas_of_methods(methods: Sequence[Method]) -> Chart:
    """Return α over steps, and what was drawn, by method."""
    series: list[Series] = []
    for index, method in enumerate(methods):
        first, style = method.members[0], other_style(index)
        shares = _thinned(first.shares, MAX_SHARES)
        series += [
            Series(label=f"{method.name}: α", points=_thinned(first.alphas), style=style | {"marker": ""}),
            Series(label=f"{method.name}: drawn", points=shares, style=style | {"linestyle": ""}),
        ]
    return _over_steps("α and the domain's share", "share", series, "Of the first seed.", SHARE_LIMITS)


def mixture(method: Method) -> Chart:
    """Return α as planned, and what was drawn."""
    plan = MixturePlan.from_dict(method.runs[0].results.order["plan"])
    steps = spread_over(plan.max_steps, MAX_POINTS)
    planned: list[Point] = [(step, plan.plan_of(step).scheduled_alpha(step)) for step in steps]
    series = [Series(label="α as planned", points=planned, style={"color": ALPHA, "linestyle": "-"})]
    if plan.is_adaptive:
        in_force: list[Point] = [(step, plan.alpha(step)) for step in steps]
        series.append(Series(label="α in force", points=in_force, style={"color": OTHERS[0], "linestyle": "--"}))
    drawn = _over_seeds("domain's share as drawn", [member.shares for member in method.members], side_style("domain"))
    points = _thinned(drawn.points, MAX_SHARES)
    series.append(Series(label=drawn.label, points=points, style=drawn.style | {"linestyle": ""}))
    seeds = f"α is that of seed {method.runs[0].seed}, the share the mean over seeds."
    remark = seeds if len(method.runs) > 1 else ""
    return _over_steps("Mixture: planned and drawn", "share of the batch", series, remark, SHARE_LIMITS)


def corpus_losses(runs: Sequence[Run]) -> Chart:
    """Return the training loss of every corpus; the domain's come first."""
    corpora = sorted(runs[0].results.plan["corpora"], key=lambda corpus: DOMAIN_FIRST.index(corpus["side"]))
    series = [
        _over_seeds(corpus["name"], [logged(run.results.log_history, f"loss_{corpus['name']}") for run in runs], style)
        for corpus, style in zip(corpora, _corpus_styles(corpora), strict=True)
    ]
    return _over_steps("Training loss by corpus", "loss", series)


def objective_losses(runs: Sequence[Run]) -> Chart:
    """Return the training loss of every objective, where they are logged."""
    prefix = "objective_loss_"
    keys = dict.fromkeys(
        key for run in runs for entry in run.results.log_history for key in entry if key.startswith(prefix)
    )
    series = [
        _over_seeds(
            key.removeprefix(prefix), [logged(run.results.log_history, key) for run in runs], other_style(index)
        )
        for index, key in enumerate(keys)
    ]
    return _over_steps("Training loss by objective", "loss", series)


def metrics_over_steps(method: Method) -> list[Chart]:
    """Return a chart for each of the main metrics, with all sets that have it as theirs."""
    series: dict[str, list[Series]] = {}
    for index, (name, metric) in enumerate(main_metrics([method]).items()):
        found = _over_seeds(name or UNNAMED_SET, method.evaluations(name, metric), set_style(name, index))
        series.setdefault(metric, []).append(found)
    return [_metric_over_steps(f"Evaluation: {metric} over steps", metric, found) for metric, found in series.items()]


def metrics_over_alpha(curves: Sequence[AlphaCurve]) -> Chart:
    """Return the metric of both sides over α: with 95% intervals for one run, with the range over seeds for several."""
    metric = curves[0].metric
    chart = Chart(title=f"{metric} of M_α over α", x_name="α", y_name=metric)
    for side in DOMAIN_FIRST:
        chart.series += _side_over_alpha(side, curves)
    if len(curves) == 1:
        _mark_choice(chart, curves[0])
    else:
        chart.lines = [("chosen", curve.alpha, "-") for curve in curves]
        chart.remark = _range_remark(chart.series)
    chart.logarithmic = (False, _is_wide([y for series in chart.series for _, y in series.points], metric))
    lowest, highest = (least(alpha for curve in curves for alpha in curve.alphas) for least in (min, max))
    fifths = [fifth / 5 for fifth in range(math.ceil(5 * lowest), math.floor(5 * highest) + 1)]
    chart.x_ticks = {fifth: f"{fifth:g}\n{ENDS.get(fifth, '')}" for fifth in fifths}
    return chart


def frontier(curve: AlphaCurve, seed: str = "") -> Chart:
    """Return the sides against each other along α."""
    domain, general = (along_alpha(curve, side) for side in DOMAIN_FIRST)
    alphas = [alpha for alpha in curve.alphas if alpha in domain and alpha in general]
    points = {alpha: (general[alpha].value, domain[alpha].value) for alpha in alphas}
    chart = _against(curve.metric, curve.metric, seed)
    chart.logarithmic = (
        _is_wide([x for x, _ in points.values()], curve.metric),
        _is_wide([y for _, y in points.values()], curve.metric),
    )
    sign = -1 if curve.greater_is_better is False else 1
    front = pareto_front([sign * y for _, y in points.values()], [sign * x for x, _ in points.values()])
    best = sorted((alphas[place] for place in front), key=lambda alpha: points[alpha])
    ends = [alpha for alpha in alphas if alpha in ENDS]
    chosen = [alpha for alpha in alphas if alpha == curve.alpha]
    shown: list[tuple[str, list[float], dict[str, Any]]] = [
        ("M_α along α", alphas, {"color": NEUTRAL, "linestyle": "-", "marker": "o"}),
        ("Pareto frontier", best, {"color": OTHERS[0], "linestyle": "-", "marker": "o", "linewidth": 2.5}),
        *((ENDS[alpha], [alpha], {"color": NEUTRAL, "marker": "s", "markersize": 8}) for alpha in ends),
        (f"chosen: α = {short_alpha(curve.alpha)}", chosen, {"color": ALPHA, "marker": "*", "markersize": 15}),
    ]
    for label, picked, style in shown:
        chart.series.append(
            Series(
                label=label,
                points=[points[alpha] for alpha in picked],
                names=[f"α = {short_alpha(alpha)}" for alpha in picked],
                style=style,
                in_legend=label not in ENDS.values(),  # these are named beside their points
            )
        )
    named = {alpha: f"α = {short_alpha(alpha)}" for alpha in chosen} | {alpha: ENDS[alpha] for alpha in ends}
    chart.notes = [(points[alpha], text) for alpha, text in sorted(named.items(), key=lambda entry: entry[1][0] == "α")]
    chart.spare_notes = [(points[alpha], short_alpha(alpha)) for alpha in alphas if alpha not in named]
    return chart


def along_alpha(curve: AlphaCurve, side: str) -> dict[float, Estimate]:
    """Return the metric at every α, on examples that the choice has not seen, with intervals where they are known."""
    found = curve.report.get(side, {}).get(curve.metric, {"values": [], "std_errors": []})
    return {
        alpha: Estimate(value=value, half=None if error is None else 1.96 * error)
        for alpha, value, error in zip(curve.alphas, found["values"], found["std_errors"], strict=False)
        if value is not None
    }


def main_metrics(methods: Sequence[Method]) -> dict[str, str]:
    """Return the main metric of each evaluation set; the domain's and the general one come first."""
    sets: dict[str, dict[str, float]] = {}
    for method in methods:
        for member in method.members:
            for name, metrics in member.final.items():
                known = {key: value for key, value in metrics.items() if value is not None}
                sets.setdefault(name, {}).update(known)
    found = {name: main_metric({name: metrics}) for name, metrics in sets.items()}
    order = sorted(found, key=lambda name: DOMAIN_FIRST.index(name) if name in DOMAIN_FIRST else 2)
    return {name: metric for name in order if (metric := found[name]) is not None}


def in_words(name: str, metric: str) -> str:
    """Return the name of a metric of an evaluation set."""
    return f"{name} {metric}" if name else metric


def _planned_shares(plan: MixturePlan) -> Chart:
    """Return α and the realised share of the domain between neighbouring points."""
    borders = [0, *(step + 1 for step in spread_over(plan.max_steps, MAX_SHARES)[1:])]
    sides = [plan.sides_before(step) for step in borders]
    shares = [
        ((first + last) / 2, (after["domain"] - before["domain"]) / (sum(after.values()) - sum(before.values())))
        for (first, last), (before, after) in zip(pairwise(borders), pairwise(sides), strict=True)
    ]
    series = [
        _planned_alpha(plan),
        Series(label="domain share (drawn)", points=shares, style={"color": DOMAIN, "marker": "o"}),
    ]
    return _over_steps("α and what it draws", "share of the batch", series, y_limits=SHARE_LIMITS)


def _stacked_shares(plan: MixturePlan) -> Chart:
    """Return the shares of the corpora as drawn, one upon the other, and the position on their path."""
    borders = [0, *(step + 1 for step in spread_over(plan.max_steps, MAX_SHARES)[1:])]
    drawn = np.diff(plan.drawn_before(borders), axis=0)
    tops = np.cumsum(drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1), axis=1)
    lows = np.concatenate([np.zeros_like(tops[:, :1]), tops[:, :-1]], axis=1)
    middles = [(first + last) / 2 for first, last in pairwise(borders)]
    colours = [colour for colour in (*OTHERS, DOMAIN) if colour not in (ALPHA, NEUTRAL)]
    series = [
        Series(
            label=corpus.name,
            points=list(zip(middles, tops[:, index], strict=True)),
            style={"color": colours[index % len(colours)], "linestyle": "-"},
            low=lows[:, index].tolist(),
            high=tops[:, index].tolist(),
        )
        for index, corpus in enumerate(plan.corpora)
    ]
    return _over_steps(
        "the mixture as drawn", "share of the batch", [*series, _planned_alpha(plan)], y_limits=SHARE_LIMITS
    )


def _planned_alpha(plan: MixturePlan) -> Series:
    points = [(float(step), plan.alpha(step)) for step in spread_over(plan.max_steps, MAX_PLANNED)]
    return Series(label="α (planned)", points=points, style={"color": ALPHA, "linestyle": "-"})


def _passes(plan: MixturePlan) -> Chart:
    """Return the passes over each corpus; of a stream, the examples."""
    ends = [step + 1 for step in spread_over(plan.max_steps, MAX_PLANNED)]
    drawn = plan.drawn_before(ends)
    styles = _corpus_styles([{"side": corpus.side} for corpus in plan.corpora])
    series = [
        Series(
            label=f"{corpus.name} ({corpus.side})",
            points=list(zip(ends, drawn[:, index] / (corpus.num_examples or 1), strict=True)),
            style=styles[index] | {"marker": ""},
        )
        for index, corpus in enumerate(plan.corpora)
    ]
    is_counted = all(corpus.num_examples for corpus in plan.corpora)
    unit = "passes over the corpus" if is_counted else "passes (streams: examples)"
    return Chart(title="what is read", x_name=STEP, y_name=unit, series=series)


def _realised_shares(results: RunResults) -> Chart:
    """Return α and the share of each corpus over steps, as logged."""
    logs = [entry for entry in results.log_history if "alpha" in entry]
    corpora = results.plan["corpora"]
    series = [Series(label="α", points=logged(logs, "alpha"), style={"color": ALPHA, "linestyle": "-"})]
    series += [
        Series(
            label=f"share of {corpus['name']}",
            points=centred(logged(logs, f"share_{corpus['name']}")),
            style=style | {"linestyle": ""},
        )
        for corpus, style in zip(corpora, _corpus_styles(corpora), strict=True)
    ]
    return _over_steps("data", "share of the batch", series, y_limits=SHARE_LIMITS)


def _objectives_of_trials(trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Chart:
    objectives = [_or_nan(row["objective"]) for row in trials]
    feasible = [value if row["feasible"] else math.nan for row, value in zip(trials, objectives, strict=True)]
    numbers = [float(number) for number in range(len(trials))]
    reached = list(zip(numbers, np.fmax.accumulate(feasible).tolist(), strict=True))
    style = {"color": NEUTRAL, "linestyle": "-", "drawstyle": "steps-post"}
    series = [*_trials(trials, numbers, objectives, best), Series(label="best so far", points=reached, style=style)]
    return Chart(title="objective of the trials", x_name="trial", y_name="objective (more is better)", series=series)


def _sides_of_trials(
    trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any], base: Sequence[float | None], metric: str
) -> Chart:
    general, domain = ([_or_nan(row[side]) for row in trials] for side in ("general", "domain"))
    chart = _against(metric, metric)
    style = {"color": NEUTRAL, "marker": "s", "markersize": 8}
    start = Series(label="M₀", points=[(_or_nan(base[1]), _or_nan(base[0]))], style=style)
    chart.series = [*_trials(trials, general, domain, best), start]
    return chart


def _trials(
    trials: Sequence[Mapping[str, Any]], across: Sequence[float], up: Sequence[float], best: Mapping[str, Any]
) -> list[Series]:
    """Return the trials that keep the constraint, those that do not, the recipe's own, and the best."""
    kinds: list[tuple[str, dict[str, Any], list[bool]]] = [
        ("trials", {"marker": "o", "color": OTHERS[0]}, [row["feasible"] for row in trials]),
        (
            "not feasible",
            {"marker": "x", "color": NEUTRAL, "markeredgewidth": 1.5},
            [not row["feasible"] for row in trials],
        ),
        ("the recipe's own", {"marker": "D", "color": OTHERS[1], "markersize": 8}, [row["own"] for row in trials]),
        ("best", {"marker": "*", "color": ALPHA, "markersize": 16, "zorder": 4}, [row is best for row in trials]),
    ]
    return [
        Series(
            label=label,
            points=[(x, y) for x, y, is_chosen in zip(across, up, chosen, strict=True) if is_chosen],
            style=style,
        )
        for label, style, chosen in kinds
    ]


def _side_over_alpha(side: str, curves: Sequence[AlphaCurve]) -> list[Series]:
    """Return a side over α; curves that were searched at other α each have a line of their own."""
    found = [along_alpha(curve, side) for curve in curves]
    points = [[(alpha, one.value) for alpha, one in curve.items()] for curve in found]
    style = side_style(side)
    if len(curves) > 1:
        is_alike = all(curve.alphas == curves[0].alphas for curve in curves)
        return [_over_seeds(side, group, style) for group in ([points] if is_alike else [[one] for one in points])]
    series, known = Series(label=side, points=points[0], style=style), list(found[0].values())
    if known and all(one.half is not None for one in known):
        series.label += ", with 95% intervals"
        series.low, series.high = [one.low for one in known], [one.high for one in known]
    return [series]


def _mark_choice(chart: Chart, curve: AlphaCurve) -> None:
    """Mark the chosen α, the knee, and the interval of the best α."""
    if curve.confidence_interval:
        low, high = curve.confidence_interval
        chart.spans = [(f"95% interval of the best α: {short_alpha(low)} to {short_alpha(high)}", low, high)]
    is_knee = curve.knee == curve.alpha
    chart.lines = [(f"chosen{' (the knee)' if is_knee else ''}: α = {short_alpha(curve.alpha)}", curve.alpha, "-")]
    if curve.knee is not None and not is_knee:
        chart.lines.append((f"knee: α = {short_alpha(curve.knee)}", curve.knee, ":"))


def _against(domain_metric: str, general_metric: str, seed: str = "") -> Chart:
    """Return an empty chart of the domain against the general side."""
    return Chart(
        title=f"{seed}{TRADE_OFF}" if seed else TRADE_OFF.capitalize(),
        x_name=in_words("general", general_metric),
        y_name=in_words("domain", domain_metric),
        turned=(greater_is_better(general_metric) is False, greater_is_better(domain_metric) is False),
    )


def _over_steps(
    title: str, y_name: str, series: list[Series], remark: str = "", y_limits: tuple[float, float] | None = None
) -> Chart:
    remark = remark or _range_remark(series)
    return Chart(title=title, x_name=STEP, y_name=y_name, series=series, remark=remark, y_limits=y_limits)


def _metric_over_steps(title: str, metric: str, series: list[Series]) -> Chart:
    """Return a chart of a metric over steps; empty if all were evaluated once, of which tables tell."""
    return _over_steps(title, metric, series if any(len(one.points) > 1 for one in series) else [])


def _over_seeds(label: str, found: Sequence[Sequence[Point]], style: dict[str, Any]) -> Series:
    """Return the mean over seeds, at steps that all of them have, and the range."""
    by_seed = [dict(points) for points in found if points]
    steps = sorted(set.intersection(*(set(points) for points in by_seed))) if by_seed else []
    values = {step: [points[step] for points in by_seed] for step in steps}
    points = _thinned([(step, sum(values[step]) / len(values[step])) for step in steps])
    series = Series(label=label, points=points, style=style)
    if len(by_seed) > 1:
        series.low = [min(values[step]) for step, _ in points]
        series.high = [max(values[step]) for step, _ in points]
    return series


def _corpus_styles(corpora: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a style for each corpus: the colour of its side, and a marker among those of the side."""
    seen: Counter[str] = Counter()
    styles = []
    for corpus in corpora:
        styles.append(side_style(corpus["side"], seen[corpus["side"]]))
        seen[corpus["side"]] += 1
    return styles


def _thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    return [points[place] for place in spread_over(len(points), most)]


def _or_nan(value: float | None) -> float:
    """Return a number for the chart; what is unknown is left out of it."""
    return math.nan if value is None else value


def _range_remark(series: Sequence[Series]) -> str:
    return RANGE if any(one.low for one in series) else ""


def _is_wide(values: Sequence[float], metric: str) -> bool:
    """Whether losses, or the like, need a logarithmic axis."""
    return bool(values) and greater_is_better(metric) is False and min(values) > 0 and max(values) > 10 * min(values)
