"""From a recipe to its data, its model and its trainer."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import torch
from accelerate.utils import DynamoBackend
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.collators import DISTILL
from hf_interp.mixture.corpus import Corpus, check_columns
from hf_interp.mixture.packing import pack
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.streams import check_stream_ends
from hf_interp.reporting.results import greater_is_better
from hf_interp.selection.choice import AlphaSearch
from hf_interp.tasks.balance import balance, check_balance
from hf_interp.tasks.corpora.columns import Kind
from hf_interp.tasks.corpora.corpus_files import quiet_bars
from hf_interp.tasks.corpora.loading import encode_corpus, load_corpus, without_faulty
from hf_interp.tasks.corpora.media import check_media
from hf_interp.tasks.corpora.splits import Keys, content_keys, count_shared
from hf_interp.tasks.fitness import UNLIMITED, check_inputs, count_cut
from hf_interp.tasks.harness import check_harness
from hf_interp.tasks.models import check_model_name, label_names_of, load_model
from hf_interp.tasks.presets import adapt, adapter_callbacks, check_adapter
from hf_interp.tasks.probes import check_probes, load_pairs, plant
from hf_interp.tasks.recipe import GROUP, SELF, CorpusConfig, Recipe
from hf_interp.tasks.self_corpus import Made, check_self, place_self, promised
from hf_interp.tasks.speech import is_ctc
from hf_interp.tasks.task import TASKS, Task, check_task, get_task
from hf_interp.tasks.tokenizers import load_processor
from hf_interp.training.checkpoints import PREFIX_CHECKPOINT_DIR
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.mixture_run import plan_mixture
from hf_interp.training.private import unfit_settings
from hf_interp.utils.errors import check_choice, check_known, did_you_mean
from hf_interp.utils.files import check_output
from hf_interp.utils.model_files import WEIGHT_FILES, matches
from hf_interp.utils.run_folder import RESULTS_NAME

if TYPE_CHECKING:  # data is loaded and planned without waiting for the trainer
    from hf_interp.selection.groups import Groups
    from hf_interp.training.heads import Objective
    from hf_interp.training.mixin import InterpolationMixin

logger = logging.getLogger(__name__)


def check_search(recipe: Recipe) -> None:
    """Refuse a recipe that asks for a search and lacks the set of a side."""
    search = recipe.alpha_search
    if search is None:
        return
    found = [name for name, corpus in getattr(recipe, recipe.search_group).items() if not corpus.pair_columns]
    for name in (search.domain, search.general):
        if name not in found:
            raise ValueError(
                f"`alpha_search` needs the sets {search.domain!r} and {search.general!r}, but `{recipe.search_group}` "
                f"has {found}. Name them there, or say in `alpha_search` what `domain` and `general` are called."
            )


@dataclass(frozen=True, kw_only=True)
class RecipeData:
    """A recipe's data, tokenised."""

    tokenizer: Any
    """Or what makes inputs of images or sound."""
    corpora: list[Corpus]
    eval_sets: dict[str, datasets.Dataset]
    validation_sets: dict[str, datasets.Dataset] = field(default_factory=dict)
    """Sets by name on which the α of the weights is chosen, if they are others."""
    pairs: dict[str, tuple[datasets.Dataset, datasets.Dataset]] = field(default_factory=dict)
    """The first and the second texts of the sets that have `pair_columns`, by name."""
    groups: dict[str, dict[str, "Groups"]] = field(default_factory=dict)
    """Groups of the rows by group of sets, such as eval_corpora, and by name; of those that have `group_columns`."""
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    """How many rows are cut, of how many, by group and name, such as corpora.domain; where there are any."""
    packed: dict[str, int] = field(default_factory=dict)
    """Of how many rows the examples of a training corpus are packed, by its name."""
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    """How many rows of an evaluation set are trained on, of how many, likewise."""
    made: dict[str, Made] = field(default_factory=dict)
    """What M₀ makes, or has made, and where, likewise."""

    def measured_rows(self) -> dict[str, int]:
        """Return how many rows the sets that measure or choose have, by group and name, where that is known."""
        known = {key: found for key, found in self.by_field().items() if isinstance(found, datasets.Dataset)}
        return {key: len(found) for key, found in known.items() if not key.startswith("corpora.")}

    def by_field(self) -> dict[str, Any]:
        """Return all corpora and sets by the fields of the recipe that name them, such as corpora.domain."""
        groups = {"eval_corpora": self.eval_sets, "validation_corpora": self.validation_sets}
        groups["corpora"] = {corpus.name: corpus.dataset for corpus in self.corpora}
        return {f"{group}.{name}": dataset for group, sets in groups.items() for name, dataset in sets.items()}


