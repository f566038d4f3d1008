"""Cost of a plan: building, reaching any step, memory.

    python tests/benchmarks/plan.py

16 corpora, global batch 256, a cosine schedule. Seeks go to random steps, each for a whole global batch; medians.
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


def build(max_steps: int) -> MixturePlan:
    corpora = [
        CorpusSpec(name=f"c{index}", side="general" if index < 8 else "domain", num_examples=10_000 * (index + 1))
        for index in range(16)
    ]
    return MixturePlan(corpora, alpha_schedule=cosine(), batch_size=BATCH_SIZE, max_steps=max_steps)


def measure(max_steps: int) -> list[str]:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        plan = build(max_steps)
        times.append(time.perf_counter() - begin)
    seeks = []
    draw = random.Random(0)
    for _ in range(200):
        step = draw.randrange(max_steps)
        begin = time.perf_counter()
        plan.locate(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
        seeks.append(time.perf_counter() - begin)
    tracemalloc.start()
    kept = build(max_steps)
    kept.locate(range(BATCH_SIZE))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return [
        f"{max_steps:,}",
        f"{max_steps * BATCH_SIZE:,}",
        f"{statistics.median(times) * 1e3:.1f}",
        f"{statistics.median(seeks) * 1e3:.2f}",
        f"{max(seeks) * 1e3:.2f}",
        f"{held / 2**20:.2f}",
    ]


def main() -> None:
    header = ["steps", "slots", "build, ms", "seek, ms (median)", "seek, ms (worst)", "held, MiB"]
    print(format_table(header, [measure(steps) for steps in (1_000, 10_000, 100_000, 1_000_000)]))


if __name__ == "__main__":
    main()
