"""Means of the weights of several runs from one base model (Model soups, Wortsman et al. 2022, arXiv 2203.05482)."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.matching import BATCH_NORM, decide, match_names
from hf_interp.weights.model_folder import open_base
from hf_interp.weights.tensors import Tensors, Weights, infos, mean_of, named_tensors

Run = str | os.PathLike[str] | Weights
"""A run: its folder (or name on the Hub), state dict or model."""

States = Mapping[str, Mapping[str, torch.Tensor]]
"""Run → its tensors, of tied ones the first, by the same names in all runs."""


class Trial(NamedTuple):
    """A run that was tried in a soup."""

    run: str
    score: float
    """The score of the mean with it."""
    gain: float
    """By how much that is more than without it; 0 of the first."""
    is_kept: bool


class Soup(NamedTuple):
    """The outcome of `greedy_soup`."""

    members: list[str]
    """The runs in the soup, in the order in which they went in."""
    scores: dict[str, float]
    """The score of each run alone."""
    score: float
    """The score of the soup."""
    trials: list[Trial]
    """All runs, in the order in which they were tried."""


def write_soup(candidates: Mapping[str, Run], model: nn.Module) -> None:
    """Bring a live model to the mean of runs: a uniform soup; see `greedy_soup`."""
    _write(model, *_open_all(candidates, model))


def greedy_soup(candidates: Mapping[str, Run], model: nn.Module, score: Callable[[], float]) -> Soup:
    """Average those runs that do not make it worse; the mean is left in a live model.

    Runs are sorted by the score of each alone. The best begins the soup; each of the others goes in if the score of the
    mean with it is no worse than without (Recipe 1 of the paper).

    Args:
        candidates: runs of the model's architecture. Folders are mapped into memory, not loaded.
        model: its weights are overwritten, also where an error ends the search; it is what `score` evaluates.
        score: evaluates the model, on validation data and not on what the soup is reported on; more is better.

    Raises:
        ValueError: for no candidates, tensors that a candidate lacks or has in another shape, adapters, or a score that
            is NaN.
    """
    runs, copied = _open_all(candidates, model)

    def score_mean(names: Sequence[str]) -> float:
        _write(model, {name: runs[name] for name in names}, copied)
        value = float(score())
        if math.isnan(value):
            raise ValueError(f"`score` must return a number, got NaN for {' + '.join(names)}.")
        return value

    scores = {name: score_mean([name]) for name in runs}
    first, *others = sorted(scores, key=lambda name: -scores[name])
    members, best = [first], scores[first]
    trials = [Trial(first, best, 0.0, is_kept=True)]
    for name in others:
        found = score_mean([*members, name])
        trials.append(Trial(name, found, found - best, is_kept=found >= best))
        if found >= best:
            members, best = [*members, name], found
    _write(model, {name: runs[name] for name in members}, copied)
    return Soup(members, scores, best, trials)


def _open_all(candidates: Mapping[str, Run], model: nn.Module) -> tuple[States, set[str]]:
    """Return the runs that fit a model, and names of what is the first's in a mean."""
    if not candidates:
        raise ValueError("`candidates` must hold at least one run, got none.")
    if is_peft_model(model):
        raise ValueError("`model` must be a plain model, got a `PeftModel`: a mean of factors is no mean of weights.")
    live = named_tensors(model)
    runs = {name: _open(name, run, model, live) for name, run in candidates.items()}
    return runs, _copied(runs)


def _open(name: str, run: Run, model: nn.Module, live: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors of a run by the model's names, of tied ones the first."""
    found = named_tensors(open_base(str(run), model) if isinstance(run, (str, os.PathLike)) else run)
    names = match_names(found.first, live.first)
    known = {
        first: found.unique[found.first[names[own]]] for own, first in reversed(live.first.items()) if own in names
    }
    for own, tensor in live.unique.items():
        if own not in known:
            raise ValueError(f"`candidates` must have the model's tensors, but {name!r} has no {own!r}.")
        if known[own].shape != tensor.shape:
            raise ValueError(
                f"`candidates` must have the same shapes, but {own!r} is {tuple(tensor.shape)} in the model and "
                f"{tuple(known[own].shape)} in {name}."
            )
    for own, first in live.first.items():
        if own in names and not torch.equal(found.unique[found.first[names[own]]], known[first]):
            raise ValueError(
                f"`candidates` must be tied alike, but {own!r} and {first!r} are one in the model and not in {name}."
            )
    return known


def _copied(runs: States) -> set[str]:
    """Return names of what is the first run's in a mean; refuse quantised weights, and statistics that differ."""
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


def _write(model: nn.Module, runs: States, copied: set[str]) -> None:
    """Bring a model to the mean of runs; its tensors are looked up each time, as evaluation may move it."""
    with torch.no_grad():
        for name, place in named_tensors(model).unique.items():
            tensors = [run[name] for run in runs.values()]
            place.copy_(tensors[0] if name in copied or len(tensors) == 1 else mean_of(tensors))
