"""The presets of a recipe: which fields they lay, and which they leave to the recipe."""

from typing import Any

import pytest

from hf_interp.tasks.methods import describe_method, format_method, lay_method
from hf_interp.tasks.parsing import lay_flags, parse_recipe

CORPORA: dict[str, Any] = {"general": {"path": "general.txt"}, "domain": {"path": "domain.txt"}}
RECIPE: dict[str, Any] = {"model_name_or_path": "m", "corpora": CORPORA, "max_steps": 10, "use_cpu": True}
MEAN: dict[str, Any] = {"lr_scheduler_type": "constant_with_warmup", "average_from": 0.5}


@pytest.mark.parametrize(("method", "weight"), [("keep", 0.3), ("balanced", 0.5), ("domain", 0.7)])
@pytest.mark.parametrize(("task", "alpha"), [("token-classification", 0.5), ("masked-lm", 0.25)])
def test_a_method_stands_for_its_fields(method: str, weight: float, task: str, alpha: float) -> None:
    recipe, args = parse_recipe({**RECIPE, "task": task, "method": method, "eval_corpora": CORPORA})
    assert (args.alpha_schedule_type, args.alpha_start, args.alpha_end) == ("constant", alpha, alpha)
    rate = ("constant_with_warmup", 0.5) if task == "masked-lm" else ("linear", None)
    assert (args.lr_scheduler_type.value, args.average_from) == rate
    assert recipe.alpha_search is not None
    assert (recipe.alpha_search.objective, recipe.alpha_search.domain_weight) == ("mean", weight)
    assert recipe.alpha_search.metric == ("loss" if task == "masked-lm" else None)


@pytest.mark.parametrize(
    ("sets", "searches"),
    [
        ({}, False),
        ({"eval_corpora": {"domain": {"path": "d"}}}, False),
        ({"eval_corpora": CORPORA}, True),
        ({"eval_corpora": {"domain": {"path": "d"}}, "validation_corpora": CORPORA}, True),
        ({"eval_corpora": CORPORA, "validation_corpora": {"domain": {"path": "d"}}}, False),
        ({"eval_corpora": CORPORA, "alpha_search": False}, False),
        ({"eval_corpora": CORPORA, "alpha_search": None}, False),
    ],
)
def test_weights_are_interpolated_where_both_sides_can_be_measured(sets: dict[str, Any], searches: bool) -> None:
    recipe = parse_recipe({**RECIPE, "method": "keep", **sets})[0]
    assert (recipe.alpha_search is not None) is searches


@pytest.mark.parametrize(
    ("own", "laid"),
    [
        ({"alpha": 0.6}, MEAN),
        ({"alpha_schedule_type": "linear"}, MEAN),
        ({"alpha_end": 0.9}, MEAN),
        ({"alpha_controller": "guard"}, MEAN),
        ({"lr_scheduler_type": "cosine"}, {"alpha": 0.25, "average_from": 0.5}),
        ({"load_best_model_at_end": True}, {"alpha": 0.25}),
        ({"alpha": None}, MEAN),  # which leaves the schedule of a recipe that says nothing
        ({"average_from": None}, {"alpha": 0.25, "lr_scheduler_type": "constant_with_warmup"}),
        ({"alpha_schedule_type": None, "load_best_model_at_end": None}, {"alpha": 0.25, **MEAN}),
    ],
)
def test_what_a_recipe_sets_itself_stays(own: dict[str, Any], laid: dict[str, Any]) -> None:
    given = {**RECIPE, "task": "causal-lm", "anchor": "distill", "method": "keep", **own}
    changed, found = lay_method(given)
    assert found == laid
    assert changed == {**given, **laid}


def test_a_search_without_an_objective_gets_that_of_the_method() -> None:
    search = {"metric": "loss", "alphas": 3}
    given = {**RECIPE, "method": "keep", "eval_corpora": CORPORA, "alpha_search": search}
    assert lay_method(given)[1]["alpha_search"] == {**search, "objective": "mean", "domain_weight": 0.3}
    own = {**search, "objective": "knee"}
    assert "alpha_search" not in lay_method({**given, "alpha_search": own})[1]


