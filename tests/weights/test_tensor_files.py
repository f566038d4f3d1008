"""Tensors of checkpoint folders: found, read in pieces, written as the host writes them."""

import json
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_interp.weights import streaming
from hf_interp.weights.matching import TensorDecision, TensorInfo
from hf_interp.weights.streaming import Inputs, are_equal, write_result
from hf_interp.weights.tensor_files import (
    DTYPES,
    create_shards,
    find_tensors,
    infos,
    read_piece,
    run_in_threads,
    write_piece,
)


def all_types() -> dict[str, torch.Tensor]:
    """Tensors of every type, with names that do not come in the order of types."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{'zäqb'[index % 4]}{index}": (torch.randn(3, index + 1, generator=generator) * 5).to(dtype)
        for index, dtype in enumerate(DTYPES.values())
    }
    return {**tensors, "empty": torch.empty(0, 3), "one": torch.tensor(3.0)}


def write_all(folder: Path, tensors: dict[str, torch.Tensor], max_shard_size: int | str = "50GB") -> None:
    """Write tensors in pieces of two elements."""
    shapes = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    places = create_shards(folder, shapes, max_shard_size)
    for name, tensor in tensors.items():
        for begin in range(0, tensor.numel(), 2):
            write_piece(places[name], begin, tensor.view(-1)[begin : begin + 2])


def read_all(folder: Path, size: int = 3) -> dict[str, torch.Tensor]:
    """Read all tensors in pieces."""
    found = {}
    for name, stored in find_tensors(folder, "base_dir").items():
        begins = range(0, stored.numel, size)
        pieces = [read_piece(stored, begin, min(begin + size, stored.numel)) for begin in begins]
        flat = torch.cat(pieces) if pieces else torch.empty(0, dtype=stored.info.dtype)
        found[name] = flat.view(stored.info.shape)
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether tensors agree bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].view(-1).view(torch.uint8).equal(second[name].view(-1).view(torch.uint8))
        for name in first
    )


def test_a_file_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    save_file(all_types(), tmp_path / "expected.safetensors", metadata={"format": "pt"})
    write_all(tmp_path, all_types())
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert same({name: file.get_tensor(name) for name in file.keys()}, all_types())  # noqa: SIM118


@pytest.mark.parametrize("max_shard_size", [1, 100, 300, "1KB", "50GB"])
def test_shards_are_those_of_the_host(tmp_path: Path, max_shard_size: int | str) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
    model.save_pretrained(tmp_path / "host", max_shard_size=max_shard_size)
    (tmp_path / "ours").mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    shapes = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    places = create_shards(tmp_path / "ours", shapes, max_shard_size)
    for name, tensor in tensors.items():
        write_piece(places[name], 0, tensor.view(-1))
    files = {path.name: path.read_bytes() for path in (tmp_path / "host").glob("model*")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == files


@pytest.mark.parametrize("max_shard_size", [1, 60, "50GB"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_written_is_read(tmp_path: Path, max_shard_size: int | str, size: int) -> None:
    write_all(tmp_path, all_types(), max_shard_size)
    assert same(read_all(tmp_path, size), all_types())


def test_files_of_torch_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(6).view(2, 3).t()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert same(read_all(tmp_path), {name: tensor.contiguous() for name, tensor in tensors.items()})
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert read_all(tmp_path).keys() == tensors.keys()


def test_safetensors_come_before_files_of_torch(tmp_path: Path) -> None:
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    assert infos(find_tensors(tmp_path, "base_dir")) == {"new": TensorInfo((1,), torch.float32)}


def with_header(header: Any, data: bytes = b"") -> bytes:
    """A file with a header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header too small"),
        (b"\x02\x00\x00", "header too small"),
        (struct.pack("<Q", 100) + b"{}", "invalid header length"),
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (struct.pack("<Q", 4) + b"oops", "invalid JSON in header"),
        (struct.pack("<Q", 2) + b"\xff\xff", "invalid UTF-8 in header"),
        (with_header([]), "invalid JSON in header"),
        (with_header({"a": 1}), "invalid JSON in header"),
        (with_header({"a": {**ENTRY, "shape": [2]}}, b"1234"), "invalid shape, data type, or offset"),
        (with_header({"a": {**ENTRY, "shape": [-1, -1]}}, b"1234"), "invalid JSON in header"),
        (with_header({"a": {**ENTRY, "data_offsets": [4, 8]}}, b"12345678"), "invalid offset for tensor `a`"),
        (with_header({"a": ENTRY, "b": ENTRY}, b"1234"), "invalid offset for tensor `[ab]`"),
        (with_header({"a": ENTRY}, b"123"), "file not fully covered"),
        (with_header({"a": ENTRY}, b"12345"), "file not fully covered"),
        (with_header({"a": {**ENTRY, "shape": [8], "dtype": "F4"}}, b"1234"), "type F4. Dequantise"),
        (with_header({"__metadata__": {}}), "is empty"),
    ],
)
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.safetensors.*{message}"):
        find_tensors(tmp_path, "base_dir")


