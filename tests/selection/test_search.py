"""The search for the α of the weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from processes import run as run_processes
from torch import nn
from toys import config, corpus, mixture, move, same_weights, tiny_model, weights
from transformers import BertModel, Trainer, TrainerCallback, set_seed

from hf_interp import InterpolationTrainer
from hf_interp.selection.choice import AlphaSearch
from hf_interp.selection.search import search_alpha
from hf_interp.tasks.metrics import classification_metrics
from hf_interp.weights.interpolate import interpolate_weights, open_interpolation

SETS = {"general": corpus(1, 20), "domain": corpus(1000, 16)}  # 0 is padding, which has no gradient


def linear(value: float) -> nn.Linear:
    """A model of one number, which is α if M₀ has 0 and M_θ has 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def alpha_of(model: Any) -> float:
    return float(model.weight.detach()[0, 0])


def by_alpha(domain: Callable[[float], Any], general: Callable[[float], Any], name: str = "loss") -> Any:
    """An evaluate function of α."""
    return lambda model: {"domain": {name: domain(alpha_of(model))}, "general": {name: general(alpha_of(model))}}


def search(evaluate: Any, **settings: Any) -> Any:
    return search_alpha(evaluate, linear(0.0), model=linear(1.0), **settings)


def moved() -> Any:
    return move(tiny_model(), 0.2)


def host(tmp_path: Path, model: Any, **kwargs: Any) -> Trainer:
    return Trainer(model, config(tmp_path), eval_dataset=SETS, compute_metrics=classification_metrics(), **kwargs)


# Functions of α.


@pytest.mark.parametrize("best", [0.0, 0.21, 0.5, 0.83, 1.0])
def test_golden_section_finds_the_least_loss(best: float) -> None:
    curve = search(by_alpha(lambda alpha: (alpha - best) ** 2, lambda alpha: alpha))
    assert curve.method == "golden section"
    assert abs(curve.alpha - best) <= 0.02
    assert curve.num_evaluations == len(curve.alphas) <= 12


def test_a_loss_with_two_valleys_is_searched_on_a_grid() -> None:
    curve = search(by_alpha(lambda alpha: -((alpha - 0.5) ** 2) - alpha / 9, lambda alpha: alpha))
    assert curve.method == "grid, because the loss is not unimodal in α"
    assert {index / 10 for index in range(11)} <= set(curve.alphas)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1.0),
        ({"objective": "constrained", "max_forgetting": 0.1601}, 0.4),
        ({"objective": "constrained", "max_forgetting": 0.1599}, 0.3),
        ({"objective": "mean"}, 0.5),
        ({"objective": "mean", "domain_weight": 0.0}, 0.0),
        ({"objective": "knee"}, 0.5),
        ({"alphas": [0.25]}, 1.0),
    ],
)
def test_objectives_on_a_grid(settings: dict[str, Any], expected: float) -> None:
    curve = search(by_alpha(lambda alpha: alpha, lambda alpha: 1 - alpha**2, "accuracy"), **settings)
    assert (curve.alpha, curve.method) == (expected, "grid")
    assert str(settings.get("objective", "domain")) == curve.objective


@pytest.mark.parametrize("metric", ["f1_answer", "exact_answer", "recall_after", "hits_center"])
def test_a_metric_that_is_not_known_is_asked_for_its_direction(metric: str) -> None:
    rising = by_alpha(lambda alpha: alpha, lambda alpha: alpha, metric)
    message = rf"not known whether more of the metric {metric!r} is better\. Set `greater_is_better` beside it"
    with pytest.raises(ValueError, match=message):
        search(rising)
    with pytest.raises(ValueError, match=message):
        AlphaSearch(metric=metric)
    assert search(rising, greater_is_better=True).alpha == 1.0
    assert search(rising, greater_is_better=False).alpha == 0.0
    with pytest.raises(ValueError, match="`greater_is_better` must be true of the metric 'accuracy', got False"):
        AlphaSearch(metric="accuracy", greater_is_better=False)


def test_every_alpha_is_evaluated_once() -> None:
    seen: list[float] = []

    def evaluate(model: Any) -> Any:
        seen.append(round(alpha_of(model), 6))
        return by_alpha(lambda alpha: alpha, lambda alpha: 1 - alpha, "accuracy")(model)

    curve = search(evaluate, alphas=[0.0, 0.5, 1.0, 0.5])
    assert sorted(seen) == curve.alphas == [0.0, 0.5, 1.0]


