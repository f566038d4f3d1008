"""Recipes that are drafted from files and a model: what is decided, and that the recipe reads what it says."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy_recipes import ENGLISH, write_toy_models
from transformers import BertConfig, BertForSequenceClassification

from hf_interp.commands.draft import draft_recipe, look_at_model, match_labels
from hf_interp.commands.init import format_recipe, write_recipe
from hf_interp.tasks.build import check_recipe, load_data
from hf_interp.tasks.models import load_model
from hf_interp.tasks.parsing import load_recipe, parse_recipe

NAMES = ("negative", "positive")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_toy_models(tmp_path_factory.mktemp("models"))


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(ENGLISH, k=draw.randint(3, 20))) for _ in range(count)]


def write(path: Path, count: int, seed: int = 0, names: Sequence[Any] = NAMES, **columns: str) -> str:
    keys = {"text": "text", "label": "label", **columns}
    rows = [{keys["text"]: text, keys["label"]: names[n % len(names)]} for n, text in enumerate(texts(count, seed))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def reading(path: Path, text: str) -> Any:
    """What a drafted recipe reads, as `train` would read it."""
    path.write_text(text, "utf-8")
    recipe, args = parse_recipe(load_recipe(path, ["--output_dir", str(path.parent / "run"), "--use_cpu", "true"]))
    return recipe, args, load_data(recipe, check_recipe(recipe, args))


def test_a_model_that_is_not_there_is_named_by_its_folder() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder '\.\./nosuch' \(`model_name_or_path`\)"):
        look_at_model("../nosuch")


def test_a_recipe_is_of_few_lines_and_reads_what_it_says(models: dict[str, Path], tmp_path: Path) -> None:
    paths = {
        "domain": write(tmp_path / "mine.jsonl", 120, text="review", label="mood", names=("POS", "NEG")),
        "general": write(tmp_path / "other.jsonl", 400, 1),
    }
    draft = draft_recipe(str(models["encoder"]), paths, {})
    text = format_recipe(draft)
    assert text.count("\n") <= 40
    assert all("#" in line for line in text.splitlines() if line.startswith(("task:", "label_names:", "max_steps:")))
    recipe, args, data = reading(tmp_path / "recipe.yaml", text)
    assert recipe.label_names == ["negative", "positive"]
    assert recipe.corpora["domain"].label_map == {"POS": "positive", "NEG": "negative"}
    sizes = {name: len(found) for name, found in data.by_field().items()}
    for side, count in (("domain", 120), ("general", 400)):
        assert sum(size for name, size in sizes.items() if name.endswith(side)) == count
    assert {name: shared for name, (shared, _) in data.shared.items() if shared} == {}
    lengths = np.concatenate([[len(ids) for ids in corpus.dataset["input_ids"]] for corpus in data.corpora])
    assert lengths.max() <= recipe.max_length == min(32, 8 * int(np.ceil((np.percentile(lengths, 95)) / 8)))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert args.max_steps == int(np.ceil(4 * sizes["corpora.domain"] / (batch * 0.5)))


def test_what_is_given_is_not_decided(models: dict[str, Path], tmp_path: Path) -> None:
    paths = {"domain": write(tmp_path / "a.jsonl", 60), "domain_test": write(tmp_path / "b.jsonl", 20, 7)}
    given = {"max_steps": 7, "learning_rate": 1e-3, "corpora": {"domain": {"license": "mit"}}}
    draft = draft_recipe(str(models["encoder"]), paths, given)
    assert (draft.fields["max_steps"], draft.fields["learning_rate"]) == (7, 1e-3)
    assert draft.why["max_steps"] == "as you say"
    assert draft.fields["corpora"]["domain"]["license"] == "mit"
    assert draft.fields["eval_corpora"]["domain"]["path"] == paths["domain_test"]
    assert "part" not in draft.fields["corpora"]["domain"]
    assert draft.fields["alpha"] == 1.0
    assert not {"alpha_search", "anchor", "validation_corpora"} & draft.fields.keys()


@pytest.mark.parametrize("count", [1800, 3000])
def test_a_language_model_with_thousands_of_domain_examples_reads_half_of_them(
    models: dict[str, Path], tmp_path: Path, count: int
) -> None:
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(ENGLISH, k=60))} for _ in range(count)]
    paths = {"domain": str(tmp_path / "mine.jsonl"), "general": str(tmp_path / "other.jsonl")}
    for path in paths.values():
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    draft = draft_recipe(str(models["decoder"]), paths, {"max_length": 64})
    assert draft.fields["method"] == "balanced"
    assert draft.fields.get("alpha") == (0.5 if draft.examples["domain"] >= 2000 else None)
    assert (draft.examples["domain"] >= 2000) == (count == 3000)


@pytest.mark.parametrize(
    ("names", "label_names", "label_map"),
    [
        ([0, 1], ["0", "1"], None),
        ([1, 2, 10], ["1", "2", "10"], {"1": "1", "2": "2", "10": "10"}),
        ([True, False], ["False", "True"], None),
        (["b", "a", None], ["a", "b"], {None: None}),
    ],
)
def test_labels_are_in_an_order_that_the_file_is_read_by(
    models: dict[str, Path], tmp_path: Path, names: list[Any], label_names: list[str], label_map: Any
) -> None:
    draft = draft_recipe(str(models["encoder"]), {"domain": write(tmp_path / "a.jsonl", 90, names=names)}, {})
    assert draft.fields["label_names"] == label_names
    assert draft.fields["corpora"]["domain"].get("label_map") == label_map
    _, _, data = reading(tmp_path / "recipe.yaml", format_recipe(draft))
    kept = [str(names[n % len(names)]) for n in range(90) if names[n % len(names)] is not None]
    read = [label for found in data.by_field().values() for label in found["labels"]]
    assert sorted(label_names[label] for label in read) == sorted(kept)


def test_labels_are_matched_whatever_their_case_and_by_their_beginning() -> None:
    assert match_labels(["Neg", "neutral"], ["negative", "neutral"]) == {"Neg": "negative", "neutral": "neutral"}
    assert match_labels(["ne"], ["negative", "neutral"]) is None
    assert match_labels(["other"], ["negative"]) is None


def test_spellings_of_one_label_are_one_class(models: dict[str, Path], tmp_path: Path) -> None:
    names = ["Billing", "Tech", "Billing", "Tech", "billing ", " tech", "TECH"]
    paths = {"domain": write(tmp_path / "a.jsonl", 140, names=names)}
    draft = draft_recipe(str(models["encoder"]), paths, {})
    assert draft.fields["label_names"] == ["Billing", "Tech"]
    wanted = {"billing ": "Billing", " tech": "Tech", "TECH": "Tech"}
    assert draft.fields["corpora"]["domain"]["label_map"] == wanted
    for label, name in wanted.items():
        assert f"labels of domain: {label!r} is read as {name!r}; if they are two, " in "\n".join(draft.notes)
    _, _, data = reading(tmp_path / "recipe.yaml", format_recipe(draft))
    read = [label for found in data.by_field().values() for label in found["labels"]]
    assert [read.count(label) for label in (0, 1)] == [60, 80]
    both = draft_recipe(str(models["encoder"]), paths, {"label_names": sorted({*names})})  # they are five
    assert "label_map" not in both.fields["corpora"]["domain"]


def test_texts_are_packed_into_blocks_that_the_smallest_set_fills(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(texts(100)), "utf-8")
    draft = draft_recipe(str(models["decoder"]), {"domain": str(tmp_path / "a.txt")}, {})
    assert draft.fields["task"] == "causal-lm"
    recipe, _, data = reading(tmp_path / "recipe.yaml", format_recipe(draft))
    assert len(data.eval_sets["domain"]) >= 3
    assert recipe.corpora["domain"].document == "paragraph"


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (
            {"domain_test": (60, 0)},
            {},
            r"60 of 60 rows of .* are trained on\. .* or leave --domain_test out",
        ),
        ({"general": (60, 1, ("x", "y"))}, {}, "The labels differ: general .*--corpora.domain.label_map"),
        (
            {"domain": (3, 0)},
            {},
            r"too few rows .* a part for `eval_corpora`\. Give one .* --domain_test",
        ),
        ({}, {"label_column": "labl"}, r"has no column 'labl' \(--label_column\).*Did you mean 'label'"),
        ({}, {"max_lenght": 3}, "Unknown field 'max_lenght' in the recipe. Did you mean 'max_length'"),
    ],
)
def test_what_cannot_be_decided_is_refused_by_the_flag_that_settles_it(
    models: dict[str, Path], tmp_path: Path, files: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    wanted = {"domain": (60, 0), **files}
    paths = {name: write(tmp_path / f"{name}.jsonl", *arguments) for name, arguments in wanted.items()}
    with pytest.raises(ValueError, match=message):
        draft_recipe(str(models["encoder"]), paths, given)


def test_dialogues_need_a_template_and_are_long_enough_for_every_answer(
    models: dict[str, Path], tmp_path: Path
) -> None:
    found = [{"prompt": text * (1 + 3 * (n == 0)), "completion": "falls"} for n, text in enumerate(texts(40))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    paths = {"domain": str(tmp_path / "a.jsonl")}
    with pytest.raises(ValueError, match=r"\(--chat_template chatml\)"):
        draft_recipe(str(models["decoder"]), paths, {})
    draft = draft_recipe(str(models["decoder"]), paths, {"chat_template": "chatml"})
    assert (draft.fields["task"], draft.fields["peft"], draft.fields["learning_rate"]) == ("chat", "lora", 2e-4)
    _, _, data = reading(tmp_path / "recipe.yaml", format_recipe(draft))
    assert all(any(label != -100 for label in row) for found in data.by_field().values() for row in found["labels"])


def test_a_general_side_that_is_read_too_often_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    paths = {"domain": write(tmp_path / "mine.jsonl", 300), "general": write(tmp_path / "other.jsonl", 40, 1)}
    draft = draft_recipe(str(models["encoder"]), paths, {})
    passes = draft.fields["max_steps"] * 8 / draft.examples["general"]
    assert draft.notes[-1].startswith(f"general: its {draft.examples['general']} examples are read {passes:.0f} times")
    paths["general"] = write(tmp_path / "more.jsonl", 300, 1)
    assert "are read" not in draft_recipe(str(models["encoder"]), paths, {}).notes[-1]


def test_a_recipe_is_not_written_over(tmp_path: Path, models: dict[str, Path]) -> None:
    draft = draft_recipe(str(models["encoder"]), {"domain": write(tmp_path / "a.jsonl", 60)}, {})
    write_recipe(draft, tmp_path / "recipe.yaml")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text("utf-8"))["eval_corpora"]["domain"]["part"] == [0.8, 1.0]
    with pytest.raises(ValueError, match=r"exists\. Say another --output"):
        write_recipe(draft, tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("names", "is_told"), [(["NEGATIVE", "positive"], False), (["good", "poor"], True)])
def test_labels_that_a_trained_head_does_not_know_are_told(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], is_told: bool
) -> None:
    config = BertConfig.from_pretrained(models["encoder"], id2label={0: "negative", 1: "positive"})
    BertForSequenceClassification(config).save_pretrained(shutil.copytree(models["encoder"], tmp_path / "m"))
    paths = {"domain": write(tmp_path / "a.jsonl", 90, names=names)}
    draft = draft_recipe(str(tmp_path / "m"), paths, {})
    assert any("trained for negative, positive, and is read as good, poor" in note for note in draft.notes) == is_told
    recipe, _, _ = reading(tmp_path / "recipe.yaml", format_recipe(draft))
    load_model(recipe)
    assert ("M₀'s head was trained for negative, positive" in caplog.text) == is_told
