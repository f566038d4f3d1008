"""Names of tensors in two checkpoints of one architecture, matched through the class of the model.

Checkpoints of one model have had different names over time: `LayerNorm.gamma`, a prefix for the backbone or none,
experts one by one or fused. transformers knows them all, since it loads them all, so its own renamings are used here.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_interp.utils.files import read_json
from hf_interp.weights.matching import TensorInfo


class CheckpointKey(NamedTuple):
    """The place in a model that transformers loads a tensor to."""

    name: str
    """Unique in a checkpoint. For a tensor that transformers converts, its name before that."""
    target: str
    """The parameter of the model, or the first of those, which may get several tensors."""


class Pairing(NamedTuple):
    """Which tensor belongs to which."""

    base_names: dict[str, str]
    """Name in M_θ → name in M₀."""
    ties: dict[str, str]
    """Further names in M_θ of a tensor that it stores twice → the name that is kept."""
    stood_for: list[str]
    """Names in M₀ of tensors that another, equal tensor of M₀ stands for."""
    same_layout: bool = True
    """Whether a tensor is one in both; not where one has an expert's weights and the other all experts' in one."""


def empty_model(folder: Path, *, trust_remote_code: bool) -> Any:
    """Return the model of a folder without memory for its weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        model_class = _find_class(folder, config, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return model_class(config)
    except (ValueError, OSError, ImportError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        # it may end up in a file that goes elsewhere, with the name of the folder but not the way to it
        reason = str(error).strip().split("\n")[0].replace(str(folder), folder.name)
        raise ValueError(f"the class of the model cannot be built ({type(error).__name__}: {reason})") from error


def _find_class(folder: Path, config: Any, *, trust_remote_code: bool) -> Any:
    """Return the class that a configuration names."""
    import transformers

    names = config.architectures or []
    if not names:
        raise ValueError("its configuration has no `architectures`")
    remote = getattr(config, "auto_map", None) or {}
    for reference in remote.values() if trust_remote_code else ():
        if isinstance(reference, str) and reference.rpartition(".")[2] == names[0]:
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            return get_class_from_dynamic_module(reference, folder, local_files_only=True)
    if not hasattr(transformers, names[0]):
        raise ValueError(f"transformers has no {names[0]}")
    return getattr(transformers, names[0])


def pair_names(
    model: Any,
    base: Collection[str],
    finetuned: Collection[str],
    *,
    base_is_tied: bool,
    same_in_base: Callable[[str, str], bool],
    same_in_finetuned: Callable[[str, str], bool],
) -> Pairing:
    """Pair the names in two checkpoints through M_θ's model, on the meta device.

    Args:
        base_is_tied: whether M₀'s configuration ties its embeddings.
        same_in_base: whether two tensors of M₀ have the same values; asked only where one stands for both.
        same_in_finetuned: the same of M_θ.
    """
    mine, theirs = find_checkpoint_keys(model, base), find_checkpoint_keys(model, finetuned)
    tied = dict(model.all_tied_weights_keys)
    by_place = {place.name: name for name, place in theirs.items()}
    ties: dict[str, str] = {}
    for name, place in theirs.items():
        kept = by_place.get(_root(tied, place.name), name)
        if kept != name and same_in_finetuned(name, kept):
            ties[name] = kept
    apart = {place.name for name, place in theirs.items() if name not in ties}
    base_by_place = {place.name: name for name, place in mine.items()}
    base_tied = _tied_as(model, base_is_tied)
    by_root: dict[str, list[str]] = {}
    for name, place in mine.items():
        by_root.setdefault(_root(base_tied, place.name), []).append(name)
    base_names: dict[str, str] = {}
    stood_for: list[str] = []
    for name, place in theirs.items():
        if name in ties:
            continue
        group = [other for other in _group(tied, place.name) if other not in apart or other == place.name]
        found = [base_by_place[other] for other in group if other in base_by_place]
        for other in found[1:]:
            if not same_in_base(found[0], other):
                raise ValueError(
                    f"{place.name!r} is one tensor with others in M_θ, but {found[0]!r} and {other!r} differ in M₀, so "
                    "that M_α cannot be tied. Untie M_θ (`tie_word_embeddings=False` in its configuration, and a "
                    "tensor of its own)."
                )
        stood_for += found[1:]
        found = found or by_root.get(_root(base_tied, place.name), [])
        if found:
            base_names[name] = found[0]
    # a tensor of M₀ that belongs to one of M_θ after all is not stood for
    stood_for = [name for name in stood_for if name not in base_names.values()]
    return Pairing(base_names, ties, stood_for, _same_layout(mine, theirs, base_names, stood_for))


def find_checkpoint_keys(model: Any, names: Collection[str]) -> dict[str, CheckpointKey]:
    """Find where transformers loads the tensors of a checkpoint to, by their names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix, own = model.base_model_prefix, model.state_dict()
    places = {}
    # in the order of transformers, because some renamings depend on what came before
    for name in sorted(names, key=dot_natural_key):
        target, converted = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, converted = rename_source_key(name, [], [], prefix, own)
        if converted is None:
            places[name] = CheckpointKey(target, target)
        else:
            renamed, _ = rename_source_key(name, renamings, [])
            places[name] = CheckpointKey(_with_prefix_of(target, renamed, prefix), target)
    return {name: places[name] for name in names}


def check_loads(model: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that `from_pretrained` would not load, each and no other, into a model of this class."""
    from transformers.utils import logging

    state = {name: torch.empty(info.shape, dtype=info.dtype, device="meta") for name, info in tensors.items()}
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": "meta"}
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its table says in many lines what is said below in one
    logging.disable_progress_bar()
    try:
        _, found = type(model).from_pretrained(None, config=model.config, state_dict=state, **options)
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    faults = [f"{name!r} would be missing" for name in sorted(found["missing_keys"])]
    faults += [f"{name!r} has no place in it" for name in sorted(found["unexpected_keys"])]
    faults += [f"{name!r} is {tuple(one)} and not {tuple(other)}" for name, one, other in found["mismatched_keys"]]
    if faults:
        raise ValueError(
            f"`finetuned_dir` must hold the tensors of a {type(model).__name__}, as its configuration says, but "
            f"{faults[0]}. Load it with the code that trained it, and save it with `save_pretrained`."
        )


def is_tied(folder: Path, default: bool) -> bool:
    """Whether a folder's configuration ties the embeddings; `default` where there is none that can be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError):
        return default
    return bool(getattr(config, "tie_word_embeddings", False))


def check_common_tokens(
    base: Path, finetuned: Path, size: int, *, trust_remote_code: bool = False, remedy: str = ""
) -> None:
    """Refuse a common token id, of the first `size`, that means different tokens; `remedy` is one for what is read.

    `trust_remote_code` says whether a folder's own tokenizer may be run.
    """
    if _same_tokenizer_files(base, finetuned):
        return
    from transformers import AutoTokenizer

    tokens = []
    for folder in (base, finetuned):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        tokens.append({index: token for token, index in tokenizer.get_vocab().items() if index < size})
    for index in sorted(tokens[0].keys() & tokens[1].keys()):
        if tokens[0][index] != tokens[1][index]:
            raise ValueError(
                f"M₀ and M_θ must have the same token behind every common id, but id {index} is {tokens[0][index]!r} "
                f"in M₀ and {tokens[1][index]!r} in M_θ. Train with M₀'s tokenizer, to which tokens may be added"
                f"{remedy}."
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


_TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def _same_tokenizer_files(base: Path, finetuned: Path) -> bool:
    """Whether the vocabulary is the same by its file alone; `tokenizer.json` has all of it."""
    one, other = (read_json(folder / "tokenizer.json") for folder in (base, finetuned))
    # truncation and padding, which training sets, stand in this file too
    return one is not None and other is not None and all(one[key] == other[key] for key in ("model", "added_tokens"))


def _tied_as(model: Any, tied: bool) -> Mapping[str, str]:
    """Return the ties of the model if its configuration did or did not tie the embeddings."""
    if tied == bool(getattr(model.config, "tie_word_embeddings", False)):
        return dict(model.all_tied_weights_keys)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        return dict(type(model)(config).all_tied_weights_keys)


def _root(ties: Mapping[str, str], name: str) -> str:
    while name in ties:
        name = ties[name]
    return name


def _group(ties: Mapping[str, str], name: str) -> list[str]:
    """Return a name and those tied to it."""
    root = _root(ties, name)
    return list(dict.fromkeys([name, root, *(other for other in ties if _root(ties, other) == root)]))


def _with_prefix_of(target: str, name: str, prefix: str) -> str:
    """Return `name` with the prefix of the backbone if and only if `target` has it."""
    start = f"{prefix}." if prefix else ""
    name = name.removeprefix(start)
    return start + name if target.startswith(start) else name


def _same_layout(
    mine: Mapping[str, CheckpointKey],
    theirs: Mapping[str, CheckpointKey],
    base_names: Mapping[str, str],
    stood_for: Collection[str],
) -> bool:
    """Whether no parameter of the model gets some of its tensors under different names."""
    matched = {*base_names.values(), *stood_for}
    alone = {place.target for name, place in mine.items() if name not in matched}
    return not any(place.target in alone for name, place in theirs.items() if name not in base_names)
