"""Files of every format: what is read of them, and what is said about those that cannot be read."""

import bz2
import gzip
import io
import json
import logging
import lzma
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_recipes import toy_tokenizer

from hf_interp.tasks.build import tokenise
from hf_interp.tasks.corpora.columns import Kind
from hf_interp.tasks.corpora.loading import encode_corpus, load_corpus
from hf_interp.tasks.recipe import CorpusConfig, Recipe

ROWS = [('"good" film', 1), ('"bad', 0), ("null", 1), ("so, so", 0), ("NA", 1), ('"a b', 0)]
EXPECTED = [{"text": text, "label": label} for text, label in ROWS]
NAMES = ["neg", "pos"]
PLAIN = "".join(json.dumps({"text": text, "label": NAMES[label]}) + "\n" for text, label in ROWS).encode()


def load(path: str | list[str], columns: Any = None, names: Any = NAMES, **fields: Any) -> list[dict[str, Any]]:
    kinds: dict[str, Kind] = columns or {"text": "text", "label": "class"}
    return list(load_corpus("law", CorpusConfig(path=path, **fields), kinds, names))


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tsv_file_has_no_quotes_and_words_for_nothing_are_words(tmp_path: Path, streaming: bool) -> None:
    lines = "".join(f"{text}\t{NAMES[label]}\n" for text, label in ROWS)
    assert load(write(tmp_path / "rows.tsv", f"text\tlabel\n{lines}"), streaming=streaming) == EXPECTED
    headless = write(tmp_path / "bare.tab", lines)
    fields: dict[str, Any] = {"format": "tsv", "header": False, "column_names": ["text", "label"]}
    assert load(headless, **fields, streaming=streaming) == EXPECTED
    assert load(write(tmp_path / "rows.jsonl", PLAIN), streaming=streaming) == EXPECTED


@pytest.fixture
def box() -> Iterator[str]:
    """A place in fsspec's memory with two files of Parquet, a headless table and one in JSON."""
    files = fsspec.filesystem("memory")
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"text": text, "label": NAMES[label]} for text, label in ROWS]), table)
    lines = "".join(f"{text}\t{NAMES[label]}\n" for text, label in ROWS).encode()
    contents = {"1.parquet": table.getvalue(), "2.parquet": table.getvalue(), "bare.tsv": lines, "rows.jsonl": PLAIN}
    for name, content in contents.items():
        files.pipe(f"/box/{name}", content)
    yield "memory://box"
    files.rm("/box", recursive=True)


def test_files_elsewhere_are_found_by_fsspec(box: str, tmp_path: Path) -> None:
    assert load(f"{box}/1.parquet", streaming=True) == EXPECTED
    assert load(f"{box}/*.parquet", streaming=True) == load([f"{box}/1.parquet", f"{box}/2.parquet"], streaming=True)
    assert load(f"{box}/rows.jsonl", streaming=True) == EXPECTED
    local = write(tmp_path / "rows.parquet", fsspec.filesystem("memory").cat("/box/1.parquet"))
    assert load(f"file://{local}") == EXPECTED
    with pytest.raises(ValueError, match=r"Corpus 'law' .* cannot be loaded: Unable to find .*lost\.parquet"):
        load(f"{box}/lost.parquet", streaming=True)
    with pytest.raises(ValueError, match=r"Corpus 'law' .* cannot be loaded: there is no .*lost\.jsonl"):
        load(f"{box}/lost.jsonl", streaming=True)
    with pytest.raises(ValueError, match=r"The format of 'memory://box/rows' .* is unknown. Say its `format`"):
        load(f"{box}/rows", streaming=True)


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ('text,label\n"a, ""b""\nc",pos\n', {}, [('a, "b"\nc', 1)]),
        ('text,label\n"a,pos\nb",neg\n', {"quote_char": ""}, [('"a', 1), ('b"', 0)]),
        ("text;label\n'a;b';pos\n", {"delimiter": ";", "quote_char": "'"}, [("a;b", 1)]),
        ("x,y\na,pos\n", {"column_names": ["text", "label"]}, [("a", 1)]),
        ("text,label\n7,pos\n1.50,neg\n", {}, [("7", 1), ("1.50", 0)]),
        ("label,text\npos,a\n", {}, [("a", 1)]),
    ],
)
def test_cells_are_read_as_they_are_written(tmp_path: Path, text: str, fields: Any, expected: list[Any]) -> None:
    path = write(tmp_path / "rows.csv", text)
    assert load(path, **fields) == [{"text": text, "label": label} for text, label in expected]


