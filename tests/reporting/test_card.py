"""Model cards: what they say of results, what cannot get into them, and that their snippets run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import yaml
from architectures import make_model, make_tokenizer
from hub_server import HubServer, Refused, check_metadata
from huggingface_hub import ModelCard, ModelCardData
from toys import alpha_curve, measured

from hf_interp.reporting.card import CardMetadata, clean, escape, is_hub_id, model_card
from hf_interp.reporting.curve import AlphaCurve
from hf_interp.reporting.results import Comparison, RunResults

VERSIONS = {"python": "3.11.7", "hf_interp": "0.1.0"}
MACHINE = {"processor": "AMD EPYC", "cores": 2, "system": "Linux", "architecture": "x86_64", "num_processes": 1}
CORPORA = [
    {"name": "general", "side": "general", "num_examples": 4000, "drawn": 1200, "passes": 0.3},
    {"name": "law", "side": "domain", "num_examples": None, "drawn": 2000, "passes": None},
]
HOSTILE = (
    "<script>alert(1)</script> ](javascript:alert(1)) ---\n| a | : [ \u202etxt.exe `rm` {{ 7*7 }} www.evil.example"
)


def run_results(**changes: Any) -> RunResults:
    """A run of BERT with two corpora, one of them on the Hub."""
    given: dict[str, Any] = {
        "config": {
            "alpha_schedule_type": "linear",
            "alpha_start": 0.0,
            "alpha_end": 1.0,
            "learning_rate": 5e-05,
            "lr_scheduler_type": "linear",
            "optim": "adamw_torch",
            "seed": 42,
            "bf16": True,
        },
        "plan": {
            "unit": "examples",
            "max_steps": 100,
            "batch_size": 32,
            "fingerprint": "0123456789abcdef",
            "alpha": [{"step": 0, "alpha": 0.0}, {"step": 99, "alpha": 1.0}],
            "corpora": CORPORA,
            "warnings": ["Corpus 'law' is read 5.0 times."],
        },
        "base_metrics": {"general": {"loss": 1.0, "accuracy": 0.75}, "law": {"loss": 2.0, "accuracy": 0.5}},
        "final_metrics": {"general": {"loss": 1.25, "accuracy": 0.75}, "law": {"loss": 0.5, "accuracy": 0.875}},
        "forgetting": {"loss": 0.25, "accuracy": 0.0},
        "log_history": [{"train_runtime": 61.4, "step": 100}, {"order_fingerprint": "fedcba9876543210", "step": 100}],
        "versions": VERSIONS,
        "machine": MACHINE,
        "model": {"class": "BertForSequenceClassification", "parameters": 1000, "trained_parameters": 10},
        "recipe": {
            "model_name_or_path": "google/bert_uncased",
            "model_revision": "main",
            "label_names": ["no", "yes"],
            "corpora": {
                "general": {"path": "jane/reviews", "split": "train", "license": "mit"},
                "law": {"path": "/home/jane/law.jsonl"},
            },
            "eval_corpora": {
                "general": {"path": "jane/reviews", "config_name": "en", "split": "test", "license": "mit"},
                "law": {"path": "/home/jane/law_test.jsonl"},
            },
        },
    }
    return RunResults(**{**given, **changes})


def curve_at(alpha: float = 0.5, **changes: Any) -> AlphaCurve:
    """Three α, evaluated on both sides."""
    domain, general = measured([2.0, 0.75, 0.5], [0.1, None, 0.01]), measured([1.0, 1.0, 1.25], 0.1)
    given: dict[str, Any] = {
        "objective": "constrained",
        "alpha": alpha,
        "best_alpha": 1.0,
        "reason": "α = 0.5 is chosen.",
        "settings": {"domain": "law", "general": "general"},
        "confidence_interval": [0.4, 0.75],
        "knee": 0.5,
        "num_examples": {"domain": {"selection": 10, "report": 12}, "general": {"selection": 20, "report": 22}},
        "warnings": ["few examples"],
    }
    return alpha_curve({"loss": domain}, {"loss": general}, **{**given, **changes})


def comparison() -> Comparison:
    rows = [
        {
            "method": method,
            "seed": seed,
            "metrics": {"domain": {"accuracy": domain}, "general": {"accuracy": 0.5}},
            "forgetting": {"accuracy": 0.25},
            **({"alpha": 0.5} if method == "interpolated" else {}),
        }
        for method, domain in (("mixed", 0.75), ("interpolated", 0.5))
        for seed in (0, 1)
    ]
    return Comparison(rows=rows, settings={})


def section(card: ModelCard, title: str) -> str:
    """The text below a heading, up to the next of its level."""
    found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=^## |\Z)", card.text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"no section {title}"
    return found[1].strip()


def table(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without the rule."""
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [rows[0], *rows[2:]]


