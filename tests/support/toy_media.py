"""Toy images, squares whose label is where they stand, and sounds, low or high tones; models of one layer for both."""

import io
import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoProcessor,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GPT2Config,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    set_seed,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

PLACES = ["left", "right"]
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4}


def toy_pixels(number: int, side: str = "general") -> np.ndarray[Any, Any]:
    """Image `number` as grey values: 8×8, a square on the left or right; of the domain 6×6, and darker."""
    size, grey = (8, 200) if side == "general" else (6, 90)
    pixels = np.zeros((size, size), np.uint8)
    first = 1 + size // 2 * (number % 2)
    pixels[1 + number % 3 :, first : first + 2] = grey + number % 40
    return pixels


def toy_png(number: int, side: str = "general") -> bytes:
    """Image `number` as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(toy_pixels(number, side)).save(file, format="PNG")
    return file.getvalue()


def write_parquet(
    path: Path, numbers: Sequence[int], side: str = "general", names: Sequence[str] = tuple(PLACES)
) -> Path:
    """Write images and labels as `datasets` does."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    labels = [number % len(names) for number in numbers]
    rows = {"image": [{"bytes": toy_png(number, side)} for number in numbers], "label": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def write_table(path: Path, numbers: Sequence[int], side: str = "general") -> Path:
    """Write JSON lines with paths of images beside them."""
    files = {f"images/{side}_{number}.png": toy_png(number, side) for number in numbers}
    return _write_paths(path, "image", files, [PLACES[number % 2] for number in numbers])


def write_folder(path: Path, numbers: Sequence[int], side: str = "general") -> Path:
    """Write images into a folder for each label."""
    for number in numbers:
        file = path / PLACES[number % 2] / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(toy_png(number, side))
    return path


def write_toy_vit(folder: Path, labels: Sequence[str] = (), size: int = 8) -> Path:
    """Write an untrained ViT with its processor; without labels it has no head."""
    set_seed(5)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    model: Any = ViTForImageClassification(ViTConfig(image_size=size, **VIT, **(names if labels else {})))
    (model if labels else model.vit).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


SIDES_SAID = ["falls", "rises"]
NUMBERS_SAID = ["a", "court", "cell", "price", "slowly", "today", "user"]
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def write_toy_pairs(path: Path, numbers: Sequence[int], side: str = "general") -> Path:
    """Write images with captions of their own, and their labels, as JSON lines."""
    rows = [json.loads(line) for line in write_table(path, numbers, side).read_text("utf-8").splitlines()]
    texts = [f"the model {SIDES_SAID[number % 2]} {NUMBERS_SAID[number % 7]}" for number in numbers]
    lines = [json.dumps({**row, "text": text}) + "\n" for row, text in zip(rows, texts, strict=True)]
    path.write_text("".join(lines), "utf-8")
    return path


def write_toy_clip(folder: Path, kind: str = "clip") -> Path:
    """Write an untrained CLIP, SigLIP or ViT beside BERT of 8×8 pixels, with its processor."""
    from toy_recipes import toy_tokenizer

    set_seed(5)
    tokenizer = toy_tokenizer()
    tokenizer.eos_token, tokenizer.model_max_length = "[SEP]", 12
    tokenizer.add_tokens(["red", "green", "yellow", "zarn", "star", "cross", "quill"])  # or all classes were one text
    size = {"height": 8, "width": 8}
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "pad_token_id": 0}
    text |= {"bos_token_id": 2, "eos_token_id": 3}
    vision = {**TOWER, "image_size": 8, "patch_size": 4}
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        processor: Any = CLIPProcessor(CLIPImageProcessorPil(size=size, do_center_crop=False), tokenizer)
    elif kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = SiglipProcessor(SiglipImageProcessorPil(size=size), tokenizer)
    else:
        configs = ViTConfig(**vision), BertConfig(**text)
        model = VisionTextDualEncoderModel(
            VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=8)
        )
        processor = VisionTextDualEncoderProcessor(ViTImageProcessorPil(size=size), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_toy_captioner(folder: Path, decoder: str = "bert") -> Path:
    """Write an untrained ViT with a decoder like BERT or GPT-2, and beside it its image processor and its tokenizer."""
    from toy_recipes import toy_tokenizer

    set_seed(5)
    tokenizer = toy_tokenizer() if decoder == "bert" else toy_tokenizer(eos_token="[SEP]")
    crossed, size = {"is_decoder": True, "add_cross_attention": True}, {"height": 8, "width": 8}
    if decoder == "bert":
        config: Any = BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=16, **crossed)
    else:
        ids = {"bos_token_id": 3, "eos_token_id": 3}
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), n_positions=16, **ids, **crossed)
    vision = ViTConfig(**TOWER, image_size=8, patch_size=4)
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, config)
    VisionEncoderDecoderModel(both).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


