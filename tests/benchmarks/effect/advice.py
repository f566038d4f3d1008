"""Can the best amount of domain data be told before training? Fits what `hf-interp plan --distance` suggests by.

    python tests/benchmarks/effect/advice.py                 # measure what is missing, fit, write, print the tables
    python tests/benchmarks/effect/advice.py --only_measure  # distances alone, of pairs that have no runs yet too

Needs what run.py needs, with the same `--cache`. Distances are kept in distances.json; the fit is written into the
package, hf_interp/advice.json, once three pairs have all constant mixtures. Remove distances.json if an M₀ is made
otherwise: what is in it is not measured again.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from effect.cells import search_so_far
from effect.pairs import PAIRS, SIDES, SIZES
from effect.run import CACHE, RESULTS
from effect.schedule import load
from effect.stats import Array
from hf_interp.commands.advice import (
    ADVICE_PATH,
    FEATURES,
    FEWEST_PAIRS,
    Advice,
    Case,
    features_of,
    fit_advice,
    leave_pairs_out,
)
from hf_interp.reporting.results import less_is_better
from hf_interp.selection.mixing_law import fit_mixing_law
from hf_interp.utils.console import format_table
from hf_interp.utils.files import read_json, write_json

DISTANCES = Path(__file__).with_name("distances.json")
AMOUNTS = {"constant-0.25": 0.25, "constant-0.5": 0.5, "constant-0.75": 0.75, "domain": 1.0}
"""Methods with a constant α. M₀ does not stand for 0: it saw the general side alone, but not for as many steps."""
GRID = np.linspace(0.25, 1.0, 76)
"""Where the best amount is looked for: among those that were run, not beyond."""
Distances = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the constant mixtures of a pair and a size say.

    Args:
        pair, size: of the cell.
        num_domain, num_examples: training examples of the domain, and examples that a run reads.
        curve: the mean of both sides' validation metric over `GRID`, turned so that more is better.
        best_of_seeds: the best amount by each seed alone.
    """

    pair: str
    size: int | str
    num_domain: int
    num_examples: int
    curve: Array
    best_of_seeds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The best amount."""
        return float(GRID[self.curve.argmax()])

    def regret(self, amount: float) -> float:
        """What an amount loses against the best, by the curve: in accuracy, F1 or nats."""
        return float(self.curve.max() - np.interp(amount, GRID, self.curve))


def find_amounts(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Found]:
    """All cells that have every constant mixture, with at least a seed that they share."""
    found = []
    for name, pair in PAIRS.items():
        entries = results.get(name, [])
        for size in sorted(pair.sizes, key=lambda size: (isinstance(size, str), size)):
            runs = {method: _runs(entries, name, method, size) for method in AMOUNTS}
            seeds = sorted(set.intersection(*(set(each) for each in runs.values())))
            if not seeds:
                continue
            by_seed = [{AMOUNTS[method]: each[seed]["validation"] for method, each in runs.items()} for seed in seeds]
            found.append(
                Found(
                    pair=name,
                    size=size,
                    num_domain=runs["domain"][seeds[0]]["num_domain"],
                    num_examples=pair.steps * pair.batch_size,
                    curve=fit_curve(pair.metric, by_seed),
                    best_of_seeds=tuple(float(GRID[fit_curve(pair.metric, [one]).argmax()]) for one in by_seed),
                )
            )
    return found


def fit_curve(metric: str, runs: Iterable[Mapping[float, Mapping[str, float]]]) -> Array:
    """The mean of both sides over `GRID`, turned so that more is better.

    Losses follow the law of mixtures, side by side; of other metrics the mean is a parabola.

    Args:
        metric: of the runs.
        runs: of each seed amount → side → metric.
    """
    points = [(amount, values) for one in runs for amount, values in one.items()]
    amounts = [amount for amount, _ in points]
    if less_is_better(metric):
        laws = [fit_mixing_law(amounts, [values[side] for _, values in points]) for side in SIDES]
        return -np.mean([law(GRID) for law in laws], axis=0)
    means = [fmean(values[side] for side in SIDES) for _, values in points]
    return np.polyval(np.polyfit(amounts, means, 2), GRID)


def cases_of(found: Iterable[Found], distances: Distances) -> list[Case]:
    """What the regression is fitted on.

    Raises:
        ValueError: if the distance of a cell was not measured.
    """
    cases = []
    for each in found:
        measured = distances.get(each.pair, {}).get(str(each.size))
        if measured is None:
            raise ValueError(f"The distance of {each.pair} with {each.size} examples is not known. Measure it first.")
        known = features_of(measured["value"], measured["losses"], each.num_examples, each.num_domain)
        features = {name: value for name, value in known.items() if value is not None}
        cases.append(Case(pair=each.pair, amount=each.best, features=features))
    return cases


def measure_missing(distances: Distances, pairs: Sequence[str], sizes: Sequence[int | str], cache: Path) -> None:
    """Measure what is not among the distances, and write each one down at once."""
    for pair in pairs:
        for size in (size for size in sizes if size in PAIRS[pair].sizes):
            if str(size) not in distances.get(pair, {}):
                distances.setdefault(pair, {})[str(size)] = _measure(pair, size, cache)
                write_json(DISTANCES, distances, indent=1)
                print(f"{pair} {size}: d_A {distances[pair][str(size)]['value']:.2f}", file=sys.stderr, flush=True)


def distance_table(distances: Distances) -> str:
    """All that has been measured."""
    header = ["pair", "domain examples", "d_A", "95% interval", "general loss", "domain loss"]
    rows = [
        [
            PAIRS[pair].title,
            str(size),
            f"{measured['value']:.2f}",
            "{:.2f} to {:.2f}".format(*measured["interval"]),
            *("" if measured["losses"] is None else f"{measured['losses'][side]:.3f}" for side in SIDES),
        ]
        for pair in PAIRS
        for size in sorted(SIZES, key=lambda size: (isinstance(size, str), size))
        if (measured := distances.get(pair, {}).get(str(size))) is not None
    ]
    return format_table(header, rows)


def tables(found: Sequence[Found], distances: Distances) -> str:
    """The best amounts, what pairs left out of the fit say of them, and the fit."""
    if not found:
        return "No pair has all constant mixtures yet."
    pairs = {each.pair for each in found}
    cases = cases_of(found, distances)
    if len(pairs) < FEWEST_PAIRS:
        note = f"{len(pairs)} of the {FEWEST_PAIRS} pairs that a fit needs have all constant mixtures."
        return f"{_cell_table(found, cases, None)}\n\n{note}"
    predictions = leave_pairs_out(cases)
    advice = fit_advice(cases)
    return "\n\n".join(
        [
            _cell_table(found, cases, predictions),
            _error_table(found, cases, predictions),
            _slope_table(advice),
            _verdict(found, advice),
        ]
    )


def _cell_table(found: Sequence[Found], cases: Sequence[Case], predictions: Array | None) -> str:
    header = ["pair", "domain examples", "d_A", "loss ratio", "passes", "best α", "of single seeds"]
    header += [] if predictions is None else ["regression", "mean of others"]
    rows = []
    for place, (each, case) in enumerate(zip(found, cases, strict=True)):
        ends = f"{min(each.best_of_seeds):.2f}–{max(each.best_of_seeds):.2f} ({len(each.best_of_seeds)})"
        rows.append(
            [
                PAIRS[each.pair].title,
                str(each.size),
                f"{case.features['distance']:.2f}",
                f"{np.exp(case.features['loss_ratio']):.2f}",
                f"{np.exp(case.features['log_passes']):.2f}",
                f"{each.best:.2f}",
                ends,
                *([] if predictions is None else [f"{value:.2f}" for value in predictions[place]]),
            ]
        )
    return format_table(header, rows)


def _error_table(found: Sequence[Found], cases: Sequence[Case], predictions: Array) -> str:
    """Errors on pairs left out, each pair counting once; and what the suggestions would have lost."""
    guesses = {
        "regression": predictions[:, 0],
        "mean of the other pairs": predictions[:, 1],
        "always 0.5": np.full(len(found), 0.5),
    }
    rows = []
    for name, amounts in guesses.items():
        squares = [(amount - case.amount) ** 2 for amount, case in zip(amounts, cases, strict=True)]
        regrets = [each.regret(amount) for each, amount in zip(found, amounts, strict=True)]
        of_losses, of_others = (
            [(each, regret) for each, regret in zip(found, regrets, strict=True) if _is_loss(each) is wanted]
            for wanted in (True, False)
        )
        rows.append(
            [
                name,
                f"{_over_pairs(found, squares) ** 0.5:.3f}",
                _regret(of_others, 100, ".2f"),
                _regret(of_losses, 1, ".4f"),
            ]
        )
    return format_table(["suggestion", "error of α", "points lost", "nats lost"], rows)


def _slope_table(advice: Advice) -> str:
    rows = [
        [FEATURES[name], f"{slope.coefficient:+.3f}", f"{slope.scale:.2f}", f"{slope.low:.2f} to {slope.high:.2f}"]
        for name, slope in advice.slopes.items()
    ]
    return format_table(["feature", "α gained by a standard deviation", "standard deviation", "range"], rows)


def _verdict(found: Sequence[Found], advice: Advice) -> str:
    spreads = [stdev(each.best_of_seeds) for each in found if len(each.best_of_seeds) > 1]
    seeds = (
        f" The best α of single seeds of a cell have a standard deviation of {fmean(spreads):.2f}." if spreads else ""
    )
    better = "better than" if advice.helps else "no better than"
    return (
        f"{advice.num_cases} cells of {advice.num_pairs} pairs; mean of the best α over pairs: {advice.mean:.2f}. On "
        f"pairs left out the regression was {better} the mean of the others ({advice.error:.3f} against "
        f"{advice.error_of_mean:.3f}).{seeds}"
    )


def _over_pairs(found: Sequence[Found], values: Sequence[float]) -> float:
    """The mean over pairs of means over their cells."""
    pairs = {each.pair for each in found}
    return fmean(fmean(value for each, value in zip(found, values, strict=True) if each.pair == pair) for pair in pairs)


def _regret(chosen: Sequence[tuple[Found, float]], factor: float, form: str) -> str:
    if not chosen:
        return ""
    cells, regrets = zip(*chosen, strict=True)
    return format(factor * _over_pairs(cells, regrets), form)


def _is_loss(found: Found) -> bool:
    return less_is_better(PAIRS[found.pair].metric)


def _runs(
    entries: Sequence[Mapping[str, Any]], pair: str, method: str, size: int | str
) -> dict[int, Mapping[str, Any]]:
    """The runs of a method at its chosen learning rate, by seed."""
    rate = search_so_far(entries, pair, size, method).best
    wanted = (method, size, rate)
    return {
        entry["seed"]: entry
        for entry in entries
        if (entry["method"], entry.get("size"), entry.get("learning_rate")) == wanted
    }


def _measure(pair: str, size: int | str, cache: Path) -> dict[str, Any]:
    """The distance of a pair with some of its domain examples, as the package measures it."""
    import torch

    from effect.training import open_pair, pick
    from hf_interp.commands.distance import measure_distance
    from hf_interp.mixture.corpus import with_dataset
    from hf_interp.tasks.build import Data
    from hf_interp.tasks.parsing import parse_recipe

    torch.set_num_threads(1)
    setup = open_pair(pair, cache, "cpu")
    recipe, args = parse_recipe({**setup.recipe, "output_dir": "unused"})
    corpora = [
        with_dataset(corpus, pick(corpus.dataset, size)) if corpus.side == "domain" else corpus
        for corpus in setup.data.corpora
    ]
    data = Data(
        tokenizer=setup.data.tokenizer,
        corpora=corpora,
        eval_sets=setup.data.eval_sets,
        validation_sets=setup.data.validation_sets,
    )
    found = measure_distance(recipe, args, data)
    return {
        "value": round(found.distance.value, 4),
        "interval": [round(end, 4) for end in found.distance.interval],
        "num_examples": found.distance.num_examples,
        "losses": found.known_losses and {side: round(loss, 4) for side, loss in found.known_losses.items()},
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="of M₀ (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ADVICE_PATH, help="of the fit (default: in the package)")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--only_measure", action="store_true", help="measure distances of all --pairs, and fit nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    distances: Distances = read_json(DISTANCES) or {}
    if args.only_measure:
        measure_missing(distances, args.pairs, SIZES, args.cache)
        print(distance_table(distances))
        return 0
    found = [each for each in find_amounts(load(args.results)) if each.pair in args.pairs]
    for each in found:
        measure_missing(distances, [each.pair], [each.size], args.cache)
    print(tables(found, distances))
    if len({each.pair for each in found}) >= FEWEST_PAIRS:
        write_json(args.output, fit_advice(cases_of(found, distances)).to_dict(), indent=1)
        print(f"\n{args.output} is written.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
