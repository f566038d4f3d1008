"""The mixture of one run: its plan, what has been read of it, and what a checkpoint keeps of both.

A trainer tells the run which part of a batch is its own, shows it every batch and every loss, and asks it what to read,
what to log and what to save. The run knows no trainer.
"""

import copy
import itertools
import json
import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerState, TrainingArguments

from hf_interp.mixture.apportionment import SIDES, check_corpora
from hf_interp.mixture.collators import DISTILL, TASK
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.controllers import AdaptiveAlpha, AlphaController
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.dataset import reading_order
from hf_interp.mixture.epochs import Epochs, steps_of_epochs
from hf_interp.mixture.order import Order, Sampling
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, default_schedule
from hf_interp.mixture.slots import (
    BATCH_KEY,
    CORPUS_KEY,
    ORDER_KEY,
    STREAMS_KEY,
    TOKENS_KEY,
    BatchShard,
    SlotDataset,
    whole_hash,
)
from hf_interp.mixture.streams import check_stream_ends, divide_streams, stream_warnings
from hf_interp.training.checkpoints import SavedRun
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.dataloader import check_loader_arguments
from hf_interp.training.meters import CorpusMeters
from hf_interp.training.private import PrivateGradients
from hf_interp.training.session import LossGuard

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class MixtureRun:
    """The mixture that a trainer reads."""

    corpora: list[Corpus]
    args: TrainingArguments  # which may change between one `begin` and the next
    reduce: Callable[[torch.Tensor], torch.Tensor]  # sums a tensor over all processes
    warn: Callable[[str], None]
    given_plan: MixturePlan | None = None  # as all that is given, it wins over what `args` describe
    alpha_schedule: AlphaSchedule | None = None
    alpha_controller: AlphaController | None = None
    objectives: Sequence[str] = ()  # all that corpora can train, the model's own task first
    plan: MixturePlan = field(init=False)  # once the run has begun
    epochs: Epochs = field(init=False)
    shard: BatchShard = field(init=False)  # the part of a global batch that this process reads
    is_counted: bool = field(init=False)  # whether what this process reads is
    meters: CorpusMeters = field(init=False)
    guard: LossGuard = field(init=False)
    adaptive: AdaptiveAlpha | None = field(init=False, default=None)  # the controller at work, if α adapts
    private: PrivateGradients | None = field(init=False, default=None)  # if domain rows are to be private

    @property
    def mixes_objectives(self) -> bool:
        """Whether a corpus trains another head than the model's own."""
        return any(corpus.objective not in (None, DISTILL) for corpus in self.corpora)

    @property
    def distills(self) -> bool:
        """Whether a corpus trains M₀'s predictions."""
        return any(corpus.objective == DISTILL for corpus in self.corpora)

    # The beginning.

    def begin(self, shard: BatchShard, batch_size: int, saved: SavedRun | None = None) -> SlotDataset:
        """Plan for the present arguments, going on from a checkpoint if there is one, and return what is to be read.

        Whatever an earlier run has read is forgotten. `shard` is that of this process (see `shard_batch`),
        `batch_size` the global batch.
        """
        is_first, self.shard = not hasattr(self, "plan"), shard
        # the other processes of the model replica read the same
        self.is_counted = self.args.process_index % (self.args.world_size // shard.num_processes) == 0
        names = [corpus.name for corpus in self.corpora]
        objectives = [TASK, DISTILL] if self.distills else self.objectives if self.mixes_objectives else ()
        self.meters = CorpusMeters(names, self.args.device, objectives)
        self.guard = LossGuard(self.args)
        self.stream_states: dict[str, Any] = {}
        self.eval_metrics: dict[str, float] = {}
        warnings = check_loader_arguments(self.args, num_workers=shard.num_workers)
        controller = make_controller(self.args, self.alpha_controller, num_workers=shard.num_workers)
        self.plan = self._fresh_plan(batch_size, is_adaptive=controller is not None)
        if is_first:
            warnings += self.plan.warnings() + stream_warnings(self.corpora, shard.num_readers)
            check_stream_ends(self.corpora, self.plan, shard.num_readers)
        if saved is not None:
            warnings += self._continue_plan(saved)
        for warning in warnings:
            self.warn(warning)
        self.epochs, self.adaptive = Epochs(self.plan, settings_of(self.args).mixture_epoch), None
        if controller is not None and self.plan.is_adaptive:
            config = settings_of(self.args)
            self.adaptive = AdaptiveAlpha(self.plan, controller, config.alpha_update_steps, config.alpha_update_lag)
        if saved is not None and saved.mixture is not None:
            self._restore(saved, saved.mixture)
        return SlotDataset(self.plan, self.corpora, shard, self.stream_states or None)

    def _fresh_plan(self, batch_size: int, *, is_adaptive: bool) -> MixturePlan:
        """Return the plan of the present settings from step 0, and check one that is given."""
        plan = self.given_plan
        max_steps = self.args.max_steps if plan is None or self.args.max_steps >= 0 else plan.max_steps
        if plan is None:
            schedule = self.alpha_schedule
            return plan_mixture(self.corpora, self.args, schedule, batch_size=batch_size, is_adaptive=is_adaptive)
        if (plan.batch_size, plan.max_steps) != (batch_size, max_steps):
            raise ValueError(
                f"The `InterpolatedDataset` was planned for batch_size={plan.batch_size} and max_steps="
                f"{plan.max_steps}, but the trainer runs with {batch_size} and {max_steps}. Make them equal."
            )
        if is_adaptive:
            raise ValueError("A controller of α needs corpora as `train_dataset`, not an `InterpolatedDataset`.")
        return plan

    def _continue_plan(self, saved: SavedRun) -> list[str]:
        """Go on from a checkpoint; return what to tell of settings that have changed."""
        step = saved.global_step
        if saved.mixture is None:  # `AlphaCallback` warns
            self.plan = self.plan.after(None, step)
            return []
        self.plan, changes = continue_plan(self.plan, saved.mixture["plan"], step)
        return changes and [
            f"Going on from step {step} with other settings: {'; '.join(changes)}. What has been read stays read; "
            "every corpus goes on inside its pass."
        ]

    def _restore(self, saved: SavedRun, mixture: Mapping[str, Any]) -> None:
        """Take up the sums of a checkpoint, its controller and the states of this process' streams."""
        if self.adaptive is not None and mixture.get("controller"):
            self.adaptive.load_state_dict(mixture["controller"], saved.global_step)
        self.eval_metrics = dict(mixture.get("eval_metrics", {}))
        self.meters.load_state_dicts([state["tally"] for state in saved.rank_states])
        if any(corpus.is_stream for corpus in self.corpora):
            self.stream_states = self._streams_of_readers(saved, mixture)

    def _streams_of_readers(self, saved: SavedRun, mixture: Mapping[str, Any]) -> dict[str, Any]:
        """Return the states of the streams for the readers of this process, divided anew if they were others."""
        shard = self.shard
        before = mixture.get("num_readers") or mixture.get("num_processes", 0) * max(mixture.get("num_workers", 0), 1)
        states = {reader: each for rank in saved.all_rank_states() for reader, each in rank["streams"].items()}
        if before and before != shard.num_readers:
            self.warn(
                f"Streams were divided among {before} readers (processes times workers) and are now divided anew among "
                f"{shard.num_readers}, by their shards: each goes on where its shards were left."
            )
            states = divide_streams(self.corpora, states, before, shard.num_readers)
        return {reader: states[reader] for reader in map(str, shard.own_readers) if reader in states}

    # Step by step.

    def note_batch(self, inputs: Any) -> tuple[torch.Tensor | None, Any]:
        """Note what a batch tells of itself; return the corpus of every example, and what the collator has returned.

        The corpora are (num_examples,) indices into `corpora`; `None` without a mark.
        """
        corpus: torch.Tensor | None = inputs.pop(CORPUS_KEY, None) if isinstance(inputs, MutableMapping) else None
        if corpus is None:
            return None, inputs
        halves, streams = inputs.pop(ORDER_KEY), inputs.pop(STREAMS_KEY, None)
        if self.is_counted:
            self.meters.add_order(halves)
        if streams is not None:
            self.stream_states.update(json.loads(streams))
        if (tokens := inputs.pop(TOKENS_KEY, None)) is not None:
            self.meters.add_tokens(corpus, tokens)
        return corpus, inputs.pop(BATCH_KEY, inputs)

    def private_step(self, trainer: Any, model: torch.nn.Module, inputs: Any, batch_loss: Any) -> torch.Tensor:
        """Take the gradient of a micro-batch, private for domain rows, whose corpora are kept from the loss."""
        corpus, batch_loss.corpus = batch_loss.corpus, None
        assert self.private is not None
        loss = self.private.step(trainer, model, inputs, self.is_general(corpus))
        self.guard.check(loss, trainer.state.global_step + 1, is_scaled=False)
        return loss

    def note_losses(self, corpus: torch.Tensor, losses: torch.Tensor | None) -> None:
        """Note the loss of every example of a batch, if it is to be logged or decided by."""
        is_needed = self.adaptive is not None or settings_of(self.args).log_corpus_loss
        if is_needed and losses is not None and losses.shape == corpus.shape:
            self.meters.add_losses(corpus, losses.detach(), for_decision=self.adaptive is not None)

    def note_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Remember the numbers among the metrics of an evaluation for the next decision."""
        self.eval_metrics |= {key: value for key, value in metrics.items() if isinstance(value, (int, float))}

    def is_general(self, corpus: torch.Tensor) -> torch.Tensor:
        """Return which examples of a batch are of general corpora."""
        sides = [each.side == "general" for each in self.corpora]
        return torch.tensor(sides, device=corpus.device)[corpus]

    def is_distilled(self, corpus: torch.Tensor) -> torch.Tensor:
        """Return which examples of a batch train M₀'s predictions."""
        return torch.tensor([each.objective == DISTILL for each in self.corpora], device=corpus.device)[corpus]

    def of_objective(self, corpus: torch.Tensor, name: str) -> torch.Tensor:
        """Return the entries of a batch's corpora that train an objective, in their order."""
        return corpus[self.trains(corpus, name)]

    def trains(self, corpus: torch.Tensor, name: str) -> torch.Tensor:
        """Return which examples of a batch train an objective."""
        return torch.tensor([(each.objective or TASK) == name for each in self.corpora], device=corpus.device)[corpus]

    def epoch_of(self, step: int) -> int:
        """Return the number of the epoch to which a step belongs, if a dataset is to be told of it."""
        return self.epochs.number(step) if any(hasattr(each.dataset, "set_epoch") for each in self.corpora) else 0

    def decide_alpha(self, state: TrainerState) -> None:
        """Ask the controller for the next α, if there is one and it is time."""
        if self.adaptive is None or not self.adaptive.is_due(state.global_step):
            return
        corpora = list(enumerate(self.plan.corpora))
        sides = {str(side): [index for index, corpus in corpora if corpus.side == side] for side in SIDES}
        metrics = [{**self.eval_metrics, **self.meters.take_decision(self.reduce, sides)}]
        broadcast_object_list(metrics)  # times and rates of evaluations differ between processes
        decision = self.adaptive.decide(state.global_step, metrics[0])
        if state.is_world_process_zero:
            logger.info(
                "After step %d: α %.4f for the steps %d to %d (%s).",
                decision["step"],
                decision["alpha"],
                decision["from_step"],
                decision["to_step"] - 1,
                decision["reason"],
            )

    # What is logged and saved.

    def log_fingerprint(self, state: TrainerState) -> None:
        """Note in `log_history` the hash of all that has been read, over all processes.

        It stands in an entry of training, or in the summary at the end; without one it has an entry of its own.
        """
        text = f"{whole_hash(self.reduce(self.meters.order).tolist()):016x}"
        step = state.global_step
        here = list(itertools.takewhile(lambda entry: entry.get("step") == step, reversed(state.log_history)))
        if any("order_fingerprint" in entry for entry in here):
            return
        own = {"epoch": state.epoch, "step": step}
        entry = next((entry for entry in here if "loss" in entry or "train_runtime" in entry), own)
        entry["order_fingerprint"] = text  # not through `log`, whose trackers take numbers only
        if entry is own:
            state.log_history.append(entry)

    def summary(self) -> dict[str, Any]:
        """Return the plan in numbers, and of each corpus the `objective` that it has of its own."""
        found = self.plan.summary()
        for entry, corpus in zip(found["corpora"], self.corpora, strict=True):
            entry |= {} if corpus.objective is None else {"objective": corpus.objective}
        return found

    def order(self) -> dict[str, Any]:
        """Return the plan and all decisions on α, as plain values."""
        return {"plan": self.plan.to_dict(), "decisions": self.adaptive.decisions if self.adaptive else []}

    def shared_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps once for all processes, beside the plan."""
        return {
            "num_processes": self.args.world_size,
            "num_workers": self.shard.num_workers,
            "num_readers": self.shard.num_readers,
            "eval_metrics": self.eval_metrics,
            "controller": self.adaptive.state_dict() if self.adaptive is not None else None,
            **({} if self.private is None else {"noise_key": self.private.key}),
        }

    def rank_state(self) -> dict[str, Any]:
        """Return what only this process knows, for its file in a checkpoint."""
        return {"tally": self.meters.state_dict(), "streams": self.stream_states}


def shard_batch(
    args: TrainingArguments, corpora: Sequence[Corpus], *, micro_batch_size: int, batch_size: int
) -> BatchShard:
    """Return which part of a global batch is this process'; processes of one model replica share theirs.

    `micro_batch_size` is that of one forward pass of this process, `batch_size` the global batch.
    """
    replicas = batch_size // (micro_batch_size * args.gradient_accumulation_steps)
    workers = args.dataloader_num_workers
    if any(corpus.is_stream and not isinstance(corpus.dataset, datasets.IterableDataset) for corpus in corpora):
        workers = 0  # nothing says how to divide such a stream among workers
    return BatchShard(micro_batch_size, replicas, args.process_index // (args.world_size // replicas), workers)


def plan_mixture(
    corpora: Sequence[Corpus],
    args: TrainingArguments,
    alpha_schedule: AlphaSchedule | None = None,
    *,
    batch_size: int,
    is_adaptive: bool = False,
) -> MixturePlan:
    """Return the plan of a run.

    Args:
        corpora: what is mixed.
        args: `max_steps` or `num_train_epochs`, the seed of the data and, in an `InterpolationConfig`, the schedule;
            with plain `TrainingArguments` α is 0.5 throughout.
        alpha_schedule: wins over that of `args`.
        batch_size: the global batch.
        is_adaptive: leave α open where a controller will decide it.
    """

    def schedule_of(max_steps: int) -> AlphaSchedule:
        if alpha_schedule is None and isinstance(args, InterpolationConfig):
            return args.build_alpha_schedule(max_steps)
        return alpha_schedule or default_schedule(path)

    config = settings_of(args)
    unit, path = config.mixture_unit, config.mixture_path
    specs = [corpus.spec(unit) for corpus in corpora]
    max_steps: int | None = args.max_steps
    order, seed = order_of(args, corpora), args.seed if args.data_seed is None else args.data_seed
    if order.stopping_strategy is not None:
        max_steps = None
    elif args.max_steps < 0:
        settings = {"batch_size": batch_size, "unit": unit, "side": config.mixture_epoch, "mixture_path": path}
        max_steps = steps_of_epochs(args.num_train_epochs, check_corpora(specs, unit), schedule_of, **settings)
    return MixturePlan(
        specs,
        alpha_schedule=schedule_of(max_steps or 1 << 40),
        batch_size=batch_size,
        max_steps=max_steps,
        seed=seed,
        unit=unit,
        mixture_path=path,
        num_committed=config.alpha_update_steps + config.alpha_update_lag if is_adaptive else None,
        order=order,
    )


def order_of(args: TrainingArguments, corpora: Sequence[Corpus]) -> Order:
    """Return how the slots are to be filled."""
    config = settings_of(args)
    sampling: Sampling = config.mixture_sampling
    if args.train_sampling_strategy == "sequential" and sampling == "exact":
        sampling = "sequential"
    window = config.length_window if args.train_sampling_strategy == "group_by_length" else None
    return reading_order(corpora, sampling, config.stopping_strategy, window)


def make_controller(
    args: TrainingArguments, given: AlphaController | None, *, num_workers: int
) -> AlphaController | None:
    """Return a new controller for a new run: a copy of the given one, or what `args` name."""
    controller = copy.deepcopy(given)
    if controller is None and isinstance(args, InterpolationConfig):
        controller = args.build_alpha_controller()
    if controller is None:
        return None
    ahead = num_workers * (args.dataloader_prefetch_factor or 2)
    needed = ahead // args.gradient_accumulation_steps + 1
    lag = settings_of(args).alpha_update_lag
    if lag < needed:
        raise ValueError(
            f"`alpha_update_lag` must be at least {needed}, got {lag}: {num_workers} loader workers fetch {ahead} "
            "batches ahead, whose α must be fixed. Raise it, or use fewer workers or a smaller "
            "`dataloader_prefetch_factor`."
        )
    return controller


def settings_of(args: TrainingArguments) -> Any:
    """Return the settings of a mixture: those of an `InterpolationConfig`, of other arguments the defaults."""
    return args if isinstance(args, InterpolationConfig) else InterpolationConfig
