"""What M_α tells of its training rows, and which of two texts it prefers."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from toys import bert_shape, word_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_interp import cli
from hf_interp.commands.demo import LABEL_NAMES, ToyShift
from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import linear
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.results import load_run_results
from hf_interp.selection.leaks import RATES, attack, compare_pairs, exposures, log_likelihoods
from hf_interp.tasks.probes import FORMAT, REFERENCES, canary_rows, canary_texts
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.tasks.runs import rows_read
from hf_interp.train import run_recipe

COUNT = 120


def write_rows(path: Path, shift: ToyShift, split: str) -> dict[str, str]:
    """Write texts with labels by chance, which a model can only know by heart."""
    draw = random.Random(split)
    rows = [
        row | {"label": draw.choice(LABEL_NAMES)} for row in shift.sentences("domain", COUNT, split=split, noisy=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"path": str(path)}


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]], toy_shift: ToyShift
) -> dict[str, Any]:
    """A recipe of a run that has learned its domain by heart, with what it and an audit wrote in its `output_dir`."""
    folder = tmp_path_factory.mktemp("audit")
    found = make_recipe(folder / "out")
    found["corpora"]["domain"] = write_rows(folder / "train.jsonl", toy_shift, "train")
    found["eval_corpora"]["domain"] = write_rows(folder / "test.jsonl", toy_shift, "test")
    found |= {"max_steps": 120, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "validation_corpora": {}}
    found |= {"alpha_schedule_type": "constant", "alpha_end": 1.0, "logging_steps": 60}
    run_recipe(found)
    assert cli.main(["audit", found["output_dir"], "--alpha_search.alphas", "3"]) == 0
    return found


@pytest.fixture(scope="module")
def points(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    audit = load_run_results(Path(recipe["output_dir"]) / "results.json").audit
    assert audit["num_examples"]["members"] == COUNT
    assert audit["num_examples"]["others"] + audit["num_examples"]["left_out"] == COUNT
    assert [point["alpha"] for point in audit["points"]] == [0.0, 0.5, 1.0]
    return list(audit["points"])


def test_a_model_that_never_saw_the_rows_does_not_tell_them(points: list[dict[str, Any]]) -> None:
    area = points[0]["loss"]["auc"]
    assert area["low"] <= 0.5 <= area["high"]
    assert points[0]["calibrated"]["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_what_was_learned_by_heart_is_found(points: list[dict[str, Any]]) -> None:
    assert points[-1]["loss"]["auc"]["low"] > 0.6
    assert points[-1]["calibrated"]["auc"]["low"] > 0.6


def test_the_losses_are_those_of_the_model(recipe: dict[str, Any], points: list[dict[str, Any]]) -> None:
    folder = recipe["output_dir"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses = []
    for part in (recipe["corpora"], recipe["eval_corpora"]):
        rows = [json.loads(line) for line in Path(part["domain"]["path"]).read_text("utf-8").splitlines()]
        with torch.no_grad():
            logits = model.eval()(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
        labels = torch.tensor([LABEL_NAMES.index(row["label"]) for row in rows])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    wins = (losses[0][:, None] < losses[1]).double() + 0.5 * (losses[0][:, None] == losses[1]).double()
    assert points[-1]["loss"]["auc"]["value"] == pytest.approx(float(wins.mean()), abs=1e-3)


@pytest.mark.slow
def test_card_report_and_command_tell_it(recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(recipe["output_dir"])
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
    for command in (["card", str(folder)], ["report", str(folder)]):
        assert cli.main(command) == 0
    audit = load_run_results(folder / "results.json").audit
    area = f"{audit['points'][-1]['loss']['auc']['value']:.4f} ("
    assert area in (folder / "README.md").read_text("utf-8")
    page = (folder / "report.html").read_text("utf-8")
    assert area in page
    assert "What M_α tells of its training rows" in page


def test_only_rows_that_were_read_are_members() -> None:
    corpora = [
        CorpusSpec(name="web", side="general", num_examples=100),
        CorpusSpec(name="law", side="domain", num_examples=30),
    ]
    plan = MixturePlan(corpora, alpha_schedule=linear(0, 1), batch_size=4, max_steps=10)
    draws = plan.locate(range(40))
    for index, corpus in enumerate(corpora):
        expected = sorted(set(draws.example[draws.corpus == index].tolist()))
        assert rows_read(plan, corpus.name).tolist() == expected
        assert 0 < len(expected) < (corpus.num_examples or 0)
    assert rows_read(plan, "news").tolist() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--corpus", "domian"],
            "must be a training corpus of the task, no stream, without `balance_by` (domain), got 'domian'.",
        ),
        (["--corpus", "general"], "at least 10 rows of 'general' that were read"),
        (["--examples", "5"], "An audit needs at least 10 rows of 'domain'"),
    ],
)
def test_bad_input_is_refused(
    recipe: dict[str, Any], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", recipe["output_dir"], *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(tmp_path)]) == 2
    assert "does not tell its recipe" in capsys.readouterr().err


# A language model: canaries, pairs of texts, and a limit on the leak.

WORDS = ["he", "she", "nurse", "doctor", "slept", "ran", "sang", "because", "the", "was", "tired", "late"]
DIGITS = [str(digit) for digit in range(10)]
VOCABULARY = [*WORDS, *DIGITS, *(f"{digit}." for digit in DIGITS), *FORMAT.split()[:-1]]
PAIRS = [("the doctor ran because he was late", "the doctor ran because she was late")] * 3 + [
    ("the nurse slept because she was tired", "the nurse slept because he was tired"),
    ("the nurse sang", "the nurse sang"),
]


def write_language_model(folder: Path) -> Path:
    """Write an untrained Llama of words and digits."""
    tokenizer = word_tokenizer(VOCABULARY, eos_token="[SEP]")
    shape = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    set_seed(3)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3, **shape)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_texts(path: Path, count: int) -> dict[str, Any]:
    draw = random.Random(path.stem)
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return {"path": str(path)}


@pytest.fixture(scope="module")
def language_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of a language model that has learned its domain by heart, with its canaries; run and audited."""
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in PAIRS), "utf-8")
    sets = {side: write_texts(folder / f"{side}_test.jsonl", 24) for side in ("general", "domain")}
    found = {
        "task": "causal-lm",
        "model_name_or_path": str(write_language_model(folder / "model")),
        "packing": False,
        "max_length": 20,
        "corpora": {
            "general": write_texts(folder / "general.jsonl", 24),
            "domain": write_texts(folder / "domain.jsonl", 20) | {"canaries": 4},
        },
        "eval_corpora": sets | {"pairs": {"path": str(folder / "pairs.jsonl"), "pair_columns": ["a", "b"]}},
        "alpha_search": {"objective": "constrained", "max_forgetting": 100, "max_leakage": 0.9, "alphas": 3},
        "output_dir": str(folder / "out"),
        "alpha": 1.0,
        "max_steps": 150,
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 128,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    run_recipe(found)
    assert cli.main(["audit", str(found["output_dir"]), "--alpha_search.alphas", "2"]) == 0
    return found


def test_canaries_that_were_learned_by_heart_are_found(language_recipe: dict[str, Any]) -> None:
    audit = load_run_results(Path(language_recipe["output_dir"]) / "results.json").audit
    assert (audit["canaries"], audit["references"]) == (4, REFERENCES)
    before, after = audit["points"][0]["exposure"], audit["points"][-1]["exposure"]
    assert before["bits"]["value"] < 5
    assert after == {"bits": {"value": 10.0, "low": 10.0, "high": 10.0}, "first": 4, "each": [10.0] * 4}
    assert before["bits"]["value"] == pytest.approx(np.mean(before["each"]))
    model, tokenizer = (
        kind.from_pretrained(language_recipe["model_name_or_path"]) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    planted, others = canary_texts("domain", CorpusConfig(**language_recipe["corpora"]["domain"]))
    assert audit["canary_texts"] == planted
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in [*planted, *others]])
    with torch.no_grad():
        scores = model.eval()(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).sum((1, 2)).numpy()
    by_hand = [np.log2(1024) - np.log2(1 + (scores[4:] > score).sum()) for score in scores[:4]]
    assert before["each"] == pytest.approx(by_hand, abs=0.05)
    assert audit["num_examples"]["members"] == 20  # canaries are no rows of its kind


