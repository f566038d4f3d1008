"""datasets: `interleave_datasets`, map-style and iterable, in a `DataLoader`, constant 0.5."""

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import shared
import torch
from torch.utils.data import DataLoader

MAP = "interleave_datasets, map-style"
STREAM = "interleave_datasets, iterable, in order"
BUFFER = "interleave_datasets, iterable, buffer 1,000"
MIX: dict[str, Any] = {"probabilities": [0.5, 0.5], "seed": 0, "stopping_strategy": "all_exhausted"}


def mixture(parts: dict[str, Any], task: shared.Task) -> Any:
    if task["variant"] == MAP:
        return datasets.interleave_datasets(list(parts.values()), **MIX)
    streams = [part.to_iterable_dataset(num_shards=2) for part in parts.values()]  # a shard for each of two workers
    found = datasets.interleave_datasets(streams, **MIX)
    return found.shuffle(seed=0, buffer_size=1_000) if task["variant"] == BUFFER else found


def build(parts: dict[str, Any], task: shared.Task) -> Any:
    found = mixture(parts, task)
    return found if task["variant"] == MAP else found.repeat(None)


def loader(dataset: Any, workers: int = 0, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list, shuffle=shuffle
    )


def state(parts: dict[str, Any], task: shared.Task) -> tuple[Any, Iterator[Any] | None]:
    if task["variant"] == MAP:  # holds no state
        return task["consumed"], None
    dataset = build(parts, task)
    examples = shared.skip(iter(dataset), task["consumed"])
    return dataset.state_dict(), iter([list(itertools.islice(examples, shared.BATCH_SIZE))])


def go_on(dataset: Any, saved: Any) -> Iterator[Any]:
    if isinstance(saved, int):  # what is left of the epoch in which the example lies
        epoch, done = divmod(saved, len(dataset))
        dataset = dataset.shuffle(seed=epoch).select(range(done, len(dataset)))
    else:
        dataset.load_state_dict(saved)
    return iter(loader(dataset))


if __name__ == "__main__":
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    shared.run(
        "datasets",
        [MAP, STREAM, BUFFER],
        shared.write_arrow,
        shared.read_arrow,
        lambda parts, task: loader(mixture(parts, task), task["workers"], shuffle=task["variant"] == MAP),
        build,
        state,
        go_on,
    )
