"""A record of adversarial examples that others can re-check: the claims, and the images that prove them.

A record that was written without images (`HashedRecord`) has only their hashes in the place of that proof.

`record.json` holds the claims, the model and the data that they are about, and the SHA-256 of the file with the images;
`adversarial.safetensors` holds clean and adversarial images, labels, indices in the data set, and which attack fooled
each first. Neither file holds code. Only what the images prove at batch size 1 is claimed, so that `verify_record` has
to find the same.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final, get_args

import safetensors.torch
import torch
from torch import Tensor, nn

from casemate._version import __version__
from casemate.arrays import UnsoundError, parse_safetensors, writing_tensors
from casemate.data import LabelledImages
from casemate.errors import RecordError
from casemate.evaluation.cascade_result import MISCLASSIFIED, ROBUST
from casemate.evaluation.evaluation import Evaluation
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.evaluation.proof import Proof, prove
from casemate.evaluation.shards import shards_of
from casemate.files import as_path, read_json, write_bytes, write_json
from casemate.norms import Ball, Norm, format_eps, norm_of, with_text
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Flags, Images, Labels

FORMAT = "casemate record 1"
FORMAT_HASHED = "casemate record 1, hashes only"
"""The format of a record without images."""
IMAGES = "adversarial.safetensors"
_CLAIMS = (
    "version",
    "model",
    "fingerprint",
    "data",
    "classes",
    "norm",
    "eps",
    "seed",
    "draws",
    "attacks",
    "clean_accuracy",
    "robust_accuracy",
)
_MOST_DRAWS = 10_000
"""Largest `Record.draws` that is read: to check a record with more would take too long."""
_MAX_NUMBER = 1e12
"""A record with an eps or an accuracy of this size or more is refused: a whole number in JSON may overflow a float."""
_TENSORS = ("clean", "adversarial", "labels", "index", "first_success")


@final
@dataclass(frozen=True, kw_only=True)
class Record:
    """Claims about the robustness of a model, and the images that prove them. Tensors are on the CPU."""

    model: str
    """Name of the model, or of its file."""
    fingerprint: str
    """SHA-256 of the model's weights, see the function `fingerprint`."""
    data: str
    """Name of the data set, or of the file with the images."""
    classes: tuple[str, ...]
    norm: Norm
    eps: tuple[float, ...]
    """The radii that the record has claims for, ascending, in `norm`."""
    seed: int
    draws: int
    """Number of passes whose mean logits are the prediction of a randomised model; 1 for other models."""
    attacks: Mapping[str, Any]
    """The settings of each attack by name, in the order in which they ran."""
    clean_accuracy: float
    robust_accuracy: tuple[float, ...]
    """For each of `eps`, the claimed share of images that are classified correctly and whose adversarial image does not
    fool or lies farther away than eps."""
    clean: Images
    adversarial: Images
    """The adversarial image of each clean image; the clean image itself where no attack succeeded."""
    labels: Labels
    index: Labels
    """Index of each image in the data set, int64 `(n,)`."""
    first_success: Labels
    """For each image, the position in `attacks` of the first attack that succeeded; -1 if none did, -2 if misclassified
    without one; int64 `(n,)`."""
    version: str = __version__
    """Version of casemate that made the record."""
    images_match: bool = True
    """Whether the file with the images, when it was read, had the SHA-256 that record.json states."""

    def __repr__(self) -> str:
        radii = ", ".join(
            f"{share:.1%} at eps {format_eps(eps)}" for share, eps in zip(self.robust_accuracy, self.eps, strict=True)
        )
        return f"Record({self.model}, {self.data}, n = {len(self)}; claims a robust accuracy of {radii} ({self.norm}))"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def distance(self) -> Tensor:
        """Distance of each adversarial image from the clean one in `norm`, float64 `(n,)`."""
        return norm_of(self.adversarial.double() - self.clean.double(), self.norm)

    def within(self, radius: float) -> Flags:
        """Whether each adversarial image is at most `radius` from its clean one, up to float32 rounding, `(n,)`."""
        largest = self.clean.abs().max().item() if len(self) else 0.0
        return self.distance <= Ball(eps=radius, norm=self.norm).reach((-largest, largest))

    def allowed(self, right: Flags, fooled: Flags) -> tuple[float, ...]:
        """At each of `eps`, the highest robust accuracy that the adversarial images of the record leave possible.

        That is the share of images that are `right` and not `fooled` by an adversarial image within eps.

        Args:
            right: whether each clean image is classified correctly, booleans `(n,)`.
            fooled: whether each adversarial image is misclassified, booleans `(n,)`.
        """
        return tuple((right & ~(fooled & self.within(each))).double().mean().item() for each in self.eps)


