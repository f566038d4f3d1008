"""Corpora in every form, and what is said about those that do not fit."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_interp.mixture.corpus import (
    Corpus,
    as_corpora,
    check_columns,
    check_labels,
    content_fingerprint,
    is_mixture,
)


def labelled(values: Sequence[Any], feature: Any = None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features({"labels": feature})
    return datasets.Dataset.from_dict({"labels": list(values)}, features=features)


# Forms of a mixture.


def test_a_mapping_of_sides_holds_datasets_or_names_them() -> None:
    one = datasets.Dataset.from_dict({"a": [1]})
    assert as_corpora({"domain": one, "general": {"web": range(2), "books": range(3)}}) == [
        Corpus("domain", one, "domain"),
        Corpus("web", range(2), "general"),
        Corpus("books", range(3), "general"),
    ]


def test_a_list_of_corpora_is_kept() -> None:
    corpora = [Corpus("law", range(3), share=0.5, max_passes=2), Corpus("web", range(5), "general")]
    assert as_corpora(corpora) == corpora
    planned = corpora[0].spec()
    assert (planned.name, planned.side, planned.num_examples) == ("law", "domain", 3)
    assert (planned.share, planned.max_passes) == (0.5, 2)


def test_a_stream_has_no_length() -> None:
    class Numbers(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    for dataset in (Numbers(), labelled([0, 1]).to_iterable_dataset()):
        corpus = Corpus("law", dataset)
        assert corpus.is_stream
        assert corpus.spec().num_examples is None
    assert not Corpus("law", labelled([0])).is_stream


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["general", "domian"], r"keys 'general' and 'domain', got \['general', 'domian'\]\. Did you mean 'domain'\?"),
        (["train", "test"], r"keys 'general' and 'domain', got \['train', 'test'\]\.$"),
        ([0], r"got \[0\]"),
    ],
)
def test_keys_that_are_no_sides_are_refused(keys: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_corpora({key: range(3) for key in keys})


@pytest.mark.parametrize("value", [None, 3, iter([1]), {1, 2}])
def test_values_that_are_no_datasets_are_refused(value: Any) -> None:
    for mixture in ({"domain": value}, {"domain": {"law": value}}, [Corpus("law", value)]):
        with pytest.raises(TypeError, match=rf"Corpus '(domain|law)' must be a dataset .* got {type(value).__name__}"):
            as_corpora(mixture)


def test_what_is_a_mixture() -> None:
    corpus = Corpus("law", range(3))
    assert all(map(is_mixture, [{}, {"general": range(3)}, [corpus], (corpus, corpus), datasets.DatasetDict()]))
    assert not any(map(is_mixture, [None, [], [corpus, range(3)], range(3), labelled([0]), [{"text": "a"}]]))


# Checks over all corpora.


def test_columns_must_be_the_same() -> None:
    one, two = datasets.Dataset.from_dict({"a": [1], "b": [2]}), datasets.Dataset.from_dict({"b": [1], "a": [2]})
    check_columns([Corpus("law", one), Corpus("web", two, "general"), Corpus("any", range(3))])
    three = datasets.Dataset.from_dict({"b": [1]})
    message = r"Corpus '\w' lacks the columns \['a'\] that corpus '\w' has; it has \['b'\]"
    for corpora in ([one, three], [three, one]):
        with pytest.raises(ValueError, match=message):
            check_columns([Corpus(name, dataset) for name, dataset in zip("xy", corpora, strict=True)])


def test_streams_are_checked_where_their_columns_are_known() -> None:
    one = datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset()
    web = Corpus("web", datasets.Dataset.from_dict({"b": [1]}))
    with pytest.raises(ValueError, match=r"'law' lacks the columns \['b'\] that corpus 'web' has; it has \['a'\]"):
        check_columns([Corpus("law", one), web])
    check_columns([Corpus("law", one.map(lambda row: row)), web])


def test_class_names_must_be_the_same() -> None:
    one, two = (labelled([0], datasets.ClassLabel(names=names)) for names in (["a", "b"], ["b", "a"]))
    check_columns([Corpus("law", one), Corpus("web", one), Corpus("books", labelled([1]))])
    message = r"corpora 'law' and 'web' differ in column 'labels': \['a', 'b'\] and \['b', 'a'\]"
    with pytest.raises(ValueError, match=message):
        check_columns([Corpus("law", one), Corpus("web", two)])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 1], None),
        ([0, 3], r"'law' has the label 3 in column 'labels', but the model has 3 labels \(0 … 2\).*num_labels=4"),
        ([7, 0, 9], "has the label 7 .*num_labels=10"),
        ([0, -1], r"has the label -1 .*Map the labels\.$"),
        ([None, 0, -1, 5], r"has the label None .*Map the labels\.$"),
    ],
)
def test_labels_must_be_those_of_the_model(labels: list[Any], message: str | None) -> None:
    corpora = [Corpus("web", labelled([0])), Corpus("law", labelled(labels)), Corpus("any", range(9))]
    if message is None:
        check_labels(corpora, 3)
        return
    with pytest.raises(ValueError, match=message):
        check_labels(corpora, 3)


def test_labels_that_are_no_classes_are_left_alone() -> None:
    check_labels([Corpus("law", labelled([0.5, 7.5])), Corpus("web", labelled([[0, 9]]))], 3)
    check_labels([Corpus("law", labelled([9]).to_iterable_dataset())], 3)
    check_labels([Corpus("law", datasets.Dataset.from_dict({"other": [9]}))], 3)
    with pytest.raises(ValueError, match="in column 'label'"):
        check_labels([Corpus("law", datasets.Dataset.from_dict({"label": [9]}))], 3)


def test_a_side_is_one_split() -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})})
    with pytest.raises(TypeError, match=r"general side must be .* got a DatasetDict .*\['train'\]\. Choose"):
        as_corpora({"general": splits})


# What a plan must know.


def tokenised(count: int, label: str = "labels", **kwargs: Any) -> datasets.Dataset:
    """Row i has the tokens i and 2, or what else is given by row."""
    ids = {number: [number, 2] for number in range(count)} | kwargs.pop("ids", {})
    labels = {number: number % 2 for number in range(count)} | kwargs.pop("labels", {})
    return datasets.Dataset.from_dict({"input_ids": list(ids.values()), label: list(labels.values()), **kwargs})


def test_lengths_in_tokens_are_measured_only_for_a_mixture_by_tokens() -> None:
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4]]})
    assert Corpus("law", dataset).spec().mean_tokens is None
    assert Corpus("law", dataset).spec("tokens").mean_tokens == 2.0
    assert Corpus("law", dataset, mean_tokens=7.5).spec("tokens").mean_tokens == 7.5
    assert Corpus("law", dataset, mean_tokens=7.5).spec().mean_tokens == 7.5
    assert Corpus("law", dataset.to_iterable_dataset()).spec("tokens").mean_tokens is None
    assert Corpus("law", dataset.to_iterable_dataset(), mean_tokens=3).spec("tokens").mean_tokens == 3


def test_the_same_rows_made_in_another_way_are_the_same_content(tmp_path: Path) -> None:
    dataset = tokenised(200)
    found = Corpus("law", dataset).spec().content
    assert found == content_fingerprint(dataset)
    assert re.fullmatch("[0-9a-f]{12}", str(found))
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.to_json(tmp_path / "rows.jsonl")
    same = [
        tokenised(200),
        dataset.map(lambda row: row),
        dataset.select(range(200)),
        tokenised(400).select(range(200)),
        datasets.concatenate_datasets([dataset.select(range(70)), dataset.select(range(70, 200))]),
        dataset.add_column("text", ["a"] * 200),
        dataset.select_columns(["labels", "input_ids"]),
        dataset.with_format("torch"),
        dataset.with_transform(lambda rows: {"x": rows["labels"]}),
        datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache")),
        datasets.Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache")),
        dataset.cast_column("labels", datasets.Value("int8")),
        dataset.cast_column("input_ids", datasets.List(datasets.Value("int32"))),
        dataset.cast_column("labels", datasets.ClassLabel(names=["bad", "good"])),
    ]
    assert [content_fingerprint(each) for each in same] == [found] * len(same)


def test_other_rows_are_another_content() -> None:
    dataset = tokenised(60)
    others = [
        tokenised(59),
        tokenised(61),
        *(tokenised(60, ids={row: [row, 3]}) for row in (0, 1, 30, 59)),
        tokenised(60, ids={30: [30]}),
        tokenised(60, ids={30: [30, 2, 2]}),
        *(tokenised(60, labels={row: 5}) for row in (0, 1, 30, 59)),
        tokenised(60, label="label"),
        tokenised(60, label="other"),
        dataset.select(range(59, -1, -1)),
    ]
    assert len({content_fingerprint(each) for each in [dataset, *others]}) == 1 + len(others)


def test_long_corpora_are_told_apart_by_rows_spaced_evenly() -> None:
    whole = tokenised(64 * 63 + 1)  # every 64th row is looked at, and the last
    for row, told in ((0, True), (64, True), (64 * 63, True), (1, False), (63, False), (64 * 63 - 1, False)):
        other = tokenised(64 * 63 + 1, ids={row: [7]})
        assert (content_fingerprint(other) != content_fingerprint(whole)) == told


def test_without_token_ids_all_columns_are_the_content() -> None:
    def build(**columns: Any) -> str | None:
        return content_fingerprint(datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1], **columns}))

    other_order = datasets.Dataset.from_dict({"label": [0, 1], "text": ["a", "b"]})
    assert build() == build(text=["a", "b"]) == content_fingerprint(other_order)
    assert len({build(), build(text=["a", "c"]), build(label=[0, 0]), build(more=[1, 2])}) == 4


@pytest.mark.parametrize(
    "dataset", [range(3), [{"input_ids": [1]}], tokenised(3).to_iterable_dataset(), tokenised(3).select([])]
)
def test_other_datasets_have_no_known_content(dataset: Any) -> None:
    assert content_fingerprint(dataset) is Corpus("law", dataset).spec().content is None
