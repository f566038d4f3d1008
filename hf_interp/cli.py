"""The command `hf-interp`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import shtab

from hf_interp.utils.console import run_command
from hf_interp.utils.run_folder import RESULTS_NAME

DESCRIPTION = """Move a pretrained model into a domain without losing what it knew.

A recipe is a YAML file; every field of it is also a flag, such as --learning_rate 1e-4 or
--corpora.domain.path my.csv, and flags win over the file. A run is the folder (output_dir) that
training leaves."""

EPILOG = """examples:
  hf-interp demo                                  # see it work: no network, two to three minutes
  hf-interp plan recipe.yaml                      # what will be read; trains nothing
  hf-interp train recipe.yaml --alpha_end 0.75
  hf-interp curve runs/mine --save_model          # choose α of the weights, write M_α
  hf-interp report runs/mine runs/other           # side by side, in one HTML file

Each command has its own --help. Exit status: 0, 2 with one line on stderr for bad input, 130 if
interrupted. Tab completion, for bash: source <(hf-interp --print-completion bash)"""

EXAMPLES = {
    "demo": ["demo", "demo --max_steps 40 --seeds 0 1 --folder quick"],
    "train": ["train recipe.yaml", "train recipe.yaml --corpora.domain.path my.csv --alpha_end 0.75 --seed 1"],
    "plan": [
        "plan recipe.yaml --plot plan.png",
        "plan recipe.yaml --distance",
        "plan recipe.yaml --resume runs/mine --num_processes 8",
    ],
    "verify": ["verify runs/mine", "verify runs/one_process runs/eight_processes"],
    "compare": ["compare recipe.yaml --seeds 0 1 2 3 4", "compare recipe.yaml --methods 'domain only' 'constant 0.5'"],
    "tune": ["tune recipe.yaml --trials 20", "tune recipe.yaml --space alpha_end=0.5..1.0"],
    "curve": ["curve runs/mine --save_model", "curve runs/mine --alpha_search.objective constrained"],
    "merge": ["merge BASE runs/mine merged --alpha 0.7", "merge BASE runs/a runs/b soup --recipe recipe.yaml"],
    "app": ["app runs/mine", "app --base google-bert/bert-base-uncased --finetuned user/model"],
    "card": ["card runs/mine", "card runs/mine --comparison runs/comparison --license apache-2.0"],
    "report": ["report runs/mine", "report runs/a runs/b runs/comparison --output report.html"],
    "push": ["push runs/mine --repo user/name --private"],
}
"""Of every command, as its help shows them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 with one line on stderr for bad input."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    if flags and not args.takes_flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    return run_command(lambda: args.run(args, flags), traceback=args.traceback)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-interp",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(parser, help="print a completion script for this shell, and exit")
    parser.add_argument("--version", action="version", version=f"hf_interp {metadata.version('hf_interp')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add(
        commands,
        "demo",
        _demo,
        "an example that needs no network: corpora, a model, a comparison, a picture",
        recipe=False,
    )
    _add(commands, "train", _train, "train what a recipe describes")
    _add(commands, "plan", _plan, "say what a recipe will read, without training")
    _add(commands, "verify", _verify, "say whether two runs read the same, and where they part", recipe=False)
    _add(commands, "compare", _compare, "compare α schedules on a recipe at equal steps")
    _add(commands, "tune", _tune, "search for the settings of α that are best on a recipe's validation sets")
    _add(commands, "curve", _curve, "evaluate a trained run at every α between M₀ and M_θ, and choose", recipe=False)
    _add(commands, "merge", _merge, "write M_α = α·M_θ + (1 − α)·M₀ of checkpoints", recipe=False)
    _add(
        commands,
        "app",
        _app,
        "serve a page with a slider for α: a text in, M₀'s, M_α's and M_θ's answers",
        recipe=False,
    )
    _add(commands, "card", _card, "render the model card of a trained run from its results", recipe=False)
    _add(commands, "report", _report, "write runs and comparisons side by side as one HTML page", recipe=False)
    _add(commands, "push", _push, "push a trained run to the Hub, with its results and card", recipe=False)
    return parser


