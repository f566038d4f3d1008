"""Choose the amount of domain data from a few short runs at constant α, by the law of mixtures."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from hf_interp.commands.compare import QUIET, quiet_bar, train_quietly
from hf_interp.commands.tune import check_one_process
from hf_interp.mixture.corpus import Corpus, with_dataset
from hf_interp.reporting.curve import short_alpha
from hf_interp.reporting.plots import _colour, _finish, _save
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.mixing_law import (
    NUM_PARAMETERS,
    OBJECTIVES,
    SIDES,
    LossCurve,
    MixingLaw,
    MixtureChoice,
    choose_mixture,
    curve_of,
)
from hf_interp.tasks.build import Data, check_recipe, load_data, plan_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import Recipe
from hf_interp.utils.console import format_table
from hf_interp.utils.environment import describe_machine, installed_versions
from hf_interp.utils.files import new_file, read_json, write_json
from hf_interp.utils.redaction import without_tokens

MIXTURE_NAME = "mixture.json"
PLOT_NAME = "mixture.png"
MIXED_NAME = "mixed.yaml"
"""The recipe with the chosen constant α."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARE_OF_STEPS = 4
"""A run is as long as the recipe's, divided by this."""


@dataclass(kw_only=True)
class MixtureSearch:
    """What `search_mixture` found.

    Args:
        runs: `alpha`, `seed` and `losses` by side of every run, in nats, on the validation sets.
        base_losses: those of M₀.
        settings: of the search, with the recipe.
        choice: the α and why (see `hf_interp.selection.mixing_law.MixtureChoice`).
        versions: versions of the packages in use.
        machine: processor and platform.
    """

    runs: list[dict[str, Any]]
    base_losses: dict[str, float]
    settings: dict[str, Any]
    choice: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=installed_versions)
    machine: dict[str, Any] = field(default_factory=describe_machine)


def constant_alpha(alpha: float) -> dict[str, Any]:
    """The fields of a recipe that hold α constant.

    >>> constant_alpha(0.5)["alpha_schedule_kwargs"]
    {'value': 0.5}
    """
    return {
        "alpha_schedule_type": "constant",
        "alpha_schedule_kwargs": {"value": float(alpha)},
        "alpha_initial_steps": 0,
        "alpha_target_steps": 0,
        "alpha_controller": None,
    }


