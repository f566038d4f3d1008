"""Parts of a corpus by the content of its inputs, and rows of a set that are trained on."""

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from toy_media import toy_png, toy_wav, write_folder, write_parquet, write_sounds, write_table
from toy_recipes import ENGLISH, toy_tokenizer
from transformers import AutoTokenizer

from hf_interp.tasks.build import load_data, tokenise
from hf_interp.tasks.corpora.loading import load_corpus
from hf_interp.tasks.corpora.splits import format_shared
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.task import get_task

TEXTS = [" ".join(random.Random(number).choices(ENGLISH, k=6)) for number in range(60)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def place(text: str) -> float:
    """Where a text lies in [0, 1), by another road than the package's."""
    return int(hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).hexdigest(), 16) / 2**64


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_divide_a_corpus_by_its_texts_in_whatever_order_they_are(tmp_path: Path, streaming: bool) -> None:
    twice = [*TEXTS, *(text.upper().replace(" ", "  ") for text in reversed(TEXTS))]
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in twice])
    ends = (0, 0.5, 0.8, 1.0)
    found = []
    for low, high in itertools.pairwise(ends):
        config = CorpusConfig(path=path, part=[low, high], streaming=streaming)
        found.append([row["text"] for row in load_corpus("law", config, {"text": "text"})])
        assert found[-1] == [text for text in twice if low <= place(text) < high]
    assert sum(map(len, found)) == len(twice)


@pytest.mark.parametrize("part", [[0.5], [0.8, 0.2], [0, 1.5], ["a", 1]])
def test_what_is_no_part_is_refused(tmp_path: Path, part: list[Any]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="`part` of corpus 'law' must be two rising numbers in"):
        load_corpus("law", CorpusConfig(path=path, part=part), {"text": "text"})
    with pytest.raises(ValueError, match=r"and its `part` \[0, 1e-09\]"):
        load_corpus("law", CorpusConfig(path=path, part=[0, 1e-9]), {"text": "text"})


def test_prompts_with_other_answers_stay_together(tmp_path: Path) -> None:
    def said(prompt: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]

    path = write(tmp_path / "rows.jsonl", [{"turns": said(text, answer)} for text in TEXTS for answer in "ab"])
    shape: dict[str, Any] = {"messages_column": "turns", "role_key": "from", "content_key": "value"}
    part = load_corpus("law", CorpusConfig(path=path, part=[0, 0.5], **shape), {"messages": "turns"})
    prompts = [row["messages"][0]["content"] for row in part]
    assert prompts == [text for text in TEXTS for _ in "ab" if place(text) < 0.5]


def file_place(content: bytes) -> float:
    return int(hashlib.blake2b(content, digest_size=8).hexdigest(), 16) / 2**64


