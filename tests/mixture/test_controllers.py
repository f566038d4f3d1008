"""Controllers: what they decide on given metrics, and how that becomes part of a plan."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.controllers import CONTROLLERS, AdaptiveAlpha, Guard, get_controller
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import linear


def hundredths(step: int) -> float:
    return min(max(step, 0), 100) / 100


# Guard.


def run_guard(guard: Guard, values: list[Any], steps: int = 2, first: int = 0) -> list[tuple[list[float], str]]:
    """What a guard decides on one value after another: α in hundredths, and the first word of why."""
    found = []
    for turn, value in enumerate(values):
        begin = first + turn * steps
        metrics = {} if value is None else {"general_loss": value}
        alphas, reason = guard.decide(range(begin, begin + steps), metrics, hundredths)
        found.append(([round(100 * alpha) for alpha in alphas], reason.partition(":")[0]))  # type: ignore[union-attr]
    return found


def test_the_guard_goes_on_holds_and_goes_back() -> None:
    guard = Guard(tolerance=0.1)
    assert run_guard(guard, [1.0, 1.05, 1.15, 1.15, 1.3, 1.0, 0.5, 1.3], first=10) == [
        ([10, 11], "on"),
        ([12, 13], "on"),
        ([13, 13], "held"),
        ([13, 13], "held"),
        ([12, 11], "back"),
        ([12, 13], "on"),
        ([14, 15], "on"),
        ([14, 13], "back"),
    ]
    assert guard.delay == 25 - 13
    assert guard.baseline == 1.0


@pytest.mark.parametrize(
    ("value", "word"), [(2.0, "on"), (2.25, "on"), (2.2501, "held"), (2.5, "held"), (2.5001, "back"), (0.0, "on")]
)
def test_the_guard_keeps_to_its_tolerance(value: float, word: str) -> None:
    guard = Guard(tolerance=0.125)
    assert [step[1] for step in run_guard(guard, [2.0, value])] == ["on", word]


def test_the_guard_never_goes_back_beyond_the_beginning() -> None:
    guard = Guard(tolerance=0.1, baseline=1.0)
    assert run_guard(guard, [1.0, 9.0, 9.0, 9.0, 1.0], steps=3) == [
        ([0, 1, 2], "on"),
        ([1, 0, 0], "back"),
        ([0, 0, 0], "back"),
        ([0, 0, 0], "back"),
        ([1, 2, 3], "on"),
    ]


def test_the_guard_does_not_stop_for_what_it_does_not_know() -> None:
    guard = Guard(tolerance=0.1)
    assert run_guard(guard, [None, 1.0, None, 1.15, None]) == [
        ([0, 1], "on"),
        ([2, 3], "on"),
        ([4, 5], "on"),
        ([5, 5], "held"),
        ([6, 7], "on"),
    ]
    assert guard.baseline == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_guard_goes_back_when_the_metric_is_no_number(value: float) -> None:
    guard = Guard(tolerance=0.1)
    assert run_guard(guard, [value, 1.0, value], first=10) == [([8, 7], "back"), ([8, 9], "on"), ([8, 7], "back")]
    assert guard.baseline == 1.0


def test_the_guard_says_why() -> None:
    guard = Guard("eval_web_loss", tolerance=0.1)

    def reason(**metrics: float) -> str:
        return guard.decide(range(4, 5), metrics, hundredths).reason

    assert reason(general_loss=1.0) == "on: eval_web_loss is not known"
    assert reason(eval_web_loss=2.0) == "on: eval_web_loss 2 is 0.0% below its start of 2"
    assert reason(eval_web_loss=1.0) == "on: eval_web_loss 1 is 50.0% below its start of 2"
    assert reason(eval_web_loss=2.3) == "held: eval_web_loss 2.3 is 15.0% above its start of 2"
    assert reason(eval_web_loss=3.0) == "back: eval_web_loss 3 is 50.0% above its start of 2"
    assert reason(eval_web_loss=math.nan) == "back: it is nan"


def test_a_baseline_may_be_given() -> None:
    guard = Guard(tolerance=0.1, baseline=2.0)
    assert [word for _, word in run_guard(guard, [2.3, 2.1, 4.0])] == ["held", "on", "back"]
    assert guard.baseline == 2.0


def test_a_metric_that_begins_at_nothing_is_no_error() -> None:
    guard = Guard(tolerance=0.1)
    assert [word for _, word in run_guard(guard, [0.0, 0.5, 0.5])] == ["on", "on", "on"]


def test_a_guard_comes_back_as_it_was() -> None:
    values = [None, 1.0, 1.15, 1.5, 1.0, math.nan, 1.15, 0.9, 1.0]
    whole = run_guard(Guard(tolerance=0.1), values, first=20)
    for point in range(len(values) + 1):
        first = Guard(tolerance=0.1)
        run_guard(first, values[:point], first=20)
        second = Guard(tolerance=0.1)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.state_dict() == first.state_dict()
        assert run_guard(second, values[point:], first=20 + 2 * point) == whole[point:]


@pytest.mark.parametrize("name", ["tolerance", "baseline"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_a_guard_refuses_what_is_not_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` of the guard must be positive, got {value}"):
        Guard(**{name: value})
    Guard(**{name: 1e-9})


# By name.


def test_controllers_by_name() -> None:
    assert set(CONTROLLERS) == {"guard"}
    guard = get_controller("guard", metric="eval_web_loss", tolerance=0.1)
    assert isinstance(guard, Guard)
    assert (guard.metric, guard.tolerance, guard.baseline) == ("eval_web_loss", 0.1, None)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("gaurd", {}, r"Unknown controller 'gaurd'; there are \['guard'\]\. Did you mean 'guard'\?"),
        ("guard", {"toleranse": 1}, r"Unknown field 'toleranse' for the controller 'guard'\. Did you mean 'tolerance'"),
        ("guard", {"tolerance": 0}, "`tolerance` of the guard must be positive"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_controller(name, **kwargs)


# At work.


class Answers:
    """Gives the answers it was made with, and notes what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[range, dict[str, float], list[float]]] = []

    def decide(self, steps: range, metrics: Mapping[str, float], schedule: Callable[[int], float]) -> Any:
        self.asked.append((steps, dict(metrics), [schedule(step) for step in steps]))
        return self.answers.pop(0), "because"

    def state_dict(self) -> dict[str, Any]:
        return {"left": list(self.answers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.answers = list(state["left"])


def at_work(*answers: Any, max_steps: int = 11, committed: int = 4, general: bool = True) -> AdaptiveAlpha:
    corpora = [CorpusSpec(name="law", side="domain", num_examples=10)]
    if general:
        corpora.append(CorpusSpec(name="web", side="general", num_examples=20))
    schedule = linear() if general else linear(1, 1)
    plan = MixturePlan(corpora, alpha_schedule=schedule, batch_size=4, max_steps=max_steps, num_committed=committed)
    return AdaptiveAlpha(plan, Answers(*answers), update_steps=3, lag=2)


def test_a_decision_is_due_when_the_lag_reaches_what_is_fixed() -> None:
    work = at_work(0.5, 0.5, 0.5)
    due = []
    for step in range(12):
        if work.is_due(step):
            due.append((step, work.plan.num_committed))
            work.decide(step, {})
    assert due == [(2, 4), (5, 7), (8, 10)]
    assert work.plan.num_committed == 11
    assert not any(work.is_due(step) for step in range(12))


def test_decisions_are_fixed_in_the_plan_and_noted() -> None:
    work = at_work(0.25, [0.0, 1.0, 0.5], (1,), committed=4)
    before = work.plan.locate(range(16))
    assert work.decide(2, {"general_loss": 1.5}) == {
        "step": 2,
        "from_step": 4,
        "to_step": 7,
        "alpha": 0.25,
        "reason": "because",
    }
    work.decide(5, {})
    work.decide(8, {})
    assert [work.plan.alpha(step) for step in range(4, 11)] == [0.25, 0.25, 0.25, 0.0, 1.0, 0.5, 1.0]
    assert [(each["step"], each["from_step"], each["to_step"], each["alpha"]) for each in work.decisions] == [
        (2, 4, 7, 0.25),
        (5, 7, 10, 0.5),
        (8, 10, 11, 1.0),
    ]
    asked = work.controller.asked  # type: ignore[attr-defined]
    assert asked[0][:2] == (range(4, 7), {"general_loss": 1.5})
    assert asked[0][2] == pytest.approx([0.4, 0.5, 0.6])  # the schedule, whatever has been decided
    assert asked[2][2] == [1.0]
    assert work.plan.drawn_before(11).sum() == 44
    assert (work.plan.locate(range(16)).example == before.example).all()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, 0.5], r"must give α for 3 steps, got 2: \[0\.5, 0\.5\]"),
        ([0.5] * 4, "must give α for 3 steps, got 4"),
        ([], "must give α for 3 steps, got 0"),
        ([0.5, 1.5, 0.5], r"must stay in \[0, 1\], got 1\.5 at step 5"),
        (-0.1, r"must stay in \[0, 1\], got -0\.1 at step 4"),
        (math.nan, r"must stay in \[0, 1\], got nan at step 4"),
        ([0.5, None, 0.5], "must return a number, got None at step 5"),
        ("abc", "must return a number, got 'a' at step 4"),
        (None, "must return a number, got None at step 4"),
    ],
)
def test_wrong_answers_are_refused_and_nothing_is_fixed(answer: Any, message: str) -> None:
    work = at_work(answer, 0.5)
    before = work.plan.to_dict()
    with pytest.raises(ValueError, match=message):
        work.decide(2, {})
    assert work.plan.to_dict() == before
    assert work.decisions == []
    assert work.decide(2, {})["alpha"] == 0.5


