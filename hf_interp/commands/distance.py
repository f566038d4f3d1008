"""How far apart the two sides of a recipe are for M₀, measured before anything is trained.

Two numbers: the proxy A-distance (Ben-David et al. 2007, Analysis of Representations for Domain Adaptation), which asks
how well a linear classifier tells the sides apart by M₀'s features, and M₀'s loss on both.
"""

import inspect
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PrinterCallback, Trainer

from hf_interp.mixture.apportionment import SIDES, Side
from hf_interp.mixture.corpus import Corpus
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.scoring import predict, ratio_units, summarise
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
FOLDS = 5
PENALTIES = np.logspace(-2, 4, 13)
"""Among which the classifier's is chosen, within the folds that it is fitted on."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that features are made of: labels and masks for a loss would tell the sides of different objectives apart."""


@dataclass(frozen=True, kw_only=True)
class SideLoss:
    """M₀'s loss on a side.

    Args:
        value: mean over labels.
        standard_error: over examples; `None` for one example.
        num_examples: that were evaluated.
        unit: nats, or squared error for regression.
        perplexity: of language models, exp(value).
    """

    value: float
    standard_error: float | None
    num_examples: int
    unit: str = "nats"
    perplexity: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProxyDistance:
    """A proxy A-distance, 2·(1 − 2ε), at least 0.

    Args:
        value: 0 if the classifier guesses, 2 if it makes no error.
        interval: of 95%, from Wilson's interval of ε.
        error: ε, the share of errors on examples held out.
        num_examples: of each side.
    """

    value: float
    interval: tuple[float, float]
    error: float
    num_examples: int


@dataclass(frozen=True, kw_only=True)
class DomainDistance:
    """Result of `measure_distance`.

    Args:
        distance: the proxy A-distance.
        losses: by side; `None` where there is none, for a reason among the notes.
        is_held_out: whether the losses are those of validation or evaluation sets, not of training examples, on which
            they are too small if M₀ was trained on them.
        notes: why a loss is missing.
        seconds: that it took, without loading the data.
        seed: by which examples were drawn and divided.
    """

    distance: ProxyDistance
    losses: dict[str, SideLoss | None]
    is_held_out: bool
    notes: tuple[str, ...]
    seconds: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = asdict(self)
        whole = {**found.pop("distance"), **found, "seconds": round(self.seconds, 2)}
        return {**whole, "interval": list(self.distance.interval), "notes": list(self.notes)}


def check_both_sides(sides: Sequence[str]) -> None:
    """Refuse to measure the distance of a side from nothing.

    Raises:
        ValueError: unless both sides are among those of the corpora.
    """
    missing = [side for side in SIDES if side not in sides]
    if missing:
        raise ValueError(
            f"A distance needs corpora of both sides, but `corpora` has none of the {' and the '.join(missing)} side. "
            "Add one, or leave out --distance."
        )


def measure_distance(
    recipe: Recipe, args: InterpolationConfig, data: RecipeData, *, num_examples: int = NUM_EXAMPLES, seed: int = 0
) -> DomainDistance:
    """Measure how far apart the corpora of a recipe are for its pretrained model, before it is trained.

    Features are means of the last hidden state of the model without its head (the encoder's of an encoder-decoder)
    over the tokens of an example. The classifier is a ridge regression on standardised features; its errors are counted
    on examples held out, in five folds. The smaller of both sides limits how many examples each has. With few examples
    the classifier finds less, and the distance is smaller. Pieces of one text in several examples, as packing makes
    them, make it larger.

    The loss is that of the model's own task on the recipe's validation or evaluation sets `general` and `domain` (or as
    its `alpha_search` calls them), or without both on the same training examples.

    Args:
        recipe, args, data: what would be trained (see `hf_interp.train`). An adapter is left out: it is not M₀'s.
        num_examples: to draw of each side, from its corpora by their shares; of streams the first are read.
        seed: decides which are drawn, and the folds.

    Raises:
        ValueError: if a side is missing or has fewer than 10 examples, or the model has no features of tokens.
    """
    check_both_sides([corpus.side for corpus in data.corpora])
    if num_examples < FEWEST_EXAMPLES:
        raise ValueError(f"A distance needs at least {FEWEST_EXAMPLES} examples of each side, got {num_examples}.")
    begin = time.perf_counter()
    shares = {corpus["name"]: corpus["share"] for corpus in plan_data(data, args).summary()["corpora"]}
    drawn = [(each, draw_examples(each, round(num_examples * shares[each.name]), seed)) for each in data.corpora]
    rows = {side: [row for each, found in drawn if each.side == side for row in found] for side in SIDES}
    for side, found in rows.items():
        if len(found) < FEWEST_EXAMPLES:
            raise ValueError(
                f"A distance needs at least {FEWEST_EXAMPLES} examples of each side, but the {side} side has "
                f"{len(found)}. Add examples, or leave out --distance."
            )
    held_out = held_out_sets(recipe, data)
    evaluated = [(each, draw_examples(each, num_examples, seed)) for each in held_out] or drawn
    with tempfile.TemporaryDirectory() as folder:
        trainer, new_names = _open_base(recipe, args, data, folder)
        model = trainer.model.eval()
        backbone = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model.base_model
        features = {side: pooled_features(backbone, rows[side], args.per_device_eval_batch_size) for side in SIDES}
        losses = {
            side: _side_loss(recipe, trainer, new_names, side, [pair for pair in evaluated if pair[0].side == side])
            for side in SIDES
        }
    return DomainDistance(
        distance=proxy_distance(features["general"], features["domain"], seed=seed),
        losses={side: None if isinstance(loss, str) else loss for side, loss in losses.items()},
        is_held_out=bool(held_out),
        notes=tuple(loss for loss in losses.values() if isinstance(loss, str)),
        seconds=time.perf_counter() - begin,
        seed=seed,
    )


