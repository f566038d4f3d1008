"""The mixture plan: counts, reading order, random access, warnings, bad input."""

import hashlib
import json
import math
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.permutations import IntArray
from hf_interp.mixture.plan import MixturePlan, hash_of_reads
from hf_interp.mixture.schedules import (
    AlphaSchedule,
    constant,
    cosine,
    exponential,
    get_alpha_schedule,
    linear,
    phased,
    piecewise,
    polynomial,
    progress_of,
    sigmoid,
    steps,
)


def general(num_examples: int | None = 100, **kwargs: Any) -> CorpusSpec:
    return CorpusSpec(**{"name": "general", "side": "general", "num_examples": num_examples, **kwargs})


def domain(num_examples: int | None = 30, **kwargs: Any) -> CorpusSpec:
    return CorpusSpec(**{"name": "domain", "side": "domain", "num_examples": num_examples, **kwargs})


def plan_of(*corpora: CorpusSpec, alpha: float | AlphaSchedule = 0.5, **kwargs: Any) -> MixturePlan:
    """A plan of 10 steps of 4 examples, of a general corpus of 100 and a domain corpus of 30."""
    schedule = alpha if callable(alpha) else constant(alpha)
    return MixturePlan(
        corpora or (general(), domain()), alpha_schedule=schedule, **{"batch_size": 4, "max_steps": 10, **kwargs}
    )


def split_side(shares: list[float], side: str, size: int = 1000) -> list[CorpusSpec]:
    """A corpus for every share."""
    return [
        CorpusSpec(name=f"{side} {index}", side=side, num_examples=size, share=share)  # type: ignore[arg-type]
        for index, share in enumerate(shares)
    ]


