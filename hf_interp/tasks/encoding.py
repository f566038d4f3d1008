"""From the columns of a task to the inputs of a model: one function for each kind of task.

Each takes (tokenizer, recipe) and gives a function from a batch of columns to a batch of model inputs, for
`Dataset.map`; it raises `RowError` for a row that cannot be trained on.
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.tasks.corpora.dialogues import (
    encode_among_images,
    encode_dialogue,
    render_dialogue,
    training_template,
    unpack_turn,
    with_places,
)
from hf_interp.tasks.corpora.loading import RowError
from hf_interp.tasks.corpora.media import open_image
from hf_interp.tasks.recipe import Recipe

Batch = dict[str, list[Any]]
Encode = Callable[[Batch], Batch]
SPEAKERS = ("user", "assistant")


def encode_classification(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encode:
    """text (and text_pair) → input_ids, attention_mask, ...: (length,), cut to `max_length`.

    label → labels: an index (), numbers for several labels (num_labels,), or a number () for regression.
    """

    def encode(batch: Batch) -> Batch:
        encoded = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, max_length=recipe.max_length)
        _check_not_empty(encoded["input_ids"], "text")
        return {**encoded, "labels": batch["label"]}

    return encode


def encode_files(column: str) -> Encode:
    """image or audio → the same, which the collator decodes; label → labels, as of `encode_classification`."""
    return lambda batch: {column: batch[column], "labels": batch["label"]}


def encode_tokens(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encode:
    """Encode tokens → input_ids, attention_mask, ...: (length,), cut to `max_length`; tags → labels: (length,).

    The first piece of a word has the word's tag, its other pieces and special tokens have −100.
    """
    _check_fast(tokenizer, "Token classification")

    names = recipe.label_names or []

    def encode(batch: Batch) -> Batch:
        _check_tags(batch)
        encoded = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=recipe.max_length)
        rows = [(encoded.word_ids(row), tags) for row, tags in enumerate(batch["tags"])]
        labels = [_align(word_ids, _begin_again(tags, names, set(word_ids))) for word_ids, tags in rows]
        kept = [[label for label in aligned if label != IGNORE_INDEX] for aligned in labels]
        _check_not_empty(kept, "tokens", "no token left")
        return {**encoded, "labels": labels}

    return encode


def split_tokens(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encode:
    """tokens, tags → the same in rows of at most `max_length` tokens, so that an evaluation counts every entity.

    A row begins where no entity goes on, unless one is longer than a row.
    """
    _check_fast(tokenizer, "Token classification")
    room, names = recipe.max_length - tokenizer.num_special_tokens_to_add(), recipe.label_names or []

    def split(batch: Batch) -> Batch:
        _check_tags(batch)
        encoded = tokenizer(batch["tokens"], is_split_into_words=True, add_special_tokens=False, verbose=False)
        rows: Batch = {column: [] for column in batch}
        others = [column for column in batch if column not in ("tokens", "tags")]
        for row, (words, tags) in enumerate(zip(batch["tokens"], batch["tags"], strict=True)):
            pieces = Counter(encoded.word_ids(row))
            goes_on = [names[tag].startswith("I-") for tag in tags]
            for part in _parts([pieces[word] for word in range(len(words))], goes_on, room):
                rows["tokens"].append(words[part])
                rows["tags"].append(tags[part])
                for column in others:
                    rows[column].append(batch[column][row])
        return rows

    return split


def encode_pairs(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encode:
    """text → input_ids, attention_mask: (length,), cut to `max_length`; target → labels: (target length,)."""

    def encode(batch: Batch) -> Batch:
        sources = [recipe.source_prefix + text for text in batch["text"]]
        encoded = tokenizer(sources, truncation=True, max_length=recipe.max_length)
        _check_not_empty(encoded["input_ids"], "text")
        return {**encoded, "labels": encode_targets(tokenizer, batch["target"], recipe, "target")}

    return encode


def encode_targets(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], recipe: Recipe, column: str
) -> list[list[int]]:
    """Return the tokens of texts that a model is to write, cut to `max_target_length` if the recipe allows that."""
    limit = recipe.max_target_length
    labels = tokenizer(text_target=texts)["input_ids"]
    cut: list[list[int]] = tokenizer(text_target=texts, truncation=True, max_length=limit)["input_ids"]
    long = [row for row, label in enumerate(labels) if len(label) > limit and not recipe.truncate_target]
    if long:
        what = f"a target of {len(labels[long[0]])} tokens, more than `max_target_length` ({limit})"
        raise RowError(long[0], column, what, "Raise `max_target_length`, or set `truncate_target: true`.")
    _check_not_empty(cut, column)
    return cut


def encode_captions(processor: Any, recipe: Recipe) -> Encode:
    """image → the same, which the collator decodes; text → labels: (length,), with the token that ends a text."""
    tokenizer = processor.tokenizer
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)

    def encode(batch: Batch) -> Batch:
        rows = encode_targets(tokenizer, batch["text"], recipe, "text")
        labels = [row if row[-1] in ends or ends[0] is None else [*row, ends[0]] for row in rows]  # GPT-2 adds none
        return {"image": batch["image"], "labels": labels}

    return encode


def encode_causal(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encode:
    """text, messages (and tools), or prompt and target → input_ids, attention_mask, labels: (length,).

    They are cut to `max_length` if not packed later. Of a text every token is a label, and the end-of-text token is put
    behind it; of a dialogue, what the assistant says.
    """

    def encode(batch: Batch) -> Batch:
        if "messages" in batch or "prompt" in batch:
            return _encode_dialogues(tokenizer, batch, recipe)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        encoded = tokenizer(batch["text"], return_token_type_ids=False, verbose=False)["input_ids"]
        ids = [tokens if tokens[-1:] == end else tokens + end for tokens in encoded]
        ids = ids if recipe.packing else [tokens[: recipe.max_length] for tokens in ids]
        _check_not_empty(ids, "text")
        lone = [row for row, tokens in enumerate(ids) if len(tokens) == 1 and not recipe.packing]
        if lone:  # a batch of such texts has no loss
            what = "a text of one token, behind which there is none to predict"
            raise RowError(
                lone[0], "text", what, "Remove such rows from the file, raise `max_length`, or set `packing: true`."
            )
        return {"input_ids": ids, "attention_mask": [[1] * len(tokens) for tokens in ids], "labels": ids}

    return encode


def encode_conversations(processor: Any, recipe: Recipe) -> Encode:
    """text, messages (and tools), or prompt and target; image → text, images, input_ids, labels: (length,).

    Labels are those of `encode_causal`, and none is of an image. The collator makes the tokens of `text` and `images`
    again. A text that says no place for the images is what an assistant says of them.
    """
    _check_fast(processor.tokenizer, "Training on images among texts")
    template = training_template(processor.tokenizer, recipe.chat_template)

    def encode(batch: Batch) -> Batch:
        column = _column_of(batch)
        rows = batch["text"] if column == "text" else _dialogues(batch)
        images, tools = batch.get("image") or [[]] * len(rows), _tools(batch, column)

        def make(row: int) -> dict[str, Any]:
            text, spans = _render(processor, rows[row], len(images[row]), template, tools[row])
            opened = [open_image(each) for each in images[row]]
            found = encode_among_images(processor, text, spans, opened, recipe.max_length)
            return {"text": text, "images": images[row], **found}

        return _row_by_row(batch, column, make)

    return encode


def _render(
    processor: Any, said: Any, count: int, template: str | None, tools: Sequence[Any]
) -> tuple[str, Sequence[tuple[int, int]]]:
    """Return a text or a dialogue as a text with places for images, and from where to where it is learnt."""
    tokenizer = processor.tokenizer
    if isinstance(said, str) and (not count or processor.image_token in said):
        begin, end = _ends(tokenizer)
        text = begin + said.removeprefix(begin).removesuffix(end) + end
        return text, [(0, len(text))]
    turns = _turns(("", said)) if isinstance(said, str) else said
    turns = with_places(turns, count)
    text, spans = render_dialogue(tokenizer, turns, template=template, tools=tools)
    if any(str(turn["content"]) in text for turn in turns if turn["content"]):
        raise ValueError("a chat template that does not read the parts of a turn, as one for images does")
    return text, spans


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what a text begins with, where its tokenizer puts that, and what it ends with."""
    begins = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("")["input_ids"]
    return str(tokenizer.bos_token) if begins else "", tokenizer.eos_token or ""


