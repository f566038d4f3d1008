"""Several processes read what one process reads, each its own part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from toys import NotingTrainer, config, losses, mixture, tiny_model

folder, batch_size, accumulation, workers = sys.argv[1], *map(int, sys.argv[2:])
args = config(
    folder,
    per_device_train_batch_size=batch_size,
    gradient_accumulation_steps=accumulation,
    dataloader_num_workers=workers,
    optim="sgd",
)
trainer = NotingTrainer(tiny_model(0.0), args, train_dataset=mixture())
trainer.train()
found = {
    "seen": [trainer.seen[step] for step in range(8)],
    "losses": losses(trainer),
    "domain_losses": [entry.get("loss_domain") for entry in trainer.state.log_history[:8]],
    "weights": float(sum(tensor.double().abs().sum() for tensor in trainer.model.state_dict().values())),
}
rank = os.environ.get("RANK", "0")
with open(os.path.join(folder, f"rank{rank}.json"), "w") as file:
    json.dump(found, file)
"""


def run(folder: Path, processes: int, batch_size: int, accumulation: int = 1, workers: int = 0) -> list[dict]:  # type: ignore[type-arg]
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = [*launcher, str(script), str(folder), str(batch_size), str(accumulation), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_any_split_of_a_global_batch_reads_and_trains_alike(tmp_path: Path) -> None:
    (whole,) = run(tmp_path / "1x8", 1, 8)
    for processes, batch_size, accumulation, workers in ((2, 2, 2, 2), (4, 2, 1, 0)):
        name = f"{processes}x{batch_size}x{accumulation}"
        parts = run(tmp_path / name, processes, batch_size, accumulation, workers)
        for step in range(8):
            union = [number for part in parts for number in part["seen"][step]]
            assert sorted(union) == sorted(whole["seen"][step])
        assert parts[0]["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert parts[0]["domain_losses"][1:] == pytest.approx(whole["domain_losses"][1:], rel=1e-5)
        assert all(part["weights"] == pytest.approx(whole["weights"], rel=1e-6) for part in parts)
