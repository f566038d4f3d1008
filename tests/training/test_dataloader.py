"""What ends the wait for the workers of a loader is told as what it is."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from toys import config

from hf_interp.training import dataloader as loaders
from hf_interp.training.dataloader import check_loader_arguments, report_dead_workers


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "Connection reset by peer"), BrokenPipeError(), ConnectionRefusedError(), EOFError()],
)
def test_a_connection_that_breaks_names_the_worker(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "WORKER_EXIT_GRACE_SECONDS", 0)
    said = rf"^A DataLoader worker exited unexpectedly.*\({type(error).__name__}: .*dataloader_num_workers.*resume_from"
    with pytest.raises(RuntimeError, match=said) as raised, report_dead_workers():
        raise error
    assert raised.value.__cause__ is error


class Dying(torch.utils.data.Dataset[Any]):
    """A corpus that kills its reader a moment after it was asked."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)


def test_torch_has_the_first_word_of_a_worker_that_is_about_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "WORKER_EXIT_GRACE_SECONDS", 60)
    waits = iter(DataLoader(Dying(), num_workers=1))
    with (
        pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid \d+\) is killed by signal"),
        report_dead_workers(),
    ):
        raise ConnectionResetError
    del waits


class Cut(torch.utils.data.Dataset[Any]):
    """A corpus whose examples come from a server that hangs up."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        raise ConnectionResetError("the server hung up")


def test_an_error_raised_in_a_worker_stays_what_it_is() -> None:
    with pytest.raises(ConnectionResetError, match="the server hung up"), report_dead_workers():
        next(iter(DataLoader(Cut(), num_workers=1)))


@pytest.mark.parametrize("error", [OSError("disk"), KeyError("input_ids"), StopIteration()])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, report_dead_workers():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length", "batch_rebalance"])
def test_an_order_that_a_mixture_does_not_keep_is_told(tmp_path: Path, strategy: str) -> None:
    args = config(tmp_path, train_sampling_strategy=strategy)
    expected = f"`train_sampling_strategy='{strategy}'` is ignored: the plan of the mixture sets the order. Take"
    warnings = check_loader_arguments(args, num_workers=0)
    assert [warning.startswith(expected) for warning in warnings] == [True] * (strategy == "batch_rebalance")
