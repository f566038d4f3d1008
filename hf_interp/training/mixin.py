"""`InterpolationMixin`: gives any `Trainer` a mixture whose share of domain examples follows α.

The mixture is a `MixtureRun`, what a batch costs a `BatchLoss`, further heads are `ObjectiveHeads`, and an `Anchor`
ties the model to M₀. The mixin calls them at the right moments of a `Trainer`.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_interp.losses.anchor import Anchor
from hf_interp.mixture.collators import OBJECTIVES_KEY
from hf_interp.mixture.controllers import AlphaController
from hf_interp.mixture.corpus import Corpus, as_corpora
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule
from hf_interp.mixture.slots import SlotSampler
from hf_interp.reporting.results import RunResults, save_results
from hf_interp.training.averaging import WeightAverage, prepare_average
from hf_interp.training.batch_loss import BatchLoss, Items
from hf_interp.training.callbacks import AlphaCallback, ControllerCallback, add_first, find_callback
from hf_interp.training.checkpoints import PREFIX_CHECKPOINT_DIR, SavedRun, find_saved_run, writing_checkpoint
from hf_interp.training.dataloader import report_dead_workers, slot_loader
from hf_interp.training.distilled_loss import DistilledLoss
from hf_interp.training.heads import Objective, load_heads
from hf_interp.training.integrations import ConstructorCall, check_settings, traits_of
from hf_interp.training.mixture_run import MixtureRun, shard_batch
from hf_interp.training.model_info import collect_results
from hf_interp.training.objectives import ObjectiveHeads
from hf_interp.training.preparation import make_collator, prepare_anchor, prepare_corpora, prepare_heads
from hf_interp.training.pushing import prepare_pushing, push_trained_run, write_card
from hf_interp.training.trackers import MixtureTracker
from hf_interp.utils.run_folder import RESULTS_NAME

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # the mixin stands before a trainer, whose attributes type checkers are to know

    class _Base(Trainer):
        """Any trainer."""

else:
    _Base = object


class InterpolationMixin(_Base):
    """Gives a `Trainer` a mixture for its `train_dataset`; put it before the trainer in the bases.

    With an ordinary `train_dataset` nothing is different from the `Trainer`. A mixture is `{"general": dataset,
    "domain": dataset}`, the same with a dict of named datasets for a side, a list of [`Corpus`], or an
    [`InterpolatedDataset`].

    Args:
        alpha_schedule (`Callable[[float], float]`, *optional*): α over progress. By default it is built from `args` if
            they are an [`InterpolationConfig`], and constant at 0.5 if they are plain `TrainingArguments`.
        alpha_controller (`AlphaController`, *optional*): lets α answer to training (see
            `hf_interp.mixture.controllers`). By default what `args.alpha_controller` names.
        ref_model (`nn.Module`, *optional*): the pretrained model M₀ for `args.anchor` and `args.log_loss_gap`; it is
            frozen. By default it is the model as given here, or as `model_init` gives it when training begins: a
            frozen copy, or a `PeftModel` with its adapters off. A checkpoint that is resumed does not change it.
        objectives (`dict[str, Objective]`, *optional*): what corpora with an `objective` train beside the model's own
            task, each with a head of its own on the same backbone (see `hf_interp.training.heads` and
            `hf_interp.training.objectives`).
        eval_objectives (`dict[str, str]`, *optional*): evaluation sets that are evaluated with the head of an
            objective: from the name of the set to that of the objective.

    Attributes:
        plan (`MixturePlan` or `None`): what is read at which step; `None` without a mixture.
        alpha (`float` or `None`): α of the step in progress or just ended.

    Raises:
        ValueError: when constructed, if the mixture cannot be planned: no `max_steps`, an empty corpus, differing
            columns or labels, shares that do not sum to 1, an α outside [0, 1] at any step; or if the anchor cannot
            work with the model or the way it is distributed.
    """

    train_dataset: Any
    loss_is_scaled_for_ga: bool | None
    _loss_shifts_labels: bool
    recipe: dict[str, Any] | None = None
    """The recipe that is trained, for the results."""
    _call: ConstructorCall | None = None  # while the constructor runs
    _run: MixtureRun | None = None
    _anchor: Anchor | None = None
    weight_average: WeightAverage | None = None
    """The mean of the weights that `average_from` asks for."""
    _saved: SavedRun | None = None  # while a checkpoint is resumed

    def __init__(
        self,
        *args: Any,
        alpha_schedule: AlphaSchedule | None = None,
        alpha_controller: AlphaController | None = None,
        ref_model: nn.Module | None = None,
        objectives: Mapping[str, Objective] | None = None,
        eval_objectives: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self._heads, self._traits = ObjectiveHeads(objectives, eval_objectives), traits_of(type(self))
        self._call = call = ConstructorCall(type(self), InterpolationMixin, super().__init__, args, kwargs)
        super().__init__(*call.args, **call.kwargs, **({"ref_model": ref_model} if call.takes_ref_model else {}))
        self._call = None
        for warning in check_settings(self) if call.has_mixture else ():
            self._warn(warning)
        prepare_heads(self, self._heads, self._traits)
        corpora = (call.corpora or as_corpora(self.train_dataset)) if call.has_mixture else None
        self._anchor = prepare_anchor(self, self._traits, ref_model, alpha_schedule, corpora)
        if ref_model is not None and self._anchor is None and not call.takes_ref_model:
            raise ValueError(
                "`ref_model` needs an `InterpolationConfig` with an `anchor` or `log_loss_gap`, or a corpus with "
                '`objective="distill"`.'
            )
        self.weight_average = prepare_average(self)
        self._loss = BatchLoss(self, self._heads, self._traits, self._anchor)
        if call.has_mixture or (self._anchor is not None and self._anchor.is_tied):
            self._loss_shifts_labels = self._loss.shifts_labels  # or `Trainer` counts a label too many in a sequence
        if corpora is not None:
            self._set_mixture(corpora, call.plan, alpha_schedule, alpha_controller)
            return
        for name, value in (("alpha_schedule", alpha_schedule), ("alpha_controller", alpha_controller)):
            if value is not None and (name == "alpha_controller" or self._anchor is None):
                raise ValueError(f"`{name}` needs a mixture as `train_dataset`, got an ordinary dataset.")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepare a dataset as TRL's trainers do in their constructors; every corpus of a mixture goes the same way."""
        prepare = super()._prepare_dataset
        if self._call is None:
            return prepare(dataset, *args, **kwargs)
        return self._call.prepare(dataset, lambda each: prepare(each, *args, **kwargs))

    def _set_mixture(
        self,
        corpora: Sequence[Corpus],
        plan: MixturePlan | None,
        schedule: AlphaSchedule | None,
        controller: AlphaController | None,
    ) -> None:
        self._loss.run = self._run = run = MixtureRun(
            corpora=prepare_corpora(self, corpora, self._heads, self._traits, self._anchor),
            args=self.args,
            reduce=self._sum,
            warn=self._warn,
            given_plan=plan,
            alpha_schedule=schedule,
            alpha_controller=controller,
            objectives=self._heads.names,
        )
        if run.distills and self._anchor is not None:
            self._loss.distilled = DistilledLoss(self, run, self._anchor, shifts_labels=self._loss.shifts_labels)
        if warning := prepare_pushing(self):
            self._warn(warning)
        self._begin(run)  # now, so that nothing is computed for a mixture that cannot be read
        add_first(self.callback_handler, AlphaCallback(), ControllerCallback(run))
        if self.args.report_to:
            self.add_callback(MixtureTracker(lambda: run.plan.summary(), lambda: self.callback_handler.callbacks))

    def _begin(self, run: MixtureRun) -> None:
        batch_size = self.get_total_train_batch_size(self.args)
        shard = shard_batch(self.args, run.corpora, micro_batch_size=self._train_batch_size, batch_size=batch_size)
        self.train_dataset = run.begin(shard, batch_size, self._saved)

    @property
    def plan(self) -> MixturePlan | None:
        """The plan of what is read at which step; `None` without a mixture."""
        return None if self._run is None else self._run.plan

    @property
    def corpora(self) -> list[Corpus] | None:
        """The corpora that are mixed; `None` without a mixture."""
        return None if self._run is None else self._run.corpora

    @property
    def alpha(self) -> float | None:
        """α of the step in progress or just ended; `None` before training and without a mixture."""
        callback = find_callback(self.callback_handler, AlphaCallback)
        return callback.alpha if callback is not None else None

    @property
    def objective_names(self) -> list[str]:
        """The objectives that there are: the model's own task first."""
        return self._heads.names

    # What is read, and what it costs.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of `Trainer`, or one over the slots of the plan that belong to this process."""
        if self._run is not None:
            # Anew: a hyper-parameter search may have changed the plan, or `Trainer` starts over with a smaller batch.
            self._begin(self._run)
        if self._anchor is not None:
            self._anchor.clear()
            states = () if self._saved is None else self._saved.rank_states
            self._anchor.load_state_dicts([state["anchor"] for state in states if "anchor" in state])
        if self._run is None:
            return super().get_train_dataloader()
        first_step = 0 if self._saved is None else self._saved.global_step
        first_batch = first_step * self.args.gradient_accumulation_steps
        sampler = SlotSampler(self._run.plan, self._run.shard, first_batch)
        collator = make_collator(self, self._run, self._heads, self._traits)
        return slot_loader(self.train_dataset, sampler, collator, self.args, self.accelerator)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Get the micro-batches of a step, and count the labels and examples of each objective.

        Raises:
            RuntimeError: if a loader worker died, which is named whichever way torch finds out.
        """
        # by the shard and not by the arguments: some streams are read without the workers that were asked for
        has_workers = self._run is not None and self._run.shard.num_workers > 0
        with report_dead_workers() if has_workers else nullcontext():
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._loss.count_objectives(batches, device)
        return batches, num_items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Items = None) -> torch.Tensor:
        """Do the step of `Trainer`; what the batch tells of itself is noted and kept from the model."""
        self._loss.corpus = None if self._run is None else self._run.note_batch(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Items = None
    ) -> Any:
        """Compute the loss of `Trainer`, or what a mixture or an anchor makes of it (see `BatchLoss`)."""
        compute_loss = super().compute_loss
        if self._loss.is_needed(model):
            found = self._loss.compute(compute_loss, model, inputs, num_items_in_batch)
            return found if return_outputs else found[0]
        if self._run is not None and not model.training and self.compute_loss_func is None:
            # No function of the user's, so each evaluation batch stands for itself. Told of the items of all processes,
            # `Trainer` multiplies by their number, also where the model has not divided by the items.
            num_items_in_batch = None
        return compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _set_signature_columns_if_needed(self) -> None:
        """Add the columns that collators read and the model does not."""
        super()._set_signature_columns_if_needed()
        wanted = self._heads.columns(self.data_collator)
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a batch, over all its objectives."""
        parts = inputs.get(OBJECTIVES_KEY)
        return sum(map(super().floating_point_ops, [inputs] if parts is None else parts.values()))

    def evaluating(self, name: str) -> AbstractContextManager[None]:
        """Evaluate meanwhile what the evaluation set of this name is there for (see `BatchLoss.evaluating`)."""
        return self._loss.evaluating(name)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate; a set that is there for an objective is evaluated with its head and its metrics."""
        name = eval_dataset if isinstance(eval_dataset, str) else metric_key_prefix.removeprefix("eval_")
        with self.evaluating(name):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # Beginning, going on, and what is kept.

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; at the end of a run over a mixture, `results.json` is written to `output_dir`.

        With `average_from` the model ends with the mean of its weights. With a mixture, an anchor or such a mean,
        `resume_from_checkpoint=True` takes the last checkpoint that is whole. The data of a mixture goes on where the
        checkpoint stands, without reading or counting again what came before. If settings have changed, what has been
        read stays read (see `hf_interp.mixture.continuation`).

        Raises:
            ValueError: if the checkpoint is not whole, or the mixture cannot go on from it.
        """
        if not self._keeps_state:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._saved = find_saved_run(resume_from_checkpoint, self.args, self._warn)
        skips = self.args.ignore_data_skip
        self.args.ignore_data_skip = skips or self._run is not None  # our loader begins at the right place
        try:
            resumed = None if self._saved is None else str(self._saved.folder)
            if self.weight_average is not None:
                self.weight_average.checkpoint = None if self._saved is None else self._saved.folder
            output = super().train(resumed, trial, ignore_keys_for_eval)
            if self.weight_average is not None:
                self.weight_average.put_in()
            if self._run is not None:
                self._run.log_fingerprint(self.state)
        finally:
            self.args.ignore_data_skip = skips
            self._saved = None
        if self._run is not None and not self.state.is_hyper_param_search:
            self.save_results()
        return output

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a new model, with heads like those given; it is M₀, before any checkpoint is loaded into it."""
        model = super().call_model_init(trial)
        if self._heads.objectives:
            self._heads.attach(model, copies=True)
        if self._anchor is not None:
            self._anchor.capture(model)
        return model

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the model, and the heads."""
        given = () if model is None else (model,)  # for which sentence-transformers have no parameter
        super()._load_from_checkpoint(resume_from_checkpoint, *given)
        self._load_heads(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best model, and the heads."""
        super()._load_best_model()
        self._load_heads(self.state.best_model_checkpoint, None)

    def _load_heads(self, folder: str | None, model: nn.Module | None) -> None:
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if folder is not None and not is_sharded and self._heads.objectives:
            load_heads(self.model if model is None else model, folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint with what the mixture must keep; a disk that is full is said in words."""
        if not self._keeps_state:
            super()._save_checkpoint(model, trial)
            return
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        own: dict[str, Any] = {"global_step": self.state.global_step, "num_processes": self.args.world_size}
        if self._run is not None:
            self._run.log_fingerprint(self.state)
            own |= self._run.rank_state()
            if (callback := find_callback(self.callback_handler, AlphaCallback)) is not None:
                callback.mixture = self._run.shared_state()
        if self._anchor is not None:
            own["anchor"] = self._anchor.state_dict()
        with writing_checkpoint(folder, own, self.args, self.accelerator):
            if self.weight_average is not None:
                self.weight_average.save(folder, self.args)
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state; the state of the trainer, written next, is to be the last file of all processes."""
        super()._save_rng_state(output_dir)
        if self._keeps_state:
            self.accelerator.wait_for_everyone()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; training logs gain α, realised shares, passes and the loss of every corpus, and what the anchor did."""
        is_training_log, step = "loss" in logs, self.state.global_step
        if is_training_log and self._anchor is not None:
            logs.update(self._anchor.take_log(step - 1, self._sum))
        if is_training_log and self._run is not None:
            if (callback := find_callback(self.callback_handler, AlphaCallback)) is not None:
                logs.update(callback.metrics(step))
            logs.update(self._run.meters.take_log(self._sum))
        super().log(logs, start_time)
        if is_training_log and self._run is not None:
            self._run.log_fingerprint(self.state)

    def results(self) -> RunResults:
        """Return what the run was told, what it planned to read, and every metric it logged."""
        if self._run is None:
            raise ValueError("Results describe a run over a mixture; this trainer has an ordinary `train_dataset`.")
        return collect_results(self, plan=self._run.plan.summary(), order=self._run.order(), recipe=self.recipe)

    def save_results(self) -> None:
        """Write `results.json` into `args.output_dir`, on the main process."""
        if self.is_world_process_zero():
            save_results(self.results(), Path(self.args.output_dir) / RESULTS_NAME)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of `Trainer`, or over a mixture that of the run (see `write_card`).

        TRL and sentence-transformers have cards of their own, to which ours is added.
        """
        if self._run is None or self._traits.has_own_card:
            super().create_model_card(*args, **kwargs)
        if self._run is not None and self.is_world_process_zero():
            self.save_results()
            write_card(self, kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as `Trainer` does, or over a mixture what lies in `args.output_dir` (see `push_trained_run`).

        Over a mixture the first process gets a `PushReport`, or a future of one without `blocking`.
        """
        return super().push_to_hub(*args, **kwargs) if self._run is None else push_trained_run(self, *args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint; of a mixture's run nothing is pushed before its end."""
        if self._run is None:
            super()._push_from_checkpoint(checkpoint_folder)

    @property
    def _keeps_state(self) -> bool:
        """Whether a checkpoint holds more than that of `Trainer`."""
        return self._run is not None or self._anchor is not None or self.weight_average is not None

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes."""
        return self.accelerator.reduce(tensor, "sum")

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)
