"""What the arguments of a run make of its corpora: the plan of the mixture, and the controller of an α that adapts."""

import copy
from collections.abc import Sequence

from transformers import TrainingArguments

from hf_interp.mixture.controllers import AlphaController
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import DEFAULT_ALPHA, AlphaSchedule, constant
from hf_interp.training.config import InterpolationConfig


def plan_mixture(
    corpora: Sequence[Corpus],
    args: TrainingArguments,
    *,
    batch_size: int,
    alpha_schedule: AlphaSchedule | None = None,
    is_adaptive: bool = False,
) -> MixturePlan:
    """The plan of a run.

    Args:
        corpora: what is mixed.
        args: `max_steps`, the seed of the data and, in an `InterpolationConfig`, the schedule; with plain
            `TrainingArguments` α is 0.5 throughout.
        batch_size: the global batch.
        alpha_schedule: a schedule that wins over that of `args`.
        is_adaptive: leave α open where a controller will decide it.

    Raises:
        ValueError: if `max_steps` is not set, or the mixture cannot be planned.
    """
    if args.max_steps <= 0:
        raise ValueError(
            "A mixture needs `max_steps`, because α is a function of step / (max_steps - 1); got "
            f"{args.max_steps}. Set it to (number of examples to train on) / (global batch size)."
        )
    if alpha_schedule is None:
        of_args = isinstance(args, InterpolationConfig)
        alpha_schedule = args.build_alpha_schedule() if of_args else constant(DEFAULT_ALPHA)
    unit = args.mixture_unit if isinstance(args, InterpolationConfig) else "examples"
    return MixturePlan(
        [corpus.planned(unit) for corpus in corpora],
        alpha_schedule=alpha_schedule,
        batch_size=batch_size,
        max_steps=args.max_steps,
        seed=args.seed if args.data_seed is None else args.data_seed,
        unit=unit,
        num_committed=sum(update_steps_and_lag(args)) if is_adaptive else None,
    )


def make_controller(
    args: TrainingArguments, given: AlphaController | None, *, num_workers: int
) -> AlphaController | None:
    """A new controller for a new run, checked against what the loader fetches ahead.

    Args:
        args: of the run; they name the controller if none is given.
        given: a controller to begin with, which stays as it is.
        num_workers: of the loader.

    Raises:
        ValueError: if α would be decided for batches that are on their way.
    """
    controller = copy.deepcopy(given)
    if controller is None and isinstance(args, InterpolationConfig):
        controller = args.build_alpha_controller()
    if controller is None:
        return None
    ahead = num_workers * (args.dataloader_prefetch_factor or 2)
    needed = ahead // args.gradient_accumulation_steps + 1
    _, lag = update_steps_and_lag(args)
    if lag < needed:
        raise ValueError(
            f"`alpha_update_lag` must be at least {needed}, got {lag}: {num_workers} loader workers fetch {ahead} "
            "batches ahead, whose α must be fixed. Raise it, or use fewer workers or a smaller "
            "`dataloader_prefetch_factor`."
        )
    return controller


def update_steps_and_lag(args: TrainingArguments) -> tuple[int, int]:
    """Steps between decisions on α, and from a decision until it is in force."""
    if isinstance(args, InterpolationConfig):
        return args.alpha_update_steps, args.alpha_update_lag
    return InterpolationConfig.alpha_update_steps, InterpolationConfig.alpha_update_lag
