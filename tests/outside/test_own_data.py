"""Someone with a model and a file of whatever shape: from `adapt` to the card, with no hand edit."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from command_server import CommandServer
from documents import reading_environment
from test_practitioner import ENTITIES, LANGUAGE, SENTIMENT, TAGS, rows_of
from toy_media import TONES, write_sounds, write_table, write_toy_ast, write_toy_vit
from toy_recipes import ENGLISH, write_toy_models
from transformers import AutoTokenizer

from hf_interp.tasks.corpora.dialogues import CHATML

pytestmark = pytest.mark.slow

Write = Callable[[Path, str], Path]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an `hf-interp` that begins at once."""
    home = tmp_path_factory.mktemp("home")
    own = {"HOME": str(home), "HF_HOME": str(home / ".hf"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = reading_environment({**os.environ, **own})
    with TemporaryDirectory() as folder, CommandServer(Path(folder), environment):
        yield Path(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy models, of which the decoder has a chat template, and models of images and sound."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(write_toy_models(folder)["decoder"])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "decoder")
    write_toy_vit(folder / "places")
    write_toy_ast(folder / "tones", TONES)
    return folder


@pytest.fixture
def type_words(commands: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that types `hf-interp` with some words in a fresh folder; it returns what is printed, or the error."""

    def typed(*words: Any, status: int = 0) -> str:
        command = [str(commands / "hf-interp"), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == status, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        return done.stderr if status == 2 else done.stdout

    return typed


def said(side: str) -> list[list[str]]:
    """Dialogues of four turns."""
    draw = random.Random(side)
    return [[" ".join(draw.choices(ENGLISH, k=3)) for _ in range(4)] for _ in range(24)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def classified(side: str) -> list[dict[str, Any]]:
    return [row for split in ("train", "validation", "test") for row in rows_of(SENTIMENT, side, split)]


def write_csv(folder: Path, side: str) -> Path:
    """As a spreadsheet of a country with decimal commas saves it."""
    with (folder / f"{side}.csv").open("w", encoding="cp1252", errors="replace", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Nr", "Was gesagt wurde", "Stimmung"])
        for number, row in enumerate(classified(side)):
            writer.writerow([number, row["text"], row["label_name"].upper() if side == "domain" else row["label_name"]])
    return folder / f"{side}.csv"


def write_tsv(folder: Path, side: str) -> Path:
    lines = [f"{' '.join(row['text'].split())}\t{row['label_name']}\n" for row in classified(side)]
    (folder / f"{side}.tsv").write_text("".join(lines), "utf-8")
    return folder / f"{side}.tsv"


def dialogues(side: str, role: str, content: str, speakers: tuple[str, str]) -> list[list[dict[str, str]]]:
    return [[{role: who, content: text} for who, text in zip(speakers * 2, texts, strict=True)] for texts in said(side)]


def write_messages(folder: Path, side: str) -> Path:
    found = dialogues(side, "role", "content", ("user", "assistant"))
    return write_rows(folder / f"{side}.jsonl", [{"id": f"d{n}", "messages": each} for n, each in enumerate(found)])


def write_calls(folder: Path, side: str) -> Path:
    """Dialogues in which the assistant calls tools of its own, some with their arguments as OpenAI has them."""
    rows: list[dict[str, Any]] = []
    for number, (user, argument, result, answer) in enumerate(said(side)):
        arguments: Any = {"place" if number % 2 else "when": argument}
        call = {"name": "look", "arguments": json.dumps(arguments) if number % 3 else arguments}
        turns = [{"role": "user", "content": user}, {"role": "tool", "content": result, "name": "look"}]
        turns[1:1] = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}]
        rows.append({"messages": [*turns, {"role": "assistant", "content": answer}], "tools": [{"name": "look"}]})
    return write_rows(folder / f"{side}.jsonl", rows)


def write_sharegpt(folder: Path, side: str) -> Path:
    found = dialogues(side, "from", "value", ("human", "gpt"))
    return write_rows(folder / f"{side}.jsonl", [{"conversations": each} for each in found])


def write_prompts(folder: Path, side: str) -> Path:
    return write_rows(folder / f"{side}.jsonl", [{"prompt": texts[0], "completion": texts[1]} for texts in said(side)])


def write_conll(folder: Path, side: str) -> Path:
    """In a file that is called as a text is."""
    found = []
    for split in ("train", "validation", "test"):
        for row in rows_of(ENTITIES, side, split):
            tags = [tag if tag in TAGS else "O" for tag in row["ner_tags"]]
            found.append("".join(f"{word} {tag}\n" for word, tag in zip(row["tokens"], tags, strict=True)))
    (folder / f"{side}.txt").write_text("\n".join(found), "utf-8")
    return folder / f"{side}.txt"


def write_folder(folder: Path, side: str) -> Path:
    (folder / side).mkdir()
    for number, row in enumerate(rows_of(LANGUAGE, side, "train")):
        (folder / side / f"{number}.txt").write_text(row["text"][:2000], "utf-8")
    return folder / side


def write_images(folder: Path, side: str) -> Path:
    return write_table(folder / f"{side}.jsonl", range(60), side)


def write_recordings(folder: Path, side: str) -> Path:
    return write_sounds(folder / f"{side}.jsonl", range(60), 4000 if side == "domain" else 8000)


JOURNEYS: dict[str, tuple[Write, str, str, dict[str, Any]]] = {
    "csv": (write_csv, "encoder", "sequence-classification", {"delimiter": ";", "text_column": "Was gesagt wurde"}),
    "tsv": (write_tsv, "encoder", "sequence-classification", {"header": False}),
    "messages": (write_messages, "decoder", "chat", {"messages_column": "messages"}),
    "calls": (write_calls, "decoder", "chat", {"messages_column": "messages", "tools_column": "tools"}),
    "sharegpt": (write_sharegpt, "decoder", "chat", {"roles": {"human": "user", "gpt": "assistant"}}),
    "prompts": (write_prompts, "decoder", "chat", {"prompt_column": "prompt", "target_column": "completion"}),
    "conll": (write_conll, "encoder", "token-classification", {"format": "conll"}),
    "folder": (write_folder, "decoder", "causal-lm", {"document": "file"}),
    "images": (write_images, "places", "image-classification", {"where": None}),
    "sounds": (write_recordings, "tones", "audio-classification", {"audio_column": None}),
}
"""What writes a file, the model, the task that is found, and what is found of the domain's file."""
SHORT = ("--max_steps", 2, "--use_cpu", "true", "--report_to", "none", "--alpha_search", "{alphas: 2}")


@pytest.mark.parametrize("shape", JOURNEYS)
def test_a_file_becomes_a_model_with_a_card_in_one_command(
    shape: str, type_words: Callable[..., str], models: Path, tmp_path: Path
) -> None:
    write, model, task, fields = JOURNEYS[shape]
    data = [f"--{side}={write(tmp_path, side).relative_to(tmp_path)}" for side in ("domain", "general")]
    out = type_words("adapt", "--model", models / model, *data, *SHORT)
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    recipe = yaml.safe_load(text)
    assert text in out
    assert text.count("\n") <= 40
    assert recipe["task"] == task
    assert {key: recipe["corpora"]["domain"].get(key) for key in fields} == fields
    run = tmp_path / "runs" / "domain"
    weights = "adapter_model.safetensors" if task == "chat" else "model.safetensors"
    for name in ("README.md", "report.html", "curve.png", f"interpolated/{weights}", weights):
        assert (run / name).is_file(), name
    results = json.loads((run / "results.json").read_text("utf-8"))
    assert {*results["final_metrics"]} == {"general", "domain"}
    card = (run / "README.md").read_text("utf-8")
    assert "M_α" in card
    if shape == "csv":  # the same recipe is a run of its own
        type_words("plan", "recipe.yaml", "--samples", 1)
        type_words("curve", "runs/domain", "--save_model")
        assert "exists" in type_words("adapt", "--model", models / model, *data, *SHORT, status=2)
    if shape == "calls":  # what the card says is typed
        assert recipe["peft"] == "lora"
        snippet = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("your/base-model", str(models / model))
        answered = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
        )
        assert "'role': 'assistant'" in answered.stdout


def test_what_no_chat_can_be_made_of_is_refused_in_one_line(
    type_words: Callable[..., str], models: Path, tmp_path: Path
) -> None:
    write_calls(tmp_path, "domain")
    bare = AutoTokenizer.from_pretrained(models / "decoder")
    bare.chat_template = None
    model = shutil.copytree(models / "decoder", tmp_path / "bare")
    (model / "chat_template.jinja").unlink()
    bare.save_pretrained(model)
    said = type_words("init", "--model", "bare", "--domain", "domain.jsonl", status=2)
    assert "Set `chat_template: chatml`" in said
    assert said.count("\n") == 1
    pytest.importorskip("trl", reason="trl is not installed: pip install hf_interp[trl]")
    flags = ("--chat_template", "trl", "--output", "b.yaml")
    said = type_words("init", "--model", models / "decoder", "--domain", "domain.jsonl", *flags, status=2)
    assert "TRL has no variant" in said
    texts = write_tsv(tmp_path, "general").name
    flags = ("--task", "chat", "--output", "c.yaml")
    assert "messages_column" in type_words("init", "--model", "bare", "--domain", texts, *flags, status=2)


def test_without_general_data_the_domain_is_trained_alone(
    type_words: Callable[..., str], models: Path, tmp_path: Path
) -> None:
    data = write_tsv(tmp_path, "domain").name
    assert "sequence-classification" in type_words("check", data)
    type_words("init", "--model", models / "encoder", "--domain", data, "--output", "mine.yaml")
    type_words("train", "mine.yaml", *SHORT[:6], "--output_dir", "runs/alone")
    results = json.loads((tmp_path / "runs/alone/results.json").read_text("utf-8"))
    assert {*results["final_metrics"]} == {"domain"}
    assert (tmp_path / "runs/alone/README.md").is_file()
    same = ("--domain", data, "--domain_test", data, "--output", "b.yaml")
    assert "--domain_test" in type_words("init", "--model", models / "encoder", *same, status=2)
