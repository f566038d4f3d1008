"""Tiny models of several architectures, three layers deep, for any task; and a batch for each."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    set_seed,
)

_BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_BART = {
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "pad_token_id": 0,
}

CONFIGS: dict[str, Callable[..., Any]] = {
    "albert": lambda **kwargs: AlbertConfig(**_BERT, embedding_size=8, **kwargs),
    "bert": lambda **kwargs: BertConfig(**_BERT, **kwargs),
    "distilbert": lambda **kwargs: DistilBertConfig(
        vocab_size=60, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=64, **kwargs
    ),
    "roberta": lambda **kwargs: RobertaConfig(**_BERT, **_ENDS, **kwargs),
    "gpt2": lambda **kwargs: GPT2Config(
        vocab_size=60, n_embd=16, n_layer=3, n_head=2, n_positions=64, pad_token_id=0, **_ENDS, **kwargs
    ),
    "llama": lambda **kwargs: LlamaConfig(**_BERT, num_key_value_heads=2, **_ENDS, **kwargs),
    "t5": lambda **kwargs: T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, decoder_start_token_id=0, **kwargs
    ),
    "bart": lambda **kwargs: BartConfig(vocab_size=60, d_model=16, **_BART, **_ENDS, **kwargs),
}
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    None: "AutoModelForMaskedLM",
}
"""PEFT's name for a task → the class of transformers."""


def make_model(kind: str, task: str | None, **kwargs: Any) -> PreTrainedModel:
    """A model with random weights, always the same; classifiers have two labels."""
    set_seed(0)
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        kwargs["id2label"] = {0: "no", 1: "yes"}
    return getattr(transformers, CLASSES[task]).from_config(CONFIGS[kind](**kwargs))


def make_batch(kind: str, task: str | None) -> dict[str, torch.Tensor]:
    """Four sequences of eight tokens with labels."""
    ids = torch.randint(4, 60, (4, 8), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 1 if kind == "t5" else 2  # the end, by which BART's classifier reads a sequence
    labels = {"SEQ_CLS": torch.tensor([0, 1, 0, 1]), "TOKEN_CLS": ids % 2}.get(str(task), ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels.clone()}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """w4 to w59 are the words of these models; a text ends with the token 2, and 3 is any other word."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, 60))]
    words = Tokenizer(models.WordLevel({mark: number for number, mark in enumerate(marks)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
