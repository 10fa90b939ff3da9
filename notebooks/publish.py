"""Runs the notebooks on their real models and keeps what they say, as it is published.

python notebooks/publish.py          # some minutes

What is said to stderr is dropped, and so are the outputs of cells marked `big-output`: CircuitsVis
writes a megabyte of script into each.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tars_lens.common.files import write_text

_FOLDER = Path(__file__).parent


def published(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook, run in a folder of its own; an error in a cell stops it."""
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        big = "big-output" in cell.metadata.get("tags", ())
        outputs = [] if big else cell.outputs
        cell.outputs = [output for output in outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    for file in sorted(_FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = published(nbformat.read(file, as_version=4), folder)
        write_text(file, nbformat.writes(notebook) + "\n")
        print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()
