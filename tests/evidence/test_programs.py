"""Results on disk come out as they went in; programs start, and the page on the evidence says what they print."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from effect import noise, run, table
from effect.store import Store, key_of


def entry(seed: int, size: int | str = 300, rate: float = 5e-05) -> dict[str, Any]:
    return {
        "pair": "lm-law",
        "size": size,
        "method": "domain",
        "learning_rate": rate,
        "seed": seed,
        "alpha": 1.0,
        "validation": {"domain": 3.25, "general": float("-inf")},
        "curve": {"domain": {"0": 3.5, "1": 3.25}},
        "machine": "a processor, 1 thread of 2 cores",
        "test": {"domain": "ff", "general": "a0"},
        "test_interpolated": None,
    }


def test_what_is_added_comes_out_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "effect.tsv")
    base = {
        "pair": "lm-law",
        "method": "base",
        "versions": "torch 2.13.0+cpu",
        "test": {},
        "counts": {"domain": [1, 8]},
    }
    assert store.load() == {}
    for found in (entry(1), entry(0, "full"), base, entry(0, 1000, 1e-4)):
        store.add(found)
    assert store.load() == {"lm-law": [base, entry(1), entry(0, 1000, 1e-4), entry(0, "full")]}
    assert "test" not in store.rows()[key_of(entry(1))]
    lines = store.table.read_text().splitlines()
    assert lines[0].split("\t")[:7] == ["pair", "size", "method", "learning_rate", "seed", "alpha", "validation/domain"]
    assert lines[2].split("\t")[:7] == ["lm-law", "300", "domain", "5e-05", "1", "1.0", "3.25"]


def test_a_run_that_is_done_again_replaces_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "effect.tsv")
    store.add(entry(0))
    store.add({**entry(0), "alpha": 0.5})
    assert [found["alpha"] for found in store.load()["lm-law"]] == [0.5]


def test_files_do_not_depend_on_the_order_in_which_runs_end(tmp_path: Path) -> None:
    stores = [Store(tmp_path / folder / "effect.tsv") for folder in ("first", "second")]
    for store, seeds in zip(stores, ((0, 1, 2), (2, 0, 1)), strict=True):
        for seed in seeds:
            store.add(entry(seed))
    first, second = ([store.table.read_bytes(), store.predictions.read_bytes()] for store in stores)
    assert first == second


def test_runs_that_end_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "effect.tsv")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.add, map(entry, range(24))))
    assert [found["seed"] for found in store.load()["lm-law"]] == list(range(24))


def test_the_recorded_results_are_whole_and_written_as_the_store_writes_them(tmp_path: Path) -> None:
    for path in (run.RESULTS, noise.RESULTS):
        recorded, copy = Store(path), Store(tmp_path / path.name)
        rows = recorded.rows()
        assert rows
        copy.write_rows(rows.values())
        assert copy.table.read_bytes() == path.read_bytes()
        assert set(recorded.packed()) == set(rows)


# The programs, and the page that says what they print.

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
PAGE = (ROOT / "docs" / "evidence.md").read_text("utf-8")
PROGRAMS = sorted(path.relative_to(BENCHMARKS) for path in BENCHMARKS.rglob("*.py"))
WITH_OPTIONS = [path for path in PROGRAMS if "ArgumentParser" in (BENCHMARKS / path).read_text("utf-8")]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without rules."""
    lines = (line for line in text.splitlines() if line.startswith("|") and ":--" not in line)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_programs_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--table", "all", "amount", "trade-off", "trade-off-full", "unseen", "self"]) == 0
    assert noise.main(["--table"]) == 0
    printed = rows(capsys.readouterr().out)
    shown = rows(PAGE)
    assert len(shown) == 13 + 10 + 8 + 7 + 7 + 10 + 9
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "resume.py --steps 2 3 --host_steps 2 3 --rounds 1",
        "overhead.py --steps 2 --pairs 1",
        "sweep.py --examples 8 --length 4 --pairs 1 --rounds 2 --threads 1",
        "slider.py --texts 1 --moves 2",
        "plan.py --ranks 3 --rows 200",
    ],
)
def test_a_program_prints_its_table(command: str, tmp_path: Path, commands: Path) -> None:
    name, *arguments = command.split()
    done = run_python(str(BENCHMARKS / name), *arguments, cwd=tmp_path, python=commands / "python")
    assert done.returncode == 0, done.stderr
    _, *found = rows(done.stdout)
    assert len(found) >= 2
    assert all(any(char.isdigit() for char in "".join(row[1:])) for row in found)


@pytest.mark.slow
def test_merges_are_not_compared_without_mergekit(tmp_path: Path, commands: Path) -> None:
    done = run_python(str(BENCHMARKS / "merge.py"), "--check", cwd=tmp_path, python=commands / "python")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--check needs --mergekit" in done.stderr


@pytest.mark.slow
def test_the_program_for_a_card_runs_on_a_processor(tmp_path: Path, commands: Path) -> None:
    def started(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_python(str(BENCHMARKS / "gpu.py"), *arguments, cwd=tmp_path, python=commands / "python")

    done = started("--tiny")
    assert done.returncode == 0, done.stderr
    header, *found = rows(done.stdout)
    assert header == ["what", "measured"]
    assert len(found) == 10
    for what, measured in found:
        assert any(char.isdigit() for char in measured), what
    late = started("--tiny", "--seconds", "0")
    assert [row[1] for row in rows(late.stdout)[1:]] == ["left out: the time was over"] * 10
    if not torch.cuda.is_available():
        refused = started()
        assert (refused.returncode, refused.stderr.count("There is no card here. Say --tiny")) == (2, 1)
