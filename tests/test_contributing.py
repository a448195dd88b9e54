"""The examples of CONTRIBUTING.md, put into a copy of the source as the page says, work as it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def examples(kind: str) -> list[tuple[str, str]]:
    """Place and text of the examples of a kind: file, line, import, entry of a name."""
    return re.findall(rf"<!-- {kind}: (\S+) -->\n```(?:python)?\n(.*?)```", PAGE, re.DOTALL)


def insert(path: Path, before: str, text: str) -> None:
    """Put text before the first line that begins with `before`."""
    source = path.read_text()
    place = source.index(f"\n{before}") + 1
    path.write_text(source[:place] + text + source[place:])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with all examples in it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for place, text in examples("file"):
        assert not (folder / place).exists()
        (folder / place).write_text(text)
    for place, text in examples("line"):
        with (folder / place).open("a") as file:
            file.write(text)
    for place, text in examples("import"):
        insert(folder / place, "from ", text)
    for place, text in examples("entry of RECIPES"):
        insert(folder / place, '    "distillation": RecipeType(', text)
    for place, text in examples("entry of CHECKS"):
        insert(folder / place, "        inputs.sample_size,", text)
    return folder


def run(checkout: Path, *command: str, cwd: Path) -> str:
    """What a Python program prints with the examples in the library."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_all_its_examples() -> None:
    assert [len(examples(kind)) for kind in ("file", "line", "import", "entry of RECIPES", "entry of CHECKS")] == [
        3, 1, 2, 1, 1,
    ]  # fmt: skip


@pytest.mark.integration
def test_the_attack_has_the_properties_of_every_attack(checkout: Path) -> None:
    """It passes the tests that every attack passes, and its options are in the help."""
    options = ["-n", "0", "-p", "no:cacheprovider", "-k", "random-search", "tests/test_every_attack.py"]
    assert re.search(r"\b6 passed", run(checkout, "-m", "pytest", *options, cwd=ROOT))
    shown = run(checkout, "-m", "casemate", "attack", "random-search", "--help", cwd=checkout)
    assert "--n-queries" in shown
    assert "Forward passes per image." in shown


@pytest.mark.integration
@pytest.mark.slow
def test_recipe_attack_and_finding_work_from_the_command_line(checkout: Path) -> None:
    train = ["train", "--recipe", "logit-squeezing", "--weight", "0.1", "--dataset", "digits", "--epochs", "1", "--out"]
    run(checkout, "-m", "casemate", *train, "squeezed.safetensors", cwd=checkout)
    attack = ["attack", "random-search", "squeezed.safetensors", "--eps", "0.1", "--n-queries", "20", "--images", "50"]
    assert "RandomSearch on squeezed" in run(checkout, "-m", "casemate", *attack, "--dataset", "digits", cwd=checkout)
    evaluate = ["evaluate", "squeezed.safetensors", "--dataset", "digits", "--eps", "0.1", "--images", "50"]
    run(checkout, "-m", "casemate", *evaluate, "--budget", "quick", "--out", "evaluated", cwd=checkout)
    found = json.loads((checkout / "evaluated" / "result.json").read_text())
    assert "dominant-class" in {each["check"] for each in found["checks"]}


@pytest.mark.integration
def test_the_examples_pass_lint(checkout: Path) -> None:
    """As written on the page: style, types, layers."""
    settings = (ROOT / "pyproject.toml").read_text()
    # the checker is given this Python instead of the environment of the checkout, which the copy lacks
    (checkout / "pyproject.toml").write_text(settings.replace('venvPath = "."\nvenv = ".venv"\n', ""))
    files = [place for place, _ in examples("file")]
    run(checkout, "-m", "ruff", "check", *files, cwd=checkout)
    run(checkout, "-m", "ruff", "format", "--check", *files, cwd=checkout)
    run(checkout, "-m", "basedpyright", "--pythonpath", sys.executable, *files, cwd=checkout)
