"""What likelihoods tell: which of two texts a model prefers, and which rows and canaries it was trained on.

The log-likelihood of a text is in nats, over its tokens without special ones. A causal model's is the sum of log p of
every token behind those before it; before the first stands the token that begins a text, or else that ends one. A
masked model's is the pseudo-log-likelihood of Salazar et al. (2020): the sum of log p of every token, it alone masked.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Trainer

from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.selection.scoring import Units, estimate, evaluating, halves, predict, wilson_interval
from hf_interp.utils.overrides import overrides

Encoded = Sequence[Mapping[str, Sequence[int]]]
"""Texts as a task has encoded them, uncut by packing."""
Pairs = tuple[Encoded, Encoded]
"""The first and the second texts of pairs."""

RATES = {"tpr_at_1_percent": 0.01, "tpr_at_0.1_percent": 0.001}
"""Rates of false positives at which the true positives are counted: what matters is who is found for sure."""
RESAMPLES = 500


def log_likelihoods(trainer: Trainer, rows: Encoded) -> Units:
    """Return the log-likelihood of every text by the present weights of a trainer's language model."""
    tokenizer: Any = trainer.processing_class
    scored = [list((_masked if "special_tokens_mask" in row else _causal)(row, tokenizer)) for row in rows]
    owners = np.repeat(np.arange(len(scored)), [len(parts) for parts in scored])
    examples = datasets.Dataset.from_list([part for parts in scored for part in parts])
    with overrides(trainer, data_collator=DataCollatorForSeq2Seq(tokenizer), compute_metrics=None):
        losses = predict(trainer, examples).losses
    return np.asarray(-np.bincount(owners, weights=losses, minlength=len(scored)), dtype=np.float64)


def _causal(row: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, list[int]]]:
    """Give the text with what begins it before it, where it begins with what counts."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if labels[0] != IGNORE_INDEX and start is not None and ids[0] != start:
        ids, labels = [start, *ids], [IGNORE_INDEX, *labels]
    if ids[-1] == tokenizer.eos_token_id:
        labels[-1] = IGNORE_INDEX
    yield {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _masked(row: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, list[int]]]:
    """Give the text once for each of its tokens, which is masked."""
    ids: list[int] = list(row["input_ids"])
    mask: Any = tokenizer.mask_token_id
    for place in np.flatnonzero(np.asarray(row["special_tokens_mask"]) == 0):
        labels = [token if other == place else IGNORE_INDEX for other, token in enumerate(ids)]
        yield {
            "input_ids": [*ids[:place], mask, *ids[place + 1 :]],
            "attention_mask": [1] * len(ids),
            "labels": labels,
        }


def compare_pairs(trainer: Trainer, sets: Mapping[str, Pairs]) -> dict[str, dict[str, Any]]:
    """Return for every set in how many pairs the first text is likelier, and by how much, with 95% intervals.

    A pair whose texts are equally likely counts half.
    """
    found = {}
    for name, pairs in sets.items():
        first, second = (log_likelihoods(trainer, rows) for rows in pairs)
        preferred = np.where(first == second, 0.5, first > second)
        found[name] = {
            "num": len(first),
            "preferred": estimate(preferred),
            "difference": estimate(first - second),
        }
    return found


# Rows that a model was trained on.


class Members(NamedTuple):
    """Rows that a model was trained on, and rows of the same kind that it was not."""

    rows: Any
    others: Any


def attacks(base: Sequence[Units], losses: Sequence[Units], seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Return how well two attacks find the members, by the losses of members and others: M₀'s, and those of a model.

    One goes by the loss (Yeom et al. 2018), one by how far it is below that of M₀, which says how hard a row is by
    itself (the offline attack of Carlini et al. 2022, with M₀ as the reference).
    """
    return {name: attack(*scores, seed) for name, scores in _scores(base, losses).items()}


def _scores(base: Sequence[Units], losses: Sequence[Units]) -> dict[str, tuple[Units, Units]]:
    """Return by attack the scores of members and others."""
    return {"loss": (-losses[0], -losses[1]), "calibrated": (base[0] - losses[0], base[1] - losses[1])}