def test_alpha_of_a_side_without_a_corpus_is_refused_and_nothing_is_fixed() -> None:
    work = at_work(0.5, general=False)
    before = work.plan.to_dict()
    with pytest.raises(ValueError, match=r"α is 0.5 at step 4, which asks for general examples"):
        work.decide(2, {})
    assert work.plan.to_dict() == before


def test_work_goes_on_from_a_state() -> None:
    whole = at_work(0.25, [0.0, 1.0, 0.5], 0.75)
    first = at_work(0.25, [0.0, 1.0, 0.5], 0.75)
    for step in (2, 5, 8):
        whole.decide(step, {})
    first.decide(2, {})
    saved = json.loads(json.dumps({"plan": first.plan.to_dict(), "work": first.state_dict()}))
    second = AdaptiveAlpha(MixturePlan.from_dict(saved["plan"]), Answers(), update_steps=3, lag=2)
    second.load_state_dict(saved["work"], 2)
    assert second.is_due(5)
    second.decide(5, {})
    second.decide(8, {})
    assert second.decisions == whole.decisions
    assert second.plan.to_dict() == whole.plan.to_dict()
    assert second.plan.read_hash(0, 11) == whole.plan.read_hash(0, 11)
    assert len(first.decisions) == 1  # a state is a copy


