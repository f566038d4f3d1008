"""Corpora that train M₀'s predictions: against hand-written steps, under every split of the work, and on resume."""

import copy
from pathlib import Path
from typing import Any

import datasets
import peft
import processes
import pytest
import torch
from torch.nn import functional
from toys import (
    DOMAIN_FIRST,
    Stop,
    batch_read_by,
    causal_model,
    config,
    corpus,
    losses,
    masked_tokens_model,
    moved,
    same_weights,
    seq2seq_model,
    tiny_model,
    token_mixture,
    tokens_model,
    weights,
)
from transformers import TrainingArguments, set_seed

from hf_interp import Corpus, InterpolationTrainer
from hf_interp.training.objectives import Objective

PLAIN_DESCENT: dict[str, Any] = {
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
    "weight_decay": 0.0,
    "per_device_train_batch_size": 8,
    "alpha_schedule_type": "constant",
    "alpha_end": 0.25,
}


def distilled(general: Any, domain: Any) -> list[Corpus]:
    """Corpora of which the general one trains M₀'s predictions."""
    return [Corpus("general", general, "general", objective="distill"), Corpus("domain", domain, "domain")]


def class_corpora() -> list[Corpus]:
    return distilled(corpus(0, 40), corpus(DOMAIN_FIRST, 12))


MODELS = {
    "class": lambda: tiny_model(0.0),
    "tagger": tokens_model,
    "causal": causal_model,
    "masked": masked_tokens_model,
    "seq2seq": seq2seq_model,
}


