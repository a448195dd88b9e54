"""The options of `casemate benchmark`, and how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from casemate.benchmark import ENTRIES
from casemate.cli import benchmark as command
from casemate.cli.benchmark.request import BenchmarkRequest
from casemate.cli.shared import parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Flag, Json, Machine, check_folder


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The options of the command, and how it runs."""

    request: Annotated[BenchmarkRequest, arg(name="")] = field(default_factory=BenchmarkRequest)
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/benchmark")
    """The folder for all files."""
    list: Flag = False
    """Only list the models of the benchmark."""
    dry_run: Flag = False
    """Train and attack nothing; print about how long each step that is not finished in FOLDER would take."""
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
                seconds = run.seconds_by_step(plan, self.out, observer)
                show.show_benchmark_plan(plan, seconds, as_json=self.json)
                return
            rows = run.run(plan, self.out, device, observer)
        show.show(plan, rows, self.out, as_json=self.json)


def parse(argv: Sequence[str]) -> Benchmark:
    """The command `casemate benchmark` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(Benchmark, "casemate benchmark", command.__doc__ or "", argv)