def attack(members: Units, others: Units, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return how well scores, greater for members, tell these from others: AUC and true positive rates.

    The true positives at a rate of false positives are the members that score above all but that share of the others.
    Intervals are of 95%, by a bootstrap of the rows of both. Those of rates are at least as wide as Wilson's, because
    no resample finds a member where the sample has found none.

    Args:
        members: a score for each row that the model was trained on.
        others: the same of rows of the same kind that it was not trained on.
        seed: of the bootstrap.
    """
    draws = np.random.default_rng(seed)
    again = [_rates(draws.choice(members, len(members)), draws.choice(others, len(others))) for _ in range(RESAMPLES)]
    ends = np.quantile(again, (0.025, 0.975), axis=0).T.tolist()
    found = {}
    for name, value, (low, high) in zip(("auc", *RATES), _rates(members, others), ends, strict=True):
        least, most = wilson_interval(value, len(members)) if name in RATES else (low, high)
        found[name] = {"value": value, "low": min(low, least), "high": max(high, most)}
    return found


def _rates(members: Units, others: Units) -> list[float]:
    ranked = np.sort(others)
    below = (np.searchsorted(ranked, members, "left") + np.searchsorted(ranked, members, "right")) / 2
    cuts = [ranked[len(ranked) - 1 - int(rate * len(ranked))] for rate in RATES.values()]
    return [float(below.mean() / len(ranked)), *(float((members > cut).mean()) for cut in cuts)]


class LeakScorer:
    """Scores what the weights of a trainer tell of its training rows: one half chooses α, the other is reported.

    Args:
        trainer: whose model is evaluated.
        members: the rows.
        name: the evaluation set as which they are evaluated.
        seed: decides the halves and the bootstrap.
    """

    def __init__(self, trainer: Trainer, members: Members, name: str, seed: int) -> None:
        self.trainer, self.members, self.name, self.seed = trainer, members, name, seed
        self.parts = [
            halves(len(rows), seed, f"{name} {part}") for rows, part in zip(members, Members._fields, strict=True)
        ]

    def __call__(self) -> tuple[Units, Units]:
        """Evaluate the model as it is, and return the losses of all rows."""
        with evaluating(self.trainer, self.name):
            return predict(self.trainer, self.members.rows).means, predict(self.trainer, self.members.others).means

    def chosen_by(self, base: Sequence[Units], losses: Sequence[Units]) -> float:
        """Return the AUC of the better attack on the half by which α is chosen."""
        return max(_rates(*scores)[0] for scores in _scores(self._half(0, base), self._half(0, losses)).values())

    def reported(self, base: Sequence[Units], losses: Sequence[Units]) -> dict[str, Any]:
        """Return what both attacks find on the other half."""
        return attacks(self._half(1, base), self._half(1, losses), self.seed)

    def _half(self, number: int, losses: Sequence[Units]) -> list[Units]:
        return [found[part[number]] for found, part in zip(losses, self.parts, strict=True)]


# Canaries.


def exposures(canaries: Units, references: Units) -> Units:
    """Return the exposure of canaries in bits (Carlini et al. 2019, arXiv 1802.08232), by log-likelihoods.

    It is log2 of how many sequences there are, less log2 of the canary's rank among them: here among references that
    were drawn as it was and never planted, so that log2(len(references) + 1) is the most. Equals share their ranks.

    >>> exposures(np.array([5.0, -1.0]), np.array([1.0, 2.0, 3.0]))
    array([2., 0.])
    """
    ranked = np.sort(references)
    above = len(ranked) - np.searchsorted(ranked, canaries, "right")
    equal = np.searchsorted(ranked, canaries, "right") - np.searchsorted(ranked, canaries, "left")
    return np.asarray(np.log2(len(ranked) + 1) - np.log2(1 + above + equal / 2))


def measure_exposure(trainer: Trainer, canaries: Encoded, references: Encoded, seed: int = 0) -> dict[str, Any]:
    """Return the exposure of each canary, their mean with a 95% interval, and how many are likelier than all others."""
    found = log_likelihoods(trainer, [*canaries, *references])
    bits = exposures(found[: len(canaries)], found[len(canaries) :])
    again = np.random.default_rng(seed).choice(bits, (RESAMPLES, len(bits))).mean(axis=1)
    low, high = np.quantile(again, (0.025, 0.975)).tolist() if len(bits) > 1 else (None, None)
    first = bits == np.log2(len(references) + 1)
    return {
        "bits": {"value": float(bits.mean()), "low": low, "high": high},
        "first": int(first.sum()),
        "each": bits.tolist(),
    }
