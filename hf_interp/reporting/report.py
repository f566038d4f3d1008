"""The report of runs and comparisons: one HTML file that needs no network. No torch.

It holds for every recipe its data as planned and as drawn, losses, metrics and M_α over α, and puts recipes side by
side with intervals over seeds. Whatever comes from data or settings is escaped; of local paths only the last part is
shown, and secrets are blotted out.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_interp.reporting.curve import AlphaCurve, short_alpha
from hf_interp.reporting.report_charts import Chart, figure, number
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
from hf_interp.reporting.report_page import Html, Writer
from hf_interp.reporting.report_views import (
    SIDES,
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
from hf_interp.reporting.results import SPEED_METRICS
from hf_interp.utils.files import new_file
from hf_interp.utils.redaction import find_secrets, local_paths, without_local_paths, without_secrets

REPORT_NAME = "report.html"
INTERVALS = (
    "Numbers are means over seeds ± half of the 95% interval of Student's t, or a single value where there is one "
    "seed. With two seeds the interval is wide. Forgetting is what the general side has lost; below 0 it has gained."
)


def write_report(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of some runs and comparisons as one HTML file: whole or not at all.

    Args:
        folders: of runs and comparisons; each has a `results.json`, and what it has of `curve.json` is shown too.
        output: the file; `report.html` in the first folder by default.

    Returns:
        where it is.

    Raises:
        FileNotFoundError: if a folder is missing, or has no `results.json`.
        ValueError: if that file is of another kind, or cannot be read.
    """
    page = report(load_studies(folders))
    path = Path(folders[0]) / REPORT_NAME if output is None else Path(output)
    with new_file(path) as file:
        file.write(page)
    return path


def report(studies: Sequence[Study]) -> str:
    """The document that tells of what has been loaded."""
    writer = Writer(_discretion(studies))
    sections: list[Html] = []
    entries: list[tuple[str, str]] = []
    for index, study in enumerate(studies):
        key = f"s{index}"
        if len(studies) > 1:
            sections.append(writer.tag("h2", study.title, id=key))
            entries.append((key, study.title))
        if len(study.methods) > 1:
            sections.append(_side_by_side(writer, study, f"{key}-all"))
            entries.append((f"{key}-all", "Side by side"))
        for place, method in enumerate(study.methods):
            if method.runs:
                sections.append(
                    _method_section(writer, method, f"{key}-m{place}", has_folders=study.comparison is None)
                )
                entries.append((f"{key}-m{place}", method.name))
        sections.append(_settings_section(writer, study, f"{key}-settings"))
        sections.append(_origin_section(writer, study, f"{key}-origin"))
        entries += [(f"{key}-settings", "Settings that differ"), (f"{key}-origin", "Versions and fingerprints")]
    contents = writer.tag(
        "nav", writer.list(writer.tag("a", name, href=f"#{key}") for key, name in entries), aria_label="Contents"
    )
    title = "Report: " + ", ".join(dict.fromkeys(study.title for study in studies))
    return writer.page(title, contents, _warnings(writer, studies), *sections)


def _discretion(studies: Sequence[Study]) -> Callable[[str], str]:
    """What takes local paths and secrets out of a text."""
    runs = [run for study in studies for method in study.methods for run in method.runs]
    told = [asdict(run) for run in runs] + [asdict(study.comparison) for study in studies if study.comparison]
    known = local_paths(told)
    secrets = find_secrets(*(text for key, text in _leaves(told) if key.endswith("_token")))

    def plain(text: str) -> str:
        return str(without_secrets(without_local_paths(text, known), secrets))

    return plain


def _leaves(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, key)


def _warnings(writer: Writer, studies: Sequence[Study]) -> Html:
    """All warnings, each once, with those whom it concerns."""
    found: dict[str, list[str]] = {}
    for study in studies:
        for text in study.warnings:
            found.setdefault(text, [])
        for method in study.methods:
            for run in method.runs:
                for text in [*run.results.plan.get("warnings", []), *(run.curve.warnings if run.curve else [])]:
                    found.setdefault(text, []).append(run.name)
    if not found:
        return writer.tag("p", "No warnings.", class_="note")
    lines = [f"{text} ({', '.join(dict.fromkeys(names))})" if names else text for text, names in found.items()]
    return writer.tag("section", writer.tag("strong", "Warnings"), writer.list(lines), class_="warnings")


