"""Inputs told apart by their content: parts of a corpus that share none, and rows of a set that were trained on."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

FEW, ENOUGH, FEW_TEXTS = 100, 400, 20  # rows of a set to measure by

Keys = npt.NDArray[np.uint64]


def content_key(value: Any, turn_key: str = "content") -> int:
    """Return 64 bits of a hash of an input, whatever its case and white space; of a dialogue without its last turn.

    `turn_key` is the key of the text in a turn.

    >>> content_key("So  Good ") == content_key(["so", "good"]) != content_key("so bad")
    True
    >>> content_key([{"content": None}, {"content": "a"}]) == content_key([{"content": ""}, {"content": "b"}])
    True
    """
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        value = b"".join(value)  # of several images
    if isinstance(value, bytes):
        return int.from_bytes(blake2b(value, digest_size=8).digest(), "big")
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        value = [turn.get(turn_key) or "" for turn in (value[:-1] or value)]
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    plain = " ".join(text.split()).casefold().encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(plain, digest_size=8).digest(), "big")


def content_keys(values: Iterable[Any], turn_key: str = "content") -> Keys:
    """Return the keys of inputs, in their order."""
    return np.fromiter((content_key(value, turn_key) for value in values), dtype=np.uint64)


def in_part(keys: Keys, part: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Return which inputs lie in a part of [0, 1), by their keys."""
    places = keys / 2.0**64
    return np.asarray((part[0] <= places) & (places < part[1]))


def keep_part(
    name: str, dataset: Any, part: Sequence[float], columns: list[str], turn_key: str, read: Callable[[Any, int], Any]
) -> Any:
    """Keep the rows of a dataset whose input lies in a part of [0, 1).

    `read` returns what tells an input from others, of what a row has in the columns: its input, and its number.
    """
    is_part = len(part) == 2 and all(isinstance(end, (int, float)) for end in part) and 0 <= part[0] < part[1] <= 1
    if not is_part:
        raise ValueError(
            f"`part` of corpus {name!r} must be two rising numbers in [0, 1], such as [0, 0.8], got {part}."
        )
    return dataset.filter(
        lambda value, index: bool(in_part(content_keys([read(value, index)], turn_key), part)[0]),
        input_columns=columns,
    )


def count_shared(keys: Keys, others: Sequence[Keys]) -> int:
    """Return how many inputs are among others."""
    return int(np.isin(keys, np.concatenate(others)).sum()) if others else 0


def format_few(rows: Mapping[str, int], answer: str | None = None) -> list[str]:
    """Return a sentence on the sets that have too few rows to measure by, if there are any.

    A share of n rows, such as accuracy, lies within 1.96·√(¼ ÷ n) of that of all possible rows 19 times of 20, or
    nearer. Of metrics of tokens, which `answer` tells, each row has many, and no such number is given.

    >>> print(*format_few({"domain": 4, "general": 500}))
    Few rows to measure by: `domain` 4. Metrics may be off by 49 points by chance (95%); with 400 rows it is 5.
    """
    of_tokens = answer in ("tags", "masks", "continuation")
    few = {name: count for name, count in rows.items() if 0 < count < (FEW_TEXTS if of_tokens else FEW)}
    if not few:
        return []
    counts = ", ".join(f"`{name}` {count:,}" for name, count in few.items())
    least = f"Metrics may be off by {_points(min(few.values())):.0f} points by chance (95%); with {ENOUGH} rows it is"
    rest = "What they show may not hold for others" if of_tokens else f"{least} {_points(ENOUGH):.0f}"
    return [f"Few rows to measure by: {counts}. {rest}."]


def _points(rows: int) -> float:
    """Return half the width of a 95% interval of a share, in percentage points, where it is widest."""
    return 100 * 1.96 * math.sqrt(0.25 / rows)


def format_shared(shared: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a sentence for every set with rows that were trained on."""
    return [
        f"{rows:,} of {total:,} rows of `{name}` ({rows / total:.1%}) are also trained on (whatever their case and "
        "white space), so that its metrics promise too much."
        for name, (rows, total) in shared.items()
        if rows
    ]
