"""`InterpolationMixin` before TRL's `SFTTrainer` and sentence-transformers' `SentenceTransformerTrainer`."""

import copy
import importlib.util
import itertools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from toys import SHORT, byte_tokenizer, logged, losses, same_weights, weights
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hf_interp import Corpus, InterpolatedDataset, InterpolationConfig, InterpolationMixin
from hf_interp.mixture.schedules import constant, linear
from hf_interp.mixture.slots import CORPUS_KEY
from hf_interp.tasks.build import tokenise
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.tokenizers import prepare_tokenizer

# TRL turns gradient checkpointing on, and off, under the names that transformers has given up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated:FutureWarning"
)

RECIPES = Path(__file__).parents[2] / "recipes" / "other_trainers"
GENERAL, DOMAIN = 40, 12
SPECIAL = ["[PAD]", "[UNK]", "[EOS]", "<|user|>", "<|assistant|>"]
FIRST = len(SPECIAL)  # the id of w0
WORDS = [*SPECIAL, *(f"w{number}" for number in range(GENERAL + DOMAIN))]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }} {% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }} {{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# What both are tried on: example i of a mixture has w{i} for its first word, and its own length.


def first_words(side: str, count: int | None = None) -> list[int]:
    first, size = (0, GENERAL) if side == "general" else (GENERAL, DOMAIN)
    return list(range(first, first + (count or size)))


def tail(number: int) -> str:
    return " ".join(f"w{(number + step) % len(WORDS) % (GENERAL + DOMAIN)}" for step in range(1, 3 + number % 5))


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "text": lambda number: {"text": f"w{number} {tail(number)}"},
    "completion": lambda number: {"prompt": f"w{number} w1", "completion": f" {tail(number)}"},
    "messages": lambda number: {
        "messages": [{"role": "user", "content": f"w{number}"}, {"role": "assistant", "content": tail(number)}]
    },
    "pair": lambda number: {"anchor": f"w{number} w1", "positive": tail(number)},
    "scored": lambda number: {"one": f"w{number} w1", "other": tail(number), "score": (number % 5) / 4},
    "preference": lambda number: {"prompt": f"w{number}", "chosen": f" {tail(number)}", "rejected": " w0 w0"},
}


def rows(kind: str, side: str, count: int | None = None) -> datasets.Dataset:
    return datasets.Dataset.from_list([ROWS[kind](number) for number in first_words(side, count)])


def mixture(kind: str, count: int | None = None) -> dict[str, datasets.Dataset]:
    return {side: rows(kind, side, count) for side in ("general", "domain")}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=32
    )
    made.chat_template = TEMPLATE
    return made


SETTINGS = {**SHORT, "max_steps": 8, "dataloader_pin_memory": False}


SMALL = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    "intermediate_size": 16,
}
"""Of a Llama."""


