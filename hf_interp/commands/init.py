"""`hf-interp init`, `adapt` and `check`: from files to a recipe, to a run, and what a file is."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_interp.commands.column_choice import ANSWERS_IN_TEXTS, LABELS, TASKS_OF_MEDIA, choose_columns
from hf_interp.commands.draft import Draft, draft_recipe
from hf_interp.commands.file_facts import Column, Facts, look_at, raw_values
from hf_interp.tasks.corpora.columns import FILES, Kind, converter, first_fault, is_iob2
from hf_interp.tasks.corpora.corpus_files import list_places
from hf_interp.tasks.corpora.labels import BadValueError, by_meaning
from hf_interp.tasks.corpora.media import file_of
from hf_interp.tasks.corpora.splits import content_key, content_keys
from hf_interp.tasks.parsing import build_fields, lay_flags
from hf_interp.tasks.recipe import CorpusConfig
from hf_interp.utils.console import format_counts, format_table
from hf_interp.utils.files import new_file
from hf_interp.utils.task_info import TASK_INFOS

TEMPLATES = {
    "sequence-classification": '{"text": "so good", "label": "positive"}; lists of labels, or numbers, too',
    "sequence-classification (pairs)": '{"text": "a man sleeps", "text_pair": "he is awake", "label": "no"}',
    "token-classification": '{"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}, or a CoNLL file',
    "translation, summarization, seq2seq": '{"source": "good day", "target": "bonjour"}',
    "causal-lm": '{"text": "..."}, a .txt file, or a folder of them',
    "chat": '{"messages": [{"role": "user", "content": "Hi"}, ...]}, ShareGPT\'s "conversations", or '
    '{"prompt": "Hi", "completion": "Hello"}',
    "masked-lm": "as for causal-lm",
    "image-classification": '{"image": "cats/1.png", "label": "cat"}, or a folder of images for each label',
    "audio-classification": '{"audio": "speech/1.wav", "label": "yes"}',
    "automatic-speech-recognition": '{"audio": "speech/1.wav", "text": "yes of course"}',
    "image-text": '{"image": "photos/1.png", "caption": "a red bus in the rain"}',
    "image-to-text": "as for image-text",
}
"""What a line of a file looks like, by task. Columns of other names are found, or named by flags."""
WIDTH = 44  # of a line of a recipe before its comment


def list_templates() -> str:
    """Return what files look like, by task."""
    return "\n".join(f"{name}\n    {row}" for name, row in TEMPLATES.items())


def init_recipe(model: str, paths: Mapping[str, str], output: Path, flags: Sequence[str] = ()) -> Draft:
    """Decide on a recipe for a model and data, and write it; for the arguments see `draft_recipe`.

    Raises:
        ValueError, OSError: for what cannot be read or decided, or an output that exists.
    """
    check_absent(output)
    draft = draft_recipe(model, paths, lay_flags({}, flags))
    write_recipe(draft, output)
    return draft


def check_absent(output: Path) -> None:
    """Refuse to write over a recipe, before anything is read."""
    if output.exists():
        raise ValueError(f"{str(output)!r} exists. Write elsewhere with --output, or remove it.")


def write_recipe(draft: Draft, path: Path) -> None:
    """Write a recipe."""
    if path.exists():
        raise ValueError(f"{str(path)!r} exists. Say another --output, or remove it.")
    with new_file(path) as file:
        file.write(format_recipe(draft))


def format_recipe(draft: Draft) -> str:
    """Return a recipe in YAML, a field a line with why it is so; corpora that differ in little refer to one another."""
    lines = ["# Written by `hf-interp init`. Paths are relative to the folder in which hf-interp is started."]
    trained = draft.fields["corpora"]
    for name, value in draft.fields.items():
        why = draft.why.get(name, "")
        if name.endswith("corpora"):
            lines += ["", _commented(f"{name}:", why)]
            lines += [
                f"  {side}: {_entry(side, entry, None if value is trained else trained)}"
                for side, entry in value.items()
            ]
            lines += [""] * (name == "eval_corpora")
        else:
            lines.append(_commented(f"{name}: {_flow(value)}", why))
    return "\n".join(lines) + "\n"


def _entry(side: str, entry: Mapping[str, Any], trained: Mapping[str, Any] | None) -> str:
    if trained is None:
        return f"&{side} {_flow(entry)}"
    base = trained[side]
    changed = {key: value for key, value in {**dict.fromkeys(base), **entry}.items() if base.get(key) != value}
    return f"{{<<: *{side}, {_flow(changed).strip('{}')}}}" if changed else f"*{side}"


def _commented(text: str, comment: str) -> str:
    return f"{text:<{WIDTH}}  # {comment}" if comment else text


def _flow(value: Any) -> str:
    """Return a value in one line of YAML."""
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return str(dumped).removesuffix("...\n").strip()


def format_draft(draft: Draft, output: str) -> str:
    """Return what was decided, and why: that is what the recipe says."""
    notes = "\n".join(draft.notes)
    return f"{notes}\n\n{format_recipe(draft)}\nThat is {output}. Look at what it reads, and train it:\n" + (
        f"  hf-interp plan {output} --samples 2\n  hf-interp train {output}"
    )


def check_file(path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file is: its format, columns, task, labels, lengths, and what is wrong with it."""
    facts = look_at("file", build_fields(CorpusConfig, {"path": path, **given}, "a corpus"))
    found: dict[str, Any] = {"path": path, "format": facts.form, "rows": facts.rows}
    found["reading"] = {
        name: value
        for name in ("delimiter", "encoding", "header", "document")
        if (value := getattr(facts.config, name)) != getattr(CorpusConfig, name)
    }
    found["columns"] = [_describe(column) for column in facts.columns.values()]
    try:
        task, columns, _ = choose_columns(facts, given)
    except ValueError as error:
        return {**found, "task": None, "wrong": [str(error)]}
    used = _used(facts, columns)
    answer = used.get("tags") or used.get("label")
    labels = dict(answer.counts()) if answer is not None and answer.kind in ("label", "list") else {}
    wrong = [*_take_whole(used, replace(facts.config, **columns), task), *_faults(used, facts), *_tag_faults(used)]
    wrong += [
        f"labels that differ in case or white space alone: {', '.join(map(repr, spellings))}"
        for spellings in by_meaning(labels).values()
        if len(spellings) > 1
    ]
    files = {column.name: column for name, column in used.items() if name in FILES}  # of which hashes are known now
    found["columns"] = [_describe(files.get(name, column)) for name, column in facts.columns.items()]
    uses = {name: used[name].name for name in used}
    return {**found, "task": task, "uses": uses, "labels": labels, "or": _other_tasks(task, uses), "wrong": wrong}


