"""A model's weights by place: embeddings, thirds of the layers, the rest."""

from collections.abc import Mapping, Sequence

from hf_interp.weights.alpha_spec import find_layer, last_layers


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
