"""Trials of hypotheses on why the paper's accuracy under FGSM differs from E2's, and which reproduce its number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from casemate.evaluation import Estimate
from casemate.losses import TITLES
from casemate_study.experiments import paper
from casemate_study.experiments.hypotheses import HYPOTHESES, PREFIX, UNCHANGED
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.stored import Artifacts, StoredHypotheses, StoredTraining, find_result

WANTED = paper.FGSM_AT_01.value
"""The paper's accuracy of E1 under FGSM at eps 0.1, the number to explain."""


def numbered(name: str) -> str:
    """The title of a hypothesis after its number in the report, such as "4. pixels not clipped to [0, 1]"."""
    return f"{_number_of(name)}. {HYPOTHESES[name].title}"


def _number_of(name: str) -> int:
    return list(HYPOTHESES).index(name) + 1


@final
@dataclass(frozen=True, kw_only=True)
class Trial:
    """E1's accuracy under FGSM with the changes of one or two hypotheses, after one epoch, ascending one loss."""

    hypotheses: tuple[str, ...]
    """Names of one hypothesis, or of the two that are combined."""
    loss: str
    epoch: int | None
    """Epochs that the network was trained for; None for all, that is, the final weights."""
    accuracy: Estimate

    @property
    def contains(self) -> bool:
        """Whether the paper's accuracy lies within the interval."""
        return self.accuracy.low <= WANTED <= self.accuracy.high

    @property
    def title(self) -> str:
        """What was changed, such as "images of the training split, pixels not clipped to [0, 1]"."""
        return "; ".join(HYPOTHESES[name].title for name in self.hypotheses)

    @property
    def numbers(self) -> str:
        """The numbers of its hypotheses in the report, such as "5" or "3 and 5"."""
        return " and ".join(map(str, sorted(map(_number_of, self.hypotheses))))

    def __str__(self) -> str:
        """What was measured and its accuracy as text."""
        when = "" if self.epoch is None else f" after epoch {self.epoch}"
        return f"{self.title}{when}, ascending {TITLES[self.loss]}: {self.accuracy:n}"


def hypotheses_by_epoch(artifacts: Artifacts) -> dict[int | None, StoredHypotheses]:
    """The finished trials by the epochs that E1 was trained for, ascending; None, all epochs, comes last."""
    names = sorted(name for name in artifacts if name.startswith(f"{PREFIX}/epoch-"))
    epochs: dict[int | None, str] = {int(name.rsplit("-", 1)[1]): name for name in names} | {None: PREFIX}
    found = {epoch: find_result(artifacts, name, StoredHypotheses) for epoch, name in epochs.items()}
    return {epoch: each for epoch, each in found.items() if each is not None}


def hypotheses_after_epochs(artifacts: Artifacts) -> dict[int, StoredHypotheses]:
    """The finished trials by the epochs that E1 was trained for, ascending, those of the final weights by the number of
    all epochs; without these if E1's training is not finished.
    """
    training = find_result(artifacts, "E1/train", StoredTraining)
    last = None if training is None else training.last.epoch
    found = {last if epoch is None else epoch: each for epoch, each in hypotheses_by_epoch(artifacts).items()}
    return {epoch: each for epoch, each in found.items() if epoch is not None}


def trials_of(found: StoredHypotheses, epoch: int | None) -> Iterator[Trial]:
    """All trials with one set of weights: each hypothesis under each loss, then the combinations."""
    for name, by_loss in found.single.items():
        for loss, accuracy in by_loss.items():
            if accuracy is not None:
                yield Trial(hypotheses=(name,), loss=loss, epoch=epoch, accuracy=accuracy)
    for loss in LOSSES:
        pair = found.combined[loss]
        if pair is not None and pair.accuracy is not None:
            yield Trial(hypotheses=pair.hypotheses, loss=loss, epoch=epoch, accuracy=pair.accuracy)


def explaining_trials(artifacts: Artifacts) -> list[Trial]:
    """The finished trials under which the paper's 63.6 % lies within our interval, those of the final weights last.

    E2's own measure is omitted: a claim judges whether it gives the paper's number.
    """
    every = (trial for epoch, found in hypotheses_by_epoch(artifacts).items() for trial in trials_of(found, epoch))
    return [trial for trial in every if trial.contains and (trial.hypotheses, trial.epoch) != ((UNCHANGED,), None)]
