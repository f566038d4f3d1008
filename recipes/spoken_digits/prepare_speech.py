"""Write the tables of both sides and an untrained model: what the recipe needs beside the recordings.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python recipes/spoken_digits/prepare_speech.py --recordings free-spoken-digit-dataset/recordings

The recordings are called `<digit>_<speaker>_<number>.wav`. The speakers of the domain are kept apart from all others.
Of every digit and speaker the numbers 0 to 4 are for the test, as their source has it, and 5 to 9 for validation.
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, set_seed

LABELS = [str(digit) for digit in range(10)]
DOMAIN = ("george", "lucas")
SHAPE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
FRAMES = {"num_mel_bins": 32, "max_length": 64}
"""Of 10 milliseconds each: 0.64 seconds of a recording are read."""


def write_tables(recordings: Path, folder: Path) -> dict[str, int]:
    """Write `<side>_<split>.jsonl`, with paths of recordings relative to the folder; return the rows of each."""
    rows = defaultdict(list)
    for path in sorted(recordings.glob("*_*_*.wav")):
        digit, speaker, number = path.stem.split("_")
        side = "domain" if speaker in DOMAIN else "general"
        split = "test" if int(number) < 5 else "validation" if int(number) < 10 else "train"
        row = {"audio": os.path.relpath(path, folder), "label": digit, "speaker": speaker}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, required=True, help="the folder of the .wav files")
    parser.add_argument("--output", type=Path, default=Path("runs/spoken_digits"), help="default: %(default)s")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    counts = write_tables(args.recordings, args.output)
    write_model(args.output / "untrained")
    print(f"{', '.join(f'{count:,} for {name}' for name, count in counts.items())}, and a model, are in {args.output}.")


if __name__ == "__main__":
    main()
