"""Which images of an evaluation are certified, part by part; what is finished stays in the evaluation's store.

    STORE/evaluations/PLAN/certificates/KEY.json   which images of a part are certified at one eps

KEY is a hash of the images, of eps, norm, method and the model's operations (or of the settings of the smoothing and
the model's logits for the images), and of the code of the certificates; PLAN as in `pieces.py`. When a file is read, it
is looked at again whether the model executes these operations for these images, and classifies them as before. A file
holds a hash of its content, and a damaged one is computed again. On shared storage there are no such files: another
machine certifies again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from casemate.attacks import COMPARED_IMAGES
from casemate.certification import certify
from casemate.certification.certificate import Method, confirm, operations_text
from casemate.data import LabelledImages, ReadableImages
from casemate.engine.code_version import code_version
from casemate.errors import StoreError
from casemate.evaluation.fingerprints import fingerprint_of_images
from casemate.evaluation.pieces import key_of
from casemate.evaluation.shards import shards_of
from casemate.files import read_json, write_json
from casemate.models import Classifier
from casemate.norms import Norm
from casemate.progress import Observer

CERTIFICATES = "certificates"
"""Name of the folder with the finished parts, in that of an evaluation's plan."""
_CODE = "casemate.certification.certificate"
"""The module whose code, with that of all modules that it imports, computes certificates."""


@final
@dataclass(frozen=True, kw_only=True)
class CertifiedImages:
    """What is proven of each image."""

    certified: np.ndarray
    """Booleans `(n, values)`; an image that is certified at one eps is certified at every smaller one."""
    clean: np.ndarray
    """Whether each image is classified correctly, booleans `(n,)`."""
    resumed_seconds: float
    """Seconds that the parts which were in the store took when they were computed."""


@final
class FinishedParts:
    """What is finished, in a folder; None keeps nothing."""

    def __init__(self, folder: Path | None, module: str) -> None:
        self._folder, self._module = folder, module
        self.keeps = folder is not None
        """Whether anything is kept."""
        self.resumed = 0
        """Number of certificates that were read."""
        self.resumed_seconds = 0.0
        """Seconds that these took when they were computed."""

    def get(
        self,
        part: LabelledImages,
        about: Sequence[Any],
        make: Callable[[], Mapping[str, Sequence[int]]],
        is_valid: Callable[[Mapping[str, Sequence[int]]], bool] = lambda found: True,
    ) -> Mapping[str, Sequence[int]]:
        """Whole numbers for each image of a part, by name: from the folder, or else made and kept there.

        A damaged file is replaced.

        Args:
            part: the images.
            about: what the numbers depend on beside images, weights and code.
            make: computes them.
            is_valid: whether numbers that were read can be those of the model; if not, they are made again.
        """
        if self._folder is None:
            return make()
        path = self._folder / f"{key_of([code_version(self._module), fingerprint_of_images(part), *about])}.json"
        if (kept := _read(path)) is not None and is_valid(kept[1]):
            seconds, found = kept
            self.resumed += len(part)
            self.resumed_seconds += seconds
            return found
        start = time.perf_counter()
        made = make()
        content = {"seconds": time.perf_counter() - start, "numbers": made}
        write_json(path, {**content, "key": key_of(content)})
        return made


def certify_parts(
    model: Classifier,
    images: ReadableImages,
    values: Sequence[float],
    *,
    norm: Norm,
    method: Method,
    folder: Path | None,
    observer: Observer,
) -> CertifiedImages:
    """Certify images at each eps, ascending: at a larger one only those that are certified at all smaller ones.

    Args:
        model, norm, method, observer: as for `casemate.certify`.
        images: to certify.
        values: of eps.
        folder: where finished parts are kept; None keeps none.
    """
    finished = FinishedParts(folder, _CODE)
    text = "" if folder is None else operations_text(model, images.read(slice(0, COMPARED_IMAGES)).tensors()[0])
    certified = np.zeros((len(images), len(values)), dtype=bool)
    clean = np.zeros(len(images), dtype=bool)
    for at in shards_of(images) or [slice(0, 0)]:
        part = images.read(at)
        left = np.arange(len(part))
        for column, value in enumerate(values):
            some = part[torch.from_numpy(left)]

            def prove(some: LabelledImages = some, eps: float = value) -> Mapping[str, Sequence[int]]:
                found = certify(model, *some.tensors(), eps=eps, norm=norm, method=method, observer=observer)
                return {"certified": found.certified.int().tolist(), "clean": found.clean.int().tolist()}

            def is_valid(found: Mapping[str, Sequence[int]], some: LabelledImages = some, eps: float = value) -> bool:
                clean = confirm(model, *some.tensors(), eps=eps, norm=norm, observer=observer)
                return clean.int().tolist() == found["clean"]

            found = finished.get(some, [float(value), norm, method, text], prove, is_valid)
            if not column:
                clean[at] = np.array(found["clean"], dtype=bool)
            left = left[np.array(found["certified"], dtype=bool)]
            certified[at.start + left, column] = True
            if not len(left):
                break
    if finished.resumed:
        observer.message(
            f"Resumed: {finished.resumed:,} finished bounds (one per image and eps) were read from the store"
        )
    return CertifiedImages(certified=certified, clean=clean, resumed_seconds=finished.resumed_seconds)


def certificate_seconds(
    model: Classifier, images: ReadableImages, values: Sequence[float], *, norm: Norm, method: Method
) -> float:
    """Estimated seconds that `certify_parts` takes, by certifying a few images at each eps.

    Raises:
        ModelError: a model with layers that there are no bounds for.
    """
    few = images.read(slice(0, COMPARED_IMAGES))
    certify(model, *few[:1].tensors(), eps=values[0], norm=norm, method=method)  # the first call is slower
    start = time.perf_counter()
    for eps in values:
        certify(model, *few.tensors(), eps=eps, norm=norm, method=method)
    return (time.perf_counter() - start) / len(few) * len(images)


def _read(path: Path) -> tuple[float, Mapping[str, Sequence[int]]] | None:
    """Seconds and numbers of a finished part; None if there is none, or a damaged one."""
    try:
        found = read_json(path, StoreError)
        content = {name: found[name] for name in ("seconds", "numbers")}
        return (content["seconds"], content["numbers"]) if found["key"] == key_of(content) else None
    except (StoreError, LookupError, TypeError):
        return None
