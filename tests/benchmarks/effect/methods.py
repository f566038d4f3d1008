"""The methods, each as fields of a recipe that are laid over those which all runs of a pair share.

All but one take the same number of optimizer steps and of examples. `M_α` of each is found by the run itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hf_interp.mixture.schedules import progress_of
from hf_interp.training.config import InterpolationConfig

BASE = "base"
"""M₀ itself, which no run trains."""
REFERENCES = ("domain", "constant-0.5")
"""What the others are compared with: plain fine-tuning, and the plainest mixture."""
CONSTANTS = ("constant-0.25", "constant-0.5", "constant-0.75", "domain")
"""By rising α; domain only is the constant mixture with α = 1."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train.

    Args:
        key: in commands and names of files.
        title: as tables call it.
        fields: fields of the recipe; or a function of (general examples, domain examples, steps) to them.
        rate_factor: of the pair's grid of learning rates; adapters need more.
        distills: whether the general corpus trains M₀'s predictions in place of its labels.
        is_self: whether M₀ makes the general corpus (`path: self`), which then trains its predictions, too.
    """

    key: str
    title: str
    fields: Mapping[str, Any] | Callable[[int, int, int], Mapping[str, Any]] = field(default_factory=dict)
    rate_factor: float = 1.0
    distills: bool = False
    is_self: bool = False

    def recipe_fields(self, num_general: int, num_domain: int, steps: int) -> dict[str, Any]:
        """What is laid over a recipe."""
        return dict(self.fields(num_general, num_domain, steps) if callable(self.fields) else self.fields)


def constant(value: float) -> dict[str, Any]:
    """A mixture that does not change."""
    return {"alpha": value}


def proportional(num_general: int, num_domain: int, steps: int) -> dict[str, Any]:
    """Both corpora thrown together."""
    return constant(num_domain / (num_domain + num_general))


def mean_alpha(fields: Mapping[str, Any], steps: int) -> float:
    """The mean of α over the steps of a run.

    >>> round(mean_alpha({"alpha_schedule_type": "linear", "alpha_end": 0.9}, 200), 6)
    0.45
    """
    named = {name: value for name, value in fields.items() if name.startswith("alpha")}
    schedule = InterpolationConfig(output_dir="unused", max_steps=steps, use_cpu=True, **named).build_alpha_schedule()
    return fmean(schedule(progress_of(step, steps)) for step in range(steps))


RISING: dict[str, Any] = {"alpha_schedule_type": "linear", "alpha_start": 0.0, "alpha_end": 1.0}
STAGES = [1 / 3, 1 / 2, 4 / 5, 1.0]
"""4,000, 2,000, 500 and no general examples beside 2,000 of the domain: the stages of Gradual Fine-Tuning (arXiv
2103.02205), here equally long."""
HELD = {"anchor_alpha_schedule": {"type": "constant", "value": 0.0}}
"""An anchor whose weight is `anchor_strength` throughout, whatever the mixture."""
FLAT = {"lr_scheduler_type": "constant_with_warmup"}
RATES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "cosine": ("cosine rate", lambda steps: {"lr_scheduler_type": "cosine"}),
    "wsd": (
        "warm-up-stable-decay rate",
        lambda steps: {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": max(1, steps // 5)},
        },
    ),
    "flat": ("constant rate", lambda steps: FLAT),
    "averaged": ("constant rate, averaged", lambda steps: {**FLAT, "average_from": 0.7}),
}
"""Learning-rate schedules other than the linear decay: title, and fields for a number of steps."""
MEAN: dict[str, Any] = {**FLAT, "average_from": 0.5}
"""The mean of the weights of the second half, at a constant rate."""


def _with_rate(base: "Method", key: str) -> "Method":
    """A method with another learning-rate schedule."""
    title, rate = RATES[key]
    return Method(
        key=f"{base.key}-{key}",
        title=f"{base.title}, {title}",
        fields=lambda general, domain, steps: {**base.recipe_fields(general, domain, steps), **rate(steps)},
    )


def _matching(base: "Method") -> "Method":
    """The control of a method: a constant mixture with as many domain examples."""
    return Method(
        key=f"{base.key}-matched",
        title=f"constant, matched to {base.title.removeprefix('rising, ')}",
        fields=lambda general, domain, steps: constant(mean_alpha(base.recipe_fields(general, domain, steps), steps)),
    )


_FIRST = [
    Method(key="domain", title="domain only", fields=constant(1.0)),
    Method(key="constant-0.5", title="constant 0.5", fields=constant(0.5)),
    Method(key="linear", title="rising, linear 0 → 1", fields=RISING),
    Method(
        key="sequential",
        title="general, then domain",
        fields={"alpha_schedule_type": "steps", "alpha_schedule_kwargs": {"values": [0.0, 1.0]}},
    ),
    Method(key="falling", title="falling, linear 1 → 0", fields={**RISING, "alpha_start": 1.0, "alpha_end": 0.0}),
    Method(key="constant-0.25", title="constant 0.25", fields=constant(0.25)),
    Method(key="constant-0.75", title="constant 0.75", fields=constant(0.75)),
]
_SECOND = [
    Method(key="linear-0.75", title="rising, linear 0 → 0.75", fields={**RISING, "alpha_end": 0.75}),
    Method(key="exponential", title="rising, exponential 0 → 1", fields={"alpha_schedule_type": "exponential"}),
    Method(
        key="l2sp",
        title="domain only, L2-SP",
        fields={**constant(1.0), **HELD, "anchor": "l2sp", "anchor_strength": 30.0},
    ),
    Method(
        key="distill",
        title="domain only, distillation",
        fields={**constant(1.0), **HELD, "anchor": "distill", "anchor_strength": 1.0},
    ),
    Method(key="lora", title="domain only, LoRA", fields={**constant(1.0), "peft": "lora"}, rate_factor=10),
    Method(
        key="gradual",
        title="rising, four stages",
        fields={"alpha_schedule_type": "steps", "alpha_schedule_kwargs": {"values": STAGES}},
    ),
    Method(
        key="three-phase",
        title="rising, three phases",
        fields={**RISING, "alpha_initial_steps": 0.25, "alpha_target_steps": 0.25},
    ),
    Method(key="proportional", title="proportional", fields=proportional),
    Method(key="cosine", title="rising, cosine 0 → 1", fields={"alpha_schedule_type": "cosine"}),
    Method(key="linear-0.9", title="rising, linear 0 → 0.9", fields={**RISING, "alpha_end": 0.9}),
]
LATE: dict[str, Any] = {"alpha_schedule_type": "steps", "alpha_schedule_kwargs": {"values": [0.0, 0.0, 0.0, 0.0, 1.0]}}
"""The domain alone in the last fifth, in which a warm-up-stable-decay rate falls: mid-training, as of MiniCPM (arXiv
2404.06395) and OLMo 2 (arXiv 2501.00656), at its purest."""
_BY_KEY = {method.key: method for method in (*_FIRST, *_SECOND)}
_LATE = _with_rate(Method(key="late", title="general, then domain in the last fifth", fields=LATE), "wsd")
_EARLY_OR_LATE = _with_rate(Method(key="constant-0.2", title="constant 0.2", fields=constant(0.2)), "wsd")
_THIRD = [
    _LATE,
    _EARLY_OR_LATE,
    *(_matching(_BY_KEY[key]) for key in ("linear-0.75", "exponential", "gradual", "linear-0.9")),
    *(
        _with_rate(_BY_KEY[key], rate)
        for rate in ("wsd", "averaged", "flat", "cosine")
        for key in ("constant-0.5", "linear")
    ),
]
_OF_M0 = [
    Method(
        key="kl-0.5-mean",
        title="constant 0.5, M₀'s predictions, mean of the weights",
        fields={**constant(0.5), **MEAN},
        distills=True,
    ),
    Method(
        key="kl-0.25-mean",
        title="constant 0.25, M₀'s predictions, mean of the weights",
        fields={**constant(0.25), **MEAN},
        distills=True,
    ),
    Method(
        key="kl-0.25-mean-0.7",
        title="constant 0.25, M₀'s predictions, mean of the weights, 0.7 of the steps",
        fields=lambda general, domain, steps: {**constant(0.25), **MEAN, "max_steps": round(0.7 * steps)},
        distills=True,
    ),
    Method(key="constant-0.25-mean", title="constant 0.25, mean of the weights", fields={**constant(0.25), **MEAN}),
    Method(key="constant-0.5-mean", title="constant 0.5, mean of the weights", fields={**constant(0.5), **MEAN}),
    Method(
        key="kl-0.75-mean",
        title="constant 0.75, M₀'s predictions, mean of the weights",
        fields={**constant(0.75), **MEAN},
        distills=True,
    ),
]
_SELF = [
    Method(key="self-0.5", title="constant 0.5, general side made by M₀", fields=constant(0.5), is_self=True),
    Method(
        key="self-0.25-mean",
        title="constant 0.25, general side made by M₀, mean of the weights",
        fields={**constant(0.25), **MEAN},
        is_self=True,
    ),
]
METHODS: dict[str, Method] = {method.key: method for method in (*_FIRST, *_SECOND, *_THIRD, *_OF_M0, *_SELF)}
"""By key. The linear rise from 0 to 1, the cosine, the three phases, the fall and the sequence have a mean α of a half:
their control is constant 0.5."""
