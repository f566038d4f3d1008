"""The trainer against its host, against itself under other splits of the work, and against interruptions."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models
from toys import (
    DOMAIN_FIRST,
    NotingHost,
    NotingTrainer,
    config,
    corpus,
    losses,
    mixture,
    same_weights,
    tiny_model,
    weights,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_interp import Corpus, InterpolatedDataset, InterpolationSeq2SeqTrainer, InterpolationTrainer
from hf_interp.mixture.controllers import Guard
from hf_interp.mixture.schedules import constant, linear


def run(
    output_dir: Path,
    *,
    dropout: float = 0.1,
    train_dataset: Any = None,
    resume: Any = None,
    controller: Any = None,
    **kwargs: Any,
) -> NotingTrainer:
    dataset = mixture() if train_dataset is None else train_dataset
    args = config(output_dir, **kwargs)
    trainer = NotingTrainer(tiny_model(dropout), args, train_dataset=dataset, alpha_controller=controller)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Swing:
    """A controller of one's own: raises α when the general loss falls, and lowers it when it grows."""

    def __init__(self) -> None:
        self.alpha, self.loss = 0.5, float("inf")

    def decide(self, steps: range, metrics: Any, schedule: Any) -> tuple[float, str]:
        loss = metrics.get("general_loss", self.loss)
        word, factor = ("raised", 1.1) if loss < self.loss else ("lowered", 0.9)
        self.alpha, self.loss = min(factor * self.alpha, 0.9), loss
        return self.alpha, f"{word}: the general loss is {loss:.4g}"

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "loss": self.loss}

    def load_state_dict(self, state: Any) -> None:
        self.alpha, self.loss = state["alpha"], state["loss"]


# With an ordinary dataset the trainer is its host.


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")  # its new name came during 5.x
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
        {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch"},
        {"train_sampling_strategy": "group_by_length"},
        {"gradient_checkpointing": True, "label_smoothing_factor": 0.1},
        {"lr_scheduler_type": "cosine", "max_grad_norm": 0.1, "weight_decay": 0.1},
    ],
)
def test_an_ordinary_dataset_trains_as_with_the_host(tmp_path: Path, arguments: dict[str, Any]) -> None:
    def train(kind: Any) -> Any:
        args = config(tmp_path / kind.__name__, **arguments)
        trainer = kind(
            tiny_model(), args, train_dataset=corpus(0, 22), eval_dataset={"a": corpus(30, 6), "b": corpus(50, 6)}
        )
        trainer.train()
        return trainer

    ours, host = train(NotingTrainer), train(NotingHost)
    assert ours.seen == host.seen
    assert losses(ours) == losses(host)
    assert same_weights(weights(ours), weights(host))
    assert ours.plan is None
    assert ours.alpha is None
    assert [type(callback) for callback in ours.callback_handler.callbacks] == [
        type(callback) for callback in host.callback_handler.callbacks
    ]


def test_an_ordinary_iterable_dataset_trains_as_with_the_host(tmp_path: Path) -> None:
    def train(kind: Any) -> Any:
        stream = corpus(0, 40).to_iterable_dataset()
        trainer = kind(tiny_model(), config(tmp_path / kind.__name__), train_dataset=stream)
        trainer.train()
        return trainer

    ours, host = train(NotingTrainer), train(NotingHost)
    assert ours.seen == host.seen
    assert same_weights(weights(ours), weights(host))


def test_predict_and_evaluate_are_the_hosts(tmp_path: Path) -> None:
    ours = InterpolationTrainer(tiny_model(), config(tmp_path), train_dataset=mixture(), eval_dataset=corpus(0, 6))
    host = NotingHost(tiny_model(), config(tmp_path), train_dataset=corpus(0, 6), eval_dataset=corpus(0, 6))
    assert ours.evaluate()["eval_loss"] == host.evaluate()["eval_loss"]
    assert (ours.predict(corpus(5, 6)).predictions == host.predict(corpus(5, 6)).predictions).all()


def test_the_last_entry_of_the_history_is_the_summary(tmp_path: Path) -> None:
    for settings in ({"logging_steps": 3}, {"logging_steps": 4, "save_strategy": "steps", "save_steps": 5}):
        trainer = run(tmp_path, **settings)
        assert {"train_runtime", "train_loss", "total_flos"} <= set(trainer.state.log_history[-1])
        prints = {
            entry["step"]: entry["order_fingerprint"]
            for entry in trainer.state.log_history
            if "order_fingerprint" in entry
        }
        assert prints[8] == f"{trainer.plan.read_hash(0, 8):016x}"
        assert list(prints) == ([3, 6, 8] if settings["logging_steps"] == 3 else [4, 5, 8])


