"""What the page of the study draws: sentences for its first screen, and tables of numbers as dots and shades.

The same numbers stand as text with their intervals in `comparison`, for the page's folded tables and the Markdown.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from casemate.evaluation import Estimate, Verdict, percent
from casemate_study.claims import Judgement
from casemate_study.claims.verdicts import EPS, Advice
from casemate_study.experiments.models import TABLE_EPS
from casemate_study.report.paper_comparison import Comparison
from casemate_study.results.models import ModelResults

UNDEFENDED = "E1"


@final
@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A model as a row of dots and one of shades."""

    title: str
    verdict: Verdict | None
    helps: str
    """Whether it helps against the undefended network; "" for that one."""
    clean: Estimate
    fgsm: Estimate | None
    worst: Estimate | None
    partly: bool
    """Whether `worst` is that of FGSM and BIM alone, since the strongest attack of the study is not finished."""
    shades: tuple[Estimate | None, ...]
    """Accuracies in the order of `SHADED`."""


@final
@dataclass(frozen=True, kw_only=True)
class Beside:
    """A number of ours and the paper's, which states no interval."""

    estimate: Estimate
    stated: Estimate

    @classmethod
    def of(cls, found: Comparison) -> "Beside":
        """The two numbers of a row of the comparison."""
        return cls(estimate=found.estimate, stated=Estimate(found.stated, found.stated, found.stated, 0))


SHADED = ("clean", *(f"{name} {eps:g}" for name in ("FGSM", "BIM") for eps in TABLE_EPS), f"worst case {EPS:g}")
"""Columns of the table of shades."""


def model_rows(models: Mapping[str, ModelResults], advices: Sequence[tuple[str, Advice]]) -> list[ModelRow]:
    """A row for each model that is measured without an attack, in the study's order."""
    helps = {name: advice.helps for name, advice in advices}
    rows: list[ModelRow] = []
    for name, each in models.items():
        if each.clean is None:
            continue
        clean, worst = each.clean.accuracy, each.worst_case(EPS)
        under = [each.accuracy_under(measure, eps) for measure in ("fgsm", "ball") for eps in TABLE_EPS]
        rows.append(
            ModelRow(
                title=each.title,
                verdict=each.verdict(EPS),
                helps=helps.get(name, ""),
                clean=clean,
                fgsm=each.accuracy_under("fgsm", EPS),
                worst=worst,
                partly=each.under_strongest(EPS) is None,
                shades=(clean, *under, worst),
            )
        )
    return rows


def lead(
    models: Mapping[str, ModelResults], advices: Sequence[tuple[str, Advice]], claims: Sequence[Judgement]
) -> list[str]:
    """At most three sentences: the undefended network, the defences, the paper's claims; each if it is measured."""
    return [each for each in (_undefended(models.get(UNDEFENDED)), _defences(models, advices), _claims(claims)) if each]


def _undefended(model: ModelResults | None) -> str:
    if model is None or model.clean is None:
        return ""
    found = (
        f"Without a defence the network classifies {percent(model.clean.accuracy.value)} of the test images correctly"
    )
    fgsm, worst = model.accuracy_under("fgsm", EPS), model.worst_case(EPS)
    if fgsm is None:
        return f"{found}."
    end = "" if worst is None else f", and {percent(worst.value)} under all attacks of the study together"
    return f"{found}, {percent(fgsm.value)} after one step of FGSM at eps {EPS:g}{end}."


def _defences(models: Mapping[str, ModelResults], advices: Sequence[tuple[str, Advice]]) -> str:
    graded = [(name, advice) for name, advice in advices if advice.verdict is not None]
    if not graded:
        return ""
    words = Counter(advice.word for _, advice in graded)
    grades = ", ".join(f"{count} {word}" for word, count in words.most_common())
    helping = [_in_brackets(models[name].title) for name, advice in graded if advice.helps == "helps"]
    shown = ", ".join(helping[:_SHOWN]) + (f" and {len(helping) - _SHOWN} more" if len(helping) > _SHOWN else "")
    better = f"More images than without a defence withstand with {len(helping)} of them: {shown}"
    compared = sum(advice.helps != "not measured" for _, advice in graded)
    none = "None helps" if compared == len(graded) else f"Of the {compared} compared with E1 so far none helps"
    defended = f"{len(graded)} defended model{'' if len(graded) == 1 else 's'}"
    return f"Of {defended} at eps {EPS:g}: {grades}. {better if helping else none}."


def _in_brackets(title: str) -> str:
    """The title of a model with what stands after its experiment in brackets, so that it can be listed."""
    experiment, comma, what = title.partition(", ")
    return f"{experiment} ({what})" if comma else title


_SHOWN = 4
"""Number of models that a sentence names, at most."""


def counted(claims: Sequence[Judgement]) -> str:
    """How many of the claims got each verdict, as text."""
    counts = Counter(each.found for each in claims)
    return ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common())


def _claims(claims: Sequence[Judgement]) -> str:
    counts = Counter(each.found for each in claims)
    missing = counts.pop("not measured", 0)
    if not counts:
        return ""
    found = ", ".join(f"{count} {_SAID[verdict][count > 1]}" for verdict, count in counts.most_common())
    end = f"; {missing} {_SAID['not measured'][missing > 1]}" if missing else ""
    return f"Of {len(claims)} statements of the paper by these numbers: {found}{end}."


_SAID = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "no difference shown": ("is not decided by the tests", "are not decided by the tests"),
    "unexplained": ("is a number that no setting of ours gives", "are numbers that no setting of ours gives"),
    "not measured": ("is not measured", "are not measured"),
}
"""The verdicts on claims as they are said of one statement, and of several."""
