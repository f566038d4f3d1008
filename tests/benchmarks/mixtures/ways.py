"""The ways to know what a mixture comes to without training it, each from the files of the runs that it needs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from effect.pairs import PAIRS

from hf_interp.selection.mixing_law import OBJECTIVES, choose_mixture
from mixtures.schedule import ALPHAS, SHORT_ALPHAS
from mixtures.scores import MAX_FORGETTING, SIDES, Array, choose

ENDS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Found:
    """All runs of a pair.

    Args:
        pair: key of `PAIRS`.
        base: losses of M₀, by set and side.
        runs: what the files hold.
    """

    pair: str
    base: Mapping[str, Mapping[str, float]]
    runs: Sequence[Mapping[str, Any]]

    def of(self, kind: str, steps: int, alphas: Sequence[float] | None = None) -> list[Mapping[str, Any]]:
        """Runs of a kind and length, at some α; none if there is not a run at each of them for the same seeds."""
        found = [run for run in self.runs if run["kind"] == kind and run["steps"] == steps]
        if alphas is None:
            return found
        seeds = {alpha: {run["seed"] for run in found if run["alpha"] == alpha} for alpha in alphas}
        whole = set.intersection(*seeds.values())
        return [run for run in found if run["alpha"] in seeds and run["seed"] in whole]

    @property
    def steps(self) -> int:
        """Of a full run."""
        return PAIRS[self.pair].steps

    @property
    def sweep(self) -> list[Mapping[str, Any]]:
        """The runs of the full sweep."""
        return self.of("mixture", self.steps, ALPHAS)

    def curves(self, split: str) -> dict[str, Array]:
        """The sweep's losses by α, the means over seeds."""
        return {side: np.mean(self.seed_curves(split, side), axis=0) for side in SIDES}

    def seed_curves(self, split: str, side: str) -> list[Array]:
        """The sweep's losses of a side by α, for each seed."""
        runs = self.sweep
        by_run = {(run["seed"], run["alpha"]): run["losses"][split][side] for run in runs}
        seeds = sorted({run["seed"] for run in runs})
        return [np.array([by_run[seed, alpha] for alpha in ALPHAS]) for seed in seeds]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a way says.

    Args:
        alphas: what it would choose, by objective.
        curves: losses of both sides at the sweep's α; `None` if it tells none.
        seeds: how many its runs have; the sweep may have fewer or more.
        steps: optimizer steps that it took, a seed.
        seconds: of the processor, a seed, for training and for evaluation on the validation sets.
        interval: 95% interval of the α for the mean, if it tells one.
    """

    alphas: Mapping[str, float]
    curves: Mapping[str, Array] | None = None
    seeds: int = 0
    steps: float = 0.0
    seconds: float = 0.0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Way:
    """A way to predict.

    Args:
        title: as tables call it.
        predict: from the runs of a pair; `None` where its runs are missing.
    """

    title: str
    predict: Callable[[Found], Prediction | None]


def load(pair: str, results: Path) -> Found | None:
    """A pair's runs, if its M₀ and a sweep with a seed are there."""
    runs = [json.loads(path.read_text()) for path in sorted((results / pair).glob("*.json"))]
    base = [run for run in runs if run["kind"] == "base"]
    found = Found(pair, base[0]["losses"] if base else {}, [run for run in runs if run["kind"] != "base"])
    return found if base and found.sweep else None


