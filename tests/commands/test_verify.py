"""Whether runs read the same: records of small runs, and records that are tampered with."""

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from toys import NotingTrainer, config, corpus, mixture, tiny_model

from hf_interp.commands.verify import check_run, compare_runs, load_order, verify
from hf_interp.train import run_recipe


def trained(folder: Path, resume: Any = None, data: Any = None, **kwargs: Any) -> Path:
    args = config(folder, **{"save_strategy": "steps", "save_steps": 4, "logging_steps": 2, **kwargs})
    NotingTrainer(tiny_model(), args, train_dataset=data or mixture()).train(resume_from_checkpoint=resume)
    return folder


def first_difference(first: Path, second: Path) -> tuple[int, int]:
    """The step and slot at which the plans of two runs part, found one by one."""
    plans = [load_order(folder).plan for folder in (first, second)]
    for slot in range(len(plans[0])):
        draws = [plan.locate([slot]) for plan in plans]
        if (draws[0].corpus[0], draws[0].example[0]) != (draws[1].corpus[0], draws[1].example[0]):
            return divmod(slot, plans[0].batch_size)
    raise AssertionError("they are the same")


def test_runs_that_read_the_same_agree_whatever_the_split_or_interruption(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    split = trained(tmp_path / "split", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    resumed = trained(tmp_path / "resumed", resume=str(whole / "checkpoint-4"))
    for other in (split, resumed, whole / "checkpoint-8", whole / "results.json"):
        verdict = verify(whole, other)
        assert (verdict.agrees, verdict.until) == (True, 8)
    verdict = verify(whole, whole / "checkpoint-4")
    assert (verdict.agrees, verdict.until) == (True, 4)
    assert verdict.text.endswith("up to step 4 (of 8 and 4).")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 43}, "seed: 42 -> 43"),
        ({"alpha_start": 0.25}, "the schedule of α"),
        ({"data": {"general": corpus(0, 40), "domain": corpus(1000, 11)}}, "num_examples of corpus 'domain': 12 -> 11"),
    ],
)
def test_runs_that_part_are_told_where_and_why(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    first, second = trained(tmp_path / "first", seed=42), trained(tmp_path / "second", **{"seed": 42, **change})
    verdict = verify(first, second)
    step, slot = first_difference(first, second)
    assert not verdict.agrees
    assert verdict.until == step // 2 * 2  # logged every second step
    assert f"up to step {verdict.until} and part before step {verdict.until + 2}." in verdict.text
    assert f"it is at step {step}, slot {slot} of the batch" in verdict.text
    assert reason in verdict.text


def test_a_change_in_the_middle_is_where_they_part(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    changed = trained(tmp_path / "changed", resume=str(whole / "checkpoint-4"), per_device_train_batch_size=3)
    verdict = verify(whole, changed)
    assert (verdict.agrees, verdict.until) == (False, 4)
    assert "global batch: 4 -> 3" in verdict.text
    assert check_run(load_order(changed)).agrees


def test_a_run_is_checked_against_its_plan(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    verdict = verify(folder)
    assert (verdict.agrees, verdict.until, verdict.text) == (
        True,
        8,
        "The run read what its plan says up to step 8 (4 records).",
    )
    path = folder / "results.json"
    results = json.loads(path.read_text())
    record = next(entry for entry in results["log_history"] if entry["step"] == 6)
    record["order_fingerprint"] = "0123456789abcdef"
    path.write_text(json.dumps(results))
    verdict = verify(folder)
    assert (verdict.agrees, verdict.until) == (False, 4)
    assert "something else before step 6: 0123456789abcdef on record" in verdict.text
    verdict = verify(folder, folder / "checkpoint-8")
    assert "Their plans are the same there, so one of them did not read what its plan says" in verdict.text


def test_weights_that_another_has_written_since_are_told(toy_recipe: dict[str, Any]) -> None:
    folder = Path(toy_recipe["output_dir"])
    run_recipe(toy_recipe)
    assert verify(folder).agrees
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    verdict = verify(folder / "results.json")
    assert (verdict.agrees, verdict.until) == (False, 4)
    assert verdict.text.endswith(" not those that it wrote: another run has been there.")
    path.unlink()
    assert not verify(folder).agrees


def test_streams_are_compared_but_not_checked(tmp_path: Path) -> None:
    def streams() -> dict[str, Any]:
        return {"general": corpus(0, 40).to_iterable_dataset(num_shards=4), "domain": corpus(1000, 12)}

    first = trained(tmp_path / "first", data=streams())
    again = trained(tmp_path / "again", data=streams(), resume=str(first / "checkpoint-4"))
    shared = trained(tmp_path / "shared", data=streams(), dataloader_num_workers=2)
    assert verify(first, again).agrees
    verdict = verify(first, shared)
    assert (verdict.agrees, verdict.until) == (False, 0)
    assert "streams were divided among other readers" in verdict.text
    with pytest.raises(ValueError, match="read streams, whose examples its plan does not know"):
        verify(first)


def test_orders_by_length_are_compared_but_not_checked(tmp_path: Path) -> None:
    by_length = {"train_sampling_strategy": "group_by_length", "length_window": 2}
    first, second = trained(tmp_path / "first", **by_length), trained(tmp_path / "second", seed=1, **by_length)
    assert verify(first, first).agrees
    verdict = verify(first, second)
    assert (verdict.agrees, verdict.until) == (False, 0)
    assert "share out examples by lengths, which they do not hold" in verdict.text
    with pytest.raises(ValueError, match="by their lengths, which are not saved with it"):
        verify(first)


def test_results_with_values_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = trained(tmp_path) / "results.json"
    whole = path.read_text()
    for way, value in (
        ("order.plan.alpha", [""]),
        ("order.plan.batch_size", 0),
        ("order.plan.corpora", []),
        ("order.plan.corpora.0.num_examples", -1),
        ("order.plan.corpora.0.num_examples", 10**30),
        ("order.plan.corpora.0.share", 1e308),
        ("order.plan.corpora.0.share", float("inf")),
        ("log_history.0.step", float("inf")),
        ("model", "x"),
        ("model", [1]),
    ):
        results = json.loads(whole)
        *places, last = [int(part) if part.isdigit() else part for part in way.split(".")]
        reduce(getitem, places, results)[last] = value
        path.write_text(json.dumps(results))
        with pytest.raises(ValueError, match=r"holds a plan or a log that is not whole|has a corpus that cannot be"):
            verify(path)


def test_what_tells_no_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no"):
        load_order(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not tell in which order"):
        load_order(tmp_path)
    for broken in (
        '{"order": {"plan": {}}, "log_history": []}',
        '{"order": {"plan": null}, "log_history": null}',
        '{"order": 3}',
    ):
        (tmp_path / "results.json").write_text(broken)
        with pytest.raises(ValueError, match="holds a plan or a log that is not whole"):
            load_order(tmp_path)
    (tmp_path / "results.json").unlink()
    first = trained(tmp_path / "first", logging_steps=3, save_strategy="no")
    second = trained(tmp_path / "second", logging_steps=4, save_strategy="no")
    orders = load_order(first), load_order(second)
    assert compare_runs(*orders).agrees  # the last step of both is on record
    for order in orders:
        del order.fingerprints[8]
    with pytest.raises(ValueError, match=r"no step on record in common: 3, 6 in .*, 4 in"):
        compare_runs(*orders)
