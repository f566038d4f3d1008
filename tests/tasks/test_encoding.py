"""From columns to model inputs, and what is said of rows that cannot be trained on."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from hf_interp.tasks.corpora.dialogues import CHATML
from hf_interp.tasks.corpora.loading import RowError
from hf_interp.tasks.encoding import (
    encode_causal,
    encode_classification,
    encode_masked,
    encode_pairs,
    encode_tokens,
    split_tokens,
)
from hf_interp.tasks.recipe import CorpusConfig, Recipe

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", "##teen", "##ty", "sum", ":"]


def tokenizer(*, special: bool = True) -> Any:
    """Pieces of words, between [CLS] and [SEP]."""
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    if special:
        ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, chat_template=CHATML, **{f"{name}_token": token for name, token in names.items()}
    )


def recipe(**fields: Any) -> Recipe:
    return Recipe(model_name_or_path="model", corpora={"domain": CorpusConfig(path="rows.jsonl")}, **fields)


def pieces(ids: list[int]) -> str:
    return " ".join(PIECES[index] for index in ids)


# Classification.


def test_texts_and_pairs() -> None:
    encode = encode_classification(tokenizer(), recipe(max_length=5))
    found = encode({"text": ["one two", "one two three four"], "label": [1, 0]})
    assert [pieces(ids) for ids in found["input_ids"]] == ["[CLS] one two [SEP]", "[CLS] one two three [SEP]"]
    assert found["labels"] == [1, 0]
    found = encode({"text": ["one"], "text_pair": ["two"], "label": [[0.0, 1.0]]})
    assert [pieces(ids) for ids in found["input_ids"]] == ["[CLS] one [SEP] two [SEP]"]
    assert found["labels"] == [[0.0, 1.0]]


# Tokens.


def test_the_first_piece_of_a_word_has_its_tag() -> None:
    encode = encode_tokens(tokenizer(), recipe(max_length=9))
    found = encode({"tokens": [["one", "fourteen", "two"], ["threety"]], "tags": [[3, 1, 0], [2]]})
    assert pieces(found["input_ids"][0]) == "[CLS] one four ##teen two [SEP]"
    assert found["labels"] == [[-100, 3, 1, -100, 0, -100], [-100, 2, -100, -100]]


def test_tags_beyond_the_cut_are_left_out() -> None:
    encode = encode_tokens(tokenizer(), recipe(max_length=4))
    found = encode({"tokens": [["one", "fourteen", "two"]], "tags": [[3, 1, 0]]})
    assert found["labels"] == [[-100, 3, 1, -100]]
    found = encode({"tokens": [["one", " ", "two"]], "tags": [[3, 1, 2]]})  # words that become nothing shift no tags
    assert found["labels"] == [[-100, 3, 2, -100]]


TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([1, 2, 2], [1, 2]),  # an entity whose inner word has no piece goes on
        ([0, 1, 2], [0, 1]),  # one whose first word has none begins with the next
        ([3, 1, 2], [3, 1]),
        ([3, 3, 0], [3, 0]),
        ([3, 3, 4], [3, 3]),
    ],
)
def test_a_word_without_a_piece_leaves_legal_tags(tags: list[int], expected: list[int]) -> None:
    found = encode_tokens(tokenizer(), recipe(label_names=TAGS))({"tokens": [["one", " ", "two"]], "tags": [tags]})
    assert found["labels"] == [[-100, *expected, -100]]


def test_an_evaluation_sees_every_word_and_no_entity_in_two_rows() -> None:
    words = recipe(max_length=4, label_names=TAGS)  # two pieces and the ends
    long = {"tokens": [["one", "two", "three", "four", "one"], ["one"]], "tags": [[0, 1, 2, 0, 3], [4]]}
    found = split_tokens(tokenizer(), words)(long)
    assert found["tokens"] == [["one"], ["two", "three"], ["four", "one"], ["one"]]
    assert found["tags"] == [[0], [1, 2], [0, 3], [4]]
    assert all(len(ids) <= 4 for ids in encode_tokens(tokenizer(), words)(found)["input_ids"])
    whole = {"tokens": [[" ", "one", "fourteenty", " "]], "tags": [[1, 2, 2, 2]]}  # longer than a row, with empty words
    assert split_tokens(tokenizer(), words)(whole) == {
        "tokens": [[" ", "one"], ["fourteenty", " "]],
        "tags": [[1, 2], [2, 2]],
    }


def test_every_word_needs_a_tag() -> None:
    for part in (encode_tokens, split_tokens):
        with pytest.raises(RowError, match="1 tags for 2 words"):
            part(tokenizer(), recipe())({"tokens": [["one", "two"]], "tags": [[0]]})
    encode = encode_tokens(tokenizer(), recipe())
    with pytest.raises(RowError, match="1 tags for 2 words") as caught:
        encode({"tokens": [["one"], ["one", "two"]], "tags": [[0], [0]]})
    assert (caught.value.row, caught.value.column) == (1, "tags")
    with pytest.raises(RowError, match="no token left after tokenising") as caught:
        encode({"tokens": [["one"], [" "]], "tags": [[0], [0]]})
    assert (caught.value.row, caught.value.column) == (1, "tokens")


# Sequence to sequence.


def test_inputs_are_cut_and_outputs_are_not() -> None:
    encode = encode_pairs(tokenizer(), recipe(max_length=4, max_target_length=4, source_prefix="sum: "))
    found = encode({"text": ["one two three"], "target": ["two three"]})
    assert pieces(found["input_ids"][0]) == "[CLS] sum : [SEP]"
    assert pieces(found["labels"][0]) == "[CLS] two three [SEP]"


def test_an_output_that_is_too_long_is_refused_or_cut() -> None:
    batch = {"text": ["one", "one"], "target": ["two", "one two three"]}
    with pytest.raises(RowError, match=r"a target of 5 tokens, more than `max_target_length` \(4\)") as caught:
        encode_pairs(tokenizer(), recipe(max_target_length=4))(batch)
    assert (caught.value.row, caught.value.column) == (1, "target")
    assert "`truncate_target: true`" in caught.value.remedy
    found = encode_pairs(tokenizer(), recipe(max_target_length=4, truncate_target=True))(batch)
    assert [pieces(ids) for ids in found["labels"]] == ["[CLS] two [SEP]", "[CLS] one two [SEP]"]
    assert encode_pairs(tokenizer(), recipe(max_target_length=5))(batch)["labels"][1][-1] == PIECES.index("[SEP]")


# Language models.


def test_a_text_ends_once() -> None:
    whole = encode_causal(tokenizer(), recipe(max_length=2))({"text": ["one two"]})  # to be packed
    assert pieces(whole["input_ids"][0]) == "[CLS] one two [SEP]"
    bare = encode_causal(tokenizer(special=False), recipe(max_length=2))({"text": ["one two"]})
    assert pieces(bare["input_ids"][0]) == "one two [SEP]"
    assert bare["labels"] == bare["input_ids"]
    assert bare["attention_mask"] == [[1, 1, 1]]
    cut = encode_causal(tokenizer(special=False), recipe(max_length=2, packing=False))({"text": ["one two"]})
    assert pieces(cut["input_ids"][0]) == "one two"


def test_a_text_of_one_token_has_nothing_to_predict() -> None:
    words = tokenizer(special=False)
    alone = recipe(max_length=1, packing=False)
    with pytest.raises(RowError, match="a text of one token, behind which there is none to predict") as caught:
        encode_causal(words, alone)({"text": ["one"]})
    assert (caught.value.row, caught.value.column) == (0, "text")
    assert encode_causal(words, recipe(max_length=2, packing=False))({"text": ["one"]})["labels"] == [[5, 3]]
    words.eos_token = None
    assert encode_causal(words, recipe())({"text": ["one"]})["labels"] == [[5]]  # to be packed
    with pytest.raises(RowError, match="a text of one token") as caught:
        encode_causal(words, recipe(packing=False))({"text": ["one two", "one"]})
    assert caught.value.row == 1


def test_faults_of_dialogues_have_their_row() -> None:
    encode = encode_causal(tokenizer(), recipe(max_length=3))
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    with pytest.raises(RowError, match="no assistant's token within its first 3 tokens") as caught:
        encode({"messages": [said]})
    assert (caught.value.row, caught.value.column) == (0, "messages")
    found = encode_causal(tokenizer(), recipe(max_length=50))({"messages": [said]})
    assert set(found) == {"input_ids", "attention_mask", "labels"}
    assert PIECES.index("two") in found["labels"][0]
    assert PIECES.index("one") not in found["labels"][0]


def test_texts_to_be_masked() -> None:
    encode = encode_masked(tokenizer(), recipe(max_length=3))
    found = encode({"text": ["one fourteen"]})
    assert pieces(found["input_ids"][0]) == "[CLS] one four ##teen [SEP]"
    assert found["special_tokens_mask"] == [[1, 0, 0, 0, 1]]
    assert "offset_mapping" not in found
    found = encode_masked(tokenizer(), recipe(max_length=3, packing=False, whole_word_mask=True))({"text": ["one two"]})
    assert pieces(found["input_ids"][0]) == "[CLS] one [SEP]"
    assert found["offset_mapping"] == [[(0, 0), (0, 3), (0, 0)]]


@pytest.mark.parametrize(
    ("encoder", "columns", "column"),
    [
        (encode_classification, {"text": ["one", " "], "label": [0, 0]}, "text"),
        (encode_pairs, {"text": ["one", ""], "target": ["one", "one"]}, "text"),
        (encode_pairs, {"text": ["one", "one"], "target": ["one", ""]}, "target"),
        (encode_masked, {"text": ["one", ""]}, "text"),
    ],
)
def test_nothing_left_after_tokenising(encoder: Any, columns: dict[str, Any], column: str) -> None:
    with pytest.raises(RowError, match="an empty text after tokenising") as caught:
        encoder(tokenizer(special=False), recipe())(columns)
    assert (caught.value.row, caught.value.column) == (1, column)


# Tokenizers of other kinds.


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda words: encode_tokens(words, recipe()), "Token classification"),
        (lambda words: encode_masked(words, recipe(whole_word_mask=True)), "Masking whole words"),
        (
            lambda words: encode_causal(words, recipe())({"messages": [[{"role": "assistant", "content": "a"}]]}),
            "Training on dialogues",
        ),
    ],
)
def test_a_tokenizer_that_knows_no_places_is_refused(make: Any, what: str) -> None:
    message = f"^{what} needs a tokenizer that says where in the text .* ByT5Tokenizer cannot. Use a model with a"
    with pytest.raises(ValueError, match=message):
        make(ByT5Tokenizer())


def test_a_tokenizer_that_knows_no_places_does_for_the_rest() -> None:
    words = ByT5Tokenizer()
    found = encode_pairs(words, recipe())({"text": ["ab"], "target": ["c"]})
    assert (found["input_ids"], found["labels"]) == ([[100, 101, 1]], [[102, 1]])
    assert encode_causal(words, recipe())({"text": ["ab"]})["labels"] == [[100, 101, 1]]
    assert encode_masked(words, recipe())({"text": ["ab"]})["special_tokens_mask"] == [[0, 0, 1]]


def test_a_template_that_refuses_turns_is_told_with_their_row() -> None:
    words = tokenizer()
    words.chat_template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with user') }}{% endif %}"
    words.chat_template += CHATML
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    with pytest.raises(RowError, match=r"turns that the chat template refuses \(begin with user\)") as caught:
        encode_causal(words, recipe())({"messages": [said, said[1:]]})
    assert (caught.value.row, caught.value.column) == (1, "messages")
    assert "change `chat_template`" in caught.value.remedy


def test_a_prompt_and_its_answer_are_a_dialogue_of_two_turns() -> None:
    encode = encode_causal(tokenizer(), recipe(task="causal-lm", max_length=64))
    turns = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    assert encode({"prompt": ["one two"], "target": ["three"]}) == encode({"messages": [turns]})
    with pytest.raises(RowError, match="no assistant's token within its first 2 tokens") as caught:
        encode_causal(tokenizer(), recipe(task="causal-lm", max_length=2))({"prompt": ["one two"], "target": ["three"]})
    assert caught.value.column == "prompt"
