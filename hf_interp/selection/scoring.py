"""Scores of a model, example by example: the units by which one α is told from another.

A unit is a number for each example whose mean is the metric. Of a mean over examples they are the examples' own values;
of other metrics, such as F1, pseudo-values of a grouped jackknife. At every α they belong to the same examples, so that
differences between two α are paired.
"""

import copy
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import DefaultFlowCallback, EvalPrediction, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import denumpify_detensorize

from hf_interp.losses.per_example import ContrastiveLoss, count_labels, is_ctc, per_example_loss
from hf_interp.losses.ref_model import shifts_labels, unwrap_peft
from hf_interp.reporting.results import main_metric
from hf_interp.training.mixin import InterpolationMixin
from hf_interp.utils.overrides import overrides

Units = npt.NDArray[np.float64]
Scores = dict[str, dict[str, Units]]
"""Dataset → metric → units."""

JACKKNIFE_GROUPS = 20
"""Times a metric that is no mean over examples is computed anew for its standard error."""


class ScoreHalves(NamedTuple):
    """Scores on the examples by which α is chosen, and on others that the choice has not seen.

    Args:
        sizes: dataset → examples of each part, where there may be fewer units than examples.
    """

    selection: Scores
    report: Scores
    sizes: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for a dataset.

    Args:
        losses: sum of the losses of each example's labels, in nats: (num_examples,).
        counts: how many labels each example has: (num_examples,); NaN where logits and labels do not tell a loss.
        whole: what `compute_metrics` takes; without `compute_metrics` nothing is kept as predictions.
    """

    losses: Units
    counts: Units
    whole: EvalPrediction

    @property
    def has_losses(self) -> bool:
        """Whether the losses are known."""
        return not bool(np.isnan(self.counts).any())

    @property
    def means(self) -> Units:
        """The mean loss of each example over its labels."""
        return self.losses / np.maximum(self.counts, 1)


class TrainerScorer:
    """Scores the present weights of a trainer's model.

    Args:
        trainer: its `compute_metrics`, collator, batch size and processes are used; it is left as it was.
        datasets: by name, what α is chosen by.
        report_datasets: by name, what is reported; without them each dataset is halved.
        metric: the metric that matters, by default the main one: if it is no mean over examples, its units are found
            by a jackknife.
        seed: decides the halves.
    """

    def __init__(
        self,
        trainer: Trainer,
        datasets: Mapping[str, Any],
        report_datasets: Mapping[str, Any] | None,
        metric: str | None,
        seed: int,
    ) -> None:
        _check_arguments(trainer)
        self.trainer = trainer
        self.datasets = dict(datasets)
        self.report_datasets = None if report_datasets is None else dict(report_datasets)
        self.metric = metric
        self.seed = seed
        self.found: dict[int, Predictions] = {}
        """The last predictions, by the identity of the dataset."""

    def __call__(self) -> ScoreHalves:
        """Evaluate the model as it is, and return its scores."""
        selection: Scores = {}
        report: Scores = {}
        sizes: dict[str, dict[str, int]] = {}
        for name, dataset in self.datasets.items():
            with evaluating(self.trainer, name):
                found = others = self.found[id(dataset)] = predict(self.trainer, dataset)
                if self.report_datasets is None:
                    first, second = halves(len(found.losses), self.seed, name)
                else:
                    others = predict(self.trainer, self.report_datasets[name])
                    first, second = np.arange(len(found.losses)), np.arange(len(others.losses))
                selection[name], report[name] = self.scores(found, first), self.scores(others, second)
                sizes[name] = {"selection": len(first), "report": len(second)}
        return ScoreHalves(selection, report, sizes)

    def scores(self, found: Predictions, rows: npt.NDArray[np.intp]) -> dict[str, Units]:
        """Return the units of every metric on some rows of what was predicted."""
        scores = {}
        if found.has_losses and found.counts[rows].sum() > 0:
            scores["loss"] = ratio_units(found.losses[rows], found.counts[rows])
        compute = self.trainer.compute_metrics
        if compute is None:
            return scores

        def value(chosen: npt.NDArray[np.intp]) -> Mapping[str, float]:
            whole = found.whole
            parts = (whole.predictions, whole.label_ids, whole.inputs, whole.losses)
            taken = (None if part is None else _take(part, chosen) for part in parts)
            return denumpify_detensorize(dict(compute(EvalPrediction(*taken))))

        values = value(rows)
        if self.metric is None:
            self.metric = main_metric({"": {**values, **dict.fromkeys(scores, 0.0)}})
        for name, whole in values.items():
            if not isinstance(whole, (int, float)) or name in scores:
                continue
            hits = example_hits(found, rows) if name == "accuracy" else None
            if hits is not None and abs(hits.mean() - whole) < 1e-9:
                scores[name] = hits
            elif name == self.metric:
                scores[name] = jackknife_units(lambda some, name=name: value(some)[name], rows)  # type: ignore[misc]
            else:
                scores[name] = np.array([float(whole)])
        return scores


def evaluating(trainer: Trainer, name: str) -> AbstractContextManager[None]:
    """For the time being, let a trainer evaluate what the evaluation set of this name is there for."""
    return trainer.evaluating(name) if isinstance(trainer, InterpolationMixin) else nullcontext()


def predict(trainer: Trainer, dataset: Any) -> Predictions:
    """Run a trainer's model over a dataset, keeping the loss of every example on the way.

    The trainer is left as it was, and its callbacks are not told.

    Raises:
        ValueError: for a dataset without labels.
    """
    keeps_outputs = trainer.compute_metrics is not None
    found: list[EvalPrediction] = []

    def take(prediction: EvalPrediction) -> dict[str, float]:
        found.append(prediction)
        return {}

    def keep(outputs: Any, labels: Any) -> Any:
        if isinstance(own := trainer.compute_loss_func, ContrastiveLoss):
            losses = own.per_example(outputs, labels)
            counts = torch.ones_like(losses)
        else:
            aligned = None if is_ctc(unwrap_peft(trainer.model)) else labels
            losses, counts = _losses(outputs, aligned, shifts_labels(trainer))
        if not keeps_outputs:
            return losses, counts
        return losses, counts, outputs if reduce is None else reduce(outputs, labels)

    reduce = trainer.preprocess_logits_for_metrics
    nobody = CallbackHandler([DefaultFlowCallback], trainer.model, None, None, None)
    with overrides(
        trainer,
        compute_metrics=take,
        preprocess_logits_for_metrics=keep,
        callback_handler=nobody,
        control=copy.copy(trainer.control),
    ):
        trainer.predict(dataset)
    if not found:
        raise ValueError(
            "A search over α needs labelled evaluation sets, got one that is empty or without labels. Give such sets."
        )
    rows = slice(len(dataset) if isinstance(dataset, Sized) else None)  # not what pads the last batch of processes
    losses, counts, *outputs = _take(found[0].predictions, rows)
    parts = (found[0].label_ids, found[0].inputs, found[0].losses)
    others = (None if part is None else _take(part, rows) for part in parts)
    whole = EvalPrediction(outputs[0] if outputs else None, *others)
    return Predictions(losses.astype(np.float64), counts.astype(np.float64), whole)


def halves(size: int, seed: int, name: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return two disjoint halves of the numbers below `size`, the same for the same size, seed and name.

    Raises:
        ValueError: if there are fewer than two.

    >>> [half.tolist() for half in halves(5, 0, "domain")]
    [[0, 1], [2, 3, 4]]
    """
    if size < 2:
        raise ValueError(f"The evaluation set {name!r} must have at least 2 examples to be halved, got {size}.")
    order = np.random.default_rng([seed, *name.encode()]).permutation(size)
    return np.sort(order[: size // 2]), np.sort(order[size // 2 :])


def ratio_units(sums: Units, counts: Units) -> Units:
    """Return units of Σ sums / Σ counts, linear about it: their mean is the ratio, their spread its standard error.

    >>> ratio_units(np.array([2.0, 6.0]), np.array([1.0, 3.0]))
    array([2., 2.])
    >>> ratio_units(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    array([1., 2.])
    """
    total = counts.sum()
    ratio = sums.sum() / total
    return ratio + (sums - ratio * counts) * (len(counts) / total)


def jackknife_units(value: Callable[[npt.NDArray[np.intp]], float], rows: npt.NDArray[np.intp]) -> Units:
    """Return pseudo-values of any metric, leaving out one group of rows after the other (Quenouille 1956, Tukey 1958).

    Returns:
        one unit a group; their mean is the metric itself, without the correction of its bias.

    >>> units = jackknife_units(lambda rows: float(rows.mean()), np.arange(4))
    >>> units.tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    groups = min(JACKKNIFE_GROUPS, len(rows))
    whole = float(value(rows))
    if groups < 2:
        return np.array([whole])
    group_of = np.arange(len(rows)) % groups
    without = np.array([float(value(rows[group_of != group])) for group in range(groups)])
    pseudo = groups * whole - (groups - 1) * without
    return pseudo + (whole - pseudo.mean())


def summarise(units: Units) -> tuple[float, float | None]:
    """Return a metric and its standard error, which one unit alone does not tell.

    >>> summarise(np.array([1.0, 3.0]))
    (2.0, 1.0)
    >>> summarise(np.array([0.5]))
    (0.5, None)
    """
    error = float(units.std(ddof=1) / np.sqrt(len(units))) if len(units) > 1 else None
    return float(units.mean()), error


def wilson_interval(share: float, size: int) -> tuple[float, float]:
    """Return the 95% interval of a share of so many examples (Wilson 1927), which is never of no width.

    >>> [round(end, 3) for end in wilson_interval(0.0, 100)]
    [0.0, 0.037]
    """
    from scipy.stats import binomtest

    low, high = binomtest(round(share * size), size).proportion_ci(method="wilson")
    return float(low), float(high)


def estimate(units: Units) -> dict[str, float | None]:
    """Return a metric with its 95% interval: Wilson's for a share, else 1.96 standard errors."""
    value, error = summarise(units)
    low = high = None
    if np.isin(units, (0, 1)).all():
        low, high = wilson_interval(value, len(units))
    elif error is not None:
        low, high = value - 1.96 * error, value + 1.96 * error
    return {"value": value, "low": low, "high": high}


def _losses(outputs: Any, labels: Any, shift_labels: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of losses and number of labels of each example; NaN where logits and labels do not fit together.

    Of several labels, such as the first and last token of an answer, the mean counts, as in the models of transformers.
    """
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    targets = labels if isinstance(labels, (tuple, list)) else (labels,)
    found = [
        per_example_loss(SimpleNamespace(logits=logits), target, shift_labels=shift_labels)
        for logits, target in zip(outputs, targets, strict=False)
        if isinstance(target, torch.Tensor)
    ]
    known = [loss for loss in found if loss is not None]
    if len(known) < len(targets):
        device = next((one.device for one in outputs if isinstance(one, torch.Tensor)), torch.device("cpu"))
        nothing = torch.full((find_batch_size(outputs) or 0,), float("nan"), device=device)
        return nothing, nothing
    losses = torch.stack(known).mean(dim=0)
    if len(targets) > 1:
        return losses, torch.ones_like(losses)
    counts = count_labels(targets[0], shift_labels=shift_labels)
    return losses * counts, counts


def example_hits(found: Predictions, rows: npt.NDArray[np.intp]) -> Units | None:
    """Return whether the highest logit is the label, for each example; `None` for other shapes."""
    logits, labels = found.whole.predictions, found.whole.label_ids
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    if not isinstance(logits, np.ndarray) or not isinstance(labels, np.ndarray):
        return None
    if logits.ndim == 2 and labels.ndim == 1:
        return (logits[rows].argmax(-1) == labels[rows]).astype(np.float64)
    return None


def check_whole_weights(trainer: Trainer) -> None:
    """Refuse a trainer whose processes hold pieces of the weights."""
    if trainer.is_fsdp_enabled or (trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled()):
        raise ValueError(
            "A search over α needs the whole model in every process, which FSDP and DeepSpeed's ZeRO-3 divide. Train "
            "without `alpha_search` and `eval_harness`, and search in one process afterwards: hf-interp curve RUN "
            "--save_model."
        )


def _check_arguments(trainer: Trainer) -> None:
    """Refuse what leaves weights or predictions in pieces, or changes the weights' type for an evaluation."""
    check_whole_weights(trainer)
    whole = "must be left at its default for a search over α, which needs whole predictions."
    cast = (
        "must be off for a search over α: it casts the model, so that M_θ could not be put back. Load M_θ in 16 bits "
        "instead."
    )
    rules = dict.fromkeys(("prediction_loss_only", "batch_eval_metrics", "eval_do_concat_batches"), whole)
    for name, rule in {**rules, "fp16_full_eval": cast, "bf16_full_eval": cast}.items():
        if getattr(trainer.args, name) is not (name == "eval_do_concat_batches"):
            raise ValueError(f"`{name}` {rule}")


def _take(tree: Any, rows: npt.NDArray[np.intp] | slice) -> Any:
    """Take rows of an array, or of every array in tuples and dictionaries."""
    if isinstance(tree, Mapping):
        return {key: _take(value, rows) for key, value in tree.items()}
    if isinstance(tree, Sequence):
        return tuple(_take(value, rows) for value in tree)
    return tree[rows]