def test_a_method_given_as_a_flag_decides_over_the_file_and_not_over_other_flags() -> None:
    file = {
        **RECIPE,
        "eval_corpora": CORPORA,
        "alpha_schedule_type": "linear",
        "alpha_end": 0.9,
        "lr_scheduler_type": "cosine",
        "alpha_search": {"objective": "constrained", "max_forgetting": 0.02, "alphas": 3},
    }
    flags = ["--method", "keep", "--lr_scheduler_type", "linear", "--task", "causal-lm"]
    recipe, args = parse_recipe(lay_flags(dict(file), flags))
    assert (args.alpha_schedule_type, args.alpha_end, args.average_from) == ("constant", 0.25, 0.5)
    assert args.lr_scheduler_type.value == "linear"
    search = recipe.alpha_search
    assert search is not None
    assert (search.objective, search.domain_weight, search.alphas) == ("mean", 0.3, 3)


def test_of_language_models_the_general_side_trains_predictions_of_m0() -> None:
    corpora = {
        "web": {"path": "a.txt", "side": "general"},
        "general": {"path": "b.txt"},
        "domain": {"path": "c.txt"},
    }
    given = {**RECIPE, "task": "causal-lm", "method": "balanced", "corpora": corpora}
    recipe = parse_recipe(given)[0]
    found = {name: corpus.objective for name, corpus in recipe.corpora.items()}
    assert found == {"web": "distill", "general": "distill", "domain": None}
    assert corpora["web"] == {"path": "a.txt", "side": "general"}  # the recipe itself is left alone
    assert format_method(given) == [
        "Method balanced: alpha 0.25, lr_scheduler_type constant_with_warmup, average_from 0.5, "
        "corpora.web.objective distill, corpora.general.objective distill."
    ]
    sets = {"alpha": 0.25, **MEAN, "corpora.web.objective": "distill", "corpora.general.objective": "distill"}
    assert describe_method(given) == {"name": "balanced", "sets": sets}


@pytest.mark.parametrize("flags_first", [True, False])
def test_null_as_a_flag_turns_a_part_of_a_method_off(flags_first: bool) -> None:
    file = {**RECIPE, "task": "causal-lm", "eval_corpora": CORPORA}
    given = ["--average_from", "null", "--alpha_search", "null", "--corpora.general.objective", "null"]
    method = ["--method", "domain"]
    corpora = {name: dict(entry) for name, entry in CORPORA.items()}
    flags = [*given, *method] if flags_first else [*method, *given]
    changed = lay_flags({**file, "corpora": corpora}, flags)
    assert lay_method(changed)[1] == {"alpha": 0.25, "lr_scheduler_type": "constant_with_warmup"}
    recipe, args = parse_recipe(changed)
    assert (args.average_from, recipe.alpha_search, recipe.corpora["general"].objective) == (None, None, None)


@pytest.mark.parametrize(
    "own",
    [
        {"task": "sequence-classification"},
        {"anchor": "distill"},
        {"corpora": {**CORPORA, "domain": {"path": "d.txt", "objective": "masked-lm"}}},
    ],
)
def test_predictions_are_left_out_where_m0_has_none_or_something_else_is_asked_for(own: dict[str, Any]) -> None:
    laid = lay_method({**RECIPE, "task": "causal-lm", "method": "balanced", **own})[1]
    assert laid == ({"alpha": 0.5} if "task" in own else {"alpha": 0.25, **MEAN})


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`method` must be one of keep, balanced, domain, got 'balance'\. .*balanced"):
        lay_method({**RECIPE, "method": "balance"})


def test_nothing_is_laid_or_said_without_a_method() -> None:
    assert lay_method(RECIPE) == (RECIPE, {})
    assert (format_method(RECIPE), describe_method(RECIPE)) == ([], {})
