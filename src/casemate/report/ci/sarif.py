"""SARIF 2.1.0 (an OASIS standard): what is wrong with a model, as tools that show problems beside code read it.

Each check that is to be reported is a result at line 1 of the model's file, relative to the repository; checks that
passed are not in the file. A result is recognised in later runs by its `partialFingerprints`, which depend on the rule,
the model, and what distinguishes the check, and on no measured number.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate._version import __version__
from casemate.files import write_text
from casemate.report.ci.checks import CiCheck, CiRule, CiRun
from casemate.report.ci.location import as_uri, normalised, within_repository

SARIF_VERSION = "2.1.0"
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"
"""The name that SARIF files give to the root of the repository."""


def sarif(run: CiRun) -> dict[str, Any]:
    """The run as a SARIF log, for `json.dumps`."""
    rules = list({check.rule.name: check.rule for check in run.checks}.values())
    invocation: dict[str, Any] = {"executionSuccessful": not run.errors, "exitCode": run.exit_code}
    if run.errors:
        invocation["toolExecutionNotifications"] = [
            {"level": "error", "message": _message(check.message)} for check in run.errors
        ]
    made: dict[str, Any] = {
        "tool": {"driver": {"name": "casemate", "version": __version__, "rules": [_described(each) for each in rules]}},
        "automationDetails": {"id": f"{_slug(run.command)}/{_slug(_model(run))}/"},
        "columnKind": "utf16CodeUnits",
        "invocations": [invocation],
        "results": [_result(run, check, rules) for check in run.checks if check.reported is not None],
    }
    if run.file is not None and within_repository(run.file) is not None:
        made["originalUriBaseIds"] = {_ROOT: {"description": {"text": "The root of the repository."}}}
    return {"version": SARIF_VERSION, "$schema": _SCHEMA, "runs": [made]}


def write_sarif(path: Path, run: CiRun) -> Path:
    """Write the run as a SARIF log, whole or not at all, and return `path`. Raises `StoreError`."""
    return write_text(path, json.dumps(sarif(run), indent=1) + "\n")


def _described(rule: CiRule) -> dict[str, Any]:
    return {
        "id": rule.name,
        "shortDescription": _message(rule.title),
        "fullDescription": _message(rule.title),
        "help": _message(rule.help),
    }


def _result(run: CiRun, check: CiCheck, rules: Sequence[CiRule]) -> dict[str, Any]:
    """The result about one check; without a file its location is the model's name."""
    found = hashlib.sha256("\n".join((check.rule.name, _model(run), check.identity)).encode(errors="replace"))
    mark = found.hexdigest()[:32]
    location: dict[str, Any] = {"logicalLocations": [{"name": _clean(run.subject), "kind": "module"}]}
    if run.file is not None:
        location["physicalLocation"] = {"artifactLocation": _artifact(run.file), "region": {"startLine": 1}}
    return {
        "ruleId": check.rule.name,
        "ruleIndex": [each.name for each in rules].index(check.rule.name),
        "level": check.reported,
        "message": _message(f"{check.name}: {check.message}" if check.message else check.name),
        "locations": [location],
        # the second name is the one that GitHub reads
        "partialFingerprints": {"casemateCheck/v1": mark, "primaryLocationLineHash": f"{mark[:16]}:1"},
    }


def _artifact(file: Path) -> dict[str, str]:
    inside = within_repository(file)
    return {"uri": normalised(file).as_uri()} if inside is None else {"uri": as_uri(inside), "uriBaseId": _ROOT}


def _model(run: CiRun) -> str:
    """The model's file relative to the repository, with the name of the function where code builds it."""
    if run.file is None:
        return run.subject
    inside = within_repository(run.file)
    function = run.subject.rpartition(":")[2] if run.file.suffix == ".py" else ""
    return ":".join(filter(None, (as_uri(normalised(run.file) if inside is None else inside), function)))


def _slug(text: str) -> str:
    """The text without blanks and slashes, as a part of an identifier that slashes separate."""
    return "-".join(_clean(text).replace("/", "-").split()) or "-"


def _clean(text: str) -> str:
    """The text as Unicode: file names may hold bytes that stand for no character."""
    return text.encode(errors="replace").decode()


def _message(text: str) -> dict[str, str]:
    """A message object, in which braces and what would be read as a link stand for themselves."""
    return {"text": _clean(text).replace("{", "{{").replace("}", "}}").replace("](", "\\](")}
