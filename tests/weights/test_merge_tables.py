"""Adapters on tables of words, written as whole models: tables that grow, that are tied, that were trained in place."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from architectures import make_model
from torch import nn
from toys import move
from transformers import AutoModelForSeq2SeqLM, set_seed

from hf_interp.weights.adapters import AdapterInterpolation
from hf_interp.weights.alpha_spec import AlphaByDepth
from hf_interp.weights.interpolate import interpolate_weights
from hf_interp.weights.matching import InterpolationReport
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint
from hf_interp.weights.soups import write_soup

Tensors = dict[str, torch.Tensor]
IDS = torch.tensor([[3, 5, 7, 11, 2, 1], [4, 1, 6, 8, 9, 30]])
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NEW = [60, 61, 62]


def lora(*targets: str, **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=list(targets), r=4, task_type="CAUSAL_LM", **options)


def write_adapter(folder: Path, config: Any, *, tied: bool, rows: int = 60, in_place: bool = False) -> tuple[Any, Any]:
    """Write M₀ and an adapter that was trained on it, with more or fewer rows; return both in memory."""
    base = make_model("llama", "CAUSAL_LM", tie_word_embeddings=tied, initializer_range=0.3)
    base.save_pretrained(folder / "base")
    plain = type(base).from_pretrained(folder / "base")
    set_seed(5)
    if rows != 60:
        plain.resize_token_embeddings(rows, mean_resizing=False)
    model = peft.get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or (in_place and name.endswith("embed_tokens.weight")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter", save_embedding_layers=True if in_place else "auto")
    return base, model


def plain_weights(model: Any) -> Tensors:
    """M_θ, computed from what is in a PEFT model, without PEFT; every layer with a weight of its own."""
    root, adapter = model.get_base_model(), "default"
    weights: Tensors = {}
    for path, module in root.named_modules():
        if hasattr(module, "modules_to_save"):
            weights[f"{path}.weight"] = module.modules_to_save[adapter].weight
        elif hasattr(module, "trainable_tokens_delta"):
            table = module.get_base_layer().weight.clone()
            table[model.active_peft_config.trainable_token_indices] = module.trainable_tokens_delta[adapter]
            weights[f"{path.removesuffix('.token_adapter')}.weight"] = table
        elif adapter in getattr(module, "lora_A", {}):
            delta = module.lora_B[adapter].weight @ module.lora_A[adapter].weight
            weights[f"{path}.weight"] = module.get_base_layer().weight + module.scaling[adapter] * delta
        elif adapter in getattr(module, "lora_embedding_A", {}):
            delta = (module.lora_embedding_B[adapter] @ module.lora_embedding_A[adapter]).T
            weights[f"{path}.weight"] = module.get_base_layer().weight + module.scaling[adapter] * delta
        elif isinstance(module, nn.Linear | nn.Embedding) and not any(
            part in path for part in ("lora_", "base_layer", "original_module", "modules_to_save")
        ):
            weights.setdefault(f"{path}.weight", module.weight)
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def expected_weights(base: Any, model: Any, alpha: float) -> Tensors:
    """M_α of plain tensors: common rows interpolated, further ones those of M_θ."""
    before, after = base.state_dict(), plain_weights(model)
    for name, tensor in after.items():
        rows = min(len(tensor), len(before[name]))
        tensor[:rows] = torch.lerp(before[name][:rows], tensor[:rows], alpha)
    return after


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


GROWN = {
    "copied": lambda: lora("v_proj", modules_to_save=["embed_tokens", "lm_head"]),
    "input copied": lambda: lora("v_proj", modules_to_save=["embed_tokens"]),
    "rows": lambda: lora("v_proj", trainable_token_indices=[3, *NEW]),
    "factors": lambda: lora("v_proj", "embed_tokens"),
    "stored": lambda: lora("v_proj"),
}


def grown() -> list[Any]:
    """Cases that leave every row of M_θ in the adapter; of a model with fewer rows, one is quick."""
    cases = [(case, tied, rows) for case in GROWN for tied in (False, True) for rows in (63, 52)]
    left = ("rows", False, 52), ("rows", True, 52), ("factors", False, 63)
    slow = {case: pytest.mark.slow for case in cases if case[0] != "copied" and case[2] == 52}
    return [pytest.param(*case, marks=slow.get(case, ())) for case in cases if case not in left]


def merged(tmp_path: Path, base: Any, model: Any, alpha: float, *, within: float) -> tuple[Any, InterpolationReport]:
    """The model that an adapter is merged into, which loads whole and has the weights that are expected."""
    report = interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / str(alpha), alpha, merge=True)
    found, loading = type(base).from_pretrained(tmp_path / str(alpha), output_loading_info=True)
    assert not any(loading.values())
    for name, tensor in expected_weights(base, model, alpha).items():
        assert torch.allclose(found.state_dict()[name], tensor, atol=within), name
    return found, report


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "tied", "rows"), grown())
def test_rows_that_the_base_lacks_are_the_finetuned_ones(case: str, tied: bool, rows: int, tmp_path: Path) -> None:
    base, model = write_adapter(tmp_path, GROWN[case](), tied=tied, rows=rows)
    after = logits(model)
    for alpha in (0.25, 1.0):
        found, report = merged(tmp_path, base, model, alpha, within=1e-6)
        assert {decision.vocabulary_axis for decision in report.decisions if decision.name == EMBED} == {0}
    assert torch.allclose(logits(found), after, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_rows_that_nobody_brings_are_not_made_up(tmp_path: Path) -> None:
    write_adapter(tmp_path, GROWN["factors"](), tied=False, rows=63)
    with pytest.raises(ValueError, match="must bring the rows of 3 words that `base` lacks, but has none of 'lm_head'"):
        interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.25)
    assert not (tmp_path / "out").exists()


TIED = {
    "input": lambda: lora("v_proj", "embed_tokens"),
    "output": lambda: lora("v_proj", "lm_head"),
    "both": lambda: lora("v_proj", "embed_tokens", "lm_head"),
    "both, tied": lambda: lora("v_proj", "embed_tokens", "lm_head", ensure_weight_tying=True),
    "output copied": lambda: lora("v_proj", modules_to_save=["lm_head"]),
    "rows": lambda: lora("v_proj", trainable_token_indices=[3, 7]),
    "neither": lambda: lora("v_proj"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TIED)
def test_an_adapter_on_tied_tables_is_merged_into_what_it_changes(case: str, tmp_path: Path) -> None:
    base, model = write_adapter(tmp_path, TIED[case](), tied=True)
    after = logits(model)
    for alpha in (0.0, 0.25, 1.0):
        found, _ = merged(tmp_path, base, model, alpha, within=1e-5)
        if alpha == 0:
            assert torch.allclose(logits(found), logits(base), atol=1e-5)
    assert torch.allclose(logits(found), after, atol=1e-4)
    assert found.config.tie_word_embeddings == (case in ("both, tied", "rows", "neither"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_was_trained_in_place_is_interpolated_against_the_base(tied: bool, tmp_path: Path) -> None:
    base, model = write_adapter(tmp_path, lora("v_proj"), tied=tied, in_place=True)
    report = interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.25)
    found = type(base).from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in expected_weights(base, model, 0.25).items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    assert report.notes == ["merged, because an adapter of kind LORA with a table of words of its own cannot be scaled"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arch", "table"), [("t5", "shared"), ("bart", "shared"), ("t5", "lm_head"), ("bart", "lm_head")]
)
def test_a_copied_table_of_an_encoder_and_decoder_is_written_apart(arch: str, table: str, tmp_path: Path) -> None:
    make_model(arch, "SEQ_2_SEQ_LM").save_pretrained(tmp_path / "base")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    targets = {"t5": ["q"], "bart": ["q_proj"]}[arch]
    config = peft.LoraConfig(target_modules=targets, modules_to_save=[table], task_type="SEQ_2_SEQ_LM")
    model = move(peft.get_peft_model(base, config).eval())
    model.save_pretrained(tmp_path / "adapter")
    interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 1.0, merge=True)
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        one, other = (each(input_ids=IDS, decoder_input_ids=IDS).logits for each in (found, model))
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("merge", [False, True])
def test_replicated_layers_get_weights_of_their_own(merge: bool, tmp_path: Path) -> None:
    base, model = write_adapter(tmp_path, lora("v_proj", layer_replication=[[0, 2], [1, 3]]), tied=False)
    interpolate_adapter_checkpoint(None, tmp_path / "adapter", tmp_path / "out", 0.25, merge=merge)
    with AdapterInterpolation(model) as live:
        live.set_alpha(0.25)
        expected = logits(model)
    if merge:
        found = type(base).from_pretrained(tmp_path / "out")
    else:
        found = peft.PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert found.config.num_hidden_layers == 4
    assert torch.allclose(logits(found), expected, atol=1e-5)


# Checkpoints of models of images, of sound and of several kinds of data: merged as those of text are.


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
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
STAGES = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 2]}
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
    "images by window": lambda: model_of("SwinForImageClassification", "SwinConfig", **WINDOWS),
    "images by stage": lambda: model_of("ConvNextForImageClassification", "ConvNextConfig", **STAGES),
    "sound": lambda: model_of("Wav2Vec2ForCTC", "Wav2Vec2Config", **SOUND),
    "spectra": lambda: model_of(
        "ASTForAudioClassification", "ASTConfig", **SIZES, patch_size=4, num_mel_bins=8, max_length=8
    ),
    "speech": lambda: model_of("WhisperForConditionalGeneration", "WhisperConfig", **SPEECH, decoder_start_token_id=1),
    "images and texts": lambda: model_of("CLIPModel", "CLIPConfig", text_config=TEXT, vision_config=IMAGE),
    "sigmoid of images and texts": lambda: model_of(
        "SiglipModel", "SiglipConfig", text_config=TEXT, vision_config=IMAGE
    ),
    "captions": captions,
    "chat about images": chat_about_images,
}


def save_pair(folder: Path, base: Any, finetuned: Any) -> tuple[Path, Path]:
    base.save_pretrained(folder / "base"), move(finetuned, 0.1).save_pretrained(folder / "tuned")
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("segments", "captions", "chat about images")])
def test_models_of_images_and_sound_have_their_weights_by_depth_and_in_a_soup(kind: str, tmp_path: Path) -> None:
    """wav2vec2's weight norm, Whisper's ties, ViT's old names, stages: against float64, by the names of the model."""
    set_seed(0)
    base = KINDS[kind]()
    folders = save_pair(tmp_path, base, tuned := copy.deepcopy(base))
    first, second = base.state_dict(), tuned.state_dict()
    places = {name: re.search(r"^(.*?\b(?:layers?|stages))\.(\d+)\.", name) for name in first}
    last = {each[1]: max(int(other[2]) for other in places.values() if other and other[1] == each[1])
            for each in places.values() if each}  # fmt: skip
    alphas = {name: 0.2 if each is None else 0.2 + 0.6 * (int(each[2]) / last[each[1]] if last[each[1]] else 1)
              for name, each in places.items()}  # fmt: skip
    assert {0.2, 0.8} <= {round(alpha, 9) for alpha in alphas.values()}
    interpolate_checkpoints(*folders, tmp_path / "out", AlphaByDepth(0.2, 0.8))
    live, soup = (KINDS[kind]() for _ in range(2))
    interpolate_weights(base, tuned, AlphaByDepth(0.2, 0.8), into=live)
    write_soup({"first": folders[0], "second": folders[1]}, soup)
    merged = type(base).from_pretrained(tmp_path / "out")
    for name, tensor in first.items():
        pair = tensor.double(), second[name].double()
        expected = alphas[name] * pair[1] + (1 - alphas[name]) * pair[0]
        for model in (live, merged):
            torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(soup.state_dict()[name].double(), sum(pair) / 2, rtol=1e-6, atol=1e-7)
    if kind == "speech":
        assert merged.proj_out.weight is merged.model.decoder.embed_tokens.weight


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
