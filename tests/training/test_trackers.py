"""Trackers: the mixture in a run's configuration, what is logged, and the picture at the end."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import processes
import pytest
from toys import config, mixture, tiny_model

from hf_interp import InterpolationTrainer
from hf_interp.train import run_recipe
from hf_interp.training.trackers import MixtureTracker, add_picture


def picture(folder: Path) -> Path:
    path = folder / "picture.png"
    plt.imsave(path, [[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    return path


def trained(folder: Path, **kwargs: Any) -> InterpolationTrainer:
    trainer = InterpolationTrainer(tiny_model(), config(folder, save_strategy="no", **kwargs), train_dataset=mixture())
    trainer.train()
    return trainer


def test_without_trackers_nothing_is_told(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    assert not any(isinstance(each, MixtureTracker) for each in trainer.callback_handler.callbacks)
    before = sorted(tmp_path.rglob("*"))
    add_picture(trainer, "alpha_curve", picture(tmp_path))
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "picture.png"])


def test_tensorboard_gets_the_mixture_and_the_curve(
    tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "out"
    run_recipe({**make_recipe(folder), "report_to": "tensorboard", "alpha_search": {"alphas": 2}})
    (place,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(place), size_guidance={"tensors": 0, "images": 0}).Reload()
    (text,) = events.Tensors("mixture/text_summary")
    told = json.loads(text.tensor_proto.string_val[0].decode().removeprefix("```json").removesuffix("```"))
    assert [(corpus["name"], corpus["drawn"]) for corpus in told["corpora"]] == [("general", 8), ("domain", 8)]
    (image,) = events.Images("alpha_curve")
    assert (image.width, image.height) > (300, 200)
    assert image.step == 4
    assert {"train/alpha", "train/share_domain", "train/passes_domain", "train/loss_domain"} <= set(
        events.Tags()["scalars"]
    )


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_trackers import picture, trained
from hf_interp.training.trackers import add_picture

folder = Path({folder!r})
trainer = trained(folder, report_to=[{tracker!r}], run_name="mine", project="ours")
add_picture(trainer, "alpha_curve", picture(folder))
{finish}
"""


def in_a_process(folder: Path, tracker: str, finish: str, environment: dict[str, str]) -> None:
    """Run apart: trackers leave threads and servers behind in the process that uses them."""
    import os

    script = SCRIPT.format(
        tests=processes.python_path(Path(__file__).parent).split(os.pathsep),
        folder=str(folder),
        tracker=tracker,
        finish=finish,
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.slow
def test_weights_and_biases_gets_them_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    finish = """
import wandb, json
Path("seen.json").write_text(json.dumps({"config": dict(wandb.run.config), "keys": list(wandb.run.summary.keys())}))
wandb.finish()
"""
    in_a_process(
        tmp_path, "wandb", finish, {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    )
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [corpus["name"] for corpus in seen["config"]["mixture"]["corpora"]] == ["general", "domain"]
    assert seen["config"]["alpha_schedule_type"] == "linear"
    assert {"alpha_curve", "train/alpha", "train/share_domain", "train/loss_general"} <= set(seen["keys"])
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/alpha_curve*.png"))


@pytest.mark.slow
def test_trackio_gets_them(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    in_a_process(tmp_path, "trackio", "", {"TRACKIO_DIR": str(tmp_path / "trackio")})
    (database,) = (tmp_path / "trackio").glob("ours*.db")
    with sqlite3.connect(database) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        text = json.dumps([[str(row) for row in connection.execute(f"select * from {name}")] for name in tables])
    assert "fingerprint" in text
    assert "alpha_curve" in text
    assert "train/share_domain" in text
    assert "mine" in text
