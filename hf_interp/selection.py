"""Choose the α of M_α = α·M_θ + (1 − α)·M₀ by what it does to both sides: `search_alpha`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import Subset
from transformers import Trainer

from hf_interp.adapter_kinds import is_peft_model
from hf_interp.adapter_weights import AdapterInterpolation
from hf_interp.alphas import find_layer
from hf_interp.checkpoint_folders import find_folder
from hf_interp.checkpoint_names import find_places
from hf_interp.choices import AlphaSearch, Choice, choose_alpha
from hf_interp.curves import AlphaCurve, find_knee, golden_section, is_unimodal, loss_barrier
from hf_interp.results import less_is_better, main_metric
from hf_interp.scoring import Parts, Scores, TrainerScorer, Units, halves, predict, summarise
from hf_interp.tensor_files import find_tensors
from hf_interp.tensors import Weights
from hf_interp.weights import LiveInterpolation, open_interpolation

logger = logging.getLogger(__name__)

Interpolation = LiveInterpolation | AdapterInterpolation
Evaluate = Callable[[nn.Module], Mapping[str, Mapping[str, Any]]]

SIDES = ("domain", "general")
GROUP_STEPS = 20
"""Gradients that a search over groups takes at most."""


def search_alpha(
    subject: Trainer | Evaluate,
    base_model: Weights | str | None = None,
    *,
    model: Any = None,
    eval_dataset: Mapping[str, Any] | None = None,
    report_dataset: Mapping[str, Any] | None = None,
    finetuned_only: Sequence[str] = (),
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
            the model without the adapter.
        model: M_θ, if `subject` is a function.
        eval_dataset: validation sets by name; by default the trainer's.
        report_dataset: sets to report on; then α is chosen on all of `eval_dataset`.
        finetuned_only: patterns of names to take from M_θ whole, such as a head that M₀ was given at random.
        apply: leave M_α at the chosen α in the model.
        settings: fields of [`AlphaSearch`], such as `objective="constrained", max_forgetting=0.02`.

    Returns:
        the metrics of both sides over α, the α chosen and why; see [`AlphaCurve`].

    Raises:
        TypeError, ValueError: for settings that are none, evaluation sets that are missing, and what cannot be
            interpolated (see `interpolate_weights`).
    """
    search = AlphaSearch(**settings)
    trainer = subject if isinstance(subject, Trainer) else None
    score: Callable[[], Parts]
    if trainer is not None:
        model = trainer.model
        sets = _pick(eval_dataset if eval_dataset is not None else trainer.eval_dataset, search, "eval_dataset")
        reports = None if report_dataset is None else _pick(report_dataset, search, "report_dataset")
        score = TrainerScorer(trainer, sets, reports, search.metric, search.seed)
    else:
        if model is None:
            raise TypeError("`model` must be given with a function: the model whose weights are M_θ.")
        if search.method == "groups":
            raise ValueError("`method` 'groups' needs a trainer, whose loss has gradients; got a function.")
        sets, score = {}, _function_scorer(subject, model, search)
    base = open_base(base_model, model) if isinstance(base_model, str) else base_model
    live = open_interpolation(base, model, finetuned_only=finetuned_only, extrapolate=search.extrapolate)
    was_training = model.training
    model.eval()
    try:
        run = _Run(live, score, search)
        choice = run.choose()
        curve = run.curve(choice)
        if trainer is not None and search.method == "groups":
            groups = search_groups(trainer, live, sets, choice.alpha, search)
            run.add_groups(curve, groups)
        curve.base = base_model if isinstance(base_model, str) else getattr(base_model, "name_or_path", None) or None
        curve.finetuned = getattr(model, "name_or_path", None) or None
    finally:
        live.restore()
        model.train(was_training)
    if apply:
        live.set_alpha(chosen_alpha(curve))
    for warning in curve.warnings:
        logger.warning(warning)
    return curve


def chosen_alpha(curve: AlphaCurve) -> Any:
    """What a curve has chosen, as an α for `interpolate_weights`: a number, or numbers by name if by groups."""
    if curve.group_alphas is None:
        return curve.alpha
    members: Mapping[str, list[str]] = curve.settings["groups"]
    return {name: curve.group_alphas[group] for group, names in members.items() for name in names}


