"""`hf-interp plan`: what a recipe will read, before anything is trained."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from hf_interp.losses.per_example import IGNORE_INDEX
from hf_interp.mixture.collators import DISTILL, MaskingCollator
from hf_interp.mixture.continuation import continue_plan
from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.epochs import Epochs
from hf_interp.mixture.packing import mean_tokens, token_lengths
from hf_interp.mixture.plan import MixturePlan
from hf_interp.tasks.build import RecipeData, check_recipe, format_cut, load_data, plan_data
from hf_interp.tasks.corpora.media import describe
from hf_interp.tasks.corpora.splits import format_few, format_shared
from hf_interp.tasks.methods import format_method
from hf_interp.tasks.parsing import load_recipe, parse_recipe
from hf_interp.tasks.probes import format_canaries
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.self_corpus import format_made
from hf_interp.tasks.speech import is_ctc, transcribe
from hf_interp.tasks.task import get_task
from hf_interp.training.checkpoints import STATE_NAME, find_checkpoint, find_fault, read_mixture
from hf_interp.training.config import InterpolationConfig
from hf_interp.training.private import format_private
from hf_interp.utils.console import format_counts, format_table

COUNTS = ("drawn", "tokens", "passes", "all read at step")

MOST_BORDERS = 8
"""Ends of epochs that are told."""

MOST_STEPS = 2000
"""That are looked at: of a longer run so many, evenly spaced."""


def rate_weighted_alpha(plan: MixturePlan, args: TrainingArguments) -> float | None:
    """Return the mean of α over the steps of a plan from its start on, each weighted by its learning rate.

    It is `None` where the rates are not known beforehand (`reduce_lr_on_plateau`), or all are 0.
    """
    steps = np.unique(np.linspace(plan.start_step, plan.max_steps - 1, MOST_STEPS).round().astype(int))
    rates = learning_rate_factors(args, steps.tolist(), plan.max_steps)
    if rates is None or not sum(rates):
        return None
    alphas = [plan.alpha(step) for step in steps.tolist()]
    return math.fsum(rate * alpha for rate, alpha in zip(rates, alphas, strict=True)) / math.fsum(rates)


def learning_rate_factors(args: TrainingArguments, steps: list[int], max_steps: int) -> list[float] | None:
    """Return by what the learning rate is multiplied at some steps; `None` if that depends on training."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    kwargs = dict(args.lr_scheduler_kwargs or {})
    try:
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(max_steps),
            num_training_steps=max_steps,
            scheduler_specific_kwargs=kwargs,
        )
    except TypeError as error:
        raise ValueError(
            f"`lr_scheduler_kwargs` ({kwargs}) do not suit `lr_scheduler_type` ({args.lr_scheduler_type.value}): "
            f"{error}. See its function in `transformers.optimization`."
        ) from error
    if not isinstance(scheduler, LambdaLR):
        return None
    return [float(scheduler.lr_lambdas[0](step)) for step in steps]


class Preview(NamedTuple):
    """The plan of a recipe, with what else is known before training."""

    plan: MixturePlan
    mean_tokens: dict[str, float]
    """Of an example, by corpus."""
    summary: dict[str, Any]
    """`MixturePlan.summary()` with the rest, as plain values; `format_plan` tells it."""


