"""Columns of a corpus: the kinds that tasks want, and how a value that a file holds becomes one."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets

from hf_interp.tasks.corpora.dialogues import pack_turn, plain_turns, read_json, read_turns, without_null
from hf_interp.tasks.corpora.labels import BadValueError, LabelResolver
from hf_interp.tasks.corpora.media import file_bytes, read_file
from hf_interp.tasks.recipe import CorpusConfig

Kind = Literal[
    "text",
    "any text",
    "prose",
    "words",
    "class",
    "classes",
    "number",
    "tags",
    "turns",
    "parts",
    "tools",
    "image",
    "images",
    "audio",
    "anything",
]
"""The kinds of columns.

- text: a text that is not blank; "any text" may be; of "prose" rows, those that are blank are dropped.
- words: a list of texts; tags: a label for each of them.
- class: a label; classes: a list of labels; number.
- turns: a dialogue, as a list of mappings; parts: one with places for images.
- tools: what its assistant may call, likewise, or as JSON.
- image, audio: a file of one, as bytes or a path; images: one, or a list of some.
- anything: whatever the file has.
"""

CELLS: tuple[Kind, ...] = ("text", "any text", "prose", "class")
"""Kinds that are read from the cells of a table as they are written."""

FILES: tuple[Kind, ...] = ("image", "audio")
"""Kinds that are files of their own."""

NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?")

Convert = Callable[[Any], Any]


def converter(
    kind: Kind, config: CorpusConfig, label_names: Sequence[str] | None, feature: Any = None, values: Iterable[Any] = ()
) -> Convert:
    """Return a function from a value as the file has it to one of this kind; the function raises `BadValueError`.

    `feature` is what `datasets` knows of the column, `values` are its labels, if they are known. The kind "class" is
    left to `hf_interp.tasks.corpora.loading`.
    """
    if kind in ("classes", "tags"):
        names = list(label_names or [])
        null = "leave it out" if kind == "classes" else None
        resolve = LabelResolver(config, names, class_names(feature), null=null)
        resolve.decide(values)
        return partial(_multi_hot, resolve, len(names)) if kind == "classes" else partial(_tags, resolve, names)
    if kind in ("turns", "parts"):
        return partial(_turns, config=config, takes_images=kind == "parts")
    if kind in FILES:
        return partial(read_file, kind=kind, folders=_folders(config))
    if kind == "images":
        return partial(_images, read_file, _folders(config))
    makers = {"text": _text, "any text": _any_text, "prose": _any_text, "words": _words, "number": _number}
    return {**makers, "tools": _tools}.get(kind, _as_is)


def content_reader(kind: Kind, config: CorpusConfig) -> Convert:
    """Return a function from a value as the file has it to what tells it from others: of a file its bytes alone."""
    folders = _folders(config)
    if kind in ("turns", "parts"):
        return plain_turns
    if kind == "images":
        return partial(_images, file_bytes, folders)
    return partial(file_bytes, kind=kind, folders=folders) if kind in FILES else _as_is


def _folders(config: CorpusConfig) -> list[Path]:
    """Return the folders of a corpus' files, to which paths in them are relative."""
    paths = [config.path] if isinstance(config.path, str) else config.path
    return [Path(path).expanduser().parent for path in paths]


def class_names(feature: Any) -> list[str] | None:
    """Return the names of the classes of a column of labels, or of lists of labels, where `datasets` knows them."""
    inner = getattr(feature, "feature", feature)  # of a list
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def is_wanted(value: Any, wanted: Any) -> bool:
    """Whether a value of a file is one that a recipe names: a text as it is written, all else by value.

    >>> is_wanted("no", "no"), is_wanted("01", 1), is_wanted("1.0", 1), is_wanted("True", True), is_wanted(2, "2")
    (True, False, True, True, True)
    """
    if isinstance(value, str) == isinstance(wanted, str):
        return bool(value == wanted)
    if isinstance(wanted, str):
        return value is not None and str(value).removesuffix(" 00:00:00") == wanted  # of dates too
    if wanted is None or isinstance(wanted, bool):
        return bool(value.lower() == str("" if wanted is None else wanted).lower())
    return NUMBER.fullmatch(value) is not None and float(value) == wanted


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


def _as_is(value: Any) -> Any:
    return value


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
    if blank := [place for place, word in enumerate(value) if not word.strip()]:
        raise BadValueError(
            f"an empty word at place {blank[0]} of {len(value)}", "Take it and its tag out of the file."
        )
    return list(value)


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    _expect("a number", value, is_number and math.isfinite(value))
    return float(value)


def _multi_hot(resolve: Callable[[Any], int | None], count: int, value: Any) -> list[float]:
    _expect("a list of labels", value, isinstance(value, list))
    chosen = {resolve(label) for label in value}  # labels that are mapped to nothing are left out
    return [float(index in chosen) for index in range(count)]


def _tags(resolve: Callable[[Any], int | None], label_names: list[str], value: Any) -> list[int]:
    _expect("a list of tags", value, isinstance(value, list))
    found = [resolve(tag) for tag in value]
    if None in found:
        raise BadValueError(
            f"the tag {value[found.index(None)]!r}, which `label_map` maps to null",
            "Every word needs a tag: map it to 'O' instead.",
        )
    named = [label_names[index] for index in found if index is not None]
    fault = first_fault(named) if is_iob2(label_names) else None
    if fault is not None:
        before = named[fault - 1] if fault else "the beginning"
        raise BadValueError(
            f"tags that are not IOB2: {named[fault]!r} at place {fault} follows {before!r}",
            f"Write 'B-{named[fault][2:]}' where an entity begins (IOB1 can be converted so).",
        )
    return [index for index in found if index is not None]


def _tools(value: Any) -> str:
    """Return the tools of a row as JSON, since their mappings have keys of their own in every row."""
    found = without_null(read_json(value or []))
    is_list = isinstance(found, list) and all(isinstance(tool, Mapping) for tool in found)
    _expect("a list of tools, or one as JSON,", value, is_list)
    return json.dumps(found, ensure_ascii=False)


def _images(read: Callable[[Any, str, Sequence[Path]], bytes], folders: Sequence[Path], value: Any) -> list[bytes]:
    return [read(each, "image", folders) for each in (value if isinstance(value, list) and value else [value])]


def _turns(value: Any, config: CorpusConfig, *, takes_images: bool) -> list[Mapping[str, str]]:
    keys = config.role_key, config.content_key, config.roles or {}
    try:
        return [pack_turn(turn) for turn in read_turns(value, *keys, takes_images=takes_images)]
    except ValueError as error:
        raise BadValueError(str(error), _OTHER_COLUMN) from None
