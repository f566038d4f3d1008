"""Descriptions of a run, its model and its machine, for results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.reporting.results import RunResults, read_emissions
from hf_interp.weights.adapter_kinds import is_peft_model


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters are trained.

    >>> print(ParameterCount(73_728, 22_713_216))
    73,728 of 22,713,216 parameters are trained (0.32%).
    """

    trained: int
    total: int
    """Those of the adapter are among them; of what is trained as a copy, the copy counts and not the original."""

    @property
    def share(self) -> float:
        """Trained of total, in [0, 1]."""
        return self.trained / self.total

    def __str__(self) -> str:
        percent = 100 * self.share
        shown = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
        return f"{self.trained:,} of {self.total:,} parameters are trained ({shown}%)."


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model, each once.

    >>> model = nn.Linear(3, 2)
    >>> _ = model.weight.requires_grad_(False)
    >>> count_parameters(model)
    ParameterCount(trained=2, total=8)
    """
    left_out = set()
    if is_peft_model(model):
        from peft.utils import ModulesToSaveWrapper

        left_out = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, ModulesToSaveWrapper)
            for parameter in module.original_module.parameters()
        }
    counted = [parameter for parameter in model.parameters() if id(parameter) not in left_out]
    return ParameterCount(
        trained=sum(parameter.numel() for parameter in counted if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in counted),
    )


def describe_model(model: Any, *, is_whole: bool = True) -> dict[str, Any]:
    """Describe a model for results.

    Args:
        model: the trained model.
        is_whole: whether this process holds all of its parameters, so that they can be counted.
    """
    inner = unwrap_peft(model)
    found: dict[str, Any] = {
        "class": type(inner).__name__,
        "base": getattr(getattr(inner, "config", None), "_name_or_path", None) or None,
        "is_adapter": is_peft_model(model),
    }
    if found["is_adapter"]:
        kinds = [config.peft_type for config in model.peft_config.values()]
        found["peft_type"] = str(getattr(kinds[0], "value", kinds[0]))
    if is_whole:
        count = count_parameters(model)
        found |= {"parameters": count.total, "trained_parameters": count.trained}
    return found


def collect_results(
    trainer: Trainer, *, plan: Mapping[str, Any], order: Mapping[str, Any], recipe: dict[str, Any] | None
) -> RunResults:
    """Collect the results of a trainer.

    Args:
        trainer: it has been trained, or not yet.
        plan: the plan of its mixture in numbers.
        order: the whole plan and the decisions on α.
        recipe: what is trained, if it is known.
    """
    args = trainer.args
    found = RunResults.from_log(
        config=args.to_dict(), plan=dict(plan), log_history=trainer.state.log_history, order=dict(order)
    )
    found.recipe = recipe
    found.machine |= {"accelerator": accelerator_name(args), "num_processes": args.world_size}
    if "codecarbon" in (args.report_to or []):
        found.emissions = read_emissions(args.output_dir or ".")
    is_whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    found.model = describe_model(trainer.model, is_whole=is_whole)
    return found


def accelerator_name(args: TrainingArguments) -> str | None:
    """Return what this process computes on, such as "NVIDIA H100 80GB HBM3"; `None` for a processor."""
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    return None if args.device.type == "cpu" else args.device.type
