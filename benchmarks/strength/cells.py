"""Files of results, each about one network in one norm, and the option that says where the networks are."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from networks import FOLDER, Network, path_of
from originals import EPS, Norm


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One file of results: a network and a norm."""

    results: Path
    """The folder of the file."""
    network: Network
    norm: Norm

    @property
    def path(self) -> Path:
        """Its file."""
        return self.results / f"{self.network.name}-{self.norm}.json"

    @property
    def eps(self) -> tuple[float, ...]:
        """The radii at which the originals are run, ascending."""
        return EPS[self.network.name][self.norm]

    def read(self) -> dict[str, Any]:
        """What is known; empty if nothing is."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the networks' weights")
    parser.add_argument("--page", action="store_true", help="only write the page of what is there")
    return parser


def has_networks(cells: Iterable[Cell], folder: Path) -> bool:
    """Whether the weights of all networks are there; says which are not."""
    missing = sorted({each.network.name for each in cells if not path_of(each.network.name, folder).is_file()})
    if missing:
        print(f"no network {', '.join(missing)}; run networks.py first", file=sys.stderr)
    return not missing
