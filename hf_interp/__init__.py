"""Move a pretrained model into a domain without losing what it knew."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_interp.mixture.collators import PackedCollator as PackedCollator
    from hf_interp.mixture.controllers import AlphaController as AlphaController
    from hf_interp.mixture.corpus import Corpus as Corpus
    from hf_interp.mixture.dataset import InterpolatedDataset as InterpolatedDataset
    from hf_interp.mixture.packing import pack as pack
    from hf_interp.mixture.plan import MixturePlan as MixturePlan
    from hf_interp.mixture.schedules import get_alpha_schedule as get_alpha_schedule
    from hf_interp.reporting.curve import AlphaCurve as AlphaCurve
    from hf_interp.selection.search import search_alpha as search_alpha
    from hf_interp.training.callbacks import AlphaCallback as AlphaCallback
    from hf_interp.training.config import InterpolationConfig as InterpolationConfig
    from hf_interp.training.heads import Objective as Objective
    from hf_interp.training.mixin import InterpolationMixin as InterpolationMixin
    from hf_interp.training.trainer import InterpolationSeq2SeqTrainer as InterpolationSeq2SeqTrainer
    from hf_interp.training.trainer import InterpolationTrainer as InterpolationTrainer
    from hf_interp.weights.alpha_spec import AlphaByDepth as AlphaByDepth
    from hf_interp.weights.interpolate import interpolate_weights as interpolate_weights
    from hf_interp.weights.merge import interpolate_checkpoints as interpolate_checkpoints
    from hf_interp.weights.merge_methods import MergeMethod as MergeMethod

__version__ = metadata.version("hf_interp")

# Imported when asked for (PEP 562): schedules and plans need no torch, and `hf-interp --help` need not wait for it.
_HOMES = {
    "AlphaByDepth": "weights.alpha_spec",
    "AlphaCallback": "training.callbacks",
    "AlphaController": "mixture.controllers",
    "AlphaCurve": "reporting.curve",
    "Corpus": "mixture.corpus",
    "InterpolatedDataset": "mixture.dataset",
    "InterpolationConfig": "training.config",
    "InterpolationMixin": "training.mixin",
    "InterpolationSeq2SeqTrainer": "training.trainer",
    "InterpolationTrainer": "training.trainer",
    "MergeMethod": "weights.merge_methods",
    "MixturePlan": "mixture.plan",
    "Objective": "training.heads",
    "PackedCollator": "mixture.collators",
    "get_alpha_schedule": "mixture.schedules",
    "interpolate_checkpoints": "weights.merge",
    "interpolate_weights": "weights.interpolate",
    "pack": "mixture.packing",
    "search_alpha": "selection.search",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
