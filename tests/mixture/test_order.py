"""Orders beside the plan's own: in sequence, in windows of steps that share out examples by length, and at random."""

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
from hf_interp.mixture.order import STOPPING_STRATEGIES, Order, slots_until
from hf_interp.mixture.permutations import batch_orders, derive_key, permute, splitmix64
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, constant, linear


def texts(count: int, longest: int, seed: int) -> list[dict[str, list[int]]]:
    lengths = np.random.default_rng(seed).integers(1, longest + 1, count)
    return [{"input_ids": [0] * length} for length in lengths.tolist()]


CORPORA = {
    "general": {"web": texts(90, 40, 1), "books": texts(55, 60, 2)},
    "domain": texts(37, 40, 3),
}


SIZES = (90, 55, 37)


def data(alpha: float | AlphaSchedule = 0.5, **settings: Any) -> InterpolatedDataset:
    schedule = alpha if callable(alpha) else constant(alpha)
    settings = {"batch_size": 12, "max_steps": 60, "alpha_schedule": schedule, **settings}
    return InterpolatedDataset(CORPORA, **settings)


def whole(plan: MixturePlan) -> Any:
    return plan.locate(range(plan.start_step * plan.batch_size, len(plan)))


def lengths_in(mixture: InterpolatedDataset) -> np.ndarray[Any, Any]:
    draw = whole(mixture.plan)
    known = [[len(row["input_ids"]) for row in corpus.dataset] for corpus in mixture.corpora]
    pairs = zip(draw.corpus.tolist(), draw.example.tolist(), strict=True)
    return np.array([known[corpus][example] for corpus, example in pairs])


def padding(lengths: np.ndarray[Any, Any], size: int) -> float:
    """The share of padding in micro-batches of some size."""
    batches = lengths.reshape(-1, size)
    return float(1 - lengths.sum() / (batches.max(axis=1) * size).sum())


# In sequence.


def test_in_sequence_each_corpus_is_read_in_its_own_order() -> None:
    exact, plan = data(linear()).plan, data(linear(), sampling="sequential").plan
    draw = whole(plan)
    assert (draw.corpus == whole(exact).corpus).all()
    for index, size in enumerate(SIZES):
        own = draw.example[draw.corpus == index].tolist()
        assert own == [number % size for number in range(len(own))]
    assert plan.fingerprint() != exact.fingerprint()
    again = MixturePlan.from_dict(plan.to_dict())
    assert (np.stack(again.locate(range(100, 140))) == np.stack(draw)[:, 100:140]).all()


# By length.


