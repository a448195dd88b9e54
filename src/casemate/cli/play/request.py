"""What `casemate play` shows: which models and images."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from casemate.cli.shared.options import MODEL_HELP, DataDir, DataFile, ModelOptions, Reading, Subset, TestSet


@dataclass(frozen=True, kw_only=True)
class PlayRequest:
    """Which models and images the page shows."""

    model: Annotated[
        Positional[str | None],
        arg(metavar="MODEL", help=MODEL_HELP, help_behavior_hint="(default: those that come with casemate)"),
    ] = None
    dataset: TestSet = None
    data: DataFile = None
    data_dir: DataDir = None
    subset: Subset = None
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)
