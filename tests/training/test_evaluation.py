"""Evaluation of what generates: with settings of its own, and each example once, however many processes there are."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import processes
import pytest
import torch
from toys import DOMAIN_FIRST
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, T5Config, T5ForConditionalGeneration, set_seed

from hf_interp import InterpolationConfig, InterpolationSeq2SeqTrainer, search_alpha

ROWS = 17


class Padding:
    """A tokenizer, as far as a collator needs one."""

    padding_side, model_input_names = "right", ("input_ids", "attention_mask")

    def pad(self, features: Any, **kwargs: Any) -> Any:
        return {"input_ids": torch.tensor([each["input_ids"] for each in features])}


def rows(first: int, count: int = 24) -> datasets.Dataset:
    numbers = range(first, first + count)
    return datasets.Dataset.from_dict(
        {"input_ids": [[number, 5, 1] for number in numbers], "labels": [[number % 7 + 2, 1] for number in numbers]}
    )


def model() -> T5ForConditionalGeneration:
    set_seed(7)
    sizes = {"vocab_size": 2000, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0))


def metrics(prediction: Any) -> dict[str, float]:
    """How many examples there are, and how similar the first tokens are, over all of them."""
    found, wanted = prediction.predictions[:, 1], prediction.label_ids[:, 0]
    return {"rows": float(len(found)), "f1": float(np.mean(1.0 / (1.0 + np.abs(found - wanted))))}


def trainer_of(folder: Path | str, kind: Any = InterpolationSeq2SeqTrainer, data: Any = None, **kwargs: Any) -> Any:
    settings = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = InterpolationConfig(
        str(folder),
        **{
            **settings,
            "predict_with_generate": True,
            "generation_max_length": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.1,
            **kwargs,
        },
    )
    return kind(
        model(),
        args,
        train_dataset=data or {"general": rows(0), "domain": rows(DOMAIN_FIRST, 12)},
        eval_dataset={"general": rows(100, ROWS), "domain": rows(DOMAIN_FIRST, ROWS)},
        data_collator=DataCollatorForSeq2Seq(Padding(), return_tensors="pt"),
        compute_metrics=metrics,
    )


class Watching(T5ForConditionalGeneration):
    """Notes what it is asked to generate with."""

    asked: list[Any]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(kwargs.get("num_beams"))
        return super().generate(*args, **kwargs)


@pytest.mark.parametrize("data", [None, rows(0)], ids=["mixture", "ordinary"])
def test_settings_of_generation_reach_every_set(tmp_path: Path, data: Any) -> None:
    trainer = trainer_of(tmp_path, data=data)
    trainer.model.__class__, trainer.model.asked = Watching, []
    beams = trainer.evaluate(num_beams=2)
    assert trainer.model.asked == [2] * 2 * 5
    trainer.model.asked.clear()
    plain = trainer.evaluate()
    assert trainer.model.asked == [None] * 2 * 5
    assert plain.keys() == beams.keys()
    trainer.model.asked.clear()
    assert trainer.evaluate(rows(0, 4), num_beams=3)["eval_rows"] == 4
    assert trainer.predict(rows(0, 4), num_beams=4).metrics["test_rows"] == 4
    assert trainer.model.asked == [3, 4]


def test_an_ordinary_dataset_evaluates_as_with_the_host(tmp_path: Path) -> None:
    held_out = rows(100, ROWS)
    ours, host = (trainer_of(tmp_path, kind, rows(0)) for kind in (InterpolationSeq2SeqTrainer, Seq2SeqTrainer))
    found = [trainer.evaluate(held_out, num_beams=2) for trainer in (ours, host)]
    for key in ("eval_loss", "eval_rows", "eval_f1"):
        assert found[0][key] == found[1][key]


def evaluate_apart(folder: str) -> None:
    trainer = trainer_of(folder)
    found = trainer.evaluate()
    trainer.train()
    curve = search_alpha(trainer, model(), alphas=[0.0, 1.0], metric="f1")
    found |= {"predicted": len(trainer.predict(rows(0, ROWS)).predictions)}
    found |= {"curve": curve.report["domain"]["f1"]["values"], "examples": curve.num_examples["domain"]}
    Path(folder, f"rank{trainer.args.process_index}.json").write_text(json.dumps(found, default=str))


@pytest.mark.slow
def test_two_processes_score_each_example_once(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        processes.run(tmp_path / f"log{count}", evaluate_apart, str(folder), processes=count)
        found += [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]
    for each in found:
        assert each["predicted"] == each["eval_general_rows"] == each["eval_domain_rows"] == ROWS
        assert each["eval_domain_f1"] == pytest.approx(found[0]["eval_domain_f1"])
        assert each["curve"][0] == pytest.approx(found[0]["curve"][0])  # M₀ on the half of the rows that is reported
        assert each["examples"] == {"selection": 8, "report": 9}
