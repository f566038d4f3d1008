"""Trained runs: opened again, and the search for their α."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Trainer

from hf_interp.mixture.plan import MixturePlan
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.plots import plot_curve
from hf_interp.reporting.results import less_is_better, main_metric, save_results
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.groups import Groups
from hf_interp.selection.leaks import Members
from hf_interp.selection.scoring import TrainerScorer
from hf_interp.selection.search import search_alpha
from hf_interp.tasks.build import (
    RecipeData,
    audited_corpus,
    check_recipe,
    load_data,
    prepare_model,
    task_parts,
    tokenise,
    trainer_class,
)
from hf_interp.tasks.corpora.loading import first_rows
from hf_interp.tasks.models import load_model
from hf_interp.tasks.parsing import lay_flags, load_recipe, parse_recipe
from hf_interp.tasks.presets import load_adapter
from hf_interp.tasks.probes import canary_rows
from hf_interp.tasks.recipe import Recipe
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.heads import load_heads
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.files import read_json, write_json
from hf_interp.utils.model_files import weights_fingerprint
from hf_interp.utils.redaction import PATH_KEYS
from hf_interp.utils.run_folder import (
    ADAPTER_CONFIG_NAME,
    CURVE_NAME,
    CURVE_PLOT_NAME,
    INTERPOLATED_NAME,
    INTERPOLATION_NAME,
    RESULTS_NAME,
)
from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.adapters import scaled_parameters
from hf_interp.weights.interpolate import open_interpolation
from hf_interp.weights.live import batch_norms
from hf_interp.weights.model_folder import find_lacking, open_base

FEW_EXAMPLES = 16
MIN_ROWS = 10
STATISTICS_ROWS = 256
"""Rows of each kind without which a bootstrap of them says nothing."""
READ_IN_EVALUATION = (
    *("output_dir", "seed", "full_determinism", "disable_tqdm", "log_level", "remove_unused_columns"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_use_gather_object", "eval_do_concat_batches"),
    *("prediction_loss_only", "batch_eval_metrics", "include_for_metrics"),
    *("use_cpu", "bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "accelerator_config"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"),
)
"""Training arguments that an evaluation reads. All others are of no account when a run is opened again: to ask for what
they need, such as evaluation sets for `eval_strategy: steps`, would be to refuse runs that can be evaluated."""


def search_run(
    trainer: Trainer, recipe: Recipe, data: RecipeData, plan: MixturePlan | None = None, *, apply: bool = False
) -> AlphaCurve:
    """Search for the α of a trainer's model M_θ on its validation sets, M₀ being what its recipe began with.

    `alpha_search` of the recipe says how; `apply` leaves M_α in the model. By its `plan` it is known which rows M_θ was
    trained on, as a limit on the leakage needs.
    """
    search = recipe.alpha_search or AlphaSearch()
    base, new_names = find_base(trainer, recipe)
    curve = search_alpha(
        trainer,
        base,
        eval_dataset=scored_sets(data),
        groups=scored_groups(data),
        pairs=data.pairs,
        members=None if search.max_leakage is None or plan is None else find_members(recipe, data.tokenizer, plan)[0],
        finetuned_only=new_names,
        recalibrate=statistics_batches(trainer, data),
        apply=apply,
        **asdict(search),
    )
    curve.base, curve.finetuned = recipe.model_name_or_path, trainer.args.output_dir
    return curve


def find_members(
    recipe: Recipe, tokenizer: Any, plan: MixturePlan, corpus: str | None = None, num_examples: int = 1000
) -> tuple[Members, dict[str, int]]:
    """Return rows of a training corpus that a run has read, as many of its side's test set, and how many there are.

    Rows of the test set that stand in the corpus too are left out, as are canaries: they are no rows of its kind.

    Raises:
        ValueError: for a corpus that does not fit, or too few rows.
    """
    search, name = recipe.alpha_search or AlphaSearch(), audited_corpus(recipe, corpus)
    sets, held = {**recipe.validation_corpora, **recipe.eval_corpora}, held_out(recipe, name)
    trained, _, _, known = tokenise(name, recipe.corpora[name], recipe, tokenizer)
    tested, _, _, asked = tokenise(held, sets[held], recipe, tokenizer)
    assert known is not None
    assert asked is not None
    read = rows_read(plan, name)
    if len(known) == len(trained):  # of packed texts, whose rows are no longer those of the file, none is known
        read = np.setdiff1d(read, canary_rows(name, recipe.corpora[name], len(known)))
    unseen = np.flatnonzero(~np.isin(asked, known)) if len(asked) == len(tested) else np.arange(len(tested))
    rows = [np.random.default_rng(search.seed).permutation(some)[:num_examples] for some in (read, unseen)]
    if min(map(len, rows)) < MIN_ROWS:
        raise ValueError(
            f"An audit needs at least {MIN_ROWS} rows of {name!r} that were read and as many of the set "
            f"{held!r} that are not in it, got {len(rows[0])} and {len(rows[1])}. Add test rows, or audit "
            "another `corpus`."
        )
    sizes = {"members": len(rows[0]), "others": len(rows[1]), "left_out": len(tested) - len(unseen)}
    return Members(trained.select(rows[0]), tested.select(rows[1])), sizes


def held_out(recipe: Recipe, corpus: str) -> str:
    """Return the name of the test set whose rows are of the kind of a training corpus: that of its side."""
    search = recipe.alpha_search or AlphaSearch()
    name = search.domain if recipe.corpora[corpus].side == "domain" else search.general
    if name not in {**recipe.validation_corpora, **recipe.eval_corpora}:
        raise ValueError(f"An audit of {corpus!r} needs test rows of its side: there is no set {name!r}. Add it.")
    return name


def rows_read(plan: MixturePlan, name: str) -> npt.NDArray[np.int64]:
    """Return the rows of a corpus that a run has read, rising, each once."""
    found: set[int] = set()
    for step in range(plan.max_steps):
        part = plan.plan_of(step)
        draw = part.locate(range(step * part.batch_size, (step + 1) * part.batch_size))
        names = np.array([corpus.name for corpus in part.corpora])
        found |= set(draw.example[names[draw.corpus] == name].tolist())
    return np.array(sorted(found), dtype=np.int64)


def statistics_batches(trainer: Trainer, data: RecipeData) -> list[Any] | None:
    """Return inputs on which the statistics of batch norms are measured at every α; `None` for a model without.

    They are of the sets by which α is chosen, whose labels say nothing to them.
    """
    if is_peft_model(trainer.model) or not batch_norms(trainer.model):
        return None
    size, found = trainer.args.per_device_eval_batch_size, []
    for rows in scored_sets(data).values():
        some = list(trainer._remove_unused_columns(first_rows(rows, STATISTICS_ROWS), "evaluation"))
        found += [trainer.data_collator(some[first : first + size]) for first in range(0, len(some), size)]
    return found


def over_alpha(trainer: Trainer, recipe: Recipe, data: RecipeData) -> Iterator[float]:
    """Bring a trainer's model to M_α for one α after the other: M₀, those of the search, M_θ; at the end it is M_θ."""
    search, (base, new_names) = recipe.alpha_search or AlphaSearch(), find_base(trainer, recipe)
    options: dict[str, Any] = {
        "extrapolate": search.extrapolate,
        "recalibrate": statistics_batches(trainer, data),
    }
    with open_interpolation(base, trainer.model, finetuned_only=new_names, **options) as interpolation:
        for alpha in dict.fromkeys((0.0, *search.grid(), 1.0)):
            interpolation.set_alpha(alpha)
            yield alpha


