"""Checkpoints of models of images, of sound and of several kinds of data: merged as those of text are."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import set_seed

from hf_interp.weights.merge import interpolate_checkpoints

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 16}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4}
SOUND = {**SIZES, "vocab_size": 20, "conv_dim": [8, 8], "conv_kernel": [3, 3], "conv_stride": [2, 2]}
SOUND |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
SPEECH = {"vocab_size": 40, "d_model": 16, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 8}
SPEECH |= {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 16))}
SPEECH |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
SPEECH |= {"suppress_tokens": None, "begin_suppress_tokens": None, "pad_token_id": 0, "bos_token_id": 1}
SEGMENTS = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 8]}
SEGMENTS |= {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}


def model_of(name: str, config: str, **sizes: Any) -> Any:
    return getattr(transformers, name)(getattr(transformers, config)(**sizes))


def captions() -> Any:
    decoder = model_of(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8,
        add_cross_attention=True,
    )  # fmt: skip
    return transformers.VisionEncoderDecoderModel(encoder=model_of("ViTModel", "ViTConfig", **IMAGE), decoder=decoder)


def chat_about_images() -> Any:
    text = transformers.LlamaConfig(**SIZES, vocab_size=40)
    vision = transformers.CLIPVisionConfig(**IMAGE)
    return model_of(
        "LlavaForConditionalGeneration", "LlavaConfig", text_config=text, vision_config=vision, image_token_index=5
    )


KINDS: dict[str, Callable[[], Any]] = {
    "images": lambda: model_of("ViTForImageClassification", "ViTConfig", **IMAGE),
    "segments": lambda: model_of(
        "SegformerForSemanticSegmentation", "SegformerConfig", **SEGMENTS, decoder_hidden_size=8
    ),
    "sound": lambda: model_of("Wav2Vec2ForCTC", "Wav2Vec2Config", **SOUND),
    "speech": lambda: model_of("WhisperForConditionalGeneration", "WhisperConfig", **SPEECH, decoder_start_token_id=1),
    "images and texts": lambda: model_of("CLIPModel", "CLIPConfig", text_config=TEXT, vision_config=IMAGE),
    "captions": captions,
    "chat about images": chat_about_images,
}


def save_pair(folder: Path, base: Any, finetuned: Any) -> tuple[Path, Path]:
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    base.save_pretrained(folder / "base"), finetuned.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


@pytest.mark.parametrize("kind", KINDS)
def test_every_modality_is_merged(kind: str, tmp_path: Path) -> None:
    set_seed(0)
    base = KINDS[kind]()
    folders = save_pair(tmp_path, base, copy.deepcopy(base))
    interpolate_checkpoints(*folders, tmp_path / "out", 0.3)
    first, second = (type(base).from_pretrained(folder).state_dict() for folder in folders)
    found, loading = type(base).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    for name, tensor in found.state_dict().items():
        expected = torch.lerp(first[name], second[name], 0.3) if tensor.is_floating_point() else second[name]
        assert torch.equal(tensor, expected), name


def test_a_head_on_a_backbone_of_images_is_kept_whole(tmp_path: Path) -> None:
    set_seed(0)
    base = model_of("ViTModel", "ViTConfig", **IMAGE)
    finetuned = KINDS["images"]()
    report = interpolate_checkpoints(*save_pair(tmp_path, base, finetuned), tmp_path / "out", 0.3)
    found = type(finetuned).from_pretrained(tmp_path / "out").state_dict()
    assert set(report.names("finetuned")) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(found["classifier.weight"], finetuned.classifier.weight)
    for name, tensor in finetuned.vit.state_dict().items():
        assert torch.equal(found[f"vit.{name}"], torch.lerp(base.state_dict()[name], tensor, 0.3)), name
