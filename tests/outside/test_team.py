"""A team: two processes, a run that is killed and goes on, proof that nothing was read twice, a merge, a push."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from document_files import lay_two_files
from hub_server import HubServer
from safetensors.torch import load_file
from toys import same_weights

pytestmark = pytest.mark.slow

TWO_PROCESSES = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu.yaml"
RECIPE = {
    "model_name_or_path": "toy-models/classifier",
    "label_names": ["negative", "positive"],
    "max_length": 16,
    "corpora": {side: {"path": f"{side}.jsonl"} for side in ("general", "domain")},
    "eval_corpora": {side: {"path": f"{side}_test.jsonl"} for side in ("general", "domain")},
    "validation_corpora": {side: {"path": f"{side}_validation.jsonl"} for side in ("general", "domain")},
    "alpha_search": {"method": "grid", "alphas": 3},
    "alpha_schedule_type": "linear",
    "output_dir": "runs/whole",
    "max_steps": 60,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "save_steps": 5,
    "report_to": "none",
    "use_cpu": True,
}


def launch(*words: Any) -> list[Any]:
    """The words of `accelerate launch` with two processes on the CPU."""
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        TWO_PROCESSES,
        "-m",
        "hf_interp.train",
        *words,
    ]


def test_a_killed_run_of_two_goes_on_and_is_merged_and_pushed(
    quick_user: Callable[..., Any], local_hub: HubServer, tmp_path: Path
) -> None:
    lay_two_files(tmp_path)
    team = quick_user(**local_hub.environment(tmp_path))
    team.write("recipe.yaml", RECIPE)
    two = ["recipe.yaml", "--output_dir", "runs/two", "--per_device_train_batch_size", 2]
    with team.start(*launch(*two)) as first:
        end = time.monotonic() + 240
        while not (tmp_path / "runs/two/checkpoint-10").is_dir():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (tmp_path / "runs/two/results.json").exists()
    for words in ([*two, "--resume_from_checkpoint", "true"], ["recipe.yaml", *two[3:]]):
        with team.start(*launch(*words)) as going:
            out, err = going.communicate(timeout=300)
        assert going.returncode == 0, f"{out[-1000:]}\n{err[-2000:]}"
    assert team.ask("verify", "runs/whole", "runs/two")["agrees"]
    killed, whole = (load_file(tmp_path / "runs" / run / "model.safetensors") for run in ("two", "whole"))
    assert same_weights(killed, whole)
    team.type("train", "recipe.yaml", "--output_dir", "runs/one")
    assert team.ask("verify", "runs/one", "runs/two")["agrees"]
    other = ["--seed", 1, "--output_dir", "runs/other"]
    team.type("train", "recipe.yaml", *other)
    assert not team.ask("verify", "runs/whole", "runs/other", status=1)["agrees"]
    report = team.ask("merge", "toy-models/classifier", "runs/two", "runs/other", "soup", "--alpha", 0.5)
    assert report
    assert "holds files" in team.type("merge", "toy-models/classifier", "runs/two", "soup", "--alpha", 0.5, status=2)
    team.type("push", "runs/two", "--repo", "jane/two", "--private")
    repo = local_hub.repos["jane/two"]
    assert repo.private
    assert repo.files("finetuned")["model.safetensors"] == (tmp_path / "runs/two/model.safetensors").read_bytes()
    assert not any("checkpoint" in name or name == "training_args.bin" for name in repo.files())
    assert b"hf_writer" not in local_hub.sent()


def test_corpora_are_read_from_the_web_the_hub_and_its_buckets(
    quick_user: Callable[..., Any], local_hub: HubServer, tmp_path: Path
) -> None:
    lay_two_files(tmp_path)
    lines = (tmp_path / "domain.jsonl").read_text("utf-8").splitlines()
    rows = [*{row["text"]: row for row in map(json.loads, lines)}.values()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    local_hub.add_repo("jane/data").files()["rows.parquet"] = content
    headless = "".join(f"{row['text']}\t{row['label']}\n" for row in rows).encode()
    local_hub.buckets["jane/box"] = {"a.parquet": content, "deep/b.parquet": content, "bare.tsv": headless}
    jane = quick_user(**local_hub.environment(tmp_path))
    places = {
        f"{local_hub.url}/jane/data/resolve/main/rows.parquet": len(rows),
        "hf://jane/data/rows.parquet": len(rows),
        "hf://buckets/jane/box/**/*.parquet": 2 * len(rows),
    }
    for place, count in places.items():
        (found,) = jane.ask("check", place, status=int(count > len(rows)))["files"]
        assert (found["rows"], found["format"], found["task"]) == (count, "parquet", "sequence-classification")
    found = jane.type("check", "hf://buckets/jane/box/lost.parquet", status=2)
    assert "cannot be loaded: Unable to find 'hf://buckets/jane/box/lost.parquet'" in found
    data = ["--domain", "hf://buckets/jane/box/bare.tsv", "--general", "hf://buckets/jane/box/a.parquet"]
    jane.type("adapt", "--model", "toy-models/classifier", *data, "--max_steps", 2, "--use_cpu", "true")
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text("utf-8"))
    assert recipe["corpora"]["domain"]["header"] is False
    assert (tmp_path / recipe["output_dir"] / "README.md").is_file()
