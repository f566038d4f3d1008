"""Orders beside the plan's own: corpora in sequence, and windows of steps that share out their examples by length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hf_interp import Corpus, InterpolatedDataset
from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.order import Order
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