class Noting:
    """Notes the first words of the examples that a training step gets, by optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: dict[int, list[int]] = {}
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        ids = next(value for key, value in inputs.items() if key.endswith("input_ids"))  # of the first column
        self.seen.setdefault(self.state.global_step, []).extend((ids[:, 0] - FIRST).tolist())
        return super().training_step(model, inputs, *args)


def planned_words(trainer: Any) -> dict[int, list[int]]:
    """What the plan has for every step."""
    size, found = trainer.plan.batch_size, {}
    for step in range(trainer.plan.max_steps):
        corpus, _, example = trainer.plan.locate(range(step * size, (step + 1) * size))
        found[step] = [
            index + (0 if trainer.corpora[which].side == "general" else GENERAL)
            for which, index in zip(corpus.tolist(), example.tolist(), strict=True)
        ]
    return found


DOMAIN_COUNTS = [0, 1, 1, 1, 3, 3, 3, 4]
"""Of 4 examples in each of 8 steps, with α from 0 to 1."""
RISE = {"alpha_schedule": linear()}


# TRL


@pytest.fixture(scope="module")
def trl() -> ModuleType:
    return pytest.importorskip("trl", reason="trl is not installed: pip install hf_interp[trl]")


@pytest.fixture(scope="module")
def sft(trl: ModuleType) -> Callable[..., Any]:
    """A function from a `train_dataset` to a trainer; `host=True` makes a plain `SFTTrainer`."""

    class InterpolationSFTTrainer(Noting, InterpolationMixin, trl.SFTTrainer):
        pass

    @dataclass
    class Config(trl.SFTConfig, InterpolationConfig):
        pass

    def make(
        train_dataset: Any,
        folder: Path,
        *,
        host: bool = False,
        with_alpha: bool = False,
        given: Any = None,
        **kwargs: Any,
    ) -> Any:
        config = Config if with_alpha else trl.SFTConfig
        cls = trl.SFTTrainer if host else InterpolationSFTTrainer
        return cls(
            model=tiny_llama(),
            args=config(str(folder), **{**SETTINGS, **kwargs}),
            train_dataset=train_dataset,
            processing_class=tokenizer(),
            **(given or {}),
        )

    return make


def tiny_llama() -> LlamaForCausalLM:
    set_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            **SMALL,
            vocab_size=len(WORDS),
            max_position_embeddings=32,
            attention_dropout=0.1,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )


def test_sft_logs_its_own_metrics_and_each_corpus_loss(sft: Callable[..., Any], tmp_path: Path) -> None:
    trainer = sft(mixture("text"), tmp_path, max_steps=2, gradient_checkpointing=False, given=RISE)
    model, calls = tiny_llama(), []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 2  # no second pass for the losses of the corpora
    assert all(value > 0 for key in ("entropy", "num_tokens") for value in logged(trainer, key))
    assert all(0 <= value <= 1 for value in logged(trainer, "mean_token_accuracy"))
    # At step 0 all is general: its loss by examples and by tokens, from the untrained model.
    examples = [trainer.corpora[0].dataset[number] for number in trainer.seen[0]]
    model.eval()
    sums, counts = [], []
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([example["input_ids"]])
            counts.append(ids.shape[1] - 1)
            sums.append(float(model(input_ids=ids, labels=ids).loss) * counts[-1])
    mean = sum(total / count for total, count in zip(sums, counts, strict=True)) / 4
    # dropout in the attention is small
    assert trainer.state.log_history[0]["loss_general"] == pytest.approx(mean, rel=0.02)
    assert losses(trainer)[0] == pytest.approx(sum(sums) / sum(counts), rel=0.02)


def test_sft_weights_do_not_depend_on_accumulation(sft: Callable[..., Any], tmp_path: Path) -> None:
    set_up = {"optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0, "bf16": False}
    found = []
    for batch_size, steps in ((4, 1), (2, 2), (1, 4)):
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        trainer = sft(mixture("completion"), tmp_path, **set_up, **split)
        trainer.model.config.attention_dropout = 0.0
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.0  # which draws for a micro-batch
        trainer.train()
        found.append((weights(trainer), losses(trainer), logged(trainer, "loss_general")[:7]))  # none in the last step
    for those, their, general in found[1:]:
        for name, tensor in found[0][0].items():
            torch.testing.assert_close(those[name], tensor, rtol=1e-4, atol=1e-6)
        assert their == pytest.approx(found[0][1], rel=1e-4)
        assert general == pytest.approx(found[0][2], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("completion", {}),
        ("completion", {"completion_only_loss": False}),
        ("messages", {"assistant_only_loss": True}),
        ("text", {"max_length": 4}),
        ("text", {"packing": True, "packing_strategy": "wrapped", "max_length": 8}),
        ("text", {"packing": True, "max_length": 8}),
        ("text", {"padding_free": True, "max_length": None}),
    ],
    ids=["completion", "whole", "assistant", "cut", "wrapped", "packed", "padding-free"],
)
def test_sft_prepares_each_corpus_as_it_does_alone(
    kind: str, settings: dict[str, Any], sft: Callable[..., Any], tmp_path: Path
) -> None:
    # The evaluation set is the object that is trained on: it is prepared once more, alone.
    given = mixture(kind)
    trainer = sft(given, tmp_path, max_steps=4, given={"eval_dataset": given}, **settings)
    for corpus in trainer.corpora:
        alone = sft(given[corpus.name], tmp_path, host=True, **settings).train_dataset
        kept = [name for name in alone.column_names if name in ("input_ids", "labels", "seq_lengths")]
        assert corpus.dataset.to_dict() == alone.select_columns(kept).to_dict()
        assert trainer.eval_dataset[corpus.name]["input_ids"] == alone["input_ids"]
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    masked = any(label == -100 for labels in trainer.corpora[1].dataset["labels"] for label in labels)
    assert masked == (kind == "messages" or (kind == "completion" and not settings))


def test_sft_leaves_corpora_as_they_are_where_asked(sft: Callable[..., Any], tmp_path: Path) -> None:
    given = {
        side: datasets.Dataset.from_list(
            [{"input_ids": [FIRST + number, 6, 7], "labels": [-100, 6, 7]} for number in first_words(side)]
        )
        for side in ("general", "domain")
    }
    trainer = sft(given, tmp_path, max_length=2, dataset_kwargs={"skip_prepare_dataset": True})
    assert [corpus.dataset.to_dict() for corpus in trainer.corpora] == [each.to_dict() for each in given.values()]
    trainer.train()
    assert trainer.seen == planned_words(trainer)


def test_padding_free_sft_trains_as_padded(sft: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"max_length": None, "gradient_checkpointing": False}
    padded, free = (sft(mixture("text"), tmp_path, padding_free=each, **settings) for each in (False, True))
    for trainer in (padded, free):
        trainer.model.model.layers[0].self_attn.attention_dropout = 0.0
        trainer.train()
    assert losses(free) == pytest.approx(losses(padded), rel=1e-4)
    assert logged(free, "alpha") == logged(padded, "alpha")
    assert logged(free, "loss_domain") == [None] * 8  # the borders between examples are gone


@pytest.mark.parametrize("padding_free", [False, True])
def test_sft_counts_tokens(padding_free: bool, sft: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"mixture_unit": "tokens", "padding_free": padding_free, "max_length": None}
    trainer = sft(mixture("text"), tmp_path, with_alpha=True, **settings)
    trainer.train()
    shares = []
    for seen in planned_words(trainer).values():
        tokens = {number: len(ROWS["text"](number)["text"].split()) + 1 for number in seen}  # and the end
        shares.append(
            sum(tokens[number] for number in seen if number >= GENERAL) / sum(tokens[number] for number in seen)
        )
    assert logged(trainer, "token_share_domain") == pytest.approx(shares)  # with all examples in one row, too


def test_sft_evaluates_each_side(sft: Callable[..., Any], tmp_path: Path) -> None:
    held_out = mixture("completion", count=6)
    mixed = sft(mixture("completion"), tmp_path, given={"eval_dataset": held_out})
    host = sft(rows("completion", "general"), tmp_path, host=True, given={"eval_dataset": held_out})
    found, expected = mixed.evaluate(), host.evaluate()
    for side in ("general", "domain"):
        assert found[f"eval_{side}_loss"] == expected[f"eval_{side}_loss"]
    assert mixed.evaluate(rows("completion", "domain", 6))["eval_loss"] == found["eval_domain_loss"]


def test_sft_trains_an_adapter(sft: Callable[..., Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install hf_interp[peft]")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = sft(mixture("completion"), tmp_path, given={"peft_config": lora, **RISE})
    before = weights(trainer)
    trainer.train()
    changed = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert logged(trainer, "share_domain") == [count / 4 for count in DOMAIN_COUNTS]


def test_sft_takes_a_schedule_of_its_own(sft: Callable[..., Any], tmp_path: Path) -> None:
    trainer = sft(mixture("text"), tmp_path, given={"alpha_schedule": constant(0.5)})
    trainer.train()
    assert logged(trainer, "share_domain") == [0.5] * 8
    with pytest.raises(ValueError, match="`alpha_schedule` needs a mixture as `train_dataset`"):
        sft(rows("text", "general"), tmp_path, given={"alpha_schedule": constant(0.5)})


def test_sft_settings_and_those_of_alpha_go_together(trl: ModuleType, sft: Callable[..., Any], tmp_path: Path) -> None:
    defaults = trl.SFTConfig(str(tmp_path), use_cpu=True)
    trainer = sft(mixture("text"), tmp_path, with_alpha=True, alpha_start=0.5, alpha_end=0.5, anchor="l2sp")
    for name in ("gradient_checkpointing", "bf16", "max_length", "warmup_steps", "lr_scheduler_type"):
        assert getattr(trainer.args, name) == getattr(defaults, name)  # TRL's, not those of `TrainingArguments`
    trainer.train()
    assert logged(trainer, "share_domain") == [0.5] * 8
    assert logged(trainer, "anchor_weight") == [0.5] * 8
    assert logged(trainer, "anchor_loss")[-1] > 0
    with pytest.raises(ValueError, match="`alpha_start` must be an α in"):
        sft(mixture("text"), tmp_path, with_alpha=True, alpha_start=2.0)


@pytest.mark.parametrize("settings", [{"anchor": "distill"}, {"log_loss_gap": True}])
def test_sft_has_no_logits_to_compare(settings: dict[str, Any], sft: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave no logits to compare with M₀'s"):
        sft(mixture("text"), tmp_path, with_alpha=True, **settings)


@pytest.mark.parametrize("is_given", [True, False])
def test_sft_distills_a_corpus_as_one_would_write_it_by_hand(
    is_given: bool, sft: Callable[..., Any], tmp_path: Path
) -> None:
    student, teacher = tiny_llama(), tiny_llama()
    if is_given:
        with torch.no_grad():
            teacher.lm_head.weight.mul_(2.0)
    data = mixture("completion")
    general = Corpus("general", data["general"], "general", objective="distill")
    corpora = [general, Corpus("domain", data["domain"], "domain")]
    sgd = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "weight_decay": 0.0, "bf16": False}
    found = []
    for batch_size, steps in ((4, 1), (1, 4)):
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps, "max_steps": 2}
        given = {"ref_model": copy.deepcopy(teacher)} if is_given else {}
        settings = {**sgd, **split, "alpha": 0.5, "gradient_checkpointing": False, "lr_scheduler_type": "constant"}
        trainer = sft(corpora, tmp_path, with_alpha=True, given=given, **settings)
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.0
        batches = list(itertools.islice(trainer.get_train_dataloader(), 2)) if steps == 1 else []
        trainer.train()
        found.append((weights(trainer), losses(trainer)))
        student.eval(), teacher.eval()
        for number, batch in enumerate(batches):
            loss = distilled_by_hand(student, teacher, batch, trainer.plan.corpora)
            assert found[0][1][number] == pytest.approx(loss.item(), rel=1e-4)
            loss.backward()
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter -= parameter.grad
                    parameter.grad = None
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], tensor, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(student.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def distilled_by_hand(student: Any, teacher: Any, batch: Any, corpora: Any) -> torch.Tensor:
    """Half the loss of the domain's tokens, and half the divergence from the teacher over those of the general side."""
    is_general = torch.tensor([corpora[which].side == "general" for which in batch[CORPUS_KEY].tolist()])
    assert is_general.sum() == 2
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["labels"][:, 1:]
    of_general, of_domain = (labels != -100) & is_general[:, None], (labels != -100) & ~is_general[:, None]
    log_p = student(**inputs).logits[:, :-1].log_softmax(-1)
    log_p0 = teacher(**inputs).logits[:, :-1].log_softmax(-1).detach()
    divergence = functional.kl_div(log_p[of_general], log_p0[of_general], log_target=True, reduction="batchmean")
    return 0.5 * functional.nll_loss(log_p[of_domain], labels[of_domain]) + 0.5 * divergence


