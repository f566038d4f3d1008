"""Toy corpora and untrained models for the examples of this folder, which need no network for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hf_interp.commands.demo import ToyShift


@dataclass
class Sources:
    """What is trained, on what."""

    model: str | None = field(default=None, metadata={"help": "A model of the kind that is trained; a toy by default."})
    general: str | None = field(default=None, metadata={"help": "A file with the columns that the trainer takes."})
    domain: str | None = field(default=None, metadata={"help": "The same for the domain; a toy without these two."})

    def __post_init__(self) -> None:
        if (self.general is None) != (self.domain is None):
            raise ValueError("Give both `--general` and `--domain`, or neither for toy data.")


SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
SIZES = {"general": 400, "domain": 100}
SHIFT = ToyShift()


def toy_sentences(side: str, split: str) -> list[dict[str, str]]:
    """Sentences (`text`) and what they say of something (`label`): "positive" or "negative"."""
    return list(SHIFT.sentences(side, SIZES[side], split=split, noisy=False))


def write_toy_model(folder: Path, *, is_decoder: bool) -> str:
    """An untrained model of two layers and its tokenizer of whole words; the folder is returned."""
    words = [*SPECIAL_TOKENS.values(), "positive", "negative", *SHIFT.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **SPECIAL_TOKENS).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2)) if is_decoder else BertModel(BertConfig(**sizes))
    model.save_pretrained(folder)
    return str(folder)


def load(paths: Mapping[str, str]) -> dict[str, datasets.Dataset]:
    """JSON lines, CSV or Parquet files, by side."""
    readers = {".csv": "csv", ".parquet": "parquet"}
    return {
        side: datasets.load_dataset(readers.get(Path(path).suffix, "json"), data_files=path, split="train")
        for side, path in paths.items()
    }
