"""The report: one file that asks for nothing, figures with their numbers, sentences that follow from numbers."""

import copy
import csv
import io
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from artifacts import world
from browser import DESKTOP, PHONE, needs_browser, read
from casemate.data import fashion_mnist
from casemate.engine import Artifact
from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate.progress import NULL_OBSERVER
from casemate.report import charts
from casemate.report.charts import Figure
from casemate_study import reference as references
from casemate_study.claims import CLAIMS
from casemate_study.experiments.catalogue import EXPERIMENTS, models_of
from casemate_study.experiments.scales import SCALES
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E3_CLIPPINGS, E4_STEP_SIZES, e4_prefix
from casemate_study.reference import CommittedRun, Reference, reference_for, reference_json
from casemate_study.report import build, comparison, markdown, overview, paper_comparison, sentences, views
from casemate_study.report.build import build_report
from casemate_study.report.figures import all_figures
from casemate_study.results.models import ModelResults
from casemate_study.results.reading import read_as
from casemate_study.run import PlannedStudy, plan_study, run_study
from test_study import SMOKE, TINY, casemate, driver_for, finished

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
FIGURES = (
    *("figure-02", "figure-03", "figure-04", "figure-06", "figure-07", "figure-08", "figure-09", "figure-10"),
    *("figure-11", "figure-12", "figure-13", "figure-14", "figure-15", "figure-16", "figure-16-saturated"),
    *("figure-17", "figure-17-extended", "training", "bim-adversarial", "neighbours", "defences", "diagnosis"),
    *("masking", "hypotheses", "targeted"),
)
"""The paper's by number, then ours."""

Artifacts = Mapping[str, Artifact]


