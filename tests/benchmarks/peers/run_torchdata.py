"""torchdata: `MultiNodeWeightedSampler` over the indices, `Batcher`, `ParallelMapper`, `Loader`; constant 0.5."""

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
    """Reads a batch of tagged indices, in one call a corpus."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def __call__(self, wanted: Sequence[Tagged]) -> list[Any]:
        rows: list[Any] = [None] * len(wanted)
        for name, part in self.parts.items():
            places = [place for place, (tag, _) in enumerate(wanted) if tag == name]
            if places:
                for place, row in zip(places, part.__getitems__([wanted[place][1] for place in places]), strict=True):
                    rows[place] = row
        return rows


def pipeline(parts: dict[str, Any], task: shared.Task) -> nodes.Loader[Any]:
    """The mixture. Samplers and mixing handle indices only, so that rows are read a batch at a time."""
    samplers = {name: DistributedSampler(part, num_replicas=1, rank=0, shuffle=True) for name, part in parts.items()}
    sources = {name: nodes.Mapper(nodes.SamplerWrapper(each), Tag(name)) for name, each in samplers.items()}
    weights = dict.fromkeys(parts, 0.5)
    mixed = nodes.MultiNodeWeightedSampler(sources, weights, nodes.StopCriteria.CYCLE_FOREVER, rank=0, world_size=1)
    batches = nodes.Batcher(mixed, shared.BATCH_SIZE)
    workers = task.get("workers", 0)
    return nodes.Loader(nodes.ParallelMapper(batches, Fetch(parts), num_workers=workers, method="process"))


def state(parts: dict[str, Any], task: shared.Task) -> tuple[Any, Iterator[Any]]:
    loader = pipeline(parts, task)
    batches = shared.skip(iter(loader), task["consumed"] // shared.BATCH_SIZE)
    return loader.state_dict(), batches


def go_on(loader: nodes.Loader[Any], saved: Any) -> Iterator[Any]:
    loader.load_state_dict(saved)
    return iter(loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name = "nodes, MultiNodeWeightedSampler"
    shared.run("torchdata", [name], shared.write_arrow, shared.read_arrow, pipeline, pipeline, state, go_on)
