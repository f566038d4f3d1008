"""AdaLoRA in a trainer: its schedule, its penalty, and a resumed run that ends as an uninterrupted one."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from processes import run
from safetensors.torch import load_file
from toys import NotingTrainer, Stop, config, mixture, same_weights, tiny_model
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed
from transformers.trainer_callback import CallbackHandler

from hf_interp.tasks.adalora import SENSITIVITY, AdaLoraCallback, orthogonality
from hf_interp.tasks.presets import adapt, adapter_callbacks, load_adapter

ADALORA = {"preset": "adalora", "init_r": 4, "target_r": 2}
BATCH = {"input_ids": torch.tensor([[3, 4, 2], [1003, 5, 2]])}
STEPS = 12  # no rank is taken away in the first step and in the last 6


def adapted(adapter: Any = ADALORA, max_steps: int = STEPS) -> Any:
    model = tiny_model()
    set_seed(3)
    return adapt(model, adapter, task_type="SEQ_CLS", max_steps=max_steps)


def make_trainer(
    folder: Path, *callbacks: TrainerCallback, model: Any = None, evaluates: bool = False, **kwargs: Any
) -> NotingTrainer:
    return NotingTrainer(
        model=adapted() if model is None else model,
        args=config(folder, **{"max_steps": STEPS, "save_strategy": "steps", "save_steps": 4, **kwargs}),
        train_dataset=mixture(),
        eval_dataset=mixture()["domain"] if evaluates else None,
        callbacks=[*adapter_callbacks(ADALORA), *callbacks],
    )


def everything(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights, those of M₀ too."""
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def ranks(model: Any) -> list[int]:
    """Ranks that are left, by layer."""
    return [int((tensor != 0).sum()) for name, tensor in model.state_dict().items() if ".lora_E." in name]


class NotingRanks(TrainerCallback):
    """Notes ranks after each step."""

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ranks.append(sum(ranks(kwargs["model"])))


def test_the_schedule_is_shares_of_the_run() -> None:
    found = adapted(max_steps=5000).peft_config["default"]
    assert (found.total_step, found.tinit, found.tfinal, found.deltaT) == (5000, 500, 2500, 5)
    found = adapted({**ADALORA, "tinit": 1, "deltaT": 3}, max_steps=10).peft_config["default"]
    assert (found.total_step, found.tinit, found.tfinal, found.deltaT) == (10, 1, 5, 3)


def test_ranks_are_taken_away_down_to_the_target(tmp_path: Path) -> None:
    noting = NotingRanks()
    trainer = make_trainer(tmp_path, noting, save_strategy="no")
    trainer.train()
    layers = len(ranks(trainer.model))
    full, target = 4 * layers, 2 * layers
    assert layers == 7  # six of the encoder's layer, and the pooler
    # the cubic schedule of equation 12, of which the first step is whole and steps 6 and later are at the target
    budget = [full] + [int((full - target) * (1 - (step - 1) / 5) ** 3 + target) for step in range(2, 7)]
    assert noting.ranks == budget + [target] * 6


