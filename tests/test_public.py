"""The public face: names, the README's example, the built package seen from outside the tree."""

import ast
import json
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import casemate
from casemate.attacks.registry import library_attack_types
from casemate.defenses import RECIPES
from casemate.evaluation.findings import CHECKS
from scripts import imported

ROOT = Path(__file__).resolve().parents[1]
NAMES = set(
    """
APGD AdversarialRegularization AdversarialTraining Attack AttackResult AutoAttack BIM BPDA Ball CarliniWagner
CasemateError CasemateWarning Check CheckContext Classifier CornerNoise Criterion CrossEntropy Dataset DeepFool
Distillation EAD EOT Evaluation FAB FGSM Finding HopSkipJump LBFGS LabelledImages MIFGSM Measured ModelComparison NotRun
Hardened PGD Passes Recipe Restarts RunResult Severity Spatial Square StochasticAffine Streams TargetedAPGD TargetedFAB
TemperatureCrossEntropy TrainConfig Transfer UniformNoise Verdict InputDiversity Momentum Nesterov ScaledCopies
Transferable TranslationKernel VarianceTuning check compare ensemble eps_curve evaluate evaluate_clean fit
gradient_alignment harden load make_record mcnemar parse_eps progress_bars read_images read_record save steps_curve
sweep_eps sweep_steps targeted_matrix verify_record worst_case write_record zero_gradients data models
observers tracking ALMA DDN FMN PDGD PDPGD SigmaZero SparseRS
SPSA SurFree query_curve AnyOf MultiLabel TopK
CertifiedEvaluation Smoothing certify certify_smoothed evaluate_certified
""".split()  # noqa: SIM905 (a list of words reads better as words)
)


def test_public_names_are_the_agreed_ones() -> None:
    """A name that goes or comes is a decision, made here and in the changelog."""
    assert set(dir(casemate)) == NAMES
    for name in NAMES:
        assert getattr(casemate, name) is not None
    with pytest.raises(AttributeError, match="No casemate attribute nothing"):
        _ = casemate.nothing  # type: ignore[attr-defined]


def test_import_alone_loads_no_torch() -> None:
    """`import casemate` is quick; PyTorch comes with the first name that needs it."""
    check = "import sys, casemate; assert 'torch' not in sys.modules; casemate.FGSM; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def exported(package: Path) -> set[str]:
    """The public names of a room: what its `__init__`, or its stub, takes from its modules or defines."""
    stub = package / "__init__.pyi"
    found: set[str] = set()
    for node in ast.parse((stub if stub.is_file() else package / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def private_uses(text: str, source: Path) -> list[str]:
    """What a program takes of casemate that is not public: modules inside rooms, names that no room exports."""
    found = []
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [module for module in modules if module.startswith("casemate.")]
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.module.split(".")[0] != "casemate":
            continue
        names = {alias.name for alias in node.names}
        parts = node.module.split(".")
        package = source.joinpath(*parts)
        if parts[1:3] == ["cli", "shared"] or (len(parts) == 2 and not package.is_dir()):
            bad = {name for name in names if name.startswith("_")}
        elif parts == ["casemate"]:
            bad = names - exported(package) - {path.stem for path in package.iterdir()} - {"__version__"}
        else:
            bad = names - exported(package) if len(parts) == 2 else names
        found += [f"{node.module}.{name}" for name in sorted(bad)]
    return found


def test_the_study_takes_public_names_only() -> None:
    files = sorted((ROOT / "src" / "casemate_study").rglob("*.py"))
    assert len(files) > 30
    assert {str(path): bad for path in files if (bad := private_uses(path.read_text(), ROOT / "src"))} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from casemate import PGD, data\nfrom casemate.attacks import Criterion\nfrom casemate.rng import derive", []),
        ("from casemate.attacks.apgd import APGD", ["casemate.attacks.apgd.APGD"]),
        ("from casemate.attacks import nothing", ["casemate.attacks.nothing"]),
        ("from casemate.rng import _mix", ["casemate.rng._mix"]),
        ("import casemate.attacks.apgd", ["casemate.attacks.apgd"]),
        ("def late():\n    from casemate.evaluation.verdict import _percent", ["casemate.evaluation.verdict._percent"]),
    ],
)
def test_a_private_use_is_found(text: str, expected: list[str]) -> None:
    assert private_uses(text, ROOT / "src") == expected


