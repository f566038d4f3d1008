"""Time from the beginning of `train()` to the first new batch, after a checkpoint at an early and at a late step.

    python tests/benchmarks/resume.py

Ours against the plain Trainer on `datasets.interleave_datasets` of the same two corpora as streams, which is what it
takes to mix at given probabilities. A tiny BERT, batches of 4, no workers. A checkpoint is written after one step and
its step number is then set to the one asked for, so that nothing has to be trained for a million steps. Rounds
alternate; medians are printed. The examples read before the first new batch are counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from toys import config, corpus, tiny_model

from hf_interp import InterpolationTrainer
from hf_interp.training.checkpoints import CHECKSUMS_NAME, rank_file
from hf_interp.utils.console import format_table

CORPUS_ROWS = 500  # of each of the two corpora


class FirstBatch(TrainerCallback):
    """Notes when the first step begins, and stops after it."""

    def __init__(self) -> None:
        self.time = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.time = self.time or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


class Counting(torch.utils.data.Dataset):
    """A corpus that counts what is read of it."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows.to_list()
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.num_read += 1
        return self.rows[index]


def ours(folder: Path, max_steps: int, save: bool) -> tuple[Trainer, Callable[[], int]]:
    parts = {"general": Counting(corpus(0, CORPUS_ROWS)), "domain": Counting(corpus(1000, CORPUS_ROWS))}
    args = config(folder, max_steps=max_steps, save_strategy="steps" if save else "no", save_steps=1, logging_steps=10)
    trainer = InterpolationTrainer(tiny_model(), args, train_dataset=parts)
    return trainer, lambda: sum(part.num_read for part in parts.values())


def host(folder: Path, max_steps: int, save: bool) -> tuple[Trainer, Callable[[], int]]:
    count = [0]

    def rows(first: int) -> Any:
        for row in corpus(first, CORPUS_ROWS):
            count[0] += 1
            yield row

    streams = [datasets.IterableDataset.from_generator(rows, gen_kwargs={"first": first}) for first in (0, 1000)]
    mixed = datasets.interleave_datasets(streams, probabilities=[0.5, 0.5], seed=0).repeat(None)
    args = config(folder, max_steps=max_steps, save_strategy="steps" if save else "no", save_steps=1, logging_steps=10)
    return Trainer(tiny_model(), args, train_dataset=mixed), lambda: count[0]


def checkpoint_at(make: Any, folder: Path, step: int, max_steps: int) -> Path:
    """A checkpoint after one step that says it was written after `step`."""
    trainer, _ = make(folder, max_steps, True)
    trainer.add_callback(FirstBatch())
    trainer.train()
    checkpoint = (folder / "checkpoint-1").rename(folder / f"checkpoint-{step}")
    for path in (checkpoint / "trainer_state.json", rank_file(checkpoint, 0)):
        if path.exists():
            path.write_text(json.dumps({**json.loads(path.read_text()), "global_step": step}))
    (checkpoint / CHECKSUMS_NAME).unlink(missing_ok=True)  # they are those of the files as they were written
    return checkpoint


def resume(make: Any, checkpoint: Path, max_steps: int) -> tuple[float, int]:
    trainer, num_read = make(checkpoint.parent, max_steps, False)
    first = FirstBatch()
    trainer.add_callback(first)
    begin, before = time.perf_counter(), num_read()
    trainer.train(resume_from_checkpoint=str(checkpoint))
    # two more batches: the one that is trained on and the one accelerate fetches ahead, and the second step's
    return first.time - begin, num_read() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1_000, 1_000_000], help="ours is resumed at these")
    parser.add_argument("--host_steps", type=int, nargs="+", default=[1_000, 10_000], help="the plain Trainer at these")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    max_steps = max(*args.steps, *args.host_steps) + 10
    entries = [("hf_interp", ours, step) for step in args.steps]
    entries += [("Trainer, interleaved streams", host, step) for step in args.host_steps]
    times: Mapping[tuple[str, int], list[float]] = {(name, step): [] for name, _, step in entries}
    reads: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {
            (name, step): checkpoint_at(make, Path(folder) / f"{make.__name__}{step}", step, max_steps)
            for name, make, step in entries
        }
        for round_ in range(args.rounds + 1):
            for name, make, step in entries:
                taken, reads[name, step] = resume(make, checkpoints[name, step], max_steps)
                if round_:  # the first round warms up
                    times[name, step].append(taken)
    rows = [
        [name, f"{step:,}", f"{statistics.median(times[name, step]):.3f} s", f"{reads[name, step]:,}"]
        for name, _, step in entries
    ]
    print(format_table(["trainer", "resumed at step", "to the first new batch", "examples read"], rows), flush=True)


if __name__ == "__main__":
    main()