@pytest.mark.parametrize(
    ("text", "rows", "lines"),
    [
        ('text,label\n"a,pos\nb,neg\nc",pos\nd,neg\n\n', 2, 4),  # closed by chance, where a text ends in a quote
        ('text,label\n"a,x\nb,y\nc,"z",pos\n', 1, 3),  # closed where a text begins with one
    ],
)
def test_a_quote_that_is_not_closed_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, rows: int, lines: int
) -> None:
    path = write(tmp_path / "rows.csv", text)
    with caplog.at_level(logging.WARNING):
        assert len(load(path)) == rows
    assert f"Corpus 'law' ({path}) has {rows} rows in {lines} lines, and a quote seems not to be closed." in caplog.text


def test_quotes_that_are_closed_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\n"a, b\nc,d",pos\n"He said ""no"",\nneg",neg\n')
    with caplog.at_level(logging.WARNING):
        assert len(load(path)) == 2
    assert len(load(write(tmp_path / "raw.csv", 'text,label\n"a,pos\nb",neg\n'), quote_char="")) == 2
    assert not caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.jsonl.xz", "a.ndjson", "A.JSONL.GZ", "a.Json.gz"])
def test_names_tell_formats_and_compressions(tmp_path: Path, name: str, streaming: bool) -> None:
    pack = {"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress}.get(name.lower().rpartition(".")[2], bytes)
    assert load(write(tmp_path / name, pack(PLAIN)), streaming=streaming) == EXPECTED


def test_arrow_and_conll_files(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a", "label": "pos"}]).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert load(str(file)) == [{"text": "a", "label": 1}]
    path = write(tmp_path / "a.conll", "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\n")
    columns = {"tokens": "words", "tags": "tags"}
    expected = [{"tokens": ["EU", "rejects"], "tags": [1, 0]}, {"tokens": ["Peter"], "tags": [2]}]
    assert load(path, columns, names=["O", "B-ORG", "B-PER"]) == expected
    fields = {"column_names": ["word", "pos", "tag"], "tokens_column": "word", "tags_column": "pos"}
    assert load(path, columns, names=["NNP", "VBZ"], **fields)[0]["tags"] == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (None, ["One", "two", "Three"]),
        ("line", ["One", "two", "Three"]),
        ("paragraph", ["One\ntwo", "Three\n"]),
        ("file", ["One\ntwo\n\nThree\n"]),
    ],
)
def test_documents_of_a_text_file(tmp_path: Path, document: str | None, expected: list[str], streaming: bool) -> None:
    path = write(tmp_path / "rows.txt", "One\ntwo\n\nThree\n")
    found = load(path, {"text": "prose"}, document=document, streaming=streaming)
    assert found == [{"text": text} for text in expected]


