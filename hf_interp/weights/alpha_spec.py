"""Which α each tensor of a model gets: one number for all, numbers by name, or numbers that go with depth. No torch."""

import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.yaml_values import load_yaml


@dataclass(frozen=True)
class AlphaByDepth:
    """α that is linear in the layer's index, after LiNeS (Wang et al. 2025, arXiv 2410.17146).

    Layer l of a stack of L layers gets shallow + (deep − shallow)·l / (L − 1); the only layer of a stack gets `deep`.
    Whatever lies outside the layers (embeddings, final norms, heads) gets `shallow`, as in the paper.

    Args:
        shallow: α of the first layer, and of what lies outside the layers.
        deep: α of the last layer.
        between: further numbers at equal distances from the first layer to the last; α is linear from one to the next.
    """

    shallow: float
    deep: float = 1.0
    between: tuple[float, ...] = ()

    def numbers(self) -> list[float]:
        """Return all numbers, from the first layer to the last."""
        return [self.shallow, *self.between, self.deep]

    def at(self, depth: float) -> float:
        """Return α at a depth from 0 to 1; exact at each number."""
        numbers = self.numbers()
        place = depth * (len(numbers) - 1)
        index = min(int(place), len(numbers) - 2)
        share = place - index
        return (1 - share) * numbers[index] + share * numbers[index + 1]


Alpha = float | AlphaByDepth | Mapping[str, float | AlphaByDepth]
"""One α for all tensors, α by depth, or either by name pattern (the first that matches wins)."""

_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)?(?:stages?|layers?|h|blocks?))\.(?P<index>\d+)\.")


def find_layer(name: str) -> tuple[str, int] | None:
    """Return the stack of layers in which a tensor lies, and the index of its layer; `None` outside the layers.

    Of layers within stages or blocks the outer ones count.

    >>> find_layer("bert.encoder.layer.11.attention.self.query.weight")
    ('bert.encoder.layer', 11)
    >>> find_layer("decoder.block.0.layer.1.EncDecAttention.q.weight")
    ('decoder.block', 0)
    >>> find_layer("convnext.encoder.stages.2.layers.8.pwconv1.weight")
    ('convnext.encoder.stages', 2)
    >>> find_layer("bert.embeddings.word_embeddings.weight")
    """
    found = _LAYER.match(name)
    return (found["stack"], int(found["index"])) if found else None


def last_layers(places: Iterable[tuple[str, int] | None]) -> dict[str, int]:
    """Return the index of the last layer of every stack, from what `find_layer` found.

    >>> last_layers([("encoder.layer", 0), None, ("encoder.layer", 5), ("decoder.layer", 1)])
    {'encoder.layer': 5, 'decoder.layer': 1}
    """
    last: dict[str, int] = {}
    for place in places:
        if place is not None:
            last[place[0]] = max(place[1], last.get(place[0], 0))
    return last


def resolve_alpha(alpha: Alpha, names: Sequence[str], *, extrapolate: bool = False) -> dict[str, float]:
    """α of every tensor.

    Args:
        alpha: one number, an [`AlphaByDepth`], or a mapping from name patterns (as of file names: `*`, `?`, `[...]`) to
            either, of which the first that matches a name counts.
        names: the tensors' names.
        extrapolate: allow α outside [0, 1].

    Raises:
        TypeError: if an α is not a number.
        ValueError: if an α is out of range, a pattern matches nothing, a name matches no pattern, or there are no
            layers to go by.

    >>> resolve_alpha({"*.embeddings.*": 0.0, "*": 0.5}, ["bert.embeddings.weight", "bert.pooler.weight"])
    {'bert.embeddings.weight': 0.0, 'bert.pooler.weight': 0.5}
    >>> resolve_alpha(AlphaByDepth(0.2, 1.0), ["wte.weight", "h.0.mlp", "h.1.mlp", "h.2.mlp"])
    {'wte.weight': 0.2, 'h.0.mlp': 0.2, 'h.1.mlp': 0.6, 'h.2.mlp': 1.0}
    """
    found = _by_pattern(alpha, names) if isinstance(alpha, Mapping) else dict.fromkeys(names, alpha)
    for value in set(found.values()):
        for number in value.numbers() if isinstance(value, AlphaByDepth) else [value]:
            check_alpha(number, extrapolate=extrapolate)
    depths = _depths(names) if any(isinstance(value, AlphaByDepth) for value in found.values()) else {}
    return {
        name: float(value.at(depths.get(name, 0.0)) if isinstance(value, AlphaByDepth) else value)
        for name, value in found.items()
    }


