"""A model's metric by group of people, and by how much groups differ."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import Trainer

from hf_interp.reporting.results import less_is_better
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.scoring import (
    Predictions,
    TrainerScorer,
    Units,
    estimate,
    evaluating,
    example_hits,
    halves,
    predict,
)

Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Groups = dict[str, dict[str, Mask]]
"""Column → group → whether a row is of it: (num_rows,)."""

MIN_ROWS = 30
"""Rows below which a group is named as too small: the 95% interval of an accuracy may then be ±0.17, and worse."""
MAX_GROUPS = 200
"""Groups of a column: more are texts or numbers, and no groups."""


def read_groups(columns: Mapping[str, Sequence[Any]]) -> Groups:
    """Return which rows are of which group of each column.

    A cell is the name of a group, a list of several, or empty. A column of booleans, of 0 and 1, or of shares of
    annotators between them has two groups: that of its name, from one half on, and "not" that.
    """
    return {column: _read_column(column, cells) for column, cells in columns.items()}


def _read_column(column: str, cells: Sequence[Any]) -> dict[str, Mask]:
    lists = [cell if isinstance(cell, list) else [cell] for cell in cells]
    lists = [[one for one in cell if one not in (None, "") and one == one] for cell in lists]  # NaN is not itself
    if all(isinstance(one, (int, float)) and 0 <= one <= 1 for cell in lists for one in cell):
        lists = [[column if one >= 0.5 else f"not {column}" for one in cell] for cell in lists]
    texts = [set(map(str, cell)) for cell in lists]
    names = sorted(set().union(*texts))
    if not 2 <= len(names) <= MAX_GROUPS:
        raise ValueError(
            f"The column {column!r} must have 2 to {MAX_GROUPS} groups, got {len(names)} ({', '.join(names[:3])}). "
            "Name another."
        )
    return {name: np.array([name in text for text in texts]) for name in names}


def check_gap(search: AlphaSearch, groups: Mapping[str, Groups]) -> None:
    """Refuse a limit on the gap where a column lacks two groups of enough rows on the half by which α is chosen."""
    if search.max_group_gap is not None and not groups:
        raise ValueError("`max_group_gap` needs groups. Name `group_columns` of a set by which α is chosen.")
    for name, columns in groups.items() if search.max_group_gap is not None else ():
        for column, masks in columns.items():
            chosen = halves(len(next(iter(masks.values()))), search.seed, name)[0]
            sizes = sorted((int(mask[chosen].sum()) for mask in masks.values()), reverse=True)
            if sizes[1] < MIN_ROWS:
                raise ValueError(
                    f"`max_group_gap` needs two groups of at least {MIN_ROWS} rows in the half of {name!r} by which α "
                    f"is chosen; those of {column!r} have {', '.join(map(str, sizes))}. Add examples."
                )


class GroupScores(NamedTuple):
    """The greatest gap between groups of a set on the half by which α is chosen, and an account of the other half."""

    gap: float | None
    report: dict[str, dict[str, Any]]


class GroupScorer:
    """Scores some sets of a trainer's model by group, after both sides have been scored.

    Args:
        scorer: scores the sides; what it has predicted is not predicted again.
        sets: the sets with groups, by name; there may be others.
        groups: their groups, by name of the set.
        search: has the direction of the metric and the seed of the halves.
    """

    def __init__(
        self, scorer: TrainerScorer, sets: Mapping[str, Any], groups: Mapping[str, Groups], search: AlphaSearch
    ) -> None:
        self.scorer, self.sets, self.groups, self.search = scorer, sets, groups, search
        for name, columns in groups.items():
            told = {len(mask) for masks in columns.values() for mask in masks.values()}
            if name not in sets or told != {len(sets[name])}:
                raise ValueError(f"`groups` must name sets and say of each row of {name!r} of which groups it is.")

    def __call__(self) -> dict[str, GroupScores]:
        """Evaluate the model as it is, and return the scores of every set."""
        groups = {}
        for name in self.groups:
            first, second = halves(len(self.sets[name]), self.search.seed, name)
            predictions = self._predict(name)
            gaps = [entry["gap"] for entry in self._compare(name, predictions, first, has_details=False).values()]
            known = [gap for gap in gaps if gap is not None]
            groups[name] = GroupScores(max(known, default=None), self._compare(name, predictions, second))
        return groups

    def whole(self) -> dict[str, dict[str, Any]]:
        """Return set → column → account of all rows; see `compare_groups`."""
        return {name: self._compare(name, self._predict(name), np.arange(len(self.sets[name]))) for name in self.groups}

    def _predict(self, name: str) -> Predictions:
        known = self.scorer.found.get(id(self.sets[name]))
        if known is not None:
            return known
        with evaluating(self.scorer.trainer, name):
            return predict(self.scorer.trainer, self.sets[name])

    def _compare(self, name: str, found: Predictions, rows: Rows, *, has_details: bool = True) -> dict[str, Any]:
        hits = example_hits(found, np.arange(len(found.losses)))
        if self.scorer.metric is None and hits is None:
            self.scorer.scores(found, rows)  # settles the metric
        metric = self.scorer.metric or "accuracy"

        def units(some: Rows) -> Units:
            return hits[some] if hits is not None and metric == "accuracy" else self.scorer.scores(found, some)[metric]

        is_less = less_is_better(metric, self.search.greater_is_better)
        binary = _binary(found) if has_details else None
        columns = self.groups[name].items()
        return {column: compare_groups(masks, rows, units, metric, is_less, binary) for column, masks in columns}


def measure_groups(
    trainer: Trainer, sets: Mapping[str, Any], groups: Mapping[str, Groups], search: AlphaSearch | None
) -> dict[str, Any]:
    """Return set → column → account of a trainer's model, for the sets that have groups, by the metric of a search."""
    if not groups:
        return {}
    search = search or AlphaSearch()
    return GroupScorer(TrainerScorer(trainer, {}, None, search.metric, 0), sets, groups, search).whole()