@dataclass(frozen=True)
class Done:
    """A finished study, what it is judged by, and its figures."""

    study: PlannedStudy
    artifacts: dict[str, Artifact]
    models: dict[str, ModelResults]
    figures: list[Figure]

    def figure(self, name: str) -> Figure:
        """One of its figures."""
        (found,) = [figure for figure in self.figures if figure.name == name]
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """A whole study, smaller than smoke: the only one of these tests, and its figures are drawn once."""
    scale = TINY | {
        "epochs": 2,
        "kept_epochs": (1, 2),
        "test_images": 40,
        "attacked_images": 3,
        "targeted_images": 40,
        "pgd_restarts": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", replace(SCALES["smoke"], **scale))
        store = tmp_path_factory.mktemp("store")
        # in a process of its own, where types are not checked at every call: that takes half the time
        finished(casemate(*SMOKE, "--dataset", "digits", "--store", store, driver=driver_for(scale)))
        settings: dict[str, Any] = {"dataset": "digits", "only": [], "seed": 0, "store": store, "device": "cpu"}
        study = plan_study(scale="smoke", data_dir=None, observer=NULL_OBSERVER, **settings)
        assert study.plan.missing == []
        artifacts = run_study(study, threads=1, data_dir=None, observer=NULL_OBSERVER)
        models = comparison.measured_models(study.setup, artifacts)
        yield Done(study, artifacts, models, all_figures(artifacts, models))


class Page(HTMLParser):
    """What a page refers to and shows; its tables cell by cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.items: list[str] = []
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in = tag
        elif tag == "li":
            self.items.append("")
            self._in = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._in:
            self._in = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in == "li":
            self.items[-1] += data
        elif self._in is not None:
            self.tables[-1][-1][-1] += data

    @property
    def figures(self) -> list[str]:
        """What a screen reader reads of each figure, in order."""
        return [attrs["aria-label"] or "" for tag, attrs in self.tags if tag == "svg"]

    @property
    def addresses(self) -> list[str]:
        """All that the page refers to."""
        names = ("src", "href", "srcset", "xlink:href")
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names]

    def table(self, *head: str) -> list[list[str]]:
        """The rows of the table whose header begins like that."""
        (found,) = [table for table in self.tables if table and tuple(table[0][: len(head)]) == head]
        return found[1:]


@contextmanager
def _replaced(committed: Path | None, figures: Sequence[Figure]) -> Generator[list[tuple[Any, ...]]]:
    """Reports find the committed runs in this folder, and show these figures; what figures were asked for is noted."""
    asked: list[tuple[Any, ...]] = []

    def drawn(*arguments: Any) -> list[Figure]:
        asked.append(arguments)
        return list(figures)

    with pytest.MonkeyPatch.context() as patch:
        _commit_to(patch, committed or Path("/nowhere"))
        patch.setattr(build, "all_figures", drawn)
        yield asked


def _commit_to(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The package's data lie in this folder, as far as committed runs are concerned."""

    def files(package: str) -> Path:
        assert package == "casemate_study"
        return folder

    patch.setattr(references, "resources", SimpleNamespace(files=files))


def _built(study: PlannedStudy, artifacts: Artifacts, out: Path, committed: Path | None = None) -> Page:
    """A report without figures."""
    with _replaced(committed, []):
        return Page(build_report(study, artifacts, out).read_text())


@pytest.fixture(scope="module")
def built(done: Done, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """The folder of the report, and its page."""
    out = tmp_path_factory.mktemp("report")
    with _replaced(None, done.figures) as asked:
        page = Page(build_report(done.study, done.artifacts, out).read_text())
    assert asked == [(done.artifacts, done.models)]
    return out, page


# The page -------------------------------------------------------------------------------------------------------------
def test_the_page_refers_to_nothing_outside_itself(built: tuple[Path, Page]) -> None:
    """No script, no style sheet, no address that is not in the file; and a policy that forbids them."""
    _, page = built
    assert not [name for name, _ in page.tags if name in ("script", "link", "iframe", "object", "embed")]
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= ids
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_anybody_can_read_the_page(built: tuple[Path, Page], width: int, dark: bool) -> None:
    folder, _ = built
    with read(folder / "report.html", width=width, dark=dark) as page:
        page.expect_readable()


def test_a_small_scale_and_other_data_say_that_they_decide_nothing(done: Done, tmp_path: Path) -> None:
    """The banners: scale smoke, and digits in place of Fashion-MNIST."""
    page = _built(done.study, done.artifacts, tmp_path)
    assert "can confirm or refute" in page.text
    assert "say how these small models behave, not how the paper's would" in " ".join(page.text.split())
    other = replace(done.study, dataset=replace(done.study.dataset, fallback_for="Fashion-MNIST"))
    assert "Not the study's data" in _built(other, done.artifacts, tmp_path).text


def test_a_report_of_nothing_and_of_a_part_names_what_is_missing(done: Done, tmp_path: Path) -> None:
    """Whatever subset of artifacts is finished, there is a report, and it says what it lacks."""
    some = ("data/samples", "E1/train", "E1/clean", "E3/ball/ce", "E11/fgsm/ce", "E6/clean", "E6/pgd", "E9-100/divided")
    for part in ({}, {name: done.artifacts[name] for name in some}):
        page = _built(done.study, part, tmp_path)
        assert f"{len(done.artifacts) - len(part)} artifacts are still to be computed" in " ".join(page.text.split())
        assert {row[2] for row in page.table("experiment", "the paper says")} >= {"not measured"}
        assert "No defence has been measured yet." in page.text
    assert [row[0] for row in page.table("model", "clean", "FGSM 0.05")] == [
        "E1, no early stopping",
        done.models["E6"].title,
    ]


def test_the_figures_of_a_part_are_those_whose_pieces_are_there(done: Done) -> None:
    """One figure from one artifact; none of several models from one."""
    part = {name: done.artifacts[name] for name in ("E1/clean", "E2/fgsm/ce", "E5/samples", "E6/neighbours")}
    models = comparison.measured_models(done.study.setup, part)
    names = [figure.name for figure in all_figures(part, models)]
    assert names == ["figure-02", "figure-03", "figure-04", "figure-08", "figure-11", "figure-12", "neighbours"]
    assert all_figures({}, {}) == []


def test_markup_in_stored_words_is_shown_not_obeyed(done: Done, tmp_path: Path) -> None:
    """A class called <script> stays a word; so does a model's title."""
    clean = done.artifacts["E1/clean"]
    facts = copy.deepcopy(clean.facts)
    facts["provenance"] |= {"processor": "<script>alert(1)</script>", "finished": "9999"}
    page = _built(done.study, {**done.artifacts, "E1/clean": Artifact(clean.key, clean.folder, facts)}, tmp_path)
    assert "script" not in [name for name, _ in page.tags]
    assert "<script>alert(1)</script>" in page.text


# Figures --------------------------------------------------------------------------------------------------------------
def test_words_round_axes_of_a_fixed_shape_lie_within_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """In both files: titles and labels have found their room before the first is written."""
    extents: list[tuple[float, ...]] = []
    with charts.styled():
        drawing, axes = charts.canvas(1, 2, 9, 5)
        for place in axes[0]:
            place.imshow(np.zeros((10, 10)))
            place.set_xticks(range(10), ["a long label"] * 10, rotation=60)
            place.set_title("title")
        save = drawing.savefig

        def saved(*arguments: Any, **settings: Any) -> None:
            save(*arguments, **settings)
            extents.append(drawing.get_tightbbox().extents)

        monkeypatch.setattr(drawing, "savefig", saved)
        charts.render_figure(drawing, "matrices")
    assert len(extents) == 2
    for left, bottom, right, top in extents:
        assert min(left, bottom) >= 0
        assert right <= 9
        assert top <= 5


def test_every_figure_is_there_with_words_and_numbers(done: Done, built: tuple[Path, Page]) -> None:
    """Each figure has alternative text in the page, and SVG, PNG and CSV beside it."""
    out, page = built
    assert tuple(figure.name for figure in done.figures) == FIGURES
    assert page.figures == [figure.alt for figure in done.figures]
    for figure in done.figures:
        assert len(figure.alt) > 30, figure.name
        assert figure.title
        assert figure.caption.strip().endswith(".")
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{ending}" for name in FIGURES for ending in ("svg", "png", "csv")
    }
    for figure in done.figures:
        assert (out / "figures" / f"{figure.name}.svg").read_bytes().startswith(b"<?xml")
        assert (out / "figures" / f"{figure.name}.png").read_bytes().startswith(b"\x89PNG")
        rows = list(csv.reader(io.StringIO((out / "figures" / f"{figure.name}.csv").read_text())))
        assert len(rows) == len(figure.rows) + 1 > 1
        assert {len(row) for row in rows} == {len(figure.columns)}
        assert rows[0] == list(figure.columns)
        for text, row in zip(rows[1:], figure.rows, strict=True):
            for written, value in zip(text, row, strict=True):
                assert written == str(value) or float(written) == pytest.approx(value, rel=1e-5)
    downloads = [attrs for tag, attrs in page.tags if tag == "a" and "download" in attrs]
    assert len(downloads) == len(FIGURES)


def _stored(points: Sequence[Mapping[str, Any]], axis: str) -> list[tuple[Any, ...]]:
    """The points of a stored curve as a figure's CSV has them."""
    rows: list[tuple[Any, ...]] = []
    for point in points:
        last, worst, loss = point["last"], point["worst"], point["loss"]
        numbers = [each[key] for each in (last, worst, loss) for key in ("value", "low", "high")]
        rows.append((point[axis], last["n"], *numbers))
    return rows


def _curve(artifacts: Artifacts, name: str, axis: str = "eps") -> list[tuple[Any, ...]]:
    return _stored(artifacts[name].result["points"], axis)


def _grouped(figure: Figure, by: int) -> dict[tuple[Any, ...], list[tuple[Any, ...]]]:
    """A figure's rows by their first columns."""
    found: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in figure.rows:
        found.setdefault(row[:by], []).append(row[by:])
    return found


def test_the_numbers_under_the_figures_of_e1_are_the_stored_ones(done: Done) -> None:
    """Figures 12, 13, 14, 17, training and masking: every stored point, and nothing else."""
    artifacts = done.artifacts
    assert _grouped(done.figure("figure-12"), 2) == {
        ("E1", TITLES[loss]): _curve(artifacts, f"E2/fgsm/{loss}") for loss in LOSSES
    }
    assert _grouped(done.figure("figure-13"), 2) == {
        (f"clip {setting['clip']}, {setting['steps']} iterations", TITLES[loss]): _curve(artifacts, f"E3/{clip}/{loss}")
        for clip, setting in E3_CLIPPINGS.items()
        for loss in LOSSES
    }
    assert _grouped(done.figure("figure-14"), 2) == {
        (f"step {size}", TITLES[loss]): _curve(artifacts, f"{e4_prefix(size)}/{loss}", "steps")
        for size in E4_STEP_SIZES
        for loss in LOSSES
    }
    assert _grouped(done.figure("figure-17"), 2) == {
        (words, TITLES[loss]): _curve(artifacts, f"{name}/fgsm/{loss}")
        for name, words in (("E2", "E1, over-fitted"), ("E11", "E11, early-stopped"))
        for loss in LOSSES
    }
    history = artifacts["E1/train"].result["history"]
    assert [row[0] for row in done.figure("training").rows] == [row["epoch"] for row in history]
    assert [row[4] for row in done.figure("training").rows] == [row["val_loss"] for row in history]
    shown = {row[:3]: row[4] for row in done.figure("masking").rows}
    for epoch in (1, 2):
        result = artifacts[f"E1/epoch-{epoch:03d}"].result
        for loss in LOSSES:
            zero = result["zero_gradients"][loss]["value"]
            assert shown[epoch, "exactly zero gradient", TITLES[loss]] == zero
            for attack, by_loss in result["attacks"].items():
                assert shown[epoch, attack, TITLES[loss]] == by_loss[loss]["last"]["value"]


@pytest.mark.parametrize(
    ("figure", "names", "columns"),
    [
        ("figure-15", ("E1", "E5", "E6", "E7", "E8"), [("FGSM", "fgsm", loss) for loss in LOSSES]),
        (
            "figure-17-extended",
            ("E1", "E11", "E1+", "E12-0.0001", "E13-regularised", "E13-mix", "E13-resnet"),
            [("FGSM", "fgsm", loss) for loss in LOSSES],
        ),
        *(
            (
                name,
                ("E1", "E9-1", "E9-100", "E9-teacher-100", "E10-1", "E10-100"),
                [("FGSM", "fgsm", loss), ("BIM, clip ball", "ball", loss), ("BIM, clip range", "range", loss)],
            )
            for name, loss in (("figure-16", "ce"), ("figure-16-saturated", "prob-ce"))
        ),
        (
            "bim-adversarial",
            ("E1", "E6"),
            [("FGSM", "fgsm", "ce"), ("BIM, clip ball", "ball", "ce"), ("BIM, clip range", "range", "ce")],
        ),
    ],
)
def test_the_numbers_under_figures_of_several_models_are_the_stored_ones(
    done: Done, figure: str, names: Sequence[str], columns: Sequence[tuple[str, str, str]]
) -> None:
    """Which models, attacks and losses; and every stored point of theirs."""
    assert _grouped(done.figure(figure), 3) == {
        (words, done.models[name].title, TITLES[loss]): _curve(
            done.artifacts, done.models[name].model.artifact(measure, loss)
        )
        for words, measure, loss in columns
        for name in names
    }


def test_the_caption_of_several_attacks_names_the_images_under_each(done: Done) -> None:
    """The original under FGSM and BIM over eps, the defence under what all models meet: other numbers of images."""
    scale = done.study.setup.scale
    caption = done.figure("bim-adversarial").caption
    assert f"n = {scale.fgsm_images} under FGSM; " in caption
    sizes = " or ".join(map(str, sorted({scale.attacked_images, scale.bim_images})))
    for clip in ("ball", "range"):
        assert f"; {sizes} under BIM, clip {clip};" in caption


def test_the_numbers_under_the_overviews_are_the_stored_ones(done: Done) -> None:
    shown = {row[:2]: row[2:] for row in done.figure("defences").rows}
    assert {title for title, _ in shown} == {each.title for each in done.models.values()}
    for each in done.models.values():
        assert each.clean is not None
        worst = next(measure for title, measure in shown if title == each.title and measure.startswith("worst case"))
        wanted = {
            "clean": each.clean.accuracy,
            "FGSM": each.accuracy_under("fgsm", 0.1),
            "BIM-10, clip ball": each.accuracy_under("ball", 0.1),
            worst: each.worst_case(0.1),
        }
        for measure, estimate in wanted.items():
            assert estimate is not None
            assert shown[each.title, measure] == (estimate.n, estimate.value, estimate.low, estimate.high)
    figure = done.figure("diagnosis")
    assert [row[0] for row in figure.rows] == [each.title for each in done.models.values()]
    for row, each in zip(figure.rows, done.models.values(), strict=True):
        clean = each.clean
        assert clean is not None
        assert row[1:6] == tuple(clean.gap_quantiles[key] for key in ("0.05", "0.25", "0.5", "0.75", "0.95"))
        assert row[6:9] == tuple(clean.zero_gradients[loss].value for loss in LOSSES)
        assert row[9:11] == tuple(angle.value for radius in ("0.01", "0.1") if (angle := clean.alignment[radius]))
        assert row[11] == clean.calibration_error


def _images(artifact: Artifact) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(artifact.path("images.safetensors").read_bytes())


def test_the_numbers_under_pictures_are_those_of_the_pictures(done: Done) -> None:
    """Mean changes of pixels, computed again from the stored images."""
    images = _images(done.artifacts["E5/samples"])
    rows = {row[0]: row for name in ("02", "03", "04", "11") for row in done.figure(f"figure-{name}").rows}
    assert set(rows) == set(images)
    for title, (_, count, changed) in rows.items():
        assert count == len(images[title]) == 8
        assert changed == pytest.approx(np.abs(images[title] - images["original"]).mean())
        assert (changed == 0) == (title == "original")
    near = _images(done.artifacts["E6/neighbours"])
    figure = done.figure("neighbours")
    settings = done.artifacts["E6/neighbours"].result["settings"]
    assert {"clean", *settings} == set(near)
    assert [row[0] for row in figure.rows] == ["original", *(f"limits {title}" for title in settings)]
    for title, facts in settings.items():
        row = next(row for row in figure.rows if row[0] == f"limits {title}")
        assert row[2] == pytest.approx(np.abs(near[title] - near["clean"]).mean())
        assert f"{title}: pixels from {facts['lowest']:.2f} to {facts['highest']:.2f}" in figure.caption


def test_the_numbers_under_the_targeted_attacks_are_the_stored_ones(done: Done) -> None:
    shown = {row[:3]: row[3:] for row in done.figure("targeted").rows}
    wanted: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for name in ("E1", "E11", "E6"):
        result = done.artifacts[f"E13/targeted/{name}"].result
        for true, rates in zip(result["classes"], result["rates"], strict=True):
            for target, rate in zip(result["classes"], rates, strict=True):
                if rate is not None:
                    wanted[name, true, target] = tuple(rate[key] for key in ("n", "value", "low", "high"))
    assert shown == wanted != {}


def _targeted(artifact: Artifact, classes: Sequence[str], rates: Mapping[tuple[str, str], float]) -> Artifact:
    """A matrix of targeted attacks: these rates, of 10 images each; every other pair untried."""
    facts = copy.deepcopy(artifact.facts)
    table: list[list[Any]] = [[None] * len(classes) for _ in classes]
    for (true, target), value in rates.items():
        estimate = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 10}
        table[classes.index(true)][classes.index(target)] = estimate
    overall = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10} if rates else None
    facts["result"] |= {"classes": list(classes), "rates": table, "overall": overall}
    return Artifact(artifact.key, artifact.folder, facts)


