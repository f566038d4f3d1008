"""Ways to merge several models of one base, each tensor by itself and in the memory of a few blocks.

`linear` takes the models' mean. `slerp` goes from M₀ to one model along an arc (Shoemake 1985). All others add task
vectors, m − M₀, to M₀ (task arithmetic, Ilharco et al. 2023, arXiv 2212.04089): `ties` keeps the largest numbers of
each, and of these the ones of the sign that prevails (Yadav et al. 2023, arXiv 2306.01708), `dare` some at random,
rescaled (Yu et al. 2023, arXiv 2311.03099), `breadcrumbs` neither the smallest nor the largest (Davari and Belilovsky
2023, arXiv 2312.06795).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from hf_interp.utils.errors import did_you_mean
from hf_interp.weights.alpha_spec import Alpha, plain_alpha, resolve_alpha


class _Kind(NamedTuple):
    """A way to add task vectors."""

    keeps: Literal["all", "largest", "random", "middle"]
    """Of each, the numbers that are kept; the others are 0."""
    elects: bool
    """Whether only those count that have the sign of their sum over the models."""
    normalize: bool
    """Whether the sum is divided by that of the weights, by default."""


_KINDS = {
    "task_arithmetic": _Kind("all", False, False),
    "ties": _Kind("largest", True, True),
    "dare": _Kind("random", False, False),
    "dare_ties": _Kind("random", True, False),
    "breadcrumbs": _Kind("middle", False, False),
    "breadcrumbs_ties": _Kind("middle", True, False),
}
_SETTINGS = {
    "all": ["weights", "normalize"],
    "largest": ["weights", "normalize", "density"],
    "random": ["weights", "normalize", "density", "rescale", "seed"],
    "middle": ["weights", "normalize", "density", "gamma"],
}
METHODS: dict[str, list[str]] = {
    "linear": ["weights"],
    "slerp": [],
    **{name: _SETTINGS[kind.keeps] for name, kind in _KINDS.items()},
}
"""Every method, with the settings that it has."""

Setting = Alpha | Sequence[Alpha]
"""One for all models, or one for each; a number, or numbers by tensor as those of α."""

SAME_DIRECTION = 0.9995
"""The cosine beyond which an arc is taken for a line."""


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A way to merge models, with its settings; each setting has the name that it has in mergekit.

    Args:
        name: one of `METHODS`.
        weights: of the models; by default all count the same, and sum to 1.
        density: the share of each task vector's numbers that is kept, in (0, 1].
        gamma: of `breadcrumbs`, the share of the largest numbers that is left out; by default 0.01.
        normalize: divide by the sum of the weights; by default for `ties` alone. `linear` always does.
        rescale: of `dare`, divide what is kept by the density, so that its expectation is the whole; by default true.
        seed: of `dare`. What is kept depends on it, the tensor's name and the place of the model, and on nothing else.
    """

    name: str = "linear"
    weights: Setting | None = None
    density: Setting | None = None
    gamma: Setting | None = None
    normalize: bool | None = None
    rescale: bool | None = None
    seed: int | None = None

    @property
    def is_plain_mean(self) -> bool:
        """Whether this is the mean of the models, all with the same weight."""
        return self.name == "linear" and self.weights is None

    def given(self) -> dict[str, Any]:
        """Return the name and the settings that are given, as plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: plain_alpha(value) for name, value in values.items() if value is not None}

    def check(self, num_models: int) -> None:
        """Refuse what can be told without tensors.

        Raises:
            ValueError: for a method that is not offered, settings that it lacks, has not, or that are out of range.
        """
        if self.name not in METHODS:
            known = f"must be one of {', '.join(METHODS)}, got {self.name!r}."
            raise ValueError(f"`method` {known}{did_you_mean(self.name, METHODS)}")
        for name in sorted(self.given().keys() - {"name", *METHODS[self.name]}):
            has = f", which has {', '.join(METHODS[self.name])}" if METHODS[self.name] else ""
            raise ValueError(f"`{name}` is not a setting of {self.name}{has}.")
        if self.name == "slerp" and num_models > 1:
            raise ValueError(f"`method` slerp takes one model beside M₀, got {num_models}.")
        if "density" in METHODS[self.name] and self.density is None:
            raise ValueError(f"`density` must be given for {self.name}: the share of numbers to keep, such as 0.2.")
        if (self.seed or 0) < 0:
            raise ValueError(f"`seed` must be 0 or more, got {self.seed}.")
        for name in ("weights", "density", "gamma"):
            _spread(name, getattr(self, name), num_models)

    def settle(self, names: Sequence[str], num_models: int, *, extrapolate: bool) -> dict[str, "TensorMethod"]:
        """Return the method of every tensor, with numbers for every model.

        Raises:
            TypeError, ValueError: for settings that are no numbers, or out of range.
        """
        default = {"weights": 1 / num_models, "density": 1.0, "gamma": 0.01}
        found = {}
        for field, number in default.items():
            values = _spread(field, number if getattr(self, field) is None else getattr(self, field), num_models)
            try:
                found[field] = [resolve_alpha(value, names, extrapolate=field == "weights") for value in values]
            except (TypeError, ValueError) as error:
                raise type(error)(str(error).split(" Set `extrapolate`")[0].replace("`alpha`", f"`{field}`")) from None
        settled = {
            name: TensorMethod(self, name, **{field: [value[name] for value in found[field]] for field in found})
            for name in names
        }
        for one in settled.values():
            one.check(extrapolate)
        return settled


class TensorMethod(NamedTuple):
    """The method of one tensor, with numbers for every model."""

    method: MergeMethod
    tensor: str
    weights: list[float]
    density: list[float]
    gamma: list[float]

    def check(self, extrapolate: bool) -> None:
        """Refuse weights and densities that are out of range."""
        total, normalize = sum(self.weights), self.normalizes
        if self.method.name == "linear" and abs(total) < 1e-8:
            raise ValueError(f"`weights` must not sum to 0, got {self.weights}.")
        if not extrapolate and (min(self.weights) < 0 or (not normalize and total > 1 + 1e-6)):
            most = "" if normalize else ", and sum to 1 at most"
            raise ValueError(f"`weights` must be 0 or more{most}, got {self.weights}. Set `extrapolate` to go beyond.")
        if min(self.density) <= 0:
            raise ValueError(f"`density` must lie in (0, 1], got {min(self.density)}.")

    @property
    def normalizes(self) -> bool:
        """Whether the sum is divided by that of the weights."""
        if self.method.name in _KINDS and self.method.normalize is None:
            return _KINDS[self.method.name].normalize
        return self.method.name not in _KINDS or bool(self.method.normalize)


Read = Callable[[Sequence[int]], Iterator[list[torch.Tensor]]]
"""Reads a tensor from first to last: blocks of M₀ and of the models of these numbers, in the type to compute in."""


def merged_blocks(how: TensorMethod, alpha: float, numel: int, read: Read) -> Iterator[torch.Tensor]:
    """Yield M₀ + α·(what the method makes of the task vectors) block by block; slerp goes the share α of the arc."""
    if how.method.name == "slerp":
        first, second = _arc(read, alpha)
        yield from (base * first + model * second for base, model in read([0]))
        return
    kind, indices = _KINDS[how.method.name], range(len(how.weights))
    thin = [_thinning(how, kind.keeps, index, numel, read) for index in indices]
    for base, *models in read(indices):
        vectors = [thin[index](model - base).mul_(how.weights[index]) for index, model in enumerate(models)]
        total = add_vectors(vectors, how.weights, elects=kind.elects, normalize=how.normalizes)
        yield torch.add(base, total, alpha=alpha)


def add_vectors(
    vectors: Sequence[torch.Tensor], weights: Sequence[float], *, elects: bool, normalize: bool
) -> torch.Tensor:
    """Return the sum of task vectors that are weighted already.

    Args:
        elects: add only those that have the sign of the sum over all.
        normalize: divide by the sum of the weights of those that were added.

    >>> add_vectors([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], [1.0, 1.0], elects=True, normalize=True)
    tensor([3.0000, 1.5000])
    """
    total, share = torch.stack(list(vectors)).sum(0), torch.tensor(sum(weights))
    if elects:
        sign = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
        votes = [vector.sign() == sign for vector in vectors]
        # multiplied, so that NaN stays one
        total = torch.stack([vector * vote for vector, vote in zip(vectors, votes, strict=True)]).sum(0)
        share = torch.stack([vote * weight for vote, weight in zip(votes, weights, strict=True)]).sum(0)
    return total / share.masked_fill(share.abs() < 1e-8, 1.0) if normalize else total


def _arc(read: Read, alpha: float) -> tuple[float, float]:
    """Return the factors of M₀ and of the model at a share of the arc between them."""
    squares, product = [0.0, 0.0], 0.0
    for pair in read([0]):
        base, model = (one.double() for one in pair)
        product += float(base @ model)
        squares = [squares[0] + float(base @ base), squares[1] + float(model @ model)]
    lengths = [math.sqrt(square) for square in squares]
    cosine = product / (lengths[0] * lengths[1]) if min(lengths) > 1e-8 else 0.0
    if abs(cosine) > SAME_DIRECTION:
        return 1 - alpha, alpha
    angle = math.acos(cosine) if math.isfinite(cosine) else math.nan
    return math.sin((1 - alpha) * angle) / math.sin(angle), math.sin(alpha * angle) / math.sin(angle)


def _thinning(
    how: TensorMethod, keeps: str, index: int, numel: int, read: Read
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that thins the blocks of a model's task vector, from first to last."""
    density, count = how.density[index], int(how.density[index] * numel)
    if keeps == "all" or density >= 1:
        return lambda vector: vector
    if keeps == "random":
        draw = np.random.Generator(np.random.PCG64([how.method.seed or 0, index, *how.tensor.encode()]))
        factor = 1.0 if how.method.rescale is False else 1 / density
        return lambda vector: vector.mul_(torch.from_numpy(draw.random(vector.numel()) < density)).mul_(factor)

    def sizes() -> Iterator[torch.Tensor]:
        return (_size(model - base) for base, model in read([index]))

    if keeps == "largest":
        is_large = _lowest(lambda: (~size for size in sizes()), [max(1, count)])[0]
        return lambda vector: vector.mul_(is_large(~_size(vector)))
    below = max(0, numel - count - int(how.gamma[index] * numel))
    is_small, is_not_huge = _lowest(sizes, [below, below + count])
    return lambda vector: vector.mul_(is_not_huge(size := _size(vector)) & ~is_small(size))


