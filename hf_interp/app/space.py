"""The page of the slider as a folder for a Space on the Hugging Face Hub, and back from such a folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_interp.app.examples import Example, Source, read_examples
from hf_interp.reporting.card import is_hub_id
from hf_interp.reporting.curve import AlphaCurve, load_curve
from hf_interp.reporting.hub import model_files, stage_model
from hf_interp.tasks.recipe import Recipe
from hf_interp.utils.files import new_folder, read_json, write_json
from hf_interp.utils.redaction import without_local_paths
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME, CURVE_NAME
from hf_interp.utils.task_info import TASK_INFOS
from hf_interp.weights.model_folder import check_output

SETTINGS_NAME, EXAMPLES_NAME = "slider.json", "examples.jsonl"
MAX_BYTES = 10**9
"""Of the models that are copied into a Space; larger ones belong into a repository of their own."""
BASE, FINETUNED = "base", "finetuned"
"""Folders of models that are copied."""

FIELDS = ("task", "label_names", "problem_type", "max_length", "source_prefix", "source_lang", "target_lang")
"""Of the recipe, what the page goes by."""
PACKAGES = ("gradio", "torch", "transformers", "tokenizers", "safetensors", "numpy")
"""What is pinned beside hf_interp, which brings the rest."""

APP = '''"""The α slider, written by `hf-interp app --space`."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait are slow on a busy machine

from hf_interp.app.page import serve_space  # noqa: E402

