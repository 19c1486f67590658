"""The notebook runs from its first cell to its last, in a kernel of its own."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT

LENGTH = "--epochs 9 --set data.limit=1800"
SHORT = "--epochs 1 --set data.limit=256 --set model.width=0.125"  # the test is of the commands

# Runs `!simclr ...` in the kernel, which has imported torch already, without what takes longer than the training.
IN_THE_KERNEL = """
import shlex, cli, pytest
from typer.testing import CliRunner
from tests.experiments.studies.helpers import leave_out_figures, leave_out_pictures, leave_out_timing

for leave_out in (leave_out_figures, leave_out_pictures, leave_out_timing):
    leave_out(pytest.MonkeyPatch())

def system(line):
    program, *words = shlex.split(get_ipython().var_expand(line, depth=1))
    assert program == "simclr", line
    done = CliRunner().invoke(cli.app, words)
    print(done.output)
    if done.exception:
        raise done.exception

get_ipython().system = system
"""


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests, two threads of one step wait for each other
    notebook = nbformat.read(ROOT / "docs/tutorials/shapes.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(LENGTH, SHORT)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(IN_THE_KERNEL))
    assert sum(SHORT in cell.source for cell in notebook.cells) == 2
    NotebookClient(notebook, timeout=None).execute()  # raises for a cell that fails
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "no-color_jitter-no-grayscale" in printed or "no color_jitter" in printed
