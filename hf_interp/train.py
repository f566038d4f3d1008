"""Train what a recipe describes: `accelerate launch -m hf_interp.train recipe.yaml --learning_rate 1e-4`."""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as host_logging

from hf_interp.adapters import adapt, adapter_callbacks, check_adapter, count_parameters
from hf_interp.cards import CARD_NAME
from hf_interp.config import CorpusConfig, InterpolationConfig, Recipe, load_recipe, parse_recipe
from hf_interp.console import format_table, run_command
from hf_interp.corpora import Corpus, check_columns
from hf_interp.curves import CURVE_NAME, CURVE_PLOT_NAME, INTERPOLATED_NAME, format_curve, load_curve
from hf_interp.heads import Objective
from hf_interp.hub import check_name, make_repo, push_run, render_card
from hf_interp.interpolated import check_search, save_curve, search_run
from hf_interp.loading import encode_corpus, load_corpus
from hf_interp.local_paths import without_tokens
from hf_interp.plan import MixturePlan
from hf_interp.planning import plan_mixture
from hf_interp.plots import plot_run
from hf_interp.pushing import check_strategy
from hf_interp.reference import base_of
from hf_interp.results import RESULTS_NAME, RUN_PLOT_NAME, RunResults, save_results
from hf_interp.robust_loss import check_head
from hf_interp.schedules import did_you_mean
from hf_interp.scoring import check_whole_weights
from hf_interp.tasks import TASKS, Task, check_task, get_task, label_names_of, load_model, prepare_tokenizer
from hf_interp.tokens import pack
from hf_interp.trackers import add_picture
from hf_interp.trainer import InterpolationMixin, InterpolationSeq2SeqTrainer, InterpolationTrainer


@dataclass(frozen=True, kw_only=True)
class Data:
    """A recipe's data, tokenised.

    Args:
        tokenizer: the tokenizer of the model.
        corpora: training corpora.
        eval_sets: evaluation sets by name.
        validation_sets: sets by name on which the α of the weights is chosen, if they are others.
    """

    tokenizer: PreTrainedTokenizerBase
    corpora: list[Corpus]
    eval_sets: dict[str, datasets.Dataset]
    validation_sets: dict[str, datasets.Dataset] = field(default_factory=dict)


def run_recipe(recipe: Mapping[str, Any], *, show_progress: bool = True) -> RunResults:
    """Load, train, evaluate and save; the model, `results.json` and a picture go to `output_dir`.

    With `alpha_search` the curve of M_α goes there too, and M_α at the chosen α into `interpolated` inside.

    Args:
        recipe: a recipe as a plain mapping (see `hf_interp.config.load_recipe`).
        show_progress: show the host's progress bars, unless the recipe sets `disable_tqdm`.

    Returns:
        what the run found.

    Raises:
        ValueError, OSError: for bad input, before anything is trained.
    """
    parsed, args = parse_recipe(recipe)
    args.disable_tqdm = bool(args.disable_tqdm or not show_progress)
    check_processes(args)
    task = check_recipe(parsed, args)
    with args.main_process_first(desc="loading and tokenising the corpora"):
        data = load_data(parsed, task)
    plan_data(data, args)  # now, so that bad input leaves nothing behind
    pushes, args.push_to_hub = args.push_to_hub, False  # once, when all is there
    settings = hub_settings(args)
    args.hub_token = None  # or it is saved with the arguments
    if pushes:
        check_pushing(args, settings)
    trainer = build_trainer(parsed, task, args, data)
    trainer.recipe = without_tokens(recipe)
    if parsed.peft is not None and trainer.is_world_process_zero():
        print(count_parameters(trainer.model))
    if parsed.alpha_search is not None:
        check_whole_weights(trainer)
    trainer.train(resume_from_checkpoint=read_resume(args.resume_from_checkpoint))
    evaluate_at_end(trainer)
    trainer.save_model()
    results = trainer.results()
    folder = Path(args.output_dir or ".")
    if trainer.is_world_process_zero():
        remove_interpolated(folder)
        save_results(results, folder / RESULTS_NAME)
        plot_run(results, folder / RUN_PLOT_NAME)
    if parsed.alpha_search is not None:
        curve = search_run(trainer, parsed, data.validation_sets or data.eval_sets, apply=True)
        trainer.save_model(str(folder / INTERPOLATED_NAME))
        if trainer.is_world_process_zero():
            save_curve(curve, folder)
            add_picture(trainer, "alpha_curve", folder / CURVE_PLOT_NAME)
    if trainer.is_world_process_zero():
        render_card(folder, repo_id=args.hub_model_id).save(folder / CARD_NAME)
        if pushes:
            print(push_run(folder, hub_name(args), **settings))
    return results


