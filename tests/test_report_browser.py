"""The reports in a browser: a reader sees the library's numbers, on a desk, on a phone, in the dark and on paper."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from browser import DESKTOP, PHONE, needs_browser, read
from casemate import Evaluation, evaluate, harden
from casemate.evaluation.certified import evaluate_certified
from casemate.evaluation.intervals import percent
from casemate.hardening import FINE_TUNING
from casemate.report.comparison import compare_finished
from casemate.report.comparison_page import write_comparison
from casemate.report.finished_evaluation import read_finished
from conftest import tiny_images
from test_certified_evaluation import IMAGES as CERTIFIED_IMAGES
from test_certified_evaluation import network
from test_record import thirds
from test_results import ATTACKS

pytestmark = [pytest.mark.integration, needs_browser]


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """A model that falls at the larger eps."""
    return evaluate(thirds(), tiny_images(40, noise=90.0), eps=["0.02", "0.3"], attacks=ATTACKS)


@pytest.fixture(scope="module")
def evaluation(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    return found.report(tmp_path_factory.mktemp("evaluation") / "new", name="thirds", data="tiny")


@pytest.fixture(scope="module")
def certification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of certificates."""
    made = evaluate_certified(network(), CERTIFIED_IMAGES, eps=[0.1, 0.2], budget="quick", sample=5)
    return made.report(tmp_path_factory.mktemp("certification") / "new", name="mine", data="these")


@pytest.fixture(scope="module")
def comparison(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a comparison of the evaluation with itself."""
    one = read_finished(evaluation.parent)
    return write_comparison(tmp_path_factory.mktemp("comparison"), compare_finished(one, one), None)


@pytest.fixture(scope="module")
def hardening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a hardening."""
    settings = replace(FINE_TUNING, epochs=1, batch_size=32)
    made = harden(thirds(), tiny_images(200, 3), test=tiny_images(40, 4), eps="0.1", settings=settings, budget="quick")
    return made.report(tmp_path_factory.mktemp("hardening") / "new")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("kind", ["evaluation", "certification", "comparison", "hardening"])
def test_anybody_can_read_it(request: pytest.FixtureRequest, kind: str, width: int, dark: bool) -> None:
    with read(request.getfixturevalue(kind), width=width, dark=dark) as page:
        page.expect_readable()


def test_the_numbers_shown_are_the_librarys(evaluation: Path, found: Evaluation) -> None:
    with read(evaluation) as page:
        said = page.page.locator("#verdict").inner_text().replace("\N{NO-BREAK SPACE}", " ")
        assert percent(found.verdict.number.clean.value) in said
        assert percent(found.verdict.number.robust.value) in said
        rows = page.page.locator("table.measure").first.locator("tbody tr").all_inner_texts()
        numbers = [re.findall(r"[\d.]+ %", row) for row in rows]
        wanted = [found.verdict.number.clean, *(each.number.robust for each in found.verdicts)]
        shares = [percent(each.number.withstood.value) for each in found.verdicts if each.number.withstood is not None]
        of_all = [[percent(part) for part in (each.value, each.low, each.high)] for each in wanted]
        assert numbers == [of_all[0], *([*row, share] for row, share in zip(of_all[1:], shares, strict=True))]
        dots = page.page.locator("table.measure").first.locator(".spot")
        for place, each in enumerate(wanted):
            dot, line = dots.nth(place).bounding_box(), dots.nth(place).locator("..").bounding_box()
            share = (dot["x"] + dot["width"] / 2 - line["x"]) / line["width"]
            assert share == pytest.approx(each.value, abs=0.01)


def test_evidence_is_folded_and_its_link_opens_it(evaluation: Path) -> None:
    with read(evaluation) as page:
        table = page.page.get_by_role("columnheader", name="first to fool")
        assert not table.is_visible()
        page.page.get_by_role("link", name="Attacks").click()
        table.wait_for(state="visible", timeout=5000)


def test_on_paper_all_evidence_is_there(evaluation: Path) -> None:
    with read(evaluation) as page:
        page.page.emulate_media(media="print")
        for name in ("first to fool", "what it is about"):
            assert page.page.get_by_role("columnheader", name=name).first.is_visible(), name
        assert not page.page.get_by_role("navigation").is_visible()


def test_the_dark_page_is_dark(evaluation: Path) -> None:
    """Also its charts, whose text would not be seen otherwise."""
    shades = {}
    for dark in (False, True):
        with read(evaluation, dark=dark) as page:
            ink = page.page.evaluate("getComputedStyle(document.querySelector('figure svg [style*=\"--ink\"]')).fill")
            paper = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
            shades[dark] = [sum(map(int, re.findall(r"\d+", each)[:3])) for each in (ink, paper)]
    assert shades[False][0] < 200 < 600 < shades[False][1]
    assert shades[True][1] < 200 < 600 < shades[True][0]
