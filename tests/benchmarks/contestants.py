"""The contestants of `peers.py`, each of which is asked in an interpreter that has its package.

    PYTHON tests/benchmarks/contestants.py NAME TASK

It gets one task as JSON and prints one line of JSON. Needs NumPy; `datasets` only for the Arrow files; no interpreter
has the packages of all.
"""

import hashlib
import itertools
import json
import pickle
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

LENGTH = 64
ROWS = 20_000  # of each corpus
BATCH_SIZE = 32
SIDES = ("general", "domain")

Task = dict[str, Any]
Answer = dict[str, Any]


def columns(side: str) -> dict[str, Any]:
    """The rows of a corpus, column by column; the same in every environment."""
    rng = np.random.default_rng(SIDES.index(side))
    return {
        "input_ids": rng.integers(0, 30_000, (ROWS, LENGTH), dtype=np.int64),
        "attention_mask": np.ones((ROWS, LENGTH), np.int64),
        "labels": rng.integers(0, 2, ROWS, dtype=np.int64),
    }


def row_of(table: dict[str, Any], index: int) -> dict[str, Any]:
    """One of the same rows, as arrays and an int."""
    return {name: int(column[index]) if name == "labels" else column[index] for name, column in table.items()}


def as_list(batch: Any) -> list[Any]:
    """Stands in for a collator: the rows as they reach it."""
    return list(batch)