def plan_recipe(
    path: str,
    flags: Sequence[str] = (),
    resume: str | None = None,
    num_processes: int | None = None,
    distance_examples: int | None = None,
    num_samples: int = 0,
    estimates_memory: bool = False,
    measure: bool = False,
) -> Preview:
    """Plan a recipe, and return also what is known of its examples and of its learning rate.

    Args:
        path, flags: as for training.
        resume: a checkpoint to go on from, or a folder whose last whole checkpoint is meant.
        num_processes: processes to plan for; those of the checkpoint by default, or 1.
        distance_examples: of each side, by which their distance for M₀ is measured; by default it is not.
        num_samples: examples of each corpus to show.
        estimates_memory: whether to estimate the memory of a process.
        measure: take a few steps, and say how long they last and what memory they need.

    Raises:
        ValueError, OSError: as training would raise, or if the distance cannot be measured or the memory told.
    """
    for name, count, least in (("num_processes", num_processes, 1), ("samples", num_samples, 0)):
        if count is not None and count < least:
            raise ValueError(f"`{name}` must be at least {least}, got {count}.")
    given = load_recipe(path, flags)
    recipe, args = parse_recipe(given)
    task = check_recipe(recipe, args)
    if distance_examples is not None:
        from hf_interp.commands import distance

        if task.info.takes != "text":
            raise ValueError(f"A distance is one of texts, got the task {recipe.task}. Leave out --distance.")
        distance.check_both_sides([corpus.side or "" for corpus in recipe.corpora.values()])
    saved = None if resume is None else _read_checkpoint(resume)
    data = load_data(recipe, task, makes=False)
    unmade = [name for name, found in data.made.items() if not found.is_there]
    if unmade and (measure or distance_examples is not None):
        what = "time" if measure else "distance"
        raise ValueError(f"The {what} is that of data, and M₀ has not made `{unmade[0]}` yet. Train first.")
    plan = plan_data(data, args, num_processes or (saved or {}).get("num_processes"))
    resumed = None
    if saved is not None:
        plan, changes = continue_plan(plan, saved["plan"], saved["global_step"])
        resumed = {"step": saved["global_step"], "changes": changes}
    known = {corpus.name: mean_tokens(corpus.dataset) for corpus in data.corpora}
    lengths = {name: length for name, length in known.items() if length is not None}
    summary = _summarise_plan(plan, args, lengths, resumed)
    more: dict[str, Any] = {
        "labels": {corpus.name: counts for corpus in data.corpora if (counts := count_labels(corpus, recipe))},
        "method": "".join(format_method(given)),
        "memory": _memory(recipe, args, data) if estimates_memory else {},
        "few": format_few(data.measured_rows(), task.info.answer),
        "made": [*format_made(data.made), *format_canaries(recipe), *format_private(plan, args)],
        "measured": _measure(given, data) if measure else {},
        "cut": {name: list(counts) for name, counts in data.cut.items()},
        "shared": {name: list(counts) for name, counts in data.shared.items()},
        "samples": {
            corpus.name: sample_texts(corpus, data.tokenizer, recipe, num_samples)
            for corpus in data.corpora
            if num_samples and f"corpora.{corpus.name}" not in unmade
        },
    }
    if distance_examples is not None:
        more["distance"] = distance.measure_distance(recipe, args, data, num_examples=distance_examples).to_dict()
    return Preview(plan, lengths, summary | {name: found for name, found in more.items() if found})


