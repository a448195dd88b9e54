"""The options of `casemate benchmark`, and how it runs."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from casemate.benchmark import ENTRIES, plan_benchmark
from casemate.cli import benchmark as command
from casemate.cli.shared import parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import DataDir, Flag, Json, Machine, check_folder
from casemate.evaluation import Budget

_DEFAULTS: dict[str, Any] = {name: each.default for name, each in inspect.signature(plan_benchmark).parameters.items()}
_NAMES = arg(metavar="MODEL ...", help_behavior_hint="(default: all)")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """Which models are compared, and how they are measured."""

    models: Annotated[Positional[tuple[str, ...]], _NAMES] = ()
    """Models of the benchmark; `--list` shows them. The teachers of distilled models are added."""
    eps: Annotated[str, arg(metavar="EPS")] = str(_DEFAULTS["eps"])
    """The radius in Linf at which the models are compared, for pixels in [0, 1]; fractions such as 8/255 are fine."""
    others: Annotated[tuple[str, ...], arg(metavar="EPS ...")] = tuple(map(str, _DEFAULTS["others"]))
    """Further radii, measured on the first test images only."""
    images: Annotated[int, arg(metavar="N")] = _DEFAULTS["images"]
    """Measure every model on the first N test images."""
    headline: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = ()
    """Measure these models on all test images too, at EPS."""
    seeds: Annotated[int, arg(metavar="N")] = _DEFAULTS["seeds"]
    """How often these are measured on all test images, each time with another seed."""
    budget: Budget = _DEFAULTS["budget"]
    """How many and which attacks are run, as in `casemate evaluate`."""
    dataset: Annotated[str, arg(metavar="NAME")] = "fashion-mnist"
    """The data set, one of `casemate data list`."""
    data_dir: DataDir = None
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use a stratified random sample of N training images; a fifth of them, at most 6,000, chooses the epoch."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The options of the command, and how it runs."""

    request: BenchmarkRequest = field(default_factory=BenchmarkRequest)
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/benchmark")
    """The folder for all files."""
    list: Flag = False
    """Only list the models of the benchmark."""
    dry_run: Flag = False
    """Train and attack nothing; print about how long each step would take."""
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Train and measure what is left of the benchmark, and print its table."""
        if self.list:
            from casemate.cli.benchmark import show

            show.show_entries(ENTRIES, as_json=self.json)
            return
        if not self.dry_run:
            check_folder(self.out)
        with watching() as observer:
            device, _ = self.machine.set_up(observer)
            from casemate.cli.benchmark import run, show

            plan = run.prepare(self.request, observer)
            if self.dry_run:
                seconds = run.estimate(plan, observer)
                show.show_plan(plan, seconds, as_json=self.json)
                return
            rows = run.run(plan, self.out, device, observer)
        show.show(plan, rows, self.out, as_json=self.json)


def parse(argv: Sequence[str]) -> Benchmark:
    """The command `casemate benchmark` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(Benchmark, "casemate benchmark", command.__doc__ or "", argv)
