"""Dialogues: turns, chat templates, and the tokens that the assistant is to learn to say."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.utils.errors import did_you_mean, import_extra

ROLES = ("system", "user", "assistant", "tool")
CARRIED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Keys of a turn beside the speaker and the text that chat templates know."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template that is called chatml."""

Turn = Mapping[str, Any]


def plain_turns(value: Any) -> Any:
    """Return the turns of a dialogue that is JSON, or whose texts are lists of parts, which are put together.

    They are put together without anything between them, as chat templates do. What is no dialogue stays as it is, and
    so do parts that are no texts.

    >>> plain_turns('[{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]')
    [{'role': 'user', 'content': 'Hi'}]
    """
    found = read_json(value) if isinstance(value, str) and value.lstrip()[:1] == "[" else value
    if not isinstance(found, list) or not found or not all(isinstance(turn, Mapping) for turn in found):
        return value
    return [{key: _put_together(each) for key, each in turn.items()} for turn in found]


def _put_together(value: Any) -> Any:
    is_text = isinstance(value, list) and len(value) > 0 and not other_parts(value)
    return "".join(part["text"] for part in value) if is_text else value


def other_parts(value: Any) -> list[str]:
    """Return the types of the parts of a turn's content that are no texts."""
    parts = value if isinstance(value, list) else []
    is_text = [isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts]
    return [
        str(part.get("type", "?") if isinstance(part, Mapping) else part)
        for part, is_so in zip(parts, is_text, strict=True)
        if not is_so
    ]


def read_turns(
    value: Any, role_key: str, content_key: str, roles: Mapping[str, str], *, takes_images: bool = False
) -> list[Turn]:
    """Return the turns of a dialogue as chat templates want them: mappings with `role`, `content`, and some `CARRIED`.

    `roles` maps speakers to system, user, assistant or tool. A turn that calls tools needs no text. Where a turn has
    places of images, which it may have if the model `takes_images`, its content is a list of parts.

    Raises:
        ValueError: saying what the value has that is not so; without an assistant turn there is nothing to learn.

    >>> read_turns([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "from", "value",
    ...            {"human": "user", "gpt": "assistant"})
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    value = plain_turns(value)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.80} where a list of turns belongs")
    turns: list[Turn] = []
    for place, turn in enumerate(value):
        others = other_parts(turn.get(content_key)) if isinstance(turn, Mapping) else []
        if others and not (takes_images and {*others} == {"image"}):
            known = "texts and images" if takes_images else "only texts"
            raise ValueError(f"a part of type {others[0]!r:.40} in turn {place}, where {known} are read")
        if others:
            turn = {**turn, content_key: [_part(part, place) for part in turn[content_key]]}
        has_words = isinstance(turn, Mapping) and (bool(others) or _has_words(turn, content_key))
        if not has_words or turn.get(role_key) is None:
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
        turns.append({"role": role, "content": turn.get(content_key) or "", **_carried(turn)})
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("a dialogue without an assistant turn")
    return turns


def _part(part: Turn, place: int) -> Turn:
    """Return a text, or the place of an image, without what columnar files give to parts of another type."""
    kept = without_null(part)
    if "text" not in kept and kept.keys() != {"type"}:
        raise ValueError(f"a file of its own in an image of turn {place}, where its place is read (`image_column`)")
    return {"type": "text", "text": kept["text"]} if "text" in kept else {"type": "image"}


def _has_words(turn: Turn, content_key: str) -> bool:
    content = turn.get(content_key)
    return isinstance(content, str) or (content is None and bool(turn.get("tool_calls")))


def _carried(turn: Turn) -> dict[str, Any]:
    """Return what a template may know of a turn beside its text; arguments of calls that are JSON become mappings."""
    found = {key: without_null(turn[key]) for key in CARRIED if turn.get(key)}
    for call in found.get("tool_calls", []):
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        arguments = read_json(function.get("arguments") or {})
        if not isinstance(function.get("name"), str) or not isinstance(arguments, Mapping):
            raise ValueError(f"{call!r:.80} among its tool_calls, where a mapping with a name and arguments belongs")
        function["arguments"] = arguments
    return found


def read_json(value: Any) -> Any:
    """Return what a text holds that is JSON, and anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def without_null(value: Any) -> Any:
    """Return a value without keys that have none, which columnar files give to every mapping of a column.

    >>> without_null([{"city": "Oslo", "a": None}])
    [{'city': 'Oslo'}]
    """
    if isinstance(value, Mapping):
        return {key: without_null(each) for key, each in value.items() if each is not None}
    return [without_null(each) for each in value] if isinstance(value, list) else value


