"""The formula, and tensors by name with each storage once."""

import pytest
import torch
from torch import nn

from hf_interp.weights.tensors import decide_tensors, is_finite, lerp, named_tensors, write_one

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pair(dtype: torch.dtype, size: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(size, generator=draw).to(dtype), torch.randn(size, generator=draw).to(dtype)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0, 1.5, -0.5])
def test_the_formula_is_computed_in_float32_and_cast_once(dtype: torch.dtype, alpha: float) -> None:
    base, finetuned = pair(dtype)
    out = torch.empty_like(base)
    lerp(base, finetuned, alpha, out)
    wide = torch.promote_types(dtype, torch.float32)
    expected = torch.lerp(base.to(wide), finetuned.to(wide), alpha).to(dtype)
    assert torch.equal(out, expected)
    plain = (1 - alpha) * base.double() + alpha * finetuned.double()
    assert torch.allclose(out.double(), plain, rtol=torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_exact(alpha: float) -> None:
    base, finetuned = torch.tensor([1e30, 1.0, -0.0]), torch.tensor([-1e30, 1e-30, 0.0])
    out = torch.empty(3)
    lerp(base, finetuned, alpha, out)
    assert out.view(torch.int32).tolist() == (finetuned if alpha else base).view(torch.int32).tolist()


@pytest.mark.parametrize("kinds", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("out_kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1])
def test_other_types_are_converted_by_blocks(
    kinds: tuple[torch.dtype, torch.dtype], out_kind: torch.dtype, size: int
) -> None:
    base, finetuned = pair(torch.float32, size)
    base, finetuned = base.to(kinds[0]), finetuned.to(kinds[1])
    out = torch.empty(size, dtype=out_kind)
    lerp(base, finetuned, 0.3, out)
    assert torch.equal(out, torch.lerp(base.float(), finetuned.float(), 0.3).to(out_kind))


@pytest.mark.parametrize("out_kind", [torch.float32, torch.bfloat16])
def test_a_place_need_not_be_contiguous(out_kind: torch.dtype) -> None:
    base, finetuned = (tensor.view(20, 50) for tensor in pair(torch.float32))
    out = torch.zeros(50, 20, dtype=out_kind).t()
    lerp(base, finetuned, 0.3, out)
    assert torch.equal(out, torch.lerp(base, finetuned, 0.3).to(out_kind))


@pytest.mark.parametrize("which", [0, 1])
def test_a_place_may_be_one_of_the_two(which: int) -> None:
    both = pair(torch.float32)
    expected = torch.lerp(*both, 0.3)
    lerp(*both, 0.3, both[which])
    assert torch.equal(both[which], expected)


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_beyond_the_common_vocabulary_are_the_finetuned_ones(before: int, after: int, axis: int) -> None:
    base, finetuned = torch.zeros(before, 2), torch.ones(after, 2)
    if axis:
        base, finetuned = base.t(), finetuned.t()
    out = torch.empty_like(finetuned)
    write_one(0.25, axis, base, finetuned, out)
    rows = out.t() if axis else out
    assert rows[:, 0].tolist() == [0.25] * 3 + [1.0] * (after - 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], True),
        ([1.0, -2.0], True),
        ([1.0, float("inf")], False),
        ([float("-inf")], False),
        ([float("nan"), 1], False),
    ],
)
def test_finite(values: list[float], expected: bool) -> None:
    assert is_finite(torch.tensor(values)) is expected


def test_a_storage_is_listed_once_with_all_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    found = named_tensors(model)
    assert list(found.unique) == ["a.weight"]
    assert found.first == {"a.weight": "a.weight", "b.weight": "a.weight"}
    assert [(tie.name, tie.action, tie.reason) for tie in found.ties()] == [("b.weight", "tied", "to a.weight")]
    assert not found.unique["a.weight"].requires_grad


def test_views_of_one_storage_are_not_ties() -> None:
    whole = torch.arange(6.0)
    found = named_tensors({"first": whole[:3], "last": whole[3:], "all": whole, "empty": whole[:0], "none": whole[:0]})
    assert list(found.unique) == ["first", "last", "all", "empty", "none"]


def test_tensors_that_are_not_plain_are_refused() -> None:
    class Packed(torch.Tensor):
        pass

    with pytest.raises(ValueError, match="'w' is a Packed, which is not a plain tensor"):
        named_tensors({"w": torch.ones(2).as_subclass(Packed)})
    with pytest.raises(TypeError, match="must be tensors, got list for 'w'"):
        named_tensors({"w": [1.0]})  # type: ignore[dict-item]


def test_a_mask_with_infinities_is_copied() -> None:
    base = {"w": torch.zeros(2), "mask": torch.tensor([0.0, float("-inf")])}
    found = decide_tensors(named_tensors(base), named_tensors(dict(base)), 0.5)
    assert [(one.action, one.reason) for one in found] == [
        ("interpolated", ""),
        ("copied", "holds infinities, as masks do"),
    ]


@pytest.mark.parametrize("whose", ["M₀", "M_θ"])
def test_nan_is_refused(whose: str) -> None:
    good, bad = {"w": torch.zeros(2)}, {"w": torch.tensor([0.0, float("nan")])}
    tensors = (bad, good) if whose == "M₀" else (good, bad)
    with pytest.raises(ValueError, match=f"'w' of {whose} holds NaN"):
        decide_tensors(*(named_tensors(side) for side in tensors), 0.5)


def test_tied_in_the_finetuned_and_different_in_the_base_is_refused() -> None:
    one = torch.ones(3)
    tied = named_tensors({"a": one, "b": one})
    same, other = {"a": one.clone(), "b": one.clone()}, {"a": one.clone(), "b": one + 1}
    assert [decision.name for decision in decide_tensors(named_tensors(same), tied, 0.5)] == ["a"]
    with pytest.raises(ValueError, match=r"'b' and 'a' are tied in M_θ, but differ in M₀.*Untie"):
        decide_tensors(named_tensors(other), tied, 0.5)


def test_tied_in_the_base_alone_stands_for_both() -> None:
    one = torch.zeros(3)
    untied = named_tensors({"a": torch.ones(3), "b": torch.full((3,), 2.0)})
    found = decide_tensors(named_tensors({"a": one, "b": one}), untied, 0.5)
    assert [(decision.name, decision.base_name) for decision in found] == [("a", "a"), ("b", "a")]


@pytest.mark.parametrize(("alpha", "settled"), [(0.0, True), (1.0, True), (0.5, False)])
def test_statistics_of_batch_norms_belong_to_the_ends(alpha: float, settled: bool) -> None:
    base, finetuned = (
        named_tensors({"w": torch.ones(2), "n.running_mean": torch.full((2,), value)}) for value in (0.0, 1.0)
    )
    if settled:
        assert [decision.alpha for decision in decide_tensors(base, finetuned, alpha)] == [alpha, alpha]
        return
    with pytest.raises(ValueError, match=r"'n.running_mean' is a statistic of a batch norm.*Give `recalibrate`"):
        decide_tensors(base, finetuned, alpha)
    kept = decide_tensors(base, finetuned, alpha, keeps_statistics=True)
    assert [decision.action for decision in kept] == ["interpolated", "copied"]
    same = decide_tensors(base, base, alpha)
    assert same[1].reason == "a statistic that is the same in M₀"
