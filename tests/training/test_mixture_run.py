"""The mixture of a run by itself, without a trainer: the plan, notes of batches, logs and what is saved."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from toy_recipes import toy_decoder
from toys import (
    DOMAIN_FIRST,
    NotingTrainer,
    config,
    corpus,
    logged,
    mixture,
    number_tokenizer,
    same_weights,
    tiny_model,
    weights,
)
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainerControl, TrainerState, TrainingArguments

from hf_interp import (
    AlphaCallback,
    Corpus,
    InterpolatedDataset,
    InterpolationConfig,
    InterpolationTrainer,
    MixturePlan,
    PackedCollator,
    pack,
)
from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.collators import OBJECTIVES_KEY
from hf_interp.mixture.corpus import as_corpora
from hf_interp.mixture.schedules import linear
from hf_interp.mixture.slots import CORPUS_KEY, ORDER_KEY, STREAMS_KEY, TOKENS_KEY, SlotDataset
from hf_interp.training.checkpoints import SavedRun
from hf_interp.training.mixture_run import MixtureRun, order_of, plan_mixture, shard_batch

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
    run.note_batch(batch([0, 0, 0, 1], **{TOKENS_KEY: torch.tensor([1, 1, 1, 3])}))
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


# `AlphaCallback` by itself, in the host's trainer.


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


# A trainer reads at random, in sequence or by length as its arguments say, and resumes to the bit.


def varied(first: int, count: int) -> datasets.Dataset:
    """Example i has the number first + i, and 1 to 9 more tokens."""
    rows = range(first, first + count)
    ids = [[number] + [3] * (1 + number * 7 % 9) for number in rows]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": [number % 2 for number in rows]})


def padded(rows: list[Any]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [list(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor([row["labels"] for row in rows])}


ORDERS: dict[str, dict[str, Any]] = {
    "random": {"mixture_sampling": "random"},
    "stopping": {"mixture_sampling": "random", "stopping_strategy": "first_exhausted", "max_steps": -1, "alpha": 0.3},
    "sequential": {"train_sampling_strategy": "sequential"},
    "by length": {"train_sampling_strategy": "group_by_length", "length_window": 3},
}


def trained(folder: Path, resume: Path | None = None, **settings: Any) -> Any:
    if "alpha" in settings:
        settings["alpha_schedule_type"] = None
    args = config(folder, save_strategy="steps", save_steps=4, **settings)
    data = {"general": varied(0, 25), "domain": varied(DOMAIN_FIRST, 12)}
    trainer = NotingTrainer(tiny_model(), args, train_dataset=data, data_collator=padded)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


SLOW = ("random", "sequential")


@pytest.mark.parametrize("order", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in ORDERS])
def test_a_run_reads_as_its_plan_says_and_resumes_to_the_bit(tmp_path: Path, order: str) -> None:
    whole = trained(tmp_path, **ORDERS[order])
    steps = whole.plan.max_steps
    assert steps == whole.state.global_step
    for step in range(steps):
        draw = whole.plan.locate(range(4 * step, 4 * step + 4))
        firsts = [0, DOMAIN_FIRST]
        expected = [firsts[corpus] + row for corpus, row in zip(draw.corpus, draw.example, strict=True)]
        assert whole.seen[step] == expected
    resumed = trained(tmp_path, tmp_path / "checkpoint-4", **ORDERS[order])
    assert resumed.seen == {step: whole.seen[step] for step in range(4, steps)}
    assert same_weights(weights(resumed), weights(whole))
    assert resumed.plan.fingerprint() == whole.plan.fingerprint()
    assert resumed.state.log_history[-2]["order_fingerprint"] == whole.state.log_history[-2]["order_fingerprint"]


def test_orders_differ_and_plain_arguments_have_them_too(tmp_path: Path) -> None:
    corpora = as_corpora({"general": varied(0, 25), "domain": varied(DOMAIN_FIRST, 12)})
    plans = [
        plan_mixture(corpora, config(tmp_path, **settings), batch_size=4)
        for settings in (
            {},
            *ORDERS.values(),
            {"train_sampling_strategy": "group_by_length"},
            {"train_sampling_strategy": "batch_rebalance"},
        )
        if settings.get("max_steps") != -1
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans) - 1  # batch_rebalance is that of the plan
    plain = InterpolationConfig.__mro__[1](str(tmp_path), train_sampling_strategy="group_by_length")
    assert order_of(plain, corpora).window == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture_sampling": "Random"}, "sampling of a mixture must be one of"),
        ({"stopping_strategy": "all_exhausted", "max_steps": -1}, "needs random sampling, got 'exact'"),
        (
            {"mixture_sampling": "random", "stopping_strategy": "all_exhausted"},
            r"ends the run, which `max_steps` \(8\) contradicts",
        ),
        (
            {
                "mixture_sampling": "random",
                "stopping_strategy": "all_exhausted",
                "max_steps": -1,
                "num_train_epochs": 2,
            },
            r"ends the run, which `num_train_epochs` \(2\) contradicts",
        ),
        ({"length_window": 0}, "`length_window` must be at least 1, got 0"),
        ({"mixture_sampling": "random", "train_sampling_strategy": "group_by_length"}, "which grouping by length does"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_a_strategy_that_ends_the_run_needs_an_alpha_that_stays(tmp_path: Path) -> None:
    args = config(tmp_path, mixture_sampling="random", stopping_strategy="all_exhausted", max_steps=-1)
    with pytest.raises(ValueError, match="needs a constant α"):
        plan_mixture(as_corpora(mixture()), args, batch_size=4)
    with pytest.raises(ValueError, match="needs a constant α"):
        plan_mixture(as_corpora(mixture()), args, linear(), batch_size=4)


# Streams.


def test_a_stream_goes_on_with_other_readers(tmp_path: Path) -> None:
    for index in range(8):
        ids = range(DOMAIN_FIRST + 4 * index, DOMAIN_FIRST + 4 * index + 4)
        lines = [json.dumps({"input_ids": [number, 2], "labels": number % 2}) + "\n" for number in ids]
        (tmp_path / f"{index}.jsonl").write_text("".join(lines))
    paths = sorted(str(path) for path in tmp_path.glob("*.jsonl"))
    seen: list[int] = []
    for workers, resume in ((0, None), (2, tmp_path / "checkpoint-8")):
        stream = datasets.load_dataset("json", data_files=paths, split="train", streaming=True)
        settings: dict[str, Any] = {"alpha_start": 0.5, "alpha_end": 0.5, "save_strategy": "steps", "save_steps": 8}
        args = config(tmp_path, max_steps=16, dataloader_num_workers=workers, **settings)
        data = {"general": varied(0, 25), "domain": stream}
        trainer = NotingTrainer(tiny_model(), args, train_dataset=data, data_collator=padded)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        steps = range(8) if resume is None else range(8, 16)
        seen += [number for step in steps for number in trainer.seen[step] if number >= DOMAIN_FIRST]
    assert sorted(seen) == list(range(DOMAIN_FIRST, DOMAIN_FIRST + 32))


# Packed sequences.

TEXTS = {"general": varied(0, 60), "domain": varied(DOMAIN_FIRST, 40)}


def packed(**settings: Any) -> dict[str, datasets.Dataset]:
    return {name: pack(data.select_columns("input_ids"), 25, **settings) for name, data in TEXTS.items()}


def decoder(attention: str = "sdpa") -> Any:
    torch.manual_seed(5)
    model = toy_decoder(2000)
    model.set_attn_implementation(attention)
    return model


def trainer_over(folder: Path, data: Any, model: Any = None, **settings: Any) -> InterpolationTrainer:
    collator = settings.pop("data_collator", PackedCollator(number_tokenizer()))
    return InterpolationTrainer(
        model or decoder(), config(folder, **settings), train_dataset=data, data_collator=collator
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_batch_costs_what_its_sequences_cost_alone(tmp_path: Path, attention: str) -> None:
    trainer = trainer_over(tmp_path, packed(strategy="bfd"), decoder(attention).double())
    by_length = sorted(trainer.corpora[1].dataset, key=lambda row: len(row["input_ids"]))
    examples = [*by_length[:2], *by_length[-2:]]
    assert len({len(each["input_ids"]) for each in examples}) > 1  # so that there is padding
    total, count = 0.0, 0
    for example in examples:
        starts = [place for place, position in enumerate(example["position_ids"]) if position == 0]
        for begin, end in zip(starts, [*starts[1:], None], strict=True):
            ids = torch.tensor([list(example["input_ids"][begin:end])])
            with torch.no_grad():
                logits = trainer.model(input_ids=ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    batch = trainer.data_collator(examples)
    with torch.no_grad():
        loss = trainer.model(**batch).loss
        masked = trainer.model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).loss
    assert float(loss) == pytest.approx(total / count, rel=1e-6)  # of a loss in float32
    assert float(masked) != pytest.approx(total / count, rel=1e-3)  # where they see each other


def test_a_packed_run_resumes_to_the_bit_and_tells_its_tokens(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "mixture_unit": "tokens"}
    data = packed(strategy="bfd")
    whole = trainer_over(tmp_path, data, **settings)
    whole.train()
    resumed = trainer_over(tmp_path, data, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same_weights(weights(resumed), weights(whole))
    before = [0, 0]
    for step in range(8):
        draw = whole.plan.locate(range(4 * step, 4 * step + 4))
        read = [0, 0]
        for index, row in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True):
            read[index] += len(data[("general", "domain")[index]][row]["input_ids"])
        assert logged(whole, "token_share_domain")[step] == pytest.approx(read[1] / sum(read))
        before = [old + new for old, new in zip(before, read, strict=True)]
        asked = sum(whole.plan.alpha(each) for each in range(step + 1)) / (step + 1)
        assert before[1] / sum(before) == pytest.approx(asked, abs=1.5 * 25 / sum(before))


def test_packed_examples_are_the_same_for_any_readers() -> None:
    corpora = packed(strategy="bfd")
    settings: dict[str, Any] = {"batch_size": 8, "max_steps": 6}
    alone = list(InterpolatedDataset(corpora, **settings))
    split = [list(InterpolatedDataset(corpora, **settings, num_processes=8, process_index=rank)) for rank in range(8)]
    assert [example for step in zip(*split, strict=True) for example in step] == alone


def test_a_model_that_lets_packed_sequences_see_each_other_is_refused(tmp_path: Path) -> None:
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=2000, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="OPTForCausalLM with 'sdpa' does not keep packed sequences apart"):
        trainer_over(tmp_path, packed(strategy="bfd"), opt)
    with pytest.raises(ValueError, match="Corpus 'general' is packed with `position_ids`, which need a `PackedColl"):
        trainer_over(tmp_path, packed(strategy="bfd"), data_collator=padded)
    assert trainer_over(tmp_path, packed(), data_collator=padded).plan is not None
