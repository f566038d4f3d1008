"""The benchmark programs start, and the page on the evidence says what they print from the recorded results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from effect import noise_table, table

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
PAGE = (ROOT / "docs" / "evidence.md").read_text("utf-8")
PROGRAMS = sorted(path.relative_to(BENCHMARKS) for path in BENCHMARKS.rglob("*.py") if path.parent.name != "peers")
"""All but those that run in the environments of other packages."""
WITH_OPTIONS = [path for path in PROGRAMS if "ArgumentParser" in (BENCHMARKS / path).read_text("utf-8")]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without rules."""
    lines = (line for line in text.splitlines() if line.startswith("|") and ":--" not in line)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_programs_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--table", "all", "amount", "trade-off", "unseen"]) == 0
    assert noise_table.main([]) == 0
    printed = rows(capsys.readouterr().out)
    shown = rows(PAGE)
    assert len(shown) == 13 + 10 + 8 + 10 + 9
    for row in shown:
        assert any(row == found[: len(row)] for found in printed), row


def test_the_page_says_what_the_runs_have_in_common() -> None:
    assert sum(any(letter.isalnum() for letter in word) for word in PAGE.split()) <= 2500  # without rules of tables
    trained = [entry for entry in table.Store(table.RESULTS).rows().values() if entry["method"] != "base"]
    bf16 = sum(entry.get("precision", "bf16") == "bf16" for entry in trained)
    assert f"Of {len(trained):,} runs {bf16:,} used bfloat16 autocast" in PAGE


@pytest.mark.slow
def test_the_programs_can_be_imported(tmp_path: Path) -> None:
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in PROGRAMS]
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import {', '.join(names)}"
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_OPTIONS, ids=str)
def test_a_program_starts(path: Path, tmp_path: Path, commands: Path) -> None:
    done = run_python(str(BENCHMARKS / path), "--help", cwd=tmp_path, python=commands / "python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {path.name}")


def run_python(*arguments: str, cwd: Path, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run Python as a user does: without what the tests' settings put on the path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
