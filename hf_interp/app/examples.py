"""Sources of the slider's page: the two models, their curve, and texts or files to try, from a run or from flags."""

import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets

from hf_interp.app.models import check_task_name, describe_pair
from hf_interp.app.predictions import split_words
from hf_interp.reporting.curve import AlphaCurve, load_curve
from hf_interp.selection.choice import AlphaSearch
from hf_interp.tasks.corpora.loading import load_corpus
from hf_interp.tasks.corpora.media import file_suffix
from hf_interp.tasks.models import label_names_of
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import SELF, CorpusConfig, Recipe
from hf_interp.tasks.runs import load_run_recipe
from hf_interp.tasks.task import get_task
from hf_interp.utils.files import read_text
from hf_interp.utils.redaction import basename
from hf_interp.utils.run_folder import CURVE_NAME
from hf_interp.utils.task_info import MASK, TASK_INFOS, InputKind
from hf_interp.weights.model_folder import find_folder

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5
"""Texts of each side."""
MAX_CHARACTERS = 600
"""Longer texts of corpora are cut, so that a list of them can be read."""
PROMPT_WORDS, MASKED_WORDS = 12, 30
"""A causal language model goes on from so many words; a masked one gets so many."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text or the path of a file to try, the side that it is of ("" for neither), and its label or target."""

    text: str
    side: str = ""
    text_pair: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Subject of a page: M₀ and the task, which the recipe names, and M_θ (`finetuned`), a folder or a name on the Hub.

    `examples_are_data` says whether the texts to try are of the run's data, `has_pairs` whether the model takes two.
    """

    recipe: Recipe
    finetuned: str
    title: str
    curve: AlphaCurve | None = None
    examples: list[Example] = field(default_factory=list)
    examples_are_data: bool = False
    has_pairs: bool = False


def find_source(
    run: str | Path | None = None,
    *,
    base: str | None = None,
    finetuned: str | None = None,
    task: str | None = None,
    examples: str | Path | None = None,
    curve: str | Path | None = None,
    title: str | None = None,
    has_pairs: bool = False,
    **fields: Any,
) -> Source:
    """Gather the subject of a page from a run, from two models, or from both; what is named counts more than the run.

    Args:
        run: the folder of a trained run; names both models, the task and the data, and has the curve.
        base: M₀, a folder or a name on the Hub.
        finetuned: M_θ, the same; a whole model or an adapter.
        task: by default the run's, or that of M_θ's class.
        examples: a file, see `read_examples`.
        curve: its file; by default the run's.
        title: of the page.
        has_pairs: whether the model takes two texts; by default whether the run's corpora have two.
        fields: fields of the recipe, such as `label_names` or `max_length`; `None` leaves the recipe's or, without a
            run, the model's own labels and 128 tokens.
    """
    max_length = fields.get("max_length")
    if max_length is not None and max_length < 1:
        raise ValueError(f"`max_length` must be at least 1, got {max_length}.")
    if run is not None:
        folder = Path(run)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder of a run {str(run)!r}.")
        given = {"model_name_or_path": base, "task": task, **fields}
        recipe = parse_recipe(load_run_recipe(folder))[0]
        recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
        finetuned = finetuned or str(folder)
        if curve is None and (folder / CURVE_NAME).is_file():
            curve = folder / CURVE_NAME
    elif base is None or finetuned is None:
        raise ValueError(
            f"`{'base' if base is None else 'finetuned'}` must be given: name the folder of a run, or both M₀ (--base) "
            "and M_θ (--finetuned)."
        )
    else:
        recipe = describe_pair(base, finetuned, task=task, **fields)
    kind = check_task_name(recipe.task)
    has_pairs = has_pairs or any(corpus.text_pair_column for corpus in recipe.corpora.values())
    takes = TASK_INFOS[recipe.task].takes
    found = read_examples(examples, takes) if examples is not None else _recipe_examples(recipe)
    return Source(
        recipe=recipe,
        finetuned=str(finetuned),
        title=title or f"{_short(recipe.model_name_or_path)} → {_short(str(finetuned))}",
        curve=None if curve is None else load_curve(curve),
        examples=found or [Example(text=text) for text in TASK_INFOS[recipe.task].examples],
        examples_are_data=examples is None and bool(found),
        has_pairs=has_pairs and kind == "label",
    )


def read_examples(path: str | Path, takes: InputKind = "text") -> list[Example]:
    """Read examples from a file of JSON lines with `text` and, where known, `side`, `text_pair` and `label`.

    Where the model takes images or sound, `image` or `audio` is a path that is relative to the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of examples {str(path)!r}.")
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get(takes), str) or not row[takes].strip():
            raise ValueError(
                f"Line {number} of {str(path)!r} must be a JSON object with {'an' if takes != 'text' else 'a'} "
                f'`{takes}`, such as {{"{takes}": "...", "side": "domain"}}.'
            )
        text = row[takes] if takes == "text" else str(path.parent / row[takes])
        if takes != "text" and not Path(text).is_file():
            raise FileNotFoundError(f"Line {number} of {str(path)!r} names a file that is not there: {row[takes]!r}.")
        side = row.get("side", "")
        if side not in ("", "general", "domain"):
            raise ValueError(f"`side` in line {number} of {str(path)!r} must be general or domain, got {side!r}.")
        texts = {name: str(row[name]) for name in ("text_pair", "label") if row.get(name) is not None}
        found.append(Example(text=text, side=side, **texts))
    if not found:
        raise ValueError(f"The file of examples {str(path)!r} has no lines.")
    return found


