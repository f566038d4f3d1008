"""`InterpolationMixin`: gives any `Trainer` a mixture whose share of domain examples follows α.

The mixture is a `MixtureRun`, what a batch costs a `BatchLoss`, further heads are `ObjectiveHeads`, and an `Anchor`
ties the model to M₀. The mixin calls them at the right moments of a `Trainer`.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerControl

from hf_interp.losses.anchor import Anchor
from hf_interp.mixture.controllers import AlphaController
from hf_interp.mixture.corpus import Corpus, as_corpora
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule
from hf_interp.reporting.results import RunResults, save_results
from hf_interp.training import preparation
from hf_interp.training.averaging import WeightAverage, prepare_average
from hf_interp.training.batch_loss import BatchLoss, Items
from hf_interp.training.callbacks import AlphaCallback, ControllerCallback, add_first, find_callback
from hf_interp.training.checkpoints import SavedRun, find_saved_run, writing_checkpoint
from hf_interp.training.dataloader import report_dead_workers
from hf_interp.training.epoch_loop import EpochLoop, with_epochs_of
from hf_interp.training.heads import Objective
from hf_interp.training.integrations import ConstructorCall, check_settings, later_call, traits_of
from hf_interp.training.mixture_run import MixtureRun
from hf_interp.training.model_info import collect_results
from hf_interp.training.objectives import ObjectiveHeads
from hf_interp.training.pushing import prepare_pushing, push_trained_run, write_card
from hf_interp.training.session import running
from hf_interp.training.trackers import MixtureTracker
from hf_interp.utils.overrides import overrides
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
            task, each with a head of its own on the same backbone (see `hf_interp.training.objectives`).
        eval_objectives (`dict[str, str]`, *optional*): evaluation sets that are evaluated with the head of an
            objective: from the name of the set to that of the objective.

    Raises:
        ValueError: when constructed, if the mixture cannot be planned (an empty corpus, differing columns or labels, an
            α outside [0, 1]), or the anchor cannot work with the model.
    """

    train_dataset: Any
    control: TrainerControl
    loss_is_scaled_for_ga: bool | None
    _loss_shifts_labels: bool
    recipe: dict[str, Any] | None = None  # that is trained, for the results
    keeps_results: bool = True  # whether `train` writes `results.json` when it ends
    weight_average: WeightAverage | None = None  # that `average_from` asks for
    _call: ConstructorCall | None = None  # while the constructor runs
    _run: MixtureRun | None = None
    _anchor: Anchor | None = None
    _given_alpha: dict[str, Any]
    _saved: SavedRun | None = None  # while a checkpoint is resumed
    _gen_kwargs_of_sets: Mapping[str, Any] | None = None  # while sets are evaluated
    _epochs: EpochLoop | None = None  # while training

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
        preparation.prepare_heads(self, self._heads, self._traits)
        corpora = (call.corpora or as_corpora(self.train_dataset)) if call.has_mixture else None
        self._anchor = preparation.prepare_anchor(self, self._traits, ref_model, alpha_schedule, corpora)
        adversary = preparation.prepare_adversary(self, self._traits, alpha_schedule)
        preparation.check_given(call, ref_model, self._anchor, adversary, alpha_schedule, alpha_controller)
        self.weight_average = prepare_average(self)
        computes_loss = getattr(super().compute_loss, "__func__", None) is not Trainer.compute_loss
        self._loss = BatchLoss(self, self._heads, self._traits, self._anchor, adversary, computes_loss=computes_loss)
        if self._loss.changes_loss:
            self._loss_shifts_labels = self._loss.shifts_labels  # or `Trainer` counts a label too many in a sequence
        self._taken = self.train_dataset
        self._given_alpha = {"alpha_schedule": alpha_schedule, "alpha_controller": alpha_controller}
        if corpora is not None:
            self._set_mixture(corpora, call.plan)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepare a dataset as TRL's trainers do in their constructors; every corpus of a mixture goes the same way."""
        prepare = super()._prepare_dataset
        if self._call is None:
            return prepare(dataset, *args, **kwargs)
        return self._call.prepare(dataset, lambda each: prepare(each, *args, **kwargs))

    def _set_mixture(self, corpora: Sequence[Corpus], plan: MixturePlan | None) -> None:
        self._loss_shifts_labels = self._loss.shifts_labels
        self._run = run = MixtureRun(
            corpora=preparation.prepare_corpora(self, corpora, self._heads, self._traits, self._anchor),
            args=self.args,
            reduce=self._sum,
            warn=self._warn,
            given_plan=plan,
            objectives=self._heads.names,
            **self._given_alpha,
        )
        self._loss.set_mixture(run)
        if warning := prepare_pushing(self):
            self._warn(warning)
        self._begin(run)  # now, so that nothing is computed for a mixture that cannot be read
        add_first(self.callback_handler, AlphaCallback(), ControllerCallback(run))
        if self.args.report_to:
            self.add_callback(MixtureTracker(lambda: run.plan.summary(), lambda: self.callback_handler.callbacks))

    def _take_dataset(self) -> None:
        """Take a `train_dataset` that has been set since the trainer was made."""
        if self.train_dataset is self._taken:
            return
        call = later_call(self, InterpolationMixin, super().__init__, has_mixture=self._run is not None)
        for kind in (AlphaCallback, ControllerCallback, MixtureTracker):
            self.remove_callback(kind)
        self._run, self._taken = None, self.train_dataset
        self._loss.set_mixture(None)
        if call.has_mixture:
            self._set_mixture(call.corpora or as_corpora(self.train_dataset), call.plan)

    def _begin(self, run: MixtureRun) -> None:
        self.train_dataset = self._taken = preparation.begin(self, run, self._saved)

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
        return getattr(find_callback(self.callback_handler, AlphaCallback), "alpha", None)

    # What is read, and what it costs.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of `Trainer`, or one over the slots of the plan that belong to this process."""
        self._take_dataset()
        if self._run is not None:
            # Anew: a hyper-parameter search may have changed the plan, or `Trainer` starts over with a smaller batch.
            self._begin(self._run)
        self._loss.begin(() if self._saved is None else self._saved.rank_states)
        if self._run is None:
            return super().get_train_dataloader()
        return preparation.make_loader(self, self._run, self._heads, self._traits, self._saved)

    def set_initial_training_values(self, args: Any, dataloader: DataLoader[Any], *rest: Any) -> Any:
        """Count steps and epochs as `Trainer` does; those of a mixture are its plan's."""
        found = super().set_initial_training_values(args, dataloader, *rest)
        return found if self._run is None else with_epochs_of(self._run, found)

    def _run_epoch(self, *, train_dataloader: Any, epoch: int, **kwargs: Any) -> None:
        """Run an epoch of `Trainer`, or of a mixture (see `EpochLoop`)."""
        if self._run is None or self._epochs is None:
            super()._run_epoch(train_dataloader=train_dataloader, epoch=epoch, **kwargs)
        else:
            self._epochs.run(self, super()._run_epoch, train_dataloader, epoch, kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Get the micro-batches of a step, and count their labels and examples; a worker that died is named."""
        # by the shard and not by the arguments: some streams are read without the workers that were asked for
        has_workers = self._run is not None and self._run.shard.num_workers > 0
        with report_dead_workers() if has_workers else nullcontext():
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._loss.count(batches, device)
        return batches, num_items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Items = None) -> torch.Tensor:
        """Do the step of `Trainer`; what the batch tells of itself is noted and kept from the model."""
        if self._run is not None:
            self._loss.corpus, inputs = self._run.note_batch(inputs)
            if self._run.private is not None:
                return self._run.private_step(self, model, inputs, self._loss)
        is_scaled = True if self._loss.is_scaled else self.loss_is_scaled_for_ga
        with overrides(self, loss_is_scaled_for_ga=is_scaled):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self._run is not None and not self.state.is_hyper_param_search:
            self._run.guard.check(loss, self.state.global_step + 1, is_scaled=self.accelerator.scaler is not None)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Items = None
    ) -> Any:
        """Compute the loss of `Trainer`, or what a mixture, an anchor or an adversary makes of it (see `BatchLoss`)."""
        compute_loss = super().compute_loss
        inputs = self._loss.with_decoder_inputs(inputs)
        if self._loss.is_needed(model):
            found = self._loss.compute(compute_loss, model, inputs, num_items_in_batch)
            return found if return_outputs else found[0]
        if self._run is not None and not model.training and self.compute_loss_func is None:
            num_items_in_batch = None  # each batch of evaluation stands for itself, whatever other processes have
        return compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _set_signature_columns_if_needed(self) -> None:
        """Add the columns that collators read and the model does not."""
        super()._set_signature_columns_if_needed()
        self._signature_columns += sorted({*self._heads.columns(self.data_collator)} - {*self._signature_columns})

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a batch, over all its objectives."""
        return super().floating_point_ops(self._heads.in_one_row(inputs))

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a batch, over all its objectives."""
        super()._track_num_input_tokens(self._heads.in_one_row(inputs))

    def evaluating(self, name: str) -> AbstractContextManager[None]:
        """Evaluate meanwhile what the evaluation set of this name is there for (see `BatchLoss.evaluating`)."""
        return self._loss.evaluating(name)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate, a set of an objective with its head; `gen_kwargs`, such as `num_beams`, hold for each set."""
        name = eval_dataset if isinstance(eval_dataset, str) else metric_key_prefix.removeprefix("eval_")
        given = gen_kwargs or self._gen_kwargs_of_sets or {}
        with self.evaluating(name), overrides(self, _gen_kwargs_of_sets=given):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **given)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate each example once; `Seq2SeqTrainer` counts those twice that pad the last batch of processes."""
        if self._run is not None:
            gather = self.accelerator.gather_for_metrics
            self.gather_function = partial(gather, use_gather_object=self.args.eval_use_gather_object)
        return super().evaluation_loop(*args, **kwargs)

    # Beginning, going on, and what is kept.

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; at the end of a run over a mixture, `results.json` is written to `output_dir`.

        With `average_from` the model ends with the mean of its weights. `resume_from_checkpoint=True` takes the last
        checkpoint that is whole, and the data goes on where it stands, without reading again what came before, also if
        settings have changed (see `hf_interp.mixture.continuation`).

        Raises:
            ValueError: if the checkpoint is not whole or of another mixture, or another run is at work in `output_dir`.
            FloatingPointError: for a loss that is not finite, with the last checkpoint whose weights are.
        """
        self._take_dataset()
        if not self._keeps_state:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        skips = self.args.ignore_data_skip or self._run is not None  # our loader begins at the right place
        with running(self, resumes=bool(resume_from_checkpoint)), overrides(self.args, ignore_data_skip=skips):
            saved = find_saved_run(resume_from_checkpoint, self.args, self._warn)
            folder = None if saved is None else saved.folder
            if self.weight_average is not None:
                self.weight_average.checkpoint = folder
            with overrides(self, _saved=saved, _epochs=EpochLoop()):
                output = super().train(None if folder is None else str(folder), *args, **kwargs)
            if self.weight_average is not None:
                self.weight_average.put_in()
            if self._run is not None:
                self._run.log_fingerprint(self.state)
                if self.keeps_results and not self.state.is_hyper_param_search:
                    self.save_results()
        return output

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a new model, with heads like those given; it is M₀, before any checkpoint is loaded into it."""
        return preparation.prepare_model(super().call_model_init(trial), self._heads, self._anchor)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the model, and the heads."""
        given = () if model is None else (model,)  # for which sentence-transformers have no parameter
        super()._load_from_checkpoint(resume_from_checkpoint, *given)
        preparation.load_rest(self, self._heads, resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self) -> None:
        """Load the best model, and the heads."""
        super()._load_best_model()
        preparation.load_rest(self, self._heads, self.state.best_model_checkpoint, self.model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint with what the mixture must keep; a disk that is full is said in words."""
        if not self._keeps_state:
            super()._save_checkpoint(model, trial)
            return
        own: dict[str, Any] = {"global_step": self.state.global_step, "num_processes": self.args.world_size}
        if self._run is not None:
            self._run.log_fingerprint(self.state)
            own |= self._run.rank_state()
            if (callback := find_callback(self.callback_handler, AlphaCallback)) is not None:
                callback.mixture = self._run.shared_state()
        own |= self._loss.state_dict()
        place = self._get_output_dir(trial=trial)
        with writing_checkpoint(place, own, self.args, self.state, self.accelerator) as folder:
            if self.weight_average is not None:
                self.weight_average.save(folder, self.args)
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state; the state of the trainer, written next, is to be the last file of all processes."""
        super()._save_rng_state(output_dir)
        if self._keeps_state:
            self.accelerator.wait_for_everyone()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; training logs gain α, realised shares, passes and the loss of every corpus, and what was added."""
        is_training_log, step = "loss" in logs, self.state.global_step
        if is_training_log:
            logs.update(self._loss.take_log(step - 1, self._sum))
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
        return collect_results(self, plan=self._run.summary(), order=self._run.order(), recipe=self.recipe)

    def save_results(self) -> None:
        """Write `results.json` into `args.output_dir`, on the main process."""
        if self.is_world_process_zero():
            save_results(self.results(), Path(self.args.output_dir) / RESULTS_NAME)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of `Trainer`, or over a mixture that of the run, beside one of another package's trainer."""
        if self._run is None or self._traits.has_own_card:
            super().create_model_card(*args, **kwargs)
        if self._run is not None and self.is_world_process_zero():
            self.save_results()
            write_card(self, kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as `Trainer` does, or over a mixture what lies in `args.output_dir` (see `push_trained_run`)."""
        return super().push_to_hub(*args, **kwargs) if self._run is None else push_trained_run(self, *args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint; of a mixture's run nothing is pushed before its end."""
        if self._run is None:
            super()._push_from_checkpoint(checkpoint_folder)

    @property
    def _keeps_state(self) -> bool:
        """Whether a checkpoint holds more than that of `Trainer`."""
        return self._run is not None or self.weight_average is not None or bool(self._loss.terms)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, "sum")

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)