def check_recipe(recipe: Recipe, args: InterpolationConfig, *, trains: bool = True) -> Task:
    """Check what can be checked before anything is loaded; of what only training needs, nothing unless it `trains`."""
    task = check_task(recipe)
    for name in recipe.objective_names():
        if name not in (known := [*recipe.objectives, *TASKS, DISTILL]):
            raise ValueError(
                f"`objective` must be one of `objectives` ({', '.join(recipe.objectives) or 'none'}), {DISTILL}, or a "
                f"task ({', '.join(TASKS)}), got {name!r}." + did_you_mean(name, known)
            )
        own = check_task(recipe.for_objective(name))
        if own.info.takes != task.info.takes:
            raise ValueError(
                f"The objective {name!r} takes {own.info.takes} and the task {recipe.task} {task.info.takes}, so that "
                "they have no backbone in common."
            )
        if own.generates:
            raise ValueError(
                f"The objective {name!r} cannot be {recipe.for_objective(name).task}, which has no backbone apart from "
                "its head."
            )
    for group, name, corpus in recipe.entries():
        if corpus.objective == DISTILL and group != "corpora":
            raise ValueError(f"The set {name!r} cannot have the objective {DISTILL!r}, which is for training corpora.")
    check_probes(recipe)
    _check_groups(recipe)
    check_self(recipe)
    check_balance(recipe)
    if trains and recipe.peft is not None:
        steps, is_interpolated = max(args.max_steps, 0), recipe.alpha_search is not None
        check_adapter(recipe.peft, task.info.peft_type, max_steps=steps, is_interpolated=is_interpolated)
    if trains:
        check_output(args.output_dir)
        _check_compiler(args)
        _check_folder(recipe, args)
        check_harness(recipe)
    check_search(recipe)
    _check_privacy(recipe, args)
    _check_ctc(recipe, args)
    if args.mixture_unit == "tokens" and task.info.takes != "text":
        raise ValueError(f"`mixture_unit: tokens` is for texts, got the task {recipe.task}. Leave it out.")
    _check_columns(recipe)
    _check_controller(recipe, args)
    _warn_of_same(recipe)
    check_model_name(recipe.model_name_or_path)
    return task


def _warn_of_same(recipe: Recipe) -> None:
    """Warn of corpora that read the same rows for the same objective, which is a mixture of one."""
    names: dict[str, str] = {}
    for name, corpus in recipe.corpora.items():
        read = replace(corpus, side=None, share=None, max_passes=None, mean_tokens=None, license=None)
        if (first := names.setdefault(repr(read), name)) != name:
            logger.warning(f"`corpora.{first}` and `corpora.{name}` read the same rows: {corpus.path}. Is that meant?")


def _check_compiler(args: InterpolationConfig) -> None:
    """Refuse a compiler that the host does not know, and a mode that torch's own does not have."""
    if not args.torch_compile:
        return
    known = {"torch_compile_backend": [each.value.lower() for each in DynamoBackend]}
    if args.torch_compile_backend == "inductor" and args.torch_compile_mode is not None:
        from torch._inductor import list_mode_options

        known["torch_compile_mode"] = list(list_mode_options())
    for name, options in known.items():
        check_choice(name, getattr(args, name).lower(), options)


def _check_folder(recipe: Recipe, args: InterpolationConfig) -> None:
    """Refuse to write a run over the model that it begins with, or over one that no run has written."""
    folder = Path(args.output_dir or ".")
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    is_run = RESULTS_NAME in files or any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in files)
    model = Path(recipe.model_name_or_path).expanduser()
    if model.is_dir() and folder.is_dir() and folder.samefile(model):
        whose = "`model_name_or_path`"
    elif not is_run and any(
        matches(name, (*WEIGHT_FILES, "pytorch_model*", "config.json", "adapter_config.json")) for name in files
    ):
        whose = "a model that no run has written there"
    else:
        return
    raise ValueError(
        f"`output_dir` must not be the folder of {whose}, which would be written over, got {str(folder)!r}. Take "
        "another."
    )