def test_a_file_that_gets_shorter_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    stored = find_tensors(tmp_path, "base_dir")["a"]
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"'model.safetensors' became shorter"):
        read_piece(stored)


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("harm",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Harmful()}, "holds other objects, whose loading may run code"),
        ([torch.ones(1)], "must hold tensors by name"),
        ({"a": 1}, "must hold tensors by name"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "type torch.complex128. Dequantise"),
    ],
)
def test_a_file_of_torch_holds_tensors_alone(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"'pytorch_model.bin'.*{message}"):
        find_tensors(tmp_path, "base_dir")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"PK", b"some text that is no archive"])
def test_a_file_of_torch_that_is_not_whole_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"'pytorch_model\.bin'"):
        find_tensors(tmp_path, "base_dir")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, all_types(), 60)
    shard = sorted(tmp_path.glob("model-*"))[2]
    shard.unlink()
    with pytest.raises(ValueError, match=f"`finetuned_dir` must hold a whole checkpoint, but '{shard.name}'.*missing"):
        find_tensors(tmp_path, "finetuned_dir")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model.safetensors"}, None),
        ({"b": "model-00001-of-00001.safetensors"}, "'b' is not in 'model-00001-of-00001.safetensors'"),
        ({"a": "../model.safetensors"}, "must name files beside it, got '../model.safetensors'"),
        ({"a": "/etc/model.safetensors"}, "must name files beside it"),
        ({"a": 1}, "must name files beside it, got 1"),
        ({}, "must be an index with a `weight_map`"),
        (None, "must be an index with a `weight_map`"),
    ],
)
def test_an_index_is_checked(tmp_path: Path, weight_map: Any, message: str | None) -> None:
    name = "model.safetensors" if message is None else "model-00001-of-00001.safetensors"
    save_file({"a": torch.ones(1)}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        assert find_tensors(tmp_path, "base_dir").keys() == {"a"}


@pytest.mark.parametrize(
    ("beside", "remedy"),
    [
        (None, "got none in"),
        ("checkpoint-20/config.json", "Give one of its checkpoints, such as 'checkpoint-20'"),
        ("pytorch_model_fsdp_0/a", "accelerate merge-weights"),
        ("global_step3/a", "accelerate merge-weights"),
        ("model-00001-of-00002.safetensors", "their index is missing"),
        ("pytorch_model-00001-of-00002.bin", "their index is missing"),
    ],
)
def test_a_folder_without_weights_says_what_to_do(tmp_path: Path, beside: str | None, remedy: str) -> None:
    if beside is not None:
        (tmp_path / beside).parent.mkdir(exist_ok=True)
        (tmp_path / beside).touch()
    with pytest.raises(ValueError, match=f"`base_dir` must hold weights.*{remedy}"):
        find_tensors(tmp_path, "base_dir")


def test_threads_do_every_job_once() -> None:
    done: list[int] = []
    run_in_threads(range(1000), done.append)
    assert sorted(done) == list(range(1000))


def test_the_first_error_stops_all_threads() -> None:
    done: list[int] = []

    def do(job: int) -> None:
        done.append(job)
        if job == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        run_in_threads(iter(range(10**9)), do)
    assert 5 in done


def test_an_error_in_the_list_of_jobs_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_threads((1 // job for job in (1, 0, 1)), lambda job: None)


@pytest.mark.parametrize("fails", [False, True])
def test_torch_gets_its_threads_back(fails: bool) -> None:
    before, seen = torch.get_num_threads(), []

    def do(job: int) -> None:
        seen.append(torch.get_num_threads())
        if fails:
            raise ValueError("no")

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="no") if fails else nullcontext():
            run_in_threads([1], do)
        assert (torch.get_num_threads(), seen) == (2, [1])
    finally:
        torch.set_num_threads(before)


# M_α block by block: every block once, whatever its size, and what is found in the values.


Tensors = dict[str, torch.Tensor]


def stored(folder: Path, tensors: Tensors) -> Any:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return find_tensors(folder, "folder")


def write(tmp_path: Path, base: Tensors, runs: list[Tensors], decision: TensorDecision) -> tuple[torch.Tensor, Any]:
    """Write one tensor; returns it, and what was decided in the end."""
    inputs = Inputs(
        stored(tmp_path / "base", base), [stored(tmp_path / str(index), run) for index, run in enumerate(runs)]
    )
    (tmp_path / "out").mkdir()
    places = create_shards(tmp_path / "out", infos(inputs.runs[0]), "50GB")
    decisions = write_result(inputs, places, [decision])
    return load_file(tmp_path / "out" / "model.safetensors")[decision.name], decisions[0]


def interpolated(alpha: float, axis: int | None = None) -> TensorDecision:
    return TensorDecision(name="w", action="interpolated", base_name="w", alpha=alpha, vocabulary_axis=axis)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("count", [1, 3])
def test_blocks_of_any_size_give_the_mean_interpolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, count: int
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", block * 2)
    draw = torch.Generator().manual_seed(0)
    base, *runs = (torch.randn(5, 4, generator=draw) for _ in range(1 + count))
    found, decision = write(tmp_path, {"w": base}, [{"w": run} for run in runs], interpolated(0.3))
    assert torch.equal(found, torch.lerp(base, sum(runs) / count, 0.3))
    assert decision.action == "interpolated"


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 2)), (1, (2, 6))])
def test_rows_beyond_the_common_ones_are_the_finetuned_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 3)
    base, tuned = torch.zeros(shape).narrow(axis, 0, 4).contiguous(), torch.ones(shape)
    found, _ = write(tmp_path, {"w": base}, [{"w": tuned}], interpolated(0.25, axis))
    expected = tuned.clone()
    expected.narrow(axis, 0, 4).fill_(0.25)
    assert torch.equal(found, expected)


def test_a_mask_that_is_found_in_a_late_block_is_written_anew_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 2)
    base, tuned = torch.zeros(9), torch.ones(9)
    base[8] = tuned[8] = -torch.inf
    found, decision = write(tmp_path, {"w": base}, [{"w": tuned}], interpolated(0.5))
    assert torch.equal(found, tuned)
    assert (decision.action, decision.reason, decision.alpha) == ("copied", "holds infinities, as masks do", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_compared_by_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 2)
    base = stored(tmp_path / "base", {"a": torch.arange(5.0), "b": torch.arange(5.0).to(dtype), "c": torch.ones(4)})
    assert are_equal(base["a"], base["b"])
    assert not are_equal(base["a"], base["c"])
    other = stored(tmp_path / "other", {"a": torch.tensor([0.0, 1, 2, 3, 5])})
    assert not are_equal(base["a"], other["a"])
