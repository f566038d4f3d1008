"""Streams: every example once a pass, from any place exactly, by any number of readers."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from toys import Failing, KeptNumbers, Numbers, number_of, rows

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import constant
from hf_interp.mixture.streams import MOST_READ, StreamReader, check_stream_ends, divide_anew, stream_warnings


def stream(dataset: Any, reader: int = 0, num_readers: int = 1, **kwargs: Any) -> StreamReader:
    return StreamReader(Corpus("law", dataset), reader, num_readers, **kwargs)


def read(reader: StreamReader, count: int) -> list[int]:
    return [number_of(example) for example in reader.read(count)]


def generated(shards: list[list[int]]) -> Iterator[dict[str, int]]:
    for shard in shards:
        yield from ({"a": number} for number in shard)


STREAMS: dict[str, Callable[[], Any]] = {
    "torch": lambda: Numbers(11),
    "torch with a state": lambda: KeptNumbers(11),
    "1 shard": lambda: rows(11),
    "4 shards": lambda: rows(11, 4),
    "7 shards": lambda: rows(11, 7),
    "mapped": lambda: rows(11, 2).map(lambda row: {"a": row["a"]}),
    "mapped in groups": lambda: rows(11, 2).map(lambda row: {"a": row["a"]}, batched=True, batch_size=3),
    "filtered": lambda: rows(22, 4).filter(lambda row: row["a"] % 2 == 0).map(lambda row: {"a": row["a"] // 2}),
    "generated": lambda: datasets.IterableDataset.from_generator(
        generated, gen_kwargs={"shards": [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]}
    ),
    "joined": lambda: datasets.concatenate_datasets([rows(4, 2), rows(7, 2).map(lambda row: {"a": row["a"] + 4})]),
    "shuffled files": lambda: rows(11, 4).shuffle(seed=3, buffer_size=1),
}
"""Streams of the numbers 0 … 10."""


@pytest.mark.parametrize("num_readers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", STREAMS)
def test_in_a_pass_all_readers_together_read_every_example_once(kind: str, num_readers: int) -> None:
    found: list[int] = []
    for each in range(num_readers):
        part = stream(STREAMS[kind](), each, num_readers)
        first = read(part, 1)
        while part.state_dict()["passes"] == 1:
            first += read(part, 1)
        found += first[:-1]
    assert sorted(found) == list(range(11))


@pytest.mark.parametrize(("reader", "num_readers"), [(0, 1), (0, 2), (1, 2), (2, 5), (4, 5)])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_goes_on_from_any_place_exactly(kind: str, reader: int, num_readers: int) -> None:
    whole = stream(STREAMS[kind](), reader, num_readers)
    states, found = [whole.state_dict()], []
    count = 2 * 11 // num_readers + 2  # some two passes
    for _ in range(count):
        found += read(whole, 1)
        states.append(whole.state_dict())
    for place, state in enumerate(states):
        assert state["num_read"] == place
        again = stream(STREAMS[kind](), reader, num_readers, state=json.loads(json.dumps(state)))
        assert again.num_read == place
        assert again.state_dict() == state
        assert read(again, count - place) == found[place:]
        assert again.state_dict()["num_read"] == count


def test_a_stream_that_keeps_its_place_is_not_read_again() -> None:
    kept, plain = KeptNumbers(100), Numbers(100)
    for source, given in ((kept, 1), (plain, 51)):
        first = stream(source)
        first.read(50)
        source.given = 0
        assert read(stream(source, state=first.state_dict()), 1) == [50]
        assert source.given == given


def test_readers_take_turns_in_a_stream_without_shards() -> None:
    assert [read(stream(Numbers(11), each, 3), 6) for each in range(3)] == [
        [0, 3, 6, 9, 0, 3],
        [1, 4, 7, 10, 1, 4],
        [2, 5, 8, 2, 5, 8],
    ]


def test_readers_divide_the_shards_and_take_turns_in_shards_that_they_share() -> None:
    assert [read(stream(rows(8, 4), each, 2), 4) for each in range(2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [read(stream(rows(8, 4), each, 4), 3) for each in range(4)] == [[0, 1, 0], [2, 3, 2], [4, 5, 4], [6, 7, 6]]
    assert [read(stream(rows(8, 2), each, 3), 3) for each in range(3)] == [[0, 2, 0], [4, 5, 6], [1, 3, 1]]


def test_a_stream_is_read_as_plain_iteration_reads_it() -> None:
    source = Numbers(5)
    reader = stream(source)
    assert reader.state_dict() == {"num_read": 0, "passes": 0, "in_pass": 0, "stream": None}
    assert source.begun == 0
    assert [number for _ in range(6) for number in reader.read(3)] == [number % 5 for number in range(18)]
    assert (source.begun, source.given) == (4, 18)
    assert reader.state_dict() == {"num_read": 18, "passes": 4, "in_pass": 3, "stream": None}
    assert reader.read(0) == []


@pytest.mark.parametrize(("max_passes", "fits"), [(1, 3), (2, 6), (1.5, 6), (None, 30)])
def test_a_stream_ends_after_its_passes(max_passes: float | None, fits: int) -> None:
    reader = StreamReader(Corpus("law", Numbers(3), max_passes=max_passes))
    assert reader.read(fits) == [number % 3 for number in range(fits)]
    if max_passes is None:
        return
    message = rf"Corpus 'law' has ended after {fits // 3} passes and its `max_passes` is {max_passes}\. Take fewer"
    with pytest.raises(ValueError, match=message):
        reader.read(1)
    again = StreamReader(Corpus("law", Numbers(3), max_passes=max_passes), state=reader.state_dict())
    with pytest.raises(ValueError, match=message):
        again.read(1)


@pytest.mark.parametrize("source", [Numbers(0), rows(3).filter(lambda row: row["a"] > 9)])
def test_an_empty_stream_is_refused(source: Any) -> None:
    message = r"Corpus 'law' is an empty stream for reader 1 of 1\. Check its path, split and filters.*processes times"
    with pytest.raises(ValueError, match=message):
        stream(source).read(1)


@pytest.mark.parametrize("kind", ["torch", "1 shard", "7 shards"])
def test_a_reader_that_gets_nothing_of_a_stream_is_refused(kind: str) -> None:
    assert len(read(stream(STREAMS[kind](), 10, 11), 2)) == 2  # the eleventh of eleven still has one
    for each in range(11):
        assert len(read(stream(STREAMS[kind](), each, 12), 2)) == 2
    with pytest.raises(ValueError, match=r"is an empty stream for reader 12 of 12\."):
        stream(STREAMS[kind](), 11, 12).read(1)


def test_a_stream_that_breaks_is_named_with_the_reader_and_the_place() -> None:
    broken = stream(Failing())
    assert broken.read(7) == list(range(7))
    message = r"stream of corpus 'law' failed after 7 examples of pass 1 \(reader 1 of 1\): OSError: connection lost"
    with pytest.raises(RuntimeError, match=message) as caught:
        broken.read(1)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RuntimeError, match=r"'law' failed after 3 examples of pass 1 \(reader 2 of 2\): OSError"):
        stream(Failing(), 1, 2).read(5)


def test_a_stream_that_breaks_in_a_later_pass_names_the_pass() -> None:
    reader = stream(rows(5))
    reader.read(7)
    reader._iterator = iter(Failing())
    with pytest.raises(RuntimeError, match="failed after 9 examples of pass 2"):
        reader.read(8)


@pytest.mark.parametrize(("num_shards", "num_readers"), [(1, 1), (4, 1), (4, 2), (1, 2)])
def test_a_shuffled_stream_has_a_new_order_every_pass(num_shards: int, num_readers: int) -> None:
    source = rows(24, num_shards).shuffle(seed=3, buffer_size=24)
    own = 24 // num_readers
    readers = [stream(source, each, num_readers) for each in range(num_readers)]
    # the readers come in turns, as in one process: no epoch of one may be another's
    passes = [[number for each in readers for number in read(each, own)] for _ in range(3)]
    assert all(sorted(order) == list(range(24)) for order in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    alone = [read(stream(source, each, num_readers), 3 * own) for each in range(num_readers)]
    assert [number for part in alone for number in part[own : 2 * own]] == passes[1]


def test_a_stream_may_be_shuffled_anew_by_its_epoch() -> None:
    source = rows(8, 8).shuffle(seed=5, buffer_size=1)
    reader = stream(source)
    found = [read(reader, 8) for _ in range(3)]
    for epoch, order in enumerate(found):
        source.set_epoch(epoch)
        assert [row["a"] for row in source] == order


def test_a_shuffle_buffer_keeps_the_pace_when_it_goes_on() -> None:
    first = stream(rows(30).shuffle(seed=3, buffer_size=4))
    read(first, 20)
    state = json.loads(json.dumps(first.state_dict()))
    again = stream(rows(30).shuffle(seed=3, buffer_size=4), state=state)
    assert again.num_read == 20
    assert set(read(again, 5)) <= set(range(16, 30))


# Other readers.


def files(folder: Path, rows: Sequence[int]) -> datasets.IterableDataset:
    """A stream of JSON files of so many rows each; the numbers go on from file to file."""
    for index, count in enumerate(rows):
        numbers = range(sum(rows[:index]), sum(rows[:index]) + count)
        (folder / f"{index:02}.jsonl").write_text("".join(json.dumps({"a": number}) + "\n" for number in numbers))
    paths = [str(folder / f"{index:02}.jsonl") for index in range(len(rows))]
    return datasets.load_dataset("json", data_files=paths, split="train", streaming=True)


def read_by(make: Callable[[], Any], states: list[Any], turns: int) -> tuple[list[tuple[int, int]], list[Any]]:
    """Return pass and number of what readers in turns read from their states on, and their states after that."""
    readers = [stream(make(), each, len(states), state=state) for each, state in enumerate(states)]
    found = []
    for _ in range(turns):
        for reader in readers:
            number, state = *read(reader, 1), reader.state_dict()
            found.append((state["left"][0][0] if "left" in state else state["passes"], number))
    return found, json.loads(json.dumps([reader.state_dict() for reader in readers]))


KINDS: dict[str, Callable[[Path], Any]] = {
    "files": lambda folder: files(folder, [3, 5, 0, 4, 7, 1, 2, 8]),
    "mapped": lambda folder: files(folder, [9, 9, 9, 3]).map(lambda row: row, batched=True, batch_size=2),
    "joined": lambda folder: datasets.concatenate_datasets(
        [files(folder, [5] * 3), rows(15, 3).map(lambda row: {"a": row["a"] + 15})]
    ),
    "1 shard": lambda folder: rows(30),
    "torch": lambda folder: Numbers(30),
    "torch with a state": lambda folder: KeptNumbers(30),
}


@pytest.mark.parametrize("turns", [(7, 5, 4, 60), (40, 11, 1, 90), (2, 1, 13, 70)])
@pytest.mark.parametrize("kind", KINDS)
def test_other_readers_go_on_with_every_row_once_a_pass(tmp_path: Path, kind: str, turns: Sequence[int]) -> None:
    make = partial(KINDS[kind], tmp_path)
    states: list[Any] = [None]
    found: list[tuple[int, int]] = []
    for num_readers, count in zip((1, 2, 4, 1), turns, strict=True):
        if found:
            states = divide_anew(make(), dict(enumerate(states)), len(states), num_readers)
            assert len({state["num_read"] * num_readers >= len(found) for state in states}) == 1
        more, states = read_by(make, states, count)
        found += more
    reads = Counter(found)
    assert set(reads.values()) == {1}
    last = found[-1][0]  # of the one reader at the end
    numbers = {number for _, number in found}
    assert len(numbers) in (30, 39)
    for in_pass in range(1, last):
        assert {number for each, number in found if each == in_pass} == numbers


def test_what_is_left_is_divided_by_shards(tmp_path: Path) -> None:
    source = files(tmp_path, [3, 3, 3, 3])
    found, states = read_by(lambda: source, [None], 4)
    assert [number for _, number in found] == [0, 1, 2, 3]
    two = divide_anew(source, dict(enumerate(states)), 1, 2)
    found, states = read_by(lambda: source, two, 5)
    assert [number for _, number in found[::2]] == [4, 5, 9, 10, 11]  # goes on in the second file, then has the last
    assert found[1::2] == [(1, 6), (1, 7), (1, 8), (2, 3), (2, 4)]  # has the third, and begins the next pass
    found, _ = read_by(lambda: source, divide_anew(source, dict(enumerate(states)), 2, 1), 11)
    assert found == [(2, number) for number in (5, 0, 1, 2, 6, 7, 8, 9, 10, 11)] + [(3, 0)]
    assert divide_anew(source, {}, 3, 1) == [{"num_read": 0, "passes": 0, "in_pass": 0, "stream": None, "left": []}]


def test_a_stream_that_an_earlier_version_kept_is_refused() -> None:
    state = {"num_read": 3, "passes": 1, "in_pass": 3, "stream": {}}
    with pytest.raises(ValueError, match="The checkpoint keeps a stream as an earlier version read it"):
        stream(rows(8, 4), state=state)


# Warnings.


@pytest.mark.parametrize(
    ("source", "num_readers", "expected"),
    [
        (rows(8, 4), 4, []),
        (rows(8, 4), 5, [r"'law' has 4 shards for 5 readers \(processes times workers\).*at least 5 files.*reshard"]),
        (rows(8), 1, []),
        (rows(8).shuffle(seed=0, buffer_size=4), 1, ["'law' is shuffled in a buffer, .*shuffle the files beforehand"]),
        (rows(8).shuffle(seed=0, buffer_size=4).map(lambda row: row).filter(bool), 1, ["is shuffled in a buffer"]),
        (datasets.concatenate_datasets([rows(8), rows(8).shuffle(seed=0, buffer_size=4)]), 1, ["shuffled in a buffer"]),
        (datasets.concatenate_datasets([rows(8), rows(8)]), 1, []),
        (rows(8).shuffle(seed=0, buffer_size=4), 2, ["has 1 shards for 2 readers", "is shuffled in a buffer"]),
        (Numbers(3), 9, ["'law' is a stream without `state_dict` and `load_state_dict`.*exact but takes time"]),
        (KeptNumbers(3), 9, []),
        (range(3), 9, []),
        (datasets.Dataset.from_dict({"a": [1]}), 9, []),
    ],
)
def test_warnings_of_streams(source: Any, num_readers: int, expected: list[str]) -> None:
    found = stream_warnings([Corpus("web", range(2), "general"), Corpus("law", source)], num_readers)
    assert len(found) == len(expected)
    for warning, message in zip(found, expected, strict=True):
        assert re.search(message, warning)


# Streams that a plan reads beyond their end are found before the run.


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
