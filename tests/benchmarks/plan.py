"""Cost of a plan: building, reaching any step, memory.

    python tests/benchmarks/plan.py
    python tests/benchmarks/plan.py --ranks 1000
    python tests/benchmarks/plan.py --recipe hf_interp_demo/recipe.yaml --checkouts . ../before

16 corpora, global batch 256, a cosine schedule; in the last rows along a path of three mixtures of them all. α of all
steps is worked out when a plan is first asked, here for its last step. Seeks go to random steps, each for a whole
global batch; medians.

With `--ranks`, what a run of so many processes costs one of them, the middle one, which alone is there: opening two
corpora of 200,000 rows of 64 ids on disk, the plan of 100,000 steps, and reading its own micro-batches of eight.

With `--recipe`, the command `hf-interp plan` from start to end, by turns from each checkout, in fresh processes.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import cosine
from hf_interp.mixture.slots import BatchShard, SlotDataset, SlotSampler
from hf_interp.utils.console import format_table

BATCH_SIZE = 256


def build(max_steps: int, has_path: bool = False) -> MixturePlan:
    corpora = [
        CorpusSpec(name=f"c{index}", side="general" if index < 8 else "domain", num_examples=10_000 * (index + 1))
        for index in range(16)
    ]
    even, half = [1 / 16] * 16, [1 / 8] * 8
    points = zip((0.0, 0.4, 1.0), ([*half, *[0] * 8], even, [*[0] * 8, *half]), strict=True)
    path = [{"at": at, **{f"c{index}": share for index, share in enumerate(shares)}} for at, shares in points]
    return MixturePlan(
        corpora,
        alpha_schedule=cosine(),
        batch_size=BATCH_SIZE,
        max_steps=max_steps,
        mixture_path=path if has_path else None,
    )


def measure(max_steps: int, has_path: bool) -> list[str]:
    times, firsts = [], []
    for _ in range(5):
        begin = time.perf_counter()
        plan = build(max_steps, has_path)
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        plan.locate(range((max_steps - 1) * BATCH_SIZE, max_steps * BATCH_SIZE))
        firsts.append(time.perf_counter() - begin)
    seeks = []
    draw = random.Random(0)
    for _ in range(200):
        step = draw.randrange(max_steps)
        begin = time.perf_counter()
        plan.locate(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
        seeks.append(time.perf_counter() - begin)
    tracemalloc.start()
    kept = build(max_steps, has_path)
    kept.locate(range(BATCH_SIZE))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return [
        f"{max_steps:,}" + (" along a path" if has_path else ""),
        f"{max_steps * BATCH_SIZE:,}",
        f"{statistics.median(times) * 1e3:.1f}",
        f"{statistics.median(firsts) * 1e3:.1f}",
        f"{statistics.median(seeks) * 1e3:.2f}",
        f"{max(seeks) * 1e3:.2f}",
        f"{held / 2**20:.2f}",
        f"{peak / 2**20:.1f}",
    ]


def write_corpora(folder: Path, rows: int) -> None:
    draw = np.random.default_rng(0)
    for side in ("general", "domain"):
        ids = list(draw.integers(0, 30_000, (rows, 64), dtype=np.int32))
        datasets.Dataset.from_dict({"input_ids": ids}).save_to_disk(str(folder / side))


def open_corpora(folder: Path) -> list[Corpus]:
    return [Corpus(side, datasets.load_from_disk(str(folder / side)), side) for side in ("general", "domain")]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a piece of work gives, and its milliseconds."""
    begin = time.perf_counter()
    found = work()
    return found, (time.perf_counter() - begin) * 1e3


def be_rank(ranks: int, folder: Path, count: int) -> list[float]:
    """Milliseconds of opening, hashing, planning, and of each of the first micro-batches of the middle rank."""
    corpora, opening = timed(lambda: open_corpora(folder))
    specs, hashing = timed(lambda: [corpus.spec() for corpus in corpora])
    settings: dict[str, Any] = {"alpha_schedule": cosine(), "batch_size": 8 * ranks, "max_steps": 100_000}
    plan, building = timed(lambda: MixturePlan(specs, **settings))
    shard = BatchShard(8, ranks, ranks // 2)
    data, requests = SlotDataset(plan, corpora, shard), iter(SlotSampler(plan, shard))
    return [opening, hashing, building, *(timed(lambda: data.__getitems__(next(requests)))[1] for _ in range(count))]


def measure_rank(ranks: int, folder: Path, count: int = 500) -> list[str]:
    opening, hashing, building, first, *later = be_rank(ranks, folder, count)
    tracemalloc.start()
    be_rank(ranks, folder, count)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    figures = [opening, hashing, building, first, statistics.median(later), max(later), peak]
    return [f"{ranks:,}", f"{8 * ranks * 100_000:,}", *(f"{figure:.2f}" for figure in figures)]


def command(checkout: str, recipe: str) -> tuple[float, float]:
    """The seconds of a plan, by the clock and of the processor."""
    script = "import sys; from hf_interp.cli import main; sys.exit(main(sys.argv[1:]))"
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": checkout}
    subprocess.run(
        [sys.executable, "-c", script, "plan", recipe], env=environment, stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begin, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare_commands(checkouts: list[str], recipe: str, rounds: int) -> str:
    for checkout in checkouts:
        command(checkout, recipe)  # fills the caches
    found = [[command(checkout, recipe) for checkout in checkouts] for _ in range(rounds)]
    rows = []
    for checkout, times in zip(checkouts, zip(*found, strict=True), strict=True):
        cells = [
            f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" for each in zip(*times, strict=True)
        ]
        rows.append([checkout, *cells])
    return format_table(["checkout", "s", "processor, s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, help="measure one rank of a run of so many, and of a run of one")
    parser.add_argument("--rows", type=int, default=200_000, help="of each corpus that a rank opens")
    parser.add_argument("--recipe", help="time the command on this recipe")
    parser.add_argument("--checkouts", nargs="+", default=["."], help="of hf_interp")
    parser.add_argument("--rounds", type=int, default=5, help="of the command")
    args = parser.parse_args()
    if args.recipe is not None:
        print(compare_commands(args.checkouts, args.recipe, args.rounds))
        return
    if args.ranks is not None:
        header = ["ranks", "slots", "open, ms", "hash rows, ms", "plan, ms", "first batch, ms", "batch, ms (median)"]
        header += ["batch, ms (worst)", "peak, MiB"]
        with tempfile.TemporaryDirectory() as folder:
            write_corpora(Path(folder), args.rows)
            measure_rank(1, Path(folder), 10)  # what is loaded once
            print(format_table(header, [measure_rank(ranks, Path(folder)) for ranks in (1, args.ranks)]))
        return
    header = ["steps", "slots", "build, ms", "first step, ms"]
    header += ["seek, ms (median)", "seek, ms (worst)", "held, MiB", "peak, MiB"]
    lengths = [10**power for power in range(3, 10)]
    cases = [*((steps, False) for steps in lengths), *((steps, True) for steps in (1_000, 100_000, 10**9))]
    print(format_table(header, [measure(steps, has_path) for steps, has_path in cases]))


if __name__ == "__main__":
    main()
