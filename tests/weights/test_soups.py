"""Means of the weights of several runs."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from toys import move, same_weights, tiny_model

from hf_interp.weights.merge import interpolate_checkpoints
from hf_interp.weights.soups import greedy_soup, write_soup


class Row(nn.Module):
    """A weight, and a buffer that is none."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(50, generator=draw).to(dtype))
        self.register_buffer("ids", torch.arange(3) + seed)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.a = self.b = nn.Parameter(torch.full((2,), value))


def line(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_is_taken_in_float32_and_cast_once(dtype: torch.dtype) -> None:
    runs, model = [Row(seed, dtype) for seed in range(3)], Row(9, dtype)
    write_soup({str(index): run for index, run in enumerate(runs)}, model)
    expected = torch.stack([run.w.detach().double() for run in runs]).mean(0).to(torch.float32).to(dtype)
    assert torch.allclose(model.w.float(), expected.float(), atol=1e-6 if dtype == torch.float32 else 1e-2)
    assert model.w.dtype == dtype
    assert model.ids.tolist() == [0, 1, 2]


def test_the_mean_of_one_is_itself() -> None:
    model = Row(9)
    write_soup({"a": Row(1)}, model)
    assert same_weights(model.state_dict(), Row(1).state_dict())


def test_tied_weights_stay_tied_and_must_be_so_in_all_runs() -> None:
    model = Tied(7.0)
    write_soup({"a": Tied(0.0), "b": Tied(1.0)}, model)
    assert model.a is model.b
    assert model.a.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="'b' and 'a' are one in the model and not in x"):
        write_soup({"x": {"a": torch.ones(2), "b": torch.zeros(2)}}, model)


def test_a_soup_in_memory_is_that_on_disk(tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(3)]
    for index, folder in enumerate(folders):
        move(tiny_model(), 0.1, seed=index).save_pretrained(folder)
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    interpolate_checkpoints(base, folders, tmp_path / "soup", 1.0)
    model = tiny_model()
    write_soup({folder.name: folder for folder in folders}, model)
    expected = type(model).from_pretrained(tmp_path / "soup")
    assert same_weights(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize(
    ("values", "target", "members"),
    [
        ([0.0, 4.0, 10.0], 2.0, ["0", "1"]),  # 0 and 4 are equally good alone and better together; 10 makes it worse
        ([2.0, 2.0, 2.0], 2.0, ["0", "1", "2"]),  # no worse is good enough
        ([1.9, 5.0], 2.0, ["0"]),
        ([5.0, 1.9], 2.0, ["1"]),
    ],
)
def test_a_greedy_soup_takes_what_makes_it_no_worse(values: list[float], target: float, members: list[str]) -> None:
    model = line(0.0)

    def score() -> float:
        return -abs(float(model.weight.detach()[0, 0]) - target)

    candidates: dict[str, Any] = {str(index): line(value) for index, value in enumerate(values)}
    soup = greedy_soup(candidates, model, score)
    assert soup.members == members
    mean = sum(values[int(name)] for name in members) / len(members)
    assert float(model.weight.detach()[0, 0]) == pytest.approx(mean)
    assert soup.score == pytest.approx(score())
    assert soup.scores == {name: pytest.approx(-abs(values[int(name)] - target)) for name in candidates}
    assert [trial.run for trial in soup.trials if trial.is_kept] == members
    assert sorted(trial.run for trial in soup.trials) == sorted(candidates)
    for place, trial in enumerate(soup.trials[1:], 1):  # the mean with it against that of those kept before it
        before = [values[int(each.run)] for each in soup.trials[:place] if each.is_kept]
        after = [*before, values[int(trial.run)]]
        worth = [-abs(sum(each) / len(each) - target) for each in (before, after)]
        assert (trial.score, trial.gain) == (pytest.approx(worth[1]), pytest.approx(worth[1] - worth[0]))


def test_folders_are_mapped_and_their_soup_is_the_mean(tmp_path: Path) -> None:
    model, folders = tiny_model(), {name: str(tmp_path / name) for name in ("a", "b")}
    for index, folder in enumerate(folders.values()):
        run = tiny_model()
        with torch.no_grad():
            run.classifier.bias.add_(index)
        run.save_pretrained(folder)
    bias = model.classifier.bias.detach().clone()
    assert greedy_soup(folders, model, lambda: 0.0).members == ["a", "b"]
    assert torch.equal(model.classifier.bias, bias + 0.5)


def test_runs_and_models_that_do_not_fit_a_greedy_soup_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' has no 'bias'"):
        greedy_soup({"a": line(1.0)}, nn.Linear(1, 1), lambda: 0.0)
    with pytest.raises(ValueError, match=r"'weight' is \(2, 1\) in the model and \(1, 1\) in a"):
        greedy_soup({"a": line(1.0)}, nn.Linear(1, 2, bias=False), lambda: 0.0)
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="must be a plain model, got a `PeftModel`"):
        greedy_soup({"a": line(1.0)}, adapted, lambda: 0.0)


def test_statistics_of_batch_norms_have_no_mean() -> None:
    norms, model = {"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)}, nn.BatchNorm1d(2)
    write_soup(norms, model)
    assert torch.equal(model.running_var, torch.ones(2))
    norms["b"].running_mean.add_(1)
    with pytest.raises(ValueError, match="'running_mean' is a statistic of a batch norm"):
        write_soup(norms, model)


def test_a_score_may_move_the_model() -> None:
    model = line(0.0)

    def score() -> float:
        model.weight.data = model.weight.data.clone()
        return float(model.weight.detach())

    assert greedy_soup({"a": line(1.0), "b": line(2.0)}, model, score).scores == {"a": 1.0, "b": 2.0}
    assert float(model.weight.detach()) == 2.0


def test_a_greedy_soup_of_nothing_or_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="`candidates` must hold at least one run"):
        greedy_soup({}, line(0.0), lambda: 0.0)
    with pytest.raises(ValueError, match=r"NaN|nan"):
        greedy_soup({"a": line(1.0)}, line(0.0), lambda: float("nan"))
