"""`hf-interp merge`: trained runs, merged towards their base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hf_interp.reporting.curve import AlphaCurve, format_curve
from hf_interp.reporting.results import less_is_better
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.scoring import TrainerScorer
from hf_interp.tasks.build import RecipeData
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.runs import open_run, parse_run, save_curve, scored_sets, search_run
from hf_interp.weights.alpha_spec import Alpha
from hf_interp.weights.matching import InterpolationReport
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint
from hf_interp.weights.soups import greedy_soup, write_soup


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Result of `merge_runs`.

    Args:
        members: the runs that went into the soup.
        alpha: the α of the weights.
        curve: how it was found, if it was.
        report: what was interpolated, and what was not and why.
        num_given: how many runs there were to take.
    """

    members: list[str]
    alpha: Alpha
    curve: AlphaCurve | None
    report: InterpolationReport
    num_given: int


def merge_runs(
    base: str,
    runs: Sequence[str],
    output_dir: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    soup: str = "uniform",
    alpha: Alpha | None = None,
    merge_adapter: bool = False,
    **settings: Any,
) -> Merged:
    """Merge one or several trained models of the same base towards it, and write the model.

    Args:
        base: M₀, a folder or a name on the Hub.
        runs: folders or names of fine-tuned models. Of several, the mean stands for M_θ (Model soups, Wortsman et al.
            2022, arXiv 2203.05482).
        output_dir: where to write.
        recipe: tells by which validation sets to choose; needed for a greedy soup, and if there is no `alpha`.
        soup: "uniform" takes all runs, "greedy" those that make the domain's metric no worse.
        alpha: α of the weights; by default it is searched for.
        merge_adapter: where M_θ is an adapter, write the whole model.
        settings: further arguments of `interpolate_checkpoints`.

    Raises:
        ValueError: for bad input, before anything is written.
    """
    if soup not in ("uniform", "greedy"):
        raise ValueError(f"`soup` must be uniform or greedy, got {soup!r}.")
    if recipe is None and (alpha is None or soup == "greedy"):
        what = "`alpha`" if alpha is None else "`soup` greedy"
        raise ValueError(f"{what} needs a recipe, whose validation sets decide. Give `recipe`, or the other settings.")
    members, curve = list(runs), None
    if merge_adapter and len(runs) > 1:
        raise ValueError(f"`merge_adapter` takes one adapter, got {len(runs)} models.")
    if recipe is not None:
        parsed, args = parse_run(recipe)
        trainer, data = open_run(parsed, args, Path(runs[0]))
        members = _mix(trainer, parsed, data, members, soup)
        if alpha is None:
            curve = search_run(trainer, replace(parsed, model_name_or_path=base), data)
            curve.finetuned = ", ".join(members)
            alpha = curve.alpha
    assert alpha is not None
    if merge_adapter:
        report = interpolate_adapter_checkpoint(base, members[0], output_dir, alpha, merge=True, **settings)
    else:
        report = interpolate_checkpoints(base, members, output_dir, alpha, **settings)
    if curve is not None:
        save_curve(curve, output_dir)
    return Merged(members=members, alpha=alpha, curve=curve, report=report, num_given=len(runs))


def format_merged(merged: Merged, soup: str) -> str:
    """Return the curve if there is one, the members of a soup, and what was interpolated, as a text."""
    curve = [] if merged.curve is None else [format_curve(merged.curve)]
    members = [f"{soup} soup of {', '.join(merged.members)}"] if merged.num_given > 1 else []
    return "\n".join([*curve, *members, str(merged.report)])


def parse_dtype(name: str | None) -> torch.dtype | None:
    """Return a floating-point type by its name in torch.

    Raises:
        ValueError: if there is no such type.
    """
    dtype = None if name is None else getattr(torch, name, name)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise ValueError(f"`dtype` must be a floating-point type such as float32, bfloat16 or float16, got {name!r}.")


def _mix(trainer: Trainer, recipe: Recipe, data: RecipeData, runs: list[str], soup: str) -> list[str]:
    """Bring the mean of the runs, or of the best of them, into the trainer's model; return which."""
    if len(runs) == 1:
        return runs
    search = recipe.alpha_search or AlphaSearch()
    model = trainer.model
    if soup == "uniform":
        write_soup({f"run {index}": run for index, run in enumerate(runs)}, model)
        return runs
    sets = {"domain": scored_sets(data)[search.domain]}
    scorer = TrainerScorer(trainer, sets, None, search.metric, search.seed)

    def score() -> float:
        metric = str(scorer.metric or "loss")
        value = float(scorer().selection["domain"][metric].mean())
        return -value if less_is_better(metric, search.greater_is_better) else value

    return greedy_soup(dict(zip(runs, runs, strict=True)), model, score).members
