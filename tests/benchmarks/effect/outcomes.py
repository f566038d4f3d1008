"""What a model made of every test example, and short texts that hold it.

Every metric here is Σ numerator / Σ denominator over the examples: accuracy (hits / 1), the loss a token (summed loss /
tokens) and F1 of entities (2·found / (predicted + true)). So all of them can be resampled alike.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_interp.selection.scoring import Predictions

Array = npt.NDArray[np.float64]
MILLI = 1000.0  # losses are kept in thousandths of a nat


@dataclass(frozen=True)
class Outcomes:
    """Numerator and denominator of a metric for every example."""

    numerators: Array
    denominators: Array

    @property
    def value(self) -> float:
        """The metric; 0 where there is nothing to divide by."""
        total = self.denominators.sum()
        return float(self.numerators.sum() / total) if total else 0.0


def outcomes_of(metric: str, found: Predictions, label_names: Sequence[str] | None) -> Outcomes:
    """What a metric needs of predictions.

    Args:
        metric: accuracy, f1 or loss.
        found: what `hf_interp.selection.scoring.predict` returns.
        label_names: the tags, for f1.
    """
    if metric == "loss":
        return Outcomes(found.losses, found.counts)
    predicted: Any = found.whole.predictions
    predicted = predicted[0] if isinstance(predicted, tuple) else predicted
    labels: Any = found.whole.label_ids
    if metric == "accuracy":
        return Outcomes((predicted.argmax(-1) == labels).astype(np.float64), np.ones(len(labels)))
    counts = [
        _entity_counts(row[keep], truth[keep], label_names or [])
        for row, truth, keep in zip(predicted.argmax(-1), labels, labels != -100, strict=True)
    ]
    return Outcomes(*np.array(counts, dtype=np.float64).reshape(-1, 2).T)


def _entity_counts(predicted: Any, truth: Any, names: Sequence[str]) -> tuple[int, int]:
    from seqeval.metrics.sequence_labeling import get_entities

    found, wanted = (set(get_entities([names[index] for index in row])) for row in (predicted, truth))
    return 2 * len(found & wanted), len(found) + len(wanted)


def pack(metric: str, outcomes: Outcomes) -> str:
    """Outcomes as a text: bits in hexadecimal digits, counts of entities or mean losses as compressed bytes."""
    if metric == "accuracy":
        return np.packbits(outcomes.numerators.astype(bool)).tobytes().hex()
    if metric == "f1":
        counts = np.stack([outcomes.numerators, outcomes.denominators])
        return _compress(counts.clip(0, 255).astype(np.uint8))
    means = outcomes.numerators / np.maximum(outcomes.denominators, 1)
    return _compress(np.rint(MILLI * means).clip(0, 65535).astype("<u2"))


def unpack(metric: str, text: str, counts: Sequence[int]) -> Outcomes:
    """What `pack` has packed, up to the rounding of losses.

    Args:
        metric: as it was packed.
        text: of `pack`.
        counts: the denominators of accuracy and loss; of f1 only how many examples there are.
    """
    weights = np.asarray(counts, dtype=np.float64)
    if metric == "accuracy":
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=len(weights))
        return Outcomes(bits.astype(np.float64), weights)
    data = zlib.decompress(base64.b64decode(text))
    if metric == "f1":
        numerators, denominators = np.frombuffer(data, dtype=np.uint8).reshape(2, len(weights)).astype(np.float64)
        return Outcomes(numerators, denominators)
    return Outcomes(np.frombuffer(data, dtype="<u2").astype(np.float64) / MILLI * weights, weights)


def counts_of(metric: str, outcomes: Mapping[str, Outcomes]) -> dict[str, list[int]]:
    """What `unpack` must be told of each side, which is the same for every run."""
    return {side: found.denominators.astype(int).tolist() for side, found in outcomes.items()}


def _compress(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
