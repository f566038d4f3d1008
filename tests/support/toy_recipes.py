"""Every recipe on toy data: untrained models of one layer, and files of a few rows in the place of its corpora."""

import gzip
import json
import random
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from toy_media import (
    toy_png,
    toy_wav,
    write_toy_ast,
    write_toy_captioner,
    write_toy_clip,
    write_toy_ctc,
    write_toy_seer,
    write_toy_vit,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
    set_seed,
)

from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.task import TASKS

GROUPS = ("corpora", "eval_corpora", "validation_corpora")

ENGLISH = ["the", "a", "model", "court", "cell", "price", "falls", "rises", "slowly", "today", "user", "assistant"]
FRENCH = ["le", "un", "modèle", "prix", "tombe", "monte", "lentement", "aujourd'hui"]
REVIEWS = ["味道很好，送餐很快。", "饭是凉的，很失望。", "质量不错，下次还买。", "包装破了，客服不回复。"]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SAID = ["one", "nine"]
"""Transcripts, in characters which the models of the documents and the toy model know."""
LENGTH = 16  # of the examples of the toy runs, in tokens


def toy_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """English and French words, and Chinese characters; other marks are unknown, as those of a chat."""
    characters = sorted({character for review in REVIEWS for character in review})
    marks = [*SPECIAL.values(), *ENGLISH, *FRENCH, "'", "aujourd", "hui", *characters]
    vocabulary = {mark: number for number, mark in enumerate(dict.fromkeys(marks))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not special:  # BERT's
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **special)


def toy_decoder(vocabulary: int) -> LlamaForCausalLM:
    """Return an untrained decoder of one layer."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, bos_token_id=None, pad_token_id=0, eos_token_id=3, **shape)
    )


def write_toy_models(folder: Path) -> dict[str, Path]:
    """Write an untrained encoder, decoder and encoder-decoder, each with the toy tokenizer; return their folders."""
    ends = {"encoder": {}, "decoder": {"eos_token": "[SEP]"}, "encoder-decoder": {"eos_token": "[SEP]"}}
    folders = {}
    for kind, special in ends.items():
        tokenizer, place = toy_tokenizer(**special), folder / kind
        size, ids = len(tokenizer), {"pad_token_id": 0, "eos_token_id": 3}
        set_seed(3)
        if kind == "encoder":
            shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            model: Any = BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=32, **shape))
        elif kind == "decoder":
            model = toy_decoder(size)
        else:
            shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
            model = T5ForConditionalGeneration(T5Config(vocab_size=size, decoder_start_token_id=0, **ids, **shape))
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        folders[kind] = place
    if (trl := find_spec("trl")) is not None and trl.origin is not None:  # which has the templates of real models
        folders["chat"] = shutil.copytree(folders["decoder"], folder / "chat")
        shutil.copy(
            Path(trl.origin).parent / "chat_templates" / "qwen2_5.jinja", folders["chat"] / "chat_template.jinja"
        )
    digits = [str(digit) for digit in range(10)]
    return {
        **folders,
        "image": write_toy_vit(folder / "image", digits),
        "audio": write_toy_ast(folder / "audio", digits),
        "image-text": write_toy_clip(folder / "image-text"),
        "captioner": write_toy_captioner(folder / "captioner"),
        "ctc": write_toy_ctc(folder / "ctc"),
        "image-text-to-text": write_toy_seer(folder / "image-text-to-text"),
    }


def model_kind(task: str) -> str:
    if task in ("chat", "image-text-to-text"):
        return task
    kinds = {"AutoModelForCausalLM": "decoder", "AutoModelForSeq2SeqLM": "encoder-decoder"}
    kinds |= {"AutoModelForImageTextToText": "captioner", "AutoModelForSpeechSeq2Seq": "ctc"}
    info = TASKS[task].info
    return kinds.get(info.auto_class, "encoder" if info.takes == "text" else info.takes)


def toy_row(recipe: Recipe, corpus: CorpusConfig, number: int, texts: list[str]) -> dict[str, Any]:
    """Row `number` of a file that has the columns which a corpus is said to have."""
    draw = random.Random(number)
    labels = [label for label in recipe.label_names or [] if not label.startswith("I-")]
    words = [draw.choice(ENGLISH) for _ in range(3 + number % 5)]
    label = labels[number % len(labels)] if labels else None
    turns = [
        {corpus.role_key: role, corpus.content_key: word}
        for role, word in zip(("user", "assistant"), words, strict=False)
    ]
    takes = TASKS[recipe.task].info.takes
    said = {"audio": SAID[number % 2], "text": texts[number % len(texts)]}
    values = {
        "text": said.get(takes, " ".join(words[:3])),  # of an image a caption, which is short
        "words": words,
        "tags": [labels[(number + place) % len(labels)] for place in range(len(words))] if labels else None,
        "class": label,
        "classes": [label],
        "number": float(number),
        "turns": turns,
        "image": f"{number}.png",
        "images": f"{number}.png",
        "audio": f"{number}.wav",
    }
    row: dict[str, Any] = {}
    for column, kind in TASKS[recipe.task].columns(recipe, corpus).items():
        *outer, last = corpus.source(column).split(".")
        place = row
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = values["text" if kind in ("any text", "prose") else kind]
    kept = {name: value[0] if isinstance(value, list) else value for name, value in (corpus.where or {}).items()}
    return {**row, **kept}


def toy_texts(path: Path) -> list[str]:
    """Texts of the recipe's language, some longer than an example."""
    if path.parent.name == "sentiment_zh":
        return REVIEWS
    draw = random.Random(1)
    return [" ".join(draw.choice(ENGLISH + FRENCH) for _ in range(length)) for length in range(4, 2 * LENGTH, 3)]


