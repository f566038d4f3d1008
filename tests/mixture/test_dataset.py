"""The mixture as a dataset for any loop: order, workers, processes, state."""

import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import processes
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from toys import DOMAIN_FIRST, NUMBERS, STREAMS, Numbers, corpus, mixture, number_of, rows

from hf_interp import Corpus, InterpolatedDataset
from hf_interp.mixture.schedules import constant, linear


def numbers(parts: Any = NUMBERS, **kwargs: Any) -> InterpolatedDataset:
    return InterpolatedDataset(parts, **{"batch_size": 8, "max_steps": 6, "alpha_schedule": linear(), **kwargs})


def test_each_step_has_its_share() -> None:
    found = list(numbers(alpha_schedule=linear(0.0, 1.0), batch_size=10, max_steps=11))
    counts = [sum(number >= DOMAIN_FIRST for number in found[step * 10 : step * 10 + 10]) for step in range(11)]
    assert counts == list(range(11))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_order_does_not_depend_on_workers(workers: int) -> None:
    loader = DataLoader(numbers(gradient_accumulation_steps=2), batch_size=4, num_workers=workers)
    assert torch.cat(list(loader)).tolist() == list(numbers())


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_batches_from_workers_are_the_rows_in_order(form: str | None) -> None:
    ids = [[number] * (number % 5) for number in range(300)]  # of unequal lengths, and some with texts and gaps
    even = datasets.Dataset.from_dict({"ids": [[number] * 3 for number in range(200)], "label": list(range(200))})
    uneven = datasets.Dataset.from_dict({"ids": ids, "label": [None, *range(1, 300)]})
    parts = {"general": even.with_format(form), "domain": uneven.with_format(form)}
    data = numbers(parts, batch_size=32, max_steps=12, num_processes=2, process_index=1)
    whole = [repr(row) for row in data]
    for workers in (0, 2):
        found = list(data.batches(lambda rows: list(map(repr, rows)), num_workers=workers))
        assert [len(batch) for batch in found] == [16] * 12
        assert [row for batch in found for row in batch] == whole


def test_batches_from_workers_go_on_where_a_state_was_taken() -> None:
    whole = [list(numbers())[first : first + 8] for first in range(0, 48, 8)]
    for before, after in ((2, 0), (0, 2), (2, 1)):
        first, second = numbers(), numbers()
        batches = first.batches(num_workers=before)
        assert [next(batches) for _ in range(3)] == whole[:3]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert list(second.batches(num_workers=after)) == whole[3:]


def test_batches_from_workers_refuse_a_stream() -> None:
    parts = {"general": STREAMS["torch"](), "domain": NUMBERS["domain"]}
    with pytest.raises(ValueError, match=r"worker processes \(2\).*stream"):
        next(numbers(parts).batches(num_workers=2))
    assert [len(batch) for batch in numbers(parts).batches()] == [8] * 6


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


@pytest.mark.parametrize("other", [{"num_processes": 2, "process_index": 0}, {"gradient_accumulation_steps": 2}])
def test_state_of_another_split_is_refused(other: dict[str, int]) -> None:
    first, second = numbers(), numbers(**other)
    iterator = iter(first)
    assert len([next(iterator) for _ in range(3)]) == 3
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"examples at a time\] of \[1, 8\], now they are .*same split"):
        next(iter(second))


def test_it_pickles() -> None:
    copy = pickle.loads(pickle.dumps(numbers()))
    assert list(copy) == list(numbers())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_processes": 3, "process_index": 0}, "must be a multiple of.*got 8"),
        ({"num_processes": 2, "process_index": 2}, r"must lie in \[0, 2\), got 2"),
        ({"num_processes": 2}, "`num_processes` and `process_index` go together, got 2 and None"),
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


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])  # their parts: see below
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
    first = build()
    iterator = iter(first)
    for point in range(len(whole) + 1):
        state = json.loads(json.dumps(first.state_dict()))
        second = build()
        second.load_state_dict(state)
        assert second.state_dict() == state
        assert [number_of(example) for example in second] == whole[point:]
        assert [number_of(example) for example in islice(iterator, 1)] == whole[point : point + 1]


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


READ_WAYS = [
    (way, told, workers, accumulation, kind)
    for way in ("plain", "dispatched", "sharded", "split")
    for told in (False, True)
    for workers, accumulation, kind in ((0, 1, "numbers"), (2, 2, "numbers"), (0, 2, "2 shards"))
]


