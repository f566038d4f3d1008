"""Fitting a trainer before it trains: corpora, heads, an anchor and a collator that suit its model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_interp.losses.adversarial import Adversary, check_adversary
from hf_interp.losses.anchor import Anchor, check_anchor
from hf_interp.mixture.collators import DISTILL, PackedCollator, SlotwiseCollator, may_draw_numbers
from hf_interp.mixture.controllers import AlphaController
from hf_interp.mixture.corpus import Corpus, check_columns, check_labels, content_fingerprint
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule
from hf_interp.mixture.slots import SlotCollator, SlotDataset, SlotSampler
from hf_interp.training.callbacks import add_first
from hf_interp.training.checkpoints import SavedRun
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.dataloader import slot_loader
from hf_interp.training.heads import HasHeads
from hf_interp.training.integrations import ConstructorCall, TrainerTraits, traits_of
from hf_interp.training.machines import check_alike
from hf_interp.training.mixture_run import MixtureRun, shard_batch
from hf_interp.training.objectives import ObjectiveHeads
from hf_interp.training.private import prepare_private
from hf_interp.weights.model_folder import load_renamed

LABEL_COLUMNS = ("label", "labels", "label_ids")
"""Columns of which transformers' collators make labels."""

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
"""Ends of the names of models that give an input one of their labels."""

SHOWN = 64
"""Rows of a corpus that are looked at to see whether it is packed."""


def prepare_heads(trainer: Trainer, heads: ObjectiveHeads, traits: TrainerTraits) -> None:
    """Attach the heads to a trainer's model, if it has none from `model_init`."""
    if not heads.objectives:
        return
    heads.check_names()
    if trainer.args.n_gpu > 1:
        raise ValueError(
            "Objectives beside the task need one process for each GPU. Start with `accelerate launch` or torchrun."
        )
    if traits.computes_loss:
        raise ValueError(f"The trainers of {traits.package} compute losses of their own: give them no `objectives`.")
    if trainer.compute_loss_func is not None:
        raise ValueError("`compute_loss_func` does not go with `objectives`, whose losses are their models' own.")
    if not isinstance(trainer.model, HasHeads):
        heads.attach(trainer.model)


def prepare_model(model: Any, heads: ObjectiveHeads, anchor: Anchor | None) -> Any:
    """Give a new model the heads of a trainer, and keep it as M₀ where that is the model's own beginning."""
    if heads.objectives:
        heads.attach(model, copies=True)
    if anchor is not None:
        anchor.capture(model)
    return model


def load_rest(trainer: Trainer, heads: ObjectiveHeads, folder: str | None, model: Any) -> None:
    """Load what `Trainer` leaves in a checkpoint whose weights are whole in every process."""
    if folder is not None and not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        load_renamed(model, folder)
        heads.load(folder, model)


def prepare_anchor(
    trainer: Trainer,
    traits: TrainerTraits,
    ref_model: nn.Module | None,
    alpha_schedule: AlphaSchedule | None,
    corpora: Sequence[Corpus] | None,
) -> Anchor | None:
    """Return what brings M₀ into a run, first in line among its callbacks; `None` if nothing asks for M₀."""
    args = trainer.args
    distills = any(corpus.objective == DISTILL for corpus in corpora or ())
    if not isinstance(args, InterpolationConfig):
        if distills:
            raise ValueError('A corpus with `objective="distill"` needs an `InterpolationConfig` as `args`.')
        return None
    if args.anchor is None and not args.log_loss_gap and not distills:
        return None
    check_anchor(trainer, ref_model, has_mixture=corpora is not None, distills=distills)
    anchor = Anchor(args, trainer.model, ref_model, alpha_schedule, distills=distills)
    if (args.anchor == "distill" or args.log_loss_gap) and traits.hides_logits:
        raise ValueError(
            "TRL's trainers leave no logits to compare with M₀'s, as `anchor=\"distill\"` and `log_loss_gap` need. Use "
            '`objective="distill"` of a corpus, `anchor="l2sp"`, or a trainer of transformers.'
        )
    anchor.capture(trainer.model)
    if anchor.pulls:
        anchor.find_pairs(trainer.model)
    add_first(trainer.callback_handler, anchor)  # so that callbacks of the user's see the weights after the pull
    return anchor


