"""The scale of the loss: a micro-batch's part of the global batch's mean, whatever the head of a model returns.

`Trainer` takes a loss for normalised over the whole accumulated batch as soon as the model's forward has `**kwargs`.
Two kinds of heads do not keep to that, and the loss would depend on how a global batch is split into micro-batches:

- Heads with one label an example (BERT's, for one) ignore `num_items_in_batch` and return the mean of the micro-batch,
  which makes loss and gradient too large by the number of accumulation steps (huggingface/transformers#47688).
  Micro-batches of a mixture are equally long, so the mean over micro-batches is exact, and that is what `Trainer`
  computes when told that the loss is not scaled.
- Heads for token classification, masked language modelling (BERT's) and sequence to sequence (T5's, BART's) return the
  mean over the labels of the micro-batch. Which kind a head is shows in the first loss that the two kinds would not
  agree about.
"""

from typing import Any

import torch

from hf_interp.losses.per_example import IGNORE_INDEX, is_plain_mean


class LossScale:
    """Finds out what a model's loss is a mean of, and turns it into a part of the global batch's mean.

    `is_scaled` is whether `Trainer` takes the loss of a micro-batch for normalised over the accumulated batch;
    `takes_mean`, whether the model returns the mean over the labels of a micro-batch, `None` if it is to be found out.
    """

    def __init__(self, is_scaled: bool | None, takes_mean: bool | None = None) -> None:
        self.is_scaled = is_scaled
        self.takes_mean = takes_mean
        self._is_scaled_otherwise = is_scaled

    def settle(
        self, labels: torch.Tensor | None, num_items: torch.Tensor | int | None, *, has_loss_function: bool
    ) -> torch.Tensor | int | None:
        """Settle `is_scaled` for a micro-batch; return the number of items that its loss is to be divided by.

        `num_items` is that of the global batch. A loss function of the user's divides by the items itself.
        """
        # numbers are the labels of a regression, or one for each class: of either every example has as many
        one_label_each = labels is not None and (labels.dim() == 1 or labels.is_floating_point())
        one_label_each = one_label_each and not has_loss_function
        self.is_scaled = False if one_label_each else self._is_scaled_otherwise
        return None if one_label_each else num_items

    def share_of_batch(
        self,
        loss: torch.Tensor,
        outputs: Any,
        labels: torch.Tensor | None,
        num_items: torch.Tensor | int | None,
        *,
        factor: int = 1,
    ) -> torch.Tensor:
        """Return a micro-batch's share of the global batch's mean over labels, from what the model returned.

        `num_items` is what `settle` has returned, and `factor` that by which `Trainer` multiplies the loss of one of
        several processes, which `loss` holds already.
        """
        if num_items is None or labels is None or labels.dim() != 2:
            return loss
        share = labels.ne(IGNORE_INDEX).sum() / num_items
        if self.takes_mean is None and 0 < float(share) < 1:
            self.takes_mean = is_plain_mean(loss / factor, outputs, labels, float(share))
        return loss * share if self.takes_mean else loss
