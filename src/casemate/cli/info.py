"""Show versions, device, folders, data sets, networks, models, recipes, attacks.
- Please attach its output to a bug report.

Examples:
  casemate info
  casemate info --json
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from casemate.cli.shared import console, parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Json, Machine
from casemate.engine import default_store
from casemate.errors import CasemateError, CasemateWarning
from casemate.extensions import INFO, extensions, load_extension
from casemate.files import cache_folder
from casemate.provenance import surroundings
from casemate.waiting_threads import describe_waiting


@dataclass(frozen=True, kw_only=True)
class Info:
    """The options of `casemate info`."""

    json: Json = False

    def run(self) -> None:
        """Collect versions, device, folders, data sets, networks, models, recipes and attacks, and print them."""
        with watching() as observer:
            device, threads = Machine().set_up(observer)
            import torch

            from casemate import models
            from casemate.attacks.registry import attack_types, summary_of
            from casemate.cli.data import run as datasets
            from casemate.cli.shared import augmentations
            from casemate.data.named import AUGMENTATIONS
            from casemate.defenses import RECIPES
            from casemate.losses import TITLES

            facts: dict[str, Any] = surroundings(device, threads)
            facts["waiting_threads"] = describe_waiting()
            facts["gpu"] = torch.cuda.get_device_name() if device == "cuda" else None
            facts |= {"cache": str(cache_folder()), "store": str(default_store())}
            facts["CASEMATE_DATA"] = os.environ.get("CASEMATE_DATA")
            found = {name: datasets.find(name, None, observer) for name in datasets.TITLES}
            facts["data_sets"] = [datasets.found_as_json(name, each) for name, each in found.items()]
            facts["networks"] = list(models.names())
            facts["models"] = models.pretrained_models()
            facts["augmentations"] = {name: augmentations.augmentation_defaults(name) for name in AUGMENTATIONS}
            facts["recipes"] = {name: summary_of(kind.objective) for name, kind in RECIPES.items()}
            facts["attacks"] = {name: summary_of(kind) for name, kind in attack_types().items()}
            facts["losses"] = dict(TITLES)
            for point in extensions(INFO):
                try:
                    facts[point.name] = load_extension(point)()
                except CasemateError as error:
                    warnings.warn(str(error), CasemateWarning, stacklevel=2)
        if self.json:
            console.show_json(facts, "casemate/info/1")
            return
        made = console.new_table("", "")
        made.show_header = False
        for name, value in facts.items():
            made.add_row(f"[bold]{name.replace('_', ' ')}[/]", escape(_words(value)))
        console.show(made)


def _words(value: Any) -> str:
    """A value of the table as text: mappings, and the list of data sets, with a line per entry, others on one line."""
    if isinstance(value, dict):
        return "\n".join(_line(name, each) for name, each in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(f"{each['name']}: {each['found'] or 'not found'}" for each in value)
    return console.words(value)


def _line(name: str, value: Any) -> str:
    """The line for one entry of a mapping: `name: value`; for an augmentation `name:setting=default,...`."""
    if isinstance(value, dict):
        settings = ",".join(f"{setting}={default:g}" for setting, default in value.items())
        return f"{name}:{settings}" if settings else name
    return f"{name}: {value}"


def parse(argv: Sequence[str]) -> Info:
    """The command `casemate info` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(Info, "casemate info", __doc__ or "", argv)
