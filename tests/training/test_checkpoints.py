"""Checkpoints on disk: what is whole, what is not, and where a run goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from toys import NotingHost, NotingTrainer, config, corpus, mixture, same_weights, tiny_model, weights

from hf_interp.training.checkpoints import Found, find_checkpoint, find_fault, invalidate, rank_file, read_mixture

FILES = (
    "checksums.json",
    "config.json",
    "mixture_state_0.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
)
"""What a run of one process writes."""

OF_A_RUN = ("optimizer.pt", "rng_state.pth", "scheduler.pt")
"""What of it `save_only_model` leaves out."""


def train(output_dir: Path, resume: Any = None, kind: Any = NotingTrainer, **kwargs: Any) -> Any:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **kwargs}
    dataset = mixture() if kind is not NotingHost else corpus(0, 40)
    trainer = kind(tiny_model(), config(output_dir, **settings), train_dataset=dataset)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run with the checkpoints 2, 4 and 6, and its trainer."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder)


@pytest.fixture
def folder(tmp_path: Path, finished: tuple[Path, Any]) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "by one byte": lambda path: cut(path, len(path.read_bytes().rstrip(b"\n")) - 1),
    "by half": lambda path: cut(path, path.stat().st_size // 2),
    "to seven bytes": lambda path: cut(path, 7),
    "to nothing": lambda path: cut(path, 0),
}


def test_what_a_run_has_written_is_whole(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    for step in (2, 4, 6):
        checkpoint = folder / f"checkpoint-{step}"
        assert sorted(path.name for path in checkpoint.iterdir()) == list(FILES)
        assert find_fault(checkpoint) is None
        assert find_fault(str(checkpoint), weights_only=True) is None
    assert find_checkpoint(folder) == Found(folder / "checkpoint-6", [])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named(folder: Path, name: str, damage: str) -> None:
    DAMAGES[damage](folder / "checkpoint-6" / name)
    fault = find_fault(folder / "checkpoint-6")
    assert fault == (f"{name} is missing or cut short" if name == "trainer_state.json" else f"{name} is cut short")
    assert find_fault(folder / "checkpoint-6", weights_only=True) == fault
    assert find_checkpoint(folder) == Found(folder / "checkpoint-4", [f"checkpoint-6 ({fault})"])


def test_a_line_end_that_is_cut_off_a_json_file_is_no_fault(folder: Path) -> None:
    for name in (name for name in FILES if name.endswith(".json")):
        path = folder / "checkpoint-6" / name
        before = json.loads(path.read_text())
        assert path.read_bytes()[-1:] == b"\n"
        cut(path, path.stat().st_size - 1)
        assert json.loads(path.read_text()) == before
    assert find_fault(folder / "checkpoint-6") is None


def flip(path: Path, place: int) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_flipped_bit_is_named_and_the_whole_checkpoint_before_is_taken(
    folder: Path, finished: tuple[Path, Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "checkpoint-6" / name
    content = path.read_bytes()
    in_pickle = path.suffix in (".bin", ".pt", ".pth")
    flip(path, content.index(b"data.pkl") + 60 if in_pickle else content.index(b'"', 9) + 1)  # or in a key
    fault = find_fault(folder / "checkpoint-6")
    assert fault is not None
    assert fault.startswith(f"{name} is ")
    assert find_checkpoint(folder).path == folder / "checkpoint-4"
    assert sorted(train(folder, True).seen) == [4, 5]
    assert f"checkpoint-6 ({fault})" in caplog.text


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("mixture_state_0.json", "mixture_state_0.json is missing or of another step"),
        ("model.safetensors", "no weights"),
        ("optimizer.pt", "no optimizer.pt"),
        ("rng_state.pth", "no rng_state.pth"),
        ("scheduler.pt", "no scheduler.pt"),
        ("trainer_state.json", "trainer_state.json is missing or cut short"),
    ],
)
def test_a_file_that_is_missing_is_named(folder: Path, name: str, fault: str) -> None:
    (folder / "checkpoint-6" / name).unlink()
    assert find_fault(folder / "checkpoint-6") == fault
    assert find_fault(folder / "checkpoint-6", weights_only=True) == fault
    assert find_checkpoint(folder) == Found(folder / "checkpoint-4", [f"checkpoint-6 ({fault})"])


def test_what_no_run_reads_may_be_missing(folder: Path, finished: tuple[Path, Any]) -> None:
    for name in ("config.json", "training_args.bin"):
        (folder / "checkpoint-4" / name).unlink()
    assert find_fault(folder / "checkpoint-4") is None
    resumed = train(folder, str(folder / "checkpoint-4"))
    assert same_weights(weights(resumed), weights(finished[1]))


def test_all_faults_are_told_from_the_last_checkpoint_on(folder: Path) -> None:
    cut(folder / "checkpoint-6" / "optimizer.pt", 100)
    (folder / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": "four"}')
    shutil.rmtree(folder / "checkpoint-2")
    faults = ["checkpoint-6 (optimizer.pt is cut short)", "checkpoint-4 (trainer_state.json is not a trainer's state)"]
    assert find_checkpoint(folder) == Found(None, faults)


def test_checkpoints_are_ordered_by_step_and_other_folders_are_passed_over(folder: Path) -> None:
    (folder / "checkpoint-2").rename(folder / "checkpoint-10")
    for name in ("checkpoint-best", "checkpoint-", "checkpoint--12", "checkpoints-20", "runs"):
        (folder / name).mkdir()
    (folder / "checkpoint-30").write_text("a file")
    assert find_checkpoint(folder) == Found(folder / "checkpoint-10", [])
    (folder / "checkpoint-40").mkdir()
    assert find_checkpoint(folder).skipped == ["checkpoint-40 (trainer_state.json is missing or cut short)"]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path / "nowhere") == Found(None, [])
    assert find_fault(tmp_path / "nowhere") == "no such folder"
    assert read_mixture(tmp_path / "nowhere") is None


def test_the_mixture_of_a_checkpoint_is_read(finished: tuple[Path, Any]) -> None:
    folder, trainer = finished
    for step in (2, 4, 6):
        found = read_mixture(folder / f"checkpoint-{step}")
        assert found is not None
        assert found["plan"] == trainer.plan.to_dict()
        assert (found["global_step"], found["num_processes"], found["num_workers"]) == (step, 1, 0)
        assert json.loads(rank_file(folder / f"checkpoint-{step}", 0).read_text())["global_step"] == step


# Several processes.


def as_of_two_processes(checkpoint: Path) -> None:
    """Give a checkpoint the files that two processes write."""
    (checkpoint / "checksums.json").unlink()
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    state["stateful_callbacks"]["AlphaCallback"]["attributes"]["mixture"]["num_processes"] = 2
    path.write_text(json.dumps(state))
    shutil.copy(rank_file(checkpoint, 0), rank_file(checkpoint, 1))
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")


def test_the_files_of_every_process_must_be_there(folder: Path) -> None:
    last = folder / "checkpoint-6"
    as_of_two_processes(last)
    assert find_fault(last) is None
    for rank in (0, 1):
        for path, fault in (
            (rank_file(last, rank), f"mixture_state_{rank}.json is missing or of another step"),
            (last / f"rng_state_{rank}.pth", f"no rng_state_{rank}.pth"),
        ):
            content = path.read_bytes()
            path.unlink()
            assert find_fault(last) == find_fault(last, weights_only=True) == fault
            assert find_checkpoint(folder).path == folder / "checkpoint-4"
            path.write_bytes(content[:-2])
            assert find_fault(last) == f"{path.name} is cut short"
            path.write_bytes(content)
    shutil.copy(rank_file(folder / "checkpoint-4", 0), rank_file(last, 1))
    assert find_fault(last) == "mixture_state_1.json is missing or of another step"


def test_random_states_of_processes_that_are_no_more_do_not_count(folder: Path) -> None:
    last = folder / "checkpoint-6"
    as_of_two_processes(last)
    (last / "rng_state_1.pth").rename(last / "rng_state_2.pth")  # of an earlier life with three
    assert find_fault(last) == "no rng_state_1.pth"


# Other kinds of weights.


def test_shards_must_all_be_there_with_their_index(folder: Path) -> None:
    last = folder / "checkpoint-6"
    for name in ("model.safetensors", "checksums.json"):
        (last / name).unlink()
    tiny_model().save_pretrained(last, max_shard_size="20KB")
    shards = sorted(last.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert find_fault(last) is None
    index = last / "model.safetensors.index.json"
    for path in (*shards, index):
        content = path.read_bytes()
        path.unlink()
        assert find_fault(last) == f"no {path.name}"
        path.write_bytes(content[:-2])
        assert find_fault(last) == f"{path.name} is cut short"
        path.write_bytes(content)
    assert find_checkpoint(folder) == Found(last, [])


def test_a_checkpoint_of_weights_alone_is_whole_for_who_asks_for_no_more(tmp_path: Path) -> None:
    whole = train(tmp_path, save_only_model=True)
    last = tmp_path / "checkpoint-6"
    assert sorted(path.name for path in last.iterdir()) == [name for name in FILES if name not in OF_A_RUN]
    assert find_fault(last, weights_only=True) is None
    assert find_fault(last) == "no optimizer.pt"
    assert find_checkpoint(tmp_path).path is None
    assert find_checkpoint(tmp_path, weights_only=True) == Found(last, [])
    with pytest.raises(ValueError, match=r"only parts of some: checkpoint-6 \(no optimizer\.pt\), checkpoint-4"):
        train(tmp_path, True)
    for resume in (True, str(tmp_path / "checkpoint-4")):
        shutil.rmtree(last)
        resumed = train(tmp_path, resume, save_only_model=True)
        assert resumed.seen == {step: whole.seen[step] for step in (4, 5)}
    cut(last / "model.safetensors", 1000)
    assert find_fault(last, weights_only=True) == "model.safetensors is cut short"


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # by older versions of peft
@pytest.mark.parametrize(
    ("name", "missing"),
    [("adapter_model.safetensors", "no weights"), ("adapter_config.json", "no adapter_config.json")],
)
def test_adapters_are_weights(tmp_path: Path, name: str, missing: str) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    args = config(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    NotingTrainer(model, args, train_dataset=mixture()).train()
    path = tmp_path / "checkpoint-2" / name
    assert find_fault(path.parent) is None
    content = path.read_bytes()
    cut(path, len(content) - 1)
    assert find_fault(path.parent) == f"{name} is cut short"
    path.unlink()
    assert find_fault(path.parent) == missing


def test_checkpoints_of_the_host_are_judged_alike(tmp_path: Path) -> None:
    train(tmp_path, kind=NotingHost)
    last = tmp_path / "checkpoint-6"
    assert read_mixture(last) is None
    assert find_checkpoint(tmp_path) == Found(last, [])
    (last / "rng_state.pth").unlink()
    assert find_checkpoint(tmp_path) == Found(tmp_path / "checkpoint-4", ["checkpoint-6 (no rng_state.pth)"])
    resumed = train(tmp_path, True)
    assert sorted(resumed.seen) == [4, 5]


# What stands there from an earlier life.


class Killed(BaseException):
    """As if the process were no more."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_state_of_an_earlier_life_makes_no_checkpoint_whole(
    folder: Path, finished: tuple[Path, Any], name: str, after: bool
) -> None:
    shutil.rmtree(folder / "checkpoint-6")

    class Dying(NotingTrainer):
        """Is killed while it writes its first checkpoint, at the beginning or the end of a part of it."""

        def __getattribute__(self, asked: str) -> Any:
            found = super().__getattribute__(asked)
            if asked != name:
                return found

            def dying(*args: Any, **kwargs: Any) -> None:
                if after:
                    found(*args, **kwargs)
                raise Killed

            return dying

    with pytest.raises(Killed):
        train(folder, str(folder / "checkpoint-2"), Dying)
    assert (folder / "checkpoint-4" / "model.safetensors").is_file()  # the earlier life's, or as good
    assert find_fault(folder / "checkpoint-4") == "trainer_state.json is missing or cut short"
    resumed = train(folder, True)
    assert sorted(resumed.seen) == [2, 3, 4, 5]
    assert same_weights(weights(resumed), weights(finished[1]))


