"""The best amounts of the comparison, and what can be told of them before training."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from effect import advice, methods, pairs, schedule, training
from test_effect import toy_pair  # noqa: F401

from hf_interp.commands.advice import Advice, load_advice
from hf_interp.utils.files import read_json, write_json

BEST = {"sentiment-finance": 0.4, "sentiment-airlines": 0.5, "ner-tweets": 0.6, "ner-finance": 0.7, "lm-law": 0.8}
"""What the made-up results are best at."""


def law(pair: str, amount: float) -> dict[str, float]:
    """Validation metrics of a run: a parabola for accuracies, exponentials for losses, best at the same place."""
    best = BEST[pair]
    if pairs.PAIRS[pair].metric == "loss":
        return {"domain": 2 + math.exp(-4 * (amount - best)), "general": 2 + math.exp(4 * (amount - best))}
    return {"domain": 0.7 + 0.2 * amount, "general": 0.9 - 0.2 * amount - 2 * (amount - best) ** 2}


def fake_results(folder: Path, *, names: Mapping[str, float] = BEST, sizes: tuple[Any, ...] = (300,)) -> None:
    """Constant mixtures of some pairs, with two seeds; at another learning rate all is worse and best elsewhere."""
    for name in names:
        pair = pairs.PAIRS[name]
        for method, amount in advice.AMOUNTS.items():
            rates = schedule.grid(pair, methods.METHODS[method])
            for size in sizes:
                for seed in (0, 1):
                    for rate in rates if seed == 0 else rates[1:2]:
                        worse = 0.0 if rate == rates[1] else 3.0 * (1 if pair.metric == "loss" else -1)
                        found = {side: value + worse * amount for side, value in law(name, amount).items()}
                        key = training.Run(pair=name, size=size, method=method, learning_rate=rate, seed=seed)
                        entry = {**vars(key), "num_domain": 300 if size == 300 else 1200, "validation": found}
                        write_json(key.path(folder), entry)


def distance(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value, value], "num_examples": 300, "losses": {"general": 1.0, "domain": 2.0}}


def fake_distances(sizes: tuple[Any, ...] = (300,)) -> advice.Distances:
    """Distances of which the best amounts are a half."""
    return {name: {str(size): distance(2 * best) for size in sizes} for name, best in BEST.items()}


def test_the_best_amount_is_where_the_results_are_best(tmp_path: Path) -> None:
    fake_results(tmp_path)
    found = {each.pair: each for each in advice.find_amounts(schedule.load(tmp_path))}
    assert {name: each.best for name, each in found.items()} == pytest.approx(BEST, abs=0.006)
    assert found["ner-tweets"].best_of_seeds == pytest.approx((0.6, 0.6))
    assert (found["ner-tweets"].num_domain, found["ner-tweets"].num_examples) == (300, 150 * 16)
    assert found["ner-tweets"].regret(0.8) == pytest.approx(0.04)  # the mean of both sides falls by (α − 0.6)²
    assert found["ner-tweets"].regret(0.6) == pytest.approx(0.0, abs=1e-9)


def test_seeds_are_taken_that_all_amounts_have(tmp_path: Path) -> None:
    fake_results(tmp_path)
    (tmp_path / "ner-tweets" / "300_constant-0.75_0.0002_1.json").unlink()
    (tmp_path / "ner-finance" / "300_constant-0.75_0.0002_0.json").unlink()  # without which no rate is chosen
    found = {each.pair: each for each in advice.find_amounts(schedule.load(tmp_path))}
    assert len(found["ner-tweets"].best_of_seeds) == 1
    assert "ner-finance" not in found


@pytest.mark.parametrize(("values", "best"), [((0.1, 0.2, 0.3, 0.4), 1.0), ((0.4, 0.1, 0.1, 0.3), 0.25)])
def test_a_curve_without_a_top_is_best_at_an_end(values: tuple[float, ...], best: float) -> None:
    run = {amount: {"domain": v, "general": v} for amount, v in zip(advice.AMOUNTS.values(), values, strict=True)}
    assert advice.GRID[advice.fit_curve("accuracy", [run]).argmax()] == best


def test_losses_follow_the_law_of_mixtures() -> None:
    run = {amount: law("lm-law", amount) for amount in advice.AMOUNTS.values()}
    expected = [-(2 + math.cosh(4 * (amount - 0.8))) for amount in advice.GRID]
    assert advice.fit_curve("loss", [run]) == pytest.approx(np.array(expected), abs=1e-3)


def test_features_are_those_of_the_cell(tmp_path: Path) -> None:
    fake_results(tmp_path, names={"ner-tweets": 0.6}, sizes=(300, "full"))
    found = advice.find_amounts(schedule.load(tmp_path))
    few, many = advice.cases_of(found, fake_distances((300, "full")))
    assert few.features == {"distance": 1.2, "loss_ratio": math.log(2), "log_passes": math.log(8)}
    assert many.features["log_passes"] == math.log(2)
    with pytest.raises(ValueError, match="The distance of ner-tweets with full examples is not known"):
        advice.cases_of(found, fake_distances())


def test_the_fit_is_written_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_results(tmp_path / "results")
    write_json(tmp_path / "distances.json", fake_distances())
    monkeypatch.setattr(advice, "DISTANCES", tmp_path / "distances.json")
    argv = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "advice.json")]
    assert advice.main(argv) == 0
    fitted = load_advice(tmp_path / "advice.json")
    assert isinstance(fitted, Advice)
    assert (fitted.num_pairs, fitted.num_cases, fitted.helps) == (5, 5, True)
    assert fitted.mean == pytest.approx(0.6, abs=0.01)
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in out.splitlines()]
    tweets = next(row for row in rows if row[0] == "entities: Wikipedia → tweets")
    assert tweets[1:7] == ["300", "1.20", "2.00", "8.00", "0.60", "0.60–0.60 (2)"]
    always = next(row for row in rows if row[0] == "always 0.5")
    assert always[1] == f"{math.sqrt((0.01 + 0 + 0.01 + 0.04 + 0.09) / 5):.3f}"
    assert always[2] == f"{100 * (0.01 + 0 + 0.01 + 0.04) / 4:.2f}"  # points, of the four pairs with accuracies or F1
    assert always[3] == f"{math.cosh(1.2) - 1:.4f}"  # nats, of the one with losses
    assert "5 cells of 5 pairs; mean of the best α over pairs: 0.60." in out
    assert "the regression was better than the mean of the others" in out


def test_a_fit_needs_three_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "distances.json", fake_distances())
    monkeypatch.setattr(advice, "DISTANCES", tmp_path / "distances.json")
    argv = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "advice.json")]
    assert advice.main(argv) == 0
    assert capsys.readouterr().out == "No pair has all constant mixtures yet.\n"
    fake_results(tmp_path / "results", names={"ner-tweets": 0.6, "lm-law": 0.8})
    assert advice.main(argv) == 0
    assert "2 of the 3 pairs that a fit needs" in capsys.readouterr().out
    assert not (tmp_path / "advice.json").exists()


def test_distances_are_shown_in_the_order_of_pairs_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"lm-law": {str(size): distance(1.5) for size in pairs.SIZES}}
    known["lm-law"]["full"]["losses"] = None
    write_json(tmp_path / "distances.json", known)
    monkeypatch.setattr(advice, "DISTANCES", tmp_path / "distances.json")
    assert advice.main(["--only_measure", "--pairs", "lm-law"]) == 0  # all are there
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows[2:]] == ["100", "300", "1000", "full"]
    assert rows[2] == ["language: Wikipedia → law", "100", "1.50", "1.50 to 1.50", "1.000", "2.000"]
    assert "2.000" not in rows[5]


def test_distances_are_measured_once_as_the_package_measures_them(
    toy_pair: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hf_interp.commands.distance import measure_distance
    from hf_interp.tasks.parsing import parse_recipe

    monkeypatch.setattr(advice, "DISTANCES", tmp_path / "distances.json")
    known = {toy_pair: {"100": {"value": 0.75}}}
    advice.measure_missing(known, [toy_pair], [100, "full"], tmp_path / "cache")
    found = read_json(tmp_path / "distances.json")
    assert found == json.loads(json.dumps(known))
    assert found[toy_pair]["100"] == {"value": 0.75}  # not measured again
    setup = training.open_pair(toy_pair, tmp_path / "cache", "cpu")
    expected = measure_distance(*parse_recipe({**setup.recipe, "output_dir": "unused"}), setup.data)
    assert found[toy_pair]["full"]["value"] == round(expected.distance.value, 4)
    assert found[toy_pair]["full"]["losses"] == pytest.approx(expected.known_losses, abs=1e-4)
