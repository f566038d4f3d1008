"""`hf-interp merge`: trained runs, merged towards their base."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hf_interp.reporting.curve import AlphaCurve, format_curve
from hf_interp.reporting.results import less_is_better
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.scoring import TrainerScorer
from hf_interp.tasks.build import RecipeData
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.runs import open_run, parse_run, save_curve, scored_sets, search_run
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.files import read_text
from hf_interp.utils.yaml_values import load_yaml
from hf_interp.weights.alpha_spec import Alpha, AlphaByDepth, parse_alpha
from hf_interp.weights.matching import InterpolationReport
from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.merge_adapter import interpolate_adapter_checkpoint
from hf_interp.weights.merge_methods import METHODS, MergeMethod
from hf_interp.weights.soups import Trial, greedy_soup, write_soup


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Result of `merge_runs`.

    Args:
        members: the runs that went into the soup.
        alpha: the α of the weights.
        curve: how it was found, if it was.
        report: what was interpolated, and what was not and why.
        num_given: how many runs there were to take.
        method: how they were taken.
        tried: of a greedy soup a line on each run: whether it is in, and by how much it changed the metric.
    """

    members: list[str]
    alpha: Alpha
    curve: AlphaCurve | None
    report: InterpolationReport
    num_given: int
    method: MergeMethod
    tried: Sequence[str] = ()


def merge_runs(
    base: str,
    runs: Sequence[str],
    output_dir: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    soup: str = "uniform",
    alpha: Alpha | None = None,
    method: MergeMethod | None = None,
    merge_adapter: bool = False,
    **settings: Any,
) -> Merged:
    """Merge one or several trained models of the same base towards it, and write the model.

    Args:
        base: M₀, a folder or a name on the Hub.
        runs: folders or names of fine-tuned models. Of several, the mean stands for M_θ (Model soups, Wortsman et al.
            2022, arXiv 2203.05482).
        output_dir: where to write.
        recipe: tells by which validation sets to choose; needed for a greedy soup, and if there is no `alpha`.
        soup: "uniform" takes all runs, "greedy" those that make the domain's metric no worse.
        alpha: α of the weights; by default it is searched for, or 1 for a method that adds task vectors.
        method: how several models are taken, by default their mean; another needs no recipe.
        merge_adapter: where M_θ is an adapter, write the whole model.
        settings: further arguments of `interpolate_checkpoints`.

    Raises:
        ValueError: for bad input, before anything is written.
    """
    if soup not in ("uniform", "greedy"):
        raise ValueError(f"`soup` must be uniform or greedy, got {soup!r}.")
    method = method or MergeMethod()
    if not method.is_plain_mean:
        method.check(len(runs))
        if recipe is not None or soup == "greedy" or merge_adapter:
            given = "`recipe`" if recipe is not None else "`merge_adapter`" if merge_adapter else "`soup` greedy"
            raise ValueError(f"{given} goes with the plain mean alone, got `method` {method.name}. Leave it out.")
        if alpha is None and method.name in ("linear", "slerp"):
            raise ValueError(f"`alpha` must be given for {method.name} with settings of its own, got none.")
        alpha = 1.0 if alpha is None else alpha
    if recipe is None and (alpha is None or soup == "greedy"):
        what = "`alpha`" if alpha is None else "`soup` greedy"
        raise ValueError(f"{what} needs a recipe, whose validation sets decide. Give `recipe`, or the other settings.")
    members, tried, curve = list(runs), list[str](), None
    if merge_adapter and len(runs) > 1:
        raise ValueError(f"`merge_adapter` takes one adapter, got {len(runs)} models.")
    if recipe is not None:
        parsed, args = parse_run(recipe)
        trainer, data = open_run(parsed, args, Path(runs[0]))
        members, tried = _mix(trainer, parsed, data, members, soup)
        if alpha is None:
            curve = search_run(trainer, replace(parsed, model_name_or_path=base), data)
            curve.finetuned = ", ".join(members)
            alpha = curve.alpha
    assert alpha is not None
    if merge_adapter:
        report = interpolate_adapter_checkpoint(base, members[0], output_dir, alpha, merge=True, **settings)
    else:
        report = interpolate_checkpoints(base, members, output_dir, alpha, method=method, **settings)
    if curve is not None:
        save_curve(curve, output_dir)
    return Merged(
        members=members, alpha=alpha, curve=curve, report=report, num_given=len(runs), method=method, tried=tried
    )


