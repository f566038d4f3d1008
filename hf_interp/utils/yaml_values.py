"""Values as YAML and command lines write them."""

import re
from typing import Any

import yaml


def parse_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping such as {{rate: 3.0}}, got {text!r}.")
    return value


def with_numbers(value: Any) -> Any:
    """Return `value` with texts such as 1e-4, which YAML takes for numbers only with a dot, made into numbers."""
    if isinstance(value, dict):
        return {key: with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value
