"""Someone with files of their own: two corpora as CSV, TSV, JSON lines, text or CoNLL, from the plan to the card."""

import csv
import gzip
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from document_files import DATA_ROWS
from toy_recipes import ENGLISH, write_toy_models

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("HF_INTERP_DATA", "nowhere"))
COUNTS = {"train": 24, "validation": 12, "test": 12}
LABELS = ("negative", "positive")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI"))
SENTIMENT = {"general": "sentiment/rotten_tomatoes", "domain": "sentiment/airline_tweets"}
ENTITIES = {"general": "ner/wikigold", "domain": "ner/broad_twitter"}
LANGUAGE = {"general": "lm/wikitext2_small", "domain": "lm/dc_law"}
HARD = [  # what people and spreadsheets write
    'a "quoted, word" and a comma',
    '"a lone quote at the beginning',
    "it's 5' tall; says \\n nothing",
    "naïve café 😀 \u2028 NA null None",
]


def rows_of(folders: dict[str, str], side: str, split: str) -> list[dict[str, Any]]:
    """Real rows where they are at hand, else toy ones."""
    path = DATA / folders[side] / f"{split}.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines]
    else:
        make = DATA_ROWS[path.parent.name]
        found = [make(random.Random(f"{side}{split}{number}"), number) for number in range(200)]
    if "label_name" in found[0]:  # two classes, one after the other
        by_label = [[row for row in found if row["label_name"] == label] for label in LABELS]
        found = [row for rows in zip(*by_label, strict=False) for row in rows]
    return found[: COUNTS[split]]


def classified(side: str, split: str) -> list[dict[str, str]]:
    rows = [{"text": row["text"], "label": row["label_name"]} for row in rows_of(SENTIMENT, side, split)]
    for row, text in zip(rows, HARD, strict=False):
        row["text"] = text
    return rows


def write_table(path: Path, side: str, split: str) -> None:
    """CSV with quotes as the csv module writes them; TSV as databases do, where a quote is a character."""
    rows = classified(side, split)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
        return
    lines = ["text\tlabel", *("\t".join(row.values()).replace("\u2028", " ") for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_lines(path: Path, side: str, split: str) -> None:
    rows = classified(side, split)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_texts(path: Path, side: str, split: str) -> None:
    """Paragraphs, with an empty line between two."""
    texts = [row["text"].replace("\n\n", "\n")[:400] for row in rows_of(LANGUAGE, side, split)]
    path.write_text("\n\n".join([*texts, " ".join(ENGLISH)]) + "\n", encoding="utf-8")


def write_conll(path: Path, side: str, split: str) -> None:
    """A word and its tag a line, with an empty line between two sentences."""
    found = []
    for row in rows_of(ENTITIES, side, split):
        tags = [tag if tag in TAGS else "O" for tag in row["ner_tags"]]
        found.append("".join(f"{word}\t{tag}\n" for word, tag in zip(row["tokens"], tags, strict=True)))
    path.write_text("\n".join(found), encoding="utf-8")


FORMATS: dict[str, tuple[Callable[[Path, str, str], None], str, dict[str, Any]]] = {
    "csv": (write_table, "encoder", {"label_names": list(LABELS)}),
    "tsv": (write_table, "encoder", {"label_names": list(LABELS)}),
    "jsonl": (write_lines, "encoder", {"label_names": list(LABELS)}),
    "txt": (write_texts, "decoder", {"task": "causal-lm"}),
    "conll": (write_conll, "encoder", {"task": "token-classification", "label_names": list(TAGS)}),
}
"""Suffix of the files → what writes them, the toy model, and the fields of the recipe."""


@pytest.mark.parametrize("suffix", FORMATS)
def test_own_files_become_a_model_with_a_card(suffix: str, quick_user: Callable[..., Any], tmp_path: Path) -> None:
    write, model, fields = FORMATS[suffix]
    ana = quick_user(HF_HUB_OFFLINE="1")
    groups = {"corpora": "train", "eval_corpora": "test", "validation_corpora": "validation"}
    corpora: dict[str, Any] = {group: {} for group in groups}
    for group, split in groups.items():
        for side in ("general", "domain"):
            write(ana.path(f"{side}_{split}.{suffix}"), side, split)
            corpora[group][side] = {"path": f"{side}_{split}.{suffix}"}
    recipe = {
        "model_name_or_path": str(write_toy_models(tmp_path / "models")[model].relative_to(tmp_path)),
        "max_length": 16,
        **fields,
        **corpora,
        "alpha_search": {"objective": "mean"},
        "output_dir": "runs/mine",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "report_to": "none",
        "use_cpu": True,
    }
    ana.write("recipe.yaml", recipe)
    plan = ana.ask("plan", "recipe.yaml")
    if suffix != "txt":  # whose texts are cut into blocks
        assert {corpus["name"]: corpus["num_examples"] for corpus in plan["corpora"]} == {"general": 24, "domain": 24}
    shown = ana.type("plan", "recipe.yaml", "--samples", 2)
    assert "[UNK]" in shown or "[CLS]" in shown or model == "decoder"
    results = ana.ask("train", "recipe.yaml")
    for side in ("general", "domain"):
        assert all(math.isfinite(value) for value in results["final_metrics"][side].values())
    assert ana.ask("verify", "runs/mine")["agrees"]
    curve = ana.ask("curve", "runs/mine", "--save_model")
    assert 0 <= curve["alpha"] <= 1
    card = ana.path("runs/mine/README.md").read_text("utf-8")
    assert "M_α" in card
    assert str(tmp_path) not in card
    for name in ("run.png", "curve.png", "interpolated/model.safetensors", "interpolated/tokenizer.json"):
        assert ana.path(f"runs/mine/{name}").is_file(), name
