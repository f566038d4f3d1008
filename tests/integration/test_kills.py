"""A run that is killed again and again ends as the one that never was."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from toys import NotingTrainer, config, mixture, same_weights, tiny_model

from hf_interp.training.checkpoints import find_checkpoint

pytestmark = pytest.mark.slow

STEPS, EVERY = 90, 3
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
"""What a log says of one life alone."""


class DiaryTrainer(NotingTrainer):
    """Writes down what it reads as it reads it, for whoever comes after."""

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        entry = [self.state.global_step, inputs["input_ids"][:, 0].tolist()]
        with open(os.path.join(self.args.output_dir, f"diary{self.args.process_index}"), "a") as file:
            file.write(json.dumps(entry) + "\n")
        return super().training_step(model, inputs, *args)


def live(folder: str, workers: int = 0, accumulation: int = 1, limit: int = 2) -> None:
    """One life of a run: from its last whole checkpoint, if there is any, to the end."""
    args = config(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        dataloader_num_workers=workers,
        save_strategy="steps",
        save_steps=EVERY,
        save_total_limit=limit,
    )
    trainer = DiaryTrainer(tiny_model(0.3), args, train_dataset=mixture())
    (Path(folder) / f"pid{args.process_index}").write_text(str(os.getpid()))
    trainer.train(resume_from_checkpoint=find_checkpoint(folder).path is not None)
    torch.save(trainer.model.state_dict(), Path(folder) / f"weights{args.process_index}.pt")
    history = [{key: value for key, value in entry.items() if key not in TIMES} for entry in trainer.state.log_history]
    (Path(folder) / f"history{args.process_index}.json").write_text(json.dumps(history))
    trainer.accelerator.end_training()  # or gloo's threads may abort a process that ends before the others


def wait_for(condition: Callable[[], bool], alive: Callable[[], bool], timeout: float = 120) -> bool:
    """Look every half a millisecond; whether it came true while the run was alive."""
    end = time.monotonic() + timeout
    while not condition():
        if not alive():
            return False
        assert time.monotonic() < end
        time.sleep(0.0005)
    return True


def assert_alike(folder: Path, whole: Path, ranks: Sequence[int]) -> None:
    """Weights bit for bit, logs with the fingerprint of the order, and what was read at every step of every life."""
    for rank in ranks:
        found, expected = (torch.load(path / f"weights{rank}.pt") for path in (folder, whole))
        assert same_weights(found, expected)
        found, expected = (json.loads((path / f"history{rank}.json").read_text()) for path in (folder, whole))
        assert found == expected
        assert sum("order_fingerprint" in entry for entry in found) == STEPS
        found, expected = (
            [json.loads(line) for line in (path / f"diary{rank}").read_text().splitlines()] for path in (folder, whole)
        )
        at_step: dict[int, list[list[int]]] = {}
        for step, numbers in expected:
            at_step.setdefault(step, []).append(numbers)
        assert sorted(at_step) == list(range(STEPS))
        lives = split_lives(found)
        assert len(lives) > 1
        for number, life in enumerate(lives):
            first = life[0][0]
            assert first % EVERY == 0
            steps = [entry for step in range(first, STEPS) for entry in ([step, seen] for seen in at_step[step])]
            assert life == steps[: len(life)]
            if number:
                assert first <= lives[number - 1][-1][0] + 1  # nothing is left out
        assert lives[-1][-1][0] == STEPS - 1


def split_lives(diary: list[Any]) -> list[list[Any]]:
    """A new life begins where the first micro-batch of a checkpoint's step comes again, or with an entry `null`."""
    lives: list[list[Any]] = [[]]
    for entry in diary:
        if entry is None:
            lives.append([])
        else:
            lives[-1].append(entry)
    return [life for life in lives if life]


def end_of_life(folder: Path) -> None:
    """Close the diaries of a life that was killed; its last line may be cut short."""
    for path in folder.glob("diary*"):
        text = path.read_text()
        path.write_text(text[: text.rfind("\n") + 1] + "null\n")