@final
@dataclass(frozen=True, kw_only=True)
class HashedRecord:
    """A record without images: what is claimed, and hashes of the model and the images that it is about."""

    model: str
    """Name of the model, or of its file."""
    fingerprint: str
    """SHA-256 of the model's weights, see the function `fingerprint`."""
    data: str
    """Name of the data set, or of the file with the images."""
    images_sha256: str
    """SHA-256 of the clean images as float32 and their labels, see `fingerprint_of_images`."""
    images: int
    """Number of images."""
    eps: tuple[float, ...]
    draws: int
    """Number of passes whose mean logits are the prediction of a randomised model; 1 for other models."""
    clean_accuracy: float
    robust_accuracy: tuple[float, ...]
    """For each of `eps`, the claimed share of images that are classified correctly and not fooled within eps."""


def make_record(
    found: Evaluation, model: nn.Module, *, name: str, data: str, observer: Observer = NULL_OBSERVER
) -> tuple[Record, Labels]:
    """The record of an evaluation, and the class predicted for each adversarial image at batch size 1, int64 `(n,)`.

    An image that fooled in a batch but not at batch size 1, or by no more than rounding, is not claimed. All images are
    in memory; `write_evaluated` writes the record of an evaluation whose images do not fit.

    Args:
        found: the evaluation.
        model: the model that was evaluated.
        name, data: names of the model and of the images, as the record states them.
        observer: is informed of every image.
    """
    proof = prove(found, model, observer)
    fields = _claims(found, proof, model, name, data)
    for each, tensor in _tensors(found, proof, slice(0, len(proof.right))).items():
        fields[each] = tensor.contiguous()
    return Record(**fields), proof.prediction


def _claims(found: Evaluation, proof: Proof, model: nn.Module, name: str, data: str) -> dict[str, Any]:
    """The claims of the record of an evaluation: all its fields but the tensors."""
    return {
        "version": __version__,
        "model": name,
        "fingerprint": fingerprint(model),
        "data": data,
        "classes": found.clean.classes,
        "norm": found.norm,
        "eps": found.values,
        "seed": found.seed,
        "draws": found.draws,
        "attacks": found.cascade.attacks,
        "clean_accuracy": proof.right.double().mean().item(),
        "robust_accuracy": proof.allowed(found),
    }


def _tensors(found: Evaluation, proof: Proof, at: slice) -> dict[str, Tensor]:
    """The tensors of the record of an evaluation, of the images at some positions."""
    clean, labels = found.images.read(at).tensors()
    first_success = torch.from_numpy(found.cascade.first_success[at])
    proven = proof.proven[at]
    return {
        "clean": clean.cpu(),
        "adversarial": found.cascade.examples.read(at).where(proven.view(-1, 1, 1, 1), clean.cpu()),
        "labels": labels.cpu(),
        "index": torch.arange(at.start, at.stop),
        "first_success": torch.where(proven, first_success, torch.where(proof.right[at], ROBUST, MISCLASSIFIED)),
    }


def write_record(record: Record, folder: Path | str, *, images: bool = True) -> Path:
    """Write record.json and adversarial.safetensors into `folder`, each whole or not at all; return the former.

    With `images` False only record.json is written, with hashes of the images: it holds no picture, and others can
    check it by hash only (`verify_hashes`).
    """
    folder = as_path(folder, "folder")
    file = safetensors.torch.save({name: getattr(record, name) for name in _TENSORS})
    if images:
        write_bytes(folder / IMAGES, file)
    return _write_claims(
        {name: getattr(record, name) for name in _CLAIMS},
        folder,
        count=len(record),
        images_sha256=fingerprint_of_images(LabelledImages(pixels=record.clean, labels=record.labels)),
        sha256=hashlib.sha256(file).hexdigest(),
        images=images,
    )


