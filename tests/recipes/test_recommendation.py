"""Ranking by the probability of a like: pairs from TALLRec's rows, AUC and nDCG, and the program on a small model."""

import gzip
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from toys import word_tokenizer, write_bert

from hf_interp.tasks.parsing import load_recipe
from hf_interp.train import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "recommendation"
sys.path.insert(0, str(RECIPE))

import pairs  # noqa: E402
import rank  # noqa: E402

WORDS = [f"w{number}" for number in range(40)]
INPUT = (
    'User Preference: "Alien (1979)", "Fargo (1996)"\nUser Unpreference: "Evita (1996)"\n'
    'Whether the user will like the target movie "Get Shorty (1995)"?'
)


def write_ranker(folder: Path, *, head: bool = True, labels: tuple[str, ...] = ("dislike", "like")) -> Path:
    """An untrained BERT over `WORDS` that tells a history from a candidate; its weights are large."""
    return write_bert(folder, word_tokenizer(WORDS, marks_pairs=True), 24, labels, head=head, initializer_range=1.0)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ranker(tmp_path_factory.mktemp("ranker"))


def make_rows(count: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {
            "history": " ".join(draw.choices(WORDS, k=6)),
            "candidate": " ".join(draw.choices(WORDS, k=2)),
            "label": draw.choice(["like", "dislike"]),
        }
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Pairs


def test_both_sources_give_the_same_pair() -> None:
    expected = {
        "history": "Likes: Alien (1979); Fargo (1996). Dislikes: Evita (1996).",
        "candidate": "Get Shorty (1995)",
        "label": "like",
        "history_liked": '"Alien (1979)", "Fargo (1996)"',
    }
    assert pairs.pair_of({"instruction": "", "input": INPUT, "output": "Yes."}) == expected
    columns = {"history_liked": '"Alien (1979)", "Fargo (1996)"', "history_disliked": '"Evita (1996)"'}
    assert pairs.pair_of({**columns, "candidate": "Get Shorty (1995)", "label_name": "like"}) == expected


def test_books_keep_their_authors_and_empty_histories_are_nothing() -> None:
    row = {
        "input": 'User Preference: \nUser Unpreference: "Emma, or so" written by Austen, "Ulysses" written by Joyce\n'
        'Whether the user will like the target book ""The Sea, the Sea" written by Iris Murdoch"?',
        "output": "No.",
    }
    assert pairs.pair_of(row) == {
        "history": "Likes: nothing. Dislikes: Emma, or so written by Austen; Ulysses written by Joyce.",
        "candidate": "The Sea, the Sea written by Iris Murdoch",
        "label": "dislike",
        "history_liked": "",
    }


def test_a_history_may_be_cut_to_its_latest_titles() -> None:
    row = {"history_liked": '"A" written by B, "C, D" written by E, "F"', "history_disliked": '"G"'}
    row |= {"candidate": "H", "label_name": "like"}
    assert pairs.pair_of(row, 2)["history"] == "Likes: C, D written by E; F. Dislikes: G."
    assert pairs.pair_of(row, 3)["history"] == pairs.pair_of(row)["history"]
    assert pairs.pair_of(row, 1)["history_liked"] == row["history_liked"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": INPUT, "output": "Perhaps."}, "the answer Yes. or No."),
        ({"input": "User Preference: ", "output": "Yes."}, "A row must hold a preference"),
        ({"text": "a"}, r"A row must have `input` and `output`, or .* got \['text'\]"),
    ],
)
def test_other_rows_are_refused(row: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs.pair_of(row)


def test_files_of_every_form_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"instruction": "", "input": INPUT, "output": "No."}
    (tmp_path / "a.json").write_text(json.dumps([row, row]), encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl", [row, row])
    with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "b.jsonl").read_text(encoding="utf-8"))
    for name in ("a.json", "b.jsonl", "c.jsonl.gz"):
        target = tmp_path / "new" / f"{name}.out"
        assert pairs.main([str(tmp_path / name), str(target)]) == 0
        assert capsys.readouterr().out == f"2 pairs are in {target}.\n"
        assert [json.loads(line)["label"] for line in target.read_text(encoding="utf-8").splitlines()] == [
            "dislike"
        ] * 2
    (tmp_path / "d.jsonl").write_text("{}\n{\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 2 of .*d.jsonl' is not JSON"):
        list(pairs.read_rows(tmp_path / "d.jsonl"))
    assert pairs.main([str(tmp_path / "gone.json"), str(tmp_path / "x")]) == 2


