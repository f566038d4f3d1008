"""What breaks while a run goes on is said in words, and once it is repaired the run goes on as if it had not been."""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import processes
import pytest
import torch
from torch.utils.data import get_worker_info
from toys import DOMAIN_FIRST, NotingTrainer, config, corpus, mixture, same_weights, tiny_model, weights
from transformers import TrainerCallback

from hf_interp import Corpus
from hf_interp.mixture.schedules import linear
from hf_interp.training.checkpoints import find_checkpoint
from hf_interp.utils.errors import ReadError

STEPS = 16


def make(output_dir: Path, dataset: Any = None, callbacks: Any = None, **kwargs: Any) -> NotingTrainer:
    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, **kwargs}
    parts = mixture() if dataset is None else dataset
    return NotingTrainer(tiny_model(0.3), config(output_dir, **settings), train_dataset=parts, callbacks=callbacks)


def train(output_dir: Path, dataset: Any = None, resume: Any = None, **kwargs: Any) -> NotingTrainer:
    trainer = make(output_dir, dataset, **kwargs)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_goes_on_as(whole: NotingTrainer, output_dir: Path, dataset: Any = None, **kwargs: Any) -> int:
    """Resume from the last whole checkpoint and compare with an uninterrupted run; where it went on."""
    found = find_checkpoint(output_dir)
    assert found.path is not None
    step = int(found.path.name.removeprefix("checkpoint-"))
    resumed = train(output_dir, dataset, True, **kwargs)
    assert resumed.seen == {late: whole.seen[late] for late in range(step, STEPS)}
    assert same_weights(weights(resumed), weights(whole))
    prints = [
        [entry["order_fingerprint"] for entry in trainer.state.log_history if "order_fingerprint" in entry]
        for trainer in (whole, resumed)
    ]
    assert prints[0] == prints[1]
    return step


# Loaders and corpora.


class Deadly(torch.utils.data.Dataset[dict[str, Any]]):
    """A corpus that kills the worker that reads a certain example, as long as a file is there."""

    def __init__(self, rows: datasets.Dataset, number: int, flag: Path) -> None:
        self.rows, self.number, self.flag = rows, number, flag

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        if row["input_ids"][0] == self.number and get_worker_info() is not None and self.flag.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return row


