"""The site of the documentation: it builds without a warning or a network, and anybody can read it in a browser."""

import subprocess
import sys
from pathlib import Path

import pytest

from browser import DESKTOP, PHONE, needs_browser, opened

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site" / "html"
READ = ("index.html", "docs/reading-a-verdict.html", "docs/attacks.html", "reference/casemate.hardening.html")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def built() -> str:
    """What the build says; a warning fails it."""
    pytest.importorskip("zensical")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "site.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_build_warns_of_nothing(built: str) -> None:
    assert "No issues found" in built
    assert "griffe" not in built


def test_the_reference_has_every_public_class() -> None:
    import casemate

    page = (SITE / "reference" / "casemate.html").read_text(encoding="utf-8")
    for name in ("PGD", "Classifier", "evaluate", "Evaluation", "harden"):
        module = getattr(casemate, name).__module__
        assert f'id="{module}.{name}"' in page


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("page", READ)
def test_anybody_can_read_it(page: str, width: int, dark: bool) -> None:
    """Nothing comes from elsewhere, it does not scroll sideways, and axe finds nothing serious."""
    with opened(
        (SITE / page).as_uri(), width=width, dark=dark, own=lambda url: url.startswith((SITE.as_uri(), "data:"))
    ) as seen:
        assert seen.too_wide() == []
        assert seen.barriers() == []
