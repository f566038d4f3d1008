"""The package is a house of floors: a folder imports only from floors below it, and some rooms need no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_interp

FOLDER = Path(hf_interp.__file__).parent
LAYERS = (
    "utils",
    "mixture",
    "reporting",
    "weights",
    "losses",
    "training",
    "selection",
    "tasks",
    "app",
    "commands",
    "train",
    "cli",
)
"""From the lowest to the highest."""
MODULES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
    if path.name != "__init__.py"
}


def imports(source: str) -> Iterator[tuple[str, str]]:
    """The (module, name) of each import from the package in a text, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            found = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in found:
            if module.split(".")[0] == "hf_interp":
                inside = module.removeprefix("hf_interp").lstrip(".")
                is_module = f"{inside}.{name}".lstrip(".") in MODULES
                yield (f"{inside}.{name}".lstrip("."), "") if is_module else (inside, name)


def test_every_folder_has_its_layer() -> None:
    found = [path.stem for path in FOLDER.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert sorted(found) == sorted(["__init__", *LAYERS])
    assert len([path for path in FOLDER.iterdir() if path.name != "__pycache__"]) <= 14


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_layers_and_no_private_names(module: str) -> None:
    layer = module.split(".")[0]
    for other, name in imports(MODULES[module].read_text(encoding="utf-8")):
        floor = other.split(".")[0]
        if floor:  # the package's own names, such as its version, are everybody's
            assert floor == layer or LAYERS.index(floor) < LAYERS.index(layer), f"{module} imports {other}"
        assert not name.startswith("_") or name == "__version__", f"{module} imports {name} from {other}"


def test_no_modules_import_each_other() -> None:
    graph = {
        module: {other for other, _ in imports(path.read_text(encoding="utf-8")) if other in MODULES}
        for module, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises a CycleError that names them


def test_weights_know_nothing_of_mixtures_and_neither_knows_the_trainer() -> None:
    for module, path in MODULES.items():
        source = path.read_text(encoding="utf-8")
        if module.startswith("weights."):
            assert not [other for other, _ in imports(source) if other.startswith("mixture")]
        if module.startswith(("weights.", "mixture.")):
            names = [
                alias.name
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.ImportFrom) and node.module == "transformers"
                for alias in node.names
            ]
            assert "Trainer" not in names


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy\nfrom torch import nn", []),
        ("from hf_interp.mixture.plan import MixturePlan", [("mixture.plan", "MixturePlan")]),
        ("from hf_interp.commands import plan", [("commands.plan", "")]),
        ("from hf_interp import train", [("train", "")]),
        ("import hf_interp.commands.demo as show", [("commands.demo", "")]),
        ("def run():\n    from hf_interp.cli import main", [("cli", "main")]),
        ("import hf_interp", [("", "")]),
        ("from hf_interp import Corpus", [("", "Corpus")]),
    ],
)
def test_all_forms_of_imports_are_seen(source: str, expected: list[tuple[str, str]]) -> None:
    assert list(imports(source)) == expected


@pytest.mark.parametrize("folder", [folder for folder in LAYERS if (FOLDER / folder).is_dir()])
def test_a_folder_imports_nothing_by_itself(folder: str) -> None:
    text = (FOLDER / folder / "__init__.py").read_text(encoding="utf-8")
    assert not list(imports(text)), "a folder that imports its modules makes all of them as heavy as one"


def loaded_by(script: str) -> set[str]:
    """Return what a script in a process of its own prints, word by word; it may warn of nothing."""
    found = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (found.stderr, found.returncode) == ("", 0)
    return set(found.stdout.split())


def test_plans_and_results_wait_for_no_large_library() -> None:
    light = ["mixture.plan", "mixture.schedules", "selection.choice", "utils.console"]
    light += [module for module in MODULES if module.startswith("reporting.")]
    loaded = loaded_by(f"import sys, {', '.join(f'hf_interp.{module}' for module in light)}; print(*sys.modules)")
    assert not {"torch", "transformers", "datasets", "matplotlib"} & loaded


@pytest.mark.slow
def test_our_trainer_waits_for_no_library_that_its_host_does_without() -> None:
    loaded = loaded_by(
        "import sys, datasets; from transformers import Trainer; given = {*sys.modules}; "
        "import hf_interp.training.trainer; print(*{name.partition('.')[0] for name in {*sys.modules} - given})"
    )
    assert {"hf_interp"} <= loaded <= {"hf_interp", "transformers", "datasets"}
