"""The reference of a recipe's fields is complete, and what the dataclasses say."""

import dataclasses
import json

import pytest
import recipe_reference as reference
import yaml

from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.presets import PRESETS
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.task import TASKS
from hf_interp.training.config import InterpolationConfig

CLASSES = [cls for cls, _ in reference.SECTIONS.values()]


def test_the_page_is_what_the_dataclasses_say() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run `python tests/docs/recipe_reference.py`"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_explained_and_nothing_else_is(cls: type) -> None:
    assert list(reference.arguments(cls)) == [entry.name for entry in reference.own_fields(cls)]


def test_the_training_arguments_are_fields() -> None:
    assert reference.TRAINING.keys() <= {entry.name for entry in dataclasses.fields(InterpolationConfig)}


def test_defaults_in_docstrings_are_those_of_the_fields() -> None:
    cls = InterpolationConfig
    for entry in reference.own_fields(cls):
        bracket = reference.arguments(cls)[entry.name][0]
        if entry.default is None:
            assert getattr(cls(), entry.name) in (None, "constant", 0.0, 0.5)
        else:
            told = bracket.partition("defaults to ")[2].strip("`")
            assert json.loads({"True": "true", "False": "false"}.get(told, told)) == entry.default


def test_tasks_and_presets_are_all_named() -> None:
    meanings = reference.arguments(Recipe)
    for name in TASKS:
        assert name in meanings["task"][1]
    for name in PRESETS:
        assert name in meanings["peft"][1]


def test_the_example_is_a_recipe() -> None:
    recipe, args = parse_recipe(yaml.safe_load(reference.EXAMPLE))
    assert recipe.corpora["domain"].max_examples == 300
    assert (args.alpha_schedule_type, args.alpha_end, args.learning_rate) == ("constant", 0.5, 2e-5)
