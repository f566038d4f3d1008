"""Rewards with TRL's `GRPOTrainer` on prompts whose share of the domain rises.

    python recipes/other_trainers/grpo.py --output_dir out/grpo --max_steps 20

trains a toy model on toy data: a completion is worth 1 where it has the row's `answer`. With `--model`, `--general` and
`--domain` it takes real ones; every field of `GRPOConfig` is a flag.

`GRPOTrainer` samples its prompts itself, several times each, so that the mixin, which decides what is read where, is
refused before it. It is given the prompts in the order of the mixture instead, and told not to shuffle them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from toy import Sources, load, toy_sentences, write_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

from hf_interp import InterpolatedDataset
from hf_interp.mixture.schedules import linear


@dataclass
class MixedSources(Sources):
    """What is trained, on what, and α at the first and the last step."""

    alpha_start: float = field(default=0.0, metadata={"help": "The share of domain prompts at the first step."})
    alpha_end: float = field(default=1.0, metadata={"help": "At the last."})


def toy_corpora(split: str) -> dict[str, datasets.Dataset]:
    """Sentences as prompts, and what they say as the answer that is rewarded."""
    return {
        side: datasets.Dataset.from_list(
            [{"prompt": row["text"], "answer": row["label"], "side": side} for row in toy_sentences(side, split)]
        )
        for side in ("general", "domain")
    }


def in_order(corpora: Mapping[str, Any], args: GRPOConfig, alpha_start: float, alpha_end: float) -> datasets.Dataset:
    """Return the prompts of a run, step after step, each step with its share of the domain."""
    prompts = args.generation_batch_size // args.num_generations
    generations = -(-args.max_steps * args.gradient_accumulation_steps // (args.steps_per_generation or 1))
    schedule = linear(alpha_start, alpha_end)
    mixed = InterpolatedDataset(
        corpora, batch_size=prompts, max_steps=generations, alpha_schedule=schedule, seed=args.seed
    )
    return datasets.Dataset.from_list(list(mixed))


def answered(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """Reward a completion, a text or messages, that has the answer."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    return [float(wanted in text) for text, wanted in zip(texts, answer, strict=True)]


def main(argv: Sequence[str] | None = None) -> GRPOTrainer:
    """Train, and return the trainer."""
    parser = HfArgumentParser([MixedSources, GRPOConfig])
    sources, args = parser.parse_args_into_dataclasses(argv)
    corpora = (
        toy_corpora("train")
        if sources.general is None
        else load({"general": sources.general, "domain": sources.domain})
    )
    args.shuffle_dataset = False  # the order is the mixture's
    with tempfile.TemporaryDirectory() as folder:
        name = sources.model or write_toy_model(Path(folder), is_decoder=True)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=answered,
        args=args,
        train_dataset=in_order(corpora, args, sources.alpha_start, sources.alpha_end),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    for entry in main().state.log_history:
        print(entry)
