"""Loading: every kind of file, the columns of every kind, and what is said about values that do not fit."""

import csv
import datetime
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

import hf_interp
from hf_interp.commands.column_choice import choose_columns
from hf_interp.commands.file_facts import look_at
from hf_interp.tasks.corpora.columns import Kind
from hf_interp.tasks.corpora.loading import RowError, encode_corpus, load_corpus
from hf_interp.tasks.corpora.splits import content_keys, in_part
from hf_interp.tasks.recipe import CorpusConfig

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
        "txt": "".join(f"{row.get('text')}\n" for row in rows),
    }.get(kind)
    if text is None:
        lines = [list(columns), *([str(value) for value in row.values()] for row in rows)]
        text = "".join(separator.join(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def load(path: str | list[str], label_names: Sequence[str] | None = LABELS, **fields: Any) -> list[dict[str, Any]]:
    return list(read(path, label_names, **fields))


def read(path: str | list[str], label_names: Sequence[str] | None = LABELS, **fields: Any) -> Any:
    config = CorpusConfig(path=path, **fields)
    columns: dict[str, Kind] = {"text": "any text"}
    if config.text_pair_column:
        columns["text_pair"] = "any text"
    if label_names is not None:
        columns["label"] = "class"
    return load_corpus("law", config, columns, label_names)


# Files.


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet", "JSONL"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str, streaming: bool) -> None:
    path = write(tmp_path / f"rows.{suffix.lower()}")
    if suffix.isupper():
        path = str(Path(path).rename(tmp_path / f"ROWS.{suffix}"))
    assert load(path, streaming=streaming) == EXPECTED


def test_rows_that_were_kept_are_found_again_and_not_those_of_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl")
    first, again = ([file["filename"] for file in read(path).cache_files] for _ in range(2))
    assert first == again != []
    monkeypatch.setattr("hf_interp.tasks.corpora.loading.ROW", "row of the corpus, by other code")
    assert not {*first} & {file["filename"] for file in read(path).cache_files}


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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.csv", "b.jsonl"), r"The files of corpus 'law' must be of one kind \(json, .*conll\), got \["),
        (("a.csv", "b.tsv"), "The files of corpus 'law' must be of one kind"),
        (
            ("a.csv", "b.dat"),
            r"The format of '.*b\.dat' \(corpus 'law'\) is unknown\. Say its `format`: json, csv, tsv, ",
        ),
        (("a.dat", "b.dat"), r"The format of '.*a\.dat' .* is unknown"),
        (("a.dat",), r"The format of '.*a\.dat' .* is unknown"),
        (("a",), r"The format of '.*a' .* is unknown"),
    ],
)
def test_files_of_other_or_several_kinds_are_refused(tmp_path: Path, names: Sequence[str], message: str) -> None:
    paths = [write(tmp_path / name) for name in names]
    with pytest.raises(ValueError, match=message):
        load(paths)
    if "unknown" in message:
        assert load(paths, format="csv") == EXPECTED * len(paths)


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
        ("rows.jsonl", " null\n", "Corpus 'law' .*'.*rows.jsonl' begins with null where a row belongs"),
        ("rows.json", "[]", "Corpus 'law' .* cannot be loaded: .*no data"),
        ("rows.csv", "", "Corpus 'law' .* cannot be loaded: No columns to parse from file"),
        ("rows.jsonl", '{"text": \n', "Corpus 'law' .* cannot be loaded: line 1 of .* is no JSON"),
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


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_can_trade_names(tmp_path: Path, streaming: bool) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text_pair": "a", "text": "b", "label": "good"}])
    swapped = load(path, text_column="text_pair", text_pair_column="text", streaming=streaming)
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
    "label_map",
    [None, {"1": "one", "2": "two", "3": "three"}, {1: "one", 2: "two", 3: "three"}],
    ids=["", "text", "int"],
)
def test_names_of_class_labels_that_are_numbers_are_no_ids(tmp_path: Path, label_map: Any) -> None:
    names = ["1", "2", "3"] if label_map is None else ["one", "two", "three"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["3", "1", "2"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
    dataset.to_parquet(tmp_path / "rows.parquet")
    assert [row["label"] for row in load(str(tmp_path / "rows.parquet"), names, label_map=label_map)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("values", "label_map", "value"),
    [
        (["good", "meh"], None, "'meh'"),
        ([0, 2], None, "2"),
        ([0, -1], None, "-1"),
        ([0, 1], {0: "good"}, "1"),
        (["a"], {"a": "fine"}, "'fine'"),
        ([0.0, 1.0], None, "0.0"),
    ],
)
def test_labels_that_no_name_stands_for_are_refused(
    tmp_path: Path, values: list[Any], label_map: Any, value: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in values])
    names = r"\['bad', 'good'\]"
    what = rf"the label {value}, which is not in `label_names` \({names}\)"
    message = rf"Corpus 'law' has {what}: column 'label', line [12] .* Map"
    with pytest.raises(ValueError, match=message):
        read(path, LABELS, label_map=label_map)
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


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("where", "texts"),
    [
        ({"lang": ["no", "en"]}, "ab"),
        ({"day": "2020-01-01"}, "ac"),
        ({"code": "01"}, "a"),
        ({"code": 1}, ""),
        ({"code": [3, "02"]}, "bc"),
        ({"lang": None}, ""),
        ({"lang": False}, ""),
    ],
)
def test_where_compares_texts_as_they_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: dict[str, Any], texts: str, suffix: str
) -> None:
    values = [("a", "no", "2020-01-01", "01"), ("b", "en", "2020-01-02", "02"), ("c", "de", "2020-01-01", "3")]
    rows = [dict(zip(("text", "lang", "day", "code"), each, strict=True)) for each in values]
    path = write(tmp_path / f"rows.{suffix}", rows)
    if texts:
        assert "".join(row["text"] for row in load(path, None, where=where)) == texts
        return
    with pytest.raises(ValueError, match=rf"has no rows left\. Check its split, `where` \({where}\) and"):
        load(path, None, where=where)
    assert f"has no row whose {next(iter(where))!r} is {next(iter(where.values()))!r} (`where`)." in caplog.text


