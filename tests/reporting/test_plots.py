"""Pictures are whole files that show something."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb, to_rgba_array
from matplotlib.figure import Figure
from toys import alpha_curve, measured

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, constant, linear
from hf_interp.reporting import plots
from hf_interp.reporting.charts import PANEL_SIZE, Chart, Series, draw_panels
from hf_interp.reporting.colours import ALPHA, DOMAIN, GENERAL, NEUTRAL, OTHERS
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.plots import plot_comparison, plot_curve, plot_plan, plot_run, plot_tuning
from hf_interp.reporting.results import Comparison, RunResults, main_metric

PNG = b"\x89PNG\r\n\x1a\n"


def plan(*corpora: CorpusSpec, schedule: AlphaSchedule | None = None, max_steps: int = 20) -> MixturePlan:
    if not corpora:
        corpora = (
            CorpusSpec(name="web", side="general", num_examples=100),
            CorpusSpec(name="law", side="domain", num_examples=30),
        )
    return MixturePlan(corpora, alpha_schedule=schedule or linear(), batch_size=4, max_steps=max_steps)


def run_results(sets: tuple[str, ...] = ("general", "domain")) -> RunResults:
    log: list[dict[str, Any]] = []
    for step in range(1, 6):
        log.append({"step": step, "loss": 1.0, "alpha": step / 5, "share_web": 1 - step / 5, "share_law": step / 5})
        log[-1] |= {"loss_web": 1 / step, "loss_law": 2 / step}
        for name in sets:
            prefix = f"eval_{name}" if name else "eval"
            log.append({"step": step, f"{prefix}_accuracy": step / 9, f"{prefix}_loss": 1.0, f"{prefix}_runtime": 1.0})
    return RunResults.from_log(config={}, plan=plan().summary(), log_history=log)


def comparison() -> Comparison:
    found = {"domain": {"accuracy": 0.5}, "general": {"accuracy": 0.9}}
    rows: list[dict[str, Any]] = [{"method": "M₀", "seed": 0, "metrics": found, "forgetting": {}, "curve": []}]
    for method in ("domain only", "scheduled α"):
        for seed in (0, 1):
            curve: list[dict[str, Any]] = [{"step": 0, "domain_accuracy": 0.5}, {"step": 0, "general_accuracy": 0.9}]
            curve += [{"step": step, "alpha": step / 4, "domain_share": step / 4} for step in range(1, 5)]
            curve += [{"step": 4, "domain_accuracy": 0.8 + seed / 10}, {"step": 4, "general_accuracy": 0.7}]
            rows.append({"method": method, "seed": seed, "metrics": found, "forgetting": {}, "curve": curve})
    return Comparison(rows=rows, settings={})


def curve(metric: str = "accuracy", **changes: Any) -> AlphaCurve:
    values = {
        "domain": {"accuracy": [0.5, 0.8, 0.9, 0.85], "perplexity": [90.0, 8.0, 4.0, 5.0]},
        "general": {"accuracy": [0.9, 0.88, 0.8, 0.4], "perplexity": [9.0, 10.0, 20.0, 99.0]},
    }
    sides = [{name: measured(found, 0.01) for name, found in metrics.items()} for metrics in values.values()]
    found: dict[str, Any] = {"metric": metric, "reason": "", "knee": 0.25, "confidence_interval": [0.25, 0.5]}
    return alpha_curve(*sides, **{"alphas": [0.0, 0.25, 0.5, 1.0], **found, **changes})


def texts(figure: Figure, axes: int) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of the test, which are kept instead of written."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def labels(figure: Figure, axes: int) -> list[str]:
    return figure.axes[axes].get_legend_handles_labels()[1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_plan(plan(), path),
        lambda path: plot_run(run_results(), path),
        lambda path: plot_comparison(comparison(), path, "accuracy"),
        lambda path: plot_curve(curve(), path),
    ],
)
def test_a_picture_is_written_whole(tmp_path: Path, draw: Any) -> None:
    path = tmp_path / "pictures" / "one.png"
    draw(path)
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert len(content) > 10_000
    draw(str(path))  # over the first
    assert path.read_bytes().startswith(PNG)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("plain", PNG), ("a.PNG", PNG)])
def test_the_name_tells_the_format(tmp_path: Path, name: str, begin: bytes) -> None:
    plot_plan(plan(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_an_unknown_format_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'xyz' is not supported"):
        plot_plan(plan(), tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_shows_alpha_and_passes(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_plan(plan(schedule=linear(0.25, 0.75)), tmp_path / "plan.png")
    left, right = drawn[0].axes
    steps, alpha = left.lines[0].get_data()
    assert list(steps) == list(range(20))
    assert [alpha[0], alpha[-1]] == pytest.approx([0.25, 0.75])
    assert labels(drawn[0], 1) == ["web (general)", "law (domain)"]
    ends = [line.get_ydata()[-1] for line in right.lines]
    assert ends == [pytest.approx(40 / 100), pytest.approx(40 / 30)]


def test_the_shares_of_a_plan_are_those_it_draws(tmp_path: Path, drawn: list[Figure]) -> None:
    corpora = [CorpusSpec(name=name, side="domain", num_examples=9) for name in ("law", "acts")]
    web = CorpusSpec(name="web", side="general", num_examples=9)
    plot_plan(plan(*corpora, web, schedule=constant(0.5), max_steps=6), tmp_path / "plan.png")
    assert list(drawn[0].axes[0].lines[1].get_ydata()) == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("max_steps", [1, 2, 400, 401, 100_000])
def test_runs_of_any_length_are_drawn(tmp_path: Path, drawn: list[Figure], max_steps: int) -> None:
    plot_plan(plan(max_steps=max_steps), tmp_path / "plan.png")
    steps = list(drawn[0].axes[0].lines[0].get_xdata())
    assert (steps[0], steps[-1]) == (0, max_steps - 1)
    assert len(steps) == min(max_steps, 400)
    assert steps == sorted(set(steps))


def test_a_stream_is_counted_in_examples(tmp_path: Path, drawn: list[Figure]) -> None:
    law = CorpusSpec(name="law", side="domain", num_examples=None)
    web = CorpusSpec(name="web", side="general", num_examples=10)
    plot_plan(plan(web, law), tmp_path / "plan.png")
    axes = drawn[0].axes[1]
    assert axes.get_ylabel() == "passes (streams: examples)"
    assert [line.get_ydata()[-1] for line in axes.lines] == [4.0, 40]


def test_a_run_shows_data_losses_and_evaluation(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_run(run_results(), tmp_path / "run.png")
    assert labels(drawn[0], 0) == ["α", "share of web", "share of law"]
    assert labels(drawn[0], 1) == ["law", "web"]
    assert labels(drawn[0], 2) == ["domain", "general"]
    assert drawn[0].axes[2].get_ylabel() == "accuracy"
    assert list(drawn[0].axes[2].lines[1].get_ydata()) == pytest.approx([step / 9 for step in range(1, 6)])


def test_a_run_with_one_unnamed_evaluation_set_shows_it(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_run(run_results(("",)), tmp_path / "run.png")
    assert list(drawn[0].axes[2].lines[0].get_ydata()) == pytest.approx([step / 9 for step in range(1, 6)])


def test_a_run_without_evaluation_is_drawn(tmp_path: Path) -> None:
    plot_run(run_results(()), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_comparison_shows_mean_and_range_of_the_trained(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_comparison(comparison(), tmp_path / "comparison.png", "accuracy")
    _, domain, general = drawn[0].axes
    assert [labels(drawn[0], index) for index in (1, 2)] == [["domain only", "scheduled α"]] * 2
    assert labels(drawn[0], 0) == [
        f"{method}: {what}" for method in ("domain only", "scheduled α") for what in ("α", "drawn")
    ]
    assert list(domain.lines[0].get_xdata()) == [0, 4]
    assert list(domain.lines[0].get_ydata()) == pytest.approx([0.5, 0.85])
    assert list(general.lines[1].get_ydata()) == pytest.approx([0.9, 0.7])
    band = domain.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.5, 0.9))


def test_a_curve_shows_both_sides_and_the_choice(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curve(curve(), tmp_path / "curve.png")
    left = drawn[0].axes[0]
    legend = left.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "domain, with 95% intervals",
        "general, with 95% intervals",
        "95% interval of the best α: 0.25 to 0.5",
        "chosen: α = 0.5",
        "knee: α = 0.25",
    ]
    assert list(left.lines[0].get_ydata()) == [0.5, 0.8, 0.9, 0.85]
    band = left.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.5 - 0.0196, 0.9 + 0.0196))
    ticks = [label.get_text() for label in left.get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("0\nM₀", "1\nM_θ")


def test_a_curve_shows_the_sides_against_each_other(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curve(curve(), tmp_path / "curve.png")
    assert labels(drawn[0], 1) == ["M_α along α", "Pareto frontier", "chosen: α = 0.5"]
    path, front = drawn[0].axes[1].lines[:2]
    assert list(path.get_xdata()) == [0.9, 0.88, 0.8, 0.4]
    assert list(front.get_xdata()) == [0.8, 0.88, 0.9]
    assert texts(drawn[0], 1) == ["M₀", "M_θ", "α = 0.5", "0.25"]


def test_losses_are_turned_and_wide_ones_drawn_on_logarithms(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_curve(curve(), tmp_path / "curve.png")
    plot_curve(curve("perplexity"), tmp_path / "curve.png")
    accuracy, perplexity = (figure.axes for figure in drawn)
    assert [axes.yaxis_inverted() for axes in (*accuracy, *perplexity)] == [False, False, False, True]
    assert [axes.xaxis_inverted() for axes in (*accuracy, *perplexity)] == [False, False, False, True]
    assert [axes.get_yscale() for axes in (*accuracy, *perplexity)] == ["linear", "linear", "log", "log"]
    assert list(perplexity[1].lines[1].get_xdata()) == [9.0, 10.0, 20.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"knee": None, "confidence_interval": None},
        {"knee": 0.5, "confidence_interval": [0.5, 0.5]},
        {"alpha": 0.0},
        {"alphas": [-0.5, 0.0, 0.9, 1.6], "alpha": 1.6},
        {"alphas": [0.41, 0.42, 0.43, 0.44], "alpha": 0.42},
    ],
)
def test_curves_of_all_kinds_are_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    plot_curve(curve("perplexity", **changes), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_a_curve_without_standard_errors_or_with_one_alpha_is_drawn(tmp_path: Path) -> None:
    for alphas in ([0.5], [0.0, 0.5, 1.0]):
        flat = {"accuracy": {"values": [0.5] * len(alphas), "std_errors": [None] * len(alphas)}}
        found = curve(alphas=alphas, report={"domain": flat, "general": flat})
        plot_curve(found, tmp_path / "curve.png")
        assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"a": {"loss": 1, "f1": 1, "accuracy": 1}}, "accuracy"),
        ({"a": {"loss": 1, "f1": 1}, "b": {"accuracy": 1}}, "accuracy"),
        ({"a": {"loss": 1, "f1": 1, "recall": 1}}, "f1"),
        ({"a": {"runtime": 1, "loss": 1, "samples_per_second": 1}}, "loss"),
        ({"a": {"runtime": 1}}, None),
        ({}, None),
    ],
)
def test_the_metric_to_draw(metrics: dict[str, dict[str, float]], expected: str | None) -> None:
    assert main_metric(metrics) == expected


# Colours


def colours(figure: Figure) -> dict[tuple[int, str], str]:
    """The colour of every line, band and range, by panel and label; bands have the label of no other."""
    found: dict[tuple[int, str], str] = {}
    for place, axes in enumerate(figure.axes):
        for artist in (*axes.lines, *axes.collections, *axes.patches):
            shown = artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor()
            found[place, f"{artist.get_label()}"] = to_hex(np.atleast_2d(to_rgba_array(shown))[0]).upper()
    return found


@pytest.mark.parametrize(
    ("draw", "domain", "general"),
    [
        (lambda: plot_plan(plan(), ""), [(0, "domain share (drawn)"), (1, "law (domain)")], [(1, "web (general)")]),
        (
            lambda: plot_run(run_results(), ""),
            [(0, "share of law"), (1, "law"), (2, "domain")],
            [(0, "share of web"), (1, "web"), (2, "general")],
        ),
        (lambda: plot_comparison(comparison(), ""), [], []),
        (
            lambda: plot_curve(curve(), ""),
            [(0, "domain, with 95% intervals")],
            [(0, "general, with 95% intervals")],
        ),
        (
            lambda: plot_tuning(tuning_trials(), "", best=tuning_trials()[2], base=[0.5, 0.9], metric="accuracy"),
            [],
            [],
        ),
    ],
)
def test_each_side_has_one_colour_which_nothing_else_has(
    drawn: list[Figure], draw: Any, domain: list[tuple[int, str]], general: list[tuple[int, str]]
) -> None:
    draw()
    found = {key: colour for key, colour in colours(drawn[0]).items() if not key[1].startswith("_")}
    assert sorted(key for key, colour in found.items() if colour == DOMAIN) == domain
    assert sorted(key for key, colour in found.items() if colour == GENERAL) == general
    assert len(found) >= 4


def test_bands_have_the_colour_of_their_line(drawn: list[Figure]) -> None:
    plot_curve(curve(), "")
    bands = drawn[0].axes[0].collections
    assert [to_hex(band.get_facecolor()[0]).upper() for band in bands] == [DOMAIN, GENERAL]


def test_methods_differ_by_marker_and_look_alike_in_all_panels(drawn: list[Figure]) -> None:
    plot_comparison(comparison(), "")
    looks = [
        {line.get_label(): (line.get_marker(), line.get_color()) for line in axes.lines} for axes in drawn[0].axes[1:]
    ]
    assert looks[0] == looks[1]
    assert len({marker for marker, _ in looks[0].values()}) == len(looks[0]) == 2
    drawn_shares = {line.get_label(): (line.get_marker(), line.get_color()) for line in drawn[0].axes[0].lines}
    assert all(drawn_shares[f"{method}: drawn"] == look for method, look in looks[0].items())


def test_colours_stand_out_on_light_and_dark_grounds() -> None:
    def light(colour: str) -> float:
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05

    for colour in (DOMAIN, GENERAL, ALPHA, NEUTRAL, *OTHERS):
        assert light("#ffffff") / light(colour) >= 3
        assert light(colour) / light("#14171a") >= 3


def tuning_trials() -> list[dict[str, Any]]:
    values = [(0.5, 0.5, 0.9), (None, 0.1, 0.1), (0.8, 0.8, 0.85), (0.7, 0.9, 0.5), (0.6, 0.6, 0.9)]
    trials: list[dict[str, Any]] = []
    for objective, domain, general in values:
        feasible = general > 0.8
        trials.append({"objective": objective, "feasible": feasible, "domain": domain, "general": general})
        trials[-1]["own"] = len(trials) == 1
    return trials


def drawn_tuning(monkeypatch: pytest.MonkeyPatch, base: list[float | None], metric: str = "accuracy") -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    trials = tuning_trials()
    plot_tuning(trials, "tuning.png", best=trials[2], base=base, metric=metric)
    return figures[0]


def test_a_search_shows_its_trials_and_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_tuning(monkeypatch, [0.5, 0.9])
    objective, sides = ({line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figure.axes)
    assert objective["trials"] == [[0, 0.5], [2, 0.8], [4, 0.6]]
    assert [point[0] for point in objective["not feasible"]] == [1, 3]
    assert objective["the recipe's own"] == [[0, 0.5]]
    assert objective["best"] == [[2, 0.8]]
    assert [point[1] for point in objective["best so far"]] == [0.5, 0.5, 0.8, 0.8, 0.8]
    assert sides["best"] == [[0.85, 0.8]]
    assert sides["not feasible"] == [[0.1, 0.1], [0.5, 0.9]]
    assert sides["M₀"] == [[0.9, 0.5]]
    assert not figure.axes[1].xaxis_inverted()


def test_a_search_by_loss_turns_the_axes_of_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, sides = drawn_tuning(monkeypatch, [0.5, 0.9], "loss").axes
    assert (objective.yaxis_inverted(), sides.xaxis_inverted(), sides.yaxis_inverted()) == (False, True, True)


def test_a_search_on_one_side_has_one_panel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(drawn_tuning(monkeypatch, [0.5, None]).axes) == 1
    monkeypatch.undo()
    trials = tuning_trials()
    plot_tuning(trials, tmp_path / "tuning.png", best=trials[2], base=[0.5, 0.9], metric="accuracy")
    assert (tmp_path / "tuning.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(0, 1, 1), (1, 1, 1), (4, 1, 4), (5, 2, 3), (8, 2, 4), (9, 3, 3)]
)
def test_charts_stand_in_rows_of_four_at_the_most(count: int, rows: int, columns: int) -> None:
    series = [Series(label="a", points=[(0.0, 1.0), (1.0, 2.0)], style={"color": ALPHA, "linestyle": "-"})]
    figure = draw_panels([Chart(title=f"chart {n}", x_name="x", y_name="y", series=series) for n in range(count)])
    width, height = PANEL_SIZE
    assert tuple(figure.get_size_inches()) == pytest.approx((width * columns, height * rows))
    assert [axes.get_title() for axes in figure.axes if axes.lines] == [f"chart {n}" for n in range(count)]
    assert len(figure.axes) == max(count, 1)
