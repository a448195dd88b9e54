"""How a check is written: a function that measures, declared with its thresholds and with what is documented of it.

The declaration is the only place that states a threshold. `Check` compares with it, the report shows it, and
`tools/findings_page.py` writes it into `docs/findings.md`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, final, get_args

from casemate.errors import NoGradientError, SettingError, kind_of
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.finding import Checked, Finding, Severity

Models = Literal["all", "deterministic", "randomised"]
Reads = Literal["inputs", "both", "attacks"]
"""What a check reads: the model and the images only, so that it runs before the attacks; the results of the attacks, so
that it runs after them; or both, so that it runs before them and again after them."""
Unit = Literal["%", "points", ""]
"""How a check's value is written: a share in percent, a difference of shares in percentage points, a plain number."""


@final
@dataclass(frozen=True)
class Measured:
    """What a check returns: the measured value, a sentence about it, and what changes how the value is judged."""

    value: float
    """The measured value, which is compared with the thresholds in the check's declaration."""
    sentence: str
    """What was measured and what was expected: the start of the finding's text, before the advice. Not used if the
    check finds no problem."""
    _: KW_ONLY
    advice: str | None = None
    """What to do, in place of the declaration's advice (None: that one); "" if `sentence` says it already."""
    counts: bool = True
    """False if the value proves nothing, for the reason in `excuse`: the check is not raised, whatever the value."""
    excuse: str = "within chance, by the paired test"
    """Why a value above the threshold proves nothing; used only if `counts` is False."""
    threshold: float | None = None
    """Threshold for this value in place of every declared one; None: the declared ones."""
    at_least: Severity | None = None
    """The check is raised with at least this severity, whatever the value; None: the thresholds alone decide."""
    at_most: Severity = Severity.VOIDS
    """The gravest severity that the thresholds can give this value."""
    flatters: bool = True
    """Whether the problem can only make the model look more robust than it is (see `Finding.flatters`)."""


@final
@dataclass(frozen=True)
class NotRun:
    """What a check returns if it has nothing to measure, with the reason."""

    why: str


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """A named check: the function that measures, its thresholds, and its documentation."""

    name: str
    title: str
    """What holds if the check passes."""
    measure: Callable[[CheckContext], Measured | NotRun]
    """The function that measures; its docstring says what, for the documentation."""
    thresholds: Mapping[Severity, float]
    """By severity, ascending: the value above which it is reached; empty if other rules decide (see `condition`)."""
    unit: Unit
    condition: str
    """What besides the thresholds decides whether the check is raised; "" if nothing does."""
    why: str
    """Why it matters that the check passes, with the paper that says so."""
    advice: str
    """What to do if the check is raised."""
    models: Models
    """On which models the check can be run: all, or only those whose logits are (or are not) random."""
    thorough: bool
    """Whether the check takes minutes and so is run only in a thorough evaluation."""
    reads: Reads
    only_flattery: bool
    """Whether all that it can find makes the model look more robust than it is. Such a check is left out once the model
    has fallen: nothing that it finds would change the verdict."""

    @property
    def measures(self) -> str:
        """What the check measures: the docstring of `measure` as one line."""
        return " ".join((inspect.getdoc(self.measure) or "").split())

    @property
    def raised_if(self) -> str:
        """When the check is raised, as text: its thresholds, `condition` and `models`."""
        rungs = " or ".join(
            f"above {_written(least, self.unit)} ({'a note' if severity is Severity.NOTE else severity})"
            for severity, least in self.thresholds.items()
        )
        models = "" if self.models == "all" else f"run on {self.models} models only"
        return f"{'; '.join(part for part in (rungs, self.condition, models) if part)}."

    def severity_of(self, found: Measured) -> Severity | None:
        """The gravest severity whose threshold the value exceeds, given `at_most` and `at_least`; None: not raised."""
        if not found.counts:
            return None
        gravity = list(Severity).index
        reached = [
            min(severity, found.at_most, key=gravity)
            for severity, declared in self.thresholds.items()
            if found.value > (declared if found.threshold is None else found.threshold)
        ]
        return max(filter(None, [*reached, found.at_least]), key=gravity, default=None)

    def __call__(self, context: CheckContext) -> Checked:
        """Run the check: measure, and compare with the thresholds. An error while measuring gives a failed check."""
        if self.models != "all" and context.randomised != (self.models == "randomised"):
            return self.skipped(f"the model is {'' if context.randomised else 'not '}randomised")
        try:
            found = self.measure(context)
        except NoGradientError:
            return self.skipped("the model is a black box, which has no gradient")
        except Exception as error:  # hours of attacks are not lost to a model that one check cannot handle
            return self.failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if isinstance(found, NotRun):
            return self.skipped(found.why)
        if not isinstance(found, Measured):
            return self.failed(f"it returned {kind_of(found)}; expected casemate.Measured or casemate.NotRun")
        if not math.isfinite(found.value):
            return self.failed("what it measures is not a finite number for this model")
        severity, finding = self.severity_of(found), None
        threshold = min(self.thresholds.values(), default=0.0) if found.threshold is None else found.threshold
        if severity is not None:
            advice = self.advice if found.advice is None else found.advice
            finding = Finding(
                check=self.name,
                severity=severity,
                value=found.value,
                threshold=threshold,
                sentence=". ".join(part.removesuffix(".") for part in (found.sentence, advice) if part),
                flatters=found.flatters,
            )
        return Checked(
            check=self.name,
            title=self.title,
            finding=finding,
            value=found.value,
            threshold=threshold,
            excuse=found.excuse if finding is None and found.value > threshold else None,
        )

    def skipped(self, why: str) -> Checked:
        """The result "not run", because of `why`, of a check that has nothing to measure or was not requested."""
        return Checked(check=self.name, title=self.title, not_run=why)

    def failed(self, why: str) -> Checked:
        """The result of a check that ended in the error `why`: a finding, so that no model passes by an error."""
        finding = Finding(
            check=self.name,
            severity=Severity.WEAKENS,
            value=None,
            threshold=None,
            sentence=f"this check could not be completed ({why}), so the problem it looks for may be present",
            failed=True,
        )
        return Checked(check=self.name, title=self.title, finding=finding)


