"""A recipe for a model and its data: what is decided, and why."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CTC_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)

from hf_interp.commands.column_choice import TASKS_OF_MEDIA, choose_columns
from hf_interp.commands.file_facts import Facts, look_at
from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.plan import MANY_PASSES
from hf_interp.tasks.corpora.dialogues import has_marks, training_template
from hf_interp.tasks.corpora.labels import by_meaning, tell_renamed
from hf_interp.tasks.corpora.loading import encode_corpus, load_corpus
from hf_interp.tasks.corpora.splits import content_keys, count_shared, format_few, in_part
from hf_interp.tasks.fitness import UNLIMITED
from hf_interp.tasks.methods import LANGUAGE_TASKS, lay_method
from hf_interp.tasks.models import check_model_name, label_names_of
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.recipe import SELF, CorpusConfig, Recipe
from hf_interp.tasks.self_corpus import ROWS
from hf_interp.tasks.task import check_task, get_task
from hf_interp.tasks.tokenizers import prepare_conversations, prepare_tokenizer
from hf_interp.utils.console import format_counts
from hf_interp.utils.errors import reading
from hf_interp.utils.task_info import TASK_INFOS, task_of_class

SPEECH_MAPPINGS = (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_CTC_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)
TALKS = [name for name, info in TASK_INFOS.items() if info.converses]
Fields = Mapping[str, Any]
CORPUS_FIELDS = CorpusConfig.__dataclass_fields__
GROUPS = {"corpora": "", "validation_corpora": "_validation", "eval_corpora": "_test"}
"""Of a recipe → what the flags of their files end with."""
GROUPS_FOR = {"corpora": "trained on", "validation_corpora": "choose α of the weights", "eval_corpora": "measured"}
HUB_SPLITS = {"validation_corpora": ("validation", "valid", "dev"), "eval_corpora": ("test",)}
SAMPLE = 1000  # rows whose lengths are measured
LEAST_MADE, MOST_MADE = 200, 5000  # rows that M₀ makes
MOST_MEASURED = 1000  # rows of a set that is measured again and again
FEW_ROWS = 200
THOUSANDS = 2000  # domain examples of which a language model learns best at another α than of 300 (docs/evidence.md)
SHORTEST, LONGEST = 16, 512  # tokens
FEW_BLOCKS = 4
BATCH, FEW_BATCH = 16, 4
LEAST_STEPS, MOST_STEPS = 10, 3000
SMALL = 50_000_000  # parameters
ADAPTED_FROM = 300_000_000  # parameters: larger models are trained with LoRA


class ModelFacts(NamedTuple):
    """What a model is: its family, the task and labels of its head, its longest input, its size, its tokenizer.

    A model of images or sound has that as its family, and no tokenizer; one that converses about images its processor.
    """

    family: str
    task: str | None
    labels: list[str]
    longest: int
    parameters: int
    tokenizer: Any


@dataclass
class Draft:
    """Fields of a recipe in their order, and by field why they are so; `notes` are of no field."""

    fields: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    """That are trained on, by side."""

    def decide(self, name: str, value: Any, why: str = "") -> None:
        """Set a field, unless it is set."""
        self.fields.setdefault(name, value)
        self.why[name] = why if self.fields[name] == value else "as you say"


class Part(NamedTuple):
    """A set of a recipe: its entry, its rows, and how many of them count."""

    entry: dict[str, Any]
    rows: datasets.Dataset
    size: int


def look_at_model(name: str, *, sees: bool = False, **settings: Any) -> ModelFacts:
    """Look at a model's configuration and tokenizer; its weights are not read.

    It `sees` if it is to read images, which some models of texts can.
    """
    check_model_name(name)
    with reading(f"The model {name!r}"):
        config = AutoConfig.from_pretrained(name, **settings)
    task = task_of_class((config.architectures or [""])[0])
    reads_texts = task is not None and TASK_INFOS[task].takes == "text"
    if sees and reads_texts and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        task = TALKS[0]
    has_both = task is not None and TASK_INFOS[task].takes == "image-text"
    family, longest, tokenizer = "image" if has_both else _family(config), 0, None
    if family not in TASKS_OF_MEDIA.values() or task in TALKS:
        with reading(f"The model {name!r}"):
            tokenizer = (AutoProcessor if task in TALKS else AutoTokenizer).from_pretrained(name, **settings)
        text = config.get_text_config()
        known = [getattr(text, key, None) for key in ("max_position_embeddings", "n_positions")]
        most = getattr(tokenizer, "tokenizer", tokenizer).model_max_length
        longest = min([most, *(length for length in known if isinstance(length, int))])
    has_labels = task is not None and TASK_INFOS[task].has_labels
    labels = list(config.id2label.values()) if has_labels else []
    kind = getattr(transformers, TASK_INFOS[task].auto_class if task and has_both else "AutoModel")
    with torch.device("meta"):
        parameters = sum(each.numel() for each in kind.from_config(config).parameters())
    return ModelFacts(family, task, labels, longest, parameters, tokenizer)


def _family(config: Any) -> str:
    for kind, mapping in (
        ("image", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        *(("audio", mapping) for mapping in SPEECH_MAPPINGS),
    ):
        if type(config) in mapping:
            return kind
    is_decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return "encoder-decoder" if config.is_encoder_decoder else "decoder" if is_decoder else "encoder"


def draft_recipe(model: str, paths: Mapping[str, str], given: Mapping[str, Any]) -> Draft:
    """Decide on a recipe.

    Args:
        model: M₀, a folder or a name on the Hub.
        paths: where the data is: `domain` and, if there are others, `general`, `domain_validation`, `domain_test`,
            `general_validation` and `general_test`.
        given: fields that are settled, of the recipe and of its corpora; those of one side under `corpora.<side>`.

    Raises:
        ValueError, OSError: for what cannot be read or decided, naming the flag that settles it.
    """
    own = CORPUS_FIELDS.keys() - Recipe.__dataclass_fields__.keys()  # what both have is said of the recipe
    of_corpora = {key: value for key, value in given.items() if key in own}
    draft = Draft({key: value for key, value in given.items() if key not in (*own, "corpora")})
    settings = {"revision": given.get("model_revision"), "trust_remote_code": given.get("trust_remote_code")}
    own_fields = given.get("corpora") or {}
    makes, wanted = paths.get("general") == SELF, paths
    if makes and (other := next((name for name in paths if name.startswith("general_")), None)):
        raise ValueError(f"--{other} does not go with --general {SELF}. Write it into the recipe's sets yourself.")
    paths = {name: path for name, path in paths.items() if path != SELF}
    settled: dict[str, Fields] = {side: {**of_corpora, **own_fields.get(side, {})} for side in SIDES if side in paths}
    facts = {name: look_at(name, CorpusConfig(path=path, **settled[_side(name)])) for name, path in paths.items()}
    settled = {side: _present(side, fields, of_corpora, facts) for side, fields in settled.items()}
    sees = given.get("task", TALKS[0]) in TALKS and bool(facts["domain"].of_kind("image"))
    found = look_at_model(model, sees=sees, **{key: value for key, value in settings.items() if value is not None})
    is_of_files = found.task is not None and TASK_INFOS[found.task].takes != "text"
    task = draft.fields.get("task") or (found.task if found.labels or is_of_files else None)
    task, columns, answers = choose_columns(facts["domain"], settled["domain"], task=task, family=found.family)
    draft.decide("task", task, f"{_shown(columns)} of {paths['domain']}")
    draft.decide("model_name_or_path", model, f"{found.parameters:,} parameters, {found.family}")
    draft.fields |= answers
    entries: dict[str, dict[str, Any]] = {}
    for side, fields in settled.items():
        _, columns, _ = choose_columns(facts[side], fields, task=task, family=found.family)
        entries[side] = _entry(facts[side], {**fields, **columns})
        draft.notes.append(_describe(paths[side], facts[side], columns))
    _decide_labels(draft, facts, entries, found)
    if any(CorpusConfig(**entry).is_dialogue for entry in entries.values()):
        _decide_template(draft, found)
    made = _made_sets(draft, found, facts["domain"].rows, own_fields.get("general", {})) if makes else {}
    _decide_data(draft, facts, entries, found, made)
    _decide_training(draft, found, wanted, made)
    return draft


def _side(name: str) -> str:
    """Return the side of data that is called by its flag, such as domain_test."""
    return "domain" if name.startswith("domain") else "general"


def _present(side: str, settled: Fields, of_corpora: Fields, facts: Mapping[str, Facts]) -> Fields:
    """Return the fields of a side, without columns that are named for both sides and only the other has."""
    others = {name for other, found in facts.items() if _side(other) != side for name in found.columns}
    absent = [
        key
        for key, value in of_corpora.items()
        if key.endswith("_column") and value in others and value not in facts[side].columns
    ]
    return {key: value for key, value in settled.items() if key not in absent}


def _entry(facts: Facts, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a corpus that are no defaults."""
    config = replace(facts.config, **columns)
    return {key: value for key, value in vars(config).items() if value != CORPUS_FIELDS[key].default}


