"""The search for the amount of domain data: runs, law, files, and how it goes on."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_interp import cli
from hf_interp.commands.compare import quiet_bar, train_quietly
from hf_interp.commands.mixture_search import ALPHAS, constant_alpha, format_mixtures, search_mixture, shortened_data
from hf_interp.mixture.corpus import with_dataset
from hf_interp.selection.mixing_law import choose_mixture
from hf_interp.tasks.build import Data, check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.train import run_recipe

THREE = [0.0, 0.5, 1.0]


@pytest.fixture
def recipe(toy_recipe: dict[str, Any]) -> dict[str, Any]:
    """The toy recipe, whose search wants the mean of both sides."""
    return {**toy_recipe, "alpha_search": {"objective": "mean"}}


def test_runs_are_those_of_the_recipe_at_constant_alpha(recipe: dict[str, Any], tmp_path: Path) -> None:
    told: list[str] = []
    found = search_mixture(recipe, alphas=THREE, seeds=[42], max_steps=4, tell=told.append)
    assert told == ["3 runs of 4 steps of 4 examples: as much training as 3 runs of the recipe."]
    assert [(run["alpha"], run["seed"]) for run in found.runs] == [(0.0, 42), (0.5, 42), (1.0, 42)]
    for run in found.runs:
        own = {**constant_alpha(run["alpha"]), "output_dir": str(tmp_path / "alone"), "alpha_search": None}
        sets = {"eval_corpora": recipe["validation_corpora"], "validation_corpora": {}}
        alone = run_recipe({**recipe, **own, **sets, "eval_on_start": True, "save_strategy": "no"})
        assert run["losses"] == {side: alone.final_metrics[side]["loss"] for side in ("domain", "general")}
        assert found.base_losses == {side: alone.base_metrics[side]["loss"] for side in ("domain", "general")}


def open_data(recipe: dict[str, Any]) -> Data:
    """The recipe's data, as the search evaluates on it."""
    parsed, args = parse_recipe(recipe)
    data = load_data(parsed, check_recipe(parsed, args))
    return replace(data, eval_sets=data.validation_sets)


def test_short_runs_have_short_phases_and_little_data(recipe: dict[str, Any], tmp_path: Path) -> None:
    rate = {"lr_scheduler_type": "warmup_stable_decay", "learning_rate": 1e-2}
    long = {**recipe, **rate, "max_steps": 8, "warmup_steps": 4, "lr_scheduler_kwargs": {"num_decay_steps": 2}}
    found = search_mixture(long, alphas=THREE, seeds=[42], max_steps=4)
    own = {**long, **constant_alpha(0.5), "max_steps": 4, "seed": 42, "output_dir": str(tmp_path / "alone")}
    half, whole = {"num_decay_steps": 1}, {"num_decay_steps": 2}
    losses = []
    for share, steps, kwargs in ((0.5, 2, half), (0.5, 4, whole), (1.0, 2, half)):
        fields = {"warmup_steps": steps, "lr_scheduler_kwargs": kwargs}
        with quiet_bar(0, shown=False) as bar:
            alone = train_quietly({**own, **fields}, shortened_data(open_data(long), share, 42), bar).results()
        losses.append({side: alone.final_metrics[side]["loss"] for side in ("domain", "general")})
    assert found.runs[1]["losses"] == losses[0]
    assert losses[0] not in losses[1:]


def test_a_share_of_the_data_is_one_of_every_corpus(recipe: dict[str, Any]) -> None:
    data = open_data(recipe)
    sizes = [len(corpus.dataset) for corpus in data.corpora]
    part, other = shortened_data(data, 0.3, 0), shortened_data(data, 0.3, 1)
    assert [len(corpus.dataset) for corpus in part.corpora] == [math.ceil(0.3 * size) for size in sizes]
    for corpus, once, again in zip(data.corpora, part.corpora, other.corpora, strict=True):
        texts = [[tuple(row) for row in dataset["input_ids"]] for dataset in (corpus.dataset, once.dataset)]
        assert set(texts[1]) <= set(texts[0])
        assert once.dataset["input_ids"] != again.dataset["input_ids"]
    assert part.eval_sets is data.eval_sets
    assert shortened_data(data, 1.0, 0) is data


