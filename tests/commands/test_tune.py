"""A search over the settings of α: what its trials are, what it makes of them, and that it goes on after a kill."""

import json
import math
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import processes
import pytest
import yaml
from toys import DOMAIN_FIRST, NotingTrainer, config, corpus, mixture, tiny_model

from hf_interp import InterpolationTrainer, cli
from hf_interp.commands import tune
from hf_interp.commands.plan import learning_rate_factors, rate_weighted_alpha
from hf_interp.commands.search_space import ALPHA_FIELDS
from hf_interp.commands.tune import Goal, Tuning, advise, describe, format_tuning, tune_recipe
from hf_interp.selection.choice import AlphaSearch, choose_alpha
from hf_interp.tasks.parsing import load_recipe
from hf_interp.train import run_recipe

OWN = {
    "alpha_schedule_type": "linear",
    "alpha_start": 0.0,
    "alpha_end": 1.0,
    "alpha_initial_steps": 0.0,
    "alpha_target_steps": 0.0,
    "alpha_schedule_kwargs": {},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A recipe that learns enough for α to matter, judged by the loss, which differs between all trials."""
    recipe = make_recipe(tmp_path_factory.mktemp("tuning") / "out")
    search = {"objective": "mean", "metric": "loss"}
    return {**recipe, "learning_rate": 1e-2, "max_steps": 10, "alpha_search": search, "eval_strategy": "steps"}


@pytest.fixture(scope="module")
def tuned(settings: dict[str, Any]) -> Tuning:
    """Four trials in two calls."""
    tune_recipe(settings, trials=2)
    return tune_recipe(settings, trials=4)


def told(tuning: Tuning) -> list[dict[str, Any]]:
    """What trials say but for the time they took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in tuning.trials]


def study_in(folder: Path, name: str = "tuning") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'tuning.db'}")


# Trials.


def test_the_first_trial_has_the_recipes_own_settings(tuned: Tuning, settings: dict[str, Any]) -> None:
    assert [row["own"] for row in tuned.trials] == [True, False, False, False]
    assert [row["trial"] for row in tuned.trials] == [0, 1, 2, 3]
    assert tuned.trials[0]["settings"] == OWN
    params = [trial.params for trial in study_in(Path(settings["output_dir"])).trials]
    assert params[0] == {name: OWN[name] for name in ALPHA_FIELDS}  # the sampler learns from it too


def test_a_trial_is_a_run_of_the_recipe_with_its_settings(
    tuned: Tuning, settings: dict[str, Any], tmp_path: Path
) -> None:
    row = tuned.trials[2]
    alone = {key: value for key, value in settings.items() if key not in ("alpha_search", "validation_corpora")}
    own = {"eval_corpora": settings["validation_corpora"], "eval_strategy": "no", "output_dir": str(tmp_path)}
    results = run_recipe({**alone, **row["settings"], **own})
    assert row["metrics"] == results.final_metrics
    assert tuned.base_metrics == results.base_metrics
    assert row["forgetting"] == results.forgetting["loss"]
    assert (row["domain"], row["general"]) == tuple(
        results.final_metrics[side]["loss"] for side in ("domain", "general")
    )


def test_trials_differ_and_the_best_comes_first(tuned: Tuning) -> None:
    objectives = [row["objective"] for row in tuned.trials]
    assert len(set(objectives)) == 4
    for row in tuned.trials:
        assert row["objective"] == pytest.approx(-(row["domain"] + row["general"]) / 2)
        assert row["seconds"] > 0
    assert [row["objective"] for row in tuned.ranked()] == sorted(objectives, reverse=True)


@pytest.mark.slow
def test_two_searches_with_one_seed_try_the_same(tuned: Tuning, settings: dict[str, Any], tmp_path: Path) -> None:
    again = tune_recipe({**settings, "output_dir": str(tmp_path)}, trials=4)
    assert told(again) == told(tuned)
    other = tune_recipe({**settings, "output_dir": str(tmp_path / "other"), "seed": 1}, trials=2)
    assert other.trials[1]["settings"] != tuned.trials[1]["settings"]


