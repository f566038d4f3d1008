"""Losses: what an example costs, seen one by one."""

from hashlib import blake2b
from typing import Any

import torch
from torch import nn

IGNORE_INDEX = -100

PAIR, TEXT_BITS = 1 << 62, 32
"""The labels of pairs of an image and a text are at least `PAIR`: above so many bits for the text are those of the
image. Lesser labels are those of classes."""

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
    logits = _found(outputs, "logits")
    if logits is None:
        log_probs, mask = _found(outputs, "log_probs"), _found(outputs, "label_mask")
        if log_probs is None or mask is None:
            return None
        return -log_probs.detach().float().sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # 0 where there is no label
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


def pair_label(image: bytes, text: str) -> int:
    """Return the label by which a pair is told from others, and the same image or text in another pair is known.

    >>> first, second = pair_label(b"...", "a cat"), pair_label(b"...", "a dog")
    >>> first == second, first >> 32 == second >> 32
    (False, True)
    """
    digests = (blake2b(each, digest_size=TEXT_BITS // 8).digest() for each in (image, text.encode()))
    of_image, of_text = (int.from_bytes(digest, "big") for digest in digests)
    return PAIR | of_image >> 2 << TEXT_BITS | of_text


def have_same(labels: torch.Tensor) -> torch.Tensor:
    """Return which pairs have the same image or the same text: (num_pairs, num_pairs), from their labels."""
    images, texts = labels >> TEXT_BITS, labels & ((1 << TEXT_BITS) - 1)
    return (images[:, None] == images) | (texts[:, None] == texts)


class ContrastiveLoss:
    """The loss of a model of images and texts, such as CLIP, as `Trainer` takes it for `compute_loss_func`.

    A pair's loss is the mean of two cross-entropies: of its text among all texts of the micro-batch, given its image,
    and of its image among all images, given its text (Radford et al. 2021). SigLIP's judges each image with each text
    (Zhai et al. 2023). The mean over pairs is what the model returns for `return_loss=True`, but that what has the same
    image or text as a pair is none of its negatives. The loss of an image with a class is the cross-entropy over the
    texts of the classes.

    Args:
        is_sigmoid: whether it is SigLIP's.
    """

    def __init__(self, *, is_sigmoid: bool = False) -> None:
        self.is_sigmoid = is_sigmoid

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return a micro-batch's part of the mean over so many examples, by default its own."""
        losses = self._losses(outputs, labels)
        return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)

    def per_example(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example of a batch, for reports: (num_examples,)."""
        return self._losses(outputs, labels).detach()

    def _losses(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs["logits_per_image"]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if labels[0] < PAIR:
            return nn.functional.cross_entropy(logits, labels, reduction="none")
        if logits.shape != (len(labels), len(labels)):
            raise ValueError("Images with texts need one process for each GPU. Start with `accelerate launch`.")
        own = torch.eye(len(labels), dtype=torch.bool, device=logits.device)
        others = have_same(labels) & ~own
        if self.is_sigmoid:
            losses = -nn.functional.logsigmoid(torch.where(own, logits, -logits)).masked_fill(others, 0.0)
            return (losses.sum(dim=0) + losses.sum(dim=1)) / 2
        logits = logits.masked_fill(others, -torch.inf)
        return -(logits.log_softmax(dim=0) + logits.log_softmax(dim=1)).diagonal() / 2


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