def test_shirt_against_t_shirt_is_answered_in_words(done: Done) -> None:
    """The pair that the paper asks for, by its numbers, both ways."""
    shirt, other = "Shirt", "T-shirt/top"
    assert {shirt, other} <= set(fashion_mnist.CLASSES)
    artifact = done.artifacts["E13/targeted/E6"]
    for there, back in ((0.8, 0.3), (0.3, 0.8)):
        rates = {(shirt, other): there, (other, shirt): back}
        artifacts = {"E13/targeted/E6": _targeted(artifact, fashion_mnist.CLASSES, rates)}
        figure = overview.targeted_figure(artifacts, done.models)
        assert figure is not None
        assert f"{done.models['E6'].title}: shirt to T-shirt {100 * there:.1f} %" in figure.caption
        assert f"back {100 * back:.1f} %" in figure.caption


def test_a_matrix_of_nothing_has_words_too(done: Done) -> None:
    """A network that is always wrong leaves nothing to attack."""
    artifact = done.artifacts["E13/targeted/E6"]
    figure = overview.targeted_figure({"E13/targeted/E6": _targeted(artifact, fashion_mnist.CLASSES, {})}, done.models)
    assert figure is None or len(figure.alt) > 30


# Tables ---------------------------------------------------------------------------------------------------------------
def _planned(done: Done) -> list[str]:
    """The titles of all models of the plan."""
    return [model.title for model in models_of(list(EXPERIMENTS.values()), done.study.setup)]


