"""Metrics that need no network: `evaluate.Metric` subclasses over scikit-learn.

`evaluate.load("accuracy")` downloads a script; these are the same metrics as classes, so that they work offline.
Importing `evaluate` takes seconds: import this module where metrics are computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction


class _ClassificationMetric(evaluate.Metric):
    """Integer predictions against integer references."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", inputs_description="class ids", features=features
        )


class Accuracy(_ClassificationMetric):
    """Share of predictions that equal their reference, in [0, 1].

    >>> Accuracy(keep_in_memory=True).compute(predictions=[0, 1], references=[0, 0])
    {'accuracy': 0.5}
    """

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class MacroF1(_ClassificationMetric):
    """F1 of each class that occurs in the references or predictions, averaged without weights, in [0, 1].

    >>> MacroF1(keep_in_memory=True).compute(predictions=[0, 1], references=[0, 1])
    {'f1': 1.0}
    """

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"f1": float(sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0.0))}


class MatthewsCorrelation(_ClassificationMetric):
    """Matthews correlation coefficient, in [−1, 1]; 0 for guessing (Matthews 1975).

    >>> MatthewsCorrelation(keep_in_memory=True).compute(predictions=[0, 1], references=[0, 1])
    {'matthews_correlation': 1.0}
    """

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        if len({*references, *predictions}) < 2:  # scikit-learn warns and says 0 too
            return {"matthews_correlation": 0.0}
        return {"matthews_correlation": float(sklearn_metrics.matthews_corrcoef(references, predictions))}


def classification_metrics() -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for a `Trainer`: accuracy, macro-F1 and Matthews correlation of the highest logit."""
    parts = [metric(keep_in_memory=True) for metric in (Accuracy, MacroF1, MatthewsCorrelation)]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits: Any = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        predictions = np.argmax(logits, axis=-1)
        found: dict[str, float] = {}
        for part in parts:
            found |= part.compute(predictions=predictions, references=prediction.label_ids)
        return found

    return compute_metrics