def cost(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seeds of runs, and steps and seconds for each of them."""
    ends = {"mixture": 1, "matched": 1, "adapters": 2, "weights": 2}
    seeds = len({run["seed"] for run in runs})
    return {
        "seeds": seeds,
        "steps": sum(ends[run["kind"]] * run["steps"] for run in runs) / seeds,
        "seconds": sum(run["processor_seconds"][name] for run in runs for name in ("training", "validation")) / seeds,
    }


def by_law(found: Found, share: int, alphas: Sequence[float], kind: str = "mixture") -> Prediction | None:
    """The package's law through the validation losses of runs of a share of the steps."""
    runs = found.of(kind, found.steps // share, alphas)
    if not runs:
        return None
    places = [run["alpha"] for run in runs]
    losses = {side: [run["losses"]["validation"][side] for run in runs] for side in SIDES}
    choices = {
        objective: choose_mixture(
            places, losses, found.base["validation"], objective=objective, max_forgetting=MAX_FORGETTING
        )
        for objective in OBJECTIVES
    }
    mean = choices["mean"]
    return Prediction(
        alphas={objective: choice.alpha for objective, choice in choices.items()},
        curves={side: law(ALPHAS) for side, law in mean.curves.items()},
        interval=mean.interval,
        **cost(runs),
    )


def by_means(found: Found, share: int, alphas: Sequence[float], kind: str) -> Prediction | None:
    """The mean validation losses of runs, without a law: lines between them, and the best of their α."""
    runs = found.of(kind, found.steps // share, alphas)
    if not runs:
        return None
    base = found.base["validation"]["general"]
    means = {
        side: np.array(
            [fmean(run["losses"]["validation"][side] for run in runs if run["alpha"] == alpha) for alpha in alphas]
        )
        for side in SIDES
    }
    return Prediction(
        alphas={objective: alphas[choose(means, objective, base)] for objective in OBJECTIVES},
        curves={side: np.interp(ALPHAS, alphas, mean) for side, mean in means.items()},
        **cost(runs),
    )


def by_ends(found: Found, kind: str, share: int = 1) -> Prediction | None:
    """Validation losses of what lies between runs on either side alone."""
    runs = found.of(kind, found.steps // share)
    if not runs:
        return None
    curves = {side: np.array([run["losses"]["validation"][side] for run in runs]).mean(axis=0) for side in SIDES}
    return _measured(found, curves, runs)


def by_sweep(found: Found) -> Prediction:
    """The sweep itself on the validation sets."""
    return _measured(found, found.curves("validation"), found.sweep)


def always(alpha: float) -> Prediction:
    """No search."""
    return Prediction(alphas=dict.fromkeys(OBJECTIVES, alpha))


def _measured(found: Found, curves: Mapping[str, Array], runs: Sequence[Mapping[str, Any]]) -> Prediction:
    places = {objective: choose(curves, objective, found.base["validation"]["general"]) for objective in OBJECTIVES}
    return Prediction(alphas={name: ALPHAS[place] for name, place in places.items()}, curves=curves, **cost(runs))


WAYS: dict[str, Way] = {
    "sweep": Way("the sweep itself, on validation", by_sweep),
    "law-4": Way("law, 5 α, a fourth of the steps", lambda found: by_law(found, 4, SHORT_ALPHAS)),
    "matched-4": Way(
        "law, 5 α, a fourth of the steps and of the data", lambda found: by_law(found, 4, SHORT_ALPHAS, "matched")
    ),
    "means-4": Way("the same runs, without the law", lambda found: by_means(found, 4, SHORT_ALPHAS, "matched")),
    "law-2": Way("law, 5 α, half of the steps", lambda found: by_law(found, 2, SHORT_ALPHAS)),
    "law-5": Way("law, 5 α, all steps", lambda found: by_law(found, 1, SHORT_ALPHAS)),
    "law-3": Way("law, 3 α, all steps", lambda found: by_law(found, 1, ENDS)),
    "adapters": Way("OP-Mix: two LoRA adapters, merged", lambda found: by_ends(found, "adapters")),
    "adapters-4": Way("OP-Mix, a fourth of the steps", lambda found: by_ends(found, "adapters", 4)),
    "weights": Way("two full fine-tunings, merged", lambda found: by_ends(found, "weights")),
    "half": Way("no search: α = 0.5", lambda found: always(0.5)),
}
"""The first is what the others would replace; "matched-4" is what `hf-interp tune --mixture` does by default."""
