"""The curve of a run, and M_α beside its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline

from hf_interp import cli
from hf_interp.reporting.curve import format_curve, load_curve
from hf_interp.train import run_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A recipe that chooses the α of the weights by the loss, with what it wrote in its `output_dir`."""
    found = make_recipe(tmp_path_factory.mktemp("interpolated") / "out")
    found |= {"learning_rate": 1e-2, "alpha_search": {"metric": "loss", "method": "grid", "alphas": [0.25, 0.75]}}
    run_recipe(found)
    return found


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_a_run_ends_with_its_curve_and_interpolated_weights(recipe: dict[str, Any]) -> None:
    folder = Path(recipe["output_dir"])
    curve = load_curve(folder / "curve.json")
    assert curve.alphas == [0.0, 0.25, 0.75, 1.0]
    assert (curve.metric, curve.method, curve.num_evaluations) == ("loss", "grid", 4)
    assert (curve.base, curve.finetuned) == (recipe["model_name_or_path"], recipe["output_dir"])
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    base, finetuned = weights(recipe["model_name_or_path"]), weights(folder)
    found = weights(folder / "interpolated")
    assert found.keys() == finetuned.keys()
    assert all(torch.equal(found[name], torch.lerp(base[name], finetuned[name], curve.alpha)) for name in found)


def test_the_ends_of_the_curve_are_the_two_models(recipe: dict[str, Any], tmp_path: Path) -> None:
    curve = load_curve(Path(recipe["output_dir"]) / "curve.json")
    validation = {"eval_corpora": recipe["validation_corpora"], "alpha_search": None}
    results = run_recipe({**recipe, **validation, "output_dir": str(tmp_path / "out")})
    for end, metrics in ((0, results.base_metrics), (-1, results.final_metrics)):
        for side in ("domain", "general"):
            halves = [part[side]["loss"]["values"][end] for part in (curve.selection, curve.report)]
            assert sum(halves) / 2 == pytest.approx(metrics[side]["loss"], abs=1e-6)


def test_the_interpolated_model_answers_in_a_pipeline(recipe: dict[str, Any]) -> None:
    answers = pipeline("text-classification", model=str(Path(recipe["output_dir"]) / "interpolated"), device="cpu")
    assert answers("good0 word1")[0]["label"] in recipe["label_names"]


def test_the_command_prints_the_curve(
    recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    assert cli.main(["train", str(write_recipe(recipe)), "--output_dir", str(out)]) == 0
    text = capsys.readouterr().out
    assert format_curve(load_curve(out / "curve.json")) in text
    assert text.splitlines()[-1] == f"M_α is in {out}/interpolated; curve.json and curve.png are in {out}."


def test_an_adapter_is_interpolated_as_one_and_its_new_head_kept(
    recipe: dict[str, Any], tmp_path: Path, tiny_model_dir: Path
) -> None:
    backbone = tmp_path / "backbone"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir)
    model.bert.save_pretrained(backbone)
    for file in tiny_model_dir.glob("token*"):
        (backbone / file.name).write_bytes(file.read_bytes())
    out = tmp_path / "out"
    run_recipe({**recipe, "model_name_or_path": str(backbone), "peft": "lora", "output_dir": str(out)})
    alpha = load_curve(out / "curve.json").alpha
    trained, found = (load_file(folder / "adapter_model.safetensors") for folder in (out, out / "interpolated"))
    assert trained.keys() == found.keys()
    for name, tensor in trained.items():
        expected = tensor * alpha if "lora_B" in name else tensor
        assert torch.allclose(found[name], expected, atol=1e-7), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alpha_search": {"objective": "domian"}},
            "`objective` must be one of .* got 'domian'. Did you mean 'domain'",
        ),
        (
            {"alpha_search": {"objektive": "domain"}},
            "Unknown field 'objektive' in `alpha_search`. Did you mean 'objective'",
        ),
        ({"alpha_search": "yes"}, "`alpha_search` must be true or a mapping of settings, got 'yes'"),
        ({"alpha_search": {"domain": "law"}}, "needs the sets 'law' and 'general', but `validation_corpora` has"),
        ({"alpha_search": True, "validation_corpora": {}, "eval_corpora": {}}, "but `eval_corpora` has"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_training(
    recipe: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_recipe({**recipe, "output_dir": str(tmp_path / "out"), **changes})
    assert not (tmp_path / "out").exists()