def check(
    name: str,
    title: str,
    *,
    why: str,
    advice: str,
    note: float | None = None,
    weakens: float | None = None,
    voids: float | None = None,
    unit: Unit = "%",
    condition: str = "",
    models: Models = "all",
    thorough: bool = False,
    reads: Reads = "attacks",
    only_flattery: bool = False,
) -> Callable[[Callable[[CheckContext], Measured | NotRun]], Check]:
    """Decorator that turns a function which measures into a `Check`; the function's docstring says what it measures.

    Args:
        name: as the command line, reports and `docs/findings.md` show it.
        title: what holds if the check passes.
        why: why it matters, with the paper.
        advice: what to do if it is raised.
        note, weakens, voids: the value above which each severity is reached; None: never by the value.
        unit: of the value.
        condition: what besides the thresholds decides whether it is raised.
        models: on which it can be run.
        thorough: whether it takes minutes, and so is run only in a thorough evaluation.
        reads: the model and the images ("inputs"), the results of the attacks, or both.
        only_flattery: whether all that it can find makes the model look more robust than it is, so that it is left out
            once the model has fallen.

    Raises `SettingError` for a check without thresholds and `condition`, and for a unit that is not one of "%",
    "points" and "".
    """
    if note is weakens is voids is None and not condition:
        raise SettingError(
            f"check {name} has no threshold, so it could never be raised; give note=, weakens= or voids=, the value "
            "above which it has that severity"
        )
    if unit not in get_args(Unit):
        raise SettingError(f"unit {unit!r} of check {name}; expected one of {', '.join(map(repr, get_args(Unit)))}")
    declared = zip((Severity.NOTE, Severity.WEAKENS, Severity.VOIDS), (note, weakens, voids), strict=True)
    thresholds = {severity: least for severity, least in declared if least is not None}
    return lambda measure: Check(
        name=name,
        title=title,
        measure=measure,
        thresholds=thresholds,
        unit=unit,
        condition=condition,
        models=models,
        why=why,
        advice=advice,
        thorough=thorough,
        reads=reads,
        only_flattery=only_flattery,
    )


def _written(value: float, unit: Unit) -> str:
    """A threshold as text with its unit: 0.01 is "1 %", "1 point" or "0.01"."""
    shown = f"{value if unit == '' else 100 * value:g}"
    return f"{shown} {unit.removesuffix('s') if shown == '1' else unit}".rstrip()
