"""The slider's answers are those of M₀, M_θ and a merged M_α, for every task, from any number of threads."""

import io
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architectures import make_model, make_tokenizer
from tokenizers import normalizers, processors
from toy_media import (
    PLACES,
    RATE,
    TONES,
    toy_png,
    toy_samples,
    toy_wav,
    write_toy_ast,
    write_toy_ctc,
    write_toy_vit,
    write_toy_whisper,
)
from toys import move

from hf_interp.app import models, predictions
from hf_interp.app.examples import Source
from hf_interp.app.models import NUM_KEPT, AlphaSlider, describe_pair, find_task, open_slider
from hf_interp.app.page import build_page
from hf_interp.app.predictions import Outcome, best_choices, settings_of, split_words
from hf_interp.tasks.corpora.media import MOST_ASKED, resample
from hf_interp.tasks.presets import adapt
from hf_interp.tasks.task import TASKS
from hf_interp.utils.task_info import MASK, TASK_INFOS
from hf_interp.weights.adapters import scaled_parameters
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint
from hf_interp.weights.model_folder import find_lacking

TEXT = "w4 w9 w17 w5"
TASK_MODELS = {
    "sequence-classification": ("bert", "SEQ_CLS"),
    "token-classification": ("distilbert", "TOKEN_CLS"),
    "masked-lm": ("bert", None),
    "causal-lm": ("gpt2", "CAUSAL_LM"),
    "chat": ("gpt2", "CAUSAL_LM"),
    "translation": ("t5", "SEQ_2_SEQ_LM"),
    "summarization": ("bart", "SEQ_2_SEQ_LM"),
    "seq2seq": ("t5", "SEQ_2_SEQ_LM"),
}
"""Task → architecture, and PEFT's name of the task."""


def save(model: Any, folder: Path, tokenizer: Any = None) -> str:
    """A folder with a model and its tokenizer."""
    model.save_pretrained(folder)
    if not (folder / "adapter_config.json").is_file() or tokenizer is not None:
        (tokenizer or task_tokenizer()).save_pretrained(folder)
    return str(folder)


def task_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "w59"})  # a word of the models that nothing else uses
    return tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    """A function from a task to the folders of M₀ and M_θ."""
    folder = tmp_path_factory.mktemp("pairs")

    def make(task: str) -> tuple[str, str]:
        kind, peft_type = TASK_MODELS[task]
        places = folder / f"{kind}_{peft_type}_base", folder / f"{kind}_{peft_type}_finetuned"
        if not places[0].exists():
            model = move(make_model(kind, peft_type), seed=0)
            save(model, places[0])
            save(move(model), places[1])
        return str(places[0]), str(places[1])

    return make


def opened(pair: tuple[str, str], task: str | None = None, **options: Any) -> AlphaSlider:
    fields = {name: options.pop(name) for name in ("label_names", "max_length") if name in options}
    return open_slider(describe_pair(*pair, task=task, **fields), pair[1], **options)


def text_of(task: str) -> str:
    return f"w4 {MASK} w17 {MASK}" if task == "masked-lm" else TEXT


def expected(folder: str, task: str, slider: AlphaSlider) -> Outcome:
    """What the model in a folder makes of the text, without any of the slider's code but its encoding."""
    model = getattr(transformers, TASKS[task].info.auto_class).from_pretrained(folder).eval()
    tokenizer = task_tokenizer()
    ids = tokenizer(text_of(task).replace(MASK, "w59"), return_tensors="pt")
    goes_on = TASK_INFOS[task].answer == "continuation"
    if goes_on:
        ids = {name: tensor[:, :-1] for name, tensor in ids.items()}  # without the end of the text
    ids.pop("token_type_ids", None)
    text = None
    if TASK_INFOS[task].answer in ("continuation", "text"):
        written = model.generate(**ids, max_new_tokens=32, do_sample=False, pad_token_id=0)[0]
        begin = ids["input_ids"].shape[1] if goes_on else 0
        text = tokenizer.decode(written[begin:], skip_special_tokens=True)
    if task in ("translation", "summarization", "seq2seq"):
        return Outcome(probabilities=np.zeros((0, 0), np.float32), text=text)
    with torch.no_grad():
        logits = model(**ids).logits
    if task != "sequence-classification":
        logits = logits[0, {"token-classification": [0, 1, 2, 3], "masked-lm": [1, 3]}.get(task, [-1])]
    return Outcome(probabilities=logits.softmax(-1).numpy(), text=text)