def _add(commands: Any, name: str, run: Any, summary: str, *, recipe: bool = True) -> None:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    command.set_defaults(run=run, takes_flags=recipe)
    if recipe:
        command.add_argument("recipe", help="the recipe, a YAML file").complete = shtab.FILE  # type: ignore[attr-defined]
        command.epilog = "Any other flag sets a field of the recipe."
    if name == "plan":
        command.add_argument("--plot", metavar="FILE", help="draw the plan into this file (.png, .svg, .pdf)")
        command.add_argument("--json", action="store_true", help="print the plan as JSON")
        command.add_argument(
            "--resume", metavar="CHECKPOINT", help="go on from this checkpoint, or from the last one of this folder"
        )
        command.add_argument(
            "--num_processes", type=int, help="plan for so many processes (default: the checkpoint's, or 1)"
        )
        command.add_argument(
            "--distance",
            action="store_true",
            help="measure how far apart the sides are for the pretrained model",
        )
        command.add_argument(
            "--distance_examples", type=int, metavar="N", help="of --distance: examples of each side (default: 500)"
        )
    if name == "verify":
        command.add_argument("first", metavar="RUN", help="the folder of a run, a checkpoint, or a results.json")
        command.add_argument("second", metavar="RUN", nargs="?", help="another; without it, check RUN against its plan")
        command.add_argument("--json", action="store_true", help="print the verdict as JSON")
        command.epilog = "Exit status: 0 if they read the same, 1 if not, 2 for bad input."
    if name == "compare":
        command.add_argument(
            "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs (default: 0 1 2)"
        )
        command.add_argument("--methods", nargs="+", help="some of the methods (default: all)")
        command.add_argument("--json", action="store_true", help="print the comparison as JSON")
    if name == "train":
        command.add_argument("--json", action="store_true", help="print the results as JSON, and all else to stderr")
    if name == "tune":
        _add_tune_arguments(command)
    if name == "curve":
        command.set_defaults(takes_flags=True)
        command.add_argument("place", metavar="RUN", help="the folder of a trained run, or its recipe")
        command.add_argument(
            "--save_model", action="store_true", help="write M_α into the folder interpolated of the run"
        )
        command.add_argument("--json", action="store_true", help="print the curve as JSON")
        command.epilog = "Any other flag sets a field of the recipe, such as --alpha_search.objective constrained."
    if name == "merge":
        command.set_defaults(takes_flags=True)
        _add_merge_arguments(command)
    if name == "app":
        _add_app_arguments(command)
    if name in ("card", "push"):
        _add_card_arguments(command)
    if name == "report":
        command.add_argument("folders", metavar="DIR", nargs="+", help="folders of trained runs and of comparisons")
        command.add_argument("--output", metavar="FILE", help="where to write (default: report.html in the first DIR)")
    if name == "push":
        _add_push_arguments(command)
    if name == "demo":
        command.add_argument("--folder", default="hf_interp_demo", help="where to write (default: %(default)s)")
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two (default: 0 1 2)")
        command.add_argument("--max_steps", type=int, default=300, help="steps of every method (default: %(default)s)")
        command.add_argument(
            "--label_noise", type=float, default=0.1, help="share of flipped training labels (default: %(default)s)"
        )
    examples = "\n".join(f"  hf-interp {line}" for line in EXAMPLES[name])
    command.epilog = "\n\n".join([*filter(None, [command.epilog]), f"examples:\n{examples}"])


def _add_tune_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trials", type=int, default=20, metavar="N", help="trials to end with, earlier ones included (default: 20)"
    )
    command.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="try these alone: a range, as in alpha_end=0.5..1.0, or a list, as in alpha_schedule_type=linear,cosine; "
        "may be given for several fields",
    )
    command.add_argument("--tune_learning_rate", action="store_true", help="search the learning rate too")
    command.add_argument("--falling", action="store_true", help="let α also start above its end")
    command.add_argument("--storage", metavar="URL", help="a database (default: tuning.db in the output_dir)")
    command.add_argument("--study_name", default="tuning", help="name of the study in it (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print all trials as JSON")
    command.epilog = "Any other flag sets a field of the recipe, such as --alpha_search.objective constrained."


