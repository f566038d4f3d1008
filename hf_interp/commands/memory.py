"""Memory that training needs, before there are weights: `hf-interp plan --memory`.

    peak = parameters + M₀ + optimizer + average + max(gradients, activations)

Where a step has several micro-batches, gradients and activations add up. Parameters, gradients and the optimizer's
moments are counted. M₀ is a second model where its predictions are asked for and it is not the model without its
adapter; the average is that of `average_from`. Activations are what autograd keeps of one micro-batch of the longest
rows, told by a pass through the model on tensors that have shapes and no numbers, and the scores twice more in float32,
which the losses by corpus and the gradient of the loss need. With checkpoints of activations one layer counts in full,
and the others by what they are given.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig
from transformers.training_args import OptimizerNames

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.tasks.presets import adapt
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.task import get_task
from hf_interp.training.config import InterpolationConfig
from hf_interp.utils.console import format_size

MOMENTS = {"sgd": 0, "adafactor": 0, "lion_32bit": 1, "adamw_bnb_8bit": 0.5, "adamw_8bit": 0.5, "lion_8bit": 0.25}
"""What an optimizer keeps, as a multiple of what is trained in float32; Adam and all others 2."""
DISTILLED = 3
"""Times that M₀'s scores, and those compared with them, are held beside the model's own."""


def estimate_memory(recipe: Recipe, args: InterpolationConfig, length: int, *, distills: bool) -> dict[str, int]:
    """Return the bytes of each part, and of the `peak`, of one process that holds the whole model.

    Args:
        recipe: of a task on texts.
        args: for batch size, accumulation, optimizer, checkpoints of activations, bf16.
        length: tokens of the longest row.
        distills: whether M₀'s predictions are trained.

    Raises:
        ValueError: for a model that does not run without numbers, or does not take texts.
    """
    if get_task(recipe.task).info.takes != "text":
        raise ValueError(f"Memory is estimated for models of texts, and not for {recipe.task}. Leave --memory out.")
    try:
        with torch.device("meta"):
            model = _meta_model(recipe, args)
        with FakeTensorMode():
            _make_fake(model)
            trained = [each for each in model.parameters() if each.requires_grad]
            parts = {"parameters": _size([*model.parameters(), *model.buffers()]), "gradients": _size(trained)}
            parts["optimizer"] = int(MOMENTS.get(OptimizerNames(args.optim).value, 2) * _size(trained))
            parts["average"] = 4 * sum(each.numel() for each in trained) if args.average_from is not None else 0
            parts["M₀"] = parts["parameters"] if distills and recipe.peft is None else 0
            parts["activations"] = _activations(model, args, length, distills=distills)
            parts["activations"] *= 2 if args.adversarial == "r3f" else 1  # whose two passes are held at once
    except (RuntimeError, NotImplementedError, TypeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"The memory of {recipe.model_name_or_path!r} cannot be told ({text:.200}). Leave --memory out."
        ) from error
    held, busy = parts["gradients"], parts["activations"]
    carries = args.gradient_accumulation_steps > 1 or args.adversarial in ("fgm", "freelb")
    both = held + busy if carries else max(held, busy)
    return {**parts, "peak": sum(parts.values()) - held - busy + both}


def _make_fake(model: nn.Module) -> None:
    """Put tensors that know their device, without which autocast does nothing, in the place of those of a model."""
    made: dict[int, Any] = {}  # so that tied weights stay tied
    for module in model.modules():
        for group in (module._parameters, module._buffers):
            for name, old in [(name, old) for name, old in group.items() if old is not None]:
                fake = made.get(id(old), torch.empty(old.shape, dtype=old.dtype, device="cpu"))
                is_weight = isinstance(old, nn.Parameter) and id(old) not in made
                group[name] = made[id(old)] = nn.Parameter(fake, old.requires_grad) if is_weight else fake


def _meta_model(recipe: Recipe, args: InterpolationConfig) -> Any:
    task = get_task(recipe.task)
    known = {"revision": recipe.model_revision, "trust_remote_code": recipe.trust_remote_code}
    config = AutoConfig.from_pretrained(recipe.model_name_or_path, **known)
    if (count := task.num_labels(recipe)) is not None:
        config.num_labels = count
    model = getattr(transformers, task.info.auto_class).from_config(config, trust_remote_code=recipe.trust_remote_code)
    if recipe.peft is None:
        return model
    return adapt(model, recipe.peft, task_type=task.info.peft_type, max_steps=max(args.max_steps, 0))


def _activations(model: Any, args: InterpolationConfig, length: int, *, distills: bool) -> int:
    """Return the bytes that one micro-batch keeps for the way back."""
    ids = torch.zeros(args.per_device_train_batch_size, length, dtype=torch.long)
    inner = unwrap_peft(model).train()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        decoder = {"decoder_input_ids": ids} if inner.config.is_encoder_decoder else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(args.bf16)):
            logits = model(input_ids=ids, **decoder).logits
        scores = logits.float().flatten(0, -2)
        return nn.functional.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long)), logits

    weights = [*model.parameters(), *model.buffers()]
    kept, logits = _kept(run, weights)
    if args.gradient_checkpointing:
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        few, _ = _kept(run, weights)
        kept = few + (kept - few) // inner.config.num_hidden_layers
    return kept + (2 + DISTILLED * distills) * 4 * logits.numel()


def _kept(run: Callable[[], tuple[torch.Tensor, torch.Tensor]], weights: Iterable[Any]) -> tuple[int, torch.Tensor]:
    """Return the bytes that autograd keeps of a pass beside the weights, and the scores."""
    own = {each.untyped_storage()._cdata for each in weights}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, logits = run()
        return sum(storage.nbytes() for storage in found.values()), logits


def _size(tensors: Iterable[torch.Tensor | nn.Parameter]) -> int:
    return sum(each.numel() * each.element_size() for each in {id(each): each for each in tensors}.values())


def format_memory(memory: dict[str, int]) -> str:
    """Return the estimate in a line."""
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in memory.items() if size and name != "peak")
    return f"memory of a process, about: {format_size(memory['peak'])} ({parts})"
