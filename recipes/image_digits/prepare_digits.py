"""Write the domain's digits and an untrained model: what the recipe needs beside MNIST. It needs no network.

    python recipes/image_digits/prepare_digits.py

The digits are scikit-learn's `load_digits`, the test set of UCI's Optical Recognition of Handwritten Digits (CC BY
4.0): 1,797 images of 8×8 pixels and 17 grey values, by 13 writers. They are divided with a seed.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, set_seed

SPLITS = {"train": 1000, "validation": 300, "test": 497}
LABELS = [str(digit) for digit in range(10)]
SIZE = 28
SHAPE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
SEED = 13


def picture(grey: Any) -> dict[str, bytes]:
    """Return an image of 17 grey values as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.round(grey * 255 / 16))).save(file, format="PNG")
    return {"bytes": file.getvalue()}


def write_digits(folder: Path) -> None:
    """Write the digits as `optdigits_<split>.parquet`."""
    found = load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.target))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    begin = 0
    for split, count in SPLITS.items():
        rows = order[begin : begin + count]
        columns = {"image": [picture(found.images[row]) for row in rows], "label": found.target[rows].tolist()}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"optdigits_{split}.parquet")
        begin += count


def write_model(folder: Path) -> None:
    """Write an untrained ViT of 0.2 million parameters with its processor."""
    set_seed(0)
    config = ViTConfig(image_size=SIZE, patch_size=7, id2label=dict(enumerate(LABELS)), **SHAPE)
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    ViTImageProcessor(size=size).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/image_digits"), help="default: %(default)s")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    write_digits(folder)
    write_model(folder / "untrained")
    print(f"{', '.join(f'{count:,} for {split}' for split, count in SPLITS.items())}, and a model, are in {folder}.")


if __name__ == "__main__":
    main()
