"""Which runs there are, in their order, and where their results are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from effect.pairs import PAIRS

ALPHAS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
"""The sweep's."""
SHORT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Those of short runs, as in `hf_interp.mixture_search`."""
SHARES = (4, 2)
"""Short runs are as long as full ones, divided by these."""
SEEDS = (0, 1)
DEFAULT_PAIRS = ("sentiment-finance", "lm-medicine", "lm-law", "ner-tweets")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one file of results is about.

    Args:
        pair: key of `PAIRS`.
        kind: "base" for M₀, "mixture" for a run at a constant α, "matched" for one with as much less data as it has
            fewer steps, "adapters" and "weights" for both ends and what is between them.
        steps: optimizer steps, of each end.
        alpha: of "mixture" and "matched", else 0.
        seed: of the order and of dropout.
    """

    pair: str
    kind: str
    steps: int
    alpha: float = 0.0
    seed: int = 0

    def path(self, results: Path) -> Path:
        """The file of its results."""
        return results / self.pair / f"{self.kind}_{self.steps}_{self.alpha:g}_{self.seed}.json"


def plan(pairs: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """All runs: seed by seed, pair by pair; within these first what the cheap ways need."""
    for seed in seeds:
        for pair in pairs:
            steps = PAIRS[pair].steps
            if seed == seeds[0]:
                yield Run(pair=pair, kind="base", steps=0)
            short, longer = (
                [Run(pair=pair, kind="mixture", steps=steps // share, alpha=alpha, seed=seed) for alpha in SHORT_ALPHAS]
                for share in SHARES
            )
            yield from short
            yield from (replace(run, kind="matched") for run in short)
            for share in (1, SHARES[0]):
                yield Run(pair=pair, kind="adapters", steps=steps // share, seed=seed)
            for alpha in ALPHAS:
                yield Run(pair=pair, kind="mixture", steps=steps, alpha=alpha, seed=seed)
            yield from longer
            yield Run(pair=pair, kind="weights", steps=steps, seed=seed)
