"""The command `hf-interp`."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from hf_interp.console import run_command
from hf_interp.results import RESULTS_NAME

DESCRIPTION = """Move a pretrained model into a domain without losing what it knew.

A recipe is a YAML file; every field of it is also a flag, such as --learning_rate 1e-4 or
--corpora.domain.path my.csv, and flags win over the file."""


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
        prog="hf-interp", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    return parser


def _add(commands: Any, name: str, run: Any, summary: str, *, recipe: bool = True) -> None:
    command = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    command.set_defaults(run=run, takes_flags=recipe)
    if recipe:
        command.add_argument("recipe", help="the recipe, a YAML file")
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
    if name == "verify":
        command.add_argument("first", metavar="RUN", help="the folder of a run, a checkpoint, or a results.json")
        command.add_argument("second", metavar="RUN", nargs="?", help="another; without it, check RUN against its plan")
        command.epilog = "Exit status: 0 if they read the same, 1 if not, 2 for bad input."
    if name == "compare":
        command.add_argument(
            "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs (default: 0 1 2)"
        )
        command.add_argument("--methods", nargs="+", help="some of the methods (default: all)")
    if name == "demo":
        command.add_argument("--folder", default="hf_interp_demo", help="where to write (default: %(default)s)")
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two (default: 0 1 2)")
        command.add_argument("--max_steps", type=int, default=300, help="steps of every method (default: %(default)s)")
        command.add_argument(
            "--label_noise", type=float, default=0.1, help="share of flipped training labels (default: %(default)s)"
        )


def _train(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp import train

    train.train_and_report(args.recipe, flags)


def _plan(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp import preview

    plan, tokens, resumed = preview.plan_recipe(args.recipe, flags, args.resume, args.num_processes)
    summary = preview.summarise(plan, tokens, resumed)
    print(json.dumps(summary, indent=2, ensure_ascii=False) if args.json else preview.format_plan(summary))
    if args.plot:
        from hf_interp.plots import plot_plan

        plot_plan(plan, args.plot)
        print(f"Drawn into {args.plot}.", file=sys.stderr)


def _verify(args: argparse.Namespace, flags: Sequence[str]) -> int:
    from hf_interp import verify

    verdict = verify.verify(args.first, args.second)
    print(verdict.text)
    return 0 if verdict.agrees else 1


def _compare(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from hf_interp import compare
    from hf_interp.config import load_recipe, parse_recipe

    recipe = load_recipe(args.recipe, flags)
    comparison = compare.compare(recipe, seeds=args.seeds, methods=args.methods)
    print(compare.format_comparison(comparison))
    print(f"{RESULTS_NAME} and {compare.PLOT_NAME} are in {parse_recipe(recipe)[1].output_dir}.")


def _demo(args: argparse.Namespace, flags: Sequence[str]) -> None:
    print("Loading the libraries, then training a small model on a general corpus ...", flush=True)
    from hf_interp import compare, demo

    comparison = demo.run_demo(args.folder, seeds=args.seeds, max_steps=args.max_steps, label_noise=args.label_noise)
    print(f"\nAccuracy on unseen sentences after {args.max_steps} steps, mean ± standard deviation over seeds:\n")
    print(compare.format_comparison(comparison))
    print(
        f"""
In {args.folder}/:
  comparison/{compare.PLOT_NAME}   α and realised share over steps; both metrics over steps
  comparison/{RESULTS_NAME}     every number, with settings and versions
  recipe.yaml, *.jsonl, base/  what was run: the recipe, the corpora, M₀

Next: change the recipe, look at what it would read, and train:
  hf-interp plan {args.folder}/recipe.yaml
  hf-interp train {args.folder}/recipe.yaml --output_dir {args.folder}/mine --alpha_end 0.75"""
    )


if __name__ == "__main__":
    sys.exit(main())
