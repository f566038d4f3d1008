"""Local files of a corpus: their formats, and how `datasets` reads them."""

import codecs
import csv
import glob
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import fsspec
from transformers.utils import logging as transformers_logging

from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.utils.errors import did_you_mean

logger = logging.getLogger(__name__)

HEAD = 100  # rows of a stream that are read before a run begins
SHOWN = 5  # rows whose places are told, at the most

FORMATS: dict[str, dict[str, Any]] = {
    "json": {"path": "json"},
    "csv": {"path": "csv", "delimiter": ",", "quotechar": '"'},
    "tsv": {"path": "csv", "delimiter": "\t", "quotechar": ""},
    "parquet": {"path": "parquet"},
    "arrow": {"path": "arrow"},
    "text": {"path": "text"},
    "conll": {"path": "conll"},
}
"""Formats of files → the reader in `datasets.load_dataset`, and its options."""

SUFFIXES = {".jsonl": "json", ".ndjson": "json", ".txt": "text", **{f".{name}": name for name in FORMATS}}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
DOCUMENTS = {"line": "line", "paragraph": "paragraph", "file": "document"}


def quiet_bars() -> None:
    """Show no bars of progress where they would fill a log with their every step, and no error twice."""
    logging.getLogger("datasets.packaged_modules.json.json").setLevel(logging.CRITICAL)  # its errors are raised too
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()


def load_rows(name: str, config: CorpusConfig, as_text: Sequence[str]) -> Any:
    """Load the rows of a corpus from its files, a folder or the Hub.

    Args:
        name: what the corpus is called in errors.
        config: where it is.
        as_text: columns of CSV and TSV files whose cells are kept as they are written; those of others are guessed.
    """
    given = [config.path] if isinstance(config.path, str) else config.path
    paths = [path for pattern in given for path in _matching(pattern)]
    if not paths:
        found = f"{config.path!r}, which none matches" if given else "an empty list"
        raise ValueError(f"`path` of corpus {name!r} must name at least one file, got {found}.")
    files = [os.path.expanduser(path) for path in paths]
    options: dict[str, Any] = {"path": files[0], "name": config.config_name}
    if len(paths) > 1 or config.format or file_format(paths[0]) or is_url(paths[0]) or os.path.isfile(files[0]):
        options = _file_options(name, config, paths, as_text)
    elif paths[0].startswith((".", "/", "~")) and not os.path.exists(files[0]):
        raise FileNotFoundError(f"There is no {paths[0]!r} (corpus {name!r}).")
    try:
        _refuse_null(options)
        dataset = datasets.load_dataset(
            **options, split=config.split, revision=config.revision, streaming=config.streaming
        )
        if not config.streaming:
            dataset.data.validate(full=True)  # the reader of JSON lets bytes pass that are no text
        elif not list(dataset.take(HEAD)):
            raise StopIteration
        if config.streaming and len(files) > 1 and (what := _differing_columns(options, files)):
            raise ValueError(what)
    except StopIteration:  # what datasets raises for an empty JSON file
        raise ValueError(f"Corpus {name!r} ({config.path}) has no rows.") from None
    except (datasets.exceptions.DatasetsError, ValueError, EOFError, OSError, ImportError) as error:
        raise ValueError(_explain(name, config, options, error.__cause__ or error)) from error
    if options["path"] == "csv" and not config.streaming and not any(map(is_url, files)):
        _warn_of_open_quotes(name, config, files, options, dataset)
    return dataset


def _matching(path: str) -> list[str]:
    """Return the files of a pattern, in the order of their names; a file's name stands for itself."""
    is_pattern = "*" in path and not is_url(path) and not os.path.exists(path)
    return sorted(glob.glob(os.path.expanduser(path), recursive=True)) if is_pattern else [path]


def is_url(path: str) -> bool:
    """Whether a file, or a pattern of files, lies elsewhere, where fsspec finds it."""
    return "://" in path


