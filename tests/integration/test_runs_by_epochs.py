"""Runs that are counted in epochs: events, evaluation, saving and stopping fall where the plan has borders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import DOMAIN_FIRST, NotingTrainer, config, corpus, mixture, same_weights, tiny_model, weights
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_interp import InterpolatedDataset
from hf_interp.mixture.schedules import constant
from hf_interp.train import run_recipe


class Events(TrainerCallback):
    """Notes the steps at which epochs begin and end, and what happens at their ends."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: dict[str, list[int]] = {"begin": [], "end": [], "evaluate": [], "save": []}
        self.epochs: list[float] = []
        self.stop_at = stop_at

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["begin"].append(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop |= state.global_step == self.stop_at

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["end"].append(state.global_step)
        self.epochs.append(state.epoch)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["evaluate"].append(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["save"].append(state.global_step)


def run(folder: Path, *callbacks: Any, resume: Any = None, train_dataset: Any = None, **settings: Any) -> NotingTrainer:
    """Train for two passes over 12 domain examples, of which α = 0.5 puts two into each step."""
    kwargs = {"max_steps": -1, "num_train_epochs": 2, "alpha_schedule_type": "constant", "alpha_end": 0.5}
    trainer = NotingTrainer(
        tiny_model(0.3),
        config(folder, **{**kwargs, **settings}),
        train_dataset=train_dataset or mixture(),
        eval_dataset=corpus(0, 4),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


BY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.mark.parametrize(
    ("settings", "ends", "epoch"),
    [
        ({}, [6, 12], 2),
        ({"num_train_epochs": 2.5}, [6, 12, 15], 2.5),
        ({"mixture_epoch": "general", "num_train_epochs": 1}, [20], 1),
        ({"mixture_epoch": "all", "num_train_epochs": 1}, [13], 1),
        ({"max_steps": 8}, [6, 8], 16 / 12),
        ({"alpha_schedule_type": "linear", "alpha_end": 1.0}, [9, 12], 2),
        ({"gradient_accumulation_steps": 2}, [3, 6], 2),
        ({"alpha_controller": "guard", "alpha_schedule_type": "linear", "max_steps": 12, "alpha_end": 1.0}, [9, 12], 2),
    ],
)
def test_events_by_epoch_fall_on_the_borders(
    tmp_path: Path, settings: dict[str, Any], ends: list[int], epoch: float
) -> None:
    events = Events()
    trainer = run(tmp_path, events, **BY_EPOCH, **settings)
    assert events.seen == {"begin": [0, *ends[:-1]], "end": ends, "evaluate": ends, "save": ends}
    assert trainer.state.epoch == epoch
    assert events.epochs == [*range(1, len(ends)), epoch]
    assert (trainer.state.max_steps, trainer.state.global_step) == (ends[-1], ends[-1])
    assert trainer.state.num_train_epochs == len(ends)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{end}" for end in ends}


def test_a_mixture_of_the_domain_alone_counts_as_the_host_does(tmp_path: Path) -> None:
    ours, theirs = Events(), Events()
    settings = {**BY_EPOCH, "max_steps": -1, "num_train_epochs": 3}
    mixed = run(tmp_path / "a", ours, alpha_end=1.0, num_train_epochs=3, **BY_EPOCH)
    host = Trainer(
        tiny_model(),
        config(tmp_path / "b", **settings),
        train_dataset=mixture()["domain"],
        eval_dataset=corpus(0, 4),
        callbacks=[theirs],
    )
    host.train()
    assert ours.seen == theirs.seen
    assert ours.epochs == theirs.epochs == [1, 2, 3]
    for name in ("max_steps", "global_step", "num_train_epochs", "epoch"):
        assert getattr(mixed.state, name) == getattr(host.state, name), name


def test_early_stopping_stops_a_run_by_epochs(tmp_path: Path) -> None:
    events = Events()
    stopping = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=9.0)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer = run(tmp_path, events, stopping, num_train_epochs=9, **best, **BY_EPOCH)
    assert events.seen["evaluate"] == [6, 12, 18]
    assert trainer.state.global_step == 18
    assert trainer.state.max_steps == 54


def test_an_epoch_that_is_stopped_is_followed_by_the_next(tmp_path: Path) -> None:
    whole, stopped, events = run(tmp_path), None, Events(stop_at=2)
    stopped = run(tmp_path, events)
    assert events.seen["begin"] == [0, 2, 6]
    assert events.seen["end"] == [2, 6, 12]
    assert stopped.seen == whole.seen  # nothing is left out
    assert same_weights(weights(stopped), weights(whole))


def test_a_loader_that_is_made_meanwhile_changes_nothing(tmp_path: Path) -> None:
    class Curious(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.get_train_dataloader()

    whole = run(tmp_path)
    args = config(tmp_path, max_steps=-1, num_train_epochs=2, alpha_schedule_type="constant", alpha_end=0.5)
    trainer = NotingTrainer(tiny_model(0.3), args, train_dataset=mixture(), callbacks=[Curious()])
    trainer.train()
    assert trainer.seen == whole.seen
    assert same_weights(weights(trainer), weights(whole))


class Told(torch.utils.data.Dataset[dict[str, Any]]):
    """Gives the number of the epoch it has been told as its first token."""

    epoch = -1

    def __len__(self) -> int:
        return 12

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": [DOMAIN_FIRST + self.epoch, 1, 2], "labels": index % 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_datasets_are_told_their_epoch(tmp_path: Path, workers: int) -> None:
    parts = {"general": corpus(0, 40), "domain": Told()}
    trainer = run(tmp_path, train_dataset=parts, dataloader_num_workers=workers, num_train_epochs=3)
    told = [{number for number in trainer.seen[step] if number >= DOMAIN_FIRST} for step in range(18)]
    assert told == [{DOMAIN_FIRST + step // 6} for step in range(18)]


@pytest.mark.parametrize(
    ("step", "strategy", "workers"),
    [(6, "epoch", 0), (8, "steps", 0), pytest.param(6, "epoch", 2, marks=pytest.mark.slow), (8, "steps", 2)],
)
def test_a_run_by_epochs_is_resumed_exactly(tmp_path: Path, step: int, strategy: str, workers: int) -> None:
    settings = {"save_strategy": strategy, "save_steps": 2, "eval_strategy": "epoch", "num_train_epochs": 3}
    settings["dataloader_num_workers"] = workers
    whole, events = run(tmp_path, **settings), Events()
    resumed = run(tmp_path, events, resume=str(tmp_path / f"checkpoint-{step}"), **settings)
    assert events.seen["end"] == [12, 18]
    assert same_weights(weights(resumed), weights(whole))
    assert resumed.seen == {late: whole.seen[late] for late in range(step, 18)}
    assert resumed.state.epoch == whole.state.epoch == 3


def test_a_run_that_is_over_is_not_gone_on_with(tmp_path: Path) -> None:
    whole, events = run(tmp_path, **BY_EPOCH), Events()
    resumed = run(tmp_path, events, resume=str(tmp_path / "checkpoint-12"), **BY_EPOCH)
    assert events.seen["evaluate"] == events.seen["save"] == []
    assert same_weights(weights(resumed), weights(whole))


def test_an_interpolated_dataset_brings_its_steps(tmp_path: Path) -> None:
    planned = InterpolatedDataset(mixture(), batch_size=4, max_steps=7, alpha_schedule=constant(0.5))
    trainer = run(tmp_path, train_dataset=planned)
    assert (trainer.state.global_step, trainer.state.epoch) == (7, pytest.approx(14 / 12))


def test_other_epochs_than_those_of_a_side_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`mixture_epoch` must be domain or general or all, got 'both'"):
        config(tmp_path, mixture_epoch="both")
    with pytest.raises(ValueError, match="α asks for too few domain examples: 2 passes"):
        run(tmp_path, alpha_end=0.0)


def test_a_recipe_may_count_epochs(toy_recipe: dict[str, Any]) -> None:
    toy_recipe |= {"max_steps": None, "num_train_epochs": 2, "alpha_schedule_type": "constant", "alpha_end": 0.5}
    results = run_recipe({**toy_recipe, "eval_strategy": "epoch", "save_strategy": "epoch"})
    assert results.plan["max_steps"] == 12
    evaluated = {entry["step"] for entry in results.log_history if any(key.startswith("eval_") for key in entry)}
    assert {6, 12} <= evaluated <= {0, 6, 12}
    assert (Path(toy_recipe["output_dir"]) / "checkpoint-6").is_dir()
