"""`InterpolationTrainer`: `transformers.Trainer` with a mixture whose share of domain examples follows α."""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_interp.losses.anchor import Anchor, check_anchor
from hf_interp.losses.per_example import IGNORE_INDEX, is_plain_mean, per_example_loss
from hf_interp.losses.ref_model import shifts_labels
from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.collators import OBJECTIVES_KEY, TASK, MaskingCollator, may_draw_numbers
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.controllers import AdaptiveAlpha, AlphaController
from hf_interp.mixture.corpus import Corpus, as_corpora, check_columns, check_labels, with_dataset
from hf_interp.mixture.dataset import InterpolatedDataset
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule
from hf_interp.mixture.slots import (
    CORPUS_KEY,
    ORDER_KEY,
    STREAMS_KEY,
    SlotCollator,
    SlotDataset,
    SlotSampler,
    Split,
    whole_hash,
)
from hf_interp.mixture.streams import stream_warnings
from hf_interp.reporting.results import RunResults, read_emissions, save_results
from hf_interp.training.callbacks import AlphaCallback, ControllerCallback
from hf_interp.training.checkpoints import (
    PREFIX_CHECKPOINT_DIR,
    STATE_NAME,
    break_up,
    choose_checkpoint,
    explained_writing,
    rank_file,
    read_mixture,
    read_rank_states,
)
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.dataloader import check_loader_arguments, dead_workers_named, slot_loader
from hf_interp.training.heads import Objective
from hf_interp.training.integrations import (
    SENTENCE_TRANSFORMERS,
    TRL,
    argument,
    check_host,
    check_predictions,
    check_settings,
    corpora_for,
    is_mixture_for,
    noted_outputs,
    replace_argument,
    stand_in,
    stands_on,
)
from hf_interp.training.meters import Tally
from hf_interp.training.model_info import accelerator_name, describe_model
from hf_interp.training.objectives import ObjectivesMixin
from hf_interp.training.planning import make_controller, plan_mixture, update_steps_and_lag
from hf_interp.training.pushing import PushingMixin
from hf_interp.training.trackers import MixtureTracker
from hf_interp.utils.files import read_json, write_json
from hf_interp.utils.run_folder import RESULTS_NAME

logger = logging.getLogger(__name__)


