"""What must stay on the machine: local paths and secrets."""

import os
from pathlib import Path

import pytest

from hf_interp.utils.redaction import (
    basename,
    find_secrets,
    is_local,
    local_paths,
    redact_paths,
    redact_secrets,
    redactor,
    without_tokens,
)

HUB_TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3f"


@pytest.mark.parametrize(
    "text",
    [
        *("/data/base", "./base", "../base", "~/base", "file:///data/base", "\\\\server\\share", "C:\\models\\base"),
        *("d:/models/base", "laws.csv", "LAWS.JSONL", "laws.jsonl.gz", "models/law/base"),
    ],
)
def test_what_begins_or_ends_as_paths_do_is_local(text: str) -> None:
    assert is_local(text)


@pytest.mark.parametrize(
    "text", ["bert-base-uncased", "jane/bert.v2", "https://host/laws.csv", "s3://bucket/a/b.jsonl", "linear", "1:1"]
)
def test_names_and_addresses_are_not(text: str) -> None:
    assert not is_local(text)


def test_a_name_of_two_parts_is_local_where_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_local("runs/base")
    Path("runs/base").mkdir(parents=True)
    assert is_local("runs/base")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/models/base/", "base"),
        ("C:\\Users\\jane\\law.csv", "law.csv"),
        ("file:///home/jane/base", "base"),
        ("..", "folder"),
        ("~", "folder"),
        ("base", "base"),
        ("https://jane:word@host:8080/a/law.csv?signature=1#top", "https://host:8080/a/law.csv"),
        ("s3://bucket/law.csv", "s3://bucket/law.csv"),
    ],
)
def test_last_part(text: str, expected: str) -> None:
    assert basename(text) == expected


def test_paths_are_found_under_their_keys_alone() -> None:
    settings = {
        "output_dir": "/srv/run",
        "model_name_or_path": "jane/base",
        "corpora": {"law": {"path": ["/srv/a.csv", "https://host/b.csv"], "note": "/srv/c.csv"}},
    }
    assert local_paths(settings) == {"/srv/run", "/srv/a.csv"}


def test_paths_stay_recognisable_and_names_stay_whole() -> None:
    settings = {
        "output_dir": "/srv/jane/run",
        "model_name_or_path": "jane/base",
        "corpora": {"law": {"path": ["/srv/jane/a.csv", "https://jane:pw@host/b.csv?key=1"], "split": "train"}},
        "max_steps": 3,
        "best": None,
        "weights": (1.5, True),
    }
    assert redact_paths(settings) == {
        "output_dir": "./run",
        "model_name_or_path": "jane/base",
        "corpora": {"law": {"path": ["./a.csv", "https://host/b.csv"], "split": "train"}},
        "max_steps": 3,
        "best": None,
        "weights": [1.5, True],
    }


def test_known_paths_are_replaced_in_texts_where_they_stand_whole() -> None:
    known = ["/srv/run", "/srv/run/law.csv"]
    for text, expected in (
        ("Read from /srv/run/law.csv.", "Read from law.csv."),
        ("('/srv/run')", "('run')"),
        ("in /srv/run/checkpoint-2", "in run/checkpoint-2"),
        ("/srv/runs and x/srv/run stay", "/srv/runs and x/srv/run stay"),
    ):
        assert redact_paths(text, known) == expected


def test_homes_the_home_and_the_working_folder_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "people" / "jane"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    text = f"{home}/a, {here}/b, /home/bob/c/d.csv, C:\\Users\\bob\\e.csv, ~/f/g."
    assert redact_paths(text) == "jane/a, here/b, d.csv, e.csv, g"


def test_labels_that_look_like_paths_stay() -> None:
    settings = {
        "label_names": ["/people/person", "/home/bob/x"],
        "id2label": {"0": "/film/film"},
        "label2id": {"/film/film": 0},
        "path": "/srv/run",
    }
    assert redact_paths(settings) == {**settings, "path": "./run"}


def test_a_known_path_goes_even_from_labels() -> None:
    assert redact_paths({"label_names": ["see /srv/run"]}, ["/srv/run"]) == {"label_names": ["see run"]}


def test_secrets_are_those_given_and_those_that_the_environment_calls_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith(("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MY_API_KEY", "12345678")
    monkeypatch.setenv("db_password", "longword")
    monkeypatch.setenv("SHORT_TOKEN", "1234567")
    monkeypatch.setenv("KEYBOARD", "qwertyuiop")
    assert find_secrets("given-token", None, "short") == {"given-token", "12345678", "longword"}


def test_secrets_and_tokens_of_the_hub_are_blotted_out() -> None:
    value = {"note": f"sent with my-own-token-and-more and {HUB_TOKEN}.", HUB_TOKEN: ["my-own-token", 3]}
    assert redact_secrets(value, ["my-own-token", "my-own-token-and-more"]) == {
        "note": "sent with *** and ***.",
        "***": ["***", 3],
    }


@pytest.mark.parametrize("text", ["hf_interp", "hf_" + "a" * 29, "xhf_" + "a" * 34])
def test_what_is_no_token_stays(text: str) -> None:
    assert redact_secrets(text, []) == text


def test_settings_that_hold_tokens_are_left_out() -> None:
    assert without_tokens({"hub_token": "a", "push_to_hub_token": "b", "tokenizer": "c", "max_steps": 3}) == {
        "tokenizer": "c",
        "max_steps": 3,
    }


def test_tokens_of_a_vocabulary_are_no_secrets() -> None:
    told = {"eos_token": "<|im_end|>", "hub_token": "my-own-token", "push_to_hub_token": "my-other-token"}
    assert without_tokens(told) == {"eos_token": "<|im_end|>"}
    assert redactor(told)("<|im_end|> my-own-token my-other-token") == "<|im_end|> *** ***"


def test_what_was_a_folder_where_the_run_was_stays_one() -> None:
    redact = redactor({"local_paths": ["models/base", "out"]})
    told = {"base": "models/base", "finetuned": "out", "name": "google/bert"}
    assert redact(told) == {"base": "./base", "finetuned": "./out", "name": "google/bert"}
