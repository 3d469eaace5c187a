"""``examples/quickstart.ipynb`` runs from its first cell to its last in a fresh kernel, and shows what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    options = {"timeout": 250, "startup_timeout": 250, "resources": {"metadata": {"path": str(tmp_path)}}}
    nbclient.NotebookClient(notebook, **options).execute()

    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in shown if output.output_type == "stream" and output.name == "stdout")
    results = [output["data"] for output in shown if output.output_type == "execute_result"]
    assert "cam-0  uint8 (480, 640, 3) 921600 bytes" in printed
    assert "lidar  float32 (100000, 3) 1200000 bytes" in printed
    assert any("image/png" in result or "image/jpeg" in result for result in results)
    assert any("<table" in result.get("text/html", "") for result in results)
