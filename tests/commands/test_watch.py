"""What a run tells while it is at work, and `hf-interp watch`."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from hf_interp import cli, train
from hf_interp.train import run_recipe
from hf_interp.training.progress import ProgressLine
from hf_interp.utils.files import read_json
from hf_interp.utils.run_folder import LOCK_NAME

FIELDS = {"disable_tqdm": False, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]
) -> tuple[Path, list[str], dict[str, Any]]:
    """The folder of a run with a checkpoint, the lines that it told, and its results."""
    folder = tmp_path_factory.mktemp("told") / "out"
    saved = {"save_strategy": "steps", "save_steps": 4, "alpha_search": {"alphas": 2}}
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()) as out:
        run_recipe({**make_recipe(folder), **FIELDS, **saved})
    assert out.getvalue() == ""
    return folder, err.getvalue().splitlines(), json.loads((folder / "results.json").read_text("utf-8"))


def watched(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what `watch --once` prints of a run."""
    assert cli.main(["watch", str(folder), "--once"]) == 0
    return capsys.readouterr().out.splitlines()


def evaluation_lines(results: dict[str, Any], step: int) -> list[str]:
    """Write the evaluations after a step from the log itself."""
    entries = [entry for entry in results["log_history"] if entry["step"] == step]
    lines = []
    for name in ("general", "domain"):
        entry = next(entry for entry in entries if f"eval_{name}_accuracy" in entry)
        pairs = [(key.removeprefix(f"eval_{name}_"), value) for key, value in entry.items() if key.startswith("eval_")]
        speed = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in pairs if metric not in speed)
        lines.append(f"step {step}, {name}: {shown}")
    return lines


def test_a_run_tells_its_steps_and_evaluations_in_lines(told: tuple[Path, list[str], dict[str, Any]]) -> None:
    _, lines, results = told
    assert not [line for line in lines if "{" in line], "no raw dictionaries"
    for step in (0, 2, 4):
        assert [line for line in lines if line.startswith(f"step {step}, ")] == evaluation_lines(results, step)
    assert lines.count("step 0 of 4 (0%)") == 1
    last = next(entry for entry in reversed(results["log_history"]) if "loss" in entry)
    losses = [f"{side} {last[f'loss_{side}']:.4f}" for side in ("general", "domain") if last[f"share_{side}"]]
    line = rf"trained \| step 4 of 4 \(100%\) \| α {last['alpha']:.3f} \| loss {', '.join(losses)} \| "
    assert re.fullmatch(
        rf"{line}\S+ steps/s \| memory \d+\.\d\d [MG]iB", next(line for line in lines if line.startswith("trained"))
    )
    assert any(line.startswith("choosing α of the weights | step 4 of 4") for line in lines)


