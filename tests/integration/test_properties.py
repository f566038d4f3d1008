"""What must hold for every run: random corpora, schedules, splits, resumptions and changes of settings."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_interp.mixture.apportionment import CorpusSpec, Side, Unit
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.permutations import IntArray
from hf_interp.mixture.plan import MixturePlan, hash_of_reads
from hf_interp.mixture.schedules import AlphaSchedule, piecewise, progress_of, steps
from hf_interp.mixture.slots import BatchShard, SlotRequest, SlotSampler

SIDES: tuple[Side, Side] = ("general", "domain")
ALPHAS = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 1e-9, 1 - 1e-9, 1 / 3]), st.integers(0, 1000).map(lambda number: number / 1000)
)
LENGTHS = st.one_of(st.integers(1, 40), st.integers(1, 10**6), st.none())  # none is a stream
WEIGHTS = st.sampled_from([0, 0, 1, 1, 2, 3, 10, 1000, 10**7])


@dataclass(frozen=True)
class Stage:
    """Settings that are in force from one step to another, and how the steps between are read."""

    begin: int
    end: int
    corpora: tuple[CorpusSpec, ...]
    kind: str
    points: tuple[tuple[float, float], ...]
    max_steps: int
    seed: int
    unit: Unit
    num_committed: int | None
    decided: float
    num_processes: int
    accumulation: int
    micro_batch: int
    num_workers: int
    path: tuple[dict[str, float], ...] | None = None

    @property
    def batch_size(self) -> int:
        return self.num_processes * self.accumulation * self.micro_batch

    def schedule(self) -> AlphaSchedule:
        if self.kind == "piecewise":
            return piecewise(self.points)
        return steps([alpha for _, alpha in self.points])

    def fresh_plan(self) -> MixturePlan:
        return MixturePlan(
            self.corpora,
            alpha_schedule=self.schedule(),
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            seed=self.seed,
            unit=self.unit,
            mixture_path=self.path,
            num_committed=self.num_committed,
        )

    def requests(self, plan: MixturePlan, process: int, first: int | None = None) -> list[SlotRequest]:
        """What a process reads from step `first` on."""
        first = self.begin if first is None else first
        split = BatchShard(self.micro_batch, self.num_processes, process, self.num_workers)
        sampler = SlotSampler(plan, split, first * self.accumulation)
        return list(islice(sampler, (self.end - first) * self.accumulation))


Run = list[Stage]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run of up to 80 steps of 1 to 48 examples of 1 to 12 corpora, whose settings change up to three times."""
    seed = draw(st.integers(0, 2**40))
    pool = {f"c{index}": draw(LENGTHS) for index in range(draw(st.integers(1, 12)))}
    mean_tokens = {name: draw(st.sampled_from([1.0, 3.5, 40.0, 512.0])) for name in pool}
    stages: Run = []
    begin = 0
    for left in range(draw(st.integers(0, 3)), -1, -1):
        corpora = draw(mixtures(pool, mean_tokens))
        sides = {corpus.side for corpus in corpora}
        alphas = ALPHAS if len(sides) == 2 else st.just(0.0 if sides == {"general"} else 1.0)
        places = draw(st.lists(st.integers(0, 100), min_size=1, max_size=5, unique=True))
        path = draw(paths([corpus.name for corpus in corpora])) if draw(st.integers(0, 2)) == 0 else None
        if path is not None:
            corpora = [replace(corpus, share=None) for corpus in corpora]
            alphas = ALPHAS
        max_steps = draw(st.integers(begin + 1, begin + 20))
        end = draw(st.integers(begin, max_steps)) if left else max_steps
        stages.append(
            Stage(
                begin=begin,
                end=end,
                corpora=tuple(corpora),
                kind=draw(st.sampled_from(["piecewise", "steps"])),
                points=tuple((place / 100, draw(alphas)) for place in sorted(places)),
                max_steps=max_steps,
                seed=seed,
                unit=draw(st.sampled_from(["examples", "tokens"])),
                num_committed=draw(st.none() | st.integers(0, 9)) if len(sides) == 2 and path is None else None,
                decided=draw(alphas),
                num_processes=draw(st.integers(1, 4)),
                accumulation=draw(st.integers(1, 3)),
                micro_batch=draw(st.integers(1, 4)),
                num_workers=draw(st.integers(0, 3)),
                path=path,
            )
        )
        begin = end
    return stages


