"""Which methods hold when labels of the domain are wrong: runs with a share of its training labels flipped.

    python tests/benchmarks/effect/noise.py --minutes 60
    python tests/benchmarks/effect/noise.py --pairs sentiment-finance --shares 0 0.4 --seeds 0 --list
    python tests/benchmarks/effect/noise.py --table                              # what there is, over both pairs
    python tests/benchmarks/effect/noise.py --table --pairs sentiment-finance    # every number of a pair

Needs what `run.py` needs, and shares its `--cache`. Every run is a row of `--results` (see `store`); those that are
there are skipped, so it may be stopped at any time.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from effect.cells import Cell, Row, row_of, spread_counts
from effect.methods import BASE, METHODS, Method
from effect.pairs import PAIRS as ALL_PAIRS
from effect.pairs import SIDES
from effect.run import add_settings, do_all
from effect.stats import Interval, signed
from effect.store import Key, Store, key_of
from effect.summary import verdicts
from hf_interp.commands.compare import BASE as BASE_TITLE
from hf_interp.commands.compare import INTERPOLATED_SUFFIX
from hf_interp.utils.console import format_table

RESULTS = Path(__file__).parents[1] / "results" / "noise.tsv"
PAIRS = ("sentiment-finance", "sentiment-airlines")
SIZE = 300
"""Training examples of the domain."""
LEARNING_RATE = 2e-4
"""Of all methods: the middle of the grid of these pairs."""
SHARES = (0.0, 0.4, 0.2, 0.1)
"""Of the domain's training labels, that are flipped; the ends, which say most, are run first."""
SEEDS = (0, 1, 2)


def _with(base: Method, key: str, title: str, **fields: Any) -> Method:
    """A method with further fields of the recipe."""
    own = {**base.recipe_fields(0, 0, 0), **fields}
    return replace(base, key=f"{base.key}-{key}", title=f"{base.title}, {title}", fields=own)


NOISE_METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        METHODS["domain"],
        _with(METHODS["domain"], "smooth", "label smoothing 0.1", label_smoothing_factor=0.1),
        METHODS["distill"],
        METHODS["constant-0.5"],
        METHODS["linear"],
    )
}
"""By key; M_α of each is found by the run itself."""
GCE = "generalised cross entropy"
TITLES = {
    "domain": METHODS["domain"].title,
    "domain-smooth": NOISE_METHODS["domain-smooth"].title,
    "domain-gce": f"{METHODS['domain'].title}, {GCE}",
    "distill": METHODS["distill"].title,
    "constant-0.5": METHODS["constant-0.5"].title,
    "constant-0.5-gce": f"{METHODS['constant-0.5'].title}, {GCE}",
    "linear": METHODS["linear"].title,
}
"""As tables call the methods, in their order. Those with generalised cross entropy (Zhang and Sabuncu 2018, q = 0.7) as
the loss of domain examples were run before the package lost it: their rows stay, and no further ones can be added."""


@dataclass(frozen=True, kw_only=True)
class NoiseRun:
    """What a row of results is about.

    Args:
        pair: one of `PAIRS`.
        method: one of `NOISE_METHODS`; or M₀.
        share: of the labels, flipped.
        seed: of the order, of dropout, of which domain examples there are, and of which labels are flipped to what.
    """

    pair: str
    method: str
    share: float = 0.0
    seed: int = 0

    @property
    def key(self) -> Key:
        """What tells it from other runs."""
        return key_of({**asdict(self), "size": SIZE, "learning_rate": LEARNING_RATE})


def plan(pairs: Sequence[str], shares: Sequence[float], seeds: Sequence[int]) -> Iterator[NoiseRun]:
    """All runs in order: of a pair M₀ first, then all methods at all shares, seed by seed."""
    for pair in pairs:
        yield NoiseRun(pair=pair, method=BASE)
        for seed in seeds:
            for share in shares:
                for method in NOISE_METHODS:
                    yield NoiseRun(pair=pair, method=method, share=share, seed=seed)


