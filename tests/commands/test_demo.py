"""The toy corpora have the shift they promise, and the demo writes what it says."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from hf_interp import cli
from hf_interp.commands.demo import LABEL_NAMES, ToyShift, run_demo
from hf_interp.commands.plan import plan_recipe
from hf_interp.reporting.results import load_comparison

SHIFT = ToyShift()


def rows(
    side: str, count: int = 2000, *, split: str = "train", noisy: bool = False, **fields: Any
) -> list[dict[str, Any]]:
    return list(ToyShift(**fields).sentences(side, count, split=split, noisy=noisy))


def judgement(word: str, side: str) -> int:
    """+1 for a word of praise, −1 for one of blame, 0 for others, from the word's name alone."""
    kind = word.rstrip("0123456789")
    sense = {"good": 1, "bad": -1, "dgood": 1, "dbad": -1}.get(kind, 0)
    turned = side == "domain" and kind in ("good", "bad") and int(word.removeprefix(kind)) < SHIFT.num_turned
    return -sense if turned else sense


def verdict(text: str, side: str) -> str:
    return LABEL_NAMES[sum(judgement(word, side) for word in text.split()) > 0]


@pytest.mark.parametrize("side", ["general", "domain"])
def test_the_words_decide_the_label(side: str) -> None:
    found = rows(side)
    assert all(verdict(row["text"], side) == row["label"] for row in found)
    share = sum(row["label"] == "positive" for row in found) / len(found)
    assert share == pytest.approx(0.5, abs=0.05)


def test_the_general_sense_fails_in_the_domain() -> None:
    found = rows("domain")
    # Without the domain's own words and with the general senses, little more than chance is left.
    right = sum(
        verdict(row["text"].replace("dgood", "x").replace("dbad", "x"), "general") == row["label"] for row in found
    )
    assert 0.35 < right / len(found) < 0.65
    agreeing = ToyShift(num_turned=0).sentences("domain", 500, split="train", noisy=False)
    assert all(verdict(row["text"], "general") == row["label"] for row in agreeing)


def test_turned_words_change_their_sense() -> None:
    def positive_share(side: str, word: str) -> float:
        labels = [row["label"] for row in rows(side, 8000) if word in row["text"].split()]
        assert len(labels) > 100
        return labels.count("positive") / len(labels)

    assert positive_share("general", "good0") > 0.75
    assert positive_share("domain", "good0") < 0.25
    assert positive_share("domain", "bad0") > 0.75
    assert positive_share("domain", f"good{SHIFT.num_turned}") > 0.75  # the first that keeps its sense


def test_domain_words_are_never_in_the_general_corpus() -> None:
    def kinds(side: str) -> set[str]:
        return {word.rstrip("0123456789") for row in rows(side) for word in row["text"].split()}

    assert kinds("general") == {"word", "good", "bad"}
    assert kinds("domain") == {"word", "good", "bad", "term", "dgood", "dbad"}


def test_the_vocabulary_is_every_word_once() -> None:
    vocabulary = SHIFT.vocabulary()
    assert max(Counter(vocabulary).values()) == 1
    assert len(vocabulary) == 150 + 60 + 2 * 30 + 2 * 20
    used = {word for side in ("general", "domain") for row in rows(side, 5000) for word in row["text"].split()}
    assert used == set(vocabulary)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_label_noise_turns_its_share_of_labels(noise: float) -> None:
    noisy = rows("general", 5000, noisy=True, label_noise=noise)
    turned = sum(verdict(row["text"], "general") != row["label"] for row in noisy) / len(noisy)
    assert turned == pytest.approx(noise, abs=0.02)
    assert (turned == 0) == (noise == 0)
    clean = rows("general", 500, label_noise=noise)
    assert all(verdict(row["text"], "general") == row["label"] for row in clean)