def test_a_saved_adapter_is_the_one_that_was_trained(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.train()
    trainer.save_model()
    left = ranks(trainer.model)
    assert len(set(left)) > 1
    loaded = load_adapter(tiny_model(), tmp_path)
    assert ranks(loaded) == left
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        expected = trainer.model.eval()(**BATCH).logits
        found = loaded(**BATCH, labels=labels)
    assert torch.equal(found.logits, expected)
    assert torch.equal(found.loss, torch.nn.functional.cross_entropy(expected, labels))


@pytest.mark.parametrize("stop", [4, 8], ids=["while ranks fall", "after the last decision"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, stop: int, accumulation: int) -> None:
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    first = make_trainer(tmp_path / "parts", Stop(stop), **options)
    first.train()
    assert first.state.global_step == stop
    second = make_trainer(tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == STEPS
    assert same_weights(everything(whole), everything(second))
    whole.save_model(str(tmp_path / "one"))
    second.save_model(str(tmp_path / "other"))
    assert same_weights(*(load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "other")))


@pytest.mark.slow
def test_without_their_scores_ranks_would_be_others(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    make_trainer(tmp_path / "parts", Stop(4)).train()
    path = tmp_path / "parts" / "checkpoint-4" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    assert sum(SENSITIVITY in state for state in saved["state"].values()) == 3 * 7
    for state in saved["state"].values():
        state.pop(SENSITIVITY, None)
    torch.save(saved, path)
    (path.parent / "checksums.json").unlink()  # of the file as it was
    second = make_trainer(tmp_path / "parts")
    second.train(resume_from_checkpoint=True)
    assert not same_weights(everything(whole), everything(second))


@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_can_be_resumed(tmp_path: Path) -> None:
    for stop in (4, 8):
        folder = tmp_path / str(stop)
        make_trainer(folder, Stop(stop), save_only_model=True).train()
        noting = NotingRanks()
        make_trainer(folder, noting, save_only_model=True).train(resume_from_checkpoint=True)
        assert noting.ranks[-1] == 14
        assert len(noting.ranks) == STEPS - stop


def train_one_of_two(folder: Path) -> None:
    trainer = make_trainer(folder, per_device_train_batch_size=2, save_strategy="no")
    trainer.train()
    torch.save(everything(trainer), folder / f"{trainer.args.process_index}.pt")


@pytest.mark.slow
def test_two_processes_agree_about_ranks(tmp_path: Path) -> None:
    run(tmp_path / "log", train_one_of_two, tmp_path, processes=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same_weights(one, other)
    assert sum(int((tensor != 0).sum()) for name, tensor in one.items() if ".lora_E." in name) == 14


def test_the_base_model_stays_as_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.train()
    plain = trainer.model.unload().state_dict()
    assert all(
        torch.equal(tensor, plain[name]) for name, tensor in tiny_model().bert.state_dict(prefix="bert.").items()
    )


def test_the_loss_is_without_the_penalty_in_training_and_evaluation(tmp_path: Path) -> None:
    model = adapted()
    batch = {**BATCH, "labels": torch.tensor([1, 0])}
    for mode in (True, False):
        model.train(mode)
        set_seed(0)
        output = model(**batch)
        assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.logits, batch["labels"]))
    assert model.peft_config["default"].orth_reg_weight == 0.1
    with pytest.raises(ValueError, match="batch_size"):
        model(input_ids=batch["input_ids"], labels=torch.tensor([1]))
    assert model.peft_config["default"].orth_reg_weight == 0.1


def test_the_penalty_is_that_of_the_paper() -> None:
    model = adapted({**ADALORA, "target_modules": ["query"]})
    factors = model.base_model.model.bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        factors.lora_A["default"].copy_(torch.eye(4, 16))
        factors.lora_B["default"].copy_(2 * torch.eye(16, 4))
    # ‖I − I‖ = 0 and ‖4I − I‖ = √(4·9) = 6
    assert orthogonality(model).item() == pytest.approx(3.0)


def test_the_penalty_is_added_once_a_step(tmp_path: Path) -> None:
    model = adapted()
    for parameter in model.parameters():
        parameter.grad = None
    args = config(tmp_path)
    handler = CallbackHandler([AdaLoraCallback()], model, None, None, None)
    handler.on_pre_optimizer_step(args, TrainerState(), TrainerControl())
    name = "base_model.model.bert.pooler.dense.lora_A.default"
    factor = model.get_parameter(name).detach().clone().requires_grad_()
    (0.1 * torch.linalg.matrix_norm(factor @ factor.T - torch.eye(4)) / 14).backward()
    torch.testing.assert_close(model.get_parameter(name).grad, factor.grad)


def test_a_schedule_of_another_length_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model=adapted(max_steps=10))
    with pytest.raises(ValueError, match="`total_step` must be the number of steps of the run, 12, got 10"):
        trainer.train()


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4])
def test_the_shortest_runs_end(tmp_path: Path, max_steps: int) -> None:
    trainer = make_trainer(tmp_path, model=adapted(max_steps=max_steps), max_steps=max_steps, save_strategy="no")
    trainer.train()
    trainer.save_model()
    assert isinstance(load_adapter(tiny_model(), tmp_path), peft.PeftModel)


def test_the_best_checkpoint_brings_its_own_ranks(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        evaluates=True,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        learning_rate=3e-2,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert same_weights(everything(trainer), dict(load_adapter(tiny_model(), best).state_dict()))
    assert sum(ranks(trainer.model)) == {2: 21, 4: 14}[int(best.rpartition("-")[2])]