def test_a_stream_stays_whole(recipe: dict[str, Any]) -> None:
    data = open_data(recipe)
    streams = [with_dataset(corpus, corpus.dataset.to_iterable_dataset()) for corpus in data.corpora]
    kept = shortened_data(replace(data, corpora=streams), 0.25, 0)
    assert [corpus.dataset for corpus in kept.corpora] == [corpus.dataset for corpus in streams]


def test_what_is_written_and_said(
    recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe(recipe))
    assert cli.main(["tune", path, "--mixture", "--seeds", "0", "--steps", "2"]) == 0
    folder = Path(recipe["output_dir"])
    assert sorted(file.name for file in folder.iterdir()) == ["mixed.yaml", "mixture.json", "mixture.png"]
    written = json.loads((folder / "mixture.json").read_text("utf-8"))
    losses = {side: [run["losses"][side] for run in written["runs"]] for side in ("domain", "general")}
    choice = choose_mixture(ALPHAS, losses, written["base_losses"], objective="mean")
    assert written["choice"] == json.loads(json.dumps(choice.to_dict()))
    mixed = yaml.safe_load((folder / "mixed.yaml").read_text("utf-8"))
    assert mixed == {**recipe, **constant_alpha(choice.alpha)}
    parse_recipe(mixed)
    out = capsys.readouterr().out
    assert out.startswith("5 runs of 2 steps of 4 examples: as much training as 2.5 runs of the recipe.\n| α ")
    assert choice.reason in out
    assert cli.main(["tune", path, "--mixture", "--seeds", "0", "--steps", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == written
    assert "0 runs of 2 steps of 4 examples (5 of 5 are there already)" in err


def test_an_interrupted_search_goes_on(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = search_mixture(recipe, alphas=THREE, seeds=[0, 1], max_steps=2)
    again = {**recipe, "output_dir": str(tmp_path / "again")}
    path = tmp_path / "again" / "mixture.json"
    search_mixture(again, alphas=THREE, seeds=[0], max_steps=2)
    kept = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**kept, "runs": kept["runs"][:2], "choice": None}), "utf-8")
    found = search_mixture(again, alphas=THREE, seeds=[0, 1], max_steps=2)

    def key(run: dict[str, Any]) -> tuple[float, int]:
        return run["alpha"], run["seed"]

    assert sorted(found.runs, key=key) == sorted(whole.runs, key=key)
    assert found.runs[:2] == kept["runs"][:2]
    assert found.choice is not None
    assert whole.choice is not None
    assert found.choice["alpha"] == whole.choice["alpha"]
    assert "(2 runs)" in format_mixtures(found)


def test_another_search_in_the_same_folder_is_refused(recipe: dict[str, Any]) -> None:
    search_mixture(recipe, alphas=THREE, seeds=[0], max_steps=1)
    with pytest.raises(
        ValueError, match=r"holds a search with other settings, whose runs cannot be used\. Take another"
    ):
        search_mixture(recipe, alphas=THREE, seeds=[0], max_steps=2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--mixture", "--alphas", "0", "1"],
            "`alphas` must be at least 3 different shares in [0, 1], got [0.0, 1.0].",
        ),
        (["--mixture", "--alphas", "0", "0.5", "1.5"], "`alphas` must be at least 3 different shares in [0, 1]"),
        (["--mixture", "--steps", "0"], "`max_steps` must be at least 1, got 0."),
        (["--mixture", "--alpha_search.objective", "knee"], "must be one of domain, constrained, mean for a mixture"),
        (["--mixture", "--alpha_search.metric", "accuracy"], "`alpha_search.metric` must be loss for a mixture"),
        (["--mixture", "--alpha_search.general", "web"], "needs the sets 'domain' and 'web', but"),
        (["--steps", "3"], "--steps belongs to --mixture."),
    ],
)
def test_bad_input_is_refused_before_training(
    argv: list[str],
    message: str,
    recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["tune", str(write_recipe(recipe)), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not Path(recipe["output_dir"]).exists()
