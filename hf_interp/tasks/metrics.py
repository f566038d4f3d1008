"""Metrics that need no network: `evaluate.Metric` subclasses over scikit-learn, seqeval, sacrebleu and rouge_score.

`evaluate.load("accuracy")` downloads a script; these are the same metrics as classes, so that they work offline.
Importing `evaluate` takes seconds: import this module where metrics are computed.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction, PreTrainedTokenizerBase

from hf_interp.losses.per_example import IGNORE_INDEX, PAIR, have_same
from hf_interp.tasks.speech import transcribe
from hf_interp.utils.errors import import_extra


class _Metric(evaluate.Metric):
    """A metric that is described by its docstring and the types of what it compares."""

    _predictions: Any = datasets.Value("int64")
    _references: Any = datasets.Value("int64")

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": self._predictions, "references": self._references})
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", inputs_description="", features=features
        )


class Accuracy(_Metric):
    """Share of predictions that equal their reference, in [0, 1]."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class MacroF1(_Metric):
    """F1 of each class that occurs in the references or predictions, averaged without weights, in [0, 1]."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"f1": float(sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0.0))}


class MatthewsCorrelation(_Metric):
    """Matthews correlation coefficient, in [−1, 1]; 0 for guessing (Matthews 1975)."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        if len({*references, *predictions}) < 2:  # scikit-learn warns and says 0 too
            return {"matthews_correlation": 0.0}
        return {"matthews_correlation": float(sklearn_metrics.matthews_corrcoef(references, predictions))}


class RocAuc(_Metric):
    """Area under the ROC curve of two classes, in [0, 1]: how often a positive example scores above a negative one.

    NaN where the references have one class alone, or a score is not finite.
    """

    _predictions = datasets.Value("float64")

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        if len(set(references)) < 2 or not np.isfinite(predictions).all():  # scikit-learn warns or fails
            return {"roc_auc": float("nan")}
        return {"roc_auc": float(sklearn_metrics.roc_auc_score(references, predictions))}


class MultiLabel(_Metric):
    """F1 over all labels of all examples, F1 averaged over labels, and the share of examples that are right whole."""

    _predictions = _references = datasets.List(datasets.Value("int64"))

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
        found, wanted = np.asarray(predictions), np.asarray(references)
        return {
            "f1": float(sklearn_metrics.f1_score(wanted, found, average="micro", zero_division=0.0)),
            "f1_macro": float(sklearn_metrics.f1_score(wanted, found, average="macro", zero_division=0.0)),
            "exact_match": float((found == wanted).all(axis=1).mean()),
        }


class Regression(_Metric):
    """Pearson's correlation (0 where one side is constant), mean squared and mean absolute error."""

    _predictions = _references = datasets.Value("float64")

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        found, wanted = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        is_constant = len(found) < 2 or np.ptp(found) == 0 or np.ptp(wanted) == 0
        return {
            "pearson": 0.0 if is_constant else round(float(np.corrcoef(found, wanted)[0, 1]), 12),
            "mse": float(np.mean((found - wanted) ** 2)),  # NaN for a model that has diverged; scikit-learn fails
            "mae": float(np.mean(np.abs(found - wanted))),
        }


class Entities(_Metric):
    """Precision, recall and F1 of whole entities in the scheme IOB2, over all kinds together (CoNLL-2000's way).

    seqeval counts: https://github.com/chakki-works/seqeval
    """

    _predictions = _references = datasets.List(datasets.Value("string"))

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        seqeval = _import("seqeval.metrics")
        with warnings.catch_warnings():  # that there is nothing to divide by is what the zeros say
            warnings.simplefilter("ignore")
            return {
                name: float(getattr(seqeval, f"{name}_score")(list(references), list(predictions), zero_division=0))
                for name in ("f1", "precision", "recall")
            }


class Translation(_Metric):
    """Corpus BLEU and chrF, in [0, 100]; sacrebleu counts, with its tokenizer 13a (Post 2018, arXiv 1804.08771)."""

    _predictions = _references = datasets.Value("string")

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        sacrebleu = _import("sacrebleu")
        bleu = sacrebleu.corpus_bleu(list(predictions), [list(references)]).score
        chrf = sacrebleu.corpus_chrf(list(predictions), [list(references)]).score
        return {"bleu": round(float(bleu), 10), "chrf": round(float(chrf), 10)}


