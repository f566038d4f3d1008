"""What the contestants share: the rows, the clock, the answer. Needs NumPy; `datasets` only for the Arrow files.

A contestant is a program `run_<name>.py` in this folder. It gets one task as JSON on the command line and prints one
line of JSON. It is called `run_…` because a file `datasets.py` here would hide the package of that name.
"""

import hashlib
import itertools
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
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


def write_arrow(task: Task) -> None:
    """Write both corpora with `datasets.Dataset.save_to_disk`, unless another contestant has done so."""
    import datasets

    for side in SIDES:
        if not (task["folder"] / "arrow" / side).exists():
            datasets.Dataset.from_dict(columns(side)).save_to_disk(str(task["folder"] / "arrow" / side))


def read_arrow(task: Task) -> dict[str, Any]:
    """Both corpora, mapped from their files; of a variant "numpy rows", as arrays."""
    import datasets

    form = "numpy" if "numpy" in task["variant"] else None
    return {side: datasets.load_from_disk(str(task["folder"] / "arrow" / side)).with_format(form) for side in SIDES}


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


def run(
    package: str,
    variants: Sequence[str],
    write: Callable[[Task], None],
    open_corpora: Callable[[Task], Any],
    loader: Callable[[Any, Task], Iterable[Any]],
    build: Callable[[Any, Task], Any],
    state: Callable[[Any, Task], tuple[Any, Iterator[Any] | None]],
    go_on: Callable[[Any, Any], Iterator[Any]],
) -> None:
    """Do the task of the command line and print the answer.

    Args:
        package: whose version is told.
        variants: of the contestant; those that name the form of rows are not resumed.
        write: writes the corpora.
        open_corpora: opens them, or says where they are; the others take what it returns.
        loader: makes what batches come from.
        build: makes the mixture that is resumed.
        state: runs to `consumed` examples; returns the state there, and what goes on with the batches that follow.
        go_on: takes a mixture and a state; returns the batches that follow.
    """
    task = json.loads(sys.argv[1])
    task["folder"] = Path(task["folder"])
    answer: Answer = {}
    if task["task"] == "describe":
        answer = {"version": metadata.version(package), "variants": variants}
    elif task["task"] == "write":
        write(task)
    elif task["task"] == "rate":
        answer = rate(loader(open_corpora(task), task), task["examples"])
    elif task["task"] == "state":
        found, following = state(open_corpora(task), task)
        Path(task["state"]).write_bytes(pickle.dumps(found))
        answer = {} if following is None else {"digest": digest(next(following))}
    else:
        saved = pickle.loads(Path(task["state"]).read_bytes())
        corpora = open_corpora(task)
        begin = time.perf_counter()
        mixture = build(corpora, task)
        built = time.perf_counter()
        batch = next(go_on(mixture, saved))
        end = time.perf_counter()
        answer = {"build": built - begin, "resume": end - built, "digest": digest(batch)}
    print(json.dumps(answer), flush=True)
