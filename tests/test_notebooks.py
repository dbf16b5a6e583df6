"""Every notebook runs from top to bottom in a fresh kernel; its own assertions say what must hold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest

with warnings.catch_warnings():  # jupyter's own, while it is imported
    warnings.simplefilter("ignore")
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(notebook: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NotebookClient(notebook, timeout=600, kernel_name="python3").execute()


def test_there_are_notebooks() -> None:
    assert [n.name for n in NOTEBOOKS][:1] == ["01_a_rule_from_scratch.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert sum("assert" in c.source for c in notebook.cells if c.cell_type == "code") >= 3
    run(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_outputs_are_kept_and_hold_no_error(path: Path) -> None:
    outputs = [o for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
    assert outputs and not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)


def test_a_notebook_that_fails_is_caught() -> None:
    wrong = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert False")], metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    with pytest.raises(CellExecutionError):
        run(wrong)
