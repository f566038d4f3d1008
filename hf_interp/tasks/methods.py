"""Presets for three wishes: `method: keep`, `balanced` or `domain` of a recipe stands for some fields.

The run is that with the best trade-off among those that docs/evidence.md compares, by kind of task; the wish says how
much the domain weighs when the α of its weights is chosen.
"""

from collections.abc import Mapping
from typing import Any

from hf_interp.mixture.collators import DISTILL
from hf_interp.tasks.recipe import SCHEDULE_FIELDS, gone_with
from hf_interp.utils.errors import check_choice

METHODS = {"keep": 0.3, "balanced": 0.5, "domain": 0.7}
"""Name → weight of the domain in the choice of M_α."""
MEAN: dict[str, Any] = {"lr_scheduler_type": "constant_with_warmup", "average_from": 0.5}
"""The mean of the second half's weights at a constant rate, in place of a rate that decays."""
CAUSAL_TASKS = ("causal-lm", "chat", "image-text-to-text")
LANGUAGE_TASKS = (*CAUSAL_TASKS, "masked-lm", "translation", "summarization", "seq2seq")
"""Tasks whose pretrained models have a head, so that M₀ can give the targets. The first was measured."""
LANGUAGE: dict[str, Any] = {"alpha": 0.25, **MEAN}
OTHERS: dict[str, Any] = {"alpha": 0.5}


def lay_method(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe with the fields of its `method` where it has none of its own, and those fields.

    A field that is null or false is one of its own: so a part of a method is turned off.

    >>> lay_method({"method": "keep", "task": "masked-lm", "alpha_schedule_type": "linear"})[1]
    {'lr_scheduler_type': 'constant_with_warmup', 'average_from': 0.5}
    """
    name = recipe.get("method")
    if name is None:
        return dict(recipe), {}
    check_choice("method", name, METHODS)
    own = {key for key, value in recipe.items() if value is not None}
    left_out = {*recipe, *gone_with(own)}
    if own & {"alpha_start", "alpha_end", "alpha_controller", "mixture_path"}:
        left_out.add("alpha")
    if recipe.get("load_best_model_at_end"):
        left_out |= MEAN.keys()
    fields = dict(LANGUAGE if recipe.get("task") in LANGUAGE_TASKS else OTHERS)
    if (search := _search(recipe, METHODS[name])) is not None:
        fields["alpha_search"] = search
        left_out.discard("alpha_search")
    laid = {key: value for key, value in fields.items() if key not in left_out}
    changed = {**recipe, **laid}
    corpora = recipe.get("corpora")
    if isinstance(corpora, Mapping) and _distills(recipe, corpora):
        sides = {corpus: entry.get("side") or corpus for corpus, entry in corpora.items() if "objective" not in entry}
        general = [corpus for corpus, side in sides.items() if side == "general"]
        laid |= {f"corpora.{corpus}.objective": DISTILL for corpus in general}
        changed["corpora"] = {**corpora, **{corpus: {**corpora[corpus], "objective": DISTILL} for corpus in general}}
    return changed, laid


def without_fields(recipe: dict[str, Any]) -> None:
    """Take out of a recipe, in place, what a method given as a flag is to decide."""
    for name in ("alpha", *SCHEDULE_FIELDS, *MEAN):
        recipe.pop(name, None)
    if isinstance(search := recipe.get("alpha_search"), Mapping):
        decided = ("objective", "domain_weight", "max_forgetting")
        recipe["alpha_search"] = {name: value for name, value in search.items() if name not in decided}


def describe_method(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `name` of a recipe's method and the fields that it `sets`; nothing where it has none."""
    name = recipe.get("method")
    return {} if name is None else {"name": name, "sets": lay_method(recipe)[1]}


def format_method(recipe: Mapping[str, Any]) -> list[str]:
    """Say in a line what the `method` of a recipe sets; nothing where it has none."""
    if not (found := describe_method(recipe)):
        return []
    shown = ", ".join(f"{key} {value}" for key, value in found["sets"].items())
    return [f"Method {recipe['method']}: {shown or 'all of its fields are set by the recipe itself'}."]


def _search(recipe: Mapping[str, Any], domain_weight: float) -> dict[str, Any] | None:
    """Return a method's search for M_α; `None` where a recipe has its own, wants none or cannot measure both sides."""
    given = recipe.get("alpha_search", True)
    own = given if isinstance(given, Mapping) else {}
    if given is None or given is False or "objective" in own or not _has_both_sides(recipe):
        return None
    # A mean of perplexities would be that of the side that is harder to predict.
    metric = {"metric": "loss"} if recipe.get("task") in (*CAUSAL_TASKS, "masked-lm") else {}
    return {**metric, **own, "objective": "mean", "domain_weight": domain_weight}


def _has_both_sides(recipe: Mapping[str, Any]) -> bool:
    """Whether there are sets of both sides to choose the α of the weights on."""
    groups = [recipe.get(name) for name in ("validation_corpora", "eval_corpora")]
    sets = next((group for group in groups if isinstance(group, Mapping) and group), {})
    return {"general", "domain"} <= set(sets)


def _distills(recipe: Mapping[str, Any], corpora: Mapping[str, Any]) -> bool:
    """Whether M₀'s predictions are the targets of the general side: where it has some, and nothing else says so."""
    if recipe.get("task") not in LANGUAGE_TASKS or recipe.get("anchor") == "distill":
        return False
    return all(isinstance(fields, Mapping) and fields.get("objective") is None for fields in corpora.values())
