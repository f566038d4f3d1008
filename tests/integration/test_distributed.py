"""Several processes read what one process reads, each its own part."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import get_worker_info
from toys import DOMAIN_FIRST, NotingTrainer, Stop, config, corpus, losses, mixture, same_weights, tiny_model
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from hf_interp import InterpolatedDataset
from hf_interp.mixture.schedules import linear


class Counted(torch.utils.data.Dataset[dict[str, Any]]):
    """A corpus of texts of different lengths that counts in shared memory how often each example is read."""

    def __init__(self, first: int, count: int) -> None:
        self.numbers = range(first, first + count)
        self.reads = torch.zeros(8, count, dtype=torch.int64).share_memory_()  # a row for each reading process

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        worker = get_worker_info()
        self.reads[0 if worker is None else worker.id + 1, index] += 1
        number = self.numbers[index]
        return {"input_ids": [number] + [3] * (number % 7), "labels": number % 2}


class ShapesTrainer(NotingTrainer):
    """Notes how long the batches are, too."""

    shapes: list[tuple[int, int]]
    longest: list[int]

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        self.shapes.append(tuple(inputs["input_ids"].shape))
        self.longest.append(int(inputs["attention_mask"].sum(-1).max()))
        return super().training_step(model, inputs, *args)


def padding() -> DataCollatorWithPadding:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]"))
    return DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"))


def counted(settings: dict[str, Any]) -> dict[str, Any]:
    return {"general": Counted(0, 40), "domain": Counted(DOMAIN_FIRST, 12)}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    return mixture()


def sharded(settings: dict[str, Any]) -> dict[str, Any]:
    return {"general": corpus(0, 40), "domain": corpus(DOMAIN_FIRST, 24).to_iterable_dataset(num_shards=4)}


def live(folder: str, name: str, make: Any, settings: dict[str, Any], stop: int | None, resume: str | None) -> None:
    """Train in one of the processes and write down what it has seen."""
    dataset = make(settings)
    collator = padding() if make is counted else None
    args = config(folder, save_strategy="steps", **{"save_steps": 4, **settings})
    trainer = ShapesTrainer(tiny_model(0.0), args, collator, dataset) if make is counted else None
    if trainer is None:
        trainer = NotingTrainer(tiny_model(0.0), args, train_dataset=dataset)
    else:
        trainer.shapes, trainer.longest = [], []
    if stop is not None:
        trainer.add_callback(Stop(stop))
    found: dict[str, Any] = {}
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:
        found["error"] = str(error)
    history = trainer.state.log_history
    found |= {
        "losses": losses(trainer),
        "domain_losses": [entry.get("loss_domain") for entry in history if "loss" in entry],
        "seen": [[step, seen] for step, seen in trainer.seen.items()],
        "alphas": list(trainer.alphas.values()),
        "prints": [entry["order_fingerprint"] for entry in history if "order_fingerprint" in entry],
        "decisions": trainer.results().order["decisions"],
        "workers": args.dataloader_num_workers,
    }
    if make is counted:
        found["shapes"], found["longest"] = trainer.shapes, trainer.longest
        found["reads"] = [part.reads.sum(0).tolist() for part in dataset.values()]
        found["readers"] = [int((part.reads.sum(1) > 0).sum()) for part in dataset.values()]
    Path(folder, f"{name}{args.process_index}.json").write_text(json.dumps(found))
    torch.save(trainer.model.state_dict(), Path(folder, f"{name}{args.process_index}.pt"))


def launch(
    folder: Path,
    name: str,
    split: tuple[int, ...],
    make: Any = plain,
    *,
    stop: int | None = None,
    resume: str | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """What the processes of a run have seen, for a split (processes, batch, accumulation, workers)."""
    folder.mkdir(exist_ok=True)
    world, batch_size, accumulation, workers = split
    settings |= {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
    }
    checkpoint = str(folder / resume) if resume is not None else None
    log = folder / f"{name}.log"
    processes.run(log, live, str(folder), name, make, settings, stop, checkpoint, processes=world)
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in range(world)]


def union(parts: list[dict[str, Any]]) -> dict[int, list[int]]:
    """What all processes have read at each step, sorted."""
    found: dict[int, list[int]] = {}
    for part in parts:
        for step, seen in part["seen"]:
            found.setdefault(step, []).extend(seen)
    return {step: sorted(seen) for step, seen in found.items()}


def planned(batch_size: int = 8, max_steps: int = 8) -> dict[int, list[int]]:
    """The global batches of `plain` and `counted`, from the plan alone."""
    order = list(
        InterpolatedDataset(mixture(), batch_size=batch_size, max_steps=max_steps, alpha_schedule=linear(), seed=42)
    )
    return {
        step: sorted(row["input_ids"][0] for row in order[step * batch_size : (step + 1) * batch_size])
        for step in range(max_steps)
    }


# (processes, batch, accumulation, workers)
SPLITS = [(1, 8, 1, 0), (1, 4, 2, 2), (2, 4, 1, 2), (2, 2, 2, 0), (2, 2, 2, 2), (4, 2, 1, 0), (4, 1, 2, 2)]


@pytest.mark.slow
def test_each_process_reads_its_own_part_of_every_global_batch_and_no_more(tmp_path: Path) -> None:
    prints: list[list[str]] = []
    logs = []
    for split in SPLITS:
        world, batch_size, accumulation, workers = split
        parts = launch(tmp_path, "x".join(map(str, split)), split, counted, optim="sgd")
        assert union(parts) == planned()
        for part in parts:
            assert [step for step, _ in part["seen"]] == list(range(8))
            assert all(len(seen) == 8 // world for _, seen in part["seen"])
            numbers = Counter(number for _, seen in part["seen"] for number in seen)
            for first, reads, readers in zip((0, DOMAIN_FIRST), part["reads"], part["readers"], strict=True):
                assert reads == [numbers[first + index] for index in range(len(reads))]
                assert readers == max(workers, 1)
            # every batch is padded to its own longest text, whatever the other processes have
            assert [shape[0] for shape in part["shapes"]] == [batch_size] * 8 * accumulation
            assert [shape[1] for shape in part["shapes"]] == part["longest"]
        if world > 1:
            assert parts[0]["longest"] != parts[1]["longest"]
        prints += [part["prints"] for part in parts]
        states = [torch.load(tmp_path / f"{'x'.join(map(str, split))}{rank}.pt") for rank in range(world)]
        assert all(same_weights(state, states[0]) for state in states)
        size = float(sum(tensor.double().abs().sum() for tensor in states[0].values()))
        logs.append((parts[0]["losses"], parts[0]["domain_losses"][1:], size))
    assert len(prints[0]) == 8
    assert all(found == prints[0] for found in prints)
    for found, domain_losses, size in logs[1:]:
        assert found == pytest.approx(logs[0][0], rel=1e-5)
        assert domain_losses == pytest.approx(logs[0][1], rel=1e-5)
        assert size == pytest.approx(logs[0][2], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(2, 2, 2, 0), (2, 2, 2, 2)])
def test_a_process_reads_ahead_by_what_it_fetches_ahead_at_the_most(tmp_path: Path, split: tuple[int, ...]) -> None:
    _, batch_size, accumulation, workers = split
    for part in launch(tmp_path, "stopped", split, counted, stop=3, max_steps=16):
        seen = Counter(number for _, numbers in part["seen"] for number in numbers)
        assert seen.total() == 3 * accumulation * batch_size
        reads = Counter(
            {
                first + index: count
                for first, found in zip((0, DOMAIN_FIRST), part["reads"], strict=True)
                for index, count in enumerate(found)
            }
        )
        assert seen <= reads
        # one batch that is handed on while the next is waited for, and two for each worker
        assert reads.total() - seen.total() <= batch_size * (1 + 2 * workers)


@pytest.mark.slow
def test_a_run_goes_on_with_any_split_of_its_global_batch(tmp_path: Path) -> None:
    (whole,) = launch(tmp_path / "whole", "whole", (1, 8, 1, 0))
    assert union([whole]) == planned()
    before = launch(tmp_path / "run", "before", (2, 4, 1, 2), stop=4)
    assert union(before) == {step: seen for step, seen in planned().items() if step < 4}
    for split in [(1, 8, 1, 0), (1, 2, 4, 2), (2, 2, 2, 0), (4, 1, 2, 0)]:
        after = launch(tmp_path / "run", "after", split, resume="checkpoint-4")
        assert union(after) == {step: seen for step, seen in planned().items() if step >= 4}
        for part in after:
            assert part["prints"] == whole["prints"]
            assert part["alphas"] == whole["alphas"][4:]
    # and once more, from what the last split has left
    again = launch(tmp_path / "run", "again", (2, 4, 1, 0), resume="checkpoint-8", max_steps=8)
    assert union(again) == {}
    assert all(part["prints"] == whole["prints"] for part in again)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(1, 2, 2, 0), (2, 8, 1, 2), (2, 3, 1, 0)])
def test_another_global_batch_loses_and_repeats_nothing_within_a_pass(tmp_path: Path, split: tuple[int, ...]) -> None:
    before = launch(tmp_path, "before", (2, 2, 2, 0), stop=4, max_steps=12)
    after = launch(tmp_path, "after", split, resume="checkpoint-4", max_steps=24)
    lives = [union(before), union(after)]
    assert [list(life) for life in lives] == [list(range(4)), list(range(4, 24))]
    size = split[0] * split[1] * split[2]
    for first, count in ((0, 40), (DOMAIN_FIRST, 12)):
        reads = Counter(dict.fromkeys(range(first, first + count), 0))
        for step in range(24):
            seen = lives[step >= 4][step]
            assert len(seen) == (8 if step < 4 else size)
            reads.update(number for number in seen if first <= number < first + DOMAIN_FIRST)
            assert max(reads.values()) - min(reads.values()) <= 1
        assert reads.total() > count
    assert len({part["prints"][-1] for part in after}) == 1


@pytest.mark.slow
def test_shards_of_a_stream_are_read_once_a_pass_by_one_reader_each(tmp_path: Path) -> None:
    split = (2, 4, 1, 2)
    settings: dict[str, Any] = {"max_steps": 12, "alpha_schedule_type": "constant", "alpha_end": 0.75}
    whole = launch(tmp_path, "whole", split, sharded, **settings)
    stream = sharded({})["domain"]
    shards = [[row["input_ids"][0] for row in stream.shard(num_shards=4, index=index)] for index in range(4)]
    assert sorted(number for shard in shards for number in shard) == list(range(DOMAIN_FIRST, DOMAIN_FIRST + 24))
    owners = []
    for shard in shards:
        read = [[number for _, seen in part["seen"] for number in seen if number in shard] for part in whole]
        owners.append([rank for rank in (0, 1) if read[rank]])
        (numbers,) = (found for found in read if found)
        assert len(numbers) > len(shard)  # it begins a second pass
        for begin in range(0, len(numbers), len(shard)):
            one_pass = numbers[begin : begin + len(shard)]
            assert len(set(one_pass)) == len(one_pass)
    assert sorted(owners) == [[0], [0], [1], [1]]
    resumed = launch(tmp_path, "resumed", split, sharded, resume="checkpoint-4", **settings)
    for rank in (0, 1):
        assert resumed[rank]["seen"] == whole[rank]["seen"][4:]
        assert resumed[rank]["prints"] == whole[rank]["prints"]
        states = [torch.load(tmp_path / f"{name}{rank}.pt") for name in ("whole", "resumed")]
        assert same_weights(*states)
    for name, other in (("fewer", (1, 8, 1, 2)), ("more", (2, 4, 1, 4))):
        parts = [whole, launch(tmp_path, name, other, sharded, resume="checkpoint-4", **settings)]
        lives = [union(each) for each in parts]
        read = Counter(number for step in range(12) for number in lives[step >= 4][step] if number >= DOMAIN_FIRST)
        assert (len(read), read.total()) == (24, 72)
        assert max(read.values()) - min(read.values()) <= 2  # readers are in passes that are next to each other


@pytest.mark.slow
def test_alpha_answers_to_training_alike_on_all_processes_and_after_a_restart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_steps": 40,
        "save_steps": 10,
        "learning_rate": 0.05,
        "alpha_controller": "guard",
        "alpha_controller_kwargs": {"tolerance": 0.02},
        "alpha_update_steps": 2,
        "alpha_update_lag": 6,
    }
    runs = {}
    for split in [(1, 8, 1, 0), (1, 8, 1, 2), (2, 4, 1, 0), (2, 4, 1, 2)]:
        parts = launch(tmp_path / "x".join(map(str, split)), "whole", split, **settings)
        assert all(part["decisions"] == parts[0]["decisions"] for part in parts)
        assert all(part["alphas"] == parts[0]["alphas"] for part in parts)
        assert all(part["prints"] == parts[0]["prints"] for part in parts)
        runs[split] = parts[0]
        words = Counter(decision["reason"].split(":")[0] for decision in parts[0]["decisions"])
        assert words["on"]
        assert words["held"]
        assert len(parts[0]["decisions"]) == (40 - 8) // 2
        assert parts[0]["alphas"] != [step / 39 for step in range(40)]
    for first, second in [((1, 8, 1, 0), (1, 8, 1, 2)), ((2, 4, 1, 0), (2, 4, 1, 2))]:
        for key in ("decisions", "alphas", "prints"):
            assert runs[first][key] == runs[second][key]
    for split, other in [((1, 8, 1, 0), (1, 8, 1, 2)), ((2, 4, 1, 2), (2, 4, 1, 0))]:
        folder = tmp_path / "x".join(map(str, split))
        for part in launch(folder, "resumed", other, resume="checkpoint-20", **settings):
            assert part["decisions"] == runs[split]["decisions"]
            assert part["alphas"] == runs[split]["alphas"][20:]
            assert part["prints"] == runs[split]["prints"]
