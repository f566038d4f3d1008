"""Small things that several test files build: corpora and streams of numbers, tiny models, curves, noting trainers."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    set_seed,
)

from hf_interp import InterpolationConfig, InterpolationTrainer
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.tasks.corpora.dialogues import CHATML

DOMAIN_FIRST = 1000  # ids from here on belong to the domain


@cache
def corpus(first: int, count: int) -> datasets.Dataset:
    """Example i is a text of three tokens whose first is the number first + i; it is made once, as none changes it."""
    ids = range(first, first + count)
    rows = {"input_ids": [[number, 1 + number % 7, 2] for number in ids], "labels": [number % 2 for number in ids]}
    return datasets.Dataset.from_dict(rows)


def mixture(general: int = 40, domain: int = 12) -> dict[str, datasets.Dataset]:
    """A general corpus with the numbers from 0 on and a domain corpus with those from 1000 on."""
    return {"general": corpus(0, general), "domain": corpus(DOMAIN_FIRST, domain)}


def tiny_model(dropout: float = 0.1) -> BertForSequenceClassification:
    """A BERT of one layer that sees 2,000 numbers; always with the same weights."""
    set_seed(7)
    shape = bert_shape(2000, 16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return BertForSequenceClassification(shape)


def bert_shape(vocabulary: int, length: int, labels: Sequence[str] = (), **fields: Any) -> BertConfig:
    """The shape of a BERT of one layer, of 16 dimensions and two heads."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    named = {**sizes, **(names if labels else {}), **fields}
    return BertConfig(vocab_size=vocabulary, max_position_embeddings=length, **named)


