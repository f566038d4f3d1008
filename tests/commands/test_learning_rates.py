"""How α counts when steps are weighted by their learning rate, against the host's own schedules."""

from pathlib import Path
from typing import Any

import pytest
from toys import config, mixture, tiny_model

from hf_interp import InterpolationTrainer
from hf_interp.commands.plan import learning_rate_factors, rate_weighted_alpha


def trainer(folder: Path, **settings: Any) -> InterpolationTrainer:
    args = config(folder, **{"max_steps": 5, "logging_steps": 1, **settings})
    return InterpolationTrainer(tiny_model(), args, train_dataset=mixture())


def weighted(folder: Path, **settings: Any) -> float | None:
    found = trainer(folder, **settings)
    assert found.plan is not None
    return rate_weighted_alpha(found.plan, found.args)


def test_a_rise_counts_a_third_while_the_rate_falls_to_nothing(tmp_path: Path) -> None:
    # α 0, 1/4, 1/2, 3/4, 1 at rates 1, 4/5, 3/5, 2/5, 1/5, whose sum is 3
    assert weighted(tmp_path) == pytest.approx((0.2 + 0.3 + 0.3 + 0.2) / 3)
    assert weighted(tmp_path, alpha_start=1.0, alpha_end=0.0) == pytest.approx((1 + 0.6 + 0.3 + 0.1) / 3)
    assert weighted(tmp_path, max_steps=3000) == pytest.approx(1 / 3, abs=1e-3)  # looked at in 2,000 places


def test_under_a_constant_rate_all_steps_count_alike(tmp_path: Path) -> None:
    assert weighted(tmp_path, lr_scheduler_type="constant") == pytest.approx(0.5)
    assert weighted(tmp_path, alpha_schedule_type="constant", alpha_end=0.25) == pytest.approx(0.25)


def test_what_is_not_known_beforehand_is_not_told(tmp_path: Path) -> None:
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    found = trainer(tmp_path, lr_scheduler_type="constant")
    args = config(tmp_path, max_steps=5, **plateau)
    assert learning_rate_factors(args, [0, 1], 5) is None
    assert found.plan is not None
    assert rate_weighted_alpha(found.plan, args) is None


def test_arguments_that_a_schedule_does_not_take_are_named(tmp_path: Path) -> None:
    args = config(tmp_path, max_steps=5, lr_scheduler_type="warmup_stable_decay")
    with pytest.raises(ValueError, match=r"`lr_scheduler_kwargs` \(\{\}\) do not suit .* \(warmup_stable_decay\)"):
        learning_rate_factors(args, [0], 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 2},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.4},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}, "warmup_steps": 1},
    ],
)
def test_the_rates_are_those_that_the_trainer_logs(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = trainer(tmp_path, learning_rate=1e-3, **settings)
    found.train()
    logged = [entry["learning_rate"] for entry in found.state.log_history if "learning_rate" in entry]
    factors = learning_rate_factors(found.args, list(range(5)), 5)
    assert factors is not None
    assert logged == pytest.approx([1e-3 * factor for factor in factors])
