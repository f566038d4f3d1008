"""Lengths in tokens, and packing."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_interp.mixture.packing import best_fit, mean_tokens, pack


def rows(ids: list[list[int]], **columns: Any) -> datasets.Dataset:
    features = None if columns else datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))})
    return datasets.Dataset.from_dict({"input_ids": ids, **columns}, features=features)


def ids_of(dataset: Any) -> list[list[int]]:
    return [list(row["input_ids"]) for row in dataset]


# Lengths.


@pytest.mark.parametrize(
    ("lengths", "expected"), [([3], 3.0), ([1, 2], 1.5), ([0, 4], 2.0), ([5, 0, 0, 0], 1.25), ([1, 1, 2], 4 / 3)]
)
def test_the_mean_length_is_exact(lengths: list[int], expected: float) -> None:
    ids = [list(range(length)) for length in lengths]
    assert mean_tokens(rows(ids)) == expected
    assert mean_tokens([{"input_ids": row} for row in ids]) == expected
    assert mean_tokens([{"input_ids": torch.zeros(len(row))} for row in ids]) == expected
    assert mean_tokens([{"input_ids": np.zeros(len(row))} for row in ids]) == expected


def test_the_mean_length_of_many_rows_counts_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_interp.mixture.packing.ROWS", 7)
    dataset = rows([[0] * (number % 5) for number in range(23)])
    assert mean_tokens(dataset) == sum(number % 5 for number in range(23)) / 23


@pytest.mark.parametrize("form", ["numpy", "torch", "arrow", "pandas"])
def test_formats_leave_the_length_and_packing_alone(form: str) -> None:
    dataset = rows([[1, 2, 3], [4], [5, 6]], text=["a", "b", "c"])
    if form != "pandas" or pytest.importorskip("pandas"):
        assert mean_tokens(dataset.with_format(form)) == 2.0
        assert list(pack(dataset.with_format(form), 2)) == [{"input_ids": ids} for ids in ([1, 2], [3, 4], [5, 6])]
    assert mean_tokens(dataset.with_format(columns=["text"])) == 2.0
    assert mean_tokens(dataset.with_transform(lambda batch: {"x": batch["text"]})) == 2.0


def test_the_length_is_that_of_the_rows_selected() -> None:
    dataset = rows([[1, 2, 3], [4], [5, 6]])
    assert mean_tokens(dataset.select([1])) == 1.0
    assert mean_tokens(dataset.select([0, 0, 1, 1])) == 2.0
    assert mean_tokens(dataset.shuffle(seed=0)) == 2.0


def test_long_sequences_of_other_kinds_are_sampled_evenly() -> None:
    class Long:
        asked: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            self.asked.append(index)
            return {"input_ids": [0] * (2 if index < 5000 else 4)}

    assert mean_tokens(Long()) == 3.0
    assert Long.asked == list(range(0, 10_000, 10))


@pytest.mark.parametrize(
    "dataset",
    [
        range(5),
        [],
        [{"text": "a"}],
        [{"input_ids": [1]}, {"text": "a"}],
        ["input_ids"],
        rows([]),
        datasets.Dataset.from_dict({"text": ["a"]}),
        rows([[1, 2]]).to_iterable_dataset(),
        iter([{"input_ids": [1]}]),
    ],
)
def test_without_token_ids_or_a_length_there_is_none(dataset: Any) -> None:
    assert mean_tokens(dataset) is None


# Packing.

IDS = [[1, 2, 3], [4], [5, 6], [], [7, 8, 9, 10, 11]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("length", "separator", "expected"),
    [
        (1, None, [[number] for number in range(1, 12)]),
        (2, None, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]),
        (4, None, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        (11, None, [list(range(1, 12))]),
        (12, None, []),
        (4, 0, [[1, 2, 3, 0], [4, 0, 5, 6], [0, 0, 7, 8], [9, 10, 11, 0]]),
        (5, 0, [[1, 2, 3, 0, 4], [0, 5, 6, 0, 0], [7, 8, 9, 10, 11]]),
        (16, 0, [[1, 2, 3, 0, 4, 0, 5, 6, 0, 0, 7, 8, 9, 10, 11, 0]]),
        (17, 0, []),
    ],
)
def test_sequences_are_joined_and_cut(
    length: int, separator: int | None, expected: list[list[int]], streaming: bool
) -> None:
    dataset = rows(IDS)
    packed = pack(dataset.to_iterable_dataset() if streaming else dataset, length, separator=separator)
    assert isinstance(packed, datasets.IterableDataset if streaming else datasets.Dataset)
    assert ids_of(packed) == expected


def test_a_group_of_rows_leaves_its_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_interp.mixture.packing.ROWS", 2)
    expected = [[1, 2, 3], [7, 8, 9]]  # of 4, 2 and 5 tokens
    assert ids_of(pack(rows(IDS), 3)) == expected
    assert ids_of(pack(rows(IDS).to_iterable_dataset(), 3)) == expected


def test_ten_thousand_rows_are_a_group() -> None:
    dataset = rows([[number] for number in range(10_003)])
    assert ids_of(pack(dataset, 3333)) == [list(range(begin, begin + 3333)) for begin in (0, 3333, 6666)]
    assert ids_of(pack(dataset, 3)) == [list(range(n, n + 3)) for n in [*range(0, 9997, 3), 10_000]]


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_go_along_are_packed_alike_and_others_dropped(streaming: bool) -> None:
    dataset = rows(
        [[1, 2, 3], [4], [5, 6]],
        labels=[[-100, 2, 3], [4], [-100, 6]],
        attention_mask=[[1, 1, 1], [1], [1, 0]],
        label=[0, 1, 0],
        text=["abc", "d", "ef"],
        words=[[0], [0], [0]],
    )
    packed = list(pack(dataset.to_iterable_dataset() if streaming else dataset, 3))
    assert packed == [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
        {"input_ids": [4, 5, 6], "labels": [4, -100, 6], "attention_mask": [1, 1, 0]},
    ]


def test_separators_stand_in_all_columns() -> None:
    dataset = rows([[1, 2], [3]], labels=[[-100, 2], [3]], attention_mask=[[1, 0], [1]])
    assert list(pack(dataset, 5, separator=9)) == [
        {"input_ids": [1, 2, 9, 3, 9], "labels": [-100, 2, 9, 3, 9], "attention_mask": [1, 0, 1, 1, 1]}
    ]


def test_a_separator_is_not_known_for_other_columns() -> None:
    dataset = rows([[1, 2]], token_type_ids=[[0, 0]])
    assert ids_of(pack(dataset, 2)) == [[1, 2]]
    with pytest.raises(ValueError, match="`separator` is not known to go with the column 'token_type_ids'"):
        pack(dataset, 2, separator=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_packed(streaming: bool) -> None:
    for length in (0, -1):
        with pytest.raises(ValueError, match=f"`length` must be at least 1, got {length}"):
            pack(rows(IDS), length)
    dataset = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    with pytest.raises(ValueError, match=r"needs a column 'input_ids', got \['text', 'label'\]\. Tokenise the corpus"):
        pack(dataset.to_iterable_dataset() if streaming else dataset, 4)


def test_a_stream_that_does_not_know_its_columns_shows_them() -> None:
    stream = rows(IDS).to_iterable_dataset().map(lambda row: row)
    assert stream.column_names is None
    assert ids_of(pack(stream, 4)) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_all_examples_of_a_packed_corpus_are_equally_long() -> None:
    rng = np.random.default_rng(0)
    dataset = rows([list(range(rng.integers(0, 30))) for _ in range(100)])
    packed = pack(dataset, 16)
    assert {len(ids) for ids in ids_of(packed)} == {16}
    assert mean_tokens(packed) == 16.0
    joined = [token for ids in ids_of(dataset) for token in ids]
    assert [token for ids in ids_of(packed) for token in ids] == joined[: len(joined) // 16 * 16]


# Packing whole sequences.


def test_the_largest_goes_first_into_the_fullest_bin_with_room() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        sizes, room = rng.integers(1, 13, 40).tolist(), 12
        bins: list[list[int]] = []
        for item in np.argsort(-np.array(sizes), kind="stable").tolist():
            fitting = [each for each in bins if sum(sizes[i] for i in each) + sizes[item] <= room]
            if not fitting:
                bins.append(fitting := [])
                fitting = [fitting]
            fullest = max(sum(sizes[i] for i in each) for each in fitting)
            next(each for each in fitting if sum(sizes[i] for i in each) == fullest).append(item)
        found = best_fit(sizes, room)
        assert sorted(item for each in found for item in each) == list(range(40))
        assert sorted(sum(sizes[i] for i in each) for each in found) == sorted(sum(sizes[i] for i in b) for b in bins)


@pytest.mark.parametrize("streaming", [False, True])
def test_sequences_stay_whole_and_apart(streaming: bool) -> None:
    rng = np.random.default_rng(0)
    texts = [[100 * row + place for place in range(rng.integers(0, 30))] for row in range(200)]
    dataset = rows(texts, labels=[[-token for token in text] for text in texts], attention_mask=texts, text=["a"] * 200)
    found = list(pack(dataset.to_iterable_dataset() if streaming else dataset, 16, strategy="bfd"))
    seen = []
    for row in found:
        assert set(row) == {"input_ids", "labels", "position_ids"}
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= 16
        starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        for begin, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            seen.append(row["input_ids"][begin:end])
            assert row["position_ids"][begin:end] == list(range(end - begin))
            assert row["labels"][begin:end] == [-100, *(-token for token in seen[-1][1:])]
    pieces = [text[begin : begin + 16] for text in texts for begin in (0, 16)]
    assert sorted(seen) == sorted(piece for piece in pieces if len(piece) > 1)
    assert sum(map(len, seen)) > 0.97 * 16 * len(found)


def test_groups_of_rows_are_packed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_interp.mixture.packing.ROWS", 2)
    found = pack(rows([[1, 2], [3, 4, 5], [6, 7], [8, 9, 10]]), 5, strategy="bfd")
    assert ids_of(found) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert found["labels"][:] == [[-100, 2, -100, 4, 5], [-100, 7, -100, 9, 10]]
    with pytest.raises(ValueError, match="`strategy` must be one of wrapped, bfd, got 'ffd'"):
        pack(rows(IDS), 4, strategy="ffd")  # type: ignore[arg-type]
