"""What is seen in files before there is a recipe: how they are to be read, and what their columns hold."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_media import write_folder

from hf_interp.commands.column_choice import choose_columns
from hf_interp.commands.file_facts import Facts, look_at
from hf_interp.tasks.recipe import CorpusConfig

TABLE = [("so good, so far", "pos"), ("bad café", "neg"), ("not so bad", "pos"), ("meh, at best", "neg")]


def look(path: Path, text: str | bytes, **fields: Any) -> Facts:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return look_at("file", CorpusConfig(path=str(path), **fields))


def rows(*each: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in each)


@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("a.csv", '"{}","{}"', {"header": False, "column_names": ["column_1", "column_2"]}),
        ("a.csv", "{};{}", {"delimiter": ";", "header": False, "column_names": ["column_1", "column_2"]}),
        ("a.tsv", "{}\t{}", {"header": False, "column_names": ["column_1", "column_2"]}),
        ("b.csv", '"{}","{}"', {}),
        ("b.csv", "{};{}", {"delimiter": ";"}),
    ],
)
def test_tables_are_read_with_their_delimiter_and_header(
    tmp_path: Path, name: str, form: str, expected: dict[str, Any]
) -> None:
    head = [("the words", "mood")] if name.startswith("b") else []
    lines = "".join(form.format(*row) + "\n" for row in [*head, *TABLE])
    for encoding, fields in (("utf-8", {}), ("latin-1", {"encoding": "cp1252"})):
        found = look(tmp_path / name, lines.encode(encoding))
        changed = {key: value for key, value in vars(found.config).items() if value != getattr(CorpusConfig, key, None)}
        assert changed == {"path": str(tmp_path / name), **expected, **fields}
        assert [column.kind for column in found.columns.values()] == ["text", "label"]
        assert [tuple(row) for row in zip(*(c.values for c in found.columns.values()), strict=True)] == TABLE


@pytest.mark.parametrize(
    ("lines", "has_header"),
    [
        (
            [
                "how long has he had these symptoms?\tdepuis quand a-t-il ces symptômes ?",
                "yes\toui",
                "since monday morning, i think, or so\tdepuis",
            ],
            False,
        ),
        (["这家店的东西很好吃\t1", "送来的时候都已经凉了\t0", "包装不错味道一般\t1"], False),
        (["评论内容\t标签", "送来的时候都已经凉了\t0", "包装不错味道一般\t1"], True),
        (["how satisfied are you with the service?\twho", "very\tann", "not much\tbob"], True),
        (
            ["the english sentence\tthe french one", "how long has he had these symptoms?\tdepuis quand", "yes\toui"],
            True,
        ),
    ],
)
def test_a_first_line_of_texts_is_no_header(tmp_path: Path, lines: list[str], has_header: bool) -> None:
    found = look(tmp_path / "a.tsv", "".join(f"{line}\n" for line in lines))
    assert (found.config.header, found.rows) == (has_header, len(lines) - has_header)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "one line\nand another\n", {"document": "line"}),
        ("a.txt", "one text\nof two lines\n\nand another\n", {"document": "paragraph"}),
        ("a.txt", "Rome B-LOC\nis O\n\nhere O\n", {"format": "conll"}),
        ("a.dat", '{"text": "a b c"}\n', {"format": "json"}),
    ],
)
def test_texts_are_told_from_tags_and_lines(tmp_path: Path, name: str, text: str, expected: dict[str, Any]) -> None:
    found = look(tmp_path / name, text)
    assert {key: getattr(found.config, key) for key in expected} == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_of_16_bits_a_character_is_told_by_its_mark(tmp_path: Path, encoding: str) -> None:
    text = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in TABLE)
    found = look(tmp_path / "a.tsv", ("\ufeff" * encoding.startswith("utf-16-") + text).encode(encoding))
    assert found.config.encoding == "utf-16"
    assert found.columns["label"].values == [label for _, label in TABLE]


def test_a_folder_of_texts_has_a_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt"):
        (tmp_path / name).write_text("a text\n\nof two paragraphs\n", "utf-8")
    found = look_at("file", CorpusConfig(path=str(tmp_path)))
    assert (found.rows, found.config.document, found.config.path) == (2, "file", f"{tmp_path}/**/*.txt")


def test_a_folder_of_images_may_hold_a_text_about_them(tmp_path: Path) -> None:
    write_folder(tmp_path, range(4))
    (tmp_path / "readme.txt").write_text("where they are from\n", "utf-8")
    found = look_at("file", CorpusConfig(path=str(tmp_path)))
    assert {name: column.kind for name, column in found.columns.items()} == {"image": "image", "label": "label"}


def test_columns_are_told_by_their_values(tmp_path: Path) -> None:
    found = look(
        tmp_path / "a.jsonl",
        rows(
            *(
                {
                    "id": f"x{number}",
                    "n": number,
                    "text": f"word {number} 語",
                    "stars": number % 3,
                    "score": number / 7,
                    "ok": bool(number % 2),
                    "words": ["a", "b"],
                    "none": None,
                    "pair": {"en": f"good {number}", "fr": f"bon {number}"},
                    "turns": [{"role": "user", "content": "hi"}],
                }
                for number in range(12)
            )
        ),
    )
    assert {name: column.kind for name, column in found.columns.items()} == {
        "id": "id",
        "n": "id",
        "text": "text",
        "stars": "label",
        "score": "number",
        "ok": "label",
        "words": "list",
        "none": "empty",
        "pair.en": "text",
        "pair.fr": "text",
        "turns": "turns",
    }
    assert (found.columns["none"].blank, found.columns["stars"].counts()) == (12, {"0": 4, "1": 4, "2": 4})


MOODS = [{"text": f"a text {number}", "mood": "ab"[number % 2]} for number in range(12)]
SAID = [[{"from": "human", "value": f"hi {number}"}, {"from": "gpt", "value": "hello"}] for number in range(12)]


@pytest.mark.parametrize(
    ("row", "family", "task", "columns"),
    [
        (lambda n: MOODS[n], "encoder", "sequence-classification", {"text_column": "text", "label_column": "mood"}),
        (
            lambda n: {**MOODS[n], "label": n % 2, "topic": "xyz"[n % 3]},
            "encoder",
            "sequence-classification",
            {"text_column": "text", "label_column": "topic"},
        ),
        (
            lambda n: {"premise": f"a text {n}", "hypothesis": f"it is {n}", "label": n % 3},
            "encoder",
            "sequence-classification",
            {"text_column": "premise", "text_pair_column": "hypothesis", "label_column": "label"},
        ),
        (
            lambda n: {"words": ["in", f"Rome {n}"], "pos": ["IN", "NN"], "tags": ["O", "B-LOC"]},
            "encoder",
            "token-classification",
            {"tokens_column": "words", "tags_column": "tags"},
        ),
        (
            lambda n: {"t": {"en": f"good {n}", "fr": f"bon jour {n}"}},
            "encoder-decoder",
            "seq2seq",
            {"text_column": "t.en", "target_column": "t.fr"},
        ),
        (
            lambda n: {"conversations": SAID[n]},
            "decoder",
            "chat",
            {
                "messages_column": "conversations",
                "role_key": "from",
                "content_key": "value",
                "roles": {"human": "user", "gpt": "assistant"},
            },
        ),
        (
            lambda n: {"Instruction": f"do it {n}", "output": f"it is done {n}"},
            "decoder",
            "chat",
            {"prompt_column": "Instruction", "target_column": "output"},
        ),
        (
            lambda n: {"instruction": "Do it.", "input": f"this {n}" if n % 2 else "", "output": f"it is done {n}"},
            "decoder",
            "chat",
            {"prompt_column": "instruction", "text_pair_column": "input", "target_column": "output"},
        ),
        (
            lambda n: {"text": f"a text {n}", "mood": "ab"[n % 2], "day": f"2024-01-0{n % 4 + 1}"},
            "encoder",
            "sequence-classification",
            {"text_column": "text", "label_column": "mood"},
        ),
        (
            lambda n: {
                "prompt": [{"role": "user", "content": f"do it {n}"}],
                "completion": [{"role": "assistant", "content": f"it is done {n}"}],
            },
            "decoder",
            "chat",
            {"messages_column": ["prompt", "completion"]},
        ),
        (lambda n: {"text": f"a text {n}"}, "decoder", "causal-lm", {"text_column": "text"}),
        (lambda n: {"text": f"a text {n}"}, "encoder", "masked-lm", {"text_column": "text"}),
    ],
)
def test_a_task_is_chosen_by_what_there_is(
    tmp_path: Path, row: Any, family: str, task: str, columns: dict[str, Any]
) -> None:
    facts = look(tmp_path / "a.jsonl", rows(*map(row, range(12))))
    given = {"label_column": "topic"} if columns.get("label_column") == "topic" else {}
    assert choose_columns(facts, given, family=family)[:2] == (task, columns)


@pytest.mark.parametrize(
    ("row", "family", "message"),
    [
        (
            lambda n: {"n": n},
            "encoder",
            r"is for cannot be told. It has n \(id\), and the model is an encoder. Say --task",
        ),
        (lambda n: {**MOODS[n], "kind": "xyz"[n % 3]}, "encoder", "may be its `label_column`: 'mood', 'kind'"),
        (lambda n: {**MOODS[n], "review": f"it is {n}"}, "encoder", "may be its `text_column`: 'text', 'review'"),
        (lambda n: MOODS[n], "decoder", "Say --task sequence-classification to give it a head, or --task causal-lm"),
        (lambda n: {"a": SAID[n], "b": SAID[n]}, "decoder", "Say which, such as --messages_column a"),
        (lambda n: {"a": [{"by": "ann", "is": "hi"}]}, "decoder", "Say who they are: --roles '{ann: user}'"),
    ],
)
def test_what_can_be_read_in_two_ways_names_the_flag_that_settles_it(
    tmp_path: Path, row: Any, family: str, message: str
) -> None:
    facts = look(tmp_path / "a.jsonl", rows(*map(row, range(12))))
    with pytest.raises(ValueError, match=message):
        choose_columns(facts, {}, family=family)


def test_rows_within_one_object_are_told_with_how_to_take_them_out(tmp_path: Path) -> None:
    inner = [{"q": "how is it", "a": "good"}] * 3
    with pytest.raises(ValueError, match=r"is one object, whose 'data' seems to hold the rows.*jq -c '.data\[\]'"):
        look(tmp_path / "a.json", json.dumps({"version": 1, "data": inner}))
    assert look(tmp_path / "b.json", rows({"messages": [{"role": "user", "content": "hi"}]})).rows == 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *[(day, "date") for day in ("2024-01-31", "31.1.2024", "1/31/2024", "2024/1/31", "2024-01-31T10:00:00Z")],
        *[("2024", "label"), ("1.5", "number"), ("31.1.24", "label"), ("2024-01-31 or so", "label")],
    ],
)
def test_dates_are_told_from_labels(tmp_path: Path, value: str, kind: str) -> None:
    facts = look(tmp_path / "a.jsonl", rows(*({"text": f"a text {n}", "when": value} for n in range(12))))
    assert facts.columns["when"].kind == kind


def test_of_labels_that_say_the_same_the_one_in_words_is_taken(tmp_path: Path) -> None:
    facts = look(tmp_path / "a.jsonl", rows(*({**row, "n": "ab".index(row["mood"])} for row in MOODS)))
    assert choose_columns(facts, {}, family="encoder").columns["label_column"] == "mood"
