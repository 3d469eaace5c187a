"""The notebooks in ``examples/`` run from the first cell to the last in a fresh kernel, and show what they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


class Run:
    """What a notebook shows when it runs."""

    def __init__(self, name: str, directory: Path) -> None:
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        options = {"timeout": 250, "startup_timeout": 250, "resources": {"metadata": {"path": str(directory)}}}
        nbclient.NotebookClient(notebook, **options).execute()
        shown: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        streams = [output for output in shown if output.output_type == "stream"]
        self.printed = "".join(output["text"] for output in streams if output.name == "stdout")
        self.complaints = "".join(output["text"] for output in streams if output.name == "stderr")
        self.html = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
        kinds = ("image/png", "image/jpeg")
        self.nb_pictures = sum(any(kind in output.get("data", {}) for kind in kinds) for output in shown)


def test_the_quickstart_runs(tmp_path: Path) -> None:
    run = Run("quickstart.ipynb", tmp_path)
    assert "cam-0  uint8 (480, 640, 3) 921600 bytes" in run.printed
    assert "lidar  float32 (100000, 3) 1200000 bytes" in run.printed
    assert run.complaints == ""
    assert run.nb_pictures == 2  # the photograph, and the live plot
    time_slice, report, receiver, ports = run.html
    assert time_slice.count("<img") == 3
    assert "delivered: 3 elements" in report
    assert "net_ring" in receiver
    assert "<table" in ports


def test_the_experiments_run(tmp_path: Path) -> None:
    run = Run("experiments.ipynb", tmp_path)
    assert run.complaints == ""
    retransmitted = [float(share) / 100 for share in re.findall(r"lost: +([\d.]+)% of those sent", run.printed)]
    for share, drop in zip(retransmitted, [0, 0.001, 0.01, 0.05, 0.1, 0.2], strict=True):
        assert drop * 0.7 - 0.001 <= share <= drop * 1.4 + 0.02  # some 13,000 frames each; a busy machine is late
    lost = [int(count) for count in re.findall(r"#\d/\d': (\d+)", run.printed.partition("\nframes lost:")[2])]
    assert len(lost) == 4
    assert max(lost) > sum(lost) / 2  # of the cut port; frames that are late on a busy machine count, too
    assert run.printed.count("limits met") == 6
    assert run.nb_pictures == 2
