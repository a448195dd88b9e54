"""Comparison of two finished evaluations, A and B, on the same images: which is more robust, and for which images.

They are compared at every eps that both have, paired by image (see `casemate.evaluation.comparison`). Evaluations that
were made differently are refused; what may matter but does not rule out a comparison is a note.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, final

import numpy as np

from casemate.errors import SettingError
from casemate.evaluation import ModelComparison
from casemate.evaluation.comparison import Paired, Regression, judge_regression, paired
from casemate.norms import format_eps
from casemate.report.finished_evaluation import FinishedEvaluation

CLEAN = "accuracy without an attack"
"""What `FinishedComparison.compared` calls it."""

Judged = Literal["robust", "clean", "both"]
"""Which accuracies decide whether B is worse: robust at every eps, without an attack, or both."""


class ClassChange(NamedTuple):
    """The robust accuracy on the images of one class, at the largest eps."""

    name: str
    robust: Paired


class ChangedImage(NamedTuple):
    """An image that only one of two models classifies correctly under attack, at the largest eps."""

    place: int
    """Place of the image among those evaluated, from 0."""
    label: str
    prediction: str
    """The class that the model which was fooled predicts for its adversarial image."""
    attack: str | None
    """The attack that fooled it first; None if it is misclassified without one."""

    def as_json(self) -> dict[str, int | str | None]:
        """All fields, for a file; the place as `index`, as in the table of examples."""
        return {"index": self.place, "label": self.label, "prediction": self.prediction, "attack": self.attack}


@final
@dataclass(frozen=True, kw_only=True)
class FinishedComparison:
    """Two finished evaluations on the same images, from `compare_finished`."""

    a: FinishedEvaluation
    b: FinishedEvaluation
    at: tuple[ModelComparison, ...]
    """The comparison at each eps that both have, ascending."""
    clean: Paired
    """Accuracies without an attack."""
    notes: tuple[str, ...]
    """What differs between the evaluations and may matter."""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.a.labels)

    @property
    def trusted(self) -> bool:
        """Whether the numbers of both can be trusted at every eps."""
        return all(each.trusted for each in self.at)

    @property
    def distrust(self) -> str:
        """Whose numbers cannot be trusted, and why, at the smallest eps where that is so; "" if all can be."""
        for at in self.at:
            if not at.trusted:
                because = "; ".join(
                    f"{name}: {'; and '.join(each.trust.because)}"
                    for name, each in zip(at.names, at.verdicts or (), strict=True)
                    if not each.trust.trusted
                )
                return f"{at.conclusion} {because}"
        return ""

    @property
    def conclusion(self) -> str:
        """A sentence that says which is more robust at the largest eps, or why that is not shown."""
        return self.at[-1].conclusion

    @cached_property
    def per_class(self) -> tuple[ClassChange, ...]:
        """One for each class with images, the one that lost most first."""
        (a, b), labels = self._robust, self.a.labels
        found = [
            ClassChange(name, paired(a[labels == label], b[labels == label]))
            for label, name in enumerate(self.a.result.classes)
            if (labels == label).any()
        ]
        return tuple(sorted(found, key=lambda each: each.robust.difference.value))

    @cached_property
    def worse(self) -> tuple[ChangedImage, ...]:
        """The images that only A classifies correctly under attack."""
        a, b = self._robust
        return self._changed(self.b, a & ~b)

    @cached_property
    def better(self) -> tuple[ChangedImage, ...]:
        """The images that only B classifies correctly under attack."""
        a, b = self._robust
        return self._changed(self.a, b & ~a)

    @property
    def _robust(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images A and B classify correctly at the largest eps that both have, booleans `(n,)` each."""
        eps = self.at[-1].eps or 0.0
        return self.a.robust(eps), self.b.robust(eps)

    def _changed(self, fooled: FinishedEvaluation, which: np.ndarray) -> tuple[ChangedImage, ...]:
        names = fooled.result.classes
        prediction = np.where(fooled.correct, fooled.adversarial_prediction, fooled.prediction)
        return tuple(
            ChangedImage(int(at), names[fooled.labels[at]], names[prediction[at]], fooled.fooled_by[at])
            for at in np.flatnonzero(which)
        )

    def compared(self, judged: Judged = "both") -> dict[str, Paired]:
        """The accuracies that are compared, by name: first without an attack, then at each eps."""
        found = {CLEAN: self.clean} if judged != "robust" else {}
        if judged != "clean":
            found |= {self.name_of(each): each.robust for each in self.at}
        return found

    def name_of(self, each: ModelComparison) -> str:
        """What `compared` calls the robust accuracy at one of the radii."""
        return f"robust accuracy at eps {self._shown(each)}"

    def regression(self, *, judged: Judged = "robust", margin: float | None = None) -> Regression:
        """Whether B is worse than A, by `judge_regression`; it counts as worse if a number is not to be trusted.

        Raises `SettingError` for a margin that no model could meet with these images.
        """
        found = judge_regression(self.compared(judged), names=("A", "B"), margin=margin)
        return found if self.trusted else Regression(worse=True, sentence=self.distrust, margin=margin)

    def as_json(self, gate: Regression | None = None) -> dict[str, Any]:
        """All results as JSON, with the decision whether B is worse if there is one."""
        return {
            "a": _about(self.a),
            "b": _about(self.b),
            "norm": self.at[-1].norm,
            "budget": self.a.result.verdict.number.budget,
            "images": self.n,
            "images_sha256": self.a.images_sha256,
            "clean": self.clean.as_json(),
            "robust": [
                {
                    "eps": float(each.eps or 0.0),
                    "eps_text": self._shown(each),
                    **each.robust.as_json(),
                    "verdicts": [verdict.word for verdict in each.verdicts or ()],
                    "conclusion": each.conclusion,
                }
                for each in self.at
            ],
            "per_class": [{"class": each.name, **each.robust.as_json()} for each in self.per_class],
            "worse": [each.as_json() for each in self.worse],
            "better": [each.as_json() for each in self.better],
            "notes": list(self.notes),
            "trusted": self.trusted,
            "conclusion": self.conclusion,
            "regression": None
            if gate is None
            else {"worse": gate.worse, "margin": gate.margin, "sentence": gate.sentence},
        }

    def _shown(self, each: ModelComparison) -> str:
        return self.a.verdict(each.eps or 0.0).number.shown_eps


