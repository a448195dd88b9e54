"""The checks that a continuous integration server is shown of a verified record: each of its claims."""

from pathlib import Path

from casemate.evaluation import Verification
from casemate.report.ci.checks import CiCheck, CiRule, CiRun, State

REFUTED_CLAIM = CiRule(
    name="refuted-claim",
    title="A claim of the record does not hold",
    help=(
        "A record of adversarial examples makes a claim about this model that does not hold for it: the record is "
        "about another model or other images, or was changed. Evaluate the model again to get a record that holds."
    ),
)
_STATES: dict[bool | None, State] = {True: "passed", False: "failed", None: "skipped"}


def verification_run(found: Verification, *, record: Path, model: str, file: Path | None) -> CiRun:
    """The run of a verification: a check for every claim, which fails if the claim does not hold.

    Args:
        found: the result.
        record: the file of the record.
        model: the model, as the user named it.
        file: the model's file, or that of the code that builds it.
    """
    checks = tuple(
        CiCheck(
            name=each.title,
            rule=REFUTED_CLAIM,
            state=_STATES[each.holds],
            message=each.sentence,
            identity=each.title,
        )
        for each in found.claims
    )
    return CiRun(
        command="casemate verify",
        subject=model,
        file=file,
        checks=checks,
        exit_code=0 if found.holds else 3,
        properties={"record": record.as_posix()},
    )
