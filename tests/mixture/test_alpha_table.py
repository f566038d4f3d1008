"""α of every step in blocks: against the whole table at once."""

import hashlib
from typing import Any

import numpy as np
import pytest

from hf_interp.mixture.alpha_table import BLOCK_STEPS, AlphaTable, to_units
from hf_interp.mixture.schedules import constant, cosine, linear, steps

LENGTHS = (1, 2, 1000, BLOCK_STEPS, BLOCK_STEPS + 1, 3 * BLOCK_STEPS + 17)


def whole_table(schedule: Any, length: int) -> Any:
    return to_units([schedule(step / max(length - 1, 1)) for step in range(length)], 0, length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("schedule", [constant(1 / 3), linear(), cosine(0.9, 0.1), steps([0.0, 1.0, 0.25])])
def test_blocks_hold_the_whole_table(schedule: Any, length: int) -> None:
    whole, table = whole_table(schedule, length), AlphaTable.tabulate(schedule, length)
    sums = np.append(0, np.cumsum(whole))
    rng = np.random.default_rng(0)
    asked = np.unique(np.append(rng.integers(0, length + 1, 200), [0, length]))
    assert table.sums_before(asked).tolist() == sums[asked].tolist()
    assert [table[int(step)] for step in asked[:-1]] == whole[asked[:-1]].tolist()
    assert table.sha256() == hashlib.sha256(whole.astype("<i8").tobytes()).hexdigest()
    for first in {0, length // 2, length - 1}:
        assert np.concatenate([units for _, units in table.blocks(first)]).tolist() == whole[first:].tolist()
        assert table.extremes(first) == (whole[first:].min(), whole[first:].max())
    assert (AlphaTable(table.texts).sums_before(asked) == table.sums_before(asked)).all()


@pytest.mark.parametrize("count", [1, 5, BLOCK_STEPS + 9])
@pytest.mark.parametrize("first", [0, BLOCK_STEPS - 3, BLOCK_STEPS, 2 * BLOCK_STEPS + 1])
def test_a_part_is_replaced_and_the_rest_kept(first: int, count: int) -> None:
    length = 4 * BLOCK_STEPS
    table, expected = AlphaTable.tabulate(linear(), length), whole_table(linear(), length)
    before, units = table.sha256(), np.arange(count, dtype=np.int64) ** 2 % 2**30
    changed = table.replaced(first, units)
    expected[first : first + count] = units
    assert changed.sha256() == hashlib.sha256(expected.astype("<i8").tobytes()).hexdigest()
    assert changed.sums_before(np.array([length])).tolist() == [expected.sum()]
    assert table.sha256() == before


def test_what_is_summed_up_may_be_weighed() -> None:
    table = AlphaTable.tabulate(linear(), 11, lambda units: units // 2)
    expected = np.append(0, np.cumsum(whole_table(linear(), 11) // 2))
    assert table.sums_before(np.arange(12)).tolist() == expected.tolist()
    assert table.extremes(3) == (whole_table(linear(), 11)[3] // 2, 2**29)


@pytest.mark.parametrize("few", [2, 6])
def test_landmarks_over_blocks_are_those_of_the_whole_table(few: int) -> None:
    length = 3 * BLOCK_STEPS
    for schedule in (steps([0.0, 1.0]), steps([0.1, 0.2, 0.3]), linear(), steps([0, 1, 0, 1, 0, 1, 0, 1, 0])):
        moves = np.flatnonzero(np.diff(whole_table(schedule, length)))
        marks = {0, length - 1}
        if moves.size <= few:
            marks |= {int(step) + offset for step in moves for offset in (0, 1)}
        else:
            marks |= {int(step) for step in np.linspace(moves[0], moves[-1] + 1, 5).round()}
        assert AlphaTable.tabulate(schedule, length).landmarks(0, few) == sorted(marks)
