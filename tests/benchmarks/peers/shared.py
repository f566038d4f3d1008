"""What the contestants share: the rows, the clock, the answer. Needs NumPy; `datasets` only for the Arrow files.

A contestant is a program `run_<name>.py` in this folder. It gets one task as JSON on the command line and prints one
line of JSON. It is called `run_…` because a file `datasets.py` here would hide the package of that name.
"""

import hashlib
import itertools
import json
import pickle
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 64
ROWS = 20_000  # of each corpus
BATCH_SIZE = 32
SIDES = ("general", "domain")
VIRTUAL = 50_000_000  # rows of each of the two virtual corpora
RANK, RANKS = 999, 1_000
LOCAL_BATCH = 8  # of one rank; 8,000 over all
LONG = 10_000_000  # rows of each of the two virtual corpora in which to resume within one pass
RUN_THROUGH = 100_000  # examples that are really read to get a state; further ones only where that is quick

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


def rows(side: str) -> Iterator[dict[str, Any]]:
    """The same rows one by one, as arrays and an int."""
    table = columns(side)
    for index in range(ROWS):
        yield {
            "input_ids": table["input_ids"][index],
            "attention_mask": table["attention_mask"][index],
            "labels": int(table["labels"][index]),
        }


def write_arrow(task: Task) -> Answer:
    """Write both corpora with `datasets.Dataset.save_to_disk`, unless another contestant has done so."""
    import datasets

    for side in SIDES:
        if not (task["folder"] / "arrow" / side).exists():
            datasets.Dataset.from_dict(columns(side)).save_to_disk(str(task["folder"] / "arrow" / side))
    return {}


def read_arrow(folder: Path, form: str | None = None) -> dict[str, Any]:
    """Both corpora, mapped from their files."""
    import datasets

    return {side: datasets.load_from_disk(str(folder / "arrow" / side)).with_format(form) for side in SIDES}


class VirtualCorpus:
    """A map-style dataset of any length whose rows are computed."""

    def __init__(self, first: int, size: int = VIRTUAL) -> None:
        self.first, self.size = first, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": [self.first + int(index)] * LENGTH, "labels": 0}


def open_parts(task: Task) -> dict[str, Any]:
    """The corpora to resume in: the files, or two computed ones so long that the run is within its first pass."""
    if task["long"]:
        return {side: VirtualCorpus(number * LONG, LONG) for number, side in enumerate(SIDES)}
    return read_arrow(task["folder"])


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
    return {"rate": taken / seconds, "form": form_of(first)}


def form_of(batch: Any) -> str:
    """In which form a batch reaches the collator."""
    row = batch[0]
    return f"list of {type(row).__name__} of {type(row['input_ids']).__name__}"


def digest(batch: Iterable[Any]) -> str:
    """Tells whether two batches hold the same rows in the same order."""
    told = [[int(value) for value in row["input_ids"][:8]] for row in batch]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def save_state(task: Task, state: Any) -> None:
    """Keep a state for the fresh processes that resume from it."""
    Path(task["state"]).write_bytes(pickle.dumps(state))


def load_state(task: Task) -> Any:
    """What `save_state` kept."""
    return pickle.loads(Path(task["state"]).read_bytes())


def resumed(build: Callable[[], Any], go_on: Callable[[Any], Iterator[Any]]) -> Answer:
    """Time to build the mixture, and from there to the first batch after the state."""
    begin = time.perf_counter()
    mixture = build()
    built = time.perf_counter()
    batch = next(go_on(mixture))
    end = time.perf_counter()
    return {"build": built - begin, "resume": end - built, "digest": digest(batch)}


def peak() -> float:
    """Peak memory of this process so far in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def started(start: Callable[[], Any], what: str) -> Answer:
    """Time and additional peak memory of `start`."""
    limit = 12 * 2**30  # the machine is shared
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before, begin = peak(), time.perf_counter()
    start()
    return {"seconds": time.perf_counter() - begin, "memory": peak() - before, "what": what}


def run(package: str, variants: dict[str, list[str]], workers: str, tasks: dict[str, Callable[[Task], Answer]]) -> None:
    """Do the task of the command line and print the answer."""
    task = json.loads(sys.argv[1])
    task["folder"] = Path(task["folder"])
    if task["task"] == "describe":
        answer: Answer = {"version": metadata.version(package), "variants": variants, "workers": workers}
    elif task["task"] not in tasks:
        answer = {"missing": True}
    else:
        answer = tasks[task["task"]](task)
    print(json.dumps(answer), flush=True)
