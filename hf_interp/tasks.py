"""One table: task → model class, preprocessing, collator, metrics. A new task is a new entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import transformers
from transformers import AutoConfig, DataCollatorWithPadding, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from hf_interp.schedules import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a task is trained.

    Args:
        model_class: name of the transformers auto class.
        columns: what a corpus must bring after its columns are renamed.
        encode: (tokenizer, max_length) → a function from a batch of columns to model inputs, for `Dataset.map`.
        collator: tokenizer → data collator.
        metrics: → `compute_metrics` (called late: it imports `evaluate`).
        peft_type: PEFT's name for the task.
        has_labels: whether a recipe must list `label_names`.
    """

    model_class: str
    columns: Sequence[str]
    encode: Callable[[PreTrainedTokenizerBase, int], Callable[[dict[str, list[Any]]], dict[str, list[Any]]]]
    collator: Callable[[PreTrainedTokenizerBase], Any]
    metrics: Callable[[], Callable[[EvalPrediction], dict[str, float]]]
    peft_type: str
    has_labels: bool


def _encode_classification(
    tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    """text (and text_pair) → input_ids, attention_mask, ...: (length,), cut to `max_length`; label → labels: ()."""

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        return {**encoded, "labels": batch["label"]}

    return encode


def _classification_metrics() -> Callable[[EvalPrediction], dict[str, float]]:
    from hf_interp.metrics import classification_metrics  # imports evaluate, which takes seconds

    return classification_metrics()


TASKS: dict[str, Task] = {
    "sequence-classification": Task(
        model_class="AutoModelForSequenceClassification",
        columns=("text", "label"),
        encode=_encode_classification,
        collator=DataCollatorWithPadding,
        metrics=_classification_metrics,
        peft_type="SEQ_CLS",
        has_labels=True,
    ),
}


def get_task(name: str) -> Task:
    """The entry of a task.

    Raises:
        ValueError: for an unknown task (the nearest is named).
    """
    if name not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {name!r}." + did_you_mean(name, TASKS))
    return TASKS[name]


class Loaded(NamedTuple):
    """A pretrained model with a task's head."""

    model: PreTrainedModel
    new_names: list[str]
    """Parameters that the checkpoint lacks, hence new: those of an untrained head."""


def load_model(task: Task, name_or_path: str, label_names: Sequence[str] | None, **kwargs: Any) -> Loaded:
    """A pretrained model with the task's head; heads that the checkpoint lacks are new.

    Raises:
        ValueError: if the checkpoint has a head for another number of labels, or for the same labels in another order.
    """
    if label_names is not None:
        trained = list(AutoConfig.from_pretrained(name_or_path, **kwargs).id2label.values())
        if trained != list(label_names) and sorted(trained) == sorted(label_names):
            raise ValueError(
                f"`label_names` must have the order in which {name_or_path!r} was trained, {trained}, got "
                f"{list(label_names)}."
            )
        kwargs |= {
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: index for index, label in enumerate(label_names)},
        }
    try:
        model, found = getattr(transformers, task.model_class).from_pretrained(
            name_or_path, output_loading_info=True, **kwargs
        )
    except RuntimeError as error:
        if label_names is None or "mismatched" not in str(error):
            raise
        raise ValueError(
            f"The head of {name_or_path!r} does not fit the {len(label_names)} labels {list(label_names)}. List the "
            "labels that the model was trained with, in its order, or start from a model without a head."
        ) from error
    return Loaded(model, sorted(found["missing_keys"]))
