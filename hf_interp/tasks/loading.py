"""Loading corpora: from files or the Hub to the columns of a task, every value checked, faults named by row."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_interp.tasks.columns import BadValueError, Kind, class_names, converter, label_resolver
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.utils.errors import did_you_mean

FILE_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""The names of the readers of local files in `datasets.load_dataset`."""


class RowError(ValueError):
    """Says of a row of a batch, by its number and the task's name of the column, what it has and what to do."""

    def __init__(self, row: int, column: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.row, self.column, self.what, self.remedy = row, column, what, remedy


def load_corpus(
    name: str, config: CorpusConfig, columns: Mapping[str, Kind], label_names: Sequence[str] | None = None
) -> Any:
    """Load one corpus of a recipe with the columns of a task, each of its kind.

    Labels come out as indices into `label_names`; rows are dropped and limited as `config` says.

    Raises:
        FileNotFoundError: for a local path that does not exist.
        ValueError: for a column that is not there or a value that is not of its kind, naming corpus, column and row.
    """
    dataset = _load(name, config)
    sources = {column: config.source(column) for column in columns}
    present = column_names(dataset)
    _check_present(name, present, [*sources.values(), *(config.where or {})])
    if config.where:
        keep = {column: value if isinstance(value, list) else [value] for column, value in config.where.items()}
        dataset = dataset.filter(lambda row: all(_reach(row, column) in values for column, values in keep.items()))
    features = {column: _reach(dataset.features or {}, source) for column, source in sources.items()}
    for column, kind in columns.items():
        if kind == "class":
            dataset = _map_labels(name, dataset, config, column, list(label_names or []))
            sources[column] = f"_{column}"
        elif kind == "prose":  # without blank rows
            dataset = dataset.filter(lambda row, source=sources[column]: str(_reach(row, source)).strip() != "")
    dataset = _pick(dataset, sources)
    if config.max_examples is not None:
        dataset = dataset.shuffle(seed=config.sample_seed).take(config.max_examples)
    _check_rows(name, dataset, config)
    for column, kind in columns.items():
        if kind not in ("class", "anything"):
            convert = converter(kind, config, label_names, features[column])
            dataset = _convert(name, dataset, column, config.source(column), convert)
    return dataset


def encode_corpus(
    name: str,
    dataset: Any,
    config: CorpusConfig,
    encode: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    columns: Sequence[str],
) -> Any:
    """Turn the columns of a task into what the model takes; a `RowError` gets the names of corpus, column and row."""

    def encode_rows(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        try:
            return encode(batch)
        except RowError as error:
            raise ValueError(
                _fault(name, error.what, config.source(error.column), indices[error.row], error.remedy)
            ) from error

    return dataset.map(encode_rows, batched=True, with_indices=True, remove_columns=list(columns))


def column_names(dataset: Any) -> list[str]:
    """Return the columns of a dataset; a stream may not know them, but shows them."""
    return list(dataset.column_names or next(iter(dataset), {}))


def _fault(name: str, what: str, source: str, row: int, remedy: str) -> str:
    return f"Corpus {name!r} has {what}: column {source!r}, row {row} of what is kept. {remedy}"


def _reach(row: Mapping[str, Any], source: str) -> Any:
    """Return a value by the name of its column, or by a path into a column of mappings."""
    if source in row:
        return row[source]
    value: Any = row
    for step in source.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


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


def _convert(name: str, dataset: Any, column: str, source: str, convert: Callable[[Any], Any]) -> Any:
    """Check and convert a column; of a stream row by row, as it is read."""

    def convert_rows(values: list[Any], indices: list[int]) -> dict[str, list[Any]]:
        found = []
        for value, index in zip(values, indices, strict=True):
            try:
                found.append(convert(value))
            except BadValueError as error:
                raise ValueError(_fault(name, error.what, source, index, error.remedy)) from error
        return {f"_{column}": found}

    # A column of the same name keeps its old type, so the new one is made beside it.
    dataset = dataset.map(convert_rows, batched=True, with_indices=True, input_columns=column, remove_columns=column)
    return dataset.rename_column(f"_{column}", column)


def _map_labels(name: str, dataset: Any, config: CorpusConfig, column: str, label_names: list[str]) -> Any:
    """Add the indices of a column's labels, under its name with a `_` before it, and drop rows mapped to nothing."""
    source = config.source(column)
    of_value = label_resolver(config, label_names, class_names(_reach(dataset.features or {}, source)))

    def resolve(value: Any) -> int | None:
        try:
            return of_value(value)
        except BadValueError as error:
            raise ValueError(f"Corpus {name!r} has {error.what}: column {source!r}. {error.remedy}") from None

    # All are checked now, not in the middle of a run.
    if isinstance(dataset, datasets.Dataset) and source in dataset.column_names:
        for value in dataset.unique(source):
            resolve(value)
    dataset = dataset.filter(lambda row: resolve(_reach(row, source)) is not None)
    _check_rows(name, dataset, config)
    return dataset.map(lambda row: {f"_{column}": resolve(_reach(row, source))})


def _load(name: str, config: CorpusConfig) -> Any:
    paths = [config.path] if isinstance(config.path, str) else list(config.path)
    if not paths:
        raise ValueError(f"`path` of corpus {name!r} must name at least one file, got an empty list.")
    builders = {FILE_BUILDERS.get(_suffix(path)) for path in paths}
    if len(paths) == 1 and builders == {None}:
        if paths[0].startswith((".", "/", "~")) and not Path(paths[0]).expanduser().exists():
            raise FileNotFoundError(f"There is no {paths[0]!r} (corpus {name!r}).")
        options: dict[str, Any] = {"path": os.path.expanduser(paths[0]), "name": config.config_name}
    elif None not in builders and len(builders) == len({_suffix(path) == ".tsv" for path in paths}) == 1:
        missing = [path for path in paths if not Path(path).expanduser().is_file()]
        if missing:
            raise FileNotFoundError(f"There is no file {missing[0]!r} (corpus {name!r}).")
        files = [str(Path(path).expanduser()) for path in paths]
        options = {"path": builders.pop(), "data_files": {config.split.partition("[")[0]: files}}
        if any(_suffix(path) == ".tsv" for path in paths):
            options["sep"] = "\t"
    else:
        raise ValueError(f"The files of corpus {name!r} must be of one kind ({', '.join(FILE_BUILDERS)}), got {paths}.")
    try:
        return datasets.load_dataset(
            **options, split=config.split, revision=config.revision, streaming=config.streaming
        )
    except StopIteration:  # what datasets raises for an empty JSON file
        raise ValueError(f"Corpus {name!r} ({config.path}) has no rows.") from None
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        raise ValueError(f"Corpus {name!r} ({config.path}) cannot be loaded: {error.__cause__ or error}") from error


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()


def _check_rows(name: str, dataset: Any, config: CorpusConfig) -> None:
    if not config.streaming and len(dataset) == 0:
        raise ValueError(f"Corpus {name!r} ({config.path}) has no rows left. Check its split, `where` and `label_map`.")


def _check_present(name: str, present: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in present and column.partition(".")[0] not in present:
            raise ValueError(
                f"Corpus {name!r} has no column {column!r}; it has {present}." + did_you_mean(column, present)
            )
