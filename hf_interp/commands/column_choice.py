"""Which task a corpus is for, and which of its columns are which; what can be read in two ways is refused."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from hf_interp.commands.file_facts import Column, ColumnKind, Facts
from hf_interp.tasks.corpora.dialogues import other_parts, words_of
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.task_info import TASK_INFOS

TEXTS = ("text", "sentence", "review", "content", "tweet", "comment", "utterance", "body", "document")
TRANSCRIPTS = (*("text", "transcript", "transcription", "sentence"), "normalized_text", "raw_transcription")
CAPTIONS = ("caption", "captions", "text", "description", "alt_text", "title")
LABELS = ("label", "labels", "label_name", "class", "category", "sentiment", "intent", "topic")
TAGS = ("ner_tags", "tags", "labels")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text_a", "text_b"))
INPUTS = ("input", "context")  # of an instruction
PROMPTS = (
    *(("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response")),
    *(("question", "answer"), ("query", "response"), ("input", "output")),
)
SOURCES = (("source", "target"), ("document", "summary"), ("article", "highlights"), ("src", "tgt"), ("text", "target"))
MESSAGES = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog")
ASSISTANTS = ("assistant", "gpt", "bot", "chatbot", "model", "agent")
SPEAKERS = {
    "user": ("user", "human", "customer", "prompter"),
    "assistant": ASSISTANTS,
    "tool": ("tool", "function", "observation", "ipython"),
}
"""What speakers are called, by role."""
TASKS_OF_MEDIA = {
    "automatic-speech-recognition": "audio",
    "image-classification": "image",
    "audio-classification": "audio",
    "image-text": "image",
    "image-to-text": "image",
}
ANSWERS_IN_TEXTS = {
    "automatic-speech-recognition": TRANSCRIPTS,
    "image-text": CAPTIONS,
    "image-to-text": CAPTIONS,
}
"""By tasks of images and sound with texts, what the column of these is usually called."""
TASKS_OF_TEXTS = {"decoder": "causal-lm", "encoder": "masked-lm", None: "causal-lm or masked-lm"}

Given = Mapping[str, Any]


class Choice(NamedTuple):
    """A task, the fields of a corpus that name its columns, and fields of the recipe."""

    task: str
    columns: dict[str, Any]
    recipe: dict[str, Any]


def choose_columns(facts: Facts, given: Given, *, task: str | None = None, family: str | None = None) -> Choice:
    """Choose what a corpus is for.

    Args:
        facts: the corpus.
        given: fields of the corpus that are settled.
        task: settled, if it is.
        family: encoder, decoder or encoder-decoder, or image or audio, if there is a model.
    """
    has_media = family in TASKS_OF_MEDIA.values() if family else bool(facts.of_kind("image", "audio"))
    for name, choose in CHOICES.items():
        fits = name == "conversation" or (name == "media") == has_media
        if fits and (task is None or name in KINDS.get(task, (task,))):
            choice = choose(facts, given, task, family)
            if choice is not None:
                return choice
    shown = ", ".join(f"{name} ({column.kind})" for name, column in facts.columns.items())
    wanted = "is for cannot be told" if task is None else f"has does not make a corpus for {task}"
    kind = {"image": "one for images", "audio": "one for sound", "decoder": "a decoder"}.get(
        str(family), f"an {family}"
    )
    model = f", and the model is {kind}" if family else ""
    raise ValueError(
        f"What {facts.config.path!r} {wanted}. It has {shown}{model}. Say --task, and columns such as --text_column, "
        "--label_column, --target_column, --messages_column, --image_column or --audio_column."
    )


def _conversation(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    """Choose what is said, and the column of the images of which it speaks, or none; without a task only dialogues."""
    images = facts.of_kind("image")
    if task is None and (family or not images):
        return None
    image = _find(facts, given, "image_column", images) if given.get("image_column") != "" else None
    found = _dialogue(_in_words(facts), given, task, "decoder")
    if found is None and task is not None:
        text = _text_of_media(facts, given, task, CAPTIONS) if image else None
        found = Choice(task, {"text_column": text}, {}) if text else _prose(facts, given, task, "decoder")
    columns = {"image_column": image or "", **found.columns} if found is not None else {}
    return Choice("image-text-to-text", columns, {}) if found is not None else None


def _in_words(facts: Facts) -> Facts:
    """Return a corpus with turns whose parts are put together, without the places of images."""
    found = dict(facts.columns)
    for name in facts.of_kind("turns"):
        values = [[{key: words_of(part) for key, part in turn.items()} for turn in row] for row in found[name].values]
        found[name] = found[name]._replace(values=values)
    return facts._replace(columns=found)


def _media(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    for name, kind in TASKS_OF_MEDIA.items():
        files = facts.of_kind("image") if kind == "image" else facts.of_kind("audio")
        column = _find(facts, given, f"{kind}_column", files)
        if column is None or name != (task or name) or kind != (family or kind):
            continue
        if family and task is None and TASK_INFOS[name].takes == "image-text":  # models of both tell their task
            continue
        if name in ANSWERS_IN_TEXTS:
            text = _text_of_media(facts, given, task, ANSWERS_IN_TEXTS[name])
            if text is not None:
                return Choice(name, {f"{kind}_column": column, "text_column": text}, {})
            continue
        labels, problem = (None, {}) if task is None and "text_column" in given else _answers(facts, given)
        if labels is not None:
            return Choice(name, {f"{kind}_column": column, "label_column": labels}, problem)
    return None


def _text_of_media(facts: Facts, given: Given, task: str | None, names: Sequence[str]) -> str | None:
    """Return the column of transcripts or captions; where no task says that there is one, one that is called so."""
    is_settled = task is not None or "text_column" in given
    has_labels = any(name.lower() in LABELS for name in facts.columns)  # else few different texts are not labels
    kinds: list[ColumnKind] = ["text", "label", "id"] if is_settled else ["text"] if has_labels else ["text", "label"]
    texts = facts.of_kind(*kinds)
    texts = texts if is_settled else [name for name in texts if name.lower() in names]
    return None if "label_column" in given else _find(facts, given, "text_column", texts, names)


def _dialogue(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    named = {field: given[field] for field in ("messages_column", "prompt_column", "text_column") if field in given}
    if "text_column" in named or family == "encoder":
        return None
    turns = [name for name in facts.of_kind("turns") if name != "tools"]
    pair = _named_pair(facts, PROMPTS)
    if not named and pair is not None and {*pair} <= {*turns}:  # as TRL has them
        both = Column("", "turns", [value for name in pair for value in facts.columns[name].values], 0)
        return Choice(task or "chat", {"messages_column": list(pair), **_speakers(both, given)}, {})
    column = None if "prompt_column" in named else _find(facts, given, "messages_column", turns, MESSAGES)
    if column is not None:
        has_tools = "tools" in facts.columns and facts.columns["tools"].kind != "empty"
        tools = {"tools_column": "tools"} if has_tools else {}
        speakers = _speakers(facts.columns[column], given)
        return Choice(task or "chat", {"messages_column": column, **tools, **speakers}, {})
    settled = (given.get("prompt_column"), given.get("target_column", "target"))
    found = settled if settled[0] else pair if family != "encoder-decoder" else None
    if found is None:
        return None
    columns = {"prompt_column": found[0], "text_pair_column": _input(facts, given, found), "target_column": found[1]}
    return Choice(task or "chat", {field: name for field, name in columns.items() if name is not None}, {})


def _input(facts: Facts, given: Given, pair: Collection[Any]) -> str | None:
    """Return the column of what an instruction is about."""
    names = {name.lower(): name for name, column in facts.columns.items() if column.values and name not in pair}
    is_instruction = "instruction" in map(str.lower, pair)
    usual = next((names[name] for name in INPUTS if name in names and is_instruction), None)
    return given.get("text_pair_column", usual)


def _speakers(column: Column, given: Given) -> dict[str, Any]:
    """Return which keys of a turn are the speaker and the words, and who the speakers are."""
    turns = [turn for value in column.values for turn in value]
    texts = {key: [turn[key] for turn in turns if isinstance(turn.get(key), str)] for key in turns[0]}
    known = {key: values for key, values in texts.items() if len(values) == len(turns)}
    said = {
        key: values
        for key, values in texts.items()
        if len(values) == sum(not (turn.get("tool_calls") and turn.get(key) is None) for turn in turns)
    }
    role = given.get("role_key") or min(known, key=lambda key: len(set(known[key])), default=None)
    others = [key for key in said if key != role]
    parts = [part for turn in turns for key in turn if key != "tool_calls" for part in other_parts(turn[key])]
    if parts and not others:
        raise ValueError(
            f"The turns of {column.name!r} have parts of type {parts[0]!r:.40}, and only texts are read. Leave such "
            "rows out."
        )
    if role is None or not others:
        raise ValueError(f"The turns of {column.name!r} have {list(turns[0])}, not a speaker and a text each.")
    content = given.get("content_key") or max(others, key=lambda key: len("".join(said[key])))
    speakers = {name: _role(name, set(known[role])) for name in dict.fromkeys(known[role])}
    unknown = [name for name, who in speakers.items() if who is None and name not in (given.get("roles") or {})]
    if unknown:
        raise ValueError(
            f"The speakers {', '.join(map(repr, unknown))} of {column.name!r} may be anybody. Say who they are: "
            f"--roles '{{{unknown[0]}: user}}', or assistant, or system."
        )
    roles = {name: who for name, who in speakers.items() if who != name}
    found = {"role_key": role, "content_key": content, "roles": roles or None}
    return {key: value for key, value in found.items() if value not in ("role", "content", None)}


def _role(speaker: str, speakers: Collection[str]) -> str | None:
    """Return who a speaker is; where nobody is the assistant, the system is."""
    name = speaker.lower()
    if name == "system":
        return "system" if any(other.lower() in ASSISTANTS for other in speakers) else "assistant"
    return next((role for role, names in SPEAKERS.items() if name in names), None)


def _tags(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    sizes = {name: [len(value) for value in facts.columns[name].values] for name in facts.of_kind("list")}
    parallel = [name for name in sizes if list(sizes.values()).count(sizes[name]) > 1]
    if not parallel:
        return None
    *few, most = sorted(parallel, key=lambda name: len(facts.columns[name].counts()))  # words differ more than tags
    tags, tokens = _find(facts, given, "tags_column", few, TAGS), _find(facts, given, "tokens_column", [most])
    return Choice("token-classification", {"tokens_column": tokens, "tags_column": tags}, {})


def _outputs(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    texts = facts.of_kind("text")
    is_one = len({text.rpartition(".")[0] or text for text in texts}) == 1  # as translation.en and translation.fr
    pair = _named_pair(facts, SOURCES) or (tuple(texts) if len(texts) == 2 and (task or family or is_one) else None)
    named = (given.get("text_column"), given.get("target_column"))
    if family not in ("encoder-decoder", None) or (pair is None and None in named):
        return None
    source, target = (one or other for one, other in zip(named, pair or named, strict=True))
    return Choice(task or "seq2seq", {"text_column": source, "target_column": target}, {})


def _classes(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    texts = _texts(facts, given)
    if not texts:
        return None
    label, problem = _answers(facts, given, texts)
    texts = [name for name in texts if name != label]
    if label is None or not texts:
        return None
    if task is None and family in ("decoder", "encoder-decoder"):
        raise ValueError(
            f"{facts.config.path!r} has texts ({texts[0]!r}) and labels ({label!r}), and the model is a {family}. Say "
            "--task sequence-classification to give it a head, or --task causal-lm to train on the texts alone."
        )
    pair = _named_pair(facts, PAIRS) if "text_column" not in given else None
    second = given.get("text_pair_column") or (pair or ("", None))[1]
    first = pair[0] if pair else _find(facts, given, "text_column", texts, TEXTS)
    columns = {"text_column": first, "text_pair_column": second, "label_column": label}
    return Choice(
        "sequence-classification",
        {field: name for field, name in columns.items() if name is not None},
        problem,
    )


def _answers(facts: Facts, given: Given, texts: Collection[str] = ()) -> tuple[str | None, dict[str, Any]]:
    """Return the column of a classifier's labels, and the field of a recipe that says of which kind they are."""
    several = [name for name in facts.of_kind("label") if len(facts.columns[name].counts()) > 1 and name not in texts]
    lists = facts.of_kind("list")
    label = _find(facts, given, "label_column", [*_distinct_labels(facts, several), *lists])
    if label is not None:
        return label, {"problem_type": "multi_label_classification"} if label in lists else {}
    number = _find(facts, given, "label_column", facts.of_kind("number"))
    return number, {"problem_type": "regression"} if number else {}


