"""What ties a run to M₀: against hand-written steps, under every split of the work, and across interruptions."""

import copy
import json
import math
from collections.abc import Callable
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
    batch_read_by,
    causal_model,
    config,
    corpus,
    losses,
    masked_tokens_model,
    mixture,
    moved,
    same_weights,
    seq2seq_model,
    tiny_model,
    token_corpus,
    token_mixture,
    tokens_model,
    weights,
)
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_interp import InterpolationMixin, InterpolationTrainer
from hf_interp.losses.anchor import Anchor, check_anchor
from hf_interp.losses.ref_model import adapters_off, predict

ANCHORS = ("distill", "l2sp")
ONE_STEP: dict[str, Any] = {"max_steps": 1, "alpha_schedule_type": "constant", "alpha_end": 0.0}


def run(
    output_dir: Path,
    *,
    model: Any = None,
    ref_model: Any = None,
    dropout: float = 0.1,
    train_dataset: Any = None,
    resume: Any = None,
    callbacks: Any = None,
    **kwargs: Any,
) -> InterpolationTrainer:
    trainer = InterpolationTrainer(
        tiny_model(dropout) if model is None else model,
        config(output_dir, **kwargs),
        train_dataset=mixture() if train_dataset is None else train_dataset,
        ref_model=ref_model,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def close(first: Trainer, second: Trainer, atol: float = 1e-6) -> None:
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, rtol=1e-5, atol=atol)


# Where nothing is asked for, nothing changes.


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"train_dataset": corpus(0, 40)}])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_no_strength_is_no_anchor(tmp_path: Path, anchor: str, settings: dict[str, Any]) -> None:
    plain = run(tmp_path, dropout=0.3, **settings)
    anchored = run(tmp_path, dropout=0.3, anchor=anchor, anchor_strength=0.0, **settings)
    assert same_weights(weights(plain), weights(anchored))
    assert losses(plain) == losses(anchored)
    assert logged(anchored, "anchor_weight") == [0.0] * 8


@pytest.mark.parametrize("settings", [{}, {"train_dataset": corpus(0, 40), "gradient_accumulation_steps": 2}])
def test_looking_at_the_gap_changes_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = run(tmp_path, dropout=0.3, **settings)
    watched = run(tmp_path, dropout=0.3, log_loss_gap=True, **settings)
    assert same_weights(weights(plain), weights(watched))
    assert losses(plain) == losses(watched)
    assert len(logged(watched, "loss_gap")) == 8
    assert logged(watched, "anchor_weight") == logged(watched, "anchor_loss") == []


# Distillation.


