"""Several heads on one backbone: what changes of a model, what does not, and what is saved."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from toys import masked_model, tiny_model
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_interp.training.heads import HEADS, HasHeads, attach_heads, load_heads, load_with_head

IDS = torch.tensor([[5, 6, 7, 1999, 8], [9, 10, 11, 12, 13]])
LABELS = torch.where(IDS == 1999, 42, -100)


def with_head() -> BertForSequenceClassification:
    model = tiny_model(0.0).eval()
    attach_heads(model, {"mlm": masked_model()})
    return model


def test_a_model_stays_what_it_was() -> None:
    before, after = tiny_model(0.0).eval(), with_head()
    assert isinstance(after, BertForSequenceClassification)
    assert isinstance(after, HasHeads)
    assert type(after).__name__ == "BertForSequenceClassification"
    assert inspect.signature(after.forward) == inspect.signature(before.forward)
    assert torch.equal(before(IDS).logits, after(IDS).logits)


def test_a_head_reads_the_backbone_of_the_model() -> None:
    model, alone = with_head(), masked_model().eval()
    own = {name: tensor for name, tensor in model.bert.state_dict().items() if not name.startswith("pooler")}
    alone.bert.load_state_dict(own)
    inputs = {"input_ids": IDS, "labels": LABELS}
    found = model(objectives={"mlm": inputs})["mlm"]
    expected = alone(**inputs)
    assert torch.equal(found["logits"], expected.logits)
    assert torch.equal(found["loss"], expected.loss)


def test_both_heads_run_in_one_pass() -> None:
    model = with_head()
    both = model(objectives={"": {"input_ids": IDS}, "mlm": {"input_ids": IDS[:1]}})
    assert list(both) == ["", "mlm"]
    assert torch.equal(both[""]["logits"], model(IDS).logits)
    assert both["mlm"]["logits"].shape == (1, 5, 2000)


def test_the_backbone_belongs_to_the_model_alone() -> None:
    model = with_head()
    head = getattr(model, HEADS)["mlm"]
    assert head.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    plain, alone = tiny_model(), masked_model()
    owned = sum(each.numel() for name, each in alone.named_parameters() if not name.startswith("bert."))
    assert model.num_parameters() == plain.num_parameters() + owned
    model(objectives={"mlm": {"input_ids": IDS, "labels": LABELS}})["mlm"]["loss"].backward()
    assert model.bert.embeddings.word_embeddings.weight.grad is not None
    assert model.classifier.weight.grad is None


def test_a_copy_has_a_backbone_of_its_own() -> None:
    model = with_head()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.bert.embeddings.word_embeddings.weight.zero_()
    inputs = {"mlm": {"input_ids": IDS}}
    assert not torch.equal(copied(objectives=inputs)["mlm"]["logits"], model(objectives=inputs)["mlm"]["logits"])
    assert getattr(copied, HEADS)["mlm"].cls.predictions.decoder.weight is copied.get_input_embeddings().weight


def test_the_saved_model_is_an_ordinary_one(tmp_path: Path) -> None:
    model = with_head()
    model.save_pretrained(tmp_path)
    plain, found = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["unexpected_keys"]
    assert not found["missing_keys"]
    assert plain.config.architectures == ["BertForSequenceClassification"]
    assert torch.equal(plain.eval()(IDS).logits, model(IDS).logits)
    saved = load_file(tmp_path / HEADS / "mlm" / "model.safetensors")
    assert all(name.startswith("cls.") for name in saved)
    assert "cls.predictions.decoder.weight" not in saved


def test_the_model_of_an_objective_can_be_put_together(tmp_path: Path) -> None:
    model = with_head()
    model.save_pretrained(tmp_path)
    found = load_with_head(tmp_path, "mlm")
    assert type(found) is BertForMaskedLM
    assert torch.equal(found(IDS).logits, model(objectives={"mlm": {"input_ids": IDS}})["mlm"]["logits"])
    found.save_pretrained(tmp_path / "whole")
    assert torch.equal(AutoModelForMaskedLM.from_pretrained(tmp_path / "whole").eval()(IDS).logits, found(IDS).logits)
    with pytest.raises(FileNotFoundError, match="There is no head 'absent'"):
        load_with_head(tmp_path, "absent")


def test_heads_are_loaded_into_a_model(tmp_path: Path) -> None:
    model, other = with_head(), with_head()
    with torch.no_grad():
        for parameter in getattr(other, HEADS).parameters():
            parameter.add_(1.0)
    other.save_pretrained(tmp_path)
    load_heads(model, tmp_path)
    ours, theirs = model.state_dict(), other.state_dict()
    names = [name for name in ours if name.startswith(f"{HEADS}.mlm.cls.predictions.transform")]
    assert names
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    with pytest.raises(FileNotFoundError, match="holds the head of the objective 'mlm'"):
        load_heads(model, tmp_path / "elsewhere")


def test_weights_without_heads_can_be_loaded() -> None:
    model = with_head()
    found = model.load_state_dict(tiny_model().state_dict())
    assert not found.missing_keys
    assert not found.unexpected_keys
    state = tiny_model().state_dict()
    headless = {name: each for name, each in state.items() if not name.startswith("classifier")}
    with pytest.raises(RuntimeError, match=r"Missing keys: \['classifier.weight', 'classifier.bias'\]"):
        model.load_state_dict(headless)


def test_adapters_and_heads_go_together(tmp_path: Path) -> None:
    base = tiny_model(0.0)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    attach_heads(model, {"mlm": masked_model()})
    found = model(objectives={"": {"input_ids": IDS}, "mlm": {"input_ids": IDS, "labels": LABELS}})
    assert torch.equal(found[""]["logits"], model(input_ids=IDS).logits)
    attached = model(objectives={"mlm": {"input_ids": IDS}})["mlm"]["logits"]
    with model.disable_adapter():
        assert not torch.equal(model(objectives={"mlm": {"input_ids": IDS}})["mlm"]["logits"], attached)
    found["mlm"]["loss"].backward()
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    assert any("lora_A" in name for name in trained)
    assert any(name.startswith(f"{HEADS}.mlm.cls") for name in trained)
    assert base.bert.embeddings.word_embeddings.weight.grad is None
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if HEADS in name]
    assert (tmp_path / HEADS / "mlm" / "model.safetensors").is_file()


def test_causal_models_share_too() -> None:
    shape = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=2, pad_token_id=0)
    model, head = GPT2ForSequenceClassification(shape).eval(), GPT2LMHeadModel(shape)
    attach_heads(model, {"lm": head})
    ids = torch.tensor([[3, 4, 5]])
    found = model(objectives={"lm": {"input_ids": ids, "labels": ids}})["lm"]
    hidden = model.transformer(ids).last_hidden_state
    assert torch.equal(found["logits"], hidden @ model.transformer.wte.weight.T)


def test_what_cannot_share_is_refused() -> None:
    shape = {"dim": 8, "n_heads": 2, "hidden_dim": 8, "n_layers": 1, "vocab_size": 50}
    with pytest.raises(ValueError, match="'mlm' belongs on DistilBertModel, but the model's backbone is BertModel"):
        attach_heads(tiny_model(), {"mlm": DistilBertForMaskedLM(DistilBertConfig(**shape))})
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has no backbone apart from its head"):
        attach_heads(t5, {"mlm": masked_model()})
    prompted = get_peft_model(tiny_model(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="put tokens before the input"):
        attach_heads(prompted, {"mlm": masked_model()})
    with pytest.raises(ValueError, match="has further heads already"):
        attach_heads(with_head(), {"again": masked_model()})


def test_two_heads_of_one_kind() -> None:
    shape = BertConfig(**{**tiny_model().config.to_dict(), "num_labels": 5})
    tags = BertForTokenClassification(BertConfig(**tiny_model().config.to_dict()))
    attach_heads(tags, {"other": BertForTokenClassification(shape)})
    found = tags.eval()(objectives={"": {"input_ids": IDS}, "other": {"input_ids": IDS}})
    assert (found[""]["logits"].shape[-1], found["other"]["logits"].shape[-1]) == (2, 5)
