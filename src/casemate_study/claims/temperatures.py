"""How claims on defensive distillation are judged at several temperatures, since the paper names none.

A claim holds if it holds for the students of every temperature that was measured. If it holds for some and is refuted
for others, or unexplained, the paper's sentence, which has no such condition, does not hold as it stands; if for the
others no difference is shown, neither is it for all. The text then names the students for which it holds. If it holds
for none, the worst verdict counts: "no difference shown" if none refutes it.
"""

from collections.abc import Mapping

from casemate_study.claims.rules import NOTHING, ClaimEvidence, ClaimVerdict, RuleResult, causes_of, joined


def student_names(evidence: ClaimEvidence, *experiments: str) -> list[str]:
    """The names of the measured distillation students of these experiments ("E9", "E10"), of all temperatures.

    E9's teachers are not among them.
    """
    return [
        name
        for each in experiments
        for name in evidence.models
        if name.startswith(f"{each}-") and not name.startswith(f"{each}-teacher")
    ]


def teacher_of(student: str) -> str:
    """The name of a student's teacher, which is trained at the student's temperature: at 1 it is E1."""
    _, temperature = student.split("-", 1)
    return "E1" if temperature == "1" else f"E9-teacher-{temperature}"


def at_all_temperatures(students: Mapping[str, Mapping[str, RuleResult]]) -> RuleResult:
    """Combine the results for the parts of a claim on distillation, by student and name of the part (such as an attack;
    empty if the claim has one part only).

    For one student the claim holds if all parts do; for several as this module says. Parts that are not measured are
    skipped.
    """
    known: dict[str, dict[str, RuleResult]] = {}
    for student, parts in students.items():
        measured = {part: found for part, found in parts.items() if found.verdict != "not measured"}
        if measured:
            known[student] = measured
    if not known:
        return NOTHING
    verdicts: dict[str, ClaimVerdict] = {
        student: joined([each.verdict for each in parts.values()]) for student, parts in known.items()
    }
    text = " ".join(
        f"[{student}{part and ', '}{part}: {found.verdict}] {found.text}"
        for student, parts in known.items()
        for part, found in parts.items()
    )
    causes = causes_of(found for parts in known.values() for found in parts.values())
    holding = [student for student, verdict in verdicts.items() if verdict == "holds"]
    if not holding or len(holding) == len(verdicts):
        return RuleResult(joined(list(verdicts.values())), text, causes)
    open_only = all(each in ("holds", "no difference shown") for each in verdicts.values())
    verdict: ClaimVerdict = "no difference shown" if open_only else "does not hold"
    return RuleResult(verdict, f"{_where(verdicts, holding)} {text}", causes)


def _where(verdicts: Mapping[str, ClaimVerdict], holding: list[str]) -> str:
    """A sentence that names the students for which a claim holds, and the others with their verdicts."""
    others = [f"{_titled(student)} ({verdict})" for student, verdict in verdicts.items() if verdict != "holds"]
    return f"It holds for {', '.join(map(_titled, holding))}, but not for {', '.join(others)}."


def _titled(student: str) -> str:
    """The experiment and temperature of a student: "E9 at T = 20" for "E9-20"."""
    experiment, temperature = student.split("-", 1)
    return f"{experiment} at T = {temperature}"
