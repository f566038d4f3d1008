"""A Python session that a reader types into: a block is a line of JSON, and so is the answer, an error or ""."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import toy_recipes
import toys
from transformers import PreTrainedTokenizerFast

from hf_interp import InterpolationTrainer


def trained_trainer(names: dict[str, Any]) -> InterpolationTrainer:
    """Return a trainer of a small mixture, trained for eight steps."""
    trainer = InterpolationTrainer(
        model=toys.tiny_model(),
        args=toys.config("out"),
        train_dataset=toys.mixture(),
        eval_dataset={"general": toys.corpus(0, 8), "domain": toys.corpus(1000, 8)},
    )
    trainer.train()
    return trainer


def number_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of numbers, which marks the end of a text by 9."""
    tokenizer = toys.number_tokenizer()
    tokenizer.eos_token = "9"
    return tokenizer


def toy_prompts() -> SimpleNamespace:
    """Return prompts with completions for both sides, and the tokenizer of the language model."""
    rows = datasets.Dataset.from_dict({"prompt": ["the price"] * 8, "completion": [" falls", " rises"] * 4})
    return SimpleNamespace(general=rows, domain=rows, tokenizer=toy_recipes.toy_tokenizer(eos_token="[SEP]"))


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


GIVEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model": lambda names: toys.tiny_model(),
    "pretrained": lambda names: toys.tiny_model(),
    "masked_lm_model": lambda names: toys.masked_model(),
    "tokenizer": lambda names: number_tokenizer(),
    "args": lambda names: toys.config("out"),
    "general": lambda names: toys.mixture()["general"],
    "domain": lambda names: toys.mixture()["domain"],
    "general_test": lambda names: toys.corpus(0, 4),
    "domain_test": lambda names: toys.corpus(1000, 4),
    "texts": lambda names: toys.corpus(0, 12).remove_columns("labels"),
    "reviews": lambda names: toys.corpus(1000, 12),
    "sentences": lambda names: datasets.Dataset.from_dict({"text": ["a text", "another text"] * 8}),
    "compute_metrics": lambda names: accuracy,
    "language_model": lambda names: toy_recipes.toy_decoder(len(toy_recipes.toy_tokenizer(eos_token="[SEP]"))),
    "prompts": lambda names: toy_prompts(),
    "trainer": trained_trainer,
    "trained": lambda names: toys.weights(names["trainer"]),
}
"""What a block may take for granted: functions of the names that there are already."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the blocks print goes to standard error
    names: dict[str, Any] = {"__name__": "__main__", "Path": Path}
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), names)), file=answers, flush=True)


def _answer(task: dict[str, Any], names: dict[str, Any]) -> str:
    try:
        for name in task["given"]:
            names[name] = GIVEN[name](names)
        exec(compile(task["code"], task["place"], "exec"), names)
    except BaseException:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    main()
