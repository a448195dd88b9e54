"""`casemate study`: run the study, or say what running it would take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from tyro.conf import arg

from casemate.cli import console, summary
from casemate.cli.options import Flag, Json, Machine, Selection, check_folder
from casemate.errors import StoreError

if TYPE_CHECKING:
    from casemate.study.run import Study as Planned
    from casemate.study.speed import Speed


@dataclass(frozen=True, kw_only=True)
class Study:
    """Reproduce the paper's study: train, attack, report.
    - Every finished piece is kept at once and never computed twice: after a kill
      or Ctrl-C the same command goes on from there.
    - At the end there is a report, one HTML file; its main numbers are printed.

    Examples:
      casemate study --scale smoke             does everything run? a minute
      casemate study --scale full --dry-run    what would it take?
      casemate study --only E2 E3              two experiments, quick scale
    """

    selection: Selection = field(default_factory=Selection)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/study-SCALE)")] = None
    """Where the report goes."""
    no_report: Flag = False
    """Compute only; `casemate report` makes the report later."""
    dry_run: Flag = False
    """Compute nothing: list the pieces, what is finished, and the time the rest would take."""
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Run the study, or plan it."""
        out = self.out or self.selection.default_out()
        if self.dry_run:
            if out.exists() and not out.is_dir():
                raise StoreError(f"{out} is a file, but a folder is expected there: choose another --out")
            self._plan()
        else:
            if not self.no_report:
                check_folder(out)
            self._compute(out)

    def _plan(self) -> None:
        with console.observer() as observer:
            device, _ = self.machine.set_up(observer)
            study = self.selection.plan(device, observer)
            from casemate.study.speed import measure_speed

            with observer.work("Measuring how fast this machine is", 0):
                speed = measure_speed(study.dataset.image_shape, device)
        if self.json:
            console.show_json(_header(study) | _pieces(study, speed))
        else:
            _show_plan(study, speed)

    def _compute(self, out: Path) -> None:
        with console.observer() as observer:
            device, threads = self.machine.set_up(observer)
            study = self.selection.plan(device, observer)
            missing = len(study.plan.missing)
            total = len(study.plan.tasks)
            if missing:
                observer.say(f"{missing} of {total} pieces to compute, {total - missing} finished before.")
            else:
                observer.say(f"All {total} pieces were finished before; nothing is computed.")
            from casemate.study.run import run_study

            pieces = run_study(study, threads=threads, data_dir=self.selection.data_dir, observer=observer)
            report = None
            if not self.no_report:
                with observer.work("Writing the report", 0):
                    from casemate.report.build import build_report

                    report = build_report(study, pieces, out)
        rows = summary.rows(pieces)
        if self.json:
            done = {"computed": missing, "pieces": {name: piece.key for name, piece in pieces.items()}}
            found = {"results": [row.as_json() for row in rows], "report": None if report is None else str(report)}
            console.show_json(_header(study) | done | found)
            return
        comparable = study.dataset.name == "fashion-mnist"
        console.show(summary.render(rows, comparable=comparable), *summary.notes(study))
        if report is not None:
            console.show(f"Report: {escape(str(report))}")


def _header(study: "Planned") -> dict[str, Any]:
    """What was asked for, as JSON."""
    return {
        "scale": study.setup.scale.name,
        "dataset": study.setup.dataset,
        "stands_in_for": study.dataset.stands_in_for,
        "seed": study.setup.seed,
        "device": study.device,
        "experiments": [experiment.name for experiment in study.experiments],
        "store": str(study.store.root),
    }


def _pieces(study: "Planned", speed: "Speed") -> dict[str, Any]:
    """The plan as JSON."""
    plan = study.plan
    rows = []
    for task in plan.tasks:
        finished = task.name in plan.pieces
        left = 0.0 if finished else round(speed.seconds(task), 1)
        rows.append({"name": task.name, "key": plan.keys[task.name], "finished": finished, "seconds_left": left})
    return {"pieces": rows, "seconds_left": round(sum(row["seconds_left"] for row in rows), 1)}


def _show_plan(study: "Planned", speed: "Speed") -> None:
    plan = study.plan
    setup = study.setup
    title = f"The study at {setup.scale.name} scale on {study.dataset.title}, seed {setup.seed}, {study.device}"
    made = console.table("Piece", "State", *console.right("Time"), title=title)
    for task in plan.tasks:
        piece = plan.pieces.get(task.name)
        if piece is None:
            made.add_row(task.name, "to do", f"about {console.duration(speed.seconds(task))}")
        else:
            made.add_row(task.name, "finished", f"took {console.duration(piece.facts['provenance']['seconds'])}")
    left = sum(speed.seconds(task) for task in plan.missing)
    time = f"about {console.duration(left)} left on this machine" if plan.missing else "nothing left to compute"
    console.show(made, f"{len(plan.pieces)} of {len(plan.tasks)} pieces are finished; {time}.")
