"""Readers against plain indexing."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.readers import ArrowReader, CorpusReaders, MapReader, open_reader, reads_plainly


def reader(dataset: Any) -> MapReader | ArrowReader:
    return open_reader(Corpus("law", dataset))


# By index.


@pytest.mark.parametrize(("size", "after", "held"), [(10**6, 0, True), (100, 0, False), (10**6, 8, False)])
def test_a_small_corpus_is_held_in_memory_once_it_has_been_read_for_a_while(
    monkeypatch: pytest.MonkeyPatch, size: int, after: int, held: bool
) -> None:
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_IN_MEMORY", size)
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_AFTER", after)
    dataset = datasets.Dataset.from_dict(
        {"ids": [[n, n + 1] for n in range(100)], "text": [str(n) for n in range(100)]}
    )
    indices = np.array([99, 0, 42, 42])
    found = ArrowReader(dataset)
    for _ in range(2):
        assert found.read(indices) == [dataset[index] for index in indices.tolist()]
    assert (found.held is not None) == held
    found.read(indices)
    assert (found.held is not None) == (size > 100)


def test_little_of_a_large_corpus_is_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_IN_MEMORY", 100)
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_AFTER", 0)
    dataset = datasets.Dataset.from_dict({"ids": [[n, n + 1] for n in range(100)]})
    whole, little = ArrowReader(dataset), ArrowReader(dataset.select([7, 9]))
    assert (whole.read(np.array([7])), little.read(np.array([0]))) == ([{"ids": [7, 8]}], [{"ids": [7, 8]}])
    assert whole.held is None
    assert little.held is not None
    assert little.held.num_rows == 2


def same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether rows agree in names, types, kinds of number and values."""

    def described(row: dict[str, Any]) -> list[Any]:
        return [(name, type(value), getattr(value, "dtype", None), str(value)) for name, value in row.items()]

    return [described(row) for row in found] == [described(row) for row in expected]


@pytest.mark.parametrize("held_after", [0, 10**9])
@pytest.mark.parametrize("form", [None, "numpy", "torch"])
@pytest.mark.parametrize(
    ("columns", "fast"),
    [
        ({"ids": [[1, 2], [3, 4], [5, 6], [7, 8]], "label": [0, 1, 0, 1]}, True),
        ({"ids": [[1], [], [2, 3, 4], []], "score": [0.5, 1.5, -2.0, 1e9]}, True),
        ({"ids": [[1], None, [2], []], "label": [0, None, 2, 3]}, True),
        ({"ids": [[1, None], [2, 3], [4], [5]], "vector": [[0.1], [0.2], [0.3], [0.4]]}, True),
        ({"text": ["a", "ä", "", "d"], "label": [1, 2, 3, 4], "ids": [[1], None, [2], []]}, None),
        ({"ids": [[], [], [], []]}, False),
        ({"flag": [True, False, True, False]}, False),
        ({"nested": [[[1], [2]], [[3]], [], []]}, False),
        ({"record": [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]}, False),
    ],
)
def test_rows_in_every_format_are_those_of_the_dataset(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], fast: bool | None, form: str | None, held_after: int
) -> None:
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_AFTER", held_after)
    dataset = datasets.Dataset.from_dict(columns).with_format(form)
    found = reader(dataset)
    assert isinstance(found, ArrowReader) == (form is None if fast is None else fast)  # texts have no other format
    for indices in ([0, 1, 2, 3], [3, 0, 0], [1], [2]):  # others read as many rows as the dataset gives at once
        is_quick = fast or form is None
        expected = [dataset[index] for index in indices] if is_quick else dataset.__getitems__(indices)
        assert same_rows(found.read(np.array(indices)), expected)


