"""What the mixture, packing, an anchor, M_α and a search over α cost on one card; at most eight minutes.

    python tests/benchmarks/gpu.py            # MiniLM's shape, and a Llama of 1.1 billion weights in bfloat16
    python tests/benchmarks/gpu.py --tiny     # the same on a CPU, in sizes that measure nothing

Weights and texts are random, so that nothing is downloaded; lengths of texts are log-normal, as those of dialogues are.
A step is timed from one end of a step to the next, without the first ones. Ways that are compared take turns; the
median of each and of the ratios of neighbours is printed. What is not begun when the time is over is left out.
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import transformers
from transformers import Trainer, TrainingArguments, default_data_collator

from hf_interp import InterpolatedDataset, InterpolationConfig, InterpolationTrainer, PackedCollator, pack, search_alpha
from hf_interp.utils.console import format_table
from hf_interp.weights.live import LiveInterpolation

NUM_ALPHAS = 11


class Sizes(NamedTuple):
    """How large everything is."""

    bert: dict[str, int]
    llama: dict[str, int]
    bert_batch: int = 64
    llama_batch: int = 8
    length: int = 512
    rows: int = 2_000
    steps: int = 20
    skipped: int = 5
    pairs: int = 3


def shape(hidden: int, layers: int, heads: int, inner: int, vocabulary: int) -> dict[str, int]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": inner, "vocab_size": vocabulary}


LARGE = Sizes(shape(384, 6, 12, 1536, 30_522), {**shape(2048, 16, 32, 8192, 32_000), "num_key_value_heads": 8})
SMALL = Sizes(shape(32, 1, 2, 32, 500), shape(32, 1, 2, 32, 500), 4, 4, 64, 80, 4, 1, 1)


class FakeTokenizer:
    """As much of a tokenizer as a collator needs where there are no words."""

    pad_token_id = eos_token_id = 0


def padded(examples: list[Any]) -> dict[str, torch.Tensor]:
    """Collate rows of other lengths, with a mask."""
    found = PackedCollator(FakeTokenizer())(examples)  # type: ignore[arg-type]
    lengths = torch.tensor([[len(each["input_ids"])] for each in examples])
    found["attention_mask"] = (torch.arange(found.pop("position_ids").shape[1]) < lengths).long()
    return found


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any]) -> float:
    wait()
    begin = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - begin


class StepTimes(transformers.TrainerCallback):
    """The times at which steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        wait()
        self.ends.append(time.perf_counter())


def bert(sizes: Sizes) -> transformers.BertForSequenceClassification:
    transformers.set_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes.bert))


def llama(sizes: Sizes) -> transformers.LlamaForCausalLM:
    transformers.set_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes.llama, max_position_embeddings=sizes.length)
    ).to(torch.bfloat16)


def texts(sizes: Sizes, *, equal: bool = True) -> dict[str, datasets.Dataset]:
    """Random texts of both sides with the labels of a language model: of equal lengths, or of log-normal ones."""
    rng, found = np.random.default_rng(0), {}
    for side in ("general", "domain"):
        drawn = np.exp(rng.normal(np.log(sizes.length / 4), 0.7, sizes.rows)).astype(int).clip(8, sizes.length)
        ids = [rng.integers(5, 500, sizes.length if equal else count).tolist() for count in drawn]
        rows = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": ids}
        found[side] = datasets.Dataset.from_dict(rows)
    return found


def parts_for(make: Callable[[Sizes], Any], sizes: Sizes) -> tuple[dict[str, datasets.Dataset], int]:
    """Return corpora for a model, and the examples of a step."""
    if make is llama:
        return texts(sizes), sizes.llama_batch
    parts = texts(sizes._replace(length=min(sizes.length, 128)))
    classes = {side: part.map(lambda row: {"labels": row["input_ids"][0] % 2}) for side, part in parts.items()}
    return classes, sizes.bert_batch


def step_time(sizes: Sizes, model: Any, data: Any, batch_size: int, collator: Any, **settings: Any) -> float:
    """Return the seconds of a step, the median of some after the first; over a mixture or an ordinary data set."""
    ours, theirs = (InterpolationTrainer, InterpolationConfig), (Trainer, TrainingArguments)
    kinds: Any = ours if isinstance(data, dict) else theirs
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        common = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 10, "seed": 0}
        common |= {"max_steps": sizes.steps, "dataloader_pin_memory": torch.cuda.is_available()}
        args = kinds[1](folder, per_device_train_batch_size=batch_size, **common, **settings)
        trainer = kinds[0](model, args, collator, data, callbacks=[times])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return float(np.median(np.diff(times.ends)[sizes.skipped - 1 :]))


def ratio(sizes: Sizes, ours: Callable[[], float], other: Callable[[], float]) -> str:
    """Return the median of each of two ways, in milliseconds, and of the ratios of neighbours."""
    times: dict[Callable[[], float], list[float]] = {ours: [], other: []}
    for turn in range(sizes.pairs):
        for function in (ours, other) if turn % 2 else (other, ours):
            times[function].append(function())
    ratios = [one / two for one, two in zip(times[ours], times[other], strict=True)]
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return " / ".join(f"{1e3 * statistics.median(found):.2f} ms" for found in times.values()) + f" = {spread}"


