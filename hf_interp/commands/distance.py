"""How far apart the two sides of a recipe are for M₀: the proxy A-distance of their features, and M₀'s loss on both."""

import inspect
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer

from hf_interp.mixture.apportionment import SIDES, Side
from hf_interp.mixture.corpus import Corpus
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.scoring import predict, ratio_units, summarise, wilson_interval
from hf_interp.tasks.build import RecipeData, plan_data, prepare_model, trainer_class
from hf_interp.tasks.models import load_model
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.task import get_task
from hf_interp.training.config import InterpolationConfig

Array = npt.NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]

NUM_EXAMPLES = 500
"""Of each side."""
FEWEST_EXAMPLES = 10
PENALTIES = np.logspace(-2, 4, 13)
"""Among which the classifier's is chosen, within the folds that it is fitted on."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that features are made of: labels and masks for a loss would tell the sides of different objectives apart."""


@dataclass(frozen=True, kw_only=True)
class DomainDistance:
    """Result of `measure_distance`.

    Args:
        value: the proxy A-distance d_A = max(0, 2·(1 − 2·error)): 0 if the classifier guesses, 2 if it never errs.
        interval: of 95%, from Wilson's interval of the error.
        error: the share of examples held out on which a linear classifier takes one side for the other.
        num_examples: of each side.
        losses: by side: M₀'s mean loss over labels `value`, its `standard_error` over examples (`None` for one),
            `num_examples`, `unit` (nats, or squared error for regression), and `perplexity` of language models; `None`
            where there is no loss, for a reason among the notes.
        is_held_out: whether the losses are those of validation or evaluation sets, not of training examples, on which
            they are too small if M₀ was trained on them.
        notes: why a loss is missing.
        seconds: that it took, without loading the data.
        seed: by which examples were drawn and divided.
    """

    value: float
    interval: tuple[float, float]
    error: float
    num_examples: int
    losses: dict[str, dict[str, Any] | None]
    is_held_out: bool
    notes: tuple[str, ...]
    seconds: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "interval": list(self.interval), "notes": list(self.notes)}


def check_both_sides(sides: Sequence[str]) -> None:
    """Refuse to measure the distance of a side from nothing."""
    missing = [side for side in SIDES if side not in sides]
    if missing:
        raise ValueError(
            f"A distance needs corpora of both sides, but `corpora` has none of the {' and the '.join(missing)} side. "
            "Add one, or leave out --distance."
        )


def measure_distance(
    recipe: Recipe, args: InterpolationConfig, data: RecipeData, *, num_examples: int = NUM_EXAMPLES, seed: int = 0
) -> DomainDistance:
    """Measure the distance (Ben-David et al. 2007) of a recipe's two sides for its pretrained model, and its losses.

    Features are means of the last hidden state of the model without its head (the encoder's of an encoder-decoder)
    over the tokens of an example. The classifier is a ridge regression on standardised features, whose errors are
    counted on examples held out, in five folds. With few examples it finds less, and the distance is smaller. Pieces of
    one text in several examples, as packing makes them, make it larger.

    The loss is that of the model's own task on the recipe's validation or evaluation sets `general` and `domain` (or as
    its `alpha_search` calls them), or without both on the same training examples.

    Args:
        recipe, args, data: what would be trained (see `hf_interp.train`). An adapter is left out: it is not M₀'s.
        num_examples: to draw of each side, from its corpora by their shares; of streams the first are read. The side
            that has fewer limits both.
        seed: decides which are drawn, and the folds.
    """
    check_both_sides([corpus.side for corpus in data.corpora])
    begin = time.perf_counter()
    shares = {corpus["name"]: corpus["share"] for corpus in plan_data(data, args).summary()["corpora"]}
    drawn = [
        (each, draw_examples(each, max(0, round(num_examples * shares[each.name])), seed)) for each in data.corpora
    ]
    rows = {side: [row for each, found in drawn if each.side == side for row in found] for side in SIDES}
    for side, found in rows.items():
        if len(found) < FEWEST_EXAMPLES:
            raise ValueError(
                f"A distance needs at least {FEWEST_EXAMPLES} examples of each side, got {len(found)} of the {side} "
                "side. Ask for more (--distance_examples), add some, or leave out --distance."
            )
    held_out = _held_out_sets(recipe, data)
    evaluated = [(each, draw_examples(each, num_examples, seed)) for each in held_out] or drawn
    with tempfile.TemporaryDirectory() as folder:
        trainer, new_names = _open_base(recipe, args, data, folder)
        model = trainer.model.eval()
        backbone = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model.base_model
        general, domain = (pooled_features(backbone, rows[side], args.per_device_eval_batch_size) for side in SIDES)
        losses = {
            side: _side_loss(recipe, trainer, new_names, side, [pair for pair in evaluated if pair[0].side == side])
            for side in SIDES
        }
    error, ends, count = classifier_error(general, domain, seed=seed)
    value, high, low = (max(0.0, 2 * (1 - 2 * share)) for share in (error, *ends))
    return DomainDistance(
        value=value,
        interval=(low, high),
        error=error,
        num_examples=count,
        losses={side: None if isinstance(loss, str) else loss for side, loss in losses.items()},
        is_held_out=bool(held_out),
        notes=tuple(loss for loss in losses.values() if isinstance(loss, str)),
        seconds=round(time.perf_counter() - begin, 2),
        seed=seed,
    )


