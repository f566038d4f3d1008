"""Training on inputs a little off: against loops written by hand, under every split of the work, and interrupted."""

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import peft
import processes
import pytest
import torch
from torch import nn
from toy_media import write_toy_wav2vec2
from toy_recipes import toy_decoder
from toys import (
    DOMAIN_FIRST,
    causal_model,
    config,
    corpus,
    logged,
    losses,
    masked_model,
    mixture,
    move,
    moved,
    number_tokenizer,
    same_weights,
    seq2seq_model,
    tiny_model,
    token_mixture,
    tokens_model,
    weights,
)
from transformers import (
    AutoModelForAudioClassification,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
    set_seed,
)

from hf_interp import Corpus, InterpolationTrainer
from hf_interp.losses.adversarial import Perturbation, Rows, symmetric_kl
from hf_interp.mixture.collators import MaskingCollator, PackedCollator
from hf_interp.mixture.packing import pack
from hf_interp.tasks.runs import load_run_recipe
from hf_interp.training.heads import Objective

KINDS = ("fgm", "freelb", "r3f")
EPSILONS = {"fgm": 0.7, "freelb": 0.5, "r3f": 0.05}
CONSTANT: dict[str, Any] = {"alpha_schedule_type": "constant", "alpha_end": 0.25}


def settings(kind: str, **own: Any) -> dict[str, Any]:
    found = {"adversarial": kind, "adversarial_strength": 2.0, "adversarial_epsilon": EPSILONS[kind], **own}
    return {"adversarial_steps": 2, **found} if kind == "freelb" else found


def ragged(first: int, count: int) -> datasets.Dataset:
    """Texts of two to five numbers."""
    ids = [[number + place for place in range(2 + number % 4)] for number in range(first, first + count)]
    rows = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    return datasets.Dataset.from_dict({**rows, "labels": [number % 2 for number in range(first, first + count)]})


def texts() -> dict[str, Any]:
    return {"general": ragged(3, 40), "domain": ragged(DOMAIN_FIRST, 12)}


