"""Choose the α of M_α = α·M_θ + (1 − α)·M₀ by what it does to both sides: `search_alpha`."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn
from transformers import Trainer

from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.results import less_is_better, main_metric
from hf_interp.selection.choice import SMOOTH_OBJECTIVES, AlphaSearch, Choice, choose_alpha
from hf_interp.selection.curve_shape import find_knee, golden_section, is_unimodal, loss_barrier
from hf_interp.selection.groups import Groups, GroupScorer, GroupScores, check_gap
from hf_interp.selection.leaks import LeakScorer, Members, Pairs, compare_pairs
from hf_interp.selection.scoring import ScoreHalves, Scores, TrainerScorer, Units, halves, summarise
from hf_interp.utils.errors import did_you_mean
from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.interpolate import open_interpolation
from hf_interp.weights.live import Interpolation, evaluation_mode
from hf_interp.weights.matching import some_of
from hf_interp.weights.model_folder import open_base
from hf_interp.weights.tensors import Weights

logger = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], Mapping[str, Mapping[str, Any]]]
Score = Callable[[], ScoreHalves]

DOMAIN_FIRST = ("domain", "general")


def search_alpha(
    subject: Trainer | Evaluate,
    base_model: Weights | str | os.PathLike[str] | None = None,
    *,
    model: Any = None,
    eval_dataset: Mapping[str, Any] | None = None,
    report_dataset: Mapping[str, Any] | None = None,
    groups: Mapping[str, Groups] | None = None,
    pairs: Mapping[str, Pairs] | None = None,
    members: Members | None = None,
    finetuned_only: Sequence[str] = (),
    recalibrate: Iterable[Any] | None = None,
    apply: bool = False,
    **settings: Any,
) -> AlphaCurve:
    """Evaluate M_α = α·M_θ + (1 − α)·M₀ over α on the domain and the general side, and choose an α.

    The choice is made on one half of the validation examples and reported on the other, so that what is reported has
    not been chosen. Whatever is evaluated is evaluated once. M_θ is put back at the end, unless `apply` is set.

    Args:
        subject: a trainer whose model is M_θ (any `Trainer`, also of PEFT models); or a function from a model to its
            metrics, `{"domain": {"loss": ..., ...}, "general": {...}}`, each a number, or an array with the value of
            every example, whose mean is the metric. Numbers alone have no standard errors, and no halves.
        base_model: M₀: a model, a state dict, or a folder or name of a checkpoint. `None` for PEFT models, whose M₀ is
            the model without the adapter. What it lacks, such as a head, is M_θ's at every α.
        model: M_θ, if `subject` is a function.
        eval_dataset: validation sets by name; by default the trainer's.
        report_dataset: sets to report on; then α is chosen on all of `eval_dataset`.
        groups: groups of some of the `eval_dataset`, by name (see `hf_interp.selection.groups.read_groups`), by which
            the model is measured at every α, as `max_group_gap` needs.
        pairs: sets of pairs of texts, encoded for the trainer's language model, of which the likelier is told at every
            α (see `hf_interp.selection.leaks`).
        members: rows that M_θ was trained on, and others of the domain, which are told apart at every α, as
            `max_leakage` needs.
        finetuned_only: patterns of names to take from M_θ whole, such as a head that M₀ was given at random.
        recalibrate: batches on which the statistics of batch norms are measured anew at every α but 0 and 1.
        apply: leave M_α at the chosen α in the model.
        settings: fields of [`AlphaSearch`], such as `objective="constrained", max_forgetting=0.02`.

    Returns:
        the metrics of both sides over α, the α chosen and why; see [`AlphaCurve`].

    Raises:
        TypeError, ValueError: for settings that are none, evaluation sets that are missing, and what cannot be
            interpolated (see `interpolate_weights`).
    """
    search = _make_search(settings)
    make = _trainer_subject if isinstance(subject, Trainer) else _function_subject
    check_gap(search, groups or {})
    if search.max_leakage is not None and members is None:
        raise ValueError("`max_leakage` needs `members`: rows that M_θ was trained on, and others.")
    model, score = make(subject, model, eval_dataset, report_dataset, search)
    others = _Others()
    if groups or pairs or members:
        if not isinstance(score, TrainerScorer):
            raise TypeError(
                "`groups`, `pairs` and `members` must be left out with a function, whose rows are not known."
            )
        others = _other_scorers(score, eval_dataset or score.trainer.eval_dataset, groups, pairs, members, search)
    base = open_base(base_model, model) if isinstance(base_model, (str, os.PathLike)) else base_model
    live = open_interpolation(
        base, model, finetuned_only=finetuned_only, extrapolate=search.extrapolate, recalibrate=recalibrate
    )
    with evaluation_mode(model), live:
        run = AlphaSearchRun(live, score, search, others)
        curve = run.curve(run.choose())
        curve.base, curve.finetuned = _name_ends(base_model, model)
    if apply:
        live.set_alpha(curve.alpha)
    for warning in curve.warnings:
        logger.warning(warning)
    return curve


def _trainer_subject(
    trainer: Trainer, model: Any, eval_dataset: Any, report_dataset: Any, search: AlphaSearch
) -> tuple[Any, Score]:
    """Return the model of a trainer, and what scores it on both sides."""
    if model is not None:
        raise TypeError("`model` must be left out with a trainer, whose model is M_θ.")
    sets = _pick(eval_dataset if eval_dataset is not None else trainer.eval_dataset, search, "eval_dataset")
    reports = None if report_dataset is None else _pick(report_dataset, search, "report_dataset")
    return trainer.model, TrainerScorer(trainer, sets, reports, search.metric, search.seed)


def _function_subject(
    evaluate: Evaluate, model: Any, eval_dataset: Any, report_dataset: Any, search: AlphaSearch
) -> tuple[Any, Score]:
    """Return the model that a function evaluates, and what takes its metrics in two halves."""
    if model is None:
        raise TypeError("`model` must be given with a function: the model whose weights are M_θ.")
    if eval_dataset is not None or report_dataset is not None:
        raise TypeError("`eval_dataset` and `report_dataset` must be left out with a function, which has its own.")
    return model, lambda: _halve(evaluate(model), search)


@dataclass(frozen=True, kw_only=True)
class _Others:
    """What scores a model beside its sides, where that is asked for."""

    groups: Callable[[], dict[str, GroupScores]] = dict
    pairs: Callable[[], dict[str, dict[str, Any]]] = dict
    leaks: LeakScorer | None = None


def _other_scorers(
    score: TrainerScorer, sets: Any, groups: Any, pairs: Any, members: Members | None, search: AlphaSearch
) -> _Others:
    leaks = None if members is None else LeakScorer(score.trainer, members, search.domain, search.seed)
    by_group = GroupScorer(score, sets, groups or {}, search)
    return _Others(groups=by_group, pairs=lambda: compare_pairs(score.trainer, pairs or {}), leaks=leaks)


class AlphaSearchRun:
    """The evaluations of one search, each α evaluated once."""

    def __init__(self, live: Interpolation, score: Score, search: AlphaSearch, others: _Others) -> None:
        self.live, self.score, self.search, self.others = live, score, search, others
        self.parts: dict[float, ScoreHalves] = {}
        self.groups: dict[float, dict[str, GroupScores]] = {}
        self.pairs: dict[float, dict[str, dict[str, Any]]] = {}
        self.losses: dict[float, tuple[Units, Units]] = {}
        names = live.report.names("finetuned")
        note = f"M₀ has no head of its own ({some_of(names, 2)}): at α = 0 its backbone is read by M_θ's head."
        self.warnings = [note] if names else []
        self.method = "grid"
        self.evaluate(1.0)
        names = self._metrics()
        metric = search.metric or main_metric({"": dict.fromkeys(names, 0.0)})
        if metric is None or metric not in names:
            raise ValueError(f"`metric` must be one of {', '.join(names)}, which both sides have; got {metric!r}.")
        self.metric = metric
        self.is_less = less_is_better(metric, search.greater_is_better)
        self.evaluate(0.0)

    def evaluate(self, alpha: float) -> ScoreHalves:
        """Return the metrics at an α."""
        alpha = round(float(alpha), 6)
        if alpha not in self.parts:
            self.live.set_alpha(alpha)
            self.parts[alpha] = self.score()
            self.groups[alpha], self.pairs[alpha] = self.others.groups(), self.others.pairs()
            if self.others.leaks is not None:
                self.losses[alpha] = self.others.leaks()
        return self.parts[alpha]

    def choose(self) -> Choice:
        """Evaluate what the method asks for, and choose an α."""
        search = self.search
        is_smooth = self.metric.endswith("loss") and search.objective in SMOOTH_OBJECTIVES
        if search.method == "golden" or (search.method == "auto" and is_smooth):
            self._golden()
        else:
            list(map(self.evaluate, search.grid()))
        return choose_alpha(
            self.alphas,
            self.units("domain", self.metric),
            self.units("general", self.metric),
            search,
            greater_is_better=not self.is_less,
            metric=self.metric,
            group_gaps=None if search.max_group_gap is None else [self._greatest_gap(alpha) for alpha in self.alphas],
            leakage=None if search.max_leakage is None else self._leaks(LeakScorer.chosen_by),
            num_examples={side: sizes["selection"] for side, sizes in self._sizes().items()},
        )

    @property
    def alphas(self) -> list[float]:
        """Return the α that were evaluated, rising."""
        return sorted(self.parts)

    def units(self, side: str, metric: str) -> Units:
        """Return units of the examples by which α is chosen: (num_alphas, num_units)."""
        return np.stack([self.parts[alpha].selection[side][metric] for alpha in self.alphas])

    def curve(self, choice: Choice) -> AlphaCurve:
        """Return all that was found."""
        parts = [self.parts[alpha] for alpha in self.alphas]
        selection = self._tabulate([part.selection for part in parts])
        report = self._tabulate([part.report for part in parts])
        sign = -1 if self.is_less else 1
        domain, general = (sign * np.array(selection[side][self.metric]["values"]) for side in DOMAIN_FIRST)
        self._warn_if_flat()
        if choice.confidence_interval == (self.alphas[0], self.alphas[-1]) and choice.alpha != 1:
            sizes = " and ".join(f"{found['selection']:,} {side}" for side, found in self._sizes().items())
            self.warnings.append(
                f"{sizes} examples tell no α from another: the 95% interval of the best α is all that was tried. Add "
                "validation examples before you take M_α for M_θ."
            )
        return AlphaCurve(
            alphas=self.alphas,
            selection=selection,
            report=report,
            metric=self.metric,
            objective=self.search.objective,
            method=self.method,
            alpha=choice.alpha,
            best_alpha=choice.best_alpha,
            reason=choice.reason,
            settings=asdict(self.search),
            confidence_interval=None if choice.confidence_interval is None else list(choice.confidence_interval),
            knee=find_knee(self.alphas, domain, general),
            barrier=self._barriers(report),
            num_evaluations=len(self.parts),
            num_examples=self._sizes(),
            warnings=self.warnings,
            groups={name: [self.groups[alpha][name].report for alpha in self.alphas] for name in self.groups[0.0]},
            pairs={name: [self.pairs[alpha][name] for alpha in self.alphas] for name in self.pairs[0.0]},
            leakage=self._leaks(LeakScorer.reported),
        )

    def _golden(self) -> None:
        """Evaluate golden sections of the loss, which is smooth, and a grid if the loss is not unimodal."""
        search, self.method = self.search, "golden section"
        name = self.metric if self.metric.endswith("loss") else "loss"
        if name not in self._metrics():
            raise ValueError("`method` 'golden' needs a loss on both sides, and there is none. Take 'grid'.")
        weight = search.domain_weight if search.objective == "mean" else 1.0
        shares = {side: share for side, share in zip(DOMAIN_FIRST, (weight, 1 - weight), strict=True) if share > 0}

        def loss(alpha: float) -> float:
            found = self.evaluate(alpha).selection
            return sum(share * float(found[side][name].mean()) for side, share in shares.items())

        grid = search.grid()
        golden_section(loss, low=min(0.0, *grid), high=max(1.0, *grid), tolerance=search.tolerance)
        units = _weighted([self.units(side, name) for side in shares], list(shares.values()))
        if not is_unimodal(self.alphas, units):
            self.method = "grid, because the loss is not unimodal in α"
            list(map(self.evaluate, grid))
        elif search.alphas != AlphaSearch.alphas:
            logger.warning(
                "`alphas` is for a grid, and this is golden section. Set `alpha_search.method: grid` for it."
            )

    def _greatest_gap(self, alpha: float) -> float:
        return max(found.gap for found in self.groups[alpha].values() if found.gap is not None)

    def _leaks(self, measure: Callable[[LeakScorer, Any, Any], Any]) -> list[Any]:
        """Return what is measured at every α of the leak of training rows; nothing where it is not."""
        leaks = self.others.leaks
        return [] if leaks is None else [measure(leaks, self.losses[0.0], self.losses[alpha]) for alpha in self.alphas]

    def _metrics(self) -> list[str]:
        first = next(iter(self.parts.values())).selection
        return [name for name in first["domain"] if name in first["general"]]

    def _tabulate(self, scores: Sequence[Scores]) -> dict[str, dict[str, dict[str, list[Any]]]]:
        table: dict[str, dict[str, dict[str, list[Any]]]] = {}
        for side in DOMAIN_FIRST:
            table[side] = {}
            for name in scores[0][side]:
                found = [summarise(one[side][name]) for one in scores]
                table[side][name] = {
                    "values": [value for value, _ in found],
                    "std_errors": [error for _, error in found],
                }
        return table

    def _barriers(self, report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        barriers = {}
        for side in DOMAIN_FIRST:
            if "loss" not in report[side]:
                continue
            losses, errors = report[side]["loss"]["values"], report[side]["loss"]["std_errors"]
            height, alpha = loss_barrier(self.alphas, losses)
            barriers[side] = {"height": height, "alpha": alpha}
            error = errors[self.alphas.index(alpha)] or 0.0
            if height > max(2 * error, 0.05 * max(losses[self.alphas.index(0.0)], losses[self.alphas.index(1.0)])):
                self.warnings.append(
                    f"The {side} loss has a barrier of {height:.3g} at α = {alpha:g}: M₀ and M_θ do not lie in one "
                    "basin. A smaller learning rate, an anchor (`anchor: l2sp`) or α by depth may help."
                )
        return barriers

    def _sizes(self) -> dict[str, dict[str, int]]:
        if self._is_of_numbers():
            return {}
        found = next(iter(self.parts.values()))
        parts = {"selection": found.selection, "report": found.report}
        return found.sizes or {
            side: {part: max(map(len, scores[side].values())) for part, scores in parts.items()}
            for side in DOMAIN_FIRST
        }

    def _warn_if_flat(self) -> None:
        values = [self.units(side, name) for side in DOMAIN_FIRST for name in self._metrics()]
        if all((first == second).all() for units in values for first, second in pairwise(units)):
            self.warnings.append(
                "The metrics are the same at every α. Either none of these models does anything right yet, or M₀ and "
                "M_θ are the same model: in Python a `state_dict()` is no copy, it goes with its model."
            )
        if self._is_of_numbers():
            self.warnings.append(
                "Each metric is a single number: α is chosen and reported on the same examples, and nothing is known "
                "of its standard error. Return an array with the value of every example."
            )

    def _is_of_numbers(self) -> bool:
        """Whether all metrics are single numbers."""
        scores = next(iter(self.parts.values())).selection
        return all(len(units) == 1 for side in DOMAIN_FIRST for units in scores[side].values())


def _make_search(settings: Mapping[str, Any]) -> AlphaSearch:
    names = [field.name for field in fields(AlphaSearch)]
    for name in settings:
        if name not in names:
            raise TypeError(
                f"`search_alpha` has no setting {name!r}; they are {', '.join(names)}." + did_you_mean(name, names)
            )
    return AlphaSearch(**settings)


def _weighted(sides: Sequence[Units], shares: Sequence[float]) -> Units:
    """Return units of a weighted sum of metrics over different examples: their mean is the sum, their spread is its.

    >>> units = _weighted([np.array([[1.0, 3.0]]), np.array([[4.0, 4.0]])], [0.5, 0.5])
    >>> units.mean(), round(units.std() / np.sqrt(4), 6), round(0.5 * 1.0 / np.sqrt(2), 6)
    (np.float64(3.0), np.float64(0.353553), np.float64(0.353553))
    """
    means = [units.mean(axis=1, keepdims=True) for units in sides]
    size = sum(units.shape[1] for units in sides)
    parts = [
        share * (units - mean) * (size / units.shape[1])
        for units, mean, share in zip(sides, means, shares, strict=True)
    ]
    total = sum(share * mean for mean, share in zip(means, shares, strict=True))
    return np.concatenate(parts, axis=1) + total


def _name_ends(base_model: Any, model: Any) -> tuple[str | None, str | None]:
    """Return the names or folders of M₀ and M_θ, where they are known."""
    own = getattr(model, "name_or_path", None) or None
    if isinstance(base_model, (str, os.PathLike)):
        return str(base_model), None if is_peft_model(model) else own
    if is_peft_model(model):  # it goes by the name of its base model
        return own, None
    return getattr(base_model, "name_or_path", None) or None, own


def _halve(found: Mapping[str, Mapping[str, Any]], search: AlphaSearch) -> ScoreHalves:
    """Halve a function's metrics; single numbers stand for both halves."""
    missing = [name for name in (search.domain, search.general) if name not in found]
    if missing:
        raise ValueError(f"The evaluate function must return metrics of {missing[0]!r}, got {list(found)}.")
    selection: Scores = {}
    report: Scores = {}
    for side, name in zip(DOMAIN_FIRST, (search.domain, search.general), strict=True):
        selection[side], report[side] = {}, {}
        for metric, value in found[name].items():
            units = np.asarray(value, dtype=np.float64).reshape(-1)
            parts = halves(len(units), search.seed, side) if len(units) > 1 else (slice(None), slice(None))
            selection[side][metric], report[side][metric] = units[parts[0]], units[parts[1]]
    return ScoreHalves(selection, report)


def _pick(datasets: Any, search: AlphaSearch, argument: str) -> dict[str, Any]:
    """Pick the sets of the sides out of all evaluation sets."""
    names = (search.domain, search.general)
    if not isinstance(datasets, Mapping) or any(name not in datasets for name in names):
        found = list(datasets) if isinstance(datasets, Mapping) else type(datasets).__name__
        raise ValueError(
            f"`{argument}` must be a mapping with the sets {names[0]!r} and {names[1]!r}, got {found}. Name the sides' "
            "sets with `domain=` and `general=` if they are called otherwise."
        )
    return {side: datasets[name] for side, name in zip(DOMAIN_FIRST, names, strict=True)}