def test_sft_refuses_what_it_cannot_prepare(sft: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="corpus 'domain' is a list"):
        sft({"general": rows("text", "general"), "domain": [{"text": "w1"}]}, tmp_path)
    with pytest.raises(ValueError, match="Corpus 'general' is empty"):
        sft({"general": rows("text", "general").select([]), "domain": rows("text", "domain")}, tmp_path)
    with pytest.raises(TypeError, match="Give it the corpora themselves"):
        sft(InterpolatedDataset(mixture("text"), batch_size=4, max_steps=8, alpha_schedule=linear()), tmp_path)
    with pytest.raises(ValueError, match="must have the keys 'general' and 'domain'"):
        sft({"genral": rows("text", "general"), "domain": rows("text", "domain")}, tmp_path)


def test_sft_asks_whether_prompts_count_where_corpora_differ(sft: Callable[..., Any], tmp_path: Path) -> None:
    mixed = {"general": rows("text", "general"), "domain": rows("completion", "domain")}
    with pytest.raises(ValueError, match=r"only \['domain'\] have a prompt and a completion"):
        sft(mixed, tmp_path)
    trainer = sft(mixed, tmp_path, completion_only_loss=True, given=RISE)
    text, pair = (corpus.dataset[0] for corpus in trainer.corpora)
    assert text["labels"] == text["input_ids"]
    assert pair["labels"] == [-100, -100, *pair["input_ids"][2:]]
    trainer.train()
    assert trainer.alpha == 1.0


