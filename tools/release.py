"""Build a release into dist/, and check what was built. Nothing is uploaded.

    python tools/release.py [--candidate]

1. CHANGELOG.md must have a dated section for this version (`## 0.1.0 (2027-01-31)`), and everything must be committed;
   with --candidate neither is required.
2. The sdist is built from the checkout, and the wheel from the sdist.
3. twine checks their metadata. The wheel is installed with its dependencies into a new environment: the command line
   answers there, an attack runs, and the types of all public names are complete.

The section of the changelog is written beside them, for the announcement.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TRY = """
import torch
from casemate import FGSM, Classifier
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
model = Classifier(net, input_shape=(1, 4, 4), classes=("a", "b"))
images = torch.rand(4, 1, 4, 4)
print("FGSM leaves", FGSM(eps=0.1)(model, images, net(images).argmax(1)).robust_accuracy)
"""


def fail(message: str) -> None:
    """Say what is wrong, and end with 1."""
    print(f"no release: {message}", file=sys.stderr)
    raise SystemExit(1)


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """What a program prints; where it fails, what it printed is shown and this one ends."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | variables, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        fail(f"{' '.join(str(part) for part in command[:4])} ended with {done.returncode}")
    return done.stdout


def section_of(changelog: str, version: str) -> tuple[str, str]:
    """What the changelog says in brackets behind a version (its date), and the text below it."""
    found = re.search(rf"^## {re.escape(version)} \(([^)]*)\)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        fail(f"CHANGELOG.md has no section '## {version} (date)'")
        raise AssertionError
    return found[1], found[2].strip() + "\n"


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel and its dependencies, as constraints.txt pins them; its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return programs


def check(wheel: Path) -> None:
    """Try the wheel in a new environment, away from the checkout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = install(wheel, folder / "environment")
        run(programs / "casemate", "--help", cwd=folder)
        print(run(programs / "python", "-c", TRY, cwd=folder).strip())
        # the checker finds the package through the first Python on the path
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        checker = [sys.executable, "-m", "basedpyright", "--verifytypes", "casemate", "--ignoreexternal"]
        print(run(*checker, cwd=folder, PATH=path).strip().splitlines()[-3])


def main() -> None:
    """Build and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--candidate", action="store_true", help="build from what is there, released or not")
    candidate: bool = parser.parse_args().candidate
    source = (ROOT / "src" / "casemate" / "_version.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"', source, re.MULTILINE)[0]
    date, text = section_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if not candidate:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
            fail(f"CHANGELOG.md calls {version} '{date}'; write the date of the release, or give --candidate")
        if run("git", "status", "--porcelain").strip():
            fail("there are changes that are not committed; commit them, or give --candidate")
    with tempfile.TemporaryDirectory() as name:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", name, ROOT)
        built = sorted(Path(name).iterdir())
        run(sys.executable, "-m", "twine", "check", "--strict", *built)
        check(next(path for path in built if path.suffix == ".whl"))
        DIST.mkdir(exist_ok=True)
        for path in built:
            path.replace(DIST / path.name)
    notes = DIST / f"casemate-{version}-changes.md"
    notes.write_text(text, encoding="utf-8")
    print(f"In {DIST}: {', '.join([*(path.name for path in built), notes.name])}")


if __name__ == "__main__":
    main()