# Another dataset than the trainer was made with.


def test_a_train_dataset_that_is_set_later_is_the_one_that_is_read(tmp_path: Path) -> None:
    plain, mixed, other = corpus(0, 22), mixture(), {"general": corpus(100, 40), "domain": corpus(1500, 12)}
    expected = {name: run(tmp_path, train_dataset=data) for name, data in (("mixed", mixed), ("other", other))}
    host = NotingHost(tiny_model(), config(tmp_path), train_dataset=plain)
    host.train()
    for first in (plain, mixed):
        trainer = NotingTrainer(tiny_model(), config(tmp_path), train_dataset=first)
        for name, data in (("other", other), ("mixed", mixed)):
            trainer.train_dataset, trainer.seen = data, {}
            trainer.train()
            assert trainer.seen == expected[name].seen
            assert trainer.alphas == expected[name].alphas
            assert [type(callback) for callback in trainer.callback_handler.callbacks] == [
                type(callback) for callback in expected[name].callback_handler.callbacks
            ]
        trainer.train_dataset, trainer.seen = plain, {}
        trainer.train()
        assert trainer.plan is None
        assert trainer.seen == host.seen
    trainer.train_dataset = {"general": plain}
    with pytest.raises(ValueError, match="no corpus has side 'domain'"):
        trainer.train()


# Collators of one's own.


class Frozen(Mapping[str, Any]):
    """A mapping that cannot be changed."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values_ = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


class Pairs(NotingTrainer):
    """Computes its loss from pairs of inputs and labels."""

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        return InterpolationTrainer.training_step(self, model, inputs, *args)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids, labels = inputs
        self.seen.setdefault(self.state.global_step, []).extend(ids[:, 0].tolist())
        self.alphas[self.state.global_step] = self.alpha
        return model(input_ids=ids, labels=labels).loss


def test_a_collator_may_return_a_tuple_or_a_mapping_that_cannot_be_changed(tmp_path: Path) -> None:
    def pair(examples: list[Any]) -> Any:
        batch = default_data_collator(examples)
        return batch["input_ids"], batch["labels"]

    whole = run(tmp_path, dropout=0.0)
    for kind, collator in ((Pairs, pair), (NotingTrainer, lambda examples: Frozen(default_data_collator(examples)))):
        trainer = kind(tiny_model(0.0), config(tmp_path), collator, mixture())
        trainer.train()
        assert trainer.seen == whole.seen
        assert same_weights(weights(trainer), weights(whole))
        assert [entry.get("order_fingerprint") for entry in trainer.state.log_history] == [
            entry.get("order_fingerprint") for entry in whole.state.log_history
        ]


# α and what is read.


def test_alpha_of_a_step_is_the_schedule_at_that_very_step(tmp_path: Path) -> None:
    trainer = run(tmp_path, max_steps=9, alpha_start=0.25, alpha_end=0.75)
    expected = {step: linear(0.25, 0.75)(step / 8) for step in range(9)}
    assert trainer.alphas == pytest.approx(expected, abs=2**-30)
    drawn = 0.0
    for step in range(9):
        drawn += expected[step] * 4
        realised = sum(number >= DOMAIN_FIRST for past in range(step + 1) for number in trainer.seen[past])
        assert abs(realised - drawn) <= 0.5 + 1e-6


@pytest.mark.parametrize("workers", [0, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_order_does_not_depend_on_workers_or_accumulation(tmp_path: Path, workers: int, accumulation: int) -> None:
    trainer = run(
        tmp_path,
        dataloader_num_workers=workers,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=8 // accumulation,
    )
    reference = InterpolatedDataset(
        mixture(), batch_size=8, max_steps=8, alpha_schedule=linear(), seed=trainer.args.seed
    )
    expected = [example["input_ids"][0] for example in reference]
    assert [number for step in range(8) for number in trainer.seen[step]] == expected
    assert trainer.alphas == {step: reference.plan.alpha(step) for step in range(8)}


def test_plain_training_arguments_mix_evenly(tmp_path: Path) -> None:
    plain = TrainingArguments(
        str(tmp_path), max_steps=5, per_device_train_batch_size=4, use_cpu=True, dataloader_pin_memory=False
    )
    trainer = NotingTrainer(tiny_model(), plain, train_dataset=mixture())
    trainer.train()
    assert [trainer.alphas[step] for step in range(5)] == [0.5] * 5
    counts = [sum(number >= DOMAIN_FIRST for number in trainer.seen[step]) for step in range(5)]
    assert counts == [2] * 5


def test_a_callable_schedule_wins_over_the_configuration(tmp_path: Path) -> None:
    args = config(tmp_path, max_steps=3, alpha_schedule_type="cosine")
    trainer = NotingTrainer(tiny_model(), args, train_dataset=mixture(), alpha_schedule=lambda progress: 1 - progress)
    trainer.train()
    assert list(trainer.alphas.values()) == [1.0, 0.5, 0.0]


def test_endpoints_draw_from_one_side(tmp_path: Path) -> None:
    for alpha in (0.0, 1.0):
        trainer = run(tmp_path, alpha_schedule_type="constant", alpha_end=alpha)
        assert all((number >= DOMAIN_FIRST) == bool(alpha) for seen in trainer.seen.values() for number in seen)


class Squares(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style torch dataset that counts how often it is read."""

    def __init__(self, first: int, count: int) -> None:
        self.rows, self.reads = list(corpus(first, count)), 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return {**self.rows[index], "note": "dropped by the host's collator"}


