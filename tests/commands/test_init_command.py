"""`hf-interp check` and `init` as commands: what they print, and their status."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from toy_media import write_folder, write_parquet, write_sounds, write_table
from toy_recipes import write_toy_models

from hf_interp import cli
from hf_interp.commands.init import TEMPLATES, check_file, format_check

ROWS = ["text;mood", "so good;yes", "so bad;no", "So  good;yes", ";no", "not so good;no", "rather bad;"]


def test_check_says_what_a_file_is_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(ROWS) + "\n", "utf-8")
    assert cli.main(["check", str(path), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["files"]
    assert (found["format"], found["rows"], found["task"]) == ("csv", 6, "sequence-classification")
    assert found["uses"] == {"text": "text", "label": "mood"}
    assert found["labels"] == {"yes": 2, "no": 3}
    assert [(column["blank"], column["different"], column["longest"]) for column in found["columns"]] == [
        (1, 5, 3),
        (1, 2, 1),
    ]
    assert [fault.partition(" rows")[0] for fault in found["wrong"]] == ["1", "1", "1 of 6"]
    assert cli.main(["check", str(path)]) == 1
    assert "wrong: 1 rows have no label ('mood')" in capsys.readouterr().out
    path.write_text("\n".join([*ROWS[:3], "rather good;yes", "rather bad;no"]) + "\n", "utf-8")
    assert cli.main(["check", str(path)]) == 0
    assert capsys.readouterr().out.endswith("nothing wrong was found\n")


def test_check_finds_labels_that_are_spelt_in_two_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    labels = ["Billing", "Tech", "billing ", "Billing", "Tech", "billing "]
    path.write_text("text,mood\n" + "".join(f"row {n} of it,{label}\n" for n, label in enumerate(labels)), "utf-8")
    assert cli.main(["check", str(path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert wrong == ["wrong: labels that differ in case or white space alone: 'Billing', 'billing '"]


def test_check_finds_dialogues_that_a_run_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*speakers: str, about: int) -> str:
        return json.dumps({"messages": [{"role": role, "content": f"hello {about}"} for role in speakers]}) + "\n"

    whole = [said("user", "assistant", about=number) for number in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join([*whole, said("user", about=7), said("user", "assistant", about=0)]), "utf-8")
    assert cli.main(["check", str(path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert wrong == [
        "wrong: 1 rows cannot be read, such as line 5: a dialogue without an assistant turn",
        "wrong: 1 of 6 rows (16.7%) have the messages of another row",
    ]
    path.write_text("".join(whole), "utf-8")
    assert cli.main(["check", str(path)]) == 0


def test_check_puts_the_turns_of_two_columns_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [[{"role": "user", "content": f"hello {number}"}] for number in (0, 1, 2, 0)]
    said = [[{"role": speaker, "content": "good day"}] for speaker in ("assistant", "assistant", "user", "assistant")]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(asked, said, strict=True)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]), "utf-8")
    assert cli.main(["check", str(path)]) == 0
    assert "(messages 'prompt + completion')" in capsys.readouterr().out
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert cli.main(["check", str(path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert wrong == [
        "wrong: 1 rows cannot be read, such as line 3: a dialogue without an assistant turn",
        "wrong: 1 of 4 rows (25.0%) have the messages of another row",
    ]


@pytest.mark.parametrize("write", [write_folder, write_table, write_parquet])
def test_check_opens_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Any) -> None:
    path = tmp_path / {write_table: "rows.jsonl", write_parquet: "rows.parquet"}.get(write, "photos")
    write(path, range(8))
    assert cli.main(["check", str(path)]) == 0
    capsys.readouterr()
    if write == write_parquet:
        rows = datasets.Dataset.from_parquet(str(path)).cast_column("image", datasets.Image(decode=False)).to_list()
        rows[5]["image"]["bytes"], rows[6]["image"]["bytes"] = b"no image!!", rows[0]["image"]["bytes"]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "other.parquet")
        path, name = tmp_path / "other.parquet", "row 6 (counted from 1)"
    else:
        broken, first, copy = (next(tmp_path.rglob(f"*{number}.png")) for number in (5, 0, 6))
        broken.write_bytes(b"no image!!")
        copy.write_bytes(first.read_bytes())
        name = str(broken) if write == write_folder else f"images/{broken.name} (line 6)"
    assert cli.main(["check", str(path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    what = "an image of 10 bytes that cannot be decoded (cannot identify image file)"
    assert wrong == [
        f"wrong: 1 rows cannot be read, such as {name}: {what}",
        "wrong: 1 of 8 rows (12.5%) have the image of another row",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "."])
def test_check_takes_texts_of_which_more_than_one_task_can_be_made(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"The {number}. sentence says that all is as it was before." for number in range(9)]
    lines = [json.dumps({"text": text}) if name == "a.jsonl" else text for text in texts]
    (tmp_path / name.replace(".", "a.txt", name == ".")).write_text("\n".join(lines) + "\n", "utf-8")
    assert cli.main(["check", str(tmp_path / name)]) == 0
    assert "task: causal-lm or masked-lm (text 'text')" in capsys.readouterr().out


def test_check_takes_rows_without_one_of_several_labels_and_pairs_within_an_object(tmp_path: Path) -> None:
    labels = [["a"], [], ["a", "b"], ["b"], ["a"], []]
    rows = [{"text": f"the text of row {number} is here", "labels": each} for number, each in enumerate(labels)]
    (tmp_path / "a.json").write_text(json.dumps(rows), "utf-8")
    assert check_file(str(tmp_path / "a.json"), {})["wrong"] == []
    pairs = [
        {"translation": {"en": f"row {number} is a text", "fr": f"le texte du rang {number}"}} for number in range(6)
    ]
    (tmp_path / "b.json").write_text(json.dumps(pairs), "utf-8")
    found = check_file(str(tmp_path / "b.json"), {})
    assert (found["task"], found["wrong"]) == ("seq2seq", [])


def test_check_names_the_lines_without_an_image(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.jsonl", range(8))
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[2]["image"], lines[6]["image"] = None, "images/none.png"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert check_file(str(path), {})["wrong"] == [
        "1 rows cannot be read, such as images/none.png (line 7): the image 'images/none.png', which is not there",
        "1 rows have no image ('image'): line 3",
    ]


def test_check_finds_sound_that_is_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    path = write_sounds(tmp_path / "rows.jsonl", range(8))
    soundfile.write(tmp_path / "sounds" / "8000_3.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    assert cli.main(["check", str(path)]) == 1
    what = "cannot be decoded (1 of its samples are NaN or infinite)"
    assert f"wrong: 1 rows cannot be read, such as sounds/8000_3.wav (line 4): an audio of 88 bytes that {what}" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["text", "what was said"])
def test_check_tells_transcripts_of_few_words_from_labels(tmp_path: Path, name: str) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    path = write_sounds(tmp_path / "rows.jsonl", range(8), answer=name)
    *rows, last = path.read_text("utf-8").splitlines()
    rows += [json.dumps(json.loads(last) | {name: ""}), rows[0]]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    found = check_file(str(path), {})
    if name != "text":
        assert found["task"] == "audio-classification"
        assert found["or"] == "automatic-speech-recognition, if 'what was said' is no label: --text_column " + (
            "'what was said'"
        )
        assert f"\nor: {found['or']}\n" in format_check(found)
        found = check_file(str(path), {"text_column": name})
    assert (found["task"], found["or"]) == ("automatic-speech-recognition", None)
    assert f"1 rows have no text ({name!r}): line 8" in found["wrong"]
    assert [(column["different"], column["longest"]) for column in found["columns"]] == [(8, None), (2, 1)]
    assert "None" not in format_check(found)
    labelled = write_sounds(tmp_path / "labels.jsonl", range(8))
    assert (check_file(str(labelled), {})["task"], check_file(str(labelled), {})["or"]) == (
        "audio-classification",
        None,
    )


def test_check_counts_tags_that_no_task_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.conll"
    path.write_text("in O\nRome I-LOC\n\nat O\nhome O\n\nin O\nOslo B-LOC\n", "utf-8")
    assert cli.main(["check", str(path)]) == 1
    assert "wrong: 1 rows have tags that are not IOB2" in capsys.readouterr().out


def test_init_lists_templates_and_asks_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in TEMPLATES)
    assert cli.main(["init", "--domain", "a.csv"]) == 2
    assert "--model NAME --domain FILE" in capsys.readouterr().err


def test_init_prints_the_recipe_that_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_toy_models(tmp_path / "models")["encoder"]
    data = tmp_path / "a.tsv"
    data.write_text("".join(f"the price {number}\t{'yn'[number % 2]}\n" for number in range(60)), "utf-8")
    output = tmp_path / "mine.yaml"
    argv = ["init", "--model", str(model), "--domain", str(data), "--output", str(output), "--seed", "5"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert output.read_text("utf-8") in out
    assert f"hf-interp train {output}" in out
    assert cli.main(argv) == 2
    assert "exists. Write elsewhere with --output" in capsys.readouterr().err
    assert cli.main(["plan", str(output), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]) == 0