def stamp(path: Path) -> int | None:
    """When a folder last got or lost a file; `None` while there is no such folder."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def wait_for_moment(folder: Path, draw: random.Random, kind: str, alive: Callable[[], bool]) -> None:
    """Let a life go on up to some moment: early, in training, or inside the writing of a checkpoint."""
    if kind == "early":
        time.sleep(draw.uniform(0, 0.3))
    elif kind == "training":
        diaries = list(folder.glob("diary*"))
        size = sum(path.stat().st_size for path in diaries)
        wait_for(lambda: sum(path.stat().st_size for path in folder.glob("diary*")) > size, alive)
        time.sleep(draw.uniform(0, 0.1))
    else:
        last = find_checkpoint(folder).path
        step = int(last.name.removeprefix("checkpoint-")) if last is not None else 0
        path = folder / f"checkpoint-{step + EVERY * draw.choice([1, 1, 2])}"
        before = stamp(path)
        wait_for(lambda: stamp(path) not in (before, None), alive)
        time.sleep(draw.uniform(0, 0.015))


@pytest.mark.parametrize(("workers", "accumulation", "limit"), [(0, 1, 2), (0, 2, 1), (2, 1, 2)])
def test_a_run_of_one_process_survives_kills_at_any_moment(
    tmp_path: Path, workers: int, accumulation: int, limit: int
) -> None:
    whole, folder, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    settings = (workers, accumulation, limit)
    for path in (whole, folder):
        path.mkdir()
    processes.run(log, live, str(whole), *settings)
    draw = random.Random(sum(settings))
    kills, parts = 0, []
    for kind in ["inside", "training", "inside", "early", "inside", "inside", "training", "inside"]:
        (process,) = processes.start(log, live, str(folder), *settings)
        wait_for_moment(folder, draw, kind, process.is_alive)
        processes.kill([process])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        kills += 1
        end_of_life(folder)
        parts += find_checkpoint(folder).skipped
    else:
        processes.run(log, live, str(folder), *settings)
    assert kills >= 7
    assert parts  # at least one kill was inside the writing of a checkpoint
    assert_alike(folder, whole, [0])


def launch(python: Path, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Two processes by torch's own launcher."""
    launcher = [python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--no-python", python]
    script = folder.parent / "script.py"
    script.write_text("import sys\nfrom test_kills import live\nlive(sys.argv[1], limit=1)\n")
    environment = {**os.environ, "PYTHONPATH": processes.python_path(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen([*launcher, str(script), str(folder)], env=environment, stdout=output, stderr=output)


def send_kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_run_of_two_processes_survives_kills_of_all_or_of_one(tmp_path: Path, commands: Path) -> None:
    python = commands / "python"
    whole, folder, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    for path in (whole, folder):
        path.mkdir()
    assert launch(python, whole, log).wait(120) == 0, log.read_text()
    draw = random.Random(5)
    kills, parts = 0, []
    for kind, victims in [
        ("inside", (0, 1)),
        ("training", (1,)),
        ("inside", (1,)),
        ("inside", (0,)),
        ("training", (0, 1)),
        ("inside", (1,)),
    ]:
        for path in folder.glob("pid*"):
            path.unlink()
        run = launch(python, folder, log)
        wait_for(lambda: len(list(folder.glob("pid*"))) == 2, lambda run=run: run.poll() is None)
        wait_for_moment(folder, draw, kind, lambda run=run: run.poll() is None)
        ranks = [int((folder / f"pid{rank}").read_text()) for rank in victims]
        if len(victims) == 2:
            send_kill(run.pid)
        for pid in ranks:
            send_kill(pid)
        if run.wait(120) == 0:
            break
        kills += 1
        end_of_life(folder)
        parts += find_checkpoint(folder).skipped
    else:
        assert launch(python, folder, log).wait(120) == 0, log.read_text()
    assert kills >= 5
    assert parts
    assert_alike(folder, whole, [0, 1])


class SlowToWrite(DiaryTrainer):
    """The second process takes its time with its last file of the second checkpoint, and dies before it is written."""

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.process_index == 1 and self.state.global_step == 2 * EVERY:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


def live_and_die(folder: str) -> None:
    args = config(folder, max_steps=STEPS, save_strategy="steps", save_steps=EVERY, save_total_limit=1)
    SlowToWrite(tiny_model(0.3), args, train_dataset=mixture()).train()


def test_no_checkpoint_gives_way_to_one_that_another_process_has_not_finished(tmp_path: Path) -> None:
    started = processes.start(tmp_path / "log", live_and_die, str(tmp_path), processes=2)
    started[1].join(60)
    assert started[1].exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    started[0].join(60)
    processes.kill(started)
    assert started[0].exitcode != 0
    found = find_checkpoint(tmp_path)
    assert found.path == tmp_path / f"checkpoint-{EVERY}"
    assert found.skipped == [f"checkpoint-{2 * EVERY} (trainer_state.json is missing or cut short)"]