def test_what_is_a_divergence_or_of_averaged_weights_is_called_so(
    toy_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    toy_recipe["corpora"]["general"]["objective"] = "distill"
    results = run_recipe({**toy_recipe, **FIELDS, "average_from": 0.5})
    lines = capsys.readouterr().err.splitlines()
    named = [line.partition(": ")[0] for line in lines if re.match(r"step \d, ", line)]
    sides = ("general", "domain")
    weights = {"last weights": 4, "mean of the weights": 4}
    assert named == [
        *(f"step {step}, {side}" for step in (0, 2) for side in sides),
        *(f"step {step}, {side} ({which})" for which, step in weights.items() for side in sides),
    ]
    last, mean = [entry["eval_domain_loss"] for entry in results.log_history if "eval_domain_loss" in entry][-2:]
    assert last != mean
    for which, loss in (("last weights", last), ("mean of the weights", mean)):
        assert any(line.startswith(f"step 4, domain ({which}): loss {loss:.4f}, ") for line in lines)
    end = next(entry for entry in reversed(results.log_history) if "loss" in entry)
    losses = f"loss general {end['loss_general']:.4f} (KL), domain {end['loss_domain']:.4f} | "
    _, line, *more = watched(Path(toy_recipe["output_dir"]), capsys)
    assert losses in line
    assert [each for each in lines if each.startswith("step 4, ")][-2:] == more


def test_a_side_that_is_distilled_in_part_is_called_so(tmp_path: Path) -> None:
    progress = ProgressLine(tmp_path, distilled=["web"])
    progress._sides = {"web": "general", "books": "general", "law": "domain"}
    assert progress._divergences() == {"general": "partly KL"}


def test_an_ended_run_is_told_as_it_was_last(
    told: tuple[Path, list[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, lines, results = told
    title, line, *more = watched(folder, capsys)
    assert title.startswith(f"{folder} has ended, 0:00:")
    assert line == next(each for each in lines if each.startswith("trained")).replace("trained", "ended")
    assert more == evaluation_lines(results, 4)


def test_a_run_at_work_and_one_that_was_killed_are_told_apart(
    toy_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(toy_recipe["output_dir"])
    with pytest.raises(FloatingPointError):  # as it ends by an error, it leaves its last word
        run_recipe({**toy_recipe, **FIELDS, "learning_rate": 1e30})
    capsys.readouterr()
    state = json.loads((folder / "progress.json").read_text("utf-8"))
    title, line, *more = watched(folder, capsys)
    assert title == f"{folder} is at work (process {os.getpid()} on {state['host']})."
    assert re.match(rf"step {state['step']} of 4 \(\d+%\)", line.removeprefix("evaluating | "))
    assert [line.split(":")[0] for line in more] == [
        f"step {each['step']}, {name}" for name, each in state["evaluations"].items()
    ]
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for change, words in (
        ({"pid": int(gone.stdout)}, "was cut short: its process is gone, and it last wrote 0:00:0"),
        ({"host": "another"}, "is at work (process "),
        ({"host": "another", "time": state["time"] - 7200}, "may be gone: it runs on another and last wrote 2:00:"),
    ):
        (folder / "progress.json").write_text(json.dumps({**state, **change}), "utf-8")
        assert watched(folder, capsys)[0].startswith(f"{folder} {words}")


def test_a_run_that_sigterm_ends_is_told_to_its_last_step(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(toy_recipe["output_dir"])

    path = str(write_recipe({**toy_recipe, **FIELDS, "max_steps": 100_000, "eval_strategy": "no"}))
    ended = threading.Thread(target=terminate_at_work, args=(folder / "progress.json",))
    ended.start()
    assert train.main([path]) == 130
    ended.join()
    assert not (folder / LOCK_NAME).exists()
    (step,) = re.findall(r"The run was interrupted after step (\d+)\. There is no checkpoint", caplog.text)
    capsys.readouterr()
    title, line, *_ = watched(folder, capsys)
    assert title.startswith(f"{folder} was interrupted, 0:00:0")
    assert line.startswith(f"interrupted | step {int(step):,} of 100,000 ")


def terminate_at_work(progress: Path) -> None:
    """Send SIGTERM to this process once a run of it has taken a step."""
    until = time.monotonic() + 60
    while not (progress.is_file() and (read_json(progress) or {}).get("step")) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_is_not_watched_when_nobody_reads(tmp_path: Path) -> None:
    facts = {"step": 1, "max_steps": 4, "phase": "training", "evaluations": {}, "time": time.time()}
    state = {**facts, "pid": os.getpid(), "host": socket.gethostname()}  # at work, and without an end
    (tmp_path / "progress.json").write_text(json.dumps(state), "utf-8")
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed, redirect_stdout(closed):
        assert cli.main(["watch", str(tmp_path)]) == 0


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        ([str(tmp_path / "absent")], "absent' has no progress.json, which a run of a recipe keeps"),
        ([str(tmp_path), "--every", "0"], "`every` must be at least 0.1 seconds, got 0.0."),
    ):
        assert cli.main(["watch", *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert words in err


def test_on_a_terminal_one_line_is_renewed(
    toy_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run_recipe({**toy_recipe, **FIELDS})
    err = capsys.readouterr().err
    places = [line.split("\r")[-1].removesuffix("\x1b[K") for line in err.split("\n")]
    assert [line.split(":")[0] for line in places if line.startswith("step ")] == [
        f"step {step}, {side}" for step in (0, 2, 4) for side in ("general", "domain")
    ]
    assert "\rstep 0 of 4 (0%)\x1b[K" in err
