"""Metrics against scikit-learn, without a network."""

import socket
from typing import Any

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction

from hf_interp.metrics import Accuracy, MacroF1, MatthewsCorrelation, classification_metrics

NUM_CLASSES = 5


def random_classes(seed: int, size: int = 200) -> tuple[list[int], list[int]]:
    """Predictions that agree with their references about half of the time."""
    draw = np.random.default_rng(seed)
    references = draw.integers(NUM_CLASSES, size=size)
    guesses = draw.integers(NUM_CLASSES, size=size)
    return np.where(draw.random(size) < 0.4, references, guesses).tolist(), references.tolist()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a metric asked for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    predictions, references = random_classes(seed)
    expected = {
        Accuracy: {"accuracy": np.mean(np.array(predictions) == references)},
        MacroF1: {"f1": sklearn_metrics.f1_score(references, predictions, average="macro")},
        MatthewsCorrelation: {"matthews_correlation": sklearn_metrics.matthews_corrcoef(references, predictions)},
    }
    for metric, value in expected.items():
        found = metric(keep_in_memory=True).compute(predictions=predictions, references=references)
        assert found == pytest.approx(value, abs=1e-12)
        assert all(type(number) is float for number in found.values())


def test_metrics_of_a_case_by_hand() -> None:
    # Two classes: 3 true positives, 1 false positive, 1 false negative, 2 true negatives.
    predictions, references = [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0]
    found = classification_metrics()(EvalPrediction(np.eye(2)[predictions], np.array(references)))
    assert found == pytest.approx(
        {"accuracy": 5 / 7, "f1": (6 / 8 + 4 / 6) / 2, "matthews_correlation": (3 * 2 - 1) / 12, "roc_auc": 8.5 / 12}
    )


def test_a_class_that_is_never_met_does_not_count() -> None:
    found = MacroF1(keep_in_memory=True).compute(predictions=[0, 3, 3], references=[0, 3, 0])
    assert found == pytest.approx({"f1": 2 / 3})


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    assert MacroF1(keep_in_memory=True).compute(predictions=[0, 0], references=[0, 1]) == pytest.approx({"f1": 1 / 3})


def test_guessing_one_class_has_no_correlation() -> None:
    found = MatthewsCorrelation(keep_in_memory=True).compute(predictions=[0, 0, 0], references=[0, 1, 1])
    assert found == {"matthews_correlation": 0.0}


@pytest.mark.usefixtures("no_network")
def test_the_highest_logit_is_the_prediction() -> None:
    predictions, references = random_classes(7)
    noise = np.random.default_rng(7).normal(size=(len(predictions), NUM_CLASSES))
    logits = noise + 100 * np.eye(NUM_CLASSES)[predictions]
    compute = classification_metrics()
    found = compute(EvalPrediction(logits, np.array(references)))
    assert found == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(references, predictions),
            "f1": sklearn_metrics.f1_score(references, predictions, average="macro"),
            "matthews_correlation": sklearn_metrics.matthews_corrcoef(references, predictions),
        }
    )
    # A model that also returns its states has a tuple for predictions, with the logits first.
    assert compute(EvalPrediction((logits, noise), np.array(references))) == found


def test_they_are_metrics_of_evaluate() -> None:
    predictions, references = random_classes(1, size=9)
    for kind in (Accuracy, MacroF1, MatthewsCorrelation):
        metric = kind(keep_in_memory=True)
        assert isinstance(metric, evaluate.Metric)
        for prediction, reference in zip(predictions, references, strict=True):
            metric.add(prediction=prediction, reference=reference)
        assert metric.compute() == kind(keep_in_memory=True).compute(predictions=predictions, references=references)