# What a card says.


def test_a_card_tells_what_the_results_hold() -> None:
    card = model_card(run_results(), name="law-bert", repo_id="jane/law-bert")
    assert card.text.strip().startswith(
        "# law-bert\n\nMade with hf_interp from google/bert_uncased (M₀): training mixed general and domain data along "
        "a coefficient α, which\ngave M_θ. Its task is sequence-classification.\n"
    )
    assert table(card.text)[1:] == [
        ["**main (this card)**", "M_θ, the end of training"],
        ["elsewhere", "M₀, google/bert_uncased, revision main"],
    ]
    assert table(section(card, "Results")) == [
        ["set", "metric", "M₀", "M_θ", "forgetting"],
        ["general", "loss", "1.0000", "1.2500", "0.2500"],
        ["general", "accuracy", "0.7500", "0.7500", "0.0000"],
        ["law", "loss", "2.0000", "0.5000", ""],
        ["law", "accuracy", "0.5000", "0.8750", ""],
    ]
    data = section(card, "The α of the data")
    assert data.startswith(
        "α is the share of domain examples in a batch: schedule linear from 0 to 1, over 100 steps of 32 examples.\n"
    )
    assert table(data) == [["step", "0", "99"], ["α", "0.0000", "1.0000"]]
    corpora = section(card, "Corpora")
    assert table(corpora)[1:] == [
        ["general", "general", "jane/reviews, split train", "4,000", "1,200", "0.30", "mit"],
        ["law", "domain", "law.jsonl (local)", "a stream", "2,000", "", "unknown"],
    ]
    assert table(corpora.partition("Evaluated on:")[2])[1:] == [
        ["general", "test", "jane/reviews, en, split test", "mit"],
        ["law", "test", "law_test.jsonl (local)", "unknown"],
    ]
    assert "- Corpus 'law' is read 5.0 times." in corpora
    assert table(section(card, "Training"))[1:] == [
        ["trained parameters", "10 of 1,000"],
        ["hardware", "AMD EPYC, 2 cores"],
        ["processes", "1"],
        ["training time", "61 s, with evaluations on the way"],
        ["learning rate", "5e-05"],
        ["lr scheduler type", "linear"],
        ["optim", "adamw_torch"],
        ["seed", "42"],
        ["precision", "bf16"],
    ]
    limits = section(card, "Limits and bias").splitlines()
    assert limits[0] == "- On the general set M_θ is worse than M₀: loss by 0.2500."
    assert [line for line in limits if "licences" in line and line.endswith(": law.")]
    check = section(card, "How to check")
    assert "- plan: 0123456789abcdef\n- read: fedcba9876543210\n- versions: python 3.11.7, hf_interp 0.1.0\n" in check