def test_every_model_of_the_plan_has_its_row(done: Done, built: tuple[Path, Page]) -> None:
    """In the table of all models, in what misleads attacks, in the short table and in the figures of all models."""
    out, page = built
    planned = _planned(done)
    assert len(planned) == len(set(planned)) > 20
    assert list(done.models) == [model.name for model in models_of(list(EXPERIMENTS.values()), done.study.setup)]
    assert [row[0] for row in page.table("model", "clean", "FGSM 0.05")] == planned
    assert [row[0] for row in page.table("model", "loss", "calibration error")] == planned
    assert [row[0] for row in comparison.summary_table(done.models).rows] == planned
    for name in ("summary.md", "results.md"):
        text = (out / name).read_text()
        assert all(f"| {title} |" in text for title in planned), name


def test_the_whole_evaluation_of_the_papers_models_is_shown(done: Done, built: tuple[Path, Page]) -> None:
    """Robust accuracy, verdict and what was raised, as stored; smaller scales leave our own models out."""
    rows = {row[0]: row for row in built[1].table("model", "clean", "FGSM 0.1")}
    judged = {name: each.whole_evaluation(0.1) for name, each in done.models.items()}
    assert list(rows) == [done.models[name].title for name, found in judged.items() if found is not None]
    assert {name for name, found in judged.items() if found is None} == {
        name for name, each in done.models.items() if each.model.ours
    }
    for name, found in judged.items():
        if found is not None:
            row = rows[done.models[name].title]
            stored = done.artifacts[f"{name}/evaluation"].result
            assert row[4] == f"{Estimate.from_json(stored['robust_accuracy'][-1])}"
            assert row[5] == comparison.withstood(found.verdict)
            assert row[6] == stored["verdict"] == found.verdict.word
            grave = [each["check"] for each in stored["checks"] if each["state"] in ("voids", "weakens")]
            assert row[7] == (", ".join(grave) or "-")


def test_the_table_of_models_shows_the_stored_numbers(done: Done, built: tuple[Path, Page]) -> None:
    """Every cell of every row."""
    rows = {row[0]: row for row in built[1].table("model", "clean", "FGSM 0.05")}
    for each in done.models.values():
        clean, seconds = each.clean, each.seconds
        assert clean is not None
        assert seconds is not None
        estimates = [clean.accuracy]
        estimates += [each.accuracy_under(measure, eps) for measure in ("fgsm", "ball") for eps in (0.05, 0.1, 0.2)]
        estimates.append(each.worst_case(0.1))
        cells = [f"{100 * e.value:.1f} % ({100 * e.low:.1f} to {100 * e.high:.1f})" for e in estimates if e]
        assert len(cells) == 8
        tail = [f"{clean.loss.value:.3f}", f"{seconds[1]:.1f}", f"{seconds[0]:,.0f}"]
        assert rows[each.title] == [each.title, *cells, *tail]


def test_what_misleads_attacks_is_shown_as_stored(done: Done, built: tuple[Path, Page]) -> None:
    rows = {row[0]: row for row in built[1].table("model", "loss", "calibration error")}
    e6 = done.models["E6"]
    clean, pgd = e6.clean, e6.artifact("pgd")
    assert clean is not None
    assert pgd is not None
    left = [e6.accuracy_under("fgsm", 0.1, loss) for loss in LOSSES]
    zeros = [clean.zero_gradients[loss].value for loss in LOSSES]
    assert rows[e6.title][6:9] == [f"{100 * share:.1f} %" for share in zeros]
    assert rows[e6.title][9:11] == [
        f"{angle.value:.0f}\N{DEGREE SIGN}" for r in ("0.01", "0.1") if (angle := clean.alignment[r])
    ]
    assert rows[e6.title][11:14] == [f"{100 * each.value:.1f} %" for each in left if each is not None]
    each = pgd.result["points"][-1]["each"]
    assert rows[e6.title][14:] == [f"{100 * each[loss]['value']:.1f} %" for loss in ("ce", "margin")]
    random_one = done.models["E5-stochastic-affine"]
    assert rows[random_one.title][14:] == ["-", "-"]