def _add_merge_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", metavar="BASE", help="M₀: a folder, or a name on the Hub")
    command.add_argument("finetuned", metavar="FINETUNED", nargs="+", help="M_θ; of several models, their mean")
    command.add_argument("output", metavar="OUT", help="where to write; must not exist, or be empty")
    command.add_argument(
        "--alpha",
        help="a number; SHALLOW..DEEP over the layers; or a mapping of name patterns. Without it, see --recipe",
    )
    command.add_argument("--recipe", help="choose α (and a greedy soup) on the validation sets of this recipe or run")
    command.add_argument("--soup", choices=["uniform", "greedy"], default="uniform", help="how to take several models")
    command.add_argument("--extrapolate", action="store_true", help="allow α outside [0, 1]")
    command.add_argument(
        "--finetuned_only", nargs="+", default=[], metavar="PATTERN", help="tensors to take from M_θ whole"
    )
    command.add_argument("--dtype", help="type of the result, such as bfloat16 (default: M_θ's)")
    command.add_argument("--max_shard_size", help="size of the files, such as 5GB")
    command.add_argument("--merge_adapter", action="store_true", help="write a whole model where M_θ is an adapter")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.epilog = "Any other flag sets a field of the recipe."


def _add_app_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "place", metavar="RUN", nargs="?", help="the folder of a trained run: names the models, has curve and data"
    )
    command.add_argument("--run", dest="run_folder", metavar="RUN", help="the same, by name")
    command.add_argument("--base", metavar="NAME", help="M₀: a folder, or a name on the Hub (default: RUN's)")
    command.add_argument(
        "--finetuned", metavar="NAME", help="M_θ, or an adapter: a folder, or a name on the Hub (default: RUN)"
    )
    command.add_argument("--task", help="such as token-classification (default: RUN's, or that of M_θ's class)")
    command.add_argument("--label_names", nargs="+", metavar="LABEL", help="names of the labels, by their ids")
    command.add_argument("--text_pair", action="store_true", help="ask for two texts, as classifiers of pairs need")
    command.add_argument(
        "--examples", metavar="FILE", help="JSON lines with text, side (general, domain) and label to try"
    )
    command.add_argument(
        "--max_length", type=int, metavar="N", help="cut texts to so many tokens (default: RUN's, or 128)"
    )
    command.add_argument(
        "--max_new_tokens", type=int, default=32, metavar="N", help="longest answer that is written (default: 32)"
    )
    command.add_argument("--title", help="of the page")
    command.add_argument("--device", default="cpu", help="where the model runs, such as cuda (default: cpu)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    command.add_argument("--port", type=int, help="port (default: the first that is free from 7860 on)")
    command.add_argument("--share", action="store_true", help="open a public tunnel through Gradio's servers")
    command.add_argument("--space", metavar="DIR", help="write the page as a Space into this folder, and serve nothing")


def _add_card_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="RUN_DIR", help="the folder of a trained run")
    command.add_argument("--comparison", metavar="PATH", help="results.json of a comparison on the same data")
    command.add_argument("--base_model", metavar="NAME", help="name of M₀ on the Hub, where it was a local folder")
    command.add_argument("--license", help="licence of the model, such as apache-2.0")
    command.add_argument("--language", nargs="+", help="ISO 639 codes, such as en")
    command.add_argument("--tags", nargs="+", default=[], help="further tags")
    if command.prog.endswith(" card"):
        command.add_argument("--repo", metavar="USER/NAME", help="where the model is, or will be, on the Hub")
        command.add_argument("--output", metavar="FILE", help="where to write (default: README.md in RUN_DIR)")


def _add_push_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository; made if there is none")
    command.add_argument("--private", action="store_true", help="make it private; one that is public is refused")
    command.add_argument("--revision", metavar="BRANCH", help="another branch than main, which must exist")
    command.add_argument("--commit_message", help="by default Push M_α or Push M_θ")
    command.add_argument("--card", metavar="FILE", help="push this card in place of the rendered one")
    command.add_argument(
        "--training_args", action="store_true", help="push training_args.bin too, a pickle of all settings and paths"
    )
    command.add_argument("--json", action="store_true", help="print what was pushed as JSON")
    command.epilog = "The token is that of `hf auth login`, or of HF_TOKEN."


