"""Checkpoints on disk: whether one is whole, which is the last whole one, and what the mixture left in it.

`Trainer` writes a checkpoint file by file, `trainer_state.json` last. A run that is killed meanwhile, or a disk that
fills up, leaves a folder that looks like a checkpoint and is none. What can be told without loading it is told here.
"""

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate import Accelerator
from safetensors import SafetensorError, safe_open

from hf_interp.training.machines import gather, savers, share_files
from hf_interp.utils.files import read_json, write_json
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME, ADAPTER_NAME

if TYPE_CHECKING:  # looking at checkpoints is to be fast
    from transformers import TrainerState, TrainingArguments

TORCH_WRITES = ("inline_container", "Parent directory")
"""The words of the `RuntimeError` by which torch tells that it could not write a file."""

# Names of transformers, spelled out so that looking at checkpoints needs no torch.
PREFIX_CHECKPOINT_DIR = "checkpoint"
STATE_NAME = "trainer_state.json"
CALLBACK_NAME = "AlphaCallback"
CHECKSUMS_NAME = "checksums.json"
MIB = 1 << 20
STATES = {"optimizer.pt": "optimizer*", "scheduler.pt": "scheduler.pt", "rng_state.pth": "rng_state*.pth"}
"""Files that `save_only_model` leaves out, each with a pattern of the names that it may have."""
WEIGHT_PATTERNS = ("model*.safetensors", f"{ADAPTER_NAME}*.safetensors", "pytorch_model*.bin", f"{ADAPTER_NAME}*.bin")


class Found(NamedTuple):
    """The last whole checkpoint of a run."""

    path: Path | None
    skipped: list[str]  # later ones that are not whole, each with the reason


def find_checkpoint(output_dir: str | Path, *, weights_only: bool = False) -> Found:
    """Return the last whole checkpoint in `output_dir`; `weights_only` asks for no state of the optimizer."""
    skipped: list[str] = []
    for _, path in sorted(checkpoints_of(output_dir), reverse=True):
        fault = find_fault(path, weights_only=weights_only)
        if fault is None:
            return Found(path, skipped)
        skipped.append(f"{path.name} ({fault})")
    return Found(None, skipped)


def checkpoints_of(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Return the folders of checkpoints in `output_dir`, whole or not, each with its step."""
    found = ((path.name.rpartition("-")[2], path) for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    named = [(step, path) for step, path in found if path.name == f"{PREFIX_CHECKPOINT_DIR}-{step}" and path.is_dir()]
    return [(int(step), path) for step, path in named if step.isdecimal()]


def rotate_checkpoints(output_dir: str | Path, limit: int | None, *kept: str | Path | None) -> None:
    """Delete the checkpoints of the first steps until `limit` are left; those in `kept` stay."""
    if limit is None or limit <= 0:
        return
    protected = {Path(path).resolve() for path in kept if path is not None}
    steps = sorted(checkpoints_of(output_dir))
    free = [path for _, path in steps if path.resolve() not in protected]
    for path in free[: max(len(steps) - max(limit, len(protected)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def checksum(path: Path) -> str:
    """Return a CRC-32 in hexadecimal digits: of JSON without the line end, or of a size and the first and last MiB.

    There are the header of a safetensors file, and the pickle and the directory of what torch saves.
    """
    if path.suffix == ".json":
        return f"{zlib.crc32(path.read_bytes().rstrip()):08x}"
    size = path.stat().st_size
    with path.open("rb") as file:
        found = zlib.crc32(file.read(MIB), zlib.crc32(str(size).encode()))
        file.seek(max(size - MIB, file.tell()))
        return f"{zlib.crc32(file.read(), found):08x}"


def find_fault(checkpoint: str | Path, *, weights_only: bool = False) -> str | None:
    """Return what is wrong with a checkpoint, in a few words; `None` if it is whole.

    It is whole if its `trainer_state.json` can be read, and every file of weights, optimizer and random states is there
    from its first byte to its last, with the checksum on record, if there is one. With `weights_only` it may be without
    any state of optimizer, scheduler and random numbers; never without some of them.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "no such folder"
    state = read_json(folder / STATE_NAME)
    if state is None:
        return f"{STATE_NAME} is missing or cut short"
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return f"{STATE_NAME} is not a trainer's state"
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if not _is_whole(path):
            return f"{path.name} is cut short"
    written: dict[str, str] = read_json(folder / CHECKSUMS_NAME) or {}
    for name, found in written.items():
        if (folder / name).is_file() and checksum(folder / name) != found:
            return f"{name} is not what was written"
    missing = _missing(folder, weights_only)
    return f"no {missing}" if missing is not None else _fault_of_ranks(folder, state)


def read_mixture(checkpoint: str | Path) -> dict[str, Any] | None:
    """Return what `AlphaCallback` has left in a checkpoint; `None` if it was written without a mixture."""
    state = read_json(Path(checkpoint) / STATE_NAME) or {}
    stored = state.get("stateful_callbacks", {}).get(CALLBACK_NAME)
    found = stored.get("attributes", {}).get("mixture") if isinstance(stored, dict) else None
    return dict(found, global_step=state["global_step"]) if found else None


def rank_file(checkpoint: str | Path, process_index: int) -> Path:
    """Return where a process keeps what only it knows of the mixture."""
    return Path(checkpoint) / f"mixture_state_{process_index}.json"


def invalidate(checkpoint: str | Path) -> None:
    """Make sure that a checkpoint, if there is one, is not whole before it is written anew from first to last."""
    for pattern in (STATE_NAME, CHECKSUMS_NAME, *STATES.values()):
        for path in Path(checkpoint).glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)