def trained(output_dir: Path | str, model: Any, corpora: Any, ref_model: Any = None, **kwargs: Any) -> Any:
    resume = kwargs.pop("resume", None)
    callbacks = kwargs.pop("callbacks", None)
    args = config(output_dir, **kwargs)
    trainer = InterpolationTrainer(model, args, train_dataset=corpora, ref_model=ref_model, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def gradient_of_first_step(tmp_path: Path, model: Any, corpora: Any, ref_model: Any, **kwargs: Any) -> Any:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trained(tmp_path, model, corpora, ref_model, **{**PLAIN_DESCENT, **kwargs})
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}, trainer


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_of_a_classifier_is_what_one_would_write_by_hand(tmp_path: Path, temperature: float) -> None:
    model = tiny_model(0.0)
    student, teacher = copy.deepcopy(model), moved(model)
    gradient, trainer = gradient_of_first_step(
        tmp_path, model, class_corpora(), teacher, distill_temperature=temperature
    )
    batch = batch_read_by(trainer, {"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 12)})
    is_general = batch["input_ids"][:, 0] < DOMAIN_FIRST
    assert is_general.sum() == 6
    logits = student(input_ids=batch["input_ids"]).logits
    with torch.no_grad():
        log_p0 = (teacher(input_ids=batch["input_ids"]).logits / temperature).log_softmax(-1)
    log_p = (logits / temperature).log_softmax(-1)
    divergence = temperature**2 * (log_p0.exp() * (log_p0 - log_p)).sum(-1)[is_general].mean()
    of_task = functional.cross_entropy(logits[~is_general], batch["labels"][~is_general])
    loss = 0.25 * of_task + 0.75 * divergence
    loss.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert losses(trainer) == pytest.approx([loss.item()], rel=1e-5)
    log = trainer.state.log_history[0]
    assert log["objective_loss_distill"] == pytest.approx(divergence.item(), rel=1e-5)
    assert log["objective_loss_task"] == pytest.approx(of_task.item(), rel=1e-5)
    assert log["loss_general"] == pytest.approx(divergence.item(), rel=1e-5)
    assert log["loss_domain"] == pytest.approx(of_task.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["tagger", "causal", "masked", "seq2seq"])
def test_every_prediction_that_a_label_stands_for_is_distilled(tmp_path: Path, kind: str) -> None:
    model, data = MODELS[kind](), token_mixture()
    student, teacher = copy.deepcopy(model), moved(model)
    gradient, trainer = gradient_of_first_step(
        tmp_path, model, distilled(data["general"], data["domain"]), teacher, alpha_end=0.5
    )
    batch = batch_read_by(trainer, data)
    draw = trainer.plan.locate(range(8))
    is_general = torch.tensor([trainer.plan.corpora[index].side == "general" for index in draw.corpus.tolist()])
    assert is_general.sum() == 4
    labels = batch["labels"]
    inputs = {"input_ids": batch["input_ids"]}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    logits, ref_logits = student(**inputs).logits, teacher(**inputs).logits.detach()
    if kind == "causal":
        logits, ref_logits, labels = logits[:, :-1], ref_logits[:, :-1], labels[:, 1:]
    has_label = labels != -100
    of_domain, of_general = has_label & ~is_general[:, None], has_label & is_general[:, None]
    log_p, log_p0 = logits[of_general].log_softmax(-1), ref_logits[of_general].log_softmax(-1)
    divergence = functional.kl_div(log_p, log_p0, log_target=True, reduction="batchmean")
    loss = 0.5 * functional.cross_entropy(logits[of_domain], labels[of_domain]) + 0.5 * divergence
    loss.backward()
    assert losses(trainer) == pytest.approx([loss.item()], rel=1e-5)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_m0_is_run_on_distilled_examples_alone(tmp_path: Path) -> None:
    model = tiny_model(0.0)
    teacher, seen = moved(model), []
    teacher.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"][:, 0].tolist()), with_kwargs=True
    )
    trained(tmp_path, model, class_corpora(), teacher, alpha_start=0.2, alpha_end=0.8)
    assert 0 < len(seen) < 8 * 4
    assert max(seen) < DOMAIN_FIRST


@pytest.mark.parametrize("data", ["none", "of other classes"])
def test_labels_of_distilled_corpora_do_not_matter(tmp_path: Path, data: str) -> None:
    general = corpus(0, 40)
    other = general.remove_columns("labels")
    if data == "of other classes":
        other = other.add_column("labels", [7] * len(other))
    runs = [
        trained(tmp_path, tiny_model(0.1), distilled(part, corpus(DOMAIN_FIRST, 12)), moved(tiny_model()))
        for part in (general, other)
    ]
    assert same_weights(*map(weights, runs))
    assert losses(runs[0]) == losses(runs[1])


def test_unlabelled_texts_of_a_tagger_are_distilled_at_every_token(tmp_path: Path) -> None:
    data = token_mixture()
    trainer = trained(
        tmp_path, tokens_model(), distilled(data["general"].remove_columns("labels"), data["domain"]), max_steps=2
    )
    assert trainer.corpora[0].dataset["labels"][0] == [0] * 5
    assert len(losses(trainer)) == 2


def test_without_a_reference_m0_is_the_model_as_it_was_given(tmp_path: Path) -> None:
    model = tiny_model(0.0)
    own = trained(tmp_path, copy.deepcopy(model), class_corpora())
    given = trained(tmp_path, copy.deepcopy(model), class_corpora(), copy.deepcopy(model))
    assert same_weights(weights(own), weights(given))
    assert own.state.log_history[0]["objective_loss_distill"] == pytest.approx(0.0, abs=1e-6)
    assert own.state.log_history[7]["objective_loss_task"] > 0  # at α = 1 nothing is distilled
    assert "objective_loss_distill" not in own.state.log_history[7]


def test_distilling_into_an_adapter_is_distilling_from_the_base_model(tmp_path: Path) -> None:
    def adapted() -> Any:
        set_seed(3)
        lora = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights="gaussian")
        return peft.get_peft_model(tiny_model(0.0), lora)

    own, given = adapted(), adapted()
    first = trained(tmp_path, own, class_corpora())
    second = trained(tmp_path, given, class_corpora(), tiny_model(0.0))
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor)
    assert any(entry.get("objective_loss_distill", 0) > 0 for entry in first.state.log_history)


def corpora_of(kind: str) -> list[Corpus]:
    return class_corpora() if kind == "class" else distilled(*token_mixture().values())


@pytest.mark.parametrize("kind", MODELS)
def test_eight_times_one_equals_one_times_eight(tmp_path: Path, kind: str) -> None:
    runs = []
    for size in (8, 1):
        model = MODELS[kind]()
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "optim": "sgd"}
        runs.append(trained(tmp_path, model, corpora_of(kind), moved(model), **sizes))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
    for name, tensor in weights(runs[0]).items():
        torch.testing.assert_close(weights(runs[1])[name], tensor, rtol=1e-4, atol=1e-6)


