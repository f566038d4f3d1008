"""Parts that error messages share."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return the end of an error message: the option nearest to a misspelt name, or nothing.

    >>> did_you_mean("linaer", ["linear", "cosine"])
    " Did you mean 'linear'?"
    """
    nearest = difflib.get_close_matches(str(name), list(options), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
