"""Files that are laid for the reader of a document before a block: toy data, models, recipes, a trained run."""

import gzip
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from toy_media import toy_wav, write_parquet, write_toy_seer
from toy_recipes import ENGLISH, FRENCH, LENGTH, toy_sizes, write_toy_corpora, write_toy_models

from hf_interp.commands.demo import ToyShift, _write_untrained_model
from hf_interp.tasks.parsing import load_recipe
from hf_interp.train import run_recipe

ROOT = Path(__file__).parents[2]
SHIFT = ToyShift(num_neutral=20, num_judging=8, num_turned=4, num_domain=8, num_domain_judging=4, label_noise=0.0)
CLASSES = ("negative", "neutral", "positive")
TAGS = ("O", "B-PER", "O", "B-ORG", "O", "B-LOC")
ROWS = {"train": 40, "validation": 12, "test": 12}


@cache
def made(make: Callable[[Path], Any]) -> Path:
    """Return a folder that `make` has filled, once in a session of tests."""
    folder = Path(tempfile.mkdtemp(prefix="documents-", dir=os.environ["HF_HOME"]))
    make(folder)
    return folder


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, as `contextlib.chdir` of Python 3.11 does."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


def lay_two_files(folder: Path) -> None:
    """general.jsonl and domain.jsonl with their sets for validation and test, and `toy-models/classifier`, an M₀."""
    names = {"train": "{}.jsonl", "validation": "{}_validation.jsonl", "test": "{}_test.jsonl"}
    for side in ("general", "domain"):
        for split, name in names.items():
            rows = list(SHIFT.sentences(side, 2 * ROWS[split], split=split, noisy=False))
            write_lines(folder / name.format(side), rows)
    _write_untrained_model(folder / "toy-models" / "classifier", SHIFT)


def lay_two_chats(folder: Path) -> None:
    """my_dialogues.jsonl and other.jsonl, and `toy-models/chat`, an M₀."""
    write_toy_models(folder / "toy-models")
    for name in ("my_dialogues", "other"):
        draw, roles = random.Random(name), ("user", "assistant") * 2
        said = [[{"role": role, "content": _words(draw)} for role in roles] for _ in range(40)]
        write_lines(folder / f"{name}.jsonl", [{"messages": turns} for turns in said])


def lay_two_sights(folder: Path) -> None:
    """photos.jsonl, drawn images with questions, chat.jsonl, dialogues without any, and `toy-models/seer`, an M₀."""
    from PIL import Image, ImageDraw

    write_toy_seer(folder / "toy-models" / "seer")
    draw, rows = random.Random(0), []
    for number in range(60):
        colour, shape = draw.choice(["red", "green", "blue"]), draw.choice(["ellipse", "rectangle"])
        image, left = Image.new("RGB", (draw.choice([32, 48]), 32), "white"), draw.randrange(12)
        getattr(ImageDraw.Draw(image), shape)((left, 4, left + 16, 4 + draw.randrange(8, 24)), fill=colour)
        (folder / "photos").mkdir(exist_ok=True)
        image.save(folder / "photos" / f"{number}.png")
        rows.append({"image": f"photos/{number}.png", "question": "What is it?", "answer": f"A {colour} {shape}."})
    write_lines(folder / "photos.jsonl", rows)
    turns = [[("user", f"{a} and {b}?"), ("assistant", f"{a + b}.")] for a in range(8) for b in range(8)]
    chat = [{"messages": [{"role": role, "content": said} for role, said in pair]} for pair in turns]
    write_lines(folder / "chat.jsonl", chat)


def lay_run(folder: Path) -> None:
    """recipe.yaml, a recipe on the two files, and `runs/mine`, what eight steps of it have left."""
    shutil.copytree(made(_make_run), folder, dirs_exist_ok=True)


