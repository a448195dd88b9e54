"""Attacks by transfer: adversarial images of another model, the substitute, tried on the model under attack.

(Papernot, McDaniel and Goodfellow 2016, arXiv 1605.07277.) They need no gradient of the model under attack, so where
they fool more images than an attack on the model itself, that attack was hindered, and the model is not robust
(Athalye et al. 2018, section 3.1).
"""

import hashlib
from dataclasses import dataclass
from typing import Any, final

import torch

from casemate.attacks.base import Attack, Criterion, MinimumNormAttack, Passes, held, innermost
from casemate.errors import SettingError, ShapeError
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images


@final
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Another attack, run on a substitute; its images are then those for the model under attack.

    An image that has only just fooled the substitute seldom fools another model too. So the attack is never told that
    it has succeeded there, and uses its whole budget on every image that the model under attack classifies correctly.
    A minimum-norm attack, which looks for just such images, must ask for some `confidence` (as Carlini and Wagner's
    does); it goes by the substitute alone.

    The passes counted are those through the substitute, besides one look at the model before and one after. Status
    ZERO_GRADIENT, and numbers that are not finite, may be the substitute's too.
    """

    attack: Attack
    """What is done to the substitute."""
    substitute: Classifier
    """Attacked in evaluation mode, on its own device; it is left as it was."""

    def __post_init__(self) -> None:
        inner = innermost(self.attack)
        if isinstance(inner, MinimumNormAttack) and not getattr(inner, "confidence", 0) > 0:
            raise SettingError(
                f"{type(inner).__name__} ends just across the substitute's boundary, which does not transfer; take an "
                "attack within a ball (PGD), or one with confidence > 0"
            )

    def ball(self) -> Ball:
        """The ball of the attack."""
        return self.attack.ball()

    def record(self) -> dict[str, Any]:
        """Name and hyper-parameters; of the substitute its kind and a hash of its text and weights."""
        return {"name": type(self).__name__, "attack": self.attack.record(), "substitute": _facts(self.substitute)}

    def most_passes(self, classes: int) -> Passes:
        """Those of the attack on the substitute, and a look at the model."""
        most = self.attack.most_passes(classes)
        return Passes(1 + most.forward, most.backward)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Attack the substitute on the images that `model` is not wrong about already. Raises `ShapeError`."""
        self._check(model)
        with torch.no_grad():
            logits = model(clean)
        passes = Passes(forward=len(clean))
        candidates = clean.where(is_valid(logits).view(-1, 1, 1, 1), torch.nan)
        steered = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        left = (~criterion.met(logits) & is_valid(logits)).nonzero().squeeze(1)
        if len(left):
            there = self.substitute.device
            endless = not isinstance(innermost(self.attack), MinimumNormAttack)
            aim = Criterion(criterion.classes[left].to(there), criterion.targeted, never=endless)
            images = clean[left].to(there)
            with held(self.substitute, images, pass_size=model.pass_size) as both:
                found, moved, cost = self.attack.run(
                    both.copy,
                    images,
                    aim,
                    Streams(streams.seed, streams.index[left].to(there)),
                    advance,
                )
            candidates[left], steered[left] = found.to(candidates), moved.to(clean.device)
            passes.add(cost)
        return candidates, steered, passes

    def _check(self, model: Classifier) -> None:
        """Raise `ShapeError` unless both models take the same images and tell as many classes apart."""
        for what, ours, theirs in (
            ("images of shape", self.substitute.input_shape, model.input_shape),
            ("pixels within", self.substitute.bounds, model.bounds),
            ("this many classes:", len(self.substitute.classes), len(model.classes)),
        ):
            if ours != theirs:
                raise ShapeError(f"the substitute takes {what} {ours}, the model under attack {theirs}")


def _facts(model: Classifier) -> dict[str, Any]:
    """What tells a model from others, as JSON."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"network": type(model.network).__name__, "parameters": parameters, "sha256": digest.hexdigest()}
