"""The Kullback-Leibler divergence between two models' predictions, in little memory."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

Direction = Literal["forward", "reverse"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


def kl_divergence(
    logits: torch.Tensor,
    ref_logits: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    temperature: float = 1.0,
    direction: Direction = "forward",
    chunk_size: int = 1 << 24,
) -> torch.Tensor:
    """Return KL between softmax(ref_logits / T) = p₀ and softmax(logits / T) = p, row by row.

    forward: KL(p₀‖p) = Σ p₀·(log p₀ − log p), with the gradient (p − p₀) / T.
    reverse: KL(p‖p₀) = Σ p·(log p − log p₀), with the gradient p·(log p − log p₀ − KL) / T.

    Rows are worked on a few at a time, in float32 (float64 for float64), forwards and again backwards, so that beside
    the gradient, which has the dtype of the logits, nothing as large as the logits is ever made.

    Args:
        logits: shape (..., classes); the gradient goes to them.
        ref_logits: the same shape. If one has more classes, the first ones that both have are compared, renormalised.
        rows: indices into the flattened leading dimensions, each at most once; the rows to compare. Default: all.
        temperature: T.
        direction: which of the two is the reference of the divergence.
        chunk_size: numbers worked on at a time; at least one row is.

    Returns:
        one number for each row.

    >>> kl_divergence(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
    tensor([0.1109, 0.0000])
    """
    if logits.shape[:-1] != ref_logits.shape[:-1]:
        raise ValueError(
            f"`ref_logits` must have as many rows as `logits`, {tuple(logits.shape[:-1])}, got "
            f"{tuple(ref_logits.shape[:-1])}."
        )
    flat, flat_ref = logits.flatten(0, -2), ref_logits.detach().flatten(0, -2)
    if rows is None:
        rows = torch.arange(len(flat), device=flat.device)
    found: torch.Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        flat, flat_ref, rows, temperature, direction, chunk_size
    )
    return found


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        ref_logits: torch.Tensor,
        rows: torch.Tensor,
        temperature: float,
        direction: Direction,
        chunk_size: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(logits, ref_logits, rows)
        ctx.settings = temperature, direction, chunk_size
        pairs = _log_probabilities(logits, ref_logits, rows, temperature, chunk_size)
        found = [_sum(log_p0, log_p) if direction == "forward" else _sum(log_p, log_p0) for _, log_p, log_p0 in pairs]
        return torch.cat(found) if found else logits.new_zeros(0, dtype=_number(logits))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        logits, ref_logits, rows = ctx.saved_tensors
        temperature, direction, chunk_size = ctx.settings
        gradient, done = torch.zeros_like(logits), 0
        for chunk, log_p, log_p0 in _log_probabilities(logits, ref_logits, rows, temperature, chunk_size):
            scale = grads[0][done : done + len(chunk), None] / temperature
            done += len(chunk)
            p = log_p.exp()
            if direction == "forward":
                found = p - log_p0.exp()
            else:
                terms = (log_p - log_p0).masked_fill_(p == 0, 0)
                found = p * (terms - (p * terms).sum(-1, keepdim=True))
            gradient[chunk, : log_p.shape[1]] = (found * scale).to(gradient.dtype)
        return gradient, None, None, None, None, None


def _log_probabilities(
    logits: torch.Tensor, ref_logits: torch.Tensor, rows: torch.Tensor, temperature: float, chunk_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Give a few rows at a time, with the logarithms of p and p₀."""
    classes = min(logits.shape[1], ref_logits.shape[1])
    for chunk in torch.split(rows, max(1, chunk_size // max(1, classes))):
        if len(chunk):
            log_p, log_p0 = (
                (part[chunk, :classes].to(_number(logits)) / temperature).log_softmax(-1)
                for part in (logits, ref_logits)
            )
            yield chunk, log_p, log_p0


def _sum(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    """Return Σ a·(log a − log b); a class that `a` rules out adds nothing, whatever `b` makes of it."""
    a = log_a.exp()
    return (a * (log_a - log_b)).masked_fill_(a == 0, 0).sum(-1)


def _number(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
