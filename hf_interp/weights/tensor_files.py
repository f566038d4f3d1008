"""Tensors of checkpoint folders: found without loading, read piece by piece, and written as they come.

A safetensors file is the length of its header (eight bytes, little-endian), the header (JSON: name → type, shape and
place of each tensor), and the tensors. What is written here is byte for byte what `safetensors.torch.save_file` writes.
Like it, nothing here calls fsync: after a power failure a file may be incomplete, after a killed process not.
"""

import json
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from hf_interp.utils.files import read_json
from hf_interp.weights.matching import TensorInfo, is_float, unwrap_names

SAFE_NAME, SAFE_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
TORCH_NAME, TORCH_INDEX_NAME = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in safetensors, in the order in which it puts them into a file, so that each is aligned."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NUM_THREADS = 4
AHEAD = 256  # jobs that wait for a thread, at the most: a list of all would take more memory than the blocks do

Job = TypeVar("Job")


class Stored(NamedTuple):
    """A tensor in a file."""

    info: TensorInfo
    path: Path
    begin: int
    """Its first byte; of no meaning if `tensor` is given."""
    tensor: torch.Tensor | None = None
    """The tensor in a file that torch has saved, mapped into memory."""
    key: str = ""
    """Its name in a file of safetensors."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.info.shape)


def find_tensors(folder: Path, argument: str) -> dict[str, Stored]:
    """Return the tensors of a checkpoint from headers alone, by name without what wrappers of the model add to it.

    Files of torch are read with `weights_only=True`, which runs no code in them, and mapped into memory.

    Args:
        folder: with `model.safetensors` or its shards, or else `pytorch_model.bin` or its shards.
        argument: what the caller calls the folder, for messages.
    """
    files, named = _weight_files(folder, argument)
    tensors: dict[str, Stored] = {}
    for path in files:
        if not path.is_file():
            raise ValueError(
                f"`{argument}` must hold a whole checkpoint, but {path.name!r}, which its index names, is missing in "
                f"{str(folder)!r}. Download or save it again."
            )
        tensors.update(_read_header(path) if path.suffix == ".safetensors" else _map_torch_file(path))
    for name, file_name in named.items():
        if name not in tensors:
            raise ValueError(
                f"`{argument}` must hold a whole checkpoint, but {name!r} is not in {file_name!r}, where its index has "
                "it. Download or save it again."
            )
    if not tensors:
        raise ValueError(f"`{argument}` must hold weights, but {files[0].name!r} in {str(folder)!r} is empty.")
    plain = unwrap_names(tensors)
    if len(set(plain.values())) < len(plain):
        raise ValueError(f"`{argument}` must hold each tensor once, but wrappers alone tell some names apart.")
    return {plain[name]: stored for name, stored in tensors.items()}


def infos(tensors: Mapping[str, Stored]) -> dict[str, TensorInfo]:
    """Return shapes and types."""
    return {name: stored.info for name, stored in tensors.items()}


def num_bytes(info: TensorInfo) -> int:
    """Size of a tensor."""
    return math.prod(info.shape) * info.dtype.itemsize


def read_piece(stored: Stored, begin: int = 0, end: int | None = None) -> torch.Tensor:
    """Return elements `begin` to `end` of a tensor, flat."""
    end = stored.numel if end is None else end
    if stored.tensor is not None:
        return stored.tensor.view(-1)[begin:end]
    size = stored.info.dtype.itemsize
    piece = torch.empty((end - begin) * size, dtype=torch.uint8)
    with stored.path.open("rb") as file:
        file.seek(stored.begin + begin * size)
        if file.readinto(piece.numpy().data) < len(piece):
            raise ValueError(
                f"{stored.path.name!r} became shorter while it was read. Try again when nothing writes to it."
            )
    return piece.view(stored.info.dtype)


def write_piece(stored: Stored, begin: int, piece: torch.Tensor) -> None:
    """Write a piece, flat and in its final type, where `create_shards` has made room, from element `begin` on."""
    assert piece.dtype == stored.info.dtype
    try:
        with stored.path.open("r+b") as file:
            file.seek(stored.begin + begin * stored.info.dtype.itemsize)
            file.write(piece.contiguous().view(torch.uint8).numpy().data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(stored.path)) from error


def create_shards(folder: Path, tensors: Mapping[str, TensorInfo], max_shard_size: int | str) -> dict[str, Stored]:
    """Create `model.safetensors`, or shards with their index, as transformers does; return the places to write to."""
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    places: dict[str, Stored] = {}
    for file_name, names in split.filename_to_tensors.items():
        places.update(_create_file(folder / file_name, {name: tensors[name] for name in names}))
    if split.is_sharded:
        count = sum(math.prod(info.shape) for info in tensors.values() if is_float(info.dtype))
        metadata = {"total_parameters": count, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_INDEX_NAME).write_text(text, encoding="utf-8")
    return places


def run_in_threads(jobs: Iterable[Job], do: Callable[[Job], None]) -> None:
    """Do jobs, each by the next thread that is free; the first error stops all and is raised.

    Meanwhile torch divides no operation of its own among threads: these would wait for one another.
    """
    remaining = iter(jobs)
    num_threads = min(NUM_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else NUM_THREADS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            while ahead := list(islice(remaining, AHEAD)):
                for _ in pool.map(do, ahead):  # where one fails, those that wait are not begun
                    pass
    finally:
        torch.set_num_threads(before)


def _weight_files(folder: Path, argument: str) -> tuple[list[Path], dict[str, str]]:
    """Return the files of weights, and what their index, if they have one, says is in which."""
    for name, index_name in ((SAFE_NAME, SAFE_INDEX_NAME), (TORCH_NAME, TORCH_INDEX_NAME)):
        if (folder / name).is_file():
            return [folder / name], {}
        if (folder / index_name).is_file():
            named = _weight_map(folder / index_name)
            return [folder / file_name for file_name in sorted(set(named.values()))], named
    raise ValueError(
        f"`{argument}` must hold weights ({SAFE_NAME}, {TORCH_NAME} or shards of one with their index), got none in "
        f"{str(folder)!r}.{_other_weights(folder)}"
    )


def _other_weights(folder: Path) -> str:
    """Say what to do about weights that are there in another form."""
    if checkpoints := sorted(path.name for path in folder.glob("checkpoint-*")):
        return f" Give one of its checkpoints, such as {checkpoints[-1]!r}."
    if any(folder.glob("pytorch_model_fsdp*")) or any(folder.glob("global_step*")):
        return " Its shards are those of a training run: put them together first (`accelerate merge-weights`)."
    if any(folder.glob("model-*-of-*.safetensors")) or any(folder.glob("pytorch_model-*-of-*.bin")):
        return " There are shards, but their index is missing."
    return ""


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor → file, as an index has it."""
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path.name!r} must be an index with a `weight_map`, and is not. Download or save it again.")
    for file_name in weight_map.values():
        # an index from elsewhere must not name files elsewhere
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ValueError(f"{path.name!r} must name files beside it, got {file_name!r}.")
    return weight_map