def search_mixture(
    recipe: Mapping[str, Any],
    *,
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] | None = None,
    max_steps: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> MixtureSearch:
    """Train a recipe briefly at some constant α, fit the law of mixtures to each side's loss, and choose α by it.

    What is best says the recipe's `alpha_search`: `objective` (domain, constrained, mean), `max_forgetting` (in nats
    here) and `domain_weight` (see `hf_interp.selection.mixing_law.choose_mixture`). `mixture.json`, `mixture.png` and
    the recipe with the chosen α, `mixed.yaml`, go to `output_dir`; no model does. Called again after an interruption,
    the search goes on with the runs that are missing. What the learning rate's schedule counts in steps is shortened as
    the runs are.

    A run shorter than the recipe's is on as much less of every corpus (see `shortened_data`), so that examples are
    repeated as often as they will be: short runs on all of a small corpus do not see it learned by heart, and choose
    too much of it. The law is still of runs as long as these.

    Args:
        recipe: a recipe with the sets `domain` and `general`: among its `validation_corpora`, or its `eval_corpora` if
            it has none of the former.
        alphas: the domain's shares to train at, at least three.
        seeds: of the runs at each α; by default the recipe's and the next.
        max_steps: of each run; by default a fourth of the recipe's.
        tell: is told what the search will cost before it starts.

    Returns:
        the runs and the choice.

    Raises:
        ValueError, OSError: for bad input, before anything is trained; or if `output_dir` holds another search.
    """
    check_one_process()
    parsed, args = parse_recipe(recipe)
    task = check_recipe(parsed, args)
    search = _choose_search(parsed)
    shares = _checked_alphas(alphas)
    data = load_data(parsed, task)
    sets = data.validation_sets or data.eval_sets
    names = dict(zip(SIDES, (search.domain, search.general), strict=True))
    data = replace(data, eval_sets={name: sets[name] for name in names.values()})
    plan = plan_data(data, args)
    steps = max(plan.max_steps // SHARE_OF_STEPS, 1) if max_steps is None else max_steps
    if steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    seeds = [args.seed, args.seed + 1] if seeds is None else list(dict.fromkeys(seeds))
    if not seeds:
        raise ValueError("`seeds` must name at least one, got none.")
    given = {**recipe, **QUIET, "eval_strategy": "no", "load_best_model_at_end": False, "max_steps": steps}
    share = steps / plan.max_steps
    given |= shortened_rate(args.warmup_steps, args.lr_scheduler_kwargs, share)
    for alpha in shares:  # now, so that bad input leaves nothing behind
        plan_data(shortened_data(data, share, seeds[0]), parse_recipe({**given, **constant_alpha(alpha)})[1])
    folder = Path(args.output_dir or ".")
    wanted = list(product(shares, seeds))
    settings = {
        "recipe": {**without_tokens(recipe), "output_dir": None},
        "max_steps": steps,
        "share_of_data": min(share, 1.0),
        "objective": search.objective,
        "max_forgetting": search.max_forgetting,
        "domain_weight": search.domain_weight,
        "sets": names,
        "seed": args.seed,
    }
    found = _open(folder / MIXTURE_NAME, settings)
    missing = [pair for pair in wanted if pair not in [(run["alpha"], run["seed"]) for run in found.runs]]
    if tell is not None:
        tell(describe_cost(len(missing), len(wanted), steps, plan.max_steps, plan.batch_size))
    _train(found, missing, given, partial(shortened_data, data, share), names, folder, shown=not args.disable_tqdm)
    kept = [run for run in found.runs if (run["alpha"], run["seed"]) in wanted]
    choice = choose_mixture(
        [run["alpha"] for run in kept],
        {side: [run["losses"][side] for run in kept] for side in SIDES},
        found.base_losses,
        objective=search.objective,
        max_forgetting=search.max_forgetting,
        domain_weight=search.domain_weight,
        seed=search.seed,
    )
    found.choice = choice.to_dict()
    write_json(folder / MIXTURE_NAME, asdict(found), indent=2)
    plot_mixtures(kept, found.base_losses, choice, folder / PLOT_NAME)
    with new_file(folder / MIXED_NAME) as file:
        file.write(yaml.safe_dump({**recipe, **constant_alpha(choice.alpha)}, sort_keys=False, allow_unicode=True))
    return found


def shortened_data(data: Data, share: float, seed: int) -> Data:
    """As much of every training corpus as short runs have of the steps, so that passes over it are as many.

    Args:
        data: of whole runs.
        share: of the examples, rounded up; all from 1 on. Streams, whose length is not known, stay whole.
        seed: of which examples are kept.
    """
    if share >= 1:
        return data
    random = np.random.default_rng(seed)

    def kept(corpus: Corpus) -> Corpus:
        if corpus.is_stream:
            return corpus
        size = len(corpus.dataset)
        return with_dataset(corpus, corpus.dataset.select(np.sort(random.permutation(size)[: math.ceil(share * size)])))

    return replace(data, corpora=[kept(corpus) for corpus in data.corpora])


def shortened_rate(warmup_steps: float, kwargs: Mapping[str, Any] | None, share: float) -> dict[str, Any]:
    """The fields of the learning rate's schedule, for runs that have a share of the steps.

    A warm-up below 1 is a share already, as in `transformers`.

    >>> shortened_rate(100, {"num_decay_steps": 40, "min_lr_ratio": 0.1}, 0.25)
    {'warmup_steps': 25, 'lr_scheduler_kwargs': {'num_decay_steps': 10, 'min_lr_ratio': 0.1}}
    >>> shortened_rate(0.1, None, 0.25)
    {}
    """
    fields: dict[str, Any] = {"warmup_steps": round(warmup_steps * share)} if warmup_steps >= 1 else {}
    if kwargs:
        fields["lr_scheduler_kwargs"] = {
            name: round(value * share) if name.startswith("num_") and name.endswith("_steps") else value
            for name, value in kwargs.items()
        }
    return fields


def describe_cost(missing: int, total: int, steps: int, recipe_steps: int, batch_size: int) -> str:
    """What a search costs, in words.

    >>> describe_cost(10, 10, 25, 100, 16)
    '10 runs of 25 steps of 16 examples: as much training as 2.5 runs of the recipe.'
    """
    done = f" ({total - missing} of {total} are there already)" if missing < total else ""
    share = missing * steps / recipe_steps
    plural = "" if share == 1 else "s"
    return (
        f"{missing} runs of {steps} steps of {batch_size} examples{done}: as much training as {share:.2g} run{plural} "
        "of the recipe."
    )


def format_mixtures(found: MixtureSearch) -> str:
    """The losses of both sides by α, beside what their curves predict, and the choice."""
    assert found.choice is not None
    curves = {side: curve_of(found.choice["curves"][side]) for side in SIDES}
    rows = [["M₀", *(f"{found.base_losses[side]:.4f}" for side in SIDES), "", ""]]
    for alpha in sorted({run["alpha"] for run in found.runs}):
        runs = [run for run in found.runs if run["alpha"] == alpha]
        means = [f"{fmean(run['losses'][side] for run in runs):.4f}" for side in SIDES]
        predicted = [_loss_at(curves[side], alpha) for side in SIDES]
        rows.append([f"{short_alpha(alpha)} ({len(runs)} runs)", *means, *predicted])
    chosen = found.choice["alpha"]
    rows.append([f"{short_alpha(chosen)} (chosen)", "", "", *(_loss_at(curves[side], chosen) for side in SIDES)])
    header = ["α", "domain loss", "general loss", "domain, predicted", "general, predicted"]
    low, high = map(short_alpha, found.choice["interval"])
    lines = [format_table(header, rows), "", found.choice["reason"], f"95% bootstrap interval of α: {low} to {high}."]
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in found.choice["warnings"])])


