"""Trainers of other packages: what sets TRL's and those of sentence-transformers apart, as data.

Both prepare a `train_dataset` in their constructors and know nothing of mixtures. They get something of theirs in its
place; what they do to it is done to every corpus. Neither package is imported here: a trainer is known by the modules
of its bases.
"""

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
from transformers import Trainer

from hf_interp.mixture.apportionment import SIDES
from hf_interp.mixture.corpus import Corpus, as_corpora, is_mixture
from hf_interp.mixture.dataset import InterpolatedDataset


@dataclass(frozen=True, kw_only=True)
class TrainerTraits:
    """The ways in which the trainers of a package differ from those of transformers."""

    package: str = "transformers"
    prepares_dataset: bool = False  # reads and changes its `train_dataset` in its constructor
    names_datasets: bool = False  # takes a dict as `train_dataset` for datasets by name
    orders_batches: bool = False  # its loader does no more than give batches in some order, for which a plan stands
    keeps_columns: bool = False  # columns that the model does not take go into batches
    computes_loss: bool = False  # the loss is the trainer's and not the model's
    hides_logits: bool = False  # no logits are left to look at, and asking for outputs costs another pass
    has_own_card: bool = False  # writes a model card that tells more than that of transformers


TRL = TrainerTraits(
    package="trl",
    prepares_dataset=True,
    computes_loss=True,
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
    """Refuse trainers whose loader or sampler, behind the mixin's, does more than give examples in some order."""
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
    """The arguments of a trainer's constructor, with something of the trainer's own in place of a mixture."""

    corpora: list[Corpus]
    """The corpora, where the trainer prepares them or a plan has been made of them."""

    def __init__(
        self,
        trainer: type,
        mixin: type,
        constructor: Callable[..., None],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        parameters = inspect.signature(constructor).parameters
        self.takes_ref_model = "ref_model" in parameters  # as TRL's may
        self.args, self.kwargs = tuple(args), dict(kwargs)
        unnamed, named = arguments_by_name(parameters, args, kwargs)
        traits, dataset = traits_of(trainer), named.get("train_dataset")
        self.has_mixture = is_mixture_for(traits, dataset)
        self.plan = dataset.plan if isinstance(dataset, InterpolatedDataset) else None
        self.corpora = []
        if not self.has_mixture:
            return
        check_loading(trainer, mixin)
        if traits.prepares_dataset:
            self.corpora = corpora_to_prepare(traits, dataset, named.get("args"))
            given = constructor_dataset(traits, self.corpora)
            self.args, self.kwargs = tuple(unnamed), {**named, "train_dataset": given}
        elif isinstance(dataset, InterpolatedDataset):
            self.corpora = dataset.corpora

    def prepare(self, dataset: Any, prepare: Callable[[Any], Any]) -> Any:
        """Prepare the dataset that the constructor was given, and every other corpus of a mixture the same way."""
        if not self.corpora or dataset is not self.corpora[0].dataset:
            return prepare(dataset)
        self.corpora = [replace(corpus, dataset=prepare(corpus.dataset)) for corpus in self.corpora]
        return self.corpora[0].dataset


def later_call(trainer: Any, mixin: type, constructor: Callable[..., None], *, has_mixture: bool) -> ConstructorCall:
    """Return the call that would have given a trainer the `train_dataset` that has been set since it was made."""
    call = ConstructorCall(type(trainer), mixin, constructor, (), {"train_dataset": trainer.train_dataset})
    traits = traits_of(type(trainer))
    if traits.prepares_dataset and (call.has_mixture or has_mixture):
        raise ValueError(
            f"`train_dataset` must be given when a trainer of {traits.package} is made, which prepares it then, got "
            "another one since. Make a new trainer."
        )
    return call


def corpora_to_prepare(traits: TrainerTraits, train_dataset: Any, args: Any) -> list[Corpus]:
    """Return the corpora of a mixture for a trainer that prepares them in its constructor, with these settings."""
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
    """Return what to warn of in a trainer that has been constructed for a mixture."""
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


def arguments_by_name(
    parameters: Mapping[str, inspect.Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the arguments of a call, by name as far as the function names its parameters.

    >>> arguments_by_name(inspect.signature(lambda model, args=None, **others: None).parameters, ["bert"], {"args": 1})
    ([], {'model': 'bert', 'args': 1})
    """
    kinds = [each.kind for each in parameters.values()]
    takes_more = inspect.Parameter.VAR_POSITIONAL in kinds  # which stand behind all others
    named = {} if takes_more else dict(zip(parameters, args, strict=False))
    if twice := named.keys() & kwargs.keys():
        raise TypeError(f"The trainer got multiple values for {', '.join(map(repr, sorted(twice)))}.")
    return args[len(named) :], {**named, **kwargs}


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
    orders = {each.name: getattr(each.dataset, "column_names", None) for each in corpora}
    known = [(name, list(order)) for name, order in orders.items() if isinstance(order, list)]
    for (name, order), (other, their) in itertools.combinations(known, 2):
        if order != their and sorted(order) == sorted(their):
            raise ValueError(
                f"Corpora {name!r} and {other!r} have their columns in different orders, {order} and {their}; the "
                f"first is taken for the anchor. Use `dataset.select_columns({order})`."
            )
