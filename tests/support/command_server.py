"""Commands that begin at once: each is a fork of a process that has imported everything already.

`CommandServer` writes `hf-interp` and `python` into a folder for the `PATH`. Run as a program, this file is that
process.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

COMMAND = """#!{python} -ES
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    task = {{"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}
    text = json.dumps(task).encode()
    socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(text)
    sys.exit((server.recv(1) or b"\\1")[0])
"""
SECONDS = 0.02
"""Between two looks at whether a command has ended."""


class CommandServer:
    """The process behind the commands in a folder; use it in a `with` statement.

    Args:
        folder: where the commands are written; its path is short, as it holds a socket.
        environment: of the process.
        imports: the modules that it imports.
        within: a command that runs the process somewhere else, such as in a network of its own.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], *imports: str, within: Sequence[str] = ()) -> None:
        address = folder / "socket"
        for name in ("hf-interp", "python"):
            (folder / name).write_text(COMMAND.format(python=sys.executable, address=str(address)), encoding="utf-8")
            (folder / name).chmod(0o755)
        command = [
            *within,
            sys.executable,
            __file__,
            str(address),
            *(imports or ("hf_interp.commands.curve", "hf_interp.train")),
        ]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "CommandServer":
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            self._process.terminate()


def serve(address: str, *imports: str) -> None:
    """Run what comes to a socket, each command in a fork, until this process is ended."""
    gc.disable()  # what is imported is no garbage
    for name in imports:
        importlib.import_module(name)
    given = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [place for place in sys.path[1:] if place not in given]
    gc.freeze()  # accelerate collects after every training
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who look after commands are not waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _look_after(client)
            client.close()


def _look_after(client: socket.socket) -> None:
    """Run a command to its end, or until who typed it is gone; then end this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += client.recv(size - len(text))
    command = os.fork()
    if command == 0:
        client.close()
        _run(json.loads(text), files)
    client.setblocking(False)
    while (found := os.waitpid(command, os.WNOHANG)) == (0, 0):
        with contextlib.suppress(BlockingIOError):
            if client.recv(1) == b"":
                os.kill(command, signal.SIGKILL)
        time.sleep(SECONDS)
    with contextlib.suppress(OSError):
        client.send(bytes([max(os.waitstatus_to_exitcode(found[1]), 0) if os.WIFEXITED(found[1]) else 137]))
    os._exit(0)


def _run(task: Mapping[str, object], files: list[int]) -> None:
    """Be the command as it was typed, and end this process as it does."""
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    sys.argv = task["arguments"]
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        setattr(sys, name, os.fdopen(number, mode, buffering=1, encoding="utf-8", closefd=False))
    status = 1
    try:
        _run_python([*sys.argv[1:]] if Path(sys.argv[0]).name == "python" else ["-m", "hf_interp.cli", *sys.argv[1:]])
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _run_python(words: Sequence[str]) -> None:
    """Be `python` with these words: a program, `-m` with a module or `-c` with code; before them only `-W` or `-u`."""
    words = words[{"-W": 2, "-u": 1}.get(words[0], 0) :]
    is_program = not words[0].startswith("-")
    what, sys.argv = (words[0], [*words]) if is_program else (words[1], [*words[:1], *words[2:]])
    places = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [str(Path(what).resolve().parent) if is_program else "", *places]
    if is_program:
        runpy.run_path(what, run_name="__main__")
    elif words[0] == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert words[0] == "-c", f"not known here: python {words[0]}"
        sys.modules["__main__"] = ModuleType("__main__")
        exec(what, vars(sys.modules["__main__"]))


if __name__ == "__main__":
    serve(*sys.argv[1:])
