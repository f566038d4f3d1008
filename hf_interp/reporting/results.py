"""The results of a run or a comparison: plain dataclasses ↔ JSON. No torch."""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hf_interp.utils.environment import describe_machine, installed_versions
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.files import write_json
from hf_interp.utils.run_folder import RESULTS_NAME

COMMANDS = {"run": "train", "comparison": "compare", "search over α": "curve"}
"""That write results."""
EMISSIONS_NAME = "emissions.csv"  # codecarbon's own name
MORE_IS_BETTER = {
    *("accuracy", "balanced_accuracy", "overall_accuracy", "mean_token_accuracy", "token_accuracy", "exact_match"),
    *("f1", "f1_macro", "f1_micro", "f1_weighted", "macro_f1", "micro_f1", "weighted_f1", "overall_f1", "precision"),
    *("recall", "overall_precision", "overall_recall", "matthews_correlation", "roc_auc", "auc", "r2", "pearson"),
    *("pearsonr", "spearman", "spearmanr", "bleu", "sacrebleu", "chrf", "rouge1", "rouge2", "rougel", "rougelsum"),
    *("meteor", "bertscore", "mean_iou", "iou", "dice", "map", "mrr", "ndcg", "recall_at_1"),
    *(f"{way}_recall_at_{most}" for way in ("image", "text") for most in (1, 5)),
}
LESS_IS_BETTER = {
    *("loss", "perplexity", "error", "error_rate", "mse", "rmse", "mae", "mape", "smape", "wer", "cer", "ter", "nll"),
    *("brier_score", "ece", "hamming_loss"),
}
"""Metrics of which it is known which way they count, in small letters."""
MEAN_OF_MEANS = "The loss is Trainer's, a mean of the means of batches; the perplexity is over all tokens."
"""What to know where the two stand beside each other."""
SPEED_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(kw_only=True)
class RunResults:
    """One run.

    Args:
        config: the training arguments; `Trainer` masks tokens in them.
        plan: `MixturePlan.summary()`.
        base_metrics: metrics of M₀, evaluated before the first step (`eval_on_start`), by evaluation set.
        final_metrics: metrics of the last evaluation, by evaluation set.
        forgetting: how much of each metric on the general side was lost (see `forgetting`).
        log_history: everything the trainer logged.
        order: what was read: `MixturePlan.to_dict()` under `plan`, and the `decisions` of an adaptive α.
        versions: versions of the packages in use.
        machine: processor and platform.
        recipe: the recipe that the run followed, if any.
        model: the model's `class`, its `parameters` and `trained_parameters`, whether it `is_adapter` and of which
            `peft_type`; `weights`, the fingerprint of what the run saved.
        method: the `name` of the recipe's method, and the fields that it `sets`; nothing where there is none.
        packed: of how many rows the examples of a corpus were packed, by its name.
        cut: how many rows were longer than `max_length`, of how many, by corpora.domain, eval_corpora.general, ...
        made: what M₀ made before training, in words, likewise.
        groups: evaluation set → column → an account by group of M₀ (`base`) and of the trained model (`final`).
        pairs: set of pairs of texts → how often M₀ (`base`) and the trained model (`final`) prefer the first.
        audit: what `hf-interp audit` found of the trained model, by α.
        harness: what lm-eval found of M₀, M_α and M_θ: of every task and metric the score by α.
        local_paths: what in recipe, settings and model was a path where the run was, and no name on the Hub.
        working_dir: the folder that the recipe's relative paths are relative to.
        emissions: what codecarbon measured of the training, if it was on (see `read_emissions`).
    """

    config: dict[str, Any]
    plan: dict[str, Any]
    base_metrics: dict[str, dict[str, float]]
    final_metrics: dict[str, dict[str, float]]
    forgetting: dict[str, float]
    log_history: list[dict[str, Any]]
    order: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    recipe: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    working_dir: str = field(default_factory=os.getcwd)
    emissions: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[str, dict[str, Any]] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    harness: list[dict[str, Any]] = field(default_factory=list)
    local_paths: list[str] = field(default_factory=list)

    @classmethod
    def from_log(
        cls,
        *,
        config: dict[str, Any],
        plan: dict[str, Any],
        log_history: Sequence[Mapping[str, Any]],
        order: Mapping[str, Any] | None = None,
    ) -> "RunResults":
        """Gather base and final metrics from a trainer's `log_history`."""
        base = evaluations(entry for entry in log_history if entry.get("step") == 0)
        final = evaluations(log_history)
        return cls(
            config=config,
            plan=plan,
            base_metrics=base,
            final_metrics=final,
            forgetting=forgetting(base.get("general", {}), final.get("general", {})),
            log_history=[dict(entry) for entry in log_history],
            order=dict(order or {}),
        )


