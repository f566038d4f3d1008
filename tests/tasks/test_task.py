"""Tasks: what a text becomes, and what a model knows of its labels."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from architectures import make_model, make_tokenizer
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from toys import SHORT
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    pipeline,
)

from hf_interp.reporting.curve import load_curve
from hf_interp.reporting.hub import render_card
from hf_interp.reporting.results import RunResults, load_run_results
from hf_interp.tasks import task as tasks
from hf_interp.tasks.build import check_recipe
from hf_interp.tasks.corpora.dialogues import CHATML
from hf_interp.tasks.encoding import encode_pairs
from hf_interp.tasks.models import load_model
from hf_interp.tasks.recipe import CorpusConfig, Recipe
from hf_interp.tasks.task import TASKS, check_task, get_task
from hf_interp.tasks.tokenizers import prepare_tokenizer
from hf_interp.train import run_recipe
from hf_interp.training.config import InterpolationConfig
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint

CLASSIFICATION = TASKS["sequence-classification"]


def recipe(model: Path | str = "model", **fields: Any) -> Recipe:
    return Recipe(model_name_or_path=str(model), corpora={"domain": CorpusConfig(path="rows.jsonl")}, **fields)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sequence-clasification", r"got 'sequence-clasification'\. Did you mean 'sequence-classification'\?"),
        ("regression", r"`task` must be one of sequence-classification, .*, got 'regression'\.$"),
    ],
)
def test_an_unknown_task_is_refused(name: str, message: str) -> None:
    assert get_task("sequence-classification") is CLASSIFICATION
    with pytest.raises(ValueError, match=message):
        get_task(name)


def test_every_task_names_parts_that_exist() -> None:
    for task in TASKS.values():
        assert hasattr(transformers, task.info.auto_class)
        assert task.columns(recipe(label_names=["a"]), CorpusConfig(path="rows.jsonl"))
        given = recipe(label_names=["O", "B-A", "I-A"])
        given.corpora["domain"].messages_column = "messages"
        assert task.check(given) is None
    with pytest.raises(ValueError, match="`task: chat` needs a corpus of dialogues"):
        check_task(recipe(task="chat"))


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
    assert load_model(recipe(tiny_model_dir)).model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}  # without names


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


# Whole runs.


def run(folder: Path, model: Path, task: str, rows: list[dict[str, Any]], **fields: Any) -> RunResults:
    """Two steps on the same rows for both sides."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"path": str(folder / "rows.jsonl"), **fields.pop("corpus", {})}
    return run_recipe(short_recipe(model, task, given, output_dir=str(folder / "out"), **fields))


def short_recipe(model: Path, task: str, given: dict[str, Any], **fields: Any) -> dict[str, Any]:
    corpora = {"general": given, "domain": given}
    names = {"model_name_or_path": str(model), "task": task, "corpora": corpora, "eval_corpora": corpora}
    return {**names, "max_steps": 2, "max_length": 8, **SHORT, **fields}


