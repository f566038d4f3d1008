"""What is known of other packages' trainers, without these packages."""

from typing import Any

import datasets
import pytest
from toys import corpus, mixture
from transformers import Trainer

from hf_interp import Corpus, InterpolatedDataset, InterpolationMixin
from hf_interp.training.integrations import (
    SENTENCE_TRANSFORMERS,
    TRANSFORMERS,
    TRL,
    ConstructorCall,
    TrainerTraits,
    constructor_dataset,
    corpora_to_prepare,
    is_mixture_for,
    traits_of,
)


def trainer_of(module: str, **members: Any) -> type:
    """A class of trainers that lies in a module, below the mixin."""
    return type("Ours", (InterpolationMixin, type("Theirs", (Trainer,), {"__module__": module, **members})), {})


@pytest.mark.parametrize(
    ("module", "traits"),
    [
        ("trl.trainer.sft_trainer", TRL),
        ("sentence_transformers.trainer", SENTENCE_TRANSFORMERS),
        ("trlx.trainer", TRANSFORMERS),
        ("somewhere", TRANSFORMERS),
    ],
)
def test_a_trainer_is_known_by_the_package_of_its_bases(module: str, traits: TrainerTraits) -> None:
    assert traits_of(trainer_of(module)) is traits


def test_a_dict_of_named_datasets_is_no_mixture_for_trainers_that_take_one() -> None:
    pairs = {"questions": corpus(0, 4), "titles": corpus(0, 4)}
    assert not is_mixture_for(SENTENCE_TRANSFORMERS, pairs)
    assert is_mixture_for(SENTENCE_TRANSFORMERS, mixture())
    assert is_mixture_for(TRANSFORMERS, pairs)  # of which the mistake is told later
    assert is_mixture_for(TRANSFORMERS, InterpolatedDataset(mixture(), batch_size=4, max_steps=4))
    assert not is_mixture_for(TRANSFORMERS, corpus(0, 4))


def test_a_trainer_of_trl_gets_its_first_corpus_and_prepares_them_all() -> None:
    data = mixture()
    call = ConstructorCall(trainer_of("trl"), InterpolationMixin, Trainer.__init__, (), {"train_dataset": data})
    assert call.has_mixture
    assert call.kwargs["train_dataset"] is data["general"]
    other = corpus(0, 3)
    assert call.prepare(other, lambda dataset: dataset.select([0])).num_rows == 1  # such as an evaluation set
    assert call.prepare(data["general"], lambda dataset: dataset.select(range(5))).num_rows == 5
    assert [each.dataset.num_rows for each in call.corpora] == [5, 5]


def test_a_trainer_of_sentence_transformers_gets_copies_by_name() -> None:
    corpora = [Corpus("web", corpus(0, 4), "general"), Corpus("stream", corpus(0, 4).to_iterable_dataset())]
    given = constructor_dataset(SENTENCE_TRANSFORMERS, corpora)
    assert isinstance(given, datasets.DatasetDict)
    assert list(given) == ["web"]
    assert given["web"] is not corpora[0].dataset
    assert constructor_dataset(SENTENCE_TRANSFORMERS, corpora[1:]) is None


def test_an_ordinary_call_is_left_as_it_is() -> None:
    rows = corpus(0, 4)
    for trainer in (trainer_of("trl"), trainer_of("somewhere")):
        call = ConstructorCall(trainer, InterpolationMixin, Trainer.__init__, ("model",), {"train_dataset": rows})
        assert (call.args, call.kwargs, call.has_mixture) == (("model",), {"train_dataset": rows}, False)
        assert call.prepare(rows, lambda dataset: "prepared") == "prepared"
        assert call.corpora == []


def test_a_loader_of_ones_own_is_refused_for_a_mixture_only() -> None:
    trainer = trainer_of("somewhere", get_train_dataloader=lambda self: None)
    ConstructorCall(trainer, InterpolationMixin, Trainer.__init__, (), {"train_dataset": corpus(0, 4)})
    with pytest.raises(ValueError, match="Theirs depends on what its `get_train_dataloader` gives"):
        ConstructorCall(trainer, InterpolationMixin, Trainer.__init__, (), {"train_dataset": mixture()})


def test_a_plan_is_refused_where_corpora_are_prepared() -> None:
    planned = InterpolatedDataset(mixture(), batch_size=4, max_steps=4)
    with pytest.raises(TypeError, match="which an `InterpolatedDataset` has planned with as it was before"):
        corpora_to_prepare(TRL, planned, None)
    assert [each.name for each in corpora_to_prepare(SENTENCE_TRANSFORMERS, planned, None)] == ["general", "domain"]
