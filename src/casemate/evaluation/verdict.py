"""The verdict on a model at one eps, in three parts: can the number be trusted, the number, and a grade from it.

**Trust.** The number is not to be trusted, and there is no grade, if a finding voids it in either direction, or if one
that only flatters voids that of a model that has not fallen. A model that has fallen (broken or untrained, and no more
images would decide otherwise) is broken whatever flattered it, since its true robustness is lower still.

**Number.** The share of the images classified correctly without an attack that withstood everything tried, with its
95 % interval.

**Grade**, from the ends of that interval and `Borders`: broken, weak, partly robust, robust as far as tested; where the
interval lies across a border, all grades that it reaches. A model whose robust accuracy is not shown to be above
guessing (the larger of one in the number of classes and the share of the commonest class) is broken, one whose clean
accuracy is not shown to be above it is untrained or mislabelled. Attacks give an upper bound, and few attacks a loose
one: after less than the budget autoattack or standard the best grade is that the model is not broken by what was tried.

Every grade that casemate shows, on the command line, in reports, in the study and in result files, is a `Verdict`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal, final

import numpy as np

from casemate.documents import EVALUATION
from casemate.errors import RecordError, SettingError
from casemate.evaluation.findings import Finding, Severity
from casemate.evaluation.intervals import Estimate, percent, share
from casemate.norms import Bounds, WrittenEps, format_eps, with_text
from casemate.units import eps_with_share, share_of_range

SCHEMA = 2
"""Version of the format of results with verdicts, their field `schema` where they are a part of another document, and
in result.json as earlier versions wrote it; now that names `EVALUATION`. Results of version 1 lack that field, and have
no verdicts but robust, broken and not to be trusted."""
PUBLIC_MODELS = (
    "of the 165 defended Linf models on RobustBench, for other images and eps, 5 keep less than 10 %, 41 keep "
    "10 to 50 %, 119 keep 50 to 90 %, none more"
)
"""Part of a sentence: how many public models would get each grade (counted as in `docs/decisions.md`)."""

UNTRUSTED = "not to be trusted"
LOW_ACCURACY = 0.5
"""The clean accuracy below which a verdict's sentences state it: more images are misclassified than classified."""


class Grade(StrEnum):
    """The grades that a verdict can give a model for the share of images that withstood the attacks."""

    UNTRAINED = "untrained or mislabelled"
    BROKEN = "broken"
    WEAK = "weak"
    PARTLY_ROBUST = "partly robust"
    ROBUST = "robust as far as tested"
    NOT_BROKEN_QUICKLY = "not broken by a quick look"
    NOT_BROKEN_BY_THESE = "not broken by these attacks"
    """The best grade after attacks chosen by the caller instead of a budget's."""


_ASCENDING = (Grade.BROKEN, Grade.WEAK, Grade.PARTLY_ROBUST, Grade.ROBUST)
_FALLEN = (Grade.UNTRAINED, Grade.BROKEN)
_FULL = ("standard", "autoattack", "thorough")
"""Budgets with enough attacks for the grades partly robust and robust."""


@final
@dataclass(frozen=True, kw_only=True)
class Borders:
    """The borders between grades, as shares of the correctly classified images that withstood; a convention.

    They are compared with the ends of the 95 % interval of that share.

    Raises `SettingError` if they do not ascend strictly within 0 and 1.
    """

    broken: float = 0.1
    """A model is broken if the upper end of the interval lies below this share."""
    weak: float = 0.5
    """A model is weak if the upper end of the interval lies below this share, and at least partly robust if the lower
    end reaches it."""
    robust: float = 0.9
    """A model is robust, as far as tested, if the lower end of the interval reaches this share."""

    def __post_init__(self) -> None:
        """Raise `SettingError` for borders that leave a grade without a range."""
        if not 0 < self.broken < self.weak < self.robust < 1:
            raise SettingError(
                f"borders {self.broken:g}, {self.weak:g}, {self.robust:g}; expected three shares that ascend strictly "
                "within 0 and 1, such as 0.1 0.5 0.9"
            )

    def reached(self, low: float, high: float) -> tuple[Grade, ...]:
        """The grades from broken to robust, ascending, that the interval from `low` to `high` of the share reaches."""
        first, last = (sum(end >= border for border in (self.broken, self.weak, self.robust)) for end in (low, high))
        return _ASCENDING[first : last + 1]


CONVENTION = Borders()