def _shown(columns: Mapping[str, Any]) -> str:
    shown = (f"{name.removesuffix('_column')} {value!r}" for name, value in columns.items() if value)
    return ", ".join(shown)


def _describe(path: str, facts: Facts, columns: Mapping[str, Any]) -> str:
    read = [name for named in columns.values() for name in (named if isinstance(named, list) else [named])]
    unread = [name for name, column in facts.columns.items() if name not in read and column.kind != "empty"]
    rest = f"; not read: {', '.join(unread)}" if unread else ""
    return f"{path}: {facts.rows:,} rows ({facts.form}), {_shown(columns)}{rest}"


def match_labels(found: Iterable[str], names: Sequence[str]) -> dict[str, str] | None:
    """Return the name of every label, whatever its case and white space, or of which it is an unmistakable beginning;
    `None` if one has none.

    >>> match_labels(["POS", "negative"], ["negative", "positive"])
    {'POS': 'positive', 'negative': 'negative'}
    """
    matched, spelt = {}, by_meaning(names)
    for plain, labels in by_meaning(found).items():
        near = spelt.get(plain) or [name for name in names if len(plain) > 2 and name.casefold().startswith(plain)]
        for label in labels:
            exact = [label] if label in names else near
            if len(exact) != 1:
                return None
            matched[label] = exact[0]
    return matched


