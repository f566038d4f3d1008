"""Sums of what one process has read and what it cost, added up over processes when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

LOSS, EXAMPLES, TOKENS = range(3)  # rows of the sums, whose columns are corpora
MOST_WAITING = 64  # batches


class CorpusMeters:
    """Losses, examples and tokens by corpus, since the last log and since the last decision on α; the order's hash.

    Of fewer than two objectives nothing is reported. Nothing is moved to the CPU before it is asked for.
    """

    def __init__(self, names: Sequence[str], device: torch.device, objectives: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.objectives = list(objectives)
        kind = torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
        self.since_log = torch.zeros(3, len(names), dtype=kind, device=device)
        self.since_decision = torch.zeros(3, len(names), dtype=kind, device=device)
        self.by_objective = torch.zeros(2, len(self.objectives), dtype=kind, device=device)  # losses and labels
        self.order = torch.zeros(2, dtype=torch.int64, device=device)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._for_decision = True

    def add_order(self, halves: torch.Tensor) -> None:
        """Add the hash of a batch, in two halves."""
        self.order += halves

    def add_losses(self, corpus: torch.Tensor, losses: torch.Tensor, *, for_decision: bool = True) -> None:
        """Add the loss of every example of a batch; also to what the next decision needs, unless there is none."""
        self._waiting.append((corpus, losses))
        self._for_decision = for_decision
        if len(self._waiting) >= MOST_WAITING:
            self._add_waiting()

    def _add_waiting(self) -> None:
        """Add the losses that wait: many batches in one go, in their order, for each call takes its time."""
        if not self._waiting:
            return
        corpus, losses = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for sums in (self.since_log, self.since_decision) if self._for_decision else (self.since_log,):
            sums[LOSS].index_add_(0, corpus, losses.to(sums.dtype))
            sums[EXAMPLES].index_add_(0, corpus, torch.ones_like(losses, dtype=sums.dtype))

    def add_objective(self, index: int, loss: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the summed loss of some labels of an objective."""
        self.by_objective[0, index] += loss.to(self.by_objective.dtype)
        self.by_objective[1, index] += labels.to(self.by_objective.dtype)

    def add_tokens(self, corpus: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add the number of tokens of every example of a batch."""
        self.since_log[TOKENS].index_add_(0, corpus, tokens.to(self.since_log.dtype))

    def take_log(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return `loss_<corpus>`, `objective_loss_<objective>` and, if tokens were counted, `token_share_<corpus>`.

        The loss of an objective is the mean over its labels; the model's own is called task. What was not drawn is left
        out.
        """
        self._add_waiting()
        sums = reduce(self.since_log).tolist()
        self.since_log.zero_()
        losses = zip(self.names, sums[LOSS], sums[EXAMPLES], strict=True)
        found = {f"loss_{name}": loss / count for name, loss, count in losses if count}
        if len(self.objectives) > 1:
            losses = zip(self.objectives, *reduce(self.by_objective).tolist(), strict=True)
            self.by_objective.zero_()
            found |= {f"objective_loss_{name or 'task'}": loss / count for name, loss, count in losses if count}
        if total := sum(sums[TOKENS]):
            tokens = zip(self.names, sums[TOKENS], strict=True)
            found |= {f"token_share_{name}": count / total for name, count in tokens}
        return found

    def take_decision(
        self, reduce: Callable[[torch.Tensor], torch.Tensor], sides: Mapping[str, Sequence[int]]
    ) -> dict[str, float]:
        """Return `<side>_loss`, the mean loss of each side since the last decision; what was not drawn is left out."""
        self._add_waiting()
        sums = reduce(self.since_decision).tolist()
        self.since_decision.zero_()
        found = {}
        for side, members in sides.items():
            if count := sum(sums[EXAMPLES][index] for index in members):
                found[f"{side}_loss"] = sum(sums[LOSS][index] for index in members) / count
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all sums as plain values, by the names of the corpora."""
        self._add_waiting()
        sums = {
            key: dict(zip(names, getattr(self, key).T.tolist(), strict=True)) for key, names in self._columns.items()
        }
        return {"order": self.order.tolist(), **sums}

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Begin with the sums of these states; corpora that are no longer there are left out."""
        for state in states:
            self.order += torch.tensor(state["order"], device=self.order.device)
            for key, names in self._columns.items():
                sums = getattr(self, key)
                for column, name in enumerate(names):
                    if name in state[key]:
                        sums[:, column] += torch.tensor(state[key][name], dtype=sums.dtype, device=sums.device)

    @property
    def _columns(self) -> dict[str, list[str]]:
        """The names of the columns of each kind of sums."""
        return {"by_objective": self.objectives, "since_log": self.names, "since_decision": self.names}