def run(folder: Path, model: Any, data: Any = None, resume: Any = None, **own: Any) -> InterpolationTrainer:
    ref_model, collator = own.pop("ref_model", None), own.pop("data_collator", None)
    objectives = own.pop("objectives", None)
    given = {"ref_model": ref_model, "objectives": objectives, "data_collator": collator}
    trainer = InterpolationTrainer(
        model,
        config(folder, **{"optim": "sgd", "learning_rate": 0.3, **own}),
        train_dataset=mixture() if data is None else data,
        processing_class=number_tokenizer(),
        **{name: value for name, value in given.items() if value is not None},
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# What one would write by hand.


def noise_of(slots: range, lengths: list[int], size: int, seed: int) -> torch.Tensor:
    """From U(−1, 1), by the seed and the slot of the example."""
    found = torch.zeros(len(slots), max(lengths), size)
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        generator = torch.Generator().manual_seed((seed ^ 0x5EED) * 1_000_003 + slot)
        found[row, :length] = torch.rand(length, size, generator=generator) * 2 - 1
    return found


def length_of(values: torch.Tensor) -> torch.Tensor:
    return values.square().sum((1, 2), keepdim=True).sqrt()


def loss_by_hand(kind: str, model: Any, batch: dict[str, torch.Tensor], slots: range, weight: float) -> Any:
    """The loss of one batch, over `inputs_embeds`."""
    lengths, epsilon = batch["attention_mask"].sum(1).tolist(), EPSILONS[kind]
    embed = model.get_input_embeddings()
    others = {name: value for name, value in batch.items() if name != "input_ids"}

    def outputs_at(delta: Any) -> Any:
        return model(inputs_embeds=embed(batch["input_ids"]) + delta, **others)

    def up(loss: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(loss, delta, retain_graph=True)
        return gradient / length_of(gradient)

    clean = outputs_at(0)
    noise = noise_of(slots, lengths, embed.embedding_dim, 42)
    if kind == "r3f":
        p, q = clean.logits.softmax(-1), outputs_at(epsilon * noise).logits.softmax(-1)
        added = ((p - q) * (p.log() - q.log())).sum(-1).mean()
    elif kind == "fgm":
        delta = torch.zeros_like(noise, requires_grad=True)
        added = outputs_at(epsilon * up(outputs_at(delta).loss, delta)).loss
    else:
        counts = torch.tensor(lengths)[:, None, None] * embed.embedding_dim
        delta, added = noise * epsilon / counts.sqrt(), 0.0
        for _ in range(2):
            delta.requires_grad_()
            loss = outputs_at(delta).loss
            delta = (delta + epsilon / 2 * up(loss, delta)).detach()
            delta = torch.where(length_of(delta) > epsilon, epsilon * delta / length_of(delta), delta)
            added = added + loss / 2
    return clean.loss, clean.loss + weight * added, added


@pytest.mark.parametrize("follows", ["1-alpha", "alpha"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_are_what_one_would_write_by_hand(tmp_path: Path, kind: str, follows: str) -> None:
    model, data = move(tiny_model(0.0)), texts()
    by_hand = copy.deepcopy(model)
    own = {"max_steps": 2, "per_device_train_batch_size": 8, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainer = run(tmp_path, model, data, **settings(kind, adversarial_follows=follows), **own, **CONSTANT)
    weight = 2.0 * (0.75 if follows == "1-alpha" else 0.25)
    assert trainer.plan is not None
    draw = trainer.plan.locate(range(16))
    sides = [data[planned.side] for planned in trainer.plan.corpora]
    rows = [sides[index][row] for index, row in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True)]
    collate = DataCollatorWithPadding(number_tokenizer())
    expected = []
    for step in range(2):
        slots = range(8 * step, 8 * step + 8)
        clean, loss, added = loss_by_hand(kind, by_hand, dict(collate(rows[slots.start : slots.stop])), slots, weight)
        by_hand.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= 0.3 * parameter.grad
        expected.append((loss.item(), added.item()))
        assert added > (clean if kind == "fgm" else 1e-4)
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(model.state_dict()[name], parameter.detach(), rtol=1e-4, atol=1e-6)
    assert losses(trainer) == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    assert logged(trainer, "adversarial_loss") == pytest.approx([added for _, added in expected], rel=1e-3)
    assert logged(trainer, "adversarial_weight") == [weight] * 2


def test_the_symmetric_divergence_has_a_gradient_to_both() -> None:
    one, other = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    p, q = one[[1, 3]].softmax(-1), other[[1, 3]].softmax(-1)
    by_hand = ((p - q) * (p.log() - q.log())).sum(-1)
    found = symmetric_kl(one, other, torch.tensor([1, 3]))
    torch.testing.assert_close(found, by_hand)
    for mine, theirs in zip(*(torch.autograd.grad(each.sum(), (one, other)) for each in (found, by_hand)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_weight_is_0_nothing_is_different(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"alpha_schedule_type": "constant", "alpha_end": 1.0}
    plain = run(tmp_path, tiny_model(0.3), **own)
    hardened = run(tmp_path, tiny_model(0.3), **own, **settings(kind))
    assert same_weights(weights(plain), weights(hardened))
    assert losses(plain) == losses(hardened)
    assert logged(hardened, "adversarial_weight") == [0.0] * 8
    assert f'adversarial="{kind}" has no weight in this run, where 1 − α is 0' in caplog.text


def test_passes_that_ascend_have_one_dropout(tmp_path: Path) -> None:
    """With hardly any way to go they all cost the same, and later draws are those of a run without."""
    own = {"max_steps": 2, "learning_rate": 0.0, **CONSTANT}
    plain = run(tmp_path, tiny_model(0.5), **own)
    for kind in ("fgm", "freelb"):
        hardened = run(tmp_path, tiny_model(0.5), adversarial=kind, adversarial_epsilon=1e-9, **own)
        weight = logged(hardened, "adversarial_weight")
        expected = [loss * (1 + each) for loss, each in zip(losses(plain), weight, strict=True)]
        assert losses(hardened) == pytest.approx(expected, rel=1e-5)
    noisy = run(tmp_path, move(tiny_model(0.5)), adversarial="r3f", adversarial_epsilon=1e-9, **own)
    assert min(logged(noisy, "adversarial_loss")) > 1e-3  # its second pass has a dropout of its own


# Noise and masks.


def test_padding_is_left_alone_and_noise_belongs_to_the_place() -> None:
    masks = {
        "attention_mask": torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 1, 0, 0], [0, 0, 1, 2]]),
    }
    value = torch.zeros(2, 4, 6)
    packed = Perturbation(tiny_model(), [Rows({"position_ids": masks["position_ids"]}, [4, 5])])
    assert packed.mask(0, value).all(-1).tolist() == [[True, True, False, False], [True] * 4]
    padded = Perturbation(tiny_model(), [Rows(masks, [4, 5])])
    noise = padded.noise(0, value, 42)
    assert torch.equal(noise.abs().sum(-1) > 0, masks["attention_mask"].bool())
    alone = Perturbation(tiny_model(), [Rows({}, [5])]).noise(0, value[:1, :3], 42)
    assert torch.equal(alone[0], noise[1, 1:])
    over_time = Perturbation(tiny_model(), [Rows({"attention_mask": torch.tensor([[1, 1, 0, 0, 0]])}, [0])])
    assert over_time.mask(0, torch.zeros(1, 3, 5))[0].all(0).tolist() == [True, True, False, False, False]
    many = Perturbation(tiny_model(), [Rows({}, range(50))]).noise(0, torch.zeros(50, 10, 10), 1)
    assert many.abs().max() <= 1
    assert many.mean() == pytest.approx(0, abs=0.02)
    assert many.var() == pytest.approx(1 / 3, rel=0.05)


def test_sound_is_perturbed_where_the_model_asks_for_its_gradients(tmp_path: Path) -> None:
    model = AutoModelForAudioClassification.from_pretrained(write_toy_wav2vec2(tmp_path / "ear", ["low", "high"]))
    sound, labels = torch.randn(2, 400, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1])
    given = sound.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model.eval()(input_values=given, labels=labels).loss, given)  # it asks for none
    inputs = Perturbation(model.train(), [Rows({}, [0, 1])])
    with inputs.applied(lambda _call, value: torch.zeros_like(value)):
        (found,) = torch.autograd.grad(model(input_values=sound, labels=labels).loss, inputs.added)
    torch.testing.assert_close(found.reshape(2, 400), expected)
    with inputs.applied(lambda _call, value: torch.full_like(value, 0.5)):
        moved = model(input_values=sound, labels=labels).loss
    torch.testing.assert_close(moved, model(input_values=sound + 0.5, labels=labels).loss)


# Every kind of model, and of what is trained.


def pixels(first: int, count: int) -> datasets.Dataset:
    images = [
        [[[(number * (x + 1) % 7) / 7.0 for x in range(4)] for _ in range(4)]] for number in range(first, first + count)
    ]
    labels = [number % 2 for number in range(first, first + count)]
    return datasets.Dataset.from_dict({"pixel_values": images, "labels": labels}).with_format("torch")


def image_model() -> Any:
    set_seed(7)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(image_size=4, patch_size=2, num_channels=1, **sizes, **off))


