"""Speech recognition: recordings and their transcripts, for models with CTC and for encoder-decoders.

Which of both a model is, its configuration tells: one without a decoder is trained by CTC (Graves et al. 2006), which
gives a token, or none (the *blank*), for every frame; one with a decoder, such as Whisper, writes the transcript.
"""

import io
import itertools
import math
from collections import Counter
from typing import Any

import datasets
import torch
from transformers import AutoConfig

from hf_interp.tasks.corpora.loading import RowError
from hf_interp.tasks.corpora.media import EXTRAS
from hf_interp.tasks.encoding import Batch, Encode, encode_targets
from hf_interp.tasks.recipe import Recipe
from hf_interp.utils.errors import import_extra, reading

MOST_CHARACTERS = 10
"""That an error names."""


def speech_config(recipe: Recipe) -> Any:
    """Return the configuration of a recipe's model."""
    with reading(f"The model {recipe.model_name_or_path!r}"):
        return AutoConfig.from_pretrained(
            recipe.model_name_or_path, revision=recipe.model_revision, trust_remote_code=recipe.trust_remote_code
        )


def is_ctc(recipe: Recipe) -> bool:
    """Whether the model of a recipe is trained by CTC."""
    return not speech_config(recipe).is_encoder_decoder


def check_speech(recipe: Recipe) -> None:
    """Refuse what is for images, and to cut a recording, whose transcript would go on."""
    if recipe.augmentation:
        raise ValueError(f"`augmentation` is for images, got {recipe.augmentation} for {recipe.task}. Leave it out.")
    if recipe.max_seconds is not None:
        raise ValueError(
            f"`max_seconds` would cut recordings and not their transcripts, got {recipe.max_seconds} for "
            f"{recipe.task}. Leave it out, and split long recordings."
        )


def set_language(processor: Any, recipe: Recipe) -> None:
    """Check that a processor has what transcripts need, and tell a multilingual tokenizer their language."""
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "feature_extractor"):
        raise ValueError(
            f"The model {recipe.model_name_or_path!r} brings no vocabulary for transcripts, but a "
            f"{type(processor).__name__} alone. Put a tokenizer beside it, as docs/modalities.md shows."
        )
    if recipe.target_lang is None:
        return
    if not hasattr(processor.tokenizer, "set_prefix_tokens"):
        raise ValueError(
            f"The tokenizer of {recipe.model_name_or_path!r} knows no languages, got `target_lang`: "
            f"{recipe.target_lang!r}. Leave it out for a model of one language."
        )
    processor.tokenizer.set_prefix_tokens(language=recipe.target_lang, task="transcribe")


def prepare_speech(processor: Any, model: Any, recipe: Recipe) -> None:
    """Let CTC's loss be a mean over examples, and say nothing for padding; or let generation write in a language."""
    if not model.config.is_encoder_decoder:
        model.config.ctc_loss_reduction = "mean"
        model.register_forward_hook(_silence_padding, with_kwargs=True)
    elif recipe.target_lang is not None:
        model.generation_config.language, model.generation_config.task = recipe.target_lang, "transcribe"


def _silence_padding(model: Any, args: Any, kwargs: Any, outputs: Any) -> Any:
    """Predict the blank for padding, of which a model has learnt nothing; an example is then the same in any batch."""
    mask = kwargs.get("attention_mask")
    if model.training or mask is None or (lengths := num_frames(model.config, mask.sum(-1))) is None:
        return outputs
    logits = outputs["logits"]
    is_padding = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
    blank = torch.full_like(logits[0, 0], torch.finfo(logits.dtype).min)
    blank[model.config.pad_token_id] = 0
    outputs["logits"] = torch.where(is_padding[..., None], blank, logits)
    return outputs


def num_frames(config: Any, samples: Any) -> Any:
    """Return how many frames a model makes of some samples, a number or a tensor; `None` if it is told features."""
    if not hasattr(config, "conv_kernel"):
        return None
    layers = list(zip(config.conv_kernel, config.conv_stride, strict=True))
    if getattr(config, "add_adapter", False):
        layers += [(1, config.adapter_stride)] * config.num_adapter_layers
    for kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
    return samples