def file_format(path: str) -> str | None:
    """Return the format that a file's name tells, whatever it is compressed with.

    >>> file_format("a.tsv"), file_format("a.JSONL.GZ"), file_format("a.conll.xz"), file_format("a.bin")
    ('tsv', 'json', 'conll', None)
    """
    name = Path(path.lower())
    return SUFFIXES.get(Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix)


def list_places(config: CorpusConfig, rows: Sequence[int]) -> str:
    """Return where rows of a corpus stand, of many the first; see `find_places`."""
    places = find_places(config, rows[:SHOWN])
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return ", ".join(places) + more + " (counted from 1)" * places[0].startswith("row")


def find_places(config: CorpusConfig, rows: Sequence[int]) -> list[str]:
    """Return where rows of a corpus, which are counted from 0 as they are read, stand in its files.

    That is a line, or a file of which each is a row; where neither is known, the number of the row, counted from 1.
    """
    given = [config.path] if isinstance(config.path, str) else config.path
    files = [os.path.expanduser(path) for pattern in given for path in _matching(pattern)]
    is_whole = "[" not in config.split and all(map(os.path.isfile, files))
    kind = (config.format or file_format(files[0])) if is_whole and not (config.streaming and len(files) > 1) else None
    found: dict[int, str] = {}
    with suppress(csv.Error, UnicodeDecodeError):
        lines = ((file, line) for file in files if kind for line in _first_lines(kind, file, config))
        for row, (file, line) in zip(range(max(rows) + 1), lines, strict=False):
            if row in rows:
                where = [f"line {line}"] * bool(line) + [file] * (len(files) > 1 or not line)
                found[row] = " of ".join(where)
    return [found.get(row, f"row {row + 1}") for row in rows]


def _first_lines(kind: str, file: str, config: CorpusConfig) -> Iterator[int]:
    """Yield the line in which each row of a file begins, or 0 for a file that is one; nothing where rows have none."""
    if kind == "text" and config.document == "file":
        yield 0
        return
    with io.TextIOWrapper(
        open_file(file), encoding=config.encoding, newline="" if kind in ("csv", "tsv") else None
    ) as text:
        if kind in ("csv", "tsv"):
            yield from _records(text, config, kind)
        elif kind == "text" and config.document in (None, "line"):
            yield from (number for number, _ in enumerate(text, 1))
        elif kind == "conll":
            yield from _sentences(text)
        elif kind == "json" and not text.readline().lstrip("\ufeff").startswith("["):
            text.seek(0)
            yield from (number for number, line in enumerate(text, 1) if line.strip())


def _records(text: Any, config: CorpusConfig, kind: str) -> Iterator[int]:
    """Yield the first line of each row of a table, whose cells may hold line breaks."""
    options = _csv_options("", config, [], FORMATS[kind])
    reader = csv.reader(
        text, **{name: options[name] for name in ("delimiter", "quotechar", "quoting") if name in options}
    )
    before, skipped = 0, not config.header
    for cells in reader:
        start, before = before + 1, reader.line_num
        if any(cells) or len(cells) > 1:
            if skipped:
                yield start
            skipped = True


def _sentences(text: Any) -> Iterator[int]:
    """Yield the first line of each sentence of a CoNLL file."""
    is_inside = False
    for number, line in enumerate(text, 1):
        if line.strip() and not is_inside and not line.startswith("-DOCSTART-"):
            yield number
        is_inside = bool(line.strip()) and (is_inside or not line.startswith("-DOCSTART-"))


def has_cells(config: CorpusConfig) -> bool:
    """Whether a corpus is a table of cells, which tells no texts from numbers."""
    path = config.path if isinstance(config.path, str) else config.path[0]
    return (config.format or file_format(path)) in ("csv", "tsv")


