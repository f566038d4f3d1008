"""`hf-interp plan`: what a recipe will read, before anything is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_interp.config import load_recipe, parse_recipe
from hf_interp.console import format_table
from hf_interp.plan import MixturePlan
from hf_interp.train import check_recipe, load_data, plan_data

TOKEN_SAMPLE = 1000  # examples of a corpus whose lengths are averaged


def plan_recipe(path: str, flags: Sequence[str] = ()) -> tuple[MixturePlan, dict[str, float]]:
    """The plan of a recipe, and the mean number of tokens of an example of each corpus.

    Raises:
        ValueError, OSError: as training would raise.
    """
    recipe, args = parse_recipe(load_recipe(path, flags))
    data = load_data(recipe, check_recipe(recipe, args))
    return plan_data(data, args), {
        corpus.name: _mean_tokens(corpus.dataset) for corpus in data.corpora if not corpus.is_stream
    }


def summarise(plan: MixturePlan, mean_tokens: Mapping[str, float]) -> dict[str, Any]:
    """`MixturePlan.summary()` with the tokens that each corpus gives."""
    summary = plan.summary()
    for corpus in summary["corpora"]:
        mean = mean_tokens.get(corpus["name"])
        corpus["tokens"] = None if mean is None else round(mean * corpus["drawn"])
    return summary


def format_plan(summary: Mapping[str, Any]) -> str:
    """The plan as a text for the terminal."""
    tokens = [corpus["tokens"] for corpus in summary["corpora"]]
    total = f", about {sum(tokens):,} tokens" if None not in tokens else ""
    lines = [
        f"{summary['max_steps']:,} steps of {summary['batch_size']:,} examples: "
        f"{summary['num_examples']:,} examples{total}",
        f"domain share over the whole run: {summary['domain_share']:.1%}",
        f"fingerprint: {summary['fingerprint']}",
        "",
        format_table(
            ["step", *(f"{mark['step']:,}" for mark in summary["alpha"])],
            [["α", *(f"{mark['alpha']:.3f}" for mark in summary["alpha"])]],
        ),
        "",
        format_table(
            ["corpus", "side", "examples", "share of side", "drawn", "tokens", "passes", "all read at step"],
            [_corpus_row(corpus) for corpus in summary["corpora"]],
        ),
    ]
    lines += ["", *(f"Warning: {warning}" for warning in summary["warnings"])] if summary["warnings"] else []
    return "\n".join(lines)


def _corpus_row(corpus: Mapping[str, Any]) -> list[str]:
    def cell(value: Any, form: str = ",", absent: str = "-") -> str:
        return absent if value is None else format(value, form)

    return [
        corpus["name"],
        corpus["side"],
        cell(corpus["num_examples"], absent="stream"),
        f"{corpus['share']:.1%}",
        cell(corpus["drawn"]),
        cell(corpus["tokens"]),
        cell(corpus["passes"], ".2f"),
        cell(corpus["exhausted_at"], absent="never"),
    ]


def _mean_tokens(dataset: Any) -> float:
    """Mean length of `input_ids` over evenly spaced examples."""
    count = min(len(dataset), TOKEN_SAMPLE)
    sample = dataset.select([index * len(dataset) // count for index in range(count)])
    return sum(len(row["input_ids"]) for row in sample) / count
