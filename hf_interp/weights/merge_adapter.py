"""M_α of an adapter on disk: a folder with an adapter in, a folder with an adapter, or with the merged model, out."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hf_interp.utils.files import new_folder
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME, ADAPTER_NAME
from hf_interp.utils.task_info import TASK_INFOS, adapter_classes, task_of_adapter
from hf_interp.weights.adapter_kinds import AdapterCapabilities, adapter_capabilities, refuse_prompts
from hf_interp.weights.adapters import interpolate_adapter, merge_adapter, scaled_parameters
from hf_interp.weights.alpha_spec import Alpha, AlphaByDepth, check_alpha
from hf_interp.weights.matching import InterpolationReport
from hf_interp.weights.model_folder import check_output, copy_small_files, find_folder, write_account

_HEAD = re.compile(r"(^|\.)(classifier|score|classification_head)(\.out_proj)?\.weight$")


def interpolate_adapter_checkpoint(
    base: str | os.PathLike[str] | None,
    adapter_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    alpha: Alpha,
    *,
    merge: bool = False,
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
    max_shard_size: int | str = "50GB",
) -> InterpolationReport:
    """Write M_α of an adapter: an adapter that `PeftModel.from_pretrained` loads on the same base model.

    Adapters that cannot be scaled are merged, and the whole model is written. Other arguments are those of
    `interpolate_checkpoints`; patterns match the names of the base model's parameters.

    Args:
        base: M₀, a folder or a name on the Hub; by default what the adapter says.
        adapter_dir: the adapter, a folder or a name on the Hub.
        merge: write the merged model instead of an adapter.

    Raises:
        TypeError, ValueError: as `interpolate_checkpoints`; for an adapter that does not say what model it is for, or
            can be neither scaled nor merged.
    """
    if not isinstance(alpha, (Mapping, AlphaByDepth)):
        check_alpha(alpha, extrapolate=extrapolate)
    source, output = find_folder(adapter_dir, "adapter_dir"), Path(output_dir).resolve()
    if not (source / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"`adapter_dir` must hold an adapter, got {str(adapter_dir)!r} without {ADAPTER_CONFIG_NAME}.")
    origin = find_base(base, source)
    check_output(output, [origin, source])
    model, pristine, kind, new = open_adapter(origin, source)
    result, report = interpolate_adapter(
        pristine, model, alpha, finetuned_only=[*finetuned_only, *sorted(new)], extrapolate=extrapolate
    )
    report.decisions = [
        replace(decision, reason="M₀ has no such tensor", base_name=None) if decision.name in new else decision
        for decision in report.decisions
    ]
    whole = result
    if kind.is_scalable:
        whole = merge_adapter(model, kind) if merge else model
    with new_folder(output) as folder:
        if whole is not model:
            copy_small_files(origin, folder)
        copy_small_files(source, folder)
        options = {} if whole is model else {"max_shard_size": max_shard_size}
        whole.save_pretrained(str(folder), **options)
        write_account(folder, report, alpha, base=origin.name, finetuned=[source.name], adapter=kind.label)
    return report


class OpenedAdapter(NamedTuple):
    """An adapter in its base model."""

    model: Any
    """M_θ, a `PeftModel`."""
    pristine: Any
    """M₀ anew, where it is not in the model any more; else `None`."""
    kind: AdapterCapabilities
    """The capabilities of the adapter."""
    new_names: set[str]
    """Names of weights that the checkpoint of M₀ lacks."""


def find_base(base: str | os.PathLike[str] | None, source: Path) -> Path:
    """Return the folder of the model that an adapter is for: `base`, or what the adapter in `source` says.

    Raises:
        ValueError: if the adapter changes no weights or does not say what it is for, or M₀ cannot be found.
    """
    import peft

    config = peft.PeftConfig.from_pretrained(str(source))
    refuse_prompts(config)
    base = config.base_model_name_or_path if base is None else base
    if not base:
        raise ValueError(f"`base` must be given: {ADAPTER_CONFIG_NAME} in {source.name!r} names no base model.")
    return find_folder(base, "base")


def open_adapter(origin: Path, source: Path) -> OpenedAdapter:
    """Load the adapter in `source` in the model in `origin`, to be interpolated.

    Raises:
        ValueError: if the adapter does not say what class of model it is for.
    """
    import peft

    config = peft.PeftConfig.from_pretrained(str(source))
    plain, new = _load_base(config, origin, source, resize=True)
    model = peft.PeftModel.from_pretrained(plain, str(source))
    kind = adapter_capabilities(model)
    pristine = None if kind.keeps_base else _load_base(config, origin, source)[0]
    if kind.is_scalable:
        new &= {pair.name for pair in scaled_parameters(model, pristine)}
    return OpenedAdapter(model, pristine, kind, new)


def _load_base(config: Any, origin: Path, source: Path, *, resize: bool = False) -> tuple[Any, set[str]]:
    """Return the model that an adapter is for, from local files, and names of what its checkpoint lacks."""
    import transformers

    if config.task_type is not None:
        name = adapter_classes().get(config.task_type)
    else:
        mapping = config.auto_mapping or {}
        inside = str(mapping.get("parent_library", "")).partition(".")[0] == "transformers"
        name = mapping.get("base_model_class") if inside else None
    if name is None:
        raise ValueError(
            f"{ADAPTER_CONFIG_NAME} in {source.name!r} must say what class of model the adapter is for, got "
            f"task_type={config.task_type!r}. Set `task_type` to one of {', '.join(adapter_classes())}."
        )
    options = {"num_labels": labels} if (labels := _count_labels(config, source)) else {}
    model, loaded = getattr(transformers, name).from_pretrained(
        origin, local_files_only=True, output_loading_info=True, **options
    )
    if resize and (source / "tokenizer_config.json").is_file():
        size = len(transformers.AutoTokenizer.from_pretrained(str(source), local_files_only=True))
        if size > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(size)
    return model, set(loaded["missing_keys"])


def _count_labels(config: Any, source: Path) -> int | None:
    """Count the labels of the head that an adapter brings; its configuration does not say so."""
    from safetensors import safe_open

    path = source / f"{ADAPTER_NAME}.safetensors"
    task = task_of_adapter(config.task_type)
    if task is None or not TASK_INFOS[task].has_labels or not path.is_file():
        return None
    with safe_open(str(path), framework="pt") as file:
        names = [name for name in list(file.keys()) if _HEAD.search(name)]
        sizes = [file.get_slice(name).get_shape()[0] for name in names]
    return int(sizes[0]) if sizes else None