@pytest.fixture(scope="module")
def headless_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without a head, its tokenizer with a mask."""
    folder = tmp_path_factory.mktemp("headless")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    model = AutoModel.from_pretrained(tiny_model_dir)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXTS = ["good0 word1 word2", "bad0 word3", "word4 word5 word6 word7", "word8 good1"] * 5


def test_several_labels_to_a_text(tmp_path: Path, headless_dir: Path) -> None:
    rows = [{"text": text, "label": ["a"] if row % 2 else ["a", "c"]} for row, text in enumerate(TEXTS)]
    labels = {"label_names": ["a", "b", "c"], "problem_type": "multi_label_classification"}
    results = run(tmp_path, headless_dir, "sequence-classification", rows, **labels)
    assert set(results.final_metrics["domain"]) == {"loss", "f1", "f1_macro", "exact_match"}
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (saved.config.problem_type, saved.config.num_labels) == ("multi_label_classification", 3)
    (scores,) = pipeline("text-classification", model=str(tmp_path / "out"), top_k=None, device=-1)(["word1"])
    assert {each["label"] for each in scores} == {"a", "b", "c"}


def test_numbers(tmp_path: Path, headless_dir: Path) -> None:
    rows = [{"text": text, "score": row / 4} for row, text in enumerate(TEXTS)]
    given = {"problem_type": "regression", "corpus": {"label_column": "score"}}
    results = run(tmp_path, headless_dir, "sequence-classification", rows, **given)
    assert set(results.final_metrics["domain"]) == {"loss", "pearson", "mse", "mae"}
    assert results.final_metrics["domain"]["mse"] == pytest.approx(results.final_metrics["domain"]["loss"], rel=1e-4)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.num_labels == 1


def test_named_entities(tmp_path: Path, headless_dir: Path) -> None:
    rows = [{"tokens": text.split(), "ner_tags": ["B-X", *["O"] * (len(text.split()) - 1)]} for text in TEXTS]
    results = run(tmp_path, headless_dir, "token-classification", rows, label_names=["O", "B-X", "I-X"])
    assert set(results.final_metrics["domain"]) == {"loss", "f1", "precision", "recall", "token_accuracy"}
    found = pipeline("token-classification", model=str(tmp_path / "out"), device=-1)("good0 word1")
    assert all(each["entity"] in ("B-X", "I-X") for each in found)


@pytest.mark.parametrize("whole", [False, True])
def test_masked_words(tmp_path: Path, headless_dir: Path, whole: bool) -> None:
    fields = {"whole_word_mask": whole, "packing": not whole, "mlm_probability": 0.5}
    results = run(tmp_path, headless_dir, "masked-lm", [{"text": text} for text in [*TEXTS, ""]], **fields)
    assert set(results.final_metrics["domain"]) == {"loss", "perplexity", "token_accuracy"}
    assert results.plan["corpora"][0]["num_examples"] == (20 if whole else 6)  # 55 tokens in pieces of 8
    (best, *_) = pipeline("fill-mask", model=str(tmp_path / "out"), device=-1)("good0 [MASK] word1")
    assert isinstance(best["token_str"], str)


def test_a_corpus_too_short_to_pack_is_refused(tmp_path: Path, headless_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"Corpus 'general' has fewer than `max_length` \(8\) tokens"):
        run(tmp_path, headless_dir, "masked-lm", [{"text": "word1 word2"}])


# Recipes that cannot be.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "A recipe for sequence-classification must list `label_names`"),
        ({"label_names": ["a", "a"]}, "`label_names` must be different labels, got 'a' twice"),
        (
            {"problem_type": "regresion"},
            r"`problem_type` must be one of .*, got 'regresion'\. Did you mean 'regression'",
        ),
        ({"problem_type": "regression", "label_names": ["a"]}, "A regression has no `label_names`"),
        ({"task": "token-classification", "label_names": ["O", "I-X"]}, None),
        ({"task": "token-classification", "label_names": ["O", "B-Y", "I-X"]}, "has 'I-X' without 'B-X'"),
        ({"task": "masked-lm", "mlm_probability": 0.0}, r"`mlm_probability` must lie in \(0, 1\], got 0\.0"),
        ({"task": "causal-lm"}, None),
        ({"task": "causal-lm", "packing": "bfd"}, None),
        ({"task": "causal-lm", "packing": "no"}, "`packing` must be true or false, or bfd for causal .*, got 'no'"),
        ({"task": "masked-lm", "packing": "bfd"}, "or bfd for causal language models, got 'bfd' for masked-lm"),
        ({"problem_type": "regression"}, None),
    ],
)
def test_recipes_are_checked_before_anything_is_loaded(fields: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert check_task(recipe(**fields)) is TASKS[fields.get("task", "sequence-classification")]
        return
    with pytest.raises(ValueError, match=message):
        check_task(recipe(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "mlm"}, r"`objective` must be one of `objectives` \(none\), distill, or a task .*got 'mlm'"),
        ({"objective": "masked-ml"}, r"got 'masked-ml'\. Did you mean 'masked-lm'\?"),
        (
            {"objective": "translation"},
            "The objective 'translation' cannot be translation, which has no backbone apart",
        ),
        ({"objective": "token-classification"}, "must list `label_names`"),
    ],
)
def test_objectives_are_checked_before_anything_is_loaded(fields: dict[str, Any], message: str) -> None:
    corpora = {"general": CorpusConfig(path="a.jsonl", **fields), "domain": CorpusConfig(path="b.jsonl")}
    with pytest.raises(ValueError, match=message):
        check_recipe(
            Recipe(model_name_or_path="model", corpora=corpora, label_names=["a", "b"]),
            InterpolationConfig(output_dir="out", max_steps=1),
        )


# Runs of models that generate, and of language models.


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with an untrained model and its tokenizer."""
    folders = {}
    for kind, task in (("bart", "SEQ_2_SEQ_LM"), ("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM")):
        folders[kind] = tmp_path_factory.mktemp(kind)
        make_model(kind, task).save_pretrained(folders[kind])
        make_tokenizer().save_pretrained(folders[kind])
    return folders


