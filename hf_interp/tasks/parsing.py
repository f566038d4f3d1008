"""Recipes from YAML files and command-line flags."""

import contextlib
import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from enum import EnumMeta
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.collators import DISTILL
from hf_interp.mixture.paths import check_points
from hf_interp.reporting.results import less_is_better
from hf_interp.selection.choice import AlphaSearch
from hf_interp.tasks.methods import lay_method, without_fields
from hf_interp.tasks.recipe import GROUPS, SELF, CorpusConfig, HarnessConfig, ObjectiveConfig, Recipe, gone_with
from hf_interp.training.config import InterpolationConfig
from hf_interp.utils.errors import check_known, did_you_mean
from hf_interp.utils.yaml_values import load_yaml, with_numbers


def load_recipe(path: str | Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe's YAML as a plain mapping for `parse_recipe`, and lay command-line flags over it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a mapping, or a flag cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {str(path)!r}. Check the path.")
    try:
        recipe = load_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Recipe {str(path)!r} is not YAML: {error}.") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"Recipe {str(path)!r} must be a mapping of fields, got {_kind(recipe)}.")
    return lay_flags(recipe, flags)


LARGEST = 2**32  # of whole numbers; libraries below hold no larger ones
PATH_FIELDS = ("model_name_or_path", "chat_template", "output_dir", "resume_from_checkpoint")
NAMED_ENTRIES = (*GROUPS, "objectives")


def lay_flags(recipe: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Lay command-line flags over a recipe, in place; for errors see `read_flags`."""
    given = read_flags(flags)
    names = [key for key, value in given if value is not None]
    if "method" in names:
        without_fields(recipe)
    for name in gone_with(names):
        recipe.pop(name, None)
    for key, value in given:
        _set(recipe, key, value)
    recipe.update(expand_homes(recipe))
    return recipe


def parse_recipe(recipe: Mapping[str, Any]) -> tuple[Recipe, InterpolationConfig]:
    """Check a recipe and turn it into its two halves.

    Raises:
        ValueError: for an unknown field (the nearest is named), a missing one, or a value of the wrong kind.
    """
    recipe = lay_method(expand_homes(recipe))[0]
    recipe_fields = _field_names(Recipe)
    check_known(recipe, {*recipe_fields, *_field_names(InterpolationConfig)}, "in the recipe")
    training = {key: value for key, value in recipe.items() if key not in recipe_fields}
    own = {key: value for key, value in recipe.items() if key in recipe_fields and value is not None}
    path = with_numbers(training.get("mixture_path"))
    if path is not None:
        check_points(path)
    for group in GROUPS:
        if group in own:
            own[group] = _corpora(group, own[group], path or [])
    if "objectives" in own:
        own["objectives"] = _build_each(ObjectiveConfig, "objectives", "objectives", own["objectives"])
    search = own.get("alpha_search")
    if isinstance(search, Mapping):
        own["alpha_search"] = build_fields(AlphaSearch, search, "`alpha_search`")
    elif isinstance(search, bool):
        own["alpha_search"] = AlphaSearch() if search else None
    elif search is not None:
        raise ValueError(f"`alpha_search` must be true or a mapping of settings, got {search!r}.")
    harness = own.get("eval_harness")
    if harness is not None:
        given = harness if isinstance(harness, Mapping) else {"tasks": harness}
        own["eval_harness"] = build_fields(HarnessConfig, given, "`eval_harness`")
    parsed: Recipe = build_fields(Recipe, own, "the recipe")
    if not parsed.corpora:
        raise ValueError("`corpora` must name at least one corpus, got none.")
    return parsed, parse_training_arguments(_with_best_metric(training, parsed))


def expand_homes(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose paths begin with a folder instead of `~`."""
    return {
        name: os.path.expanduser(value) if name in PATH_FIELDS and isinstance(value, str) else value
        for name, value in recipe.items()
    }


def _with_best_metric(training: Mapping[str, Any], recipe: Recipe) -> Mapping[str, Any]:
    """Return training arguments that name the metric of the best checkpoint, and which way it counts.

    By default it is the domain's loss. The host's `loss` is no metric of named evaluation sets.
    """
    metric, wanted = training.get("metric_for_best_model"), training.get("load_best_model_at_end")
    if metric is None and not wanted and training.get("save_strategy") != "best":
        return training
    sets = [name for name, corpus in recipe.eval_corpora.items() if not corpus.pair_columns]
    default = f"eval_{recipe.alpha_search.domain if recipe.alpha_search else 'domain'}_loss"
    known = [f"eval_{name}_" for name in sorted(sets, key=len, reverse=True)]
    metric = str(metric or default)
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    own = next((prefix for prefix in known if metric.startswith(prefix)), None)
    if own is None:
        raise ValueError(
            f"`metric_for_best_model` must be a metric of one of the `eval_corpora` ({', '.join(sets) or 'none'}), "
            f"such as {default}, got {metric!r}."
        )
    less = less_is_better(metric.removeprefix(own), training.get("greater_is_better"))
    return {**training, "metric_for_best_model": metric, "greater_is_better": not less}


def parse_training_arguments(values: Mapping[str, Any]) -> InterpolationConfig:
    """Build `InterpolationConfig` from plain values, converted as by transformers' own command-line parser."""
    hints = typing.get_type_hints(InterpolationConfig)
    whole: dict[str, Any] = {}
    flags: list[str] = []
    for key, value in values.items():
        kinds = _alternatives(hints[key])
        if value is False and any("no" in list(kind) for kind in kinds if isinstance(kind, EnumMeta)):
            value = "no"  # as in `save_strategy: no`, which is false in YAML
        if isinstance(value, (dict, list)):
            if type(value) not in kinds:
                raise ValueError(f"`{key}` must not be {_kind(value)}, got {value!r}.")
            whole[key] = with_numbers(value)  # the command-line parser would take it as a text only
        elif value is not None:
            flags.append(f"--{key}={value}")
    parsed = vars(_Parser(InterpolationConfig).parse_args(flags))
    for key in values:
        if isinstance(parsed.get(key), float) and not math.isfinite(parsed[key]) and key != "max_grad_norm":
            raise ValueError(f"`{key}` must be a finite number, got {parsed[key]}.")
        if isinstance(parsed.get(key), int) and abs(parsed[key]) > LARGEST:
            raise ValueError(f"`{key}` must be at most 2**32, got {parsed[key]}.")
    return InterpolationConfig(**{**parsed, **whole})


def read_flags(flags: Sequence[str]) -> list[tuple[str, Any]]:
    """Read `--key value`, `--key=value` and a bare `--key` (true); values are read as YAML.

    >>> read_flags(["--learning_rate", "0.1", "--bf16", "--corpora.domain.where={label: [a, b]}"])
    [('learning_rate', 0.1), ('bf16', True), ('corpora.domain.where', {'label': ['a', 'b']})]
    """
    found: list[tuple[str, Any]] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise ValueError(f"Expected a flag such as --learning_rate 1e-4, got {flag!r}.")
        key, equals, text = flag[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            equals, text = "=", rest.pop(0)
        if equals and not text.strip():
            raise ValueError(f"--{key} must have a value, got {text!r}. Leave the flag out, or write null for none.")
        try:
            found.append((key, load_yaml(text) if equals else True))
        except ValueError as error:
            raise ValueError(f"The value of --{key} is not YAML: {text!r:.200} ({error}).") from error
    return found


class _Parser(HfArgumentParser):
    """The parser of transformers, which raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}.")


def _corpora(group: str, entries: Any, path: Sequence[Mapping[str, Any]]) -> dict[str, CorpusConfig]:
    corpora: dict[str, CorpusConfig] = _build_each(CorpusConfig, group, "corpora", entries)
    for name, corpus in corpora.items():
        if isinstance(corpus.share, Mapping):
            corpus.share = with_numbers(corpus.share)
        ends = [point.get(name, 0.0) for point in (*path[:1], *path[-1:])]
        if isinstance(corpus.share, Mapping):
            ends = [corpus.share.get(side, 0.0) for side in SIDES]
        if corpus.side is None and name in SIDES:
            corpus.side = name
        elif corpus.side is None and ends:
            corpus.side = SIDES[ends[1] > ends[0]]
        if corpus.path == SELF and group == "corpora" and corpus.side == "general":
            corpus.objective = corpus.objective or DISTILL
        if group == "corpora" and corpus.side not in SIDES:
            raise ValueError(f"`{group}.{name}.side` must be general or domain, got {corpus.side!r}.")
    return corpora


def _build_each(cls: type, group: str, plural: str, entries: Any) -> dict[str, Any]:
    """Build an instance of every entry of a group, which must be a mapping of mappings."""
    if not isinstance(entries, Mapping):
        raise ValueError(f"`{group}` must be a mapping from names to {plural}, got {_kind(entries)}.")
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"`{group}.{name}` must be a mapping of fields, got {_kind(entry)}.")
    return {str(name): build_fields(cls, entry, f"`{group}.{name}`") for name, entry in entries.items()}


def build_fields(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Build an instance of a class of fields from plain values; refuse what is unknown, missing or of another kind."""
    check_known(values, _field_names(cls), f"in {where}")
    converted = {key: _convert(cls, key, value, where) for key, value in values.items() if value is not None}
    nothing = dataclasses.MISSING
    needed = [each.name for each in dataclasses.fields(cls) if each.default is each.default_factory is nothing]
    if missing := [name for name in needed if name not in converted]:
        raise ValueError(f"{where[0].upper()}{where[1:]} must give {', '.join(missing)}.")
    return cls(**converted)


def _convert(cls: type, key: str, value: Any, where: str) -> Any:
    """Convert `value` to the field's annotation: YAML reads 1e-4 as a text and 3 as a whole number."""
    annotation = cls.__annotations__[key]
    expected = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    kinds = [getattr(kind, "__name__", str(kind)) for kind in _alternatives(annotation)]
    is_bool = isinstance(value, bool)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"`{key}` in {where} must be at most 2**32, got {value}.")
    if isinstance(value, list) and "list[str]" in expected and not all(isinstance(item, str) for item in value):
        raise ValueError(f"`{key}` must be texts, got {value!r}. Put those into quotes that YAML reads otherwise.")
    texts = isinstance(value, dict) and "dict[str, str]" in str(annotation)
    is_of_texts = not texts or all(isinstance(inner, str) for inner in value.values())
    if (type(value).__name__ in kinds and is_of_texts) or ("Literal" in kinds and isinstance(value, str)):
        return value
    if "float" in kinds and isinstance(value, (int, str)) and not is_bool:
        with contextlib.suppress(ValueError):
            return float(value)
    if "str" in kinds and isinstance(value, (int, float)) and not is_bool:
        return str(value)
    remedy = " Write true or false." if "bool" in kinds else ""
    raise ValueError(f"`{key}` in {where} must be {expected}, got {value!r}.{remedy}")


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, each without its parameters: `list[str] | None` gives list and NoneType."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return [kind for member in typing.get_args(annotation) for kind in _alternatives(member)]
    return [origin or annotation]


def _set(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a top-level key may be written with dashes, as those of transformers may."""
    head, *path = key.split(".")
    keys = [head.replace("-", "_"), *path]
    if len(keys) > 2 and keys[0] in NAMED_ENTRIES and isinstance(recipe.get(keys[0]), dict):
        nearest = did_you_mean(keys[1], recipe[keys[0]])
        if keys[1] not in recipe[keys[0]] and nearest:
            raise ValueError(
                f"--{'.'.join(keys[:2])} names none of `{keys[0]}` ({', '.join(recipe[keys[0]])}).{nearest} Write a "
                "new one into the recipe itself."
            )
    place = recipe
    for step in keys[:-1]:
        inner = place.setdefault(step, {})
        if inner is True and step == "alpha_search":  # which means all of its defaults
            inner = place[step] = {}
        if isinstance(inner, list) and step == "eval_harness":
            inner = place[step] = {"tasks": inner}
        if not isinstance(inner, dict):
            raise ValueError(f"--{key} reaches into {step!r}, which is {_kind(inner)} in the recipe.")
        place = inner
    place[keys[-1]] = value


def _field_names(cls: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(cls) if entry.init]


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
