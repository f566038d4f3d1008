"""The mixture as a dataset: order, workers, state, random transforms."""

import pickle
import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from toys import DOMAIN_FIRST, corpus, mixture

from hf_interp import Corpus, InterpolatedDataset, MixturePlan
from hf_interp.dataset import CORPUS_KEY, SlotCollator, SlotDataset, SlotSampler, random_state_of_slot
from hf_interp.schedules import constant, linear

NUMBERS = {"general": list(range(40)), "domain": list(range(DOMAIN_FIRST, DOMAIN_FIRST + 12))}


def slots(parts: dict[str, Any], batch_size: int = 4, max_steps: int = 6) -> SlotDataset:
    corpora = [Corpus(name, dataset, name) for name, dataset in parts.items()]
    planned = [part.planned() for part in corpora]
    return SlotDataset(
        MixturePlan(planned, alpha_schedule=linear(), batch_size=batch_size, max_steps=max_steps), corpora
    )


def numbers(**kwargs: Any) -> InterpolatedDataset:
    return InterpolatedDataset(NUMBERS, **{"batch_size": 8, "max_steps": 6, **kwargs})


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


def test_the_sampler_gives_ranges_in_order() -> None:
    sampler = SlotSampler(12, 4)
    assert list(sampler) == [range(0, 4), range(4, 8), range(8, 12)]
    assert len(sampler) == 3


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
        second = InterpolatedDataset({k: Counting(v) for k, v in NUMBERS.items()}, batch_size=8, max_steps=6)
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
    assert [dataset.slots[slot] for slot in (0, 5, 0)] == [found[0], found[5], found[0]]  # going back reads anew


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


def test_the_collator_adds_the_corpus_and_nothing_else() -> None:
    dataset = slots(NUMBERS)
    batch = dataset.__getitems__(range(12, 16))
    collated = SlotCollator(lambda examples: {"numbers": torch.tensor(examples)}, seed=0)(batch)
    assert collated.keys() == {"numbers", CORPUS_KEY}
    assert collated[CORPUS_KEY].tolist() == batch.corpus.tolist()
    assert SlotCollator(tuple, seed=0)(batch) == tuple(batch)


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
