"""The criterion of an attack: which examples count as fooled, and the objective that leads there.

`Misclassification` is what attacks judge by unless they are given another one: in place of the labels they take a
criterion of the user's own (`criteria.py` has three), which states its `margin`; all else follows from that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks.overriding import overridable
from casemate.data import Array, as_tensor
from casemate.errors import SettingError, ShapeError, kind_of
from casemate.logits import is_valid
from casemate.losses import Loss, OwnLoss, margin, one_per_image
from casemate.models import normal_tensor
from casemate.rows import Rows
from casemate.types import Classes, Flags, Images, Labels, Logits, Mask, PerExample

C = TypeVar("C", bound="AbstractCriterion")
"""The class of the criterion itself."""


@final
@dataclass(frozen=True)
class Watched(Rows):
    """Reports whose logits a criterion judges, for counting queries per image without a change in any attack."""

    positions: Int64[Tensor, " n"]
    """Positions of the examples in the batch."""
    report: Callable[[Tensor, Logits], None]
    """Called with the positions and the logits whenever logits are judged; the same logits may be judged again."""


class AbstractCriterion(Rows, ABC):
    """What counts as fooled, and the objective that attacks maximise to get there; `casemate.Criterion` to users.

    A criterion of one's own derives from it and states `margin`. An attack gets it in place of the labels:
    `PGD(eps="8/255")(model, images, TopK(labels, k=5))`.

    Tensors among its attributes have one row per image, since `criterion[mask]` is the criterion of some of the images;
    what is the same for all images must be no tensor by itself, but a number, or a tensor in a tuple. The names of the
    attributes below belong to the library.

    Args:
        classes: what logits are compared with, as a tensor, an array or a list: class numbers `(n,)`, or a row per
            image, `(n, classes)`. `AttackResult.labels` are these.
    """

    by_class: ClassVar[bool] = False
    """Whether it compares the logit of one class per image, `classes`, with those of all others. Attacks then know the
    boundaries with single classes, and maximise the loss that they are set to; otherwise it is `margin` for both."""

    targeted: bool = False
    """Whether `classes` are classes to reach."""
    never: bool = False
    """No example counts as fooled, so that an attack uses its whole budget, as `Transfer` needs on a substitute."""
    watched: Watched | None = None
    """Is given all logits that are judged; None: nobody watches."""
    shared: bool = False
    """The tensors have a single row, which is meant for all images."""
    mask: Mask | None = None
    """Which values of each image the attack may change; None: all."""

    @overridable
    def __init__(self, classes: Array) -> None:
        self.classes: Classes = as_tensor(classes, "labels")

    @abstractmethod
    def margin(self, logits: Logits) -> PerExample:
        """By how much each example is fooled, `(n,)`: positive exactly where it counts as fooled, in units of logits.

        Attacks maximise it, so it has to be differentiable, and rise on the way to a fooled example.
        """

    @overridable
    def check(self, classes: int) -> None:
        """Raise `SettingError` or `ShapeError` unless the criterion fits a model with that many classes."""
        del classes

    @overridable
    def fools(self, logits: Logits) -> Flags:
        """Which examples are fooled, as far as their logits are valid: those with a positive `margin`.

        Raises `SettingError` for a margin that is not a finite number although all logits are.
        """
        value = self.checked_margin(logits)
        broken = ~value.isfinite() & logits.isfinite().all(1)
        if broken.any():
            raise SettingError(
                f"the margin of {type(self).__name__} is {value[broken][0].item()} for {int(broken.sum())} of "
                f"{len(logits)} images with finite logits; expected finite numbers: look for divisions by zero, "
                "logarithms and infinite constants"
            )
        return value > 0

    @final
    def checked_margin(self, logits: Logits) -> PerExample:
        """The `margin`. Raises `SettingError` unless it is one differentiable number per image."""
        return one_per_image(f"the margin of {type(self).__name__}", self.margin(logits), logits)

    @final
    def is_adversarial(self, logits: Logits) -> Flags:
        """Which examples are fooled; False where the logits are not valid (see `casemate.logits`)."""
        self._report(logits)
        fooled = self.fools(logits)
        return torch.zeros_like(fooled) if self.never else fooled & is_valid(logits)

    @final
    def objective(self, loss: Loss, logits: Logits) -> PerExample:
        """What an attack with a `loss` maximises, `(n,)`.

        For classes it is `loss` under the label, or if targeted minus `loss` under the target; otherwise the margin,
        unless the loss is the user's own, which then gets `classes`.
        """
        self._report(logits)
        if not (self.by_class or isinstance(loss, OwnLoss)):
            return self.checked_margin(logits)
        value = loss(logits, self.classes)
        return -value if self.targeted else value

    @final
    def record(self) -> dict[str, Any]:
        """The name of the class ("name"), and its settings that are numbers, texts or tuples of these, for results."""
        settings = {name: value for name, value in vars(self).items() if name != "shared" and _is_plain(value)}
        return {"name": type(self).__name__, **settings}

    @final
    def with_changes(self: C, **attributes: Any) -> C:
        """A copy with other values of some attributes, such as `never` or `watched`."""
        changed = copy(self)
        for name, value in attributes.items():
            object.__setattr__(changed, name, value)
        return changed

    @final
    def to(self: C, device: torch.device) -> C:
        """A copy whose tensors are on a device."""
        return self.with_changes(
            **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        )

    @final
    def for_images(self: C, count: int, classes: int) -> C:
        """The criterion for a number of images, and a model with a number of classes; a shared row is repeated.

        Raises `ShapeError` or `SettingError` for tensors without one row per image, and as `check`.
        """
        name, given = type(self).__name__, getattr(self, "classes", None)
        if not isinstance(given, Tensor):
            raise SettingError(
                f"{name} has {kind_of(given)} as classes; expected a tensor with a row per image, which "
                "super().__init__(classes) makes of an array or a list too"
            )
        if given.is_floating_point() or given.is_complex() or given.ndim not in (1, 2):
            raise ShapeError(
                f"{name} has classes of type {given.dtype} and shape {tuple(given.shape)}; expected whole numbers or "
                "booleans, (n,) or (n, classes)"
            )
        made = self
        if self.shared:
            made = self[torch.zeros(count, dtype=torch.int64, device=given.device)].with_changes(shared=False)
        for attribute, value in vars(made).items():
            if isinstance(value, Tensor) and value.shape[:1] != (count,):
                raise ShapeError(
                    f"{name}.{attribute} has the shape {tuple(value.shape)}; expected a row for each of {count} "
                    "images. What is the same for all images can be a number, or a tensor in a tuple"
                )
        made.check(classes)
        return made.with_changes(
            **{name: normal_tensor(value) for name, value in vars(made).items() if isinstance(value, Tensor)}
        )

    @final
    def masked(self, gradient: Images) -> Images:
        """A gradient, or a change of the images, with zero for the values that the mask holds fixed."""
        return gradient if self.mask is None else gradient.where(self.mask, 0.0)

    @final
    def restricted(self, images: Images, clean: Images) -> Images:
        """The images with the values of the clean ones where the mask holds them fixed."""
        return images if self.mask is None else images.where(self.mask, clean)

    def _report(self, logits: Logits) -> None:
        if self.watched is not None:
            self.watched.report(self.watched.positions, logits)


def _is_plain(value: object) -> bool:
    """Whether JSON can express a setting."""
    if isinstance(value, tuple):
        return all(map(_is_plain, cast(tuple[object, ...], value)))
    return isinstance(value, bool | int | float | str)


Criterion = AbstractCriterion
"""The base of all criteria, by the name that those of users derive from."""


@final
class Misclassification(AbstractCriterion):
    """Fooled where the class with the largest logit is not the label, or with `targeted` where it is the target.

    Args:
        classes: the true labels, int64 `(n,)`, or with `targeted` the target classes.
    """

    by_class: ClassVar[bool] = True

    def __init__(self, classes: Labels, targeted: bool = False) -> None:
        self.classes, self.targeted = classes, targeted

    def margin(self, logits: Logits) -> PerExample:
        """The logit margin; for a target minus the margin by which another class is larger."""
        value = margin(logits, self.classes)
        return -value if self.targeted else value

    def fools(self, logits: Logits) -> Flags:
        """By the class that is predicted: of equal largest logits the first one counts."""
        hit = logits.argmax(1) == self.classes
        return hit if self.targeted else ~hit