@st.composite
def mixtures(draw: st.DrawFn, pool: dict[str, int | None], mean_tokens: dict[str, float]) -> list[CorpusSpec]:
    """Some corpora of a pool, on any sides, with shares or without."""
    chosen: dict[str, Side] = {}
    for name in pool:
        side = draw(st.sampled_from([None, "general", "domain"]))
        if side is not None:
            chosen[name] = side
    if not chosen:
        chosen = {"c0": "general"}
    corpora = []
    for side in SIDES:
        names = [name for name, its_side in chosen.items() if its_side == side]
        weights = [draw(WEIGHTS) for _ in names]
        if not sum(weights) and any(pool[name] is None for name in names):
            weights = [1] * len(names)  # streams need shares
        total = sum(weights)
        for name, weight in zip(names, weights, strict=True):
            share = weight / total if total else None
            corpora.append(
                CorpusSpec(name=name, side=side, num_examples=pool[name], share=share, mean_tokens=mean_tokens[name])
            )
    return draw(st.permutations(corpora))


@st.composite
def paths(draw: st.DrawFn, names: list[str]) -> tuple[dict[str, float], ...]:
    """A path of up to five mixtures, whose shares may jump, vanish and come back."""
    points = []
    for place in sorted(draw(st.sets(st.integers(0, 100), min_size=1, max_size=5))):
        weights = [draw(WEIGHTS) for _ in names]
        weights = weights if sum(weights) else [1] * len(names)
        points.append({"at": place / 100, **{n: w / sum(weights) for n, w in zip(names, weights, strict=True)}})
    return tuple(points)


def plans_of(run: Run) -> list[MixturePlan]:
    """The plan of every stage, each gone on from the one before as it is in a checkpoint."""
    plans: list[MixturePlan] = []
    for stage in run:
        plan = stage.fresh_plan()
        if plans:
            plan = continue_plan(plan, as_json(plans[-1].to_dict()), stage.begin).plan
        while plan.num_committed < stage.end:
            plan.commit([stage.decided] * min(3, plan.max_steps - plan.num_committed))
        plans.append(plan)
    return plans


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def targets(plan: MixturePlan, stage: Stage) -> npt.NDArray[np.float64]:
    """The slots that are due to every corpus in the steps from the plan's first on, unrounded."""
    lengths = np.array([(corpus.mean_tokens or 1.0) if plan.unit == "tokens" else 1.0 for corpus in stage.corpora])
    alpha = np.array([plan.alpha(step) for step in range(plan.start_step, plan.num_committed)])
    if stage.path is not None:
        places = [point["at"] for point in stage.path]
        per_length = np.stack(
            [
                np.interp(alpha, places, [point[corpus.name] for point in stage.path]) / length
                for corpus, length in zip(stage.corpora, lengths, strict=True)
            ],
            axis=1,
        )
        due = plan.batch_size * np.cumsum(per_length / per_length.sum(axis=1, keepdims=True), axis=0)
        return np.concatenate([np.zeros((1, len(plan.corpora))), due])
    weights = np.array(
        [
            (corpus.num_examples or 1) if corpus.share is None else corpus.share / length
            for corpus, length in zip(stage.corpora, lengths, strict=True)
        ]
    )
    shares, side_length = np.zeros(len(lengths)), {}
    for side in SIDES:
        here = np.array([corpus.side == side for corpus in stage.corpora])
        shares[here] = weights[here] / max(weights[here].sum(), 1e-300)
        side_length[side] = float((shares * lengths)[here].sum()) or 1.0
    domain = alpha / side_length["domain"] / (alpha / side_length["domain"] + (1 - alpha) / side_length["general"])
    of_side = {"domain": domain, "general": 1 - domain}
    a_step = np.stack(
        [of_side[corpus.side] * share for corpus, share in zip(plan.corpora, shares, strict=True)], axis=1
    )
    return np.concatenate([np.zeros((1, len(plan.corpora))), plan.batch_size * np.cumsum(a_step, axis=0)])


