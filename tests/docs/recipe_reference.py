"""The reference of a recipe's fields, docs/recipe.md, from the dataclasses: `python tests/docs/recipe_reference.py`.

A field's meaning is its entry in the `Args:` of its class; its type and default are the dataclass's own.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainingArguments

from hf_interp.selection.choice import AlphaSearch
from hf_interp.tasks.recipe import CorpusConfig, HarnessConfig, ObjectiveConfig, Recipe
from hf_interp.training.config import InterpolationConfig

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
EXAMPLE = """\
model_name_or_path: distilbert-base-uncased
task: sequence-classification
label_names: [negative, positive]
output_dir: out
max_steps: 500
learning_rate: 2e-5
alpha: 0.5
alpha_search: true
corpora:
  general: {path: reviews.jsonl}
  domain: {path: news.csv, text_column: title, label_column: sentiment, max_examples: 300}
validation_corpora:
  general: {path: reviews-validation.jsonl}
  domain: {path: news-validation.csv, text_column: title, label_column: sentiment}
"""
TRAINING = {
    "output_dir": "folder of the model, the logs and `results.json`",
    "max_steps": "optimizer steps of the run; a mixture needs it",
    "learning_rate": "the highest learning rate",
    "per_device_train_batch_size": "examples of a step on one device",
    "gradient_accumulation_steps": "batches of a device in one optimizer step",
    "warmup_steps": "steps of warm-up, or their share of the run if below 1",
    "eval_strategy": "when to evaluate on `eval_corpora`: no, steps or epoch",
    "eval_steps": "steps from one evaluation to the next",
    "save_strategy": "when to save a checkpoint: no, steps, epoch or best",
    "save_steps": "steps from one checkpoint to the next",
    "seed": "seed of the weights of a new head, of dropout, and of the order of the data",
    "predict_with_generate": "generate in evaluation, for the metrics of sequence to sequence",
    "push_to_hub": "push the model to the Hub at the end",
}
"""The fields of the training arguments that most recipes set, and what they are."""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value"}
HEAD = f"""\
# The fields of a recipe

<!-- Written by tests/docs/recipe_reference.py from the dataclasses. Change them, and run it again. -->

A recipe is one YAML mapping. Its keys are the fields on this page and the fields of
[`Seq2SeqTrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer).

```yaml
{EXAMPLE}```

Every field is also a command-line flag, which overrides the file: `--learning_rate 1e-4`. Dots reach inside:
`--corpora.domain.path my.csv`. An unknown field is refused, and the nearest one named. In the tables, "–" stands for a
field that is not set, and `null` in a recipe leaves a field at its default.

α is the share of domain examples in a batch, from 0 (general) to 1 (domain). M₀ is the pretrained model.
"""
SECTIONS: dict[str, tuple[type, str]] = {
    "The model and its data": (Recipe, "The top level of a recipe."),
    "A corpus": (CorpusConfig, "An entry of `corpora`, `eval_corpora` or `validation_corpora`."),
    "An objective": (ObjectiveConfig, "An entry of `objectives`."),
    "The search for α of the weights": (
        AlphaSearch,
        "The settings of `alpha_search`. M_α = α·M_θ + (1 − α)·M₀ lies between M₀ and the trained model M_θ.",
    ),
    "Tasks of lm-eval": (HarnessConfig, "The settings of `eval_harness`; a list stands for `tasks` alone."),
    "α of the data, and the anchor": (
        InterpolationConfig,
        "Further fields of the top level. A field that only some anchors look at is refused with another.",
    ),
}


def page() -> str:
    """Return the page as Markdown."""
    sections = [section(title, text, fields(cls)) for title, (cls, text) in SECTIONS.items()]
    training = [[f"`{name}`", meaning] for name, meaning in TRAINING.items()]
    return "\n".join([HEAD, *sections, section("Training", "Of the training arguments most recipes set:", training)])


def section(title: str, text: str, rows: list[list[str]]) -> str:
    """Return a section with a table; rows have the field and its meaning, and may have type and default between."""
    header = ["field", "type", "default", "meaning"] if len(rows[0]) == 4 else ["field", "meaning"]
    table = [header, [":--"] * len(header), *rows]
    return "\n".join([f"## {title}", "", text, "", *("| " + " | ".join(row) + " |" for row in table), ""])


def fields(cls: type) -> list[list[str]]:
    """Return the rows of a class: field, type, default, meaning."""
    meanings = arguments(cls)
    return [
        [f"`{entry.name}`", *kind_and_default(cls, entry, meanings[entry.name][0]), meanings[entry.name][1]]
        for entry in own_fields(cls)
    ]


def own_fields(cls: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a class that it does not inherit from the training arguments."""
    inherited = {entry.name for entry in dataclasses.fields(Seq2SeqTrainingArguments)}
    entries = dataclasses.fields(cls)
    return [entry for entry in entries if not (issubclass(cls, Seq2SeqTrainingArguments) and entry.name in inherited)]


def arguments(cls: type) -> dict[str, tuple[str, str]]:
    """Return the `Args:` of a class's docstring: name to what stands in brackets behind it, and its text."""
    text = (inspect.getdoc(cls) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+)(?: \((.*?)\))?: (.*(?:\n      +.*)*)", text, flags=re.MULTILINE)
    return {name: (bracket, " ".join(meaning.split())) for name, bracket, meaning in entries}


def kind_and_default(cls: type, entry: dataclasses.Field[Any], bracket: str = "") -> list[str]:
    """Return the type and the default as a recipe writes them; a default that is settled late is the docstring's."""
    kind = kind_of(typing.get_type_hints(cls)[entry.name])
    said = re.search(r"defaults to (.*)", bracket)
    if entry.default is dataclasses.MISSING:
        return [kind, "**required**" if entry.default_factory is dataclasses.MISSING else "–"]
    if entry.default is None:
        return [kind, said[1] if said else "–"]
    shown = str(entry.default) if isinstance(entry.default, str) and entry.default else json.dumps(entry.default)
    return [kind, f"`{shown}`"]


def kind_of(annotation: Any) -> str:
    """Return what a type is called in a recipe.

    >>> kind_of(dict[str, Any] | str | None), kind_of(list[float])
    ('mapping or text', 'list of numbers')
    """
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(member) for member in members if member is not type(None)))
    if origin is typing.Literal:
        return " or ".join(map(str, members))
    if origin is list:
        return f"list of {kind_of(members[0])}s"
    if origin is dict or dataclasses.is_dataclass(annotation):
        return "mapping"
    return WORDS.get(annotation, "text")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
