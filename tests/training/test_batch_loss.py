"""The loss of a mixture: the same however the global batch is split, and that of `Trainer` on the same batch."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import numpy as np
import processes
import pytest
import torch
from scipy import stats
from toys import (
    DOMAIN_FIRST,
    NotingTrainer,
    config,
    corpus,
    logged,
    losses,
    mixture,
    same_weights,
    tiny_model,
    weights,
)
from transformers import (
    BertForPreTraining,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    set_seed,
)

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import linear
from hf_interp.training.loss_scale import (
    count_batch,
    counted_labels,
    mean_over_examples,
    part_of_batch,
    zero_without_labels,
)
from hf_interp.training.private import delta_of, format_private, most_read, mu_of

SMOOTHING = {"label_smoothing_factor": 0.2}


def token_corpus(first: int, count: int) -> datasets.Dataset:
    """Five tokens an example, of which the first one to four have a label; of the tenth example none has."""
    rows = range(first, first + count)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[number, *(1 + number * place % 1999 for place in range(2, 6))] for number in rows],
            "labels": [
                [number % 2 if place <= number % 4 and number % 10 else -100 for place in range(5)] for number in rows
            ],
        }
    )


def sentence_pairs(first: int, count: int) -> datasets.Dataset:
    return token_corpus(first, count).add_column("next_sentence_label", [number % 3 % 2 for number in range(count)])


def pictures(first: int, count: int) -> datasets.Dataset:
    """Pictures of which some pixels have the label 255, which does not count."""
    draw = torch.Generator().manual_seed(first)
    labels = torch.randint(0, 2, (count, 16, 16), generator=draw)
    labels[torch.rand(count, 16, 16, generator=draw) < torch.rand(count, 1, 1, generator=draw)] = 255
    given = {"pixel_values": torch.randn(count, 3, 16, 16, generator=draw).tolist(), "labels": labels.tolist()}
    given["pixel_values"][0][0][0][0] = float(first)
    return datasets.Dataset.from_dict({**given, "input_ids": [[number] for number in range(first, first + count)]})


def segmenter() -> SegformerForSemanticSegmentation:
    sizes = {
        "hidden_sizes": [8] * 4,
        "depths": [1] * 4,
        "num_attention_heads": [1] * 4,
        "decoder_hidden_size": 8,
        "sr_ratios": [1] * 4,
    }
    rates = dict.fromkeys(("drop_path_rate", "classifier_dropout_prob", "hidden_dropout_prob"), 0.0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, **rates, num_labels=2))
    model.decode_head.batch_norm = torch.nn.Identity()  # which looks at the examples of a micro-batch together
    return model


DECODER = {
    "vocab_size": 2000,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
T5_SIZES = {
    "vocab_size": 2000,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 8,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
}


def experts() -> MixtralForCausalLM:
    given = {"num_local_experts": 3, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    return MixtralForCausalLM(MixtralConfig(**DECODER, **given))


class Kind(NamedTuple):
    """A model and its data."""

    model: Callable[[], Any]
    corpus: Callable[[int, int], datasets.Dataset] = token_corpus


KINDS = {
    "examples": Kind(lambda: tiny_model(0.0), corpus),
    "tokens": Kind(lambda: BertForTokenClassification(tiny_model(0.0).config)),
    "causal": Kind(lambda: LlamaForCausalLM(LlamaConfig(**DECODER))),
    "sequence": Kind(lambda: T5ForConditionalGeneration(T5Config(**T5_SIZES, decoder_start_token_id=0))),
    "pretraining": Kind(lambda: BertForPreTraining(tiny_model(0.0).config), sentence_pairs),
    "segmentation": Kind(segmenter, pictures),
}
SMOOTHED = ("examples", "tokens", "causal", "sequence")


def run(folder: Path, kind: str, batch_size: int = 8, *, data: Any = None, **kwargs: Any) -> NotingTrainer:
    """Train over a mixture with global batches of eight."""
    settings = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 8 // batch_size,
        "optim": "sgd",
        "learning_rate": 0.5,
        "remove_unused_columns": kind != "segmentation",
        **kwargs,
    }
    make = KINDS[kind].corpus
    data = data or {"general": make(0, 40), "domain": make(DOMAIN_FIRST, 12)}
    eval_data = {side: dataset.select(range(8)) for side, dataset in data.items()}
    trainer = Kinds(model_of(kind), config(folder, **settings), train_dataset=data, eval_dataset=eval_data)
    trainer.train()
    return trainer


def model_of(kind: str) -> Any:
    set_seed(7)
    return KINDS[kind].model()


class Kinds(NotingTrainer):
    """Keeps the numbers of pictures from the model, which takes no tokens."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, without_numbers(inputs), *args, **kwargs)


