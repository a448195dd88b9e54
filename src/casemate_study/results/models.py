"""Everything that was measured on one model of the study, read from the finished artifacts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from casemate.engine import Artifact
from casemate.evaluation import Estimate, Verdict, read_verdicts, share, verdict_on
from casemate_study.experiments.models import StudyModel
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.paired import is_correct, rows_of
from casemate_study.results.reading import read_as
from casemate_study.results.stored import (
    Artifacts,
    StoredClean,
    StoredCurve,
    StoredEvaluation,
    StoredTraining,
    StoredWorstCase,
    find_result,
)


@final
@dataclass(frozen=True, kw_only=True)
class WholeEvaluation:
    """The stored result of `casemate.evaluate` on one model at one eps: its verdict, and the checks that found
    something.
    """

    verdict: Verdict
    raised: Mapping[str, str]
    """Severity of the finding of each check that found something ("voids", "weakens", "note"), by the name of the
    check."""

    @property
    def robust(self) -> Estimate:
        """Robust accuracy: share of all images that are correctly classified under every attack of the evaluation."""
        return self.verdict.number.robust


@final
@dataclass(frozen=True)
class ModelResults:
    """A model of the study with the finished artifacts, from which each property and method reads one result; None
    where its artifact is not finished.
    """

    model: StudyModel
    artifacts: Artifacts

    @property
    def title(self) -> str:
        """The model's title in tables and figures, such as "E6, adversarial regularisation"."""
        return self.model.title

    def artifact(self, measure: str, loss: str | None = None) -> Artifact | None:
        """The artifact of one measure of this model; None if it is not finished.

        `measure` is clean, fgsm, ball or range (BIM with that clipping), pgd, eot, divided (BIM on divided logits) or
        evaluation; `loss` is the loss that the attack ascends, needed for fgsm, ball and range only.
        """
        return self.artifacts.get(self.model.artifact(measure, loss))

    @property
    def clean(self) -> StoredClean | None:
        """Measures on test images without an attack; None if not finished."""
        return find_result(self.artifacts, self.model.artifact("clean"), StoredClean)

    @property
    def clean_best(self) -> StoredClean | None:
        """Measures without an attack of the weights with the lowest validation loss, where a student has others too."""
        return find_result(self.artifacts, self.model.artifact("clean-best"), StoredClean)

    @property
    def training(self) -> StoredTraining | None:
        """The training that made the model, which another model may share; None if not finished."""
        return find_result(self.artifacts, self.model.source.task, StoredTraining)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Seconds of the training in all, and on average per epoch (`EpochRow.cost`); None if it is not finished.

        For a model that early stopping made, epochs after the stop, which serve another model only, are not counted.
        """
        training = self.training
        if training is None:
            return None
        stopped = training.stopped_at if self.model.source.weights == "best" else None
        rows = training.history[:stopped]
        total = sum(row.cost for row in rows)
        return total, total / len(rows)

    def curve(self, measure: str, loss: str | None = "ce") -> StoredCurve | None:
        """The curve over eps of one attack ("fgsm", "ball", "range", "eot", "divided"); None if not finished.

        `loss` is the loss that the attack ascends; None for "eot" and "divided", whose tasks have no loss in their
        names.
        """
        return find_result(self.artifacts, self.model.artifact(measure, loss), StoredCurve)

    @property
    def pgd(self) -> StoredWorstCase | None:
        """The worst case over PGD runs with restarts, at several eps; None if not finished, and for a randomised model,
        which is not attacked with PGD.
        """
        return find_result(self.artifacts, self.model.artifact("pgd"), StoredWorstCase)

    def accuracy_under(self, measure: str, eps: float, loss: str | None = "ce") -> Estimate | None:
        """Share of images classified correctly at the last iterate of an attack at `eps`; arguments as for `curve`.

        None if the curve is not finished or has no point at `eps`.
        """
        curve = self.curve(measure, loss)
        point = None if curve is None else curve.at(eps)
        return None if point is None else point.last

    @property
    def randomised(self) -> bool:
        """Whether the model draws random numbers at inference, so that its predictions may differ from call to call."""
        return self.model.source.inference is not None

    def under_strongest(self, eps: float) -> Estimate | None:
        """Accuracy under the strongest attack that the study itself runs: PGD with restarts, ascending either of
        two losses. At small eps those of the whole evaluation leave less.

        For a randomised model BIM over averaged gradients, at the last iterate. None if not measured at `eps`.
        """
        if self.randomised:
            return self.accuracy_under("eot", eps, None)
        point = None if self.pgd is None else self.pgd.at(eps)
        return None if point is None else point.every

    def robust_mask(self, eps: float) -> np.ndarray | None:
        """Which images are classified correctly without an attack and at every iterate of the attacks up to `eps`.

        The attacks are FGSM, BIM with clip `ball` and PGD, each under all its losses, at `eps` and at smaller values.
        Booleans `(n,)`; attacks that ran on different numbers of images are cut to the smallest, and attacks that are
        not finished are left out; None if none is finished. For a randomised model, whose predictions differ by chance,
        only the last iterate at `eps` of BIM over averaged gradients counts.
        """
        if self.randomised:
            artifact = self.artifact("eot")
            known = artifact is not None and self.accuracy_under("eot", eps, None) is not None
            return is_correct(artifact, "eps", eps) if artifact is not None and known else None
        found = [
            rows_of(artifact, "eps", eps)["worst"]
            for measure in ("fgsm", "ball")
            for loss in LOSSES
            if (artifact := self.artifact(measure, loss)) and self.accuracy_under(measure, eps, loss)
        ]
        pgd = self.artifact("pgd")
        if pgd is not None and self.under_strongest(eps):
            found.append(is_correct(pgd, "eps", eps))
        return np.logical_and.reduce([each[: min(map(len, found))] for each in found]) if found else None

    def worst_case(self, eps: float) -> Estimate | None:
        """Share of images that withstand every attack of the study within `eps`, as `robust_mask` says; None if none is
        finished.
        """
        robust = self.robust_mask(eps)
        return None if robust is None else share(robust)

    def whole_evaluation(self, eps: float) -> WholeEvaluation | None:
        """The stored result of `casemate.evaluate` at `eps`; None if it is not finished or has no verdict
        at this eps.

        Raises `RecordError` if another version of casemate stored it.
        """
        artifact = self.artifact("evaluation")
        if artifact is None:
            return None
        where = f"the stored evaluation of {self.title}"
        verdict = next((each for each in read_verdicts(artifact.result, where) if abs(each.eps - eps) < 1e-9), None)
        if verdict is None:
            return None
        checks = read_as(StoredEvaluation, artifact.result, where).checks
        raised = {each.check: each.state for each in checks if each.sentence is not None}
        return WholeEvaluation(verdict=verdict, raised=raised)

    def verdict_of_attacks(self, eps: float) -> Verdict | None:
        """The verdict on robustness at `eps` from the study's own attacks alone, without the evaluation's attacks and
        checks.

        None if no attack or no clean measure is finished.
        """
        robust, artifact, clean = self.robust_mask(eps), self.artifact("clean"), self.clean
        if robust is None or artifact is None or clean is None:
            return None
        correct, labels = is_correct(artifact), rows_of(artifact)["label"]
        n = min(len(robust), len(correct))
        return verdict_on(
            eps,
            norm="linf",
            budget="own",
            correct=correct[:n],
            withstood=robust[:n],
            labels=labels[:n],
            classes=len(clean.classes),
            findings=(),
            checked=False,
        )

    def verdict(self, eps: float) -> Verdict | None:
        """The verdict on robustness at `eps`: that of the whole evaluation, unless there is none or only the study's
        own attacks show the model broken; then theirs. None if neither is finished.
        """
        own, whole = self.verdict_of_attacks(eps), self.whole_evaluation(eps)
        if whole is None or (own is not None and own.fallen and not whole.verdict.fallen):
            return own
        return whole.verdict

    def zero_gradient_share(self, loss: str) -> Estimate | None:
        """Share of test images whose input gradient under `loss` is exactly zero in every pixel; None if
        not measured.
        """
        return None if self.clean is None else self.clean.zero_gradients[loss]
