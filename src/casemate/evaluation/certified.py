"""Certified and attacked accuracy of the same images, at each eps: what is proven, what withstands, what falls.

An image that a certificate of `casemate.certification` proves robust need not be attacked, which saves most of the time
on a network that is trained for certificates. A random sample of these images is attacked all the same: a single
success shows that certificate or attack is wrong, and voids the certificate. A certificate from elsewhere saves
nothing: all images are attacked.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import nn

from casemate.certification import certify
from casemate.certification.certificate import Method
from casemate.data import ImageSource, as_labelled
from casemate.errors import SettingError, ShapeError
from casemate.evaluation.budgets import Budget, attacks_for
from casemate.evaluation.cascade import run_cascade
from casemate.evaluation.clean import evaluate_clean
from casemate.evaluation.intervals import Estimate, share
from casemate.models import as_classifier
from casemate.norms import Norm, format_eps, parse_eps, parse_norm
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import derive

_SAMPLE = 200


@final
@dataclass(frozen=True, kw_only=True)
class CertifiedEvaluation:
    """What `evaluate_certified` returns: per image and eps what is proven and what the attacks leave."""

    values: tuple[float, ...]
    """The values of eps, ascending."""
    norm: Norm
    method: str
    """interval, crown-ibp or crown; or the name of a certificate from elsewhere."""
    budget: str
    seed: int
    clean: np.ndarray
    """Whether each image is classified correctly without an attack, booleans `(n,)`."""
    certified: np.ndarray
    """Whether each image is proven robust at each eps, booleans `(n, values)`."""
    attacked: np.ndarray
    """Which images were attacked at each eps, booleans `(n, values)`: those not certified that no attack had fooled at
    a smaller eps, and the sample of the certified ones."""
    robust: np.ndarray
    """Whether each image is classified correctly and no attack fooled it at this or a smaller eps, `(n, values)`.
    Images that are certified and were not attacked count."""
    seconds: float
    """How long bounds and attacks took."""

    @property
    def contradicted(self) -> np.ndarray:
        """Certified images that an attack fooled, booleans `(n, values)`: the certificate, or the attack, has a bug."""
        return self.certified & ~self.robust

    @property
    def is_void(self) -> bool:
        """Whether an attack fooled a certified image, so that no certificate of this run counts."""
        return bool(self.contradicted.any())

    @property
    def clean_accuracy(self) -> Estimate:
        """Share of the images classified correctly without an attack."""
        return share(self.clean)

    @property
    def certified_accuracy(self) -> list[Estimate]:
        """Share of the images proven robust, at each eps; a lower bound of the true robust accuracy.

        None are where the certificate is void.
        """
        return [share(column & (not self.is_void)) for column in self.certified.T]

    @property
    def robust_accuracy(self) -> list[Estimate]:
        """Share of the images that no attack fooled, at each eps; an upper bound of the true robust accuracy."""
        return [share(column) for column in self.robust.T]

    @property
    def sampled(self) -> list[int]:
        """Number of certified images that were attacked all the same, at each eps."""
        return [int(each.sum()) for each in (self.certified & self.attacked).T]

    def __repr__(self) -> str:
        return f"CertifiedEvaluation({self.summary})"

    @property
    def summary(self) -> str:
        """A sentence for each eps, and whether the sample of certified images withstood."""
        lines = [
            f"eps {format_eps(eps)} ({self.norm}): {certified:.1%n} certified by {self.method}, "
            f"{robust:.1%n} left by the attacks"
            for eps, certified, robust in zip(self.values, self.certified_accuracy, self.robust_accuracy, strict=True)
        ]
        clean = f"clean accuracy {self.clean_accuracy:.1%n}"
        if self.is_void:
            count = int(self.contradicted.any(1).sum())
            ends = f"an attack fooled {count} certified images: the certificate is void"
        else:
            ends = f"{max(self.sampled, default=0)} certified images were attacked too, and withstood"
        return "; ".join([clean, *lines, ends])


def evaluate_certified(
    model: nn.Module,
    images: ImageSource,
    eps: float | str | Sequence[float | str],
    *,
    norm: Norm = "linf",
    method: Method = "crown",
    budget: Budget = "standard",
    sample: int = _SAMPLE,
    claimed: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> CertifiedEvaluation:
    """Certify images, and attack those that are not certified and a sample of those that are.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits, made of layers that there are
            bounds for.
        images: with their labels.
        eps: one radius or several, in pixel units.
        norm: linf, l2 or l1.
        method: of `casemate.certification.certify`.
        budget: the attacks, see `casemate.evaluate`.
        sample: number of certified images at each eps that are attacked too, drawn with `seed`.
        claimed: a certificate from elsewhere, booleans `(n, values)` that say which images are proven robust; then
            `method` is not used, and all images are attacked.
        seed: of all random draws.
        batch_size: images that pass through the network at a time when it is attacked; measured if None.
        observer: receives the progress.

    Raises:
        SettingError: an eps, norm, budget or sample outside its range.
        ShapeError: images, labels or a claim of other shapes than the model or the images have.
        ModelError: a model with layers that there are no bounds for, or that fails.
    """
    start = time.perf_counter()
    radii = [eps] if isinstance(eps, int | float | str) else list(eps)
    read = [parse_eps(each) for each in radii]
    values = tuple(sorted(set(read)))
    if not values or sample < 0:
        raise SettingError(
            f"{len(values)} values of eps and a sample of {sample}; expected at least one, and 0 or more"
        )
    norm, given, model = parse_norm(norm), as_labelled(images), as_classifier(model)
    certified = np.zeros((len(given), len(values)), dtype=bool)
    if claimed is not None and read != list(values):
        raise SettingError(
            f"eps = {radii} with a claim; expected ascending values, in the order of the claim's columns"
        )
    if claimed is not None and np.shape(claimed) != certified.shape:
        raise ShapeError(f"a claim of shape {np.shape(claimed)}; expected {certified.shape}: images by values of eps")
    pixels, labels = given.tensors()
    clean = None
    for column, value in enumerate(values):
        if claimed is None:
            found = certify(model, pixels, labels, value, norm=norm, method=method, observer=observer)
            certified[:, column], clean = found.certified.cpu().numpy(), found.clean.cpu().numpy()
        else:
            certified[:, column] = claimed[:, column]
    right = evaluate_clean(model, given).correct if clean is None else clean
    certified &= right[:, None]  # of a misclassified image nothing is proven that counts
    attacked, robust = np.zeros_like(certified), np.zeros_like(certified)
    left = right.copy()
    for column, value in enumerate(values):
        proven = certified[:, column] & left
        checked = proven if claimed is not None else _sampled(proven, sample, derive(seed, "certified", column))
        attacked[:, column] = (left & ~proven) | checked
        at = torch.from_numpy(np.flatnonzero(attacked[:, column]))
        if len(at):
            attacks = attacks_for(budget, norm, value, randomised=False)
            done = run_cascade(
                model,
                attacks,
                given[at],
                (value,),
                norm=norm,
                correct=np.ones(len(at), dtype=bool),
                seed=seed,
                batch_size=batch_size,
                observer=observer,
            )
            left[at.numpy()] = done.robust[:, 0]
        robust[:, column] = left
    return CertifiedEvaluation(
        values=values,
        norm=norm,
        method=method if claimed is None else "the caller",
        budget=budget,
        seed=seed,
        clean=right,
        certified=certified,
        attacked=attacked,
        robust=robust,
        seconds=time.perf_counter() - start,
    )


def _sampled(among: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A random sample of the places where `among` holds, as booleans like it."""
    places = np.flatnonzero(among)
    chosen = np.zeros_like(among)
    chosen[np.random.default_rng(seed).permutation(places)[:count]] = True
    return chosen