def check_transcripts(name: str, rows: Any, processor: Any, recipe: Recipe) -> None:
    """Refuse what does not fit of a model, its vocabulary and all transcripts of a corpus."""
    config, tokenizer = speech_config(recipe), processor.tokenizer
    most = getattr(config, "max_target_positions", None)
    if config.is_encoder_decoder:
        if most is not None and recipe.max_target_length > most:
            raise ValueError(
                f"`max_target_length` ({recipe.max_target_length}) is more than the model's {most} positions. Lower it."
            )
        return
    if config.pad_token_id != tokenizer.pad_token_id or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The model has {config.vocab_size} outputs with the blank {config.pad_token_id} (`pad_token_id`), but the "
            f"tokenizer {len(tokenizer)} tokens, and pads with {tokenizer.pad_token_id}. Make them the same."
        )
    unknown = _unknown_characters(tokenizer, rows["text"]) if isinstance(rows, datasets.Dataset) else Counter()
    if unknown:
        shown = ", ".join(f"{mark!r} {count:,} times" for mark, count in unknown.most_common(MOST_CHARACTERS))
        rest = f", and {len(unknown) - MOST_CHARACTERS:,} more" if len(unknown) > MOST_CHARACTERS else ""
        raise ValueError(
            f"Corpus {name!r} has {len(unknown):,} characters that the vocabulary of CTC does not know: {shown}{rest}. "
            "Write the transcripts as the vocabulary is, such as in its case and without marks, or add them to it."
        )


def _unknown_characters(tokenizer: Any, texts: Any) -> Counter[str]:
    """Count the characters that a tokenizer has no token for."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    known = {mark: tokenizer.unk_token_id not in tokenizer(mark)["input_ids"] for mark in counts if not mark.isspace()}
    return Counter({mark: counts[mark] for mark, is_known in known.items() if not is_known})


def encode_speech(processor: Any, recipe: Recipe) -> Encode:
    """audio → the same, which the collator decodes; text → labels: (length,), without what a decoder begins with."""
    config, tokenizer = speech_config(recipe), processor.tokenizer
    start = getattr(config, "decoder_start_token_id", None)

    def encode(batch: Batch) -> Batch:
        texts = batch["text"]
        has_decoder = config.is_encoder_decoder
        labels = encode_targets(tokenizer, texts, recipe, "text") if has_decoder else tokenizer(texts)["input_ids"]
        for row, (data, tokens) in enumerate(zip(batch["audio"], labels, strict=True)):
            if not has_decoder and tokenizer.unk_token_id in tokens:
                mark = next(iter(_unknown_characters(tokenizer, [texts[row]])), texts[row])
                what = f"a transcript with {mark!r}, which the vocabulary of CTC does not know"
                raise RowError(row, "text", what, "Write it otherwise, or remove such rows.")
            _check_length(row, data, tokens, processor.feature_extractor, config)
        begun = [tokens[1:] if has_decoder and tokens[:1] == [start] else tokens for tokens in labels]
        return {"audio": batch["audio"], "labels": begun}

    return encode


def _check_length(row: int, data: bytes, tokens: list[int], extractor: Any, config: Any) -> None:
    """Refuse a recording that is longer than a model hears, or too short for its transcript."""
    info = import_extra(*EXTRAS["audio"]).info(io.BytesIO(data))
    samples = math.ceil(info.frames * extractor.sampling_rate / info.samplerate)
    most = getattr(extractor, "n_samples", None)  # of Whisper's, which leaves out what is beyond
    if most is not None and samples > most:
        what = f"a recording of {info.duration:.1f} s, of which the model hears {most / extractor.sampling_rate:g} s"
        raise RowError(row, "audio", what, "Split it, or remove such rows.")
    frames = None if config.is_encoder_decoder else num_frames(config, samples)
    repeats = sum(first == second for first, second in itertools.pairwise(tokens))  # have a blank between
    if frames is not None and frames < len(tokens) + repeats:
        what = f"a transcript that needs {len(tokens) + repeats} frames, for a recording of {max(frames, 0)}"
        raise RowError(row, "text", what, "Mend the transcript, or remove such rows: CTC's loss would be infinite.")


def transcribe(processor: Any, tokens: list[int], *, of_ctc: bool, of_frames: bool = False) -> str:
    """Return tokens as a text: of frames of CTC equal ones are one token, unless a blank is between them."""
    # without the blanks, which are special tokens, those could not be told
    options = {"group_tokens": of_frames} if of_ctc else {"skip_special_tokens": True}
    return str(processor.tokenizer.decode(tokens, **options)).strip()