def rate(batches: Iterable[Any], examples: int) -> Answer:
    """Examples per second after the first batch. The clock starts when the first batch is there."""
    iterator = iter(batches)
    first = next(iterator)
    assert len(first) == BATCH_SIZE, len(first)
    begin = time.perf_counter()
    taken = sum(len(batch) for batch in itertools.islice(iterator, examples // BATCH_SIZE))
    seconds = time.perf_counter() - begin
    assert taken == examples, (taken, examples)
    return {"rate": taken / seconds}


def digest(batch: Iterable[Any]) -> str:
    """Tells whether two batches hold the same rows in the same order."""
    told = [[int(value) for value in row["input_ids"][:8]] for row in batch]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def skip(iterator: Iterator[Any], count: int) -> Iterator[Any]:
    """The iterator, moved on by `count`."""
    for _ in itertools.islice(iterator, count):
        pass
    return iterator


def load_in_batches(dataset: Any, workers: int = 0, shuffle: bool = False) -> Any:
    """PyTorch's loader over a data set."""
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=as_list, shuffle=shuffle)


class Contestant:
    """A package that mixes two corpora.

    Attributes:
        package: whose version is told.
        variants: of the contestant; those that name the form of rows are not resumed.
    """

    package: str
    variants: Sequence[str]

    def __init__(self) -> None:
        """Import the package, before any clock runs."""

    def write(self, task: Task) -> None:
        """Write both corpora with `datasets.Dataset.save_to_disk`, unless another contestant has done so."""
        import datasets

        for side in SIDES:
            if not (task["folder"] / "arrow" / side).exists():
                datasets.Dataset.from_dict(columns(side)).save_to_disk(str(task["folder"] / "arrow" / side))

    def read(self, task: Task) -> Any:
        """Both corpora, mapped from their files; of a variant "numpy rows", as arrays. The other methods take them."""
        import datasets

        form = "numpy" if "numpy" in task["variant"] else None
        return {side: datasets.load_from_disk(str(task["folder"] / "arrow" / side)).with_format(form) for side in SIDES}

    def loader(self, corpora: Any, task: Task) -> Iterable[Any]:
        """What batches come from."""
        raise NotImplementedError

    def build(self, corpora: Any, task: Task) -> Any:
        """The mixture that is resumed."""
        return self.loader(corpora, task)

    def state(self, corpora: Any, task: Task) -> tuple[Any, Iterator[Any] | None]:
        """Run to `consumed` examples; return the state there, and what goes on with the batches that follow."""
        raise NotImplementedError

    def go_on(self, mixture: Any, saved: Any) -> Iterator[Any]:
        """The batches that follow in a mixture after a state."""
        mixture.load_state_dict(saved)
        return iter(mixture)

    def answer(self, task: Task) -> Answer:
        """Do a task."""
        if task["task"] == "describe":
            return {"version": metadata.version(self.package), "variants": self.variants}
        if task["task"] == "write":
            self.write(task)
            return {}
        corpora = self.read(task)
        if task["task"] == "rate":
            return rate(self.loader(corpora, task), task["examples"])
        if task["task"] == "state":
            found, following = self.state(corpora, task)
            Path(task["state"]).write_bytes(pickle.dumps(found))
            return {} if following is None else {"digest": digest(next(following))}
        saved = pickle.loads(Path(task["state"]).read_bytes())
        begin = time.perf_counter()
        mixture = self.build(corpora, task)
        built = time.perf_counter()
        batch = next(self.go_on(mixture, saved))
        return {"build": built - begin, "resume": time.perf_counter() - built, "digest": digest(batch)}


class Ours(Contestant):
    """`InterpolatedDataset`, its own `batches` and in a `DataLoader`, α rising from 0 to 1."""

    package = "hf_interp"
    in_loader = "InterpolatedDataset in a DataLoader"
    variants = "InterpolatedDataset.batches", "InterpolatedDataset.batches, numpy rows", in_loader
    long_run = 400_000  # steps: a run of 12.8 million examples, to resume in

    def __init__(self) -> None:
        from hf_interp import InterpolatedDataset
        from hf_interp.mixture.schedules import linear

        self.mixture: Any = partial(InterpolatedDataset, batch_size=BATCH_SIZE, alpha_schedule=linear())

    def loader(self, corpora: Any, task: Task) -> Iterable[Any]:
        dataset = self.mixture(corpora, max_steps=task["examples"] // BATCH_SIZE + 1)
        if task["variant"] == self.in_loader:
            return load_in_batches(dataset, task["workers"])
        return dataset.batches(as_list, num_workers=task["workers"])

    def build(self, corpora: Any, task: Task) -> Any:
        return self.mixture(corpora, max_steps=self.long_run)

    def state(self, corpora: Any, task: Task) -> tuple[Any, Iterator[Any]]:
        dataset = self.build(corpora, task)
        examples = skip(iter(dataset), task["consumed"])
        return dataset.state_dict(), iter([list(itertools.islice(examples, BATCH_SIZE))])

    def go_on(self, mixture: Any, saved: Any) -> Iterator[Any]:
        mixture.load_state_dict(saved)
        return mixture.batches(as_list)


class Datasets(Contestant):
    """`interleave_datasets`, map-style and iterable, in a `DataLoader`, constant 0.5."""

    package = "datasets"
    by_map = "interleave_datasets, map-style"
    buffered = "interleave_datasets, iterable, buffer 1,000"
    variants = by_map, "interleave_datasets, iterable, in order", buffered

    def __init__(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.interleave: Any = datasets.interleave_datasets

    def mixture(self, parts: dict[str, Any], task: Task) -> Any:
        mix: dict[str, Any] = {"probabilities": [0.5, 0.5], "seed": 0, "stopping_strategy": "all_exhausted"}
        if task["variant"] == self.by_map:
            return self.interleave(list(parts.values()), **mix)
        streams = [part.to_iterable_dataset(num_shards=2) for part in parts.values()]  # a shard for each of two workers
        found = self.interleave(streams, **mix)
        return found.shuffle(seed=0, buffer_size=1_000) if task["variant"] == self.buffered else found

    def loader(self, corpora: Any, task: Task) -> Iterable[Any]:
        return load_in_batches(self.mixture(corpora, task), task["workers"], shuffle=task["variant"] == self.by_map)

    def build(self, corpora: Any, task: Task) -> Any:
        found = self.mixture(corpora, task)
        return found if task["variant"] == self.by_map else found.repeat(None)

    def state(self, corpora: Any, task: Task) -> tuple[Any, Iterator[Any] | None]:
        if task["variant"] == self.by_map:  # holds no state
            return task["consumed"], None
        dataset = self.build(corpora, task)
        examples = skip(iter(dataset), task["consumed"])
        return dataset.state_dict(), iter([list(itertools.islice(examples, BATCH_SIZE))])

    def go_on(self, mixture: Any, saved: Any) -> Iterator[Any]:
        if isinstance(saved, int):  # what is left of the epoch in which the example lies
            epoch, done = divmod(saved, len(mixture))
            mixture = mixture.shuffle(seed=epoch).select(range(done, len(mixture)))
        else:
            mixture.load_state_dict(saved)
        return iter(load_in_batches(mixture))


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


class TorchData(Contestant):
    """`MultiNodeWeightedSampler` over the indices, `Batcher`, `ParallelMapper`, `Loader`; constant 0.5.

    Samplers and mixing handle indices only, so that rows are read a batch at a time.
    """

    package = "torchdata"
    variants = ("nodes, MultiNodeWeightedSampler",)

    def __init__(self) -> None:
        from torchdata import nodes

        self.nodes: Any = nodes

    def loader(self, corpora: Any, task: Task) -> Any:
        from torch.utils.data import DistributedSampler

        nodes = self.nodes
        samplers = {
            name: DistributedSampler(part, num_replicas=1, rank=0, shuffle=True) for name, part in corpora.items()
        }
        sources = {name: nodes.Mapper(nodes.SamplerWrapper(each), Tag(name)) for name, each in samplers.items()}
        weights = dict.fromkeys(corpora, 0.5)
        mixed = nodes.MultiNodeWeightedSampler(sources, weights, nodes.StopCriteria.CYCLE_FOREVER, rank=0, world_size=1)
        batches = nodes.Batcher(mixed, BATCH_SIZE)
        workers = task.get("workers", 0)
        return nodes.Loader(nodes.ParallelMapper(batches, Fetch(corpora), num_workers=workers, method="process"))

    def state(self, corpora: Any, task: Task) -> tuple[Any, Iterator[Any]]:
        loader = self.loader(corpora, task)
        batches = skip(iter(loader), task["consumed"] // BATCH_SIZE)
        return loader.state_dict(), batches


class MosaicStreaming(Contestant):
    """Two `Stream`s with `proportion` 0.5 in a `StreamingDataset`."""

    package = "mosaicml-streaming"
    variants = ("StreamingDataset, two Streams",)

    def __init__(self) -> None:
        """Import the package, which imports torchvision for its picture datasets, which are not read here.

        torchvision's usual build fails beside a CPU build of torch, so empty modules stand in for it.
        """
        for name in ("torchvision", *(f"torchvision.{part}" for part in ("datasets", "transforms.functional"))):
            stand_in: Any = ModuleType(name)
            stand_in.__spec__ = ModuleSpec(name, None)
            stand_in.__path__ = []
            stand_in.VisionDataset, stand_in.to_tensor = object, None
            sys.modules[name] = stand_in
        import streaming

        self.streaming: Any = streaming

    def write(self, task: Task) -> None:
        rows = f"ndarray:int64:{LENGTH}"
        kinds = {"input_ids": rows, "attention_mask": rows, "labels": "int"}
        for side in SIDES:
            target, table = task["folder"] / "mds" / side, columns(side)
            shutil.rmtree(target, ignore_errors=True)
            with self.streaming.MDSWriter(out=str(target), columns=kinds, size_limit=2**21) as writer:
                for index in range(ROWS):
                    writer.write(row_of(table, index))

    def read(self, task: Task) -> Path:
        return task["folder"] / "mds"

    def build(self, corpora: Path, task: Task) -> Any:
        streaming = self.streaming
        streaming.base.util.clean_stale_shared_memory()
        parts = [streaming.Stream(local=str(corpora / side), proportion=0.5) for side in SIDES]
        return streaming.StreamingDataset(streams=parts, shuffle=True, shuffle_seed=0, batch_size=BATCH_SIZE)

    def loader(self, corpora: Path, task: Task) -> Iterable[Any]:
        return load_in_batches(self.build(corpora, task), task["workers"])

    def state(self, corpora: Path, task: Task) -> tuple[Any, Iterator[Any]]:
        dataset = self.build(corpora, task)
        epochs, rest = divmod(task["consumed"], dataset.epoch_size)
        for _ in range(epochs):
            for _ in dataset:
                pass
        batches = skip(iter(load_in_batches(dataset)), rest // BATCH_SIZE)
        return dataset.state_dict(rest, from_beginning=True), batches

    def go_on(self, mixture: Any, saved: Any) -> Iterator[Any]:
        mixture.load_state_dict(saved)
        return iter(load_in_batches(mixture))


class LitData(Contestant):
    """`CombinedStreamingDataset` with weights in its `StreamingDataLoader`, constant 0.5."""

    package = "litdata"
    variants = ("CombinedStreamingDataset",)
    chunk_rows = 2_000  # 2 MB: ten chunks a corpus, so that two workers can share them

    def __init__(self) -> None:
        import litdata

        self.litdata: Any = litdata

    def write(self, task: Task) -> None:
        for side in SIDES:
            target = task["folder"] / "litdata" / side
            shutil.rmtree(target, ignore_errors=True)
            rows = partial(row_of, columns(side))  # `optimize` hands it to another process
            indices = list(range(ROWS))
            self.litdata.optimize(
                rows, indices, str(target), chunk_size=self.chunk_rows, num_workers=1, keep_data_ordered=True
            )

    def read(self, task: Task) -> Path:
        return task["folder"] / "litdata"

    def loader(self, corpora: Path, task: Task) -> Any:
        litdata = self.litdata
        parts = [litdata.StreamingDataset(str(corpora / side), shuffle=True, seed=0) for side in SIDES]
        mixed = litdata.CombinedStreamingDataset(parts, seed=0, weights=[0.5, 0.5], iterate_over_all=False)
        return litdata.StreamingDataLoader(
            mixed, batch_size=BATCH_SIZE, num_workers=task.get("workers", 0), collate_fn=as_list
        )

    def state(self, corpora: Path, task: Task) -> tuple[Any, Iterator[Any]]:
        loader = self.loader(corpora, task)
        batches = self.endless(loader)
        skip(batches, task["consumed"] // BATCH_SIZE)
        return loader.state_dict(), batches

    @staticmethod
    def endless(loader: Any) -> Iterator[list[Any]]:
        """Full batches, epoch after epoch; an epoch ends when one corpus does."""
        while True:
            for batch in loader:
                if len(batch) == BATCH_SIZE:
                    yield batch


class Grain(Contestant):
    """`MapDataset.mix` of shuffled, repeated sources, constant 0.5."""

    package = "grain"
    variants = "MapDataset.mix", "MapDataset.mix, numpy rows"

    def __init__(self) -> None:
        import grain
        from absl import flags

        flags.FLAGS(sys.argv[:1])
        self.grain: Any = grain

    def loader(self, corpora: Any, task: Task) -> Any:
        grain = self.grain
        workers = task.get("workers", 0)
        parts = corpora.values()
        shuffled = [grain.MapDataset.source(part).shuffle(seed=seed).repeat() for seed, part in enumerate(parts)]
        mixed = grain.MapDataset.mix(shuffled, weights=[0.5, 0.5])
        batches = mixed.batch(BATCH_SIZE, batch_fn=as_list)
        # Threads gain nothing on one core: without them grain is faster here
        found = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return found.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else found

    def state(self, corpora: Any, task: Task) -> tuple[Any, Iterator[Any]]:
        iterator: Any = iter(self.loader(corpora, task))
        skip(iterator, task["consumed"] // BATCH_SIZE)
        return iterator.get_state(), iterator

    def go_on(self, mixture: Any, saved: Any) -> Iterator[Any]:
        iterator: Any = iter(mixture)
        iterator.set_state(saved)
        return iterator


class OpusTrainer(Contestant):
    """A `Trainer` with one stage of two corpora, 0.5 of each. It reads lines, here of the numbers, which are parsed."""

    package = "opustrainer"
    variants = ("Trainer, a stage of two corpora, lines",)

    def __init__(self) -> None:
        from opustrainer import trainer

        self.trainer: Any = trainer

    def write(self, task: Task) -> None:
        (task["folder"] / "lines").mkdir(exist_ok=True)
        for side in SIDES:
            with (task["folder"] / "lines" / side).open("w") as file:
                for ids, mask, label in zip(*columns(side).values(), strict=True):
                    file.write(f"{' '.join(map(str, ids))}\t{' '.join(map(str, mask))}\t{label}\n")

    def read(self, task: Task) -> Path:
        return task["folder"] / "lines"

    def build(self, corpora: Path, task: Task) -> Any:
        stage = [*(f"{side} 0.5" for side in SIDES), f"until {SIDES[0]} inf"]
        plan = {"datasets": {side: str(corpora / side) for side in SIDES}, "stages": ["all"], "all": stage, "seed": 0}
        return self.trainer.Trainer(self.trainer.CurriculumLoader().load(plan), reader=self.trainer.AsyncDatasetReader)

    def loader(self, corpora: Path, task: Task) -> Iterable[Any]:
        return self.batches(self.build(corpora, task), task["workers"])

    @staticmethod
    def batches(trainer: Any, workers: int = 0) -> Iterator[list[Any]]:
        """Rows of the lines of each batch."""
        for lines in trainer.run(batch_size=BATCH_SIZE, processes=workers):
            fields = (line.split("\t") for line in lines)
            yield [
                {
                    "input_ids": list(map(int, ids.split(" "))),
                    "attention_mask": list(map(int, mask.split(" "))),
                    "labels": int(label),
                }
                for ids, mask, label in fields
            ]

    def state(self, corpora: Path, task: Task) -> tuple[Any, Iterator[Any]]:
        trainer = self.build(corpora, task)
        batches = skip(self.batches(trainer), task["consumed"] // BATCH_SIZE)
        return trainer.state(), batches

    def go_on(self, mixture: Any, saved: Any) -> Iterator[Any]:
        mixture.restore(saved)
        return self.batches(mixture)


CONTESTANTS: dict[str, type[Contestant]] = {
    "hf_interp": Ours,
    "datasets": Datasets,
    "torchdata": TorchData,
    "streaming": MosaicStreaming,
    "litdata": LitData,
    "grain": Grain,
    "opustrainer": OpusTrainer,
}


def main(name: str, text: str) -> None:
    """Do a task of the command line and print the answer."""
    if name not in ("grain", "opustrainer"):  # which need no torch
        import torch

        torch.set_num_threads(1)
    task = json.loads(text)
    print(json.dumps(CONTESTANTS[name]().answer(task | {"folder": Path(task["folder"])})), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
