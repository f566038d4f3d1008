"""The charts of a report: which numbers of runs, methods and curves are drawn in each. No torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_interp.reporting.curve import AlphaCurve, pareto_front, short_alpha
from hf_interp.reporting.report_charts import Chart, Point, Series, thinned
from hf_interp.reporting.report_data import Estimate, Member, Method, Run, logged, planned_alphas
from hf_interp.reporting.results import less_is_better, main_metric

STEP = "optimizer step"
UNNAMED_SET = "evaluation set"
SIDES = ("domain", "general")
ENDS = {0.0: "M₀", 1.0: "M_θ"}
RANGE = "The band goes from the least to the greatest seed."
SHARES = (-0.04, 1.04)  # ends of an axis of shares
FEW = 30  # points that are told apart by markers
SPOTS = 60  # of realised shares, wide enough apart to see more than whole examples


def trade_off(methods: Sequence[Method], metrics: Mapping[str, str]) -> Chart:
    """The domain's metric against the general one, with intervals."""
    if not set(SIDES) <= set(metrics):
        return Chart(title="", x_name="", y_name="")
    chart = Chart(
        title="Domain against general: the upper right is better",
        x_name=in_words("general", metrics["general"]),
        y_name=in_words("domain", metrics["domain"]),
        turned=(less_is_better(metrics["general"]), less_is_better(metrics["domain"])),
        note="Lines are 95% intervals over seeds; they may leave the picture.",
    )
    for look, method in enumerate(methods):
        domain, general = (method.estimate(final_metric(side, metrics[side])) for side in SIDES)
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
                joined=False,
                marked=True,
                look=look,
            )
        )
    return chart


def methods_over_steps(methods: Sequence[Method], name: str, metric: str) -> Chart:
    """A metric of an evaluation set over steps, by method."""
    series = [
        _over_seeds(method.name, [member.evaluations.get((name, metric), []) for member in method.members], look)
        for look, method in enumerate(methods)
    ]
    return _told(Chart(title=f"{in_words(name, metric)} over steps", x_name=STEP, y_name=metric, series=series))


def alphas_of_methods(methods: Sequence[Method]) -> Chart:
    """α over steps, and what was drawn, by method."""
    series: list[Series] = []
    for look, method in enumerate(methods):
        first = method.members[0]
        series.append(Series(label=f"{method.name}: α", points=thinned(first.alphas), look=look))
        shares = thinned(first.shares, SPOTS)
        series.append(Series(label=f"{method.name}: drawn", points=shares, joined=False, marked=True, look=look))
    note = "Of the first seed."
    return Chart(
        title="α and the domain's share", x_name=STEP, y_name="share", series=series, y_limits=SHARES, note=note
    )


def mixture(method: Method) -> Chart:
    """α as planned, and what was drawn."""
    scheduled, in_force = planned_alphas(method.runs[0].results)
    series = [Series(label="α as planned", points=thinned(scheduled), look=6)]
    if in_force:
        series.append(Series(label="α in force", points=thinned(in_force), look=2))
    shares = _over_seeds("domain's share as drawn", [member.shares for member in method.members], 0)
    shares.points, shares.joined, shares.marked = thinned(shares.points, SPOTS), False, True
    shares.low = shares.high = None
    series.append(shares)
    seeds = f"α is that of seed {method.runs[0].seed}, the share the mean over seeds."
    return Chart(
        title="Mixture: planned and drawn",
        x_name=STEP,
        y_name="share of the batch",
        series=series,
        y_limits=SHARES,
        note=seeds if len(method.runs) > 1 else "",
    )


def corpus_losses(runs: Sequence[Run]) -> Chart:
    """The training loss of every corpus; the domain's come first."""
    corpora = sorted(runs[0].results.plan["corpora"], key=lambda corpus: corpus["side"] != "domain")
    names = [corpus["name"] for corpus in corpora]
    series = [
        _over_seeds(name, [logged(run.results.log_history, f"loss_{name}") for run in runs], look)
        for look, name in enumerate(names)
    ]
    return Chart(title="Training loss by corpus", x_name=STEP, y_name="loss", series=series, note=_range_note(series))


def objective_losses(runs: Sequence[Run]) -> Chart:
    """The training loss of every objective, where they are logged."""
    prefix = "objective_loss_"
    keys = dict.fromkeys(
        key for run in runs for entry in run.results.log_history for key in entry if key.startswith(prefix)
    )
    series = [
        _over_seeds(key.removeprefix(prefix), [logged(run.results.log_history, key) for run in runs], look)
        for look, key in enumerate(keys)
    ]
    return Chart(
        title="Training loss by objective", x_name=STEP, y_name="loss", series=series, note=_range_note(series)
    )


def metrics_over_steps(method: Method) -> list[Chart]:
    """A chart for each of the main metrics, with all sets that have it as theirs."""
    charts: dict[str, Chart] = {}
    for look, (name, metric) in enumerate(main_metrics([method]).items()):
        chart = charts.setdefault(metric, Chart(title=f"Evaluation: {metric} over steps", x_name=STEP, y_name=metric))
        found = [member.evaluations.get((name, metric), []) for member in method.members]
        chart.series.append(_over_seeds(name or UNNAMED_SET, found, look))
    return [_told(chart) for chart in charts.values()]


