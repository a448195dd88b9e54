"""JUnit XML and SARIF: what they say of a run, where they place it, and that they are there after errors too."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import junitparser
import numpy as np
import pytest
import torch
from jsonschema.validators import validator_for

from casemate._version import __version__
from casemate.attacks import PGD, Square
from casemate.cli.compare import run as comparing
from casemate.cli.evaluate import run as evaluating
from casemate.cli.evaluate.options import Evaluate
from casemate.cli.main import main, parse
from casemate.cli.shared.ci import CiFiles, model_file
from casemate.errors import SettingError, StoreError
from casemate.evaluation import Checked, Verification, evaluation
from casemate.evaluation.findings import CHECKS, Finding, Severity
from casemate.evaluation.verification import RecordCheck
from casemate.models import ModelMetadata, save
from casemate.report.ci.checks import CiCheck, CiRule, CiRun, failed_run
from casemate.report.ci.comparison import comparison_run
from casemate.report.ci.evaluation import evaluation_run
from casemate.report.ci.gate import Gate
from casemate.report.ci.junit import junit_xml, write_junit
from casemate.report.ci.sarif import sarif, write_sarif
from casemate.report.ci.verification import verification_run
from casemate.report.comparison import compare_finished
from casemate.report.evaluation_result import EvaluationResult
from casemate.report.finished_evaluation import read_finished
from conftest import tiny_images
from published import problems
from test_record import thirds
from test_study import Run, runner

ATTACKS = {"pgd": PGD(eps=0.1, steps=5), "square": Square(eps=0.1, n_queries=20)}
MODEL = "models/thirds.safetensors"
COMMAND = ("evaluate", MODEL, "--data", "tiny.npz", "--eps", "2/255", "0.1")
FILES = ("--junit", "ci/junit.xml", "--sarif", "ci/casemate.sarif")
LOCATED = {"uri": MODEL, "uriBaseId": "%SRCROOT%"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a saved model, its images in a file, and what an evaluation of them wrote, as `out`."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / ".git").mkdir()
    save(thirds(), folder / MODEL, ModelMetadata(architecture="linear", dataset="tiny"))
    images = tiny_images(40, noise=90.0)
    np.savez(folder / "tiny.npz", images=images.pixels.numpy(), labels=images.labels.numpy())
    return folder


@pytest.fixture
def here(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, as the current folder, with two quick attacks in every budget."""
    monkeypatch.chdir(repository)
    monkeypatch.setattr(evaluation, "attacks_for", lambda *given, **options: ATTACKS)
    return repository


@pytest.fixture(scope="module")
def _evaluated(repository: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        patch.setattr(evaluation, "attacks_for", lambda *given, **options: ATTACKS)
        assert main([*COMMAND, "--out", "out", *FILES]) == 0
        yield


@pytest.fixture
def result(here: Path, _evaluated: None) -> EvaluationResult:
    """The evaluation."""
    path = here / "out" / "result.json"
    return EvaluationResult.from_json(json.loads(path.read_text()), str(path))


def suite_of(text: bytes | Path) -> junitparser.TestSuite:
    """The only test suite, read by another library; its counts are those of its test cases, as is the root's."""
    content = text.read_bytes() if isinstance(text, Path) else text
    root = junitparser.JUnitXml.fromstring(content)
    (suite,) = root
    found = [_state(case) for case in suite]
    counts = tuple(map(found.count, ("failure", "error", "skipped")))
    for each in (root, suite):
        assert (each.tests, each.failures, each.errors, each.skipped) == (len(found), *counts)
    names = [(case.classname, case.name) for case in suite]
    assert len(set(names)) == len(names)
    assert all(case.time is not None and case.time >= 0 for case in suite)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.timestamp)
    return suite


def _state(case: junitparser.TestCase) -> str:
    found = [each._tag for each in case.result]
    assert len(found) <= 1
    return str(found[0]) if found else "passed"


def states(suite: junitparser.TestSuite) -> dict[str, str]:
    """By name, how each test case ended."""
    return {case.name: _state(case) for case in suite}


