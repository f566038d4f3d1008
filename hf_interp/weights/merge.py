"""Interpolated checkpoints M_α = α·M_θ + (1 − α)·M₀, from folder to folder, in the memory of a few small blocks.

Everything that can be decided on names, shapes and sizes is decided before a byte is written. Then blocks of tensors
are read, interpolated and written, each by the next thread that is free.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from hf_interp.utils.console import format_size
from hf_interp.utils.files import new_folder, read_json, unfinished_folders
from hf_interp.utils.run_folder import ADAPTER_CONFIG_NAME
from hf_interp.weights.alpha_spec import Alpha, AlphaByDepth, check_alpha, plain_alpha
from hf_interp.weights.checkpoint_names import (
    Pairing,
    check_common_tokens,
    check_loads,
    empty_model,
    has_tokenizer,
    is_tied,
    pair_names,
)
from hf_interp.weights.interpolate import interpolate_weights
from hf_interp.weights.matching import (
    BATCH_NORM,
    EMBEDDINGS,
    Action,
    InterpolationReport,
    TensorDecision,
    decide,
    match_names,
)
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint
from hf_interp.weights.merge_methods import MergeMethod, TensorMethod
from hf_interp.weights.model_folder import (
    check_output,
    copy_small_files,
    find_folder,
    num_small_bytes,
    write_account,
    write_card,
)
from hf_interp.weights.streaming import Inputs, are_equal, write_result
from hf_interp.weights.tensor_files import Stored, create_shards, find_tensors, infos, num_bytes

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = "50GB"
"""The default of transformers."""

Name = str | os.PathLike[str]


def interpolate_checkpoints(
    base_dir: Name,
    finetuned_dir: Name | Sequence[Name],
    output_dir: Name,
    alpha: Alpha,
    *,
    method: str | MergeMethod = "linear",
    extrapolate: bool = False,
    finetuned_only: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    trust_remote_code: bool = False,
) -> InterpolationReport:
    """Write the checkpoint M_α = α·M_θ + (1 − α)·M₀; after an error there is no new folder.

    It has M_θ's configuration, tokenizer and names of tensors, and loads with `from_pretrained`. What is not
    interpolated is as in `interpolate_weights`. Its `interpolation.json` says what was done.

    Args:
        base_dir: M₀, a folder or a name on the Hub.
        finetuned_dir: M_θ. Of several, fine-tuned from the same M₀, the mean is M_θ (a uniform soup, Wortsman et al.
            2022, arXiv 2203.05482); names, configuration and tokenizer are the first's. An adapter is interpolated as
            such.
        output_dir: a new or empty folder.
        alpha: a number; a mapping from patterns of M_θ's names to numbers, of which the first that matches counts; or
            an `AlphaByDepth`.
        method: a name, or a `MergeMethod` with its settings. With another than "linear", α scales what the method adds
            to M₀, or is the share of the arc; what M₀ lacks is the mean of the models.
        extrapolate: allow α outside [0, 1], and weights that are negative or sum to more than 1.
        finetuned_only: patterns of names to take from M_θ whole, such as a head that M₀ was given at random.
        dtype: type of the result's floating-point tensors; by default M_θ's.
        max_shard_size: of a file of weights, in bytes or as "5GB".
        trust_remote_code: allow code that comes with M_θ to be run, to know its names.

    Returns:
        What was interpolated, and what was not and why, by M_θ's names.

    Raises:
        TypeError: for an α or a type that is none.
        ValueError: for an α or settings out of range, different architectures or vocabularies, packed quantised
            weights, NaN, statistics of batch norms that differ, folders that hold no whole checkpoint, or an output
            that is taken.
        OSError: if the disk is too small; before anything is written.
    """
    if not isinstance(alpha, (Mapping, AlphaByDepth)):
        check_alpha(alpha, extrapolate=extrapolate)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"`dtype` must be a floating-point type of torch, got {dtype!r}.")
    names = [finetuned_dir] if isinstance(finetuned_dir, (str, os.PathLike)) else list(finetuned_dir)
    if not names:
        raise ValueError("`finetuned_dir` must name at least one folder, got none.")
    how = MergeMethod(name=method) if isinstance(method, str) else method
    how.check(len(names))
    base, runs = find_folder(base_dir, "base_dir"), [find_folder(name, "finetuned_dir") for name in names]
    output = Path(output_dir).resolve()
    check_output(output, [base, *runs])
    if (base / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"`base_dir` must be a whole model, got the adapter {str(base_dir)!r}.")
    options: dict[str, Any] = {"finetuned_only": finetuned_only, "extrapolate": extrapolate}
    if any((run / ADAPTER_CONFIG_NAME).is_file() for run in runs):
        if not how.is_plain_mean:
            raise ValueError(f"`method` {how.name} takes whole models. Write the adapter as one: `merge_adapter`.")
        if len(runs) > 1:
            raise ValueError("`finetuned_dir` must be one folder if it is an adapter's, got several.")
        if dtype is not None:
            raise ValueError("`dtype` must be left out for an adapter, whose types are kept.")
        return interpolate_adapter_checkpoint(base, runs[0], output, alpha, max_shard_size=max_shard_size, **options)
    # on the Hub, or that of a folder without the way to it
    public_names = [Path(name).resolve().name if Path(name).is_dir() else str(name) for name in (base_dir, *names)]
    settings = dtype, max_shard_size, trust_remote_code, public_names, how
    return _merge(_Request(base, runs, output, alpha, options, *settings))


class _Request(NamedTuple):
    """The arguments of a merge, with folders found."""

    base: Path
    runs: list[Path]
    output: Path
    alpha: Alpha
    options: dict[str, Any]
    """`finetuned_only` and `extrapolate`."""
    dtype: torch.dtype | None
    max_shard_size: int | str
    trust_remote_code: bool
    public_names: list[str]
    """Of M₀ and the runs, as they may be told to others."""
    method: MergeMethod


def _merge(request: _Request) -> InterpolationReport:
    base = find_tensors(request.base, "base_dir")
    runs = [find_tensors(run, "finetuned_dir") for run in request.runs]
    model, notes = None, []
    try:
        model = empty_model(request.runs[0], trust_remote_code=request.trust_remote_code)
    except ValueError as error:
        notes.append(f"names were matched by themselves: {error}")
    pairing = _pair(model, request.base, base, runs[0])
    if not pairing.same_layout:
        return _merge_in_memory(request, type(model), base, runs)
    finetuned = {name: stored for name, stored in runs[0].items() if name not in pairing.ties}
    inputs = Inputs(base, [finetuned, *_align(model, request, runs, finetuned)])
    decisions = decide(
        infos({name: stored for name, stored in base.items() if name not in pairing.stood_for}),
        infos(finetuned),
        request.alpha,
        base_names=pairing.base_names,
        **request.options,
    )
    notes += _check_tokens(request, inputs, decisions)
    decisions = [_settle_statistics(decision, inputs, request.method) for decision in decisions]
    methods = _settle_method(request, decisions)
    results = {
        name: info._replace(dtype=request.dtype) if request.dtype and info.dtype.is_floating_point else info
        for name, info in infos(finetuned).items()
    }
    if model is not None:
        check_loads(model, results)
    _check_space(request, sum(num_bytes(info) for info in results.values()))
    ties = [TensorDecision(name=name, action="tied", reason=f"to {kept}") for name, kept in pairing.ties.items()]
    with new_folder(request.output) as folder:
        decisions = write_result(inputs, create_shards(folder, results, request.max_shard_size), decisions, methods)
        notes += copy_small_files(request.runs[0], folder)
        report = InterpolationReport(decisions=decisions + ties, notes=notes)
        _finish(request, folder, report)
    return report


def _pair(model: Any, base_dir: Path, base: Mapping[str, Stored], finetuned: Mapping[str, Stored]) -> Pairing:
    """Match names, through M_θ's class where it can be built."""
    if model is None:
        shared = _shared_storage(finetuned)
        names = match_names(base, [name for name in finetuned if name not in shared])
        return Pairing(names, shared, [])
    return pair_names(
        model,
        base,
        finetuned,
        base_is_tied=is_tied(base_dir, default=bool(getattr(model.config, "tie_word_embeddings", False))),
        same_in_base=lambda first, second: are_equal(base[first], base[second]),
        same_in_finetuned=lambda first, second: are_equal(finetuned[first], finetuned[second]),
    )