def write_evaluated(
    found: Evaluation, proof: Proof, folder: Path, *, name: str, data: str, images: bool = True
) -> dict[str, Any]:
    """Write the record of an evaluation as `write_record` writes that of `make_record`, a shard in memory at a time.

    Without `images` the file with them is written too, for its hash, and removed. Returns the record's claims.
    """
    claims = _claims(found, proof, found.model, name, data)
    shards = shards_of(found.images)
    shape = (len(proof.right), *found.images.read(slice(0, 1)).pixels.shape[1:])
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for each in _TENSORS:
        shapes[each] = (torch.float32, shape) if each in ("clean", "adversarial") else (torch.int64, shape[:1])
    with writing_tensors(folder / IMAGES, shapes) as write:
        for at in shards:
            for each, tensor in _tensors(found, proof, at).items():
                write(each, at.start, tensor)
    with (folder / IMAGES).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not images:
        (folder / IMAGES).unlink()
    _write_claims(
        claims,
        folder,
        count=len(proof.right),
        images_sha256=fingerprint_of_images(found.images, as_floats=True),
        sha256=sha256,
        images=images,
    )
    return claims


def _write_claims(
    claims: Mapping[str, Any], folder: Path, *, count: int, images_sha256: str, sha256: str, images: bool
) -> Path:
    """Write record.json, with the number of images, the SHA-256 of the clean ones and of the file with all."""
    content = {
        **claims,
        "format": FORMAT if images else FORMAT_HASHED,
        "eps_text": [format_eps(each) for each in claims["eps"]],
        "images": count,
        "images_sha256": images_sha256,
        "file": IMAGES if images else None,
        "sha256": sha256,
    }
    # a list, since `first_success` is a position in it
    content["attacks"] = [{"attack": name, "settings": settings} for name, settings in claims["attacks"].items()]
    return write_json(folder / "record.json", content)


