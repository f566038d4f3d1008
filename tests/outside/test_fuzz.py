"""What a thousand slips come to: a fixed seed of the driver finds nothing but lines."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
def test_broken_input_is_refused_in_one_line() -> None:
    done = subprocess.run([sys.executable, FUZZ, "--seed", "18", "--count", "150"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
