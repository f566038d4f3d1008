"""Descriptions of a run, its model and its machine, for results."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Trainer

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.reporting.results import RunResults, read_emissions
from hf_interp.utils.redaction import local_paths
from hf_interp.weights.adapter_kinds import is_peft_model


class ParameterCount(NamedTuple):
    """The number of parameters that are trained, and of all.

    Those of an adapter are among them; of what is trained as a copy, the copy counts and not the original.
    """

    trained: int
    total: int

    def __str__(self) -> str:
        percent = 100 * self.trained / self.total
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
    trained = [parameter for parameter in counted if parameter.requires_grad]
    return ParameterCount(sum(each.numel() for each in trained), sum(each.numel() for each in counted))


def _describe_model(model: Any, *, is_whole: bool) -> dict[str, Any]:
    """Describe a model; its parameters are counted if this process holds them all."""
    inner = unwrap_peft(model)
    base = getattr(getattr(inner, "config", None), "_name_or_path", None) or None
    found: dict[str, Any] = {"class": type(inner).__name__, "base": base, "is_adapter": is_peft_model(model)}
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
    """Collect the results of a trainer, with its plan in numbers (`plan`) and whole (`order`)."""
    args = trainer.args
    found = RunResults.from_log(
        config=args.to_dict(), plan=dict(plan), log_history=trainer.state.log_history, order=dict(order)
    )
    found.recipe = recipe
    kind = None if args.device.type == "cpu" else args.device.type
    name = torch.cuda.get_device_name(args.device) if kind == "cuda" else kind  # such as NVIDIA H100 80GB HBM3
    found.machine |= {"accelerator": name, "num_processes": args.world_size}
    if "codecarbon" in (args.report_to or []):
        found.emissions = read_emissions(args.output_dir or ".")
    is_whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    found.model = _describe_model(trainer.model, is_whole=is_whole)
    found.local_paths = sorted(local_paths([recipe, found.config, found.model]))
    return found
