"""The loss of a micro-batch: of one objective or several, at the scale of the global batch, and tied to M₀."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_interp.losses.anchor import Anchor
from hf_interp.losses.per_example import per_example_loss
from hf_interp.losses.ref_model import shifts_labels
from hf_interp.mixture.collators import OBJECTIVES_KEY
from hf_interp.training.distilled_loss import DistilledLoss
from hf_interp.training.integrations import TrainerTraits
from hf_interp.training.loss_scale import LossScale
from hf_interp.training.mixture_run import MixtureRun
from hf_interp.training.objectives import ObjectiveHeads
from hf_interp.utils.overrides import overrides

Items = torch.Tensor | int | None
"""How many labels the loss of a global batch is a mean over; `None` if unknown."""


class BatchLoss:
    """The loss that a trainer over a mixture, or with an anchor, computes in place of that of `Trainer`.

    On the way, what each corpus and each objective contributes is noted.
    """

    def __init__(self, trainer: Trainer, heads: ObjectiveHeads, traits: TrainerTraits, anchor: Anchor | None) -> None:
        self.trainer, self.heads, self.traits, self.anchor = trainer, heads, traits, anchor
        self.scale = LossScale(trainer.loss_is_scaled_for_ga, False if traits.divides_by_items else None)
        self.run: MixtureRun | None = None
        self.distilled: DistilledLoss | None = None  # if a corpus trains M₀'s predictions
        self.corpus: torch.Tensor | None = None  # that of every example of the micro-batch that comes next
        self.evaluated: str | None = None  # the objective that is evaluated at the moment
        self.shifts_labels = shifts_labels(trainer)  # whether position i of the model predicts label i + 1
        self._counts: torch.Tensor | None = None  # labels and examples by objective in the global batch

    def is_needed(self, model: nn.Module) -> bool:
        """Whether the micro-batch that comes next has another loss than that of `Trainer`."""
        return self.corpus is not None or (self.anchor if model.training else self.evaluated) is not None

    def compute(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], num_items: Items
    ) -> tuple[torch.Tensor, Any]:
        """Compute the loss of a micro-batch, and return the model's outputs with it.

        `compute_loss` is that of `Trainer`, `num_items` the labels in the global batch.
        """
        corpus, self.corpus = self.corpus, None
        if corpus is not None and OBJECTIVES_KEY in inputs:
            return self._of_objectives(model, inputs[OBJECTIVES_KEY], corpus)
        if corpus is not None and self.distilled is not None:
            assert self._counts is not None
            self.trainer.loss_is_scaled_for_ga = True
            loss, outputs = self.distilled.compute(compute_loss, model, inputs, corpus, self._counts)
            return loss * self._factor, outputs
        if self.evaluated is not None and not model.training:
            outputs = model(objectives={self.evaluated: inputs})[self.evaluated]
            return outputs["loss"], outputs
        return self._of_one(compute_loss, model, inputs, corpus, num_items)

    # One objective.

    def _of_one(
        self,
        compute_loss: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, Any],
        corpus: torch.Tensor | None,
        num_items: Items,
    ) -> tuple[torch.Tensor, Any]:
        labels, shifted = inputs.get("labels"), inputs.get("shift_labels")  # now, as `Trainer` may take them out
        # beside the anchor's own loss too, which is weighed against it
        settles_scale = self.run is not None or (self.anchor is not None and self.anchor.is_tied)
        if settles_scale:
            has_function = self.trainer.compute_loss_func is not None
            num_items = self.scale.settle(labels, num_items, has_loss_function=has_function)
            self.trainer.loss_is_scaled_for_ga = self.scale.is_scaled
        is_general = None if corpus is None or self.run is None else self.run.is_general(corpus)
        ref_logits, step = None, self.trainer.state.global_step
        if self.anchor is not None and model.training:
            autocast = self.trainer.accelerator.autocast()
            ref_logits = self.anchor.predict(self.trainer.model, inputs, is_general, step, autocast)
        loss, outputs = self._of_trainer(compute_loss, model, inputs, num_items)
        if settles_scale and not self._divides_itself:
            loss = self.scale.share_of_batch(loss, outputs, labels, num_items, factor=self._factor)
        if corpus is not None and self.run is not None and labels is not None:
            self.run.note_losses(corpus, per_example_loss(outputs, labels, shift_labels=self.shifts_labels))
        if self.anchor is not None and ref_logits is not None:
            targets = labels if shifted is None else shifted
            assert targets is not None
            loss = self.anchor.tie(
                loss,
                outputs,
                ref_logits,
                targets,
                shift_labels=self.shifts_labels and shifted is None,
                is_general=is_general,
                num_items=None if num_items is None else num_items / self._factor,
                step=step,
            )
        return loss, outputs

    @property
    def _divides_itself(self) -> bool:
        """Whether what computes the loss divides by the items of the global batch, as far as it is told them."""
        trainer = self.trainer
        has_function = trainer.compute_loss_func is not None or trainer.label_smoother is not None
        return has_function or trainer._loss_shifts_labels

    def _of_trainer(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], num_items: Items
    ) -> tuple[torch.Tensor, Any]:
        if not self.traits.hides_logits:
            loss, outputs = compute_loss(model, inputs, True, num_items)
            return loss, outputs
        seen: list[Any] = []
        hook = model.register_forward_hook(lambda _module, _args, outputs: seen.append(outputs))
        try:
            return compute_loss(model, inputs, False, num_items), seen[-1] if seen else None
        finally:
            hook.remove()

    @property
    def _factor(self) -> int:
        """By what `Trainer` multiplies a share of all processes' mean, because their gradients are averaged."""
        trainer = self.trainer
        return trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1

    # Several objectives.

    def shifts(self) -> dict[str, bool]:
        """Return for every objective whether position i of its head predicts label i + 1."""
        return self.heads.shifts(self.trainer.model, task_shifts=self.shifts_labels)

    def count_objectives(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Count the labels and examples of each objective in the micro-batches of a step that begins."""
        args = self.trainer.args
        if batches and OBJECTIVES_KEY in batches[0]:
            counts = self.heads.count([batch[OBJECTIVES_KEY] for batch in batches], self.shifts(), device)
        elif self.distilled is not None:
            counts = self.distilled.count(batches, device)
        else:
            return
        if args.average_tokens_across_devices and args.world_size > 1:
            counts = self.trainer.accelerator.reduce(counts, "sum")
        self._counts = counts

    def _of_objectives(
        self, model: nn.Module, batches: Mapping[str, dict[str, Any]], corpus: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        assert self.run is not None
        assert self._counts is not None
        self.trainer.loss_is_scaled_for_ga = True
        outputs = model(objectives=batches)
        total = torch.zeros((), device=corpus.device)
        smoother = self.trainer.label_smoother
        for part in self.heads.losses(outputs, batches, self._counts, self.shifts(), smoother):
            total = total + part.loss
            self.run.meters.add_objective(part.column, part.mean * part.num_labels, part.num_labels)
            self.run.note_losses(self.run.of_objective(corpus, part.name), part.by_example)
        return total * self._factor, outputs

    @contextmanager
    def evaluating(self, name: str) -> Iterator[None]:
        """Let the trainer evaluate for a while what the evaluation set of this name is there for."""
        chosen = self.heads.eval_objectives.get(name)
        if chosen is None:
            yield
            return
        objective, shifts = self.heads.objectives[chosen], self.shifts()[chosen]
        others = overrides(
            self.trainer,
            data_collator=objective.data_collator,
            compute_metrics=objective.compute_metrics,
            preprocess_logits_for_metrics=objective.preprocess_logits_for_metrics,
            _loss_shifts_labels=shifts,
        )
        with others, overrides(self, evaluated=chosen, shifts_labels=shifts):
            yield