def test_no_optimizer_of_an_earlier_life_is_left_beside_other_weights(folder: Path) -> None:
    train(folder, str(folder / "checkpoint-2"), save_only_model=True)
    for step in (4, 6):
        checkpoint = folder / f"checkpoint-{step}"
        assert sorted(path.name for path in checkpoint.iterdir()) == [name for name in FILES if name not in OF_A_RUN]
        assert find_fault(checkpoint, weights_only=True) is None
    assert find_checkpoint(folder).path == folder / "checkpoint-2"


def test_breaking_up_leaves_weights_and_folders(folder: Path) -> None:
    last = folder / "checkpoint-6"
    (last / "optimizer_0").mkdir()
    invalidate(last)
    invalidate(folder / "checkpoint-8")
    left = ["config.json", "mixture_state_0.json", "model.safetensors", "optimizer_0", "training_args.bin"]
    assert sorted(path.name for path in last.iterdir()) == left


# Through the trainer.


@pytest.mark.parametrize("name", FILES)
def test_resume_passes_over_what_is_not_whole_and_says_so(
    folder: Path, finished: tuple[Path, Any], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    cut(folder / "checkpoint-6" / name, 100)
    resumed = train(folder, True)
    assert sorted(resumed.seen) == [4, 5]
    assert same_weights(weights(resumed), weights(finished[1]))
    missing = "missing or " if name == "trainer_state.json" else ""
    assert (
        f"Passed over what is not a whole checkpoint: checkpoint-6 ({name} is {missing}cut short). Going on from "
        "checkpoint-4."
    ) in caplog.messages
    assert find_checkpoint(folder) == Found(folder / "checkpoint-6", [])


def test_resume_of_a_whole_checkpoint_warns_of_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / "checkpoint-6")
    assert sorted(train(folder, True).seen) == [4, 5]
    assert not [record for record in caplog.records if record.name.startswith("hf_interp")]


