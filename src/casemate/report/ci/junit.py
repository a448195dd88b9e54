"""JUnit XML: a run as one test suite, each of its checks as a test case.

The attributes are those that Jenkins, GitLab and others read; there is no official schema. What a check found is the
text of its failure, or of its output if it passed.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from casemate.files import write_bytes
from casemate.report.ci.checks import CiCheck, CiRun
from casemate.report.ci.location import shown_file

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""The characters that XML 1.0 has no way of writing."""


def junit_xml(run: CiRun) -> bytes:
    """The run as a JUnit XML document in UTF-8."""
    states = [each.state for each in run.checks]
    seconds = run.seconds
    if seconds is None:
        seconds = sum(each.seconds or 0.0 for each in run.checks)
    counts = {
        "tests": str(len(states)),
        "failures": str(states.count("failed")),
        "errors": str(states.count("error")),
        "skipped": str(states.count("skipped")),
        "time": _seconds(seconds),
    }
    root = _element(None, "testsuites", {"name": "casemate", **counts})
    written = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    suite = _element(root, "testsuite", {"name": run.title, **counts, "timestamp": written})
    if run.properties:
        properties = _element(suite, "properties")
        for name, value in run.properties.items():
            _element(properties, "property", {"name": name, "value": value})
    for check in run.checks:
        _add(suite, run, check)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def write_junit(path: Path, run: CiRun) -> Path:
    """Write the run as JUnit XML, whole or not at all, and return `path`. Raises `StoreError`."""
    return write_bytes(path, junit_xml(run))


def _add(suite: ElementTree.Element, run: CiRun, check: CiCheck) -> None:
    about = {"classname": run.title, "name": check.name, "time": _seconds(check.seconds or 0.0)}
    if run.file is not None:
        about["file"] = shown_file(run.file)
    case = _element(suite, "testcase", about)
    first_line = check.message.partition("\n")[0]
    match check.state:
        case "failed":
            _element(case, "failure", {"message": first_line, "type": check.rule.name}, check.message)
        case "error":
            _element(case, "error", {"message": first_line, "type": check.rule.name}, check.message)
        case "skipped":
            _element(case, "skipped", {"message": first_line})
        case "passed":
            if check.message:
                words = check.message if check.level is None else f"{check.level}: {check.message}"
                _element(case, "system-out", text=words)


def _element(
    parent: ElementTree.Element | None, name: str, attributes: Mapping[str, str] | None = None, text: str | None = None
) -> ElementTree.Element:
    """A new element, the last in `parent`, without the characters that XML cannot hold."""
    safe = {key: _text(value) for key, value in (attributes or {}).items()}
    made = ElementTree.Element(name, safe) if parent is None else ElementTree.SubElement(parent, name, safe)
    made.text = None if text is None else _text(text)
    return made


def _text(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"
