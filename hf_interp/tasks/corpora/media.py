"""Images and sound: from the files of a corpus to what a model takes.

A corpus keeps the bytes of its files. They are decoded when a batch is made, so that a corpus takes no more room than
its files do, and an image can be another one at every step.
"""

import inspect
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import datasets
import fsspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hf_interp.losses.per_example import IGNORE_INDEX, pair_label
from hf_interp.tasks.corpora.labels import BadValueError
from hf_interp.tasks.recipe import Recipe
from hf_interp.utils.errors import check_known, import_extra

AUGMENTATION = {"shift": 1.0, "rotate": 180.0, "zoom": 0.9, "flip": 1.0}
"""What may be done to an image of training, and the most of it."""

_PILLOW = ("PIL.Image", "Images need Pillow", "vision")
EXTRAS = {
    "image": _PILLOW,
    "image-text": _PILLOW,
    "audio": ("soundfile", "Sound needs soundfile", "audio"),
}
"""By what a model takes: what decodes it, as `import_extra` takes it."""

MOST_ASKED: dict[str, tuple[float, str]] = {"image": (50_000_000, "pixels"), "audio": (60, "seconds")}
"""By the kind, how much of it one question may hold."""

OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor of images and texts makes for every token."""

Media = dict[str, torch.Tensor]


def file_bytes(value: Any, kind: str, folders: Sequence[Path]) -> bytes:
    """Return the bytes of a file, which a row holds or names.

    Args:
        value: bytes, a path, or a mapping with `bytes` and `path`, as `datasets` has it.
        kind: image or audio.
        folders: where the corpus' own files are, to which paths are relative.
    """
    found = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
    if isinstance(found, str) and found:
        found = _read_path(found, kind, folders)
    if not isinstance(found, bytes) or not found:
        raise BadValueError(f"{value!r:.80} where the file of an {kind} belongs", "Remove such rows, or mend the file.")
    return found


def read_file(value: Any, kind: str, folders: Sequence[Path]) -> bytes:
    """Return the bytes of a file as `file_bytes` does, and make sure that they can be decoded."""
    found = file_bytes(value, kind, folders)
    try:
        DECODERS[kind](found)
    except Exception as error:  # of each library another
        what = f"an {kind} of {len(found):,} bytes that cannot be decoded ({_in_words(error)})"
        raise BadValueError(what, "Remove such rows from the file.") from None
    return found


def _in_words(error: Exception) -> str:
    """Return what an error of another library says, without the address of an object."""
    said = re.sub(r"\s*<[^>]*>", "", " ".join(str(error).split()))
    return (said or type(error).__name__)[:120]


def file_of(value: Any) -> str | None:
    """Return the name of the file that a row has, if it has one."""
    path = value.get("path") if isinstance(value, Mapping) else value
    return path if isinstance(path, str) else None


def _read_path(path: str, kind: str, folders: Sequence[Path]) -> bytes:
    places = [path] if "://" in path else [str(folder / Path(path).expanduser()) for folder in folders]
    for place in places:
        try:
            with fsspec.open(place, "rb") as file:
                return bytes(file.read())
        except OSError:
            continue
    raise BadValueError(
        f"the {kind} {path!r}, which is not there", "Paths are relative to the corpus' file. Mend the path."
    )


def open_image(data: bytes) -> Any:
    """Return an image as PIL has it, upright as its EXIF data say, in three colours of eight bits."""
    with import_extra(*EXTRAS["image"]).open(io.BytesIO(data)) as opened:
        if opened.mode.startswith(("I", "F")):  # all above 255 would be white, silently
            raise ValueError(f"its pixels have more than 8 bits, mode {opened.mode}; save it with 8")
        return import_extra("PIL.ImageOps", *EXTRAS["image"][1:]).exif_transpose(opened).convert("RGB")


def open_sound(data: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """Return a recording as the mean of its channels, (num_samples,), and its samples a second."""
    samples, rate = import_extra(*EXTRAS["audio"]).read(io.BytesIO(data), dtype="float32", always_2d=True)
    if not len(samples):
        raise ValueError("it has no samples")
    mixed = samples.mean(axis=1)
    if not np.isfinite(mixed).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(mixed)):,} of its samples are NaN or infinite")
    return mixed, rate


DECODERS: dict[str, Callable[[bytes], Any]] = {"image": open_image, "audio": open_sound}
"""By the kind of the column: from the bytes of a file to what can be worked with."""


def file_suffix(data: bytes, kind: str) -> str:
    """Return what the name of a file would end with, such as .png."""
    extra = import_extra(*EXTRAS[kind])
    form = extra.open(io.BytesIO(data)).format if kind == "image" else extra.info(io.BytesIO(data)).format
    return f".{str(form).lower()}"


def check_asked(data: bytes, kind: str, heard: float | None = None) -> None:
    """Refuse a file that cannot be decoded, or is more than somebody who asks a page may send, or a model hears."""
    extra = import_extra(*EXTRAS[kind])
    try:
        found = extra.open(io.BytesIO(data)) if kind == "image" else extra.info(io.BytesIO(data))
        size = found.width * found.height if kind == "image" else found.duration
    except Exception as error:  # of each library another
        raise ValueError(f"The {kind} cannot be decoded. Choose another file.") from error
    most, unit = MOST_ASKED[kind]
    most = min(most, heard or most)
    if not 0 < size <= most:
        raise ValueError(f"The {kind} must have at most {most:,} {unit}, and some, got {round(size, 1):,}.")
    try:
        DECODERS[kind](data)
    except Exception as error:
        raise ValueError(f"The {kind} cannot be decoded ({_in_words(error)}). Choose another file.") from error


def resample(samples: npt.NDArray[np.float32], rate: int, wanted: int) -> npt.NDArray[np.float32]:
    """Return a recording with as many samples a second as are wanted, through a filter of many phases."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)


