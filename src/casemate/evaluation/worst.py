"""The worst case over several attacks: an image counts as withstood only if none of them fooled it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from casemate.attacks import AbstractGradientAttack, Passes
from casemate.data import LabelledImages
from casemate.errors import SettingError
from casemate.evaluation.curves import eps_curve
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Observer


@final
@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Which images withstood which attacks, and all of them. Arrays are booleans `(n, values)`."""

    values: tuple[float, ...]
    """The values of eps, ascending."""
    each: dict[str, np.ndarray]
    """By attack: withstood it, at this and every smaller eps."""
    passes: Passes

    @property
    def every(self) -> np.ndarray:
        """Withstood every attack."""
        return np.logical_and.reduce(list(self.each.values()))


def worst_case(
    model: Classifier,
    attacks: Mapping[str, AbstractGradientAttack],
    images: LabelledImages,
    values: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> WorstCase:
    """Run every attack at every eps on every image; each leaves an image alone once it has fooled it."""
    if not attacks:
        raise SettingError("a worst case over no attacks; name at least one")
    each: dict[str, np.ndarray] = {}
    passes = Passes()
    with observer.work("Worst case", len(attacks)) as advance:
        for name, attack in attacks.items():
            curve = eps_curve(
                model,
                attack,
                images,
                values,
                only_worst=True,
                seed=seed,
                batch_size=batch_size,
                observer=observer,
            )
            each[name] = curve.worst
            passes.add(curve.passes)
            advance(1, name)
    return WorstCase(values=tuple(float(value) for value in values), each=each, passes=passes)