def _size(vector: torch.Tensor) -> torch.Tensor:
    """Return whole numbers in the order of the magnitudes: the bits of their float32."""
    return vector.float().abs().view(torch.int32)


class _Lowest:
    """Tells block by block which numbers are among the lowest; of the last of these, the first `num_last`."""

    def __init__(self, last: int, num_last: int) -> None:
        self.last, self.num_last = last, num_last

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        found = numbers < self.last
        if self.num_last and (equal := numbers == self.last).any():
            place = equal.cumsum(0)
            found |= equal & (place <= self.num_last)
            self.num_last = max(0, self.num_last - int(place[-1]))
        return found


def _lowest(read: Callable[[], Iterator[torch.Tensor]], counts: Sequence[int]) -> list[_Lowest]:
    """Find those which are so many lowest numbers, without sorting: by the upper half of their bits, then the lower."""
    upper = sum(torch.bincount((numbers >> 16) + 2**15, minlength=2**16) for numbers in read())
    found = [_step(upper, count) for count in counts]
    lower = [torch.zeros(2**16, dtype=torch.int64) for _ in counts]
    for numbers in read():
        for histogram, (digit, _) in zip(lower, found, strict=True):
            inside = numbers[(numbers >> 16) + 2**15 == digit] & (2**16 - 1)
            histogram += torch.bincount(inside, minlength=2**16)
    ends = [_step(histogram, left) for histogram, (_, left) in zip(lower, found, strict=True)]
    return [
        _Lowest((first - 2**15 << 16) + second, left) if count else _Lowest(-(2**31), 0)
        for count, (first, _), (second, left) in zip(counts, found, ends, strict=True)
    ]


def _step(histogram: Any, count: int) -> tuple[int, int]:
    """Return the place in a histogram at which a count is reached, and how many of that place belong to it."""
    total = histogram.cumsum(0)
    place = min(int(torch.searchsorted(total, count)), len(total) - 1)
    return place, count - int(total[place] - histogram[place])


def _spread(name: str, value: Setting | None, num_models: int) -> list[Alpha]:
    """Return a setting for every model."""
    values: list[Any] = [*value] if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, num_models):
        raise ValueError(f"`{name}` must be one for all models or one for each of the {num_models}, got {len(values)}.")
    return values * (num_models // len(values))
