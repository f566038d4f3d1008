"""hf_interp: `InterpolatedDataset` in a `DataLoader`, α rising from 0 to 1."""

import itertools
from typing import Any

import torch
from shared import (
    BATCH_SIZE,
    LOCAL_BATCH,
    RANK,
    RANKS,
    RUN_THROUGH,
    VIRTUAL,
    Answer,
    Task,
    VirtualCorpus,
    as_list,
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
from torch.utils.data import DataLoader

from hf_interp import InterpolatedDataset, MixturePlan
from hf_interp.mixture.schedules import linear

try:
    from hf_interp import PlannedCorpus
except ImportError:  # versions that do not name it at the top
    from hf_interp.mixture.apportionment import PlannedCorpus

LONG_RUN = 400_000  # steps: a run of 12.8 million examples, to resume in


def write(task: Task) -> Answer:
    write_arrow(task["folder"])
    return {}


def loader(dataset: InterpolatedDataset, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=as_list)


def mixture(parts: dict[str, Any], batch_size: int, steps: int, **kwargs: int) -> InterpolatedDataset:
    return InterpolatedDataset(parts, batch_size=batch_size, max_steps=steps, alpha_schedule=linear(), **kwargs)


def measure_rate(task: Task) -> Answer:
    parts = read_arrow(task["folder"], "numpy" if "numpy" in task["variant"] else None)
    steps = task["examples"] // BATCH_SIZE + 1
    return rate(loader(mixture(parts, BATCH_SIZE, steps), task["workers"]), task["examples"])


def long_run(parts: dict[str, Any]) -> InterpolatedDataset:
    return mixture(parts, BATCH_SIZE, LONG_RUN)


def state(task: Task) -> Answer:
    dataset = long_run(open_parts(task))
    if task["consumed"] > RUN_THROUGH:
        found = dataset.state_dict()
        assert "num_yielded" in found
        save_state(task, {**found, "num_yielded": task["consumed"]})
        return {"how": "position set in the state by hand"}
    examples = iter(dataset)
    for _ in itertools.islice(examples, task["consumed"]):
        pass
    save_state(task, dataset.state_dict())
    return {"how": "run through", "digest": digest(itertools.islice(examples, BATCH_SIZE))}


def resume(task: Task) -> Answer:
    parts, saved = open_parts(task), load_state(task)

    def go_on(dataset: InterpolatedDataset) -> Any:
        dataset.load_state_dict(saved)
        return iter(loader(dataset))

    return resumed(lambda: long_run(parts), go_on)


def start(task: Task) -> Answer:
    size, steps = RANKS * LOCAL_BATCH, 12_500

    def plan() -> None:
        corpora = [
            PlannedCorpus(name="general", side="general", num_examples=VIRTUAL),
            PlannedCorpus(name="domain", side="domain", num_examples=VIRTUAL),
        ]
        found = MixturePlan(corpora, alpha_schedule=linear(), batch_size=size, max_steps=steps)
        found.locate(range(RANK * LOCAL_BATCH, (RANK + 1) * LOCAL_BATCH))

    def dataset() -> None:
        parts = {"general": VirtualCorpus(0), "domain": VirtualCorpus(VIRTUAL)}
        found = mixture(parts, size, steps, num_processes=RANKS, process_index=RANK)
        next(iter(found))

    if task["variant"] == "MixturePlan":
        return started(plan, "the plan and the indices of the rank's first batch")
    return started(dataset, "the rank's first example")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(
        "hf_interp",
        {
            "rate": ["InterpolatedDataset", "InterpolatedDataset, numpy rows"],
            "resume": ["InterpolatedDataset"],
            "long": ["InterpolatedDataset"],
            "start": ["MixturePlan", "InterpolatedDataset"],
        },
        "DataLoader workers",
        {"write": write, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
