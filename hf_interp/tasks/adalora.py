"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) in a `Trainer`: its ranks, its penalty, and exact resuming.

PEFT leaves to the training loop that importance scores are updated after each step and ranks are taken away by them.
A `Trainer` does not do so, and without it AdaLoRA is a LoRA of too high a rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SENSITIVITY, UNCERTAINTY = "adalora_sensitivity", "adalora_uncertainty"
"""The averages behind importance scores, as they are called in the optimizer's state of a parameter."""


def prepare_adalora(model: Any) -> None:
    """Keep the orthogonality penalty out of the loss that a PEFT model returns; `AdaLoraCallback` sees to it instead.

    PEFT adds it in evaluation too, and to each micro-batch, however many of them make a step.
    """

    def drop(tuner: Any, inputs: Any) -> None:
        config = tuner.peft_config[tuner.trainable_adapter_name]
        config._orth_reg_weight, config.orth_reg_weight = config.orth_reg_weight, 0

    def restore(tuner: Any, inputs: Any, outputs: Any) -> None:
        config = tuner.peft_config[tuner.trainable_adapter_name]
        config.orth_reg_weight = config._orth_reg_weight

    model.base_model.register_forward_pre_hook(drop)
    model.base_model.register_forward_hook(restore, always_call=True)


def orthogonality(model: Any) -> torch.Tensor:
    """Return the mean of ‖PᵀP − I‖ and ‖QQᵀ − I‖ (Frobenius) over all factors P and Q of ΔW = PΛQ (equation 4)."""
    norms = []
    for name, factor in _factors(model, "AB"):
        square = factor @ factor.T if ".lora_A." in name else factor.T @ factor
        norms.append(torch.linalg.matrix_norm(square - torch.eye(len(square)).to(square)))
    return torch.stack(norms).mean()


class AdaLoraCallback(TrainerCallback):
    """Takes ranks away as AdaLoRA's schedule says, and adds the gradient of its penalty, once each optimizer step.

    Importance scores are part of the optimizer's state: they are saved with it and come back with it, so that a run
    that is resumed ends with the ranks and weights of an uninterrupted one. The adapter is saved at its first rank,
    with zeros where ranks were taken away: these may come back before the last decision, and PEFT cannot go on from
    an adapter that was saved without them.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the scores of a checkpoint."""
        model = kwargs["model"]
        config, allocator = _config(model), model.base_model.rankallocator
        if config.total_step != state.max_steps:
            raise ValueError(
                f"AdaLoRA's `total_step` must be the number of steps of the run, {state.max_steps}, got "
                f"{config.total_step}. Make them equal, or use the preset without `total_step`."
            )
        if args.fp16 and not args.max_grad_norm:
            raise ValueError(
                f"AdaLoRA with `fp16` needs a `max_grad_norm` above 0, got {args.max_grad_norm}: without it gradients "
                "are still scaled when they are read. Set it, or use `bf16`."
            )
        allocator.reset_ipt()
        for name, parameter in _factors(model):
            saved = kwargs["optimizer"].state[parameter]
            if SENSITIVITY in saved:
                allocator.ipt[name] = torch.zeros_like(parameter)  # or PEFT would begin anew
                allocator.exp_avg_ipt[name], allocator.exp_avg_unc[name] = saved[SENSITIVITY], saved[UNCERTAINTY]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradient of the penalty, and note which ranks there are."""
        model = kwargs["model"]
        weight = _config(model).orth_reg_weight
        if weight:
            factors = [factor for _, factor in _factors(model, "AB")]
            # not `backward`, which might start another reduction over processes
            gradients = torch.autograd.grad(weight * orthogonality(model), factors)
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
        self._kept = {name: values.detach() != 0 for name, values in _factors(model, "E")}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update scores and ranks; gradients are still there."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        config, allocator = _config(model), model.base_model.rankallocator
        step = state.global_step + 1  # steps taken: `Trainer` counts this one later
        last = config.total_step - config.tfinal
        if step < last and optimizer.step_was_skipped:
            return  # gradients have overflown
        # The last decision needs scores, which a checkpoint without the optimizer's state does not bring.
        if step < last or (step == last and allocator.exp_avg_ipt):
            model.base_model.update_and_allocate(step)
            config.rank_pattern = None  # by which PEFT would leave out of a checkpoint what is still trained
        else:
            for name, values in _factors(model, "E"):
                values.detach().mul_(self._kept[name])
        for name, parameter in _factors(model):
            saved = optimizer.state[parameter]
            if name in allocator.exp_avg_ipt:
                saved[SENSITIVITY], saved[UNCERTAINTY] = allocator.exp_avg_ipt[name], allocator.exp_avg_unc[name]
            else:
                saved.pop(SENSITIVITY, None)
                saved.pop(UNCERTAINTY, None)


def _config(model: Any) -> Any:
    return model.peft_config[model.base_model.trainable_adapter_name]


def _factors(model: Any, kinds: str = "ABE") -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A, E and B of all layers, or some of these, by the names that PEFT's allocator has for them."""
    ends = tuple(f".lora_{kind}.{model.base_model.trainable_adapter_name}" for kind in kinds)
    return (pair for pair in model.base_model.model.named_parameters() if pair[0].endswith(ends))
