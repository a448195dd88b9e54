"""The example project, run as its CI would: its gates pass, fail, distrust and find a regression, and say why."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

import casemate.testing
from test_pytest_plugin import write_entry_point

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EXAMPLE = Path(__file__).parent.parent / "examples" / "robustness-tests"
SETTINGS = (
    "--data",
    "test.npz",
    "--images",
    "200",
    "--eps",
    "8/255",
    "--budget",
    "quick",
    "--no-images",
    "--threads",
    "1",
)
LYING = "self.layers((images * 7).round() / 7)"


@dataclass(frozen=True)
class Project:
    """A copy of the example, and an environment with casemate."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, code: int = 0) -> str:
        """Everything that a program prints, with blanks instead of line breaks."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        shown = " ".join((done.stdout + done.stderr).replace("│", " ").split())
        assert done.returncode == code, shown
        assert "Traceback" not in shown
        return shown

    def casemate(self, *words: str, code: int = 0) -> str:
        """What a command prints."""
        return self.run("-m", "casemate", *words, code=code)

    def pytest(self, *words: str, code: int = 0) -> str:
        """What the tests of the project print."""
        return self.run("-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *words, code=code)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with the weights of both trainings."""
    root = tmp_path_factory.mktemp("example")
    site = write_entry_point(root / "site")
    paths = [site, Path(casemate.testing.__file__).parents[2]]
    project = Project(
        folder=root / "project",
        environment={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": "1",
            "CASEMATE_CACHE": str(root / "cache"),
            "CASEMATE_STORE": str(root / "store"),
        },
    )
    shutil.copytree(EXAMPLE, project.folder, ignore=shutil.ignore_patterns("*.safetensors", "runs", "__pycache__"))
    project.run("train.py", "--plain", "--out", "plain.safetensors")
    project.run("train.py")
    shutil.copy(project.folder / "weights.safetensors", project.folder / "released.safetensors")
    command = ("evaluate", "shapes.py:ShapeNet", "--weights", "released.safetensors", *SETTINGS)
    shown = project.casemate(*command, "--out", "runs/released", "--fail-under", "70%")
    assert "passes: the lower end of the 95 % interval" in shown
    return project


@pytest.fixture
def copied(trained: Project, tmp_path: Path) -> Callable[[], Project]:
    """Makes a copy of the project, to change it."""
    return lambda: Project(shutil.copytree(trained.folder, tmp_path / "project"), trained.environment)


def test_the_gates_pass(trained: Project) -> None:
    shown = trained.pytest("--junitxml=robustness.xml")
    assert "4 passed" in shown
    summary = shown[shown.index("robustness (casemate)") :]
    assert summary.count(": passed: ") == 3
    assert "n = 200) robust at eps 8/255 (linf, quick), at least 70%: not broken by a quick look" in summary
    assert "new minus old +0.0 points (-1.4 to +1.4), McNemar p = 1, n = 200, margin 2%" in summary
    values = {
        each.get("name"): each.get("value")
        for each in ElementTree.parse(trained.folder / "robustness.xml").iter("property")
    }
    assert float(values["casemate.robust_accuracy"] or 0) > 0.7
    assert "1 passed, 3 deselected" in trained.pytest("-m", "not robust")


def test_a_network_that_is_less_robust_fails(copied: Callable[[], Project]) -> None:
    project = copied()
    shutil.copy(project.folder / "plain.safetensors", project.folder / "weights.safetensors")
    shown = project.pytest(code=1)
    assert "3 failed, 1 passed" in shown
    assert "the lower end of the 95 % interval is below 70%" in shown
    assert "fooled most: pgd, first on" in shown
    assert "the new model may be worse than the old model by 2 points or more" in shown
    assert shown.count(": FAILED: ") == 3


def test_a_network_that_hides_its_gradient_is_not_trusted(copied: Callable[[], Project]) -> None:
    project = copied()
    source = project.folder / "shapes.py"
    text = source.read_text()
    assert "return self.layers(images)" in text
    assert LYING in (EXAMPLE / "README.md").read_text()
    source.write_text(text.replace("return self.layers(images)", f"return {LYING}"))
    shown = project.pytest("-k", "is_robust", code=1)
    assert "is not to be trusted" in shown
    assert "finding zero-gradients: 100.0 % of the images" in shown
    command = ("evaluate", "shapes.py:ShapeNet", "--weights", "weights.safetensors", *SETTINGS)
    shown = project.casemate(*command, "--out", "runs/lying", "--fail-under", "10%", code=3)
    assert "falls short: --fail-under 10%: This evaluation is not to be trusted" in shown
    shown = project.casemate("compare", "runs/released", "runs/lying", "--fail-if-worse", code=3)
    assert "Nothing follows: the number of B is not to be trusted." in shown


def test_a_regression_is_found(trained: Project) -> None:
    command = ("evaluate", "shapes.py:ShapeNet", "--weights", "plain.safetensors", *SETTINGS)
    assert "falls short: the lower end" in trained.casemate(
        *command, "--out", "runs/plain", "--fail-under", "70%", code=3
    )
    shown = trained.casemate("compare", "runs/released", "runs/plain", "--fail-if-worse", code=3)
    assert "A is more robust than B, beyond chance." in shown
    assert "falls short: --fail-if-worse: B is worse than A beyond chance: robust accuracy at eps 8/255 from" in shown
    assert "passes" in trained.casemate("compare", "runs/plain", "runs/released", "--fail-if-worse", "--margin", "2%")
    shown = trained.casemate(
        "compare", "shapes.py:ShapeNet", "shapes.py:ShapeNet", "--weights", "released.safetensors", "--weights-b",
        "plain.safetensors", *SETTINGS, "--out", "runs/compare", "--fail-if-worse", "--margin", "2%", code=3,
    )  # fmt: skip
    assert "B may be worse than A by 2 points or more" in shown
    found = json.loads((trained.folder / "runs" / "compare" / "comparison.json").read_text())
    assert found["regression"]["worse"]
    assert found["a"]["fingerprint"] != found["b"]["fingerprint"]
    for name in "ab":
        assert (trained.folder / "runs" / "compare" / name / "report.html").exists()
    shown = trained.casemate("compare", "runs/released", "runs/plain", "--json")
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["robust"] == found["robust"]


def test_what_cannot_be_compared_is_refused_before_any_attack(trained: Project) -> None:
    weights = ("shapes.py:ShapeNet", "shapes.py:ShapeNet", "--weights", "released.safetensors")
    few = ("--data", "test.npz", "--images", "50", "--eps", "8/255", "--budget", "quick", "--threads", "1")
    shown = trained.casemate("compare", *weights, *few, "--fail-if-worse", "--margin", "2%", code=2)
    assert "even a model compared with itself would not pass" in shown
    assert "Attacking" not in shown
