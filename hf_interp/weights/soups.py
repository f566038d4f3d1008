"""Means of the weights of several runs from one base model (Model soups, Wortsman et al. 2022, arXiv 2203.05482)."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.matching import BATCH_NORM, decide, match_names
from hf_interp.weights.model_folder import open_base
from hf_interp.weights.tensors import Tensors, Weights, infos, mean_of, named_tensors

States = Mapping[str, Mapping[str, torch.Tensor]]
"""Run → its tensors, of tied ones the first, by the same names in all runs."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One candidate, tried in a greedy soup.

    Args:
        candidate: the run.
        score: the score of the mean of the soup so far and this run.
        is_added: whether it went into the soup.
    """

    candidate: str
    score: float
    is_added: bool


@dataclass(frozen=True, kw_only=True)
class Soup:
    """The outcome of `greedy_soup`.

    Args:
        members: the runs in the soup, in the order in which they went in.
        scores: the score of each run alone.
        score: the score of the soup.
        history: the runs as they were tried, the best first.
    """

    members: list[str]
    scores: dict[str, float]
    score: float
    history: list[Step]


def average_weights(states: Sequence[Weights]) -> dict[str, torch.Tensor]:
    """Average the weights of several runs: a uniform soup.

    Means are taken in float32 or more and cast once, to the type of the first run. What is no weight (integer and
    boolean buffers, tables that are computed) is the first's.

    Args:
        states: state dicts or models with the same names and shapes.

    Returns:
        a state dict that shares no storage with them; tied tensors stay tied.

    Raises:
        ValueError: for none, for names, shapes or ties that differ, or statistics of batch norms that do.

    >>> average_weights([{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}])
    {'w': tensor([0.5000, 3.0000])}
    """
    if not states:
        raise ValueError("`states` must hold at least one model, got none.")
    found = [named_tensors(state) for state in states]
    for index, one in enumerate(found):
        if one.first.keys() != found[0].first.keys():
            name = sorted(one.first.keys() ^ found[0].first.keys())[0]
            has, lacks = (index, 0) if name in one.first else (0, index)
            raise ValueError(f"`states` must have the same tensors, but {name!r} is in {has} and not in {lacks}.")
        for name, first in found[0].first.items():
            if one.first[name] != one.first[first] and not torch.equal(_of(one, name), _of(one, first)):
                raise ValueError(
                    f"`states` must be tied alike, but {name!r} and {first!r} are one in 0 and not {index}."
                )
    runs = {str(index): {name: _of(one, name) for name in found[0].unique} for index, one in enumerate(found)}
    _check_shapes("states", runs)
    copied = _copied(runs)
    unique = {name: _mean(name, runs, copied).to(tensor.dtype, copy=True) for name, tensor in found[0].unique.items()}
    return {name: unique[first] for name, first in found[0].first.items()}


def greedy_soup(
    candidates: Mapping[str, str | os.PathLike[str] | Weights],
    model: nn.Module,
    score: Callable[[], float],
    *,
    greater_is_better: bool = True,
) -> Soup:
    """Average those runs that do not make it worse; the mean is left in a live model.

    Runs are sorted by the score of each alone. The best begins the soup; each of the others goes in if the score of the
    mean with it is no worse than without (Recipe 1 of the paper).

    Args:
        candidates: run → its folder (or name on the Hub), state dict or model, of the model's architecture. Folders are
            mapped into memory, not loaded.
        model: its weights are overwritten, also where an error ends the search; it is what `score` evaluates.
        score: evaluates the model, on validation data and not on what the soup is reported on.
        greater_is_better: whether more of the score is better.

    Returns:
        the runs in the soup, and all scores.

    Raises:
        ValueError: for no candidates, tensors that a candidate lacks or has in another shape, adapters, or a score that
            is NaN.
    """
    if not candidates:
        raise ValueError("`candidates` must hold at least one run, got none.")
    if is_peft_model(model):
        raise ValueError("`model` must be a plain model, got a `PeftModel`: a mean of factors is no mean of weights.")
    live = named_tensors(model)
    runs = {name: _open(name, weights, model, live) for name, weights in candidates.items()}
    _check_shapes("candidates", {"the model": live.unique, **runs})
    copied = _copied(runs)

    def score_mean(names: Sequence[str]) -> float:
        _write(model, {name: runs[name] for name in names}, copied)
        value = float(score())
        if math.isnan(value):
            raise ValueError(f"`score` must return a number, got NaN for {' + '.join(names)}.")
        return value

    sign = 1 if greater_is_better else -1
    scores = {name: score_mean([name]) for name in runs}
    first, *others = sorted(scores, key=lambda name: -sign * scores[name])
    members, best = [first], scores[first]
    history = [Step(candidate=first, score=best, is_added=True)]
    for name in others:
        found = score_mean([*members, name])
        is_added = sign * found >= sign * best
        history.append(Step(candidate=name, score=found, is_added=is_added))
        if is_added:
            members, best = [*members, name], found
    _write(model, {name: runs[name] for name in members}, copied)
    return Soup(members=members, scores=scores, score=best, history=history)


def _open(
    name: str, weights: str | os.PathLike[str] | Weights, model: nn.Module, live: Tensors
) -> dict[str, torch.Tensor]:
    """Return the tensors of a run by the model's names, of tied ones the first."""
    found = named_tensors(open_base(str(weights), model) if isinstance(weights, (str, os.PathLike)) else weights)
    names = match_names(found.first, live.first)
    known = {first: _of(found, names[own]) for own, first in reversed(live.first.items()) if own in names}
    missing = [own for own in live.unique if own not in known]
    if missing:
        raise ValueError(f"`candidates` must have the model's tensors, but {name!r} has no {missing[0]!r}.")
    return known


def _of(tensors: Tensors, name: str) -> torch.Tensor:
    return tensors.unique[tensors.first[name]]


def _check_shapes(argument: str, runs: States) -> None:
    """Refuse runs whose tensors differ in shape from the first's."""
    first, *others = runs
    for name, tensor in runs[first].items():
        for other in others:
            if runs[other][name].shape != tensor.shape:
                raise ValueError(
                    f"`{argument}` must have the same shapes, but {name!r} is {tuple(tensor.shape)} in {first} and "
                    f"{tuple(runs[other][name].shape)} in {other}."
                )


def _copied(runs: States) -> set[str]:
    """Return names of the tensors that are the first run's in a mean.

    Raises:
        ValueError: for packed quantised weights, or statistics of batch norms that differ.
    """
    first, *others = runs.values()
    decisions = decide(infos(first), infos(first), 1.0, base_names={name: name for name in first})
    copied = {decision.name for decision in decisions if decision.action == "copied"}
    for name in first:
        if BATCH_NORM.search(name) and name not in copied:
            if not all(torch.equal(first[name], other[name]) for other in others):
                raise ValueError(
                    f"{name!r} is a statistic of a batch norm, and those of the runs say nothing about their mean. "
                    "Measure them anew on batches: `hf_interp.weights.recalibrate_batch_norm`."
                )
            copied.add(name)
    return copied


def _mean(name: str, runs: States, copied: set[str]) -> torch.Tensor:
    tensors = [run[name] for run in runs.values()]
    return tensors[0] if name in copied or len(tensors) == 1 else mean_of(tensors)


def _write(model: nn.Module, runs: States, copied: set[str]) -> None:
    """Bring a model to the mean of runs; its tensors are looked up each time, as evaluation may move it."""
    with torch.no_grad():
        for name, place in named_tensors(model).unique.items():
            place.copy_(_mean(name, runs, copied))
