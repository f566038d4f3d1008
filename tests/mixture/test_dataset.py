"""The mixture as a dataset: order, workers, state, random transforms."""

import json
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from toys import DOMAIN_FIRST, corpus, mixture

from hf_interp import Corpus, InterpolatedDataset, MixturePlan
from hf_interp.mixture.collators import random_state_of_slot
from hf_interp.mixture.plan import hash_of_reads
from hf_interp.mixture.schedules import constant, linear
from hf_interp.mixture.slots import (
    CORPUS_KEY,
    ORDER_KEY,
    STREAMS_KEY,
    BatchShard,
    SlotCollator,
    SlotDataset,
    SlotRequest,
    SlotSampler,
    _halves,
    whole_hash,
)

NUMBERS = {"general": list(range(40)), "domain": list(range(DOMAIN_FIRST, DOMAIN_FIRST + 12))}


def slots(parts: dict[str, Any], batch_size: int = 4, max_steps: int = 6) -> SlotDataset:
    corpora = [Corpus(name, dataset, name) for name, dataset in parts.items()]
    planned = [part.spec() for part in corpora]
    return SlotDataset(
        MixturePlan(planned, alpha_schedule=linear(), batch_size=batch_size, max_steps=max_steps), corpora
    )


def numbers(**kwargs: Any) -> InterpolatedDataset:
    return InterpolatedDataset(NUMBERS, **{"batch_size": 8, "max_steps": 6, "alpha_schedule": linear(), **kwargs})


def test_a_slot_holds_what_the_plan_puts_there() -> None:
    dataset = slots(NUMBERS)
    draw = dataset.plan.locate(range(24))
    expected = [
        NUMBERS["domain" if side else "general"][index]
        for side, index in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True)
    ]
    assert [dataset[slot] for slot in range(24)] == expected
    assert list(dataset.__getitems__(range(24))) == expected
    assert list(dataset.__getitems__([20, 3, 11])) == [expected[20], expected[3], expected[11]]


def test_a_batch_knows_its_corpora() -> None:
    dataset = slots(NUMBERS)
    batch = dataset.__getitems__(range(8, 16))
    assert [side == 1 for side in batch.corpus.tolist()] == [number >= DOMAIN_FIRST for number in batch]
    assert batch.first_slot == 8


def test_examples_look_as_their_corpus_gives_them() -> None:
    for form in (None, "numpy", "torch"):
        parts = {side: dataset.with_format(form) for side, dataset in mixture().items()}
        example = slots(parts)[0]
        index = int(slots(parts).plan.locate([0]).example[0])
        assert type(example["input_ids"]) is type(parts["general"][index]["input_ids"])
        assert list(example["input_ids"]) == list(parts["general"][index]["input_ids"])


def test_the_sampler_asks_for_the_slots_of_its_process_in_order() -> None:
    plan = slots(NUMBERS).plan
    for split, firsts in (
        (BatchShard(4), [0, 4, 8, 12, 16, 20]),
        (BatchShard(2, num_processes=2), [0, 4, 8, 12, 16, 20]),
        (BatchShard(2, num_processes=2, process_index=1), [2, 6, 10, 14, 18, 22]),
        (BatchShard(1, num_processes=2, process_index=1), [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]),
        (BatchShard(2), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
    ):
        requests = list(SlotSampler(plan, split))
        assert [request.first_slot for request in requests] == firsts
        for request in requests:
            draw = plan.locate(range(request.first_slot, request.first_slot + split.batch_size))
            assert (request.corpus.tolist(), request.example.tolist()) == (draw.corpus.tolist(), draw.example.tolist())
        for first in (0, 1, len(firsts) - 1, len(firsts)):
            sampler = SlotSampler(plan, split, first)
            assert len(sampler) == len(firsts)
            assert [request.first_slot for request in sampler] == firsts[first:]
            assert [request.first_slot for request in sampler] == firsts[first:]  # and once more


def test_a_request_is_read_as_the_slots_are() -> None:
    dataset = slots(NUMBERS)
    for request in SlotSampler(dataset.plan, BatchShard(4)):
        asked = dataset.__getitems__(request)
        found = dataset.__getitems__(range(request.first_slot, request.first_slot + 4))
        assert list(asked) == list(found)
        assert (asked.first_slot, asked.corpus.tolist()) == (found.first_slot, found.corpus.tolist())
        assert (asked.order_hash, asked.streams) == (found.order_hash, None)


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 1), (3, 1), (0, 2), (2, 2), (3, 4)])
def test_every_reader_is_of_one_process_and_takes_its_turns(workers: int, processes: int) -> None:
    readers = []
    for index in range(processes):
        split = BatchShard(2, processes, index, workers)
        assert split.num_readers == processes * max(workers, 1)
        own = [split.reader_of(split.first_slot(batch)) for batch in range(6)]
        assert own == [index * max(workers, 1) + batch % max(workers, 1) for batch in range(6)]
        readers += own
    assert sorted(set(readers)) == list(range(processes * max(workers, 1)))


