"""What the page shows when a control changes: from the values of its controls to HTML."""

import threading
from collections.abc import Callable
from typing import Final, final

from casemate.errors import CasemateError
from casemate.play.explore import NORMS, AttackChoice, explore, masking, smallest_eps
from casemate.play.pictures import read_upload
from casemate.play.study import FinishedStudy
from casemate.play.subjects import Subjects
from casemate.play.views import exploration_view, masking_view, notice_view, smallest_view, study_view
from casemate.types import Images

Chosen = tuple[Images, int]
"""An image, and the number of its class."""
MASKED: Final = AttackChoice(attack="BIM", eps=0.05, steps=10)
"""The attack of the tab on masked gradients; its eps can be changed."""
_UNLIKE: Final = 0.25
"""Difference of the mean brightness from that of the test images, as a share of the range, that is mentioned."""
NO_STUDY: Final = (
    "No study is finished in this folder. `make study` runs it; `casemate play --study FOLDER` shows the report of "
    "another."
)


@final
class Answers:
    """Answers the page, one request at a time: PyTorch's threads are shared, and a second attack would slow both.

    A `CasemateError`, such as a model that cannot be attacked, is shown in the place of the result.
    """

    def __init__(self, subjects: Subjects, study: FinishedStudy | None = None) -> None:
        self.subjects, self.study = subjects, study
        self._lock = threading.Lock()

    def about(self, name: str) -> str:
        """What is known of a model, in Markdown."""
        return self.subjects.models[name].about

    def sample(self, kind: str, number: int) -> Chosen:
        """An image by its class, and its number in the class from 1; the last one beyond them."""
        label = self.subjects.classes.index(kind)
        positions = self.subjects.of_class(label)
        return self.subjects.image(positions[min(int(number), len(positions)) - 1]), label

    def upload(self, raw: bytes, kind: str) -> tuple[Chosen, str]:
        """A visitor's picture of a class, and what was done to it. Raises `DataError`."""
        image, done = read_upload(raw, self.subjects.shape, self.subjects.bounds)
        _, height, width = self.subjects.shape
        done.append(f"scaled to {height} x {width} pixels")
        low, high = self.subjects.bounds
        lighter = image.mean().item() - self.subjects.brightness
        more = ""
        if abs(lighter) > _UNLIKE * (high - low):
            seen = "lighter" if lighter > 0 else "darker"
            more = f" It is much {seen} than the test images: exchange black and white if it is a negative of them."
        return (image, self.subjects.classes.index(kind)), f"Your picture: {'; '.join(done)}.{more}"

    def shown(self, chosen: Chosen, *, negative: bool) -> Chosen:
        """The image as it is attacked: itself, or with black and white exchanged."""
        image, label = chosen
        return (sum(self.subjects.bounds) - image, label) if negative else chosen

    def attacked(self, name: str, chosen: Chosen, attack: str, norm: str, eps: float, steps: float) -> str:
        """The image, its perturbation and the adversarial image, with probabilities and losses."""

        def computed() -> str:
            choice = AttackChoice(attack=attack, norm=NORMS[norm], eps=float(eps), steps=int(steps))
            found = explore(self.subjects.models[name].model, *chosen, choice)
            return exploration_view(found, self.subjects.classes, self.subjects.bounds)

        return self._shown(computed)

    def smallest(self, chosen: Chosen, norm: str) -> str:
        """The smallest eps that fools each model."""

        def computed() -> str:
            models = self.subjects.models.items()
            found = {name: smallest_eps(each.model, *chosen, NORMS[norm]) for name, each in models}
            return smallest_view(found, NORMS[norm], self.subjects.width)

        return self._shown(computed)

    def masked(self, name: str, chosen: Chosen, factor: float, eps: float) -> str:
        """The same attack through the loss of probabilities and that of logits."""

        def computed() -> str:
            choice = AttackChoice(attack=MASKED.attack, steps=MASKED.steps, eps=float(eps))
            found = masking(self.subjects.models[name].model, *chosen, choice, float(factor))
            return masking_view(found, self.subjects.classes, self.subjects.bounds)

        return self._shown(computed)

    def figure(self, title: str) -> str:
        """The figure of the study with this title."""
        figures = {} if self.study is None else self.study.figures
        return next((study_view(each) for each in figures.values() if each.title == title), notice_view(NO_STUDY))

    def _shown(self, compute: Callable[[], str]) -> str:
        with self._lock:
            try:
                return compute()
            except CasemateError as error:
                return notice_view(str(error))