def test_students_on_divided_logits_and_the_search_have_their_tables(done: Done, built: tuple[Path, Page]) -> None:
    page = built[1]
    divided = page.table("student", "median gap")
    assert [row[0] for row in divided] == [done.models[name].title for name in ("E9-100", "E10-100")]
    point = next(p for p in done.artifacts["E9-100/divided"].result["points"] if p["eps"] == 0.05)["last"]
    assert divided[0][5] == f"{100 * point['value']:.1f} % ({100 * point['low']:.1f} to {100 * point['high']:.1f})"
    (row,) = page.table("network", "dropout times")
    trained = done.artifacts["E13/search/student-8x1-1"]
    assert row[:3] == ["student-8x1", "1", f"{trained.result['parameters']:,}"]


def test_the_search_is_ordered_by_the_validation_split(done: Done) -> None:
    """The network that the test part likes best is not put first for it."""
    (start,) = [name for name in done.artifacts if name.startswith("E13/search/")]
    scale = replace(done.study.setup.scale, students=("student-8x1", "student-16x1"))
    setup = replace(done.study.setup, scale=scale)
    for first, second in ((0.9, 0.8), (0.8, 0.9)):
        artifacts: dict[str, Artifact] = {}
        for network, share, test in (("student-8x1", first, 0.1), ("student-16x1", second, 0.99)):
            name = start.replace("student-8x1", network)
            trained, found = done.artifacts[start], done.artifacts[start.replace("/search/", "/found/")]
            facts, judged = copy.deepcopy(trained.facts), copy.deepcopy(found.facts)
            facts["result"]["history"][facts["result"]["best_epoch"] - 1]["val_accuracy"] = share
            judged["result"]["accuracy"] |= {"value": test}
            artifacts[name] = Artifact(trained.key, trained.folder, facts)
            artifacts[name.replace("/search/", "/found/")] = Artifact(found.key, found.folder, judged)
        table = comparison.search_table(setup, artifacts)
        assert table is not None
        assert table.rows[0][0] == ("student-8x1" if first > second else "student-16x1")


# The verdicts and the claims ------------------------------------------------------------------------------------------
def test_every_defence_has_its_verdict_in_the_page_and_in_the_results(done: Done, built: tuple[Path, Page]) -> None:
    """A verdict on every model, and the paired test for each but E1, in order, each as its rules give it."""
    out, page = built
    advices = comparison.advices(done.models)
    assert [name for name, _ in advices] == [name for name in done.models if name != "E1"]
    words = {f"{advice.word} {advice.helps} {advice.sentence}" for _, advice in advices}
    listed = [item.strip() for item in page.items if item.strip() in words]
    assert listed == [f"{advice.word} {advice.helps} {advice.sentence}" for _, advice in advices]
    text = (out / "results.md").read_text()
    assert all(f"- {advice.sentence}\n" in text for _, advice in advices)
    verdicts = {each.title: each.verdict(0.1) for each in done.models.values()}
    assert all(verdicts.values())
    helps = {done.models["E1"].title: ""} | {done.models[name].title: advice.helps for name, advice in advices}
    assert [row[-3:] for row in comparison.summary_table(done.models).rows] == [
        (comparison.withstood(verdict), verdict.word, helps[title]) for title, verdict in verdicts.items() if verdict
    ]
    convention = next(verdict.convention for verdict in verdicts.values() if verdict)
    assert convention in page.text


def test_every_claim_has_its_verdict_in_the_page_and_in_the_results(done: Done, built: tuple[Path, Page]) -> None:
    out, page = built
    claims = comparison.judged_claims(done.models, done.artifacts, decides=False)
    rows = page.table("experiment", "the paper says")
    assert [row[1] for row in rows] == [claim.says for claim in CLAIMS]
    for row, each in zip(rows, claims, strict=True):
        assert row[0] == f"{each.claim.experiment} ({each.claim.where})"
        assert row[2] == (each.found if each.found == "not measured" else f"here: {each.found}")
        assert each.because in row[-1]
    text = (out / "results.md").read_text()
    for each in claims:
        start = f"| {each.claim.experiment} ({each.claim.where}) | {each.claim.says} | {each.verdict} | "
        lines = [line for line in text.splitlines() if line.startswith(start) and line.endswith(f"{each.because} |")]
        assert bool(lines) == (each.verdict != "not measured")


def _deciding(study: PlannedStudy) -> PlannedStudy:
    return replace(study, setup=replace(study.setup, scale=replace(study.setup.scale, decides=True)))


@pytest.mark.slow
def test_other_data_decide_no_claim_at_any_scale(done: Done, tmp_path: Path) -> None:
    """The digits at a scale that would decide; the study's own data do."""
    study = _deciding(done.study)
    for name, decided in (("digits", False), ("fashion-mnist", True)):
        page = _built(replace(study, dataset=replace(study.dataset, name=name)), done.artifacts, tmp_path)
        verdicts = {row[2] for row in page.table("experiment", "the paper says")}
        assert ("holds" in verdicts or "does not hold" in verdicts) == decided


@pytest.mark.slow
def test_numbers_on_other_data_are_not_compared_without_a_word(done: Done, tmp_path: Path) -> None:
    """`--dataset digits` at a scale that decides."""
    rows = _built(_deciding(done.study), done.artifacts, tmp_path).table("what", "paper")
    assert rows
    assert all("Another data set than the paper's Fashion-MNIST: this decides nothing." in row[4] for row in rows)


def test_the_results_hold_all_tables(done: Done, built: tuple[Path, Page]) -> None:
    """results.md: models, verdicts, claims, numbers, what misleads, students, search, epochs, and how it was made."""
    text = (built[0] / "results.md").read_text()
    for table in (
        comparison.model_table(done.models, None),
        comparison.diagnosis_table(done.models),
        comparison.distillation_table(done.models),
        comparison.search_table(done.study.setup, done.artifacts),
    ):
        assert table is not None
        assert markdown.grid(table.head, table.rows) in text
        assert table.note in text
    for row in paper_comparison.comparisons(done.artifacts, done.study.setup.scale, None):
        assert f"| {row.what} | {row.paper} | {row.ours} |" in text
    assert "| E1 after epoch |" in text
    for file in ("results.md", "summary.md"):
        assert "\n`casemate study --scale smoke`, scikit-learn digits, seed 0, " in (built[0] / file).read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)


def test_the_results_of_a_part_name_the_experiments_that_are_whole(done: Done) -> None:
    """What somebody has to type to get the same."""
    names = [task.name for name in ("E2", "E11") for task in EXPERIMENTS[name].tasks(done.study.setup)]
    part = {name: done.artifacts[name] for name in (*names, "E1/train", "E3/ball/ce")}
    text = markdown.summary_markdown(done.study, part, comparison.measured_models(done.study.setup, part))
    assert "\n`casemate study --scale smoke --only E2 E11` and some pieces of E1, E3, " in text