def prepare_adversary(trainer: Trainer, traits: TrainerTraits, schedule: AlphaSchedule | None) -> Adversary | None:
    """Return what makes the loss adversarial, if the settings ask for it."""
    if getattr(trainer.args, "adversarial", None) is None:
        return None
    check_adversary(trainer, computes_loss=traits.computes_loss)
    adversary = Adversary(trainer, schedule)
    add_first(trainer.callback_handler, adversary)
    return adversary


def check_given(
    call: ConstructorCall,
    ref_model: nn.Module | None,
    anchor: Anchor | None,
    adversary: Adversary | None,
    schedule: AlphaSchedule | None,
    controller: AlphaController | None,
) -> None:
    """Refuse arguments of a trainer that nothing has a use for."""
    if ref_model is not None and anchor is None and not call.takes_ref_model:
        raise ValueError(
            "`ref_model` needs an `InterpolationConfig` with an `anchor` or `log_loss_gap`, or a corpus with "
            '`objective="distill"`.'
        )
    is_used = anchor is not None or adversary is not None
    unused = {"alpha_schedule": None if is_used else schedule, "alpha_controller": controller}
    for name, value in unused.items() if not call.has_mixture else ():
        if value is not None:
            raise ValueError(f"`{name}` needs a mixture as `train_dataset`, got an ordinary dataset.")


def prepare_corpora(
    trainer: Trainer, corpora: Sequence[Corpus], heads: ObjectiveHeads, traits: TrainerTraits, anchor: Anchor | None
) -> list[Corpus]:
    """Drop the columns that the model does not take, as `Trainer` does, and check that the corpora fit together."""
    heads.check_corpora(corpora)
    _check_apart(trainer, corpora)
    prepared = [
        replace(corpus, dataset=trainer._remove_unused_columns(corpus.dataset, description=corpus.name))
        if isinstance(corpus.dataset, datasets.Dataset) and not traits.keeps_columns
        else corpus
        for corpus in corpora
    ]
    prepared = _with_placeholders(prepared)
    check_columns(prepared)
    model: Any = trainer.model
    # By name, which holds for the classifiers of transformers and for the PEFT models around them.
    if type(model).__name__.endswith(CLASSIFIERS) and model.config.num_labels > 1:
        check_labels([each for each in prepared if each.objective is None], model.config.num_labels)
    others = [each for each in prepared if each.objective not in (None, DISTILL)]
    if anchor is not None and anchor.needs_predictions and others:
        raise ValueError(
            "Distilling and `log_loss_gap` compare predictions of one head. But the corpus "
            f"{others[0].name!r} trains the objective {others[0].objective!r} with another: leave that out, or use "
            '`anchor="l2sp"`, which ties the weights.'
        )
    return prepared


def _check_apart(trainer: Trainer, corpora: Sequence[Corpus]) -> None:
    """Refuse packed examples whose sequences would see each other."""
    if isinstance(trainer.data_collator, PackedCollator):
        if not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled and not _keeps_apart(trainer):
            attention = getattr(getattr(trainer.model, "config", None), "_attn_implementation", None)
            raise ValueError(
                f"{type(trainer.model).__name__} with {attention!r} does not keep packed sequences apart: one "
                "of them has other logits than alone. Flash attention needs batches of one example for training and "
                'evaluation; for other models set `packing: true` (in Python `strategy="wrapped"`).'
            )
        return
    for name, data in ((each.name, each.dataset) for each in corpora if isinstance(each.dataset, datasets.Dataset)):
        if "position_ids" in data.column_names and any(row.count(0) > 1 for row in data[:SHOWN]["position_ids"]):
            raise ValueError(
                f"Corpus {name!r} is packed with `position_ids`, which need a `PackedCollator` as `data_collator`."
            )


def _keeps_apart(trainer: Trainer) -> bool:
    """Whether a model gives a packed sequence the logits that it has alone."""
    args, model = trainer.args, trainer.model
    rows = min(max(args.train_batch_size, args.eval_batch_size), 2)  # for some attention is otherwise with one
    ids, places = torch.tensor([[[2, 2, 1, 2, 1]] * rows, [[0, 1, 0, 1, 2]] * rows], device=args.device)
    mode = model.training
    with torch.no_grad(), trainer.accelerator.autocast():
        try:
            alone = model.eval()(input_ids=ids[:1, 2:]).logits[0].float()
            packed = model(input_ids=ids, position_ids=places).logits[0, 2:].float()
        except TypeError:  # it takes no position ids
            return False
        finally:
            model.train(mode)
    noise = max(0.01, 12 * torch.finfo(model.dtype).eps)
    return bool((packed - alone).abs().max() <= noise * alone.std())


