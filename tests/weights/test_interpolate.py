"""M_α of state dicts and of models."""

import copy
from typing import Any

import pytest
import torch
from architectures import CONFIGS, make_model
from torch import nn
from toys import moved, same_weights, tiny_model
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, set_seed

from hf_interp.weights.alpha_spec import AlphaByDepth
from hf_interp.weights.interpolate import interpolate_weights, open_interpolation
from hf_interp.weights.live import LiveInterpolation, recalibrate_batch_norm

MODELS = {"bert": None, "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}
"""Architecture → the task of its head; all but Llama tie it."""


def two(kind: str) -> tuple[Any, Any]:
    """The same model twice, the second moved a little."""
    base = make_model(kind, MODELS[kind])
    return base.eval(), moved(base).eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(6).reshape(2, 3)
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_model_is_its_state_dict_by_the_formula(kind: str, alpha: float) -> None:
    base, finetuned = two(kind)
    before = state(base), state(finetuned)
    result, report = interpolate_weights(base, finetuned, alpha)
    assert type(result) is type(finetuned)
    for name, tensor in result.state_dict().items():
        first, second = before[0][name], before[1][name]
        expected = torch.lerp(first, second, alpha) if tensor.is_floating_point() else second
        assert torch.equal(tensor, expected), name
    assert same_weights(state(base), before[0])
    assert same_weights(state(finetuned), before[1])
    assert set(report.alphas().values()) == {alpha}
    for first in (base, base.state_dict()):
        found = interpolate_weights(first, finetuned.state_dict(), alpha).result
        assert same_weights(found, state(result))


@pytest.mark.parametrize("kind", MODELS)
def test_the_ends_are_the_two_models_bit_for_bit(kind: str) -> None:
    base, finetuned = two(kind)
    for alpha, end in ((0.0, base), (1.0, finetuned)):
        result = interpolate_weights(base, finetuned, alpha).result
        assert same_weights(state(result), state(end))
        assert torch.equal(logits(result), logits(end))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_tied_weights_are_interpolated_once_and_stay_tied(kind: str) -> None:
    base, finetuned = two(kind)
    result, report = interpolate_weights(base, finetuned, 0.5)
    assert report.names("tied")
    assert result.get_input_embeddings().weight is result.get_output_embeddings().weight
    expected = torch.lerp(base.get_input_embeddings().weight, finetuned.get_input_embeddings().weight, 0.5)
    assert torch.equal(result.get_input_embeddings().weight, expected)
    states = interpolate_weights(base.state_dict(), finetuned.state_dict(), 0.5).result
    first, second = (states[name] for name in (report.names("tied")[0], report.decisions[-1].name))
    assert first.data_ptr() == second.data_ptr() or len(report.names("tied")) > 1


@pytest.mark.parametrize("which", ["base", "finetuned", "third"])
def test_into_a_given_model(which: str) -> None:
    base, finetuned = two("bert")
    expected = state(interpolate_weights(base, finetuned, 0.3).result)
    into = {"base": base, "finetuned": finetuned, "third": make_model("bert", None)}[which]
    pointers = [parameter.data_ptr() for parameter in into.parameters()]
    assert interpolate_weights(base, finetuned, 0.3, into=into).result is into
    assert same_weights(state(into), expected)
    assert [parameter.data_ptr() for parameter in into.parameters()] == pointers


def test_into_a_model_of_another_shape_is_refused() -> None:
    base, finetuned = two("bert")
    other = BertForMaskedLM(CONFIGS["bert"]())
    other.resize_token_embeddings(61)
    with pytest.raises(ValueError, match=r"`into` must have the tensors of M_θ, but has \(61, 16\) for .* \(60, 16\)"):
        interpolate_weights(base, finetuned, 0.5, into=other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    base, finetuned = (model.to(dtype) for model in two("llama"))
    found = interpolate_weights(base, finetuned, 0.3).result.state_dict()
    for name, tensor in found.items():
        exact = torch.lerp(base.state_dict()[name].float(), finetuned.state_dict()[name].float(), 0.3)
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact.to(dtype))


def test_a_type_is_asked_for_and_cast_once() -> None:
    base, finetuned = two("llama")
    base.to(torch.bfloat16)
    wide = interpolate_weights(base.state_dict(), finetuned.state_dict(), 0.3).result
    narrow = interpolate_weights(base.state_dict(), finetuned.state_dict(), 0.3, dtype=torch.bfloat16).result
    model = interpolate_weights(base, finetuned, 0.3, dtype=torch.bfloat16).result
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert same_weights(narrow, {name: tensor.to(torch.bfloat16) for name, tensor in wide.items()})
    assert same_weights(narrow, state(model))


def test_a_base_without_the_head_and_with_a_smaller_vocabulary() -> None:
    set_seed(0)
    base = BertModel(CONFIGS["bert"]())
    finetuned = BertForSequenceClassification(CONFIGS["bert"]())
    finetuned.resize_token_embeddings(63)
    result, report = interpolate_weights(base, finetuned, 0.25)
    assert report.names("finetuned") == ["classifier.weight", "classifier.bias"]
    words = result.bert.embeddings.word_embeddings.weight
    theirs, mine = base.embeddings.word_embeddings.weight, finetuned.bert.embeddings.word_embeddings.weight
    assert torch.equal(words[:60], torch.lerp(theirs, mine[:60], 0.25))
    assert torch.equal(words[60:], mine[60:])
    assert torch.equal(result.classifier.weight, finetuned.classifier.weight)
    assert torch.equal(
        result.bert.pooler.dense.bias, torch.lerp(base.pooler.dense.bias, finetuned.bert.pooler.dense.bias, 0.25)
    )


def test_groups_and_depth() -> None:
    base, finetuned = two("bert")
    groups = {"*.embeddings.*": 0.0, "*.layer.0.*": 0.5, "*": 1.0}
    found = interpolate_weights(base, finetuned, groups).result.state_dict()
    name = "bert.embeddings.LayerNorm.weight"
    assert torch.equal(found[name], base.state_dict()[name])
    name = "bert.encoder.layer.2.output.dense.weight"
    assert torch.equal(found[name], finetuned.state_dict()[name])
    by_depth = interpolate_weights(base, finetuned, AlphaByDepth(0.5, 1.0)).result.state_dict()
    assert torch.equal(by_depth[name], finetuned.state_dict()[name])
    name = "bert.encoder.layer.0.output.dense.weight"
    half = torch.lerp(base.state_dict()[name], finetuned.state_dict()[name], 0.5)
    assert torch.equal(found[name], half)
    assert torch.equal(by_depth[name], half)


def test_beyond_the_ends() -> None:
    found = interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 1.5, extrapolate=True)
    assert found.result["w"].tolist() == [1.5, 1.5]
    with pytest.raises(ValueError, match="Set `extrapolate`"):
        interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 1.5)