def format_merged(merged: Merged, soup: str) -> str:
    """Return the curve if there is one, the members of a soup, and what was interpolated, as a text."""
    curve = [] if merged.curve is None else [format_curve(merged.curve)]
    kind = f"{soup} soup" if merged.method.is_plain_mean else merged.method.name
    members = [f"{kind} of {', '.join(merged.members)}"] if merged.num_given > 1 else []
    return "\n".join([*curve, *merged.tried, *members, str(merged.report)])


def parse_dtype(name: str | None) -> torch.dtype | None:
    """Return a floating-point type by its name in torch.

    Raises:
        ValueError: if there is no such type.
    """
    dtype = None if name is None else getattr(torch, name, name)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise ValueError(f"`dtype` must be a floating-point type such as float32, bfloat16 or float16, got {name!r}.")


def parse_method(flags: Mapping[str, Any]) -> MergeMethod | None:
    """Return the method that flags of the command line describe; `None` where none of them is given.

    >>> parse_method({"method": "ties", "density": ["0.2"], "normalize": "false"}).given()
    {'name': 'ties', 'density': [0.2], 'normalize': False}
    """
    given = {key: flags[key] for key in ("method", *MergeMethod.__annotations__) if flags.get(key) is not None}
    for name in given.keys() & {"weights", "density", "gamma"}:
        try:
            given[name] = [parse_alpha(text) for text in given[name]]
        except ValueError as error:
            raise ValueError(str(error).replace("`alpha`", f"`{name}`")) from None
    for name in given.keys() & {"normalize", "rescale"}:
        given[name] = given[name] == "true"
    return MergeMethod(name=given.pop("method", "linear"), **given) if given else None


def read_mergekit(path: str | Path) -> dict[str, Any]:
    """Read a configuration of mergekit as arguments of `interpolate_checkpoints`, all but `output_dir`.

    Raises:
        ValueError: for methods, fields and parameters that are not offered, naming those that are.
    """
    config = _load_mergekit(path)
    name, shared = _MERGEKIT_METHODS[config["merge_method"]], config.get("parameters") or {}
    base, models = _models(config, with_base=name == "linear")
    own = [theirs for theirs, (ours, _) in _PARAMETERS.items() if ours in METHODS[name]]
    more = {"linear": ["normalize"], "slerp": ["t"]}.get(name, ["normalize", "rescale", "lambda", "int8_mask"])
    _check_offered(f"parameter of {name}", shared, [*own, *more])
    for model in models:
        _check_offered(f"parameter of a model for {name}", model.get("parameters") or {}, own)
    settings: dict[str, Any] = {}
    for theirs in own:
        ours, default = _PARAMETERS[theirs]
        settings[ours] = [_rules(theirs, default, model.get("parameters") or {}, shared) for model in models]
    factor = _rules("t", None, shared) if name == "slerp" else _rules("lambda", 1.0, shared)
    return {
        "base_dir": base,
        "finetuned_dir": [model["model"] for model in models],
        "alpha": factor,
        "method": MergeMethod(name=name, **settings, **_switches(name, shared)),
        "dtype": parse_dtype(config.get("out_dtype") or config.get("dtype")),
    }


_MERGEKIT_METHODS = {"dare_linear" if name == "dare" else name: name for name in METHODS}
_MERGEKIT_FIELDS = ["merge_method", "models", "base_model", "parameters", "dtype", "out_dtype"]
_PARAMETERS = {"weight": ("weights", None), "density": ("density", 1.0), "gamma": ("gamma", 0.01)}
"""What mergekit sets for each model → our name for it, and the default."""


def _load_mergekit(path: str | Path) -> dict[str, Any]:
    try:
        config = load_yaml(read_text(path))
    except ValueError as error:
        raise ValueError(f"`mergekit` must be a YAML file, got {str(path)!r}: {error}") from None
    _check_offered("field", config, _MERGEKIT_FIELDS)
    _check_offered("merge_method", {config.get("merge_method"): None}, _MERGEKIT_METHODS)
    return dict(config)


def _check_offered(what: str, found: Any, offered: Iterable[str]) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"`mergekit` must have a mapping such as {{{next(iter(offered))!r}: ...}}, got {found!r}.")
    for name in found:
        if name not in offered:
            known = f"Offered: {', '.join(offered) or 'none'}.{did_you_mean(str(name), offered)}"
            raise ValueError(f"`mergekit` has the {what} {name!r}, which is not offered. {known}")