@final
@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whether the robust accuracy of an evaluation can be trusted, and the checks that decide it."""

    because: tuple[str, ...] = ()
    """The sentences of the findings that void the robust accuracy; empty if it can be trusted."""
    flattered_by: tuple[str, ...] = ()
    """Names of checks whose findings would void the robust accuracy of a model that is not broken or untrained."""
    weakened_by: tuple[str, ...] = ()
    """Names of checks whose findings weaken the robust accuracy: it is less certain than its interval says."""
    failed: tuple[str, ...] = ()
    """Names of checks that ended in an error."""
    checked: bool = True
    """Whether checks were run at all."""

    @property
    def trusted(self) -> bool:
        """Whether no finding voids the robust accuracy; also True if no check was run (see `checked`)."""
        return not self.because

    @property
    def sentence(self) -> str:
        """Sentences that say whether the robust accuracy can be trusted, why, and which checks weaken it or failed."""
        if not self.trusted:
            return f"No: {UNTRUSTED}, because {'; and '.join(self.because)}.{self.unmade}"
        if not self.checked:
            return "Not checked: only attacks were run."
        fell = f"the model fell, although findings flatter it (see {', '.join(self.flattered_by)})"
        return f"Yes: {fell if self.flattered_by else 'no check voids it'}.{self.doubts}{self.unmade}"

    @property
    def doubts(self) -> str:
        """The sentence that names the checks which weaken the result, to follow another one; "" if there are none."""
        return (
            f" The number is less certain than its interval says: see {', '.join(self.weakened_by)}."
            if self.weakened_by
            else ""
        )

    @property
    def unmade(self) -> str:
        """The sentence that names the checks which failed, to follow another one; "" if there are none."""
        if not self.failed:
            return ""
        return (
            f" {len(self.failed)} check{'s' * (len(self.failed) > 1)} could not be completed: {', '.join(self.failed)}."
        )


@final
@dataclass(frozen=True, kw_only=True)
class Number:
    """The result of the attacks at one eps: the share of images that withstood, accuracies, eps, norm and budget."""

    withstood: Estimate | None
    """Share, among the images classified correctly without an attack, that withstood all attacks; None if there are
    no such images."""
    robust: Estimate
    """Robust accuracy: share of all images that are classified correctly under every attack."""
    clean: Estimate
    """Clean accuracy: share of all images that are classified correctly without an attack."""
    guessing: float
    """The accuracy that guessing reaches: always the commonest class, or a uniform guess if that is more accurate."""
    eps: float
    norm: str
    budget: str
    """Which attacks were run: those of the budget quick, autoattack, standard or thorough, or own (the caller's)."""
    bounds: Bounds = (0.0, 1.0)
    """The smallest and the largest value of a pixel, in whose unit eps is."""

    @property
    def sentence(self) -> str:
        """Sentences with the share of correctly classified images that withstood everything tried, at which eps, norm
        and budget, then robust and clean accuracy; another sentence if no image is classified correctly.
        """
        if self.withstood is None:
            return f"None: none of {self.clean.n:,} images is classified correctly without an attack; {self.setting}."
        return (
            f"{self.withstood:n} of the correctly classified images withstood everything tried, at {self.setting}. "
            f"Of all images {self.robust:n} are classified correctly under attack (robust accuracy) and {self.clean} "
            "without one. Ranges are 95 % intervals."
        )

    @property
    def setting(self) -> str:
        """Eps, norm and budget as part of a sentence, such as "eps 8/255 (linf, budget standard)".

        For pixels with another range than 1 it also says which share of the range eps is.
        """
        tried = "attacks chosen by the caller" if self.budget == "own" else f"budget {self.budget}"
        facts = [share_of_range(self.eps, self.bounds, self.norm), self.norm, tried]
        return f"eps {format_eps(self.eps)} ({', '.join(filter(None, facts))})"

    @property
    def shown_eps(self) -> str:
        """Eps as it was written, and as a share of the range of the pixels unless that is 1."""
        return eps_with_share(self.eps, self.bounds, self.norm)


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a model at one eps: the result of the attacks, whether it can be trusted, and its grades."""

    trust: Trust
    number: Number
    grades: tuple[Grade, ...]
    """One grade; several, ascending, if the interval lies across borders; none if the result is not to be trusted."""
    borders: Borders = CONVENTION

    def __repr__(self) -> str:
        return f"Verdict({self.word} at eps {self.number.shown_eps}; robust accuracy {self.number.robust:n})"

    @property
    def eps(self) -> float:
        """The radius that the verdict is about."""
        return self.number.eps

    @property
    def word(self) -> str:
        """The grades, joined by "or", or "not to be trusted" if there are none."""
        if not self.grades:
            return UNTRUSTED
        *first, last = self.grades
        return f"{', '.join(first)} or {last}" if first else str(last)

    @property
    def fallen(self) -> bool:
        """Whether all grades are broken or untrained; False if there is none, as the result is not to be trusted."""
        return bool(self.grades) and all(each in _FALLEN for each in self.grades)

    @property
    def favourable(self) -> bool:
        """Whether the best of `grades` is better than weak; False if there is none, as the result is not to be trusted.

        Findings that only weaken the result do not count, and checks need not have been run.
        """
        return bool(self.grades) and self.grades[-1] not in (*_FALLEN, Grade.WEAK)

    @property
    def undecided(self) -> bool:
        """Whether more images could decide the grade: the interval lies across a border or across guessing."""
        number = self.number
        if Grade.UNTRAINED in self.grades:
            return number.clean.value > number.guessing
        return len(self.grades) > 1 or (self._by_guessing and number.robust.value > number.guessing)

    @property
    def colour(self) -> Literal["green", "yellow", "red"]:
        """Red if there is no grade or all are broken or untrained; green if, after checks of which none weakens
        the number and at least the standard budget, the lowest grade is partly robust or better; else yellow.
        """
        if not self.grades or self.fallen:
            return "red"
        full = self.number.budget in _FULL and self.trust.checked and not self.trust.weakened_by
        return "green" if full and self.mostly_robust else "yellow"

    @property
    def mostly_robust(self) -> bool:
        """Whether the lowest grade is partly robust or better."""
        return bool(self.grades) and self.grades[0] in (Grade.PARTLY_ROBUST, Grade.ROBUST)

    @property
    def number_sentence(self) -> str:
        """`Number.sentence`, after "Not to be used:" if the result is not to be trusted."""
        return self.number.sentence if self.trust.trusted else f"Not to be used: {self.number.sentence}"

    @property
    def grade_sentence(self) -> str:
        """The sentence with the grades and the reason for them, or that there is no grade."""
        if not self.grades:
            return f"No grade: the number is {UNTRUSTED}."
        return f"{_capital(self.word)}: {self._reason}{self._low_clean}."

    @property
    def convention(self) -> str:
        """The sentence with the borders between grades, and how many public models lie between them."""
        shares = ", ".join(_border(each) for each in asdict(self.borders).values())
        whose = "a convention" if self.borders == CONVENTION else "set for this evaluation"
        return f"Borders between grades: {shares} ({whose}); {PUBLIC_MODELS}."

    @property
    def sentence(self) -> str:
        """The verdict as text: grades, eps, norm, budget, share that withstood and reason, or why not to trust it."""
        number = self.number
        if not self.grades:
            return f"This evaluation is {UNTRUSTED}, because {'; and '.join(self.trust.because)}.{self.trust.unmade}"
        left = ""
        if number.withstood is not None:
            left = f"{number.withstood:n} of the correctly classified images withstood everything tried; "
        found = f"{_capital(self.word)} at {number.setting}: {left}{self._reason}{self._low_clean}."
        return f"{found}{self.trust.doubts}{self.trust.unmade}"

    @property
    def _low_clean(self) -> str:
        """The end of a sentence with the clean accuracy, if that is low: the grade is about few of the images then."""
        clean = self.number.clean
        if clean.value >= LOW_ACCURACY or Grade.UNTRAINED in self.grades:  # whose reason states it
            return ""
        return f"; but without an attack only {clean:n} of all images are classified correctly"

    @property
    def _by_guessing(self) -> bool:
        """Whether the only grade is broken, and only because the robust accuracy is not shown to be above guessing: the
        share that withstood is not shown to be below the border.
        """
        number = self.number
        small = number.withstood is not None and number.withstood.high < self.borders.broken
        return self.grades == (Grade.BROKEN,) and not small

    @property
    def _reason(self) -> str:
        number, more = self.number, "; more images would decide" if self.undecided else ""
        guessing = f"is not shown to be above guessing the commonest class, {percent(number.guessing)}{more}"
        if number.guessing == 1:
            guessing = "is not shown to be above guessing: all images are of one class, use images of every class"
        if Grade.UNTRAINED in self.grades:
            return f"the accuracy without an attack, {number.clean:n}, {guessing}"
        if self._by_guessing:
            return f"the robust accuracy, {number.robust:n}, {guessing}"
        grade, *others = self.grades
        if others:
            return f"the interval lies across {' and '.join(map(_border, self.crossed))}{more}"
        if grade in (Grade.BROKEN, Grade.WEAK):
            border = self.borders.broken if grade is Grade.BROKEN else self.borders.weak
            return f"the interval ends below {_border(border)}"
        if grade is Grade.PARTLY_ROBUST:
            return f"the interval lies between {_border(self.borders.weak)} and {_border(self.borders.robust)}"
        if grade is Grade.ROBUST:
            return f"the interval begins at {_border(self.borders.robust)} or above"
        return f"only the budgets {', '.join(_FULL[:-1])} and {_FULL[-1]} can call a model robust"

    @property
    def crossed(self) -> tuple[float, ...]:
        """The borders of the grades, ascending, that the interval of the share that withstood lies across."""
        return tuple(each for each in asdict(self.borders).values() if self._crosses(each))

    def _crosses(self, border: float) -> bool:
        found = self.number.withstood
        shown = border < self.borders.robust or self.grades[-1] is Grade.ROBUST
        return found is not None and shown and found.low < border <= found.high

    def as_json(self) -> dict[str, Any]:
        """Eps, trust, number, grades and the sentences of the verdict, for a result file.

        The text of eps is there if it is known, the bounds of the pixels if they are not 0 and 1.
        """
        number = self.number
        return {
            "eps": number.eps,
            **({"eps_text": number.eps.text} if isinstance(number.eps, WrittenEps) else {}),
            "verdict": self.word,
            "trust": {
                "trusted": self.trust.trusted,
                "because": list(self.trust.because),
                "flattered_by": list(self.trust.flattered_by),
                "weakened_by": list(self.trust.weakened_by),
                "failed": list(self.trust.failed),
                "checked": self.trust.checked,
            },
            "number": {
                "withstood": None if number.withstood is None else number.withstood.as_json(),
                "robust_accuracy": number.robust.as_json(),
                "clean_accuracy": number.clean.as_json(),
                "guessing": number.guessing,
                "norm": number.norm,
                "budget": number.budget,
                **({"bounds": list(number.bounds)} if number.bounds != (0.0, 1.0) else {}),
            },
            "grade": {
                "grades": [str(each) for each in self.grades],
                "more_images_would_decide": self.undecided,
                "colour": self.colour,
                "borders": asdict(self.borders),
            },
            "sentence": self.sentence,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Verdict":
        """The verdict that `as_json` described; sentences are made anew. Raises `RecordError` for anything else."""
        try:
            trust, number, grade = found["trust"], found["number"], found["grade"]
            return cls(
                trust=Trust(
                    because=tuple(trust["because"]),
                    flattered_by=tuple(trust["flattered_by"]),
                    weakened_by=tuple(trust["weakened_by"]),
                    failed=tuple(trust["failed"]),
                    checked=trust["checked"],
                ),
                number=Number(
                    withstood=None if number["withstood"] is None else Estimate.from_json(number["withstood"]),
                    robust=Estimate.from_json(number["robust_accuracy"]),
                    clean=Estimate.from_json(number["clean_accuracy"]),
                    guessing=number["guessing"],
                    eps=with_text(found["eps"], found.get("eps_text")),
                    norm=number["norm"],
                    budget=number["budget"],
                    bounds=_bounds(number.get("bounds", (0.0, 1.0))),
                ),
                grades=tuple(Grade(each) for each in grade["grades"]),
                borders=Borders(**grade["borders"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"a verdict cannot be read ({type(error).__name__}: {error}); expected trust, number and grade as "
                f"casemate writes them in schema {SCHEMA}: evaluate again"
            ) from error


def guessing_accuracy(labels: np.ndarray, classes: int) -> float:
    """The accuracy that guessing reaches on labels `(n,)`: see `Number.guessing`; of no labels, one in `classes`."""
    commonest = float(np.unique(labels, return_counts=True)[1].max(initial=0))
    return max(1 / classes, commonest / max(len(labels), 1))


def verdict_on(
    eps: float,
    *,
    norm: str,
    budget: str,
    correct: np.ndarray,
    withstood: np.ndarray,
    labels: np.ndarray,
    classes: int,
    findings: Sequence[Finding],
    checked: bool = True,
    borders: Borders = CONVENTION,
    bounds: Bounds = (0.0, 1.0),
) -> Verdict:
    """The verdict on a model at `eps` by the rules of this module, from the results of attacks and checks.

    Args:
        eps: the radius, in `norm`.
        norm: linf, l2, l1 or l0.
        budget: quick, autoattack, standard, thorough, or own (attacks chosen by the caller).
        correct: which images are classified correctly without an attack, booleans `(n,)`.
        withstood: which are still classified correctly under every attack, booleans `(n,)`.
        labels: the true classes, integers `(n,)`.
        classes: number of classes of the model.
        findings: what the checks found.
        checked: whether checks were run.
        borders: between the grades.
        bounds: the smallest and the largest value of a pixel, to show eps as a share of their range.

    Raises `ShapeError` for no images.
    """
    number = Number(
        withstood=share(withstood[correct]) if correct.any() else None,
        robust=share(withstood),
        clean=share(correct),
        guessing=guessing_accuracy(labels, classes),
        eps=eps if isinstance(eps, float) else float(eps),
        norm=norm,
        budget=budget,
        bounds=bounds,
    )
    plain = Verdict(trust=Trust(checked=checked), number=number, grades=grade(number, borders), borders=borders)
    fallen = plain.fallen and not plain.undecided
    voids = [each for each in findings if each.severity is Severity.VOIDS]
    decisive = [each for each in voids if not (each.flatters and fallen)]
    trust = Trust(
        because=tuple(each.sentence.split(". ")[0] for each in decisive),  # without the advice that follows
        flattered_by=() if decisive else tuple(each.check for each in voids),
        weakened_by=tuple(each.check for each in findings if each.severity is Severity.WEAKENS and not each.failed),
        failed=tuple(each.check for each in findings if each.failed),
        checked=checked,
    )
    return replace(plain, trust=trust, grades=plain.grades if trust.trusted else ())


def grade(number: Number, borders: Borders = CONVENTION) -> tuple[Grade, ...]:
    """The grades, ascending, that the interval of the share that withstood reaches, whether it is trusted or not."""
    if number.withstood is None or number.clean.low <= number.guessing:
        return (Grade.UNTRAINED,)
    if number.robust.low <= number.guessing:
        return (Grade.BROKEN,)
    reached = borders.reached(number.withstood.low, number.withstood.high)
    if number.budget in _FULL:
        return reached
    limit = Grade.NOT_BROKEN_QUICKLY if number.budget == "quick" else Grade.NOT_BROKEN_BY_THESE
    return tuple(dict.fromkeys(each if each in (Grade.BROKEN, Grade.WEAK) else limit for each in reached))


def read_verdicts(result: Mapping[str, Any], where: str) -> tuple[Verdict, ...]:
    """The verdicts in the JSON of a stored evaluation, one for each eps, ascending; `where` names the file in errors.

    Raises `RecordError` for a result of another schema, and for one without verdicts.
    """
    version = result.get("schema", 1)
    if isinstance(version, str) and version != EVALUATION:
        raise RecordError(
            f"{where} states the schema {version}; expected {EVALUATION}, a result of `casemate evaluate` as this "
            "casemate writes it. Evaluate again, or read it with the casemate that wrote it"
        )
    if version not in (SCHEMA, EVALUATION):
        age = "an older" if isinstance(version, int) and version < SCHEMA else "another"
        meant = " (robust meant that half of the correctly classified images withstood)" if version == 1 else ""
        raise RecordError(
            f"{where} was written by {age} casemate: its verdicts are of schema {version}{meant}, this one reads "
            f"schema {SCHEMA}. Evaluate again"
        )
    found = result.get("verdicts")
    if not isinstance(found, list) or not found:
        raise RecordError(f"{where} holds no verdicts; expected at least one. Evaluate again")
    return tuple(Verdict.from_json(each) for each in found)


def _bounds(found: Any) -> Bounds:
    """Bounds as a file gives them. Raises `TypeError` or `ValueError` for anything but two numbers that ascend."""
    low, high = map(float, found)
    if not low < high:
        raise ValueError(f"bounds {low:g}, {high:g}; expected them to ascend")
    return low, high


def _border(share: float) -> str:
    """A border as text in percent, with as many digits as it needs: 0.1 gives "10 %"."""
    return f"{100 * share:g} %"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
