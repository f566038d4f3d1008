"""What becomes of each tensor, decided on names, shapes and types."""

from typing import Any

import pytest
import torch

from hf_interp.weights.matching import InterpolationReport, TensorDecision, TensorInfo, decide, match_names

F32, BF16, I64, U8 = torch.float32, torch.bfloat16, torch.int64, torch.uint8


def infos(**shapes: Any) -> dict[str, TensorInfo]:
    """Tensors by name (with __ for the dot): a shape, or a shape and a type."""
    found = {}
    for name, value in shapes.items():
        shape, dtype = value if isinstance(value[0], tuple) else (value, F32)
        found[name.replace("__", ".")] = TensorInfo(shape, dtype)
    return found


def decide_all(base: dict[str, TensorInfo], finetuned: dict[str, TensorInfo], **kwargs: Any) -> list[TensorDecision]:
    return decide(base, finetuned, 0.5, base_names=match_names(base, finetuned), **kwargs)


def actions(decisions: list[TensorDecision]) -> dict[str, str]:
    return {decision.name: decision.action for decision in decisions}


# Names.


@pytest.mark.parametrize(
    ("base", "finetuned", "expected"),
    [
        (["a.w", "b.w"], ["a.w", "b.w"], {"a.w": "a.w", "b.w": "b.w"}),
        (["a.w"], ["a.w", "head.w"], {"a.w": "a.w"}),
        (
            ["x.LayerNorm.gamma", "x.LayerNorm.beta"],
            ["x.LayerNorm.weight"],
            {"x.LayerNorm.weight": "x.LayerNorm.gamma"},
        ),
        (["e.w", "l.w"], ["bert.e.w", "bert.l.w", "cls.w"], {"bert.e.w": "e.w", "bert.l.w": "l.w"}),
        (["model.e.w", "lm_head.w"], ["e.w"], {"e.w": "model.e.w"}),
        (["model.e.w", "lm_head.w"], ["e.w", "lm_head.w"], {"e.w": "model.e.w", "lm_head.w": "lm_head.w"}),
        (["module.a.w", "module.b.w"], ["a.w", "b.w"], {"a.w": "module.a.w", "b.w": "module.b.w"}),
        (["a.w"], ["_orig_mod.a.w"], {"_orig_mod.a.w": "a.w"}),
        (["module._orig_mod.a.w"], ["bert.a.w"], {"bert.a.w": "module._orig_mod.a.w"}),
        (["module.a.w", "b.w"], ["module.a.w"], {"module.a.w": "module.a.w"}),
        (["a.w"], ["b.w"], {}),
    ],
)
def test_names_are_matched(base: list[str], finetuned: list[str], expected: dict[str, str]) -> None:
    assert match_names(base, finetuned) == expected


# Decisions.


def test_what_both_have_is_interpolated_with_its_alpha() -> None:
    base = infos(a__w=(2, 3), b__w=((4,), BF16))
    found = decide(base, base, {"a*": 0.25, "*": 1.0}, base_names={"a.w": "a.w", "b.w": "b.w"})
    assert found == [
        TensorDecision(name="a.w", action="interpolated", base_name="a.w", alpha=0.25),
        TensorDecision(name="b.w", action="interpolated", base_name="b.w", alpha=1.0),
    ]


def test_a_new_head_comes_from_the_finetuned_and_an_old_one_is_dropped() -> None:
    base, finetuned = infos(bert__e=(2,), cls__w=(3,)), infos(bert__e=(2,), classifier__w=(4,))
    found = decide_all(base, finetuned)
    assert actions(found) == {"bert.e": "interpolated", "classifier.w": "finetuned", "cls.w": "dropped"}
    assert [decision.reason for decision in found[1:]] == ["M₀ has no such tensor", "M_θ has no such tensor"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("e.position_ids", I64), ("h.0.attn.bias", torch.bool), ("rotary_emb.inv_freq", F32), ("x.cos_cached", F32)],
)
def test_what_is_no_weight_is_copied(name: str, dtype: torch.dtype) -> None:
    base = {"w": TensorInfo((2,), F32), name: TensorInfo((1, 4), dtype)}
    assert actions(decide_all(base, base)) == {"w": "interpolated", name: "copied"}


def test_a_table_of_another_length_is_copied() -> None:
    base = infos(w=(2,), e__position_ids=((1, 4), I64))
    finetuned = infos(w=(2,), e__position_ids=((1, 8), I64))
    assert actions(decide_all(base, finetuned)) == {"w": "interpolated", "e.position_ids": "copied"}


@pytest.mark.parametrize(("before", "after", "what"), [(5, 7, "2 new ones from M_θ"), (7, 5, "2 of M₀ dropped")])
def test_common_rows_of_a_vocabulary_are_interpolated(before: int, after: int, what: str) -> None:
    base, finetuned = (
        infos(
            embed_tokens__weight=(size, 3),
            lm_head__weight=(size, 3),
            lm_head__bias=(size,),
            final_logits_bias=(1, size),
        )
        for size in (before, after)
    )
    found = decide_all(base, finetuned)
    assert [decision.vocabulary_axis for decision in found] == [0, 0, 0, 1]
    assert {decision.reason for decision in found} == {f"5 rows interpolated, {what}"}
    assert {decision.action for decision in found} == {"interpolated"}


