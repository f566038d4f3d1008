"""What a search may try: what is drawn, what is refused, and what users may say."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from hf_interp.commands.search_space import ALPHA_FIELDS, Range, make_space, read_space


class Draws:
    """A trial that draws at random, and notes between which ends."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ends: dict[str, tuple[float, float, bool]] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.random.choice(choices)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.ends[name] = (low, high, log)
        return self.random.uniform(low, high)


class Told:
    """A trial that draws the values it is told, whatever the ends."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.values[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.values[name]


LINEAR = {"alpha_schedule_type": "linear", "alpha_initial_steps": 0.0, "alpha_target_steps": 0.0}


@pytest.mark.parametrize("falling", [False, True])
def test_what_is_drawn_can_be_planned(falling: bool) -> None:
    space = make_space({"alpha_initial_steps": (0.2, 0.8), "alpha_target_steps": (0.1, 0.8)}, falling=falling)
    drawn = [space.suggest(Draws(seed)) for seed in range(300)]
    assert {settings["alpha_schedule_type"] for settings in drawn} == set(space.alpha_schedule_type)
    for settings in drawn:
        assert list(settings) == list(ALPHA_FIELDS)
        if settings["alpha_schedule_type"] == "constant":
            assert settings["alpha_start"] == settings["alpha_end"]
            assert settings["alpha_initial_steps"] == settings["alpha_target_steps"] == 0
        else:
            assert 0.2 <= settings["alpha_initial_steps"] <= 0.8
            assert settings["alpha_target_steps"] >= 0.1
            assert settings["alpha_initial_steps"] + settings["alpha_target_steps"] <= 0.95 + 1e-12
    rises = [settings["alpha_start"] <= settings["alpha_end"] for settings in drawn]
    assert all(rises) != falling


def test_a_range_of_ends_begins_where_starts_do() -> None:
    draws = Draws(0)
    settings = make_space({"alpha_schedule_type": "linear", "alpha_start": (0.5, 0.8)}).suggest(draws)
    assert draws.ends["alpha_end"] == (0.5, 1.0, False)
    assert draws.ends["alpha_start"] == (0.5, min(0.8, settings["alpha_end"]), False)
    make_space({"alpha_schedule_type": "linear", "alpha_start": [0.3, 0.6]}).suggest(
        Told(alpha_start=0.3, alpha_end=0.4, **LINEAR)
    )


def test_a_constant_takes_every_end() -> None:
    draws = Draws(0)
    make_space({"alpha_schedule_type": "constant", "alpha_start": (0.5, 0.8), "alpha_end": (0.1, 0.3)}).suggest(draws)
    assert draws.ends == {"constant_alpha": (0.1, 0.3, False)}


def test_numbers_are_rounded_inside_their_ends() -> None:
    told = Told(alpha_start=0.12345, alpha_end=0.98765, learning_rate=1.23456e-4, **LINEAR)
    settings = make_space(learning_rate=1e-4).suggest(told)
    assert (settings["alpha_start"], settings["alpha_end"], settings["learning_rate"]) == (0.123, 0.988, 1.23e-4)
    narrow = {"alpha_start": (0.12341, 0.1235), "learning_rate": (1.2341e-4, 2e-4)}
    settings = make_space(narrow).suggest(Told(**{**told.values, "learning_rate": 1.2342e-4}))
    assert (settings["alpha_start"], settings["learning_rate"]) == (0.12341, 1.2341e-4)


def test_listed_values_that_do_not_go_together_are_refused() -> None:
    space = make_space({"alpha_start": [0.2, 0.6], "alpha_end": [0.4, 0.9]})
    assert space.suggest(Told(alpha_start=0.2, alpha_end=0.4, **LINEAR))["alpha_start"] == 0.2
    with pytest.raises(ValueError, match=r"`alpha_start` 0\.6 exceeds 0\.4"):
        space.suggest(Told(alpha_start=0.6, alpha_end=0.4, **LINEAR))
    space = make_space({"alpha_start": (0.5, 0.6), "alpha_end": [0.4, 0.9]})
    with pytest.raises(ValueError, match=r"`alpha_start` would have to lie between 0\.5 and 0\.4"):
        space.suggest(Told(alpha_start=0.5, alpha_end=0.4, **LINEAR))
    falls = make_space({"alpha_start": [0.6], "alpha_end": [0.4]}, falling=True)
    assert falls.suggest(Told(alpha_start=0.6, alpha_end=0.4, **LINEAR))["alpha_start"] == 0.6


def test_the_learning_rate_is_searched_by_its_logarithm() -> None:
    assert make_space().learning_rate is None
    assert make_space(learning_rate=4e-4).learning_rate == Range(1e-4, 16e-4, log=True)
    assert make_space({"learning_rate": (1e-5, 1e-3)}).learning_rate == Range(1e-5, 1e-3, log=True)
    assert make_space({"learning_rate": [1e-5, 1e-3]}, learning_rate=1.0).learning_rate == (1e-5, 1e-3)
    draws = Draws(0)
    assert "learning_rate" in make_space(learning_rate=4e-4).suggest(draws)
    assert draws.ends["learning_rate"] == (1e-4, 16e-4, True)


def test_settings_are_found_in_the_space_or_not() -> None:
    settings = {**LINEAR, "alpha_start": 0.0, "alpha_end": 1.0}
    assert make_space().parameters(settings) == settings
    inside = {"alpha_schedule_type": ["linear"], "alpha_start": (0.0, 0.5), "alpha_target_steps": [0.0]}
    assert make_space(inside).parameters(settings) == settings
    for outside in (
        {"alpha_schedule_type": ["cosine"]},
        {"alpha_start": (0.1, 0.5)},
        {"alpha_end": [0.9]},
        {"alpha_initial_steps": (0.1, 0.2)},
    ):
        assert make_space(outside).parameters(settings) is None
    assert make_space().parameters({**settings, "alpha_target_steps": 10.0}) is None
    assert make_space().parameters({**settings, "alpha_start": 1.0, "alpha_end": 0.0}) is None
    assert make_space(falling=True).parameters({**settings, "alpha_start": 1.0, "alpha_end": 0.0}) is not None
    assert make_space(learning_rate=1.0).parameters({**settings, "learning_rate": 5.0}) is None


def test_texts_are_read() -> None:
    assert read_space([]) == {}
    assert read_space(["learning_rate=1e-5..1e-3", "alpha_end=0.5,1", "alpha_start=.25"]) == {
        "learning_rate": (1e-5, 1e-3),
        "alpha_end": [0.5, 1.0],
        "alpha_start": [0.25],
    }
    assert read_space(["alpha_start=0..0"]) == {"alpha_start": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["alpha_end"], r"must be such as alpha_end=0\.5\.\.1\.0, .*, got 'alpha_end'"),
        (["=1"], "got '=1'"),
        (["alpha_end="], "got 'alpha_end='"),
        (["alpha_end=a..1"], "needs numbers for `alpha_end`, got 'a'"),
        (["alpha_end=0.5,"], "needs numbers for `alpha_end`, got ''"),
        (["alpha_end=0", "alpha_end=1"], "restricts 'alpha_end' twice"),
    ],
)
def test_other_texts_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_space(texts)


@pytest.mark.parametrize(
    ("restrictions", "message"),
    [
        ({"alpha_ends": 1.0}, r"got 'alpha_ends'\. Did you mean 'alpha_end'\?"),
        ({"alpha_schedule_type": ["linaer"]}, r"got 'linaer'\. Did you mean 'linear'\?"),
        ({"alpha_schedule_type": ["steps"]}, "can take the schedules .*polynomial, got 'steps'"),
        ({"alpha_schedule_type": []}, "must leave a value for `alpha_schedule_type`"),
        ({"alpha_end": []}, "must leave a value for `alpha_end`"),
        ({"alpha_end": (0.5, 1.1)}, r"needs `alpha_end` to be an α in \[0, 1\], got 1\.1"),
        ({"alpha_start": [-0.1]}, r"needs `alpha_start` to be an α in \[0, 1\], got -0\.1"),
        ({"alpha_start": (0.0, float("nan"))}, "got nan"),
        ({"alpha_initial_steps": 10}, r"to be a share of the run in \[0, 0\.95\], got 10"),
        ({"alpha_end": (0.5, 0.4)}, r"range of `alpha_end` that rises, got 0\.5\.\.0\.4"),
        ({"alpha_end": (0.5,)}, r"needs a pair \(low, high\)"),
        ({"learning_rate": (0.0, 1.0)}, "needs `learning_rate` to be above 0 and finite, got 0"),
        ({"learning_rate": (1e-5, float("inf"))}, "needs `learning_rate` to be above 0 and finite, got inf"),
        ({"learning_rate": "fast"}, "needs numbers for `learning_rate`, got 'fast'"),
        (
            {"alpha_start": (0.6, 1.0), "alpha_end": (0.0, 0.5)},
            r"start at 0\.6 or above and end at 0\.5 or below.*--falling",
        ),
        (
            {"alpha_initial_steps": 0.5, "alpha_target_steps": (0.46, 0.5)},
            r"at most 0\.95 of the run, got at least 0\.96",
        ),
    ],
)
def test_bad_restrictions_are_refused(restrictions: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_space(restrictions)


def test_borders_of_restrictions_are_allowed() -> None:
    make_space({"alpha_start": (0.5, 1.0), "alpha_end": (0.0, 0.5)})
    make_space({"alpha_initial_steps": 0.5, "alpha_target_steps": 0.45})
    make_space({"alpha_start": (0.6, 1.0), "alpha_end": (0.0, 0.5)}, falling=True)
    make_space({"alpha_schedule_type": "constant", "alpha_start": 1.0, "alpha_end": 0.5})
    for kind, end in itertools.product(("polynomial", "constant"), (0.0, 1.0)):
        make_space({"alpha_schedule_type": [kind], "alpha_start": 0.0, "alpha_end": end})