def train_apart(folder: str, name: str, kind: str, sizes: tuple[int, int]) -> None:
    model = MODELS[kind]()
    settings = {"per_device_train_batch_size": sizes[0], "gradient_accumulation_steps": sizes[1], "optim": "sgd"}
    trainer = trained(Path(folder) / name, model, corpora_of(kind), moved(model), **settings)
    if trainer.is_world_process_zero():
        torch.save({"weights": weights(trainer), "losses": losses(trainer)}, Path(folder) / f"{name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "causal"])
def test_two_processes_are_one(tmp_path: Path, kind: str) -> None:
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "whole", kind, (8, 1))
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "part", kind, (2, 2), processes=2)
    whole, part = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "part"))
    assert part["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    for name, tensor in whole["weights"].items():
        torch.testing.assert_close(part["weights"][name], tensor, rtol=1e-4, atol=1e-6)


def test_resume_equals_no_interruption(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = trained(tmp_path / "whole", tiny_model(0.1), class_corpora(), **settings)
    trained(tmp_path / "cut", tiny_model(0.1), class_corpora(), callbacks=[Stop(5)], **settings)
    resumed = trained(
        tmp_path / "cut", tiny_model(0.1), class_corpora(), resume=str(tmp_path / "cut/checkpoint-3"), **settings
    )
    assert same_weights(weights(whole), weights(resumed))
    with pytest.raises(ValueError, match="M₀ is not the one with which the run was begun"):
        trained(
            tmp_path / "cut",
            moved(tiny_model(0.1)),
            class_corpora(),
            resume=str(tmp_path / "cut/checkpoint-3"),
            **settings,
        )


def test_mixed_precision_and_label_smoothing_go_with_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"alpha_schedule_type": "constant", "label_smoothing_factor": 0.1}
    model = tiny_model(0.0)
    whole = trained(tmp_path, copy.deepcopy(model), class_corpora(), moved(model), **settings)
    mixed = trained(tmp_path, copy.deepcopy(model), class_corpora(), moved(model), bf16=True, **settings)
    assert losses(mixed) == pytest.approx(losses(whole), rel=0.05)


REFUSED: dict[str, tuple[str, Any]] = {
    "both say the same": ("Choose one", lambda place: {"args": config(place, anchor="distill")}),
    "plain arguments": (
        "needs an `InterpolationConfig`",
        lambda place: {"args": TrainingArguments(str(place), max_steps=2, use_cpu=True)},
    ),
    "regression": ("needs a distribution over classes", lambda place: {"model": regression_model()}),
    "a reserved name": (
        "not distill",
        lambda place: {"objectives": {"distill": Objective(masked_tokens_model(2000), lambda rows: rows)}},
    ),
}


def regression_model() -> Any:
    model = tiny_model()
    model.config.problem_type = "regression"
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_at_once(tmp_path: Path, case: str) -> None:
    words, settings = REFUSED[case]
    given = {"model": tiny_model(), "args": config(tmp_path), "train_dataset": class_corpora(), **settings(tmp_path)}
    with pytest.raises(ValueError, match=words):
        InterpolationTrainer(**given)


def test_other_objectives_do_not_go_with_it(tmp_path: Path) -> None:
    other = Corpus("more", corpus(100, 40), "general", objective="mlm")
    objective = Objective(tiny_model(), lambda rows: rows)
    with pytest.raises(ValueError, match="the corpus 'more' trains the objective 'mlm' with another: leave that out"):
        InterpolationTrainer(
            tiny_model(), config(tmp_path), train_dataset=[*class_corpora(), other], objectives={"mlm": objective}
        )


def test_streams_and_lists_are_distilled_too(tmp_path: Path) -> None:
    rows = corpus(0, 40).to_list()
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    for general in (rows, stream):
        trainer = trained(tmp_path, tiny_model(), distilled(general, corpus(DOMAIN_FIRST, 12)), max_steps=2)
        assert len(losses(trainer)) == 2
