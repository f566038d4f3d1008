"""Compare ways of moving a model into a domain, at equal steps, over several seeds."""

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_interp.mixture.corpus import content_fingerprint
from hf_interp.reporting.plots import plot_comparison
from hf_interp.reporting.results import (
    Comparison,
    RunResults,
    evaluations,
    forgetting,
    main_metric,
    save_results,
)
from hf_interp.selection.choice import AlphaSearch, check_no_limits
from hf_interp.selection.scoring import halves
from hf_interp.tasks.build import RecipeData, build_trainer, check_recipe, evaluate_at_end, load_data, plan_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import Recipe, with_alpha
from hf_interp.tasks.runs import save_curve, search_run
from hf_interp.tasks.task import get_task
from hf_interp.training.progress import show_by
from hf_interp.training.trainer import InterpolationTrainer
from hf_interp.utils.console import format_table
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.files import read_json, write_json
from hf_interp.utils.model_files import weights_fingerprint
from hf_interp.utils.redaction import without_tokens
from hf_interp.utils.run_folder import CELL_NAME, INTERPOLATED_NAME, RESULTS_NAME

logger = logging.getLogger(__name__)

BASE = "M₀"
INTERPOLATED_SUFFIX = " + M_α"
"""After a method: its weights, interpolated with M₀'s."""
FIXED = {"alpha_controller": None, "alpha_controller_kwargs": None}
METHODS: dict[str, dict[str, Any]] = {
    "domain only": {"alpha": 1.0, **FIXED},
    "general → domain": {
        **FIXED,
        "alpha_schedule_type": "steps",
        "alpha_schedule_kwargs": {"values": [0.0, 1.0]},
        "alpha_initial_steps": 0,
        "alpha_target_steps": 0,
    },
    "constant 0.5": {"alpha": 0.5, **FIXED},
    "scheduled α": {},
}
"""Fields that are laid over the recipe for each method."""

PLOT_NAME = "comparison.png"


def compare(
    recipe: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (0, 1),
    methods: Sequence[str] | None = None,
    resume: bool = False,
    keep: bool = False,
) -> Comparison:
    """Run every method with every seed; `results.json` and a picture go to `output_dir`, the runs into folders below.

    Of every trained model M_α is evaluated too, at the α that the validation sets choose (`alpha_search` says how). A
    recipe without `validation_corpora` has half of each evaluation set taken for that; all methods are then compared on
    the other half.

    Args:
        recipe: a recipe with evaluation sets `general` and `domain`.
        seeds: seeds of the runs: order of the data, dropout, and a new head if the model needs one.
        methods: some of `METHODS`; all by default.
        resume: train nothing again that an earlier call has finished with the same settings, data and M₀.
        keep: keep the model of every run in its folder, and M_α inside.

    Returns:
        the metrics of M₀ and of every method, by seed.

    Raises:
        ValueError: for an unknown method, or a recipe without the two evaluation sets.
    """
    chosen = list(METHODS) if methods is None else list(methods)
    if not chosen or not seeds:
        raise ValueError(f"`methods` and `seeds` must not be empty, got {chosen} and {list(seeds)}.")
    if len({*seeds}) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"`seeds` must be whole numbers from 0 to 2**32 - 1, each once, got {list(seeds)}.")
    for method in chosen:
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"`methods` must be of {known}, got {method!r}." + did_you_mean(method, METHODS))
    parsed, args = parse_recipe(recipe)
    if not {"general", "domain"} <= set(parsed.eval_corpora):
        raise ValueError(
            f"A comparison needs the evaluation sets general and domain, got {list(parsed.eval_corpora)}. "
            "Name them under `eval_corpora`."
        )
    parsed.alpha_search = parsed.alpha_search or AlphaSearch()
    check_no_limits(parsed.alpha_search, "a comparison")
    task = check_recipe(parsed, args)
    data = _with_validation(load_data(parsed, task))
    if args.max_steps < 0:  # epochs, of which other α make other numbers of steps: a comparison is at equal steps
        recipe = with_alpha(recipe, {"max_steps": plan_data(data, args).max_steps})
        args = parse_recipe(recipe)[1]
    for method in chosen:  # now, so that none fails after hours of others
        plan_data(data, parse_recipe(with_alpha(recipe, METHODS[method]))[1])
    for warning in plan_data(data, args).warnings():
        logger.warning(warning)
    folder = Path(args.output_dir or ".")
    rows: list[dict[str, Any]] = []
    base: dict[int, dict[str, dict[str, float]]] = {}  # M₀'s metrics by seed: with the same seed all runs begin alike
    cells = list(product(chosen, seeds))
    facts = {"data": contents(data), "base": weights_fingerprint(Path(parsed.model_name_or_path)), "keep": keep}
    with quiet_bar(len(cells) * args.max_steps, shown=not args.disable_tqdm) as bar:
        tell = CountCells(bar, len(cells))
        for method, seed in cells:
            place = folder / re.sub(r"\W+", "-", method) / f"seed-{seed}"
            own = with_alpha(recipe, {**METHODS[method], "seed": seed, "output_dir": str(place)})
            asked = json.loads(json.dumps({"recipe": without_tokens(own), **facts}, default=str))
            cell: Any = read_json(place / CELL_NAME) if resume else None
            is_new = not isinstance(cell, dict) or cell.get("asked") != asked
            if is_new:
                (place / CELL_NAME).unlink(missing_ok=True)
                bar.set_description(f"{method}, seed {seed}")
                cell = {"asked": asked, **_run_cell(method, own, parsed, data, bar, base.get(seed), keep=keep)}
                write_json(place / CELL_NAME, cell)
            else:
                bar.update(args.max_steps)
            base.setdefault(seed, cell["base"])
            rows += cell["rows"]
            tell.done(f"{method}, seed {seed}: {_sides(cell['rows'])}", is_new=is_new)
    settings = {
        "recipe": without_tokens(recipe),
        "seeds": list(seeds),
        "steps": args.max_steps,
        "alpha_search": asdict(parsed.alpha_search),
        "halved_eval_sets": not parsed.validation_corpora,
    }
    first_rows = [_row(BASE, seed, metrics, metrics, curve=[]) for seed, metrics in base.items()]
    comparison = Comparison(rows=first_rows + rows, settings=settings)
    save_results(comparison, folder / RESULTS_NAME)
    plot_comparison(comparison, folder / PLOT_NAME)
    return comparison