def test_nothing_is_left_but_what_was_found(tuned: Tuning, settings: dict[str, Any]) -> None:
    folder = Path(settings["output_dir"])
    assert sorted(path.name for path in folder.iterdir()) == ["tuned.yaml", "tuning.db", "tuning.json", "tuning.png"]
    assert (folder / "tuning.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "tuning.json").read_text())
    assert written["trials"] == tuned.trials
    assert written["base_metrics"] == tuned.base_metrics
    assert written["settings"] == {
        "recipe": settings,
        "space": json.loads(json.dumps(tuned.settings["space"])),
        "objective": "mean",
        "max_forgetting": 0.01,
        "domain_weight": 0.5,
        "metric": "loss",
        "sets": ["domain", "general"],
        "seed": 42,
    }
    assert [trial.user_attrs["row"] for trial in study_in(folder).trials] == tuned.trials


def test_the_tuned_recipe_is_the_recipe_with_the_best_settings(tuned: Tuning, settings: dict[str, Any]) -> None:
    found = load_recipe(Path(settings["output_dir"]) / "tuned.yaml")
    best = tuned.ranked()[0]
    changed = {} if best["own"] else {name: best["settings"][name] for name in ALPHA_FIELDS}
    assert found == {**settings, **changed}
    assert list(found)[: len(settings)] == list(settings)


def test_enough_trials_are_enough(tuned: Tuning, settings: dict[str, Any]) -> None:
    assert told(tune_recipe(settings, trials=3)) == told(tuned)


@pytest.mark.slow
def test_the_recipes_own_settings_may_lie_outside_the_space(toy_recipe: dict[str, Any]) -> None:
    own = {"alpha_schedule_type": "steps", "alpha_schedule_kwargs": {"values": [0.0, 1.0]}, "alpha_initial_steps": 2}
    found = tune_recipe({**toy_recipe, **own}, trials=2, space={"alpha_schedule_type": ["cosine"], "alpha_end": 0.5})
    assert found.trials[0]["settings"] == {**OWN, **own}
    assert found.trials[1]["settings"]["alpha_schedule_type"] == "cosine"
    assert found.trials[1]["settings"]["alpha_end"] == 0.5
    assert found.trials[1]["settings"]["alpha_schedule_kwargs"] == {}
    assert study_in(Path(toy_recipe["output_dir"])).trials[0].params == {}


@pytest.mark.slow
def test_arguments_of_the_recipes_schedule_stay_with_it(toy_recipe: dict[str, Any]) -> None:
    recipe = {**toy_recipe, "alpha_schedule_type": "exponential", "alpha_schedule_kwargs": {"rate": 3.0}}
    found = tune_recipe(recipe, trials=3, space={"alpha_schedule_type": ["exponential", "linear"]})
    for row in found.trials:
        expected = {"rate": 3.0} if row["settings"]["alpha_schedule_type"] == "exponential" else {}
        assert row["settings"]["alpha_schedule_kwargs"] == expected
    assert {row["settings"]["alpha_schedule_type"] for row in found.trials[1:]} == {"exponential", "linear"}


@pytest.mark.slow
def test_the_learning_rate_may_be_searched(toy_recipe: dict[str, Any]) -> None:
    found = tune_recipe({**toy_recipe, "peft": "lora"}, trials=3, tune_learning_rate=True)
    rates = [row["settings"]["learning_rate"] for row in found.trials]
    assert rates[0] == 1e-3
    assert len(set(rates)) == 3
    assert all(0.25e-3 <= rate <= 4e-3 for rate in rates)


@pytest.mark.slow
def test_settings_that_cannot_be_planned_are_no_trials(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["corpora"]["domain"]["max_passes"] = 1  # 12 examples of 16
    recipe = {**toy_recipe, "alpha_schedule_type": "constant", "alpha_end": 0.5}
    found = tune_recipe(recipe, trials=3, space={"alpha_schedule_type": ["constant"], "alpha_end": (0.7, 0.9)})
    assert all(16 * row["settings"]["alpha_end"] < 13 for row in found.trials)
    trials = study_in(Path(toy_recipe["output_dir"])).trials
    refused = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(trials) == 3 + len(refused)
    assert refused
    for trial in refused:
        assert trial.params["constant_alpha"] > 0.75
        assert "its `max_passes` is 1" in trial.user_attrs["refused"]


def test_a_space_of_nothing_else_is_refused(toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MOST_REFUSED", 3)
    toy_recipe["corpora"]["domain"]["max_passes"] = 1
    recipe = {**toy_recipe, "alpha_schedule_type": "constant", "alpha_end": 0.5}
    with pytest.raises(ValueError, match=r"of 3 trials in a row could not be planned, .*`max_passes` is 1.* Narrow"):
        tune_recipe(recipe, trials=3, space={"alpha_schedule_type": ["constant"], "alpha_end": 0.9})
    assert len(json.loads((Path(recipe["output_dir"]) / "tuning.json").read_text())["trials"]) == 1


# What is good.


def base(domain: float = 0.5, general: float = 0.75, metric: str = "accuracy") -> dict[str, dict[str, float]]:
    return {"domain": {metric: domain}, "general": {metric: general}}


def goal(objective: str, metric: str = "accuracy", start: dict[str, Any] | None = None, **kwargs: Any) -> Goal:
    return Goal(search=AlphaSearch(objective=objective, **kwargs), metric=metric, base=start or base(metric=metric))


def test_objectives_are_those_of_the_weights() -> None:
    after = base(0.8, 0.7)
    assert goal("domain").score(after) == (0.8, True)
    assert goal("mean", domain_weight=0.75).score(after)[0] == pytest.approx(0.75 * 0.8 + 0.25 * 0.7)
    assert goal("harmonic").score(after)[0] == pytest.approx(2 / (1 / 0.8 + 1 / 0.7))
    for objective in ("domain", "mean", "harmonic"):
        choice = choose_alpha([0, 1], [0.5, 0.8], [0.75, 0.7], AlphaSearch(objective=objective))
        assert goal(objective).score(after)[0] == choice.objective_values[1]


def test_a_broken_constraint_ranks_behind_by_how_far_it_is_broken() -> None:
    keeps = goal("constrained", max_forgetting=0.05)
    assert keeps.score(base(0.8, 0.7)) == (0.8, True)
    assert keeps.score(base(0.8, 0.65)) == pytest.approx((0.5 - 0.05, False))
    assert keeps.score(base(0.4, 0.65)) == pytest.approx((0.4 - 0.05, False))
    losses = goal("constrained", "loss", max_forgetting=0.05)
    assert losses.score(base(0.2, 0.8, "loss")) == (-0.2, True)
    assert losses.score(base(0.2, 0.9, "loss")) == pytest.approx((-0.5 - 0.1, False))
    rows = [
        {"objective": 0.45, "feasible": False},
        {"objective": 0.2, "feasible": True},
        {"objective": None, "feasible": False},
        {"objective": 0.3, "feasible": True},
        {"objective": 0.3, "feasible": True, "later": True},
    ]
    ranked = Tuning(trials=rows, base_metrics={}, settings={}).ranked()
    assert ranked == [rows[3], rows[4], rows[1], rows[0], rows[2]]


def test_of_losses_less_is_better() -> None:
    assert goal("mean", "loss").score(base(0.2, 0.4, "loss"))[0] == pytest.approx(-0.3)
    assert goal("domain", "perplexity").score(base(8.0, 9.0, "perplexity")) == (-8.0, True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_has_diverged_is_the_worst(value: float) -> None:
    for after in (base(value, 0.5), base(0.5, value)):
        assert goal("mean").score(after) == (-math.inf, False)


def test_the_domain_alone_needs_no_general_set() -> None:
    alone = Goal(search=AlphaSearch(), metric="accuracy", base={"domain": {"accuracy": 0.5}})
    assert alone.score({"domain": {"accuracy": 0.6}}) == (0.6, True)


def test_goals_that_cannot_be_computed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'f1' is not among those of the set 'domain': accuracy\. Choose"):
        goal("mean", "f1", base())
    with pytest.raises(ValueError, match="must not be 'harmonic' where less of a metric is better"):
        goal("harmonic", "loss")
    with pytest.raises(ValueError, match=r"M₀'s accuracy on the set 'general' must be finite, got nan"):
        goal("mean", start=base(0.5, math.nan))


@pytest.mark.slow
def test_without_an_objective_the_sets_decide(toy_recipe: dict[str, Any]) -> None:
    both = tune_recipe(toy_recipe, trials=1)
    assert (both.settings["objective"], both.settings["metric"]) == ("constrained", "accuracy")
    for group in ("eval_corpora", "validation_corpora"):
        del toy_recipe[group]["general"]
    one = tune_recipe({**toy_recipe, "output_dir": toy_recipe["output_dir"] + "1"}, trials=1)
    assert one.settings["objective"] == "domain"
    for row in one.trials:
        assert row["objective"] == row["domain"] == row["metrics"]["domain"]["accuracy"]
        assert row["general"] is row["forgetting"] is None
    assert "general" not in one.base_metrics


@pytest.mark.slow
def test_validation_sets_are_looked_at_and_test_sets_only_without_them(toy_recipe: dict[str, Any]) -> None:
    validated = tune_recipe(toy_recipe, trials=1)
    tested = {key: value for key, value in toy_recipe.items() if key != "validation_corpora"}
    swapped = {**tested, "eval_corpora": toy_recipe["validation_corpora"]}
    assert told(tune_recipe({**swapped, "output_dir": toy_recipe["output_dir"] + "1"}, trials=1)) == told(validated)


# What is said.


def test_the_table_has_the_best_the_recipes_own_and_the_base(tuned: Tuning) -> None:
    lines = format_tuning(tuned, top=1).splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    head = ["settings of α", "trial", "rank", "mean", "domain loss", "general loss", "forgetting"]
    assert cells[0] == head
    ranked = tuned.ranked()
    own = next(place for place, row in enumerate(ranked) if row["own"])
    assert [row[2] for row in cells[2:-1]] == [str(place + 1) for place in sorted({0, own})]
    for row in cells[2:-1]:
        trial = ranked[int(row[2]) - 1]
        assert row[0] == describe(trial["settings"])
        assert row[1] == f"{trial['trial']}{', the recipe' + chr(39) + 's' if trial['own'] else ''}"
        assert row[3:] == [f"{trial[name]:.4f}" for name in ("objective", "domain", "general", "forgetting")]
    assert lines[-1].startswith("| M₀ ")
    for side in ("domain", "general"):
        assert f" {tuned.base_metrics[side]['loss']:.4f} |" in lines[-1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "linear 0 → 1"),
        ({"alpha_target_steps": 10.0, "learning_rate": 1e-4}, "linear 0 → 1, phases 0 and 10, learning rate 0.0001"),
        ({"alpha_schedule_type": "exponential", "alpha_schedule_kwargs": {"rate": 3.0}}, "exponential 0 → 1, rate 3.0"),
        ({"alpha_schedule_type": "constant", "alpha_end": 0.25}, "constant 0.25"),
        ({"alpha_schedule_type": "steps", "alpha_schedule_kwargs": {"values": [0, 1]}}, "steps"),
    ],
)
def test_settings_in_words(changes: dict[str, Any], text: str) -> None:
    assert describe({**OWN, **changes}) == text


def test_advice(tuned: Tuning) -> None:
    def about(**row: Any) -> str:
        rows = [{"trial": 5, "own": False, "feasible": True, "objective": 1.0, **row}]
        return advise(Tuning(trials=rows, base_metrics={}, settings={**tuned.settings, "seed": 7}), "out")

    assert about().startswith("Trial 5 is the best of 1.\ntuned.yaml ")
    assert about(own=True).startswith("None of 1 trials is better than the recipe's own settings.\n")
    assert about(feasible=False).startswith(
        "Trial 5 is the best of 1; but none loses at most 0.01 of M₀'s general loss"
    )
    assert about().endswith(f"hf-interp compare {os.path.join('out', 'tuned.yaml')} --seeds 8 9 10")


# Bad input.


@pytest.mark.parametrize("trials", [0, -1, True, 1.5])
def test_trials_must_be_some(toy_recipe: dict[str, Any], trials: Any) -> None:
    with pytest.raises(ValueError, match=r"`trials` must be a whole number of at least 1, got "):
        tune_recipe(toy_recipe, trials=trials)
    assert not Path(toy_recipe["output_dir"]).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_corpora": {}, "validation_corpora": {}}, r"needs the set 'domain', but `eval_corpora` has \[\]"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"alpha_search": {"objective": "knee"}}, "must not be 'knee' here"),
        ({"corpora": {"general": {"path": "absent.jsonl"}, "domain": {"path": "absent.jsonl"}}}, "absent"),
    ],
)
def test_bad_recipes_leave_nothing_behind(toy_recipe: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        tune_recipe({**toy_recipe, **changes}, trials=2)
    assert not Path(toy_recipe["output_dir"]).exists()


def test_a_set_must_not_be_missing_among_validation_sets(toy_recipe: dict[str, Any]) -> None:
    del toy_recipe["validation_corpora"]["domain"]
    with pytest.raises(ValueError, match=r"needs the set 'domain', but `validation_corpora` has \['general'\]"):
        tune_recipe(toy_recipe, trials=2)


def test_without_optuna_the_package_is_named(toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"needs optuna\. Install it with `pip install hf_interp\[tune\]`"):
        tune_recipe(toy_recipe, trials=2)


def test_several_processes_are_refused(toy_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process, but a launcher has started 2"):
        tune_recipe(toy_recipe, trials=2)


def test_another_recipe_or_space_is_refused(tuned: Tuning, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"something else: recipe\.learning_rate was 0\.01 and is 0\.1\. Its trials"):
        tune_recipe({**settings, "learning_rate": 0.1}, trials=5)
    message = r"something else: space\.alpha_end\.low was 0\.0 and is 0\.5; space\.falling was False and is True\."
    with pytest.raises(ValueError, match=message):
        tune_recipe(settings, trials=5, space={"alpha_end": (0.5, 1.0)}, falling=True)
    search = {**settings["alpha_search"], "objective": "domain"}
    with pytest.raises(ValueError, match=r"recipe\.alpha_search\.objective was 'mean' and is 'domain'"):
        tune_recipe({**settings, "alpha_search": search}, trials=5)
    with pytest.raises(ValueError, match=r"recipe\.weight_decay was None and is 0\.1"):
        tune_recipe({**settings, "weight_decay": 0.1}, trials=5)
    assert len(study_in(Path(settings["output_dir"])).trials) == 4


@pytest.mark.slow
def test_a_database_may_hold_several_studies(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'all.db'}"
    first = tune_recipe(toy_recipe, trials=1, storage=storage)
    other = tune_recipe({**toy_recipe, "max_steps": 3}, trials=1, storage=storage, study_name="shorter")
    moved = tune_recipe({**toy_recipe, "output_dir": str(tmp_path / "moved")}, trials=1, storage=storage)
    assert told(moved) == told(first) != told(other)
    assert (tmp_path / "moved" / "tuned.yaml").is_file()
    assert not (Path(toy_recipe["output_dir"]) / "tuning.db").exists()
    assert sorted(optuna.get_all_study_names(storage)) == ["shorter", "tuning"]


def test_a_study_of_another_kind_is_refused(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'all.db'}"
    study = optuna.create_study(storage=storage, study_name="mine")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ValueError, match=r"The study 'mine' was not made by hf-interp tune\. Take another"):
        tune_recipe(toy_recipe, trials=2, storage=storage, study_name="mine")


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////absent/folder/secret.db"])
def test_a_database_that_cannot_be_opened_is_told_without_its_url(toy_recipe: dict[str, Any], storage: str) -> None:
    with pytest.raises(
        ValueError, match=r"No study can be opened in `storage` \(--storage\): \w+Error\. Check"
    ) as caught:
        tune_recipe(toy_recipe, trials=2, storage=storage)
    assert storage not in str(caught.value)


def test_a_database_that_is_none_is_told(toy_recipe: dict[str, Any]) -> None:
    folder = Path(toy_recipe["output_dir"])
    folder.mkdir()
    (folder / "tuning.db").write_text("no database, but a text that is long enough to be read as one" * 20)
    with pytest.raises(ValueError, match=r"No study can be opened in tuning\.db in "):
        tune_recipe(toy_recipe, trials=2)


TOKEN = "hf_" + "secret" * 6


def test_a_token_of_the_recipe_stays_in_memory(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({**toy_recipe, "hub_token": TOKEN})
    for flags, status in (([], 0), (["--hub_token", TOKEN[::-1]], 0), (["--seed", "9"], 2)):
        assert cli.main(["tune", str(path), "--trials", "1", *flags]) == status
    assert cli.main(["tune", str(path), "--trials", "1", "--hub_tokn", TOKEN]) == 2
    assert cli.main(["compare", str(path), "--methods", "constant 0.5", "--seeds", "0"]) == 0
    written = [path for path in Path(toy_recipe["output_dir"]).rglob("*") if path.is_file()]
    assert {"tuning.json", "tuned.yaml", "tuning.db", "results.json"} <= {path.name for path in written}
    everything = b"".join(path.read_bytes() for path in written) + "".join(capfd.readouterr()).encode()
    assert TOKEN.encode() not in everything
    assert TOKEN[::-1].encode() not in everything


# Going on.


@pytest.mark.slow
def test_a_trial_that_was_killed_has_failed_and_is_made_up_for(
    tuned: Tuning, settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**settings, "output_dir": str(tmp_path)}
    tune_recipe(recipe, trials=1)
    study = study_in(tmp_path)
    study.ask()  # what a process leaves that is killed in a trial
    found = tune_recipe(recipe, trials=3)
    assert [row["trial"] for row in found.trials] == [0, 2, 3]
    assert [row["settings"] for row in found.trials] == [row["settings"] for row in tuned.trials[:3]]
    assert [row["metrics"] for row in found.trials] == [row["metrics"] for row in tuned.trials[:3]]
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.slow
def test_the_recipes_own_settings_come_again_if_their_trial_was_killed(toy_recipe: dict[str, Any]) -> None:
    tune_recipe(toy_recipe, trials=1)
    folder = Path(toy_recipe["output_dir"])
    with sqlite3.connect(folder / "tuning.db") as database:
        database.execute("UPDATE trials SET state = 'RUNNING'")
    database.close()
    found = tune_recipe(toy_recipe, trials=2)
    assert [(row["trial"], row["own"]) for row in found.trials] == [(1, True), (2, False)]


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def tune_slowly(recipe: dict[str, Any], trials: int) -> None:
    tune_recipe(recipe, trials=trials)


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**toy_recipe, "max_steps": 150}
    folder, log = Path(recipe["output_dir"]), tmp_path / "log"
    (process,) = processes.start(log, tune_slowly, recipe, 4)
    wait_for(lambda: (folder / "tuning.json").exists() or not process.is_alive())

    def in_third_trial() -> bool:
        try:
            return len(study_in(folder).get_trials()) == 3
        except Exception:  # the database may be half made
            return not process.is_alive()

    wait_for(in_third_trial)
    time.sleep(0.3)
    processes.kill([process])
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    before = json.loads((folder / "tuning.json").read_text())["trials"]
    assert [row["trial"] for row in before] == [0, 1]
    assert [trial.state.name for trial in study_in(folder).get_trials()] == ["COMPLETE", "COMPLETE", "RUNNING"]
    found = tune_recipe(recipe, trials=4)
    assert found.trials[:2] == before
    assert [row["trial"] for row in found.trials] == [0, 1, 3, 4]
    states = [trial.state.name for trial in study_in(folder).get_trials()]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    whole = tune_recipe({**recipe, "output_dir": str(tmp_path / "whole")}, trials=4)
    assert [row["metrics"] for row in found.trials] == [row["metrics"] for row in whole.trials]


# The host's own search.


@pytest.mark.slow
def test_the_hosts_search_plans_anew_for_phases_as_shares(tmp_path: Path) -> None:
    trainer = NotingTrainer(
        None,
        config(tmp_path, max_steps=10, alpha_start=0.25, alpha_end=0.75),
        train_dataset=mixture(),
        eval_dataset=corpus(DOMAIN_FIRST, 6),
        model_init=lambda: tiny_model(),
    )
    seen: dict[float, tuple[list[float], list[int]]] = {}

    def objective(metrics: dict[str, float]) -> float:
        assert trainer.plan is not None
        alphas = [trainer.plan.alpha(step) for step in range(10)]
        domain = [sum(number >= DOMAIN_FIRST for number in trainer.seen[step]) for step in range(10)]
        seen[trainer.args.alpha_initial_steps] = (alphas, domain)
        trainer.seen.clear()
        return metrics["eval_loss"]

    shares = [0.0, 0.3, 0.5]
    trainer.hyperparameter_search(
        lambda trial: {"alpha_initial_steps": trial.suggest_categorical("alpha_initial_steps", shares)},
        objective,
        n_trials=3,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"alpha_initial_steps": shares}),
    )
    assert {share: alphas.count(0.25) for share, (alphas, _) in seen.items()} == {0.0: 1, 0.3: 3, 0.5: 5}
    for alphas, domain in seen.values():
        assert sum(domain) == pytest.approx(4 * sum(alphas), abs=1)
    assert not (tmp_path / "results.json").exists()
    assert list(tmp_path.iterdir()) == []


