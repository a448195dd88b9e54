"""Verification of a record with the model that it is about: every claim is computed again from the images."""

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from casemate.attacks import Misclassification
from casemate.data import ImageSource, LabelledImages, as_labelled
from casemate.errors import RecordError, SettingError, kind_of
from casemate.evaluation.cascade_result import MISCLASSIFIED
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.evaluation.intervals import percent
from casemate.evaluation.record import HashedRecord, Record
from casemate.evaluation.single_image import has_margin, in_grey_levels, predict_singly
from casemate.logits import is_right
from casemate.models import Classifier, as_classifier, same_classes
from casemate.norms import format_eps
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Flags, Images

_BY_CHANCE = 0.05
"""Share of the images on which a randomised model's predictions may differ from the claims without refuting them."""


@final
@dataclass(frozen=True)
class RecordCheck:
    """The result of checking one claim of a record."""

    title: str
    """The claim that was checked, as a sentence."""
    holds: bool | None
    """Whether the claim holds; None if it was not checked or is for information only."""
    sentence: str
    """What was found, such as how many images do not support the claim."""


_HOLDS = {"claims hold": True, "refuted": False, "not checked": None}


@final
@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of `verify_record`: each claim of a record checked, and the accuracies that its images give."""

    claims: list[RecordCheck]
    clean_accuracy: float | None
    """Share of the record's clean images that the model classified correctly, one at a time; None if the record has
    hashes only and the images were not given or are others."""
    robust_accuracy: tuple[float, ...]
    """At each eps of the record: the highest robust accuracy that its adversarial images leave possible; empty if the
    record has hashes only."""
    rounded: float | None
    """Share of the adversarial images that fool after rounding to 8 bits; 1 if the record has no adversarial images,
    None if it has hashes only."""

    def __repr__(self) -> str:
        counts = {word: sum(claim.holds is holds for claim in self.claims) for word, holds in _HOLDS.items()}
        return f"Verification({', '.join(f'{count} {word}' for word, count in counts.items() if count)})"

    @property
    def holds(self) -> bool:
        """Whether no claim of the record was refuted; claims that were not checked do not count."""
        return all(claim.holds is not False for claim in self.claims)


def verify_record(
    record: Record,
    model: nn.Module,
    *,
    images: ImageSource | None = None,
    seed: int = 0,
    observer: Observer = NULL_OBSERVER,
) -> Verification:
    """Check every claim of a record by classifying each image at batch size 1.

    Predictions that rounding on another machine may change count neither for a claim nor against it; for a randomised
    model neither do those on one image in twenty.

    Args:
        record: as read by `read_record`.
        model: the model of the record: a `Classifier`, or a module that maps images within [0, 1] to logits.
        images: the data set, to check that it holds the record's clean images; None: that is not checked.
        seed: of a randomised model's random numbers.
        observer: is informed of every image.

    Raises:
        SettingError: something else than a record.
        RecordError: the model takes images of another shape, or has other classes.
    """
    if not isinstance(record, Record):
        raise SettingError(f"{kind_of(record)} as a record; expected one from make_record, or read_record(path)")
    model = as_classifier(model)
    images = None if images is None else as_labelled(images)
    model.infer(record.clean[:2])
    _check_kind(record, model)
    moved = record.first_success >= 0
    made = record.adversarial[moved]

    def predicted(pixels: Images) -> Tensor:
        return predict_singly(model, pixels, draws=record.draws, seed=seed, observer=observer)

    before = predicted(record.clean)
    after = before.clone()
    after[moved] = predicted(made)
    right, fooled = is_right(before, record.labels), Misclassification(record.labels).is_adversarial(after)
    rounded = Misclassification(record.labels[moved]).is_adversarial(predicted(in_grey_levels(made, model.bounds)))
    inside = _within_bounds(record.clean, model) & _within_bounds(record.adversarial, model)
    near = record.within(record.eps[-1])
    farthest = record.distance.max().item()
    unlike = (right == (record.first_success == MISCLASSIFIED)) & has_margin(before)
    lost = (moved & ~fooled & has_margin(after)).sum().item()
    slack = _BY_CHANCE if record.draws > 1 else 0.0
    doubt = slack + (~(has_margin(before) & has_margin(after))).double().mean().item() + 1e-9
    clean = right.double().mean().item()
    allowed = record.allowed(right, fooled & inside)
    claims = [
        RecordCheck("The file with the images is the record's", record.images_match, "by its SHA-256"),
        _same_model(record, model),
        _same_images(record, images),
        RecordCheck(
            "All pixels lie within the bounds", bool(inside.all()), f"{int((~inside).sum())} images have pixels outside"
        ),
        RecordCheck(
            f"Adversarial images lie within eps {format_eps(record.eps[-1])} in {record.norm}",
            bool(near.all()),
            f"{int((~near).sum())} lie outside; the farthest at {farthest:.7g}, in float64",
        ),
        RecordCheck(
            "Clean images are classified as claimed",
            unlike.sum().item() <= slack * len(record),
            f"{int(unlike.sum())} of {len(record)} are not",
        ),
        RecordCheck(
            "Adversarial images fool at batch size 1",
            lost <= slack * len(made),
            f"{int((moved & fooled).sum())} of {len(made)} do",
        ),
        RecordCheck("They fool after rounding to 8 bits", None, f"{int(rounded.sum())} of {len(made)} do"),
        _as_claimed("Clean accuracy", record.clean_accuracy, clean, doubt),
        *(
            _as_claimed(f"Robust accuracy at eps {format_eps(eps)}", claimed, found, doubt)
            for eps, claimed, found in zip(record.eps, record.robust_accuracy, allowed, strict=True)
        ),
    ]
    return Verification(
        claims=claims,
        clean_accuracy=clean,
        robust_accuracy=allowed,
        rounded=rounded.double().mean().item() if len(made) else 1.0,
    )


def verify_hashes(
    record: HashedRecord,
    model: nn.Module,
    *,
    images: ImageSource | None = None,
    seed: int = 0,
    observer: Observer = NULL_OBSERVER,
) -> Verification:
    """Check a record without images: the hashes of model and images, and with the images the clean accuracy.

    The robust accuracy cannot be checked: that takes the adversarial images, which the record does not hold.

    Args:
        record: as read by `read_hashed_record`.
        model: the model of the record.
        images: the data set that begins with the record's images; None: their hash is not checked.
        seed: of a randomised model's random numbers.
        observer: is informed of every image.
    """
    model = as_classifier(model)
    images = None if images is None else as_labelled(images)
    claims = [_same_model(record, model)]
    title = f"The images are the first {record.images} of {record.data}"
    clean = None
    if images is None:
        claims.append(RecordCheck(title, None, "not checked: the data set was not given"))
    else:
        pixels, labels = images[: record.images].tensors()
        own = fingerprint_of_images(LabelledImages(pixels=pixels, labels=labels))
        same = own == record.images_sha256
        words = own[:16] if same else f"claimed {record.images_sha256[:16]}, found {own[:16]}"
        claims.append(RecordCheck(title, same, f"SHA-256 of images and labels: {words}"))
        if same:
            model.infer(pixels[:2])
            logits = predict_singly(model, pixels, draws=record.draws, seed=seed, observer=observer)
            clean = is_right(logits, labels).double().mean().item()
            doubt = (_BY_CHANCE if record.draws > 1 else 0.0) + (~has_margin(logits)).double().mean().item() + 1e-9
            claims.append(_as_claimed("Clean accuracy", record.clean_accuracy, clean, doubt))
    for eps, claimed in zip(record.eps, record.robust_accuracy, strict=True):
        words = f"claimed {percent(claimed)}; the record holds hashes only, no adversarial images"
        claims.append(RecordCheck(f"Robust accuracy at eps {format_eps(eps)} as claimed", None, words))
    return Verification(claims=claims, clean_accuracy=clean, robust_accuracy=(), rounded=None)


def _check_kind(record: Record, model: Classifier) -> None:
    """Raise `RecordError` unless the model has the record's image shape and classes."""
    shape = tuple(record.clean.shape[1:])
    if shape != model.input_shape:
        raise RecordError(f"the record's images are of shape {shape}, the model takes {model.input_shape}")
    if not same_classes(record.classes, model.classes):
        raise RecordError(
            f"the record is about the classes {', '.join(record.classes[:3])}, ..., the model has "
            f"{', '.join(model.classes[:3])}, ...; choose the model of the record ({record.model})"
        )