def move(model: Any, amount: float = 0.3, seed: int = 1) -> Any:
    """The same model with other weights, where they can be trained, as if it had been."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def word_tokenizer(words: Iterable[str], *, marks_pairs: bool = False, **fields: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of words between spaces, after the special tokens among `fields`; else those of BERT are `SPECIAL`.

    Args:
        words: the vocabulary.
        marks_pairs: put [CLS] and [SEP] around texts, and tell the second of two by its token type.
        fields: of the tokenizer.
    """
    fields = {**SPECIAL, **fields}
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys([*SPECIAL.values(), *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if marks_pairs:
        ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        fields["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **fields)


def write_bert(
    folder: Path, tokenizer: Any, length: int, labels: Sequence[str] = (), *, head: bool = True, **fields: Any
) -> Path:
    """Write an untrained BERT of one layer, a classifier or without a head, with its tokenizer."""
    tokenizer.save_pretrained(folder)
    set_seed(3)
    kind = BertForSequenceClassification if head else BertModel
    kind(bert_shape(len(tokenizer), length, labels, **fields)).save_pretrained(folder)
    return folder


def number_tokenizer() -> PreTrainedTokenizerFast:
    """Every number below 2,000 is a token; 0 pads, 1 is unknown and 1999 masks."""
    words = Tokenizer(models.WordLevel({str(number): number for number in range(2000)}, unk_token="1"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", mask_token="1999", unk_token="1")


def masked_model() -> BertForMaskedLM:
    """A masked language model with a backbone of the size of `tiny_model`; always with the same weights."""
    shape = tiny_model(0.0).config
    set_seed(11)
    return BertForMaskedLM(shape)


SHORT: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
"""Settings of runs of a few steps."""


def config(output_dir: Path | str, **kwargs: Any) -> InterpolationConfig:
    """A configuration for short runs on the CPU."""
    own = {"max_steps": 8, "alpha_schedule_type": "linear", "dataloader_pin_memory": False}
    return InterpolationConfig(output_dir=str(output_dir), **{**SHORT, **own, **kwargs})


class Stop(TrainerCallback):
    """Ends a run after a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


class NotingMixin:
    """Notes the first token of every example that a training step gets, by optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: dict[int, list[int]] = {}
        self.alphas: dict[int, float] = {}
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        step = self.state.global_step
        self.seen.setdefault(step, []).extend(inputs["input_ids"][:, 0].tolist())
        self.alphas[step] = getattr(self, "alpha", None)
        return super().training_step(model, inputs, *args)


class NotingTrainer(NotingMixin, InterpolationTrainer):
    """`InterpolationTrainer` that notes what it reads."""


class NotingHost(NotingMixin, Trainer):
    """The host's trainer that notes what it reads."""


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the model's weights."""
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two models agree bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(trainer: Trainer) -> list[float]:
    """The logged training losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logged(trainer: Trainer, key: str) -> list[Any]:
    """What the training logs say, `None` where they say nothing of it."""
    return [entry.get(key) for entry in trainer.state.log_history if "loss" in entry]


# Curves over α.


def measured(values: Sequence[float | None], errors: Sequence[float | None] | float | None = None) -> dict[str, Any]:
    """A metric over α; one error is that of every α."""
    given = list(errors) if isinstance(errors, Sequence) else [errors] * len(values)
    return {"values": list(values), "std_errors": given}


def alpha_curve(
    domain: Mapping[str, Any], general: Mapping[str, Any], alphas: Sequence[float] = (0.0, 0.5, 1.0), **changes: Any
) -> AlphaCurve:
    """A curve with its metrics, as `measured` or as plain values, on both sides; the middle α is chosen."""
    report = {
        side: {name: found if isinstance(found, dict) else measured(found) for name, found in metrics.items()}
        for side, metrics in (("domain", domain), ("general", general))
    }
    given: dict[str, Any] = {
        "alphas": list(alphas),
        "selection": report,
        "report": report,
        "metric": next(iter(domain)),
        "objective": "best",
        "method": "grid",
        "alpha": alphas[len(alphas) // 2],
        "best_alpha": alphas[len(alphas) // 2],
        "reason": "It is the best.",
    }
    return AlphaCurve(**given | changes)


# Streams of numbers: plain ones, ones that know their place, one that breaks, and those of datasets.


NUMBERS = {"general": list(range(40)), "domain": list(range(DOMAIN_FIRST, DOMAIN_FIRST + 12))}


class Numbers(IterableDataset[int]):
    """Counts up, and notes how often it has been begun and how far it has been read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = 0
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        for number in range(self.count):
            self.given += 1
            yield number


class KeptNumbers(Numbers):
    """Counts up, and can tell where it is."""

    place = 0
    loaded = 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        first, self.loaded = self.loaded, 0
        for number in range(first, self.count):
            self.given += 1
            self.place = number + 1
            yield number

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["place"]


class Failing(IterableDataset[int]):
    """Counts up to 7, where it breaks."""

    def __iter__(self) -> Iterator[int]:
        yield from range(7)
        raise OSError("connection lost")


def rows(count: int, num_shards: int = 1) -> datasets.IterableDataset:
    """Row i of a stream has the number i."""
    return _numbered(count).to_iterable_dataset(num_shards=num_shards)


@cache
def _numbered(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"a": list(range(count))})


def number_of(example: Any) -> int:
    return int(example["a"] if isinstance(example, dict) else example)


STREAMS: dict[str, Callable[[], Any]] = {
    "torch": lambda: Numbers(400),
    "torch with a state": lambda: KeptNumbers(400),
    "1 shard": lambda: rows(400),
    "2 shards": lambda: rows(400, 2),
    "7 shards": lambda: rows(400, 7),
    "mapped": lambda: rows(400, 2).map(lambda row: {"a": row["a"]}),
    "short": lambda: rows(9, 3),
}
"""Streams of the numbers 0 … 399, of which no reader comes to an end, and one that is passed through often."""


# What M₀ is compared on: tokens with labels here and there, and a small model of every kind.


def byte_tokenizer(*, trims: bool, merges: Sequence[tuple[str, str]] = ()) -> Any:
    """Every byte is a token, and so are the marks of the template; places are told with or without white space."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    model = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(letters)}, merges=list(merges)))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.post_processor = processors.ByteLevel(trim_offsets=trims)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=model, chat_template=CHATML)


def moved(model: Any) -> Any:
    """A copy of a model with other weights: an M₀ from which there is a way to go."""
    return move(copy.deepcopy(model), 0.1)


def batch_read_by(trainer: InterpolationTrainer, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All that a run has read, from the plan."""
    assert trainer.plan is not None
    draw = trainer.plan.locate(range(len(trainer.plan)))
    sides = [data[planned.side] for planned in trainer.plan.corpora]
    seen = [sides[index][row] for index, row in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True)]
    return {key: torch.tensor([row[key] for row in seen]) for key in seen[0]}


@cache
def token_corpus(first: int, count: int) -> datasets.Dataset:
    """Five tokens an example, of which the first one to four have a label."""
    rows = range(first, first + count)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[1 + number * place % 99 for place in range(1, 6)] for number in rows],
            "labels": [[number % 2 if place <= number % 4 else -100 for place in range(5)] for number in rows],
        }
    )


def token_mixture() -> dict[str, Any]:
    return {"general": token_corpus(0, 40), "domain": token_corpus(DOMAIN_FIRST, 12)}


def tokens_model() -> Any:
    """A head that returns the mean over the micro-batch, whatever it is told."""
    set_seed(7)
    return BertForTokenClassification(tiny_model(0.0).config)


def masked_tokens_model(vocab_size: int = 100) -> Any:
    """A masked language model whose two ends share their weights."""
    set_seed(7)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(vocab_size=vocab_size, max_position_embeddings=16, **sizes, **off))


def causal_model() -> Any:
    """A head that divides by the number of labels of the whole batch, and shifts them without the host's knowledge."""
    set_seed(7)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=8, n_embd=16, n_layer=1, n_head=2, **off))


def seq2seq_model() -> Any:
    """A head that makes its inputs from the labels."""
    set_seed(7)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=100, decoder_start_token_id=0, **sizes))
