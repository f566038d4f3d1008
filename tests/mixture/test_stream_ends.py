"""Streams that a plan reads beyond their end are found before the run."""

from collections.abc import Iterator
from typing import Any

import datasets
import pytest
from toy_streams import Numbers, rows

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import constant
from hf_interp.mixture.stream_ends import MOST_READ, check_stream_ends


class Measured(Numbers):
    """A stream that knows its length."""

    def __len__(self) -> int:
        return self.count


def check(stream: Any, max_passes: float | None = None, num_readers: int = 1, max_steps: int = 10) -> None:
    """Check a mixture that reads two examples of the stream in each step."""
    corpora = [Corpus("general", range(100), "general"), Corpus("law", stream, max_passes=max_passes)]
    specs = [corpus.spec() for corpus in corpora]
    plan = MixturePlan(specs, alpha_schedule=constant(0.5), batch_size=4, max_steps=max_steps)
    check_stream_ends(corpora, plan, num_readers)


@pytest.mark.parametrize("make", [rows, Measured])
@pytest.mark.parametrize(
    ("size", "max_passes", "is_enough"), [(20, 1, True), (19, 1, False), (10, 2, True), (9, 2, False), (1, None, True)]
)
def test_a_stream_has_what_is_drawn_of_it(make: Any, size: int, max_passes: float | None, is_enough: bool) -> None:
    if is_enough:
        check(make(size), max_passes)
        return
    with pytest.raises(ValueError, match=rf"'law' is a stream that ends after {size} examples, but 1 readers take 20"):
        check(make(size), max_passes)


def test_every_reader_has_a_part() -> None:
    check(rows(3), num_readers=3)
    with pytest.raises(ValueError, match=r"ends after 3 examples, but 4 readers take 20 of it\. Take fewer"):
        check(rows(3), num_readers=4)
    with pytest.raises(ValueError, match="ends after 0 examples"):
        check(rows(5).filter(lambda row: row["a"] > 9))


def test_what_would_take_long_to_read_or_cannot_be_told_is_let_through() -> None:
    check(rows(5), 1, max_steps=MOST_READ)
    check(Numbers(5), 1)


def broken() -> Iterator[dict[str, int]]:
    yield {"a": 1}
    raise OSError("truncated")


def test_a_stream_that_breaks_says_where() -> None:
    stream = datasets.IterableDataset.from_generator(broken)
    with pytest.raises(RuntimeError, match=r"The stream of corpus 'law' failed after 1 examples of pass 1 .*truncated"):
        check(stream, 1)


def test_a_stream_is_left_where_it_was() -> None:
    stream = rows(30, 2)
    check(stream, 1)
    assert [row["a"] for row in stream] == list(range(30))
