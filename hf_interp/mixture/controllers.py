"""An α that answers to how training goes: controllers, and the decisions they have taken.

A controller is asked every few steps, with metrics that are the same on all processes, for α of some steps that lie
ahead of all that any loader has fetched. What it answers is fixed in the plan and saved in checkpoints: a run that is
resumed reads on as if it had not stopped, with any number of workers. Neither torch nor transformers is imported here.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from hf_interp.mixture.plan import MixturePlan
from hf_interp.utils.errors import check_known, did_you_mean


class AlphaDecision(NamedTuple):
    """A decision of a controller."""

    alphas: float | Sequence[float]
    """α of the steps in question: one for all of them, or one for each."""
    reason: str
    """Why, in a few words for the log."""


class AlphaController(Protocol):
    """Decides on α while training goes on.

    A controller must decide alike for the same metrics and the same state: on every process, and after a restart.
    """

    def decide(
        self, steps: range, metrics: Mapping[str, float], schedule: Callable[[int], float]
    ) -> AlphaDecision | tuple[float | Sequence[float], str]:
        """Return α of `steps`.

        Args:
            steps: the 0-based optimizer steps in question.
            metrics: `general_loss` and `domain_loss`, the mean training losses of the two sides since the last decision
                (absent for a side that was not drawn), and the latest of every evaluation metric (`eval_...`).
            schedule: α that the schedule of the run has for a step.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers, as plain values for JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` has given."""


class Guard:
    """α follows its schedule while a general metric keeps near its starting value, and waits or goes back otherwise.

    With e = metric / starting value − 1, α moves on along its schedule for e ≤ tolerance, is held for e up to twice the
    tolerance, and goes back along its schedule, as fast as it had come, beyond that.

    Args:
        metric: the metric that is guarded; lower is better. `general_loss` is the training loss on general examples,
            and is not known while α is 1; `eval_<name>_loss` is as fresh as the last evaluation.
        tolerance: by how much the metric may grow, relative to its starting value.
        baseline: the starting value; by default the first that is seen.

    Raises:
        ValueError: for a tolerance or baseline that is not positive.

    >>> guard = Guard(tolerance=0.1)
    >>> schedule = lambda step: step / 100
    >>> guard.decide(range(10, 12), {"general_loss": 1.0}, schedule).alphas
    [0.1, 0.11]
    >>> guard.decide(range(12, 14), {"general_loss": 1.15}, schedule)
    AlphaDecision(alphas=[0.11, 0.11], reason='held: general_loss 1.15 is 15.0% above its start of 1')
    >>> guard.decide(range(14, 16), {"general_loss": 1.0}, schedule).alphas
    [0.12, 0.13]
    """

    def __init__(self, metric: str = "general_loss", tolerance: float = 0.05, baseline: float | None = None) -> None:
        for name, value in (("tolerance", tolerance), ("baseline", baseline)):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` of the guard must be positive, got {value}.")
        self.metric, self.tolerance, self.baseline = metric, tolerance, baseline
        self.delay = 0  # steps by which α is behind its schedule

    def decide(self, steps: range, metrics: Mapping[str, float], schedule: Callable[[int], float]) -> AlphaDecision:
        """Return α of `steps`; see `AlphaController.decide`."""
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            pace, reason = (1, f"on: {self.metric} is not known") if value is None else (-1, f"back: it is {value}")
        elif self.baseline is None and value <= 0:
            pace, reason = 1, f"on: {self.metric} {value:.4g} is not positive and no start to compare with"
        else:
            if self.baseline is None:
                self.baseline = value
            excess = value / self.baseline - 1
            word, pace = (
                ("on", 1) if excess <= self.tolerance else ("held", 0) if excess <= 2 * self.tolerance else ("back", -1)
            )
            place = f"{abs(excess):.1%} {'above' if excess > 0 else 'below'}"
            reason = f"{word}: {self.metric} {value:.4g} is {place} its start of {self.baseline:.4g}"
        # the last step decided before these had place - 1, on a schedule that is behind by `delay`
        last = steps.start - 1 - self.delay
        places = [max(last + pace * (1 + index), 0) for index in range(len(steps))]
        self.delay = steps[-1] - places[-1]
        return AlphaDecision([schedule(place) for place in places], reason)

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers."""
        return {"baseline": self.baseline, "delay": self.delay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` has given."""
        self.baseline, self.delay = state["baseline"], int(state["delay"])


