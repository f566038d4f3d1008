"""Objectives of single corpora: the loss, its split, resuming, processes, adapters, evaluation, and what is refused."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import datasets
import processes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from toys import DOMAIN_FIRST, config, corpus, logged, masked_model, number_tokenizer, same_weights, tiny_model, weights
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    TrainingArguments,
    default_data_collator,
    pipeline,
    set_seed,
)

from hf_interp import Corpus, InterpolationTrainer
from hf_interp.mixture.collators import MaskingCollator
from hf_interp.selection.scoring import TrainerScorer
from hf_interp.tasks.metrics import language_model_metrics, score_tokens
from hf_interp.training.heads import HEADS, Objective, load_with_head


def texts(first: int, count: int, length: int = 9) -> datasets.Dataset:
    """Unlabelled rows of different lengths, the longest `length`."""
    rows = [[2 + (first + row * 7 + place) % 1500 for place in range(length - row % 4)] for row in range(count)]
    return datasets.Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def corpora(*, domain: int = 12) -> list[Corpus]:
    return [
        Corpus("general", texts(100, 40), "general", objective="mlm"),
        Corpus("domain", corpus(DOMAIN_FIRST, domain), "domain"),
    ]


def objectives(probability: float = 0.4) -> dict[str, Objective]:
    return {
        "mlm": Objective(
            masked_model(), MaskingCollator(number_tokenizer(), probability), language_model_metrics, score_tokens
        )
    }


def trainer_of(
    folder: Path | str, model: Any = None, *, dropout: float = 0.0, parts: Any = None, **kwargs: Any
) -> InterpolationTrainer:
    own = {name: kwargs.pop(name) for name in ("eval_dataset", "eval_objectives", "compute_metrics") if name in kwargs}
    given = {"objectives": objectives(), **own}
    return InterpolationTrainer(
        tiny_model(dropout) if model is None else model,
        config(folder, **kwargs),
        train_dataset=parts or corpora(),
        processing_class=number_tokenizer(),
        data_collator=default_data_collator,
        **given,
    )


def without_heads(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in found.items() if not name.startswith(HEADS)}


# The loss.


def test_the_target_phase_is_the_task_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"alpha_schedule_type": "constant", "alpha_end": 1.0, "dropout": 0.1}
    both = trainer_of(tmp_path, **settings)
    both.train()
    settings.pop("dropout")
    alone = InterpolationTrainer(
        tiny_model(0.1),
        config(tmp_path, **settings),
        train_dataset={"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 12)},
        data_collator=default_data_collator,
    )
    alone.train()
    assert same_weights(without_heads(weights(both)), weights(alone))
    assert logged(both, "loss") == logged(alone, "loss")
    assert logged(both, "objective_loss_mlm") == [None] * 8


def test_the_initial_phase_leaves_the_task_head_alone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, alpha_schedule_type="constant", alpha_end=0.0)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert not torch.equal(
        before["bert.encoder.layer.0.output.dense.weight"], after["bert.encoder.layer.0.output.dense.weight"]
    )
    assert not torch.equal(
        before[f"{HEADS}.mlm.cls.predictions.transform.dense.weight"],
        after[f"{HEADS}.mlm.cls.predictions.transform.dense.weight"],
    )
    assert logged(trainer, "objective_loss_task") == [None] * 8


def test_losses_are_weighted_by_the_shares_of_examples(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        alpha_schedule_type="constant",
        alpha_end=0.25,
        max_steps=1,
        per_device_train_batch_size=8,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,
    )
    (batch,) = list(trainer.get_train_dataloader())
    parts = batch["objectives"]
    assert {name: len(part["labels"]) for name, part in parts.items()} == {"": 2, "mlm": 6}
    expected = copy.deepcopy(trainer.model).train()
    outputs = expected(objectives=parts)
    loss = 0.25 * outputs[""]["loss"] + 0.75 * outputs["mlm"]["loss"]
    loss.backward()
    trainer.train()
    for name, parameter in expected.named_parameters():
        step = 0.0 if parameter.grad is None else parameter.grad
        torch.testing.assert_close(trainer.model.get_parameter(name), parameter - step)
    assert logged(trainer, "loss") == [pytest.approx(loss.item(), abs=1e-4)]
    assert logged(trainer, "objective_loss_task") == [pytest.approx(outputs[""]["loss"].item(), abs=1e-6)]
    assert logged(trainer, "objective_loss_mlm") == [pytest.approx(outputs["mlm"]["loss"].item(), abs=1e-5)]


def test_a_batch_without_a_masked_token_has_no_nan(tmp_path: Path) -> None:
    def unlabelled(examples: list[Any]) -> Any:
        batch = MaskingCollator(number_tokenizer())(examples)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    given = {"mlm": Objective(masked_model(), unlabelled)}
    trainer = InterpolationTrainer(
        tiny_model(0.0),
        config(tmp_path),
        train_dataset=corpora(),
        data_collator=default_data_collator,
        objectives=given,
        processing_class=number_tokenizer(),
    )
    trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    assert logged(trainer, "loss")[0] == 0.0


def test_any_split_of_the_global_batch_trains_alike(tmp_path: Path) -> None:
    runs = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = trainer_of(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, optim="sgd"
        )
        trainer.train()
        runs.append(trainer)
    for other in runs[1:]:
        for name, tensor in weights(runs[0]).items():
            torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-5, atol=1e-6)
        for key in ("loss", "objective_loss_mlm", "objective_loss_task", "loss_general", "loss_domain"):
            assert logged(other, key) == [
                value if value is None else pytest.approx(value, rel=1e-4) for value in logged(runs[0], key)
            ]


def test_labels_are_smoothed_for_the_task_alone(tmp_path: Path) -> None:
    sharp, smooth = (trainer_of(tmp_path, label_smoothing_factor=factor, max_steps=8) for factor in (0.0, 0.5))
    sharp.train()
    smooth.train()
    assert logged(sharp, "objective_loss_mlm")[0] == logged(smooth, "objective_loss_mlm")[0]
    assert logged(sharp, "loss")[0] == logged(smooth, "loss")[0]  # α = 0
    assert logged(sharp, "loss")[-1] != logged(smooth, "loss")[-1]


def test_a_mixture_by_tokens_counts_those_of_every_objective(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, mixture_unit="tokens", alpha_schedule_type="constant", alpha_end=0.5)
    trainer.train()
    shares = [value for value in logged(trainer, "token_share_domain") if value is not None]
    assert len(shares) == 8
    assert 0.3 < sum(shares) / 8 < 0.7


def test_mixed_precision(tmp_path: Path) -> None:
    full, half = trainer_of(tmp_path), trainer_of(tmp_path, bf16=True)
    full.train()
    half.train()
    assert logged(half, "loss") == [pytest.approx(value, rel=0.05) for value in logged(full, "loss")]
    assert logged(half, "loss") != logged(full, "loss")


def test_checkpointed_activations_change_nothing(tmp_path: Path) -> None:
    fields = {entry.name for entry in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    plain, saving = (trainer_of(tmp_path, **{name: flag}) for flag in (False, True))
    plain.train()
    saving.train()
    assert same_weights(weights(plain), weights(saving))


@pytest.mark.parametrize("kind", ["all", "non_padding"])
def test_tokens_of_all_objectives_are_counted(tmp_path: Path, kind: str) -> None:
    settings = {"max_steps": 2, "alpha_schedule_type": "constant", "alpha_end": 0.5}
    trainer = trainer_of(tmp_path, include_num_input_tokens_seen=kind, **settings)
    name = "input_ids" if kind == "all" else "attention_mask"
    expected = 0
    for batch in trainer.get_train_dataloader():
        assert set(batch["objectives"]) == {"", "mlm"}
        parts = [
            {"attention_mask": torch.ones_like(part["input_ids"]), **part} for part in batch["objectives"].values()
        ]
        expected += sum(part[name].numel() if kind == "all" else int(part[name].sum()) for part in parts)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == expected > 0


# Resuming, saving, processes.


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "a", dropout=0.1)
    whole.train()
    settings: dict[str, Any] = {"dropout": 0.1, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    trainer_of(tmp_path / "b", **settings).train()
    resumed = trainer_of(tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert same_weights(weights(whole), weights(resumed))
    again = trainer_of(tmp_path / "c", **settings)
    again.train()
    for key in ("objective_loss_mlm", "objective_loss_task", "loss_general"):
        assert logged(resumed, key) == logged(again, key)


def test_the_best_model_comes_with_its_heads(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_general_loss",
        eval_dataset={"general": texts(7, 16), "domain": corpus(DOMAIN_FIRST, 8)},
        eval_objectives={"general": "mlm"},
        learning_rate=1.0,  # so that the first checkpoint is the best
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    saved = load_with_head(best, "mlm").state_dict()
    name = "cls.predictions.transform.dense.weight"
    assert torch.equal(weights(trainer)[f"{HEADS}.mlm.{name}"], saved[name])
    last = load_with_head(tmp_path / "checkpoint-8", "mlm").state_dict()
    assert best.endswith("checkpoint-8") or not torch.equal(last[name], saved[name])


def test_the_saved_model_runs_in_a_pipeline(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model()
    plain, found = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert same_weights(plain.state_dict(), without_heads(weights(trainer)))
    answer = pipeline("text-classification", model=str(tmp_path), device=-1)("3 4 5")
    assert answer[0]["label"] in ("LABEL_0", "LABEL_1")


def train_and_note(folder: str, batch_size: int) -> None:
    trainer = trainer_of(folder, per_device_train_batch_size=batch_size, optim="sgd")
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), f"{folder}/weights.pt")
        keys = ("loss", "objective_loss_mlm", "objective_loss_task")
        Path(folder, "logs.json").write_text(json.dumps({key: logged(trainer, key) for key in keys}))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    found = []
    for count, size in ((1, 8), (2, 4)):
        folder = tmp_path / str(count)
        folder.mkdir()
        processes.run(tmp_path / f"log{count}", train_and_note, str(folder), size, processes=count)
        found.append((torch.load(folder / "weights.pt"), json.loads((folder / "logs.json").read_text())))
    (one, its_logs), (two, their_logs) = found
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
    for key, values in its_logs.items():
        assert their_logs[key] == [value if value is None else pytest.approx(value, rel=1e-4) for value in values]


# Adapters, other heads, evaluation.


def test_adapters_train_with_a_further_head(tmp_path: Path) -> None:
    set_seed(0)
    model = get_peft_model(tiny_model(0.0), LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2))
    trainer = trainer_of(tmp_path, model, save_strategy="steps", save_steps=4)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name or "modules_to_save" in name or HEADS in name for name in changed)
    set_seed(0)
    model = get_peft_model(tiny_model(0.0), LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2))
    resumed = trainer_of(tmp_path, model, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same_weights(after, weights(resumed))


def test_a_head_for_each_side(tmp_path: Path) -> None:
    shape = BertConfig(**{**tiny_model().config.to_dict(), "num_labels": 5})
    five = datasets.Dataset.from_dict(
        {"input_ids": [[n, 3, 2] for n in range(40)], "labels": [n % 5 for n in range(40)]}
    )
    trainer = InterpolationTrainer(
        tiny_model(0.0),
        config(tmp_path),
        train_dataset=[
            Corpus("general", five, "general", objective="intents"),
            Corpus("domain", corpus(DOMAIN_FIRST, 12), "domain"),
        ],
        eval_dataset={"general": five, "domain": corpus(DOMAIN_FIRST, 12)},
        eval_objectives={"general": "intents"},
        objectives={"intents": Objective(BertForSequenceClassification(shape), default_data_collator)},
        data_collator=default_data_collator,
    )
    trainer.train()
    metrics = trainer.evaluate()
    with torch.no_grad():
        rows = {key: torch.tensor(five[key][:]) for key in ("input_ids", "labels")}
        expected = trainer.model.eval()(objectives={"intents": rows})["intents"]["loss"].item()
    assert metrics["eval_general_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_is_that_of_the_objective_and_always_the_same(tmp_path: Path) -> None:
    held_out = texts(100, 20)  # it is trained on, which shows in the metric
    trainer = trainer_of(
        tmp_path,
        eval_dataset={"general": held_out, "domain": corpus(DOMAIN_FIRST, 8)},
        eval_objectives={"general": "mlm"},
        compute_metrics=lambda prediction: {"rows": float(len(prediction.label_ids))},
        per_device_eval_batch_size=8,
        per_device_train_batch_size=16,
        alpha_schedule_type="constant",
        alpha_end=0.0,
        max_steps=40,
    )
    scores = TrainerScorer(trainer, trainer.eval_dataset, None, None, seed=0)().selection
    assert {name: set(found) - {"loss"} for name, found in scores.items()} == {
        "general": {"perplexity", "token_accuracy"},
        "domain": {"rows"},
    }
    first = trainer.evaluate()
    assert {"eval_general_perplexity", "eval_general_token_accuracy", "eval_domain_rows"} <= set(first)
    assert "eval_general_rows" not in first
    trainer.args.per_device_eval_batch_size = 20
    second = trainer.evaluate()
    assert second["eval_general_perplexity"] == pytest.approx(first["eval_general_perplexity"], rel=1e-5)
    assert trainer.evaluate(held_out, metric_key_prefix="eval_general")["eval_general_perplexity"] == pytest.approx(
        second["eval_general_perplexity"], rel=1e-6
    )
    trainer.train()
    assert trainer.evaluate()["eval_general_perplexity"] < second["eval_general_perplexity"]


def test_every_new_model_of_a_search_gets_new_heads(tmp_path: Path) -> None:
    def fresh() -> InterpolationTrainer:
        return InterpolationTrainer(
            args=config(tmp_path),
            model_init=lambda: tiny_model(0.0),
            train_dataset=corpora(),
            objectives=objectives(),
            processing_class=number_tokenizer(),
            data_collator=default_data_collator,
        )

    once, twice = fresh(), fresh()
    once.train()
    twice.train()
    twice.train()
    assert same_weights(weights(once), weights(twice))


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_dataset": [Corpus("general", texts(0, 8), "general", objective="mlmm"), corpora()[1]]},
            r"Corpus 'general' has the objective 'mlmm', but .* are \['mlm'\]\. Did you mean 'mlm'\?",
        ),
        ({"objectives": None}, r"Corpus 'general' has the objective 'mlm', but the trainer's `objectives` are \[\]"),
        ({"eval_objectives": {"general": "clm"}}, "Evaluation set 'general' has the objective 'clm'"),
        ({"compute_loss_func": lambda *args, **kwargs: 0.0}, "`compute_loss_func` does not go with `objectives`"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"train_dataset": corpora(), "objectives": objectives(), **changes}
    with pytest.raises(ValueError, match=message):
        InterpolationTrainer(tiny_model(), config(tmp_path), data_collator=default_data_collator, **given)


@pytest.mark.parametrize("fields", [{"anchor": "distill"}, {"log_loss_gap": True}])
def test_predictions_of_two_heads_are_not_compared(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"compare predictions of one head\. .*'general' trains.* use `anchor=\"l2sp\"`"
    ):
        trainer_of(tmp_path, **fields)


def test_weights_can_be_tied_beside_further_heads(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": "sgd", "max_steps": 4}
    free, tied = trainer_of(tmp_path, **settings), trainer_of(tmp_path, anchor="l2sp", anchor_strength=50.0, **settings)
    start = weights(free)
    free.train()
    tied.train()
    name = "bert.encoder.layer.0.output.dense.weight"
    moved = [(weights(trainer)[name] - start[name]).norm().item() for trainer in (free, tied)]
    assert 0 < moved[1] < moved[0]


@pytest.mark.parametrize("name", ["m.lm", "", "distill", "../mlm", "/mlm", "..", "a/b"])
def test_what_cannot_be_the_name_of_an_objective_is_refused(tmp_path: Path, name: str) -> None:
    message = f"must be of letters, digits, _ and -, and not distill, got {name!r}. Rename it."
    with pytest.raises(ValueError, match=re.escape(message)):
        InterpolationTrainer(
            tiny_model(), config(tmp_path), train_dataset=corpora(), objectives={name: objectives()["mlm"]}
        )


def test_a_head_that_needs_more_of_the_backbone_is_refused(tmp_path: Path) -> None:
    tags = BertForTokenClassification(tiny_model().config)  # whose backbone has no pooler
    given = {"texts": Objective(tiny_model(), default_data_collator)}
    with pytest.raises(ValueError, match="The head of the objective 'texts' does not run on the model's backbone"):
        InterpolationTrainer(
            tags,
            config(tmp_path),
            train_dataset=[Corpus("general", corpus(0, 8), "general", objective="texts"), corpora()[1]],
            objectives=given,
        )
