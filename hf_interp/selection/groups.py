"""An α for each group of parameters, by the gradient of the validation loss.

θ_α = θ₀ + Σ_g α_g·Δ_g, hence ∂f/∂α_g = ⟨∇_{θ_g} f(θ_α), Δ_g⟩: one backward pass over the validation examples gives the
derivative for every group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

from hf_interp.losses.per_example import count_labels
from hf_interp.losses.ref_model import shifts_labels
from hf_interp.selection.scoring import evaluating, halves, predict
from hf_interp.weights.adapters import AdapterInterpolation
from hf_interp.weights.alpha_spec import find_layer, last_layers
from hf_interp.weights.live import LiveInterpolation

NUM_STEPS = 20
"""Gradients that a search takes at most."""


def parameter_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of a model's weights by place: embeddings, lower, middle and upper third of the layers, the rest.

    >>> parameter_groups(["wte.weight", "h.0.w", "h.1.w", "h.2.w", "ln_f.weight"])
    {'embeddings': ['wte.weight'], 'lower': ['h.0.w'], 'middle': ['h.1.w'], 'upper': ['h.2.w'], 'rest': ['ln_f.weight']}
    """
    places = {name: find_layer(name) for name in names}
    last = last_layers(places.values())
    groups: dict[str, list[str]] = {group: [] for group in ("embeddings", "lower", "middle", "upper", "rest")}
    for name, place in places.items():
        if place is not None:
            group = ("lower", "middle", "upper")[3 * place[1] // (last[place[0]] + 1)]
        else:
            group = "embeddings" if any(word in name for word in ("embed", "wte", "wpe", "shared")) else "rest"
        groups[group].append(name)
    return {group: members for group, members in groups.items() if members}


def spread_alphas(alphas: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """α by name from α by group.

    >>> spread_alphas({"lower": 0.2, "rest": 1.0}, {"lower": ["h.0.w", "h.0.b"], "rest": ["ln_f.w"]})
    {'h.0.w': 0.2, 'h.0.b': 0.2, 'ln_f.w': 1.0}
    """
    return {name: alphas[group] for group, names in groups.items() for name in names}


def search_groups(
    trainer: Trainer,
    live: LiveInterpolation | AdapterInterpolation,
    datasets: Mapping[str, Any],
    shares: Mapping[str, float],
    *,
    start: float,
    tolerance: float = 0.02,
    seed: int = 0,
) -> dict[str, float]:
    """α of every group of parameters, by projected gradient descent from one α for all.

    Gradients are taken on one half of the examples; a step is kept if the loss on the other half falls, and halved if
    not, so that there no result is worse than the start.

    Args:
        trainer: the trainer of M_θ; of one process.
        live: M_α in its model.
        datasets: by name, the examples by which α is chosen.
        shares: name → its share in the loss that is minimised.
        start: α to start from.
        tolerance: the search ends where steps are smaller.
        seed: decides the halves.

    Returns:
        group (see `parameter_groups`) → α.
    """
    fit, check = {}, {}
    for name in shares:
        first, second = halves(len(datasets[name]), seed, f"{name}, groups")
        fit[name], check[name] = take_rows(datasets[name], first), take_rows(datasets[name], second)
    groups = parameter_groups(live.names)

    def loss(alphas: Mapping[str, float]) -> float:
        live.set_alpha(spread_alphas(alphas, groups))
        return mean_loss(trainer, check, shares)

    low, high = min(start, 0.0), max(start, 1.0)
    alphas = dict.fromkeys(groups, start)
    best, size = loss(alphas), 0.2
    for _ in range(NUM_STEPS):
        slopes = group_slopes(trainer, live, fit, shares)
        steepest = max(abs(slope) for slope in slopes.values())
        if not steepest > 0:
            break
        tried = {group: min(max(alphas[group] - size * slopes[group] / steepest, low), high) for group in alphas}
        found = loss(tried)
        if found < best:
            alphas, best = tried, found
            continue
        size /= 2
        if size < tolerance:
            break
        live.set_alpha(spread_alphas(alphas, groups))
    return alphas


def mean_loss(trainer: Trainer, datasets: Mapping[str, Any], shares: Mapping[str, float]) -> float:
    """f: the weighted mean of the datasets' losses, each Σ losses / Σ labels, in nats."""
    found = {}
    for name in shares:
        with evaluating(trainer, name):
            found[name] = predict(trainer, datasets[name])
    return sum(shares[name] * float(one.losses.sum() / one.counts.sum()) for name, one in found.items())


def group_slopes(
    trainer: Trainer,
    live: LiveInterpolation | AdapterInterpolation,
    datasets: Mapping[str, Any],
    shares: Mapping[str, float],
) -> dict[str, float]:
    """∂f/∂α_g of every group at the present α, f being `mean_loss`; no gradients are left."""
    model = trainer.model
    group_of = {name: group for group, names in parameter_groups(live.names).items() for name in names}
    slopes = dict.fromkeys(group_of.values(), 0.0)
    wanted = {id(parameter) for _, parameter, _ in live.directions()}
    frozen = [parameter for parameter in model.parameters() if id(parameter) in wanted and not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        for name, share in shares.items():
            model.zero_grad(set_to_none=True)
            total = _add_gradients(trainer, trainer.get_eval_dataloader(datasets[name]))
            for weight, parameter, direction in live.directions():
                if parameter.grad is not None:
                    slope = float((parameter.grad.float() * direction).sum())
                    slopes[group_of[weight]] += share * slope / total
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    return slopes


def take_rows(dataset: Any, rows: Any) -> Any:
    """Some examples of a dataset."""
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows.tolist())


def _add_gradients(trainer: Trainer, batches: Any) -> float:
    """Add up the gradients of the sum of losses over labels; returns the number of labels."""
    total = 0.0
    for batch in batches:
        inputs = trainer._prepare_inputs(batch)
        count = _num_labels(trainer, inputs)
        if not count:
            continue
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, inputs)
        (loss * count).backward()
        total += count
    return total


def _num_labels(trainer: Trainer, inputs: Mapping[str, Any]) -> float:
    """Over how many labels the loss of a batch is a mean."""
    labels = [inputs.get(name) for name in trainer.label_names]
    if len(labels) != 1 or not isinstance(labels[0], torch.Tensor):
        return float(find_batch_size(inputs) or 0)
    return float(count_labels(labels[0], shift_labels=shifts_labels(trainer)).sum())
