"""Attributes of an object that are others for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def overrides(subject: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of an object for the duration of a block."""
    before = {name: getattr(subject, name) for name in attributes}
    for name, value in attributes.items():
        setattr(subject, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(subject, name, value)
