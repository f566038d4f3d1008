"""The command `hf-interp`: one function a command, under a table of its arguments."""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import shtab

from hf_interp.utils.console import run_command
from hf_interp.utils.run_folder import CURVE_NAME, CURVE_PLOT_NAME, INTERPOLATED_NAME, RESULTS_NAME

DESCRIPTION = """Move a pretrained model into a domain without losing what it knew.

A recipe is a YAML file; every field of it is also a flag, such as --learning_rate 1e-4 or
--corpora.domain.path my.csv, and flags win over the file. A run is the folder (output_dir) that
training leaves."""

EPILOG = """examples:
  hf-interp demo                                  # see it work: no network, two to three minutes
  hf-interp check my.csv                          # what is in a file
  hf-interp adapt --model M --domain my.csv       # a recipe from a file, and a run of it; init writes it alone
  hf-interp plan recipe.yaml                      # what will be read; trains nothing
  hf-interp train recipe.yaml --alpha 0.75
  hf-interp curve runs/mine --save_model          # choose α of the weights, write M_α
  hf-interp report runs/mine runs/other           # side by side, in one HTML file

Each command has its own --help. Exit status: 0, 2 with one line on stderr for bad input, 130 if
interrupted. Tab completion, for bash: source <(hf-interp --print-completion bash)"""

ANY_FLAG = "Any other flag sets a field"
FIELDS = f"{ANY_FLAG} of the recipe"
Argument = tuple[tuple[str, ...], dict[str, Any]]
Flags = Sequence[str]
"""Of the command line, those that set fields of a recipe."""
Run = Callable[[argparse.Namespace, Flags], int | None]


class Command(NamedTuple):
    """A function that takes the arguments and the flags of a recipe, with what the parser and the help know of it."""

    run: Run
    arguments: Sequence[Argument]
    examples: Sequence[str]
    note: str

    @property
    def takes_fields(self) -> bool:
        """Whether flags that are none of its own set fields of a recipe, or of a corpus."""
        return self.note.startswith(ANY_FLAG)


COMMANDS: dict[str, Command] = {}
"""By name, in the order in which the help lists them."""


def command(*arguments: Argument, examples: Sequence[str], note: str = "") -> Callable[[Run], Run]:
    """Make a function a command of its name, whose docstring is the summary."""

    def register(run: Run) -> Run:
        COMMANDS[run.__name__.strip("_")] = Command(run, arguments, examples, note)
        return run

    return register


def argument(*names: str, **settings: Any) -> Argument:
    """Describe an argument, as `ArgumentParser.add_argument` takes it."""
    return names, settings


def switch(name: str, text: str) -> Argument:
    """Describe an option that is given or not."""
    return (name,), {"action": "store_true", "help": text}


