"""The script that runs transformers' own trainer tests with our classes, on a small checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("host_suite.py")
TESTS = """
import pytest
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer import Trainer as Same

def test_alike():
    assert issubclass(Seq2SeqTrainer, Same) or Trainer is Same

def test_names():
    assert (Trainer.__name__, Seq2SeqTrainer.__name__, Same.__name__) == ("Trainer", "Seq2SeqTrainer", "Trainer")

def test_failing_alike():
    raise ValueError("as ever")

@pytest.mark.skip
def test_skipped():
    pass
"""


@pytest.mark.slow
def test_what_differs_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "trainer"
    folder.mkdir(parents=True)
    (folder / "test_trainer.py").write_text(TESTS)
    command = [sys.executable, str(SCRIPT), str(tmp_path), "-p", "no:cacheprovider"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1, found.stderr
    *_, name, host, ours, last = found.stdout.splitlines()
    assert name == "tests.trainer.test_trainer::test_names"
    assert host == "  Trainer:              passed"
    assert ours.startswith("  InterpolationTrainer: failed: AssertionError: assert ('Interpolati")
    assert last == "4 tests, 1 end otherwise with our classes."
    wrong = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1
    assert "PATH is a checkout of the version of transformers" in wrong.stderr


# What a thousand slips come to: a fixed seed of the driver finds nothing but lines.


FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
def test_broken_input_is_refused_in_one_line() -> None:
    done = subprocess.run([sys.executable, FUZZ, "--seed", "18", "--count", "150"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
