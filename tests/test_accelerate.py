"""The configurations for `accelerate launch` mean what they say, and train as one process does."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from hf_interp.config import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "recipes" / "accelerate"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
NUM_PROCESSES = 2
COMMON = {
    "compute_environment": "LOCAL_MACHINE",
    "use_cpu": False,
    "mixed_precision": "no",
    "num_machines": 1,
    "machine_rank": 0,
    "num_processes": NUM_PROCESSES,
    "main_process_port": 0,
    "main_training_function": "main",
}
EXPECTED: dict[str, dict[str, Any]] = {
    "cpu": {**COMMON, "distributed_type": "MULTI_GPU", "use_cpu": True},
    "ddp": {**COMMON, "distributed_type": "MULTI_GPU", "gpu_ids": "all"},
    "fsdp": {
        **COMMON,
        "distributed_type": "FSDP",
        "gpu_ids": "all",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": True,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": "BertLayer",
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_activation_checkpointing": False,
            "fsdp_offload_params": False,
        },
    },
    "deepspeed_zero2": {
        **COMMON,
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "zero_stage": 2,
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
            "zero3_init_flag": False,
        },
    },
}
WRAPPERS = {
    "cpu": "DistributedDataParallel",
    "ddp": "DistributedDataParallel",
    "fsdp": "FSDPBertForSequenceClassification",
    "deepspeed_zero2": "DeepSpeedEngine",
}
"""What stands around the model if a configuration did what it is for."""

SCRIPT = """
import json, os, sys
import torch
from accelerate import DistributedType
from toys import NotingTrainer, config, losses, mixture, tiny_model

folder, batch_size, accumulation, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or [None]

class CpuTrainer(NotingTrainer):
    def create_accelerator_and_postprocess(self):
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            # accelerate shards over accelerators alone, and would take DDP on the CPU without a word.
            self.args.distributed_state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

