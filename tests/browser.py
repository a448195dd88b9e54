"""Debian's Chromium for tests of pages: what a page tries to load from elsewhere, and what a checker of accessibility
finds.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
DESKTOP, PHONE = 1280, 390


@final
@dataclass
class Opened:
    """A page in a browser, what it tried to load from elsewhere, and the errors of its programs."""

    page: Any
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def too_wide(self) -> list[str]:
        """The beginnings of the parts that make the page scroll sideways."""
        return self.page.evaluate(
            """() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
                [...document.querySelectorAll("body *")]
                    .filter(each => each.getBoundingClientRect().right > window.innerWidth && !each.closest(".wide"))
                    .slice(0, 5).map(each => each.outerHTML.slice(0, 200))"""
        )

    def barriers(self) -> list[str]:
        """What axe finds serious or critical for people who use assistive technology, with the first place of each."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(self.page).response["violations"]
        grave = [each for each in found if each["impact"] in ("serious", "critical")]
        return [f"{each['id']}: {each['help']}, {each['nodes'][0]['html'][:200]}" for each in grave]

    def expect_readable(self) -> None:
        """Fail if it is wider than the screen, folded or not, or if axe finds what keeps people out."""
        assert self.too_wide() == []
        self.page.eval_on_selector_all("details", "each => each.forEach(one => one.open = true)")
        assert self.too_wide() == []
        assert self.barriers() == []


def read(page: Path, *, width: int = DESKTOP, dark: bool = False) -> AbstractContextManager[Opened]:
    """A page of a single file in a browser, which may load that file itself only."""
    address = page.as_uri()
    return opened(address, width=width, dark=dark, own=lambda url: url == address or url.startswith("data:"))


@contextmanager
def opened(address: str, *, width: int = DESKTOP, dark: bool = False, own: Callable[[str], bool]) -> Iterator[Opened]:
    """The page at an address, which may load only what is its `own`; nothing from elsewhere, and no error, at the end.

    Whatever else it tries to load is refused and noted.
    """
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        found = Opened(context.new_page())

        def route(each: Any) -> None:
            if own(each.request.url):
                each.continue_()
            else:
                found.elsewhere.append(each.request.url)
                each.abort()

        context.route("**/*", route)
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.goto(address)
        yield found
        assert found.elsewhere == []
        assert found.errors == []
        browser.close()
