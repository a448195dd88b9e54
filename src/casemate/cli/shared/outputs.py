"""Folders of results of commands: those of another run are replaced only with --overwrite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from casemate.progress import Observer
from casemate.report.folder import CONTACT_SHEET as CONTACT_SHEET
from casemate.report.folder import FILES as FILES
from casemate.report.folder import RESULT as RESULT
from casemate.report.folder import SUMMARY as SUMMARY
from casemate.report.folder import check_replaceable

Overwrite = Annotated[
    bool, FlagCreatePairsOff, arg(help="Replace the results of another run in OUT.", help_behavior_hint="")
]

IN_THE_WAY = "choose another --out, or give --overwrite to replace it"
"""End of error messages about a result that exists already: what the user can do."""


def check_results(
    folder: Path, about: Mapping[str, Any], *, overwrite: bool, observer: Observer, file: str = RESULT
) -> None:
    """`casemate.report.folder.check_replaceable` with the command line's advice: another --out, or --overwrite."""
    check_replaceable(folder, about, overwrite=overwrite, observer=observer, advice=IN_THE_WAY, file=file)


def check_report(folder: Path, about: Mapping[str, Any], *, overwrite: bool, observer: Observer) -> None:
    """`check_results` for the report of a study.

    A report on the digits, computed because Fashion-MNIST was unavailable, may be replaced by one on another data set.
    """
    check_results(folder, about, overwrite=overwrite, observer=observer, file=SUMMARY)
