"""`casemate evaluate`: numbers, files, page, exit codes, and clear errors for all that can be wrong with the input."""

import contextlib
import json
import pickle
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import jinja2
import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, Square
from casemate.cli.evaluate import request
from casemate.cli.evaluate import run as evaluating
from casemate.cli.main import main
from casemate.data import LabelledImages, read_images
from casemate.errors import DataError, ModelError, RecordError, ShapeError, StoreError
from casemate.evaluation import evaluate, evaluation, read_record, verify_record
from casemate.evaluation.findings import CHECKS
from casemate.evaluation.intervals import percent
from casemate.evaluation.intervals import share as estimated
from casemate.evaluation.verdict import CONVENTION, Grade, read_verdicts
from casemate.files import writing
from casemate.models import Classifier, ModelMetadata, save
from casemate.norms import Norm
from casemate.report import evaluation_files
from casemate.report.advice import steps_after
from casemate.report.evaluation import build_evaluation
from casemate.report.evaluation_result import ABOUT_PREDICTIONS, ATTEMPT_COLUMNS, EvaluationResult
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images
from oracles import Tally, as_installed
from test_record import thirds
from test_report import Page
from test_study import Run, runner

pytestmark = pytest.mark.integration
EPS = ("0.1", "0.2")
IMAGES = tiny_images(40, noise=90.0)
ATTACKS = {"pgd": PGD(eps=0.1, steps=5), "square": Square(eps=0.1, n_queries=20)}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@contextlib.contextmanager
def few_attacks() -> Iterator[None]:
    """Whatever the budget, only two quick attacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "attacks_for", lambda *given, **options: ATTACKS)
        yield


@pytest.fixture
def _few_attacks() -> Iterator[None]:
    with few_attacks():
        yield


@dataclass(frozen=True)
class Done:
    """A finished evaluation."""

    folder: Path
    code: int
    out: str
    result: dict[str, Any]

    @property
    def page(self) -> Page:
        """The report."""
        return Page((self.folder / "report.html").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model for tiny images."""
    path = tmp_path_factory.mktemp("model") / "thirds.safetensors"
    return save(thirds(), path, ModelMetadata(architecture="linear", dataset="tiny"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny images in a file."""
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    np.savez(path, images=IMAGES.pixels.numpy(), labels=IMAGES.labels.numpy())
    return path


@pytest.fixture(scope="module")
def done(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The command, run once."""
    folder = tmp_path_factory.mktemp("evaluation")
    out, err = _Text(), _Text()
    with few_attacks(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["evaluate", str(model), "--data", str(images), "--eps", *EPS, "--out", str(folder)])
    return Done(folder, code, out.getvalue(), json.loads((folder / "result.json").read_text()))


class _Text(__import__("io").StringIO):
    """Not a terminal."""


# What it tells --------------------------------------------------------------------------------------------------------
def test_the_files_are_there_and_agree(done: Done) -> None:
    assert done.code == 0
    assert {path.name for path in done.folder.iterdir()} == {
        "report.html",
        "result.json",
        "examples.parquet",
        "record.json",
        "adversarial.safetensors",
    }
    table = pl.read_parquet(done.folder / "examples.parquet")
    assert len(table) == done.result["images"] == 40
    right = table["fooled_at"].is_null() | (table["fooled_at"] > 0)
    assert right.mean() == pytest.approx(done.result["clean_accuracy"]["value"])
    for eps, robust in zip(done.result["eps"], done.result["robust_accuracy"], strict=True):
        left = table["fooled_at"].is_null() | (table["fooled_at"] > eps)
        assert left.mean() == pytest.approx(robust["value"])
        assert robust["low"] < robust["value"] < robust["high"]
    fooled = table.filter(pl.col("first_success").is_not_null())
    assert (fooled["adversarial_prediction"] != fooled["label"]).all()
    assert (fooled["distance"] <= fooled["fooled_at"] + 1e-6).all()
    for each in done.result["attacks"]:
        assert (table["first_success"] == each["attack"]).sum() == each["first_to_fool"]
    assert [each["attack"] for each in done.result["attacks"]] == ["pgd", "square"]


@pytest.mark.usefixtures("_few_attacks")
def test_without_polars_the_table_is_csv_with_the_same_in_it(
    model: Path, images: Path, done: Done, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(done.folder / "examples.parquet", tmp_path)
    monkeypatch.setitem(sys.modules, "polars", None)
    code, _, err = run("evaluate", model, "--data", images, "--eps", *EPS, "--out", tmp_path, "--overwrite", "--json")
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        "result.json",
        "examples.csv",
        "record.json",
        "adversarial.safetensors",
    }
    (with_polars, page), (without, other_page) = (
        (read_frame(folder), Page((folder / "report.html").read_text())) for folder in (done.folder, tmp_path)
    )
    assert with_polars.columns == without.columns
    for name in with_polars.columns:
        assert with_polars[name].to_list() == without[name].to_list(), name
    assert page.figures == other_page.figures
    assert any(page.figures)


def read_frame(folder: Path) -> pl.DataFrame:
    """The table of examples, as another program reads it."""
    parquet = folder / "examples.parquet"
    return pl.read_parquet(parquet) if parquet.exists() else pl.read_csv(folder / "examples.csv")


def test_the_numbers_are_those_of_the_library(done: Done) -> None:
    found = evaluate(thirds(), IMAGES, eps=[*EPS], attacks=ATTACKS).as_json()
    for name in ("clean_accuracy", "robust_accuracy", "per_class", "attacks", "passes", "verdict"):
        assert done.result[name] == found[name], name
    checks = [{**each, "value": None} for each in done.result["checks"]]
    assert checks == [{**each, "value": None} for each in found["checks"]]


def test_its_record_holds(done: Done) -> None:
    record = read_record(done.folder / "record.json")
    assert verify_record(record, thirds(), images=IMAGES).holds
    assert record.data == "tiny.npz"
    assert record.model.endswith("thirds.safetensors")
    assert done.result["fingerprint"] == record.fingerprint


def test_the_verdict_comes_first_and_every_check_is_named(done: Done) -> None:
    lines = done.out.splitlines()
    assert "Verdict at eps 0.2: BROKEN" in lines[0]
    text = " ".join(done.out.replace("│", " ").split())
    smaller, verdict = read_verdicts(done.result, "result.json")
    for words in (verdict.trust.sentence, verdict.grade_sentence, f"At eps 0.1 {smaller.grade_sentence}"):
        assert words in text
    raised = {each["check"] for each in done.result["checks"] if each["state"] in ("note", "weakens", "voids")}
    assert all(name in text for name in raised)
    passed = [each for each in done.result["checks"] if each["state"] == "passed"]
    assert f"{len(passed)} checks passed; -v shows what each of them measured." in text
    assert not any(each["check"] in text for each in passed)
    assert "eps Robust accuracy Verdict" in text
    assert "First to fool, over all eps: pgd " in text
    assert "Accuracy by class at eps 0.2 class without an attack under attack n" in text
    for each in done.result["per_class"]:
        assert re.search(rf"^ *{each['class']} .* {each['robust_accuracy']['n']} *$", done.out, re.MULTILINE)
    assert [each["class"] for each in done.result["per_class"]] == list(TINY_CLASSES)
    assert "not run: no undefended substitute was given" in text
    assert "not run: it runs only with thorough=True (on the command line --thorough): it takes minutes" in text
    assert lines[-1] == f"Report: {done.folder / 'report.html'}"
    for row in done.result["attempts"]:
        assert re.search(
            rf"{row['attack']} +{row['tried']} +{row['fooled']} +{row['tried'] - row['fooled']} ", done.out
        )


def test_no_check_failed(done: Done) -> None:
    assert [each for each in done.result["checks"] if "could not be completed" in (each["sentence"] or "")] == []
    assert "could not be completed" not in done.result["verdicts"][-1]["sentence"]
    assert {each["check"] for each in done.result["checks"]} == set(CHECKS)


@pytest.mark.usefixtures("_few_attacks")
def test_the_json_is_the_stored_result(run: Run, done: Done, model: Path, images: Path, tmp_path: Path) -> None:
    command = ("evaluate", model, "--data", images, "--eps", *EPS, "--out", tmp_path / "out", "--json")
    code, out, err = run(*command)
    assert code == 0, err
    shown = json.loads(out)
    assert shown.pop("folder") == str(tmp_path / "out")
    assert shown == json.loads((tmp_path / "out" / "result.json").read_text())
    assert shown["robust_accuracy"] == done.result["robust_accuracy"]
    assert "at most" not in err


def test_a_plan_evaluates_nothing_and_tells_the_times(
    run: Run, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", model, "--data", images, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert list(plan["seconds_at_most"]) == ["quick", "autoattack", "standard", "thorough"]
    assert plan["eps"] == [0.1]
    assert plan["images"] == 40
    code, out, _ = run("evaluate", model, "--data", images, "--dry-run", "--norm", "l2")
    assert code == 0
    assert re.search("thorough +[0-9.]+ (s|min|h)", out)
    assert list(tmp_path.iterdir()) == []


def test_there_is_an_eps_for_every_norm() -> None:
    assert set(request.EPS) == set(get_args(Norm))


# The page -------------------------------------------------------------------------------------------------------------
def test_the_page_asks_for_nothing_outside_itself(done: Done) -> None:
    """No script, no style sheet, no address that is not in the file; and a policy that forbids them."""
    page = done.page
    assert not [name for name, _ in page.tags if name in ("script", "link", "iframe", "object", "embed", "form")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    addresses = page.addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {address[1:] for address in addresses if address.startswith("#")} <= ids
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert any(attrs.get("name") == "viewport" for _, attrs in page.tags)


def _ends(found: Mapping[str, Any]) -> list[str]:
    """The interval and n of an estimate, as the page's cells show them."""
    return [f"{percent(found['low'])} to {percent(found['high'])}", f"{found['n']}"]


def test_the_page_tells_everything(done: Done) -> None:
    page = done.page
    text = " ".join(page.text.split())
    smaller, verdict = read_verdicts(done.result, "result.json")
    for words in (verdict.trust.sentence, verdict.number_sentence, verdict.grade_sentence, smaller.grade_sentence):
        assert words in text
    assert verdict.convention in text
    assert [attrs["class"] for name, attrs in page.tags if name == "section"] == [f"verdict {verdict.colour}"]
    tables = [table for table in page.tables if table and table[0][0] == "check"]
    rows = [row for table in tables for row in table[1:]]
    assert len(rows) == len(CHECKS)
    assert {row[1] for row in tables[-1][1:]} == {"passed", "not run"}
    assert [[row[0], *row[-3:]] for row in page.table("class")] == [
        [each["class"], percent(each["robust_accuracy"]["value"]), *_ends(each["robust_accuracy"])]
        for each in sorted(done.result["per_class"], key=lambda each: each["robust_accuracy"]["value"])
    ]
    for name, check in CHECKS.items():
        (row,) = [row for row in rows if row[0] == f"{name}{check.title}"]
        assert check.why.replace("`", "") in " ".join(row[-1].split())
    assert [row[:5] for row in page.table("eps", "attack")] == [
        [f"{each['eps']:g}", each["attack"], *map(str, (each["tried"], each["fooled"], each["tried"] - each["fooled"]))]
        for each in done.result["attempts"]
    ]
    assert len(page.figures) == 2
    assert all(page.figures)
    assert done.result["fingerprint"] in text
    (shown,) = [table for table in page.tables if table[0][:3] == ["image", "class", "predicted"]]
    assert {row[2] for row in shown[1:]} <= set(TINY_CLASSES)


def test_the_page_is_made_from_the_stored_files_alone(done: Done, tmp_path: Path) -> None:
    for path in done.folder.iterdir():
        if path.name != "report.html":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    result = json.loads((tmp_path / "result.json").read_text())
    result["model"] = "<script>alert(1)</script>"
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = Page(build_evaluation(tmp_path).read_text())
    assert not [name for name, _ in page.tags if name == "script"]
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("batch-dependence", "its numbers, also without an attack, say nothing"),
        ("losses", "its numbers under attack say"),
    ],
)
def test_predictions_that_mean_nothing_void_the_clean_accuracy_too(
    done: Done, tmp_path: Path, check: str, words: str
) -> None:
    for path in done.folder.iterdir():
        if path.name != "report.html":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    result = json.loads((tmp_path / "result.json").read_text())
    for each in result["checks"]:
        if each["check"] == check:
            each |= {"state": "voids", "value": 1.0, "threshold": 0.0, "sentence": "It rains", "flatters": False}
            each |= {"not_run": None, "excuse": None}
    for each in result["verdicts"]:
        each["trust"]["because"], each["grade"]["grades"] = ["it rains"], []
    result["record"] |= {"examples": 0, "unproven": 7, "robust_accuracy": [0.125 for _ in result["verdicts"]]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    html = build_evaluation(tmp_path).read_text()
    text = " ".join(Page(html).text.split())
    assert words in text
    both = check == "batch-dependence"
    assert ("of the images correctly, one at a time 12.5 %." in text) == both
    assert f'<tr class="{"void" if both else ""}"><th scope="row">none' in html
    assert f'<tr class="void"><th scope="row">eps {result["verdicts"][-1]["eps"]:g}' in html
    assert "no adversarial example that anybody can verify" in text
    assert "The model was fooled on 7 images in a batch, but not reliably one at a time" in text
    assert set(ABOUT_PREDICTIONS) < set(CHECKS)


@pytest.mark.parametrize(("share", "n"), [(0.911, 269), (0.88, 50), (0.52, 40), (0.899, 100)])
def test_the_number_of_images_that_is_advised_would_decide_the_grade(done: Done, share: float, n: int) -> None:
    result = EvaluationResult.from_json(done.result, "here")
    withstood = estimated(np.arange(n) < round(share * n))
    grades = CONVENTION.reached(withstood.low, withstood.high)
    assert len(grades) > 1
    verdict = replace(
        result.verdict, grades=grades, number=replace(result.verdict.number, withstood=withstood, budget="standard")
    )
    result = replace(result, verdicts=(verdict,), images=n)
    (step,) = [each for each in steps_after(result) if "decide" in each.words or "border of two grades" in each.words]
    if not step.command:
        assert share == 0.899  # nearer to the border than any affordable number of images could tell
        return
    words = step.command.split()
    more = int(words[words.index("--images") + 1])
    again = estimated(np.arange(more) < round(withstood.value * more))
    assert len(CONVENTION.reached(again.low, again.high)) == 1
    fewer = more - n
    before = estimated(np.arange(fewer) < round(withstood.value * fewer))
    assert len(CONVENTION.reached(before.low, before.high)) > 1


# Exit codes -----------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("_few_attacks")
@pytest.mark.parametrize(("least", "code"), [("0", 0), ("0.99", 3), ("1", 3)])
def test_a_model_that_falls_short_ends_with_3(
    run: Run, model: Path, images: Path, tmp_path: Path, least: str, code: int
) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "0.05", "--fail-under", least, "--out", tmp_path)
    got, out, err = run(*command)
    assert got == code
    assert "Report: " in out
    assert ("is below" in err) == (code == 3)
    assert "Traceback" not in err


@pytest.mark.usefixtures("_few_attacks")
def test_what_falls_short_is_the_lower_end_unless_the_estimate_is_to_be_compared(
    run: Run, model: Path, images: Path, tmp_path: Path
) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "0.05", "--out", tmp_path)
    assert run(*command)[0] == 0
    robust = json.loads((tmp_path / "result.json").read_text())["robust_accuracy"][-1]
    assert robust["low"] < robust["value"]
    least = ("--fail-under", str((robust["low"] + robust["value"]) / 2))
    code, _, err = run(*command, *least)
    assert code == 3
    assert "the lower end of the 95 % interval of robust accuracy at eps 0.05" in " ".join(err.split())
    assert run(*command, *least, "--fail-by", "estimate")[0] == 0
    code, _, err = run(*command, "--fail-under", str(robust["value"] + 0.01), "--fail-by", "estimate")
    assert code == 3
    assert "lower end" not in err


@pytest.mark.usefixtures("_few_attacks")
def test_the_borders_between_grades_can_be_set(run: Run, model: Path, images: Path, tmp_path: Path) -> None:
    borders = ("--borders", "0.001", "0.002", "0.003")
    code, out, err = run("evaluate", model, "--data", images, "--eps", "1/255", "--out", tmp_path, *borders)
    assert code == 0, err
    assert "0.1 %, 0.2 %, 0.3 % (set for this evaluation)" in " ".join(out.replace("│", " ").split())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["borders"] == {"broken": 0.001, "weak": 0.002, "robust": 0.003}
    assert read_verdicts(result, "result.json")[-1].grades == (Grade.ROBUST,)


@pytest.mark.usefixtures("_few_attacks")
def test_an_evaluation_that_is_not_to_be_trusted_ends_with_3(run: Run, own: Path, images: Path, tmp_path: Path) -> None:
    del own
    command = ("evaluate", "mine:probabilities", "--data", images, "--eps", "0.01", "--out", tmp_path)
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "nothing was attacked" in err
    assert "--force" in err
    assert not (tmp_path / "report.html").exists()
    command = (*command, "--force")
    assert run(*command)[0] == 0
    code, _, err = run(*command, "--fail-under", "0")
    assert code == 3
    assert "not to be trusted" in err
    assert "the logits before the softmax" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fail-under", "60"], "fail-under 60; expected a fraction from 0 to 1, such as 0.6 or 60%"),
        (["--fail-under", "160%"], "fail-under 160%; expected a fraction from 0 to 1"),
        (["--fail-under", "x"], "fail-under 'x' is not a number"),
        (["--borders", "0.5", "0.1", "0.9"], "expected three shares that ascend strictly within 0 and 1"),
        (["--borders", "0.1", "0.5"], "borders 0.1 0.5; expected three"),
        (["--borders", "0.1", "0.5", "x"], "borders 'x' is not a number"),
        (["--images", "0"], "images = 0; expected at least 1"),
        (["--eps", "-1"], "eps = -1; expected zero or more"),
        (["--eps", "0"], "all above zero"),
        (["--eps", "nan"], "eps = nan"),
        (
            ["--model-from", "mine:good"],
            "--model-from is no longer an option: write the function in the place of MODEL",
        ),
        (["--dataset", "digits"], "--data and --dataset both name images"),
        (["--substitute", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--budget", "huge"], "invalid choice 'huge'"),
    ],
)
def test_bad_options_are_refused(
    run: Run, model: Path, images: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    code, out, err = run("evaluate", model, "--data", images, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert out == ""


@pytest.mark.usefixtures("_few_attacks")
def test_an_evaluation_that_is_stopped_says_that_finished_work_is_kept(
    run: Run, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "run_checks", stop)
    code, out, err = run("evaluate", model, "--data", images, "--eps", "0.1", "--out", tmp_path)
    assert code == 130
    assert out == ""
    assert "finished work is kept; run the same command again to continue" in err
    assert list(tmp_path.iterdir()) == []


# What is shown --------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("_few_attacks")
def test_the_numbers_of_all_checks_are_shown_with_v(run: Run, model: Path, images: Path, tmp_path: Path) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "0.1", "--out", tmp_path)
    for option in ("-v", "--verbose"):
        code, out, err = run(*command, option)
        assert code == 0, err
        assert all(name in out for name in CHECKS)
        assert "-v shows" not in out


@pytest.mark.usefixtures("_few_attacks")
def test_eps_is_shown_as_it_was_written(run: Run, model: Path, images: Path, tmp_path: Path) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "5/255", "0.050", "2/51", "--out", tmp_path)
    code, out, err = run(*command, "--fail-under", "100%")
    assert code == 3
    for text in (out, (tmp_path / "report.html").read_text()):
        assert all(eps in text for eps in ("5/255", "0.050", "2/51"))
        assert "0.0392157" not in text
        assert "0.0196078" not in text
    assert "at eps 0.050, " in err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["eps"] == [5 / 255, 2 / 51, 0.05]
    assert result["eps_text"] == ["5/255", "2/51", "0.050"]
    code, _, err = run("evaluate", model, "--data", images, "--eps", "0.1", "--out", tmp_path)
    assert code == 2
    assert "eps 5/255, 2/51, 0.050" in " ".join(err.split())


@pytest.mark.usefixtures("_few_attacks")
@pytest.mark.parametrize("least", ["10%", "0.1", "10 %"])
def test_what_was_compared_is_said_where_the_model_passes_too(
    run: Run, model: Path, images: Path, tmp_path: Path, least: str
) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "5/255", "--out", tmp_path, "--json")
    code, out, err = run(*command, "--fail-under", least)
    assert code == 0, err
    robust = json.loads(out)["robust_accuracy"][-1]
    words = (
        f"passes: the lower end of the 95 % interval of robust accuracy at eps 5/255, {robust['low']:.4g}, is at least"
    )
    assert words in " ".join(err.split())
    assert f"(estimate {robust['value']:.4g}, n = 40)" in " ".join(err.split())


