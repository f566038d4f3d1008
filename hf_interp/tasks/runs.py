"""Trained runs: opened again, and the search for their α."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Trainer

from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.plots import plot_curve
from hf_interp.reporting.results import save_results
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.search import search_alpha
from hf_interp.tasks.build import Data, check_recipe, check_search, load_data, prepare_model, task_parts, trainer_class
from hf_interp.tasks.models import load_model
from hf_interp.tasks.parsing import lay_flags, load_recipe
from hf_interp.tasks.presets import load_adapter
from hf_interp.tasks.recipe import Recipe
from hf_interp.training.heads import load_heads
from hf_interp.utils.files import read_json
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME, CURVE_NAME, CURVE_PLOT_NAME, RESULTS_NAME
from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.adapters import neutral_pairs
from hf_interp.weights.matching import match_names
from hf_interp.weights.model_folder import find_folder, open_base
from hf_interp.weights.tensor_files import find_tensors


def search_run(
    trainer: Trainer, recipe: Recipe, sets: Mapping[str, datasets.Dataset], *, apply: bool = False
) -> AlphaCurve:
    """Search for the α of a recipe's model, whose M₀ is what the recipe began with.

    Args:
        trainer: its model is M_θ.
        recipe: names M₀, and says in `alpha_search` how to search.
        sets: validation sets by name.
        apply: leave M_α in the model.

    Raises:
        ValueError: if M₀ cannot be read, or the two cannot be interpolated.
    """
    search = recipe.alpha_search or AlphaSearch()
    name, revision, model = recipe.model_name_or_path, recipe.model_revision, trainer.model
    base: Any = None
    new_names: list[str] = []
    if is_peft_model(model):
        # M₀ is the model without its adapter, but the head that it was given is nobody's
        stored = find_tensors(find_folder(name, "base_model", revision=revision), "base_model")
        names = [pair.name for pair in neutral_pairs(model)]
        known = match_names(stored, names)
        new_names = [name for name in names if name not in known]
    else:
        base = open_base(name, model, revision=revision)
    curve = search_alpha(trainer, base, eval_dataset=sets, finetuned_only=new_names, apply=apply, **search.to_dict())
    curve.base, curve.finetuned = name, trainer.args.output_dir
    return curve


def save_curve(curve: AlphaCurve, folder: str | Path) -> None:
    """Write `curve.json` and `curve.png`."""
    save_results(curve, Path(folder) / CURVE_NAME)
    plot_curve(curve, Path(folder) / CURVE_PLOT_NAME)


def load_run_recipe(path: str | Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe of a run, from its file or from the results in the folder of the run, with flags laid over it.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if the folder does not tell its recipe.
    """
    path = Path(path)
    if not path.is_dir():
        return load_recipe(path, flags)
    recipe = (read_json(path / RESULTS_NAME) or {}).get("recipe")
    if not isinstance(recipe, dict):
        raise ValueError(
            f"The folder {str(path)!r} does not tell its recipe: its {RESULTS_NAME} is missing or has none. Give the "
            "recipe instead."
        )
    return lay_flags({**recipe, "output_dir": str(path)}, flags)


def open_run(recipe: Recipe, args: Any, folder: Path) -> tuple[Trainer, Data]:
    """A trained model in a trainer that evaluates it."""
    recipe.alpha_search = recipe.alpha_search or AlphaSearch()
    args.push_to_hub = False
    check_search(recipe)
    task = check_recipe(recipe, args)
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        model = load_adapter(load_model(recipe, revision=recipe.model_revision).model, folder)
    else:
        model = load_model(recipe, str(folder)).model
    data = load_data(recipe, task, trains=False)
    prepare_model(recipe, task, model, data.tokenizer)
    parts = task_parts(recipe, task, args, data.tokenizer, has_metrics=True)
    trainer: Trainer = trainer_class(task)(model=model, args=args, processing_class=data.tokenizer, **parts)
    if parts["objectives"]:
        load_heads(model, folder)
    return trainer, data


def scored_sets(data: Data) -> Mapping[str, Any]:
    return data.validation_sets or data.eval_sets
