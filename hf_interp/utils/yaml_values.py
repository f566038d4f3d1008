"""Values as YAML and command lines write them."""

import re
from typing import Any

import yaml

MAX_VALUES = 100_000
"""Values of a document, counted as often as aliases repeat them: a few lines can stand for more than memory holds."""


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice, and takes `no`, dates, 01 and 1:30 for texts, as they are written."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(
                        f"the key {key.value!r} is given twice, again in line {key.start_mark.line + 1}"
                    )
                seen.add((key.tag, key.value))
        return node


_Loader.yaml_implicit_resolvers = {}
for _kind, _form in {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
    "merge": r"<<",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^({_form})$"), None)


def load_yaml(text: str) -> Any:
    """Return what a YAML document says, by safe loading.

    >>> load_yaml("{lang: no, date: 2020-01-01, code: 01, bf16: true, rate: 0.1}")
    {'lang': 'no', 'date': '2020-01-01', 'code': '01', 'bf16': True, 'rate': 0.1}
    """
    try:
        loader = _Loader(text)  # which refuses characters that cannot be printed
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES} values, or repeats itself without end")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for; one that holds itself has no end."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def parse_mapping(name: str, text: str) -> dict[str, Any]:
    """Return the mapping that a text says, or refuse what is none."""
    try:
        value = load_yaml(text)
    except ValueError:
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
