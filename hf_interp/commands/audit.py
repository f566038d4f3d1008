"""`hf-interp audit`: what a run tells of the rows that it was trained on, over α."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_interp.commands.verify import load_order
from hf_interp.mixture.plan import MixturePlan
from hf_interp.reporting.audits import AUDIT_PLOT_NAME, leak_charts
from hf_interp.reporting.charts import draw_panels, save_figure
from hf_interp.reporting.results import load_run_results, save_results
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.scoring import TrainerScorer, Units, evaluating, predict, summarise, wilson_interval
from hf_interp.tasks.build import tokenise
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.runs import load_run_recipe, open_run, over_alpha, parse_run
from hf_interp.tasks.splits import Keys
from hf_interp.tasks.task import get_task
from hf_interp.utils.errors import did_you_mean
from hf_interp.utils.run_folder import RESULTS_NAME

MIN_ROWS = 10
"""Rows of each kind without which a bootstrap of them says nothing."""
RATES = {"tpr_at_1_percent": 0.01, "tpr_at_0.1_percent": 0.001}
"""Rates of false positives at which the true positives are counted: what matters is who is found for sure."""
RESAMPLES = 500


def audit_run(
    path: str | Path, flags: Sequence[str] = (), *, corpus: str | None = None, num_examples: int = 1000
) -> tuple[dict[str, Any], Path]:
    """Measure how well the losses of M_α tell rows that M_θ was trained on from others, at every α.

    Two attacks are tried: by the loss of M_α (Yeom et al. 2018), and by how far it is below that of M₀, which says how
    hard a row is by itself (the offline attack of Carlini et al. 2022, with M₀ as the reference).

    Args:
        path: the folder of the run, or its recipe.
        flags: laid over the recipe, such as `--alpha_search.alphas 5`.
        corpus: the training corpus whose rows are looked for; by default the first of the domain.
        num_examples: rows of it that the run has read, and rows of the domain's test set, at the most.

    Returns:
        what was found, and the folder of the run, into whose `results.json` it is put; the picture lies beside it.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: for a corpus that does not fit, too few rows, or a task that generates.
    """
    recipe, args = parse_run(load_run_recipe(path, flags))
    folder, search = Path(args.output_dir or "."), recipe.alpha_search or AlphaSearch()
    results = load_run_results(folder / RESULTS_NAME)
    name = _choose_corpus(recipe, corpus)
    read = rows_read(load_order(folder).plan, name)
    trainer, data = open_run(recipe, args, folder)
    sets = {**recipe.validation_corpora, **recipe.eval_corpora}
    keys: list[dict[str, Keys]] = [{}, {}]
    trained = tokenise(name, recipe.corpora[name], recipe, data.tokenizer, keys=keys[0])
    tested = tokenise(search.domain, sets[search.domain], recipe, data.tokenizer, keys=keys[1])
    known, asked = (next(iter(found.values())) for found in keys)
    # of packed texts, whose rows are no longer those of the file, none can be left out
    unseen = np.flatnonzero(~np.isin(asked, known)) if len(asked) == len(tested) else np.arange(len(tested))
    rows = [np.random.default_rng(search.seed).permutation(some)[:num_examples] for some in (read, unseen)]
    sizes = {"members": len(rows[0]), "others": len(rows[1]), "left_out": len(tested) - len(unseen)}
    if min(map(len, rows)) < MIN_ROWS:
        raise ValueError(
            f"An audit needs at least {MIN_ROWS} rows of {name!r} that were read and as many of the set "
            f"{search.domain!r} that are not in it, got {len(rows[0])} and {len(rows[1])}. Add test rows, or audit "
            "another `corpus`."
        )
    scorer = TrainerScorer(trainer, {}, None, search.metric, search.seed)
    points = _over_alpha(scorer, recipe, search, trained.select(rows[0]), tested.select(rows[1]))
    audit = {"corpus": name, "set": search.domain, "metric": scorer.metric or "loss", "num_examples": sizes}
    results.audit = {**audit, "points": points}
    save_results(results, folder / RESULTS_NAME)
    save_figure(draw_panels(leak_charts(results.audit)), folder / AUDIT_PLOT_NAME)
    return results.audit, folder


def rows_read(plan: MixturePlan, name: str) -> npt.NDArray[np.int64]:
    """Return the rows of a corpus that a run has read, rising, each once."""
    found: set[int] = set()
    for step in range(plan.max_steps):
        part = plan.plan_of(step)
        draw = part.locate(range(step * part.batch_size, (step + 1) * part.batch_size))
        names = np.array([corpus.name for corpus in part.corpora])
        found |= set(draw.example[names[draw.corpus] == name].tolist())
    return np.array(sorted(found), dtype=np.int64)


def _choose_corpus(recipe: Recipe, corpus: str | None) -> str:
    """Return the name of the corpus whose rows are looked for."""
    if get_task(recipe.task).generates:
        raise ValueError(f"An audit needs the loss of every example, which {recipe.task} does not tell.")
    fitting = [
        name
        for name, one in recipe.corpora.items()
        if (one.side == "domain" or name == corpus) and not (one.objective or one.streaming or one.balance_by)
    ]
    if not fitting or corpus not in (None, *fitting):
        raise ValueError(
            "`corpus` must be a training corpus of the task, no stream, without `balance_by` "
            f"({', '.join(fitting) or 'there is none'}), got {corpus!r}." + did_you_mean(str(corpus), recipe.corpora)
        )
    return corpus or fitting[0]


def _over_alpha(
    scorer: TrainerScorer, recipe: Recipe, search: AlphaSearch, members: Any, others: Any
) -> list[dict[str, Any]]:
    """Return for every α the metric on the other rows and how well both attacks find the members."""
    trainer = scorer.trainer
    points: list[dict[str, Any]] = []
    first: list[Units] = []
    with evaluating(trainer, search.domain):
        for alpha in over_alpha(trainer, recipe):  # M₀ comes first: it is the reference
            found = [predict(trainer, rows) for rows in (members, others)]
            losses = [one.losses / np.maximum(one.counts, 1) for one in found]
            first = first or losses
            calibrated = [base_loss - loss for base_loss, loss in zip(first, losses, strict=True)]
            units = scorer.scores(found[1], np.arange(len(others)))
            value, error = summarise(units[scorer.metric or "loss"])
            points.append(
                {
                    "alpha": alpha,
                    "utility": {"value": value, "std_error": error},
                    "loss": attack(-losses[0], -losses[1], search.seed),
                    "calibrated": attack(calibrated[0], calibrated[1], search.seed),
                }
            )
    return sorted(points, key=lambda point: float(point["alpha"]))


def attack(members: Units, others: Units, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return how well scores, greater for members, tell these from others: AUC and true positive rates.

    The true positives at a rate of false positives are the members that score above all but that share of the others.
    Intervals are of 95%, by a bootstrap of the rows of both. Those of rates are at least as wide as Wilson's, because
    no resample finds a member where the sample has found none.

    Args:
        members: a score for each row that the model was trained on.
        others: the same of rows of the same kind that it was not trained on.
        seed: of the bootstrap.
    """
    draws = np.random.default_rng(seed)
    again = [_rates(draws.choice(members, len(members)), draws.choice(others, len(others))) for _ in range(RESAMPLES)]
    ends = np.quantile(again, (0.025, 0.975), axis=0).T.tolist()
    found = {}
    for name, value, (low, high) in zip(("auc", *RATES), _rates(members, others), ends, strict=True):
        least, most = wilson_interval(value, len(members)) if name in RATES else (low, high)
        found[name] = {"value": value, "low": min(low, least), "high": max(high, most)}
    return found


def _rates(members: Units, others: Units) -> list[float]:
    ranked = np.sort(others)
    below = (np.searchsorted(ranked, members, "left") + np.searchsorted(ranked, members, "right")) / 2
    cuts = [ranked[len(ranked) - 1 - int(rate * len(ranked))] for rate in RATES.values()]
    return [float(below.mean() / len(ranked)), *(float((members > cut).mean()) for cut in cuts)]