SEARCH = {
    "alpha_search": {"method": "grid", "alphas": 2},
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-2,
}


def check_search(folder: Path, auto_class: Any) -> None:
    """The curve has both ends, and what is saved at the chosen one is the model there."""
    curve = load_curve(folder / "curve.json")
    assert curve.alphas == [0.0, 1.0]
    trained = auto_class.from_pretrained(folder).state_dict()
    chosen = auto_class.from_pretrained(folder / "interpolated").state_dict()
    assert all(torch.equal(trained[name], chosen[name]) for name in trained) == (curve.alpha == 1.0)


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("translation", {"bleu", "chrf"}),
        ("summarization", {"rougeL", "rouge1", "rouge2"}),
        ("seq2seq", {"bleu", "chrf", "rougeL", "rouge1", "rouge2"}),
    ],
)
def test_tasks_that_generate(tmp_path: Path, model_dirs: dict[str, Path], task: str, metrics: set[str]) -> None:
    rows = [{"en": {"text": f"w{row} w9"}, "target": f"w{row + 1} w8 w7"} for row in range(4, 24)]
    fields = {"max_target_length": 4, "source_prefix": "w5 ", "corpus": {"text_column": "en.text"}}
    results = run(tmp_path, model_dirs["bart"], task, rows, **fields, **SEARCH)
    found = results.final_metrics["domain"]
    assert set(found) == {"loss", "generated_tokens", *metrics}
    assert found["generated_tokens"] <= 5  # four new ones behind the one that decoding starts with
    check_search(tmp_path / "out", AutoModelForSeq2SeqLM)


@pytest.mark.parametrize(
    ("kind", "packing", "count"),
    [("llama", True, 7), ("gpt2", False, 20), ("gpt2", "bfd", 10)],  # 20 texts of 2 words and their end, in 8 tokens
)
def test_causal_language_models(
    tmp_path: Path, model_dirs: dict[str, Path], kind: str, packing: bool | str, count: int
) -> None:
    rows = [{"text": f"w{row} w9"} for row in range(4, 24)] + [{"text": " "}]
    results = run(tmp_path, model_dirs[kind], "causal-lm", rows, packing=packing, **SEARCH)
    assert results.packed == ({} if packing is False else {"general": 20, "domain": 20})  # without the blank one
    found = results.final_metrics["domain"]
    assert set(found) == {"loss", "perplexity", "token_accuracy"}
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-4)
    assert [corpus["num_examples"] for corpus in results.plan["corpora"]] == [count, count]
    check_search(tmp_path / "out", AutoModelForCausalLM)