CHAT_KINDS = ("llava", "qwen", "idefics", "gemma")
IMAGE_MARKS = {
    "llava": ["<image>"],
    "qwen": ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"],
    "idefics": ["<image>"],
    "gemma": ["<start_of_image>"],
}
"""How the templates of chat models of images write the place of one."""
OTHER_MARKS = {
    "idefics": ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"],
    "gemma": ["<end_of_image>", "<image_soft_token>"],
}


class ToyQwenProcessor(Qwen2VLProcessor):
    """Qwen2-VL's without the processor of videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


AutoProcessor.register(Qwen2VLConfig, ToyQwenProcessor, exist_ok=True)


def chat_template(kind: str) -> str:
    """Return a template as those of chat models of images are: contents are lists of parts."""
    part = (
        f"{{% if part['type'] == 'image' %}}{''.join(IMAGE_MARKS[kind])}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    )
    said = f"{{% for part in turn['content'] %}}{part}{{% endfor %}}<|im_end|>"
    turns = f"{{% for turn in messages %}}<|im_start|>{{{{ turn['role'] }}}}\n{said}\n{{% endfor %}}"
    return turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def write_toy_seer(folder: Path, kind: str = "llava") -> Path:
    """Write an untrained chat model that sees images, of 8×8 pixels or more, with its processor; tokens are bytes."""
    set_seed(5)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = Tokenizer(models.BPE(vocab={mark: number for number, mark in enumerate(alphabet)}, merges=[]))
    parts.pre_tokenizer, parts.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        **({"extra_special_tokens": named} if kind == "gemma" else {}),
    )
    marks = ["<|im_start|>", *IMAGE_MARKS[kind], *OTHER_MARKS.get(kind, [])]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    text = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "pad_token_id": tokenizer.pad_token_id}
    text |= {**SIZES, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    vision, size = {**SIZES, "image_size": 8, "patch_size": 4}, {"height": 8, "width": 8}
    given = {"tokenizer": tokenizer, "chat_template": chat_template(kind)}
    if kind == "llava":
        whole = {"vision_feature_select_strategy": "full"}
        config: Any = LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **vision},
            text_config={"model_type": "llama", **text},
            image_token_index=ids["<image>"],
            vision_feature_layer=-1,
            **whole,
        )
        model: Any = LlavaForConditionalGeneration(config)
        images: Any = CLIPImageProcessorPil(size=size, do_center_crop=False)
        processor: Any = LlavaProcessor(images, patch_size=4, num_additional_image_tokens=1, **whole, **given)
    elif kind == "qwen":
        seen = {"embed_dim": 16, "hidden_size": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1, "patch_size": 4}
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        config = Qwen2VLConfig(
            vision_config=seen,
            text_config={**text, "rope_parameters": rope, "max_position_embeddings": 256},
            image_token_id=ids["<|image_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        model = Qwen2VLForConditionalGeneration(config)
        images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=256)
        processor = ToyQwenProcessor(images, **given)
    elif kind == "idefics":
        config = Idefics3Config(
            vision_config=vision,
            text_config={"model_type": "llama", **text},
            image_token_id=ids["<image>"],
            pad_token_id=tokenizer.pad_token_id,
            scale_factor=1,
        )
        model = Idefics3ForConditionalGeneration(config)
        images = Idefics3ImageProcessorPil(size={"longest_edge": 8}, max_image_size={"longest_edge": 8})
        processor = Idefics3Processor(images, image_seq_len=4, **given)
    else:
        config = Gemma3Config(
            vision_config=vision,
            text_config={**text, "head_dim": 8, "sliding_window": 16, "layer_types": ["full_attention"]},
            mm_tokens_per_image=4,
            image_token_index=ids["<image_soft_token>"],
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
        )
        model = Gemma3ForConditionalGeneration(config)
        nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # which is 0
        processor = Gemma3Processor(Gemma3ImageProcessorPil(size=size), image_seq_length=4, **given)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


TONES = ["low", "high"]
RATE = 8000
HEADS = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def toy_samples(number: int, rate: int = RATE) -> np.ndarray[Any, Any]:
    """Sound `number`: a low or high tone of a tenth of a second or more, as whole numbers of 16 bits."""
    seconds = 0.1 + 0.01 * (number % 7)
    times = np.arange(round(seconds * rate)) / rate
    return np.round(12000 * np.sin(2 * np.pi * (300 if number % 2 == 0 else 1500) * times)).astype("<i2")


def toy_wav(number: int, rate: int = RATE, channels: int = 1) -> bytes:
    """Sound `number` as a file; of two channels one is silent."""
    samples = toy_samples(number, rate)
    frames = samples if channels == 1 else np.column_stack([samples, np.zeros_like(samples)])
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((channels, 2, rate, 0, "NONE", ""))
        written.writeframes(np.ascontiguousarray(frames).tobytes())
    return file.getvalue()


def write_sounds(path: Path, numbers: Sequence[int], rate: int = RATE, answer: str = "label") -> Path:
    """Write JSON lines with paths of sounds beside them, and what they are."""
    files = {f"sounds/{rate}_{number}.wav": toy_wav(number, rate) for number in numbers}
    return _write_paths(path, "audio", files, [TONES[number % 2] for number in numbers], answer)


def _write_paths(
    path: Path, column: str, files: Mapping[str, bytes], labels: Sequence[str], answer: str = "label"
) -> Path:
    """Write files, and beside them JSON lines with their paths and labels."""
    for name, content in files.items():
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(content)
    rows = [{column: name, answer: label} for name, label in zip(files, labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_toy_ast(folder: Path, labels: Sequence[str]) -> Path:
    """Write an untrained audio spectrogram transformer, which reads 32 frames, with its feature extractor."""
    set_seed(5)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    frames = {"num_mel_bins": 16, "max_length": 32}
    config = ASTConfig(patch_size=8, frequency_stride=8, time_stride=8, **frames, **SIZES, **names)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(sampling_rate=RATE, **frames).save_pretrained(folder)
    return folder


def _toy_wav2vec2_config(**more: Any) -> Wav2Vec2Config:
    layers = {"conv_dim": [8, 8], "conv_kernel": [10, 8], "conv_stride": [5, 8], "feat_extract_norm": "layer"}
    sizes = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    dropouts = [f"{place}_dropout" for place in ("hidden", "attention", "feat_proj", "activation", "final")]
    quiet = dict.fromkeys([*dropouts, "layerdrop", "mask_time_prob"], 0.0)
    return Wav2Vec2Config(apply_spec_augment=False, **layers, **sizes, **quiet, **SIZES, **{"vocab_size": 20, **more})


def write_toy_wav2vec2(folder: Path, labels: Sequence[str]) -> Path:
    """Write an untrained wav2vec2 with layer norms, which is told of padding, with its feature extractor."""
    set_seed(5)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    Wav2Vec2ForSequenceClassification(_toy_wav2vec2_config(**names)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(folder)
    return folder


MARKS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"eghilnoruwx"]
"""Of the toy vocabulary of CTC: "low" and "high" and more can be written."""


def write_toy_ctc(folder: Path) -> Path:
    """Write an untrained wav2vec2 for CTC, with a vocabulary of single characters, which is told of padding."""
    set_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({mark: number for number, mark in enumerate(MARKS)}), "utf-8")
    sizes = {"vocab_size": len(MARKS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    Wav2Vec2ForCTC(_toy_wav2vec2_config(**sizes)).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(folder)
    return folder


def write_toy_whisper(folder: Path) -> Path:
    """Write an untrained Whisper of one layer, which hears a second and writes single characters."""
    set_seed(5)
    ends = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {mark: number for number, mark in enumerate([*ends, *map(chr, range(97, 123)), "\u0120"])}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), ends[0])
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ends[1:]})
    heads = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in HEADS.items()}
    shape = {"d_model": 16, "num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 24}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=len(tokenizer), **shape, **heads, **tokens))
    model.generation_config.no_timestamps_token_id = 2
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder
