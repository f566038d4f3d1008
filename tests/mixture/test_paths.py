"""Paths through the mixtures of many corpora: shares, counts, what is read, what is refused."""

import json
import math
import tracemalloc
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.continuation import continue_plan, plan_changes
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.dataset import InterpolatedDataset
from hf_interp.mixture.epochs import Epochs, steps_of_epochs
from hf_interp.mixture.order import Order
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, constant, cosine, linear, steps

CURRICULUM = [
    {"at": 0, "web": 0.75, "code": 0.25},
    {"at": 0.5, "web": 0.25, "code": 0.5, "law": 0.25},
    {"at": 1, "law": 1.0},
]


def corpus(name: str, num_examples: int | None = 100, side: Any = "general", **kwargs: Any) -> CorpusSpec:
    return CorpusSpec(name=name, side=side, num_examples=num_examples, **kwargs)


def plan_of(
    path: Sequence[Mapping[str, Any]] | None = None,
    corpora: Sequence[CorpusSpec] = (),
    alpha: AlphaSchedule | None = None,
    **kwargs: Any,
) -> MixturePlan:
    """A plan of 5 steps of 4 examples along a curriculum of three corpora."""
    return MixturePlan(
        corpora or [corpus("web"), corpus("code"), corpus("law", 10, "domain")],
        alpha_schedule=alpha or linear(),
        mixture_path=path,
        **{"batch_size": 4, "max_steps": 5, **kwargs},
    )


def counted_by_hand(shares: list[list[Fraction]], batch_size: int) -> list[list[int]]:
    """The counts before every step: each node gives what is due to its left half when so much is due to the node."""
    sums = [[Fraction(0)] * len(shares[0])]
    for row in shares:
        sums.append([total + batch_size * share for total, share in zip(sums[-1], row, strict=True)])

    def half_up(value: Fraction) -> int:
        return math.floor(value + Fraction(1, 2))

    def deal(first: int, last: int, total: int) -> list[int]:
        if last - first == 1:
            return [total]
        middle = (first + last) // 2
        points = [(sum(row[first:last]), sum(row[first:middle])) for row in sums]
        left = points[-1][1]
        for (x, y), (next_x, next_y) in pairwise(points):
            if x <= total < next_x:
                left = y + (next_y - y) * (total - x) / (next_x - x)
        return [*deal(first, middle, half_up(left)), *deal(middle, last, total - half_up(left))]

    return [deal(0, len(shares[0]), step * batch_size) for step in range(len(sums))]


def test_counts_of_a_curriculum() -> None:
    plan = plan_of(CURRICULUM)
    assert [plan.shares(step) for step in range(5)] == [
        [0.75, 0.25, 0.0],
        [0.5, 0.375, 0.125],
        [0.25, 0.5, 0.25],
        [0.125, 0.25, 0.625],
        [0.0, 0.0, 1.0],
    ]
    drawn = plan.drawn_before(range(6)).tolist()
    due = [[0, 0, 0], [3, 1, 0], [5, 2.5, 0.5], [6, 4.5, 1.5], [6.5, 5.5, 4], [6.5, 5.5, 8]]
    assert drawn == [[0, 0, 0], [3, 1, 0], [5, 3, 0], [6, 5, 1], [7, 5, 4], [7, 6, 7]]  # code was behind
    assert np.abs(np.array(drawn) - due).max() <= 1
    held = plan.locate(range(20)).corpus.reshape(5, 4)
    assert [np.bincount(row, minlength=3).tolist() for row in held] == np.diff(drawn, axis=0).tolist()
    assert plan.sides_before(5) == {"general": 13, "domain": 7}


