"""The tutorials run, and the committed notebooks are theirs: same cells, with pictures and no trace of a machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from house import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SOURCES = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
CELL_LIMIT_S = 600  # far above the seconds that a cell takes: only ends what hangs
KERNELSPEC = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|mnt|work|Users)/|site-packages|\b[A-Z]:\\")

each_tutorial = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def parse(text: str) -> list[tuple[str, str]]:
    """The cells of a percent script, as (kind, text)."""
    cells = []
    for block in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        cells.append(("markdown" if "[markdown]" in head else "code", body.strip("\n")))
    return cells


def cells_of(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures_of(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs_of(notebook))


def run(cells: list[tuple[str, str]], folder: Path) -> Any:
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(cells=[new[kind](text) for kind, text in cells])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=CELL_LIMIT_S, kernel_name="python3", resources=resources).execute()
    return notebook


def problems(notebook: Any) -> list[str]:
    """What a reader should not meet in a committed notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [] if [cell.execution_count for cell in code] == list(range(1, len(code) + 1)) else ["not run in one go"]
    found += ["metadata"] if notebook.metadata != KERNELSPEC or any(cell.metadata for cell in notebook.cells) else []
    found += ["fewer than 3 pictures"] if pictures_of(notebook) < 3 else []
    for output in outputs_of(notebook):
        if output.output_type == "error" or output.get("name") == "stderr":
            found.append(f"an error or a warning: {output.get('text') or output.get('evalue')}")
        texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
        found += [f"a path of a machine: {text}" for text in texts if MACHINE.search(text)]
    return found


@pytest.fixture
def quiet_kernel(monkeypatch, tmp_path):
    """Few draws, pictures inside the notebook, no start-up files of the user."""
    monkeypatch.setenv("PROBMIX_SMOKE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def test_there_are_tutorials():
    assert len(SOURCES) >= 2


@each_tutorial
def test_runs_with_few_draws(source, quiet_kernel):
    notebook = run(parse(source.read_text(encoding="utf-8")), quiet_kernel)
    assert [output for output in outputs_of(notebook) if output.output_type == "error"] == []
    assert pictures_of(notebook) >= 3


def test_a_failing_assert_fails_the_run(quiet_kernel):
    with pytest.raises(CellExecutionError, match="the number in the text is wrong"):
        run([("code", "assert 1 + 1 == 3, 'the number in the text is wrong'")], quiet_kernel)


@each_tutorial
def test_the_committed_notebook_is_that_of_its_source(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    rebuild = f"the notebook is not that of its source: run python tutorials/rebuild.py {source.name[:2]}"
    assert cells_of(notebook) == parse(source.read_text(encoding="utf-8")), rebuild


@each_tutorial
def test_the_committed_notebook_is_fit_to_be_read(source):
    file = source.with_suffix(".ipynb")
    assert problems(nbformat.read(file, as_version=4)) == []
    assert file.stat().st_size < 600_000


@each_tutorial
def test_the_readme_lists_it(source):
    assert f"({source.stem}.ipynb)" in (ROOT / "tutorials/README.md").read_text(encoding="utf-8")


# --- the checks themselves ------------------------------------------------------------------------------------------


def test_a_percent_script_is_read_as_its_cells():
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nimport os\n\n\n# %%\ndef f():\n    return 1  # %%\n"
    cells = [("markdown", "# Title\n\nText."), ("code", "import os"), ("code", "def f():\n    return 1  # %%")]
    assert parse(text) == cells


def picture() -> Any:
    return nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"})


def committed(*outputs: Any, pictures: int = 3, count: int = 1, metadata: Any = KERNELSPEC) -> Any:
    cell = nbformat.v4.new_code_cell("f()", execution_count=count, outputs=[*outputs, *[picture()] * pictures])
    return nbformat.v4.new_notebook(cells=[cell], metadata=metadata)


def test_a_clean_notebook_has_no_problems():
    assert problems(committed(nbformat.v4.new_output("stream", text="3 chains/draws of a/b: 1/2\n"))) == []


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (committed(pictures=2), "fewer than 3 pictures"),
        (committed(count=4), "not run in one go"),
        (committed(metadata={**KERNELSPEC, "language_info": {"name": "python"}}), "metadata"),
        (committed(nbformat.v4.new_output("error", ename="E", evalue="no", traceback=[])), "an error or a warning: no"),
        (committed(nbformat.v4.new_output("stream", name="stderr", text="old")), "an error or a warning: old"),
        (committed(nbformat.v4.new_output("stream", text="/home/a/b.py")), "a path of a machine: /home/a/b.py"),
        (
            committed(nbformat.v4.new_output("execute_result", {"text/html": "in C:\\a"})),
            "a path of a machine: in C:\\a",
        ),
    ],
)
def test_a_problem_is_seen(notebook, problem):
    assert problems(notebook) == [problem]
