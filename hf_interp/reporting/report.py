"""The report of runs and comparisons: one HTML file that needs no network. No torch.

It holds for every recipe its data as planned and as drawn, losses, metrics and M_α over α, and puts recipes side by
side with intervals over seeds. Whatever comes from data or settings is escaped; of local paths only the last part is
shown, and secrets are blotted out.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_interp.reporting import plots
from hf_interp.reporting.audits import (
    accounts,
    canary_table,
    gap_table,
    group_table,
    harness_table,
    leak_table,
    pair_table,
)
from hf_interp.reporting.charts import FEW, Chart, Series, draw_svg
from hf_interp.reporting.colours import NEUTRAL
from hf_interp.reporting.curve import AlphaCurve, short_alpha
from hf_interp.reporting.report_data import (
    Estimate,
    Method,
    Run,
    Study,
    differences,
    estimate,
    load_studies,
    settings_of,
)
from hf_interp.reporting.results import MEAN_OF_MEANS, SPEED_METRICS, blamed_on
from hf_interp.utils.files import new_file
from hf_interp.utils.redaction import redact_paths, redactor

PAGE_NAME = "report.html"
TEMPLATE = "report.html.jinja"
INTERVALS = (
    "Numbers are means over seeds ± half of the 95% interval of Student's t, or a single value where there is one "
    "seed. With two seeds the interval is wide. Forgetting is what the general side has lost; below 0 it has gained."
)
OVER_EXAMPLES = "± is half of the 95% interval, 1.96 standard errors over examples."
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
DASH_MARKS = {"-": "━━", "--": "╍╍", ":": "┅┅", "-.": "━╍"}
"""Markers and lines as the legend shows them."""


Rows = list[list[str]]
"""Of a table; the first is the header."""


def write_report(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of some runs and comparisons as one HTML file: whole or not at all.

    Args:
        folders: of runs and comparisons; each has a `results.json`, and what it has of `curve.json` is shown too.
        output: the file, or a folder; by default the first. In a folder it is `report.html`.

    Returns:
        Where it is.

    Raises:
        FileNotFoundError: if a folder is missing, or has no `results.json`.
        ValueError: if that file is of another kind, or cannot be read.
    """
    with blamed_on(*folders):
        page = report(load_studies(folders))
    path = Path(folders[0] if output is None else output)
    path = path / PAGE_NAME if path.is_dir() else path
    with new_file(path) as file:
        file.write(page)
    return path


def report(studies: Sequence[Study]) -> str:
    """Render the page of what has been loaded."""
    runs = [asdict(run) for study in studies for method in study.methods for run in method.runs]
    redact = redactor([*runs, *(asdict(study.comparison) for study in studies if study.comparison)])

    def draw(chart: Chart, key: str) -> Markup:
        # Matplotlib escapes the texts of its SVG
        return Markup(draw_svg(replace(chart, x_name=redact(chart.x_name), y_name=redact(chart.y_name)), key))

    environment = Environment(
        loader=PackageLoader("hf_interp", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else redact(str(value)),
    )
    environment.globals |= {"draw": draw, "plots": plots, "short_alpha": short_alpha}
    environment.globals |= {
        function.__name__.strip("_"): function
        for function in (
            *(_legend, _numbers, _side_by_side, _all_metrics, _note_on_loss, _facts, _corpora, _over_alpha, _settings),
            *(_fingerprints, _origins, _by_group),
        )
    }
    return environment.get_template(TEMPLATE).render(
        studies=studies, warnings=_warnings(studies), intervals=INTERVALS, over_examples=OVER_EXAMPLES
    )


def number(value: float | None) -> str:
    """Return a number as a table shows it.

    >>> number(0.51239), number(1234.5), number(0.00002), number(12), number(None)
    ('0.512', '1234', '2.0e-05', '12', '–')
    """
    if value is None:
        return "–"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1e}"


def _warnings(studies: Sequence[Study]) -> list[str]:
    """Return all warnings, each once, with those whom it concerns."""
    found: dict[str, list[str]] = {}
    for study in studies:
        for text in study.warnings:
            found.setdefault(text, [])
        for method in study.methods:
            for run in method.runs:
                own = _plan_warnings(run, is_compared=study.comparison is not None)
                for text in [*own, *(run.curve.warnings if run.curve else [])]:
                    found.setdefault(text, []).append(run.name)
    return [f"{text} ({', '.join(dict.fromkeys(names))})" if names else text for text, names in found.items()]


def _plan_warnings(run: Run, *, is_compared: bool) -> list[str]:
    """Return the warnings of a run's plan; a baseline of one side alone leaves the other out on purpose."""
    plan = run.results.plan
    warnings: list[str] = plan.get("warnings", [])
    if not is_compared or {point["alpha"] for point in plan.get("alpha", [])} not in ({0.0}, {1.0}):
        return warnings
    unread = tuple(f"Corpus {corpus['name']!r} is never drawn" for corpus in plan["corpora"] if not corpus["drawn"])
    return [text for text in warnings if not text.startswith(unread)]


