"""`casemate report`: the report of what the store has finished so far."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import arg

from casemate.cli import console
from casemate.cli.options import Device, Json, Selection, check_folder, resolve
from casemate.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make the study's report from what is finished so far.
    - Nothing is computed: give the options of the study that the report is of.

    Examples:
      casemate report --scale full           while the study is still running
      casemate report --only E2 --out fgsm   one experiment
    """

    selection: Selection = field(default_factory=Selection)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/study-SCALE)")] = None
    """Where the report goes."""
    device: Device = "auto"
    json: Json = False

    def run(self) -> None:
        """Build the report of the finished pieces."""
        out = self.out or self.selection.default_out()
        check_folder(out)
        with console.observer() as observer:
            study = self.selection.plan(resolve(self.device, observer), observer)
            done, total = len(study.plan.pieces), len(study.plan.tasks)
            if not done:
                raise SettingError(
                    f"none of the {total} pieces of this study is finished in {study.store.root}; run `casemate study` "
                    "with the same options first"
                )
            with observer.work("Writing the report", 0):
                from casemate.report.build import build_report

                path = build_report(study, study.plan.pieces, out)
        if self.json:
            console.show_json({"report": str(path), "finished": done, "pieces": total})
        else:
            whole = "all" if done == total else str(done)
            console.show(f"Report of {whole} of {total} pieces: {escape(str(path))}")
