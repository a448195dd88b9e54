"""`casemate certify`: numbers, files, page, exit codes, and clear errors for all that can be wrong with the input."""

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from casemate.attacks import PGD, Square
from casemate.certification import Certificate, Smoothing, certify, certify_smoothed
from casemate.errors import ShapeError
from casemate.evaluation import certificates
from casemate.evaluation import certified as module
from casemate.evaluation.certified import evaluate_certified
from casemate.evaluation.intervals import percent
from casemate.evaluation.smoothed import evaluate_smoothed, smoothed_queries
from casemate.models import Classifier, ModelMetadata, save
from conftest import TINY_CLASSES, TINY_SHAPE
from published import problems
from test_certified_evaluation import IMAGES, network
from test_report import Page
from test_study import Run, runner

EPS = ("0.12", "0.26")
FILES = {"report.html", "certification.json", "certified-accuracy.svg", "examples.parquet"}
COMMAND = ("certify", "nets.py:load", "--data", "tiny.npz")
NETS = """
    import torch
    from torch import nn

    def load():
        return torch.nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())

    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(64, 3)

        def forward(self, images):
            return torch.fft.fft(self.dense(images.flatten(1))).real

    def predict(images):
        with open("calls.txt", "a") as calls:
            calls.write(f"{len(images)} ")
        return images.flatten(1)[:, :3]
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with networks and images; two quick attacks in every budget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEMATE_STORE", str(tmp_path / "store"))
    attacks = {"pgd": PGD(eps=0.1, steps=10), "square": Square(eps=0.1, n_queries=20)}
    monkeypatch.setattr(module, "attacks_for", lambda *given, **options: attacks)
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS))
    torch.save(network().network.state_dict(), tmp_path / "weights.pt")
    np.savez(tmp_path / "tiny.npz", images=IMAGES.pixels.numpy(), labels=IMAGES.labels.numpy())
    np.savez(tmp_path / "unlabelled.npz", images=IMAGES.pixels.numpy())
    return tmp_path


def certified(run: Run, *options: object) -> tuple[int, str, str]:
    return run(*COMMAND, "--weights", "weights.pt", "--threads", 1, *options)


def written(folder: Path) -> dict[str, Any]:
    """The certification.json in a folder, which fits its schema."""
    found = json.loads((folder / "certification.json").read_text())
    assert problems(found) == []
    return found


# Bounds and attacks ---------------------------------------------------------------------------------------------------
def test_certified_and_attacked_accuracy_of_the_same_images(run: Run, here: Path) -> None:
    code, out, err = certified(run, "--eps", *EPS, "--sample", 5, "--out", "out")
    assert code == 0, err
    assert {each.name for each in (here / "out").iterdir()} == FILES
    found = written(here / "out")
    assert found["schema"] == "casemate/certification/1"
    expected = evaluate_certified(network(), IMAGES, eps=EPS, sample=5)
    rows = found["radii"]
    assert [each["eps_text"] for each in rows] == ["0.12", "0.26"]
    assert [each["certified_accuracy"] for each in rows] == [each.as_json() for each in expected.certified_accuracy]
    assert [each["robust_accuracy"] for each in rows] == [each.as_json() for each in expected.robust_accuracy]
    for each in rows:
        assert 0 < each["certified_accuracy"]["value"] <= each["robust_accuracy"]["value"]
        assert each["sampled"] + each["not_attacked"] == round(90 * each["certified_accuracy"]["value"])
    assert sum(each["sampled"] for each in rows) == 5
    assert not found["void"]
    assert "5 of the 85 certified images, a random sample (seed 0), were attacked" in " ".join(out.split())
    for number in (*expected.certified_accuracy, *expected.robust_accuracy):
        assert f"{number}" in out
    assert "Certified at eps 0.26" in out
    assert "Report: out/report.html" in out


def test_the_table_has_a_row_for_each_image(run: Run, here: Path) -> None:
    assert certified(run, "--eps", *EPS, "--sample", 5, "--out", "out")[0] == 0
    table = pl.read_parquet(here / "out" / "examples.parquet")
    found = evaluate_certified(network(), IMAGES, eps=EPS, sample=5)
    assert table["index"].to_list() == list(range(90))
    assert table["label"].to_list() == IMAGES.labels.tolist()
    largest = {(False, False): None, (True, False): 0.12, (True, True): 0.26}
    assert table["certified_eps"].to_list() == [largest[one, other] for one, other in found.certified.tolist()]
    smallest = {(False, False): 0.12, (True, False): 0.26, (True, True): None}
    assert table["fooled_at"].to_list() == [smallest[one, other] for one, other in found.robust.tolist()]
    assert table["attacked"].to_list() == found.attacked.any(1).tolist()
    assert set(table["first_success"].drop_nulls()) <= {"pgd", "square"}
    assert (table["first_success"].is_null() == table["fooled_at"].is_null()).all()


def test_what_is_printed_as_json_is_what_is_written(run: Run, here: Path) -> None:
    code, out, err = certified(run, "--eps", *EPS, "--out", "out", "--json", "--budget", "quick", "--seed", 3)
    assert code == 0, err
    found = written(here / "out")
    assert json.loads(out) == {**found, "folder": "out"}
    assert (found["budget"], found["seed"], found["method"], found["sample"]) == ("quick", 3, "crown", 200)
    assert [each["attack"] for each in found["attacks"]] == ["pgd", "square"]


def test_the_report_opens_without_a_network(run: Run, here: Path) -> None:
    assert certified(run, "--eps", *EPS, "--out", "out")[0] == 0
    text = (here / "out" / "report.html").read_text()
    page, found = Page(text), written(here / "out")
    assert len(page.addresses) > 4
    assert all(each.startswith(("data:", "#")) for each in page.addresses)
    assert found["conclusion"] in text
    assert found["notes"][0] in text
    assert 'id="figure-certified-accuracy"' in text
    assert page.table("eps (linf)")[0][:2] == ["0", "100.0 % (95.9 to 100.0)"]
    (words,) = page.figures
    for row in found["radii"]:
        assert f"eps {row['eps']:g}, certified: {percent(row['certified_accuracy']['value'])}" in words
    svg = (here / "out" / "certified-accuracy.svg").read_text()
    assert svg.count("<path") == text.count("<path") > 20


def test_only_the_certificate(run: Run, here: Path) -> None:
    code, out, err = certified(run, "--eps", *EPS, "--no-attack", "--method", "interval", "--out", "out")
    assert code == 0, err
    found = written(here / "out")
    assert (found["budget"], found["attacks"], found["method"]) == (None, [], "interval")
    pixels, labels = IMAGES.tensors()
    for row in found["radii"]:
        assert (row["robust_accuracy"], row["undecided"], row["sampled"]) == (None, None, 0)
        expected = certify(network(), pixels, labels, eps=row["eps"], method="interval")
        assert row["certified_accuracy"] == expected.certified_accuracy.as_json()
    assert "Nothing was attacked" in " ".join(out.split())
    assert "withstood every attack" not in (here / "out" / "report.html").read_text()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(norm: str, run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = {"pgd": PGD(eps=0.1, norm=norm, steps=5)}  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(module, "attacks_for", lambda *given, **options: attacks)
    code, _, err = certified(run, "--norm", norm, "--eps", "0.3", "--out", "out")
    assert code == 0, err
    found = written(here / "out")
    assert found["norm"] == norm
    assert found["radii"][0]["certified_accuracy"]["value"] > 0.5


def test_a_wrong_certificate_is_void(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any, **named: Any) -> Certificate:
        made = certify(*given, **named)
        made.certified[:] = made.clean
        return made

    monkeypatch.setattr(certificates, "certify", wrong)
    code, out, err = certified(run, "--eps", *EPS, "--sample", 20, "--out", "out")
    assert code == 3
    assert "falls short: The certificate is void: attacks fooled " in err
    assert "VOID" in out
    assert "fooled although certified: image " in out
    assert "void" in next(line for line in out.splitlines() if line.startswith(" 0.26"))
    found = written(here / "out")
    assert found["void"]
    assert {each["certified_accuracy"]["value"] for each in found["radii"]} == {0}
    assert len(found["fooled_certified"]) == found["radii"][-1]["contradicted"] > 10
    page = (here / "out" / "report.html").read_text()
    assert found["conclusion"] in page
    assert "verdict red" in page
    assert "certified by crown" not in (here / "out" / "certified-accuracy.svg").read_text()
    code, out, _ = certified(run, "--eps", *EPS, "--sample", 20, "--out", "out", "--json")
    assert (code, json.loads(out)["void"]) == (3, True)


@pytest.mark.parametrize(("least", "code"), [("0.2", 0), ("90%", 3)])
def test_a_least_certified_accuracy(least: str, code: int, run: Run, here: Path) -> None:
    got, _, err = certified(run, "--eps", "0.12", "--no-attack", "--fail-under", least)
    assert got == code, err
    words = "is at least 0.2" if not code else "is below 90%"
    assert "the lower end of the 95 % interval of certified accuracy at eps 0.12" in " ".join(err.split())
    assert words in " ".join(err.split())


# Beforehand -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "steps", "settings"),
    [
        ((), {"certificates", "attacks"}, {"method": "crown", "budget": "standard", "sample": 200}),
        (("--no-attack", "--method", "interval"), {"certificates"}, {"method": "interval", "budget": None}),
        (
            ("--smoothing", "0.2"),
            {"certificates"},
            {"norm": "l2", "sigma": 0.2, "queries": smoothed_queries(90, Smoothing(sigma=0.2))},
        ),
    ],
)
def test_beforehand_settings_and_time(
    options: tuple[str, ...], steps: set[str], settings: dict[str, Any], run: Run, here: Path
) -> None:
    code, out, err = certified(run, *options, "--out", "out", "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert problems(found) == []
    assert {name: found[name] for name in settings} == settings
    assert found["seconds"].keys() == steps
    assert all(each > 0 for each in found["seconds"].values())
    assert not (here / "out").exists()
    code, out, _ = certified(run, *options, "--dry-run")
    assert code == 0
    assert "Would be certified" in out
    assert ("Attacks, if no image is certified or fooled" in out) == ("attacks" in steps)


def test_beforehand_a_black_box_is_not_called(run: Run, here: Path) -> None:
    options = ("--black-box", "--classes", "3", "--smoothing", "0.2", "--data", "tiny.npz")
    code, out, err = run("certify", "nets.py:predict", *options, "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert problems(found) == []
    assert "seconds" not in found
    assert found["queries"] == smoothed_queries(90, Smoothing(sigma=0.2))
    calls = (here / "calls.txt").read_text().split() if (here / "calls.txt").exists() else []
    assert sum(map(int, calls)) <= 32  # what loading and the check of its kind take, and no draws


# Smoothing ------------------------------------------------------------------------------------------------------------
def test_the_smoothed_model_is_certified_and_named(run: Run, here: Path) -> None:
    options = ("--smoothing", "0.2", "--draws", 50, 400, "--alpha", "0.01")
    code, out, err = certified(run, *options, "--eps", "0.1", "0.3", "9", "--images", 40, "--out", "out")
    assert code == 0, err
    assert {each.name for each in (here / "out").iterdir()} == FILES
    found = written(here / "out")
    assert found["schema"] == "casemate/smoothing/1"
    assert (found["sigma"], found["n0"], found["n"], found["alpha"], found["norm"]) == (0.2, 50, 400, 0.01, "l2")
    chosen = Smoothing(sigma=0.2, n0=50, n=400, alpha=0.01)
    pixels, labels = IMAGES[:40].tensors()
    expected = certify_smoothed(network(), pixels, labels, chosen)
    for row in found["radii"]:
        assert row["certified_accuracy"]["value"] == expected.certified_accuracy(row["eps"])
    assert found["clean_accuracy"]["value"] == expected.certified_accuracy()
    assert found["abstained"] == int(expected.abstained.sum())
    words = " ".join(out.replace("│", "").split())
    assert "The smoothed model (sigma 0.2), not the model itself, is certified" in words
    assert "holds with probability 0.99 (alpha 0.01)" in words
    assert "certified accuracy of the smoothed model, alpha 0.01" in words
    assert "what attacks find on the model itself is not comparable" in words
    assert f"abstains from {found['abstained']} of the 40 images" in words
    assert f"no radius beyond {chosen.largest_radius:.3g} can be certified" in words
    page = (here / "out" / "report.html").read_text()
    assert found["conclusion"] in page
    assert "withstood" not in page
    table = pl.read_parquet(here / "out" / "examples.parquet")
    assert table["radius"].to_list() == expected.radius.tolist()
    code, out, _ = certified(run, *options, "--eps", "0.1", "0.3", "9", "--images", 40, "--out", "out", "--json")
    assert code == 0
    again = json.loads(out)
    assert again["radii"] == found["radii"]


def test_votes_that_are_finished_are_not_counted_again(tmp_path: Path) -> None:
    """A stopped run goes on where it was; the outcome is that of one call of `certify_smoothed`."""
    passed, stop = 0, 3000

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network().network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal passed
            passed += len(images)
            if passed > stop:
                raise KeyboardInterrupt
            return self.network(images)

    model = Classifier(Counting(), input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    settings: dict[str, Any] = {"eps": 0.1, "smoothing": Smoothing(sigma=0.2, n0=10, n=50), "store": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        evaluate_smoothed(model, IMAGES, **settings)
    before, stop = passed, 100_000
    found = evaluate_smoothed(model, IMAGES, **settings)
    whole = len(IMAGES) * 60
    assert passed - before < 0.8 * whole
    expected = certify_smoothed(model, *IMAGES.tensors(), settings["smoothing"])
    assert torch.equal(found.certificate.votes, expected.votes)
    assert torch.equal(found.certificate.radius, expected.radius)
    passed = 0
    evaluate_smoothed(model, IMAGES, **settings)
    assert passed < 0.1 * whole
    passed = 0
    evaluate_smoothed(model, IMAGES, **settings, fresh=True)
    assert whole < passed <= smoothed_queries(len(IMAGES), settings["smoothing"])


def test_no_images_are_refused() -> None:
    with pytest.raises(ShapeError, match="no images to certify"):
        evaluate_smoothed(network(), IMAGES[:0], eps=0.1)


def test_radii_of_a_smoothed_model_follow_sigma(run: Run, here: Path) -> None:
    code, _, err = certified(run, "--smoothing", "0.2", "--draws", 5, 20, "--images", 5)
    assert code == 0, err
    assert written(here / "runs" / "certify-load")["eps_text"] == ["0.1", "0.2", "0.4"]


def test_the_smoothed_result_reads_like_the_others() -> None:
    found = evaluate_smoothed(network(), IMAGES[:20], eps=[0.3, "0.1"], smoothing=Smoothing(sigma=0.2, n0=20, n=100))
    assert [f"{each:g}" for each in found.values] == ["0.1", "0.3"]
    assert "alpha 0.001" in repr(found)
    assert str(found) in found.summary()
    assert [row[0] for row in found.rows()] == ["0", "0.1", "0.3"]
    assert found._repr_html_().count("<tr>") == 4
    assert (found.radius > 0).sum() == found.certificate.right.sum()
    numbers = [each.value for each in (found.clean_accuracy, *found.certified_accuracy)]
    assert numbers == sorted(numbers, reverse=True)


# Files and errors -----------------------------------------------------------------------------------------------------
def test_a_report_from_python(tmp_path: Path) -> None:
    found = evaluate_certified(network(), IMAGES, eps=EPS, budget="quick", sample=5)
    page = found.report(tmp_path / "out", name="mine", data="these")
    assert written(page.parent)["model"] == "mine"
    assert {each.name for each in page.parent.iterdir()} == FILES
    found.report(page.parent, name="mine", data="these")  # the same again
    smoothed = evaluate_smoothed(network(), IMAGES[:5], eps=0.1, smoothing=Smoothing(n0=5, n=20))
    with pytest.raises(Exception, match="overwrite=True"):
        smoothed.report(page.parent)
    smoothed.report(page.parent, overwrite=True)
    assert written(page.parent)["schema"] == "casemate/smoothing/1"


def test_results_of_another_run_are_kept(run: Run, here: Path) -> None:
    assert certified(run, "--eps", "0.12", "--out", "out", "--no-attack")[0] == 0
    before = (here / "out" / "certification.json").read_bytes()
    code, _, err = certified(run, "--eps", "0.2", "--out", "out", "--no-attack")
    assert code == 2
    assert "would be written over it (eps 0.12, now 0.2)" in err
    assert (here / "out" / "certification.json").read_bytes() == before
    assert certified(run, "--eps", "0.2", "--out", "out", "--no-attack", "--overwrite")[0] == 0


def test_nothing_is_left_of_files_that_cannot_be_written(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.report import certification

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certification, "write_text", full)
    code, _, err = certified(run, "--eps", "0.12", "--out", "out", "--no-attack")
    assert code == 2
    assert "No space left" in err
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eps", "-0.1"), "eps = -0.1; expected zero or more"),
        (("--eps", "0"), "eps = 0; expected one or more, all above zero"),
        (("--eps", "0.1,0.2"), "eps '0.1,0.2' is not a number"),
        (("--norm", "l0"), "invalid choice 'l0'"),
        (("--data", "unlabelled.npz"), "unlabelled.npz has no labels"),
        (("--sample", "-1"), "sample = -1; expected at least 0"),
        (("--images", "0"), "images = 0; expected at least 1"),
        (("--draws", "5", "10"), "--draws is about randomised smoothing; give --smoothing SIGMA too"),
        (("--alpha", "0.1"), "--alpha is about randomised smoothing"),
        (("--smoothing", "0.2", "--draws", "5"), "--draws 5; expected two numbers"),
        (("--smoothing", "0.2", "--draws", "5", "0"), "n = 0; expected at least 1"),
        (("--smoothing", "0.2", "--alpha", "2"), "alpha = 2.0; expected a probability"),
        (("--smoothing", "-1"), "sigma = -1.0; expected positive"),
        (("--smoothing", "0.2", "--norm", "linf"), "--norm linf with --smoothing, whose certificates are in l2"),
        (("--smoothing", "0.2", "--method", "crown"), "--method with --smoothing"),
        (("--smoothing", "0.2", "--budget", "quick"), "--budget with --smoothing"),
        (("--no-attack", "--budget", "quick"), "--budget with --no-attack"),
        (("--no-attack", "--sample", "5"), "--sample with --no-attack"),
        (("--black-box",), "bounds need the layers of the network"),
    ],
)
def test_errors_that_the_user_can_fix(options: tuple[str, ...], message: str, run: Run, here: Path) -> None:
    code, out, err = certified(run, *options, "--out", "out")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (here / "out").exists()


def test_a_layer_without_bounds_is_named(run: Run, here: Path) -> None:
    code, out, err = run("certify", "nets.py:Fourier", "--data", "tiny.npz", "--out", "out", "--trust-code")
    assert (code, out) == (2, "")
    assert "no bounds for the call of fft_fft" in err
    assert "`casemate certify --smoothing`" in " ".join(err.split())
    assert not (here / "out").exists()


def test_a_checkpoint_needs_no_description(run: Run, here: Path) -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = Classifier(dense, input_shape=TINY_SHAPE, classes=TINY_CLASSES)
    save(model, here / "model.safetensors", ModelMetadata(architecture="linear", dataset="tiny"))
    code, _, err = run("certify", "model.safetensors", "--data", "tiny.npz", "--eps", "0.01", "--no-attack")
    assert code == 0, err
    found = written(here / "runs" / "certify-model")
    assert found["model"] == "model.safetensors"
    assert found["model_facts"]
