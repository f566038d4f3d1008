"""A model's metric by group, and the α that keeps a limit on the gap."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_interp import cli
from hf_interp.commands.demo import ToyShift
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.results import load_run_results
from hf_interp.selection.choice import AlphaSearch, choose_alpha
from hf_interp.selection.groups import MIN_ROWS, compare_groups, read_groups
from hf_interp.selection.scoring import halves
from hf_interp.train import run_recipe

# Who is of which group.


def members(columns: dict[str, list[Any]]) -> dict[str, dict[str, list[int]]]:
    found = read_groups(columns)
    return {column: {name: mask.nonzero()[0].tolist() for name, mask in found[column].items()} for column in found}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["f", "m", None, "", "f"], {"f": [0, 4], "m": [1]}),
        ([["f", "old"], [], ["old", None], "f", ["m"]], {"f": [0, 3], "m": [4], "old": [0, 2]}),
        ([True, False, None, True], {"deaf": [0, 3], "not deaf": [1]}),
        ([1, 0, 0, 1], {"deaf": [0, 3], "not deaf": [1, 2]}),
        ([0.5, 0.49, float("nan"), 1.0, 0.0], {"deaf": [0, 3], "not deaf": [1, 4]}),
        ([18, 40, 18], {"18": [0, 2], "40": [1]}),
    ],
)
def test_cells_name_groups(cells: list[Any], expected: dict[str, list[int]]) -> None:
    assert members({"deaf": cells}) == {"deaf": expected}


@pytest.mark.parametrize("cells", [["f", "f"], [None, ""], [True, True], [f"text {row}" for row in range(201)]])
def test_a_column_without_groups_to_compare_is_refused(cells: list[Any]) -> None:
    with pytest.raises(ValueError, match="The column 'x' must have 2 to 200 groups, got "):
        read_groups({"x": cells})


# What is measured, against slow definitions.

SIZE = 400
DRAW = np.random.default_rng(5)
LABELS = DRAW.random(SIZE) < 0.4
SCORES = np.round(DRAW.normal(size=SIZE) + LABELS, 1)  # with ties
NAMES = DRAW.choice(["a", "b", "c", "few"], size=SIZE, p=[0.4, 0.35, 0.2, 0.05])
ROWS = np.sort(DRAW.permutation(SIZE)[:350])
HITS = ((SCORES > 0) == LABELS).astype(float)


def auc(positives: Any, negatives: Any) -> float:
    pairs = [1.0 if high > low else 0.5 if high == low else 0.0 for high, low in product(positives, negatives)]
    return float(np.mean(pairs))


@pytest.fixture(scope="module")
def account() -> dict[str, Any]:
    masks = read_groups({"name": NAMES.tolist()})["name"]
    return compare_groups(masks, ROWS, lambda rows: HITS[rows], "accuracy", False, (SCORES, LABELS))


def test_a_group_is_measured_by_its_own_rows(account: dict[str, Any]) -> None:
    for name in "abc":
        inside = np.array([row for row in ROWS if NAMES[row] == name])
        outside = np.array([row for row in ROWS if NAMES[row] != name])
        found = account["groups"][name]
        assert found["num"] == len(inside)
        interval = binomtest(int(HITS[inside].sum()), len(inside)).proportion_ci(method="wilson")
        assert found["value"] == pytest.approx(HITS[inside].mean())
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-4)
        positive, negative = inside[LABELS[inside]], inside[~LABELS[inside]]
        assert found["selection_rate"] == pytest.approx((SCORES[inside] > 0).mean())
        assert found["true_positive_rate"] == pytest.approx((SCORES[positive] > 0).mean())
        assert found["false_positive_rate"] == pytest.approx((SCORES[negative] > 0).mean())
        assert found["subgroup_auc"] == pytest.approx(auc(SCORES[positive], SCORES[negative]))
        assert found["bpsn_auc"] == pytest.approx(auc(SCORES[outside[LABELS[outside]]], SCORES[negative]))
        assert found["bnsp_auc"] == pytest.approx(auc(SCORES[positive], SCORES[outside[~LABELS[outside]]]))


def test_the_gap_is_that_of_the_groups_with_enough_rows(account: dict[str, Any]) -> None:
    values = {name: HITS[ROWS][NAMES[ROWS] == name].mean() for name in "abc"}
    order = sorted(values, key=lambda name: values[name])
    assert list(account["groups"]) == order
    assert (account["worst"], account["best"]) == (order[0], order[-1])
    assert account["too_small"] == {"few": int((NAMES[ROWS] == "few").sum())}
    assert account["too_small"]["few"] < MIN_ROWS
    assert account["gap"] == pytest.approx(max(values.values()) - min(values.values()))
    least, most = account["groups"][order[0]], account["groups"][order[-1]]
    below = ((most["value"] - most["low"]) ** 2 + (least["high"] - least["value"]) ** 2) ** 0.5
    above = ((most["high"] - most["value"]) ** 2 + (least["value"] - least["low"]) ** 2) ** 0.5
    ends = (account["gap"] - below, account["gap"] + above)
    assert (account["gap_low"], account["gap_high"]) == pytest.approx(ends)


def test_parities_are_the_widest_differences_between_groups(account: dict[str, Any]) -> None:
    rates = {
        key: [group[key] for group in account["groups"].values()]
        for key in ("selection_rate", "true_positive_rate", "false_positive_rate")
    }
    spread = {key: max(found) - min(found) for key, found in rates.items()}
    assert account["demographic_parity"] == spread["selection_rate"]
    assert account["equalised_odds"] == max(spread["true_positive_rate"], spread["false_positive_rate"])


def test_of_a_loss_the_worst_group_has_most() -> None:
    masks = read_groups({"name": NAMES.tolist()})["name"]
    found = compare_groups(masks, ROWS, lambda rows: 1 - HITS[rows] + 0.25, "loss", True)
    values = {name: group["value"] for name, group in found["groups"].items()}
    assert values[found["worst"]] == max(values.values())
    assert found["gap"] == pytest.approx(max(values.values()) - min(values.values()))
    assert "equalised_odds" not in found
    for group in found["groups"].values():  # by standard errors, as a loss is no share
        assert group["high"] - group["value"] == pytest.approx(group["value"] - group["low"])


def test_a_class_that_a_group_lacks_leaves_its_rates_unknown() -> None:
    masks = read_groups({"all": [1] * 40 + [0] * 40})["all"]
    labels = np.array([True] * 40 + [False, True] * 20)
    scores = np.where(labels, 1.0, -1.0)
    found = compare_groups(masks, np.arange(80), lambda rows: np.ones(len(rows)), "accuracy", False, (scores, labels))
    assert found["groups"]["all"]["false_positive_rate"] is None
    assert found["groups"]["all"]["subgroup_auc"] is None
    assert found["equalised_odds"] == 0.0  # of the rate that both have


# The choice of α.


@pytest.mark.parametrize(
    ("limit", "forgetting", "gaps", "expected", "words"),
    [
        (0.05, 1.0, [0.01, 0.05, 0.06, 0.2], 1 / 3, "and whose group gap is at most 0.05"),
        (0.2, 1.0, [0.01, 0.05, 0.06, 0.2], 1.0, "and whose group gap is at most 0.2"),
        (0.2, 0.25, [0.01, 0.05, 0.06, 0.2], 2 / 3, "falls by at most 0.25"),
        (0.0, 1.0, [0.3, 0.2, 0.1, 0.4], 2 / 3, "and whose group gap is least (0.1, above 0)"),
        (0.05, 0.1, [0.3, 0.2, 0.04, 0.04], 1 / 3, "and whose group gap is least (0.2, above 0.05)"),
    ],
)
def test_the_limit_on_the_gap_is_kept(
    limit: float, forgetting: float, gaps: list[float], expected: float, words: str
) -> None:
    choice = choose_alpha(
        [0.0, 1 / 3, 2 / 3, 1.0],
        [0.5, 0.6, 0.7, 0.8],
        [0.9, 0.8, 0.7, 0.6],
        AlphaSearch(objective="constrained", max_forgetting=forgetting, max_group_gap=limit, prefer_trained=False),
        group_gaps=gaps,
    )
    assert choice.alpha == expected
    assert words in choice.reason


def test_the_interval_and_the_trained_model_keep_the_limit() -> None:
    noise = np.random.default_rng(0).normal(size=200)
    units = np.stack([noise + 0.001 * place for place in range(3)])
    search = AlphaSearch(objective="constrained", max_forgetting=9.0)
    free = choose_alpha([0.0, 0.5, 1.0], units, units, search)
    limited = replace(search, max_group_gap=0.1)
    kept = choose_alpha([0.0, 0.5, 1.0], units, units, limited, group_gaps=[0.0, 0.1, 0.2])
    assert (free.alpha, kept.alpha) == (1.0, 0.5)
    assert kept.confidence_interval is not None
    assert kept.confidence_interval[1] == 0.5


@pytest.mark.parametrize(
    ("gap", "leak", "expected", "words"),
    [
        (0.2, 0.65, 1.0, "whose group gap is at most 0.2 and whose leakage is at most 0.65"),
        (0.2, 0.55, 0.0, "only α whose general metric falls by at most 1 from 0.9 at α = 0 and whose group gap is at"),
        (0.1, 0.6, 0.0, "whose group gap is at most 0.1 and whose leakage is at most 0.6"),
        (0.01, 0.5, 0.0, "group gap is least (0.05, above 0.01) and whose leakage is at most 0.5"),
        (0.1, 0.7, 0.5, "leakage is at most 0.7"),
    ],
)
def test_both_limits_are_kept_together(gap: float, leak: float, expected: float, words: str) -> None:
    choice = choose_alpha(
        [0.0, 0.5, 1.0],
        [0.5, 0.6, 0.7],
        [0.9, 0.8, 0.7],
        AlphaSearch(objective="constrained", max_forgetting=1, max_group_gap=gap, max_leakage=leak),
        group_gaps=[0.05, 0.1, 0.2],
        leakage=[0.5, 0.7, 0.65],
    )
    assert choice.alpha == expected
    assert words in choice.reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_group_gap": 0.1}, "`max_group_gap` needs the objective 'constrained', got 'domain'"),
        (
            {"objective": "constrained", "max_group_gap": -0.1},
            "`max_group_gap` must be at least 0 and finite, got -0.1",
        ),
    ],
)
def test_limits_that_are_none_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlphaSearch(**settings)


# A run.

COUNT = 210


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory,
    make_recipe: Callable[[Path], dict[str, Any]],
    toy_shift: ToyShift,
) -> dict[str, Any]:
    """A recipe with a set whose rows have groups, with what it wrote in its `output_dir`."""
    folder = tmp_path_factory.mktemp("groups")
    rows = list(toy_shift.sentences("domain", COUNT, split="test", noisy=False))
    for place, row in enumerate(rows):
        row |= {"gender": "fm"[place % 2], "old": place % 7 < 3}
    (folder / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = make_recipe(folder / "out")
    found["eval_corpora"]["people"] = {"path": str(folder / "people.jsonl"), "group_columns": ["gender", "old"]}
    found["alpha_search"] = {"objective": "constrained", "max_group_gap": 1.0, "max_forgetting": 1.0, "alphas": 3}
    found |= {"validation_corpora": found["eval_corpora"], "learning_rate": 1e-2}
    run_recipe(found)
    return found


def test_a_run_tells_its_groups(recipe: dict[str, Any]) -> None:
    folder = Path(recipe["output_dir"])
    results, curve = load_run_results(folder / "results.json"), load_curve(folder / "curve.json")
    final = results.groups["people"]["final"]
    assert {name: group["num"] for name, group in final["gender"]["groups"].items()} == {"f": 105, "m": 105}
    halves_of_all = [final["gender"]["groups"][name]["value"] for name in "fm"]
    assert np.mean(halves_of_all) == pytest.approx(results.final_metrics["people"]["accuracy"])
    start = results.groups["people"]["base"]["old"]["groups"]
    weighted = sum(group["num"] * group["value"] for group in start.values()) / COUNT
    assert weighted == pytest.approx(results.base_metrics["people"]["accuracy"])
    assert len(curve.groups["people"]) == len(curve.alphas) == 3
    old = curve.groups["people"][0]["old"]
    second = halves(COUNT, 0, "people")[1]
    told = old["groups"] | {name: {"num": size} for name, size in old["too_small"].items()}
    assert told["old"]["num"] == sum(row % 7 < 3 for row in second)


@pytest.mark.slow
def test_card_report_and_commands_tell_the_gap(recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(recipe["output_dir"])
    card = (folder / "README.md").read_text("utf-8")
    assert "This run measured it by group" in card
    assert "examined neither them nor the model for bias" not in card
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert cli.main(["curve", str(folder), "--alpha_search.alphas", "2"]) == 0
    text = capsys.readouterr().out
    curve = load_curve(folder / "curve.json")
    gap = f"{curve.groups['people'][-1]['gender']['gap']:.4f} ("
    assert gap in card
    assert gap in text
    assert "Gap between groups of gender (people)" in page
    assert "by gender in people (out)" in page


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("people", {"group_columns": ["gendre"]}, r"has no column 'gendre'; it has .*Did you mean 'gender'\?"),
        ("people", {"group_columns": ["text"]}, "must have 2 to 200 groups"),
        ("people", {"group_columns": "gender"}, "`group_columns` in `eval_corpora.people` must be list"),
        ("people", {"group_columns": None}, "`alpha_search.max_group_gap` needs groups: name `group_columns`"),
        ("people", {"max_examples": 40}, "needs two groups of at least 30 rows in the half of 'people'"),
        ("corpora", {"group_columns": ["text"]}, "`corpora.domain.group_columns` must be of an evaluation set"),
    ],
)
def test_groups_that_cannot_be_are_refused_before_training(
    recipe: dict[str, Any], tmp_path: Path, group: str, changes: dict[str, Any], message: str
) -> None:
    found = {**recipe, "output_dir": str(tmp_path / "out"), "validation_corpora": None}
    place, name = ("corpora", "domain") if group == "corpora" else ("eval_corpora", "people")
    found[place] = {**recipe[place], name: {**recipe[place][name], **changes}}
    with pytest.raises(ValueError, match=message) as error:
        run_recipe(found)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("command", [["compare", "--seeds", "0"], ["tune", "--trials", "1"]])
def test_commands_that_measure_no_groups_refuse_the_limit(
    recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    path = write_recipe({**recipe, "output_dir": str(tmp_path / "out")})
    assert cli.main([command[0], str(path), *command[1:]]) == 2
    assert "`alpha_search.max_group_gap` is not known to" in capsys.readouterr().err
