"""The three models: what the user wants, which texts are alike, and what to say."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

Message = dict[str, str]
BATCH = 64
MAX_LENGTH = 128  # tokens of a request that the classifier and the encoder look at


class Encoder:
    """Embeds texts: the mean of an encoder's last hidden states over a text's tokens, of length 1.

    Args:
        model: an encoder without a head.
        tokenizer: its tokenizer.

    Attributes:
        fingerprint (`str`): 16 hexadecimal digits over weights and tokenizer, whatever folder they come from.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.fingerprint = fingerprint(model, tokenizer)

    @classmethod
    def load(cls, name_or_path: str) -> "Encoder":
        """From a folder or the Hub."""
        check_folder(name_or_path, "encoder")
        return cls(AutoModel.from_pretrained(name_or_path), AutoTokenizer.from_pretrained(name_or_path))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Shape (texts, hidden size), float32, each row of length 1."""

        def forward(inputs: Any) -> torch.Tensor:
            hidden = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            return torch.nn.functional.normalize(mean, dim=-1)

        return _in_batches(texts, self.tokenizer, forward, self.model.config.hidden_size)


class IntentModel:
    """Tells the intent of a text with its probability.

    Args:
        name_or_path: a folder or a name on the Hub of a model for sequence classification.
    """

    def __init__(self, name_or_path: str) -> None:
        check_folder(name_or_path, "intent")
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        self.model = AutoModelForSequenceClassification.from_pretrained(name_or_path).eval()
        self.labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.fingerprint = fingerprint(self.model, self.tokenizer)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Shape (texts, labels), float32: the softmax of the logits."""

        def forward(inputs: Any) -> torch.Tensor:
            logits: torch.Tensor = self.model(**inputs).logits
            return logits.float().softmax(dim=-1)

        return _in_batches(texts, self.tokenizer, forward, len(self.labels))

    def encoder(self) -> Encoder:
        """The encoder under the head; shares its weights."""
        return Encoder(self.model.base_model, self.tokenizer)


class ResponseModel:
    """Writes the assistant's next turn.

    Args:
        name_or_path: a folder or a name on the Hub of a causal language model whose tokenizer has a chat template.
        max_new_tokens: longest answer, in tokens.
        context: tokens of dialogue and answer together, at most; `None` for what the model can take.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
    """

    def __init__(
        self, name_or_path: str, *, max_new_tokens: int = 64, context: int | None = None, temperature: float = 0.0
    ) -> None:
        check_folder(name_or_path, "response")
        if max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, got {max_new_tokens}.")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"`temperature` must be a number of at least 0, got {temperature}.")
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"The tokenizer of {name_or_path!r} has no chat template. Train it with `chat_template: chatml` in the "
                "recipe, or take a model that was tuned for dialogue."
            )
        self.model = AutoModelForCausalLM.from_pretrained(name_or_path).eval()
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        takes = [getattr(self.model.config, "max_position_embeddings", None), self.tokenizer.model_max_length, context]
        self.context = min(length for length in takes if length is not None)
        if self.context <= max_new_tokens:
            raise ValueError(
                f"`max_new_tokens` ({max_new_tokens}) must be below the context of {self.context} tokens. Lower it."
            )
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        self._special = sorted(special, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """A text without the tokenizer's special tokens, with which it could speak for others in the dialogue."""
        before = None
        while text != before:  # what is left may join to another
            before = text
            for token in self._special:
                text = text.replace(token, "")
        return text.strip()

    def count_tokens(self, dialogue: Sequence[Message]) -> int:
        """Length of a dialogue in the model's template, with the beginning of an answer."""
        return len(self._encode(dialogue)["input_ids"][0])

    @torch.no_grad()
    def respond(self, dialogue: Sequence[Message]) -> str:
        """The next turn; turns that do not fit the context are left out, the oldest first.

        Raises:
            ValueError: if the last turn alone does not fit.
        """
        cleaned = [{**message, "content": self.clean(message["content"])} for message in dialogue]
        kept = cut_history(cleaned, self.count_tokens, self.context - self.max_new_tokens)
        inputs = self._encode(kept)
        drawing = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        output = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, pad_token_id=self._pad_token_id(), **drawing
        )
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def _encode(self, dialogue: Sequence[Message]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer.apply_chat_template(
            list(dialogue), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _pad_token_id(self) -> int:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(pad if pad is not None else end if end is not None else 0)


def cut_history(
    dialogue: Sequence[Message], count_tokens: Callable[[Sequence[Message]], int], limit: int
) -> list[Message]:
    """The end of a dialogue that fits: whole turns, beginning with one of the user's, behind the system's message.

    Args:
        dialogue: turns with `role` and `content`; the first may be the system's.
        count_tokens: tokens of a dialogue.
        limit: tokens, at most.

    Raises:
        ValueError: if the last of the user's turns alone is too long.

    >>> turns = [{"role": role, "content": text} for role, text in [("user", "aa"), ("assistant", "bb"), ("user", "c")]]
    >>> letters = lambda dialogue: sum(len(turn["content"]) for turn in dialogue)
    >>> len(cut_history(turns, letters, 5)), len(cut_history(turns, letters, 4))
    (3, 1)
    """
    system = list(dialogue[:1]) if dialogue and dialogue[0]["role"] == "system" else []
    turns = list(dialogue[len(system) :])
    starts = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    for start in starts:
        kept = [*system, *turns[start:]]
        if count_tokens(kept) <= limit:
            return kept
    shortest = count_tokens([*system, *turns[starts[-1] :]]) if starts else 0
    raise ValueError(
        f"The last turn of the dialogue must fit into {limit} tokens, got {shortest}. Shorten it, raise `context` or "
        "lower `max_new_tokens`."
    )


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits over a model's weights and its tokenizer's vocabulary."""
    digest = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_folder(name_or_path: str, what: str) -> None:
    """Refuse a path that is no folder with a model, before a library takes it for a name on the Hub.

    Raises:
        FileNotFoundError: naming the flag.
    """
    path = Path(os.path.expanduser(name_or_path))
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1 or path.exists()
    if looks_local and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no model in {name_or_path!r} (--{what}): a folder with config.json, or a name on the Hub such "
            "as owner/name, is wanted."
        )


def _in_batches(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    forward: Callable[[Any], torch.Tensor],
    width: int,
) -> np.ndarray[Any, Any]:
    """Rows of `forward` in the order of `texts`; texts of like length go together, so that little is padding."""
    found = np.zeros((len(texts), width), np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for begin in range(0, len(order), BATCH):
        places = order[begin : begin + BATCH]
        inputs = tokenizer(
            [texts[place] for place in places],
            truncation=True,
            max_length=min(MAX_LENGTH, tokenizer.model_max_length),
            padding=True,
            return_tensors="pt",
        )
        found[places] = forward(inputs).numpy()
    return found
