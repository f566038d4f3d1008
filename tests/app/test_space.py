"""Spaces that are written are whole, say what they need, tell nothing of this machine, and read back as they were."""

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import SpaceCard
from toy_media import toy_wav
from toys import alpha_curve

from hf_interp.app import page
from hf_interp.app.examples import Example, Source
from hf_interp.app.models import describe_pair
from hf_interp.app.space import write_space
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.utils.task_info import TASK_INFOS

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")


def source(base: Path | str, finetuned: Path | str, **fields: Any) -> Source:
    recipe = describe_pair(str(base), str(finetuned), task="sequence-classification", max_length=33)
    return Source(recipe=recipe, finetuned=str(finetuned), **{"title": 'A: "title"', **fields})


def curve(folder: Path) -> AlphaCurve:
    return alpha_curve({"loss": [1.0, 0.5]}, {"loss": [1.0, 0.5]}, (0.0, 1.0), base=str(folder))


def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Source, dict[str, Any]]:
    """Run the app of a Space; return what it would serve, and how."""
    calls: list[tuple[Source, dict[str, Any]]] = []
    monkeypatch.setattr(page, "serve_source", lambda source, **options: calls.append((source, options)))
    monkeypatch.chdir(folder.parent)  # to be put back
    program = folder / "app.py"
    exec(compile(program.read_text("utf-8"), str(program), "exec"), {"__name__": "__main__", "__file__": str(program)})
    ((found, options),) = calls
    return found, options


def test_a_space_reads_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(text="w4", side="domain", label="yes"), Example(text="ä\n", text_pair="w5")]
    hostile = "'); import os; ('\n\\"
    given = source("org/base", "user/tuned", curve=curve(tmp_path), examples=examples, has_pairs=True, title=hostile)
    given.recipe.label_names = [hostile, "{b}"]
    given.recipe.source_prefix = "ask: "
    given.recipe.model_revision = "v1"
    assert write_space(given, tmp_path / "space", max_new_tokens=9, chats=False) == []
    names = {path.relative_to(tmp_path / "space").as_posix() for path in (tmp_path / "space").rglob("*")}
    assert names == {"app.py", "requirements.txt", "README.md", "examples.jsonl", "curve.json"}
    for path in (tmp_path / "space").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    (tmp_path / "space").rename(tmp_path / "moved")
    again, options = served(tmp_path / "moved", monkeypatch)
    assert options == {"host": None, "max_new_tokens": 9, "chats": False}
    assert again.recipe == given.recipe
    assert (again.recipe.max_length, again.recipe.task) == (33, "sequence-classification")
    assert (again.recipe.model_name_or_path, again.finetuned) == ("org/base", "user/tuned")
    assert (again.examples, again.has_pairs, again.title) == (examples, True, hostile)
    assert again.curve is not None
    assert again.curve.report == curve(tmp_path).report
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_the_card_of_a_space_names_the_models(tmp_path: Path) -> None:
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


def test_requirements_are_the_versions_in_use(tmp_path: Path) -> None:
    write_space(source("org/base", "user/adapter"), tmp_path / "space")
    pins = (tmp_path / "space" / "requirements.txt").read_text("utf-8").splitlines()
    assert pins[0] == f"hf_interp[app]=={metadata.version('hf_interp')}"
    assert f"transformers=={metadata.version('transformers')}" in pins
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in pins
    assert f"peft=={metadata.version('peft')}" in pins


def test_a_space_of_sound_has_its_files_and_what_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some where.wav").write_bytes(toy_wav(2))
    recipe = describe_pair("org/base", "user/tuned", task="automatic-speech-recognition")
    examples = [Example(text=str(tmp_path / "some where.wav"), side="domain", label="low")]
    given = Source(recipe=recipe, finetuned="user/tuned", title="ears", examples=examples)
    assert write_space(given, tmp_path / "space") == []
    pins = (tmp_path / "space" / "requirements.txt").read_text("utf-8").splitlines()
    assert pins[0] == f"hf_interp[app,audio]=={metadata.version('hf_interp')}"
    again, _ = served(tmp_path / "space", monkeypatch)
    assert again.examples == [Example(text="examples/0.wav", side="domain", label="low")]
    assert (tmp_path / "space" / "examples" / "0.wav").read_bytes() == toy_wav(2)


def test_texts_of_a_run_stay_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = source("a/b", "c/d", examples=[Example(text="secret", side="domain")], examples_are_data=True)
    given.recipe.corpora["domain"] = CorpusConfig(path="secret.jsonl", messages_column="turns")
    assert write_space(given, tmp_path / "space") == [
        "examples: those of the run's data were left out; name a file to have some (--examples)"
    ]
    assert not [path for path in (tmp_path / "space").iterdir() if "secret" in path.read_text("utf-8")]
    again, options = served(tmp_path / "space", monkeypatch)
    assert [example.text for example in again.examples] == list(TASK_INFOS["sequence-classification"].examples)
    assert options["chats"] is True


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def refused(message: str, given: Source, name: str = "space") -> None:
        with pytest.raises(ValueError, match=message):
            write_space(given, tmp_path / name)

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused("`output_dir` must be new or empty", source("a/b", "c/d"), "taken")
    refused("`base` must be the name of a model on the Hub, got './nothing'", source("./nothing", "a/b"))
    (tmp_path / "model").mkdir()
    refused(
        r"`finetuned` must be .* Push it \(`hf-interp push`\) and give its name \(--finetuned\)",
        source("a/b", tmp_path / "model"),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "taken"]
    (tmp_path / "empty").mkdir()
    write_space(source("a/b", "c/d"), tmp_path / "empty")
    assert (tmp_path / "empty" / "app.py").is_file()