def test_the_hash_of_what_is_read_is_that_of_the_plan_however_it_is_split() -> None:
    dataset = slots(NUMBERS, batch_size=8)
    for processes, size in ((1, 8), (2, 4), (4, 1)):
        hashes = [
            dataset.__getitems__(request).order_hash
            for index in range(processes)
            for request in SlotSampler(dataset.plan, BatchShard(size, processes, index))
        ]
        assert sum(hashes) % 2**64 == dataset.plan.read_hash(0, 6)
        halves = torch.stack([_halves(one) for one in hashes])
        assert whole_hash(halves.sum(0).tolist()) == dataset.plan.read_hash(0, 6)


def test_halves_of_a_hash_are_put_together_again() -> None:
    for value in (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1):
        assert whole_hash(_halves(value).tolist()) == value
    assert whole_hash([2**32, 2**32 + 5]) == 2**32 + 5  # sums carry over, and wrap around


def test_each_step_has_its_share() -> None:
    found = list(numbers(alpha_schedule=linear(0.0, 1.0), batch_size=10, max_steps=11))
    counts = [sum(number >= DOMAIN_FIRST for number in found[step * 10 : step * 10 + 10]) for step in range(11)]
    assert counts == list(range(11))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_order_does_not_depend_on_workers(workers: int) -> None:
    loader = DataLoader(numbers(gradient_accumulation_steps=2), batch_size=4, num_workers=workers)
    assert torch.cat(list(loader)).tolist() == list(numbers())


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 8)])
def test_processes_share_each_global_batch_without_overlap(processes: int, accumulation: int) -> None:
    whole = list(numbers())
    parts = [
        list(numbers(num_processes=processes, process_index=index, gradient_accumulation_steps=accumulation))
        for index in range(processes)
    ]
    own = 8 // processes
    for step in range(6):
        union = [number for part in parts for number in part[step * own : (step + 1) * own]]
        assert sorted(union) == sorted(whole[step * 8 : step * 8 + 8])
    assert all(len(part) == len(numbers(num_processes=processes)) for part in parts)


def test_state_resumes_at_any_point_without_reading_again() -> None:
    class Counting(list):  # type: ignore[type-arg]
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            Counting.reads += 1
            return super().__getitem__(index)

    whole = list(numbers())
    for point in (0, 1, 7, 8, 47, 48):
        first = numbers()
        iterator = iter(first)
        assert [next(iterator) for _ in range(point)] == whole[:point]
        Counting.reads = 0
        second = InterpolatedDataset(
            {k: Counting(v) for k, v in NUMBERS.items()}, batch_size=8, max_steps=6, alpha_schedule=linear()
        )
        second.load_state_dict(first.state_dict())
        assert list(second) == whole[point:]
        assert Counting.reads == len(whole) - point
        assert list(first) == whole  # another iteration begins anew


def test_state_of_another_mixture_is_refused() -> None:
    state = numbers(seed=1).state_dict()
    with pytest.raises(ValueError, match=r"belongs to another mixture.*same corpora and settings"):
        numbers(seed=2).load_state_dict(state)