def _other_tasks(task: str, uses: Mapping[str, str]) -> str | None:
    """Return what files with few different texts may be for as well, if no name says that these are labels."""
    label = uses.get("label")
    if task not in TASKS_OF_MEDIA or label is None or label.lower() in LABELS:
        return None
    others = [name for name in ANSWERS_IN_TEXTS if TASKS_OF_MEDIA[name] == TASKS_OF_MEDIA[task]]
    return f"{' or '.join(others)}, if {label!r} is no label: --text_column {shlex.quote(label)}"


def _used(facts: Facts, columns: Mapping[str, Any]) -> dict[str, Column]:
    """Return the columns of a task by its names for them; two that hold one dialogue become one."""
    found = {}
    for field, column in columns.items():
        name = field.removesuffix("_column")
        if isinstance(column, list):
            parts = [facts.columns[part] for part in column]
            blank = max(part.blank for part in parts)  # then which turns belong together is not known
            turns = [] if blank else [list(chain(*row)) for row in zip(*(part.values for part in parts), strict=True)]
            found[name] = Column(" + ".join(column), "turns", turns, blank, parts[0].rows if turns else ())
        elif str(column) in facts.columns:
            found[name] = facts.columns[str(column)]
    return found


def _describe(column: Column) -> dict[str, Any]:
    lengths = [len(value) if isinstance(value, list) else len(str(value).split()) for value in column.values] or [0]
    found = {"name": column.name, "kind": column.kind, "blank": column.blank}
    if column.kind in FILES:
        return {**found, "different": len({*column.values}) or None, "p95": None, "longest": None}
    return {
        **found,
        "different": len(set(map(str, column.values))),
        "p95": int(np.percentile(lengths, 95)),
        "longest": max(lengths),
    }


