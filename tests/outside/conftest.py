"""Someone who types commands in a fresh folder: each is a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import reading_environment

COMMAND = (sys.executable, "-m", "hf_interp.cli")
"""A process that has imported nothing beforehand."""


class User:
    """Types commands in a folder.

    Args:
        folder: the fresh folder.
        command: words before those that are typed.
        environment: further variables.
    """

    def __init__(self, folder: Path, command: Sequence[Any] = COMMAND, **environment: str) -> None:
        self.folder, self.command = folder, command
        own = {"HOME": str(folder), "HF_HOME": str(folder / ".hf"), "OMP_NUM_THREADS": "1"}
        usual = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment = reading_environment({**usual, **own, **environment})

    def start(self, *words: Any) -> subprocess.Popen[str]:
        """Begin a program."""
        return subprocess.Popen(
            [*map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def type(self, *words: Any, status: int = 0) -> str:
        """Type `hf-interp` with some words; return what it printed, or its error."""
        with self.start(*self.command, *words) as process:
            out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"hf-interp {' '.join(map(str, words))}\n{out[-2000:]}\n{err[-2000:]}"
        assert "Traceback" not in err
        return err if status == 2 else out

    def ask(self, *words: Any, status: int = 0) -> Any:
        """Type a command that prints JSON; return what it says."""
        return json.loads(self.type(*words, "--json", status=status))

    def write(self, name: str, recipe: dict[str, Any]) -> str:
        """Write a recipe; return its name."""
        self.path(name).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return name

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., User]:
    """A function that brings a user with further variables of the environment."""
    return lambda **environment: User(tmp_path, **environment)


@pytest.fixture
def quick_user(tmp_path: Path, commands: Path) -> Callable[..., User]:
    """The same, of a user whose commands have imported everything beforehand."""
    return lambda **environment: User(tmp_path, [commands / "hf-interp"], **environment)
