"""The page on the evidence: its tables are what the programs print from the recorded results."""

import importlib
import re
from pathlib import Path

import pytest
from effect import noise_table, table

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
PAGE = (ROOT / "docs" / "evidence.md").read_text("utf-8")
PROGRAMS = sorted(path.relative_to(BENCHMARKS) for path in BENCHMARKS.rglob("*.py") if path.parent.name != "peers")
"""All but what runs in the environments of other packages."""


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without rules."""
    lines = (line for line in text.splitlines() if line.startswith("|") and ":--" not in line)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_programs_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--table", "short", "amount"]) == 0
    assert noise_table.main([]) == 0
    printed = rows(capsys.readouterr().out)
    shown = rows(PAGE)
    assert len(shown) == 14 + 13 + 9
    for row in shown:
        assert any(row == found[: len(row)] for found in printed), row


def test_the_page_says_what_the_runs_have_in_common() -> None:
    assert len(PAGE.split()) <= 2500
    trained = [entry for entry in table.Store(table.RESULTS).rows().values() if entry["method"] != "base"]
    bf16 = sum(entry.get("precision", "bf16") == "bf16" for entry in trained)
    assert f"Of {len(trained):,} runs {bf16:,} used bfloat16 autocast" in PAGE


@pytest.mark.parametrize("path", PROGRAMS, ids=str)
def test_a_program_can_be_imported(path: Path) -> None:
    name = ".".join(path.with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert module.__doc__
    if re.search(r"^def main\(", (BENCHMARKS / path).read_text("utf-8"), re.MULTILINE):
        assert callable(module.main)
