"""Several heads on one backbone: a model that keeps its class, its files and its forward, and trains more beside.

The heads are ordinary transformers models whose backbone is borrowed from the model that they are attached to. Given
`objectives={name: inputs, ...}` the model runs several of them in one forward pass, so that gradients are gathered over
processes as for any model; given anything else it is what it was before. Its class is exchanged for a subclass of the
same name, as torch's `fully_shard` does with the modules that it shards.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.mixture.collators import TASK, Collator
from hf_interp.utils.files import new_file

HEADS = "objective_heads"
"""The attribute that holds the heads, and the folder that keeps them beside a saved model."""

WEIGHTS_NAME = "model.safetensors"


class Objective:
    """A task that some corpora train beside the model's own.

    Args:
        model: a transformers model with the same kind of backbone and the head that is wanted, such as an
            `AutoModelForMaskedLM`. Its own backbone is given up for that of the model that is trained.
        data_collator: what makes a batch of its examples.
        compute_metrics, preprocess_logits_for_metrics: as those of the `Trainer`, for evaluation sets of the objective.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data_collator: Collator,
        compute_metrics: Callable[[Any], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.model = model
        self.data_collator = data_collator
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics


class BorrowedBackbone(nn.Module):
    """Stands where a head's own backbone was, and runs the one that it borrows without owning its parameters."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self._lender = [backbone]  # in a list, which does not make it a submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the backbone says."""
        return self._lender[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_lender"][0], name)


class HasHeads:
    """The part of a model's class that knows of further heads."""

    def save_pretrained(
        self,
        save_directory: Any,
        *,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save the model as if it had no further heads, and those into the folder `objective_heads` inside."""
        state: Mapping[str, torch.Tensor] = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        kwargs["state_dict"] = {name: tensor for name, tensor in state.items() if not name.startswith(f"{HEADS}.")}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # type: ignore[misc]
        if is_main_process:
            for name, head in getattr(self, HEADS).items():
                _save_head(head, state, name, Path(save_directory) / HEADS / name)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the model's own weights; heads that are not among them stay, and are not missed."""
        found = super().load_state_dict(state_dict, False, assign)  # type: ignore[misc]
        if not any(name.startswith(f"{HEADS}.") for name in state_dict):
            found.missing_keys[:] = [name for name in found.missing_keys if not name.startswith(f"{HEADS}.")]
        if strict and (found.missing_keys or found.unexpected_keys):
            raise RuntimeError(f"Missing keys: {found.missing_keys}; unexpected keys: {found.unexpected_keys}.")
        return found


def attach_heads(model: PreTrainedModel, heads: Mapping[str, PreTrainedModel]) -> None:
    """Give a model, or a `PeftModel`, further heads; its class, not its place, changes.

    `heads` has models with the same kind of backbone, which they lose, by the name of the objective.
    """
    if isinstance(model, HasHeads):
        raise ValueError("The model has further heads already. Give the trainer a model without, or no `objectives`.")
    base = unwrap_peft(model)
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise ValueError(
            "Objectives beside the task do not work with adapters that put tokens before the input. Use another type, "
            "such as lora."
        )
    backbone = base.base_model
    if backbone is base:
        raise ValueError(f"{type(base).__name__} has no backbone apart from its head, so no other head can share it.")
    held = nn.ModuleDict()
    for name, head in heads.items():
        if type(head.base_model) is not type(backbone):
            raise ValueError(
                f"The head of the objective {name!r} belongs on {type(head.base_model).__name__}, but the model's "
                f"backbone is {type(backbone).__name__}. Load both from the same pretrained model."
            )
        held[name] = _borrow(head, base)
    setattr(model, HEADS, held)
    kind: Any = type(model)
    model.__class__ = _class_with_heads(kind)


def load_heads(model: nn.Module, folder: str | Path) -> None:
    """Load the heads that were saved beside a model into a model with heads of the same names."""
    for name, head in getattr(model, HEADS).items():
        path = Path(folder) / HEADS / name / WEIGHTS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"There is no {str(path)!r}, which holds the head of the objective {name!r}.")
        head.load_state_dict(load_file(path), strict=False)


def load_with_head(folder: str | Path, name: str, **kwargs: Any) -> PreTrainedModel:
    """Return the ordinary model of an objective: a saved model's backbone under the head that was trained beside it.

    `kwargs` are passed to `from_pretrained`.

    Raises:
        FileNotFoundError: if there is no such head.
    """
    place = Path(folder) / HEADS / name
    if not (place / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"There is no head {name!r} in {str(folder)!r}, which would lie in {str(place)!r}.")
    config = transformers.AutoConfig.from_pretrained(place)
    cls = getattr(transformers, config.architectures[0])
    weights = transformers.AutoModel.from_pretrained(folder, **kwargs).state_dict()
    model = cls(config)
    backbone = model.base_model
    backbone.load_state_dict({key: value for key, value in weights.items() if key in backbone.state_dict()})
    model.load_state_dict(load_file(place / WEIGHTS_NAME), strict=False)
    model.tie_weights()
    return model.eval()


def _borrow(head: PreTrainedModel, lender: PreTrainedModel) -> PreTrainedModel:
    """Replace a head's backbone by the lender's, output embeddings that were tied to it included."""
    inputs, outputs = head.get_input_embeddings(), head.get_output_embeddings()
    is_tied = outputs is not None and inputs is not None and outputs.weight is inputs.weight
    setattr(head, head.base_model_prefix, BorrowedBackbone(lender.base_model))
    if is_tied:
        outputs.weight = lender.get_input_embeddings().weight
    return head


@functools.cache
def _class_with_heads(cls: type) -> type:
    @functools.wraps(cls.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, objectives: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        if objectives is None:
            return cls.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        heads = getattr(self, HEADS)
        return {
            name: dict(cls.forward(self, **inputs) if name == TASK else heads[name](**inputs))  # type: ignore[attr-defined]
            for name, inputs in objectives.items()
        }

    names = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (HasHeads, cls), names)


def _save_head(head: PreTrainedModel, state: Mapping[str, torch.Tensor], name: str, folder: Path) -> None:
    """Write what the head owns: neither the backbone nor what is tied to it."""
    folder.mkdir(parents=True, exist_ok=True)
    lent = {id(parameter) for parameter in head.base_model._lender[0].parameters()}
    own = [key for key, tensor in head.state_dict(keep_vars=True).items() if id(tensor) not in lent]
    names = {key: f"{HEADS}.{name}.{key}" for key in own}
    tensors = {key: state[full].detach().cpu().contiguous().clone() for key, full in names.items() if full in state}
    with new_file(folder / WEIGHTS_NAME, "wb") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    config = copy.deepcopy(head.config)
    config.architectures = [type(head).__name__]
    config.save_pretrained(folder)
