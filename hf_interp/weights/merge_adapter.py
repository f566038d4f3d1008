"""M_α of an adapter on disk: a folder with an adapter in, a folder with an adapter, or with the merged model, out."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_interp.utils.files import new_folder, read_json
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME
from hf_interp.utils.task_info import TASK_INFOS, adapter_classes, task_of_adapter, task_of_class
from hf_interp.weights.adapter_kinds import AdapterCapabilities, adapter_capabilities, no_former_names, refuse_prompts
from hf_interp.weights.adapters import interpolate_adapter, merge_adapter, scaled_parameters
from hf_interp.weights.alpha_spec import Alpha, AlphaByDepth, check_alpha
from hf_interp.weights.checkpoint_names import check_loads, empty_model
from hf_interp.weights.matching import InterpolationReport
from hf_interp.weights.model_folder import check_output, copy_small_files, find_folder, write_account
from hf_interp.weights.tensor_files import find_tensors, infos

Tensors = Mapping[str, torch.Tensor]

_ROWS = {"weight": 0, "base_layer.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
"""Tensors of an adapter on a table of words → the axis that has a place for each word."""

_HEAD = re.compile(r"(^|\.)(classifier|score|classification_head)(\.(dense|out_proj|\d+))?\.weight$")
"""Of the layers of a head, the last in the order of their names has a row for each label."""


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
    was_tied = bool(getattr(model.get_base_model(), "all_tied_weights_keys", {}))
    result, report = interpolate_adapter(
        pristine, model, alpha, finetuned_only=[*finetuned_only, *sorted(new)], extrapolate=extrapolate, kind=kind
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
        if whole is not model:
            _check_whole(folder, whole, was_tied)
        write_account(folder, report, alpha, base=origin.name, finetuned=[source.name], adapter=kind.label)
    return report


def _check_whole(folder: Path, whole: Any, was_tied: bool) -> None:
    """Refuse a merged model that `from_pretrained` would not load as it is, such as one that is always tied."""
    kind = type(whole).__name__
    remedy = "Leave `merge` out to write an adapter, or train one on none of the tables that the model ties."
    try:
        check_loads(empty_model(folder, trust_remote_code=False), infos(find_tensors(folder, "output_dir")))
    except ValueError as error:
        raise ValueError(f"The merged adapter would not load as a {kind}. {remedy}") from error
    if was_tied and not whole.all_tied_weights_keys:
        again = type(whole).from_pretrained(folder, local_files_only=True).state_dict()
        for name, tensor in whole.state_dict().items():
            if not torch.equal(tensor, again[name]):
                raise ValueError(f"The merged adapter would not load as a {kind}: {name!r} is always tied. {remedy}")


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
    """Return the folder of the model that an adapter is for: `base`, or what the adapter in `source` says."""
    import peft

    config = peft.PeftConfig.from_pretrained(str(source))
    refuse_prompts(config)
    base = config.base_model_name_or_path if base is None else base
    if not base:
        raise ValueError(f"`base` must be given: {ADAPTER_CONFIG_NAME} in {source.name!r} names no base model.")
    return find_folder(base, "base")


def open_adapter(origin: Path, source: Path) -> OpenedAdapter:
    """Load the adapter in `source` in the model in `origin`, to be interpolated.

    An adapter with a table of words of its own is to be merged: against M₀'s own table, whose rows may be fewer.
    """
    import peft

    config, weights = peft.PeftConfig.from_pretrained(str(source)), peft.load_peft_weights(str(source), device="cpu")
    plain, new = _load_base(config, weights, origin, source)
    has_own_table = _fit_table(plain, config, weights)
    try:
        with no_former_names():
            model = peft.PeftModel.from_pretrained(plain, str(source))
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:300]
        raise ValueError(f"`base` must be the model that the adapter in {source.name!r} is for: {fault}") from error
    kind = adapter_capabilities(model)
    if has_own_table:
        kind = AdapterCapabilities(f"{kind.label} with a table of words of its own", False, False)
    pristine = None if kind.keeps_base else _load_base(config, weights, origin, source)[0]
    if kind.is_scalable:
        new &= {pair.name for pair in scaled_parameters(model, pristine)}
    return OpenedAdapter(model, pristine, kind, new)


def _load_base(config: Any, weights: Tensors, origin: Path, source: Path) -> tuple[Any, set[str]]:
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
    settings = read_json(origin / "config.json")
    if isinstance(settings, dict) and settings.get("quantization_config"):
        kind = settings["quantization_config"].get("quant_method", "of an unknown kind")
        raise ValueError(
            f"`base` must have plain weights, got {origin.name!r}, which is quantised ({kind}). Give the model that it "
            "was made from."
        )
    task = task_of_adapter(config.task_type) or task_of_class(name)
    heads = [weights[key] for key in sorted(weights) if _HEAD.search(key)]
    # the adapter's configuration does not say how many labels its head has
    options = {"num_labels": len(heads[-1])} if heads and task is not None and TASK_INFOS[task].has_labels else {}
    model, loaded = getattr(transformers, name).from_pretrained(
        origin, local_files_only=True, output_loading_info=True, **options
    )
    return model, set(loaded["missing_keys"])


def _fit_table(model: Any, config: Any, weights: Tensors) -> bool:
    """Give a model the rows of words that an adapter has; whether the adapter's table is another than M₀'s own."""
    tables = _find_tables(model)
    if not tables:
        return False
    copied = tuple(getattr(config, "modules_to_save", None) or ())
    tokens, num_rows = _trained_tokens(config), len(next(iter(tables.values())))
    sizes: set[int] = set()
    brought: set[int] = set()
    is_changed = False
    for name, table in tables.items():
        if any(key.startswith(f"base_model.model.{name}.") and "trainable_tokens" in key for key in weights):
            brought |= {table.data_ptr()} if set(range(num_rows, max(tokens) + 1)) <= set(tokens) else set()
        for part, axis in _ROWS.items():
            tensor = weights.get(f"base_model.model.{name}.{part}")
            if tensor is None:
                continue
            sizes.add(tensor.shape[axis])
            if "lora" not in part:
                brought.add(table.data_ptr())
                rows = min(len(tensor), len(table))
                same = torch.equal(tensor[:rows], table[:rows].to(tensor.dtype))
                is_changed |= not same and not name.endswith(copied)
    size = max(sizes, default=max(num_rows, *(index + 1 for index in tokens), 0))
    for name, table in tables.items():
        if size > num_rows and table.data_ptr() not in brought:
            raise ValueError(
                f"The adapter must bring the rows of {size - num_rows} words that `base` lacks, but has none of "
                f"{name!r}. Save it again with `save_embedding_layers=True`, or give a `base` that has these rows."
            )
    if size != num_rows:
        model.resize_token_embeddings(size, mean_resizing=False)
    return is_changed or size != num_rows


def _find_tables(model: Any) -> dict[str, torch.Tensor]:
    """Return the tables with a row for each word, by the names of their layers; a model of images has none."""
    kinds, ends = (nn.Embedding, nn.Linear), []
    for find in (model.get_input_embeddings, model.get_output_embeddings):
        with suppress(NotImplementedError):
            ends.append(find())
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, kinds) and any(module is one for one in ends)
    }


def _trained_tokens(config: Any) -> list[int]:
    """Return the tokens whose rows an adapter has."""
    found = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    return [index for part in found.values() for index in part] if isinstance(found, dict) else list(found)
