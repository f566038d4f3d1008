"""Which files of a folder are those of a model: what is pushed, and what goes with the weights to another folder."""

import hashlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from hf_interp.utils.files import read_json
from hf_interp.utils.run_folder import (
    ADAPTER_CONFIG_NAME,
    CELL_NAME,
    CURVE_NAME,
    INTERPOLATED_NAME,
    INTERPOLATION_NAME,
    PROGRESS_NAME,
    RESULTS_NAME,
)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
MODEL_FILES = (
    *WEIGHT_FILES,
    *("config.json", "generation_config.json", "adapter_config.json", "configuration_*.py", "modeling_*.py"),
    *("tokenization_*.py", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.*", "preprocessor_config.json", "processor_config.json", "vocab*", "merges.txt", "bpe.codes"),
    *("*.model", "*.spm", "*.tiktoken", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
)
"""Files of a model and its tokenizer, by pattern: of a run's folder, nothing else is pushed."""

SMALL_FILES = (
    *(pattern for pattern in MODEL_FILES if pattern not in WEIGHT_FILES),
    *("*.json", "*.txt", "*.jinja", "*.py", "*.bpe", "LICENSE*"),
)
"""Patterns of what a model consists of beside its weights; in its own folder, settings and code are part of it too."""

LEFT_BEHIND = (
    "*.index.json",
    "trainer_state.json",
    "*_results.json",
    "mixture_state_*.json",
    ADAPTER_CONFIG_NAME,
    "checksums.json",
    RESULTS_NAME,
    CURVE_NAME,
    INTERPOLATION_NAME,
    PROGRESS_NAME,
    CELL_NAME,
)
"""Files that are true of one run or its weights alone; so is a model card."""

HEADS_FOLDER, TEMPLATES_FOLDER = "objective_heads", "additional_chat_templates"
"""Folders of a model; those that modules.json names, and those of further adapters, are found as they are."""


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model in a folder, those of its parts among them."""
    parts = {HEADS_FOLDER, TEMPLATES_FOLDER, *module_folders(folder)}
    found = [path for path in folder.iterdir() if path.is_file() and matches(path.name, MODEL_FILES)]
    for path in folder.iterdir():
        is_adapter = (path / ADAPTER_CONFIG_NAME).is_file() and not _is_of_run(path.name)
        if path.is_dir() and (path.name in parts or is_adapter):
            found += [inner for inner in path.rglob("*") if inner.is_file() and matches(inner.name, MODEL_FILES)]
    return sorted(found)


def weights_fingerprint(folder: Path) -> str | None:
    """Return a hash of the files of weights in a folder; `None` without any."""
    paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16] if paths else None


def small_files(folder: Path) -> list[Path]:
    """Return the files that go with the weights, relative to the folder."""
    found = [
        path
        for path in folder.iterdir()
        if path.is_file() and matches(path.name, SMALL_FILES) and not matches(path.name, LEFT_BEHIND)
    ]
    found += [path for path in (folder / TEMPLATES_FOLDER).rglob("*") if path.is_file()]
    return sorted(path.relative_to(folder) for path in found)


def module_folders(folder: Path) -> list[str]:
    """Return the folders of the further modules of a sentence-transformers model."""
    modules = read_json(folder / "modules.json")
    entries = modules if isinstance(modules, list) else []
    names = [str(module.get("path", "")) for module in entries if isinstance(module, dict)]
    return [name for name in names if name and Path(name).name == name and (folder / name).is_dir()]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name of a file has one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_of_run(name: str) -> bool:
    """Whether a folder of a run is no part of its model."""
    return name == INTERPOLATED_NAME or re.fullmatch(r"checkpoint-\d+", name) is not None or name.startswith((".", "_"))
