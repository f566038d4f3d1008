"""Sums by corpus: what is logged, what is decided on, and how they are kept and merged."""

import json

import pytest
import torch

from hf_interp.training.meters import CorpusMeters


def alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


def tally(*names: str) -> CorpusMeters:
    return CorpusMeters(names or ("web", "law"), torch.device("cpu"))


def filled(*batches: tuple[list[int], list[float], list[int]]) -> CorpusMeters:
    """A tally of batches: corpora, losses, tokens."""
    found = tally()
    for corpus, losses, tokens in batches:
        found.add_losses(torch.tensor(corpus), torch.tensor(losses))
        found.add_tokens(torch.tensor(corpus), torch.tensor(tokens))
    return found


def test_losses_are_means_over_examples() -> None:
    found = tally()
    found.add_losses(torch.tensor([0, 1, 0]), torch.tensor([1.0, 10.0, 3.0]))
    found.add_losses(torch.tensor([0]), torch.tensor([5.0]))
    assert found.take_log(alone) == {"loss_web": 3.0, "loss_law": 10.0}


def test_losses_that_wait_are_added_in_their_order() -> None:
    found, generator = tally(), torch.Generator().manual_seed(0)
    sums = [0.0, 0.0]
    for _ in range(150):  # more than wait at a time
        corpus, losses = torch.randint(2, (5,), generator=generator), torch.rand(5, generator=generator)
        found.add_losses(corpus, losses)
        for index, loss in zip(corpus.tolist(), losses.tolist(), strict=True):
            sums[index] += loss
    state = found.state_dict()["since_decision"]
    assert [state["web"][0], state["law"][0]] == sums  # to the last bit
    assert state["web"][1] + state["law"][1] == 750


def test_shares_of_tokens_are_told_if_tokens_were_counted() -> None:
    found = filled(([0, 1, 0], [0.0, 0.0, 0.0], [5, 20, 5]), ([1], [0.0], [10]))
    assert found.take_log(alone) == {
        "loss_web": 0.0,
        "loss_law": 0.0,
        "token_share_web": 0.25,
        "token_share_law": 0.75,
    }


def test_a_corpus_that_was_not_drawn_has_no_loss_but_a_share() -> None:
    assert filled(([1], [2.0], [7])).take_log(alone) == {
        "loss_law": 2.0,
        "token_share_web": 0.0,
        "token_share_law": 1.0,
    }
    assert tally().take_log(alone) == {}


def test_a_log_begins_anew_and_leaves_decisions_alone() -> None:
    found = filled(([0, 1], [2.0, 4.0], [1, 1]))
    found.take_log(alone)
    assert found.take_log(alone) == {}
    found.add_losses(torch.tensor([0]), torch.tensor([4.0]))
    assert found.take_log(alone) == {"loss_web": 4.0}
    assert found.take_decision(alone, {"general": [0], "domain": [1]}) == {"general_loss": 3.0, "domain_loss": 4.0}
    assert found.take_decision(alone, {"general": [0], "domain": [1]}) == {}


def test_a_decision_begins_anew_and_leaves_logs_alone() -> None:
    found = filled(([0, 1], [2.0, 4.0], [1, 1]))
    found.take_decision(alone, {"general": [0], "domain": [1]})
    assert found.take_log(alone)["loss_law"] == 4.0


def test_the_loss_of_a_side_is_the_mean_over_its_examples() -> None:
    found = tally("a", "b", "c")
    found.add_losses(torch.tensor([0, 1, 1, 1]), torch.tensor([8.0, 1.0, 2.0, 1.0]))
    assert found.take_decision(alone, {"general": [0, 1], "domain": [2]}) == {"general_loss": 3.0}


def test_sums_are_added_up_over_processes_when_they_are_asked_for() -> None:
    asked = []

    def twice(sums: torch.Tensor) -> torch.Tensor:
        asked.append(sums.shape)
        return sums + torch.tensor([[9.0, 0.0], [1.0, 0.0], [0.0, 0.0]])

    found = filled(([0], [1.0], [0]))
    assert asked == []
    assert found.take_log(twice) == {"loss_web": 5.0}
    assert asked == [(3, 2)]
    assert found.take_decision(twice, {"general": [0]}) == {"general_loss": 5.0}


def test_small_losses_are_not_lost_in_large_sums() -> None:
    found = tally()
    found.add_losses(torch.tensor([0]), torch.tensor([1e8]))
    for _ in range(10):
        found.add_losses(torch.tensor([0]), torch.tensor([0.5], dtype=torch.bfloat16))
    assert found.take_log(alone)["loss_web"] == (1e8 + 5) / 11


def test_the_order_adds_up() -> None:
    found = tally()
    found.add_order(torch.tensor([2**32 - 1, 5]))
    found.add_order(torch.tensor([2**32 - 1, 6]))
    assert found.order.tolist() == [2**33 - 2, 11]


def test_a_state_comes_back_exactly() -> None:
    found = filled(([0, 1], [1 / 3, 1e-30], [3, 4]), ([1], [1e10], [5]))
    found.add_order(torch.tensor([2**60 + 1, 3]))
    found.take_log(alone)
    found.add_losses(torch.tensor([0]), torch.tensor([0.1]))
    state = json.loads(json.dumps(found.state_dict()))
    again = tally()
    again.load_state_dicts([state])
    assert again.state_dict() == found.state_dict() == state
    for one, other in ((again.since_log, found.since_log), (again.since_decision, found.since_decision)):
        assert torch.equal(one, other)
    assert torch.equal(again.order, found.order)


def test_a_state_names_its_sums() -> None:
    found = filled(([0, 1, 1], [2.0, 4.0, 8.0], [1, 2, 3]))
    found.add_order(torch.tensor([7, 8]))
    assert found.state_dict() == {
        "order": [7, 8],
        "by_objective": {},
        "since_log": {"web": [2.0, 1.0, 1.0], "law": [12.0, 2.0, 5.0]},
        "since_decision": {"web": [2.0, 1.0, 0.0], "law": [12.0, 2.0, 0.0]},
    }


def test_states_of_several_processes_are_added_up() -> None:
    parts = [filled(([0, 1], [2.0, 4.0], [1, 2])), filled(([0], [6.0], [3])), filled()]
    for index, part in enumerate(parts):
        part.add_order(torch.tensor([index, 10]))
    merged = filled(([1], [8.0], [2]))
    merged.load_state_dicts([part.state_dict() for part in parts])
    assert merged.order.tolist() == [3, 30]
    assert merged.take_decision(alone, {"general": [0], "domain": [1]}) == {"general_loss": 4.0, "domain_loss": 6.0}
    assert merged.take_log(alone) == {
        "loss_web": 4.0,
        "loss_law": 6.0,
        "token_share_web": 0.5,
        "token_share_law": 0.5,
    }
    merged.load_state_dicts([])
    assert merged.take_log(alone) == {}


@pytest.mark.parametrize("names", [("law",), ("law", "news"), ("news", "law", "books")])
def test_a_state_of_other_corpora_keeps_those_that_are_still_there(names: tuple[str, ...]) -> None:
    state = filled(([0, 1], [2.0, 4.0], [1, 3])).state_dict()
    found = tally(*names)
    found.load_state_dicts([state])
    expected = {"loss_law": 4.0} | {f"token_share_{name}": float(name == "law") for name in names}
    assert found.take_log(alone) == expected
