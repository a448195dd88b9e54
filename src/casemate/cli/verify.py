"""`casemate verify`: re-check a record of adversarial examples against the model that it is about."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from casemate.cli.console import Unmet
from casemate.cli.observers import watching
from casemate.cli.options import DataDir, DataFile, Json, Machine, ModelFrom, Seed


@dataclass(frozen=True, kw_only=True)
class Verify:
    r"""Check a record of adversarial examples against its model.
    - Believes nothing that the record says: files by their checksums, the
      distances in float64, every image asked alone; and tells the highest
      robust accuracy that the examples allow.
    - Exits with 0 if every claim holds, 3 if one does not, 2 if files cannot
      be read or do not belong together.

    Examples:
      casemate verify runs/evaluate-model/record.json model.safetensors
      casemate verify record.json --model-from mine.nets:load --data mine.npz
    """

    record: Annotated[Positional[Path], arg(metavar="RECORD")]
    """The record.json that `casemate evaluate` wrote, with adversarial.safetensors beside it."""
    model: Annotated[Positional[Path | None], arg(metavar="MODEL", help_behavior_hint="")] = None
    """The .safetensors file of the model, with its JSON file beside it."""
    model_from: ModelFrom = None
    data: DataFile = None
    data_dir: DataDir = None
    seed: Seed = 0
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Check and print. Raises `Unmet` if a claim does not hold."""
        with watching() as observer:
            device, _ = self.machine.set_up(observer)
            from casemate.cli import verified

            found = verified.verify(
                self.record,
                self.model,
                self.model_from,
                file=self.data,
                data_dir=self.data_dir,
                seed=self.seed,
                device=device,
                observer=observer,
            )
        verified.show(found, as_json=self.json)
        failed = [claim.title for claim in found.claims if claim.holds is False]
        if failed:
            raise Unmet(f"{self.record}: {len(failed)} of its claims do not: {'; '.join(failed)}")