def test_a_linear_model_mixes_logits_and_so_takes_the_geometric_mean_of_probabilities() -> None:
    set_seed(0)
    base, finetuned = nn.Linear(5, 3), nn.Linear(5, 3)
    inputs = torch.randn(4, 5)
    mixed = interpolate_weights(base, finetuned, 0.3).result(inputs)
    geometric = 0.7 * base(inputs).log_softmax(-1) + 0.3 * finetuned(inputs).log_softmax(-1)
    assert torch.allclose(mixed.log_softmax(-1), geometric.log_softmax(-1), atol=1e-6)


def test_without_a_base_there_must_be_an_adapter() -> None:
    with pytest.raises(TypeError, match="`base` must be given: only for a `PeftModel`"):
        interpolate_weights(None, nn.Linear(1, 1), 0.5)


# Batch norms.


def normed() -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    set_seed(0)
    base = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    finetuned = copy.deepcopy(base)
    batches = [torch.randn(16, 3) for _ in range(4)]
    with torch.no_grad():
        finetuned[0].weight.mul_(3)
    for model, data in ((base, batches[:2]), (finetuned, batches[2:])):
        for batch in data:
            model(batch)
    return base.eval(), finetuned.eval(), batches


def test_statistics_of_batch_norms_are_refused_or_measured_anew() -> None:
    base, finetuned, batches = normed()
    with pytest.raises(ValueError, match=r"'1\.running_mean' is a statistic of a batch norm.*Give `recalibrate`"):
        interpolate_weights(base, finetuned, 0.5)
    result, report = interpolate_weights(base, finetuned, 0.5, recalibrate=batches)
    means = torch.stack([result[0](batch).mean(0) for batch in batches]).mean(0)
    assert torch.allclose(result[1].running_mean, means, atol=1e-6)
    assert report.notes == ["statistics of 1 batch norms measured on 4 batches"]
    assert not any(module.training for module in result.modules())
    assert result[1].momentum == 0.1


@pytest.mark.parametrize("recalibrates", [True, False])
def test_statistics_at_the_ends_are_those_of_the_ends(recalibrates: bool) -> None:
    base, finetuned, batches = normed()
    for alpha, end in ((0.0, base), (1.0, finetuned)):
        result = interpolate_weights(base, finetuned, alpha, recalibrate=batches if recalibrates else None).result
        assert torch.equal(result[1].running_mean, end[1].running_mean)
        assert torch.equal(result[1].running_var, end[1].running_var)


def test_batches_for_batch_norms_are_checked() -> None:
    base, finetuned, batches = normed()
    with pytest.raises(ValueError, match="at least one batch, got none"):
        interpolate_weights(base, finetuned, 0.5, recalibrate=[])
    with pytest.raises(ValueError, match="needs a model to run, got state dicts"):
        interpolate_weights(base.state_dict(), finetuned.state_dict(), 0.5, recalibrate=batches)
    with pytest.raises(ValueError, match="needs a model with batch norms"):
        recalibrate_batch_norm(nn.Linear(1, 1), [torch.ones(1, 1)])


# Sweeps.


