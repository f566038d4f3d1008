"""The blocks of a Markdown document, and a reader who types them in a fresh folder.

A block of shell or Python is run as it is written. What a test must not do (download, install, train for hours) is
declared in a comment right above the block, whose body is YAML:

    <!-- test: {not run: pip installs a package} -->      never run, for this reason
    <!-- test: {flags: --max_steps 4} -->                 added to every command that takes the fields of a recipe
    <!-- test: {replace: {org/model: toy-models/encoder}} -->   text that is replaced
    <!-- test: {files: toy recipes} -->                   files that are laid first (`document_files.py`)
    <!-- test: {given: [model, general]} -->              Python names that are defined first (`python_session.py`)
    <!-- test: {write: recipe.yaml} -->                   the block is the content of this file
    <!-- test: {then: "assert ..."} -->                   Python that must hold afterwards
    <!-- test: {needs: gradio} -->                        an optional package, without which the test is skipped
    <!-- test: {serves: "The page is at"} -->             it serves: go on when it has said this, end it at the end
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_interp

SHELLS = ("bash", "sh", "shell", "console")
PYTHONS = ("python", "py")
SHOWN = ("text", "yaml", "json", "")
"""Languages of blocks that only show something. YAML is read, and written if it is declared to be a file."""
KEYS = {"not run", "flags", "replace", "files", "given", "write", "then", "needs", "serves"}
TAKES_FLAGS = re.compile(r"\bhf-interp (demo|init|adapt|train|plan|compare|tune|curve|audit)\b|\bhf_interp\.train\b")
END_OF_COMMAND = re.compile(r"\s+(?=#|\||>|<|;|&&)|$")
SECONDS = 300
"""The longest that a block may take."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: its line, its language, its text, and what is declared above it."""

    line: int
    language: str
    text: str
    declared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether a reader would type it."""
        return self.language in (*SHELLS, *PYTHONS) and "not run" not in self.declared

    def typed(self) -> str:
        """Return the text with its declared substitutes; raise if one has nothing to replace."""
        text = self.text
        for old, new in self.declared.get("replace", {}).items():
            assert old in text, f"line {self.line}: there is no {old!r} to replace"
            text = text.replace(old, new or "")
        flags = self.declared.get("flags")
        if not flags:
            return text
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        assert any(TAKES_FLAGS.search(line) for line in lines), f"line {self.line}: no command takes {flags}"
        return "\n".join(_with_flags(line, flags) if TAKES_FLAGS.search(line) else line for line in lines)


def _with_flags(line: str, flags: str) -> str:
    start = TAKES_FLAGS.search(line)
    assert start is not None
    end = END_OF_COMMAND.search(line, start.end())
    assert end is not None
    return f"{line[: end.start()]} {flags}{line[end.start() :]}"


def read_blocks(text: str) -> list[Block]:
    """Return the blocks of a document in their order."""
    return list(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    number, comment = 0, ""
    while number < len(lines):
        line = lines[number].strip()
        if line.startswith("<!--"):
            first = number
            while "-->" not in lines[number]:
                number += 1
            found = "\n".join(lines[first : number + 1]).strip()
            comment = found if found.startswith("<!-- test:") else comment
        elif line.startswith("```"):
            first, indent = number, len(lines[number]) - len(lines[number].lstrip())
            number += 1
            while lines[number].strip() != "```":
                number += 1
            inside = "".join(f"{row[indent:]}\n" for row in lines[first + 1 : number])
            yield Block(first + 1, line[3:].strip(), inside, _declared(comment, first + 1))
            comment = ""
        elif line:
            assert not comment, f"line {number + 1}: a declaration that no block follows"
        number += 1


def _declared(comment: str, line: int) -> Mapping[str, Any]:
    body = yaml.safe_load(comment.removeprefix("<!-- test:").removesuffix("-->")) if comment else {}
    assert isinstance(body, Mapping), f"line {line}: a declaration is a mapping, got {body!r}"
    assert body.keys() <= KEYS, f"line {line}: unknown in a declaration: {sorted(body.keys() - KEYS)}"
    assert body or not comment, f"line {line}: a declaration must say something"
    assert body.get("not run", "why"), f"line {line}: why is it not run?"
    return body


class Reader:
    """Someone who types the blocks of a document into a shell and into Python, both in the same fresh folder.

    Args:
        folder: the fresh folder.
        lays: functions that lay files into it, by the names that declarations use.
        environment: of both.
        commands: a folder with commands that go before others of their name.
    """

    def __init__(
        self,
        folder: Path,
        lays: Mapping[str, Callable[[Path], None]],
        environment: Mapping[str, str],
        commands: Path,
    ) -> None:
        self.folder, self.lays, self.commands = folder, lays, commands
        self.environment = {**reading_environment(environment, commands), "DATA": "data"}
        self._python: subprocess.Popen[str] | None = None
        self._servers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            with server:
                os.killpg(server.pid, signal.SIGTERM)
        if self._python is not None:
            with self._python as python:
                assert python.stdin is not None
                python.stdin.close()

    def type(self, block: Block) -> None:
        """Type one block, or do nothing if it is not to be run."""
        if "not run" in block.declared:
            return
        for name in _listed(block.declared.get("needs")):
            pytest.importorskip(name, reason=f"{name} is not installed")
        for name in _listed(block.declared.get("files")):
            self.lays[name](self.folder)
        if block.language in SHELLS:
            self._in_shell(block)
        elif block.language in PYTHONS:
            self._in_python(block.typed(), f"line {block.line}", _listed(block.declared.get("given")))
        elif "write" in block.declared:
            (self.folder / block.declared["write"]).write_text(block.typed(), encoding="utf-8")
        if "then" in block.declared:
            self._in_python(block.declared["then"], f"what follows line {block.line}")

    def _in_shell(self, block: Block) -> None:
        code = block.typed()
        shell = subprocess.Popen(
            [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert shell.stdout is not None
        if "serves" in block.declared:
            self._servers.append(shell)
            said = ""
            while block.declared["serves"] not in said:
                line = shell.stdout.readline()
                assert line, f"line {block.line}: it serves nothing\n{said}"
                said += line
            return
        try:
            said, _ = shell.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            said, _ = shell.communicate()
        assert shell.returncode == 0, f"line {block.line}: exit status {shell.returncode} of\n{code}\n{said[-3000:]}"

    def _in_python(self, code: str, place: str, given: Sequence[str] = ()) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [self.commands / "python", str(Path(__file__).with_name("python_session.py"))],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps({"code": code, "place": place, "given": given}) + "\n")
        self._python.stdin.flush()
        error = json.loads(self._python.stdout.readline())
        assert not error, f"{place}: {error}"


def reading_environment(environment: Mapping[str, str], commands: Path | None = None) -> dict[str, str]:
    """Return an environment in which a shell finds this Python's commands and this very package."""
    package = str(Path(hf_interp.__file__).parents[1])
    places = filter(None, [commands, Path(sys.executable).parent, environment.get("PATH")])
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")])),
        "PATH": os.pathsep.join(map(str, places)),
        "PYTHONWARNINGS": "ignore",
        "MPLBACKEND": "Agg",
    }


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
