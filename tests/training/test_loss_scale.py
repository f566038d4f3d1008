"""The scale of a loss by itself: what counts in a micro-batch, and its part of the global batch's loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_interp.training.loss_scale import count_batch, mean_over_examples, part_of_batch

LABELS = torch.tensor([[0, 1, -100], [1, -100, -100]])
PIXELS = torch.tensor([[[0, 255], [1, -100]]])
IGNORING = SimpleNamespace(semantic_loss_ignore_index=255)


@pytest.mark.parametrize(
    ("inputs", "shifts", "expected"),
    [
        ({"labels": LABELS}, False, [3, 2]),
        ({"labels": LABELS}, True, [1, 2]),
        ({"labels": LABELS, "shift_labels": LABELS}, True, [3, 2]),
        ({"labels": torch.tensor([0, -100, 1])}, False, [2, 3]),
        ({"labels": torch.tensor([0.5, -100.0])}, False, [2, 2]),
        ({"labels": torch.zeros(3, 4)}, False, [3, 3]),
        ({"labels": PIXELS}, False, [2, 1]),
        ({"labels": [{"boxes": []}]}, False, None),
        ({"start_positions": LABELS}, False, None),
    ],
)
def test_labels_and_examples_are_counted(inputs: Any, shifts: bool, expected: list[int] | None) -> None:
    found = count_batch(inputs, shift_labels=shifts, config=IGNORING)
    assert (None if found is None else found.tolist()) == expected


def test_a_part_is_the_share_of_the_labels_and_of_the_examples() -> None:
    totals, counts, added = torch.tensor([12, 8]), torch.tensor([3, 4]), torch.tensor(0.5)
    assert part_of_batch(torch.tensor(2.0), counts, totals).item() == 0.5
    assert part_of_batch(torch.tensor(2.0), counts, totals, added).item() == 1.5 * 0.25 + 0.5 * 0.5
    nothing, no_labels = torch.tensor(float("nan")), torch.tensor([0, 4])
    assert part_of_batch(nothing, no_labels, totals, added).item() == 0.25
    assert part_of_batch(nothing, no_labels, torch.tensor([0, 8])).item() == 0.0


def test_what_is_a_mean_over_examples_is_found() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(router_aux_loss_coef=0.25, router_z_loss_coef=0.5))
    assert mean_over_examples({}, {"logits": LABELS}, model) is None
    assert mean_over_examples({}, (1, 2), model) is None
    found = mean_over_examples({}, {"encoder_aux_loss": torch.tensor(2.0), "decoder_z_loss": torch.tensor(3.0)}, model)
    assert found is not None
    assert found.item() == 2.0
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1])
    inputs, outputs = {"sentence_order_label": labels}, {"sop_logits": logits, "aux_loss": torch.tensor(4.0)}
    found = mean_over_examples(inputs, outputs, model)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels) + 1.0)