@pytest.mark.parametrize("num_corpora", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_counts_are_those_of_exact_fractions(num_corpora: int, batch_size: int) -> None:
    rng = np.random.default_rng(num_corpora * batch_size)
    rows = [
        [Fraction(int(part), 2**20) for part in rng.multinomial(2**20, rng.dirichlet([0.3] * num_corpora))]
        for _ in range(4)
    ]
    names = [f"c{index}" for index in range(num_corpora)]
    path = [
        {"at": place / 4, **{n: float(s) for n, s in zip(names, row, strict=True)}}
        for place, row in zip((0, 1, 2, 4), rows, strict=True)
    ]
    plan = plan_of(
        path, [corpus(name) for name in names], batch_size=batch_size, max_steps=33
    )  # α by 32nds: no rounding
    places = [Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1)]
    shares = []
    for step in range(33):
        alpha = Fraction(step, 32)
        index = max(index for index in range(3) if alpha >= places[index])
        way = (alpha - places[index]) / (places[index + 1] - places[index])
        shares.append([(1 - way) * a + way * b for a, b in zip(rows[index], rows[index + 1], strict=True)])
    assert plan.drawn_before(range(34)).tolist() == counted_by_hand(shares, batch_size)


def random_path(rng: np.random.Generator, names: list[str]) -> list[dict[str, float]]:
    """A path of sudden and of slow moves, whose shares span nine powers of ten and are often 0."""
    path = []
    for place in np.unique(
        np.append(rng.choice(np.array([0.1, 0.499, 0.5, 0.501, 0.9]), rng.integers(1, 5)), [0.0, 1.0])
    ):
        weights = 10 ** rng.uniform(-9, 0, len(names)) * (rng.random(len(names)) < 0.6)
        weights[rng.integers(len(names))] += 10 ** rng.uniform(-9, 0)
        path.append({"at": float(place), **dict(zip(names, (weights / weights.sum()).tolist(), strict=True))})
    return path


def check_bound(seed: int, max_steps: int) -> float:
    """How far the counts of a random path are off at the most, of the bound."""
    rng = np.random.default_rng(seed)
    names = [f"c{index}" for index in range(int(rng.integers(2, 40)))]
    path, batch_size = random_path(rng, names), int(rng.choice([1, 2, 5, 32, 1000]))
    schedule = [linear(), cosine(1.0, 0.2), steps([0.0, 0.5, 0.2, 1.0])][seed % 3]
    plan = plan_of(path, [corpus(name) for name in names], schedule, batch_size=batch_size, max_steps=max_steps)
    drawn = plan.drawn_before(range(max_steps + 1))
    alpha = [plan.alpha(step) for step in range(max_steps)]
    shares = np.stack(
        [np.interp(alpha, [point["at"] for point in path], [point[n] for point in path]) for n in names], axis=1
    )
    due = np.concatenate([np.zeros((1, len(names))), batch_size * np.cumsum(shares, axis=0)])
    assert (np.diff(drawn, axis=0) >= 0).all()
    assert (np.diff(drawn, axis=0).sum(axis=1) == batch_size).all()
    bound = math.ceil(math.log2(len(names))) / 2
    error = float(np.abs(drawn - due).max())
    assert error <= bound + 1e-4
    return error / bound


@pytest.mark.parametrize("seed", range(6))
def test_every_corpus_keeps_to_its_target_on_any_path(seed: int) -> None:
    assert check_bound(seed, 200) > 0.2


@pytest.mark.slow
def test_every_corpus_keeps_to_its_target_on_many_paths() -> None:
    assert max(check_bound(seed, 400) for seed in range(150)) <= 1 + 1e-4


def test_shares_on_both_sides_are_the_path_of_two_mixtures() -> None:
    both = [
        corpus("web", share={"general": 0.7, "domain": 0.2}),
        corpus("code", share={"general": 0.3}),
        corpus("law", 30, "domain", share=0.8),
    ]
    plain = [corpus("web"), corpus("code"), corpus("law", 30, "domain")]
    path = [{"at": 0, "web": 0.7, "code": 0.3}, {"at": 1, "web": 0.2, "law": 0.8}]
    one, other = plan_of(None, both, max_steps=50), plan_of(path, plain, max_steps=50)
    assert one.fingerprint() == other.fingerprint()
    assert one.read_hash(0, 50) == other.read_hash(0, 50)
    assert plan_of(None, both, constant(1.0), batch_size=10).drawn_before(5).tolist() == [10, 0, 40]
    # without numbers the general side is read in proportion to its lengths
    half = [corpus("web", 300), corpus("code"), corpus("law", 30, share={"domain": 1.0})]
    assert plan_of(None, half, constant(0.5)).shares(0) == [0.375, 0.125, 0.5]


