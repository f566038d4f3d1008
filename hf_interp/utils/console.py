"""Output on the terminal: tables, and errors in one line."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TextIO

from hf_interp.utils.redaction import find_secrets, redact_secrets

EXPECTED = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""Errors of bad input, and of a loss that is no number; any other is a fault of ours and keeps its traceback."""


def run_command(command: Callable[[], Any], *, traceback: bool = False) -> int:
    """Run a command and return its exit status: the number that it returns, or 0.

    It is 2, with one line on stderr, for bad input, and 130 when interrupted, be it by Ctrl-C or SIGTERM. A closed pipe
    ends no command.
    """
    with _lasting_streams(), _terminated_as_interrupted():
        return _run_command(command, traceback)


def _run_command(command: Callable[[], Any], traceback: bool) -> int:
    try:
        status = command()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        print("hf-interp: interrupted", file=sys.stderr)
        return 130
    except EXPECTED as error:
        if traceback:
            raise
        message = redact_secrets(" ".join(str(error).split()), find_secrets()) or type(error).__name__
        print(f"hf-interp: error: {message}", file=sys.stderr)
        return 2


class LastingStream:
    """An output stream that goes on to nowhere once its reader has left, since what is told is not worth a run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.is_lost = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, if anybody reads."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        """Write what is held back, if anybody reads."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._lose()

    def _lose(self) -> None:
        """Point the file of the stream to nowhere, for what the stream still holds and for others that write to it."""
        self.is_lost = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


@contextmanager
def _lasting_streams() -> Iterator[None]:
    streams: Any = LastingStream(sys.stdout), LastingStream(sys.stderr)
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for stream in streams:  # or Python does at its end, and says so
                stream.flush()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which clusters end programs, end a command as Ctrl-C does: in order, and with a word.

    Not a process of several: their launcher ends those that may wait for one that is gone, which hear nothing.
    """
    is_one_of_many = os.environ.get("WORLD_SIZE", "1") != "1"
    is_main = threading.current_thread() is threading.main_thread()
    if is_one_of_many or not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def interrupt(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a fork, which is ended as ever
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # some send it twice, and the end in order is under way
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def format_counts(counts: Mapping[str, int], most: int = 8) -> str:
    """Return the most frequent of some labels with their counts and shares.

    >>> format_counts({"a": 3, "b": 1})
    'a 3 (75%), b 1 (25%)'
    """
    total = sum(counts.values()) or 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{name} {count:,} ({count / total:.0%})" for name, count in ranked[:most]]
    return ", ".join([*shown, *([f"{len(ranked) - most} others"] if len(ranked) > most else [])])


def format_evaluation(name: str, found: Mapping[str, Any]) -> str:
    """Return the metrics of an evaluation set, and the step after which they were measured, in one line.

    >>> format_evaluation("domain", {"step": 50, "loss": 0.61234, "accuracy": 0.5})
    'step 50, domain: loss 0.6123, accuracy 0.5000'
    >>> format_evaluation("domain", {"step": 50, "weights": "last weights", "loss": 0.61234})
    'step 50, domain (last weights): loss 0.6123'
    """
    metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items() if isinstance(value, float))
    weights = f" ({found['weights']})" if "weights" in found else ""
    return f"step {found['step']:,}, {name or 'evaluation'}{weights}: {metrics}"


def format_progress(facts: Mapping[str, Any]) -> str:
    """Return how far a run is, in one line of what is known of it.

    >>> format_progress({"step": 40, "max_steps": 100, "alpha": 0.5, "losses": {"domain": 1.25}, "left": 75.2})
    'step 40 of 100 (40%) | α 0.500 | loss domain 1.2500 | 0:01:15 left'
    """
    step, steps = facts["step"], facts["max_steps"]
    parts = [f"step {step:,} of {steps:,} ({step / steps:.0%})"]
    if facts.get("alpha") is not None:
        parts.append(f"α {facts['alpha']:.3f}")
    if losses := facts.get("losses"):
        kinds = {side: f" ({kind})" for side, kind in facts.get("divergences", {}).items()}
        shown = [f"{side} {loss:.4f}{kinds.get(side, '')}".strip() for side, loss in losses.items()]
        parts.append(f"loss {', '.join(shown)}")
    if "rate" in facts:
        parts.append(f"{facts['rate']:.3g} steps/s")
    if facts.get("left"):
        parts.append(f"{timedelta(seconds=round(facts['left']))} left")
    if "memory" in facts:
        parts.append(f"memory {format_size(facts['memory'])}")
    return " | ".join([*([facts["phase"]] if facts.get("phase", "training") != "training" else []), *parts])


def format_size(size: float) -> str:
    """Return a number of bytes in words.

    >>> format_size(3 * 2**29), format_size(2**20)
    ('1.50 GiB', '1.00 MiB')
    """
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{size / unit:.2f} {name}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, padded so that it also reads well as plain text; the first column is flush left."""
    widths = [max(2, *(len(row[column]) for row in [header, *rows])) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (width - 1) if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