@pytest.mark.parametrize("form", ["table", "folder", "parquet", "stream", "sound"])
def test_a_file_lies_in_a_part_by_its_bytes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Wherever it lies, and however a row names it."""
    kind: Any = "audio" if form == "sound" else "image"
    numbers = range(24)  # of sounds some are copies
    write, make = {
        "table": (write_table, toy_png),
        "folder": (write_folder, toy_png),
        "sound": (write_sounds, toy_wav),
    }.get(form, (write_parquet, toy_png))
    name = {"parquet": "rows.parquet", "stream": "rows.parquet", "folder": "rows"}.get(form, "rows.jsonl")
    found = []
    for place_of in ("one", "moved/far"):
        folder = tmp_path / place_of
        folder.mkdir(parents=True)
        write(folder / name, numbers)
        monkeypatch.chdir(folder)
        config = CorpusConfig(path=name if form != "folder" else "./rows", part=[0, 0.5], streaming=form == "stream")
        found.append([row[kind] for row in load_corpus("law", config, {kind: kind})])
    files = [make(number) for number in numbers]
    wanted = [content for content in files if file_place(content) < 0.5]
    assert 0 < len(wanted) < len(files)
    assert [sorted(rows) for rows in found] == [sorted(wanted)] * 2


def test_a_file_of_a_part_that_is_not_there_is_named_by_its_row(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.jsonl", range(4))
    (tmp_path / "images" / "general_2.png").unlink()
    with pytest.raises(ValueError, match=r"Corpus 'law' has the image 'images/general_2.png', .*'image', line 3 "):
        load_corpus("law", CorpusConfig(path=str(path), part=[0, 0.5]), {"image": "image"})


def test_rows_that_are_trained_on_are_counted_by_set(tmp_path: Path) -> None:
    toy_tokenizer().save_pretrained(tmp_path / "model")
    path = write(tmp_path / "rows.jsonl", [{"text": text, "label": "yn"[len(text) % 2]} for text in TEXTS])
    few = write(
        tmp_path / "few.jsonl", [{"text": f" {text.title()}", "label": "y"} for text in [*TEXTS[:3], "a new one"]]
    )
    recipe, _ = parse_recipe(
        {
            "model_name_or_path": str(tmp_path / "model"),
            "label_names": ["n", "y"],
            "corpora": {"domain": {"path": path, "part": [0, 0.8]}},
            "eval_corpora": {"domain": {"path": path, "part": [0.8, 1]}, "few": {"path": few}},
            "max_steps": 1,
        }
    )
    data = load_data(recipe, get_task(recipe.task))
    shared, rest = sum(place(text) < 0.8 for text in TEXTS[:3]), sum(place(text) >= 0.8 for text in TEXTS)
    assert data.shared == {"eval_corpora.domain": (0, rest), "eval_corpora.few": (shared, 4)}
    assert [line.partition(" rows")[0] for line in format_shared(data.shared)] == [f"{shared} of 4"]


def test_a_pattern_names_files_and_each_is_a_document(tmp_path: Path) -> None:
    for number in (2, 1):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n\nand more\n", "utf-8")
    config = CorpusConfig(path=str(tmp_path / "*.txt"), document="file")
    assert [row["text"].split("\n")[0] for row in load_corpus("law", config, {"text": "text"})] == ["text 1", "text 2"]
    with pytest.raises(ValueError, match=r"must name at least one file, got '.*\.csv', which none matches"):
        load_corpus("law", CorpusConfig(path=str(tmp_path / "*.csv")), {"text": "text"})


# How many rows are cut, and what an evaluation counts of long rows.


WORDS = [f"word{number}" for number in range(6)]
TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {"label_names": ["a", "b"]},
    "seq2seq": {"max_target_length": 2, "truncate_target": True},
    "causal-lm": {"packing": False},
    "masked-lm": {"packing": False},
}


def row(length: int) -> dict[str, Any]:
    """A text of as many tokens, with whatever a task may want of it."""
    words = WORDS[:length]
    return {"text": " ".join(words), "label": "a", "target": words[0], "tokens": words, "ner_tags": ["B-X"] * length}


def counted(folder: Path, model: Path, rows: list[dict[str, Any]], task: str, group: str, **fields: Any) -> Any:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(path=str(folder / "rows.jsonl"), **fields.pop("corpus", {}))
    recipe = Recipe(model_name_or_path=str(model), corpora={"law": config}, task=task, **{"max_length": 4, **fields})
    found = tokenise("law", config, recipe, AutoTokenizer.from_pretrained(model), group=group)
    return {} if found.cut is None else {f"{group}.law": found.cut}, found.examples


@pytest.mark.parametrize("task", TASKS)
def test_rows_that_are_cut_are_counted(tmp_path: Path, tiny_model_dir: Path, task: str) -> None:
    rows = [row(length) for length in (3, 4, 5, 6, 5)]  # four fit
    cut, found = counted(tmp_path, tiny_model_dir, rows, task, "corpora", **TASKS[task])
    assert cut == {"corpora.law": (3, 5)}
    assert max(map(len, found["input_ids"])) == 4
    assert counted(tmp_path, tiny_model_dir, rows[:2], task, "corpora", **TASKS[task])[0] == {}


def test_outputs_that_are_cut_are_counted(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"text": "word0", "target": " ".join(WORDS[:length])} for length in (1, 2, 3)]
    assert counted(tmp_path, tiny_model_dir, rows, "seq2seq", "corpora", **TASKS["seq2seq"])[0] == {
        "corpora.law": (1, 3)
    }


def test_packed_texts_and_streams_are_not_counted(tmp_path: Path, tiny_model_dir: Path) -> None:
    assert counted(tmp_path, tiny_model_dir, [row(6)] * 3, "causal-lm", "corpora")[0] == {}
    stream = {"corpus": {"streaming": True}, "label_names": ["a"]}
    assert counted(tmp_path, tiny_model_dir, [row(6)], "sequence-classification", "corpora", **stream)[0] == {}


def test_an_evaluation_counts_every_entity(tmp_path: Path, tiny_model_dir: Path) -> None:
    names = {"label_names": ["O", "B-X", "I-X"]}
    rows = [row(length) for length in (6, 2, 5)]
    cut, found = counted(tmp_path, tiny_model_dir, rows, "token-classification", "corpora", **names)
    assert (cut, sum(labels.count(1) for labels in found["labels"])) == ({"corpora.law": (2, 3)}, 10)
    for group in ("eval_corpora", "validation_corpora"):
        cut, found = counted(tmp_path, tiny_model_dir, rows, "token-classification", group, **names)
        assert (cut, sum(labels.count(1) for labels in found["labels"])) == ({}, 6 + 2 + 5)