def test_a_path_of_two_corpora_counts_as_two_sides_do() -> None:
    corpora = [corpus("web"), corpus("law", 30, "domain")]
    path = [{"at": 0, "web": 1.0}, {"at": 1, "law": 1.0}]
    along = plan_of(path, corpora, cosine(0.1, 0.9), max_steps=400, batch_size=7)
    between = plan_of(None, corpora, cosine(0.1, 0.9), max_steps=400, batch_size=7)
    assert (along.drawn_before(range(401)) == between.drawn_before(range(401))).all()
    assert along.sides_before(400) == between.sides_before(400)
    assert along.fingerprint() != between.fingerprint()
    assert "path" not in between.identity()  # as ever


def test_alpha_that_jumps_makes_a_stepped_path() -> None:
    plan = plan_of(CURRICULUM, alpha=steps([0.0, 0.5, 1.0]), max_steps=6)
    assert np.diff(plan.drawn_before(range(7)), axis=0).tolist() == [[3, 1, 0]] * 2 + [[1, 2, 1]] * 2 + [[0, 0, 4]] * 2
    held = plan_of([{"at": 0.25, "web": 1.0}, {"at": 0.75, "code": 0.5, "law": 0.5}])
    assert [held.shares(step) for step in range(5)] == [
        [1, 0, 0],
        [1, 0, 0],
        [0.5, 0.25, 0.25],
        [0, 0.5, 0.5],
        [0, 0.5, 0.5],
    ]
    assert plan_of([{"at": 0.5, "web": 0.25, "code": 0.25, "law": 0.5}]).drawn_before(5).tolist() == [5, 5, 10]


def test_shares_of_tokens_along_a_path() -> None:
    corpora = [corpus("web", mean_tokens=10.0), corpus("code", mean_tokens=20.0), corpus("law", mean_tokens=40.0)]
    plan = plan_of(CURRICULUM, corpora, unit="tokens", batch_size=700, max_steps=101)
    tokens = np.diff(plan.drawn_before([50, 51]), axis=0)[0] * [10.0, 20.0, 40.0]
    assert tokens / tokens.sum() == pytest.approx([0.25, 0.5, 0.25], abs=0.005)


