"""The report: one file that asks for nothing, figures with their numbers, sentences that follow from numbers."""

import copy
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from casemate.engine import Piece
from casemate.progress import SILENT
from casemate.report import tables
from casemate.report.build import build_report
from casemate.report.figures import all_figures
from casemate.study.run import Study, plan_study, run_study
from casemate.study.scales import SCALES

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("figure-06", "figure-07", "training", "figure-08", "figure-09", "figure-10", "figure-12", "figure-13")
FIGURES += ("figure-14", "masking", "figure-17")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, dict[str, Piece]]]:
    """A whole study, smaller than smoke, and its pieces."""
    small = replace(
        SCALES["smoke"],
        train_images=96,
        validation_images=32,
        epochs=2,
        kept_epochs=(1, 2),
        tuned_epochs=1,
        test_images=40,
        fgsm_images=8,
        bim_images=4,
        steps_images=4,
        on_the_way_images=4,
        step_counts=(0, 1, 2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", small)
        store = tmp_path_factory.mktemp("store")
        settings: dict[str, Any] = {"dataset": "digits", "only": [], "seed": 0, "store": store, "device": "cpu"}
        study = plan_study(scale="smoke", data_dir=None, observer=SILENT, **settings)
        yield study, run_study(study, threads=1, data_dir=None, observer=SILENT)


class Page(HTMLParser):
    """What a page refers to and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(finished: tuple[Study, dict[str, Piece]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """The folder of the report, and its page."""
    out = tmp_path_factory.mktemp("report")
    return out, Page(build_report(*finished, out).read_text())


def test_the_page_refers_to_nothing_outside_itself(built: tuple[Path, Page]) -> None:
    """No script, no style sheet, no address that is not in the file; and a policy that forbids them."""
    _, page = built
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed")]
    addresses = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    assert addresses
    assert all(address is not None and address.startswith(("data:", "#")) for address in addresses)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_figure_is_there_with_words_and_numbers(built: tuple[Path, Page]) -> None:
    """Each figure has alternative text in the page, and SVG, PNG and CSV beside it."""
    out, page = built
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == len(FIGURES)
    assert all(len(attrs["alt"] or "") > 30 for attrs in images)
    for name in FIGURES:
        assert (out / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        rows = list(csv.reader(io.StringIO((out / "figures" / f"{name}.csv").read_text())))
        assert len(rows) > 1
        assert all(len(row) == len(rows[0]) for row in rows)
    downloads = [attrs for tag, attrs in page.tags if tag == "a" and "download" in attrs]
    assert len(downloads) == len(FIGURES)


def test_the_numbers_under_a_figure_are_the_stored_ones(finished: tuple[Study, dict[str, Piece]]) -> None:
    """The CSV of figure 12 holds every stored point of E2."""
    _, pieces = finished
    figure = next(each for each in all_figures(pieces) if each.name == "figure-12")
    shown = {(row[1], row[2]): row[4] for row in figure.rows}
    for loss in tables.LOSSES:
        for point in pieces[f"E2/fgsm/{loss}"].result["points"]:
            assert shown[tables.TITLES[loss], point["eps"]] == point["last"]["value"]


def test_a_small_scale_and_other_data_say_that_they_decide_nothing(
    finished: tuple[Study, dict[str, Piece]], tmp_path: Path
) -> None:
    """The banners: scale smoke, and digits in place of Fashion-MNIST."""
    study, pieces = finished
    assert "can confirm or refute" in Page(build_report(study, pieces, tmp_path).read_text()).text
    other = replace(study, dataset=replace(study.dataset, stands_in_for="Fashion-MNIST"))
    assert "Not the study's data" in Page(build_report(other, pieces, tmp_path).read_text()).text


def test_a_report_of_nothing_and_of_a_part_names_what_is_missing(
    finished: tuple[Study, dict[str, Piece]], tmp_path: Path
) -> None:
    """Whatever subset of pieces is finished, there is a report, and it says what it lacks."""
    study, pieces = finished
    some = {name: pieces[name] for name in ("data/samples", "E1/train", "E3/ball/ce", "E11/fgsm/ce")}
    for part in ({}, some):
        text = Page(build_report(study, part, tmp_path).read_text()).text
        assert f"{len(pieces) - len(part)} pieces are still to be computed" in " ".join(text.split())


def test_markup_in_stored_words_is_shown_not_obeyed(finished: tuple[Study, dict[str, Piece]], tmp_path: Path) -> None:
    """A class called <script> stays a word."""
    study, pieces = finished
    clean = pieces["E1/clean"]
    facts = copy.deepcopy(clean.facts)
    facts["result"]["classes"][3] = "<script>alert(1)</script>"
    page = Page(
        build_report(study, {**pieces, "E1/clean": Piece(clean.key, clean.folder, facts)}, tmp_path).read_text()
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text


def _with_accuracy(piece: Piece, value: float) -> Piece:
    """The same curve with every accuracy of the last iterate at `value`, but for the clean one."""
    facts = copy.deepcopy(piece.facts)
    for point in facts["result"]["points"]:
        if point["eps"]:
            point["last"] |= {"value": value, "low": value - 0.01, "high": value + 0.01}
    return Piece(piece.key, piece.folder, facts)


def _set(pieces: Mapping[str, Piece], values: Mapping[str, float]) -> dict[str, Piece]:
    changed = {
        name: _with_accuracy(piece, value)
        for start, value in values.items()
        for name, piece in pieces.items()
        if name.startswith(start)
    }
    return {**pieces, **changed}


def test_sentences_turn_round_when_the_numbers_do(finished: tuple[Study, dict[str, Piece]]) -> None:
    """Which clipping wins and which model keeps more are read off the numbers, not written down."""
    _, pieces = finished
    wide = tables.clipping_sentence(_set(pieces, {"E3/ball/": 0.6, "E3/range/": 0.2}))
    ball = tables.clipping_sentence(_set(pieces, {"E3/ball/": 0.2, "E3/range/": 0.6}))
    assert wide is not None
    assert ball is not None
    assert "no setting here reproduces the paper's order" in wide
    assert ball.endswith("This is the paper's order.")
    early = tables.masking_sentence(_set(pieces, {"E2/fgsm/": 0.3, "E11/fgsm/": 0.5}))
    late = tables.masking_sentence(_set(pieces, {"E2/fgsm/": 0.5, "E11/fgsm/": 0.3}))
    assert early is not None
    assert late is not None
    assert "the early-stopped model keeps more (30.0 % over-fitted, 50.0 % early-stopped)" in early
    assert "the over-fitted model keeps more" in late


@pytest.mark.parametrize(("ours", "words"), [(0.636, "lies within our interval"), (0.2, "outside")])
def test_a_number_of_the_paper_is_explained_only_by_an_interval_that_holds_it(
    finished: tuple[Study, dict[str, Piece]], ours: float, words: str
) -> None:
    """The rule of the table's last column."""
    _, pieces = finished
    rows = tables.comparisons(_set(pieces, {"E2/fgsm/": ours}), SCALES["full"], None)
    fgsm = [row for row in rows if row.what.startswith("E2")]
    assert len(fgsm) == len(tables.LOSSES)
    assert all(words in row.why for row in fgsm)
    assert all(row.difference == f"{100 * (ours - 0.636):+.1f} points" for row in fgsm)


def test_what_keras_did_is_read_from_its_result() -> None:
    """The sentence on the loss in effect follows the committed numbers."""
    reference = tables.keras_reference()
    assert reference == json.loads((ROOT / "benchmarks" / "keras" / "result.json").read_text())
    first = tables.keras_sentences(reference)[0]
    assert f"the loss computed from {reference['loss_in_effect']}" in first
    reference["loss_in_effect"] = "something else"
    assert "the loss computed from something else" in tables.keras_sentences(reference)[0]


def test_the_results_in_the_readme_are_the_committed_ones() -> None:
    """Each block of results in the README repeats a docs/results/*/results.md, word for word."""
    pattern = r"<!-- results: (\S+) -->\n(.*?)<!-- end of results -->"
    found = re.findall(pattern, (ROOT / "README.md").read_text(), re.DOTALL)
    assert {name for name, _ in found} == {
        path.parent.name for path in (ROOT / "docs" / "results").glob("*/results.md")
    }
    for name, block in found:
        assert block.strip() == (ROOT / "docs" / "results" / name / "results.md").read_text().strip()
