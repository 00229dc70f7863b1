"""In a real notebook kernel every figure is shown once: at the end of a cell, in its middle, in a loop."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

# what is in the cell → how often a figure must be shown by it
CELLS = {
    "plot_history(H)": 1,
    "plot_history(H);": 1,
    "plot_history(H)\nplot_history(H)": 2,
    "figure = plot_history(H)": 1,
    "figure": 1,
    "for _ in range(3):\n    plot_history(H)": 3,
    "from IPython.display import display\ndisplay(plot_history(H))": 1,
    "import matplotlib.pyplot as plt\nplot_history(H)\nplt.show()": 1,
    "with embedded():\n    embeds = plot_history(H)": 0,
    "1 + 1": 0,
}
IMPORT = "from convscope.plotting import embedded, plot_history\nH = {'loss': [0.3, 0.2]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [IMPORT, f"%matplotlib inline\nimport matplotlib.pyplot as plt\n{IMPORT}"],
    ids=["without pyplot", "with pyplot"],
)
def test_every_figure_is_shown_once(first):
    notebook = new_notebook(cells=[new_code_cell(source) for source in (first, *CELLS)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = {cell.source: _pictures(cell) for cell in notebook.cells[1:]}
    assert shown == CELLS
    nbformat.validate(notebook)


def _pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)