def test_a_long_path_takes_little_memory_and_keeps_its_bound() -> None:
    tracemalloc.start()
    try:
        plan = plan_of(CURRICULUM, batch_size=256, max_steps=10**9)
        total = plan.drawn_before(10**9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20
    assert total / (256 * 10**9) == pytest.approx([0.3125, 0.3125, 0.375], abs=1e-5)  # areas under lines
    step = 123_456_789
    before, after = plan.drawn_before([step, step + 1000])
    due = np.array(plan.shares(step)) * 256_000
    assert plan.alpha(step) == plan.alpha(step + 100)
    assert np.abs(after - before - due).max() < 10  # which α moves by in 1,000 steps
    held = plan.locate(range(256 * step, 256 * (step + 2))).corpus
    assert np.bincount(held, minlength=3).tolist() == (plan.drawn_before(step + 2) - before).tolist()


def test_a_path_goes_on_exactly_and_changes_in_the_middle() -> None:
    plan = plan_of(CURRICULUM, max_steps=40, batch_size=6)
    saved = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    same = continue_plan(plan_of(CURRICULUM, max_steps=40, batch_size=6), saved, 17)
    assert same.changes == []
    assert same.plan.fingerprint() == plan.fingerprint()
    assert same.plan.read_hash(0, 40) == plan.read_hash(0, 40)
    turned = [{"at": 0, "law": 1.0}, {"at": 1, "web": 0.5, "code": 0.5}]
    other = plan_of(turned, max_steps=40, batch_size=6)
    changed = continue_plan(other, saved, 17)
    assert changed.changes == ["the path of mixtures"]
    assert changed.plan.read_hash(0, 17) == plan.read_hash(0, 17)
    drawn = changed.plan.drawn_before([17, 40])
    assert drawn[0].tolist() == plan.drawn_before(17).tolist()
    alpha = np.arange(17, 40) / 39
    due = np.stack([alpha / 2, alpha / 2, 1 - alpha], axis=1).sum(axis=0) * 6
    assert np.abs(drawn[1] - drawn[0] - due).max() <= 1 + 1e-4
    two_sided = plan_of(None, max_steps=40, batch_size=6)
    assert plan_changes(plan, two_sided) == ["the path of mixtures"]
    assert continue_plan(two_sided, saved, 17).plan.read_hash(0, 17) == plan.read_hash(0, 17)


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (1, 4), (3, 2)])
def test_any_split_reads_the_same_examples(split: tuple[int, int]) -> None:
    processes, accumulation = split
    parts = [
        InterpolatedDataset(
            [
                Corpus("web", range(100), "general"),
                Corpus("code", range(100, 200), "general"),
                Corpus("law", range(200, 230)),
            ],
            batch_size=12,
            max_steps=9,
            mixture_path=CURRICULUM,
            gradient_accumulation_steps=accumulation,
            num_processes=processes,
            process_index=process,
        )
        for process in range(processes)
    ]
    size = 12 // (processes * accumulation)
    reads = [list(part) for part in parts]
    found = [
        example
        for batch in range(9 * accumulation)
        for read in reads
        for example in read[batch * size : (batch + 1) * size]
    ]
    whole = plan_of(
        CURRICULUM, [corpus("web"), corpus("code"), corpus("law", 30, "domain")], batch_size=12, max_steps=9
    ).locate(range(108))
    assert found == (whole.example + 100 * whole.corpus).tolist()


def test_epochs_count_passes_of_the_corpora_of_a_side() -> None:
    corpora = [corpus("web"), corpus("code"), corpus("law", 10, "domain", max_passes=9)]
    settings: Any = {"batch_size": 4, "mixture_path": CURRICULUM}
    found = steps_of_epochs(3, corpora, lambda _: linear(), **settings)
    drawn = [
        plan_of(CURRICULUM, corpora, max_steps=length).sides_before(length)["domain"] for length in (found - 1, found)
    ]
    assert drawn[0] < 30 <= drawn[1]
    assert Epochs(plan_of(CURRICULUM, corpora, max_steps=found)).passed(found)[0] >= 3
    with pytest.raises(ValueError, match=r"'law' would be read \d.* times, but its `max_passes` is 2"):
        plan_of(CURRICULUM, [*corpora[:2], corpus("law", 10, "domain", max_passes=2)], max_steps=20)


