"""Move a pretrained model into a domain without losing what it knew."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_interp.alphas import AlphaByDepth as AlphaByDepth
    from hf_interp.callbacks import AlphaCallback as AlphaCallback
    from hf_interp.config import InterpolationConfig as InterpolationConfig
    from hf_interp.controllers import AlphaController as AlphaController
    from hf_interp.corpora import Corpus as Corpus
    from hf_interp.curves import AlphaCurve as AlphaCurve
    from hf_interp.dataset import InterpolatedDataset as InterpolatedDataset
    from hf_interp.heads import Objective as Objective
    from hf_interp.merging import interpolate_checkpoints as interpolate_checkpoints
    from hf_interp.plan import MixturePlan as MixturePlan
    from hf_interp.schedules import get_alpha_schedule as get_alpha_schedule
    from hf_interp.selection import search_alpha as search_alpha
    from hf_interp.tokens import pack as pack
    from hf_interp.trainer import InterpolationMixin as InterpolationMixin
    from hf_interp.trainer import InterpolationSeq2SeqTrainer as InterpolationSeq2SeqTrainer
    from hf_interp.trainer import InterpolationTrainer as InterpolationTrainer
    from hf_interp.weights import interpolate_weights as interpolate_weights

__version__ = metadata.version("hf_interp")

# Imported when asked for (PEP 562): schedules and plans need no torch, and `hf-interp --help` need not wait for it.
_HOMES = {
    "AlphaByDepth": "alphas",
    "AlphaCallback": "callbacks",
    "AlphaController": "controllers",
    "AlphaCurve": "curves",
    "Corpus": "corpora",
    "InterpolatedDataset": "dataset",
    "InterpolationConfig": "config",
    "InterpolationMixin": "trainer",
    "InterpolationSeq2SeqTrainer": "trainer",
    "InterpolationTrainer": "trainer",
    "MixturePlan": "plan",
    "Objective": "heads",
    "get_alpha_schedule": "schedules",
    "interpolate_checkpoints": "merging",
    "interpolate_weights": "weights",
    "pack": "tokens",
    "search_alpha": "selection",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
