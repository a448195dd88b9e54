"""An evaluation as its result.json states it, with the rows of the tables that the terminal and the report show."""

import shlex
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, final

from casemate.attacks import Passes
from casemate.data import NAMES
from casemate.errors import RecordError
from casemate.evaluation import Checked, Estimate, Verdict, read_verdicts
from casemate.evaluation.cascade_result import Attempt
from casemate.evaluation.findings import CHECKS
from casemate.evaluation.verdict import CONVENTION
from casemate.norms import format_eps

_OF_ONE_PLACE = ("--labels", "--split", "--subset")
"""Options of --data that are about one file or folder, and do not hold for other images."""
_GRAVEST_FIRST = ("voids", "weakens", "note", "not run", "passed")
ABOUT_PREDICTIONS = (
    "batch-dependence",
    "memory",
    "way-of-calling",
    "stateful-model",
    "labels",
    "normalisation",
)
"""Checks that void the accuracy without an attack as well: the predictions are not the model's, or the labels wrong."""


class ClassAccuracy(NamedTuple):
    """Accuracy on the images of one class, without an attack and under all attacks at the largest eps."""

    name: str
    clean: Estimate
    robust: Estimate


class AttackUsed(NamedTuple):
    """One attack of an evaluation: its name, its settings, and how many images it was the first to fool."""

    name: str
    first_to_fool: int
    """Number of images that it was the first of the attacks to fool, counted over all eps."""
    settings: Mapping[str, Any]

    @property
    def words(self) -> str:
        """The attack's class and its settings in one line, without eps, norm, and settings that are None or False."""
        shown = {name: value for name, value in self.settings.items() if name not in ("name", "eps", "norm")}
        words = ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, False))
        return f"{self.settings['name']}: {words}"


