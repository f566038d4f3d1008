"""Modules lie in layers: each imports only from those below it, and the lowest need neither torch nor transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_interp

FOLDER = Path(hf_interp.__file__).parent
LAYERS = (
    "schedules",
    "space",
    "permutations",
    "shares",
    "plan",
    "ledger",
    "controllers",
    "files",
    "local_paths",
    "results",
    "checkpoints",
    "verify",
    "console",
    "alphas",
    "curves",
    "mixing_law",
    "advice",
    "plots",
    "cards",
    "hub",
    "report_data",
    "report_page",
    "report_charts",
    "report_views",
    "report",
    "choices",
    "objectives",
    "divergence",
    "matching",
    "tensors",
    "adapter_kinds",
    "adapter_weights",
    "weights",
    "tensor_files",
    "blocks",
    "checkpoint_folders",
    "checkpoint_names",
    "adapter_checkpoints",
    "merging",
    "tally",
    "metrics",
    "config",
    "dialogues",
    "columns",
    "loading",
    "encoding",
    "collators",
    "adalora",
    "partial",
    "adapters",
    "tasks",
    "tokens",
    "corpora",
    "readers",
    "dataset",
    "hosts",
    "loaders",
    "callbacks",
    "reference",
    "robust_loss",
    "heads",
    "multitask",
    "proximal",
    "anchors",
    "planning",
    "resuming",
    "trackers",
    "pushing",
    "trainer",
    "scoring",
    "groups",
    "selection",
    "soups",
    "interpolated",
    "predictions",
    "slider",
    "slider_views",
    "train",
    "domain_distance",
    "learning_rates",
    "preview",
    "revisit",
    "slider_sources",
    "hub_space",
    "app",
    "compare",
    "tune",
    "mixture_search",
    "demo",
    "cli",
)
"""From the lowest to the highest."""


def imported_modules(source: str) -> set[str]:
    """Modules of the package that are imported anywhere in a text, inside functions too; "" is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from hf_interp import train` imports a module, `from hf_interp.train import main` names the module
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "hf_interp" else [module]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top in ("hf_interp", ""):
                module = rest.split(".")[0]
                found.add(module if module in LAYERS else "")
    return found


def test_every_module_has_its_layer() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(["__init__", *LAYERS])
    assert not [path for path in FOLDER.iterdir() if (path / "__init__.py").exists()]


@pytest.mark.parametrize("module", LAYERS)
def test_a_module_imports_from_lower_layers_only(module: str) -> None:
    found = imported_modules((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    assert found <= set(LAYERS[: LAYERS.index(module)])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy\nfrom torch import nn", set()),
        ("from hf_interp.plan import SIDES", {"plan"}),
        ("from hf_interp import train, preview", {"train", "preview"}),
        ("import hf_interp.demo as show", {"demo"}),
        ("def run():\n    from hf_interp.cli import main", {"cli"}),
        ("import hf_interp", {""}),
        ("from hf_interp import Corpus", {""}),
        ("from .plan import SIDES", {"plan"}),
        ("from . import plan", {""}),
    ],
)
def test_all_forms_of_imports_are_seen(source: str, expected: set[str]) -> None:
    assert imported_modules(source) == expected


def test_plans_and_results_need_neither_torch_nor_transformers() -> None:
    check = (
        "import hf_interp.plan, hf_interp.results, hf_interp.schedules, hf_interp.console, hf_interp.choices, sys; "
        "print(*[name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr, found.returncode) == ("\n", "", 0)