def test_arrays_are_halved_and_give_standard_errors() -> None:
    noise = np.random.default_rng(0).normal(size=200)
    curve = search(
        by_alpha(lambda alpha: alpha + noise, lambda alpha: 1 - alpha + noise[:60], "score"),
        alphas=3,
        greater_is_better=True,
    )
    assert curve.num_examples == {
        "domain": {"selection": 100, "report": 100},
        "general": {"selection": 30, "report": 30},
    }
    assert curve.alpha == 1.0  # paired: the noise is the same at every α, so that one standard error is nothing
    assert 0.05 < curve.selection["domain"]["score"]["std_errors"][0] < 0.15
    values = [np.mean(part["domain"]["score"]["values"]) for part in (curve.selection, curve.report)]
    assert np.mean(values) == pytest.approx(0.5 + noise.mean())


def answers(shares: dict[float, float], size: int, seed: int) -> Callable[[float], Any]:
    """Whether examples are answered at an α, the easy ones at all α."""
    hardness = np.random.default_rng(seed).permutation(size) / size
    return lambda alpha: (hardness < shares[round(alpha, 6)]).astype(float)


def test_few_examples_do_not_bring_back_the_base_model() -> None:
    domain, general = {0.0: 0.8, 0.5: 0.8, 1.0: 0.8}, {0.0: 0.9, 0.5: 0.85, 1.0: 0.85}
    evaluate = by_alpha(answers(domain, 60, 0), answers(general, 60, 1), "accuracy")
    curve = search(evaluate, alphas=3)
    assert (curve.alpha, curve.best_alpha, curve.confidence_interval) == (1.0, 0.0, [0.0, 1.0])
    assert curve.reason.startswith("α = 1 is taken, because 30 domain and 30 general examples do not tell M_θ from")
    assert curve.warnings == []
    named = search(evaluate, alphas=3, prefer_trained=False)
    assert named.alpha == 0.0
    assert named.warnings == [
        "30 domain and 30 general examples tell no α from another: the 95% interval of the best α is all that was "
        "tried. Add validation examples before you take M_α for M_θ."
    ]


def test_single_numbers_are_said_to_have_no_spread() -> None:
    curve = search(by_alpha(lambda alpha: alpha, lambda alpha: -alpha, "accuracy"))
    assert curve.confidence_interval is None
    assert any("single number" in warning for warning in curve.warnings)


@pytest.mark.parametrize("apply", [True, False])
def test_the_model_is_put_back_or_left_at_the_chosen_alpha(apply: bool) -> None:
    model = linear(1.0)
    curve = search_alpha(
        by_alpha(lambda alpha: -abs(alpha - 0.4), lambda alpha: 0.0, "accuracy"), linear(0.0), model=model, apply=apply
    )
    assert curve.alpha == pytest.approx(0.4)
    assert alpha_of(model) == pytest.approx(0.4 if apply else 1.0)


def test_an_error_puts_the_model_back() -> None:
    model = linear(1.0)

    def evaluate(model: Any) -> Any:
        if alpha_of(model) < 1:
            raise ZeroDivisionError
        return by_alpha(lambda alpha: alpha, lambda alpha: alpha)(model)

    with pytest.raises(ZeroDivisionError):
        search_alpha(evaluate, linear(0.0), model=model)
    assert alpha_of(model) == 1.0


def test_the_harmonic_mean_and_what_it_refuses() -> None:
    evaluate = by_alpha(lambda alpha: alpha, lambda alpha: 1 - alpha**2, "accuracy")
    curve = search(evaluate, objective="harmonic")
    values = {index / 10: (index / 10) * (1 - (index / 10) ** 2) for index in range(11)}
    values = {alpha: 2 * value / (alpha + 1 - alpha**2) for alpha, value in values.items()}
    assert curve.alpha == max(values, key=lambda alpha: values[alpha])
    with pytest.raises(ValueError, match="must not be 'harmonic' where less of a metric is better"):
        search(by_alpha(lambda alpha: alpha, lambda alpha: alpha), objective="harmonic")


def test_alphas_that_golden_section_does_not_take_are_told(caplog: pytest.LogCaptureFixture) -> None:
    dip = by_alpha(lambda alpha: (alpha - 0.3) ** 2, lambda alpha: alpha, "loss")
    line = "`alphas` is for a grid, and this is golden section. Set `alpha_search.method: grid` for it."
    assert search(dip).method == "golden section"
    assert search(dip, alphas=3, method="grid").alphas == [0.0, 0.5, 1.0]
    assert line not in caplog.text
    assert search(dip, alphas=3).method == "golden section"
    assert caplog.messages.count(line) == 1