def same(first: Outcome, second: Outcome) -> bool:
    return np.array_equal(first.probabilities, second.probabilities) and first.text == second.text


# M_α


@pytest.mark.parametrize("task", TASK_MODELS)
def test_the_ends_are_the_models_themselves(task: str, pair: Callable[[str], tuple[str, str]]) -> None:
    slider = opened(pair(task), task)
    slider.predict(text_of(task), 0.37)  # the way there leaves no trace
    answers = slider.compare(text_of(task), 0.5)
    for folder, found, alpha in zip(pair(task), (answers.base, answers.finetuned), (0, 1), strict=True):
        assert same(found, expected(folder, task, slider))
        assert same(found, slider.predict(text_of(task), alpha))
    assert not same(answers.base, answers.finetuned)


@pytest.mark.parametrize("task", TASK_MODELS)
def test_between_the_ends_it_is_the_merged_model(
    task: str, pair: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    interpolate_checkpoints(*pair(task), tmp_path / "merged", 0.5)
    slider = opened(pair(task), task)
    found = slider.predict(text_of(task), 0.5)
    wanted = expected(str(tmp_path / "merged"), task, slider)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=1e-5, atol=1e-7)
    assert found.text == wanted.text
    assert not same(found, slider.predict(text_of(task), 0.0))


# Images and sound.

FILE_MODELS = {
    "vit": (lambda folder: write_toy_vit(folder, PLACES), "AutoModelForImageClassification", toy_png),
    "ast": (lambda folder: write_toy_ast(folder, TONES), "AutoModelForAudioClassification", toy_wav),
    "ctc": (write_toy_ctc, "AutoModelForCTC", toy_wav),
    "whisper": (write_toy_whisper, "AutoModelForSpeechSeq2Seq", toy_wav),
}


