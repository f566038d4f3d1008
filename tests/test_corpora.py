"""Corpora in every form and from every kind of file, and what is said about those that do not fit."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_interp.config import CorpusConfig
from hf_interp.corpora import (
    Corpus,
    as_corpora,
    check_columns,
    check_labels,
    content_fingerprint,
    is_mixture,
    load_corpus,
    with_dataset,
)

LABELS = ["bad", "good"]
ROWS = [{"text": f"text {number}", "label": LABELS[number % 2], "kind": "abc"[number % 3]} for number in range(6)]
EXPECTED = [{"text": f"text {number}", "label": number % 2} for number in range(6)]


def write(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> str:
    """Write rows in the form that the file's name tells, and return its path."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    separator = "\t" if kind == "tsv" else ","
    if kind == "parquet":
        datasets.Dataset.from_dict(columns).to_parquet(path)
        return str(path)
    text = {
        "json": json.dumps(list(rows)),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "txt": "".join(f"{row['text']}\n" for row in rows),
    }.get(kind)
    if text is None:
        lines = [list(columns), *([str(value) for value in row.values()] for row in rows)]
        text = "".join(separator.join(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def load(path: str | list[str], label_names: Sequence[str] | None = LABELS, **fields: Any) -> list[dict[str, Any]]:
    return list(load_corpus("law", CorpusConfig(path=path, **fields), label_names))


def labelled(values: Sequence[Any], feature: Any = None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features({"labels": feature})
    return datasets.Dataset.from_dict({"labels": list(values)}, features=features)


# Forms of a mixture.


def test_a_mapping_of_sides() -> None:
    general, domain = range(5), datasets.Dataset.from_dict({"a": [1]})
    assert as_corpora({"domain": domain, "general": general}) == [
        Corpus("domain", domain, "domain"),
        Corpus("general", general, "general"),
    ]


def test_a_mapping_of_named_datasets_for_a_side() -> None:
    assert as_corpora({"general": {"web": range(2), "books": range(3)}, "domain": range(4)}) == [
        Corpus("web", range(2), "general"),
        Corpus("books", range(3), "general"),
        Corpus("domain", range(4), "domain"),
    ]


def test_a_list_of_corpora_is_kept() -> None:
    corpora = [Corpus("law", range(3), share=0.5, max_passes=2), Corpus("web", range(5), "general")]
    assert as_corpora(corpora) == corpora
    planned = corpora[0].planned()
    assert (planned.name, planned.side, planned.num_examples) == ("law", "domain", 3)
    assert (planned.share, planned.max_passes) == (0.5, 2)


def test_a_stream_has_no_length() -> None:
    class Numbers(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    for dataset in (Numbers(), labelled([0, 1]).to_iterable_dataset()):
        corpus = Corpus("law", dataset)
        assert corpus.is_stream
        assert corpus.planned().num_examples is None
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


def test_with_dataset_changes_nothing_else() -> None:
    corpus = Corpus("law", range(3), "general", 0.5, 2.0)
    assert with_dataset(corpus, range(9)) == Corpus("law", range(9), "general", 0.5, 2.0)


# Files.


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet", "JSONL"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str, streaming: bool) -> None:
    path = write(tmp_path / f"rows.{suffix.lower()}")
    if suffix.isupper():
        path = str(Path(path).rename(tmp_path / f"ROWS.{suffix}"))
    assert load(path, streaming=streaming) == EXPECTED


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_a_text_file_has_a_row_a_line_and_no_labels(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows.{suffix}")
    assert load(path, None) == [{"text": row["text"]} for row in EXPECTED]
    with pytest.raises(ValueError, match=r"Corpus 'law' has no column 'label'; it has \['text'\]"):
        load(path)


def test_a_list_of_files_is_one_corpus(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", ROWS[:2]), write(tmp_path / "b.json", ROWS[2:])]
    assert load(paths) == EXPECTED
    assert load(paths[::-1]) == EXPECTED[2:] + EXPECTED[:2]
    tables = [write(tmp_path / "a.tsv", ROWS[:2]), write(tmp_path / "b.tsv.gz", ROWS[2:])]
    assert load(tables) == EXPECTED


@pytest.mark.parametrize("names", [("a.csv", "b.jsonl"), ("a.csv", "b.tsv"), ("a.csv", "b.dat"), ("a.dat", "b.dat")])
def test_files_of_several_kinds_are_refused(tmp_path: Path, names: Sequence[str]) -> None:
    paths = [write(tmp_path / name) for name in names]
    with pytest.raises(ValueError, match=r"The files of corpus 'law' must be of one kind \(\.json, .*\.txt\), got \["):
        load(paths)


def test_an_empty_list_of_files_is_refused() -> None:
    with pytest.raises(ValueError, match="`path` of corpus 'law' must name at least one file, got an empty list"):
        load([])


@pytest.mark.parametrize("name", ["absent.csv", "absent.txt.gz", "absent"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"There is no .*{name}' \(corpus 'law'\)"):
        load(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*absent\.csv'"):
        load([write(tmp_path / "here.csv"), str(tmp_path / "absent.csv")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "", "Corpus 'law' .*rows.jsonl. has no rows"),
        ("rows.json", "[]", "Corpus 'law' .* cannot be loaded: .*no data"),
        ("rows.csv", "", "Corpus 'law' .* cannot be loaded: No columns to parse from file"),
        ("rows.jsonl", '{"text": \n', "Corpus 'law' .* cannot be loaded: JSON parse error"),
        (
            "rows.csv",
            "text,label\na,b\nc,d,e\n",
            "Corpus 'law' .* cannot be loaded: .*Expected 2 fields in line 3, saw 3",
        ),
        ("rows.parquet", "PAR1", "Corpus 'law' .* cannot be loaded: Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / name))


def test_folders_and_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "train.jsonl")
    write(tmp_path / "corpus" / "test.jsonl", ROWS[:1])
    assert load(str(tmp_path / "corpus")) == load("~/corpus") == load("~/corpus/train.jsonl") == EXPECTED
    assert load("~/corpus", split="test") == EXPECTED[:1]
    with pytest.raises(ValueError, match=r"Corpus 'law' .* cannot be loaded: .*valid"):
        load("~/corpus", split="valid")


@pytest.mark.parametrize(
    ("split", "expected"), [("train", EXPECTED), ("train[:2]", EXPECTED[:2]), ("x[50%:]", EXPECTED[3:])]
)
def test_splits_of_a_file(tmp_path: Path, split: str, expected: list[dict[str, Any]]) -> None:
    assert load(write(tmp_path / "rows.jsonl"), split=split) == expected


# Columns.


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_found_by_their_names_and_others_dropped(tmp_path: Path, streaming: bool) -> None:
    rows = [{"q": "why", "a": "because", "verdict": "good", "text": "x", "label": "unrelated", "text_pair": 1}]
    path = write(tmp_path / "rows.jsonl", rows)
    fields = {"text_column": "q", "label_column": "verdict", "streaming": streaming}
    assert load(path, **fields) == [{"text": "why", "label": 1}]
    assert load(path, **fields, text_pair_column="a") == [{"text": "why", "text_pair": "because", "label": 1}]
    assert load(path, None, **fields) == [{"text": "why"}]


def test_columns_can_trade_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text_pair": "a", "text": "b", "label": "good"}])
    swapped = load(path, text_column="text_pair", text_pair_column="text")
    assert swapped == [{"text": "a", "text_pair": "b", "label": 1}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"text_column": "txt"}, "'txt'"),
        ({"label_column": "labels"}, "'labels'"),
        ({"text_pair_column": "pair"}, "'pair'"),
        ({"where": {"kinds": "a"}}, "'kinds'"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, fields: Any, column: str, suffix: str, streaming: bool) -> None:
    path = write(tmp_path / f"rows.{suffix}")
    with pytest.raises(ValueError, match=rf"Corpus 'law' has no column {column}; it has \['text', 'label', 'kind'\]"):
        load(path, streaming=streaming, **fields)


def test_a_misspelt_column_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'label'\?"):
        load(write(tmp_path / "rows.jsonl"), label_column="labell")


# Labels.


@pytest.mark.parametrize(
    ("values", "label_map", "expected"),
    [
        (["good", "bad"], None, [1, 0]),
        ([1, 0], None, [1, 0]),
        (["0", "1"], {"0": "good", "1": "bad"}, [1, 0]),
        ([0, 1], {0: "good", 1: "bad"}, [1, 0]),
        ([0, 1], {"0": "good", "1": "bad"}, [1, 0]),
        (["pos", "bad"], {"pos": "good"}, [1, 0]),
        (["pos", "bad", "meh"], {"pos": "good", "meh": None}, [1, 0]),
        ([True, False], {True: "good", False: "bad"}, [1, 0]),
        (["good", None], {None: None}, [1]),
        ([-1, 0], {-1: None, 0: "bad"}, [0]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_label_maps(tmp_path: Path, values: list[Any], label_map: Any, expected: list[int], streaming: bool) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": value} for value in values])
    assert [row["label"] for row in load(path, label_map=label_map, streaming=streaming)] == expected


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (None, [0, 1, 0]),
        ({"bad": "good", "good": "bad"}, [1, 0, 1]),
        ({0: "good", "good": None}, [1, 1]),
    ],
)
def test_class_labels_go_by_their_names(tmp_path: Path, label_map: Any, expected: list[int]) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}, features=features)
    dataset.to_parquet(tmp_path / "rows.parquet")
    assert [row["label"] for row in load(str(tmp_path / "rows.parquet"), label_map=label_map)] == expected
    other = load(str(tmp_path / "rows.parquet"), ["good", "bad"])
    assert [row["label"] for row in other] == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "label_map", "value"),
    [
        (["good", "meh"], None, "'meh'"),
        ([0, 2], None, "2"),
        ([0, -1], None, "-1"),
        ([0, 1], {0: "good"}, "1"),
        (["a"], {"a": "fine"}, "'fine'"),
        (["good", None], None, "None"),
        ([0.0, 1.0], None, "0.0"),
    ],
)
def test_labels_that_no_name_stands_for_are_refused(
    tmp_path: Path, values: list[Any], label_map: Any, value: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in values])
    message = rf"Corpus 'law' has the label {value}, which is not in `label_names` \(\['bad', 'good'\]\)\. Map it"
    with pytest.raises(ValueError, match=message):
        load_corpus("law", CorpusConfig(path=path, label_map=label_map), LABELS)
    with pytest.raises(ValueError, match=message):  # a stream tells as soon as it gets there
        load(path, label_map=label_map, streaming=True)


# Filters.


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ({"kind": "a"}, [0, 3]),
        ({"kind": ["a", "c"]}, [0, 2, 3, 5]),
        ({"kind": ["a", "c"], "label": "good"}, [3, 5]),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_where_keeps_rows(tmp_path: Path, where: dict[str, Any], numbers: list[int], streaming: bool) -> None:
    rows = load(write(tmp_path / "rows.jsonl"), where=where, streaming=streaming)
    assert rows == [EXPECTED[number] for number in numbers]


def test_rows_that_where_drops_may_have_any_label(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*ROWS, {"text": "x", "label": "meh", "kind": "z"}])
    assert load(path, where={"kind": ["a", "b", "c"]}) == EXPECTED


@pytest.mark.parametrize("fields", [{"where": {"kind": "z"}}, {"label_map": {"bad": None, "good": None}}])
def test_a_corpus_without_rows_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Corpus 'law' \(.*rows\.jsonl\) has no rows left\. Check its split, `where`"):
        load(write(tmp_path / "rows.jsonl"), **fields)


@pytest.mark.parametrize("streaming", [False, True])
def test_max_examples_draws_with_its_seed(tmp_path: Path, streaming: bool) -> None:
    rows = [{"text": f"text {number}", "label": "good"} for number in range(30)]
    path = write(tmp_path / "rows.jsonl", rows)

    def texts(seed: int) -> list[str]:
        return [row["text"] for row in load(path, max_examples=8, sample_seed=seed, streaming=streaming)]

    first = texts(0)
    assert len(set(first)) == 8
    assert first == texts(0)
    assert set(first) != set(texts(1))
    assert first != [row["text"] for row in rows[:8]]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (5, 5), (6, 6), (7, 6)])
def test_max_examples_is_a_limit(tmp_path: Path, limit: int, count: int) -> None:
    assert len(load(write(tmp_path / "rows.jsonl"), max_examples=limit)) == count


def test_streams_stay_streams(tmp_path: Path) -> None:
    corpus = load_corpus("law", CorpusConfig(path=write(tmp_path / "rows.jsonl"), streaming=True), LABELS)
    assert isinstance(corpus, datasets.IterableDataset)
    assert list(corpus) == list(corpus) == EXPECTED


# Checks over all corpora.


def test_columns_must_be_the_same() -> None:
    one, two = datasets.Dataset.from_dict({"a": [1], "b": [2]}), datasets.Dataset.from_dict({"b": [1], "a": [2]})
    check_columns([Corpus("law", one), Corpus("web", two, "general"), Corpus("any", range(3))])
    three = datasets.Dataset.from_dict({"b": [1]})
    for corpora in ([one, three], [three, one]):
        with pytest.raises(
            ValueError, match=r"Corpus '\w' lacks the columns \['a'\] that corpus '\w' has; it has \['b'\]"
        ):
            check_columns([Corpus(name, dataset) for name, dataset in zip("xy", corpora, strict=True)])


def test_streams_are_checked_where_their_columns_are_known() -> None:
    one = datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset()
    with pytest.raises(
        ValueError, match=r"Corpus 'law' lacks the columns \['b'\] that corpus 'web' has; it has \['a'\]"
    ):
        check_columns([Corpus("law", one), Corpus("web", datasets.Dataset.from_dict({"b": [1]}))])
    check_columns([Corpus("law", one.map(lambda row: row)), Corpus("web", datasets.Dataset.from_dict({"b": [1]}))])


def test_class_names_must_be_the_same() -> None:
    one, two = (labelled([0], datasets.ClassLabel(names=names)) for names in (["a", "b"], ["b", "a"]))
    check_columns([Corpus("law", one), Corpus("web", one), Corpus("books", labelled([1]))])
    with pytest.raises(
        ValueError, match=r"corpora 'law' and 'web' differ in column 'labels': \['a', 'b'\] and \['b', 'a'\]"
    ):
        check_columns([Corpus("law", one), Corpus("web", two)])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 1], None),
        (
            [0, 3],
            r"Corpus 'law' has the label 3 in column 'labels', but the model has 3 labels \(0 … 2\).*num_labels=4",
        ),
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


