"""Metrics against scikit-learn, seqeval, sacrebleu and rouge_score, without a network."""

import math
import socket
import sys
from typing import Any

import evaluate
import numpy as np
import pytest
import sacrebleu
import torch
from seqeval import metrics as seqeval_metrics
from sklearn import metrics as sklearn_metrics
from toys import number_tokenizer
from transformers import EvalPrediction

from hf_interp.tasks.metrics import (
    Accuracy,
    Entities,
    MacroF1,
    MatthewsCorrelation,
    RocAuc,
    Summary,
    Translation,
    classification_metrics,
    generation_metrics,
    language_model_metrics,
    score_shifted_tokens,
    score_tokens,
    token_metrics,
)

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


def test_metrics_of_a_case_by_hand() -> None:
    # Two classes: 3 true positives, 1 false positive, 1 false negative, 2 true negatives.
    predictions, references = [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0]
    found = classification_metrics()(EvalPrediction(np.eye(2)[predictions], np.array(references)))
    assert found == pytest.approx(
        {"accuracy": 5 / 7, "f1": (6 / 8 + 4 / 6) / 2, "matthews_correlation": (3 * 2 - 1) / 12, "roc_auc": 8.5 / 12}
    )


def test_the_area_under_the_curve_needs_both_classes() -> None:
    logits = np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    compute = classification_metrics()
    assert "roc_auc" not in compute(EvalPrediction(logits, np.array([1, 1, 1])))
    assert compute(EvalPrediction(logits, np.array([0, 1, 1])))["roc_auc"] == 1.0
    assert compute(EvalPrediction(logits, np.array([0, 1, 0])))["roc_auc"] == 1.0
    assert compute(EvalPrediction(logits, np.array([1, 0, 1])))["roc_auc"] == 0.0
    assert "roc_auc" not in compute(EvalPrediction(np.eye(3), np.array([0, 1, 1])))
    assert math.isnan(RocAuc(keep_in_memory=True).compute(predictions=[0.5], references=[1])["roc_auc"])


def test_several_labels() -> None:
    logits = np.array([[1.0, -1.0, 0.1], [0.0, 2.0, -3.0]])  # 0 is no label
    labels = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    found = classification_metrics("multi_label_classification")(EvalPrediction(logits, labels))
    assert found == pytest.approx({"f1": 6 / 7, "f1_macro": (2 / 3 + 1 + 1) / 3, "exact_match": 0.5})


def test_regression() -> None:
    compute = classification_metrics("regression")
    found = compute(EvalPrediction(np.array([[1.0], [2.0], [3.0]]), np.array([2.0, 4.0, 6.0])))
    assert found == pytest.approx({"pearson": 1.0, "mse": 14 / 3, "mae": 2.0})
    found = compute(EvalPrediction(np.array([[1.0], [1.0]]), np.array([2.0, 4.0])))
    assert found == pytest.approx({"pearson": 0.0, "mse": 5.0, "mae": 2.0})
    assert compute(EvalPrediction(np.array([[1.0]]), np.array([1.0])))["pearson"] == 0.0


def test_entities_are_counted_whole() -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    labels = np.array([[-100, 1, 2, 0, 3, -100], [0, 0, 3, -100, -100, -100]])
    predicted = np.array([[0, 1, 2, 0, 0, 1], [0, 1, 3, 0, 0, 0]])
    found = token_metrics(names)(EvalPrediction(np.eye(4)[predicted], labels))
    # found: PER (right), PER (wrong), LOC (right); there: PER, LOC, LOC
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "token_accuracy": 5 / 7})
    half = np.array([[0, 1, 0, 0, 3, 0], [0, 0, 3, 0, 0, 0]])  # a part of an entity is none
    assert token_metrics(names)(EvalPrediction(np.eye(4)[half], labels))["recall"] == pytest.approx(2 / 3)
    nothing = token_metrics(names)(EvalPrediction(np.eye(4)[np.zeros((1, 2), int)], np.array([[0, -100]])))
    assert nothing == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "token_accuracy": 1.0}
    assert token_metrics(["NOUN", "VERB"])(EvalPrediction(np.eye(2)[[[1]]], np.array([[1]]))) == {"token_accuracy": 1.0}


def test_generated_texts() -> None:
    words = number_tokenizer()
    labels = np.array([[11, 12, 13, 14, 15, -100], [21, 22, 23, 24, 25, 26]])
    same = np.where(labels < 0, 0, labels)
    found = generation_metrics(words, [Translation, Summary])(EvalPrediction(same, labels))
    assert found == pytest.approx(
        {"bleu": 100.0, "chrf": 100.0, "rougeL": 1.0, "rouge1": 1.0, "rouge2": 1.0, "generated_tokens": 5.5}
    )
    swapped = np.array([[12, 11, -100, -100]])
    found = generation_metrics(words, [Summary])(EvalPrediction(swapped, np.array([[11, 12]])))
    assert found == pytest.approx({"rougeL": 0.5, "rouge1": 1.0, "rouge2": 0.0, "generated_tokens": 2.0})
    assert generation_metrics(words, [Summary])(EvalPrediction(np.zeros((1, 2, 9)), np.array([[11, 12]]))) == {}