@pytest.mark.parametrize("name", ["GRPOTrainer", "KTOTrainer"])
def test_trainers_with_loaders_of_their_own_are_refused(name: str, trl: ModuleType) -> None:
    mixed = type("Mixed", (InterpolationMixin, getattr(trl, name)), {})
    with pytest.raises(ValueError, match=f"but {name} depends on what its `(get_train_dataloader|_get_train_sampler)`"):
        mixed(tiny_llama(), train_dataset=mixture("preference"))


def test_dpo_reads_what_the_plan_says(trl: ModuleType, tmp_path: Path) -> None:
    mixed = type("InterpolationDPOTrainer", (Noting, InterpolationMixin, trl.DPOTrainer), {})
    trainer = mixed(
        model=tiny_llama(),
        args=trl.DPOConfig(str(tmp_path), gradient_checkpointing=False, **SETTINGS),
        train_dataset=mixture("preference"),
        processing_class=tokenizer(),
        ref_model=tiny_llama(),
        **RISE,
    )
    trainer.train()
    # chosen and rejected, one below the other
    assert {step: seen[:4] for step, seen in trainer.seen.items()} == planned_words(trainer)
    assert logged(trainer, "share_domain") == [count / 4 for count in DOMAIN_COUNTS]
    assert all("rewards/margins" in entry for entry in trainer.state.log_history if "loss" in entry)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Tromsø", "days": 2}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": text} if isinstance(text, str) else {"role": role, "content": "", **text}
        for role, text in turns
    ]