def _legend(chart: Chart) -> list[dict[str, str]]:
    """Return the entries of a chart's legend: a mark, its colour, and the name."""
    entries = [
        {"label": series.label, "colour": series.style["color"], "mark": _mark(series)}
        for series in chart.series
        if series.points and series.in_legend
    ]
    entries += [{"label": name, "colour": NEUTRAL, "mark": "▒"} for name, *_ in chart.spans]
    lines = {
        name: {"label": name, "colour": NEUTRAL, "mark": "┃" if style == "-" else "┇"} for name, _, style in chart.lines
    }
    return [*entries, *lines.values()]


def _mark(series: Series) -> str:
    """Return signs that look like a series' line and marker."""
    is_marked = not series.is_joined or len(series.points) <= FEW
    marker = MARKS.get(series.style.get("marker", ""), "") if is_marked else ""
    return DASH_MARKS.get(series.style.get("linestyle", ""), "") + marker


def _numbers(chart: Chart) -> Rows:
    """Return all that a chart shows as a table."""
    drawn = [series for series in chart.series if series.points]
    has_interval = any(series.low for series in drawn)
    has_x_errors = any(series.x_errors for series in drawn)
    header = ["series", chart.x_name, chart.y_name]
    rows = [[*header, *[f"interval of {chart.y_name}"] * has_interval, *[f"± of {chart.x_name}"] * has_x_errors]]
    for series in drawn:
        for index, (x, y) in enumerate(series.points):
            named = f": {series.names[index]}" if series.names else ""
            row = [f"{series.label}{named}", number(x), number(y)]
            if has_interval:
                ends = None if series.low is None or series.high is None else (series.low[index], series.high[index])
                row.append("–" if ends is None else f"{number(ends[0])} to {number(ends[1])}")
            if has_x_errors:
                row.append("–" if series.x_errors is None else number(series.x_errors[index]))
            rows.append(row)
    return rows + [[name, number(x), *["–"] * (len(rows[0]) - 2)] for name, x, _ in chart.lines]


def _side_by_side(methods: Sequence[Method]) -> Rows:
    """Return the main metric of each set, by method."""
    metrics = plots.main_metrics(methods)
    lost = metrics.get("general")
    has_chosen = any(member.chosen is not None for method in methods for member in method.members)
    header = ["", "seeds", *["α of the weights"] * has_chosen, *(plots.in_words(*entry) for entry in metrics.items())]
    rows = [[*header, *[f"forgetting of {lost}"] * (lost is not None)]]
    for method in methods:
        row = [method.name, ", ".join(str(member.seed) for member in method.members)]
        row += [_alphas(member.chosen for member in method.members)] * has_chosen
        row += [_shown(method.estimate("final", *entry)) for entry in metrics.items()]
        rows.append([*row, *([] if lost is None else [_shown(method.estimate("lost", "general", lost))])])
    return rows


def _all_metrics(methods: Sequence[Method]) -> Rows:
    """Return every metric on every set: of M₀, at the end, and what was lost."""
    has_names = len(methods) > 1
    rows = [[*[""] * has_names, "metric", "M₀", "at the end", "forgetting"]]
    for method in methods:
        pairs = dict.fromkeys((name, key) for one in method.members for name in one.final for key in one.final[name])
        for name, metric in pairs:
            if metric not in SPEED_METRICS:
                cells = [_shown(method.estimate(part, name, metric)) for part in ("base", "final", "lost")]
                rows.append([*[method.name] * has_names, plots.in_words(name, metric), *cells])
    return rows


def _note_on_loss(methods: Sequence[Method]) -> str:
    """Return what to know where loss and perplexity stand beside each other, and nothing elsewhere."""
    names = {key for method in methods for one in method.members for found in one.final.values() for key in found}
    return Markup('<p class="note">{}</p>').format(MEAN_OF_MEANS) if {"loss", "perplexity"} <= names else ""


def _facts(runs: Sequence[Run], *, has_folders: bool) -> str:
    """Return in a line what was run."""
    plan, config = runs[0].results.plan, runs[0].results.config
    model = (runs[0].results.recipe or {}).get("model_name_or_path")
    schedule = f"α {config['alpha_schedule_type']}" if "alpha_schedule_type" in config else None
    if config.get("alpha_controller"):
        schedule = f"α by the controller {config['alpha_controller']}"
    s = "s" if len(runs) > 1 else ""
    facts = [
        f"M₀: {redact_paths({'path': model})['path']}" if model else None,
        f"{plan.get('max_steps')} steps of {plan.get('batch_size')} {plan.get('unit', 'examples')}",
        schedule,
        f"learning rate {config['learning_rate']:g}" if "learning_rate" in config else None,
        f"seed{s} {', '.join(str(run.seed) for run in runs)}",
        f"folder{s} {', '.join(run.name for run in runs)}" if has_folders else None,
    ]
    return "; ".join(fact for fact in facts if fact) + "."