def remove_interpolated(folder: Path) -> None:
    """Remove the curve and M_α that an earlier run has left in a folder, whose M_θ is another now."""
    for name in (CURVE_NAME, CURVE_PLOT_NAME):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / INTERPOLATED_NAME, ignore_errors=True)


def hub_name(args: InterpolationConfig) -> str:
    """The repository that a run is pushed to: `hub_model_id`, or the name of its folder."""
    return args.hub_model_id or Path(args.output_dir or ".").absolute().name


def hub_settings(args: InterpolationConfig) -> dict[str, Any]:
    """What `push_run` takes of the training arguments."""
    return {"private": args.hub_private_repo, "token": args.hub_token, "revision": args.hub_revision}


def check_pushing(args: InterpolationConfig, settings: Mapping[str, Any]) -> None:
    """Make the repository before anything is trained, so that a token that is refused shows now.

    Raises:
        ValueError: for a name that the Hub does not allow, a public repository that should be private, or a strategy
            that pushes checkpoints.
        OSError: if the Hub refuses or cannot be reached.
    """
    check_name(hub_name(args))
    check_strategy(args.hub_strategy)
    if args.process_index == 0:
        make_repo(hub_name(args), private=settings["private"], token=settings["token"])


def check_processes(args: InterpolationConfig) -> None:
    """Refuse processes that a launcher has started, but that have not found each other."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if args.world_size < started:
        raise ValueError(
            f"The launcher has started {started} processes, but each would train alone on all of the data, because "
            "there is no GPU. Set `use_cpu: true` in the recipe (--use_cpu true), or start one process."
        )


def check_recipe(recipe: Recipe, args: InterpolationConfig) -> Task:
    """What can be checked before anything is loaded."""
    task = check_task(recipe)
    if args.domain_loss is not None:
        check_head(task.model_class, recipe.problem_type)
    for name in recipe.objective_names():
        if name not in recipe.objectives and name not in TASKS:
            known = [*recipe.objectives, *TASKS]
            raise ValueError(
                f"`objective` must be one of `objectives` ({', '.join(recipe.objectives) or 'none'}) or a task "
                f"({', '.join(TASKS)}), got {name!r}." + did_you_mean(name, known)
            )
        if check_task(recipe.for_objective(name)).generates:
            raise ValueError(
                f"The objective {name!r} cannot be {recipe.for_objective(name).task}, which has no backbone apart from "
                "its head."
            )
    if args.max_steps <= 0:
        raise ValueError(
            f"A mixture needs `max_steps`, got {args.max_steps}. Set it in the recipe or with --max_steps."
        )
    if recipe.peft is not None:
        check_adapter(
            recipe.peft, task.peft_type, max_steps=args.max_steps, is_interpolated=recipe.alpha_search is not None
        )
    check_search(recipe)
    folder = Path(recipe.model_name_or_path).expanduser()
    if recipe.model_name_or_path.startswith((".", "/", "~")) and not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {recipe.model_name_or_path!r} (`model_name_or_path`).")
    return task


def load_data(recipe: Recipe, task: Task, *, trains: bool = True) -> Data:
    """Load and tokenise the corpora (if anything `trains`) and evaluation sets of a recipe."""
    if not sys.stderr.isatty():  # bars would fill a log with their every step
        datasets.disable_progress_bars()
        host_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(
        recipe.model_name_or_path, revision=recipe.model_revision, trust_remote_code=recipe.trust_remote_code
    )
    prepare_tokenizer(tokenizer, recipe)

    def tokenised(name: str, group: Mapping[str, CorpusConfig]) -> Any:
        return tokenise(name, group[name], recipe.for_objective(group[name].objective), tokenizer)

    corpora = [
        Corpus(
            name,
            tokenised(name, recipe.corpora),
            config.side or "domain",
            share=config.share,
            max_passes=config.max_passes,
            mean_tokens=config.mean_tokens,
            objective=config.objective,
        )
        for name, config in (recipe.corpora if trains else {}).items()
    ]
    return Data(
        tokenizer=tokenizer,
        corpora=corpora,
        eval_sets={name: tokenised(name, recipe.eval_corpora) for name in recipe.eval_corpora},
        validation_sets={name: tokenised(name, recipe.validation_corpora) for name in recipe.validation_corpora},
    )


def tokenise(name: str, config: CorpusConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Load a corpus and turn it into model inputs, packed if the recipe says so.

    Raises:
        ValueError: for what cannot be trained on, naming corpus, column and row.
    """
    task = get_task(recipe.task)
    columns = task.columns(recipe, config)
    raw = load_corpus(name, config, columns, label_names_of(recipe))
    encoded = encode_corpus(name, raw, config, task.encode(tokenizer, recipe), list(columns))
    if not (task.is_packed and recipe.packing and "text" in columns):
        return encoded
    packed = pack(encoded, recipe.max_length)
    if isinstance(packed, datasets.Dataset) and len(packed) == 0:
        raise ValueError(
            f"Corpus {name!r} has fewer than `max_length` ({recipe.max_length}) tokens, so that nothing is left of it "
            "when packed. Lower `max_length`, or set `packing: false`."
        )
    return packed