def _decide_labels(draft: Draft, facts: Mapping[str, Facts], entries: dict[str, Any], model: ModelFacts) -> None:
    """Decide on the labels of all files, and map those of a side that are called otherwise."""
    info = TASK_INFOS[draft.fields["task"]]
    column = "tags_column" if info.answer == "tags" else "label_column"
    if not info.has_labels or draft.fields.get("problem_type") == "regression":
        return
    counts: dict[str, Counter[str]] = {side: Counter() for side in entries}
    for name, found in facts.items():
        side = _side(name)
        source = found.columns.get(CorpusConfig(**entries[side]).source(column.removesuffix("_column")))
        counts[side] += source.counts() if source is not None else Counter()
    mapped = {side: entry.get("label_map") or {} for side, entry in entries.items()}
    labels = {side: [label for label, _ in counts[side].most_common() if label not in mapped[side]] for side in entries}
    names = _choose_names(draft.fields.get("label_names"), labels, model)
    draft.decide("label_names", names, "in the order of their ids")
    draft.notes += filter(None, [tell_renamed(model.labels, names)])
    draft.notes += [f"labels of {side}: {format_counts(found)}" for side, found in counts.items()]
    is_shifted = any(name.isdigit() and names[int(name) : int(name) + 1] != [name] for name in names)
    for side, entry in entries.items():
        matched = match_labels(labels[side], names) or {}
        draft.notes += [
            f"labels of {side}: {label!r} is read as {name!r}; if they are two, list both in --label_names"
            for label, name in matched.items()
            if label != name and name in labels[side]
        ]
        label_map: dict[Any, Any] = {label: name for label, name in matched.items() if label != name or is_shifted}
        source = facts[side].columns[CorpusConfig(**entry).source(column.removesuffix("_column"))]
        if source.blank and source.kind != "list":  # a row may have none of several labels
            label_map[None] = None
            draft.notes.append(f"{entry['path']}: rows without a label are dropped")
        if label_map or mapped[side]:
            entry["label_map"] = {**label_map, **mapped[side]}