def test_where_compares_dates_and_numbers_by_value(tmp_path: Path) -> None:
    days = [datetime.datetime(2020, 1, day) for day in (1, 2, 3)]
    columns = {"text": ["a", "b", "c"], "day": days, "score": [0.5, 1.0, 2.0], "keep": [True, False, True]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
    for where, texts in (({"day": "2020-01-02"}, "b"), ({"score": [1, 0.5]}, "ab"), ({"keep": True}, "ac")):
        rows = load(str(tmp_path / "rows.parquet"), None, where=where)
        assert "".join(row["text"] for row in rows) == texts


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
    corpus = read(write(tmp_path / "rows.jsonl"), LABELS, streaming=True)
    assert isinstance(corpus, datasets.IterableDataset)
    assert list(corpus) == list(corpus) == EXPECTED


@pytest.mark.parametrize("column", ["text", "pair"])
def test_a_cell_without_a_text_is_refused(tmp_path: Path, column: str) -> None:
    rows = [{"text": "one", "pair": "two", "label": 0}, {"text": "three", "pair": "four", "label": 1}]
    rows[1] = {**rows[1], column: None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(path=str(tmp_path / "rows.jsonl"), text_pair_column="pair")
    with pytest.raises(ValueError, match=rf"Corpus 'here' has None .* column '{column}', line 2 .*Remove such rows"):
        load_corpus("here", config, {"text": "text", "text_pair": "text", "label": "class"}, ["a", "b"])


def test_numbers_that_are_label_names_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "t", "label": n}) + "\n" for n in (1, 2, 3)))
    config = CorpusConfig(path=str(tmp_path / "rows.jsonl"))
    dataset = load_corpus("here", config, {"text": "text", "label": "class"}, ["1", "2", "3"])
    assert dataset["label"][:] == [0, 1, 2]


# Columns of other kinds.


def kinds(
    tmp_path: Path, rows: Sequence[dict[str, Any]], wanted: dict[str, Kind], *, names: Any = None, **fields: Any
) -> Any:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_corpus("law", CorpusConfig(path=str(tmp_path / "rows.jsonl"), **fields), wanted, names)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dot_reaches_into_a_column(tmp_path: Path, streaming: bool) -> None:
    rows = [{"translation": {"en": "one", "fr": "un"}}, {"translation": {"en": "two", "fr": "deux"}}]
    fields = {"text_column": "translation.en", "target_column": "translation.fr", "streaming": streaming}
    found = kinds(tmp_path, rows, {"text": "text", "target": "text"}, **fields)
    assert list(found) == [{"text": "one", "target": "un"}, {"text": "two", "target": "deux"}]
    with pytest.raises(ValueError, match=r"has None where a text belongs: column 'translation\.de', line 1 "):
        list(kinds(tmp_path, rows, {"text": "text"}, text_column="translation.de", streaming=streaming))