def test_a_card_tells_what_a_method_set_and_which_examples_are_packed() -> None:
    plan = run_results().plan
    distilled = [{**CORPORA[0], "objective": "distill"}, CORPORA[1]]
    method = {"name": "keep", "sets": {"alpha": 0.25, "corpora.general.objective": "distill"}}
    results = run_results(plan={**plan, "corpora": distilled}, method=method, packed={"general": 9500, "law": 20})
    card = model_card(results, name="law-bert")
    assert section(card, "Training").startswith(
        "The recipe's method is keep, which sets alpha 0.25, corpora.general.objective distill.\n"
        "The predictions of M₀ were the targets of general (objective distill).\n\n| setting"
    )
    assert [row[3] for row in table(section(card, "Corpora"))[1:]] == ["4,000, packed of 9,500 rows", "a stream"]


def test_metadata_of_the_fine_tuned_model() -> None:
    card = model_card(
        run_results(),
        name="law-bert",
        metadata=CardMetadata(license="apache-2.0", language=["en"], tags=["law", "hf_interp"]),
    )
    data = yaml.safe_load(card.data.to_yaml())
    assert {key: value for key, value in data.items() if key != "model-index"} == {
        "base_model": "google/bert_uncased",
        "datasets": ["jane/reviews"],
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "metrics": ["loss", "accuracy"],
        "pipeline_tag": "text-classification",
        "tags": ["hf_interp", "domain-adaptation", "law"],
    }
    (index,) = data["model-index"]
    assert index["name"] == "law-bert"
    general, law = index["results"]
    assert general == {
        "task": {"type": "text-classification"},
        "dataset": {"name": "general", "type": "jane/reviews", "config": "en", "split": "test"},
        "metrics": [
            {"type": "loss", "value": 1.25, "name": "loss"},
            {"type": "accuracy", "value": 0.75, "name": "accuracy"},
        ],
    }
    assert law["dataset"] == {"name": "law", "type": "law"}
    assert [metric["value"] for metric in law["metrics"]] == [0.5, 0.875]


def test_a_card_of_the_interpolated_model_tells_both_branches_and_the_curve() -> None:
    card = model_card(
        run_results(), curve_at(), name="law", interpolated=True, both=True, pictures=["run.png", "curve.png"]
    )
    assert "gave M_θ; these weights lie between the two." in card.text
    assert table(card.text)[1:3] == [
        ["**main (this card)**", "M_α = α·M_θ + (1 − α)·M₀ with α = 0.5"],
        ["finetuned", "M_θ, the end of training"],
    ]
    weights = section(card, "The α of the weights")
    assert weights.startswith("α = 0.5 is chosen.\n")
    assert table(weights) == [
        ["α", "domain loss", "general loss"],
        ["0 (M₀)", "2.0000 ± 0.1000", "1.0000 ± 0.1000"],
        ["0.5 (chosen)", "0.7500", "1.0000 ± 0.1000"],
        ["1 (M_θ)", "0.5000 ± 0.0100", "1.2500 ± 0.1000"],
    ]
    assert weights.splitlines()[-6:] == [
        "- α was chosen on 10 domain and 20 general validation examples; the table shows 12 domain and 22 general "
        "others, ± one standard error.",
        "- 95% confidence interval of the best α: 0.4 to 0.75.",
        "- Knee: α = 0.5.",
        "- Warning: few examples",
        "",
        "![Metrics over α](curve.png)",
    ]
    assert "![α and shares, losses and metrics over steps](run.png)" in card.text
    assert "interpolated" in card.data.tags
    results = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert results == {
        "law (half not used to choose α)": 0.75,
        "general (half not used to choose α)": 1.0,
    }


def test_the_card_beside_it_tells_of_the_end_of_training() -> None:
    card = model_card(run_results(), curve_at(), name="law", repo_id="jane/law", both=True)
    assert table(card.text)[1:3] == [
        ["main", "M_α = α·M_θ + (1 − α)·M₀ with α = 0.5"],
        ["**finetuned (this card)**", "M_θ, the end of training"],
    ]
    assert "revision='finetuned'" in section(card, "How to use")
    assert "![" not in card.text
    assert [result.metric_value for result in card.data.eval_results] == [1.25, 0.75, 0.5, 0.875]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, True), (0.5, False)])
