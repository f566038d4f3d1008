"""Which tensor of M₀ belongs to which of M_θ, and what is to become of each: decided on names, shapes and kinds alone.

A decision needs no values, so that a merge of any size is checked, to its last tensor, before a byte is written.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch

from hf_interp.weights.alpha_spec import Alpha, find_layer, resolve_alpha

Action = Literal["interpolated", "copied", "finetuned", "tied", "dropped"]
"""Interpolated; copied from M_θ because it is no weight; from M_θ alone because M₀ has no such tensor; the same storage
as another; only in M₀, and left out."""


class TensorInfo(NamedTuple):
    """The shape and type of a tensor, on which a decision depends."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class TensorDecision:
    """The decision on one tensor.

    Args:
        name: its name in M_θ (in M₀, if it is dropped).
        action: see `Action`.
        reason: why, where that is not plain; what is tied names the tensor it is tied to.
        base_name: its name in M₀.
        alpha: its α, if it is interpolated.
        vocabulary_axis: the axis along which M₀ and M_θ have vocabularies of different sizes; the common rows are
            interpolated, further rows of M_θ are copied, further rows of M₀ are dropped.
    """

    name: str
    action: Action
    reason: str = ""
    base_name: str | None = None
    alpha: float | None = None
    vocabulary_axis: int | None = None


