"""torchdata: `MultiNodeWeightedSampler` over the indices, `Batcher`, `ParallelMapper`, `Loader`; constant 0.5."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from shared import (
    BATCH_SIZE,
    LOCAL_BATCH,
    RANK,
    RANKS,
    VIRTUAL,
    Answer,
    Task,
    VirtualCorpus,
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
from torch.utils.data import DistributedSampler
from torchdata import nodes

Tagged = tuple[str, int]


def write(task: Task) -> Answer:
    write_arrow(task["folder"])
    return {}


class Tag:
    """Puts the corpus' name before an index."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, index: int) -> Tagged:
        return self.name, index


class Fetch:
    """Reads a batch of tagged indices, in one call a corpus where it can."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def __call__(self, wanted: Sequence[Tagged]) -> list[Any]:
        rows: list[Any] = [None] * len(wanted)
        for name, part in self.parts.items():
            places = [place for place, (tag, _) in enumerate(wanted) if tag == name]
            indices = [wanted[place][1] for place in places]
            if not indices:
                continue
            found = part.__getitems__(indices) if hasattr(part, "__getitems__") else [part[index] for index in indices]
            for place, row in zip(places, found, strict=True):
                rows[place] = row
        return rows


def pipeline(
    parts: dict[str, Any],
    workers: int = 0,
    *,
    ranks: int = 1,
    rank: int = 0,
    batch_size: int = BATCH_SIZE,
    fetch: Any = None,
) -> nodes.Loader[Any]:
    """The mixture. Samplers and mixing handle indices only, so that rows are read a batch at a time."""
    sources = {
        name: nodes.Mapper(
            nodes.SamplerWrapper(DistributedSampler(part, num_replicas=ranks, rank=rank, shuffle=True)), Tag(name)
        )
        for name, part in parts.items()
    }
    mixed = nodes.MultiNodeWeightedSampler(
        sources, dict.fromkeys(parts, 0.5), nodes.StopCriteria.CYCLE_FOREVER, rank=rank, world_size=ranks
    )
    batches = nodes.Batcher(mixed, batch_size)
    read = nodes.ParallelMapper(batches, fetch or Fetch(parts), num_workers=workers, method="process")
    return nodes.Loader(read)


def measure_rate(task: Task) -> Answer:
    return rate(pipeline(read_arrow(task["folder"]), task["workers"]), task["examples"])


def indices_only(wanted: Sequence[Tagged]) -> Sequence[Tagged]:
    return wanted


def state(task: Task) -> Answer:
    parts = open_parts(task)
    # The state holds positions, not rows: running through the indices alone gives the same one
    loader = pipeline(parts, fetch=indices_only)
    batches = iter(loader)
    for _ in itertools.islice(batches, task["consumed"] // BATCH_SIZE):
        pass
    save_state(task, loader.state_dict())
    return {"how": "run through, indices only", "digest": digest(Fetch(parts)(next(batches)))}


def resume(task: Task) -> Answer:
    parts, saved = open_parts(task), load_state(task)

    def go_on(loader: nodes.Loader[Any]) -> Iterator[Any]:
        loader.load_state_dict(saved)
        return iter(loader)

    return resumed(lambda: pipeline(parts), go_on)


def start(task: Task) -> Answer:
    parts = {"general": VirtualCorpus(0), "domain": VirtualCorpus(VIRTUAL)}

    def first() -> None:
        next(iter(pipeline(parts, ranks=RANKS, rank=RANK, batch_size=LOCAL_BATCH)))

    return started(first, "the rank's first batch; a DistributedSampler a corpus")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name = "nodes, MultiNodeWeightedSampler"
    run(
        "torchdata",
        {"rate": [name], "resume": [name], "long": [name], "start": [name]},
        "ParallelMapper processes",
        {"write": write, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
