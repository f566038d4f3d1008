"""The loss of each example against torch's own losses of one example at a time."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_interp.losses.per_example import per_example_loss


def logits_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def losses(logits: Any, labels: torch.Tensor, shift_labels: bool = False) -> torch.Tensor | None:
    return per_example_loss(SimpleNamespace(logits=logits), labels, shift_labels=shift_labels)


@pytest.mark.parametrize("shift_labels", [False, True])
def test_classification(shift_labels: bool) -> None:
    logits, labels = logits_of(5, 3), torch.tensor([0, 2, 1, 1, 0])
    found = losses(logits, labels, shift_labels)
    expected = torch.stack([functional.cross_entropy(logits[row], labels[row]) for row in range(5)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(expected.mean(), functional.cross_entropy(logits, labels))


def test_an_example_without_a_label_costs_nothing() -> None:
    found = losses(logits_of(3, 4), torch.tensor([1, -100, 3]))
    assert found is not None
    assert found[1] == 0
    assert (found[[0, 2]] > 0).all()


def test_token_classification_takes_the_mean_over_labelled_tokens() -> None:
    logits = logits_of(4, 6, 3)
    labels = torch.tensor(
        [[0, 1, 2, 1, 0, 2], [-100, 1, 2, -100, 0, -100], [-100] * 5 + [2], [1, -100, -100, -100, -100, -100]]
    )
    found = losses(logits, labels)
    expected = torch.stack([functional.cross_entropy(logits[row], labels[row]) for row in range(4)])
    torch.testing.assert_close(found, expected)


def test_a_causal_model_is_judged_by_the_next_token() -> None:
    logits = logits_of(3, 5, 7)
    labels = torch.tensor([[1, 2, 3, 4, 5], [-100, -100, 6, 0, -100], [6, -100, -100, -100, 1]])
    found = losses(logits, labels, shift_labels=True)
    expected = torch.stack([functional.cross_entropy(logits[row, :-1], labels[row, 1:]) for row in range(3)])
    torch.testing.assert_close(found, expected)
    first_replaced = torch.cat([torch.full((3, 1), 5), labels[:, 1:]], dim=1)
    torch.testing.assert_close(losses(logits, first_replaced, shift_labels=True), found)


def test_a_sequence_without_labels_costs_nothing() -> None:
    labels = torch.tensor([[-100, -100, -100], [2, -100, -100], [-100, -100, 2]])
    plain, shifted = losses(logits_of(3, 3, 4), labels), losses(logits_of(3, 3, 4), labels, shift_labels=True)
    assert plain is not None
    assert shifted is not None
    assert (plain == 0).tolist() == [True, False, False]
    assert (shifted == 0).tolist() == [True, True, False]  # nothing predicts the first token


def test_several_labels_at_once_take_the_mean_over_classes() -> None:
    logits, labels = logits_of(3, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    found = losses(logits, labels)
    expected = [functional.binary_cross_entropy_with_logits(logits[row], labels[row]) for row in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("logits_shape", [(4, 1), (4,)])
@pytest.mark.parametrize("labels_shape", [(4,), (4, 1)])
def test_regression(logits_shape: tuple[int, ...], labels_shape: tuple[int, ...]) -> None:
    logits, labels = logits_of(*logits_shape), torch.tensor([0.5, -1.0, 2.0, 0.0]).reshape(labels_shape)
    expected = [functional.mse_loss(logits.reshape(-1)[row], labels.reshape(-1)[row]) for row in range(4)]
    torch.testing.assert_close(losses(logits, labels), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_are_float32_and_apart_from_the_graph(dtype: torch.dtype) -> None:
    logits = logits_of(4, 3).to(dtype).requires_grad_()
    for labels in (torch.tensor([0, 1, 2, 0]), torch.ones(4, 3, dtype=dtype)):
        found = losses(logits, labels)
        assert found is not None
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_outputs_may_be_a_mapping() -> None:
    logits, labels = logits_of(2, 3), torch.tensor([0, 2])
    expected = losses(logits, labels)
    for outputs in ({"loss": None, "logits": logits}, SequenceClassifierOutput(logits=logits)):
        torch.testing.assert_close(per_example_loss(outputs, labels, shift_labels=False), expected)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (logits_of(2, 3), torch.zeros(2, 3, dtype=torch.long)),
        (logits_of(2, 3), torch.zeros(3, dtype=torch.long)),
        (logits_of(2, 7, 3), torch.zeros(2, 5, dtype=torch.long)),  # a prompt was put before the tokens
        (logits_of(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)),
        (logits_of(2, 3, 4, 4), torch.zeros(2, 3, 4, dtype=torch.long)),
        (logits_of(4), torch.zeros(4, dtype=torch.long)),
        (logits_of(2, 3), torch.zeros(2)),
        (logits_of(2, 3, 1), torch.zeros(2, 3)),
        (logits_of(2, 3), torch.zeros(3, 2)),
        (None, torch.zeros(2)),
        ((logits_of(2, 3), logits_of(2, 3)), torch.zeros(2, dtype=torch.long)),
    ],
)
def test_other_shapes_have_no_loss_of_their_own(logits: Any, labels: torch.Tensor) -> None:
    assert losses(logits, labels) is None


@pytest.mark.parametrize("outputs", [{}, {"loss": 1.0}, SimpleNamespace(), (logits_of(2, 3),), None])
def test_outputs_without_logits_have_no_loss_of_their_own(outputs: Any) -> None:
    assert per_example_loss(outputs, torch.tensor([0, 2]), shift_labels=False) is None
