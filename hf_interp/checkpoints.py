"""Checkpoints on disk: whether one is whole, which is the last whole one, and what the mixture left in it.

The host writes a checkpoint file by file, `trainer_state.json` last. A run that is killed meanwhile, or a disk that
fills up, leaves a folder that looks like a checkpoint and is none. What can be told without loading it is told here.
"""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_interp.files import read_json

# The host's names, spelled out so that looking at checkpoints needs no torch.
PREFIX_CHECKPOINT_DIR = "checkpoint"
STATE_NAME = "trainer_state.json"
CALLBACK_NAME = "AlphaCallback"
OPTIMIZER_NAMES = ("optimizer.pt", "optimizer.bin", "scheduler.pt")
WEIGHT_PATTERNS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*", "adapter_model*.bin")


class Found(NamedTuple):
    """The last whole checkpoint of a run."""

    path: Path | None
    """`None` if there is none."""
    skipped: list[str]
    """Later ones that are not whole, each with the reason."""


def find_checkpoint(output_dir: str | Path, *, weights_only: bool = False) -> Found:
    """The last whole checkpoint in `output_dir`.

    Args:
        output_dir: the folder of a run.
        weights_only: do not ask for the optimizer's state (`save_only_model`).
    """
    folder = Path(output_dir)
    steps = sorted((step, path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (step := _step_of(path)) >= 0)
    skipped: list[str] = []
    for _, path in reversed(steps):
        fault = find_fault(path, weights_only=weights_only)
        if fault is None:
            return Found(path, skipped)
        skipped.append(f"{path.name} ({fault})")
    return Found(None, skipped)


def find_fault(checkpoint: str | Path, *, weights_only: bool = False) -> str | None:
    """What is wrong with a checkpoint, in a few words; `None` if it is whole.

    It is whole if its `trainer_state.json`, which is written last, can be read, and every file of weights, optimizer
    and random states is there from its first byte to its last. File headers and directories are read, not contents.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "no such folder"
    state = read_json(folder / STATE_NAME)
    if state is None:
        return f"{STATE_NAME} is missing or cut short"
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return f"{STATE_NAME} is not a trainer's state"
    sharded = any(path.is_dir() for path in folder.iterdir())  # FSDP and DeepSpeed keep weights in folders
    if not sharded:
        if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
            return "no weights"
        if not weights_only and not any((folder / name).is_file() for name in OPTIMIZER_NAMES[:2]):
            return f"no {OPTIMIZER_NAMES[0]}"
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" and not _is_whole_safetensors(path):
            return f"{path.name} is cut short"
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):  # the directory of a zip file is its end
            return f"{path.name} is cut short"
        if path.name.endswith(".index.json"):
            index = read_json(path)
            missing = [
                name for name in set((index or {}).get("weight_map", {}).values()) if not (folder / name).exists()
            ]
            if index is None or missing:
                return f"{path.name} is cut short" if index is None else f"{missing[0]} is missing"
    return _fault_of_ranks(folder, state)


def read_mixture(checkpoint: str | Path) -> dict[str, Any] | None:
    """What `AlphaCallback` has left in a checkpoint; `None` if it was written without a mixture."""
    state = read_json(Path(checkpoint) / STATE_NAME) or {}
    stored = state.get("stateful_callbacks", {}).get(CALLBACK_NAME)
    found = stored.get("attributes", {}).get("mixture") if isinstance(stored, dict) else None
    return dict(found, global_step=state["global_step"]) if found else None


def rank_file(checkpoint: str | Path, process_index: int) -> Path:
    """Where a process keeps what only it knows of the mixture."""
    return Path(checkpoint) / f"mixture_state_{process_index}.json"


def _step_of(path: Path) -> int:
    step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(step) if step.isdecimal() and path.is_dir() else -1


def _fault_of_ranks(folder: Path, state: Mapping[str, Any]) -> str | None:
    """Other processes write while the main one does: their files may be missing or cut short for themselves."""
    mixture = read_mixture(folder)
    if mixture is None:
        return None
    world = mixture.get("num_processes", 0)  # by a trainer without our mixin there are none
    for rank in range(world):
        found = read_json(rank_file(folder, rank))
        if found is None or found.get("global_step") != state["global_step"]:
            return f"{rank_file(folder, rank).name} is missing or of another step"
    random_states = list(folder.glob("rng_state*.pth"))
    if random_states and len(random_states) < world:
        return f"{len(random_states)} of {world} files of random states"
    return None


def _is_whole_safetensors(path: Path) -> bool:
    """Whether a file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        if len(begin) < 8:
            return False
        length = struct.unpack("<Q", begin)[0]
        if length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)