def adapted(model: Any = None) -> Any:
    set_seed(3)
    kind = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.0, target_modules=["query", "value"])
    found = peft.get_peft_model(tiny_model(0.0) if model is None else model, kind)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return found


def distilled() -> list[Corpus]:
    data = texts()
    return [
        Corpus("general", data["general"], "general", objective="distill"),
        Corpus("domain", data["domain"], "domain"),
    ]


def objectives() -> list[Corpus]:
    rows = ragged(3, 40).remove_columns("labels")
    return [Corpus("general", rows, "general", objective="mlm"), Corpus("domain", ragged(DOMAIN_FIRST, 12), "domain")]


def packed(first: int, count: int) -> datasets.Dataset:
    return pack(ragged(first, count).select_columns("input_ids"), 12, strategy="bfd")


def seeded_decoder() -> Any:
    set_seed(7)
    return toy_decoder(2000)


MODELS: dict[str, Any] = {
    "packed": lambda: {
        "model": seeded_decoder(),
        "data": {"general": packed(3, 80), "domain": packed(DOMAIN_FIRST, 40)},
        "data_collator": PackedCollator(number_tokenizer()),
    },
    "texts": lambda: {"model": tiny_model(0.0), "data": texts()},
    "tokens": lambda: {"model": tokens_model(), "data": token_mixture()},
    "causal": lambda: {"model": causal_model(), "data": token_mixture()},
    "seq2seq": lambda: {"model": seq2seq_model(), "data": token_mixture()},
    "images": lambda: {
        "model": image_model(),
        "data": {"general": pixels(0, 40), "domain": pixels(100, 12)},
        "data_collator": default_data_collator,
    },
    "adapter": lambda: {"model": adapted(), "data": texts()},
    "distilled adapter": lambda: {"model": adapted(), "data": distilled()},
    "anchored": lambda: {"model": tiny_model(0.0), "ref_model": moved(tiny_model(0.0)), "anchor": "distill"},
    "ordinary": lambda: {"model": tiny_model(0.0), "data": corpus(0, 48)},
    "objectives": lambda: {
        "model": tiny_model(0.0),
        "data": objectives(),
        "data_collator": DataCollatorWithPadding(number_tokenizer()),
        "objectives": {"mlm": Objective(masked_model(), MaskingCollator(number_tokenizer(), 0.4))},
    },
}