def _check_privacy(recipe: Recipe, args: InterpolationConfig) -> None:
    """Refuse privacy of rows that are packed, or that decide what is read, and settings that look at them."""
    if args.dp_epsilon is None:
        return
    task, corpora = get_task(recipe.task), recipe.corpora.values()
    reasons = {
        f"batches that fall into rows, which those of {recipe.task} do not": task.info.converses,
        "examples of one row, so `packing: false`": task.is_packed and bool(recipe.packing),
        "no `balance_by`, which looks at the rows": any(corpus.balance_by for corpus in corpora),
        **unfit_settings(args),
    }
    if reason := next((words for words, is_broken in reasons.items() if is_broken), None):
        raise ValueError(f"`dp_epsilon` needs {reason}.")


def _check_ctc(recipe: Recipe, args: InterpolationConfig) -> None:
    """Refuse what needs a prediction for each label, which CTC does not make."""
    distills = DISTILL in (args.anchor, *(corpus.objective for corpus in recipe.corpora.values()))
    asked = {"distill": distills, "log_loss_gap": args.log_loss_gap, "adversarial: r3f": args.adversarial == "r3f"}
    what = next((text for text, is_so in asked.items() if is_so), None)
    info = get_task(recipe.task).info
    if what is not None and (info.takes, info.answer) == ("audio", "text") and is_ctc(recipe):
        raise ValueError(
            f"`{what}` needs one prediction for each label, which CTC does not make. Use `anchor: l2sp`, or "
            "`adversarial: fgm`."
        )


def _check_columns(recipe: Recipe) -> None:
    """Refuse `columns` of a corpus that its task does not have."""
    for group, name, corpus in recipe.entries():
        own = recipe.for_corpus(corpus, trains=group == "corpora")
        known = get_task(own.task).columns(own, corpus)
        check_known(corpus.columns or {}, known, f"in `{group}.{name}.columns`")


def _check_groups(recipe: Recipe) -> None:
    """Refuse groups of what is no evaluation set of a classifier, and a limit on their gap where there are none."""
    for group, name, corpus in recipe.entries():
        is_label = get_task(recipe.for_objective(corpus.objective).task).info.answer == "label"
        if corpus.group_columns and (group == "corpora" or not is_label or corpus.streaming):
            raise ValueError(
                f"`{group}.{name}.group_columns` must be of an evaluation set of a classifier, and of no stream. Leave "
                "it out."
            )
    search, sets = recipe.alpha_search or AlphaSearch(), getattr(recipe, recipe.search_group)
    if search.max_group_gap is not None and not any(corpus.group_columns for corpus in sets.values()):
        raise ValueError(
            f"`alpha_search.max_group_gap` needs groups: name `group_columns` of a set in `{recipe.search_group}`, by "
            "which α is chosen."
        )
    if search.max_leakage is not None:
        audited_corpus(recipe)


def audited_corpus(recipe: Recipe, corpus: str | None = None) -> str:
    """Return the name of the training corpus whose rows are looked for, by default one of the domain with canaries."""
    if get_task(recipe.task).generates:
        raise ValueError(f"An audit needs the loss of every example, which {recipe.task} does not tell.")
    fitting = [
        name
        for name, one in recipe.corpora.items()
        if (one.side == "domain" or name == corpus) and not (one.objective or one.streaming or one.balance_by)
    ]
    if not fitting and corpus is None:
        raise ValueError(
            "An audit, and so `alpha_search.max_leakage`, needs a domain corpus of the task that is no stream, without "
            "`balance_by`; there is none."
        )
    if corpus not in (None, *fitting):
        raise ValueError(
            "`corpus` must be a training corpus of the task, no stream, without `balance_by` "
            f"({', '.join(fitting) or 'there is none'}), got {corpus!r}." + did_you_mean(str(corpus), fitting)
        )
    return corpus or next((name for name in fitting if recipe.corpora[name].canaries), fitting[0])


def _check_controller(recipe: Recipe, args: InterpolationConfig) -> None:
    """Refuse a metric for the controller that nothing will tell it, or of which less is not better."""
    metric = dict(args.alpha_controller_kwargs or {}).get("metric")  # type: ignore[arg-type]
    if metric is None:
        return
    sets = [name for name, corpus in recipe.eval_corpora.items() if not corpus.pair_columns]
    losses = [*(f"{side}_loss" for side in SIDES), *(f"eval_{name}_loss" for name in sets)]
    own = next((name for name in sets if str(metric).startswith(f"eval_{name}_")), None)
    if metric not in losses and (own is None or greater_is_better(metric.removeprefix(f"eval_{own}_")) is not False):
        raise ValueError(
            f"`alpha_controller_kwargs.metric` must be a metric of which less is better, such as {', '.join(losses)}, "
            f"got {metric!r}." + did_you_mean(metric, losses)
        )


