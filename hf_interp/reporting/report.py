"""The report of runs and comparisons: one HTML file that needs no network. No torch.

It holds for every recipe its data as planned and as drawn, losses, metrics and M_α over α, and puts recipes side by
side with intervals over seeds. Whatever comes from data or settings is escaped; of local paths only the last part is
shown, and secrets are blotted out.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_interp.reporting.charts import FEW, Chart, Series, draw_svg
from hf_interp.reporting.colours import NEUTRAL
from hf_interp.reporting.curve import AlphaCurve, short_alpha
from hf_interp.reporting.plots import (
    DOMAIN_FIRST,
    along_alpha,
    alphas_of_methods,
    corpus_losses,
    final_metric,
    frontier,
    in_words,
    main_metrics,
    methods_over_steps,
    metrics_over_alpha,
    metrics_over_steps,
    mixture,
    objective_losses,
    trade_off,
)
from hf_interp.reporting.report_data import (
    Estimate,
    Member,
    Method,
    Run,
    Study,
    differences,
    estimate,
    load_studies,
    settings_of,
)
from hf_interp.reporting.results import SPEED_METRICS
from hf_interp.utils.files import new_file
from hf_interp.utils.redaction import find_secrets, local_paths, redact_paths, redact_secrets

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


@dataclass(kw_only=True)
class Table:
    """A table of the page.

    Args:
        label: what it is, for those who do not see it.
        header: names of the columns.
        rows: cells.
        of_words: flush left, and not as numbers.
    """

    label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    of_words: bool = False


def write_report(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of some runs and comparisons as one HTML file: whole or not at all.

    Args:
        folders: of runs and comparisons; each has a `results.json`, and what it has of `curve.json` is shown too.
        output: the file; without it, `report.html` in the first folder.

    Returns:
        Where it is.

    Raises:
        FileNotFoundError: if a folder is missing, or has no `results.json`.
        ValueError: if that file is of another kind, or cannot be read.
    """
    page = report(load_studies(folders))
    path = Path(folders[0]) / PAGE_NAME if output is None else Path(output)
    with new_file(path) as file:
        file.write(page)
    return path


