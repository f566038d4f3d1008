"""A loss that wrong labels move less, for the examples of the domain: generalised cross entropy.

With p the probability that the model gives the label, L_q = (1 − p^q) / q (Zhang & Sabuncu 2018, arXiv 1805.07836).
For q → 0 it is the cross entropy −ln p, and at q = 1 it is 1 − p, half the absolute error summed over classes. Its
gradient is p^q times that of the cross entropy, so that a label which the model holds for unlikely weighs little.
"""

from typing import Any

import torch
from torch import nn

from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.losses.ref_model import base_of
from hf_interp.training.config import InterpolationConfig

HEADS = ("ForSequenceClassification", "ForTokenClassification")
"""How the names of the models end whose labels are ids of classes, one for each row of logits."""


def generalised_cross_entropy(cross_entropy: torch.Tensor, q: float) -> torch.Tensor:
    """(1 − p^q) / q, from the cross entropy −ln p.

    Written as −expm1(−q·(−ln p)) / q, it neither underflows for a small p nor cancels for a small q.

    Args:
        cross_entropy: −ln p in nats, of any shape.
        q: in (0, 1].

    >>> generalised_cross_entropy(-torch.tensor([1.0, 0.5, 0.0]).log(), q=1.0)
    tensor([-0.0000, 0.5000, 1.0000])
    """
    return -torch.expm1(-q * cross_entropy) / q


class DomainLoss:
    """A trainer's `compute_loss_func`: generalised cross entropy for examples of the domain, cross entropy for others.

    Args:
        args: with `gce_q`.

    Attributes:
        is_domain: which examples of the batch that comes next are of the domain: bool, (batch,); `None` for none, as in
            evaluation.
    """

    def __init__(self, args: InterpolationConfig) -> None:
        self.args = args
        self.is_domain: torch.Tensor | None = None

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The sum over labels divided by `num_items_in_batch`, or without that the mean over labels.

        Args:
            outputs: of the model, with logits (batch, classes) or (batch, length, classes).
            labels: class ids (batch,) or (batch, length), −100 where there is none.
            num_items_in_batch: labels in the whole global batch.

        Raises:
            ValueError: if the labels are no class ids, one for each row of logits.
        """
        logits: torch.Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
            raise ValueError(
                f'`domain_loss="gce"` needs one class id for each row of logits, got {labels.dtype} labels of shape '
                f"{tuple(labels.shape)} for logits of shape {tuple(logits.shape)}. Leave `domain_loss` out for other "
                "labels."
            )
        flat = logits.float().flatten(0, -2), labels.flatten()
        losses = nn.functional.cross_entropy(*flat, reduction="none", ignore_index=IGNORE_INDEX).view_as(labels)
        if self.is_domain is not None:
            chosen = self.is_domain.reshape(-1, *[1] * (labels.dim() - 1))
            losses = torch.where(chosen, generalised_cross_entropy(losses, self.args.gce_q), losses)
        counted = labels.ne(IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / counted


def make_domain_loss(trainer: Any, *, has_mixture: bool) -> DomainLoss | None:
    """The loss that a trainer's `args.domain_loss` asks for; `None` for that of the model.

    Raises:
        ValueError: if there is no mixture, the model's labels are no class ids, or something else sets the loss too.
    """
    args = trainer.args
    if getattr(args, "domain_loss", None) is None:
        return None
    if not has_mixture:
        raise ValueError(
            '`domain_loss="gce"` needs a mixture as `train_dataset`, which tells what is of the domain, got an '
            'ordinary dataset. Give {"general": …, "domain": …}; with `alpha_start=1.0` all examples are of the domain.'
        )
    inner = base_of(trainer.model)
    config = getattr(inner, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem is None and getattr(config, "num_labels", 2) == 1 and type(inner).__name__.endswith(HEADS[0]):
        problem = "regression"
    check_head(type(inner).__name__, problem)
    others = {
        "`compute_loss_func`": trainer.compute_loss_func is not None,
        "`label_smoothing_factor`": args.label_smoothing_factor != 0,
        "`objectives`": bool(trainer._objectives),
    }
    for name, is_given in others.items():
        if is_given:
            raise ValueError(
                f'`domain_loss="gce"` and {name} would both set the loss of the same examples. Leave one of them out.'
            )
    if args.n_gpu > 1:
        raise ValueError(
            f'`domain_loss="gce"` needs one process for each GPU, got one for {args.n_gpu}. Start with `accelerate '
            "launch`."
        )
    return DomainLoss(args)


def check_head(name: str, problem_type: str | None) -> None:
    """Refuse models whose labels are not class ids, one for each row of logits.

    Args:
        name: of the model's class, or of its auto class.
        problem_type: of sequence classification; `None` for single labels.

    Raises:
        ValueError: naming the model or its problem.
    """
    if not name.endswith(HEADS):
        raise ValueError(
            f'`domain_loss="gce"` needs a model for sequence or token classification, got {name}. Leave `domain_loss` '
            "out."
        )
    if problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f'`domain_loss="gce"` needs one class for each example, got {problem_type}. Leave `domain_loss` out.'
        )