@dataclass(kw_only=True)
class Comparison:
    """Several methods on the same data at equal steps, each over the same seeds.

    Args:
        rows: one entry per (method, seed): `method`, `seed`, `metrics` (by evaluation set), `forgetting`, `curve`.
        settings: what all runs share.
    """

    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())

    def methods(self) -> list[str]:
        """Return names of the methods, in the order in which they were run."""
        return list(dict.fromkeys(row["method"] for row in self.rows))

    def values(self, method: str, dataset: str, metric: str) -> list[float]:
        """Return the metric of a method on an evaluation set, one value a seed."""
        return [row["metrics"][dataset][metric] for row in self.rows if row["method"] == method]

    def metric(self, dataset: str) -> str:
        """Return the main metric of an evaluation set; sides that train different objectives have different ones."""
        found = main_metric({dataset: self.rows[0]["metrics"][dataset]})
        assert found is not None
        return found

    def table(self, metric: str | None = None) -> list[dict[str, Any]]:
        """Return mean and standard deviation over seeds of a metric on both sides, and of its forgetting, by method.

        Without a `metric` it is the main one of each side.
        """
        domain, general = (metric or self.metric(side) for side in ("domain", "general"))
        table = []
        for method in self.methods():
            lost = [row["forgetting"].get(general) for row in self.rows if row["method"] == method]
            table.append(
                {
                    "method": method,
                    "domain": spread(self.values(method, "domain", domain)),
                    "general": spread(self.values(method, "general", general)),
                    "forgetting": spread([value for value in lost if value is not None]),
                }
            )
        return table

    def shown(self, digits_of_alpha: int = 2) -> list[list[str]]:
        """Return header and rows of that table: mean ± standard deviation over seeds, with the α of the weights."""
        sides = [f"{side} {self.metric(side)}" for side in ("domain", "general")]
        rows = [["method", "α of weights", *sides, "forgetting"]]
        for row in self.table():
            alphas = [one["alpha"] for one in self.rows if one["method"] == row["method"] and "alpha" in one]
            cells = [_shown(row[name], 3) for name in ("domain", "general", "forgetting")]
            rows.append([row["method"], _shown(spread(alphas), digits_of_alpha), *cells])
        return rows


