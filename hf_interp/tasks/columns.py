"""Columns of a corpus: the kinds that tasks want, and how a value that a file holds becomes one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import datasets

from hf_interp.tasks.dialogues import read_turns
from hf_interp.tasks.recipe import CorpusConfig

Kind = Literal["text", "any text", "prose", "words", "class", "classes", "number", "tags", "turns", "anything"]
"""The kinds of columns.

- text: a text that is not blank; "any text" may be; of "prose" rows, those that are blank are dropped.
- words: a list of texts; tags: a label for each of them.
- class: a label; classes: a list of labels; number.
- turns: a dialogue, as a list of mappings.
- anything: whatever the file has.
"""

Convert = Callable[[Any], Any]


class BadValueError(ValueError):
    """Says of a value what it is not, and what to do; who raises it need not know where the value stands."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def converter(kind: Kind, config: CorpusConfig, label_names: Sequence[str] | None, feature: Any = None) -> Convert:
    """Return a function from a value as the file has it to one of this kind; the function raises `BadValueError`.

    `feature` is what `datasets` knows of the column. The kind "class" is left to `hf_interp.tasks.loading`.
    """
    if kind in ("classes", "tags"):
        names = list(label_names or [])
        null = "leave it out" if kind == "classes" else None
        resolve = label_resolver(config, names, class_names(feature), null)
        return (lambda value: _multi_hot(value, resolve, len(names))) if kind == "classes" else _tagger(resolve, names)
    if kind == "turns":
        return lambda value: _turns(value, config)
    return {"text": _text, "any text": _any_text, "prose": _any_text, "words": _words, "number": _number}.get(
        kind, lambda value: value
    )


def class_names(feature: Any) -> list[str] | None:
    """Return the names of the classes of a column of labels, or of lists of labels, where `datasets` knows them."""
    inner = getattr(feature, "feature", feature)  # of a list
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def label_resolver(
    config: CorpusConfig, label_names: list[str], names: Sequence[str] | None, null: str | None = "drop its rows"
) -> Callable[[Any], int | None]:
    """Return a function from a label of the file to its index in `label_names`; `None` if its rows are to be dropped.

    Args:
        config: the corpus.
        label_names: the labels of the task.
        names: what `datasets` calls the labels of the file, where they are numbers.
        null: what a label is mapped to null for, as a remedy; `None` where every value needs a label.

    Raises (the function): `BadValueError` for a label that is not among them.
    """
    mapping = {str(key): value for key, value in (config.label_map or {}).items()}

    def resolve(value: Any) -> int | None:
        is_id = isinstance(value, int) and not isinstance(value, bool)
        found = names[value] if names is not None and is_id and 0 <= value < len(names) else value
        key = next((str(key) for key in (value, found) if str(key) in mapping), None)
        if key is not None:
            found = mapping[key]
            if found is None:
                return None
        if str(found) in label_names:
            return label_names.index(str(found))
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(label_names) and not mapping:
            return found
        raise BadValueError(
            f"the label {found!r}, which is not in `label_names` ({label_names})",
            f"Map it to one of them in `label_map`{f', or to null to {null}' if null else ''}; `label_map` is "
            f"{config.label_map}.",
        )

    return resolve


def is_iob2(label_names: Sequence[str]) -> bool:
    """Whether labels are tags of the scheme IOB2: O, and B- and I- with a kind.

    >>> is_iob2(["O", "B-PER", "I-PER"]), is_iob2(["NOUN", "VERB"])
    (True, False)
    """
    return any(name[:2] == "B-" for name in label_names) and all(
        name == "O" or name[:2] in ("B-", "I-") for name in label_names
    )


def check_tag_set(label_names: Sequence[str]) -> None:
    """Raise `ValueError` for a set of tags in which an entity could not begin: an I- without its B-."""
    for name in label_names if is_iob2(label_names) else []:
        if name.startswith("I-") and f"B-{name[2:]}" not in label_names:
            raise ValueError(
                f"`label_names` has {name!r} without 'B-{name[2:]}': in IOB2 every entity begins with B-. Add it."
            )


def first_fault(tags: Sequence[str]) -> int | None:
    """Return the place of the first tag that IOB2 does not allow: an I- that does not go on an entity of its kind.

    >>> first_fault(["O", "B-PER", "I-PER"])
    >>> first_fault(["O", "I-PER"])
    1
    """
    for place, tag in enumerate(tags):
        before = tags[place - 1] if place else "O"
        if tag.startswith("I-") and before not in (f"B-{tag[2:]}", tag):
            return place
    return None


_OTHER_COLUMN = "Remove such rows from the file, or name another column."


def _expect(what: str, value: Any, fits: bool) -> None:
    if not fits:
        text = repr(value)
        raise BadValueError(f"{text if len(text) <= 80 else text[:77] + '...'} where {what} belongs", _OTHER_COLUMN)


def _any_text(value: Any) -> str:
    _expect("a text", value, isinstance(value, str))
    return str(value)


def _text(value: Any) -> str:
    if not _any_text(value).strip():
        raise BadValueError("an empty text", _OTHER_COLUMN)
    return str(value)


def _words(value: Any) -> list[str]:
    is_list = isinstance(value, list) and len(value) > 0
    _expect("a list of words", value, is_list and all(isinstance(word, str) for word in value))
    return list(value)


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    _expect("a number", value, is_number and math.isfinite(value))
    return float(value)


def _multi_hot(value: Any, resolve: Callable[[Any], int | None], count: int) -> list[float]:
    _expect("a list of labels", value, isinstance(value, list))
    chosen = {resolve(label) for label in value}  # labels that are mapped to nothing are left out
    return [float(index in chosen) for index in range(count)]


def _tagger(resolve: Callable[[Any], int | None], label_names: list[str]) -> Convert:
    checks_scheme = is_iob2(label_names)

    def tags(value: Any) -> list[int]:
        _expect("a list of tags", value, isinstance(value, list))
        found = [resolve(tag) for tag in value]
        if None in found:
            raise BadValueError(
                f"the tag {value[found.index(None)]!r}, which `label_map` maps to null",
                "Every word needs a tag: map it to 'O' instead.",
            )
        named = [label_names[index] for index in found if index is not None]
        fault = first_fault(named) if checks_scheme else None
        if fault is not None:
            before = named[fault - 1] if fault else "the beginning"
            raise BadValueError(
                f"tags that are not IOB2: {named[fault]!r} at place {fault} follows {before!r}",
                f"Write 'B-{named[fault][2:]}' where an entity begins (IOB1 can be converted so).",
            )
        return [index for index in found if index is not None]

    return tags


def _turns(value: Any, config: CorpusConfig) -> list[Mapping[str, str]]:
    try:
        return read_turns(value, config.role_key, config.content_key, config.roles or {})
    except ValueError as error:
        raise BadValueError(str(error), _OTHER_COLUMN) from None