def format_comparison(comparison: Comparison) -> str:
    """Return a table of the main metric of each side by method: mean ± standard deviation over seeds."""
    header, *rows = comparison.shown()
    return format_table(header, rows)


def _run_cell(
    method: str,
    recipe: Mapping[str, Any],
    parsed: Recipe,
    data: RecipeData,
    bar: Any,
    base: dict[str, dict[str, float]] | None,
    *,
    keep: bool,
) -> dict[str, Any]:
    """Train a method with a seed, and return M₀'s metrics, known already or not, and the rows of M_θ and M_α."""
    trainer = train_quietly(recipe, data, bar, evaluate_base=base is None)
    place, seed = Path(recipe["output_dir"]), recipe["seed"]
    base = base or trainer.results().base_metrics
    rows = [_trained_row(method, seed, trainer.results(), base)]
    if keep:
        trainer.save_model()
    bar.set_description(f"{method}, seed {seed}: searching for α of the weights")
    curve = search_run(trainer, parsed, data, apply=True)
    if keep:
        trainer.save_model(str(place / INTERPOLATED_NAME))
    save_curve(curve, place, saved=keep)
    metrics = evaluations([trainer.evaluate()])
    rows.append(_row(f"{method}{INTERPOLATED_SUFFIX}", seed, metrics, base, curve=[], alpha=curve.alpha))
    return {"base": base, "rows": rows}