def check_images(recipe: Recipe) -> None:
    """Refuse an augmentation that is not known, or is more than there can be, and what is for sound."""
    if recipe.max_seconds is not None:
        raise ValueError(f"`max_seconds` is for sound, got {recipe.max_seconds} for {recipe.task}. Leave it out.")
    given = recipe.augmentation or {}
    check_known(given, AUGMENTATION, "in `augmentation`")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= AUGMENTATION[name]:
            raise ValueError(f"`augmentation.{name}` must lie in [0, {AUGMENTATION[name]:g}], got {value!r}.")


def check_conversations(recipe: Recipe) -> None:
    """Refuse to change images of which texts speak, and what is for sound."""
    check_images(recipe)
    if recipe.augmentation:
        raise ValueError(
            f"`augmentation` would change what texts speak of, got {recipe.augmentation} for {recipe.task}. Leave it "
            "out."
        )


def check_sound(recipe: Recipe) -> None:
    """Refuse a length that is none, and what is for images."""
    if recipe.augmentation:
        raise ValueError(f"`augmentation` is for images, got {recipe.augmentation} for {recipe.task}. Leave it out.")
    if recipe.max_seconds is not None and not recipe.max_seconds > 0:
        raise ValueError(f"`max_seconds` must be above 0, got {recipe.max_seconds}.")


def augment(
    image: Any, draw: np.random.Generator, *, shift: float = 0, rotate: float = 0, zoom: float = 0, flip: float = 0
) -> Any:
    """Return an image moved, turned and zoomed about its middle, and perhaps mirrored.

    Args:
        image: of PIL.
        draw: decides how far; what comes in from outside is black.
        shift: at most so far either way, as a share of its width and height.
        rotate: at most so many degrees either way.
        zoom: larger or smaller by at most this share.
        flip: the probability of being mirrored.
    """
    pillow, size = import_extra(*EXTRAS["image"]), np.array(image.size)
    angle, scale = math.radians(draw.uniform(-rotate, rotate)), 1 + draw.uniform(-zoom, zoom)
    moved = draw.uniform(-shift, shift, 2) * size
    if draw.random() < flip:
        image = image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    # from a pixel of the result to where it comes from
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    origin = size / 2 - turn @ (size / 2 + moved)
    numbers = np.column_stack([turn, origin]).flatten().tolist()
    return image.transform(image.size, pillow.Transform.AFFINE, numbers, resample=pillow.Resampling.BILINEAR)