RECIPE = argument("recipe", help="the recipe, a YAML file")
RUN = argument("run", metavar="RUN", help="the folder of a trained run, or its recipe")
RUN_FOLDER = argument("folder", metavar="RUN_DIR", help="the folder of a trained run")
SEEDS = argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more show a spread (default: 0 1 2)")
JSON = switch("--json", "print what was found as JSON")
INIT = (
    argument("--model", metavar="NAME", help="the pretrained model M₀: a folder, or a name on the Hub"),
    argument("--domain", metavar="FILE", help="what to train on: a file, a folder, or a dataset's name on the Hub"),
    argument("--general", metavar="FILE", help="likewise, what the model should keep; `self`: it makes that itself"),
    *(
        argument(f"--{side}_{end}", metavar="FILE", help=f"of {side}: {what} (default: a part of the training file)")
        for side in ("domain", "general")
        for end, what in (("validation", "chooses α of the weights"), ("test", "measures"))
    ),
    argument("--output", metavar="FILE", default="recipe.yaml", help="the recipe to write (default: %(default)s)"),
)
CARD = (
    argument("--comparison", metavar="PATH", help="results.json of a comparison on the same data"),
    argument("--base_model", metavar="NAME", help="name of M₀ on the Hub, where it was a local folder"),
    argument("--license", help="licence of the model, such as apache-2.0"),
    argument("--language", nargs="+", help="ISO 639 codes, such as en"),
    argument("--tags", nargs="+", default=[], help="further tags"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; see `run_command`."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    for name, value in vars(args).items():
        if isinstance(value, str) and value.startswith("~"):  # what a shell leaves of --flag=~/place
            setattr(args, name, os.path.expanduser(value))
    chosen = COMMANDS[args.command]
    if flags and not chosen.takes_fields:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    return run_command(lambda: _run(chosen, args, flags), traceback=args.traceback)


def _run(chosen: Command, args: argparse.Namespace, flags: Flags) -> int | None:
    if chosen.takes_fields and "hf_interp.tasks.build" not in sys.modules:
        # A million objects are made, none of which is garbage. Looking them through again and again takes a second.
        gc.disable()
        import hf_interp.tasks.build  # noqa: F401

        gc.freeze()
        gc.enable()
    return chosen.run(args, flags)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("hf-interp", description=DESCRIPTION, epilog=EPILOG, formatter_class=plain)
    shtab.add_argument_to(parser, help="print a completion script for this shell, and exit")
    parser.add_argument("--version", action="version", version=f"hf_interp {metadata.version('hf_interp')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (run, arguments, examples, note) in COMMANDS.items():
        summary = str(run.__doc__).rstrip(".")
        shown = "\n".join(["examples:", *(f"  hf-interp {line}" for line in examples)])
        added = commands.add_parser(
            name,
            help=f"{summary[0].lower()}{summary[1:]}",
            description=f"{summary}.",
            epilog="\n\n".join(filter(None, [note, shown])),
            formatter_class=plain,
            allow_abbrev=False,
        )
        for names, settings in (switch("--traceback", "show where an error comes from"), *arguments):
            found = added.add_argument(*names, **settings)
            if names == ("recipe",):
                found.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


# The commands. What they need is imported when they run, so that help does not wait for torch.


@command(
    argument("--folder", default="hf_interp_demo", help="where to write (default: %(default)s)"),
    SEEDS,
    argument("--max_steps", type=int, default=300, help="steps of every method (default: %(default)s)"),
    argument("--label_noise", type=float, default=0.1, help="share of flipped training labels (default: %(default)s)"),
    examples=["demo", "demo --max_steps 40 --seeds 0 1 --folder quick"],
)
def _demo(args: argparse.Namespace, flags: Flags) -> None:
    """Show an example that needs no network: corpora, a model, a comparison, a picture."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see the page's command
    print("Loading the libraries, then training a small model on a general corpus ...", flush=True)
    from hf_interp.commands.demo import describe_demo, run_demo

    found = run_demo(args.folder, seeds=args.seeds, max_steps=args.max_steps, label_noise=args.label_noise)
    print(describe_demo(found, args.folder, args.max_steps))


@command(
    argument("files", metavar="FILE", nargs="+", help="a file, a folder, or a dataset's name on the Hub"),
    JSON,
    examples=["check my.csv", "check my.tsv --delimiter ';' --label_column mood"],
    note="Any other flag sets a field of a corpus. Exit status: 0 if nothing is wrong, 1 if something is, 2 for what "
    "cannot be read.",
)
def _check(args: argparse.Namespace, flags: Flags) -> int:
    """Say what data is, and what is wrong with it, before there is a recipe."""
    from hf_interp.commands.init import check_file, format_check
    from hf_interp.tasks.parsing import lay_flags

    found = [check_file(path, lay_flags({}, flags)) for path in args.files]
    _print_found(args, {"files": found}, "\n\n".join(map(format_check, found)))
    return int(any(each["wrong"] for each in found))


@command(
    *INIT,
    switch("--list", "show what a row of a file looks like, by task"),
    examples=[
        "init --model distilbert-base-uncased --domain my.csv --general other.jsonl",
        "init --model M --domain my.csv --text_column review --label_column mood --max_steps 500",
    ],
    note=f"{FIELDS}, or of both corpora, such as --text_column; of one as in --corpora.general.text_column.",
)
def _init(args: argparse.Namespace, flags: Flags) -> None:
    """Write a recipe for a model and a file: task, columns, labels, lengths, sets, steps."""
    from hf_interp.commands.init import format_draft, init_recipe, list_templates

    if args.list:
        print(list_templates())
        return
    print(format_draft(init_recipe(args.model, _data_paths(args), Path(args.output), flags), args.output))


@command(
    *INIT,
    examples=["adapt --model distilbert-base-uncased --domain my.csv --general other.jsonl"],
    note=f"{FIELDS}, as for init.",
)
def _adapt(args: argparse.Namespace, flags: Flags) -> None:
    """Write a recipe, plan it, train it, choose α of the weights, and write card and report."""
    from hf_interp.commands import plan
    from hf_interp.commands.init import format_draft, init_recipe
    from hf_interp.reporting.report import write_report
    from hf_interp.train import train_and_report

    draft = init_recipe(args.model, _data_paths(args), Path(args.output), flags)
    print(format_draft(draft, args.output))
    print(f"\n{plan.format_plan(plan.plan_recipe(args.output).summary)}\n", flush=True)
    folder = train_and_report(args.output).config["output_dir"]
    print(f"The card is {folder}/README.md, the report {write_report([folder])}.")


def _data_paths(args: argparse.Namespace) -> dict[str, str]:
    if args.model is None or args.domain is None:
        raise ValueError(
            "Say which model and which data: --model NAME --domain FILE. --list shows what files look like."
        )
    names = [side + end for side in ("general", "domain") for end in ("", "_validation", "_test")]
    return {name: path for name in names if (path := getattr(args, name)) is not None}


@command(
    RECIPE,
    switch("--json", "print the results as JSON, and all else to stderr"),
    examples=["train recipe.yaml", "train recipe.yaml --corpora.domain.path my.csv --alpha 0.75 --seed 1"],
    note=f"{FIELDS}.",
)
def _train(args: argparse.Namespace, flags: Flags) -> None:
    """Train what a recipe describes."""
    from hf_interp.train import train_and_report

    with redirect_stdout(sys.stderr if args.json else sys.stdout):  # transformers prints what it logs
        results = train_and_report(args.recipe, flags)
    if args.json:
        _print_found(args, Path(results.config["output_dir"]) / RESULTS_NAME)


@command(
    argument("folder", metavar="RUN", help="the output_dir of a run, at work or ended"),
    switch("--once", "print once and leave"),
    argument("--every", type=float, default=2.0, metavar="SECONDS", help="look so often (default: %(default)s)"),
    examples=["watch runs/mine", "watch runs/mine --once"],
)
def _watch(args: argparse.Namespace, flags: Flags) -> None:
    """Follow a run from another terminal: steps, α, losses, evaluations, time left."""
    from hf_interp.commands.watch import watch

    watch(args.folder, once=args.once, seconds=args.every)


@command(
    RECIPE,
    argument("--plot", metavar="FILE", help="draw the plan into this file (.png, .svg, .pdf)"),
    JSON,
    argument("--resume", metavar="CHECKPOINT", help="go on from this checkpoint, or from the last one of this folder"),
    argument("--num_processes", type=int, help="plan for so many processes (default: the checkpoint's, or 1)"),
    argument("--samples", type=int, default=0, metavar="N", help="show N examples of each corpus as the model will"),
    switch("--memory", "estimate the memory that training needs; no weights are loaded"),
    switch("--measure", "take three steps, and say what time and memory a run takes; nothing is kept"),
    switch("--distance", "measure how far apart the sides are for the pretrained model"),
    argument("--distance_examples", type=int, metavar="N", help="of --distance: examples of each side (default: 500)"),
    examples=[
        "plan recipe.yaml --plot plan.png",
        "plan recipe.yaml --memory --measure --distance --samples 3",
        "plan recipe.yaml --resume runs/mine --num_processes 8",
    ],
    note=f"{FIELDS}.",
)
def _plan(args: argparse.Namespace, flags: Flags) -> None:
    """Say what a recipe will read, without training."""
    from hf_interp.commands import plan

    if args.distance_examples is not None and not args.distance:
        raise ValueError("--distance_examples belongs to --distance. Give that too, or leave --distance_examples out.")
    num_examples = args.distance_examples
    if args.distance and num_examples is None:
        from hf_interp.commands.distance import NUM_EXAMPLES

        num_examples = NUM_EXAMPLES
    found = plan.plan_recipe(
        args.recipe, flags, args.resume, args.num_processes, num_examples, args.samples, args.memory, args.measure
    )
    _print_found(args, found.summary, plan.format_plan(found.summary))
    if args.plot:
        from hf_interp.reporting.plots import plot_plan

        plot_plan(found.plan, args.plot)
        print(f"Drawn into {args.plot}.", file=sys.stderr)


@command(
    argument("first", metavar="RUN", help="the folder of a run, a checkpoint, or a results.json"),
    argument("second", metavar="RUN", nargs="?", help="another; without it, check RUN against its plan"),
    JSON,
    examples=["verify runs/mine", "verify runs/one_process runs/eight_processes"],
    note="Exit status: 0 if they read the same, 1 if not, 2 for bad input.",
)
def _verify(args: argparse.Namespace, flags: Flags) -> int:
    """Say whether two runs read the same, and where they part."""
    from hf_interp.commands.verify import verify

    verdict = verify(args.first, args.second)
    _print_found(args, asdict(verdict), verdict.text)
    return 0 if verdict.agrees else 1


@command(
    RECIPE,
    SEEDS,
    argument("--methods", nargs="+", help="some of the methods (default: all)"),
    switch("--resume", "train nothing again that is done with the same settings, data and M₀"),
    switch("--keep", "keep the models of all runs in their folders"),
    JSON,
    examples=["compare recipe.yaml --seeds 0 1 2 3 4", "compare recipe.yaml --methods 'domain only' 'constant 0.5'"],
    note=f"{FIELDS}.",
)
def _compare(args: argparse.Namespace, flags: Flags) -> None:
    """Compare α schedules on a recipe at equal steps."""
    from hf_interp.commands.compare import PLOT_NAME, compare, format_comparison
    from hf_interp.tasks.parsing import load_recipe

    recipe = load_recipe(args.recipe, flags)
    comparison = compare(recipe, seeds=args.seeds, methods=args.methods, resume=args.resume, keep=args.keep)
    folder = _folder_of(recipe)
    text = f"{format_comparison(comparison)}\n{RESULTS_NAME} and {PLOT_NAME} are in {folder}."
    _print_found(args, folder / RESULTS_NAME, text)


@command(
    RECIPE,
    argument("--trials", type=int, default=20, metavar="N", help="trials to end with, with earlier ones (default: 20)"),
    argument(
        "--search_space",
        "--space",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="try these alone: a range, as in alpha_end=0.5..1.0, or a list, as in alpha_schedule_type=linear,cosine; "
        "may be given for several fields",
    ),
    switch("--tune_learning_rate", "search the learning rate too"),
    switch("--falling", "let α also start above its end"),
    argument("--storage", metavar="URL", help="a database (default: tuning.db in the output_dir)"),
    argument("--study_name", default="tuning", help="name of the study in it (default: %(default)s)"),
    switch("--keep", "keep the best trial's model in the folder best of the output_dir"),
    JSON,
    examples=["tune recipe.yaml --trials 20", "tune recipe.yaml --search_space alpha_end=0.5..1.0"],
    note=f"{FIELDS}, such as --alpha_search.objective constrained.",
)
def _tune(args: argparse.Namespace, flags: Flags) -> None:
    """Search for the settings of α that are best on a recipe's validation sets."""
    from hf_interp.commands import tune
    from hf_interp.commands.search_space import read_space
    from hf_interp.tasks.parsing import load_recipe

    recipe = load_recipe(args.recipe, flags)
    names = ("trials", "tune_learning_rate", "falling", "storage", "study_name", "keep")
    tuning = tune.tune_recipe(recipe, space=read_space(args.search_space), **{name: vars(args)[name] for name in names})
    folder = _folder_of(recipe)
    text = f"{tune.format_tuning(tuning)}\n{tune.advise(tuning, folder)}"
    _print_found(args, folder / tune.TUNING_NAME, text)


@command(
    RUN,
    switch("--save_model", "write M_α into the folder interpolated of the run"),
    argument(
        "--eval_harness",
        nargs="*",
        metavar="TASK",
        help="measure M_α at every α by these tasks of lm-eval too (default: those of the recipe)",
    ),
    JSON,
    examples=["curve runs/mine --save_model", "curve runs/mine --eval_harness hellaswag --eval_harness.limit 200"],
    note=f"{FIELDS}, such as --alpha_search.objective constrained.",
)
def _curve(args: argparse.Namespace, flags: Flags) -> None:
    """Evaluate a trained run at every α between M₀ and M_θ, and choose."""
    from hf_interp.commands.curve import curve_run
    from hf_interp.reporting.audits import format_gaps, format_harness
    from hf_interp.reporting.curve import format_curve
    from hf_interp.reporting.results import load_run_results

    asked = args.eval_harness is not None
    if args.eval_harness:
        flags = [f"--eval_harness.tasks={json.dumps(args.eval_harness)}", *flags]
    curve, folder = curve_run(args.run, flags, save_model=args.save_model, with_harness=asked)
    saved = f"\nM_α is in {folder / INTERPOLATED_NAME}." if args.save_model else ""
    if (folder / INTERPOLATED_NAME).is_dir() and "interpolated" not in curve.weights:
        saved = f"\n{folder / INTERPOLATED_NAME} holds M_α at another α. --save_model writes it anew."
    entries = load_run_results(folder / RESULTS_NAME).harness if asked else []
    found = "\n".join([format_curve(curve), *format_gaps(None, curve), *format_harness(entries)])
    text = f"{found}\n{CURVE_NAME} and {CURVE_PLOT_NAME} are in {folder}.{saved}"
    _print_found(args, folder / CURVE_NAME, text)


@command(
    RUN,
    argument("--corpus", metavar="NAME", help="the training corpus to look for (default: the first of the domain)"),
    argument("--examples", type=int, default=1000, metavar="N", help="rows of each kind at most (default: 1000)"),
    JSON,
    examples=["audit runs/mine", "audit runs/mine --alpha_search.alphas 5"],
    note=f"{FIELDS}.",
)
def _audit(args: argparse.Namespace, flags: Flags) -> None:
    """Measure what a trained run tells of the rows that it was trained on, at every α."""
    from hf_interp.commands.audit import audit_run
    from hf_interp.reporting.audits import AUDIT_PLOT_NAME, format_audit

    audit, folder = audit_run(args.run, flags, corpus=args.corpus, num_examples=args.examples)
    _print_found(args, audit, f"{format_audit(audit)}\n{RESULTS_NAME} and {AUDIT_PLOT_NAME} are in {folder}.")


@command(
    argument("models", metavar="MODEL", nargs="*", help="M₀, then M_θ, or several: folders, or names on the Hub"),
    argument("output", metavar="OUT", help="where to write; must not exist, or be empty"),
    argument(
        "--alpha", help="a number; SHALLOW..DEEP over the layers; or a mapping of name patterns. Without it, --recipe"
    ),
    argument(
        "--method",
        metavar="NAME",
        help="linear: the models' mean (default); slerp: an arc from M₀ to one model; task_arithmetic, ties, dare, "
        "dare_ties, breadcrumbs, breadcrumbs_ties: M₀ and α times what they learned, thinned (docs/weights.md)",
    ),
    argument("--weights", nargs="+", metavar="W", help="of the models, in their order (default: all the same)"),
    argument("--density", nargs="+", metavar="D", help="ties, dare, breadcrumbs: the share that is kept of each model"),
    argument("--gamma", nargs="+", metavar="G", help="breadcrumbs: the share of the largest left out (default: 0.01)"),
    argument("--normalize", choices=["true", "false"], help="divide by the sum of the weights (default: ties alone)"),
    argument("--rescale", choices=["true", "false"], help="dare: divide what is kept by the density (default: true)"),
    argument("--seed", type=int, metavar="N", help="dare: what is kept depends on it (default: 0)"),
    argument("--mergekit", metavar="FILE", help="read models, method and settings from a configuration of mergekit"),
    argument("--recipe", help="choose α (and a greedy soup) on the validation sets of this recipe or run"),
    argument("--soup", choices=["uniform", "greedy"], default="uniform", help="how to take several models"),
    switch("--extrapolate", "allow α outside [0, 1], and weights below 0 or of a sum beyond 1"),
    argument("--finetuned_only", nargs="+", default=[], metavar="PATTERN", help="tensors to take from M_θ whole"),
    argument("--dtype", help="type of the result, such as bfloat16 (default: M_θ's)"),
    argument("--max_shard_size", help="size of the files, such as 5GB"),
    switch("--merge_adapter", "write a whole model where M_θ is an adapter"),
    JSON,
    examples=[
        "merge BASE runs/mine merged --alpha 0.7",
        "merge BASE runs/a runs/b soup --recipe recipe.yaml",
        "merge BASE runs/a runs/b merged --method ties --density 0.2",
        "merge merged --mergekit config.yml",
    ],
    note=f"{FIELDS}.",
)
def _merge(args: argparse.Namespace, flags: Flags) -> None:
    """Write M_α = α·M_θ + (1 − α)·M₀ of checkpoints, or merge several models of one base."""
    if flags and not args.recipe:
        raise ValueError(f"Unrecognized arguments: {' '.join(flags)}. Fields of a recipe need --recipe.")
    from hf_interp.commands.merge import format_merged, merge_runs, parse_dtype, parse_method, read_mergekit
    from hf_interp.tasks.runs import load_run_recipe
    from hf_interp.weights.alpha_spec import parse_alpha

    settings = _given(
        base_dir=args.models[0] if args.models else None,
        finetuned_dir=args.models[1:] or None,
        alpha=None if args.alpha is None else parse_alpha(args.alpha),
        method=parse_method(vars(args)),
        dtype=parse_dtype(args.dtype),
        recipe=load_run_recipe(args.recipe, flags) if args.recipe else None,
    )
    if args.mergekit:
        if settings:
            raise ValueError(f"`mergekit` names models and settings itself, got {sorted(settings)} beside it.")
        settings = read_mergekit(args.mergekit)
    elif len(args.models) < 2:
        raise ValueError(f"Give M₀, at least one M_θ and OUT, or --mergekit FILE and OUT, got {len(args.models) + 1}.")
    merged = merge_runs(
        settings.pop("base_dir"),
        settings.pop("finetuned_dir"),
        args.output,
        soup=args.soup,
        extrapolate=args.extrapolate,
        finetuned_only=args.finetuned_only,
        merge_adapter=args.merge_adapter,
        **settings,
        **_given(max_shard_size=args.max_shard_size),
    )
    _print_found(args, merged.report.to_dict(), f"{format_merged(merged, args.soup)}\nThe model is in {args.output}.")


@command(
    argument("run", metavar="RUN", nargs="?", help="the folder of a trained run: names the models, has curve and data"),
    argument("--base", metavar="NAME", help="M₀: a folder, or a name on the Hub (default: RUN's)"),
    argument("--finetuned", metavar="NAME", help="M_θ, or an adapter: a folder, or a name on the Hub (default: RUN)"),
    argument("--task", help="such as token-classification (default: RUN's, or that of M_θ's class)"),
    argument("--label_names", nargs="+", metavar="LABEL", help="names of the labels, by their ids"),
    switch("--text_pair", "ask for two texts, as classifiers of pairs need"),
    argument("--examples", metavar="FILE", help="JSON lines with text, side (general, domain) and label to try"),
    argument("--max_length", type=int, metavar="N", help="cut texts to so many tokens (default: RUN's, or 128)"),
    argument(
        "--max_new_tokens", type=int, default=32, metavar="N", help="longest answer that is written (default: 32)"
    ),
    argument("--title", help="of the page"),
    argument("--device", default="cpu", help="where the model runs, such as cuda (default: cpu)"),
    argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)"),
    argument("--port", type=int, help="port (default: the first that is free from 7860 on)"),
    switch("--share", "open a public tunnel through Gradio's servers"),
    argument("--space", metavar="DIR", help="write the page as a Space into this folder, and serve nothing"),
    examples=["app runs/mine", "app --base google-bert/bert-base-uncased --finetuned user/model"],
)
def _app(args: argparse.Namespace, flags: Flags) -> None:
    """Serve a page with a slider for α: a text in, M₀'s, M_α's and M_θ's answers."""
    # before torch is loaded: on a machine that is busy, threads that spin while they wait take seconds for milliseconds
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from hf_interp.app import examples, page, space

    page.import_gradio()  # before anything is loaded
    names = ("base", "finetuned", "task", "label_names", "max_length", "examples", "title")
    given = {name: getattr(args, name) for name in names}
    source = examples.find_source(args.run, has_pairs=args.text_pair, **given)
    if args.space is None:
        places = {"device": args.device, "host": args.host, "port": args.port, "share": args.share}
        page.serve_source(source, max_new_tokens=args.max_new_tokens, **places)
        return
    for note in space.write_space(source, args.space, max_new_tokens=args.max_new_tokens):
        print(note)
    print(f"The Space is in {args.space}. Try it with `python {args.space}/app.py`.")


@command(
    RUN_FOLDER,
    *CARD,
    argument("--repo", metavar="USER/NAME", help="where the model is, or will be, on the Hub"),
    argument("--output", metavar="FILE", help="where to write (default: README.md in RUN_DIR)"),
    examples=["card runs/mine", "card runs/mine --comparison runs/comparison --license apache-2.0"],
)
def _card(args: argparse.Namespace, flags: Flags) -> None:
    """Render the model card of a trained run from its results."""
    from hf_interp.reporting.card import save_card
    from hf_interp.reporting.hub import render_card

    card = render_card(args.folder, repo_id=args.repo, comparison=args.comparison, metadata=_card_metadata(args))
    path = save_card(card, args.output or args.folder)
    print(f"The card is in {path}.")


@command(
    argument("folders", metavar="DIR", nargs="+", help="folders of trained runs and of comparisons"),
    argument("--output", metavar="FILE", help="where to write (default: report.html in the first DIR)"),
    examples=["report runs/mine", "report runs/a runs/b runs/comparison --output report.html"],
)
def _report(args: argparse.Namespace, flags: Flags) -> None:
    """Write runs and comparisons side by side as one HTML page."""
    from hf_interp.reporting.report import write_report

    print(f"The report is in {write_report(args.folders, args.output)}.")


@command(
    RUN_FOLDER,
    *CARD,
    argument("--repo", required=True, metavar="USER/NAME", help="the repository; made if there is none"),
    switch("--private", "make it private; one that is public is refused"),
    argument("--revision", metavar="BRANCH", help="another branch than main, which must exist"),
    argument("--commit_message", help="by default Push M_α or Push M_θ"),
    argument("--card", metavar="FILE", help="push this card in place of the rendered one"),
    switch("--training_args", "push training_args.bin too, a pickle of all settings and paths"),
    JSON,
    examples=["push runs/mine --repo user/name --private"],
    note="The token is that of `hf auth login`, or of HF_TOKEN.",
)
def _push(args: argparse.Namespace, flags: Flags) -> None:
    """Push a trained run to the Hub, with its results and card."""
    from hf_interp.reporting.hub import push_run

    names = ("comparison", "revision", "commit_message", "card")
    given = _given(private=args.private or None, **{name: getattr(args, name) for name in names})
    report = push_run(args.folder, args.repo, training_args=args.training_args, **given, metadata=_card_metadata(args))
    _print_found(args, asdict(report), str(report))


def _card_metadata(args: argparse.Namespace) -> Any:
    from hf_interp.reporting.card import CardMetadata

    given = _given(base_model=args.base_model, license=args.license, language=args.language, tags=args.tags)
    return CardMetadata(**given)


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _folder_of(recipe: Mapping[str, Any]) -> Path:
    return Path(recipe.get("output_dir") or "trainer_output")  # where transformers writes without one


def _print_found(args: argparse.Namespace, found: Mapping[str, Any] | Path, text: str = "") -> None:
    """Print what a command has found, or a file of that, as JSON; or a text."""
    if args.json and isinstance(found, Path):
        print(found.read_text(encoding="utf-8"), end="")
    else:
        print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else text)


if __name__ == "__main__":
    sys.exit(main())
