"""A plan in words and numbers: which steps tell its schedule, what runs out, and what a user should know of it.

Only NumPy is imported here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_interp.mixture.apportionment import ALPHA_BITS, CorpusSpec
from hf_interp.mixture.permutations import IntArray

MANY_PASSES = 4  # repeating data up to about four times costs little (Muennighoff et al. 2023, arXiv 2305.16264)


def landmarks(alpha_units: IntArray, start_step: int, most: int) -> list[int]:
    """Return the steps that tell a schedule: both ends, the borders of phases, even points between.

    Args:
        alpha_units: α of every step.
        start_step: the first step that counts.
        most: up to half as many jumps are told one by one.

    >>> landmarks(np.array([0, 0, 0, 5, 5, 5]), 0, most=12)
    [0, 2, 3, 5]
    """
    moves = np.flatnonzero(np.diff(alpha_units[start_step:])) + start_step
    marks = {start_step, len(alpha_units) - 1}
    if moves.size:
        marks |= {int(moves[0]), int(moves[-1]) + 1}
        jumps = {int(step) + offset for step in moves for offset in (0, 1)} if moves.size <= most // 2 else set()
        marks |= jumps or {int(step) for step in np.linspace(moves[0], moves[-1] + 1, 5).round()}
    return sorted(marks)


def step_that_draws(count: int, drawn_before: Callable[[int], int], max_steps: int) -> int | None:
    """Return the step that draws example number `count` of a corpus; `None` if none does.

    Args:
        count: how many examples.
        drawn_before: how many are drawn in all steps before one.
        max_steps: of the run.

    >>> step_that_draws(5, lambda step: 2 * step, 10)
    2
    """
    if drawn_before(max_steps) < count:
        return None
    low, high = 0, max_steps  # the smallest number of steps after which so many are drawn
    while low < high:
        middle = (low + high) // 2
        if drawn_before(middle) >= count:
            high = middle
        else:
            low = middle + 1
    return low - 1


def corpus_warnings(corpus: CorpusSpec, drawn: int, largest_count: float, batch_size: int) -> list[str]:
    """Return what a user should know of a corpus before the run; empty if all is well.

    Args:
        corpus: what the plan knows of it.
        drawn: examples in the whole run.
        largest_count: examples expected in a global batch, at the most.
        batch_size: the global batch.
    """
    found = []
    passes = drawn / corpus.num_examples if corpus.num_examples else 0.0
    if drawn == 0:
        found.append(f"Corpus {corpus.name!r} is never drawn. Raise its share, or move α, or leave it out.")
    if passes > MANY_PASSES:
        found.append(
            f"Corpus {corpus.name!r} is read {passes:.1f} times; beyond about {MANY_PASSES} passes a model gains "
            "little and begins to memorise. Lower its share of the run, or take fewer steps."
        )
    if 0 < largest_count < 0.999:  # not 1, which a rounded share or α may miss
        found.append(
            f"A global batch of {batch_size} holds {largest_count:.2g} examples of corpus {corpus.name!r} at the most, "
            "so that many steps hold none. Raise the batch size or accumulate gradients to have it in every step."
        )
    return found


def largest_count(sums: IntArray, corpus: CorpusSpec, share_units: int, batch_size: int) -> float:
    """Return how many examples of a corpus a global batch is expected to hold, at the most.

    Args:
        sums: sums of the share of domain examples before every step, in units of 2⁻³⁰.
        corpus: what the plan knows of it.
        share_units: its share of its side, in the same units.
        batch_size: the global batch.
    """
    domain = np.diff(sums)
    units = domain if corpus.side == "domain" else (1 << ALPHA_BITS) - domain
    return float(units.max()) / (1 << ALPHA_BITS) * share_units / (1 << ALPHA_BITS) * batch_size


def corpus_summary(
    corpus: CorpusSpec, share_units: int, drawn_at_start: int, drawn: int, exhausted_at: int | None
) -> dict[str, Any]:
    """Return what is drawn of a corpus, ready for JSON."""
    return {
        "name": corpus.name,
        "side": corpus.side,
        "num_examples": corpus.num_examples,
        "share": share_units / (1 << ALPHA_BITS),
        "drawn_at_start": drawn_at_start,
        "drawn": drawn,
        "passes": drawn / corpus.num_examples if corpus.num_examples else None,
        "exhausted_at": exhausted_at,
    }


def domain_share(corpora: Sequence[dict[str, Any]], num_slots: int) -> float:
    """Return the share of domain examples among some slots, from the summaries of all corpora."""
    drawn = [each["drawn"] - each["drawn_at_start"] for each in corpora if each["side"] == "domain"]
    return float(sum(drawn) / num_slots)
