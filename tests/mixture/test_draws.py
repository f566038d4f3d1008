"""Random sampling: the order of `datasets.interleave_datasets`, whole sequences of it, and random access to that."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pytest

from hf_interp import Corpus, InterpolatedDataset
from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.draws import slots_until
from hf_interp.mixture.order import STOPPING_STRATEGIES, Order
from hf_interp.mixture.permutations import batch_orders, derive_key, permute, splitmix64
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import constant, linear

MIXTURES = (
    ((100, 30), (0.7, 0.3)),
    ((3, 4), (0.5, 0.5)),
    ((1300, 2500), (0.35, 0.65)),
    ((50, 60, 1500), (0.1, 0.2, 0.7)),
    ((900, 1100, 40), (0.6, 0.3, 0.1)),
    ((1, 1), (0.999, 0.001)),
)


def numbered(sizes: Sequence[int]) -> list[datasets.Dataset]:
    """Row i of corpus number c has the number 10,000·c + i."""
    return [datasets.Dataset.from_dict({"n": [10_000 * c + i for i in range(size)]}) for c, size in enumerate(sizes)]


def theirs(sizes: Sequence[int], *, streams: bool = False, **settings: Any) -> list[int]:
    """The order of the library."""
    parts: list[Any] = numbered(sizes)
    if streams:
        parts = [part.to_iterable_dataset() for part in parts]
    return [row["n"] for row in datasets.interleave_datasets(parts, **settings)]


def ours(sizes: Sequence[int], *, streams: bool = False, sides: str = "gdd", **settings: Any) -> InterpolatedDataset:
    parts: list[Any] = numbered(sizes)
    if streams:
        parts = [part.to_iterable_dataset() for part in parts]
    names = {"g": "general", "d": "domain"}
    corpora = [Corpus(str(index), part, names[sides[index]]) for index, part in enumerate(parts)]  # type: ignore[arg-type]
    return InterpolatedDataset(corpora, **{"sampling": "random", "batch_size": 1, **settings})


def numbers(rows: Any) -> list[int]:
    return [row["n"] for row in rows]


@pytest.mark.parametrize("strategy", STOPPING_STRATEGIES)
@pytest.mark.parametrize(("sizes", "probabilities"), MIXTURES)
def test_the_order_is_that_of_interleave_datasets(sizes: Any, probabilities: Any, strategy: Any) -> None:
    parts = numbered(sizes)
    for seed in (1, 42, 2**40 + 7):
        settings: dict[str, Any] = {"probabilities": list(probabilities), "seed": seed, "stopping_strategy": strategy}
        expected = datasets.interleave_datasets(parts, **settings)["n"][:]
        for sides in ("gdd", "ddd") if seed == 1 else ("gdd",):
            plan = ours(sizes, sides=sides, **settings).plan
            draw = plan.locate(range(len(plan)))
            assert (10_000 * draw.corpus + draw.example).tolist() == expected


@pytest.mark.parametrize("strategy", STOPPING_STRATEGIES)
def test_the_order_is_that_of_streams_too(strategy: Any) -> None:
    sizes = (30, 20, 55)
    settings: dict[str, Any] = {"probabilities": [0.3, 0.3, 0.4], "seed": 5}
    expected = theirs(sizes, streams=True, stopping_strategy=strategy, **settings)
    assert numbers(ours(sizes, stopping_strategy=strategy, **settings)) == expected
    if strategy != "all_exhausted_without_replacement":  # which must know the lengths
        assert numbers(ours(sizes, streams=True, max_steps=len(expected), **settings)) == expected


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1 / 3, 0.9, 1.0])
def test_a_constant_alpha_has_the_probabilities_of_its_sides(alpha: float) -> None:
    settings: dict[str, Any] = {"seed": 3, "stopping_strategy": "first_exhausted"}
    expected = theirs((400, 400), probabilities=[1 - alpha, alpha], **settings)
    assert numbers(ours((400, 400), alpha_schedule=constant(alpha), **settings)) == expected
    plan = ours((400, 400), alpha_schedule=constant(alpha), **settings).plan
    assert plan.order.probabilities == (1 - alpha, alpha)  # and not what α is rounded to


def test_shares_are_taken_as_they_are_given() -> None:
    corpora = [
        Corpus("a", numbered((400,))[0], "general", share=0.1),
        Corpus("b", numbered((0, 400))[1], "general", share=0.9),
        Corpus("c", numbered((0, 0, 400))[2]),
    ]
    data = InterpolatedDataset(corpora, sampling="random", stopping_strategy="all_exhausted", batch_size=1, seed=8)
    expected = theirs(
        (400, 400, 400), probabilities=[0.5 * 0.1, 0.5 * 0.9, 0.5], seed=8, stopping_strategy="all_exhausted"
    )
    assert numbers(data) == expected


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_last_batch_that_is_not_whole_is_left_out(batch_size: int) -> None:
    settings: dict[str, Any] = {"probabilities": [0.5, 0.5], "seed": 9, "stopping_strategy": "first_exhausted"}
    expected = theirs((200, 150), **settings)
    data = ours((200, 150), batch_size=batch_size, **settings)
    assert numbers(data) == expected[: len(expected) // batch_size * batch_size]
    assert len(data) == len(expected) // batch_size * batch_size


def test_a_moving_alpha_moves_the_probabilities_of_the_same_generator() -> None:
    data = ours((900, 700, 500), sides="gdg", alpha_schedule=linear(0.2, 0.8), max_steps=300, batch_size=8, seed=6)
    drawn = np.random.default_rng(6).random(2400)
    expected, read = [], [0, 0, 0]
    for slot, number in enumerate(drawn):
        alpha = 0.2 + 0.6 * (slot // 8) / 299
        general = (1 - alpha) * 900 / 1400
        source = 0 if number < general else 1 if number < general + alpha else 2
        expected.append(10_000 * source + read[source] % (900, 700, 500)[source])
        read[source] += 1
    assert numbers(data) == expected
    assert data.plan.drawn_before(300).tolist() == read


@pytest.mark.parametrize("strategy", [None, *STOPPING_STRATEGIES])
def test_any_place_is_reached_at_once(strategy: str | None) -> None:
    settings: dict[str, Any] = {"max_steps": 900} if strategy is None else {"stopping_strategy": strategy}
    plan = ours((9000, 7000), probabilities=[0.4, 0.6], batch_size=17, seed=2, **settings).plan
    whole = plan.locate(range(len(plan)))
    seen = np.zeros(2, np.int64)
    steps = plan.drawn_before(range(plan.max_steps + 1))
    for step in range(plan.max_steps):
        assert steps[step].tolist() == seen.tolist()
        seen += np.bincount(whole.corpus[step * 17 : step * 17 + 17], minlength=2)
    rng = np.random.default_rng(0)
    for slot in rng.integers(0, len(plan) - 40, 30).tolist():
        fresh = MixturePlan.from_dict(plan.to_dict())
        assert fresh.fingerprint() == plan.fingerprint()
        assert (np.stack(fresh.locate(range(slot, slot + 40))) == np.stack(whole)[:, slot : slot + 40]).all()
        assert np.stack(fresh.locate([slot]))[:, 0].tolist() == np.stack(whole)[:, slot].tolist()


def test_a_run_that_changes_goes_on_inside_each_pass() -> None:
    def plan(**kwargs: Any) -> MixturePlan:
        specs = [
            CorpusSpec(name="web", side="general", num_examples=30),
            CorpusSpec(name="law", side="domain", num_examples=20),
        ]
        settings: dict[str, Any] = {"alpha_schedule": linear(), "batch_size": 4, "max_steps": 40, **kwargs}
        return MixturePlan(specs, order=Order("random"), **settings)

    found = continue_plan(plan(batch_size=6, max_steps=50), plan().to_dict(), 11)
    assert found.changes
    read: dict[int, list[int]] = {0: [], 1: []}
    for step in range(50):
        ruling = found.plan.plan_of(step)
        draw = ruling.locate(range(step * ruling.batch_size, (step + 1) * ruling.batch_size))
        for corpus, example in zip(draw.corpus.tolist(), draw.example.tolist(), strict=True):
            read[corpus].append(example)
    assert [len(found) for found in read.values()] == found.plan.drawn_before(50).tolist()
    assert all(read[corpus] == [n % size for n in range(len(read[corpus]))] for corpus, size in ((0, 30), (1, 20)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 5, "stopping_strategy": "all_exhausted"}, "Either `max_steps` or a `stopping_strategy`"),
        ({}, "Either `max_steps` or a `stopping_strategy` ends a mixture, got None and None"),
        ({"stopping_strategy": "exhausted"}, "`stopping_strategy` must be one of first_exhausted, .*got 'exhausted'"),
        ({"max_steps": 5, "sampling": "randomly"}, "sampling of a mixture must be one of .*got 'randomly'"),
        ({"stopping_strategy": "all_exhausted", "sampling": "exact"}, "needs random sampling, got 'exact'"),
        ({"max_steps": 5, "probabilities": [0.5, 0.6]}, r"must be one for each corpus.*sum to 1, got \[0.5, 0.6\]"),
        ({"max_steps": 5, "probabilities": [0.5]}, "must be one for each corpus"),
        (
            {"max_steps": 5, "probabilities": [0.5, 0.5], "alpha_schedule": linear()},
            "stand for a constant α and for shares",
        ),
        ({"stopping_strategy": "all_exhausted", "alpha_schedule": linear()}, "needs a constant α.*or give `max_steps`"),
        (
            {"stopping_strategy": "all_exhausted", "probabilities": [1.0, 0.0]},
            "does not end, because corpus '1' is drawn with probability 0",
        ),
        ({"stopping_strategy": "first_exhausted", "batch_size": 400}, "fewer than a batch"),
        ({"stopping_strategy": "first_exhausted", "streams": True}, "length of corpus '0', which is a stream"),
        ({"max_steps": 5, "length_window": 2}, "reads each corpus in its own order, which grouping"),
    ],
)
def test_what_contradicts_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ours((100, 30), **settings)
    assert "\n" not in str(raised.value)


def test_a_run_that_a_strategy_ends_keeps_its_settings() -> None:
    plan = ours((100, 30), stopping_strategy="first_exhausted", batch_size=4).plan
    assert continue_plan(plan, plan.to_dict(), 3).changes == []
    other = ours((100, 30), stopping_strategy="first_exhausted", batch_size=2).plan
    with pytest.raises(ValueError, match=r"keeps its settings, and they have changed. Give `max_steps`"):
        continue_plan(other, plan.to_dict(), 3)


def test_another_sampling_in_the_middle_is_refused() -> None:
    random = ours((100, 30), max_steps=9, batch_size=4).plan
    exact = ours((100, 30), max_steps=9, batch_size=4, sampling="exact").plan
    with pytest.raises(ValueError, match=r"was 'random' and is now 'exact'.*read twice"):
        continue_plan(exact, random.to_dict(), 3)


def test_the_end_is_found_without_reading_far() -> None:
    assert slots_until("all_exhausted", ["a"], [20_000], np.array([1.0]), 0) == 20_000


# Keyed permutations: bijections, evenly spread, the same for ever.


EXPECTED = [4, 3, 2, 0, 1, 5, 6, 7]
"""The permutation of eight things under key 5: another one would change what resumed runs read."""


@pytest.mark.parametrize("size", [*range(1, 71), 1009, 4096, 10_000])
def test_permute_is_a_bijection(size: int) -> None:
    for key in np.random.default_rng(size).integers(0, 2**64, 5, np.uint64):
        image = permute(np.arange(size), np.full(size, size), np.full(size, key))
        assert sorted(image.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [36, 50, 100, 1000])
def test_permute_is_a_bijection_where_the_hash_is_largest(size: int) -> None:
    # The hash is a bijection: going back from 2⁶⁴ − 1 gives the key under which the first round adds the most.
    key = 2**64 - 1
    for bits, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        before = key
        for _ in range(64 // bits):
            before = key ^ (before >> bits)
        key = before * pow(factor, -1, 2**64) % 2**64
    assert int(splitmix64(np.zeros(1, np.int64), key)[0]) == 2**64 - 1
    image = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    assert sorted(image.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [8, 9, 10, 15, 25, 36])
def test_half_of_all_orders_are_odd(size: int) -> None:
    keys = np.repeat(np.random.default_rng(1).integers(0, 2**64, 1000, np.uint64), size)
    images = permute(np.tile(np.arange(size), 1000), np.full(1000 * size, size), keys).reshape(-1, size)
    pairs = np.triu_indices(size, 1)
    odd = (images[:, pairs[0]] > images[:, pairs[1]]).sum(axis=1) % 2  # an odd number of pairs the wrong way round
    assert abs(odd.sum() - 500) < 95  # six standard deviations


def test_large_corpora_are_permuted() -> None:
    size = 10**12
    positions = np.concatenate([np.arange(1000), np.arange(size - 1000, size)])
    image = permute(positions, np.full(2000, size), np.full(2000, 5, np.uint64))
    assert len(set(image.tolist())) == 2000
    assert image.min() >= 0
    assert image.max() < size
    assert abs(image.mean() / size - 0.5) < 0.05  # 8 standard deviations


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_is_equally_likely(size: int) -> None:
    ways, times = math.factorial(size), 12_000
    keys = np.repeat(np.random.default_rng(0).integers(0, 2**64, times, np.uint64), size)
    images = permute(np.tile(np.arange(size), times), np.full(times * size, size), keys)
    counts = Counter(map(tuple, images.reshape(-1, size).tolist()))
    chi_square = sum((count - times / ways) ** 2 / (times / ways) for count in counts.values())
    assert len(counts) == ways
    assert chi_square < ways - 1 + 6 * math.sqrt(2 * (ways - 1))  # mean and six standard deviations


def test_batch_orders_are_permutations_of_their_own_step() -> None:
    orders = batch_orders(3, np.arange(50), 16)
    assert (np.sort(orders, axis=1) == np.arange(16)).all()
    assert len({tuple(order) for order in orders.tolist()}) == 50
    assert batch_orders(3, np.array([7]), 16).tolist() == orders[7:8].tolist()
    assert batch_orders(4, np.array([7]), 16).tolist() != orders[7:8].tolist()


def test_keys_differ_by_seed_and_purpose_and_never_change() -> None:
    assert len({derive_key(0, "a"), derive_key(1, "a"), derive_key(0, "b")}) == 3
    assert derive_key(0, "law") == int.from_bytes(hashlib.sha256(b"0/law").digest()[:8], "little")
    assert permute(np.arange(8), np.full(8, 8), np.full(8, 5, np.uint64)).tolist() == EXPECTED
