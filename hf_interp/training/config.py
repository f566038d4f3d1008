"""`InterpolationConfig`: `TrainingArguments` with the settings of α, of controllers and of anchors."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import Seq2SeqTrainingArguments

from hf_interp.losses.kl_divergence import DIRECTIONS, Direction
from hf_interp.mixture.apportionment import UNITS, Unit
from hf_interp.mixture.controllers import AlphaController, get_controller
from hf_interp.mixture.epochs import EPOCH_SIDES, EpochSide
from hf_interp.mixture.order import DEFAULT_WINDOW, Order, Sampling
from hf_interp.mixture.paths import check_points
from hf_interp.mixture.schedules import DEFAULT_ALPHA, AlphaSchedule, get_alpha_schedule
from hf_interp.utils.errors import check_choice
from hf_interp.utils.yaml_values import parse_mapping, with_numbers

ANCHORS = ("distill", "l2sp")
ADVERSARIES = ("fgm", "freelb", "r3f")
AnchoredExamples = Literal["all", "general"]
Followed = Literal["1-alpha", "alpha"]


def _with_help(cls: type[Any]) -> type[Any]:
    """Give every field the text that the class's docstring has for it, as `HfArgumentParser` shows it."""
    texts = re.findall(r"^ {8}(\w+) \(.*?\): (.*(?:\n {12}.*)*)", cls.__doc__ or "", re.MULTILINE)
    for name, text in texts:
        setattr(cls, name, field(default=getattr(cls, name), metadata={"help": " ".join(text.split())}))
    return cls