@pytest.mark.parametrize("column", ["text", "pair"])
def test_a_cell_without_a_text_is_refused(tmp_path: Path, column: str) -> None:
    rows = [{"text": "one", "pair": "two", "label": 0}, {"text": "three", "pair": "four", "label": 1}]
    rows[1] = {**rows[1], column: None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(path=str(tmp_path / "rows.jsonl"), text_pair_column="pair")
    with pytest.raises(ValueError, match=rf"Corpus 'here' has None .* column '{column}', row 1 .*Remove such rows"):
        load_corpus("here", config, ["a", "b"])


def test_numbers_that_are_label_names_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "t", "label": n}) + "\n" for n in (1, 2, 3)))
    dataset = load_corpus("here", CorpusConfig(path=str(tmp_path / "rows.jsonl")), ["1", "2", "3"])
    assert dataset["label"][:] == [0, 1, 2]


def test_a_side_is_one_split() -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})})
    with pytest.raises(TypeError, match=r"general side must be .* got a DatasetDict .*\['train'\]\. Choose"):
        as_corpora({"general": splits})


# What a plan must know.


def tokenised(count: int, label: str = "labels", **kwargs: Any) -> datasets.Dataset:
    """Row i has the tokens i and 2, or what else is given by row."""
    ids = {number: [number, 2] for number in range(count)}
    ids.update(kwargs.pop("ids", {}))
    labels = {number: number % 2 for number in range(count)}
    labels.update(kwargs.pop("labels", {}))
    return datasets.Dataset.from_dict({"input_ids": list(ids.values()), label: list(labels.values()), **kwargs})


