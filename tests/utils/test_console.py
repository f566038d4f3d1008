"""The terminal: exit statuses, errors in one line, tables."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_interp.utils.console import EXPECTED, format_table, run_command


def fail_with(error: BaseException) -> None:
    raise error


def test_a_command_that_ends_well_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("`rate` must be finite, got nan."), "`rate` must be finite, got nan."),
        (TypeError("a text where a number belongs"), "a text where a number belongs"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "[Errno 2] No such file or directory: 'a.json'"),
        (ImportError("peft is not installed"), "peft is not installed"),
        (ModuleNotFoundError("No module named 'peft'"), "No module named 'peft'"),
        (ValueError("first\n  second\n\n\tthird "), "first second third"),
        (ValueError(), "ValueError"),
        (OSError(" \n"), "OSError"),
        (json.JSONDecodeError("Expecting value", "{", 1), "Expecting value: line 1 column 2 (char 1)"),
    ],
)
def test_bad_input_has_status_2_and_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: fail_with(error)) == 2
    assert capsys.readouterr() == ("", f"hf-interp: error: {line}\n")


@pytest.mark.parametrize("error", [kind("why") for kind in EXPECTED])
def test_the_traceback_is_kept_when_asked_for(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error), match="why") as caught:
        run_command(lambda: fail_with(error), traceback=True)
    assert caught.value is error
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("traceback", [False, True])
def test_an_interrupted_command_has_status_130(traceback: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: fail_with(KeyboardInterrupt()), traceback=traceback) == 130
    assert capsys.readouterr() == ("", "hf-interp: interrupted\n")


COMMAND = """
import pathlib, sys
from hf_interp.utils.console import run_command

def work():
    for number in range(20_000):
        print(number)
        print("how far", number, file=sys.stderr, flush=True)
    pathlib.Path("saved").write_text("all")
    print("done")
    return 3

sys.exit(run_command(work))
"""


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_command_goes_on_when_nobody_reads_what_it_prints(closed: tuple[str, ...], tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict.fromkeys(closed, theirs)
    done = subprocess.run([sys.executable, "-c", COMMAND], cwd=tmp_path, text=True, check=False, **streams)
    os.close(theirs)
    assert done.returncode == 3
    assert (tmp_path / "saved").read_text() == "all"
    if "stdout" not in closed:
        assert done.stdout.splitlines() == [*map(str, range(20_000)), "done"]
    if "stderr" not in closed:
        assert done.stderr.splitlines() == [f"how far {number}" for number in range(20_000)]


WAITING = """
import os, signal, sys, time
from hf_interp.utils.console import run_command

def work():
    ours, theirs = os.pipe()
    fork = os.fork()
    if fork == 0:
        os.write(theirs, b"!")
        time.sleep(20)
        os._exit(0)
    os.read(ours, 1)
    os.kill(fork, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    try:
        print(code, flush=True)
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # once more
        print("in order")

status = run_command(work)
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("processes", "status", "out", "err"),
    [("1", 130, "-15\nin order\nTrue\n", "hf-interp: interrupted\n"), ("2", -15, "-15\n", "")],
)
def test_sigterm_ends_a_command_in_order_unless_a_launcher_ends_several(
    processes: str, status: int, out: str, err: str
) -> None:
    environment = {**os.environ, "WORLD_SIZE": processes}
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        rest, error = process.communicate(timeout=30)
    assert (process.returncode, first + rest, error) == (status, out, err)


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours"), AssertionError("ours"), SystemExit("ours")])
def test_a_fault_of_ours_is_not_hidden(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error), match="ours"):
        run_command(lambda: fail_with(error))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        (["α"], [], ["| α  |", "| :- |"]),
        (["a", "b"], [["1", "2"]], ["| a  |  b |", "| :- | -: |", "| 1  |  2 |"]),
        (
            ["corpus", "n", "passes"],
            [["law", "1,000", "0.5"], ["a long name", "7", ""]],
            [
                "| corpus      |     n | passes |",
                "| :---------- | ----: | -----: |",
                "| law         | 1,000 |    0.5 |",
                "| a long name |     7 |        |",
            ],
        ),
    ],
)
def test_tables(header: list[str], rows: list[list[str]], expected: list[str]) -> None:
    assert format_table(header, rows).split("\n") == expected


def test_a_row_with_a_cell_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        format_table(["a", "b"], [["1", "2", "3"]])
