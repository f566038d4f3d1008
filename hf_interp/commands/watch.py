"""`hf-interp watch`: how far a run is, from the files that it writes."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from hf_interp.reporting.results import evaluations, losses_by_side
from hf_interp.utils.console import format_evaluation, format_progress
from hf_interp.utils.files import read_json
from hf_interp.utils.run_folder import CURVE_NAME, PROGRESS_NAME, RESULTS_NAME

SILENCE = 60.0
"""Seconds without a word after which a run on another machine may be gone."""


def watch(folder: str | os.PathLike[str], *, once: bool = False, seconds: float = 2.0) -> None:
    """Print how far a run is, until it has ended: on a terminal in one place, elsewhere whenever something has changed.

    Raises:
        ValueError: if no run writes into the folder, or to look less than ten times a second is asked.
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
        if once or not is_alive:
            return
        before = lines
        time.sleep(seconds)


def describe(folder: Path) -> tuple[list[str], bool]:
    """Return how far a run is in a few lines, and whether it is at work.

    Raises:
        ValueError: if no run writes into the folder.
    """
    facts = read_json(folder / PROGRESS_NAME)
    is_alive = bool(facts) and _is_alive(facts)
    if facts:
        words = _words(facts, is_alive)
    elif facts := _facts_of_results(read_json(folder / RESULTS_NAME)):
        words = "has ended"
    elif facts := _facts_of_checkpoint(folder):
        words = f"has a checkpoint, and no {PROGRESS_NAME} of a run at work"
    else:
        raise ValueError(
            f"{str(folder)!r} is no folder of a run: it has no {PROGRESS_NAME}, no {RESULTS_NAME} and no checkpoint. "
            "Give the `output_dir` of a run."
        )
    lines = [f"{folder} {words}.", format_progress(facts)]
    lines += [format_evaluation(name, found) for name, found in facts["evaluations"].items()]
    curve = None if is_alive else read_json(folder / CURVE_NAME)
    return lines + ([f"α of the weights: {curve['alpha']:g}"] if curve else []), is_alive


def _is_alive(facts: Mapping[str, Any]) -> bool:
    """Whether the process of a run is at work; of another machine's, whether it was heard of lately."""
    if facts["host"] != socket.gethostname():
        return time.time() - facts["time"] < SILENCE
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _words(facts: Mapping[str, Any], is_alive: bool) -> str:
    ago = f"{timedelta(seconds=max(0, round(time.time() - facts['time'])))} ago"
    if is_alive:
        return f"is at work (process {facts['pid']} on {facts['host']})"
    if facts["host"] == socket.gethostname():
        return f"was cut short: its process is gone, and it last wrote {ago}"
    return f"may be gone: it runs on {facts['host']} and last wrote {ago}"


def _facts_of_results(results: Any) -> dict[str, Any]:
    """Return how far a run came, from its results; nothing from other files of that name."""
    if not isinstance(results, dict) or not results.get("log_history") or "plan" not in results:
        return {}
    return _facts_of_log(results["log_history"], results["plan"])


def _facts_of_checkpoint(folder: Path) -> dict[str, Any]:
    """Return how far a run was at its last checkpoint, if it has one."""
    numbers = [int(path.name[11:]) for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    state = read_json(folder / f"checkpoint-{max(numbers)}" / "trainer_state.json") if numbers else None
    if not isinstance(state, dict):
        return {}
    callback = state.get("stateful_callbacks", {}).get("AlphaCallback", {})
    plan = (callback.get("attributes", {}).get("mixture") or {}).get("plan") or {}
    facts = _facts_of_log(state["log_history"], {"corpora": [], **plan, "max_steps": state["max_steps"]})
    return {**facts, "step": state["global_step"]}


def _facts_of_log(log_history: list[dict[str, Any]], plan: Mapping[str, Any]) -> dict[str, Any]:
    logs: dict[str, Any] = next((entry for entry in reversed(log_history) if "loss" in entry), {})
    sides = {corpus["name"]: corpus["side"] for corpus in plan["corpora"]}
    measured: dict[str, Any] = {}
    for entry in log_history:
        for name, found in evaluations([entry]).items():
            measured[name] = {"step": entry["step"], **found}
    return {
        "step": max(entry["step"] for entry in log_history) if log_history else 0,
        "max_steps": plan["max_steps"],
        "alpha": logs.get("alpha"),
        "losses": losses_by_side(logs, sides) if logs else {},
        "evaluations": measured,
    }
