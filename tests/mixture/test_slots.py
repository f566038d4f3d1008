"""Slots: what each holds, who reads which of them, and what a batch tells of itself."""

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toys import DOMAIN_FIRST, NUMBERS, STREAMS, Failing, Numbers, mixture, number_of

from hf_interp import Corpus, MixturePlan
from hf_interp.mixture.collators import random_state_of_slot
from hf_interp.mixture.plan import hash_of_reads
from hf_interp.mixture.schedules import constant, linear
from hf_interp.mixture.slots import (
    BATCH_KEY,
    CORPUS_KEY,
    ORDER_KEY,
    STREAMS_KEY,
    TOKENS_KEY,
    BatchShard,
    SlotBatch,
    SlotCollator,
    SlotDataset,
    SlotRequest,
    SlotSampler,
    _halves,
    whole_hash,
)


def slots(parts: dict[str, Any], batch_size: int = 4, max_steps: int = 6) -> SlotDataset:
    corpora = [Corpus(name, dataset, name) for name, dataset in parts.items()]
    planned = [part.spec() for part in corpora]
    return SlotDataset(
        MixturePlan(planned, alpha_schedule=linear(), batch_size=batch_size, max_steps=max_steps), corpora
    )


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


def few_with_workers(kinds: Iterable[str], splits: Sequence[tuple[int, ...]]) -> list[Any]:
    """Every kind of stream with every split; of those with workers, which take long to begin, three kinds suffice."""
    slow = {kind: pytest.mark.slow for kind in STREAMS if kind not in ("torch", "7 shards", "short")}
    return [
        pytest.param(kind, *split, marks=slow.get(kind, ()) if split[0] else ()) for kind in kinds for split in splits
    ]


@pytest.mark.parametrize(
    ("kind", "workers", "processes"),
    few_with_workers([kind for kind in STREAMS if kind != "short"], [(0, 1), (2, 1), (3, 1), (0, 2), (2, 2)]),
)
def test_workers_and_processes_read_a_stream_once_between_them(kind: str, workers: int, processes: int) -> None:
    found = read_by_loaders(STREAMS[kind](), workers, processes)
    numbers = [number for part in found for number in streamed(part)]
    assert len(numbers) == len(set(numbers)) == 48


@pytest.mark.parametrize(("kind", "workers"), few_with_workers(STREAMS, [(0,), (2,)]))
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
        dataset = slots({"general": Numbers(50), "domain": NUMBERS["domain"]}, max_steps=9)
        dataset.shard = BatchShard(4, num_workers=3)
        batch = dataset.__getitems__(SlotRequest(4 * reader, np.zeros(4, np.int64), np.arange(4)))
        assert list(batch) == [reader, 3 + reader, 6 + reader, 9 + reader]
        number = np.array([reader, 3 + reader, 6 + reader, 9 + reader])
        assert batch.order_hash == hash_of_reads(np.arange(4) + 4 * reader, dataset.plan.name_keys[[0] * 4], number)
        hashes.add(batch.order_hash)
    assert len(hashes) == 3


@pytest.mark.parametrize("workers", [0, 1])  # torch waits for every worker of a loader that failed
def test_a_stream_that_breaks_stops_the_loader(workers: int) -> None:
    with pytest.raises(
        RuntimeError, match=r"stream of corpus 'general' failed after \d examples of pass 1 \(reader 1 of"
    ):
        read_by_loaders(Failing(), workers, 1)


@pytest.mark.parametrize("workers", [0, 1])  # torch waits for every worker of a loader that failed
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
    assert SlotCollator(tuple, seed=0)(batch)[BATCH_KEY] == tuple(batch)


def test_the_collator_counts_the_tokens_that_no_mask_hides() -> None:
    rows = [{"input_ids": [5] * 3, "attention_mask": [1, 1, 0]}, {"input_ids": [5]}]
    batch = SlotBatch(rows, 0, np.array([0, 1]), 0, None)
    assert SlotCollator(tuple, seed=0, counts_tokens=True)(batch)[TOKENS_KEY].tolist() == [2, 1]


def test_the_collator_adds_the_states_of_streams() -> None:
    dataset = slots({"general": Numbers(50), "domain": NUMBERS["domain"]})
    batch = dataset.__getitems__(range(4))
    collated = SlotCollator(lambda examples: {"numbers": torch.tensor(examples)}, seed=0)(batch)
    assert collated.keys() == {"numbers", CORPUS_KEY, ORDER_KEY, STREAMS_KEY}
    place = {"num_read": 4, "passes": 1, "in_pass": 4, "stream": None}
    assert json.loads(collated[STREAMS_KEY]) == {"0": {"general": place}}


def test_a_collator_that_draws_depends_on_the_slot_alone() -> None:
    dataset = slots(NUMBERS)
    batches = [dataset.__getitems__(range(first, first + 4)) for first in (0, 4, 0)]
    drawing = SlotCollator(lambda examples: float(torch.rand(())), seed=0)
    first, second, again = [drawing(batch)[BATCH_KEY] for batch in batches]
    assert first == again != second
    torch.manual_seed(1)
    expected = float(torch.rand(()))
    torch.manual_seed(1)
    assert (
        SlotCollator(lambda examples: float(torch.rand(())), seed=0, may_draw=False)(batches[0])[BATCH_KEY] == expected
    )
