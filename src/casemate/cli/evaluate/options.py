"""The options of `casemate evaluate`, and how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from casemate.cli import evaluate as command
from casemate.cli.evaluate.request import EvaluateRequest
from casemate.cli.shared import outputs, parsing
from casemate.cli.shared.ci import CiFiles, inputs_of
from casemate.cli.shared.engines import EngineOptions
from casemate.cli.shared.gates import expect_passing, least_accuracy
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import (
    MODEL_FROM,
    Flag,
    Json,
    Machine,
    StoreFolder,
    at_least_one,
    check_folder,
)
from casemate.cli.shared.outputs import Overwrite
from casemate.cli.shared.tracking import Track, check_trackers, tracking
from casemate.report.ci.gate import Compared


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure how robust a model is, and whether the result can be trusted."""

    evaluation: Annotated[EvaluateRequest, arg(name="")]
    fail_under: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: never)")] = None
    """Exit with 3 if the robust accuracy at the largest eps cannot be trusted, or the lower end of its 95 % interval is
    below X, such as 0.6 or 60%."""
    fail_by: Compared = "lower"
    """What --fail-under compares: the lower end of the interval, or the estimate itself."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/evaluate-MODEL)")] = None
    """The folder for the files."""
    overwrite: Overwrite = False
    store: StoreFolder = None
    fresh: Flag = False
    """Compute every piece anew, also those that an earlier evaluation left in the store."""
    dry_run: Flag = False
    """Evaluate nothing; print the settings, and how long each budget takes at most."""
    verbose: Annotated[bool, FlagCreatePairsOff, arg(aliases=("-v",), help_behavior_hint="")] = False
    """Also show what every check measured."""
    json: Json = False
    ci: CiFiles = field(default_factory=CiFiles)
    engine: EngineOptions = field(default_factory=EngineOptions)
    track: Track = ()
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Evaluate, write the files, print the result; with --dry-run only print settings and estimated times.

        Raises `ThresholdNotMet` if --fail-under is not met.
        """
        model, weights = self.evaluation.model, self.evaluation.loading.weights
        self.ci.check(*inputs_of(model, [weights, self.evaluation.data]))
        with self.ci.after_errors("casemate evaluate", model, weights):
            self._run()

    def _run(self) -> None:
        at_least_one("images", self.evaluation.images)
        self.engine.check()
        gate = least_accuracy(self.fail_under, self.fail_by)
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        check_trackers(self.track)
        with watching() as observer:
            device, threads = self.machine.set_up(observer, self.engine.default_threads(workers=1))
            from casemate.cli.evaluate import run, show

            plan = run.prepare(self.evaluation, device, observer, timed=self.dry_run)
            if self.dry_run:
                show.show_evaluate_plan(plan, as_json=self.json)
                return
            out = self.out or Path("runs") / f"evaluate-{plan.model.short}"
            check_folder(out)
            outputs.check_results(out, plan.about(), overwrite=self.overwrite, observer=observer)
            engine = self.engine.make(device, threads, workers=1)
            with tracking(
                self.track,
                observer,
                name=f"evaluate-{plan.model.short}",
                folder=out / "tensorboard",
                settings=plan.about(),
                pictures=not self.evaluation.no_images,
            ) as tracked:
                found = run.run(plan, tracked, engine=engine, store=self.store, fresh=self.fresh)
                result = run.write(out, plan, found, threads, tracked)
            self.ci.write(run.ci_run(result, out, self.evaluation, gate))
            display = partial(show.show, result, out, verbose=self.verbose)
        display(as_json=self.json)
        if gate is not None:
            expect_passing(gate.judge(found.verdict))


def parse(argv: Sequence[str]) -> Evaluate:
    """The command `casemate evaluate` with its options, parsed from `argv`, the arguments after the command's name.

    Raises `SettingError` for an option of earlier versions.
    """
    parsing.refuse_removed(argv, MODEL_FROM)
    return parsing.parse(Evaluate, "casemate evaluate", command.__doc__ or "", argv)
