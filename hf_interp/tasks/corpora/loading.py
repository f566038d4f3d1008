"""Loading corpora: from files or the Hub to the columns of a task, every value checked, faults named by row.

Functions for `map` and `filter` are a `partial` of one of a module, and no closures: `datasets` hashes a function to
find the result that it has kept, and the hash of a closure takes longer than the rows of a small corpus.
"""

import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from hf_interp.tasks.corpora.columns import CELLS, FILES, Kind, class_names, content_reader, converter, is_wanted
from hf_interp.tasks.corpora.corpus_files import HEAD, has_cells, list_places, load_rows
from hf_interp.tasks.corpora.dialogues import plain_turns
from hf_interp.tasks.corpora.labels import BadValueError, LabelResolver
from hf_interp.tasks.corpora.media import file_of
from hf_interp.tasks.corpora.splits import keep_part
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.utils.errors import did_you_mean

logger = logging.getLogger(__name__)

_SOURCES = sorted(Path(__file__).parents[1].rglob("*.py"))
ROW = f"row of the corpus {zlib.crc32(b''.join(path.read_bytes() for path in _SOURCES)):08x}"
"""The column that numbers the rows as they are read, before any is dropped. Its name has a checksum of what makes
inputs of rows, so that `datasets`, which keeps results by the names of functions, takes none that other code made."""

Batch = dict[str, list[Any]]


class RowError(ValueError):
    """Says of a row of a batch, by its number and the task's name of the column, what it has and what to do.

    A row that stands for a file, such as an image, may have the name of that, too.
    """

    def __init__(self, row: int, column: str, what: str, remedy: str, file: str | None = None) -> None:
        super().__init__(what)
        self.row, self.column, self.what, self.remedy, self.file = row, column, what, remedy, file


class RefusedError(ValueError):
    """Says of a corpus which rows are refused, and why."""


def load_corpus(
    name: str,
    config: CorpusConfig,
    columns: Mapping[str, Kind],
    label_names: Sequence[str] | None = None,
    *,
    numbered: bool = False,
) -> Any:
    """Load one corpus of a recipe with the columns of a task, each of its kind.

    Labels come out as indices into `label_names`; rows are dropped and limited as `config` says. If they are to be
    `numbered`, a column more, `ROW`, tells faults that are found later where in the files they stand.
    """
    if config.drop_faulty and config.streaming:
        raise ValueError(f"`drop_faulty` of corpus {name!r} needs all rows at hand. Leave out `streaming`.")
    sources = {column: config.source(column) for column in columns}
    matter = [config.text_pair_column] if config.text_pair_column and "prompt" in columns else []
    turns = config.messages_column if isinstance(config.messages_column, list) and "messages" in columns else []
    as_text = [sources[column] for column, kind in columns.items() if kind in CELLS]
    dataset = undecoded(load_rows(name, config, [*as_text, *matter, *(config.where or {})]))
    present = column_names(dataset)
    if columns.get("image") == "images" and config.image_column not in present:
        raise ValueError(
            f"Corpus {name!r} has no column {config.image_column!r} of images; it has {present}. Name its "
            '`image_column`; of texts alone it is `image_column: ""`.'
        )
    _check_present(name, present, [*sources.values(), *matter, *turns, *(config.where or {})])
    dataset = _numbered(dataset)
    if config.where:
        dataset = _filter(name, dataset, config)
    features = {column: _reach(dataset.features or {}, source) for column, source in sources.items()}
    for column, kind in columns.items():
        if kind == "class":
            dataset = _map_labels(name, dataset, config, column, list(label_names or []))
            sources[column] = f"_{column}"
        elif kind == "prose":  # without blank rows
            dataset = dataset.filter(partial(_is_written, source=sources[column]))
    if matter:
        dataset = dataset.map(partial(_join, source=sources["prompt"], matter=matter[0]))
        sources["prompt"] = "_prompt"
    if turns:
        dataset = dataset.map(
            lambda row: {"_messages": [turn for column in turns for turn in plain_turns(_reach(row, column)) or []]}
        )
        sources["messages"] = "_messages"
    dataset = _pick(dataset, {**sources, ROW: ROW})
    if config.part is not None:
        column, kind = next(iter(columns.items()))
        keep = partial(_keep_part, name, config, column)
        dataset = _apply(name, dataset, config, _reading(column, content_reader(kind, config)), keep)
    if config.max_examples is not None:
        dataset = first_rows(dataset.shuffle(seed=config.sample_seed), config.max_examples)
    _check_rows(name, dataset, config)
    for column, kind in columns.items():
        if kind not in ("class", "anything"):
            make = partial(converter, kind, config, label_names, features[column])
            values = _distinct(dataset, column) if kind in ("classes", "tags") else []
            dataset = _convert(name, dataset, column, config, partial(make, values))
    return dataset if numbered else dataset.remove_columns(ROW)