def compare_groups(
    masks: Mapping[str, Mask],
    rows: Rows,
    units: Callable[[Rows], Units],
    metric: str,
    is_less: bool,
    binary: tuple[Units, Mask] | None = None,
) -> dict[str, Any]:
    """Return the metric of every group of a column that has enough rows, the worst first, and the gap to the best.

    Only `rows` count; `units` gives those of some rows. `binary` has, of two classes, a score above 0 where the second
    is predicted, and whether it is the label.
    """
    members = {name: rows[mask[rows]] for name, mask in masks.items()}
    small = {name: len(some) for name, some in members.items() if len(some) < MIN_ROWS}
    groups: dict[str, dict[str, Any]] = {}
    for name in members.keys() - small.keys():
        details = {} if binary is None else _details(binary[0][rows], binary[1][rows], masks[name][rows])
        groups[name] = {"num": len(members[name]), **estimate(units(members[name])), **details}
    order = sorted(sorted(groups), key=lambda name: float(groups[name]["value"]), reverse=is_less)
    worst, best = (order[0], order[-1]) if order else (None, None)
    found = {"metric": metric, "groups": {name: groups[name] for name in order}, "too_small": small}
    parities = {} if binary is None else _parities(groups)
    return {**found, "worst": worst, "best": best, **_gap([groups[name] for name in order]), **parities}


def _gap(order: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return by how much the worst group, the first, is behind the best, the last, with Newcombe's (1998) interval.

    It is made of the intervals of the two groups, and does not know that they were picked.
    """
    if len(order) < 2:
        return dict.fromkeys(("gap", "gap_low", "gap_high"))
    least, most = sorted((order[0], order[-1]), key=lambda group: float(group["value"]))
    gap = most["value"] - least["value"]
    if least["low"] is None or most["low"] is None:
        return {"gap": gap, "gap_low": None, "gap_high": None}
    down = np.hypot(most["value"] - most["low"], least["high"] - least["value"])
    up = np.hypot(most["high"] - most["value"], least["value"] - least["low"])
    return {"gap": gap, "gap_low": float(gap - down), "gap_high": float(gap + up)}


def _binary(found: Predictions) -> tuple[Units, Mask] | None:
    logits, labels = found.whole.predictions, np.asarray(found.whole.label_ids)
    logits = np.asarray(logits[0] if isinstance(logits, (tuple, list)) else logits)
    return (logits[:, 1] - logits[:, 0], labels == 1) if logits.shape[1:] == (2,) and labels.ndim == 1 else None


def _details(score: Units, label: Mask, inside: Mask) -> dict[str, float | None]:
    """Return rates and areas under the ROC curve of a group, after Borkan et al. (2019, arXiv 1903.04561).

    The background is who is not of the group: BPSN sets its positives against the group's negatives, BNSP its negatives
    against the group's positives. `None` where a class is missing.
    """

    def share(where: Mask) -> float | None:
        return float((score[where] > 0).mean()) if where.any() else None

    return {
        "selection_rate": share(inside),
        "true_positive_rate": share(inside & label),
        "false_positive_rate": share(inside & ~label),
        "subgroup_auc": roc_auc(score[inside], label[inside]),
        "bpsn_auc": roc_auc(score[inside != label], label[inside != label]),
        "bnsp_auc": roc_auc(score[inside == label], label[inside == label]),
    }


def roc_auc(scores: Units, labels: Mask) -> float | None:
    """Return the area under the ROC curve; `None` where there is one class alone, or a score is not finite."""
    if len(np.unique(labels)) < 2 or not np.isfinite(scores).all():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _parities(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the differences of demographic parity and of equalised odds (the greater of its two) between groups."""
    spreads = {}
    for name in ("selection_rate", "true_positive_rate", "false_positive_rate"):
        known = [group[name] for group in groups.values() if group[name] is not None]
        spreads[name] = max(known) - min(known) if len(known) > 1 else None
    odds = [gap for name, gap in spreads.items() if name != "selection_rate" and gap is not None]
    return {"demographic_parity": spreads["selection_rate"], "equalised_odds": max(odds, default=None)}