def test_lengths_in_tokens_are_measured_only_for_a_mixture_by_tokens() -> None:
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4]]})
    assert Corpus("law", dataset).planned().mean_tokens is None
    assert Corpus("law", dataset).planned("tokens").mean_tokens == 2.0
    assert Corpus("law", dataset, mean_tokens=7.5).planned("tokens").mean_tokens == 7.5
    assert Corpus("law", dataset, mean_tokens=7.5).planned().mean_tokens == 7.5
    assert Corpus("law", dataset.to_iterable_dataset()).planned("tokens").mean_tokens is None
    assert Corpus("law", dataset.to_iterable_dataset(), mean_tokens=3).planned("tokens").mean_tokens == 3


def test_the_content_is_told_to_the_plan() -> None:
    dataset = tokenised(5)
    assert Corpus("law", dataset).planned().content == content_fingerprint(dataset)
    assert Corpus("law", range(5)).planned().content is None


def test_the_same_rows_made_in_another_way_are_the_same_content(tmp_path: Path) -> None:
    dataset = tokenised(200)
    found = content_fingerprint(dataset)
    assert found is not None
    assert len(found) == 12
    assert int(found, 16) >= 0
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

    assert (
        build()
        == build(text=["a", "b"])
        == content_fingerprint(datasets.Dataset.from_dict({"label": [0, 1], "text": ["a", "b"]}))
    )
    assert len({build(), build(text=["a", "c"]), build(label=[0, 0]), build(more=[1, 2])}) == 4


@pytest.mark.parametrize(
    "dataset", [range(3), [{"input_ids": [1]}], tokenised(3).to_iterable_dataset(), tokenised(3).select([])]
)
def test_other_datasets_have_no_known_content(dataset: Any) -> None:
    assert content_fingerprint(dataset) is None
