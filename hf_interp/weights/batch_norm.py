"""Batch norm statistics of an interpolated model, measured anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> str:
    """Measure the statistics of a model's batch norms anew, as plain means over batches; returns what was done.

    Interpolated statistics are not those of the interpolated weights (REPAIR, Jordan et al. 2023, arXiv 2211.08403).

    Args:
        model: left in the modes it was in.
        batches: mappings of the model's inputs, or what it takes as its one input; moved to the model's device.
    """
    batches, norms = check_batches(model, batches), _batch_norms(model)
    device = next(model.parameters()).device
    with _measuring(model, norms), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
        for batch in batches:
            if isinstance(batch, Mapping):
                model(**{key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)})
            else:
                model(batch.to(device))
    return f"statistics of {len(norms)} batch norms measured on {len(batches)} batches"


def check_batches(model: nn.Module, batches: Iterable[Any]) -> list[Any]:
    """Batches, so that they can be read again; an error if there are none, or no batch norms."""
    if not _batch_norms(model):
        raise ValueError("`recalibrate` needs a model with batch norms, got one without. Leave it out.")
    found = list(batches)
    if not found:
        raise ValueError("`recalibrate` must hold at least one batch, got none.")
    return found


def _batch_norms(model: nn.Module) -> list[Any]:
    """Batch norms that keep statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.track_running_stats]


@contextmanager
def _measuring(model: nn.Module, norms: Sequence[Any]) -> Iterator[None]:
    """Put a model into evaluation mode but for its batch norms, which take plain means over batches, and back."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.training, norm.momentum = True, None
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
