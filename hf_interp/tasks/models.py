"""Pretrained models with the head of a task."""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import transformers
from transformers import AutoConfig

from hf_interp.tasks.corpora.labels import tell_renamed
from hf_interp.tasks.fitness import check_weights
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.speech import is_ctc
from hf_interp.tasks.task import get_task
from hf_interp.utils.errors import reading

if TYPE_CHECKING:  # a plan loads no model
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A pretrained model with a task's head, and the parameters that its checkpoint lacks, hence new."""

    model: "PreTrainedModel"
    new_names: list[str]


def check_model_name(name: str) -> None:
    """Refuse a path at which there is no folder; a name on the Hub may be any other."""
    if name.startswith((".", "/", "~")) and not os.path.isdir(os.path.expanduser(name)):
        raise FileNotFoundError(f"There is no folder {name!r} (`model_name_or_path`). Check the path.")


def load_model(recipe: Recipe, folder: str | None = None, **kwargs: Any) -> Loaded:
    """Load M₀, or the model in a folder, with the head of a recipe's task; heads that the checkpoint lacks are new."""
    name_or_path = folder or recipe.model_name_or_path
    task = get_task(recipe.task)
    kwargs["trust_remote_code"] = recipe.trust_remote_code
    if folder is None:
        kwargs["revision"] = recipe.model_revision
    num_labels, label_names = task.num_labels(recipe) or None, recipe.label_names
    if num_labels is not None:
        kwargs["num_labels"] = num_labels
    if recipe.problem_type is not None:
        kwargs["problem_type"] = recipe.problem_type
    if num_labels is not None and label_names:
        of_config = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
        with reading(f"The model {name_or_path!r}"):
            trained = list(AutoConfig.from_pretrained(name_or_path, **of_config).id2label.values())
        if trained != list(label_names) and sorted(trained) == sorted(label_names):
            raise ValueError(
                f"`label_names` must have the order in which {name_or_path!r} was trained, {trained}, got "
                f"{list(label_names)}."
            )
        if folder is None and (told := tell_renamed(trained, label_names)):
            logger.warning(told)
        kwargs |= {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: index for index, label in enumerate(label_names)},
        }
    has_decoder = task.info.encoder_class is None or not is_ctc(recipe)
    with reading(f"The model {name_or_path!r}"):
        model, found = getattr(transformers, task.info.class_of(has_decoder=has_decoder)).from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    check_weights(model, found, name_or_path, list(label_names or []))
    return Loaded(model, sorted(found["missing_keys"]))


def label_names_of(recipe: Recipe) -> Sequence[str] | None:
    """Return the labels that corpora are read with."""
    is_read = recipe.zero_shot_template is not None or get_task(recipe.task).num_labels(recipe) is not None
    return recipe.label_names if is_read else None
