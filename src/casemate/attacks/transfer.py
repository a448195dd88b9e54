"""Transfer attacks: adversarial images of another model, the substitute, tried on the model under attack.

(Papernot, McDaniel and Goodfellow 2016, arXiv 1605.07277.) They use no gradient of the model under attack. Where they
fool more images than an attack on the model itself, the gradients of that model are masked, and it is not robust
(Athalye et al. 2018, section 3.1).
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.arrays import bytes_of
from casemate.attacks.base import AbstractAttack, AbstractMinimumNormAttack, as_attack, innermost
from casemate.attacks.criterion import Criterion
from casemate.attacks.prepare import prepare_for_attack
from casemate.attacks.result import Passes, RunResult
from casemate.errors import SettingError, ShapeError
from casemate.logits import is_valid
from casemate.models import Classifier, as_classifier
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Images


def _facts(model: Classifier) -> dict[str, Any]:
    """What identifies a model in results: class of the network, number of parameters, hash of `repr` and weights."""
    digest = hashlib.sha256(repr(model).encode())
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(bytes_of(tensor))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"network": type(model.network).__name__, "parameters": parameters, "sha256": digest.hexdigest()}


@final
@dataclass(frozen=True, kw_only=True)
class Transfer(AbstractAttack):
    """Another attack, run on a substitute model; its images are the candidates for the model under attack.

    An image just across the substitute's boundary seldom fools another model. So an attack within a ball does not stop
    at its first success on the substitute, but uses its whole budget on every image that the model under attack
    classifies correctly. A minimum-norm attack does stop at the substitute's boundary, and therefore must have some
    `confidence` (as Carlini and Wagner's).

    The passes counted are those through the substitute, and one through the model before and one after. Status
    ZERO_GRADIENT, and numbers that are not finite, may come from the substitute too.
    """

    attack: AbstractAttack
    """The attack to run on the substitute."""
    substitute: nn.Module = field(metadata={"record": _facts})
    """The model to compute the images on, a `Classifier` or a module that maps images within [0, 1] to logits: in
    evaluation mode, on its own device; left as it was. Results record its class, and a hash of its `repr` and
    weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "substitute", as_classifier(self.substitute))
        inner = innermost(as_attack(self.attack))
        if isinstance(inner, AbstractMinimumNormAttack) and not getattr(inner, "confidence", 0) > 0:
            raise SettingError(
                f"{type(inner).__name__} ends just across the substitute's boundary, which does not transfer; expected "
                "an attack within a ball (PGD), or one with confidence > 0"
            )

    def max_passes(self, classes: int) -> Passes | None:
        """Per image at most: the passes of the attack on the substitute, and one forward pass of the model.

        None if the attack's number is unknown.
        """
        most = self.attack.max_passes(classes)
        return most and Passes(1 + most.forward, most.backward)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Attack the substitute on the images that `model` classifies correctly; the results are the candidates.

        Raises:
            ShapeError: the two models differ in image shape, bounds or number of classes.
        """
        self._check(model, clean)
        with torch.no_grad():
            logits = model(clean)
        finite = is_valid(logits)
        result = RunResult(clean.clone(), finite, torch.ones_like(finite), Passes(forward=len(clean)))
        left = (~criterion.is_adversarial(logits) & is_valid(logits)).nonzero().squeeze(1)
        if len(left):
            there = as_classifier(self.substitute).device
            within_ball = not isinstance(innermost(self.attack), AbstractMinimumNormAttack)
            on_substitute = criterion[left].to(there).with_changes(never=within_ball, watched=None)
            images = clean[left].to(there)
            with prepare_for_attack(as_classifier(self.substitute), images, pass_size=model.pass_size) as prepared:
                found = self.attack.run(
                    prepared.copy,
                    images,
                    on_substitute,
                    Streams(streams.seed, streams.index[left].to(there)),
                    advance,
                )
            result.images[left] = found.images.to(clean)
            result.finite[left], result.has_gradient[left] = found.finite.to(finite), found.has_gradient.to(finite)
            result.passes.add(found.passes)
        return result

    def _check(self, model: Classifier, clean: Images) -> None:
        """Raise `ShapeError` unless both models take the same images and have the same number of classes."""
        substitute = as_classifier(self.substitute)
        substitute.infer(clean)
        for what, ours, theirs in (
            ("images of shape", substitute.input_shape, model.input_shape),
            ("pixels within", substitute.bounds, model.bounds),
            ("this many classes:", len(substitute.classes), len(model.classes)),
        ):
            if ours != theirs:
                raise ShapeError(f"the substitute takes {what} {ours}, the model under attack {theirs}")