def compare_finished(a: FinishedEvaluation, b: FinishedEvaluation) -> FinishedComparison:
    """Compare two finished evaluations. Raises `SettingError` for those that cannot be compared."""
    shared = [each.eps for each in a.result.verdicts if float(each.eps) in set(map(float, _radii(b)))]
    reasons = [*_differences(a, b), *([] if shared else [f"no eps in common ({_written(a)} and {_written(b)})"])]
    if reasons:
        raise SettingError(
            f"{a.folder} and {b.folder} cannot be compared: {'; '.join(reasons)}. Evaluate both on the same images "
            "with the same settings"
        )
    clean = paired(a.correct, b.correct)
    return FinishedComparison(
        a=a,
        b=b,
        at=tuple(
            ModelComparison(
                names=("A", "B"),
                eps=eps,
                norm=a.result.verdict.number.norm,
                robust=paired(a.robust(eps), b.robust(eps)),
                clean=clean,
                verdicts=(a.verdict(eps), b.verdict(eps)),
                attacks=(f"budget {a.result.verdict.number.budget}", f"budget {b.result.verdict.number.budget}"),
            )
            for eps in shared
        ),
        clean=clean,
        notes=tuple(_notes(a, b, shared[-1])),
    )


def _differences(a: FinishedEvaluation, b: FinishedEvaluation) -> list[str]:
    """What rules out a comparison, each in a few words."""
    reasons: list[str] = []
    one, other = a.result.verdict.number, b.result.verdict.number
    if a.result.images != b.result.images:
        reasons.append(f"{a.result.images:,} and {b.result.images:,} images")
    elif a.images_sha256 != b.images_sha256:
        reordered = a.result.classes != b.result.classes and set(a.result.classes) == set(b.result.classes)
        reasons.append(f"other images or labels{' (their classes are in another order)' if reordered else ''}")
    for what, first, second in (
        ("norm", one.norm, other.norm),
        ("range of the pixels", one.bounds, other.bounds),
        ("budget", one.budget, other.budget),
    ):
        if first != second:
            reasons.append(f"{what} {first} and {second}")
    if one.budget == other.budget and a.result.randomised == b.result.randomised:
        settings = [{each.name: _without_eps(each.settings) for each in of.result.attacks} for of in (a, b)]
        names = sorted({*settings[0], *settings[1]})
        changed = [name for name in names if settings[0].get(name) != settings[1].get(name)]
        if changed:
            reasons.append(f"attacks with other settings ({', '.join(changed)})")
    return reasons


def _notes(a: FinishedEvaluation, b: FinishedEvaluation, largest: float) -> list[str]:
    """What differs and may matter, each as a sentence without a full stop."""
    one, other = a.result, b.result
    notes: list[str] = []
    if one.fingerprint == other.fingerprint:
        notes.append("A and B have the same weights")
    for what, first, second in (
        ("the seed", one.seed, other.seed),
        ("the precision of the gradients", one.precision, other.precision),
        ("the release of casemate", one.provenance.get("casemate"), other.provenance.get("casemate")),
    ):
        if first != second:
            notes.append(f"{what} differs: {first} for A, {second} for B")
    if one.randomised != other.randomised:
        which = "A" if one.randomised else "B"
        notes.append(f"{which} is randomised, so that its attacks are those of the budget for randomised models")
    below = [{float(each) for each in _radii(of) if each <= largest} for of in (a, b)]
    for name, only in (("A", below[0] - below[1]), ("B", below[1] - below[0])):
        if only:
            notes.append(
                f"{name} was attacked at more values of eps ({', '.join(map(format_eps, sorted(only)))}), and an image "
                "fooled at one counts as fooled at every larger one"
            )
    return notes


def _about(each: FinishedEvaluation) -> dict[str, Any]:
    """What is known of one of the two, as JSON."""
    result = each.result
    return {
        "folder": str(each.folder),
        "model": result.model,
        "fingerprint": result.fingerprint,
        "data": result.data,
        "seed": result.seed,
        "verdict": result.verdict.word,
    }


def _radii(of: FinishedEvaluation) -> list[float]:
    return [each.eps for each in of.result.verdicts]


def _written(of: FinishedEvaluation) -> str:
    return ", ".join(each.number.shown_eps for each in of.result.verdicts)


def _without_eps(settings: Any) -> Any:
    """The settings of an attack, and of those inside it, without eps: it may differ between the evaluations."""
    if isinstance(settings, Mapping):
        return {name: _without_eps(each) for name, each in settings.items() if name != "eps"}
    return [_without_eps(each) for each in settings] if isinstance(settings, list) else settings
