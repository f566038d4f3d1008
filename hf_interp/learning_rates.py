"""How much of a run's learning is from the domain: α weighted by the learning rate.

Steps at a low learning rate change little. Where α rises while the learning rate decays, the domain's examples come
when they count least: with a linear decay to 0, a linear rise from 0 to 1 has a mean of 1/2 but a weighted mean of 1/3.
"""

import math

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from hf_interp.plan import MixturePlan

MOST_STEPS = 2000
"""That are looked at: of a longer run so many, evenly spaced."""


def rate_weighted_alpha(plan: MixturePlan, args: TrainingArguments) -> float | None:
    """The mean of α over the steps of a plan, each weighted by its learning rate.

    Args:
        plan: of the run; what a run that goes on has read before is left out.
        args: with the learning rate's schedule.

    Returns:
        the weighted mean; `None` where the rates are not known beforehand (`reduce_lr_on_plateau`), or all are 0.
    """
    steps = np.unique(np.linspace(plan.start_step, plan.max_steps - 1, MOST_STEPS).round().astype(int))
    rates = learning_rate_factors(args, steps.tolist(), plan.max_steps)
    if rates is None or not sum(rates):
        return None
    alphas = [plan.alpha(step) for step in steps.tolist()]
    return math.fsum(rate * alpha for rate, alpha in zip(rates, alphas, strict=True)) / math.fsum(rates)


def learning_rate_factors(args: TrainingArguments, steps: list[int], max_steps: int) -> list[float] | None:
    """By what the learning rate is multiplied at some steps, as the host's schedule has it; `None` if it depends on
    training.

    Args:
        args: with `lr_scheduler_type`, `lr_scheduler_kwargs` and `warmup_steps`.
        steps: from 0 on.
        max_steps: of the run.

    Raises:
        ValueError: for arguments that the schedule does not take.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    kwargs = dict(args.lr_scheduler_kwargs or {})
    try:
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(max_steps),
            num_training_steps=max_steps,
            scheduler_specific_kwargs=kwargs,
        )
    except TypeError as error:
        raise ValueError(
            f"`lr_scheduler_kwargs` ({kwargs}) do not suit `lr_scheduler_type` ({args.lr_scheduler_type.value}): "
            f"{error}. See its function in `transformers.optimization`."
        ) from error
    if not isinstance(scheduler, LambdaLR):
        return None
    return [float(scheduler.lr_lambdas[0](step)) for step in steps]
