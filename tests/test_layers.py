"""The floor plan in `pyproject.toml`: imports run downward only, nothing imports in a circle or through the face."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
CONTRACTS = (
    "imports run downward only",
    "the study's imports run downward only",
    "the library does not know the study",
    "nothing inside goes through the package's face",
    "nothing imports in a circle",
)


def broken(folder: Path) -> set[str]:
    """The contracts that the code in `folder` breaks."""
    done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder / "src")})
    found = {name for name in CONTRACTS if f"{name} BROKEN" in done.stdout}
    assert found | {name for name in CONTRACTS if f"{name} KEPT" in done.stdout} == set(CONTRACTS), done.stdout
    assert done.returncode == bool(found)
    return found


def test_the_contracts_are_kept() -> None:
    assert broken(ROOT) == set()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("module", "text", "contract"),
    [
        ("data/dataset", "from ..training import loop", "imports run downward only"),
        ("errors", "def late():\n    import casemate.files", "imports run downward only"),
        ("data/dataset", "import casemate_study", "the library does not know the study"),
        ("attic", "X = 1", "imports run downward only"),
        ("training/loop", "from casemate import fit", "nothing inside goes through the package's face"),
        ("attacks/base", "from casemate.attacks import presets", "nothing imports in a circle"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, text: str, contract: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src" / "casemate" / f"{module}.py").open("a") as file:
        file.write(f"\n{text}\n")
    assert contract in broken(tmp_path)