class Summary(_Metric):
    """ROUGE-L, ROUGE-1 and ROUGE-2 F-measures with stemming, means over examples, in [0, 1] (Lin 2004).

    rouge_score counts: https://pypi.org/project/rouge-score
    """

    _predictions = _references = datasets.Value("string")

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        scorer = _import("rouge_score.rouge_scorer").RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=True)
        scores = [scorer.score(wanted, found) for found, wanted in zip(predictions, references, strict=True)]
        return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in scorer.rouge_types}


class Transcripts(_Metric):
    """Word and character error rates over all transcripts: edits by their words or characters, 0 at best.

    jiwer counts: https://github.com/jitsi/jiwer
    """

    _predictions = _references = datasets.Value("string")

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        jiwer = import_extra("jiwer", "Error rates of transcripts need jiwer", "audio")
        pair = list(references), list(predictions)
        return {"wer": float(jiwer.wer(*pair)), "cer": float(jiwer.cer(*pair))}


ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


def classification_metrics(problem_type: str | None = None) -> ComputeMetrics:
    """Return a `compute_metrics` for a `Trainer` with a sequence classifier.

    Of single_label_classification (default) it has accuracy, macro-F1, Matthews correlation of the highest logit and,
    of two classes, the area under the ROC curve; of multi_label_classification F1 (a label is predicted where its
    logit is above 0); of regression Pearson's correlation and errors.
    """
    if problem_type == "multi_label_classification":
        return _computing([MultiLabel], lambda logits, labels: ((logits > 0).astype(np.int64), labels.astype(int)))
    if problem_type == "regression":
        return _computing([Regression], lambda logits, labels: (logits.reshape(-1), labels.reshape(-1)))
    of_classes = _computing(
        [Accuracy, MacroF1, MatthewsCorrelation], lambda logits, labels: (np.argmax(logits, axis=-1), labels)
    )
    of_scores = _computing([RocAuc], lambda logits, labels: (logits[:, 1] - logits[:, 0], labels))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        is_binary = _first(prediction.predictions).shape[-1] == len(np.unique(prediction.label_ids)) == 2
        return of_classes(prediction) | (of_scores(prediction) if is_binary else {})

    return compute_metrics


def keep_embeddings(logits: Any, labels: torch.Tensor) -> Any:
    """Keep of images and texts, each with its own, their embeddings, and of images with classes the logits.

    `logits` are what a model such as CLIP gives: logits by image and by text, embeddings of texts and of images.
    """
    by_image, _, texts, images = logits[:4]
    return (images, texts) if labels[0] >= PAIR else by_image


def image_text_metrics() -> ComputeMetrics:
    """Return a `compute_metrics` of what `keep_embeddings` keeps: of classes those of a classifier, else of retrieval.

    Among all images and texts of a set, `text_recall_at_5` is the share of images with a text of theirs among the five
    that are nearest, `image_recall_at_5` that of texts, and `recall_at_1` the mean of both ways. Of ties the
    other is nearer.
    """
    of_classes = classification_metrics()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        if not isinstance(prediction.predictions, tuple):
            return of_classes(prediction)
        images, texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in prediction.predictions)
        near, own = images @ texts.T, have_same(torch.as_tensor(prediction.label_ids)).numpy()
        found: dict[str, float] = {}
        for way, scores in (("text", near), ("image", near.T)):
            best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
            nearer = ((scores >= best) & ~own).sum(axis=1)
            found |= {f"{way}_recall_at_{most}": float((nearer < most).mean()) for most in (1, 5)}
        return {"recall_at_1": (found["text_recall_at_1"] + found["image_recall_at_1"]) / 2, **found}

    return compute_metrics


def token_metrics(label_names: Sequence[str]) -> ComputeMetrics:
    """Return a `compute_metrics` for token classification: of entities if the labels are IOB2 tags, and of tokens."""
    names = list(label_names)
    entities = Entities(keep_in_memory=True) if any(name[:2] == "B-" for name in names) else None

    def tags(rows: Any, mask: Any) -> list[list[str]]:
        return [[names[index] for index in row[keep]] for row, keep in zip(rows, mask, strict=True)]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions = np.argmax(_first(prediction.predictions), axis=-1)
        labels: Any = prediction.label_ids
        mask = labels != IGNORE_INDEX
        found: dict[str, float] = {}
        if entities is not None:
            found = entities.compute(predictions=tags(predictions, mask), references=tags(labels, mask))
        return {**found, "token_accuracy": float((predictions[mask] == labels[mask]).mean()) if mask.any() else 0.0}

    return compute_metrics


