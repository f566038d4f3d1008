"""The suggested amount of domain data: the regression, what it is worth on pairs left out, and its schedule."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from hf_interp import cli
from hf_interp.commands.advice import (
    FEATURES,
    Advice,
    Case,
    Slope,
    features_of,
    fit_advice,
    leave_pairs_out,
    load_advice,
    rise_to_mean,
)
from hf_interp.mixture.schedules import get_alpha_schedule, progress_of
from hf_interp.utils.files import write_json


def cases(count: int, amount: Callable[[dict[str, float]], float], noise: float = 0.0) -> list[Case]:
    """One case of each of some pairs, with features drawn over their usual ranges."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        features = {
            "distance": float(generator.uniform(0.5, 2.0)),
            "loss_ratio": float(generator.uniform(0.0, 2.0)),
            "log_passes": float(generator.uniform(-1.0, 3.0)),
        }
        value = amount(features) + float(generator.normal(0.0, noise)) if noise else amount(features)
        found.append(Case(pair=f"pair {number}", amount=value, features=features))
    return found


def by_distance(features: dict[str, float]) -> float:
    return 0.2 + 0.3 * features["distance"]


ADVICE = Advice(
    mean=0.5,
    slopes={"distance": Slope(mean=1.0, scale=0.5, coefficient=0.1, low=0.5, high=1.5)},
    error=0.05,
    error_of_mean=0.1,
    num_pairs=5,
    num_cases=9,
    low=0.3,
    high=0.9,
)


# The fit.


def test_a_relation_that_is_there_is_found() -> None:
    known = cases(200, by_distance)
    advice = fit_advice(known)
    assert advice.helps
    assert advice.error < 0.01 < advice.error_of_mean
    slope = advice.slopes["distance"]
    assert slope.coefficient / slope.scale == pytest.approx(0.3, rel=0.01)  # the penalty is that of one pair in 200
    assert abs(advice.slopes["loss_ratio"].coefficient) < 0.002
    features = {"distance": 1.0, "loss_ratio": 1.5, "log_passes": 0.0}
    assert advice.predict(features) == pytest.approx(0.5, abs=0.005)


def test_a_few_pairs_are_believed_less() -> None:
    slopes = [fit_advice(cases(count, by_distance)).slopes["distance"] for count in (5, 20, 200)]
    steepness = [slope.coefficient / slope.scale for slope in slopes]
    assert 0.1 < steepness[0] < steepness[1] < steepness[2] < 0.3


def test_without_a_relation_the_mean_is_suggested() -> None:
    known = cases(8, lambda features: 0.5, noise=0.1)
    advice = fit_advice(known)
    assert not advice.helps
    features = {"distance": 2.0, "loss_ratio": 0.0, "log_passes": 3.0}
    found = advice.suggest(features, 100)
    assert found.amount == advice.mean == pytest.approx(fmean(case.amount for case in known))
    assert found.uses_features is False
    assert "no better than the mean of the other pairs" in found.notes[0]
    assert "the distance did not help" in found.notes[0]
    assert len(found.notes) == 1


def test_equal_amounts_are_their_mean() -> None:
    advice = fit_advice(cases(4, lambda features: 0.375))
    assert (advice.mean, advice.error, advice.error_of_mean, advice.helps) == (0.375, 0.0, 0.0, False)


def test_a_pair_is_predicted_by_the_others_alone() -> None:
    known = cases(6, by_distance, noise=0.05)
    known += [replace(known[0], features={**known[0].features, "log_passes": 0.0}, amount=0.9)]
    found = leave_pairs_out(known)
    rest = fit_advice(known[1:6])
    for place in (0, 6):  # both are of the first pair
        assert found[place, 0] == pytest.approx(rest.predict(known[place].features))
        assert found[place, 1] == pytest.approx(rest.mean)
    changed = [replace(case, amount=0.1) if case.pair == "pair 0" else case for case in known]
    assert leave_pairs_out(changed)[[0, 6]] == pytest.approx(found[[0, 6]])