def encode_masked(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encode:
    """text → input_ids, attention_mask, special_tokens_mask: (length,), cut to `max_length` if not packed later.

    With whole-word masking also offset_mapping: (length, 2). The collator makes the labels.
    """
    if recipe.whole_word_mask:
        _check_fast(tokenizer, "Masking whole words")

    def encode(batch: Batch) -> Batch:
        encoded = tokenizer(
            batch["text"],
            truncation=not recipe.packing,
            max_length=None if recipe.packing else recipe.max_length,
            return_special_tokens_mask=True,
            return_offsets_mapping=recipe.whole_word_mask,
            return_token_type_ids=False,
            verbose=False,  # of texts longer than the model, which are packed later
        )
        _check_not_empty(encoded["input_ids"], "text")
        return dict(encoded)

    return encode


def _encode_dialogues(tokenizer: PreTrainedTokenizerBase, batch: Batch, recipe: Recipe) -> Batch:
    _check_fast(tokenizer, "Training on dialogues")
    template = training_template(tokenizer, recipe.chat_template)
    turns, tools = _dialogues(batch), _tools(batch, column := _column_of(batch))

    def make(row: int) -> dict[str, Any]:
        return encode_dialogue(tokenizer, turns[row], recipe.max_length, template=template, tools=tools[row])

    return _row_by_row(batch, column, make)


def _column_of(batch: Batch) -> str:
    """Return the column of what is said."""
    return next(name for name in ("messages", "prompt", "text") if name in batch)


def _row_by_row(batch: Batch, column: str, make: Callable[[int], dict[str, Any]]) -> Batch:
    """Return what is made of every row of what is said, by its number."""
    found = []
    for row in range(len(batch[column])):
        try:
            found.append(make(row))
        except ValueError as error:
            remedy = "Raise `max_length`, change `chat_template`, or remove such rows."
            raise RowError(row, column, str(error), remedy) from error
    return {name: [one[name] for one in found] for name in found[0]}


def _dialogues(batch: Batch) -> list[Any]:
    """Return the turns of every row of a batch."""
    if "messages" in batch:
        return [[unpack_turn(turn) for turn in turns] for turns in batch["messages"]]
    return [_turns(pair) for pair in zip(batch["prompt"], batch["target"], strict=True)]


def _turns(pair: Sequence[str]) -> list[dict[str, str]]:
    """Return what a user and an assistant say, as a dialogue."""
    return [{"role": role, "content": text} for role, text in zip(SPEAKERS, pair, strict=True)]


def _tools(batch: Batch, column: str) -> list[Any]:
    """Return the tools of every row of a batch."""
    return [json.loads(schemas) for schemas in batch.get("tools") or ["[]"] * len(batch[column])]


def _check_fast(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{what} needs a tokenizer that says where in the text its pieces stand, which {type(tokenizer).__name__} "
            "cannot. Use a model with a tokenizer.json."
        )


def _align(word_ids: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Return a label for every piece.

    >>> _align([None, 0, 0, 1, None], [3, 5])
    [-100, 3, -100, 5, -100]
    """
    pairs = zip(word_ids, [None, *word_ids[:-1]], strict=True)
    return [IGNORE_INDEX if word is None or word == last else tags[word] for word, last in pairs]


def _begin_again(tags: Sequence[int], names: Sequence[str], words: Container[int | None]) -> list[int]:
    """Return tags of which the next word of an entity has the B- of a word without a piece (of IOB2)."""
    found = list(tags)
    for word in range(len(found) - 1 if names else 0):
        begin, following = names[found[word]], names[found[word + 1]]
        if word not in words and following[:2] == "I-" and begin == f"B-{following[2:]}":
            found[word + 1] = found[word]
    return found


def _parts(sizes: Sequence[int], goes_on: Sequence[bool], room: int) -> Iterator[slice]:
    """Return the parts of a row of words that have room for their pieces.

    >>> list(_parts([1, 1, 1, 1], [False, False, True, False], 2))
    [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    start = 0
    for place in range(1, len(sizes)):
        while sizes[place] and place > start and sum(sizes[start : place + 1]) > room:
            end = place
            while end > start and goes_on[end]:
                end -= 1
            end = end if sum(sizes[start:end]) else place
            yield slice(start, end)
            start = end
    yield slice(start, len(sizes))


def _check_tags(batch: Batch) -> None:
    for row, (words, tags) in enumerate(zip(batch["tokens"], batch["tags"], strict=True)):
        if len(words) != len(tags):
            raise RowError(
                row, "tags", f"{len(tags)} tags for {len(words)} words", "Every word needs one tag: mend the file."
            )


def _check_not_empty(ids: Sequence[Sequence[int]], column: str, what: str = "an empty text") -> None:
    for row, tokens in enumerate(ids):
        if not tokens:
            raise RowError(row, column, f"{what} after tokenising", "Remove such rows from the file.")