def test_a_language_model_learns_what_the_assistant_says(tmp_path: Path, model_dirs: dict[str, Path]) -> None:
    rows = [
        {"said": [{"by": "human", "text": f"w{row} w9"}, {"by": "assistant", "text": "w7 w8"}]} for row in range(4, 24)
    ]
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    names = {"messages_column": "said", "role_key": "by", "content_key": "text", "roles": {"human": "user"}}
    fields = {**SEARCH, "learning_rate": 0.03, "max_steps": 25, "chat_template": str(template), "corpus": names}
    results = run(tmp_path, model_dirs["llama"], "causal-lm", rows, packing="bfd", max_length=24, **fields)
    assert [corpus["num_examples"] for corpus in results.plan["corpora"]] == [7, 7]  # three dialogues in each
    assert results.packed == {"general": 20, "domain": 20}
    assert results.base_metrics["domain"]["token_accuracy"] < 0.5
    assert results.final_metrics["domain"]["token_accuracy"] == 1.0  # of w7, w8 and </s>, whatever is asked
    check_search(tmp_path / "out", AutoModelForCausalLM)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.read_text()


# What is set of a tokenizer.


def given(model: str, task: str, **fields: Any) -> Recipe:
    corpus = {name: fields.pop(name) for name in ("messages_column", "objective") if name in fields}
    return Recipe(
        model_name_or_path=model,
        task=task,
        corpora={"general": CorpusConfig(path="a.jsonl"), "domain": CorpusConfig(path="b.jsonl", **corpus)},
        **fields,
    )


def test_a_tokenizer_pads_with_what_it_has() -> None:
    words = make_tokenizer()
    prepare_tokenizer(words, given("here", "causal-lm"))
    assert words.pad_token == "<pad>"
    words.pad_token = None
    prepare_tokenizer(words, given("here", "causal-lm"))
    assert words.pad_token == "</s>"
    words.pad_token = words.eos_token = None
    with pytest.raises(ValueError, match=r"The tokenizer of 'here' has neither a token to pad with nor .* Set its"):
        prepare_tokenizer(words, given("here", "causal-lm"))


def test_dialogues_need_a_chat_template() -> None:
    with pytest.raises(ValueError, match="has no chat template, which dialogues need"):
        prepare_tokenizer(make_tokenizer(), given("here", "causal-lm", messages_column="said"))
    words = make_tokenizer()
    prepare_tokenizer(words, given("here", "causal-lm"))
    assert words.chat_template is None
    prepare_tokenizer(words, given("here", "causal-lm", messages_column="said", chat_template="chatml"))
    assert words.chat_template == CHATML


def of_bytes(parts: Any) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = parts
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="!")