QUICK = [
    ("fgm", "objectives"),
    ("freelb", "packed"),
    ("freelb", "images"),
    ("r3f", "distilled adapter"),
    ("r3f", "ordinary"),
]
SPLIT = [
    pytest.param(kind, case, marks=() if (kind, case) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for case in MODELS
]


@pytest.mark.parametrize(("kind", "case"), SPLIT)
def test_eight_times_one_equals_one_times_eight(tmp_path: Path, kind: str, case: str) -> None:
    def trained(size: int) -> InterpolationTrainer:
        own = {"max_steps": 3, "per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        return run(tmp_path, **MODELS[case](), **own, **settings(kind), **CONSTANT)

    whole, split = trained(8), trained(1)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, rtol=1e-4, atol=2e-6)
    for key in ("loss", "adversarial_loss", "anchor_loss", "loss_general", "objective_loss_task"):
        if logged(whole, key)[0] is not None:
            assert logged(split, key) == pytest.approx(logged(whole, key), rel=2e-3, abs=1e-6), key
    assert min(logged(whole, "adversarial_loss")) > 0


def test_what_is_noted_of_corpora_is_of_the_inputs_as_they_are(tmp_path: Path) -> None:
    own = {"max_steps": 1, "log_loss_gap": True, "ref_model": moved(tiny_model(0.0)), **CONSTANT}
    plain, *others = (
        run(tmp_path, tiny_model(0.0), **own, **more) for more in ({}, *(settings(kind) for kind in KINDS))
    )
    for key in ("loss_general", "loss_domain", "loss_gap"):
        assert [logged(each, key) for each in others] == [pytest.approx(logged(plain, key), rel=1e-6)] * 3


def test_m0_says_what_it_says_of_the_inputs_as_they_are(tmp_path: Path) -> None:
    """A `PeftModel` is its own M₀, whose embeddings are the perturbed ones."""
    own: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 8, **settings("fgm"), **CONSTANT}
    model = adapted()
    mine = run(tmp_path, model, distilled(), **own)
    theirs = run(tmp_path, adapted(), distilled(), ref_model=tiny_model(0.0), **own)
    for name, tensor in weights(theirs).items():
        torch.testing.assert_close(weights(mine)[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing")  # its new name came during 5.x
def test_16_bits_checkpointing_and_smoothing_go_with_it(tmp_path: Path) -> None:
    for kind in KINDS:
        own = {"max_steps": 2, **settings(kind), **CONSTANT}
        whole = run(tmp_path, tiny_model(0.0), **own)
        halved = run(tmp_path, tiny_model(0.0), bf16=True, **own)
        assert logged(halved, "adversarial_loss") == pytest.approx(logged(whole, "adversarial_loss"), rel=0.1)
        again = run(tmp_path, tiny_model(0.0), gradient_checkpointing=True, **own)
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(weights(again)[name], tensor, rtol=1e-5, atol=1e-7)
        run(tmp_path, tiny_model(0.0), label_smoothing_factor=0.1, **own)


# Resuming, and several processes.


@pytest.mark.parametrize(("kind", "data"), [("fgm", "ordinary"), ("freelb", "mixture"), ("r3f", "mixture")])
def test_resume_equals_no_interruption(tmp_path: Path, kind: str, data: str) -> None:
    own = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 3, "gradient_accumulation_steps": 2}
    rows = texts() if data == "mixture" else ragged(3, 80)
    whole = run(tmp_path, tiny_model(0.3), rows, **own, **settings(kind))
    resumed = run(tmp_path, tiny_model(0.3), rows, str(tmp_path / "checkpoint-4"), **own, **settings(kind))
    assert same_weights(weights(whole), weights(resumed))
    assert logged(resumed, "adversarial_loss") == logged(whole, "adversarial_loss")


def train_apart(folder: str, name: str, kind: str, case: str, split: tuple[int, int]) -> None:
    """Train in one of the processes and write down what was logged and learnt."""
    own = {"max_steps": 4, "per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}
    trainer = run(Path(folder), **MODELS[case](), **own, **settings(kind), **CONSTANT)
    place = Path(folder, f"{name}{trainer.args.process_index}")
    place.with_suffix(".json").write_text(json.dumps([losses(trainer), logged(trainer, "adversarial_loss")]))
    torch.save(trainer.model.state_dict(), place.with_suffix(".pt"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "case"), [("fgm", "distilled adapter"), ("freelb", "ordinary"), ("r3f", "texts")])
def test_two_processes_are_one(tmp_path: Path, kind: str, case: str) -> None:
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "whole", kind, case, (8, 1))
    processes.run(tmp_path / "log", train_apart, str(tmp_path), "part", kind, case, (2, 2), processes=2)
    whole, *parts = (torch.load(tmp_path / f"{name}.pt") for name in ("whole0", "part0", "part1"))
    assert same_weights(*parts)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[0][name], tensor, rtol=1e-4, atol=2e-6)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole0", "part1"))
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3)


