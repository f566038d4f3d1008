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

import processes
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from toys import config, mixture, tiny_model

from hf_interp import InterpolationTrainer, search_alpha
from hf_interp.tasks.parsing import load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]
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
DEEPSPEED = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
    "zero3_init_flag": False,
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
        "deepspeed_config": {"zero_stage": 2, **DEEPSPEED},
    },
    "deepspeed_zero3": {
        **COMMON,
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, **DEEPSPEED, "zero3_save_16bit_model": True},
    },
    "single_gpu": {
        **{key: value for key, value in COMMON.items() if key != "main_process_port"},
        "distributed_type": "NO",
        "gpu_ids": "0",
        "mixed_precision": "bf16",
        "num_processes": 1,
    },
}
WRAPPERS = {
    "cpu": "DistributedDataParallel",
    "ddp": "DistributedDataParallel",
    "fsdp": "FSDPBertForSequenceClassification",
    "deepspeed_zero2": "DeepSpeedEngine",
    "deepspeed_zero3": "DeepSpeedEngine",
}
"""What stands around the model if a configuration of two processes did what it is for."""
DIVIDED = ("fsdp", "deepspeed_zero3")  # of which each process keeps a part of the weights
LAUNCHES = {
    "cpu": {"multi_gpu"},
    "ddp": {"multi_gpu"},
    "fsdp": {"use_fsdp"},
    "deepspeed_zero2": {"use_deepspeed"},
    "deepspeed_zero3": {"use_deepspeed"},
    "single_gpu": set(),
}
"""Which way `accelerate launch` goes."""