def held_out_sets(recipe: Recipe, data: RecipeData) -> list[Corpus]:
    """Return the validation sets of both sides, or else the evaluation sets; nothing unless both sides are there."""
    search = recipe.alpha_search or AlphaSearch()
    names: dict[Side, str] = {"general": search.general, "domain": search.domain}
    for group, sets in ((recipe.validation_corpora, data.validation_sets), (recipe.eval_corpora, data.eval_sets)):
        if all(name in sets for name in names.values()):
            return [Corpus(name, sets[name], side, objective=group[name].objective) for side, name in names.items()]
    return []


def proxy_distance(general: Array, domain: Array, *, seed: int = 0) -> ProxyDistance:
    """Return the proxy A-distance of two samples of features.

    Args:
        general, domain: (num_examples, num_features). Of the longer as many rows are drawn as the other has.
        seed: decides these, and the five folds.

    Raises:
        ValueError: for fewer than 10 examples of a side.

    >>> rows = np.random.default_rng(0).normal(size=(40, 3))
    >>> proxy_distance(rows, rows + 100.0).value
    2.0
    """
    from scipy.stats import binomtest
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = min(len(general), len(domain))
    if count < FEWEST_EXAMPLES:
        raise ValueError(f"A distance needs at least {FEWEST_EXAMPLES} examples of each side, got {count}.")
    generator = np.random.default_rng(seed)
    rows = np.concatenate([side[np.sort(generator.permutation(len(side))[:count])] for side in (general, domain)])
    sides = np.repeat([0, 1], count)
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    errors = int((cross_val_predict(classifier, rows, sides, cv=folds) != sides).sum())
    found = binomtest(errors, 2 * count)
    low, high = found.proportion_ci(method="wilson")
    error = float(found.statistic)
    return ProxyDistance(
        value=distance_of(error),
        interval=(distance_of(float(high)), distance_of(float(low))),
        error=error,
        num_examples=count,
    )


def distance_of(error: float) -> float:
    """Return 2·(1 − 2ε), or 0 where the classifier is worse than guessing.

    >>> distance_of(0.0), distance_of(0.25), distance_of(0.6)
    (2.0, 1.0, 0.0)
    """
    return max(0.0, 2 * (1 - 2 * error))


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
        batch_size: rows at a time.

    Raises:
        ValueError: for rows without tokens, or a model without hidden states.
    """
    device = next(backbone.parameters()).device
    accepted = inspect.signature(backbone.forward).parameters
    found = []
    with torch.no_grad():
        for batch in _batches(rows, batch_size, getattr(backbone.config, "pad_token_id", None) or 0):
            inputs = {name: each.to(device) for name, each in batch.items() if name in accepted}
            hidden = getattr(backbone(**inputs), "last_hidden_state", None)
            if hidden is None:
                raise ValueError(
                    f"A distance needs a model with a `last_hidden_state`, but {type(backbone).__name__} has none. "
                    "Leave out --distance."
                )
            weights = batch["attention_mask"].to(device).double()[:, :, None]
            found.append(((hidden.double() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).cpu().numpy())
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


def _open_base(recipe: Recipe, args: InterpolationConfig, data: RecipeData, folder: str) -> tuple[Trainer, list[str]]:
    """Open M₀ in a trainer that evaluates it, and writes and tells nothing; return also the names of a new head."""
    task = get_task(recipe.task)
    model, new_names = load_model(recipe, revision=recipe.model_revision)
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
    trainer: Trainer = trainer_class(task)(
        model=model,
        args=arguments,
        data_collator=task.collator(data.tokenizer, recipe),
        processing_class=data.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, new_names


def _side_loss(
    recipe: Recipe, trainer: Trainer, new_names: Sequence[str], side: str, parts: Sequence[tuple[Corpus, Rows]]
) -> SideLoss | str:
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
    return SideLoss(
        value=value,
        standard_error=error,
        num_examples=len(found.losses),
        unit="squared error" if recipe.problem_type == "regression" else "nats",
        perplexity=math.exp(value) if task.is_packed or task.generates else None,
    )


def _batches(rows: Rows, size: int, pad: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield rows in batches, padded on the right, where padding moves no token."""
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        if any(len(row.get("input_ids", ())) == 0 for row in batch):
            raise ValueError("A distance needs examples with `input_ids`, got one without. Leave out --distance.")
        made = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.as_tensor(row[name]) for row in batch],
                batch_first=True,
                padding_value=pad if name == "input_ids" else 0,
            )
            for name in INPUTS
            if all(name in row for row in batch)
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        made.setdefault("attention_mask", (torch.arange(int(lengths.max())) < lengths[:, None]).long())
        yield made
