"""Facts about a corpus before there is a recipe: how its files are to be read, its columns, and what they hold."""

import codecs
import csv
import itertools
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hf_interp.tasks.corpora.columns import class_names
from hf_interp.tasks.corpora.corpus_files import file_format, is_url, load_rows, open_file, quiet_bars
from hf_interp.tasks.corpora.dialogues import plain_turns
from hf_interp.tasks.corpora.loading import first_rows, undecoded
from hf_interp.tasks.recipe import CorpusConfig

ColumnKind = Literal["text", "label", "number", "date", "id", "list", "turns", "image", "audio", "empty"]
"""A label is one of few short values; a list is of words, of their tags, or of several labels. Of images and sound the
values are not kept."""

MOST_ROWS = 50_000  # that are looked at
MOST_LABELS = 500
LONGEST_LABEL = 60  # characters
HEAD_BYTES = 1 << 20
ID = re.compile(r"[!-~]*\d[!-~]*")
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
SUFFIXES_OF: dict[ColumnKind, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus"),
}
SOUND = re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xe3\xf2\xf3\xfa\xfb]", re.DOTALL)
"""How files of sound begin."""
DATE = re.compile(r"(\d{4}-\d\d?-\d\d?|\d\d?[./]\d\d?[./]\d{4}|\d{4}/\d\d?/\d\d?)([T ]\d\d?:\d\d.*)?")
WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\s\u2e80-\u9fff\uac00-\ud7af]+")
LEAST_TEXT = 6  # words of a cell that is a text, and no name
TAG = re.compile(r"O|[BIESLU]-\S+")


class Column(NamedTuple):
    """A column of a file: what its values that are not blank are."""

    name: str
    kind: ColumnKind
    values: list[Any]
    blank: int
    rows: Sequence[int] = ()
    """Of the values, counted from 0 as the corpus is read."""

    def counts(self) -> Counter[str]:
        """Count the different values; of lists, those in them."""
        values = itertools.chain.from_iterable(self.values) if self.kind == "list" else self.values
        return Counter(map(str, values))

    def length(self) -> float:
        """Return the mean number of characters of a value."""
        return sum(len(str(value)) for value in self.values) / max(1, len(self.values))


class Facts(NamedTuple):
    """What a corpus is."""

    config: CorpusConfig
    """With what is needed to read it."""
    form: str
    """Its format, or that it is on the Hub."""
    rows: int
    columns: dict[str, Column]

    def of_kind(self, *kinds: ColumnKind) -> list[str]:
        """Return the columns of some kinds, in the order of the file."""
        return [name for name, column in self.columns.items() if column.kind in kinds]


def look_at(name: str, config: CorpusConfig) -> Facts:
    """Look at a corpus: complete how it is to be read, and read its columns."""
    quiet_bars()
    config, cells = _completed(config)
    form = config.format or file_format(str(config.path)) or ("a folder" if Path(str(config.path)).is_dir() else "Hub")
    dataset = load_rows(name, config, cells)  # which are texts until it is known what they are
    if not len(dataset):
        raise ValueError(f"Corpus {name!r} ({config.path}) has no rows.")
    if inner := _rows_within(dataset):
        raise ValueError(
            f"Corpus {name!r} ({config.path}) is one object, whose {inner!r} seems to hold the rows. Write those "
            f"alone, one a line, as `jq -c '.{inner}[]' {config.path} > rows.jsonl` does."
        )
    head, columns = first_rows(undecoded(dataset), MOST_ROWS), {}
    for column in dataset.column_names:
        if media := _media(head, column):
            columns[column] = media
            continue
        names = class_names(dataset.features[column])
        for key, values in _parts(column, list(head[column])):
            columns[key] = _column(key, [_named(value, names) for value in values] if names else values)
    return Facts(config, form, len(dataset), columns)


def raw_values(column: Column, config: CorpusConfig) -> Iterable[tuple[int, Any]]:
    """Return the values of a column that are not blank, with their rows; of images and sound they are read again."""
    if column.kind not in SUFFIXES_OF:
        return zip(column.rows, column.values, strict=True)
    rows = undecoded(first_rows(load_rows("file", config, []), MOST_ROWS)).select_columns(column.name)
    return ((row, found[column.name]) for row, found in enumerate(rows) if found[column.name] is not None)


def _rows_within(dataset: Any) -> str | None:
    """Return the column of the only row that holds rows: a list of mappings that are no turns of a dialogue."""
    lists = {name: value for name, value in dataset[0].items() if isinstance(value, list) and value}
    rows = {name: value[0] for name, value in lists.items() if isinstance(value[0], Mapping)}
    turns = ({"role", "content"}, {"from", "value"})
    is_turn = {name: any(keys <= row.keys() for keys in turns) for name, row in rows.items()}
    return next((name for name in rows if len(dataset) == 1 and not is_turn[name]), None)


def _media(rows: Any, name: str) -> Column | None:
    """Return a column of images or sound, whose files are in the rows, or named by them."""
    values = rows.with_format("arrow")[:][name]
    first = next((value.as_py() for value in values if value.is_valid), None)
    first = first[0] if isinstance(first, list) and first else first  # of several images in a row
    if isinstance(first, Mapping) and first.keys() == {"bytes", "path"}:
        first = first["bytes"] or first["path"]
    found: list[ColumnKind] = []
    if isinstance(first, bytes):
        found = ["audio" if SOUND.match(first) else "image"]
    elif isinstance(first, str):
        found = [kind for kind, suffixes in SUFFIXES_OF.items() if first.lower().endswith(suffixes)]
    return Column(name, found[0], [], values.null_count) if found else None


