"""Models, tokenizers and data that do not fit are refused before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make_model, make_tokenizer
from datasets import Dataset
from safetensors.torch import load_file, save_file
from toys import number_tokenizer, tiny_model

from hf_interp import cli
from hf_interp.tasks.fitness import check_inputs

Change = Callable[[Path, dict[str, Any]], None]


def configured(**fields: Any) -> Change:
    """A change of the model's config.json."""

    def change(folder: Path, recipe: dict[str, Any]) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def weighed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """A change of the model's weights."""

    def apply(folder: Path, recipe: dict[str, Any]) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})

    return apply


def without(*names: str) -> Change:
    """A model without some of its files."""
    return lambda folder, recipe: [(folder / name).unlink() for name in names] and None


def written(name: str, text: str) -> Change:
    """A model with another text for one of its files."""
    return lambda folder, recipe: (folder / name).write_text(text) and None


def poisoned(weights: dict[str, Any]) -> dict[str, Any]:
    weights["bert.encoder.layer.1.output.dense.bias"][3] = float("nan")
    return weights


def added_token(folder: Path, recipe: dict[str, Any]) -> None:
    """A word of the corpus that the tokenizer alone knows."""
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["good0"] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(words))


BROKEN: dict[str, tuple[Change, str]] = {
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        "brings no vocabulary: its tokenizer knows 5 spe",
    ),
    "no backbone": (
        weighed(lambda weights: {name: weights[name] for name in weights if name.startswith("classifier")}),
        "tensors of BertForSequenceClassification, such as 'bert.embeddings.LayerNorm.bias', which would be",
    ),
    "other weights": (
        weighed(lambda weights: {name.replace("bert.", "roberta."): tensor for name, tensor in weights.items()}),
        "which would be random; they have others, such as 'roberta.embeddings.LayerNorm.bias'. Take weights and config",
    ),
    "a lost layer": (
        weighed(lambda weights: {name: weights[name] for name in weights if ".layer.1." not in name}),
        "lack 16 of",
    ),
    "another vocabulary": (
        configured(vocab_size=20),
        "The tensor 'bert.embeddings.word_embeddings.weight' of",
    ),
    "NaN": (weighed(poisoned), "The tensor 'bert.encoder.layer.1.output.dense.bias' of "),
    "a token without embedding": (added_token, "in its input_ids, but the model has "),
    "length": (lambda folder, recipe: recipe.update(max_length=1), "`max_length` must be at least 2, for the tokens"),
    "config of nothing": (
        lambda folder, recipe: (folder / "config.json").write_text("null") and None,
        "cannot be read: ",
    ),
    "no config": (without("config.json"), "cannot be read: "),
    "half a weight file": (written("model.safetensors", "\x08"), "cannot be read: "),
    "half a tokenizer": (
        lambda folder, recipe: (folder / "tokenizer.json").write_text("{") and None,
        "cannot be read: ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_in_one_line(
    toy_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tiny_model_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    case: str,
) -> None:
    change, message = BROKEN[case]
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    toy_recipe["model_name_or_path"] = str(tmp_path / "model")
    change(tmp_path / "model", toy_recipe)
    assert cli.main(["train", str(write_recipe(toy_recipe))]) == 2
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("hf-interp: error: "))
    assert message in line
    assert case in ("length", "a token without embedding") or str(tmp_path / "model") in line
    assert not Path(toy_recipe["output_dir"]).exists()


def rows(length: int) -> dict[str, Dataset]:
    return {"corpora.law": Dataset.from_dict({"input_ids": [[4] * 3, [4] * length], "labels": [[5] * 3, [5] * length]})}


@pytest.mark.parametrize(
    ("kind", "task", "most"),
    [("bert", "SEQ_CLS", 64), ("roberta", "SEQ_CLS", 63), ("gpt2", "CAUSAL_LM", 64), ("bart", "SEQ_2_SEQ_LM", 64)],
)
def test_rows_are_as_long_as_the_positions(kind: str, task: str, most: int) -> None:
    model, words = make_model(kind, task), make_tokenizer()
    target = 8 if task == "SEQ_2_SEQ_LM" else None
    check_inputs(model, words, rows(most), target_length=target)
    longest = torch.full((1, most), 4)
    model(input_ids=longest, attention_mask=torch.ones_like(longest))
    with pytest.raises(
        ValueError, match=rf"a row of {most + 1} tokens, but the model has {most} positions\. Lower `max_l"
    ):
        check_inputs(model, words, rows(most + 1), target_length=target)


def test_models_without_a_table_of_positions_take_any_length() -> None:
    for kind, task in (("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")):
        check_inputs(make_model(kind, task), make_tokenizer(), rows(5000), target_length=5000)


def test_padding_and_outputs_have_embeddings_and_positions() -> None:
    words = number_tokenizer()
    words.add_special_tokens({"pad_token": "<new>"})
    with pytest.raises(ValueError, match="pads with '<new>', the token 2000, but the model has 2000 embeddings"):
        check_inputs(tiny_model(), words, {})
    with pytest.raises(ValueError, match=r"`generation_max_length` \(65\) is more than the model's 64 positions"):
        check_inputs(make_model("bart", "SEQ_2_SEQ_LM"), make_tokenizer(), {}, target_length=65)
