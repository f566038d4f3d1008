"""Training several objectives on one backbone: what a `Trainer` must do otherwise when a batch holds more than one.

Of a global batch with n examples, of which n_o train the objective o with N_o labels, the loss is
Σ_o (n_o / n) · (1 / N_o) · Σ ℓ: every objective's own mean over its labels, weighted with its share of the examples.
With the task on the domain side alone, α is the weight of the task. It is the same for any split of the global batch.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer

from hf_interp.losses.per_example import count_labels, head_shifts_labels, per_example_loss
from hf_interp.mixture.collators import OBJECTIVES_KEY, TASK, MaskingCollator, ObjectiveCollator
from hf_interp.mixture.corpus import Corpus
from hf_interp.training.heads import HEADS, HasHeads, Objective, attach_heads, load_heads
from hf_interp.training.integrations import SENTENCE_TRANSFORMERS, TRL, stands_on
from hf_interp.training.meters import Tally
from hf_interp.utils.errors import did_you_mean

# For type checkers alone: the host's attributes are there whichever trainer stands behind the mixin.
if TYPE_CHECKING:

    class _Host(Trainer):
        """Any trainer of the host's."""

else:
    _Host = object

LABELS, EXAMPLES = range(2)  # rows of the counts, whose columns are objectives


class ObjectivesMixin(_Host):
    """Gives a `Trainer` objectives beside the task of its model."""

    corpora: list[Corpus] | None
    loss_is_scaled_for_ga: bool | None
    _loss_shifts_labels: bool
    _shifts_labels: bool
    _tally: Tally
    _objectives: Mapping[str, Objective] = {}
    _eval_objectives: Mapping[str, str] = {}
    _evaluated: str | None = None
    _counts: torch.Tensor | None = None

    @property
    def objective_names(self) -> list[str]:
        """The objectives that there are: the model's own task first."""
        return [TASK, *self._objectives]

    @property
    def _mixes_objectives(self) -> bool:
        return any(corpus.objective is not None for corpus in self.corpora or [])

    def _set_heads(self) -> None:
        """Attach the heads to the model as it stands in the trainer."""
        if not self._objectives:
            return
        for name in self._objectives:
            if not name or "." in name:
                raise ValueError(f"The name of an objective must be a text without dots, got {name!r}.")
        for set_name, name in self._eval_objectives.items():
            self._check_objective(name, f"Evaluation set {set_name!r}")
        if self.args.n_gpu > 1:
            raise ValueError(
                "Objectives beside the task need one process for each GPU. Start with `accelerate launch` or torchrun."
            )
        for package in (TRL, SENTENCE_TRANSFORMERS):
            if stands_on(self, package):
                raise ValueError(f"The trainers of {package} compute losses of their own: give them no `objectives`.")
        if self.compute_loss_func is not None:
            raise ValueError("`compute_loss_func` does not go with `objectives`, whose losses are their models' own.")
        if not isinstance(self.model, HasHeads):
            self._attach(self.model, {name: each.model for name, each in self._objectives.items()})

    def _attach(self, model: Any, heads: Mapping[str, Any]) -> None:
        attach_heads(model, heads)
        device = next(model.parameters()).device
        getattr(model, HEADS).to(device)
        for name in heads:
            self._probe(model, name)

    def _probe(self, model: nn.Module, name: str) -> None:
        """Run a head on one token, so that one that does not work on the backbone shows before training."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        mode = model.training
        try:
            with torch.no_grad():
                model.eval()(objectives={name: {"input_ids": ids, "attention_mask": torch.ones_like(ids)}})
        except Exception as error:
            raise ValueError(
                f"The head of the objective {name!r} does not run on the model's backbone "
                f"({type(error).__name__}: {error}). Choose another task, or a model whose backbone has all that both "
                "heads need."
            ) from error
        finally:
            model.train(mode)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The host's; with objectives, the new model gets heads like those given."""
        model = super().call_model_init(trial)
        if self._objectives:
            self._attach(model, {name: copy.deepcopy(each.model) for name, each in self._objectives.items()})
        return model

    def _check_objectives(self, corpora: Sequence[Corpus]) -> None:
        for corpus in corpora:
            if corpus.objective is not None:
                self._check_objective(corpus.objective, f"Corpus {corpus.name!r}")

    def _check_objective(self, name: str, who: str) -> None:
        if name not in self._objectives:
            raise ValueError(
                f"{who} has the objective {name!r}, but the trainer's `objectives` are {list(self._objectives)}."
                + did_you_mean(name, self._objectives)
            )

    def _set_signature_columns_if_needed(self) -> None:
        """The host's, with the columns that collators read and the model does not."""
        super()._set_signature_columns_if_needed()
        collators = [self.data_collator, *(each.data_collator for each in self._objectives.values())]
        wanted = [name for each in collators if isinstance(each, MaskingCollator) for name in each.columns]
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def _objective_collator(self) -> ObjectiveCollator:
        collators = {TASK: self.data_collator} | {name: each.data_collator for name, each in self._objectives.items()}
        return ObjectiveCollator(collators, [corpus.objective or TASK for corpus in self.corpora or []])

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The host's; of batches with several objectives, the labels and examples of each are counted."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and OBJECTIVES_KEY in batches[0]:
            self._counts = self._count([batch[OBJECTIVES_KEY] for batch in batches], device)
        return batches, num_items

    def _count(self, batches: Sequence[Mapping[str, Mapping[str, Any]]], device: torch.device) -> torch.Tensor:
        """Labels and examples of every objective in a global batch: (2, num_objectives), float64."""
        kind = torch.float32 if device.type == "mps" else torch.float64
        counts = torch.zeros(2, len(self.objective_names), dtype=kind, device=device)
        for batch in batches:
            for name, inputs in batch.items():
                index, labels = self.objective_names.index(name), inputs["labels"]
                counts[LABELS, index] += count_labels(labels, shift_labels=self._shifts(name)).sum().to(device)
                counts[EXAMPLES, index] += len(labels)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return counts

    def _shifts(self, name: str) -> bool:
        """Whether position i of an objective's head predicts label i + 1."""
        return self._shifts_labels if name == TASK else head_shifts_labels(getattr(self.model, HEADS)[name])

    def _multitask_loss(
        self, model: nn.Module, batches: Mapping[str, dict[str, Any]], corpus: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """This micro-batch's part of the global batch's loss; on the way, what each corpus contributes is noted."""
        assert self._counts is not None
        self.loss_is_scaled_for_ga = True
        outputs = model(objectives=batches)
        total = torch.zeros((), device=corpus.device)
        for name, found in outputs.items():
            labels, index = batches[name]["labels"], self.objective_names.index(name)
            counted = count_labels(labels, shift_labels=self._shifts(name)).sum()
            # Without a label the mean is 0 / 0; the term is still there, for gradients of zero.
            mean = self._mean_loss(name, found, labels) if counted > 0 else found["logits"].sum() * 0.0
            share = self._counts[EXAMPLES, index] / self._counts[EXAMPLES].sum()
            part = counted / self._counts[LABELS, index].clamp(min=1)
            total = total + mean * (share * part).to(mean.dtype)
            self._tally.add_objective(index, mean.detach() * counted, counted)
            losses = per_example_loss(found, labels, shift_labels=self._shifts(name))
            self._note_losses(self._of_objective(corpus, name), losses)
        if self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes  # whose gradients are averaged
        return total, outputs

    def _of_objective(self, corpus: torch.Tensor, name: str) -> torch.Tensor:
        """The entries of a batch's corpora that train an objective, in their order."""
        own = [index for index, each in enumerate(self.corpora or []) if (each.objective or TASK) == name]
        return corpus[torch.isin(corpus, torch.tensor(own, device=corpus.device))]

    def _mean_loss(self, name: str, found: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        if self.label_smoother is not None and name == TASK and not labels.is_floating_point():
            smoothed: torch.Tensor = self.label_smoother(found, labels, shift_labels=self._shifts(name))
            return smoothed
        loss: torch.Tensor = found["loss"]
        return loss

    def _note_losses(self, corpus: torch.Tensor, losses: torch.Tensor | None) -> None:
        raise NotImplementedError

    @contextmanager
    def evaluating(self, name: str) -> Iterator[None]:
        """For the time being, evaluate what the evaluation set of this name is there for.

        Args:
            name: an evaluation set; of those without an objective of their own nothing changes.
        """
        chosen = self._eval_objectives.get(name)
        if chosen is None:
            yield
            return
        objective, shifts = self._objectives[chosen], self._shifts(chosen)
        settings = {
            "data_collator": objective.data_collator,
            "compute_metrics": objective.compute_metrics,
            "preprocess_logits_for_metrics": objective.preprocess_logits_for_metrics,
            "_evaluated": chosen,
            "_loss_shifts_labels": shifts,
            "_shifts_labels": shifts,
        }
        before = {key: getattr(self, key) for key in settings}
        self.__dict__.update(settings)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The host's; an evaluation set that is there for an objective is evaluated with its head and its metrics."""
        name = eval_dataset if isinstance(eval_dataset, str) else metric_key_prefix.removeprefix("eval_")
        with self.evaluating(name):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _evaluation_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss and outputs of the head that is evaluated."""
        assert self._evaluated is not None
        outputs = model(objectives={self._evaluated: inputs})[self._evaluated]
        return outputs["loss"], outputs

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The host's estimate, over all objectives of a batch."""
        parts = inputs.get(OBJECTIVES_KEY)
        if parts is None:
            return super().floating_point_ops(inputs)
        return sum(super(ObjectivesMixin, self).floating_point_ops(part) for part in parts.values())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The host's, and the heads."""
        given = () if model is None else (model,)  # for which sentence-transformers have no parameter
        super()._load_from_checkpoint(resume_from_checkpoint, *given)
        self._load_heads(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """The host's, and the heads."""
        super()._load_best_model()
        self._load_heads(self.state.best_model_checkpoint, None)

    def _load_heads(self, folder: str | None, model: nn.Module | None) -> None:
        if self._objectives and folder is not None and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            load_heads(self.model if model is None else model, folder)
