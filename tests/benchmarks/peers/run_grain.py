"""grain: `MapDataset.mix` of shuffled, repeated sources, constant 0.5."""

import sys
from collections.abc import Iterator
from typing import Any

import grain
import shared
from absl import flags


def pipeline(parts: dict[str, Any], task: shared.Task) -> grain.IterDataset[Any]:
    workers = task.get("workers", 0)
    shuffled = [grain.MapDataset.source(part).shuffle(seed=seed).repeat() for seed, part in enumerate(parts.values())]
    mixed = grain.MapDataset.mix(shuffled, weights=[0.5, 0.5])
    batches = mixed.batch(shared.BATCH_SIZE, batch_fn=shared.as_list)
    # Threads gain nothing on one core: without them grain is faster here
    found = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return found.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else found


def state(parts: dict[str, Any], task: shared.Task) -> tuple[Any, Iterator[Any]]:
    iterator = iter(pipeline(parts, task))
    shared.skip(iterator, task["consumed"] // shared.BATCH_SIZE)
    return iterator.get_state(), iterator


def go_on(dataset: grain.IterDataset[Any], saved: Any) -> Iterator[Any]:
    iterator = iter(dataset)
    iterator.set_state(saved)
    return iterator


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    variants = ["MapDataset.mix", "MapDataset.mix, numpy rows"]
    shared.run("grain", variants, shared.write_arrow, shared.read_arrow, pipeline, pipeline, state, go_on)