@pytest.mark.parametrize("kind", ["int8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_numbers_keep_the_kind_that_the_dataset_gives_them(form: str | None, kind: str) -> None:
    features = datasets.Features({"a": datasets.Value(kind), "b": datasets.List(datasets.Value(kind))})
    dataset = datasets.Dataset.from_dict({"a": [1, 2, 3], "b": [[1, 2], [3], [4]]}, features=features)
    dataset = dataset.with_format(form)
    assert same_rows(reader(dataset).read(np.array([2, 0])), [dataset[2], dataset[0]])


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_rows_that_were_read_may_be_written_to(form: str) -> None:
    dataset = datasets.Dataset.from_dict({"ids": [[1, 2], [3, 4]]}).with_format(form)
    found = reader(dataset)
    row = found.read(np.array([0]))[0]
    row["ids"] += 10
    assert found.read(np.array([0]))[0]["ids"].tolist() == [1, 2]


# Several corpora at once.


def parts_of(*sizes: int, form: str | None = None) -> list[datasets.Dataset]:
    """Row i of part p has the numbers 1000 p + i."""
    return [
        datasets.Dataset.from_dict({"ids": [[1000 * part + row] * (1 + row % 3) for row in range(size)]}).with_format(
            form
        )
        for part, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("held_after", [0, 10**9])
@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_an_index_counts_through_all_parts(monkeypatch: pytest.MonkeyPatch, form: str | None, held_after: int) -> None:
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_AFTER", held_after)
    parts = parts_of(5, 1, 7, form=form)
    rows = [row for part in parts for row in part]
    found = ArrowReader(*parts)
    for indices in ([0], [12, 0, 5, 4, 6, 5], list(range(13)), [5], [12, 11]):
        assert same_rows(found.read(np.array(indices)), [rows[index] for index in indices])


@pytest.mark.parametrize("held_after", [0, 10**9])
def test_corpora_of_all_kinds_are_read_together(monkeypatch: pytest.MonkeyPatch, held_after: int) -> None:
    monkeypatch.setattr("hf_interp.mixture.readers.HELD_AFTER", held_after)
    one, two, three = parts_of(9, 4, 6)
    mixed = [
        one,
        range(50, 60),
        two.select([3, 1]),
        datasets.Dataset.from_dict({"a": range(5)}).to_iterable_dataset(),
        datasets.Dataset.from_dict({"text": ["a", "b"]}),
        three.shuffle(seed=0),
        two.with_format("torch"),
        two.with_transform(lambda batch: {"length": [len(ids) for ids in batch["ids"]]}),
    ]
    together = CorpusReaders([Corpus(f"c{index}", dataset) for index, dataset in enumerate(mixed)])
    rng = np.random.default_rng(0)
    readable = [index for index in range(len(mixed)) if index != 3]
    for count in (1, 2, 8, 40):
        for _ in range(5):
            corpus = rng.choice(readable, count)
            example = np.array([rng.integers(len(mixed[index])) for index in corpus])
            expected = [mixed[index][int(row)] for index, row in zip(corpus, example, strict=True)]
            found = together.read(corpus, example)
            assert [str(row) for row in found] == [str(row) for row in expected]
    assert together.read(np.array([3, 1, 3]), np.array([0, 2, 1])) == [None, 52, None]
    assert together.read(np.array([3]), np.array([0])) == [None]


def test_labels_with_other_names_may_share_a_reader() -> None:
    kinds = [datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["c", "d"]), datasets.Value("int64")]
    parts = [
        datasets.Dataset.from_dict({"label": [index % 2, 1]}, features=datasets.Features({"label": kind}))
        for index, kind in enumerate(kinds)
    ]
    together = CorpusReaders([Corpus(f"c{index}", part) for index, part in enumerate(parts)])
    for _ in range(600):
        found = together.read(np.array([0, 1, 2, 0]), np.array([0, 0, 0, 1]))
    assert found == [{"label": 0}, {"label": 1}, {"label": 0}, {"label": 1}]


def test_rows_of_a_selection_are_those_of_the_selection() -> None:
    texts = [None if number % 2 else str(number) for number in range(50)]
    whole = datasets.Dataset.from_dict({"ids": [[number] * (number % 3) for number in range(50)], "text": texts})
    for dataset in (whole.select([7, 4, 4, 11]), whole.shuffle(seed=1), datasets.concatenate_datasets([whole, whole])):
        found = reader(dataset)
        assert isinstance(found, ArrowReader)
        indices = np.array([3, 0, 2, 1])
        assert found.read(indices) == [dataset[int(index)] for index in indices]


def test_formats_and_transforms_are_left_to_the_dataset() -> None:
    dataset = datasets.Dataset.from_dict({"a": [1, 2], "b": [3, 4]})
    doubled = dataset.with_transform(lambda rows: {"a": [2 * value for value in rows["a"]]})
    chosen = dataset.with_format(columns=["a"])
    tensors = dataset.with_format("torch")
    assert reader(doubled).read(np.array([1])) == [{"a": 4}]
    assert reader(chosen).read(np.array([1])) == [{"a": 2}]
    assert isinstance(reader(tensors).read(np.array([1]))[0]["a"], torch.Tensor)
    assert [reads_plainly(each) for each in (dataset, tensors, doubled, range(3))] == [True, True, False, False]
    assert reader(range(10, 20)).read(np.array([3, 0])) == [13, 10]


def test_a_dataset_that_reads_several_at_once_is_asked_once() -> None:
    class Several:
        asked: list[list[int]] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            raise AssertionError

        def __getitems__(self, indices: list[int]) -> list[int]:
            self.asked.append(indices)
            return [10 * index for index in indices]

    assert reader(Several()).read(np.array([7, 7, 2])) == [70, 70, 20]
    assert Several.asked == [[7, 7, 2]]


@pytest.mark.parametrize("several", [False, True])
def test_a_corpus_that_cannot_be_read_is_named_with_the_examples(several: bool) -> None:
    class Broken:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            if index == 2:
                raise OSError("disk gone")
            return index

    class BrokenAtOnce(Broken):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [self[index] for index in indices]

    broken = Corpus("law", BrokenAtOnce() if several else Broken())
    assert open_reader(broken).read(np.array([1, 3])) == [1, 3]
    message = r"Corpus 'law' failed at the examples \[{}2\]: OSError: disk gone"
    with pytest.raises(RuntimeError, match=message.format("1, ")) as caught:
        open_reader(broken).read(np.array([1, 2]))
    assert isinstance(caught.value.__cause__, OSError)
    together = CorpusReaders([Corpus("web", range(3)), broken])
    with pytest.raises(RuntimeError, match=message.format("")):
        together.read(np.array([0, 1]), np.array([1, 2]))