def results_of(log: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of a log, of which what the specification demands (with its sections) has been asserted."""
    log = json.loads(json.dumps(log))
    assert log["version"] == "2.1.0"  # 3.13.2
    (run,) = log["runs"]
    driver = run["tool"]["driver"]  # 3.18.2
    assert (driver["name"], driver["version"]) == ("casemate", __version__)
    rules = driver["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)  # 3.19.23: no two elements for one rule
    for rule in rules:
        assert rule["shortDescription"]["text"]  # 3.49.9
        assert rule["help"]["text"]
        assert len(rule["fullDescription"]["text"]) <= 1024
        assert "helpUri" not in rule
    (invocation,) = run["invocations"]
    assert isinstance(invocation["executionSuccessful"], bool)  # 3.20.14
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]  # 3.27.6
        assert result["level"] in ("error", "warning", "note")  # 3.27.10
        assert re.sub(r"\{\{|\}\}", "", result["message"]["text"]).count("{") == 0  # 3.11.5: no placeholders
        (location,) = result["locations"]
        place = location.get("physicalLocation")
        if place is not None:
            assert place["region"] == {"startLine": 1}
            assert re.fullmatch(r"[!$&-;=@-Z_a-z~%]+", place["artifactLocation"]["uri"])  # RFC 3986
            base = place["artifactLocation"].get("uriBaseId")
            assert (base in run.get("originalUriBaseIds", {})) == (base is not None)  # 3.4.4
        assert re.fullmatch(r"[0-9a-f]{32}", result["partialFingerprints"]["casemateCheck/v1"])  # 3.27.17
    identifiers = [result["partialFingerprints"]["casemateCheck/v1"] for result in run["results"]]
    assert len(set(identifiers)) == len(identifiers)
    return run["results"]


def _read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def changed(result: EvaluationResult, *checks: Checked) -> EvaluationResult:
    """The evaluation with these checks in the place of its own."""
    return replace(result, checks=checks)


def checked(severity: Severity | None, *, check: str = "zero-gradients", value: float = 0.5) -> Checked:
    """A check that was raised with a severity, or that passed."""
    finding = None
    if severity is not None:
        sentence = f"{100 * value:.1f} % of the images have no gradient. Use another loss"
        finding = Finding(check=check, severity=severity, value=value, threshold=0.1, sentence=sentence)
    return Checked(check=check, title="Every image has a gradient", finding=finding, value=value, threshold=0.1)


def untrusted(result: EvaluationResult) -> EvaluationResult:
    """The evaluation, not to be trusted at any eps because of one check."""
    voids = checked(Severity.VOIDS)
    verdicts = [
        replace(each, trust=replace(each.trust, because=("half of the images have no gradient",)), grades=())
        for each in result.verdicts
    ]
    return replace(result, checks=(voids,), verdicts=tuple(verdicts))


# An evaluation --------------------------------------------------------------------------------------------------------
def test_each_number_and_each_check_is_a_test_case(result: EvaluationResult, here: Path) -> None:
    suite = suite_of(here / "ci" / "junit.xml")
    assert suite.name == f"casemate evaluate {MODEL}"
    found = states(suite)
    assert list(found)[:3] == [
        "clean accuracy",
        "robust accuracy at eps 2/255 (linf)",
        "robust accuracy at eps 0.1 (linf)",
    ]
    assert set(list(found)[3:]) == set(CHECKS)
    assert set(found.values()) == {"passed", "skipped"}
    assert {name for name, state in found.items() if state == "skipped"} == {
        each.check for each in result.checks if each.state == "not run"
    }
    cases = {case.name: case for case in suite}
    assert f"{result.verdicts[0].number.clean:n}" in str(cases["clean accuracy"].system_out)
    for verdict in result.verdicts:
        case = cases[f"robust accuracy at eps {verdict.number.shown_eps} (linf)"]
        assert f"{verdict.number.robust:n}" in str(case.system_out)
        took = sum(each.seconds for each in result.attempts if each.eps == verdict.eps)
        assert case.time == pytest.approx(took, abs=1e-3)
        assert took > 0
    assert "note: the 95 % interval of the robust accuracy is wide" in str(cases["sample-size"].system_out)
    assert suite.time == pytest.approx(result.seconds, abs=1e-3)
    properties = {each.name: each.value for each in suite.properties()}
    assert properties["data"] == "tiny.npz"
    assert properties["eps"] == "2/255, 0.1"


def test_what_checks_found_is_placed_at_the_file_of_the_model(result: EvaluationResult) -> None:
    log = _read(FILES[-1])
    assert [each["ruleId"] for each in results_of(log)] == [
        each.check for each in result.checks if each.finding is not None
    ]
    for each in results_of(log):
        assert each["locations"][0]["physicalLocation"]["artifactLocation"] == LOCATED
        assert each["locations"][0]["logicalLocations"][0]["name"] == MODEL
    (described,) = log["runs"]
    assert described["invocations"] == [{"executionSuccessful": True, "exitCode": 0}]
    assert described["automationDetails"]["id"] == "casemate-evaluate/models-thirds.safetensors/"
    assert {rule["id"] for rule in described["tool"]["driver"]["rules"]} >= set(CHECKS)


@pytest.mark.usefixtures("_evaluated")
def test_a_model_that_falls_short_still_writes_both(run: Run, here: Path, tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "deep" / "junit.xml", "--sarif", tmp_path / "deep" / "casemate.sarif")
    code, out, err = run(*COMMAND, "--out", tmp_path / "out", *files, "--fail-under", "95%", "--json")
    assert code == 3
    assert "Traceback" not in err
    low = {each["eps_text"]: each["number"]["robust_accuracy"]["low"] for each in json.loads(out)["verdicts"]}
    found = states(suite_of(tmp_path / "deep" / "junit.xml"))
    assert min(low.values()) < 0.95
    for eps, value in low.items():
        assert found[f"robust accuracy at eps {eps} (linf)"] == ("failure" if value < 0.95 else "passed")
    log = _read(str(tmp_path / "deep" / "casemate.sarif"))
    short = [each for each in results_of(log) if each["ruleId"] == "not-robust-enough"]
    assert len(short) == sum(value < 0.95 for value in low.values())
    assert all(each["level"] == "error" for each in short)
    assert "is below 95%" in short[-1]["message"]["text"]
    assert log["runs"][0]["invocations"] == [{"executionSuccessful": True, "exitCode": 3}]


def test_a_gate_is_compared_at_every_eps(result: EvaluationResult) -> None:
    lows = [each.number.robust.low for each in result.verdicts]
    values = [each.number.robust.value for each in result.verdicts]
    assert lows[0] > lows[1]
    between = Gate(least=(lows[0] + lows[1]) / 2, text="x")
    found = evaluation_run(result, file=None, gate=between)
    assert [each.state for each in found.checks[1:3]] == ["passed", "failed"]
    assert found.exit_code == 3
    kind = replace(between, least=(lows[1] + values[1]) / 2, compares="estimate")
    assert evaluation_run(result, file=None, gate=kind).exit_code == 0
    assert evaluation_run(result, file=None, gate=replace(kind, compares="lower")).exit_code == 3


def test_what_is_not_to_be_trusted_fails_without_a_gate_too(result: EvaluationResult) -> None:
    found = evaluation_run(untrusted(result), file=Path(MODEL))
    assert states(suite_of(junit_xml(found))) == {
        "clean accuracy": "passed",
        "robust accuracy at eps 2/255 (linf)": "failure",
        "robust accuracy at eps 0.1 (linf)": "failure",
        "zero-gradients": "failure",
    }
    assert [(each["ruleId"], each["level"]) for each in results_of(sarif(found))] == [
        ("not-to-be-trusted", "error"),
        ("not-to-be-trusted", "error"),
        ("zero-gradients", "error"),
    ]
    assert found.exit_code == 0
    assert evaluation_run(untrusted(result), file=None, gate=Gate(least=0.0, text="0")).exit_code == 3


@pytest.mark.parametrize(
    ("severity", "state", "level"),
    [
        (Severity.VOIDS, "failure", "error"),
        (Severity.WEAKENS, "passed", "warning"),
        (Severity.NOTE, "passed", "note"),
        (None, "passed", None),
    ],
)
def test_the_severity_of_a_finding_decides(
    result: EvaluationResult, severity: Severity | None, state: str, level: str | None
) -> None:
    found = evaluation_run(changed(result, checked(severity)), file=Path(MODEL))
    suite = suite_of(junit_xml(found))
    assert states(suite)["zero-gradients"] == state
    results = results_of(sarif(found))
    assert [each["level"] for each in results] == ([] if level is None else [level])
    if severity is not None:
        (case,) = [case for case in suite if case.name == "zero-gradients"]
        said = case.result[0].text if state == "failure" else case.system_out
        for text in (said, results[0]["message"]["text"]):
            assert "50.0 % of the images have no gradient. Use another loss" in str(text)


def test_what_flatters_a_model_that_fell_is_no_failure(result: EvaluationResult) -> None:
    *smaller, last = result.verdicts
    trust = replace(last.trust, flattered_by=("zero-gradients",))
    fell = replace(result, verdicts=(*smaller, replace(last, trust=trust)), checks=(checked(Severity.VOIDS),))
    found = evaluation_run(fell, file=Path(MODEL))
    assert states(suite_of(junit_xml(found)))["zero-gradients"] == "passed"
    assert [each["level"] for each in results_of(sarif(found))] == ["warning"]


def test_a_check_of_the_users_own_is_a_rule_with_its_title(result: EvaluationResult) -> None:
    found = evaluation_run(changed(result, checked(Severity.WEAKENS, check="mine")), file=Path(MODEL))
    (rule,) = [each for each in sarif(found)["runs"][0]["tool"]["driver"]["rules"] if each["id"] == "mine"]
    assert rule["shortDescription"]["text"] == "In doubt: Every image has a gradient"
    assert results_of(sarif(found))[0]["ruleId"] == "mine"


# Fingerprints ---------------------------------------------------------------------------------------------------------
def marks(found: CiRun) -> list[str]:
    """The fingerprints of all results, in both forms."""
    return [json.dumps(each["partialFingerprints"]) for each in results_of(sarif(found))]


def test_a_finding_with_other_numbers_keeps_its_fingerprint(result: EvaluationResult) -> None:
    before = evaluation_run(changed(result, checked(Severity.WEAKENS)), file=Path(MODEL))
    after = evaluation_run(
        replace(changed(result, checked(Severity.VOIDS, value=0.6)), seconds=99.0, seed=7), file=Path(MODEL).absolute()
    )
    assert marks(before) == marks(after)
    assert sarif(before)["runs"][0]["automationDetails"] == sarif(after)["runs"][0]["automationDetails"]
    other = evaluation_run(changed(result, checked(Severity.WEAKENS, check="noise")), file=Path(MODEL))
    assert marks(before) != marks(other)


def test_models_and_values_of_eps_have_fingerprints_of_their_own(result: EvaluationResult) -> None:
    gate = Gate(least=1.0, text="1")
    code = Path("nets.py")
    found = [
        evaluation_run(replace(result, model=model), file=file, gate=gate)
        for model, file in (("nets:one", code), ("nets:two", code), (MODEL, Path(MODEL)), ("timm:resnet18", None))
    ]
    every = [mark for each in found for mark in marks(each)]
    assert len(every) == len(set(every)) >= 4 * 2


# Where ----------------------------------------------------------------------------------------------------------------
def places(file: Path | None, subject: str = "model") -> tuple[str | None, dict[str, str] | None]:
    """Where JUnit and SARIF place a run that failed."""
    found = failed_run("casemate evaluate", subject, file, "no", exit_code=2)
    (case,) = suite_of(junit_xml(found))
    (each,) = results_of(sarif(found))
    place = each["locations"][0].get("physicalLocation")
    return case._elem.get("file"), None if place is None else place["artifactLocation"]


def test_paths_are_relative_to_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").write_text("gitdir: elsewhere")  # as in a worktree
    deep = tmp_path / "some folder" / "50% äöü#1"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    inside = "some folder/50% äöü#1/model.onnx"
    for given in (Path("model.onnx"), deep / "model.onnx", Path("../50% äöü#1/model.onnx")):
        shown, place = places(given)
        assert shown == inside
        assert place is not None
        assert unquote(place["uri"]) == inside
        assert place["uri"].isascii()
        assert not set(place["uri"]) & set(" #")
    assert places(Path("../../top.onnx")) == ("top.onnx", {"uri": "top.onnx", "uriBaseId": "%SRCROOT%"})


def test_without_a_repository_paths_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert places(Path("model.onnx")) == ("model.onnx", {"uri": "model.onnx", "uriBaseId": "%SRCROOT%"})
    outside = tmp_path / "model.onnx"
    assert places(Path("../model.onnx")) == (outside.as_posix(), {"uri": outside.as_uri()})
    (tmp_path / "here" / "link.onnx").symlink_to(outside)
    assert places(Path("link.onnx"))[0] == "link.onnx"
    assert places(None) == (None, None)


def test_the_file_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("nets", "package", "package.mine"):  # other tests may have imported their own
        monkeypatch.delitem(sys.modules, module, raising=False)
    for name in ("nets.py", "package/__init__.py", "package/mine.py", "folder/config.json", "weights.pt", "m.onnx"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("raise SystemExit('imported')" if name.endswith(".py") else "{}")
    weights = Path("weights.pt")
    expected = {
        "m.onnx": "m.onnx",
        "folder": "folder/config.json",
        "nets:load": "nets.py",
        "nets.py:load": "nets.py",
        "package:load": "package/__init__.py",
        "package.mine:load": "package/mine.py",
        "missing.onnx": "missing.onnx",
    }
    for model, file in expected.items():
        assert model_file(model) == Path(file), model
    assert model_file("json:load") == Path(json.__file__)
    assert model_file("timm:resnet18") is None
    assert model_file("timm:resnet18", weights) == weights
    assert model_file("no.such.module:load") is None


# Errors ---------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("here")
def test_an_error_is_written_into_both(run: Run, tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "junit.xml", "--sarif", tmp_path / "casemate.sarif")
    code, out, err = run(*COMMAND, "--out", tmp_path / "out", *files, "--images", "0")
    assert (code, out) == (2, "")
    said = "images = 0; expected at least 1"
    assert said in err
    (case,) = suite_of(tmp_path / "junit.xml")
    assert _state(case) == "error"
    assert case.result[0].text == said
    log = _read(str(tmp_path / "casemate.sarif"))
    (found,) = results_of(log)
    assert found["ruleId"] == "run-failed"
    assert found["locations"][0]["physicalLocation"]["artifactLocation"] == LOCATED
    (invocation,) = log["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["exitCode"] == 2
    assert invocation["toolExecutionNotifications"] == [{"level": "error", "message": {"text": said}}]


@pytest.mark.usefixtures("here")
def test_a_bug_is_written_too_and_still_raised(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(evaluating, "prepare", fail)
    with pytest.raises(ZeroDivisionError):
        run(*COMMAND, "--junit", tmp_path / "junit.xml")
    (case,) = suite_of(tmp_path / "junit.xml")
    assert case.result[0].text == "ZeroDivisionError: by zero"


@pytest.mark.usefixtures("here")
def test_ctrl_c_leaves_the_files_of_before(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluating, "prepare", stop)
    (tmp_path / "junit.xml").write_text("before")
    assert run(*COMMAND, "--junit", tmp_path / "junit.xml")[0] == 130
    assert (tmp_path / "junit.xml").read_text() == "before"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--junit", "models"], "--junit models is a folder"),
        (["--junit", os.devnull], "is a folder or a device"),
        (["--sarif", "tiny.npz/casemate.sarif"], "choose another --sarif"),
        (["--sarif", "tiny.npz"], "would replace a file"),
        (["--junit", "models/../models/thirds.json"], "would replace a file"),
        (["--junit", "somewhere/result.json"], "would replace a file"),
        (["--junit", "one", "--sarif", "./one"], "both name one"),
        (["--junit", ""], "--junit . is a folder"),
    ],
)
def test_bad_paths_are_refused_before_anything_runs(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, options: Sequence[str], words: str
) -> None:
    monkeypatch.setattr(evaluating, "prepare", lambda *arguments, **others: pytest.fail("it ran"))
    files = sorted(here.rglob("*"))
    contents = {path: path.read_bytes() for path in files if path.is_file()}
    code, out, err = run(*COMMAND, *options)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert sorted(here.rglob("*")) == files
    assert {path: path.read_bytes() for path in contents} == contents


@pytest.mark.parametrize("write", [write_junit, write_sarif])
def test_files_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, CiRun], Path]
) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(Path, "replace", _disk_full)
    with pytest.raises(StoreError, match="cannot write"):
        write(path, failed_run("casemate evaluate", "model", None, "no", exit_code=2))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def _disk_full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_error_on_writing_does_not_hide_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = CiFiles(junit=tmp_path / "junit.xml")
    monkeypatch.setattr(Path, "replace", _disk_full)
    with pytest.raises(SettingError, match="the first"), files.after_errors("casemate evaluate", "model"):
        raise SettingError("the first")
    assert "No space left on device" in capsys.readouterr().err


# Text -----------------------------------------------------------------------------------------------------------------
RULE = CiRule(name="rule", title="A problem", help="Help")
STRANGE = "a\x00b\x1b[31m <&>\"']]> {0} {name} [text](1) \udc80 \ufffe \U0001f600\nsecond line"


@pytest.mark.parametrize("state", ["passed", "failed", "error", "skipped"])
def test_text_of_any_kind_can_be_written(state: Any) -> None:
    check = CiCheck(name=STRANGE, rule=RULE, state=state, message=STRANGE, level="note")
    found = CiRun(command="casemate evaluate", subject=STRANGE, file=Path(STRANGE[3:]), checks=(check,), exit_code=0)
    found = replace(found, properties={STRANGE: STRANGE})
    (case,) = suite_of(junit_xml(found))
    assert "<&>\"']]> {0} {name}" in case.name
    text = results_of(sarif(found))[0]["message"]["text"]
    assert "{{0}} {{name}} [text\\](1)" in text
    assert json.dumps(sarif(found), ensure_ascii=False).encode()


# A record -------------------------------------------------------------------------------------------------------------
def test_each_claim_of_a_record_is_a_test_case(here: Path) -> None:
    claims = [RecordCheck("one", True, "yes"), RecordCheck("two", False, "3 differ"), RecordCheck("three", None, "no")]
    found = Verification(claims=claims, clean_accuracy=1.0, robust_accuracy=(0.5,), rounded=1.0)
    shown = verification_run(found, record=Path("out/record.json"), model=MODEL, file=here / MODEL)
    assert states(suite_of(junit_xml(shown))) == {"one": "passed", "two": "failure", "three": "skipped"}
    (refuted,) = results_of(sarif(shown))
    assert refuted["ruleId"] == "refuted-claim"
    assert refuted["message"]["text"] == "two: 3 differ"
    assert refuted["locations"][0]["physicalLocation"]["artifactLocation"] == LOCATED
    assert shown.exit_code == 3


@pytest.mark.usefixtures("_evaluated")
def test_verify_writes_both(run: Run, here: Path, tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "junit.xml", "--sarif", tmp_path / "casemate.sarif")
    command = ("verify", here / "out" / "record.json", MODEL, "--data", "tiny.npz", *files)
    code, out, err = run(*command, "--json")
    assert code == 0, err
    claims = json.loads(out)["claims"]
    found = states(suite_of(tmp_path / "junit.xml"))
    assert found == {each["title"]: "skipped" if each["holds"] is None else "passed" for each in claims}
    assert results_of(_read(str(tmp_path / "casemate.sarif"))) == []
    assert run(*command[:2], "missing.safetensors", *command[3:])[0] == 2
    assert _state(next(iter(suite_of(tmp_path / "junit.xml")))) == "error"
    code, _, err = run("verify", "out/record.json", MODEL, "--junit", "out/record.json")
    assert code == 2
    assert "would replace a file" in err


# A comparison ---------------------------------------------------------------------------------------------------------
AT = ("2/255", "0.1")
COMPARED = ("accuracy without an attack", *(f"robust accuracy at eps {eps}" for eps in AT))
TRUST = "both models can be trusted"
BEFORE, AFTER = "models/thirds.safetensors", "models/spoiled.safetensors"


@pytest.fixture
def both(run: Run, here: Path) -> tuple[Path, Path]:
    """The folders of the evaluations of a model and of one that is much worse, whose file is another."""
    folders = here / "compared" / "before", here / "compared" / "after"
    if not folders[1].exists():
        spoiled = thirds()
        with torch.no_grad():
            weight = next(spoiled.network.parameters())
            weight += 3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        save(spoiled, here / AFTER, ModelMetadata(architecture="linear", dataset="tiny"))
        for model, folder in zip((BEFORE, AFTER), folders, strict=True):
            code, _, err = run("evaluate", model, *COMMAND[2:], "--out", folder)
            assert code == 0, err
    return folders


def test_what_became_worse_fails_at_the_file_of_the_second_model(
    run: Run, both: tuple[Path, Path], tmp_path: Path
) -> None:
    files = ("--junit", tmp_path / "junit.xml", "--sarif", tmp_path / "casemate.sarif")
    code, out, err = run("compare", *both, "--fail-if-worse", "--worse-in", "both", "--json", *files)
    assert code == 3, err
    shown = json.loads(out)
    suite = suite_of(tmp_path / "junit.xml")
    assert suite.name == f"casemate compare {AFTER}"
    found = states(suite)
    assert [*found] == [*COMPARED, TRUST]
    for name, each in zip(COMPARED, (shown["clean"], *shown["robust"]), strict=True):
        drops = each["difference"]["value"] < 0 and each["p_value"] < 0.05 / 3
        assert found[name] == ("failure" if drops else "passed")
    assert (found[COMPARED[1]], found[COMPARED[2]]) == ("failure", "passed")
    assert found[TRUST] == "passed"
    log = _read(str(tmp_path / "casemate.sarif"))
    results = results_of(log)
    assert len(results) == [*found.values()].count("failure")
    for each in results:
        assert (each["ruleId"], each["level"]) == ("worse-than-before", "error")
        place = each["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place == {"uri": AFTER, "uriBaseId": "%SRCROOT%"}
    assert f"{COMPARED[1]}: B is worse than A beyond chance: from " in results[-1]["message"]["text"]
    assert log["runs"][0]["invocations"] == [{"executionSuccessful": True, "exitCode": 3}]
    assert log["runs"][0]["automationDetails"]["id"] == "casemate-compare/models-spoiled.safetensors/"
    assert shown["regression"]["sentence"].count(" from ") == len(results)

    assert run("compare", *both[::-1], "--fail-if-worse", *files)[0] == 0  # better
    judged = dict.fromkeys((*COMPARED, TRUST), "passed") | {COMPARED[0]: "skipped"}
    assert states(suite_of(tmp_path / "junit.xml")) == judged
    assert results_of(_read(str(tmp_path / "casemate.sarif"))) == []
    assert run("compare", *both, *files)[0] == 0  # nothing is judged
    assert set(states(suite_of(tmp_path / "junit.xml")).values()) == {"passed"}


def test_only_the_accuracies_that_are_judged_fail(both: tuple[Path, Path]) -> None:
    found = compare_finished(*map(read_finished, both))
    for judged, expected in (("robust", False), ("both", True), ("clean", True)):
        shown = comparison_run(found, found.regression(judged=judged), file=None)  # type: ignore[arg-type]
        assert (shown.checks[0].state == "failed") == expected
        skipped = tuple(each.name for each in shown.checks if each.state == "skipped")
        assert skipped == {"robust": COMPARED[:1], "both": (), "clean": COMPARED[1:]}[judged]
        assert all(
            each.message.startswith("Not judged (see --worse-in). From ")
            for each in shown.checks
            if each.state == "skipped"
        )
    proof = found.regression(margin=0.5)
    assert proof.failing == tuple(name for name in COMPARED[1:] if found.compared()[name].difference.low <= -0.5)
    shown = comparison_run(found, found.regression(margin=0.2), file=None)
    assert shown.checks[2].message.startswith("B may be worse than A by 20 points or more: from ")


def test_from_what_is_not_to_be_trusted_nothing_follows(both: tuple[Path, Path]) -> None:
    a, b = map(read_finished, both)
    found = compare_finished(a, replace(b, result=untrusted(b.result)))
    for gate, code in ((None, 0), (found.regression(), 3)):
        shown = comparison_run(found, gate, file=Path(AFTER))
        assert states(suite_of(junit_xml(shown))) == dict.fromkeys(COMPARED, "skipped") | {TRUST: "failure"}
        (each,) = results_of(sarif(shown))
        assert (each["ruleId"], each["level"]) == ("not-to-be-trusted", "error")
        assert "the number of B is not to be trusted. B: half of the images have no" in each["message"]["text"]
        assert shown.exit_code == code


def test_a_regression_with_other_numbers_keeps_its_fingerprint(both: tuple[Path, Path]) -> None:
    a, b = map(read_finished, both)
    found = compare_finished(a, b)
    worse = replace(b, fooled_at=np.where(np.arange(len(b.labels)) < 30, 0.0, b.fooled_at))
    other = compare_finished(a, worse)
    runs = [
        comparison_run(each, each.regression(judged="both", margin=margin), file=Path(AFTER))
        for each, margin in ((found, 0.1), (other, 0.2))
    ]
    assert runs[0].checks[0].message != runs[1].checks[0].message
    assert len(marks(runs[0])) == 3
    assert marks(runs[0]) == marks(runs[1])


def test_compare_writes_errors_and_refuses_bad_paths(run: Run, both: tuple[Path, Path], tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    code, _, err = run("compare", both[0], "missing.safetensors", "--junit", junit)
    assert code == 2
    (case,) = suite_of(junit)
    assert _state(case) == "error"
    assert str(case.result[0].text) in err
    for bad in (both[1] / "result.json", both[0] / "record.json", both[1]):
        code, _, err = run("compare", *both, "--sarif", bad)
        assert (code, bad.exists()) == (2, True), err
    models = (BEFORE, AFTER, *COMMAND[2:])
    for bad in (BEFORE, AFTER, "out/comparison.json"):
        code, _, err = run("compare", *models, "--out", "out", "--junit", bad)
        assert code == 2
        assert "would replace a file" in err
    code, _, err = run("compare", *models, "--junit", "runs/compare-thirds-spoiled/comparison.json")
    assert code == 2
    assert "would replace a file" in err
    assert not list(Path("runs").glob("compare-*"))


def test_models_are_compared_into_both_files(run: Run, here: Path, both: tuple[Path, Path], tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "junit.xml", "--sarif", tmp_path / "casemate.sarif")
    out = tmp_path / "out"
    command = ("compare", BEFORE, AFTER, *COMMAND[2:], "--out", out, "--workers", 2, "--fail-if-worse")
    code, shown, err = run(*command, "--json", *files)
    assert code == 3, err
    assert err.count("40 images are one part, which this process attacks") == 2
    written = json.loads((out / "comparison.json").read_text())
    assert problems(written) == []
    assert written == json.loads(shown)
    assert written["robust"] == compare_finished(*map(read_finished, both)).as_json()["robust"]
    assert states(suite_of(tmp_path / "junit.xml"))[COMPARED[1]] == "failure"
    (*_, last) = results_of(_read(str(tmp_path / "casemate.sarif")))
    assert last["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == AFTER


def test_the_file_of_code_with_weights_is_that_of_the_code(both: tuple[Path, Path], here: Path) -> None:
    (here / "nets.py").touch()
    found = compare_finished(*map(read_finished, both))
    for model, file in (("nets.py:load", "nets.py"), ("timm:resnet18", AFTER)):
        result = replace(found.b.result, model=model, model_options=("--queries", "9", "--weights", AFTER))
        shown = comparing.ci_run_of(replace(found, b=replace(found.b, result=result)), None)
        assert shown.file == Path(file)


# The standard ---------------------------------------------------------------------------------------------------------
def test_sarif_is_valid_by_the_schema_of_the_standard(result: EvaluationResult) -> None:
    path = os.environ.get("SARIF_SCHEMA")
    if path is None:
        pytest.skip("set SARIF_SCHEMA to the file sarif-schema-2.1.0.json of the standard to validate against it")
    schema = json.loads(Path(path).read_text())
    validator = validator_for(schema)(schema)
    runs = [
        evaluation_run(result, file=Path(MODEL), gate=Gate(least=1.0, text="1")),
        evaluation_run(untrusted(result), file=None),
        failed_run("casemate evaluate", STRANGE, Path("/elsewhere/model.onnx"), STRANGE, exit_code=2),
    ]
    for each in runs:
        validator.validate(json.loads(json.dumps(sarif(each))))
    broken = sarif(runs[0])
    broken["runs"][0]["results"][0]["level"] = "grave"
    assert not validator.is_valid(broken)


@pytest.mark.integration
def test_junit_and_sarif_need_no_torch() -> None:
    code = (
        "import sys; from casemate.report.ci.junit import junit_xml; from casemate.report.ci.sarif import sarif; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The examples ---------------------------------------------------------------------------------------------------------
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "ci"
SERVICES = {"github.yml": "vendor.github-workflows", "gitlab.yml": "vendor.gitlab-ci"}


def validated(file: Path, schema: str) -> int:
    """The exit code of the validation of a service's file by its schema, which check-jsonschema brings along."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode


@pytest.mark.parametrize(("name", "schema"), SERVICES.items())
def test_the_examples_fit_the_services(tmp_path: Path, name: str, schema: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert validated(EXAMPLES / name, schema) == 0
    broken = tmp_path / name
    broken.write_text(re.sub(r"timeout(-minutes)?: .*", r"timeout\1: [1]", text))
    assert validated(broken, schema) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_the_commands_of_the_examples_can_be_parsed(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^ *(casemate evaluate (?:.*\n?)*?.*\.sarif)\b", text, re.MULTILINE)
    words = shlex.split(command)
    values = {"$MODEL": "models/classifier.safetensors", "$DATA": "data/test.npz", "$EPS": "8/255", "$LEAST": "40%"}
    made = parse([values.get(word, word) for word in words[1:]])
    assert isinstance(made, Evaluate)
    assert (made.fail_under, made.evaluation.eps) == ("40%", ("8/255",))
    assert (made.ci.junit, made.ci.sarif) == (Path("robustness-junit.xml"), Path("robustness.sarif"))
    for file in ("robustness-junit.xml", "robustness.sarif", ".casemate-store"):
        assert text.count(file) >= 2, f"{file} is written and not kept"