class InterpolationMixin(PushingMixin, ObjectivesMixin):
    """Gives a `Trainer` a mixture for its `train_dataset`; put it before the trainer in the bases.

    With an ordinary `train_dataset` nothing is different from the host. A mixture is `{"general": dataset, "domain":
    dataset}`, the same with a dict of named datasets for a side, a list of [`Corpus`], or an [`InterpolatedDataset`].

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
    _head_takes_mean: bool | None = None
    recipe: dict[str, Any] | None = None
    """The recipe that is trained, for the results."""
    plan: MixturePlan | None = None
    corpora: list[Corpus] | None = None
    _checkpoint: Path | None = None
    _saved: dict[str, Any] | None = None
    _adaptive: AdaptiveAlpha | None = None
    _anchor: Anchor | None = None
    _batch_corpus: torch.Tensor | None = None
    _is_first_of_replica: bool = True
    _mixture: list[Corpus] | None = None
    _tally: Tally

    def __init__(
        self,
        *args: Any,
        alpha_schedule: AlphaSchedule | None = None,
        alpha_controller: AlphaController | None = None,
        ref_model: torch.nn.Module | None = None,
        objectives: Mapping[str, Objective] | None = None,
        eval_objectives: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self._objectives = dict(objectives or {})
        self._eval_objectives = dict(eval_objectives or {})
        host = super().__init__
        host_takes_it = "ref_model" in inspect.signature(host).parameters  # as TRL's trainers may
        mixture = argument(host, args, kwargs, "train_dataset")
        has_mixture = is_mixture_for(self, mixture)
        if has_mixture:
            check_host(self, InterpolationMixin)
            if stands_on(self, TRL) or stands_on(self, SENTENCE_TRANSFORMERS):
                self._mixture = corpora_for(self, mixture, argument(host, args, kwargs, "args"))
                given = stand_in(self, self._mixture)
                args, kwargs = replace_argument(host, args, kwargs, "train_dataset", given)
        host(*args, **({"ref_model": ref_model} if host_takes_it else {}), **kwargs)
        self._alpha_schedule = alpha_schedule
        self._alpha_controller = alpha_controller
        self._host_loss_is_scaled = self.loss_is_scaled_for_ga
        if stands_on(self, TRL):
            self._head_takes_mean = False  # these divide by the items of the batch themselves
        self._given_plan: MixturePlan | None = None
        if isinstance(mixture, InterpolatedDataset):
            self._given_plan, self.train_dataset = mixture.plan, mixture.corpora
        elif self._mixture is not None:
            self.train_dataset = self._mixture  # by now prepared, if the host does that
        self._mixture = None
        if has_mixture:
            for warning in check_settings(self):
                self._warn(warning)
        self._set_heads()
        if self._wants_anchor:
            self._set_anchor(ref_model, has_mixture)
        elif ref_model is not None and not host_takes_it:
            raise ValueError("`ref_model` needs an `InterpolationConfig` with an `anchor` or `log_loss_gap`.")
        self._shifts_labels = shifts_labels(self)
        if has_mixture or (self._anchor is not None and self.args.anchor is not None):
            self._loss_shifts_labels = self._shifts_labels  # or the host counts a label too many in each sequence
        if not has_mixture:
            if self._anchor is not None:
                alpha_schedule = None  # the anchor has use for it
            for name, value in (("alpha_schedule", alpha_schedule), ("alpha_controller", alpha_controller)):
                if value is not None:
                    raise ValueError(f"`{name}` needs a mixture as `train_dataset`, got an ordinary dataset.")
            return
        self.corpora = self._prepare_corpora(as_corpora(self.train_dataset))
        if (
            self._mixes_objectives
            and self._anchor is not None
            and (self.args.anchor == "distill" or self.args.log_loss_gap)
        ):
            raise ValueError(
                '`anchor="distill"` and `log_loss_gap` compare predictions of one head. Where corpora have objectives '
                'of their own, use `anchor="l2sp"`, which ties the weights.'
            )
        self._check_pushing()
        self._start_afresh()
        self._plan_mixture()  # now, so that nothing is computed for a mixture that cannot be read
        self.add_callback(AlphaCallback)
        self.add_callback(ControllerCallback(self._decide_alpha, self._note_evaluation))
        # First in line, so that callbacks of the user's see this step's α and not the last one's.
        callbacks = self.callback_handler.callbacks
        callbacks[:0] = [callbacks.pop(-2), callbacks.pop()]
        if self.args.report_to:
            self.add_callback(MixtureTracker(self._describe_mixture, lambda: self.callback_handler.callbacks))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """What TRL's trainers make of a dataset in their constructors; every corpus of a mixture goes the same way."""
        prepare = super()._prepare_dataset
        if self._mixture is None or dataset is not self._mixture[0].dataset:
            return prepare(dataset, *args, **kwargs)
        self._mixture = [with_dataset(corpus, prepare(corpus.dataset, *args, **kwargs)) for corpus in self._mixture]
        return self._mixture[0].dataset

    @property
    def alpha(self) -> float | None:
        """α of the step in progress or just ended; `None` before training and without a mixture."""
        callback = self._alpha_callback()
        return callback.alpha if callback is not None else None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The host's loader, or one over the slots of the plan that belong to this process."""
        if self._anchor is not None:
            self._anchor.clear()
        if self.corpora is None:
            self._load_anchor(self._rank_states())
            return super().get_train_dataloader()
        # Anew: a hyper-parameter search may have changed the plan, or a smaller batch, for which the host starts over.
        self._start_afresh()
        plan = self._plan_mixture()
        split = self._split()
        streams = self._load_rank_state(split)
        self.train_dataset = SlotDataset(plan, self.corpora, split, streams)
        first_step = self._saved["global_step"] if self._saved is not None else 0
        sampler = SlotSampler(plan, split, first_step * self.args.gradient_accumulation_steps)
        return slot_loader(
            self.train_dataset,
            sampler,
            self._slot_collator(plan.seed),
            self.args,
            self.accelerator,
            num_workers=split.num_workers,
            seed=plan.seed,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The host's; over a mixture, a loader worker that died is named whichever way torch finds out.

        Raises:
            RuntimeError: if a loader worker died.
        """
        slots = self.train_dataset
        # by the split and not by the arguments: some streams are read without the workers that were asked for
        has_workers = isinstance(slots, SlotDataset) and slots.split.num_workers > 0
        with dead_workers_named() if has_workers else nullcontext():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The host's step; what the batch tells of itself is noted and kept from the model."""
        self._batch_corpus = inputs.pop(CORPUS_KEY, None)
        if self._batch_corpus is not None:
            self._note_batch(self._batch_corpus, inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The host's loss and what the anchor adds; on the way, what each corpus contributes is noted."""
        corpus, self._batch_corpus = self._batch_corpus, None
        anchor = self._anchor if model.training else None
        if corpus is not None and OBJECTIVES_KEY in inputs:
            found = self._multitask_loss(model, inputs[OBJECTIVES_KEY], corpus)
            return found if return_outputs else found[0]
        if self._evaluated is not None and not model.training:
            found = self._evaluation_loss(model, inputs)
            return found if return_outputs else found[0]
        if corpus is None and anchor is None:
            if self.corpora is not None and not model.training and self.compute_loss_func is None:
                # No function of the user's, so each evaluation batch stands for itself. Told of the items of all
                # processes, the host multiplies by their number, also where the model has not divided by the items.
                num_items_in_batch = None
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("labels")
        targets, shift_labels = inputs.get("shift_labels"), False
        if targets is None:
            targets, shift_labels = labels, self._shifts_labels
        if self._settles_loss_scale:
            num_items_in_batch = self._settle_loss_scale(labels, num_items_in_batch)
        is_general = None if corpus is None else self._is_general(corpus)
        outputs: Any
        step, ref_logits = self.state.global_step, None
        if anchor is not None:
            ref_logits = anchor.predict(self.model, inputs, is_general, step, self.accelerator.autocast())
        if stands_on(self, TRL):  # where asking for outputs costs another pass
            with noted_outputs(model) as noted:
                loss = super().compute_loss(model, inputs, False, num_items_in_batch)
            outputs = noted[-1] if noted else None
        else:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._settles_loss_scale:
            loss = self._share_of_batch(loss, outputs, labels, num_items_in_batch)
        if corpus is not None and labels is not None:
            self._note_losses(corpus, per_example_loss(outputs, labels, shift_labels=self._shifts_labels))
        if anchor is not None and ref_logits is not None:
            assert targets is not None
            loss = anchor.tie(
                loss,
                outputs,
                ref_logits,
                targets,
                shift_labels=shift_labels,
                is_general=is_general,
                num_items=None if num_items_in_batch is None else num_items_in_batch / self._loss_factor,
                step=step,
            )
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The host's log; training logs gain α, realised shares, passes and the loss of every corpus."""
        is_training_log = self.corpora is not None and "loss" in logs
        if self._anchor is not None and "loss" in logs:
            logs.update(self._anchor.take_log(self.state.global_step - 1, self._sum_over_processes))
        if is_training_log:
            callback = self._alpha_callback()
            if callback is not None:
                logs.update(callback.metrics(self.state.global_step))
            logs.update(self._tally.take_log(self._sum_over_processes))
        super().log(logs, start_time)
        if is_training_log:
            self._log_fingerprint()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """The host's training; at the end of a run over a mixture, `results.json` is written to `output_dir`.

        With a mixture or an anchor, `resume_from_checkpoint=True` takes the last checkpoint that is whole. The data of
        a mixture goes on where the checkpoint stands, without reading or counting again what came before. If settings
        have changed, what has been read stays read (see `hf_interp.mixture.continuation`).

        Raises:
            ValueError: if the checkpoint is not whole, or the mixture cannot go on from it.
        """
        if self.corpora is None and self._anchor is None:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        skips = self.args.ignore_data_skip
        if self.corpora is not None:
            self.args.ignore_data_skip = True  # our loader begins at the right place
            if self._checkpoint is not None:
                step = read_json(self._checkpoint / STATE_NAME)["global_step"]
                self._saved = read_mixture(self._checkpoint) or {"global_step": step}
        try:
            resumed = None if self._checkpoint is None else str(self._checkpoint)
            output = super().train(resumed, trial, ignore_keys_for_eval)
            if self.corpora is not None:
                self._log_fingerprint()
        finally:
            self.args.ignore_data_skip = skips
            self._checkpoint, self._saved = None, None
        if self.corpora is not None and not self.state.is_hyper_param_search:
            self.save_results()
        return output

    def call_model_init(self, trial: Any = None) -> torch.nn.Module:
        """The host's; a model that is made when training begins is M₀, before any checkpoint is loaded into it."""
        model = super().call_model_init(trial)
        if self._anchor is not None:
            self._anchor.capture(model)
        return model

    def results(self) -> RunResults:
        """What the run was told, what it planned to read, and every metric it logged."""
        if self.plan is None:
            raise ValueError("Results describe a run over a mixture; this trainer has an ordinary `train_dataset`.")
        found = RunResults.from_log(
            config=self.args.to_dict(),
            plan=self.plan.summary(),
            log_history=self.state.log_history,
            order={"plan": self.plan.to_dict(), "decisions": self._adaptive.decisions if self._adaptive else []},
        )
        found.recipe = self.recipe
        found.machine |= {"accelerator": accelerator_name(self.args), "num_processes": self.args.world_size}
        if "codecarbon" in (self.args.report_to or []):
            found.emissions = read_emissions(self.args.output_dir or ".")
        found.model = describe_model(self.model, is_whole=not (self.is_fsdp_enabled or self.is_deepspeed_enabled))
        return found

    def save_results(self) -> None:
        """Write `results.json` into `args.output_dir`, on the main process."""
        if self.is_world_process_zero():
            save_results(self.results(), Path(self.args.output_dir) / RESULTS_NAME)

    def _describe_mixture(self) -> Mapping[str, Any]:
        return self.plan.summary() if self.plan is not None else {}

    def _alpha_callback(self) -> AlphaCallback | None:
        # Looked up, not kept: `restore_callback_states_from_checkpoint` replaces the object.
        found = (callback for callback in self.callback_handler.callbacks if isinstance(callback, AlphaCallback))
        return next(found, None)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """The host's, with what the mixture must keep; a disk that is full is said in words."""
        if self.corpora is None and self._anchor is None:
            super()._save_checkpoint(model, trial)
            return
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.corpora is not None:
            self._log_fingerprint()
        callback = self._alpha_callback()
        if callback is not None:
            callback.mixture = {
                "num_processes": self.args.world_size,
                "num_workers": self._split().num_workers,
                "eval_metrics": self._eval_metrics,
                "controller": self._adaptive.state_dict() if self._adaptive is not None else None,
            }
        with explained_writing(folder, weights_only=self.args.save_only_model):
            if self.args.should_save:
                break_up(folder)  # what stands under this name from an earlier life of the run
            self.accelerator.wait_for_everyone()
            write_json(rank_file(folder, self.args.process_index), self._rank_state())
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """The host's; the state of the trainer, which is written next, is to be the last file of all processes."""
        super()._save_rng_state(output_dir)
        if self.corpora is not None or self._anchor is not None:
            self.accelerator.wait_for_everyone()

    def _rank_state(self) -> dict[str, Any]:
        """What only this process knows."""
        state: dict[str, Any] = {"global_step": self.state.global_step, "num_processes": self.args.world_size}
        if self.corpora is not None:
            state |= {"tally": self._tally.state_dict(), "streams": self._streams}
        if self._anchor is not None:
            state["anchor"] = self._anchor.state_dict()
        return state

    def _rank_states(self) -> list[dict[str, Any]]:
        """What the processes of the run that is resumed have left for this one."""
        if self._checkpoint is None:
            return []
        return read_rank_states(
            self._checkpoint, num_processes=self.args.world_size, process_index=self.args.process_index
        )

    @property
    def _wants_anchor(self) -> bool:
        args = self.args
        return isinstance(args, InterpolationConfig) and (args.anchor is not None or args.log_loss_gap)

    def _set_anchor(self, ref_model: torch.nn.Module | None, has_mixture: bool) -> None:
        check_anchor(self, ref_model, has_mixture=has_mixture)
        self._anchor = Anchor(self.args, self.model, ref_model, self._alpha_schedule)
        if self._anchor.needs_predictions:
            check_predictions(self)
        self._anchor.capture(self.model)
        if self.args.anchor == "l2sp":
            self._anchor.find_pairs(self.model)
        # First in line, so that callbacks of the user's see the weights after the pull.
        self.callback_handler.callbacks.insert(0, self._anchor)

    def _load_anchor(self, states: Sequence[Mapping[str, Any]]) -> None:
        if self._anchor is not None:
            self._anchor.load_state_dicts([state["anchor"] for state in states if "anchor" in state])

    def _is_general(self, corpus: torch.Tensor) -> torch.Tensor:
        """Which examples of a batch are of general corpora."""
        sides = [each.side == "general" for each in self.corpora or []]
        return torch.tensor(sides, device=corpus.device)[corpus]

    def _start_afresh(self) -> None:
        """Forget what an earlier run of this trainer has read."""
        names = [corpus.name for corpus in self.corpora or []]
        self._tally = Tally(names, self.args.device, self.objective_names if self._mixes_objectives else ())
        self._streams: dict[str, Any] = {}
        self._eval_metrics: dict[str, float] = {}
        self._batch_corpus = None

    def _choose_checkpoint(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        path, skipped = choose_checkpoint(
            resume_from_checkpoint,
            self.args.output_dir or ".",
            weights_only=self.args.save_only_model,
            is_main_process=self.is_world_process_zero(),
        )
        if path is not None and skipped:
            self._warn(f"Passed over what is not a whole checkpoint: {', '.join(skipped)}. Going on from {path.name}.")
        return path

    def _load_rank_state(self, split: Split) -> dict[str, Any] | None:
        """Take up this process' sums; the states of its streams are returned."""
        if self._saved is None or "plan" not in self._saved or self._checkpoint is None:
            return None
        before = {"processes": self._saved.get("num_processes", 0), "workers": self._saved.get("num_workers", 0)}
        now = {"processes": self.args.world_size, "workers": split.num_workers}
        if any(corpus.is_stream for corpus in self.corpora or []) and before != now:
            raise ValueError(
                f"The checkpoint was written by {before['processes']} processes with {before['workers']} loader "
                f"workers each, and now there are {now['processes']} with {now['workers']}. Each of them reads its own "
                "part of a stream, so its place cannot be carried over. Resume with as many, or use corpora with a "
                "length."
            )
        self._eval_metrics = dict(self._saved.get("eval_metrics", {}))
        states = self._rank_states()
        self._load_anchor(states)
        self._tally.load_state_dicts([state["tally"] for state in states])
        self._streams = {reader: place for state in states for reader, place in state["streams"].items()}
        return self._streams

    def _split(self) -> Split:
        """Which part of a global batch is this process'; processes of one model replica share theirs."""
        args = self.args
        local = self._train_batch_size * args.gradient_accumulation_steps
        replicas = self.get_total_train_batch_size(args) // local
        workers = args.dataloader_num_workers
        if any(
            corpus.is_stream and not isinstance(corpus.dataset, datasets.IterableDataset)
            for corpus in self.corpora or []
        ):
            workers = 0  # nothing says how to divide such a stream among workers
        size = args.world_size // replicas
        self._is_first_of_replica = args.process_index % size == 0
        return Split(self._train_batch_size, replicas, args.process_index // size, workers)

    def _note_batch(self, corpus: torch.Tensor, inputs: dict[str, Any]) -> None:
        """What the batch tells beside what the model takes."""
        halves, streams = inputs.pop(ORDER_KEY), inputs.pop(STREAMS_KEY, None)
        if self._is_first_of_replica:  # the others read the same
            self._tally.add_order(halves)
        if streams is not None:
            self._streams.update(json.loads(streams))
        if self.plan is not None and self.plan.unit == "tokens":
            parts = inputs.get(OBJECTIVES_KEY) or {TASK: inputs}
            for name, part in parts.items():
                chosen = self._of_objective(corpus, name) if len(parts) > 1 else corpus
                mask, ids = part.get("attention_mask"), part.get("input_ids")
                if mask is not None:
                    self._tally.add_tokens(chosen, mask.sum(-1))
                elif ids is not None and len(ids) == len(chosen):  # and not all in one row, as without padding
                    self._tally.add_tokens(chosen, torch.full_like(chosen, ids.shape[-1]))

    def _note_losses(self, corpus: torch.Tensor, losses: torch.Tensor | None) -> None:
        if self._needs_corpus_loss and losses is not None and losses.shape == corpus.shape:
            self._tally.add_losses(corpus, losses.detach(), for_decision=self._adaptive is not None)

    def _sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, "sum")

    def _log_fingerprint(self) -> None:
        """Note in `log_history` the hash of all that has been read, over all processes."""
        text = f"{whole_hash(self._sum_over_processes(self._tally.order).tolist()):016x}"
        history, step = self.state.log_history, self.state.global_step
        if history and history[-1].get("step") == step and "loss" in history[-1]:
            history[-1]["order_fingerprint"] = text  # not through `log`, whose trackers take numbers only
        elif not any(entry.get("step") == step and "order_fingerprint" in entry for entry in history[-3:]):
            history.append({"epoch": self.state.epoch, "order_fingerprint": text, "step": step})

    def _decide_alpha(self) -> None:
        """Ask the controller, if there is one and it is time."""
        adaptive = self._adaptive
        if adaptive is None or self.plan is None or not adaptive.is_due(self.state.global_step):
            return
        sides: dict[str, list[int]] = {
            side: [index for index, corpus in enumerate(self.plan.corpora) if corpus.side == side] for side in SIDES
        }
        metrics = [{**self._eval_metrics, **self._tally.take_decision(self._sum_over_processes, sides)}]
        broadcast_object_list(metrics)  # times and rates of evaluations differ between processes
        decision = adaptive.decide(self.state.global_step, metrics[0])
        if self.is_world_process_zero():
            logger.info(
                "After step %d: α %.4f for the steps %d to %d (%s).",
                decision["step"],
                decision["alpha"],
                decision["from_step"],
                decision["to_step"] - 1,
                decision["reason"],
            )

    def _note_evaluation(self, metrics: Mapping[str, Any]) -> None:
        if self.corpora is not None:
            numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
            self._eval_metrics.update(numbers)

    def _slot_collator(self, seed: int) -> SlotCollator:
        if self._mixes_objectives:
            return SlotCollator(self._objective_collator(), seed)
        collator = self.data_collator
        may_draw = may_draw_numbers(collator)
        is_removed = all(isinstance(corpus.dataset, datasets.Dataset) for corpus in self.corpora or [])
        # Columns of sentence-transformers are no names of the model's.
        if not is_removed and not stands_on(self, SENTENCE_TRANSFORMERS) and not isinstance(collator, MaskingCollator):
            # Other datasets still have the columns that the model does not take.
            collator = self._get_collator_with_removed_columns(collator, description="training")
        return SlotCollator(collator, seed, may_draw=may_draw)

    def _warn(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)

    @property
    def _needs_corpus_loss(self) -> bool:
        return self._adaptive is not None or getattr(self.args, "log_corpus_loss", True)

    def _prepare_corpora(self, corpora: list[Corpus]) -> list[Corpus]:
        """Drop the columns that the model does not take, as the host does, and check that the corpora fit together."""
        self._check_objectives(corpora)
        prepared = [
            with_dataset(corpus, self._remove_unused_columns(corpus.dataset, description=corpus.name))
            if isinstance(corpus.dataset, datasets.Dataset) and not stands_on(self, SENTENCE_TRANSFORMERS)
            else corpus
            for corpus in corpora
        ]
        check_columns(prepared)
        # By name, which holds for the classifiers of transformers and for the PEFT models around them.
        if type(self.model).__name__.endswith("ForSequenceClassification") and self.model.config.num_labels > 1:
            check_labels([each for each in prepared if each.objective is None], self.model.config.num_labels)
        return prepared

    def _plan_mixture(self) -> MixturePlan:
        """Plan for the present arguments, going on from the checkpoint if there is one."""
        args: TrainingArguments = self.args
        for warning in check_loader_arguments(args, num_workers=self._split().num_workers):
            self._warn(warning)
        batch_size = self.get_total_train_batch_size(args)
        controller = make_controller(args, self._alpha_controller, num_workers=self._split().num_workers)
        if self._given_plan is None:
            plan = plan_mixture(
                self.corpora or [],
                args,
                batch_size=batch_size,
                alpha_schedule=self._alpha_schedule,
                is_adaptive=controller is not None,
            )
        else:
            plan = self._given_plan
            if (plan.batch_size, plan.max_steps) != (batch_size, args.max_steps):
                raise ValueError(
                    f"The `InterpolatedDataset` was planned for batch_size={plan.batch_size} and max_steps="
                    f"{plan.max_steps}, but the trainer runs with {batch_size} and {args.max_steps}. Make them equal."
                )
            if controller is not None:
                raise ValueError("A controller of α needs corpora as `train_dataset`, not an `InterpolatedDataset`.")
        if self.plan is None:
            for warning in plan.warnings() + stream_warnings(self.corpora or [], self._split().num_readers):
                self._warn(warning)
        if self._saved is not None:
            plan = self._go_on(plan, self._saved)
        self.plan = plan
        self._adaptive = None
        if controller is not None and plan.is_adaptive:
            self._adaptive = AdaptiveAlpha(plan, controller, *update_steps_and_lag(args))
            if self._saved is not None and self._saved.get("controller"):
                self._adaptive.load_state_dict(self._saved["controller"], self._saved["global_step"])
        self.train_dataset = SlotDataset(plan, self.corpora or [])
        return plan

    def _go_on(self, plan: MixturePlan, saved: Mapping[str, Any]) -> MixturePlan:
        if "plan" not in saved:  # `AlphaCallback` warns
            return plan.after(None, saved["global_step"])
        plan, changes = continue_plan(plan, saved["plan"], saved["global_step"])
        if changes:
            self._warn(
                f"Going on from step {saved['global_step']} with other settings: {'; '.join(changes)}. What has been "
                "read stays read; every corpus goes on inside its pass."
            )
        return plan

    @property
    def _settles_loss_scale(self) -> bool:
        """Whether the loss is more than the host's: over a mixture, and where an anchor is weighed against it."""
        return self.corpora is not None or (self._anchor is not None and self.args.anchor is not None)

    @property
    def _loss_factor(self) -> int:
        """By what the host multiplies a share of all processes' mean, because their gradients are averaged."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

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
        # numbers are the labels of a regression, or one for each class: of either every example has as many
        one_label_each = labels is not None and (labels.dim() == 1 or labels.is_floating_point())
        one_label_each = one_label_each and self.compute_loss_func is None
        self.loss_is_scaled_for_ga = False if one_label_each else self._host_loss_is_scaled
        return None if one_label_each else num_items_in_batch

    def _share_of_batch(
        self,
        loss: torch.Tensor,
        outputs: Any,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """A micro-batch's share of the global batch's mean over labels, also where the head does not know the latter.

        Heads for token classification, masked language modelling (BERT's) and sequence to sequence (T5's, BART's)
        return the mean over the micro-batch, whatever `num_items_in_batch` they get. Which kind a head is shows in the
        first loss that the two kinds would not agree about.
        """
        if num_items_in_batch is None or labels is None or labels.dim() != 2 or self._loss_shifts_labels:
            return loss
        if self.compute_loss_func is not None or self.label_smoother is not None:
            return loss
        share = labels.ne(IGNORE_INDEX).sum() / num_items_in_batch
        if self._head_takes_mean is None and 0 < float(share) < 1:
            self._head_takes_mean = is_plain_mean(loss / self._loss_factor, outputs, labels, float(share))
        return loss * share if self._head_takes_mean else loss


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