def _summarise_plan(
    plan: MixturePlan, args: InterpolationConfig, lengths: Mapping[str, float], resumed: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a plan in numbers, with epochs and tokens; of one that is resumed also what each corpus gave before."""
    summary = {**plan.summary(), "rate_weighted_alpha": rate_weighted_alpha(plan, args)}
    epochs = Epochs(plan, args.mixture_epoch)
    count, ends = epochs.passed(plan.max_steps)[0], epochs.borders(MOST_BORDERS)
    summary["epochs"] = {"side": epochs.side, "count": count, "ends": ends}
    for corpus in summary["corpora"]:
        length = lengths.get(corpus["name"])
        corpus["tokens"] = None if length is None else round(length * corpus["drawn"])
    if resumed is not None:
        summary["resumed"] = resumed
        for corpus, count in zip(summary["corpora"], plan.drawn_before(resumed["step"]).tolist(), strict=True):
            corpus["read_before"] = count
    return summary


def _memory(recipe: Recipe, args: InterpolationConfig, data: RecipeData) -> dict[str, int]:
    """Return what training needs in memory, by the longest rows that there are."""
    from hf_interp.commands.memory import estimate_memory

    rows = [corpus.dataset for corpus in data.corpora if isinstance(corpus.dataset, datasets.Dataset)]
    longest = (
        recipe.max_length if len(rows) < len(data.corpora) else max(int(token_lengths(each).max()) for each in rows)
    )
    distills = any(corpus.objective == DISTILL for corpus in data.corpora)
    return estimate_memory(recipe, args, longest, distills=distills)


def count_labels(corpus: Corpus, recipe: Recipe) -> dict[str, int]:
    """Return how many examples of a corpus have each label, or how many of its words; else nothing."""
    own = recipe.for_objective(corpus.objective)
    names = own.label_names if get_task(own.task).num_labels(own) is not None else None
    if not names or corpus.objective == DISTILL or not isinstance(corpus.dataset, datasets.Dataset):
        return {}
    column = corpus.dataset.select_columns(["labels"]).with_format("arrow")[:]["labels"].combine_chunks()
    labels = np.asarray(column.flatten() if pa.types.is_list(column.type) else column)
    is_one = np.issubdtype(labels.dtype, np.integer)
    labels = labels[labels != IGNORE_INDEX]
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True)) if is_one else {}


def sample_texts(corpus: Corpus, tokenizer: Any, recipe: Recipe, count: int) -> list[str]:
    """Return the first examples of a corpus as the model sees them: their tokens as a text, and their labels."""
    own = recipe.for_objective(corpus.objective)
    names = own.label_names or []
    collate = get_task(own.task).collator(tokenizer, own)
    texts = []
    for example in islice(corpus.dataset, count):
        if isinstance(collate, MaskingCollator):  # the text with a draw of its masks, and what stood there
            example = {name: row[0].tolist() for name, row in collate([example]).items()}
        ids, labels = example.get("input_ids"), example.get("labels")
        if ids is None:
            said = get_task(own.task).info.answer == "text" and labels is not None
            answer = f" → {transcribe(tokenizer, labels, of_ctc=is_ctc(own))}" if said else None
            texts.append(f"{describe(example)}{answer or _label_text(labels, (), names, tokenizer)}")
            continue
        rows = ids if ids and isinstance(ids[0], list) else [ids]
        shown = example.get("text") or " | ".join(tokenizer.decode(row) for row in rows)
        if "image" in example:
            texts.append(f"{describe(example)}: {shown}")
            continue
        texts.append(f"{sum(map(len, rows))} tokens: {shown}{_label_text(labels, ids, names, tokenizer)}")
    return texts


def _label_text(labels: Any, ids: Sequence[int], names: Sequence[str], tokenizer: Any) -> str:
    if labels is None:
        return ""
    if not isinstance(labels, list):
        return f" → {names[labels] if names and isinstance(labels, int) else labels}"
    places = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    if names and len(labels) == len(ids):
        return " → " + " ".join(f"{tokenizer.decode([ids[place]])}/{names[labels[place]]}" for place in places)
    if names:
        return f" → {', '.join(name for name, is_so in zip(names, labels, strict=True) if is_so) or 'no label'}"
    return f" → {tokenizer.decode([labels[place] for place in places])}"


def format_plan(summary: Mapping[str, Any]) -> str:
    """Return the plan as a text for the terminal."""
    tokens = [corpus["tokens"] for corpus in summary["corpora"]]
    total = f", about {sum(tokens):,} tokens" if None not in tokens else ""
    resumed, weighted = summary.get("resumed"), summary["rate_weighted_alpha"]
    since = f" (from step {summary['start_step']:,} on)" if summary["start_step"] else ""
    lines = [summary["method"]] if "method" in summary else []
    if resumed is not None:
        changes = "; ".join(resumed["changes"]) or "none, so the order stays that of the first run"
        lines += [f"goes on from step {resumed['step']:,}; changes: {changes}"]
    lines += [
        f"{summary['max_steps']:,} steps of {summary['batch_size']:,} examples{since}: "
        f"{summary['num_examples']:,} examples{total}",
        f"domain share over {'these' if summary['start_step'] else 'all'} steps: {summary['domain_share']:.1%}"
        + ("" if weighted is None else f"; α weighted by the learning rate: {weighted:.1%}"),
        *(["α is a share of tokens, the shares of a side are of examples"] if summary["unit"] == "tokens" else []),
        *([f"order: {summary['order']}"] if "order" in summary else []),
        f"fingerprint: {summary['fingerprint']}",
        _epoch_line(summary["epochs"]),
        "",
        format_table(
            ["step", *(f"{mark['step']:,}" for mark in summary["alpha"])],
            [
                ["α", *(f"{mark['alpha']:.3f}" for mark in summary["alpha"])],
                *(
                    [corpus["name"], *(f"{shares[index]:.1%}" for shares in summary["shares"])]
                    for index, corpus in enumerate(summary["corpora"] if "shares" in summary else ())
                ),
            ],
        ),
        "",
        format_table(
            ["corpus", "side", "examples", "share of side", *(["read before"] if resumed else []), *COUNTS],
            [_corpus_row(corpus) for corpus in summary["corpora"]],
        ),
    ]
    if "measured" in summary:
        from hf_interp.commands.measure import format_measured

        lines += ["", format_measured(summary["measured"], summary["max_steps"] - summary["start_step"])]
    lines += [""] * ("labels" in summary or "made" in summary)
    lines += summary.get("made", [])
    lines += [f"labels of {name}: {format_counts(counts)}" for name, counts in summary.get("labels", {}).items()]
    warnings = [*summary["warnings"], *format_cut(summary.get("cut", {})), *format_shared(summary.get("shared", {}))]
    warnings += summary.get("few", [])
    lines += ["", *(f"Warning: {warning}" for warning in warnings)] if warnings else []
    for name, samples in summary.get("samples", {}).items():
        lines += ["", f"{name}, as the model will see it:", *(f"- {sample}" for sample in samples)]
    if "memory" in summary:
        from hf_interp.commands.memory import format_memory

        lines += ["", format_memory(summary["memory"])]
    if "distance" in summary:
        from hf_interp.commands.distance import format_distance

        lines += ["", format_distance(summary["distance"])]
    return "\n".join(lines)


def _epoch_line(epochs: Mapping[str, Any]) -> str:
    sides = "both sides" if epochs["side"] == "all" else epochs["side"]
    ends = [f"{step:,}" for step in epochs["ends"]] + ["…"] * (len(epochs["ends"]) < epochs["count"])
    return f"epochs (passes of {sides}): {epochs['count']:.4g}, which end at step {', '.join(ends)}"


def _corpus_row(corpus: Mapping[str, Any]) -> list[str]:
    def cell(value: Any, form: str = ",", absent: str = "-") -> str:
        return absent if value is None else format(value, form)

    return [
        corpus["name"],
        corpus["side"],
        cell(corpus["num_examples"], absent="stream"),
        f"{corpus['share']:.1%}",
        *([cell(corpus["read_before"])] if "read_before" in corpus else []),
        cell(corpus["drawn"]),
        cell(corpus["tokens"]),
        cell(corpus["passes"], ".2f"),
        cell(corpus["exhausted_at"], absent="never"),
    ]


def _measure(recipe: Mapping[str, Any], data: RecipeData) -> dict[str, Any]:
    from hf_interp.commands.measure import measure_steps

    return measure_steps(recipe, data)


def _read_checkpoint(path: str) -> dict[str, Any]:
    """Read what a checkpoint, or the last whole one of a folder, says of the mixture."""
    folder = Path(path)
    checkpoint = folder if (folder / STATE_NAME).exists() else find_checkpoint(folder, weights_only=True).path
    if checkpoint is None:
        raise ValueError(f"{path!r} is no checkpoint and holds no whole one. Give a folder with one.")
    fault = find_fault(checkpoint, weights_only=True)
    if fault is not None:
        raise ValueError(f"The checkpoint {str(checkpoint)!r} cannot be resumed: {fault}. Take an earlier one.")
    saved = read_mixture(checkpoint)
    if saved is None:
        raise ValueError(
            f"The checkpoint {str(checkpoint)!r} was written without a mixture. Give one of a mixture's run."
        )
    return saved