def _prose(facts: Facts, given: Given, task: str | None, family: str | None) -> Choice | None:
    if family == "encoder-decoder":
        return None
    column = _find(facts, given, "text_column", _texts(facts, given), TEXTS)
    return None if column is None else Choice(task or TASKS_OF_TEXTS[family], {"text_column": column}, {})


CHOICES = {
    "conversation": _conversation,
    "media": _media,
    "dialogue": _dialogue,
    "token-classification": _tags,
    "seq2seq": _outputs,
    "sequence-classification": _classes,
    "text": _prose,
}
"""By what a corpus holds, in the order in which they are tried."""
KINDS = {
    **dict.fromkeys(("causal-lm", "chat"), ("dialogue", "text")),
    "masked-lm": ("text",),
    **dict.fromkeys(TASKS_OF_MEDIA, ("media",)),
    "image-text-to-text": ("conversation",),
    **dict.fromkeys(("translation", "summarization"), ("seq2seq",)),
}
"""By task, of those that are called otherwise."""


def _texts(facts: Facts, given: Given) -> list[str]:
    named = [name for name in facts.columns if name.lower() in TEXTS or name == given.get("text_column")]
    return list(dict.fromkeys([*facts.of_kind("text"), *named]))


def _named_pair(facts: Facts, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the columns that are called as the first of some pairs is."""
    names = {name.lower(): name for name in facts.columns}
    return next(((names[first], names[second]) for first, second in pairs if {first, second} <= names.keys()), None)


def _distinct_labels(facts: Facts, names: Sequence[str]) -> list[str]:
    """Return columns of labels, but of those that say the same the one that says it in words and is called no text."""

    def rank(name: str) -> tuple[bool, bool]:
        is_numbered = all(text.lstrip("-").isdigit() for text in facts.columns[name].counts())
        return name.lower() in (*CAPTIONS, *TRANSCRIPTS), is_numbered

    kept: list[str] = []
    for name in sorted(names, key=rank):
        values = facts.columns[name].values
        same = (len({*zip(values, facts.columns[other].values, strict=False)}) for other in kept)
        sizes = (max(len(set(values)), len(set(facts.columns[other].values))) for other in kept)
        if not any(count == size for count, size in zip(same, sizes, strict=True)):
            kept.append(name)
    return kept


def _find(
    facts: Facts, given: Given, field: str, candidates: Sequence[str], names: Sequence[str] = LABELS
) -> str | None:
    """Return the column of a field: the one that is given, the only candidate, or the only one of a usual name."""
    column = given.get(field)
    if column is not None:
        if column not in facts.columns:
            known = list(facts.columns)
            raise ValueError(
                f"{facts.config.path!r} has no column {column!r} (--{field}); it has {known}."
                + did_you_mean(column, known)
            )
        return str(column)
    usual = [name for name in candidates if name.lower() in names]
    if len(candidates) > 1 and len(usual) != 1:
        shown = ", ".join(map(repr, candidates))
        raise ValueError(
            f"{facts.config.path!r} has {len(candidates)} columns that may be its `{field}`: {shown}. Say which, such "
            f"as --{field} {shlex.quote(candidates[0])}."
        )
    return next(iter(usual or candidates), None)