# AUC and nDCG


def likes(*users: tuple[str, list[int]]) -> list[dict[str, Any]]:
    return [{"user": user, "liked": liked} for user, all_liked in users for liked in all_liked]


def test_auc_and_ndcg_are_those_worked_out_by_hand() -> None:
    rows = likes(("u", [1, 0, 0]), ("v", [0, 1]))
    found = rank.evaluate(rows, [0.5, 0.9, 0.1, 0.3, 0.2])
    # u's like is second of three, v's second of two
    assert found["ndcg"] == pytest.approx(1 / math.log2(3))
    assert found["ndcg_random"] == pytest.approx(((1 + 1 / math.log2(3) + 1 / 2) / 3 + (1 + 1 / math.log2(3)) / 2) / 2)
    # likes at 0.5 and 0.2 against 0.9, 0.1, 0.3: 2 + 1 pairs of 6 in order
    assert found["auc"] == pytest.approx(3 / 6)
    assert (found["users"], found["rows"], found["sizes"]) == (2, 5, {2: 1, 3: 1})


def test_places_beyond_k_do_not_count() -> None:
    rows = likes(("u", [1, 0, 0]))
    assert rank.evaluate(rows, [0.5, 0.9, 0.1], k=1)["ndcg"] == 0
    assert rank.evaluate(rows, [0.5, 0.9, 0.1], k=2)["ndcg"] == pytest.approx(1 / math.log2(3))


def test_users_whose_order_says_nothing_are_left_out_and_counted() -> None:
    rows = likes(("one", [1]), ("all", [1, 1]), ("none", [0, 0, 0]), ("", [0, 1, 1]), ("u", [1, 0]))
    found = rank.evaluate(rows, [0.5] * 9 + [0.9, 0.1])
    assert found["left_out"] == {"one candidate": 1, "one class": 2, "rows without a user": 3}
    assert (found["users"], found["ndcg"]) == (1, 1.0)
    text = rank.format_evaluation(found)
    assert "nDCG@10: 1.000 (any order: 0.815), 1 users (candidates: 1 with 2)" in text
    assert "1 users with one candidate, 2 whose candidates are all liked or all disliked, 3 rows without a user" in text


def test_without_two_classes_or_users_there_is_no_figure() -> None:
    found = rank.evaluate(likes(("u", [1, 1])), [0.5, 0.6])
    assert (found["auc"], found["ndcg"], found["ndcg_random"]) == (None, None, None)
    assert rank.format_evaluation(found).startswith("AUC: none (one class only), 2 rows\nnDCG@10: none, 0 users\n")


def test_rows_are_read_by_the_columns_named() -> None:
    columns = {"history": "h", "candidate": "c", "label": "l", "user": "u"}
    rows = [{"h": "a", "c": "b", "u": 7, "l": label} for label in ("Like", "dislike", 1, 0, True)]
    found = rank.read_likes(rows, columns=columns, like_label="like")
    assert [row["liked"] for row in found] == [1, 0, 1, 0, 1]
    assert found[0] == {"history": "a", "candidate": "b", "user": "7", "liked": 1}
    with pytest.raises(ValueError, match="Row 2 lacks c, u; it has h, l"):
        rank.read_likes([rows[0], {"h": "", "l": 1}], columns=columns, like_label="like")
    with pytest.raises(ValueError, match="no rows"):
        rank.read_likes([], columns=columns, like_label="like")


# The program


def test_candidates_are_ranked_by_the_probability_of_a_like(
    ranker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = [f"w{number} w{number + 1}" for number in range(0, 38, 2)]
    (tmp_path / "titles.txt").write_text("\n".join(["", *titles, " "]), encoding="utf-8")
    flags = [str(ranker), "--history", "w1 w2 w3", "--candidates", str(tmp_path / "titles.txt")]
    assert rank.main([*flags, "--json"]) == 0
    ranked = json.loads(capsys.readouterr().out)
    probabilities = [row["like"] for row in ranked]
    assert sorted(row["candidate"] for row in ranked) == sorted(titles)
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] - probabilities[-1] > 0.01
    assert rank.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| candidate")
    assert [line.split("|")[1].strip() for line in lines[2:]] == [row["candidate"] for row in ranked]
    assert float(lines[2].split("|")[2]) == pytest.approx(probabilities[0], abs=6e-4)


