"""The documents: every block runs as a reader types it, every link leads somewhere, every name is there."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import recipe_reference as reference
import yaml
from document_files import LAYS
from documents import PYTHONS, SHELLS, SHOWN, Reader, read_blocks
from hub_server import HubServer

from hf_interp.tasks.parsing import parse_recipe
from hf_interp.tasks.presets import PRESETS
from hf_interp.tasks.recipe import Recipe
from hf_interp.tasks.task import TASKS
from hf_interp.training.config import InterpolationConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/*/README.md"))]
PAGES = sorted({*DOCUMENTS, *ROOT.glob("model_cards/**/*.md"), *ROOT.glob("tests/**/*.md")})
FIELDS = Recipe.__dataclass_fields__.keys() | InterpolationConfig.__dataclass_fields__.keys()
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMANDS = re.compile(r"^\$? ?(hf-interp|python|pip|accelerate|git) ", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_block_is_run_or_declared(path: Path) -> None:
    for block in read_blocks(path.read_text("utf-8")):
        assert block.language in (*SHELLS, *PYTHONS, *SHOWN), f"line {block.line}: what is {block.language!r}?"
        if block.language in SHOWN:
            assert not COMMANDS.search(block.text), f"line {block.line}: a command must stand in a block of bash"
            assert not block.declared or "write" in block.declared
        assert block.typed()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_block_of_yaml_names_fields_that_there_are(path: Path) -> None:
    for block in read_blocks(path.read_text("utf-8")):
        if block.language == "yaml":
            assert yaml.safe_load(block.text).keys() <= FIELDS, f"line {block.line}"


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow, id=name_of(path)) for path in DOCUMENTS],
)
def test_the_blocks_run_as_they_are_typed(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, local_hub: HubServer, commands: Path
) -> None:
    environment = local_hub.environment(tmp_path_factory.mktemp("home"))
    with Reader(tmp_path, LAYS, environment, commands) as reader:
        for block in read_blocks(path.read_text("utf-8")):
            reader.type(block)


def test_the_chinese_readme_has_the_blocks_of_the_english_one() -> None:
    def typed(path: Path) -> list[tuple[str, str]]:
        blocks = read_blocks(path.read_text("utf-8"))
        return [(block.language, re.sub(r" *#.*", "", block.text)) for block in blocks]

    assert typed(ROOT / "docs" / "README.zh.md") == typed(ROOT / "README.md")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target in LINK.findall(path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{target}: there is no such file"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{target}: there is no such heading"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_name_of_the_package_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    for name in sorted(set(re.findall(r"\bhf_interp(?:\.[A-Za-z_]\w*)+", text))):
        assert is_there(name), f"there is no {name}"
    for file in sorted(set(re.findall(r"\b(?:hf_interp|tests|recipes)/[\w./-]+\.(?:py|md|yaml|png)\b", text))):
        assert (ROOT / file).is_file(), f"there is no {file}"


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, *rest = name.split(".")
    found = importlib.import_module(module)
    for part in rest:
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


# The reference of a recipe's fields is complete, and what the dataclasses say.


CLASSES = [cls for cls, _ in reference.SECTIONS.values()]


def test_the_page_is_what_the_dataclasses_say() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run `python tests/docs/recipe_reference.py`"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_explained_and_nothing_else_is(cls: type) -> None:
    assert list(reference.arguments(cls)) == [entry.name for entry in reference.own_fields(cls)]


def test_the_training_arguments_are_fields() -> None:
    assert reference.TRAINING.keys() <= {entry.name for entry in dataclasses.fields(InterpolationConfig)}


def test_defaults_in_docstrings_are_those_of_the_fields() -> None:
    cls = InterpolationConfig
    for entry in reference.own_fields(cls):
        bracket = reference.arguments(cls)[entry.name][0]
        if entry.default is None:
            assert getattr(cls(), entry.name) in (None, "constant", 0.0, 0.5)
        else:
            told = bracket.partition("defaults to ")[2].strip("`")
            assert json.loads({"True": "true", "False": "false"}.get(told, told)) == entry.default


def test_tasks_and_presets_are_all_named() -> None:
    meanings = reference.arguments(Recipe)
    for name in TASKS:
        assert name in meanings["task"][1]
    for name in PRESETS:
        assert name in meanings["peft"][1]


def test_the_example_is_a_recipe() -> None:
    recipe, args = parse_recipe(yaml.safe_load(reference.EXAMPLE))
    assert recipe.corpora["domain"].max_examples == 300
    assert (args.alpha_schedule_type, args.alpha_end, args.learning_rate) == ("constant", 0.5, 2e-5)


# The notebook runs from top to bottom, offline, in a kernel of this Python.

NOTEBOOK = ROOT / "recipes" / "notebooks" / "quickstart.ipynb"


def test_the_notebook_is_valid_and_kept_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install ipykernel")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    # a kernel of this Python, whatever kernels the machine knows
    client.create_kernel_manager()
    client.km.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = [each for each in outputs if each.get("name") != "stderr"]
    text = "\n".join(each.get("text") or each.get("data", {}).get("text/plain", "") for each in said)
    assert "domain only + M_α" in text
    assert "step  60: α = 1.00" in text
    assert "'label': 'positive'" in text
    assert sum("image/png" in each.get("data", {}) for each in outputs) == 2
    assert (tmp_path / "quickstart" / "interpolated" / "model.safetensors").is_file()
