"""How many rows are cut, and what an evaluation counts of long rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hf_interp.tasks.build import tokenise
from hf_interp.tasks.recipe import CorpusConfig, Recipe

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
    cut: dict[str, tuple[int, int]] = {}
    found = tokenise("law", config, recipe, AutoTokenizer.from_pretrained(model), group=group, cut=cut)
    return cut, found


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
