"""Trained runs, looked at again: the curve of one over α, and the soup of several, merged towards M₀."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hf_interp.adapter_checkpoints import interpolate_adapter_checkpoint
from hf_interp.adapters import load_adapter
from hf_interp.alphas import Alpha
from hf_interp.checkpoints import ADAPTER_CONFIG_NAME
from hf_interp.choices import AlphaSearch
from hf_interp.config import Recipe, lay_flags, load_recipe, parse_recipe
from hf_interp.curves import INTERPOLATED_NAME, AlphaCurve
from hf_interp.files import read_json
from hf_interp.heads import load_heads
from hf_interp.interpolated import check_search, save_curve, search_run
from hf_interp.matching import InterpolationReport
from hf_interp.merging import interpolate_checkpoints
from hf_interp.results import RESULTS_NAME, less_is_better
from hf_interp.scoring import TrainerScorer
from hf_interp.selection import chosen_alpha, open_base
from hf_interp.soups import average_weights, greedy_soup
from hf_interp.tasks import load_model
from hf_interp.train import Data, check_recipe, load_data, prepare_model, task_parts, trainer_class


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What `merge_runs` did.

    Args:
        members: the runs that went into the soup.
        alpha: the α of the weights.
        curve: how it was found, if it was.
        report: what was interpolated, and what was not and why.
    """

    members: list[str]
    alpha: Alpha
    curve: AlphaCurve | None
    report: InterpolationReport


def curve_run(path: str | Path, flags: Sequence[str] = (), *, save_model: bool = False) -> tuple[AlphaCurve, Path]:
    """The curve over α of a run that has been trained.

    Args:
        path: the folder of the run, or its recipe.
        flags: laid over the recipe, such as `--alpha_search.objective constrained`.
        save_model: save M_α at the chosen α into the folder `interpolated` of the run.

    Returns:
        the curve, and the folder of the run, where `curve.json` and `curve.png` are.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if its folder does not tell its recipe, or evaluation sets are missing.
    """
    values = load_run_recipe(path, flags)
    recipe, args = parse_recipe(values)
    folder = Path(args.output_dir or ".")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run in {str(folder)!r}. Train the recipe first: `hf-interp train`.")
    trainer, data = _open_run(recipe, args, folder)
    curve = search_run(trainer, recipe, _sets(data), apply=save_model)
    save_curve(curve, folder)
    if save_model:
        trainer.save_model(str(folder / INTERPOLATED_NAME))
    return curve, folder


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
        parsed, args = parse_recipe(recipe)
        trainer, data = _open_run(parsed, args, Path(runs[0]))
        members = _mix(trainer, parsed, data, members, soup)
        if alpha is None:
            curve = search_run(trainer, replace(parsed, model_name_or_path=base), _sets(data))
            curve.finetuned = ", ".join(members)
            alpha = chosen_alpha(curve)
    assert alpha is not None
    if merge_adapter:
        report = interpolate_adapter_checkpoint(base, members[0], output_dir, alpha, merge=True, **settings)
    else:
        report = interpolate_checkpoints(base, members, output_dir, alpha, **settings)
    if curve is not None:
        save_curve(curve, output_dir)
    return Merged(members=members, alpha=alpha, curve=curve, report=report)


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


def _open_run(recipe: Recipe, args: Any, folder: Path) -> tuple[Trainer, Data]:
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


def _sets(data: Data) -> Mapping[str, Any]:
    return data.validation_sets or data.eval_sets


def _mix(trainer: Trainer, recipe: Recipe, data: Data, runs: list[str], soup: str) -> list[str]:
    """Bring the mean of the runs, or of the best of them, into the trainer's model; returns which."""
    if len(runs) == 1:
        return runs
    search = recipe.alpha_search or AlphaSearch()
    model = trainer.model
    if soup == "uniform":
        mean = average_weights([open_base(run, model) for run in runs])
        model.load_state_dict(mean, strict=False)
        return runs
    sets = {"domain": _sets(data)[search.domain]}
    scorer = TrainerScorer(trainer, sets, None, search.metric, search.seed)

    def score() -> float:
        value = scorer().selection["domain"][str(scorer.metric or "loss")].mean()
        return -float(value) if less_is_better(str(scorer.metric or "loss")) else float(value)

    return greedy_soup(dict(zip(runs, runs, strict=True)), model, score).members