def test_golden_section_goes_beyond_the_ends_where_it_may() -> None:
    evaluate = by_alpha(lambda alpha: (alpha - 1.3) ** 2, lambda alpha: alpha)
    curve = search(evaluate, extrapolate=True, alphas=[0.0, 1.5])
    assert abs(curve.alpha - 1.3) <= 0.02
    assert search(evaluate).alpha == 1.0


def test_two_losses_may_have_one_valley_together() -> None:
    dip = by_alpha(lambda alpha: alpha - abs(alpha - 0.5) / 2, lambda alpha: (alpha - 0.5) ** 2 + abs(alpha - 0.5) / 2)
    assert search(dip, objective="mean").method == "golden section"


def test_batch_norms_are_measured_anew() -> None:
    set_seed(0)
    base = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    model = copy.deepcopy(base)
    nn.init.constant_(model[0].bias, 3.0)
    before, batches = copy.deepcopy(model.state_dict()), [torch.randn(8, 2) for _ in range(2)]
    seen: list[float] = []

    def evaluate(model: Any) -> Any:
        seen.append(float(model[1].running_mean[0]))
        return {side: {"accuracy": 1.0} for side in ("domain", "general")}

    with pytest.raises(ValueError, match="needs a model with batch norms"):
        search_alpha(evaluate, linear(0.0), model=linear(1.0), recalibrate=batches)
    search_alpha(evaluate, base, model=model, alphas=3, recalibrate=iter(batches))
    with torch.no_grad():
        expected = torch.stack([batch @ base[0].weight.T + base[0].bias / 2 + 1.5 for batch in batches]).mean((0, 1))
    assert seen == [0.0, 0.0, pytest.approx(float(expected[0]), abs=1e-5)]
    assert same_weights(model.state_dict(), before)


# Trainers.


def test_a_trainer_is_searched_and_put_back(tmp_path: Path) -> None:
    base, model = tiny_model(), moved()
    trainer = host(tmp_path, model)
    before = weights(trainer)
    curve = search_alpha(trainer, base, alphas=3, report_dataset=SETS)
    assert same_weights(weights(trainer), before)
    for alpha in curve.alphas:
        other = host(tmp_path, interpolate_weights(base, moved(), alpha).result).evaluate()
        for side in SETS:
            for name in ("loss", "accuracy", "f1"):
                assert curve.at(alpha, side, name) == pytest.approx(other[f"eval_{side}_{name}"], abs=1e-5)


def test_a_checkpoint_may_stand_for_the_base_model(tmp_path: Path) -> None:
    base, trainer = tiny_model(), host(tmp_path, moved())
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    curves = [search_alpha(trainer, given, alphas=3) for given in (base, str(tmp_path / "base"), base.state_dict())]
    assert [curve.selection for curve in curves] == [curves[0].selection] * 3
    assert curves[1].base == str(tmp_path / "base")


def test_a_base_without_a_head_is_told(tmp_path: Path) -> None:
    base, trainer = tiny_model(), host(tmp_path, moved())
    base.bert.save_pretrained(tmp_path / "base")
    backbone = BertModel.from_pretrained(tmp_path / "base")
    found = [search_alpha(trainer, given, alphas=3) for given in (str(tmp_path / "base"), backbone)]
    assert found[0].selection == found[1].selection
    assert "M₀ has no head of its own (classifier.weight, classifier.bias)" in found[0].warnings[0]


def test_the_same_model_twice_is_told(tmp_path: Path) -> None:
    trainer = host(tmp_path, tiny_model())
    curve = search_alpha(trainer, copy.deepcopy(trainer.model), alphas=3)
    assert any("M₀ and M_θ are the same model" in warning for warning in curve.warnings)
    assert curve.alpha == 1.0


def adapted(seed: int = 1) -> Any:
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules=["query", "dense"]))
    set_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    return model