SAID: list[dict[str, Any]] = [
    {"messages": said(("system", "Be  brief."), ("user", "Hi é"), ("assistant", "Hello 😀"), ("user", " 2? "))},
    {"messages": said(("user", "\na\n"), ("assistant", "b\n\nc"), ("user", "d"), ("assistant", "e"))},
    {"messages": said(("user", "What? <|im_end|>"), ("assistant", "if a:\n    b"))},
]
CALLED: list[dict[str, Any]] = [
    {
        "messages": said(
            *[("user", "Weather?"), ("assistant", {"tool_calls": [CALL]}), ("tool", '{"rain": true}')],
            *[("assistant", "Rain."), ("user", "Thanks"), ("assistant", "Welcome")],
        ),
        "tools": TOOLS,
    },
    {"messages": said(("user", "Hi"), ("assistant", "Hello")), "tools": []},
]


@pytest.mark.parametrize(
    ("family", "template", "found"),
    [
        ("qwen2_5", "trl", SAID + CALLED),
        ("qwen3", "trl", SAID + CALLED),
        ("llama3", "trl", SAID),
        ("llama3", None, SAID),
    ],
)
def test_the_task_chat_has_the_tokens_and_labels_of_sft(
    family: str, template: str | None, found: list[dict[str, Any]], trl: ModuleType, tmp_path: Path
) -> None:
    words = byte_tokenizer(trims=False)
    words.add_special_tokens({"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>", "pad_token": "<pad>"})
    own = (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text("utf-8")
    words.chat_template = own
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    model = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=len(words), pad_token_id=words.pad_token_id))
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=None, **SETTINGS),
        train_dataset=datasets.load_dataset("json", data_files=str(tmp_path / "said.jsonl"), split="train"),
        processing_class=words,
    )
    corpus = {"path": str(tmp_path / "said.jsonl"), "messages_column": "messages"}
    corpus |= {"tools_column": "tools"} if "tools" in found[-1] else {}
    fields = {"task": "chat", "model_name_or_path": "m", "chat_template": template, "max_length": 4096}
    recipe, _ = parse_recipe({**fields, "corpora": {"domain": corpus}})
    prepare_tokenizer(words, recipe)
    ours = tokenise("domain", recipe.corpora["domain"], recipe, words).examples
    for name in ("input_ids", "labels"):
        assert [list(row) for row in ours[name]] == [list(row) for row in trainer.train_dataset[name]]
    assert words.chat_template == own
    learnt = [words.decode([label for label in row if label != -100]) for row in ours["labels"]]
    assert "Hello 😀" in learnt[0]
    assert "2?" not in learnt[0]
    assert len(found) == len(SAID) or '"arguments": {"city": "Tromsø", "days": 2}' in learnt[len(SAID)]
    assert 0 < sum(label != -100 for label in ours["labels"][1]) < len(ours["labels"][1])


