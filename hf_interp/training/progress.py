"""How far a run is: a line while it trains, and a small file for `hf-interp watch`."""

import math
import os
import resource
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from hf_interp.mixture.plan import MixturePlan
from hf_interp.reporting.results import evaluations, losses_by_side
from hf_interp.training.averaging import WeightAverage
from hf_interp.utils.console import format_evaluation, format_progress
from hf_interp.utils.files import write_json
from hf_interp.utils.run_folder import PROGRESS_NAME

WINDOW = 50
"""Steps by whose mean the rate is told."""
LINE_SECONDS, FRAME_SECONDS, FILE_SECONDS = 10.0, 0.1, 1.0
"""At least so long apart are lines of a log, frames of a terminal's line, and states of the file."""


class ProgressLine(TrainerCallback):
    """Tells how far a run is in a line: on a terminal one that is renewed, elsewhere another now and then.

    Evaluations get a line for each set. `progress.json` in the run's folder says the same, for `hf-interp watch`.

    Args:
        folder: that of the run.
        renewed: whether the line is renewed in its place.
        average: the mean of the run's weights, if it keeps one: then evaluations say of which weights they are.
        distilled: corpora that train M₀'s predictions, whose loss is a divergence.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        renewed: bool = False,
        average: WeightAverage | None = None,
        distilled: Collection[str] = (),
    ) -> None:
        self.average, self.distilled = average, distilled
        self.path, self.renewed = Path(folder) / PROGRESS_NAME, renewed
        self.facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "evaluations": {}}
        self.plan: MixturePlan | None = None
        self._sides: dict[str, str] = {}  # of the corpora
        self._seconds: deque[float] = deque(maxlen=WINDOW)  # that the last steps took
        self._mark = self._printed = self._written = 0.0

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count."""
        self.plan = getattr(kwargs["train_dataloader"].dataset, "plan", None)
        self._sides = {corpus.name: corpus.side for corpus in self.plan.corpora} if self.plan is not None else {}
        self.facts |= {"step": state.global_step, "max_steps": state.max_steps}
        self._mark = time.monotonic()
        self.note(state, "training")

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the step, its α, and what is left."""
        now = time.monotonic()
        self._seconds.append(now - self._mark)
        self._mark = now
        rate = len(self._seconds) / max(sum(self._seconds), 1e-9)
        self.facts |= {"step": state.global_step, "rate": rate, "left": (state.max_steps - state.global_step) / rate}
        self.facts |= {"memory": peak_memory(), "phase": "training"}
        if self.plan is not None:
            self.facts["alpha"] = self.plan.alpha(state.global_step - 1)
        self.tell(state)

    def on_log(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the losses."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self.facts |= {"losses": losses_by_side(logs, self._sides), "divergences": self._divergences()}
            self.tell(state)

    def on_prediction_step(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say that the run is alive."""
        self.facts["phase"] = "evaluating"
        self.tell(state)

    def on_evaluate(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print what has been measured; it does not count as time of a step."""
        found = evaluations([kwargs.get("metrics") or {}])
        where: dict[str, Any] = {"step": state.global_step}
        if self.average is not None and self.average.count:
            where["weights"] = "mean of the weights" if self.average.is_in else "last weights"
        self.facts["evaluations"] |= {name: {**where, **each} for name, each in found.items()}
        for name, each in self.facts["evaluations"].items():
            if name in found:
                self.print(state, format_evaluation(name, each))
        self._mark = time.monotonic()

    def on_train_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the last line in its place."""
        self.note(state, "trained")

    def note(self, state: TrainerState, phase: str) -> None:
        """Say what the run does now, in a line that stays."""
        self.facts["phase"] = phase
        self._printed = self._written = -math.inf
        self.tell(state)
        if self.renewed and phase != "training" and state.is_world_process_zero:
            self._put("\n")

    def tell(self, state: TrainerState) -> None:
        """Write the file and the line, each if it is due."""
        now = time.monotonic()
        if not state.is_world_process_zero:
            return
        if now - self._written >= FILE_SECONDS:
            self._written = now
            self.write()
        if now - self._printed >= (FRAME_SECONDS if self.renewed else LINE_SECONDS):
            self._printed = now
            line = format_progress(self.facts)
            width = shutil.get_terminal_size().columns - 1
            self._put(f"\r{line[:width]}\x1b[K" if self.renewed else f"{line}\n")

    def write(self, **facts: Any) -> None:
        """Write the file, with what else is known now."""
        self.facts |= facts
        with suppress(OSError):  # a full disk is told by what the run needs, not by this
            write_json(self.path, {**self.facts, "time": time.time()})

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the file once more if a run is cut short, for the steps since it was last due."""
        try:
            yield
        except BaseException as error:
            if "step" in self.facts:
                self.write(**({"phase": "interrupted"} if isinstance(error, KeyboardInterrupt) else {}))
            raise

    def print(self, state: TrainerState, line: str) -> None:
        """Print a line that stays."""
        if state.is_world_process_zero:
            self._put(f"\r{line}\x1b[K\n" if self.renewed else f"{line}\n")

    def _divergences(self) -> dict[str, str]:
        """Name the loss of the sides that M₀'s predictions are targets of, wholly or in part."""
        corpora = {side: [name for name, own in self._sides.items() if own == side] for side in self._sides.values()}
        counts = {side: sum(name in self.distilled for name in names) for side, names in corpora.items()}
        return {side: "KL" if count == len(corpora[side]) else "partly KL" for side, count in counts.items() if count}

    def _put(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def show_by(trainer: Any, *callbacks: TrainerCallback) -> None:
    """Let callbacks tell of a trainer's run, in place of the bars and the raw logs of transformers."""
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    for callback in callbacks:
        trainer.add_callback(callback)


def peak_memory() -> int:
    """Return the bytes that this process has held at the most: of the accelerator's memory, or else of its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
