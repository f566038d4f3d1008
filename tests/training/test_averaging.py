"""The mean of the weights: against a mean by hand, on resume, with adapters, batch norms and divided weights."""

from pathlib import Path
from typing import Any

import peft
import processes
import pytest
import torch
from toys import config, corpus, mixture, same_weights, tiny_model, weights
from transformers import TrainerCallback, set_seed

from hf_interp import InterpolationTrainer


class Note(TrainerCallback):
    """Notes what is trained after each step, and ends a run early if it is told to."""

    def __init__(self, last_step: int | None = None) -> None:
        self.last_step = last_step
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.seen.append({name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad})
        control.should_training_stop |= state.global_step == self.last_step


def trained(output_dir: Path | str, model: Any = None, **kwargs: Any) -> tuple[InterpolationTrainer, Note]:
    resume, note = kwargs.pop("resume", None), Note(kwargs.pop("last_step", None))
    settings = {"average_from": 0.5, "lr_scheduler_type": "constant_with_warmup", **kwargs}
    data = settings.pop("train_dataset", None) or mixture()
    model = tiny_model() if model is None else model
    trainer = InterpolationTrainer(model, config(output_dir, **settings), train_dataset=data, callbacks=[note])
    trainer.train(resume_from_checkpoint=resume)
    return trainer, note


@pytest.mark.parametrize(("begin", "first"), [(0.0, 0), (0.5, 4), (0.6, 4), (0.99, 7)])
def test_the_model_ends_with_the_mean_of_the_steps_after_its_share_of_the_run(
    tmp_path: Path, begin: float, first: int
) -> None:
    trainer, note = trained(tmp_path, average_from=begin)
    assert trainer.weight_average is not None
    assert trainer.weight_average.count == 8 - first
    for name, parameter in trainer.model.named_parameters():
        mean = torch.stack([step[name].double() for step in note.seen[first:]]).mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=1e-5, atol=1e-7)


def test_the_last_weights_are_those_of_a_run_without_a_mean(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path, average_from=None)
    averaged, _ = trained(tmp_path)
    mean = weights(averaged)
    assert not same_weights(weights(plain), mean)
    assert averaged.weight_average is not None
    with averaged.weight_average.last_weights():
        assert same_weights(weights(plain), weights(averaged))
    assert same_weights(weights(averaged), mean)


def test_it_needs_no_mixture(tmp_path: Path) -> None:
    trainer, note = trained(tmp_path, train_dataset=corpus(0, 40))
    mean = torch.stack([step["classifier.bias"] for step in note.seen[4:]]).mean(0)
    torch.testing.assert_close(trainer.model.classifier.bias.detach(), mean)


@pytest.mark.parametrize("saved", [3, 6])
def test_resume_equals_no_interruption(tmp_path: Path, saved: int) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole, _ = trained(tmp_path / "whole", **settings)
    trained(tmp_path / "cut", last_step=7, **settings)
    checkpoint = tmp_path / "cut" / f"checkpoint-{saved}"
    assert (checkpoint / "weight_average_0.safetensors").is_file() == (saved == 6)
    resumed, _ = trained(tmp_path / "cut", resume=str(checkpoint), **settings)
    assert same_weights(weights(whole), weights(resumed))


def test_a_checkpoint_without_the_mean_is_refused_where_there_should_be_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    trained(tmp_path, average_from=None, **settings)
    with pytest.raises(ValueError, match=r"`average_from` is 0\.5, but the checkpoint .*checkpoint-6"):
        trained(tmp_path, resume=str(tmp_path / "checkpoint-6"), **settings)
    resumed, _ = trained(tmp_path, resume=str(tmp_path / "checkpoint-6"), **{**settings, "average_from": 0.8})
    assert resumed.weight_average is not None
    assert resumed.weight_average.count == 2


def test_of_an_adapter_the_adapter_is_averaged(tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules=["query", "value"]))
    before = {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}
    trainer, note = trained(tmp_path, model)
    assert trainer.weight_average is not None
    assert set(trainer.weight_average._means) == set(note.seen[0])
    for name, parameter in model.named_parameters():
        kept = before.get(name)
        expected = torch.stack([step[name] for step in note.seen[4:]]).mean(0) if kept is None else kept
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


class WithBatchNorm(torch.nn.Module):
    """A classifier with the mean of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        set_seed(1)
        self.table = torch.nn.Embedding(2000, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.norm(self.table(input_ids).mean(1)))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_statistics_of_batch_norms_are_averaged_like_weights(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(kwargs["model"].norm.running_mean.clone())

    model = WithBatchNorm()
    args = config(tmp_path, average_from=0.5)
    trainer = InterpolationTrainer(model, args, train_dataset=mixture(), callbacks=[Watch()])
    trainer.train()
    torch.testing.assert_close(model.norm.running_mean, torch.stack(seen[4:]).mean(0))


def test_weights_in_bf16_are_averaged_in_float32(tmp_path: Path) -> None:
    trainer, note = trained(tmp_path, tiny_model().to(torch.bfloat16), average_from=0.0)
    for name, parameter in trainer.model.named_parameters():
        mean = torch.stack([step[name].float() for step in note.seen]).mean(0).bfloat16()
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-2, atol=1e-4)


def train_apart(folder: str, name: str, sizes: tuple[int, int]) -> None:
    settings = {"per_device_train_batch_size": sizes[0], "gradient_accumulation_steps": sizes[1], "optim": "sgd"}
    trainer, _ = trained(Path(folder) / name, tiny_model(0.0), **settings)
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), Path(folder) / f"{name}.pt")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "whole", (4, 1))
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "part", (2, 1), processes=2)
    whole, part = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "part"))
    for name, tensor in whole.items():
        torch.testing.assert_close(part[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1])
def test_a_mean_over_nothing_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"`average_from` must be a share of the run in \[0, 1\)"):
        config(tmp_path, average_from=value)


def test_the_best_step_and_the_mean_are_not_both_left_in_the_model(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    args = config(tmp_path, average_from=0.5, **best)
    with pytest.raises(ValueError, match="Choose one"):
        InterpolationTrainer(tiny_model(), args, train_dataset=mixture(), eval_dataset=corpus(0, 8))


def test_a_second_run_begins_a_mean_of_its_own(tmp_path: Path) -> None:
    trainer, note = trained(tmp_path)
    trainer.train()
    assert trainer.weight_average is not None
    assert trainer.weight_average.count == 4
    for name, parameter in trainer.model.named_parameters():
        mean = torch.stack([step[name] for step in note.seen[12:]]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-5, atol=1e-7)
