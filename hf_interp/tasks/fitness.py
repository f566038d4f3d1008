"""Whether a model, its tokenizer and the data fit: what would train on noise, or fail midway, is refused before.

And how many rows do not fit into the tokens that a model is shown of them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_interp.losses.ref_model import unwrap_peft
from hf_interp.tasks.encoding import Encode
from hf_interp.tasks.freezing import head_names
from hf_interp.tasks.recipe import Recipe

UNLIMITED = 2**30  # tokens
POSITION_TABLE = re.compile(r"position_embeddings?|embed_positions|wpe")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Refuse a tokenizer that was made up because its files are missing, and inputs that hold no token of a text."""
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"The model {recipe.model_name_or_path!r} brings no vocabulary: its tokenizer knows {len(tokenizer)} "
            "special tokens alone. Put its tokenizer's files, such as tokenizer.json, beside its weights."
        )
    least = max(2, tokenizer.num_special_tokens_to_add() + 1)
    for name in (None, *recipe.objective_names()):
        own = recipe.for_objective(name).max_length
        if own < least:
            raise ValueError(
                f"`max_length` must be at least {least}, for the tokens that the tokenizer adds and one of the text, "
                f"got {own}."
            )


def check_weights(model: nn.Module, found: Mapping[str, Collection[Any]], name: str, labels: Sequence[str]) -> None:
    """Refuse weights that do not fit the model of their config.json, but for a head that they lack, or hold NaN."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    heads = {id(tensors[head]) for head in head_names(model)}
    backbone = [key for key, tensor in tensors.items() if id(tensor) not in heads and "pool" not in key]
    for key, stored, wanted in sorted(found["mismatched_keys"]):
        if key in backbone:
            raise ValueError(
                f"The tensor {key!r} of {name!r} has the shape {tuple(stored)}, but {tuple(wanted)} by its "
                "config.json. Take weights and config.json of one model."
            )
        raise ValueError(
            f"The head of {name!r} does not fit the {len(labels)} labels {list(labels)}. List the labels that the "
            "model was trained with, in its order, or start from a model without a head."
        )
    if lost := sorted({*found["missing_keys"]} & {*backbone}):
        others = sorted(found["unexpected_keys"])
        raise ValueError(
            f"The weights of {name!r} lack {len(lost)} of {len(backbone)} tensors of {type(model).__name__}, such as "
            f"{lost[0]!r}, which would be random{f'; they have others, such as {others[0]!r}' if others else ''}. Take "
            "weights and config.json of one model."
        )
    for key, tensor in model.named_parameters():
        if not tensor.is_meta and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"The tensor {key!r} of {name!r} holds NaN or infinite values. Take an undamaged model.")


def check_inputs(
    model: Any, tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, Any], *, target_length: int | None = None
) -> None:
    """Refuse tokens that the model has no embedding for, and rows that are longer than its positions.

    Args:
        model: to be trained, perhaps with an adapter.
        tokenizer: its padding is a token too.
        sets: tokenised corpora and evaluation sets, by the names of their fields; streams are not looked at.
        target_length: the longest output that is generated.
    """
    inner = unwrap_peft(model)
    size = inner.get_input_embeddings().weight.shape[0]
    encoder, decoder = num_positions(inner, "encoder"), num_positions(inner, "decoder")
    config = getattr(model, "active_peft_config", None)
    added = config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
        raise ValueError(
            f"The tokenizer pads with {tokenizer.pad_token!r}, the token {tokenizer.pad_token_id}, but the model has "
            f"{size} embeddings. Set its `pad_token` to a token of the model."
        )
    if target_length is not None and target_length > decoder:
        raise ValueError(
            f"`max_target_length` or `generation_max_length` ({target_length}) is more than the model's {decoder:g} "
            "positions. Lower it."
        )
    for name, dataset in sets.items():
        for column in ("input_ids", "labels") if target_length is not None else ("input_ids",):
            highest, longest = _extent(dataset, column)
            if highest >= size:
                raise ValueError(
                    f"`{name}` has the token {highest} in its {column}, but the model has {size} embeddings: its "
                    "tokenizer is not its own, or has tokens that were added to it alone."
                )
            limit = decoder if column == "labels" else encoder if target_length is not None else min(encoder, decoder)
            if longest + added > limit:
                raise ValueError(
                    f"`{name}` has a row of {longest} tokens{f' and {added} virtual ones' if added else ''}, but the "
                    f"model has {limit:g} positions. Lower `max_length`{' or `num_virtual_tokens`' if added else ''}."
                )


def num_positions(model: nn.Module, side: str) -> float:
    """Return how many positions a model has a table for, in its decoder or elsewhere; without a table no limit."""
    found = [float("inf")]
    for path, parent in model.named_modules():
        for name, table in parent.named_children():
            if POSITION_TABLE.fullmatch(name) and isinstance(table, nn.Embedding):
                padding = getattr(parent, "padding_idx", None) if name == "position_embeddings" else None
                offset = getattr(table, "offset", 0 if padding is None else padding + 1)  # RoBERTa's begin behind it
                if ("decoder" in path.split(".")) == (side == "decoder"):
                    found.append(table.num_embeddings - offset)
    return min(found)


def _extent(dataset: Any, column: str) -> tuple[int, int]:
    """Return the highest number in a column of lists, and the length of the longest; −1 and 0 where it has none."""
    if not isinstance(dataset, datasets.Dataset) or column not in dataset.column_names:
        return -1, 0
    highest, longest = -1, 0
    for values in dataset.select_columns([column]).with_format("arrow")[:][column].chunks:
        length = 0
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            length = pc.max(pc.list_value_length(values)).as_py() or 0  # of the innermost
            values = values.flatten()
        if length:
            highest, longest = max(highest, pc.max(values).as_py()), max(longest, length)
    return highest, longest


def count_cut(raw: Any, encoded: Any, encode_whole: Encode, limits: Mapping[str, int]) -> int | None:
    """Return how many rows would be longer than they are, had they no limit; `None` for a stream.

    Args:
        raw: rows with the columns of a task.
        encoded: the same rows as model inputs.
        encode_whole: encodes them without a limit; only rows that reach theirs are encoded again.
        limits: the most tokens, by column of `encoded`.
    """
    if not isinstance(encoded, datasets.Dataset):
        return None
    lengths = {column: _lengths(encoded, column) for column in limits if column in encoded.column_names}
    reached = [found >= limits[column] for column, found in lengths.items() if found is not None]
    rows = np.flatnonzero(np.any(reached, axis=0)) if reached else np.array([], dtype=np.intp)
    if not len(rows):
        return 0
    whole = raw.select(rows).map(encode_whole, batched=True, remove_columns=raw.column_names)
    longer = [_lengths(whole, column) > found[rows] for column, found in lengths.items() if found is not None]
    return int(np.any(longer, axis=0).sum())


def _lengths(dataset: datasets.Dataset, column: str) -> npt.NDArray[Any] | None:
    """Return the lengths of a column of lists of numbers, if it is one."""
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or pa.types.is_nested(kind.value_type):
        return None
    return np.asarray(pc.list_value_length(values))