@dataclass
@_with_help
class InterpolationConfig(Seq2SeqTrainingArguments):
    """[`~transformers.TrainingArguments`] with the settings of α, and those of generation for sequence to sequence.

    α(step) is the share of domain examples in the global batch of a step. It is held at `alpha_start` for
    `alpha_initial_steps`, moves to `alpha_end`, and is held there for `alpha_target_steps`. The settings take effect
    when the trainer's `train_dataset` is a mixture.

    An `anchor` ties the model to the pretrained M₀ with the weight (1 − α)·`anchor_strength`, over a mixture or an
    ordinary dataset (see `hf_interp.losses.anchor`).

    Args:
        alpha (`float`, *optional*, defaults to 0.5 if nothing is said of α): a constant α, in [0, 1], in place of a
            schedule; 0.5 ranks best by the mean of both sides.
        alpha_schedule_type (`str`, *optional*): constant, linear, exponential, cosine, sigmoid, polynomial, steps or
            piecewise. By default constant, or linear if another field of α is given: at equal steps no rise was better
            than a constant mixture.
        alpha_schedule_kwargs (`dict`, *optional*): further arguments of the schedule, such as `{"rate": 3.0}` of
            exponential.
        alpha_start (`float`, *optional*, defaults to 0.0): α at the start, in [0, 1].
        alpha_end (`float`, *optional*, defaults to 1.0, or 0.5 if constant): α at the end, in [0, 1].
        alpha_initial_steps (`float`, *optional*, defaults to 0): steps for which α is held at its start, or their share
            of the run if below 1.
        alpha_target_steps (`float`, *optional*, defaults to 0): steps for which α is held at its end, or their share of
            the run if below 1.
        mixture_path (`list[dict]`, *optional*): shares of all corpora over α, as points
            `{"at": 0.5, "web": 0.8, "code": 0.2}` with straight lines between. α is then the position on the path, by
            default from 0 to 1; `alpha_schedule_type` steps makes it jump from mixture to mixture.
        mixture_unit (`str`, *optional*, defaults to `"examples"`): what α and the shares count: "examples" or "tokens".
        mixture_epoch (`str`, *optional*, defaults to `"domain"`): the side whose pass is an epoch: "domain", "general",
            or "all" for as many examples as both have. `num_train_epochs` counts them where `max_steps` is not set.
        mixture_sampling (`str`, *optional*, defaults to `"exact"`): "exact" counts follow α at every step; "random"
            draws the corpus of every example, as `datasets.interleave_datasets` does.
        stopping_strategy (`str`, *optional*): of random sampling at a constant α, in place of a number of steps:
            "first_exhausted", "all_exhausted" or "all_exhausted_without_replacement".
        length_window (`int`, *optional*, defaults to 50): with `train_sampling_strategy: group_by_length`, the steps
            that share out their examples by length; at least 1, where each step keeps its own.
        alpha_controller (`str`, *optional*): let α answer to training: guard holds α back while a general metric
            is worse than at its start.
        alpha_controller_kwargs (`dict`, *optional*): arguments of the controller, such as `{"tolerance": 0.1}`.
        alpha_update_steps (`int`, *optional*, defaults to 10): steps from one decision of the controller to the next;
            at least 1.
        alpha_update_lag (`int`, *optional*, defaults to 10): steps from a decision until it is in force. It must exceed
            `dataloader_num_workers * dataloader_prefetch_factor / gradient_accumulation_steps`, which are on their way.
        log_corpus_loss (`bool`, *optional*, defaults to `True`): log the training loss of every corpus.
        anchor (`str`, *optional*): "distill" adds the divergence from M₀'s predictions to the loss; "l2sp" pulls the
            weights towards M₀'s after every optimizer step.
        anchor_strength (`float`, *optional*, defaults to 1.0): weight of the anchor at α = 0; at least 0. For l2sp it
            is γ: a step at learning rate η moves the weights by the share ηγ / (1 + ηγ) of their way to M₀.
        anchor_temperature (`float`, *optional*, defaults to 1.0): T, above 0, by which distill divides the logits of
            both models; the divergence is multiplied by T².
        anchor_direction (`str`, *optional*, defaults to `"forward"`): of distill: "forward" is KL(M₀‖M_θ), "reverse" is
            KL(M_θ‖M₀).
        anchor_on (`str`, *optional*, defaults to `"all"`): the examples that distill looks at: "all", or those of
            "general" corpora.
        anchor_alpha_schedule (`dict`, *optional*): α of the anchor where it is not to be the data's: a schedule's name
            or a mapping with its `type` and arguments, such as `{"type": "cosine", "end": 0.5}`. Without a mixture α
            is otherwise what the fields above describe, over the steps of the run.
        anchor_exclude (`list[str]`, *optional*): names of parameters that l2sp leaves alone, such as those of
            a new head; `*` stands for any text.
        log_loss_gap (`bool`, *optional*, defaults to `False`): log by how much the loss exceeds M₀'s, which costs a
            forward pass of M₀.
        distill_temperature (`float`, *optional*, defaults to 1.0): T, above 0, by which the logits of both models are
            divided where a corpus has the objective "distill"; the divergence is multiplied by T².
        adversarial (`str`, *optional*): train also on inputs that are a little off: "fgm" steps once up the gradient,
            "freelb" several times, "r3f" takes noise and keeps the predictions (see `hf_interp.losses.adversarial`).
        adversarial_strength (`float`, *optional*, defaults to 1.0): weight of that part of the loss, above 0, at α = 0.
        adversarial_follows (`str`, *optional*, defaults to `"1-alpha"`): what the strength is multiplied by: "1-alpha"
            or "alpha".
        adversarial_alpha_schedule (`dict`, *optional*): α of this where it is not to be the data's, as
            `anchor_alpha_schedule` is. `{"type": "constant", "value": 0.0}` keeps the whole strength throughout.
        adversarial_epsilon (`float`, *optional*, defaults to 0.2, or 1e-5 for r3f): ε, above 0: the norm by which the
            embeddings (or pixels, or sound) of an example are moved at most; for r3f the largest number of its noise.
        adversarial_steps (`int`, *optional*, defaults to 3): K of freelb, at least 1; a step of training costs K + 1.
        adversarial_step_size (`float`, *optional*, defaults to ε / K): η of freelb, above 0.
        average_from (`float`, *optional*): the share of the run, in [0, 1), from which on the weights are averaged;
            the model ends with their mean. Meant for `lr_scheduler_type: constant_with_warmup`.
        dp_epsilon (`float`, *optional*): ε of differential privacy for the rows of domain corpora, above 0: their
            gradients are clipped one by one, and noised (see `hf_interp.training.private`).
        dp_delta (`float`, *optional*): δ of it, in (0, 1), and far below one over the number of rows.
        dp_max_grad_norm (`float`, *optional*, defaults to 1.0): the norm, above 0, to which it clips the gradient of an
            example.

    Raises:
        ValueError: for an unknown schedule, argument or anchor, or a value out of range.
    """

    alpha: float | None = None
    alpha_schedule_type: str | None = None
    alpha_schedule_kwargs: dict[str, Any] | str | None = None
    alpha_start: float | None = None
    alpha_end: float | None = None
    alpha_initial_steps: float = 0.0
    alpha_target_steps: float = 0.0
    mixture_path: list[dict[str, Any]] | None = None
    mixture_unit: Unit = "examples"
    mixture_epoch: EpochSide = "domain"
    mixture_sampling: Sampling = "exact"
    stopping_strategy: str | None = None
    length_window: int = DEFAULT_WINDOW
    alpha_controller: str | None = None
    alpha_controller_kwargs: dict[str, Any] | str | None = None
    alpha_update_steps: int = 10
    alpha_update_lag: int = 10
    log_corpus_loss: bool = True
    anchor: str | None = None
    anchor_strength: float = 1.0
    anchor_temperature: float = 1.0
    anchor_direction: Direction = "forward"
    anchor_on: AnchoredExamples = "all"
    anchor_alpha_schedule: dict[str, Any] | str | None = None
    anchor_exclude: list[str] | None = None
    log_loss_gap: bool = False
    distill_temperature: float = 1.0
    adversarial: str | None = None
    adversarial_strength: float = 1.0
    adversarial_follows: Followed = "1-alpha"
    adversarial_alpha_schedule: dict[str, Any] | str | None = None
    adversarial_epsilon: float | None = None
    adversarial_steps: int = 3
    adversarial_step_size: float | None = None
    average_from: float | None = None
    dp_epsilon: float | None = None
    dp_delta: float | None = None
    dp_max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha_schedule_kwargs", "alpha_controller_kwargs"):
            value = getattr(self, name)
            setattr(self, name, with_numbers(parse_mapping(name, value) if isinstance(value, str) else value))
        for name in ("alpha", "alpha_start", "alpha_end"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be an α in [0, 1], got {getattr(self, name)}.")
        self._settle_path()
        self._settle_schedule()
        for name in ("alpha_update_steps", "alpha_update_lag"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.mixture_unit not in UNITS:
            raise ValueError(f"`mixture_unit` must be 'examples' or 'tokens', got {self.mixture_unit!r}.")
        if self.mixture_epoch not in EPOCH_SIDES:
            raise ValueError(f"`mixture_epoch` must be {' or '.join(EPOCH_SIDES)}, got {self.mixture_epoch!r}.")
        self._check_order()
        self.build_alpha_schedule(max_steps=self.max_steps if self.max_steps > 0 else 1 << 40)
        self.build_alpha_controller()
        if not isinstance(self.lr_scheduler_kwargs or {}, Mapping):
            raise ValueError(f"`lr_scheduler_kwargs` must be a mapping, got {self.lr_scheduler_kwargs!r}.")
        self._check_anchor()
        self._check_adversary()
        self._settle_own_schedules()
        self._check_privacy()

    def _check_privacy(self) -> None:
        if (self.dp_epsilon is None) != (self.dp_delta is None):
            raise ValueError("`dp_epsilon` and `dp_delta` go together. Set both, or neither.")
        if self.dp_epsilon is not None and not 0 < self.dp_epsilon < math.inf:
            raise ValueError(f"`dp_epsilon` must be a finite number above 0, got {self.dp_epsilon}.")
        if self.dp_delta is not None and not 0 < self.dp_delta < 1:
            raise ValueError(f"`dp_delta` must lie in (0, 1), got {self.dp_delta}.")
        if not 0 < self.dp_max_grad_norm < math.inf:
            raise ValueError(f"`dp_max_grad_norm` must be a finite number above 0, got {self.dp_max_grad_norm}.")

    def _check_order(self) -> None:
        """Refuse an order that is none, or an end of the run that another field sets too."""
        if self.length_window < 1:
            raise ValueError(f"`length_window` must be at least 1, got {self.length_window}.")
        groups = self.train_sampling_strategy == "group_by_length"
        Order(self.mixture_sampling, None, self.stopping_strategy, self.length_window if groups else 0)
        for name, default in (("max_steps", -1), ("num_train_epochs", 3.0)):
            if self.stopping_strategy is not None and getattr(self, name) != default:
                raise ValueError(
                    f"`stopping_strategy` ({self.stopping_strategy}) ends the run, which `{name}` "
                    f"({getattr(self, name)}) contradicts. Leave one of them out."
                )

    def _settle_path(self) -> None:
        """Check what can be checked of a path without the corpora."""
        if self.mixture_path is None:
            return
        check_points(self.mixture_path)
        if self.alpha_controller is not None:
            raise ValueError(
                f"`alpha_controller` ({self.alpha_controller}) cannot move α along a `mixture_path`, whose counts "
                "depend on α of later steps. Leave one of them out."
            )

    def _settle_schedule(self) -> None:
        """Fill in what is not given of the schedule. Who sets an end, a phase or a controller means α to move."""
        if self.alpha is not None:
            self._settle_constant(self.alpha)
        if self.alpha_schedule_type is None:
            moves = self.alpha_start, self.alpha_end, self.alpha_schedule_kwargs, self.alpha_controller
            is_still = all(value is None for value in (*moves, self.mixture_path)) and not (
                self.alpha_initial_steps or self.alpha_target_steps
            )
            self.alpha_schedule_type = "constant" if is_still else "linear"
        is_constant = self.alpha_schedule_type == "constant"
        if self.alpha_end is None:
            self.alpha_end = DEFAULT_ALPHA if is_constant else 1.0
        if self.alpha_start is None:
            self.alpha_start = self.alpha_end if is_constant else 0.0
        if is_constant and self.alpha_start != self.alpha_end:
            raise ValueError(
                f"A constant α has no two ends, got `alpha_start` {self.alpha_start} and `alpha_end` {self.alpha_end}. "
                "Set `alpha` alone, or another `alpha_schedule_type`."
            )

    def _settle_constant(self, alpha: float) -> None:
        """Write a constant α into the fields of the schedule, and refuse what contradicts it."""
        fields = {"alpha_schedule_type": "constant", "alpha_start": alpha, "alpha_end": alpha}
        for name, value in {**fields, "alpha_initial_steps": 0.0, "alpha_target_steps": 0.0}.items():
            given = getattr(self, name)
            if given is not None and given != value:
                raise ValueError(
                    f"`alpha` ({alpha}) holds α constant, which `{name}` ({given}) contradicts. Leave one of them out."
                )
            setattr(self, name, value)

    def _check_anchor(self) -> None:
        if self.anchor is not None:
            check_choice("anchor", self.anchor, ANCHORS)
        for name, options in (("anchor_direction", DIRECTIONS), ("anchor_on", get_args(AnchoredExamples))):
            if getattr(self, name) not in options:
                raise ValueError(f"`{name}` must be {' or '.join(map(repr, options))}, got {getattr(self, name)!r}.")
        if not 0 <= self.anchor_strength < math.inf:
            raise ValueError(f"`anchor_strength` must be a finite number of at least 0, got {self.anchor_strength}.")
        for name in ("anchor_temperature", "distill_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be a finite number above 0, got {getattr(self, name)}.")
        if self.average_from is not None and not 0 <= self.average_from < 1:
            raise ValueError(
                f"`average_from` must be a share of the run in [0, 1), got {self.average_from}: a mean that begins at "
                "the end is over nothing."
            )
        if isinstance(self.anchor_exclude, str):
            self.anchor_exclude = [self.anchor_exclude]

    def _check_adversary(self) -> None:
        """Refuse what adversarial training cannot have."""
        if self.adversarial is not None:
            check_choice("adversarial", self.adversarial, ADVERSARIES)
        check_choice("adversarial_follows", self.adversarial_follows, get_args(Followed))
        for name in ("adversarial_strength", "adversarial_epsilon", "adversarial_step_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a finite number above 0, got {value}.")
        if self.adversarial_steps < 1:
            raise ValueError(f"`adversarial_steps` must be at least 1, got {self.adversarial_steps}.")

    def _settle_own_schedules(self) -> None:
        """Read the schedules of what is added to the loss, and refuse fields that it does not look at."""
        for name in ("anchor_alpha_schedule", "adversarial_alpha_schedule"):
            if isinstance(text := getattr(self, name), str):
                setattr(self, name, {"type": text} if text.isidentifier() else parse_mapping(name, text))
            setattr(self, name, with_numbers(getattr(self, name)))
        for entry in dataclasses.fields(self):
            owner, kinds = _OWNERS.get(entry.name, ("", ()))
            if kinds and getattr(self, owner) not in kinds and getattr(self, entry.name) != entry.default:
                raise ValueError(
                    f"`{entry.name}` ({getattr(self, entry.name)}) needs `{owner}` to be {' or '.join(kinds)}, got "
                    f"{getattr(self, owner)!r}."
                )
        max_steps = self.max_steps if self.max_steps > 0 else 1 << 40
        self.build_anchor_schedule(max_steps)
        self.build_adversarial_schedule(max_steps)

    def build_anchor_schedule(self, max_steps: int) -> AlphaSchedule | None:
        """Return the anchor's own schedule of α for a run of `max_steps`; `None` if it follows the data's."""
        return self._own_schedule("anchor_alpha_schedule", max_steps)

    def build_adversarial_schedule(self, max_steps: int) -> AlphaSchedule | None:
        """Return the schedule of α that adversarial training has of its own, as `build_anchor_schedule` does."""
        return self._own_schedule("adversarial_alpha_schedule", max_steps)

    def _own_schedule(self, name: str, max_steps: int) -> AlphaSchedule | None:
        schedule = getattr(self, name)
        if schedule is None:
            return None
        kwargs: dict[str, Any] = dict(schedule)
        if "type" not in kwargs or "max_steps" in kwargs or "alpha_schedule_type" in kwargs:
            raise ValueError(
                f"`{name}` must hold the `type` of a schedule and its arguments, such as {{type: cosine, end: 0.5}}, "
                f"got {schedule}."
            )
        return get_alpha_schedule(str(kwargs.pop("type")), max_steps=max_steps, **kwargs)

    def build_alpha_controller(self) -> AlphaController | None:
        """Return the controller that the fields describe; `None` without one."""
        if self.alpha_controller is None:
            if self.alpha_controller_kwargs:
                raise ValueError(
                    f"`alpha_controller_kwargs` ({self.alpha_controller_kwargs}) need an `alpha_controller`: guard."
                )
            return None
        kwargs: dict[str, Any] = dict(self.alpha_controller_kwargs or {})  # type: ignore[arg-type]
        return get_controller(self.alpha_controller, **kwargs)

    def build_alpha_schedule(self, max_steps: int | None = None) -> AlphaSchedule:
        """Return the schedule that the fields describe, for a run of `max_steps` (default: this configuration's)."""
        kwargs: dict[str, Any] = dict(self.alpha_schedule_kwargs or {})  # type: ignore[arg-type]
        for name in kwargs:
            if name in _FIELD_OF:
                raise ValueError(f"`alpha_schedule_kwargs` must not hold {name!r}; set `{_FIELD_OF[name]}` instead.")
        assert self.alpha_schedule_type is not None  # settled, as the ends are
        assert self.alpha_start is not None
        assert self.alpha_end is not None
        return get_alpha_schedule(
            self.alpha_schedule_type,
            start=self.alpha_start,
            end=self.alpha_end,
            max_steps=self.max_steps if max_steps is None else max_steps,
            initial_steps=self.alpha_initial_steps,
            target_steps=self.alpha_target_steps,
            **kwargs,
        )


_FIELD_OF = {
    "alpha_schedule_type": "alpha_schedule_type",
    "start": "alpha_start",
    "end": "alpha_end",
    "value": "alpha",
    "max_steps": "max_steps",
    "initial_steps": "alpha_initial_steps",
    "target_steps": "alpha_target_steps",
}
"""Arguments of `get_alpha_schedule` that have fields of their own."""

_OWNERS = {
    "anchor_strength": ("anchor", ANCHORS),
    "anchor_alpha_schedule": ("anchor", ANCHORS),
    "anchor_temperature": ("anchor", ("distill",)),
    "anchor_direction": ("anchor", ("distill",)),
    "anchor_on": ("anchor", ("distill",)),
    "anchor_exclude": ("anchor", ("l2sp",)),
    "adversarial_strength": ("adversarial", ADVERSARIES),
    "adversarial_follows": ("adversarial", ADVERSARIES),
    "adversarial_alpha_schedule": ("adversarial", ADVERSARIES),
    "adversarial_epsilon": ("adversarial", ADVERSARIES),
    "adversarial_steps": ("adversarial", ("freelb",)),
    "adversarial_step_size": ("adversarial", ("freelb",)),
}
"""Fields that only some values of another field look at."""
