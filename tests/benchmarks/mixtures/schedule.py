"""Which runs there are, in their order, and where their results are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from effect.pairs import PAIRS

ALPHAS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
"""The sweep's."""
SHORT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Those of short runs, as in `hf_interp.commands.mixture_search`."""
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
    """All runs: first those of the package's search, then seed by seed and pair by pair the others."""
    for pair in pairs:
        yield Run(pair=pair, kind="base", steps=0)
        for seed in seeds:
            yield from _at_constant(pair, "mixture", SHARES[0], SHORT_ALPHAS, seed)
            yield from _at_constant(pair, "matched", SHARES[0], SHORT_ALPHAS, seed)
    for seed in seeds:
        for pair in pairs:
            steps = PAIRS[pair].steps
            yield Run(pair=pair, kind="adapters", steps=steps, seed=seed)
            yield from _at_constant(pair, "mixture", 1, ALPHAS, seed)
            yield Run(pair=pair, kind="adapters", steps=steps // SHARES[0], seed=seed)
            yield from _at_constant(pair, "mixture", SHARES[1], SHORT_ALPHAS, seed)
            yield Run(pair=pair, kind="weights", steps=steps, seed=seed)


def _at_constant(pair: str, kind: str, share: int, alphas: Sequence[float], seed: int) -> Iterator[Run]:
    for alpha in alphas:
        yield Run(pair=pair, kind=kind, steps=PAIRS[pair].steps // share, alpha=alpha, seed=seed)