def classifier_error(general: Array, domain: Array, *, seed: int = 0) -> tuple[float, tuple[float, float], int]:
    """Return the error of a linear classifier of two samples of features, its 95% interval, and the examples a side.

    Args:
        general, domain: (num_examples, num_features). Of the longer as many rows are drawn as the other has.
        seed: decides these, and the five folds.

    >>> rows = np.random.default_rng(0).normal(size=(40, 3))
    >>> classifier_error(rows, rows + 100.0)[0]
    0.0
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = min(len(general), len(domain))
    generator = np.random.default_rng(seed)
    rows = np.concatenate([side[np.sort(generator.permutation(len(side))[:count])] for side in (general, domain)])
    sides = np.repeat([0, 1], count)
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    share = float((cross_val_predict(classifier, rows, sides, cv=folds) != sides).mean())
    return share, wilson_interval(share, 2 * count), count


def draw_examples(corpus: Corpus, size: int, seed: int) -> list[Mapping[str, Any]]:
    """Draw rows of a corpus with a seed, all if there are no more; of a stream take the first."""
    if corpus.is_stream:
        return list(islice(iter(corpus.dataset), size))
    generator = np.random.default_rng([seed, *corpus.name.encode()])
    chosen = np.sort(generator.permutation(len(corpus.dataset))[:size])
    return [corpus.dataset[int(index)] for index in chosen]


def pooled_features(backbone: Any, rows: Rows, batch_size: int = 32) -> Array:
    """Return means of a model's last hidden state over the tokens of each row: (num_rows, hidden_size).

    Args:
        backbone: a model without a head, in evaluation mode.
        rows: with `input_ids`, and with `attention_mask` and `token_type_ids` if the model is to see them.
        batch_size: rows at a time, padded on the right, where padding moves no token.
    """
    if any(len(row.get("input_ids", ())) == 0 for row in rows):
        raise ValueError("A distance needs examples with `input_ids`, got one without. Leave out --distance.")
    device, accepted = next(backbone.parameters()).device, inspect.signature(backbone.forward).parameters
    rows = [{"attention_mask": [1] * len(row["input_ids"]), **row} for row in rows]
    found = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        inputs = {
            name: pad_sequence([torch.as_tensor(row[name]) for row in batch], batch_first=True).to(device)
            for name in INPUTS
            if all(name in row for row in batch)
        }
        with torch.no_grad():
            made = backbone(**{name: each for name, each in inputs.items() if name in accepted})
        if getattr(made, "last_hidden_state", None) is None:
            raise ValueError(
                f"A distance needs a model with a `last_hidden_state`, but {type(backbone).__name__} has none. "
                "Leave out --distance."
            )
        weights = inputs["attention_mask"].double()[:, :, None]
        sums = (made.last_hidden_state.double() * weights).sum(dim=1)
        found.append((sums / weights.sum(dim=1).clamp(min=1)).cpu().numpy())
    return np.concatenate(found)


def format_distance(found: Mapping[str, Any]) -> str:
    """Return `DomainDistance.to_dict()` as lines for the terminal."""
    low, high = found["interval"]
    lines = [
        f"distance of the sides for M₀: d_A = {found['value']:.2f}, 95% interval {low:.2f} to {high:.2f}",
        f"  a linear classifier of its features errs on {found['error']:.1%} of {2 * found['num_examples']:,} training "
        "examples; d_A is 0 if it guesses, 2 if it never errs",
    ]
    for side, loss in found["losses"].items():
        if loss is not None:
            error = "" if loss["standard_error"] is None else f" ± {loss['standard_error']:.4f}"
            perplexity = "" if loss["perplexity"] is None else f", perplexity {loss['perplexity']:.2f}"
            count = f"{loss['num_examples']:,} {'held-out' if found['is_held_out'] else 'training'} examples"
            lines.append(f"  loss of M₀, {side}, {count}: {loss['value']:.4f}{error} {loss['unit']}{perplexity}")
    lines += [f"  {note}" for note in found["notes"]]
    lines.append(f"  measured in {found['seconds']:.1f} s; ± is the standard error of a loss")
    return "\n".join(lines)


def _held_out_sets(recipe: Recipe, data: RecipeData) -> list[Corpus]:
    """Return the validation sets of both sides, or else the evaluation sets; nothing unless both sides are there."""
    search = recipe.alpha_search or AlphaSearch()
    names: dict[Side, str] = {"general": search.general, "domain": search.domain}
    for group, sets in ((recipe.validation_corpora, data.validation_sets), (recipe.eval_corpora, data.eval_sets)):
        if all(name in sets for name in names.values()):
            return [Corpus(name, sets[name], side, objective=group[name].objective) for side, name in names.items()]
    return []


def _open_base(recipe: Recipe, args: InterpolationConfig, data: RecipeData, folder: str) -> tuple[Trainer, list[str]]:
    """Open M₀ in a trainer that evaluates it, and writes and tells nothing; return also the names of a new head."""
    task = get_task(recipe.task)
    model, new_names = load_model(recipe)
    prepare_model(recipe, task, model, data.tokenizer)
    arguments = InterpolationConfig(
        output_dir=folder,
        max_steps=1,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        use_cpu=args.use_cpu,
        seed=args.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
    )
    parts = {"data_collator": task.collator(data.tokenizer, recipe), "processing_class": data.tokenizer}
    trainer: Trainer = trainer_class(task)(model=model, args=arguments, **parts)
    trainer.remove_callback(PrinterCallback)
    return trainer, new_names


def _side_loss(
    recipe: Recipe, trainer: Trainer, new_names: Sequence[str], side: str, parts: Sequence[tuple[Corpus, Rows]]
) -> dict[str, Any] | str:
    """Return M₀'s loss on the rows of a side, or why there is none."""
    others = [corpus.objective for corpus, _ in parts if corpus.objective is not None]
    if others:
        return f"M₀ has no loss of its task on the {side} side, which trains the objective {others[0]}."
    if new_names:
        return (
            f"M₀ has no loss on the {side} side: its head for the task is new ({', '.join(new_names)}), and says "
            "nothing yet."
        )
    found = predict(trainer, [row for _, rows in parts for row in rows])
    if not found.has_losses or found.counts.sum() == 0:
        return f"M₀'s loss on the {side} side cannot be told by its logits and labels."
    value, error = summarise(ratio_units(found.losses, found.counts))
    task = get_task(recipe.task)
    return {
        "value": value,
        "standard_error": error,
        "num_examples": len(found.losses),
        "unit": "squared error" if recipe.problem_type == "regression" else "nats",
        "perplexity": math.exp(value) if task.is_packed or task.generates else None,
    }
