"""The figures of a finished study, as the page shows them: pictures from the folder of its report, nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from casemate.errors import RecordError
from casemate.files import read_json
from casemate.report.page import data_uri

_SUMMARY = "summary.json"
_RUNS = "runs"


@final
@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A figure of a study."""

    title: str
    caption: str
    picture: str
    """The SVG as a data URI, which a page shows as a picture: what is in it cannot run."""


@final
@dataclass(frozen=True, kw_only=True)
class FinishedStudy:
    """A finished study."""

    folder: Path
    scale: str
    figures: Mapping[str, StudyFigure]
    """By name, in the order of the report."""


def read_study(folder: Path) -> FinishedStudy:
    """The figures of the report in a folder. Raises `RecordError` if it is none of `casemate study`, or incomplete."""
    found = read_json(folder / _SUMMARY, RecordError)
    figures: dict[str, StudyFigure] = {}
    try:
        for each in found["figures"]:
            name = Path(str(each["name"])).name  # in the folder itself, whatever the file says
            raw = (folder / "figures" / f"{name}.svg").read_bytes()
            picture = data_uri("image/svg+xml", raw)
            figures[name] = StudyFigure(title=str(each["title"]), caption=str(each["caption"]), picture=picture)
        return FinishedStudy(folder=folder, scale=str(found["scale"]), figures=figures)
    except (KeyError, TypeError, OSError) as error:
        raise RecordError(
            f"{folder} is no report of a study, or one of an earlier casemate ({type(error).__name__}: {error}); write "
            "it again by `casemate report`"
        ) from error


def latest_study(runs: Path = Path(_RUNS)) -> FinishedStudy | None:
    """The study in `runs` whose report was written last; None if there is none that can be read."""
    for path in sorted(runs.glob(f"study-*/{_SUMMARY}"), key=lambda each: each.stat().st_mtime, reverse=True):
        try:
            return read_study(path.parent)
        except RecordError:
            continue
    return None
