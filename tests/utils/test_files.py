"""Files whole or not at all, YAML as people write it, and the table of tasks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto import modeling_auto

from hf_interp.utils.files import new_folder, read_json, unfinished_folders, write_json
from hf_interp.utils.task_info import (
    IMAGE_CHATS,
    OTHER_ADAPTERS,
    TASK_INFOS,
    adapter_classes,
    task_of_adapter,
    task_of_class,
)
from hf_interp.utils.yaml_values import load_yaml, parse_mapping, with_numbers


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, [], "ä α", 7, None, {}])
@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_written_is_read(tmp_path: Path, value: Any, indent: int | None) -> None:
    write_json(tmp_path / "a.json", value, indent=indent)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text("utf-8") == json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_json(str(tmp_path / "new" / "folder" / "a.json"), 1)
    write_json(tmp_path / "new" / "folder" / "a.json", 2)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.json"]
    assert read_json(str(tmp_path / "new" / "folder" / "a.json")) == 2


def test_others_may_read_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_what_json_does_not_know_is_written_as_a_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": Path("x"), "set": {1}})
    assert read_json(tmp_path / "a.json") == {"path": "x", "set": "{1}"}


@pytest.mark.parametrize("at", ["write", "rename"])
def test_what_fails_leaves_the_old_file_alone(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn:
        def __str__(self) -> str:
            raise OSError("disk full")

    def refuse(*args: Any) -> None:
        raise OSError("disk full")

    write_json(tmp_path / "a.json", "old")
    if at == "rename":
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "a.json", ["new" * 100_000, Stubborn() if at == "write" else 1])
    assert read_json(tmp_path / "a.json") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"nonsense", b"\xff\xfe", b'{"a": 1}{'])
def test_a_file_that_is_not_whole_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None


def test_a_missing_file_or_a_folder_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path) is None


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_when_it_is_whole(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "new" / "folder"
    if exists:
        path.mkdir(parents=True)
    with new_folder(path) as folder:
        (folder / "a").touch()
        assert unfinished_folders(path) == [folder.name]
        assert not path.exists() or not any(path.iterdir())
    assert [found.name for found in path.iterdir()] == ["a"]
    assert unfinished_folders(path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "folder") as folder:
            (folder / "a").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


# YAML as people write it: keys once, aliases within bounds, numbers with an exponent.


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{step}: &a{step} [{', '.join([f'*a{step - 1}'] * 10)}]\n" for step in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nalpha: 0.5\nseed: 2\n", "the key 'seed' is given twice, again in line 3"),
        ("corpora:\n  domain: {path: a, 'path': b}", "the key 'path' is given twice, again in line 2"),
        (BOMB, "it holds more than 100000 values, or repeats itself without end"),
        ("a: &a [*a]", "or repeats itself without end"),
        ("[" * 5000, "it is nested too deeply"),
        ("seed: " + "9" * 5000, "Exceeds the limit"),
        ("a: [1,\nb: 2", "expected"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_document_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_yaml(text)


def test_aliases_and_merges_within_bounds_are_read() -> None:
    text = "base: &base {path: a, split: train}\ndomain: {<<: *base, path: b}\ntwice: [*base, *base]\n1: x\n'1': y\n"
    base = {"path": "a", "split": "train"}
    assert load_yaml(text) == {"base": base, "domain": {**base, "path": "b"}, "twice": [base, base], 1: "x", "1": "y"}
    assert load_yaml("") is None


def test_words_dates_and_codes_are_texts_as_they_are_written() -> None:
    text = "[no, ON, y, 2024-13-45, 2020-01-01, 1:30, 01, -1, 1_000, 0x10, 1.5, .5, -.inf, true, ~, null, NA, '']"
    numbers = [-1, 1000, 16, 1.5, 0.5, float("-inf"), True, None, None, "NA", ""]
    assert load_yaml(text) == ["no", "ON", "y", "2024-13-45", "2020-01-01", "1:30", "01", *numbers]


def test_mappings_and_numbers() -> None:
    assert with_numbers(parse_mapping("kwargs", "{rate: 1e-5, names: [1e3, e3]}")) == {
        "rate": 1e-5,
        "names": [1000.0, "e3"],
    }
    for text in ("rate", "{rate", "{rate: 1, rate: 2}"):
        with pytest.raises(ValueError, match="`kwargs` must be a mapping such as"):
            parse_mapping("kwargs", text)


SPEECH_WRITERS = ("moonshine", "moonshine_streaming", "speech-encoder-decoder", "speech_to_text", "speecht5", "whisper")
"""Of those that write speech, the models that hear it alone: others are told in words what to do."""

# The table of tasks agrees with the classes that transformers and PEFT have.


CLASSES = {
    "image-text-to-text": {
        kind: name
        for kind, name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
        if name.removesuffix("ForConditionalGeneration") in IMAGE_CHATS
    },
    "automatic-speech-recognition": {
        **modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
        **{kind: modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[kind] for kind in SPEECH_WRITERS},
    },
    "audio-classification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
"""The classes of transformers by task; a class that several tasks have is of the first."""


def test_every_class_of_transformers_is_of_its_task() -> None:
    tasks: dict[str, str] = {}
    for task, mapping in CLASSES.items():
        for found in mapping.values():
            for name in [found] if isinstance(found, str) else found:
                tasks.setdefault(name, task)
    assert {name: task_of_class(name) for name in tasks} == tasks
    assert task_of_class("BertModel") is None
    assert len(CLASSES["image-text-to-text"]) == len(IMAGE_CHATS)


@pytest.mark.parametrize("name", TASK_INFOS)
def test_the_class_of_a_task_exists(name: str) -> None:
    for has_decoder in (True, False):
        assert hasattr(transformers, TASK_INFOS[name].class_of(has_decoder=has_decoder))


def test_adapters_name_their_task_and_its_class() -> None:
    peft = pytest.importorskip("peft")
    assert adapter_classes().keys() == {kind.value for kind in peft.TaskType}
    for kind, auto_class in adapter_classes().items():
        task = task_of_adapter(kind)
        assert (task is None) == (kind in OTHER_ADAPTERS)
        assert task is None or TASK_INFOS[task].auto_class == auto_class
