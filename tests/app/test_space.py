"""Spaces that are written are whole, say what they need, tell nothing of this machine, and read back as they were."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from architectures import make_model, make_tokenizer
from huggingface_hub import SpaceCard

from hf_interp.app.examples import Example, Source
from hf_interp.app.models import describe_pair
from hf_interp.app.space import MAX_BYTES, load_space, write_space
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.utils.task_info import TASK_INFOS

pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """M₀ and M_θ, among files of which none belongs into a Space."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("base", "finetuned"):
        make_model("bert", "SEQ_CLS").save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
        for other in ("training_args.bin", "results.json", "code.py", "modeling_bert.py"):
            (folder / name / other).write_text("{}", "utf-8")
        settings = json.loads((folder / name / "tokenizer_config.json").read_text("utf-8"))
        write(folder / name / "tokenizer_config.json", {**settings, "name_or_path": str(folder)})
    return folder / "base", folder / "finetuned"


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")


def source(base: Path | str, finetuned: Path | str, **fields: Any) -> Source:
    recipe = describe_pair(str(base), str(finetuned), task="sequence-classification", max_length=33)
    return Source(recipe=recipe, finetuned=str(finetuned), title='A: "title"', **fields)


def curve(folder: Path) -> AlphaCurve:
    report = {side: {"loss": {"values": [1.0, 0.5], "std_errors": [None, None]}} for side in ("domain", "general")}
    return AlphaCurve(
        alphas=[0.0, 1.0],
        selection=report,
        report=report,
        metric="loss",
        objective="best",
        method="grid",
        alpha=1.0,
        best_alpha=1.0,
        reason="It is the best.",
        base=str(folder),
    )


def test_a_space_of_folders_holds_the_models(folders: tuple[Path, Path], tmp_path: Path) -> None:
    examples = [Example(text="w4", side="domain", label="yes"), Example(text="ä\n", text_pair="w5")]
    given = source(*folders, curve=curve(folders[0]), examples=examples, has_pairs=True)
    notes = write_space(given, tmp_path / "space", max_new_tokens=9, chats=False)
    assert notes == [
        "base: copied from the folder 'base'",
        "finetuned: copied from the folder 'finetuned'",
    ]
    names = {path.relative_to(tmp_path / "space").as_posix() for path in (tmp_path / "space").rglob("*")}
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == {
        *("app.py", "requirements.txt", "README.md", "slider.json", "examples.jsonl", "curve.json"),
        *("base", "finetuned"),
        *(f"{part}/{name}" for part in ("base", "finetuned") for name in model),
    }
    for path in (tmp_path / "space").rglob("*"):
        if path.is_file():
            assert str(folders[0].parent).encode() not in path.read_bytes(), path
    (tmp_path / "space").rename(tmp_path / "moved")
    again, options = load_space(tmp_path / "moved")
    assert options == {"max_new_tokens": 9, "chats": False}
    assert again.recipe.model_name_or_path == str(tmp_path / "moved" / "base")
    assert again.finetuned == str(tmp_path / "moved" / "finetuned")
    assert (again.recipe.max_length, again.recipe.task) == (33, "sequence-classification")
    assert (again.examples, again.has_pairs, again.title) == (examples, True, 'A: "title"')
    assert again.curve is not None
    assert again.curve.report == curve(folders[0]).report
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_space_of_names_is_small_and_names_them(tmp_path: Path) -> None:
    assert write_space(source("org/base", "user/finetuned", examples=[Example(text="x")]), tmp_path / "space") == []
    text = (tmp_path / "space" / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "title": 'α slider: A: "title"',
        "emoji": "🎚️",
        "colorFrom": "blue",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "app_file": "app.py",
        "pinned": False,
        "models": ["org/base", "user/finetuned"],
    }
    assert SpaceCard(text).data.models == ["org/base", "user/finetuned"]
    again, _ = load_space(tmp_path / "space")
    assert (again.recipe.model_name_or_path, again.finetuned) == ("org/base", "user/finetuned")
    compile((tmp_path / "space" / "app.py").read_text("utf-8"), "app.py", "exec")


def test_requirements_are_the_versions_in_use(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_space(source(*folders), tmp_path / "whole")
    pins = (tmp_path / "whole" / "requirements.txt").read_text("utf-8").splitlines()
    assert pins[0] == f"hf_interp[app]=={metadata.version('hf_interp')}"
    assert f"transformers=={metadata.version('transformers')}" in pins
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in pins
    assert not [pin for pin in pins if pin.startswith("peft")]
    write_space(source(folders[0], "user/adapter"), tmp_path / "named")
    assert f"peft=={metadata.version('peft')}" in (tmp_path / "named" / "requirements.txt").read_text("utf-8")


def test_texts_of_a_run_stay_at_home(tmp_path: Path) -> None:
    given = source("a/b", "c/d", examples=[Example(text="secret", side="domain")], examples_are_data=True)
    given.recipe.corpora["domain"] = CorpusConfig(path="secret.jsonl", messages_column="turns")
    assert write_space(given, tmp_path / "space") == [
        "examples: those of the run's data were left out; name a file to have some (--examples)"
    ]
    assert not [path for path in (tmp_path / "space").iterdir() if "secret" in path.read_text("utf-8")]
    again, options = load_space(tmp_path / "space")
    assert [example.text for example in again.examples] == list(TASK_INFOS["sequence-classification"].examples)
    assert options["chats"] is True


def test_what_cannot_be_written_is_refused_and_leaves_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def refused(message: str, given: Source, name: str = "space") -> None:
        with pytest.raises(ValueError, match=message):
            write_space(given, tmp_path / name)

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused("`output_dir` must be new or empty", source(*folders), "taken")
    refused("`base` must be a folder or the name of a model on the Hub, got './nothing'", source("./nothing", "a/b"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    refused(r"`finetuned` must hold safetensors .*save_pretrained", source("a/b", tmp_path / "pickled"))
    (tmp_path / "large").mkdir()
    with (tmp_path / "large" / "model.safetensors").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    refused("must have at most 1 GB, got 1.00 GB. Push them to the Hub", source("a/b", tmp_path / "large"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "pickled", "taken"]
    (tmp_path / "empty").mkdir()
    write_space(source("a/b", "c/d"), tmp_path / "empty")
    assert (tmp_path / "empty" / "app.py").is_file()
    with pytest.raises(ValueError, match="'taken' must be a folder that `hf-interp app --space` wrote"):
        load_space(tmp_path / "taken")
