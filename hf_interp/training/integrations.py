"""What trainers other than the host's own want of a mixture: TRL's, and those of sentence-transformers.

Both prepare a `train_dataset` in their constructors and know nothing of mixtures. They get something of theirs in its
place; what they do to it is done to every corpus. Neither package is imported here: a trainer is known by the modules
of its bases.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
from torch import nn
from transformers import Trainer

from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.corpus import Corpus, as_corpora, is_mixture
from hf_interp.mixture.dataset import InterpolatedDataset

TRL = "trl"
SENTENCE_TRANSFORMERS = "sentence_transformers"


def stands_on(trainer: Trainer, package: str) -> bool:
    """Whether a trainer is derived from one of a package's."""
    return any(base.__module__.partition(".")[0] == package for base in type(trainer).__mro__)


def is_mixture_for(trainer: Trainer, train_dataset: Any) -> bool:
    """Whether a `train_dataset` is a mixture, and not something that the trainer itself has a meaning for.

    Trainers of sentence-transformers take a dict of named datasets and draw each batch from one of them; for them a
    dict is a mixture if it has a key "general" or "domain".
    """
    if isinstance(train_dataset, Mapping) and stands_on(trainer, SENTENCE_TRANSFORMERS):
        return any(side in train_dataset for side in SIDES)
    return is_mixture(train_dataset) or isinstance(train_dataset, InterpolatedDataset)


def check_host(trainer: Trainer, mixin: type) -> None:
    """Refuse trainers whose loader or sampler does more than give examples in some order.

    Args:
        trainer: the trainer.
        mixin: the class in its bases that replaces the loader.

    Raises:
        ValueError: naming the class and its method.
    """
    if stands_on(trainer, SENTENCE_TRANSFORMERS):  # an order of batches, for which the plan stands
        return
    order = type(trainer).__mro__
    for base in order[order.index(mixin) + 1 : order.index(Trainer)]:
        for method in ("get_train_dataloader", "_get_train_sampler"):
            if method in vars(base):
                raise ValueError(
                    f"A mixture brings its own loader, but {base.__name__} depends on what its `{method}` gives. Use a "
                    "trainer that reads plain batches, such as SFTTrainer, DPOTrainer or RewardTrainer."
                )


def corpora_for(trainer: Trainer, train_dataset: Any, args: Any) -> list[Corpus]:
    """The corpora of a mixture, fit for the trainer.

    Args:
        trainer: the trainer, before it is constructed.
        train_dataset: the mixture.
        args: its settings; `None` for the trainer's own.

    Raises:
        ValueError: for corpora that the trainer would take for something else in one batch than alone.
        TypeError: for corpora that it cannot prepare.
    """
    is_planned = isinstance(train_dataset, InterpolatedDataset)
    if is_planned and stands_on(trainer, TRL):
        raise TypeError(
            "TRL's trainers prepare their data, which an `InterpolatedDataset` has planned with as it was before. Give "
            'it the corpora themselves: {"general": …, "domain": …}.'
        )
    corpora = list(train_dataset.corpora) if is_planned else as_corpora(train_dataset)
    if stands_on(trainer, TRL):
        for corpus in corpora:
            if not isinstance(corpus.dataset, (datasets.Dataset, datasets.IterableDataset)):
                raise TypeError(
                    f"TRL's trainers prepare a `datasets.Dataset` or `IterableDataset`, but corpus {corpus.name!r} is "
                    f"a {type(corpus.dataset).__name__}. Build one with `datasets.Dataset.from_list`."
                )
            if not corpus.is_stream and len(corpus.dataset) == 0:
                raise ValueError(f"Corpus {corpus.name!r} is empty. Check its path, split and filters.")
        _check_completions(corpora, args)
    elif stands_on(trainer, SENTENCE_TRANSFORMERS):
        _check_order_of_columns(corpora)
    return corpora


def stand_in(trainer: Trainer, corpora: Sequence[Corpus]) -> Any:
    """What the trainer's constructor gets in place of these corpora.

    TRL's trainers get the first corpus, from which they tell the format of the data. Those of sentence-transformers
    get all that are a `datasets.Dataset`, by name, as they want several; from them they write the model card. They may
    set a format in place, so they get copies.
    """
    if stands_on(trainer, TRL):
        return corpora[0].dataset
    named = {each.name: copy.copy(each.dataset) for each in corpora if isinstance(each.dataset, datasets.Dataset)}
    return datasets.DatasetDict(named) if named else None


