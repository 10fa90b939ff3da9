"""The notebooks run: on a tiny model in seconds, and the tour on SmolLM2 as it is published."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_concept import world

_NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
_NAMES = sorted(path.name for path in _NOTEBOOKS.glob("*.ipynb"))
_MOST_BYTES = 300_000


def _tiny():
    """What stands in place of each notebook's parameters."""
    place = world()
    return {
        "MODEL": str(place.model),
        "CONCEPT": str(place.card),
        "CARD": place.card.read_text(),
        "CORPUS": str(place.corpus),
        "KL_TOKENS": 512,
        "WINDOWS": 2,
    }


def _read(name):
    return nbformat.read(_NOTEBOOKS / name, as_version=4)


def _parameters(notebook):
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


def _run(notebook, folder):
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()


def test_there_are_four():
    assert len(_NAMES) == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own libraries
@pytest.mark.parametrize("name", _NAMES)
def test_a_notebook_runs_on_a_tiny_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TARS_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = _read(name)
    cell = _parameters(notebook)
    given = {key: value for key, value in _tiny().items() if f"{key} = " in cell.source}
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in given.items())
    _run(notebook, tmp_path)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own libraries
def test_the_tour_runs_as_it_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _run(_read("01_tour.ipynb"), tmp_path)


@pytest.mark.parametrize("name", _NAMES)
def test_a_notebook_is_small_and_tells_of_no_machine(name):
    text = (_NOTEBOOKS / name).read_text(encoding="utf-8")
    assert len(text) < _MOST_BYTES
    cells = json.loads(text)["cells"]
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 6
    for cell in cells:
        outputs = cell.get("outputs", [])
        assert not any(output["output_type"] == "error" for output in outputs)
        if "big-output" in cell["metadata"].get("tags", ()):
            assert not outputs, "CircuitsVis inlines a megabyte of script: strip it"
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
