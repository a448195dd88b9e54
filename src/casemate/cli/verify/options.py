"""The options of `casemate verify`, and how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from casemate.cli import verify
from casemate.cli.shared import parsing
from casemate.cli.shared.ci import CiFiles, inputs_of, model_file
from casemate.cli.shared.console import ThresholdNotMet
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import (
    MODEL_FROM,
    DataDir,
    DataFile,
    Json,
    Machine,
    ModelName,
    ModelOptions,
    Reading,
    Seed,
    Subset,
)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a record of adversarial examples against its model."""

    record: Annotated[Positional[Path], arg(metavar="RECORD")]
    """The record.json that `casemate evaluate` wrote, with adversarial.safetensors beside it."""
    model: ModelName
    data: DataFile = None
    subset: Subset = None
    data_dir: DataDir = None
    seed: Seed = 0
    json: Json = False
    ci: CiFiles = field(default_factory=CiFiles)
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Check the record and print the result. Raises `ThresholdNotMet` if a claim does not hold."""
        self.ci.check(*inputs_of(self.model, [self.record, self.loading.weights, self.data]))
        with self.ci.after_errors("casemate verify", self.model, self.loading.weights):
            self._run()

    def _run(self) -> None:
        with watching() as observer:
            device, _ = self.machine.set_up(observer)
            from casemate.cli.verify import run, show
            from casemate.report.ci.verification import verification_run

            found = run.run(
                self.record,
                self.model,
                loading=self.loading,
                file=self.data,
                subset=self.subset,
                reading=self.reading,
                data_dir=self.data_dir,
                seed=self.seed,
                device=device,
                observer=observer,
            )
            file = model_file(self.model, self.loading.weights)
            self.ci.write(verification_run(found, record=self.record, model=self.model, file=file))
        show.show(found, as_json=self.json)
        failed = [claim.title for claim in found.claims if claim.holds is False]
        if failed:
            raise ThresholdNotMet(f"{self.record}: {len(failed)} of its claims do not hold: {'; '.join(failed)}")


def parse(argv: Sequence[str]) -> Verify:
    """The command `casemate verify` with its options, parsed from `argv`, the arguments after the command's name.

    Raises `SettingError` for an option of earlier versions.
    """
    parsing.refuse_removed(argv, MODEL_FROM)
    return parsing.parse(Verify, "casemate verify", verify.__doc__ or "", argv)
