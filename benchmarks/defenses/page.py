"""The page of results from the stored cells, and where these are."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from plan import PAIRS, SEEDS, Pair

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
STEPS_FILE = HERE / "steps.json"
PAGE = HERE / "results.md"


def path_of(pair: Pair, side: str, seed: int) -> Path:
    """The file of a cell."""
    return RESULTS / f"{pair.name}-{side}-{seed}.json"


def read(pair: Pair, side: str, seed: int) -> dict[str, Any] | None:
    """A cell's results; None if there are none, or of other settings."""
    path = path_of(pair, side, seed)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if found["spec"] == json.loads(json.dumps(pair.spec)) else None


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([pair.name for pair in PAIRS if mean(SEEDS) and pair])