def said_of_file(folder: Path, kind: str) -> Outcome:
    """What the model in a folder makes of file 3 by the library alone, but for the rate of Whisper's samples."""
    if kind in ("vit", "ast"):
        processor_class = {"vit": "AutoImageProcessor", "ast": "AutoFeatureExtractor"}[kind]
        processor = getattr(transformers, processor_class).from_pretrained(folder)
    else:
        processor = transformers.AutoProcessor.from_pretrained(folder)
    model = getattr(transformers, FILE_MODELS[kind][1]).from_pretrained(folder).eval()
    if kind == "vit":
        from PIL import Image

        inputs = processor(Image.open(io.BytesIO(toy_png(3))).convert("RGB"), return_tensors="pt")
    else:
        rate = 16000 if kind == "whisper" else RATE
        samples = resample(toy_samples(3).astype(np.float32) / 32768, RATE, rate)
        inputs = processor(samples, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        if kind == "whisper":
            tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
            return Outcome(probabilities=np.zeros((0, 0), np.float32), text=processor.decode(tokens, True))
        logits = model(**inputs).logits
    if kind == "ctc":
        return Outcome(probabilities=np.zeros((0, 0), np.float32), text=processor.decode(logits[0].argmax(-1)))
    return Outcome(probabilities=logits.softmax(-1).numpy())


@pytest.mark.parametrize("kind", FILE_MODELS)
def test_files_are_answered_as_the_models_answer_them(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    write, auto_class, make = FILE_MODELS[kind]
    base, finetuned = write(tmp_path / "base"), write(tmp_path / "finetuned")
    move(getattr(transformers, auto_class).from_pretrained(base)).save_pretrained(finetuned)
    interpolate_checkpoints(base, finetuned, tmp_path / "merged", 0.5)
    slider = opened((str(base), str(finetuned)))
    answers = slider.compare(make(3), 0.5)
    for folder, found in zip((base, tmp_path / "merged", finetuned), answers[1:], strict=True):
        wanted = said_of_file(folder, kind)
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=1e-4, atol=1e-6)
        assert found.text == wanted.text
    assert not same(answers.base, answers.finetuned)


@pytest.mark.parametrize(
    ("kind", "has_new_head"),
    [("vit", False), ("vit", True), ("ast", True), ("ctc", False), ("ctc", True), ("whisper", False)],
)
def test_adapters_on_models_of_files_are_answered_as_their_merge(kind: str, has_new_head: bool, tmp_path: Path) -> None:
    """Also where M₀'s checkpoint has other names than the model (ViT), or no head, so that M_θ's is read."""
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    peft = pytest.importorskip("peft")
    write, auto_class, make = FILE_MODELS[kind]
    base, finetuned = write(tmp_path / "base"), tmp_path / "finetuned"
    whole = getattr(transformers, auto_class).from_pretrained(base)
    new_names: list[str] = []
    if has_new_head:  # of another size than the configuration of M₀ says
        whole.base_model.save_pretrained(base)
        config = json.loads((base / "config.json").read_text("utf-8"))
        config |= {"id2label": dict.fromkeys(range(5), "?"), "label2id": {"?": 0}}
        (base / "config.json").write_text(json.dumps(config), "utf-8")
        new_names = [name for name in whole.state_dict() if not name.startswith(whole.base_model_prefix)]
    adapted: Any = adapt(whole, "lora", task_type=None, max_steps=1, new_names=new_names)
    assert isinstance(adapted, peft.PeftModel)
    move(adapted).save_pretrained(finetuned)
    assert set(find_lacking(base, adapted, [pair.name for pair in scaled_parameters(adapted)])) == set(new_names)
    for alpha, name in ((0.0, "start"), (0.5, "merged"), (1.0, "end")):
        interpolate_adapter_checkpoint(None, finetuned, tmp_path / name, alpha, merge=True)
    answers = opened((str(base), str(finetuned))).compare(make(3), 0.5)
    for name, found in zip(("start", "merged", "end"), answers[1:], strict=True):
        wanted = said_of_file(tmp_path / name, kind)
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=1e-4, atol=1e-6)
        assert found.text == wanted.text
    assert not same(answers.base, answers.finetuned)


