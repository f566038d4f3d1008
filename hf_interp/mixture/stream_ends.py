"""Streams that end before the plan does, found before anything is computed where that can be told."""

import math
from collections.abc import Sequence
from dataclasses import replace

import datasets

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.streams import StreamReader
from hf_interp.utils.errors import EndError

MOST_READ = 10_000
"""Examples that are read of a stream to see whether it has them; a stream that must have more is not looked at."""


def check_stream_ends(corpora: Sequence[Corpus], plan: MixturePlan, num_readers: int = 1) -> None:
    """Refuse streams that are empty for a reader, or that `max_passes` ends before the last step.

    What a plan must find in a stream is read, if it is little; of streams that are not of `datasets` the length counts.

    Raises:
        ValueError: naming the corpus, what it has and what the plan reads.
        ReadError: where a stream cannot be read.
    """
    for corpus, drawn in zip(corpora, plan.drawn_before(plan.max_steps).tolist(), strict=True):
        if not corpus.is_stream or not drawn:
            continue
        needed = max(math.ceil(drawn / (corpus.max_passes or math.inf)), min(num_readers, drawn))
        found = _count(corpus, needed)
        if found < needed:
            limit = "" if corpus.max_passes is None else f", at most {corpus.max_passes:g} times (`max_passes`)"
            raise ValueError(
                f"Corpus {corpus.name!r} is a stream that ends after {found} examples, but {num_readers} readers take "
                f"{drawn} of it{limit}. Take fewer steps or readers, lower its share, or raise `max_passes`."
            )


def _count(corpus: Corpus, needed: int) -> float:
    """Return how many examples a stream has, at least if it has fewer than are needed; infinity if that is unknown."""
    if not isinstance(corpus.dataset, datasets.IterableDataset):
        return len(corpus.dataset) if hasattr(corpus.dataset, "__len__") else math.inf
    if needed > MOST_READ:
        return math.inf
    reader = StreamReader(replace(corpus, max_passes=1))
    while reader.num_read < needed:
        try:
            reader.read(1)
        except EndError:  # at the end of the first pass
            break
    return reader.num_read