def encode_corpus(
    name: str, dataset: Any, config: CorpusConfig, encode: Callable[[Batch], Batch], columns: Sequence[str]
) -> Any:
    """Turn the columns of a task into what the model takes; a `RowError` gets the names of corpus, column and row.

    Rows that are not numbered are counted as they come.
    """
    dataset = dataset if ROW in column_names(dataset) else _numbered(dataset)
    options: dict[str, Any] = {"remove_columns": [*{*columns, ROW}], "batch_size": _rows_at_once(*columns)}
    try:
        encoded = dataset.map(_naming(name, config, encode), batched=True, **options)
    except RefusedError:
        raise _refused_all(name, dataset, config, encode) from None
    _check_rows(name, list(encoded.take(HEAD)) if config.streaming else encoded, config)  # faults before the run
    return encoded


def without_faulty(name: str, dataset: Any, config: CorpusConfig, work: Callable[[Batch], Any]) -> Any:
    """Return the rows of which a function of batches refuses none, and warn of the others, if `config` says so."""
    if not config.drop_faulty:
        return dataset
    faults = dict(_find_faults(dataset, work))
    if faults:
        what = next(iter(faults.values())).what
        logger.warning(
            f"Corpus {name!r} ({config.path}) leaves out {len(faults):,} of {len(dataset):,} rows, of which the first "
            f"has {what}: {list_places(config, [*faults])}."
        )
    kept = dataset.filter(lambda row: row not in faults, input_columns=ROW) if faults else dataset
    _check_rows(name, kept, config)
    return kept


def first_rows(dataset: Any, count: int) -> Any:
    """Return at most so many first rows; older versions of `datasets` refuse to take more than there are."""
    return dataset.take(min(count, len(dataset)) if isinstance(dataset, datasets.Dataset) else count)


def column_names(dataset: Any) -> list[str]:
    """Return the columns of a dataset; a stream may not know them, but shows them."""
    return list(dataset.column_names or next(iter(dataset), {}))


def _numbered(dataset: Any) -> Any:
    """Return rows with their numbers; those of a stream begin anew with each of its readers."""
    if isinstance(dataset, datasets.Dataset):
        return dataset.add_column(ROW, np.arange(len(dataset)))
    known = dataset.features and datasets.Features({**dataset.features, ROW: datasets.Value("int64")})
    return dataset.map(lambda row, index: {ROW: index}, with_indices=True, features=known)


def _apply(
    name: str,
    dataset: Any,
    config: CorpusConfig,
    work: Callable[[Batch], list[Any]],
    step: Callable[[Any, Callable[[Batch], list[Any]]], Any],
) -> Any:
    """Return what a step makes of a dataset by a function of batches, where none or all rows that it refuses are told.

    The step takes the dataset, and the function with faults that have the names of corpus, column and row.
    """
    dataset = without_faulty(name, dataset, config, work)
    try:
        return step(dataset, _naming(name, config, work))
    except RefusedError:
        raise _refused_all(name, dataset, config, work) from None


def _reading(column: str, read: Callable[[Any], Any], *, source: str | None = None) -> Callable[[Batch], list[Any]]:
    """Return a function of batches that reads the values of a column, which its faults call as the task does."""
    return partial(_read_all, column, read, source or column)


def _read_all(column: str, read: Callable[[Any], Any], source: str, batch: Batch) -> list[Any]:
    found = []
    for place, value in enumerate(batch[source]):
        try:
            found.append(read(value))
        except BadValueError as error:
            file = file_of(value) if column in FILES else None
            shown = None if str(file) in error.what else file
            raise RowError(place, column, error.what, error.remedy, shown) from None
    return found


