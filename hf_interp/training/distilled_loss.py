"""Corpora that train M₀'s predictions in place of labels, with the model's own head (LwF, arXiv 1606.09282).

Of a global batch with n examples, n_t train the task with N_t labels, and n_d are distilled over N_d predictions, those
that a label would stand for. The loss is (n_t / n)·(1 / N_t)·Σ ℓ + (n_d / n)·(1 / N_d)·Σ T²·KL(M₀‖M_θ). With the
general side distilled, it is α·ℓ(domain) + (1 − α)·KL(general), the same for any split of the global batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Trainer

from hf_interp.losses.anchor import Anchor, has_label_to_predict
from hf_interp.losses.kl_divergence import kl_divergence
from hf_interp.losses.per_example import IGNORE_INDEX, per_example_loss
from hf_interp.losses.ref_model import logits_of
from hf_interp.mixture.slots import CORPUS_KEY
from hf_interp.training.mixture_run import MixtureRun

TASK_COLUMN, DISTILL_COLUMN = range(2)


class MicroBatch(NamedTuple):
    """A micro-batch, and what computes its loss."""

    compute_loss: Callable[..., Any]
    """That of `Trainer`."""
    model: nn.Module
    """As `Trainer` has wrapped it."""
    inputs: dict[str, Any]
    """What the model gets; of an encoder-decoder with the decoder's own."""
    corpus: torch.Tensor | None
    """That of every example, of a mixture."""
    num_items: torch.Tensor | int | None
    """How many labels the loss of the global batch is a mean over, if that is known."""


class DistilledLoss:
    """The loss of batches of which some examples train M₀'s predictions.

    Args:
        trainer: gives the model and the settings.
        run: tells which examples are distilled, and notes what they cost.
        anchor: has M₀.
        shifts_labels: whether position i of the model predicts label i + 1.
        hides_logits: whether the trainer's own loss leaves no logits, so that they need a forward pass of their own.
    """

    def __init__(
        self, trainer: Trainer, run: MixtureRun, anchor: Anchor, *, shifts_labels: bool, hides_logits: bool
    ) -> None:
        self.trainer, self.run, self.anchor = trainer, run, anchor
        self.shifts_labels, self.hides_logits = shifts_labels, hides_logits

    def count(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> torch.Tensor:
        """Count predictions (first row) and examples of the task and of what is distilled in some micro-batches."""
        counts = torch.zeros(2, 2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        for batch in batches:
            labels = _labels_of(batch)
            is_distilled = self.run.is_distilled(batch[CORPUS_KEY].to(labels.device))
            predicts = has_label_to_predict(labels, shift_labels=self.shifts_labels).reshape(len(labels), -1).sum(1)
            for column, chosen in ((TASK_COLUMN, ~is_distilled), (DISTILL_COLUMN, is_distilled)):
                counts[0, column] += predicts[chosen].sum().to(device)
                counts[1, column] += chosen.sum().to(device)
        return counts

    def compute(self, batch: MicroBatch, counts: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Compute the loss of a micro-batch, and return the model's outputs with it.

        `counts` are those of the whole global batch.
        """
        compute_loss, model, inputs, corpus, _ = batch
        assert corpus is not None
        labels, is_distilled = _labels_of(inputs), self.run.is_distilled(corpus)
        if len(labels) != len(corpus):
            raise ValueError("Distilled corpora need one row for each example. Set `padding_free=False`.")
        own = labels.masked_fill(is_distilled.reshape(-1, *[1] * (labels.dim() - 1)), IGNORE_INDEX)
        num_own = has_label_to_predict(own, shift_labels=self.shifts_labels).sum()
        shares = counts[1] / counts[1].sum()
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        # Every process runs the same passes, whatever its rows are: DDP and FSDP wait for each other in each.
        outputs = model(**unlabelled) if self.hides_logits or num_own == 0 else None
        if self.hides_logits or num_own > 0:
            found = compute_loss(model, {**inputs, "labels": own}, not self.hides_logits, None)
            loss, outputs = (found, outputs) if self.hides_logits else found
            self.run.meters.add_objective(TASK_COLUMN, loss.detach() * num_own, num_own)
            loss = loss * (shares[TASK_COLUMN] * num_own / counts[0, TASK_COLUMN].clamp(min=1)).to(loss.dtype)
        else:
            loss = logits_of(outputs).sum() * 0.0
        by_example = per_example_loss(outputs, own, shift_labels=self.shifts_labels)
        if is_distilled.any():
            found, rows = self._divergence(logits_of(outputs), inputs, labels, is_distilled)
            self.run.meters.add_objective(DISTILL_COLUMN, found.detach().sum(), torch.tensor(len(found)))
            scale = shares[DISTILL_COLUMN] / counts[0, DISTILL_COLUMN].clamp(min=1)
            loss = loss + found.sum() * scale.to(found.dtype)
            if by_example is not None:
                by_example[is_distilled] = _means(found.detach(), rows, int(is_distilled.sum())).to(by_example.dtype)
        self.run.note_losses(corpus, by_example)
        return loss, outputs

    def _divergence(
        self, logits: torch.Tensor, inputs: Mapping[str, Any], labels: torch.Tensor, is_distilled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T²·KL of every prediction that is distilled, and the number of its example among those."""
        has_rows = not {"input_ids", "pixel_values"} <= inputs.keys()  # a text may have none or several images
        chosen = {
            name: value[is_distilled] if isinstance(value, torch.Tensor) and len(value) == len(labels) else value
            for name, value in inputs.items()
            if has_rows
        }
        autocast = self.trainer.accelerator.autocast()
        ref_logits = self.anchor.ref_logits(self.trainer.model, chosen or inputs, autocast)
        ref_logits = ref_logits if has_rows else ref_logits[is_distilled]
        predicts = has_label_to_predict(labels[is_distilled], shift_labels=self.shifts_labels)
        if logits.shape[:-1] != labels.shape or ref_logits.shape[:-1] != predicts.shape:
            raise ValueError(
                f"Distilled corpora need one prediction for each label, got logits of shape {tuple(logits.shape)}, of "
                f"M₀ {tuple(ref_logits.shape)}, for labels of shape {tuple(labels.shape)}."
            )
        temperature = self.trainer.args.distill_temperature
        rows = predicts.flatten().nonzero().flatten()
        found = kl_divergence(logits[is_distilled], ref_logits, rows=rows, temperature=temperature)
        return temperature**2 * found, rows // max(1, predicts[0].numel())


def _labels_of(inputs: Mapping[str, Any]) -> torch.Tensor:
    labels = inputs.get("labels")
    if labels is None or labels.is_floating_point():
        raise ValueError(
            "Distilled corpora are of models that predict classes; a batch has "
            f"{'no labels' if labels is None else 'numbers as labels'}. Leave the objective out."
        )
    return labels


def _means(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return the mean of the values of each row; 0 where there is none."""
    sums = torch.zeros(num_rows, dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    return sums / torch.bincount(rows, minlength=num_rows).clamp(min=1)