def test_columns_of_a_task_of_ones_own(tmp_path: Path) -> None:
    rows = [{"stem": "a?", "options": ["x", "y"], "key": 1}]
    columns: dict[str, Kind] = {"question": "text", "choices": "words", "answer": "anything"}
    names = {"question": "stem", "choices": "options", "answer": "key"}
    found = kinds(tmp_path, rows, columns, columns=names)
    assert list(found) == [{"question": "a?", "choices": ["x", "y"], "answer": 1}]
    with pytest.raises(ValueError, match=r"has no column 'stm'; it has .*Did you mean 'stem'\?"):
        kinds(tmp_path, rows, {"question": "text"}, columns={"question": "stm"})


@pytest.mark.parametrize("streaming", [False, True])
def test_blank_lines_of_prose_are_dropped(tmp_path: Path, streaming: bool) -> None:
    rows = [{"text": "one"}, {"text": ""}, {"text": " \n"}, {"text": "two"}]
    assert list(kinds(tmp_path, rows, {"text": "prose"}, streaming=streaming)) == [{"text": "one"}, {"text": "two"}]
    with pytest.raises(ValueError, match="Corpus 'law' has an empty text: column 'text', line 2 \\("):
        list(kinds(tmp_path, rows, {"text": "text"}, streaming=streaming))


def test_rows_are_counted_as_the_file_has_them(tmp_path: Path) -> None:
    rows = [{"text": "a", "kind": 1}, {"text": "b", "kind": 2}, {"text": "", "kind": 2}]
    with pytest.raises(ValueError, match="has an empty text: column 'text', line 3 \\("):
        kinds(tmp_path, rows, {"text": "text"}, where={"kind": 2})


@pytest.mark.parametrize("streaming", [False, True])
def test_lists_of_labels_numbers_and_tags(tmp_path: Path, streaming: bool) -> None:
    rows = [{"text": "a", "label": ["good"], "score": 3, "tokens": ["a"], "ner_tags": ["B-X"]}]
    found = kinds(tmp_path, rows, {"text": "text", "label": "classes"}, names=LABELS, streaming=streaming)
    assert list(found) == [{"text": "a", "label": [0.0, 1.0]}]
    found = kinds(tmp_path, rows, {"label": "number"}, label_column="score", streaming=streaming)
    assert list(found) == [{"label": 3.0}]
    found = kinds(tmp_path, rows, {"tokens": "words", "tags": "tags"}, names=["O", "B-X"], streaming=streaming)
    assert list(found) == [{"tokens": ["a"], "tags": [1]}]
    with pytest.raises(ValueError, match=r"has the label 'B-X', which is not in .*: column 'ner_tags', line 1 "):
        list(kinds(tmp_path, rows, {"tags": "tags"}, names=["O"], streaming=streaming))


def test_turns_by_other_names_keep_their_order(tmp_path: Path) -> None:
    rows = [{"turns": [{"speaker": "user", "text": "Hi"}, {"speaker": "system", "text": "Hello"}]}]
    fields = {
        "messages_column": "turns",
        "role_key": "speaker",
        "content_key": "text",
        "roles": {"system": "assistant"},
    }
    (found,) = kinds(tmp_path, rows, {"messages": "turns"}, **fields)
    assert [(turn["role"], turn["content"]) for turn in found["messages"]] == [("user", "Hi"), ("assistant", "Hello")]
    with pytest.raises(ValueError, match="a dialogue without an assistant turn: column 'turns', line 1 "):
        kinds(tmp_path, [{"turns": rows[0]["turns"][:1]}], {"messages": "turns"}, **fields)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_what_a_prompt_is_about_follows_it(tmp_path: Path, name: str, streaming: bool) -> None:
    rows = [{"ask": "Add.", "on": on, "text_pair": "no", "say": "3"} for on in ("1 2", "", " ", "7")]
    fields = {"prompt_column": "ask", "text_pair_column": "on", "target_column": "say", "streaming": streaming}
    config = CorpusConfig(path=write(tmp_path / name, rows), **fields)
    found = list(load_corpus("law", config, {"prompt": "text", "target": "text"}))
    assert found == [{"prompt": said, "target": "3"} for said in ("Add.\n\n1 2", "Add.", "Add.", "Add.\n\n7")]
    with pytest.raises(ValueError, match="has no column 'off'"):
        load_corpus("law", replace(config, text_pair_column="off"), {"prompt": "text", "target": "text"})


