"""The distance of two sides before training: features, the classifier, losses, and the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from architectures import make_model
from scipy.stats import norm
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_interp import Corpus, cli
from hf_interp.commands.distance import (
    DomainDistance,
    classifier_error,
    draw_examples,
    format_distance,
    measure_distance,
    pooled_features,
)
from hf_interp.tasks.build import check_recipe, load_data
from hf_interp.tasks.parsing import parse_recipe


def measure(recipe: dict[str, Any], **kwargs: Any) -> DomainDistance:
    parsed, args = parse_recipe(recipe)
    return measure_distance(parsed, args, load_data(parsed, check_recipe(parsed, args)), **kwargs)


# The classifier.


def test_two_samples_of_one_distribution_have_no_distance() -> None:
    rows = np.random.default_rng(0).normal(size=(600, 16))
    error, (_, high), count = classifier_error(rows[:300], rows[300:])
    assert error > 0.45
    assert high > 0.5
    assert count == 300


def test_sides_that_a_plane_divides_have_no_errors() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 4))
    error, (low, high), _ = classifier_error(rows, rows + np.array([50.0, 0.0, 0.0, 0.0]))
    assert error == low == 0.0
    z = norm.ppf(0.975)
    assert high == pytest.approx(z**2 / (200 + z**2))  # Wilson's, of no error among 200


def test_the_error_of_two_gaussians_is_that_of_the_best_classifier() -> None:
    generator = np.random.default_rng(0)
    general, domain = generator.normal(-0.5, size=(4000, 1)), generator.normal(0.5, size=(4000, 1))
    truth = norm.cdf(-0.5)
    error, (low, high), _ = classifier_error(general, domain)
    assert error == pytest.approx(truth, abs=0.0125)
    assert low < truth < high
    assert high - low < 0.025


def test_the_interval_is_wilsons() -> None:
    generator = np.random.default_rng(0)
    share, interval, _ = classifier_error(generator.normal(-0.5, size=(200, 1)), generator.normal(0.5, size=(200, 1)))
    square = norm.ppf(0.975) ** 2 / 400
    middle = (share + square / 2) / (1 + square)
    margin = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    assert 0.1 < share < 0.4
    assert interval == pytest.approx((middle - margin, middle + margin), abs=1e-9)


def test_the_longer_side_is_cut_to_the_shorter() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    # were all 180 kept, "always general" would err on 20 of 200 only
    error, _, count = classifier_error(rows[:180], rows[180:])
    assert count == 20
    assert error > 0.25


def test_a_seed_decides_the_error_and_a_constant_feature_does_no_harm() -> None:
    generator = np.random.default_rng(0)
    general, domain = generator.normal(size=(60, 3)), generator.normal(0.5, size=(60, 3))
    general[:, 1] = domain[:, 1] = 3.0
    assert classifier_error(general, domain, seed=1) == classifier_error(general, domain, seed=1)
    assert len({classifier_error(general, domain, seed=seed)[0] for seed in range(5)}) > 1


# Features.


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "gpt2", "llama"])
def test_features_are_means_over_tokens_whatever_the_batch(kind: str) -> None:
    backbone = make_model(kind, "SEQ_CLS").eval().base_model
    sequences = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
    rows: list[dict[str, Any]] = [{"input_ids": ids, "labels": 1} for ids in sequences]
    if kind != "gpt2":  # which would embed them; others take 0 for granted, or do not know them
        rows = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in rows]
    with torch.no_grad():
        expected = [backbone(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0) for ids in sequences]
    for size in (1, 2, 3):
        found = pooled_features(backbone, rows, batch_size=size)
        assert found.shape == (3, backbone.config.hidden_size)
        assert found == pytest.approx(torch.stack(expected).numpy(), abs=1e-5)


def test_tokens_that_are_masked_are_not_in_the_mean() -> None:
    backbone = make_model("bert", "SEQ_CLS").eval().base_model
    whole = [{"input_ids": [5, 6, 7]}]
    padded = [{"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}]
    assert pooled_features(backbone, padded) == pytest.approx(pooled_features(backbone, whole), abs=1e-5)


def test_rows_without_tokens_have_no_features() -> None:
    backbone = make_model("bert", "SEQ_CLS").base_model
    with pytest.raises(ValueError, match="examples with `input_ids`, got one without"):
        pooled_features(backbone, [{"input_ids": [3]}, {"text": "word"}])


def test_a_model_without_hidden_states_has_no_features() -> None:
    with pytest.raises(ValueError, match="but BertForSequenceClassification has none"):
        pooled_features(make_model("bert", "SEQ_CLS"), [{"input_ids": [3]}])


# Examples.


def test_examples_are_drawn_with_a_seed_and_without_repetition() -> None:
    dataset = datasets.Dataset.from_dict({"input_ids": [[number] for number in range(100)]})
    corpus = Corpus("web", dataset, "general")
    drawn = [[row["input_ids"][0] for row in draw_examples(corpus, 30, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 30
    assert [row["input_ids"] for row in draw_examples(corpus, 500, 0)] == dataset["input_ids"][:]


def test_of_a_stream_the_first_examples_are_read() -> None:
    read = []

    def numbers() -> Any:
        for number in range(1000):
            read.append(number)
            yield {"input_ids": [number]}

    corpus = Corpus("web", datasets.IterableDataset.from_generator(numbers), "general", share=1.0)
    assert [row["input_ids"][0] for row in draw_examples(corpus, 5, 0)] == [0, 1, 2, 3, 4]
    assert max(read) < 10


# A recipe.


def test_other_words_are_far_and_the_same_text_is_near(toy_recipe: dict[str, Any]) -> None:
    toy_recipe["corpora"]["domain"] = dict(toy_recipe["corpora"]["general"])
    assert measure(toy_recipe).value < 0.5


def test_sides_of_other_words_are_told_apart(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(toy_recipe["model_name_or_path"]).get_vocab()
    plain = sorted(word for word in words if word.isalnum())
    for side, own in (("general", plain[:10]), ("domain", plain[10:20])):
        texts = [" ".join(np.random.default_rng(number).choice(own, 8)) for number in range(60)]
        path = tmp_path / f"{side}.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": "negative"}) + "\n" for text in texts))
        toy_recipe["corpora"][side] = {"path": str(path)}
    found = measure(toy_recipe)
    assert found.value == 2 * (1 - 2 * found.error) > 1.8
    square = norm.ppf(0.975) ** 2
    assert found.interval == pytest.approx((2 * (1 - 2 * square / (120 + square)), 2.0))
    assert found.num_examples == 60


def by_hand(recipe: dict[str, Any], path: str) -> list[float]:
    """The cross entropy of every row of a file, one row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(recipe["model_name_or_path"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(recipe["model_name_or_path"])
    found = []
    for line in Path(path).read_text("utf-8").splitlines():
        row = json.loads(line)
        inputs = tokenizer(row["text"], truncation=True, max_length=recipe["max_length"], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        label = torch.tensor([recipe["label_names"].index(row["label"])])
        found.append(torch.nn.functional.cross_entropy(logits, label).item())
    return found


@pytest.mark.parametrize("group", ["validation_corpora", "eval_corpora", "corpora"])
def test_losses_are_those_of_the_held_out_sets_if_there_are_any(toy_recipe: dict[str, Any], group: str) -> None:
    groups = ["validation_corpora", "eval_corpora"]
    for other in groups[: groups.index(group) if group in groups else None]:
        toy_recipe[other] = {"general": toy_recipe[other]["general"]}  # one side alone is not enough
    found = measure(toy_recipe)
    assert found.is_held_out is (group != "corpora")
    for side in ("general", "domain"):
        expected = by_hand(toy_recipe, toy_recipe[group][side]["path"])
        loss = found.losses[side]
        assert loss is not None
        assert loss["value"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert loss["standard_error"] == pytest.approx(np.std(expected, ddof=1) / math.sqrt(len(expected)), rel=1e-3)
        assert (loss["num_examples"], loss["unit"], loss["perplexity"]) == (len(expected), "nats", None)


def test_sets_are_called_as_the_search_calls_them(toy_recipe: dict[str, Any]) -> None:
    sets = toy_recipe["validation_corpora"]
    toy_recipe["validation_corpora"] = {"films": sets["general"], "shops": sets["domain"]}
    toy_recipe["alpha_search"] = {"general": "films", "domain": "shops"}
    expected = by_hand(toy_recipe, sets["domain"]["path"])
    loss = measure(toy_recipe).losses["domain"]
    assert loss is not None
    assert loss["value"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_same_recipe_has_the_same_distance(toy_recipe: dict[str, Any]) -> None:
    first, second = (measure(toy_recipe, num_examples=11, seed=3).to_dict() for _ in range(2))
    assert first.pop("seconds") > 0
    second.pop("seconds")
    assert first == second
    assert (first["num_examples"], first["seed"]) == (11, 3)
    assert json.loads(json.dumps(first)) == first


def test_a_new_head_has_no_loss(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    name = toy_recipe["model_name_or_path"]
    AutoModel.from_pretrained(name).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(name).save_pretrained(tmp_path / "headless")
    whole = measure(toy_recipe)
    found = measure({**toy_recipe, "model_name_or_path": str(tmp_path / "headless")})
    assert found.losses == {"general": None, "domain": None}
    assert "its head for the task is new (classifier.bias, classifier.weight)" in found.notes[0]
    assert (found.value, found.interval) == (whole.value, whole.interval)  # which need no head


def test_an_adapter_changes_nothing(toy_recipe: dict[str, Any]) -> None:
    plain, adapted = measure(toy_recipe), measure({**toy_recipe, "peft": "lora"})
    assert (plain.value, plain.losses) == (adapted.value, adapted.losses)


def language_model(folder: Path, kind: str, task: str | None, recipe: dict[str, Any]) -> str:
    """An untrained model under the toy language's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(recipe["model_name_or_path"])
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    model = make_model(kind, task)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return str(folder)


def test_a_language_model_has_a_perplexity(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    name = language_model(tmp_path / "lm", "gpt2", "CAUSAL_LM", toy_recipe)
    recipe = {**toy_recipe, "task": "causal-lm", "model_name_or_path": name, "max_length": 8, "label_names": None}
    parsed, args = parse_recipe(recipe)
    data = load_data(parsed, check_recipe(parsed, args))
    found = measure_distance(parsed, args, data)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(name).eval()
    for side in ("general", "domain"):
        ids = torch.tensor(data.validation_sets[side]["input_ids"][:])
        with torch.no_grad():
            expected = model(input_ids=ids, labels=ids).loss.item()
        loss = found.losses[side]
        assert loss is not None
        assert loss["value"] == pytest.approx(expected, abs=1e-4)
        assert loss["perplexity"] == pytest.approx(math.exp(expected), rel=1e-3)


def test_an_encoder_decoder_is_known_by_its_encoder(toy_recipe: dict[str, Any], tmp_path: Path) -> None:
    name = language_model(tmp_path / "t5", "t5", "SEQ_2_SEQ_LM", toy_recipe)
    recipe = {**toy_recipe, "task": "seq2seq", "model_name_or_path": name, "label_names": None}
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        for corpus in recipe[group].values():
            corpus["target_column"] = "text"
    parsed, args = parse_recipe(recipe)
    data = load_data(parsed, check_recipe(parsed, args))
    found = measure_distance(parsed, args, data)
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(name).eval()
    total = count = 0.0
    for row in data.validation_sets["domain"]:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        total, count = total + loss * labels.numel(), count + labels.numel()
    measured = found.losses["domain"]
    assert measured is not None
    assert measured["value"] == pytest.approx(total / count, abs=1e-4)
    rows = [data.corpora[1].dataset[index] for index in range(12)]
    with torch.no_grad():
        hidden = model.encoder(input_ids=torch.tensor([rows[0]["input_ids"]])).last_hidden_state[0].mean(dim=0)
    assert pooled_features(model.get_encoder(), rows)[0] == pytest.approx(hidden.numpy(), abs=1e-5)


def test_a_side_with_another_objective_has_no_loss_of_the_task(toy_recipe: dict[str, Any]) -> None:
    for group in ("validation_corpora", "eval_corpora"):
        toy_recipe.pop(group)
    tokenizer = AutoTokenizer.from_pretrained(toy_recipe["model_name_or_path"])
    toy_recipe["corpora"]["general"]["objective"] = "causal-lm"  # as the toy tokenizer has no mask
    assert tokenizer.mask_token is None
    found = measure(toy_recipe)
    assert found.losses["general"] is None
    assert found.losses["domain"] is not None
    assert found.notes == ("M₀ has no loss of its task on the general side, which trains the objective causal-lm.",)


def test_corpora_of_a_side_are_drawn_by_their_shares(toy_recipe: dict[str, Any]) -> None:
    for group in ("validation_corpora", "eval_corpora"):
        toy_recipe.pop(group)
    general = toy_recipe["corpora"]["general"]
    toy_recipe["corpora"] = {
        "web": {**general, "side": "general", "share": 0.75},
        "books": {**general, "side": "general", "share": 0.25},
        "domain": toy_recipe["corpora"]["domain"],
    }
    loss = measure(toy_recipe, num_examples=12).losses["general"]
    assert loss is not None
    assert loss["num_examples"] == 9 + 3


def test_a_stream_can_be_measured(toy_recipe: dict[str, Any]) -> None:
    whole = measure(toy_recipe)
    toy_recipe["corpora"]["general"]["streaming"] = True
    found = measure(toy_recipe)
    assert found.losses == whole.losses
    assert found.num_examples == 12


@pytest.mark.parametrize(
    ("num_examples", "message"),
    [
        (-5, "got 0 of the general side"),
        (9, "at least 10 examples of each side, got 9"),
        (500, "got 8 of the domain side. Ask for more"),
    ],
)
def test_too_few_examples_are_refused(toy_recipe: dict[str, Any], num_examples: int, message: str) -> None:
    toy_recipe["corpora"]["domain"]["max_examples"] = 8
    with pytest.raises(ValueError, match=message):
        measure(toy_recipe, num_examples=num_examples)


# The command.


def test_the_plan_tells_the_distance(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe(toy_recipe))
    assert cli.main(["plan", path, "--distance", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    found = summary["distance"]
    expected = measure(toy_recipe).to_dict()
    assert found.pop("seconds") > 0
    del expected["seconds"]
    assert found == expected
    assert cli.main(["plan", path, "--json"]) == 0
    plain = json.loads(capfd.readouterr().out)
    assert {key: value for key, value in summary.items() if key != "distance"} == plain
    assert cli.main(["plan", path, "--distance", "--distance_examples", "11"]) == 0
    out = capfd.readouterr().out
    assert "distance of the sides for M₀: d_A = " in out
    assert "training examples; d_A is 0 if it guesses, 2 if it never errs" in out
    assert "of 22 training" in out
    assert not Path(toy_recipe["output_dir"]).exists()


def test_the_lines_say_what_the_numbers_are() -> None:
    found = {
        "value": 1.5,
        "interval": [1.25, 1.75],
        "error": 0.125,
        "num_examples": 500,
        "losses": {
            "general": {"value": 1.0, "standard_error": 0.25, "num_examples": 200, "unit": "nats", "perplexity": 2.718},
            "domain": None,
        },
        "is_held_out": False,
        "notes": ["M₀ has no loss on the domain side."],
        "seconds": 3.21,
    }
    assert format_distance(found).splitlines() == [
        "distance of the sides for M₀: d_A = 1.50, 95% interval 1.25 to 1.75",
        "  a linear classifier of its features errs on 12.5% of 1,000 training examples; d_A is 0 if it guesses, "
        "2 if it never errs",
        "  loss of M₀, general, 200 training examples: 1.0000 ± 0.2500 nats, perplexity 2.72",
        "  M₀ has no loss on the domain side.",
        "  measured in 3.2 s; ± is the standard error of a loss",
    ]


def test_a_distance_needs_both_sides(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    toy_recipe["corpora"] = {"domain": {"path": "is/not/even/looked/for.jsonl"}}
    toy_recipe |= {"alpha_schedule_type": "constant", "alpha_end": 1.0}
    assert cli.main(["plan", str(write_recipe(toy_recipe)), "--distance"]) == 2
    assert "`corpora` has none of the general side" in capfd.readouterr().err