def read_in_processes(folder: str, processes: int) -> None:
    """Write down what this process reads, in every way, of a mixture of 6 steps of 8 examples."""
    torch.distributed.init_process_group("gloo")
    rank, found = torch.distributed.get_rank(), []
    for way, told, workers, accumulation, kind in READ_WAYS:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        parts = {**NUMBERS, "general": STREAMS[kind]().map(number_row)} if kind in STREAMS else NUMBERS
        place = {"num_processes": processes, "process_index": rank} if told else {}
        mixed = numbers(parts, gradient_accumulation_steps=accumulation, **place)
        size = 8 // accumulation // (1 if way == "split" else processes)
        loader: Any = DataLoader(mixed, batch_size=size, num_workers=workers, collate_fn=as_numbers)
        if way != "plain":
            division = {"dispatch_batches": way == "dispatched", "split_batches": way == "split"}
            configuration = DataLoaderConfiguration(**division)
            accelerator = Accelerator(cpu=True, dataloader_config=configuration)
            loader = accelerator.prepare(loader)
            if not told:
                with pytest.raises(TypeError, match="is another before and after `prepare`"):
                    len(mixed)
            if way == "sharded":
                halved = accelerator.prepare(DataLoader(mixed, batch_size=size // 2, collate_fn=as_numbers))
                with pytest.raises(ValueError, match=r"must make batches of .* over all processes, got"):
                    next(iter(halved))
        found.append([batch.tolist() for batch in loader])
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def number_row(row: dict[str, int]) -> dict[str, int]:
    return {"a": row["a"]}


def as_numbers(examples: list[Any]) -> torch.Tensor:
    return torch.tensor([number_of(example) for example in examples])


@pytest.mark.slow
def test_all_processes_together_read_each_batch_once_whoever_divides_it(tmp_path: Path) -> None:
    processes.run(tmp_path / "log", read_in_processes, str(tmp_path), 2, processes=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    whole, streamed = list(numbers()), []
    for case, *read in zip(READ_WAYS, *ranks, strict=True):
        accumulation = case[3]
        assert [len(part) for part in read] == [6 * accumulation] * 2, case
        for step in range(6):
            here = slice(step * accumulation, (step + 1) * accumulation)
            found = sorted(number for part in read for batch in part[here] for number in batch)
            expected = sorted(whole[8 * step : 8 * step + 8])
            if case[4] != "numbers":  # a stream is divided in another order
                streamed += [number for number in found if number < DOMAIN_FIRST]
                found, expected = ([n for n in some if n >= DOMAIN_FIRST] for some in (found, expected))
            assert found == expected, (case, step)
    assert len(streamed) == 8 * 24
    for first in range(0, len(streamed), 24):
        assert len(set(streamed[first : first + 24])) == 24


def named(*names: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"a": [0, 1]}).cast_column("a", datasets.ClassLabel(names=list(names)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"general": named("neg", "pos"), "domain": named("pos", "neg")}, r"labels of corpora .* differ in column 'a'"),
        ({"general": corpus(0, 4), "domain": corpus(9, 4).remove_columns("labels")}, r"'domain' lacks .*'labels'"),
        (
            {"general": split_dataset_by_node(rows(8), rank=0, world_size=2), "domain": NUMBERS["domain"]},
            "'general' has been divided by `split_dataset_by_node`",
        ),
    ],
)
def test_what_the_trainer_refuses_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbers(parts)


def test_what_a_plan_warns_of_is_told(caplog: pytest.LogCaptureFixture) -> None:
    numbers(max_steps=60)
    assert "Corpus 'domain' is read 20.0 times" in caplog.text


# What loops ask of a dataset of `datasets`.


@pytest.mark.parametrize("sampling", ["exact", "random", "sequential"])
def test_an_epoch_is_another_order_that_resumes(sampling: Any) -> None:
    data = numbers(sampling=sampling)
    first = list(data)
    data.set_epoch(1)
    second = list(data)
    assert second != first
    iterator = iter(data)
    assert [next(iterator) for _ in range(10)] == second[:10]
    state = json.loads(json.dumps(data.state_dict()))
    other = numbers(sampling=sampling)
    other.load_state_dict(state)
    assert list(other) == second[10:]
    data.set_epoch(0)
    assert list(data) == first
    other.load_state_dict(state)
    other.set_epoch(2)
    with pytest.raises(ValueError, match="was taken in epoch 1, and `set_epoch` has said 2 since"):
        next(iter(other))


def test_workers_that_stay_are_told_of_an_epoch() -> None:
    data = numbers()
    loader = DataLoader(data, batch_size=8, num_workers=2, persistent_workers=True)
    first = torch.cat(list(loader)).tolist()
    data.set_epoch(3)
    assert torch.cat(list(loader)).tolist() == list(data) != first


def test_an_epoch_of_a_strategy_ends_where_its_draws_do() -> None:
    settings = {"sampling": "random", "stopping_strategy": "first_exhausted", "max_steps": None, "batch_size": 1}
    data = numbers(**settings, alpha_schedule=constant(0.4))
    lengths = []
    for epoch in range(6):
        data.set_epoch(epoch)
        found = list(data)
        lengths.append(len(found))
        assert len(data) == len(found)
        counts = [sum(number < DOMAIN_FIRST for number in found), sum(number >= DOMAIN_FIRST for number in found)]
        assert counts[0] == 40 or counts[1] == 12
    assert len(set(lengths)) > 1


def test_a_mixture_is_shuffled_by_another_seed() -> None:
    data = numbers()
    assert list(data.shuffle(seed=5, buffer_size=100)) == list(numbers(seed=5)) != list(data)
    drawn = data.shuffle(generator=np.random.default_rng(1))
    assert list(drawn) == list(data.shuffle(generator=np.random.default_rng(1))) != list(data)
    for sampling in ("random", "sequential"):
        with pytest.raises(ValueError, match=r"in its own order.*Shuffle the corpora beforehand"):
            numbers(sampling=sampling).shuffle(seed=5)


def test_splitting_by_node_is_refused_in_words() -> None:
    with pytest.raises(AttributeError, match="is not split by node: it finds its process by itself"):
        split_dataset_by_node(numbers(), rank=0, world_size=2)  # type: ignore[type-var]