def plain_alpha(alpha: Alpha | Sequence[Alpha]) -> Any:
    """Return an α, or several, as plain values, for JSON."""
    if isinstance(alpha, AlphaByDepth):
        return {key: value for key, value in vars(alpha).items() if value != ()}
    if isinstance(alpha, Mapping):
        return {name: plain_alpha(value) for name, value in alpha.items()}
    return list(map(plain_alpha, alpha)) if isinstance(alpha, (list, tuple)) else alpha


def check_alpha(value: Any, *, extrapolate: bool = False) -> None:
    """Raise if it is no number (`TypeError`), not finite, or outside [0, 1] without `extrapolate` (`ValueError`)."""
    if isinstance(value, bool) or not isinstance(value, (float, numbers.Real)):
        raise TypeError(f"`alpha` must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"`alpha` must be finite, got {value}.")
    if not extrapolate and not 0 <= float(value) <= 1:
        raise ValueError(f"`alpha` must lie in [0, 1], got {value}. Set `extrapolate` to go beyond M₀ (0) or M_θ (1).")


def parse_alpha(text: str) -> Alpha:
    """α as it is written on the command line: a number, `SHALLOW..DEEP` by depth, or a YAML mapping of patterns.

    >>> parse_alpha("0.6"), parse_alpha("0.3..1")
    (0.6, AlphaByDepth(shallow=0.3, deep=1.0, between=()))
    >>> parse_alpha("{'*.attention.*': 0..0.5..1, '*': 0.7}")
    {'*.attention.*': AlphaByDepth(shallow=0.0, deep=1.0, between=(0.5,)), '*': 0.7}
    """
    try:
        return _parse_one(text)
    except ValueError:
        pass
    try:
        found = load_yaml(text)
        if isinstance(found, dict) and all(isinstance(name, str) for name in found):
            return {name: _parse_one(value) if isinstance(value, str) else value for name, value in found.items()}
    except ValueError:
        pass
    raise ValueError(
        f"`alpha` must be a number such as 0.6, a range over depth such as 0.3..1.0, or a mapping of name patterns "
        f"such as \"{{'*.embeddings.*': 0.2, '*': 0.7}}\", got {text!r}."
    )


def _parse_one(text: str) -> float | AlphaByDepth:
    first, *others = map(float, text.split(".."))
    return AlphaByDepth(first, others[-1], tuple(others[:-1])) if others else first


def _by_pattern(alpha: Mapping[str, float | AlphaByDepth], names: Sequence[str]) -> dict[str, Any]:
    if alpha.keys() == set(names):  # numbers by name: no need to match each with each
        return dict(alpha)
    unused = set(alpha)
    found = {}
    for name in names:
        matching = [pattern for pattern in alpha if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(
                f"`alpha` has no pattern for {name!r}, got {list(alpha)}. Add a last pattern '*' for all the rest."
            )
        unused -= set(matching)
        found[name] = alpha[matching[0]]
    if unused:
        pattern = sorted(unused)[0]
        raise ValueError(f"`alpha` has a pattern that no tensor matches: {pattern!r}." + did_you_mean(pattern, names))
    return found


def _depths(names: Iterable[str]) -> dict[str, float]:
    """Return the depths of tensors in layers, from 0 to 1."""
    places = {name: find_layer(name) for name in names}
    last = last_layers(places.values())
    if not last:
        raise ValueError(
            "`alpha` by depth needs a model with numbered layers, and no tensor's name shows one. Give name patterns."
        )
    return {name: place[1] / last[place[0]] if last[place[0]] else 1.0 for name, place in places.items() if place}