def load_data(recipe: Recipe, task: Task, *, trains: bool = True, makes: bool = True) -> RecipeData:
    """Load and tokenise the corpora and evaluation sets of a recipe.

    If nothing `trains`, the corpora are not read, nor the evaluation sets where there are validation sets. Corpora that
    M₀ is to make are made, unless nothing `makes` them: then rows stand for them that can only be counted.
    """
    quiet_bars()
    recipe, made = place_self(recipe, makes=makes)
    tokenizer = load_processor(recipe)
    is_read = {"corpora": trains, "eval_corpora": trains or not recipe.validation_corpora, "validation_corpora": True}
    found: dict[str, dict[str, Tokenised]] = {group: {} for group in is_read}
    groups: dict[str, dict[str, Groups]] = {group: {} for group in is_read}
    for group, name, config in recipe.entries():
        if is_read[group] and not config.pair_columns:
            own = recipe.for_corpus(config, trains=group == "corpora")
            one = (
                Tokenised(promised(config, recipe))
                if config.path == SELF
                else tokenise(name, config, own, tokenizer, group=group)
            )
            if group != "corpora" and (columns := _group_columns(one.examples)):
                groups[group][name] = _read_groups(one.examples, columns, f"{group}.{name}")
                one = one._replace(examples=one.examples.remove_columns(columns))  # which the model does not know
            found[group][name] = one
    corpora = [
        Corpus(
            name,
            one.examples,
            config.side or "domain",
            share=config.share,
            max_passes=config.max_passes,
            mean_tokens=config.mean_tokens,
            objective=config.objective,
        )
        for name, one in found["corpora"].items()
        for config in [recipe.corpora[name]]
    ]
    named = {f"{group}.{name}": one for group, entries in found.items() for name, one in entries.items()}
    keys = {key: one.keys for key, one in named.items() if one.keys is not None}
    of_corpora = [key for key in keys if key.startswith("corpora.")]
    trained = [keys[key] for key in of_corpora]
    return RecipeData(
        tokenizer=tokenizer,
        corpora=balance(corpora, {name: config.balance_by for name, config in recipe.corpora.items()}),
        eval_sets={name: one.examples for name, one in found["eval_corpora"].items()},
        validation_sets={name: one.examples for name, one in found["validation_corpora"].items()},
        pairs={
            name: load_pairs(name, config, recipe, tokenizer)
            for name, config in recipe.eval_corpora.items()
            if config.pair_columns
        },
        groups=groups,
        cut={key: one.cut for key, one in named.items() if one.cut is not None},
        packed={name: one.num_packed for name, one in found["corpora"].items() if one.num_packed is not None},
        made=made,
        shared={key: (count_shared(each, trained), len(each)) for key, each in keys.items() if key not in of_corpora},
    )


def _group_columns(dataset: Any) -> list[str]:
    return [column for column in dataset.column_names or [] if column.startswith(GROUP)]


def _read_groups(dataset: Any, columns: Sequence[str], where: str) -> "Groups":
    """Return who is of which group, by columns of a set."""
    from hf_interp.selection.groups import read_groups

    try:
        return read_groups({column.removeprefix(GROUP): dataset[column] for column in columns})
    except ValueError as error:
        raise ValueError(f"Corpus '{where}': {error}") from None


class Tokenised(NamedTuple):
    """A corpus as the model takes it, and what is known of its rows."""

    examples: Any
    cut: tuple[int, int] | None = None
    """How many rows are cut, of how many, if any are."""
    num_packed: int | None = None
    """Of how many rows the examples are packed, if they are, and it is known."""
    keys: Keys | None = None
    """What tells the inputs of rows from others, but for a stream."""