@pytest.mark.parametrize("streaming", [False, True])
def test_turns_of_several_columns_follow_each_other(tmp_path: Path, streaming: bool) -> None:
    said = [[{"role": "user", "content": f"Hi {n}"}] for n in range(3)]
    rows = [{"prompt": turns, "completion": [{"role": "assistant", "content": "Hello"}]} for turns in said]
    config = CorpusConfig(
        path=write(tmp_path / "a.jsonl", rows), messages_column=["prompt", "completion"], streaming=streaming
    )
    found = [row["messages"] for row in load_corpus("law", config, {"messages": "turns"})]
    assert [[(turn["role"], turn["content"]) for turn in turns] for turns in found] == [
        [("user", f"Hi {n}"), ("assistant", "Hello")] for n in range(3)
    ]
    with pytest.raises(ValueError, match="has no column 'answer'"):
        load_corpus("law", replace(config, messages_column=["prompt", "answer"]), {"messages": "turns"})


SAID = [[("user", f"Hi {number}"), ("assistant", f"Hello {number}")] for number in range(6)]


def in_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["plain.jsonl", "parts.jsonl", "json.csv", "json.jsonl", "both.csv"])
def test_dialogues_are_read_from_json_and_from_parts(tmp_path: Path, form: str, streaming: bool) -> None:
    texts: Any = in_parts if form.startswith(("parts", "both")) else str
    rows: list[Any] = [[{"role": role, "content": texts(text)} for role, text in turns] for turns in SAID]
    path = tmp_path / form
    with path.open("w", newline="", encoding="utf-8") as file:
        if form.endswith(".csv"):
            csv.writer(file).writerows([["messages"], *([json.dumps(row)] for row in rows)])
        else:
            cells = [json.dumps(row) if form.startswith("json") else row for row in rows]
            file.writelines(json.dumps({"messages": cell}) + "\n" for cell in cells)
    config = CorpusConfig(path=str(path), messages_column="messages", streaming=streaming)
    found = list(load_corpus("law", config, {"messages": "turns"}))
    assert [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in found] == SAID
    part = load_corpus("law", replace(config, part=[0, 0.5]), {"messages": "turns"})
    expected = in_part(content_keys([[{"content": f"Hi {n}"}, {}] for n in range(6)]), [0, 0.5])
    assert [row["messages"][0]["content"] for row in part] == [f"Hi {n}" for n in range(6) if expected[n]]
    facts = look_at("file", CorpusConfig(path=str(path)))
    assert choose_columns(facts, {}) == ("chat", {"messages_column": "messages"}, {})


def test_parts_that_are_no_texts_are_refused_with_their_type(tmp_path: Path) -> None:
    seen = [{"type": "text", "text": "What is it?"}, {"type": "image", "url": "a.png"}]
    rows = [{"messages": [{"role": "user", "content": seen}, {"role": "assistant", "content": in_parts("A cat")}]}]
    message = "has a part of type 'image' in turn 0, where only texts are read: column 'messages', line 1 "
    with pytest.raises(ValueError, match=message):
        kinds(tmp_path, rows, {"messages": "turns"}, messages_column="messages")
    with pytest.raises(ValueError, match="The turns of 'messages' have parts of type 'image', and only texts are read"):
        choose_columns(look_at("file", CorpusConfig(path=str(tmp_path / "rows.jsonl"))), {})


def test_rows_of_one_prompt_are_parted_by_what_it_is_about(tmp_path: Path) -> None:
    rows = [{"ask": "Add.", "on": f"{number}", "target": "3"} for number in range(200)]
    config = CorpusConfig(path=write(tmp_path / "a.jsonl", rows), prompt_column="ask", text_pair_column="on")
    parts = [
        load_corpus("law", replace(config, part=part), {"prompt": "text", "target": "text"})["prompt"]
        for part in ([0, 0.5], [0.5, 1])
    ]
    assert sorted([*parts[0], *parts[1]]) == sorted(f"Add.\n\n{number}" for number in range(200))
    assert 70 < len(parts[0]) < 130