def read_record(path: Path | str) -> Record:
    """Read record.json (`path`) and the file of images next to it, without checking its claims (see `verify_record`).

    An images file with another SHA-256 than the record states is read too, with `Record.images_match` False.

    Raises:
        RecordError: a file is missing, damaged or of another format, or types, shapes or ranges of values do not fit;
            the record was written without images (see `read_hashed_record`).
    """
    path = as_path(path)
    content = _content(path, FORMAT)
    try:
        file = path.parent / Path(content["file"]).name  # a record cannot point outside its own folder
        raw = file.read_bytes()
        tensors = parse_safetensors(raw)
        parts: dict[str, Any] = {name: content[name] for name in _CLAIMS}
        parts |= {name: tuple(parts[name]) for name in ("classes", "eps", "robust_accuracy")}
        parts["attacks"] = {each["attack"]: each["settings"] for each in content["attacks"]}
        parts |= {name: tensors[name] for name in _TENSORS}
        record = Record(**parts, images_match=hashlib.sha256(raw).hexdigest() == content["sha256"])
        _check(path, record)
        record = replace(record, eps=_with_texts(record.eps, content.get("eps_text")))
    except (UnsoundError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RecordError(f"{path} and the images beside it are not a whole record: {why}") from error
    return record


def is_hashed(path: Path) -> bool:
    """Whether the record in record.json (`path`) was written without images. Raises `RecordError` if unreadable."""
    content = read_json(path, RecordError)
    return isinstance(content, dict) and content.get("format") == FORMAT_HASHED


def read_hashed_record(path: Path | str) -> HashedRecord:
    """Read a record.json that was written without images; `verify_hashes` checks it.

    Raises:
        RecordError: the file is missing or damaged, or is a record with images (see `read_record`).
    """
    path = as_path(path)
    content = _content(path, FORMAT_HASHED)
    names = ("model", "fingerprint", "data", "images_sha256", "images", "draws", "clean_accuracy")
    try:
        parts: dict[str, Any] = {name: content[name] for name in names}
        parts |= {name: tuple(content[name]) for name in ("eps", "robust_accuracy")}
        record = HashedRecord(**parts)
        texts = (record.model, record.fingerprint, record.data, record.images_sha256)
        shares = (record.clean_accuracy, *record.robust_accuracy)
        if not (
            all(isinstance(each, str) for each in texts)
            and all(type(each) in (int, float) and 0 <= each <= 1 for each in shares)
            and all(type(each) in (int, float) and 0 < each < _MAX_NUMBER for each in record.eps)
            and type(record.images) is type(record.draws) is int
            and record.images > 0
            and 1 <= record.draws <= _MOST_DRAWS
            and len(record.eps) == len(record.robust_accuracy) > 0
        ):
            raise ValueError("types or ranges of its values do not fit")
    except (LookupError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is not a whole record: {type(error).__name__}: {error}") from error
    return replace(record, eps=_with_texts(record.eps, content.get("eps_text")))


def _content(path: Path, wanted: str) -> dict[str, Any]:
    """The JSON of a record of the format `wanted`. Raises `RecordError` for anything else."""
    content = read_json(path, RecordError)
    said = content.get("format") if isinstance(content, dict) else None
    if said == FORMAT_HASHED and wanted == FORMAT:
        raise RecordError(
            f"{path} holds hashes in the place of images (it was written without them), so no claim of it can be "
            "computed again; casemate verify, or read_hashed_record and verify_hashes, check the hashes"
        )
    if said != wanted:
        raise RecordError(f"{path}: format {said!r}; expected {wanted!r}, as written by casemate evaluate")
    return content


def _with_texts(eps: tuple[float, ...], texts: Any) -> tuple[float, ...]:
    """The radii of a record with the texts that it gives for them, if it gives one for each."""
    if not isinstance(texts, list) or len(texts) != len(eps):
        return eps
    return tuple(with_text(each, text) for each, text in zip(eps, texts, strict=True))


def _within(numbers: Tensor, low: int, high: int) -> bool:
    """Whether all are at least `low` and less than `high`; PyTorch cannot compare integers of every type."""
    return numbers.dtype == torch.int64 and bool(((numbers >= low) & (numbers < high)).all())


def _check(path: Path, record: Record) -> None:
    """Raise `RecordError` unless all fields of a record read from `path` have the right types, sizes and ranges."""
    count = len(record.labels)
    texts = (record.model, record.fingerprint, record.data, record.version, *record.classes, *record.attacks)
    numbers = (*record.eps, record.clean_accuracy, *record.robust_accuracy)
    sound = {
        "texts": all(isinstance(each, str) for each in texts),
        "types": all(type(each) in (int, float) and abs(each) < _MAX_NUMBER for each in numbers)
        and all(type(each) is int for each in (record.seed, record.draws)),
        "images": record.clean.shape == record.adversarial.shape
        and record.clean.ndim == 4
        and record.clean.numel() > 0,
        "type of images": record.clean.dtype == record.adversarial.dtype == torch.float32,
        "numbers": all(
            each.dtype == torch.int64 and each.shape == (count,)
            for each in (record.labels, record.index, record.first_success)
        ),
        "count": len(record.clean) == count > 0 and len(record.index.unique()) == count,
        "labels": _within(record.labels, 0, len(record.classes)),
        "first_success": _within(record.first_success, MISCLASSIFIED, len(record.attacks)),
        "norm": record.norm in get_args(Norm),
        "eps": len(record.eps) > 0 and record.eps == tuple(sorted(record.eps)) and record.eps[0] > 0,
        "draws": 1 <= record.draws <= _MOST_DRAWS,
        "accuracies": len(record.robust_accuracy) == len(record.eps)
        and all(0 <= each <= 1 for each in (record.clean_accuracy, *record.robust_accuracy)),
    }
    wrong = [name for name, holds in sound.items() if not holds]
    if wrong:
        raise RecordError(f"{path} and the images beside it contradict each other: {', '.join(wrong)}")
