"""M_α of adapters: equal to that of the merged weights, in place, and undone to the last bit."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import make_model
from peft.tuners.lora.config import BdLoraConfig, VeloraConfig
from torch import nn
from toys import move, same_weights
from transformers import MixtralConfig, MixtralForCausalLM, set_seed

from hf_interp.weights.adapter_kinds import FACTORS, KEEPING_INITS, adapter_capabilities, is_peft_model, refuse_prompts
from hf_interp.weights.adapters import AdapterInterpolation, interpolate_adapter, merge_adapter, scaled_parameters
from hf_interp.weights.alpha_spec import AlphaByDepth
from hf_interp.weights.interpolate import interpolate_weights, open_interpolation
from hf_interp.weights.live import LiveInterpolation

IDS = torch.tensor([[3, 5, 7, 11, 2, 1], [4, 1, 6, 8, 9, 30]])

bert = partial(make_model, "bert", "SEQ_CLS", initializer_range=0.3)
roberta = partial(make_model, "roberta", "SEQ_CLS", initializer_range=0.3)
llama = partial(make_model, "llama", "CAUSAL_LM", initializer_range=0.3)
tied_llama = partial(llama, tie_word_embeddings=True)
gpt2 = partial(make_model, "gpt2", "CAUSAL_LM", initializer_range=0.3)
t5 = partial(make_model, "t5", "SEQ_2_SEQ_LM")


def mixtral() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_local_experts": 3, "experts_implementation": "eager"}  # the only one in double precision
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=40, num_key_value_heads=1, initializer_range=0.3, **sizes, **experts)
    )


class ConvNet(nn.Module):
    """Convolutions and attention, as models of images have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 36)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.attention = nn.MultiheadAttention(9, 3, batch_first=True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids[:, :4]).view(len(input_ids), 4, 6, 6)
        hidden = self.grouped(torch.tanh(self.conv(hidden))).view(len(input_ids), -1, 9)
        return self.attention(hidden, hidden, hidden)[0].flatten(1)


def pristine(make: Callable[[], nn.Module]) -> nn.Module:
    """Always the same weights, in double precision."""
    set_seed(7)
    return make().double().eval()


def adapted(model: nn.Module, config: Any) -> Any:
    """An adapter as training may leave it: every trainable parameter is somewhere else. In double precision."""
    adapter = with_adapter(model.float(), config).double()
    return move(adapter)


