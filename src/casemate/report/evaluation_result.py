"""An evaluation as its result.json states it, with the rows of the tables that the terminal and the report show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from casemate.attacks import Passes
from casemate.errors import RecordError
from casemate.evaluation import Checked, Estimate, Finding, Severity, Verdict, read_verdicts
from casemate.evaluation.cascade import Attempt
from casemate.evaluation.findings import CHECKS

_GRAVEST_FIRST = ("voids", "weakens", "note", "not run", "passed")


class ClassAccuracy(NamedTuple):
    """Accuracy on the images of one class, without an attack and under all attacks at the largest eps."""

    name: str
    clean: Estimate
    robust: Estimate


class AttackUsed(NamedTuple):
    """One attack of an evaluation."""

    name: str
    first_to_fool: int
    """How many images it was the first attack to fool."""
    settings: Mapping[str, Any]

    @property
    def words(self) -> str:
        """The settings on one line, after the name of the class; those that are off are left out."""
        shown = {name: value for name, value in self.settings.items() if name not in ("name", "eps", "norm")}
        words = ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, False))
        return f"{self.settings['name']}: {words}"


class CheckRow(NamedTuple):
    """One check, each cell as text; empty where there is nothing to show."""

    name: str
    title: str
    about: str
    """What the check looks for and why it matters."""
    state: str
    """voids, weakens, note, not run or passed."""
    measured: str
    threshold: str
    """The check is raised above it."""
    seen: str
    """What was found; or why the check was not run, or not raised although its number lies above the threshold."""


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A finished evaluation, read from its result.json."""

    model: str
    """Its file, or the function that made it."""
    fingerprint: str
    """SHA-256 of its weights."""
    data: str
    """The data set, or the file with the images."""
    images: int
    classes: tuple[str, ...]
    substitute: str | None
    seed: int
    precision: str
    """float32 or bfloat16."""
    randomised: bool
    draws: int
    """How many answers of a randomised model were averaged."""
    device: str
    seconds: float
    passes: Passes
    verdicts: tuple[Verdict, ...]
    """One for each eps, ascending."""
    per_class: tuple[ClassAccuracy, ...]
    """The least robust class first; classes without images are left out."""
    attacks: tuple[AttackUsed, ...]
    attempts: tuple[Attempt, ...]
    checks: tuple[Checked, ...]
    """The gravest first."""
    proven: int
    """Adversarial examples in the record."""
    unproven: int
    """Images that were fooled in a batch, but not surely alone; the record leaves them out."""
    proven_accuracy: tuple[float, ...]
    """The highest robust accuracy that the record allows at each eps."""
    provenance: Mapping[str, Any]

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "EvaluationResult":
        """The content of a result.json; `where` names the file in errors. Raises `RecordError` for anything else."""
        verdicts = read_verdicts(found, where)
        plain = ("model", "fingerprint", "data", "images", "substitute", "seed", "precision", "randomised", "draws")
        try:
            classes = [
                ClassAccuracy(
                    each["class"], *map(Estimate.from_json, (each["clean_accuracy"], each["robust_accuracy"]))
                )
                for each in found["per_class"]
            ]
            checks = map(_checked, found["checks"])
            return cls(
                **{name: found[name] for name in (*plain, "device", "seconds", "provenance")},
                classes=tuple(found["classes"]),
                passes=Passes(**found["passes"]),
                verdicts=verdicts,
                per_class=tuple(sorted(classes, key=lambda each: each.robust.value)),
                attacks=tuple(
                    AttackUsed(each["attack"], each["first_to_fool"], each["settings"]) for each in found["attacks"]
                ),
                attempts=tuple(Attempt(**(each | {"passes": Passes(**each["passes"])})) for each in found["attempts"]),
                checks=tuple(sorted(checks, key=lambda each: _GRAVEST_FIRST.index(each.state))),
                proven=found["record"]["examples"],
                unproven=found["record"]["unproven"],
                proven_accuracy=tuple(found["record"]["robust_accuracy"]),
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
        """Images, norm, budget and seed in one line."""
        number = self.verdict.number
        return f"{self.data}, first {self.images:,} images, {number.norm}, budget {number.budget}, seed {self.seed}"

    def attempt_rows(self) -> list[tuple[str, ...]]:
        """A row per attack and eps: the columns of `ATTEMPT_COLUMNS`."""
        return [
            (
                f"{each.eps:g}",
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

    def check_rows(self) -> list[CheckRow]:
        """A row per check, the gravest first."""
        return [
            CheckRow(
                name=each.check,
                title=each.title,
                about=CHECKS[each.check].why.replace("`", "") if each.check in CHECKS else "",
                state=each.state,
                measured="" if each.value is None else f"{each.value:.3g}",
                threshold="" if each.threshold is None else f"{each.threshold:.3g}",
                seen=each.finding.sentence if each.finding is not None else each.not_run or each.excuse or "",
            )
            for each in self.checks
        ]


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
"""The table of attacks: how many images each was run on, fooled and left; passes per image; images where it failed."""


def _checked(found: Mapping[str, Any]) -> Checked:
    """A check from what `Checked.as_json` wrote."""
    numbers = {name: found[name] for name in ("check", "value", "threshold")}
    finding = None
    if found["sentence"] is not None:
        finding = Finding(
            **numbers,
            severity=Severity(found["state"]),
            sentence=found["sentence"],
            failed=found["value"] is None,
            flatters=found["flatters"],
        )
    return Checked(**numbers, title=found["title"], finding=finding, excuse=found["excuse"], not_run=found["not_run"])