def tokenise(
    name: str, config: CorpusConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, group: str = "corpora"
) -> Tokenised:
    """Load a corpus and turn it into model inputs, packed if the recipe says so; errors name corpus, column and row.

    Long rows of an evaluation set become several where the task can split them.
    """
    name = name if group == "corpora" else f"{group}.{name}"
    task = get_task(recipe.task)
    columns = dict(task.columns(recipe, config))
    is_joined = task.is_packed and recipe.packing and "text" in columns  # not cut, but packed
    fits = recipe.packing == "bfd" and group == "corpora"  # rows of other sets are evaluated one by one
    if config.document is None and is_joined and task.info.answer == "continuation":
        config = replace(config, document="file")
    unread = [column for column, kind in columns.items() if config.objective == DISTILL and kind in ("class", "tags")]
    read: dict[str, Kind] = {column: kind for column, kind in columns.items() if column not in unread}
    kept = [*(config.group_columns or []), *([config.balance_by] if config.balance_by else [])]
    read |= {f"{GROUP}{column}": "anything" for column in kept}
    raw = load_corpus(name, config, read, label_names_of(recipe), numbered=True)
    for column in unread:  # the first label stands wherever a prediction is wanted
        raw = raw.map(lambda row, column=column: {column: [0] * len(row["tokens"]) if column == "tags" else 0})
    raw = without_faulty(name, raw, config, task.encode(tokenizer, recipe))
    task.check_rows(name, raw, tokenizer, recipe)
    if config.canaries:
        raw = plant(name, raw, config)
    keys = None
    if isinstance(raw, datasets.Dataset):
        rows = raw.select_columns(column := next(iter(columns))).iter(1000)  # rows one by one take four times as long
        keys = content_keys(value for batch in rows for value in batch[column])
    if group != "corpora" and task.split is not None:
        raw = encode_corpus(name, raw, config, task.split(tokenizer, recipe), list(columns))
    encoded = encode_corpus(name, raw, config, task.encode(tokenizer, recipe), list(columns))
    cut = None
    if not is_joined:
        limits = {"input_ids": recipe.max_length, **({"labels": recipe.max_target_length} if task.generates else {})}
        whole = replace(recipe, max_length=UNLIMITED, max_target_length=UNLIMITED)
        count = count_cut(raw, encoded, task.encode(tokenizer, whole), limits)
        cut = (count, len(encoded)) if count else None
    if not is_joined and not fits:
        return Tokenised(encoded, cut, keys=keys)
    examples = pack(encoded, recipe.max_length, strategy="bfd" if recipe.packing == "bfd" else "wrapped")
    if isinstance(examples, datasets.Dataset) and len(examples) == 0:
        raise ValueError(
            f"Corpus {name!r} has fewer than `max_length` ({recipe.max_length}) tokens, so that nothing is left of it "
            "when packed. Lower `max_length`, or set `packing: false`."
        )
    return Tokenised(examples, cut, len(raw) if isinstance(raw, datasets.Dataset) else None, keys)


