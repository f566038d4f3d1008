"""Permutations computed from a key, entry by entry: no index arrays are held, and no state.

A permutation of n things is a Feistel network over the digits of a number, walked along its cycle until the result is
below n (Black & Rogaway 2002); its round function is SplitMix64's finaliser. Everything is 64-bit integer arithmetic,
the same on every platform. Not for cryptography.
"""

import hashlib

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

FEISTEL_ROUNDS = 12  # with 8, permutations of 5 or 6 things are visibly uneven


def permute(position: IntArray, size: IntArray, key: npt.NDArray[np.uint64]) -> IntArray:
    """Return keyed permutations: entry i is `position[i]` after the permutation of range(size[i]) that `key[i]` picks.

    >>> size, key = np.full(5, 5), np.full(5, 7, np.uint64)
    >>> sorted(permute(np.arange(5), size, key).tolist())
    [0, 1, 2, 3, 4]
    """
    # The grid rows × columns covers range(size). The square root is rounded alike on every IEEE platform. An even
    # number of rows, because shifts along odd lengths alone make even permutations only.
    rows = 2 * np.ceil(np.sqrt(size) / 2).astype(np.int64)
    columns = -(-size // rows)
    result = _feistel(position, rows, columns, key)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # walk the cycle until back inside range(size)
        result[outside] = _feistel(result[outside], rows[outside], columns[outside], key[outside])
        outside = outside[result[outside] >= size[outside]]
    return result


def _feistel(value: IntArray, rows: IntArray, columns: IntArray, key: npt.NDArray[np.uint64]) -> IntArray:
    """Return keyed permutations of range(rows · columns): the two digits of `value` shift each other in turn."""
    left, right = np.divmod(value, columns)
    # Two bits are dropped: a sum beyond 2⁶³ would wrap around, and then two digits could shift to the same place.
    for turn in range(0, FEISTEL_ROUNDS, 2):
        left = (left + (splitmix64(right, key + np.uint64(turn)) >> np.uint64(2)).astype(np.int64)) % rows
        right = (right + (splitmix64(left, key + np.uint64(turn + 1)) >> np.uint64(2)).astype(np.int64)) % columns
    return left * columns + right


def batch_orders(key: int, steps: IntArray, batch_size: int) -> IntArray:
    """Return one permutation of range(batch_size) for each of `steps`: shape (num_steps, batch_size)."""
    step_keys = splitmix64(steps, key)[:, None]
    return np.argsort(splitmix64(np.arange(batch_size)[None, :], step_keys), axis=1)


def splitmix64(value: IntArray, key: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's finaliser (Steele, Lea & Flood 2014) over key + value·γ: a bijection for every key."""
    mixed = value.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(key, np.uint64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def derive_key(seed: int, purpose: str) -> int:
    """Return a 64-bit key; another seed or purpose, another key."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
