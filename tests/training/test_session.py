"""The life of a run in its folder: alone, resumed or interrupted, and ended by a loss that is no number."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from toys import NotingTrainer, config, mixture, tiny_model
from transformers import TrainerCallback

from hf_interp.training.checkpoints import find_checkpoint, rotate_checkpoints
from hf_interp.training.session import MOST_OVERFLOWS, LossGuard, alone_in
from hf_interp.utils.run_folder import LOCK_NAME


def trainer_of(folder: Path, *callbacks: TrainerCallback, **kwargs: Any) -> NotingTrainer:
    args = config(folder, **{"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **kwargs})
    return NotingTrainer(tiny_model(), args, train_dataset=mixture(), callbacks=list(callbacks))


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action(kwargs["model"])


def interrupt(model: Any) -> None:
    raise KeyboardInterrupt


# Alone in a folder.


def test_a_second_run_in_the_same_folder_is_refused_before_a_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    other = FileLock(tmp_path / LOCK_NAME)  # as another process has it
    with other, pytest.raises(ValueError, match="`output_dir` must be a folder that no other run writes to, got"):
        trainer.train()
    assert trainer.seen == {}
    trainer.train()  # what a killed run leaves of its lock does not matter
    assert len(trainer.seen) == 6
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_folder_is_taken_again_by_the_process_that_has_it(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        with alone_in(tmp_path / "."):
            assert (tmp_path / LOCK_NAME).exists()
        assert (tmp_path / LOCK_NAME).exists()
    assert not (tmp_path / LOCK_NAME).exists()


# How to go on.


def test_a_run_that_is_started_again_over_checkpoints_says_how_to_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer_of(tmp_path).train()
    assert "resume" not in caplog.text
    trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "resume" not in caplog.text
    trainer_of(tmp_path).train()
    assert f"{str(tmp_path)!r} holds checkpoints of an earlier run, up to step 6, which this new run" in caplog.text
    assert "start with `resume_from_checkpoint: true` (in Python, `trainer.train(resume_from" in caplog.text


@pytest.mark.parametrize(("step", "word"), [(1, "There is no checkpoint"), (5, "Go on from '{}/checkpoint-4' with")])
def test_an_interrupted_run_says_how_to_go_on_and_leaves_no_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int, word: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, At(step, interrupt)).train()
    assert f"The run was interrupted after step {step}. {word.format(tmp_path)}" in caplog.text
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / LOCK_NAME).exists()


# A loss that is no number.


def break_weights(model: Any) -> None:
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("inf")


@pytest.mark.parametrize(
    ("step", "word"), [(4, "checkpoint '{}/checkpoint-2'"), (1, "There is no checkpoint with finite")]
)
def test_a_loss_that_is_no_number_ends_the_run_with_the_last_good_checkpoint(
    tmp_path: Path, step: int, word: str
) -> None:
    trainer = trainer_of(tmp_path, At(step, break_weights))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert str(error.value).startswith(f"The loss of step {step + 1} is ")
    assert word.format(tmp_path) in str(error.value)
    if step == 4:  # it has been saved with its infinite weight
        assert find_checkpoint(tmp_path).path == tmp_path / "checkpoint-4"


def test_a_checkpoint_of_an_earlier_run_is_not_where_a_broken_one_goes_on(tmp_path: Path) -> None:
    trainer_of(tmp_path).train()
    with pytest.raises(FloatingPointError, match="There is no checkpoint with finite weights to go on from"):
        trainer_of(tmp_path, At(1, break_weights)).train()


def test_a_gradient_scaler_may_skip_some_steps_on_end(tmp_path: Path) -> None:
    guard, bad = LossGuard(config(tmp_path)), torch.tensor(float("inf"))
    for _ in range(3):
        for step in range(MOST_OVERFLOWS):
            guard.check(bad, step, is_scaled=True)
        guard.check(torch.tensor(1.0), 20, is_scaled=True)
    with pytest.raises(FloatingPointError, match="The loss of step 1 is inf"):
        guard.check(bad, 1, is_scaled=False)


# Checkpoints are rotated by step.


def test_the_clock_does_not_decide_which_checkpoints_stay(tmp_path: Path) -> None:
    class Clock(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (2e9 - 100 * state.global_step,) * 2)

    trainer = trainer_of(tmp_path, Clock(), save_total_limit=2)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert trainer.args.save_total_limit == 2


def test_what_was_just_written_and_what_was_best_stay(tmp_path: Path) -> None:
    def left(limit: int | None, *kept: str) -> list[str]:
        for step in (2, 4, 6, 10):
            (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
        rotate_checkpoints(tmp_path, limit, *(tmp_path / name for name in kept))
        return sorted(path.name.removeprefix("checkpoint-") for path in tmp_path.glob("checkpoint-*"))

    assert left(None) == left(0) == ["10", "2", "4", "6"]
    assert left(3) == ["10", "4", "6"]
    assert left(2, "checkpoint-2") == ["10", "2"]
    assert left(1, "checkpoint-4") == ["4"]  # those of later steps are of an earlier life
    assert left(1, "checkpoint-4", "checkpoint-2") == ["2", "4"]
