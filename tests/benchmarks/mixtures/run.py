"""Go on with the runs: those that are there are skipped, so it may be stopped at any time.

    python tests/benchmarks/mixtures/run.py --pairs lm-medicine --minutes 30
    python tests/benchmarks/mixtures/run.py --list

Needs what `tests/benchmarks/effect/run.py` needs, and shares its `--cache`. Every run is a small JSON file in
`--results`. `table.py` makes MIXTURES.md of them.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from effect.pairs import PAIRS
from effect.run import CACHE

from mixtures.schedule import DEFAULT_PAIRS, SEEDS, Run, plan

RESULTS = Path(__file__).parents[1] / "mixtures_results"


def describe(run: Run) -> str:
    """A run in a line."""
    alpha = f" α = {run.alpha:g}" if run.kind in ("mixture", "matched") else ""
    return f"{run.pair} {run.kind}{alpha}, {run.steps} steps, seed {run.seed}"


def execute(runs: Sequence[Run], results: Path, cache: Path, minutes: float) -> None:
    """Do runs until there are none left or time is up."""
    import datasets
    import torch

    from hf_interp.utils.files import write_json
    from mixtures.training import do_run

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    begin = time.monotonic()
    for place, run in enumerate(runs):
        if time.monotonic() - begin > 60 * minutes:
            print(f"{len(runs) - place} runs left.", flush=True)
            return
        started = time.monotonic()
        write_json(run.path(results), do_run(run, cache))
        print(f"{describe(run)}: {time.monotonic() - started:.0f} s", flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="for M₀ (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(DEFAULT_PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    missing = [run for run in plan(args.pairs, args.seeds) if not run.path(args.results).exists()]
    if args.list:
        print("\n".join([*map(describe, missing), f"{len(missing)} runs to do"]))
    else:
        execute(missing, args.results, args.cache, args.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
