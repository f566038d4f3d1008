"""Shares of a side: units, Huffman trees, what a mixture by tokens asks of them."""

from typing import Any

import numpy as np
import pytest

from hf_interp.mixture.apportionment import (
    ALPHA_BITS,
    CorpusSpec,
    ShareTree,
    Unit,
    check_corpora,
    example_alpha,
    share_tree,
    share_units,
)
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import constant

FULL = 1 << ALPHA_BITS


def corpus(name: str, side: Any = "general", num_examples: int | None = 100, **kwargs: Any) -> CorpusSpec:
    return CorpusSpec(name=name, side=side, num_examples=num_examples, **kwargs)


def depths(tree: ShareTree | None, depth: int = 0) -> dict[int, int]:
    """How deep every corpus lies."""
    assert tree is not None
    if tree.left is None or tree.right is None:
        return {tree.corpus: depth}
    return {**depths(tree.left, depth + 1), **depths(tree.right, depth + 1)}


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([5], {0: 0}),
        ([5, 5], {0: 1, 1: 1}),
        ([1, 1, 2], {0: 2, 1: 2, 2: 1}),
        ([8, 4, 2, 1, 1], {0: 1, 1: 2, 2: 3, 3: 4, 4: 4}),
        ([1, 1, 1, 1], {0: 2, 1: 2, 2: 2, 3: 2}),
        ([0, 0, 3], {0: 2, 1: 2, 2: 1}),
        ([0, 0], {0: 1, 1: 1}),
    ],
)
def test_small_shares_lie_deep(units: list[int], expected: dict[int, int]) -> None:
    assert depths(share_tree(units, range(len(units)))) == expected


def test_a_tree_holds_only_the_corpora_of_its_side() -> None:
    assert depths(share_tree([1, 2, 3, 4], [1, 3])) == {1: 1, 3: 1}
    assert share_tree([1, 2], []) is None


@pytest.mark.parametrize(
    ("units", "total", "expected"),
    [
        ([1, 1], 7, [3, 4]),
        ([1, 3], 8, [2, 6]),
        ([1, 3], 2, [0, 2]),
        ([0, 3], 9, [0, 9]),
        ([0, 0, 1], 9, [0, 0, 9]),
        ([FULL // 3, FULL // 3, FULL // 3], 3 * 10**12, [10**12] * 3),
    ],
)
def test_slots_are_dealt_down_the_tree(units: list[int], total: int, expected: list[int]) -> None:
    counts = np.zeros((2, len(units)), np.int64)
    tree = share_tree(units, range(len(units)))
    assert tree is not None
    tree.apportion(np.array([0, total]), counts)
    assert not counts[0].any()
    assert counts[1].sum() == total
    assert sorted(counts[1].tolist()) == sorted(expected)


@pytest.mark.parametrize("unit", ["examples", "tokens"])
@pytest.mark.parametrize(
    ("corpora", "expected"),
    [
        ([corpus("a", mean_tokens=5.0)], [FULL]),
        ([corpus("a", mean_tokens=5.0), corpus("b", "domain", mean_tokens=7.0)], [FULL, FULL]),
        # without shares all are passed through at the same pace, in either unit
        ([corpus("a", mean_tokens=5.0), corpus("b", num_examples=300, mean_tokens=50.0)], [FULL // 4, 3 * FULL // 4]),
    ],
)
def test_shares_without_numbers_follow_the_lengths(corpora: list[CorpusSpec], expected: list[int], unit: Unit) -> None:
    assert share_units(corpora, unit) == expected


def test_shares_of_tokens_are_corrected_by_the_lengths() -> None:
    corpora = [corpus("a", share=0.5, mean_tokens=10.0), corpus("b", share=0.5, mean_tokens=30.0)]
    assert share_units(corpora, "tokens") == [3 * FULL // 4, FULL // 4]
    assert share_units(corpora, "examples") == [FULL // 2, FULL // 2]


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_a_positive_share_never_rounds_to_nothing_and_none_stays_none(unit: Unit) -> None:
    corpora = [
        corpus(name, share=share, mean_tokens=4.0) for name, share in (("a", 1e-15), ("b", 0.0), ("c", 1 - 1e-15))
    ]
    assert share_units(corpora, unit) == [1, 0, FULL]


def test_alpha_of_tokens_is_exact_at_its_ends_and_follows_the_lengths_between() -> None:
    corpora = [corpus("a", mean_tokens=10.0), corpus("b", "domain", mean_tokens=30.0)]
    alpha = np.array([0, FULL // 2, FULL * 3 // 4, FULL])
    assert example_alpha(alpha, corpora, [FULL, FULL]).tolist() == [0, FULL // 4, FULL // 2, FULL]


def test_alpha_of_tokens_uses_the_mean_length_of_a_side() -> None:
    corpora = [
        corpus("a", share=0.5, mean_tokens=10.0),
        corpus("b", share=0.5, mean_tokens=30.0),
        corpus("c", "domain", mean_tokens=15.0),
    ]
    units = share_units(corpora, "tokens")  # three of a for one of b: 15 tokens in the mean
    assert example_alpha(np.array([FULL // 2, FULL // 8]), corpora, units).tolist() == [FULL // 2, FULL // 8]


def test_alpha_of_tokens_needs_no_corpus_on_the_other_side() -> None:
    assert example_alpha(np.array([0]), [corpus("a", mean_tokens=9.0)], [FULL]).tolist() == [0]
    assert example_alpha(np.array([FULL]), [corpus("a", "domain", mean_tokens=9.0)], [FULL]).tolist() == [FULL]


@pytest.mark.parametrize(
    ("kwargs", "unit", "message"),
    [
        ({}, "words", "must be 'examples' or 'tokens', got 'words'"),
        ({}, "tokens", "by tokens must know the mean length of corpus 'a'.*`mean_tokens`.*`input_ids`"),
        ({"mean_tokens": 0.0}, "examples", "`mean_tokens` of corpus 'a' must be positive, got 0.0"),
        ({"mean_tokens": -1.0}, "tokens", "`mean_tokens` of corpus 'a' must be positive, got -1.0"),
        ({"mean_tokens": float("nan")}, "tokens", "`mean_tokens` of corpus 'a' must be positive, got nan"),
    ],
)
def test_units_and_lengths_that_do_not_fit_are_refused(kwargs: dict[str, Any], unit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_corpora([corpus("a", **kwargs)], unit)
    assert check_corpora([corpus("a", mean_tokens=0.1)], "tokens") == (corpus("a", mean_tokens=0.1),)


def test_sixty_four_corpora_keep_to_their_targets_whatever_their_shares() -> None:
    shares = [1e-4] * 40 + [0.0] * 20 + [0.3, 0.2, 0.1, 0.4 - 40e-4]
    corpora = [corpus(f"c{index}", "domain", share=share) for index, share in enumerate(shares)]
    plan = MixturePlan(corpora, alpha_schedule=constant(1.0), batch_size=32, max_steps=2000)
    drawn = plan.drawn_before(range(2001))
    due = 32 * np.arange(2001)[:, None] * np.array(shares)[None, :]
    assert np.abs(drawn - due).max() <= 2 + 1e-3
    assert (np.diff(drawn, axis=0).sum(axis=1) == 32).all()
    assert (drawn[-1, :40] >= 4).all()  # 6.4 are due
    assert not drawn[-1, 40:60].any()
    held = np.bincount(plan.locate(range(len(plan))).corpus, minlength=64)
    assert held.tolist() == drawn[-1].tolist()
