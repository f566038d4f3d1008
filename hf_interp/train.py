"""Train what a recipe describes: `accelerate launch -m hf_interp.train recipe.yaml --learning_rate 1e-4`."""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_interp.mixture.collators import DISTILL
from hf_interp.reporting.audits import format_gaps, format_harness, save_harness
from hf_interp.reporting.card import save_card
from hf_interp.reporting.curve import find_curve, format_curve
from hf_interp.reporting.hub import check_name, make_repo, push_run, render_card
from hf_interp.reporting.plots import plot_run
from hf_interp.reporting.results import RunResults, save_results
from hf_interp.selection.groups import check_gap, measure_groups
from hf_interp.selection.leaks import compare_pairs
from hf_interp.selection.scoring import check_whole_weights
from hf_interp.tasks.build import build_trainer, check_recipe, evaluate_at_end, format_cut, load_data, plan_data
from hf_interp.tasks.corpora.splits import format_few, format_shared
from hf_interp.tasks.harness import Harness
from hf_interp.tasks.methods import describe_method, format_method
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.runs import check_metric, find_members, save_curve, scored_groups, scored_sets, search_run
from hf_interp.tasks.self_corpus import format_made
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.model_info import count_parameters
from hf_interp.training.progress import ProgressLine, show_by
from hf_interp.training.pushing import check_strategy
from hf_interp.training.session import alone_in
from hf_interp.training.trackers import add_picture
from hf_interp.utils.console import format_table, run_command
from hf_interp.utils.model_files import weights_fingerprint
from hf_interp.utils.redaction import without_tokens
from hf_interp.utils.run_folder import CURVE_NAME, CURVE_PLOT_NAME, INTERPOLATED_NAME, RESULTS_NAME, RUN_PLOT_NAME

logger = logging.getLogger(__name__)


def run_recipe(recipe: Mapping[str, Any]) -> RunResults:
    """Load, train, evaluate and save; the model, `results.json` and a picture go to `output_dir`.

    With `alpha_search` the curve of M_α goes there too, and M_α at the chosen α into `interpolated` inside. Stderr
    tells how far the run is: on a terminal in one line that is renewed, unless the recipe sets `disable_tqdm`.

    Args:
        recipe: a recipe as a plain mapping (see `hf_interp.tasks.parsing.load_recipe`).

    Raises:
        ValueError, OSError: for bad input, before anything is trained.
    """
    parsed, args = parse_recipe(recipe)
    renewed, args.disable_tqdm = sys.stderr.isatty() and not args.disable_tqdm, True  # the bars of transformers
    check_processes(args)
    task = check_recipe(parsed, args)
    if args.process_index == 0:
        print("".join(f"{line}\n" for line in format_method(recipe)), end="")
    with args.main_process_first(desc="loading and tokenising the corpora"):
        harness = Harness(parsed)
        data = load_data(parsed, task)
    plan = plan_data(data, args)  # now, so that bad input leaves nothing behind
    if parsed.alpha_search is not None and parsed.alpha_search.max_leakage is not None and not plan.is_adaptive:
        find_members(parsed, data.tokenizer, plan)
    few = format_few(data.measured_rows(), task.info.answer)
    for warning in [*format_shared(data.shared), *few] if args.process_index == 0 else []:
        logger.warning(warning)
    push = prepare_push(args)
    folder, is_main = Path(args.output_dir or "."), args.process_index == 0
    trainer = build_trainer(parsed, task, args, data)
    distilled = [corpus.name for corpus in data.corpora if corpus.objective == DISTILL]
    average = trainer.weight_average
    progress = ProgressLine(folder, renewed=renewed, average=average, distilled=distilled)
    show_by(trainer, progress)
    with alone_in(folder) if is_main else nullcontext(), progress.kept() if is_main else nullcontext():
        trainer.recipe, trainer.keeps_results = without_tokens(recipe), False  # they are written with the model
        if parsed.peft is not None and is_main:
            print(count_parameters(trainer.model))
        if is_main:
            print("".join(f"{line}\n" for line in format_made(data.made)), end="")
        if parsed.alpha_search is not None or parsed.eval_harness is not None:
            check_whole_weights(trainer)
        if parsed.alpha_search is not None:
            check_metric(trainer, parsed.alpha_search, scored_sets(data))
            check_gap(parsed.alpha_search, scored_groups(data))
        grouped = (trainer, data.eval_sets, data.groups.get("eval_corpora", {}), parsed.alpha_search)
        groups, pairs = {"base": measure_groups(*grouped)}, {"base": compare_pairs(trainer, data.pairs)}
        harness.measure(trainer, 0.0)
        trainer.train(resume_from_checkpoint=read_resume(args.resume_from_checkpoint))
        trainer.save_model()
        evaluate_at_end(trainer)
        groups["final"], pairs["final"] = measure_groups(*grouped), compare_pairs(trainer, data.pairs)
        harness.measure(trainer, 1.0)
        results = trainer.results()
        results.groups = {name: {part: groups[part][name] for part in groups} for name in groups["final"]}
        results.pairs = {name: {part: pairs[part][name] for part in pairs} for name in data.pairs}
        results.cut = {name: list(counts) for name, counts in data.cut.items()}
        results.method, results.packed = describe_method(recipe), data.packed
        results.made = {name: found.text for name, found in data.made.items()}
        results.harness = harness.entries
        if is_main:
            results.model["weights"] = weights_fingerprint(folder)
            remove_interpolated(folder)
            save_results(results, folder / RESULTS_NAME)
            plot_run(results, folder / RUN_PLOT_NAME)
        if parsed.alpha_search is not None:
            progress.note(trainer.state, "choosing α of the weights")
            curve = search_run(trainer, parsed, data, trainer.plan, apply=True)
            trainer.save_model(str(folder / INTERPOLATED_NAME))
            harness.measure(trainer, curve.alpha)
            if is_main:
                save_curve(curve, folder, saved=True)
                add_picture(trainer, "alpha_curve", folder / CURVE_PLOT_NAME)
        if is_main and results.harness:
            save_harness(results, folder)
        if is_main:
            save_card(render_card(folder, repo_id=args.hub_model_id), folder)
            if push is not None:
                print(push(folder))
            progress.write(phase="ended")
    return results