def test_the_summary_tells_the_mixture_at_the_landmarks() -> None:
    plan = plan_of(CURRICULUM, batch_size=64)
    found = plan.summary()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["shares"] == [plan.shares(mark["step"]) for mark in found["alpha"]]
    assert found["corpora"][2]["share"] == 1.0
    assert sum(each["share"] for each in found["corpora"][:2]) == 1.0
    assert MixturePlan.from_dict(json.loads(json.dumps(plan.to_dict()))).summary() == found
    rare = plan_of([{"at": 0, "web": 0.9, "code": 0.1}, {"at": 1, "web": 1.0, "law": 0.0}], max_steps=10)
    assert [warning[:71] for warning in rare.warnings()] == [
        "A global batch of 4 holds 0.4 examples of corpus 'code' at the most, so",
        "Corpus 'law' is never drawn. Raise its share, or move α, or leave it ou",
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([], "`mixture_path` must be a list of points"),
        ({"at": 0, "web": 1.0}, "`mixture_path` must be a list of points"),
        ([{"web": 1.0}], "must have a position `at` and shares"),
        ([{"at": 0, "web": "all"}], "must have a position `at` and shares"),
        ([{"at": 2, "web": 1.0}], r"all in \[0, 1\]"),
        ([{"at": 0, "web": 1.5, "code": -0.5}], r"all in \[0, 1\]"),
        ([{"at": 0, "web": math.nan}], r"all in \[0, 1\]"),
        ([{"at": 0, "web": 0.5, "code": 0.4}], "must sum to 1, not 0.9"),
        ([{"at": 0.5, "web": 1.0}, {"at": 0.5, "code": 1.0}], r"must rise, got \[0.5, 0.5\]"),
        ([{"at": 0.5, "web": 1.0}, {"at": 0.1, "code": 1.0}], r"must rise, got \[0.5, 0.1\]"),
        ([{"at": 0, "web": 0.5, "cod": 0.5}], "Unknown field 'cod' in the point .* at 0. Did you mean 'code'"),
        ([{"at": 0, "web": 0.5, "code": 0.5}], r"Every corpus must be in a point .* \['law'\] are in none"),
    ],
)
def test_points_that_do_not_fit_are_refused(path: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(path)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([{"general": 0.7, "domain": 0.2}, 0.3, 0.7], r"shares of the domain corpora .* sum to 1, got .*'law': 0.7"),
        (
            [{"general": 0.7, "dmain": 0.2}, 0.3, 1.0],
            "Unknown field 'dmain' in the `share` of corpus 'web'. Did you mean",
        ),
        ([{"general": 0.7}, None, 1.0], r"Give a share to every general corpus or to none: \['code'\] have none"),
        ([{"general": "0.7"}, 0.3, 1.0], "must be a number for each side, got {'general': '0.7'}"),
        ([{}, 1.0, 1.0], "must be a number for each side, got {}"),
        ([{"general": 1.0}, {"general": 0.0}, {"general": 0.0}], "No corpus has a share on the domain side"),
    ],
)
def test_shares_on_both_sides_that_do_not_fit_are_refused(shares: list[Any], message: str) -> None:
    names = [("web", "general"), ("code", "general"), ("law", "domain")]
    corpora = [corpus(name, side=side, share=share) for (name, side), share in zip(names, shares, strict=True)]
    with pytest.raises(ValueError, match=message):
        plan_of(None, corpora)


def test_corpora_are_drawn_at_random_along_a_path() -> None:
    plan = plan_of(CURRICULUM, max_steps=500, batch_size=32, order=Order("random"))
    drawn = plan.drawn_before([0, 250, 500])
    alpha = np.arange(500) / 499
    shares = [np.interp(alpha, [0, 0.5, 1], points) for points in ([0.75, 0.25, 0], [0.25, 0.5, 0], [0, 0.25, 1])]
    due = 32 * np.array(shares).T.reshape(2, 250, 3).sum(axis=1)
    assert (np.abs(np.diff(drawn, axis=0) - due) < 5 * np.sqrt(due + 1)).all()
    assert np.bincount(plan.locate(range(16_000)).corpus).tolist() == drawn[-1].tolist()
    assert MixturePlan.from_dict(json.loads(json.dumps(plan.to_dict()))).read_hash(0, 500) == plan.read_hash(0, 500)


def test_what_contradicts_a_path_is_refused() -> None:
    order = Order("random", stopping_strategy="all_exhausted")
    both = [corpus("web", share={"general": 1.0, "domain": 0.5}), corpus("law", side="domain", share=0.5)]
    for path, corpora in ((CURRICULUM, []), (None, both)):
        with pytest.raises(ValueError, match="A path of mixtures needs `max_steps`, and no `stopping_strategy`"):
            plan_of(path, corpora, constant(0.5), max_steps=None, order=order)
    with pytest.raises(ValueError, match=r"no corpus may have a `share` of its own, got \['web'\]"):
        plan_of(CURRICULUM, [corpus("web", share=1.0), corpus("code"), corpus("law")])
    with pytest.raises(ValueError, match="A controller cannot move α along a path of mixtures"):
        plan_of(CURRICULUM, num_committed=2)
    with pytest.raises(ValueError, match="`at` is the position, so no corpus may be called so"):
        plan_of([{"at": 1.0, "web": 1.0}], [corpus("at"), corpus("web")])
