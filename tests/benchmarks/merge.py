"""Time and memory of interpolating two checkpoints on disk: ours, plain safetensors, and mergekit.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install torch==2.13.0 mergekit
    python tests/benchmarks/merge.py --mergekit /tmp/mergekit/bin/python

Two checkpoints of a Llama-like model with random bfloat16 weights, in shards, α = 0.3. Every contestant runs in fresh
processes, in turns, with the inputs in the page cache, free memory and nothing left to be written back. Medians with
ranges. "Merge" is the call alone, without imports. Memory is the most that is anonymous at a time, sampled every two
milliseconds: mapped files do not count. The result of the plain way is compared with ours bit by bit, mergekit's up to
rounding.
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

ALPHA = 0.3
PLAIN, OURS = "safetensors: load_file, lerp, save_file", "hf_interp: interpolate_checkpoints"
MERGEKIT = "mergekit linear"


class Run(NamedTuple):
    """One process."""

    merge: float
    peak: float
    imports: float
    """Anonymous memory when the merge begins."""


def child_ours(base: Path, finetuned: Path, out: Path) -> list[float]:
    from hf_interp.weights.merge import interpolate_checkpoints

    begin, imports = time.perf_counter(), anonymous(os.getpid())
    interpolate_checkpoints(base, finetuned, out, ALPHA)
    return [time.perf_counter() - begin, imports]


def child_plain(base: Path, finetuned: Path, out: Path) -> list[float]:
    import torch
    from safetensors.torch import load_file, save_file

    begin, imports = time.perf_counter(), anonymous(os.getpid())
    tensors = []
    for folder in (base, finetuned):
        paths = sorted(folder.glob("*.safetensors"))
        tensors.append({name: tensor for path in paths for name, tensor in load_file(path).items()})
    merged = {name: torch.lerp(tensor, tensors[1][name], ALPHA) for name, tensor in tensors[0].items()}
    out.mkdir()
    save_file(merged, out / "model.safetensors", metadata={"format": "pt"})
    return [time.perf_counter() - begin, imports]


def child_mergekit(base: Path, finetuned: Path, out: Path) -> list[float]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    models = [(base, 1 - ALPHA), (finetuned, ALPHA)]
    config = MergeConfiguration.model_validate(
        {
            "merge_method": "linear",
            "dtype": "bfloat16",
            "models": [{"model": str(folder), "parameters": {"weight": weight}} for folder, weight in models],
        }
    )
    begin, imports = time.perf_counter(), anonymous(os.getpid())
    run_merge(config, str(out), MergeOptions(copy_tokenizer=False, quiet=True))
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


def run(python: str, name: str, folders: tuple[Path, Path, Path]) -> Run:
    """Run a contestant in a fresh process."""
    shutil.rmtree(folders[2], ignore_errors=True)
    for folder in folders[:2]:
        for path in folder.iterdir():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
    touch_memory(folders[2].parent / "scratch", 3 * sum(path.stat().st_size for path in folders[0].iterdir()))
    os.sync()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    peak = 0.0
    command = [python, __file__, "--child", name, *map(str, folders)]
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
            raise RuntimeError(f"{name} failed:\n{errors.read()[-2000:]}")
    times = json.loads(lines[-1])
    return Run(times[0], peak, times[1])


def make_checkpoint(folder: Path, seed: int, gib: float) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=max(1, round(10.4 * gib - 1.4)),
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    model = model.to_empty(device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            for piece in parameter.view(-1).split(1 << 22):
                piece.copy_(torch.randn(piece.numel()).mul_(0.02))
    model.save_pretrained(folder, max_shard_size="300MB")


def compare(ours: Path, other: Path, inputs: tuple[Path, Path]) -> str:
    """How two results differ, in words; the unit is the distance of neighbouring bfloat16 numbers."""
    import torch

    from hf_interp.weights.tensor_files import find_tensors, read_piece

    found = [find_tensors(folder, "folder") for folder in (ours, other, *inputs)]
    if found[0].keys() != found[1].keys():
        return "other tensors"
    num_equal, total, most = 0, 0, 0.0
    for name in found[0]:
        one, two, base, tuned = (read_piece(part[name]).float() for part in found)
        num_equal += int((one == two).sum())
        total += one.numel()
        scale = torch.maximum(base.abs(), tuned.abs()).clamp_min(1e-30) * 2**-8
        most = max(most, float(((one - two).abs() / scale).max()))
    if num_equal == total:
        return "bit for bit ours"
    return f"{num_equal / total:.2%} equal, at most {most:.1f} units of the larger input off"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def table(args: argparse.Namespace, folder: Path) -> str:
    from hf_interp.utils.console import format_table

    inputs = (folder / "base", folder / "tuned")
    for seed, path in enumerate(inputs):
        make_checkpoint(path, seed, args.gib)
    size = sum(path.stat().st_size for path in inputs[0].glob("*.safetensors"))
    pythons = {OURS: sys.executable, PLAIN: sys.executable, **({MERGEKIT: args.mergekit} if args.mergekit else {})}
    runs: dict[str, list[Run]] = {name: [] for name in pythons}
    results: dict[str, str] = {}
    for round_ in range(args.rounds):
        order = list(pythons) if round_ % 2 == 0 else list(reversed(pythons))
        for name in order:
            out = folder / name.partition(":")[0].replace(" ", "_").replace(",", "")
            runs[name].append(run(pythons[name], name, (*inputs, out)))
            if round_ < args.rounds - 1:
                shutil.rmtree(out)
            results[name] = str(out)
    rows = []
    for name, found in runs.items():
        merge, peak, imports = ([*values] for values in zip(*found, strict=True))
        outcome = "" if name == OURS else compare(Path(results[OURS]), Path(results[name]), inputs)
        memory = [f"{statistics.median(values):.0f}" for values in (peak, imports)]
        rows.append([name, spread(merge), *memory, outcome])
    header = ["way", "merge, s", "anonymous, MiB", "of it imports", "result"]
    return f"{size / 2**30:.2f} GiB each, {args.rounds} rounds\n\n" + format_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", metavar="PYTHON", help="the interpreter of an environment that has mergekit")
    parser.add_argument("--gib", type=float, default=1.0, help="size of each checkpoint (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=4, metavar=("NAME", "BASE", "FINETUNED", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, *folders = args.child
        print(json.dumps(CHILDREN[name](*map(Path, folders))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(table(args, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
