"""`AlphaCallback`: α of every step, what was drawn so far, and the plan's mark in the checkpoint."""

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.plan import MixturePlan
from hf_interp.training.mixture_run import MixtureRun

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=TrainerCallback)


class AlphaCallback(TrainerCallback, ExportableState):
    """Keeps `alpha` at the α of the step in progress, and logs it with the realised shares and passes.

    It reads the plan from the training loader, so it works in any `Trainer` whose training dataset has a `plan`. Data
    and callback compute the same function of the step, so no prefetching can bring them apart.

    Attributes:
        alpha (`float` or `None`): α of the step in progress or just ended; `None` before training.
    """

    def __init__(self) -> None:
        self.alpha: float | None = None
        self.plan: MixturePlan | None = None
        self.mixture: dict[str, Any] = {}  # what the trainer wants kept in the checkpoint beside the plan
        self.last_logged_step = 0

    def state(self) -> dict[str, Any]:
        """Return what goes into `trainer_state.json`."""
        return {
            "args": {},
            "attributes": {
                "last_logged_step": self.last_logged_step,
                "mixture": {**self.mixture, "plan": self.plan.to_dict()} if self.plan is not None else None,
            },
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the plan and compare it with the checkpoint's."""
        dataset = kwargs["train_dataloader"].dataset
        if not isinstance(getattr(dataset, "plan", None), MixturePlan):
            raise ValueError(
                f"AlphaCallback needs a training dataset with a `plan`, got {type(dataset).__name__}. Train over a "
                "mixture, an `InterpolatedDataset` or a `SlotDataset`, or leave the callback out."
            )
        self.plan = dataset.plan
        self.alpha = self.plan.alpha(state.global_step)
        self.last_logged_step = state.global_step
        if state.global_step > 0:
            self._compare_with_checkpoint(state)
        # `Trainer` looks up stateful callbacks by name when it saves; a checkpoint written without this one lacks it.
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set α."""
        if self.plan is not None:
            self.alpha = self.plan.alpha(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch, which `Trainer` counts from the first batch of the loader, wherever that begins."""
        if self.plan is not None and self.plan.max_steps == state.max_steps:
            state.epoch = state.global_step / state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add to the training logs of a trainer that does not ask for `metrics` itself."""
        if logs is not None and "loss" in logs and "alpha" not in logs:
            found = self.metrics(state.global_step)
            logs.update(found)
            state.log_history[-1].update(found)

    def metrics(self, global_step: int) -> dict[str, float]:
        """Return what to log after `global_step` steps.

        `alpha` belongs to the step that has just ended; `share_<corpus>` is the realised share of the examples since
        the last log; `passes_<corpus>` counts how often the corpus has been read (streams have none).
        """
        if self.plan is None or global_step <= self.last_logged_step:
            return {}
        names = [corpus.name for corpus in self.plan.corpora]
        before, after = self.plan.drawn_before([self.last_logged_step, global_step])
        # not the sum of what was drawn, which lacks corpora that a change of plan has removed since the last log
        total = sum(self.plan.sides_before(global_step).values())
        total -= sum(self.plan.sides_before(self.last_logged_step).values())
        found = {"alpha": self.plan.alpha(global_step - 1)}
        found |= {f"share_{name}": count / total for name, count in zip(names, (after - before).tolist(), strict=True)}
        passes = zip(names, self.plan.passes(global_step), strict=True)
        found |= {f"passes_{name}": round(times, 6) for name, times in passes if times is not None}
        self.last_logged_step = global_step
        return found

    def _compare_with_checkpoint(self, state: TrainerState) -> None:
        stored: Any = state.stateful_callbacks.get(type(self).__name__, {})
        attributes = stored.get("attributes", {}) if isinstance(stored, dict) else {}
        saved = (attributes.get("mixture") or {}).get("plan")
        if saved is None or self.plan is None:
            if state.is_world_process_zero:
                logger.warning(
                    "The checkpoint was written without a mixture. The mixture begins at step %d.", state.global_step
                )
            return
        self.last_logged_step = attributes["last_logged_step"]
        if self.plan.previous is not None and self.plan.start_step == state.global_step:
            return  # the trainer has carried over what has been read
        _, changes = continue_plan(self.plan, saved, state.global_step)
        if changes:
            raise ValueError(
                "The checkpoint belongs to another mixture, so examples would be lost or read again: "
                + "; ".join(changes)
                + ". Resume with the settings of the first run, or with an InterpolationTrainer, which carries over "
                "what has been read."
            )


class ControllerCallback(TrainerCallback):
    """Lets a run decide on α after every optimizer step and end its epochs, and hands it the metrics of evaluations."""

    def __init__(self, run: MixtureRun) -> None:
        self.run = run
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where this run, or what is resumed of it, begins."""
        self.first_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide, if it is time; note how many passes lie behind, at the end of which an epoch ends."""
        self.run.decide_alpha(state)
        state.epoch, is_end = self.run.epochs.passed(state.global_step)
        control.should_epoch_stop |= is_end

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand on the metrics, but not those of `eval_on_start` after a restart: the first run did not have them."""
        if not state.global_step == self.first_step > 0:
            self.run.note_evaluation(metrics or {})


def add_first(handler: CallbackHandler, *callbacks: TrainerCallback) -> None:
    """Put callbacks in front of all others, so that callbacks of the user's see what they have done."""
    for callback in callbacks:
        handler.add_callback(callback)
    handler.callbacks[:] = [*callbacks, *(each for each in handler.callbacks if each not in callbacks)]


def find_callback(handler: CallbackHandler, kind: type[Kind]) -> Kind | None:
    """Return a trainer's callback of a kind.

    It must be looked up: `restore_callback_states_from_checkpoint` replaces the object.
    """
    return next((callback for callback in handler.callbacks if isinstance(callback, kind)), None)
