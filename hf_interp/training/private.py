"""Training with differential privacy for the rows of domain corpora (DP-SGD, Abadi et al. 2016, arXiv 1607.00133).

The gradient of each domain example is taken by itself, clipped to norm C and added up; once a step, Gaussian noise of
standard deviation σC joins the sum. General data is public: its gradient is added as it is. An example counts as one of
the batch, whatever its length.

The guarantee is for replacing one row of a domain corpus by another, which moves the sum of a step by at most 2C for
each time that the row is read there. The plan says when each row is read, whatever the rows hold, and between the steps
that read a row others do not depend on it but through what was told before. So a run is an adaptive composition of one
Gaussian mechanism for each reading of the row, which is μ-GDP with μ = 2·√(Σ over steps of its readings²)/σ (Dong et
al. 2019, arXiv 1905.02383). No amplification by sampling is claimed: who is read when is not secret.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from torch import nn

from hf_interp.mixture.collators import PackedCollator
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.training.machines import gather

if TYPE_CHECKING:  # a plan, which tells the noise, waits for no trainer
    from transformers import Trainer

NORMS = (nn.modules.batchnorm._BatchNorm,)
BLOCK = 1000  # steps whose readings are counted at once


def delta_of(epsilon: float, mu: float) -> float:
    """Return the least δ for which what is μ-GDP is (ε, δ)-private (Balle and Wang 2018, Dong et al. 2019).

    >>> round(delta_of(1.0, 1.0), 4)
    0.1269
    """
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def mu_of(epsilon: float, delta: float) -> float:
    """Return the greatest μ for which what is μ-GDP is (ε, δ)-private."""
    return float(brentq(lambda mu: delta_of(epsilon, mu) - delta, 1e-6, 1e3))


def most_read(plan: MixturePlan) -> int:
    """Return the greatest sum over steps of the squared number of times that a step reads one row of the domain."""
    domain = [index for index, corpus in enumerate(plan.corpora) if corpus.side == "domain"]
    squares = [np.zeros(corpus.num_examples or 0, dtype=np.int64) for corpus in plan.corpora]
    for begin in range(0, plan.max_steps, BLOCK):
        slots = np.arange(begin * plan.batch_size, min(begin + BLOCK, plan.max_steps) * plan.batch_size)
        draw = plan.locate(slots)
        for index in domain:
            own = draw.corpus == index
            readings, counts = np.unique([slots[own] // plan.batch_size, draw.example[own]], axis=1, return_counts=True)
            np.add.at(squares[index], readings[1], counts**2)
    return max((int(squares[index].max(initial=0)) for index in domain), default=0)


def noise_multiplier(plan: MixturePlan, epsilon: float, delta: float) -> float:
    """Return the σ that makes a run of a plan (ε, δ)-private."""
    return 2 * math.sqrt(most_read(plan)) / mu_of(epsilon, delta)


def format_private(plan: MixturePlan, args: Any) -> list[str]:
    """Return a sentence on the guarantee of a plan, if one is asked for, and one on what is weak about it."""
    if args.dp_epsilon is None:
        return []
    rows = sum(corpus.num_examples or 0 for corpus in plan.corpora if corpus.side == "domain")
    weak = (
        f"`dp_delta` is {args.dp_delta:g}, and one over the {rows:,} domain rows is {1 / rows:.2g}: what publishes one "
        f"whole row keeps that guarantee too. Ask for a tenth of one over the rows, or less"
    )
    return [
        *([weak] if args.dp_delta * rows >= 1 else []),
        f"differential privacy: ε = {args.dp_epsilon:g}, δ = {args.dp_delta:g} for replacing one domain row, by noise "
        f"of {noise_multiplier(plan, args.dp_epsilon, args.dp_delta):.4g} times `dp_max_grad_norm`",
    ]


class PrivateGradients:
    """The gradient of a step, private for domain rows.

    Args:
        plan: what is read.
        sigma: standard deviation of the noise, in units of `clip`.
        clip: the greatest norm of the gradient of one domain example.
        key: decides the noise together with the step; whoever knows it can take the noise off again.
    """

    def __init__(self, plan: MixturePlan, sigma: float, clip: float, key: int) -> None:
        self.plan, self.sigma, self.clip, self.key = plan, sigma, clip, key

    def step(self, trainer: Any, model: nn.Module, inputs: Mapping[str, Any], is_general: torch.Tensor) -> torch.Tensor:
        """Add the gradient of a micro-batch to that of the step, and return its general examples' part of the loss.

        The loss of the domain is told nowhere: it would tell of its rows. Processes add up what they have clipped, and
        each draws the same noise for the sum. DDP, which would take means, is left out.
        """
        model.train()
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        inputs, total = trainer._prepare_inputs(inputs), torch.zeros((), device=trainer.args.device)
        for place in (~is_general).nonzero():
            self._add_clipped(trainer, model, _rows(inputs, place, len(is_general)))
        if is_general.any():
            loss = _loss(trainer, model, _rows(inputs, is_general.nonzero()[:, 0], len(is_general)))
            total = loss * (int(is_general.sum()) / self.plan.batch_size)
            torch.autograd.backward(total)
        if trainer.accelerator.sync_gradients:
            _add_up(trainer, model)
            if self._reads_domain(trainer.state.global_step):
                self._add_noise(model, trainer.state.global_step)
        return total.detach() * trainer.args.world_size  # of which `Trainer` takes the mean over processes

    def _reads_domain(self, step: int) -> bool:
        """Whether any process reads domain examples at a step."""
        draw = self.plan.locate(np.arange(step * self.plan.batch_size, (step + 1) * self.plan.batch_size))
        return any(self.plan.corpora[index].side == "domain" for index in np.unique(draw.corpus))

    def _add_clipped(self, trainer: Any, model: nn.Module, example: dict[str, Any]) -> None:
        """Add the gradient of one example, clipped, to those that are there."""
        trained = _trained(model)
        before = [parameter.grad for parameter in trained]
        model.zero_grad()
        torch.autograd.backward(_loss(trainer, model, example))
        norms = [parameter.grad.float().norm() for parameter in trained if parameter.grad is not None]
        norm = float(torch.stack(norms).norm())
        # an example without a label has no loss, and so no part in the sum
        factor = min(1.0, self.clip / max(norm, 1e-12)) / self.plan.batch_size if math.isfinite(norm) else 0.0
        for parameter, earlier in zip(trained, before, strict=True):
            own = parameter.grad
            if own is None or not factor:
                parameter.grad = earlier
            else:
                parameter.grad = own * factor if earlier is None else earlier + own * factor

    def _add_noise(self, model: nn.Module, step: int) -> None:
        """Add the noise of a step to all that is trained: which parameters have a gradient may tell of a row."""
        seed = int(np.random.SeedSequence([self.key, step]).generate_state(1, np.uint64)[0]) >> 1
        generator = torch.Generator().manual_seed(seed)
        scale = self.sigma * self.clip / self.plan.batch_size
        for parameter in _trained(model):
            noise = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter)
            parameter.grad = noise if parameter.grad is None else parameter.grad + noise


def _add_up(trainer: Any, model: nn.Module) -> None:
    """Add up the gradients of all processes; what none of them has a gradient of is left without."""
    if trainer.args.world_size == 1:
        return
    trained = _trained(model)
    is_there = torch.tensor([parameter.grad is not None for parameter in trained], device=trainer.args.device).int()
    for parameter, count in zip(trained, trainer.accelerator.reduce(is_there, "sum").tolist(), strict=True):
        if count:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = trainer.accelerator.reduce(own, "sum")


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _loss(trainer: Any, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the loss of examples for themselves: a mean over their labels that knows no others."""
    with trainer.compute_loss_context_manager():
        loss: torch.Tensor = trainer.compute_loss(model, inputs)
    return loss