def _short(name: str) -> str:
    """Return a name on the Hub, or the last part of a path."""
    return find_folder(name, "model").name if Path(name).is_dir() else basename(name) if "\\" in name else name


def _recipe_examples(recipe: Recipe) -> list[Example]:
    """Load texts of both sides from the data of a recipe; none where they are not there any more.

    Those of validation or evaluation count more, which the model has not learnt, than those of training.
    """
    search = recipe.alpha_search or AlphaSearch()
    found: list[Example] = []
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    for side, name in (("general", search.general), ("domain", search.domain)):
        candidates = [
            (name, group[name]) for group in (recipe.eval_corpora, recipe.validation_corpora) if name in group
        ]
        candidates += [(other, corpus) for other, corpus in recipe.corpora.items() if side in (corpus.side, other)]
        own = [(other, corpus) for other, corpus in candidates if corpus.objective is None and corpus.path != SELF]
        try:
            found += _load_examples(recipe, *own[0], side) if own else []
        except (ValueError, OSError) as error:
            logger.warning(f"There are no examples of the {side} side: {' '.join(str(error).split())}")
    return found


def _load_examples(recipe: Recipe, name: str, config: CorpusConfig, side: str) -> list[Example]:
    columns, labels = get_task(recipe.task).columns(recipe, config), recipe.label_names or []
    few = NUM_EXAMPLES if config.max_examples is None else min(NUM_EXAMPLES, config.max_examples)
    rows = load_corpus(name, replace(config, max_examples=few), columns, label_names_of(recipe))
    takes = TASK_INFOS[recipe.task].takes
    texts = [(_text(recipe.task, row) if takes == "text" else _file(row[takes], takes), row) for row in rows]
    return [
        Example(text=text, side=side, text_pair=str(row.get("text_pair") or ""), label=_label(row, labels))
        for text, row in texts
        if text
    ]


def _text(task: str, row: Mapping[str, Any]) -> str:
    """Return the text of an example as the model is to be asked."""
    if "tokens" in row:
        text = " ".join(row["tokens"])
    elif "messages" in row:
        turns = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
        text = turns[0] if turns else ""
    else:
        text = str(row["text"]).strip()
    answer = TASK_INFOS[task].answer
    if answer == "continuation" and "messages" not in row:
        return " ".join(text.split()[:PROMPT_WORDS])
    if answer == "masks":
        return mask_word(" ".join(text.split()[:MASKED_WORDS]))
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS].rsplit(maxsplit=1)[0]


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Return the folder of the files to try, which goes with the program."""
    return tempfile.TemporaryDirectory(prefix="hf_interp_")


def _file(data: bytes, kind: str) -> str:
    """Return the path of a file to try, of which a corpus has the bytes."""
    folder = Path(_folder().name)
    path = folder / f"{len(list(folder.iterdir()))}{file_suffix(data, kind)}"
    path.write_bytes(data)
    return str(path)


def mask_word(text: str) -> str:
    """Mask the longest word of a text, of several the last.

    >>> mask_word("The court dismissed the appeal.")
    'The court [MASK] the appeal.'
    """
    words = [word for word in split_words(text) if word.isalpha()]
    if not words:
        return f"{text} {MASK}"
    longest = max(reversed(words), key=len)
    before, _, after = text.rpartition(longest)
    return f"{before}{MASK}{after}"


def _label(row: Mapping[str, Any], label_names: Sequence[str]) -> str:
    label = row.get("label")
    if isinstance(label, int):
        return label_names[label]
    if isinstance(label, list):  # of several labels, which hold
        return ", ".join(name for name, holds in zip(label_names, label, strict=True) if holds)
    if label is not None:
        return f"{label:g}"
    target = str(row.get("target", row.get("text", "") if "audio" in row or "image" in row else ""))
    return target if len(target) <= MAX_CHARACTERS else f"{target[:MAX_CHARACTERS]} …"