def _side_by_side(writer: Writer, study: Study, key: str) -> Html:
    metrics = main_metrics(study.methods)
    charts = [trade_off(study.methods, metrics)]
    charts += [methods_over_steps(study.methods, name, metric) for name, metric in metrics.items()]
    charts.append(alphas_of_methods(study.methods))
    return writer.tag(
        "section",
        writer.tag("h2", "Side by side", id=key),
        writer.tag("p", INTERVALS, class_="note"),
        _methods_table(writer, study.methods, metrics),
        _figures(writer, charts, key),
        writer.details("All metrics", _metrics_table(writer, study.methods)),
    )


def _methods_table(writer: Writer, methods: Sequence[Method], metrics: Mapping[str, str]) -> Html:
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
    return writer.table(header, rows, label="Side by side")


def _metrics_table(writer: Writer, methods: Sequence[Method]) -> Html:
    """Every metric on every set: of M₀, at the end, and what was lost."""
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
    return writer.table(header, rows, label="All metrics")


def _method_section(writer: Writer, method: Method, key: str, *, has_folders: bool) -> Html:
    """One recipe: what was read, losses, metrics, M_α."""
    runs = method.runs
    curves = [run.curve for run in runs if run.curve is not None]
    charts = [mixture(method), corpus_losses(runs), objective_losses(runs), *metrics_over_steps(method)]
    parts = [
        writer.tag("h2", method.name, id=key),
        writer.tag("p", _facts(runs, has_folders=has_folders)),
        _figures(writer, charts, key),
        writer.tag("h3", "Corpora"),
        _corpora_table(writer, runs),
        writer.tag("h3", "Metrics"),
        _metrics_table(writer, [method]),
    ]
    if curves:
        parts += [
            writer.tag("h3", "M_α = α·M_θ + (1 − α)·M₀"),
            *(
                writer.tag("p", f"{_seed_of(runs, run)}α = {short_alpha(run.curve.alpha)}. {run.curve.reason}")
                for run in runs
                if run.curve
            ),
            _figures(
                writer,
                [metrics_over_alpha(curves), *(frontier(run.curve, _seed_of(runs, run)) for run in runs if run.curve)],
                f"{key}-c",
            ),
            _alpha_table(writer, curves),
        ]
    return writer.tag("section", *parts)


def _facts(runs: Sequence[Run], *, has_folders: bool) -> str:
    """What was run, in a line."""
    plan, config = runs[0].results.plan, runs[0].results.config
    model = (runs[0].results.recipe or {}).get("model_name_or_path")
    schedule = f"α {config['alpha_schedule_type']}" if "alpha_schedule_type" in config else None
    if config.get("alpha_controller"):
        schedule = f"α by the controller {config['alpha_controller']}"
    facts = [
        f"M₀: {without_local_paths({'path': model})['path']}" if model else None,
        f"{plan.get('max_steps')} steps of {plan.get('batch_size')} {plan.get('unit', 'examples')}",
        schedule,
        f"learning rate {config['learning_rate']:g}" if "learning_rate" in config else None,
        f"{'seeds' if len(runs) > 1 else 'seed'} {', '.join(str(run.seed) for run in runs)}",
        f"{'folders' if len(runs) > 1 else 'folder'} {', '.join(run.name for run in runs)}" if has_folders else None,
    ]
    return "; ".join(fact for fact in facts if fact) + "."


def _corpora_table(writer: Writer, runs: Sequence[Run]) -> Html:
    rows = [
        [
            corpus["name"],
            corpus["side"],
            number(corpus.get("num_examples")),
            number(corpus.get("share")),
            number(corpus.get("drawn")),
            number(corpus.get("passes")),
        ]
        for corpus in runs[0].results.plan["corpora"]
    ]
    header = ["corpus", "side", "examples", "share of its side", "drawn", "passes"]
    return writer.table(header, rows, label="Corpora")