def pack_turn(turn: Turn) -> dict[str, str]:
    """Return a turn whose keys are the same as of any other, for a column: what is not in all of them is JSON."""
    has_parts = isinstance(turn["content"], list)
    more = {key: value for key, value in turn.items() if key != "role" and (has_parts or key != "content")}
    content = words_of(turn["content"])
    return {"role": turn["role"], "content": content, "more": json.dumps(more) if more else ""}


def unpack_turn(turn: Turn) -> Turn:
    """Return a turn as it was before `pack_turn`."""
    more = json.loads(turn.get("more") or "{}")
    return {"role": turn["role"], "content": turn["content"], **more}


def words_of(content: Any) -> Any:
    """Return a turn's content, of parts the texts put together, whatever images stand between them."""
    has_images = isinstance(content, list) and {*other_parts(content)} <= {"image"}
    return "".join(part.get("text") or "" for part in content) if has_images else content


def with_places(turns: Sequence[Turn], count: int) -> Sequence[Turn]:
    """Return turns whose contents are lists of parts, as the templates of models of images and texts want them.

    Where no turn says the place of an image, `count` of them stand before the first words of the user.

    >>> with_places([{"role": "user", "content": "Why?"}], 1)
    [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Why?'}]}]
    """
    found: list[dict[str, Any]] = [{**turn, "content": _as_parts(turn["content"])} for turn in turns]
    has_places = any(part["type"] == "image" for turn in found for part in turn["content"])
    first = next((turn for turn in found if turn["role"] == "user"), None)
    if first is not None and not has_places:
        first["content"] = [*({"type": "image"} for _ in range(count)), *first["content"]]
    return found


def _as_parts(content: Any) -> list[Turn]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Give a tokenizer a chat template: "chatml", a file, or its own for `None` and "trl"."""
    if chat_template in (None, "trl"):
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template, which dialogues need. Set `chat_template: chatml` "
                "(--chat_template chatml), or to a file with a Jinja template."
            )
        training_template(tokenizer, chat_template)
    elif chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif os.path.isfile(chat_template):
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"`chat_template` must be 'chatml', 'trl' or a file, got {chat_template!r:.200}, which is none of them."
        )


def has_marks(template: str) -> bool:
    """Whether a chat template marks what the assistant says.

    >>> has_marks("{%- generation %}{{ content }}{% endgeneration %}"), has_marks("{{ content }}")
    (True, False)
    """
    return re.search(r"\{%-?\s*generation\b", template) is not None


def training_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    """Return the template to train with, if it is not the tokenizer's own: for "trl" TRL's variant, which has marks.

    Raises:
        ImportError: if TRL is needed and not installed.
        ValueError: if TRL has no variant of the tokenizer's template.
    """
    if chat_template != "trl":
        return None
    utilities = import_extra("trl.chat_template_utils", "`chat_template: trl` needs TRL", "trl")
    try:
        return utilities.get_training_chat_template(tokenizer)  # type: ignore[no-any-return]
    except ValueError:
        raise ValueError(
            "TRL has no variant for training of the tokenizer's chat template (`chat_template: trl`). Leave "
            "`chat_template` out, or name a file with {% generation %} marks."
        ) from None


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    max_length: int,
    *,
    template: str | None = None,
    tools: Sequence[Any] | None = None,
) -> dict[str, list[int]]:
    """Encode a dialogue by a chat template, with labels on what the assistant says.

    A template that marks that itself, with `{% generation %}`, is taken at its word. Of any other the text up to an
    assistant's turn is compared with the text that includes it.

    Args:
        tokenizer: with a chat template.
        turns: as from `read_turns`.
        max_length: in tokens.
        template: another chat template, such as `training_template`'s.
        tools: JSON schemas of the functions that the assistant may call.

    Returns:
        input_ids, attention_mask and labels, each (length,), cut to `max_length`; labels are −100 but for the
        assistant's tokens, its calls of tools, and the mark that ends its turn.

    Raises:
        ValueError: if the template refuses the turns, or changes earlier turns when later ones come, or no assistant's
            token is left.
    """
    text, spans = render_dialogue(tokenizer, turns, template=template, tools=tools)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found = _labelled(encoded["input_ids"], encoded["offset_mapping"], spans, max_length)
    return {**found, "attention_mask": [1] * len(found["input_ids"])}


def render_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    template: str | None = None,
    tools: Sequence[Any] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a dialogue, and from where to where the assistant speaks in it; see `encode_dialogue`."""
    options: dict[str, Any] = {
        "chat_template": tokenizer.get_chat_template(template, tools or None),
        "tools": tools or None,
    }
    try:
        if not has_marks(options["chat_template"]):
            return _spans(tokenizer, turns, options)
        texts, spans = render_jinja_template(
            conversations=[list(turns)], return_assistant_tokens_mask=True, **options, **tokenizer.special_tokens_map
        )
        return texts[0], spans[0]
    except (TemplateError, TypeError) as error:
        raise ValueError(f"turns that the chat template refuses ({error})") from error