@pytest.mark.parametrize("field", ["task", "objective"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: of_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        lambda: of_bytes(
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
        ),
        lambda: RobertaTokenizer(
            vocab={letter: 5 + index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
            | {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4},
            merges=[],
        ),
    ],
)
def test_words_that_come_one_by_one_begin_with_a_space(make: Any, field: str, tmp_path: Path) -> None:
    def split(words: Any) -> list[str]:
        ids = words([["a", "b"]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
        return words.convert_ids_to_tokens(ids)

    words = make()
    prepare_tokenizer(words, given("here", "sequence-classification"))
    assert split(words) == ["a", "b"]
    task = {"task": "token-classification"} if field == "task" else {"task": "masked-lm", field: "token-classification"}
    prepare_tokenizer(words, given("here", **task))
    assert split(words) == ["Ġ", "a", "Ġ", "b"]
    words.save_pretrained(tmp_path)
    assert split(AutoTokenizer.from_pretrained(tmp_path)) == ["Ġ", "a", "Ġ", "b"]


def test_languages(model_dirs: dict[str, Path]) -> None:
    vocab = {
        token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "▁a", "eng", "fra"])
    }
    words = NllbTokenizer(vocab=vocab, merges=[("▁", "a")], extra_special_tokens=["eng", "fra"], src_lang="fra")
    model = AutoModelForSeq2SeqLM.from_pretrained(model_dirs["bart"])
    recipe = given("here", "translation", source_lang="eng", target_lang="fra")
    prepare_tokenizer(words, recipe)
    TASKS["translation"].prepare(words, model, recipe)
    assert (words.src_lang, words.tgt_lang) == ("eng", "fra")
    found = encode_pairs(words, recipe)({"text": ["a"], "target": ["a"]})
    assert words.convert_ids_to_tokens(found["input_ids"][0]) == ["eng", "▁a", "</s>"]
    assert words.convert_ids_to_tokens(found["labels"][0]) == ["fra", "▁a", "</s>"]
    assert model.generation_config.forced_bos_token_id == vocab["fra"]
    for field in ("source_lang", "target_lang"):
        unknown = given("here", "translation", **{field: "deu"})
        with pytest.raises(ValueError, match=rf"does not know the language 'deu' \(`{field}`\)\. Name it as the model"):
            prepare_tokenizer(words, unknown)
        with pytest.raises(ValueError, match=rf"'here' knows no languages, got `{field}`: 'deu'\. Leave it out"):
            prepare_tokenizer(make_tokenizer(), unknown)


class CodedTokenizer(PreTrainedTokenizerFast):
    """As M2M100's: languages have codes, and their tokens are called otherwise, though a code may be a word too."""

    src_lang = "en"

    def get_lang_id(self, language: str) -> int:
        return {"en": 58, "w7": 59}[language]


def test_codes_of_languages_are_no_words(model_dirs: dict[str, Path]) -> None:
    words = CodedTokenizer(tokenizer_object=make_tokenizer().backend_tokenizer, pad_token="<pad>", unk_token="<unk>")
    model = AutoModelForSeq2SeqLM.from_pretrained(model_dirs["bart"])
    recipe = given("here", "translation", target_lang="w7")
    prepare_tokenizer(words, recipe)
    TASKS["translation"].prepare(words, model, recipe)
    assert model.generation_config.forced_bos_token_id == 59
    with pytest.raises(ValueError, match=r"does not know the language 'w8' \(`target_lang`\)"):
        prepare_tokenizer(words, given("here", "translation", target_lang="w8"))


# A task of one's own.


@pytest.mark.filterwarnings("ignore:.*couldn't be hashed properly")
def test_the_task_of_ones_own_that_the_docstring_shows(
    tmp_path: Path, headless_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"stem": text, "choices": ["word1", "word2 word3", "good0"], "key": row % 3} for row, text in enumerate(TEXTS)
    ]
    given = {"path": "rows.jsonl", "columns": {"question": "stem", "answer": "key"}}
    recipe = short_recipe(headless_dir, "multiple-choice", given, output_dir="out", **SEARCH)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "multiple-choice", CLASSIFICATION)  # to be put back
    (code,) = re.findall(r"```python\n(.*?)```", tasks.__doc__ or "", re.DOTALL)
    exec(compile(code, "tasks", "exec"), {"__name__": "__main__"})
    assert TASKS["multiple-choice"] is not CLASSIFICATION
    results = load_run_results(tmp_path / "out" / "results.json")
    assert set(results.final_metrics["domain"]) == {"loss", "accuracy", "f1", "matthews_correlation"}
    check_search(tmp_path / "out", AutoModelForMultipleChoice)
    card = render_card(tmp_path / "out")
    assert card.data.pipeline_tag == "multiple-choice"
    assert {result.task_type for result in card.data.eval_results} == {"multiple-choice"}
    assert "AutoModelForMultipleChoice.from_pretrained('out/interpolated')" in card.text

    run_recipe({**recipe, "output_dir": "adapter", "peft": "lora"})
    interpolate_adapter_checkpoint(headless_dir, "adapter", "merged", 0.5, merge=True)
    merged = AutoModelForMultipleChoice.from_pretrained("merged").state_dict()
    base = AutoModelForMultipleChoice.from_pretrained(headless_dir)
    trained = PeftModel.from_pretrained(base, "adapter").merge_and_unload().state_dict()
    assert torch.equal(merged["classifier.weight"], trained["classifier.weight"])  # M₀ has none
    pristine = AutoModel.from_pretrained(headless_dir).state_dict()
    moved = [name for name in pristine if not torch.equal(pristine[name], trained[f"bert.{name}"])]
    assert moved
    for name in moved:
        middle = (pristine[name] + trained[f"bert.{name}"]) / 2
        torch.testing.assert_close(merged[f"bert.{name}"], middle, rtol=1e-4, atol=1e-6)
