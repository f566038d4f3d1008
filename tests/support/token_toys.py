"""What M₀ is compared on: tokens with labels here and there, and a small model of every kind."""

import copy
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from toys import DOMAIN_FIRST, move, tiny_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_interp import InterpolationTrainer
from hf_interp.tasks.dialogues import CHATML


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