def without_numbers(inputs: Any) -> Any:
    return {name: value for name, value in inputs.items() if name != "input_ids" or "pixel_values" not in inputs}


def first_batch(trainer: NotingTrainer, kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the first step has read, and which of it is of the domain."""
    numbers = trainer.seen[0]
    rows = [KINDS[kind].corpus(number, 1)[0] for number in numbers]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return batch, torch.tensor(numbers) >= DOMAIN_FIRST


@pytest.mark.parametrize(
    ("kind", "settings"), [*((kind, {}) for kind in KINDS), *((kind, SMOOTHING) for kind in SMOOTHED)]
)
def test_eight_times_one_equals_one_times_eight(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 8, "per_device_eval_batch_size": 8, **settings}
    whole, split = run(tmp_path, kind, 8, **settings), run(tmp_path, kind, 1, **settings)
    keys = ["loss", "grad_norm", "eval_general_loss", "eval_domain_loss"]
    for key in keys + ["loss_general", "loss_domain"] * (kind not in ("pretraining", "segmentation")):
        found = [[entry[key] for entry in trainer.state.log_history if key in entry] for trainer in (whole, split)]
        assert found[0]
        assert found[1] == pytest.approx(found[0], rel=1e-4), key
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_global_batch_without_a_label_costs_nothing(tmp_path: Path) -> None:
    rows = token_corpus(0, 12).map(lambda row: {"labels": [-100] * 5})
    for kind in ("tokens", "causal"):
        for batch_size in (8, 1):
            trainer = run(tmp_path, kind, batch_size, data={"general": rows, "domain": rows})
            assert losses(trainer) == [0.0] * 8
            assert all(
                torch.equal(tensor, weights(trainer)[name]) for name, tensor in model_of(kind).state_dict().items()
            )


def test_the_experts_auxiliary_loss_is_the_mean_of_those_of_the_micro_batches(tmp_path: Path) -> None:
    KINDS["experts"] = Kind(experts)
    model = model_of("experts").train()
    trainer = run(tmp_path, "experts", 2, max_steps=1, alpha_start=0.5)
    del KINDS["experts"]
    rows = [token_corpus(number, 1)[0] for number in trainer.seen[0]]
    parts = [
        {key: torch.tensor([row[key] for row in rows[first : first + 2]]) for key in rows[0]} for first in (0, 2, 4, 6)
    ]
    parts = [{name: part[name] for name in ("input_ids", "labels")} for part in parts]
    counts = [part["labels"][:, 1:].ne(-100).sum() for part in parts]
    loss = 0.0
    for part, count in zip(parts, counts, strict=True):
        outputs = model(**part)
        added = 0.5 * outputs.aux_loss
        loss = loss + added / 4 + (torch.nan_to_num(outputs.loss - added) * count / sum(counts))
    loss.backward()
    assert losses(trainer) == [pytest.approx(loss.item(), rel=1e-5)]
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm()
    assert logged(trainer, "grad_norm")[0] == pytest.approx(norm.item(), rel=1e-4)


def test_a_loss_function_of_the_users_keeps_its_scale(tmp_path: Path) -> None:
    def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def train(batch_size: int) -> NotingTrainer:
        args = config(tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=8 // batch_size)
        data = {"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 12)}
        trainer = NotingTrainer(tiny_model(0.0), args, train_dataset=data, compute_loss_func=loss_of)
        trainer.train()
        return trainer

    assert losses(train(2)) == pytest.approx(losses(train(8)), rel=1e-4)


def test_a_scale_that_is_declared_on_the_trainer_is_kept(tmp_path: Path) -> None:
    found = {}
    for declared in (None, False, True):
        args = config(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1)
        data = {"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 12)}
        trainer = NotingTrainer(tiny_model(0.0), args, train_dataset=data)
        trainer.loss_is_scaled_for_ga = declared
        trainer.train()
        assert trainer.loss_is_scaled_for_ga is declared
        (found[declared],) = losses(trainer)
    assert found[False] == pytest.approx(found[None], rel=1e-5)
    assert found[True] == pytest.approx(4 * found[None], rel=1e-5)  # the sum of four means, as declared


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
        **(SMOOTHING if kind in SMOOTHED else {}),
    )
    keys = ("loss", "eval_domain_loss", *(["loss_domain"] if kind in SMOOTHED else []))
    found = {key: [entry[key] for entry in trainer.state.log_history if key in entry] for key in keys}
    rank = trainer.args.process_index
    Path(folder, f"{name}{rank}.json").write_text(json.dumps(found))
    torch.save(trainer.model.state_dict(), Path(folder, f"{name}{rank}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["examples", "tokens", "pretraining", "causal"])
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
@pytest.mark.parametrize("kind", ["examples", "tokens"])
def test_a_mixtures_smoothed_loss_is_the_hosts_on_the_same_batch(tmp_path: Path, kind: str, batch_size: int) -> None:
    trainer = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1, **SMOOTHING)
    batch, is_domain = first_batch(trainer, kind)
    assert is_domain.sum() == 4
    host = Trainer(model_of(kind), config(tmp_path, **SMOOTHING))
    expected = host.compute_loss(host.model, dict(batch)).item()
    assert losses(trainer) == pytest.approx([expected], rel=1e-5)
    plain = run(tmp_path, kind, batch_size, alpha_start=0.5, max_steps=1)
    assert losses(plain)[0] != pytest.approx(expected, rel=1e-5)


# The scale of a loss by itself: what counts in a micro-batch, and its part of the global batch's loss.


LABELS = torch.tensor([[0, 1, -100], [1, -100, -100]])
PIXELS = torch.tensor([[[0, 255], [1, -100]]])
IGNORING = SimpleNamespace(semantic_loss_ignore_index=255)


@pytest.mark.parametrize(
    ("inputs", "shifts", "expected"),
    [
        ({"labels": LABELS}, False, [3, 2]),
        ({"labels": LABELS}, True, [1, 2]),
        ({"labels": LABELS, "shift_labels": LABELS}, True, [3, 2]),
        ({"labels": torch.tensor([0, -100, 1])}, False, [2, 3]),
        ({"labels": torch.tensor([0.5, -100.0])}, False, [2, 2]),
        ({"labels": torch.zeros(3, 4)}, False, [3, 3]),
        ({"labels": PIXELS}, False, [2, 1]),
        ({"labels": [{"boxes": []}]}, False, None),
        ({"start_positions": LABELS}, False, None),
    ],
)
def test_labels_and_examples_are_counted(inputs: Any, shifts: bool, expected: list[int] | None) -> None:
    found = count_batch(inputs, shift_labels=shifts, config=IGNORING)
    assert (None if found is None else found.tolist()) == expected


def test_a_part_is_the_share_of_the_labels_and_of_the_examples() -> None:
    totals, counts, added = torch.tensor([12, 8]), torch.tensor([3, 4]), torch.tensor(0.5)
    assert part_of_batch(torch.tensor(2.0), counts, totals).item() == 0.5
    assert part_of_batch(torch.tensor(2.0), counts, totals, added).item() == 1.5 * 0.25 + 0.5 * 0.5
    nothing, no_labels = torch.tensor(float("nan")), torch.tensor([0, 4])
    assert part_of_batch(nothing, no_labels, totals, added).item() == 0.25
    assert part_of_batch(nothing, no_labels, torch.tensor([0, 8])).item() == 0.0


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize(
    "labels",
    [LABELS, torch.tensor([[7, -100, -100]]), torch.tensor([1, -100]), torch.tensor([-100]), torch.zeros(3, 4)],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_part_that_is_the_whole_is_found_in_fewer_operations(labels: Any, shifts: bool, kind: torch.dtype) -> None:
    inputs, weight = {"labels": labels}, torch.tensor(0.3, dtype=kind, requires_grad=True)
    counts, targets = count_batch(inputs, shift_labels=shifts, config=None), counted_labels(inputs, shift_labels=shifts)
    assert counts is not None
    assert targets is not None
    whole, found = part_of_batch(weight * 7, counts, counts), zero_without_labels(weight * 7, targets)
    assert (found.item(), found.dtype) == (whole.item(), whole.dtype)
    assert torch.autograd.grad(found, weight) == torch.autograd.grad(whole, weight)
    assert (whole.item() == 0) == (int(counts[0]) == 0)


def test_what_is_a_mean_over_examples_is_found() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(router_aux_loss_coef=0.25, router_z_loss_coef=0.5))
    assert mean_over_examples({}, {"logits": LABELS}, model) is None
    assert mean_over_examples({}, (1, 2), model) is None
    found = mean_over_examples({}, {"encoder_aux_loss": torch.tensor(2.0), "decoder_z_loss": torch.tensor(3.0)}, model)
    assert found is not None
    assert found.item() == 2.0
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1])
    inputs, outputs = {"sentence_order_label": labels}, {"sop_logits": logits, "aux_loss": torch.tensor(4.0)}
    found = mean_over_examples(inputs, outputs, model)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels) + 1.0)


# Gradients of domain rows that are private.


PRIVATE = {"dp_epsilon": 3.0, "dp_delta": 1e-3, "dp_max_grad_norm": 0.05, "max_steps": 4}


class Noise(TrainerCallback):
    """Sets the noise of a run, and shows its gradients."""

    def __init__(self, trainer: Any, **fields: float) -> None:
        self.trainer, self.fields = trainer, fields
        self.private: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.private = self.trainer._run.private
        for name, value in self.fields.items():
            setattr(self.private, name, value)


def train_privately(folder: Path, dropout: float = 0.0, **settings: Any) -> tuple[NotingTrainer, Any]:
    """Train with privacy; settings of `Noise` among those of the run."""
    fields = {name: settings.pop(name) for name in ("sigma", "key") if name in settings}
    trainer = NotingTrainer(tiny_model(dropout), config(folder, **{**PRIVATE, **settings}), train_dataset=mixture())
    noise = Noise(trainer, **fields)
    trainer.add_callback(noise)
    trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
    return trainer, noise.private


@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_noise_and_clipping_it_is_ordinary_training(tmp_path: Path, accumulation: int) -> None:
    split = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    ours, _ = train_privately(tmp_path / "a", sigma=0.0, dp_max_grad_norm=1e6, **split)
    plain = NotingTrainer(tiny_model(0.0), config(tmp_path / "b", max_steps=4, **split), train_dataset=mixture())
    plain.train()
    assert ours.seen == plain.seen
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(ours)[name], value, atol=1e-5, rtol=1e-5)
    keys = {key for entry in ours.state.log_history for key in entry}
    assert "loss_domain" not in keys  # it would tell of the rows


def test_a_step_is_that_of_the_definition(tmp_path: Path) -> None:
    """One step of plain descent at rate 1: minus the mean of clipped domain and whole general gradients, and noise."""
    settings = {"max_steps": 1, "alpha": 0.5, "alpha_schedule_type": None, "optim": "sgd", "learning_rate": 1.0}
    settings |= {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8}
    trainer, private = train_privately(tmp_path, **settings)
    assert private.sigma == pytest.approx(2 * most_read(trainer.plan) ** 0.5 / mu_of(3.0, 1e-3))
    model = tiny_model(0.0).train()
    rows = [(DOMAIN_FIRST if first >= DOMAIN_FIRST else 0, first) for first in trainer.seen[0]]
    assert sorted(side for side, _ in rows) == [0] * 4 + [DOMAIN_FIRST] * 4
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    norms = []
    for side, first in rows:
        inputs = {name: torch.tensor([value]) for name, value in corpus(first, 1)[0].items()}
        model.zero_grad()
        model(**inputs).loss.backward()
        found = {name: value.grad for name, value in model.named_parameters()}
        norm = torch.cat([grad.flatten() for grad in found.values()]).norm()
        norms.append(float(norm))
        for name, grad in found.items():
            total[name] += grad * (min(1.0, 0.05 / float(norm)) if side else 1.0) / 8
    assert min(norms) > 0.05
    seed = int(np.random.SeedSequence([private.key, 0]).generate_state(1, np.uint64)[0]) >> 1
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator) * private.sigma * 0.05 / 8
        torch.testing.assert_close(weights(trainer)[name], value - total[name] - noise, atol=1e-5, rtol=1e-4)


def test_a_private_run_resumes_exactly_and_keeps_its_key(tmp_path: Path) -> None:
    whole, private = train_privately(tmp_path / "a", 0.1, save_strategy="steps", save_steps=2)
    place = str(tmp_path / "a" / "checkpoint-2")
    again, same = train_privately(tmp_path / "b", 0.1, resume_from_checkpoint=place)
    assert same.key == private.key
    assert same_weights(weights(whole), weights(again))
    assert str(private.key) not in (tmp_path / "a" / "results.json").read_text("utf-8")
    other, another = train_privately(tmp_path / "c", 0.1)
    assert another.key != private.key
    assert not same_weights(weights(whole), weights(other))
    with pytest.raises(ValueError, match="`dp_epsilon` holds for one run: a checkpoint of a run without it"):
        train_privately(tmp_path / "d", 0.1, resume_from_checkpoint=place, alpha_end=0.4)


def train_privately_apart(folder: str, name: str, batch_size: int, settings: dict[str, Any]) -> None:
    """Train in one of the processes and write down what was learnt and logged."""
    sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 2, "logging_steps": 1}
    descent = {"optim": "sgd", "learning_rate": 0.5}  # Adam would make much of gradients that are rounding alone
    trainer, private = train_privately(Path(folder, name), **sizes, **descent, **settings)
    found = {"key": private.key, "losses": losses(trainer), "weights": weights(trainer)}
    torch.save(found, Path(folder, f"{name}{trainer.args.process_index}.pt"))


@pytest.mark.slow
def test_two_private_processes_are_one_and_resume_exactly(tmp_path: Path) -> None:
    """A sum over both and one noise; the first step, at α = 0, has no domain rows and so no noise."""

    def train(name: str, count: int, **settings: Any) -> list[dict[str, Any]]:
        processes.run(
            tmp_path / "log", train_privately_apart, str(tmp_path), name, 4 // count, settings, processes=count
        )
        return [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(count)]

    first, second = train("parts", 2, save_strategy="steps", save_steps=2)
    (whole,) = train("whole", 1, key=first["key"])
    again, _ = train("again", 2, resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert first["key"] == second["key"] == again["key"]
    assert same_weights(first["weights"], second["weights"])
    assert same_weights(first["weights"], again["weights"])
    assert first["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    for name, value in whole["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_delta_is_that_of_two_normal_distributions(epsilon: float, mu: float) -> None:
    """δ is the integral of what one density has above e^ε times the other."""
    first, second = stats.norm(mu, 1).pdf, stats.norm(0, 1).pdf
    grid = np.linspace(-12, 15, 400_001)
    expected = np.trapezoid(np.maximum(first(grid) - np.exp(epsilon) * second(grid), 0), grid)
    assert delta_of(epsilon, mu) == pytest.approx(expected, abs=1e-8)
    if expected > 1e-12:
        assert mu_of(epsilon, delta_of(epsilon, mu)) == pytest.approx(mu, rel=1e-4)


def test_the_noise_is_that_of_the_analytic_gaussian_mechanism() -> None:
    """Balle and Wang (2018) give 3.730632 for ε = 1, δ = 1e-5 and a sensitivity of 1."""
    assert 1 / mu_of(1.0, 1e-5) == pytest.approx(3.730632, abs=1e-4)


def test_readings_of_a_row_are_counted_by_step() -> None:
    specs = [
        CorpusSpec(name="web", side="general", num_examples=9),
        CorpusSpec(name="law", side="domain", num_examples=7),
        CorpusSpec(name="news", side="domain", num_examples=30),
    ]
    plan = MixturePlan(specs, alpha_schedule=linear(0.2, 1), batch_size=16, max_steps=11)
    counts: Counter[tuple[int, int]] = Counter()
    for step in range(11):
        draw = plan.locate(range(16 * step, 16 * step + 16))
        own = Counter(pair for pair in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True) if pair[0])
        counts.update({pair: count**2 for pair, count in own.items()})
    assert most_read(plan) == max(counts.values()) > 1


@pytest.mark.parametrize(("delta", "is_weak"), [(1 / 36, True), (1 / 38, False)])
def test_a_delta_above_one_over_the_rows_is_told(tmp_path: Path, delta: float, is_weak: bool) -> None:
    specs = [CorpusSpec(name=name, side="domain", num_examples=count) for name, count in (("law", 7), ("news", 30))]
    plan = MixturePlan(specs, alpha_schedule=linear(1, 1), batch_size=4, max_steps=2)
    lines = format_private(plan, config(tmp_path, **{**PRIVATE, "dp_delta": delta}))
    assert ["one over the 37 domain rows is 0.027" in line for line in lines] == [True, False][1 - is_weak :]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp_delta": None}, "`dp_epsilon` and `dp_delta` go together"),
        ({"dp_epsilon": 0.0}, "`dp_epsilon` must be a finite number above 0, got 0.0"),
        ({"dp_delta": 1.0}, r"`dp_delta` must lie in \(0, 1\), got 1.0"),
        ({"dp_max_grad_norm": 0.0}, "`dp_max_grad_norm` must be a finite number above 0, got 0.0"),
        ({"alpha_controller": "guard", "eval_strategy": "steps"}, "`dp_epsilon` needs no controller of α"),
        ({"anchor": "distill"}, "`dp_epsilon` needs no `anchor: distill`"),
        ({"adversarial": "fgm"}, "`dp_epsilon` needs `adversarial` to be left out"),
        ({"train_sampling_strategy": "group_by_length"}, "`dp_epsilon` needs no `group_by_length`"),
        ({"mixture_unit": "tokens"}, "`dp_epsilon` needs `mixture_unit: examples`"),
    ],
)
def test_what_has_no_guarantee_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        NotingTrainer(
            tiny_model(),
            config(tmp_path, **{**PRIVATE, **settings}),
            train_dataset=mixture(),
            eval_dataset=mixture(),
        )
    assert "\n" not in str(error.value)


def test_models_and_corpora_without_a_guarantee_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.dropout = torch.nn.BatchNorm1d(16)
    with pytest.raises(ValueError, match=r"looks at examples one by one, and so no batch norm \(it has 'dropout'\)"):
        NotingTrainer(model, config(tmp_path, **PRIVATE), train_dataset=mixture())
    streamed = {**mixture(), "domain": mixture()["domain"].to_iterable_dataset()}
    with pytest.raises(ValueError, match="`dp_epsilon` needs domain corpora that are no streams"):
        NotingTrainer(tiny_model(), config(tmp_path, **PRIVATE), train_dataset=streamed)
