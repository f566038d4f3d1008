"""Parts of a corpus by the content of its inputs, and rows of a set that are trained on."""

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from toy_recipes import ENGLISH, toy_tokenizer

from hf_interp.tasks.build import load_data
from hf_interp.tasks.loading import load_corpus
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.tasks.splits import format_shared
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