def test_errors_are_those_of_the_pairs_left_out_each_counting_once() -> None:
    known = cases(5, by_distance, noise=0.1)
    known += [known[0]] * 3
    advice, predictions = fit_advice(known), leave_pairs_out(known)
    squares = (predictions - np.array([[case.amount] for case in known])) ** 2
    assert advice.error == pytest.approx(math.sqrt(squares[:5, 0].mean()))
    assert advice.error_of_mean == pytest.approx(math.sqrt(squares[:5, 1].mean()))
    assert (advice.num_pairs, advice.num_cases) == (5, 8)
    assert advice.mean == pytest.approx(fit_advice(known[:5]).mean)
    assert advice.slopes["distance"].coefficient == pytest.approx(fit_advice(known[:5]).slopes["distance"].coefficient)


def test_a_feature_that_never_changes_does_nothing() -> None:
    known = [replace(case, features={**case.features, "log_passes": 1.0}) for case in cases(6, by_distance, noise=0.02)]
    slope = fit_advice(known).slopes["log_passes"]
    assert (slope.mean, slope.scale, slope.coefficient) == (1.0, 1.0, 0.0)


def test_two_pairs_are_too_few() -> None:
    known = cases(3, by_distance)
    assert fit_advice(known).num_pairs == 3
    with pytest.raises(ValueError, match=r"at least 3 pairs of corpora, got \['pair 0', 'pair 1'\]"):
        fit_advice([*known[:2], known[0]])


# What is suggested.


@pytest.mark.parametrize(
    ("distance", "amount", "note"),
    [
        (1.0, 0.5, None),
        (1.5, 0.6, None),
        (0.5, 0.4, None),
        (
            1.75,
            0.6,
            "The distance d_A is 1.75, outside the 0.50 to 1.50 of the pairs in the fit, and was taken as 1.50.",
        ),
        (
            0.0,
            0.4,
            "The distance d_A is 0.00, outside the 0.50 to 1.50 of the pairs in the fit, and was taken as 0.50.",
        ),
        (None, 0.5, "The distance d_A is not known here and was taken as its mean, 1.00."),
    ],
)
def test_nothing_is_extrapolated(distance: float | None, amount: float, note: str | None) -> None:
    found = ADVICE.suggest({"distance": distance}, 100)
    assert found.amount == pytest.approx(amount)
    assert found.uses_features is True
    assert found.notes[0].endswith("(root mean square error 0.05 against 0.10, of 5 pairs).")
    assert found.notes[1:] == (() if note is None else (note,))


def test_the_interval_is_students() -> None:
    found = ADVICE.suggest({"distance": 1.0}, 100)
    margin = t.ppf(0.975, 4) * 0.05
    assert found.interval == pytest.approx((0.5 - margin, 0.5 + margin))
    of_mean = replace(ADVICE, error=0.3).suggest({"distance": 1.5}, 100)
    margin = t.ppf(0.975, 4) * 0.1
    assert of_mean.amount == 0.5
    assert of_mean.interval == pytest.approx((0.5 - margin, 0.5 + margin))
    assert replace(ADVICE, error=0.4, error_of_mean=0.5).suggest({}, 100).interval == (0.0, 1.0)


def test_no_amount_is_suggested_that_was_never_best() -> None:
    steep = replace(ADVICE, slopes={"distance": replace(ADVICE.slopes["distance"], coefficient=5.0)})
    assert [steep.predict({"distance": value}) for value in (0.5, 1.5)] == [0.3, 0.9]