def metrics_over_alpha(curves: Sequence[AlphaCurve]) -> Chart:
    """The metric of both sides over α: with 95% intervals for one run, with the range over seeds for several."""
    metric = curves[0].metric
    chart = Chart(title=f"{metric} of M_α over α", x_name="α", y_name=metric)
    are_alike = all(curve.alphas == curves[0].alphas for curve in curves)
    for look, side in enumerate(SIDES):
        found = [along_alpha(curve, side) for curve in curves]
        points = [[(alpha, one.value) for alpha, one in curve.items()] for curve in found]
        # seeds that were searched at other α each have a line of their own
        series = [_over_seeds(side, points, look)] if are_alike else [_over_seeds(side, [one], look) for one in points]
        if len(curves) == 1 and all(one.half is not None for one in found[0].values()):
            series[0].low = [one.low for one in found[0].values()]
            series[0].high = [one.high for one in found[0].values()]
            chart.note = "The band is a 95% interval over the examples."
        chart.series += series
    chart.lines = [("chosen", curve.alpha) for curve in curves]
    chart.logarithmic = (False, _is_wide([y for series in chart.series for _, y in series.points], metric))
    chart.note = chart.note or _range_note(chart.series)
    return chart


def frontier(curve: AlphaCurve, seed: str) -> Chart:
    """The sides against each other along α."""
    metric = curve.metric
    domain, general = (along_alpha(curve, side) for side in SIDES)
    alphas = [alpha for alpha in curve.alphas if alpha in domain and alpha in general]
    points = [(general[alpha].value, domain[alpha].value) for alpha in alphas]
    sign = -1 if less_is_better(metric) else 1
    front = sorted(
        pareto_front([sign * y for _, y in points], [sign * x for x, _ in points]), key=lambda at: points[at]
    )
    chart = Chart(
        title=f"{seed}{'domain' if seed else 'Domain'} against general: the upper right is better",
        x_name=in_words("general", metric),
        y_name=in_words("domain", metric),
        turned=(sign < 0, sign < 0),
        logarithmic=(_is_wide([x for x, _ in points], metric), _is_wide([y for _, y in points], metric)),
    )

    def pick(label: str, places: Sequence[int], **style: Any) -> None:
        names = [f"α = {short_alpha(alphas[place])}" for place in places]
        chart.series.append(Series(label=label, points=[points[place] for place in places], labels=names, **style))

    pick("M_α along α", range(len(alphas)), marked=True, look=0)
    pick("Pareto frontier", front, look=2)
    for look, (alpha, name) in zip((6, 3), ENDS.items(), strict=True):
        pick(
            name, [place for place, known in enumerate(alphas) if known == alpha], joined=False, marked=True, look=look
        )
    pick(
        "chosen",
        [place for place, known in enumerate(alphas) if known == curve.alpha],
        joined=False,
        marked=True,
        look=1,
    )
    return chart


def along_alpha(curve: AlphaCurve, side: str) -> dict[float, Estimate]:
    """The curve's metric at every α, on examples that the choice has not seen, with intervals where they are known."""
    found = curve.report.get(side, {}).get(curve.metric, {"values": [], "std_errors": []})
    return {
        alpha: Estimate(value=value, half=None if error is None else 1.96 * error)
        for alpha, value, error in zip(curve.alphas, found["values"], found["std_errors"], strict=False)
        if value is not None
    }


def main_metrics(methods: Sequence[Method]) -> dict[str, str]:
    """The main metric of each evaluation set; the domain's and the general one come first."""
    sets: dict[str, dict[str, float]] = {}
    for method in methods:
        for member in method.members:
            for name, metrics in member.final.items():
                known = {key: value for key, value in metrics.items() if value is not None}
                sets.setdefault(name, {}).update(known)
    found = {name: main_metric({name: metrics}) for name, metrics in sets.items()}
    order = sorted(found, key=lambda name: SIDES.index(name) if name in SIDES else 2)
    return {name: metric for name in order if (metric := found[name]) is not None}


def final_metric(name: str, metric: str) -> Callable[[Member], float | None]:
    """What gets a metric at the end."""
    return lambda member: member.final.get(name, {}).get(metric)


def in_words(name: str, metric: str) -> str:
    """A metric of an evaluation set, in words."""
    return f"{name} {metric}" if name else metric


def _over_seeds(label: str, found: Sequence[Sequence[Point]], look: int) -> Series:
    """The mean over seeds, at steps that all of them have, and the range."""
    by_seed = [dict(points) for points in found if points]
    steps = sorted(set.intersection(*(set(points) for points in by_seed))) if by_seed else []
    values = {step: [points[step] for points in by_seed] for step in steps}
    points = thinned([(step, sum(values[step]) / len(values[step])) for step in steps])
    series = Series(label=label, points=points, marked=len(points) <= FEW, look=look)
    if len(by_seed) > 1:
        series.low = [min(values[step]) for step, _ in points]
        series.high = [max(values[step]) for step, _ in points]
    return series


def _told(chart: Chart) -> Chart:
    """A chart of metrics over steps with its note; empty if all were evaluated once, of which tables tell."""
    if all(len(series.points) < 2 for series in chart.series):
        chart.series = []
    chart.note = _range_note(chart.series)
    return chart


def _range_note(series: Sequence[Series]) -> str:
    return RANGE if any(one.low for one in series) else ""


def _is_wide(values: Sequence[float], metric: str) -> bool:
    """Whether losses, or the like, need a logarithmic axis."""
    return bool(values) and less_is_better(metric) and min(values) > 0 and max(values) > 10 * min(values)