def test_an_adapter_is_searched_like_the_models_that_it_merges_into(tmp_path: Path) -> None:
    model = adapted()
    merged = copy.deepcopy(model).merge_and_unload()
    found = search_alpha(host(tmp_path, model), alphas=3)
    expected = search_alpha(host(tmp_path, merged), tiny_model(), alphas=3)
    for side in SETS:
        values = [curve.selection[side]["loss"]["values"] for curve in (found, expected)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_an_adapter_copies_no_weights_and_takes_no_batches(tmp_path: Path) -> None:
    model = adapted()
    live = open_interpolation(None, model)
    kept = sum(tensor.numel() for tensor in live._trained)
    assert kept == sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_B" in name)
    with pytest.raises(ValueError, match="`recalibrate` must be left out for a `PeftModel`"):
        search_alpha(host(tmp_path, model), recalibrate=[])


def test_a_trainer_keeps_its_modes_log_and_callbacks(tmp_path: Path) -> None:
    class Loud(TrainerCallback):
        def on_predict(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    model = moved()
    model.train()
    model.bert.eval()
    trainer = host(tmp_path, model, callbacks=[Loud])
    callbacks = list(trainer.callback_handler.callbacks)
    search_alpha(trainer, tiny_model(), alphas=2)
    assert trainer.callback_handler.callbacks == callbacks
    assert trainer.state.log_history == []
    assert model.training
    assert not any(module.training for module in model.bert.modules())


# Groups.


# Bad input.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"objektive": "mean"}, TypeError, "no setting 'objektive'.*Did you mean 'objective'"),
        ({"objective": "means"}, ValueError, "Did you mean 'mean'"),
        ({"method": "gold"}, ValueError, "`method` must be one of"),
        ({"alphas": 1}, ValueError, "`alphas` must be at least 2"),
        ({"alphas": [1.5]}, ValueError, r"`alpha` must lie in \[0, 1\], got 1.5"),
        ({"tolerance": 0.0}, ValueError, "`tolerance` must"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"metric": "bleu"}, ValueError, "`metric` must be one of loss.*got 'bleu'"),
        ({"method": "golden", "objective": "knee"}, ValueError, "minimises a loss.*got 'knee'. Take 'grid'"),
        ({"alphas": 2_000_000_000}, ValueError, "and at most 1000, got 2000000000"),
        ({"alphas": 2.5}, ValueError, "`alphas` must be at least 2 α, or a list"),
        ({"eval_dataset": {}}, TypeError, "must be left out with a function, which has its own"),
        ({"domain": "law"}, ValueError, "must return metrics of 'law'"),
        ({"max_forgetting": -0.1}, ValueError, "`max_forgetting` must be at least 0"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        search(by_alpha(lambda alpha: alpha, lambda alpha: alpha), **settings)


def test_sets_and_models_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`model` must be given with a function"):
        search_alpha(lambda model: {}, linear(0.0))
    trainer = Trainer(tiny_model(), config(tmp_path), eval_dataset=SETS["domain"])
    with pytest.raises(ValueError, match="`eval_dataset` must be a mapping with the sets 'domain' and 'general'"):
        search_alpha(trainer, tiny_model())
    with pytest.raises(TypeError, match="`model` must be left out with a trainer"):
        search_alpha(trainer, tiny_model(), model=tiny_model())
    with pytest.raises(TypeError, match="only models of transformers are known by their checkpoints"):
        search_alpha(by_alpha(float, float), str(tmp_path), model=linear(1.0))
    with pytest.raises(ValueError, match="needs a loss on both sides, and there is none"):
        search(by_alpha(lambda alpha: alpha, lambda alpha: alpha, "accuracy"), method="golden")
    with pytest.raises(TypeError, match="`base` must be given"):
        search_alpha(host(tmp_path, tiny_model()))
    with pytest.raises(ValueError, match="must be a folder or the name of a model on the Hub"):
        search_alpha(host(tmp_path, tiny_model()), "./nowhere")


# Processes.


def _search_in_a_process(folder: str) -> None:
    trainer = InterpolationTrainer(
        model=moved(),
        args=config(folder, per_device_eval_batch_size=4),
        train_dataset=mixture(),
        eval_dataset=SETS,
        compute_metrics=classification_metrics(),
    )
    curve = search_alpha(trainer, tiny_model(), alphas=3)
    (Path(folder) / f"alpha-{trainer.args.process_index}.txt").write_text(
        f"{curve.alpha} {curve.num_examples} {np.round(curve.selection['domain']['loss']['values'], 5).tolist()}"
    )


@pytest.mark.slow
def test_all_processes_choose_alike(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run_processes(tmp_path / f"{processes}.log", _search_in_a_process, str(folder), processes=processes)
        found += [path.read_text() for path in folder.glob("alpha-*.txt")]
    assert len(found) == 3
    assert len(set(found)) == 1
