"""Toy images: squares of one grey on black, whose label is where they stand, and a ViT of one layer for them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import ViTConfig, ViTForImageClassification, set_seed
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


def write_parquet(path: Path, numbers: Sequence[int], side: str = "general") -> Path:
    """Write images and labels as `datasets` does."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=PLACES)})
    rows = {"image": [{"bytes": toy_png(number, side)} for number in numbers], "label": [each % 2 for each in numbers]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def write_table(path: Path, numbers: Sequence[int], side: str = "general") -> Path:
    """Write JSON lines with paths of images beside them."""
    lines = []
    for number in numbers:
        name = f"images/{side}_{number}.png"
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(toy_png(number, side))
        lines.append(json.dumps({"image": name, "label": PLACES[number % 2]}) + "\n")
    path.write_text("".join(lines), "utf-8")
    return path


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
