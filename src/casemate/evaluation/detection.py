"""Evaluation of a detector of adversarial images, by attacks that do not know it and by one that does.

The adaptive attack searches images that are misclassified and not rejected. It runs the existing gradient attack on a
network that returns the logits of the model and, behind them, the detector's score (as Carlini and Wagner 2017, arXiv
1705.07263). First PGD follows the selective loss of Bryniarski et al. (2022, arXiv 2106.15023): the margin until the
image is misclassified, and then the score. On the images left Auto-PGD, whose step size adapts, maximises the margin
minus a weight times the score, for several weights. The orthogonal variant of Bryniarski et al., which also makes the
two gradients orthogonal to one another, is not included.

A detector that looks strong in the first column of the result and weak in the second is broken. Attacks without
gradients on the detector are not made, so a detector without useful gradients can look better than it is; a warning
says so where no gradient was found at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from casemate.attacks import APGD, PGD, AbstractAttack, AttackResult, Status, check_images, frozen
from casemate.attacks.base import as_attack
from casemate.attacks.criterion import AbstractCriterion
from casemate.attacks.inputs import as_images
from casemate.attacks.named import Attacks, named_attacks
from casemate.attacks.prepare import prepare_images
from casemate.data import Array, ImageSource, as_labelled, as_labels
from casemate.defenses.detection import CalibratedDetector
from casemate.errors import SettingError, ShapeError, kind_of
from casemate.intervals import Estimate, share
from casemate.losses import margin
from casemate.memory import batched
from casemate.models import Classifier, as_classifier, check_labels, user_call
from casemate.norms import Ball, Norm, parse_eps
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import derive
from casemate.settings import at_least, listed, not_negative, one_of
from casemate.types import Flags, Images, Labels, Logits, PerExample

_NORM = one_of("linf", "l2", "l1", why="for l0 give attacks of one's own to with_detector")
_WEIGHTS = (0.1, 1.0, 10.0)
_BATCH = 256
_BEHIND = 2
"""Columns behind the logits of the joint network: what is pursued, and the excess of the score."""


@final
class Evasion(AbstractCriterion):
    """Fooled where the image is misclassified and not rejected, for the logits of `with_detector`.

    Args:
        labels: the true classes, whole numbers `(n,)`.
    """

    def __init__(self, labels: Array) -> None:
        self.classes = as_labels(labels)

    def check(self, classes: int) -> None:
        """Raise `ShapeError` for labels that the model does not have; `classes` counts the two columns too."""
        check_labels(self.classes, classes - _BEHIND)

    def margin(self, logits: Logits) -> PerExample:
        """The smaller of the logit margin and the distance of the score below the threshold."""
        return margin(logits[:, :-_BEHIND], self.classes).minimum(-logits[:, -1])

    def fools(self, logits: Logits) -> Flags:
        """By the class that is predicted, and a score that is not above the threshold."""
        return (logits[:, :-_BEHIND].argmax(1) != self.classes) & (logits[:, -1] <= 0)


@final
@dataclass(frozen=True)
class _Selective:
    """The margin where the image is still classified right, else minus what has to fall for the score to fall."""

    def __call__(self, logits: Logits, labels: Labels) -> PerExample:
        wrong = margin(logits[:, :-_BEHIND], labels)
        return torch.where(wrong <= 0, wrong, -logits[:, -_BEHIND])


@final
@dataclass(frozen=True)
class _Weighted:
    """The margin minus a weight times what has to fall for the score to fall."""

    weight: float

    def __call__(self, logits: Logits, labels: Labels) -> PerExample:
        return margin(logits[:, :-_BEHIND], labels) - self.weight * logits[:, -_BEHIND]


@final
class _Joint(nn.Module):
    """A network that returns the logits of `model`, what an attack pursues, and the excess of the score."""

    def __init__(self, model: Classifier, detector: CalibratedDetector) -> None:
        super().__init__()
        self.model, self.detector = model, detector

    def forward(self, images: Images) -> Tensor:
        logits = self.model(images)
        behind = [each(self.model, images) for each in (self.detector.pursued, self.detector.excess)]
        return torch.cat([logits, *(column.to(logits.dtype).unsqueeze(1) for column in behind)], 1)


def with_detector(model: nn.Module, detector: CalibratedDetector) -> Classifier:
    """A classifier with the logits of `model`, whose weights it shares, and two columns for an attack on both.

    They are `CalibratedDetector.pursued` and `CalibratedDetector.excess`, the last one positive where the image is
    rejected. The criterion for attacks on it is `Evasion`; the classes that it predicts mean nothing. The number of
    classes of `model` must be known.
    """
    model = as_classifier(model)
    known = model.interface
    columns = (*model.classes, "pursued", "excess")
    return Classifier(
        _Joint(model, detector), input_shape=known["input_shape"], classes=columns, bounds=known["bounds"]
    ).train(model.training)


@final
@dataclass(frozen=True, kw_only=True)
class DetectorOutcome:
    """What became of the images under an attack, or without one: booleans `(n,)` as NumPy arrays."""

    wrong: np.ndarray
    """Whether each image is misclassified."""
    flagged: np.ndarray
    """Whether the detector rejects it."""

    @property
    def evaded(self) -> np.ndarray:
        """Whether each image is misclassified and not rejected."""
        return self.wrong & ~self.flagged

    @property
    def fooled(self) -> Estimate:
        """Share of all images that are misclassified."""
        return share(self.wrong)

    @property
    def evading(self) -> Estimate:
        """Share of all images that are misclassified and not rejected."""
        return share(self.evaded)

    @property
    def detected(self) -> Estimate | None:
        """The detection rate: share of the misclassified images that are rejected; None if none is misclassified."""
        return share(self.flagged[self.wrong]) if self.wrong.any() else None


@final
@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """What a detector is worth at its threshold; all arrays have one entry per image, in the same order."""

    eps: float
    """Radius of the ball of the adaptive attack, in pixel units."""
    norm: Norm
    """Its norm."""
    requested_rate: float
    """The false-positive rate that the detector was calibrated for; NaN if it was not."""
    clean: DetectorOutcome
    """Without an attack."""
    unaware: Mapping[str, DetectorOutcome]
    """Under each attack that does not know the detector, by its name."""
    adaptive: DetectorOutcome
    """Under the adaptive attack; for each image its best result: evaded, or else misclassified, or else the last."""

    def __len__(self) -> int:
        return len(self.clean.wrong)

    @property
    def false_positives(self) -> Estimate:
        """Share of the clean images that are rejected."""
        return share(self.clean.flagged)

    @property
    def robust_mask(self) -> np.ndarray:
        """Whether each image is classified right or rejected, without an attack and under every attack."""
        return ~np.logical_or.reduce([each.evaded for each in (self.clean, *self.unaware.values(), self.adaptive)])

    @property
    def robust(self) -> Estimate:
        """Share of the images of `robust_mask`."""
        return share(self.robust_mask)

    @property
    def fooled_mask(self) -> np.ndarray:
        """Whether an attack makes the model misclassify each image that it classifies right, rejected or not."""
        return ~self.clean.wrong & np.logical_or.reduce(
            [each.wrong for each in (*self.unaware.values(), self.adaptive)]
        )

    @property
    def evaded_mask(self) -> np.ndarray:
        """The images of `fooled_mask` on which the adaptive attack evades the detector too."""
        return self.fooled_mask & self.adaptive.evaded

    @property
    def is_broken(self) -> bool:
        """Whether the adaptive attack evades the detector on most of the images on which attacks fool the model."""
        return 2 * int(self.evaded_mask.sum()) > int(self.fooled_mask.sum())

    @property
    def summary(self) -> str:
        """A sentence on what the detector is worth."""
        fooled, evaded, rejected = int(self.fooled_mask.sum()), int(self.evaded_mask.sum()), self.false_positives
        if rejected.value > 0.5:
            return f"The detector is of no use: it rejects {rejected} of the images without an attack."
        if not fooled:
            return f"There is nothing to detect: no attack fools the model on any of {len(self):,} images."
        seen = f"the adaptive attack evades it on {evaded:,} of the {fooled:,} images on which attacks fool the model"
        if self.is_broken:
            return f"The detector is broken: {seen}."
        found = share(self.evaded_mask[self.fooled_mask])
        if found.high > 0.5:
            return (
                f"It is not decided whether the detector is broken: {seen}, {found}, and half is the border; attack "
                "with more steps, or more images."
            )
        return f"The detector is not broken by this attack: {seen}; a stronger attack may still do so."

    def _facts(self) -> list[tuple[str, str]]:
        rows = [("clean images rejected", f"{self.false_positives:n}"), ("robust", f"{self.robust:n}")]
        for name, each in (*self.unaware.items(), ("adaptive attack", self.adaptive)):
            detected = "no image misclassified" if each.detected is None else f"detected {each.detected:n}"
            rows.append((name, f"misclassified {each.fooled:n}; {detected}; evading {each.evading:n}"))
        return rows

    def __repr__(self) -> str:
        return f"DetectionResult({'; '.join(f'{name}: {value}' for name, value in self._facts())}. {self.summary})"

    def _repr_html_(self) -> str:
        return html_table(self.summary, self._facts())


def evaluate_detector(
    detector: CalibratedDetector,
    model: nn.Module,
    images: ImageSource,
    labels: Array | None = None,
    *,
    eps: float | str,
    norm: Norm = "linf",
    attacks: Attacks | None = None,
    adaptive: AbstractAttack | None = None,
    steps: int = 100,
    restarts: int = 3,
    weights: Sequence[float] = _WEIGHTS,
    seed: int = 0,
    batch_size: int = _BATCH,
    observer: Observer = NULL_OBSERVER,
) -> DetectionResult:
    """Attack images with and without knowledge of a detector, and count what is misclassified and what is rejected.

    Args:
        detector: from `calibrated`, with images other than these.
        model: a `Classifier`, or a module that maps images within [0, 1] to logits; it does not change.
        images, labels: clean images and their true classes, as for `casemate.evaluate`.
        eps, norm: the ball of all attacks that are not given; Linf, L2 or L1.
        attacks: on the model alone, as for `casemate.evaluate`; PGD with all its steps if None.
        adaptive: another attack that is run on model and detector too, with the criterion `Evasion`, on the images
            that are still robust after the gradient attack; it must not depend on classes (`Square`, say).
        steps: gradient steps of each run.
        restarts: runs of the adaptive attack with each loss, from different random starts, on the images left.
        weights: of the score in the losses of the adaptive attack, tried one after the other on the images left.
        seed: of the random starts.
        batch_size: images per pass where all are classified.
        observer: receives the progress of the attacks.

    Raises:
        SettingError: a detector that is not calibrated, no weights, or settings outside their range.
        ShapeError: no images, or images and labels that the model does not take.
        DataError: images or labels of a kind or type that is not understood, or of different lengths.
        ModelError: a model that fails.
    """
    if not isinstance(detector, CalibratedDetector):
        raise SettingError(
            f"{kind_of(detector)} as a detector; expected one with a threshold: "
            "calibrated(detector, model, held_out_images)"
        )
    if not (weights := listed(weights, "weights")):
        raise SettingError("no weights; expected at least one, such as (0.1, 1, 10)")
    for each in weights:
        not_negative().check(each, "weights")
    batch_size = at_least(1).check(batch_size, "batch_size")
    given = as_labelled(images, labels)
    model, truth = as_classifier(model), given.labels
    images = as_images(given.pixels, model)
    ball = Ball(eps=parse_eps(eps), norm=_NORM.check(norm, "norm"))
    budget = {"eps": ball.eps, "norm": ball.norm, "steps": steps, "restarts": restarts}
    runs: list[AbstractAttack] = [PGD(**budget, loss=_Selective())]
    runs += [APGD(**budget, loss=_Weighted(float(each))) for each in weights]
    runs += [] if adaptive is None else [as_attack(adaptive)]
    if attacks is None:
        attacks = {"PGD": PGD(eps=ball.eps, norm=ball.norm, steps=steps, keep="last")}
    unaware = named_attacks(attacks)
    check_images(model, images, truth)
    if not len(images):
        raise ShapeError("no images; expected at least one")
    with user_call(model, ball, seed=seed) as call, frozen(model):
        model.examine(prepare_images(images[:2], model))
        joint = with_detector(model, detector)

        def outcome(of: Images, right: Labels) -> DetectorOutcome:
            """By the model and the detector themselves, apart from what an attack says."""

            @torch.no_grad()
            def judged(part: slice) -> tuple[Tensor, Tensor]:
                pixels = prepare_images(of[part], model)
                flagged = detector.excess(model, pixels) > 0
                return model(pixels).argmax(1).cpu() != right[part].cpu(), flagged.cpu()

            wrong, flagged = zip(*batched(len(of), batch_size, judged, observer), strict=True)
            return DetectorOutcome(wrong=torch.cat(wrong).numpy(), flagged=torch.cat(flagged).numpy())

        def attacked(attack: AbstractAttack, at: Tensor, number: int) -> AttackResult:
            part = Evasion(truth[at])
            own = derive(seed, "detection", number)
            return attack(joint, images[at], part, seed=own, index=at, observer=observer)

        clean = outcome(images, truth)
        found = {
            name: outcome(each(model, images, truth, seed=seed, observer=observer).adversarial, truth)
            for name, each in unaware.items()
        }
        wrong, flagged = np.zeros(len(images), dtype=bool), np.zeros(len(images), dtype=bool)
        lost = np.ones(len(images), dtype=bool)
        for number, attack in enumerate(runs):
            at = np.flatnonzero(~(wrong & ~flagged))
            if not len(at):
                break
            result = attacked(attack, torch.from_numpy(at), number)
            now = outcome(result.adversarial, truth[at])
            lost[at] &= (result.status == Status.ZERO_GRADIENT).cpu().numpy()
            better = now.evaded | ~wrong[at]
            wrong[at[better]], flagged[at[better]] = now.wrong[better], now.flagged[better]
        evaded = wrong & ~flagged
        call.warn_of_failures("the adaptive attack", len(images), no_gradient=int((lost & ~evaded).sum()))
    return DetectionResult(
        eps=ball.eps,
        norm=ball.norm,
        requested_rate=detector.false_positive_rate,
        clean=clean,
        unaware=found,
        adaptive=DetectorOutcome(wrong=wrong, flagged=flagged),
    )