def test_it_pickles() -> None:
    copy = pickle.loads(pickle.dumps(numbers()))
    assert list(copy) == list(numbers())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_processes": 3}, "must be a multiple of.*got 8"),
        ({"num_processes": 2, "process_index": 2}, r"must lie in \[0, 2\), got 2"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbers(**kwargs)


class Naturals(IterableDataset[int]):
    """0, 1, 2, ... up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.limit))


def test_streams_are_read_in_order_and_begin_anew() -> None:
    dataset = InterpolatedDataset(
        {"general": Naturals(7), "domain": NUMBERS["domain"]}, batch_size=4, max_steps=6, alpha_schedule=constant(0.25)
    )
    found = list(dataset)
    for step in range(6):
        expected = sorted(ordinal % 7 for ordinal in range(step * 3, step * 3 + 3))
        assert sorted(number for number in found[step * 4 : step * 4 + 4] if number < DOMAIN_FIRST) == expected
    assert list(dataset) == found


def rows(count: int, num_shards: int = 1) -> datasets.IterableDataset:
    """Row i of a stream has the number i."""
    return datasets.Dataset.from_dict({"a": list(range(count))}).to_iterable_dataset(num_shards=num_shards)


class KeptNaturals(Naturals):
    """0, 1, 2, ... that can tell where they are."""

    place = 0
    loaded = 0

    def __iter__(self) -> Iterator[int]:
        first, self.loaded = self.loaded, 0
        for number in range(first, self.limit):
            self.place = number + 1
            yield number

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["place"]


class NaturalsThatEnd(IterableDataset[int]):
    """0, 1, 2, and then no connection."""

    def __iter__(self) -> Iterator[int]:
        yield from range(3)
        raise OSError("connection lost")


STREAMS: dict[str, Callable[[], Any]] = {
    "torch": lambda: Naturals(400),
    "torch with a state": lambda: KeptNaturals(400),
    "1 shard": lambda: rows(400),
    "2 shards": lambda: rows(400, 2),
    "7 shards": lambda: rows(400, 7),
    "mapped": lambda: rows(400, 2).map(lambda row: {"a": row["a"]}),
    "short": lambda: rows(9, 3),
}
"""Streams of the numbers 0 … 399, of which no reader comes to an end, and one that is passed through often."""


def number_of(example: Any) -> int:
    return int(example["a"] if isinstance(example, dict) else example)


def collate(batch: Any) -> dict[str, Any]:
    return {"numbers": torch.tensor([number_of(example) for example in batch])}


def read_by_loaders(
    stream: Any, workers: int, processes: int, first_batch: int = 0, streams: Any = None, max_steps: int = 12
) -> list[list[dict[str, Any]]]:
    """The batches of every process, of four of a stream and four of a corpus a step."""
    plan_of = MixturePlan(
        [Corpus("general", stream, "general").spec(), Corpus("domain", range(1000, 1030)).spec()],
        alpha_schedule=constant(0.5),
        batch_size=8,
        max_steps=max_steps,
    )
    corpora = [Corpus("general", stream, "general"), Corpus("domain", range(1000, 1030))]
    found = []
    for index in range(processes):
        split = BatchShard(8 // processes // 2, processes, index, workers)
        loader = DataLoader(
            SlotDataset(plan_of, corpora, split, streams),
            batch_sampler=SlotSampler(plan_of, split, first_batch),
            collate_fn=SlotCollator(collate, seed=0),
            num_workers=workers,
        )
        found.append(list(loader))
    return found


def streamed(batches: list[dict[str, Any]]) -> list[int]:
    return [number for batch in batches for number in batch["numbers"].tolist() if number < DOMAIN_FIRST]


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (3, 1), (0, 2), (2, 2)])
@pytest.mark.parametrize("kind", [kind for kind in STREAMS if kind != "short"])
def test_workers_and_processes_read_a_stream_once_between_them(kind: str, workers: int, processes: int) -> None:
    found = read_by_loaders(STREAMS[kind](), workers, processes)
    numbers = [number for part in found for number in streamed(part)]
    assert len(numbers) == len(set(numbers)) == 48


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_loaders_go_on_with_their_streams_at_any_batch(kind: str, workers: int) -> None:
    (whole,) = read_by_loaders(STREAMS[kind](), workers, 1, max_steps=7)
    expected = [batch["numbers"].tolist() for batch in whole]
    hashes = [batch[ORDER_KEY].tolist() for batch in whole]
    for point in (1, 2, 5, 14):
        states: dict[str, Any] = {}
        for batch in whole[:point]:
            states.update(json.loads(batch[STREAMS_KEY]))
        (rest,) = read_by_loaders(STREAMS[kind](), workers, 1, point, states, max_steps=7)
        assert [batch["numbers"].tolist() for batch in rest] == expected[point:]
        assert [batch[ORDER_KEY].tolist() for batch in rest] == hashes[point:]


def test_no_two_readers_count_the_same_example_of_a_stream() -> None:
    hashes = set()
    for reader in range(3):
        dataset = slots({"general": Naturals(50), "domain": NUMBERS["domain"]}, max_steps=9)
        dataset.shard = BatchShard(4, num_workers=3)
        batch = dataset.__getitems__(SlotRequest(4 * reader, np.zeros(4, np.int64), np.arange(4)))
        assert list(batch) == [reader, 3 + reader, 6 + reader, 9 + reader]
        number = np.array([reader, 3 + reader, 6 + reader, 9 + reader])
        assert batch.order_hash == hash_of_reads(np.arange(4) + 4 * reader, dataset.plan.name_keys[[0] * 4], number)
        hashes.add(batch.order_hash)
    assert len(hashes) == 3


@pytest.mark.parametrize("workers", [0, 1])  # torch waits 5 s for every worker of a loader that failed
def test_a_stream_that_breaks_stops_the_loader(workers: int) -> None:
    with pytest.raises(
        RuntimeError, match=r"stream of corpus 'general' failed after \d examples of pass 1 \(reader 1 of"
    ):
        read_by_loaders(NaturalsThatEnd(), workers, 1)


@pytest.mark.parametrize("workers", [0, 1])  # torch waits 5 s for every worker of a loader that failed
def test_a_corpus_that_cannot_be_read_stops_the_loader(workers: int) -> None:
    class Broken:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            raise OSError("disk gone")

    dataset = slots({"general": Broken(), "domain": NUMBERS["domain"]})
    loader = DataLoader(
        dataset,
        batch_sampler=SlotSampler(dataset.plan, dataset.shard),
        collate_fn=SlotCollator(collate, seed=0),
        num_workers=workers,
    )
    with pytest.raises(RuntimeError, match=r"Corpus 'general' failed at the examples \[\d.*OSError: disk gone"):
        list(loader)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_mixture_of_streams_goes_on_at_any_example(kind: str, processes: int) -> None:
    def build() -> InterpolatedDataset:
        return InterpolatedDataset(
            {"general": STREAMS[kind](), "domain": NUMBERS["domain"]},
            batch_size=8,
            max_steps=8,
            gradient_accumulation_steps=2,
            num_processes=processes,
            process_index=processes - 1,
        )

    whole = [number_of(example) for example in build()]
    assert len(whole) == len(build()) == 64 // processes
    for point in range(len(whole) + 1):
        first = build()
        iterator = iter(first)
        assert [number_of(next(iterator)) for _ in range(point)] == whole[:point]
        state = json.loads(json.dumps(first.state_dict()))
        second = build()
        second.load_state_dict(state)
        assert second.state_dict() == state
        assert [number_of(example) for example in second] == whole[point:]


@pytest.mark.parametrize("kind", [kind for kind in STREAMS if kind != "short"])
def test_the_parts_of_processes_hold_what_their_streams_give(kind: str) -> None:
    parts = [
        list(
            InterpolatedDataset(
                {"general": STREAMS[kind](), "domain": NUMBERS["domain"]},
                batch_size=8,
                max_steps=8,
                alpha_schedule=constant(0.25),
                num_processes=2,
                process_index=index,
            )
        )
        for index in range(2)
    ]
    numbers = [[number_of(example) for example in part] for part in parts]
    streamed = [number for part in numbers for number in part if number < DOMAIN_FIRST]
    assert len(streamed) == len(set(streamed)) == 48


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata asks torch for it
@pytest.mark.parametrize("kind", ["corpora", "streams"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stateful_loader_goes_on_at_any_batch(kind: str, workers: int) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    general = rows(50, 2).map(lambda row: {"a": row["a"]}) if kind == "streams" else [{"a": n} for n in range(50)]

    def build() -> Any:
        mixture = InterpolatedDataset(
            {"general": general, "domain": [{"a": number} for number in NUMBERS["domain"]]},
            batch_size=8,
            max_steps=5,
            gradient_accumulation_steps=2,
        )
        return torchdata.StatefulDataLoader(mixture, batch_size=4, num_workers=workers)

    whole = [batch["a"].tolist() for batch in build()]
    assert len(whole) == 10
    for point in (1, 4, 7):
        first = build()
        iterator = iter(first)
        assert [next(iterator)["a"].tolist() for _ in range(point)] == whole[:point]
        state = first.state_dict()
        del iterator
        second = build()
        second.load_state_dict(state)
        assert [batch["a"].tolist() for batch in second] == whole[point:]


def test_a_mixture_by_tokens_is_measured() -> None:
    parts = {"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 12)}
    longer = parts["domain"].map(lambda row: {"input_ids": row["input_ids"] * 3})
    mixed = InterpolatedDataset(
        {**parts, "domain": longer}, batch_size=8, max_steps=6, unit="tokens", alpha_schedule=constant(0.5)
    )
    assert mixed.plan.unit == "tokens"
    lengths = [len(example["input_ids"]) for example in mixed]
    assert (lengths.count(3), lengths.count(9)) == (36, 12)


def test_sixty_four_corpora_with_tiny_and_no_shares_are_read_by_workers() -> None:
    shares = [1e-4] * 40 + [0.0] * 20 + [0.0] * 3 + [1 - 40e-4]
    corpora = [
        Corpus(f"c{index}", range(1000 * index, 1000 * index + 50), share=share) for index, share in enumerate(shares)
    ]
    mixed = InterpolatedDataset(corpora, batch_size=16, max_steps=700, alpha_schedule=constant(1.0))
    found = torch.cat(list(DataLoader(mixed, batch_size=16, num_workers=2)))
    counts = np.zeros(64)
    for step in range(700):
        counts += np.bincount(found[16 * step : 16 * step + 16] // 1000, minlength=64)
        assert np.abs(counts - 16 * (step + 1) * np.array(shares)).max() <= 2 + 1e-3
    assert (counts[:40] >= 1).any()
    assert not counts[40:63].any()
    assert counts.sum() == 16 * 700


def test_datasets_streams_get_a_new_order_every_pass() -> None:
    stream = corpus(0, 16).to_iterable_dataset().shuffle(seed=0, buffer_size=16)
    dataset = InterpolatedDataset({"general": stream}, batch_size=8, max_steps=4, alpha_schedule=constant(0.0))
    passes = [[row["input_ids"][0] for row in list(dataset)[first : first + 16]] for first in (0, 16)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(16))
    assert passes[0] != passes[1]


class Augmented(torch.utils.data.Dataset[tuple[float, float, float]]):
    """Every example is three random numbers."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_transforms_depend_on_the_slot_alone() -> None:
    dataset = slots({"general": Augmented(), "domain": Augmented()})
    first = list(dataset.__getitems__(range(4, 8)))
    torch.manual_seed(99)
    random.seed(99)
    assert list(dataset.__getitems__(range(4, 8))) == first
    assert list(dataset.__getitems__(range(8, 12))) != first


def test_random_states_are_put_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    with random_state_of_slot(0, 5):
        inside = draw()
    assert draw() == expected
    with random_state_of_slot(0, 5):
        assert draw() == inside
    with pytest.raises(KeyError), random_state_of_slot(0, 6):
        raise KeyError
    seed()
    assert draw() == expected


def test_the_collator_adds_the_corpus_and_the_order_and_nothing_else() -> None:
    dataset = slots(NUMBERS)
    batch = dataset.__getitems__(range(12, 16))
    collated = SlotCollator(lambda examples: {"numbers": torch.tensor(examples)}, seed=0)(batch)
    assert collated.keys() == {"numbers", CORPUS_KEY, ORDER_KEY}
    assert collated[CORPUS_KEY].tolist() == batch.corpus.tolist()
    assert whole_hash(collated[ORDER_KEY].tolist()) == batch.order_hash == dataset.plan.read_hash(3, 4)
    assert SlotCollator(tuple, seed=0)(batch) == tuple(batch)


def test_the_collator_adds_the_states_of_streams() -> None:
    dataset = slots({"general": Naturals(50), "domain": NUMBERS["domain"]})
    batch = dataset.__getitems__(range(4))
    collated = SlotCollator(lambda examples: {"numbers": torch.tensor(examples)}, seed=0)(batch)
    assert collated.keys() == {"numbers", CORPUS_KEY, ORDER_KEY, STREAMS_KEY}
    place = {"num_read": 4, "passes": 1, "in_pass": 4, "stream": None}
    assert json.loads(collated[STREAMS_KEY]) == {"0": {"general": place}}


def test_a_collator_that_draws_depends_on_the_slot_alone() -> None:
    dataset = slots(NUMBERS)
    batches = [dataset.__getitems__(range(first, first + 4)) for first in (0, 4, 0)]
    drawing = SlotCollator(lambda examples: float(torch.rand(())), seed=0)
    first, second, again = [drawing(batch) for batch in batches]
    assert first == again != second
    torch.manual_seed(1)
    expected = float(torch.rand(()))
    torch.manual_seed(1)
    assert SlotCollator(lambda examples: float(torch.rand(())), seed=0, may_draw=False)(batches[0]) == expected


def test_a_transform_of_a_dataset_is_applied() -> None:
    parts = {"general": corpus(0, 8).with_transform(lambda rows: {"first": [ids[0] for ids in rows["input_ids"]]})}
    dataset = InterpolatedDataset(parts, batch_size=4, max_steps=2, alpha_schedule=constant(0.0))
    assert sorted(row["first"] for row in dataset) == list(range(8))


def test_at_a_constant_share_counts_equal_interleave_datasets_in_the_mean() -> None:
    parts = mixture(400, 400)
    host = datasets.interleave_datasets(list(parts.values()), probabilities=[0.75, 0.25], seed=0)
    host_share = np.mean([row["input_ids"][0] >= DOMAIN_FIRST for row in host.select(range(400))])
    ours = InterpolatedDataset(parts, batch_size=8, max_steps=50, alpha_schedule=constant(0.25))
    assert np.mean([row["input_ids"][0] >= DOMAIN_FIRST for row in ours]) == 0.25
    assert host_share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)