YOURS = """
import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


torch.manual_seed(0)
labels: Tensor = torch.arange(40) % 10
images: Tensor = 0.9 * torch.rand(10, 3, 32, 32)[labels] + 0.1 * torch.rand(40, 3, 32, 32)
network: nn.Module = nn.Sequential(
    Block(3, 8), Block(8, 16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
)
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for _ in range(30):
    loss = nn.functional.cross_entropy(network((images - 0.48) / 0.25), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
network.eval()
"""
"""What the README's example takes from its reader."""


def readme_example() -> str:
    """The first Python block of the README."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_readme_example_is_short() -> None:
    """At most eight lines of code."""
    assert len([line for line in readme_example().splitlines() if line.strip()]) <= 8


@pytest.mark.integration
def test_readme_example_passes_the_type_checker(tmp_path: Path) -> None:
    """In strict mode for what a user writes: an unknown name, argument or type is an error."""
    script = tmp_path / "example.py"
    script.write_text(YOURS + readme_example() + "evaluation.nothing\n")
    check = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(script)]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    found = [each["message"] for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert found == ['Cannot access attribute "nothing" for class "Evaluation"\n\xa0\xa0Attribute "nothing" is unknown']


def test_readme_repeats_the_measured_agreement() -> None:
    """The table is what `benchmarks/autoattack/table.py` writes from the committed result."""
    table = imported("benchmarks/autoattack/table.py")
    found = json.loads((ROOT / "benchmarks" / "autoattack" / "result.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert table.page(readme, found) == readme
    found["rows"][0]["agree"] -= 1
    assert table.page(readme, found) != readme


def test_the_page_on_speed_is_what_was_measured() -> None:
    speed = imported("benchmarks/speed/page.py")
    found = json.loads((ROOT / "benchmarks" / "speed" / "result.json").read_text())
    written = (ROOT / "docs" / "performance.md").read_text()
    assert speed.page(found) == written, "run python benchmarks/speed/page.py"
    found["passes"]["gemm_flops_per_second"] *= 2
    assert speed.page(found) != written


def test_pages_name_places_that_exist() -> None:
    """Links of the pages, paths in the map of the README and in the architecture lead somewhere."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    places = set(re.findall(r"(?:\w+/)+[\w.]*", architecture)) - {"8/255", "src/"}
    assert len(places) > 30
    for place in places:
        assert any((ROOT / "src" / package / place).exists() for package in ("", "casemate")), place
    rooms = re.findall(r"^  (\w+)/ ", (ROOT / "README.md").read_text(), re.MULTILINE)
    there = {path.parent.name for path in (ROOT / "src" / "casemate").glob("*/__init__.py")}
    assert set(rooms) == there


def test_the_readme_counts_attacks_recipes_and_checks_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"[{len(library_attack_types())} attacks](docs/attacks.md)" in readme
    assert f"[{len(CHECKS)} checks](docs/findings.md)" in readme
    assert f"{len(CHECKS)} checks of the result itself" in (ROOT / "docs" / "architecture.md").read_text()
    assert f"[{len(RECIPES)} recipes](docs/defenses.md)" in readme
    page, recipes_page = (ROOT / "docs" / "defenses.md").read_text(), imported("tools/recipes_page.py")
    assert recipes_page.page(page) == page, "run python tools/recipes_page.py"


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {casemate.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {casemate.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("casemate-*.whl"))


@pytest.mark.integration
def test_wheel_carries_templates_and_reference_data(wheel: Path) -> None:
    """What is not Python is in the wheel too."""
    names = zipfile.ZipFile(wheel).namelist()
    study = ("report/templates/report.html.j2", "experiments/keras_reference.json", "reference/full.json")
    for needed in (
        "casemate/report/templates/page.html.j2",
        "casemate/py.typed",
        "casemate/__init__.pyi",
        *(f"casemate_study/{n}" for n in study),
    ):
        assert needed in names


@pytest.mark.integration
def test_readme_example_runs_against_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """From outside the tree, on the installed wheel, the README's lines print a verdict and write a report."""
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    sites = [path for path in sys.path if Path(path).name == "site-packages"]
    # the heavy dependencies are borrowed from this environment, but casemate itself must be the wheel's
    script = f"import sys; sys.path += {sites!r}\nimport casemate\nprint(casemate.__file__)\n"
    script += YOURS + readme_example()
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(tmp_path) in done.stdout.splitlines()[0]
    assert "Broken" in done.stdout
    assert "robust accuracy" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("AttackResult(PGD, eps 8/255")
    assert (tmp_path / "report" / "report.html").is_file()