# The command.


@pytest.mark.slow
def test_the_command_tunes_and_its_recipe_trains(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = str(write_recipe(toy_recipe)), Path(toy_recipe["output_dir"])
    argv = ["tune", path, "--trials", "2", "--space", "alpha_schedule_type=cosine", "--space", "alpha_end=0.5..0.6"]
    argv += ["--alpha_search.objective", "mean", "--max_steps", "3"]
    assert cli.main([*argv, "--keep"]) == 0
    out, err = capsys.readouterr()
    trials = json.loads((folder / "tuning.json").read_text())["trials"]
    best = [True, trials[1]["objective"] > trials[0]["objective"]]
    assert [line.split(" | ")[0] for line in err.splitlines()] == [
        f"{number} of 2: {describe(trial['settings'])}: mean {trial['objective']:.4f}" + ", the best so far" * is_best
        for number, (trial, is_best) in enumerate(zip(trials, best, strict=True), 1)
    ]
    kept = json.loads((folder / "best" / "results.json").read_text())
    assert kept["final_metrics"] == trials[best[1]]["metrics"]
    assert (folder / "best" / "model.safetensors").is_file()
    assert out.splitlines()[0].startswith("| settings of α ")
    assert "| cosine 0" in out
    assert "--seeds 43 44 45\n" in out
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "tuning.json").read_text())
    assert len(found["trials"]) == 2
    recipe = yaml.safe_load((folder / "tuned.yaml").read_text())
    assert recipe["alpha_search"] == {"objective": "mean"}
    recipe["alpha_search"] = None
    assert cli.main(["train", str(write_recipe(recipe))]) == 0
    assert (folder / "results.json").is_file()