def test_resume_without_a_whole_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        cut(folder / f"checkpoint-{step}" / "optimizer.pt", 100)
    parts = r"There are only parts of some: checkpoint-6 \(optimizer.pt is cut short\), checkpoint-4 .*, checkpoint-2 "
    with pytest.raises(ValueError, match=rf"No valid checkpoint found.*{parts}.*Start a new run\."):
        train(folder, True)
    with pytest.raises(ValueError, match=r"No valid checkpoint found in output directory \(.*empty\)\. Start a new"):
        train(tmp_path / "empty", True)


def test_an_explicit_checkpoint_that_is_cut_is_refused_with_the_last_whole_one(folder: Path) -> None:
    cut(folder / "checkpoint-6" / "model.safetensors", 1000)
    last = str(folder / "checkpoint-6")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ValueError, match="cannot be resumed") as error:
        train(folder, last)
    assert str(error.value) == (
        f"The checkpoint {last!r} cannot be resumed: model.safetensors is cut short. The last whole one beside it is "
        f"{str(folder / 'checkpoint-4')!r}."
    )
    shutil.rmtree(folder / "checkpoint-4")
    shutil.rmtree(folder / "checkpoint-2")
    with pytest.raises(ValueError, match=r"cut short\. There is no whole one beside it\."):
        train(folder, last)
    with pytest.raises(ValueError, match=r"cannot be resumed: no such folder\."):
        train(folder, str(folder / "checkpoint-8"))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items() <= before.items()


def test_an_explicit_checkpoint_without_its_optimizer_is_refused(folder: Path) -> None:
    (folder / "checkpoint-4" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4' cannot be resumed: no scheduler\.pt\..*is '.*checkpoint-6'"):
        train(folder, str(folder / "checkpoint-4"))