class ImageCollator:
    """Makes a batch of images: decodes them, augments those of training, and lets the processor scale them.

    What is drawn depends on the seed and the slot of the example alone.

    Args:
        processor: an image processor of transformers.
        augmentation: see `augment`; nothing by default.
    """

    columns: tuple[str, ...] = ("image",)

    def __init__(self, processor: Any, augmentation: Mapping[str, float] | None = None) -> None:
        self.processor, self.augmentation = processor, dict(augmentation or {})

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Media:
        """Collate for evaluation."""
        return self._make([open_image(each["image"]) for each in examples], examples)

    def collate(self, examples: Sequence[Mapping[str, Any]], numbers: Sequence[int], seed: int) -> Media:
        """Collate for training."""
        images = [open_image(each["image"]) for each in examples]
        if self.augmentation:
            draws = [np.random.default_rng([seed, number]) for number in numbers]
            images = [augment(image, draw, **self.augmentation) for image, draw in zip(images, draws, strict=True)]
        return self._make(images, examples)

    def _make(self, images: Sequence[Any], examples: Sequence[Mapping[str, Any]]) -> Media:
        return {**self.processor(list(images), return_tensors="pt"), **labels_of(examples)}


def is_sigmoid(processor: Any) -> bool:
    """Whether a processor is that of SigLIP, whose texts are all as long and whose loss is another than CLIP's."""
    return type(processor).__name__.startswith("Siglip")


def tokenise_texts(processor: Any, texts: Sequence[str], max_length: int) -> dict[str, list[list[int]]]:
    """Return the tokens of texts, cut to `max_length` or to what the tokenizer says that its model takes."""
    most = min(max_length, processor.tokenizer.model_max_length)
    padding = "max_length" if is_sigmoid(processor) else False
    return dict(processor.tokenizer(list(texts), truncation=True, max_length=most, padding=padding))


def key_of_choices(recipe: Recipe) -> int:
    """Return the number by which a batch of images knows the texts that they are judged by."""
    return crc32(repr((recipe.zero_shot_template, recipe.label_names)).encode())


