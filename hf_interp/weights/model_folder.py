"""Folders of models: found on disk or on the Hub, and what goes with the weights from one to the next."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hf_interp.utils.console import format_table
from hf_interp.utils.environment import installed_versions
from hf_interp.utils.files import write_json
from hf_interp.utils.model_files import (
    SMALL_FILES,
    TEMPLATES_FOLDER,
    WEIGHT_FILES,
    matches,
    module_folders,
    small_files,
)
from hf_interp.utils.run_folder import INTERPOLATION_NAME
from hf_interp.weights.adapter_kinds import is_peft_model
from hf_interp.weights.alpha_spec import Alpha, plain_alpha
from hf_interp.weights.checkpoint_names import find_checkpoint_keys
from hf_interp.weights.matching import InterpolationReport
from hf_interp.weights.tensor_files import find_tensors

HUB_WEIGHTS = (("model*.safetensors", "adapter_model.safetensors"), ("pytorch_model*.bin",))
"""Weights to download; the second where there are none of the first."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_folder(name: str | os.PathLike[str], argument: str, *, revision: str | None = None) -> Path:
    """Find the folder of a model; a name on the Hub is downloaded, or taken from the cache."""
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ValueError(f"`{argument}` must be a folder, got the file {str(name)!r}.")
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(str(name)) or str(name).startswith("."):
        raise ValueError(f"`{argument}` must be a folder or the name of a model on the Hub, got {str(name)!r}.")
    return _download(str(name), argument, revision)


