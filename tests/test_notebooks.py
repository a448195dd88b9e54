"""The notebooks in examples/: executed as they are kept, public names only, and run again without Jupyter."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import casemate
from scripts import imported
from test_public import exported, private_uses

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
LIMIT = 400_000
"""The largest notebook, in bytes."""
tool = imported("tools/notebooks.py")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == kind]


def private_attributes(text: str) -> list[str]:
    """What a program takes by a dot that is not public: of casemate and its packages, or `_names` of anything."""
    public = {"casemate": set(dir(casemate))}
    for package in (ROOT / "src" / "casemate").iterdir():
        if (package / "__init__.py").is_file():
            public[f"casemate.{package.name}"] = exported(package)
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Attribute):
            continue
        hidden = node.attr.startswith("_") and node.attr != "__init__"
        if hidden or node.attr not in public.get(ast.unparse(node.value), {node.attr}):
            found.append(ast.unparse(node))
    return found


def test_the_three_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first-evaluation", "harden-own-model", "masked-defense"]


@each_notebook
def test_a_notebook_is_kept_executed_in_order_without_an_error(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"code", "markdown"}
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


@each_notebook
def test_a_notebook_is_as_the_tool_leaves_it(path: Path) -> None:
    """No metadata, ids in order, small, and the text of the file that the tool would write."""
    assert path.read_text(encoding="utf-8") == tool.as_text(tool.cleaned(read(path)))
    assert path.stat().st_size < LIMIT


@each_notebook
def test_outputs_name_no_folder_of_a_machine_and_warn_only_by_casemate(path: Path) -> None:
    for cell in read(path)["cells"]:
        for output in cell.get("outputs", []):
            kept = [*output.get("text", []), *output.get("data", {}).get("text/plain", [])]
            assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|var|work|opt|Users)/", "".join(kept))
            if output.get("name") == "stderr":
                assert "CasemateWarning" in kept[0]


@each_notebook
def test_the_code_uses_public_names_only(path: Path) -> None:
    for text in cells(path, "code"):
        assert private_uses(text, ROOT / "src") == []
        assert private_attributes(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("casemate.PGD(eps=0.1)\ncasemate.data.load()\nsuper().__init__()", []),
        ("casemate.nothing", ["casemate.nothing"]),
        ("x = casemate.data.nothing()", ["casemate.data.nothing"]),
        ("evaluation._passes", ["evaluation._passes"]),
    ],
)
def test_a_private_attribute_is_found(text: str, expected: list[str]) -> None:
    assert private_attributes(text) == expected


@each_notebook
def test_links_lead_somewhere(path: Path) -> None:
    text = "\n".join(cells(path, "markdown"))
    for place in re.findall(r"\]\(([^)#]+)", text):
        assert (path.parent / place).is_file(), place


def test_the_page_of_the_examples_names_each() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    linked = {EXAMPLES / place for place in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert all(place.exists() for place in linked)
    assert linked >= {*NOTEBOOKS, EXAMPLES / "robustness-tests" / "README.md", *(EXAMPLES / "ci").glob("*.yml")}


def test_the_tool_removes_what_differs_from_run_to_run() -> None:
    picture = {"text/plain": ["<Figure size 900x300>"], "image/png": "iVBOR"}
    outputs = [
        {"name": "stderr", "output_type": "stream", "text": ["/tmp/ipykernel_12/34.py:5: CasemateWarning: no\n"]},
        {"name": "stderr", "output_type": "stream", "text": ["gradient\n"]},
        {"data": picture, "metadata": {"needs": "light"}, "output_type": "display_data"},
    ]
    code = {"cell_type": "code", "id": "4ac1", "metadata": {"time": 12}, "execution_count": 7}
    code |= {"outputs": outputs, "source": "a = 1\na"}
    done = tool.cleaned({"cells": [code], "metadata": {"language_info": {"version": "3.11.7"}}})
    (cell,) = done["cells"]
    assert (cell["id"], cell["execution_count"], cell["metadata"]) == ("cell-01", 1, {})
    assert cell["source"] == ["a = 1\n", "a"]
    assert cell["outputs"][0]["text"] == ["cell: CasemateWarning: no\n", "gradient\n"]
    assert cell["outputs"][1] == {"data": {"image/png": "iVBOR"}, "metadata": {}, "output_type": "display_data"}
    assert "version" not in done["metadata"]["language_info"]
    assert tool.cleaned(done) == done


def test_reports_leave_the_backend_of_matplotlib_as_it_is() -> None:
    """In a notebook figures are shown by the backend: after a report the user's own figures still are."""
    program = (
        "import matplotlib; matplotlib.use('svg'); import matplotlib.pyplot as plt; from casemate.report import canvas;"
        "mine = plt.figure(); drawing, axes = canvas(1, 1, 2, 2);"
        "assert matplotlib.get_backend() == 'svg'; assert plt.get_fignums() == [mine.number]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.integration
@pytest.mark.slow
@each_notebook
def test_the_cells_run_as_a_program(path: Path, tmp_path: Path) -> None:
    """Without Jupyter, in a folder of its own; figures are drawn and not shown."""
    try:
        casemate.data.load("fashion-mnist", offline=True)
    except casemate.CasemateError as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")
    program = tmp_path / "cells.py"
    program.write_text("\n\n".join(cells(path, "code")), encoding="utf-8")
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, program.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