CONTROLLERS: dict[str, Callable[..., AlphaController]] = {"guard": Guard}
"""Controllers by name."""


def get_controller(name: str, **kwargs: Any) -> AlphaController:
    """Return a controller by name.

    >>> get_controller("guard", tolerance=0.1).tolerance
    0.1
    """
    if name not in CONTROLLERS:
        raise ValueError(
            f"Unknown controller {name!r}; there are {list(CONTROLLERS)}." + did_you_mean(name, CONTROLLERS)
        )
    check_known(kwargs, inspect.signature(CONTROLLERS[name]).parameters, f"for the controller {name!r}")
    try:
        return CONTROLLERS[name](**kwargs)
    except TypeError as error:
        raise ValueError(f"Wrong arguments for the controller {name!r}: {error}.") from None


class AdaptiveAlpha:
    """A controller at work on a plan.

    Args:
        plan: an adaptive plan (`num_committed` below its `max_steps`).
        controller: who decides.
        update_steps: optimizer steps from one decision to the next.
        lag: steps from a decision until it is in force; more than any loader fetches ahead.

    Attributes:
        decisions (`list[dict]`): every decision taken: after which step, for which steps, α, and why.
    """

    def __init__(self, plan: MixturePlan, controller: AlphaController, update_steps: int, lag: int) -> None:
        self.plan, self.controller, self.update_steps, self.lag = plan, controller, update_steps, lag
        self.decisions: list[dict[str, Any]] = []

    def is_due(self, global_step: int) -> bool:
        """Whether a decision is to be taken after `global_step` steps."""
        return global_step + self.lag >= self.plan.num_committed < self.plan.max_steps

    def decide(self, global_step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Ask the controller and fix α of the next steps."""
        first = self.plan.num_committed
        steps = range(first, min(first + self.update_steps, self.plan.max_steps))
        found, reason = self.controller.decide(steps, metrics, self.plan.scheduled_alpha)
        alphas = list(found) if isinstance(found, Iterable) else [found] * len(steps)
        if len(alphas) != len(steps):
            raise ValueError(f"The controller must give α for {len(steps)} steps, got {len(alphas)}: {alphas}.")
        self.plan.commit(alphas)
        if any(abs(self.plan.alpha(step) - alpha) > 1e-8 for step, alpha in zip(steps, alphas, strict=True)):
            reason += "; moved to keep to `max_passes`"
        decision = {
            "step": global_step,
            "from_step": steps.start,
            "to_step": steps.stop,
            "alpha": self.plan.alpha(steps[-1]),
            "reason": reason,
        }
        self.decisions.append(decision)
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state and all decisions; what is fixed is in the plan."""
        return {
            "name": type(self.controller).__name__,
            "controller": self.controller.state_dict(),
            "decisions": list(self.decisions),
        }

    def load_state_dict(self, state: Mapping[str, Any], global_step: int) -> None:
        """Go on after `global_step` steps from what `state_dict` has given.

        A controller of another kind begins anew. If the lag has grown, α is held for the steps that must be fixed now.
        """
        if state["name"] == type(self.controller).__name__:
            self.controller.load_state_dict(state["controller"])
        self.decisions = list(state["decisions"])
        # one step more than the lag, as after a decision: the next one is taken at the end of a step
        first, last = self.plan.num_committed, min(global_step + self.lag + 1, self.plan.max_steps)
        if first < last:
            held = self.plan.alpha(first - 1)
            self.plan.commit([held] * (last - first))
            reason = "held: α is to be fixed further ahead than before"
            self.decisions.append(
                {"step": global_step, "from_step": first, "to_step": last, "alpha": held, "reason": reason}
            )
