"""Sound: every form of a corpus becomes the same samples at the model's rate, and padding changes nothing."""

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from toy_media import RATE, TONES, toy_samples, toy_wav, write_sounds, write_toy_ast, write_toy_wav2vec2
from toys import SHORT
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from hf_interp.commands.curve import curve_run
from hf_interp.commands.plan import format_plan, plan_recipe, summarise
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.hub import render_card
from hf_interp.tasks.build import tokenise
from hf_interp.tasks.media import SoundCollator, open_sound, resample
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.train import run_recipe
from hf_interp.utils.task_info import task_of_class
from hf_interp.weights.merge import interpolate_checkpoints

pytest.importorskip("soundfile", reason="soundfile is not installed")

SIDES = ("general", "domain")


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_ast(tmp_path_factory.mktemp("ast"), TONES)


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_wav2vec2(tmp_path_factory.mktemp("wav2vec2"), TONES)


def recipe_of(model: Path, folder: Path, **fields: Any) -> dict[str, Any]:
    """A recipe of three steps on sounds at two rates, the domain's at another than the model's."""
    rows = {"general": write_sounds(folder / "general.jsonl", range(12))}
    rows["domain"] = write_sounds(folder / "domain.jsonl", range(12), rate=11025)
    tests = {"general": write_sounds(folder / "general_test.jsonl", range(20, 30))}
    tests["domain"] = write_sounds(folder / "domain_test.jsonl", range(20, 30), rate=11025)
    return {
        "task": "audio-classification",
        "model_name_or_path": str(model),
        "label_names": TONES,
        "corpora": {side: {"path": str(path)} for side, path in rows.items()},
        "eval_corpora": {side: {"path": str(path)} for side, path in tests.items()},
        "output_dir": str(folder / "out"),
        "max_steps": 3,
        **SHORT,
        **fields,
    }


# Samples.


def test_a_file_becomes_its_samples() -> None:
    samples, rate = open_sound(toy_wav(1))
    assert rate == RATE
    np.testing.assert_array_equal(samples, toy_samples(1).astype(np.float32) / 32768)
    both, _ = open_sound(toy_wav(1, channels=2))
    np.testing.assert_allclose(both, samples / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [16000, 11025, 4000])