@pytest.mark.parametrize(
    ("task", "fields", "examples"),
    [
        ("causal-lm", {}, [[5, 6, 7], [5, 6, 3]]),  # the whole file, with one end
        ("causal-lm", {"document": "line"}, [[5, 6, 3], [7, 5, 3]]),
        ("causal-lm", {"packing": False}, [[5, 6, 3], [7, 5, 3], [6, 3]]),
        ("masked-lm", {}, [[2, 5, 6], [3, 2, 7], [5, 3, 2]]),
    ],
)
def test_a_text_file_is_one_document_for_a_packed_causal_model(
    tmp_path: Path, task: str, fields: dict[str, Any], examples: list[list[int]]
) -> None:
    config = CorpusConfig(path=write(tmp_path / "rows.txt", "the a\nmodel the\n\na\n"), document=fields.get("document"))
    own = {name: value for name, value in fields.items() if name != "document"}
    recipe = Recipe(model_name_or_path="here", corpora={"law": config}, task=task, max_length=3, **own)
    special = {"eos_token": "[SEP]"} if task == "causal-lm" else {}
    found = tokenise("law", config, recipe, toy_tokenizer(**special)).examples
    assert [row["input_ids"] for row in found] == examples


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
def test_the_encoding_of_a_file_is_said(tmp_path: Path, suffix: str) -> None:
    text = {"jsonl": '{"text": "x"}\n{"text": "é"}\n', "txt": "x\né\n"}.get(suffix, "text\nx\né\n")
    path = write(tmp_path / f"rows.{suffix}", text.encode("latin-1"))
    assert load(path, {"text": "text"}, encoding="latin-1") == [{"text": "x"}, {"text": "é"}]
    line = 2 if suffix in ("jsonl", "txt") else 3
    with pytest.raises(
        ValueError, match=rf"'law'.*rows\.{suffix}' is not utf-8: it has the byte 0xe9 in line {line}\. Say"
    ):
        load(path, {"text": "text"})
    with pytest.raises(ValueError, match="`encoding` of corpus 'law' must be one that Python knows, got 'klingon'"):
        load(path, {"text": "text"}, encoding="klingon")


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_break_off_or_differ_are_named(tmp_path: Path, streaming: bool) -> None:
    cut = write(tmp_path / "cut.jsonl.gz", gzip.compress(PLAIN * 50)[:-60])
    with pytest.raises(ValueError, match=r"Corpus 'law' \(.*cut\.jsonl\.gz\) cannot be loaded: Compressed file ended"):
        load(cut, streaming=streaming)
    one = write(tmp_path / "one.jsonl", '{"text": "a", "label": "pos"}\n')
    two = write(tmp_path / "two.jsonl", '{"text": "b", "label": "neg", "more": 1}\n')
    message = (
        r"two\.jsonl' has the columns \['text', 'label', 'more'\], but '.*one\.jsonl' has \['text', 'label'\]\. Give"
    )
    with pytest.raises(ValueError, match=message):
        load([one, two], streaming=streaming)
    with pytest.raises(ValueError, match=r"Corpus 'law' \(.*empty\.jsonl\) has no rows"):
        load(write(tmp_path / "empty.jsonl", ""), streaming=streaming)


COUNTED = "row 2 (counted from 1)"
SLICED = {"split": "train[1:]"}
HEADLESS = {"header": False, "column_names": ["text", "n"]}
PLACES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "rows.jsonl": (
        '{"text": "one"}\n\n{"text": " "}\n{"text": "two"}\n\n{"text": ""}\n',
        {},
        ["line 3", "line 6"],
        ["one", "two"],
    ),
    "rows.csv": ('text,n\n"a\nb",1\n\n"",2\nc,3\n" ",4\n', {}, ["line 5", "line 7"], ["a\nb", "c"]),
    "headless.csv": ("text,1\n,2\n", HEADLESS, ["line 2"], ["text"]),
    "rows.tsv": ('text\tn\n"one\tx\n\t"y\n', {}, ["line 3"], ['"one']),
    "rows.txt": ("one\n\ntwo\n \n", {}, ["line 2", "line 4"], ["one", "two"]),
    "paragraphs.txt": ("one\n\n \n\ntwo", {"document": "paragraph"}, [COUNTED], ["one", "two"]),
    "rows.json": ('[{"text": "one"}, {"text": ""}]', {}, [COUNTED], ["one"]),
    "sliced.jsonl": ('{"text": "0"}\n{"text": "1"}\n{"text": ""}\n', SLICED, [COUNTED], ["1"]),
    "where.jsonl": (
        '{"text": "", "n": 1}\n{"text": "", "n": 2}\n{"text": "a", "n": 2}',
        {"where": {"n": 2}},
        ["line 2"],
        ["a"],
    ),
}
"""By name a file, how it is read, where its blank texts stand, and its other texts."""


