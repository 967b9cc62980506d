"""The notebook runs from top to bottom, as a reader would run it, and shows what its text says."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_runs_and_its_gradient_is_that_of_the_finite_difference():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell for cell in notebook.cells if '"100000"' in cell.source)
    training.source = training.source.replace('"100000"', '"20480"')  # to see it work takes a fifth of the steps
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    text = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    gradient, slope = map(float, re.search(r"backpropagation (\S+), finite difference (\S+)", text).groups())
    assert abs(gradient - slope) < 0.01 * abs(slope) and abs(slope) > 1e-3
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2 and re.search(r"done: 20,480 steps", text)
    assert any("image/webp" in data or "text/html" in data for data in shown[2:])


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert 10 <= len(cells) <= 14
    assert not any(cell.outputs or cell.execution_count for cell in cells if cell.cell_type == "code")
