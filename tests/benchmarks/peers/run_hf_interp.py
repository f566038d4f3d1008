"""hf_interp: `InterpolatedDataset` in a `DataLoader`, α rising from 0 to 1."""

import itertools
from typing import Any

import shared
import torch
from torch.utils.data import DataLoader

from hf_interp import InterpolatedDataset, MixturePlan
from hf_interp.mixture.schedules import linear

try:
    from hf_interp import CorpusSpec
except ImportError:  # versions that do not name it at the top
    from hf_interp.mixture.apportionment import CorpusSpec

LONG_RUN = 400_000  # steps: a run of 12.8 million examples, to resume in


def loader(dataset: InterpolatedDataset, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=shared.BATCH_SIZE, num_workers=workers, collate_fn=shared.as_list)


def mixture(parts: dict[str, Any], batch_size: int, steps: int, **kwargs: int) -> InterpolatedDataset:
    return InterpolatedDataset(parts, batch_size=batch_size, max_steps=steps, alpha_schedule=linear(), **kwargs)


def measure_rate(task: shared.Task) -> shared.Answer:
    parts = shared.read_arrow(task["folder"], "numpy" if "numpy" in task["variant"] else None)
    steps = task["examples"] // shared.BATCH_SIZE + 1
    return shared.rate(loader(mixture(parts, shared.BATCH_SIZE, steps), task["workers"]), task["examples"])


def long_run(parts: dict[str, Any]) -> InterpolatedDataset:
    return mixture(parts, shared.BATCH_SIZE, LONG_RUN)


def state(task: shared.Task) -> shared.Answer:
    dataset = long_run(shared.open_parts(task))
    if task["consumed"] > shared.RUN_THROUGH:
        found = dataset.state_dict()
        assert "num_yielded" in found
        shared.save_state(task, {**found, "num_yielded": task["consumed"]})
        return {"how": "position set in the state by hand"}
    examples = iter(dataset)
    for _ in itertools.islice(examples, task["consumed"]):
        pass
    shared.save_state(task, dataset.state_dict())
    return {"how": "run through", "digest": shared.digest(itertools.islice(examples, shared.BATCH_SIZE))}


def resume(task: shared.Task) -> shared.Answer:
    parts, saved = shared.open_parts(task), shared.load_state(task)

    def go_on(dataset: InterpolatedDataset) -> Any:
        dataset.load_state_dict(saved)
        return iter(loader(dataset))

    return shared.resumed(lambda: long_run(parts), go_on)


def start(task: shared.Task) -> shared.Answer:
    size, steps = shared.RANKS * shared.LOCAL_BATCH, 12_500

    def plan() -> None:
        corpora = [
            CorpusSpec(name="general", side="general", num_examples=shared.VIRTUAL),
            CorpusSpec(name="domain", side="domain", num_examples=shared.VIRTUAL),
        ]
        found = MixturePlan(corpora, alpha_schedule=linear(), batch_size=size, max_steps=steps)
        found.locate(range(shared.RANK * shared.LOCAL_BATCH, (shared.RANK + 1) * shared.LOCAL_BATCH))

    def dataset() -> None:
        parts = {"general": shared.VirtualCorpus(0), "domain": shared.VirtualCorpus(shared.VIRTUAL)}
        found = mixture(parts, size, steps, num_processes=shared.RANKS, process_index=shared.RANK)
        next(iter(found))

    if task["variant"] == "MixturePlan":
        return shared.started(plan, "the plan and the indices of the rank's first batch")
    return shared.started(dataset, "the rank's first example")


if __name__ == "__main__":
    torch.set_num_threads(1)
    shared.run(
        "hf_interp",
        {
            "rate": ["InterpolatedDataset", "InterpolatedDataset, numpy rows"],
            "resume": ["InterpolatedDataset"],
            "long": ["InterpolatedDataset"],
            "start": ["MixturePlan", "InterpolatedDataset"],
        },
        "DataLoader workers",
        {"write": shared.write_arrow, "rate": measure_rate, "state": state, "resume": resume, "start": start},
    )
