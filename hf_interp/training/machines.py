"""Several processes on several machines: alike in what they were given, and with the checkpoints that all need.

Machines share `output_dir`, or `save_on_each_node` is set and each keeps whole checkpoints of its own.
"""

import hashlib
import json
import socket
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list

from hf_interp.utils.files import new_file

if TYPE_CHECKING:  # looking at checkpoints is to be fast
    from transformers import TrainingArguments

CHUNK = 64 << 20  # bytes of a file that are sent at a time
MOST_NAMED = 3
OWN = {"output_dir", "logging_dir", "run_name", "local_rank", "report_to", "resume_from_checkpoint"} | {
    *("disable_tqdm", "log_level", "log_level_replica")
}
"""Training arguments that processes of a run may have of their own."""


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, by rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def savers(args: "TrainingArguments") -> list[int]:
    """Return the ranks of the processes that write: the first, or with `save_on_each_node` one on each machine."""
    return [rank for rank, saves in enumerate(gather(args.should_save)) if saves]


def check_alike(args: "TrainingArguments", facts: Mapping[str, Any]) -> None:
    """Raise `ValueError`, on all processes, where one has other arguments or `facts` than the first.

    If they agree, all that is sent is a hash. The last of `facts` is named if nothing else tells the difference.
    """
    texts = {name: json.dumps(value, default=str) for name, value in {**args.to_dict(), **facts}.items()}
    texts = {name: text for name, text in texts.items() if name not in OWN}
    if len(set(gather(hashlib.sha256(repr(sorted(texts.items())).encode()).digest()))) == 1:
        return
    (host, first), *others = gather((socket.gethostname(), texts))
    rank, (place, other) = next((rank, each) for rank, each in enumerate(others, 1) if each[1] != first)
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    names = [name for name in names if name not in list(facts)[-1:]] or names
    named = "; ".join(f"{name}: {other.get(name)}, not {first.get(name)}" for name in names[:MOST_NAMED])
    raise ValueError(
        f"Process {rank} (on {place}) differs from process 0 (on {host}) in {named}. Give all processes the same "
        "files, recipe and flags."
    )


def check_folders(args: "TrainingArguments") -> None:
    """Raise `ValueError` where `save_on_each_node` does not suit the `output_dir` that machines share, or do not."""
    if args.world_size == 1 or args.save_strategy == "no":
        return
    folder = Path(args.output_dir or ".")
    with tempfile.NamedTemporaryFile(dir=folder) if args.process_index == 0 else nullcontext() as probe:
        name = [None if probe is None else Path(probe.name).name]
        broadcast_object_list(name)
        found = gather(((folder / str(name[0])).exists(), args.local_process_index, socket.gethostname()))
    blind = [rank for rank, (is_seen, _, _) in enumerate(found) if not is_seen]
    if blind and not args.save_on_each_node:
        raise ValueError(
            f"`output_dir` must be one folder for all machines, but process {blind[0]} (on {found[blind[0]][2]}) does "
            f"not see {str(folder)!r} of process 0. Set `save_on_each_node: true`, or take a folder that all share."
        )
    if args.save_on_each_node and any(local == 0 and is_seen for is_seen, local, _ in found[1:]):
        raise ValueError(
            f"`save_on_each_node` is for folders that machines do not share, but {str(folder)!r} is one for several of "
            "them, which would write the same files. Leave it out, or take a folder of each machine's own."
        )


def share_files(folder: Path, source: int, args: "TrainingArguments") -> None:
    """Give all machines what they lack of the files that the process `source` has in a folder of its own."""
    own = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = [sorted(own, key=lambda name: (name == "trainer_state.json", name))]  # without which nothing is whole
    broadcast_object_list(names, source)
    lacking = set(names[0]) - own if args.should_save else set()
    wanted = set().union(*gather(lacking))
    for name in filter(wanted.__contains__, names[0]):
        with (
            (folder / name).open("rb") if args.process_index == source else nullcontext() as given,
            new_file(folder / name, "wb") if name in lacking else nullcontext() as taken,
        ):
            chunk = [b" "]
            while chunk[0]:
                chunk = [given.read(CHUNK) if given else b""]
                broadcast_object_list(chunk, source)
                if taken:
                    taken.write(chunk[0])
    gather(None)  # before any process reads one
