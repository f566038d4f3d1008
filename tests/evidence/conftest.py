"""The benchmark programs on the path, and a pair of corpora on which they run in seconds."""

import gzip
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from effect import pairs

from hf_interp.commands.demo import LABEL_NAMES


@pytest.fixture
def toy_pair(tmp_path: Path, tiny_model_dir: Path, toy_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a pair of toy corpora in the table of pairs."""
    for side in ("general", "domain"):
        (tmp_path / "data" / side).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = (toy_data_dir / f"{side}_{split}.jsonl").read_bytes()
            (tmp_path / "data" / side / f"{split}.jsonl.gz").write_bytes(gzip.compress(rows))
    toy = pairs.Pair(
        name="toy",
        title="toy",
        task="sequence-classification",
        metric="accuracy",
        general=str(tmp_path / "data" / "general"),
        domain=str(tmp_path / "data" / "domain"),
        base=str(tiny_model_dir),
        base_steps=3,
        base_batch_size=4,
        fields={"max_length": 16},
        labels=tuple(LABEL_NAMES),
        steps=4,
        batch_size=4,
        learning_rates=(1e-3,),
        validation=10,
        test=12,
    )
    monkeypatch.setitem(pairs.PAIRS, "toy", toy)
    return toy.name