# sentence-transformers


@pytest.fixture(scope="module")
def st() -> ModuleType:
    return pytest.importorskip(
        "sentence_transformers",
        reason="sentence-transformers is not installed: pip install hf_interp[sentence-transformers]",
    )


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    set_seed(7)
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    words = tokenizer()
    words.chat_template = None  # or the pairs would be taken for messages
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embed(st: ModuleType, encoder_dir: Path) -> Callable[..., Any]:
    """A function from a `train_dataset` to a trainer; `host=True` makes a plain `SentenceTransformerTrainer`."""
    from sentence_transformers.sentence_transformer import losses as st_losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    class InterpolationSentenceTransformerTrainer(Noting, InterpolationMixin, st.SentenceTransformerTrainer):
        pass

    @dataclass
    class Config(st.SentenceTransformerTrainingArguments, InterpolationConfig):
        pass

    def make(
        train_dataset: Any,
        folder: Path,
        *,
        host: bool = False,
        with_alpha: bool = False,
        loss: str = "MultipleNegativesRankingLoss",
        dropout: float = 0.1,
        given: Any = None,
        **kwargs: Any,
    ) -> Any:
        encoder = Transformer(str(encoder_dir), max_seq_length=16)
        model = st.SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension())], device="cpu")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        config = Config if with_alpha else st.SentenceTransformerTrainingArguments
        cls = st.SentenceTransformerTrainer if host else InterpolationSentenceTransformerTrainer
        settings = {"loss": getattr(st_losses, loss)(model), **(given or {})}
        set_seed(7)
        return cls(model, config(str(folder), **{**SETTINGS, **kwargs}), train_dataset, **settings)

    return make


def test_embeddings_of_scored_pairs_do_not_depend_on_accumulation(embed: Callable[..., Any], tmp_path: Path) -> None:
    found = []
    for batch_size, steps in ((4, 1), (1, 4)):
        trainer = embed(
            mixture("scored"),
            tmp_path,
            loss="CosineSimilarityLoss",
            dropout=0.0,
            optim="sgd",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        found.append((weights(trainer), losses(trainer)))
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], tensor, rtol=1e-4, atol=1e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def test_embeddings_evaluate_each_side_and_describe_both(embed: Callable[..., Any], tmp_path: Path) -> None:
    trainer = embed(mixture("pair"), tmp_path, given={"eval_dataset": mixture("pair", count=8)})
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_general_loss"] > 0
    assert metrics["eval_domain_loss"] > 0
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "#### general" in card
    assert "#### domain" in card
    assert f"dataset_size:{GENERAL + DOMAIN}" in card


