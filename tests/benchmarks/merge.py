"""Time and memory of merging checkpoints on disk, ours beside mergekit's; and whether the results are the same.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install torch==2.13.0 mergekit
    python tests/benchmarks/merge.py --mergekit /tmp/mergekit/bin/python
    python tests/benchmarks/merge.py --mergekit /tmp/mergekit/bin/python --check

Checkpoints of a Llama-like model with random bfloat16 weights, in shards: M₀, and two models near it, of which linear
and slerp take one. Both compute in float32 and write bfloat16. Every contestant runs in fresh processes, in turns, with
the inputs in the page cache, free memory and nothing left to be written back. Medians with ranges. "Merge" is the call
alone, without imports. Memory is the most that is anonymous at a time, sampled every two milliseconds: mapped files do
not count. Results are compared with ours number by number. For linear the plain way with safetensors runs too.

--check merges small float32 models by every method, with weights, densities and factors that go by name and depth, and
fails where a number differs by more than 1e-6. What DARE keeps depends on the generator, so there it keeps all.

    hf-interp demo && python tests/benchmarks/merge.py --effect demo

trains the demo's model on domain data alone with three seeds, merges the three, and measures both sides on their test
sets; and says how alike M₀ and the models are.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ALPHA = 0.3
PLAIN, OURS, MERGEKIT = "safetensors alone", "hf_interp", "mergekit"
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": ALPHA},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 0.4, "density": 0.2},
    "dare_linear": {"weight": 0.4, "density": 0.2},
    "dare_ties": {"weight": 0.4, "density": 0.2},
    "breadcrumbs": {"weight": 0.4, "density": 0.2, "gamma": 0.01},
    "breadcrumbs_ties": {"weight": 0.4, "density": 0.2, "gamma": 0.01},
}
"""What each method is timed with."""
VARIED: dict[str, Any] = {
    "t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"value": 0.5}],
    "weight": [{"filter": "mlp", "value": [0.1, 0.8, 0.3]}, {"value": 0.4}],
    "density": [0.2, 0.9],
    "gamma": [0.02, 0.1],
    "lambda": 0.9,
}
"""What they are checked with."""


class Run(NamedTuple):
    """One process."""

    merge: float
    peak: float
    imports: float
    """Anonymous memory when the merge begins."""


def configuration(method: str, folders: list[Path], parameters: dict[str, Any], **types: str) -> dict[str, Any]:
    """A configuration of mergekit: of M₀ and one model for a mean and an arc, or of M₀ and all."""
    base, *models = map(str, folders)
    entries: list[dict[str, Any]] = [{"model": model} for model in models]
    if method == "linear":
        entries = [
            {"model": base, "parameters": {"weight": 1 - ALPHA}},
            {**entries[0], "parameters": {"weight": ALPHA}},
        ]
        return {"merge_method": method, "models": entries, **types}
    entries = entries[:1] if method == "slerp" else entries
    return {"merge_method": method, "base_model": base, "models": entries, "parameters": parameters, **types}


def child_ours(config: dict[str, Any], path: Path, out: Path) -> list[float]:
    from hf_interp.commands.merge import read_mergekit
    from hf_interp.weights.merge import interpolate_checkpoints

    begin, imports = time.perf_counter(), anonymous(os.getpid())
    if config["merge_method"] == "linear":
        base, model = (entry["model"] for entry in config["models"])
        interpolate_checkpoints(base, model, out, ALPHA)
    else:
        interpolate_checkpoints(**read_mergekit(path), output_dir=out, extrapolate=True)
    return [time.perf_counter() - begin, imports]


def child_plain(config: dict[str, Any], path: Path, out: Path) -> list[float]:
    import torch
    from safetensors.torch import load_file, save_file

    begin, imports = time.perf_counter(), anonymous(os.getpid())
    tensors = []
    for folder in (Path(entry["model"]) for entry in config["models"]):
        paths = sorted(folder.glob("*.safetensors"))
        tensors.append({name: tensor for path in paths for name, tensor in load_file(path).items()})
    merged = {name: torch.lerp(tensor, tensors[1][name], ALPHA) for name, tensor in tensors[0].items()}
    out.mkdir()
    save_file(merged, out / "model.safetensors", metadata={"format": "pt"})
    return [time.perf_counter() - begin, imports]


def child_mergekit(config: dict[str, Any], path: Path, out: Path) -> list[float]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    begin, imports = time.perf_counter(), anonymous(os.getpid())
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return [time.perf_counter() - begin, imports]


CHILDREN: dict[str, Any] = {OURS: child_ours, PLAIN: child_plain, MERGEKIT: child_mergekit}


def anonymous(process: int) -> float:
    """Anonymous memory of a process, in MiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def touch_memory(path: Path, size: int) -> None:
    """Have the system find free memory beforehand, which takes a virtual machine longer than all the work."""
    with path.open("wb", buffering=0) as file:
        for _ in range(size >> 24):
            file.write(bytes(1 << 24))
    path.unlink()