@dataclass(kw_only=True)
class InterpolationReport:
    """A report on what was interpolated, and what was not and why.

    Args:
        decisions: one for each tensor of M_θ, and one for each that M₀ alone has.
        notes: what else happened, such as recalibrated statistics.
    """

    decisions: list[TensorDecision]
    notes: list[str]

    def names(self, action: Action) -> list[str]:
        """Return names of the tensors that had this done to them."""
        return [decision.name for decision in self.decisions if decision.action == action]

    def alphas(self) -> dict[str, float]:
        """α of every interpolated tensor."""
        return {decision.name: decision.alpha for decision in self.decisions if decision.alpha is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"decisions": [asdict(decision) for decision in self.decisions], "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = [f"interpolated: {_count(self.names('interpolated'))}, α {_range(self.alphas().values())}"]
        titles: dict[Action, str] = {
            "copied": "copied from M_θ",
            "finetuned": "from M_θ alone",
            "tied": "tied",
            "dropped": "dropped",
        }
        for action, title in titles.items():
            reasons: dict[str, list[str]] = {}
            for decision in self.decisions:
                if decision.action == action:
                    reasons.setdefault(decision.reason, []).append(decision.name)
            lines += [f"{title}: {_count(names)} ({reason}): {some_of(names)}" for reason, names in reasons.items()]
        rows = [decision for decision in self.decisions if decision.vocabulary_axis is not None]
        lines += [f"vocabulary: {decision.name}: {decision.reason}" for decision in rows]
        return "\n".join([*lines, *self.notes])


def decide(
    base: Mapping[str, TensorInfo],
    finetuned: Mapping[str, TensorInfo],
    alpha: Alpha,
    *,
    base_names: Mapping[str, str],
    finetuned_only: Sequence[str] = (),
    extrapolate: bool = False,
) -> list[TensorDecision]:
    """Decide what becomes of every tensor, in the order of M_θ's; of tied ones each side gives one.

    Args:
        base_names: name in M_θ → name in M₀ (see `match_names`).

    Raises:
        TypeError, ValueError: for an α that is none, packed quantised weights, two architectures, or shapes that
            differ in more than the size of the vocabulary; the first tensors and both shapes are named.
    """
    _refuse_quantised(base, "M₀")
    _refuse_quantised(finetuned, "M_θ")
    _refuse_other_architecture(base, finetuned, base_names)
    vocabulary = _vocabulary_sizes(base, finetuned, base_names)
    decisions: list[TensorDecision] = []
    clashes: list[str] = []
    for pattern in finetuned_only:
        if not any(fnmatchcase(name, pattern) for name in finetuned):
            raise ValueError(f"`finetuned_only` has a pattern that no tensor matches: {pattern!r}.")
    for name, info in finetuned.items():
        base_name = base_names.get(name)
        verdict: _Verdict | None = None
        if base_name is None:
            verdict = "finetuned", "M₀ has no such tensor", None
        elif any(fnmatchcase(name, pattern) for pattern in finetuned_only):
            verdict = "finetuned", "as asked for", None
        else:
            verdict = _decide_one(name, info, base[base_name], vocabulary)
        if verdict is None:
            clashes.append(f"{name} {base[base_name or ''].shape} in M₀, {info.shape} in M_θ")
            continue
        action, reason, axis = verdict
        decisions.append(
            TensorDecision(name=name, action=action, reason=reason, base_name=base_name, vocabulary_axis=axis)
        )
    if clashes:
        raise ValueError(
            "M₀ and M_θ must be of one architecture, but tensors differ in shape: " + some_of(clashes, most=3) + "."
        )
    taken = set(base_names.values())
    decisions += [
        TensorDecision(name=name, action="dropped", reason="M_θ has no such tensor", base_name=name)
        for name in base
        if name not in taken
    ]
    return _with_alphas(decisions, alpha, extrapolate)


def match_names(base: Collection[str], finetuned: Collection[str]) -> dict[str, str]:
    """Match names: name in M_θ → name in M₀.

    Names agree up to wrappers (`module.`, `_orig_mod.`), old names (`LayerNorm.gamma`, `.beta`) and one prefix of the
    whole model (`bert.`, `model.`).

    >>> match_names(["LayerNorm.gamma"], ["module.bert.LayerNorm.weight", "module.classifier.weight"])
    {'module.bert.LayerNorm.weight': 'LayerNorm.gamma'}
    """
    theirs = _plain_names(finetuned)
    mine = _with_prefix(_plain_names(base), theirs)
    return {name: mine[plain] for plain, name in theirs.items() if plain in mine}


def is_float(dtype: torch.dtype) -> bool:
    """Whether numbers of a type can be interpolated."""
    return dtype.is_floating_point or dtype.is_complex


def unwrap_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to the same without what wrappers of whole models add.

    >>> unwrap_names(["module._orig_mod.score.weight"])
    {'module._orig_mod.score.weight': 'score.weight'}
    """
    names = list(names)
    wrapped = all(name.startswith("module.") for name in names)
    return {name: _WRAPPERS.sub("", name.removeprefix("module.") if wrapped else name) for name in names}


_Verdict = tuple[Action, str, int | None]


def _decide_one(name: str, info: TensorInfo, base: TensorInfo, vocabulary: set[tuple[int, int]]) -> _Verdict | None:
    """Decide on a tensor that both have: the action, why, and the axis of the vocabulary; `None` if shapes clash."""
    if not is_float(info.dtype):
        return "copied", f"holds {_kind(info.dtype)}", None
    if _POSITION_TABLES.search(name):
        return "copied", "a table that is computed, not learned", None
    if info.shape == base.shape:
        return "interpolated", "", None
    axes = [axis for axis, sizes in enumerate(zip(base.shape, info.shape, strict=False)) if sizes[0] != sizes[1]]
    axis = axes[0] if len(axes) == 1 and len(base.shape) == len(info.shape) else None
    if axis is not None and (base.shape[axis], info.shape[axis]) in vocabulary:
        before, after = base.shape[axis], info.shape[axis]
        kept = f"{min(before, after)} rows interpolated"
        more = f"{after - before} new ones from M_θ" if after > before else f"{before - after} of M₀ dropped"
        return "interpolated", f"{kept}, {more}", axis
    if _HEADS.search(name) and find_layer(name) is None:
        return "finetuned", f"a head of another shape: {base.shape} in M₀, {info.shape} in M_θ", None
    return None


_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_POSITION_TABLES = re.compile(r"(^|\.)(inv_freq|rotary_emb\.\w+|(cos|sin)_cached|masked_bias|sinusoid_table)$")
_HEADS = re.compile(r"(^|\.)(classifier|score|qa_outputs|cls|classification_head|head|heads|out_proj|pre_classifier)\.")
EMBEDDINGS = re.compile(
    r"(^|\.)(word_embeddings|embed_tokens|tok_embeddings|wte|shared|embed_in|word_embedding|token_embedding|lm_head)\.weight$"
)
"""Tensors with a row for each token."""
_PACKED = re.compile(r"\.(qweight|qzeros|absmax|nested_absmax|quant_map|SCB|weight_scale(_inv)?|weight_packed)$")
_PACKED_BYTES = re.compile(r"_(blocks|scales)$")
BATCH_NORM = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
"""Statistics that belong to one set of weights and have no meaning between two."""


def _refuse_quantised(tensors: Mapping[str, TensorInfo], whose: str) -> None:
    for name, info in tensors.items():
        is_packed = [
            bool(_PACKED.search(name)),
            bool(_PACKED_BYTES.search(name)) and info.dtype == torch.uint8,
            name.endswith(".weight") and not is_float(info.dtype),
            str(info.dtype).startswith(("torch.float8", "torch.float4")),
        ]
        if any(is_packed):
            raise ValueError(
                f"{whose} must have plain floating-point weights, but {name!r} ({_kind(info.dtype)}) is packed and "
                "quantised, and numbers between packed ones mean nothing. Dequantise the model first, or train an "
                "adapter on it and interpolate that."
            )


def _refuse_other_architecture(
    base: Mapping[str, TensorInfo], finetuned: Mapping[str, TensorInfo], base_names: Mapping[str, str]
) -> None:
    """Refuse layers of a common stack that only one side has, or nothing in common."""
    if not base_names:
        raise ValueError(
            "M₀ and M_θ must be of one architecture, but have no tensor's name in common: "
            f"{some_of(sorted(base), 2)} in M₀, {some_of(sorted(finetuned), 2)} in M_θ."
        )
    for tensors, matched, has, lacks in (
        (finetuned, set(base_names), "M_θ", "M₀"),
        (base, set(base_names.values()), "M₀", "M_θ"),
    ):
        stacks = {place[0] for name in matched if (place := find_layer(name))}
        alone = [
            f"{name} {info.shape}"
            for name, info in tensors.items()
            if name not in matched
            and (place := find_layer(name))
            and place[0] in stacks
            and info.dtype.is_floating_point
            and not _POSITION_TABLES.search(name)
        ]
        if alone:
            raise ValueError(
                f"M₀ and M_θ must be of one architecture, but {has} has layers' tensors that {lacks} lacks: "
                f"{some_of(alone, 3)}."
            )


def _vocabulary_sizes(
    base: Mapping[str, TensorInfo], finetuned: Mapping[str, TensorInfo], base_names: Mapping[str, str]
) -> set[tuple[int, int]]:
    """Return pairs (rows in M₀, rows in M_θ) of the embeddings whose sizes differ."""
    pairs = [(base[own].shape, finetuned[name].shape) for name, own in base_names.items() if EMBEDDINGS.search(name)]
    return {
        (one[0], other[0])
        for one, other in pairs
        if len(one) == len(other) == 2 and one[0] != other[0] and one[1] == other[1]
    }


def _with_alphas(decisions: Sequence[TensorDecision], alpha: Alpha, extrapolate: bool) -> list[TensorDecision]:
    names = [decision.name for decision in decisions if decision.action == "interpolated"]
    if not names:
        raise ValueError(
            "Nothing is left to interpolate: all tensors are copied or from M_θ alone. Are both of one class?"
        )
    alphas = resolve_alpha(alpha, names, extrapolate=extrapolate)
    return [replace(decision, alpha=alphas.get(decision.name)) for decision in decisions]


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map names without wrappers and in their present form to the names as given."""
    plain = {}
    for name, short in unwrap_names(names).items():
        short = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", short)
        plain[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", short)] = name
    return plain


def _with_prefix(names: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """Add or remove the one prefix that brings most of `names` among `others`."""
    candidates = {name.partition(".")[0] for name in [*names, *others]}
    forms = [dict(names)]
    for prefix in sorted(candidates):
        forms.append({f"{prefix}.{plain}": name for plain, name in names.items()})
        forms.append({plain.removeprefix(f"{prefix}."): name for plain, name in names.items()})
    best = max(forms, key=lambda form: sum(plain in others for plain in form))
    # a head beside the backbone has no prefix on either side
    return {**{plain: name for plain, name in names.items() if plain in others}, **best}


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def some_of(names: Sequence[str], most: int = 4) -> str:
    """Return the first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _range(alphas: Iterable[float]) -> str:
    found = sorted(set(alphas))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"