def _within_bounds(images: Images, model: Classifier) -> Flags:
    """Whether all pixels of each image lie within the bounds and none is NaN, booleans `(n,)`."""
    low, high = model.bounds
    return ((images >= low) & (images <= high)).flatten(1).all(1)


def _same_model(record: Record | HashedRecord, model: Classifier) -> RecordCheck:
    own = fingerprint(model)
    title = "The model is the record's"
    if not model.network.state_dict():
        return RecordCheck(title, None, "not checked: it has no weights that could be compared")
    words = own[:16] if own == record.fingerprint else f"claimed {record.fingerprint[:16]}, found {own[:16]}"
    return RecordCheck(title, own == record.fingerprint, f"SHA-256 of its weights: {words}")


def _same_images(record: Record, images: LabelledImages | None) -> RecordCheck:
    """The check that the clean images and labels are those of the data set `images` at the record's indices."""
    title = f"The clean images are those of {record.data}"
    if images is None:
        return RecordCheck(title, None, "not checked: the data set was not given")
    if int(record.index.min()) < 0 or int(record.index.max()) >= len(images):
        return RecordCheck(title, False, f"numbered up to {int(record.index.max())}, but there are {len(images)}")
    pixels, labels = images[record.index].tensors()
    if pixels.shape != record.clean.shape:
        return RecordCheck(title, False, f"those are of shape {tuple(pixels.shape[1:])}")
    same = (pixels - record.clean).flatten(1).abs().amax(1) <= 1e-6
    wrong = int((~(same & (labels == record.labels))).sum())
    return RecordCheck(title, wrong == 0, f"{wrong} of {len(record)} are other images or have other labels")


def _as_claimed(what: str, claimed: float, found: float, doubt: float) -> RecordCheck:
    words = f"claimed {percent(claimed)}, the images give {percent(found)}"
    return RecordCheck(f"{what} as claimed", abs(found - claimed) <= doubt, words)