def test_the_pretrained_model_is_not_sold_as_a_trained_one(alpha: float, expected: bool) -> None:
    card = model_card(run_results(), curve_at(alpha), name="law", interpolated=True)
    assert ("nothing of the training is in them" in card.text) is expected


def test_phases_are_told() -> None:
    results = run_results()
    results.config |= {"alpha_initial_steps": 10, "alpha_target_steps": 0.2, "alpha_schedule_kwargs": {"rate": 3.0}}
    text = section(model_card(results, name="law"), "The α of the data")
    assert "from 0 to 1 (\\{'rate': 3.0\\}, initial phase of 10 steps, target phase of 20% of them), over" in text
    results.config["alpha_controller"] = "gap"
    text = section(model_card(results, name="law"), "The α of the data")
    assert "; it answered to training (controller gap) over 100 steps of 32 examples." in text


def test_an_alpha_that_was_not_evaluated_has_no_metrics() -> None:
    card = model_card(run_results(), curve_at(0.6), name="law", interpolated=True)
    assert card.data.eval_results is None
    assert "- M_α was not evaluated at the chosen α itself." in card.text


def test_a_comparison_stands_in_the_card() -> None:
    card = model_card(run_results(), comparison=comparison(), name="law")
    text = section(card, "Results").partition("### Compared with other ways of training")[2]
    assert text.strip().startswith("At equal steps on the same data, mean ± standard deviation over 2 seeds:")
    assert table(text) == [
        ["method", "α of weights", "domain accuracy", "general accuracy", "forgetting"],
        ["mixed", "", "0.750 ± 0.000", "0.500 ± 0.000", "0.250 ± 0.000"],
        ["interpolated", "0.500 ± 0.000", "0.500 ± 0.000", "0.500 ± 0.000", "0.250 ± 0.000"],
    ]


def test_a_comparison_without_both_sides_is_refused() -> None:
    row = {"method": "a", "seed": 0, "metrics": {"x": {"loss": 1.0}}, "forgetting": {}}
    with pytest.raises(ValueError, match=r"The comparison has no 'domain' in its rows\. Give the results\.json"):
        model_card(run_results(), comparison=Comparison(rows=[row], settings={}), name="law")


def test_what_was_not_measured_is_not_told() -> None:
    results = run_results(
        base_metrics={}, final_metrics={}, forgetting={}, log_history=[], recipe=None, config={}, model={}, plan={}
    )
    card = model_card(results, name="law")
    assert "from a pretrained model that the run does not name (M₀)" in card.text
    assert section(card, "Results") == "The run had no evaluation sets."
    assert "The α of the weights" not in card.text
    assert card.data.eval_results is None
    assert {"base_model", "datasets", "license", "pipeline_tag", "co2_eq_emissions"}.isdisjoint(card.data.to_dict())
    assert "worse than" not in card.text
    check_metadata(str(card))


def test_without_a_first_evaluation_forgetting_is_unknown() -> None:
    card = model_card(run_results(base_metrics={}, forgetting={}), name="law")
    assert "M₀ was not evaluated (`eval_on_start` was off)" in card.text
    assert "No evaluation set is called general" not in card.text
    assert table(section(card, "Results"))[:2] == [["set", "metric", "M₀", "M_θ"], ["general", "loss", "", "1.2500"]]


def test_without_a_set_called_general_there_is_no_column_for_forgetting() -> None:
    metrics = {"law": {"loss": 2.0}}
    card = model_card(run_results(base_metrics=metrics, final_metrics=metrics, forgetting={}), name="law")
    assert "No evaluation set is called general, so that forgetting has no column of its own." in card.text
    assert "Forgetting is by how much" not in card.text
    assert table(section(card, "Results")) == [["set", "metric", "M₀", "M_θ"], ["law", "loss", "2.0000", "2.0000"]]