def with_adapter(model: nn.Module, config: Any, **options: Any) -> Any:
    set_seed(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT says of configurations is of no interest here
        return peft.get_peft_model(model, config, **options).eval()


def merged(model: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return merge_adapter(copy.deepcopy(model), adapter_capabilities(model))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        found = model(input_ids=IDS, **({"labels": IDS} if is_seq2seq else {}))
    return found if isinstance(found, torch.Tensor) else found.logits


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


def expected(make: Callable[[], nn.Module], whole: nn.Module, alpha: Any, **options: Any) -> nn.Module:
    """M_α of the merged weights."""
    base = pristine(make)
    weights = interpolate_weights(state(base), state(whole), alpha, **options).result
    base.load_state_dict(weights)
    return base


def lora(*targets: str, **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=list(targets), r=options.pop("r", 4), **options)


LINEARS = ("query", "dense")

SCALED: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "LoRA": (bert, lambda: lora(*LINEARS, task_type="SEQ_CLS")),
    "LoRA on a decoder": (llama, lambda: peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")),
    "LoRA on Conv1D": (gpt2, lambda: lora("c_attn", "c_proj", fan_in_fan_out=True, task_type="CAUSAL_LM")),
    "LoRA on an encoder and decoder": (t5, lambda: lora("q", "v", "wo")),
    "LoRA on embeddings": (llama, lambda: lora("embed_tokens", "v_proj")),
    "LoRA on tokens and positions": (bert, lambda: lora("word_embeddings", "position_embeddings")),
    "LoRA on convolutions": (ConvNet, lambda: lora("conv")),
    "LoRA on parameters": (mixtral, lambda: lora(target_parameters=["gate_up_proj", "down_proj"])),
    "LoRA with patterns": (
        bert,
        lambda: lora(*LINEARS, rank_pattern={"query": 2}, alpha_pattern={"dense": 3}, layers_to_transform=[1]),
    ),
    "LoRA with its own bias": (bert, lambda: lora(*LINEARS, lora_bias=True)),
    "LoRA begun orthogonally": (llama, lambda: lora("v_proj", init_lora_weights="orthogonal")),
    "LoRA begun at random": (llama, lambda: lora("v_proj", init_lora_weights=False)),
    "LoRA and a head": (roberta, lambda: lora(*LINEARS, task_type="SEQ_CLS")),
    "LoRA and a decoder's head": (llama, lambda: lora("v_proj", modules_to_save=["lm_head"])),
    "LoRA and norms": (bert, lambda: lora("query", modules_to_save=["LayerNorm"])),
    "LoRA and rows": (llama, lambda: lora("v_proj", trainable_token_indices=[3, 7])),
    "LoRA and tied rows": (tied_llama, lambda: lora("v_proj", trainable_token_indices=[3, 7])),
    "rsLoRA": (llama, lambda: lora("v_proj", "up_proj", use_rslora=True, lora_alpha=3)),
    "MiCA": (llama, lambda: lora("v_proj", "embed_tokens", init_lora_weights="mica")),
    "VeLoRA": (llama, lambda: lora("v_proj", velora_config=VeloraConfig(num_groups=4))),
    "BD-LoRA": (
        llama,
        lambda: lora(
            "v_proj",
            "up_proj",
            use_bdlora=BdLoraConfig(target_modules_bd_a=["v_proj"], target_modules_bd_b=["up_proj"], nblocks=2),
        ),
    ),
    "AdaLoRA": (bert, lambda: peft.AdaLoraConfig(target_modules=list(LINEARS), total_step=10, task_type="SEQ_CLS")),
    "LoHa": (bert, lambda: peft.LoHaConfig(target_modules=list(LINEARS), r=4)),
    "LoHa on convolutions": (ConvNet, lambda: peft.LoHaConfig(target_modules=["conv"], r=2)),
    "LoHa on convolutions in four factors": (
        ConvNet,
        lambda: peft.LoHaConfig(target_modules=["conv"], r=2, use_effective_conv2d=True),
    ),
    "LoKr": (bert, lambda: peft.LoKrConfig(target_modules=list(LINEARS), r=2)),
    "LoKr in three factors": (bert, lambda: peft.LoKrConfig(target_modules=list(LINEARS), r=1)),
    "LoKr in four factors": (bert, lambda: peft.LoKrConfig(target_modules=list(LINEARS), r=1, decompose_both=True)),
    "LoKr on convolutions": (
        ConvNet,
        lambda: peft.LoKrConfig(target_modules=["conv"], r=1, decompose_both=True, use_effective_conv2d=True),
    ),
    "VeRA": (bert, lambda: peft.VeraConfig(target_modules=["query", "value"], r=4)),
    "FourierFT": (bert, lambda: peft.FourierFTConfig(target_modules=list(LINEARS), n_frequency=20)),
    "IA3": (bert, lambda: peft.IA3Config(target_modules=list(LINEARS), feedforward_modules=["dense"])),
    "IA3 of outputs and a head": (
        roberta,
        lambda: peft.IA3Config(target_modules=list(LINEARS), feedforward_modules=[], task_type="SEQ_CLS"),
    ),
    "IA3 on Conv1D": (
        gpt2,
        lambda: peft.IA3Config(
            target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"], fan_in_fan_out=True
        ),
    ),
    "IA3 on convolutions": (ConvNet, lambda: peft.IA3Config(target_modules=["conv"], feedforward_modules=[])),
    "LN tuning": (bert, lambda: peft.LNTuningConfig(target_modules=["LayerNorm"], task_type="SEQ_CLS")),
    "rows": (llama, lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3, 7])),
    "tied rows": (tied_llama, lambda: peft.TrainableTokensConfig(token_indices=[3, 7])),
}


@pytest.mark.parametrize("case", SCALED)
def test_a_scaled_adapter_is_the_merged_interpolation(case: str) -> None:
    make, config = SCALED[case]
    before = outputs(pristine(make))
    model = adapted(pristine(make), config())
    trained, after, whole = state(model), outputs(model), merged(model)
    assert distance(before, after) > 1e-3
    live = AdapterInterpolation(model)
    tolerance = 1e-5 if case == "FourierFT" else 1e-6  # PEFT transforms the spectrum in float32
    for alpha in (0.3, 0.0, 1.0, 0.7):
        live.set_alpha(alpha)
        assert distance(outputs(model), outputs(expected(make, whole, alpha))) < tolerance
        if alpha == 0.0:
            assert distance(outputs(model), before) < 1e-12
        if alpha == 1.0:
            assert same_weights(state(model), trained)
            assert torch.equal(outputs(model), after)
    assert set(live.names) <= set(pristine(make).state_dict())
    live.restore()
    assert same_weights(state(model), trained)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("lora_bias", [False, True])
