"""A trained model where it is to run: as docs/training.md exports it to ONNX."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_interp.train import run_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_classifier_gives_the_same_logits_in_onnx(
    tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run_recipe({**make_recipe(tmp_path / "run"), "alpha_search": {"alphas": 2}})
    monkeypatch.chdir(tmp_path)
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "onnx" in block)
    for folder in (tmp_path / "run", tmp_path / "run" / "interpolated"):
        exec(snippet, {"folder": str(folder)})
        session = onnxruntime.InferenceSession("model.onnx")
        texts = ["good0 word1", "bad1 word2 word3 word4 good2", "word0"]  # another shape than the export has seen
        inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        (found,) = session.run(None, {each.name: inputs[each.name].numpy() for each in session.get_inputs()})
        with torch.no_grad():
            expected = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