def encode_among_images(
    processor: Any, text: str, spans: Sequence[tuple[int, int]], images: Sequence[Any], max_length: int
) -> dict[str, list[int]]:
    """Encode a text with places of images, with labels on the spans of it that are learnt.

    Args:
        processor: of transformers, for images and texts; it gives every place the tokens of its image.
        text: as from `render_dialogue`.
        spans: of characters.
        images: of PIL.
        max_length: in tokens, all images in it.

    Returns:
        input_ids and labels, each (length,), cut to `max_length`; no token of an image is a label.
    """
    places = text.count(processor.image_token)
    if places != len(images):
        raise ValueError(f"{places} places for images ({processor.image_token!r}) and {len(images)} images")
    made = processor(
        text=[text],
        images=[images] if images else None,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
    )
    swaps, offsets = [*itertools.chain(*made.get("text_replacement_offsets", []))], made["offset_mapping"][0]
    if len(swaps) != len(images):
        raise ValueError(f"images of which a {type(processor).__name__} does not tell the places")
    grown = [(swap["span"][1], swap["new_span"][1] - swap["span"][1]) for swap in swaps]
    shown = [swap["new_span"] for swap in swaps]
    if (needed := sum(begin < shown[-1][1] for begin, _ in offsets) if shown else 0) > max_length:
        raise ValueError(f"images that end at token {needed}, beyond the {max_length} of `max_length`")

    def moved(place: int) -> int:
        return place + next((more for end, more in reversed(grown) if end <= place), 0)

    return _labelled(
        made["input_ids"][0], offsets, [(moved(begin), moved(end)) for begin, end in spans], max_length, shown
    )


def _labelled(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
    max_length: int,
    others: Sequence[tuple[int, int]] = (),
) -> dict[str, list[int]]:
    """Return tokens with labels where they are in some spans of the text, and in no others."""
    # Tokenizers of bytes trim white space off the places of tokens: of " " alone only the end remains.
    places = [(begin if begin < end else begin - 1, end) for begin, end in offsets]
    # A token that a tokenizer makes of the end of one turn and the beginning of the next belongs to both.
    is_said, is_other = (
        [any(a < end and begin < b for begin, end in each) for a, b in places] for each in (spans, others)
    )
    pairs = zip(ids, is_said, is_other, strict=True)
    labels = [token if said and not other else IGNORE_INDEX for token, said, other in pairs][:max_length]
    if all(label == IGNORE_INDEX for label in labels[1:]):
        raise ValueError(f"no assistant's token within its first {max_length} tokens (`max_length`)")
    return {"input_ids": list(ids[:max_length]), "labels": labels}


def _spans(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], options: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a dialogue, and from where to where the assistant speaks in it."""

    def render(count: int, *, opens: bool = False) -> str:
        shown = list(turns[:count])
        return str(tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=opens, **options))

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
                "be told; use a template with {% generation %} marks, such as `chat_template: trl` of hf_interp[trl]"
            )
        said, stripped = after[len(before) :], after.rstrip()
        # White space after the mark that ends a turn is not learnt; where nothing else ends it, it is the mark.
        is_marked = said.strip() != words_of(turn["content"]).strip()
        spans.append((len(before), len(stripped) if is_marked else len(after)))
    return whole, spans