def test_biases_that_were_trained_in_place_are_interpolated_against_the_base(bias: str, lora_bias: bool) -> None:
    model = adapted(pristine(bert), lora(*LINEARS, bias=bias, lora_bias=lora_bias, task_type="SEQ_CLS"))
    trained, whole = state(model), merged(model)
    with pytest.raises(ValueError, match=f"`base` must be given.* bias='{bias}'"):
        AdapterInterpolation(model)
    for base in (pristine(bert), state(pristine(bert))):
        with AdapterInterpolation(model, base) as live:
            for alpha in (0.0, 0.3, 1.0):
                live.set_alpha(alpha)
                assert distance(outputs(model), outputs(expected(bert, whole, alpha))) < 1e-6
        assert same_weights(state(model), trained)
    biases = {pair.name for pair in scaled_parameters(model, pristine(bert)) if "M₀" in pair.reason}
    assert ("bert.embeddings.LayerNorm.bias" in biases) == (bias == "all")
    assert "bert.encoder.layer.0.attention.self.query.bias" in biases
    assert "classifier.bias" not in biases


def test_a_base_of_another_model_is_refused() -> None:
    model = adapted(pristine(bert), lora("query", bias="all"))
    base = state(pristine(bert))
    with pytest.raises(ValueError, match=r"`base` must be of the model's architecture, but .* is \(3,\) there and"):
        AdapterInterpolation(model, {**base, "bert.pooler.dense.bias": torch.zeros(3)})
    del base["bert.pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"`base` must have the biases .* no 'bert\.pooler\.dense\.bias'"):
        AdapterInterpolation(model, base)


def test_an_attention_module_is_scaled() -> None:
    before = outputs(pristine(ConvNet))
    model = adapted(pristine(ConvNet), lora("attention", r=2))
    whole, trained = merged(model), state(model)
    with AdapterInterpolation(model) as live:
        assert live.names == ["attention.in_proj_weight", "attention.out_proj.weight"]
        for alpha in (0.3, 0.0, 1.0):
            live.set_alpha(alpha)
            assert distance(outputs(model), outputs(expected(ConvNet, whole, alpha))) < 1e-6
            if alpha == 0.0:
                assert distance(outputs(model), before) < 1e-12
    factors = [name for name in trained if ".lora_" in name]
    assert all(torch.equal(model.state_dict()[name], trained[name]) for name in factors)


def test_a_convolution_that_peft_cannot_merge_is_scaled() -> None:
    model = adapted(pristine(ConvNet), lora("grouped"))
    layer, inputs = model.get_base_model().grouped, torch.rand(2, 8, 3, 3, dtype=torch.float64)
    with torch.no_grad(), AdapterInterpolation(model) as live:
        before, after = layer.base_layer(inputs), layer(inputs)
        assert distance(before, after) > 1e-2
        live.set_alpha(0.3)
        assert distance(layer(inputs), before + 0.3 * (after - before)) < 1e-12


def test_layers_that_share_their_factors_are_scaled_once() -> None:
    model = with_adapter(pristine(tied_llama), lora("embed_tokens", "lm_head", ensure_weight_tying=True))
    move(model)
    embedding = model.get_base_model().model.embed_tokens
    delta = embedding.get_delta_weight("default").detach().clone()
    with AdapterInterpolation(model) as live:
        live.set_alpha(0.3)
        assert live.names == ["model.embed_tokens.weight"]
        assert live.report.names("tied") == ["lm_head.weight"]
        plain = pristine(tied_llama)
        plain.model.embed_tokens.weight.data += 0.3 * delta
        assert distance(outputs(model), outputs(plain)) < 1e-12


def test_tied_rows_are_one() -> None:
    model = adapted(pristine(tied_llama), peft.TrainableTokensConfig(token_indices=[3, 7]))
    report = AdapterInterpolation(model).report
    assert report.names("interpolated") == ["model.embed_tokens.weight"]
    assert [(decision.name, decision.reason) for decision in report.decisions if decision.action == "tied"] == [
        ("lm_head.weight", "to model.embed_tokens.weight")
    ]


def test_a_pruned_adalora_is_scaled() -> None:
    model = adapted(
        pristine(bert),
        peft.AdaLoraConfig(target_modules=list(LINEARS), init_r=4, target_r=1, total_step=6, tinit=0, tfinal=2),
    )
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for step in range(6):
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.eval()
    values = torch.cat([pair.parameter.flatten() for pair in scaled_parameters(model)])
    assert (values == 0).any()
    assert (values != 0).any()
    whole = merged(model)
    with interpolate_weights(None, model, 0.3).result:
        assert distance(outputs(model), outputs(expected(bert, whole, 0.3))) < 1e-6


MERGED: dict[str, tuple[Callable[[], nn.Module], Any, bool]] = {
    "DoRA": (bert, lambda: lora(*LINEARS, use_dora=True), False),
    "DoRA and a head": (bert, lambda: lora(*LINEARS, use_dora=True, task_type="SEQ_CLS"), False),
    "DoRA and rows": (llama, lambda: lora("v_proj", use_dora=True, trainable_token_indices=[3]), False),
    "DoRA and biases": (bert, lambda: lora(*LINEARS, use_dora=True, bias="all"), True),
    "PiSSA": (llama, lambda: lora("v_proj", init_lora_weights="pissa"), True),
    "fast PiSSA": (llama, lambda: lora("v_proj", init_lora_weights="pissa_niter_4"), True),
    "OLoRA": (llama, lambda: lora("v_proj", init_lora_weights="olora"), True),
    "OFT": (bert, lambda: peft.OFTConfig(target_modules=["query"], oft_block_size=4, r=0), False),
    "BOFT": (bert, lambda: peft.BOFTConfig(target_modules=["query"], boft_block_size=4), False),
    "HRA": (bert, lambda: peft.HRAConfig(target_modules=["query"], r=2), True),
}


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Setting boft_n_butterfly_factor")
@pytest.mark.parametrize("case", MERGED)
def test_an_adapter_that_cannot_be_scaled_is_merged(case: str) -> None:
    make, config, needs_base = MERGED[case]
    before = outputs(pristine(make))
    model = adapted(pristine(make), config())
    trained, after, whole = state(model), outputs(model), merged(model)
    assert distance(before, after) > 1e-2
    if needs_base:
        with pytest.raises(ValueError, match="`base` must be given, a state dict or a model: an adapter of kind"):
            interpolate_weights(None, model, 0.3)
    for base in [pristine(make), state(pristine(make))] + [None] * (not needs_base):
        for alpha in (0.0, 0.3, 1.0):
            result, report = interpolate_weights(base, model, alpha)
            assert not is_peft_model(result)
            assert distance(outputs(result), outputs(expected(make, whole, alpha))) < 1e-6
            if alpha == 0.0:
                assert distance(outputs(result), before) < 1e-6
            assert report.notes[0].startswith("merged, because an adapter of kind ")
    assert same_weights(state(model), trained)
    with pytest.raises(ValueError, match=r"an adapter that can be scaled, got .*\. Merge it first: `model\.merge_and_"):
        AdapterInterpolation(model, pristine(make))
    with pytest.raises(ValueError, match="`into` must be left out: this adapter is merged"):
        interpolate_weights(pristine(make), model, 0.3, into=model)


@pytest.mark.parametrize(
    "config",
    [
        lambda: lora("v_proj", alora_invocation_tokens=[1], task_type="CAUSAL_LM"),
        lambda: peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"),
    ],
    ids=["aLoRA", "adaption prompt"],
)
def test_what_can_be_neither_scaled_nor_merged_is_refused(config: Callable[[], Any]) -> None:
    model = adapted(pristine(llama), config())
    with pytest.raises(ValueError, match=r"an adapter that can be scaled or merged, got .*, which PEFT does not merge"):
        interpolate_weights(pristine(llama), model, 0.3)


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=4, task_type="CAUSAL_LM"),
    ],
    ids=["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"],
)
def test_prompts_are_refused(config: Callable[[], Any], request: pytest.FixtureRequest) -> None:
    model = adapted(pristine(llama), config())
    kind = request.node.callspec.id
    with pytest.raises(ValueError, match=f"must change weights, got {kind}: it adds virtual tokens, and M₀ has none"):
        interpolate_weights(None, model, 0.3)


