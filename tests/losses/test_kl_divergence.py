"""The divergence against torch's own, its gradient against differences, and what it allocates."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hf_interp.losses.kl_divergence import DIRECTIONS, Direction, kl_divergence


def logits_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def plain(logits: torch.Tensor, ref_logits: torch.Tensor, temperature: float, direction: str) -> torch.Tensor:
    """The same in torch's own words."""
    log_p, log_p0 = ((part / temperature).log_softmax(-1) for part in (logits, ref_logits))
    found, given = (log_p, log_p0) if direction == "forward" else (log_p0, log_p)
    return functional.kl_div(found, given, log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("chunk_size", [1, 50, 77, 1 << 24])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_values_and_gradients_are_torchs(direction: Direction, temperature: float, chunk_size: int) -> None:
    ours, theirs = logits_of(3, 7, 11).requires_grad_(), logits_of(3, 7, 11).double().requires_grad_()
    ref_logits, weights = logits_of(3, 7, 11, seed=1), torch.linspace(0, 1, 21)
    found = kl_divergence(ours, ref_logits, temperature=temperature, direction=direction, chunk_size=chunk_size)
    expected = plain(theirs, ref_logits.double(), temperature, direction).flatten()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (found @ weights).backward()
    (expected @ weights.double()).backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_is_computed_in_float32_and_rounded_once(direction: Direction, dtype: torch.dtype) -> None:
    ours, ref_logits = logits_of(5, 300, dtype=dtype).requires_grad_(), logits_of(5, 300, seed=1, dtype=dtype)
    whole = ours.detach().float().requires_grad_()
    found = kl_divergence(ours, ref_logits, direction=direction)
    expected = kl_divergence(whole, ref_logits.float(), direction=direction)
    found.sum().backward()
    expected.sum().backward()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert ours.grad is not None
    assert whole.grad is not None
    assert torch.equal(ours.grad, whole.grad.to(dtype))


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_those_of_differences(direction: Direction, temperature: float) -> None:
    logits, ref_logits = (logits_of(4, 6, seed=seed, dtype=torch.float64) for seed in (0, 1))
    rows = torch.tensor([3, 0, 2])

    def divergence(tensor: torch.Tensor) -> torch.Tensor:
        return kl_divergence(tensor, ref_logits, rows=rows, temperature=temperature, direction=direction, chunk_size=12)

    assert torch.autograd.gradcheck(divergence, logits.requires_grad_())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_that_are_not_asked_for_get_no_gradient(direction: Direction) -> None:
    logits, ref_logits = logits_of(2, 3, 5).requires_grad_(), logits_of(2, 3, 5, seed=1)
    rows = torch.tensor([4, 1])
    found = kl_divergence(logits, ref_logits, rows=rows, direction=direction)
    torch.testing.assert_close(found, kl_divergence(logits, ref_logits, direction=direction)[rows])
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten(0, 1).abs().sum(-1).nonzero().flatten().tolist() == [1, 4]


def test_no_rows_cost_nothing() -> None:
    logits = logits_of(3, 5).requires_grad_()
    found = kl_divergence(logits, logits_of(3, 5, seed=1), rows=torch.tensor([], dtype=torch.long))
    assert found.shape == (0,)
    found.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("sizes", [(7, 5), (5, 7)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_classes_that_both_have_are_compared(direction: Direction, sizes: tuple[int, int]) -> None:
    logits, ref_logits = logits_of(4, sizes[0]).requires_grad_(), logits_of(4, sizes[1], seed=1)
    found = kl_divergence(logits, ref_logits, direction=direction)
    torch.testing.assert_close(found, plain(logits[:, :5], ref_logits[:, :5], 1.0, direction))
    found.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[:, 5:].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_predictions_are_at_no_distance(direction: Direction) -> None:
    logits = logits_of(3, 9).requires_grad_()
    found = kl_divergence(logits, logits + 5, direction=direction)  # a softmax does not see the 5
    torch.testing.assert_close(found, torch.zeros(3), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(3, 9), rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_classes_that_both_rule_out_do_not_count(direction: Direction) -> None:
    logits, ref_logits = logits_of(2, 4), logits_of(2, 4, seed=1)
    expected = plain(logits[:, :3], ref_logits[:, :3], 1.0, direction)
    logits[:, 3] = ref_logits[:, 3] = -torch.inf
    found = kl_divergence(logits.requires_grad_(), ref_logits, direction=direction)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_rows_of_both_must_agree() -> None:
    with pytest.raises(ValueError, match=r"as many rows as `logits`, \(3,\), got \(4,\)"):
        kl_divergence(logits_of(3, 5), logits_of(4, 5))


class Sizes(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that is made of each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_flatten((args, kwargs))[0] if is_tensor(tensor)}
        for tensor in tree_flatten(made)[0]:
            if is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in given:
                size = max(self.largest.get(tensor.dtype, 0), tensor.untyped_storage().nbytes())
                self.largest[tensor.dtype] = size
        return made


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nothing_as_large_as_the_logits_is_made_but_their_gradient(direction: Direction, shifted: bool) -> None:
    logits, ref_logits = (logits_of(2, 32, 20_000, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    rows = torch.arange(64)[: 64 - shifted]
    with Sizes() as sizes:
        found = kl_divergence(
            logits.requires_grad_(), ref_logits, rows=rows, direction=direction, chunk_size=4 * 20_000
        )
        assert sizes.largest[torch.bfloat16] == 4 * 20_000 * 2
        found.sum().backward()
    assert sizes.largest[torch.bfloat16] == logits.untyped_storage().nbytes()  # the gradient
    assert sizes.largest[torch.float32] == 4 * 20_000 * 4