def find_base(trainer: Trainer, recipe: Recipe) -> tuple[Any, list[str]]:
    """Return M₀ of a trainer's model, `None` for an adapter, and the names of its head that M₀ lacks."""
    name, revision, model = recipe.model_name_or_path, recipe.model_revision, trainer.model
    if not is_peft_model(model):
        return open_base(name, model, revision=revision), []
    # M₀ is the model without its adapter, but the head that it was given is nobody's
    return None, find_lacking(name, model, [pair.name for pair in scaled_parameters(model)], revision=revision)


def check_metric(trainer: Trainer, search: AlphaSearch, sets: Mapping[str, Any]) -> None:
    """Refuse a metric for a search that no evaluation brings: of a few examples, or of all where they lack it."""
    names: list[str] = []
    for few in (FEW_EXAMPLES, None):
        sides = (search.domain, search.general)
        scored = {side: sets[side] if few is None else first_rows(sets[side], few) for side in sides}
        first, second = (found for found in TrainerScorer(trainer, scored, None, None, search.seed)().report.values())
        names = [name for name in first if name in second]
        metric = search.metric or main_metric({"": dict.fromkeys(names, 0.0)})
        if metric in names:
            less_is_better(metric, search.greater_is_better)
            return
    raise ValueError(
        f"`alpha_search.metric` must be one of {', '.join(names)}, which both sides have, got {search.metric!r}."
        + did_you_mean(str(search.metric), names)
    )


