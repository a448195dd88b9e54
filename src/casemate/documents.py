"""The JSON documents that commands print with --json and write as result.json: each names its schema and version.

A schema is a file of JSON Schema 2020-12 in the folder `schemas` of the package that makes the document, called
NAME-VERSION.json. Packages that add commands can have such a folder too. `docs/json.md` describes all fields.
"""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from casemate.errors import SettingError
from casemate.extensions import COMMANDS, extensions
from casemate.settings import suggestion

EVALUATION = "casemate/evaluation/1"
ATTACK = "casemate/attack/1"
HARDENING = "casemate/hardening/1"
COMPARISON = "casemate/comparison/1"
BENCHMARK = "casemate/benchmark/1"
CERTIFICATION = "casemate/certification/1"
SMOOTHING = "casemate/smoothing/1"
_FILE = re.compile(r"(?P<name>[a-z][a-z-]*)-(?P<version>\d+)\.json")
_COMMON = "common.json"
"""The file with the parts that several schemas share, as `$defs`."""


def document(schema: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The document with this content: its first field, `schema`, names its schema, such as "casemate/attack/1"."""
    return {"schema": schema, **{name: value for name, value in content.items() if name != "schema"}}


def schema_names() -> list[str]:
    """The names of all schemas of the installed packages, such as "casemate/attack/1", in ascending order."""
    return sorted(_files(), key=lambda name: (*name.split("/")[:2], int(name.rpartition("/")[2])))


def read_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a document, complete in itself.

    Args:
        name: such as "casemate/attack/1"; without the version the newest one, and without the package the first that
            has it: "attack".

    Raises:
        SettingError: there is no such schema; the message suggests a similar one.
    """
    known = schema_names()
    found = [each for each in known if name in (each, each.rpartition("/")[0], *_without_package(each))]
    if not found:
        short = {each.split("/")[1]: None for each in known}
        raise SettingError(
            f"no schema {name!r}; expected one of {', '.join(known)}{suggestion(name, [*short, *known])}"
        )
    file = _files()[max(found, key=lambda each: (each.startswith("casemate/"), int(each.rpartition("/")[2])))]
    return _complete(json.loads(file.read_text(encoding="utf-8")))


def _without_package(name: str) -> tuple[str, str]:
    """A schema's name without the package: "attack/1" and "attack"."""
    _, _, rest = name.partition("/")
    return rest, rest.rpartition("/")[0]


def _files() -> dict[str, Path]:
    """The file of each schema by the schema's name; no package is imported to find them."""
    packages = {"casemate", *(point.value.partition(":")[0].partition(".")[0] for point in extensions(COMMANDS))}
    found: dict[str, Path] = {}
    for package in sorted(packages):
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            for file in (Path(place) / "schemas").glob("*.json"):
                if (parts := _FILE.fullmatch(file.name)) is not None:
                    found[f"{package.replace('_', '-')}/{parts['name']}/{parts['version']}"] = file
    return found


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what it takes from the common file among its own `$defs`."""
    common = json.loads((Path(__file__).parent / "schemas" / _COMMON).read_text(encoding="utf-8"))["$defs"]
    text = json.dumps(schema).replace(f'"{_COMMON}#/', '"#/')
    made = json.loads(text)
    own, wanted = dict(made.get("$defs", {})), _references(text)
    while missing := [each for each in wanted if each not in own]:
        own |= {each: common[each] for each in missing}
        wanted = _references(json.dumps(own)) | wanted
    return {**made, "$defs": dict(sorted(own.items()))} if own else made


def _references(text: str) -> set[str]:
    return set(re.findall(r'"#/\$defs/([^"]+)"', text))
