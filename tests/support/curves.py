"""Curves over α for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_interp.reporting.curve import AlphaCurve


def measured(values: Sequence[float | None], errors: Sequence[float | None] | float | None = None) -> dict[str, Any]:
    """A metric over α; one error is that of every α."""
    given = list(errors) if isinstance(errors, Sequence) else [errors] * len(values)
    return {"values": list(values), "std_errors": given}


def alpha_curve(
    domain: Mapping[str, Any], general: Mapping[str, Any], alphas: Sequence[float] = (0.0, 0.5, 1.0), **changes: Any
) -> AlphaCurve:
    """A curve with its metrics, as `measured` or as plain values, on both sides; the middle α is chosen."""
    report = {
        side: {name: found if isinstance(found, dict) else measured(found) for name, found in metrics.items()}
        for side, metrics in (("domain", domain), ("general", general))
    }
    given: dict[str, Any] = {
        "alphas": list(alphas),
        "selection": report,
        "report": report,
        "metric": next(iter(domain)),
        "objective": "best",
        "method": "grid",
        "alpha": alphas[len(alphas) // 2],
        "best_alpha": alphas[len(alphas) // 2],
        "reason": "It is the best.",
    }
    return AlphaCurve(**given | changes)