def overhead(sizes: Sizes, make: Callable[[Sizes], Any]) -> str:
    """Compare a mixture with the same examples, mixed beforehand."""
    parts, size = parts_for(make, sizes)
    plan = InterpolatedDataset(parts, batch_size=size, max_steps=sizes.steps, sampling="sequential")
    mixed = datasets.Dataset.from_list(list(plan), features=parts["general"].features)
    run = partial(step_time, sizes, train_sampling_strategy="sequential")
    return ratio(
        sizes,
        lambda: run(make(sizes), parts, size, default_data_collator),
        lambda: run(make(sizes), mixed, size, default_data_collator),
    )


def with_settings(sizes: Sizes, make: Callable[[Sizes], Any], **settings: Any) -> str:
    """Compare a step under some settings with a plain one."""
    given = *parts_for(make, sizes), default_data_collator
    return ratio(
        sizes,
        lambda: step_time(sizes, make(sizes), *given, **settings),
        lambda: step_time(sizes, make(sizes), *given),
    )


def tokens_per_second(sizes: Sizes, way: str) -> str:
    """Return the tokens that are no padding in a second of training: padded, by length or packed."""
    parts, size, collator, settings = texts(sizes, equal=False), sizes.llama_batch, padded, {}
    mean = statistics.mean(map(len, parts["general"]["input_ids"]))
    if way == "by length":
        settings = {"train_sampling_strategy": "group_by_length", "length_window": sizes.steps}
    if way == "packed":
        parts = {name: pack(part, sizes.length, strategy="bfd") for name, part in parts.items()}
        size, mean = max(round(size * mean / sizes.length), 1), statistics.mean(map(len, parts["general"]["input_ids"]))
        collator = PackedCollator(FakeTokenizer())  # type: ignore
    return f"{size * mean / step_time(sizes, llama(sizes), parts, size, collator, **settings):,.0f}"


def write(sizes: Sizes) -> str:
    """Return the bytes that M_α moves in a second, also as a share of those of one flat `torch.lerp`."""
    base = llama(sizes).to("cuda" if torch.cuda.is_available() else "cpu")
    live = LiveInterpolation(base, copy.deepcopy(base))
    count = sum(tensor.numel() for tensor in live.live.unique.values())
    flat = [torch.randn(count, device=base.device, dtype=base.dtype) for _ in range(3)]
    ways = (lambda: live.set_alpha(0.3)), (lambda: torch.lerp(flat[0], flat[1], 0.3, out=flat[2]))
    ours, plain = np.median([[timed(way) for way in ways] for _ in range(12)][2:], axis=0).tolist()
    moved = 3 * 2 * count / ours / 1e9  # two bytes a weight: M₀ and M_θ are read, M_α is written
    return f"{1e3 * ours:.2f} ms, {moved:,.0f} GB/s, {100 * plain / ours:.0f}% of a flat lerp"


def search(sizes: Sizes) -> str:
    """Compare a search over eleven α with as many evaluations."""
    base, (sets, size) = bert(sizes).eval(), parts_for(bert, sizes)
    with tempfile.TemporaryDirectory() as folder:
        common = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": torch.cuda.is_available()}
        args = TrainingArguments(folder, per_device_eval_batch_size=size, **common)
        trainer = Trainer(copy.deepcopy(base), args, default_data_collator, eval_dataset=sets)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.evaluate()
        return ratio(
            sizes,
            lambda: timed(lambda: search_alpha(trainer, base, alphas=NUM_ALPHAS)),
            lambda: timed(lambda: [trainer.evaluate() for _ in range(NUM_ALPHAS)]),
        )


WAYS = ("padded", "by length", "packed")
MEASURED: dict[str, Callable[[Sizes], str]] = {
    "step of a mixture / of `Trainer`: MiniLM": partial(overhead, make=bert),
    "step of a mixture / of `Trainer`: Llama": partial(overhead, make=llama),
    **{f"real tokens per second: Llama, {way}": partial(tokens_per_second, way=way) for way in WAYS},
    "M_α of Llama, in place": write,
    "step with distill / plain: Llama": partial(with_settings, make=llama, anchor="distill"),
    "step with l2sp / plain: MiniLM": partial(with_settings, make=bert, anchor="l2sp"),
    f"search of {NUM_ALPHAS} α / as many evaluations: MiniLM": search,
    "compiled step / plain: Llama": partial(with_settings, make=llama, torch_compile=True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=400, help="after which nothing new is begun")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("There is no card here. Say --tiny to try the program on a CPU.")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    rows, end = [], time.monotonic() + options.seconds
    for title, function in MEASURED.items():
        in_time = time.monotonic() < end
        rows.append([title, function(SMALL if options.tiny else LARGE) if in_time else "left out: the time was over"])
        print(": ".join(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    print(f"\n{device}, torch {torch.__version__}\n\n{format_table(['what', 'measured'], rows)}")


if __name__ == "__main__":
    main()