def test_perplexity_is_over_labels_and_not_over_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 5), torch.tensor([[1, 2, -100, -100], [-100] * 4, [0, 1, 2, 3]])
    losses, hits = score_tokens(logits, labels)
    each = torch.nn.functional.cross_entropy(logits.reshape(-1, 5), labels.reshape(-1), ignore_index=-100)
    right = (logits.argmax(-1) == labels)[labels != -100].float().mean()
    padded = (
        np.pad(losses.numpy(), ((0, 0), (0, 2)), constant_values=-100),
        np.pad(hits.numpy(), ((0, 0), (0, 2)), constant_values=-100),
    )
    found = language_model_metrics(EvalPrediction(padded, np.full((3, 6), -100)))
    assert found == pytest.approx({"perplexity": math.exp(each), "token_accuracy": right.item()})
    assert language_model_metrics(EvalPrediction((losses[1:2].numpy(), hits[1:2].numpy()), labels[1:2].numpy())) == {}


def test_causal_models_predict_the_next_token() -> None:
    logits = 50 * torch.eye(5)[torch.tensor([[2, 3, 4, 0]])]
    losses, hits = score_shifted_tokens((logits, "more"), torch.tensor([[1, 2, 3, -100]]))
    assert hits.tolist() == [[1, 1, -1]]
    assert losses[0, :2].max() < 1e-6
    prompted = torch.cat([torch.randn(1, 3, 5), logits], dim=1)  # three tokens before the input
    assert score_shifted_tokens(prompted, torch.tensor([[1, 2, 3, -100]]))[1].tolist() == hits.tolist()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"need sacrebleu\. Install it with `pip install hf_interp\[metrics\]`"):
        Translation(keep_in_memory=True).compute(predictions=["a"], references=["a"])


@pytest.mark.parametrize(
    ("kind", "predictions", "references", "expected"),
    [
        (MacroF1, [0, 3, 3], [0, 3, 0], {"f1": 2 / 3}),  # a class that is never met does not count
        (MacroF1, [0, 0], [0, 1], {"f1": 1 / 3}),  # one that is never predicted counts as zero
        (MatthewsCorrelation, [0, 0, 0], [0, 1, 1], {"matthews_correlation": 0.0}),
    ],
)
def test_classes_that_are_missing(kind: Any, predictions: Any, references: Any, expected: dict[str, float]) -> None:
    assert kind(keep_in_memory=True).compute(predictions=predictions, references=references) == pytest.approx(expected)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("seed", range(4))
def test_the_highest_logit_is_the_prediction(seed: int) -> None:
    predictions, references = random_classes(seed)
    noise = np.random.default_rng(seed).normal(size=(len(predictions), NUM_CLASSES))
    logits = noise + 100 * np.eye(NUM_CLASSES)[predictions]
    compute = classification_metrics()
    found = compute(EvalPrediction(logits, np.array(references)))
    expected = {
        "accuracy": np.mean(np.array(predictions) == references),
        "f1": sklearn_metrics.f1_score(references, predictions, average="macro"),
        "matthews_correlation": sklearn_metrics.matthews_corrcoef(references, predictions),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(number) is float for number in found.values())
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


def test_a_model_that_has_diverged_is_measured() -> None:
    logits = np.array([[np.nan, 1.0], [0.0, 1.0]])
    found = classification_metrics()(EvalPrediction(logits, np.array([0, 1])))
    assert math.isnan(found.pop("roc_auc"))
    assert set(found) == {"accuracy", "f1", "matthews_correlation"}
    found = classification_metrics("regression")(EvalPrediction(np.array([[np.nan], [1.0]]), np.array([0.0, 1.0])))
    assert all(math.isnan(value) for value in found.values())
    assert set(found) == {"pearson", "mse", "mae"}


def test_metrics_agree_with_the_packages_that_count() -> None:
    found = ["the cat sat on the mat", "running dogs", "a b c d"]
    wanted = ["the cat is on the mat", "the dog runs", "a b c d e"]
    assert Translation(keep_in_memory=True).compute(predictions=found, references=wanted) == {
        "bleu": pytest.approx(sacrebleu.BLEU().corpus_score(found, [wanted]).score),
        "chrf": pytest.approx(sacrebleu.CHRF().corpus_score(found, [wanted]).score),
    }
    # Words in common, of those found and those wanted: 5 of 6 and 6; 2 of 2 and 3, by their stems; 4 of 4 and 5.
    one = [5 / 6, 2 * 2 / 5, 2 * 4 / 9]
    two = [3 / 5, 0.0, 2 * 3 / 7]  # pairs of words
    longest = [5 / 6, 2 * 1 / 5, 2 * 4 / 9]  # "run dog" against "the dog run"
    assert Summary(keep_in_memory=True).compute(predictions=found, references=wanted) == {
        "rouge1": pytest.approx(sum(one) / 3),
        "rouge2": pytest.approx(sum(two) / 3),
        "rougeL": pytest.approx(sum(longest) / 3),
    }
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    draw = np.random.default_rng(0)
    predicted, true = ([[str(tag) for tag in draw.choice(tags, size=9)] for _ in range(20)] for _ in range(2))
    assert Entities(keep_in_memory=True).compute(predictions=predicted, references=true) == {
        "f1": seqeval_metrics.f1_score(true, predicted),
        "precision": seqeval_metrics.precision_score(true, predicted),
        "recall": seqeval_metrics.recall_score(true, predicted),
    }