def flip(labels: npt.ArrayLike, share: float, num_classes: int, seed: int) -> npt.NDArray[np.int64]:
    """Labels of which a share, drawn at random, has become another class, each other one being as likely.

    What is flipped at a smaller share is flipped to the same at a larger one.

    >>> flip([0, 1, 0, 1], 0.5, 2, seed=0).tolist(), flip([0, 1, 0, 1], 1.0, 2, seed=0).tolist()
    ([1, 1, 0, 0], [1, 0, 1, 0])
    """
    found = np.array(labels, dtype=np.int64)
    # With a number more than the draw of the examples, which has the same seed, so that the two have nothing in common.
    generator = np.random.default_rng([seed, 1])
    chosen = generator.permutation(len(found))[: round(share * len(found))]
    others = generator.integers(1, num_classes, size=len(found))
    found[chosen] = (found[chosen] + others[chosen]) % num_classes
    return found


def do_noise_run(run: NoiseRun, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Flip, train and evaluate; returns what goes into the results.

    Args:
        run: what to do.
        folder: of the cache.
        device: "cpu", or anything else for the accelerator that torch finds.
    """
    from effect.pairs import FULL
    from effect.training import Run, do_run, open_pair, pick, train_method
    from hf_interp.commands.compare import quiet_bar

    if run.method == BASE:
        return do_run(Run(pair=run.pair, size=FULL, method=BASE, learning_rate=0.0, seed=0), folder, device)
    with tempfile.TemporaryDirectory() as place, quiet_bar(0, shown=False):
        setup = open_pair(run.pair, folder, device)
        num_classes = len(setup.pair.label_names() or [])
        corpora = {corpus.side: corpus for corpus in setup.data.corpora}
        clean = pick(corpora["domain"].dataset, SIZE, run.seed)
        labels = flip(clean["labels"], run.share, num_classes, run.seed)
        noisy = clean.remove_columns("labels").add_column("labels", labels, feature=clean.features["labels"])
        corpora["domain"] = replace(corpora["domain"], dataset=noisy)
        found = train_method(setup, NOISE_METHODS[run.method], list(corpora.values()), LEARNING_RATE, run.seed, place)
    return {
        **asdict(run),
        "size": SIZE,
        "learning_rate": LEARNING_RATE,
        "flipped": int((labels != clean["labels"]).sum()),
        **found,
    }


def work(run: NoiseRun, results: Path, cache: Path, device: str) -> None:
    """Do a run and write what it found."""
    Store(results).add(do_noise_run(run, cache, device))


def describe(run: NoiseRun) -> str:
    """A run in a line."""
    return f"{run.pair} {run.method}" + ("" if run.method == BASE else f" {run.share:.0%} seed {run.seed}")


# What the runs say, as tables; docs/evidence.md says what they mean.

REFERENCE = ("domain", False)
"""What the others are compared with: plain fine-tuning."""
RowKey = tuple[str, bool]
Levels = Mapping[float, Cell]


def levels_of(entries: Sequence[Mapping[str, Any]]) -> Levels:
    """The cells of a pair by the share of flipped labels, rising; M₀ is in each.

    Args:
        entries: all results of the pair, of which M₀'s is one.
    """
    base = next(entry for entry in entries if entry["method"] == BASE)
    counts = {side: spread_counts(found) for side, found in base["counts"].items()}
    levels = {}
    for share in sorted(SHARES):
        rows: dict[RowKey, Row] = {(BASE, False): row_of(BASE, False, [base], counts, "test")}
        machines = {base["machine"]}
        for method in TITLES:
            found = [entry for entry in entries if (entry["method"], entry.get("share")) == (method, share)]
            found.sort(key=lambda entry: entry["seed"])
            if found:
                rows[method, False] = row_of(method, False, found, counts, "test")
                rows[method, True] = row_of(method, True, found, counts, "test_interpolated")
                machines |= {entry["machine"] for entry in found}
        if len(rows) > 1:
            levels[share] = Cell(base["pair"], SIZE, rows, machines)
    return levels


def keys_of(levels: Levels) -> list[RowKey]:
    """All rows of a pair in the order of the methods."""
    keys = {key for cell in levels.values() for key in cell.rows}
    return sorted(keys, key=lambda key: ([BASE, *TITLES].index(key[0]), key[1]))


def title_of(key: RowKey) -> str:
    """A row as tables call it."""
    method, is_interpolated = key
    return (BASE_TITLE if method == BASE else TITLES[method]) + (INTERPOLATED_SUFFIX if is_interpolated else "")


def gain_table(levels: Levels, side: str) -> str:
    """By how much methods are better than the reference at the same noise: a column for each share of flips."""
    rows = [
        [title_of(key), *(signed(_gain(cell, key, side)) for cell in levels.values())]
        for key in keys_of(levels)
        if key != REFERENCE
    ]
    return format_table(["method", *(f"{share:.0%}" for share in levels)], rows)


def order_table(levels: Levels) -> str:
    """By how much the rise is better than the constant mixture that reads as much of the domain; sure ones are bold."""
    keys = ("linear", False), ("constant-0.5", False)
    found = {share: cell for share, cell in levels.items() if all(key in cell.rows for key in keys)}
    if not found:
        return "One of both has not been run yet."
    rows = [[side, *(signed(_gain(cell, keys[0], side, keys[1])) for cell in found.values())] for side in SIDES[::-1]]
    return format_table(["side", *(f"{share:.0%}" for share in found)], rows)


def _gain(cell: Cell, key: RowKey, side: str, reference: RowKey = REFERENCE) -> Interval | None:
    if key == reference or key not in cell.rows or reference not in cell.rows:
        return None
    return cell.gain(cell.rows[key], cell.rows[reference], side)


def summary_table(pairs: Mapping[str, Levels]) -> str:
    """Methods over all pairs: mean gains in points at the most noise, and verdicts at any noise."""
    most = max(SHARES)
    rows = []
    for key in dict.fromkeys(key for levels in pairs.values() for key in keys_of(levels)):
        cells = [levels[most] for levels in pairs.values() if most in levels]
        noisy = [cell for levels in pairs.values() for share, cell in levels.items() if share > 0]
        counts = verdicts(noisy, key, REFERENCE).values()
        row = [title_of(key)]
        for side in SIDES[::-1]:
            gains = [gain.value for cell in cells if (gain := _gain(cell, key, side)) is not None]
            row.append(f"{100 * fmean(gains):+.1f}" if gains else "")
        rows.append([*row, "–".join(map(str, counts)) if any(counts) else ""])
    return format_table(["method", *(f"{side} gain at {most:.0%}" for side in SIDES[::-1]), "with noise"], rows)


def summary(pairs: Mapping[str, Levels]) -> str:
    """The table over all pairs."""
    machines = sorted({machine for levels in pairs.values() for cell in levels.values() for machine in cell.machines})
    return f"Machine: {'; '.join(machines)}.\n\n## Gains over domain only, in points\n\n{summary_table(pairs)}"


def show_pair(pair: str, levels: Levels) -> str:
    """The tables of a pair."""
    return "\n\n".join(
        [
            f"## {ALL_PAIRS[pair].title}",
            "### Gain over domain only, on the domain\n\n" + gain_table(levels, "domain"),
            "### Gain over domain only, on the general side\n\n" + gain_table(levels, "general"),
            "### Gain of the rise over constant 0.5\n\n" + order_table(levels),
        ]
    )


def print_tables(results: Path, named: Sequence[str] | None) -> None:
    """Print the table over all pairs, or every table of those named."""
    found = Store(results).load()
    pairs = {pair: levels for pair in PAIRS if pair in found and (levels := levels_of(found[pair]))}
    print("\n\n".join(show_pair(pair, pairs[pair]) for pair in named) if named else summary(pairs))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser, RESULTS)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, help="all by default; of a table, these in full")
    parser.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=list(SHARES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--table", action="store_true", help="say what the runs found, and run nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.table:
        print_tables(args.results, args.pairs)
        return 0
    done = Store(args.results).rows()
    missing = [run for run in plan(args.pairs or PAIRS, args.shares, args.seeds) if run.key not in done]
    if args.list:
        print("\n".join([*map(describe, missing), f"{len(missing)} runs to do"]))
        return 0
    job = partial(work, results=args.results, cache=args.cache, device=args.device)
    return 1 if do_all(missing, job, describe, args.minutes) else 0


if __name__ == "__main__":
    sys.exit(main())