def test_corpora_are_the_same_every_time_and_differ_by_split_and_seed() -> None:
    first = rows("general", 50)
    assert first == rows("general", 50)
    assert first == rows("general", 80)[:50]
    for other in (rows("general", 50, split="test"), rows("general", 50, seed=1), rows("domain", 50)):
        assert not {row["text"] for row in first} & {row["text"] for row in other}


@pytest.mark.parametrize("noise", [-0.01, 0.5])
def test_label_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=rf"`label_noise` must lie in \[0, 0\.5\), got {noise}"):
        ToyShift(label_noise=noise)


@pytest.mark.parametrize(
    "fields", [{"label_noise": 0.0}, {"label_noise": 0.499}, {"num_turned": 0}, {"num_turned": 30}]
)
def test_a_shift_at_the_border_is_fine(fields: dict[str, Any]) -> None:
    for side in ("general", "domain"):
        assert len(rows(side, 20, **fields)) == 20


def test_the_tokenizer_knows_every_word(tiny_model_dir: Path, toy_shift: ToyShift) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = [tokenizer(word)["input_ids"] for word in toy_shift.vocabulary()]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(ids)
    assert tokenizer("unheard")["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("seeds", [(), (0,)])
def test_fewer_than_two_seeds_are_refused(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`seeds` must be at least two, to see a spread; got \[0?\]"):
        run_demo(tmp_path / "demo", seeds=seeds)
    assert not (tmp_path / "demo").exists()


def test_bad_settings_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "demo")
    for flags, message in (
        (["--seeds", "1"], "`seeds` must be at least two"),
        (["--label_noise", "0.5"], "`label_noise` must lie in [0, 0.5), got 0.5."),
        (["--max_steps", "0"], "`max_steps`"),
    ):
        assert cli.main(["demo", "--folder", folder, *flags]) == 2
        err = capsys.readouterr().err
        assert err.startswith("hf-interp: error: ")
        assert message in err
        assert err.count("\n") == 1
        assert not Path(folder).exists()


@pytest.mark.slow
def test_the_demo_writes_what_it_says_and_finds_the_same_whatever_the_threads(tmp_path: Path) -> None:
    found = []
    for threads in ("1", "2"):
        folder = tmp_path / threads
        argv = ["demo", "--folder", str(folder), "--seeds", "0", "1", "--max_steps", "3", "--label_noise", "0.2"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "hf_interp.cli", *argv]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rows = load_comparison(folder / "comparison" / "results.json").rows
        found.append([(row["method"], row["seed"], row.get("alpha"), row["metrics"]) for row in rows])
    assert found[0] == found[1]
    check_what_is_written(folder, done.stdout)


def check_what_is_written(folder: Path, out: str) -> None:
    """What a demo of three steps with a fifth of the labels turned has left in a folder, and what it has printed."""
    comparison = load_comparison(folder / "comparison" / "results.json")
    methods = ["domain only", "constant 0.5", "scheduled α"]
    assert comparison.methods() == ["M₀", *(f"{method}{plus}" for method in methods for plus in ("", " + M_α"))]
    assert all(f"| {method} " in out for method in comparison.methods())
    assert (folder / "comparison" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    counts = {"general_train": 4000, "general_test": 1000, "domain_train": 300, "domain_test": 1000}
    for name, count in {**counts, "general_validation": 500, "domain_validation": 500}.items():
        found = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        side, _, split = name.partition("_")
        noise = sum(verdict(row["text"], side) != row["label"] for row in found) / len(found)
        assert len(found) == count
        assert noise == pytest.approx(0.2 if split == "train" else 0.0, abs=0.07 if split == "train" else 0)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["model_name_or_path"] == str(folder / "base")
    assert (folder / "base" / "model.safetensors").exists()
    # The command that it proposes next works.
    assert f"hf-interp plan {folder}/recipe.yaml" in out
    plan, *_ = plan_recipe(str(folder / "recipe.yaml"))
    assert (plan.max_steps, plan.alpha(0), plan.alpha(2)) == (3, 0.0, 1.0)
