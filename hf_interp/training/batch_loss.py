"""The loss of a micro-batch: of one objective or several, at the scale of the global batch, and tied to M₀."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_interp.losses.anchor import Anchor
from hf_interp.losses.per_example import is_ctc, per_example_loss
from hf_interp.losses.ref_model import shifts_labels, unwrap_peft
from hf_interp.mixture.collators import OBJECTIVES_KEY
from hf_interp.training.distilled_loss import DistilledLoss
from hf_interp.training.integrations import TrainerTraits
from hf_interp.training.loss_scale import count_batch, mean_over_examples, part_of_batch
from hf_interp.training.mixture_run import MixtureRun
from hf_interp.training.objectives import ObjectiveHeads
from hf_interp.utils.overrides import overrides

Items = torch.Tensor | int | None
"""How many labels the loss of a global batch is a mean over; `None` if unknown."""


class BatchLoss:
    """The loss that a trainer over a mixture, or with an anchor, computes in place of that of `Trainer`.

    On the way, what each corpus and each objective contributes is noted.
    """

    def __init__(
        self,
        trainer: Trainer,
        heads: ObjectiveHeads,
        traits: TrainerTraits,
        anchor: Anchor | None,
        *,
        computes_loss: bool,
    ) -> None:
        self.trainer, self.heads, self.traits, self.anchor = trainer, heads, traits, anchor
        self.computes_loss = computes_loss
        self.run: MixtureRun | None = None
        self.distilled: DistilledLoss | None = None  # if a corpus trains M₀'s predictions
        self.corpus: torch.Tensor | None = None  # that of every example of the micro-batch that comes next
        self.evaluated: str | None = None  # the objective that is evaluated at the moment
        self.shifts_labels = shifts_labels(trainer)  # whether position i of the model predicts label i + 1
        self._totals: torch.Tensor | None = None  # labels and examples of the global batch, if they are known
        self._counts: torch.Tensor | None = None  # the same by objective
        self._is_whole = False  # whether one micro-batch is the global batch

    def set_mixture(self, run: MixtureRun | None) -> None:
        """Compute the losses of a mixture from now on; `None` for no mixture."""
        self.run, self.distilled = run, None
        if run is None or not run.distills:
            return
        if self.anchor is None:
            raise ValueError('Corpora with `objective="distill"` must be given when a trainer is made, which keeps M₀.')
        self.distilled = DistilledLoss(
            self.trainer, run, self.anchor, shifts_labels=self.shifts_labels, hides_logits=self.traits.hides_logits
        )

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
            loss, outputs = self.distilled.compute(compute_loss, model, inputs, corpus, self._counts)
            return loss * self._factor, outputs
        if self.evaluated is not None and not model.training:
            outputs = model(objectives={self.evaluated: inputs})[self.evaluated]
            return outputs["loss"], outputs
        return self._of_one(compute_loss, model, inputs, corpus, num_items)

    def with_decoder_inputs(self, inputs: Any) -> Any:
        """Return inputs with those of a decoder, where smoothing keeps or distilling masks the labels they come of."""
        model, distills = unwrap_peft(self.trainer.model), self.distilled is not None and self.corpus is not None
        lacks = self.trainer.label_smoother is not None or distills
        if not lacks or not isinstance(inputs, Mapping) or "labels" not in inputs or "decoder_input_ids" in inputs:
            return inputs
        prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        return inputs if prepare is None else {**inputs, "decoder_input_ids": prepare(labels=inputs["labels"])}

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
        counts = None
        if self._totals is not None and model.training:
            counts = self._totals if self._is_whole else self._count(inputs)
        is_general = None
        if self.anchor is not None and corpus is not None and self.run is not None:
            is_general = self.run.is_general(corpus)
        ref_logits, step = None, self.trainer.state.global_step
        if self.anchor is not None and model.training:
            autocast = self.trainer.accelerator.autocast()
            ref_logits = self.anchor.predict(self.trainer.model, inputs, is_general, step, autocast)
        loss, outputs = self._of_trainer(compute_loss, model, inputs, num_items if counts is None else None)
        if counts is not None and self._totals is not None:
            smooths = self.trainer.label_smoother is not None  # the head has no labels and adds nothing of its own
            added = None if smooths else mean_over_examples(inputs, outputs, unwrap_peft(self.trainer.model))
            loss = part_of_batch(loss, counts, self._totals, added)
            loss = loss if self._is_whole else loss * self._factor
            num_items = self._totals[0].clamp(min=1)
        aligned = not is_ctc(unwrap_peft(self.trainer.model))
        if corpus is not None and self.run is not None and isinstance(labels, torch.Tensor) and aligned:
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

    def count(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Count the labels and examples in the micro-batches of a step that begins, by objective if there are some."""
        self._totals = self._counts = None
        if not batches or not isinstance(batches[0], Mapping):
            return
        if OBJECTIVES_KEY in batches[0]:
            parts = [batch[OBJECTIVES_KEY] for batch in batches]
            self._counts = self._sum(self.heads.count(parts, self.shifts(), device))
        elif self.distilled is not None:
            self._counts = self._sum(self.distilled.count(batches, device))
        elif self._sets_scale:
            counts = [self._count(batch) for batch in batches]
            known = [each for each in counts if each is not None]
            if len(known) == len(counts):
                self._is_whole = len(known) == 1 and not self._is_apart
                self._totals = known[0] if self._is_whole else self._sum(torch.stack(known).sum(0).to(device))

    @property
    def is_scaled(self) -> bool:
        """Whether a micro-batch of the step in progress has the part in the loss that is its share of the step."""
        return self._totals is not None or self._counts is not None

    @property
    def _sets_scale(self) -> bool:
        """Whether the loss is brought to the scale of the global batch here, and not by who computes or declares it."""
        trainer = self.trainer
        is_ours = self.run is not None or (self.anchor is not None and self.anchor.is_tied)
        is_theirs = self.computes_loss or trainer.compute_loss_func is not None
        return is_ours and not is_theirs and trainer.loss_is_scaled_for_ga is None

    def _count(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        config = getattr(unwrap_peft(self.trainer.model), "config", None)
        return count_batch(inputs, shift_labels=self.shifts_labels, config=config)

    def _sum(self, counts: torch.Tensor) -> torch.Tensor:
        return self.trainer.accelerator.reduce(counts, "sum") if self._is_apart else counts

    @property
    def _is_apart(self) -> bool:
        """Whether other processes have labels that count."""
        args = self.trainer.args
        return bool(args.average_tokens_across_devices and args.world_size > 1)

    def _of_objectives(
        self, model: nn.Module, batches: Mapping[str, dict[str, Any]], corpus: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        assert self.run is not None
        assert self._counts is not None
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
