"""Examples per second out of the dataset: a scheduled mixture beside `datasets.interleave_datasets`, same data.

    python tests/benchmarks/loader.py

Two corpora of tokenised rows (64 ids, an attention mask, a label) in memory, one core, no tensors. Ours reads with α
rising from 0 to 1, theirs at a constant 0.5. Rounds alternate between the contestants; medians are printed.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import datasets
import numpy as np
import torch

from hf_interp import Corpus, InterpolatedDataset
from hf_interp.mixture.schedules import linear
from hf_interp.mixture.slots import BatchShard, SlotDataset, SlotSampler
from hf_interp.utils.console import format_table

LENGTH = 64


def corpus(count: int, seed: int, columns: str) -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    rows: dict[str, Any] = {"input_ids": rng.integers(0, 30_000, (count, LENGTH)).tolist()}
    if columns == "all":
        rows["attention_mask"] = np.ones((count, LENGTH), np.int64).tolist()
        rows["labels"] = rng.integers(0, 2, count).tolist()
    return datasets.Dataset.from_dict(rows)


def rate(examples: Iterable[Any], count: int) -> float:
    begin = time.perf_counter()
    taken = sum(1 for _ in itertools.islice(examples, count))
    assert taken == count
    return count / (time.perf_counter() - begin)


def batches(dataset: SlotDataset, batch_size: int) -> Iterable[Any]:
    requests = SlotSampler(dataset.plan, BatchShard(batch_size))
    return itertools.chain.from_iterable(dataset.__getitems__(request) for request in requests)


def host_batches(dataset: datasets.Dataset, batch_size: int) -> Iterable[Any]:
    return itertools.chain.from_iterable(
        dataset.__getitems__(list(range(first, first + batch_size)))
        for first in range(0, len(dataset) - batch_size + 1, batch_size)
    )


def contestants(
    parts: dict[str, datasets.Dataset], batch_size: int, count: int
) -> dict[str, Callable[[], Iterable[Any]]]:
    both = {"probabilities": [0.5, 0.5], "seed": 0, "stopping_strategy": "all_exhausted"}
    steps = count // batch_size + 1
    ours = InterpolatedDataset(parts, batch_size=batch_size, max_steps=steps, alpha_schedule=linear())
    map_style = datasets.interleave_datasets(list(parts.values()), **both)
    streams = [part.to_iterable_dataset() for part in parts.values()]
    iterable = datasets.interleave_datasets(streams, **both)
    in_loader = SlotDataset(ours.plan, [Corpus(name, part, name) for name, part in parts.items()])
    return {
        "hf_interp InterpolatedDataset": lambda: iter(ours),
        f"hf_interp, the trainer's, batches of {batch_size}": lambda: batches(in_loader, batch_size),
        "interleave_datasets, iterable": lambda: iter(iterable),
        "interleave_datasets, map-style": lambda: iter(map_style),
        f"interleave_datasets, map-style, batches of {batch_size}": lambda: host_batches(map_style, batch_size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000, help="per corpus")
    parser.add_argument("--count", type=int, default=8_192, help="examples read in a round")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for columns in ("all", "input_ids"):
        for form in (None, "torch"):
            parts = {
                side: corpus(args.examples, seed, columns).with_format(form)
                for seed, side in enumerate(("general", "domain"))
            }
            report(parts, args, f"columns: {columns}, format: {form or 'python'}")


def report(parts: dict[str, datasets.Dataset], args: argparse.Namespace, title: str) -> None:
    entries = contestants(parts, args.batch_size, args.count)
    rates: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(args.rounds):
        for name, make in entries.items():
            rates[name].append(rate(make(), args.count))
    ours = statistics.median(rates["hf_interp InterpolatedDataset"])
    rows = [
        [name, f"{statistics.median(found):,.0f}", f"{ours / statistics.median(found):.1f}×"]
        for name, found in rates.items()
    ]
    print(f"\n{title}\n")
    print(format_table(["dataset", "examples/s", "InterpolatedDataset is faster by"], rows), flush=True)


if __name__ == "__main__":
    main()