def _make_run(folder: Path) -> None:
    lay_two_files(folder)
    recipe = {
        "model_name_or_path": "toy-models/classifier",
        "label_names": ["negative", "positive"],
        "max_length": 16,
        **{
            group: {side: {"path": f"{side}{end}.jsonl"} for side in ("general", "domain")}
            for group, end in (("corpora", ""), ("eval_corpora", "_test"), ("validation_corpora", "_validation"))
        },
        "alpha_search": {"method": "grid", "alphas": 3},
        "output_dir": "runs/mine",
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    with inside(folder):
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        run_recipe(recipe)


def lay_toy_recipes(folder: Path) -> None:
    """The recipes, each with toy files for its corpora and a toy model, recordings, and the repository's programs."""
    shutil.copytree(made(_make_recipes), folder, dirs_exist_ok=True)
    lay_programs(folder)


def lay_programs(folder: Path) -> None:
    """The benchmarks, with what they import and the results that they have recorded."""
    if not (folder / "tests").exists():
        (folder / "tests").symlink_to(ROOT / "tests")


def _make_recipes(folder: Path) -> None:
    models = {kind: place.relative_to(folder) for kind, place in write_toy_models(folder / "toy-models").items()}
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    recordings = folder / "free-spoken-digit-dataset" / "recordings"
    recordings.mkdir(parents=True)
    for number in range(120):  # of every digit and speaker some of each split
        speaker = ("george", "lucas", "theo")[number // 10 % 3]
        (recordings / f"{number % 10}_{speaker}_{number // 30 * 5}.wav").write_bytes(toy_wav(number))
    with inside(folder):
        for path in sorted(Path("recipes").glob("*/*.yaml")):
            if "corpora" in yaml.safe_load(path.read_text("utf-8")):
                recipe = _on_toys(path, models)
                path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _on_toys(path: Path, models: Mapping[str, Path]) -> dict[str, Any]:
    """Return the recipe of two steps on toy files, which evaluates and saves as the real one does."""
    recipe = load_recipe(path)
    files = Path("toy-files", path.parent.name, path.stem)
    files.mkdir(parents=True)
    write_toy_corpora(path, recipe, files)
    recipe = {**recipe, **toy_sizes(recipe, models), "max_steps": 2}
    return {**recipe, "eval_steps": 1} if "eval_steps" in recipe else recipe


def lay_toy_data(folder: Path) -> None:
    """`data`, a folder for every corpus that a recipe was measured on, with toy rows in its columns."""
    shutil.copytree(made(_make_data), folder, dirs_exist_ok=True)


def _make_data(folder: Path) -> None:
    for name, row in DATA_ROWS.items():
        for split, count in ROWS.items():
            rows = [row(random.Random(f"{name}/{split}/{number}"), number) for number in range(count)]
            write_lines(folder / "data" / name / f"{split}.jsonl.gz", rows)
    for split, count in ROWS.items():
        write_parquet(folder / "data" / "mnist10k" / f"{split}.parquet", range(count), names="0123456789")


def _words(draw: random.Random, words: list[str] = ENGLISH) -> str:
    return " ".join(draw.choice(words) for _ in range(draw.randint(4, LENGTH)))


def _classified(labels: tuple[str, ...]) -> Callable[[random.Random, int], dict[str, Any]]:
    return lambda draw, number: {"text": _words(draw), "label_name": labels[number % len(labels)]}


def _tagged(draw: random.Random, number: int) -> dict[str, Any]:
    return {"tokens": _words(draw).split()[: len(TAGS)][:4], "ner_tags": list(TAGS[:4])}


def _paired(draw: random.Random, number: int) -> dict[str, Any]:
    return {"source": _words(draw), "target": _words(draw, FRENCH)}


def _rated(draw: random.Random, number: int) -> dict[str, Any]:
    titles = [f'"{_words(draw)[:12]}"' for _ in range(4)]
    return {
        "history_liked": f'"liked {number // 2}"',
        "history_disliked": titles[1],
        "candidate": titles[2].strip('"'),
        "label_name": ("like", "dislike")[number % 2],
    }


def _said(draw: random.Random, number: int) -> dict[str, Any]:
    turns = [{"speaker": speaker, "text": _words(draw)} for speaker in ("user", "system") * 2]
    return {"doc": str(number), "services": [], "turns": turns}


def _text(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": " ".join(_words(draw) for _ in range(3))}


DATA_ROWS: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "rotten_tomatoes": _classified(("negative", "positive")),
    "tweeteval_sentiment": _classified(CLASSES),
    "financial_phrasebank_50agree": _classified(CLASSES),
    "airline_tweets": _classified(CLASSES),
    "clinc150": lambda draw, number: {
        **_classified(("translate", "weather", "transfer"))(draw, number),
        "domain": ("travel", "utility", "banking")[number % 3],
    },
    "clinc150_out_of_scope": _classified(("oos",)),
    "banking77": _classified(("card_arrival", "terminate_account", "age_limit")),
    **dict.fromkeys(("wikigold", "sec_fin", "broad_twitter"), _tagged),
    "crossner_ai": lambda draw, number: {**_tagged(draw, number), "ner_tags": ["O", "B-metrics", "O", "B-task"]},
    **dict.fromkeys(("wikitext2_small", "dc_law", "pubmed_abstracts"), _text),
    **dict.fromkeys(("multi30k_en_fr", "tico19_en_fr", "scitldr_a", "pubmed_conclusion"), _paired),
    **dict.fromkeys(("tallrec_movie", "tallrec_book"), _rated),
    **dict.fromkeys(("sgd_general", "sgd_banks"), _said),
}

LAYS: dict[str, Callable[[Path], None]] = {
    "two files": lay_two_files,
    "two chats": lay_two_chats,
    "two sights": lay_two_sights,
    "a run": lay_run,
    "programs": lay_programs,
    "toy recipes": lay_toy_recipes,
    "toy data": lay_toy_data,
}
"""What declarations call `files`."""
