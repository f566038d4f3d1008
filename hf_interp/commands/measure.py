"""`hf-interp plan --measure`: what a run will take, from its first steps."""

import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_interp.commands.compare import SILENT_ARGS, quiet_bar
from hf_interp.tasks.build import RecipeData, build_trainer
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.task import get_task
from hf_interp.training.progress import peak_memory, show_by
from hf_interp.utils.console import format_size

NUM_STEPS = 3
"""That are timed, after a first one, which also allocates and compiles."""
UNTRAINED = {"eval_strategy": "no", "load_best_model_at_end": False, "alpha_controller": None}
"""Fields of a run that is not evaluated."""


class Stopwatch(TrainerCallback):
    """Ends a run after its first steps, and knows how many seconds each has taken, with its data."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin."""
        self.times.append(time.perf_counter())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())
        control.should_training_stop |= state.global_step > NUM_STEPS

    def seconds(self) -> list[float]:
        """Return the seconds of each step but the first, if there are others."""
        found = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return found[1:] or found


def measure_steps(recipe: Mapping[str, Any], data: RecipeData) -> dict[str, Any]:
    """Take the first steps of a run on data that is loaded, and return their number, mean seconds, and peak memory.

    Nothing is evaluated, logged or kept, and M₀ stays as it is on disk.
    """
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, quiet_bar(0, shown=False):
        dropped = {**SILENT_ARGS, **UNTRAINED, "alpha_controller_kwargs": None, "output_dir": folder}
        parsed, args = parse_recipe({**recipe, **dropped})
        trainer = build_trainer(parsed, get_task(parsed.task), args, data)
        trainer.args.eval_on_start, trainer.keeps_results = False, False
        show_by(trainer, watch)
        trainer.train()
    seconds = watch.seconds()
    return {"steps": len(seconds), "seconds": sum(seconds) / len(seconds), "peak_memory": peak_memory()}


def format_measured(found: Mapping[str, Any], steps: int) -> str:
    """Return what the steps that are left will take, as a sentence."""
    whole = timedelta(seconds=round(found["seconds"] * steps))
    return (
        f"measured on {found['steps']} steps: {found['seconds']:.3g} s a step, so about {whole} for {steps:,} steps, "
        f"evaluations not counted; peak memory {format_size(found['peak_memory'])}"
    )
