"""Lengths of examples in tokens, and packing, which makes all of them equal or nearly so."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_interp.mixture.permutations import IntArray
from hf_interp.utils.errors import check_choice

SAMPLE = 1000  # examples whose lengths are averaged where they must be read one by one
NO_LABEL = -100  # at which no loss is computed
ROWS = 10_000  # rows that are looked at, or packed, at a time


def mean_tokens(dataset: Any) -> float | None:
    """Return the mean length of `input_ids`; `None` if examples have none, or for a stream.

    Exact for a `datasets.Dataset`; for other datasets of some 1,000 examples spaced evenly.

    >>> mean_tokens([{"input_ids": [1, 2, 3]}, {"input_ids": [1]}])
    2.0
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or len(dataset) == 0:
        return None
    if isinstance(dataset, datasets.Dataset):
        if "input_ids" not in dataset.column_names:
            return None
        return int(token_lengths(dataset).sum()) / len(dataset)
    count = min(len(dataset), SAMPLE)
    examples = [dataset[index * len(dataset) // count] for index in range(count)]
    if not all(hasattr(example, "keys") and "input_ids" in example for example in examples):
        return None
    return sum(len(example["input_ids"]) for example in examples) / count


def token_lengths(dataset: Any) -> IntArray:
    """Return the length of `input_ids` of every example; those of a `datasets.Dataset` are not read one by one.

    >>> token_lengths([{"input_ids": [1, 2, 3]}, {"input_ids": [1]}]).tolist()
    [3, 1]
    """
    if isinstance(dataset, datasets.Dataset) and "input_ids" in dataset.column_names:
        tables = dataset.with_format(None).select_columns("input_ids").with_format("arrow")
        lengths = [pc.list_value_length(rows["input_ids"]).to_numpy() for rows in tables.iter(ROWS)]
        return np.concatenate(lengths).astype(np.int64)
    try:
        return np.array([len(dataset[index]["input_ids"]) for index in range(len(dataset))], np.int64)
    except (AttributeError, KeyError, TypeError):
        raise ValueError("Examples have no length in tokens without `input_ids`, and those of a stream none.") from None


def pack(
    dataset: Any, length: int, *, separator: int | None = None, strategy: Literal["wrapped", "bfd"] = "wrapped"
) -> Any:
    """Concatenate the token sequences of a corpus into examples of `length` tokens.

    Pack every corpus by itself: no example then holds tokens of two corpora, and a share of examples is a share of
    tokens. Rows are packed 10,000 at a time, of a stream those that one reader has.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset` with a column `input_ids`. Columns that go along
            with it token by token (`labels`, `attention_mask`, ...) are packed alike; all others are dropped.
        length: tokens of an example.
        separator: a token to put after each sequence, such as `tokenizer.eos_token_id`. It can only be put where
            `input_ids` is the only column, or goes with `attention_mask` and `labels`.
        strategy: "wrapped" cuts what is joined into examples of exactly `length` tokens, and drops what is left at the
            end of a group. "bfd" (best fit decreasing) keeps sequences whole, so that examples have `length` tokens at
            the most: the longest first, each goes to the fullest example that has room. Only one longer than `length`
            is cut, into pieces; a token alone is dropped. `position_ids` begin anew with each sequence, whose first
            token has no label, so that a model tells them apart (see `PackedCollator`).

    Returns:
        a dataset of the same kind.

    Raises:
        ValueError: for a length below 1, a dataset without `input_ids`, a separator for columns it is not known for.

    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4], [5, 6]]})
    >>> pack(rows, 2)["input_ids"][:]
    [[1, 2], [3, 4], [5, 6]]
    >>> pack(rows, 4, separator=0)["input_ids"][:]
    [[1, 2, 3, 0], [4, 0, 5, 6]]
    >>> pack(rows, 5, strategy="bfd")[0]
    {'input_ids': [1, 2, 3, 5, 6], 'labels': [-100, 2, 3, -100, 6], 'position_ids': [0, 1, 2, 0, 1]}
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1, got {length}.")
    check_choice("strategy", strategy, ("wrapped", "bfd"))
    columns = list(dataset.column_names or next(iter(dataset), {}))
    if "input_ids" not in columns:
        raise ValueError(f"Packing needs a column 'input_ids', got {columns}. Tokenise the corpus first.")

    def pack_rows(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        along = {
            name: [[*value, *_filler(name, separator)] for value in rows[name]]
            for name in columns
            if all(
                isinstance(value, list) and len(value) == len(ids)
                for value, ids in zip(rows[name], rows["input_ids"], strict=True)
            )
        }
        if strategy == "bfd":
            return _fit(along, length)
        packed = {name: list(chain.from_iterable(values)) for name, values in along.items()}
        usable = len(packed["input_ids"]) // length * length
        return {
            name: [tokens[begin : begin + length] for begin in range(0, usable, length)]
            for name, tokens in packed.items()
        }

    return dataset.with_format(None).map(pack_rows, batched=True, batch_size=ROWS, remove_columns=columns)


def _fit(columns: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
    """Return examples of whole sequences, with position ids and labels that keep these apart."""
    ids = columns["input_ids"]
    pieces = [
        (row, slice(begin, begin + length))
        for row, tokens in enumerate(ids)
        for begin in range(0, len(tokens) - 1, length)  # but for a last token alone, which nothing predicts
    ]
    cut = {name: [values[row][part] for row, part in pieces] for name, values in columns.items()}
    cut.pop("attention_mask", None)
    cut["labels"] = [[NO_LABEL, *tokens[1:]] for tokens in cut.get("labels", cut["input_ids"])]
    cut["position_ids"] = [list(range(len(tokens))) for tokens in cut["input_ids"]]
    members = best_fit([len(tokens) for tokens in cut["input_ids"]], length)
    return {
        name: [list(chain.from_iterable(values[index] for index in each)) for each in members]
        for name, values in cut.items()
    }


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Return which items share a bin: the largest first, each goes into the fullest bin that has room for it.

    Bins, and items in one, are in the order of the items.

    >>> best_fit([3, 5, 1, 2], 6)
    [[0, 3], [1, 2]]
    """
    bins: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room of a bin and its index, in ascending order
    for item in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        place = bisect_left(left, (sizes[item], 0))
        if place == len(left):
            bins.append([])
            left.append((room, len(bins) - 1))
        free, index = left.pop(place)
        bins[index].append(item)
        insort(left, (free - sizes[item], index))
    return sorted(map(sorted, bins))


def _filler(column: str, separator: int | None) -> list[int]:
    """Return what stands in a column at the place of a separator."""
    if separator is None:
        return []
    known = {"input_ids": separator, "labels": separator, "attention_mask": 1}
    if column not in known:
        raise ValueError(
            f"`separator` is not known to go with the column {column!r}. Remove the column, or add the separators when "
            "tokenising."
        )
    return [known[column]]
