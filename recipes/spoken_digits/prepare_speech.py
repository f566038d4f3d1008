"""Write the tables of both sides and an untrained model: what the recipes need beside the recordings.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python recipes/spoken_digits/prepare_speech.py --recordings free-spoken-digit-dataset/recordings [--transcribe]

The recordings are called `<digit>_<speaker>_<number>.wav`. The speakers of the domain are kept apart from all others.
Of every digit and speaker the numbers 0 to 4 are for the test, as their source has it, and 5 to 9 for validation; 5 to
14 with `--transcribe`, which writes the tables and the model of `transcribe.yaml` instead of those of `speakers.yaml`.
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    set_seed,
)

LABELS = [str(digit) for digit in range(10)]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MARKS = ["<pad>", "<s>", "</s>", "<unk>", "|", *sorted(set("".join(WORDS)))]
"""The vocabulary of a transcript: <pad> is CTC's blank, | stands for spaces."""
DOMAIN = ("george", "lucas")
SHAPE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
FRAMES = {"num_mel_bins": 32, "max_length": 64}
"""Of 10 milliseconds each: 0.64 seconds of a recording are read."""
SHAPE_OF_CTC = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
LAYERS_OF_CTC = {"conv_dim": [64] * 4, "conv_kernel": [16, 4, 4, 4], "conv_stride": [8, 3, 2, 2]}
"""One frame for every 96 samples: 12 milliseconds."""
PLACES = ("hidden", "attention", "feat_proj", "activation", "final")
NO_DROPOUT = dict.fromkeys([f"{place}_dropout" for place in PLACES], 0.0)


def write_tables(recordings: Path, folder: Path, num_validation: int) -> dict[str, int]:
    """Write `<side>_<split>.jsonl`, with paths of recordings relative to the folder; return the rows of each."""
    rows = defaultdict(list)
    for path in sorted(recordings.glob("*_*_*.wav")):
        digit, speaker, number = path.stem.split("_")
        side = "domain" if speaker in DOMAIN else "general"
        split = "test" if int(number) < 5 else "validation" if int(number) < 5 + num_validation else "train"
        row = {"audio": os.path.relpath(path, folder), "label": digit, "text": WORDS[int(digit)], "speaker": speaker}
        rows[f"{side}_{split}"].append(json.dumps(row) + "\n")
    if not rows:
        raise SystemExit(f"There are no recordings such as 7_george_32.wav in {str(recordings)!r}.")
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: len(lines) for name, lines in rows.items()}


def write_model(folder: Path) -> None:
    """Write an untrained audio spectrogram transformer of 0.2 million parameters with its feature extractor."""
    set_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: place for place, label in enumerate(LABELS)}}
    config = ASTConfig(patch_size=8, frequency_stride=8, time_stride=8, **FRAMES, **SHAPE, **labels)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(sampling_rate=8000, **FRAMES).save_pretrained(folder)


def write_transcriber(folder: Path) -> None:
    """Write an untrained wav2vec2 for CTC of 0.3 million parameters with its processor, which writes characters."""
    set_seed(0)
    folder.mkdir(exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({mark: place for place, mark in enumerate(MARKS)}), encoding="utf-8")
    heard = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "apply_spec_augment": False, "layerdrop": 0.0}
    places = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    ids = {"vocab_size": len(MARKS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Wav2Vec2Config(**SHAPE_OF_CTC, **LAYERS_OF_CTC, **heard, **places, **ids, **NO_DROPOUT)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, required=True, help="the folder of the .wav files")
    parser.add_argument("--output", type=Path, default=Path("runs/spoken_digits"), help="default: %(default)s")
    parser.add_argument("--transcribe", action="store_true", help="for transcribe.yaml")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    counts = write_tables(args.recordings, args.output, num_validation=10 if args.transcribe else 5)
    (write_transcriber if args.transcribe else write_model)(args.output / "untrained")
    print(f"{', '.join(f'{count:,} for {name}' for name, count in counts.items())}, and a model, are in {args.output}.")


if __name__ == "__main__":
    main()