def _choose_names(given: list[str] | None, labels: Mapping[str, list[str]], model: ModelFacts) -> list[str]:
    """Return names that all labels match: the model's, those of one side, or of both sides if they share some."""
    is_named = not all(re.fullmatch(r"LABEL_\d+", label) for label in model.labels)
    everything, shared = [*itertools.chain(*labels.values())], set.intersection(*map(set, labels.values()))
    sets = [*labels.values(), *([everything] if shared else [])]
    own = [_sorted(spellings[0] for spellings in by_meaning(found).values()) for found in sets]  # the most usual
    options = [model.labels if is_named else [], *own]
    for names in [given] if given else options:
        fits = len(names) == len(model.labels) or not model.labels
        if names and fits and all(match_labels(found, names) for found in labels.values()):
            return names
    shown = "; ".join(f"{side} {_sorted(found)[:8]}" for side, found in labels.items())
    head = f"; the model's head {model.labels[:8]}" if model.labels else ""
    rest = ", or take a model without a head" if model.labels else ""
    raise ValueError(
        f"The labels differ: {shown}{head}. Map them, such as --corpora.domain.label_map "
        f"'{{{_sorted(labels['domain'])[0]}: NAME}}', or say all with --label_names '[A, B]'{rest}."
    )


def _sorted(labels: Iterable[str]) -> list[str]:
    """Return labels in the order of their ids: numbers by size; tags with O first, and a B- for every I-."""
    found = {*labels}
    if all(label.lstrip("-").isdigit() for label in found):
        return sorted(found, key=int)
    if "O" in found:
        found |= {f"B-{label[2:]}" for label in found if label.startswith("I-")}
        return sorted(found, key=lambda label: (label != "O", label[2:], label))
    return sorted(found)


def _decide_template(draft: Draft, model: ModelFacts) -> None:
    """Decide on TRL's variant of the model's template, where that marks nothing and TRL is there and has one."""
    tokenizer = getattr(model.tokenizer, "tokenizer", model.tokenizer)
    if tokenizer is not None and tokenizer.chat_template and not has_marks(tokenizer.get_chat_template()):
        try:
            training_template(tokenizer, "trl")
        except (ImportError, ValueError):
            return
        draft.decide("chat_template", "trl", "the model's own, with TRL's marks of what the assistant says")


def _made_sets(draft: Draft, model: ModelFacts, domain_rows: int, given: Fields) -> dict[str, dict[str, Any]]:
    """Return the sets of a general side that M₀ makes: of what it draws, parts measure and choose α, too."""
    task = draft.fields["task"]
    count = (
        {} if TASK_INFOS[task].answer == "continuation" else {"max_examples": min(max(ROWS, domain_rows), MOST_MADE)}
    )
    entry = {"path": SELF, **count, **given}
    info = TASK_INFOS[task]
    if info.has_labels and model.task != task:
        raise ValueError(
            f"--general {SELF} needs a model with a trained head for {task}, which "
            f"{draft.fields['model_name_or_path']!r} has not. Give one that has, or a file to --general."
        )
    if info.answer != "continuation":
        what = "M₀'s predictions are trained, on" if info.has_labels else "M₀ makes rows of its own of"
        rest = "; for classifiers that helped little (docs/evidence.md)" if info.has_labels else ""
        draft.notes.append(f"{SELF}: {what} the domain's inputs unless made_from says others{rest}")
        return {"corpora": entry}
    parts = _parts([group for group in GROUPS if group != "corpora"], given.get("max_examples", LEAST_MADE))
    return {group: {**entry, "part": part} for group, part in parts.items()}


def _size_made(draft: Draft, made: Mapping[str, dict[str, Any]], batch: int, in_step: float) -> None:
    """Decide how many rows M₀ makes, of which parts measure it, too: as many as a run reads a few times."""
    read = draft.fields["max_steps"] * (batch - in_step)
    start, end = made["corpora"]["part"]
    count = min(max(LEAST_MADE, math.ceil(read / MANY_PASSES / (end - start))), MOST_MADE)
    for entry in made.values():
        entry.setdefault("max_examples", count)
    rows = made["corpora"]["max_examples"]
    passes = read / (rows * (end - start))
    draft.notes.append(
        f"{SELF}: M₀ is to make {rows:,} rows before training, fewer where some are not fit; most are trained on, "
        f"about {passes:.1f} times, and parts measure it"
    )


