"""The page of the slider as a folder for a Space on the Hugging Face Hub."""

import json
import shutil
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Template

from hf_interp.app.examples import Source
from hf_interp.reporting.card import is_hub_id
from hf_interp.tasks.corpora.media import EXTRAS
from hf_interp.utils.files import new_folder, write_json
from hf_interp.utils.redaction import redact_paths
from hf_interp.utils.run_folder import CURVE_NAME
from hf_interp.utils.task_info import TASK_INFOS
from hf_interp.weights.model_folder import check_output

EXAMPLES_NAME = "examples.jsonl"
FIELDS = (
    *("label_names", "problem_type", "max_length", "max_seconds", "source_prefix", "source_lang", "target_lang"),
    "model_revision",
)
PACKAGES = ("gradio", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")
"""Packages that are pinned beside hf_interp, which brings the rest."""

APP = resources.files("hf_interp.app").joinpath("space.py.jinja")
README = """A slider for the α of M_α = α·M_θ + (1 − α)·M₀: the pretrained model M₀, the fine-tuned model M_θ and every
model between them answer a text side by side. `app.py` says which models.
"""


def write_space(
    source: Source, output_dir: str | Path, *, max_new_tokens: int = 32, chats: bool | None = None
) -> list[str]:
    """Write app.py, requirements.txt and README.md, the run's curve, and examples that are not of its data.

    A Space may be public: paths of this machine are reduced to their last part, and texts of a run's data stay here.

    Args:
        source: the models, which must be on the Hub, their curve, and texts to try.
        output_dir: a new or empty folder; after an error there is none.
        max_new_tokens, chats: see `open_slider`.

    Returns:
        Notes on what was left out.
    """
    models = {"base": source.recipe.model_name_or_path, "finetuned": source.finetuned}
    for part, name in models.items():
        if Path(name).is_dir() or not is_hub_id(name):
            raise ValueError(
                f"`{part}` must be the name of a model on the Hub, got {name!r}. Push it (`hf-interp push`) and give "
                f"its name (--{part})."
            )
    output, takes = Path(output_dir).resolve(), TASK_INFOS[source.recipe.task].takes
    check_output(output, [])
    corpora = source.recipe.corpora.values()
    if chats is None and corpora:  # without a run the tokenizer tells
        chats = any(corpus.is_dialogue for corpus in corpora)
    page: dict[str, Any] = {name: getattr(source.recipe, name) for name in ("task", *FIELDS)}
    page |= {**models, "title": source.title, "has_pairs": source.has_pairs}
    with new_folder(output) as folder:
        if source.curve is not None:
            page["curve"] = CURVE_NAME
            write_json(folder / CURVE_NAME, redact_paths(asdict(source.curve)), indent=2)
        if source.examples and not source.examples_are_data:
            page["examples"] = EXAMPLES_NAME
            rows = _copy_files(source, folder) if takes != "text" else [asdict(example) for example in source.examples]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (folder / EXAMPLES_NAME).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        app = Template(APP.read_text(encoding="utf-8"), keep_trailing_newline=True).render(
            source=_keywords(page), options=_keywords({"max_new_tokens": max_new_tokens, "chats": chats})
        )
        (folder / "app.py").write_text(app, encoding="utf-8")
        # without what names a build (2.13.0+cpu)
        extras = "app" if takes == "text" else f"app,{EXTRAS[takes][2]}"
        pins = {f"hf_interp[{extras}]": "hf_interp"} | {name: name for name in PACKAGES}
        versions = {name: metadata.version(package).partition("+")[0] for name, package in pins.items()}
        required = "".join(f"{name}=={version}\n" for name, version in versions.items())
        (folder / "requirements.txt").write_text(required, encoding="utf-8")
        (folder / "README.md").write_text(_readme(source.title, list(models.values())), encoding="utf-8")
    left_out = "examples: those of the run's data were left out; name a file to have some (--examples)"
    return [left_out] if source.examples_are_data else []


def _copy_files(source: Source, folder: Path) -> list[dict[str, Any]]:
    """Copy the files to try into a Space, and return the rows that name them there."""
    takes, rows = TASK_INFOS[source.recipe.task].takes, []
    (folder / "examples").mkdir()
    for number, example in enumerate(source.examples):
        name = f"examples/{number}{Path(example.text).suffix}"
        shutil.copyfile(example.text, folder / name)
        rows.append({takes: name, "side": example.side, "label": example.label})
    return rows


def _keywords(arguments: dict[str, Any]) -> str:
    """Return arguments as Python writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _readme(title: str, models: list[str]) -> str:
    """Return the settings of the Space, and a line on what it shows."""
    from huggingface_hub import SpaceCardData

    data = SpaceCardData(
        title=f"α slider: {title}",
        emoji="🎚️",
        colorFrom="blue",
        colorTo="red",
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        app_file="app.py",
        pinned=False,
        models=models,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{README}"
