"""Corpora whose groups are read equally often: each group becomes a corpus of its own, with an equal share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.corpus import Corpus
from hf_interp.tasks.recipe import GROUP, SELF, Recipe
from hf_interp.tasks.task import get_task

MOST_GROUPS = 100


def check_balance(recipe: Recipe) -> None:
    """Refuse `balance_by` of what is no training corpus, or of a stream or packed texts, whose groups are not known."""
    for group, name, corpus in recipe.entries():
        own = recipe.for_objective(corpus.objective)
        task = get_task(own.task)
        is_packed = task.is_packed and own.packing and "text" in task.columns(own, corpus)
        if corpus.balance_by and (group != "corpora" or corpus.streaming or is_packed or corpus.path == SELF):
            raise ValueError(
                f"`{group}.{name}.balance_by` must be of a training corpus, and of no stream, no packed texts and "
                "nothing that M₀ makes. Leave it out."
            )


def balance(corpora: Sequence[Corpus], columns: Mapping[str, str | None]) -> list[Corpus]:
    """Return corpora, of which those that have a column of groups are one for each group.

    Args:
        corpora: their columns of groups are kept as `GROUP` says.
        columns: those, by corpus.

    Raises:
        ValueError: for rows without a group, or a column that has one group, or too many.
    """
    sides = {side: [corpus for corpus in corpora if corpus.side == side] for side in SIDES}
    by_length = [
        side
        for side, members in sides.items()
        if any(columns[corpus.name] for corpus in members)
        and not any(corpus.is_stream or corpus.share is not None for corpus in members)
    ]
    found = []
    for corpus in corpora:
        if corpus.side in by_length:
            rows = sum(len(each.dataset) for each in sides[corpus.side])
            corpus = replace(corpus, share=len(corpus.dataset) / rows)
        column = columns[corpus.name]
        found += [corpus] if column is None else _by_group(corpus, column)
    return found


def _by_group(corpus: Corpus, column: str) -> list[Corpus]:
    """Return a corpus for every group, called as both are."""
    cells = corpus.dataset[f"{GROUP}{column}"]
    groups = np.array(["" if cell is None or isinstance(cell, list) else str(cell) for cell in cells])
    sizes = Counter(groups.tolist())
    if "" in sizes or not 2 <= len(sizes) <= MOST_GROUPS:
        what = f"{sizes['']:,} rows without one value" if "" in sizes else f"{len(sizes):,} different values"
        raise ValueError(
            f"`balance_by` of corpus {corpus.name!r} must be a column with 2 to {MOST_GROUPS} values, one in each row, "
            f"got {column!r} with {what}. Take another column, or drop rows by `where`."
        )
    share = 1.0 if corpus.share is None else corpus.share
    parts = len(sizes)
    equal = {side: each / parts for side, each in share.items()} if isinstance(share, Mapping) else share / parts
    rows = corpus.dataset.remove_columns(f"{GROUP}{column}")
    return [
        replace(
            corpus,
            name=f"{corpus.name}/{group}",
            dataset=rows.select(np.flatnonzero(groups == group)),
            share=equal,
        )
        for group in sorted(sizes)
    ]