def test_embeddings_take_prompts_and_leave_datasets_as_they_were(embed: Callable[..., Any], tmp_path: Path) -> None:
    given = mixture("pair")
    trainer = embed(given, tmp_path, prompts={"anchor": "w51 "})
    trainer.train()
    assert all(set(words) == {51} for words in trainer.seen.values())
    assert given["general"].format["type"] is None
    assert given["general"].column_names == ["anchor", "positive"]


def test_embedding_settings_and_those_of_alpha_go_together(embed: Callable[..., Any], tmp_path: Path) -> None:
    trainer = embed(mixture("pair"), tmp_path, with_alpha=True, alpha_start=0.25, alpha_end=0.25, prompts="w3 ")
    trainer.train()
    assert logged(trainer, "share_domain") == [0.25] * 8
    assert trainer.args.prompts == "w3 "


def test_embeddings_refuse_what_differs_between_corpora(embed: Callable[..., Any], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    by_name = dict.fromkeys(("general", "domain"), MultipleNegativesRankingLoss)
    with pytest.raises(ValueError, match="`loss` must be the same for all corpora"):
        embed(mixture("pair"), tmp_path, given={"loss": by_name})
    for name in ("prompts", "router_mapping"):
        nested = {side: {"anchor": "query"} for side in ("general", "domain")}
        with pytest.raises(ValueError, match=f"`{name}` must be the same for all corpora"):
            embed(mixture("pair"), tmp_path, **{name: nested})
    turned = rows("pair", "domain").select_columns(["positive", "anchor"])
    with pytest.raises(ValueError, match=r"Use `dataset.select_columns\(\['anchor', 'positive'\]\)`"):
        embed({"general": rows("pair", "general"), "domain": turned}, tmp_path)
    with pytest.raises(ValueError, match="must have the keys 'general' and 'domain'"):
        embed({"genral": rows("pair", "general"), "domain": rows("pair", "domain")}, tmp_path)


def test_embeddings_warn_of_a_batch_sampler(
    embed: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_interp.training.mixin"):
        embed(mixture("pair"), tmp_path, batch_sampler="no_duplicates")
    assert "NO_DUPLICATES" in caplog.text
    assert "is ignored: the plan of the mixture sets the order." in caplog.text
    caplog.clear()
    embed(mixture("pair"), tmp_path)
    assert "is ignored" not in caplog.text


# Both


@pytest.fixture(params=[("sft", "text"), ("sft", "completion"), ("embed", "pair")], ids="-".join)
def made(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], str]:
    """A function that makes a trainer, and the kind of data that it is given."""
    name, kind = request.param
    return request.getfixturevalue(name), kind


def test_what_the_plan_says_is_read(made: tuple[Callable[..., Any], str], tmp_path: Path) -> None:
    make, kind = made
    trainer = make(mixture(kind), tmp_path, given=RISE)
    trainer.train()
    assert trainer.seen == planned_words(trainer)
    assert [sum(word >= GENERAL for word in trainer.seen[step]) for step in range(8)] == DOMAIN_COUNTS
    assert logged(trainer, "alpha") == pytest.approx([step / 7 for step in range(8)], abs=1e-6)
    assert logged(trainer, "share_domain") == [count / 4 for count in DOMAIN_COUNTS]
    assert trainer.alpha == 1.0
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize(("name", "kind"), [("sft", "text"), ("embed", "one"), ("embed", "named")])
def test_ordinary_datasets_train_as_with_the_host_bit_for_bit(
    name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue(name)
    one, other = (rows("text" if name == "sft" else "pair", side) for side in ("general", "domain"))
    # Several named datasets are the host's own: each batch is drawn from one of them.
    train_dataset = {"questions": one, "titles": other} if kind == "named" else one
    runs = []
    for host in (True, False):
        runs.append(make(train_dataset, tmp_path, host=host, per_device_train_batch_size=3))
        runs[-1].train()
    assert same_weights(weights(runs[0]), weights(runs[1]))
    assert losses(runs[0]) == losses(runs[1])
    assert runs[1].plan is None


def test_a_resumed_run_is_the_whole_one_bit_for_bit(made: tuple[Callable[..., Any], str], tmp_path: Path) -> None:
    make, kind = made
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole, resumed = (make(mixture(kind), tmp_path, **saving) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.seen == {step: whole.seen[step] for step in range(3, 8)}
    assert same_weights(weights(whole), weights(resumed))
    assert losses(whole) == losses(resumed)
    assert logged(whole, "order_fingerprint")[-1] == logged(resumed, "order_fingerprint")[-1]


def test_corpora_and_streams_are_taken(made: tuple[Callable[..., Any], str], tmp_path: Path) -> None:
    make, kind = made
    stream = rows(kind, "domain").to_iterable_dataset()
    trainer = make([Corpus("web", rows(kind, "general"), "general"), Corpus("law", stream)], tmp_path, given=RISE)
    trainer.train()
    assert [sum(word >= GENERAL for word in trainer.seen[step]) for step in range(8)] == DOMAIN_COUNTS
    if kind != "pair":  # whose loss is one of the whole batch
        assert [loss is not None for loss in logged(trainer, "loss_law")] == [count > 0 for count in DOMAIN_COUNTS]


def test_embeddings_take_plans(embed: Callable[..., Any], tmp_path: Path) -> None:
    planned = InterpolatedDataset(mixture("pair"), batch_size=4, max_steps=8, alpha_schedule=linear())
    trainer = embed(planned, tmp_path)
    trainer.train()
    assert [sum(word >= GENERAL for word in trainer.seen[step]) for step in range(8)] == DOMAIN_COUNTS


# The examples


def load_example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    spec = importlib.util.spec_from_file_location(f"example_{name}", RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)  # where its settings are pickled from
    spec.loader.exec_module(example)
    return example


def test_grpo_answers_prompts_of_both_sides_by_alpha(
    trl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, rewarded = load_example("grpo", monkeypatch), []

    def answered(completions: Any, side: Any, **columns: Any) -> list[float]:
        rewarded.append(list(side))
        return [float("positive" in text) for text in completions]

    monkeypatch.setattr(example, "answered", answered)
    flags = ["--output_dir", str(tmp_path), "--max_steps", "3", "--num_generations", "2", "--use_cpu", "true"]
    flags += ["--per_device_train_batch_size", "8", "--max_completion_length", "2", "--report_to", "none"]
    trainer = example.main([*flags, "--bf16", "false", "--disable_tqdm", "true", "--logging_steps", "1"])
    # Of four prompts a step, each answered twice, with α at 0, a half and 1.
    assert [sides.count("domain") for sides in rewarded] == [0, 4, 8]
    assert all(sides[::2] == sides[1::2] for sides in rewarded)
    prompts = trainer.train_dataset["prompt"]
    corpora = {side: set(rows["prompt"]) for side, rows in example.toy_corpora("train").items()}
    assert [prompt in corpora["domain"] for prompt in prompts[:4] + prompts[8:]] == [False] * 4 + [True] * 4
    assert len({*prompts}) == 12
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(("name", "package"), [("sft", "trl"), ("dpo", "trl"), ("embeddings", "sentence_transformers")])
def test_the_examples_run(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    example = load_example(name, monkeypatch)
    flags = ["--output_dir", str(tmp_path), "--max_steps", "2", "--use_cpu", "true", "--report_to", "none"]
    flags += ["--disable_tqdm", "true", "--dataloader_pin_memory", "false"]
    metrics = example.main([*flags, "--alpha_start", "1.0"])
    assert metrics["eval_general_loss"] > 0
    assert metrics["eval_domain_loss"] > 0
    assert (tmp_path / "results.json").is_file()
    assert (tmp_path / "model.safetensors").is_file()
    # and on files, with the model that was saved
    for side, rows_ in example.toy_corpora("train").items():
        rows_.to_json(tmp_path / f"{side}.jsonl")
    files = [f"--{side}={tmp_path / side}.jsonl" for side in ("general", "domain")]
    assert example.main([*flags, "--model", str(tmp_path), *files]) == {}
    with pytest.raises(ValueError, match="Give both `--general` and `--domain`"):
        example.main([*flags, files[0]])