def _alpha_table(writer: Writer, curves: Sequence[AlphaCurve]) -> Html:
    """Metrics at both ends and at the chosen α."""
    metric = curves[0].metric
    places: list[tuple[str, Callable[[AlphaCurve], float]]] = [
        ("M₀", lambda curve: 0.0),
        ("M_α, as chosen", lambda curve: curve.alpha),
        ("M_θ", lambda curve: 1.0),
    ]
    rows = [
        [
            name,
            _alphas([place(curve) for curve in curves]),
            *(_shown(_at(curves, place, side)) for side in SIDES),
        ]
        for name, place in places
    ]
    header = ["", "α", *(in_words(side, metric) for side in SIDES)]
    note = "On examples that the choice has not seen. " + (
        INTERVALS if len(curves) > 1 else "± is half of the 95% interval, 1.96 standard errors over examples."
    )
    return Html(writer.table(header, rows, label="M_α") + writer.tag("p", note, class_="note"))


def _at(curves: Sequence[AlphaCurve], place: Callable[[AlphaCurve], float], side: str) -> Estimate | None:
    found = [along_alpha(curve, side).get(place(curve)) for curve in curves]
    known = [one for one in found if one is not None]
    return known[0] if len(curves) == 1 and known else estimate([one.value for one in known])


def _settings_section(writer: Writer, study: Study, key: str) -> Html:
    """The fields in which recipes differ."""
    methods = [method for method in study.methods if method.runs]
    settings = [settings_of(method.runs[0].results) for method in methods]
    names = differences(settings)
    if len(methods) < 2:
        found = writer.tag("p", "There is one recipe, and nothing to compare it with.", class_="note")
    elif not names:
        found = writer.tag("p", "The recipes differ in no field that is told here.", class_="note")
    else:
        rows = [[name, *(_setting(one.get(name)) for one in settings)] for name in names]
        header = ["field", *(method.name for method in methods)]
        found = writer.table(header, rows, label="Settings that differ", of_words=True)
    return writer.tag("section", writer.tag("h2", "Settings that differ", id=key), found)


def _setting(value: Any) -> str:
    return (
        "–"
        if value is None
        else value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str)
    )


def _origin_section(writer: Writer, study: Study, key: str) -> Html:
    """Fingerprints, versions and machines."""
    runs = [run for method in study.methods for run in method.runs]
    told: list[tuple[str, Any]] = [(run.name, run.results) for run in runs]
    if study.comparison is not None:
        told.append(("the comparison", study.comparison))
    rows = [
        [
            run.name,
            str(run.seed),
            run.results.plan.get("fingerprint", "–"),
            next((e["order_fingerprint"] for e in reversed(run.results.log_history) if "order_fingerprint" in e), "–"),
        ]
        for run in runs
    ]
    header = ["run", "seed", "fingerprint of the plan", "fingerprint of what was read"]
    parts = [writer.table(header, rows, label="Fingerprints", of_words=True)] if rows else []
    for title, name in (("Versions", "versions"), ("Machine", "machine")):
        parts += [writer.tag("h3", title), _distinct(writer, title, [(who, getattr(one, name)) for who, one in told])]
    return writer.tag("section", writer.tag("h2", "Versions and fingerprints", id=key), *parts)


def _distinct(writer: Writer, title: str, told: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    """A column for each of the different mappings, with the names of those who have it."""
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
    return writer.table(header, rows, label=title, of_words=True)


def _figures(writer: Writer, charts: Sequence[Chart], key: str) -> Html:
    """The charts that have something to show."""
    shown = [chart for chart in charts if not chart.is_empty()]
    return writer.tag(
        "div", *(figure(writer, chart, f"{key}-{index}") for index, chart in enumerate(shown)), class_="charts"
    )


def _first(name: str, metric: str) -> Callable[[Member], float | None]:
    return lambda member: member.base.get(name, {}).get(metric)


def _lost(metric: str) -> Callable[[Member], float | None]:
    return lambda member: member.forgetting.get(metric)


def _alphas(chosen: Sequence[float | None]) -> str:
    """α of the seeds; of equal ones, one."""
    return ", ".join(dict.fromkeys(short_alpha(alpha) for alpha in chosen if alpha is not None)) or "–"


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return number(found.value) if found.half is None else f"{number(found.value)} ± {number(found.half)}"


def _seed_of(runs: Sequence[Run], run: Run) -> str:
    """Names the seed of a run where there are several."""
    return f"Seed {run.seed}: " if len(runs) > 1 else ""