def _shared_storage(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Further names of one tensor, in files of torch → the first."""
    first: dict[Any, str] = {}
    further = {}
    for name, stored in tensors.items():
        if stored.tensor is not None and stored.numel:
            key = (stored.tensor.data_ptr(), stored.info)
            if first.setdefault(key, name) != name:
                further[name] = first[key]
    return further


def _align(
    model: Any, request: _Request, runs: Sequence[Mapping[str, Stored]], finetuned: Mapping[str, Stored]
) -> list[dict[str, Stored]]:
    """Return the further runs of a soup by the first's names; they must have the same tensors."""
    aligned = []
    for folder, run in zip(request.runs[1:], runs[1:], strict=True):
        pairing = _pair(model, folder, run, runs[0])
        found = {name: run[other] for name, other in pairing.base_names.items() if name in finetuned}
        for name, stored in finetuned.items():
            shape = found[name].info.shape if name in found else None
            if shape != stored.info.shape:
                raise ValueError(
                    f"`finetuned_dir` must be runs of one model, but {name!r} has shape {stored.info.shape} in "
                    f"{request.runs[0].name!r} and {'is not' if shape is None else f'has {shape}'} in {folder.name!r}."
                )
        aligned.append(found)
    return aligned


def _check_tokens(request: _Request, inputs: Inputs, decisions: Iterable[TensorDecision]) -> list[str]:
    """Refuse rows that belong to different tokens; notes if that cannot be told."""
    tables = {
        decision.name: decision.base_name
        for decision in decisions
        if decision.action == "interpolated" and decision.base_name is not None and EMBEDDINGS.search(decision.name)
    }
    if not tables:
        return []
    for folder in (request.base, *request.runs):
        if not has_tokenizer(folder):
            return [f"tokens were not compared: {'M₀' if folder == request.base else 'M_θ'} has no tokenizer"]
    stored = [inputs.runs[0][name] for name in tables] + [inputs.base[name] for name in tables.values()]
    size = min(one.info.shape[0] for one in stored)
    remedy = f", or take the table from M_θ whole (`finetuned_only=[{next(iter(tables))!r}]`)"
    for run in request.runs:
        check_common_tokens(request.base, run, size, trust_remote_code=request.trust_remote_code, remedy=remedy)
    return []


def _settle_method(request: _Request, decisions: Iterable[TensorDecision]) -> dict[str, TensorMethod]:
    """Return the method of every tensor; none for the plain mean."""
    if request.method.is_plain_mean:
        return {}
    found = {decision.name: decision for decision in decisions if decision.action == "interpolated"}
    for name, decision in found.items():
        if decision.vocabulary_axis and request.method.name != "linear":
            raise ValueError(
                f"`method` {request.method.name} needs tokens along rows, and {name!r} has them along columns, others "
                "than M₀. Take it from M_θ whole (`finetuned_only`)."
            )
    return request.method.settle([*found], len(request.runs), extrapolate=request.options["extrapolate"])


def _settle_statistics(decision: TensorDecision, inputs: Inputs, method: MergeMethod) -> TensorDecision:
    """Copy statistics of batch norms that are the same; at the ends they are those of the ends."""
    if decision.action != "interpolated" or not BATCH_NORM.search(decision.name):
        return decision
    assert decision.base_name is not None
    runs = [run[decision.name] for run in inputs.runs]
    if decision.alpha == 0 or (decision.alpha == 1 and len(runs) == 1 and method.is_plain_mean):
        return decision
    if not all(are_equal(inputs.base[decision.base_name], run) for run in runs):
        raise ValueError(
            f"{decision.name!r} is a statistic of a batch norm, and those of M₀ and M_θ say nothing about M_α. Load "
            "both as models and have them measured anew on batches: `interpolate_weights(..., recalibrate=batches)`."
        )
    return replace(decision, action="copied", reason="a statistic that is the same in M₀", alpha=None)


def _check_space(request: _Request, size: int) -> None:
    """Refuse a disk that is too small, before anything is written."""
    existing = next(folder for folder in request.output.parents if folder.is_dir())
    needed, free = size + num_small_bytes(request.runs[0]), shutil.disk_usage(existing).free
    if needed > free:
        left = unfinished_folders(request.output)
        remedy = f" Unfinished folders lie beside it: {', '.join(left)}." if left else ""
        raise OSError(f"`output_dir` needs {needed:,} bytes, and its disk has {free:,} free.{remedy}")


def _finish(request: _Request, folder: Path, report: InterpolationReport) -> None:
    """Write the configuration and an account of what was done."""
    config = read_json(folder / "config.json")
    if request.dtype is not None and isinstance(config, dict):
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(request.dtype).removeprefix("torch.")
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
    method = request.method.given()
    settings = {"method": method.pop("name"), "α": plain_alpha(request.alpha), **method}
    write_card(folder, request.output.name, request.public_names, settings)
    write_account(
        folder,
        report,
        request.alpha,
        base=request.public_names[0],
        finetuned=request.public_names[1:],
        method=request.method.given(),
        dtype=None if request.dtype is None else str(request.dtype).removeprefix("torch."),
        counts={action: len(report.names(action)) for action in get_args(Action)},
    )


def _merge_in_memory(
    request: _Request, model_class: Any, base: Mapping[str, Stored], runs: Sequence[Mapping[str, Stored]]
) -> InterpolationReport:
    """Interpolate models whose checkpoints hold different tensors: transformers converts both when it loads them."""
    if len(runs) > 1 or not request.method.is_plain_mean:
        raise ValueError(
            "`finetuned_dir` must be one folder if M₀'s checkpoint has other tensors than M_θ's, and `method` linear. "
            "Load and save M₀ with the transformers that saved the runs."
        )
    sizes = [sum(num_bytes(stored.info) for stored in tensors.values()) for tensors in (base, runs[0])]
    logger.warning(
        "M₀ and M_θ are stored in different layouts (such as fused and single experts), so both are loaded, which "
        f"takes {format_size(sum(sizes))} of memory. Load and save one with the transformers that saved the other."
    )
    _check_space(request, sizes[1])
    options = {"dtype": "auto", "local_files_only": True, "trust_remote_code": request.trust_remote_code}
    model = model_class.from_pretrained(request.runs[0], **options)
    source, loaded = model_class.from_pretrained(request.base, output_loading_info=True, **options)
    # what M₀ lacks was given to it at random
    weights = {name: tensor for name, tensor in source.state_dict().items() if name not in loaded["missing_keys"]}
    report = interpolate_weights(
        weights,
        model.state_dict(),
        request.alpha,
        into=model,
        dtype=request.dtype,
        **request.options,
    ).report
    report.notes.append("interpolated in memory, because the checkpoints hold different tensors; names are the model's")
    with new_folder(request.output) as folder:
        model.save_pretrained(folder, max_shard_size=request.max_shard_size)
        report.notes += copy_small_files(request.runs[0], folder)
        _finish(request, folder, report)
    return report
