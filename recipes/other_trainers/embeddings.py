"""Sentence embeddings with `SentenceTransformerTrainer` over a mixture whose share of domain pairs rises.

    python recipes/other_trainers/embeddings.py --output_dir out/embeddings --max_steps 100

trains a toy model on toy data. With `--model`, `--general` and `--domain` it takes real ones; every field of
`SentenceTransformerTrainingArguments` and of `InterpolationConfig` is a flag.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from toy import Sources, load, toy_sentences, write_toy_model
from transformers import HfArgumentParser

from hf_interp import InterpolationConfig, InterpolationMixin


class InterpolationSentenceTransformerTrainer(InterpolationMixin, SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` that takes a mixture as `train_dataset`."""


@dataclass
class InterpolationEmbeddingArguments(SentenceTransformerTrainingArguments, InterpolationConfig):
    """The settings of sentence-transformers, with its defaults, and those of α."""


def toy_corpora(split: str) -> dict[str, datasets.Dataset]:
    """Pairs of sentences that say the same."""
    corpora = {}
    for side in ("general", "domain"):
        rows = toy_sentences(side, split)
        alike = [[row["text"] for row in rows if row["label"] == label] for label in ("positive", "negative")]
        pairs = [pair for texts in alike for pair in zip(texts[::2], texts[1::2], strict=False)]
        corpora[side] = datasets.Dataset.from_dict(
            {"anchor": [anchor for anchor, _ in pairs], "positive": [positive for _, positive in pairs]}
        )
    return corpora


def toy_model() -> SentenceTransformer:
    """An untrained BERT and the mean over its tokens."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = Transformer(write_toy_model(Path(folder), is_decoder=False), max_seq_length=32)
    return SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension())])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, evaluate on both sides of the toy data if that is what was trained on, and return the metrics."""
    parser = HfArgumentParser([Sources, InterpolationEmbeddingArguments])
    sources, args = parser.parse_args_into_dataclasses(argv)
    is_toy = sources.general is None
    model = toy_model() if sources.model is None else SentenceTransformer(sources.model)
    trainer = InterpolationSentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=toy_corpora("train") if is_toy else load({"general": sources.general, "domain": sources.domain}),
        eval_dataset=toy_corpora("test") if is_toy else None,
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    trainer.save_model()
    return trainer.evaluate() if is_toy else {}


if __name__ == "__main__":
    for key, value in main().items():
        print(f"{key}: {value}")
