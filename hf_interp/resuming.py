"""Saving and resuming: which checkpoint is taken, what each process finds in it, and why one was not written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from hf_interp.checkpoints import Found, find_checkpoint, find_fault, rank_file, read_mixture
from hf_interp.files import read_json

TORCH_WRITES = ("inline_container", "Parent directory")
"""What the `RuntimeError` says by which torch tells that it could not write a file."""


def choose_checkpoint(
    resume_from_checkpoint: str | bool | None, output_dir: str, *, weights_only: bool, is_main_process: bool
) -> Found:
    """The checkpoint to resume from: the same on all processes, and whole; none for a new run.

    Args:
        resume_from_checkpoint: a folder, or `True` for the last whole checkpoint of `output_dir`.
        output_dir: the folder of the run.
        weights_only: whether the run saves nothing else.
        is_main_process: this one looks, and the others are told.

    Raises:
        ValueError: if there is none that is whole.
    """
    if not resume_from_checkpoint:
        return Found(None, [])
    if resume_from_checkpoint is not True:
        fault = find_fault(resume_from_checkpoint, weights_only=True)
        if fault is not None:
            last = find_checkpoint(Path(resume_from_checkpoint).parent, weights_only=weights_only).path
            raise ValueError(
                f"The checkpoint {str(resume_from_checkpoint)!r} cannot be resumed: {fault}. "
                + (f"The last whole one beside it is {str(last)!r}." if last else "There is no whole one beside it.")
            )
        return Found(Path(resume_from_checkpoint), [])
    found: list[Any] = [find_checkpoint(output_dir, weights_only=weights_only) if is_main_process else None]
    broadcast_object_list(found)
    path, skipped = found[0]
    if path is None:
        faults = f" There are only parts of some: {', '.join(skipped)}." if skipped else ""
        raise ValueError(f"No valid checkpoint found in output directory ({output_dir}).{faults} Start a new run.")
    return Found(Path(path), skipped)


def read_rank_states(checkpoint: Path, *, num_processes: int, process_index: int) -> list[dict[str, Any]]:
    """What the processes of the saved run have left for this one.

    If there are as many now, each takes up its own state; else the first takes up all, which is right for sums. From a
    checkpoint that another trainer has written, there is none.
    """
    left = read_mixture(checkpoint) or read_json(rank_file(checkpoint, 0)) or {}
    num_before = left.get("num_processes", 0)
    if num_before == num_processes:
        ranks: Sequence[int] = [process_index]
    else:
        ranks = range(num_before) if process_index == 0 else []
    return [read_json(rank_file(checkpoint, rank)) for rank in ranks]


@contextmanager
def explained_writing(checkpoint: Path, *, weights_only: bool) -> Iterator[None]:
    """Say in words that a checkpoint could not be written, as on a full disk, and which one is the last whole."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in TORCH_WRITES):
            raise  # a loader worker or another process has died meanwhile
        if find_fault(checkpoint, weights_only=weights_only) is None:
            raise  # it has been written; what failed came after, such as a push to the Hub
        last = find_checkpoint(checkpoint.parent, weights_only=weights_only).path
        remedy = (
            f"The last whole checkpoint is {str(last)!r}; resume from it with `resume_from_checkpoint=True` once "
            "there is room and permission to write."
            if last is not None
            else "There is no earlier checkpoint."
        )
        raise OSError(f"The checkpoint {str(checkpoint)!r} could not be written: {error}. {remedy}") from error