def whole(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

args = config(
    folder,
    per_device_train_batch_size=batch_size,
    gradient_accumulation_steps=accumulation,
    optim="adamw_torch",
    save_strategy="steps",
    save_steps=4,
)
trainer = CpuTrainer(tiny_model(0.0), args, train_dataset=mixture())
trainer.train(resume_from_checkpoint=resume[0])
words = trainer.model.get_input_embeddings().weight
found = {
    "seen": trainer.seen,
    "losses": losses(trainer),
    "domain_losses": [entry.get("loss_domain") for entry in trainer.state.log_history if "loss" in entry],
    "weights": float(sum(whole(tensor).double().abs().sum() for tensor in trainer.model.parameters())),
    "wrapper": type(trainer.model_wrapped).__name__,
    "rows_here": len(words.to_local() if hasattr(words, "to_local") else words),
    "world_size": args.world_size,
}
with open(os.path.join(folder, f"rank{args.process_index}.json"), "w") as file:
    json.dump(found, file)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def start(command: list[str]) -> None:
    """Run a command of two processes on the CPU to its end."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def launcher(name: str) -> list[str]:
    """`accelerate launch` with one of the configurations."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*command, "--config_file", str(FOLDER / f"{name}.yaml"), "--num_processes", str(NUM_PROCESSES)]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_configuration_says_exactly_this(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    loaded = load_config_from_file(str(path)).to_dict()
    assert {key: loaded[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == set(EXPECTED[name])


def test_no_configuration_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)
    assert {name for name in EXPECTED if f"--config_file recipes/accelerate/{name}.yaml " in README} == set(EXPECTED)


@pytest.mark.parametrize("line", [line for line in README.splitlines() if line.startswith("accelerate launch")])
def test_the_commands_of_the_readme_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = launch_command_parser().parse_args(shlex.split(line)[2:])
    assert Path(args.config_file).parent == Path("recipes/accelerate")
    assert Path(args.config_file).is_file()
    assert args.module
    assert args.training_script == "hf_interp.train"
    recipe, *flags = args.training_script_args
    parse_recipe(load_recipe(recipe, flags))


@pytest.fixture(scope="module")
def recipe_runs(
    tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The `results.json` of a recipe without dropout: from one process, and from two by `cpu.yaml` and `ddp.yaml`."""
    folder = tmp_path_factory.mktemp("recipe_runs")
    recipe = make_recipe(folder)
    model = folder / "model"
    model.mkdir()
    for path in Path(recipe["model_name_or_path"]).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    # Dropout draws from each process's own generator, so that no two splits would agree.
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (model / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "model_name_or_path": str(model)}), encoding="utf-8")

    found = {}
    for name in ("one", "cpu", "ddp"):
        part = str(recipe["per_device_train_batch_size"] // (1 if name == "one" else NUM_PROCESSES))
        command = [sys.executable] if name == "one" else launcher(name)
        flags = ["--output_dir", str(folder / name), "--per_device_train_batch_size", part]
        start([*command, "-m", "hf_interp.train", str(path), *flags])
        found[name] = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
    return found


def training_log(results: dict[str, Any], *keys: str) -> list[float]:
    """What the training logs of a run say under `keys`; a corpus that was not drawn has no loss."""
    logs = [entry for entry in results["log_history"] if "loss" in entry]
    return [entry[key] for entry in logs for key in keys if key in entry]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "ddp"])
def test_a_launched_recipe_reads_and_trains_as_one_process(recipe_runs: dict[str, dict[str, Any]], name: str) -> None:
    one, two = recipe_runs["one"], recipe_runs[name]
    assert two["config"]["per_device_train_batch_size"] * NUM_PROCESSES == two["plan"]["batch_size"]  # both are at work
    assert two["plan"] == one["plan"]
    read = ("step", "alpha", "share_general", "share_domain", "passes_general", "passes_domain")
    assert training_log(two, *read) == training_log(one, *read)
    assert len(training_log(one, "loss")) == one["plan"]["max_steps"]
    trained = ("loss", "loss_domain", "loss_general", "grad_norm")
    assert training_log(two, *trained) == pytest.approx(training_log(one, *trained), rel=1e-5)
    for side in ("general", "domain"):
        for metrics in ("base_metrics", "final_metrics"):
            assert two[metrics][side]["accuracy"] == one[metrics][side]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "ddp"])
def test_the_evaluation_loss_is_that_of_one_process(recipe_runs: dict[str, dict[str, Any]], name: str) -> None:
    one, two = recipe_runs["one"], recipe_runs[name]
    for side in ("general", "domain"):
        for metrics in ("base_metrics", "final_metrics"):
            assert two[metrics][side]["loss"] == pytest.approx(one[metrics][side]["loss"], rel=1e-5)


def run_script(command: list[str], folder: Path, *words: str) -> list[dict[str, Any]]:
    """What the ranks of a run of `SCRIPT` noted."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    start([*command, str(script), str(folder), *words])
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process reads and finds in eight steps of eight examples."""
    (found,) = run_script([sys.executable], tmp_path_factory.mktemp("one_process") / "run", "8", "1")
    assert found["world_size"] == 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_configuration_trains_saves_and_resumes_as_one_process(
    name: str, one_process: dict[str, Any], tmp_path: Path
) -> None:
    if name == "deepspeed_zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    split = ("2", "2")  # per device and accumulation
    ranks = run_script(launcher(name), tmp_path / "whole", *split)
    assert [rank["world_size"] for rank in ranks] == [NUM_PROCESSES] * NUM_PROCESSES
    assert {rank["wrapper"] for rank in ranks} == {WRAPPERS[name]}
    rows = 2000 // (NUM_PROCESSES if name == "fsdp" else 1)  # of the embeddings; ZeRO-2 leaves the weights whole
    assert [rank["rows_here"] for rank in ranks] == [rows] * NUM_PROCESSES

    def check(ranks: list[dict[str, Any]], steps: range) -> None:
        assert all(list(rank["seen"]) == [str(step) for step in steps] for rank in ranks)
        for step in map(str, steps):
            union = [number for rank in ranks for number in rank["seen"][step]]
            assert sorted(union) == sorted(one_process["seen"][step])
        assert len(ranks[0]["losses"]) == len(one_process["losses"]) == 8
        assert ranks[0]["losses"] == pytest.approx(one_process["losses"], rel=1e-5)
        assert ranks[0]["domain_losses"][1:] == pytest.approx(one_process["domain_losses"][1:], rel=1e-5)
        assert all(rank["weights"] == pytest.approx(one_process["weights"], rel=1e-6) for rank in ranks)

    check(ranks, range(8))
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "model.safetensors").is_file()  # whole weights, which `from_pretrained` reads
    resumed = run_script(launcher(name), tmp_path / "resumed", *split, str(checkpoint))
    check(resumed, range(4, 8))
    assert [rank["losses"] for rank in resumed] == [rank["losses"] for rank in ranks]
    assert [rank["weights"] for rank in resumed] == [rank["weights"] for rank in ranks]
