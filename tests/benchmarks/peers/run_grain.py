"""grain: `MapDataset.mix` of shuffled, repeated sources, constant 0.5."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import grain
import shared
from absl import flags


def mixture(parts: dict[str, Any]) -> grain.MapDataset[Any]:
    shuffled = [grain.MapDataset.source(part).shuffle(seed=seed).repeat() for seed, part in enumerate(parts.values())]
    return grain.MapDataset.mix(shuffled, weights=[0.5, 0.5])


def pipeline(parts: dict[str, Any], workers: int = 0) -> grain.IterDataset[Any]:
    batches = mixture(parts).batch(shared.BATCH_SIZE, batch_fn=shared.as_list)
    # Threads gain nothing on one core: without them grain is faster here
    found = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return found.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else found


def measure_rate(task: shared.Task) -> shared.Answer:
    form = "numpy" if "numpy" in task["variant"] else None
    return shared.rate(pipeline(shared.read_arrow(task["folder"], form), task["workers"]), task["examples"])


def state(task: shared.Task) -> shared.Answer:
    iterator = iter(pipeline(shared.open_parts(task)))
    batches = task["consumed"] // shared.BATCH_SIZE
    if task["consumed"] > shared.RUN_THROUGH:
        found = iterator.get_state()
        assert "next_index" in found
        shared.save_state(task, {**found, "next_index": batches})
        return {"how": "position set in the state by hand"}
    for _ in itertools.islice(iterator, batches):
        pass
    shared.save_state(task, iterator.get_state())
    return {"how": "run through", "digest": shared.digest(next(iterator))}


def resume(task: shared.Task) -> shared.Answer:
    parts, saved = shared.open_parts(task), shared.load_state(task)

    def go_on(dataset: grain.IterDataset[Any]) -> Iterator[Any]:
        iterator = iter(dataset)
        iterator.set_state(saved)
        return iterator

    return shared.resumed(lambda: pipeline(parts), go_on)


def start(task: shared.Task) -> shared.Answer:
    parts = {"general": shared.VirtualCorpus(0), "domain": shared.VirtualCorpus(shared.VIRTUAL)}

    def first() -> None:
        mixed = mixture(parts)[shared.RANK :: shared.RANKS].batch(shared.LOCAL_BATCH, batch_fn=shared.as_list)
        next(iter(mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))))

    return shared.started(first, "the rank's first batch")


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    shared.run(
        "grain",
        {
            "rate": ["MapDataset.mix", "MapDataset.mix, numpy rows"],
            "resume": ["MapDataset.mix"],
            "long": ["MapDataset.mix"],
            "start": ["MapDataset.mix"],
        },
        "mp_prefetch processes",
        {"write": shared.write_arrow, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