def _missing(folder: Path, weights_only: bool) -> str | None:
    """Return what a run that is to go on needs and a checkpoint does not have."""
    names = {path.name for path in folder.iterdir()}
    for index in folder.glob("*.index.json"):
        missing = sorted(set(read_json(index).get("weight_map", {}).values()) - names)
        if missing:
            return missing[0]
    for shard in folder.glob("*-00001-of-*"):
        index_name = f"{shard.name.partition('-')[0]}{shard.suffix}.index.json"
        if index_name not in names:
            return index_name
    needed = ["rng_state.pth"]
    if not any(path.is_dir() for path in folder.iterdir()):  # FSDP and DeepSpeed keep weights and optimizer in folders
        if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
            return "weights"
        if any(folder.glob(f"{ADAPTER_NAME}*")) and ADAPTER_CONFIG_NAME not in names:
            return ADAPTER_CONFIG_NAME
        needed = list(STATES)
    lacking = [name for name in needed if not any(folder.glob(STATES[name]))]
    return None if not lacking or (weights_only and lacking == needed) else lacking[0]


def _fault_of_ranks(folder: Path, state: Mapping[str, Any]) -> str | None:
    """Return which process' files are missing: other processes write while the main one does."""
    mixture = read_mixture(folder)
    if mixture is None:
        return None
    world = mixture.get("num_processes", 0)  # by a trainer without our mixin there are none
    has_random_states = any(folder.glob(STATES["rng_state.pth"]))
    for rank in range(world):
        found = read_json(rank_file(folder, rank))
        if found is None or found.get("global_step") != state["global_step"]:
            return f"{rank_file(folder, rank).name} is missing or of another step"
        random_name = "rng_state.pth" if world == 1 else f"rng_state_{rank}.pth"
        if has_random_states and not (folder / random_name).is_file():
            return f"no {random_name}"
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file ends where it should, as far as its kind tells."""
    if path.suffix == ".json":
        return read_json(path) is not None
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):
                return True
        except SafetensorError:
            return False
    # what torch saves is a zip file, whose directory is its end
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint that a run goes on from, as far as the mixture and the anchor are concerned."""

    folder: Path
    global_step: int
    mixture: Mapping[str, Any] | None = None
    """Left by `AlphaCallback`; `None` if it was written without a mixture."""
    rank_states: Sequence[Mapping[str, Any]] = ()
    """Left by the processes of the saved run for this one."""

    def all_rank_states(self) -> list[Any]:
        """Return what all processes of the saved run have left."""
        return [read_json(rank_file(self.folder, rank)) for rank in range((self.mixture or {}).get("num_processes", 0))]


def find_saved_run(
    resume_from_checkpoint: str | bool | None, args: "TrainingArguments", warn: Callable[[str], None]
) -> SavedRun | None:
    """Return what the checkpoint to resume from has for this process; `None` for a new run.

    If as many processes have written it, each takes up its own state; else the first takes up all, which is right for
    sums. From a checkpoint that another trainer has written, there is none. `resume_from_checkpoint` is a folder,
    `True` for the last whole checkpoint of `args.output_dir`, or "auto" for that if there is one; `warn` tells the user
    what was passed over.
    """
    if not resume_from_checkpoint:
        return None
    if resume_from_checkpoint is True or resume_from_checkpoint == "auto":
        found = _last_checkpoint(args, warn, is_needed=resume_from_checkpoint is True)
    else:
        found = _given_checkpoint(Path(resume_from_checkpoint), args)
    if found is None:
        return None
    folder, source = found
    if args.save_on_each_node:
        marks = gather(_mark(folder))
        if args.should_save and marks[args.process_index] != marks[source]:
            shutil.rmtree(folder, ignore_errors=True)
        share_files(folder, source, args)
    mixture = read_mixture(folder)
    num_before = (mixture or read_json(rank_file(folder, 0)) or {}).get("num_processes", 0)
    if num_before == args.world_size:
        ranks: Sequence[int] = [args.process_index]
    else:
        ranks = range(num_before) if args.process_index == 0 else []
    global_step = read_json(folder / STATE_NAME)["global_step"]
    return SavedRun(folder, global_step, mixture, [read_json(rank_file(folder, rank)) for rank in ranks])


