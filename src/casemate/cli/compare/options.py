"""The options of `casemate compare`, and how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from casemate.cli import compare as command
from casemate.cli.compare.request import CompareRequest
from casemate.cli.shared import console, parsing
from casemate.cli.shared.ci import CiFiles, inputs_of
from casemate.cli.shared.console import ThresholdNotMet
from casemate.cli.shared.engines import EngineOptions
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import (
    Flag,
    Json,
    Machine,
    StoreFolder,
    at_least_one,
    check_folder,
    parse_share,
)
from casemate.cli.shared.outputs import Overwrite
from casemate.errors import RecordError, SettingError
from casemate.report.folder import RESULT


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two models on the same images, and say whether B has become worse."""

    a: Annotated[Positional[str], arg(metavar="A", help_behavior_hint="(required)")]
    """The first, such as the version before: the folder or the result.json of a finished evaluation, or a model as
    `casemate evaluate` takes it."""
    b: Annotated[Positional[str], arg(metavar="B", help_behavior_hint="(required)")]
    """The second, such as the version after: likewise."""
    fail_if_worse: Flag = False
    """Exit with 3 if B is worse than A beyond chance (McNemar's test at the 5 % level, divided by the number of
    accuracies that are judged), or if a number is not to be trusted."""
    margin: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: none)")] = None
    """With --fail-if-worse: exit with 3 unless the 95 % interval of the difference excludes a drop of X or more, such
    as 0.02 or 2%."""
    worse_in: Literal["robust", "clean", "both"] = "robust"
    """Which accuracies --fail-if-worse judges: robust at every eps, without an attack, or both."""
    out: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: for two models runs/compare-A-B)")
    ] = None
    """The folder for report.html, comparison.json, and the evaluations of two models, a and b. Of finished evaluations
    nothing is written without it."""
    overwrite: Overwrite = False
    store: StoreFolder = None
    fresh: Flag = False
    """Compute every piece anew, also those that an earlier evaluation left in the store."""
    json: Json = False
    ci: CiFiles = field(default_factory=CiFiles)
    engine: EngineOptions = field(default_factory=EngineOptions)
    evaluation: Annotated[CompareRequest, arg(name="")] = field(default_factory=CompareRequest)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Evaluate the models unless both are evaluated, compare them, print the result.

        Raises `ThresholdNotMet` if --fail-if-worse finds that B is worse.
        """
        weights, weights_b = self.evaluation.loading.weights, self.evaluation.weights_b
        self.ci.check(*inputs_of(self.a, [weights, weights_b, self.evaluation.data]), *inputs_of(self.b, []))
        with self.ci.after_errors("casemate compare", self.b, weights_b or weights):
            self._run()

    def _run(self) -> None:
        at_least_one("images", self.evaluation.images)
        self.engine.check()
        margin = self._margin()
        finished = [is_finished(each) for each in (self.a, self.b)]
        if all(finished):
            self._refuse_options()
        elif any(finished):
            done, other = (self.a, self.b) if finished[0] else (self.b, self.a)
            raise SettingError(
                f"{done} is a finished evaluation, and {other} is none; evaluate that model too, with the same "
                f"settings (casemate evaluate {other} ... --out FOLDER), and compare the two folders"
            )
        if self.out is not None:
            check_folder(self.out)
        with watching() as observer:
            device, threads = self.machine.set_up(observer, self.engine.default_threads(workers=1))
            from casemate.cli.compare import run, show
            from casemate.report.comparison_page import expect_own_folder, write_comparison

            if all(finished):
                found, out = run.compare_folders(Path(self.a), Path(self.b)), self.out
                if out is not None and not self.overwrite:
                    expect_own_folder(out, found)
            else:
                plans = run.prepare(self.evaluation, self.a, self.b, device, observer, margin=margin)
                out = self.out or Path("runs") / f"compare-{plans[0].model.short}-{plans[1].model.short}"
                check_folder(out)
                if not self.overwrite:
                    expect_own_folder(out)
                found = run.run(
                    plans,
                    out,
                    observer,
                    engine=self.engine.make(device, threads, workers=1),
                    store=self.store,
                    fresh=self.fresh,
                    overwrite=self.overwrite,
                    threads=threads,
                )
            gate = found.regression(judged=self.worse_in, margin=margin) if self.fail_if_worse else None
            if out is not None:
                observer.message(f"Report: {write_comparison(out, found, gate)}")
            self.ci.write(run.ci_run_of(found, gate))
            display = partial(show.show, found, gate)
        display(as_json=self.json)
        if gate is not None:
            sentence = f"--fail-if-worse: {gate.sentence}"
            if gate.worse:
                raise ThresholdNotMet(sentence)
            console.print_message(sentence, word="passes")

    def _margin(self) -> float | None:
        """The share of --margin. Raises `SettingError` if it is none, or an option needs --fail-if-worse."""
        if not self.fail_if_worse:
            given = {"--margin": self.margin is not None, "--worse-in": self.worse_in != "robust"}
            for name, is_given in given.items():
                if is_given:
                    raise SettingError(f"{name} says how --fail-if-worse decides; give --fail-if-worse too")
        if self.margin is None:
            return None
        margin = parse_share("margin", self.margin)
        if margin == 0:
            raise SettingError(f"margin {self.margin}; expected more than 0, such as 0.02, or no margin")
        return margin

    def _refuse_options(self) -> None:
        """Raise `SettingError` for options that are about the evaluation of models, beside finished evaluations."""
        given = self.evaluation.given()
        for each in fields(self.engine):
            given += [f"--{each.name.replace('_', '-')}"] if getattr(self.engine, each.name) != each.default else []
        given += ["--store"] if self.store is not None else []
        given += ["--overwrite"] if self.overwrite and self.out is None else []
        given += ["--fresh"] if self.fresh else []
        if given:
            raise SettingError(
                f"{', '.join(given)} with finished evaluations ({self.a}, {self.b}): they are compared as they are, "
                "and nothing is evaluated; leave it out, or name two models"
            )


def is_finished(text: str) -> bool:
    """Whether A or B names a finished evaluation.

    Raises `RecordError` for a path that does not exist, and for a folder that holds nothing to compare.
    """
    path = Path(text)
    if ":" not in text and not path.exists():
        raise RecordError(
            f"{path} does not exist; expected a finished evaluation (a folder of casemate evaluate --out), or a model"
        )
    if not path.is_dir():
        return path.suffix == ".json"
    if (path / RESULT).exists():
        return True
    if (path / "config.json").exists():  # a folder of Hugging Face, which is a model
        return False
    raise RecordError(
        f"{path} holds no {RESULT}; expected the folder of a finished evaluation (casemate evaluate --out), or a model"
    )


def parse(argv: Sequence[str]) -> Compare:
    """The command `casemate compare` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(Compare, "casemate compare", command.__doc__ or "", argv)