def run(python: str, way: str, config: dict[str, Any], out: Path) -> Run:
    """Run a contestant in a fresh process."""
    shutil.rmtree(out, ignore_errors=True)
    folders = {Path(config.get("base_model", out)), *(Path(entry["model"]) for entry in config["models"])} - {out}
    for path in (path for folder in folders for path in folder.iterdir()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    touch_memory(out.parent / "scratch", 3 * sum(path.stat().st_size for path in folders.pop().iterdir()))
    os.sync()
    place = out.with_suffix(".yml")
    place.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    peak = 0.0
    command = [python, __file__, "--child", way, str(place), str(out)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.002)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        process.stdout.close()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{way} failed:\n{errors.read()[-2000:]}")
    times = json.loads(lines[-1])
    return Run(times[0], peak, times[1])


def make_models(folder: Path, gib: float, dtype: str) -> list[Path]:
    """Write M₀ and two models near it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": max(1, round(10.4 * gib - 1.4))}
    if not gib:
        size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False}
    config = LlamaConfig(vocab_size=32_000 if gib else 300, **size, **heads)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    torch.manual_seed(0)
    folders = [folder / name for name in ("base", "first", "second")]
    for index, path in enumerate(folders):
        with torch.no_grad():
            for parameter in model.parameters():
                for piece in parameter.view(-1).split(1 << 22):
                    step = torch.randn(piece.numel()).mul_(0.005 if index else 0.02)
                    piece.copy_(piece + step if index else step)
        model.save_pretrained(path, max_shard_size="300MB" if gib else "100KB")
    return folders


def differences(ours: Path, other: Path) -> tuple[float, float]:
    """The share of numbers that are equal, and the largest difference; infinite where tensors are missing."""
    from hf_interp.weights.tensor_files import find_tensors, read_piece

    found = [find_tensors(folder, "folder") for folder in (ours, other)]
    if found[0].keys() != found[1].keys():
        return 0.0, float("inf")
    equal, total, most = 0, 0, 0.0
    for name in found[0]:
        one, two = (read_piece(part[name]).float() for part in found)
        equal, total = equal + int((one == two).sum()), total + one.numel()
        most = max(most, float((one - two).abs().max()))
    return equal / total, most


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def compare(method: str, args: argparse.Namespace, folder: Path, models: list[Path]) -> list[list[str]]:
    """Time a method; rows of the table."""
    config = configuration(method, models, SETTINGS[method], dtype="float32", out_dtype="bfloat16")
    ways = [OURS, *([MERGEKIT] if args.mergekit else []), *([PLAIN] if method == "linear" else [])]
    pythons = {OURS: sys.executable, PLAIN: sys.executable, MERGEKIT: args.mergekit}
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for round_ in range(args.rounds):
        for way in ways if round_ % 2 == 0 else ways[::-1]:
            runs[way].append(run(pythons[way], way, config, folder / way.replace(" ", "_")))
    rows = []
    first = [statistics.median(getattr(one, field) for one in runs[OURS]) for field in ("merge", "peak", "imports")]
    for way, found in runs.items():
        seconds, peak, imports = ([*values] for values in zip(*found, strict=True))
        row = [method if way == OURS else "", way, spread(seconds), f"{statistics.median(peak):.0f}"]
        if way == OURS:
            rows.append([*row, "", "", ""])
            continue
        more = (statistics.median(peak) - statistics.median(imports)) / max(first[1] - first[2], 1)
        share, most = differences(folder / OURS, folder / way.replace(" ", "_"))
        times = [
            f"{statistics.median(seconds) / first[0]:.1f}×",
            f"{statistics.median(peak) / first[1]:.1f}× ({more:.0f}×)",
        ]
        rows.append([*row, *times, f"{share:.2%} equal, the others {most:.1e} off at most"])
    return rows


def check(args: argparse.Namespace, folder: Path) -> bool:
    """Compare small merges with mergekit's, and print what differs most."""
    models, fine = make_models(folder, 0, "float32"), True
    for method in SETTINGS:
        own = {"slerp": ["t"], "linear": []}.get(method, [*SETTINGS[method], "lambda"])
        parameters = {name: 1.0 if (method[:4], name) == ("dare", "density") else VARIED[name] for name in own}
        config = configuration(method, models, parameters, dtype="float32")
        outs = [folder / OURS, folder / MERGEKIT]
        for python, way, out in zip((sys.executable, args.mergekit), (OURS, MERGEKIT), outs, strict=True):
            run(python, way, config, out)
        share, most = differences(*outs)
        print(f"{method}: {share:.2%} of the numbers equal, the others {most:.1e} off at most")
        fine = fine and most <= 1e-6
    return fine


def accuracy(model: Path, examples: Path) -> float:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [json.loads(line) for line in examples.read_text(encoding="utf-8").splitlines()]
    classifier, tokenizer = (one.from_pretrained(model) for one in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        found = classifier.eval()(**inputs).logits.argmax(-1)
    names = [classifier.config.id2label[int(index)] for index in found]
    return sum(name == row["label"] for name, row in zip(names, rows, strict=True)) / len(rows)


def effect(demo: Path, folder: Path) -> str:
    """Accuracy on both sides of M₀, the models and their merges, as a table; and cosines."""
    import torch

    from hf_interp.utils.console import format_table
    from hf_interp.weights.merge import interpolate_checkpoints
    from hf_interp.weights.merge_methods import METHODS, MergeMethod
    from hf_interp.weights.tensor_files import find_tensors, read_piece

    base, runs = demo / "base", [folder / f"seed {seed}" for seed in range(3)]
    for seed, out in enumerate(runs):
        recipe = [str(demo / "recipe.yaml"), "--output_dir", str(out)]
        flags = ["--seed", str(seed), "--alpha_schedule_type", "constant", "--alpha", "1", "--alpha_search", "false"]
        command = [sys.executable, "-m", "hf_interp.cli", "train", *recipe, *flags, "--report_to", "none"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=demo.parent)
    tensors = [find_tensors(place, "folder") for place in (base, *runs)]
    cosines = [
        float(torch.cosine_similarity(read_piece(tensors[0][name]), read_piece(run[name]), dim=0))
        for run in tensors[1:]
        for name in tensors[0]
    ]
    near = sum(cosine > 0.9995 for cosine in cosines) / len(cosines)
    subjects = {("M₀", ""): base, **{(f"M_θ, seed {seed}", ""): run for seed, run in enumerate(runs)}}
    for name in METHODS:
        for alpha in (0.25, 0.5, 0.75, 1.0):
            out, thins = folder / f"{name} {alpha}", "density" in METHODS[name]
            method = MergeMethod(name=name, density=0.2 if thins else None)
            interpolate_checkpoints(base, runs[:1] if name == "slerp" else runs, out, alpha, method=method)
            subjects[name, f"{alpha:g}"] = out
    rows = [
        [*subject, *(f"{accuracy(place, demo / f'{side}_test.jsonl'):.3f}" for side in ("general", "domain"))]
        for subject, place in subjects.items()
    ]
    text = (
        f"{near:.0%} of {len(cosines)} tensors have a cosine above 0.9995 with M₀'s; the least is {min(cosines):.4f}."
    )
    return f"{text}\n\n{format_table(['method', 'α', 'general', 'domain'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", metavar="PYTHON", help="the interpreter of an environment that has mergekit")
    parser.add_argument("--methods", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--gib", type=float, default=1.0, help="size of each checkpoint (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="compare the results of small models, and time nothing")
    parser.add_argument("--effect", metavar="DEMO", type=Path, help="measure merges of three runs in the demo's folder")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "CONFIG", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, path, out = args.child
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        print(json.dumps(CHILDREN[way](config, Path(path), Path(out))), flush=True)
        return
    if args.check and args.mergekit is None:
        parser.error("--check needs --mergekit PYTHON, whose results it compares with ours")
    with tempfile.TemporaryDirectory() as name:
        if args.effect:
            print(effect(args.effect.resolve(), Path(name)))
            return
        if args.check:
            sys.exit(0 if check(args, Path(name)) else 1)
        from hf_interp.utils.console import format_table

        models = make_models(Path(name), args.gib, "bfloat16")
        size = sum(path.stat().st_size for path in models[0].glob("*.safetensors"))
        print(f"{size / 2**30:.2f} GiB each, {args.rounds} rounds; beside mergekit's seconds and memory, times ours\n")
        rows = []
        for method in args.methods:
            rows += compare(method, args, Path(name), models)
            print(rows[-1], file=sys.stderr, flush=True)
        header = ["method", "way", "merge, s", "anonymous, MiB", "time", "memory (beyond imports)", "result"]
        print(format_table(header, rows), flush=True)


if __name__ == "__main__":
    main()
