"""`AlphaCallback` by itself, in the host's trainer."""

from pathlib import Path

import pytest
from toys import config, corpus, mixture, tiny_model
from transformers import Trainer, TrainerControl, TrainerState

from hf_interp import AlphaCallback, Corpus, MixturePlan
from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.schedules import linear
from hf_interp.mixture.slots import SlotDataset


def planned() -> MixturePlan:
    corpora = [
        CorpusSpec(name="general", side="general", num_examples=10),
        CorpusSpec(name="stream", side="domain", num_examples=None),
    ]
    return MixturePlan(corpora, alpha_schedule=linear(), batch_size=4, max_steps=5)


def test_it_works_in_the_hosts_trainer(tmp_path: Path) -> None:
    corpora = [Corpus(side, dataset, side) for side, dataset in mixture().items()]
    plan = MixturePlan([part.spec() for part in corpora], alpha_schedule=linear(), batch_size=4, max_steps=5)
    args = config(tmp_path, max_steps=5, train_sampling_strategy="sequential", remove_unused_columns=False)
    callback = AlphaCallback()
    trainer = Trainer(tiny_model(), args, train_dataset=SlotDataset(plan, corpora), callbacks=[callback])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["alpha"] for entry in logs] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [entry["share_domain"] for entry in logs] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert callback.alpha == 1.0


def test_metrics_cover_the_steps_since_the_last_log() -> None:
    callback = AlphaCallback()
    callback.plan = planned()
    assert callback.metrics(2) == {"alpha": 0.25, "share_general": 0.875, "share_stream": 0.125, "passes_general": 0.7}
    assert callback.metrics(2) == {}
    assert callback.metrics(3) == {"alpha": 0.5, "share_general": 0.5, "share_stream": 0.5, "passes_general": 0.9}


def test_before_training_there_is_no_alpha() -> None:
    callback = AlphaCallback()
    assert callback.alpha is None
    assert callback.metrics(3) == {}
    assert callback.state() == {"args": {}, "attributes": {"last_logged_step": 0, "mixture": None}}


def test_its_state_holds_the_plan_and_what_the_trainer_adds(tmp_path: Path) -> None:
    callback = AlphaCallback()
    callback.plan = planned()
    callback.mixture = {"num_processes": 2}
    state = TrainerState(stateful_callbacks=[callback, TrainerControl()])
    state.save_to_json(str(tmp_path / "state.json"))
    loaded = TrainerState.load_from_json(str(tmp_path / "state.json"))
    assert loaded.stateful_callbacks["AlphaCallback"]["attributes"]["mixture"] == {
        "num_processes": 2,
        "plan": planned().to_dict(),
    }


def test_evaluation_logs_are_left_alone(tmp_path: Path) -> None:
    args = config(tmp_path, eval_strategy="steps", eval_steps=4)
    from hf_interp import InterpolationTrainer

    trainer = InterpolationTrainer(tiny_model(), args, train_dataset=mixture(), eval_dataset=corpus(0, 4))
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert not any("alpha" in entry for entry in evaluations)


def test_a_training_set_without_a_plan_is_an_error(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), config(tmp_path), train_dataset=corpus(0, 8), callbacks=[AlphaCallback()])
    with pytest.raises(ValueError, match="AlphaCallback needs a training dataset with a `plan`"):
        trainer.train()