def check_counts(run: Run, plans: list[MixturePlan]) -> None:
    for stage, plan in zip(run, plans, strict=True):
        if plan.num_committed == plan.max_steps and not plan.is_adaptive:
            expected = [stage.schedule()(progress_of(step, plan.max_steps)) for step in range(stage.begin, stage.end)]
            assert [plan.alpha(step) for step in range(stage.begin, stage.end)] == pytest.approx(expected, abs=2**-30)
        drawn = plan.drawn_before(range(plan.start_step, plan.num_committed + 1))
        drawn = drawn - drawn[0]
        assert (np.diff(drawn, axis=0) >= 0).all()
        assert (np.diff(drawn, axis=0).sum(axis=1) == plan.batch_size).all()
        sides = [corpus.side for corpus in plan.corpora]
        bounds = np.array([{1: 0.5, 2: 1.0}.get(sides.count(side), 2.0) for side in sides])
        if stage.path is not None:
            bounds = np.full(len(sides), math.ceil(math.log2(len(sides))) / 2)
        rounding = 1e-4  # α and shares are multiples of 2⁻³⁰
        assert (np.abs(drawn - targets(plan, stage)) <= bounds + rounding).all()
        held = plan.locate(range(stage.begin * plan.batch_size, stage.end * plan.batch_size)).corpus
        held = held.reshape(stage.end - stage.begin, plan.batch_size)
        for step, row in enumerate(held, stage.begin - plan.start_step):
            found = np.bincount(row, minlength=len(plan.corpora))
            assert (found == drawn[step + 1] - drawn[step]).all()


def check_passes(run: Run, plans: list[MixturePlan]) -> None:
    ordinals: dict[str, list[IntArray]] = {}
    examples: dict[str, list[IntArray]] = {}
    lengths: dict[str, int | None] = {}
    for stage, plan in zip(run, plans, strict=True):
        draw = plan.locate(range(stage.begin * plan.batch_size, stage.end * plan.batch_size))
        for index, corpus in enumerate(plan.corpora):
            here = draw.corpus == index
            order = np.argsort(draw.ordinal[here])
            ordinals.setdefault(corpus.name, []).append(draw.ordinal[here][order])
            examples.setdefault(corpus.name, []).append(draw.example[here][order])
            lengths[corpus.name] = corpus.num_examples
    consumed = plans[-1].consumed(run[-1].end)
    assert {name: sum(map(len, parts)) for name, parts in examples.items()} == consumed
    for name, length in lengths.items():
        found = np.concatenate(examples[name])
        assert np.concatenate(ordinals[name]).tolist() == list(range(len(found)))
        if length is None:
            assert found.tolist() == list(range(len(found)))
            continue
        for first in range(0, len(found), length):
            one_pass = found[first : first + length]
            assert len(np.unique(one_pass)) == len(one_pass)
            assert one_pass.min() >= 0
            assert one_pass.max() < length


def check_splits(run: Run, plans: list[MixturePlan]) -> None:
    for stage, plan in zip(run, plans, strict=True):
        first, last = stage.begin * plan.batch_size, stage.end * plan.batch_size
        draw = plan.locate(range(first, last))
        of_processes = [stage.requests(plan, process) for process in range(stage.num_processes)]
        in_order = [request for turn in zip(*of_processes, strict=True) for request in turn]
        slots = [np.arange(request.first_slot, request.first_slot + len(request.corpus)) for request in in_order]
        assert np.concatenate([np.empty(0, np.int64), *slots]).tolist() == list(range(first, last))
        for source, parts in (
            (draw.corpus, [request.corpus for request in in_order]),
            (draw.example, [request.example for request in in_order]),
        ):
            assert np.concatenate([np.empty(0, np.int64), *parts]).tolist() == source.tolist()
        readers_of_processes = []
        for process, requests in enumerate(of_processes):
            split = BatchShard(stage.micro_batch, stage.num_processes, process, stage.num_workers)
            workers = max(stage.num_workers, 1)
            readers = [split.reader_of(request.first_slot) for request in requests]
            # a loader gives micro-batches to its workers in turns: each is one reader for the whole run
            assert all(len(set(readers[worker::workers])) <= 1 for worker in range(workers))
            assert len(set(readers)) == min(workers, len(requests))
            readers_of_processes.append(set(readers))
        union = set().union(*readers_of_processes)
        assert len(union) == sum(map(len, readers_of_processes))
        assert union <= set(range(stage.num_processes * max(stage.num_workers, 1)))