def test_a_loader_worker_that_dies_ends_the_run_with_a_word(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    whole = train(tmp_path / "whole")
    number = min(number for number in whole.seen[11] if number < DOMAIN_FIRST)  # read once in the whole run
    assert [step for step, seen in whole.seen.items() if number in seen] == [11]
    parts = {"general": Deadly(corpus(0, 40), number, flag), "domain": corpus(DOMAIN_FIRST, 12)}
    flag.touch()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"):
        train(tmp_path / "out", parts, dataloader_num_workers=2)
    assert len(find_checkpoint(tmp_path / "out").skipped) <= 1  # it may die while a checkpoint is written
    flag.unlink()
    step = assert_goes_on_as(whole, tmp_path / "out", parts, dataloader_num_workers=2)
    assert 4 <= step <= 10  # what was fetched ahead is lost, what was trained on is not


def test_a_worker_that_dies_while_a_checkpoint_is_written_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    class Interrupted(NotingTrainer):
        def _save_scaler(self, output_dir: str) -> None:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    args = config(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid 1\) is killed by signal: Killed\.$"):
        Interrupted(tiny_model(), args, train_dataset=mixture()).train()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_cannot_be_read_is_named(tmp_path: Path, workers: int) -> None:
    flag = tmp_path / "flag"

    class Broken(Deadly):
        def __getitem__(self, index: int) -> Any:
            if self.rows[index]["input_ids"][0] == self.number and self.flag.exists():
                raise OSError("bad sector")
            return self.rows[index]

    whole = train(tmp_path / "whole")
    number = min(number for number in whole.seen[11] if number < DOMAIN_FIRST)
    parts = {"general": Broken(corpus(0, 40), number, flag), "domain": corpus(DOMAIN_FIRST, 12)}
    flag.touch()
    with pytest.raises(ReadError, match=rf"^Corpus 'general' failed at the examples \[.*{number}.*\]: OSError: bad"):
        train(tmp_path / "out", parts, dataloader_num_workers=workers)
    flag.unlink()
    assert assert_goes_on_as(whole, tmp_path / "out", parts, dataloader_num_workers=workers) == 10


def rows_of(shards: list[int], flag: str) -> Iterator[dict[str, Any]]:
    """Ten examples a shard; the sixth of every shard cannot be read as long as a file is there."""
    for shard in shards:
        for number in range(DOMAIN_FIRST + 10 * shard, DOMAIN_FIRST + 10 * shard + 10):
            if number % 10 == 5 and Path(flag).exists():
                raise OSError("the link is down")
            yield {"input_ids": [number, 1 + number % 7, 2], "labels": number % 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_names_its_corpus_and_place(tmp_path: Path, workers: int) -> None:
    flag = tmp_path / "flag"
    stream = datasets.IterableDataset.from_generator(rows_of, gen_kwargs={"shards": [0, 1], "flag": str(flag)})
    parts = {"general": corpus(0, 40), "domain": stream}
    whole = train(tmp_path / "whole", parts, dataloader_num_workers=workers)
    flag.touch()
    readers = max(workers, 1)
    place = rf"failed after 5 examples of pass 1 \(reader 1 of {readers}\): OSError: the link is down"
    remedy = (
        rf"The run ended after step \d\. Go on from '{tmp_path}/out/checkpoint-\d' with `resume_from_checkpoint: true`"
    )
    with pytest.raises(ReadError, match=rf"^The stream of corpus 'domain' {place}\. {remedy}\.$"):
        train(tmp_path / "out", parts, dataloader_num_workers=workers)
    flag.unlink()
    assert assert_goes_on_as(whole, tmp_path / "out", parts, dataloader_num_workers=workers) >= 2


# Disks.


class Limit(TrainerCallback):
    """No file may grow beyond a size after a step."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fail_to_write(trainer: NotingTrainer) -> str:
    """Train to the failure that is to come; what it says."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="could not be written") as error:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.__cause__ is not None
    text = str(error.value)
    del error, trainer
    gc.collect()  # loader workers that are left behind end now
    return text


@pytest.mark.parametrize(
    ("size", "left", "workers"),
    [
        (100, [], 0),
        (40_000, ["mixture_state_0.json"], 0),
        (200_000, ["mixture_state_0.json", "model.safetensors"], 0),
        pytest.param(100, [], 2, marks=pytest.mark.slow),
        pytest.param(40_000, ["mixture_state_0.json"], 2, marks=pytest.mark.slow),
        (200_000, ["mixture_state_0.json", "model.safetensors"], 2),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_named_with_the_last_whole_one(
    tmp_path: Path, size: int, left: list[str], workers: int
) -> None:
    settings = {"dataloader_num_workers": workers, "logging_steps": STEPS}  # what is printed goes to a file, too
    whole = train(tmp_path / "whole", **settings)
    folder = tmp_path / "out"
    error = fail_to_write(make(folder, callbacks=[Limit(5, size)], **settings))
    assert error.startswith(f"The checkpoint {str(folder / 'checkpoint-6')!r} could not be written: ")
    assert error.endswith(
        f" The last whole checkpoint is {str(folder / 'checkpoint-4')!r}; resume from it with "
        "`resume_from_checkpoint=True` once there is room and permission to write."
    )
    files = {path.name for path in (folder / "checkpoint-6").iterdir() if path.stat().st_size <= size}
    assert set(left) <= files
    assert "trainer_state.json" not in files
    assert assert_goes_on_as(whole, folder, **settings) == 4
    assert find_checkpoint(folder).skipped == []


def test_the_last_checkpoint_of_weights_alone_is_named_too(tmp_path: Path) -> None:
    error = fail_to_write(make(tmp_path, callbacks=[Limit(3, 40_000)], save_only_model=True))
    assert f"The last whole checkpoint is {str(tmp_path / 'checkpoint-2')!r}; resume" in error


def test_the_first_checkpoint_that_cannot_be_written_has_none_before(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").write_text("a file where a folder belongs")
    with pytest.raises(OSError, match=r"checkpoint-2' could not be written: .*There is no earlier checkpoint\."):
        train(tmp_path)


FULL = """
import json, subprocess, sys
from pathlib import Path
from test_faults import train, make
from hf_interp.training.checkpoints import find_checkpoint

disk = Path(sys.argv[1])
try:
    train(disk / "out")
    error = None
except OSError as caught:
    error = str(caught)
found = find_checkpoint(disk / "out")
skipped = find_checkpoint(disk / "out").skipped
subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
resumed = train(disk / "out", resume=True)
from toys import weights
import torch
torch.save(weights(resumed), sys.argv[2])
print(json.dumps({"error": error, "last": str(found.path), "skipped": skipped, "seen": resumed.seen}))
"""


@pytest.mark.slow
def test_a_disk_that_fills_leaves_the_last_checkpoint_as_it_was(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "-rm"]  # mounts that only the command sees
    size = "size=1200k"
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare`")
    tried = subprocess.run(
        [*own, "mount", "-t", "tmpfs", "-o", size, "none", str(disk)], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"mounting is not permitted: {tried.stderr.strip()}")
    whole = train(tmp_path / "whole")
    script = f'mount -t tmpfs -o {size} none "$1" && exec "$2" -c "$3" "$1" "$4"'
    arguments = [str(disk), sys.executable, FULL, str(tmp_path / "weights.pt")]
    environment = {**os.environ, "PYTHONPATH": processes.python_path(Path(__file__).parent)}
    done = subprocess.run(
        [*own, "sh", "-c", script, "sh", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"].startswith(f"The checkpoint '{disk}/out/checkpoint-6' could not be written: ")
    assert f"The last whole checkpoint is '{disk}/out/checkpoint-4'" in found["error"]
    assert found["last"] == f"{disk}/out/checkpoint-4"
    assert len(found["skipped"]) == 1
    assert found["seen"] == {str(step): whole.seen[step] for step in range(4, STEPS)}
    assert same_weights(torch.load(tmp_path / "weights.pt"), weights(whole))


# Corpora that are not what they were.


@pytest.mark.parametrize("resume", ["last", "explicit"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"domain": corpus(DOMAIN_FIRST, 13)}, "Corpus 'domain' had 12 examples .* and has 13 examples now"),
        ({"domain": corpus(DOMAIN_FIRST, 11)}, "Corpus 'domain' had 12 examples .* and has 11 examples now"),
        ({"general": corpus(1, 40)}, "Corpus 'general' has as many examples .*, but others"),
        ({"domain": corpus(DOMAIN_FIRST, 12).select(range(11, -1, -1))}, "Corpus 'domain' has as many .*, but others"),
        ({"domain": list(corpus(DOMAIN_FIRST, 13))}, "Corpus 'domain' had 12 examples .* and has 13 examples now"),
        (
            {"domain": corpus(DOMAIN_FIRST, 12).to_iterable_dataset()},
            r"Corpus 'domain' had 12 examples .* and has no length \(a stream\) now",
        ),
    ],
)
def test_a_corpus_that_has_changed_is_named_before_any_step(
    tmp_path: Path, changed: dict[str, Any], message: str, resume: str
) -> None:
    train(tmp_path, max_steps=4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    trainer = make(tmp_path, {**mixture(), **changed}, max_steps=4)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=True if resume == "last" else str(tmp_path / "checkpoint-2"))
    assert trainer.seen == {}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_same_rows_made_otherwise_are_the_same_corpus(tmp_path: Path) -> None:
    whole = train(tmp_path)
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    rows = corpus(DOMAIN_FIRST, 24).filter(lambda row: row["input_ids"][0] < DOMAIN_FIRST + 12)
    assert assert_goes_on_as(whole, tmp_path, {**mixture(), "domain": rows}) == STEPS - 2


# Small and many corpora.


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_corpus_shorter_than_a_batch_is_read_pass_after_pass(tmp_path: Path, count: int) -> None:
    parts = mixture(general=count, domain=3)
    trainer = train(tmp_path, parts, per_device_train_batch_size=8, save_strategy="no")
    for first, size in ((0, count), (DOMAIN_FIRST, 3)):
        counts = Counter(dict.fromkeys(range(first, first + size), 0))
        for step in range(STEPS):  # inside a step the order of a pass is not to be seen
            counts.update(number for number in trainer.seen[step] if first <= number < first + DOMAIN_FIRST)
            assert set(counts) == set(range(first, first + size))
            assert max(counts.values()) - min(counts.values()) <= 1
        assert counts.total() == trainer.plan.drawn_before([STEPS])[0][int(first == DOMAIN_FIRST)] > 8 * size


def one_example_each(folder: str) -> None:
    settings = {"per_device_train_batch_size": 4, "alpha_schedule_type": "constant", "alpha_end": 0.25}
    trainer = make(Path(folder), mixture(general=1, domain=1), max_steps=4, **settings)
    trainer.train()
    Path(folder, f"rank{trainer.args.process_index}.json").write_text(json.dumps(list(trainer.seen.values())))


@pytest.mark.slow
def test_more_processes_than_examples(tmp_path: Path) -> None:
    processes.run(tmp_path / "log", one_example_each, str(tmp_path), processes=2)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for step in range(4):
        assert [len(rank[step]) for rank in ranks] == [4, 4]
        assert Counter(ranks[0][step] + ranks[1][step]) == {0: 6, DOMAIN_FIRST: 2}
    assert find_checkpoint(tmp_path).path == tmp_path / "checkpoint-4"


def test_sixty_four_corpora_with_shares_next_to_nothing(tmp_path: Path) -> None:
    rare, never = 31, 31
    shares = {
        "main": 1 - rare * 1e-4,
        **{f"rare{i}": 1e-4 for i in range(rare)},
        **{f"never{i}": 0.0 for i in range(never)},
    }
    general = [
        Corpus(name, corpus(30 * place, 30), "general", share=share)
        for place, (name, share) in enumerate(shares.items())
    ]
    parts = [*general, Corpus("domain", corpus(1950, 12), "domain")]
    assert len(parts) == 64
    trainer = train(tmp_path, parts, per_device_train_batch_size=256, save_steps=8)
    plan = trainer.plan
    counts = Counter(number // 30 for seen in trainer.seen.values() for number in seen)
    places = {name: place for place, name in enumerate(shares)}
    total = sum(256 * (1 - linear()(step / (STEPS - 1))) for step in range(STEPS))
    for name, share in shares.items():
        assert abs(counts[places[name]] - total * share) <= 1
        assert share or not counts[places[name]]
    assert counts[65] == STEPS * 256 - sum(counts[place] for place in places.values())
    assert [counts[place] for place in [*places.values(), 65]] == plan.drawn_before([STEPS])[0].tolist()
    for entry in trainer.state.log_history[:STEPS]:
        assert sum(entry[f"share_{part.name}"] for part in parts) == pytest.approx(1.0)
        assert not any(entry[f"share_never{i}"] for i in range(never))
    resumed = train(tmp_path, parts, str(tmp_path / "checkpoint-8"), per_device_train_batch_size=256, save_steps=8)
    assert resumed.seen == {step: trainer.seen[step] for step in range(8, STEPS)}
    assert same_weights(weights(resumed), weights(trainer))