# What cannot be.


def regression_model() -> Any:
    return BertForSequenceClassification(BertConfig(**{**tiny_model().config.to_dict(), "num_labels": 1}))


class Bare(BertForSequenceClassification):
    """A model that does not tell what embeds its tokens."""

    def get_input_embeddings(self) -> Any:
        raise NotImplementedError


class Aside(BertForSequenceClassification):
    """A model that embeds its tokens with something else."""

    def get_input_embeddings(self) -> Any:
        return nn.Embedding(2, 2)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing")
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"adversarial": "fmg"}, r"`adversarial` must be one of fgm, freelb, r3f, got 'fmg'\. Did you mean 'fgm'\?"),
        ({"adversarial": "fgm", "adversarial_strength": 0.0}, "`adversarial_strength` must be a finite number above 0"),
        ({"adversarial": "fgm", "adversarial_epsilon": -1.0}, "`adversarial_epsilon` must be a finite number above 0"),
        ({"adversarial": "freelb", "adversarial_step_size": 0.0}, "`adversarial_step_size` must be a finite number"),
        ({"adversarial": "freelb", "adversarial_steps": 0}, "`adversarial_steps` must be at least 1, got 0"),
        ({"adversarial": "fgm", "adversarial_steps": 2}, r"`adversarial_steps` \(2\) needs .* freelb, got 'fgm'"),
        ({"adversarial_strength": 2.0}, r"`adversarial_strength` \(2.0\) needs `adversarial` to be fgm or freelb or"),
        ({"adversarial": "fgm", "adversarial_follows": "beta"}, "must be one of 1-alpha, alpha, got 'beta'"),
        ({"adversarial": "fgm", "adversarial_alpha_schedule": "linaer"}, "'linaer'.*Did you mean 'linear'"),
        ({"adversarial": "fgm", "torch_compile": True}, "a compiled model does not see. Leave one out"),
        (
            {
                "adversarial": "fgm",
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            "does not go with checkpointing that is reentrant",
        ),
        ({"adversarial": "fgm", "model": Bare}, "perturbs input embeddings, which Bare does not have"),
        ({"adversarial": "fgm", "model": Aside}, "Aside does not run its input embeddings"),
        ({"adversarial": "r3f", "model": regression_model}, "needs a distribution over classes, got regression"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, own: dict[str, Any], message: str) -> None:
    make = own.get("model", tiny_model)
    model = make(tiny_model().config) if isinstance(make, type) else make()
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path, model, max_steps=1, **{name: value for name, value in own.items() if name != "model"})
    assert "\n" not in str(caught.value)


def test_a_run_that_is_only_evaluated_is_not_hardened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`--adversarial` is of training, and here a run is evaluated\. Leave it out"):
        load_run_recipe(tmp_path, ["--adversarial=fgm"])
