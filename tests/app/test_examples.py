"""What the slider's page is about: what the run says, what flags say over it, and texts of both sides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_interp.app.examples import (
    MASKED_WORDS,
    NUM_EXAMPLES,
    PROMPT_WORDS,
    Example,
    _recipe_examples,
    find_source,
    read_examples,
)
from hf_interp.commands.demo import LABEL_NAMES
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.utils.files import write_json
from hf_interp.utils.run_folder import RESULTS_NAME
from hf_interp.utils.task_info import MASK, TASK_INFOS


@pytest.fixture
def run(tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder of a run that says its recipe."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / RESULTS_NAME, {"recipe": make_recipe(folder)})
    return folder


def test_a_run_names_its_models_its_task_and_its_data(run: Path, tiny_model_dir: Path, toy_data_dir: Path) -> None:
    source = find_source(run)
    assert source.recipe.model_name_or_path == str(tiny_model_dir)
    assert source.finetuned == str(run)
    assert source.recipe.task == "sequence-classification"
    assert source.recipe.label_names == list(LABEL_NAMES)
    assert (source.recipe.max_length, source.curve, source.has_pairs) == (16, None, False)
    assert source.title == f"{tiny_model_dir.name} → run"
    assert source.examples_are_data
    for side in ("general", "domain"):
        lines = (toy_data_dir / f"{side}_test.jsonl").read_text("utf-8").splitlines()
        known = {(row["text"], row["label"]) for row in map(json.loads, lines)}
        shown = {(example.text, example.label) for example in source.examples if example.side == side}
        assert len(shown) == NUM_EXAMPLES
        assert shown <= known


def test_flags_are_laid_over_a_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text('{"text": "mine", "side": "domain"}\n\n{"text": "two", "label": 3}\n', "utf-8")
    source = find_source(
        run,
        base="org/base",
        finetuned="org/other",
        task="masked-lm",
        max_length=7,
        label_names=["a", "b"],
        examples=tmp_path / "my.jsonl",
        title="Mine",
    )
    assert (source.recipe.model_name_or_path, source.finetuned, source.title) == ("org/base", "org/other", "Mine")
    assert (source.recipe.task, source.recipe.max_length) == ("masked-lm", 7)
    assert source.recipe.label_names == ["a", "b"]
    assert source.examples == [Example(text="mine", side="domain"), Example(text="two", label="3")]
    assert not source.examples_are_data


def test_texts_of_pairs_are_known_by_their_column(run: Path) -> None:
    results = json.loads((run / RESULTS_NAME).read_text("utf-8"))
    for group in ("corpora", "eval_corpora"):
        for corpus in results["recipe"][group].values():
            corpus["text_pair_column"] = "text"
    write_json(run / RESULTS_NAME, results)
    source = find_source(run)
    assert source.has_pairs
    assert all(example.text_pair == example.text for example in source.examples)


def test_data_that_are_gone_leave_texts_of_our_own(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = json.loads((run / RESULTS_NAME).read_text("utf-8"))
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        for corpus in results["recipe"][group].values():
            corpus["path"] = "./gone.jsonl"
    write_json(run / RESULTS_NAME, results)
    source = find_source(run)
    assert [example.text for example in source.examples] == list(TASK_INFOS["sequence-classification"].examples)
    assert not source.examples_are_data
    assert "There are no examples of the domain side: There is no file './gone.jsonl'" in caplog.text


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_texts_of_language_models_are_made_questions(task: str, tmp_path: Path) -> None:
    words = " ".join(f"word{'x' * (number % 7)}" for number in range(60))
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": words}) + "\n", "utf-8")
    recipe = {
        "model_name_or_path": "a/b",
        "task": task,
        "corpora": {side: {"path": str(tmp_path / "text.jsonl")} for side in ("domain", "general")},
    }
    examples = _recipe_examples(parse_recipe({**recipe, "output_dir": str(tmp_path)})[0])
    assert [example.side for example in examples] == ["general", "domain"]
    shown = examples[0].text.split()
    assert len(shown) == {"masked-lm": MASKED_WORDS, "causal-lm": PROMPT_WORDS}[task]
    assert shown.count(MASK) == (task == "masked-lm")
    assert shown[:6] == words.split()[:6]


def test_words_targets_and_turns_are_read(tmp_path: Path) -> None:
    def first(task: str, row: dict[str, Any], **corpus: Any) -> Example:
        (tmp_path / f"{task}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
        corpora = {"domain": {"path": str(tmp_path / f"{task}.jsonl"), **corpus}}
        recipe = {"model_name_or_path": "a/b", "task": task, "corpora": corpora, "output_dir": str(tmp_path)}
        if task == "token-classification":
            recipe["label_names"] = ["O", "B-ORG"]
        return _recipe_examples(parse_recipe(recipe)[0])[0]

    row: dict[str, Any] = {"tokens": ["The", "UN", "."], "ner_tags": ["O", "B-ORG", "O"]}
    assert first("token-classification", row) == Example(text="The UN .", side="domain")
    row = {"text": "one two " * 200, "target": "short"}
    found = first("summarization", row)
    assert (len(found.text) <= 600, found.text.endswith("one"), found.label) == (True, True, "short")
    row = {"turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert first("causal-lm", row, messages_column="turns") == Example(text="Hi", side="domain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no lines"),
        ("[1]\n", "Line 1 of .* must be a JSON object with a `text`"),
        ('{"text": "a"}\n{"text": " "}\n', "Line 2 of .* must be a JSON object with a `text`"),
        ("{\n", "Line 1 of .* must be a JSON object with a `text`"),
        ('{"text": "a", "side": "left"}\n', "`side` in line 1 of .* must be general or domain, got 'left'"),
    ],
)
def test_files_that_are_no_examples_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / "file.jsonl")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`base` must be given: name the folder of a run, or both"):
        find_source(finetuned="a/b")
    with pytest.raises(ValueError, match="`finetuned` must be given"):
        find_source(base="a/b")
    with pytest.raises(ValueError, match="does not tell its recipe"):
        find_source(tmp_path)
