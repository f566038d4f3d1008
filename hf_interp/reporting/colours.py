"""The colours of every picture and page: one for each side, others for all else.

Each has a contrast of at least 3 to 1 with a white ground and with a dark one (`#14171a`), and the first ones are of
Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

from typing import Any

GENERAL, DOMAIN = "#0072B2", "#D55E00"
SIDE_COLOURS = {"domain": DOMAIN, "general": GENERAL}
ALPHA = "#8A6FD1"
"""Of α, and of what was chosen."""
NEUTRAL = "#808080"
"""Of axes, and of what is there for comparison."""
OTHERS = ("#009E73", "#CC79A7", "#937700", "#5B7F95", ALPHA, NEUTRAL)
"""Of methods, objectives and unnamed sets, which belong to no side."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")


def side_style(side: str, index: int = 0) -> dict[str, Any]:
    """Return how Matplotlib draws a side, or the corpus of that number on it: dashes and markers tell these apart.

    >>> side_style("domain")
    {'color': '#D55E00', 'linestyle': '-', 'marker': 'o'}
    """
    return _style(SIDE_COLOURS[side], index)


def other_style(index: int) -> dict[str, Any]:
    """Return how Matplotlib draws the method, or what else belongs to no side, of that number."""
    return _style(OTHERS[index % len(OTHERS)], index)


def set_style(name: str, index: int) -> dict[str, Any]:
    """Return how Matplotlib draws an evaluation set: as its side, if it has the name of one."""
    return side_style(name) if name in SIDE_COLOURS else other_style(index)


def _style(colour: str, index: int) -> dict[str, Any]:
    return {"color": colour, "linestyle": DASHES[index % len(DASHES)], "marker": MARKERS[index % len(MARKERS)]}
