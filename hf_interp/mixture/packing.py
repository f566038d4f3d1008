"""Lengths of examples in tokens, and packing, which makes all of them equal."""

from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_interp.mixture.permutations import IntArray

SAMPLE = 1000  # examples whose lengths are averaged where they must be read one by one
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

    Raises:
        ValueError: if examples have none, or for a stream.

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


def pack(dataset: Any, length: int, *, separator: int | None = None) -> Any:
    """Concatenate the token sequences of a corpus and split them into examples of exactly `length` tokens.

    Pack every corpus by itself: no example then holds tokens of two corpora, and a share of examples is a share of
    tokens. Rows are packed 10,000 at a time; what is left at the end of each such group, fewer than `length` tokens, is
    dropped.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset` with a column `input_ids`. Columns that go along
            with it token by token (`labels`, `attention_mask`, ...) are packed alike; all others are dropped.
        length: tokens of an example.
        separator: a token to put after each sequence, such as `tokenizer.eos_token_id`. It can only be put where
            `input_ids` is the only column, or goes with `attention_mask` and `labels`.

    Returns:
        a dataset of the same kind.

    Raises:
        ValueError: for a length below 1, a dataset without `input_ids`, a separator for columns it is not known for.

    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4], [5, 6]]})
    >>> pack(rows, 2)["input_ids"][:]
    [[1, 2], [3, 4], [5, 6]]
    >>> pack(rows, 4, separator=0)["input_ids"][:]
    [[1, 2, 3, 0], [4, 0, 5, 6]]
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1, got {length}.")
    columns = list(dataset.column_names or next(iter(dataset), {}))
    if "input_ids" not in columns:
        raise ValueError(f"Packing needs a column 'input_ids', got {columns}. Tokenise the corpus first.")

    def pack_rows(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        packed = {}
        for name in columns:
            if all(
                isinstance(value, list) and len(value) == len(ids)
                for value, ids in zip(rows[name], rows["input_ids"], strict=True)
            ):
                filler = _filler(name, separator)
                packed[name] = [token for value in rows[name] for token in (*value, *filler)]
        usable = len(packed["input_ids"]) // length * length
        return {
            name: [tokens[begin : begin + length] for begin in range(0, usable, length)]
            for name, tokens in packed.items()
        }

    return dataset.with_format(None).map(pack_rows, batched=True, batch_size=ROWS, remove_columns=columns)


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