def test_every_form_of_mixture_reads_the_same(tmp_path: Path) -> None:
    general, domain = corpus(0, 40), corpus(DOMAIN_FIRST, 12)
    forms = [
        {"general": general, "domain": domain},
        {"general": {"general": general}, "domain": {"domain": domain}},
        [Corpus("general", general, "general"), Corpus("domain", domain, "domain")],
        {"general": Squares(0, 40), "domain": Squares(DOMAIN_FIRST, 12)},
        datasets.DatasetDict({"general": general, "domain": domain}),
        InterpolatedDataset(mixture(), batch_size=4, max_steps=8, alpha_schedule=linear(), seed=42),
    ]
    runs = [run(tmp_path, train_dataset=form, seed=42) for form in forms]
    assert all(trainer.seen == runs[0].seen for trainer in runs)
    assert all(same_weights(weights(trainer), weights(runs[0])) for trainer in runs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_read_in_its_own_order(tmp_path: Path, workers: int) -> None:
    dataset = {"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 6).to_iterable_dataset()}
    trainer = run(tmp_path, train_dataset=dataset, dataloader_num_workers=workers, gradient_accumulation_steps=2)
    # two workers take the micro-batches in turns, and the examples of the stream's one shard too
    read: list[list[int]] = [[] for _ in range(max(workers, 1))]
    for step, seen in trainer.seen.items():
        drawn = trainer.plan.drawn_before([step, step + 1])[:, 1]
        assert sum(number >= DOMAIN_FIRST for number in seen) == drawn[1] - drawn[0]
        for micro_batch in (0, 1):
            part = seen[4 * micro_batch : 4 * micro_batch + 4]
            read[micro_batch % len(read)] += [number for number in part if number >= DOMAIN_FIRST]
    for reader, numbers in enumerate(read):
        own = range(DOMAIN_FIRST + reader, DOMAIN_FIRST + 6, len(read))
        assert numbers == [own[place % len(own)] for place in range(len(numbers))]


def test_a_stream_that_cannot_be_divided_is_read_by_the_main_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Numbers(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[dict[str, Any]]:
            assert torch.utils.data.get_worker_info() is None
            yield from corpus(DOMAIN_FIRST, 100)

    trainer = run(tmp_path, train_dataset={"general": corpus(0, 40), "domain": Numbers()}, dataloader_num_workers=2)
    read = [number for step in range(8) for number in trainer.seen[step] if number >= DOMAIN_FIRST]
    assert read == list(range(DOMAIN_FIRST, DOMAIN_FIRST + len(read)))
    assert "`dataloader_num_workers` is taken as 0" in caplog.text
    assert "without `state_dict`" in caplog.text


def test_several_corpora_a_side_with_shares(tmp_path: Path) -> None:
    parts = [
        Corpus("web", corpus(0, 40), "general", share=0.75),
        Corpus("books", corpus(100, 40), "general", share=0.25),
        Corpus("law", corpus(DOMAIN_FIRST, 40), "domain"),
    ]
    trainer = run(
        tmp_path, train_dataset=parts, alpha_schedule_type="constant", alpha_end=0.5, per_device_train_batch_size=8
    )
    numbers = [number for seen in trainer.seen.values() for number in seen]
    assert [sum(low <= number < high for number in numbers) for low, high in ((0, 100), (100, 200), (1000, 2000))] == [
        24,
        8,
        32,
    ]


# Resume.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_resume_equals_no_interruption(tmp_path: Path, workers: int, accumulation: int) -> None:
    settings = {
        "dropout": 0.3,
        "save_strategy": "steps",
        "save_steps": 1,
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": accumulation,
    }
    whole = run(tmp_path, **settings)
    keys = ("alpha", "share_domain", "passes_domain", "loss", "loss_general", "epoch", "step")
    for step in (7, 5, 1):  # a resumed run writes later checkpoints anew
        resumed = run(tmp_path, resume=str(tmp_path / f"checkpoint-{step}"), **settings)
        assert resumed.seen == {late: whole.seen[late] for late in range(step, 8)}
        assert same_weights(weights(resumed), weights(whole))
        logged = [
            [[entry.get(key) for key in keys] for entry in trainer.state.log_history[:8]]
            for trainer in (whole, resumed)
        ]
        assert logged[0] == logged[1]
        # of 12 domain examples 16 were read, or 64, the 60th of them in the last step
        assert resumed.state.epoch == whole.state.epoch == {1: 16 / 12, 4: 5.0}[accumulation]


def test_resume_reads_nothing_again(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 5}
    run(tmp_path, **settings)
    parts = {"general": Squares(0, 40), "domain": Squares(DOMAIN_FIRST, 12)}
    run(tmp_path, train_dataset=parts, resume=str(tmp_path / "checkpoint-5"), **settings)
    assert sum(part.reads for part in parts.values()) == 3 * 4  # steps 5, 6 and 7


def test_a_collator_that_masks_at_random_resumes_exactly(tmp_path: Path) -> None:
    words = {"[MASK]": 0, "[PAD]": 1, **{f"w{number}": number for number in range(2, 2000)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[PAD]")), mask_token="[MASK]", pad_token="[PAD]"
    )
    parts = {side: dataset.remove_columns("labels") for side, dataset in mixture().items()}

    def train(resume: Any = None) -> Any:
        set_seed(3)
        model = BertForMaskedLM(
            BertConfig(vocab_size=2000, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        )
        args = config(tmp_path, save_strategy="steps", save_steps=3, max_steps=6)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
        trainer = NotingTrainer(model, args, collator, parts)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, resumed = train(), train(str(tmp_path / "checkpoint-3"))
    assert resumed.seen == {step: whole.seen[step] for step in (3, 4, 5)}
    assert same_weights(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    "settings",
    [
        {"restore_callback_states_from_checkpoint": True},
        {"ignore_data_skip": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_resume_with_other_settings_of_the_host_goes_on_alike(tmp_path: Path, settings: dict[str, Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = run(tmp_path, **saving)
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **saving, **settings)
    assert resumed.seen == {step: whole.seen[step] for step in range(4, 8)}
    assert resumed.alphas == {step: whole.alphas[step] for step in range(4, 8)}
    if "gradient_accumulation_steps" not in settings:  # which draws other numbers for dropout
        assert same_weights(weights(whole), weights(resumed))
    assert resumed.args.ignore_data_skip is settings.get("ignore_data_skip", False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 43}, "seed of the data was 42 and is now 43"),
        ({"max_steps": 4}, "`max_steps` is now 4: no step is left"),
        ({"train_dataset": mixture(domain=13)}, "Corpus 'domain' had 12 examples .* has 13 examples now"),
        ({"train_dataset": {"general": corpus(0, 40), "domain": corpus(999, 12)}}, "'domain' .* but others"),
    ],
)
def test_what_cannot_go_on_is_refused_before_a_step(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "seed": 42}
    run(tmp_path, **settings)
    trainer = NotingTrainer(
        tiny_model(),
        config(tmp_path, **{**settings, **{key: value for key, value in change.items() if key != "train_dataset"}}),
        train_dataset=change.get("train_dataset", mixture()),
    )
    with pytest.raises(ValueError, match=named):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.seen == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha_end": 0.5}, "the schedule of α"),
        ({"per_device_train_batch_size": 6}, "global batch: 4 -> 6"),
        ({"max_steps": 10}, "`max_steps`: 8 -> 10"),
        ({"train_dataset": {**mixture(), "general": {"general": corpus(0, 40), "new": corpus(500, 8)}}}, "'new' added"),
        ({"train_dataset": {"general": {"new": corpus(500, 20)}, "domain": corpus(1000, 12)}}, "'general' removed"),
        (
            {
                "train_dataset": [
                    Corpus("general", corpus(0, 40), "general"),
                    Corpus("domain", corpus(1000, 12), "domain", share=0.25),
                    Corpus("law", corpus(700, 10), "domain", share=0.75),
                ]
            },
            "share of corpus 'domain': 1 -> 0.25",
        ),
    ],
)
def test_a_run_goes_on_with_other_settings_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], named: str
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    first = run(tmp_path, **settings)
    second = run(tmp_path / "on", resume=str(tmp_path / "checkpoint-4"), **{**settings, **change})
    assert named in caplog.text
    assert sorted(second.seen) == list(range(4, second.state.max_steps))
    assert all(len(seen) == second.plan.batch_size for seen in second.seen.values())
    read: Counter[int] = Counter()
    for step in range(second.state.max_steps):
        read.update((first if step < 4 else second).seen[step])
        for numbers in (range(40), range(DOMAIN_FIRST, DOMAIN_FIRST + 12)):
            times = [read[number] for number in numbers]
            assert max(times) - min(times) <= 1  # none twice before all have been read once, and so on
    expected = second.plan.read_hash(0, second.state.max_steps)
    assert second.state.log_history[-2]["order_fingerprint"] == f"{expected:016x}"
    assert second.plan.consumed(second.state.max_steps)["general"] == sum(read[number] for number in range(40))


def test_the_order_is_logged_and_does_not_depend_on_workers_or_accumulation(tmp_path: Path) -> None:
    def fingerprints(**kwargs: Any) -> dict[int, str]:
        history = run(tmp_path, save_strategy="steps", save_steps=3, **kwargs).state.log_history
        return {entry["step"]: entry["order_fingerprint"] for entry in history if "order_fingerprint" in entry}

    plain = fingerprints(logging_steps=2)
    assert list(plain) == [2, 3, 4, 6, 8]
    assert len(set(plain.values())) == 5
    for arguments in (
        {"dataloader_num_workers": 2, "logging_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "logging_steps": 2},
    ):
        assert fingerprints(**arguments) == plain
    assert fingerprints(logging_steps=2, seed=43)[8] != plain[8]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("controller", [Guard(tolerance=0.001), Swing()])
def test_an_adaptive_alpha_is_replayed_on_resume(tmp_path: Path, controller: Any, workers: int) -> None:
    settings = {
        "max_steps": 24,
        "save_strategy": "steps",
        "save_steps": 7,  # between two decisions
        "controller": controller,
        "alpha_update_steps": 2,
        "alpha_update_lag": 5,
        "learning_rate": 3e-2,
    }
    whole = run(tmp_path, **settings)
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-14"), dataloader_num_workers=workers, **settings)
    assert resumed.seen == {step: whole.seen[step] for step in range(14, 24)}
    assert same_weights(weights(whole), weights(resumed))
    decisions = whole.results().order["decisions"]
    assert resumed.results().order["decisions"] == decisions
    assert [decision["from_step"] for decision in decisions] == list(range(7, 24, 2))
    assert [decision["step"] for decision in decisions] == list(range(2, 19, 2))
    assert len({decision["reason"].split(":")[0] for decision in decisions}) > 1  # it did not only follow the schedule
    assert whole.alphas == {step: whole.plan.alpha(step) for step in range(24)}
    assert resumed.plan.fingerprint() == whole.plan.fingerprint()


def test_a_guard_with_patience_is_the_schedule(tmp_path: Path) -> None:
    plain = run(tmp_path, max_steps=20)
    guarded = run(
        tmp_path,
        max_steps=20,
        alpha_controller="guard",
        alpha_controller_kwargs={"tolerance": 100.0},
        alpha_update_lag=1,
    )
    assert guarded.seen == plain.seen
    assert same_weights(weights(plain), weights(guarded))


def test_a_controller_of_ones_own_gets_metrics_of_both_sides_and_of_evaluations(tmp_path: Path) -> None:
    class Noting:
        def __init__(self) -> None:
            self.calls: list[tuple[range, list[str]]] = []

        def decide(self, steps: range, metrics: Any, schedule: Any) -> tuple[float, str]:
            self.calls.append((steps, sorted(key for key in metrics if key.endswith("loss"))))
            return 0.25, "because"

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            """There is nothing to remember."""

    args = config(tmp_path, max_steps=12, alpha_update_steps=4, alpha_update_lag=2, eval_strategy="steps", eval_steps=6)
    trainer = NotingTrainer(
        tiny_model(), args, train_dataset=mixture(), eval_dataset=corpus(0, 4), alpha_controller=Noting()
    )
    trainer.train()
    assert [trainer.plan.alpha(step) for step in range(6, 12)] == [0.25] * 6
    calls = trainer._run.adaptive.controller.calls
    assert calls == [
        (range(6, 10), ["domain_loss", "general_loss"]),
        (range(10, 12), ["domain_loss", "eval_loss", "general_loss"]),
    ]


def test_a_share_of_tokens_is_a_share_of_tokens(tmp_path: Path) -> None:
    def rows(first: int, count: int, length: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict(
            {
                "input_ids": [[number] * length for number in range(first, first + count)],
                "attention_mask": [[1] * length] * count,
                "labels": [0] * count,
            }
        )

    data = {"general": rows(0, 200, 4), "domain": rows(DOMAIN_FIRST, 200, 12)}
    arguments = {"max_steps": 10, "alpha_schedule_type": "constant", "alpha_end": 0.5, "logging_steps": 5}
    words = Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]"))
    padding = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    trainer = NotingTrainer(
        tiny_model(),
        config(tmp_path, mixture_unit="tokens", per_device_train_batch_size=16, **arguments),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(padding),
    )
    trainer.train()
    # a quarter of the examples, three times as long, makes half of the tokens
    assert trainer.plan.drawn_before(10).tolist() == [120, 40]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["alpha"], entry["token_share_domain"], entry["share_domain"]) for entry in logs] == [
        (0.5, 0.5, 0.25)
    ] * 2


def test_checkpoints_pass_between_host_and_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def host(output_dir: Path, resume: Any = None) -> NotingHost:
        args = config(output_dir, save_strategy="steps", save_steps=4)
        trainer = NotingHost(tiny_model(), args, train_dataset=corpus(0, 40))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    host(tmp_path / "host")
    ours = run(tmp_path / "ours", resume=str(tmp_path / "host" / "checkpoint-4"), save_strategy="steps", save_steps=4)
    assert sorted(ours.seen) == [4, 5, 6, 7]
    assert "written without a mixture" in caplog.text
    run(tmp_path / "first", save_strategy="steps", save_steps=4)
    assert host(tmp_path / "back", str(tmp_path / "first" / "checkpoint-4")).state.global_step == 8


# Logs and results.


def test_logs_tell_alpha_shares_passes_and_losses(tmp_path: Path) -> None:
    trainer = run(tmp_path, logging_steps=2, per_device_train_batch_size=8)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4, 6, 8]
    for entry in logs:
        seen = [number for step in (entry["step"] - 2, entry["step"] - 1) for number in trainer.seen[step]]
        share = sum(number >= DOMAIN_FIRST for number in seen) / len(seen)
        assert entry["alpha"] == trainer.alphas[entry["step"] - 1]
        assert entry["share_domain"] == share
        assert entry["share_general"] == 1 - share
        parts = [entry[f"share_{name}"] * entry.get(f"loss_{name}", 0.0) for name in ("general", "domain")]
        assert sum(parts) == pytest.approx(entry["loss"], rel=1e-4)
    assert logs[-1]["passes_domain"] == pytest.approx(32 / 12, abs=1e-6)


def test_corpus_losses_can_be_left_out(tmp_path: Path) -> None:
    trainer = run(tmp_path, log_corpus_loss=False)
    assert "alpha" in trainer.state.log_history[0]
    assert not any(key.startswith("loss_") for entry in trainer.state.log_history for key in entry)


def test_tensorboard_gets_what_is_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = run(tmp_path, report_to=["tensorboard"])
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    read = {event.step: event.value for event in events.Scalars("train/alpha")}
    assert read == pytest.approx({step + 1: alpha for step, alpha in trainer.alphas.items()})
    assert {"train/share_domain", "train/passes_domain", "train/loss_domain"} <= set(events.Tags()["scalars"])


def test_results_are_written_at_the_end(tmp_path: Path) -> None:
    args = config(tmp_path, eval_strategy="steps", eval_steps=8, eval_on_start=True, hub_token="hf_secret")
    evaluation = {"general": corpus(0, 6), "domain": corpus(DOMAIN_FIRST, 6)}
    trainer = InterpolationTrainer(tiny_model(), args, train_dataset=mixture(), eval_dataset=evaluation)
    trainer.train()
    text = (tmp_path / "results.json").read_text()
    found = json.loads(text)
    assert found["plan"]["fingerprint"] == trainer.plan.fingerprint()
    history = trainer.state.log_history
    assert found["base_metrics"]["general"]["loss"] == history[0]["eval_general_loss"]
    last = [entry["eval_general_loss"] for entry in history if "eval_general_loss" in entry][-1]
    assert found["final_metrics"]["general"]["loss"] == last
    assert found["forgetting"]["loss"] == last - history[0]["eval_general_loss"]
    assert found["versions"]["transformers"]
    assert "hf_secret" not in text


def test_callbacks_of_the_user_see_the_alpha_of_their_step(tmp_path: Path) -> None:
    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[tuple[str, float | None]] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.seen.append(("begin", trainer.alpha))

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seen.append(("end", trainer.alpha))

    watch = Watch()
    args = config(tmp_path, max_steps=3)
    trainer = InterpolationTrainer(tiny_model(), args, train_dataset=mixture(), callbacks=[watch])
    trainer.train()
    assert watch.seen == [(event, alpha) for alpha in (0.0, 0.5, 1.0) for event in ("begin", "end")]


# The host's features over a mixture.


def test_early_stopping_and_the_best_model(tmp_path: Path) -> None:
    args = config(
        tmp_path,
        learning_rate=0.0,
        max_steps=20,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_domain_loss",
        greater_is_better=False,
    )
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = InterpolationTrainer(
        tiny_model(), args, train_dataset=mixture(), eval_dataset={"domain": corpus(1000, 6)}, callbacks=[stop]
    )
    trainer.train()
    assert trainer.state.global_step == 6  # nothing is learnt at a rate of 0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


@pytest.mark.slow
def test_a_smaller_batch_found_by_the_host_is_planned_anew(tmp_path: Path) -> None:
    class Small(NotingTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            if len(inputs["input_ids"]) > 4:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args)

    args = config(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=8)
    trainer = Small(tiny_model(), args, train_dataset=mixture())
    trainer.train()
    assert trainer.plan.batch_size < 8
    assert [len(trainer.seen[step]) for step in range(8)] == [trainer.plan.batch_size] * 8
    assert trainer.alphas[7] == 1.0


@pytest.mark.slow
def test_what_was_read_before_the_host_starts_over_is_not_counted(tmp_path: Path) -> None:
    class TooLarge(InterpolationTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            count = len(inputs["input_ids"])
            loss = super().training_step(model, inputs, *args)
            if count > 4:
                raise RuntimeError("CUDA out of memory.")
            return loss

    args = config(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=8)
    trainer = TooLarge(tiny_model(), args, train_dataset=mixture())
    trainer.train()
    fingerprints = [entry["order_fingerprint"] for entry in trainer.state.log_history if "order_fingerprint" in entry]
    assert fingerprints == [f"{trainer.plan.read_hash(0, step):016x}" for step in range(1, 9)]


def test_a_controller_goes_on_with_another_lag_or_gives_way_to_another(tmp_path: Path) -> None:
    settings = {
        "max_steps": 16,
        "save_strategy": "steps",
        "save_steps": 6,
        "alpha_controller": "guard",
        "alpha_update_steps": 2,
        "alpha_update_lag": 2,
    }
    first = run(tmp_path, **settings)
    change = {"alpha_update_lag": 7, "dataloader_num_workers": 3}  # three workers fetch six batches ahead
    resumed = run(tmp_path / "lag", resume=str(tmp_path / "checkpoint-6"), **{**settings, **change})
    decisions = resumed.results().order["decisions"]
    assert decisions[:3] == first.results().order["decisions"][:3]
    held = decisions[3]
    assert (held["step"], held["from_step"], held["to_step"]) == (6, 10, 14)
    assert held["reason"].startswith("held")
    assert [resumed.plan.alpha(step) for step in range(10)] == [first.plan.alpha(step) for step in range(10)]
    assert [resumed.plan.alpha(step) for step in range(9, 14)] == [first.plan.alpha(9)] * 5
    assert [decision["from_step"] for decision in decisions[4:]] == [14]
    change = {"alpha_controller": None, "controller": Swing()}
    other = run(tmp_path / "other", resume=str(tmp_path / "checkpoint-6"), **{**settings, **change})
    assert type(other._run.adaptive.controller).__name__ == "Swing"
    assert "general loss" in other.results().order["decisions"][-1]["reason"]


def test_hyperparameter_search_over_alpha(tmp_path: Path) -> None:
    trainer = NotingTrainer(
        None,
        config(tmp_path, max_steps=4),
        train_dataset=mixture(),
        eval_dataset=corpus(DOMAIN_FIRST, 6),
        model_init=lambda trial: tiny_model(),
    )
    ends: list[float] = []

    def objective(metrics: dict[str, float]) -> float:
        ends.append(trainer.plan.alpha(3))
        return metrics["eval_loss"]

    best = trainer.hyperparameter_search(
        lambda trial: {"alpha_end": trial.suggest_categorical("alpha_end", [0.25, 0.75])},
        objective,
        n_trials=3,
        backend="optuna",
    )
    assert set(ends) <= {0.25, 0.75}
    assert best.hyperparameters["alpha_end"] in ends


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")  # its new name came during 5.x
def test_gradient_checkpointing_and_smoothing_over_a_mixture(tmp_path: Path) -> None:
    trainer = run(tmp_path, gradient_checkpointing=True, label_smoothing_factor=0.1)
    assert trainer.state.global_step == 8
    assert "loss_general" in trainer.state.log_history[0]


def test_training_twice_starts_anew(tmp_path: Path) -> None:
    trainer = NotingTrainer(tiny_model(), config(tmp_path), train_dataset=mixture())
    trainer.train()
    first, trainer.seen = trainer.seen, {}
    trainer.train()
    assert trainer.seen == first


def test_the_seq2seq_trainer_mixes_too(tmp_path: Path) -> None:
    from transformers import Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration

    args = Seq2SeqTrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    sizes = {"vocab_size": 2000, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    parts = {
        side: dataset.remove_columns("labels").add_column("labels", dataset["input_ids"])
        for side, dataset in mixture().items()
    }
    trainer = InterpolationSeq2SeqTrainer(model, args, default_data_collator, parts, alpha_schedule=linear())
    trainer.train()
    assert [entry["alpha"] for entry in trainer.state.log_history if "alpha" in entry] == [0.0, 0.5, 1.0]
    assert "loss_domain" in trainer.state.log_history[2]


# Bad input, refused when the trainer is made.


def named(*names: str) -> datasets.Dataset:
    return mixture()["general"].cast_column("labels", datasets.ClassLabel(names=list(names)))


@pytest.mark.parametrize(
    ("arguments", "dataset", "message"),
    [
        ({"max_steps": 0}, None, "`max_steps` must be at least 1, got 0"),
        ({"dataloader_in_order": False}, None, "dataloader_in_order=True"),
        ({"accelerator_config": {"split_batches": True}}, None, "split_batches=False"),
        ({"alpha_controller": "guard", "alpha_update_lag": 2, "dataloader_num_workers": 2}, None, "at least 5, got 2"),
        ({"mixture_unit": "tokens"}, {"general": corpus(0, 4), "domain": [{"labels": 1}]}, "length of corpus 'domain'"),
        ({"alpha_initial_steps": 5, "alpha_target_steps": 4}, None, "must fit into max_steps=8"),
        ({}, {"general": corpus(0, 4), "domian": corpus(9, 4)}, "Did you mean 'domain'"),
        ({}, {"general": corpus(0, 4)}, "no corpus has side 'domain'"),
        ({}, {"general": corpus(0, 4), "domain": corpus(9, 0)}, "Corpus 'domain' is empty"),
        ({}, {"general": corpus(0, 4), "domain": corpus(9, 4).remove_columns("labels")}, r"'domain' lacks.*'labels'"),
        ({}, [Corpus("a", corpus(0, 4), "general"), Corpus("a", corpus(0, 4))], "different names"),
        ({}, [Corpus("a", corpus(0, 4), "general"), Corpus("b", corpus(9, 4), share=0.5)], "sum to 1"),
        ({}, [Corpus("a", corpus(0, 4), "general"), Corpus("b", corpus(9, 4), max_passes=2)], "read 4.00 times"),
        (
            {},
            {**mixture(), "domain": mixture()["domain"].map(lambda row: {"labels": 2})},
            r"'domain' has the label 2 .*num_labels=3",
        ),
        (
            {},
            {"general": named("neg", "pos"), "domain": named("pos", "neg")},
            r"differ in column 'labels': \['neg', 'pos'\] and \['pos', 'neg'\]",
        ),
        (
            {},
            InterpolatedDataset(mixture(), batch_size=8, max_steps=8, alpha_schedule=linear()),
            "batch_size=8 and max_steps=8, but the trainer runs with 4 and 8",
        ),
    ],
)
def test_bad_mixtures_are_refused_at_once(
    tmp_path: Path, arguments: dict[str, Any], dataset: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NotingTrainer(tiny_model(), config(tmp_path, **arguments), train_dataset=dataset or mixture())


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), "half"])
def test_a_schedule_out_of_range_at_any_step_is_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ValueError, match="step 7"):
        NotingTrainer(
            tiny_model(), config(tmp_path), train_dataset=mixture(), alpha_schedule=lambda p: bad if p == 1 else 0.5
        )


def test_a_schedule_without_a_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a mixture"):
        InterpolationTrainer(tiny_model(), config(tmp_path), train_dataset=corpus(0, 4), alpha_schedule=constant(0.5))
