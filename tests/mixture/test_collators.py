"""Collators: masks that belong to an example, and batches that are sorted by what they train."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from toys import number_tokenizer
from transformers import PreTrainedTokenizerFast, default_data_collator

from hf_interp.mixture.collators import MaskingCollator, ObjectiveCollator, collate, may_draw_numbers

ROWS = [
    {"input_ids": list(range(10 + row, 30 + row - row % 3)), "attention_mask": [1] * (20 - row % 3)} for row in range(6)
]


def masks(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """Labels of every example, without padding at the end."""
    return [
        [label for label, use in zip(row, keep, strict=True) if use]
        for row, keep in zip(batch["labels"].tolist(), batch["attention_mask"].tolist(), strict=True)
    ]


def test_masks_belong_to_the_slot_and_the_seed() -> None:
    collator = MaskingCollator(number_tokenizer(), 0.3)
    whole = masks(collator.collate(ROWS, range(6), 7))
    halves = masks(collator.collate(ROWS[:2], range(2), 7)) + masks(collator.collate(ROWS[2:], range(2, 6), 7))
    assert whole == halves
    backwards = masks(collator.collate(ROWS[::-1], range(5, -1, -1), 7))
    assert backwards == whole[::-1]
    assert masks(collator.collate(ROWS, range(6, 12), 7)) != whole
    assert masks(collator.collate(ROWS, range(6), 8)) != whole


def test_inputs_are_masked_where_there_are_labels() -> None:
    batch = MaskingCollator(number_tokenizer(), 0.5).collate(ROWS * 50, range(300), 0)
    ids, labels, use = batch["input_ids"], batch["labels"], batch["attention_mask"].bool()
    original = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in ROWS * 50], batch_first=True)
    chosen = labels != -100
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(ids[~chosen], original[~chosen])
    assert not chosen[~use].any()
    assert 0.47 < (chosen[use].float().mean()) < 0.53
    shares = [(ids[chosen] == 1999).float().mean(), (ids[chosen] == original[chosen]).float().mean()]
    assert shares == [pytest.approx(0.8, abs=0.03), pytest.approx(0.1, abs=0.03)]


def test_special_tokens_are_never_masked() -> None:
    rows = [{"input_ids": [5, 6, 7], "special_tokens_mask": [1, 0, 1]}] * 100
    labels = MaskingCollator(number_tokenizer(), 0.9).collate(rows, range(100), 0)["labels"]
    assert (labels[:, [0, 2]] == -100).all()
    assert (labels[:, 1] == 6).float().mean() > 0.8
    told = MaskingCollator(number_tokenizer(), 0.9).collate([{"input_ids": [0, 6]}] * 100, range(100), 0)["labels"]
    assert (told[:, 0] == -100).all()  # 0 pads


def test_evaluation_masks_an_example_the_same_way_each_time() -> None:
    collator = MaskingCollator(number_tokenizer(), 0.3)
    whole = masks(collator(ROWS))
    assert whole == masks(collator(ROWS))
    assert whole == masks(collator(ROWS[:4])) + masks(collator(ROWS[4:]))
    assert masks(MaskingCollator(number_tokenizer(), 0.3)([ROWS[0], ROWS[0]]))[0] == whole[0]


def test_labels_that_are_there_already_are_replaced() -> None:
    collator = MaskingCollator(number_tokenizer(), 0.3)
    rows = [{**row, "labels": [0] * len(row["input_ids"])} for row in ROWS]
    assert masks(collator.collate(rows, range(6), 7)) == masks(collator.collate(ROWS, range(6), 7))


def test_whole_words_are_masked_whole() -> None:
    # Words of two tokens: the second begins where the first ends.
    row = {
        "input_ids": [*range(10, 30)],
        "special_tokens_mask": [0] * 20,
        "offset_mapping": [[begin, begin + 2] for word in range(10) for begin in (5 * word, 5 * word + 2)],
    }
    collator = MaskingCollator(number_tokenizer(), 0.5, whole_word_mask=True)
    assert collator.columns == ("special_tokens_mask", "offset_mapping")
    batch = collator.collate([row] * 20, range(20), 0)
    chosen = (batch["labels"] != -100).reshape(20, 10, 2)
    assert torch.equal(chosen[..., 0], chosen[..., 1])
    assert 0.3 < chosen.float().mean() < 0.7
    assert (batch["input_ids"][batch["labels"] != -100] == 1999).all()
    assert set(batch) == {"input_ids", "labels", "attention_mask"} or set(batch) == {"input_ids", "labels"}


def test_a_share_of_the_tokens_is_masked_by_a_tokenizer_with_a_mask() -> None:
    for share in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"`mlm_probability` must lie in \(0, 1\], got {share}"):
            MaskingCollator(number_tokenizer(), share)
    MaskingCollator(number_tokenizer(), 1.0)
    bare = PreTrainedTokenizerFast(tokenizer_object=number_tokenizer().backend_tokenizer, pad_token="0")
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token"):
        MaskingCollator(bare)


def test_a_batch_is_sorted_by_objectives() -> None:
    labelled = [{"input_ids": [3, 4], "labels": number} for number in range(3)]
    collator = ObjectiveCollator(
        {"": default_data_collator, "mlm": MaskingCollator(number_tokenizer(), 0.3)}, ["mlm", "", ""]
    )
    examples = [labelled[0], ROWS[0], labelled[1], ROWS[1], labelled[2]]
    found = collator.collate(examples, range(40, 45), 7, [1, 0, 2, 0, 1])["objectives"]
    assert list(found) == ["", "mlm"]
    assert found[""]["labels"].tolist() == [0, 1, 2]
    expected = MaskingCollator(number_tokenizer(), 0.3).collate(ROWS[:2], [41, 43], 7)
    assert torch.equal(found["mlm"]["labels"], expected["labels"])
    alone = collator.collate(examples[:1], [40], 7, [1])["objectives"]
    assert list(alone) == [""]


def test_other_collators_draw_from_the_first_slot() -> None:
    def noisy(examples: list[Any]) -> dict[str, Any]:
        return {"drawn": (random.random(), np.random.rand(), torch.rand(()).item())}

    assert may_draw_numbers(noisy)
    assert not may_draw_numbers(default_data_collator)
    before = torch.get_rng_state()
    first = collate(noisy, [0, 1], range(8, 10), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert collate(noisy, [5], [8], 3) == first
    assert collate(noisy, [0, 1], range(9, 11), 3) != first
    assert collate(noisy, [0, 1], range(8, 10), 4) != first


def test_packed_examples_need_no_attention_mask() -> None:
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    collator = MaskingCollator(number_tokenizer(), 0.3)
    for found, expected in (
        (collator.collate(rows, range(6), 7), collator.collate(ROWS, range(6), 7)),
        (collator(rows), collator(ROWS)),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_evaluation_masks_arrays_of_any_width_alike() -> None:
    collator = MaskingCollator(number_tokenizer(), 0.3)
    narrow = [{"input_ids": np.asarray(row["input_ids"], dtype=np.int32)} for row in ROWS]
    tensors = [{"input_ids": torch.tensor(row["input_ids"])} for row in ROWS]
    assert masks(collator(narrow)) == masks(collator(tensors)) == masks(collator(ROWS))


def test_masking_leaves_the_generators_alone() -> None:
    states = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())
    MaskingCollator(number_tokenizer(), 0.3).collate(ROWS, range(6), 7)
    MaskingCollator(number_tokenizer(), 0.3)(ROWS)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_text_has_one_mask_at_least(whole_words: bool) -> None:
    collator = MaskingCollator(number_tokenizer(), 1e-9, whole_word_mask=whole_words)
    example: dict[str, Any] = {"input_ids": [1, 10, 11, 12, 1], "special_tokens_mask": [1, 0, 0, 0, 1]}
    if whole_words:
        example["offset_mapping"] = [[0, 0], [0, 2], [2, 4], [5, 7], [0, 0]]
    found = set()
    for number in range(200):
        batch = collator.collate([example], [number], 7)
        places = tuple(batch["labels"][0].ne(-100).nonzero().flatten().tolist())
        assert batch["labels"][0, list(places)].tolist() == [example["input_ids"][place] for place in places]
        found.add(places)
    assert found == ({(1, 2), (3,)} if whole_words else {(1,), (2,), (3,)})
    nothing = {**example, "special_tokens_mask": [1] * 5}
    assert collator.collate([nothing], [0], 7)["labels"].eq(-100).all()
