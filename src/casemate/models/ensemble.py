"""Several models as one: attacked or judged together, or as the substitute of a transfer attack.

(Liu et al. 2017, arXiv 1611.02770, who average probabilities; Dong et al. 2018, arXiv 1710.06081, logits.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from casemate.errors import ModelError, SettingError, ShapeError, kind_of
from casemate.models.classifier import Classifier, is_numbered
from casemate.models.given import as_classifier, same_classes
from casemate.settings import listed, one_of, positive
from casemate.types import Images, Logits

Average = Literal["logits", "probabilities"]
_AVERAGE = one_of("logits", "probabilities")
_WEIGHT = positive()


@final
class EnsembleNetwork(nn.Module):
    """The network of an `ensemble`: classifiers whose outputs are averaged."""

    weights: Tensor

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float], average: Average) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.average = average
        # as given, since float32 would round their shares; divided where they are used
        self.register_buffer("weights", torch.tensor(weights, device=members[0].device))
        self.training = any(each.training for each in members)  # `train` would change the members too

    def forward(self, images: Images) -> Logits:
        """The mean logits, or the logarithms of the mean probabilities."""
        outputs = [member(images) for member in self.members]
        counts = sorted({each.shape[1] for each in outputs})
        if len(counts) > 1:
            raise ShapeError(f"members of the ensemble with {counts} classes; expected as many of each")
        each = torch.stack(outputs)
        weights = self.weights.to(each).view(-1, 1, 1)
        weights = weights / weights.sum()
        if self.average == "logits":
            return (weights * each).sum(0)
        return (each.log_softmax(2) + weights.log()).logsumexp(0)

    def extra_repr(self) -> str:
        """What is averaged, and with which weights."""
        return f"average={self.average!r}, weights={self.weights.tolist()}"


def ensemble(
    models: Sequence[nn.Module],
    *,
    weights: Sequence[float] | None = None,
    average: Average = "logits",
) -> Classifier:
    """A classifier that is the average of several models, whose weights it shares; each keeps its own normalisation.

    It has no normalisation of its own, and is in training mode if a member is. The members do not change.

    Args:
        models: classifiers, or modules that map images within [0, 1] to logits; on one device, with the same bounds,
            classes and shape of images.
        weights: one positive number per model, divided by their sum; None for equal ones.
        average: "logits" averages the logits; "probabilities" the softmax probabilities, whose logarithms are then the
            logits.

    Raises:
        ShapeError: models that differ in bounds, classes or shape of images, as far as known; what is not known before
            the first call is compared then.
        ModelError: no models, what is no module, or models on several devices.
        SettingError: weights that are not one positive number per model, or another `average`.
    """
    if isinstance(models, nn.Module) or not isinstance(models, Iterable):
        raise ModelError(f"the models are {kind_of(models)}; expected a list of them")
    members = [as_classifier(each) for each in models]
    if not members:
        raise ModelError("an ensemble of no models; expected at least one")
    average = _AVERAGE.check(average, "average")
    shares = [1.0] * len(members)
    if weights is not None:
        shares = [float(_WEIGHT.check(each, "weights")) for each in listed(weights, "weights")]
    if len(shares) != len(members):
        raise SettingError(f"{len(shares)} weights for {len(members)} models; expected one for each")
    devices = sorted({str(each.device) for each in members})
    if len(devices) > 1:
        raise ModelError(f"the models are on {' and '.join(devices)}; move them to one device")
    return Classifier(EnsembleNetwork(members, shares, average), **_common(members))


def _common(members: Sequence[Classifier]) -> dict[str, Any]:
    """The arguments `input_shape`, `classes` and `bounds` that all members have, None where none of them is known.

    Names count before numbers of classes. Raises `ShapeError` where members differ.
    """
    found: dict[str, Any] = {}
    for name, what in (("bounds", "bounds"), ("input_shape", "shape of images")):
        known = [each.interface[name] for each in members if each.interface[name] is not None]
        different = [each for each in known if each != known[0]]
        if different:
            raise ShapeError(f"the models have different {what}: {known[0]} and {different[0]}; expected the same")
        found[name] = known[0] if known else None
    classes = [each.interface["classes"] for each in members if each.interface["classes"] is not None]
    for number, one in enumerate(classes):
        for other in classes[:number]:
            if not same_classes(one, other):
                raise ShapeError(
                    f"the models have different classes: {', '.join(other)} and {', '.join(one)}; expected the same, "
                    "in the same order"
                )
    classes.sort(key=is_numbered)
    found["classes"] = classes[0] if classes else None
    return found
