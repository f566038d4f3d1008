"""A trainer reads at random, in sequence or by length as its arguments say, and resumes to the bit."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from toys import DOMAIN_FIRST, NotingTrainer, config, mixture, same_weights, tiny_model, weights

from hf_interp import InterpolationConfig
from hf_interp.mixture.corpus import as_corpora
from hf_interp.mixture.schedules import linear
from hf_interp.training.mixture_run import order_of, plan_mixture


def varied(first: int, count: int) -> datasets.Dataset:
    """Example i has the number first + i, and 1 to 9 more tokens."""
    rows = range(first, first + count)
    ids = [[number] + [3] * (1 + number * 7 % 9) for number in rows]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": [number % 2 for number in rows]})


def padded(rows: list[Any]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [list(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor([row["labels"] for row in rows])}


ORDERS: dict[str, dict[str, Any]] = {
    "random": {"mixture_sampling": "random"},
    "stopping": {"mixture_sampling": "random", "stopping_strategy": "first_exhausted", "max_steps": -1, "alpha": 0.3},
    "sequential": {"train_sampling_strategy": "sequential"},
    "by length": {"train_sampling_strategy": "group_by_length", "length_window": 3},
}


def trained(folder: Path, resume: Path | None = None, **settings: Any) -> Any:
    if "alpha" in settings:
        settings["alpha_schedule_type"] = None
    args = config(folder, save_strategy="steps", save_steps=4, **settings)
    data = {"general": varied(0, 25), "domain": varied(DOMAIN_FIRST, 12)}
    trainer = NotingTrainer(tiny_model(), args, train_dataset=data, data_collator=padded)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


SLOW = ("random", "sequential")


@pytest.mark.parametrize("order", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in ORDERS])
def test_a_run_reads_as_its_plan_says_and_resumes_to_the_bit(tmp_path: Path, order: str) -> None:
    whole = trained(tmp_path, **ORDERS[order])
    steps = whole.plan.max_steps
    assert steps == whole.state.global_step
    for step in range(steps):
        draw = whole.plan.locate(range(4 * step, 4 * step + 4))
        firsts = [0, DOMAIN_FIRST]
        expected = [firsts[corpus] + row for corpus, row in zip(draw.corpus, draw.example, strict=True)]
        assert whole.seen[step] == expected
    resumed = trained(tmp_path, tmp_path / "checkpoint-4", **ORDERS[order])
    assert resumed.seen == {step: whole.seen[step] for step in range(4, steps)}
    assert same_weights(weights(resumed), weights(whole))
    assert resumed.plan.fingerprint() == whole.plan.fingerprint()
    assert resumed.state.log_history[-2]["order_fingerprint"] == whole.state.log_history[-2]["order_fingerprint"]


def test_orders_differ_and_plain_arguments_have_them_too(tmp_path: Path) -> None:
    corpora = as_corpora({"general": varied(0, 25), "domain": varied(DOMAIN_FIRST, 12)})
    plans = [
        plan_mixture(corpora, config(tmp_path, **settings), batch_size=4)
        for settings in (
            {},
            *ORDERS.values(),
            {"train_sampling_strategy": "group_by_length"},
            {"train_sampling_strategy": "batch_rebalance"},
        )
        if settings.get("max_steps") != -1
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans) - 1  # batch_rebalance is that of the plan
    plain = InterpolationConfig.__mro__[1](str(tmp_path), train_sampling_strategy="group_by_length")
    assert order_of(plain, corpora).window == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture_sampling": "Random"}, "sampling of a mixture must be one of"),
        ({"stopping_strategy": "all_exhausted", "max_steps": -1}, "needs random sampling, got 'exact'"),
        (
            {"mixture_sampling": "random", "stopping_strategy": "all_exhausted"},
            r"ends the run, which `max_steps` \(8\) contradicts",
        ),
        (
            {
                "mixture_sampling": "random",
                "stopping_strategy": "all_exhausted",
                "max_steps": -1,
                "num_train_epochs": 2,
            },
            r"ends the run, which `num_train_epochs` \(2\) contradicts",
        ),
        ({"length_window": 0}, "`length_window` must be at least 1, got 0"),
        ({"mixture_sampling": "random", "train_sampling_strategy": "group_by_length"}, "which grouping by length does"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_a_strategy_that_ends_the_run_needs_an_alpha_that_stays(tmp_path: Path) -> None:
    args = config(tmp_path, mixture_sampling="random", stopping_strategy="all_exhausted", max_steps=-1)
    with pytest.raises(ValueError, match="needs a constant α"):
        plan_mixture(as_corpora(mixture()), args, batch_size=4)
    with pytest.raises(ValueError, match="needs a constant α"):
        plan_mixture(as_corpora(mixture()), args, linear(), batch_size=4)