def _read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file, once the library has found it whole."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path.name!r} is not a whole safetensors file: {error}. Download or save it again."
        ) from error
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    _check_types(path, {entry["dtype"] for entry in header.values()} - DTYPES.keys())
    return {
        name: Stored(
            TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]]),
            path,
            8 + length + entry["data_offsets"][0],
            key=name,
        )
        for name, entry in header.items()
    }


def _check_types(path: Path, unknown: set[Any]) -> None:
    if unknown:
        raise ValueError(
            f"{path.name!r} must have plain tensors, but has some of type {min(map(str, unknown))}. Dequantise the "
            "model first."
        )


def _map_torch_file(path: Path) -> dict[str, Stored]:
    """Return the tensors of a file that torch has saved."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name!r} must hold tensors alone, but holds other objects, whose loading may run code. Convert it "
            "to safetensors on a machine where that does no harm."
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path.name!r} cannot be read: it is not whole, or of a form before torch 1.6. Download it again, or load "
            "and save the model."
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path.name!r} must hold tensors by name, and does not. Save the model's `state_dict()`.")
    _check_types(path, {tensor.dtype for tensor in tensors.values()} - NAMES.keys())
    return {
        name: Stored(TensorInfo(tuple(tensor.shape), tensor.dtype), path, 0, tensor.detach().contiguous())
        for name, tensor in tensors.items()
    }


def _create_file(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, Stored]:
    """Create a safetensors file with its header, at its full length."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    ranks = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
    order = sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0]))
    for name, info in order:
        begin, end = end, end + num_bytes(info)
        header[name] = {"dtype": NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    first = 8 + len(text)
    return {name: Stored(info, path, first + header[name]["data_offsets"][0]) for name, info in order}
