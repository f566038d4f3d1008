"""Readers against plain indexing and plain iteration."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_interp.corpora import Corpus
from hf_interp.readers import ArrowReader, MapReader, StreamReader, open_reader, reads_plainly


class Numbers(torch.utils.data.IterableDataset[int]):
    """Counts up, and notes how often it has been begun and how far it has been read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = 0
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        for number in range(self.count):
            self.given += 1
            yield number


def stream(count: int, max_passes: float | None = None) -> StreamReader:
    return StreamReader(Corpus("law", Numbers(count), max_passes=max_passes))


# By index.


@pytest.mark.parametrize(
    ("columns", "fast"),
    [
        ({"ids": [[1, 2], [3, 4], [5, 6]], "label": [0, 1, 0]}, True),
        ({"ids": [[1], [], [2, 3, 4]], "text": ["a", "", "ä"], "score": [0.5, 1.5, -2.0]}, True),
        ({"ids": [[], [], []]}, False),
        ({"ids": [[1], None, [2]], "label": [0, None, 2], "text": [None, "b", "c"]}, True),
        ({"ids": [[1, None], [2, 3], [4, 5]]}, True),
        ({"flag": [True, False, True]}, False),
        ({"nested": [[[1], [2]], [[3]], []]}, False),
        ({"record": [{"a": 1}, {"a": 2}, {"a": 3}]}, False),
    ],
)
def test_rows_are_those_of_the_dataset(columns: dict[str, Any], fast: bool) -> None:
    dataset = datasets.Dataset.from_dict(columns)
    assert isinstance(open_reader(dataset), ArrowReader if fast else MapReader)
    for indices in ([0, 1, 2], [2, 0, 0], [1]):
        expected = [dataset[index] for index in indices]
        found = open_reader(dataset).read(np.array(indices))
        assert found == expected
        assert [list(map(type, row.values())) for row in found] == [list(map(type, row.values())) for row in expected]


def test_a_large_corpus_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = datasets.Dataset.from_dict(
        {"ids": [[n, n + 1] for n in range(100)], "text": [str(n) for n in range(100)]}
    )
    indices = np.array([99, 0, 42, 42])
    assert ArrowReader(dataset).held is not None
    monkeypatch.setattr("hf_interp.readers.HELD_IN_MEMORY", 100)
    assert ArrowReader(dataset).held is None
    assert ArrowReader(dataset).read(indices) == [dataset[index] for index in indices.tolist()]
    assert ArrowReader(dataset.select([7])).held is not None  # little is left of it


def test_rows_of_a_selection_are_those_of_the_selection() -> None:
    whole = datasets.Dataset.from_dict({"ids": [[number] * (number % 3) for number in range(50)]})
    for dataset in (whole.select([7, 3, 3, 11]), whole.shuffle(seed=1), datasets.concatenate_datasets([whole, whole])):
        reader = open_reader(dataset)
        assert isinstance(reader, ArrowReader)
        indices = np.array([3, 0, 2, 1])
        assert reader.read(indices) == [dataset[int(index)] for index in indices]


def test_formats_and_transforms_are_left_to_the_dataset() -> None:
    dataset = datasets.Dataset.from_dict({"a": [1, 2], "b": [3, 4]})
    doubled = dataset.with_transform(lambda rows: {"a": [2 * value for value in rows["a"]]})
    chosen = dataset.with_format(columns=["a"])
    tensors = dataset.with_format("torch")
    assert open_reader(doubled).read(np.array([1])) == [{"a": 4}]
    assert open_reader(chosen).read(np.array([1])) == [{"a": 2}]
    assert isinstance(open_reader(tensors).read(np.array([1]))[0]["a"], torch.Tensor)
    assert [reads_plainly(each) for each in (dataset, tensors, doubled, range(3))] == [True, True, False, False]


def test_any_sequence_can_be_read() -> None:
    assert open_reader(range(10, 20)).read(np.array([3, 0])) == [13, 10]


# In order.


def test_a_stream_is_read_as_plain_iteration_reads_it() -> None:
    reader = stream(5)
    found = [number for first in range(0, 18, 3) for number in reader.read(range(first, first + 3), oldest=first)]
    assert found == [number % 5 for number in range(18)]
    assert reader.corpus.dataset.begun == 4


def test_a_window_may_be_asked_for_in_any_order() -> None:
    reader = stream(100)
    assert reader.read([3, 0, 2], oldest=0) == [3, 0, 2]
    assert reader.read([1], oldest=0) == [1]
    assert reader.read([6, 4], oldest=4) == [6, 4]
    assert reader.read([5], oldest=4) == [5]
    assert (reader.corpus.dataset.begun, reader.corpus.dataset.given) == (1, 7)


def test_what_falls_behind_is_forgotten() -> None:
    reader = stream(100)
    reader.read([9], oldest=5)
    assert sorted(reader._kept) == [5, 6, 7, 8, 9]
    reader.read([10], oldest=10)
    assert sorted(reader._kept) == [10]


def test_going_back_begins_the_stream_anew() -> None:
    reader = stream(4)
    assert reader.read([5, 6], oldest=5) == [1, 2]
    assert reader.read([2, 3], oldest=2) == [2, 3]
    assert reader.corpus.dataset.begun == 3  # two passes, and one anew
    assert reader.read([4], oldest=4) == [0]


def test_skipping_ahead_reads_what_lies_between() -> None:
    reader = stream(10)
    assert reader.read([23], oldest=23) == [3]
    assert reader.corpus.dataset.given == 24


@pytest.mark.parametrize(("max_passes", "fits"), [(1, 3), (2, 6), (1.5, 6), (None, 30)])
def test_a_stream_ends_after_its_passes(max_passes: float | None, fits: int) -> None:
    reader = stream(3, max_passes)
    assert reader.read(range(fits), oldest=0) == [number % 3 for number in range(fits)]
    if max_passes is None:
        return
    with pytest.raises(
        ValueError, match=rf"Corpus 'law' has ended after \d passes and its `max_passes` is {max_passes}"
    ):
        reader.read([fits], oldest=fits)


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Corpus 'law' is an empty stream\. Check its path, split and filters"):
        stream(0).read([0], oldest=0)


def test_a_shuffled_stream_has_a_new_order_every_pass() -> None:
    rows = datasets.Dataset.from_dict({"a": list(range(20))}).to_iterable_dataset()
    reader = StreamReader(Corpus("law", rows.shuffle(seed=3, buffer_size=20)))
    passes = [[row["a"] for row in reader.read(range(first, first + 20), oldest=first)] for first in (0, 20, 40)]
    assert all(sorted(order) == list(range(20)) for order in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    again = StreamReader(Corpus("law", rows.shuffle(seed=3, buffer_size=20)))
    assert [row["a"] for row in again.read(range(60), oldest=0)] == [number for order in passes for number in order]
