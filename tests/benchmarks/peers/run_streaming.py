"""mosaicml-streaming: two `Stream`s with `proportion` 0.5 in a `StreamingDataset`."""

import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import shared
import torch
from torch.utils.data import DataLoader

# streaming imports torchvision for its picture datasets, which are not read here. torchvision's usual build fails
# beside a CPU build of torch, so empty modules stand in for it.
for module_name in ("torchvision", *(f"torchvision.{part}" for part in ("datasets", "transforms.functional"))):
    stand_in: Any = ModuleType(module_name)
    stand_in.__spec__ = ModuleSpec(module_name, None)
    stand_in.__path__ = []
    stand_in.VisionDataset, stand_in.to_tensor = object, None
    sys.modules[module_name] = stand_in

import streaming  # noqa: E402
from streaming.base.partition import get_partitions  # noqa: E402
from streaming.base.shuffle import get_shuffle  # noqa: E402

COLUMNS = {
    "input_ids": f"ndarray:int64:{shared.LENGTH}",
    "attention_mask": f"ndarray:int64:{shared.LENGTH}",
    "labels": "int",
}
SHARD_ROWS = 65_000  # rows of this size in the usual shard of 64 MiB


def write(task: shared.Task) -> shared.Answer:
    for side in shared.SIDES:
        target = task["folder"] / "mds" / side
        shutil.rmtree(target, ignore_errors=True)
        with streaming.MDSWriter(out=str(target), columns=COLUMNS, size_limit=2**21) as writer:
            for row in shared.rows(side):
                writer.write(row)
    return {}


def mixture(folder: Path) -> streaming.StreamingDataset:
    streaming.base.util.clean_stale_shared_memory()
    parts = [streaming.Stream(local=str(folder / "mds" / side), proportion=0.5) for side in shared.SIDES]
    return streaming.StreamingDataset(streams=parts, shuffle=True, shuffle_seed=0, batch_size=shared.BATCH_SIZE)


def loader(dataset: streaming.StreamingDataset, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list)


def measure_rate(task: shared.Task) -> shared.Answer:
    return shared.rate(loader(mixture(task["folder"]), task["workers"]), task["examples"])


def state(task: shared.Task) -> shared.Answer:
    dataset, consumed = mixture(task["folder"]), task["consumed"]
    epochs, rest = divmod(consumed, dataset.epoch_size)
    found = dataset.state_dict(0, from_beginning=True)
    if consumed > shared.RUN_THROUGH:
        shared.save_state(task, {**found, "epoch": epochs, "sample_in_epoch": rest})
        return {"how": "epoch and position set in the state by hand"}
    for _ in range(epochs):
        for _ in dataset:
            pass
    batches = iter(loader(dataset))
    for _ in range(rest // shared.BATCH_SIZE):
        next(batches)
    shared.save_state(task, dataset.state_dict(rest, from_beginning=True))
    return {"how": "run through", "digest": shared.digest(next(batches))}


def resume(task: shared.Task) -> shared.Answer:
    saved = shared.load_state(task)

    def go_on(dataset: streaming.StreamingDataset) -> Iterator[Any]:
        dataset.load_state_dict(saved)
        return iter(loader(dataset))

    return shared.resumed(lambda: mixture(task["folder"]), go_on)


def start(task: shared.Task) -> shared.Answer:
    nodes = shared.RANKS // 8
    shards = np.diff(np.append(np.arange(0, shared.VIRTUAL, SHARD_ROWS), shared.VIRTUAL))

    def epoch() -> None:
        places = get_partitions("relaxed", 2 * shared.VIRTUAL, nodes, nodes, 8, 1, shared.LOCAL_BATCH)
        order = get_shuffle("py1e", np.concatenate([shards, shards]), nodes, 0, 0, 1 << 18)
        np.where(places != -1, order[places], -1)

    return shared.started(epoch, "needs files; only: the epoch's indices (get_partitions, get_shuffle), once a node")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name = "StreamingDataset, two Streams"
    shared.run(
        "mosaicml-streaming",
        {"rate": [name], "resume": [name], "start": [name]},
        "DataLoader workers",
        {"write": write, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
