"""The options of `casemate certify`, and how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from casemate.cli import certify as command
from casemate.cli.certify.request import CertifyRequest
from casemate.cli.shared import parsing
from casemate.cli.shared.console import ThresholdNotMet
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
from casemate.norms import format_eps


@dataclass(frozen=True, kw_only=True)
class Certify:
    """Prove how robust a model is at least, and attack what is not proven."""

    certification: Annotated[CertifyRequest, arg(name="")]
    fail_under: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: never)")] = None
    """Exit with 3 if the lower end of the 95 % interval of the certified accuracy at the largest eps is below X, such
    as 0.6 or 60%."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/certify-MODEL)")] = None
    """The folder for the files."""
    overwrite: Overwrite = False
    store: StoreFolder = None
    fresh: Flag = False
    """Compute all bounds and attacks anew, also those that an earlier run left in the store."""
    dry_run: Flag = False
    """Certify nothing; print the settings, and how long it takes."""
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Certify, attack, write the files, print the result; with --dry-run only print settings and estimated times.

        Raises `ThresholdNotMet` if an attack fools a certified image, or --fail-under is not met.
        """
        gate = least_accuracy(self.fail_under)
        at_least_one("images", self.certification.images)
        self.certification.check()
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate.cli.certify import run, show
            from casemate.evaluation.certified import CertifiedEvaluation

            plan = run.prepare(self.certification, device, observer, timed=self.dry_run)
            if self.dry_run:
                show.show_certify_plan(plan, as_json=self.json)
                return
            out = self.out or Path("runs") / f"certify-{plan.model.short}"
            check_folder(out)
            run.expect_replaceable(plan, out, overwrite=self.overwrite, observer=observer)
            found = run.run(plan, observer, store=self.store, fresh=self.fresh)
            result = run.write(out, plan, found, threads, observer)
            if isinstance(found, CertifiedEvaluation):
                display, void = partial(show.show_certified, found, result, out), found.is_void
            else:
                display, void = partial(show.show_smoothed, found, result, out), False
        display(as_json=self.json)
        if void:
            raise ThresholdNotMet(found.conclusion)
        if gate is not None:
            accuracy, eps = found.certified_accuracy[-1], format_eps(found.values[-1])
            expect_passing(gate.compare("certified accuracy", accuracy, eps))


def parse(argv: Sequence[str]) -> Certify:
    """The command `casemate certify` with its options, parsed from `argv`, the arguments after the command's name.

    Raises `SettingError` for an option of earlier versions.
    """
    parsing.refuse_removed(argv, MODEL_FROM)
    return parsing.parse(Certify, "casemate certify", command.__doc__ or "", argv)