def test_a_live_interpolation_goes_anywhere_and_comes_back() -> None:
    base, finetuned = two("bert")
    before = state(finetuned)
    with LiveInterpolation(base, finetuned) as live:
        for alpha in (0.5, 0.0, 1.0, 0.3):
            live.set_alpha(alpha)
            expected = torch.lerp(state(base)["cls.predictions.bias"], before["cls.predictions.bias"], alpha)
            assert torch.equal(finetuned.cls.predictions.bias, expected)
        assert same_weights(state(finetuned), interpolate_weights(base.state_dict(), before, 0.3).result)
    assert same_weights(state(finetuned), before)


def test_no_step_of_a_sweep_depends_on_the_steps_before() -> None:
    base, finetuned = (model.to(torch.bfloat16) for model in two("llama"))
    expected = state(interpolate_weights(base, finetuned, 0.5).result)
    live = LiveInterpolation(base, finetuned)
    for step in range(51):
        live.set_alpha(step / 100)
    assert same_weights(state(finetuned), expected)


def test_a_live_interpolation_comes_back_after_an_error() -> None:
    base, finetuned = two("llama")
    before = state(finetuned)

    def fail() -> None:
        with LiveInterpolation(base, finetuned) as live:
            live.set_alpha(0.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same_weights(state(finetuned), before)


@pytest.mark.parametrize("alpha", [1.5, {"*.layer.*": 0.5}])
def test_a_live_interpolation_refuses_and_stays_where_it_is(alpha: Any) -> None:
    base, finetuned = two("llama")
    live = LiveInterpolation(base, finetuned)
    live.set_alpha(0.5)
    before = state(finetuned)
    with pytest.raises(ValueError, match="`alpha`"):
        live.set_alpha(alpha)
    assert same_weights(state(finetuned), before)


def test_a_live_interpolation_measures_statistics_between_the_ends() -> None:
    base, finetuned, batches = normed()
    before = state(finetuned)
    live = LiveInterpolation(base, finetuned, recalibrate=iter(batches))
    for alpha in (0.5, 0.0, 0.5, 1.0, 0.3):
        live.set_alpha(alpha)
        kept = copy.deepcopy(finetuned)
        kept.load_state_dict(before)
        expected = interpolate_weights(base, kept, alpha, recalibrate=batches).result
        assert same_weights(state(finetuned), state(expected))
        measured = ["statistics of 1 batch norms measured on 4 batches"]
        assert live.report.notes == (measured if 0 < alpha < 1 else [])
    live.restore()
    assert same_weights(state(finetuned), before)
    assert finetuned[1].momentum == 0.1


def test_a_live_interpolation_puts_batch_norms_back_after_a_bad_batch() -> None:
    base, finetuned, batches = normed()
    before = state(finetuned)
    with (
        pytest.raises(RuntimeError),
        LiveInterpolation(base, finetuned, recalibrate=[*batches, torch.ones(2, 9)]) as live,
    ):
        live.set_alpha(0.5)
    assert same_weights(state(finetuned), before)
    assert finetuned[1].momentum == 0.1
    assert not finetuned[1].training


@pytest.mark.parametrize(
    ("batches", "message"), [([], "at least one batch, got none"), (None, "those of M₀ and M_θ say nothing")]
)
def test_a_live_interpolation_needs_batches_for_batch_norms(batches: Any, message: str) -> None:
    base, finetuned, _ = normed()
    with pytest.raises(ValueError, match=message):
        open_interpolation(base, finetuned, recalibrate=batches)


def test_a_live_interpolation_follows_a_model_that_is_moved() -> None:
    base, finetuned, batches = normed()
    before = state(finetuned)
    live = LiveInterpolation(base, finetuned, recalibrate=batches)
    for tensor in finetuned.parameters():
        tensor.data = tensor.data.clone()  # as `to` does
    live.set_alpha(0.0)
    assert same_weights(state(finetuned), {**state(base), "1.num_batches_tracked": before["1.num_batches_tracked"]})
    finetuned.double()
    live.set_alpha(0.0)
    assert torch.equal(finetuned[0].weight, base[0].weight.double())
    assert torch.equal(finetuned[1].running_mean, base[1].running_mean.double())
    live.restore()
    finetuned.float()
    assert same_weights(state(finetuned), before)


def test_the_report_of_a_live_interpolation_tells_its_alpha() -> None:
    base, finetuned = two("bert")
    live = LiveInterpolation(base, finetuned)
    live.set_alpha(0.3)
    assert set(live.report.alphas().values()) == {0.3}
    live.restore()
    assert set(live.report.alphas().values()) == {1.0}


def test_a_live_interpolation_leaves_gradients_to_the_parameters() -> None:
    base, finetuned = tiny_model(), tiny_model()
    live = LiveInterpolation(base, finetuned)
    live.set_alpha(0.5)
    finetuned(input_ids=torch.ones(1, 3, dtype=torch.long), labels=torch.tensor([1])).loss.backward()
    assert finetuned.classifier.weight.grad is not None
