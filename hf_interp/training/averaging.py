"""The mean of a run's weights, which can take the place of a falling learning rate (WSM, arXiv 2507.17634)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_interp.training.config import InterpolationConfig
from hf_interp.utils.files import new_file


class WeightAverage(TrainerCallback):
    """The uniform mean of the weights after each step from a share of the run on.

    The n-th of these steps does mean ← mean + (θ − mean) / n, in float32 and on the weights' device, over what is
    trained: of a `PeftModel` the adapter. The statistics of batch norms are averaged like weights, as torch's
    `AveragedModel` does with `use_buffers`. A process that holds a part of the weights averages that part.

    Args:
        begin: the share of the run from which on weights are averaged, in [0, 1).

    Attributes:
        count (`int`): steps that the mean is over.
        is_in (`bool`): whether the model has the mean now.
        checkpoint (`Path` or `None`): what the run that begins next goes on from.
    """

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.count = 0
        self.is_in = False
        self.checkpoint: Path | None = None
        self._weights: dict[str, torch.Tensor] = {}
        self._means: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with nothing, or with what the checkpoint holds."""
        self.count, self.is_in = 0, False
        self._weights = dict(_averaged(kwargs["model"]))
        exact = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in self._weights.items()}
        self._means = {name: torch.zeros_like(self._weights[name], dtype=kind) for name, kind in exact.items()}
        if self.checkpoint is not None and state.global_step > self.begin * state.max_steps:
            self._load(self.checkpoint, args.process_index)

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the weights of a step in, if the mean has begun."""
        if state.global_step > self.begin * state.max_steps:
            self.count += 1
            for name, mean in self._means.items():
                mean.lerp_(self._weights[name].to(mean.dtype), 1 / self.count)

    def put_in(self) -> None:
        """Put the mean into the model, and keep the last weights in its place; called again, the reverse."""
        self.is_in = not self.is_in
        for name, mean in self._means.items():
            weight = self._weights[name].data
            last = weight.to(mean.dtype, copy=True)
            weight.copy_(mean)
            mean.copy_(last)

    @contextmanager
    def last_weights(self) -> Iterator[None]:
        """Give the model, which has the mean since training ended, the weights of the last step for a while."""
        self.put_in()
        try:
            yield
        finally:
            self.put_in()

    def save(self, checkpoint: Path, args: TrainingArguments) -> None:
        """Save the mean into a checkpoint, if it has begun."""
        parts = {name: _local(mean) for name, mean in self._means.items()}
        is_divided = any(parts[name] is not mean for name, mean in self._means.items())
        if self.count and (is_divided or args.should_save):
            with new_file(_file(checkpoint, args.process_index if is_divided else 0), "wb") as file:
                file.write(save(parts, {"count": str(self.count)}))

    def _load(self, checkpoint: Path, process_index: int) -> None:
        own = _file(checkpoint, process_index)
        path = own if own.is_file() else _file(checkpoint, 0)
        if not path.is_file():
            raise ValueError(
                f"`average_from` is {self.begin}, but the checkpoint {str(checkpoint)!r} lies after that share of the "
                f"run and has no {path.name}. Resume without it, or set it to a share that is still to come."
            )
        with safe_open(path, "pt") as file:
            self.count = int(file.metadata()["count"])
            for name, mean in self._means.items():
                _local(mean).copy_(file.get_tensor(name))


def prepare_average(trainer: Trainer) -> WeightAverage | None:
    """Return the mean that a trainer's settings ask for, among its callbacks; `None` for none."""
    args = trainer.args
    if not isinstance(args, InterpolationConfig) or args.average_from is None:
        return None
    if args.load_best_model_at_end:
        raise ValueError(
            "`average_from` leaves the mean of the weights in the model, `load_best_model_at_end` those of one step. "
            "Choose one."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError("`average_from` cannot reach weights that DeepSpeed divides. Use stage 2, FSDP or DDP.")
    average = WeightAverage(args.average_from)
    trainer.add_callback(average)
    return average


def _averaged(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Give what is trained, and what batch norms have gathered."""
    yield from ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            yield from ((f"{prefix}.{name}", getattr(module, name)) for name in ("running_mean", "running_var"))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds: all of it, unless FSDP divides it."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _file(checkpoint: Path, process_index: int) -> Path:
    return checkpoint / f"weight_average_{process_index}.safetensors"