def _with_placeholders(corpora: Sequence[Corpus]) -> list[Corpus]:
    """Give distilled corpora without labels some; they say no more than where a prediction is wanted."""
    known = [each.dataset for each in corpora if isinstance(each.dataset, datasets.Dataset)]
    filled = [data for data in known if len(data)]
    labels = [(name, data[0][name]) for data in filled for name in LABEL_COLUMNS if name in data.column_names]
    found = []
    for corpus in corpora:
        data = corpus.dataset
        if corpus.objective == DISTILL and isinstance(data, datasets.Dataset) and labels:
            column, value = labels[0]
            if column not in data.column_names and isinstance(value, list):
                data = data.map(lambda row, column=column: {column: [0] * len(row["input_ids"])})
            elif column not in data.column_names:
                data = data.map(lambda row, column=column: {column: 0})
        found.append(replace(corpus, dataset=data))
    return found


def begin(trainer: Trainer, run: MixtureRun, saved: SavedRun | None) -> SlotDataset:
    """Begin a run, and return what this process is to read; all processes must have been given the same."""
    args, batch_size = trainer.args, trainer.get_total_train_batch_size(trainer.args)
    shard = shard_batch(args, run.corpora, micro_batch_size=trainer._train_batch_size, batch_size=batch_size)
    found = run.begin(shard, batch_size, saved)
    is_own = not traits_of(type(trainer)).computes_loss
    mixture = None if saved is None else saved.mixture or {}
    run.private = prepare_private(trainer, run.plan, run.corpora, mixture, is_own=is_own)
    if args.world_size > 1:
        check_alike(args, _facts(run.plan, trainer.eval_dataset))
    return found


def _facts(plan: MixturePlan, eval_sets: Any) -> dict[str, Any]:
    """Return what decides a run beside arguments, under names for the user; of sets a hash of some rows."""
    sets = eval_sets if isinstance(eval_sets, dict) else {"eval": eval_sets}
    return {
        **{
            f"corpus {each.name!r} (examples, hash of rows)": (each.num_examples, each.content) for each in plan.corpora
        },
        **{f"evaluation set {name!r} (hash of rows)": content_fingerprint(data) for name, data in sets.items()},
        "order of reading (hash)": plan.fingerprint(),
    }


def make_loader(
    trainer: Trainer, run: MixtureRun, heads: ObjectiveHeads, traits: TrainerTraits, saved: SavedRun | None
) -> DataLoader[Any]:
    """Return the loader of a mixture, which begins where a checkpoint stands."""
    first_step = 0 if saved is None else saved.global_step
    first_batch = first_step * trainer.args.gradient_accumulation_steps
    sampler = SlotSampler(run.plan, run.shard, first_batch, run.epoch_of)
    collator, dataset = make_collator(trainer, run, heads, traits), trainer.train_dataset
    return slot_loader(dataset, sampler, collator, trainer.args, trainer.accelerator)  # type: ignore[arg-type]


def make_collator(trainer: Trainer, run: MixtureRun, heads: ObjectiveHeads, traits: TrainerTraits) -> SlotCollator:
    """Return the collator of a mixture, around that of the trainer."""
    collator, seed, counts_tokens = trainer.data_collator, run.plan.seed, run.plan.unit == "tokens"
    if run.mixes_objectives:
        return SlotCollator(heads.collator(collator, run.corpora), seed, counts_tokens=counts_tokens)
    may_draw = may_draw_numbers(collator)
    is_removed = all(isinstance(corpus.dataset, datasets.Dataset) for corpus in run.corpora)
    if not is_removed and not traits.keeps_columns and not isinstance(collator, SlotwiseCollator):
        # Other datasets still have the columns that the model does not take.
        collator = trainer._get_collator_with_removed_columns(collator, description="training")
    return SlotCollator(collator, seed, may_draw=may_draw, counts_tokens=counts_tokens)
