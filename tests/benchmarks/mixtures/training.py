"""One run: train a pair at a constant α, or both its ends, and note the losses of both sides."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from effect.bases import freeze_embeddings
from effect.outcomes import outcomes_of
from effect.pairs import PAIRS
from effect.training import Setup, open_pair, pick
from transformers import PrinterCallback

from hf_interp.commands.compare import quiet_bar
from hf_interp.commands.mixture_search import constant_alpha, shortened_data
from hf_interp.mixture.corpus import with_dataset
from hf_interp.selection.scoring import predict
from hf_interp.tasks.build import build_trainer
from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.task import get_task
from hf_interp.utils.environment import describe_machine
from hf_interp.weights.adapter_kinds import find_kind
from hf_interp.weights.adapters import merge_adapter
from hf_interp.weights.live import LiveInterpolation
from mixtures.schedule import ALPHAS, Run

SIZE = 300
"""Training examples of the domain, of language models blocks: the same for all runs of a pair, as in a real search."""
LORA_FACTOR = 10.0
"""Of the learning rate, for adapters, as in the comparison of methods."""
Losses = dict[str, float]


def do_run(run: Run, folder: Path) -> dict[str, Any]:
    """Train and evaluate; returns what goes into the file of results.

    Args:
        run: what to do.
        folder: of the cache of the comparison of methods.
    """
    with tempfile.TemporaryDirectory() as place, quiet_bar(0, shown=False):
        session = Session(open_pair(run.pair, folder, "cpu"), run, place)
        found = KINDS[run.kind](session)
        return {
            "pair": run.pair,
            "kind": run.kind,
            "steps": run.steps,
            "alpha": run.alpha,
            "seed": run.seed,
            **found,
            "processor_seconds": {name: round(seconds, 2) for name, seconds in session.seconds.items()},
            "machine": session.machine,
        }


@dataclass
class Session:
    """A run under way.

    Args:
        setup: the pair's data and recipe.
        run: what to do.
        place: folder for what the trainer writes.
    """

    setup: Setup
    run: Run
    place: str

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        found = describe_machine()
        self.machine = f"{found['processor']}, {torch.get_num_threads()} thread of {found['cores']} cores"

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the processor's seconds."""
        begin = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin

    def trainer(self, alpha: float, fields: Mapping[str, Any], share: float = 1.0) -> Any:
        """The package's trainer, for a constant α, with a share of all training examples."""
        own = {"learning_rate": middle_rate(self.run.pair), **constant_alpha(alpha), **fields}
        own |= {"max_steps": max(self.run.steps, 1), "seed": self.run.seed, "output_dir": self.place}
        recipe, args = parse_recipe({**self.setup.recipe, **own})
        corpora = [
            with_dataset(corpus, pick(corpus.dataset, SIZE)) if corpus.side == "domain" else corpus
            for corpus in self.setup.data.corpora
        ]
        data = shortened_data(replace(self.setup.data, corpora=corpora), share, self.run.seed)
        trainer = build_trainer(recipe, get_task(recipe.task), args, data)
        trainer.args.eval_on_start = False
        trainer.remove_callback(PrinterCallback)
        if recipe.peft is None and self.setup.pair.task.endswith("classification"):
            freeze_embeddings(trainer.model)
        return trainer

    def trained(self, alpha: float, fields: Mapping[str, Any], share: float = 1.0) -> Any:
        """The trainer after its run."""
        trainer = self.trainer(alpha, fields, share)
        with self.timed("training"):
            trainer.train()
        return trainer

    def losses(self, trainer: Any, *, test: bool = True) -> dict[str, Losses]:
        """Mean loss of each side, in nats, on the validation sets and, if wanted, the test sets."""
        groups = {
            "validation": self.setup.data.validation_sets,
            **({"test": self.setup.data.eval_sets} if test else {}),
        }
        found = {}
        for name, sets in groups.items():
            with self.timed(name):
                found[name] = {side: _loss(trainer, dataset) for side, dataset in sets.items()}
        return found


def middle_rate(pair: str) -> float:
    """The middle of a pair's learning rates."""
    rates = PAIRS[pair].learning_rates
    return rates[len(rates) // 2]


def _loss(trainer: Any, dataset: datasets.Dataset) -> float:
    return round(outcomes_of("loss", predict(trainer, dataset), None).value, 5)


def _base(session: Session) -> dict[str, Any]:
    """M₀."""
    return {"losses": session.losses(session.trainer(0.0, {}))}


def _mixture(session: Session) -> dict[str, Any]:
    """A run at a constant α; the test sets are for those of the sweep."""
    is_full = session.run.steps == session.setup.pair.steps
    return {"losses": session.losses(session.trained(session.run.alpha, {}), test=is_full)}


def _matched(session: Session) -> dict[str, Any]:
    """A short run at a constant α on as much less data, as in the package's search."""
    share = session.run.steps / session.setup.pair.steps
    return {"losses": session.losses(session.trained(session.run.alpha, {}, share), test=False)}


def _weights(session: Session) -> dict[str, Any]:
    """Full fine-tuning on each side alone, and the weights between."""
    return _between(session, {}, lambda model: model)


def _adapters(session: Session) -> dict[str, Any]:
    """LoRA on each side alone, and ΔW = (1 − α)·ΔW_general + α·ΔW_domain; a head in between likewise."""
    fields = {"peft": "lora", "learning_rate": LORA_FACTOR * middle_rate(session.run.pair)}
    return _between(session, fields, lambda model: merge_adapter(model, find_kind(model)))


def _between(session: Session, fields: Mapping[str, Any], plain: Callable[[Any], Any]) -> dict[str, Any]:
    """Train both ends; the losses of the weights in between by α, exactly interpolated."""
    general, domain = (plain(session.trained(alpha, fields).model).state_dict() for alpha in (0.0, 1.0))
    trainer = session.trainer(1.0, {})
    trainer.model.load_state_dict(domain)
    found: dict[str, list[float]] = {}
    with LiveInterpolation(general, trainer.model) as interpolation:
        for alpha in ALPHAS:
            interpolation.set_alpha(alpha)
            for side, loss in session.losses(trainer, test=False)["validation"].items():
                found.setdefault(side, []).append(loss)
    return {"alphas": list(ALPHAS), "losses": {"validation": found}}


KINDS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "base": _base,
    "mixture": _mixture,
    "matched": _matched,
    "adapters": _adapters,
    "weights": _weights,
}