def check_settings(trainer: Any) -> list[str]:
    """What to warn of in a trainer that has been constructed for a mixture.

    Raises:
        ValueError: for a loss, prompts or routes of sentence-transformers by the names of datasets, where a batch has
            examples of several.
    """
    if not stands_on(trainer, SENTENCE_TRANSFORMERS):
        return []
    by_name = {"loss": isinstance(trainer.loss, dict)}
    for name in ("prompts", "router_mapping"):
        setting = getattr(trainer.args, name, None)
        by_name[name] = isinstance(setting, dict) and any(isinstance(value, dict) for value in setting.values())
    for name, found in by_name.items():
        if found:
            raise ValueError(
                f"`{name}` must be the same for all corpora of a mixture, whose batches hold examples of several, got "
                "a dict by the names of datasets. Give one for all."
            )
    sampler = trainer.args.batch_sampler
    if sampler == type(trainer.args).batch_sampler:
        return []
    return [f"`batch_sampler={sampler!r}` is ignored: the plan of the mixture sets the order."]


def check_predictions(trainer: Trainer) -> None:
    """Refuse to compare predictions where the trainer keeps the logits to itself.

    Raises:
        ValueError: for a trainer of TRL's.
    """
    if stands_on(trainer, TRL):
        raise ValueError(
            "TRL's trainers leave no logits to compare with M₀'s, which distill and `log_loss_gap` need. Use "
            '`anchor="l2sp"` without `log_loss_gap`, or a trainer of transformers.'
        )


@contextmanager
def noted_outputs(model: nn.Module) -> Iterator[list[Any]]:
    """What a model returns meanwhile, call by call."""
    found: list[Any] = []
    hook = model.register_forward_hook(lambda _module, _args, outputs: found.append(outputs))
    try:
        yield found
    finally:
        hook.remove()


def argument(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """What a call gives for a parameter; `None` if nothing.

    >>> argument(lambda model, args=None, train_dataset=None: None, ["bert", "args"], {"train_dataset": 1}, "args")
    'args'
    """
    position = _position(function, name)
    return args[position] if position is not None and position < len(args) else kwargs.get(name)


def replace_argument(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with another value for one of them.

    >>> replace_argument(lambda model, args=None: None, ["bert", 1], {}, "args", 2)
    (('bert', 2), {})
    >>> replace_argument(lambda model, args=None: None, ["bert"], {"args": 1}, "args", 2)
    (('bert',), {'args': 2})
    """
    position = _position(function, name)
    if position is not None and position < len(args):
        return (*args[:position], value, *args[position + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, name: value}


def _position(function: Callable[..., Any], name: str) -> int | None:
    names = list(inspect.signature(function).parameters)
    return names.index(name) if name in names else None


def _check_completions(corpora: Sequence[Corpus], args: Any) -> None:
    """TRL tells from the first example whether prompts are left out of the loss; it must not depend on the order."""
    if getattr(args, "completion_only_loss", None) is not None:
        return
    known = [corpus for corpus in corpora if corpus.dataset.column_names is not None]
    has_prompts = {corpus.name: {"prompt", "completion"} <= set(corpus.dataset.column_names) for corpus in known}
    if len(set(has_prompts.values())) == 2:
        with_prompts = [name for name, found in has_prompts.items() if found]
        raise ValueError(
            f"Of the corpora {list(has_prompts)} only {with_prompts} have a prompt and a completion. Say whether "
            "prompts are left out of the loss: `completion_only_loss=True` (texts without a prompt count in full) or "
            "`completion_only_loss=False`."
        )


def _check_order_of_columns(corpora: Sequence[Corpus]) -> None:
    """A collator of sentence-transformers takes the first column for the anchor, by the first example of the batch."""
    orders = {
        corpus.name: list(corpus.dataset.column_names)
        for corpus in corpora
        if isinstance(corpus.dataset, (datasets.Dataset, datasets.IterableDataset))
        and corpus.dataset.column_names is not None
    }
    for name, order in orders.items():
        for other, their in orders.items():
            if order != their and sorted(order) == sorted(their):
                raise ValueError(
                    f"Corpora {name!r} and {other!r} have their columns in different orders, {order} and {their}; the "
                    f"first is taken for the anchor. Use `dataset.select_columns({order})`."
                )