def targets(plan: MixturePlan) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The slots that are due to every corpus before every step, unrounded."""
    alphas = np.array([plan.alpha(step) for step in range(plan.max_steps)])
    due = {"domain": alphas, "general": 1 - alphas}
    per_step = np.stack(
        [due[corpus.side] * (1.0 if corpus.share is None else corpus.share) for corpus in plan.corpora], axis=1
    )
    return np.concatenate([np.zeros((1, len(plan.corpora))), plan.batch_size * per_step.cumsum(axis=0)])


RECORDED = {  # of 70,000 steps by examples and 300 by tokens: the fingerprint, and the hash of what some steps read
    "constant": ("4486453f124f78c1", "250e0bbf43d9e55c", "faca2df075eb820c", "714db153e529d796"),
    "linear": ("ad12f5e54136c855", "e07d5bbcb84d1192", "8733678a72351399", "b2dfbb90900baf71"),
    "exponential": ("5bbcae8fa0768d99", "a9b0f6b225fc8935", "aea54d6631747aea", "dba362d063bfa5a7"),
    "cosine": ("333cb6f0822b56f1", "b3357b0863d1f378", "96e2c86c6bf925d3", "6872f225c93451bd"),
    "sigmoid": ("fbd3abec0c5f36ca", "76863a88b47059a7", "6284e79e31cc6f91", "b7b692b4f62842ca"),
    "polynomial": ("7685ec439f579785", "5531de1fb88bd1de", "2d30e917da36cc11", "62e4013121b2ff0c"),
    "steps": ("6c045deaf34b3adf", "88a0a20d40331713", "35f4cff778b6c554", "d1138261010a6a1d"),
    "piecewise": ("092f21d8062b4b6b", "2b20eef385adb1b4", "ac566353436a41e4", "e1b0fbe632e7c9b0"),
    "phased": ("ab8eab5fac9103d4", "e637e03a5f599dc9", "2323213e223e86c3", "265a5262b7456744"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_plans_read_what_they_have_always_read(name: str) -> None:
    schedule: AlphaSchedule = {
        "constant": constant(1 / 3),
        "linear": linear(),
        "exponential": exponential(0.1, 0.9, rate=3.0),
        "cosine": cosine(),
        "sigmoid": sigmoid(0.9, 0.2, steepness=7.0, midpoint=0.4),
        "polynomial": polynomial(power=1.7),
        "steps": steps(),
        "piecewise": piecewise([(0.1, 0.3), (0.5, 0.9), (1.0, 0.2)]),
        "phased": get_alpha_schedule("cosine", max_steps=70_000, initial_steps=0.2, target_steps=5000),
    }[name]
    corpora = [
        CorpusSpec(
            name=f"c{index}",
            side="domain" if index % 2 else "general",
            num_examples=100 * (index + 1),
            mean_tokens=3.0 + index,
        )
        for index in range(5)
    ]
    long = plan_of(*corpora, alpha=schedule, batch_size=7, max_steps=70_000, seed=3)
    by_tokens = plan_of(*corpora[:4], alpha=schedule, batch_size=16, max_steps=300, unit="tokens")
    hashes = f"{long.read_hash(69_000, 69_100):016x}", f"{by_tokens.read_hash(0, 300):016x}"
    assert (long.fingerprint(), hashes[0], by_tokens.fingerprint(), hashes[1]) == RECORDED[name]


def reads_of(plan: MixturePlan, index: int) -> list[int]:
    """The examples of a corpus in the order of their ordinals."""
    draw = plan.locate(range(len(plan)))
    here = draw.corpus == index
    order = np.argsort(draw.ordinal[here])
    assert draw.ordinal[here][order].tolist() == list(range(here.sum()))
    return list(draw.example[here][order].tolist())


@pytest.mark.parametrize("growth", [1.0, 1.2, (1 + math.sqrt(5)) / 2, 2.0, 3.0])
def test_shares_that_make_a_deep_tree_keep_to_their_targets(growth: float) -> None:
    weights = [growth**index for index in range(20)]
    corpora = split_side([weight / sum(weights) for weight in weights], "domain")
    plan = plan_of(general(), *corpora, alpha=linear(), batch_size=17, max_steps=997)
    drawn = plan.drawn_before(range(998))
    assert (np.diff(drawn, axis=0) >= 0).all()
    assert np.abs(drawn - targets(plan)).max() <= 2 + 1e-3


@pytest.mark.parametrize("seed", range(10))
def test_two_corpora_are_never_a_whole_slot_off(seed: int) -> None:
    rng = np.random.default_rng(seed)
    share = float(rng.random())
    pairs = [
        plan_of(general(), domain(share=1.0), alpha=piecewise([(0, 0.9), (0.4, share), (1, 0.3)]), max_steps=300),
        plan_of(*split_side([share, 1 - share], "domain"), alpha=1.0, batch_size=3, max_steps=300),
        plan_of(*split_side([1e-7, 1 - 1e-7], "general"), alpha=0.0, batch_size=5, max_steps=300),
    ]
    for plan in pairs:
        assert np.abs(plan.drawn_before(range(301)) - targets(plan)).max() < 1


def test_two_equal_corpora_take_turns() -> None:
    plan = plan_of(*split_side([0.5, 0.5], "domain"), alpha=1.0, batch_size=1)
    first, second = plan.drawn_before(range(11)).T.tolist()
    assert sorted([first, second]) == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5], [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]


def test_a_positive_share_is_never_rounded_to_nothing() -> None:
    sides = split_side([1 - 1e-12, 1e-12], "general")
    plan = plan_of(*sides, alpha=0.0, batch_size=2**20, max_steps=2**10)
    assert plan.drawn_before([0, 2**8, 2**10])[:, 1].tolist() == [0, 0, 1]
    none = plan_of(*split_side([1.0, 0.0], "general"), alpha=0.0, batch_size=2**20, max_steps=2**12)
    assert none.drawn_before(2**12)[1] == 0


def test_counts_of_a_line() -> None:
    plan = plan_of(alpha=linear(), batch_size=10, max_steps=11)
    assert plan.drawn_before(range(12))[:, 1].tolist() == [0, 0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55]
    assert plan.drawn_before(3).tolist() == [27, 3]
    assert plan.drawn_before([[1, 2], [11, 0]]).tolist() == [[[10, 0], [19, 1]], [[55, 55], [0, 0]]]
    assert plan.drawn_before([]).shape == (0, 2)
    assert len(plan) == 110


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [40, 0]), (1.0, [0, 40]), (0.5, [20, 20])])
def test_at_the_ends_of_alpha_one_side_is_read(alpha: float, expected: list[int]) -> None:
    plan = plan_of(alpha=alpha)
    assert plan.drawn_before(10).tolist() == expected
    assert np.bincount(plan.locate(range(40)).corpus, minlength=2).tolist() == expected


def test_a_phase_of_one_side_is_read_to_the_last_step() -> None:
    schedule = get_alpha_schedule("linear", max_steps=20, initial_steps=5, target_steps=3)
    corpus = plan_of(alpha=schedule, max_steps=20).locate(range(80)).corpus
    assert not corpus[: 5 * 4].any()
    assert corpus[-3 * 4 :].all()
    assert set(corpus[5 * 4 : -3 * 4].tolist()) == {0, 1}


def test_alpha_of_a_step() -> None:
    plan = plan_of(alpha=cosine(0.1, 0.7), max_steps=9)
    expected = [cosine(0.1, 0.7)(step / 8) for step in range(9)]
    assert [plan.alpha(step) for step in range(9)] == pytest.approx(expected, rel=0, abs=2**-31)
    assert plan.alpha(9) == plan.alpha(1000) == plan.alpha(8)
    assert plan.alpha(-1) == plan.alpha(0)


def test_a_run_of_one_step() -> None:
    plan = plan_of(alpha=linear(), max_steps=1)
    assert plan.drawn_before([0, 1]).tolist() == [[0, 0], [4, 0]]
    assert len(set(plan.locate(range(4)).example.tolist())) == 4
    assert plan.alpha_landmarks() == [0]
    assert plan_of(alpha=1.0, max_steps=1).drawn_before(1).tolist() == [0, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 64, 100])
def test_a_pass_reads_every_example_once_and_the_next_in_another_order(size: int) -> None:
    plan = plan_of(general(size), domain(13), alpha=linear(), batch_size=7, max_steps=101)
    for index, length in enumerate([size, 13]):
        reads = reads_of(plan, index)
        passes = [tuple(reads[first : first + length]) for first in range(0, len(reads), length)]
        assert all(sorted(whole) == list(range(length)) for whole in passes[:-1])
        assert len(set(passes[-1])) == len(passes[-1])
        assert set(passes[-1]) <= set(range(length))
        if length >= 13:  # 13! orders: two equal ones would be no chance
            assert len(set(passes)) == len(passes)


def test_another_seed_is_another_order_of_the_same_counts() -> None:
    plans = [plan_of(alpha=linear(), max_steps=50, seed=seed) for seed in range(5)]
    draws = [plan.locate(range(200)) for plan in plans]
    assert len({draw.corpus.tobytes() for draw in draws}) == 5
    assert len({tuple(reads_of(plan, 0)) for plan in plans}) == 5
    assert len({plan.drawn_before(range(51)).tobytes() for plan in plans}) == 1
    again = plan_of(alpha=linear(), max_steps=50, seed=3).locate(range(200))
    assert all((one == other).all() for one, other in zip(again, draws[3], strict=True))


def test_corpora_of_one_length_are_read_in_different_orders() -> None:
    plan = plan_of(general(40), domain(40), max_steps=20)
    assert sorted(reads_of(plan, 0)) == sorted(reads_of(plan, 1)) == list(range(40))
    assert reads_of(plan, 0) != reads_of(plan, 1)


def test_a_corpus_has_no_place_of_its_own_in_a_batch() -> None:
    corpus = plan_of(batch_size=8, max_steps=400).locate(range(3200)).corpus.reshape(400, 8)
    assert (corpus.sum(axis=1) == 4).all()
    at_each_place = corpus.sum(axis=0)  # 200 expected, with a standard deviation of 10
    assert (np.abs(at_each_place - 200) < 50).all()
    assert len({row.tobytes() for row in corpus}) > 60  # of the 70 ways to place 4 among 8


@pytest.mark.parametrize(
    ("batch_size", "max_steps", "start"),
    [(1, 1500, 0), (3, 400, 0), (32, 40, 0), (512, 3, 0), (700, 3, 0), (3, 900, 11)],
)
def test_slots_hold_the_same_however_they_are_asked_for(batch_size: int, max_steps: int, start: int) -> None:
    def build() -> MixturePlan:
        plan = plan_of(alpha=linear(), batch_size=batch_size, max_steps=max_steps)
        return plan.after(plan_of(batch_size=7, max_steps=max_steps), start) if start else plan

    begin, end = start * batch_size, max_steps * batch_size
    whole = np.stack(build().locate(range(begin, end)))
    shuffled, fresh = np.random.default_rng(0).permutation(np.arange(begin, end)), build()
    for slot in shuffled[:200].tolist():  # jumps from block to block
        assert np.stack(fresh.locate([slot]))[:, 0].tolist() == whole[:, slot - begin].tolist()
    assert (np.stack(fresh.locate(shuffled)) == whole[:, shuffled - begin]).all()
    for first in (0, 505, 1019, end - begin - 20):
        part = np.stack(fresh.locate(range(begin + first, begin + first + 20)))
        assert (part == whole[:, first : first + 20]).all()


@pytest.mark.parametrize("slots", [[40], [-1], [0, 40], range(-1, 3), range(38, 42)])
def test_slots_outside_the_run_are_refused(slots: Any) -> None:
    message = rf"Slots must lie in \[0, 40\), got {min(slots)} … {max(slots)}"
    with pytest.raises(IndexError, match=message):
        plan_of().locate(slots)


def test_slots_may_be_none_or_at_both_ends() -> None:
    assert [part.tolist() for part in plan_of().locate([])] == [[], [], []]
    draw = plan_of(alpha=linear()).locate([0, 39])
    assert draw.corpus.tolist() == [0, 1]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_pass_is_equally_likely(size: int) -> None:
    ways, times = math.factorial(size), 12_000
    passes = reads_of(plan_of(general(size), alpha=0.0, batch_size=size, max_steps=times), 0)
    counts = Counter(map(tuple, np.array(passes).reshape(-1, size).tolist()))
    chi_square = sum((count - times / ways) ** 2 / (times / ways) for count in counts.values())
    assert len(counts) == ways
    assert chi_square < ways - 1 + 6 * math.sqrt(2 * (ways - 1))  # mean and six standard deviations


def test_nothing_overflows() -> None:
    batch_size, max_steps = 2**20, 2**12
    corpora = [general(10**12), *split_side([1 / 3, 2 / 3 - 1e-9, 1e-9], "domain", 10**12)]
    plan = plan_of(*corpora, alpha=linear(), batch_size=batch_size, max_steps=max_steps)
    drawn = plan.drawn_before(range(max_steps + 1))
    assert (np.diff(drawn, axis=0).sum(axis=1) == batch_size).all()
    assert drawn[-1, 0] == drawn[-1, 1:].sum() == 2**31  # a line is half the area
    assert drawn[-1].tolist() == pytest.approx([2**31, 2**31 / 3, 2**31 * 2 / 3, 2.147], rel=1e-8, abs=2)
    draw = plan.locate(range(len(plan) - 1000, len(plan)))
    assert draw.example.min() >= 0
    assert draw.example.max() < 10**12
    assert len(set(zip(draw.corpus.tolist(), draw.example.tolist(), strict=True))) == 1000


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, 0), (3, 0), (4, 1), (6, 1), (7, 2), (12, 3), (13, 4), (14, 4), (15, 4), (16, None), (None, None)],
)
def test_the_step_that_exhausts_a_corpus(size: int | None, expected: int | None) -> None:
    assert plan_of(general(size), alpha=0.0, batch_size=3, max_steps=5).exhausted_at(0) == expected


@pytest.mark.parametrize("size", [1, 5, 19, 30, 31])
def test_a_corpus_is_exhausted_when_its_last_example_is_read(size: int) -> None:
    corpora = [*split_side([0.1, 0.6, 0.3], "general", size), domain(13)]
    plan = plan_of(*corpora, alpha=piecewise([(0.1, 0.9), (0.6, 0.2), (1.0, 0.7)]), batch_size=5, max_steps=21)
    draw = plan.locate(range(len(plan)))
    for index, corpus in enumerate(plan.corpora):
        slots = np.flatnonzero(draw.corpus == index)
        _, first = np.unique(draw.example[slots], return_index=True)
        done = len(first) == corpus.num_examples
        expected = int(slots[first].max()) // plan.batch_size if done else None
        assert plan.exhausted_at(index) == expected


def test_passes() -> None:
    plan = plan_of(general(8), domain(None))
    assert [plan.passes(step) for step in (0, 1, 4, 10)] == [[0.0, None], [0.25, None], [1.0, None], [2.5, None]]


@pytest.mark.parametrize(("limit", "size"), [(4, 10), (4.0, 10), (0.5, 80), (0.4, 100), (None, 1)])
def test_passes_up_to_the_limit_are_planned(limit: float | None, size: int) -> None:
    plan = plan_of(general(size, max_passes=limit), alpha=0.0)
    assert plan.passes(10) == [40 / size]


@pytest.mark.parametrize(("limit", "size", "read"), [(3.99, 10, "4.00"), (0.49, 80, "0.50"), (1, 39, "1.03")])
def test_passes_beyond_the_limit_are_refused(limit: float, size: int, read: str) -> None:
    message = f"'general' would be read {read} times, but its `max_passes` is {limit}.*fewer steps.*raise `max_passes`"
    with pytest.raises(ValueError, match=message):
        plan_of(general(size, max_passes=limit), alpha=0.0)


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_limit_of_passes_is_positive(limit: float) -> None:
    with pytest.raises(ValueError, match=f"`max_passes` of corpus 'general' must be positive, got {limit}"):
        plan_of(general(max_passes=limit), alpha=0.0)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (plan_of(), []),
        (plan_of(alpha=0.0), ["'domain' is never drawn. Raise its share"]),
        (plan_of(alpha=1.0), ["'general' is never drawn. Raise its share"]),
        (plan_of(*split_side([0.0, 1.0], "general"), alpha=0.0), ["'general 0' is never drawn"]),
        (plan_of(general(10), alpha=0.0), []),  # exactly 4 passes
        (plan_of(general(9), alpha=0.0), ["'general' is read 4.4 times; beyond about 4 passes"]),
        (plan_of(general(None), alpha=0.0, max_steps=100), []),
        (plan_of(alpha=0.25), []),  # exactly 1 of 4
        (plan_of(alpha=0.24), ["batch of 4 holds 0.96 examples of corpus 'domain' at the most"]),
        (plan_of(alpha=0.76), ["batch of 4 holds 0.96 examples of corpus 'general' at the most"]),
        (plan_of(alpha=linear(0.1, 0.25)), []),  # one step is enough
        (plan_of(alpha=linear(0.24, 0.1)), ["holds 0.96 examples of corpus 'domain'"]),
        (plan_of(*split_side([0.1, 0.9], "general"), alpha=0.0, batch_size=10), []),  # 0.1 is no multiple of 2⁻³⁰
        (plan_of(*split_side([0.3, 0.7], "domain"), general(), alpha=1 / 3, batch_size=10), []),
        (plan_of(*split_side([0.09, 0.91], "general"), alpha=0.0, batch_size=10), ["10 holds 0.9 examples"]),
        (
            plan_of(general(2), domain(share=1.0), alpha=0.01),
            ["'general' is read 20.0 times", "'domain' is never drawn", "holds 0.04 examples of corpus 'domain'"],
        ),
    ],
)
def test_warnings(plan: MixturePlan, expected: list[str]) -> None:
    found = plan.warnings()
    assert len(found) == len(expected)
    for warning, part in zip(found, expected, strict=True):
        assert part in warning


@pytest.mark.parametrize(
    ("corpora", "expected"),
    [
        ([general(30)], [40]),
        ([general(30), general(10, name="b")], [30, 10]),  # in proportion to their lengths
        ([general(30, share=0.25), general(10, name="b", share=0.75)], [10, 30]),
        ([general(30, share=0.0), general(10, name="b", share=1.0)], [0, 40]),
        ([general(share=0.0, name=name) for name in "abc"] + [general(share=1)], [0, 0, 0, 40]),
        ([general(share=0.5), general(name="b", share=0.5 + 0.9e-6)], [20, 20]),
        ([general(None)], [40]),
        ([general(None, share=0.5), general(7, name="b", share=0.5)], [20, 20]),
    ],
)
def test_shares(corpora: list[CorpusSpec], expected: list[int]) -> None:
    plan = plan_of(*corpora, alpha=0.0)
    assert plan.drawn_before(10).tolist() == expected
    assert np.bincount(plan.locate(range(40)).corpus, minlength=len(expected)).tolist() == expected


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        (
            [general(share=0.5)],
            r"shares of the general corpora must lie in \[0, 1\] and sum to 1, got {'general': 0\.5}",
        ),
        ([general(share=0.5), general(name="b", share=0.4)], r"must lie in \[0, 1\] and sum to 1, got .*'b': 0\.4"),
        ([general(share=0.5), general(name="b", share=0.5 + 1.1e-6)], "sum to 1"),
        ([general(share=0.5), general(name="b", share=0.5 - 1.1e-6)], "sum to 1"),
        ([general(share=-0.5), general(name="b", share=1.5)], r"must lie in \[0, 1\].*'general': -0\.5, 'b': 1\.5"),
        ([general(share=math.nan)], r"must lie in \[0, 1\].*nan"),
        ([general(share=1.0), general(name="b")], r"a share to every general corpus or to none: \['b'\] have none"),
        (
            [general(None), general(name="b")],
            r"general corpora need shares, because \['general'\] are streams.*Give each a `share`",
        ),
        ([general(0)], "Corpus 'general' is empty. Check its path, split and filters"),
        ([general(), general(5)], r"Corpora must have different names, got \['general', 'general'\]"),
        ([general(), domain(name="general")], "Corpora must have different names"),
        ([general(side="target")], "'general' must have side 'general' or 'domain', got 'target'"),
    ],
)
def test_corpora_that_do_not_fit_are_refused(corpora: list[CorpusSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(*corpora, alpha=0.0)


def test_a_plan_needs_a_corpus() -> None:
    with pytest.raises(ValueError, match="at least one corpus, got none"):
        MixturePlan([], alpha_schedule=constant(0.0), batch_size=4, max_steps=10)


@pytest.mark.parametrize("name", ["batch_size", "max_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_run_has_steps_and_examples(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {value}"):
        plan_of(**{name: value})
    assert len(plan_of(**{name: 1})) in (4, 10)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"must stay in \[0, 1\], got nan at step 3 of 5 \(progress 0\.75\)"),
        (-1e-9, r"must stay in \[0, 1\], got -1e-09 at step 3 of 5 \(progress 0\.75\)"),
        (1 + 1e-9, r"must stay in \[0, 1\], got 1\.000000001 at step 3 of 5"),
        (math.inf, r"must stay in \[0, 1\], got inf at step 3 of 5"),
        ("half", "must return a number, got 'half' at step 3"),
        ([0.5, 0.5], r"must return a number, got \[0\.5, 0\.5\] at step 3"),
    ],
)
def test_what_is_no_alpha_is_refused_with_its_step(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(alpha=lambda progress: value if progress >= 0.75 else 0.5, max_steps=5)


@pytest.mark.parametrize(
    ("corpus", "alpha", "message"),
    [
        (
            general(),
            linear(),
            "α is 0.25 at step 1, which asks for domain .* side 'domain'.*'general'.*constant α of 0",
        ),
        (domain(), linear(), "α is 0 at step 0, which asks for general .* side 'general'.*'domain'.*constant α of 1"),
        (domain(), linear(1, 0), "α is 0.75 at step 1, which asks for general examples"),
    ],
)
def test_a_side_without_a_corpus_is_refused(corpus: CorpusSpec, alpha: AlphaSchedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(corpus, alpha=alpha, max_steps=5)


def test_a_side_that_is_not_asked_for_needs_no_corpus() -> None:
    assert plan_of(general(), alpha=0.0).drawn_before(10).tolist() == [40]
    assert plan_of(domain(), alpha=1.0).drawn_before(10).tolist() == [40]


@pytest.mark.parametrize(
    "other",
    [
        lambda: plan_of(general(101), domain()),
        lambda: plan_of(general(None), domain()),
        lambda: plan_of(general(name="web"), domain()),
        lambda: plan_of(domain(), general()),
        lambda: plan_of(general(100, side="domain", name="domain"), domain(30, side="general", name="general")),
        lambda: plan_of(general(), domain(), general(name="more")),
        lambda: plan_of(general(share=0.5), domain(), general(name="more", share=0.5)),
        lambda: plan_of(general(share=0.5 + 1e-7), domain(), general(name="more", share=0.5 - 1e-7)),
        lambda: plan_of(general(30), domain(100)),
        lambda: plan_of(alpha=0.25),
        lambda: plan_of(alpha=linear()),
        lambda: plan_of(alpha=linear(1, 0)),
        lambda: plan_of(alpha=lambda progress: 0.5 if progress < 1 else 0.75),
        lambda: plan_of(batch_size=5),
        lambda: plan_of(batch_size=10, max_steps=4),
        lambda: plan_of(max_steps=11),
        lambda: plan_of(seed=1),
    ],
)
def test_each_ingredient_is_in_the_fingerprint(other: Callable[[], MixturePlan]) -> None:
    assert plan_of().fingerprint() == plan_of().fingerprint()
    assert other().fingerprint() == other().fingerprint()
    assert other().fingerprint() != plan_of().fingerprint()


def test_what_leaves_the_order_alone_leaves_the_fingerprint_alone() -> None:
    plain = plan_of(general(30), general(10, name="b"), alpha=0.0)
    same = [
        plan_of(general(30, share=0.75), general(10, name="b", share=0.25), alpha=0.0),
        plan_of(general(30, max_passes=9), general(10, name="b", max_passes=9), alpha=0.0),
        plan_of(general(30), general(10, name="b"), alpha=steps([0.0, 0.0])),
    ]
    for plan in same:
        assert plan.fingerprint() == plain.fingerprint()
        assert (np.stack(plan.locate(range(40))) == np.stack(plain.locate(range(40)))).all()
    plain.locate([7])
    assert plain.fingerprint() == same[0].fingerprint()


@pytest.mark.parametrize("corpora", [(), (general(None), domain(5)), (general(7), domain(None))])
def test_identity_and_summary_are_ready_for_json(corpora: tuple[CorpusSpec, ...]) -> None:
    plan = plan_of(*corpora, alpha=sigmoid(0.1, 0.9))
    for found in (plan.identity(), plan.summary()):
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(plan.fingerprint()) == 16
    assert int(plan.fingerprint(), 16) >= 0


def test_the_summary_agrees_with_the_plan() -> None:
    plan = plan_of(general(8), domain(None), alpha=linear(), max_steps=5)
    found = plan.summary()
    assert (found["num_examples"], found["unit"], found["start_step"]) == (20, "examples", 0)
    assert found["alpha"] == [{"step": step, "alpha": step / 4} for step in range(5)]
    assert found["corpora"] == [
        {"name": "general", "side": "general", "num_examples": 8, "share": 1.0}
        | {"drawn_at_start": 0, "drawn": 10, "passes": 1.25, "exhausted_at": 2},
        {"name": "domain", "side": "domain", "num_examples": None, "share": 1.0}
        | {"drawn_at_start": 0, "drawn": 10, "passes": None, "exhausted_at": None},
    ]
    assert found["domain_share"] == 0.5
    assert found["warnings"] == plan.warnings() == []
    assert found["fingerprint"] == plan.fingerprint()


def test_the_identity_tells_alpha_by_its_hash() -> None:
    units = np.array([0, 2**28, 2**29, 3 * 2**28, 2**30], "<i8")
    found = plan_of(alpha=linear(), max_steps=5).identity()
    assert found["alpha_sha256"] == hashlib.sha256(units.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("schedule", "max_steps", "expected"),
    [
        (constant(0.5), 100, [0, 99]),
        (linear(), 101, [0, 25, 50, 75, 100]),
        (linear(), 2, [0, 1]),
        (phased(linear(), begin=progress_of(19, 100), end=progress_of(90, 100)), 100, [0, 19, 37, 54, 72, 90, 99]),
        (steps([0.0, 0.5, 1.0]), 30, [0, 9, 10, 19, 20, 29]),
        (steps([index / 10 for index in range(7)]), 70, [0, 9, 10, 19, 20, 29, 30, 39, 40, 49, 50, 59, 60, 69]),
        (steps([index / 10 for index in range(8)]), 80, [0, 9, 24, 40, 55, 70, 79]),
    ],
)
def test_landmarks(schedule: AlphaSchedule, max_steps: int, expected: list[int]) -> None:
    assert plan_of(alpha=schedule, max_steps=max_steps).alpha_landmarks() == expected


@pytest.mark.parametrize("initial", [0, 1, 13])
@pytest.mark.parametrize("target", [0, 1, 29])
def test_landmarks_hold_both_ends_and_the_borders_of_phases(initial: int, target: int) -> None:
    schedule = get_alpha_schedule("cosine", max_steps=83, initial_steps=initial, target_steps=target)
    borders = {max(initial - 1, 0), min(83 - target, 82)}
    found = plan_of(alpha=schedule, max_steps=83).alpha_landmarks()
    assert {0, 82} | borders <= set(found)
    assert found == sorted(set(found))


@pytest.mark.parametrize("corpora", [(), (general(None), domain(5)), (*split_side([0.2, 0.8], "general"), domain())])
def test_a_plan_survives_pickling(corpora: tuple[CorpusSpec, ...]) -> None:
    plan = plan_of(*corpora, alpha=lambda progress: progress, max_steps=300)
    plan.locate([5, 900])
    copy = pickle.loads(pickle.dumps(plan))
    slots: IntArray = np.random.default_rng(1).permutation(len(plan))
    assert (np.stack(copy.locate(slots)) == np.stack(plan.locate(slots))).all()
    assert (copy.drawn_before(range(301)) == plan.drawn_before(range(301))).all()
    assert copy.summary() == plan.summary()


def test_a_long_plan_holds_no_slots() -> None:
    corpora = split_side([1 / 8] * 8, "general", 10**7) + split_side([1 / 8] * 8, "domain", 10**5)
    tracemalloc.start()
    try:
        plan = plan_of(*corpora, alpha=linear(), batch_size=256, max_steps=100_000)
        plan.summary()
        plan.locate(range(50_000 * 256, 50_001 * 256))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(plan) == 25_600_000  # 195 MiB for one array of them
    assert peak < 32 * 2**20


@pytest.mark.parametrize(
    ("alpha", "max_steps"), [(0.5, 10**8), (phased(linear(), begin=0.9), 10**6)], ids=["constant", "moving"]
)
def test_a_plan_of_any_length_is_planned_in_little_memory(alpha: Any, max_steps: int) -> None:
    tracemalloc.start()
    try:
        plan = plan_of(alpha=alpha, max_steps=max_steps)
        summary = plan.summary()
        again = MixturePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
        slots = range(2 * max_steps, 2 * max_steps + 8)
        assert (np.stack(again.locate(slots)) == plan.locate(slots)).all()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20
    # half of all; or 4·(K / 2 + 1 / 2) of the last K = (max_steps − 1) / 10 steps
    assert plan.sides_before(max_steps)["domain"] == {10**8: 200_000_000, 10**6: 200_002}[max_steps]
    assert summary["alpha"][-1] == {"step": max_steps - 1, "alpha": 0.5 if max_steps == 10**8 else 1.0}
    # where 4·t² / (2·K) reaches 29.5 of its 30 examples, t steps after the rise begins
    assert plan.exhausted_at(1) == {10**8: 14, 10**6: 901_214}[max_steps]


def test_reading_on_does_not_fill_memory() -> None:
    plan = plan_of(alpha=linear(), batch_size=512, max_steps=1000)
    plan.locate([0, 512, 1024])
    tracemalloc.start()
    try:
        for step in range(500):
            plan.locate([step * 512])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2**20  # the 500 batches together are 6 MiB


# Chains of plans.


def chain() -> MixturePlan:
    """Four examples a step up to step 3, six up to step 7, then five of the domain alone."""
    first = plan_of(general(7), domain(5), alpha=linear())
    second = plan_of(general(7), domain(5), alpha=0.5, batch_size=6).after(first, 3)
    return plan_of(domain(5), alpha=1.0, batch_size=5, max_steps=12).after(second, 7)


def test_each_step_is_ruled_by_its_plan() -> None:
    last = chain()
    assert [last.plan_of(step).batch_size for step in range(13)] == [4] * 3 + [6] * 4 + [5] * 6
    assert [last.alpha(step) for step in (0, 3, 6, 7, 11)] == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert last.alpha(2) == pytest.approx(2 / 9, abs=2**-31)
    assert last.plan_of(12) is last
    assert last.plan_of(6) is last.previous
    assert last.plan_of(0).start_step == 0


def test_a_chain_goes_on_from_what_was_consumed() -> None:
    last = chain()
    assert [last.consumed(step) for step in (0, 3, 5, 7, 8, 12)] == [
        {"general": 0, "domain": 0},
        {"general": 11, "domain": 1},
        {"general": 17, "domain": 7},
        {"general": 23, "domain": 13},
        {"general": 23, "domain": 18},
        {"general": 23, "domain": 38},
    ]
    assert last.drawn_before([0, 3, 5, 7, 8, 12]).tolist() == [[0], [1], [7], [13], [18], [38]]
    assert last.passes(12) == [38 / 5]
    assert last.exhausted_at(0) == 4  # in the step that draws the fifth
    summary = last.summary()
    assert summary["num_examples"] == 3 * 4 + 4 * 6 + 5 * 5
    assert summary["corpora"][0]["drawn_at_start"] == 13
    assert summary["corpora"][0]["drawn"] == 38
    assert summary["domain_share"] == 1.0
    assert summary["start_step"] == 7
    assert [mark["step"] for mark in summary["alpha"]] == [7, 11]


def test_slots_before_the_first_step_of_a_plan_are_refused() -> None:
    last = chain()
    assert last.locate([35, 59]).corpus.tolist() == [0, 0]
    assert np.stack(last.locate(range(35, 60))).shape == (3, 25)
    for slots in ([34], [34, 35], range(30, 40), [60], range(58, 61)):
        with pytest.raises(IndexError, match=rf"Slots must lie in \[35, 60\), got {min(slots)} … {max(slots)}"):
            last.locate(slots)


@pytest.mark.parametrize("start", [0, 1, 9])
def test_a_plan_may_begin_late_with_nothing_read(start: int) -> None:
    plan = plan_of(alpha=0.5).after(None, start)
    assert plan.consumed(start) == {"general": 0, "domain": 0}
    assert plan.consumed(10) == {"general": 2 * (10 - start), "domain": 2 * (10 - start)}
    assert sorted(plan.locate(range(4 * start, 4 * start + 4)).ordinal.tolist()) == [0, 0, 1, 1]
    assert plan.plan_of(0) is plan
    with pytest.raises(IndexError, match="Slots must lie in"):
        plan.locate([4 * start - 1])


def test_a_plan_that_goes_on_after_itself_reads_the_same() -> None:
    plain = plan_of(alpha=0.5, max_steps=40)
    for step in (0, 1, 13, 39):
        again = plan_of(alpha=0.5, max_steps=40).after(plain, step)
        slots = range(4 * step, 160)
        assert (np.stack(again.locate(slots)) == np.stack(plain.locate(slots))).all()
        assert again.read_hash(0, 40) == plain.read_hash(0, 40)
        assert again.fingerprint() != plain.fingerprint()


def test_what_a_plan_of_another_side_has_fixed_needs_its_corpora() -> None:
    adaptive = plan_of(num_committed=5)
    with pytest.raises(ValueError, match=r"α is 0.5 at step 2, which asks for general examples"):
        plan_of(domain(), alpha=1.0, num_committed=2).after(adaptive, 2)
    assert plan_of(domain(), alpha=1.0, num_committed=2).after(adaptive, 5).consumed(10) == {
        "general": 10,
        "domain": 30,
    }


def test_passes_are_limited_over_a_whole_chain() -> None:
    first = plan_of(alpha=0.9)  # 18 of 30 in five steps
    assert plan_of(general(), domain(max_passes=28 / 30)).after(first, 5).passes(10) == [12 / 100, 28 / 30]
    with pytest.raises(ValueError, match=r"'domain' would be read 0.93 times, but its `max_passes` is 0.9"):
        plan_of(general(), domain(max_passes=0.9)).after(first, 5)


# An α that is fixed while training goes on.


def adaptive(num_committed: int = 3, **kwargs: Any) -> MixturePlan:
    return plan_of(num_committed=num_committed, **{"alpha": linear(), "max_steps": 11, **kwargs})


def test_only_steps_whose_alpha_is_fixed_can_be_read() -> None:
    plan = adaptive()
    assert plan.is_adaptive
    assert plan.locate(range(12)).corpus.shape == (12,)
    for slots in ([12], range(8, 16), [0, 43]):
        message = r"α is fixed for the first 3 steps, so slots must lie below 12, got .*Decide further ahead"
        with pytest.raises(IndexError, match=message):
            plan.locate(slots)
    with pytest.raises(IndexError, match=r"Slots must lie in \[0, 44\)"):
        plan.locate([44])
    with pytest.raises(IndexError, match="α is fixed for the first 3 steps"):
        plan.read_hash(0, 4)
    plan.commit([0.5])
    assert plan.locate([12, 15]).corpus.shape == (2,)


def test_what_is_fixed_never_changes() -> None:
    plan = adaptive()
    before, hashed = np.stack(plan.locate(range(12))), plan.read_hash(0, 3)
    plan.commit([1.0, 0.0, 1.0])
    assert [plan.alpha(step) for step in (2, 3, 4, 5)] == [plan.scheduled_alpha(2), 1.0, 0.0, 1.0]
    assert plan.scheduled_alpha(3) == pytest.approx(0.3, abs=2**-31)
    assert plan.alpha(6) == pytest.approx(0.6, abs=2**-31)  # a forecast
    assert (np.stack(plan.locate(range(12))) == before).all()
    assert plan.read_hash(0, 3) == hashed
    assert np.diff(plan.drawn_before(range(3, 7)), axis=0).tolist() == [[0, 4], [4, 0], [0, 4]]
    plan.commit([])
    assert plan.num_committed == 6


def test_a_plan_that_was_fixed_step_by_step_reads_as_one_made_at_once() -> None:
    alphas = [0.0, 0.5, 1.0, 0.25, 0.25, 0.75, 0.0, 1.0, 0.5, 0.125, 0.5]
    at_once = plan_of(alpha=lambda progress: alphas[round(10 * progress)], max_steps=11)
    for size in (1, 2, 5, 11):
        plan = adaptive(0)
        for first in range(0, 11, size):
            plan.commit(alphas[first : first + size])
            slots = range(4 * first, 4 * plan.num_committed)
            assert (np.stack(plan.locate(slots)) == np.stack(at_once.locate(slots))).all()
        assert plan.read_hash(0, 11) == at_once.read_hash(0, 11)
        assert (np.stack(plan.locate(range(44))) == np.stack(at_once.locate(range(44)))).all()


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0.5] * 9, "α of steps 3 … 11 cannot be fixed: the run has 11 steps"),
        ([0.5, 1.01], r"must stay in \[0, 1\], got 1\.01 at step 4 of 11"),
        ([-0.01], r"must stay in \[0, 1\], got -0\.01 at step 3 of 11"),
        ([math.nan], r"must stay in \[0, 1\], got nan at step 3"),
        (["0.5"], "must return a number, got '0.5' at step 3"),
        ([0.5, None], "must return a number, got None at step 4"),
    ],
)
def test_what_cannot_be_fixed_changes_nothing(alphas: list[Any], message: str) -> None:
    plan = adaptive()
    before = plan.to_dict()
    with pytest.raises(ValueError, match=message):
        plan.commit(alphas)
    assert plan.to_dict() == before
    plan.commit([0.5] * 8)
    assert plan.num_committed == 11
    with pytest.raises(ValueError, match="cannot be fixed"):
        plan.commit([0.5])


def test_a_side_without_a_corpus_cannot_be_fixed() -> None:
    plan = plan_of(domain(), alpha=1.0, num_committed=3)
    before = plan.to_dict()
    with pytest.raises(ValueError, match=r"α is 0.5 at step 4, which asks for general examples"):
        plan.commit([1.0, 0.5])
    assert plan.to_dict() == before
    assert plan.consumed(10) == {"domain": 40}


def test_a_plan_all_of_whose_steps_are_fixed_is_not_adaptive() -> None:
    assert [plan_of(num_committed=count).is_adaptive for count in (0, 9, 10, 11)] == [True, True, False, False]
    assert plan_of(num_committed=99).num_committed == 10


# Plans as plain values.


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(),
        plan_of(alpha=cosine(), max_steps=57),
        plan_of(alpha=0.0),
        plan_of(alpha=steps([0.0, 1.0, 0.0, 1.0]), max_steps=12),
        plan_of(alpha=lambda progress: 2**-30 * round(progress * 3), max_steps=20),
        plan_of(general(None), domain(content="ab12")),
        plan_of(*split_side([1 / 3, 1e-12, 2 / 3 - 1e-12], "general"), domain(), seed=2**40),
        plan_of(general(mean_tokens=3.5), domain(mean_tokens=9), unit="tokens"),
        adaptive(),
        adaptive(0),
        chain(),
        plan_of(num_committed=2, batch_size=3).after(adaptive(7), 5),
    ],
)
def test_a_plan_comes_back_from_json_as_it_was(plan: MixturePlan) -> None:
    state = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    again = MixturePlan.from_dict(state)
    assert again.to_dict() == plan.to_dict() == state
    assert again.summary() == plan.summary()
    slots = range(plan.start_step * plan.batch_size, plan.num_committed * plan.batch_size)
    assert (np.stack(again.locate(slots)) == np.stack(plan.locate(slots))).all()
    every = range(plan.max_steps)
    assert [again.alpha(step) for step in every] == [plan.alpha(step) for step in every]
    assert [again.scheduled_alpha(step) for step in every] == [plan.scheduled_alpha(step) for step in every]
    if plan.num_committed < plan.max_steps:
        again.commit([0.5])
        assert again.num_committed == plan.num_committed + 1
    if plan.previous is not None:
        assert again.read_hash(0, plan.start_step) == plan.read_hash(0, plan.start_step)


def test_a_long_plan_is_short_as_plain_values() -> None:
    plan = plan_of(alpha=cosine(), max_steps=100_000)
    assert len(json.dumps(plan.to_dict())) < 100_000


# The hash of what is read.


def test_the_hash_changes_with_any_one_example() -> None:
    plan = plan_of(alpha=linear(), batch_size=6, max_steps=5)
    draw = plan.locate(range(30))
    slots, keys = np.arange(30), plan.name_keys[draw.corpus]
    found = {hash_of_reads(slots, keys, draw.example)}
    for place in range(30):
        example, other_keys, other_slots = draw.example.copy(), keys.copy(), slots.copy()
        example[place] += 1
        other_keys[place] = plan.name_keys[1 - draw.corpus[place]]
        other_slots[place] += 30
        found |= {
            hash_of_reads(slots, keys, example),
            hash_of_reads(slots, other_keys, draw.example),
            hash_of_reads(other_slots, keys, draw.example),
        }
    swapped = draw.example.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert draw.example[0] != draw.example[1]
    found.add(hash_of_reads(slots, keys, swapped))
    assert len(found) == 1 + 3 * 30 + 1


def test_the_hash_knows_a_corpus_by_its_name_alone() -> None:
    one, other = plan_of(alpha=0.0), plan_of(domain(), general(), alpha=0.0)
    assert one.read_hash(0, 10) == other.read_hash(0, 10)
    assert one.read_hash(0, 10) != plan_of(general(name="web"), domain(), alpha=0.0).read_hash(0, 10)


# A mixture by tokens.


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [40, 0]), (0.5, [30, 10]), (0.75, [20, 20]), (1.0, [0, 40])])
def test_counts_are_corrected_by_the_mean_lengths(alpha: float, expected: list[int]) -> None:
    plan = plan_of(general(mean_tokens=10.0), domain(mean_tokens=30.0), alpha=alpha, unit="tokens")
    assert plan.drawn_before(10).tolist() == expected


def test_equal_lengths_leave_counts_as_they_are() -> None:
    for alpha in (linear(), 0.3):
        by_tokens = plan_of(general(mean_tokens=7), domain(mean_tokens=7), alpha=alpha, unit="tokens", max_steps=50)
        by_examples = plan_of(general(), domain(), alpha=alpha, max_steps=50)
        assert (by_tokens.drawn_before(range(51)) == by_examples.drawn_before(range(51))).all()


def test_at_the_ends_of_alpha_a_mixture_by_tokens_reads_one_side() -> None:
    corpora = [general(mean_tokens=1.0), domain(mean_tokens=1000.0)]
    plan = plan_of(*corpora, alpha=steps([0.0, 1.0]), unit="tokens", batch_size=64, max_steps=1000)
    assert plan.drawn_before([500, 1000]).tolist() == [[32_000, 0], [32_000, 32_000]]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("lengths", [(10.0, 10.0, 10.0, 10.0), (5.0, 50.0, 500.0, 20.0), (1.0, 300.0, 7.5, 2.0)])
def test_shares_of_tokens_are_kept_at_every_step(alpha: float, lengths: tuple[float, ...]) -> None:
    shares = [0.25, 0.75, 0.6, 0.4]
    corpora = [
        CorpusSpec(name=f"c{i}", side=side, num_examples=1000, share=share, mean_tokens=length)  # type: ignore[arg-type]
        for i, (side, share, length) in enumerate(
            zip(["general", "general", "domain", "domain"], shares, lengths, strict=True)
        )
    ]
    plan = plan_of(*corpora, alpha=alpha, unit="tokens", batch_size=32, max_steps=400)
    drawn = plan.drawn_before(range(1, 401))
    tokens = drawn * np.array(lengths)
    found = tokens / tokens.sum(axis=1, keepdims=True)
    wanted = np.array([(1 - alpha) * 0.25, (1 - alpha) * 0.75, alpha * 0.6, alpha * 0.4])
    # each corpus is off by one example at the most, and the sum by one of each
    bound = (np.array(lengths) + wanted * sum(lengths)) / tokens.sum(axis=1, keepdims=True)
    assert (np.abs(found - wanted) <= bound + 1e-6).all()
    assert np.abs(found[-1] - wanted).max() < 0.02


def test_sides_are_counted_over_a_chain() -> None:
    web, law = CorpusSpec(name="web", side="general", num_examples=50), domain(30)
    moved = CorpusSpec(name="web", side="domain", num_examples=50)
    other = CorpusSpec(name="news", side="general", num_examples=50)
    old = MixturePlan([web, law], alpha_schedule=linear(), batch_size=4, max_steps=10)
    new = MixturePlan([moved, other], alpha_schedule=constant(0.25), batch_size=8, max_steps=10).after(old, 5)
    general_count, domain_count = old.drawn_before(5).tolist()
    assert [tuple(new.sides_before(step).values()) for step in (0, 5, 6, 10)] == [
        (0, 0),
        (general_count, domain_count),
        (general_count + 6, domain_count + 2),
        (general_count + 30, domain_count + 10),
    ]
    assert all(old.sides_before(step) == new.sides_before(step) for step in range(6))