def open_base(name: str, model: nn.Module, *, revision: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of M₀'s checkpoint by the names that M_θ has for them, mapped into memory and not loaded.

    Args:
        name: a folder, or a name on the Hub.
        model: M_θ, a model of transformers, with or without an adapter.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        ValueError: if there is no such checkpoint, or it is not whole, or has tensors of another layout.
    """
    folder = find_folder(name, "base_model", revision=revision)
    stored = find_tensors(folder, "base_model")
    inner: Any = model.get_base_model() if is_peft_model(model) else model
    places = find_places(inner, stored)
    converted = [name for name, place in places.items() if place.name != place.target]
    if converted:
        raise ValueError(
            f"`base_model` {name!r} has another layout than the model in memory ({converted[0]!r}). Load it with "
            "`from_pretrained` and give the model."
        )
    tensors = {}
    files: dict[Any, Any] = {
        one.path: safe_open(one.path, framework="pt") for one in stored.values() if one.tensor is None
    }
    for name, one in stored.items():
        tensors[places[name].name] = one.tensor if one.tensor is not None else files[one.path].get_tensor(name)
    return tensors


def parameter_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of a model's weights by place: embeddings, lower, middle and upper third of the layers, the rest.

    >>> parameter_groups(["wte.weight", "h.0.w", "h.1.w", "h.2.w", "ln_f.weight"])
    {'embeddings': ['wte.weight'], 'lower': ['h.0.w'], 'middle': ['h.1.w'], 'upper': ['h.2.w'], 'rest': ['ln_f.weight']}
    """
    places = {name: find_layer(name) for name in names}
    last: dict[str, int] = {}
    for place in places.values():
        if place is not None:
            last[place[0]] = max(place[1], last.get(place[0], 0))
    groups: dict[str, list[str]] = {group: [] for group in ("embeddings", "lower", "middle", "upper", "rest")}
    for name, place in places.items():
        if place is not None:
            group = ("lower", "middle", "upper")[3 * place[1] // (last[place[0]] + 1)]
        else:
            group = "embeddings" if any(word in name for word in ("embed", "wte", "wpe", "shared")) else "rest"
        groups[group].append(name)
    return {group: members for group, members in groups.items() if members}


def search_groups(
    trainer: Trainer, live: Interpolation, datasets: Mapping[str, Any], start: float, search: AlphaSearch
) -> dict[str, float]:
    """α of every group of parameters, by projected gradient descent on the validation loss from one α for all.

    θ_α = θ₀ + Σ_g α_g·Δ_g, hence ∂f/∂α_g = ⟨∇_{θ_g} f(θ_α), Δ_g⟩: one backward pass gives the derivative for every
    group. Gradients are taken on one half of the examples by which α is chosen; a step is kept if the loss on the
    other half falls, and halved if not.

    Args:
        trainer: the trainer of M_θ.
        live: M_α in its model.
        datasets: the sides' validation sets.
        start: α to start from.
        search: its objective decides what is minimised: the domain's loss, or the weighted mean of both.

    Returns:
        group (see `parameter_groups`) → α.

    Raises:
        ValueError: for another objective, or several processes.
    """
    if trainer.args.world_size > 1:
        raise ValueError("`method` 'groups' must run on one process, whose gradients are those of all examples.")
    weight = {"domain": 1.0, "mean": search.domain_weight}[search.objective]
    shares = {name: share for name, share in zip(SIDES, (weight, 1 - weight), strict=True) if share > 0}
    fit, check = {}, {}
    for name in shares:
        rows = halves(len(datasets[name]), search.seed, name)[0]
        first, second = halves(len(rows), search.seed, f"{name}, groups")
        fit[name], check[name] = _rows_of(datasets[name], rows[first]), _rows_of(datasets[name], rows[second])
    groups = parameter_groups(live.names)
    group_of = {name: group for group, members in groups.items() for name in members}

    def bring(alphas: Mapping[str, float]) -> None:
        live.set_alpha({name: alphas[group] for name, group in group_of.items()})

    def loss() -> float:
        found = {name: predict(trainer, check[name]) for name in shares}
        return sum(shares[name] * float(one.losses.sum() / one.counts.sum()) for name, one in found.items())

    alphas = dict.fromkeys(groups, start)
    bring(alphas)
    best, size = loss(), 0.2
    for _ in range(GROUP_STEPS):
        slopes = _slopes(trainer, live, fit, shares, group_of)
        steepest = max(abs(slope) for slope in slopes.values())
        if steepest == 0:
            break
        tried = {group: min(max(alphas[group] - size * slopes[group] / steepest, 0.0), 1.0) for group in alphas}
        bring(tried)
        found = loss()
        if found < best:
            alphas, best = tried, found
            continue
        size /= 2
        bring(alphas)
        if size < search.tolerance:
            break
    return alphas


class _Run:
    """The evaluations of one search."""

    def __init__(self, live: Interpolation, score: Callable[[], Parts], search: AlphaSearch) -> None:
        self.live, self.score, self.search = live, score, search
        self.parts: dict[float, Parts] = {}
        self.warnings: list[str] = []
        self.method = "grid"
        for alpha in (1.0, 0.0):
            self.evaluate(alpha)
        names = self._metrics()
        metric = search.metric or main_metric({"": dict.fromkeys(names, 0.0)})
        if metric is None or metric not in names:
            raise ValueError(f"`metric` must be one of {', '.join(names)}, which both sides have; got {metric!r}.")
        self.metric = metric

    def evaluate(self, alpha: float) -> Parts:
        """Metrics at an α; evaluated once."""
        alpha = round(float(alpha), 6)
        if alpha not in self.parts:
            self.live.set_alpha(alpha)
            self.parts[alpha] = self.score()
        return self.parts[alpha]

    def choose(self) -> Choice:
        """Evaluate what the method asks for, and choose."""
        search = self.search
        is_smooth = less_is_better(self.metric) and search.objective in ("domain", "mean")
        if search.method == "golden" or (search.method == "auto" and is_smooth):
            self._golden()
        else:
            self._grid()
        alphas = self.alphas
        return choose_alpha(
            alphas,
            self.units("domain", self.metric),
            self.units("general", self.metric),
            objective=search.objective,
            max_forgetting=search.max_forgetting,
            domain_weight=search.domain_weight,
            one_standard_error=search.one_standard_error,
            domain_greater_is_better=not less_is_better(self.metric),
            general_greater_is_better=not less_is_better(self.metric),
            metric=self.metric,
            seed=search.seed,
        )

    @property
    def alphas(self) -> list[float]:
        """α evaluated so far, rising."""
        return sorted(self.parts)

    def units(self, side: str, metric: str) -> Units:
        """(num_alphas, num_units) of the examples by which α is chosen."""
        return np.stack([self.parts[alpha].selection[side][metric] for alpha in self.alphas])

    def curve(self, choice: Choice) -> AlphaCurve:
        """All that was found."""
        parts = [self.parts[alpha] for alpha in self.alphas]
        selection = self._tabulate([part.selection for part in parts])
        report = self._tabulate([part.report for part in parts])
        sign = -1 if less_is_better(self.metric) else 1
        knee = find_knee(self.alphas, *(sign * np.array(selection[side][self.metric]["values"]) for side in SIDES))
        self._warn_if_flat()
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
            settings=self.search.to_dict(),
            confidence_interval=None if choice.confidence_interval is None else list(choice.confidence_interval),
            knee=knee,
            barrier=self._barriers(report),
            num_evaluations=len(self.parts),
            num_examples=self._sizes(parts[0]),
            warnings=self.warnings,
        )

    def add_groups(self, curve: AlphaCurve, groups: dict[str, float]) -> None:
        """Evaluate α by groups and note it in the curve."""
        members = parameter_groups(self.live.names)
        self.live.set_alpha({name: groups[group] for group, names in members.items() for name in names})
        report = self.score().report
        curve.group_alphas = groups
        curve.method = f"{curve.method}, then groups by gradient"
        curve.settings["groups"] = members
        curve.group_metrics = {
            side: {
                name: dict(zip(("value", "std_error"), summarise(units), strict=True))
                for name, units in report[side].items()
            }
            for side in SIDES
        }

    def _grid(self) -> None:
        for alpha in self.search.grid():
            self.evaluate(alpha)

    def _golden(self) -> None:
        """Golden section on the loss, which is smooth; a grid if the loss is not unimodal."""
        search, self.method = self.search, "golden section"
        if "loss" not in self._metrics():
            raise ValueError("`method` 'golden' needs a loss on both sides, and there is none. Take 'grid'.")
        weight = search.domain_weight if search.objective == "mean" else 1.0

        def loss(alpha: float) -> float:
            found = self.evaluate(alpha).selection
            return float(weight * found["domain"]["loss"].mean() + (1 - weight) * found["general"]["loss"].mean())

        golden_section(loss, tolerance=search.tolerance)
        sides = [side for side, share in zip(SIDES, (weight, 1 - weight), strict=True) if share > 0]
        if not all(is_unimodal(self.alphas, self.units(side, "loss")) for side in sides):
            self.method = "grid, because the loss is not unimodal in α"
            self._grid()

    def _metrics(self) -> list[str]:
        first = next(iter(self.parts.values())).selection
        return [name for name in first["domain"] if name in first["general"]]

    def _tabulate(self, scores: Sequence[Scores]) -> dict[str, dict[str, dict[str, list[Any]]]]:
        table: dict[str, dict[str, dict[str, list[Any]]]] = {}
        for side in SIDES:
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
        for side in SIDES:
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

    def _sizes(self, parts: Parts) -> dict[str, dict[str, int]]:
        return {
            side: {
                part: max(len(units) for units in scores[side].values())
                for part, scores in zip(("selection", "report"), parts, strict=True)
            }
            for side in SIDES
        }

    def _warn_if_flat(self) -> None:
        values = [self.units(side, name) for side in SIDES for name in self._metrics()]
        if all((first == second).all() for units in values for first, second in pairwise(units)):
            self.warnings.append("The metrics are the same at every α: are M₀ and M_θ the same model?")


def _function_scorer(evaluate: Evaluate, model: nn.Module, search: AlphaSearch) -> Callable[[], Parts]:
    """A function's metrics in two halves; single numbers stand for both."""

    def score() -> Parts:
        found = evaluate(model)
        missing = [name for name in (search.domain, search.general) if name not in found]
        if missing:
            raise ValueError(f"The evaluate function must return metrics of {missing[0]!r}, got {list(found)}.")
        selection: Scores = {}
        report: Scores = {}
        for side, name in zip(SIDES, (search.domain, search.general), strict=True):
            selection[side], report[side] = {}, {}
            for metric, value in found[name].items():
                units = np.asarray(value, dtype=np.float64).reshape(-1)
                parts = halves(len(units), search.seed, side) if len(units) > 1 else (slice(None), slice(None))
                selection[side][metric], report[side][metric] = units[parts[0]], units[parts[1]]
        return Parts(selection, report)

    return score


def _pick(datasets: Any, search: AlphaSearch, argument: str) -> dict[str, Any]:
    """The sides' sets out of all evaluation sets."""
    names = (search.domain, search.general)
    if not isinstance(datasets, Mapping) or any(name not in datasets for name in names):
        found = list(datasets) if isinstance(datasets, Mapping) else type(datasets).__name__
        raise ValueError(
            f"`{argument}` must be a mapping with the sets {names[0]!r} and {names[1]!r}, got {found}. Name the sides' "
            "sets with `domain=` and `general=` if they are called otherwise."
        )
    return {side: datasets[name] for side, name in zip(SIDES, names, strict=True)}


def _rows_of(dataset: Any, rows: Any) -> Any:
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows.tolist())


def _slopes(
    trainer: Trainer,
    live: Interpolation,
    datasets: Mapping[str, Any],
    shares: Mapping[str, float],
    group_of: Mapping[str, str],
) -> dict[str, float]:
    """∂f/∂α_g at the present α, f being the weighted mean of the sides' losses."""
    model = trainer.model
    wanted = {id(parameter) for _, parameter, _ in live.directions()}
    frozen = [parameter for parameter in model.parameters() if id(parameter) in wanted and not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    try:
        for name, dataset in datasets.items():
            for inputs in trainer.get_eval_dataloader(dataset):
                size = len(next(value for value in inputs.values() if isinstance(value, torch.Tensor)))
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
                (loss * (shares[name] * size / len(dataset))).backward()
        slopes = dict.fromkeys(group_of.values(), 0.0)
        for name, parameter, direction in live.directions():
            if parameter.grad is not None:
                slopes[group_of[name]] += float((parameter.grad.float() * direction).sum())
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    return slopes