def _naming(name: str, config: CorpusConfig, work: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    """Return a function of batches whose faults have the names of corpus, column and row."""
    return partial(_named, name, config, work)


def _named(name: str, config: CorpusConfig, work: Callable[[Batch], Any], batch: Batch) -> Any:
    try:
        return work(batch)
    except RowError as error:
        raise _refused(name, config, {batch[ROW][error.row]: error}) from None


def _find_faults(dataset: Any, work: Callable[[Batch], Any]) -> Iterator[tuple[int, RowError]]:
    """Yield the numbers of the rows that a function of batches refuses, and why."""
    for batch in dataset.iter(_rows_at_once(*column_names(dataset))):
        try:
            work(batch)
        except RowError:
            for place, row in enumerate(batch[ROW]):
                try:
                    work({column: values[place : place + 1] for column, values in batch.items()})
                except RowError as error:
                    yield row, error


def _refused_all(name: str, dataset: Any, config: CorpusConfig, work: Callable[[Batch], Any]) -> RefusedError:
    return _refused(name, config, dict(_find_faults(dataset, work)))


def _refused(name: str, config: CorpusConfig, faults: Mapping[int, RowError]) -> RefusedError:
    """Return an error that says what the first of some rows is not, and where all are."""
    (row, error), *others = faults.items()
    where = f"column {config.source(error.column)!r}, {list_places(config, [row])}" + (
        f", {error.file}" if error.file else ""
    )
    more = f" In all {len(faults):,} rows are refused: {list_places(config, [*faults])}." if others else ""
    drop = "" if config.streaming else " `drop_faulty: true` leaves such rows out."
    return RefusedError(
        f"Corpus {name!r} has {error.what}: {where} ({config.path}, split {config.split!r}).{more} {error.remedy}{drop}"
    )


def _reach(row: Mapping[str, Any], source: str) -> Any:
    """Return a value by the name of its column, or by a path into a column of mappings."""
    if source in row:
        return row[source]
    value: Any = row
    for step in source.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _is_written(row: Mapping[str, Any], source: str) -> bool:
    return str(_reach(row, source)).strip() != ""


def _join(row: Mapping[str, Any], source: str, matter: str) -> dict[str, Any]:
    """Return a prompt with what it is about behind it, which may be blank."""
    prompt, about = _reach(row, source), _reach(row, matter)
    return {"_prompt": f"{prompt}\n\n{about}" if prompt is not None and str(about or "").strip() else prompt}


def undecoded(dataset: Any) -> Any:
    """Leave files of images and sound as they are: a row may be read for its label alone."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def _pick(dataset: Any, sources: Mapping[str, str]) -> Any:
    """Keep the columns of the task alone, under its names."""
    present = column_names(dataset)
    renamed = {source: column for column, source in sources.items() if source != column}
    is_plain = all(source in present for source in sources.values()) and len(set(sources.values())) == len(sources)
    if is_plain and not any(column in sources.values() for column in renamed.values()):  # streams trade no names
        dataset = dataset.select_columns(list(sources.values()))
        return dataset.rename_columns(renamed) if renamed else dataset
    own = dataset.map(
        lambda row: {f"_{column}": _reach(row, source) for column, source in sources.items()}, remove_columns=present
    )
    return own.rename_columns({f"_{column}": column for column in sources})


def _convert(
    name: str, dataset: Any, column: str, config: CorpusConfig, make: Callable[[], Callable[[Any], Any]]
) -> Any:
    """Check and convert a column by the function that `make` makes; of a stream row by row, as it is read."""
    try:
        convert = make()
    except BadValueError as error:
        raise _fault(name, config, error, column) from None
    # A column of the same name keeps its old type, so the new one is made beside it.
    options: dict[str, Any] = {"remove_columns": column, "batch_size": _rows_at_once(column)}

    def step(rows: Any, read: Callable[[Batch], list[Any]]) -> Any:
        return rows.map(partial(_convert_all, column, read), batched=True, input_columns=[column, ROW], **options)

    return _apply(name, dataset, config, _reading(column, convert), step).rename_column(f"_{column}", column)


def _convert_all(
    column: str, read: Callable[[Batch], list[Any]], values: list[Any], numbers: list[int]
) -> dict[str, list[Any]]:
    return {f"_{column}": read({column: values, ROW: numbers})}


def _fault(name: str, config: CorpusConfig, error: BadValueError, column: str) -> ValueError:
    """Return an error of a whole column."""
    where = f"column {config.source(column)!r} ({config.path}, split {config.split!r})"
    return ValueError(f"Corpus {name!r} has {error.what}: {where}. {error.remedy}")


def _keep_part(name: str, config: CorpusConfig, column: str, dataset: Any, read: Callable[[Batch], list[Any]]) -> Any:
    """Keep the rows whose input lies in the `part` of a corpus."""
    content = partial(_content, column, read)
    return keep_part(name, dataset, config.part or [], [column, ROW], config.content_key, content)


def _content(column: str, read: Callable[[Batch], list[Any]], value: Any, row: int) -> Any:
    return read({column: [value], ROW: [row]})[0]


def _rows_at_once(*columns: str) -> int:
    """Return how many rows are held in memory at a time: fewer of those with files."""
    return 100 if {*columns} & {*FILES} else 1000


def _map_labels(name: str, dataset: Any, config: CorpusConfig, column: str, label_names: list[str]) -> Any:
    """Add the indices of a column's labels, under its name with a `_` before it, and drop rows mapped to nothing."""
    source = config.source(column)
    names = class_names(_reach(dataset.features or {}, source))
    of_value = LabelResolver(config, label_names, names, is_cells=has_cells(config))
    try:
        of_value.decide(_distinct(dataset, source))
    except BadValueError as error:
        raise _fault(name, config, error, column) from None
    inside = source if source in column_names(dataset) else source.partition(".")[0]

    def step(rows: Any, resolve: Callable[[Batch], list[Any]]) -> Any:
        return rows.filter(partial(_have_label, inside, resolve), batched=True, input_columns=[inside, ROW])

    read = _reading(column, partial(_label, of_value, inside, source), source=inside)
    dataset = _apply(name, dataset, config, read, step)
    _check_rows(name, dataset, config)
    return dataset.map(partial(_add_label, of_value, column, source))


def _have_label(
    inside: str, resolve: Callable[[Batch], list[Any]], values: list[Any], numbers: list[int]
) -> list[bool]:
    return [index is not None for index in resolve({inside: values, ROW: numbers})]


def _label(of_value: LabelResolver, inside: str, source: str, value: Any) -> int | None:
    return of_value(_reach({inside: value}, source))


def _add_label(of_value: LabelResolver, column: str, source: str, row: Mapping[str, Any]) -> dict[str, int | None]:
    return {f"_{column}": of_value(_reach(row, source))}


def _filter(name: str, dataset: Any, config: CorpusConfig) -> Any:
    """Keep the rows that `where` asks for, and warn of a value that no row has."""
    keep = {key: value if isinstance(value, list) else [value] for key, value in (config.where or {}).items()}
    for column, values in keep.items():
        found = [] if config.streaming else _distinct(dataset, column)
        for value in values:
            if found and not any(is_wanted(each, value) for each in found):
                logger.warning(f"Corpus {name!r} ({config.path}) has no row whose {column!r} is {value!r} (`where`).")
    return dataset.filter(partial(_is_kept, keep))


def _is_kept(keep: Mapping[str, list[Any]], row: Mapping[str, Any]) -> bool:
    return all(any(is_wanted(_reach(row, column), value) for value in values) for column, values in keep.items())


def _distinct(dataset: Any, source: str) -> list[Any]:
    """Return the different values of a column, or of the lists in it; of a stream those of its first rows."""
    column = source if source in column_names(dataset) else source.partition(".")[0]
    feature = (dataset.features or {}).get(column)
    inner = getattr(feature, "feature", feature)
    if isinstance(dataset, datasets.Dataset) and isinstance(inner, (datasets.Value, datasets.ClassLabel)):
        if inner is feature:
            return list(dataset.unique(column))
        parts = [pc.unique(pc.list_flatten(rows[column])) for rows in dataset.with_format("arrow").iter(10_000)]
        return list({value for part in parts for value in part.to_pylist()})
    rows = islice(dataset, HEAD) if isinstance(dataset, datasets.IterableDataset) else dataset.select_columns(column)
    found: dict[str, Any] = {}
    for row in rows:
        value = _reach(row, source)
        for each in value if isinstance(value, list) else [value]:
            found.setdefault(repr(each), each)
    return list(found.values())


def _check_rows(name: str, dataset: Any, config: CorpusConfig) -> None:
    if not isinstance(dataset, datasets.IterableDataset) and len(dataset) == 0:
        where = f" ({config.where})" if config.where else ""
        part = f", and its `part` {config.part}" if config.part else ""
        raise ValueError(
            f"Corpus {name!r} ({config.path}) has no rows left. Check its split, `where`{where} and `label_map`{part}."
        )


def _check_present(name: str, present: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in present and column.partition(".")[0] not in present:
            raise ValueError(
                f"Corpus {name!r} has no column {column!r}; it has {present}." + did_you_mean(column, present)
            )
