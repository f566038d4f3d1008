"""Cost of a plan: building, reaching any step, memory.

    python tests/benchmarks/plan.py

16 corpora, global batch 256, a cosine schedule; in the last rows along a path of three mixtures of them all. α of all
steps is worked out when a plan is first asked, here for its last step. Seeks go to random steps, each for a whole
global batch; medians.
"""

import random
import statistics
import time
import tracemalloc

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import cosine
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


def main() -> None:
    header = ["steps", "slots", "build, ms", "first step, ms"]
    header += ["seek, ms (median)", "seek, ms (worst)", "held, MiB", "peak, MiB"]
    lengths = [10**power for power in range(3, 10)]
    cases = [*((steps, False) for steps in lengths), *((steps, True) for steps in (1_000, 100_000, 10**9))]
    print(format_table(header, [measure(steps, has_path) for steps, has_path in cases]))


if __name__ == "__main__":
    main()