def write_toy_corpora(path: Path, recipe: dict[str, Any], folder: Path, rows: int = 40) -> None:
    """Write toy files for the corpora of the recipe that was read from `path`, and name them in it."""
    parsed, _ = parse_recipe(recipe)
    for group in GROUPS:
        for name, corpus in getattr(parsed, group).items():
            own = parsed.for_corpus(corpus, trains=group == "corpora")
            lines = [json.dumps(toy_row(own, corpus, number, toy_texts(path))) for number in range(rows)]
            file = folder / f"{group}-{name}.jsonl"
            file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            for number in range(rows) if TASKS[own.task].info.takes != "text" else ():
                (folder / f"{number}.png").write_bytes(toy_png(number))
                (folder / f"{number}.wav").write_bytes(toy_wav(number))
            recipe[group][name]["path"] = str(file)


def toy_sizes(recipe: Mapping[str, Any], toy_models: Mapping[str, Path]) -> dict[str, Any]:
    """Return the fields that fit a recipe to a toy model and toy files."""
    parsed, _ = parse_recipe(recipe)
    return {
        "model_name_or_path": str(toy_models[model_kind(parsed.task)]),
        "max_length": LENGTH * (6 if any(corpus.messages_column for corpus in parsed.corpora.values()) else 1),
        "max_target_length": 8,
        "generation_max_length": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "alpha_search": {**(recipe.get("alpha_search") or {}), "method": "grid", "alphas": 2},
    }


def on_toy_files(path: Path, toy_models: Mapping[str, Path], folder: Path, flags: list[str]) -> dict[str, Any]:
    """A recipe with toy files of 40 rows for its corpora, a toy model, and sizes that fit them."""
    recipe = load_recipe(path, flags)
    write_toy_corpora(path, recipe, folder)
    return {
        **recipe,
        **toy_sizes(recipe, toy_models),
        "output_dir": str(folder / "out"),
        "eval_steps": 1,
    }


def say_intents(split: str) -> None:
    """Write texts whose labels are what the intent model of a toy run says of them, so that it can be calibrated."""
    classify = pipeline("text-classification", model="runs/customer_intent")
    with gzip.open(f"data/banking77/{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line)["text"] for line in lines]
    rows = [json.dumps({"text": text, "label_name": classify(text)[0]["label"]}) for text in found]
    Path(f"{split}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
