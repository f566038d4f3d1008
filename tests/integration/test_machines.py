"""Several machines train as one process does, one of them may die, and none goes on with other data than the others."""

import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import datasets
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from command_server import CommandServer
from safetensors.torch import load_file
from toys import NotingTrainer, Stop, config, corpus, mixture, same_weights, tiny_model
from transformers import TrainerCallback

from hf_interp.mixture.corpus import Corpus
from hf_interp.mixture.plan import MixturePlan
from hf_interp.mixture.schedules import constant
from hf_interp.mixture.slots import BatchShard, SlotDataset, SlotSampler
from hf_interp.reporting.results import load_run_results
from hf_interp.training.checkpoints import find_checkpoint

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 12, 2
HOSTS = ("10.77.21.1", "10.77.21.2")


class Pause(TrainerCallback):
    """Makes steps slow, so that a machine dies before the end."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.2)


def live(folder: str, name: str, stop: int, settings: dict[str, Any]) -> None:
    """One life of a run in one process: from the last whole checkpoint that a machine has, if any has one."""
    settings = {"save_strategy": "steps", "save_steps": EVERY, "max_steps": STEPS, "optim": "sgd", **settings}
    resume = settings.pop("resume", False)
    trainer = NotingTrainer(tiny_model(0.0), config(folder, learning_rate=0.1, **settings), train_dataset=mixture())
    trainer.add_callback(Stop(stop))
    if name == "both":
        trainer.add_callback(Pause())
    trainer.train(resume_from_checkpoint=resume)
    rank = trainer.args.process_index
    prints = [entry["order_fingerprint"] for entry in trainer.state.log_history if "order_fingerprint" in entry]
    found = {"seen": trainer.seen, "prints": prints}
    Path(folder, f"{name}{rank}.json").write_text(json.dumps(found))
    torch.save(trainer.model.state_dict(), Path(folder, f"{name}{rank}.pt"))
    trainer.accelerator.end_training()


class Machines:
    """Two machines, each a network of its own, with a cable between them.

    Args:
        commands: for each, a folder with a `python` that runs there.
        names: of the networks.
        folder: for the programs and what they print.
    """

    def __init__(self, commands: Sequence[Path], names: Sequence[str], folder: Path) -> None:
        self.commands, self.names, self.folder = commands, names, folder

    def start(self, index: int, count: int, words: Sequence[str], per_machine: int = 2) -> "subprocess.Popen[bytes]":
        """Begin the part of a run that one machine has, by torch's launcher."""
        python = str(self.commands[index])
        launcher = [f"{python}/python", "-m", "torch.distributed.run", "--nproc_per_node", str(per_machine)]
        if count > 1:
            launcher += ["--nnodes", str(count), "--node_rank", str(index)]
            launcher += ["--master_addr", HOSTS[0], "--master_port", "29511"]
        else:
            launcher += ["--standalone"]
        environment = {**os.environ, "PYTHONPATH": processes.python_path(Path(__file__).parent)}
        environment |= {"GLOO_SOCKET_IFNAME": f"cable{index}", "OMP_NUM_THREADS": "1"}
        with (self.folder / f"log{index}").open("ab") as log:
            return subprocess.Popen(
                [*launcher, "--no-python", f"{python}/python", *words], env=environment, stdout=log, stderr=log
            )

    def live(self, folders: Sequence[Path], name: str, *given: Any, **settings: Any) -> "list[subprocess.Popen[bytes]]":
        """Begin a life of the run on the machines that have a folder (see `live`)."""
        script = self.folder / "script.py"
        script.write_text("import json, sys\nfrom test_machines import live\nlive(*json.loads(sys.argv[1]))\n")
        places = [(index, folder) for index, folder in enumerate(folders) if folder is not None]
        started = []
        for index, folder in places:
            words = json.dumps([str(folder), name, *given, settings])
            started.append(self.start(index, len(places), [str(script), words]))
        return started

    def log(self) -> str:
        return "\n".join(
            (self.folder / f"log{index}").read_text() for index in (0, 1) if (self.folder / f"log{index}").exists()
        )

    def end(self, started: "Sequence[subprocess.Popen[bytes]]") -> None:
        assert [process.wait(60) for process in started] == [0] * len(started), self.log()

    def kill(self, index: int) -> None:
        """Kill all that runs on a machine but what waits for commands."""
        command = ["ip", "netns", "pids", self.names[index]]
        pids = [int(pid) for pid in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
        for pid in sorted(pids)[1:]:
            os.kill(pid, 9)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def networks() -> Iterator[list[str]]:
    """Two network namespaces with a pair of virtual devices between them."""
    names = [f"hfi{os.getpid()}x{index}" for index in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for index, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{HOSTS[index]}/24", "dev", f"cable{index}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"cable{index}", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {getattr(error, 'stderr', None) or error}")
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def machine_commands(networks: list[str]) -> Iterator[list[Path]]:
    """For each machine a folder with commands that run there."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in networks]
        servers = [
            CommandServer(
                folder,
                {**os.environ, "PYTHONPATH": processes.python_path(ROOT)},
                *("hf_interp.train", "toys"),
                within=["ip", "netns", "exec", name],
            )
            for folder, name in zip(folders, networks, strict=True)
        ]
        for server in servers:
            stack.enter_context(server)
        yield folders


@pytest.fixture
def machines(networks: list[str], machine_commands: list[Path], tmp_path: Path) -> Machines:
    return Machines(machine_commands, networks, tmp_path)


def read(folders: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """What all processes of a life have written down, by rank."""
    found = {path.stem: json.loads(path.read_text()) for folder in folders for path in folder.glob(f"{name}?.json")}
    return [found[key] for key in sorted(found)]


def sequence(parts: list[dict[str, Any]]) -> list[list[int]]:
    """What was read, by step, one process behind another."""
    return [[number for part in parts for number in part["seen"][step]] for step in parts[0]["seen"]]


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_machine_dies_the_other_goes_on_alone_and_then_both(
    machines: Machines, tmp_path: Path, is_shared: bool
) -> None:
    whole = tmp_path / "whole"
    folders = [tmp_path / ("run" if is_shared else f"run{index}") for index in (0, 1)]
    for folder in (whole, *folders):
        folder.mkdir(exist_ok=True)
    settings = {"save_on_each_node": not is_shared}
    processes.run(tmp_path / "log", live, str(whole), "one", STEPS, {"per_device_train_batch_size": 8})
    (one,) = read([whole], "one")
    assert [len(numbers) for numbers in sequence([one])] == [8] * STEPS
    # On both machines, until the one that the first process is on dies.
    both = machines.live(folders, "both", STEPS, per_device_train_batch_size=2, **settings)
    while not (folders[1] / f"checkpoint-{2 * EVERY}" / "checksums.json").exists():
        assert all(process.poll() is None for process in both), machines.log()
        time.sleep(0.01)
    machines.kill(0)
    assert both[1].wait(60) != 0
    assert both[0].wait(60) != 0
    step = int(find_checkpoint(folders[1]).path.name.removeprefix("checkpoint-"))
    assert step >= 2 * EVERY
    # On the other alone.
    machines.end(machines.live([None, folders[1]], "alone", 8, resume=True, per_device_train_batch_size=4, **settings))
    alone = read([folders[1]], "alone")
    assert sequence(alone) == sequence([one])[step:8]
    # On both again.
    machines.end(machines.live(folders, "again", STEPS, resume=True, per_device_train_batch_size=2, **settings))
    again = read(dict.fromkeys(folders), "again")
    assert len(again) == 4
    assert sequence(again) == sequence([one])[8:]
    for part in (*alone, *again):
        assert part["prints"] == one["prints"][: len(part["prints"])]
    expected = torch.load(whole / "one0.pt")
    for rank, folder in enumerate((folders[0], folders[0], folders[1], folders[1])):
        found = torch.load(folder / f"again{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    for folder in folders:
        assert find_checkpoint(folder) == (folder / f"checkpoint-{STEPS}", [])


@pytest.mark.slow
def test_machines_with_other_files_stop_in_one_line(
    machines: Machines, toy_recipe: dict[str, Any], tmp_path: Path
) -> None:
    given = Path(toy_recipe["corpora"]["domain"]["path"]).read_text(encoding="utf-8").splitlines(keepends=True)
    started = []
    for index, lines in enumerate((given, given[:-1])):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "domain.jsonl").write_text("".join(lines), encoding="utf-8")
        corpora = {**toy_recipe["corpora"], "domain": {"path": str(folder / "domain.jsonl")}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({**toy_recipe, "corpora": corpora}), encoding="utf-8")
        words = ["-m", "hf_interp.train", str(folder / "recipe.yaml")]
        started.append(machines.start(index, 2, words, per_machine=1))
    assert [process.wait(60) != 0 for process in started] == [True, True]
    host, count = socket.gethostname(), len(given)
    line = (
        f"hf-interp: error: Process 1 (on {host}) differs from process 0 (on {host}) in corpus 'domain' (examples, "
        f'hash of rows): [{count - 1}, "'
    )
    assert all((tmp_path / f"log{index}").read_text().count(line) == 1 for index in (0, 1)), machines.log()
    assert not any(Path(toy_recipe["output_dir"]).iterdir())


# What processes are given.


def with_other(rank: int, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and data of a process; those of the second are others."""
    data = {**mixture(), "eval": corpus(0, 8)}
    settings: dict[str, Any] = {"seed": 1}
    if rank == 1 and kind in ("seed", "learning_rate", "max_steps"):
        settings[kind] = 5
    elif rank == 1 and kind == "schedule":
        data["schedule"] = constant(0.3)
    elif rank == 1 and kind == "order":
        data["domain"] = data["domain"].select(range(11, -1, -1))
    elif rank == 1 and kind == "length":
        data["general"] = corpus(0, 39)
    elif rank == 1 and kind != "none":
        data[kind] = corpus(1001, 12) if kind == "domain" else corpus(1, 8)
    return settings, data


OTHERS = {
    "none": "",
    "domain": "in corpus 'domain' (examples, hash of rows): [12, ",
    "order": "in corpus 'domain' (examples, hash of rows): [12, ",
    "length": "in corpus 'general' (examples, hash of rows): [39, ",
    "eval": "in evaluation set 'eval' (hash of rows): ",
    "seed": "in seed: 5, not 1. Give all",
    "learning_rate": "in learning_rate: 5, not 0.01. Give all",
    "max_steps": "in max_steps: 5, not 8. Give all",
    "schedule": "in order of reading (hash): ",
}


def differ(folder: str) -> None:
    """Make a trainer for each kind of difference, and write down what it says."""
    rank, said = int(os.environ["RANK"]), {}
    for kind in OTHERS:
        settings, data = with_other(rank, kind)
        sets = {side: data[side] for side in ("general", "domain")}
        given = {"train_dataset": sets, "eval_dataset": data["eval"], "alpha_schedule": data.get("schedule")}
        said[kind] = ""
        try:
            NotingTrainer(tiny_model(), config(f"{folder}/{rank}", run_name=f"run{rank}", **settings), **given)
        except ValueError as error:
            said[kind] = str(error)
    Path(folder, f"said{rank}.json").write_text(json.dumps(said))


def test_what_processes_are_given_is_compared_before_training(tmp_path: Path) -> None:
    processes.run(tmp_path / "log", differ, str(tmp_path), processes=2)
    first, second = (json.loads((tmp_path / f"said{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    host = socket.gethostname()
    for kind, part in OTHERS.items():
        if kind == "none":
            assert first[kind] == ""
        else:
            assert first[kind].startswith(f"Process 1 (on {host}) differs from process 0 (on {host}) {part}")
            assert first[kind].endswith(". Give all processes the same files, recipe and flags.")
            assert "\n" not in first[kind]


def live_apart(folder: str) -> None:
    """Be the only process of one of two machines."""
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    rank, said = int(os.environ["RANK"]), []

    def train(place: str, step: int, resume: str | bool, **settings: Any) -> NotingTrainer:
        settings |= {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
        trainer = NotingTrainer(tiny_model(0.3), config(Path(folder, place), **settings), train_dataset=mixture())
        trainer.add_callback(Stop(step))
        try:
            trainer.train(resume_from_checkpoint=resume)
        except ValueError as error:
            said.append(str(error))
        return trainer

    train(f"blind{rank}", 4, False)
    train("one", 4, False, save_on_each_node=True)
    train(f"whole{rank}", 8, False, save_on_each_node=True)
    train(f"run{rank}", 4, "auto", save_on_each_node=True)
    last = Path(folder, f"run{rank}", "checkpoint-4")
    if rank == 0:
        shutil.rmtree(last)
    trainer = train(f"run{rank}", 6, "auto", save_on_each_node=True)
    if rank == 1:
        shutil.rmtree(last.parent)
    again = train(f"run{rank}", 8, str(last.with_name("checkpoint-6")), save_on_each_node=True)
    train(f"run{rank}", 8, str(last.with_name("checkpoint-5")), save_on_each_node=True)
    found = {"said": said, "seen": [trainer.seen, again.seen], "last": str(find_checkpoint(last.parent).path)}
    Path(folder, f"found{rank}.json").write_text(json.dumps(found))


def test_machines_without_a_common_folder_give_each_other_their_checkpoints(tmp_path: Path) -> None:
    processes.run(tmp_path / "log", live_apart, str(tmp_path), processes=2)
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in (0, 1)]
    host = socket.gethostname()
    for rank in (0, 1):
        blind, one, gone = found[rank]["said"]
        assert blind == (
            f"`output_dir` must be one folder for all machines, but process 1 (on {host}) does not see "
            f"{str(tmp_path / f'blind{rank}')!r} of process 0. Set `save_on_each_node: true`, or take a folder that "
            "all share."
        )
        assert one.startswith("`save_on_each_node` is for folders that machines do not share, but ")
        assert gone.startswith(
            f"The checkpoint {str(tmp_path / f'run{rank}' / 'checkpoint-5')!r} cannot be resumed: no"
        )
        assert [list(seen) for seen in found[rank]["seen"]] == [["4", "5"], ["6", "7"]]
        assert found[rank]["last"] == str(tmp_path / f"run{rank}" / "checkpoint-8")
    weights = [load_file(tmp_path / name / "checkpoint-8" / "model.safetensors") for name in ("run0", "run1", "whole0")]
    assert same_weights(weights[0], weights[2])
    assert same_weights(weights[1], weights[2])
    order = [
        json.loads((tmp_path / name / "checkpoint-8" / "trainer_state.json").read_text()) for name in ("run1", "whole1")
    ]
    assert order[0]["log_history"][-1]["order_fingerprint"] == order[1]["log_history"][-1]["order_fingerprint"]


# Recipes for clusters.

FOLDER = ROOT / "recipes" / "accelerate"
STUBS = {
    "scontrol": 'test "$*" = "show hostnames machine[1-2]" && printf "127.0.0.1\\nmachine2\\n"',
    "srun": """
test "$1" = --kill-on-bad-exit=1 && shift
pids=()
for machine in 0 1; do SLURM_NODEID=$machine "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid"; done
""",
    "accelerate": '{python} -m accelerate.commands.accelerate_cli "$@"',
}


@pytest.fixture
def two_machines(tmp_path: Path, toy_recipe: dict[str, Any], write_recipe: Any, commands: Path) -> Any:
    """A function that runs a program on stubs of the commands of a cluster, and returns the results of the run."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(
            f"#!/usr/bin/env bash\nset -e\n{text.replace('{python}', str(commands / 'python'))}\n"
        )
        (tmp_path / name).chmod(0o755)
    path = str(write_recipe({**toy_recipe, "use_cpu": True, "save_strategy": "steps", "save_steps": 2}))

    def run(command: Sequence[str], step: int, **variables: str) -> Any:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **variables}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHON_EXEC": str(commands / "python")}
        environment |= {"CONFIG": str(FOLDER / "cpu.yaml"), "PROCESSES": "1"}
        words = [*command, path, "--max_steps", str(step), "--per_device_train_batch_size", "2"]
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        return load_run_results(Path(toy_recipe["output_dir"]) / "results.json")

    return run


@pytest.mark.slow
def test_the_script_for_slurm_trains_on_two_machines_and_goes_on(two_machines: Any, toy_recipe: dict[str, Any]) -> None:
    variables = {"SLURM_JOB_NODELIST": "machine[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": str(os.getpid())}
    command = ["bash", str(FOLDER / "slurm.sh")]
    results = two_machines(command, 2, **variables)
    assert results.plan["batch_size"] == 4
    results = two_machines(command, 4, **variables)  # with its checkpoint, as after a preemption
    assert [entry["step"] for entry in results.log_history if "loss" in entry][-1] == 4
    assert results.order["plan"]["start_step"] == 2


JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "completionMode": str,
                        "completions": int,
                        "parallelism": int,
                        "backoffLimit": int,
                        "template": {
                            "spec": {
                                "restartPolicy": str,
                                "containers": [
                                    {
                                        "name": str,
                                        "image": str,
                                        "workingDir": str,
                                        "env": [{"name": str, "value": str}],
                                        "command": [str],
                                        "args": [str],
                                        "ports": [{"containerPort": int}],
                                        "resources": {"limits": {"nvidia.com/gpu": int}},
                                        "volumeMounts": [{"name": str, "mountPath": str}],
                                    }
                                ],
                                "volumes": [
                                    {
                                        "name": str,
                                        "persistentVolumeClaim": {"claimName": str},
                                        "emptyDir": {"medium": str},
                                    }
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}
"""The fields that the file may have, of `jobset.x-k8s.io/v1alpha2` (config/components/crd/bases of
kubernetes-sigs/jobset) and, from `containers` on, of Kubernetes' core/v1."""


def check_fields(value: Any, known: Any, place: str = "") -> None:
    """Hold a document against the fields that it may have, and their kinds."""
    if isinstance(known, dict):
        assert isinstance(value, dict), place
        assert set(value) <= set(known), f"{place}: {set(value) - set(known)}"
        for name, part in value.items():
            check_fields(part, known[name], f"{place}.{name}")
    elif isinstance(known, list):
        assert isinstance(value, list), place
        for part in value:
            check_fields(part, known[0], f"{place}[]")
    else:
        assert type(value) is known, f"{place}: {value!r}"


def job_set() -> Any:
    return yaml.safe_load((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))


def test_the_file_for_kubernetes_is_a_job_set_whose_parts_fit() -> None:
    found = job_set()
    check_fields(found, JOBSET)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (jobs,) = found["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(variables["MACHINES"])
    assert pod["restartPolicy"] == "Never"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["PROCESSES"])
    name = found["metadata"]["name"]  # pods are called set-job-0-index, in a network called as the set
    assert variables["HOST"] == f"{name}-{jobs['name']}-0-0.{name}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert all(len(volume) == 2 for volume in pod["volumes"])  # a name and one source
    assert f"--main_process_port {container['ports'][0]['containerPort']}" in container["args"][0]
    assert (ROOT / variables["CONFIG"]).is_file()


@pytest.mark.slow
def test_what_a_pod_of_kubernetes_runs_trains_on_two_machines(two_machines: Any, tmp_path: Path) -> None:
    (jobs,) = job_set()["spec"]["replicatedJobs"]
    (container,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
    pod, words = tmp_path / "pod.sh", shlex.join([*container["command"], *container["args"][:2]])
    pod.write_text(f'JOB_COMPLETION_INDEX=$SLURM_NODEID exec {words} "$@"')
    results = two_machines(["srun", "bash", str(pod)], 2, MACHINES="2", HOST="127.0.0.1")
    assert results.plan["batch_size"] == 4


# Object stores.


class Ranges(SimpleHTTPRequestHandler):
    """Serves parts of files, as object stores do, and notes what was asked of it."""

    asked: ClassVar[list[tuple[str, int]]] = []

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = 0, len(data) - 1
        if given := self.headers.get("Range"):
            first, last = (int(part) for part in given.removeprefix("bytes=").split("-"))
            self.asked.append((self.path, last + 1 - first))
        self.send_response(206 if given else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        with suppress(ConnectionError):  # of who only wanted to know whether there are parts
            self.wfile.write(data[first : last + 1])

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of a folder, with its address."""
    (tmp_path / "store").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path / "store"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "store"
        server.shutdown()


def test_a_process_asks_an_object_store_for_its_own_files_and_row_groups_only(
    store: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = store
    draw, groups, rows = random.Random(0), 8, 100
    for number in range(4):
        ids = [[1000 * number + row, *draw.choices(range(30_000), k=300)] for row in range(groups * rows)]
        columns = {"input_ids": ids, "unread": [draw.randbytes(5000) for _ in ids]}
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=rows)
    whole = (folder / "0.parquet").stat().st_size
    stream = datasets.load_dataset(
        "parquet",
        data_files=[f"{address}/{number}.parquet" for number in range(4)],
        columns=["input_ids"],
        split="train",
        streaming=True,
        storage_options={"block_size": 1 << 16},  # that is read ahead
        cache_dir=str(tmp_path / "cache"),
    )
    corpora = [Corpus("general", corpus(0, 40).select_columns("input_ids"), "general"), Corpus("domain", stream)]
    plan = MixturePlan([each.spec() for each in corpora], alpha_schedule=constant(1.0), batch_size=8, max_steps=50)
    Ranges.asked.clear()
    for process in (0, 1):
        shard = BatchShard(4, 2, process)
        data = SlotDataset(plan, corpora, shard)
        found = [row["input_ids"][0] for request in SlotSampler(plan, shard) for row in data.__getitems__(request)]
        assert found == [1000 * process + row for row in range(200)]
        assert {path for path, _ in Ranges.asked} == {f"/{number}.parquet" for number in range(process + 1)}
        sizes = [size for path, size in Ranges.asked if path == f"/{process}.parquet"]
        assert 3 <= len(sizes) <= 1 + groups  # the end of the file, two groups of rows, and those that are read ahead
        assert max(sizes) < whole / groups / 2  # one group at a time, without the column that is not wanted
