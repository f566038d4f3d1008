"""Fixtures: no network, caches in a folder of their own, a tiny model and a tiny recipe."""

import asyncio
import atexit
import gc
import os
import shutil
import tempfile

# Before anything imports transformers or datasets, which read these once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_interp_tests_")
os.environ["HF_DATASETS_CACHE"] = os.path.join(os.environ["HF_HOME"], "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # models this small only wait for further threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or every process that loader workers are forked from warns

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from command_server import CommandServer
from documents import reading_environment
from hub_server import HubServer

if TYPE_CHECKING:  # the process that only gives tests to others is not to wait for torch
    from hf_interp.commands.demo import ToyShift

gc.disable()  # until `_short_session`: what is imported and collected stays, so that looking through it finds nothing
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

SIZES = {
    ("general", "train"): 40,
    ("domain", "train"): 12,
    ("general", "validation"): 12,
    ("domain", "validation"): 12,
    ("general", "test"): 16,
    ("domain", "test"): 16,
}
"""Rows of the files of `toy_data_dir`."""


@pytest.fixture(scope="session", autouse=True)
def _short_session() -> Iterator[None]:
    """Wait shortly, and give the garbage collector back what `_short_collections` has taken from it.

    A loader that failed is garbage when it ends its workers. Its queues end before it, so that none hears of it, and
    torch kills them after 5 s.
    """
    from torch.utils.data import _utils

    gc.enable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
        yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _short_collections(_short_session: None) -> None:
    """Exempt what is in memory before a file's tests from garbage collection.

    accelerate collects after every training: half a second a time, as the libraries and tests are a million objects.
    To give them back after each file would be to collect them all before the next.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def toy_shift() -> "ToyShift":
    """A toy language of 52 words."""
    from hf_interp.commands.demo import ToyShift

    return ToyShift(num_neutral=20, num_judging=8, num_turned=4, num_domain=8, num_domain_judging=4, label_noise=0.0)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, toy_shift: "ToyShift") -> Path:
    """A folder with an untrained BERT classifier of two labels and its word-level tokenizer."""
    from hf_interp.commands.demo import _write_untrained_model

    folder = tmp_path_factory.mktemp("tiny_model")
    _write_untrained_model(folder, toy_shift)
    return folder


@pytest.fixture(scope="session")
def toy_data_dir(tmp_path_factory: pytest.TempPathFactory, toy_shift: "ToyShift") -> Path:
    """A folder with general_train.jsonl, general_validation.jsonl, general_test.jsonl and the same for domain."""
    folder = tmp_path_factory.mktemp("toy_data")
    for (side, split), count in SIZES.items():
        rows = toy_shift.sentences(side, count, split=split, noisy=False)
        (folder / f"{side}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture(scope="session")
def make_recipe(tiny_model_dir: Path, toy_data_dir: Path) -> Callable[[Path], dict[str, Any]]:
    """A function from an `output_dir` to a recipe of four steps of four examples."""
    from hf_interp.commands.demo import LABEL_NAMES

    def corpora(split: str) -> dict[str, Any]:
        return {side: {"path": str(toy_data_dir / f"{side}_{split}.jsonl")} for side in ("general", "domain")}

    return lambda output_dir: {
        "model_name_or_path": str(tiny_model_dir),
        "label_names": list(LABEL_NAMES),
        "max_length": 16,
        "corpora": corpora("train"),
        "eval_corpora": corpora("test"),
        "validation_corpora": corpora("validation"),
        "output_dir": str(output_dir),
        "alpha_schedule_type": "linear",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }


@pytest.fixture
def toy_recipe(tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A recipe of four steps of four examples; its `output_dir` is `tmp_path / "out"`."""
    return make_recipe(tmp_path / "out")


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """A function that writes a recipe to a YAML file and returns its path."""

    def write(recipe: Mapping[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def open_hub() -> Iterator[HubServer]:
    """A hub, which `local_hub` empties."""
    with HubServer() as hub:
        yield hub


@pytest.fixture
def local_hub(open_hub: HubServer) -> HubServer:
    """An empty hub, which `commands` know."""
    open_hub.reset()
    return open_hub


@pytest.fixture(scope="session")
def commands(open_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an `hf-interp` and a `python` that begin at once, as a user of the hub has them."""
    environment = reading_environment(open_hub.environment(tmp_path_factory.mktemp("home")))
    imports = ("hf_interp.commands.curve", "hf_interp.commands.demo", "hf_interp.train", "python_session")
    with tempfile.TemporaryDirectory() as folder, CommandServer(Path(folder), environment, *imports):
        yield Path(folder)


@pytest.fixture
def gradio(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Gradio, whose event loops are closed at the end: it makes several for every page, and leaves them open."""
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.get_event_loop_policy().new_event_loop())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", make)
    pytest.importorskip("gradio", reason="gradio is not installed")
    from hf_interp.app.page import import_gradio

    yield import_gradio()
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()