def copy_small_files(source: Path, target: Path) -> list[str]:
    """Copy configurations, tokenizers and code; returns notes on what else was copied."""
    for path in small_files(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
    notes = []
    for name in module_folders(source):
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        if any((target / name).rglob("*.safetensors")) or any((target / name).rglob("*.bin")):
            notes.append(f"{name}: copied from M_θ with its weights")
    return notes


def num_small_bytes(folder: Path) -> int:
    """Size of all that `copy_small_files` copies."""
    paths = [folder / path for path in small_files(folder)]
    for name in module_folders(folder):
        paths += [path for path in (folder / name).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths)


def check_output(output: Path, inputs: list[Path]) -> None:
    """Refuse an output folder that is a file, holds anything, or is or lies in an input; and links out of one."""
    for folder in inputs:
        _refuse_links(folder)
        if output == folder or folder in output.parents:
            raise ValueError(f"`output_dir` must be neither an input nor inside one, got {str(output)!r}.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {str(output)!r}.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(
            f"`output_dir` must be new or empty, got {str(output)!r}, which holds files. Remove them first."
        )


def _refuse_links(folder: Path) -> None:
    """Refuse files of a model that are links out of its folder; in the cache of the Hub they lead to its own blobs."""
    home = folder.parent.parent if folder.parent.name == "snapshots" else folder
    kinds = (*SMALL_FILES, *WEIGHT_FILES, "*.bin")
    paths = [path for path in folder.iterdir() if path.is_file() and matches(path.name, kinds)]
    for name in (*module_folders(folder), TEMPLATES_FOLDER):
        paths += [folder / name, *(folder / name).rglob("*")]
    for path in paths:
        if not path.resolve().is_relative_to(home):
            raise ValueError(
                f"{path.name!r} in {folder.name!r} must be a file of its own, got a link that leads out of the folder, "
                "which is not merged. Put a copy in its place."
            )


def write_account(folder: Path, report: InterpolationReport, alpha: Alpha, **details: Any) -> None:
    """Write `interpolation.json`: how the weights in a folder came about, and the versions of the packages."""
    account = {
        "alpha": plain_alpha(alpha),
        **details,
        **report.to_dict(),
        "versions": installed_versions(),
    }
    write_json(folder / INTERPOLATION_NAME, account, indent=2)


def write_card(folder: Path, title: str, models: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Write the model card of a merge: M₀ and the models, by their public names, and how they were merged."""
    from huggingface_hub import ModelCardData

    from hf_interp.reporting.card import CARD_NAME, escape, is_hub_id, save_card

    kinds = ["M₀", *["M_θ"] * (len(models) - 1), *settings]
    values = [value if isinstance(value, str) else json.dumps(value) for value in (*models, *settings.values())]
    rows = [[escape(kind), escape(value)] for kind, value in zip(kinds, values, strict=True)]
    # a name without a slash may be that of a folder
    known = [name for name in models if "/" in name and is_hub_id(name)]
    data = ModelCardData(library_name="transformers", base_model=known or None, tags=["hf_interp", "merge"])
    text = f"A merge that hf_interp wrote. `{INTERPOLATION_NAME}` says what was done with each tensor."
    table = format_table(["what", "value"], rows)
    save_card(f"---\n{data.to_yaml()}\n---\n\n# {escape(title)}\n\n{text}\n\n{table}\n", folder / CARD_NAME)


def _download(name: str, argument: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for weights in HUB_WEIGHTS:
            # "*" matches "/" too, and folders hold other forms of the same weights
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=[*SMALL_FILES, *weights],
                    ignore_patterns=["*/*", "consolidated*"],
                )
            )
            if any(path.match(pattern) for pattern in weights for path in folder.iterdir()):
                break
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"`{argument}` must be a folder or the name of a model on the Hub, got {name!r}: there is no such folder, "
            f"and it could not be downloaded ({reason}). Download it where there is a network: `hf download {name}`."
        ) from error
    return folder.resolve()


def find_lacking(
    name: str | os.PathLike[str], model: Any, names: Sequence[str], *, revision: str | None = None
) -> list[str]:
    """Return those of the weights of a `PeftModel`'s base model that M₀'s checkpoint lacks, such as a new head."""
    inner = model.get_base_model()
    with torch.device("meta"):
        plain = type(inner)(inner.config)  # whose names are those of before the adapter
    places = find_checkpoint_keys(plain, find_tensors(find_folder(name, "base_model", revision=revision), "base_model"))
    known = {part for place in places.values() for part in place}
    return [name for name in names if name not in known]


def load_renamed(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Load what a checkpoint holds under other names than the model has now; `Trainer` leaves that as it was.

    transformers saves some models, such as ViT, by the names that they had before, and knows them in `from_pretrained`.
    """
    path = Path(folder)
    if isinstance(model, PreTrainedModel) and any(path.glob("model*.safetensors")):
        own = model.state_dict()
        if not own.keys() >= find_tensors(path, "checkpoint").keys():
            model.load_state_dict(open_base(path, model), strict=False)


def open_base(
    name: str | os.PathLike[str], model: nn.Module, *, revision: str | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of M₀'s checkpoint by the names that M_θ has for them, mapped into memory and not loaded.

    M_θ is a model of transformers, with or without an adapter. Tensors in another layout than the model's, such as
    experts one by one, are loaded.
    """
    peft_model: Any = model
    inner: Any = peft_model.get_base_model() if is_peft_model(model) else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"`base_model` must be a model or a state dict for a {type(inner).__name__}, got {str(name)!r}: only "
            "models of transformers are known by their checkpoints."
        )
    folder = find_folder(name, "base_model", revision=revision)
    stored = find_tensors(folder, "base_model")
    places = find_checkpoint_keys(inner, stored)
    if any(place.name != place.target for place in places.values()):
        # such as experts one by one: transformers converts them when it loads them
        model_class: Any = type(inner)
        options = {"dtype": "auto", "local_files_only": True, "output_loading_info": True}
        loaded, found = model_class.from_pretrained(folder, **options)
        return {name: one for name, one in loaded.state_dict().items() if name not in found["missing_keys"]}
    files: dict[Any, Any] = {
        one.path: safe_open(one.path, framework="pt") for one in stored.values() if one.tensor is None
    }
    return {
        places[name].name: files[one.path].get_tensor(one.key) if one.tensor is None else one.tensor
        for name, one in stored.items()
    }
