"""Losses: what an example costs, seen one by one."""

from typing import Any

import torch
from torch import nn

IGNORE_INDEX = -100

SHIFTING_HEADS = ("BertLMHeadModel", "CTRLLMHeadModel", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel")
"""Causal language models of transformers whose names do not tell `Trainer` that they shift the labels."""


def per_example_loss(outputs: Any, labels: torch.Tensor, *, shift_labels: bool) -> torch.Tensor | None:
    """Return the loss of each example of a batch, for reports; the model's own loss is what is trained.

    Args:
        outputs: a model's outputs with `logits`: (batch, classes), (batch, length, classes), or (batch, 1) and (batch,)
            for regression; or, from a model in TRL's `SFTTrainer`, with the `log_probs` of the labels and a
            `label_mask`, both (batch, predictions), and no logits.
        labels: class ids (batch,) or (batch, length) with −100 where there is none, multi-hot (batch, classes), or
            numbers for regression.
        shift_labels: whether position i predicts label i + 1, as in causal language models.

    Returns:
        a float32 tensor (batch,): cross-entropy in nats (a sequence's mean over its labels), binary cross-entropy (mean
        over classes), or squared error; `None` where the shapes tell of another kind of model.

    >>> from types import SimpleNamespace
    >>> logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> per_example_loss(SimpleNamespace(logits=logits), torch.tensor([1, 0]), shift_labels=False)
    tensor([0.6931, 0.3133])
    """
    logits, log_probs, mask = (_found(outputs, name) for name in ("logits", "log_probs", "label_mask"))
    if log_probs is not None and mask is not None:
        return -log_probs.detach().float().sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # 0 where there is no label
    if logits is None:
        return None
    logits = logits.detach().float()
    if labels.is_floating_point():
        return _float_label_loss(logits, labels.float())
    if logits.shape[:-1] != labels.shape:
        return None
    if logits.dim() == 2:
        return nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX)
    if logits.dim() == 3:
        if shift_labels:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE_INDEX
        )
        return losses.sum(dim=1) / labels.ne(IGNORE_INDEX).sum(dim=1).clamp(min=1)
    return None


def _found(outputs: Any, name: str) -> torch.Tensor | None:
    found = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    return found if isinstance(found, torch.Tensor) else None


def _float_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    if logits.shape == labels.shape and labels.dim() == 2 and labels.shape[1] > 1:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    if logits.numel() == labels.numel() == labels.shape[0]:
        return (logits.reshape(-1) - labels.reshape(-1)).square()
    return None


def is_ctc(model: nn.Module) -> bool:
    """Whether a model is trained by CTC, so that none of its predictions belongs to one label."""
    return type(model).__name__.endswith("ForCTC")


def head_shifts_labels(model: nn.Module) -> bool:
    """Whether position i of a model predicts label i + 1, as in causal language models."""
    if type(model).__name__ in SHIFTING_HEADS:
        return True
    # loads scipy, and a plan is to be fast
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss and not is_encoder_decoder


def count_labels(labels: torch.Tensor, *, shift_labels: bool, ignored: int | None = None) -> torch.Tensor:
    """Return how many labels each example has, over which its loss is a mean: (num_examples,), float32.

    −100 does not count, nor does `ignored`.

    >>> count_labels(torch.tensor([[5, 5, -100], [5, 5, 5]]), shift_labels=True)
    tensor([1., 2.])
    >>> count_labels(torch.tensor([0, -100]), shift_labels=False)
    tensor([1., 0.])
    """
    if labels.is_floating_point():
        return torch.ones(len(labels), device=labels.device)
    counted = labels[:, 1:] if shift_labels and labels.dim() == 2 else labels
    counts = counted.ne(IGNORE_INDEX) if ignored is None else counted.ne(IGNORE_INDEX) & counted.ne(ignored)
    return counts.reshape(len(labels), -1).sum(dim=1).float()
