"""Labels: names or ids, decided once for a whole corpus."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hf_interp.tasks.labels import BadValueError, LabelResolver
from hf_interp.tasks.loading import load_corpus
from hf_interp.tasks.recipe import CorpusConfig

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
    message = (
        r"^Corpus 'law' has null or a blank cell where a label belongs: column 'label', row 1 of what is kept \(.*rows"
    )
    with pytest.raises(ValueError, match=message):
        load_corpus("law", CorpusConfig(path=str(path)), {"text": "text", "label": "class"}, ["x", "y"])