@pytest.mark.usefixtures("_few_attacks")
def test_more_images_than_there_are_is_said(run: Run, model: Path, images: Path, tmp_path: Path) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "0.1", "--out", tmp_path)
    assert "--images 20,000: there are only 40 images; all of them are used." in run(*command, "--images", "20000")[2]
    assert "there are only" not in run(*command, "--images", "40")[2]


@pytest.mark.usefixtures("_few_attacks")
def test_the_command_that_others_check_with_names_the_model_and_works(
    run: Run, own: Path, images: Path, tmp_path: Path
) -> None:
    del own
    code, out, err = run("evaluate", "mine:good", "--data", images, "--eps", "0.1", "--out", tmp_path / "of me")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("For others to check: ")]
    command = shlex.split(line.removeprefix("For others to check: casemate ").rsplit(" (", 1)[0])
    assert command == ["verify", str(tmp_path / "of me" / "record.json"), "mine:good", "--data", str(images)]
    code, out, err = run(*command)
    assert code == 0, err
    assert "Everything that was checked holds." in out
    page = Page((tmp_path / "of me" / "report.html").read_text())
    assert f"casemate verify record.json mine:good --data {images}" in page.text


@pytest.mark.usefixtures("_few_attacks")
def test_without_images_only_hashes_are_written(run: Run, model: Path, images: Path, tmp_path: Path) -> None:
    command = ("evaluate", model, "--data", images, "--eps", "0.1", "--out", tmp_path)
    assert run(*command)[0] == 0
    assert (tmp_path / "adversarial.safetensors").exists()
    code, out, err = run(*command, "--no-images")
    assert code == 0, err
    assert "hashes only, without images" in out
    assert not (tmp_path / "adversarial.safetensors").exists()
    code, out, err = run("verify", tmp_path / "record.json", model, "--data", images)
    assert code == 0, err
    assert "it can only be checked by hash" in " ".join(err.split())
    assert "the record holds hashes only" in " ".join(out.split())
    other = tmp_path / "other.npz"
    np.savez(other, images=IMAGES.pixels.numpy()[::-1], labels=IMAGES.labels.numpy())
    assert run("verify", tmp_path / "record.json", model, "--data", other)[0] == 3
    code, out, err = run("verify", tmp_path / "record.json", model, "--json")
    assert code == 0, err
    assert json.loads(out)["clean_accuracy"] is None


