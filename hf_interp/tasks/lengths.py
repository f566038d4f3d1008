"""Rows that are longer than what a model is shown of them: how many are cut."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hf_interp.tasks.encoding import Encode

UNLIMITED = 2**30  # tokens


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