def _corpora(runs: Sequence[Run]) -> Rows:
    rows = [["corpus", "side", "examples", "share of its side", "drawn", "passes"]]
    for corpus in runs[0].results.plan["corpora"]:
        numbers = (number(corpus.get(key)) for key in ("num_examples", "share", "drawn", "passes"))
        rows.append([corpus["name"], corpus["side"], *numbers])
    return rows


def _over_alpha(curves: Sequence[AlphaCurve]) -> Rows:
    """Return the metrics at both ends and at the chosen α."""
    rows = [["", "α", *(plots.in_words(side, curves[0].metric) for side in plots.DOMAIN_FIRST)]]
    places = {
        "M₀": [0.0] * len(curves),
        "M_α, as chosen": [curve.alpha for curve in curves],
        "M_θ": [1.0] * len(curves),
    }
    for name, alphas in places.items():
        row = [name, _alphas(alphas)]
        for side in plots.DOMAIN_FIRST:
            found = [plots.along_alpha(curve, side).get(alpha) for curve, alpha in zip(curves, alphas, strict=True)]
            known = [one for one in found if one is not None]
            row.append(_shown(known[0] if len(curves) == 1 and known else estimate([one.value for one in known])))
        rows.append(row)
    return rows


def _by_group(run: Run) -> dict[str, Rows]:
    """Return titled tables of what is known of a run by group, by pairs, by lm-eval, and of its training rows."""
    found = accounts(run.results, run.curve)
    tables = {f"Gaps between groups ({run.name})": gap_table(found)} if found else {}
    if len(pairs := pair_table(run.results, run.curve)) > 1:
        tables[f"Pairs of texts ({run.name})"] = pairs
    if run.results.harness:
        tables[f"Tasks of lm-eval ({run.name})"] = harness_table(run.results.harness)
    if run.results.audit:
        tables[f"Membership inference ({run.name})"] = leak_table(run.results.audit)
    if "canaries" in run.results.audit:
        tables[f"Exposure of canaries ({run.name})"] = canary_table(run.results.audit)
    for (name, column), models in found.items():
        model, account = list(models.items())[-1]
        tables[f"{model} by {column} in {name} ({run.name})"] = group_table(account)
    return tables


def _settings(methods: Sequence[Method]) -> Rows | str:
    """Return the fields in which recipes differ, or that there are none."""
    settings = [settings_of(method.runs[0].results) for method in methods]
    names = differences(settings)
    if len(methods) < 2:
        return "There is one recipe, and nothing to compare it with."
    if not names:
        return "The recipes differ in no field that is told here."
    header = ["field", *(method.name for method in methods)]
    return [header, *([name, *(_setting(one.get(name)) for one in settings)] for name in names)]


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fingerprints(methods: Sequence[Method]) -> Rows:
    rows = [["run", "seed", "fingerprint of the plan", "fingerprint of what was read"]]
    for run in (run for method in methods for run in method.runs):
        log = reversed(run.results.log_history)
        read = next((entry["order_fingerprint"] for entry in log if "order_fingerprint" in entry), "–")
        rows.append([run.name, str(run.seed), run.results.plan.get("fingerprint", "–"), read])
    return rows


def _origins(study: Study, name: str) -> Rows:
    """Return the versions or the machines: a column for each of those that differ, with the names of who has it."""
    told = [(run.name, getattr(run.results, name)) for method in study.methods for run in method.runs]
    if study.comparison is not None:
        told.append(("the comparison", getattr(study.comparison, name)))
    columns: list[tuple[Mapping[str, Any], list[str]]] = []
    for who, found in told:
        same = next((names for known, names in columns if known == found), None)
        if same is None:
            columns.append((found, [who]))
        else:
            same.append(who)
    names = dict.fromkeys(name for found, _ in columns for name in found)
    header = ["", *("all" if len(columns) == 1 else ", ".join(dict.fromkeys(who)) for _, who in columns)]
    return [header, *([name, *(_setting(found.get(name)) for found, _ in columns)] for name in names)]


def _alphas(chosen: Iterable[float | None]) -> str:
    """Return α of the seeds; of equal ones, one."""
    return ", ".join(dict.fromkeys(short_alpha(alpha) for alpha in chosen if alpha is not None)) or "–"


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return number(found.value) if found.half is None else f"{number(found.value)} ± {number(found.half)}"
