"""Tasks: what a text becomes, and what a model knows of its labels."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

from hf_interp.config import CorpusConfig, Recipe
from hf_interp.loading import RowError
from hf_interp.tasks import TASKS, check_task, get_task, load_model

CLASSIFICATION = TASKS["sequence-classification"]


def recipe(model: Path | str = "model", **fields: Any) -> Recipe:
    return Recipe(model_name_or_path=str(model), corpora={"domain": CorpusConfig(path="rows.jsonl")}, **fields)


def test_a_task_is_found_by_its_name() -> None:
    assert get_task("sequence-classification") is CLASSIFICATION


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sequence-clasification", r"got 'sequence-clasification'\. Did you mean 'sequence-classification'\?"),
        ("regression", r"`task` must be one of sequence-classification, .*, got 'regression'\.$"),
    ],
)
def test_an_unknown_task_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_task(name)


def test_every_task_names_parts_that_exist() -> None:
    for task in TASKS.values():
        assert hasattr(transformers, task.model_class)
        assert task.columns(recipe(label_names=["a"]), CorpusConfig(path="rows.jsonl"))
        assert task.check(recipe(label_names=["O", "B-A", "I-A"])) is None


def test_encoding_cuts_texts_and_keeps_labels(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    batch = {"text": ["good0 word1 bad2 word3", "word0"], "label": [1, 0]}
    encode = CLASSIFICATION.encode(tokenizer, recipe(max_length=3))
    encoded = encode(batch)
    ids = tokenizer.convert_tokens_to_ids
    assert encoded["input_ids"] == [ids(["good0", "word1", "bad2"]), ids(["word0"])]
    assert encoded["attention_mask"] == [[1, 1, 1], [1]]
    assert encoded["labels"] == [1, 0]
    assert set(encoded) <= {"input_ids", "attention_mask", "token_type_ids", "labels"}
    with pytest.raises(RowError, match="an empty text after tokenising") as caught:
        encode({"text": ["word0", ""], "label": [1, 0]})
    assert (caught.value.row, caught.value.column) == (1, "text")


def test_pairs_are_encoded_together(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    encode = CLASSIFICATION.encode(tokenizer, recipe(max_length=4))
    both = encode({"text": ["good0 good1"], "text_pair": ["bad0"], "label": [0]})
    assert tokenizer.convert_ids_to_tokens(both["input_ids"][0]) == ["good0", "good1", "bad0"]
    cut = encode({"text": ["good0 good1 good2"], "text_pair": ["bad0 bad1 bad2"], "label": [0]})
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"][0]) == ["good0", "good1", "bad0", "bad1"]


def test_the_collator_pads_to_the_longest(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    collator = CLASSIFICATION.collator(tokenizer, recipe())
    assert isinstance(collator, DataCollatorWithPadding)
    batch = collator([{"input_ids": [5, 6, 7], "labels": 1}, {"input_ids": [8], "labels": 0}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_a_model_learns_the_names_of_its_labels(tiny_model_dir: Path) -> None:
    model, new_names = load_model(recipe(tiny_model_dir, label_names=["negative", "positive"]))
    assert new_names == []
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    assert model.config.num_labels == model.classifier.out_features == 2


def test_a_model_without_names_keeps_its_own(tiny_model_dir: Path) -> None:
    assert load_model(recipe(tiny_model_dir)).model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_head_that_the_checkpoint_lacks_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    loaded = load_model(recipe(tmp_path, label_names=["a", "b", "c"]))
    assert loaded.new_names == ["classifier.bias", "classifier.weight"]
    assert loaded.model.classifier.out_features == 3


def test_a_head_for_another_number_of_labels_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(
        ValueError, match=r"The head of '.*' does not fit the 3 labels \['a', 'b', 'c'\]\. List the labels"
    ):
        load_model(recipe(tiny_model_dir, label_names=["a", "b", "c"]))


def test_labels_in_another_order_than_the_heads_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    load_model(recipe(tiny_model_dir, label_names=["negative", "positive"])).model.save_pretrained(tmp_path)
    assert load_model(recipe(tmp_path, label_names=["negative", "positive"])).model.config.id2label[1] == "positive"
    with pytest.raises(ValueError, match=r"was trained, \['negative', 'positive'\], got \['positive', 'negative'\]"):
        load_model(recipe(tmp_path, label_names=["positive", "negative"]))
