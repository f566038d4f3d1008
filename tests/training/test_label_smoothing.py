"""Label smoothing over a mixture, a remedy for labels that may be wrong: the loss of `Trainer`, in every split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import processes
import pytest
import torch
from toys import DOMAIN_FIRST, NotingTrainer, config, corpus, losses, tiny_model, weights
from transformers import BertForTokenClassification, Trainer, set_seed

SMOOTHING = {"label_smoothing_factor": 0.2}


def token_corpus(first: int, count: int) -> datasets.Dataset:
    """Five tokens an example, of which the first one to four have a label."""
    rows = range(first, first + count)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[number, *(1 + number * place % 1999 for place in range(2, 6))] for number in rows],
            "labels": [[number % 2 if place <= number % 4 else -100 for place in range(5)] for number in rows],
        }
    )


def tokens_model() -> BertForTokenClassification:
    shape = tiny_model(0.0).config
    set_seed(7)
    return BertForTokenClassification(shape)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[int, int], datasets.Dataset]]] = {
    "examples": (lambda: tiny_model(0.0), corpus),
    "tokens": (tokens_model, token_corpus),
}


def run(folder: Path, kind: str, batch_size: int = 8, **kwargs: Any) -> NotingTrainer:
    """Train over a mixture with global batches of eight."""
    make_model, make_corpus = KINDS[kind]
    settings = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 8 // batch_size,
        "optim": "sgd",
        "learning_rate": 0.5,
        **kwargs,
    }
    data = {"general": make_corpus(0, 40), "domain": make_corpus(DOMAIN_FIRST, 12)}
    eval_data = {side: dataset.select(range(8)) for side, dataset in data.items()}
    trainer = NotingTrainer(make_model(), config(folder, **settings), train_dataset=data, eval_dataset=eval_data)
    trainer.train()
    return trainer


def first_batch(trainer: NotingTrainer, kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the first step has read, and which of it is of the domain."""
    numbers = trainer.seen[0]
    rows = [KINDS[kind][1](number, 1)[0] for number in numbers]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return batch, torch.tensor(numbers) >= DOMAIN_FIRST


@pytest.mark.parametrize("kind", KINDS)
def test_eight_times_one_equals_one_times_eight(tmp_path: Path, kind: str) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 8, "per_device_eval_batch_size": 8, **SMOOTHING}
    whole, split = run(tmp_path, kind, 8, **settings), run(tmp_path, kind, 1, **settings)
    for key in ("loss", "grad_norm", "loss_general", "loss_domain", "eval_general_loss", "eval_domain_loss"):
        logged = [[entry[key] for entry in trainer.state.log_history if key in entry] for trainer in (whole, split)]
        assert logged[0]
        assert logged[1] == pytest.approx(logged[0], rel=1e-4), key
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, rtol=1e-4, atol=1e-6)


def train_apart(folder: str, name: str, kind: str, batch_size: int, accumulation: int) -> None:
    """Train in one of the processes and write down what was logged and learnt."""
    trainer = run(
        Path(folder),
        kind,
        batch_size,
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=8,
        per_device_eval_batch_size=4,
        **SMOOTHING,
    )
    keys = ("loss", "loss_domain", "eval_domain_loss")
    logged = {key: [entry[key] for entry in trainer.state.log_history if key in entry] for key in keys}
    rank = trainer.args.process_index
    Path(folder, f"{name}{rank}.json").write_text(json.dumps(logged))
    torch.save(trainer.model.state_dict(), Path(folder, f"{name}{rank}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(tmp_path: Path, kind: str) -> None:
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "whole", kind, 8, 1)
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "part", kind, 2, 2, processes=2)
    whole, *parts = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole0", "part0", "part1"))
    for part in parts:
        for key, values in whole.items():
            assert len(values) >= 1
            assert part[key] == pytest.approx(values, rel=1e-4), key
    states = [torch.load(tmp_path / f"{name}.pt") for name in ("whole0", "part0", "part1")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)
        assert torch.equal(states[1][name], states[2][name])


@pytest.mark.parametrize("batch_size", [8, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixtures_smoothed_loss_is_the_hosts_on_the_same_batch(tmp_path: Path, kind: str, batch_size: int) -> None:
    trainer = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1, **SMOOTHING)
    batch, is_domain = first_batch(trainer, kind)
    assert is_domain.sum() == 4
    host = Trainer(KINDS[kind][0](), config(tmp_path, **SMOOTHING))
    expected = host.compute_loss(host.model, dict(batch)).item()
    assert losses(trainer) == pytest.approx([expected], rel=1e-5)
    plain = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1)
    assert losses(plain)[0] != pytest.approx(expected, rel=1e-5)