def test_an_empty_range_of_metrics_leaves_the_guard_able_to_decide() -> None:
    work = at_work()
    work.controller = Guard()
    assert work.decide(2, {})["to_step"] == 7


@pytest.mark.parametrize("unit", ["examples", "tokens"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("answer", [1.0, 0.0, 0.9, [0.1, 1.0, 0.7]])
def test_max_passes_are_kept_whatever_a_controller_decides(answer: Any, batch_size: int, unit: Any) -> None:
    def part(name: str, side: Any, size: int, share: float, passes: float | None) -> CorpusSpec:
        limit = {"num_examples": size * batch_size, "share": share, "max_passes": passes}
        return CorpusSpec(name=name, side=side, mean_tokens=2.0 if side == "general" else 5.0, **limit)

    corpora = [
        part("web", "general", 10, 0.25, None),
        part("news", "general", 10, 0.75, 2.5),
        part("law", "domain", 10, 0.5, 1.5),
        part("acts", "domain", 30, 0.5, 2),
    ]

    def planned() -> MixturePlan:
        sizes = {"batch_size": batch_size, "max_steps": 40, "num_committed": 4}
        alpha = 0.3 if unit == "examples" else 0.5
        return MixturePlan(corpora, alpha_schedule=lambda progress: alpha, unit=unit, **sizes)

    plan, answers = planned(), [answer] * 12
    work = AdaptiveAlpha(plan, Answers(*answers), update_steps=3, lag=1)
    for step in range(40):
        if work.is_due(step):
            work.decide(step, {})
        if step == 20:
            work.plan = plan = continue_plan(planned(), json.loads(json.dumps(plan.to_dict())), 20).plan
    assert plan.num_committed == 40
    passes = plan.passes(40)
    assert all(read <= limit for read, limit in zip(passes[1:], (2.5, 1.5, 2), strict=True) if read is not None)
    reasons = {decision["reason"] for decision in work.decisions}
    if answer in (1.0, 0.0):  # the limit is reached, and not just kept away from
        assert reasons == {"because", "because; moved to keep to `max_passes`"}
        assert passes[2 if answer else 1] == pytest.approx(1.5 if answer else 2.5, abs=2 / batch_size / 10)