@pytest.mark.parametrize("streaming", [False, True])
def test_faults_of_encoding_have_corpus_column_and_row(tmp_path: Path, streaming: bool) -> None:
    config = CorpusConfig(path=str(tmp_path / "rows.jsonl"), target_column="summary", streaming=streaming)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"summary": f"s{row}"}) + "\n" for row in range(1500)))
    loaded = load_corpus("law", config, {"target": "text"})

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "s1203" in batch["target"]:
            raise RowError(batch["target"].index("s1203"), "target", "too much", "Cut it.")
        return {"length": [len(text) for text in batch["target"]]}

    with pytest.raises(
        ValueError, match=r"^Corpus 'law' has too much: column 'summary', line 1204 \(.*rows\.jsonl, spl"
    ):
        list(encode_corpus("law", loaded, config, encode, ["target"]))
    found = encode_corpus("law", loaded.take(2) if streaming else loaded.select(range(2)), config, encode, ["target"])
    assert list(found) == [{"length": 2}, {"length": 2}]


@pytest.mark.parametrize("streaming", [False, True])
def test_conditions_and_labels_reach_inside_too(tmp_path: Path, streaming: bool) -> None:
    rows = [{"meta": {"lang": lang, "label": label}, "text": lang} for lang, label in (("en", "good"), ("fr", "bad"))]
    wanted: dict[str, Kind] = {"text": "text", "label": "class"}
    fields = {"where": {"meta.lang": ["fr"]}, "label_column": "meta.label", "streaming": streaming}
    assert list(kinds(tmp_path, rows, wanted, names=LABELS, **fields)) == [{"text": "fr", "label": 0}]
    fields = {"text_column": "meta.lang", "label_column": "meta.label", "streaming": streaming}
    found = list(kinds(tmp_path, rows, wanted, names=LABELS, **fields))
    assert found == [{"text": "en", "label": 1}, {"text": "fr", "label": 0}]


def test_classes_inside_a_column_go_by_their_names(tmp_path: Path) -> None:
    inner = {
        "label": datasets.ClassLabel(names=["good", "bad"]),
        "tags": datasets.List(datasets.ClassLabel(names=["b"])),
    }
    features = datasets.Features({"meta": inner})
    rows = {"meta": [{"label": 0, "tags": [0]}, {"label": 1, "tags": []}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    config = CorpusConfig(path=str(tmp_path / "rows.parquet"), label_column="meta.label", tags_column="meta.tags")
    assert load_corpus("law", config, {"label": "class"}, LABELS)["label"][:] == [1, 0]
    assert load_corpus("law", config, {"tags": "tags"}, ["a", "b"])["tags"][:] == [[1], []]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_may_be_called_label(tmp_path: Path, streaming: bool) -> None:
    fields = {"text_column": "label", "label_column": "verdict", "streaming": streaming}
    wanted: dict[str, Kind] = {"text": "text", "label": "class"}
    found = kinds(tmp_path, [{"label": "one", "verdict": "good"}], wanted, names=LABELS, **fields)
    assert list(found) == [{"text": "one", "label": 1}]


@pytest.mark.slow
def test_what_other_code_has_kept_is_not_read(tmp_path: Path) -> None:
    """`datasets` keeps the results of a function by its name, whatever it did then."""
    write(tmp_path / "rows.jsonl", [{"text": "a", "label": "bad"}, {"text": "b", "label": "good"}])
    shutil.copytree(Path(hf_interp.__file__).parent, tmp_path / "other" / "hf_interp")
    changed = tmp_path / "other" / "hf_interp" / "tasks" / "corpora" / "labels.py"
    found = changed.read_text("utf-8").replace("return next(iter(readings.values()))", "return 0")
    changed.write_text(found, "utf-8")
    code = (
        "from hf_interp.tasks.corpora.loading import load_corpus; from hf_interp.tasks.recipe import CorpusConfig;"
        "rows = load_corpus('a', CorpusConfig(path='rows.jsonl'), {'text': 'text', 'label': 'class'}, ['bad', 'good']);"
        "print(rows['label'][:])"
    )
    printed = []
    for home in (tmp_path / "other", Path(hf_interp.__file__).parents[1]):
        own = {**os.environ, "PYTHONPATH": str(home), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", code]
        printed.append(subprocess.run(command, env=own, cwd=tmp_path, stdout=-1, text=True, check=True).stdout.strip())
    assert printed == ["[0, 0]", "[0, 1]"]
