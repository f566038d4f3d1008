"""Collators whose random choices depend on the example alone: not on the batch that it happens to sit in."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from hf_interp.mixture.packing import NO_LABEL

PLAIN_COLLATORS = (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
)
"""Collators of transformers that draw no random numbers."""

OBJECTIVES_KEY = "objectives"
"""Under this key a batch holds one batch for each objective among its examples, by name; "" is the model's own task."""

TASK = ""
"""The name of the model's own task among objectives."""

DISTILL = "distill"
"""The objective of corpora whose examples train M₀'s predictions with the model's own head."""

Collator = Callable[[list[Any]], Any]


@runtime_checkable
class SlotwiseCollator(Protocol):
    """A collator that draws for each example from (seed, number) alone; called without these, it draws as for any."""

    columns: Sequence[str]
    """Columns that the model does not take but the collator does."""

    def __call__(self, examples: list[Any]) -> Any:
        """Collate for evaluation."""

    def collate(self, examples: Sequence[Any], numbers: Sequence[int], seed: int) -> Any:
        """Collate for training."""


class MaskingCollator:
    """Masks tokens for masked language modelling, each example with random numbers of its own, and pads.

    In training the random numbers come from the seed and the slot of the example, so that the masks are new in every
    pass and the same for any split into micro-batches, processes and workers. In evaluation they come from the tokens
    of the example, so that every evaluation masks the same. A text of which nothing is chosen gets one mask.

    Args:
        tokenizer: with a mask token.
        mlm_probability: share of the tokens to predict; of these 80% are masked, 10% replaced, 10% kept (Devlin et al.
            2019, arXiv 1810.04805).
        whole_word_mask: choose words instead of tokens, and mask them all; examples need `offset_mapping`.

    Raises:
        ValueError: for a tokenizer without a mask token, or a share outside (0, 1].
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float = 0.15, whole_word_mask: bool = False
    ) -> None:
        if tokenizer.mask_token is None:
            raise ValueError(
                "Masked language modelling needs a tokenizer with a mask token, which this one lacks. Use a model that "
                "was pretrained so, or `causal-lm`."
            )
        if not 0 < mlm_probability <= 1:
            raise ValueError(f"`mlm_probability` must lie in (0, 1], got {mlm_probability}.")
        kinds = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if whole_word_mask else {}
        self.tokenizer = tokenizer
        self._mask, self._mask_all = (
            DataCollatorForLanguageModeling(tokenizer, mlm_probability=share, whole_word_mask=whole_word_mask, **kinds)
            for share in (mlm_probability, 1.0)
        )
        self._pad = DataCollatorForTokenClassification(tokenizer)
        self.columns = ("special_tokens_mask", "offset_mapping") if whole_word_mask else ("special_tokens_mask",)

    def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Collate for evaluation."""
        numbers = [crc32(np.asarray(each["input_ids"], dtype=np.int64).tobytes()) for each in examples]
        return self.collate(examples, numbers, 0)

    def collate(self, examples: Sequence[Any], numbers: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
        """Collate with the masks that belong to (seed, number)."""
        masked = []
        for example, number in zip(examples, numbers, strict=True):
            own = {name: value for name, value in example.items() if name != "labels"}
            with random_state_of_slot(seed, number):
                one = self._mask([own])
                if not one["labels"].ne(NO_LABEL).any():
                    one = self._mask_all([{**own, "special_tokens_mask": self._all_but_one(own)}])
            masked.append({name: values[0].tolist() for name, values in one.items()})
        return dict(self._pad(masked))

    def _all_but_one(self, example: Mapping[str, Any]) -> list[int]:
        """Return 1 for each token but one that is drawn, or but those of its word."""
        special = example.get("special_tokens_mask")
        if special is None:
            special = self.tokenizer.get_special_tokens_mask(example["input_ids"], already_has_special_tokens=True)
        free = [place for place, is_special in enumerate(special) if not is_special]
        first = last = free[int(torch.randint(len(free), ()))] if free else -1
        if self._mask.whole_word_mask:
            offsets = example["offset_mapping"]
            while first - 1 in free and offsets[first - 1][1] == offsets[first][0]:
                first -= 1
            while last + 1 in free and offsets[last + 1][0] == offsets[last][1]:
                last += 1
        return [int(not first <= place <= last) for place in range(len(special))]


class PackedCollator:
    """Lays packed examples in rows, without an attention mask: position ids that begin anew tell what belongs together.

    Padding is made of sequences of its own. Examples that are not packed are sequences, too.

    Args:
        tokenizer: with a token for padding, by default that of the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.fillers = {"input_ids": pad or 0, "labels": NO_LABEL, "position_ids": 0}

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate examples of `pack`."""
        shape = len(examples), max(len(each["input_ids"]) for each in examples)
        found = {name: np.full(shape, filler, np.int64) for name, filler in self.fillers.items()}
        for row, example in enumerate(examples):
            whole = {"position_ids": range(len(example["input_ids"])), **example}
            for name, values in found.items():
                values[row, : len(whole[name])] = whole[name]
        return {name: torch.from_numpy(values) for name, values in found.items()}


class ObjectiveCollator:
    """Sorts the examples of a batch by what their corpora train (`objectives`), and collates each kind by itself."""

    def __init__(self, collators: Mapping[str, Collator], objectives: Sequence[str]) -> None:
        self.collators = dict(collators)
        self.objectives = list(objectives)

    def collate(
        self, examples: Sequence[Any], numbers: Sequence[int], seed: int, corpus: Sequence[int]
    ) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """Return one batch for each objective that is there, under `OBJECTIVES_KEY`."""
        found = {}
        for name, collator in self.collators.items():
            if places := [place for place, index in enumerate(corpus) if self.objectives[index] == name]:
                chosen = [examples[place] for place in places]
                found[name] = dict(collate(collator, chosen, [numbers[place] for place in places], seed))
        return {OBJECTIVES_KEY: found}


def collate(
    collator: Any, examples: Sequence[Any], numbers: Sequence[int], seed: int, *, may_draw: bool | None = None
) -> Any:
    """Collate examples of training, with the random numbers that belong to their slots, `numbers`.

    For any other collator than a `SlotwiseCollator` the generators are set from the first number, which takes some
    0.1 ms, unless it surely draws none: `may_draw` says so, by default the collator's class.
    """
    if may_draw is not False and isinstance(collator, SlotwiseCollator):  # a look at a protocol takes its time
        return collator.collate(examples, numbers, seed)
    draws = may_draw_numbers(collator) if may_draw is None else may_draw
    with random_state_of_slot(seed, numbers[0]) if draws else nullcontext():
        return collator(list(examples))


def may_draw_numbers(collator: Any) -> bool:
    """Whether a collator may draw random numbers, as one that masks does."""
    return type(collator) not in (*PLAIN_COLLATORS, PackedCollator) and collator is not default_data_collator


@contextmanager
def random_state_of_slot(seed: int, slot: int) -> Iterator[None]:
    """Set the CPU generators of random, NumPy and torch from (seed, slot), and put them back at the end."""
    value = (seed * 1_000_003 + slot) % (1 << 63)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(value)
        np.random.seed(value % (1 << 32))
        torch.default_generator.manual_seed(value)  # the CPU's alone: `torch.manual_seed` would reseed GPUs too
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
