"""Supervised fine-tuning with TRL's `SFTTrainer` over a mixture whose share of domain examples rises.

    python recipes/other_trainers/sft.py --output_dir out/sft --max_steps 100

trains a toy model on toy data. With `--model`, `--general` and `--domain` it takes real ones; every field of
`SFTConfig` and of `InterpolationConfig` is a flag.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from toy import Sources, load, toy_sentences, write_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

from hf_interp import InterpolationConfig, InterpolationMixin


class InterpolationSFTTrainer(InterpolationMixin, SFTTrainer):
    """TRL's `SFTTrainer` that takes a mixture as `train_dataset` and prepares each corpus as it does its own."""


@dataclass
class InterpolationSFTConfig(SFTConfig, InterpolationConfig):
    """TRL's settings, with its defaults, and those of α."""


def toy_corpora(split: str) -> dict[str, datasets.Dataset]:
    """Sentences as prompts, and what they say as completions."""
    return {
        side: datasets.Dataset.from_list(
            [{"prompt": row["text"], "completion": f" {row['label']}"} for row in toy_sentences(side, split)]
        )
        for side in ("general", "domain")
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, evaluate on both sides of the toy data if that is what was trained on, and return the metrics."""
    parser = HfArgumentParser([Sources, InterpolationSFTConfig])
    sources, args = parser.parse_args_into_dataclasses(argv)
    is_toy = sources.general is None
    with tempfile.TemporaryDirectory() as folder:
        name = sources.model or write_toy_model(Path(folder), is_decoder=True)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(name)
    trainer = InterpolationSFTTrainer(
        model=model,
        args=args,
        train_dataset=toy_corpora("train") if is_toy else load({"general": sources.general, "domain": sources.domain}),
        eval_dataset=toy_corpora("test") if is_toy else None,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return trainer.evaluate() if is_toy else {}


if __name__ == "__main__":
    for key, value in main().items():
        print(f"{key}: {value}")
