"""Parts that error messages share."""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return the end of an error message: the option nearest to a misspelt name, or nothing.

    >>> did_you_mean("linaer", ["linear", "cosine"])
    " Did you mean 'linear'?"
    """
    nearest = difflib.get_close_matches(str(name), list(options), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def check_choice(name: str, value: object, options: Iterable[str]) -> None:
    """Refuse a value of the field `name` that is none of the options; the nearest is named."""
    known = list(options)
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.{did_you_mean(str(value), known)}")


def check_known(names: Iterable[object], known: Iterable[str], where: str) -> None:
    """Refuse names of fields that are not known."""
    options = list(known)
    for name in names:
        if name not in options:
            raise ValueError(f"Unknown field {name!r} {where}." + did_you_mean(str(name), options))


def import_extra(module: str, need: str, extra: str) -> Any:
    """Return a module of a package that only some need; `ImportError` says what needs it, and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{need}. Install it with `pip install hf_interp[{extra}]`.") from error


class ReadError(ValueError, RuntimeError):
    """A corpus that cannot be read on, while a run reads it.

    Where that was found in a worker process, torch makes the error anew, with the traceback as its text: the way there
    is left out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f".{type(self).__name__}: ")[2].rstrip())


class EndError(ReadError):
    """A stream that has no more examples."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Say of whatever goes wrong while a library reads a file of the user what was read.

    Raises:
        OSError, ImportError: as the library does.
        ValueError: for everything else.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{what} cannot be read: {error or type(error).__name__}") from error
