"""Dialogues: turns, chat templates, and the tokens that the assistant is to learn to say."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.utils.errors import did_you_mean

ROLES = ("system", "user", "assistant")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template that is called chatml."""

Turn = Mapping[str, str]


def read_turns(value: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Turn]:
    """Return the turns of a dialogue as chat templates want them: mappings with `role` and `content`.

    `roles` maps speakers to system, user or assistant.

    Raises:
        ValueError: saying what the value has that is not so; without an assistant turn there is nothing to learn.

    >>> read_turns([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "from", "value",
    ...            {"human": "user", "gpt": "assistant"})
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.80} where a list of turns belongs")
    turns: list[Turn] = []
    for place, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not isinstance(turn.get(content_key), str) or turn.get(role_key) is None:
            raise ValueError(
                f"{turn!r:.80} as turn {place}, where a mapping with {role_key!r} and {content_key!r} belongs"
            )
        speaker = str(turn[role_key])
        role = roles.get(speaker, speaker)
        if role not in ROLES:
            known = f"none of {', '.join(ROLES)}"
            mapped = f"whom `roles` maps to {role!r}, which is {known}"
            what = mapped if speaker in roles else f"who is {known} (`roles` maps others to these)"
            raise ValueError(f"the speaker {speaker!r} in turn {place}, {what}{did_you_mean(role, ROLES)}")
        turns.append({"role": role, "content": turn[content_key]})
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("a dialogue without an assistant turn")
    return turns


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Give a tokenizer a chat template: "chatml", a file, or its own for `None`."""
    if chat_template is None:
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template, which dialogues need. Set `chat_template: chatml` "
                "(--chat_template chatml), or to a file with a Jinja template."
            )
    elif chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif os.path.isfile(chat_template):
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"`chat_template` must be 'chatml' or a file, got {chat_template!r:.200}, which is neither."
        )


def encode_dialogue(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], max_length: int) -> dict[str, list[int]]:
    """Encode a dialogue by the tokenizer's chat template, with labels on what the assistant says.

    A template that marks that itself, with `{% generation %}`, is taken at its word. Of any other the text up to an
    assistant's turn is compared with the text that includes it.

    Returns:
        input_ids, attention_mask and labels, each (length,), cut to `max_length`; labels are −100 but for the
        assistant's tokens and the mark that ends its turn.

    Raises:
        ValueError: if the template refuses the turns, or changes earlier turns when later ones come, or no assistant's
            token is left.
    """
    try:
        ids, is_said = _tokenize(tokenizer, turns)
    except TemplateError as error:
        raise ValueError(f"turns that the chat template refuses ({error})") from error
    labels = [token if said else IGNORE_INDEX for token, said in zip(ids, is_said, strict=True)][:max_length]
    if all(label == IGNORE_INDEX for label in labels[1:]):
        raise ValueError(f"no assistant's token within its first {max_length} tokens (`max_length`)")
    ids = ids[:max_length]
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": labels}


def _tokenize(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> tuple[list[int], Sequence[bool | int]]:
    """Return the tokens of a dialogue, and whether the assistant says them."""
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(
            list(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return encoded["input_ids"], encoded["assistant_masks"]
    text, spans = _spans(tokenizer, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # Tokenizers of bytes trim white space off the places of tokens: of " " alone only the end remains.
    places = [(a if a < b else a - 1, b) for a, b in encoded["offset_mapping"]]
    # A token that a tokenizer makes of the end of one turn and the beginning of the next belongs to both.
    return encoded["input_ids"], [any(a < end and begin < b for begin, end in spans) for a, b in places]


def _spans(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a dialogue, and from where to where the assistant speaks in it."""

    def render(count: int, *, opens: bool = False) -> str:
        text = tokenizer.apply_chat_template(list(turns[:count]), tokenize=False, add_generation_prompt=opens)
        return str(text)

    whole = render(len(turns))
    spans = []
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        after = render(place + 1)
        if place:
            before = render(place, opens=True)
        else:  # templates do not render what is before the first turn, be it a system turn of their own
            opening = render(1, opens=True).removeprefix(after)
            before = whole[: max(whole.find(opening), 0)] + opening
        if not (whole.startswith(before) and whole.startswith(after) and len(before) < len(after)):
            raise ValueError(
                "a chat template that changes earlier turns when later ones come, so that the assistant's words cannot "
                "be told; use a template with {% generation %} marks"
            )
        said, stripped = after[len(before) :], after.rstrip()
        # White space after the mark that ends a turn is not learnt; where nothing else ends it, it is the mark.
        is_marked = said.strip() != turn["content"].strip()
        spans.append((len(before), len(stripped) if is_marked else len(after)))
    return whole, spans
