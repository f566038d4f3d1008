"""What the README shows works as written."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import config, corpus, masked_model, mixture, number_tokenizer, tiny_model, weights

from hf_interp import InterpolationTrainer
from hf_interp.cli import _parser
from hf_interp.tasks.parsing import load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "\ncorpora:" in path.read_text("utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator:UserWarning")
def test_the_python_snippet_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippet, *_ = blocks("python")
    names: dict[str, Any] = {
        "model": tiny_model(),
        "tokenizer": None,
        "compute_metrics": lambda prediction: {"mean": float(prediction.predictions.mean())},
        **mixture(),
        "general_test": corpus(0, 4),
        "domain_test": corpus(1000, 4),
    }
    assert "max_steps=1000" in snippet
    exec(snippet.replace("max_steps=1000", "max_steps=4"), names)
    trainer = names["trainer"]
    assert trainer.alpha == 1.0
    assert {"eval_general_mean", "eval_domain_mean"} <= trainer.evaluate().keys()
    assert (tmp_path / "out" / "results.json").is_file()


def test_the_snippet_on_objectives_trains(tmp_path: Path) -> None:
    snippet = next(block for block in blocks("python") if "Objective" in block)
    names: dict[str, Any] = {
        "model": tiny_model(),
        "masked_lm_model": masked_model(),
        "args": config(tmp_path),
        "tokenizer": number_tokenizer(),
        "texts": corpus(0, 12).remove_columns("labels"),
        "reviews": corpus(1000, 12),
    }
    exec(snippet, names)
    logs = [entry for entry in names["trainer"].state.log_history if "loss" in entry]
    assert "objective_loss_mlm" in logs[0]
    assert "objective_loss_task" in logs[-1]


def test_the_packing_snippet_packs() -> None:
    snippet = next(block for block in blocks("python") if "import pack" in block)
    names: dict[str, Any] = {"tokenizer": SimpleNamespace(eos_token_id=9), **mixture()}
    exec(snippet.replace("1024", "6"), names)
    rows = names["train_dataset"]["domain"]
    assert [len(row) for row in rows["input_ids"]] == [6] * 8  # 12 examples of 3 tokens and an end
    assert rows[0]["input_ids"] == [1000, 1 + 1000 % 7, 2, 9, 1001, 1 + 1001 % 7]


def test_the_snippet_on_weights_chooses_and_interpolates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippet = next(block for block in blocks("python") if "search_alpha" in block)
    trainer = InterpolationTrainer(
        model=tiny_model(),
        args=config(tmp_path),
        train_dataset=mixture(),
        eval_dataset={"general": corpus(0, 8), "domain": corpus(1000, 8)},
    )
    trainer.train()
    pretrained, trained = tiny_model(), weights(trainer)
    names: dict[str, Any] = {"trainer": trainer, "pretrained": pretrained}
    exec(snippet, names)
    alpha = names["curve"].alpha
    assert capsys.readouterr().out.endswith(f"{alpha} {names['curve'].reason}\n")
    for name, tensor in pretrained.state_dict().items():
        expected = torch.lerp(tensor, trained[name], alpha) if tensor.is_floating_point() else tensor
        assert torch.equal(trainer.model.state_dict()[name], expected)


@pytest.mark.parametrize(
    "line", [line for block in blocks("bash") for line in block.splitlines() if "hf-interp" in line]
)
def test_the_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = line.split("#")[0].split("hf-interp", 1)[1].split()
    args, flags = _parser().parse_known_args(words)
    recipe = getattr(args, "recipe", None)
    if args.command in ("train", "plan", "compare", "tune"):
        path = Path(recipe) if recipe.startswith("recipes/") else RECIPES[0]  # any, for one of the reader's
        parse_recipe(load_recipe(path, flags))
    elif args.command == "curve":  # a trained run
        parse_recipe(load_recipe(RECIPES[0], flags))
    else:
        assert not flags


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid(path: Path) -> None:
    recipe, args = parse_recipe(load_recipe(path))
    assert {config.side for config in recipe.corpora.values()} == {"general", "domain"}
    assert args.max_steps > 0
    assert set(recipe.eval_corpora) == {"general", "domain"}
