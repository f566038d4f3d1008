"""Corpora that M₀ makes: of models whose every next word is known beforehand."""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from toys import bert_shape, word_tokenizer
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_interp.commands.draft import draft_recipe
from hf_interp.commands.init import write_recipe
from hf_interp.commands.plan import format_plan, plan_recipe
from hf_interp.mixture.plan import MANY_PASSES
from hf_interp.tasks.build import RecipeData, check_recipe, load_data
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.self_corpus import GROUPS, MOST_TRIES
from hf_interp.train import run_recipe

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS = ["<end>", "<user>", "<assistant>", "<mask>", *NUMBERS, "ask", "tell", "answer"]
COUNTED = dict(zip(NUMBERS, ([word] for word in NUMBERS[1:]), strict=False))
"""From a number to the next."""
TEMPLATE = (
    "{% for turn in messages %}{{ '<' + turn['role'] + '> ' + turn['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
LOOP = {"<end>": ["one"], "one": ["two"], "two": ["one"]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is made."""
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hf_interp" / "self"


def write_speaker(folder: Path, follows: Mapping[str, Sequence[str]]) -> Path:
    """A causal language model that says after a word one of those that follow it, all as likely."""
    tokenizer = word_tokenizer(WORDS, eos_token="<end>")
    size = len(tokenizer)
    shape = {"hidden_size": size + size % 2, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=0, **shape)
    )
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    state["model.norm.weight"] += 1
    state["model.embed_tokens.weight"][:, :size] = torch.eye(size)
    for word, others in follows.items():
        for other in others:
            state["lm_head.weight"][tokenizer.convert_tokens_to_ids(other), tokenizer.convert_tokens_to_ids(word)] = 99
    model.load_state_dict(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(model: Path, task: str = "causal-lm", domain: Sequence[Mapping[str, Any]] = (), **general: Any) -> Any:
    """A recipe as a mapping: rows of the domain, and a general side that M₀ makes."""
    file = model / "domain.jsonl"
    rows = domain or [{"text": "one ask two tell three answer four ten"}] * 4
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "model_name_or_path": str(model),
        "task": task,
        "corpora": {"domain": {"path": str(file)}, "general": {"path": "self", **general}},
        "max_length": 10,
        "packing": False,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "output_dir": str(model / "run"),
        "use_cpu": True,
        "report_to": "none",
    }


def load(recipe: Mapping[str, Any], **kwargs: Any) -> RecipeData:
    parsed, args = parse_recipe(recipe)
    return load_data(parsed, check_recipe(parsed, args), **kwargs)


def made_by(recipe: Mapping[str, Any]) -> list[Any]:
    """The rows of the file that M₀ makes."""
    lines = Path(load(recipe).made["corpora.general"].place).read_text("utf-8").splitlines()
    return [next(iter(json.loads(line).values())) for line in lines]


def test_texts_are_what_the_model_says(tmp_path: Path, cache: Path) -> None:
    model = write_speaker(tmp_path / "model", {**COUNTED, "<end>": ["one", "two"], "ten": ["<end>"]})
    recipe = recipe_of(model, max_examples=3)
    data = load(recipe)
    path = Path(data.made["corpora.general"].place)
    assert sorted(path.read_text("utf-8").splitlines()) == [
        '{"text": "one two three four five six seven eight nine ten"}',  # as long as an example may be
        '{"text": "two three four five six seven eight nine ten"}',
    ]
    left_out = {"repeated": 3 * MOST_TRIES - 2}  # there are no more than two
    assert json.loads((path.parent / "about.json").read_text("utf-8"))["left_out"] == left_out
    assert path.parents[1] == cache
    general = next(corpus for corpus in data.corpora if corpus.name == "general")
    assert (general.objective, len(general.dataset)) == ("distill", 2)
    assert [data.tokenizer.decode(row) for row in general.dataset["input_ids"]] == [
        json.loads(line)["text"] + (" <end>" if "one" not in line else "") for line in path.read_text().splitlines()
    ]


def test_the_same_recipe_reads_the_same_file(tmp_path: Path, cache: Path) -> None:
    model = write_speaker(tmp_path / "model", {"<end>": WORDS[4:], **dict.fromkeys(WORDS[4:], WORDS[4:])})
    recipe = recipe_of(model, max_examples=5)
    first = made_by(recipe)
    (place,) = [folder for folder in cache.iterdir() if folder.is_dir()]
    written = (place / "rows.jsonl").stat().st_mtime_ns
    assert made_by(recipe) == first
    assert (place / "rows.jsonl").stat().st_mtime_ns == written
    for path in place.iterdir():  # made again it is the same
        path.unlink()
    place.rmdir()
    assert made_by({**recipe, "learning_rate": 1e-3}) == first
    assert place.is_dir()
    assert made_by(recipe_of(model, max_examples=5, sample_seed=1)) != first
    write_speaker(model, COUNTED | {"<end>": ["one"]})  # another M₀ in the same folder
    assert made_by(recipe_of(model, max_examples=5)) == ["one two three four five six seven eight nine ten"]


def test_what_is_not_fit_is_left_out(tmp_path: Path, cache: Path) -> None:
    for name, follows, fault in (("loop", LOOP, "repeating themselves"), ("short", {"<end>": ["<end>"]}, "too short")):
        recipe = {**recipe_of(write_speaker(tmp_path / name, follows), max_examples=2), "max_length": 30}
        with pytest.raises(ValueError, match=f"nothing fit for corpus 'general'.*{fault}.*Give a file"):
            load(recipe)
    assert not [path for path in cache.iterdir() if path.is_dir()]  # nothing half written


def test_beginnings_are_gone_on_from(tmp_path: Path) -> None:
    model = write_speaker(tmp_path / "model", {**COUNTED, "ten": ["<end>"]})
    rows = [{"text": "ask tell one ask ask ask"}, {"text": "tell two"}]  # of which a quarter of twelve tokens are taken
    recipe = {**recipe_of(model, domain=rows, made_from="domain"), "max_length": 12}
    assert made_by(recipe) == [
        "ask tell one two three four five six seven eight nine ten",
        "tell two three four five six seven eight nine ten",
    ]


@pytest.fixture
def assistant(tmp_path: Path) -> Path:
    """A model that asks or tells as a user, and answers by counting from one or from two."""
    says = {"<user>": ["ask", "tell"], "<assistant>": ["one", "two"], **COUNTED}
    ends = {word: ["<end>"] for word in ("ask", "tell", "three")}
    model = write_speaker(tmp_path / "model", {**says, **ends})
    (model / "template.jinja").write_text(TEMPLATE, "utf-8")
    return model


def dialogues(model: Path, rows: Sequence[Mapping[str, Any]], domain: Mapping[str, Any], **general: Any) -> Any:
    recipe = recipe_of(model, domain=rows, **general)
    recipe["corpora"]["domain"] |= domain
    return {**recipe, "chat_template": str(model / "template.jinja"), "max_length": 40}


PROMPTS = [{"q": "one", "a": "answer ten"}, {"q": "five", "a": "answer nine"}]
COLUMNS = {"prompt_column": "q", "target_column": "a"}


def test_a_chat_model_asks_and_answers(assistant: Path) -> None:
    made = made_by(dialogues(assistant, PROMPTS, COLUMNS, max_examples=4))
    assert {tuple(turn["role"] for turn in turns) for turns in made} == {("user", "assistant")}
    said = sorted(tuple(turn["content"] for turn in turns) for turns in made)
    assert said == [(asked, told) for asked in ("ask", "tell") for told in ("one two three", "two three")]


def test_a_chat_model_answers_prompts(assistant: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"q": "six"}\n{"q": "ask tell"}\n', "utf-8")
    general = {"made_from": str(tmp_path / "prompts.jsonl"), "prompt_column": "q"}
    made = made_by(dialogues(assistant, PROMPTS, COLUMNS, **general))
    assert [turns[0] for turns in made] == [{"role": "user", "content": text} for text in ("six", "ask tell")]
    assert {turns[1]["content"] for turns in made} <= {"one two three", "two three"}


def test_answers_are_given_in_the_models_own_words(assistant: Path) -> None:
    recipe = dialogues(assistant, PROMPTS, COLUMNS, made_from="domain")
    data = load(recipe)
    assert data.made["corpora.general"].text == "2 answers in its own words"
    made = made_by(recipe)
    assert [turns[0]["content"] for turns in made] == ["one", "five"]  # not the prompt that asked for other words
    assert {turns[1]["content"] for turns in made} <= {"one two three", "two three"}
    turns = [{"messages": [{"role": "user", "content": "ten"}, {"role": "assistant", "content": "nine"}]}]
    made = made_by(dialogues(assistant, turns, {"messages_column": "messages"}, made_from="domain"))
    assert next(turn["content"] for turn in made[0]) == "ten"
    assert made[0][1]["content"] in ("one two three", "two three")


def test_a_masked_model_fills_gaps(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS, mask_token="<mask>")
    set_seed(0)
    model = BertForMaskedLM(bert_shape(len(tokenizer), 32))
    torch.nn.init.zeros_(model.cls.predictions.decoder.weight)
    bias = torch.full((len(tokenizer),), -99.0)
    bias[tokenizer.convert_tokens_to_ids("ten")] = 99
    model.cls.predictions.bias.data.copy_(bias)
    model.cls.predictions.decoder.bias.data.copy_(bias)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = [{"text": " ".join(WORDS[4:13][place:] + WORDS[4:13][:place])} for place in range(9)] * 8
    recipe = {**recipe_of(tmp_path, "masked-lm", rows), "mlm_probability": 0.4}
    made = [text.split() for text in made_by(recipe)]
    recipe["corpora"]["general"]["agreement"] = 0.99  # of what it always says
    assert [text.split() for text in made_by(recipe)] == made
    texts = [row["text"].split() for row in rows[:9]]
    assert all(
        any(all(new in (old, "ten") for new, old in zip(words, text, strict=True)) for text in texts) for words in made
    )
    assert 0.3 < sum(words.count("ten") for words in made) / sum(map(len, made)) < 0.5


def test_a_translator_writes_targets_for_inputs(tmp_path: Path, cache: Path) -> None:
    tokenizer = word_tokenizer(WORDS, eos_token="<end>")
    tokenizer.save_pretrained(tmp_path)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    set_seed(5)  # with which some of what it says ends, and some does not
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=0, **shape)
    ).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5 if weight.dim() > 1 else 0.0)
        weight.data += weight.dim() == 1
    model.save_pretrained(tmp_path)
    (tmp_path / "inputs.jsonl").write_text(
        "".join(json.dumps({"text": f"ask {word} tell"}) + "\n" for word in WORDS), "utf-8"
    )
    recipe = recipe_of(tmp_path, "translation", [{"text": "one", "target": "two"}] * 2)
    recipe |= {"max_target_length": 12, "source_prefix": "answer "}
    expected, likely = [], []
    for word in WORDS:  # token by token, by hand
        ids = tokenizer(f"answer ask {word} tell", return_tensors="pt")["input_ids"]
        said, sure = [0], []
        while len(said) < 13 and said[-1] != tokenizer.eos_token_id:
            scores = model(input_ids=ids, decoder_input_ids=torch.tensor([said])).logits[0, -1].softmax(-1)
            said.append(int(scores.argmax()))
            sure.append(scores.max().item())
        if said[-1] == tokenizer.eos_token_id and len(said) > 2:
            expected.append({"text": f"ask {word} tell", "target": tokenizer.decode(said[1:-1])})
            likely.append(math.prod(sure[:-1]) ** (1 / len(sure[:-1])))
    assert 3 < len(expected) < len(WORDS), [row["target"] for row in expected]
    least = sorted(likely)[len(likely) // 2]
    for given, count in (({}, len(expected)), ({"agreement": least - 1e-6}, sum(each >= least for each in likely))):
        general = {"path": "self", "made_from": str(tmp_path / "inputs.jsonl"), **given}
        data = load({**recipe, "corpora": {**recipe["corpora"], "general": general}})
        made = data.made["corpora.general"]
        rows = [json.loads(line) for line in Path(made.place).read_text("utf-8").splitlines()]
        assert rows == [row for row, sure in zip(expected, likely, strict=True) if not given or sure >= least]
        assert f"{count} of {len(WORDS)} targets of given inputs (left out: " in made.text
    assert f"{len(expected) - count} with too little agreement" in made.text
    corpus = next(corpus for corpus in data.corpora if corpus.name == "general")
    assert (corpus.objective, len(corpus.dataset)) == ("distill", count)


def test_only_inputs_of_which_the_model_is_sure_are_kept(tmp_path: Path, cache: Path) -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    set_seed(0)
    model = BertForSequenceClassification(bert_shape(len(tokenizer), 32, ("no", "yes"))).eval()
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(tmp_path)
    rows = [{"text": f"one {word}", "text_pair": word, "label": "yes"} for word in WORDS[4:]]
    sure = {}
    for row in rows:
        scores = model(**tokenizer(row["text"], row["text_pair"], return_tensors="pt")).logits[0]
        sure[row["text"]] = scores.softmax(-1).max().item()
    least = sorted(sure.values())[len(sure) // 2]
    recipe = {**recipe_of(tmp_path, "sequence-classification", rows), "label_names": ["no", "yes"]}
    recipe["corpora"]["domain"]["text_pair_column"] = "text_pair"
    recipe["corpora"]["general"]["agreement"] = least - 1e-6
    data = load(recipe)
    made = data.made["corpora.general"]
    found = [json.loads(line) for line in Path(made.place).read_text("utf-8").splitlines()]
    assert [row["text"] for row in found] == [text for text, each in sure.items() if each >= least]
    lost = len(rows) - len(found)
    assert made.text == (
        f"{len(found)} of {len(rows)} inputs of which it is sure (left out: {lost} with too little agreement)"
    )
    general = next(corpus for corpus in data.corpora if corpus.name == "general")
    assert general.dataset["input_ids"][0] == tokenizer(found[0]["text"], found[0]["text_pair"])["input_ids"]
    with pytest.raises(ValueError, match=r"`agreement` of corpus 'general' is for texts with one label.*multi_label"):
        load({**recipe, "problem_type": "multi_label_classification"})


def test_answers_with_little_agreement_are_left_out(assistant: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"q": f"ask {word}"}) + "\n" for word in NUMBERS), "utf-8"
    )
    general = {"made_from": str(tmp_path / "prompts.jsonl"), "prompt_column": "q"}
    answers = [turns[1]["content"] for turns in made_by(dialogues(assistant, PROMPTS, COLUMNS, **general))]
    assert {*answers} == {"one two three", "two three"}  # each as likely, and then every word is certain
    for least, kept in (
        (0.5 ** (1 / 3) - 1e-3, {"one two three"}),  # the geometric mean of 1/2, 1, 1
        (0.5 ** (1 / 2) - 1e-3, {"one two three", "two three"}),
    ):
        recipe = dialogues(assistant, PROMPTS, COLUMNS, **general, agreement=least)
        assert [turns[1]["content"] for turns in made_by(recipe)] == [each for each in answers if each in kept]
    with pytest.raises(ValueError, match=r"made nothing fit .*10 with too little agreement"):
        load(dialogues(assistant, PROMPTS, COLUMNS, **general, agreement=0.9))
    with pytest.raises(ValueError, match=r"`corpora.general.agreement` is for `path: self` and must lie in \[0, 1\]"):
        load(dialogues(assistant, PROMPTS, COLUMNS, agreement=2))


def test_a_classifier_trains_its_predictions_on_texts_without_labels(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    BertForSequenceClassification(bert_shape(len(tokenizer), 32, ("no", "yes"))).save_pretrained(tmp_path)
    rows = [{"text": f"one {word}", "label": "yes"} for word in WORDS[4:]]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"six {word}"}) + "\n" for word in WORDS), "utf-8"
    )
    recipe = {**recipe_of(tmp_path, "sequence-classification", rows), "label_names": ["no", "yes"]}
    for given, count in (({}, len(rows)), ({"made_from": str(tmp_path / "texts.jsonl")}, len(WORDS))):
        data = load({**recipe, "corpora": {**recipe["corpora"], "general": {"path": "self", **given}}}, makes=False)
        general = next(corpus for corpus in data.corpora if corpus.name == "general")
        assert (general.objective, len(general.dataset)) == ("distill", count)
    with pytest.raises(ValueError, match=r"`eval_corpora.general` must be a file with labels"):
        load({**recipe, "eval_corpora": {"general": {"path": "self"}}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "x.jsonl", "made_from": "y.jsonl"}, r"`corpora.general.made_from` is for `path: self`"),
        ({"path": "self", "objective": "masked-lm"}, r"`corpora.general.objective` must be left out"),
        ({"path": "self", "made_from": "general"}, r"`corpora.general.made_from` must name a file, or a corpus"),
    ],
)
def test_what_cannot_be_made_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    parsed, args = parse_recipe({**recipe, "corpora": {**recipe["corpora"], "general": {"side": "general", **given}}})
    with pytest.raises(ValueError, match=message):
        check_recipe(parsed, args)


def test_a_model_without_a_head_is_refused(tmp_path: Path, cache: Path) -> None:
    tokenizer = word_tokenizer(WORDS, mask_token="<mask>")
    tokenizer.save_pretrained(tmp_path)
    BertForMaskedLM(bert_shape(len(tokenizer), 32)).bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs a model that has its head and can generate, but .* lacks cls"):
        load(recipe_of(tmp_path, "masked-lm"))
    labels = {"label_names": ["no", "yes"]}
    rows = [{"text": f"one {word} is told", "label": ("no", "yes")[len(word) % 2]} for word in WORDS] * 2
    with pytest.raises(ValueError, match=r"`path: self` needs a pretrained model with a trained head"):
        run_recipe({**recipe_of(tmp_path, "sequence-classification", rows), **labels})
    file = {"domain": str(tmp_path / "domain.jsonl"), "general": "self"}
    with pytest.raises(ValueError, match="--general self needs a model with a trained head for sequence-class"):
        draft_recipe(str(tmp_path), file, {"task": "sequence-classification", **labels})


def test_two_at_once_make_one_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = write_speaker(tmp_path / "model", {"<end>": WORDS[4:], **dict.fromkeys(WORDS[4:], WORDS[4:])})
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(made_by, [recipe_of(model, max_examples=40)] * 2))
    assert len(found[0]) == 40
    assert found[0] == found[1]
    assert capfd.readouterr().err.count("40/40") == 1


def said(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


@pytest.mark.parametrize("steps", [None, 10])
def test_init_lets_as_many_be_made_as_a_run_reads_a_few_times(assistant: Path, steps: int | None) -> None:
    rows = [{"messages": said(f"ask {first}", f"answer {second}")} for first in NUMBERS for second in NUMBERS] * 4
    path = dialogues(assistant, rows, {})["corpora"]["domain"]["path"]
    given = {
        "chat_template": str(assistant / "template.jinja"),
        "peft": None,
        **({"max_steps": steps} if steps else {}),
    }
    draft = draft_recipe(str(assistant), {"domain": path, "general": "self"}, given)
    fields = draft.fields
    batch = fields["per_device_train_batch_size"] * fields.get("gradient_accumulation_steps", 1)
    read = fields["max_steps"] * batch * 0.75  # of method balanced
    expected = 200 if steps else math.ceil(read / MANY_PASSES / 0.8)
    assert (expected > 200) == (steps is None)
    assert {fields[group]["general"]["max_examples"] for group in GROUPS} == {expected}
    assert fields["max_length"] == 512  # which the domain alone would not need
    told = f"M₀ is to make {expected:,} rows before training, fewer where some are not fit; most are trained on, about "
    assert any(told + f"{read / 0.8 / expected:.1f} times" in note for note in draft.notes)


@pytest.mark.slow
def test_a_recipe_by_init_is_planned_trained_and_told(tmp_path: Path, cache: Path) -> None:
    model = write_speaker(tmp_path / "model", {"<end>": WORDS[4:], **dict.fromkeys(WORDS[4:], WORDS[4:])})
    path = Path(
        recipe_of(model, domain=[{"text": f"one two {word} ten"} for word in WORDS] * 3)["corpora"]["domain"]["path"]
    )
    given = {"corpora": {"general": {"max_examples": 60}}, "packing": False, "use_cpu": True, "report_to": "none"}
    draft = draft_recipe(str(model), {"domain": str(path), "general": "self"}, given)
    write_recipe(draft, tmp_path / "recipe.yaml")
    flags = ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--eval_steps", "1"]
    summary = plan_recipe(str(tmp_path / "recipe.yaml"), flags, num_samples=1).summary
    assert not cache.exists()  # a plan makes nothing
    (line,) = summary["made"]
    assert "60 texts that it draws, which train will make" in line
    counts = {corpus["name"]: corpus["num_examples"] for corpus in summary["corpora"]}
    assert counts["general"] == 36  # 60 but two parts of a fifth
    results = run_recipe(load_recipe(tmp_path / "recipe.yaml", flags))
    assert results.made["corpora.general"] == results.made["eval_corpora.general"]
    (place,) = [folder for folder in cache.iterdir() if folder.is_dir()]
    summary = plan_recipe(str(tmp_path / "recipe.yaml"), flags, num_samples=1).summary
    assert f"({place / 'rows.jsonl'})" in format_plan(summary)
    assert "general" in summary["samples"]
    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert "synthetic: 60 texts that it draws" in card
    assert "Sets that M₀ made itself" in card
