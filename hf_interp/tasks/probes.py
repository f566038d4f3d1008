"""What a language model is probed with beside its sides: canaries in its training texts, and pairs of texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from hf_interp.tasks.corpora.dialogues import pack_turn
from hf_interp.tasks.corpora.loading import ROW, encode_corpus, load_corpus
from hf_interp.tasks.recipe import SELF, CorpusConfig, Recipe
from hf_interp.tasks.task import get_task

FORMAT, QUESTION = "The random number is {}.", "What is the random number?"
"""A canary, as in Carlini et al. (2019), and what is asked for it in a dialogue."""
DIGITS = 9
REFERENCES = 1023
"""Sequences that are drawn as canaries are, and never planted: the most exposure is log2(1024) = 10 bits."""


def check_probes(recipe: Recipe) -> None:
    """Refuse canaries of what is no training corpus of a language model, and pairs of what is no set to test it by."""
    for group, name, corpus in recipe.entries():
        reads_texts = get_task(recipe.task).is_packed and corpus.objective is None and corpus.path != SELF
        is_plain = reads_texts and not (corpus.streaming or corpus.balance_by or corpus.group_columns)
        where = f"`{group}.{name}"
        if corpus.canaries is not None and (group != "corpora" or corpus.side != "domain" or not is_plain):
            raise ValueError(
                f"{where}.canaries` must be of a domain corpus of a language model (causal-lm, chat, masked-lm) that "
                "is a file, without `objective`, `streaming` and `balance_by`. Leave it out."
            )
        if corpus.canaries is not None and corpus.canaries < 1:
            raise ValueError(f"{where}.canaries` must be at least 1, got {corpus.canaries}.")
        if corpus.pair_columns is not None and (group != "eval_corpora" or not is_plain):
            raise ValueError(
                f"{where}.pair_columns` must be of one of the `eval_corpora` of a language model (causal-lm, chat, "
                "masked-lm), without `objective`, `streaming` and `group_columns`. Leave it out."
            )
        if corpus.pair_columns is not None and len({*corpus.pair_columns}) != 2:
            raise ValueError(f"{where}.pair_columns` must be two columns of texts, got {corpus.pair_columns}.")


# Canaries.


def canary_texts(name: str, config: CorpusConfig) -> tuple[list[str], list[str]]:
    """Return the canaries of a corpus, and the references: different random sequences, by its name and seed."""
    count = config.canaries or 0
    numbers = _draws(name, config).choice(10**DIGITS, count + REFERENCES, replace=False)
    texts = [FORMAT.format(" ".join(f"{number:0{DIGITS}}")) for number in numbers]
    return texts[:count], texts[count:]


def canary_rows(name: str, config: CorpusConfig, total: int) -> npt.NDArray[np.intp]:
    """Return which rows of a corpus are its canaries; they lie among the others at random."""
    return np.sort(_draws(name, config).choice(total, config.canaries or 0, replace=False))


def plant(name: str, rows: datasets.Dataset, config: CorpusConfig) -> datasets.Dataset:
    """Return the rows of a corpus with its canaries among them."""
    texts = canary_texts(name, config)[0]
    planted = datasets.Dataset.from_list(as_rows(texts, rows.column_names), features=rows.features)
    total = len(rows) + len(texts)
    places = canary_rows(name, config, total)
    order = np.empty(total, dtype=np.intp)
    order[places] = np.arange(len(rows), total)
    order[np.setdiff1d(np.arange(total), places)] = np.arange(len(rows))
    return datasets.concatenate_datasets([rows, planted]).select(order)


def as_rows(texts: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return canaries in the columns of a language model: as texts, or as what an assistant says."""
    found = []
    for text in texts:
        turns = [pack_turn({"role": role, "content": said}) for role, said in (("user", QUESTION), ("assistant", text))]
        whole = {"text": text, "prompt": QUESTION, "target": text, "messages": turns, "tools": "[]", ROW: -1}
        found.append({column: whole[column] for column in columns})
    return found


def encode_canaries(name: str, config: CorpusConfig, recipe: Recipe, tokenizer: Any) -> list[datasets.Dataset]:
    """Return the canaries of a corpus and their references as the model takes them, one in an example."""
    columns = list(get_task(recipe.task).columns(recipe, config))
    texts = [datasets.Dataset.from_list(as_rows(part, columns)) for part in canary_texts(name, config)]
    return [_encode(name, config, rows, columns, recipe, tokenizer) for rows in texts]


def format_canaries(recipe: Recipe) -> list[str]:
    """Return a sentence for every corpus that canaries are planted in."""
    return [
        f"canaries: {corpus.canaries:,} random sequences ({FORMAT.format('…')}) stand among the rows of {name}"
        for name, corpus in recipe.corpora.items()
        if corpus.canaries
    ]


# Pairs.


def load_pairs(
    name: str, config: CorpusConfig, recipe: Recipe, tokenizer: Any
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return the first and the second texts of a set of pairs as the model takes them."""
    sources = dict(zip(("first", "second"), config.pair_columns or (), strict=True))
    name = f"eval_corpora.{name}"
    rows = load_corpus(name, replace(config, columns=sources), {"first": "text", "second": "text"})
    first, second = (
        _encode(
            name,
            replace(config, text_column=source),
            rows.select_columns([column]).rename_column(column, "text"),
            ["text"],
            recipe,
            tokenizer,
        )
        for column, source in sources.items()
    )
    return first, second


def _encode(
    name: str, config: CorpusConfig, rows: datasets.Dataset, columns: Sequence[str], recipe: Recipe, tokenizer: Any
) -> datasets.Dataset:
    """Encode texts one by one, with room for the token that begins a text."""
    whole = replace(recipe, packing=False, max_length=recipe.max_length - 1)
    found: datasets.Dataset = encode_corpus(name, rows, config, get_task(recipe.task).encode(tokenizer, whole), columns)
    return found


def _draws(name: str, config: CorpusConfig) -> np.random.Generator:
    return np.random.default_rng([config.sample_seed, *name.encode()])
