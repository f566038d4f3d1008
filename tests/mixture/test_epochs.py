"""Epochs of a mixture: where they end, and how many steps so many of them take."""

from typing import Any

import pytest

from hf_interp.mixture.apportionment import CorpusSpec
from hf_interp.mixture.epochs import EPOCH_SIDES, Epochs, examples_of_epoch, steps_of_epochs
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import constant, get_alpha_schedule, linear


def corpora(general: int | None = 40, domain: int | None = 12, **kwargs: Any) -> list[CorpusSpec]:
    return [
        CorpusSpec(name="general", side="general", num_examples=general, **kwargs),
        CorpusSpec(name="domain", side="domain", num_examples=domain, **kwargs),
    ]


def plan(alpha: Any = 0.5, max_steps: int = 20, parts: list[CorpusSpec] | None = None, **kwargs: Any) -> MixturePlan:
    schedule = alpha if callable(alpha) else constant(alpha)
    return MixturePlan(parts or corpora(), alpha_schedule=schedule, batch_size=4, max_steps=max_steps, **kwargs)


def ends(epochs: Epochs) -> list[int]:
    return [step for step in range(1, epochs.plan.max_steps + 1) if epochs.passed(step)[1]]


def test_an_epoch_ends_with_a_pass_of_the_domain_side() -> None:
    epochs = Epochs(plan())
    assert ends(epochs) == [6, 12, 18, 20] == epochs.borders(9)
    assert [epochs.passed(step)[0] for step in (0, 3, 6, 9, 12, 18, 20)] == [0, 0.5, 1, 1.5, 2, 3, 40 / 12]
    assert [epochs.number(step) for step in (0, 5, 6, 17, 18, 19)] == [0, 0, 1, 2, 3, 3]
    assert epochs.count() == 4


@pytest.mark.parametrize("side", EPOCH_SIDES)
def test_borders_follow_a_moving_alpha(side: Any) -> None:
    moving = plan(linear(), max_steps=60)
    size = {"domain": 12, "general": 40, "all": 52}[side]
    sides = [moving.sides_before(step) for step in range(61)]
    drawn = [sum(each.values()) if side == "all" else each[side] for each in sides]
    expected = [step for step in range(1, 61) if drawn[step] // size > drawn[step - 1] // size or step == 60]
    epochs = Epochs(moving, side)
    assert ends(epochs) == expected == epochs.borders(99)
    assert epochs.borders(2) == expected[:2]
    for step in expected[:-1]:
        assert epochs.passed(step)[0] == drawn[step] // size


def test_several_passes_in_one_step_are_one_epoch() -> None:
    epochs = Epochs(plan(1.0, max_steps=4, parts=corpora(domain=2)))
    assert [epochs.passed(step) for step in range(1, 5)] == [(2, True), (4, True), (6, True), (8, True)]
    assert epochs.borders(9) == [1, 2, 3, 4]


@pytest.mark.parametrize("parts", [corpora(domain=None), corpora()])
def test_a_side_without_an_end_has_one_epoch(parts: list[CorpusSpec]) -> None:
    epochs = Epochs(plan(0.0 if parts[1].num_examples else 0.5, parts=parts))
    assert ends(epochs) == [20] == epochs.borders(9)
    assert (epochs.passed(5), epochs.count(), epochs.number(19)) == ((0.25, False), 1, 0)


def test_examples_of_corpora_that_are_read_count() -> None:
    parts = [CorpusSpec(name=str(n), side="domain", num_examples=n, share=share) for n, share in ((5, 0.0), (7, 1.0))]
    assert examples_of_epoch(parts, "domain") == 7
    assert examples_of_epoch(parts, "general") is None


SCHEDULES = {
    "constant": lambda steps: constant(0.3),
    "domain": lambda steps: constant(1.0),
    "linear": lambda steps: linear(),
    "late": lambda steps: get_alpha_schedule("steps", values=[0.0, 1.0], boundaries=[0.9]),
    "phases": lambda steps: get_alpha_schedule("linear", max_steps=steps, initial_steps=0.5, target_steps=0.5),
    "phases in steps": lambda steps: get_alpha_schedule("cosine", max_steps=steps, initial_steps=9, target_steps=3),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("side", EPOCH_SIDES)
@pytest.mark.parametrize("epochs", [0.5, 1, 2.5, 30])
def test_so_many_epochs_take_the_fewest_steps_that_hold_them(name: str, side: Any, epochs: float) -> None:
    if (name, side) == ("domain", "general"):
        return
    wanted = epochs * {"domain": 12, "general": 40, "all": 52}[side]

    def drawn(steps: int) -> int:
        try:
            sides = plan(SCHEDULES[name](steps), steps).sides_before(steps)
        except ValueError:
            return -1
        return sum(sides.values()) if side == "all" else sides[side]

    steps = steps_of_epochs(epochs, corpora(), SCHEDULES[name], batch_size=4, side=side)
    assert drawn(steps) >= wanted > drawn(steps - 1)


def test_epochs_count_examples_also_where_alpha_counts_tokens() -> None:
    parts = corpora(mean_tokens=1.0)[:1] + corpora(mean_tokens=3.0)[1:]
    steps = steps_of_epochs(2, parts, lambda steps: constant(0.5), batch_size=4, unit="tokens")
    assert steps == 24  # a quarter of the examples are of the domain
    assert plan(0.5, steps, parts, unit="tokens").sides_before(24)["domain"] == 24


@pytest.mark.parametrize(
    ("parts", "alpha", "epochs", "message"),
    [
        (corpora(), 0.0, 3, "α asks for too few domain examples: 3 passes of them do not end. Set `max_steps`"),
        (
            corpora(domain=None),
            0.5,
            3,
            r"`num_train_epochs` \(3\) must .* the side 'domain' of the mixture has a stream",
        ),
        (corpora()[:1], 0.0, 1, "the side 'domain' of the mixture has a stream or no corpus. Set `max_steps`"),
        (corpora(), 0.5, 0, r"`num_train_epochs` \(0\) must be positive"),
        (corpora(), 1.5, 1, r"must stay in \[0, 1\], got 1.5"),
    ],
)
def test_epochs_that_do_not_end_are_refused(parts: list[CorpusSpec], alpha: float, epochs: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps_of_epochs(epochs, parts, lambda steps: lambda progress: alpha, batch_size=4)


def test_epochs_follow_an_alpha_that_is_decided_later() -> None:
    adaptive = plan(0.5, max_steps=40, num_committed=3)
    epochs = Epochs(adaptive)
    for step in range(1, 41):
        if adaptive.num_committed < 40:
            adaptive.commit([step % 2 / 2 + 0.25])
        assert epochs.passed(step)[0] == adaptive.sides_before(step)["domain"] / 12 or epochs.passed(step)[1]
