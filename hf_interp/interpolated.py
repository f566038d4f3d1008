"""M_α of a trained run: the curve over α on its validation sets, drawn and saved beside the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from transformers import Trainer

from hf_interp.adapter_kinds import is_peft_model
from hf_interp.adapter_weights import neutral_pairs
from hf_interp.checkpoint_folders import find_folder
from hf_interp.choices import AlphaSearch
from hf_interp.config import Recipe
from hf_interp.curves import CURVE_NAME, CURVE_PLOT_NAME, AlphaCurve
from hf_interp.matching import match_names
from hf_interp.plots import plot_curve
from hf_interp.results import save_results
from hf_interp.selection import open_base, search_alpha
from hf_interp.tensor_files import find_tensors


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


def check_search(recipe: Recipe) -> None:
    """Refuse a recipe that asks for a search and has no sets for it.

    Raises:
        ValueError: if the set of a side is missing.
    """
    search = recipe.alpha_search
    if search is None:
        return
    group = "validation_corpora" if recipe.validation_corpora else "eval_corpora"
    found = getattr(recipe, group)
    for name in (search.domain, search.general):
        if name not in found:
            raise ValueError(
                f"`alpha_search` needs the sets {search.domain!r} and {search.general!r}, but `{group}` has "
                f"{list(found)}. Name them there, or say in `alpha_search` what `domain` and `general` are called."
            )