def test_another_rate_is_the_same_tone(rate: int) -> None:
    samples = toy_samples(0, rate).astype(np.float32) / 32768  # 300 Hz
    found = resample(samples, rate, RATE)
    times = np.arange(len(found)) / RATE
    wanted = 12000 / 32768 * np.sin(2 * np.pi * 300 * times)
    assert len(found) == pytest.approx(len(samples) * RATE / rate, abs=1)
    inner = slice(len(found) // 4, -len(found) // 4)  # the filter has no samples beyond the ends
    np.testing.assert_allclose(found[inner], wanted[inner], atol=0.01)
    assert resample(samples, RATE, RATE) is samples


@pytest.mark.parametrize("form", ["table", "parquet", "bytes"])
def test_every_form_becomes_the_same_inputs(form: str, wav2vec2: Path, tmp_path: Path) -> None:
    numbers = range(4)
    path = write_sounds(tmp_path / "rows.jsonl", numbers)
    if form != "table":
        rows = {
            "audio": [{"bytes": toy_wav(number), "path": None} for number in numbers],
            "label": [TONES[number % 2] for number in numbers],
        }
        made = datasets.Dataset.from_dict(rows)
        path = tmp_path / "rows.parquet"
        (made.cast_column("audio", datasets.Audio()) if form == "parquet" else made).to_parquet(path)
    found = batch_of(wav2vec2, path)
    extractor = AutoFeatureExtractor.from_pretrained(wav2vec2)
    samples = [toy_samples(number).astype(np.float32) / 32768 for number in numbers]
    wanted = extractor(samples, sampling_rate=RATE, padding=True, return_tensors="pt")
    assert found["labels"].tolist() == [0, 1, 0, 1]
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
def test_a_folder_says_what_datasets_wants_for_it(wav2vec2: Path, tmp_path: Path) -> None:
    (tmp_path / "folder" / "low").mkdir(parents=True)
    (tmp_path / "folder" / "low" / "0.wav").write_bytes(toy_wav(0))
    with pytest.raises(ValueError, match=r"^Corpus 'general' .* cannot be loaded: .*'torchcodec'\.$"):
        batch_of(wav2vec2, tmp_path / "folder")


def batch_of(model: Path, path: Path, **fields: Any) -> Any:
    config = CorpusConfig(path=str(path))
    recipe = Recipe(model_name_or_path=str(model), corpora={}, task="audio-classification", label_names=TONES, **fields)
    extractor = AutoFeatureExtractor.from_pretrained(model)
    return SoundCollator(extractor, recipe.max_seconds)(list(tokenise("general", config, recipe, extractor)))


def test_a_long_recording_is_cut(wav2vec2: Path, tmp_path: Path) -> None:
    path = write_sounds(tmp_path / "rows.jsonl", range(4))
    assert batch_of(wav2vec2, path)["input_values"].shape == (4, 1040)  # 0.13 seconds
    assert batch_of(wav2vec2, path, max_seconds=0.05)["input_values"].shape == (4, 400)


@torch.no_grad()
def test_padding_does_not_change_what_a_model_with_a_mask_says(wav2vec2: Path) -> None:
    model = AutoModelForAudioClassification.from_pretrained(wav2vec2).eval()
    collator = SoundCollator(AutoFeatureExtractor.from_pretrained(wav2vec2))
    examples = [{"audio": toy_wav(number), "labels": number % 2} for number in range(7)]
    together = model(**collator(examples)).logits
    alone = torch.cat([model(**collator([example])).logits for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# Runs.


@pytest.mark.slow
def test_a_run_its_curve_its_merge_and_its_card(ast: Path, tmp_path: Path, write_recipe: Any) -> None:
    recipe = recipe_of(ast, tmp_path, alpha_search={"method": "grid", "alphas": 2})
    text = format_plan(summarise(plan_recipe(str(write_recipe(recipe)), num_samples=1)))
    assert "a recording of 0.10 seconds at 11,025 Hz → low" in text
    results = run_recipe(recipe)
    folder = tmp_path / "out"
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    samples = [toy_samples(number).astype(np.float32) / 32768 for number in range(20, 30)]
    with torch.no_grad():  # at its own rate, without anything of ours
        best = model(**extractor(samples, sampling_rate=RATE, return_tensors="pt")).logits.argmax(-1)
    right = np.mean([found == number % 2 for number, found in zip(range(20, 30), best.tolist(), strict=True)])
    assert results.final_metrics["general"]["accuracy"] == pytest.approx(right)
    curve, _ = curve_run(folder)
    assert curve.alphas == load_curve(folder / "curve.json").alphas == [0.0, 1.0]
    interpolate_checkpoints(ast, folder, tmp_path / "merged", 0.5)
    AutoFeatureExtractor.from_pretrained(tmp_path / "merged")
    card = render_card(folder)
    assert card.data.pipeline_tag == "audio-classification"
    assert "pipeline('audio-classification', model=" in card.text


@pytest.mark.slow
def test_a_resumed_run_of_wav2vec2_has_the_same_weights(wav2vec2: Path, tmp_path: Path) -> None:
    """Its weight norm is saved by other names than the model has."""
    whole = recipe_of(wav2vec2, tmp_path / "whole", save_strategy="steps", save_steps=2)
    run_recipe(whole)
    checkpoint = str(Path(whole["output_dir"]) / "checkpoint-2")
    again = recipe_of(wav2vec2, tmp_path / "again", resume_from_checkpoint=checkpoint)
    run_recipe(again)
    states = [
        AutoModelForAudioClassification.from_pretrained(each["output_dir"]).state_dict() for each in (whole, again)
    ]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


# Refusals.


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.wav", None, "has the audio 'none.wav', which is not there: column 'audio', line 1 "),
        ("broken.wav", b"no sound!", "has an audio of 9 bytes that cannot be decoded"),
        ("silent.wav", toy_wav(0)[:40] + struct.pack("<I", 0), "cannot be decoded (it has no samples)"),
        ("empty.wav", b"", "where the file of an audio belongs"),
    ],
)
def test_sound_that_cannot_be_read_is_named(
    name: str, content: bytes | None, words: str, ast: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(ast, tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"audio": name, "label": "low"}) + "\n")
    recipe["corpora"]["domain"] = {"path": str(tmp_path / "bad.jsonl")}
    with pytest.raises(ValueError, match=r"^Corpus 'domain' has ") as caught:
        run_recipe(recipe)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_seconds": 0}, "`max_seconds` must be above 0, got 0."),
        ({"augmentation": {"flip": 0.5}}, "`augmentation` is for images, got {'flip': 0.5} for audio-classification."),
        ({"task": "image-classification", "max_seconds": 1}, "`max_seconds` is for sound, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], words: str, ast: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`") as caught:
        run_recipe(recipe_of(ast, tmp_path, **fields))
    assert words in str(caught.value)


def test_classes_of_sound_are_told_from_those_of_text() -> None:
    assert task_of_class("Wav2Vec2ForSequenceClassification") == "audio-classification"
    assert task_of_class("BertForSequenceClassification") == "sequence-classification"
