"""`hf-interp watch`: how far a run is, from the file that it keeps."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from hf_interp.utils.console import format_evaluation, format_progress
from hf_interp.utils.files import read_json
from hf_interp.utils.run_folder import PROGRESS_NAME

SILENCE = 60.0
"""Seconds without a word after which a run on another machine may be gone."""


def watch(folder: str | os.PathLike[str], *, once: bool = False, seconds: float = 2.0) -> None:
    """Print how far a run is, until it has ended: on a terminal in one place, elsewhere whenever something has changed.

    Raises:
        ValueError: if no run has begun in the folder, or to look more than ten times a second is asked.
    """
    if not seconds >= 0.1:
        raise ValueError(f"`every` must be at least 0.1 seconds, got {seconds}.")
    before: list[str] = []
    while True:
        lines, is_alive = describe(Path(folder))
        if before and sys.stdout.isatty():
            print(f"\x1b[{len(before)}F\x1b[J", end="")
        if lines != before or sys.stdout.isatty():
            print("\n".join(lines), flush=True)
        if once or not is_alive or getattr(sys.stdout, "is_lost", False):  # nobody reads on
            return
        before = lines
        time.sleep(seconds)


def describe(folder: Path) -> tuple[list[str], bool]:
    """Return how far a run is in a few lines, and whether it is at work.

    Raises:
        ValueError: if no run has begun in the folder.
    """
    facts = read_json(folder / PROGRESS_NAME)
    if not facts:
        raise ValueError(
            f"{str(folder)!r} has no {PROGRESS_NAME}, which a run of a recipe keeps from its first step on. Give the "
            "`output_dir` of one."
        )
    words, is_alive = _state(facts)
    lines = [format_evaluation(name, found) for name, found in facts["evaluations"].items()]
    return [f"{folder} {words}.", format_progress(facts), *lines], is_alive


def _state(facts: Mapping[str, Any]) -> tuple[str, bool]:
    """Return whether a run is at work, in words and as a fact; of another machine's, whether it was heard of lately."""
    seconds, host = max(0.0, time.time() - facts["time"]), facts["host"]
    ago = f"{timedelta(seconds=round(seconds))} ago"
    if facts["phase"] == "ended":
        return f"has ended, {ago}", False
    if facts["phase"] == "interrupted":
        return f"was interrupted, {ago}", False
    if host != socket.gethostname() and seconds > SILENCE:
        return f"may be gone: it runs on {host} and last wrote {ago}", False
    if host == socket.gethostname() and not _is_process(facts["pid"]):
        return f"was cut short: its process is gone, and it last wrote {ago}", False
    return f"is at work (process {facts['pid']} on {host})", True


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