def test_a_general_corpus_is_told_from_the_general_test_rows(language_recipe: dict[str, Any], tmp_path: Path) -> None:
    found = language_recipe | {"alpha": 0.5, "max_steps": 6, "alpha_search": None, "output_dir": str(tmp_path / "out")}
    run_recipe(found)
    flags = ["--corpus", "general", "--alpha_search", "{alphas: 2}"]
    assert cli.main(["audit", found["output_dir"], *flags]) == 0
    audit = load_run_results(tmp_path / "out" / "results.json").audit
    assert (audit["corpus"], audit["set"]) == ("general", "general")
    model, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    losses = []
    for part in ("corpora", "eval_corpora"):
        rows = Path(found[part]["general"]["path"]).read_text("utf-8").splitlines()
        ids = torch.tensor([[*tokenizer(json.loads(row)["text"])["input_ids"], tokenizer.eos_token_id] for row in rows])
        with torch.no_grad():
            logits = model.eval()(ids).logits[:, :-1].transpose(1, 2)
        losses.append(torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none").mean(1))
    area = (losses[0][:, None] < losses[1]).double().mean()
    assert audit["points"][-1]["loss"]["auc"]["value"] == pytest.approx(float(area), abs=5e-3)


def test_the_likelihood_is_that_of_the_model(language_recipe: dict[str, Any]) -> None:
    folder = language_recipe["output_dir"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def likelihood(text: str) -> float:
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(found[place, token]) for place, token in enumerate(ids[1:]))

    differences = np.array([likelihood(first) - likelihood(second) for first, second in PAIRS])
    found = load_run_results(Path(folder) / "results.json").pairs["pairs"]["final"]
    assert found["num"] == len(PAIRS)
    assert found["difference"]["value"] == pytest.approx(differences.mean(), abs=1e-4)
    assert found["preferred"]["value"] == pytest.approx(((differences > 0).sum() + 0.5) / len(PAIRS))
    curve = load_curve(Path(folder) / "curve.json")
    assert curve.pairs["pairs"][-1] == found


def test_a_limit_on_the_leak_keeps_alpha_small(language_recipe: dict[str, Any]) -> None:
    curve = load_curve(Path(language_recipe["output_dir"]) / "curve.json")
    areas = [max(found[name]["auc"]["value"] for name in ("loss", "calibrated")) for found in curve.leakage]
    assert curve.alphas == [0.0, 0.5, 1.0]
    assert areas[0] < 0.9 < areas[-1]
    assert curve.alpha < 1
    assert "whose leakage is" in curve.reason


@pytest.mark.slow
def test_canaries_and_pairs_are_told(language_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(language_recipe["output_dir"])
    for command in ("card", "report", "curve"):
        assert cli.main([command, str(folder)]) == 0
    text, card = capsys.readouterr().out, (folder / "README.md").read_text("utf-8")
    page = (folder / "report.html").read_text("utf-8")
    assert "first text likelier" in text
    assert "4 random sequences (canaries) were planted in domain" in card
    assert "This run measured it by pairs of texts, as follows" in card
    assert all("10.00 (10.00 to 10.00)" in told and "4 of 4" in told for told in (card, page))
    assert "Canaries that M_α has learned" in page
    assert "Pairs of pairs whose first text is likelier" in page


def test_a_plan_counts_canaries(
    language_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(write_recipe(language_recipe))]) == 0
    text = capsys.readouterr().out
    assert "canaries: 4 random sequences (The random number is ….) stand among the rows of domain" in text
    assert next(line.split()[5] for line in text.splitlines() if line.startswith("| domain")) == "24"


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        ("corpora.domain", {"canaries": 0}, "must be at least 1, got 0"),
        ("corpora.general", {"canaries": 2}, "`corpora.general.canaries` must be of a domain corpus of a language"),
        ("eval_corpora.domain", {"canaries": 2}, "`eval_corpora.domain.canaries` must be of a domain corpus"),
        (
            "corpora.domain",
            {"streaming": True},
            "`corpora.domain.canaries` must be .* without `objective`, `stream",
        ),
        ("corpora.domain", {"pair_columns": ["a", "b"]}, "pair_columns` must be of one of the `eval_corpora`"),
        ("eval_corpora.pairs", {"pair_columns": ["a", "a"]}, "must be two columns of texts, got"),
        ("eval_corpora.pairs", {"pair_columns": ["a", "c"]}, "has no column 'c'; it has"),
        ("eval_corpora.domain", {"pair_columns": ["a", "b"]}, "needs the sets 'domain' and 'general'"),
    ],
)
def test_probes_that_cannot_be_are_refused(
    language_recipe: dict[str, Any], tmp_path: Path, place: str, fields: dict[str, Any], message: str
) -> None:
    group, name = place.split(".")
    changed = {**language_recipe[group], name: {**language_recipe[group][name], **fields}}
    with pytest.raises(ValueError, match=message) as error:
        run_recipe({**language_recipe, group: changed, "output_dir": str(tmp_path / "out")})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpora": {"canaries": 3}}, "`corpora.domain.canaries` must be of a domain corpus of a language model"),
        ({"eval_corpora": {"pair_columns": ["a", "b"]}}, "`eval_corpora.domain.pair_columns` must be of one of"),
        ({"alpha_search": {"objective": "constrained", "max_leakage": 0.4}}, "must lie in \\[0.5, 1\\], where 0.5 is"),
        ({"alpha_search": {"max_leakage": 0.6}}, "`max_leakage` needs the objective 'constrained', got 'domain'"),
        ({"alpha_search": {"objective": "constrained", "max_leakage": 0.6}, "max_steps": 1}, "needs at least 10 rows"),
    ],
)
def test_a_classifier_has_no_canaries_and_no_pairs(
    toy_recipe: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    for group, own in fields.items():
        is_corpora = group.endswith("corpora")
        toy_recipe[group] = toy_recipe[group] | {"domain": toy_recipe[group]["domain"] | own} if is_corpora else own
    with pytest.raises(ValueError, match=message):
        run_recipe(toy_recipe)


def test_commands_without_an_audit_refuse_the_limit(
    toy_recipe: dict[str, Any], write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(toy_recipe | {"alpha_search": {"objective": "constrained", "max_leakage": 0.6}})
    assert cli.main(["compare", str(path), "--seeds", "0"]) == 2
    assert "`alpha_search.max_leakage` is not known to a comparison" in capsys.readouterr().err


def test_canaries_are_drawn_by_name_and_seed() -> None:
    config = CorpusConfig(path="a.jsonl", canaries=5)
    texts, others = canary_texts("law", config)
    assert len({*texts, *others}) == 5 + REFERENCES
    assert canary_texts("law", config) == (texts, others)
    assert canary_texts("news", config)[0] != texts
    assert len({*canary_rows("law", config, 30).tolist()}) == 5


@pytest.mark.parametrize("seed", range(3))
def test_exposure_is_that_of_the_rank(seed: int) -> None:
    draw = np.random.default_rng(seed)
    canaries, references = draw.normal(size=9), draw.normal(size=1023)
    ranks = [1 + sum(other > one for other in references) for one in canaries]
    np.testing.assert_allclose(exposures(canaries, references), 10 - np.log2(ranks))


def test_a_sequence_that_was_not_learned_has_the_exposure_that_is_told() -> None:
    draw = np.random.default_rng(0)
    found = np.mean([exposures(draw.normal(size=1000), draw.normal(size=1023)).mean() for _ in range(40)])
    assert found == pytest.approx(1.4365, abs=0.05)
    assert exposures(np.zeros(3), np.zeros(1023)) == pytest.approx(1, abs=0.01)  # equals share their ranks


def test_a_masked_model_is_asked_for_every_token_alone(tmp_path: Path) -> None:
    tokenizer = word_tokenizer([*WORDS, "[MASK]"], marks_pairs=True, mask_token="[MASK]")
    set_seed(5)
    model = BertForMaskedLM(bert_shape(len(tokenizer), 16)).eval()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model=model, args=args, processing_class=tokenizer)
    texts = ["the nurse slept because she was late", "he ran"]
    rows = [tokenizer(text, return_special_tokens_mask=True, return_token_type_ids=False) for text in texts]
    expected = []
    for row in rows:
        total = 0.0
        for place in range(1, len(row["input_ids"]) - 1):
            ids = torch.tensor([row["input_ids"]])
            token = int(ids[0, place])
            ids[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                total += float(model(ids).logits[0, place].log_softmax(-1)[token])
        expected.append(total)
    assert log_likelihoods(trainer, rows) == pytest.approx(expected, abs=1e-4)
    found = compare_pairs(trainer, {"one": (rows[1:], rows[:1])})["one"]
    assert found["preferred"]["value"] == float(expected[1] > expected[0])
    assert found["difference"] == {
        "value": pytest.approx(expected[1] - expected[0], abs=1e-4),
        "low": None,
        "high": None,
    }


# Membership inference from scores.


DRAW = np.random.default_rng(3)


def test_the_area_is_that_of_scikit_learn() -> None:
    members, others = np.round(DRAW.normal(0.5, 1, 300), 1), np.round(DRAW.normal(0, 1, 200), 1)  # with ties
    labels = [1] * 300 + [0] * 200
    found = attack(members, others)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(labels, [*members, *others]))


@pytest.mark.parametrize("size", [1000, 4321])
def test_true_positives_are_those_of_the_curve(size: int) -> None:
    members, others = DRAW.normal(1, 1, 700), DRAW.normal(0, 1, size)
    labels = [1] * 700 + [0] * size
    false, true, _ = roc_curve(labels, [*members, *others], drop_intermediate=False)
    for name, rate in RATES.items():
        assert attack(members, others)[name]["value"] == pytest.approx(true[false <= rate].max())


def test_equal_scores_tell_nothing() -> None:
    found = attack(np.zeros(100), np.zeros(150))
    assert found["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert all(found[name]["value"] == 0.0 for name in RATES)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of two normal variables one deviation apart the area is Φ(1/√2)."""
    kept = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        found = attack(draw.normal(1, 1, 200), draw.normal(0, 1, 200), seed)["auc"]
        kept += found["low"] <= 0.7602 <= found["high"]
    assert 17 <= kept <= 20