def encode_images_texts(processor: Any, recipe: Recipe) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    """image, text → image, input_ids, ...: (length,), labels: see `pair_label`; image, label → image, labels, choices.

    The collator decodes images, and gives labels the texts that `choices` stands for.
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = batch["image"]
        if "label" in batch:
            return {"image": images, "labels": batch["label"], "choices": [key_of_choices(recipe)] * len(images)}
        labels = [pair_label(image, text) for image, text in zip(images, batch["text"], strict=True)]
        return {"image": images, **tokenise_texts(processor, batch["text"], recipe.max_length), "labels": labels}

    return encode


class PairCollator(ImageCollator):
    """Makes a batch of images with a text each, or with the texts of all classes.

    Args:
        processor: of transformers, for images and texts.
        recipe: its evaluation sets may be of images with labels.
    """

    columns = ("image", "choices")

    def __init__(self, processor: Any, recipe: Recipe) -> None:
        super().__init__(processor.image_processor, recipe.augmentation)
        self.tokenizer, self.choices = processor.tokenizer, {}
        for own in sets_of(recipe):
            template = own.zero_shot_template
            if template is not None:
                texts = [template.replace("{}", name) for name in own.label_names or []]
                self.choices[key_of_choices(own)] = tokenise_texts(processor, texts, recipe.max_length)

    def _make(self, images: Sequence[Any], examples: Sequence[Mapping[str, Any]]) -> Media:
        if "choices" in examples[0]:
            texts = self.choices[examples[0]["choices"]]
        else:
            names = [name for name in self.tokenizer.model_input_names if name in examples[0]]
            texts = {name: [each[name] for each in examples] for name in names}
        return {
            **self.processor(list(images), return_tensors="pt"),
            **self.tokenizer.pad(texts, return_tensors="pt"),
            **labels_of(examples),
        }


def sets_of(recipe: Recipe) -> list[Recipe]:
    """Return a recipe as each of its evaluation sets sees it."""
    sets = [*recipe.eval_corpora.values(), *recipe.validation_corpora.values()]
    return [recipe.for_corpus(each, trains=False) for each in sets]


def check_images_texts(recipe: Recipe) -> None:
    """Refuse a template without a place for a label, sets without labels for it, and what pairs cannot have."""
    check_images(recipe)
    for name, corpus in recipe.corpora.items():
        if corpus.label_names or corpus.zero_shot_template or corpus.objective:
            raise ValueError(
                f"`corpora.{name}` has images with texts: `label_names`, `zero_shot_template` and `objective` are not "
                "for it. Leave them out."
            )
    for own in sets_of(recipe):
        template = own.zero_shot_template
        if template is not None and "{}" not in template:
            raise ValueError(f"`zero_shot_template` needs `{{}}` where the name of a label belongs, got {template!r}.")
        if template is not None and not own.label_names:
            raise ValueError("`zero_shot_template` needs `label_names`, of the recipe or of every set. List them.")


class ConversationCollator:
    """Makes a batch of texts, each with the images that it speaks of, or none.

    Args:
        processor: of transformers, for images and texts.
    """

    columns = ("text", "images")

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Media:
        """Collate, in training as in evaluation."""
        images = [[open_image(each) for each in example["images"]] for example in examples]
        made = self.processor(
            text=[example["text"] for example in examples],
            images=images if any(images) else None,
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_tensors="pt",
        )
        labels = labels_of(examples)
        length = labels["labels"].shape[1]  # the most that `max_length` leaves of a text
        cut = {name: made[name][:, :length] for name in OF_TOKENS if name in made}
        return {**made, **cut, **labels}

    def collate(self, examples: Sequence[Mapping[str, Any]], numbers: Sequence[int], seed: int) -> Media:
        """Collate for training, where nothing is drawn."""
        return self(examples)


class SoundCollator:
    """Makes a batch of sound: decodes it, gives it the rate of the model, cuts it, and pads it to the longest.

    Args:
        processor: a feature extractor of transformers.
        max_seconds: what is longer is cut.
    """

    columns = ("audio",)

    def __init__(self, processor: Any, max_seconds: float | None = None) -> None:
        self.processor, self.max_seconds = processor, max_seconds
        # some make all of one length, each in its own way, and are left to it
        padding = inspect.signature(type(processor).__call__).parameters.get("padding")
        self._options = {"padding": True} if padding is not None and padding.default is False else {}

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Media:
        """Collate, in training as in evaluation."""
        rate = self.processor.sampling_rate
        most = None if self.max_seconds is None else max(1, round(self.max_seconds * rate))
        sounds = [resample(*open_sound(each["audio"]), rate)[:most] for each in examples]
        made = self.processor(sounds, sampling_rate=rate, return_tensors="pt", **self._options)
        return {**made, **labels_of(examples)}

    def collate(self, examples: Sequence[Mapping[str, Any]], numbers: Sequence[int], seed: int) -> Media:
        """Collate for training, where nothing is drawn."""
        return self(examples)


def labels_of(examples: Sequence[Mapping[str, Any]]) -> Media:
    """Return the labels of examples as a tensor, if they have any; lists of them are filled up with −100."""
    labels = [torch.tensor(each["labels"]) for each in examples if "labels" in each]
    if not labels:
        return {}
    if not labels[0].dim():
        return {"labels": torch.stack(labels)}
    return {"labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)}


def describe(example: Mapping[str, Any]) -> str:
    """Say in words what of an example is image or sound."""
    if "audio" in example:
        samples, rate = open_sound(example["audio"])
        return f"a recording of {len(samples) / rate:.2f} seconds at {rate:,} Hz"
    width, height = open_image(example["image"]).size
    return f"an image of {width}×{height} pixels"


def _longest(dataset: Any) -> Any:
    """Return the example of a set with the longest text, or the first."""
    if "input_ids" not in (dataset.column_names or []) or isinstance(dataset, datasets.IterableDataset):
        return next(iter(dataset))
    return dataset[int(np.argmax([len(ids) for ids in dataset["input_ids"]]))]


def check_media(model: Any, collator: Any, sets: Mapping[str, Any], *, has_labels: bool = True) -> None:
    """Refuse a model that does not take what its processor makes of an example of a set, but for labels.

    Of texts it is the longest.
    """
    was_training = model.training
    for name, dataset in sets.items():
        made = collator([_longest(dataset)])
        inputs = {key: tensor for key, tensor in made.items() if has_labels or key != "labels"}
        try:
            with torch.no_grad():
                model.eval()(**{key: tensor.to(model.device) for key, tensor in inputs.items()})
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in inputs.items())
            what = " ".join(str(error).split())
            raise ValueError(
                f"The model does not take what its processor makes of `{name}` ({shapes}): {what:.200} Take the "
                "processor's settings (preprocessor_config.json) of the same model."
            ) from error
    model.train(was_training)