def one_step(
    tmp_path: Path, model: Any, ref_model: Any, train_dataset: Any = None, **kwargs: Any
) -> tuple[dict[str, torch.Tensor], InterpolationTrainer]:
    """The gradient of a run's first step: what plain gradient descent at a rate of 1 takes off the weights."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "weight_decay": 0.0}
    settings |= {"per_device_train_batch_size": 8, "alpha_schedule_type": "constant", "alpha_end": 0.25}
    trainer = run(tmp_path, model=model, ref_model=ref_model, train_dataset=train_dataset, **{**settings, **kwargs})
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}, trainer


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("on", ["all", "general"])
def test_distillation_is_what_one_would_write_by_hand(
    tmp_path: Path, on: str, direction: str, temperature: float
) -> None:
    model = tiny_model(0.0)
    student, teacher = copy.deepcopy(model), moved(model)
    settings = {"anchor_strength": 2.0, "anchor_temperature": temperature, "anchor_direction": direction}
    gradient, trainer = one_step(tmp_path, model, teacher, anchor="distill", anchor_on=on, **settings)
    batch = batch_read_by(trainer, mixture())
    outputs = student(**batch)
    with torch.no_grad():
        log_p0 = (teacher(**batch).logits / temperature).log_softmax(-1)
    log_p = (outputs.logits / temperature).log_softmax(-1)
    a, b = (log_p0, log_p) if direction == "forward" else (log_p, log_p0)
    is_on = (batch["input_ids"][:, 0] < DOMAIN_FIRST) | (on == "all")
    divergences = temperature**2 * (a.exp() * (a - b)).sum(-1)[is_on]
    loss = outputs.loss + (1 - 0.25) * 2.0 * divergences.sum() / 8
    loss.backward()
    assert 0 < is_on.sum() < 8 or on == "all"
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert losses(trainer) == pytest.approx([loss.item()], rel=1e-5)
    assert logged(trainer, "anchor_loss") == pytest.approx([divergences.mean().item()], rel=1e-5)
    assert logged(trainer, "anchor_weight") == [1.5]


def test_a_causal_model_is_compared_where_it_predicts_a_label(tmp_path: Path) -> None:
    model = causal_model()
    student, teacher = copy.deepcopy(model), moved(model)
    gradient, trainer = one_step(tmp_path, model, teacher, token_mixture(), anchor="distill", anchor_strength=4.0)
    batch = batch_read_by(trainer, token_mixture())
    has_label = batch["labels"][:, 1:] != -100
    log_p, log_p0 = (each(**batch).logits[:, :-1][has_label].log_softmax(-1) for each in (student, teacher))
    divergence = functional.kl_div(log_p, log_p0.detach(), log_target=True, reduction="batchmean")
    (student(**batch).loss + 3.0 * divergence).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert logged(trainer, "anchor_loss") == pytest.approx([divergence.item()], rel=1e-5)


def test_a_larger_vocabulary_is_compared_where_both_have_one(tmp_path: Path) -> None:
    model, teacher = masked_tokens_model(100), moved(masked_tokens_model(100))
    student = copy.deepcopy(model)
    for each in (model, student):
        each.resize_token_embeddings(108, mean_resizing=False)
    gradient, trainer = one_step(tmp_path, model, teacher, token_mixture(), anchor="distill", anchor_strength=4.0)
    batch = batch_read_by(trainer, token_mixture())
    has_label = batch["labels"] != -100
    log_p, log_p0 = (each(**batch).logits[has_label][:, :100].log_softmax(-1) for each in (student, teacher))
    divergence = functional.kl_div(log_p, log_p0.detach(), log_target=True, reduction="batchmean")
    assert logged(trainer, "anchor_loss") == pytest.approx([divergence.item()], rel=1e-4)
    assert gradient["bert.embeddings.word_embeddings.weight"].isfinite().all()


def test_m0_is_the_model_as_it_was_given(tmp_path: Path) -> None:
    model = tiny_model(0.0)
    before = copy.deepcopy(model)
    trainer = run(tmp_path, model=model, anchor="distill", alpha_schedule_type="constant", alpha_end=0.0)
    assert trainer._anchor is not None
    assert trainer._anchor.ref_model is not None
    assert same_weights(trainer._anchor.ref_model.state_dict(), before.state_dict())
    assert not any(parameter.requires_grad for parameter in trainer._anchor.ref_model.parameters())
    found = logged(trainer, "anchor_loss")
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[-1] > 1e-4


def test_m0_is_not_run_where_its_weight_is_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    whole = predict
    monkeypatch.setattr(
        "hf_interp.losses.anchor.predict", lambda *a, **k: steps.append(trainer.state.global_step) or whole(*a, **k)
    )
    args = config(tmp_path, anchor="distill", alpha_schedule_type="steps", alpha_schedule_kwargs={"values": [0, 1]})
    trainer = InterpolationTrainer(tiny_model(), args, train_dataset=mixture())
    trainer.train()
    assert steps == [0, 1, 2, 3]
    assert logged(trainer, "anchor_weight") == [1.0] * 4 + [0.0] * 4
    assert len(logged(trainer, "anchor_loss")) == 4


def test_mixed_precision_runs_both_models_alike(tmp_path: Path) -> None:
    trainer = run(tmp_path, dropout=0.0, anchor="distill", bf16=True, alpha_schedule_type="constant", alpha_end=0.0)
    found = logged(trainer, "anchor_loss")
    assert found[0] == 0.0
    assert 0 < found[-1] < 1
    assert all(tensor.dtype == torch.float32 for tensor in weights(trainer).values() if tensor.is_floating_point())


def test_label_smoothing_and_loss_functions_go_with_an_anchor(tmp_path: Path) -> None:
    def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def trained(batch_size: int, **kwargs: Any) -> InterpolationTrainer:
        args = config(
            tmp_path,
            anchor="distill",
            optim="sgd",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            label_smoothing_factor=0.0 if kwargs else 0.1,
        )
        model = tiny_model(0.0)
        trainer = InterpolationTrainer(model, args, train_dataset=mixture(), ref_model=moved(model), **kwargs)
        trainer.train()
        return trainer

    for kwargs in ({}, {"compute_loss_func": loss_of}):
        whole, split = trained(8, **kwargs), trained(2, **kwargs)
        assert losses(split) == pytest.approx(losses(whole), rel=1e-5)
        close(whole, split)


# The pull of l2sp.


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_a_step_is_the_optimizers_and_then_the_interpolation_with_m0(
    tmp_path: Path, strength: float, optim: str
) -> None:
    settings = {**ONE_STEP, "alpha_end": 0.25, "optim": optim}
    teacher = moved(tiny_model())
    free = run(tmp_path, **settings)
    pulled = run(tmp_path, anchor="l2sp", anchor_strength=strength, ref_model=teacher, **settings)
    rate = 1e-2 * 0.75 * strength
    for name, parameter in pulled.model.named_parameters():
        m0, m1 = teacher.get_parameter(name), free.model.get_parameter(name)
        torch.testing.assert_close(parameter, torch.lerp(m1, m0, rate / (1 + rate)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rate", [2.1, 5.0, 1e6, math.inf])
def test_no_strength_diverges(tmp_path: Path, rate: float) -> None:
    strength = 1e308 if rate == math.inf else rate / 1e-2
    settings: dict[str, Any] = {"max_steps": 40, "alpha_schedule_type": "constant", "alpha_end": 0.0}
    settings |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    model = tiny_model()
    before = copy.deepcopy(model)
    trainer = run(tmp_path, model=model, anchor="l2sp", anchor_strength=strength, **settings)
    for name, parameter in trainer.model.named_parameters():
        # each step moves a weight by 1e-2 or less, of which 1 / (1 + rate) is left
        torch.testing.assert_close(parameter, before.get_parameter(name), rtol=0, atol=1.1e-2 / rate + 1e-7)


def test_the_pull_fades_with_alpha_and_the_learning_rate(tmp_path: Path) -> None:
    teacher = moved(tiny_model())
    pulls: list[float] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for parameter in kwargs["model"].parameters():
                parameter.grad = torch.zeros_like(parameter)
            self.before = distance(kwargs["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pulls.append(1 - distance(kwargs["model"]) / self.before)

    def distance(model: Any) -> float:
        pairs = zip(model.parameters(), teacher.parameters(), strict=True)
        return sum(float((one - other).detach().square().sum()) for one, other in pairs) ** 0.5

    settings: dict[str, Any] = {"optim": "sgd", "weight_decay": 0.0, "callbacks": [Watch()]}
    trainer = run(tmp_path, anchor="l2sp", anchor_strength=10.0, ref_model=teacher, **settings)
    rates = [rate * 10 * (1 - step / 7) for step, rate in enumerate(logged(trainer, "learning_rate"))]
    assert pulls == pytest.approx([rate / (1 + rate) for rate in rates], abs=1e-5)
    assert pulls[0] > pulls[4] > pulls[7] == pytest.approx(0, abs=1e-6)
    assert logged(trainer, "anchor_loss")[-1] == pytest.approx(0.5 * distance(trainer.model) ** 2, rel=1e-4)


def test_shared_weights_are_pulled_once(tmp_path: Path) -> None:
    teacher, settings = moved(masked_tokens_model()), {**ONE_STEP, "train_dataset": token_mixture()}
    free = run(tmp_path, model=masked_tokens_model(), **settings)
    pulled = run(
        tmp_path, model=masked_tokens_model(), ref_model=teacher, anchor="l2sp", anchor_strength=100.0, **settings
    )
    for name, parameter in pulled.model.named_parameters():
        expected = torch.lerp(free.model.get_parameter(name), teacher.get_parameter(name), 0.5)
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)


def test_of_a_larger_vocabulary_the_common_rows_are_pulled(tmp_path: Path) -> None:
    settings = {**ONE_STEP, "train_dataset": token_mixture()}
    teacher, models = masked_tokens_model(100), [masked_tokens_model(100), masked_tokens_model(100)]
    for model in models:
        set_seed(3)
        model.resize_token_embeddings(108, mean_resizing=False)
    free = run(tmp_path, model=models[0], **settings)
    pulled = run(tmp_path, model=models[1], ref_model=teacher, anchor="l2sp", anchor_strength=1e9, **settings)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        found, m0, other = (each.get_parameter(name) for each in (pulled.model, teacher, free.model))
        torch.testing.assert_close(found[:100], m0)
        assert torch.equal(found[100:], other[100:])


def test_what_is_excluded_or_frozen_is_left_alone(tmp_path: Path) -> None:
    models = [tiny_model(), tiny_model()]
    for model in models:
        model.bert.pooler.requires_grad_(False)
    free = run(tmp_path, model=models[0], **ONE_STEP)
    excluded = ["classifier.*", "bert.embeddings.word_embeddings.weight"]
    settings = {"anchor": "l2sp", "anchor_strength": 1e4, "anchor_exclude": excluded, **ONE_STEP}
    pulled = run(tmp_path, model=models[1], ref_model=moved(tiny_model()), **settings)
    left = {"classifier.weight", "classifier.bias", "bert.embeddings.word_embeddings.weight"}
    left |= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    same = {name for name, tensor in pulled.model.named_parameters() if tensor.equal(free.model.get_parameter(name))}
    assert same == left


def test_only_what_is_trained_is_copied_for_l2sp(tmp_path: Path) -> None:
    model = tiny_model()
    model.bert.requires_grad_(False)
    trainer = InterpolationTrainer(model, config(tmp_path, anchor="l2sp"), train_dataset=mixture())
    assert trainer._anchor is not None
    assert trainer._anchor.ref_model is None
    assert set(trainer._anchor.start_weights) == {"classifier.weight", "classifier.bias"}


# Adapters.


def adapted(kind: str = "lora", model: Any = None, **kwargs: Any) -> Any:
    """A tiny model with an adapter, dropout in both."""
    model = tiny_model() if model is None else model
    set_seed(3)
    found = {
        "lora": lambda: peft.LoraConfig(
            **{"task_type": "SEQ_CLS", "r": 2, "lora_dropout": 0.3, "target_modules": ["query", "value"], **kwargs}
        ),
        "ia3": lambda: peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "dense"], feedforward_modules=[]),
        "adalora": lambda: peft.AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query"], total_step=8, **kwargs),
        "loha": lambda: peft.LoHaConfig(task_type="SEQ_CLS", target_modules=["query"], r=2),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    }
    return peft.get_peft_model(model, found[kind]())


def batch_of(count: int = 6) -> dict[str, torch.Tensor]:
    rows = corpus(0, count)
    return {"input_ids": torch.tensor(rows["input_ids"]), "labels": torch.tensor(rows["labels"])}


@pytest.mark.parametrize("kind", ["lora", "ia3", "adalora", "loha"])
def test_the_teacher_of_an_adapter_is_the_base_model(tmp_path: Path, kind: str) -> None:
    model = adapted(kind)
    run(tmp_path, model=model, learning_rate=0.1)
    model.train()
    model.base_model.model.bert.encoder.eval()
    frozen = next(parameter for parameter in model.parameters() if parameter.requires_grad).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    state, batch = torch.get_rng_state(), batch_of()
    found = predict(model, batch, without_adapters=True, autocast=torch.autocast("cpu", enabled=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not frozen.requires_grad
    torch.testing.assert_close(found, tiny_model().eval()(**batch).logits, rtol=0, atol=1e-7)
    assert not torch.allclose(found, model.eval()(**batch).logits, atol=1e-3)


def test_a_failure_puts_the_adapters_back() -> None:
    model = adapted().train()
    with pytest.raises(RuntimeError, match="in between"), adapters_off(model):
        raise RuntimeError("in between")
    assert model.training
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_distilling_into_an_adapter_is_distilling_from_the_base_model(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"anchor": "distill", "anchor_strength": 3.0, "learning_rate": 0.05}
    switched = run(tmp_path, model=adapted(), **settings)
    apart = run(tmp_path, model=adapted(), ref_model=tiny_model(), **settings)
    assert switched._anchor is not None
    assert switched._anchor.ref_model is None  # there is no second copy
    assert losses(switched) == losses(apart)
    assert same_weights(weights(switched), weights(apart))
    assert logged(switched, "anchor_loss")[-1] > 1e-4


def test_the_dropout_of_an_adapters_run_is_the_same_with_its_teacher(tmp_path: Path) -> None:
    plain = run(tmp_path, model=adapted())
    watched = run(tmp_path, model=adapted(), log_loss_gap=True)
    assert same_weights(weights(plain), weights(watched))


def merged(model: Any) -> dict[str, torch.Tensor]:
    """All weights with the adapter in them."""
    return copy.deepcopy(model).merge_and_unload().state_dict()


KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: adapted(),
    "rslora": lambda: adapted(use_rslora=True, lora_alpha=8),
    "lora of embeddings": lambda: adapted(target_modules=["query", "word_embeddings"]),
    "lora without a head": lambda: adapted(task_type="FEATURE_EXTRACTION"),
    "tokens": lambda: adapted(task_type=None, trainable_token_indices={"word_embeddings": [0, 1, 2, 5]}),
    "adalora": lambda: adapted("adalora"),
    "ia3": lambda: adapted("ia3"),
    "loha": lambda: adapted("loha"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pull_on_an_adapter_interpolates_the_merged_weights(tmp_path: Path, kind: str) -> None:
    # one step apart: what the optimizer has made of an adapter, and what is left of that after the pull
    settings: dict[str, Any] = {"max_steps": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    free = run(tmp_path, model=KINDS[kind](), **settings)

    class Last(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.anchor_strength = 20.0 if state.global_step == 3 else 0.0

    held = {"anchor_alpha_schedule": {"type": "constant", "value": 0.25}}
    pulled = run(
        tmp_path, model=KINDS[kind](), anchor="l2sp", anchor_strength=0.0, callbacks=[Last()], **held, **settings
    )
    m0, m1, found = merged(KINDS[kind]()), merged(free.model), merged(pulled.model)
    rate = 0.05 * 0.75 * 20.0
    changed = {name for name in m0 if not torch.equal(m0[name], m1[name])}
    assert changed
    for name in m0:
        expected = torch.lerp(m1[name], m0[name], rate / (1 + rate)) if name in changed else m0[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_huge_pull_leaves_the_base_model(tmp_path: Path) -> None:
    for kind, make in KINDS.items():
        model = make()
        before = merged(model)
        settings = {"alpha_schedule_type": "constant", "alpha_end": 0.0, "lr_scheduler_type": "constant"}
        run(tmp_path, model=model, anchor="l2sp", anchor_strength=1e12, **settings)
        for name, tensor in merged(model).items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6, msg=f"{kind}: {name}")


# How the global batch is split does not matter.


SPLIT_MODELS: dict[str, Callable[[], Any]] = {
    "examples": lambda: tiny_model(0.0),
    "tokens": tokens_model,
    "masked": masked_tokens_model,
    "causal": causal_model,
    "seq2seq": seq2seq_model,
}


def split_settings(anchor: str) -> dict[str, Any]:
    general = {"anchor_on": "general"} if anchor == "general" else {}
    kind = "distill" if anchor == "general" else anchor
    own = {"anchor_strength": 2.0}
    return {"anchor": kind, **own, "log_loss_gap": True, "optim": "sgd", **general}


@pytest.mark.parametrize("data", ["mixture", "ordinary"])
@pytest.mark.parametrize("kind", SPLIT_MODELS)
@pytest.mark.parametrize("anchor", ["distill", "general", "l2sp"])
def test_eight_times_one_equals_one_times_eight(tmp_path: Path, anchor: str, kind: str, data: str) -> None:
    if data == "ordinary" and (anchor == "general" or kind not in ("examples", "tokens")):
        return
    mixed, rows = (mixture(), corpus(0, 40)) if kind == "examples" else (token_mixture(), token_corpus(0, 40))

    def trained(batch_size: int) -> InterpolationTrainer:
        model = SPLIT_MODELS[kind]()
        return run(
            tmp_path,
            model=model,
            ref_model=moved(model),
            train_dataset=mixed if data == "mixture" else rows,
            max_steps=5,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            **split_settings(anchor),
        )

    whole, split = trained(8), trained(1)
    close(whole, split)
    for key in ("loss", "anchor_loss", "anchor_weight", "loss_gap", "loss_gap_general", "loss_gap_domain"):
        assert logged(split, key) == pytest.approx(logged(whole, key), rel=1e-4, abs=1e-6), key


def train_apart(folder: str, name: str, kind: str, anchor: str, split: tuple[int, int]) -> None:
    """Train in one of the processes and write down what was logged and learnt."""
    batch_size, accumulation = split
    model = adapted() if kind == "adapter" else SPLIT_MODELS[kind]()
    if kind == "adapter":
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    args = config(
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        logging_steps=2,
        **split_settings(anchor),
    )
    ref_model = None if kind == "adapter" else moved(model)
    data = token_mixture() if kind in ("tokens", "masked", "causal") else mixture()
    trainer = InterpolationTrainer(model, args, train_dataset=data, ref_model=ref_model)
    trainer.train()
    keys = ("loss", "anchor_loss", "loss_gap", "loss_gap_general", "loss_gap_domain")
    Path(folder, f"{name}{args.process_index}.json").write_text(json.dumps({key: logged(trainer, key) for key in keys}))
    torch.save(trainer.model.state_dict(), Path(folder, f"{name}{args.process_index}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["examples", "tokens", "causal", "adapter"])
@pytest.mark.parametrize("anchor", ["distill", "general", "l2sp"])
def test_two_processes_are_one(tmp_path: Path, anchor: str, kind: str) -> None:
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "whole", kind, anchor, (8, 1))
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "part", kind, anchor, (2, 2), processes=2)
    whole, *parts = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole0", "part0", "part1"))
    for part in parts:
        assert part.keys() == whole.keys()
        for key, values in whole.items():
            assert part[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key
    states = [torch.load(tmp_path / f"{name}.pt") for name in ("whole0", "part0", "part1")]
    assert same_weights(states[1], states[2])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=1e-6)


def train_with_a_head_of_its_own(folder: str) -> None:
    """Each process makes another head, as one that forgets to set the seed."""
    args = config(folder, anchor="l2sp", anchor_strength=100.0)
    model = tiny_model(0.0)
    torch.manual_seed(args.process_index)
    torch.nn.init.normal_(model.classifier.weight)
    trainer = InterpolationTrainer(model, args, train_dataset=mixture())
    trainer.train()
    torch.save(trainer.model.state_dict(), Path(folder, f"{args.process_index}.pt"))


@pytest.mark.slow
def test_all_processes_pull_to_one_m0(tmp_path: Path) -> None:
    processes.run(tmp_path / "log", train_with_a_head_of_its_own, str(tmp_path), processes=2)
    assert same_weights(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)))


# Resume.


@pytest.mark.parametrize("data", ["mixture", "ordinary"])
@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("anchor", ["distill", "general", "l2sp"])
def test_resume_equals_no_interruption(tmp_path: Path, anchor: str, kind: str, data: str) -> None:
    if anchor == "general" and data == "ordinary":
        return
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 3, "gradient_accumulation_steps": 2}
    settings |= {"log_loss_gap": True, "learning_rate": 0.02}
    settings |= {"anchor_strength": 3.0}
    settings |= {"anchor": "distill", "anchor_on": "general"} if anchor == "general" else {"anchor": anchor}

    def trained(resume: Any = None) -> InterpolationTrainer:
        model = tiny_model(0.3) if kind == "full" else adapted()
        dataset = mixture() if data == "mixture" else corpus(0, 80)
        return run(tmp_path, model=model, train_dataset=dataset, resume=resume, **settings)

    whole, resumed = trained(), trained(str(tmp_path / "checkpoint-4"))
    assert same_weights(weights(whole), weights(resumed))
    for key in ("anchor_loss", "anchor_weight", "loss_gap", "loss_gap_general"):
        assert logged(resumed, key) == logged(whole, key), key
    assert len(logged(whole, "anchor_loss")) == 2


def test_the_last_whole_checkpoint_is_taken_without_a_mixture_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "anchor": "l2sp", "logging_steps": 2}
    settings["train_dataset"] = corpus(0, 40)
    whole = run(tmp_path, **settings)
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()
    resumed = run(tmp_path, resume=True, **settings)
    assert same_weights(weights(whole), weights(resumed))


def test_a_checkpoint_of_the_hosts_is_gone_on_from(tmp_path: Path) -> None:
    args = config(tmp_path, save_strategy="steps", save_steps=4)
    Trainer(tiny_model(), args, train_dataset=corpus(0, 40)).train()
    for data in (corpus(0, 40), mixture()):
        trainer = run(
            tmp_path, train_dataset=data, resume=str(tmp_path / "checkpoint-4"), anchor="distill", logging_steps=4
        )
        assert logged(trainer, "anchor_loss")[-1] > 0


def test_model_init_gives_m0(tmp_path: Path) -> None:
    for anchor in ANCHORS:
        settings = {"save_strategy": "steps", "save_steps": 4, "anchor": anchor, "anchor_strength": 3.0}

        def trained(settings: dict[str, Any] = settings, resume: Any = None) -> InterpolationTrainer:
            args = config(tmp_path, **settings)
            trainer = InterpolationTrainer(None, args, train_dataset=mixture(), model_init=lambda: tiny_model(0.3))
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        whole = trained()
        assert whole._anchor is not None
        if anchor == "distill":
            assert whole._anchor.ref_model is not None
            assert same_weights(whole._anchor.ref_model.state_dict(), tiny_model().state_dict())
        assert same_weights(weights(whole), weights(trained(resume=str(tmp_path / "checkpoint-4"))))


@pytest.mark.parametrize("anchor", ANCHORS)
def test_another_m0_than_the_runs_is_refused(tmp_path: Path, anchor: str) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "anchor": anchor}
    run(tmp_path, **settings)
    trained = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match=r"M₀ is not the one with which the run was begun.*`ref_model`"):
        run(tmp_path, model=trained, resume=str(tmp_path / "checkpoint-4"), **settings)
    run(tmp_path, model=trained, ref_model=tiny_model(), resume=str(tmp_path / "checkpoint-4"), **settings)


# α of the anchor, and what is logged.


def test_the_weight_follows_the_data(tmp_path: Path) -> None:
    trainer = run(tmp_path, anchor="l2sp", anchor_strength=2.0, alpha_start=0.25, alpha_schedule_type="cosine")
    expected = [2 * (1 - alpha) for alpha in logged(trainer, "alpha")]
    assert logged(trainer, "anchor_weight") == pytest.approx(expected, abs=1e-8)
    assert len(set(expected)) == 8


@pytest.mark.parametrize("data", [None, corpus(0, 40)])
def test_the_weight_may_follow_a_schedule_of_its_own(tmp_path: Path, data: Any) -> None:
    own = {"type": "linear", "start": 0.0, "end": 0.5, "target_steps": 1}
    trainer = run(tmp_path, train_dataset=data, anchor="l2sp", anchor_alpha_schedule=own)
    assert logged(trainer, "anchor_weight") == pytest.approx([1 - 0.5 * step / 7 for step in range(8)])


def test_without_a_mixture_the_fields_give_alpha_over_the_steps_of_the_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2, "train_dataset": corpus(0, 12)}
    trainer = run(tmp_path, anchor="distill", alpha_start=0.5, **settings)
    assert logged(trainer, "anchor_weight") == pytest.approx([0.5 - 0.1 * step for step in range(6)])
    args = config(tmp_path, anchor="distill")
    given = InterpolationTrainer(
        tiny_model(), args, train_dataset=corpus(0, 40), alpha_schedule=lambda progress: 1 - progress
    )
    given.train()
    assert logged(given, "anchor_weight") == pytest.approx([step / 7 for step in range(8)])


def test_the_weight_follows_an_adaptive_alpha(tmp_path: Path) -> None:
    settings = {"alpha_controller": "guard", "alpha_controller_kwargs": {"tolerance": 0.001}, "alpha_update_steps": 2}
    trainer = run(tmp_path, anchor="distill", max_steps=16, alpha_update_lag=1, **settings)
    alphas = logged(trainer, "alpha")
    assert logged(trainer, "anchor_weight") == [1 - alpha for alpha in alphas]
    assert alphas != pytest.approx([step / 15 for step in range(16)], abs=1e-6)


def test_the_gap_is_the_difference_of_the_losses(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dropout": 0.0, "learning_rate": 0.05, "logging_steps": 1}
    plain = run(tmp_path, **settings)
    watched = run(tmp_path, log_loss_gap=True, **settings)
    frozen = run(tmp_path, **{**settings, "learning_rate": 0.0})
    gaps = [now - before for now, before in zip(losses(plain), losses(frozen), strict=True)]
    assert logged(watched, "loss_gap") == pytest.approx(gaps, abs=1e-4)  # the host rounds losses
    for side in ("general", "domain"):
        entries = [
            (entry[f"loss_{side}"], other[f"loss_{side}"], seen[f"loss_gap_{side}"])
            for entry, other, seen in zip(
                plain.state.log_history, frozen.state.log_history, watched.state.log_history, strict=True
            )
            if f"loss_{side}" in entry
        ]
        assert entries
        assert all(seen == pytest.approx(now - before, abs=1e-6) for now, before, seen in entries)
    assert logged(run(tmp_path, log_loss_gap=True, anchor="l2sp"), "loss_gap")[0] != 0  # dropout


def test_evaluation_knows_of_no_anchor(tmp_path: Path) -> None:
    args = config(tmp_path, anchor="distill", log_loss_gap=True, eval_strategy="steps", eval_steps=4)
    model = tiny_model()
    trainer = InterpolationTrainer(
        model, args, train_dataset=mixture(), eval_dataset=corpus(0, 6), ref_model=moved(model)
    )
    host = Trainer(tiny_model(), config(tmp_path), eval_dataset=corpus(0, 6))
    assert trainer.evaluate()["eval_loss"] == host.evaluate()["eval_loss"]
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(entries) == 2
    assert not [key for entry in entries for key in entry if "anchor" in key or "gap" in key]


# What is refused, before anything is computed.


def regression_model() -> Any:
    return BertForSequenceClassification(BertConfig(**{**tiny_model().config.to_dict(), "num_labels": 1}))


def several_labels_model() -> Any:
    model = tiny_model()
    model.config.problem_type = "multi_label_classification"
    return model


def question_model() -> Any:
    return BertForQuestionAnswering(tiny_model().config)


def other_head() -> Any:
    return BertForSequenceClassification(BertConfig(**{**tiny_model().config.to_dict(), "num_labels": 3}))


def unfrozen_adapter() -> Any:
    model = adapted()
    model.base_model.model.bert.pooler.dense.weight.requires_grad_(True)
    return model


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "regression": (regression_model, {"anchor": "distill"}, "needs a distribution over classes, got regression"),
    "several labels": (several_labels_model, {"anchor": "distill"}, "got multi_label_classification.*l2sp"),
    "questions": (question_model, {"anchor": "distill"}, "needs a model with `labels`.*start_positions"),
    "general of what": (tiny_model, {"anchor": "distill", "anchor_on": "general"}, "needs a mixture"),
    "half precision": (lambda: tiny_model().bfloat16(), {"anchor": "l2sp"}, r"needs weights in float32.*bf16=True"),
    "no such name": (
        tiny_model,
        {"anchor": "l2sp", "anchor_exclude": ["clasifier.*"]},
        "'clasifier.*', which names none",
    ),
    "biases": (lambda: adapted(bias="all"), {"anchor": "distill"}, r"'.*bias' is trained in place.*`ref_model`"),
    "unfrozen": (unfrozen_adapter, {"anchor": "distill"}, r"'bert.pooler.dense.weight' is trained in place"),
    "pissa": (lambda: adapted(init_lora_weights="pissa"), {"anchor": "distill"}, "'pissa'` changes the pretrained"),
    "pissa pulled": (
        lambda: adapted(init_lora_weights="pissa"),
        {"anchor": "l2sp"},
        "can be scaled, got LORA .*'pissa'",
    ),
    "prefix": (lambda: adapted("prefix"), {"anchor": "distill"}, "PREFIX_TUNING cannot be turned off"),
    "dora": (lambda: adapted(use_dora=True), {"anchor": "l2sp"}, "can be scaled, got DoRA.*distill"),
    "biases pulled": (lambda: adapted(bias="all"), {"anchor": "l2sp"}, r"'.*bias' is trained in place"),
    "unfrozen pulled": (unfrozen_adapter, {"anchor": "l2sp"}, r"'bert.pooler.dense.weight' is trained in place"),
    "liger": (tiny_model, {"anchor": "distill", "use_liger_kernel": True}, "fused cross entropy leaves no logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    make, settings, message = REFUSED[case]
    monkeypatch.setattr("transformers.trainer.is_liger_kernel_available", lambda: True, raising=False)
    with pytest.raises(ValueError, match=message):
        InterpolationTrainer(make(), config(tmp_path, **settings), train_dataset=corpus(0, 8))


def test_a_reference_must_be_of_use_and_another_model(tmp_path: Path) -> None:
    def made(model: Any, ref_model: Any, **settings: Any) -> InterpolationTrainer:
        return InterpolationTrainer(model, config(tmp_path, **settings), train_dataset=mixture(), ref_model=ref_model)

    model = tiny_model()
    for settings, ref_model, message in (
        ({}, tiny_model(), "`ref_model` needs an `InterpolationConfig` with an `anchor`"),
        ({"anchor": "distill"}, model, "must be another object than `model`"),
        ({"anchor": "distill"}, other_head(), "must have the 2 labels of the model, got 3"),
        ({"anchor": "l2sp"}, other_head(), r"needs weights of one shape, got \(2, 16\) for 'classifier.weight'"),
    ):
        with pytest.raises(ValueError, match=message):
            made(model, ref_model, **settings)
    with pytest.raises(ValueError, match="has no use for a `ref_model`"):
        made(adapted(), tiny_model(), anchor="l2sp")
    plain = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True)
    with pytest.raises(ValueError, match="needs an `InterpolationConfig`"):
        InterpolationTrainer(model, plain, train_dataset=mixture(), ref_model=tiny_model())
    made(adapted(bias="all"), tiny_model(), anchor="distill")  # with the pretrained model beside it


def test_batches_without_classes_are_refused_before_the_first_forward(tmp_path: Path) -> None:
    model = tiny_model()
    model.forward = lambda **inputs: pytest.fail("the model was run")
    numbers = corpus(0, 8).map(lambda row: {"labels": 0.5}).cast_column("labels", datasets.Value("float32"))
    for data, message in ((numbers, "got numbers"), (corpus(0, 8).remove_columns("labels"), "got none")):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, model=model, train_dataset=data, anchor="distill", remove_unused_columns=False)


def test_a_schedule_without_a_mixture_needs_an_anchor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a mixture"):
        InterpolationTrainer(tiny_model(), config(tmp_path), train_dataset=corpus(0, 4), alpha_schedule=lambda p: p)


def test_weights_that_the_optimizer_does_not_have_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    args = config(tmp_path, anchor="l2sp")
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    trainer = InterpolationTrainer(model, args, train_dataset=mixture(), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"does not have 'bert\.embeddings\.word_embeddings\.weight'"):
        trainer.train()


def test_an_anchor_adds_one_callback(tmp_path: Path) -> None:
    args = config(tmp_path, anchor="l2sp")
    trainer = InterpolationTrainer(tiny_model(), args, train_dataset=mixture())
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(Anchor) == 1
    assert kinds.index(Anchor) == 2  # after those that settle α


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("is_fsdp_enabled", True, "which FSDP divides. Use DDP"),
        ("is_deepspeed_enabled", True, "DeepSpeed keeps or divides the weights itself"),
        ("get_tp_size", lambda: 2, "whole sequences and weights in every process"),
        ("get_sp_size", lambda: 2, "whole sequences and weights in every process"),
    ],
)
def test_a_model_that_is_divided_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anchor: str, attribute: str, value: Any, message: str
) -> None:
    trainer = InterpolationTrainer(tiny_model(), config(tmp_path, anchor=anchor), train_dataset=mixture())
    check_anchor(trainer, None, has_mixture=True)
    monkeypatch.setattr(trainer, attribute, value)
    if (attribute, anchor) == ("is_deepspeed_enabled", "distill"):
        check_anchor(trainer, None, has_mixture=True)  # up to stage 2
        monkeypatch.setattr("hf_interp.losses.anchor.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=message):
        check_anchor(trainer, None, has_mixture=True)


def test_a_host_with_a_reference_of_its_own_gets_it(tmp_path: Path) -> None:
    class Host(Trainer):
        def __init__(self, *args: Any, ref_model: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.given = ref_model

    class Ours(InterpolationMixin, Host):
        pass

    reference = tiny_model()
    assert Ours(tiny_model(), config(tmp_path), train_dataset=mixture(), ref_model=reference).given is reference


@pytest.mark.slow
def test_a_search_may_turn_the_dial(tmp_path: Path) -> None:
    args = config(tmp_path, max_steps=2, anchor="l2sp")
    trainer = InterpolationTrainer(
        None, args, train_dataset=mixture(), eval_dataset=corpus(0, 4), model_init=lambda trial: tiny_model()
    )
    seen: list[float] = []
    trainer.hyperparameter_search(
        lambda trial: {"anchor_strength": trial.suggest_categorical("anchor_strength", [2.0, 5.0])},
        lambda metrics: seen.append(logged(trainer, "anchor_weight")[0]) or metrics["eval_loss"],
        n_trials=3,
        backend="optuna",
    )
    assert set(seen) <= {2.0, 5.0}
