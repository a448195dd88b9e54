"""Certified accuracy of the smoothed version of a model, at each radius: what randomised smoothing proves of it.

It is about another classifier than the model: the class that the model returns most often under normal noise. What
attacks find on the model itself says nothing about that one, so no attack is run here. The classifier to attack is
`casemate.certification.smoothed`.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import nn

from casemate.attacks import COMPARED_IMAGES, frozen
from casemate.certification import SmoothedCertificate, Smoothing, certify_smoothed
from casemate.certification.smoothing import CHECKED_IMAGES, settings_of
from casemate.data import Array, ImageSource, LabelledImages, ReadableImages, as_readable
from casemate.evaluation.certificates import CERTIFICATES, FinishedParts
from casemate.evaluation.fingerprints import fingerprint
from casemate.evaluation.intervals import Estimate, percent, share
from casemate.evaluation.pieces import Measurements
from casemate.evaluation.preparation import keeping_pieces
from casemate.evaluation.probe import within_bounds
from casemate.files import as_path
from casemate.float32_precision import full_precision
from casemate.models import Classifier, as_classifier
from casemate.norms import Norm, format_eps, parse_radii
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Observer
from casemate.timing import duration
from casemate.units import eps_with_share

_CODE = "casemate.certification.smoothing"
"""The module whose code, with that of all modules that it imports, counts votes."""
_TOGETHER = 20
"""Images whose votes are kept together."""
_TIMED = 100
"""Noisy copies, at most, of an image by which the time is estimated."""
NO_ATTACK: Final = (
    "No attack was run: what attacks find on the model itself is not comparable. In Python "
    "casemate.certification.smoothed makes the classifier to attack."
)
"""Why there is no attacked accuracy beside the certified one."""


@final
@dataclass(frozen=True, kw_only=True)
class SmoothedEvaluation:
    """What `evaluate_smoothed` returns: the certificates of the smoothed model, and their share at each radius."""

    values: tuple[float, ...]
    """The radii in L2, ascending."""
    certificate: SmoothedCertificate
    """The certificates, one per image."""
    images: ReadableImages
    model: Classifier
    """The base classifier."""
    fingerprint: str
    """SHA-256 of its weights, see `casemate.evaluation.fingerprints`."""
    seconds: float
    """How long it took."""

    norm: Norm = "l2"

    @property
    def smoothing(self) -> Smoothing:
        """The settings of the smoothing."""
        return self.certificate.smoothing

    @property
    def clean_accuracy(self) -> Estimate:
        """Share of the images that the smoothed model classifies correctly as they are; abstentions count as wrong."""
        return share(self.certificate.right.cpu().numpy())

    @property
    def certified_accuracy(self) -> list[Estimate]:
        """Share of the images that the smoothed model is certified to classify correctly within each radius."""
        return [share(self.certificate.right_within(each).cpu().numpy()) for each in self.values]

    @property
    def abstained(self) -> int:
        """Number of images of which no class could be certified."""
        return int(self.certificate.abstained.sum())

    @property
    def radius(self) -> np.ndarray:
        """The certified radius of each image, float64 `(n,)`; 0 where its class is not certified or is a wrong one."""
        found = self.certificate
        return found.radius.where(found.right, 0.0).cpu().numpy()

    @property
    def conclusion(self) -> str:
        """One sentence: what is certified at the largest eps, of which model, and how certain it is."""
        eps, number = self.values[-1], self.certified_accuracy[-1]
        return (
            f"The smoothed model (sigma {self.smoothing.sigma:g}), not the model itself, is certified to classify "
            f"{percent(number.value)} of these images correctly everywhere within eps "
            f"{eps_with_share(eps, self.model.bounds, self.norm)} in l2; each certificate holds with probability "
            f"{1 - self.smoothing.alpha:.10g} (alpha {self.smoothing.alpha:g})."
        )

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of the numbers has to know."""
        total, most = len(self.images), self.smoothing.largest_radius
        together = max(0.0, 1 - self.smoothing.alpha * total)
        found = [
            f"All {total:,} certificates hold together with probability {together:.3g} or more.",
            f"The smoothed model abstains from {self.abstained:,} of the {total:,} images, which count as wrong.",
            NO_ATTACK,
        ]
        beyond = [format_eps(each) for each in self.values if each > most]
        if beyond:
            found.append(
                f"eps {', '.join(beyond)}: with n = {self.smoothing.n:,} draws no radius beyond {most:.3g} can be "
                "certified, whatever the model; more draws or a larger sigma allow more."
            )
        if broken := int(self.certificate.not_finite.sum()):
            found.append(f"{broken:,} noisy copies had logits that are not finite; they are votes for no class.")
        return found

    def __repr__(self) -> str:
        radii = ", ".join(map(format_eps, self.values))
        return (
            f"SmoothedEvaluation(eps {radii} ({self.norm}): smoothed model certified {self.certified_accuracy[-1]:n}, "
            f"alpha {self.smoothing.alpha:g}, sigma {self.smoothing.sigma:g})"
        )

    def __str__(self) -> str:
        lines = [self.conclusion, f"  clean accuracy of the smoothed model  {self.clean_accuracy:n}"]
        for eps, number in zip(self.values, self.certified_accuracy, strict=True):
            lines.append(f"  eps {format_eps(eps)}: certified {number}")
        return "\n".join([*lines, *(f"  {each}" for each in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(self.conclusion, self.rows(), self.head)

    @property
    def head(self) -> tuple[str, str]:
        """The headings of `rows`."""
        return f"eps ({self.norm})", f"certified accuracy of the smoothed model, alpha {self.smoothing.alpha:g}"

    def rows(self) -> list[tuple[str, str]]:
        """The result as texts: a row for radius 0, and one for each eps."""
        numbers = zip((0.0, *self.values), (self.clean_accuracy, *self.certified_accuracy), strict=True)
        return [(format_eps(eps), f"{number}") for eps, number in numbers]

    def summary(self) -> str:
        """The result as text: what `print` shows, the settings of the noise, the time."""
        chosen = self.smoothing
        return (
            f"{self}\n  n0 = {chosen.n0:,}, n = {chosen.n:,} draws for each image, seed {self.certificate.seed}; it "
            f"took {duration(self.seconds)}."
        )

    def as_json(self) -> dict[str, Any]:
        """All results except images and per-image values, for a result file."""
        return {
            **smoothing_settings(self.smoothing),
            "norm": self.norm,
            "eps": list(self.values),
            "eps_text": [format_eps(each) for each in self.values],
            "seed": self.certificate.seed,
            "images": len(self.images),
            "clean_accuracy": self.clean_accuracy.as_json(),
            "abstained": self.abstained,
            "not_finite": int(self.certificate.not_finite.sum()),
            "largest_radius": self.smoothing.largest_radius,
            "radii": [
                {"eps": float(eps), "eps_text": format_eps(eps), "certified_accuracy": number.as_json()}
                for eps, number in zip(self.values, self.certified_accuracy, strict=True)
            ],
            "conclusion": self.conclusion,
            "notes": self.notes,
            "seconds": self.seconds,
        }

    def report(
        self,
        folder: Path | str,
        *,
        name: str | None = None,
        data: str = "images",
        overwrite: bool = False,
        observer: Observer = NULL_OBSERVER,
    ) -> Path:
        """Write report.html, certification.json, the figure and the table of images; return the report's path.

        Arguments and errors as for `CertifiedEvaluation.report`.
        """
        # named and not imported, since reports are built on evaluations: an import would make a circle
        write = import_module("casemate.report.certification").write_certification
        shown = type(self.model.network).__name__ if name is None else name
        return write(as_path(folder, "folder"), self, name=shown, data=data, overwrite=overwrite, observer=observer)


def smoothing_settings(smoothing: Smoothing) -> dict[str, Any]:
    """The settings that change the results, by name."""
    return {name: value for name, value in asdict(smoothing).items() if name != "batch_size"}


def smoothed_queries(count: int, smoothing: Smoothing) -> int:
    """The most images that `evaluate_smoothed` passes through the model for `count` images, with a store."""
    examined = count + 2 * COMPARED_IMAGES  # a few of each part, and what identifies the model
    checked = math.ceil(count / _TOGETHER) * CHECKED_IMAGES
    return count * (smoothing.n0 + smoothing.n) + examined + checked


def smoothed_seconds(model: Classifier, images: ReadableImages, smoothing: Smoothing) -> float:
    """Estimated seconds that `evaluate_smoothed` takes, by timing a few votes on the first images.

    Raises:
        ModelError, MachineError: as `certify_smoothed`.
    """
    few = images.read(slice(0, _TOGETHER))
    timed = replace(smoothing, n0=1, n=min(smoothing.n, _TIMED))
    certify_smoothed(model, *few[:1].tensors(), replace(timed, n=1))  # the first call is slower
    start = time.perf_counter()
    certify_smoothed(model, *few.tensors(), timed)
    each = (time.perf_counter() - start) / (len(few) * (timed.n0 + timed.n))
    return each * len(images) * (smoothing.n0 + smoothing.n)


def evaluate_smoothed(
    model: nn.Module,
    images: ImageSource | ReadableImages,
    labels: Array | None = None,
    *,
    eps: float | str | Sequence[float | str],
    smoothing: Smoothing | None = None,
    seed: int = 0,
    store: Path | str | None = None,
    fresh: bool = False,
    observer: Observer = NULL_OBSERVER,
) -> SmoothedEvaluation:
    """Certify the smoothed version of a model at images (`casemate.certification.certify_smoothed`), for several radii.

    Args:
        model: the base classifier; train it on noisy images, or hardly any image is certified.
        images, labels: as for `casemate.evaluate`; they are read into memory.
        eps: one radius in L2 or several, in pixel units, above zero. They choose what is shown, not what is computed.
        smoothing: the settings; the defaults if None.
        seed: of the noise.
        store: a folder that keeps the votes of images that are finished, so that the same call goes on from there; None
            keeps nothing.
        fresh: with `store`, use nothing of earlier calls.
        observer: receives the progress.

    Raises:
        SettingError: an eps that is not above zero.
        StoreError: the store cannot be written, or is in use and `fresh`.
        ShapeError, DataError, ModelError, MachineError: as `certify_smoothed`.
    """
    start = time.perf_counter()
    values = tuple(sorted(set(parse_radii(eps))))
    model = as_classifier(model)
    given = within_bounds(as_readable(images, labels), model)
    smoothing = settings_of(smoothing)
    few = given.read(slice(0, COMPARED_IMAGES))
    if store is not None:
        model.infer(few.tensors(model.device)[0])
    with keeping_pieces(model, few, store, seed, "l2", smoothing.n, "float32", None, observer, fresh=fresh) as kept:
        if kept is not None:  # the plan says what the votes belong to
            kept.begin(Measurements(pass_size=smoothing.batch_size, precision="float32"))
        finished = FinishedParts(None if kept is None else kept.folder / CERTIFICATES, _CODE)
        found = _voted(model, given, smoothing, seed, finished, observer)
    return SmoothedEvaluation(
        values=values,
        certificate=found,
        images=given,
        model=model,
        fingerprint=fingerprint(model),
        seconds=time.perf_counter() - start + finished.resumed_seconds,
    )


@torch.no_grad()
def _logits_hash(model: Classifier, images: LabelledImages) -> str:
    """A hash of the logits of images without noise, which tells models apart that differ in their code only."""
    with frozen(model), full_precision():
        logits = model(images.tensors(model.device)[0])
    return hashlib.sha256(logits.cpu().contiguous().numpy().tobytes()).hexdigest()


def _voted(
    model: Classifier,
    images: ReadableImages,
    smoothing: Smoothing,
    seed: int,
    finished: FinishedParts,
    observer: Observer,
) -> SmoothedCertificate:
    """The certificates of all images; the votes of those that are finished are read."""
    numbers: list[Mapping[str, Sequence[int]]] = []
    with observer.work("Randomised smoothing", len(images)) as advance:
        for start in range(0, max(1, len(images)), _TOGETHER):  # no images are refused below
            some = images.read(slice(start, start + _TOGETHER))
            before = finished.resumed

            def vote(some: LabelledImages = some, start: int = start) -> Mapping[str, Sequence[int]]:
                index = torch.arange(start, start + len(some))
                made = certify_smoothed(model, *some.tensors(), smoothing, seed=seed, index=index)
                return {name: getattr(made, name).tolist() for name in ("selected", "votes", "not_finite")}

            about = [start, smoothing_settings(smoothing), _logits_hash(model, some) if finished.keeps else ""]
            numbers.append(finished.get(some, about, vote))
            advance(len(some), "resumed" if finished.resumed > before else "")
    columns = {name: torch.tensor([each for part in numbers for each in part[name]]) for name in numbers[0]}
    return SmoothedCertificate.from_votes(labels=images.labels, **columns, smoothing=smoothing, seed=seed)
