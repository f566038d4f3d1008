"""hf_interp: `InterpolatedDataset` in a `DataLoader`, α rising from 0 to 1."""

import itertools
from collections.abc import Iterator
from typing import Any

import shared
import torch
from torch.utils.data import DataLoader

from hf_interp import InterpolatedDataset
from hf_interp.mixture.schedules import linear

LONG_RUN = 400_000  # steps: a run of 12.8 million examples, to resume in


def loader(dataset: InterpolatedDataset, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list)


def mixture(parts: dict[str, Any], task: shared.Task, steps: int = LONG_RUN) -> InterpolatedDataset:
    return InterpolatedDataset(parts, batch_size=shared.BATCH_SIZE, max_steps=steps, alpha_schedule=linear())


def state(parts: dict[str, Any], task: shared.Task) -> tuple[Any, Iterator[Any]]:
    dataset = mixture(parts, task)
    examples = shared.skip(iter(dataset), task["consumed"])
    return dataset.state_dict(), iter([list(itertools.islice(examples, shared.BATCH_SIZE))])


def go_on(dataset: InterpolatedDataset, saved: Any) -> Iterator[Any]:
    dataset.load_state_dict(saved)
    return iter(loader(dataset))


if __name__ == "__main__":
    torch.set_num_threads(1)
    shared.run(
        "hf_interp",
        ["InterpolatedDataset", "InterpolatedDataset, numpy rows"],
        shared.write_arrow,
        shared.read_arrow,
        lambda parts, task: loader(mixture(parts, task, task["examples"] // shared.BATCH_SIZE + 1), task["workers"]),
        mixture,
        state,
        go_on,
    )
