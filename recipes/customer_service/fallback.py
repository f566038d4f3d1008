"""When to hand over to a human: thresholds, how they are calibrated, and the rule.

The classifier answers selectively: where its highest probability reaches a threshold, chosen on validation data so that
the accuracy of what it answers reaches a target with as many answers as possible (El-Yaniv & Wiener 2010, "On the
foundations of noise-free selective classification"; Geifman & El-Yaniv 2017, "Selective classification for deep neural
networks").
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_interp.utils.files import write_json

THRESHOLDS_NAME = "thresholds.json"
OUT_OF_SCOPE = ("oos", "out_of_scope")
"""Names of intents that are none."""

ASKS_FOR_HUMAN = re.compile(
    r"\b(humans?|real (person|people)|representatives?|operator"
    r"|(an|the|your|another|live) agent"
    r"|(speak|talk|chat) (to|with) (someone|somebody|a person))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What answering only from a threshold on comes to.

    Args:
        threshold: answered is what has at least this probability.
        coverage: share of the texts that are answered, in [0, 1].
        accuracy: share of the answered that are right, in [0, 1]; `None` if nothing is answered.
        num_answered, num_texts: the counts behind the two.
    """

    threshold: float
    coverage: float
    accuracy: float | None
    num_answered: int
    num_texts: int


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """From where on a turn is answered.

    Args:
        probability: of the intent, in [0, 1].
        similarity: cosine of the most similar past request, in [−1, 1].
        model: fingerprint of the intent model that they were chosen for; `None` for thresholds given by hand.
        measured: what the choice came to.
    """

    probability: float
    similarity: float = -1.0
    model: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("probability", 0.0), ("similarity", -1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= 1.0:
                raise ValueError(f"The threshold `{name}` must be a number in [{low:g}, 1], got {value!r}.")


def selective(probabilities: Sequence[float], correct: Sequence[bool], threshold: float) -> Selection:
    """Coverage and accuracy of answering what has at least the probability `threshold`.

    >>> selective([0.9, 0.8, 0.4], [True, False, True], 0.8)
    Selection(threshold=0.8, coverage=0.6666666666666666, accuracy=0.5, num_answered=2, num_texts=3)
    """
    if len(probabilities) != len(correct) or not len(probabilities):
        raise ValueError(
            f"There must be as many probabilities as judgements, at least one, got {len(probabilities)} and "
            f"{len(correct)}."
        )
    answered = np.asarray(probabilities) >= threshold
    count, right = int(answered.sum()), int((answered & np.asarray(correct, dtype=bool)).sum())
    return Selection(
        threshold=threshold,
        coverage=count / len(answered),
        accuracy=right / count if count else None,
        num_answered=count,
        num_texts=len(answered),
    )


def choose_threshold(probabilities: Sequence[float], correct: Sequence[bool], target_accuracy: float) -> Selection:
    """The lowest threshold, hence the greatest coverage, whose answers are right with the target accuracy.

    Only probabilities that occur are tried, as texts of equal probability are answered together or not at all. The
    accuracy on the texts of the choice flatters a little; measure it on others (`selective`).

    Args:
        probabilities: highest probability of each text.
        correct: whether the intent with that probability is right; `False` for texts out of scope.
        target_accuracy: in (0, 1].

    Raises:
        ValueError: if no threshold reaches the target.

    >>> choose_threshold([0.9, 0.8, 0.7, 0.6], [True, True, False, True], 0.75).threshold
    0.6
    >>> choose_threshold([0.9, 0.8, 0.7, 0.6], [True, True, False, True], 0.76).threshold
    0.8
    """
    if not 0 < target_accuracy <= 1:
        raise ValueError(f"`target_accuracy` must be in (0, 1], got {target_accuracy}.")
    found = [selective(probabilities, correct, threshold) for threshold in np.unique(probabilities).tolist()]
    for one in found:
        # In whole numbers where it counts: 19 of 20 reach 0.95, though 0.95 * 20 is not exactly 19 for a computer.
        if one.accuracy is not None and one.accuracy >= target_accuracy - 1e-12:
            return one
    best = max(found, key=lambda one: one.accuracy or 0.0)
    raise ValueError(
        f"No threshold reaches `target_accuracy` {target_accuracy:g} on these {best.num_texts} texts; the best "
        f"accuracy is {best.accuracy:.3f}, of {best.num_answered} answered. Lower the target, or train a better model."
    )


def choose_similarity(similarities: Sequence[float], keep: float) -> float:
    """The highest threshold that at least the share `keep` of the texts reaches.

    >>> choose_similarity([0.9, 0.5, 0.7, 0.8], 0.75)
    0.7
    """
    if not 0 < keep <= 1:
        raise ValueError(f"`keep_similar` must be in (0, 1], got {keep}.")
    if not len(similarities):
        raise ValueError("There must be at least one similarity, got none.")
    ordered = sorted(similarities, reverse=True)
    needed = next(count for count in range(1, len(ordered) + 1) if count >= keep * len(ordered) - 1e-9)
    return float(ordered[needed - 1])


def reason_to_hand_over(
    text: str,
    *,
    intent: str,
    probability: float,
    similarity: float | None,
    thresholds: Thresholds,
    is_follow_up: bool = False,
) -> str | None:
    """Why a turn goes to a human; `None` if it is answered. The first that holds counts.

    Args:
        text: what the user says.
        intent, probability: the likeliest intent.
        similarity: of the most similar past request; `None` where there are no past answers.
        is_follow_up: whether the turn goes on with a request that was answered, so that it need have no intent of its
            own.

    >>> rule = {"intent": "card_arrival", "similarity": 0.9, "thresholds": Thresholds(probability=0.8, similarity=0.5)}
    >>> reason_to_hand_over("Where is my card?", probability=0.8, **rule)
    >>> reason_to_hand_over("Where is my card?", probability=0.79, **rule)
    'unsure of the intent (0.79 < 0.80)'
    >>> reason_to_hand_over("I want to talk to a human", probability=0.99, **rule)
    'asked for a human'
    """
    if ASKS_FOR_HUMAN.search(text):
        return "asked for a human"
    if not is_follow_up:
        if intent.lower() in OUT_OF_SCOPE:
            return "out of scope"
        if probability < thresholds.probability:
            return f"unsure of the intent ({_below(probability, thresholds.probability)})"
    if similarity is not None and similarity < thresholds.similarity:
        return f"no similar past request ({_below(similarity, thresholds.similarity)})"
    return None


def save_thresholds(thresholds: Thresholds, path: Path) -> None:
    """Write thresholds as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(thresholds), indent=2)


def load_thresholds(path: Path, model: str) -> Thresholds:
    """Read thresholds.

    Args:
        model: fingerprint of the intent model at hand.

    Raises:
        ValueError, FileNotFoundError: if there are none, they are not readable, or another model's.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no thresholds in {str(path)!r}. Calibrate them (--calibrate FILE), name their file "
            "(--thresholds FILE), or set --threshold."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = Thresholds(**values)
    except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} does not hold thresholds: {error}. Calibrate them again.") from error
    if found.model not in (None, model):
        raise ValueError(
            f"The thresholds in {str(path)!r} were chosen for another intent model ({found.model}, not {model}). "
            "Calibrate them again (--calibrate FILE)."
        )
    return found


def _below(value: float, threshold: float) -> str:
    """Both numbers with as many digits as tell them apart, at least two."""
    digits = next((digits for digits in range(2, 8) if f"{value:.{digits}f}" != f"{threshold:.{digits}f}"), 8)
    return f"{value:.{digits}f} < {threshold:.{digits}f}"