def plan_data(data: Data, args: InterpolationConfig, num_processes: int | None = None) -> MixturePlan:
    """The plan that the trainer will make for a new run, before there is a model; for this world by default.

    Raises:
        ValueError: if the corpora do not fit together or cannot be planned.
    """
    check_columns(data.corpora)
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * (num_processes or args.world_size)
    return plan_mixture(data.corpora, args, batch_size=batch_size, is_adaptive=args.alpha_controller is not None)


def build_model(recipe: Recipe, task: Task, args: InterpolationConfig) -> torch.nn.Module:
    """The pretrained model, with its adapter if there is one; `args.seed` decides a new head.

    Raises:
        ValueError: if the anchor of `args` needs a head that the model does not have.
    """
    set_seed(args.seed)
    model, new_names = load_model(recipe, revision=recipe.model_revision)
    settle_new_head(args, recipe.model_name_or_path, new_names)
    if recipe.peft is None:
        return model
    return adapt(model, recipe.peft, task_type=task.peft_type, max_steps=args.max_steps, new_names=new_names)


def build_trainer(
    recipe: Recipe,
    task: Task,
    args: InterpolationConfig,
    data: Data,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    anew: bool = False,
) -> Any:
    """The model in an `InterpolationTrainer`, or an `InterpolationSeq2SeqTrainer` where the task generates.

    Args:
        recipe, task, args, data: what is trained, and how.
        callbacks: further callbacks.
        anew: load the model anew whenever training begins, as `hyperparameter_search` needs it.
    """
    if data.eval_sets:
        args.eval_on_start = True  # M₀'s metrics, without which nothing can be said about forgetting
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False  # there is nothing to pin for, and torch would warn at every loader

    def model_init() -> torch.nn.Module:
        model = build_model(recipe, task, args)
        prepare_model(recipe, task, model, data.tokenizer)
        return model

    model = None if anew else model_init()
    return trainer_class(task)(
        model=model,
        model_init=model_init if anew else None,
        args=args,
        train_dataset=data.corpora,
        eval_dataset=data.eval_sets or None,
        processing_class=data.tokenizer,
        callbacks=[_SeedFirstStep(), *adapter_callbacks(recipe.peft), *callbacks],
        **task_parts(recipe, task, args, data.tokenizer, has_metrics=bool(data.eval_sets)),
    )


def trainer_class(task: Task) -> type[Any]:
    """The trainer of a task."""
    return InterpolationSeq2SeqTrainer if task.generates else InterpolationTrainer


