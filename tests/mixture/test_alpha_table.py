"""α of every step, worked out at once and in blocks: against asking for each step alone."""

import hashlib
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest

from hf_interp.mixture.alpha_table import BLOCK_CELLS, MOST_CELLS, AlphaTable, to_units
from hf_interp.mixture.schedules import (
    constant,
    cosine,
    exponential,
    get_alpha_schedule,
    linear,
    piecewise,
    polynomial,
    sigmoid,
    steps,
)

LENGTHS = (1, 2, 1000, BLOCK_CELLS, BLOCK_CELLS + 1, 3 * BLOCK_CELLS + 17)


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
    assert table.sha256 == hashlib.sha256(whole.astype("<i8").tobytes()).hexdigest()
    for first in {0, length // 2, length - 1}:
        assert [part.tolist() for part in table.cells(first)] == [list(range(first, length)), whole[first:].tolist()]
        assert table.extremes(first) == (whole[first:].min(), whole[first:].max())
    for again in (AlphaTable.from_texts(table.texts, length), pickle.loads(pickle.dumps(table))):
        assert (again.sums_before(asked) == table.sums_before(asked)).all()


@pytest.mark.parametrize("length", [7, 1000, BLOCK_CELLS + 1000])
@pytest.mark.parametrize(
    "schedule",
    [
        exponential(0.1, 0.9, rate=3.0),
        exponential(rate=-40.0),
        cosine(0.9, 0.1),
        sigmoid(0.9, 0.2, steepness=7.0, midpoint=0.4),
        sigmoid(steepness=1e-6),  # whose quotient is of small differences
        polynomial(power=1.7),
        steps([0.0, 1.0, 1 / 3], boundaries=[0.2, 0.6]),
        piecewise([(0.1, 0.3), (0.5, 0.9), (0.500001, 0.2)]),
        piecewise([(0.5, 0.25)]),
        constant(2**-31),  # half a unit
        get_alpha_schedule("cosine", max_steps=1000, initial_steps=0.2, target_steps=50),
        lambda progress: progress**3,
    ],
)
def test_alpha_worked_out_at_once_is_that_of_each_step_alone(schedule: Any, length: int) -> None:
    found = AlphaTable.tabulate(schedule, length).units
    asked = np.unique(np.linspace(0, length - 1, 2000).astype(int))
    alone = to_units([schedule(step / (length - 1)) for step in asked.tolist()], 0, length)
    assert (len(found), found[asked].tolist()) == (length, alone.tolist())


@pytest.mark.parametrize("schedule", [cosine(0.1, 0.8), lambda progress: progress**2], ids=["built in", "a function"])
def test_a_long_run_holds_alpha_for_some_steps_at_a_time(schedule: Any) -> None:
    length = 5 * 10**9 + 3
    tracemalloc.start()
    try:
        table = AlphaTable.tabulate(schedule, length, most=2**13)
        total = int(table.sums_before(np.array([length]))[0])
        stride, (_, peak) = table.stride, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (stride, len(table.units)) == (2**20, -(-length // 2**20))
    assert peak < 2**20  # 40 GB would be α of every step
    held = to_units([schedule(step / (length - 1)) for step in range(0, length, stride)], 0, length)
    assert table.units.tolist() == held.tolist()
    widths = np.append(np.full(len(table.units) - 1, stride), length - stride * (len(table.units) - 1))
    assert total == sum(int(units) * int(width) for units, width in zip(table.units, widths, strict=True))
    begin = stride * 701
    first, second = table.sums_before(np.array([begin, begin + 5]))
    assert second - first == 5 * table[begin] == 5 * table[begin + stride - 1] == 5 * int(table.units[701])
    again = AlphaTable.from_texts(table.texts, length, stride=stride)
    assert again.sums_before(np.array([length])).tolist() == [total]
    assert again.sha256 == table.sha256 != AlphaTable.tabulate(schedule, length + 1, most=2**13).sha256
    assert [table.cells(begin + 7)[0][index] for index in (0, 1)] == [begin + 7, begin + stride]


def test_alpha_of_a_run_of_a_million_steps_is_that_of_each() -> None:
    assert AlphaTable.tabulate(cosine(), MOST_CELLS).stride == 1
    assert AlphaTable.tabulate(cosine(), MOST_CELLS + 1).stride == 2


def test_the_jumps_of_a_long_run_are_at_the_borders_of_its_cells() -> None:
    table = AlphaTable.tabulate(steps([0.0, 1.0]), 2**22)
    assert table.landmarks(0, 6) == [0, 2**21 - 1, 2**21, 2**22 - 1]


@pytest.mark.parametrize("count", [1, 5, BLOCK_CELLS + 9])
@pytest.mark.parametrize("first", [0, BLOCK_CELLS - 3, BLOCK_CELLS, 2 * BLOCK_CELLS + 1])
def test_a_part_is_replaced_and_the_rest_kept(first: int, count: int) -> None:
    length = 4 * BLOCK_CELLS
    table, expected = AlphaTable.tabulate(linear(), length), whole_table(linear(), length)
    before, units = table.sha256, np.arange(count, dtype=np.int64) ** 2 % 2**30
    changed = table.replaced(first, units)
    expected[first : first + count] = units
    assert changed.sha256 == hashlib.sha256(expected.astype("<i8").tobytes()).hexdigest()
    assert changed.sums_before(np.array([length])).tolist() == [expected.sum()]
    assert table.sha256 == before


def test_what_is_summed_up_may_be_weighed() -> None:
    table = AlphaTable.tabulate(linear(), 11, lambda units: units // 2)
    expected = np.append(0, np.cumsum(whole_table(linear(), 11) // 2))
    assert table.sums_before(np.arange(12)).tolist() == expected.tolist()
    assert table.extremes(3) == (whole_table(linear(), 11)[3] // 2, 2**29)


@pytest.mark.parametrize("few", [2, 6])
def test_landmarks_over_blocks_are_those_of_the_whole_table(few: int) -> None:
    length = 3 * BLOCK_CELLS
    for schedule in (steps([0.0, 1.0]), steps([0.1, 0.2, 0.3]), linear(), steps([0, 1, 0, 1, 0, 1, 0, 1, 0])):
        moves = np.flatnonzero(np.diff(whole_table(schedule, length)))
        marks = {0, length - 1}
        if moves.size <= few:
            marks |= {int(step) + offset for step in moves for offset in (0, 1)}
        else:
            marks |= {int(step) for step in np.linspace(moves[0], moves[-1] + 1, 5).round()}
        assert AlphaTable.tabulate(schedule, length).landmarks(0, few) == sorted(marks)