def test_it_takes_one_active_enabled_unmerged_adapter() -> None:
    model = adapted(pristine(llama), lora("v_proj"))
    model.add_adapter("other", lora("v_proj"))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"one active adapter, got \['default', 'other'\]\. Set one with"):
        AdapterInterpolation(model)
    model.set_adapter("default")
    AdapterInterpolation(model)
    with model.disable_adapter(), pytest.raises(ValueError, match=r"enabled, got '.*v_proj' disabled\. Leave"):
        AdapterInterpolation(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"unmerged, got '.*v_proj' merged\. Call `model\.unmerge_adapter\(\)` first"):
        AdapterInterpolation(model)
    with pytest.raises(TypeError, match="`model` must be a PeftModel, got Linear"):
        AdapterInterpolation(nn.Linear(1, 1))
    mixed = peft.PeftMixedModel(pristine(llama), lora("v_proj"))
    with pytest.raises(ValueError, match="an adapter of one kind, got a PeftMixedModel"):
        interpolate_weights(None, mixed, 0.3)


def test_only_the_active_adapter_is_scaled() -> None:
    model = adapted(pristine(bert), lora(*LINEARS, modules_to_save=["classifier"]))
    model.add_adapter("other", lora("value"))
    model.set_adapter("other")
    move(model)
    before = state(model)
    with AdapterInterpolation(model) as live:
        live.set_alpha(0.0)
        assert distance(outputs(model), outputs(pristine(bert))) < 1e-12
        changed = [name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 3
    assert all("value.lora_B.other" in name for name in changed)


def test_diverged_adapters_are_refused() -> None:
    for value, what in ((float("nan"), "NaN"), (float("inf"), "infinities")):
        model = adapted(pristine(llama), lora("v_proj"))
        model.get_base_model().model.layers[0].self_attn.v_proj.lora_B["default"].weight.data[0, 0] = value
        with pytest.raises(ValueError, match=rf"'model\.layers\.0\.self_attn\.v_proj\.weight' of M_θ holds {what}"):
            AdapterInterpolation(model)


def test_buffers_that_training_changed_are_refused() -> None:
    model = adapted(pristine(bert), lora("query", modules_to_save=["classifier"]))
    wrapper = model.get_base_model().classifier
    wrapper.original_module.register_buffer("mean", torch.zeros(1))
    wrapper.modules_to_save["default"].register_buffer("mean", torch.zeros(1))
    AdapterInterpolation(model)
    wrapper.modules_to_save["default"].mean += 1
    with pytest.raises(ValueError, match=r"`classifier\.mean` is a buffer that training changed"):
        AdapterInterpolation(model)


def test_alphas_go_by_the_names_of_the_base_model() -> None:
    model = adapted(pristine(bert), lora(*LINEARS, task_type="SEQ_CLS"))
    whole = merged(model)
    for alpha in (
        {"*.layer.0.*": 0.2, "classifier.*": 1.0, "*": 0.6},
        AlphaByDepth(0.2, 0.9),
    ):
        with AdapterInterpolation(model) as live:
            live.set_alpha(alpha)
            by_name = live.report.alphas()
            # of what the adapter leaves alone, α is of no matter
            mapping = {**by_name, "*": 0.5}
            assert distance(outputs(model), outputs(expected(bert, whole, mapping))) < 1e-6
    assert by_name["bert.encoder.layer.0.attention.self.query.weight"] == 0.2
    assert by_name["bert.encoder.layer.2.output.dense.weight"] == 0.9
    assert by_name["classifier.weight"] == 0.2


def test_a_head_of_its_own_is_kept() -> None:
    model = adapted(pristine(bert), lora(*LINEARS, task_type="SEQ_CLS"))
    whole = merged(model)
    live, report = interpolate_weights(None, model, 0.3, finetuned_only=["classifier.*"])
    plain = expected(bert, whole, 0.3, finetuned_only=["classifier.*"])
    assert distance(outputs(model), outputs(plain)) < 1e-6
    assert report.names("finetuned") == ["classifier.weight", "classifier.bias"]
    assert not any(name.startswith("classifier") for name in live.names)
    live.restore()
    with pytest.raises(ValueError, match=r"`finetuned_only` has a pattern that no changed weight matches: 'score\.\*'"):
        AdapterInterpolation(model, finetuned_only=["score.*"])
    with pytest.raises(ValueError, match="Nothing is left to interpolate"):
        AdapterInterpolation(model, finetuned_only=["*"])


def test_alphas_beyond_the_ends() -> None:
    model = adapted(pristine(llama), lora("v_proj"))
    whole = merged(model)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got 1\.5"):
        interpolate_weights(None, model, 1.5)
    with interpolate_weights(None, model, 1.5, extrapolate=True).result:
        assert distance(outputs(model), outputs(expected(llama, whole, 1.5, extrapolate=True))) < 1e-6


def test_it_is_restored_after_an_error() -> None:
    model = adapted(pristine(llama), lora("v_proj"))
    trained = state(model)

    def fail() -> None:
        with interpolate_weights(None, model, 0.3).result:
            assert not same_weights(state(model), trained)
            raise KeyError("somewhere")

    with pytest.raises(KeyError):
        fail()
    assert same_weights(state(model), trained)


def test_one_interpolation_after_the_other_starts_from_what_was_trained() -> None:
    model = adapted(pristine(llama), lora("v_proj", modules_to_save=["lm_head"]))
    trained, whole = state(model), merged(model)
    for alpha in (0.5, 0.0, 0.3):
        live = interpolate_weights(None, model, alpha).result
        assert distance(outputs(model), outputs(expected(llama, whole, alpha))) < 1e-6
    live.restore()
    assert same_weights(state(model), trained)


def test_what_is_trained_on_from_an_interpolation_is_what_was_trained() -> None:
    model = adapted(pristine(llama), lora("v_proj"))
    interpolate_weights(None, model, 0.5)
    move(model)
    again = state(model)
    with AdapterInterpolation(model) as live:
        live.set_alpha(0.0)
    assert same_weights(state(model), again)


def test_the_result_is_the_model_in_place() -> None:
    model = adapted(pristine(llama), lora("v_proj"))
    assert interpolate_weights(None, model, 0.3, into=model).result.model is model
    with pytest.raises(ValueError, match="`into` must be the PEFT model itself"):
        interpolate_weights(None, model, 0.3, into=pristine(llama))
    for options in ({"dtype": torch.float32}, {"recalibrate": [{"input_ids": IDS}]}):
        with pytest.raises(ValueError, match="`dtype` and `recalibrate` must be left out for a `PeftModel`"):
            interpolate_weights(None, model, 0.3, **options)
    assert interpolate_adapter(pristine(llama), model, 0.3).report.alphas() == dict.fromkeys(
        [f"model.layers.{index}.self_attn.v_proj.weight" for index in (0, 1, 2)], 0.3
    )


def test_the_report_says_how() -> None:
    model = adapted(
        pristine(roberta),
        peft.IA3Config(
            target_modules=["query", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS"
        ),
    )
    report = AdapterInterpolation(model).report
    reasons = {decision.name: decision.reason for decision in report.decisions}
    assert reasons["roberta.encoder.layer.0.attention.self.query.weight"] == "ia3_l, against 1; the bias with it"
    assert reasons["roberta.encoder.layer.0.output.dense.weight"] == "ia3_l, against 1"
    assert reasons["classifier.out_proj.bias"] == "against its original"
    assert set(report.alphas().values()) == {1.0}
    model = adapted(pristine(llama), lora("v_proj", "embed_tokens", trainable_token_indices={"lm_head": [1, 2]}))
    reasons = {decision.name: decision.reason for decision in AdapterInterpolation(model).report.decisions}
    assert reasons["model.layers.0.self_attn.v_proj.weight"] == "scaled lora_B"
    assert reasons["model.embed_tokens.weight"] == "scaled lora_embedding_A"
    assert reasons["lm_head.weight"] == "2 rows, against the original ones"


def test_adapters_in_bfloat16_are_computed_in_float32_and_cast_once() -> None:
    set_seed(7)
    model = with_adapter(bert().bfloat16(), lora(*LINEARS, task_type="SEQ_CLS"), autocast_adapter_dtype=False)
    move(model)
    trained = state(model)
    with AdapterInterpolation(model) as live:
        for alpha in (0.9, 0.1, 0.3):  # one after the other
            live.set_alpha(alpha)
        for pair in scaled_parameters(model):
            assert pair.parameter.dtype == torch.bfloat16
        name = "base_model.model.bert.pooler.dense.lora_B.default.weight"
        exact = 0.3 * trained[name].float()
        assert torch.allclose(model.state_dict()[name].float(), exact, rtol=2**-8, atol=0)
        live.set_alpha(1.0)
        assert same_weights(state(model), trained)
        live.set_alpha(0.0)
        plain = peft_free_copy(model)
        assert torch.equal(outputs(model), outputs(plain))
    assert same_weights(state(model), trained)


def peft_free_copy(model: Any) -> nn.Module:
    """M₀, with its original head."""
    copied = copy.deepcopy(model)
    with copied.disable_adapter():
        plain = copy.deepcopy(copied)
    plain.base_model.disable_adapter_layers()
    return plain


def test_an_interpolation_is_opened_for_whichever_model() -> None:
    model = adapted(pristine(llama), lora("v_proj"))
    assert isinstance(open_interpolation(None, model), AdapterInterpolation)
    live = open_interpolation(pristine(llama), pristine(llama), finetuned_only=["lm_head.*"], extrapolate=True)
    assert isinstance(live, LiveInterpolation)
    live.set_alpha(1.5)
    with pytest.raises(TypeError, match="`base` must be given: only for a `PeftModel`"):
        open_interpolation(None, pristine(llama))
    dora = adapted(pristine(llama), lora("v_proj", use_dora=True))
    with pytest.raises(ValueError, match=r"got DoRA\. Merge it first"):
        open_interpolation(pristine(llama), dora)


@pytest.mark.parametrize(
    "case",
    [
        "LoRA and a head",
        "LoRA on embeddings",
        "LoRA and tied rows",
        "LoRA with patterns",
        "MiCA",
        "AdaLoRA",
        "LoHa",
        "LoKr in four factors",
        "VeRA",
        "FourierFT",
        "IA3 of outputs and a head",
        "LN tuning",
    ],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Unsupported layer type")
def test_a_saved_adapter_is_the_interpolation(case: str, tmp_path: Path) -> None:
    make, config = SCALED[case]
    pristine(make).float().save_pretrained(tmp_path / "base")
    model_class = type(pristine(make))
    model = with_adapter(model_class.from_pretrained(tmp_path / "base"), config())
    move(model)
    interpolate_weights(None, model, 0.3)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert distance(outputs(again.eval()), outputs(model)) < 1e-6


# Which adapters can be scaled, and which leave M₀ in the model.


def on_llama(config: Any) -> Any:
    return peft.get_peft_model(make_model("llama", "CAUSAL_LM"), config)


def lora_on_values(**options: Any) -> Any:
    return peft.LoraConfig(target_modules=["v_proj"], r=2, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (lora_on_values(), ("LORA", True, True)),
        (lora_on_values(bias="lora_only"), ("LORA", True, False)),
        (lora_on_values(use_dora=True), ("DoRA", False, True)),
        (lora_on_values(use_dora=True, bias="all"), ("DoRA", False, False)),
        (lora_on_values(init_lora_weights="pissa"), ("LORA with init_lora_weights='pissa'", False, False)),
        (peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]), ("IA3", True, True)),
        (peft.OFTConfig(target_modules=["v_proj"], oft_block_size=4, r=0), ("OFT", False, True)),
        (peft.HRAConfig(target_modules=["v_proj"], r=2), ("HRA", False, False)),
    ],
)
def test_capabilities_go_by_kind_beginning_and_biases(config: Any, expected: tuple[str, bool, bool]) -> None:
    assert tuple(adapter_capabilities(on_llama(config))) == expected


@pytest.mark.parametrize("init", [init for init in KEEPING_INITS if isinstance(init, bool | str) and init != "eva"])
def test_beginnings_that_keep_the_base_leave_it_as_it_was(init: Any) -> None:
    before = make_model("llama", "CAUSAL_LM").model.layers[0].self_attn.v_proj.weight
    model = on_llama(lora_on_values(init_lora_weights=init))
    after = model.get_base_model().model.layers[0].self_attn.v_proj.base_layer.weight
    assert before.equal(after)
    assert adapter_capabilities(model).is_scalable


def test_every_kind_that_is_scaled_is_one_of_peft() -> None:
    assert FACTORS.keys() <= {kind.value for kind in peft.PeftType}


def test_plain_models_and_prompts_are_told_apart() -> None:
    assert not is_peft_model(nn.Linear(1, 1))
    assert is_peft_model(on_llama(lora_on_values()))
    with pytest.raises(TypeError, match="must be a PeftModel, got Linear"):
        adapter_capabilities(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="must change weights, got PREFIX_TUNING"):
        refuse_prompts(peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