def _loss_at(curve: LossCurve, alpha: float) -> str:
    return f"{float(curve([alpha])[0]):.4f}"


def _choose_search(recipe: Recipe) -> AlphaSearch:
    group = "validation_corpora" if recipe.validation_corpora else "eval_corpora"
    names = list(getattr(recipe, group))
    search = recipe.alpha_search or AlphaSearch(objective="constrained")
    for name in (search.domain, search.general):
        if name not in names:
            raise ValueError(
                f"A search for the mixture needs the sets {search.domain!r} and {search.general!r}, but `{group}` has "
                f"{names}. Name them there."
            )
    if search.objective not in OBJECTIVES:
        raise ValueError(
            f"`alpha_search.objective` must be one of {', '.join(OBJECTIVES)} for a mixture, got {search.objective!r}."
        )
    if search.metric not in (None, "loss"):
        raise ValueError(
            f"`alpha_search.metric` must be loss for a mixture, of which the law is, got {search.metric!r}."
        )
    return search


def _checked_alphas(alphas: Sequence[float]) -> list[float]:
    found = sorted({float(alpha) for alpha in alphas})
    if len(found) < NUM_PARAMETERS or not 0 <= found[0] <= found[-1] <= 1:
        raise ValueError(f"`alphas` must be at least {NUM_PARAMETERS} different shares in [0, 1], got {list(alphas)}.")
    return found


def _open(path: Path, settings: Mapping[str, Any]) -> MixtureSearch:
    """An earlier search in the same place, or a new one."""
    known = read_json(path)
    if known is None:
        return MixtureSearch(runs=[], base_losses={}, settings=dict(settings))
    if known.get("settings") != json.loads(json.dumps(settings, default=str)):
        raise ValueError(
            f"{str(path)!r} holds a search with other settings, whose runs cannot be used. Take another `output_dir`, "
            "or remove the file."
        )
    return MixtureSearch(**{**known, "choice": None})


def _train(
    found: MixtureSearch,
    missing: Sequence[tuple[float, int]],
    recipe: Mapping[str, Any],
    data_of: Callable[[int], Data],
    names: Mapping[str, str],
    folder: Path,
    *,
    shown: bool,
) -> None:
    """Train what is missing, each on the data of its seed, and write down the losses of each run at once."""
    with tempfile.TemporaryDirectory() as place, quiet_bar(len(missing) * recipe["max_steps"], shown=shown) as bar:
        for alpha, seed in missing:
            bar.set_description(f"α = {short_alpha(alpha)}, seed {seed}")
            own = {**constant_alpha(alpha), "seed": seed, "output_dir": place}
            trainer = train_quietly({**recipe, **own}, data_of(seed), bar, evaluate_base=not found.base_losses)
            results = trainer.results()
            if not found.base_losses:
                found.base_losses = {side: results.base_metrics[name]["loss"] for side, name in names.items()}
            losses = {side: results.final_metrics[name]["loss"] for side, name in names.items()}
            if not all(map(math.isfinite, losses.values())):
                raise ValueError(
                    f"The run with α = {short_alpha(alpha)} has diverged: {losses}. Lower the learning rate."
                )
            found.runs.append({"alpha": alpha, "seed": seed, "losses": losses})
            write_json(folder / MIXTURE_NAME, asdict(found), indent=2)


def plot_mixtures(
    runs: Sequence[Mapping[str, Any]],
    base_losses: Mapping[str, float],
    choice: MixtureChoice,
    path: str | os.PathLike[str],
) -> None:
    """The loss of each side over the α of constant mixtures: runs, their curve with its 95% band, the choice.

    Args:
        runs: `alpha` and `losses` by side of each (see `hf_interp.commands.mixture_search.MixtureSearch`).
        base_losses: M₀'s.
        choice: what was chosen.
        path: the picture.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for index, (axes, side) in enumerate(zip(figure.subplots(1, 2), ("domain", "general"), strict=True)):
        colour = _colour(index)
        curve = choice.curves[side]
        name = "law" if isinstance(curve, MixingLaw) else "means of the runs"
        axes.plot(choice.grid, curve(choice.grid), color=colour, label=f"{name}, with the 95% band")
        axes.fill_between(choice.grid, *choice.bands[side], color=colour, alpha=0.15, linewidth=0)
        losses = [run["losses"][side] for run in runs]
        axes.plot([run["alpha"] for run in runs], losses, color=colour, marker="o", linestyle="", label="runs")
        axes.axhline(base_losses[side], color="black", linestyle=":", label="$M_0$")
        axes.axvspan(*choice.interval, color="grey", alpha=0.15, linewidth=0, label="95% interval of α")
        axes.axvline(choice.alpha, color="black", linewidth=1, label=f"chosen: α = {short_alpha(choice.alpha)}")
        _finish(axes, f"{side} loss after training", f"{side} loss, nats", "α, constant")
    _save(figure, path)