def _decide_data(
    draft: Draft,
    facts: Mapping[str, Facts],
    entries: Mapping[str, Any],
    model: ModelFacts,
    made: Mapping[str, dict[str, Any]],
) -> None:
    """Decide what is trained on, what chooses α and what is measured, and how long inputs may be."""
    recipe, _ = parse_recipe({**draft.fields, "corpora": entries})
    check_task(recipe)
    if model.tokenizer is not None:
        (prepare_conversations if recipe.task in TALKS else prepare_tokenizer)(model.tokenizer, recipe)
    groups = [group for group in GROUPS if group in made or group != "validation_corpora" or "general" in facts]
    divided = {side: _divide(side, entry, facts, recipe, groups, draft.notes) for side, entry in entries.items()}
    for group in divided["domain"]:
        reason = GROUPS_FOR[group]
        counts = ", ".join(f"{side} {parts[group].size:,} rows" for side, parts in divided.items())
        sets = {side: parts[group].entry for side, parts in divided.items()}
        draft.decide(group, sets | ({"general": made[group]} if group in made else {}), f"{reason}: {counts}")
    draft.examples = {side: parts["corpora"].size for side, parts in divided.items()}
    sizes = {f"{group}.{side}": parts[group].size for side, parts in divided.items() for group in list(parts)[1:]}
    draft.notes += format_few(sizes, TASK_INFOS[recipe.task].answer)
    if model.tokenizer is not None:
        _measure(draft, divided, recipe, model)


