"""The options of `casemate study`, and the method that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from casemate.cli.shared import outputs, parsing
from casemate.cli.shared.engines import EngineOptions
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Flag, Json, Machine, check_folder
from casemate.cli.shared.outputs import Overwrite
from casemate.cli.shared.tracking import Track, check_trackers, tracking
from casemate.errors import StoreError
from casemate_study.cli import study
from casemate_study.cli.study.selection import Selection
from casemate_study.experiments.catalogue import choose_experiments


@dataclass(frozen=True, kw_only=True)
class Study:
    """The options of `casemate study`; `run` executes the command."""

    selection: Selection = field(default_factory=Selection)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/study-SCALE)")] = None
    """Folder to write the report to."""
    overwrite: Overwrite = False
    no_report: Flag = False
    """Compute only; `casemate report` writes the report later."""
    dry_run: Flag = False
    """Compute nothing: list the artifacts, those that are finished, and the time that the rest would take."""
    json: Json = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    track: Track = ()
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Compute the study's missing artifacts, write the report and print the results; with --dry-run only print the
        plan.
        """
        choose_experiments(self.selection.only)
        self.engine.check()
        out = self.out or self.selection.default_out()
        if self.dry_run and out.exists() and not out.is_dir():
            raise StoreError(f"{out} is a file, but a folder is expected there: choose another --out")
        if not self.dry_run and not self.no_report:
            check_folder(out)
        check_trackers(self.track)
        with watching() as observer:
            device, threads = self.machine.set_up(observer, default_threads=1)
            from casemate_study.cli.study import run, show

            planned = run.plan(self.selection, device, observer)
            workers = run.default_workers(device, threads)
            if self.dry_run:
                at_a_time = self.engine.workers or workers
                display = partial(show.show_plan, planned, run.measure(planned, observer), at_a_time)
            else:
                report = None if self.no_report else out
                if report is not None:
                    outputs.check_report(report, run.identity(planned), overwrite=self.overwrite, observer=observer)
                engine = self.engine.make(device, threads, workers)
                with tracking(
                    self.track,
                    observer,
                    name=f"study-{planned.setup.scale.name}",
                    folder=out / "tensorboard",
                    settings=run.about(planned),
                ) as tracked:
                    found = run.compute(
                        planned, self.selection, threads=threads, engine=engine, out=report, observer=tracked
                    )
                    run.track_results(found, tracked)
                display = partial(show.show_results, planned, found)
        display(as_json=self.json)


def parse(argv: Sequence[str]) -> Study:
    """Parse the arguments of `casemate study`; exits with 2 on an error in them, with 0 after --help."""
    return parsing.parse(Study, "casemate study", study.__doc__ or "", argv)