def test_the_summary_for_machines_holds_every_piece(done: Done, built: tuple[Path, Page]) -> None:
    found = json.loads((built[0] / "summary.json").read_text())
    assert found["artifacts"].keys() == done.artifacts.keys()
    assert [each["name"] for each in found["figures"]] == list(FIGURES)
    assert all(each["title"] and each["caption"] for each in found["figures"])
    assert found["artifacts"]["E6/pgd"]["result"] == done.artifacts["E6/pgd"].result


# The committed run at a larger scale ----------------------------------------------------------------------------------
def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 10000}


E1_AT_FULL = {"clean": 0.93, "fgsm": 0.28, "ball": 0.03, "worst": 0.02}


E1_AT_MEDIUM = {"clean": 0.87, "fgsm": 0.25, "ball": 0.01, "worst": 0.0}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "full": {
        "models": {
            "E1": {what: _estimate(value) for what, value in E1_AT_FULL.items()},
            "E6": {"clean": _estimate(0.91), "fgsm": _estimate(0.8)},
        },
        "claims": {CLAIMS[0].says: "holds", CLAIMS[3].says: "does not hold"},
        "compared": {"E1/clean, accuracy": _estimate(0.93), "E2/fgsm/prob-ce, eps 0.1": _estimate(0.39)},
    },
    "medium": {
        "models": {
            name: {what: _estimate(value) for what, value in E1_AT_MEDIUM.items()} for name in ("E1", "E6", "E11")
        },
        "claims": {CLAIMS[0].says: "does not hold", CLAIMS[1].says: "unexplained"},
        "compared": {"E1/clean, accuracy": _estimate(0.87), "E2/fgsm/ce, eps 0.1": _estimate(0.25)},
    },
}
"""Committed runs: the larger knows less."""


def _committed(folder: Path, dataset: str, scales: Sequence[str] = ("full",)) -> Path:
    """A package with the committed runs of these scales."""
    place = folder / "package" / "reference"
    place.mkdir(parents=True)
    for scale in scales:
        content = {"scale": scale, "dataset": dataset, "seed": 0, "eps": 0.1, **RUNS[scale]}
        (place / f"{scale}.json").write_text(json.dumps(content))
    return place.parent


def test_the_committed_run_stands_beside_the_numbers_of_a_smaller_one(done: Done, tmp_path: Path) -> None:
    """Four columns of every model, dashes where that run has none; its verdict on every claim; the paper's numbers."""
    page = _built(done.study, done.artifacts, tmp_path, _committed(tmp_path, "digits"))
    assert "repeat our committed results on the same data;" in " ".join(page.text.split())
    (head,) = [table[0] for table in page.tables if table and table[0][:3] == ["model", "clean", "FGSM 0.05"]]
    assert head[9:13] == ["at scale full: clean", "FGSM 0.1", "BIM 0.1", "worst case 0.1"]
    rows = {row[0]: row[9:13] for row in page.table("model", "clean", "FGSM 0.05")}
    e1, e6 = done.models["E1"].title, done.models["E6"].title
    known = ("93.0 % (92.0 to 94.0)", "28.0 % (27.0 to 29.0)", "3.0 % (2.0 to 4.0)", "2.0 % (1.0 to 3.0)")
    assert rows[e1] == [f"full: {cell}" for cell in known]
    assert rows[e6] == ["full: 91.0 % (90.0 to 92.0)", "full: 80.0 % (79.0 to 81.0)", "-", "-"]
    assert all(cells == ["-"] * 4 for title, cells in rows.items() if title not in (e1, e6))
    claims = page.table("experiment", "the paper says", "verdict", "at scale full")
    verdicts = {row[1]: row[3] for row in claims}
    assert verdicts.pop(CLAIMS[0].says) == "full: holds"
    assert verdicts.pop(CLAIMS[3].says) == "full: does not hold"
    assert set(verdicts.values()) == {"-"}
    stated_rows = page.table("what", "paper", "ours", "ours at scale full", "difference", "why")
    beside = {row[0]: row[3] for row in stated_rows}
    assert beside.pop("E1: test accuracy") == "full: 93.0 % (92.0 to 94.0, n = 10,000)"
    fgsm = "E2: accuracy under FGSM, eps 0.1; softmax probabilities"
    assert beside.pop(fgsm) == "full: 39.0 % (38.0 to 40.0, n = 10,000)"
    assert set(beside.values()) == {"-"}


def test_the_first_sentences_are_those_of_the_numbers(done: Done) -> None:
    """The undefended network, the defences, the claims; each only where it is measured."""
    advices, first = comparison.advices(done.models), done.models["E1"]
    claims = comparison.judged_claims(done.models, done.artifacts, decides=False)
    fgsm, worst = first.accuracy_under("fgsm", 0.1), first.worst_case(0.1)
    assert first.clean
    assert fgsm
    assert worst
    undefended, defended, said = views.lead(done.models, advices, claims)
    for each in (first.clean.accuracy, fgsm, worst):
        assert percent(each.value) in undefended
    assert f"Of {len(advices)} defended models" in defended
    helping = [name for name, advice in advices if advice.helps == "helps"]
    assert f"with {len(helping)} of them" in defended if helping else "None helps" in defended
    assert f"Of {len(CLAIMS)} statements" in said
    numbers = [int(each) for each in re.findall(r"(\d+) (?:holds?|do|does|are|is)\b", said)]
    assert sum(numbers) == len(CLAIMS)
    assert views.lead({}, [], []) == []
    one = [replace(claims[0], found=verdict) for verdict in ("unexplained", "holds", "holds")]
    assert views.lead({}, [], one) == [
        "Of 3 statements of the paper by these numbers: 2 hold, 1 is a number that no setting of ours gives."
    ]
    bare = {"E1": ModelResults(first.model, {"E1/clean": done.artifacts["E1/clean"]})}
    (only,) = views.lead(bare, [], [])
    assert only.endswith("of the test images correctly.")