@pytest.mark.parametrize("window", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("alpha", [0.5, linear()])
def test_a_window_keeps_the_counts_of_steps_and_the_examples_of_passes(window: int, alpha: Any) -> None:
    exact, plan = data(alpha).plan, data(alpha, length_window=window).plan
    before, after = whole(exact), whole(plan)

    def held(draw: Any, first: int, steps: int, *, by_pass: bool) -> list[Any]:
        own = slice(first * 12, (first + steps) * 12)
        corpus, ordinal, example = (part[own] for part in draw)
        passes = ordinal // np.array(SIZES)[corpus]
        return sorted(zip(*(part.tolist() for part in (corpus, passes if by_pass else example)), strict=True))

    for step in range(60):  # a step has as many of every pass of every corpus
        assert held(after, step, 1, by_pass=True) == held(before, step, 1, by_pass=True)
    for first in range(0, 60, window):  # a window has the examples that it had
        assert held(after, first, window, by_pass=False) == held(before, first, window, by_pass=False)
    for index, size in enumerate(SIZES):  # and so has a pass
        own = after.corpus == index
        passes = after.ordinal[own] // size
        for number in range(passes.max() + 1):
            part = after.example[own][passes == number].tolist()
            assert len(set(part)) == len(part)
    assert (plan.drawn_before(range(61)) == exact.drawn_before(range(61))).all()


@pytest.mark.parametrize("cases", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_windows_of_many_plans_keep_their_counts_and_passes(cases: int) -> None:
    for case in range(cases):
        rng = np.random.default_rng(case)
        sizes, batch, steps = (
            rng.integers(1, 60, rng.integers(1, 5)),
            int(rng.integers(1, 20)),
            int(rng.integers(1, 50)),
        )
        sides = ["domain", *rng.choice(["general", "domain"], len(sizes) - 1)]
        specs = [
            CorpusSpec(name=str(index), side=side, num_examples=size)
            for index, (side, size) in enumerate(zip(sides, sizes.tolist(), strict=True))
        ]
        points = rng.random(2) if "general" in sides else (1.0, 1.0)
        settings: dict[str, Any] = {"alpha_schedule": linear(*points), "batch_size": batch, "max_steps": steps}
        known = [rng.integers(1, 9, size) for size in sizes]
        window, start = int(rng.integers(1, 20)), int(rng.integers(steps))
        exact = MixturePlan(specs, seed=case, **settings).after(None, start)
        plan = MixturePlan(specs, seed=case, order=Order.by_length(window, known), **settings).after(None, start)
        before, after = np.stack(whole(exact)), np.stack(whole(plan))
        lengths = np.array([known[corpus][example] for corpus, _, example in after.T.tolist()])
        for first in range(0, before.shape[1], batch):
            own = slice(first, first + batch)
            held = [np.stack([part[0], part[1] // sizes[part[0]]])[:, own] for part in (before, after)]
            assert sorted(held[0].T.tolist()) == sorted(held[1].T.tolist())
            assert (np.diff(lengths[own]) >= 0).all()
        for first in range(0, before.shape[1], batch * window):
            own = slice(first, first + batch * window)
            assert sorted(before[:, own].T.tolist()) == sorted(after[:, own].T.tolist())


def test_like_lengths_meet() -> None:
    plain, in_steps, in_windows = (lengths_in(data(length_window=window)) for window in (None, 1, 30))
    assert sorted(plain) == sorted(in_windows)
    assert (np.diff(in_steps.reshape(-1, 12), axis=1) >= 0).all()
    # Micro-batches of a step or a part of it. Of the smallest corpus a window of 30 steps has five passes.
    for size, least, most in ((12, 0.5, 0.38), (4, 0.38, 0.12), (2, 0.24, 0.04)):
        assert padding(plain, size) > least
        assert padding(in_windows, size) < most
    assert padding(in_steps, 4) < 0.6 * padding(plain, 4)


def test_lengths_of_one_corpus_lie_as_if_its_window_were_sorted() -> None:
    mixture = InterpolatedDataset(
        {"general": [], "domain": texts(400, 500, 4)} | {"general": texts(1, 1, 5)},
        batch_size=10,
        max_steps=40,
        alpha_schedule=constant(1.0),
        length_window=20,
        seed=3,
    )
    lengths = lengths_in(mixture).reshape(2, 20, 10)
    for half in lengths:  # two windows of one pass
        expected = np.sort(half.reshape(-1)).reshape(20, 10)
        order = np.argsort(half[:, 0], kind="stable")
        assert (half[order].sum(axis=1) == expected.sum(axis=1)).all()
        assert (np.sort(half[order], axis=None) == expected.reshape(-1)).all()
        assert order.tolist() != sorted(order.tolist())  # the steps do not grow longer one by one


def test_steps_are_another_order_in_every_window_and_for_every_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        found = lengths_in(data(seed=seed, length_window=20, max_steps=60)).reshape(3, 20, 12).mean(axis=2)
        return [np.argsort(each).tolist() for each in found]

    first, second = order(0), order(1)
    assert len({tuple(each) for each in (*first, *second)}) == 6


def test_any_place_of_a_window_is_reached_at_once() -> None:
    plan = data(linear(), length_window=7).plan
    draw = np.stack(whole(plan))
    for slot in np.random.default_rng(0).integers(0, len(plan) - 30, 20).tolist():
        fresh = data(linear(), length_window=7).plan
        assert fresh.fingerprint() == plan.fingerprint()
        assert (np.stack(fresh.locate(range(slot, slot + 30))) == draw[:, slot : slot + 30]).all()
        assert (np.stack(fresh.locate([slot]))[:, 0] == draw[:, slot]).all()


@pytest.mark.parametrize("split", [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)])
def test_the_order_does_not_depend_on_the_split(split: tuple[int, int]) -> None:
    processes, accumulation = split
    expected = [len(row["input_ids"]) for row in data(length_window=7)]
    parts = [
        [
            len(row["input_ids"])
            for row in data(
                length_window=7,
                gradient_accumulation_steps=accumulation,
                num_processes=processes,
                process_index=index,
            )
        ]
        for index in range(processes)
    ]
    micro = 12 // (processes * accumulation)
    found: list[int] = []
    for first in range(0, len(parts[0]), micro):
        for part in parts:
            found += part[first : first + micro]
    assert found == expected


def test_a_saved_plan_goes_on_with_the_lengths_of_the_corpora() -> None:
    plan = data(length_window=7).plan
    found = continue_plan(data(length_window=7).plan, plan.to_dict(), 10)
    assert found.changes == []
    assert (np.stack(whole(found.plan)) == np.stack(whole(plan))).all()
    saved = MixturePlan.from_dict(plan.to_dict())
    assert saved.fingerprint() == plan.fingerprint()
    assert (saved.drawn_before(range(61)) == plan.drawn_before(range(61))).all()
    with pytest.raises(ValueError, match="by their lengths, which are not saved with it"):
        saved.locate(range(12))


def test_a_change_at_the_border_of_a_window_loses_nothing_and_inside_one_is_refused() -> None:
    old, fresh = data(length_window=7).plan, data(length_window=5, max_steps=80).plan
    found = continue_plan(fresh, old.to_dict(), 14)
    assert "order: exact, by length in windows of 7 steps -> exact, by length in windows of 5 steps" in found.changes
    first, second = np.stack(whole(old))[:, : 14 * 12], np.stack(whole(found.plan))
    for index, size in enumerate(SIZES):
        corpus, ordinal, example = np.concatenate([first, second], axis=1)
        own = corpus == index
        assert sorted(ordinal[own]) == list(range(own.sum()))
        for number in range(own.sum() // size):
            assert sorted(example[own][ordinal[own] // size == number]) == list(range(size))
    with pytest.raises(ValueError, match=r"at step 15, 1 steps into a window of 7 .*multiple of 7 steps"):
        continue_plan(fresh, old.to_dict(), 15)
    assert continue_plan(data(length_window=1, max_steps=80).plan, data(length_window=1).plan.to_dict(), 15).changes


def test_the_plans_own_order_is_known_as_before() -> None:
    assert Order().identity() == {}
    assert "order" not in data().plan.summary()
    assert data(sampling="sequential").plan.summary()["order"] == "sequential"
    assert str(Order("random", stopping_strategy="all_exhausted")) == "random until all_exhausted"
    assert "order" not in data().plan.to_dict()


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ({"general": [{"a": 1}], "domain": CORPORA["domain"]}, "no length in tokens without `input_ids`"),
        ([Corpus("stream", iter, "general")], "must be a dataset with a length"),
    ],
)
def test_examples_without_a_length_are_refused(corpora: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        InterpolatedDataset(corpora, batch_size=4, max_steps=4, length_window=4)


def test_an_alpha_that_is_not_decided_yet_is_refused() -> None:
    specs = [corpus.spec() for corpus in data().corpora]
    settings: dict[str, Any] = {"alpha_schedule": linear(), "batch_size": 4, "max_steps": 40, "num_committed": 10}
    known: Sequence[Any] = [np.ones(size, np.int64) for size in SIZES]
    for order in (Order("random"), Order.by_length(2, known)):
        with pytest.raises(ValueError, match=r"controller decides α a few steps ahead.*`length_window: 1`"):
            MixturePlan(specs, order=order, **settings)
    assert MixturePlan(specs, order=Order.by_length(1, known), **settings).locate(range(40)).corpus.shape == (40,)


# Random sampling: the order of `datasets.interleave_datasets`, whole sequences of it, and random access to that.

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
