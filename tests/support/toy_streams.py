"""Streams of numbers: plain ones, ones that know their place, one that breaks, and those of datasets."""

from collections.abc import Callable, Iterator
from typing import Any

import datasets
from torch.utils.data import IterableDataset
from toys import DOMAIN_FIRST

NUMBERS = {"general": list(range(40)), "domain": list(range(DOMAIN_FIRST, DOMAIN_FIRST + 12))}


class Numbers(IterableDataset[int]):
    """Counts up, and notes how often it has been begun and how far it has been read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = 0
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        for number in range(self.count):
            self.given += 1
            yield number


class KeptNumbers(Numbers):
    """Counts up, and can tell where it is."""

    place = 0
    loaded = 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        first, self.loaded = self.loaded, 0
        for number in range(first, self.count):
            self.given += 1
            self.place = number + 1
            yield number

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["place"]


class Failing(IterableDataset[int]):
    """Counts up to 7, where it breaks."""

    def __iter__(self) -> Iterator[int]:
        yield from range(7)
        raise OSError("connection lost")


def rows(count: int, num_shards: int = 1) -> datasets.IterableDataset:
    """Row i of a stream has the number i."""
    return datasets.Dataset.from_dict({"a": list(range(count))}).to_iterable_dataset(num_shards=num_shards)


def number_of(example: Any) -> int:
    return int(example["a"] if isinstance(example, dict) else example)


STREAMS: dict[str, Callable[[], Any]] = {
    "torch": lambda: Numbers(400),
    "torch with a state": lambda: KeptNumbers(400),
    "1 shard": lambda: rows(400),
    "2 shards": lambda: rows(400, 2),
    "7 shards": lambda: rows(400, 7),
    "mapped": lambda: rows(400, 2).map(lambda row: {"a": row["a"]}),
    "short": lambda: rows(9, 3),
}
"""Streams of the numbers 0 … 399, of which no reader comes to an end, and one that is passed through often."""
