"""Real processes that begin at once: forks of a server that has imported everything already."""

import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
"""Of the helpers of the tests, which processes are to find."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["toys"])


def python_path(*folders: Path) -> str:
    """Return a `PYTHONPATH` of these folders and of the helpers of the tests."""
    return os.pathsep.join(map(str, (*folders, FOLDER)))


def start(log: Path, function: Callable[..., None], *arguments: Any, processes: int = 1) -> list[BaseProcess]:
    """Begin the processes of a run, each in a process group of its own; what they print goes to `log`."""
    port = _free_port()
    with pytest.MonkeyPatch.context() as patch:  # the server is to find what it imports
        patch.setenv("PYTHONPATH", str(FOLDER), prepend=os.pathsep)
        forkserver.ensure_running()
    found = []
    for rank in range(processes):
        found.append(FORKS.Process(target=_begin, args=(log, rank, processes, port, function, arguments)))
        found[-1].start()
    return found


def finish(log: Path, started: Sequence[BaseProcess], timeout: float = 120) -> None:
    """Wait for processes that are to end well."""
    try:
        for process in started:
            process.join(timeout)
        assert [process.exitcode for process in started] == [0] * len(started), log.read_text()
    finally:
        kill(started)


def run(log: Path, function: Callable[..., None], *arguments: Any, processes: int = 1) -> None:
    """Run a function in new processes to its end."""
    finish(log, start(log, function, *arguments, processes=processes))


def kill(started: Sequence[BaseProcess]) -> None:
    """Kill processes with all that they have started."""
    for process in started:
        if process.exitcode is None and process.pid is not None:
            for send, target in ((os.killpg, process.pid), (os.kill, process.pid)):
                try:
                    send(target, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    for process in started:
        process.join(60)


def _begin(
    log: Path, rank: int, processes: int, port: int, function: Callable[..., None], arguments: Sequence[Any]
) -> None:
    gc.freeze()  # accelerate collects after every training; what the server has imported is no garbage
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was started by itself
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function(*arguments)
    if processes > 1:
        import torch.distributed

        if torch.distributed.is_initialized():  # or gloo's threads may abort a process that ends before the others
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
