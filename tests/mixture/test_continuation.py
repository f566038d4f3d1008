"""Going on with other settings: what changes, what is said, what is refused, and that nothing is lost or read twice."""

import json
from typing import Any

import numpy as np
import pytest

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.continuation import Continuation, continue_plan, plan_changes
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import AlphaSchedule, constant, linear


def web(num_examples: int | None = 20, **kwargs: Any) -> CorpusSpec:
    return CorpusSpec(**{"name": "web", "side": "general", "num_examples": num_examples, **kwargs})


def law(num_examples: int | None = 10, **kwargs: Any) -> CorpusSpec:
    return CorpusSpec(**{"name": "law", "side": "domain", "num_examples": num_examples, **kwargs})


def plan(*corpora: CorpusSpec, alpha: float | AlphaSchedule = 0.5, **kwargs: Any) -> MixturePlan:
    """A plan of 10 steps of 4 examples of a general corpus of 20 and a domain corpus of 10."""
    schedule = alpha if callable(alpha) else constant(alpha)
    return MixturePlan(
        corpora or (web(), law()), alpha_schedule=schedule, **{"batch_size": 4, "max_steps": 10, **kwargs}
    )


def go_on(fresh: MixturePlan, old: MixturePlan, step: int) -> Continuation:
    """As after a checkpoint, in which the old plan is JSON."""
    return continue_plan(fresh, json.loads(json.dumps(old.to_dict())), step)


def reads(last: MixturePlan, name: str) -> list[int]:
    """The examples of a corpus in the order of their ordinals, over all the plans of a chain."""
    found: dict[int, int] = {}
    for step in range(last.max_steps):
        ruling = last.plan_of(step)
        draw = ruling.locate(range(step * ruling.batch_size, (step + 1) * ruling.batch_size))
        for index, ordinal, example in zip(*(part.tolist() for part in draw), strict=True):
            if ruling.corpora[index].name == name:
                assert ordinal not in found
                found[ordinal] = example
    assert sorted(found) == list(range(len(found)))
    return [found[ordinal] for ordinal in sorted(found)]


def assert_passes_are_whole(found: list[int], length: int) -> None:
    for first in range(0, len(found), length):
        part = found[first : first + length]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(length))


def test_the_same_settings_go_on_with_the_saved_plan() -> None:
    old = plan(web(max_passes=9), alpha=linear(0.0, 0.0))
    found = go_on(plan(web(), alpha=0.0), old, 4)
    assert found.changes == []
    assert found.plan.start_step == 0
    assert found.plan.previous is None
    assert found.plan.fingerprint() == old.fingerprint()
    assert found.plan.read_hash(0, 10) == old.read_hash(0, 10)


def test_the_same_settings_go_on_at_the_last_step() -> None:
    assert go_on(plan(), plan(), 10).plan.max_steps == 10


def news(**kwargs: Any) -> CorpusSpec:
    return CorpusSpec(**{"name": "news", "side": "general", "num_examples": 8, "share": 0.5, **kwargs})


NEWS = news()


