"""Print the JSON Schema of a document that --json prints, or list them.
- Each document names its schema and version in its field `schema`. Within a
  version fields are only added that may be missing; anything else makes a
  new version.

Examples:
  casemate schema                 what are there?
  casemate schema evaluation      the newest version
  casemate schema casemate/evaluation/1 > evaluation.schema.json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from casemate.cli.shared import console, parsing
from casemate.documents import read_schema, schema_names


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The options of `casemate schema`."""

    name: Annotated[Positional[str], arg(metavar="[NAME]", help_behavior_hint="(default: list all)")] = ""
    """The schema: its name, with or without the package and the version."""

    def run(self) -> None:
        """Print the schema called `name`, or a row for each. Raises `SettingError` if there is none of that name."""
        if self.name:
            sys.stdout.write(json.dumps(read_schema(self.name), indent=1, ensure_ascii=False) + "\n")
            return
        made = console.new_table("Schema", "What it describes")
        for name in schema_names():
            made.add_row(name, escape(read_schema(name)["description"]))
        console.show(made)


def parse(argv: Sequence[str]) -> Schema:
    """The command `casemate schema` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(Schema, "casemate schema", __doc__ or "", argv)
