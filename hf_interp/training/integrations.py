"""Trainers of other packages: what sets TRL's and those of sentence-transformers apart, as data.

Both prepare a `train_dataset` in their constructors and know nothing of mixtures. They get something of theirs in its
place; what they do to it is done to every corpus. Neither package is imported here: a trainer is known by the modules
of its bases.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import datasets
from torch import nn
from transformers import Trainer

from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.corpus import Corpus, as_corpora, is_mixture
from hf_interp.mixture.dataset import InterpolatedDataset


@dataclass(frozen=True, kw_only=True)
class TrainerTraits:
    """The ways in which the trainers of a package differ from those of transformers.

    Args:
        package: name of the package.
        prepares_dataset: whether a trainer reads and changes its `train_dataset` in its constructor.
        names_datasets: whether a dict as `train_dataset` may mean datasets by name.
        orders_batches: whether its own loader does no more than give batches in some order, for which a plan stands.
        keeps_columns: whether columns that the model does not take go into batches.
        computes_loss: whether the loss is the trainer's and not the model's.
        divides_by_items: whether that loss is divided by the items of the whole global batch.
        hides_logits: whether no logits are left to look at, and asking for outputs costs another pass.
        has_own_card: whether it writes a model card that tells more than that of transformers.
    """

    package: str = "transformers"
    prepares_dataset: bool = False
    names_datasets: bool = False
    orders_batches: bool = False
    keeps_columns: bool = False
    computes_loss: bool = False
    divides_by_items: bool = False
    hides_logits: bool = False
    has_own_card: bool = False


TRL = TrainerTraits(
    package="trl",
    prepares_dataset=True,
    computes_loss=True,
    divides_by_items=True,
    hides_logits=True,
    has_own_card=True,
)
SENTENCE_TRANSFORMERS = TrainerTraits(
    package="sentence_transformers",
    prepares_dataset=True,
    names_datasets=True,
    orders_batches=True,
    keeps_columns=True,
    computes_loss=True,
    has_own_card=True,
)
TRANSFORMERS = TrainerTraits()


def traits_of(trainer: type) -> TrainerTraits:
    """Return the traits of a class of trainers, by the package of its bases."""
    packages = {base.__module__.partition(".")[0] for base in trainer.__mro__}
    return next((traits for traits in (TRL, SENTENCE_TRANSFORMERS) if traits.package in packages), TRANSFORMERS)


def is_mixture_for(traits: TrainerTraits, train_dataset: Any) -> bool:
    """Whether a `train_dataset` is a mixture, and not something that the trainer itself has a meaning for.

    Trainers of sentence-transformers take a dict of named datasets and draw each batch from one of them; for them a
    dict is a mixture if it has a key "general" or "domain".
    """
    if isinstance(train_dataset, Mapping) and traits.names_datasets:
        return any(side in train_dataset for side in SIDES)
    return is_mixture(train_dataset) or isinstance(train_dataset, InterpolatedDataset)


def check_loading(trainer: type, mixin: type) -> None:
    """Refuse trainers whose loader or sampler does more than give examples in some order.

    Args:
        trainer: the class of the trainer.
        mixin: the class among its bases that replaces the loader.

    Raises:
        ValueError: naming the class and its method.
    """
    if traits_of(trainer).orders_batches:
        return
    order = trainer.__mro__
    for base in order[order.index(mixin) + 1 : order.index(Trainer)]:
        for method in ("get_train_dataloader", "_get_train_sampler"):
            if method in vars(base):
                raise ValueError(
                    f"A mixture brings its own loader, but {base.__name__} depends on what its `{method}` gives. Use a "
                    "trainer that reads plain batches, such as SFTTrainer, DPOTrainer or RewardTrainer."
                )


class ConstructorCall:
    """The arguments of a trainer's constructor, with something of the trainer's own in place of a mixture.

    Args:
        trainer: the class of the trainer.
        mixin: the class among its bases that replaces the loader.
        constructor: that of the bases behind the mixin.
        args, kwargs: what it is to be called with.

    Attributes:
        has_mixture (`bool`): whether `train_dataset` is a mixture.
        corpora (`list[Corpus]`): what is mixed, where the trainer prepares it or a plan has been made of it.
        plan (`MixturePlan` or `None`): that of an `InterpolatedDataset`.
        takes_ref_model (`bool`): whether the constructor has a `ref_model` of its own, as TRL's may.

    Raises:
        ValueError, TypeError: for a trainer or corpora that do not go together.
    """

    def __init__(
        self,
        trainer: type,
        mixin: type,
        constructor: Callable[..., None],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.args, self.kwargs = tuple(args), dict(kwargs)
        self.takes_ref_model = "ref_model" in inspect.signature(constructor).parameters
        traits, dataset = traits_of(trainer), argument(constructor, args, kwargs, "train_dataset")
        self.has_mixture = is_mixture_for(traits, dataset)
        self.plan = dataset.plan if isinstance(dataset, InterpolatedDataset) else None
        self.corpora: list[Corpus] = []
        if not self.has_mixture:
            return
        check_loading(trainer, mixin)
        if traits.prepares_dataset:
            self.corpora = corpora_to_prepare(traits, dataset, argument(constructor, args, kwargs, "args"))
            given = constructor_dataset(traits, self.corpora)
            self.args, self.kwargs = replace_argument(constructor, args, kwargs, "train_dataset", given)
        elif self.plan is not None:
            self.corpora = dataset.corpora

    def prepare(self, dataset: Any, prepare: Callable[[Any], Any]) -> Any:
        """Prepare the dataset that the constructor was given, and every other corpus of a mixture the same way."""
        if not self.corpora or dataset is not self.corpora[0].dataset:
            return prepare(dataset)
        self.corpora = [replace(corpus, dataset=prepare(corpus.dataset)) for corpus in self.corpora]
        return self.corpora[0].dataset


def corpora_to_prepare(traits: TrainerTraits, train_dataset: Any, args: Any) -> list[Corpus]:
    """Return the corpora of a mixture for a trainer that prepares them in its constructor.

    Args:
        traits: of the trainer.
        train_dataset: the mixture.
        args: the trainer's settings; `None` for its own.

    Raises:
        ValueError: for corpora that the trainer would take for something else in one batch than alone.
        TypeError: for corpora that it cannot prepare.
    """
    is_planned = isinstance(train_dataset, InterpolatedDataset)
    if is_planned and traits is TRL:
        raise TypeError(
            "TRL's trainers prepare their data, which an `InterpolatedDataset` has planned with as it was before. Give "
            'it the corpora themselves: {"general": …, "domain": …}.'
        )
    corpora = list(train_dataset.corpora) if is_planned else as_corpora(train_dataset)
    if traits is TRL:
        _check_kinds(corpora)
        _check_completions(corpora, args)
    else:
        _check_order_of_columns(corpora)
    return corpora


def constructor_dataset(traits: TrainerTraits, corpora: Sequence[Corpus]) -> Any:
    """Return what a trainer's constructor gets in place of these corpora.

    TRL's trainers get the first corpus, from which they tell the format of the data. Those of sentence-transformers
    get all that are a `datasets.Dataset`, by name, as they want several; from them they write the model card. They may
    set a format in place, so they get copies.
    """
    if not traits.names_datasets:
        return corpora[0].dataset
    named = {each.name: copy.copy(each.dataset) for each in corpora if isinstance(each.dataset, datasets.Dataset)}
    return datasets.DatasetDict(named) if named else None


def check_settings(trainer: Any) -> list[str]:
    """Return what to warn of in a trainer that has been constructed for a mixture.

    Raises:
        ValueError: for a loss, prompts or routes of sentence-transformers by the names of datasets, where a batch has
            examples of several.
    """
    if not traits_of(type(trainer)).names_datasets:
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


def check_predictions(traits: TrainerTraits) -> None:
    """Refuse to compare predictions where the trainer keeps the logits to itself.

    Raises:
        ValueError: for a trainer of TRL's.
    """
    if traits.hides_logits:
        raise ValueError(
            "TRL's trainers leave no logits to compare with M₀'s, which distill and `log_loss_gap` need. Use "
            '`anchor="l2sp"` without `log_loss_gap`, or a trainer of transformers.'
        )


@contextmanager
def capture_outputs(model: nn.Module) -> Iterator[list[Any]]:
    """Note what a model returns meanwhile, call by call."""
    found: list[Any] = []
    hook = model.register_forward_hook(lambda _module, _args, outputs: found.append(outputs))
    try:
        yield found
    finally:
        hook.remove()


def argument(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Return what a call gives for a parameter; `None` if nothing.

    >>> argument(lambda model, args=None, train_dataset=None: None, ["bert", "args"], {"train_dataset": 1}, "args")
    'args'
    """
    position = _position(function, name)
    return args[position] if position is not None and position < len(args) else kwargs.get(name)


def replace_argument(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with another value for one of them.

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


def _check_kinds(corpora: Sequence[Corpus]) -> None:
    """Refuse corpora that TRL's trainers cannot prepare."""
    for corpus in corpora:
        if not isinstance(corpus.dataset, (datasets.Dataset, datasets.IterableDataset)):
            raise TypeError(
                f"TRL's trainers prepare a `datasets.Dataset` or `IterableDataset`, but corpus {corpus.name!r} is a "
                f"{type(corpus.dataset).__name__}. Build one with `datasets.Dataset.from_list`."
            )
        if not corpus.is_stream and len(corpus.dataset) == 0:
            raise ValueError(f"Corpus {corpus.name!r} is empty. Check its path, split and filters.")


def _check_completions(corpora: Sequence[Corpus], args: Any) -> None:
    """Refuse corpora of which only some have prompts: TRL tells from the first example whether prompts count."""
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
    """Refuse columns in different orders: collators of sentence-transformers take the first one for the anchor."""
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