def _train(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp import train

    if not args.json:
        train.train_and_report(args.recipe, flags)
        return
    with redirect_stdout(sys.stderr):  # the host prints what it logs
        results = train.train_and_report(args.recipe, flags)
    print((Path(results.config["output_dir"]) / RESULTS_NAME).read_text(encoding="utf-8"), end="")


def _plan(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.commands import plan as preview

    if args.distance:
        given = _given(num_examples=args.distance_examples)
        plan, summary = preview.measure_recipe(args.recipe, flags, args.resume, args.num_processes, **given)
    elif args.distance_examples is not None:
        raise ValueError("--distance_examples belongs to --distance. Give that too, or leave --distance_examples out.")
    else:
        found = preview.plan_recipe(args.recipe, flags, args.resume, args.num_processes)
        plan, summary = found.plan, preview.summarise(*found)
    print(json.dumps(summary, indent=2, ensure_ascii=False) if args.json else preview.format_plan(summary))
    if args.plot:
        from hf_interp.reporting.plots import plot_plan

        plot_plan(plan, args.plot)
        print(f"Drawn into {args.plot}.", file=sys.stderr)


def _verify(args: argparse.Namespace, flags: Sequence[str]) -> int:
    from hf_interp.commands import verify

    verdict = verify.verify(args.first, args.second)
    print(json.dumps(asdict(verdict), indent=2, ensure_ascii=False) if args.json else verdict.text)
    return 0 if verdict.agrees else 1


def _compare(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.commands import compare
    from hf_interp.tasks.parsing import load_recipe, parse_recipe

    recipe = load_recipe(args.recipe, flags)
    comparison = compare.compare(recipe, seeds=args.seeds, methods=args.methods)
    folder = Path(parse_recipe(recipe)[1].output_dir or ".")
    if args.json:
        print((folder / RESULTS_NAME).read_text(encoding="utf-8"), end="")
        return
    print(compare.format_comparison(comparison))
    print(f"{RESULTS_NAME} and {compare.PLOT_NAME} are in {folder}.")


def _tune(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.commands import tune
    from hf_interp.commands.search_space import read_space
    from hf_interp.tasks.parsing import load_recipe, parse_recipe

    recipe = load_recipe(args.recipe, flags)
    tuning = tune.tune_recipe(
        recipe,
        trials=args.trials,
        space=read_space(args.space),
        tune_learning_rate=args.tune_learning_rate,
        falling=args.falling,
        storage=args.storage,
        study_name=args.study_name,
    )
    folder = Path(parse_recipe(recipe)[1].output_dir or ".")
    if args.json:
        print((folder / tune.TUNING_NAME).read_text(encoding="utf-8"), end="")
        return
    print(tune.format_tuning(tuning))
    print(tune.advise(tuning, folder))


def _curve(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.commands.curve import curve_run
    from hf_interp.reporting.curve import format_curve
    from hf_interp.utils.run_folder import CURVE_NAME, CURVE_PLOT_NAME, INTERPOLATED_NAME

    curve, folder = curve_run(args.place, flags, save_model=args.save_model)
    if args.json:
        print((folder / CURVE_NAME).read_text(encoding="utf-8"), end="")
        return
    print(format_curve(curve))
    print(f"{CURVE_NAME} and {CURVE_PLOT_NAME} are in {folder}.")
    if args.save_model:
        print(f"M_α is in {folder / INTERPOLATED_NAME}.")


def _merge(args: argparse.Namespace, flags: Sequence[str]) -> None:
    if flags and not args.recipe:
        raise ValueError(f"Unrecognized arguments: {' '.join(flags)}. Fields of a recipe need --recipe.")
    from hf_interp.commands.merge import merge_runs
    from hf_interp.reporting.curve import format_curve
    from hf_interp.tasks.runs import load_run_recipe
    from hf_interp.weights.alpha_spec import parse_alpha

    merged = merge_runs(
        args.base,
        args.finetuned,
        args.output,
        recipe=load_run_recipe(args.recipe, flags) if args.recipe else None,
        soup=args.soup,
        alpha=None if args.alpha is None else parse_alpha(args.alpha),
        extrapolate=args.extrapolate,
        finetuned_only=args.finetuned_only,
        **_given(
            dtype=_dtype(args.dtype), max_shard_size=args.max_shard_size, merge_adapter=args.merge_adapter or None
        ),
    )
    if args.json:
        print(json.dumps(merged.report.to_dict(), indent=2, ensure_ascii=False))
        return
    if merged.curve is not None:
        print(format_curve(merged.curve))
    if len(args.finetuned) > 1:
        print(f"{args.soup} soup of {', '.join(merged.members)}")
    print(f"{merged.report}\nThe model is in {args.output}.")


def _app(args: argparse.Namespace, flags: Sequence[str]) -> None:
    # before torch is loaded: on a machine that is busy, threads that spin while they wait take seconds for milliseconds
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from hf_interp.app import examples as slider_sources
    from hf_interp.app import page as app
    from hf_interp.app import space as hub_space

    if args.place and args.run_folder:
        raise ValueError(f"There must be one run, got {args.place!r} and --run {args.run_folder!r}. Give either.")
    app.import_gradio()  # before anything is loaded
    source = slider_sources.find_source(
        args.place or args.run_folder,
        base=args.base,
        finetuned=args.finetuned,
        task=args.task,
        label_names=args.label_names,
        max_length=args.max_length,
        examples=args.examples,
        title=args.title,
        has_pairs=args.text_pair,
    )
    if args.space is None:
        places = {"device": args.device, "host": args.host, "port": args.port, "share": args.share}
        app.serve_source(source, max_new_tokens=args.max_new_tokens, **places)
        return
    for note in hub_space.write_space(source, args.space, max_new_tokens=args.max_new_tokens):
        print(note)
    print(f"The Space is in {args.space}. Try it with `python {args.space}/app.py`.")


def _card(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.reporting.card import CARD_NAME
    from hf_interp.reporting.hub import render_card

    card = render_card(args.folder, repo_id=args.repo, comparison=args.comparison, **_card_metadata(args))
    path = Path(args.output or Path(args.folder) / CARD_NAME)
    card.save(path)
    print(f"The card is in {path}.")


def _report(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.reporting.report import write_report

    print(f"The report is in {write_report(args.folders, args.output)}.")


def _push(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp.reporting.hub import push_run

    report = push_run(
        args.folder,
        args.repo,
        comparison=args.comparison,
        training_args=args.training_args,
        **_card_metadata(args),
        **_given(
            private=args.private or None,
            revision=args.revision,
            commit_message=args.commit_message,
            card=args.card,
        ),
    )
    print(json.dumps(asdict(report), indent=2, ensure_ascii=False) if args.json else report)


def _card_metadata(args: argparse.Namespace) -> dict[str, Any]:
    return _given(base_model=args.base_model, license=args.license, language=args.language, tags=args.tags)


def _dtype(name: str | None) -> Any:
    """A floating-point type by its name in torch."""
    import torch

    dtype = None if name is None else getattr(torch, name, name)
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"`dtype` must be a floating-point type such as float32, bfloat16 or float16, got {name!r}.")
    return dtype


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _demo(args: argparse.Namespace, flags: Sequence[str]) -> None:
    print("Loading the libraries, then training a small model on a general corpus ...", flush=True)
    from hf_interp.commands import compare, demo
    from hf_interp.utils.run_folder import CURVE_NAME, CURVE_PLOT_NAME

    comparison = demo.run_demo(args.folder, seeds=args.seeds, max_steps=args.max_steps, label_noise=args.label_noise)
    print(f"\nAccuracy on unseen sentences after {args.max_steps} steps, mean ± standard deviation over seeds:\n")
    print(compare.format_comparison(comparison))
    print(
        f"""
In {args.folder}/:
  comparison/{compare.PLOT_NAME}   α and realised share over steps; both metrics over steps
  comparison/*/seed-*/         of every run: its results, and M_α over α ({CURVE_NAME}, {CURVE_PLOT_NAME})
  comparison/{RESULTS_NAME}     every number, with settings and versions
  recipe.yaml, *.jsonl, base/  what was run: the recipe, the corpora, M₀

Next: change the recipe, look at what it would read, and train:
  hf-interp plan {args.folder}/recipe.yaml
  hf-interp train {args.folder}/recipe.yaml --output_dir {args.folder}/mine --alpha_end 0.75"""
    )


if __name__ == "__main__":
    sys.exit(main())
