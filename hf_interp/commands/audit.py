"""`hf-interp audit`: what a run tells of the rows that it was trained on, over α."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_interp.commands.verify import load_order
from hf_interp.reporting.audits import AUDIT_PLOT_NAME, leak_charts
from hf_interp.reporting.charts import draw_panels, save_figure
from hf_interp.reporting.results import load_run_results, save_results
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.leaks import Members, attacks, measure_exposure
from hf_interp.selection.scoring import TrainerScorer, Units, evaluating, predict, summarise
from hf_interp.tasks.build import audited_corpus
from hf_interp.tasks.probes import REFERENCES, canary_texts, encode_canaries
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.runs import find_members, held_out, load_run_recipe, open_run, over_alpha, parse_run
from hf_interp.utils.run_folder import RESULTS_NAME


def audit_run(
    path: str | Path, flags: Sequence[str] = (), *, corpus: str | None = None, num_examples: int = 1000
) -> tuple[dict[str, Any], Path]:
    """Measure how well the losses of M_α tell rows that M_θ was trained on from others, at every α.

    Two attacks are tried (see `hf_interp.selection.leaks.attacks`). Where canaries were planted, their exposure is
    measured too.

    Args:
        path: the folder of the run, or its recipe.
        flags: laid over the recipe, such as `--alpha_search.alphas 5`.
        corpus: the training corpus whose rows are looked for; by default the first of the domain.
        num_examples: rows of it that the run has read, and rows of the test set of its side, at the most.

    Returns:
        what was found, and the folder of the run, into whose `results.json` it is put; the picture lies beside it.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: for a corpus that does not fit, too few rows, or a task that generates.
    """
    recipe, args = parse_run(load_run_recipe(path, flags))
    folder, search = Path(args.output_dir or "."), recipe.alpha_search or AlphaSearch()
    results = load_run_results(folder / RESULTS_NAME)
    name, plan = audited_corpus(recipe, corpus), load_order(folder).plan
    trainer, data = open_run(recipe, args, folder)
    members, sizes = find_members(recipe, data.tokenizer, plan, name, num_examples)
    count = recipe.corpora[name].canaries
    planted = encode_canaries(name, recipe.corpora[name], recipe, data.tokenizer) if count else []
    scorer = TrainerScorer(trainer, {}, None, search.metric, search.seed)
    held = held_out(recipe, name)
    alphas = over_alpha(trainer, recipe, data)
    points = _measure(scorer, recipe, alphas, held, members, planted)
    audit: dict[str, Any] = {"corpus": name, "set": held, "metric": scorer.metric or "loss", "num_examples": sizes}
    if count:
        texts = canary_texts(name, recipe.corpora[name])[0]
        audit |= {"canaries": count, "references": REFERENCES, "canary_texts": texts}
    results.audit = {**audit, "points": points}
    save_results(results, folder / RESULTS_NAME)
    save_figure(draw_panels(leak_charts(results.audit)), folder / AUDIT_PLOT_NAME)
    return results.audit, folder


def _measure(
    scorer: TrainerScorer,
    recipe: Recipe,
    alphas: Iterable[float],
    held: str,
    members: Members,
    planted: Sequence[Any],
) -> list[dict[str, Any]]:
    """Return for every α the metric on the other rows, how well both attacks find the members, and the exposure."""
    trainer, seed = scorer.trainer, (recipe.alpha_search or AlphaSearch()).seed
    points: list[dict[str, Any]] = []
    base: Sequence[Units] = []
    for alpha in alphas:  # M₀ comes first: it is the reference
        with evaluating(trainer, held):
            found = [predict(trainer, rows) for rows in members]
            units = scorer.scores(found[1], np.arange(len(members.others)))
        losses = [one.means for one in found]
        base = base or losses
        value, error = summarise(units[scorer.metric or "loss"])
        exposure = {"exposure": measure_exposure(trainer, planted[0], planted[1], seed)} if planted else {}
        utility = {"value": value, "std_error": error}
        points.append({"alpha": alpha, "utility": utility, **attacks(base, losses, seed), **exposure})
    return sorted(points, key=lambda point: float(point["alpha"]))
