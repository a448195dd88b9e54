"""Write the section of docs/json.md on each document from the schemas.

    python tools/json_page.py

What stands before the marker is written by hand and stays; a test fails when the rest is not what this writes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from casemate.documents import read_schema, schema_names

PAGE = Path(__file__).parent.parent / "docs" / "json.md"
MARKER = "<!-- Below this line: python tools/json_page.py -->"
SHARED = "Parts"
"""The heading of the section on the parts that documents share."""


def sections() -> Iterator[str]:
    """The Markdown of every document, then of every part that documents have in common or more than once."""
    parts: dict[str, Mapping[str, Any]] = {}
    for name in schema_names():
        schema = read_schema(name)
        own = {f"{part} of {name}" if part in _OWN_PARTS else part: each for part, each in _parts(schema).items()}
        parts |= own
        yield f"## {name}\n{schema['description']}\n\n{_table(schema, name)}"
    yield f"## {SHARED}\n{''.join(_section(part, parts[part]) for part in sorted(parts))}"


_OWN_PARTS = ("difference", "model", "row")
"""Parts that a schema defines for itself alone: named after it."""


def _parts(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema.get("$defs", {})


def _section(part: str, schema: Mapping[str, Any]) -> str:
    name = part.partition(" of ")[2]
    return f"\n### {part}\n{schema['description']}\n\n{_table(schema, name)}"


def _table(schema: Mapping[str, Any], document: str) -> str:
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in _rows(schema, "", document))
    return f"| field | type | meaning |\n|---|---|---|\n{rows}"


def _rows(schema: Mapping[str, Any], prefix: str, document: str) -> Iterator[tuple[str, str, str]]:
    """A row for each field of an object, and for the fields of objects inside it that are no parts of their own."""
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        optional = "" if name in required else ", may be missing"
        yield f"`{path}`", f"{_type(each, document)}{optional}", _meaning(each)
        yield from _inside(each, path, document)
    extra = schema.get("additionalProperties")
    if schema.get("properties") and isinstance(extra, Mapping):
        yield f"`{prefix}*`", _type(extra, document), _meaning(extra)
        yield from _inside(extra, f"{prefix}*", document)


def _inside(schema: Mapping[str, Any], path: str, document: str) -> Iterator[tuple[str, str, str]]:
    """The rows of the fields inside a field: of the object, or of each element of a list or mapping."""
    if "items" in schema and schema["items"].get("type") == "object":
        yield from _rows(schema["items"], f"{path}[].", document)
    elif schema.get("properties"):
        yield from _rows(schema, f"{path}.", document)
    elif isinstance(extra := schema.get("additionalProperties"), Mapping) and extra.get("properties"):
        yield from _rows(extra, f"{path}.*.", document)


def _type(schema: Mapping[str, Any], document: str) -> str:
    """The type of a field in words, with its range."""
    if "anyOf" in schema:
        return " or ".join(_type(each, document) for each in schema["anyOf"])
    if "$ref" in schema:
        part = schema["$ref"].rpartition("/")[2]
        target = f"{part} of {document}" if part in _OWN_PARTS else part
        return f"[{part}](#{target.lower().replace(' ', '-').replace('/', '')})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join("null" if each is None else f"`{each}`" for each in schema["enum"])
    kinds = schema.get("type", "any")
    words = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    if "items" in schema and "array" in words:
        words = words.replace("array", f"list of {_type(schema['items'], document)}")
    if isinstance(extra := schema.get("additionalProperties"), Mapping) and not schema.get("properties"):
        words = words.replace("object", f"mapping to {_type(extra, document)}")
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        words += f" from {low}" if high is None else f" from {low} to {high}"
    return words


def _meaning(schema: Mapping[str, Any]) -> str:
    return schema["description"].replace("|", "\\|")


def page(text: str) -> str:
    """The page with everything after the marker written anew."""
    by_hand, marker, _ = text.partition(MARKER)
    return "\n".join([by_hand + (marker or MARKER), "", *sections()])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