def format_cut(cut: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a sentence for every corpus of which rows are cut."""
    return [
        f"{rows:,} of {total:,} rows of `{name}` are cut to `max_length` or `max_target_length`."
        for name, (rows, total) in cut.items()
    ]


def plan_data(data: RecipeData, args: InterpolationConfig, num_processes: int | None = None) -> MixturePlan:
    """Plan a new run as the trainer will, before there is a model; for this world by default."""
    check_columns(data.corpora)
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * (num_processes or args.world_size)
    plan = plan_mixture(data.corpora, args, batch_size=batch_size, is_adaptive=args.alpha_controller is not None)
    check_stream_ends(data.corpora, plan)
    return plan


def build_model(recipe: Recipe, task: Task, args: InterpolationConfig) -> torch.nn.Module:
    """Load the pretrained model, with its adapter if there is one; `args.seed` decides a new head."""
    set_seed(args.seed)
    model, new_names = load_model(recipe)
    _settle_new_head(args, recipe, new_names)
    if recipe.peft is None:
        return model
    steps = max(args.max_steps, 0)
    return adapt(model, recipe.peft, task_type=task.info.peft_type, max_steps=steps, new_names=new_names)


def build_trainer(recipe: Recipe, task: Task, args: InterpolationConfig, data: RecipeData) -> Any:
    """Put the model into the trainer of the task."""
    if data.eval_sets:
        args.eval_on_start = True  # M₀'s metrics, without which nothing can be said about forgetting
    if not torch.accelerator.is_available():
        args.dataloader_pin_memory = False  # there is nothing to pin for, and torch would warn at every loader
    model = build_model(recipe, task, args)
    prepare_model(recipe, task, model, data.tokenizer)
    parts = task_parts(recipe, task, args, data.tokenizer, model, has_metrics=bool(data.eval_sets))
    if task.info.takes == "text":
        target_length = args.generation_max_length if task.generates else None
        check_inputs(model, data.tokenizer, data.by_field(), target_length=target_length)
    else:
        check_media(model, parts["data_collator"], data.by_field(), has_labels=task.loss is None)
    return trainer_class(task)(
        model=model,
        args=args,
        train_dataset=data.corpora,
        eval_dataset=data.eval_sets or None,
        processing_class=data.tokenizer,
        callbacks=[_SeedFirstStep(), *adapter_callbacks(recipe.peft)],
        **parts,
    )


def trainer_class(task: Task) -> type[Any]:
    """Return the class of trainer of a task."""
    from hf_interp.training.trainer import InterpolationSeq2SeqTrainer, InterpolationTrainer

    return InterpolationSeq2SeqTrainer if task.generates else InterpolationTrainer


def task_parts(
    recipe: Recipe,
    task: Task,
    args: InterpolationConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    *,
    has_metrics: bool,
) -> dict[str, Any]:
    """Return what a trainer must be given for a task and its objectives; `args` are set for generation."""
    if task.generates and unwrap_peft(model).can_generate():
        args.predict_with_generate = True
        if args.generation_max_length is None:
            args.generation_max_length = recipe.max_target_length
    if task.loss is not None:
        args.label_names = ["labels"]  # which are the loss's, and not the model's
    groups = {**recipe.eval_corpora, **recipe.validation_corpora}
    return {
        "data_collator": task.collator(tokenizer, recipe),
        "compute_metrics": task.metrics(tokenizer, recipe) if has_metrics else None,
        "preprocess_logits_for_metrics": task.preprocess_logits and task.preprocess_logits(),
        "compute_loss_func": task.loss and task.loss(tokenizer),
        "objectives": {
            name: _build_objective(recipe.for_objective(name), args, tokenizer) for name in recipe.objective_names()
        },
        "eval_objectives": {name: each.objective for name, each in groups.items() if each.objective is not None},
    }


def _build_objective(recipe: Recipe, args: InterpolationConfig, tokenizer: PreTrainedTokenizerBase) -> "Objective":
    """Return the head of an objective, as the pretrained model has it or new, with what evaluates it."""
    from hf_interp.training.heads import Objective

    task = get_task(recipe.task)
    set_seed(args.seed)
    return Objective(
        load_model(recipe).model,
        task.collator(tokenizer, recipe),
        task.metrics(tokenizer, recipe),
        task.preprocess_logits and task.preprocess_logits(),
    )


def prepare_model(recipe: Recipe, task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set what the model must know of the tokenizer and of the task."""
    inner = unwrap_peft(model)
    if task.info.takes == "text" and getattr(inner.config, "pad_token_id", None) is None:
        inner.config.pad_token_id = tokenizer.pad_token_id
    task.prepare(tokenizer, inner, recipe)


def _settle_new_head(args: InterpolationConfig, recipe: Recipe, new_names: Sequence[str]) -> None:
    """Leave a head that the pretrained model lacks out of what is compared with it; refuse to ask its predictions."""
    distills = any(corpus.objective == DISTILL for corpus in recipe.corpora.values())
    makes = any(corpus.path == SELF for corpus in recipe.corpora.values())
    asked = {"path: self": makes, "objective: distill": distills, "anchor: distill": args.anchor == "distill"}
    asking = next((text for text, is_so in {**asked, "log_loss_gap: true": args.log_loss_gap}.items() if is_so), None)
    if new_names and asking:
        raise ValueError(
            f"`{asking}` needs a pretrained model with a trained head, but {recipe.model_name_or_path!r} lacks "
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


def evaluate_at_end(trainer: "InterpolationMixin") -> None:
    """Evaluate the trained model, unless the last evaluation of the run was already of it.

    Where the model has the mean of the weights, the last weights are evaluated too, before it.
    """
    if not trainer.eval_dataset:
        return
    average = trainer.weight_average
    with average.last_weights() if average is not None else nullcontext():
        _evaluate_once(trainer)
    if average is not None:
        trainer.evaluate()


def _evaluate_once(trainer: "InterpolationMixin") -> None:
    evaluated = [entry["step"] for entry in trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    if trainer.args.load_best_model_at_end or max(evaluated, default=-1) < trainer.state.global_step:
        trainer.evaluate()
