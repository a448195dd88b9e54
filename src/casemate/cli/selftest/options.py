"""The options of `casemate selftest`, and how it runs."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from tyro.conf import arg

from casemate.cli import selftest
from casemate.cli.shared import parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import DataDir, Json, Machine, Seed, at_least_one
from casemate.evaluation import Budget
from casemate.selftest import self_test

_DEFAULTS: dict[str, Any] = {name: each.default for name, each in inspect.signature(self_test).parameters.items()}


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Run the evaluation on deliberately misleading models, and on honest ones."""

    only: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Only these models; an unknown name lists all of them."""
    budget: Budget = _DEFAULTS["budget"]
    """How many and which attacks to run, as in `casemate evaluate`."""
    images: Annotated[int, arg(metavar="N")] = 200
    """Evaluate on N images, equally many of each class."""
    dataset: Annotated[str, arg(metavar="NAME")] = "auto"
    """The data set, one of `casemate data list`; auto: Fashion-MNIST, or scikit-learn's digits if it is unavailable."""
    data_dir: DataDir = None
    seed: Seed = 0
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Train the networks, evaluate the models, print the verdicts. Exits with 1 if a verdict is not as expected."""
        at_least_one("images", self.images)
        with watching() as observer:
            device, _ = self.machine.set_up(observer)
            from casemate.cli.selftest import run, show

            outcomes = run.run(
                self.only,
                budget=self.budget,
                images=self.images,
                dataset=self.dataset,
                data_dir=self.data_dir,
                device=device,
                seed=self.seed,
                observer=observer,
            )
        show.show(outcomes, as_json=self.json)
        if not all(outcome.as_expected for outcome in outcomes):
            raise SystemExit(1)


def parse(argv: Sequence[str]) -> SelfTest:
    """The command `casemate selftest` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(SelfTest, "casemate selftest", selftest.__doc__ or "", argv)
