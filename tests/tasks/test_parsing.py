"""Recipes and flags against the fields they set, and what is said about those that cannot be read."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainingArguments

from hf_interp.mixture.controllers import Guard
from hf_interp.tasks.parsing import lay_flags, load_recipe, parse_recipe, parse_training_arguments, read_flags
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.training.config import InterpolationConfig

MINIMAL: dict[str, Any] = {
    "model_name_or_path": "model",
    "corpora": {"general": {"path": "general.csv"}, "domain": {"path": "domain.csv"}},
    "max_steps": 10,
    "use_cpu": True,
}


def arguments(**values: Any) -> InterpolationConfig:
    return InterpolationConfig(**{"output_dir": "out", "max_steps": 10, "use_cpu": True, **values})


# Values.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("constant", 0.5, 0.5)),
        ({"alpha_schedule_type": "constant"}, ("constant", 0.5, 0.5)),
        ({"alpha_schedule_type": "cosine"}, ("cosine", 0.0, 1.0)),
        ({"alpha_start": 0.0}, ("linear", 0.0, 1.0)),
        ({"alpha_end": 0.75}, ("linear", 0.0, 0.75)),
        ({"alpha_initial_steps": 2}, ("linear", 0.0, 1.0)),
        ({"alpha_target_steps": 0.25}, ("linear", 0.0, 1.0)),
        ({"alpha_controller": "guard"}, ("linear", 0.0, 1.0)),
    ],
)
def test_alpha_is_constant_unless_something_of_it_is_given(
    given: dict[str, Any], expected: tuple[str, float, float]
) -> None:
    args = arguments(**given)
    assert (args.alpha_schedule_type, args.alpha_start, args.alpha_end) == expected
    assert args.build_alpha_schedule()(1.0) == expected[2]


def test_a_recipe_is_fields_of_both_halves() -> None:
    recipe, args = parse_recipe({**MINIMAL, "task": "sequence-classification", "seed": 3, "alpha_end": 0.5})
    assert recipe == Recipe(
        model_name_or_path="model",
        corpora={
            "general": CorpusConfig(path="general.csv", side="general"),
            "domain": CorpusConfig(path="domain.csv", side="domain"),
        },
    )
    assert (args.max_steps, args.seed, args.alpha_end, args.alpha_start) == (10, 3, 0.5, 0.0)
    assert args.to_dict() == arguments(output_dir=args.output_dir, seed=3, alpha_end=0.5).to_dict()


def test_flags_win_over_the_file(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe({**MINIMAL, "learning_rate": 0.5, "alpha_end": 0.25})
    flags = ["--learning_rate", "1e-4", "--alpha-end=0.75", "--bf16", "false", "--log_corpus_loss=no"]
    _, args = parse_recipe(load_recipe(path, flags))
    assert (args.learning_rate, args.alpha_end, args.bf16, args.log_corpus_loss) == (1e-4, 0.75, False, False)
    assert args.max_steps == 10


def test_dotted_flags_reach_into_corpora(write_recipe: Callable[..., Path]) -> None:
    flags = ["--corpora.domain.path", "[a.csv, b.csv]", "--corpora.domain.where={kind: [x, 1]}"]
    flags += ["--corpora.domain.streaming", "--eval_corpora.new.path=c.csv", "--corpora.general.share", "1"]
    recipe, _ = parse_recipe(load_recipe(write_recipe(MINIMAL), flags))
    domain = CorpusConfig(path=["a.csv", "b.csv"], side="domain", where={"kind": ["x", 1]}, streaming=True)
    assert recipe.corpora["domain"] == domain
    assert recipe.corpora["general"] == CorpusConfig(path="general.csv", side="general", share=1.0)
    assert recipe.eval_corpora == {"new": CorpusConfig(path="c.csv")}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        (["--key", "value"], [("key", "value")]),
        (["--key=value"], [("key", "value")]),
        (["--key=a=b"], [("key", "a=b")]),
        (["--key"], [("key", True)]),
        (["--one", "--two", "2"], [("one", True), ("two", 2)]),
        (["--key", "-1"], [("key", -1)]),
        (["--key=--value"], [("key", "--value")]),
        (["--key", "null"], [("key", None)]),
        (["--key=1", "--key=2"], [("key", 1), ("key", 2)]),
    ],
)
def test_flags_are_read_as_yaml(flags: list[str], expected: list[tuple[str, Any]]) -> None:
    assert read_flags(flags) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["learning_rate", "1"], "Expected a flag such as --learning_rate 1e-4, got 'learning_rate'"),
        (["--a", "1", "2"], "Expected a flag .*, got '2'"),
        (["-a"], "Expected a flag .*, got '-a'"),
        (["--"], "Expected a flag .*, got '--'"),
        (["--where", "{a: "], r"The value of --where is not YAML: '\{a: '"),
        (["--output_dir", ""], "--output_dir must have a value, got ''"),
        (["--output_dir= "], "--output_dir must have a value, got ' '"),
        (["--seed.x", "1"], r"--seed\.x reaches into 'seed', which is a int in the recipe"),
    ],
)
def test_flags_that_cannot_be_are_refused(write_recipe: Callable[..., Path], flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write_recipe({**MINIMAL, "seed": 1}), flags)


def test_a_flag_reaches_into_a_search_with_all_its_defaults(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe({**MINIMAL, "alpha_search": True}), ["--alpha_search.objective", "mean"])
    assert recipe["alpha_search"] == {"objective": "mean"}


def test_texts_that_are_numbers_become_numbers(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(MINIMAL)
    path.write_text(path.read_text() + "learning_rate: 1e-4\nalpha_start: 2e-1\nmax_grad_norm: 3\n")
    path.write_text(path.read_text().replace("path: domain.csv", "{path: domain.csv, share: 1e+0, max_passes: 2}"))
    raw = load_recipe(path)
    assert raw["learning_rate"] == "1e-4"  # YAML 1.1 wants a dot in it
    recipe, args = parse_recipe(raw)
    assert (args.learning_rate, args.alpha_start, args.max_grad_norm) == (1e-4, 0.2, 3.0)
    assert type(args.max_grad_norm) is float
    assert (recipe.corpora["domain"].share, recipe.corpora["domain"].max_passes) == (1.0, 2.0)


def test_numbers_become_texts_where_a_text_is_due() -> None:
    corpora = {"domain": {"path": 2024, "side": "domain", "text_column": 1}}
    recipe, _ = parse_recipe({**MINIMAL, "corpora": corpora, "model_revision": 1.5})
    assert (recipe.corpora["domain"].path, recipe.corpora["domain"].text_column) == ("2024", "1")
    assert recipe.model_revision == "1.5"


def test_null_stands_for_the_default() -> None:
    corpora = {"domain": {"path": "a.csv", "text_column": None, "max_examples": None}}
    recipe, args = parse_recipe({**MINIMAL, "corpora": corpora, "peft": None, "max_length": None, "alpha_end": None})
    assert recipe.corpora["domain"] == CorpusConfig(path="a.csv", side="domain")
    assert (recipe.peft, recipe.max_length, args.alpha_end) == (None, 128, 0.5)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("report_to", ["tensorboard", "none"], ["tensorboard", "none"]),
        ("report_to", "tensorboard", ["tensorboard"]),
        ("report_to", [], []),
        ("include_for_metrics", ["inputs", "loss"], ["inputs", "loss"]),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
        ("lr_scheduler_kwargs", {"min_lr": "1e-5", "name": "e-5"}, {"min_lr": 1e-5, "name": "e-5"}),
        ("liger_kernel_config", {"rope": False}, {"rope": False}),
    ],
)
def test_lists_and_mappings_of_the_host(field: str, value: Any, expected: Any) -> None:
    args = parse_training_arguments({"output_dir": "out", "use_cpu": True, field: value})
    assert getattr(args, field) == expected


@pytest.mark.parametrize(
    "value",
    [{"rate": 1e-05}, {"rate": "1e-5"}, '{"rate": 1e-05}', "{rate: 1e-5}", "rate: 0.00001"],
)
def test_schedule_arguments_as_mapping_json_or_yaml(value: Any) -> None:
    given = {"output_dir": "out", "use_cpu": True, "alpha_schedule_type": "exponential"}
    assert parse_training_arguments({**given, "alpha_schedule_kwargs": value}).alpha_schedule_kwargs == {"rate": 1e-5}
    assert InterpolationConfig(**given, alpha_schedule_kwargs=value).alpha_schedule_kwargs == {"rate": 1e-5}


def test_schedule_arguments_hold_lists() -> None:
    kwargs = {"points": [[0, 0.1], [0.5, "5e-1"], [1, 1]]}
    schedule = arguments(alpha_schedule_type="piecewise", alpha_schedule_kwargs=kwargs).build_alpha_schedule()
    assert [schedule(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.1, 0.3, 0.5, 1.0])


@pytest.mark.parametrize(("word", "expected"), [("no", "no"), ("false", "no"), ("'no'", "no"), ("steps", "steps")])
def test_a_bare_no_is_the_strategy_of_that_name(write_recipe: Callable[..., Path], word: str, expected: str) -> None:
    path = write_recipe(MINIMAL)
    path.write_text(path.read_text() + f"save_strategy: {word}\nresume_from_checkpoint: no\n")
    _, args = parse_recipe(load_recipe(path, [f"--eval_strategy={word}"]))
    assert (args.save_strategy, args.eval_strategy) == (expected, expected)
    assert args.resume_from_checkpoint == "no"


def test_words_dates_and_codes_are_texts_as_they_are_written(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe({**MINIMAL, "label_names": ["a"]})
    path.write_text(path.read_text().replace("path: domain.csv", "{path: domain.csv, where: {lang: [no, ON, 01]}}"))
    path.write_text(path.read_text().replace("- a\n", "- no\n- yes\n- 2020-01-01\n- 1:30\n"))
    flags = ["--corpora.general.where={day: 2020-01-01, lang: no, keep: true, n: 1}"]
    recipe, _ = parse_recipe(load_recipe(path, flags))
    assert recipe.corpora["domain"].where == {"lang": ["no", "ON", "01"]}
    assert recipe.corpora["general"].where == {"day": "2020-01-01", "lang": "no", "keep": True, "n": 1}
    assert recipe.label_names == ["no", "yes", "2020-01-01", "1:30"]
    with pytest.raises(ValueError, match=r"`whole_word_mask` in the recipe must be bool, got 'no'\. Write true or f"):
        parse_recipe(load_recipe(path, ["--whole_word_mask=no"]))


# Files.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "must be a mapping of fields, got nothing"),
        (b"- a\n- b\n", "must be a mapping of fields, got a list"),
        (b"words", "must be a mapping of fields, got a str"),
        (b"max_steps: 1\x00", "is not YAML: unacceptable character #x0000"),
        (b"a: [", "is not YAML"),
        (b"a: 1\n b: 2\n", "is not YAML"),
        (
            b"a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n",
            r"is not YAML: the key 'c' is given twice, again in line 5",
        ),
        (b"\xff\xfe\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="There is no recipe"):
        load_recipe(tmp_path / name)


# Fields.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, r"Unknown field 'learning_rat' in the recipe\. Did you mean 'learning_rate'\?"),
        ({"alpha_ende": 1}, r"Unknown field 'alpha_ende' in the recipe\. Did you mean 'alpha_end'\?"),
        ({"corporae": {}}, r"Unknown field 'corporae' in the recipe\. Did you mean 'corpora'\?"),
        ({"zzzzzz": 1}, r"Unknown field 'zzzzzz' in the recipe\.$"),
        ({1: 2}, r"Unknown field 1 in the recipe\.$"),
        (
            {"corpora": {"domain": {"path": "a", "text_colum": "b"}}},
            r"Unknown field 'text_colum' in `corpora\.domain`\. Did you mean 'text_column'\?",
        ),
        (
            {"eval_corpora": {"law": {"path": "a", "spilt": "b"}}},
            r"Unknown field 'spilt' in `eval_corpora\.law`\. Did you mean 'split'\?",
        ),
        ({"_n_gpu": 1}, "Unknown field '_n_gpu'"),
        ({"no_log_corpus_loss": True}, "Unknown field 'no_log_corpus_loss'"),
        ({"model_name_or_path": None}, "The recipe must give model_name_or_path"),
        ({"corpora": {}}, "`corpora` must name at least one corpus, got none"),
        ({"corpora": {"domain": {}}}, r"`corpora\.domain` must give path"),
        ({"corpora": ["a.csv"]}, "`corpora` must be a mapping from names to corpora, got a list"),
        ({"corpora": {"domain": "a.csv"}}, r"`corpora\.domain` must be a mapping of fields, got a str"),
        ({"max_length": "many"}, "`max_length` in the recipe must be int, got 'many'"),
        ({"max_length": True}, "`max_length` in the recipe must be int, got True"),
        ({"max_length": 10**30}, r"`max_length` in the recipe must be at most 2\*\*32, got 10{30}"),
        ({"max_steps": 2**63}, r"`max_steps` must be at most 2\*\*32, got 9223372036854775808"),
        ({"warmup_steps": float("nan")}, "`warmup_steps` must be a finite number, got nan"),
        ({"learning_rate": "inf"}, "`learning_rate` must be a finite number, got inf"),
        ({"label_names": [True, "a"]}, r"`label_names` must be texts, got \[True, 'a'\]"),
        ({"label_names": [0, "B-X"]}, r"`label_names` must be texts, got \[0, 'B-X'\]"),
        ({"corpora": {"domain": {"path": [None]}}}, r"`path` must be texts, got \[None\]"),
        ({"max_length": 1.5}, "`max_length` in the recipe must be int, got 1.5"),
        ({"label_names": "negative"}, r"`label_names` in the recipe must be list\[str\] \| None, got 'negative'"),
        ({"model_name_or_path": ["a"]}, r"`model_name_or_path` in the recipe must be str, got \['a'\]"),
        ({"trust_remote_code": "yes"}, "`trust_remote_code` in the recipe must be bool, got 'yes'"),
        ({"learning_rate": "fast"}, "--learning_rate.*invalid float value: 'fast'"),
        ({"learning_rate": [0.1]}, r"`learning_rate` must not be a list, got \[0\.1\]"),
        ({"report_to": {"a": 1}}, r"`report_to` must not be a dict, got \{'a': 1\}"),
        ({"use_cpu": "maybe"}, "--use_cpu.*Truthy value expected: got maybe"),
        ({"max_steps": 1.5}, "--max_steps.*invalid int value: '1.5'"),
        ({"save_strategy": "sometimes"}, "sometimes"),
    ],
)
def test_fields_that_cannot_be_are_refused(changes: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe({**MINIMAL, **changes})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"corpora": MINIMAL["corpora"]}, "The recipe must give model_name_or_path"),
        ({"model_name_or_path": "m"}, "The recipe must give corpora"),
        ({}, "The recipe must give model_name_or_path, corpora"),
    ],
)
def test_missing_fields_are_named(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"share": "half"}, r"`share` in `corpora\.domain` must be float \| dict\[str, float\] \| None, got 'half'"),
        ({"share": True}, r"`share` in `corpora\.domain` must be float \| dict\[str, float\] \| None, got True"),
        ({"max_examples": "1e3"}, r"`max_examples` in `corpora\.domain` must be int \| None, got '1e3'"),
        ({"where": "x"}, r"`where` in `corpora\.domain` must be dict\[str, Any\] \| None, got 'x'"),
        ({"side": "left"}, r"`corpora\.domain\.side` must be general or domain, got 'left'"),
        ({"side": 1}, r"`side` in `corpora\.domain` must be"),
    ],
)
def test_values_of_the_wrong_kind_in_a_corpus_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe({**MINIMAL, "corpora": {"domain": {"path": "a.csv", **entry}}})


def test_a_side_is_needed_where_the_name_is_none() -> None:
    with pytest.raises(ValueError, match=r"`corpora\.law\.side` must be general or domain, got None"):
        parse_recipe({**MINIMAL, "corpora": {"law": {"path": "a.csv"}}})
    corpora = {"law": {"path": "a.csv", "side": "domain"}, "domain": {"path": "b.csv", "side": "general"}}
    recipe, _ = parse_recipe({**MINIMAL, "corpora": corpora, "eval_corpora": {"law": {"path": "a.csv"}}})
    assert [corpus.side for corpus in recipe.corpora.values()] == ["domain", "general"]
    assert recipe.eval_corpora["law"].side is None


# α.


ALPHAS = [(0, True), (1, True), (-0.01, False), (1.01, False), (float("nan"), False)]


@pytest.mark.parametrize(
    ("field", "value", "fits"),
    [
        *((field, value, fits) for field in ("alpha_start", "alpha_end") for value, fits in ALPHAS),
        ("anchor_strength", 0.0, True),
        ("anchor_strength", 1e6, True),
        ("anchor_strength", -1e-9, False),
        ("anchor_strength", float("inf"), False),
        ("anchor_strength", float("nan"), False),
        ("anchor_temperature", 1e-9, True),
        ("anchor_temperature", 0.0, False),
        ("anchor_temperature", float("inf"), False),
        ("anchor_direction", "reverse", True),
        ("anchor_direction", "backward", False),
        ("anchor_on", "general", True),
        ("anchor_on", "domain", False),
    ],
)
def test_values_have_bounds(field: str, value: Any, fits: bool) -> None:
    if fits:
        assert getattr(arguments(anchor="distill", **{field: value}), field) == value
        return
    rule = r"an α in \[0, 1\]" if field.startswith("alpha") else ".*"
    with pytest.raises(ValueError, match=rf"`{field}` must be {rule}, got '?{value}"):
        arguments(anchor="distill", **{field: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha_schedule_type": "linaer"}, r"`alpha_schedule_type` must be one of constant, .*'linaer'.*'linear'"),
        ({"alpha_schedule_kwargs": {"rate": 1}}, "The linear schedule takes no arguments, got 'rate'"),
        ({"alpha_schedule_type": "polynomial", "alpha_schedule_kwargs": {"pover": 1}}, "Did you mean 'power'"),
        (
            {"alpha_schedule_type": "exponential", "alpha_schedule_kwargs": {"rate": "fast"}},
            "finite number, got 'fast'",
        ),
        (
            {"alpha_schedule_kwargs": "rate"},
            r"`alpha_schedule_kwargs` must be a mapping such as \{rate: 3\.0\}, got 'rate'",
        ),
        ({"alpha_schedule_kwargs": "{rate"}, "`alpha_schedule_kwargs` must be a mapping"),
        ({"lr_scheduler_kwargs": "9"}, r"^`lr_scheduler_kwargs` must be a mapping, got '9'\.$"),
        ({"alpha_schedule_kwargs": {"start": 0.5}}, "must not hold 'start'; set `alpha_start` instead"),
        ({"alpha_schedule_kwargs": {"max_steps": 5}}, "must not hold 'max_steps'; set `max_steps` instead"),
        ({"alpha_initial_steps": -1}, "`initial_steps` must be a whole number of steps or a share below 1, got -1"),
        ({"alpha_target_steps": 1.5}, r"`target_steps` must be a whole number of steps or a share below 1, got 1\.5"),
        ({"alpha_controller": "gaurd"}, "Unknown controller 'gaurd'.*Did you mean 'guard'"),
        ({"alpha_controller": "guard", "alpha_controller_kwargs": {"tolerance": 0}}, "`tolerance`.*positive, got 0"),
        (
            {"alpha_controller": "guard", "alpha_controller_kwargs": {"gain": 1}},
            "Unknown field 'gain' for the controller 'guard'",
        ),
        ({"alpha_controller_kwargs": {"gain": 1}}, "need an `alpha_controller`"),
        ({"alpha_update_steps": 0}, "`alpha_update_steps` must be at least 1, got 0"),
        ({"alpha_update_lag": 0}, "`alpha_update_lag` must be at least 1, got 0"),
        ({"mixture_unit": "words"}, "`mixture_unit` must be 'examples' or 'tokens', got 'words'"),
        (
            {"anchor": "destill"},
            r"`anchor` must be one of distill, l2sp, got 'destill'\. Did you mean 'distill'\?",
        ),
        ({"anchor_strength": 2.0}, r"`anchor_strength` \(2\.0\) needs `anchor` to be distill or l2sp, got None"),
        ({"anchor": "l2sp", "anchor_temperature": 2.0}, r"`anchor_temperature` \(2\.0\) needs .* distill, got 'l2sp'"),
        ({"anchor": "l2sp", "anchor_on": "general"}, r"`anchor_on` \(general\) needs `anchor` to be distill"),
        ({"anchor": "distill", "anchor_exclude": ["a"]}, r"`anchor_exclude` .* needs `anchor` to be l2sp"),
        ({"anchor": "l2sp", "anchor_alpha_schedule": {"end": 1}}, "must hold the `type` of a schedule"),
        ({"anchor": "l2sp", "anchor_alpha_schedule": {"type": "linear", "max_steps": 3}}, "must hold the `type`"),
        ({"anchor": "l2sp", "anchor_alpha_schedule": "linaer"}, "'linaer'.*Did you mean 'linear'"),
        ({"anchor": "l2sp", "anchor_alpha_schedule": "[linear]"}, "`anchor_alpha_schedule` must be a mapping"),
        ({"anchor": "l2sp", "anchor_alpha_schedule": {"type": "linear", "pwer": 2}}, "takes no arguments, got 'pwer'"),
        ({"anchor": "l2sp", "anchor_alpha_schedule": {"type": "linear", "initial_steps": 11}}, "must fit into"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(**values)


def test_phases_fit_into_the_run() -> None:
    arguments(alpha_initial_steps=4, alpha_target_steps=6)
    with pytest.raises(ValueError, match=r"initial phase \(4 steps\).*target phase \(7 steps\).*max_steps=10"):
        arguments(alpha_initial_steps=4, alpha_target_steps=7)
    arguments(alpha_initial_steps=0.5, alpha_target_steps=0.5)
    with pytest.raises(ValueError, match=r"\(6 steps\).*\(5 steps\).*Shorten a phase or raise max_steps"):
        arguments(alpha_initial_steps=0.6, alpha_target_steps=0.5)


def test_the_fields_build_the_schedule_they_describe() -> None:
    args = arguments(max_steps=11, alpha_start=0.2, alpha_end=0.8, alpha_initial_steps=3, alpha_target_steps=0.3)
    schedule = args.build_alpha_schedule()  # held at steps 0, 1, 2 and at 7, 8, 9, 10
    expected = [0.2, 0.2, 0.2, 0.32, 0.44, 0.56, 0.68, 0.8, 0.8, 0.8, 0.8]
    assert [schedule(step / 10) for step in range(11)] == pytest.approx(expected)
    assert [args.build_alpha_schedule(max_steps=21)(step / 20) for step in (2, 3, 13, 14)] == pytest.approx(
        [0.2, 0.2 + 0.6 / 12, 0.8 - 0.6 / 12, 0.8]
    )


def test_a_constant_alpha_has_one_field() -> None:
    for args in (arguments(alpha=0.3), arguments(alpha_schedule_type="constant", alpha_end=0.3)):
        assert args.build_alpha_schedule()(0.7) == 0.3
        assert (args.alpha_schedule_type, args.alpha_start, args.alpha_end) == ("constant", 0.3, 0.3)
        assert dataclasses.replace(args).build_alpha_schedule()(0.7) == 0.3
    assert arguments().build_alpha_schedule()(0.7) == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must be an α in \[0, 1\], got 1\.5"),
        (
            {"alpha": 0.5, "alpha_end": 0.75},
            r"`alpha` \(0\.5\) holds α constant, which `alpha_end` \(0\.75\) contradicts",
        ),
        ({"alpha": 0.5, "alpha_start": 0.0}, r"which `alpha_start` \(0\.0\) contradicts\. Leave one of them out"),
        ({"alpha": 0.5, "alpha_schedule_type": "linear"}, r"which `alpha_schedule_type` \(linear\) contradicts"),
        ({"alpha": 0.5, "alpha_initial_steps": 2}, r"which `alpha_initial_steps` \(2\) contradicts"),
        ({"alpha": 0.5, "alpha_schedule_kwargs": {"rate": 3.0}}, "The constant schedule takes value, got 'rate'"),
        ({"alpha": 0.5, "alpha_schedule_kwargs": {"value": 1.0}}, "must not hold 'value'; set `alpha` instead"),
        ({"alpha_schedule_type": "constant", "alpha_schedule_kwargs": {"value": 1.0}}, "set `alpha` instead"),
        ({"alpha_schedule_type": "constant", "alpha_start": 0.2}, "`alpha_start` 0.2 and `alpha_end` 0.5. Set `alpha`"),
    ],
)
def test_what_contradicts_a_constant_alpha_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(**fields)


def test_a_flag_of_alpha_takes_the_place_of_what_the_recipe_says() -> None:
    rise = {"alpha_schedule_type": "cosine", "alpha_start": 0.2, "alpha_end": 1.0, "max_steps": 4}
    assert lay_flags(dict(rise), ["--alpha", "0.5"]) == {"alpha": 0.5, "max_steps": 4}
    assert lay_flags({"alpha": 0.5}, ["--alpha_schedule_type", "linear", "--alpha_end", "0.75"]) == {
        "alpha_schedule_type": "linear",
        "alpha_end": 0.75,
    }
    assert lay_flags({"alpha": 0.5}, ["--alpha_end", "0.75"]) == {"alpha": 0.5, "alpha_end": 0.75}  # to be refused


def test_the_fields_build_the_controller_they_describe() -> None:
    assert arguments().build_alpha_controller() is None
    for kwargs in ("{tolerance: 1e-1, baseline: 2}", {"tolerance": 0.1, "baseline": 2.0}):
        guard = arguments(alpha_controller="guard", alpha_controller_kwargs=kwargs).build_alpha_controller()
        assert (type(guard), guard.tolerance, guard.baseline) == (Guard, 0.1, 2.0)


# The anchor.


def test_anchors_are_fields_and_flags(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe({**MINIMAL, "anchor": "l2sp", "anchor_exclude": ["classifier.*", "head"]})
    flags = ["--anchor_strength", "2e-1", "--anchor_alpha_schedule.type=cosine", "--anchor-alpha-schedule.end", "0.5"]
    _, args = parse_recipe(load_recipe(path, [*flags, "--log_loss_gap"]))
    assert (args.anchor, args.anchor_strength, args.anchor_exclude) == ("l2sp", 0.2, ["classifier.*", "head"])
    assert (args.anchor_alpha_schedule, args.log_loss_gap) == ({"type": "cosine", "end": 0.5}, True)
    _, args = parse_recipe(load_recipe(path, ["--anchor_exclude", "[a, b]"]))
    assert args.anchor_exclude == ["a", "b"]
    _, args = parse_recipe(load_recipe(path, ["--anchor_exclude", "classifier*"]))
    assert args.anchor_exclude == ["classifier*"]
    flags = ["--anchor", "distill", "--anchor_exclude=null", "--anchor_on=general", "--anchor_temperature=2"]
    _, args = parse_recipe(load_recipe(path, [*flags, "--anchor_direction=reverse"]))
    found = (args.anchor, args.anchor_exclude, args.anchor_on, args.anchor_temperature, args.anchor_direction)
    assert found == ("distill", None, "general", 2.0, "reverse")


@pytest.mark.parametrize("value", [{"type": "constant", "value": "5e-1"}, "{type: constant, value: 0.5}"])
def test_an_anchor_may_have_a_schedule_of_its_own(value: Any) -> None:
    for args in (
        arguments(anchor="l2sp", anchor_alpha_schedule=value),
        parse_training_arguments(
            {"output_dir": "out", "use_cpu": True, "anchor": "l2sp", "anchor_alpha_schedule": value}
        ),
    ):
        schedule = args.build_anchor_schedule(max_steps=10)
        assert schedule is not None
        assert schedule(0.3) == 0.5
        assert InterpolationConfig(**args.to_dict()).to_dict() == args.to_dict()


def test_a_schedule_may_be_named_alone_and_have_phases() -> None:
    assert arguments().build_anchor_schedule(max_steps=10) is None
    schedule = arguments(anchor="distill", anchor_alpha_schedule="linear").build_anchor_schedule(max_steps=10)
    assert schedule is not None
    assert schedule(0.3) == 0.3
    phases = {"type": "linear", "initial_steps": 0.5}
    schedule = arguments(anchor="distill", anchor_alpha_schedule=phases).build_anchor_schedule(max_steps=11)
    assert schedule is not None
    assert [schedule(step / 10) for step in (4, 5, 10)] == pytest.approx([0.0, 0.0, 1.0])


# The configuration as the host's.


def test_a_configuration_survives_a_round_trip() -> None:
    args = arguments(alpha_schedule_type="exponential", alpha_schedule_kwargs={"rate": 3.0}, alpha_target_steps=0.25)
    again = InterpolationConfig(**args.to_dict())
    assert again.to_dict() == args.to_dict()
    changed = dataclasses.replace(args, alpha_end=0.5)
    assert changed.to_dict() == {**args.to_dict(), "alpha_end": 0.5}
    with pytest.raises(ValueError, match=r"`alpha_end` must be an α in \[0, 1\], got 2"):
        dataclasses.replace(arguments(), alpha_end=2)


def test_added_fields_have_help_and_documentation() -> None:
    host = {entry.name for entry in dataclasses.fields(Seq2SeqTrainingArguments)}
    added = [entry for entry in dataclasses.fields(InterpolationConfig) if entry.name not in host]
    assert [entry.name for entry in added] == [
        *("alpha", "alpha_schedule_type", "alpha_schedule_kwargs", "alpha_start", "alpha_end"),
        *("alpha_initial_steps", "alpha_target_steps", "mixture_path", "mixture_unit", "mixture_epoch"),
        *("mixture_sampling", "stopping_strategy", "length_window", "alpha_controller"),
        *("alpha_controller_kwargs", "alpha_update_steps", "alpha_update_lag", "log_corpus_loss", "anchor"),
        *("anchor_strength", "anchor_temperature", "anchor_direction", "anchor_on", "anchor_alpha_schedule"),
        *("anchor_exclude", "log_loss_gap", "distill_temperature", "adversarial", "adversarial_strength"),
        *("adversarial_follows", "adversarial_alpha_schedule", "adversarial_epsilon", "adversarial_steps"),
        *("adversarial_step_size", "average_from", "dp_epsilon", "dp_delta", "dp_max_grad_norm"),
    ]
    for entry in added:
        assert entry.metadata["help"].endswith(".")
        assert f"\n        {entry.name} (`" in str(InterpolationConfig.__doc__)


def test_every_field_of_a_corpus_and_a_recipe_is_documented() -> None:
    for kind in (CorpusConfig, Recipe):
        for entry in dataclasses.fields(kind):
            assert re.search(rf"\b{entry.name}\b", str(kind.__doc__)), entry.name
