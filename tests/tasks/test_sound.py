"""Sound: every form of a corpus becomes the same samples at the model's rate, and padding changes nothing."""

import importlib.util
import io
import json
import math
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from toy_media import (
    RATE,
    TONES,
    toy_samples,
    toy_wav,
    write_sounds,
    write_toy_ast,
    write_toy_ctc,
    write_toy_wav2vec2,
    write_toy_whisper,
)
from toys import SHORT
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    EvalPrediction,
    pipeline,
)

from hf_interp.commands.column_choice import choose_columns
from hf_interp.commands.curve import curve_run
from hf_interp.commands.draft import draft_recipe
from hf_interp.commands.file_facts import look_at
from hf_interp.commands.plan import format_plan, plan_recipe
from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.hub import render_card
from hf_interp.tasks.build import tokenise
from hf_interp.tasks.corpora.media import SoundCollator, open_sound, resample
from hf_interp.tasks.metrics import transcription_metrics
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.speech import num_frames, prepare_speech
from hf_interp.tasks.tokenizers import load_processor
from hf_interp.train import run_recipe
from hf_interp.utils.task_info import task_of_class
from hf_interp.weights.merge import interpolate_checkpoints

pytest.importorskip("soundfile", reason="soundfile is not installed")

SIDES = ("general", "domain")
SPEECH = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_ast(tmp_path_factory.mktemp("ast"), TONES)


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_ctc(tmp_path_factory.mktemp("ctc"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_wav2vec2(tmp_path_factory.mktemp("wav2vec2"), TONES)


def wav_of_floats(samples: list[float]) -> bytes:
    """A recording whose samples are kept as floats, which may be no numbers."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.array(samples, dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def recipe_of(model: Path, folder: Path, **fields: Any) -> dict[str, Any]:
    """A recipe of three steps on sounds at two rates, the domain's at another than the model's."""
    answer = "text" if fields.get("task") == SPEECH else "label"
    rows = {"general": write_sounds(folder / "general.jsonl", range(12), answer=answer)}
    rows["domain"] = write_sounds(folder / "domain.jsonl", range(12), 11025, answer)
    tests = {"general": write_sounds(folder / "general_test.jsonl", range(20, 30), answer=answer)}
    tests["domain"] = write_sounds(folder / "domain_test.jsonl", range(20, 30), 11025, answer)
    return {
        "task": "audio-classification",
        "model_name_or_path": str(model),
        "label_names": TONES if answer == "label" else None,
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
    return SoundCollator(extractor, recipe.max_seconds)(list(tokenise("general", config, recipe, extractor).examples))


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
    text = format_plan(plan_recipe(str(write_recipe(recipe)), num_samples=1).summary)
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


# Transcripts.


def edits(found: Any, wanted: Any) -> int:
    """Insertions, deletions and changes from one sequence to another, by their table (Levenshtein 1966)."""
    costs = list(range(len(wanted) + 1))
    for row, each in enumerate(found, start=1):
        before, costs[0] = costs[0], row
        for place, other in enumerate(wanted, start=1):
            before, costs[place] = costs[place], min(costs[place] + 1, costs[place - 1] + 1, before + (each != other))
    return costs[-1]


def error_rates(found: list[str], wanted: list[str]) -> dict[str, float]:
    pairs = list(zip(found, wanted, strict=True))
    words = sum(edits(one.split(), other.split()) for one, other in pairs), sum(len(each.split()) for each in wanted)
    marks = sum(edits(*pair) for pair in pairs), sum(map(len, wanted))
    return {"wer": words[0] / words[1], "cer": marks[0] / marks[1]}


def test_error_rates_are_edits_by_words_and_characters(ctc: Path) -> None:
    pytest.importorskip("jiwer", reason="jiwer is not installed")
    processor = AutoProcessor.from_pretrained(ctc)
    frames = ["hh<pad>eel<pad>llo", "low|", "<pad>", "g|low"]  # equal frames are one character, but for a blank
    wanted = ["hello", "low", "high", "low high"]
    rows = [processor.tokenizer.convert_tokens_to_ids(re.findall("<pad>|.", each)) for each in frames]
    width = max(map(len, rows))
    predictions = np.array([[*row, *[-100] * (width - len(row))] for row in rows])
    tokens = [torch.tensor(processor.tokenizer(text).input_ids) for text in wanted]
    labels = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-100).numpy()
    metrics = transcription_metrics(processor, of_ctc=True)(EvalPrediction(predictions, labels))
    assert metrics == pytest.approx(error_rates(["hello", "low", "", "g low"], wanted))


@torch.no_grad()
def test_padding_says_nothing(ctc: Path) -> None:
    model = AutoModelForCTC.from_pretrained(ctc).eval()
    processor = AutoProcessor.from_pretrained(ctc)
    prepare_speech(processor, model, Recipe(model_name_or_path=str(ctc), corpora={}, task=SPEECH))
    collator = SoundCollator(processor.feature_extractor)
    examples = [{"audio": toy_wav(number), "labels": [5 + number]} for number in range(7)]
    together = model(**collator(examples))
    for row, example in enumerate(examples):
        alone = model(**collator([example])).logits[0]
        frames = num_frames(model.config, len(toy_samples(row)))
        assert len(alone) == frames  # as the model makes them
        torch.testing.assert_close(together.logits[row, :frames], alone, rtol=1e-4, atol=1e-5)
        assert (together.logits[row, frames:].argmax(-1) == 0).all()


def own_transcripts(folder: Path) -> list[str]:
    """What is written for the general test's sounds without anything of ours but the resampling."""
    processor, is_whisper = AutoProcessor.from_pretrained(folder), (folder / "generation_config.json").is_file()
    rate = processor.feature_extractor.sampling_rate
    sounds = [resample(toy_samples(number).astype(np.float32) / 32768, RATE, rate) for number in range(20, 30)]
    if not is_whisper:
        write = pipeline(SPEECH, model=str(folder))
        return [write({"raw": sound, "sampling_rate": rate})["text"].strip() for sound in sounds]
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
    tokens = model.generate(**processor(sounds, sampling_rate=rate, return_tensors="pt"), max_length=12)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_a_run_that_transcribes(kind: str, tmp_path: Path, write_recipe: Any, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("jiwer", reason="jiwer is not installed")
    model = request.getfixturevalue(kind)
    more = {"alpha_search": {"method": "grid", "alphas": 3}, "max_target_length": 12, "max_steps": 60}
    recipe = recipe_of(model, tmp_path, task=SPEECH, **more, learning_rate=1e-2)
    text = format_plan(plan_recipe(str(write_recipe(recipe)), num_samples=2).summary)
    assert "a recording of 0.10 seconds at 11,025 Hz → low" in text
    assert "a recording of 0.11 seconds at 11,025 Hz → high" in text
    results = run_recipe(recipe)
    folder = tmp_path / "out"
    wanted = [TONES[number % 2] for number in range(20, 30)]
    found = {name: results.final_metrics["general"][name] for name in ("wer", "cer")}
    assert found == pytest.approx(error_rates(own_transcripts(folder), wanted))
    assert found["cer"] < results.base_metrics["general"]["cer"]
    assert results.forgetting["wer"] == pytest.approx(found["wer"] - results.base_metrics["general"]["wer"])
    curve = load_curve(folder / "curve.json")
    assert curve_run(folder)[0].report["general"] == curve.report["general"]
    assert (curve.metric, curve.greater_is_better) == ("wer", False)
    assert curve.num_examples == {side: {"selection": 5, "report": 5} for side in ("domain", "general")}
    interpolate_checkpoints(model, folder, tmp_path / "merged", 1.0)
    assert own_transcripts(tmp_path / "merged") == own_transcripts(folder)
    assert f"pipeline('{SPEECH}', model=" in render_card(folder).text


@pytest.mark.slow
def test_a_split_batch_has_the_same_ctc_loss(ctc: Path, tmp_path: Path) -> None:
    """The transcripts of a batch are of different lengths, so that a mean over labels would be another."""
    losses = []
    for name, size in (("whole", 4), ("parts", 1)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "logging_steps": 1}
        run_recipe(recipe := recipe_of(ctc, tmp_path / name, task=SPEECH, **sizes))
        history = json.loads((Path(recipe["output_dir"]) / "results.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Refusals.


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.wav", None, "has the audio 'none.wav', which is not there: column 'audio', line 1 "),
        ("broken.wav", b"no sound!", "has an audio of 9 bytes that cannot be decoded"),
        ("silent.wav", toy_wav(0)[:40] + struct.pack("<I", 0), "cannot be decoded (it has no samples)"),
        ("empty.wav", b"", "where the file of an audio belongs"),
        (
            "nan.wav",
            wav_of_floats([0.5, math.nan, math.inf]),
            "cannot be decoded (2 of its samples are NaN or infinite",
        ),
    ],
    ids=["none", "broken", "silent", "empty", "nan"],  # not the bytes of a file, which may hold the time
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


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("ctc", {"text": "Low, low!"}, "has 3 characters that the vocabulary of CTC does not know: 'L' 1 times, "),
        ("ctc", {"text": " "}, "has an empty text: column 'text', line 1"),
        (
            "ctc",
            {"text": "hello" * 50},
            "a transcript that needs 300 frames, for a recording of 31: column 'text'",
        ),
        (
            "whisper",
            {"audio": "long.wav"},
            "has a recording of 1.6 s, of which the model hears 1 s: column 'audio'",
        ),
        ("whisper", {"text": "low " * 6}, "a target of 27 tokens, more than `max_target_length` (20): column 'text'"),
        ("ctc", {"audio": "none.wav"}, "has the audio 'none.wav', which is not there"),
    ],
)
def test_transcripts_that_do_not_fit_are_named(
    kind: str, row: dict[str, str], words: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = recipe_of(request.getfixturevalue(kind), tmp_path, task=SPEECH, max_target_length=20)
    samples = np.tile(toy_samples(6, 8000), 10)
    (tmp_path / "long.wav").write_bytes(toy_wav(6)[:40] + struct.pack("<I", 2 * len(samples)) + samples.tobytes())
    (tmp_path / "bad.jsonl").write_text(json.dumps({"audio": "sounds/8000_20.wav", "text": "low", **row}) + "\n")
    recipe["corpora"]["domain"] = {"path": str(tmp_path / "bad.jsonl")}
    with pytest.raises(ValueError, match=r"^Corpus 'domain' has ") as caught:
        plan_recipe_of(recipe, tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transcripts_that_do_not_fit_can_be_left_out(
    ctc: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(ctc, tmp_path, task=SPEECH)
    path = write_sounds(tmp_path / "some.jsonl", range(6), answer="text")
    lines = path.read_text("utf-8").splitlines()
    lines[1], lines[4] = lines[1].replace("high", "Höh"), lines[4].replace("low", "low" * 30)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    config = CorpusConfig(path=str(path), drop_faulty=True)
    given = Recipe(model_name_or_path=recipe["model_name_or_path"], corpora={}, task=SPEECH)
    found = tokenise("domain", config, given, AutoProcessor.from_pretrained(ctc)).examples
    assert len(found) == 4
    assert "leaves out 2 of 6 rows, of which the first has a transcript with 'H', which" in caplog.text


def plan_recipe_of(recipe: dict[str, Any], folder: Path) -> None:
    (folder / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    plan_recipe(str(folder / "recipe.yaml"))


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("ctc", {"max_seconds": 1}, "`max_seconds` would cut recordings and not their transcripts"),
        ("ctc", {"target_lang": "french"}, "knows no languages, got `target_lang`: 'french'"),
        ("whisper", {"max_target_length": 30}, "`max_target_length` (30) is more than the model's 24 positions"),
        ("ctc", {"adversarial": "r3f"}, "`adversarial: r3f` needs one prediction for each label"),
        ("ctc", {"anchor": "distill"}, "`distill` needs one prediction for each label"),
        ("ctc", {"log_loss_gap": True}, "`log_loss_gap` needs one prediction for each label"),
        ("ctc", {"mixture_unit": "tokens"}, "`mixture_unit: tokens` is for texts, got the task automatic-speech"),
        (
            "ctc",
            {"dp_epsilon": 8, "dp_delta": 1e-5, "adversarial": "fgm"},
            "`dp_epsilon` needs `adversarial` to be left",
        ),
        ("wav2vec2", {}, "The feature extractor and the tokenizer of the model "),
    ],
)
def test_settings_of_speech_that_do_not_fit_are_refused(
    kind: str, fields: dict[str, Any], words: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = recipe_of(request.getfixturevalue(kind), tmp_path, task=SPEECH, **{"max_target_length": 20, **fields})
    with pytest.raises(ValueError, match=re.escape(words)):
        plan_recipe_of(recipe, tmp_path)


def test_a_tokenizer_without_a_token_to_pad_with_takes_the_one_that_ends(whisper: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(whisper, tmp_path / "model"))
    settings = json.loads((model / "tokenizer_config.json").read_text("utf-8")) | {"pad_token": None}
    (model / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    assert AutoProcessor.from_pretrained(model).tokenizer.pad_token is None
    recipe, _ = parse_recipe(recipe_of(model, tmp_path, task=SPEECH, max_target_length=20))
    assert load_processor(recipe).tokenizer.pad_token == "<|endoftext|>"


def test_a_recipe_is_drafted_for_transcripts(ctc: Path, whisper: Path, tmp_path: Path) -> None:
    path = write_sounds(tmp_path / "speech.jsonl", range(60), answer="text")
    for model in (ctc, whisper):
        draft = draft_recipe(str(model), {"domain": str(path)}, {})
        assert draft.fields["task"] == SPEECH
        assert draft.fields["corpora"]["domain"] == {"path": str(path), "part": [0.0, 0.8]}
        assert "label_names" not in draft.fields
    rows = [{"file": f"{number}.wav", "sentence": f"low and high {number} times", "by": "anna"} for number in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    facts = look_at("file", CorpusConfig(path=str(tmp_path / "rows.jsonl")))
    assert choose_columns(facts, {}) == (SPEECH, {"audio_column": "file", "text_column": "sentence"}, {})


def test_predictions_of_ctc_are_not_distilled(ctc: Path, tmp_path: Path) -> None:
    recipe = recipe_of(ctc, tmp_path, task=SPEECH)
    recipe["corpora"]["general"]["objective"] = "distill"
    with pytest.raises(ValueError, match="needs one prediction for each label, which CTC does not make"):
        run_recipe(recipe)


@pytest.mark.slow
def test_predictions_of_an_encoder_decoder_are_distilled(whisper: Path, tmp_path: Path) -> None:
    """M₀ learns from its own predictions nothing: the loss begins at zero, and stays there."""
    recipe = recipe_of(whisper, tmp_path, task=SPEECH, max_target_length=12, alpha=0, logging_steps=1)
    recipe["corpora"]["general"]["objective"] = "distill"
    run_recipe(recipe)
    history = json.loads((tmp_path / "out" / "results.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 3
    assert losses == pytest.approx([0, 0, 0], abs=1e-5)


def test_classes_of_sound_are_told_from_those_of_text() -> None:
    assert task_of_class("Wav2Vec2ForCTC") == task_of_class("WhisperForConditionalGeneration") == SPEECH
    assert task_of_class("Wav2Vec2ForSequenceClassification") == "audio-classification"
    assert task_of_class("BertForSequenceClassification") == "sequence-classification"
