"""Executes the notebooks in examples/notebooks in place, and removes what differs from run to run.

    python tools/notebooks.py [NAME ...]

NAMEs are file names without ending; without any, all notebooks are executed. Needs the extra `notebooks`. Each is
executed in a temporary folder, so that the files it writes stay out of the checkout. A notebook in which a cell fails
is not written, and the exit code is 1.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from casemate.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_CELL = re.compile(r"\S*ipykernel_\d+/\d+\.py:\d+")
"""How a warning names the cell that it comes from."""


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook with its outputs, and without what differs from run to run or says nothing to a reader.

    Cells are numbered, also in their ids. Metadata of cells and outputs go, and so do the versions of Python and
    Jupyter, and the number of the process in warnings. The text form of a picture goes too, since the picture is shown.
    """
    cells, count = [], 0
    for place, cell in enumerate(notebook["cells"], 1):
        kept: dict[str, Any] = {"cell_type": cell["cell_type"], "id": f"cell-{place:02d}", "metadata": {}}
        if cell["cell_type"] == "code":
            count += 1
            outputs = [_cleaned_output(output, count) for output in _joined(cell["outputs"])]
            kept |= {"execution_count": count, "outputs": outputs}
        cells.append(kept | {"source": _lines(cell["source"])})
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs, with parts of one stream that follow each other as one: where a stream is cut is chance."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output["output_type"] == "stream" and before.get("name") == output["name"]:
            joined[-1] = before | {"text": _text(before["text"]) + _text(output["text"])}
        else:
            joined.append(output)
    return joined


def _cleaned_output(output: dict[str, Any], count: int) -> dict[str, Any]:
    kind = output["output_type"]
    if kind == "stream":
        text = _CELL.sub("cell", _text(output["text"]))
        return {"name": output["name"], "output_type": kind, "text": _lines(text)}
    data = {
        name: value if name.startswith("image/") and isinstance(value, str) else _lines(value)
        for name, value in sorted(output["data"].items())
        if not (name == "text/plain" and any(other.startswith("image/") for other in output["data"]))
    }
    kept: dict[str, Any] = {"data": data, "metadata": {}, "output_type": kind}
    return kept | ({"execution_count": count} if kind == "execute_result" else {})


def _text(given: str | list[str]) -> str:
    return given if isinstance(given, str) else "".join(given)


def _lines(given: str | list[str]) -> list[str]:
    """Text as a notebook file keeps it, a string for each line, so that a change of one line is one in a diff."""
    return _text(given).splitlines(keepends=True)


def as_text(notebook: dict[str, Any]) -> str:
    """The text of a notebook's file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def execute(notebook: dict[str, Any], folder: str) -> dict[str, Any]:
    """The notebook with the outputs of its cells, executed in order in `folder`.

    Raises `nbclient.exceptions.CellExecutionError` if a cell fails.
    """
    nbclient, nbformat = import_module("nbclient"), import_module("nbformat")  # in the extra `notebooks`
    node = nbformat.reads(json.dumps(notebook), as_version=4)
    for cell in node.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell |= {"outputs": [], "execution_count": None}
    client = nbclient.NotebookClient(
        node, timeout=1200, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    return client.execute()


def main(arguments: list[str]) -> int:
    """Execute and write the notebooks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="file names without ending; all if none is given")
    names = parser.parse_args(arguments).names
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no notebook called {', '.join(unknown)}; there are {', '.join(known)}")
    os.environ.pop("MPLBACKEND", None)  # figures are drawn into the notebook
    failed = 0
    for name in names or known:
        path = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = cleaned(execute(json.loads(path.read_text(encoding="utf-8")), folder))
            except import_module("nbclient.exceptions").CellExecutionError as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed = 1
                continue
        write_text(path, as_text(done))
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
