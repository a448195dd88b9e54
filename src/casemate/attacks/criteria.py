"""Criteria other than misclassification, to be given to an attack in place of the labels.

A logit equal to the one that it is compared with does not count as fooled yet.
"""

from collections.abc import Collection, Sequence
from typing import Literal, final

import torch
from jaxtyping import Bool
from torch import Tensor

from casemate.attacks.criterion import AbstractCriterion
from casemate.data import Array, as_labels, as_tensor
from casemate.errors import SettingError, ShapeError
from casemate.losses import without
from casemate.models import check_labels
from casemate.settings import at_least, one_of
from casemate.types import Logits, PerExample

Wrong = Literal["any", "all"]


@final
class TopK(AbstractCriterion):
    """Fooled where the label is not among the classes with the k largest logits (top-k accuracy).

    Args:
        labels: the true classes, whole numbers `(n,)`.
        k: how many classes count as right, from 1 (misclassification) to one less than all classes.
    """

    def __init__(self, labels: Array, k: int) -> None:
        self.classes = as_labels(labels)
        self.k: int = at_least(1).check(k, "k")

    def check(self, classes: int) -> None:
        """Raise `SettingError` for k that leaves no class out, `ShapeError` for labels that the model does not have."""
        if self.k >= classes:
            raise SettingError(f"k = {self.k} for a model with {classes} classes; expected at most {classes - 1}")
        check_labels(self.classes, classes)

    def margin(self, logits: Logits) -> PerExample:
        """The k-th largest of the other logits minus the label's."""
        own = logits.gather(1, self.classes.unsqueeze(1)).squeeze(1)
        return without(logits, self.classes).topk(self.k, dim=1).values[:, -1] - own


@final
class AnyOf(AbstractCriterion):
    """Fooled where the predicted class is one of a set.

    Args:
        classes: the classes that count, as booleans `(n, classes)`, a set for each image; or their numbers, such as
            `{3, 5}`, one set for all images.
    """

    def __init__(self, classes: Array | Collection[int]) -> None:
        given = sorted(classes) if isinstance(classes, set | frozenset) else classes
        self.classes: Tensor = as_tensor(given, "classes")  # type: ignore[arg-type]
        if self.classes.dtype != torch.bool:
            if self.classes.ndim != 1:
                raise ShapeError(
                    f"classes of type {self.classes.dtype} and shape {tuple(self.classes.shape)}; expected booleans "
                    "(n, classes), a set for each image, or the numbers of one set for all images"
                )
            self.classes = as_labels(self.classes).unsqueeze(0)
            self.shared = True

    def check(self, classes: int) -> None:
        """Raise `ShapeError` unless the classes are the model's, and in each set some but not all of them."""
        if self.classes.dtype != torch.bool:
            check_labels(self.classes[0], classes, "classes")
        elif self.classes.ndim != 2 or self.classes.shape[1] != classes:
            raise ShapeError(
                f"a set of classes of shape {tuple(self.classes.shape)}; expected booleans of shape (n, {classes}), "
                "one for each class of the model"
            )
        count = self._chosen(classes).sum(1)
        if len(count) and not 0 < int(count.min()) <= int(count.max()) < classes:
            place = int(((count == 0) | (count == classes)).long().argmax())
            raise ShapeError(
                f"the set of classes of image {place} has {int(count[place])} of {classes}; expected at least one, and "
                "not all"
            )

    def margin(self, logits: Logits) -> PerExample:
        """The largest logit in the set minus the largest outside."""
        chosen = self._chosen(logits.shape[1])
        return logits.masked_fill(~chosen, -torch.inf).amax(1) - logits.masked_fill(chosen, -torch.inf).amax(1)

    def _chosen(self, classes: int) -> Bool[Tensor, "n classes"]:
        if self.classes.dtype == torch.bool:
            return self.classes
        none = torch.zeros(len(self.classes), classes, dtype=torch.bool, device=self.classes.device)
        return none.scatter(1, self.classes, value=True)


@final
class MultiLabel(AbstractCriterion):
    """For networks that say of every label by itself whether it applies: fooled where some are wrong.

    A label counts as predicted where its logit is above the threshold.

    Args:
        labels: which labels apply, 0 or 1, `(n, classes)`.
        threshold: what the logits are compared with; 0 is a probability of a half. It is for logits also where the
            network ends in a sigmoid, before which `Classifier` takes them.
        wrong: `any`: fooled where at least one label is wrong. `all`: only where every one is.
        chosen: the numbers of the labels that count; None for all of them.
    """

    def __init__(
        self,
        labels: Array,
        threshold: float = 0.0,
        *,
        wrong: Wrong = "any",
        chosen: Sequence[int] | None = None,
    ) -> None:
        self.classes: Tensor = as_tensor(labels, "labels")
        self.threshold = threshold
        self.wrong: Wrong = one_of("any", "all").check(wrong, "wrong")
        self.chosen = None if chosen is None else tuple(int(each) for each in chosen)
        if self.classes.dtype != torch.bool:
            if not ((self.classes == 0) | (self.classes == 1)).all():
                raise ShapeError("labels other than 0 and 1; expected 1 where a label applies and 0 where it does not")
            self.classes = self.classes.long()

    def check(self, classes: int) -> None:
        """Raise `ShapeError` unless there is a label for each logit, `SettingError` for chosen ones out of range."""
        if self.classes.ndim != 2 or self.classes.shape[1] != classes:
            raise ShapeError(
                f"labels of shape {tuple(self.classes.shape)}; expected (n, {classes}), one for each logit of the model"
            )
        if self.chosen is not None and not (self.chosen and all(0 <= each < classes for each in self.chosen)):
            raise SettingError(f"chosen = {self.chosen}; expected one or several numbers from 0 to {classes - 1}")

    def margin(self, logits: Logits) -> PerExample:
        """By how much labels are on the wrong side of the threshold: the largest of these numbers, or the smallest."""
        beyond = logits - self.threshold
        wrong = torch.where(self.classes.bool(), -beyond, beyond)
        if self.chosen is not None:
            wrong = wrong[:, list(self.chosen)]
        return wrong.amax(1) if self.wrong == "any" else wrong.amin(1)