def test_emissions_are_told_where_they_were_measured() -> None:
    emissions = {"emissions": 0.0125, "energy": 0.05, "country": "Canada", "source": "codecarbon 3.3.2"}
    card = model_card(run_results(emissions=emissions), name="law")
    assert ["emissions", "0.0125 kg CO₂e of 0.05 kWh, at the electricity of Canada (codecarbon 3.3.2)"] in table(
        section(card, "Training")
    )
    assert card.data.to_dict()["co2_eq_emissions"] == {
        "emissions": 12.5,  # grams
        "source": "codecarbon 3.3.2",
        "training_type": "fine-tuning",
        "geographical_location": "Canada",
    }


def test_a_local_base_is_called_by_its_last_part_unless_it_is_named() -> None:
    results = run_results()
    assert results.recipe is not None
    results.recipe["model_name_or_path"] = "/home/jane/models/law-base"
    card = model_card(results, name="law")
    assert "from the local model law-base (M₀)" in card.text
    assert "base_model" not in card.data.to_dict()
    card = model_card(results, name="law", metadata=CardMetadata(base_model="jane/law-base"))
    assert card.data.base_model == "jane/law-base"
    assert "from jane/law-base (M₀)" in card.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bert-base-uncased", True),
        ("jane/bert.v2", True),
        ("/jane/bert", False),
        ("jane/bert/x", False),
        ("laws.csv", False),
        ("jane/größe", False),
        ("a b", False),
        ("x" * 97, False),
        ("", False),
    ],
)
def test_names_on_the_hub(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected


# The Hub's metadata.


@pytest.mark.parametrize("interpolated", [False, True])
def test_metadata_goes_through_the_client_and_back(interpolated: bool, tmp_path: Path) -> None:
    card = model_card(run_results(), curve_at(), name="law", interpolated=interpolated, both=True)
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    assert loaded.data.eval_results == card.data.eval_results
    assert loaded.text.strip() == card.text.strip()
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert again.to_dict() == card.data.to_dict()


@pytest.mark.skipif(
    int(huggingface_hub.__version__.split(".")[0]) < 2,
    reason="the validator asks huggingface.co whatever HF_ENDPOINT is",
)
def test_the_hub_finds_the_metadata_valid(tmp_path: Path) -> None:
    model_card(run_results(), curve_at(), name="law", metadata=CardMetadata(license="mit")).save(tmp_path / "good.md")
    model_card(run_results(), name="law", metadata=CardMetadata(license="my own")).save(tmp_path / "bad.md")
    script = (
        "from huggingface_hub import ModelCard\n"
        "ModelCard.load('good.md').validate()\n"
        "try: ModelCard.load('bad.md').validate()\n"
        "except ValueError as error: print(error)\n"
    )
    with HubServer() as hub:
        environment = hub.environment(tmp_path)
        found = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert hub.kinds() == ["validate", "validate"]
    assert '\\"license\\" must be one of' in found.stdout


# What comes from data cannot add markup, links or metadata.


def test_hostile_texts_are_only_texts() -> None:
    results = run_results()
    assert results.recipe is not None
    results.plan["corpora"] = [{**CORPORA[0], "name": HOSTILE, "side": HOSTILE}]
    results.plan["warnings"] = [HOSTILE]
    results.final_metrics = {HOSTILE: {HOSTILE: 0.5}}
    results.recipe |= {
        "model_name_or_path": HOSTILE,
        "label_names": [HOSTILE],
        "source_prefix": HOSTILE,
        "peft": {"peft_type": HOSTILE},
        "corpora": {HOSTILE: {"path": HOSTILE, "license": HOSTILE}},
        "eval_corpora": {HOSTILE: {"path": HOSTILE, "license": HOSTILE}},
        "objectives": {HOSTILE: {}},
    }
    results.versions = {HOSTILE: HOSTILE}
    curve = curve_at(reason=HOSTILE, warnings=[HOSTILE], settings={"domain": HOSTILE})
    card = model_card(results, curve, name=HOSTILE, interpolated=True, both=True, metadata=CardMetadata(tags=[HOSTILE]))
    text = str(card)
    _, header, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    # of the metadata: what was put in is a text, and no key is new
    data = yaml.safe_load(header)
    assert set(data) <= {"library_name", "metrics", "model-index", "pipeline_tag", "tags"}
    assert data["tags"][-1] == clean(HOSTILE)
    check_metadata(text)
    prose = re.sub(r"^```python\n.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    for bad in ("<script", "</script", "\u202e", "www.evil", "{{ 7"):
        assert bad not in prose
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    assert "49" not in prose
    assert "\n---" not in body
    # every row has as many cells as its header
    for block in re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", body, flags=re.DOTALL | re.MULTILINE)
    compile(snippet, "card", "exec")
    assert "\u202e" not in snippet


def test_backticks_cannot_end_a_snippet() -> None:
    results = run_results()
    assert results.recipe is not None
    results.recipe |= {"task": "summarization", "source_prefix": "a\n```\n# b: "}
    card = model_card(results, name="law")
    assert len(re.findall(r"^ *```", card.text, flags=re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b M_θ _c_", r"a_b M_θ \_c\_"),
        ("1 < 2 & 3 > 2", "1 &lt; 2 &amp; 3 &gt; 2"),
        ("jane@host", "jane&#64;host"),
        ("$x$ ~~y~~ `z` \\", r"\$x\$ \~\~y\~\~ \`z\` \\"),
        ("WWW.host https://host", "www&#46;host https&#58;//host"),
        ("![x](y)", r"\!\[x\](y)"),
        (0.5, "0.5"),
    ],
)
def test_escaped(text: Any, expected: str) -> None:
    assert escape(text) == expected


def test_clean_texts_are_one_short_line() -> None:
    assert clean("a\t\r\n b\x00c\u2028d\u200be") == "a b c d e"
    assert clean("x" * 500) == "x" * 500
    assert clean("x" * 501) == "x" * 499 + "…"


def test_paths_and_tokens_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse")
    results = run_results()
    results.plan["warnings"] = ["Read /srv/jane/law.csv with correct-horse and my-own-token.", "hf_" + "a1" * 17]
    assert results.recipe is not None
    results.recipe |= {"hub_token": "my-own-token", "model_name_or_path": "/srv/jane/base"}
    results.recipe["corpora"]["law"]["path"] = "/srv/jane/law.csv"
    results.config["output_dir"] = "/srv/jane/run"
    text = str(model_card(results, name="law"))
    assert r"- Read law.csv with \*\*\* and \*\*\*." in text
    for secret in ("/srv", "jane/law", "correct-horse", "my-own-token", "hf_a1"):
        assert secret not in text


# Snippets.


def save_model(folder: Path, kind: str, task: str | None, **kwargs: Any) -> None:
    make_model(kind, task, **kwargs).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "w59"})
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)


def run_snippet(card: ModelCard, capsys: pytest.CaptureFixture[str]) -> str:
    """What the snippet of a card prints."""
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", card.text, flags=re.DOTALL | re.MULTILINE)
    capsys.readouterr()
    exec(snippet, {})
    return capsys.readouterr().out


def recipe_for(task: str, base: Path, **more: Any) -> dict[str, Any]:
    return {"task": task, "model_name_or_path": str(base), "corpora": {}, **more}


@pytest.mark.filterwarnings("ignore")  # of the host's about its own settings
@pytest.mark.parametrize(
    ("task", "kind", "model_task", "more", "expected"),
    [
        ("sequence-classification", "bert", "SEQ_CLS", {}, r"\[\{'label': '(no|yes)', 'score'"),
        (
            "sequence-classification",
            "bert",
            "SEQ_CLS",
            {"problem_type": "regression"},
            r"\[\{'label': '(no|yes)', 'score': -?\d",
        ),
        ("token-classification", "bert", "TOKEN_CLS", {}, r"\[\{'entity_group': '(no|yes)'"),
        ("masked-lm", "bert", None, {}, r"\[\{'score': .*'sequence':"),
        ("causal-lm", "gpt2", "CAUSAL_LM", {}, r"The beginning of a text"),
        ("seq2seq", "t5", "SEQ_2_SEQ_LM", {"source_prefix": "w5 ", "max_target_length": 5}, r"^\[['\"]"),
        ("translation", "t5", "SEQ_2_SEQ_LM", {"max_target_length": 5}, r"^\[['\"]"),
    ],
)
def test_the_snippet_runs(
    task: str,
    kind: str,
    model_task: str | None,
    more: dict[str, Any],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(tmp_path / "law", kind, model_task)
    monkeypatch.chdir(tmp_path)
    card = model_card(run_results(recipe=recipe_for(task, tmp_path / "law", **more)), name="law")
    assert re.search(expected, run_snippet(card, capsys), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_snippet_of_an_adapter_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "base", "bert", "SEQ_CLS")
    model = make_model("bert", "SEQ_CLS")
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(model, settings).save_pretrained(tmp_path / "law")
    make_tokenizer().save_pretrained(tmp_path / "law")
    monkeypatch.chdir(tmp_path)
    results = run_results(
        model={"is_adapter": True, "peft_type": "LORA"},
        recipe=recipe_for("sequence-classification", tmp_path / "base", peft="lora", label_names=["down", "up"]),
    )
    card = model_card(results, name="law")
    assert "put the folder where you have it in place of\n`your/base-model`." in card.text
    assert card.data.library_name == "peft"
    assert card.data.tags == ["hf_interp", "domain-adaptation", "lora"]
    assert "AutoModelForSequenceClassification.from_pretrained('your/base-model'" in card.text
    card = model_card(results, name="law", metadata=CardMetadata(base_model="base"))
    assert "your/base-model" not in card.text
    assert (card.data.base_model, card.data.tags[-1]) == ("base", "base_model:adapter:base")
    printed = run_snippet(card, capsys)
    assert "'label': 'down'" in printed
    assert "'label': 'up'" in printed


def test_a_chat_model_is_asked_by_messages() -> None:
    recipe = recipe_for("causal-lm", Path("gpt2"), corpora={"law": {"path": "x", "messages_column": "messages"}})
    snippet = section(model_card(run_results(recipe=recipe), name="law"), "How to use")
    assert "[{'role': 'user', 'content': 'A question?'}]" in snippet


def test_many_labels_are_counted_only() -> None:
    for count, expected in ((30, "id2label={0: 'l0', "), (31, "num_labels=31)")):
        recipe = recipe_for(
            "token-classification", Path("x/y"), peft="lora", label_names=[f"l{i}" for i in range(count)]
        )
        assert expected in section(model_card(run_results(recipe=recipe), name="law"), "How to use")


def test_a_run_without_a_recipe_is_known_by_its_class() -> None:
    results = run_results(recipe=None, model={"class": "T5ForConditionalGeneration", "base": "google/t5"})
    card = model_card(results, name="law")
    assert "AutoModelForSeq2SeqLM.from_pretrained('law')" in card.text
    assert card.data.base_model == "google/t5"
    assert "pipeline_tag" not in card.data.to_dict()


def test_the_test_hub_refuses_bad_metadata() -> None:
    with pytest.raises(Refused, match="base_model"):
        check_metadata("---\nbase_model: /home/jane/base\n---\n")


CARDS = sorted(Path(__file__).parents[2].glob("model_cards/*/README.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_cards_of_our_recipes_are_whole(path: Path) -> None:
    card = ModelCard.load(path)
    check_metadata(card.content)
    assert card.data.eval_results
    text = card.text
    assert text.rstrip().endswith("This card was rendered from the run's results by `hf-interp card`.")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures == ["curve.png", "run.png"]
    assert all((path.parent / picture).is_file() for picture in pictures)
