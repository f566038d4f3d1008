"""`hf-interp curve`: a trained run at every α."""

from collections.abc import Sequence
from pathlib import Path

from hf_interp.commands.verify import load_order
from hf_interp.reporting.audits import save_harness
from hf_interp.reporting.card import save_card
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.hub import render_card
from hf_interp.reporting.results import load_run_results
from hf_interp.tasks.harness import Harness
from hf_interp.tasks.runs import load_run_recipe, open_run, over_alpha, parse_run, save_curve, search_run
from hf_interp.utils.run_folder import INTERPOLATED_NAME, RESULTS_NAME


def curve_run(
    path: str | Path, flags: Sequence[str] = (), *, save_model: bool = False, with_harness: bool = False
) -> tuple[AlphaCurve, Path]:
    """Evaluate M_α of a run that has been trained over α, choose an α, and write the curve.

    Args:
        path: the folder of the run, or its recipe.
        flags: laid over the recipe, such as `--alpha_search.objective constrained`.
        with_harness: measure M_α by the tasks of lm-eval in `eval_harness` at every α too, for `results.json`.
        save_model: save M_α at the chosen α into the folder `interpolated` of the run, and the card that tells of it.

    Returns:
        the curve, and the folder of the run, where `curve.json` and `curve.png` are.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if its folder does not tell its recipe, or evaluation sets are missing.
    """
    recipe, args = parse_run(load_run_recipe(path, flags))
    folder = Path(args.output_dir or ".")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run in {str(folder)!r}. Train the recipe first: `hf-interp train`.")
    if not with_harness:
        recipe.eval_harness = None
    elif recipe.eval_harness is None:
        raise ValueError("Say which tasks of lm-eval: --eval_harness hellaswag, or `eval_harness` in the recipe.")
    harness, results = Harness(recipe), load_run_results(folder / RESULTS_NAME) if with_harness else None
    trainer, data = open_run(recipe, args, folder)
    for alpha in over_alpha(trainer, recipe, data) if with_harness else ():
        harness.measure(trainer, alpha)
    limits_leakage = recipe.alpha_search is not None and recipe.alpha_search.max_leakage is not None
    plan = load_order(folder).plan if limits_leakage else None
    curve = search_run(trainer, recipe, data, plan, apply=save_model)
    if save_model:
        trainer.save_model(str(folder / INTERPOLATED_NAME))
        harness.measure(trainer, curve.alpha)
    save_curve(curve, folder, saved=save_model)
    if results is not None:
        results.harness = harness.entries
        save_harness(results, folder)
    if (save_model or with_harness) and (folder / RESULTS_NAME).is_file():
        save_card(render_card(folder), folder)  # the former tells of other weights
    return curve, folder