@pytest.mark.slow
def test_what_the_largest_run_lacks_is_of_the_next_and_says_so(done: Done, tmp_path: Path) -> None:
    """Entry by entry, in all three tables."""
    page = _built(done.study, done.artifacts, tmp_path, _committed(tmp_path, "digits", ("full", "medium")))
    where = "full or medium"
    assert f"on the same data at scale {where}; the name of the scale" in " ".join(page.text.split())
    (head,) = [table[0] for table in page.tables if table and table[0][:3] == ["model", "clean", "FGSM 0.05"]]
    assert head[9] == f"at scale {where}: clean"
    rows = {row[0]: row[9:13] for row in page.table("model", "clean", "FGSM 0.05")}
    medium = [f"medium: {cell}" for cell in ("25.0 % (24.0 to 26.0)", "1.0 % (0.0 to 2.0)", "0.0 % (-1.0 to 1.0)")]
    assert rows[done.models["E1"].title][0] == "full: 93.0 % (92.0 to 94.0)"
    assert rows[done.models["E6"].title] == ["full: 91.0 % (90.0 to 92.0)", "full: 80.0 % (79.0 to 81.0)", *medium[1:]]
    assert rows[done.models["E11"].title] == ["medium: 87.0 % (86.0 to 88.0)", *medium]
    assert rows[done.models["E8"].title] == ["-"] * 4
    claims = page.table("experiment", "the paper says", "verdict", f"at scale {where}")
    verdicts = [row[3] for row in claims]
    assert verdicts[:4] == ["full: holds", "medium: unexplained", "-", "full: does not hold"]
    assert set(verdicts[4:]) == {"-"}
    beside = {row[0]: row[3] for row in page.table("what", "paper", "ours", f"ours at scale {where}")}
    assert beside["E1: test accuracy"] == "full: 93.0 % (92.0 to 94.0, n = 10,000)"
    assert (
        beside["E2: accuracy under FGSM, eps 0.1; stable cross-entropy"] == "medium: 25.0 % (24.0 to 26.0, n = 10,000)"
    )
    assert beside["E1: accuracy of the best class"] == "-"


@pytest.mark.slow
def test_a_run_on_other_data_is_not_shown_beside(done: Done, tmp_path: Path) -> None:
    """The digits, asked for or standing in; the committed run is on Fashion-MNIST."""
    folder = _committed(tmp_path, "fashion-mnist")
    for fallback_for in (None, "Fashion-MNIST"):
        study = replace(done.study, dataset=replace(done.study.dataset, fallback_for=fallback_for))
        page = _built(study, done.artifacts, tmp_path, folder)
        assert not any("at scale" in cell for table in page.tables if table for cell in table[0])


def test_without_a_committed_run_there_is_no_empty_column(built: tuple[Path, Page]) -> None:
    page = built[1]
    assert not any("at scale" in cell for table in page.tables if table for cell in table[0])
    assert page.table("experiment", "the paper says", "verdict", "with further seeds", "because")


def test_what_a_run_leaves_for_later_is_what_it_found(done: Done, built: tuple[Path, Page]) -> None:
    """reference.json: the models' numbers, the verdicts, our numbers beside the paper's, read back by `Reference`."""
    content = json.loads((built[0] / "reference.json").read_text())
    claims = comparison.judged_claims(done.models, done.artifacts, decides=False)
    compared = paper_comparison.comparisons(done.artifacts, done.study.setup.scale, "Fashion-MNIST")
    about = {"scale": "smoke", "dataset": "digits", "seed": 0}
    numbers = {row.name: row.estimate for row in compared}
    assert len(numbers) == len(compared) > 3
    assert content == json.loads(json.dumps(reference_json(done.models, claims, numbers, about)))
    assert content.items() >= about.items()
    assert content["models"].keys() == done.models.keys()
    found = Reference((read_as(CommittedRun, content, "reference.json"),))
    for name, each in done.models.items():
        assert each.clean is not None
        estimates = {
            "clean": each.clean.accuracy,
            "fgsm": each.accuracy_under("fgsm", 0.1),
            "ball": each.accuracy_under("ball", 0.1),
            "worst": each.worst_case(0.1),
        }
        for what, estimate in estimates.items():
            assert estimate is not None
            assert content["models"][name][what] == estimate.as_json()
            assert found.accuracy(name, what) == f"smoke: {estimate}"
    for each in claims:
        known = None if each.verdict == "not measured" else f"smoke: {each.verdict}"
        assert found.claim(each.claim.says) == known
    for row in paper_comparison.comparison_table(compared, found).rows:
        assert row[3] == f"smoke: {row[2]}"
    assert found.accuracy("E99", "clean") is found.claim("The moon is round.") is found.compared("E1") is None


def test_the_runs_shown_beside_are_all_larger_ones_on_the_same_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _commit_to(monkeypatch, tmp_path)
    assert {reference_for(scale, "digits") for scale in SCALES.values()} == {None}
    folder = tmp_path / "reference"
    folder.mkdir()

    def found() -> dict[str, str | None]:
        known = {name: reference_for(scale, "digits") for name, scale in SCALES.items()}
        return {name: each and each.scales for name, each in known.items()}

    for name, others in (
        ("medium", {"smoke": "medium", "quick": "medium", "medium": None, "paper": None, "full": None}),
        (
            "full",
            {"smoke": "full or medium", "quick": "full or medium", "medium": "full", "paper": None, "full": None},
        ),
    ):
        (folder / f"{name}.json").write_text(json.dumps({"scale": name, "dataset": "digits"}))
        assert found() == others
    assert {reference_for(scale, "fashion-mnist") for scale in SCALES.values()} == {None}
    (folder / "full.json").write_text(json.dumps({"scale": "full", "dataset": "fashion-mnist"}))
    assert found() == {"smoke": "medium", "quick": "medium", "medium": None, "paper": None, "full": None}


def test_the_package_s_copies_of_committed_runs_are_the_committed_ones() -> None:
    """src/casemate_study/reference/SCALE.json is docs/results/*/reference.json of that scale."""
    committed: dict[str, list[Path]] = {}
    for path in sorted(RESULTS.glob("*/reference.json")):
        committed.setdefault(json.loads(path.read_text())["scale"], []).append(path)
    for place in sorted((ROOT / "src" / "casemate_study" / "reference").glob("*.json")):
        content = json.loads(place.read_text())
        assert content["scale"] == place.stem
        assert place.stem in references.ORDER
        assert content["dataset"] == "fashion-mnist"
        known = {what for numbers in content["models"].values() for what in numbers}
        assert known <= {"clean", "fgsm", "ball", "worst"}, f"{place} was written by another version of the report"
        original = _only(committed.get(place.stem, []), place)
        assert content == json.loads(original.read_text())
        summary = json.loads((original.parent / "summary.json").read_text())
        assert content["compared"] == {row["name"]: row["estimate"] for row in summary["compared"]} != {}