def test_the_factors_of_ia3_have_targets_in_a_model_of_sound(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapted: Any = adapt(
        transformers.AutoModelForCTC.from_pretrained(write_toy_ctc(tmp_path)), "ia3", task_type=None, max_steps=1
    )
    factors = {name.split(".")[-3] for name, value in adapted.named_parameters() if "ia3_l" in name}
    assert factors == {"k_proj", "v_proj", "output_dense"}


def test_an_adapter_of_ctc_for_another_vocabulary_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = {"vocab_size": 9, "ignore_mismatched_sizes": True}
    model = transformers.AutoModelForCTC.from_pretrained(write_toy_ctc(tmp_path), **options)
    with pytest.raises(ValueError, match="whose configuration has the 9 characters of its vocabulary, got 16 in"):
        adapt(model, "lora", task_type=None, max_steps=1)


def test_files_that_cannot_be_answered_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    sound, image = write_toy_ast(tmp_path / "ast", TONES), write_toy_vit(tmp_path / "vit", PLACES)
    ears, eyes = (opened((str(folder), str(folder))) for folder in (sound, image))
    whisper = str(write_toy_whisper(tmp_path / "whisper"))
    writer = opened((whisper, whisper))
    long, unreal = io.BytesIO(), io.BytesIO()
    soundfile.write(long, np.zeros(RATE * 3 // 2), RATE, format="WAV")
    soundfile.write(unreal, np.array([0.1, np.nan]), RATE, format="WAV", subtype="FLOAT")
    ears.compare(long.getvalue(), 0.5)  # a classifier may be told more than it hears
    for slider, given, words in (
        (writer, long, "The audio must have at most 1.0 seconds, and some, got 1.5."),
        (ears, unreal, "The audio cannot be decoded \\(1 of its samples are NaN or infinite\\). Choose another file."),
    ):
        with pytest.raises(ValueError, match=words):
            slider.compare(given.getvalue(), 0.5)
    monkeypatch.setitem(MOST_ASKED, "image", (63, "pixels"))
    monkeypatch.setitem(MOST_ASKED, "audio", (0.05, "seconds"))
    monkeypatch.setattr(models, "FILE", (bytes, 4000, "bytes", "Choose"))
    for slider, given, words in (
        (ears, b"", "The audio must not be empty. Choose one"),
        (ears, "a text", "The audio must not be empty. Choose one"),
        (ears, b"no sound", "The audio cannot be decoded"),
        (ears, toy_wav(0), "must have at most 0.05 seconds"),
        (ears, toy_wav(0, 44100), "must have at most 4,000 bytes"),
        (eyes, toy_png(0)[:40], "The image cannot be decoded"),
        (eyes, toy_png(0), "The image must have at most 63 pixels, and some, got 64."),
    ):
        with pytest.raises(ValueError, match=words):
            slider.compare(given, 0.5)


def test_m0_without_a_head_is_read_by_that_of_m_theta(pair: Callable[[str], tuple[str, str]], tmp_path: Path) -> None:
    model = make_model("bert", "SEQ_CLS").base_model
    base = save(model, tmp_path / "headless")
    finetuned = pair("sequence-classification")[1]
    slider = opened((base, finetuned))
    assert (
        slider.notes
        == ["M₀ has no head of its own (classifier.bias, classifier.weight): its backbone is read by the head of M_θ."]
        or "no head of its own (classifier.weight, classifier.bias)" in slider.notes[0]
    )
    by_hand = transformers.AutoModelForSequenceClassification.from_pretrained(finetuned).eval()
    by_hand.bert.load_state_dict(transformers.AutoModel.from_pretrained(base).state_dict())
    with torch.no_grad():
        logits = by_hand(**task_tokenizer()(TEXT, return_tensors="pt")).logits
    assert np.array_equal(slider.compare(TEXT, 0.5).base.probabilities, logits.softmax(-1).numpy())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_are_moved_as_a_merge_moves_them(
    kind: str, pair: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = pair("sequence-classification")[0]
    config = peft.LoraConfig(r=4, task_type="SEQ_CLS", use_dora=kind == "dora", target_modules=["query", "value"])
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    adapted = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(0.5)
    adapter = save(adapted, tmp_path / "adapter")
    slider = opened((base, adapter))
    assert slider.recipe.task == "sequence-classification"
    assert slider.notes == []
    fresh = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    ids = task_tokenizer()(TEXT, return_tensors="pt")
    with torch.no_grad():
        first = fresh.eval()(**ids).logits.softmax(-1).numpy()
        last = peft.PeftModel.from_pretrained(fresh, adapter).eval()(**ids).logits.softmax(-1).numpy()
    answers = slider.compare(TEXT, 0.5)
    np.testing.assert_array_equal(answers.base.probabilities, first)
    np.testing.assert_allclose(answers.finetuned.probabilities, last, rtol=1e-5)  # a merged DoRA adds up otherwise
    interpolate_checkpoints(base, adapter, tmp_path / "merged", 0.5)
    place = tmp_path / "merged"
    if kind == "lora":
        again = transformers.AutoModelForSequenceClassification.from_pretrained(base)
        merged = peft.PeftModel.from_pretrained(again, place).eval()
    else:
        merged = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
    with torch.no_grad():
        wanted = merged(**ids).logits.softmax(-1).numpy()
    np.testing.assert_allclose(answers.interpolated.probabilities, wanted, rtol=1e-5)
    assert abs(last - first).max() > 0.01
    np.testing.assert_array_equal(slider.predict(TEXT, 0.5).probabilities, answers.interpolated.probabilities)


# Threads


def test_threads_get_the_answers_of_their_own_alpha(pair: Callable[[str], tuple[str, str]]) -> None:
    slider = opened(pair("sequence-classification"))
    alphas = [index / 7 for index in range(8)]
    texts = [TEXT, "w8 w30", "w22 w41 w12"]
    wanted = {(text, alpha): slider.predict(text, alpha).probabilities for text in texts for alpha in alphas}
    begin, wrong = threading.Barrier(len(alphas)), []

    def ask(alpha: float) -> None:
        begin.wait()
        for turn in range(30):
            text = texts[turn % len(texts)]
            found = slider.compare(text, alpha) if turn % 2 else slider.predict(text, alpha)
            probabilities = found.interpolated.probabilities if turn % 2 else found.probabilities
            if not np.array_equal(probabilities, wanted[text, alpha]):
                wrong.append((text, alpha))

    with ThreadPoolExecutor(len(alphas)) as pool:
        list(pool.map(ask, alphas))
    assert wrong == []
    assert len({probabilities.tobytes() for probabilities in wanted.values()}) == len(wanted)  # else nothing is shown


# What is kept


def test_answers_of_the_ends_are_kept_for_the_last_texts(pair: Callable[[str], tuple[str, str]]) -> None:
    slider = opened(pair("sequence-classification"))
    first = slider.compare(TEXT, 0.2)
    again = slider.compare(TEXT, 0.9)
    assert again.base is first.base
    assert again.finetuned is first.finetuned
    assert not same(again.interpolated, first.interpolated)
    assert slider.compare(TEXT, 0.0).interpolated is first.base
    for number in range(NUM_KEPT - 1):
        slider.compare(f"w4 {'w5 ' * number}w6", 0.5)
    assert slider.compare(TEXT, 0.5).base is first.base
    for number in range(NUM_KEPT):
        slider.compare(f"w7 {'w5 ' * number}w6", 0.5)
    last = slider.compare(TEXT, 0.5).base
    assert last is not first.base
    assert same(last, first.base)


# Reading


def test_several_labels_and_numbers_are_read_as_such(tmp_path: Path) -> None:
    for problem, labels in (("multi_label_classification", 2), ("regression", 1)):
        model = move(make_model("bert", "SEQ_CLS", problem_type=problem), 0.1)
        if labels == 1:
            model = transformers.BertForSequenceClassification(
                transformers.BertConfig(**{**model.config.to_dict(), "id2label": {0: "LABEL_0"}, "label2id": {}})
            )
        folder = save(model, tmp_path / problem)
        slider = opened((folder, folder), max_length=8)
        assert slider.settings.problem_type == problem
        found = slider.predict(TEXT, 0.5).probabilities
        with torch.no_grad():
            logits = model.eval()(**task_tokenizer()(TEXT, return_tensors="pt")).logits
        wanted = logits.sigmoid() if labels == 2 else logits
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


def test_a_number_without_a_problem_type_is_known_by_its_one_label(tmp_path: Path) -> None:
    model = make_model("bert", "SEQ_CLS")
    config = model.config
    config.num_labels = 1
    recipe = describe_pair("a/b", "c/d", task="sequence-classification")
    assert settings_of(recipe, task_tokenizer(), config).problem_type == "regression"
    config.num_labels = 2
    assert settings_of(recipe, task_tokenizer(), config).problem_type == "single_label_classification"


def test_long_texts_are_cut(pair: Callable[[str], tuple[str, str]]) -> None:
    slider = opened(pair("sequence-classification"), max_length=5)
    assert same(slider.predict("w4 w5 w6 w7 w8 w9", 0.5), slider.predict("w4 w5 w6 w7", 0.5))
    assert opened(pair("sequence-classification"), max_length=1000).settings.max_length == 64
    causal = opened(pair("causal-lm"), "causal-lm", max_length=1000, max_new_tokens=14)
    assert causal.settings.max_length == 50
    long = " ".join(f"w{4 + number % 50}" for number in range(200))
    assert same(causal.predict(long, 0.5), causal.predict(long.split(" ", 150)[-1], 0.5))


def test_words_are_places_and_pieces_are_not(pair: Callable[[str], tuple[str, str]]) -> None:
    slider = opened(pair("token-classification"))
    assert slider.compare("w4, w5.", 0.5).places == ["w4", ",", "w5", "."]
    assert split_words("東京 w4") == ["東", "京", "w4"]
    assert slider.labels == ["no", "yes"]


def test_a_dialogue_is_put_into_the_chat_template(pair: Callable[[str], tuple[str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(pair("causal-lm")[1], folder)
    tokenizer = task_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}w40 {{ turn['content'] }} w41{% endfor %}"
    tokenizer.save_pretrained(folder)
    slider = opened((pair("causal-lm")[0], str(folder)))
    assert slider.settings.chats
    plain = opened((pair("causal-lm")[0], str(folder)), chats=False)
    assert not plain.settings.chats
    assert same(slider.predict("w4 w5", 0.5), plain.predict("w40 w4 w5 w41", 0.5))


def test_the_likeliest_choices_of_any_model_come_first() -> None:
    rows = [[0.5, 0.1, 0.4, 0.0], [0.05, 0.9, 0.05, 0.0]]
    outcomes = [Outcome(probabilities=np.array([row], np.float32)) for row in rows]
    assert list(best_choices(outcomes, 0, 3)) == [1, 0, 2]
    assert list(best_choices(outcomes, 0, 9)) == [1, 0, 2, 3]
    assert best_choices(outcomes, 0, 1)[1] == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_of_many_tokens_the_likeliest_are_kept_and_their_shares_are_exact(
    task: str, pair: Callable[[str], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened(pair(task), task)
    monkeypatch.setattr(predictions, "NUM_CANDIDATES", 12)
    few = opened(pair(task), task)
    for alpha in (0.5, 0.1, 0.9, 0.0, 1.0, 0.5):
        found, wanted = few.compare(text_of(task), alpha), whole.compare(text_of(task), alpha)
        for place in range(len(found.places)):
            best = best_choices(found[1:], place, predictions.NUM_SURE)
            assert best == best_choices(wanted[1:], place, predictions.NUM_SURE)
        assert [outcome.probabilities.shape[1] for outcome in found[1:]] == [12] * 3
    (kept,) = few._kept.values()
    assert {outcome.probabilities.shape for outcome in kept} == {(len(found.places), 12)}


def test_a_task_that_would_make_a_head_up_is_refused(pair: Callable[[str], tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"`finetuned` must be a model for masked-lm, but .* lacks cls\.predictions"):
        opened(pair("sequence-classification"), "masked-lm")


# Tasks


@pytest.mark.parametrize("task", TASK_MODELS)
def test_the_page_answers_and_says_what_is_wrong(
    gradio: Any, task: str, pair: Callable[[str], tuple[str, str]]
) -> None:
    slider = opened(pair(task), task)
    page = build_page(slider, Source(recipe=slider.recipe, finetuned="there", title="title"))
    (ask,) = {event.fn for event in page.fns.values() if event.fn.__name__ == "answer"}
    (shown,) = {tuple(event.outputs) for event in page.fns.values() if event.fn is ask}
    message, *found = ask(text_of(task), "", 0.5)
    assert (message["visible"], len(found)) == (False, len(shown) - 1)
    for component, update in zip(shown[1:], found, strict=True):
        component.postprocess(update["value"])
    assert [update for update in found if update["value"]]
    message, *found = ask(" ", "", 0.5)
    assert "must not be empty" in message["value"]
    assert [update for update in found if update["value"]] == []


@pytest.mark.parametrize("task", TASK_MODELS)
def test_a_model_says_its_task(task: str, pair: Callable[[str], tuple[str, str]]) -> None:
    wanted = {"translation": "seq2seq", "summarization": "seq2seq", "chat": "causal-lm"}.get(task, task)
    assert find_task(Path(pair(task)[1])) == wanted


def test_every_task_of_texts_can_be_shown_and_has_some() -> None:
    assert TASKS.keys() == TASK_INFOS.keys()
    assert TASK_MODELS.keys() == {name for name, info in TASK_INFOS.items() if info.takes == "text"}
    assert all(TASK_INFOS[name].examples for name in TASK_MODELS)


# Refusals


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (1.01, r"`alpha` must lie in \[0, 1\], got 1.01"),
        (-0.01, r"`alpha` must lie in \[0, 1\], got -0.01"),
        (float("nan"), "`alpha` must be finite, got nan"),
        ("0.5", "`alpha` must be a number, got '0.5'"),
    ],
)
def test_what_is_no_alpha_is_refused(alpha: Any, message: str, pair: Callable[[str], tuple[str, str]]) -> None:
    slider = opened(pair("sequence-classification"))
    before = slider.predict(TEXT, 0.5)
    for ask in (slider.predict, slider.compare):
        with pytest.raises((TypeError, ValueError), match=message):
            ask(TEXT, alpha)
    assert same(slider.predict(TEXT, 0.5), before)


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("sequence-classification", " \n", "The text must not be empty"),
        ("masked-lm", "w4 w5", r"The text must have a \[MASK\] among its first"),
    ],
)
def test_texts_that_cannot_be_asked_are_refused(
    task: str, text: str, message: str, pair: Callable[[str], tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(pair(task)).predict(text, 0.5)


@pytest.mark.parametrize("task", ["token-classification", "causal-lm"])
def test_texts_of_which_tokenising_leaves_nothing_are_refused(
    task: str, pair: Callable[[str], tuple[str, str]]
) -> None:
    slider = opened(pair(task))
    slider.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    slider.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A")
    with pytest.raises(ValueError, match="nothing is left of it after tokenising"):
        slider.predict("\u200b", 0.5)


def test_models_that_do_not_go_together_are_refused(pair: Callable[[str], tuple[str, str]], tmp_path: Path) -> None:
    base, finetuned = pair("sequence-classification")
    with pytest.raises(ValueError, match=r"does not fit the 1 labels \['no'\]"):
        opened((base, finetuned), label_names=["no"])
    with pytest.raises(ValueError, match=r"`task` must be one of sequence-classification, .* Did you mean 'masked-lm'"):
        opened((base, finetuned), "maskedlm")
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1, got 0"):
        opened((base, finetuned), max_new_tokens=0)
    with pytest.raises(ValueError, match="`finetuned` must be a folder or the name of a model on the Hub"):
        opened((base, str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="must be of one architecture"):
        opened((pair("causal-lm")[0], finetuned))
    other = tmp_path / "other_tokens"
    shutil.copytree(finetuned, other)
    changed = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = changed["model"]["vocab"]
    vocabulary["w4"], vocabulary["w5"] = vocabulary["w5"], vocabulary["w4"]
    (other / "tokenizer.json").write_text(json.dumps(changed), "utf-8")
    with pytest.raises(ValueError, match="must have the same token behind every common id, but id 4 is 'w4' in M₀"):
        opened((base, str(other)))


def test_a_model_of_another_kind_has_no_task(tmp_path: Path) -> None:
    folder = save(transformers.BertModel(make_model("bert", None).config), tmp_path / "backbone")
    with pytest.raises(ValueError, match=r"`task` must be given, one of .*: 'backbone' is of the class BertModel"):
        opened((folder, folder))