def _sides(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the main metric of both sides, of M_θ and of M_α."""
    texts = []
    for row in rows:
        metric = main_metric(row["metrics"]) or "loss"
        found = ", ".join(f"{side} {row['metrics'][side][metric]:.3f}" for side in ("domain", "general"))
        texts.append(f"M_α at {row['alpha']:g} {found}" if "alpha" in row else f"{metric} {found}")
    return "; ".join(texts)


def contents(data: RecipeData) -> dict[str, Any]:
    """Return by what the data of a recipe is known again: lengths, and some rows."""
    return {
        name: [len(dataset), content_fingerprint(dataset)] if isinstance(dataset, datasets.Dataset) else None
        for name, dataset in data.by_field().items()
    }


class CountCells:
    """The parts of a comparison or a search that are done: a line for each, above the bar of their steps."""

    def __init__(self, bar: Any, total: int, count: int = 0) -> None:
        self.bar, self.total, self.count = bar, total, count
        self.began, self.trained = time.monotonic(), 0

    def done(self, text: str, *, is_new: bool = True) -> None:
        """Print what came of the next part, and the time that is left at the pace of those that are new."""
        self.count += 1
        self.trained += is_new
        seconds = (time.monotonic() - self.began) / max(self.trained, 1) * (self.total - self.count)
        left = f" | {timedelta(seconds=round(seconds))} left" if self.trained and self.count < self.total else ""
        earlier = "" if is_new else " (from before)"
        self.bar.write(f"{self.count} of {self.total}: {text}{earlier}{left}", file=sys.stderr)


def train_quietly(
    recipe: Mapping[str, Any], data: RecipeData, bar: Any, *, evaluate_base: bool = True
) -> InterpolationTrainer:
    """Train a recipe on data that is loaded already, saying nothing but moving a bar; return the trained trainer."""
    trainer = quiet_trainer(recipe, data, bar)
    trainer.args.eval_on_start = evaluate_base and bool(data.eval_sets)
    trainer.train()
    evaluate_at_end(trainer)
    return trainer


def quiet_trainer(recipe: Mapping[str, Any], data: RecipeData, bar: Any) -> InterpolationTrainer:
    """Return a trainer of a recipe on data that is loaded already, which says nothing but moves a bar."""
    parsed, args = parse_recipe({**recipe, **SILENT_ARGS})
    trainer: InterpolationTrainer = build_trainer(parsed, get_task(parsed.task), args, data)
    trainer.recipe = without_tokens(recipe)
    show_by(trainer, CountSteps(bar))
    return trainer


@contextmanager
def quiet_bar(total: int, *, shown: bool = True) -> Iterator[Any]:
    """Show one bar for several runs (on a terminal), and silence what each of them would say again."""
    ours, verbosity = logging.getLogger("hf_interp"), transformers_logging.get_verbosity()
    level = ours.level
    ours.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with tqdm(total=total, unit="step", disable=None if shown else True) as bar:
            yield bar
    finally:
        ours.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


SILENT_ARGS = {
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "log_level": "error",
    "push_to_hub": False,
}


class CountSteps(TrainerCallback):
    """A callback that moves one bar over the steps of all runs."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(1)


def _with_validation(data: RecipeData) -> RecipeData:
    """Return the data, with half of each evaluation set as its validation set if there are no others."""
    if data.validation_sets:
        return data
    parts = {name: halves(len(dataset), 0, name) for name, dataset in data.eval_sets.items()}
    return replace(
        data,
        eval_sets={name: dataset.select(parts[name][1]) for name, dataset in data.eval_sets.items()},
        validation_sets={name: dataset.select(parts[name][0]) for name, dataset in data.eval_sets.items()},
    )


def _row(
    method: str, seed: int, metrics: Mapping[str, Any], base: Mapping[str, Mapping[str, float]], **more: Any
) -> dict[str, Any]:
    lost = forgetting(base["general"], metrics["general"])
    return {"method": method, "seed": seed, "metrics": metrics, "forgetting": lost, **more}


def _trained_row(
    method: str, seed: int, results: RunResults, base: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return the row of a run, with what the picture needs of it: α, the domain's share and the metrics, by step."""
    corpora = results.plan["corpora"]
    domain = [corpus["name"] for corpus in corpora if corpus["side"] == "domain"]
    curve = [{"step": 0, **{f"{name}_{key}": value for name, found in base.items() for key, value in found.items()}}]
    for entry in results.log_history:
        point = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
        if "alpha" in entry:
            point["alpha"] = entry["alpha"]
            point["domain_share"] = sum(entry[f"share_{name}"] for name in domain)
        if point and entry["step"] > 0:
            curve.append({"step": entry["step"], **point})
    drawn = {corpus["name"]: corpus["drawn"] for corpus in corpora}
    return _row(method, seed, results.final_metrics, base, curve=curve, drawn=drawn)