def test_the_probability_is_that_of_the_label_and_reads_both_texts(ranker: Path, tmp_path: Path) -> None:
    score = rank.load_ranker(str(ranker))
    one, other, swapped = score(["w1 w2", "w3", "w4"], ["w4", "w4", "w1 w2"])
    assert len({round(value, 4) for value in (one, other, swapped)}) == 3
    turned = rank.load_ranker(str(write_ranker(tmp_path / "turned", labels=("LIKE", "other"))))
    assert turned(["w1 w2"], ["w4"]) == pytest.approx([1 - one], abs=1e-6)
    with pytest.raises(ValueError, match=r"labels \['dislike', 'like'\], but none 'love'"):
        rank.load_ranker(str(ranker), like_label="love")


def test_scores_do_not_depend_on_the_batch_and_long_texts_are_cut(ranker: Path) -> None:
    score = rank.load_ranker(str(ranker))
    histories = ["w1 " * (1 + number % 5) for number in range(rank.BATCH_SIZE + 3)]
    candidates = [f"w{number % 40}" for number in range(rank.BATCH_SIZE + 3)]
    together = score(histories, candidates)
    assert together == pytest.approx([score([h], [c])[0] for h, c in zip(histories, candidates, strict=True)], abs=1e-5)
    long = "w1 " * 5000
    # of 24 tokens the history loses its end first, so that the candidate still counts
    assert len({score([long], [f"w{number}"])[0] for number in range(10)}) > 5
    assert score(["w1 " * 30], ["w7"]) == score([long], ["w7"])
    assert len(score(["\ud800 w1", ""], ["\x00", "w1"])) == 2


def test_a_file_is_evaluated(ranker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "user": f"u{number // 4}"} for number, row in enumerate(make_rows(40))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = [str(ranker), "--evaluate", str(path), "--json"]
    assert rank.main(flags) == 0
    by_history = json.loads(capsys.readouterr().out)
    assert by_history["ndcg"] is None
    assert by_history["left_out"]["one candidate"] == 40
    assert rank.main([*flags, "--user_column", "user"]) == 0
    by_user = json.loads(capsys.readouterr().out)
    assert by_user["auc"] == by_history["auc"]
    assert by_user["users"] + by_user["left_out"]["one class"] == 10
    score = rank.load_ranker(str(ranker))
    probabilities = score([row["history"] for row in rows], [row["candidate"] for row in rows])
    expected = rank.evaluate([{**row, "liked": int(row["label"] == "like")} for row in rows], probabilities)
    assert by_user["ndcg"] == pytest.approx(expected["ndcg"])
    assert rank.main(flags[:3]) == 0
    assert capsys.readouterr().out.startswith("AUC: 0.")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--history", "a"],
        ["--candidates", "a"],
        ["--history", "a", "--candidates", "b", "--evaluate", "c"],
        ["--history", "a", "--evaluate", "c"],
        ["--evaluate", "c", "--k", "0"],
    ],
)
def test_arguments_that_do_not_go_together_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        rank.main(["model", *flags])
    assert error.value.code == 2


def test_bad_input_ends_in_one_line(ranker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    assert rank.main([str(ranker), "--history", "a", "--candidates", str(empty)]) == 2
    assert "names no candidates; write one a line" in capsys.readouterr().err
    assert rank.main([str(ranker), "--evaluate", str(tmp_path / "gone.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_recipe_trains_a_model_that_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", make_rows(40))
    base = write_ranker(tmp_path / "base", head=False)
    flags = ["--model_name_or_path", str(base), "--max_steps", "2", "--max_length", "16"]
    for group in ("corpora", "eval_corpora", "validation_corpora"):
        flags += [f"--{group}.general.path", str(data), f"--{group}.domain.path", str(data)]
    flags += ["--output_dir", str(tmp_path / "out"), "--alpha_search.alphas", "2"]
    flags += ["--use_cpu", "--disable_tqdm", "--report_to", "none"]
    results = run_recipe(load_recipe(RECIPE / "recommendation.yaml", flags))
    assert [entry["alpha"] for entry in results.plan["alpha"]] == [0.5, 0.5]
    capsys.readouterr()
    assert rank.main([str(tmp_path / "out"), "--evaluate", str(data), "--max_length", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 40
    metric = results.final_metrics["domain"].get("roc_auc")
    assert metric is None or metric == pytest.approx(found["auc"], abs=1e-6)
