"""Training several objectives on one backbone: what a batch that holds more than one costs.

Of a global batch with n examples, of which n_o train the objective o with N_o labels, the loss is
Σ_o (n_o / n) · (1 / N_o) · Σ ℓ: every objective's own mean over its labels, weighted with its share of the examples.
With the task on the domain side alone, α is the weight of the task. It is the same for any split of the global batch.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_interp.losses.per_example import count_labels, head_shifts_labels, per_example_loss
from hf_interp.mixture.collators import (
    DISTILL,
    OBJECTIVES_KEY,
    TASK,
    Collator,
    ObjectiveCollator,
    SlotwiseCollator,
)
from hf_interp.mixture.corpus import Corpus
from hf_interp.training.heads import HEADS, Objective, attach_heads, load_heads
from hf_interp.utils.errors import did_you_mean

LABELS, EXAMPLES = range(2)  # rows of the counts, whose columns are objectives


class ObjectiveLoss(NamedTuple):
    """The part of an objective in the loss of a micro-batch."""

    name: str
    column: int  # its place among the objectives
    loss: torch.Tensor  # that it adds
    mean: torch.Tensor  # over its labels in this micro-batch
    num_labels: torch.Tensor
    by_example: torch.Tensor | None  # where it can be told


class ObjectiveHeads:
    """The heads of a run beside the model's own.

    Args:
        objectives: what corpora with an `objective` train, by name.
        eval_objectives: from the name of an evaluation set to the objective whose head is evaluated on it.
    """

    def __init__(
        self, objectives: Mapping[str, Objective] | None = None, eval_objectives: Mapping[str, str] | None = None
    ) -> None:
        self.objectives = dict(objectives or {})
        self.eval_objectives = dict(eval_objectives or {})
        self.names = [TASK, *self.objectives]  # the model's own task first

    def check_names(self) -> None:
        """Refuse names that heads cannot have, and evaluation sets of objectives that there are not."""
        for name in self.objectives:
            if not re.fullmatch(r"\w[\w-]*", name) or name == DISTILL:  # a folder of each checkpoint is called by it
                rule = f"must be of letters, digits, _ and -, and not {DISTILL}"
                raise ValueError(f"The name of an objective {rule}, got {name!r}. Rename it.")
        for set_name, name in self.eval_objectives.items():
            self._check_known(name, f"Evaluation set {set_name!r}")

    def check_corpora(self, corpora: Sequence[Corpus]) -> None:
        """Refuse corpora with an objective that there is not; the nearest is named."""
        for corpus in corpora:
            if corpus.objective not in (None, DISTILL):
                self._check_known(corpus.objective, f"Corpus {corpus.name!r}")

    def _check_known(self, name: str, who: str) -> None:
        if name not in self.objectives:
            raise ValueError(
                f"{who} has the objective {name!r}, but the trainer's `objectives` are {list(self.objectives)}."
                + did_you_mean(name, self.objectives)
            )

    # The heads themselves.

    def attach(self, model: Any, *, copies: bool = False) -> None:
        """Attach the heads, or copies of them, to a model, and make sure that they run on its backbone."""
        heads = {name: copy.deepcopy(each.model) if copies else each.model for name, each in self.objectives.items()}
        attach_heads(model, heads)
        getattr(model, HEADS).to(next(model.parameters()).device)
        for name in heads:
            _probe(model, name)

    def load(self, folder: str, model: nn.Module) -> None:
        """Load the heads that were saved beside a model."""
        if self.objectives:
            load_heads(model, folder)

    def shifts(self, model: nn.Module, *, task_shifts: bool) -> dict[str, bool]:
        """Return for every objective whether position i of its head predicts label i + 1, as the task's may."""
        heads: Any = getattr(model, HEADS) if self.objectives else {}
        return {TASK: task_shifts} | {name: head_shifts_labels(heads[name]) for name in self.objectives}

    # Batches.

    def columns(self, task_collator: Collator) -> list[str]:
        """Return the columns that collators read and the model does not."""
        collators = [task_collator, *(each.data_collator for each in self.objectives.values())]
        return [name for each in collators if isinstance(each, SlotwiseCollator) for name in each.columns]

    def collator(self, task_collator: Collator, corpora: Sequence[Corpus]) -> ObjectiveCollator:
        """Return a collator for batches of these corpora."""
        collators = {TASK: task_collator} | {name: each.data_collator for name, each in self.objectives.items()}
        return ObjectiveCollator(collators, [corpus.objective or TASK for corpus in corpora])

    def in_one_row(self, inputs: Any) -> Any:
        """Return the tensors that all objectives of a batch have, each in one row; another batch as it is."""
        if not isinstance(inputs, Mapping) or OBJECTIVES_KEY not in inputs:
            return inputs
        parts = list(inputs[OBJECTIVES_KEY].values())
        names = set.intersection(*map(set, parts))
        return {name: torch.cat([part[name].flatten() for part in parts]) for name in names}

    def count(
        self, batches: Sequence[Mapping[str, Mapping[str, Any]]], shifts: Mapping[str, bool], device: torch.device
    ) -> torch.Tensor:
        """Count labels and examples of every objective in some micro-batches: (2, num_objectives), float64."""
        kind = torch.float32 if device.type == "mps" else torch.float64
        counts = torch.zeros(2, len(self.names), dtype=kind, device=device)
        for batch in batches:
            for name, inputs in batch.items():
                index, labels = self.names.index(name), inputs["labels"]
                counts[LABELS, index] += count_labels(labels, shift_labels=shifts[name]).sum().to(device)
                counts[EXAMPLES, index] += len(labels)
        return counts

    def losses(
        self,
        outputs: Mapping[str, Mapping[str, Any]],
        batches: Mapping[str, Mapping[str, Any]],
        counts: torch.Tensor,
        shifts: Mapping[str, bool],
        label_smoother: Callable[..., torch.Tensor] | None = None,
    ) -> Iterator[ObjectiveLoss]:
        """Give the part of every objective in the loss of a micro-batch.

        Args:
            outputs, batches: of the model, and what it got, by objective.
            counts: of the whole global batch, from `count`.
            shifts: for every objective whether position i of its head predicts label i + 1.
            label_smoother: what `Trainer` smooths the labels of the model's own task with.
        """
        for name, found in outputs.items():
            labels, index = batches[name]["labels"], self.names.index(name)
            num_labels = count_labels(labels, shift_labels=shifts[name]).sum()
            if num_labels == 0:  # the mean is 0 / 0; the term is still there, for gradients of zero
                mean = found["logits"].sum() * 0.0
            elif label_smoother is not None and name == TASK and not labels.is_floating_point():
                mean = label_smoother(found, labels, shift_labels=shifts[name])
            else:
                mean = found["loss"]
            share = counts[EXAMPLES, index] / counts[EXAMPLES].sum()
            part = num_labels / counts[LABELS, index].clamp(min=1)
            yield ObjectiveLoss(
                name,
                index,
                mean * (share * part).to(mean.dtype),
                mean.detach(),
                num_labels,
                per_example_loss(found, labels, shift_labels=shifts[name]),
            )


def _probe(model: nn.Module, name: str) -> None:
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
