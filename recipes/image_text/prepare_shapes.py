"""Write a made-up world of coloured shapes with captions, and two untrained models. It needs no network.

    python recipes/image_text/prepare_shapes.py

The general side is of filled shapes on a light ground, eight colours and five shapes. The domain draws them as outlines
on a dark ground with noise, and has other names for four of the colours and two of the shapes.
"""

import argparse
import io
import json
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    set_seed,
)

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (240, 210, 20),
    "purple": (140, 40, 170),
    "orange": (245, 130, 20),
    "pink": (245, 130, 190),
    "brown": (120, 70, 30),
}
SHAPES = {
    "triangle": (3, (1.0,), -90),
    "square": (4, (1.0,), -45),
    "cross": (12, (1.0, 1.0, 0.366), -15),
    "star": (10, (1.0, 0.45), -90),
    "circle": (30, (1.0,), 0),
}
"""Corners, how far from the middle they are in turns, and the angle of the first."""
RENAMED = {"red": "zarn", "blue": "velt", "orange": "mirk", "pink": "tosh", "circle": "boma", "star": "quill"}
PATTERNS = ("a {}", "a picture of a {}")
SIZES = {"general": (6000, 400, 1000), "domain": (200, 400, 1000)}
SPLITS = ("train", "validation", "test")
SIDE, SEED = 24, 13
TOWER = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}


def names(side: str) -> list[tuple[str, str, str]]:
    """Return colour, shape and what they are called together on a side."""
    new = RENAMED if side == "domain" else {}
    return [
        (colour, shape, f"{new.get(colour, colour)} {new.get(shape, shape)}") for colour in COLOURS for shape in SHAPES
    ]


def picture(draw: random.Random, side: str, colour: str, shape: str) -> bytes:
    """Return a shape somewhere in an image, as a PNG file."""
    count, reach, first = SHAPES[shape]
    radius = draw.uniform(0.28, 0.42) * SIDE
    middle = [draw.uniform(radius, SIDE - radius) for _ in range(2)]
    turn, points = math.radians(first + draw.uniform(-10, 10)), []
    for corner in range(count):
        far, angle = 4 * radius * reach[corner % len(reach)], turn + corner * math.tau / count
        points.append((4 * middle[0] + far * math.cos(angle), 4 * middle[1] + far * math.sin(angle)))
    shade = [min(255, max(0, round(part * draw.uniform(0.85, 1.1)))) for part in COLOURS[colour]]
    ground = draw.randint(225, 255) if side == "general" else draw.randint(0, 40)
    image = Image.new("RGB", (4 * SIDE, 4 * SIDE), (ground,) * 3)
    pen = ImageDraw.Draw(image)
    if side == "general":
        pen.polygon(points, fill=tuple(shade))
    else:
        pen.line([*points, *points[:2]], fill=tuple(shade), width=9, joint="curve")
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    noise = np.random.default_rng(draw.getrandbits(32)).normal(0, 5 if side == "general" else 20, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels + noise, 0, 255))).save(file, format="PNG")
    return file.getvalue()


def write_side(folder: Path, side: str) -> None:
    """Write the images of a side, and `<side>_<split>.jsonl` with a caption and a label for each."""
    draw, kinds = random.Random(f"{SEED} {side}"), names(side)
    for split, count in zip(SPLITS, SIZES[side], strict=True):
        rows = []
        place = folder / side / split
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour, shape, name = kinds[number % len(kinds)]
            file = place / f"{number:04}.png"
            file.write_bytes(picture(draw, side, colour, shape))
            caption = draw.choice(PATTERNS).format(name)
            rows.append({"image": str(file.relative_to(folder)), "caption": caption, "name": name})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{side}_{split}.jsonl").write_text(lines, encoding="utf-8")


def make_processor() -> CLIPProcessor:
    """Return a processor that knows the words of both sides."""
    captions = [pattern.format(name) for side in SIZES for *_, name in names(side) for pattern in PATTERNS]
    words = ["[PAD]", "[BOS]", *sorted({word for caption in captions for word in caption.split()}), "[EOS]"]
    end = len(words) - 1  # the last, as CLIP has it
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[EOS]", end), ("[BOS]", 1))
    marks = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **marks)
    return CLIPProcessor(CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False), fast)


def write_models(folder: Path) -> None:
    """Write two untrained models of 0.2 million parameters: a CLIP, and a ViT whose decoder writes captions."""
    processor = make_processor()
    vocabulary = len(processor.tokenizer)
    text = {**TOWER, "num_hidden_layers": 2, "vocab_size": vocabulary, "max_position_embeddings": 12}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": vocabulary - 1}
    vision = {**TOWER, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 4}
    set_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    decoder = BertConfig(**text, is_decoder=True, add_cross_attention=True)
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**vision), decoder)
    for name, model in {"untrained": clip, "untrained_captioner": VisionEncoderDecoderModel(both)}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/image_text"), help="default: %(default)s")
    folder = parser.parse_args().output
    for side in SIZES:
        write_side(folder, side)
    write_models(folder)
    counts = {split: sum(sizes[place] for sizes in SIZES.values()) for place, split in enumerate(SPLITS)}
    print(f"{', '.join(f'{count:,} for {split}' for split, count in counts.items())}, and two models, are in {folder}.")


if __name__ == "__main__":
    main()
