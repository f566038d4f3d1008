"""M_α of PEFT models, in place and reversible."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from hf_interp.alphas import Alpha
from hf_interp.tensors import Interpolated, Weights


def is_peft_model(model: Any) -> bool:
    """Whether it is a PEFT model; without importing PEFT where it has not been."""
    return any(cls.__module__.startswith("peft.") and cls.__name__ == "PeftModel" for cls in type(model).__mro__)


def interpolate_adapter(
    base: Weights | None,
    model: Any,
    alpha: Alpha,
    *,
    into: nn.Module | None = None,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
) -> Interpolated:
    """M_α of a PEFT model."""
    raise NotImplementedError