@pytest.mark.parametrize(
    ("old", "fresh", "changes", "consumed"),
    [
        (
            {},
            {"batch_size": 6},
            ["global batch: 4 -> 6"],
            {"web": 8 + 18, "law": 8 + 18},
        ),
        ({}, {"max_steps": 12}, ["`max_steps`: 10 -> 12"], {"web": 24, "law": 24}),
        ({}, {"max_steps": 5}, ["`max_steps`: 10 -> 5"], {"web": 10, "law": 10}),
        ({}, {"alpha": 0.25}, ["the schedule of α"], {"web": 8 + 18, "law": 8 + 6}),
        ({"alpha": 0.25}, {"alpha": 0.75}, ["the schedule of α"], {"web": 12 + 6, "law": 4 + 18}),
        (
            {},
            {"corpora": [web(share=0.5), NEWS, law()]},
            ["corpus 'news' added", "share of corpus 'web': 1 -> 0.5"],
            {"web": 8 + 6, "news": 6, "law": 20},
        ),
        (
            {"corpora": [web(share=0.5), NEWS, law()]},
            {},
            ["share of corpus 'web': 0.5 -> 1", "corpus 'news' removed"],
            {"web": 4 + 12, "news": 4, "law": 20},
        ),
        (
            {"corpora": [web(share=0.5), NEWS, law()]},
            {"corpora": [web(share=0.25), news(share=0.75), law()]},
            ["share of corpus 'web': 0.5 -> 0.25", "share of corpus 'news': 0.5 -> 0.75"],
            {"web": 4 + 3, "news": 4 + 9, "law": 20},
        ),
        (
            {"corpora": [web(share=0.5), NEWS, law()]},
            {"corpora": [web(share=0.5), law(side="general", share=0.5), news(side="domain", share=1.0)]},
            [
                "side of corpus 'law': domain -> general",
                "share of corpus 'law': 1 -> 0.5",
                "side of corpus 'news': general -> domain",
                "share of corpus 'news': 0.5 -> 1",
            ],
            {"web": 4 + 6, "news": 4 + 12, "law": 8 + 6},
        ),
        (
            {},
            {"corpora": [law(), web()]},
            ["order of the corpora: ['web', 'law'] -> ['law', 'web']"],
            {"web": 20, "law": 20},
        ),
        (
            {"corpora": [web(mean_tokens=10.0), law(mean_tokens=30.0)]},
            {"corpora": [web(mean_tokens=10.0), law(mean_tokens=30.0)], "unit": "tokens"},
            ["unit of the mixture: examples -> tokens"],
            {"web": 8 + 18, "law": 8 + 6},
        ),
        (
            {"corpora": [web(mean_tokens=10.0), law(mean_tokens=10.0)], "unit": "tokens"},
            {"corpora": [web(mean_tokens=10.0), law(mean_tokens=30.0)], "unit": "tokens"},
            ["mean tokens: [10.0, 10.0] -> [10.0, 30.0]"],
            {"web": 8 + 18, "law": 8 + 6},
        ),
        (
            {},
            {"alpha": linear(), "batch_size": 8, "max_steps": 6},
            ["global batch: 4 -> 8", "`max_steps`: 10 -> 6"],
            {"web": 8 + 2, "law": 8 + 14},  # α is 0.8 and 1
        ),
    ],
)
def test_every_change_is_told_and_goes_on_from_what_was_consumed(
    old: dict[str, Any], fresh: dict[str, Any], changes: list[str], consumed: dict[str, int]
) -> None:
    def build(kwargs: dict[str, Any]) -> MixturePlan:
        return plan(*kwargs.get("corpora", []), **{key: kwargs[key] for key in kwargs if key != "corpora"})

    before = build(old)
    found = go_on(build(fresh), before, 4)
    assert sorted(found.changes) == sorted(changes)
    assert found.plan.start_step == 4
    assert found.plan.consumed(4) == {**dict.fromkeys(consumed, 0), **before.consumed(4)}
    assert found.plan.consumed(found.plan.max_steps) == consumed
    assert found.plan.read_hash(0, 4) == before.read_hash(0, 4)
    assert found.plan.max_steps == fresh.get("max_steps", 10)
    for name, length in (("web", 20), ("law", 10), ("news", 8)):
        if name in consumed:
            assert len(reads(found.plan, name)) == consumed[name]
            assert_passes_are_whole(reads(found.plan, name), length)


def test_alpha_becomes_adaptive_and_back() -> None:
    to = go_on(plan(num_committed=3), plan(), 4)
    assert to.changes == ["α adaptive: no -> yes"]
    assert (to.plan.is_adaptive, to.plan.num_committed) == (True, 7)
    back = go_on(plan(), to.plan, 6)
    assert back.changes == ["α adaptive: yes -> no"]
    assert (back.plan.is_adaptive, back.plan.num_committed) == (False, 10)