def _last_checkpoint(
    args: "TrainingArguments", warn: Callable[[str], None], *, is_needed: bool
) -> tuple[Path, int] | None:
    """Return the last whole checkpoint of a run and a process that has it; those that save have looked."""
    output_dir = args.output_dir or "."
    looked = find_checkpoint(output_dir, weights_only=args.save_only_model) if args.should_save else Found(None, [])
    found = gather(looked)
    steps = [-1 if path is None else int(path.name.rpartition("-")[2]) for path, _ in found]
    source = steps.index(max(steps))
    path, skipped = found[source]
    if path is None and not is_needed:
        return None
    if path is None:
        faults = f" There are only parts of some: {', '.join(skipped)}." if skipped else ""
        raise ValueError(f"No valid checkpoint found in output directory ({output_dir}).{faults} Start a new run.")
    if skipped:
        warn(f"Passed over what is not a whole checkpoint: {', '.join(skipped)}. Going on from {path.name}.")
    return Path(output_dir, path.name), source


def _given_checkpoint(folder: Path, args: "TrainingArguments") -> tuple[Path, int]:
    """Return a folder that is a whole checkpoint, and a process that has it."""
    faults = gather(find_fault(folder, weights_only=True))
    has_it = [fault is None for fault in faults]
    if all(has_it) or (args.save_on_each_node and any(has_it)):
        return folder, has_it.index(True)
    last = find_checkpoint(folder.parent, weights_only=args.save_only_model).path
    raise ValueError(
        f"The checkpoint {str(folder)!r} cannot be resumed: {next(filter(None, faults))}. "
        + (f"The last whole one beside it is {str(last)!r}." if last else "There is no whole one beside it.")
    )


def _mark(folder: Path) -> Any:
    """Return what tells a whole checkpoint from one with other weights or another state of the optimizer."""
    written = read_json(folder / CHECKSUMS_NAME) or {}
    names = sorted(name for name in written if name.endswith((".safetensors", ".bin", "optimizer.pt")))
    return find_fault(folder, weights_only=True), [(name, written[name]) for name in names]


@contextmanager
def writing_checkpoint(
    output_dir: str | Path,
    own: Mapping[str, Any],
    args: "TrainingArguments",
    state: "TrainerState",
    accelerator: Accelerator,
) -> Iterator[Path]:
    """Write what only this process knows of a run before `Trainer` writes a checkpoint, and checksums after it.

    What stands in its place from an earlier life of the run is not whole from now on. `save_total_limit` is kept by the
    steps of the checkpoints, where `Trainer` goes by the clock.
    """
    folder, limit = Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", args.save_total_limit
    args.save_total_limit = None
    try:
        if args.should_save:
            invalidate(folder)
        accelerator.wait_for_everyone()
        write_json(rank_file(folder, args.process_index), own)
        accelerator.wait_for_everyone()
        yield folder
        if args.save_on_each_node:  # each machine is to be able to go on alone; and transformers leaves out weights
            for rank in savers(args):
                share_files(folder, rank, args)
        if args.should_save:
            files = sorted(path for path in folder.iterdir() if path.is_file())
            write_json(folder / CHECKSUMS_NAME, {path.name: checksum(path) for path in files})
            rotate_checkpoints(output_dir, limit, folder, state.best_model_checkpoint)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in TORCH_WRITES):
            raise  # a loader worker or another process has died meanwhile
        if find_fault(folder, weights_only=args.save_only_model) is None:
            raise  # it has been written; what failed came after, such as a push to the Hub
        last = find_checkpoint(folder.parent, weights_only=args.save_only_model).path
        remedy = (
            f"The last whole checkpoint is {str(last)!r}; resume from it with `resume_from_checkpoint=True` once "
            "there is room and permission to write."
            if last is not None
            else "There is no earlier checkpoint."
        )
        raise OSError(f"The checkpoint {str(folder)!r} could not be written: {error}. {remedy}") from error
    finally:
        args.save_total_limit = limit