# What another evaluation left -----------------------------------------------------------------------------------------
@pytest.fixture
def before(done: Done, tmp_path: Path) -> Path:
    """A folder with the files of an evaluation, to be endangered."""
    return shutil.copytree(done.folder, tmp_path / "before")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _too_late(*arguments: object) -> None:
    raise AssertionError("attacked before the folder is looked at")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--eps", "0.1"], "(eps 0.1, 0.2, now 0.1)"),
        (["--norm", "l2"], "(norm linf, now l2)"),
        (["--budget", "quick"], "(budget standard, now quick)"),
        (["--seed", "1"], "(seed 0, now 1)"),
        (["--images", "20"], "(images 40, now 20; other images or labels)"),
        (["--precision", "bfloat16"], "(precision float32, now bfloat16)"),
        (["--thorough"], "(thorough False, now True)"),
        (["--substitute", "MODEL"], "now {model}; another substitute)"),
        (["OTHER MODEL"], "other weights)"),
        (["--data", "OTHER IMAGES"], "(other images or labels)"),
    ],
)
def test_another_evaluation_is_not_replaced(
    run: Run,
    model: Path,
    images: Path,
    before: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(evaluating, "run", _too_late)
    held, other = _contents(before), tmp_path / images.name
    if "OTHER IMAGES" in changed:
        np.savez(other, images=255 - IMAGES.pixels.numpy(), labels=IMAGES.labels.numpy())
    weights = model
    if "OTHER MODEL" in changed:
        description = ModelMetadata(architecture="linear", dataset="tiny")
        weights, changed = save(thirds(19.0), tmp_path / model.name, description), []
    changed = [{"MODEL": str(model), "OTHER IMAGES": str(other)}.get(each, each) for each in changed]
    command = ["evaluate", weights, "--data", images, "--eps", *EPS, "--out", before]
    code, out, err = run(*command, *changed)
    message = " ".join(err.split())
    assert code == 2
    assert out == ""
    assert f"{before} holds an evaluation of {model} (tiny.npz, eps 0.1, 0.2, seed 0), and an evaluation of" in message
    assert words.format(model=str(model)[:57]).split(";")[0] in message
    assert message.endswith("choose another --out, or give --overwrite to replace it")
    assert _contents(before) == held


@pytest.mark.usefixtures("_few_attacks")
def test_the_same_evaluation_is_replaced_and_says_so(run: Run, model: Path, images: Path, before: Path) -> None:
    command = ("evaluate", model, "--data", images, "--eps", *EPS, "--out", before)
    (before / "notes.txt").write_text("mine")
    (before / "report.html").write_text("old")
    code, _, err = run(*command)
    assert code == 0, err
    assert "holds the results of the same run; they are replaced" in " ".join(err.split())
    assert (before / "notes.txt").read_text() == "mine"
    assert len(Page((before / "report.html").read_text()).tags) > 10
    assert len(list(before.iterdir())) == 6


@pytest.mark.usefixtures("_few_attacks")
def test_another_evaluation_is_replaced_if_that_is_asked_for(run: Run, model: Path, images: Path, before: Path) -> None:
    code, _, err = run("evaluate", model, "--data", images, "--eps", "0.05", "--out", before, "--overwrite")
    assert code == 0, err
    assert json.loads((before / "result.json").read_text())["eps"] == [0.05]
    assert read_record(before / "record.json").eps == (0.05,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "but no result.json"),
        ("{", "but its result.json cannot be read"),
        ("[]", "but its result.json cannot be read"),
        ("{}", "holds an evaluation of None"),
    ],
)
def test_results_that_cannot_be_told_are_not_replaced(
    run: Run,
    model: Path,
    images: Path,
    before: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(evaluating, "run", _too_late)
    (before / "result.json").unlink() if content is None else (before / "result.json").write_text(content)
    held = _contents(before)
    code, _, err = run("evaluate", model, "--data", images, "--eps", *EPS, "--out", before)
    assert code == 2
    assert words in " ".join(err.split())
    assert "--overwrite" in err
    assert _contents(before) == held


def test_two_functions_of_one_name_share_no_folder(
    run: Run, own: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own.parent / "other.py").write_text("from mine import good")
    with few_attacks():
        assert run("evaluate", "mine:good", "--data", images, "--eps", "0.1")[0] == 0
    monkeypatch.setattr(evaluating, "run", _too_late)
    code, _, err = run("evaluate", "other:good", "--data", images, "--eps", "0.1")
    sys.modules.pop("other", None)
    assert code == 2
    assert "(model mine:good, now other:good)" in " ".join(err.split())


@pytest.mark.parametrize("fault", ["refused", "stopped", "failed while writing"])
def test_no_empty_folder_is_left(
    run: Run, own: Path, images: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    if fault == "failed while writing":
        monkeypatch.setattr(evaluation_files, "build_evaluation", stop)
    else:
        monkeypatch.setattr(evaluation, "run_checks", stop)
    name = "breaks" if fault == "refused" else "good"
    with few_attacks():
        code, _, _ = run("evaluate", f"mine:{name}", "--data", images, "--eps", "0.1")
    assert code == (2 if fault == "refused" else 130)
    assert {path.name for path in own.parent.iterdir()} <= {"mine.py", "__pycache__"}
    with few_attacks():
        run("evaluate", f"mine:{name}", "--data", images, "--eps", "0.1", "--out", "a/b/c")
    assert not (own.parent / "a").exists()


# The user's own model -------------------------------------------------------------------------------------------------
OWN = """
    import torch
    from casemate import Classifier, ShapeError
    from conftest import TINY_CLASSES, TINY_SHAPE
    from test_findings import MeanOfSoftmaxes
    from test_record import thirds

    def good():
        return thirds()

    def probabilities():
        network = torch.nn.Sequential(thirds(), MeanOfSoftmaxes())
        return Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES)

    def network():
        return thirds().network

    def text():
        return "network"

    def fails():
        return 1 / 0

    def needs(something):
        return something

    def too_few():
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        return Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES)

    def many():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 30))
        return Classifier(network, input_shape=(3, 8, 8), classes=tuple(f"class {n}" for n in range(30)))

    def breaks():
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(63, 3))
        return Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's own in the current folder."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.py").write_text(textwrap.dedent(OWN).replace(", ShapeError", ""))
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield here / "mine.py"
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("_few_attacks")
def test_the_user_s_own_model_is_judged(run: Run, own: Path, images: Path, done: Done) -> None:
    command = ("evaluate", "mine:good", "--data", images, "--eps", *EPS, "--json")
    code, out, err = run(*command)
    assert code == 0, err
    found = json.loads(out)
    assert found["robust_accuracy"] == done.result["robust_accuracy"]
    assert found["model"] == "mine:good"
    assert found["fingerprint"] == done.result["fingerprint"]
    assert (own.parent / "runs" / "evaluate-good" / "report.html").is_file()
    record = own.parent / "runs" / "evaluate-good" / "record.json"
    assert run("verify", record, "mine:good")[0] == 0


@pytest.mark.usefixtures("_few_attacks")
def test_colour_images_of_many_classes_are_shown(run: Run, own: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (120, 3, 8, 8), generator=random, dtype=torch.uint8)
    np.savez("colour.npz", images=pixels.numpy(), labels=np.arange(120) % 30)
    command = ("evaluate", "mine:many", "--data", "colour.npz", "--eps", "0.3", "--out", "out")
    code, out, err = run(*command)
    assert code == 0, err
    assert "Accuracy by class at eps 0.3, the 10 least robust of 30" in " ".join(out.split())
    page = Page((own.parent / "out" / "report.html").read_text())
    assert len(page.table("class")) == 30


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mine", "mine does not exist; expected a file (.safetensors by casemate"),
        ("mine:good()", "mine:good() does not exist; expected a file"),
        ("nowhere:good", "No module named 'nowhere'"),
        ("mine:absent", "has no attribute 'absent'"),
        ("mine:fails", "ZeroDivisionError: division by zero"),
        ("mine:needs", "mine:needs cannot be called without arguments"),
        ("mine:text", "returned a str; expected a torch.nn.Module"),
        (
            "mine:too_few",
            "a tensor of shape (1, 2) for 1 image; expected one logit for each of its 3 classes, of shape (1, 3)",
        ),
        ("mine:breaks", "the model fails on a batch of shape (1, 1, 8, 8): RuntimeError"),
    ],
)
def test_an_own_model_that_cannot_be_had(run: Run, own: Path, images: Path, source: str, words: str) -> None:
    code, out, err = run("evaluate", source, "--data", images)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err
    assert own.parent.exists()


def test_a_model_needs_images(run: Run, own: Path, model: Path) -> None:
    del own
    assert "no images were given" in run("evaluate", "mine:good")[2]
    assert "the model was trained on 'tiny'" in run("evaluate", model)[2]
    assert "Missing from casemate evaluate" in run("evaluate")[2]


# The user's own images ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["bytes", "unit", "without channels", "safetensors", "small labels"])
def test_images_are_read_in_all_their_forms(tmp_path: Path, kind: str) -> None:
    pixels, labels = IMAGES.pixels.numpy(), IMAGES.labels.numpy()
    path = tmp_path / "own.npz"
    match kind:
        case "bytes":
            np.savez(path, images=pixels, labels=labels)
        case "unit":
            np.savez_compressed(path, images=pixels / 255, labels=labels)
        case "without channels":
            np.savez(path, images=pixels[:, 0], labels=labels)
        case "small labels":
            np.savez(path, images=pixels, labels=labels.astype(">u2"), names=np.array(["a"]))
        case _:
            path = tmp_path / "own.safetensors"
            safetensors.torch.save_file({"images": IMAGES.pixels, "labels": IMAGES.labels.int()}, path)
    found = read_images(path)
    assert torch.allclose(found.tensors()[0], IMAGES.tensors()[0], atol=1e-7)
    assert torch.equal(found.labels, IMAGES.labels)


class Trap:
    """Unpickling it would leave a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import sys; sys.trapped = True",)


def test_nothing_in_a_file_of_images_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, images=IMAGES.pixels.numpy(), labels=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match=r"cannot read .*labels are of type object; expected numbers"):
        read_images(path)
    for name in ("own.npz", "own.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(DataError, match="cannot read"):
            read_images(tmp_path / name)
    assert not hasattr(sys, "trapped")


N = np.zeros
BAD = [
    ({"images": N((4, 1, 8, 8), np.uint8)}, "has no labels; it holds images"),
    ({"images": N((4, 1, 8, 8), np.uint8), "labels": N(3, int)}, "4 images and 3 labels"),
    ({"images": N((0, 1, 8, 8), np.uint8), "labels": N(0, int)}, "0 images and 0 labels"),
    ({"images": N((4, 64), np.uint8), "labels": N(4, int)}, r"expected \(n, channels, height, width\)"),
    ({"images": N((4, 8, 8, 3), np.uint8), "labels": N(4, int)}, "channels last"),
    ({"images": N((4, 1, 8, 8), np.int64), "labels": N(4, int)}, "images of type torch.int64"),
    ({"images": N((4, 1, 8, 8), complex), "labels": N(4, int)}, "images are of type complex128"),
    ({"images": N((4, 1, 8, 8), np.uint8), "labels": N((4, 3), int)}, "expected a whole number per image"),
    ({"images": N((4, 1, 8, 8), np.uint8), "labels": N(4)}, "expected a whole number per image"),
    ({"images": N((4, 1, 8, 8), np.uint8), "labels": np.array(["a"] * 4)}, "labels are of type <U1"),
]


@pytest.mark.parametrize(("arrays", "words"), BAD)
def test_files_that_hold_something_else(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        read_images(tmp_path / "own.npz")


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "own.txt").touch()
    (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 cut short")
    for name, words in (("own.csv", "does not exist"), ("own.txt", "ends in .txt"), ("own.npz", "cannot read")):
        with pytest.raises(DataError, match=words):
            read_images(tmp_path / name)


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (
            2 * torch.rand(9, *TINY_SHAPE) + 0.5,
            torch.zeros(9),
            "expected bytes, or numbers from 0 to 1: store pixels from 0 to 255",
        ),
        (
            torch.full((9, *TINY_SHAPE), torch.nan),
            torch.zeros(9),
            "images have pixels that are not finite numbers, the first of them image 0",
        ),
        (torch.rand(9, *TINY_SHAPE), torch.full((9,), 3), "labels from 3 to 3; with 3 classes they run from 0 to 2"),
        (torch.rand(9, *TINY_SHAPE), torch.full((9,), -1), "label -1 at position 0; labels count classes from 0"),
        (
            torch.rand(9, 1, 9, 9),
            torch.zeros(9),
            "has images of 1 x 9 x 9, but the model takes 1 x 8 x 8; give --resize 8 8",
        ),
    ],
)
def test_images_that_the_model_does_not_take(
    run: Run, model: Path, tmp_path: Path, pixels: Tensor, labels: Tensor, words: str
) -> None:
    file = tmp_path / "own.safetensors"
    safetensors.torch.save_file({"images": pixels, "labels": labels.long()}, file)
    code, out, err = run("evaluate", model, "--data", file, "--out", tmp_path / "out")
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""


# Models that make trouble ---------------------------------------------------------------------------------------------
class Sick(nn.Module):
    """Not a number where the first pixel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Ask, and spoil some answers."""
        bright = images[:, 0, 0, 0] > 0.6
        return self.inner(images).masked_fill(bright.unsqueeze(1), torch.nan)


def test_logits_that_are_not_numbers_void_the_evaluation_and_count_as_wrong() -> None:
    model = Classifier(Sick(), input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    found = evaluate(model, IMAGES, eps=0.05, attacks=ATTACKS, force=True)
    bright = IMAGES.tensors()[0][:, 0, 0, 0] > 0.6
    healthy = evaluate(thirds(), IMAGES, eps=0.05, attacks=ATTACKS)
    assert 3 < bright.sum() < 37
    assert found.clean.accuracy.value == (healthy.clean.correct & ~bright.numpy()).mean()
    assert (found.cascade.robust[:, 0] <= ~bright.numpy()).all()
    assert found.verdict.word == "not to be trusted"
    assert found.findings[0].check == "non-finite"
    assert [each.check for each in found.findings if each.failed] == []
    json.dumps(found.as_json(), allow_nan=False)


class Small(nn.Module):
    """Holds no more than so many images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = thirds(), most
        self.tally = Tally()

    def forward(self, images: Tensor) -> Tensor:
        """Answer, or run out of memory."""
        self.tally.most = max(self.tally.most, len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


def test_a_model_that_runs_out_of_memory_is_judged_in_smaller_batches(listener: Listener) -> None:
    small = Small(7)
    model = Classifier(small, input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    found = evaluate(model, IMAGES, eps=0.1, attacks=ATTACKS, observer=listener)
    whole = evaluate(thirds(), IMAGES, eps=0.1, attacks=ATTACKS)
    assert (found.cascade.robust == whole.cascade.robust).all()
    assert found.clean.accuracy == whole.clean.accuracy
    assert any("Out of memory; continuing with 4 images at a time" in each for each in listener.said)
    assert small.tally.most > 7
    failed = {each.check for each in found.findings if each.failed}
    assert failed <= {"finite-differences", "precision"}, failed


class Fussy(nn.Module):
    """Fails at one kind of check only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Answer pixels within the bounds only."""
        if images.amax() > 1.5:
            raise ValueError("what is this?")
        return self.inner(images)


def test_a_check_that_a_model_cannot_stand_does_not_end_the_evaluation() -> None:
    model = Classifier(Fussy(), input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    images = LabelledImages(pixels=IMAGES.pixels, labels=torch.where(IMAGES.labels == 2, 0, IMAGES.labels))
    found = evaluate(model, images, eps=0.1, attacks=ATTACKS)  # with a third wrong, another scale may be right
    (failed,) = [each for each in found.findings if each.failed]
    assert failed.check == "normalisation"
    assert re.search(r"\(ModelError: the model fails on a batch of .*: ValueError: what is this\?", failed.sentence)
    assert (failed.value, failed.threshold) == (None, None)
    (checked,) = [each for each in found.checks if each.check == "normalisation"]
    assert checked.state == failed.severity == "weakens"
    assert found.verdict.sentence.endswith(" 1 check could not be completed: normalisation.")


def test_what_is_refused_is_refused_in_the_library_too() -> None:
    none = LabelledImages(pixels=IMAGES.pixels[:0], labels=IMAGES.labels[:0])
    with pytest.raises(ShapeError, match="no images"):
        evaluate(thirds(), none, eps=0.1)
    with (
        as_installed(),
        pytest.raises(ModelError, match=r"returns a tuple of 2: .* for 1 image; .*output=0 or output=1"),
    ):
        evaluate(Classifier(_Pair(), input_shape=TINY_SHAPE, classes=TINY_CLASSES), IMAGES, eps=0.1)


class _Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


# Damaged installations and files --------------------------------------------------------------------------------------
@pytest.mark.parametrize("missing", ["evaluation.html.j2", "page.html.j2"])
def test_a_missing_template_is_not_a_full_disk(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """jinja2's error for a missing template is an `OSError`, as that of a full disk is."""
    load = jinja2.PackageLoader.get_source

    def damaged(self: jinja2.PackageLoader, environment: jinja2.Environment, template: str) -> tuple[Any, ...]:
        if template == missing:
            raise jinja2.TemplateNotFound(template)
        return load(self, environment, template)

    monkeypatch.setattr(jinja2.PackageLoader, "get_source", damaged)
    with pytest.raises(StoreError, match=f"{missing}.*install it again") as caught, writing(tmp_path / "any.html"):
        build_evaluation(done.folder)
    assert "space" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"attempts": [{}]}, {"checks": [{"state": "unheard of"}]}, {"record": None}, {"per_class": 1}]
)
def test_a_damaged_result_is_refused(done: Done, change: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=r"^here cannot be read \(.*[Ee]valuate again"):
        EvaluationResult.from_json(done.result | change, "here")


def test_the_terminal_and_the_page_show_the_same_attacks(done: Done) -> None:
    result = EvaluationResult.from_json(done.result, "here")
    shown = [tuple(line.split()) for line in done.out.splitlines()]
    assert done.page.table(*ATTEMPT_COLUMNS) == [[*row] for row in result.attempt_rows()]
    assert set(result.attempt_rows()) <= set(shown)