def test_what_an_adaptive_plan_has_fixed_stays_in_force_over_a_change() -> None:
    old = plan(num_committed=4)
    old.commit([0.25, 0.75])
    found = go_on(plan(num_committed=4, batch_size=8), old, 4)
    assert found.changes == ["global batch: 4 -> 8"]
    assert found.plan.num_committed == 6
    assert [found.plan.alpha(step) for step in range(8)] == [0.5, 0.5, 0.5, 0.5, 0.25, 0.75, 0.5, 0.5]
    assert found.plan.consumed(6) == {"web": 8 + 6 + 2, "law": 8 + 2 + 6}
    found.plan.commit([1.0])
    assert found.plan.consumed(7) == {"web": 16, "law": 24}
    same = go_on(plan(num_committed=4), old, 4)  # without a change too
    assert same.changes == []
    assert [same.plan.alpha(step) for step in range(7)] == [0.5, 0.5, 0.5, 0.5, 0.25, 0.75, 0.5]


def test_a_schedule_that_differs_only_where_it_lies_behind_is_a_change_that_reads_alike() -> None:
    found = go_on(plan(alpha=lambda progress: 0.0 if progress < 0.3 else 0.5), plan(), 4)
    assert found.changes == ["the schedule of α"]
    assert found.plan.read_hash(0, 10) == plan().read_hash(0, 10)
    assert found.plan.alpha(0) == 0.5


def test_a_run_goes_on_over_several_changes() -> None:
    first = plan(web(7), law(5))
    second = go_on(plan(web(7), law(5), batch_size=3), first, 2).plan
    third = go_on(plan(law(5), web(7), alpha=linear(), batch_size=5, max_steps=20), second, 5).plan
    last = go_on(plan(law(5), alpha=1.0, batch_size=2, max_steps=30), third, 9).plan
    assert [last.plan_of(step).batch_size for step in (0, 1, 2, 4, 5, 8, 9, 29)] == [4, 4, 3, 3, 5, 5, 2, 2]
    assert sum(last.consumed(30).values()) == 2 * 4 + 3 * 3 + 4 * 5 + 21 * 2
    assert [last.plan_of(step) is last for step in (8, 9)] == [False, True]
    for name, length in (("web", 7), ("law", 5)):
        found = reads(last, name)
        assert len(found) == last.consumed(30)[name]
        assert_passes_are_whole(found, length)
    assert last.read_hash(0, 9) == third.read_hash(0, 9)
    assert last.read_hash(0, 2) == first.read_hash(0, 2)


def test_the_order_inside_a_pass_is_that_of_a_run_without_a_change() -> None:
    changed = go_on(plan(batch_size=6), plan(), 4).plan
    plain = plan(max_steps=14)
    assert reads(changed, "web")[:26] == reads(plain, "web")[:26]
    assert reads(changed, "law")[:26] == reads(plain, "law")[:26]


def test_a_corpus_that_comes_back_goes_on_where_it_was_left() -> None:
    first = plan(web(share=0.5), NEWS, law())
    without = go_on(plan(), first, 3).plan
    again = go_on(plan(web(share=0.5), NEWS, law(), max_steps=12), without, 6).plan
    assert without.consumed(6) == {"web": 3 + 6, "news": 3, "law": 12}
    assert again.consumed(12) == {"web": 9 + 6, "news": 3 + 6, "law": 24}
    assert reads(again, "news")[:8] == reads(plan(web(share=0.5), NEWS, law(), max_steps=20), "news")[:8]
    assert_passes_are_whole(reads(again, "news"), 8)


def test_streams_go_on_too() -> None:
    found = go_on(plan(web(None), law(), batch_size=8), plan(web(None), law()), 5)
    assert found.changes == ["global batch: 4 -> 8"]
    assert reads(found.plan, "web") == list(range(30))


