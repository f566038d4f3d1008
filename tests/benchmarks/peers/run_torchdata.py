"""torchdata: `MultiNodeWeightedSampler` over the indices, `Batcher`, `ParallelMapper`, `Loader`; constant 0.5."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import shared
import torch
from torch.utils.data import DistributedSampler
from torchdata import nodes

Tagged = tuple[str, int]


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
    batch_size: int = shared.BATCH_SIZE,
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


def measure_rate(task: shared.Task) -> shared.Answer:
    return shared.rate(pipeline(shared.read_arrow(task["folder"]), task["workers"]), task["examples"])


def indices_only(wanted: Sequence[Tagged]) -> Sequence[Tagged]:
    return wanted


def state(task: shared.Task) -> shared.Answer:
    parts = shared.open_parts(task)
    # The state holds positions, not rows: running through the indices alone gives the same one
    loader = pipeline(parts, fetch=indices_only)
    batches = iter(loader)
    for _ in itertools.islice(batches, task["consumed"] // shared.BATCH_SIZE):
        pass
    shared.save_state(task, loader.state_dict())
    return {"how": "run through, indices only", "digest": shared.digest(Fetch(parts)(next(batches)))}


def resume(task: shared.Task) -> shared.Answer:
    parts, saved = shared.open_parts(task), shared.load_state(task)

    def go_on(loader: nodes.Loader[Any]) -> Iterator[Any]:
        loader.load_state_dict(saved)
        return iter(loader)

    return shared.resumed(lambda: pipeline(parts), go_on)


def start(task: shared.Task) -> shared.Answer:
    parts = {"general": shared.VirtualCorpus(0), "domain": shared.VirtualCorpus(shared.VIRTUAL)}

    def first() -> None:
        next(iter(pipeline(parts, ranks=shared.RANKS, rank=shared.RANK, batch_size=shared.LOCAL_BATCH)))

    return shared.started(first, "the rank's first batch; a DistributedSampler a corpus")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name = "nodes, MultiNodeWeightedSampler"
    shared.run(
        "torchdata",
        {"rate": [name], "resume": [name], "long": [name], "start": [name]},
        "ParallelMapper processes",
        {"write": shared.write_arrow, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