def test_a_head_of_another_shape_comes_from_the_finetuned() -> None:
    found = decide_all(infos(w=(2,), classifier__weight=(2, 4)), infos(w=(2,), classifier__weight=(3, 4)))
    assert actions(found) == {"w": "interpolated", "classifier.weight": "finetuned"}
    assert found[1].reason == "a head of another shape: (2, 4) in M₀, (3, 4) in M_θ"


def test_names_can_be_taken_from_the_finetuned_on_request() -> None:
    base = infos(bert__e=(2,), classifier__w=(3,))
    found = decide_all(base, base, finetuned_only=["classifier.*"])
    assert actions(found) == {"bert.e": "interpolated", "classifier.w": "finetuned"}


# Refusals.


def test_layers_of_one_side_alone_are_another_architecture() -> None:
    two, three = infos(h__0__w=(2,), h__1__w=(2,)), infos(h__0__w=(2,), h__1__w=(2,), h__2__w=(2,))
    with pytest.raises(ValueError, match=r"M_θ has layers' tensors that M₀ lacks: h.2.w \(2,\)\."):
        decide_all(two, three)
    with pytest.raises(ValueError, match=r"M₀ has layers' tensors that M_θ lacks: h.2.w \(2,\)\."):
        decide_all(three, two)


def test_a_head_may_have_layers_of_its_own() -> None:
    found = decide_all(infos(h__0__w=(2,)), infos(h__0__w=(2,), classifier__layers__0__w=(2,)))
    assert actions(found) == {"h.0.w": "interpolated", "classifier.layers.0.w": "finetuned"}


def test_other_shapes_are_named_with_both() -> None:
    base, finetuned = (
        infos(a__w=(2, 3), b__w=(1,), c__w=(1,), d__w=(1,)),
        infos(a__w=(3, 2), b__w=(2,), c__w=(2,), d__w=(2,)),
    )
    message = r"a\.w \(2, 3\) in M₀, \(3, 2\) in M_θ, b\.w \(1,\) in M₀, \(2,\) in M_θ, c\.w .* and 1 more\."
    with pytest.raises(ValueError, match=message):
        decide_all(base, finetuned)


def test_a_vocabulary_is_only_what_an_embedding_shows() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: projection\.weight"):
        decide_all(infos(a=(1,), projection__weight=(5, 3)), infos(a=(1,), projection__weight=(7, 3)))


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="no tensor's name in common: a in M₀, b, c in M_θ"):
        decide_all(infos(a=(1,)), infos(b=(1,), c=(1,)))


def test_nothing_to_interpolate_is_refused() -> None:
    with pytest.raises(ValueError, match="Nothing is left to interpolate"):
        decide_all(infos(ids=((2,), I64)), infos(ids=((2,), I64)))


def test_a_pattern_for_the_finetuned_must_match() -> None:
    with pytest.raises(ValueError, match="`finetuned_only` has a pattern that no tensor matches: 'score"):
        decide_all(infos(a=(1,)), infos(a=(1,)), finetuned_only=["score.*"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("h.0.q.qweight", torch.int32),
        ("h.0.q.weight", U8),
        ("h.0.q.weight", torch.int8),
        ("h.0.q.weight", torch.float8_e4m3fn),
        ("h.0.q.weight_scale_inv", F32),
        ("h.0.experts.gate_up_proj_blocks", U8),
        ("h.0.q.SCB", F32),
    ],
)
@pytest.mark.parametrize("side", ["M₀", "M_θ"])
def test_packed_weights_are_refused(name: str, dtype: torch.dtype, side: str) -> None:
    plain = {"w": TensorInfo((2,), F32)}
    packed = {**plain, name: TensorInfo((2,), dtype)}
    pair = (packed, plain) if side == "M₀" else (plain, packed)
    with pytest.raises(ValueError, match=f"{side} must have plain floating-point weights, but '{name}'.*Dequantise"):
        decide_all(*pair)


# Reports.


def test_a_report_says_what_and_why() -> None:
    base = infos(bert__e=(2,), cls__w=(3,), embed_tokens__weight=(4, 2))
    finetuned = infos(bert__e=(2,), bert__ids=((3,), I64), classifier__w=(4,), embed_tokens__weight=(5, 2))
    report = InterpolationReport(decisions=decide_all(base, finetuned), notes=["a note"])
    assert str(report).splitlines() == [
        "interpolated: 2 tensors, α 0.5",
        "from M_θ alone: 2 tensors (M₀ has no such tensor): bert.ids, classifier.w",
        "dropped: 1 tensor (M_θ has no such tensor): cls.w",
        "vocabulary: embed_tokens.weight: 4 rows interpolated, 1 new ones from M_θ",
        "a note",
    ]
    assert report.names("dropped") == ["cls.w"]
    assert report.alphas() == {"bert.e": 0.5, "embed_tokens.weight": 0.5}
    assert report.to_dict()["decisions"][0]["action"] == "interpolated"