def report(studies: Sequence[Study]) -> str:
    """Render the page of what has been loaded."""
    redact = _redactor(studies)

    def draw(chart: Chart, key: str) -> Markup:
        # Matplotlib escapes the texts of its SVG
        return Markup(draw_svg(replace(chart, x_name=redact(chart.x_name), y_name=redact(chart.y_name)), key))

    environment = Environment(
        loader=PackageLoader("hf_interp", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else redact(str(value)),
    )
    environment.globals |= {"draw": draw, "describe": _describe, "legend": _legend, "numbers": _numbers}
    return environment.get_template(TEMPLATE).render(
        title="Report: " + ", ".join(dict.fromkeys(study.title for study in studies)),
        warnings=_warnings(studies),
        intervals=INTERVALS,
        studies=[_study_view(study, f"s{index}") for index, study in enumerate(studies)],
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


def _redactor(studies: Sequence[Study]) -> Callable[[str], str]:
    """Return a function that takes local paths and secrets out of a text."""
    runs = [run for study in studies for method in study.methods for run in method.runs]
    told = [asdict(run) for run in runs] + [asdict(study.comparison) for study in studies if study.comparison]
    known = local_paths(told)
    secrets = find_secrets(*(text for key, text in _leaves(told) if key.endswith("_token")))

    def redact(text: str) -> str:
        return str(redact_secrets(redact_paths(text, known), secrets))

    return redact


def _leaves(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, key)


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


def _study_view(study: Study, key: str) -> dict[str, Any]:
    """Return what the template shows of a study."""
    methods = [(f"{key}-m{place}", method) for place, method in enumerate(study.methods) if method.runs]
    view: dict[str, Any] = {
        "key": key,
        "title": study.title,
        "side_by_side": None,
        "methods": [_method_view(method, name, has_folders=study.comparison is None) for name, method in methods],
        "settings": _settings([method for _, method in methods]),
        "fingerprints": _fingerprints([run for _, method in methods for run in method.runs]),
        "origins": _origins(study),
    }
    return view | (_side_by_side(study.methods) if len(study.methods) > 1 else {})


def _side_by_side(methods: Sequence[Method]) -> dict[str, Any]:
    """Return what the template shows of methods beside each other."""
    metrics = main_metrics(methods)
    charts = [trade_off(methods, metrics)] if set(DOMAIN_FIRST) <= set(metrics) else []
    charts += [methods_over_steps(methods, name, metric) for name, metric in metrics.items()]
    return {
        "side_by_side": _methods_table(methods, metrics),
        "all_metrics": _metrics_table(methods),
        "charts": [*charts, alphas_of_methods(methods)],
    }


def _method_view(method: Method, key: str, *, has_folders: bool) -> dict[str, Any]:
    """Return what the template shows of one recipe: what was read, losses, metrics, M_α."""
    runs = method.runs
    searched = [(_seed_of(runs, run), run.curve) for run in runs if run.curve is not None]
    curves = [curve for _, curve in searched]
    view: dict[str, Any] = {
        "key": key,
        "name": method.name,
        "facts": _facts(runs, has_folders=has_folders),
        "charts": [mixture(method), corpus_losses(runs), objective_losses(runs), *metrics_over_steps(method)],
        "corpora": _corpora_table(runs),
        "metrics": _metrics_table([method]),
        "choices": [f"{seed}α = {short_alpha(curve.alpha)}. {curve.reason}" for seed, curve in searched],
    }
    if curves:
        view["curve_charts"] = [metrics_over_alpha(curves), *(frontier(curve, seed) for seed, curve in searched)]
        view["alphas"] = _alpha_table(curves)
        view["alphas_remark"] = INTERVALS if len(curves) > 1 else OVER_EXAMPLES
    return view


def _describe(chart: Chart) -> str:
    """Return a chart in words, for those who do not see it."""
    names = ", ".join(series.label for series in chart.series if series.points)
    return f"{chart.title}: {chart.y_name} against {chart.x_name}, of {names}. The table has the numbers."


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


def _numbers(chart: Chart) -> Table:
    """Return the numbers of a chart."""
    has_interval = any(series.low is not None for series in chart.series)
    has_x_errors = any(series.x_errors is not None for series in chart.series)
    rows = []
    for series in chart.series:
        for index, (x, y) in enumerate(series.points):
            name = series.label if series.names is None else f"{series.label}: {series.names[index]}"
            row = [name, number(x), number(y)]
            if has_interval:
                ends = None if series.low is None or series.high is None else (series.low[index], series.high[index])
                row.append("–" if ends is None else f"{number(ends[0])} to {number(ends[1])}")
            if has_x_errors:
                row.append("–" if series.x_errors is None else number(series.x_errors[index]))
            rows.append(row)
    rows += [[name, number(x), *["–"] * (1 + has_interval + has_x_errors)] for name, x, _ in chart.lines]
    header = ["series", chart.x_name, chart.y_name]
    header += [f"interval of {chart.y_name}"] * has_interval + [f"± of {chart.x_name}"] * has_x_errors
    return Table(label=f"Numbers of the chart {chart.title}", header=header, rows=rows)


def _methods_table(methods: Sequence[Method], metrics: Mapping[str, str]) -> Table:
    lost = metrics.get("general")
    has_chosen = any(member.chosen is not None for method in methods for member in method.members)
    header = ["", "seeds", *["α of the weights"] * has_chosen, *(in_words(*entry) for entry in metrics.items())]
    header += [f"forgetting of {lost}"] * (lost is not None)
    rows = []
    for method in methods:
        seeds = ", ".join(str(member.seed) for member in method.members)
        row = [method.name, seeds, *[_alphas([member.chosen for member in method.members])] * has_chosen]
        row += [_shown(method.estimate(final_metric(*entry))) for entry in metrics.items()]
        if lost is not None:
            row.append(_shown(method.estimate(_lost(lost))))
        rows.append(row)
    return Table(label="Side by side", header=header, rows=rows)


def _metrics_table(methods: Sequence[Method]) -> Table:
    """Return every metric on every set: of M₀, at the end, and what was lost."""
    named = len(methods) > 1
    rows = []
    for method in methods:
        pairs = dict.fromkeys((name, key) for one in method.members for name in one.final for key in one.final[name])
        for name, metric in pairs:
            if metric in SPEED_METRICS:
                continue
            lost = method.estimate(_lost(metric)) if name == "general" else None
            row = [
                in_words(name, metric),
                _shown(method.estimate(_first(name, metric))),
                _shown(method.estimate(final_metric(name, metric))),
                _shown(lost),
            ]
            rows.append([method.name, *row] if named else row)
    header = [*[""] * named, "metric", "M₀", "at the end", "forgetting"]
    return Table(label="All metrics", header=header, rows=rows)


def _facts(runs: Sequence[Run], *, has_folders: bool) -> str:
    """Return in a line what was run."""
    plan, config = runs[0].results.plan, runs[0].results.config
    model = (runs[0].results.recipe or {}).get("model_name_or_path")
    schedule = f"α {config['alpha_schedule_type']}" if "alpha_schedule_type" in config else None
    if config.get("alpha_controller"):
        schedule = f"α by the controller {config['alpha_controller']}"
    facts = [
        f"M₀: {redact_paths({'path': model})['path']}" if model else None,
        f"{plan.get('max_steps')} steps of {plan.get('batch_size')} {plan.get('unit', 'examples')}",
        schedule,
        f"learning rate {config['learning_rate']:g}" if "learning_rate" in config else None,
        f"{'seeds' if len(runs) > 1 else 'seed'} {', '.join(str(run.seed) for run in runs)}",
        f"{'folders' if len(runs) > 1 else 'folder'} {', '.join(run.name for run in runs)}" if has_folders else None,
    ]
    return "; ".join(fact for fact in facts if fact) + "."


def _corpora_table(runs: Sequence[Run]) -> Table:
    rows = [
        [
            corpus["name"],
            corpus["side"],
            *(number(corpus.get(key)) for key in ("num_examples", "share", "drawn", "passes")),
        ]
        for corpus in runs[0].results.plan["corpora"]
    ]
    header = ["corpus", "side", "examples", "share of its side", "drawn", "passes"]
    return Table(label="Corpora", header=header, rows=rows)


def _alpha_table(curves: Sequence[AlphaCurve]) -> Table:
    """Return the metrics at both ends and at the chosen α."""
    places: list[tuple[str, Callable[[AlphaCurve], float]]] = [
        ("M₀", lambda curve: 0.0),
        ("M_α, as chosen", lambda curve: curve.alpha),
        ("M_θ", lambda curve: 1.0),
    ]
    rows = [
        [
            name,
            _alphas([place(curve) for curve in curves]),
            *(_shown(_at(curves, place, side)) for side in DOMAIN_FIRST),
        ]
        for name, place in places
    ]
    header = ["", "α", *(in_words(side, curves[0].metric) for side in DOMAIN_FIRST)]
    return Table(label="M_α", header=header, rows=rows)


def _at(curves: Sequence[AlphaCurve], place: Callable[[AlphaCurve], float], side: str) -> Estimate | None:
    found = [along_alpha(curve, side).get(place(curve)) for curve in curves]
    known = [one for one in found if one is not None]
    return known[0] if len(curves) == 1 and known else estimate([one.value for one in known])


def _settings(methods: Sequence[Method]) -> Table | str:
    """Return the fields in which recipes differ, or that there are none."""
    settings = [settings_of(method.runs[0].results) for method in methods]
    names = differences(settings)
    if len(methods) < 2:
        return "There is one recipe, and nothing to compare it with."
    if not names:
        return "The recipes differ in no field that is told here."
    rows = [[name, *(_setting(one.get(name)) for one in settings)] for name in names]
    header = ["field", *(method.name for method in methods)]
    return Table(label="Settings that differ", header=header, rows=rows, of_words=True)


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fingerprints(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        log = reversed(run.results.log_history)
        read = next((entry["order_fingerprint"] for entry in log if "order_fingerprint" in entry), "–")
        rows.append([run.name, str(run.seed), run.results.plan.get("fingerprint", "–"), read])
    header = ["run", "seed", "fingerprint of the plan", "fingerprint of what was read"]
    return Table(label="Fingerprints", header=header, rows=rows, of_words=True)


def _origins(study: Study) -> list[Table]:
    """Return the versions and the machines."""
    told: list[tuple[str, Any]] = [(run.name, run.results) for method in study.methods for run in method.runs]
    if study.comparison is not None:
        told.append(("the comparison", study.comparison))
    return [
        _distinct(label, [(who, getattr(one, name)) for who, one in told])
        for label, name in (("Versions", "versions"), ("Machine", "machine"))
    ]


def _distinct(label: str, told: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return a column for each of the different mappings, with the names of those who have it."""
    columns: list[tuple[Mapping[str, Any], list[str]]] = []
    for who, found in told:
        same = next((names for known, names in columns if known == found), None)
        if same is None:
            columns.append((found, [who]))
        else:
            same.append(who)
    names = dict.fromkeys(name for found, _ in columns for name in found)
    rows = [[name, *(_setting(found.get(name)) for found, _ in columns)] for name in names]
    header = ["", *("all" if len(columns) == 1 else ", ".join(dict.fromkeys(who)) for _, who in columns)]
    return Table(label=label, header=header, rows=rows, of_words=True)


def _first(name: str, metric: str) -> Callable[[Member], float | None]:
    return lambda member: member.base.get(name, {}).get(metric)


def _lost(metric: str) -> Callable[[Member], float | None]:
    return lambda member: member.forgetting.get(metric)


def _alphas(chosen: Sequence[float | None]) -> str:
    """Return α of the seeds; of equal ones, one."""
    return ", ".join(dict.fromkeys(short_alpha(alpha) for alpha in chosen if alpha is not None)) or "–"


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return number(found.value) if found.half is None else f"{number(found.value)} ± {number(found.half)}"


def _seed_of(runs: Sequence[Run], run: Run) -> str:
    """Return the name of a run's seed where there are several."""
    return f"Seed {run.seed}: " if len(runs) > 1 else ""
