"""grain: `MapDataset.mix` of shuffled, repeated sources, constant 0.5."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import grain
from absl import flags
from shared import (
    BATCH_SIZE,
    LOCAL_BATCH,
    RANK,
    RANKS,
    RUN_THROUGH,
    VIRTUAL,
    Answer,
    Task,
    VirtualCorpus,
    as_list,
    digest,
    load_state,
    open_parts,
    rate,
    read_arrow,
    resumed,
    run,
    save_state,
    started,
    write_arrow,
)


def write(task: Task) -> Answer:
    write_arrow(task["folder"])
    return {}


def mixture(parts: dict[str, Any]) -> grain.MapDataset[Any]:
    shuffled = [grain.MapDataset.source(part).shuffle(seed=seed).repeat() for seed, part in enumerate(parts.values())]
    return grain.MapDataset.mix(shuffled, weights=[0.5, 0.5])


def pipeline(parts: dict[str, Any], workers: int = 0) -> grain.IterDataset[Any]:
    batches = mixture(parts).batch(BATCH_SIZE, batch_fn=as_list)
    # Threads gain nothing on one core: without them grain is faster here
    found = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return found.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else found


def measure_rate(task: Task) -> Answer:
    form = "numpy" if "numpy" in task["variant"] else None
    return rate(pipeline(read_arrow(task["folder"], form), task["workers"]), task["examples"])


def state(task: Task) -> Answer:
    iterator = iter(pipeline(open_parts(task)))
    batches = task["consumed"] // BATCH_SIZE
    if task["consumed"] > RUN_THROUGH:
        found = iterator.get_state()
        assert "next_index" in found
        save_state(task, {**found, "next_index": batches})
        return {"how": "position set in the state by hand"}
    for _ in itertools.islice(iterator, batches):
        pass
    save_state(task, iterator.get_state())
    return {"how": "run through", "digest": digest(next(iterator))}


def resume(task: Task) -> Answer:
    parts, saved = open_parts(task), load_state(task)

    def go_on(dataset: grain.IterDataset[Any]) -> Iterator[Any]:
        iterator = iter(dataset)
        iterator.set_state(saved)
        return iterator

    return resumed(lambda: pipeline(parts), go_on)


def start(task: Task) -> Answer:
    parts = {"general": VirtualCorpus(0), "domain": VirtualCorpus(VIRTUAL)}

    def first() -> None:
        mixed = mixture(parts)[RANK::RANKS].batch(LOCAL_BATCH, batch_fn=as_list)
        next(iter(mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))))

    return started(first, "the rank's first batch")


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    run(
        "grain",
        {
            "rate": ["MapDataset.mix", "MapDataset.mix, numpy rows"],
            "resume": ["MapDataset.mix"],
            "long": ["MapDataset.mix"],
            "start": ["MapDataset.mix"],
        },
        "mp_prefetch processes",
        {"write": write, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
