"""Reports say what runs found, hold nothing that they should not, and can be read in a browser."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import MEASURE, chromium, set_screen
from toys import alpha_curve, measured

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, constant, linear
from hf_interp.reporting.charts import Chart, Series, draw_svg
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.report import PAGE_NAME, write_report
from hf_interp.reporting.report_data import Estimate, differences, estimate, load_studies, settings_of
from hf_interp.reporting.results import Comparison, RunResults, save_results
from hf_interp.utils.run_folder import CURVE_NAME, RESULTS_NAME

HOSTILE = "</script><img src=x onerror=alert(1)>\"'$\\frac&"
"""A name that would add an element, end an attribute, or be taken for mathematics."""
VOID = ("meta", "link", "img", "br")


class Page(HTMLParser):
    """What a browser would find in a document."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text("utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if found.get("role") == "region":
            self.rows = self.tables.setdefault(found["aria-label"], [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, table: str, first: str) -> list[str]:
        """The row of a table that begins so."""
        (found,) = [row for row in self.tables[table] if row[0] == first]
        return found

    def attributes(self, name: str) -> list[str]:
        """Values of an attribute."""
        return [found[name] for _, found in self.elements if name in found]


def results(
    seed: int = 0,
    *,
    shift: float = 0.0,
    names: tuple[str, str] = ("general", "domain"),
    num_committed: int | None = None,
    schedule: AlphaSchedule | None = None,
    **config: Any,
) -> RunResults:
    """A run of eight steps of four examples; its metrics are moved by `shift`."""
    general, domain = names
    corpora = [
        CorpusSpec(name=general, side="general", num_examples=40, content="aa"),
        CorpusSpec(name=domain, side="domain", num_examples=12, content="bb"),
    ]
    plan = MixturePlan(
        corpora,
        alpha_schedule=schedule or linear(),
        batch_size=4,
        max_steps=8,
        seed=seed,
        num_committed=num_committed,
    )
    if num_committed is not None:
        plan.commit([0.25] * (8 - num_committed))
    log: list[dict[str, Any]] = []

    def evaluate(step: int, in_domain: float, in_general: float) -> None:
        for name, value in (("domain", in_domain), ("general", in_general)):
            log.append({"step": step, f"eval_{name}_accuracy": value, f"eval_{name}_runtime": 1.0})

    evaluate(0, 0.5, 0.75)
    for step in (4, 8):
        drawn = (plan.drawn_before(step) - plan.drawn_before(step - 4)).tolist()
        log.append({"step": step, "loss": 1.0, "alpha": plan.alpha(step - 1)})
        log[-1] |= {f"share_{general}": drawn[0] / 16, f"share_{domain}": drawn[1] / 16}
        log[-1] |= {f"loss_{general}": 2.0 / step, f"loss_{domain}": 4.0 / step + shift}
        log[-1] |= {"objective_loss_task": 3.0 / step, "objective_loss_mlm": None, "order_fingerprint": f"abc{step}"}
    evaluate(8, 0.75 + shift, 0.625 + shift)
    return RunResults.from_log(
        config={"seed": seed, "learning_rate": 1e-3, "alpha_schedule_type": "linear", **config},
        plan=plan.summary(),
        log_history=log,
        order={"plan": plan.to_dict(), "decisions": []},
    )


def curve(shift: float = 0.0, error: float | None = 0.1, alphas: tuple[float, ...] = (0.0, 0.5, 1.0)) -> AlphaCurve:
    """Both sides have their best at the middle α."""
    domain, general = measured([0.5, 0.75 + shift, 0.625], error), measured([0.75, 0.875 + shift, 0.25], error)
    return alpha_curve({"accuracy": domain}, {"accuracy": general}, alphas, warnings=["Few examples."])


def saved(folder: Path, found: RunResults | Comparison, over_alpha: AlphaCurve | None = None) -> Path:
    """A run's or comparison's folder."""
    save_results(found, folder / RESULTS_NAME)
    if over_alpha is not None:
        save_results(over_alpha, folder / CURVE_NAME)
    return folder


def compared(*, methods: tuple[str, ...] = ("constant 0.5", "scheduled α")) -> Comparison:
    """Two methods over two seeds, with M₀ and M_α of one."""

    def row(method: str, seed: int, domain: float, curve: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        metrics = {"domain": {"accuracy": domain}, "general": {"accuracy": 0.5}}
        lost = {"accuracy": 0.25}
        return {"method": method, "seed": seed, "metrics": metrics, "forgetting": lost, "curve": curve, **more}

    rows = [row("M₀", seed, 0.25, []) for seed in (0, 1)]
    for method in methods:
        for seed in (0, 1):
            over = [
                {"step": 0, "domain_accuracy": 0.25, "general_accuracy": 0.75},
                {"step": 4, "alpha": 0.5, "domain_share": 0.5},
                {"step": 8, "alpha": 1.0, "domain_share": 0.875},
                {"step": 8, "domain_accuracy": 0.5 + seed / 4, "general_accuracy": 0.5},
            ]
            rows.append(row(method, seed, 0.5 + seed / 4, over))
            rows.append(row(f"{method} + M_α", seed, 0.5, [], alpha=0.25))
    return Comparison(rows=rows, settings={"recipe": {"output_dir": "/data/jane/compared"}})


# Statistics


def test_an_estimate_has_the_interval_of_student() -> None:
    # quantiles of t at 0.975 with 1 and 2 degrees of freedom: 12.7062 and 4.3027
    found = estimate([1.0, 3.0, None])
    assert found is not None
    assert (found.value, found.half) == (2.0, pytest.approx(12.7062, abs=1e-4))
    found = estimate([1.0, 2.0, 6.0])
    assert found is not None
    assert (found.value, found.half) == (3.0, pytest.approx(4.30265 * 7**0.5 / 3**0.5, abs=1e-4))
    assert (found.low, found.high) == (3.0 - found.half, 3.0 + found.half)
    assert estimate([0.5]) == Estimate(value=0.5, half=None)
    assert estimate([None]) is estimate([]) is None


# Grouping


def test_seeds_of_one_recipe_go_together(tmp_path: Path) -> None:
    places = [
        saved(tmp_path / "fast-seed-1", results(1, learning_rate=0.1, output_dir="/x/b", run_name="b")),
        saved(tmp_path / "slow", results(0)),
        saved(tmp_path / "fast-seed-0", results(0, learning_rate=0.1, output_dir="/x/a", run_name="a")),
    ]
    (study,) = load_studies(places)
    assert [method.name for method in study.methods] == ["fast", "slow"]
    assert [[run.name for run in method.runs] for method in study.methods] == [["fast-seed-0", "fast-seed-1"], ["slow"]]
    assert study.warnings == []


def test_other_data_is_another_recipe(tmp_path: Path) -> None:
    other = results(1)
    other.order["plan"]["corpora"][0]["content"] = "cc"
    (study,) = load_studies([saved(tmp_path / "a", results(0)), saved(tmp_path / "b", other)])
    assert [method.name for method in study.methods] == ["a", "b"]


def test_names_of_recipes_and_runs_differ(tmp_path: Path) -> None:
    places = [
        saved(tmp_path / str(rate) / f"seed-{seed}", results(seed, learning_rate=rate))
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    (study,) = load_studies(places)
    assert [method.name for method in study.methods] == ["recipe 1", "recipe 2"]
    assert [run.name for run in study.methods[1].runs] == ["recipe 2 (seed-0)", "recipe 2 (seed-1)"]


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    place = saved(tmp_path / "run", results())
    (study,) = load_studies([place, str(place), place / ".." / "run"])
    assert len(study.methods[0].members) == 1


def test_a_seed_that_was_run_twice_is_told(tmp_path: Path) -> None:
    (study,) = load_studies([saved(tmp_path / "run-a", results()), saved(tmp_path / "run-b", results())])
    (warning,) = study.warnings
    assert warning.startswith("run: several runs have the seed 0. They are not independent")


def test_settings_that_differ_are_told_without_seeds_paths_and_tokens() -> None:
    found = [
        settings_of(results(0, hub_token="a", output_dir="/x/a", alpha_schedule_kwargs={"value": 1.0})),
        settings_of(results(1, hub_token="b", output_dir="/x/b", alpha_schedule_kwargs={"value": 0.5})),
    ]
    assert differences(found) == ["alpha_schedule_kwargs.value"]
    recipe = {"model_name_or_path": "/data/jane/base", "learning_rate": 0.5}
    one = results()
    one.recipe = recipe
    found = [settings_of(one), settings_of(results())]
    assert (found[0]["model_name_or_path"], found[0]["learning_rate"]) == ("./base", 0.5)
    assert {"learning_rate", "model_name_or_path", "corpora.general.share"} <= set(differences(found))


# Bad input


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (None, FileNotFoundError, "has no results.json, which a run writes when it ends. Name the `output_dir`"),
        ("{", ValueError, "is not JSON"),
        ("[1]", ValueError, "must hold the results of a run or a comparison, got list"),
        ('{"trials": []}', ValueError, "must hold the results of a run or a comparison, got the fields trials"),
        ('{"rows": [], "settings": {}, "n": 1}', ValueError, "was written by another version of hf_interp"),
        ('{"config": {}, "plan": {}, "log_history": []}', ValueError, "was written by another version of hf_interp"),
    ],
)
def test_folders_of_another_kind_are_refused(
    tmp_path: Path, text: str | None, kind: type[Exception], message: str
) -> None:
    if text is not None:
        (tmp_path / RESULTS_NAME).write_text(text)
    with pytest.raises(kind, match=re.escape(message)):
        write_report([tmp_path])
    assert not (tmp_path / PAGE_NAME).exists()


def test_missing_folders_and_broken_curves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*absent'\. Name the folder of a run"):
        write_report([saved(tmp_path / "run", results()), tmp_path / "absent"])
    with pytest.raises(ValueError, match="at least one folder"):
        write_report([])
    (tmp_path / "run" / CURVE_NAME).write_text('{"alphas": []}')
    with pytest.raises(ValueError, match="was written by another version of hf_interp"):
        write_report([tmp_path / "run"])
    assert not list(tmp_path.rglob("*.html"))


# What is told


def test_a_run_is_told_in_numbers(tmp_path: Path) -> None:
    path = write_report([saved(tmp_path / "mine", results(3), curve())])
    assert path == tmp_path / "mine" / PAGE_NAME
    page = Page(path)
    assert "Report: mine" in page.texts
    assert "8 steps of 4 examples; α linear; learning rate 0.001; seed 3; folder mine." in page.texts
    planned = [row[1:] for row in page.tables["Numbers of the chart Mixture: planned and drawn"] if row[0][0] == "α"]
    assert planned == [[str(step), {0: "0", 7: "1"}.get(step, f"{step / 7:.3f}")] for step in range(8)]
    drawn = [row[1:] for row in page.tables["Numbers of the chart Mixture: planned and drawn"] if row[0][0] == "d"]
    shares = [entry["share_domain"] for entry in results(3).log_history if "alpha" in entry]
    assert drawn == [["2", f"{shares[0]:.3f}"], ["6", f"{shares[1]:.3f}"]]
    losses = page.tables["Numbers of the chart Training loss by corpus"]
    assert losses[1:] == [
        ["domain", "4", "1"],
        ["domain", "8", "0.500"],
        ["general", "4", "0.500"],
        ["general", "8", "0.250"],
    ]
    assert page.tables["Numbers of the chart Training loss by objective"][1:] == [
        ["task", "4", "0.750"],
        ["task", "8", "0.375"],
    ]
    evaluated = page.tables["Numbers of the chart Evaluation: accuracy over steps"]
    assert evaluated[1:] == [
        ["domain", "0", "0.500"],
        ["domain", "8", "0.750"],
        ["general", "0", "0.750"],
        ["general", "8", "0.625"],
    ]
    assert page.row("All metrics", "general accuracy") == ["general accuracy", "0.750", "0.625", "0.125"]
    assert page.row("Corpora", "general")[:4] == ["general", "general", "40", "1"]
    assert page.tables["Fingerprints"][1] == ["mine", "3", results(3).plan["fingerprint"], "abc8"]
    assert page.row("Versions", "python")[1] == results().versions["python"]
    assert page.row("Machine", "cores")[1] == str(results().machine["cores"])
    assert "Few examples. (mine)" in page.texts
    assert "Side by side" not in page.texts


def test_a_curve_of_one_run_has_intervals_over_examples(tmp_path: Path) -> None:
    page = Page(write_report([saved(tmp_path / "mine", results(), curve())]))
    over = page.tables["Numbers of the chart accuracy of M_α over α"]
    # 1.96 standard errors of 0.1
    assert over[2] == ["domain, with 95% intervals", "0.500", "0.750", "0.554 to 0.946"]
    assert over[-1][:2] == ["chosen: α = 0.5", "0.500"]
    assert page.tables["M_α"][1:] == [
        ["M₀", "0", "0.500 ± 0.196", "0.750 ± 0.196"],
        ["M_α, as chosen", "0.5", "0.750 ± 0.196", "0.875 ± 0.196"],
        ["M_θ", "1", "0.625 ± 0.196", "0.250 ± 0.196"],
    ]
    front = page.tables["Numbers of the chart Domain against general: the upper right is better"]
    assert [row for row in front if row[0].startswith("Pareto")] == [["Pareto frontier: α = 0.5", "0.875", "0.750"]]
    assert ["M_θ: α = 1", "0.250", "0.625"] in front


def test_a_curve_without_standard_errors_has_no_intervals(tmp_path: Path) -> None:
    page = Page(write_report([saved(tmp_path / "mine", results(), curve(error=None))]))
    assert page.tables["M_α"][2] == ["M_α, as chosen", "0.5", "0.750", "0.875"]
    assert page.tables["Numbers of the chart accuracy of M_α over α"][0] == ["series", "α", "accuracy"]


def test_seeds_have_ranges_in_charts_and_intervals_in_tables(tmp_path: Path) -> None:
    places = [saved(tmp_path / f"s{seed}", results(seed, shift=seed / 8), curve(seed / 8)) for seed in (0, 1)]
    page = Page(write_report(places, tmp_path / "new" / "all.html"))
    assert page.row("All metrics", "domain accuracy") == ["domain accuracy", "0.500 ± 0", "0.812 ± 0.794", "–"]
    losses = page.tables["Numbers of the chart Training loss by corpus"]
    assert losses[1] == ["domain", "4", "1.062", "1 to 1.125"]
    over = page.tables["Numbers of the chart accuracy of M_α over α"]
    assert over[2] == ["domain", "0.500", "0.812", "0.750 to 0.875"]
    assert page.tables["M_α"][2] == ["M_α, as chosen", "0.5", "0.812 ± 0.794", "0.938 ± 0.794"]
    assert {"Numbers of the chart Seed 0: domain against general: the upper right is better"} <= set(page.tables)


def test_seeds_searched_at_other_alphas_have_lines_of_their_own(tmp_path: Path) -> None:
    grids = ((0.0, 0.5, 1.0), (0.0, 0.25, 1.0))
    places = [saved(tmp_path / f"s{seed}", results(seed), curve(alphas=grid)) for seed, grid in enumerate(grids)]
    page = Page(write_report(places))
    over = page.tables["Numbers of the chart accuracy of M_α over α"]
    assert [row[1] for row in over if row[0] == "domain"] == ["0", "0.500", "1", "0", "0.250", "1"]
    assert page.row("M_α", "M_α, as chosen")[1] == "0.5, 0.25"


def test_an_adaptive_alpha_is_shown_beside_its_schedule(tmp_path: Path) -> None:
    page = Page(write_report([saved(tmp_path / "mine", results(num_committed=2))]))
    rows = page.tables["Numbers of the chart Mixture: planned and drawn"]
    assert [row[2] for row in rows if row[0] == "α as planned"][-2:] == ["0.857", "1"]
    assert [row[2] for row in rows if row[0] == "α in force"][-2:] == ["0.250", "0.250"]


def test_recipes_are_put_side_by_side(tmp_path: Path) -> None:
    places = [saved(tmp_path / f"fast-{seed}", results(seed, shift=seed / 8, learning_rate=0.5)) for seed in (0, 1, 2)]
    page = Page(write_report([*places, saved(tmp_path / "slow", results(shift=0.125))]))
    assert page.tables["Side by side"] == [
        ["", "seeds", "domain accuracy", "general accuracy", "forgetting of accuracy"],
        ["fast", "0, 1, 2", "0.875 ± 0.311", "0.750 ± 0.311", "0 ± 0.311"],
        ["slow", "0", "0.875", "0.750", "0"],
    ]
    assert page.tables["Settings that differ"] == [["field", "fast", "slow"], ["learning_rate", "0.5", "0.001"]]
    trade = page.tables["Numbers of the chart Domain against general: the upper right is better"]
    assert trade[1:] == [["fast", "0.750", "0.875", "0.564 to 1.186", "0.311"], ["slow", "0.750", "0.875", "–", "–"]]
    assert [row[0] for row in page.tables["Numbers of the chart α and the domain's share"][1:5:2]] == [
        "fast: α",
        "fast: drawn",
    ]


def test_versions_that_differ_have_columns(tmp_path: Path) -> None:
    other = results(1, learning_rate=1.0)
    other.versions["python"] = "2.7"
    page = Page(write_report([saved(tmp_path / "a", results()), saved(tmp_path / "b", other)]))
    assert page.tables["Versions"][0] == ["", "a", "b"]
    assert page.row("Versions", "python")[1:] == [results().versions["python"], "2.7"]
    assert page.tables["Machine"][0] == ["", "all"]


def test_a_comparison_is_told_with_its_runs(tmp_path: Path) -> None:
    folder = saved(tmp_path / "compared", compared())
    for seed in (0, 1):
        saved(folder / "scheduled-α" / f"seed-{seed}", results(seed), curve())
    page = Page(write_report([folder]))
    rows = page.tables["Side by side"]
    assert rows[0][2] == "α of the weights"
    assert rows[1] == ["M₀", "0, 1", "–", "0.250 ± 0", "0.500 ± 0", "0.250 ± 0"]
    assert rows[2] == ["constant 0.5", "0, 1", "–", "0.625 ± 1.588", "0.500 ± 0", "0.250 ± 0"]
    assert rows[3][:3] == ["constant 0.5 + M_α", "0, 1", "0.25"]
    over = page.tables["Numbers of the chart domain accuracy over steps"]
    assert over[1:3] == [
        ["constant 0.5", "0", "0.250", "0.250 to 0.250"],
        ["constant 0.5", "8", "0.625", "0.500 to 0.750"],
    ]
    assert [row[0] for row in page.tables["Fingerprints"][1:]] == ["scheduled α (seed 0)", "scheduled α (seed 1)"]
    # the base of a comparison's method is what was evaluated at step 0
    assert [row for row in page.tables["All metrics"] if row[:2] == ["scheduled α", "general accuracy"]] == [
        ["scheduled α", "general accuracy", "0.750 ± 0", "0.500 ± 0", "0.250 ± 0"]
    ]
    assert ["M_α, as chosen", "0.5", "0.750 ± 0", "0.875 ± 0"] in page.tables["M_α"]


def test_a_baseline_is_not_warned_of_what_it_leaves_out_on_purpose(tmp_path: Path) -> None:
    alone = results(schedule=constant(1.0))
    never = "Corpus 'general' is never drawn. Raise its share, or move α, or leave it out."
    assert never in alone.plan["warnings"]
    compared_folder = saved(tmp_path / "compared", compared(methods=("domain only",)))
    saved(compared_folder / "domain-only" / "seed-0", alone)
    assert not [text for text in Page(write_report([compared_folder])).texts if "never drawn" in text]
    # of a run by itself it may be a mistake
    assert f"{never} (mine)" in Page(write_report([saved(tmp_path / "mine", alone)])).texts


def test_runs_and_comparisons_stand_in_one_report(tmp_path: Path) -> None:
    places = [saved(tmp_path / "compared", compared()), saved(tmp_path / "mine", results())]
    page = Page(write_report(places))
    assert "Report: Runs, compared" in page.texts
    targets = {found["id"] for _, found in page.elements if "id" in found}
    links = [found["href"][1:] for tag, found in page.elements if tag == "a"]
    assert len(links) == len(set(links)) == 8
    assert set(links) <= targets


def test_ids_are_unique_and_all_references_lead_somewhere(tmp_path: Path) -> None:
    path = write_report([saved(tmp_path / "a", results(), curve()), saved(tmp_path / "b", results(learning_rate=1.0))])
    page = Page(path)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) > 20
    for reference in [
        *page.attributes("href"),
        *(f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", path.read_text())),
    ]:
        assert reference == "data:," or reference[1:] in ids


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    place = saved(tmp_path / "mine", results(), curve())
    first = write_report([place]).read_bytes()
    assert write_report([place], tmp_path / "again.html").read_bytes() == first


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    place = saved(tmp_path / "mine", results())
    old = write_report([place]).read_text("utf-8")
    (place / CURVE_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"curve\.json' is not JSON"):
        write_report([place])
    assert (place / PAGE_NAME).read_text("utf-8") == old
    assert sorted(path.name for path in place.iterdir()) == [CURVE_NAME, PAGE_NAME, RESULTS_NAME]


# What must not be told, and what must not run


def hostile_folders(folder: Path) -> list[Path]:
    """A run and a comparison in which every name is hostile."""
    run = results(names=(HOSTILE, f"domain {HOSTILE}"), label_names=[HOSTILE], note=HOSTILE)
    run.final_metrics[HOSTILE] = {HOSTILE: 0.5}
    run.plan["warnings"] = [HOSTILE]
    run.versions[HOSTILE] = HOSTILE
    run.machine["processor"] = HOSTILE
    run.recipe = {HOSTILE: HOSTILE}
    over = curve()
    over.reason, over.warnings = HOSTILE, [f"{HOSTILE} again"]
    other = results(1, learning_rate=0.5)
    name = HOSTILE.replace("/", "")
    return [
        saved(folder / name, run, over),
        saved(folder / "plain", other),
        saved(folder / "compared", compared(methods=(HOSTILE,))),
    ]


def test_names_are_texts_and_nothing_else(tmp_path: Path) -> None:
    path = write_report(hostile_folders(tmp_path), tmp_path / "all.html")
    page = Page(path)
    assert {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "form"} == set()
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert HOSTILE in [cell for row in page.tables["Corpora"] for cell in row]
    assert [HOSTILE, HOSTILE, "–"] in page.tables["Settings that differ"]
    # nothing is loaded from anywhere, and the page forbids it too
    assert all(value.startswith(("#", "data:")) for value in [*page.attributes("href"), *page.attributes("src")])
    assert re.findall(r"https?:", path.read_text("utf-8")) == []
    assert any("default-src 'none'" in value for value in page.attributes("content"))


def test_paths_and_tokens_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, secret = "hf_" + "a1B2" * 9, "my-own-token-of-the-hub"
    monkeypatch.setenv("SOME_API_KEY", "from-the-environment")
    run = results(output_dir="/data/jane/runs/mine", hub_token=secret, note=f"{token} {secret} from-the-environment")
    run.recipe = {"model_name_or_path": "/data/jane/models/base", "corpora": {"law": {"path": "/data/jane/law.csv"}}}
    run.plan["warnings"] = [f"Read /data/jane/law.csv and /home/jane/x.txt with {token}."]
    over = curve()
    over.base, over.finetuned = "/data/jane/models/base", "/data/jane/runs/mine"
    over.reason = f"/data/jane/models/base is best; {secret}."
    folder = tmp_path / "planted"
    text = write_report([saved(folder, run, over), saved(tmp_path / "b", results(1))]).read_text("utf-8")
    for planted in ("jane", token, secret, "from-the-environment", str(tmp_path)):
        assert planted not in text
    for kept in ("planted", "law.csv", "base is best"):
        assert kept in text


# Charts


def test_a_chart_has_texts_for_texts_in_the_colour_of_the_page() -> None:
    series = [
        Series(
            label="_one",
            points=[(0.0, 1.0), (1.0, 3.0)],
            low=[0.5, 2.0],
            high=[2.0, 4.0],
            style={"color": "#123456", "linestyle": "-", "marker": "o"},
        ),
        Series(label="two", points=[(0.0, 2.0)], x_errors=[0.5], style={"color": "#654321", "marker": "s"}),
    ]
    chart = Chart(title="Title", x_name="步 $x$", y_name="a < b", series=series, lines=[("here", 0.5, "-")])
    text = draw_svg(chart, "k")
    assert text.startswith("<svg ")
    assert {"#123456", "#654321"} <= set(re.findall(r"#[0-9a-fA-F]{6}", text))
    for part in (">步 $x$</text>", ">a &lt; b</text>"):
        assert part in text
    # without a colour of their own, texts have that of the page
    assert [found for found in re.findall(r"<text[^>]*>|<g style[^>]*>", text) if "fill" in found] == []
    assert "<style" not in text
    assert draw_svg(chart, "k") == text


def test_a_chart_is_told_to_those_who_do_not_see_it(tmp_path: Path) -> None:
    page = Page(write_report([saved(tmp_path / "mine", results(), curve())]))
    told = [found["aria-label"] for _, found in page.elements if found.get("role") == "img"]
    assert len(told) == 6
    assert (
        "Training loss by corpus: loss against optimizer step, of domain, general. The table has the numbers." in told
    )
    marks = [found["data-mark"] for _, found in page.elements if "data-mark" in found]
    assert {"━━", "━━●", "●", "★", "┃"} <= set(marks)


def test_logarithmic_and_turned_axes_are_drawn() -> None:
    series = [Series(label="loss", points=[(1.0, 1.0), (10.0, 100.0)], style={"color": "#123456", "marker": "o"})]

    def ticks(**settings: Any) -> list[tuple[str, str]]:
        text = draw_svg(Chart(title="t", x_name="x", y_name="y", series=series, **settings), "k")
        return re.findall(r'text-anchor: end[^>]*y="([\d.]+)"[^>]*>([\d.]+)</text>', text)

    plain, turned = ticks(), ticks(turned=(False, True))
    assert [text for _, text in plain] == ["0", "20", "40", "60", "80", "100"]
    assert float(plain[0][0]) > float(plain[-1][0])
    assert float(turned[0][0]) < float(turned[-1][0])
    assert [text for _, text in ticks(logarithmic=(False, True))] == ["1", "2", "5", "10", "20", "50", "100"]


# In a browser

LOOK = (
    MEASURE
    + """
document.querySelectorAll('details').forEach(d => { d.open = true; });
const texts = measureTexts();
const charts = [...document.querySelectorAll('.chart svg')].map(c => { const b = c.getBoundingClientRect();
  return [b.width, b.height, c.querySelectorAll('path').length, c.querySelectorAll('text').length]; });
const colours = [...document.querySelectorAll('.legend li')].map(e =>
  ratio(getComputedStyle(e, '::before').color, ground(e)));
return {texts, charts, colours, background: getComputedStyle(document.body).backgroundColor,
  width: document.documentElement.scrollWidth, wide: [...document.querySelectorAll('.scroll')].filter(
    e => e.scrollWidth > e.clientWidth).length, alerts: document.images.length + document.scripts.length};
"""
)
"""Opens all details, then measures contrasts, sizes and widths."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def shown_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all kinds, with hostile names in it."""
    folder = tmp_path_factory.mktemp("shown")
    return write_report(hostile_folders(folder), folder / "all.html")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_the_page(browser: Any, shown_page: Path, width: int, theme: str) -> None:
    set_screen(browser, width, theme)
    browser.get(shown_page.as_uri())
    found = browser.execute_script(LOOK)
    assert browser.get_log("browser") == []
    assert found["alerts"] == 0
    assert found["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[theme]
    # the page does not scroll sideways: tables that are wider do, in their own boxes
    assert found["width"] == width
    assert found["wide"] > 0 or width > 360
    assert len(found["charts"]) >= 12
    for across, up, paths, texts in found["charts"]:
        assert 250 < across <= width
        assert 0.5 < up / across < 0.8
        assert paths > 5
        assert texts > 5
    # WCAG 2.2: 4.5 for texts, 3 for what charts are read by
    assert [text for text in found["texts"] if text[0] < 4.5] == []
    assert min(found["colours"]) >= 3
    assert len(found["colours"]) >= 24
    assert [text for text in found["texts"] if text[1] < 9] == []
    assert len(found["texts"]) > 300
