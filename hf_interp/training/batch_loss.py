"""The loss of a micro-batch: of one objective or several, at the scale of the global batch, tied to M₀, adversarial."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_interp.losses.adversarial import Adversary, Perturbation, Rows, symmetric_kl
from hf_interp.losses.anchor import Anchor, has_label_to_predict
from hf_interp.losses.per_example import IGNORE_INDEX, ContrastiveLoss, is_ctc, per_example_loss
from hf_interp.losses.ref_model import logits_of, shifts_labels, unwrap_peft
from hf_interp.mixture.collators import OBJECTIVES_KEY
from hf_interp.training.distilled_loss import DistilledLoss, MicroBatch
from hf_interp.training.integrations import TrainerTraits
from hf_interp.training.loss_scale import (
    count_batch,
    counted_labels,
    mean_over_examples,
    part_of_batch,
    zero_without_labels,
)
from hf_interp.training.mixture_run import MixtureRun
from hf_interp.training.objectives import EXAMPLES, LABELS, ObjectiveHeads
from hf_interp.utils.overrides import overrides

Items = torch.Tensor | int | None
"""How many labels the loss of a global batch is a mean over; `None` if unknown."""


class BatchLoss:
    """The loss that a trainer over a mixture, with an anchor or an adversary, computes in place of that of `Trainer`.

    On the way, what each corpus and each objective contributes is noted.
    """

    def __init__(
        self,
        trainer: Trainer,
        heads: ObjectiveHeads,
        traits: TrainerTraits,
        anchor: Anchor | None,
        adversary: Adversary | None,
        *,
        computes_loss: bool,
    ) -> None:
        self.trainer, self.heads, self.traits, self.anchor = trainer, heads, traits, anchor
        self.adversary = adversary
        self.computes_loss = computes_loss
        self.run: MixtureRun | None = None
        self.distilled: DistilledLoss | None = None  # if a corpus trains M₀'s predictions
        self.corpus: torch.Tensor | None = None  # that of every example of the micro-batch that comes next
        self.evaluated: str | None = None  # the objective that is evaluated at the moment
        self.shifts_labels = shifts_labels(trainer)  # whether position i of the model predicts label i + 1
        self._totals: torch.Tensor | None = None  # labels and examples of the global batch, if they are known
        self._counts: torch.Tensor | None = None  # the same by objective
        self._alone: torch.Tensor | None = None  # labels of a micro-batch that is the global batch, in place of totals
        self._micro_batch = self._num_micro_batches = 0  # of the step in progress: which comes next, and how many

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
        if self.corpus is not None or (model.training and self.changes_loss):
            return True
        return (self.anchor if model.training else self.evaluated) is not None

    @property
    def changes_loss(self) -> bool:
        """Whether there is more in the loss than that of `Trainer`, be the data a mixture or not."""
        return self.adversary is not None or (self.anchor is not None and self.anchor.is_tied)

    def compute(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], num_items: Items
    ) -> tuple[torch.Tensor, Any]:
        """Compute the loss of a micro-batch, and return the model's outputs with it.

        `compute_loss` is that of `Trainer`, `num_items` the labels in the global batch.
        """
        batch, self.corpus = MicroBatch(compute_loss, model, inputs, self.corpus, num_items), None
        if self.adversary is None or not model.training:
            return self._once(batch)
        return self._adversarial(self.adversary, batch)

    def _once(self, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
        model, inputs, corpus = batch.model, batch.inputs, batch.corpus
        if corpus is not None and OBJECTIVES_KEY in inputs:
            return self._of_objectives(model, inputs[OBJECTIVES_KEY], corpus)
        if corpus is not None and self.distilled is not None:
            assert self._counts is not None
            loss, outputs = self.distilled.compute(batch, self._counts)
            return loss * self._factor, outputs
        if self.evaluated is not None and not model.training:
            outputs = model(objectives={self.evaluated: inputs})[self.evaluated]
            return outputs["loss"], outputs
        return self._of_one(batch)

    def with_decoder_inputs(self, inputs: Any) -> Any:
        """Return inputs with those of a decoder, where smoothing keeps or distilling masks the labels they come of."""
        lacks = self.trainer.label_smoother is not None or (self.distilled is not None and self.corpus is not None)
        if not lacks or not isinstance(inputs, Mapping) or "labels" not in inputs or "decoder_input_ids" in inputs:
            return inputs
        model = unwrap_peft(self.trainer.model)
        prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if prepare is not None:
            return {**inputs, "decoder_input_ids": prepare(labels=inputs["labels"])}
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):  # Whisper shifts without a method
            return {**inputs, "decoder_input_ids": _shifted(inputs["labels"], model.config)}
        return inputs

    # One objective.

    def _of_one(self, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
        compute_loss, model, inputs, corpus, num_items = batch
        labels = inputs.get("labels")  # now, as `Trainer` may take them out
        counts = self._count(inputs) if self._totals is not None and model.training else None
        alone = self._alone if model.training else None
        reference = None
        if self.anchor is not None and model.training:
            is_general = None if corpus is None or self.run is None else self.run.is_general(corpus)
            step, autocast = self.trainer.state.global_step, self.trainer.accelerator.autocast()
            of_model = self.trainer.model, inputs, is_general, step, autocast
            reference = self.anchor.predict(*of_model, shift_labels=self.shifts_labels)
        is_scaled = counts is not None or alone is not None
        loss, outputs = self._of_trainer(compute_loss, model, inputs, None if is_scaled else num_items)
        if is_scaled:
            smooths = self.trainer.label_smoother is not None  # the head has no labels and adds nothing of its own
            added = None if smooths else mean_over_examples(inputs, outputs, unwrap_peft(self.trainer.model))
            if alone is not None and added is None:
                loss = zero_without_labels(loss, alone)
            else:
                counts = self._count(inputs) if counts is None else counts
                assert counts is not None
                totals = counts if self._totals is None else self._totals
                loss, num_items = part_of_batch(loss, counts, totals, added) * self._factor, totals[0].clamp(min=1)
        if corpus is not None and self.run is not None and isinstance(labels, torch.Tensor):
            self.run.note_losses(corpus, self._by_example(outputs, labels))
        if self.anchor is not None and reference is not None:
            divisor = None if num_items is None else num_items / self._factor
            loss = self.anchor.tie(loss, outputs, reference, divisor)
        return loss, outputs

    def _by_example(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor | None:
        if isinstance(self.trainer.compute_loss_func, ContrastiveLoss):
            return self.trainer.compute_loss_func.per_example(outputs, labels)
        if is_ctc(unwrap_peft(self.trainer.model)):
            return None
        return per_example_loss(outputs, labels, shift_labels=self.shifts_labels)

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
        self._totals = self._counts = self._alone = None
        self._micro_batch, self._num_micro_batches = 0, len(batches)
        if not batches or not isinstance(batches[0], Mapping):
            return
        if OBJECTIVES_KEY in batches[0]:
            parts = [batch[OBJECTIVES_KEY] for batch in batches]
            self._counts = self._sum(self.heads.count(parts, self.shifts(), device))
        elif self.distilled is not None:
            self._counts = self._sum(self.distilled.count(batches, device))
        elif self._sets_scale:
            if len(batches) == 1 and not self._is_apart and not self.terms:
                self._alone = counted_labels(batches[0], shift_labels=self.shifts_labels)
            if self._alone is not None and self._alone.dim() <= 2:
                return
            self._alone = None
            counts = [self._count(batch) for batch in batches]
            known = [each for each in counts if each is not None]
            if len(known) == len(counts):
                self._totals = self._sum(torch.stack(known).sum(0).to(device))

    @property
    def is_scaled(self) -> bool:
        """Whether a micro-batch of the step in progress has the part in the loss that is its share of the step."""
        return any(each is not None for each in (self._totals, self._counts, self._alone))

    @property
    def _sets_scale(self) -> bool:
        """Whether the loss is brought to the scale of the global batch here, and not by who computes or declares it."""
        trainer = self.trainer
        is_ours = self.run is not None or self.changes_loss
        is_theirs = self.computes_loss or trainer.compute_loss_func is not None
        is_private = self.run is not None and self.run.private is not None  # and so are lengths
        return is_ours and not is_theirs and not is_private and trainer.loss_is_scaled_for_ga is None

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

    # Inputs that are a little off.

    def _adversarial(self, adversary: Adversary, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
        """Compute the loss with what inputs a little off add to it; they pass through the model without DDP around it.

        DDP waits for the gradients of the pass that it sees, and all gradients flow at once.
        """
        trainer, number = self.trainer, self._micro_batch
        self._micro_batch += 1
        weight = adversary.weight(trainer.state.global_step)

        def first() -> tuple[torch.Tensor, Any]:
            return self._once(batch._replace(inputs=dict(batch.inputs)))

        def again() -> tuple[torch.Tensor, Any]:
            with self._unnoted():
                return self._once(batch._replace(model=trainer.model, inputs=dict(batch.inputs)))

        def predictions() -> Any:
            parts = batch.inputs.get(OBJECTIVES_KEY)
            return trainer.model(**batch.inputs) if parts is None else trainer.model(objectives=parts)

        if weight == 0:
            return first()
        perturbation = Perturbation(trainer.model, list(self._rows(adversary, batch, number)))
        with ExitStack() as stack:
            if self.anchor is not None:
                stack.enter_context(overrides(self.anchor, kept=[]))
            if trainer.args.adversarial == "r3f":
                found = adversary.compare(perturbation, first, predictions, weight, partial(self._divergence, batch))
            else:
                scaler = trainer.accelerator.scaler
                scale = 1.0 if scaler is None else scaler.get_scale()
                found = adversary.ascend(perturbation, first, again, weight, scale)
        loss, outputs, added = found
        is_share = self.is_scaled or trainer.compute_loss_func is not None
        adversary.note(added * self._num_micro_batches if is_share else added)
        return loss, outputs

    def _rows(self, adversary: Adversary, batch: MicroBatch, micro_batch: int) -> Iterator[Rows]:
        """Give what the model embeds at once, in its order, with the places of the examples in the run."""
        inputs, corpus = batch.inputs, batch.corpus
        if corpus is None or OBJECTIVES_KEY not in inputs:
            count = next(len(value) for value in inputs.values() if isinstance(value, torch.Tensor))
            numbers = adversary.numbers(micro_batch, count if corpus is None else len(corpus))
            yield Rows(inputs, numbers)
            return
        assert self.run is not None
        places = torch.tensor(adversary.numbers(micro_batch, len(corpus)), device=corpus.device)
        for name, part in inputs[OBJECTIVES_KEY].items():
            yield Rows(part, places[self.run.trains(corpus, name)].tolist())

    def _divergence(self, batch: MicroBatch, outputs: Any, others: Any) -> torch.Tensor:
        """Return the symmetric divergence of the outputs of two passes, each prediction at the scale of its loss."""
        found = torch.zeros((), device=self.trainer.args.device)
        for name, labels, shifts, scale in self._predictions(batch):
            one, other = (logits_of(each if name is None else each[name]) for each in (outputs, others))
            if one.shape[:-1] != labels.shape:
                raise ValueError(
                    f'adversarial="r3f" needs one prediction for each label, got logits of shape {tuple(one.shape)} '
                    f'for labels of shape {tuple(labels.shape)}. Use `adversarial="fgm"`.'
                )
            rows = has_label_to_predict(labels, shift_labels=shifts).flatten().nonzero().flatten()
            scales = scale.reshape(-1, *[1] * (labels.dim() - 1)).expand(labels.shape).flatten()[rows]
            values = symmetric_kl(one, other, rows)
            found = found + (values * scales.to(values.dtype)).sum()
        return found * self._factor

    def _predictions(self, batch: MicroBatch) -> Iterator[tuple[str | None, torch.Tensor, bool, torch.Tensor]]:
        """Give for every objective its name, its labels, whether they are shifted, and by what each example counts."""
        _, _, inputs, corpus, num_items = batch
        counts = self._counts
        if counts is not None:
            shares = counts[EXAMPLES] / counts[EXAMPLES].sum() / counts[LABELS].clamp(min=1)
        if corpus is not None and OBJECTIVES_KEY in inputs:
            for name, part in inputs[OBJECTIVES_KEY].items():
                scale = shares[self.heads.names.index(name)].expand(len(part["labels"]))
                yield name, part["labels"], self.shifts()[name], scale
            return
        shifted = inputs.get("shift_labels")
        labels = inputs["labels"] if shifted is None else shifted
        shifts = self.shifts_labels and shifted is None
        if corpus is not None and self.distilled is not None:
            assert self.run is not None
            yield None, labels, shifts, shares[self.run.is_distilled(corpus).long()]
            return
        if self._totals is not None:
            num_items = self._totals[0].clamp(min=1)
        elif num_items is None:
            num_items = has_label_to_predict(labels, shift_labels=shifts).sum().clamp(min=1) * self._factor
        yield None, labels, shifts, (1 / torch.as_tensor(num_items, device=labels.device)).expand(len(labels))

    @contextmanager
    def _unnoted(self) -> Iterator[None]:
        """Compute losses for a while without noting them."""
        with ExitStack() as stack:
            if self.run is not None:
                stack.enter_context(overrides(self.run, meters=copy.deepcopy(self.run.meters)))
            if self.anchor is not None:
                stack.enter_context(overrides(self.anchor, sums=self.anchor.sums.clone()))
            yield

    # What is logged and saved of what is added to the loss.

    @property
    def terms(self) -> dict[str, Anchor | Adversary]:
        """What a run adds to its loss, or measures of it, by the name that a checkpoint has for it."""
        terms = {"anchor": self.anchor, "adversary": self.adversary}
        return {name: term for name, term in terms.items() if term is not None}

    def begin(self, rank_states: Iterable[Mapping[str, Any]]) -> None:
        """Begin anew, with the sums that processes have left in a checkpoint."""
        states = list(rank_states)
        for term in self.terms.values():
            term.begin(states)

    def take_log(self, step: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return what to log after a step of what is added to the loss."""
        found: dict[str, float] = {}
        for term in self.terms.values():
            found |= term.take_log(step, reduce)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this process."""
        return {name: term.state_dict() for name, term in self.terms.items()}

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


def _shifted(labels: torch.Tensor, config: Any) -> torch.Tensor:
    """Return what a decoder is given to predict labels: the token before each."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, config.pad_token_id)