def save_curve(curve: AlphaCurve, folder: str | Path, *, saved: bool = False) -> None:
    """Write `curve.json` and `curve.png`, and, if M_α was `saved` at the curve's α, of which weights they are."""
    folder = Path(folder)
    account = folder / INTERPOLATED_NAME / INTERPOLATION_NAME
    curve.weights = {"finetuned": weights_fingerprint(folder)}
    if saved:
        curve.weights["interpolated"] = weights_fingerprint(account.parent)
        write_json(account, {"alpha": curve.alpha, "weights": curve.weights}, indent=2)
    else:  # what was saved before is still M_α if α and M_θ are the same
        found = read_json(account) or {}
        weights = found.get("weights") or {}
        if found.get("alpha") == curve.alpha and weights.get("finetuned") == curve.weights["finetuned"]:
            curve.weights = weights
    save_results(curve, folder / CURVE_NAME)
    plot_curve(curve, folder / CURVE_PLOT_NAME)


def load_run_recipe(path: str | Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Load the recipe of a run, from its file or from the results in its folder, with flags laid over it."""
    if trained := [flag for flag in flags if flag.startswith("--adversarial")]:
        raise ValueError(f"`{trained[0].partition('=')[0]}` is of training, and here a run is evaluated. Leave it out.")
    path = Path(path).expanduser()
    if not path.is_dir():
        return load_recipe(path, flags)
    results = read_json(path / RESULTS_NAME)
    recipe = results.get("recipe") if isinstance(results, dict) else None
    if not isinstance(recipe, dict):
        raise ValueError(
            f"The folder {str(path)!r} does not tell its recipe: its {RESULTS_NAME} is missing or has none. Give the "
            "recipe instead."
        )
    folder = Path(results.get("working_dir") or ".")
    if folder.resolve() != Path.cwd():
        recipe = anchor_paths(recipe, folder)
    # the code of a folder is run for those alone who ask for it now, whatever its results say
    return lay_flags({**recipe, "trust_remote_code": False, "output_dir": str(path)}, flags)


def anchor_paths(value: Any, folder: Path, key: str = "") -> Any:
    """Return a recipe whose relative paths begin with the folder that they are relative to, where that has them."""
    if isinstance(value, Mapping):
        return {name: anchor_paths(inner, folder, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [anchor_paths(inner, folder, key) for inner in value]
    is_relative = isinstance(value, str) and key in PATH_KEYS and value and value[0] not in "/~" and "://" not in value
    return str(folder.resolve() / value) if is_relative and any(folder.glob(value)) else value


def parse_run(recipe: Mapping[str, Any]) -> tuple[Recipe, InterpolationConfig]:
    """Parse the recipe of a run that is only evaluated; see `parse_recipe`."""
    dropped = {entry.name for entry in fields(InterpolationConfig)} - {entry.name for entry in fields(Recipe)}
    dropped -= {*READ_IN_EVALUATION}
    read = {name: value for name, value in recipe.items() if name not in dropped}
    return parse_recipe({**read, "report_to": "none"})


def open_run(recipe: Recipe, args: InterpolationConfig, folder: Path) -> tuple[Trainer, RecipeData]:
    """Open the trained model of a folder in a trainer that evaluates it, by what `parse_run` gives."""
    recipe.alpha_search = recipe.alpha_search or AlphaSearch()
    task = check_recipe(recipe, args, trains=False)
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False
    data = load_data(recipe, task, trains=False)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        model = load_adapter(load_model(recipe).model, folder)
    else:
        model = load_model(recipe, str(folder)).model
    prepare_model(recipe, task, model, data.tokenizer)
    parts = task_parts(recipe, task, args, data.tokenizer, model, has_metrics=True)
    trainer: Trainer = trainer_class(task)(model=model, args=args, processing_class=data.tokenizer, **parts)
    if parts["objectives"]:
        load_heads(model, folder)
    return trainer, data


def scored_sets(data: RecipeData) -> Mapping[str, Any]:
    """Return the sets by which α is chosen: the validation sets, or the evaluation sets where there are none."""
    return data.validation_sets or data.eval_sets


def scored_groups(data: RecipeData) -> Mapping[str, Groups]:
    """Return the groups of these sets."""
    return data.groups.get("validation_corpora" if data.validation_sets else "eval_corpora", {})
