"""The paper's claims, and for each the rule that judges it by our numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from casemate_study.claims import attacks, defenses
from casemate_study.claims.rules import ClaimEvidence, RuleResult


@final
@dataclass(frozen=True, kw_only=True)
class PaperClaim:
    """One claim of the paper: the experiment that tests it, its section and text, and the rule that judges it."""

    experiment: str
    where: str
    """Section of the paper, such as "4.1.1"."""
    says: str
    judge: Callable[[ClaimEvidence], RuleResult]


CLAIMS = (
    PaperClaim(
        experiment="E1",
        where="3.3",
        says="93.7 % test accuracy.",
        judge=attacks.test_accuracy,
    ),
    PaperClaim(
        experiment="E2",
        where="4.1.1",
        says="FGSM at eps 0.1 lowers 94 % to 63.6 %.",
        judge=attacks.fgsm_accuracy,
    ),
    PaperClaim(
        experiment="E3",
        where="4.1.2",
        says="BIM with clip ball is more effective than with clip range.",
        judge=attacks.clipping,
    ),
    PaperClaim(
        experiment="E3",
        where="5",
        says="With clip ball the changes keep to the garment and leave the black background alone.",
        judge=attacks.background,
    ),
    PaperClaim(
        experiment="E4",
        where="4.1.2",
        says="BIM at eps 0.05 leaves 37.48 % after 25 iterations.",
        judge=attacks.accuracy_after_25,
    ),
    PaperClaim(
        experiment="E4",
        where="4.1.2",
        says="From then on accuracy is level while the loss keeps growing.",
        judge=attacks.level_after_25,
    ),
    PaperClaim(
        experiment="E5",
        where="4.2.1",
        says="Augmentation under-fits: validation above training accuracy.",
        judge=defenses.under_fits,
    ),
    PaperClaim(
        experiment="E5",
        where="4.2.1",
        says="Under FGSM it has the lower loss and the worse accuracy than E1.",
        judge=defenses.lower_loss_and_accuracy,
    ),
    PaperClaim(
        experiment="E6",
        where="4.2.2",
        says="Adversarial regularisation keeps up to 70 % under FGSM at 0.2.",
        judge=defenses.keeps_70,
    ),
    PaperClaim(
        experiment="E6",
        where="4.2.2",
        says="Under BIM, both clippings, E1 is better than it.",
        judge=defenses.loses_to_bim,
    ),
    PaperClaim(
        experiment="E7",
        where="4.2.2",
        says="E6 on E5: much worse accuracy than E6, loss on par.",
        judge=defenses.regularised_twice,
    ),
    PaperClaim(
        experiment="E8",
        where="3.5.2",
        says="Four rounds with growing steps are no better than one.",
        judge=defenses.four_rounds,
    ),
    PaperClaim(
        experiment="E9",
        where="4.2.3",
        says="The student's loss is always below the teacher's.",
        judge=defenses.students_loss,
    ),
    PaperClaim(
        experiment="E9",
        where="4.2.3",
        says="The student is more accurate than the teacher under FGSM.",
        judge=defenses.students_fgsm,
    ),
    PaperClaim(
        experiment="E9",
        where="4.2.3",
        says="Under both BIMs the teacher is more accurate.",
        judge=defenses.students_bim,
    ),
    PaperClaim(
        experiment="E9",
        where="4.2.3",
        says="An epoch of the student takes 1.25 times the teacher's.",
        judge=defenses.epoch_time,
    ),
    PaperClaim(
        experiment="E10",
        where="4.2.3",
        says="The adjusted student beats the teacher under BIM, clip ball, up to eps 0.1.",
        judge=defenses.adjusted_bim,
    ),
    PaperClaim(
        experiment="E11",
        where="5",
        says="The early-stopped model is clearly more accurate under FGSM than the over-fitted one.",
        judge=defenses.early_stopped_fgsm,
    ),
    PaperClaim(
        experiment="E12",
        where="5",
        says="The regularised model is less sensitive to attacks than E1.",
        judge=defenses.weight_decay_fgsm,
    ),
)


@final
@dataclass(frozen=True)
class Judgement:
    """A claim of the paper with our verdict on it at the scale of this run, and in `because` the numbers behind the
    verdict.
    """

    claim: PaperClaim
    verdict: str
    because: str


def judge(evidence: ClaimEvidence, *, decides: bool) -> list[Judgement]:
    """Judge every claim of the paper by our results, in the order of `CLAIMS`.

    `decides` says whether the scale and the data can decide. If not, the verdict is "cannot be decided at this scale",
    followed by the one that the numbers alone would give ("not measured" stays).
    """
    found = []
    for claim in CLAIMS:
        result = claim.judge(evidence)
        verdict: str = result.verdict
        if not decides and verdict not in ("not measured", "cannot be decided"):
            verdict = f"cannot be decided at this scale (here: {verdict})"
        elif verdict == "cannot be decided":
            verdict = "cannot be decided at this scale"
        found.append(Judgement(claim, verdict, result.because))
    return found