@pytest.mark.parametrize("amount", [0.0, 0.125, 0.3, 0.5, 0.55, 0.75, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("max_steps", [7, 100, 1000])
def test_the_rise_has_the_mean(amount: float, max_steps: int) -> None:
    fields = rise_to_mean(amount, max_steps)
    schedule = get_alpha_schedule(
        "linear",
        end=fields["alpha_end"],
        max_steps=max_steps,
        initial_steps=fields["alpha_initial_steps"],
        target_steps=fields["alpha_target_steps"],
    )
    mean = fmean(schedule(progress_of(step, max_steps)) for step in range(max_steps))
    assert mean == pytest.approx(amount, abs=1e-9 if amount <= 0.5 else 1 / max_steps)


@pytest.mark.parametrize(("amount", "steps"), [(-0.01, 10), (1.01, 10), (math.nan, 10), (0.5, 0)])
def test_a_mean_that_no_rise_has_is_refused(amount: float, steps: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        rise_to_mean(amount, steps)


@pytest.mark.parametrize(
    ("losses", "num_domain", "expected"),
    [
        ({"general": 1.0, "domain": 4.0}, 400, {"loss_ratio": math.log(4), "log_passes": math.log(2)}),
        (None, 1600, {"loss_ratio": None, "log_passes": math.log(0.5)}),
        ({"general": 2.0, "domain": 1.0}, None, {"loss_ratio": -math.log(2), "log_passes": None}),
    ],
)
def test_features(losses: dict[str, float] | None, num_domain: int | None, expected: dict[str, Any]) -> None:
    found = features_of(1.25, losses, 800, num_domain)
    assert found == {"distance": 1.25, **expected}
    assert set(found) == set(FEATURES)


# On disk, and in the plan.


def test_advice_comes_back_from_a_file(tmp_path: Path) -> None:
    assert load_advice(tmp_path / "absent.json") is None
    advice = fit_advice(cases(6, by_distance, noise=0.05))
    write_json(tmp_path / "advice.json", advice.to_dict())
    found = load_advice(tmp_path / "advice.json")
    assert found is not None
    assert found.to_dict() == advice.to_dict()
    assert found.error == pytest.approx(advice.error, abs=1e-6)


def test_the_plan_suggests_by_its_own_numbers(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fitted = fit_advice(cases(12, lambda features: 0.4 + 0.1 * features["log_passes"], noise=0.01))
    write_json(tmp_path / "advice.json", fitted.to_dict())
    advice = Advice.from_dict(fitted.to_dict())  # rounded
    monkeypatch.setattr("hf_interp.commands.advice.load_advice", lambda: load_advice(tmp_path / "advice.json"))
    path = str(write_recipe(toy_recipe))
    assert cli.main(["plan", path, "--distance", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["distance"]
    losses = {side: loss["value"] for side, loss in found["losses"].items()}
    features = features_of(found["value"], losses, 4 * 4, 12)
    assert found["suggestion"] == json.loads(json.dumps(advice.suggest(features, 4).to_dict()))
    assert cli.main(["plan", path, "--distance"]) == 0
    out = capfd.readouterr().out
    suggestion = found["suggestion"]
    assert f"suggested α: {suggestion['amount']:.2f}, 95% interval" in out
    assert f"  --alpha_schedule_type constant --alpha_end {suggestion['amount']:.2f}\n" in out
    rise = "a rise of the same mean: --alpha_schedule_type linear --alpha_start 0 "
    assert f"{rise}--alpha_end {suggestion['alpha_end']:.2f}\n  --alpha_initial_steps 0 " in out
    assert all(note in out for note in suggestion["notes"])


def test_without_a_fit_nothing_is_suggested(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hf_interp.commands.advice.load_advice", lambda: None)
    path = str(write_recipe(toy_recipe))
    assert cli.main(["plan", path, "--distance"]) == 0
    assert "no amount of domain data is suggested" in capfd.readouterr().out
    assert cli.main(["plan", path, "--distance", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["distance"]["suggestion"] is None


def test_what_is_suggested_can_be_planned(toy_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    from hf_interp.commands.plan import plan_recipe

    fields = rise_to_mean(0.75, 100)
    flags = [text for name, value in fields.items() for text in (f"--{name}", str(value))]
    recipe = str(write_recipe(toy_recipe))
    for given in (["--alpha_schedule_type", "constant", "--alpha_end", "0.75"], flags):
        plan, *_ = plan_recipe(recipe, [*given, "--max_steps", "100"])
        assert plan.summary()["domain_share"] == pytest.approx(0.75, abs=0.01)