def task_parts(
    recipe: Recipe, task: Task, args: InterpolationConfig, tokenizer: PreTrainedTokenizerBase, *, has_metrics: bool
) -> dict[str, Any]:
    """What a trainer must be given for a task and for the objectives beside it; `args` are set for generation.

    A task that generates does so in every evaluation, up to `generation_max_length` tokens (by default
    `max_target_length`).
    """
    if task.generates:
        args.predict_with_generate = True
        if args.generation_max_length is None:
            args.generation_max_length = recipe.max_target_length
    groups = {**recipe.eval_corpora, **recipe.validation_corpora}
    return {
        "data_collator": task.collator(tokenizer, recipe),
        "compute_metrics": task.metrics(tokenizer, recipe) if has_metrics else None,
        "preprocess_logits_for_metrics": task.preprocess_logits() if task.preprocess_logits else None,
        "objectives": {name: build_objective(recipe, name, args, tokenizer) for name in recipe.objective_names()},
        "eval_objectives": {name: each.objective for name, each in groups.items() if each.objective is not None},
    }


def build_objective(
    recipe: Recipe, name: str, args: InterpolationConfig, tokenizer: PreTrainedTokenizerBase
) -> Objective:
    """The head of an objective, as the pretrained model has it or new, with what evaluates it."""
    own = recipe.for_objective(name)
    task = get_task(own.task)
    set_seed(args.seed)
    return Objective(
        load_model(own, revision=recipe.model_revision).model,
        task.collator(tokenizer, own),
        task.metrics(tokenizer, own),
        task.preprocess_logits() if task.preprocess_logits else None,
    )


def prepare_model(recipe: Recipe, task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set what the model must know of the tokenizer and of the task."""
    inner = base_of(model)
    if getattr(inner.config, "pad_token_id", None) is None:
        inner.config.pad_token_id = tokenizer.pad_token_id
    task.prepare(tokenizer, inner, recipe)


def settle_new_head(args: InterpolationConfig, name_or_path: str, new_names: Sequence[str]) -> None:
    """Leave a head that the pretrained model does not have out of what is compared with it.

    Raises:
        ValueError: if that model's predictions are asked for.
    """
    if new_names and (args.anchor == "distill" or args.log_loss_gap):
        asking = "anchor: distill" if args.anchor == "distill" else "log_loss_gap: true"
        raise ValueError(
            f"`{asking}` needs a pretrained model with a trained head, but {name_or_path!r} lacks "
            f"{', '.join(new_names)}. Start from a model with a head for the task, or use `anchor: l2sp` without "
            "`log_loss_gap`."
        )
    if new_names and args.anchor == "l2sp":
        args.anchor_exclude = sorted({*(args.anchor_exclude or []), *new_names})


class _SeedFirstStep(TrainerCallback):
    """Seeds the first step: evaluation draws random numbers, and a run must not depend on whether M₀ was evaluated."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            set_seed(args.seed)


def evaluate_at_end(trainer: InterpolationMixin) -> None:
    """Evaluate the trained model, unless the last evaluation of the run was already of it."""
    if not trainer.eval_dataset:
        return
    evaluated = [entry["step"] for entry in trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    if trainer.args.load_best_model_at_end or max(evaluated, default=-1) < trainer.state.global_step:
        trainer.evaluate()


def read_resume(value: str | None) -> str | bool | None:
    """`resume_from_checkpoint` as the host wants it: a folder, or True for the last checkpoint of `output_dir`."""
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
    recipe = load_recipe(path, flags)
    results = run_recipe(recipe, show_progress=sys.stderr.isatty())
    folder = results.config["output_dir"]
    if PartialState().is_main_process:
        print(format_results(results))
        print(f"The model, {RESULTS_NAME} and {RUN_PLOT_NAME} are in {folder}.")
        if parse_recipe(recipe)[0].alpha_search is not None:
            print(f"\n{format_curve(load_curve(Path(folder) / CURVE_NAME))}")
            print(f"M_α is in {folder}/{INTERPOLATED_NAME}; {CURVE_NAME} and {CURVE_PLOT_NAME} are in {folder}.")
    PartialState().destroy_process_group()  # or gloo's threads may abort a process that ends before the others
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command behind `accelerate launch`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_interp.train", description="Train what a recipe describes.", allow_abbrev=False
    )
    parser.add_argument("recipe", help="the recipe, a YAML file; any other flag sets a field of it")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    args, flags = parser.parse_known_args(argv)

    def run() -> None:
        train_and_report(args.recipe, flags)

    return run_command(run, traceback=args.traceback)


if __name__ == "__main__":
    sys.exit(main())