def _file_options(name: str, config: CorpusConfig, paths: Sequence[str], as_text: Sequence[str]) -> dict[str, Any]:
    """Return what `datasets.load_dataset` is to be told of files."""
    for path in paths:
        if not is_url(path) and not os.path.isfile(os.path.expanduser(path)):
            raise FileNotFoundError(f"There is no file {path!r} (corpus {name!r}).")
    kinds = {path: config.format or file_format(path) for path in paths}
    try:
        codecs.lookup(config.encoding)
    except LookupError:
        raise ValueError(
            f"`encoding` of corpus {name!r} must be one that Python knows, got {config.encoding!r}."
        ) from None
    for path, kind in kinds.items():
        if kind is None:
            raise ValueError(
                f"The format of {path!r} (corpus {name!r}) is unknown. Say its `format`: {', '.join(FORMATS)}."
            )
        if kind not in FORMATS:
            raise ValueError(
                f"`format` of corpus {name!r} must be one of {', '.join(FORMATS)}, got {kind!r}."
                + did_you_mean(kind, FORMATS)
            )
    if len(set(kinds.values())) > 1:
        raise ValueError(f"The files of corpus {name!r} must be of one kind ({', '.join(FORMATS)}), got {list(paths)}.")
    kind = str(kinds[paths[0]])
    files = [os.path.expanduser(path) for path in paths]
    options = {**FORMATS[kind], "data_files": {config.split.partition("[")[0]: files}}
    given = {field: getattr(config, field) for field in ("delimiter", "quote_char", "column_names")}
    if options["path"] not in ("csv", "conll") and any(value is not None for value in given.values()):
        raise ValueError(
            f"`delimiter`, `quote_char` and `column_names` are for CSV, TSV and CoNLL files, but those of corpus "
            f"{name!r} are {kind}. Leave them out."
        )
    if options["path"] == "csv":
        return options | _csv_options(name, config, as_text, options)
    if options["path"] == "conll":
        names = config.column_names or _conll_columns(config, files[0])
        return options | {"column_names": names, "delimiter": config.delimiter, "encoding": config.encoding}
    if options["path"] == "text":
        if config.document not in (None, *DOCUMENTS):
            raise ValueError(
                f"`document` of corpus {name!r} must be one of {', '.join(DOCUMENTS)}, got {config.document!r}."
            )
        options["sample_by"] = DOCUMENTS[config.document or "line"]
    return options | ({"encoding": config.encoding} if options["path"] in ("json", "text") else {})


def _csv_options(name: str, config: CorpusConfig, as_text: Sequence[str], default: dict[str, Any]) -> dict[str, Any]:
    quote = default["quotechar"] if config.quote_char is None else config.quote_char
    delimiter = default["delimiter"] if config.delimiter is None else config.delimiter
    if len(quote) > 1 or len(delimiter) != 1:
        raise ValueError(
            f"`quote_char` of corpus {name!r} must be one character or empty, and `delimiter` one, got {quote!r} and "
            f"{delimiter!r}."
        )
    if not config.header and not config.column_names:
        raise ValueError(f"Corpus {name!r} has `header: false` and needs `column_names`, the names of its columns.")
    return {
        "delimiter": delimiter,
        **({"quotechar": quote} if quote else {"quotechar": '"', "quoting": csv.QUOTE_NONE}),
        "header": 0 if config.header else None,
        "column_names": config.column_names,
        "encoding": config.encoding,
        "keep_default_na": False,  # or the words NA, null and None would be no texts
        "na_values": [""],
        "converters": dict.fromkeys(as_text, str),
    }


def _conll_columns(config: CorpusConfig, file: str) -> list[str]:
    """Return names for the columns of a CoNLL file: the words come first, the tags last."""
    with open_file(file) as lines:
        text = next((line for line in lines if line.strip() and not line.startswith(b"-DOCSTART-")), b"")
    between = range(1, len(text.decode(config.encoding).split(config.delimiter)) - 1)
    return [config.tokens_column, *(f"column_{number}" for number in between), config.tags_column]


def _refuse_null(options: dict[str, Any]) -> None:
    """Refuse JSON that begins with null, on which pyarrow ends the process."""
    files = [file for group in options.get("data_files", {}).values() for file in group if "*" not in file]
    for file in files if options["path"] == "json" else []:
        with open_file(file) as opened:
            if opened.read(100).strip().startswith(b"null"):
                raise ValueError(f"{file!r} begins with null where a row belongs. Remove it")


