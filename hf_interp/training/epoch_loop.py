"""The epochs of a mixture in the loop of `Trainer`: all read on from one iterator until the plan ends."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import Trainer

from hf_interp.training.mixture_run import MixtureRun


class EpochLoop:
    """Runs the epochs of a mixture, each of which `ControllerCallback` ends where the plan has a border.

    After the last that was counted, more follow until the plan ends: with epochs that were stopped early, or an α that
    adapts, there are others than had been planned.
    """

    def __init__(self) -> None:
        self._loader: Any = None
        self._batches: Iterator[Any] = iter(())

    def run(
        self,
        trainer: Trainer,
        run_epoch: Callable[..., None],
        loader: Any,
        epoch: int,
        kwargs: Mapping[str, Any],
    ) -> None:
        """Run an epoch of `Trainer` over what the loader has left, and those that follow the last one counted."""
        if self._loader is not loader:
            self._loader, self._batches = loader, iter(loader)
        given = dict(kwargs)
        while (left := trainer.state.max_steps - trainer.state.global_step) > 0:
            batches = left * trainer.args.gradient_accumulation_steps
            given |= {"num_update_steps_per_epoch": left, "steps_in_epoch": batches}
            run_epoch(train_dataloader=self._batches, epoch=epoch, **given)
            if trainer.control.should_training_stop or epoch + 1 < trainer.state.num_train_epochs:
                return
            epoch, given["resume_from_checkpoint"] = epoch + 1, None
            trainer.control = trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        trainer.control.should_training_stop = True


def with_epochs_of(run: MixtureRun, found: Any) -> Any:
    """Return what `Trainer.set_initial_training_values` has found, with the steps and epochs of a plan."""
    _, _, num_examples, _, batch_size, steps_in_epoch, _ = found
    steps, slots = run.plan.max_steps, len(run.plan)
    return run.epochs.count(), steps, num_examples, slots, batch_size, steps_in_epoch, steps
