"""litdata: `CombinedStreamingDataset` with weights in its `StreamingDataLoader`, constant 0.5."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata
import shared
import torch
from litdata.streaming.item_loader import Interval
from litdata.utilities.env import _DistributedEnv
from litdata.utilities.shuffle import _associate_chunks_and_intervals_to_workers

CHUNK_ROWS = 2_000  # 2 MB: ten chunks a corpus, so that two workers can share them
CHUNK_ROWS_LARGE = 2**26 // 1_036  # the usual 64 MiB, for rows of this size


class Row:
    """Picks a row of a corpus; `optimize` hands it to another process."""

    def __init__(self, side: str) -> None:
        self.table = shared.columns(side)

    def __call__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self.table["input_ids"][index],
            "attention_mask": self.table["attention_mask"][index],
            "labels": int(self.table["labels"][index]),
        }


def write(task: shared.Task) -> shared.Answer:
    for side in shared.SIDES:
        target = task["folder"] / "litdata" / side
        shutil.rmtree(target, ignore_errors=True)
        count = len(shared.columns(side)["labels"])
        litdata.optimize(
            Row(side), list(range(count)), str(target), chunk_size=CHUNK_ROWS, num_workers=1, keep_data_ordered=True
        )
    return {}


def pipeline(folder: Path, workers: int = 0) -> litdata.StreamingDataLoader:
    parts = [litdata.StreamingDataset(str(folder / "litdata" / side), shuffle=True, seed=0) for side in shared.SIDES]
    mixed = litdata.CombinedStreamingDataset(parts, seed=0, weights=[0.5, 0.5], iterate_over_all=False)
    return litdata.StreamingDataLoader(
        mixed, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list
    )


def measure_rate(task: shared.Task) -> shared.Answer:
    return shared.rate(pipeline(task["folder"], task["workers"]), task["examples"])


def endless(loader: litdata.StreamingDataLoader) -> Iterator[list[Any]]:
    """Full batches, epoch after epoch; an epoch ends when one corpus does."""
    while True:
        for batch in loader:
            if len(batch) == shared.BATCH_SIZE:
                yield batch


def state(task: shared.Task) -> shared.Answer:
    loader = pipeline(task["folder"])
    batches, taken, one_epoch = endless(loader), 0, 0
    while taken < min(task["consumed"], shared.RUN_THROUGH):
        batch = next(batches)
        if loader.current_epoch == 2 and not one_epoch:
            one_epoch = taken
        taken += len(batch)
    saved = loader.state_dict()
    if task["consumed"] == taken:
        shared.save_state(task, saved)
        return {"how": "run through", "digest": shared.digest(next(batches))}
    more = round((task["consumed"] - taken) / one_epoch)
    saved["current_epoch"] += more
    for child in saved["dataset"].values():
        child["current_epoch"] += more
    shared.save_state(task, saved)
    return {"how": f"run through to {taken:,}, then {more} epochs added in the state by hand"}


def resume(task: shared.Task) -> shared.Answer:
    saved = shared.load_state(task)

    def go_on(loader: litdata.StreamingDataLoader) -> Iterator[Any]:
        loader.load_state_dict(saved)
        return iter(loader)

    return shared.resumed(lambda: pipeline(task["folder"]), go_on)


def start(task: shared.Task) -> shared.Answer:
    world = _DistributedEnv(world_size=shared.RANKS, global_rank=shared.RANKS - 1, num_nodes=shared.RANKS // 8)

    def assign() -> None:
        for _ in shared.SIDES:
            chunks = [
                Interval(
                    first,
                    first,
                    min(first + CHUNK_ROWS_LARGE, shared.VIRTUAL),
                    min(first + CHUNK_ROWS_LARGE, shared.VIRTUAL),
                )
                for first in range(0, shared.VIRTUAL, CHUNK_ROWS_LARGE)
            ]
            _associate_chunks_and_intervals_to_workers(world, range(len(chunks)), chunks, True, 1, shared.LOCAL_BATCH)

    return shared.started(assign, "needs files; only: assigning chunks of 64 MiB to ranks, no row read")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name = "CombinedStreamingDataset"
    shared.run(
        "litdata",
        {"rate": [name], "resume": [name], "start": [name]},
        "StreamingDataLoader workers",
        {"write": write, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
