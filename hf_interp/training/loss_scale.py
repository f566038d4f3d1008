"""The scale of the loss: a micro-batch's part of the global batch's mean, whatever the head of a model returns.

`Trainer` takes a loss for normalised over the whole accumulated batch as soon as the model's forward has `**kwargs`.
Many heads do not keep to that (huggingface/transformers#47688), and the loss would depend on how a global batch is
split into micro-batches. So no head is told of the global batch here: each returns the mean over the labels of its
micro-batch, which is weighted with their share of all labels. What a head adds that is a mean over examples is weighted
with the share of the examples: the second label of BERT's pretraining, what balances the load of experts, and CTC.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_interp.losses.per_example import IGNORE_INDEX, count_labels, is_ctc

SECOND_LABELS = {"next_sentence_label": "seq_relationship_logits", "sentence_order_label": "sop_logits"}
"""Labels of examples beside those of tokens, and the outputs that predict them."""
ROUTER_LOSSES = {
    "aux_loss": ("router_aux_loss_coef", "aux_loss_coef"),
    "encoder_aux_loss": ("router_aux_loss_coef",),
    "decoder_aux_loss": ("router_aux_loss_coef",),
    "encoder_z_loss": ("router_z_loss_coef",),
    "decoder_z_loss": ("router_z_loss_coef",),
}
"""Outputs of mixtures of experts that are added to the loss, and what their weights may be called."""
ADDED = {*SECOND_LABELS.values(), *ROUTER_LOSSES}


def part_of_batch(
    loss: torch.Tensor, counts: torch.Tensor, totals: torch.Tensor, added: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a micro-batch's part of the global batch's loss.

    Args:
        loss: what the model returned; of a micro-batch without a label it counts as 0.
        counts, totals: labels and examples of the micro-batch and of the global batch, (2,) each.
        added: what of the loss is a mean over examples.
    """
    of_labels, of_examples = counts / totals.clamp(min=1)
    over_labels = loss if added is None else loss - added
    part = torch.where(counts[0] > 0, over_labels, torch.zeros_like(over_labels)) * of_labels
    return part if added is None else part + added * of_examples


def count_batch(inputs: Mapping[str, Any], *, shift_labels: bool, config: Any) -> torch.Tensor | None:
    """Return the labels and examples of a micro-batch, (2,), int64; `None` if it has no tensor of labels.

    The configuration of the model may name a further label that does not count, as segmentation has it.
    """
    targets = counted_labels(inputs, shift_labels=shift_labels)
    if targets is None:
        return None
    ignored = getattr(config, "semantic_loss_ignore_index", None) if targets.dim() > 2 else None
    if targets.is_floating_point() or ignored is not None:
        found = count_labels(targets, shift_labels=False, ignored=ignored).sum().long()
    else:
        found = targets.ne(IGNORE_INDEX).sum()
    return torch.stack([found, torch.full_like(found, len(targets))])


def counted_labels(inputs: Mapping[str, Any], *, shift_labels: bool) -> torch.Tensor | None:
    """Return the labels of a micro-batch that a model predicts; `None` if there is no tensor of them."""
    labels, shifted = inputs.get("labels"), inputs.get("shift_labels")
    if not isinstance(labels, torch.Tensor) or labels.dim() == 0:
        return None
    if shifted is not None:
        return shifted  # type: ignore[no-any-return]
    return labels[:, 1:] if shift_labels and labels.dim() == 2 and not labels.is_floating_point() else labels


def zero_without_labels(loss: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return `part_of_batch` of a micro-batch that is the whole global batch, in fewer operations: the factor is 1."""
    wide = loss.to(torch.promote_types(loss.dtype, torch.get_default_dtype()))
    if targets.is_floating_point() or (targets.is_cpu and targets.ne(IGNORE_INDEX).any()):  # a GPU would be waited for
        return wide
    return wide.masked_fill(targets.eq(IGNORE_INDEX).all(), 0)


def mean_over_examples(inputs: Mapping[str, Any], outputs: Any, model: nn.Module) -> torch.Tensor | None:
    """Return what of a model's loss is a mean over examples and not over labels; `None` if nothing is."""
    if not isinstance(outputs, Mapping):
        return None
    if is_ctc(model):  # each example's mean over its labels, and the mean of those
        return outputs["loss"]  # type: ignore[no-any-return]
    if ADDED.isdisjoint(outputs):
        return None
    found = [
        nn.functional.cross_entropy(outputs[logits].flatten(0, -2), inputs[label].flatten())
        for label, logits in SECOND_LABELS.items()
        if inputs.get(label) is not None and outputs.get(logits) is not None
    ]
    for name, weights in ROUTER_LOSSES.items():
        if isinstance(outputs.get(name), torch.Tensor):
            found.append(outputs[name] * _weight(model, weights))
    return torch.stack([each.to(found[0].device) for each in found]).sum() if found else None


def _weight(model: Any, names: Sequence[str]) -> float:
    """Return a weight that a model or its configuration has under one of these names; 0 if neither knows it."""
    config = getattr(model, "config", None)
    owners = (model, config, getattr(config, "text_config", None))
    found = (getattr(owner, name, None) for owner in owners for name in names)
    return next((float(weight) for weight in found if isinstance(weight, (int, float))), 0.0)