def open_file(file: str) -> Any:
    """Open a file to read its bytes, whatever it is compressed with."""
    return fsspec.open(file, "rb", compression=COMPRESSIONS.get(Path(file).suffix.lower())).open()


def _explain(name: str, config: CorpusConfig, options: dict[str, Any], cause: BaseException) -> str:
    """Return what keeps files from being read, in one line."""
    files = [file for group in options.get("data_files", {}).values() for file in group if not is_url(file)]
    what = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, FileNotFoundError) and " " not in what:
        what = f"there is no {what}"
    elif isinstance(cause, UnicodeDecodeError) or "UTF8" in what:
        for file in files:
            what = _undecodable(file, config.encoding) or what
    elif isinstance(cause, datasets.table.CastError) and len(files) > 1:
        what = _differing_columns(options, files) or what
    elif options["path"] == "json" and isinstance(cause, ValueError):  # not a file that breaks off
        what = next(filter(None, map(_no_json, files)), what)
    return f"Corpus {name!r} ({config.path}) cannot be loaded: {what}"


def _undecodable(file: str, encoding: str) -> str | None:
    """Return the first line of a file that is not in the encoding."""
    with open_file(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                return (
                    f"{file!r} is not {encoding}: it has the byte 0x{line[error.start]:02x} in line {number}. Say "
                    "its `encoding`, such as latin-1, or mend the file."
                )
    return None


def _no_json(file: str) -> str | None:
    """Return the first line of a file of JSON lines that is none."""
    with open_file(file) as lines:
        is_array = lines.read(1) == b"["
        lines.seek(0)
        for number, line in enumerate([] if is_array else lines, 1):
            try:
                json.loads(line.strip() or "{}")
            except ValueError as error:
                shown = line.decode(errors="replace").strip()
                return f"line {number} of {file!r} is no JSON ({error}): {shown[:60]!r}. Mend the line, or remove it."
    return None


def _differing_columns(options: dict[str, Any], files: Sequence[str]) -> str | None:
    """Return how files differ in their columns, on which a stream would break off in the middle of a run."""
    first: list[str] = []
    for file in files:
        stream = datasets.load_dataset(**{**options, "data_files": file}, split="train", streaming=True)
        columns = list(next(iter(stream), {}))
        first = first or columns
        if columns and set(columns) != set(first):
            return f"{file!r} has the columns {columns}, but {files[0]!r} has {first}. Give all the same"
    return None


def _warn_of_open_quotes(name: str, config: CorpusConfig, files: Sequence[str], options: Any, dataset: Any) -> None:
    """Warn of a quote that is not closed: it swallows the lines up to the next, so that rows are fewer."""
    lines = 0
    for file in files:
        with open_file(file) as opened:
            lines += sum(1 for line in opened if line.strip()) - config.header
    split = (dataset.info.splits or {}).get(config.split.partition("[")[0])
    if split is not None and split.num_examples < lines and any(_has_open_quote(file, options) for file in files):
        logger.warning(
            f"Corpus {name!r} ({config.path}) has {split.num_examples:,} rows in {lines:,} lines, and a quote seems "
            'not to be closed. Close it, or set `quote_char: ""` to read quotes as they are.'
        )


def _has_open_quote(file: str, options: Any) -> bool:
    """Whether quotes are out of step, or a line within a cell ends as a row does: in a value of the last column."""
    last, broken = set(), []
    try:
        with io.TextIOWrapper(open_file(file), options["encoding"], newline="") as lines:
            for row in csv.reader(lines, delimiter=options["delimiter"], quotechar=options["quotechar"], strict=True):
                last.update(row[-1:])
                broken += [line for cell in row for line in cell.splitlines()[:-1]]
    except csv.Error:
        return True
    return any(found and end in last for _, found, end in (line.rpartition(options["delimiter"]) for line in broken))
