"""Types that several packages share."""

from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Adds up a tensor over all processes."""