class CheckRow(NamedTuple):
    """One check of an evaluation as a row of a table: every cell is a text, "" where there is nothing to show."""

    name: str
    title: str
    about: str
    """What the check looks for and why it matters."""
    state: str
    """Outcome of the check: "voids", "weakens" (the result) or "note" if it was raised; else "passed" or "not run"."""
    measured: str
    threshold: str
    """The number above which `measured` raises the check."""
    seen: str
    """What was found; or why the check was not run, or not raised although its number lies above the threshold."""


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A finished evaluation, read from its result.json."""

    model: str
    """The model's file, or package.module:function for the function that made it."""
    model_options: tuple[str, ...]
    """Options of the command line that describe the model, such as --weights and its file."""
    fingerprint: str
    """SHA-256 of the model's weights."""
    data: str
    """Name of the data set, or of the file with the images."""
    images: int
    classes: tuple[str, ...]
    substitute: str | None
    seed: int
    precision: str
    """Precision in which attacks computed gradients: float32 or bfloat16."""
    randomised: bool
    draws: int
    """How many outputs of a randomised model were averaged for each prediction; 1 for any other model."""
    device: str
    seconds: float
    """How long it took; a piece of an earlier evaluation that was in the store counts with the seconds it took then."""
    run_seconds: float
    """How long the run that wrote it took."""
    passes: Passes
    verdicts: tuple[Verdict, ...]
    """One for each eps, in ascending order of eps."""
    per_class: tuple[ClassAccuracy, ...]
    """One for each class with images, in ascending order of robust accuracy."""
    attacks: tuple[AttackUsed, ...]
    attempts: tuple[Attempt, ...]
    checks: tuple[Checked, ...]
    """All checks, in the order voids, weakens, note, not run, passed."""
    proven: int
    """Number of adversarial examples in record.json: each fooled the model at batch size 1."""
    unproven: int
    """Number of images fooled in a batch, but not reliably at batch size 1; the record does not contain them."""
    proven_accuracy: tuple[float, ...]
    """For each eps, the upper bound on robust accuracy that the adversarial examples of the record prove."""
    holds_images: bool
    """Whether record and report hold images; else only their hashes."""
    provenance: Mapping[str, Any]
    chosen: str
    """Which of the images were used: "first", or "stratified, seed 0" for a sample."""
    data_path: str | None
    """The file or folder of the images as --data named it; None for a data set, and for images given in Python."""
    data_options: tuple[str, ...]
    """The options of the command line by which the images were read, beyond --data."""
    from_command_line: bool
    """Whether `casemate evaluate` made it, so that commands can name its model; else a program in Python did."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "EvaluationResult":
        """The evaluation from the parsed content of its result.json; `where` names the file in a `RecordError`."""
        verdicts = read_verdicts(found, where)
        plain = ("model", "fingerprint", "data", "images", "substitute", "seed", "precision", "randomised", "draws")
        try:
            written = {float(each.eps): each.eps for each in verdicts}
            classes = [
                ClassAccuracy(
                    each["class"], *map(Estimate.from_json, (each["clean_accuracy"], each["robust_accuracy"]))
                )
                for each in found["per_class"]
            ]
            checks = map(Checked.from_json, found["checks"])
            return cls(
                **{name: found[name] for name in (*plain, "device", "seconds", "provenance")},
                run_seconds=found.get("run_seconds", found["seconds"]),
                model_options=tuple(found.get("model_options", ())),
                classes=tuple(found["classes"]),
                passes=Passes(**found["passes"]),
                verdicts=verdicts,
                per_class=tuple(sorted(classes, key=lambda each: each.robust.value)),
                attacks=tuple(
                    AttackUsed(each["attack"], each["first_to_fool"], each["settings"]) for each in found["attacks"]
                ),
                attempts=tuple(
                    Attempt(**(each | {"eps": written[each["eps"]], "passes": Passes(**each["passes"])}))
                    for each in found["attempts"]
                ),
                checks=tuple(sorted(checks, key=lambda each: _GRAVEST_FIRST.index(each.state))),
                proven=found["record"]["examples"],
                unproven=found["record"]["unproven"],
                proven_accuracy=tuple(found["record"]["robust_accuracy"]),
                holds_images=found["record"].get("holds_images", True),
                chosen=str(found.get("chosen", "first")),
                data_path=found.get("data_path"),
                data_options=tuple(map(str, found.get("data_options", ()))),
                from_command_line="model_facts" in found,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"{where} cannot be read ({type(error).__name__}: {error}); expected a result of `casemate evaluate`: "
                "evaluate again"
            ) from error

    @property
    def verdict(self) -> Verdict:
        """The verdict at the largest eps."""
        return self.verdicts[-1]

    @property
    def conditions(self) -> str:
        """Data set, number of images, norm, budget (such as "standard") and seed as one line of text, without eps."""
        number = self.verdict.number
        which = f"first {self.images:,}" if self.chosen == "first" else f"{self.images:,} ({self.chosen})"
        return f"{self.data}, {which} images, {number.norm}, budget {number.budget}, seed {self.seed}"

    @property
    def check_counts(self) -> str:
        """How many checks passed and how many were not run, as text, such as "26 checks passed, 9 not run"."""
        states = [each.state for each in self.checks]
        passed, skipped = states.count("passed"), states.count("not run")
        words = f"{passed} check{'' if passed == 1 else 's'} passed"
        return f"{words}, {skipped} not run" if skipped else words

    @property
    def clean_trusted(self) -> bool:
        """Whether the accuracy without an attack can be trusted: no finding says that the predictions mean nothing."""
        return not any(each.state == "voids" and each.check in ABOUT_PREDICTIONS for each in self.checks)

    @property
    def clean_singly(self) -> float | None:
        """Accuracy without an attack with each image in a batch of its own; None if the record does not state it.

        The record was checked image by image. If it has no adversarial example, all that it allows is this.
        """
        return None if self.proven else self.proven_accuracy[-1]

    def verify_command(self, record: Path | str = "record.json") -> str:
        """The command by which others check `record`, for a shell.

        Images of a file or folder are named by it; those of a data set are found by the record.
        """
        words = ["casemate", "verify", str(record), self.model, *self.model_options]
        return shlex.join([*words, "--data", self._own_images, *self.data_options] if self._own_images else words)

    def evaluate_command(self, *, budget: str | None = None, images: int | None = None) -> str:
        """The command that makes this evaluation, with another budget or number of images if given; "" if none does."""
        number = self.verdict.number
        budget = budget or number.budget
        if not self.from_command_line or budget == "own":
            return ""
        words = ["casemate", "evaluate", self.model, *self.model_options, *self._data_words]
        words += ["--images", str(images or self.images), "--eps", *(format_eps(each.eps) for each in self.verdicts)]
        words += ["--norm", number.norm] if number.norm != "linf" else []
        words += ["--budget", budget]
        borders = self.verdict.borders
        words += ["--borders", *map(str, astuple(borders))] if borders != CONVENTION else []
        words += ["--substitute", self.substitute] if self.substitute else []
        words += ["--precision", self.precision] if self.precision != "float32" else []
        return shlex.join([*words, "--seed", str(self.seed)])

    def harden_command(self) -> str:
        """The command that fine-tunes the model against the largest eps; "" for a black box, which has no weights."""
        number = self.verdict.number
        if not self.from_command_line or "--black-box" in self.model_options:
            return ""
        words = ["casemate", "harden", self.model, *self.model_options]
        if self._own_images:
            words += ["--data", "TRAINING-IMAGES", "--test", self._own_images, *self._reading_words]
        else:
            words += self._data_words
        words += ["--eps", format_eps(number.eps)]
        return shlex.join([*words, *(["--norm", number.norm] if number.norm != "linf" else [])])

    @property
    def _own_images(self) -> str:
        """The file or folder of the images; "" for a data set. In Python it is `data` where that is a file's name."""
        return self.data_path or (self.data if self.data not in NAMES and "." in self.data else "")

    @property
    def _data_words(self) -> list[str]:
        if self._own_images:
            return ["--data", self._own_images, *self.data_options]
        return ["--dataset", self.data] if self.data in NAMES else []

    @property
    def _reading_words(self) -> list[str]:
        """The options by which images of any file or folder are read: size and colour."""
        starts = [place for place, word in enumerate(self.data_options) if word.startswith("--")]
        parts = [self.data_options[start:end] for start, end in pairwise([*starts, len(self.data_options)])]
        return [word for part in parts if part[0] not in _OF_ONE_PLACE for word in part]

    def class_rows(self, most: int | None = None) -> list[tuple[str, ...]]:
        """The table of classes as texts: a row for each with images, the least robust first, as in `CLASS_COLUMNS`.

        If there are more than `most`, only the first half of that number.
        """
        classes = self.per_class if most is None or len(self.per_class) <= most else self.per_class[: most // 2]
        return [(each.name, f"{each.clean}", f"{each.robust}", f"{each.robust.n:,}") for each in classes]

    def attempt_rows(self) -> list[tuple[str, ...]]:
        """The table of attacks as texts: a row for each attack at each eps, with the columns of `ATTEMPT_COLUMNS`."""
        return [
            (
                format_eps(each.eps),
                each.attack,
                str(each.tried),
                str(each.fooled),
                str(each.tried - each.fooled),
                f"{each.seconds:.1f}",
                f"{each.passes.forward / each.tried:,.0f}",
                f"{each.passes.backward / each.tried:,.0f}",
                str(each.status["zero_gradient"]),
                str(each.status["non_finite"]),
            )
            for each in self.attempts
        ]

    def attack_rows(self) -> list[tuple[str, str, str]]:
        """The table of settings as texts: for each attack its name, settings, and how many images it fooled first."""
        ran = {each.attack for each in self.attempts}
        return [
            (each.name, each.words, str(each.first_to_fool) if each.name in ran else "not needed: no image was left")
            for each in self.attacks
        ]

    def check_rows(self) -> list[CheckRow]:
        """The table of checks: a row for each, in the order of `checks`."""
        return [
            CheckRow(
                name=each.check,
                title=each.title,
                about=CHECKS[each.check].why if each.check in CHECKS else "",
                state=each.state,
                measured="" if each.value is None or _otherwise(each) else f"{each.value:.3g}",
                threshold="" if each.threshold is None or _otherwise(each) else f"{each.threshold:.3g}",
                seen=each.finding.sentence if each.finding is not None else each.not_run or each.excuse or "",
            )
            for each in self.checks
        ]


def _otherwise(found: Checked) -> bool:
    """Whether a check was raised for another reason than its threshold, which its sentence states."""
    if found.finding is None or found.value is None or found.threshold is None:
        return False
    return found.value <= found.threshold


CLASS_COLUMNS = ("class", "without an attack", "under attack", "n")
"""Columns of the table of classes: accuracies at the largest eps with 95 % intervals, and the number of images."""
ATTEMPT_COLUMNS = (
    "eps",
    "attack",
    "attacked",
    "fooled",
    "left",
    "seconds",
    "forward",
    "backward",
    "no gradient",
    "not finite",
)
"""Columns of the table of attacks. Attacked, fooled and left are numbers of images, as are the last two, on which the
attack failed; forward and backward are passes per attacked image."""