def _rows(inputs: Mapping[str, Any], places: torch.Tensor, size: int) -> dict[str, Any]:
    """Return some examples of a micro-batch of a size."""
    return {
        name: value[places.to(value.device)] if isinstance(value, torch.Tensor) and len(value) == size else value
        for name, value in inputs.items()
    }


def prepare_private(
    trainer: "Trainer", plan: MixturePlan, corpora: Sequence[Corpus], mixture: Mapping[str, Any] | None, *, is_own: bool
) -> PrivateGradients | None:
    """Return what makes the gradients of a run private, if its arguments ask for that.

    Args:
        trainer: with its model.
        plan, corpora: what it reads.
        mixture: what the checkpoint that is resumed says of the mixture, if there is one.
        is_own: whether the trainer computes its loss as those of transformers do.

    Raises:
        ValueError: for what the guarantee does not hold for.
    """
    args: Any = trainer.args
    if getattr(args, "dp_epsilon", None) is None:
        return None
    _check_run(trainer, plan, corpora, is_own=is_own)
    key = gather(secrets.randbits(63))[0]
    if mixture is not None:
        if "noise_key" not in mixture or plan.previous is not None:
            raise ValueError(
                "`dp_epsilon` holds for one run: a checkpoint of a run without it, or with other settings of what is "
                "read, cannot be resumed. Begin anew."
            )
        key = mixture["noise_key"]
    sigma = noise_multiplier(plan, args.dp_epsilon, args.dp_delta)
    return PrivateGradients(plan, sigma, args.dp_max_grad_norm, key)


def unfit_settings(args: Any) -> dict[str, bool]:
    """Return what `dp_epsilon` needs of an `InterpolationConfig`, in words, and whether it is not so."""
    return {
        "`fp16: false`, whose scale of the loss depends on the data": args.fp16,
        "no controller of α, which looks at the data": args.alpha_controller is not None,
        "`auto_find_batch_size: false`, which would read rows once more": args.auto_find_batch_size,
        "no `group_by_length`, since lengths are the data's": args.train_sampling_strategy == "group_by_length",
        "no `anchor: distill` and no `log_loss_gap`": args.anchor == "distill" or args.log_loss_gap,
        "`adversarial` to be left out": args.adversarial is not None,
    }


def _check_run(trainer: "Trainer", plan: MixturePlan, corpora: Sequence[Corpus], *, is_own: bool) -> None:
    """Refuse a run whose domain rows are mixed with others, or decide what is read."""
    from hf_interp.losses.anchor import check_strategy  # which brings a trainer

    check_strategy(trainer, "`dp_epsilon`", with_deepspeed=False)
    args: Any = trainer.args
    mixed = next((name for name, part in trainer.model.named_modules() if isinstance(part, NORMS)), None)
    domain = [corpus for corpus in corpora if corpus.side == "domain"]
    reasons = {
        **unfit_settings(args),
        "an α that does not depend on the data": plan.is_adaptive,
        "`mixture_unit: examples`, since lengths are the data's": plan.unit != "examples",
        "corpora that train the task itself": any(corpus.objective is not None for corpus in corpora),
        "domain corpora that are no streams": any(corpus.is_stream for corpus in domain),
        "examples of one row, so `packing: false`": isinstance(trainer.data_collator, PackedCollator),
        "a loss of each row by itself, which `Trainer` computes": not is_own or trainer.compute_loss_func is not None,
        "a model that looks at examples one by one, and so no batch norm"
        + (f" (it has {mixed!r})" if mixed else ""): mixed is not None,
    }
    reason = next((words for words, is_broken in reasons.items() if is_broken), None)
    if reason is not None:
        raise ValueError(f"`dp_epsilon` needs {reason}.")
