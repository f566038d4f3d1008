"""litdata: `CombinedStreamingDataset` with weights in its `StreamingDataLoader`, constant 0.5."""

import shutil
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import litdata
import shared
import torch

CHUNK_ROWS = 2_000  # 2 MB: ten chunks a corpus, so that two workers can share them


def write(task: shared.Task) -> None:
    for side in shared.SIDES:
        target = task["folder"] / "litdata" / side
        shutil.rmtree(target, ignore_errors=True)
        rows = partial(shared.row_of, shared.columns(side))  # `optimize` hands it to another process
        indices = list(range(shared.ROWS))
        litdata.optimize(rows, indices, str(target), chunk_size=CHUNK_ROWS, num_workers=1, keep_data_ordered=True)


def pipeline(folder: Path, task: shared.Task) -> litdata.StreamingDataLoader:
    folders = [str(folder / "litdata" / side) for side in shared.SIDES]
    parts = [litdata.StreamingDataset(folder, shuffle=True, seed=0) for folder in folders]
    mixed = litdata.CombinedStreamingDataset(parts, seed=0, weights=[0.5, 0.5], iterate_over_all=False)
    return litdata.StreamingDataLoader(
        mixed, batch_size=shared.BATCH_SIZE, num_workers=task.get("workers", 0), collate_fn=shared.as_list
    )


def state(folder: Path, task: shared.Task) -> tuple[Any, Iterator[Any]]:
    loader = pipeline(folder, task)
    batches = endless(loader)
    shared.skip(batches, task["consumed"] // shared.BATCH_SIZE)
    return loader.state_dict(), batches


def endless(loader: litdata.StreamingDataLoader) -> Iterator[list[Any]]:
    """Full batches, epoch after epoch; an epoch ends when one corpus does."""
    while True:
        for batch in loader:
            if len(batch) == shared.BATCH_SIZE:
                yield batch


def go_on(loader: litdata.StreamingDataLoader, saved: Any) -> Iterator[Any]:
    loader.load_state_dict(saved)
    return iter(loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    shared.run("litdata", ["CombinedStreamingDataset"], write, itemgetter("folder"), pipeline, pipeline, state, go_on)
