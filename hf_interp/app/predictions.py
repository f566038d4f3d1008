"""Answers of a model to a text or a file: the same as its inputs, and its outputs as probabilities or a text."""

import math
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_interp.tasks.corpora.media import check_asked
from hf_interp.tasks.fitness import UNLIMITED
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.speech import transcribe
from hf_interp.utils.task_info import MASK, TASK_INFOS, AnswerKind

Probabilities = npt.NDArray[np.float32]

MAX_PLACES, MAX_MASKS = 512, 64
"""Words and masks of one text; of more, the first are taken."""
NUM_CANDIDATES, NUM_SURE = 256, 8
"""Of the tokens, the likeliest are kept, among them surely so many of each model's."""

FIRST_TOKENS = 4
"""That Whisper begins with: start, language, task, no timestamps."""

_WORDS = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿][\w.\-'’&/]*[^\W_]|[^\W_]|[^\w\s]|_")
_SPLIT = re.compile(r"\s[.,;:!?](\s|$)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by which texts are read and answered.

    Args:
        max_length: texts are cut to so many tokens; prompts lose their beginning, other texts their end.
        max_new_tokens: the longest answer of a model that generates.
        source_prefix: put before every input of sequence to sequence, such as "summarize: ".
        problem_type: of sequence classification, see `hf_interp.tasks.task.PROBLEM_TYPES`.
        chats: whether a prompt is a turn of a dialogue, put into the tokenizer's chat template.
    """

    max_length: int
    max_new_tokens: int
    source_prefix: str
    problem_type: str
    chats: bool


class Question(NamedTuple):
    """Inputs of a model, made of a text or a file: a batch of one.

    `places` are names of what is decided on: words, masks, or "" for the text as a whole; `positions` are where a model
    that answers at every token has the answers to them.
    """

    inputs: dict[str, torch.Tensor]
    places: list[str]
    positions: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Answer of one model to one text.

    Args:
        probabilities: shape (places, choices): of labels, of tags, of tokens; of a regression the one number.
        text: the text that the model has written, if it generates.
        choices: which these are at each place, if not all, of the same shape.
    """

    probabilities: Probabilities
    text: str | None = None
    choices: npt.NDArray[np.intp] | None = None


class Form(NamedTuple):
    """Two steps to an answer: a text becomes a question, and the question an outcome."""

    ask: Callable[[PreTrainedTokenizerBase, Settings, Any, str | None], Question]
    answer: Callable[[Any, PreTrainedTokenizerBase, Settings, Question], Outcome]


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation, as corpora of tagged words have them; Chinese signs one by one.

    A text with white space before its marks has been split already.

    >>> split_words("The U.S. bank, A-1, rose 3.5%.")
    ['The', 'U.S', '.', 'bank', ',', 'A-1', ',', 'rose', '3.5', '%', '.']
    >>> split_words("The U.S. bank rose .")
    ['The', 'U.S.', 'bank', 'rose', '.']
    """
    return text.split() if _SPLIT.search(text) else _WORDS.findall(text)


def settings_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    model_config: Any,
    *,
    max_new_tokens: int = 32,
    chats: bool | None = None,
) -> Settings:
    """Derive the settings from a recipe, a tokenizer and a model's configuration.

    By default `chats` is whether the recipe's corpora are dialogues, or, without corpora, there is a chat template.
    """
    known = [getattr(model_config, name, None) for name in ("max_position_embeddings", "n_positions")]
    known.append(getattr(tokenizer, "model_max_length", recipe.max_length))
    longest = min(length for length in known if isinstance(length, int))
    continues = TASK_INFOS[recipe.task].answer == "continuation"
    if continues:  # the answer has to fit behind the prompt
        longest -= max_new_tokens
    corpora = recipe.corpora.values()
    if chats is None:
        chats = (
            any(corpus.is_dialogue for corpus in corpora)
            if corpora
            else bool(getattr(tokenizer, "chat_template", None))
        )
    problem_type = recipe.problem_type or getattr(model_config, "problem_type", None)
    if problem_type is None:
        is_number = not recipe.label_names and getattr(model_config, "num_labels", 2) == 1
        problem_type = "regression" if is_number else "single_label_classification"
    return Settings(
        max_length=max(1, min(recipe.max_length, longest)),
        max_new_tokens=min(max_new_tokens, getattr(model_config, "max_target_positions", UNLIMITED) - FIRST_TOKENS),
        source_prefix=recipe.source_prefix,
        problem_type=problem_type,
        chats=chats and continues,
    )


def _check_left(found: Sized) -> None:
    if not found:
        raise ValueError("The text must have words: nothing is left of it after tokenising. Choose an example.")


def _encode(tokenizer: PreTrainedTokenizerBase, settings: Settings, *texts: Any, **options: Any) -> BatchEncoding:
    return tokenizer(*texts, truncation=True, max_length=settings.max_length, return_tensors="pt", **options)


def _ask_whole(tokenizer: PreTrainedTokenizerBase, settings: Settings, text: str, pair: str | None) -> Question:
    return Question(dict(_encode(tokenizer, settings, text, pair or None)), [""], [])


def _ask_words(tokenizer: PreTrainedTokenizerBase, settings: Settings, text: str, pair: str | None) -> Question:
    words = split_words(text)[:MAX_PLACES]
    encoded = _encode(tokenizer, settings, words, is_split_into_words=True)
    first: dict[int, int] = {}
    for position, word in enumerate(encoded.word_ids(0)):
        if word is not None:
            first.setdefault(word, position)
    _check_left(first)
    return Question(dict(encoded), [words[word] for word in first], list(first.values()))


def _ask_masks(tokenizer: PreTrainedTokenizerBase, settings: Settings, text: str, pair: str | None) -> Question:
    encoded = _encode(tokenizer, settings, text.replace(MASK, str(tokenizer.mask_token)))
    positions = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()[:MAX_MASKS]
    if not positions:
        raise ValueError(f"The text must have a {MASK} among its first {settings.max_length} tokens. Put one in.")
    names = [MASK] if len(positions) == 1 else [f"{MASK} {number}" for number in range(1, len(positions) + 1)]
    return Question(dict(encoded), names, positions)


def _ask_prompt(tokenizer: PreTrainedTokenizerBase, settings: Settings, text: str, pair: str | None) -> Question:
    if settings.chats:
        turns = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not settings.chats, verbose=False)["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # or there would be nothing to go on with
    _check_left(ids)
    tokens = torch.tensor([ids[-settings.max_length :]])
    return Question({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, ["next token"], [-1])


def _ask_source(tokenizer: PreTrainedTokenizerBase, settings: Settings, text: str, pair: str | None) -> Question:
    encoded = _encode(tokenizer, settings, settings.source_prefix + text)
    return Question({name: encoded[name] for name in ("input_ids", "attention_mask")}, [], [])


def ask_file(kind: str, collator: Any, places: Sequence[str]) -> Callable[[Any, Settings, Any, str | None], Question]:
    """Return the step that makes inputs of the bytes of an image or a recording, as the collator of training does.

    A recording is not to be transcribed in part, as Whisper would.
    """
    samples = None if places else getattr(collator.processor, "n_samples", None)
    heard = samples / collator.processor.sampling_rate if samples else None

    def ask(processor: Any, settings: Settings, data: bytes, pair: str | None) -> Question:
        check_asked(data, kind, heard)
        return Question(dict(collator([{kind: data}])), list(places), [])

    return ask


def _classify(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, question: Question) -> Outcome:
    logits = model(**question.inputs).logits.float()
    if settings.problem_type == "multi_label_classification":
        logits = logits.sigmoid()
    elif settings.problem_type != "regression":
        logits = logits.softmax(-1)
    return Outcome(probabilities=_array(logits.reshape(1, -1)))


def _fill(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, question: Question) -> Outcome:
    logits = model(**question.inputs).logits[0, question.positions]
    return Outcome(probabilities=_array(logits.float().softmax(-1)))


def _continue(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, question: Question) -> Outcome:
    probabilities = _fill(model, tokenizer, settings, question).probabilities
    found = _generate(model, tokenizer, settings, question)[question.inputs["input_ids"].shape[1] :]
    return Outcome(probabilities=probabilities, text=tokenizer.decode(found, skip_special_tokens=True))


def _write(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, question: Question) -> Outcome:
    if model.can_generate():
        text = tokenizer.decode(_generate(model, tokenizer, settings, question), skip_special_tokens=True).strip()
    else:
        frames = model(**question.inputs).logits[0].argmax(-1).tolist()
        text = transcribe(tokenizer, frames, of_ctc=True, of_frames=True)
    return Outcome(probabilities=np.zeros((0, 0), np.float32), text=text)


def _generate(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, question: Question) -> torch.Tensor:
    """Return the tokens that are the likeliest one by one, the same at every call."""
    pad = getattr(tokenizer, "tokenizer", tokenizer).pad_token_id  # of a processor
    greedy = {"do_sample": False, "num_beams": 1, "pad_token_id": pad}
    most = settings.max_new_tokens
    # Whisper counts new tokens by either, and warns of `max_new_tokens` at every call
    limit = {"max_length" if model.config.model_type == "whisper" else "max_new_tokens": most}
    found: torch.Tensor = model.generate(**question.inputs, **limit, **greedy)
    return found[0]


def _array(tensor: torch.Tensor) -> Probabilities:
    return tensor.cpu().numpy().astype(np.float32)


FORMS: dict[AnswerKind, Form] = {
    "label": Form(_ask_whole, _classify),
    "tags": Form(_ask_words, _fill),
    "masks": Form(_ask_masks, _fill),
    "continuation": Form(_ask_prompt, _continue),
    "text": Form(_ask_source, _write),
}
"""By the kind of answer of a task."""


def best_choices(outcomes: Sequence[Outcome], place: int, most: int) -> dict[int, list[float]]:
    """Return the choices that any of the models finds likeliest at a place, the likeliest first, by each model.

    >>> first = Outcome(probabilities=np.array([[0.75, 0.25, 0.0]], np.float32))
    >>> second = Outcome(probabilities=np.array([[0.125, 0.25, 0.625]], np.float32))
    >>> best_choices([first, second], 0, 2)
    {0: [0.75, 0.125], 2: [0.0, 0.625]}
    """
    shares = np.array([outcome.probabilities[place] for outcome in outcomes])
    highest = shares.max(axis=0)
    order = [column for column in np.argsort(-highest, kind="stable")[:most] if math.isfinite(highest[column])]
    choices = outcomes[0].choices
    return {int(column if choices is None else choices[place, column]): shares[:, column].tolist() for column in order}


def likeliest(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes with the choices that any of the models finds likeliest; all of them, if they are few."""
    highest = np.max([outcome.probabilities for outcome in outcomes], axis=0)
    if highest.size == 0 or highest.shape[1] <= NUM_CANDIDATES:
        return list(outcomes)
    choices = np.sort(np.argpartition(-highest, NUM_CANDIDATES, axis=1)[:, :NUM_CANDIDATES], axis=1)
    return [restrict(outcome, choices) for outcome in outcomes]


def restrict(outcome: Outcome, choices: npt.NDArray[np.intp] | None) -> Outcome:
    """Return an outcome with these choices alone, all if there are none."""
    if choices is None:
        return outcome
    return replace(outcome, probabilities=np.take_along_axis(outcome.probabilities, choices, axis=1), choices=choices)


def has_likeliest(choices: npt.NDArray[np.intp] | None, outcome: Outcome) -> bool:
    """Whether what a model finds likeliest is among the choices, at every place."""
    if choices is None:
        return True
    best = np.argpartition(-outcome.probabilities, NUM_SURE, axis=1)[:, :NUM_SURE]
    return all(np.isin(one, known).all() for one, known in zip(best, choices, strict=True))