def generation_metrics(tokenizer: PreTrainedTokenizerBase, kinds: Sequence[type[evaluate.Metric]]) -> ComputeMetrics:
    """Return a `compute_metrics` of the texts that `predict_with_generate` gives, such as `Translation`."""

    def texts(tokens: Any) -> list[str]:
        tokens = np.where(tokens < 0, tokenizer.pad_token_id, tokens)
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    of_texts = _computing(kinds, lambda generated, labels: (texts(generated), texts(labels)))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        generated: Any = _first(prediction.predictions)
        if generated.ndim != 2:  # logits, of an evaluation that has not generated
            return {}
        found = of_texts(prediction)
        is_token = (generated != tokenizer.pad_token_id) & (generated >= 0)  # `Trainer` pads with −100
        return {**found, "generated_tokens": float(is_token.sum(axis=1).mean())}

    return compute_metrics


def transcription_metrics(processor: Any, *, of_ctc: bool) -> ComputeMetrics:
    """Return a `compute_metrics` of transcripts: of CTC's likeliest tokens of every frame, or of generated tokens."""
    tokenizer = processor.tokenizer

    def texts(tokens: Any, *, of_frames: bool) -> list[str]:
        rows = np.where(tokens < 0, tokenizer.pad_token_id, tokens).tolist()
        return [transcribe(processor, row, of_ctc=of_ctc, of_frames=of_frames) for row in rows]

    return _computing(
        [Transcripts], lambda found, labels: (texts(found, of_frames=of_ctc), texts(labels, of_frames=False))
    )


def likeliest_tokens(logits: Any, labels: Any) -> Any:
    """Keep the tokens of logits (batch, frames, vocabulary) (`preprocess_logits_for_metrics`); tokens stay tokens."""
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    return logits.argmax(dim=-1) if logits.is_floating_point() else logits


def language_model_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Perplexity and accuracy over the labels, of what `score_shifted_tokens` or `score_tokens` has made of the logits.

    The perplexity is exp of the mean loss over all labels; the loss that `Trainer` reports is a mean of batches' means.
    """
    losses, hits = prediction.predictions
    mask = np.asarray(hits) >= 0
    if not mask.any():
        return {}
    mean = float(np.asarray(losses, dtype=np.float64)[mask].mean())
    return {"perplexity": math.exp(min(mean, 700.0)), "token_accuracy": float(np.asarray(hits)[mask].mean())}


def score_tokens(logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep two numbers for each label instead of the whole vocabulary's logits (`preprocess_logits_for_metrics`).

    Of logits (batch, length, vocabulary), or a tuple that begins so, and labels (batch, length), −100 where there is
    none, these are the losses in nats, and 1 or 0 for a right or wrong highest logit, −1 without a label.
    """
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORE_INDEX
    )
    hits = (logits.argmax(dim=-1) == labels).long()
    return losses, hits.masked_fill(labels == IGNORE_INDEX, -1)


def score_shifted_tokens(logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `score_tokens` for models of which position i predicts label i + 1; (batch, length − 1).

    Predictions for tokens that an adapter puts before the input are left out.
    """
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    logits = logits[:, logits.shape[1] - labels.shape[1] :]
    return score_tokens(logits[:, :-1], labels[:, 1:])


def _computing(kinds: Sequence[type[evaluate.Metric]], read: Callable[[Any, Any], tuple[Any, Any]]) -> ComputeMetrics:
    """Return a `compute_metrics` of several metrics, for what is read of logits and labels."""
    metrics = evaluate.combine([kind(keep_in_memory=True) for kind in kinds])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = read(_first(prediction.predictions), prediction.label_ids)
        found: dict[str, float] = metrics.compute(predictions=predictions, references=references)
        return found

    return compute_metrics


def _first(predictions: Any) -> Any:
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _import(module: str) -> Any:
    return import_extra(module, f"The metrics of this task need {module.partition('.')[0]}", "metrics")
