"""Which α a tensor gets."""

from typing import Any

import numpy as np
import pytest

from hf_interp.weights.alpha_spec import AlphaByDepth, check_alpha, find_layer, parse_alpha, resolve_alpha

BERT = [
    "bert.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.output.dense.weight",
    "bert.encoder.layer.1.output.dense.weight",
    "bert.encoder.layer.2.output.dense.weight",
    "bert.pooler.dense.weight",
    "classifier.weight",
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert.encoder.layer.11.attention.self.query.weight", ("bert.encoder.layer", 11)),
        ("model.layers.3.mlp.up_proj.weight", ("model.layers", 3)),
        ("transformer.h.0.attn.c_attn.weight", ("transformer.h", 0)),
        ("h.10.ln_1.bias", ("h", 10)),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", ("encoder.block", 2)),
        ("model.decoder.layers.1.fc1.weight", ("model.decoder.layers", 1)),
        ("transformer.blocks.7.norm.weight", ("transformer.blocks", 7)),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", None),
        ("bert.pooler.dense.weight", None),
        ("layer", None),
        ("path.1.weight", None),
    ],
)
def test_layers_are_found_by_name(name: str, expected: tuple[str, int] | None) -> None:
    assert find_layer(name) == expected


@pytest.mark.parametrize("alpha", [0, 1, 0.0, 0.25, 1.0, np.float32(0.5), np.float64(0.5)])
def test_one_number_is_for_all(alpha: Any) -> None:
    found = resolve_alpha(alpha, BERT)
    assert found == dict.fromkeys(BERT, float(alpha))
    assert all(type(value) is float for value in found.values())


def test_the_first_pattern_that_matches_counts() -> None:
    found = resolve_alpha({"*.layer.1.*": 1.0, "bert.encoder.*": 0.5, "*": 0.0}, BERT)
    assert list(found.values()) == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        ({"*.layer.*": 0.5}, ValueError, "no pattern for 'bert.embeddings.word_embeddings.weight'.*'\\*' for all the"),
        ({"bert.pooler.dense.wieght": 1.0, "*": 0.5}, ValueError, "Did you mean 'bert.pooler.dense.weight'"),
        ({"*": "half"}, TypeError, "`alpha` must be a number, got 'half'"),
        ({"*": 1.5}, ValueError, r"in \[0, 1\], got 1.5. Set `extrapolate`"),
        (AlphaByDepth(-0.1, 1.0), ValueError, "got -0.1"),
        (AlphaByDepth(0.0, 1.1), ValueError, "got 1.1"),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
        (float("nan"), ValueError, "must be finite, got nan"),
        (1.0000001, ValueError, "got 1.0000001"),
        (-1e-9, ValueError, "got -1e-09"),
    ],
)
def test_what_is_no_alpha_is_refused(alpha: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve_alpha(alpha, BERT)


@pytest.mark.parametrize("alpha", [-0.5, 1.5])
def test_beyond_the_ends_on_request(alpha: float) -> None:
    check_alpha(alpha, extrapolate=True)
    assert resolve_alpha(alpha, ["w"], extrapolate=True) == {"w": alpha}
    with pytest.raises(ValueError, match="finite"):
        check_alpha(float("inf"), extrapolate=True)


def test_by_depth_is_linear_in_the_layer() -> None:
    found = resolve_alpha(AlphaByDepth(0.25, 0.75), BERT)
    assert list(found.values()) == [0.25, 0.25, 0.5, 0.75, 0.25, 0.25]


def test_by_depth_is_exact_at_the_last_layer() -> None:
    names = [f"h.{index}.w" for index in range(12)]
    found = resolve_alpha(AlphaByDepth(0.1, 0.7), names)
    assert (found["h.0.w"], found["h.11.w"]) == (0.1, 0.7)


def test_every_stack_has_its_own_depth() -> None:
    found = resolve_alpha(AlphaByDepth(0.0, 1.0), ["encoder.block.1.w", "decoder.block.0.w", "decoder.block.2.w"])
    assert found == {"encoder.block.1.w": 1.0, "decoder.block.0.w": 0.0, "decoder.block.2.w": 1.0}


def test_the_only_layer_of_a_stack_is_its_last() -> None:
    assert resolve_alpha(AlphaByDepth(0.2, 0.9), ["h.0.w"]) == {"h.0.w": 0.9}


def test_by_depth_needs_layers() -> None:
    with pytest.raises(ValueError, match="needs a model with numbered layers"):
        resolve_alpha(AlphaByDepth(0.5), ["linear.weight"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.6", 0.6),
        ("1", 1.0),
        ("-0.5", -0.5),
        ("0.3..1", AlphaByDepth(0.3, 1.0)),
        ("0..0.5", AlphaByDepth(0.0, 0.5)),
        ("{'*.embeddings.*': 0.2, '*': 1}", {"*.embeddings.*": 0.2, "*": 1}),
    ],
)
def test_alpha_is_read_from_a_text(text: str, expected: Any) -> None:
    assert parse_alpha(text) == expected


@pytest.mark.parametrize("text", ["half", "", "0.1..", "..", "[0.1]", "{0: 1}", "{a: 1", "a..b"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number such as 0\.6, a range over depth"):
        parse_alpha(text)
