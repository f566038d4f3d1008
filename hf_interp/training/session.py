"""The life of a run in its folder: alone in it, with a word on how to go on, and ended by a loss that is no number."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from transformers import TrainingArguments

from hf_interp.training.checkpoints import checkpoints_of, find_checkpoint, find_fault
from hf_interp.training.machines import check_folders
from hf_interp.utils.errors import ReadError
from hf_interp.utils.run_folder import LOCK_NAME

if TYPE_CHECKING:  # a plan trains nothing
    from transformers import Trainer

logger = logging.getLogger(__name__)

MOST_OVERFLOWS = 20
"""Losses in a row that a gradient scaler may skip; by then it has halved the scale down to nothing."""


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder meanwhile."""
    path = Path(folder) / LOCK_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, is_singleton=True)  # which this process may take again
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"`output_dir` must be a folder that no other run writes to, got {str(folder)!r}, where one is at work. "
            "Wait for its end, or choose another folder."
        ) from None
    except NotImplementedError:  # by a file system without locks
        yield
        return
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def running(trainer: "Trainer", *, resumes: bool) -> Iterator[None]:
    """Keep the folder of a run to itself, and say how to go on: before a new run, and when one is cut short.

    Raises:
        ReadError: for a corpus that cannot be read on, with the checkpoint to go on from.
    """
    args, folder = trainer.args, trainer.args.output_dir or "."
    with alone_in(folder) if args.process_index == 0 else nullcontext():
        check_folders(args)
        last = max(checkpoints_of(folder), default=None)
        if not resumes and last is not None and args.process_index == 0:
            logger.warning(
                f"{folder!r} holds checkpoints of an earlier run, up to step {last[0]}, which this new run overwrites. "
                "To go on from the last one instead, start with `resume_from_checkpoint: true` (in Python, "
                "`trainer.train(resume_from_checkpoint=True)`)."
            )
        try:
            yield
        except (KeyboardInterrupt, ReadError) as error:
            path = find_checkpoint(folder, weights_only=args.save_only_model).path
            remedy = (
                f"Go on from {str(path)!r} with `resume_from_checkpoint: true`."
                if path is not None
                else "There is no checkpoint to go on from: set `save_strategy: steps` and `save_steps`."
            )
            ended = f"after step {trainer.state.global_step}. {remedy}"
            if isinstance(error, ReadError):
                raise ReadError(f"{str(error).rstrip('.')}. The run ended {ended}") from error
            if args.process_index == 0:
                logger.warning(f"The run was interrupted {ended}")
            raise


class LossGuard:
    """Ends a run whose loss is not a number any more."""

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        self._overflows = 0

    def check(self, loss: torch.Tensor, step: int, *, is_scaled: bool) -> None:
        """Check the loss of a micro-batch of a step, which are counted from 1.

        With `is_scaled`, a gradient scaler skips steps whose gradients overflow, as in half precision.
        """
        value = float(loss)
        self._overflows = 0 if math.isfinite(value) else self._overflows + 1
        if self._overflows <= (MOST_OVERFLOWS if is_scaled else 0):
            return
        # none of later steps, which an earlier run has left
        steps = sorted(pair for pair in checkpoints_of(self.args.output_dir or ".") if pair[0] < step)
        whole = (path for _, path in reversed(steps) if find_fault(path, weights_only=True) is None)
        good = next((path for path in whole if _is_finite(path)), None)
        remedy = (
            f"Go on from the checkpoint {str(good)!r}, whose weights are finite,"
            if good is not None
            else "There is no checkpoint with finite weights to go on from. Start again"
        )
        raise FloatingPointError(
            f"The loss of step {step} is {value}, and the run ends. {remedy} with a lower `learning_rate` or a lower "
            "`max_grad_norm`, and look for examples with extreme values."
        )


def _is_finite(checkpoint: Path) -> bool:
    """Whether all weights of a checkpoint are finite, as far as they are kept in safetensors files."""
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if not all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in file.keys()):  # noqa: SIM118
                return False
    return True
