"""Files and folders that are whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hf_interp.utils.files import new_folder, read_json, unfinished_folders, write_json


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