SCRIPT = """
import json, os, sys
from contextlib import nullcontext
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
    if hasattr(tensor, "ds_id"):  # of ZeRO-3
        import deepspeed
        with deepspeed.zero.GatheredParameters(tensor):
            return tensor.detach().clone()
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

args = config(
    folder,
    per_device_train_batch_size=batch_size,
    gradient_accumulation_steps=accumulation,
    optim="adamw_torch",
    save_strategy="steps",
    save_steps=4,
    average_from=None if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else 0.25,
)
trainer = CpuTrainer(tiny_model(0.0), args, train_dataset=mixture())
trainer.train(resume_from_checkpoint=resume[0])
words = trainer.model.get_input_embeddings().weight
here = words.to_local() if hasattr(words, "to_local") else getattr(words, "ds_tensor", words)
average = trainer.weight_average
def total():
    return float(sum(whole(tensor).double().abs().sum() for tensor in trainer.model.parameters()))
mean = average and total()
with average.last_weights() if average else nullcontext():
    weights = total()
found = {
    "mean": mean,
    "seen": trainer.seen,
    "losses": losses(trainer),
    "domain_losses": [entry.get("loss_domain") for entry in trainer.state.log_history if "loss" in entry],
    "weights": weights,
    "wrapper": type(trainer.model_wrapped).__name__,
    "numbers_here": here.numel(),
    "world_size": args.world_size,
}
with open(os.path.join(folder, f"rank{args.process_index}.json"), "w") as file:
    json.dump(found, file)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def start(command: list[Any]) -> None:
    """Run a command of two processes on the CPU to its end; `accelerate` starts fresh ones."""
    environment = {
        **os.environ,
        "PYTHONPATH": processes.python_path(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def launcher(name: str, python: Path) -> list[Any]:
    """`accelerate launch` with one of the configurations."""
    command = [python, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*command, "--config_file", str(FOLDER / f"{name}.yaml")]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_configuration_says_exactly_this(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    loaded = load_config_from_file(str(path)).to_dict()
    assert {key: loaded[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == set(EXPECTED[name])


def launch_arguments(*words: str) -> tuple[Any, Any]:
    """What `accelerate launch` makes of its arguments: all of them, and those of the file."""
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "script.py"]))
    return args, defaults


@pytest.mark.parametrize("name", EXPECTED)
def test_launch_takes_a_configuration_for_what_it_is(name: str) -> None:
    args, _ = launch_arguments("--config_file", str(FOLDER / f"{name}.yaml"))
    ways = ("cpu", "tpu", "multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm")
    assert {way for way in ways if getattr(args, way)} == LAUNCHES[name]
    assert (args.num_processes, args.num_machines) == (EXPECTED[name]["num_processes"], 1)
    assert args.mixed_precision == EXPECTED[name]["mixed_precision"]
    for section in ("fsdp_config", "deepspeed_config"):
        for key, value in EXPECTED[name].get(section, {}).items():
            assert getattr(args, key) == value


@pytest.mark.parametrize("name", EXPECTED)
def test_launch_knows_every_key_of_a_section(name: str) -> None:
    # The parser refuses unknown keys of the file; those within a section it passes over.
    known = {action.dest for action in launch_command_parser()._actions}
    assert {key for section in ("fsdp_config", "deepspeed_config") for key in EXPECTED[name].get(section, {})} <= known


@pytest.mark.filterwarnings("ignore:Multiple deprecation warnings due to FSDP2")
def test_fsdp_reads_the_fields_of_its_second_version(monkeypatch: pytest.MonkeyPatch) -> None:
    args, _ = launch_arguments("--config_file", str(FOLDER / "fsdp.yaml"))
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


@pytest.mark.parametrize(("name", "stage"), [("deepspeed_zero2", "2"), ("deepspeed_zero3", "3")])
def test_deepspeed_is_told_its_stage(name: str, stage: str) -> None:
    args, defaults = launch_arguments("--config_file", str(FOLDER / f"{name}.yaml"))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as the launcher goes on
    environment = prepare_deepspeed_cmd_env(args)[1]
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL") == ("true" if stage == "3" else None)


def test_one_gpu_is_the_first_and_runs_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    args, _ = launch_arguments("--config_file", str(FOLDER / "single_gpu.yaml"))
    command, environment = prepare_simple_launcher_cmd_env(args)
    assert command == [sys.executable, "script.py"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_no_configuration_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*EXPECTED, "kubernetes"}  # see test_machines.py
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
    # on the CPU, because settings such as `bf16` are compared with what the machine can do
    parse_recipe(load_recipe(recipe, [*flags, "--use_cpu", "true"]))


@pytest.fixture(scope="module")
def recipe_runs(
    tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]], commands: Path
) -> dict[str, dict[str, Any]]:
    """The `results.json` of a recipe without dropout: from one process, and as each of these files has it."""
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
    for name in ("one", "cpu", "ddp", "single_gpu"):
        part = str(recipe["per_device_train_batch_size"] // (NUM_PROCESSES if name in ("cpu", "ddp") else 1))
        command = [commands / "python"] if name == "one" else launcher(name, commands / "python")
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
            assert two[metrics][side]["loss"] == pytest.approx(one[metrics][side]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_recipe_launched_for_one_gpu_trains_in_bfloat16(recipe_runs: dict[str, dict[str, Any]]) -> None:
    one, half = recipe_runs["one"], recipe_runs["single_gpu"]
    assert half["plan"] == one["plan"]
    assert training_log(half, "alpha", "share_domain") == training_log(one, "alpha", "share_domain")
    assert training_log(half, "loss") == pytest.approx(training_log(one, "loss"), rel=2e-2)
    assert training_log(half, "loss") != pytest.approx(training_log(one, "loss"), rel=1e-5)  # 8 bits of each number


def test_weights_in_pieces_are_not_searched(tmp_path: Path) -> None:
    sets = mixture()
    trainer = InterpolationTrainer(tiny_model(), config(tmp_path), train_dataset=sets, eval_dataset=sets)
    trainer.is_fsdp_enabled = True  # as accelerate has it where there are GPUs
    with pytest.raises(ValueError, match="A search over α needs the whole model in every process, which FSDP"):
        search_alpha(trainer, tiny_model(), alphas=2)
    trainer.is_fsdp_enabled = False
    assert len(search_alpha(trainer, tiny_model(), alphas=2).alphas) >= 2


def run_script(command: list[Any], folder: Path, *words: str) -> list[dict[str, Any]]:
    """What the ranks of a run of `SCRIPT` noted."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    start([*command, str(script), str(folder), *words])
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, commands: Path) -> dict[str, Any]:
    """What one process reads and finds in eight steps of eight examples."""
    (found,) = run_script([commands / "python"], tmp_path_factory.mktemp("one_process") / "run", "8", "1")
    assert found["world_size"] == 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_configuration_trains_saves_and_resumes_as_one_process(
    name: str, one_process: dict[str, Any], tmp_path: Path, commands: Path
) -> None:
    if name.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    split = ("2", "2")  # per device and accumulation
    launch = launcher(name, commands / "python")
    ranks = run_script(launch, tmp_path / "whole", *split)
    assert [rank["world_size"] for rank in ranks] == [NUM_PROCESSES] * NUM_PROCESSES
    assert {rank["wrapper"] for rank in ranks} == {WRAPPERS[name]}
    numbers = 2000 * 16 // (NUM_PROCESSES if name in DIVIDED else 1)  # of the embeddings; ZeRO-2 leaves weights whole
    assert [rank["numbers_here"] for rank in ranks] == [numbers] * NUM_PROCESSES

    def check(ranks: list[dict[str, Any]], steps: range) -> None:
        assert all(list(rank["seen"]) == [str(step) for step in steps] for rank in ranks)
        for step in map(str, steps):
            union = [number for rank in ranks for number in rank["seen"][step]]
            assert sorted(union) == sorted(one_process["seen"][step])
        assert len(ranks[0]["losses"]) == len(one_process["losses"]) == 8
        assert ranks[0]["losses"] == pytest.approx(one_process["losses"], rel=1e-5)
        assert ranks[0]["domain_losses"][1:] == pytest.approx(one_process["domain_losses"][1:], rel=1e-5)
        assert all(rank["weights"] == pytest.approx(one_process["weights"], rel=1e-6) for rank in ranks)
        if name != "deepspeed_zero3":  # whose weights no mean can reach
            assert all(rank["mean"] == pytest.approx(one_process["mean"], rel=1e-6) for rank in ranks)
            assert one_process["mean"] != pytest.approx(one_process["weights"], rel=1e-5)

    check(ranks, range(8))
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "model.safetensors").is_file()  # whole weights, which `from_pretrained` reads
    resumed = run_script(launch, tmp_path / "resumed", *split, str(checkpoint))
    check(resumed, range(4, 8))
    assert [rank["losses"] for rank in resumed] == [rank["losses"] for rank in ranks]
    for key in ("weights", "mean"):
        assert [rank[key] for rank in resumed] == [rank[key] for rank in ranks]
