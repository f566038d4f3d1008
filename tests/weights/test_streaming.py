"""M_α block by block: every block once, whatever its size, and what is found in the values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_interp.weights import streaming
from hf_interp.weights.matching import TensorDecision
from hf_interp.weights.streaming import Inputs, are_equal, write_result
from hf_interp.weights.tensor_files import create_shards, find_tensors, infos

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
