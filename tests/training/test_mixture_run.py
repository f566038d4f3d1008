"""The mixture of a run by itself, without a trainer: the plan, notes of batches, logs and what is saved."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import DOMAIN_FIRST, config, corpus
from transformers import TrainerState, TrainingArguments

from hf_interp import Corpus, InterpolatedDataset
from hf_interp.mixture.collators import OBJECTIVES_KEY
from hf_interp.mixture.slots import CORPUS_KEY, ORDER_KEY, STREAMS_KEY
from hf_interp.training.checkpoints import SavedRun
from hf_interp.training.mixture_run import MixtureRun, shard_batch

CORPORA = [Corpus("general", corpus(0, 40), "general"), Corpus("domain", corpus(DOMAIN_FIRST, 12), "domain")]


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def make_run(folder: Path, corpora: list[Corpus] | None = None, **kwargs: Any) -> tuple[MixtureRun, list[str]]:
    """A run, and what it warns of."""
    warnings: list[str] = []
    given = {name: kwargs.pop(name) for name in ("given_plan", "alpha_controller", "alpha_schedule") if name in kwargs}
    args = config(folder, **kwargs)
    return MixtureRun(corpora=corpora or CORPORA, args=args, reduce=alone, warn=warnings.append, **given), warnings


def begin(run: MixtureRun, saved: SavedRun | None = None) -> Any:
    shard = shard_batch(run.args, run.corpora, micro_batch_size=4, batch_size=4)
    return run.begin(shard, 4, saved)


def batch(corpora: list[int], **more: Any) -> dict[str, Any]:
    return {CORPUS_KEY: torch.tensor(corpora), ORDER_KEY: torch.tensor([1, 2]), "input_ids": torch.ones(4, 3), **more}


class FakeArguments:
    """One of eight processes that read with two workers."""

    gradient_accumulation_steps = 2
    dataloader_num_workers = 2
    world_size = 8
    process_index = 5


@pytest.mark.parametrize(
    ("batch_size", "processes", "index"),
    [(4 * 2 * 8, 8, 5), (4 * 2 * 4, 4, 2), (4 * 2, 1, 0)],  # a replica for each process, for two, for all
)
def test_processes_of_a_model_replica_share_their_part(batch_size: int, processes: int, index: int) -> None:
    args: Any = FakeArguments()
    shard = shard_batch(args, CORPORA, micro_batch_size=4, batch_size=batch_size)
    assert (shard.batch_size, shard.num_processes, shard.process_index, shard.num_workers) == (4, processes, index, 2)


def test_a_stream_that_nothing_divides_is_read_without_workers() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        """Something without shards."""

        def __iter__(self) -> Iterator[Any]:
            return iter(())

    args: Any = FakeArguments()
    corpora = [CORPORA[0], Corpus("stream", Stream(), "domain")]
    assert shard_batch(args, corpora, micro_batch_size=4, batch_size=64).num_workers == 0


def test_a_run_reads_what_its_plan_says(tmp_path: Path) -> None:
    run, warnings = make_run(tmp_path)
    slots = begin(run)
    assert [run.plan.alpha(step) for step in (0, 7)] == [0.0, 1.0]
    assert len(slots) == 8 * 4
    assert [row["input_ids"][0] >= DOMAIN_FIRST for row in slots.__getitems__(list(range(28, 32)))] == [True] * 4
    assert warnings == []
    assert run.plan.summary()["max_steps"] == 8
    assert run.order() == {"plan": run.plan.to_dict(), "decisions": []}


def test_plain_arguments_mix_half_and_half(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=4, use_cpu=True)
    run = MixtureRun(corpora=CORPORA, args=args, reduce=alone, warn=print)
    begin(run)
    assert run.plan.drawn_before(4).tolist() == [8, 8]


def test_warnings_of_the_plan_are_given_once(tmp_path: Path) -> None:
    run, warnings = make_run(tmp_path, alpha_end=0.0, alpha_start=0.0)
    begin(run)
    begin(run)
    assert warnings == ["Corpus 'domain' is never drawn. Raise its share, or move α, or leave it out."]


def test_a_plan_that_is_given_must_be_that_of_the_run(tmp_path: Path) -> None:
    plan = InterpolatedDataset(CORPORA, batch_size=4, max_steps=8).plan
    run, _ = make_run(tmp_path, given_plan=plan)
    begin(run)
    assert run.plan is plan
    other, _ = make_run(tmp_path, given_plan=plan, max_steps=9)
    with pytest.raises(ValueError, match="batch_size=4 and max_steps=8, but the trainer runs with 4 and 9"):
        begin(other)
    adaptive, _ = make_run(tmp_path, given_plan=plan, alpha_controller="guard")
    with pytest.raises(ValueError, match="A controller of α needs corpora"):
        begin(adaptive)


def test_what_a_batch_tells_is_noted_and_taken_out_of_it(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    begin(run)
    inputs = batch([0, 1, 1, 0], **{STREAMS_KEY: '{"0": {"web": {"num_read": 3}}}'})
    noted, rest = run.note_batch(inputs)
    assert rest is inputs
    assert noted is not None
    assert noted.tolist() == [0, 1, 1, 0]
    assert list(inputs) == ["input_ids"]
    assert run.stream_states == {"0": {"web": {"num_read": 3}}}
    assert run.meters.order.tolist() == [1, 2]
    assert run.is_general(noted).tolist() == [True, False, False, True]
    run.note_losses(noted, torch.tensor([1.0, 2.0, 4.0, 3.0]))
    assert run.meters.take_log(alone) == {"loss_general": 2.0, "loss_domain": 3.0}
    unmarked = {"input_ids": torch.ones(4, 3)}
    assert run.note_batch(unmarked) == (None, unmarked)


def test_tokens_are_counted_where_the_mixture_counts_them(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, mixture_unit="tokens")
    begin(run)
    run.note_batch(batch([0, 0, 0, 1], attention_mask=torch.tensor([[1, 0, 0]] * 3 + [[1, 1, 1]])))
    assert run.meters.take_log(alone) == {"token_share_general": 0.5, "token_share_domain": 0.5}


def test_losses_are_not_summed_where_nobody_asks(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, log_corpus_loss=False)
    begin(run)
    run.note_losses(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert run.meters.take_log(alone) == {}


def test_corpora_train_different_objectives(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, [CORPORA[0], Corpus("texts", corpus(0, 9), "domain", objective="masked-lm")])
    begin(run)
    assert run.mixes_objectives
    assert run.of_objective(torch.tensor([1, 0, 1]), "masked-lm").tolist() == [1, 1]
    assert run.of_objective(torch.tensor([1, 0, 1]), "").tolist() == [0]
    assert OBJECTIVES_KEY not in batch([0])


def test_a_decision_is_taken_from_losses_and_evaluations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Noting:
        """Notes what it is told."""

        def decide(self, steps: range, metrics: Any, schedule: Any) -> tuple[float, str]:
            asked.append((steps, metrics))
            return 0.25, "because"

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            """There is nothing to remember."""

    asked: list[Any] = []
    run, _ = make_run(tmp_path, alpha_controller=Noting(), alpha_update_steps=3, alpha_update_lag=2)
    begin(run)
    run.note_evaluation({"eval_loss": 4.0, "text": "left out"})
    run.note_losses(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    run.decide_alpha(TrainerState(global_step=2))  # five steps are fixed, and the lag is two
    assert asked == []
    with caplog.at_level(logging.INFO, logger="hf_interp"):
        run.decide_alpha(TrainerState(global_step=3, is_world_process_zero=True))
    assert asked == [(range(5, 8), {"eval_loss": 4.0, "general_loss": 1.0, "domain_loss": 2.0})]
    assert run.plan.alpha(6) == 0.25
    assert "α 0.2500 for the steps 5 to 7 (because)" in caplog.text
    assert [each["reason"] for each in run.order()["decisions"]] == ["because"]


def test_a_run_goes_on_from_what_it_has_saved(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    begin(run)
    run.note_batch(batch([0, 1, 1, 0]))
    run.note_evaluation({"eval_loss": 4.0})
    mixture = {**run.shared_state(), "plan": run.plan.to_dict()}
    saved = SavedRun(tmp_path, global_step=5, mixture=mixture, rank_states=[run.rank_state()])
    again, warnings = make_run(tmp_path)
    begin(again, saved)
    assert again.plan.fingerprint() == run.plan.fingerprint()
    assert (again.shared_state(), again.rank_state()) == (run.shared_state(), run.rank_state())
    assert warnings == []
    changed, warnings = make_run(tmp_path, seed=42, alpha_end=0.5)
    begin(changed, saved)
    assert changed.plan.start_step == 5
    assert changed.plan.consumed(5) == run.plan.consumed(5)
    assert "Going on from step 5 with other settings: the schedule of α" in warnings[-1]
    begin(changed)  # and afresh, what has been read is forgotten
    assert changed.plan.start_step == 0
    assert changed.meters.order.tolist() == [0, 0]


def test_a_run_may_begin_where_another_trainer_has_stopped(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    begin(run, SavedRun(tmp_path, global_step=5))
    assert (run.plan.start_step, run.plan.consumed(5)) == (5, {"general": 0, "domain": 0})


def test_the_hash_of_what_was_read_is_noted_once_a_step(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    begin(run)
    run.note_batch(batch([0, 1, 1, 0]))
    state = TrainerState(global_step=3, epoch=0.5, log_history=[{"loss": 1.0, "step": 3}])
    run.log_fingerprint(state)
    assert state.log_history == [{"loss": 1.0, "step": 3, "order_fingerprint": f"{(1 << 32) + 2:016x}"}]
    run.log_fingerprint(state)
    assert len(state.log_history) == 1
    state.global_step = 4
    run.log_fingerprint(state)
    run.log_fingerprint(state)
    assert state.log_history[1:] == [{"epoch": 0.5, "order_fingerprint": f"{(1 << 32) + 2:016x}", "step": 4}]
