"""Generalised cross entropy for the domain: values, gradients, every split of the work, and what is refused.

Also the host's label smoothing over a mixture, the other remedy for labels that may be wrong.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import processes
import pytest
import torch
from torch.nn import functional
from toys import DOMAIN_FIRST, NotingTrainer, config, corpus, losses, masked_model, mixture, tiny_model, weights
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_interp import InterpolationConfig, InterpolationTrainer, cli
from hf_interp.losses.gce import DomainLoss, generalised_cross_entropy
from hf_interp.tasks.build import check_recipe
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.training.heads import Objective
from hf_interp.utils.run_folder import RESULTS_NAME

# The loss itself.


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (0.25, 0.5, 1.0),  # (1 − 0.5) / 0.5
        (0.5, 0.7, (1 - 0.5**0.7) / 0.7),
        (0.5, 1.0, 0.5),
        (1.0, 0.7, 0.0),
        (0.0, 0.7, 1 / 0.7),
    ],
)
def test_the_loss_is_what_the_paper_says(p: float, q: float, expected: float) -> None:
    found = generalised_cross_entropy(-torch.tensor(p, dtype=torch.float64).log(), q)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_small_q_is_cross_entropy() -> None:
    cross_entropy = torch.tensor([0.0, 1e-6, 0.1, 3.0, 50.0])
    # −expm1(−x) = x − x²/2 + …; in float32, where 1 − p^q would have no digit left
    torch.testing.assert_close(generalised_cross_entropy(cross_entropy, 1e-9), cross_entropy, rtol=1e-6, atol=0.0)


def test_at_one_it_is_half_the_absolute_error_over_classes() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    errors = (functional.one_hot(labels, 4) - logits.softmax(-1)).abs().sum(-1)
    found = generalised_cross_entropy(functional.cross_entropy(logits, labels, reduction="none"), 1.0)
    torch.testing.assert_close(found, errors / 2)


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_the_gradient_is_that_of_cross_entropy_times_p_to_the_q(q: float) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    (found,) = torch.autograd.grad(
        generalised_cross_entropy(functional.cross_entropy(logits, labels, reduction="none"), q).sum(), logits
    )
    p = logits.detach().softmax(-1)
    expected = p.gather(1, labels[:, None]) ** q * (p - functional.one_hot(labels, 3))
    torch.testing.assert_close(found, expected)


def test_a_label_that_is_held_for_impossible_gives_no_gradient_and_no_nan() -> None:
    logits = torch.tensor([[300.0, 0.0]], requires_grad=True)  # p of the label underflows
    loss = DomainLoss(InterpolationConfig(output_dir="unused", use_cpu=True, domain_loss="gce"))
    loss.is_domain = torch.tensor([True])
    found = loss((logits,), torch.tensor([1]))
    assert found.item() == pytest.approx(1 / 0.7)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.tolist() == [[0.0, 0.0]]


def domain_loss(q: float = 0.5, is_domain: list[bool] | None = None) -> DomainLoss:
    found = DomainLoss(InterpolationConfig(output_dir="unused", use_cpu=True, domain_loss="gce", gce_q=q))
    found.is_domain = None if is_domain is None else torch.tensor(is_domain)
    return found


P = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
"""Probabilities of two classes."""


def test_general_examples_keep_cross_entropy() -> None:
    found = domain_loss(0.5, [True, False, True])({"logits": P.log()}, torch.tensor([1, 0, 0]))
    assert found.item() == pytest.approx((1.0 + math.log(2) + 1.0) / 3)  # p = 1/4, 1/2, 1/4


def test_without_a_domain_it_is_cross_entropy() -> None:
    labels = torch.tensor([1, 0, 0])
    torch.testing.assert_close(
        domain_loss()({"logits": P.log()}, labels), functional.cross_entropy(P.log(), labels), rtol=1e-6, atol=0.0
    )


def test_tokens_without_a_label_do_not_count() -> None:
    logits = P.log()[None].repeat(2, 1, 1)
    labels = torch.tensor([[1, -100, 0], [-100, 0, -100]])
    loss = domain_loss(0.5, [True, False])
    assert loss((logits,), labels).item() == pytest.approx((1.0 + 1.0 + math.log(2)) / 3)
    assert loss((logits,), labels, num_items_in_batch=torch.tensor(6)).item() == pytest.approx((2 + math.log(2)) / 6)
    assert loss((logits,), torch.full_like(labels, -100)).item() == 0.0


@pytest.mark.parametrize("labels", [torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[1, 0]] * 3), torch.tensor([1, 0])])
def test_labels_that_are_no_class_ids_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs one class id for each row of logits, got torch\.\w+ labels of shape"):
        domain_loss()({"logits": P.log()}, labels)


# In the trainer.


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
REMEDIES: dict[str, dict[str, Any]] = {
    "gce": {"domain_loss": "gce", "gce_q": 0.5},
    "smoothing": {"label_smoothing_factor": 0.2},
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


@pytest.mark.parametrize("batch_size", [8, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_what_one_would_write_by_hand(tmp_path: Path, kind: str, batch_size: int) -> None:
    trainer = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1, max_grad_norm=0.0, **REMEDIES["gce"])
    model = KINDS[kind][0]()
    batch, is_domain = first_batch(trainer, kind)
    assert is_domain.sum() == 4
    log_probs = model(batch["input_ids"]).logits.log_softmax(-1)
    log_p = log_probs.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    chosen = is_domain.reshape(-1, *[1] * (log_p.dim() - 1))
    by_label = torch.where(chosen, 2 * (1 - log_p.exp().sqrt()), -log_p)[batch["labels"] != -100]
    by_label.mean().backward()
    assert losses(trainer) == pytest.approx([by_label.mean().item()], rel=1e-5)
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_general_data_alone_train_as_without_it(tmp_path: Path, kind: str) -> None:
    found = [run(tmp_path, kind, alpha_end=0.0, **more) for more in ({}, REMEDIES["gce"])]
    assert losses(found[1]) == pytest.approx(losses(found[0]), rel=1e-6)
    for name, tensor in weights(found[0]).items():
        torch.testing.assert_close(weights(found[1])[name], tensor, rtol=1e-5, atol=1e-7)


def test_the_domain_trains_otherwise_with_it_and_more_so_with_a_larger_q(tmp_path: Path) -> None:
    plain = run(tmp_path, "examples", alpha_start=1.0)
    far, near = (run(tmp_path, "examples", alpha_start=1.0, domain_loss="gce", gce_q=q) for q in (1.0, 0.1))

    def distance(trainer: Trainer) -> float:
        return sum(float((weights(trainer)[name] - tensor).square().sum()) for name, tensor in weights(plain).items())

    assert distance(far) > 10 * distance(near) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remedy", REMEDIES)
def test_eight_times_one_equals_one_times_eight(tmp_path: Path, remedy: str, kind: str) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 8, "per_device_eval_batch_size": 8, **REMEDIES[remedy]}
    whole, split = run(tmp_path, kind, 8, **settings), run(tmp_path, kind, 1, **settings)
    for key in ("loss", "grad_norm", "loss_general", "loss_domain", "eval_general_loss", "eval_domain_loss"):
        logged = [[entry[key] for entry in trainer.state.log_history if key in entry] for trainer in (whole, split)]
        assert logged[0]
        assert logged[1] == pytest.approx(logged[0], rel=1e-4), key
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, rtol=1e-4, atol=1e-6)


def train_apart(folder: str, name: str, kind: str, remedy: str, batch_size: int, accumulation: int) -> None:
    """Train in one of the processes and write down what was logged and learnt."""
    trainer = run(
        Path(folder),
        kind,
        batch_size,
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=8,
        per_device_eval_batch_size=4,
        **REMEDIES[remedy],
    )
    keys = ("loss", "loss_domain", "eval_domain_loss")
    logged = {key: [entry[key] for entry in trainer.state.log_history if key in entry] for key in keys}
    rank = trainer.args.process_index
    Path(folder, f"{name}{rank}.json").write_text(json.dumps(logged))
    torch.save(trainer.model.state_dict(), Path(folder, f"{name}{rank}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remedy", REMEDIES)
def test_two_processes_are_one(tmp_path: Path, remedy: str, kind: str) -> None:
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "whole", kind, remedy, 8, 1)
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "part", kind, remedy, 2, 2, processes=2)
    whole, *parts = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole0", "part0", "part1"))
    for part in parts:
        for key, values in whole.items():
            assert len(values) >= 1
            assert part[key] == pytest.approx(values, rel=1e-4), key
    states = [torch.load(tmp_path / f"{name}.pt") for name in ("whole0", "part0", "part1")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)
        assert torch.equal(states[1][name], states[2][name])


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_what_is_logged_by_corpus_are_cross_entropy(tmp_path: Path, kind: str) -> None:
    trainer = run(tmp_path, kind, alpha_start=0.5, max_steps=1, learning_rate=0.0, **REMEDIES["gce"])
    batch, is_domain = first_batch(trainer, kind)
    logits = trainer.model(batch["input_ids"]).logits
    by_example = [
        functional.cross_entropy(logits[row].reshape(-1, 2), batch["labels"][row].reshape(-1)).item()
        for row in is_domain.nonzero().flatten()
    ]
    assert trainer.state.log_history[0]["loss_domain"] == pytest.approx(sum(by_example) / 4, rel=1e-5)
    host = Trainer(trainer.model, TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none"))
    for side, dataset in trainer.eval_dataset.items():
        found = trainer.evaluate(dataset, metric_key_prefix="x")["x_loss"]
        assert found == pytest.approx(host.evaluate(dataset)["eval_loss"], rel=1e-6), side


def test_it_goes_with_distillation(tmp_path: Path) -> None:
    # M₀ is the model itself, so the anchor adds nothing to the first step's loss and pulls at later ones
    settings = {"alpha_start": 1.0, "anchor": "distill", "anchor_strength": 2.0, **REMEDIES["gce"]}
    held = {"anchor_alpha_schedule": {"type": "constant", "value": 0.0}}
    whole, split = (run(tmp_path, "tokens", size, **settings, **held) for size in (8, 1))
    alone = run(tmp_path, "tokens", alpha_start=1.0, **REMEDIES["gce"])
    assert losses(whole)[0] == pytest.approx(losses(alone)[0], rel=1e-5)
    assert losses(whole)[3] > 1.001 * losses(alone)[3]
    assert losses(split) == pytest.approx(losses(whole), rel=1e-4)


# Label smoothing over a mixture is the host's.


@pytest.mark.parametrize("batch_size", [8, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixtures_smoothed_loss_is_the_hosts_on_the_same_batch(tmp_path: Path, kind: str, batch_size: int) -> None:
    trainer = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1, **REMEDIES["smoothing"])
    batch, is_domain = first_batch(trainer, kind)
    assert is_domain.sum() == 4
    host = Trainer(KINDS[kind][0](), config(tmp_path, **REMEDIES["smoothing"]))
    expected = host.compute_loss(host.model, dict(batch)).item()
    assert losses(trainer) == pytest.approx([expected], rel=1e-5)
    plain = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1)
    assert losses(plain)[0] != pytest.approx(expected, rel=1e-5)


# What is refused, before anything is computed.


def with_head(num_labels: int = 2, problem_type: str | None = None) -> BertForSequenceClassification:
    shape = {**tiny_model().config.to_dict(), "num_labels": num_labels, "problem_type": problem_type}
    return BertForSequenceClassification(BertConfig(**shape))


def causal_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_embd=8, n_layer=1, n_head=1, n_positions=16))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "causal": (causal_model, "needs a model for sequence or token classification, got GPT2LMHeadModel"),
    "masked": (masked_model, "got BertForMaskedLM"),
    "several labels": (lambda: with_head(3, "multi_label_classification"), "got multi_label_classification"),
    "regression": (lambda: with_head(2, "regression"), "one class for each example, got regression"),
    "one number": (lambda: with_head(1), "one class for each example, got regression"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_heads_without_a_class_for_each_label_are_refused(tmp_path: Path, case: str) -> None:
    make_model, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        InterpolationTrainer(make_model(), config(tmp_path, domain_loss="gce"), train_dataset=mixture())


def test_another_setting_of_the_loss_is_refused(tmp_path: Path) -> None:
    args = config(tmp_path, domain_loss="gce")
    with pytest.raises(ValueError, match="and `compute_loss_func` would both set the loss"):
        InterpolationTrainer(tiny_model(), args, train_dataset=mixture(), compute_loss_func=lambda *_, **__: 0)
    objectives = {"masked-lm": Objective(masked_model(), lambda rows: rows)}
    with pytest.raises(ValueError, match="and `objectives` would both"):
        InterpolationTrainer(tiny_model(), args, train_dataset=mixture(), objectives=objectives)
    args = config(tmp_path, domain_loss="gce", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="and `label_smoothing_factor` would both"):
        InterpolationTrainer(tiny_model(), args, train_dataset=mixture())


def test_an_ordinary_dataset_has_no_domain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a mixture as `train_dataset`"):
        InterpolationTrainer(tiny_model(), config(tmp_path, domain_loss="gce"), train_dataset=corpus(0, 8))


@pytest.mark.parametrize("q", [0.0, -0.1, 1.01, math.nan])
def test_q_must_lie_above_0_and_up_to_1(tmp_path: Path, q: float) -> None:
    with pytest.raises(ValueError, match=r"`gce_q` must lie in \(0, 1\], got"):
        config(tmp_path, domain_loss="gce", gce_q=q)
    assert config(tmp_path, domain_loss="gce", gce_q=1.0).gce_q == 1.0


def test_names_and_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`domain_loss` must be gce, got 'gcce'.*Did you mean 'gce'"):
        config(tmp_path, domain_loss="gcce")
    with pytest.raises(ValueError, match=r"`gce_q` \(0\.5\) needs `domain_loss` to be gce, got None"):
        config(tmp_path, gce_q=0.5)


# From a recipe.


def test_a_recipe_trains_with_it(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe({**toy_recipe, "domain_loss": "gce", "alpha_start": 1.0}))
    assert cli.main(["train", path, "--gce_q", "0.5"]) == 0
    robust = json.loads((Path(toy_recipe["output_dir"]) / RESULTS_NAME).read_text())
    assert (robust["config"]["domain_loss"], robust["config"]["gce_q"]) == ("gce", 0.5)
    first = next(entry for entry in robust["log_history"] if "loss" in entry)
    # the one is the mean of 2(1 − √p), the other that of −ln p ≥ 2(1 − √p)
    assert 0 < first["loss"] < first["loss_domain"]
    assert "domain accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "causal-lm", "label_names": None}, "sequence or token classification, got AutoModelForCausalLM"),
        ({"problem_type": "multi_label_classification"}, "one class for each example, got multi_label_classification"),
    ],
)
def test_a_recipe_without_a_class_for_each_label_is_refused_before_anything_is_loaded(
    toy_recipe: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    toy_recipe["corpora"]["general"]["path"] = "no_such_file.jsonl"
    recipe, args = parse_recipe({**toy_recipe, **fields, "domain_loss": "gce"})
    with pytest.raises(ValueError, match=message):
        check_recipe(recipe, args)
