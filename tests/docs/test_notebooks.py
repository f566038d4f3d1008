"""The notebooks: run from top to bottom, offline, in a kernel of this Python."""

import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbformat")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install ipykernel")

FOLDER = Path(__file__).parents[2] / "recipes" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def printed(notebook: Any) -> str:
    """Everything that the cells printed or returned, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in outputs
        if output.get("name") != "stderr"
    )


def pictures(notebook: Any) -> int:
    """How many pictures the cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_the_quick_start_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    # a kernel of this Python, whatever kernels the machine knows
    client.create_kernel_manager()
    client.km.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute()
    text = printed(notebook)
    assert "domain only + M_α" in text
    assert "step  60: α = 1.00" in text
    assert "'label': 'positive'" in text
    assert pictures(notebook) == 2
    assert (tmp_path / "quickstart" / "interpolated" / "model.safetensors").is_file()
