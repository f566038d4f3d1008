"""Values of columns: what a file holds against what a task wants."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_interp.tasks.corpora.columns import check_tag_set, class_names, converter, first_fault, is_iob2
from hf_interp.tasks.corpora.labels import BadValueError, LabelResolver
from hf_interp.tasks.corpora.loading import load_corpus
from hf_interp.tasks.recipe import CorpusConfig

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]


def convert(kind: Any, value: Any, names: list[str] | None = None, feature: Any = None, **fields: Any) -> Any:
    return converter(kind, CorpusConfig(path="rows.jsonl", **fields), names, feature)(value)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("text", " a ", " a "),
        ("any text", "", ""),
        ("prose", "a", "a"),
        ("words", ["a", "b"], ["a", "b"]),
        ("number", 3, 3.0),
        ("number", -0.5, -0.5),
        ("anything", {"a": 1}, {"a": 1}),
        ("turns", [{"role": "assistant", "content": "Hi"}], [{"role": "assistant", "content": "Hi", "more": ""}]),
        ("tools", None, "[]"),
        ("tools", '[{"name": "add"}]', '[{"name": "add"}]'),
        ("tools", [{"name": "add", "parameters": None}], '[{"name": "add"}]'),
    ],
)
def test_values_of_every_kind(kind: str, value: Any, expected: Any) -> None:
    found = convert(kind, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        ("text", None, "None where a text belongs"),
        ("text", 3, "3 where a text belongs"),
        ("text", " \n", "an empty text"),
        ("any text", None, "None where a text belongs"),
        ("words", "a b", "'a b' where a list of words belongs"),
        ("words", [], r"\[\] where a list of words belongs"),
        ("words", ["a", None], r"\['a', None\] where a list of words belongs"),
        ("number", "3", "'3' where a number belongs"),
        ("number", True, "True where a number belongs"),
        ("number", float("nan"), "nan where a number belongs"),
        ("number", float("-inf"), "-inf where a number belongs"),
        ("classes", "a", "'a' where a list of labels belongs"),
        ("tags", None, "None where a list of tags belongs"),
        ("turns", "Hi", "'Hi' where a list of turns belongs"),
        ("text", ["x" * 200], r"\['x+\.\.\. where a text belongs"),
    ],
)
def test_values_of_another_kind_are_refused(kind: str, value: Any, what: str) -> None:
    with pytest.raises(BadValueError, match=f"^{what}$") as caught:
        convert(kind, value, ["a", "b"])
    assert "Remove such rows from the file, or name another column." in caught.value.remedy


@pytest.mark.parametrize(
    ("value", "fields", "expected"),
    [
        (["b"], {}, [0.0, 1.0, 0.0]),
        ([], {}, [0.0, 0.0, 0.0]),
        (["a", "c", "a"], {}, [1.0, 0.0, 1.0]),
        ([2, 0], {}, [1.0, 0.0, 1.0]),
        (["x", "b"], {"label_map": {"x": None}}, [0.0, 1.0, 0.0]),
        (["x"], {"label_map": {"x": "c"}}, [0.0, 0.0, 1.0]),
    ],
)
def test_several_labels(value: Any, fields: dict[str, Any], expected: list[float]) -> None:
    assert convert("classes", value, ["a", "b", "c"], **fields) == expected


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(BadValueError, match=r"^an empty word at place 1 of 3$"):
        convert("words", ["a", " ", "b"])


def test_a_label_that_is_not_in_the_list_is_refused() -> None:
    with pytest.raises(BadValueError, match=r"the label 'd', which is not in `label_names` \(\['a', 'b'\]\)") as caught:
        convert("classes", ["a", "d"], ["a", "b"])
    assert "in `label_map`, or to null to leave it out; `label_map` is None." in caught.value.remedy
    with pytest.raises(BadValueError, match="the label 'd'") as caught:
        convert("tags", ["a", "d"], ["a", "b"])
    assert caught.value.remedy == "Map it to one of them in `label_map`; `label_map` is None."


def test_tags_by_name_by_number_and_by_the_names_of_their_classes() -> None:
    assert convert("tags", ["B-PER", "I-PER", "O"], TAGS) == [1, 2, 0]
    assert convert("tags", [1, 2, 0], TAGS) == [1, 2, 0]
    other = datasets.List(datasets.ClassLabel(names=["B-ORG", "O"]))
    assert class_names(other) == ["B-ORG", "O"]
    assert convert("tags", [1, 0], TAGS, other) == [0, 3]
    assert convert("tags", ["B-MISC", "O"], TAGS, label_map={"B-MISC": "O"}) == [0, 0]


def test_a_tag_that_is_mapped_to_nothing_is_refused() -> None:
    with pytest.raises(BadValueError, match="the tag 'B-MISC', which `label_map` maps to null") as caught:
        convert("tags", ["O", "B-MISC"], TAGS, label_map={"B-MISC": None})
    assert "map it to 'O'" in caught.value.remedy


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        ([], None),
        (["O", "B-PER", "I-PER", "I-PER", "B-PER", "O"], None),
        (["I-PER"], 0),
        (["O", "I-PER"], 1),
        (["B-PER", "I-ORG"], 1),
        (["B-PER", "O", "I-PER"], 2),
    ],
)
def test_tags_that_are_not_iob2(tags: list[str], fault: int | None) -> None:
    assert first_fault(tags) == fault
    if fault is None:
        assert convert("tags", tags, TAGS) == [TAGS.index(tag) for tag in tags]
        return
    before = tags[fault - 1] if fault else "the beginning"
    message = f"tags that are not IOB2: '{tags[fault]}' at place {fault} follows '{before}'"
    with pytest.raises(BadValueError, match=message) as caught:
        convert("tags", tags, TAGS)
    assert f"Write 'B-{tags[fault][2:]}'" in caught.value.remedy


def test_other_schemes_are_left_alone() -> None:
    assert not is_iob2(["NOUN", "VERB"])
    assert not is_iob2(["O", "I-PER"])
    assert not is_iob2([])
    assert convert("tags", ["VERB", "NOUN"], ["NOUN", "VERB"]) == [1, 0]


def test_a_set_of_tags_in_which_an_entity_cannot_begin_is_refused() -> None:
    for fine in (TAGS, ["O", "B-PER"], ["NOUN", "I-don't-know"]):
        check_tag_set(fine)
    with pytest.raises(ValueError, match="`label_names` has 'I-ORG' without 'B-ORG'"):
        check_tag_set(["O", "B-PER", "I-PER", "I-ORG"])


# Labels: names or ids, decided once for a whole corpus.


STARS = ["1", "2", "3", "4", "5"]


def resolve(values: list[Any], names: list[str], *, cells: bool = False, label_map: Any = None) -> list[int | None]:
    found = LabelResolver(CorpusConfig(path="rows", label_map=label_map), names, is_cells=cells)
    found.decide(values)
    return [found(value) for value in values]


@pytest.mark.parametrize("cells", [False, True])
@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([0, 1, 2, 3, 4], STARS, [0, 1, 2, 3, 4]),
        ([1, 2, 3, 4, 5], STARS, [0, 1, 2, 3, 4]),
        ([0, 4, 4, 1], STARS, [0, 4, 4, 1]),
        ([0, 1], ["0", "1"], [0, 1]),
        (["01", "02", "03"], ["01", "02", "03", "04"], [0, 1, 2]),
        (["pos", "neg"], ["neg", "pos"], [1, 0]),
        ([True, False], ["false", "true"], [1, 0]),
        ([True, False], ["False", "True"], [1, 0]),
    ],
)
def test_a_corpus_has_names_or_ids(values: list[Any], names: list[str], expected: list[int], cells: bool) -> None:
    assert resolve(values, names, cells=cells) == expected
    if cells and not isinstance(values[0], bool):
        assert resolve([str(value) for value in values], names, cells=True) == expected


@pytest.mark.parametrize(
    ("values", "names", "what", "remedy"),
    [
        ([1, 2], STARS, "labels such as 1, which may be names or ids", r"\{1: '1', 2: '2'\} or \{1: '2', 2: '3'\}\."),
        (["a", 1], ["a", "b"], "some are names, such as 'a', and some ids, such as 1$", "Write all alike, or map"),
        ([0, 7], ["a", "b"], r"the label 7, which is not in `label_names` \(\['a', 'b'\]\)", "Map it"),
        (
            [None],
            ["None", "null"],
            "null or a blank cell where a label belongs",
            "or map null to null to drop its rows",
        ),
        ([1.0, float("nan")], ["a", "1.0"], "null or a blank cell", "Give it a label"),
        ([["a"]], ["a"], r"\['a'\] where one label belongs", "Name another column"),
        ([{"a": 1}], ["a"], r"\{'a': 1\} where one label belongs", "Name another column"),
        (["1", "2"], ["a", "b", "c"], "the label '1'", "Map it"),  # a text is no id, unless it is a cell
    ],
)
def test_labels_that_are_neither_or_both_are_refused(values: Any, names: list[str], what: str, remedy: str) -> None:
    with pytest.raises(BadValueError, match=what) as caught:
        resolve(values, names)
    assert re.search(remedy, caught.value.remedy)


def test_a_map_says_what_labels_are() -> None:
    assert resolve([1, 2], STARS, label_map={1: "1", 2: "2"}) == [0, 1]
    assert resolve(["1", "2"], STARS, cells=True, label_map={1: "2", 2: "3"}) == [1, 2]
    assert resolve([None, float("nan"), "x"], ["x"], label_map={None: None}) == [None, None, 0]
    assert resolve(["", "x"], ["x"], cells=True, label_map={None: None}) == [None, 0]
    assert resolve([True, "null"], ["x", "y"], label_map={True: "y", "null": "x"}) == [1, 0]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("rows.csv", "text,label\na,01\nb,02\nc,03\n"),
        ("rows.tsv", "text\tlabel\na\t01\nb\t02\nc\t03\n"),
        ("rows.jsonl", "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in ("01", "02", "03"))),
    ],
)
def test_codes_are_names_in_every_kind_of_file(tmp_path: Path, file: str, text: str, streaming: bool) -> None:
    path = tmp_path / file
    path.write_text(text)
    config = CorpusConfig(path=str(path), streaming=streaming)
    found = load_corpus("law", config, {"text": "text", "label": "class"}, ["01", "02", "03", "04"])
    assert [row["label"] for row in found] == [0, 1, 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_lists_of_labels_are_decided_together(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": each}) + "\n" for each in ([1, 2], [0], [])))
    config = CorpusConfig(path=str(path), streaming=streaming)
    found = load_corpus("law", config, {"label": "classes"}, ["1", "2", "3"])
    assert [row["label"] for row in found] == [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_blank_cell_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,1\nb,\nc,0\n")
    message = r"^Corpus 'law' has null or a blank cell where a label belongs: column 'label', line 3 \(.*rows"
    with pytest.raises(ValueError, match=message):
        load_corpus("law", CorpusConfig(path=str(path)), {"text": "text", "label": "class"}, ["x", "y"])
