"""Write the study's report from the artifacts that are finished so far.
- Nothing is computed: pass the options of the study that the report is on.

Examples:
  casemate report --scale full           while the study is still running
  casemate report --only E2 --out fgsm   one experiment
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import arg

from casemate.cli.shared import console, outputs, parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Device, Json, check_folder, resolve
from casemate.cli.shared.outputs import Overwrite
from casemate.errors import SettingError
from casemate_study.cli.study.selection import Selection
from casemate_study.experiments.catalogue import choose_experiments


@dataclass(frozen=True, kw_only=True)
class Report:
    """The options of `casemate report`; `run` executes the command."""

    selection: Selection = field(default_factory=Selection)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/study-SCALE)")] = None
    """Folder to write the report to."""
    overwrite: Overwrite = False
    device: Device = "auto"
    json: Json = False

    def run(self) -> None:
        """Write the report of the artifacts that are finished, and print its path. Computes none.

        Raises `SettingError` if no artifact of this study is finished.
        """
        choose_experiments(self.selection.only)
        out = self.out or self.selection.default_out()
        with watching() as observer:
            device = resolve(self.device, observer)
            from casemate_study.cli.study import run

            study = run.plan(self.selection, device, observer, to_run=False)
            if study.pieces is not None and not study.pieces.exists:
                raise SettingError(f"{study.pieces.root} has no pieces; check the path, or leave --pieces out")
            artifacts, total = study.plan.artifacts, len(study.plan.tasks)
            if not artifacts:
                raise SettingError(
                    f"none of the {total} artifacts of this study is finished in {study.store.location}; run "
                    "`casemate study` with the same options first"
                )
            check_folder(out)
            outputs.check_report(out, run.identity(study), overwrite=self.overwrite, observer=observer)
            path = run.write_report(study, artifacts, out, observer)
        if self.json:
            console.show_json(
                {"report": str(path), "finished": len(artifacts), "artifacts": total}, "casemate-study/report/1"
            )
        else:
            whole = "all" if len(artifacts) == total else str(len(artifacts))
            console.show(f"Report of {whole} of {total} artifacts: {escape(str(path))}")


def parse(argv: Sequence[str]) -> Report:
    """Parse the arguments of `casemate report`; exits with 2 on an error in them, with 0 after --help."""
    return parsing.parse(Report, "casemate report", __doc__ or "", argv)
