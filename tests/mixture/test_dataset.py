"""The mixture as a dataset for any loop: order, workers, processes, state."""

import json
import pickle
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy_streams import NUMBERS, STREAMS, Numbers, number_of, rows
from toys import DOMAIN_FIRST, corpus, mixture

from hf_interp import Corpus, InterpolatedDataset
from hf_interp.mixture.schedules import constant, linear


def numbers(**kwargs: Any) -> InterpolatedDataset:
    return InterpolatedDataset(NUMBERS, **{"batch_size": 8, "max_steps": 6, "alpha_schedule": linear(), **kwargs})


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


def test_streams_are_read_in_order_and_begin_anew() -> None:
    dataset = InterpolatedDataset(
        {"general": Numbers(7), "domain": NUMBERS["domain"]}, batch_size=4, max_steps=6, alpha_schedule=constant(0.25)
    )
    found = list(dataset)
    for step in range(6):
        expected = sorted(ordinal % 7 for ordinal in range(step * 3, step * 3 + 3))
        assert sorted(number for number in found[step * 4 : step * 4 + 4] if number < DOMAIN_FIRST) == expected
    assert list(dataset) == found


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
