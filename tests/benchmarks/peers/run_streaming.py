"""mosaicml-streaming: two `Stream`s with `proportion` 0.5 in a `StreamingDataset`."""

import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

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

COLUMNS = {
    "input_ids": f"ndarray:int64:{shared.LENGTH}",
    "attention_mask": f"ndarray:int64:{shared.LENGTH}",
    "labels": "int",
}


def write(task: shared.Task) -> None:
    for side in shared.SIDES:
        target, table = task["folder"] / "mds" / side, shared.columns(side)
        shutil.rmtree(target, ignore_errors=True)
        with streaming.MDSWriter(out=str(target), columns=COLUMNS, size_limit=2**21) as writer:
            for index in range(shared.ROWS):
                writer.write(shared.row_of(table, index))


def mixture(folder: Path, task: shared.Task) -> streaming.StreamingDataset:
    streaming.base.util.clean_stale_shared_memory()
    parts = [streaming.Stream(local=str(folder / "mds" / side), proportion=0.5) for side in shared.SIDES]
    return streaming.StreamingDataset(streams=parts, shuffle=True, shuffle_seed=0, batch_size=shared.BATCH_SIZE)


def loader(dataset: streaming.StreamingDataset, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list)


def state(folder: Path, task: shared.Task) -> tuple[Any, Iterator[Any]]:
    dataset = mixture(folder, task)
    epochs, rest = divmod(task["consumed"], dataset.epoch_size)
    for _ in range(epochs):
        for _ in dataset:
            pass
    batches = shared.skip(iter(loader(dataset)), rest // shared.BATCH_SIZE)
    return dataset.state_dict(rest, from_beginning=True), batches


def go_on(dataset: streaming.StreamingDataset, saved: Any) -> Iterator[Any]:
    dataset.load_state_dict(saved)
    return iter(loader(dataset))


if __name__ == "__main__":
    torch.set_num_threads(1)
    shared.run(
        "mosaicml-streaming",
        ["StreamingDataset, two Streams"],
        write,
        itemgetter("folder"),
        lambda folder, task: loader(mixture(folder, task), task["workers"]),
        mixture,
        state,
        go_on,
    )
