"""The scale of a loss by itself: what heads return, and what it is made of."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_interp.training.loss_scale import LossScale

LABELS = torch.tensor([[0, 1, -100], [1, -100, -100]])
LOGITS = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 9.0]]])


def mean() -> torch.Tensor:
    return cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten())


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.tensor([0.5, 1.5]), torch.tensor([[0.0, 1.0]])])
def test_one_label_an_example_is_a_mean_that_is_not_scaled(labels: torch.Tensor) -> None:
    scale = LossScale(is_scaled=True)
    assert scale.settle(labels, 8, has_loss_function=False) is None
    assert scale.is_scaled is False
    assert scale.settle(LABELS, 8, has_loss_function=False) == 8
    assert scale.is_scaled is True  # the next batch of another kind is not taken for it


def test_a_function_of_ones_own_divides_by_the_items() -> None:
    scale = LossScale(is_scaled=True)
    assert scale.settle(torch.tensor([0, 1]), 8, has_loss_function=True) == 8
    assert scale.is_scaled is True


def test_a_batch_without_labels_is_left_alone() -> None:
    scale = LossScale(is_scaled=None)
    assert scale.settle(None, 8, has_loss_function=False) == 8
    assert scale.is_scaled is None
    assert scale.share_of_batch(torch.tensor(2.0), {}, None, 8).item() == 2.0


@pytest.mark.parametrize("factor", [1, 2])
def test_a_head_that_takes_the_mean_gets_its_share(factor: int) -> None:
    scale = LossScale(is_scaled=True)
    found = scale.share_of_batch(factor * mean(), {"logits": LOGITS}, LABELS, 12, factor=factor)
    assert scale.takes_mean is True
    torch.testing.assert_close(found, factor * mean() * 3 / 12)


def test_a_head_that_divides_by_the_items_is_left_alone() -> None:
    scale = LossScale(is_scaled=True)
    loss = mean() * 3 / 12
    assert scale.share_of_batch(loss, {"logits": LOGITS}, LABELS, 12) is loss
    assert scale.takes_mean is False


def test_a_batch_with_all_labels_tells_nothing() -> None:
    scale = LossScale(is_scaled=True)
    assert scale.share_of_batch(mean(), {"logits": LOGITS}, LABELS, 3).item() == mean().item()
    assert scale.takes_mean is None
    scale.share_of_batch(mean(), {"logits": LOGITS}, LABELS, 12)
    assert scale.takes_mean is True