# How α counts when steps are weighted by their learning rate, against the host's own schedules.


def trainer(folder: Path, **settings: Any) -> InterpolationTrainer:
    args = config(folder, **{"max_steps": 5, "logging_steps": 1, **settings})
    return InterpolationTrainer(tiny_model(), args, train_dataset=mixture())


def weighted(folder: Path, **settings: Any) -> float | None:
    found = trainer(folder, **settings)
    assert found.plan is not None
    return rate_weighted_alpha(found.plan, found.args)


def test_a_rise_counts_a_third_while_the_rate_falls_to_nothing(tmp_path: Path) -> None:
    # α 0, 1/4, 1/2, 3/4, 1 at rates 1, 4/5, 3/5, 2/5, 1/5, whose sum is 3
    assert weighted(tmp_path) == pytest.approx((0.2 + 0.3 + 0.3 + 0.2) / 3)
    assert weighted(tmp_path, alpha_start=1.0, alpha_end=0.0) == pytest.approx((1 + 0.6 + 0.3 + 0.1) / 3)
    assert weighted(tmp_path, max_steps=3000) == pytest.approx(1 / 3, abs=1e-3)  # looked at in 2,000 places


def test_under_a_constant_rate_all_steps_count_alike(tmp_path: Path) -> None:
    assert weighted(tmp_path, lr_scheduler_type="constant") == pytest.approx(0.5)
    assert weighted(tmp_path, alpha_schedule_type="constant", alpha_end=0.25) == pytest.approx(0.25)


def test_what_is_not_known_beforehand_is_not_told(tmp_path: Path) -> None:
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    found = trainer(tmp_path, lr_scheduler_type="constant")
    args = config(tmp_path, max_steps=5, **plateau)
    assert learning_rate_factors(args, [0, 1], 5) is None
    assert found.plan is not None
    assert rate_weighted_alpha(found.plan, args) is None


def test_arguments_that_a_schedule_does_not_take_are_named(tmp_path: Path) -> None:
    args = config(tmp_path, max_steps=5, lr_scheduler_type="warmup_stable_decay")
    with pytest.raises(ValueError, match=r"`lr_scheduler_kwargs` \(\{\}\) do not suit .* \(warmup_stable_decay\)"):
        learning_rate_factors(args, [0], 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 2},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.4},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}, "warmup_steps": 1},
    ],
)
def test_the_rates_are_those_that_the_trainer_logs(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = trainer(tmp_path, learning_rate=1e-3, **settings)
    found.train()
    logged = [entry["learning_rate"] for entry in found.state.log_history if "learning_rate" in entry]
    factors = learning_rate_factors(found.args, list(range(5)), 5)
    assert factors is not None
    assert logged == pytest.approx([1e-3 * factor for factor in factors])
