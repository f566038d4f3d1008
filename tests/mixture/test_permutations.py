"""Keyed permutations: bijections, evenly spread, the same for ever."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest

from hf_interp.mixture.permutations import batch_orders, derive_key, permute, splitmix64

EXPECTED = [4, 3, 2, 0, 1, 5, 6, 7]
"""The permutation of eight things under key 5: another one would change what resumed runs read."""


@pytest.mark.parametrize("size", [*range(1, 71), 1009, 4096, 10_000])
def test_permute_is_a_bijection(size: int) -> None:
    for key in np.random.default_rng(size).integers(0, 2**64, 5, np.uint64):
        image = permute(np.arange(size), np.full(size, size), np.full(size, key))
        assert sorted(image.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [36, 50, 100, 1000])
def test_permute_is_a_bijection_where_the_hash_is_largest(size: int) -> None:
    # The hash is a bijection: going back from 2⁶⁴ − 1 gives the key under which the first round adds the most.
    key = 2**64 - 1
    for bits, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        before = key
        for _ in range(64 // bits):
            before = key ^ (before >> bits)
        key = before * pow(factor, -1, 2**64) % 2**64
    assert int(splitmix64(np.zeros(1, np.int64), key)[0]) == 2**64 - 1
    image = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    assert sorted(image.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [8, 9, 10, 15, 25, 36])
def test_half_of_all_orders_are_odd(size: int) -> None:
    keys = np.repeat(np.random.default_rng(1).integers(0, 2**64, 1000, np.uint64), size)
    images = permute(np.tile(np.arange(size), 1000), np.full(1000 * size, size), keys).reshape(-1, size)
    pairs = np.triu_indices(size, 1)
    odd = (images[:, pairs[0]] > images[:, pairs[1]]).sum(axis=1) % 2  # an odd number of pairs the wrong way round
    assert abs(odd.sum() - 500) < 95  # six standard deviations


def test_large_corpora_are_permuted() -> None:
    size = 10**12
    positions = np.concatenate([np.arange(1000), np.arange(size - 1000, size)])
    image = permute(positions, np.full(2000, size), np.full(2000, 5, np.uint64))
    assert len(set(image.tolist())) == 2000
    assert image.min() >= 0
    assert image.max() < size
    assert abs(image.mean() / size - 0.5) < 0.05  # 8 standard deviations


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_is_equally_likely(size: int) -> None:
    ways, times = math.factorial(size), 12_000
    keys = np.repeat(np.random.default_rng(0).integers(0, 2**64, times, np.uint64), size)
    images = permute(np.tile(np.arange(size), times), np.full(times * size, size), keys)
    counts = Counter(map(tuple, images.reshape(-1, size).tolist()))
    chi_square = sum((count - times / ways) ** 2 / (times / ways) for count in counts.values())
    assert len(counts) == ways
    assert chi_square < ways - 1 + 6 * math.sqrt(2 * (ways - 1))  # mean and six standard deviations


def test_batch_orders_are_permutations_of_their_own_step() -> None:
    orders = batch_orders(3, np.arange(50), 16)
    assert (np.sort(orders, axis=1) == np.arange(16)).all()
    assert len({tuple(order) for order in orders.tolist()}) == 50
    assert batch_orders(3, np.array([7]), 16).tolist() == orders[7:8].tolist()
    assert batch_orders(4, np.array([7]), 16).tolist() != orders[7:8].tolist()


def test_keys_differ_by_seed_and_purpose_and_never_change() -> None:
    assert len({derive_key(0, "a"), derive_key(1, "a"), derive_key(0, "b")}) == 3
    assert derive_key(0, "law") == int.from_bytes(hashlib.sha256(b"0/law").digest()[:8], "little")
    assert permute(np.arange(8), np.full(8, 8), np.full(8, 5, np.uint64)).tolist() == EXPECTED