@pytest.mark.parametrize("name", PLACES)
def test_faulty_rows_are_told_by_their_lines_or_left_out(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, fields, places, kept = PLACES[name]
    config = CorpusConfig(path=write(tmp_path / name, text), **fields)
    fault = "None where a text belongs" if name.endswith((".csv", ".tsv")) else "an empty text"
    with pytest.raises(ValueError, match=f"Corpus 'law' has {fault}: column 'text', ") as caught:
        load_corpus("law", config, {"text": "text"})
    where = str(caught.value).partition("column 'text', ")[2]
    assert where.startswith(f"{places[0]} ({config.path}")
    assert (f" In all 2 rows are refused: {', '.join(places)}." in where) == (len(places) == 2)
    assert "`drop_faulty: true` leaves such rows out." in where
    left = load_corpus("law", replace(config, drop_faulty=True), {"text": "text"})
    assert left["text"][:] == kept
    what = f"{len(places)} of {len(places) + len(kept)} rows, of which the first has {fault}: {', '.join(places)}."
    assert f"Corpus 'law' ({config.path}) leaves out {what}" in caplog.text


def test_a_row_of_several_files_is_told_with_its_file(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", '{"text": "one"}\n' * 2 + '{"text": ""}\n' * 4) for name in "ab"]
    with pytest.raises(ValueError, match="In all 8 rows are refused: ") as caught:
        load_corpus("law", CorpusConfig(path=files), {"text": "text"})
    places = [*(f"line {line} of {files[0]}" for line in range(3, 7)), f"line 3 of {files[1]} and 3 more."]
    assert ", ".join(places) in str(caught.value)
    texts = [write(tmp_path / f"{name}.txt", text) for name, text in (("c", "one"), ("d", " \n"))]
    with pytest.raises(ValueError, match=rf"has an empty text: column 'text', {texts[1]} \("):
        load_corpus("law", CorpusConfig(path=texts, document="file"), {"text": "text"})


def test_a_sentence_is_told_by_its_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "-DOCSTART- O\n\nin O\nRome B-LOC\n\n\nat O\nhome I-LOC\n\nOslo I-LOC\n")
    with pytest.raises(ValueError, match=r"'ner_tags', line 7 \(.*In all 2 rows are refused: line 7, line 10\."):
        load_corpus("law", CorpusConfig(path=path), {"tokens": "words", "tags": "tags"}, ["O", "B-LOC", "I-LOC"])


def test_faulty_rows_of_a_stream_are_not_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": ""}\n')
    with pytest.raises(ValueError, match="`drop_faulty` of corpus 'law' needs all rows at hand"):
        load_corpus("law", CorpusConfig(path=path, streaming=True, drop_faulty=True), {"text": "text"})


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_a_line_that_is_no_json_is_told_by_its_number(tmp_path: Path, name: str) -> None:
    text = b'{"text": "a", "label": "pos"}\n\n' * 3 + b'{"text": "broken\n' + b'{"text": "b", "label": "neg"}\n'
    path = write(tmp_path / name, gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(ValueError, match=r"line 7 of '.*' is no JSON \(.*\): '\{\"text\": \"broken'\. Mend the line"):
        load(path)


def test_the_first_rows_of_a_stream_are_read_before_a_run(tmp_path: Path) -> None:
    good = '{"text": "a", "label": "pos"}\n'
    path = write(tmp_path / "late.jsonl", good * 50 + '{"text": " ", "label": "pos"}\n')
    config = CorpusConfig(path=path, streaming=True)
    loaded = load_corpus("law", config, {"text": "text", "label": "class"}, NAMES)
    with pytest.raises(ValueError, match=r"Corpus 'law' has an empty text: column 'text', line 51 \(.*late"):
        encode_corpus("law", loaded, config, lambda batch: {"length": [len(text) for text in batch["text"]]}, ["text"])
    gone = CorpusConfig(path=path, streaming=True, where={"label": "neg"})
    loaded = load_corpus("law", gone, {"text": "text"})
    with pytest.raises(ValueError, match=r"has no rows left\. Check its split, `where` \(\{'label': 'neg'\}\)"):
        encode_corpus("law", loaded, gone, lambda batch: batch, [])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("a.csv", {"header": False}, "Corpus 'law' has `header: false` and needs `column_names`"),
        (
            "a.csv",
            {"quote_char": "''"},
            "`quote_char` of corpus 'law' must be one character or empty, .* got \"''\" and ','",
        ),
        ("a.csv", {"delimiter": ""}, "and `delimiter` one, got '\"' and ''"),
        ("a.jsonl", {"delimiter": ";"}, "`delimiter`, .* are for CSV, TSV and CoNLL files, but .* 'law' are json"),
        (
            "a.jsonl",
            {"format": "jsn"},
            r"`format` of corpus 'law' must be one of json, .*, got 'jsn'\. Did you mean 'json'",
        ),
        ("a.txt", {"document": "page"}, "`document` of corpus 'law' must be one of line, paragraph, file, got 'page'"),
    ],
)
def test_fields_that_do_not_fit_the_files_are_refused(tmp_path: Path, name: str, fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / name, PLAIN), **fields)
