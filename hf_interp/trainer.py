"""`InterpolationTrainer`: `transformers.Trainer` with a mixture whose share of domain examples follows α."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
    Seq2SeqTrainer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_interp.callbacks import AlphaCallback
from hf_interp.config import InterpolationConfig
from hf_interp.corpora import Corpus, as_corpora, check_columns, check_labels, is_mixture, with_dataset
from hf_interp.dataset import CORPUS_KEY, InterpolatedDataset, SlotCollator, SlotDataset, SlotSampler
from hf_interp.objectives import per_example_loss
from hf_interp.plan import MixturePlan
from hf_interp.results import RESULTS_NAME, RunResults, save_results
from hf_interp.schedules import AlphaSchedule, get_alpha_schedule

logger = logging.getLogger(__name__)


PLAIN_COLLATORS = (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
)
"""Collators of the host's that draw no random numbers."""

# For type checkers alone: the host's attributes are there whichever trainer stands behind the mixin.
if TYPE_CHECKING:

    class _Host(Trainer):
        """Any trainer of the host's."""

else:
    _Host = object


class InterpolationMixin(_Host):
    """Gives a `Trainer` a mixture for its `train_dataset`; put it before the trainer in the bases.

    With an ordinary `train_dataset` nothing is different from the host. A mixture is `{"general": dataset, "domain":
    dataset}`, the same with a dict of named datasets for a side, a list of [`Corpus`], or an [`InterpolatedDataset`].

    Args:
        alpha_schedule (`Callable[[float], float]`, *optional*): α over progress. By default it is built from `args` if
            they are an [`InterpolationConfig`], and linear from 0 to 1 if they are plain `TrainingArguments`.

    Attributes:
        plan (`MixturePlan` or `None`): what is read at which step; `None` without a mixture.
        alpha (`float` or `None`): α of the step in progress or just ended.

    Raises:
        ValueError: when constructed, if the mixture cannot be planned: no `max_steps`, an empty corpus, differing
            columns or labels, shares that do not sum to 1, an α outside [0, 1] at any step.
    """

    train_dataset: Any
    loss_is_scaled_for_ga: bool | None
    plan: MixturePlan | None = None
    corpora: list[Corpus] | None = None
    _corpus_losses: torch.Tensor | None = None

    def __init__(self, *args: Any, alpha_schedule: AlphaSchedule | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alpha_schedule = alpha_schedule
        self._host_loss_is_scaled = self.loss_is_scaled_for_ga
        self._given_plan: MixturePlan | None = None
        if isinstance(self.train_dataset, InterpolatedDataset):
            self._given_plan, self.train_dataset = self.train_dataset.plan, self.train_dataset.corpora
        if not is_mixture(self.train_dataset):
            if alpha_schedule is not None:
                raise ValueError("`alpha_schedule` needs a mixture as `train_dataset`, got an ordinary dataset.")
            return
        self.corpora = self._prepare_corpora(as_corpora(self.train_dataset))
        self._plan_mixture()  # now, so that nothing is computed for a mixture that cannot be read
        self.add_callback(AlphaCallback)
        # First in line, so that callbacks of the user's see this step's α and not the last one's.
        callbacks = self.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())

    @property
    def alpha(self) -> float | None:
        """α of the step in progress or just ended; `None` before training and without a mixture."""
        callback = self._alpha_callback()
        return callback.alpha if callback is not None else None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The host's loader, or one over the slots of the plan."""
        if self.corpora is None:
            return super().get_train_dataloader()
        plan = self._plan_mixture()  # anew: a hyper-parameter search or a smaller batch may have changed it
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=SlotSampler(len(plan), self._train_batch_size),
            collate_fn=self._slot_collator(plan.seed),
            num_workers=0 if self._has_streams() else args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers and not self._has_streams(),
            multiprocessing_context=None if self._has_streams() else args.dataloader_multiprocessing_context,
            prefetch_factor=None if self._has_streams() else args.dataloader_prefetch_factor,
        )
        # accelerate splits the sampler's ranges over processes; no process reads another's examples.
        return self.accelerator.prepare(loader)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The host's loss; on the way, what each corpus contributes to it is noted."""
        corpus = inputs.pop(CORPUS_KEY, None)
        if corpus is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("labels")
        num_items_in_batch = self._settle_loss_scale(labels, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._log_corpus_loss and labels is not None:
            self._note_corpus_loss(corpus, per_example_loss(outputs, labels, shift_labels=self._loss_shifts_labels))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The host's log; training logs gain α, realised shares, passes and the loss of every corpus."""
        if self.corpora is not None and "loss" in logs:
            callback = self._alpha_callback()
            if callback is not None:
                logs.update(callback.metrics(self.state.global_step))
            logs.update(self._take_corpus_losses())
        super().log(logs, start_time)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """The host's training; at the end of a run over a mixture, `results.json` is written to `output_dir`."""
        self._corpus_losses = None
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.corpora is not None and not self.state.is_hyper_param_search:
            self.save_results()
        return output

    def results(self) -> RunResults:
        """What the run was told, what it planned to read, and every metric it logged."""
        if self.plan is None:
            raise ValueError("Results describe a run over a mixture; this trainer has an ordinary `train_dataset`.")
        return RunResults.from_log(
            config=self.args.to_dict(), plan=self.plan.summary(), log_history=self.state.log_history
        )

    def save_results(self) -> None:
        """Write `results.json` into `args.output_dir`, on the main process."""
        if self.is_world_process_zero():
            save_results(self.results(), Path(self.args.output_dir) / RESULTS_NAME)

    def _alpha_callback(self) -> AlphaCallback | None:
        # Looked up, not kept: `restore_callback_states_from_checkpoint` replaces the object.
        found = (callback for callback in self.callback_handler.callbacks if isinstance(callback, AlphaCallback))
        return next(found, None)

    def _slot_collator(self, seed: int) -> SlotCollator:
        collator = self.data_collator
        may_draw = type(collator) not in PLAIN_COLLATORS and collator is not default_data_collator
        if not all(isinstance(corpus.dataset, datasets.Dataset) for corpus in self.corpora or []):
            # Other datasets still have the columns that the model does not take.
            collator = self._get_collator_with_removed_columns(collator, description="training")
        return SlotCollator(collator, seed, may_draw=may_draw)

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)

    def _has_streams(self) -> bool:
        return any(corpus.is_stream for corpus in self.corpora or [])

    @property
    def _log_corpus_loss(self) -> bool:
        return getattr(self.args, "log_corpus_loss", True)

    def _prepare_corpora(self, corpora: list[Corpus]) -> list[Corpus]:
        """Drop the columns that the model does not take, as the host does, and check that the corpora fit together."""
        prepared = [
            with_dataset(corpus, self._remove_unused_columns(corpus.dataset, description=corpus.name))
            if isinstance(corpus.dataset, datasets.Dataset)
            else corpus
            for corpus in corpora
        ]
        check_columns(prepared)
        # By name, which holds for the classifiers of transformers and for the PEFT models around them.
        if type(self.model).__name__.endswith("ForSequenceClassification") and self.model.config.num_labels > 1:
            check_labels(prepared, self.model.config.num_labels)
        return prepared

    def _plan_mixture(self) -> MixturePlan:
        """Plan for the present arguments and set `train_dataset` to the slots of the plan."""
        args: TrainingArguments = self.args
        self._check_loader_arguments()
        batch_size = self.get_total_train_batch_size(args)
        if self._given_plan is None:
            plan = plan_mixture(self.corpora or [], args, batch_size=batch_size, alpha_schedule=self._alpha_schedule)
        else:
            plan = self._given_plan
            if (plan.batch_size, plan.max_steps) != (batch_size, args.max_steps):
                raise ValueError(
                    f"The `InterpolatedDataset` was planned for batch_size={plan.batch_size} and max_steps="
                    f"{plan.max_steps}, but the trainer runs with {batch_size} and {args.max_steps}. Make them equal."
                )
        if self.plan is None:
            for warning in plan.warnings():
                self._warn(warning)
        self.plan = plan
        self.train_dataset = SlotDataset(plan, self.corpora or [])
        return plan

    def _check_loader_arguments(self) -> None:
        args: TrainingArguments = self.args
        if not args.dataloader_in_order:
            raise ValueError(
                "A mixture needs `dataloader_in_order=True`: a batch that overtakes another has the wrong α."
            )
        if args.ignore_data_skip:
            raise ValueError(
                "A mixture needs `ignore_data_skip=False`: on resume it would begin again with the data of step 0. "
                "Skipping costs nothing here, because it reads nothing."
            )
        if args.accelerator_config is not None and args.accelerator_config.split_batches:
            raise ValueError("A mixture needs `split_batches=False`: `per_device_train_batch_size` is per process.")
        if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            self._warn(
                f"`train_sampling_strategy={args.train_sampling_strategy!r}` is ignored: the plan of the mixture sets "
                "the order."
            )
        if self._has_streams() and args.dataloader_num_workers > 0:
            self._warn(
                "`dataloader_num_workers` is taken as 0, because a corpus is a stream: every worker would read all of "
                "it."
            )

    def _settle_loss_scale(
        self, labels: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor | int | None:
        """Make the loss independent of how a global batch is split into micro-batches.

        The host takes a loss for normalised over the whole accumulated batch as soon as the model's forward has
        `**kwargs`, but heads with one label per example (BERT's, for one) ignore `num_items_in_batch` and return the
        mean of the micro-batch, which makes loss and gradient too large by the number of accumulation steps
        (huggingface/transformers#47688). Micro-batches of a mixture are equally long, so with one label per example the
        mean over micro-batches is exact, and that is what the host computes when told that the loss is not scaled.
        """
        one_label_each = labels is not None and labels.dim() == 1 and self.compute_loss_func is None
        self.loss_is_scaled_for_ga = False if one_label_each else self._host_loss_is_scaled
        return None if one_label_each else num_items_in_batch

    def _note_corpus_loss(self, corpus: torch.Tensor, losses: torch.Tensor | None) -> None:
        if losses is None or losses.shape != corpus.shape:
            return
        if self._corpus_losses is None:
            self._corpus_losses = losses.new_zeros(2, len(self.corpora or []))
        self._corpus_losses[0].index_add_(0, corpus, losses)
        self._corpus_losses[1].index_add_(0, corpus, torch.ones_like(losses))

    def _take_corpus_losses(self) -> dict[str, float]:
        """Mean loss of every corpus since the last log, over all processes, without corpora that were not drawn."""
        if self._corpus_losses is None:
            return {}
        sums, counts = self.accelerator.reduce(self._corpus_losses, "sum").tolist()
        self._corpus_losses.zero_()
        return {
            f"loss_{corpus.name}": total / count
            for corpus, total, count in zip(self.corpora or [], sums, counts, strict=True)
            if count
        }


def plan_mixture(
    corpora: Sequence[Corpus],
    args: TrainingArguments,
    *,
    batch_size: int,
    alpha_schedule: AlphaSchedule | None = None,
) -> MixturePlan:
    """The plan of a run.

    Args:
        corpora: what is mixed.
        args: `max_steps`, the seed of the data and, in an `InterpolationConfig`, the schedule; with plain
            `TrainingArguments` α goes linearly from 0 to 1.
        batch_size: the global batch.
        alpha_schedule: a schedule that wins over that of `args`.

    Raises:
        ValueError: if `max_steps` is not set, or the mixture cannot be planned.
    """
    if args.max_steps <= 0:
        raise ValueError(
            "A mixture needs `max_steps`, because α is a function of step / (max_steps - 1); got "
            f"{args.max_steps}. Set it to (number of examples to train on) / (global batch size)."
        )
    if alpha_schedule is None:
        of_args = isinstance(args, InterpolationConfig)
        alpha_schedule = args.build_alpha_schedule() if of_args else get_alpha_schedule("linear")
    return MixturePlan(
        [corpus.planned() for corpus in corpora],
        alpha_schedule=alpha_schedule,
        batch_size=batch_size,
        max_steps=args.max_steps,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


class InterpolationTrainer(InterpolationMixin, Trainer):
    """[`~transformers.Trainer`] that takes a mixture as `train_dataset`.

    Example:

    ```python
    trainer = InterpolationTrainer(
        model=model,
        args=InterpolationConfig(output_dir="out", max_steps=1000, alpha_start=0.0, alpha_end=1.0),
        train_dataset={"general": general, "domain": domain},
        eval_dataset={"general": general_test, "domain": domain_test},
        processing_class=tokenizer,
    )
    trainer.train()
    ```
    """


class InterpolationSeq2SeqTrainer(InterpolationMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] that takes a mixture as `train_dataset`."""
