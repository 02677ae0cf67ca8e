"""Rebuild the notebooks of this folder from their sources, run them, and keep nothing of the machine.

python tutorials/rebuild.py               all of them
python tutorials/rebuild.py 02            those whose name begins so
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # of tqdm in a notebook without ipywidgets

FOLDER = Path(__file__).parent
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def rebuild(source: Path) -> Path:
    """Run a source from top to bottom and write the notebook beside it."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    clean(notebook)
    target = source.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep cells and outputs; drop times, random names and versions, so that a rebuild changes only what changed."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])


def smaller(png: str) -> str:
    """Return a picture with 255 colours: a third of the size, and to the eye the same."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(255, kmeans=3, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    for name in ("MPLBACKEND", "PROBMIX_SMOKE"):  # pictures in the page, and all the draws
        os.environ.pop(name, None)
    for file in sorted(FOLDER.glob("[0-9]*.py")):
        if file.name.startswith(tuple(sys.argv[1:]) or ""):
            print(rebuild(file).name, flush=True)