def remove_interpolated(folder: Path) -> None:
    """Remove the curve and M_α that an earlier run has left in a folder, whose M_θ is another now."""
    for name in (CURVE_NAME, CURVE_PLOT_NAME):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / INTERPOLATED_NAME, ignore_errors=True)


def prepare_push(args: InterpolationConfig) -> Callable[[Path], Any] | None:
    """Take pushing and its token out of the arguments, and return what pushes a folder when all is there.

    The repository is made before anything is trained, so that a token that is refused shows now. It is
    `hub_model_id`, or the name of the run's folder.

    Raises:
        ValueError: for a name that the Hub does not allow, a public repository that should be private, or a strategy
            that pushes checkpoints.
        OSError: if the Hub refuses or cannot be reached.
    """
    pushes, args.push_to_hub = args.push_to_hub, False
    token, args.hub_token = args.hub_token, None  # or it is saved with the arguments
    if not pushes:
        return None
    name = args.hub_model_id or Path(args.output_dir or ".").absolute().name
    check_name(name)
    check_strategy(args.hub_strategy)
    if args.process_index == 0:
        make_repo(name, private=args.hub_private_repo, token=token)
    return partial(push_run, repo_id=name, private=args.hub_private_repo, token=token, revision=args.hub_revision)


def check_processes(args: InterpolationConfig) -> None:
    """Refuse processes that a launcher has started, but that have not found each other."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if args.world_size < started:
        raise ValueError(
            f"The launcher has started {started} processes, but each would train alone on all of the data, because "
            "there is no GPU. Set `use_cpu: true` in the recipe (--use_cpu true), or start one process."
        )


def read_resume(value: str | None) -> str | bool | None:
    """Return `resume_from_checkpoint` as the trainer wants it: a folder, True for the last, "auto" for that or none."""
    return {"true": True, "false": None}.get(value.lower(), value) if isinstance(value, str) else value


def format_results(results: RunResults) -> str:
    """M₀ against the trained model, by evaluation set and metric."""
    rows = []
    for name, final in results.final_metrics.items():
        for metric, value in final.items():
            base = results.base_metrics.get(name, {}).get(metric)
            rows.append([f"{name} {metric}", "" if base is None else f"{base:.4f}", f"{value:.4f}"])
    lost = [["forgetting (general " + metric + ")", "", f"{value:.4f}"] for metric, value in results.forgetting.items()]
    return format_table(["metric", "M₀", "trained"], rows + lost)


def train_and_report(path: str, flags: Sequence[str] = ()) -> RunResults:
    """Train a recipe from a file with flags laid over it, and print what came of it."""
    results = run_recipe(load_recipe(path, flags))
    folder = results.config["output_dir"]
    if PartialState().is_main_process:
        print("\n".join([format_results(results), *format_cut(results.cut), *format_gaps(results)]))
        print("".join(f"{line}\n" for line in format_harness(results.harness)), end="")
        print(f"The model, {RESULTS_NAME} and {RUN_PLOT_NAME} are in {folder}.")
        if curve := find_curve(folder):
            print("\n".join(["", format_curve(curve), *format_gaps(None, curve)]))
            print(f"M_α is in {folder}/{INTERPOLATED_NAME}; {CURVE_NAME} and {CURVE_PLOT_NAME} are in {folder}.")
    PartialState().destroy_process_group()  # or gloo's threads may abort a process that ends before the others
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command behind `accelerate launch`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_interp.train", description="Train what a recipe describes.", allow_abbrev=False
    )
    parser.add_argument("recipe", help="the recipe, a YAML file; any other flag sets a field of it")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    args, flags = parser.parse_known_args(argv)
    return run_command(lambda: train_and_report(args.recipe, flags), traceback=args.traceback)


if __name__ == "__main__":
    sys.exit(main())