serve_space(Path(__file__).parent)
'''


def write_space(
    source: Source, output_dir: str | Path, *, max_new_tokens: int = 32, chats: bool | None = None
) -> list[str]:
    """Write the folder of a Space: app.py, requirements.txt, README.md, the page's settings, and its curve.

    Models are named where they are names on the Hub, and copied where they are folders; of folders that is the
    safetensors, the configuration and the tokenizer. Paths of this machine are reduced to their last part. Texts of a
    run's data stay here, since a Space may be public. After an error there is no new folder.

    Args:
        source: what the page is about.
        output_dir: a new or empty folder.
        max_new_tokens: the longest answer of a model that generates.
        chats: see `AlphaSlider`.

    Returns:
        Notes on what was done.

    Raises:
        ValueError: for an output that is taken, or models that are neither names on the Hub nor folders with
            safetensors of at most 1 GB together.
    """
    names = {BASE: source.recipe.model_name_or_path, FINETUNED: source.finetuned}
    folders = {part: Path(name).resolve() for part, name in names.items() if Path(name).is_dir()}
    output = Path(output_dir).resolve()
    check_output(output, list(folders.values()))
    for part, name in names.items():
        if part not in folders and not is_hub_id(name):
            raise ValueError(f"`{part}` must be a folder or the name of a model on the Hub, got {name!r}.")
    _check_weights(folders)
    is_adapter = (folders[FINETUNED] / ADAPTER_CONFIG_NAME).is_file() if FINETUNED in folders else True
    notes = [f"{part}: copied from the folder {folder.name!r}" for part, folder in folders.items()]
    with new_folder(output) as folder:
        for part, place in folders.items():
            stage_model(place, folder / part)
            for code in (folder / part).rglob("*.py"):  # none is ever run
                code.unlink()
        settings = {
            **{part: part if part in folders else name for part, name in names.items()},
            "revision": "main" if BASE in folders else source.recipe.model_revision,
            **{name: getattr(source.recipe, name) for name in FIELDS},
            "max_new_tokens": max_new_tokens,
            "chats": _chats(source.recipe) if chats is None else chats,
            "has_pairs": source.has_pairs,
            "title": source.title,
        }
        write_json(folder / SETTINGS_NAME, settings, indent=2)
        if source.curve is not None:
            write_json(folder / CURVE_NAME, without_local_paths(asdict(source.curve)), indent=2)
        if source.examples_are_data:
            notes.append("examples: those of the run's data were left out; name a file to have some (--examples)")
        else:
            lines = [json.dumps(asdict(example), ensure_ascii=False) for example in source.examples]
            (folder / EXAMPLES_NAME).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder / "app.py").write_text(APP, encoding="utf-8")
        (folder / "requirements.txt").write_text(_requirements(is_adapter), encoding="utf-8")
        (folder / "README.md").write_text(_readme(source, names, folders), encoding="utf-8")
    return notes


def load_space(folder: Path) -> tuple[Source, dict[str, Any]]:
    """What a Space's page is about, and further arguments of `app.serve_source`.

    Raises:
        ValueError: if the folder holds no settings.
    """
    settings = read_json(folder / SETTINGS_NAME)
    if not isinstance(settings, dict):
        raise ValueError(f"{folder.name!r} must be a folder that `hf-interp app --space` wrote: no {SETTINGS_NAME}.")
    base, finetuned = (
        str(folder / settings[part]) if (folder / settings[part]).is_dir() else settings[part]
        for part in (BASE, FINETUNED)
    )
    fields = {name: settings[name] for name in FIELDS}
    recipe = Recipe(model_name_or_path=base, corpora={}, model_revision=settings["revision"], **fields)
    curve: AlphaCurve | None = load_curve(folder / CURVE_NAME) if (folder / CURVE_NAME).is_file() else None
    path = folder / EXAMPLES_NAME
    source = Source(
        recipe=recipe,
        finetuned=finetuned,
        title=settings["title"],
        curve=curve,
        examples=read_examples(path)
        if path.is_file()
        else [Example(text=text) for text in TASK_INFOS[recipe.task].examples],
        has_pairs=settings["has_pairs"],
    )
    return source, {name: settings[name] for name in ("max_new_tokens", "chats")}


def _chats(recipe: Recipe) -> bool | None:
    """Whether a run's corpora are dialogues; `None` of a pair of models, whose tokenizer tells."""
    return any(corpus.messages_column for corpus in recipe.corpora.values()) if recipe.corpora else None


def _check_weights(folders: Mapping[str, Path]) -> None:
    """Refuse folders that cannot be copied, before anything is."""
    total = 0
    for part, folder in folders.items():
        files = model_files(folder)
        if not any(path.suffix == ".safetensors" for path in files):
            raise ValueError(
                f"`{part}` must hold safetensors to be copied into a Space, and {str(folder)!r} has none. Load it and "
                "`save_pretrained` it, or push it to the Hub and give its name."
            )
        total += sum(path.stat().st_size for path in files)
    if total > MAX_BYTES:
        raise ValueError(
            f"The models to be copied into the Space must have at most {MAX_BYTES / 1e9:g} GB, got {total / 1e9:.2f} "
            "GB. Push them to the Hub (`hf-interp push`) and give their names (--base, --finetuned)."
        )


def _requirements(is_adapter: bool) -> str:
    packages = [*PACKAGES, *(["peft"] if is_adapter else [])]
    pins = [f"hf_interp[app]=={_version('hf_interp')}", *(f"{name}=={_version(name)}" for name in packages)]
    return "".join(f"{pin}\n" for pin in pins)


def _version(package: str) -> str:
    """The version in use, without what names a build (2.13.0+cpu)."""
    return metadata.version(package).partition("+")[0]


def _readme(source: Source, names: Mapping[str, str], folders: Mapping[str, Path]) -> str:
    from huggingface_hub import SpaceCardData

    models = list(dict.fromkeys(name for part, name in names.items() if part not in folders))
    data = SpaceCardData(
        title=f"α slider: {source.title}",
        emoji="🎚️",
        colorFrom="blue",
        colorTo="red",
        sdk="gradio",
        sdk_version=_version("gradio"),
        app_file="app.py",
        pinned=False,
        models=models or None,
    )
    return f"""---
{data.to_yaml()}
---

A slider for the α of M_α = α·M_θ + (1 − α)·M₀: what the pretrained model M₀, the fine-tuned model M_θ and every model
between them make of a text.

The page is `hf_interp.app`; `{SETTINGS_NAME}` says of what.
"""
