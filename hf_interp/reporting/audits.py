"""What is told of a model by group of people, by pairs of texts, of its training rows, and by lm-eval: tables, charts.

No torch. An account is what `hf_interp.selection.groups` finds of one column: the metric of every group with enough
rows, the worst first, the gap between the worst and the best, and which groups were too small.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from hf_interp.reporting.charts import Chart, Series, draw_panels, save_figure
from hf_interp.reporting.colours import DOMAIN, NEUTRAL, other_style
from hf_interp.reporting.curve import AlphaCurve, number, short_alpha, with_error
from hf_interp.reporting.results import RunResults, save_results
from hf_interp.utils.console import format_table
from hf_interp.utils.run_folder import RESULTS_NAME

DETAILS = {
    "selection_rate": "predicted",
    "true_positive_rate": "TPR",
    "false_positive_rate": "FPR",
    "subgroup_auc": "subgroup AUC",
    "bpsn_auc": "BPSN AUC",
    "bnsp_auc": "BNSP AUC",
}
PARITIES = {"gap": "gap", "equalised_odds": "equalised odds", "demographic_parity": "demographic parity"}
DASH = "–"
LEVEL = {"color": NEUTRAL, "linestyle": ":"}
UNLEARNED = 1.44  # bits: the mean of log2(1024) - log2(rank) over all ranks from 1 to 1024
SHOWN = 6  # groups with too few rows that are listed

AUDIT_PLOT_NAME, HARNESS_PLOT_NAME = "audit.png", "harness.png"
ATTACKS = {"loss": "loss", "calibrated": "loss against M₀'s"}
TITLES = {"auc": "AUC", "tpr_at_1_percent": "TPR at 1% FPR", "tpr_at_0.1_percent": "TPR at 0.1% FPR"}

Account = Mapping[str, Any]
Rows = list[list[str]]
"""Of a table; the first is the header."""
Entries = Sequence[Mapping[str, Any]]
"""Every task and metric of lm-eval, with its score at every α."""


def accounts(results: RunResults | None, curve: AlphaCurve | None = None) -> dict[tuple[str, str], dict[str, Account]]:
    """Return (set, column) → model → its account.

    Of sets by which α was chosen the three models are told on the half that the choice has not seen; of others M₀ and
    M_θ, on all rows.
    """
    found: dict[tuple[str, str], dict[str, Account]] = {}
    for name, column, places in _over_alpha(curve):
        alphas = {"M₀": 0.0, "M_θ": 1.0} | ({"M_α": curve.alpha} if curve and curve.alpha not in (0, 1) else {})
        found[name, column] = {model: places[alpha] for model, alpha in alphas.items() if alpha in places}
    for name, parts in (results.groups if results else {}).items():
        for column in parts["final"]:
            found.setdefault((name, column), {"M₀": parts["base"][column], "M_θ": parts["final"][column]})
    return found


def gap_table(found: Mapping[tuple[str, str], Mapping[str, Account]]) -> Rows:
    """Return for every column and model the worst and the best group, and the differences between groups."""
    rows = [["set", "column", "model", "metric", "worst group", "best group", *PARITIES.values(), "too few rows"]]
    for (name, column), models in found.items():
        for model, account in models.items():
            ends = [_named(account, account[end]) for end in ("worst", "best")]
            gap = _with_interval(account["gap"], account["gap_low"], account["gap_high"])
            others = [number(account.get(key)) or DASH for key in list(PARITIES)[1:]]
            small = [f"{group} ({size})" for group, size in account["too_small"].items()]
            small = [*small[:SHOWN], *[f"{len(small) - SHOWN} more"] * (len(small) > SHOWN)]
            rows.append([name, column, model, account["metric"], *ends, gap, *others, ", ".join(small) or DASH])
    return rows


def format_gaps(results: RunResults | None, curve: AlphaCurve | None = None) -> list[str]:
    """Return the tables of gaps and of pairs as lines of a text; none where there are no groups, or no pairs."""
    tables = gap_table(accounts(results, curve)), pair_table(results, curve)
    return [line for rows in tables if rows[1:] for line in ("", format_table(rows[0], rows[1:]))]


def pair_table(results: RunResults | None, curve: AlphaCurve | None = None) -> Rows:
    """Return for every set of pairs and model in how many pairs the first text is likelier, and by how much."""
    rows = [["set", "model", "pairs", "first text likelier", "difference of log-likelihoods, in nats"]]
    found = {name: {"M₀": one["base"], "M_θ": one["final"]} for name, one in (results.pairs if results else {}).items()}
    for name, places in (curve.pairs if curve else {}).items():
        of_alpha = (
            {short_alpha(alpha): place for alpha, place in zip(curve.alphas, places, strict=True)} if curve else {}
        )
        found[name] = {f"α = {alpha}": place for alpha, place in of_alpha.items()}
    for name, models in found.items():
        for model, account in models.items():
            shown = [_with_interval(**account[key]) for key in ("preferred", "difference")]
            rows.append([name, model, f"{account['num']:,}", *shown])
    return rows


def pairs_over_alpha(curve: AlphaCurve) -> list[Chart]:
    """Return for every set of pairs in how many the first text is likelier, over α."""
    charts = []
    for name, places in curve.pairs.items():
        found = {alpha: account["preferred"] for alpha, account in zip(curve.alphas, places, strict=True)}
        chart = Chart(title=f"Pairs of {name} whose first text is likelier", x_name="α", y_name="share of pairs")
        chart.series = [_estimates("first text likelier", found, 0), _level("no preference", curve.alphas, 0.5)]
        chart.lines = [("chosen", curve.alpha, "-")]
        charts.append(chart)
    return charts


def _estimates(label: str, found: Mapping[float, Mapping[str, Any]], index: int) -> Series:
    """Return estimates over α with their intervals, if all are known, as the series of that number."""
    points = [(alpha, one["value"]) for alpha, one in found.items()]
    series = Series(label=label, points=points, style=other_style(index))
    if all(one["low"] is not None for one in found.values()):
        series.label += ", with 95% intervals"
        series.low, series.high = ([one[end] for one in found.values()] for end in ("low", "high"))
    return series


def _level(label: str, alphas: Sequence[float], height: float) -> Series:
    return Series(label=label, points=[(alphas[0], height), (alphas[-1], height)], style=LEVEL)


def group_table(account: Account, most: int | None = None) -> Rows:
    """Return every group of a column, or the worst ones, with what is known of it."""
    groups = account["groups"]
    shown = {key: title for key, title in DETAILS.items() if any(key in group for group in groups.values())}
    rows = [["group", "rows", account["metric"], *shown.values()]]
    for name, group in list(groups.items())[:most]:
        value = _with_interval(group["value"], group["low"], group["high"])
        rows.append([name, str(group["num"]), value, *(number(group[key]) or DASH for key in shown)])
    return rows


def gaps_over_alpha(curve: AlphaCurve) -> list[Chart]:
    """Return for every set and column the gap and the parities over α, on examples that the choice has not seen."""
    charts = []
    for name, column, places in _over_alpha(curve):
        chart = Chart(title=f"Gap between groups of {column} ({name})", x_name="α", y_name="difference")
        for index, (key, label) in enumerate(PARITIES.items()):
            known = {
                alpha: {"value": account[key], "low": account.get(f"{key}_low"), "high": account.get(f"{key}_high")}
                for alpha, account in places.items()
                if account.get(key) is not None
            }
            metric = next(iter(places.values()))["metric"]
            chart.series.append(_estimates(f"{label} of {metric}" if key == "gap" else label, known, index))
        chart.lines = [("chosen", curve.alpha, "-")]
        charts.append(chart)
    return charts


def _over_alpha(curve: AlphaCurve | None) -> Iterator[tuple[str, str, dict[float, Account]]]:
    """Give every set and column of a curve with the accounts by α."""
    for name, found in (curve.groups if curve else {}).items():
        for column in found[0] if found else ():
            yield name, column, dict(zip(curve.alphas, (one[column] for one in found), strict=True)) if curve else {}


def _named(account: Account, group: str | None) -> str:
    return DASH if group is None else f"{group} ({number(account['groups'][group]['value'])})"


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return DASH
    return number(value) if low is None or high is None else f"{number(value)} ({number(low)} to {number(high)})"


# What M_α tells of its training rows, and what it is worth, over α.


def leak_table(audit: Mapping[str, Any]) -> list[list[str]]:
    """Return by α the metric on rows that were not trained on, and how well each attack finds those that were."""
    rows = [["α", f"{audit['set']} {audit['metric']}", "attack by", *TITLES.values()]]
    for point in audit["points"]:
        for attack, words in ATTACKS.items():
            shown = [_with_interval(**point[attack][key]) for key in TITLES]
            rows.append([short_alpha(point["alpha"]), number(point["utility"]["value"]), words, *shown])
    return rows


def canary_table(audit: Mapping[str, Any]) -> Rows:
    """Return by α the metric and the exposure of the canaries."""
    most = f"likelier than all {audit['references']:,} others"
    rows = [["α", f"{audit['set']} {audit['metric']}", "mean exposure, in bits", most]]
    for point in audit["points"]:
        exposure, utility = point["exposure"], number(point["utility"]["value"])
        bits, first = _with_interval(**exposure["bits"]), f"{exposure['first']} of {audit['canaries']}"
        rows.append([short_alpha(point["alpha"]), utility, bits, first])
    return rows


def describe_canaries(audit: Mapping[str, Any]) -> str:
    """Return in a sentence what was planted."""
    return (
        f"{audit['canaries']:,} random sequences were planted in {audit['corpus']} and are ranked among "
        f"{audit['references']:,} others that were drawn alike and never planted; a sequence that was not learned has "
        f"an exposure of {UNLEARNED} bits on average, and one that is likelier than all others of "
        f"{log2(audit['references'] + 1):.4g}."
    )


def describe_audit(audit: Mapping[str, Any]) -> str:
    """Return in a sentence which rows were told apart."""
    sizes = audit["num_examples"]
    share = "1%" if sizes["others"] < 100 else "0.1%" if sizes["others"] < 1000 else ""
    fewest = f"; {share} of {sizes['others']:,} is less than one row, so that none may be a false positive there"
    return (
        f"{sizes['members']:,} rows of {audit['corpus']} that the run has read against {sizes['others']:,} of the set "
        f"{audit['set']} that it has not ({sizes['left_out']:,} stand in both and are left out); an AUC of 0.5 is "
        f"guessing{fewest if share else ''}."
    )


def format_audit(audit: Mapping[str, Any]) -> str:
    """Return the tables of an audit as a text, each with what it is of."""
    tables = [(leak_table(audit), describe_audit(audit))]
    tables += [(canary_table(audit), describe_canaries(audit))] if "canaries" in audit else []
    return "\n\n".join(f"{format_table(rows[0], rows[1:])}\n{text}" for rows, text in tables)


def leak_charts(audit: Mapping[str, Any]) -> list[Chart]:
    """Return the AUC of each attack over α, and the metric against that of the better attack."""
    points = audit["points"]
    over = Chart(title="What M_α tells of its training rows", x_name="α", y_name="AUC of membership inference")
    for index, (attack, words) in enumerate(ATTACKS.items()):
        found = {point["alpha"]: point[attack]["auc"] for point in points}
        over.series.append(_estimates(f"by the {words}", found, index))
    against = Chart(title="What it is worth against what it tells", x_name="AUC of the better attack", y_name="")
    against.y_name = f"{audit['set']} {audit['metric']}"
    best = [max(point[attack]["auc"]["value"] for attack in ATTACKS) for point in points]
    path = [(leak, point["utility"]["value"]) for leak, point in zip(best, points, strict=True)]
    against.series = [
        Series(label="M_α along α", points=path, style={"color": DOMAIN, "linestyle": "-", "marker": "o"})
    ]
    against.notes = [(path[0], "M₀"), (path[-1], "M_θ")]
    against.spare_notes = [(place, short_alpha(point["alpha"])) for place, point in zip(path, points, strict=True)]
    return [over, against, *([_exposure_chart(audit)] if "canaries" in audit else [])]


def _exposure_chart(audit: Mapping[str, Any]) -> Chart:
    """Return the exposure of the canaries over α."""
    chart = Chart(title="Canaries that M_α has learned", x_name="α", y_name="mean exposure, in bits")
    found = {point["alpha"]: point["exposure"]["bits"] for point in audit["points"]}
    level = _level("never seen, on average", [*found], UNLEARNED)
    chart.series = [_estimates(f"{audit['canaries']} canaries", found, 0), level]
    return chart


def name_task(entry: Mapping[str, Any]) -> str:
    """Return a task with the number of its worked examples."""
    return f"{entry['task']} ({entry['num_fewshot']}-shot)"


def harness_table(entries: Entries) -> Rows:
    """Return the scores of every task by α, ± one standard error where it is known."""
    alphas = [
        {0.0: "0 (M₀)", 1.0: "1 (M_θ)"}.get(point["alpha"], short_alpha(point["alpha"]))
        for point in entries[0]["points"]
    ]
    rows = [["task", "metric", "examples", *(f"α = {alpha}" for alpha in alphas)]]
    for entry in entries:
        cells = [with_error(point["value"], point["std_error"]) for point in entry["points"]]
        rows.append([name_task(entry), entry["metric"], str(entry["num_examples"]), *cells])
    return rows


def format_harness(entries: Entries) -> list[str]:
    """Return the table as lines of a text; none where nothing was measured."""
    header, *rows = harness_table(entries) if entries else [[]]
    return ["", format_table(header, rows), "By lm-eval, ± its standard error over examples."] if rows else []


def save_harness(results: RunResults, folder: Path) -> None:
    """Write the results of a run once more, with what lm-eval has found, and a picture of that over α."""
    save_results(results, folder / RESULTS_NAME)
    save_figure(draw_panels(harness_charts(results.harness)), folder / HARNESS_PLOT_NAME)


def harness_charts(entries: Entries) -> list[Chart]:
    """Return a chart of every metric over α, with a line for each task."""
    charts: dict[str, Chart] = {}
    for entry in entries:
        metric, points = entry["metric"], [point for point in entry["points"] if point["value"] is not None]
        chart = charts.setdefault(metric, Chart(title=f"{metric} of lm-eval over α", x_name="α", y_name=metric))
        halves = [1.96 * (point["std_error"] or 0) for point in points]
        series = Series(
            label=name_task(entry),
            points=[(point["alpha"], point["value"]) for point in points],
            style=other_style(len(chart.series)),
            low=[point["value"] - half for point, half in zip(points, halves, strict=True)],
            high=[point["value"] + half for point, half in zip(points, halves, strict=True)],
        )
        chart.series.append(series)
        chart.remark = "The band is 1.96 standard errors to both sides, where they are known."
    return list(charts.values())