def _shown(found: dict[str, float] | None, digits: int) -> str:
    if found is None:
        return ""
    mean = f"{found['mean']:.{digits}f}"
    return f"{mean} ± {found['std']:.{digits}f}" if found["num"] > 1 else mean  # one seed tells no spread


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean and (sample) standard deviation; `None` without values.

    >>> spread([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951, 'num': 2}
    """
    if not values:
        return None
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0, "num": len(values)}


def greater_is_better(metric: str) -> bool | None:
    """Return whether more of a metric is better; `None` of one that is not known. What ends in "loss" is a loss.

    >>> [greater_is_better(metric) for metric in ("rougeL", "next_token_loss", "f1_answer")]
    [True, False, None]
    """
    name = metric.lower()
    return True if name in MORE_IS_BETTER else False if name in LESS_IS_BETTER or name.endswith("loss") else None


def less_is_better(metric: str, said: bool | None = None) -> bool:
    """Return whether less of a metric is better, by its name or by what is `said` of its `greater_is_better`."""
    known = greater_is_better(metric)
    if known is None and said is None:
        raise ValueError(
            f"It is not known whether more of the metric {metric!r} is better. Set `greater_is_better` beside it to "
            "true or false." + did_you_mean(metric, MORE_IS_BETTER | LESS_IS_BETTER)
        )
    if said is not None and known is not None and said != known:
        raise ValueError(f"`greater_is_better` must be {str(known).lower()} of the metric {metric!r}, got {said}.")
    return not (known if said is None else said)


def forgetting(base: Mapping[str, float], final: Mapping[str, float]) -> dict[str, float]:
    """Return base metric minus final metric on the general side, so that above 0 is lost skill.

    Metrics of which less is better (losses, error rates, perplexity) are taken the other way round; those of which it
    is not known are left out.

    >>> forgetting({"accuracy": 0.75, "loss": 1.0}, {"accuracy": 0.5, "loss": 1.25})
    {'accuracy': 0.25, 'loss': 0.25}
    """
    known = {name: greater_is_better(name) for name in base if name in final}
    return {
        name: base[name] - final[name] if is_more else final[name] - base[name]
        for name, is_more in known.items()
        if is_more is not None
    }


def main_metric(metrics: Mapping[str, Mapping[str, float]]) -> str | None:
    """Return the metric to show, of those of all sets if any: accuracy, the first that is no loss, the loss.

    >>> main_metric({"domain": {"loss": 0.5, "f1": 0.8}, "general": {"loss": 2.0, "perplexity": 7.4}})
    'loss'
    """
    names = [name for found in metrics.values() for name in found if name not in SPEED_METRICS]
    names = [name for name in names if all(name in found for found in metrics.values())] or names
    for choice in ("accuracy", *(name for name in names if not name.endswith("loss")), *names):
        if choice in names:
            return choice
    return None


def evaluations(log_history: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the last value of every metric by evaluation set, from entries such as `{"eval_domain_loss": 0.4}`.

    Metrics of a single, unnamed evaluation set stand under the empty name.

    >>> evaluations([{"eval_domain_loss": 0.5}, {"eval_domain_loss": 0.4, "eval_domain_runtime": 2.0, "step": 9}])
    {'domain': {'loss': 0.4}}
    """
    found: dict[str, dict[str, float]] = {}
    for entry in log_history:
        # `Trainer` logs one evaluation set at a time, and gives each its run time: that key tells the set's name,
        # and where it is missing the loss does
        timed, guessed = (
            [key.removesuffix(end) for key in entry if key.startswith("eval") and key.endswith(f"_{end}")]
            for end in ("runtime", "loss")
        )
        for prefix in timed or guessed:
            metrics = found.setdefault(prefix[len("eval_") :].rstrip("_"), {})
            for key, value in entry.items():
                metric = key.removeprefix(prefix)
                if key.startswith(prefix) and metric not in SPEED_METRICS:
                    metrics[metric] = value
    return found


def losses_by_side(logs: Mapping[str, Any], sides: Mapping[str, str]) -> dict[str, float]:
    """Return the mean training loss of each side in a log, by the sides of the corpora; without them that of all.

    >>> logs = {"loss_a": 1.0, "share_a": 0.2, "loss_b": 3.0, "share_b": 0.2, "loss_c": 2.5, "share_c": 0.6}
    >>> losses_by_side(logs, {"a": "general", "b": "general", "c": "domain"})
    {'general': 2.0, 'domain': 2.5}
    """
    drawn = [name for name in sides if logs.get(f"share_{name}") and f"loss_{name}" in logs]
    found = {}
    for side in dict.fromkeys(sides[name] for name in drawn):
        shares = {name: logs[f"share_{name}"] for name in drawn if sides[name] == side}
        found[side] = sum(share * logs[f"loss_{name}"] for name, share in shares.items()) / sum(shares.values())
    return found or {"": logs["loss"]}


def save_results(results: Any, path: str | os.PathLike[str]) -> None:
    """Write a results dataclass as JSON: whole or not at all."""
    write_json(path, _without_nan(asdict(results)), indent=2)


def load_results(path: str | os.PathLike[str], **kinds: type[Any]) -> Any:
    """Read what `save_results` wrote.

    `kinds` are the dataclasses that it may hold by their names in messages, such as `run=RunResults`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {str(path)!r}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}. Run again what wrote it.") from None
    keys = set(found) if isinstance(found, dict) else set()
    shared = {name: len(keys & {part.name for part in fields(kind)}) for name, kind in kinds.items()}
    nearest = max(shared, key=lambda name: shared[name])
    if not shared[nearest]:
        got = f"the fields {', '.join(sorted(keys)[:8])}" if keys else type(found).__name__
        raise ValueError(
            f"{str(path)!r} must hold the results of a {' or a '.join(kinds)}, got {got}. Name the folder that "
            f"`hf-interp {' or '.join(COMMANDS[name] for name in kinds)}` wrote."
        )
    try:
        results = kinds[nearest](**found)
    except TypeError as error:
        raise ValueError(
            f"{str(path)!r} was written by another version of hf_interp, or changed ({error}). Run again what wrote it."
        ) from None
    hints = get_type_hints(kinds[nearest])
    misfits = (_misfit(value, hints[name], name) for name, value in vars(results).items())
    misfit = next((name for name in misfits if name is not None), None)
    if misfit is not None:
        raise ValueError(
            f"`{misfit}` in {str(path)!r} is not what `hf-interp {COMMANDS[nearest]}` writes there. Run it again."
        )
    return results


@contextmanager
def blamed_on(*paths: str | os.PathLike[str]) -> Iterator[None]:
    """Say of an error that is not ours that it comes of what is in these files."""
    names = ", ".join(repr(str(path)) for path in paths)
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and any(str(path) in str(error) for path in paths):
            raise
        raise ValueError(
            f"What is in {names} cannot be shown ({type(error).__name__}: {error}): it was changed, or written by "
            "another version of hf_interp. Run again what wrote it."
        ) from error


def load_run_results(path: str | os.PathLike[str]) -> RunResults:
    """Read the results of a run; see `load_results`."""
    found: RunResults = load_results(path, run=RunResults)
    return found


def load_comparison(path: str | os.PathLike[str]) -> Comparison:
    """Read the results of a comparison, of its folder too; see `load_results`."""
    path = Path(path)
    found: Comparison = load_results(path / RESULTS_NAME if path.is_dir() else path, comparison=Comparison)
    return found


def read_emissions(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what codecarbon wrote of the last run into a folder; nothing if the file or a value is missing.

    Returns:
        `emissions` in kg of CO₂ equivalents, `energy` in kWh, the `country` whose electricity was assumed, `source`.
    """
    path = Path(folder) / EMISSIONS_NAME
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        last = rows[-1]
        return {
            "emissions": float(last["emissions"]),
            "energy": float(last["energy_consumed"]),
            "country": last["country_name"],
            "source": f"codecarbon {last['codecarbon_version']}",
        }
    except (IndexError, KeyError, TypeError, ValueError):  # an empty file, one of another version, half a line
        return {}


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not know, by nothing."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _misfit(value: Any, hint: Any, name: str) -> str | None:
    """Return the name of what is not of its type in nested results; a number may be unknown inside them."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or (hint is float and value is None and "." in name):
        return None
    if origin is UnionType:
        return None if any(_misfit(value, part, name) is None for part in parts) else name
    if origin in (dict, list) and isinstance(value, origin):
        inside = value.items() if origin is dict else enumerate(value)
        found = (_misfit(inner, parts[-1], f"{name}.{key}") for key, inner in inside)
        return next((misfit for misfit in found if misfit is not None), None)
    kind = (int, float) if hint is float else origin or hint
    return None if isinstance(value, kind) and (hint is bool or not isinstance(value, bool)) else name