def _models(config: Mapping[str, Any], *, with_base: bool) -> tuple[str, list[dict[str, Any]]]:
    """Return the base and the models, the base among them only where its weight counts, as in a mean."""
    models = config.get("models") or []
    for model in models:
        _check_offered("entry of a model", model, ["model", "parameters"])
    base = config.get("base_model", models[0].get("model") if models and with_base else None)
    models = [model for model in models if with_base or model.get("model") != base]
    names = [base, *(model.get("model") for model in models)]
    if not models or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`mergekit` must name a `base_model`, and in `models` at least one other, got {names}.")
    return names[0], models


def _rules(parameter: str, default: float | None, *scopes: Mapping[str, Any]) -> Alpha:
    """Return a parameter as numbers by tensor; of several scopes the first that says something of a tensor counts."""
    rules: dict[str, float | AlphaByDepth] = {}
    for setting in (scope[parameter] for scope in scopes if parameter in scope):
        entries = setting if isinstance(setting, list) else [setting]
        if not any(isinstance(entry, Mapping) for entry in entries):
            entries = [{"value": setting}]
        for entry in entries:
            _check_offered(f"entry of {parameter}", entry, ["value", "filter"])
            part = entry.get("filter") or "*"
            rules.setdefault("*" if part == "*" else f"*{part}*", _numbers(parameter, entry.get("value")))
    if default is not None:
        rules.setdefault("*", default)
    if not rules:
        raise ValueError(f"`mergekit` must give the parameter `{parameter}`, of every model if not of all.")
    return rules["*"] if next(iter(rules)) == "*" else rules


def _numbers(parameter: str, value: Any) -> float | AlphaByDepth:
    """Return one number, or numbers over the layers."""
    try:
        first, *others = map(float, value if isinstance(value, list) else [value])
    except (TypeError, ValueError):
        raise ValueError(f"`mergekit` must give `{parameter}` as numbers, got {value!r}.") from None
    return AlphaByDepth(first, others[-1], tuple(others[:-1])) if others else first


def _switches(name: str, shared: Mapping[str, Any]) -> dict[str, bool]:
    """Return what is true or false; what only says the default is left out."""
    found = {key: shared[key] for key in ("normalize", "rescale") if key in shared}
    for key, value in found.items():
        if not isinstance(value, bool):
            raise ValueError(f"`mergekit` must give `{key}` as true or false, got {value!r}.")
    return {key: value for key, value in found.items() if key in METHODS[name] or value != (name == "linear")}


def _mix(trainer: Trainer, recipe: Recipe, data: RecipeData, runs: list[str], soup: str) -> tuple[list[str], list[str]]:
    """Bring the mean of the runs, or of the best of them, into the trainer's model; return which, and lines on each."""
    if len(runs) == 1:
        return runs, []
    search = recipe.alpha_search or AlphaSearch()
    model = trainer.model
    if soup == "uniform":
        write_soup({f"run {index}": run for index, run in enumerate(runs)}, model)
        return runs, []
    sets = {"domain": scored_sets(data)[search.domain]}
    scorer = TrainerScorer(trainer, sets, None, search.metric, search.seed)

    def sign() -> int:
        return -1 if less_is_better(str(scorer.metric or "loss"), search.greater_is_better) else 1

    def score() -> float:
        found = scorer().selection["domain"]
        return sign() * float(found[str(scorer.metric or "loss")].mean())

    found = greedy_soup(dict(zip(runs, runs, strict=True)), model, score)
    return found.members, _format_trials(found.trials, f"domain {scorer.metric or 'loss'}", sign())


def _format_trials(trials: Sequence[Trial], metric: str, sign: int) -> list[str]:
    """Return a line on each run that was tried in a soup.

    >>> _format_trials([Trial("a", -0.5, 0.0, True), Trial("b", -0.75, -0.25, False)], "loss", -1)
    ['soup with a: loss 0.5000, the best alone', 'soup with b: loss 0.7500 (+0.2500), left out']
    """
    first, *others = trials
    return [f"soup with {first.run}: {metric} {sign * first.score:.4f}, the best alone"] + [
        f"soup with {each.run}: {metric} {sign * each.score:.4f} ({sign * each.gain:+.4f}), "
        f"{'kept' if each.is_kept else 'left out'}"
        for each in others
    ]