def _parts(column: str, values: list[Any]) -> list[tuple[str, list[Any]]]:
    """Return a column, or of one of mappings each of their keys as a column."""
    first = next((value for value in values if value is not None), None)
    if not isinstance(first, Mapping):
        return [(column, values)]
    return [(f"{column}.{key}", [(value or {}).get(key) for value in values]) for key in first]


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class, or of each in a list."""
    if isinstance(value, list):
        return [names[each] for each in value]
    return value if value is None or value < 0 else names[value]


def _column(name: str, values: list[Any]) -> Column:
    rows = [row for row, value in enumerate(values) if value not in (None, []) and str(value).strip()]
    filled = [plain_turns(values[row]) for row in rows]
    return Column(name, _kind(filled), filled, len(values) - len(filled), rows)


def _kind(values: list[Any]) -> ColumnKind:
    if not values:
        return "empty"
    if isinstance(values[0], list):
        return "turns" if any(isinstance(each, Mapping) for each in values[0]) else "list"
    texts = [str(value) for value in values]
    if all(DATE.fullmatch(text) for text in texts):
        return "date"
    different = len(set(texts))
    is_number = all(NUMBER.fullmatch(text) for text in texts)
    is_whole = not is_number or all("." not in text for text in texts)
    if is_whole and different <= min(MOST_LABELS, max(2, len(texts) // 2)) and max(map(len, texts)) <= LONGEST_LABEL:
        return "label"
    if is_number:
        return "id" if is_whole and different == len(texts) else "number"
    return "id" if all(ID.fullmatch(text) for text in texts) else "text"


def _completed(config: CorpusConfig) -> tuple[CorpusConfig, Sequence[str]]:
    """Return a corpus with what its first lines show of how it is to be read, and the columns of a table."""
    path = os.path.expanduser(str(config.path))
    if os.path.isdir(path):
        kinds = Counter((mimetypes.guess_type(file)[0] or "").split("/")[0] for file in Path(path).rglob("*.*"))
        texts = sum(1 for _ in Path(path).rglob("*.txt"))  # each is a document, unless one tells of images or sound
        is_of_texts = texts > max(kinds["image"], kinds["audio"])
        return replace(config, path=f"{config.path}/**/*.txt", document="file") if is_of_texts else config, []
    if not os.path.isfile(path) and (not is_url(path) or "*" in path):
        return config, []
    if (form := config.format or file_format(path)) in ("parquet", "arrow"):
        return config, []
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    config = replace(config, encoding=_encoding(head)) if config.encoding == "utf-8" else config
    text = head.decode(config.encoding, errors="ignore")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if form in (None, "text") and (guess := _guess_format(lines)):
        return replace(config, format=guess), []
    if form in ("csv", "tsv"):
        return _with_table(config, form, lines)
    if form == "text" and config.document is None:
        has_paragraphs = re.search(r"\S\s*\n\s*\n\s*\S", text)
        return replace(config, document="paragraph" if has_paragraphs else "line"), []
    return config, []


def _encoding(head: bytes) -> str:
    """Return an encoding in which the head of a file is a text; its last character may be cut off."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8", "cp1252"):
        for end in (len(head), len(head) - 1, len(head) - 2, len(head) - 3):
            try:
                head[:end].decode(encoding)
                return encoding
            except UnicodeDecodeError:
                continue
    return "latin-1"


def _guess_format(lines: Sequence[str]) -> str | None:
    """Return the format of lines in a file whose name tells none, or that are no prose."""
    cells = [line.split() for line in lines[:200] if not line.startswith("-DOCSTART-")]
    if (
        cells
        and len({len(row) for row in cells}) == 1
        and len(cells[0]) > 1
        and all(TAG.fullmatch(row[-1]) for row in cells)
    ):
        return "conll"
    if lines and lines[0].lstrip()[:1] in ("{", "["):
        return "json"
    return None


def _with_table(config: CorpusConfig, form: str, lines: Sequence[str]) -> tuple[CorpusConfig, Sequence[str]]:
    """Return a table with its delimiter, and with column names where its first line has none; and the names."""
    usual = config.delimiter or ("\t" if form == "tsv" else ",")
    quotes = {"quoting": csv.QUOTE_NONE} if form == "tsv" else {}
    found = {
        each: list(csv.reader(lines[:50], delimiter=each, **quotes))  # type: ignore[arg-type]
        for each in (usual, *([] if config.delimiter else ",;\t|"))
    }
    even = [each for each, rows in found.items() if len({len(row) for row in rows[:-1] or rows}) == 1 < len(rows[0])]
    delimiter = even[0] if even else usual
    rows = found[delimiter]
    if delimiter != usual:
        config = replace(config, delimiter=delimiter)
    if config.header and not config.column_names and not _is_header(rows):
        names = [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
        config = replace(config, header=False, column_names=names)
    return config, config.column_names or (rows[0] if rows else [])


def _is_like(cell: str, texts: Sequence[str]) -> bool:
    """Whether a cell is a text as those below it are, by its words, or its characters where they are Chinese."""
    words = len(WORD.findall(cell))
    mean = sum(len(WORD.findall(text)) for text in texts) / max(1, len(texts))
    return words >= LEAST_TEXT and mean / 2 <= words <= 2 * mean


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: no cell is a number, blank, long, found again or like a text below it.

    >>> _is_header([["text", "label"], ["so good", "pos"]]), _is_header([["good", "pos"], ["bad one", "pos"]])
    (True, False)
    """
    return all(
        cell.strip()
        and len(cell) <= LONGEST_LABEL
        and not NUMBER.fullmatch(cell)
        and cell not in below
        and not _is_like(cell, [text for text in below if text])
        for cell, *below in itertools.zip_longest(*rows)
        if cell is not None
    )
