"""The table of tasks agrees with the classes that transformers and PEFT have."""

import pytest
import transformers
from transformers.models.auto import modeling_auto

from hf_interp.utils.task_info import OTHER_ADAPTERS, TASK_INFOS, adapter_classes, task_of_adapter, task_of_class

CLASSES = {
    "audio-classification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
"""The classes of transformers by task; a class that several tasks have is of the first."""


def test_every_class_of_transformers_is_of_its_task() -> None:
    tasks: dict[str, str] = {}
    for task, mapping in CLASSES.items():
        for found in mapping.values():
            for name in [found] if isinstance(found, str) else found:
                tasks.setdefault(name, task)
    assert {name: task_of_class(name) for name in tasks} == tasks
    assert task_of_class("BertModel") is None


@pytest.mark.parametrize("name", TASK_INFOS)
def test_the_class_of_a_task_exists(name: str) -> None:
    assert hasattr(transformers, TASK_INFOS[name].auto_class)


def test_adapters_name_their_task_and_its_class() -> None:
    peft = pytest.importorskip("peft")
    assert adapter_classes().keys() == {kind.value for kind in peft.TaskType}
    for kind, auto_class in adapter_classes().items():
        task = task_of_adapter(kind)
        assert (task is None) == (kind in OTHER_ADAPTERS)
        assert task is None or TASK_INFOS[task].auto_class == auto_class