def _only(paths: Sequence[Path], place: Path) -> Path:
    assert len(paths) == 1, f"{place} must have one original in docs/results, has {list(map(str, paths))}"
    return paths[0]


# Sentences ------------------------------------------------------------------------------------------------------------
def _with_accuracy(artifact: Artifact, value: float) -> Artifact:
    """The same curve with every accuracy of the last iterate at `value`, but for the clean one."""
    facts = copy.deepcopy(artifact.facts)
    for point in facts["result"]["points"]:
        if point["eps"]:
            point["last"] |= {"value": value, "low": value - 0.01, "high": value + 0.01}
    return Artifact(artifact.key, artifact.folder, facts)


def _set(artifacts: Artifacts, values: Mapping[str, float]) -> dict[str, Artifact]:
    changed = {
        name: _with_accuracy(artifact, value)
        for start, value in values.items()
        for name, artifact in artifacts.items()
        if name.startswith(start)
    }
    return {**artifacts, **changed}


@pytest.mark.parametrize(("ours", "words"), [(0.636, "lies within our interval"), (0.2, "outside")])
def test_a_number_of_the_paper_is_explained_only_by_an_interval_that_holds_it(
    done: Done, ours: float, words: str
) -> None:
    """The rule of the table's last column."""
    rows = paper_comparison.comparisons(_set(done.artifacts, {"E2/fgsm/": ours}), SCALES["full"], None)
    fgsm = [row for row in rows if row.what.startswith("E2")]
    assert len(fgsm) == len(LOSSES)
    assert all(words in row.why for row in fgsm)
    assert all(row.difference == f"{100 * (ours - 0.636):+.1f} points" for row in fgsm)


@pytest.mark.parametrize(("share", "said"), [(0.0, None), (0.0004, None), (0.0005, "0.1 %"), (0.4, "40.0 %")])
def test_images_without_a_gradient_are_mentioned_if_there_are_any_to_speak_of(
    done: Done, share: float, said: str | None
) -> None:
    facts = copy.deepcopy(done.artifacts["E2/fgsm/prob-ce"].facts)
    facts["result"]["zero_gradients"]["value"] = share
    artifact = replace(done.artifacts["E2/fgsm/prob-ce"], facts=facts)
    (row,) = paper_comparison.comparisons({"E2/fgsm/prob-ce": artifact}, SCALES["full"], None)
    assert row.what.endswith("softmax probabilities")
    words = f"{said} of the images had no gradient to follow under this loss."
    assert row.why.endswith(words) if said else "no gradient" not in row.why


def test_a_scale_that_cannot_decide_says_so_of_every_number(done: Done) -> None:
    """And other data than the paper's."""
    for scale, fallback_for, words in (
        (SCALES["quick"], None, "Scale quick cannot decide this: it trains on 800 images."),
        (SCALES["full"], "Fashion-MNIST", "Another data set than the paper's Fashion-MNIST: this decides nothing."),
    ):
        rows = paper_comparison.comparisons(done.artifacts, scale, fallback_for)
        assert rows
        assert all(row.why.startswith(words) for row in rows)


def test_what_keras_did_is_read_from_its_result() -> None:
    """The sentence on the loss in effect follows the committed numbers."""
    copy_of = ROOT / "src" / "casemate_study" / "experiments" / "keras_reference.json"
    assert json.loads(copy_of.read_text()) == json.loads((ROOT / "benchmarks" / "keras" / "result.json").read_text())
    found = sentences.keras_reference()
    first = sentences.keras_sentences(found)[0]
    assert f"the loss computed from {found.loss_in_effect}" in first
    other = replace(found, loss_in_effect="something else")
    assert "the loss computed from something else" in sentences.keras_sentences(other)[0]


def test_the_page_of_results_repeats_the_committed_ones() -> None:
    """Each block repeats the summary of its folder, or where there is none its results.md; no folder is left out."""
    pattern = r"<!-- results: (\S+) -->\n(.*?)<!-- end of results -->"
    found = re.findall(pattern, (ROOT / "docs" / "results.md").read_text(), re.DOTALL)
    assert {name for name, _ in found} == {path.parent.name for path in RESULTS.glob("*/results.md")}
    for name, block in found:
        summary = RESULTS / name / "summary.md"
        place = summary if summary.is_file() else RESULTS / name / "results.md"
        assert block.strip() == place.read_text().strip(), name


# Synthetic artifacts ------------------------------------------------------------------------------------------------
def _shape(value: Any) -> Any:
    """What a JSON value looks like, without its numbers: names, kinds, and of a list its first element."""
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_shape(each) for each in cast(list[Any], value)[:1]]
    if isinstance(value, bool | str) or value is None:
        return type(value).__name__
    return "number"


def test_the_pieces_of_the_tests_of_claims_look_like_real_ones(done: Done, tmp_path: Path) -> None:
    """Same facts, same results, same tables: what `artifacts` builds is what producers write."""
    made = world(tmp_path, ("E1", "E6", "E5-stochastic-affine", "E11")).artifacts
    assert made.keys() <= done.artifacts.keys()
    for name, artifact in made.items():
        real = done.artifacts[name]
        assert artifact.facts.keys() == real.facts.keys(), name
        assert artifact.facts["kind"] == real.facts["kind"], name
        assert artifact.facts["needs"].keys() == real.facts["needs"].keys(), name
        assert artifact.facts["config"].keys() == real.facts["config"].keys(), name
        assert artifact.facts["provenance"].keys() == real.facts["provenance"].keys(), name
        ours, theirs = _shape(artifact.result), _shape(real.result)
        if artifact.facts["kind"] in ("train", "defend"):
            assert ours.keys() == theirs.keys()
            del ours["stopped_at"], theirs["stopped_at"]
            for row in (*ours["history"], *theirs["history"]):
                del row["processor_seconds"]  # None in results of earlier versions, and here
            for of_versions in ("versions", "fingerprints"):  # some real ones have more versions
                assert ours.pop(of_versions).items() <= theirs.pop(of_versions).items(), name
        assert ours == theirs, name
        files = {path.name for path in artifact.folder.iterdir()}
        if "examples.parquet" in files:
            tables_of = [pl.read_parquet(each.path("examples.parquet")).schema for each in (artifact, real)]
            assert tables_of[0] == tables_of[1], name