def test_passes_are_limited_over_all_the_plans_of_a_run() -> None:
    old = plan(alpha=0.9)
    assert go_on(plan(web(), law(max_passes=2.4), alpha=0.3), old, 5).plan.passes(10) == [0.8, 2.4]  # 18 and 6 of 10
    with pytest.raises(ValueError, match=r"'law' would be read 2.40 times, but its `max_passes` is 2.3"):
        go_on(plan(web(), law(max_passes=2.3), alpha=0.3), old, 5)


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        (lambda: plan(seed=1), "seed of the data was 0 and is now 1.*examples would be lost.*Set `data_seed` to 0"),
        (lambda: plan(web(21), law()), "'web' had 20 examples when .* and has 21 examples now.*another name"),
        (lambda: plan(web(None), law()), r"'web' had 20 examples when .* and has no length \(a stream\) now"),
        (lambda: plan(web(20_000), law()), "has 20,000 examples now"),
        (lambda: plan(web(content="bb"), law()), r"'web' has as many.*but others \(content aa then, bb now\)"),
        (lambda: plan(max_steps=4), "checkpoint is at step 4 and `max_steps` is now 4: no step is left.*Raise"),
        (lambda: plan(max_steps=3), "checkpoint is at step 4 and `max_steps` is now 3: no step is left"),
        (lambda: plan(law(name="web", num_examples=19), alpha=1.0), "'web' had 20 examples"),
    ],
)
def test_what_would_lose_or_repeat_examples_is_refused(fresh: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        go_on(fresh(), plan(web(content="aa"), law()), 4)


@pytest.mark.parametrize(("then", "now"), [("aa", "aa"), (None, "aa"), ("aa", None), (None, None)])
def test_contents_that_are_not_known_to_differ_are_no_change(then: str | None, now: str | None) -> None:
    assert go_on(plan(web(content=now), law()), plan(web(content=then), law()), 4).changes == []


def test_a_step_is_left_before_the_last() -> None:
    assert go_on(plan(max_steps=5), plan(), 4).plan.consumed(5) == {"web": 10, "law": 10}


def test_a_change_before_the_first_step_is_a_new_run() -> None:
    found = go_on(plan(batch_size=6), plan(), 0)
    assert found.changes == ["global batch: 4 -> 6"]
    assert found.plan.read_hash(0, 10) == plan(batch_size=6).read_hash(0, 10)


@pytest.mark.parametrize("corpus", [web(21), web(20, content="bb")])
def test_a_corpus_that_comes_back_must_be_as_it_was(corpus: CorpusSpec) -> None:
    without = go_on(plan(law(), alpha=1.0), plan(web(content="aa"), law()), 4).plan
    with pytest.raises(ValueError, match=r"Corpus 'web' ha(d|s)"):
        go_on(plan(corpus, law()), without, 6)
    assert go_on(plan(web(content="aa"), law()), without, 6).changes == ["corpus 'web' added", "the schedule of α"]


def test_another_order_of_reading_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = plan().to_dict()
    for version in (saved["order_version"] + 1, saved["order_version"] - 1):
        with pytest.raises(
            ValueError, match=rf"reads in order {version}; this one reads in order .*Go on with the ver"
        ):
            continue_plan(plan(), {**saved, "order_version": version}, 4)
    changed = go_on(plan(batch_size=8), plan(), 4).plan.to_dict()
    changed["previous"]["order_version"] += 1
    with pytest.raises(ValueError, match="reads in order"):
        continue_plan(plan(batch_size=8), changed, 6)


def test_neither_plan_is_changed() -> None:
    old, fresh = plan(num_committed=2), plan(num_committed=2, batch_size=8)
    before = old.to_dict(), fresh.to_dict()
    found = go_on(fresh, old, 1)
    found.plan.commit([1.0, 1.0])
    assert (old.to_dict(), fresh.to_dict()) == before
    assert np.array_equal(fresh.locate(range(8)).example, plan(batch_size=8).locate(range(8)).example)


def test_changes_that_cannot_be_gone_on_with_are_told_too() -> None:
    old = plan(web(content="aa"), law())
    assert plan_changes(old, plan(web(content="aa"), law())) == []
    assert plan_changes(old, plan(web(21, content="bb"), law(None), seed=3)) == [
        "num_examples of corpus 'web': 20 -> 21",
        "content of corpus 'web': aa -> bb",
        "num_examples of corpus 'law': 10 -> None",
        "seed: 0 -> 3",
    ]
