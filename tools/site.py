"""Build the site of the documentation from the pages of the repository, without a network.

`python tools/site.py` writes build/site/html. The pages are plain Markdown that links to its neighbours, and to files
beside the code: all of them are copied in the same folders, so that a link that works in the repository works on the
site. The reference of the library is made from its docstrings.
"""

import argparse
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

from casemate.files import write_text

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build" / "site" / "source"
"""What the configuration, zensical.toml, calls `docs_dir`."""
PAGES = ("*.md", "docs/**/*.md", "benchmarks/*/*.md", "examples/**/*.md")
ASSETS = ROOT / "docs" / "assets"
"""What the site needs beside its pages."""
ROOMS = {
    "casemate": "The front door: everything that most programs need.",
    "casemate.attacks": "Attacks, wrappers, criteria and what attacks return.",
    "casemate.evaluation": "Evaluations, findings, verdicts, intervals, records.",
    "casemate.certification": "Bounds, certificates and randomised smoothing.",
    "casemate.defenses": "Training objectives, preprocessing and detectors.",
    "casemate.hardening": "Fine-tuning a trained model beside a control.",
    "casemate.training": "The training loop and its settings.",
    "casemate.models": "Classifiers, networks by name, models of every format.",
    "casemate.data": "Data sets, images of every format, augmentation.",
    "casemate.tracking": "MLflow and TensorBoard.",
    "casemate.testing": "Assertions for tests.",
}
"""The packages that users import from."""
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def pages() -> Iterator[Path]:
    """Every page of the repository."""
    for pattern in PAGES:
        yield from sorted(ROOT.glob(pattern))


def linked(page: Path) -> Iterator[Path]:
    """The files of the repository that a page links to or shows."""
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / link).resolve()
        if target.is_file():
            yield target


def public_names(room: str) -> list[str]:
    """The public classes and functions of a package, each with the module that defines it."""
    package = importlib.import_module(room)
    values = [getattr(package, name) for name in sorted(dir(package)) if not name.startswith("_")]
    ours = [each for each in values if isinstance(each, type | FunctionType) and each.__module__.startswith("casemate")]
    return [f"{each.__module__}.{each.__qualname__}" for each in ours]


def reference(room: str) -> str:
    """The page of a package, for mkdocstrings."""
    entries = "\n\n".join(f"::: {name}" for name in public_names(room))
    return f"# {room}\n\n{ROOMS[room]}\n\n{entries}\n"


def stage(source: Path) -> None:
    """Copy the pages and what they link to, and write the pages of the reference."""
    shutil.rmtree(source, ignore_errors=True)
    for page in pages():
        for file in (page, *linked(page)):
            target = source / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    shutil.copytree(ASSETS, source / ASSETS.relative_to(ROOT))
    (source / "reference").mkdir()
    for room in ROOMS:
        write_text(source / "reference" / f"{room}.md", reference(room))
    rows = "\n".join(f"- [{room}]({room}.md): {words}" for room, words in ROOMS.items())
    write_text(source / "reference" / "index.md", f"# Reference of the library\n\n{rows}\n")


def main() -> None:
    """Build the site; a warning is an error."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    stage(SOURCE)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(ROOT / "zensical.toml")]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