def _measure(draft: Draft, divided: Mapping[str, Mapping[str, Part]], recipe: Recipe, model: ModelFacts) -> None:
    """Decide how long texts may be, by those that there are."""
    task = get_task(recipe.task)
    encode = task.encode(model.tokenizer, replace(recipe, max_length=UNLIMITED, max_target_length=UNLIMITED))
    measured = []
    for side, parts in divided.items():
        count = sum(len(part.rows) for part in parts.values())
        step = 1 if recipe.corpora[side].is_dialogue else max(1, count // SAMPLE)  # each needs room for an answer
        found = []
        for part in parts.values():
            rows, config = part.rows.select(range(0, len(part.rows), step)), CorpusConfig(**part.entry)
            found.append(encode_corpus(side, rows, config, encode, rows.column_names))
        measured.append(datasets.concatenate_datasets(found))
    if task.is_packed and recipe.packing and not any(each.is_dialogue for each in recipe.corpora.values()):
        _decide_blocks(draft, measured, divided, model)
    else:
        _decide_lengths(draft, measured, recipe, model)


def _divide(
    side: str,
    entry: Mapping[str, Any],
    facts: Mapping[str, Facts],
    recipe: Recipe,
    groups: Sequence[str],
    notes: list[str],
) -> dict[str, Part]:
    """Return the sets of a side: those that are given, and for those that are not parts of the training file."""
    flags = {group: f"{side}{end}" for group, end in GROUPS.items()}
    splits: dict[str, dict[str, Any]] = {group: {"split": split} for group, split in _hub_splits(facts[side]).items()}
    given: dict[str, dict[str, Any]] = {
        group: {"path": facts[flag].config.path} for group, flag in flags.items() if flag in facts
    }
    sets = {group: {**entry, **own} for group, own in {**splits, **given}.items()}
    rows = {group: _load(flags[group], CorpusConfig(**own), recipe) for group, own in sets.items()}
    inputs = next(iter(get_task(recipe.task).columns(recipe, CorpusConfig(**entry))))
    keys = {group: content_keys(found[inputs]) for group, found in rows.items()}
    notes += [_compare(group, flags[group], sets, keys) for group in sets if group != "corpora"]
    missing = [group for group in groups if group not in sets]
    for group, part in _parts(missing, len(keys["corpora"])).items():
        inside = np.flatnonzero(in_part(keys["corpora"], part))
        if not len(inside):
            count = f"{len(keys['corpora']):,}, {len(np.unique(keys['corpora'])):,} of them different"
            raise ValueError(
                f"{entry['path']!r} has too few rows ({count}) to keep a part for `{group}`. Give one "
                f"for that, by --{flags[group] if group != 'corpora' else flags['eval_corpora']}."
            )
        sets[group], whole = {**entry, "part": part}, rows["corpora"] if group != "corpora" else rows.pop("corpora")
        rows[group] = whole.select(inside)
    return {group: _limited(group, sets[group], rows[group]) for group in GROUPS if group in sets}


def _parts(missing: Sequence[str], rows: int) -> dict[str, list[float]]:
    """Return parts of the training file for the sets that are missing, and the training set's last.

    >>> _parts(["eval_corpora"], 1000)
    {'eval_corpora': [0.9, 1.0], 'corpora': [0.0, 0.9]}
    """
    share = 0.2 if rows < FEW_ROWS else 0.1
    ends = [round(1 - share * left, 2) for left in range(len(missing), -1, -1)]
    parts = {group: [start, end] for group, start, end in zip(missing, ends, ends[1:], strict=False)}
    return {**parts, "corpora": [0.0, ends[0]]} if missing else {}


def _compare(group: str, flag: str, sets: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """Return how many rows of a set are trained on, or refuse it if all are."""
    shared, total = count_shared(keys[group], [keys["corpora"]]), len(keys[group])
    what = f"{shared:,} of {total:,} rows of {sets[group]['path']} are trained on"
    if shared == total:
        raise ValueError(f"{what}. Give another file, or leave --{flag} out: a part of the training file is then kept.")
    return what


def _limited(group: str, entry: dict[str, Any], rows: datasets.Dataset) -> Part:
    """Return a set, of which not too many rows are measured again and again."""
    if group == "corpora" or len(rows) <= MOST_MEASURED:
        return Part(entry, rows, len(rows))
    return Part({**entry, "max_examples": MOST_MEASURED}, rows, MOST_MEASURED)


def _hub_splits(facts: Facts) -> dict[str, str]:
    """Return the splits for validation and test of a dataset that has such."""
    if facts.form not in ("Hub", "a folder") or facts.config.split != "train":
        return {}
    names = datasets.get_dataset_split_names(str(facts.config.path), facts.config.config_name)
    usual = {group: next((name for name in HUB_SPLITS[group] if name in names), None) for group in HUB_SPLITS}
    return {group: name for group, name in usual.items() if name is not None}


def _load(name: str, config: CorpusConfig, recipe: Recipe) -> datasets.Dataset:
    columns = get_task(recipe.task).columns(recipe, config)
    return load_corpus(name, config, columns, label_names_of(recipe), numbered=True)


def _decide_blocks(
    draft: Draft, measured: Sequence[Any], divided: Mapping[str, Mapping[str, Part]], model: ModelFacts
) -> None:
    """Decide on the length of packed examples: the longest of which the smallest set has a few."""
    tokens = {}
    for found, (side, parts) in zip(measured, divided.items(), strict=True):
        mean = sum(map(len, found["input_ids"])) / len(found)
        tokens[side] = {group: mean * part.size for group, part in parts.items()}
    block, least = min(LONGEST, model.longest), min(min(counts.values()) for counts in tokens.values())
    while block > SHORTEST and least / block < FEW_BLOCKS:
        block //= 2
    draft.decide("max_length", block, f"texts are packed into so many tokens; the smallest set has about {least:,.0f}")
    length = draft.fields["max_length"]
    draft.examples = {side: max(1, int(counts["corpora"] / length)) for side, counts in tokens.items()}


def _decide_lengths(draft: Draft, measured: Sequence[Any], recipe: Recipe, model: ModelFacts) -> None:
    inputs = np.array([len(ids) for found in measured for ids in found["input_ids"]])
    likely = _rounded(np.percentile(inputs, 95))
    limit = LONGEST * (2 if model.family == "decoder" else 1)
    if recipe.task in TALKS or any(corpus.is_dialogue for corpus in recipe.corpora.values()):
        # each needs a token of the assistant, and so all of its images
        labels = [row for found in measured for row in found["labels"]]
        spoken = [next(place for place, label in enumerate(row) if label != IGNORE_INDEX) for row in labels]
        makes = any(entry["path"] == SELF for entry in draft.fields["corpora"].values())
        likely = max(likely, _rounded(max(spoken) + 2), LONGEST * makes)  # M₀'s dialogues have lengths of their own
        limit = max(limit, _rounded(max(spoken) + (LONGEST if recipe.task in TALKS else 2)))
    length = min(likely, limit, model.longest)
    most = f"95% of inputs have up to {np.percentile(inputs, 95):.0f} tokens"
    if likely == LONGEST > np.percentile(inputs, 95):
        most += ", and M₀ makes dialogues that may have more"
    longest = ", as much as the model takes" if model.longest < likely else ""
    draft.decide(
        "max_length",
        length,
        f"{most}; {np.mean(inputs > length):.1%} are cut{longest}",
    )
    if get_task(recipe.task).generates:
        targets = np.array([len(row) for found in measured for row in found["labels"]])
        length = min(_rounded(np.percentile(targets, 95)), LONGEST)
        draft.decide("max_target_length", length, f"of targets {np.mean(targets > length):.1%} are cut")
        draft.decide("truncate_target", True, "else longer targets are refused")


def _rounded(length: float) -> int:
    """Return a multiple of eight, which processors like."""
    return max(SHORTEST, 8 * math.ceil(length / 8))


def _decide_training(
    draft: Draft, model: ModelFacts, paths: Mapping[str, str], made: Mapping[str, dict[str, Any]]
) -> None:
    """Decide on α, on what is trained, and for how long."""
    if "general" in paths:
        draft.decide("method", "balanced", "or keep, or domain, where one side counts more; plan prints what it sets")
        if draft.fields["task"] in LANGUAGE_TASKS and draft.examples["domain"] >= THOUSANDS:
            draft.decide(
                "alpha", 0.5, "the method's 0.25 is best of a few hundred domain examples, see docs/evidence.md"
            )
    else:
        draft.decide("alpha", 1.0, "without general data (--general) what is forgotten is neither held nor measured")
    is_chat = draft.fields["task"] == "chat"
    if (is_chat or model.parameters > ADAPTED_FROM) and find_spec("peft"):
        size = f"more than {ADAPTED_FROM / 1e6:.0f} million parameters"
        draft.decide("peft", "lora", "on every linear layer; null trains all weights" if is_chat else size)
    is_few = draft.examples["domain"] < 4 * BATCH
    batch = FEW_BATCH if is_few else BATCH
    on_device = max(1, min(batch, BATCH * 256 // draft.fields.get("max_length", 256)))
    name, folder = Path(paths["domain"]).name.partition(".")[0], Path(paths["domain"]).parent.name
    draft.decide("output_dir", f"runs/{(folder if name in ('train', 'data') else name) or 'mine'}")
    draft.decide("per_device_train_batch_size", on_device)
    if on_device < batch:
        draft.decide("gradient_accumulation_steps", batch // on_device, f"about {batch} examples a step, in parts")
    _decide_steps(draft, batch, made)
    rates = {SMALL: 1e-4, ADAPTED_FROM: 5e-5, math.inf: 2e-5}
    rate = next(rate for size, rate in rates.items() if model.parameters <= size)
    draft.decide(
        "learning_rate", 2e-4 if draft.fields.get("peft") else rate, "usual for this size; tune searches for it"
    )
    draft.decide("warmup_steps", 0.1, "the share of the run in which the learning rate rises")
    draft.decide("eval_strategy", "steps")
    draft.decide("eval_steps", math.ceil(draft.fields["max_steps"] / 4))
    draft.decide("logging_steps", math.ceil(draft.fields["max_steps"] / 20))
    draft.decide("save_strategy", "no", "the model is saved at the end; steps keeps checkpoints too")


def _decide_steps(draft: Draft, batch: int, made: Mapping[str, dict[str, Any]]) -> None:
    """Decide on the steps: as many passes as repeated data is good for, within limits."""
    count = draft.examples["domain"]
    in_step = batch * float(lay_method(draft.fields)[0].get("alpha") or 0.5)  # of a schedule about half
    steps = max(LEAST_STEPS, min(MOST_STEPS, math.ceil(MANY_PASSES * count / in_step)))
    draft.decide("max_steps", steps, f"{steps * in_step / count:.1f} passes over {count:,} domain examples")
    if "eval_corpora" in made:
        _size_made(draft, made, batch, in_step)
    steps, general = draft.fields["max_steps"], draft.examples.get("general", 0)
    if general and (passes := steps * (batch - in_step) / general) > 2 * MANY_PASSES:
        draft.notes.append(
            f"general: its {general:,} examples are read {passes:.0f} times; beyond about {MANY_PASSES:g} passes a "
            "model gains little. Bring more, or raise --alpha"
        )
