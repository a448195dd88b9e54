"""Certified and attacked accuracy of the same images, at each eps: what is proven, what withstands, what falls.

An image that a certificate of `casemate.certification` proves robust need not be attacked, which saves most of the time
on a network that is trained for certificates. A random sample of these images is attacked all the same, each at the
largest eps at which it is certified: a single success shows that certificate or attack is wrong, and voids the
certificate. A certificate from elsewhere saves nothing: all images are attacked.

At a larger eps bounds are computed only for images that are certified at all smaller ones.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import nn

from casemate.attacks import COMPARED_IMAGES
from casemate.certification.certificate import Method
from casemate.data import Array, ImageSource, ReadableImages, as_readable
from casemate.errors import SettingError, ShapeError
from casemate.evaluation.budgets import Budget, attacks_for
from casemate.evaluation.cascade import most_work, run_cascade
from casemate.evaluation.cascade_result import MISCLASSIFIED, ROBUST
from casemate.evaluation.certificates import CERTIFICATES, certify_parts
from casemate.evaluation.clean import evaluate_clean
from casemate.evaluation.fingerprints import fingerprint
from casemate.evaluation.intervals import Estimate, percent, share
from casemate.evaluation.preparation import keeping_pieces, prepared_model
from casemate.evaluation.probe import within_bounds
from casemate.files import as_path
from casemate.models import Classifier, as_classifier
from casemate.norms import Norm, format_eps, parse_norm, parse_radii
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import derive
from casemate.settings import at_least
from casemate.timing import duration
from casemate.units import eps_with_share

SAMPLE = 200
"""Number of certified images that are attacked all the same, if it is not given."""
_CALLER = "the caller"
"""The method of a certificate that was passed as `claimed`."""


@final
@dataclass(frozen=True, kw_only=True)
class CertifiedEvaluation:
    """What `evaluate_certified` returns: per image and eps what is proven and what the attacks leave."""

    values: tuple[float, ...]
    """The values of eps, ascending."""
    norm: Norm
    method: str
    """interval, crown-ibp or crown; "the caller" if the certificate was passed as `claimed`."""
    budget: str | None
    """Which attacks were run; None: none."""
    sample: int
    """Number of certified images, at most, that were to be attacked all the same."""
    seed: int
    images: ReadableImages
    model: Classifier
    fingerprint: str
    """SHA-256 of the model's weights, see `casemate.evaluation.fingerprints`."""
    clean: np.ndarray
    """Whether each image is classified correctly without an attack, booleans `(n,)`."""
    certified: np.ndarray
    """Whether each image is proven robust at each eps, booleans `(n, values)`."""
    attacked: np.ndarray
    """Which images were attacked at each eps, booleans `(n, values)`: those not certified that no attack had fooled at
    a smaller eps, and those of the sample of certified ones."""
    robust: np.ndarray
    """Whether each image is classified correctly and no attack fooled it at this or a smaller eps, `(n, values)`.
    Images that are certified and were not attacked count."""
    first_success: np.ndarray
    """Per image the place in `attacks` of the first attack that fooled it, int64 `(n,)`; -1 if none did, -2 if it is
    misclassified without an attack."""
    attacks: dict[str, dict[str, Any]]
    """The attacks with their settings, by name, in the order in which they are run."""
    certificate_seconds: float
    """How long the bounds took; 0 for a certificate of the caller's, of which none are computed."""
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
    def has_attacks(self) -> bool:
        """Whether images were to be attacked; if not, there is no upper bound of the robust accuracy."""
        return self.budget is not None

    @property
    def clean_accuracy(self) -> Estimate:
        """Share of the images classified correctly without an attack."""
        return share(self.clean)

    @property
    def certified_accuracy(self) -> list[Estimate]:
        """Share of the images proven robust, at each eps; a lower bound of the true robust accuracy.

        It is 0 at every eps if the certificate is void.
        """
        return [share(column & (not self.is_void)) for column in self.certified.T]

    @property
    def robust_accuracy(self) -> list[Estimate]:
        """Share of the images that no attack fooled, at each eps; an upper bound of the true robust accuracy.

        Without attacks it is the clean accuracy.
        """
        return [share(column) for column in self.robust.T]

    @property
    def undecided(self) -> list[int]:
        """Number of images at each eps that are neither proven robust nor fooled."""
        return (self.robust & ~self.certified).sum(0).tolist()

    @property
    def sampled(self) -> list[int]:
        """Number of certified images at each eps that were attacked there all the same."""
        return (self.certified & self.attacked).sum(0).tolist()

    @property
    def spared(self) -> list[int]:
        """Number of images at each eps that were not attacked there, since a certificate proves them robust.

        Of a certificate of the caller's there are none: all images are attacked until an attack fools them.
        """
        return (self.certified & ~self.attacked & self.robust).sum(0).tolist()

    @property
    def fooled_certified(self) -> dict[int, str]:
        """By the place of each certified image that was fooled: the name of the attack that fooled it."""
        names = list(self.attacks)
        return {int(place): names[self.first_success[place]] for place in np.flatnonzero(self.contradicted.any(1))}

    @property
    def conclusion(self) -> str:
        """One sentence: between which shares the true robust accuracy at the largest eps lies, or why that is void."""
        if self.is_void:
            place, attack = next(iter(self.fooled_certified.items()))
            count = len(self.fooled_certified)
            words = "a certified image" if count == 1 else f"{count:,} certified images"
            return (
                f"The certificate is void: attacks fooled {words} ({attack} that of number {place}), so that the "
                "certificate or an attack is wrong. None of the certificates counts."
            )
        low, high = self.certified_accuracy[-1], self.robust_accuracy[-1]
        setting = f"eps {eps_with_share(self.values[-1], self.model.bounds, self.norm)} in {self.norm}"
        if not self.has_attacks:
            return (
                f"At {setting}, {self.method} proves at least {percent(low.value)} of these images robust. Nothing was "
                "attacked, so how many more are robust is not known."
            )
        if low.value == high.value:
            return (
                f"At {setting}, {percent(low.value)} of these images are robust: {self.method} proves these, and no "
                "other withstood the attacks."
            )
        return (
            f"At {setting}, between {percent(low.value)} and {percent(high.value)} of these images are robust: the "
            f"first is proven by {self.method}, the second withstood every attack."
        )

    @property
    def notes(self) -> list[str]:
        """Sentences for a reader of the numbers: how many certified images were attacked all the same."""
        return [self._sample]

    @property
    def _sample(self) -> str:
        proven = self.certified.any(1)
        count, tried = int(proven.sum()), int((self.certified & self.attacked).any(1).sum())
        if not count:
            return "No image is certified."
        if not self.has_attacks:
            return f"{count:,} images are certified, and none of them was attacked."
        fooled = len(self.fooled_certified)
        ended = "all withstood" if not fooled else f"{fooled:,} {'was' if fooled == 1 else 'were'} fooled"
        rest = count - tried
        if not rest:
            return f"All {count:,} certified images were attacked too: {ended}."
        if not tried:
            return f"None of the {count:,} certified images was attacked where it is certified."
        return (
            f"{tried:,} of the {count:,} certified images, a random sample (seed {self.seed}), were attacked at the "
            f"largest eps at which they are certified: {ended}. The other {rest:,} were not attacked there, since they "
            "are proven robust."
        )

    @property
    def time_sentence(self) -> str:
        """One sentence: how long bounds and attacks took."""
        if self.method == _CALLER:
            return f"Attacks took {duration(self.seconds)}."
        attacks = f", attacks {duration(self.seconds - self.certificate_seconds)}" if self.has_attacks else ""
        return f"Bounds took {duration(self.certificate_seconds)}{attacks}."

    def __repr__(self) -> str:
        low, high = self.certified_accuracy[-1], self.robust_accuracy[-1]
        attacked = f", attacked {high:n}" if self.has_attacks else ""
        void = "void; " if self.is_void else ""
        radii = ", ".join(map(format_eps, self.values))
        return f"CertifiedEvaluation(eps {radii} ({self.norm}): {void}certified {low} by {self.method}{attacked})"

    def __str__(self) -> str:
        lines = [self.conclusion, f"  clean accuracy  {self.clean_accuracy:n}"]
        for eps, low, high in zip(self.values, self.certified_accuracy, self.robust_accuracy, strict=True):
            attacked = f"  attacked {high}" if self.has_attacks else ""
            lines.append(f"  eps {format_eps(eps)}: certified {'void' if self.is_void else low}{attacked}")
        return "\n".join([*lines, *(f"  {each}" for each in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(self.conclusion, self.rows(), self.head)

    @property
    def head(self) -> tuple[str, ...]:
        """The headings of `rows`."""
        attacks = ("attacked accuracy", "undecided", "not attacked") if self.has_attacks else ()
        return f"eps ({self.norm})", "certified accuracy", *attacks

    def rows(self) -> list[tuple[str, ...]]:
        """The result as texts: a row without an attack, and one for each eps."""
        columns = zip(
            self.values,
            self.certified_accuracy,
            self.robust_accuracy,
            self.undecided,
            self.spared,
            strict=True,
        )
        clean = f"{self.clean_accuracy}"
        without = (clean, "0", "") if self.has_attacks else ()
        rows: list[tuple[str, ...]] = [("0", clean, *without)]
        for eps, low, high, undecided, spared in columns:
            attacks = (f"{high}", f"{undecided:,}", f"{spared:,}") if self.has_attacks else ()
            certified = "void" if self.is_void else f"{low}"
            rows.append((format_eps(eps), certified, *attacks))
        return rows

    def summary(self) -> str:
        """The result as text: what `print` shows, what was not attacked, which attacks fooled images, the time."""
        lines = [str(self)]
        for name, count in self.successes_by_attack.items():
            lines.append(f"  {name}: the first to fool {count:,}")
        return "\n".join([*lines, f"  {self.time_sentence} Seed {self.seed}."])

    @property
    def successes_by_attack(self) -> dict[str, int]:
        """By attack, in order: the number of images that it was the first to fool, at any eps."""
        return {name: int((self.first_success == place).sum()) for place, name in enumerate(self.attacks)}

    def as_json(self) -> dict[str, Any]:
        """All results except images and per-image values, for a result file."""
        columns = zip(
            self.values,
            self.certified_accuracy,
            self.robust_accuracy,
            self.undecided,
            self.sampled,
            self.spared,
            self.contradicted.sum(0).tolist(),
            strict=True,
        )
        return {
            "norm": self.norm,
            "eps": list(self.values),
            "eps_text": [format_eps(each) for each in self.values],
            "method": self.method,
            "budget": self.budget,
            "sample": self.sample,
            "seed": self.seed,
            "images": len(self.images),
            "clean_accuracy": self.clean_accuracy.as_json(),
            "radii": [
                {
                    "eps": float(eps),
                    "eps_text": format_eps(eps),
                    "certified_accuracy": low.as_json(),
                    "robust_accuracy": high.as_json() if self.has_attacks else None,
                    "undecided": undecided if self.has_attacks else None,
                    "sampled": sampled,
                    "not_attacked": spared,
                    "contradicted": contradicted,
                }
                for eps, low, high, undecided, sampled, spared, contradicted in columns
            ],
            "void": self.is_void,
            "fooled_certified": [{"index": at, "attack": name} for at, name in self.fooled_certified.items()],
            "attacks": [
                {"attack": name, "first_to_fool": self.successes_by_attack[name], "settings": settings}
                for name, settings in self.attacks.items()
            ],
            "conclusion": self.conclusion,
            "notes": self.notes,
            "certificate_seconds": self.certificate_seconds,
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

        No images are written.

        Args:
            folder: is created; the files of the same evaluation in it are replaced.
            name: of the model, as the report states it; by default the class of its network.
            data: name of the images.
            overwrite: also replace the results of another evaluation.
            observer: is informed of the progress.

        Raises:
            SettingError: the folder holds the results of another evaluation.
            StoreError: the files cannot be written.
        """
        # named and not imported, since reports are built on evaluations: an import would make a circle
        write = import_module("casemate.report.certification").write_certification
        shown = type(self.model.network).__name__ if name is None else name
        return write(as_path(folder, "folder"), self, name=shown, data=data, overwrite=overwrite, observer=observer)


def evaluate_certified(
    model: nn.Module,
    images: ImageSource | ReadableImages,
    labels: Array | None = None,
    *,
    eps: float | str | Sequence[float | str],
    norm: str = "linf",
    method: Method = "crown",
    budget: Budget | None = "standard",
    sample: int = SAMPLE,
    claimed: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    store: Path | str | None = None,
    fresh: bool = False,
    observer: Observer = NULL_OBSERVER,
) -> CertifiedEvaluation:
    """Certify images, and attack those that are not certified and a sample of those that are.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits, made of layers that there are
            bounds for.
        images, labels: as for `casemate.evaluate`.
        eps: one radius or several, in pixel units, above zero.
        norm: linf, l2 or l1; l0 too for a certificate from elsewhere.
        method: of `casemate.certification.certify`.
        budget: the attacks, see `casemate.evaluate`; None: only certify.
        sample: number of certified images that are attacked all the same, drawn with `seed`, each at the largest eps at
            which it is certified (and, as it is not certified there, at larger ones).
        claimed: a certificate from elsewhere, booleans `(n, values)` that say which images are proven robust; then
            `method` is not used, and all images are attacked.
        seed: of all random draws.
        batch_size: images that pass through the network at a time when it is attacked; measured if None.
        store: a folder, or the URL of shared storage, that keeps the finished parts of bounds and attacks, so that the
            same call goes on from there; None keeps nothing. Bounds are not kept on shared storage.
        fresh: with `store`, use nothing of earlier calls.
        observer: receives the progress.

    Raises:
        SettingError: an eps, norm, method, budget or sample outside its range.
        ShapeError: images, labels or a claim of other shapes than the model or the images have.
        DataError: images or labels of a kind or type that is not understood.
        ModelError: a model with layers that there are no bounds for, or that fails.
        StoreError: the store cannot be written, or is in use and `fresh`.
    """
    start = time.perf_counter()
    read = parse_radii(eps)
    values = tuple(sorted(set(read)))
    sample = at_least(0, "certified images that are attacked").check(sample, "sample")
    batch_size = at_least(1).check_optional(batch_size, "batch_size")
    norm, model = parse_norm(norm), as_classifier(model)
    attacks = {} if budget is None else attacks_for(budget, norm, values[0], randomised=False)
    given = as_readable(images, labels)
    if not len(given):
        raise ShapeError("no images to certify; expected at least one")
    if claimed is not None:
        _check_claim(claimed, read, values, len(given), budget)
    given = within_bounds(given, model)
    few = given.read(slice(0, COMPARED_IMAGES))
    model.infer(few.tensors(model.device)[0])
    work = most_work(attacks, len(given), len(model.classes))
    with (
        keeping_pieces(model, few, store, seed, norm, 1, "float32", batch_size, observer, fresh=fresh) as kept,
        prepared_model(model, few, kept, work, "float32", batch_size, observer) as prepared,
    ):
        if claimed is None:
            folder = None if kept is None else kept.folder / CERTIFICATES
            proven = certify_parts(model, given, values, norm=norm, method=method, folder=folder, observer=observer)
            certified, clean, resumed = proven.certified, proven.clean, proven.resumed_seconds
        else:
            certified, clean = np.array(claimed, dtype=bool), evaluate_clean(model, given, observer=observer).correct
            resumed = 0.0
        certified &= clean[:, None]  # of a misclassified image nothing is proven that counts
        took = time.perf_counter() - start + resumed if claimed is None else 0.0
        begin = np.zeros(len(given), dtype=np.int64) if claimed is not None else certified.sum(1)
        if claimed is None:
            begin[_sampled(begin > 0, sample, derive(seed, "certified"))] -= 1
        begin[~clean] = len(values)
        robust = np.repeat(clean[:, None], len(values), axis=1)
        first_success = np.where(clean, ROBUST, MISCLASSIFIED)
        attacked = np.zeros_like(certified)
        for column in range(len(values)) if attacks else ():
            # images left out count as misclassified, so that each is attacked as in an evaluation that leaves none out
            which = begin == column
            if which.any():
                done = run_cascade(
                    prepared,
                    attacks,
                    given,
                    values[column:],
                    norm=norm,
                    correct=which,
                    seed=seed,
                    pieces=kept,
                    observer=observer,
                )
                robust[which, column:] = done.robust[which]
                first_success[which] = done.first_success[which]
                attacked[which, column] = True
                attacked[which, column + 1 :] = done.robust[which, :-1]
                resumed += done.resumed_seconds
    return CertifiedEvaluation(
        values=values,
        norm=norm,
        method=method if claimed is None else _CALLER,
        budget=budget,
        sample=sample,
        seed=seed,
        images=given,
        model=model,
        fingerprint=fingerprint(model),
        clean=clean,
        certified=certified,
        attacked=attacked,
        robust=robust,
        first_success=first_success,
        attacks={name: attack.record() for name, attack in attacks.items()},
        certificate_seconds=took,
        seconds=time.perf_counter() - start + resumed,
    )


def _check_claim(
    claimed: np.ndarray, read: Sequence[float], values: Sequence[float], count: int, budget: str | None
) -> None:
    """Raise `SettingError` or `ShapeError` for a certificate from elsewhere that does not fit values and images."""
    if read != list(values):
        raise SettingError(
            f"eps = {list(read)} with a claim; expected ascending values, in the order of the claim's columns"
        )
    if np.shape(claimed) != (count, len(values)):
        raise ShapeError(
            f"a claim of shape {np.shape(claimed)}; expected {(count, len(values))}: images by values of eps"
        )
    held = np.asarray(claimed)
    if held.dtype != bool:
        raise SettingError(f"a claim of type {held.dtype}; expected booleans: of margins, margin > 0")
    contradicted = np.flatnonzero((held[:, 1:] & ~held[:, :-1]).any(1))
    if len(contradicted):
        raise SettingError(
            f"a claim that image {int(contradicted[0])} is robust at an eps, but not at a smaller one; a proof at an "
            "eps holds at every smaller one: is the order of the columns that of eps?"
        )
    if budget is None:
        raise SettingError("a claim without attacks; give a budget, since the attacks test the claim")


def _sampled(among: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A random sample of the places where `among` holds, as booleans like it."""
    places = np.flatnonzero(among)
    chosen = np.zeros_like(among)
    chosen[np.random.default_rng(seed).permutation(places)[:count]] = True
    return chosen
