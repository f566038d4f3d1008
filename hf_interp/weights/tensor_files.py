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
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from hf_interp.utils.files import read_json
from hf_interp.weights.matching import TensorInfo

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
LONGEST_HEADER = 100_000_000
NUM_THREADS = 4

Job = TypeVar("Job")


class Stored(NamedTuple):
    """A tensor in a file."""

    info: TensorInfo
    path: Path
    begin: int
    """Its first byte; of no meaning if `tensor` is given."""
    tensor: torch.Tensor | None = None
    """The tensor in a file that torch has saved, mapped into memory."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.info.shape)


def find_tensors(folder: Path, argument: str) -> dict[str, Stored]:
    """Return the tensors of a checkpoint, by name, from headers alone.

    Files of torch are read with `weights_only=True`, which runs no code in them, and mapped into memory.

    Args:
        folder: with `model.safetensors` or its shards, or else `pytorch_model.bin` or its shards.
        argument: what the caller calls the folder, for messages.

    Raises:
        ValueError: if there are no weights, a shard is missing, or a file is not whole.
    """
    files = _weight_files(folder, argument)
    tensors: dict[str, Stored] = {}
    for path in files:
        if not path.is_file():
            raise ValueError(
                f"`{argument}` must hold a whole checkpoint, but {path.name!r}, which its index names, is missing in "
                f"{str(folder)!r}. Download or save it again."
            )
        tensors.update(_read_header(path) if path.suffix == ".safetensors" else _map_torch_file(path))
    for name, file_name in _named_by_index(folder, files).items():
        if name not in tensors:
            raise ValueError(
                f"`{argument}` must hold a whole checkpoint, but {name!r} is not in {file_name!r}, where its index has "
                "it. Download or save it again."
            )
    if not tensors:
        raise ValueError(f"`{argument}` must hold weights, but {files[0].name!r} in {str(folder)!r} is empty.")
    return tensors


def infos(tensors: Mapping[str, Stored]) -> dict[str, TensorInfo]:
    """Shapes and types."""
    return {name: stored.info for name, stored in tensors.items()}


def num_bytes(info: TensorInfo) -> int:
    """Size of a tensor."""
    return math.prod(info.shape) * info.dtype.itemsize


class _OpenFile:
    """One open file at a time: a model has hundreds of shards, and a process a limit of open files."""

    _mode = "rb"

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._path: Path | None = None

    def _open(self, path: Path) -> FileIO:
        if self._file is None or path != self._path:
            self.close()
            self._file, self._path = FileIO(path, self._mode), path
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Reader(_OpenFile):
    """Reads pieces of tensors into one buffer; the next piece overwrites the last. One thread, one reader."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def read(self, stored: Stored, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Elements `begin` to `end` of a tensor, flat."""
        end = stored.numel if end is None else end
        if stored.tensor is not None:
            return stored.tensor.view(-1)[begin:end]
        size = stored.info.dtype.itemsize
        length = (end - begin) * size
        if self._buffer.numel() < length:
            self._buffer = torch.empty(length, dtype=torch.uint8)
        piece = self._buffer[:length]
        file = self._open(stored.path)
        file.seek(stored.begin + begin * size)
        view = piece.numpy().data
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{stored.path.name!r} became shorter while it was read.")
            view = view[count:]
        return piece.view(stored.info.dtype)


class Writer(_OpenFile):
    """Writes pieces of tensors where `create_shards` has made room. One thread, one writer."""

    _mode = "r+"

    def write(self, stored: Stored, begin: int, piece: torch.Tensor) -> None:
        """Write a piece, flat and in its final type, from element `begin` on."""
        assert piece.dtype == stored.info.dtype
        file = self._open(stored.path)
        view = piece.contiguous().view(torch.uint8).numpy().data
        try:
            file.seek(stored.begin + begin * stored.info.dtype.itemsize)
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(stored.path)) from error


def create_shards(
    folder: Path, tensors: Mapping[str, TensorInfo], *, max_shard_size: int | str, total_parameters: int
) -> dict[str, Stored]:
    """Create `model.safetensors`, or shards with their index, as transformers does; tensors are still to be written.

    Returns:
        where each tensor is to be written.
    """
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
        metadata = {"total_parameters": total_parameters, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_INDEX_NAME).write_text(text, encoding="utf-8")
    return places


def run_in_threads(jobs: Iterable[Job], start: Callable[[], AbstractContextManager[Callable[[Job], None]]]) -> None:
    """Do jobs, each by the next thread that is free; the first error stops all and is raised.

    Meanwhile torch divides no operation of its own among threads: these would wait for one another.

    Args:
        jobs: what is to be done.
        start: gives a thread what does a job.
    """
    remaining: Iterator[Job] = iter(jobs)
    lock, stopped = threading.Lock(), threading.Event()

    def work() -> None:
        with start() as do:
            while not stopped.is_set():
                with lock:
                    try:
                        job = next(remaining)
                    except StopIteration:
                        return
                do(job)

    num_threads = min(NUM_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else NUM_THREADS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            futures = [pool.submit(work) for _ in range(num_threads)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stopped.set()
    finally:
        torch.set_num_threads(before)
    for future in futures:
        future.result()


def _weight_files(folder: Path, argument: str) -> list[Path]:
    for name, index_name in ((SAFE_NAME, SAFE_INDEX_NAME), (TORCH_NAME, TORCH_INDEX_NAME)):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / index_name).is_file():
            return [folder / file_name for file_name in sorted(set(_weight_map(folder / index_name).values()))]
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


def _named_by_index(folder: Path, files: list[Path]) -> dict[str, str]:
    if files[0].name in (SAFE_NAME, TORCH_NAME):
        return {}
    return _weight_map(folder / (SAFE_INDEX_NAME if files[0].suffix == ".safetensors" else TORCH_INDEX_NAME))


def _read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else size
        if length > min(size - 8, LONGEST_HEADER):
            raise _not_whole(path, "its header is cut short")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            found = [(name, _parse(path, 8 + length, entry)) for name, entry in entries.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, _UnknownTypeError):
                raise
            raise _not_whole(path, "its header cannot be read") from error
    end = 8 + length
    for name, stored in sorted(found, key=lambda item: (item[1].begin, num_bytes(item[1].info))):
        if stored.begin != end:
            raise _not_whole(path, f"{name!r} is not where it should be")
        end += num_bytes(stored.info)
    if end != size:
        raise _not_whole(path, f"it should have {end:,} bytes and has {size:,}")
    return dict(found)


class _UnknownTypeError(ValueError):
    """A type of tensors that is not among `DTYPES`."""


def _parse(path: Path, first: int, entry: Mapping[str, Any]) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise _unknown_type(path, entry["dtype"])
    info = TensorInfo(tuple(int(size) for size in entry["shape"]), DTYPES[entry["dtype"]])
    begin, end = entry["data_offsets"]
    if min(info.shape, default=0) < 0 or end - begin != num_bytes(info):
        raise ValueError("sizes that do not fit")
    return Stored(info, path, first + begin)


def _unknown_type(path: Path, dtype: str) -> _UnknownTypeError:
    return _UnknownTypeError(
        f"{path.name!r} must have plain tensors, but has some of type {dtype}. Dequantise the model first."
    )


def _not_whole(path: Path, fault: str) -> ValueError:
    return ValueError(f"{path.name!r} is not a whole safetensors file: {fault}. Download or save it again.")


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
    for tensor in tensors.values():
        if tensor.dtype not in NAMES:
            raise _unknown_type(path, str(tensor.dtype))
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