def check_resuming(run: Run, plans: list[MixturePlan]) -> None:
    for stage, plan in zip(run, plans, strict=True):
        saved = as_json(plan.to_dict())
        whole = [stage.requests(plan, process) for process in range(stage.num_processes)]
        for step in sorted({stage.begin, (stage.begin + stage.end) // 2, stage.end}):
            resumed, changes = continue_plan(plan, saved, step)
            assert changes == []
            for process, requests in enumerate(whole):
                rest = requests[(step - stage.begin) * stage.accumulation :]
                again = stage.requests(resumed, process, step)
                assert [request.first_slot for request in again] == [request.first_slot for request in rest]
                for one, other in zip(again, rest, strict=True):
                    assert (one.corpus == other.corpus).all()
                    assert (one.example == other.example).all()


def check_round_trip(run: Run, plans: list[MixturePlan]) -> None:
    for stage, plan in zip(run, plans, strict=True):
        state = as_json(plan.to_dict())
        again = MixturePlan.from_dict(state)
        assert as_json(again.to_dict()) == state
        assert again.fingerprint() == plan.fingerprint()
        assert again.identity() == plan.identity()
        assert again.summary() == plan.summary()
        every = range(plan.max_steps + 1)
        assert (again.drawn_before(every) == plan.drawn_before(every)).all()
        assert [again.alpha(step) for step in every] == [plan.alpha(step) for step in every]
        assert [again.scheduled_alpha(step) for step in every] == [plan.scheduled_alpha(step) for step in every]
        slots = range(stage.begin * plan.batch_size, stage.end * plan.batch_size)
        assert (np.stack(again.locate(slots)) == np.stack(plan.locate(slots))).all()
        if again.num_committed < again.max_steps:  # both go on alike
            for each in (again, plan):
                each.commit([stage.decided] * (each.max_steps - each.num_committed))
            assert again.read_hash(0, again.max_steps) == plan.read_hash(0, plan.max_steps)


def check_hashes(run: Run, plans: list[MixturePlan]) -> None:
    last = run[-1].end
    whole = plans[-1].read_hash(0, last)
    borders = [0, last // 3, last // 2, last]
    assert sum(plans[-1].read_hash(begin, end) for begin, end in pairwise(borders)) % 2**64 == whole
    total = 0
    for stage, plan in zip(run, plans, strict=True):
        of_requests = sum(
            hash_of_reads(
                np.arange(request.first_slot, request.first_slot + len(request.corpus)),
                plan.name_keys[request.corpus],
                request.example,
            )
            for process in range(stage.num_processes)
            for request in stage.requests(plan, process)
        )
        assert of_requests % 2**64 == plan.read_hash(stage.begin, stage.end)
        total += of_requests
    assert total % 2**64 == whole


def in_runs(max_examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test so many runs, always the same ones."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    rules = settings(
        max_examples=max_examples, deadline=None, derandomize=True, database=None, suppress_health_check=health
    )
    return lambda test: rules(given(run=runs())(test))


CHECKS = [check_counts, check_passes, check_splits, check_resuming, check_hashes, check_round_trip]


@pytest.mark.parametrize("check", CHECKS)
@in_runs(10)
def test_each_of_this_holds_in_a_few_runs(check: Callable[[Run, list[MixturePlan]], None], run: Run) -> None:
    check(run, plans_of(run))


@pytest.mark.slow
@in_runs(2000)
def test_all_of_this_holds_in_many_runs(run: Run) -> None:
    plans = plans_of(run)
    for check in CHECKS:
        check(run, plans)
