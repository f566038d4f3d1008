"""Units: what a model scores, example by example."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from toys import config, corpus, tiny_model
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    EvalPrediction,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    set_seed,
)

from hf_interp.selection.scoring import TrainerScorer, halves, jackknife_units, predict, ratio_units, summarise
from hf_interp.tasks.metrics import classification_metrics


def trainer(tmp_path: Path, **kwargs: Any) -> Trainer:
    return Trainer(tiny_model(), config(tmp_path), compute_metrics=classification_metrics(), **kwargs)


def language_trainer(tmp_path: Path) -> Trainer:
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    return Trainer(model, config(tmp_path, per_device_eval_batch_size=2))


@pytest.mark.parametrize("size", [2, 3, 10, 101])
def test_halves_are_disjoint_and_stay_the_same(size: int) -> None:
    first, second = halves(size, 0, "domain")
    assert sorted([*first, *second]) == list(range(size))
    assert abs(len(first) - len(second)) <= 1
    assert [half.tolist() for half in halves(size, 0, "domain")] == [first.tolist(), second.tolist()]


def test_halves_depend_on_seed_and_name() -> None:
    found = {tuple(halves(100, seed, name)[0]) for seed in (0, 1) for name in ("domain", "general")}
    assert len(found) == 4


@pytest.mark.parametrize("size", [0, 1])
def test_too_few_to_be_halved(size: int) -> None:
    with pytest.raises(ValueError, match=f"'law' must have at least 2 examples to be halved, got {size}"):
        halves(size, 0, "law")


def test_units_of_a_ratio_have_its_mean_and_its_linearised_spread() -> None:
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 9, 4000).astype(float)
    sums = counts * draw.normal(2.0, 1.0, 4000)
    units = ratio_units(sums, counts)
    assert units.mean() == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)
    resampled = [sums[rows].sum() / counts[rows].sum() for rows in draw.integers(0, 4000, (400, 4000))]
    assert summarise(units)[1] == pytest.approx(np.std(resampled), rel=0.15)


def test_the_jackknife_of_a_mean_is_its_plain_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=20)
    units = jackknife_units(lambda rows: float(values[rows].mean()), np.arange(20))
    assert units == pytest.approx(values)
    assert summarise(units)[1] == pytest.approx(values.std(ddof=1) / np.sqrt(20))


def test_a_metric_of_one_row_has_no_standard_error() -> None:
    assert summarise(jackknife_units(lambda rows: 0.5, np.arange(1))) == (0.5, None)


def test_losses_and_hits_are_those_of_the_trainer(tmp_path: Path) -> None:
    host, rows = trainer(tmp_path), corpus(0, 12)
    found = TrainerScorer(host, {"domain": rows, "general": rows}, {"domain": rows, "general": rows}, None, 0)()
    expected = host.evaluate(rows)
    for part in (found.selection, found.report):
        for name in ("loss", "accuracy"):
            assert len(part["domain"][name]) == 12
            assert part["domain"][name].mean() == pytest.approx(expected[f"eval_{name}"], abs=1e-6)
        assert part["general"]["f1"].tolist() == [pytest.approx(expected["eval_f1"])]


def test_a_half_is_scored_on_its_examples(tmp_path: Path) -> None:
    host, rows = trainer(tmp_path), corpus(0, 13)
    found = TrainerScorer(host, {"domain": rows}, None, "f1", 3)()
    for part, half in zip((found.selection, found.report), halves(13, 3, "domain"), strict=True):
        expected = host.evaluate(rows.select(half))
        assert part["domain"]["loss"].mean() == pytest.approx(expected["eval_loss"], abs=1e-6)
        assert part["domain"]["f1"].mean() == pytest.approx(expected["eval_f1"])
        assert len(part["domain"]["f1"]) == min(20, len(half))


def test_losses_of_a_language_model_count_tokens(tmp_path: Path) -> None:
    host = language_trainer(tmp_path)
    ids = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    labels = [[1, 2, -100, -100], [5, 6, 7, 8], [-100, -100, 11, 12]]
    found = predict(host, datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}))
    assert found.counts.tolist() == [1, 3, 2]
    with torch.no_grad():
        logits = host.model(torch.tensor(ids)).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.tensor(labels)[:, 1:], reduction="none", ignore_index=-100
    )
    assert found.losses == pytest.approx(losses.sum(1).numpy(), rel=1e-5)


def test_a_trainer_is_left_as_it_was(tmp_path: Path) -> None:
    def first(logits: Any, labels: Any) -> Any:
        return logits.argmax(-1)

    def share(prediction: EvalPrediction) -> dict[str, float]:
        assert prediction.predictions.ndim == 1
        return {"ones": float(prediction.predictions.mean())}

    host = Trainer(tiny_model(), config(tmp_path), compute_metrics=share, preprocess_logits_for_metrics=first)
    before = {**vars(host)}
    found = TrainerScorer(host, {"domain": corpus(0, 8)}, None, None, 0)()
    assert {*found.selection["domain"]} == {"loss", "ones"}
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "callback_handler", "control", "state"):
        assert getattr(host, name) is before[name]
    assert host.state.log_history == []


def test_labels_padded_to_different_lengths_count_alike(tmp_path: Path) -> None:
    host = language_trainer(tmp_path)
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4, 5, 6, 7, 8], "labels": [4, 5, 6, 7, 8]}]

    def pad(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        size = max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": 0, "labels": -100}
        return {
            key: torch.tensor([row[key] + [value] * (size - len(row[key])) for row in batch])
            for key, value in fill.items()
        }

    host.data_collator = pad
    together = predict(host, datasets.Dataset.from_list(rows))
    host.args.per_device_eval_batch_size = 1
    apart = predict(host, datasets.Dataset.from_list(rows))
    assert together.counts.tolist() == apart.counts.tolist() == [2, 4]
    assert together.losses == pytest.approx(apart.losses, rel=1e-5)


def test_the_f1_has_the_jackknife_of_its_groups(tmp_path: Path) -> None:
    host, rows = trainer(tmp_path), corpus(0, 30)
    found = TrainerScorer(host, {"domain": rows}, {"domain": rows}, "f1", 0)()
    units = found.selection["domain"]["f1"]
    whole = host.evaluate(rows)["eval_f1"]
    without = [
        host.evaluate(rows.select([row for row in range(30) if row % 20 != group]))["eval_f1"] for group in range(20)
    ]
    assert units.mean() == pytest.approx(whole)
    assert units.std(ddof=1) == pytest.approx(19 * np.std(without, ddof=1))
    assert (len(units), found.sizes) == (20, {"domain": {"selection": 30, "report": 30}})


def test_without_metrics_there_are_losses_alone(tmp_path: Path) -> None:
    host = Trainer(tiny_model(), config(tmp_path))
    found = TrainerScorer(host, {"domain": corpus(0, 8)}, None, None, 0)()
    assert [*found.selection["domain"]] == ["loss"]
    assert predict(host, corpus(0, 8)).whole.predictions is None


def test_the_loss_of_two_labels_is_their_mean(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    set_seed(0)
    model = BertForQuestionAnswering(BertConfig(vocab_size=20, **sizes))
    rows = {"input_ids": [[1, 2, 3, 4]] * 3, "start_positions": [0, 1, 2], "end_positions": [1, 1, 3]}
    data = datasets.Dataset.from_dict(rows)
    host = Trainer(model, config(tmp_path))
    assert predict(host, data).losses.mean() == pytest.approx(host.evaluate(data)["eval_loss"], abs=1e-6)


def test_a_loss_that_logits_do_not_tell_is_left_out(tmp_path: Path) -> None:
    class Odd(BertForSequenceClassification):
        def forward(self, input_ids: Any, labels: Any) -> Any:
            found = super().forward(input_ids=input_ids, labels=labels)
            found.logits = found.logits[:, None, None]
            return found

    host = Trainer(Odd(tiny_model().config), config(tmp_path), compute_metrics=lambda _: {"seen": np.float32(0.5)})
    found = TrainerScorer(host, {"domain": corpus(0, 8)}, None, None, 0)()
    assert [*found.selection["domain"]] == ["seen"]
    assert found.selection["domain"]["seen"].tolist() == [0.5] * 4


def test_metrics_may_see_inputs(tmp_path: Path) -> None:
    def first(prediction: EvalPrediction) -> dict[str, float]:
        return {"first": float(prediction.inputs[:, 0].mean())}

    host = Trainer(tiny_model(), config(tmp_path, include_for_metrics=["inputs"]), compute_metrics=first)
    found = TrainerScorer(host, {"domain": corpus(0, 8)}, None, None, 0)()
    assert found.selection["domain"]["first"].mean() == np.mean(halves(8, 0, "domain")[0])


@pytest.mark.parametrize("name", ["bf16_full_eval", "batch_eval_metrics"])
def test_arguments_that_a_search_cannot_keep_are_refused(tmp_path: Path, name: str) -> None:
    host = trainer(tmp_path)
    setattr(host.args, name, True)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        TrainerScorer(host, {"domain": corpus(0, 4)}, None, None, 0)


def test_what_keeps_no_predictions_is_refused(tmp_path: Path) -> None:
    host = Trainer(tiny_model(), config(tmp_path, prediction_loss_only=True))
    with pytest.raises(ValueError, match="prediction_loss_only"):
        TrainerScorer(host, {"domain": corpus(0, 4)}, None, None, 0)
    with pytest.raises(ValueError, match="without labels"):
        predict(trainer(tmp_path), corpus(0, 4).remove_columns("labels"))
