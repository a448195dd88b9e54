"""The published schemas, as tests use them: what is wrong with a JSON document that a command prints or writes."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from casemate.documents import read_schema


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(read_schema(name))


def problems(document: Mapping[str, Any]) -> list[str]:
    """Where and how a document departs from the schema that it names; fields that the schema does not know count."""
    content = json.loads(json.dumps(document, allow_nan=False))
    return [f"{each.json_path}: {each.message[-300:]}" for each in _validator(content["schema"]).iter_errors(content)]
