"""datasets: `interleave_datasets`, map-style and iterable, in a `DataLoader`, constant 0.5."""

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa
import shared
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, DistributedSampler

MAP = "interleave_datasets, map-style"
STREAM = "interleave_datasets, iterable, in order"
BUFFER = "interleave_datasets, iterable, buffer 1,000"
MIX: dict[str, Any] = {"probabilities": [0.5, 0.5], "seed": 0, "stopping_strategy": "all_exhausted"}


def mixture(variant: str, parts: dict[str, Any]) -> Any:
    if variant == MAP:
        return datasets.interleave_datasets(list(parts.values()), **MIX)
    streams = [part.to_iterable_dataset(num_shards=2) for part in parts.values()]  # a shard for each of two workers
    found = datasets.interleave_datasets(streams, **MIX)
    return found.shuffle(seed=0, buffer_size=1_000) if variant == BUFFER else found


def loader(dataset: Any, workers: int = 0, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list, shuffle=shuffle
    )


def measure_rate(task: shared.Task) -> shared.Answer:
    variant = task["variant"]
    parts = shared.read_arrow(task["folder"])
    return shared.rate(loader(mixture(variant, parts), task["workers"], shuffle=variant == MAP), task["examples"])


def epoch_of(dataset: Any, position: int) -> Any:
    """What is left of the epoch in which example `position` of the run lies. Map-style datasets hold no state."""
    epoch, done = divmod(position, len(dataset))
    return dataset.shuffle(seed=epoch).select(range(done, len(dataset)))


def state(task: shared.Task) -> shared.Answer:
    parts, consumed = shared.read_arrow(task["folder"]), task["consumed"]
    if task["variant"] == MAP:
        shared.save_state(task, consumed)
        return {"how": "no state: shuffle(seed=epoch), select the rest"}
    dataset = mixture(task["variant"], parts)
    one_pass = sum(1 for _ in dataset.select_columns("labels"))
    dataset = dataset.repeat(None)
    passes, rest = divmod(consumed, one_pass)
    skip = consumed if consumed <= shared.RUN_THROUGH else rest
    examples = iter(dataset)
    for _ in itertools.islice(examples, skip):
        pass
    saved = dataset.state_dict()
    if skip == consumed:
        shared.save_state(task, saved)
        return {"how": "run through", "digest": shared.digest(itertools.islice(examples, shared.BATCH_SIZE))}
    counts = find_key(saved, "repeat_index")
    counts["repeat_index"] = passes
    shared.save_state(task, saved)
    return {"how": "run through the last pass, number of passes set in the state by hand"}


def find_key(tree: Any, key: str) -> dict[str, Any]:
    """The first dict in a nested state that has `key`."""
    if isinstance(tree, dict):
        if key in tree:
            return tree
        for value in tree.values():
            try:
                return find_key(value, key)
            except KeyError:
                pass
    raise KeyError(key)


def resume(task: shared.Task) -> shared.Answer:
    parts, saved, variant = shared.read_arrow(task["folder"]), shared.load_state(task), task["variant"]

    def build() -> Any:
        return mixture(variant, parts) if variant == MAP else mixture(variant, parts).repeat(None)

    def go_on(dataset: Any) -> Iterator[Any]:
        if variant == MAP:
            return iter(loader(epoch_of(dataset, saved)))
        dataset.load_state_dict(saved)
        return iter(loader(dataset))

    return shared.resumed(build, go_on)


def virtual_rows(shards: list[int], first: int) -> Iterator[dict[str, Any]]:
    """Shards of 50,000 computed rows."""
    for shard in shards:
        for index in range(shard * (shared.VIRTUAL // shared.RANKS), (shard + 1) * (shared.VIRTUAL // shared.RANKS)):
            yield {"input_ids": [first + index] * shared.LENGTH, "labels": 0}


def start(task: shared.Task) -> shared.Answer:
    if "iterable" in task["variant"]:

        def iterable() -> None:
            streams = [
                datasets.IterableDataset.from_generator(
                    virtual_rows, gen_kwargs={"shards": list(range(shared.RANKS)), "first": number * shared.VIRTUAL}
                )
                for number in range(len(shared.SIDES))
            ]
            next(iter(split_dataset_by_node(datasets.interleave_datasets(streams, **MIX), shared.RANK, shared.RANKS)))

        return shared.started(iterable, "the rank's first example; 1,000 shards a corpus, in order")
    # Map-style datasets must be tables: rows of one byte each, made before the clock starts
    empty = pa.py_buffer(bytes(shared.VIRTUAL))
    column = pa.Array.from_buffers(pa.uint8(), shared.VIRTUAL, [None, empty])
    tables = [datasets.Dataset(pa.table({"labels": column})) for _ in shared.SIDES]

    def shuffled() -> None:
        mixed = datasets.interleave_datasets(tables, **MIX)
        sampler = DistributedSampler(mixed, num_replicas=shared.RANKS, rank=shared.RANK, shuffle=True)
        next(iter(DataLoader(mixed, batch_size=8, sampler=sampler, collate_fn=shared.as_list)))

    return shared.started(shuffled, "the rank's first batch; tables of one byte a row, DistributedSampler")


if __name__ == "__main__":
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    shared.run(
        "datasets",
        {
            "rate": [MAP, STREAM, BUFFER],
            "resume": [MAP, STREAM, BUFFER],
            "start": [MAP, STREAM],
        },
        "DataLoader workers",
        {"write": shared.write_arrow, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
