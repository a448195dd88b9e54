"""What `casemate play` shows: which models and images."""

from dataclasses import dataclass, field
from pathlib import Path
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
    study: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the last in runs)")] = None
    """The folder of a study's report, whose figures a tab shows."""
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)