def _take_whole(used: dict[str, Column], config: CorpusConfig, task: str) -> list[str]:
    """Put hashes for dialogues, images and sound, and return how many of them a run would refuse, and why."""
    kinds: dict[str, Kind] = {"messages": "turns", **{kind: kind for kind in FILES}}
    if (info := TASK_INFOS.get(task)) and info.converses:  # a file of texts may be of more than one task
        kinds |= {"messages": "parts", "image": "images"}
    found = []
    for name in kinds.keys() & used.keys():
        keys, refused = _read_whole(raw_values(used[name], config), converter(kinds[name], config, None))
        used[name] = used[name]._replace(values=[*keys.values()], rows=sorted({*keys, *refused}))
        if refused:
            (row, (file, what)), *others = refused.items()
            more = f"; others: {list_places(config, [*refused][1:])}" if others else ""
            place = list_places(config, [row])
            where = f"{file} ({place})" if file and place.startswith("line") else file or place
            found.append(f"{len(refused):,} rows cannot be read, such as {where}: {what}{more}")
    return found


def _read_whole(
    values: Iterable[tuple[int, Any]], read: Callable[[Any], Any]
) -> tuple[dict[int, int], dict[int, tuple[str | None, str]]]:
    """Return by their rows hashes of values, and of those that cannot be read the name of their file and why."""
    keys, refused = {}, {}
    for row, value in values:
        try:
            keys[row] = content_key(read(value))
        except BadValueError as error:
            refused[row] = file_of(value), error.what
    return keys, refused


def _faults(used: Mapping[str, Column], facts: Facts) -> list[str]:
    """Return what is wrong with the columns of a task."""
    rows = facts.rows
    may_lack = {"text_pair"} | {name for name, column in used.items() if (name, column.kind) == ("label", "list")}
    needed = {name: column for name, column in used.items() if column.blank and name not in may_lack}
    found = [
        f"{column.blank:,} rows have no {name} ({column.name!r}){_blank_places(column, facts.config)}"
        for name, column in needed.items()
    ]
    first, matter = next(iter(used.values())), used.get("text_pair") if "prompt" in used else None
    inputs = content_keys(zip(first.values, matter.values, strict=False) if matter else first.values)
    repeated = len(inputs) - len(np.unique(inputs))
    if repeated and (matter is None or matter.blank == 0):  # else which rows belong together is not known
        found.append(
            f"{repeated:,} of {rows:,} rows ({repeated / rows:.1%}) have the {next(iter(used))} of another row"
        )
    label = used.get("label")
    rare = [name for name, count in label.counts().items() if count == 1] if label and label.kind == "label" else []
    return [*found, *([f"labels with one row: {', '.join(rare[:5])}"] if rare else [])]


def _blank_places(column: Column, config: CorpusConfig) -> str:
    """Return where the rows of a column stand that have no value, where that is known."""
    blank = sorted({*range(len(column.rows) + column.blank)} - {*column.rows})
    return f": {list_places(config, blank)}" if column.rows else ""


def _tag_faults(used: Mapping[str, Column]) -> list[str]:
    if "tags" not in used:
        return []
    pairs = list(zip(used["tokens"].values, used["tags"].values, strict=False))
    uneven = sum(len(words) != len(tags) for words, tags in pairs)
    bad = sum(first_fault(tags) is not None for _, tags in pairs) if is_iob2([*used["tags"].counts()]) else 0
    found = {"rows have another number of tags than of words": uneven, "rows have tags that are not IOB2": bad}
    return [f"{count:,} {what}" for what, count in found.items() if count]


def format_check(found: Mapping[str, Any]) -> str:
    """Return what a file is as a text for the terminal."""
    reading = "".join(f", {name} {value!r}" for name, value in found["reading"].items())
    header = ["column", "kind", "blank", "different", "words (95%)", "longest"]
    lines = [f"{found['path']}: {found['rows']:,} rows, {found['format']}{reading}", ""]
    lines += [
        format_table(
            header, [["" if value is None else f"{value}" for value in column.values()] for column in found["columns"]]
        ),
        "",
    ]
    if found["task"]:
        uses = ", ".join(f"{name} {column!r}" for name, column in found["uses"].items())
        lines.append(f"task: {found['task']} ({uses})")
    if found.get("or"):
        lines.append(f"or: {found['or']}")
    if found.get("labels"):
        lines.append(f"labels: {format_counts(found['labels'])}")
    return "\n".join([*lines, *([f"wrong: {fault}" for fault in found["wrong"]] or ["nothing wrong was found"])])
