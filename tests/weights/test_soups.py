"""Means of the weights of several runs."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from toys import same_weights, tiny_model

from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.model_folder import open_base
from hf_interp.weights.soups import average_weights, greedy_soup


def states(count: int = 3, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(50, generator=draw).to(dtype), "ids": torch.arange(3) + index} for index in range(count)]


def line(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_is_taken_in_float32_and_cast_once(dtype: torch.dtype) -> None:
    given = states(dtype=dtype)
    found = average_weights(given)
    expected = torch.stack([state["w"].double() for state in given]).mean(0).to(torch.float32).to(dtype)
    assert torch.allclose(found["w"].float(), expected.float(), atol=1e-6 if dtype == torch.float32 else 1e-2)
    assert found["w"].dtype == dtype
    assert found["ids"].tolist() == [0, 1, 2]


def test_the_mean_of_one_is_itself_and_shares_nothing() -> None:
    given = states(1)
    found = average_weights(given)
    assert same_weights(found, given[0])
    assert found["w"].data_ptr() != given[0]["w"].data_ptr()


def test_tied_weights_stay_tied() -> None:
    tied = [{"a": one, "b": one} for one in (torch.zeros(2), torch.ones(2))]
    found = average_weights(tied)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert found["a"].tolist() == [0.5, 0.5]


def test_a_soup_in_memory_is_that_on_disk(tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(3)]
    for index, folder in enumerate(folders):
        model = tiny_model()
        torch.manual_seed(index)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    interpolate_checkpoints(base, folders, tmp_path / "soup", 1.0)
    model = tiny_model()
    found = average_weights([open_base(str(folder), model) for folder in folders])
    assert same_weights(found, open_base(str(tmp_path / "soup"), model))


@pytest.mark.parametrize(
    ("values", "target", "members"),
    [
        ([0.0, 4.0, 10.0], 2.0, ["0", "1"]),  # 0 and 4 are equally good alone and better together; 10 makes it worse
        ([2.0, 2.0, 2.0], 2.0, ["0", "1", "2"]),  # no worse is good enough
        ([1.9, 5.0], 2.0, ["0"]),
        ([5.0, 1.9], 2.0, ["1"]),
    ],
)
@pytest.mark.parametrize("greater", [True, False])
def test_a_greedy_soup_takes_what_makes_it_no_worse(
    values: list[float], target: float, members: list[str], greater: bool
) -> None:
    model = line(0.0)
    sign = -1 if greater else 1

    def score() -> float:
        return sign * abs(float(model.weight.detach()[0, 0]) - target)

    candidates: dict[str, Any] = {str(index): line(value) for index, value in enumerate(values)}
    soup = greedy_soup(candidates, model, score, greater_is_better=greater)
    assert soup.members == members
    mean = sum(values[int(name)] for name in members) / len(members)
    assert float(model.weight.detach()[0, 0]) == pytest.approx(mean)
    assert soup.score == pytest.approx(score())
    assert soup.scores == {name: pytest.approx(sign * abs(values[int(name)] - target)) for name in candidates}
    assert [step.candidate for step in soup.history if step.is_added] == members


def test_folders_are_mapped_and_their_soup_is_the_mean(tmp_path: Path) -> None:
    model, folders = tiny_model(), {name: str(tmp_path / name) for name in ("a", "b")}
    for index, folder in enumerate(folders.values()):
        run = tiny_model()
        with torch.no_grad():
            run.classifier.bias.add_(index)
        run.save_pretrained(folder)
    soup = greedy_soup(folders, model, lambda: 0.0)
    assert soup.members == ["a", "b"]
    mean = average_weights([open_base(folder, model) for folder in folders.values()])
    assert same_weights({name: model.state_dict()[name] for name in mean}, mean)


def test_runs_and_models_that_do_not_fit_a_greedy_soup_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' has no 'bias'"):
        greedy_soup({"a": line(1.0)}, nn.Linear(1, 1), lambda: 0.0)
    with pytest.raises(ValueError, match=r"'weight' is \(2, 1\) in the model and \(1, 1\) in a"):
        greedy_soup({"a": line(1.0)}, nn.Linear(1, 2, bias=False), lambda: 0.0)
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="must be a plain model, got a `PeftModel`"):
        greedy_soup({"a": line(1.0)}, adapted, lambda: 0.0)


def test_statistics_of_batch_norms_have_no_mean() -> None:
    norms = [nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    assert torch.equal(average_weights(norms)["running_var"], torch.ones(2))
    norms[1].running_mean.add_(1)
    with pytest.raises(ValueError, match="'running_mean' is a statistic of a batch norm"):
        average_weights(norms)


def test_a_score_may_move_the_model() -> None:
    model = line(0.0)

    def score() -> float:
        model.weight.data = model.weight.data.clone()
        return float(model.weight.detach())

    assert greedy_soup({"a": line(1.0), "b": line(2.0)}, model, score).scores == {"a": 1.0, "b": 2.0}
    assert float(model.weight.detach()) == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must hold at least one model, got none"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}], "'b' is in 1 and not in 0"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(2)}], r"\(1,\).*\(2,\)"),
    ],
)
def test_runs_that_do_not_fit_are_refused(given: list[dict[str, torch.Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_weights(given)


def test_a_greedy_soup_of_nothing_or_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="`candidates` must hold at least one run"):
        greedy_soup({}, line(0.0), lambda: 0.0)
    with pytest.raises(ValueError, match=r"NaN|nan"):
        greedy_soup({"a": line(1.0)}, line(0.0), lambda: float("nan"))
